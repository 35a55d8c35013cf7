//! Vectors of config objects (rules C-1 to C-8).

use super::{changed, keyed, put};
use crate::vectors::Set;
use crate::vectors::fixed::{MASTER, REPOSITORY, keys, random, subkey, version_of};
use crate::vectors::form::Vector;
use diskvault_format::config::Config;
use diskvault_format::crypto::{ObjectKind, additional_data, context};
use diskvault_format::id::KeySlotId;
use diskvault_format::limits::{FORMAT_VERSION, KEY_SLOTS_MAX};
use diskvault_format::names;

fn name() -> String {
    names::config(1, &random("config"))
}

fn sample(slots: usize) -> Config {
    let slot = |number: usize| KeySlotId(random(&format!("key slot {number}")));
    let mut key_slots: Vec<KeySlotId> = (0..slots).map(slot).collect();
    key_slots.sort();
    Config {
        generation: 1,
        repository: REPOSITORY,
        features_ignorable: 0,
        features_write: 0,
        features_read: 0,
        chunk_bytes: 64 << 10,
        segment_bytes: 1 << 20,
        pack_bytes: 32 << 20,
        key_slots,
    }
}

/// Authenticates any bytes, so that only the rule in question is broken.
fn authenticated(bytes: Vec<u8>) -> Vec<u8> {
    authenticated_as(&name(), bytes)
}

fn authenticated_as(name: &str, mut bytes: Vec<u8>) -> Vec<u8> {
    let key = subkey(context::CONFIG, &MASTER, REPOSITORY);
    let more = [name.as_bytes(), &bytes];
    let input = additional_data(version_of(&bytes), ObjectKind::Config, REPOSITORY, &more);
    bytes.extend_from_slice(blake3::keyed_hash(key.expose(), &input).as_bytes());
    bytes
}

/// Adds the vectors.
pub fn add(set: &mut Set) {
    add_ok(set);
    let body = |slots| {
        let mut bytes = sample(slots).encode(&keys(), &name());
        bytes.truncate(bytes.len() - 32);
        bytes
    };
    let two = body(2);
    let mut refuse = |path: &str, rule, comment, bytes: Vec<u8>| {
        let vector = keyed(Vector::refused("config", rule, comment, bytes));
        set.add(&format!("config/{path}"), vector.with("name", name()));
    };
    refuse("short", "C-1", "ends inside the sizes", two[..60].to_vec());
    refuse("no-authenticator", "C-1", "ends before the authenticator", two.clone());
    let mut more = authenticated(two.clone());
    more.push(0);
    refuse("trailing", "C-1", "one byte follows the authenticator", more);
    let long = changed(&two, |bytes| bytes.resize(8193, 0));
    refuse("long", "C-1", "is longer than 8 KiB", authenticated(long));
    let mut patch = |path: &str, rule, comment, offset: usize, value: &[u8]| {
        let bytes = authenticated(changed(&two, |bytes| put(bytes, offset, value)));
        let vector = keyed(Vector::refused("config", rule, comment, bytes));
        set.add(&format!("config/{path}"), vector.with("name", name()));
    };
    patch("magic", "C-2", "the magic ends in H", 7, b"H");
    patch("reserved", "C-2", "the reserved bytes are not zero", 10, &[1, 0]);
    let version = (FORMAT_VERSION + 1).to_le_bytes();
    patch("version", "C-3", "the format version is one too new", 8, &version);
    patch("version-zero", "C-3", "format version 0, which was never released", 8, &[0, 0]);
    patch("feature-read-beside", "C-4", "bit 1, and bit 0, which is known", 48, &[3]);
    patch("feature-read", "C-4", "bit 63 of the features needed to read is set", 55, &[0x80]);
    let number = |number: u32| number.to_le_bytes();
    patch("chunk-odd", "C-5", "the chunk size is no power of two", 56, &number(65537));
    patch("chunk-small", "C-5", "the chunk size is below 4 KiB", 56, &number(2048));
    patch("chunk-large", "C-5", "the chunk size is above 4 MiB", 56, &number(8 << 20));
    patch("segment-zero", "C-5", "segments of no bytes", 60, &number(0));
    patch("segment-large", "C-5", "segments above 4 MiB", 60, &number((4 << 20) + 1));
    patch("pack-zero", "C-5", "packs of no bytes", 64, &number(0));
    patch("pack-large", "C-5", "packs above 512 MiB", 64, &number((512 << 20) + 1));
    patch("slots-cut", "C-1", "claims three key slots and has two", 68, &number(3));
    let mut refuse = |path: &str, rule, comment, bytes: Vec<u8>| {
        let vector = keyed(Vector::refused("config", rule, comment, authenticated(bytes)));
        set.add(&format!("config/{path}"), vector.with("name", name()));
    };
    refuse("slots-none", "C-6", "lists no key slot", body(0));
    refuse("slots-many", "C-6", "lists 65 key slots", body(KEY_SLOTS_MAX + 1));
    let swapped = changed(&two, |bytes| bytes[72..].rotate_left(32));
    refuse("slots-order", "C-6", "the key slots are not in ascending order", swapped);
    let twice = changed(&two, |bytes| bytes.copy_within(72..104, 104));
    refuse("slots-twice", "C-6", "lists the same key slot twice", twice);
    add_unauthentic(set, &two);
    for (path, comment, told, generation) in [
        ("generation-zero", "generation 0", 0, 0_u32),
        ("generation-name", "the name tells generation 2, the config 1", 2, 1),
    ] {
        let name = names::config(told, &random("config"));
        let bytes = changed(&two, |bytes| put(bytes, 12, &generation.to_le_bytes()));
        let bytes = authenticated_as(&name, bytes);
        let vector = keyed(Vector::refused("config", "C-8", comment, bytes));
        set.add(&format!("config/{path}"), vector.with("name", name));
    }
}

fn add_ok(set: &mut Set) {
    let mut ok = |path: &str, comment, config: &Config| {
        let bytes = config.encode(&keys(), &name());
        let vector = keyed(Vector::ok("config", comment, bytes)).with("name", name());
        set.add(&format!("config/{path}"), vector);
    };
    ok("first", "the config of a new repository", &sample(2));
    ok("full", "as many key slots as there may be", &sample(KEY_SLOTS_MAX));
    let ignorable = Config { features_ignorable: 1 << 63 | 1, ..sample(1) };
    ok("features-ignorable", "unknown features that a reader may ignore", &ignorable);
    let mut parity = sample(1);
    let mut add_parity = |path, comment, bits| {
        parity.features_ignorable = bits;
        ok(path, comment, &parity);
    };
    add_parity("parity", "parity of 2 %", 20);
    add_parity(
        "parity-most",
        "parity of 50 %, and another feature that may be ignored",
        1 << 10 | 500,
    );
    add_parity("parity-beyond", "more than 50 % has no meaning yet and is no parity", 501);
    let write = Config { features_write: 6, ..sample(1) };
    ok("features-write", "unknown features that forbid writing but not reading", &write);
    let mut writers = sample(1);
    writers.set_has_writers();
    ok("writers", "there are or were writers that may not read", &writers);
    let extreme =
        Config { chunk_bytes: 4 << 20, segment_bytes: 4 << 20, pack_bytes: 512 << 20, ..sample(1) };
    ok("largest", "every size at its limit", &extreme);
    let least = Config { chunk_bytes: 4 << 10, segment_bytes: 1, pack_bytes: 1, ..sample(1) };
    ok("least", "every size at its least", &least);
}

fn add_unauthentic(set: &mut Set, body: &[u8]) {
    let good = authenticated(body.to_vec());
    let mut refuse = |path: &str, comment, bytes: Vec<u8>, name: String| {
        let vector = keyed(Vector::refused("config", "C-7", comment, bytes));
        set.add(&format!("config/{path}"), vector.with("name", name));
    };
    let last = good.len() - 1;
    let check = changed(&good, |bytes| bytes[last] ^= 1);
    refuse("authenticator", "the authenticator's last bit is flipped", check, name());
    let chunk = changed(&good, |bytes| put(bytes, 56, &4096_u32.to_le_bytes()));
    refuse("sizes-changed", "the chunk size was changed after authentication", chunk, name());
    let slot = changed(&good, |bytes| bytes[100] ^= 1);
    refuse("slot-replaced", "a key slot was replaced after authentication", slot, name());
    let other = names::config(1, &random("another config"));
    refuse("renamed", "stands under the name of another config", good.clone(), other);
    let vector = Vector::refused("config", "C-7", "authenticated by another master key", good)
        .with_bytes("master", &[7; 32])
        .with_bytes("repository", &REPOSITORY.0)
        .with("name", name());
    set.add("config/other-master", vector);
}

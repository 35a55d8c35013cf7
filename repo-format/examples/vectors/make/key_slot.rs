//! Vectors of key slots (rules K-1 to K-10).

use super::{changed, keyed, put};
use crate::vectors::fixed::{
    MASTER, REPOSITORY, TIME_NS, envelope_key_label, keys, random, seed, subkey, version_of,
};
use crate::vectors::form::Vector;
use crate::vectors::run::derive_slot;
use crate::vectors::{Result, Set};
use diskvault_format::asymmetric::public_key;
use diskvault_format::crypto::{ObjectKind, Secret, additional_data, context, seal_x};
use diskvault_format::id::to_hex;
use diskvault_format::key_slot::{KdfCost, KeySlot, SlotKeys, SlotKind, SlotLabel, SlotNonces};
use diskvault_format::limits::FORMAT_VERSION;
use diskvault_format::record;

const SECRET: &[u8] = b"correct horse battery staple";
/// The purpose numbers and epochs of the keys in a slot, with the keys.
type Entries = Vec<(u8, u32, [u8; 32])>;

fn label() -> SlotLabel {
    SlotLabel { name: "laptop".into(), created_unix_ns: TIME_NS, host: "kvm1".into() }
}

fn slot(kind: SlotKind, cost: KdfCost, label: &SlotLabel) -> Result<Vec<u8>> {
    let nonces = SlotNonces { salt: random("salt"), keys: random("keys"), label: random("label") };
    let opens = SlotKeys::Full(Secret::new(MASTER));
    Ok(KeySlot::make(kind, SECRET, cost, &opens, &keys(), label, &nonces)?.encode().1)
}

/// Seals any entries and label behind the clear part `clear`, under the key of the fixed secret.
struct Sealer {
    key: Secret,
    nonce: [u8; 24],
}

impl Sealer {
    fn new(good: &[u8]) -> Result<Sealer> {
        let output = derive_slot(SECRET, &good[40..72], KdfCost::RECOVERY)?;
        let key = Secret::new(blake3::derive_key(context::SLOT_KEY, &output));
        Ok(Sealer { key, nonce: random("keys") })
    }

    fn seal(&self, clear: &[u8], keys: &[u8]) -> Result<Vec<u8>> {
        self.seal_with(clear, keys, &label())
    }

    fn seal_with(&self, clear: &[u8], keys: &[u8], label: &SlotLabel) -> Result<Vec<u8>> {
        let version = version_of(clear);
        let additional = additional_data(version, ObjectKind::KeySlot, REPOSITORY, &[clear]);
        let sealed = seal_x(&self.key, &self.nonce, &additional, keys);
        let length = (sealed.len() as u32).to_le_bytes();
        let label = envelope_key_label(clear, &record::encode(label)?);
        Ok([clear, &self.nonce, &length, &sealed, &label].concat())
    }
}

fn named(vector: Vector) -> Vector {
    let id = to_hex(blake3::hash(vector.body()).as_bytes());
    vector.with("name", id)
}

/// A vector that opens with the fixed secret.
fn opened(vector: Vector) -> Vector {
    keyed(named(vector).with_bytes("secret", SECRET))
}

/// Adds the vectors.
pub fn add(set: &mut Set) -> Result<()> {
    let good = slot(SlotKind::Passphrase, KdfCost::RECOVERY, &label())?;
    let sealer = Sealer::new(&good)?;
    add_ok(set, &good, &sealer)?;
    add_layout(set, &good, &sealer)?;
    add_cost(set, &good);
    add_repositories(set, &good);
    add_write_only(set, &good, &sealer)?;
    add_unauthentic(set, &good, &sealer)
}

fn add_repositories(set: &mut Set, good: &[u8]) {
    let mut other = REPOSITORY;
    other.0[0] ^= 3;
    let comment = "is a good slot of another repository than the config";
    let foreign = named(Vector::refused("key-slot", "K-10", comment, good));
    let foreign = foreign.with_bytes("secret", SECRET).with_bytes("master", &MASTER);
    set.add("key-slot/foreign", foreign.with_bytes("repository", &other.0));
    let comment = "was sealed for another repository and relabelled";
    let relabelled = changed(good, |bytes| put(bytes, 24, &other.0));
    let relabelled = named(Vector::refused("key-slot", "K-7", comment, relabelled));
    let relabelled = relabelled.with_bytes("secret", SECRET).with_bytes("master", &MASTER);
    set.add("key-slot/relabelled", relabelled.with_bytes("repository", &other.0));
}

/// What a slot of a write-only key holds.
fn write_only() -> Entries {
    let context = [context::CHUNK_ID, context::PAGE_ID, context::MAP_ROOT, context::GEAR];
    let keys = context.into_iter().chain([context::PROTOCOL]);
    let keys = keys.map(|context| *subkey(context, &MASTER, REPOSITORY).expose());
    let public_key = public_key(&subkey(context::OPENING, &MASTER, REPOSITORY));
    let keys = keys.chain([public_key, *seed(1).expose()]);
    (2..).zip(keys).map(|(purpose, key)| (purpose, 0, key)).collect()
}

fn add_write_only(set: &mut Set, good: &[u8], sealer: &Sealer) -> Result<()> {
    let mut add = |path: &str, rule, comment: &str, entries: &Entries| -> Result<()> {
        // Behind the keys stands a list of series; without it where the path says so.
        let keys = match path {
            "-no-series" | "-full" => record::encode(entries)?,
            _ => record::encode(&(entries, vec!["web*"]))?,
        };
        let bytes = sealer.seal(&good[..104], &keys)?;
        let vector = Vector::refused("key-slot", rule, comment, bytes);
        set.add(&format!("key-slot/write-only{path}"), opened(vector));
        Ok(())
    };
    let all = write_only();
    let unknown = [(9, 0, [9; 32]), (8, 1, [8; 32])];
    let mixed: Entries = unknown.into_iter().chain(all.iter().rev().copied()).collect();
    let comment = "a write-only key in descending order, behind what this version does not know";
    add("", "ok", comment, &mixed)?;
    let full = all.iter().copied().chain([(1, 0, MASTER)]).collect();
    add("-full", "ok", "beside a full key set, which is the one that counts", &full)?;
    add("-full-series", "R-3", "a list of series behind a full key set", &full)?;
    add("-no-series", "R-2", "a write-only key without a list of series", &all)?;
    for missing in [0, 6] {
        let mut some = all.clone();
        let purpose = some.remove(missing).0;
        let comment = format!("a write-only key without purpose {purpose}");
        add(&format!("-no-{purpose}"), "K-8", &comment, &some)?;
    }
    let mut epoch = all.clone();
    epoch[6].1 = 1;
    add("-epoch", "K-8", "the seed of a write-only key is of epoch 1", &epoch)
}

fn add_ok(set: &mut Set, good: &[u8], sealer: &Sealer) -> Result<()> {
    let mut ok = |path: &str, comment, bytes: &[u8]| {
        set.add(&format!("key-slot/{path}"), opened(Vector::ok("key-slot", comment, bytes)));
    };
    ok("passphrase", "a passphrase at the least cost", good);
    let recovery = slot(SlotKind::Recovery, KdfCost::RECOVERY, &label())?;
    ok("recovery", "a recovery key", &recovery);
    let cost = KdfCost { memory_kib: 9 << 10, passes: 2, lanes: 2 };
    ok("lanes", "two passes and two lanes", &slot(SlotKind::Passphrase, cost, &label())?);
    let entries: Entries = vec![(9, 0, [1; 32]), (1, 1, [2; 32]), (1, 0, MASTER)];
    let reserved = sealer.seal(&good[..104], &record::encode(&entries)?)?;
    ok("reserved-purposes", "keys that this version does not know stand first", &reserved);
    let wrong = Vector::ok("key-slot", "another secret does not open it", good);
    set.add("key-slot/wrong-secret", named(wrong).with_bytes("secret", b"correct horse"));
    let least = Vector::ok("key-slot", "eight slots at the limit of all together", with_cost(good));
    set.add("key-slot/total-cost-limit", named(least).with("copies", 8));
    Ok(())
}

/// A slot that claims 1 GiB in four passes.
fn with_cost(good: &[u8]) -> Vec<u8> {
    changed(good, |bytes| {
        put(bytes, 12, &(1_u32 << 20).to_le_bytes());
        put(bytes, 16, &4_u32.to_le_bytes());
    })
}

fn add_layout(set: &mut Set, good: &[u8], sealer: &Sealer) -> Result<()> {
    let mut refuse = |path: &str, rule, comment, bytes: Vec<u8>| {
        set.add(
            &format!("key-slot/{path}"),
            named(Vector::refused("key-slot", rule, comment, bytes)),
        );
    };
    refuse("short", "K-1", "ends inside the nonce", good[..120].to_vec());
    refuse("short-label", "K-1", "ends inside the nonce of the label", good[..200].to_vec());
    let claims = changed(good, |bytes| put(bytes, 128, &u32::MAX.to_le_bytes()));
    refuse("keys-long", "K-1", "claims 4 GiB of sealed keys", claims);
    refuse("long", "K-1", "is longer than 4 KiB", changed(good, |bytes| bytes.resize(4097, 0)));
    let entries: Entries = vec![(1, 0, MASTER)];
    let plaintext = record::encode(&entries)?;
    let mut patch = |path: &str, comment, offset, value: &[u8]| -> Result<()> {
        let clear = changed(&good[..104], |bytes| put(bytes, offset, value));
        let bytes = sealer.seal(&clear, &plaintext)?;
        set.add(
            &format!("key-slot/{path}"),
            opened(Vector::refused("key-slot", "K-2", comment, bytes)),
        );
        Ok(())
    };
    patch("magic", "the magic ends in X", 7, b"X")?;
    patch("version", "the format version is one too new", 8, &(FORMAT_VERSION + 1).to_le_bytes())?;
    patch("version-zero", "format version 0, which was never released", 8, &[0, 0])?;
    patch("kind-zero", "slot kind 0", 10, &[0])?;
    patch("kind-unknown", "slot kind 3", 10, &[3])?;
    patch("algorithm", "algorithm 2", 11, &[2])
}

fn add_cost(set: &mut Set, good: &[u8]) {
    let mut refuse = |path: &str, comment, memory: u32, passes: u32, lanes: u32| {
        let bytes = changed(good, |bytes| {
            put(bytes, 12, &memory.to_le_bytes());
            put(bytes, 16, &passes.to_le_bytes());
            put(bytes, 20, &lanes.to_le_bytes());
        });
        set.add(
            &format!("key-slot/{path}"),
            named(Vector::refused("key-slot", "K-4", comment, bytes)),
        );
    };
    refuse("memory-small", "1 KiB less than 8 MiB of memory", 8191, 1, 1);
    refuse("passes-none", "no passes", 8192, 0, 1);
    refuse("lanes-none", "no lanes", 8192, 1, 0);
    refuse("memory-large", "1 KiB more than 1 GiB of memory", (1 << 20) + 1, 1, 1);
    refuse("passes-many", "17 passes", 8192, 17, 1);
    refuse("lanes-many", "nine lanes", 8192, 1, 9);
    refuse(
        "cost-large",
        "1 GiB in five passes: each is allowed, the product is not",
        1 << 20,
        5,
        1,
    );
    refuse("memory-absurd", "4 TiB of memory", u32::MAX, u32::MAX, u32::MAX);
    let comment = "nine slots that each cost 1 GiB in four passes, together above 32 GiB";
    let many = Vector::refused("key-slot", "K-5", comment, with_cost(good));
    set.add("key-slot/total-cost", named(many).with("copies", 9));
}

fn add_unauthentic(set: &mut Set, good: &[u8], sealer: &Sealer) -> Result<()> {
    let renamed = Vector::refused("key-slot", "K-6", "stands under the name of another slot", good);
    set.add("key-slot/renamed", renamed.with_bytes("name", &[3; 32]));
    let mut refuse = |path: &str, rule, comment, bytes: Vec<u8>| {
        set.add(
            &format!("key-slot/{path}"),
            opened(Vector::refused("key-slot", rule, comment, bytes)),
        );
    };
    let flip = |offset: usize| changed(good, |bytes| bytes[offset] ^= 3);
    refuse("kind-changed", "K-7", "was sealed as a passphrase slot", flip(10));
    refuse("nonce", "K-7", "another nonce", flip(104));
    refuse("keys-flipped", "K-7", "a bit of the sealed keys is flipped", flip(140));
    let entries: Entries = vec![(1, 0, MASTER)];
    let plaintext = record::encode(&entries)?;
    let host = SlotLabel { host: "h".repeat(256), ..label() };
    let long = sealer.seal_with(&good[..104], &plaintext, &host)?;
    refuse("label-long", "K-3", "the label's host has 256 bytes", long);
    let empty = changed(good, |bytes| {
        let length = bytes[128];
        put(bytes, 128, &[0]);
        bytes.drain(132..132 + usize::from(length));
    });
    refuse("keys-empty", "K-7", "sealed keys of no bytes have no tag", empty);
    let entries: Entries = vec![(9, 0, MASTER), (1, 1, MASTER)];
    let partial = sealer.seal(&good[..104], &record::encode(&entries)?)?;
    refuse("no-full-set", "K-8", "holds only keys of a reserved purpose and epoch", partial);
    let none = sealer.seal(&good[..104], &[0])?;
    refuse("no-keys", "K-8", "holds no keys", none);
    let entries: Entries = vec![(1, 0, MASTER)];
    let trailing = [&record::encode(&entries)?[..], &[0]].concat();
    let trailing = sealer.seal(&good[..104], &trailing)?;
    refuse("keys-trailing", "R-3", "a byte follows the record of keys", trailing);
    let cut = sealer.seal(&good[..104], &record::encode(&entries)?[..20])?;
    refuse("keys-cut", "R-2", "the record of keys ends inside a key", cut);
    let last = good.len() - 1;
    refuse("label-flipped", "K-9", "a bit of the label's tag is flipped", flip(last));
    refuse("label-cut", "K-9", "the label's tag lacks a byte", good[..last].to_vec());
    Ok(())
}

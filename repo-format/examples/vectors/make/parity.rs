//! Vectors of parity objects (rules E-1 to E-7).

use super::{changed, put};
use crate::vectors::Set;
use crate::vectors::fixed::random;
use crate::vectors::form::Vector;
use crate::vectors::parity::recovery_shards;
use diskvault_format::id::PackId;
use diskvault_format::limits::FORMAT_VERSION;
use diskvault_format::parity::{ParityHead, Shape, check_of, encode};

const SHARD_BYTES: u32 = 64;

/// Something that stands for a pack, and its id.
fn pack<const N: usize>() -> (Vec<u8>, PackId) {
    let data: [u8; N] = random("a pack to heal");
    (data.to_vec(), PackId(*blake3::hash(&data).as_bytes()))
}

/// The parity object of `data`.
fn object(data: &[u8], recovery: u32) -> Vec<u8> {
    let shape = Shape { pack_bytes: data.len() as u64, shard_bytes: SHARD_BYTES, recovery };
    let shards = recovery_shards(data, SHARD_BYTES as usize, recovery as usize);
    let head = ParityHead {
        pack: PackId(*blake3::hash(data).as_bytes()),
        shape,
        data_checks: data.chunks(SHARD_BYTES as usize).map(check_of).collect(),
        recovery_checks: shards.chunks(SHARD_BYTES as usize).map(check_of).collect(),
    };
    encode(&head, &shards)
}

/// Bytes of a head with so many checks.
const fn head_bytes(checks: usize) -> usize {
    64 + 4 * checks + 32
}

/// Adds the vectors.
pub fn add(set: &mut Set) {
    let (data, id) = pack::<300>();
    let good = object(&data, 3);
    let (many_data, many_id) = pack::<1250>();
    let ok = |comment, bytes: Vec<u8>| Vector::ok("parity", comment, bytes);
    let vector = ok("five data shards, the last one padded, and three", good.clone());
    set.add("parity/good", vector.with("pack", id).with_bytes("data", &data));
    let vector = ok("three runs of eight points, the last one not full", object(&many_data, 5));
    set.add("parity/many", vector.with("pack", many_id).with_bytes("data", &many_data));
    let head = head_bytes(8);
    let mut worn = |path: &str, comment, bytes: Vec<u8>| {
        set.add(&format!("parity/{path}"), ok(comment, bytes).with("pack", id));
    };
    let flipped = |places: &[usize]| {
        changed(&good, |bytes| places.iter().for_each(|place| bytes[*place] ^= 0x10))
    };
    worn("first-head", "a bit of the first head is flipped", flipped(&[20]));
    worn("last-head", "a bit of the last head is flipped", flipped(&[good.len() - 100]));
    worn("end", "a bit of the number at the end is flipped", flipped(&[good.len() - 4]));
    worn("shard", "a bit of the second shard is flipped", flipped(&[head + 64]));
    worn("cut", "ends inside the second shard", good[..head + 100].to_vec());
    worn("front-gone", "starts inside the second shard", good[head + 100..].to_vec());
    worn("longer", "other bytes follow", [&good[..], &[7; 20]].concat());
    add_refused(set, &good, id);
}

fn add_refused(set: &mut Set, good: &[u8], id: PackId) {
    let head = &good[..head_bytes(8)];
    let shards = &good[head.len()..head.len() + 3 * SHARD_BYTES as usize];
    let mut refuse = |path: &str, rule, comment, bytes: Vec<u8>| {
        let vector = Vector::refused("parity", rule, comment, bytes);
        set.add(&format!("parity/{path}"), vector.with("pack", id));
    };
    refuse("empty", "E-1", "no bytes at all", Vec::new());
    refuse("short", "E-1", "ends inside the first head", good[..head.len() - 1].to_vec());
    // Any head at both ends, with a check value that fits.
    let both = |mut head: Vec<u8>| {
        head.extend_from_slice(blake3::hash(&head).as_bytes());
        [&head[..], shards, &head, &(head.len() as u32).to_le_bytes()].concat()
    };
    let body = &head[..head.len() - 32];
    let patch = |offset, value: &[u8]| both(changed(body, |bytes| put(bytes, offset, value)));
    refuse("magic", "E-2", "the magic ends in X", patch(7, b"X"));
    refuse("reserved", "E-2", "the reserved bytes are not zero", patch(10, &[0, 1]));
    let version = (FORMAT_VERSION + 1).to_le_bytes();
    refuse("version", "E-3", "the format version is one too new", patch(8, &version));
    refuse("version-zero", "E-3", "format version 0, never released", patch(8, &[0, 0]));
    let number = |number: u32| number.to_le_bytes();
    refuse("shard-zero", "E-4", "shards of no bytes", patch(12, &number(0)));
    refuse("shard-odd", "E-4", "shards of 96 bytes, no power of two", patch(12, &number(96)));
    refuse("shard-small", "E-4", "shards of 32 bytes", patch(12, &number(32)));
    refuse("shard-large", "E-4", "shards of 128 KiB", patch(12, &number(128 << 10)));
    refuse("pack-zero", "E-4", "a pack of no bytes", patch(48, &[0; 8]));
    let bytes = ((1_u64 << 30) + 1).to_le_bytes();
    refuse("pack-large", "E-4", "a pack beyond 1 GiB", patch(48, &bytes));
    let bytes = ((64_u64 << 14) + 1).to_le_bytes();
    refuse("data-many", "E-4", "a pack of 16385 shards", patch(48, &bytes));
    refuse("recovery-none", "E-4", "no recovery shards", patch(60, &number(0)));
    refuse("recovery-many", "E-4", "four recovery shards for five", patch(60, &number(4)));
    refuse("data-count", "E-5", "six data shards where 300 bytes are five", patch(56, &number(6)));
    refuse("pack-longer", "E-5", "321 bytes in five shards", patch(48, &321_u64.to_le_bytes()));
    let both_flipped = changed(good, |bytes| {
        let last = bytes.len() - 4 - head.len();
        bytes[70] ^= 1;
        bytes[last + 70] ^= 1;
    });
    refuse("heads", "E-6", "a bit of each head is flipped", both_flipped);
    let vector = Vector::refused("parity", "E-7", "was made for another pack", good.to_vec());
    set.add("parity/other-pack", vector.with("pack", PackId(random("another pack"))));
}

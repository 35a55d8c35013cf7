//! Vectors of disk map pages (rules M-1 to M-7) and of digests.

use super::{changed, keyed, keyed_if_ok, put};
use crate::vectors::Set;
use crate::vectors::fixed::random;
use crate::vectors::form::Vector;
use diskvault_format::id::{ChunkId, PageId};
use diskvault_format::map::{Inner, InnerSlot, Leaf, LeafSlot};

fn leaf(slots: &[usize]) -> Vec<u8> {
    let mut leaf = Leaf::ZERO;
    for slot in slots {
        let id = ChunkId(random(&format!("chunk in slot {slot}")));
        let chaining = random(&format!("chaining value of slot {slot}"));
        leaf.slots[*slot] = LeafSlot::Chunk { id, chaining };
    }
    // A page of zeros has no encoding; the vector of one is made by hand.
    leaf.encode().unwrap_or_else(|| [&[1, 0, 0, 0][..], &[0; 16]].concat())
}

fn inner(level: u32, slots: &[(usize, bool)]) -> Vec<u8> {
    let mut inner = Inner::absent(level);
    for (slot, is_known) in slots {
        let page = PageId(random(&format!("page in slot {slot}")));
        let chaining = is_known.then(|| random(&format!("chaining value of page {slot}")));
        inner.slots[*slot] = InnerSlot::Child { page, chaining };
    }
    inner.encode().unwrap_or_else(|| [&[2, level as u8, 0, 0][..], &[0; 32]].concat())
}

/// Adds the vectors.
pub fn add(set: &mut Set) {
    add_leaves(set);
    add_inner(set);
    add_shapes(set);
    add_digests(set);
}

fn add_leaves(set: &mut Set) {
    let add = |set: &mut Set, path: &str, rule: &str, comment: &str, used, bytes: Vec<u8>| {
        let vector = keyed_if_ok(Vector::refused("map-leaf", rule, comment, bytes));
        set.add(&format!("map/leaf-{path}"), vector.with("used", used));
    };
    let all: Vec<usize> = (0..64).collect();
    add(set, "full", "ok", "64 chunks: the chaining value is known", 64, leaf(&all));
    add(set, "sparse", "ok", "the first, sixth and last slot", 64, leaf(&[0, 5, 63]));
    add(set, "end", "ok", "the last leaf of a disk: three slots in use", 3, leaf(&[0, 1, 2]));
    add(set, "one", "ok", "a disk of one chunk", 1, leaf(&[0]));
    let good = leaf(&[0, 5]);
    let patch = |offset, value: &[u8]| changed(&good, |bytes| put(bytes, offset, value));
    let mut refuse = |path: &str, rule: &str, comment: &str, used, bytes| {
        add(set, path, rule, comment, used, bytes);
    };
    refuse("empty", "M-2", "no bytes", 64, Vec::new());
    refuse("kind", "M-2", "page kind 3", 64, patch(0, &[3]));
    refuse("reserved", "M-2", "the reserved bytes are not zero", 64, patch(3, &[1]));
    refuse("kinds-cut", "M-2", "ends inside the slot kinds", 64, good[..19].to_vec());
    refuse("cut", "M-2", "lacks its last byte", 64, good[..good.len() - 1].to_vec());
    refuse("trailing", "M-2", "one byte too many", 64, [&good[..], &[0]].concat());
    let announced = changed(&good, |bytes| bytes[19] = 0x40);
    refuse("slot-missing", "M-2", "announces a third chunk and has two", 64, announced);
    refuse("inner", "M-2", "an inner page where a leaf is wanted", 64, inner(1, &[(0, true)]));
    refuse("level", "M-3", "a leaf of level 1", 64, patch(1, &[1]));
    let delta = changed(&good, |bytes| bytes[4] |= 2 << 2);
    refuse("delta", "M-4", "the reserved slot kind 2", 64, delta);
    let unreadable = changed(&good, |bytes| bytes[19] |= 3 << 6);
    refuse("unreadable", "M-4", "the reserved slot kind 3", 64, unreadable);
    refuse("zeros", "M-5", "a page of zeros", 64, leaf(&[]));
    refuse("beyond", "M-6", "slot 5 of a leaf with five slots in use", 5, leaf(&[0, 5]));
    refuse("beyond-last", "M-6", "slot 63 of a leaf with one slot in use", 1, leaf(&[0, 63]));
}

fn add_inner(set: &mut Set) {
    let add = |set: &mut Set, path: &str, rule: &str, comment: &str, used, bytes: Vec<u8>| {
        let vector = keyed_if_ok(Vector::refused("map-inner", rule, comment, bytes));
        let level = if path == "high" { 6 } else { 1 };
        set.add(&format!("map/inner-{path}"), vector.with("level", level).with("used", used));
    };
    let pair = [(0, true), (1, true)];
    add(set, "known", "ok", "two children, both without zeros", 2, inner(1, &pair));
    let mixed = [(0, true), (7, false), (127, true)];
    add(
        set,
        "sparse",
        "ok",
        "an unknown chaining value and absent children",
        128,
        inner(1, &mixed),
    );
    add(set, "high", "ok", "the highest level", 2, inner(6, &[(1, false)]));
    let good = inner(1, &[(0, true), (7, false)]);
    let patch = |offset, value: &[u8]| changed(&good, |bytes| put(bytes, offset, value));
    let mut refuse = |path: &str, rule: &str, comment: &str, used, bytes| {
        add(set, path, rule, comment, used, bytes);
    };
    refuse("empty", "M-2", "no bytes", 128, Vec::new());
    refuse("leaf", "M-2", "a leaf where an inner page is wanted", 128, leaf(&[0]));
    refuse("reserved", "M-2", "the reserved bytes are not zero", 128, patch(2, &[1]));
    refuse("cut", "M-2", "lacks its last byte", 128, good[..good.len() - 1].to_vec());
    refuse("trailing", "M-2", "one byte too many", 128, [&good[..], &[0]].concat());
    let unknown = changed(&good, |bytes| bytes[4] = 2);
    refuse("flag", "M-2", "announces no chaining value and has one", 128, unknown);
    refuse("level", "M-3", "level 2 where level 1 is wanted", 128, inner(2, &[(0, true)]));
    refuse("level-zero", "M-3", "level 0", 128, patch(1, &[0]));
    let reserved = changed(&good, |bytes| bytes[35] |= 3 << 6);
    refuse("slot-kind", "M-4", "the reserved slot kind 3", 128, reserved);
    refuse("absent", "M-5", "no child at all", 128, inner(1, &[]));
    refuse("beyond", "M-6", "child 7 of a page with seven in use", 7, good.clone());
}

fn add_shapes(set: &mut Set) {
    let mut leaf_of = |path: &str, rule: &str, comment: &str, size: u64, chunk: u32, page: u64| {
        let vector = keyed_if_ok(Vector::refused("map-leaf", rule, comment, leaf(&[0])));
        let vector = vector.with("size", size).with("chunk-bytes", chunk).with("page", page);
        set.add(&format!("map/shape-{path}"), vector);
    };
    let end = (64 << 16) * 5 + 1;
    leaf_of("last-leaf", "ok", "the last leaf covers one byte", end, 1 << 16, 5);
    leaf_of("largest", "ok", "the last leaf of 2^60 bytes", 1 << 60, 4096, (1 << 42) - 1);
    leaf_of("large", "M-1", "a disk of 2^60 + 1 bytes", (1 << 60) + 1, 1 << 16, 0);
    leaf_of("chunk-odd", "M-1", "chunks of 65537 bytes", 1 << 30, 65537, 0);
    leaf_of("chunk-small", "M-1", "chunks of 2 KiB", 1 << 30, 2048, 0);
    leaf_of("chunk-none", "M-1", "chunks of no bytes", 1 << 30, 0, 0);
    for (object, bytes) in [("map-leaf", leaf(&[0])), ("map-inner", inner(1, &[(0, true)]))] {
        let comment = "is another page than was asked for";
        let vector = keyed(Vector::refused(object, "M-7", comment, bytes));
        let vector = if object == "map-inner" { vector.with("level", 1) } else { vector };
        let vector = vector.with("used", 64).with_bytes("asked-for", &[7; 32]);
        set.add(&format!("map/{}-other", &object[4..]), vector);
    }
    let page =
        keyed(Vector::ok("map-inner", "the top page of 2^60 bytes", inner(6, &[(0, false)])));
    let page = page.with("level", 6).with("page", 0);
    set.add("map/shape-top", page.with("size", 1_u64 << 60).with("chunk-bytes", 4096));
}

fn add_digests(set: &mut Set) {
    let mut add = |path: String, comment: &str, size: u64, chunk: u64, zeros: &str| {
        let vector = keyed(Vector::ok("digest", comment, Vec::new()));
        let vector = vector.with("size", size).with("chunk-bytes", chunk);
        let vector = if zeros.is_empty() { vector } else { vector.with("zero-slots", zeros) };
        let vector = if path == "subkeys" { vector.with("list-subkeys", "yes") } else { vector };
        set.add(&format!("digest/{path}"), vector);
    };
    for chunk in [4096, 65536] {
        for size in [0, 1, 1023, 1024, 1025, chunk - 1, chunk, chunk + 1, 3 * chunk + 1] {
            let comment = format!("{size} bytes of i % 251 in chunks of {chunk}");
            add(format!("{chunk}-{size}"), &comment, size, chunk, "");
        }
    }
    let comment = "a slot of zeros has a chaining value, which is not stored";
    add("4096-zero-slot".into(), comment, 4 * 4096 + 100, 4096, "1");
    let comment = "the last, short chunk is zeros";
    add("4096-zero-end".into(), comment, 4096 + 100, 4096, "1");
    add("4096-zeros".into(), "zeros only: there is no page", 2 * 4096, 4096, "0 1");
    add("4096-two-leaves".into(), "65 chunks: an inner page", 64 * 4096 + 1, 4096, "");
    let comment = "65 chunks with a zero: the first leaf's chaining value is not known";
    add("4096-two-leaves-zero".into(), comment, 64 * 4096 + 1, 4096, "63");
    add("subkeys".into(), "every subkey, in hexadecimal", 1, 4096, "");
}

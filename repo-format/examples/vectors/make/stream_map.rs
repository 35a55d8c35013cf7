//! Vectors of stream map pages (rules T-1 to T-6).

use super::{changed, keyed, keyed_if_ok, put};
use crate::vectors::Set;
use crate::vectors::fixed::random;
use crate::vectors::form::Vector;
use diskvault_format::id::{ChunkId, PageId};
use diskvault_format::stream_map::{StreamEntry, StreamPage};

fn chunk(bytes: u32) -> StreamEntry {
    StreamEntry::Chunk { bytes, id: ChunkId(random(&format!("chunk of {bytes} bytes"))) }
}

fn leaf(entries: &[StreamEntry]) -> Vec<u8> {
    StreamPage::Leaf(entries.to_vec()).encode()
}

fn inner(level: u8, lengths: &[u64]) -> Vec<u8> {
    let entry = |bytes: &u64| (*bytes, PageId(random(&format!("page of {bytes} bytes"))));
    StreamPage::Inner(level, lengths.iter().map(entry).collect()).encode()
}

fn add_page(set: &mut Set, path: &str, rule: &str, comment: &str, sum: u64, bytes: Vec<u8>) {
    let vector = keyed_if_ok(Vector::refused("stream-page", rule, comment, bytes));
    set.add(&format!("stream-map/{path}"), vector.with("bytes-expected", sum));
}

/// Adds the vectors.
pub fn add(set: &mut Set) {
    let zeros = StreamEntry::Zeros;
    let mut ok = |path, comment, sum, bytes| add_page(set, path, "ok", comment, sum, bytes);
    ok("one", "a stream of one chunk", 5, leaf(&[chunk(5)]));
    let entries = [zeros(1 << 40), chunk(4 << 20), zeros(1), chunk(1)];
    ok("zeros", "runs of zeros between chunks", (1 << 40) + (4 << 20) + 2, leaf(&entries));
    ok("only-zeros", "a stream of 2^60 zeros", 1 << 60, leaf(&[zeros(1 << 60)]));
    ok("full", "128 entries", 128 * 7, leaf(&[chunk(7); 128]));
    ok("inner", "two pages below", 3000, inner(1, &[1000, 2000]));
    ok("highest", "level 20", 1 << 59, inner(20, &[1 << 59]));
    add_faults(set);
    add_entry_faults(set);
}

fn add_faults(set: &mut Set) {
    let zeros = StreamEntry::Zeros;
    let good = leaf(&[chunk(5), chunk(6)]);
    let above = inner(1, &[1000, 2000]);
    let mut refuse =
        |path, rule, comment, sum, bytes| add_page(set, path, rule, comment, sum, bytes);
    let patch =
        |page: &[u8], offset, value: &[u8]| changed(page, |bytes| put(bytes, offset, value));
    refuse("empty", "T-1", "no bytes", 11, Vec::new());
    refuse("kind", "T-1", "page kind 1", 11, patch(&good, 0, &[1]));
    refuse("leaf-level", "T-1", "a leaf of level 1", 11, patch(&good, 1, &[1]));
    refuse("inner-level-zero", "T-1", "an inner page of level 0", 3000, patch(&above, 1, &[0]));
    refuse("inner-level-high", "T-1", "an inner page of level 21", 3000, patch(&above, 1, &[21]));
    refuse("cut", "T-1", "a leaf lacks its last byte", 11, good[..good.len() - 1].to_vec());
    refuse("inner-cut", "T-1", "an inner page lacks a byte", 3000, above[..83].to_vec());
    refuse("trailing", "T-1", "one byte too many", 11, [&good[..], &[0]].concat());
    refuse(
        "entry-missing",
        "T-1",
        "announces three entries and has two",
        11,
        patch(&good, 2, &[3]),
    );
    refuse("no-entries", "T-2", "no entries", 0, leaf(&[]));
    refuse("inner-no-entries", "T-2", "an inner page of no entries", 0, inner(1, &[]));
    refuse("entries-many", "T-2", "129 entries", 129 * 7, leaf(&[chunk(7); 129]));
    refuse("inner-entries-many", "T-2", "129 pages below", 129, inner(1, &[1; 129]));
    refuse("sum-less", "T-4", "a byte less than the parent says", 12, good.clone());
    refuse("sum-more", "T-4", "a byte more than the parent says", 10, good);
    refuse("inner-sum", "T-4", "a byte less than the parent says", 3001, above.clone());
    let wraps: Vec<u64> = std::iter::repeat_n(1 << 60, 16).chain([5]).collect();
    refuse("inner-sum-wraps", "T-4", "the sum is 2^64 + 5", 5, inner(1, &wraps));
    let pairs = [zeros(1 << 60), chunk(1)].repeat(16);
    refuse("leaf-sum-wraps", "T-4", "the sum is 2^64 + 16", 16, leaf(&pairs));
    let comment = "is another page than was asked for";
    let other = keyed(Vector::refused("stream-page", "M-7", comment, above.clone()));
    let other = other.with("bytes-expected", 3000).with_bytes("asked-for", &[7; 32]);
    set.add("stream-map/other", other);
    for (path, comment, level) in [
        ("level-same", "a page of the level of its parent", 0),
        ("level-skipped", "a page two levels below its parent", 2),
    ] {
        let vector = keyed(Vector::refused("stream-page", "T-6", comment, above.clone()));
        let vector = vector.with("bytes-expected", 3000).with("level", level);
        set.add(&format!("stream-map/{path}"), vector);
    }
}

fn add_entry_faults(set: &mut Set) {
    let zeros = StreamEntry::Zeros;
    let mut refuse =
        |path, rule, comment, sum, bytes| add_page(set, path, rule, comment, sum, bytes);
    let good = leaf(&[chunk(5), chunk(6)]);
    let kind = changed(&good, |bytes| bytes[4] = 2);
    refuse("entry-kind", "T-3", "an entry of kind 2", 11, kind);
    refuse("chunk-empty", "T-3", "a chunk of no bytes", 5, leaf(&[chunk(5), chunk(0)]));
    let large = (4 << 20) + 1;
    refuse("chunk-large", "T-3", "a chunk above 4 MiB", large, leaf(&[chunk(large as u32)]));
    refuse("zeros-none", "T-3", "a run of no zeros", 5, leaf(&[chunk(5), zeros(0)]));
    let beyond = (1 << 60) + 1;
    refuse("zeros-large", "T-3", "a run of 2^60 + 1 zeros", beyond, leaf(&[zeros(beyond)]));
    let named = changed(&leaf(&[zeros(5)]), |bytes| bytes[44] = 1);
    refuse("zeros-id", "T-3", "a run of zeros with an id", 5, named);
    refuse("inner-empty", "T-3", "a page of no bytes below", 7, inner(1, &[7, 0]));
    refuse("inner-large", "T-3", "a page of 2^60 + 1 bytes below", beyond, inner(1, &[beyond]));
    let pair = leaf(&[chunk(5), zeros(1), zeros(2)]);
    refuse("zeros-twice", "T-5", "two runs of zeros side by side", 8, pair);
}

//! Vectors of the plaintext of segments (rules S-3 to S-8) and footers (P-10, P-11, P-14).

use super::{changed, put};
use crate::vectors::Set;
use crate::vectors::fixed::{keys, pattern, segment_plaintext, zstd_frame};
use crate::vectors::form::Vector;
use diskvault_format::footer::{Footer, FooterSegment};
use diskvault_format::segment::{Anchor, Entry, EntryKind};

/// 200 times "diskvault ", compressed by libzstd 1.5 at level 3.
const COMPRESSED: &[u8] = &[
    0x28, 0xb5, 0x2f, 0xfd, 0x60, 0xd0, 0x06, 0x8d, 0x00, 0x00, 0x50, 0x64, 0x69, 0x73, 0x6b, 0x76,
    0x61, 0x75, 0x6c, 0x74, 0x20, 0x01, 0x00, 0xc3, 0xf7, 0x2f, 0x48,
];

fn entry(data: &[u8]) -> Entry {
    Entry { id: keys().chunk_id(data).0, kind: EntryKind::Chunk, bytes: data.len() as u32 }
}

/// Adds the vectors.
pub fn add(set: &mut Set) {
    add_ok(set);
    add_table_faults(set);
    add_payload_faults(set);
    add_footers(set);
    add_footer_faults(set);
    add_anchors(set);
}

fn add_ok(set: &mut Set) {
    let mut ok = |path: &str, comment, bytes: Vec<u8>| {
        set.add(&format!("segment/{path}"), Vector::ok("segment", comment, bytes));
    };
    let data = pattern(700);
    let page = Entry { kind: EntryKind::Page, ..entry(&data[400..]) };
    ok("raw", "a chunk and a page, raw", segment_plaintext(0, &[entry(&data[..400]), page], &data));
    let text = b"diskvault ".repeat(200);
    let splice = Entry { kind: EntryKind::Splice, bytes: 80, ..entry(&data) };
    let splices = segment_plaintext(0, &[splice, page], &data[..380]);
    ok("splice", "a splice and a page; its bytes are not looked at here", splices);
    ok("zstd", "one chunk, compressed", segment_plaintext(1, &[entry(&text)], COMPRESSED));
    let runs = [vec![7; 100_000], pattern(300), vec![9; 70_000]].concat();
    let entries = [entry(&runs[..65536]), entry(&runs[65536..])];
    let blocks = segment_plaintext(1, &entries, &zstd_frame(&runs));
    ok("zstd-blocks", "raw and run-length blocks, an entry ends inside one", blocks);
}

fn add_table_faults(set: &mut Set) {
    let data = pattern(700);
    let good = segment_plaintext(0, &[entry(&data[..400]), entry(&data[400..])], &data);
    let mut refuse = |path: &str, rule, comment, bytes: Vec<u8>| {
        set.add(&format!("segment/{path}"), Vector::refused("segment", rule, comment, bytes));
    };
    let patch = |offset, value: &[u8]| changed(&good, |bytes| put(bytes, offset, value));
    refuse("empty", "S-3", "no bytes", Vec::new());
    refuse("short", "S-3", "ends inside the number of entries", good[..6].to_vec());
    refuse("table-cut", "S-3", "ends inside the table", good[..15].to_vec());
    refuse("reserved", "S-3", "the reserved bytes are not zero", patch(2, &[1]));
    refuse("entry-kind-zero", "S-4", "an entry of kind 0", patch(11, &[0]));
    refuse("entry-kind", "S-4", "an entry of kind 4", patch(11, &[4]));
    refuse("entry-empty", "S-4", "an entry of no bytes", patch(8, &[0, 0, 0]));
    refuse("entry-large", "S-4", "an entry of 4 MiB and a byte", patch(8, &[1, 0, 0x40]));
    refuse("no-entries", "S-5", "no entries", segment_plaintext(0, &[], &[]));
    refuse("entries-many", "S-5", "claims 4097 entries", patch(4, &4097_u32.to_le_bytes()));
    refuse("entries-absurd", "S-5", "claims 2^32 - 1 entries", patch(4, &[255; 4]));
    let largest = Entry { bytes: 4 << 20, ..entry(&data) };
    let large = segment_plaintext(1, &[largest, entry(&data)], &[]);
    refuse("total-large", "S-5", "more than 4 MiB in all", large);
}

fn add_payload_faults(set: &mut Set) {
    let text = b"diskvault ".repeat(200);
    let data = pattern(700);
    let mut refuse = |path: &str, rule, comment, bytes: Vec<u8>| {
        set.add(&format!("segment/{path}"), Vector::refused("segment", rule, comment, bytes));
    };
    let raw = |payload: &[u8]| segment_plaintext(0, &[entry(&data)], payload);
    refuse("raw-short", "S-6", "the raw payload lacks a byte", raw(&data[..699]));
    refuse("raw-long", "S-6", "the raw payload has a byte too many", raw(&pattern(701)));
    refuse("raw-none", "S-6", "there is no payload", raw(&[]));
    refuse(
        "codec",
        "S-7",
        "the reserved codec 2",
        segment_plaintext(2, &[entry(&text)], COMPRESSED),
    );
    refuse(
        "codec-unknown",
        "S-7",
        "codec 255",
        segment_plaintext(255, &[entry(&text)], COMPRESSED),
    );
    let sized = |bytes: usize, payload: &[u8]| {
        let entry = Entry { bytes: bytes as u32, ..entry(&text) };
        segment_plaintext(1, &[entry], payload)
    };
    refuse("zstd-shorter", "S-8", "decompresses to a byte less", sized(2001, COMPRESSED));
    refuse("zstd-longer", "S-8", "decompresses to a byte more", sized(1999, COMPRESSED));
    refuse("zstd-none", "S-8", "there is no frame", sized(2000, &[]));
    refuse("zstd-cut", "S-8", "the frame is cut off", sized(2000, &COMPRESSED[..24]));
    let trailing = [COMPRESSED, &[0]].concat();
    refuse("zstd-trailing", "S-8", "a byte follows the frame", sized(2000, &trailing));
    let twice = [&zstd_frame(&text[..1000])[..], &zstd_frame(&text[1000..])].concat();
    refuse("zstd-frames", "S-8", "two frames that add up", sized(2000, &twice));
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    refuse("zstd-skippable", "S-8", "a skippable frame alone", sized(2000, &skippable));
    let first = [&skippable[..], COMPRESSED].concat();
    refuse("zstd-skippable-first", "S-8", "a skippable frame first", sized(2000, &first));
    let magic = changed(COMPRESSED, |bytes| bytes[0] = 0x29);
    refuse("zstd-magic", "S-8", "the frame has another magic", sized(2000, &magic));
    let bomb = zstd_frame(&vec![0; 64 << 20]);
    refuse("zstd-bomb", "S-8", "64 MiB for a chunk of 2000 bytes", sized(2000, &bomb));
}

/// A footer of two segments.
fn footer() -> Footer {
    let data = pattern(700);
    let segment = |offset, sealed_bytes, data: &[u8]| FooterSegment {
        offset,
        sealed_bytes,
        entries: vec![entry(data), entry(&data[1..])],
        anchors: Vec::new(),
    };
    let segments = vec![segment(192, 1000, &data), segment(1216, 900, &data[9..])];
    Footer { segments, signer: None }
}

fn bounded(vector: Vector) -> Vector {
    vector.with("first", 192).with("end", 65536)
}

fn add_footers(set: &mut Set) {
    let good = Vector::ok("footer", "two segments of two chunks", footer().encode());
    set.add("footer/good", bounded(good));
    let mut to_the_end = footer();
    to_the_end.segments[1].sealed_bytes = 65536 - 1216 - 16;
    let full = Vector::ok("footer", "the last segment ends with the padding", to_the_end.encode());
    set.add("footer/full", bounded(full));
}

fn add_footer_faults(set: &mut Set) {
    let good = footer().encode();
    let mut refuse = |path: &str, rule, comment, bytes: Vec<u8>| {
        set.add(
            &format!("footer/{path}"),
            bounded(Vector::refused("footer", rule, comment, bytes)),
        );
    };
    let number =
        |offset, number: u32| changed(&good, |bytes| put(bytes, offset, &number.to_le_bytes()));
    // The second segment's fields stand at 4 + 16 + 2 * 36 = 92.
    refuse("empty", "P-10", "no bytes", Vec::new());
    refuse("no-segments", "P-10", "no segments", vec![0; 4]);
    refuse("segments-many", "P-10", "claims 2^18 + 1 segments", number(0, (1 << 18) + 1));
    refuse("cut", "P-10", "ends inside an entry", good[..good.len() - 1].to_vec());
    refuse("segment-missing", "P-10", "claims three segments and has two", number(0, 3));
    refuse("trailing", "P-10", "one byte too many", [&good[..], &[0]].concat());
    refuse("segment-short", "P-11", "a segment of 16 bytes", number(8, 16));
    refuse("unaligned", "P-11", "a frame off the multiple of 64", number(92, 1217));
    refuse("in-header", "P-11", "a frame inside the header", number(4, 128));
    refuse("overlap", "P-11", "the first segment reaches into the second", number(8, 1009));
    refuse("order", "P-11", "both segments at the same offset", number(92, 192));
    refuse("beyond", "P-11", "a segment reaches into the footer", number(96, 65536 - 1231));
    refuse("beyond-all", "P-11", "a segment of 4 GiB", number(96, u32::MAX));
    refuse("entry-kind", "S-4", "an entry of kind 9", changed(&good, |bytes| bytes[55] = 9));
    refuse("entry-empty", "S-4", "an entry of no bytes", number(52, 1 << 24));
    refuse("segment-empty", "S-5", "a segment without entries", {
        let mut footer = footer();
        footer.segments[0].entries.clear();
        footer.encode()
    });
    refuse("entries-many", "S-5", "claims 4097 entries", number(100, 4097));
    refuse("segment-large", "S-5", "a segment of more than 4 MiB", number(52, 1 << 24 | 4 << 20));
    // A byte more than header, table, bytes and tag can be, in a pack with room for it.
    let long = number(96, 8 + 4 * 4096 + (4 << 20) + 16 + 1);
    let long = Vector::refused("footer", "P-11", "a segment of 4 210 713 sealed bytes", long);
    set.add("footer/segment-long", long.with("first", 192).with("end", 8 << 20));
}

/// The footer with anchors of the entries `slots` of its second segment.
fn anchored(slots: &[u32]) -> Vec<u8> {
    let mut footer = footer();
    let anchor = |slot: &u32| Anchor { slot: *slot, value: 0x0123_4567_8900_0063 };
    footer.segments[1].anchors = slots.iter().map(anchor).collect();
    footer.encode()
}

fn add_anchors(set: &mut Set) {
    let mut add = |path: &str, rule: &str, comment: &str, bytes: Vec<u8>| {
        let vector = bounded(Vector::refused("footer", rule, comment, bytes));
        set.add(&format!("footer/anchor{path}"), vector);
    };
    add("s", "ok", "an anchor for each chunk of the second segment", anchored(&[0, 1]));
    add("-some", "ok", "an anchor for the second chunk of the second segment", anchored(&[1]));
    let any = changed(&anchored(&[1]), |bytes| bytes[184..].fill(255));
    add("-any", "ok", "an anchor that no writer lists", any);
    add("-cut", "P-10", "ends inside an anchor", anchored(&[1])[..191].to_vec());
    let announced = changed(&anchored(&[0]), |bytes| bytes[104] = 2);
    add("-missing", "P-10", "announces two anchors and has one", announced);
    add("-slot", "P-14", "an anchor of entry 2 of two", anchored(&[2]));
    add("-order", "P-14", "the anchors descend", anchored(&[1, 0]));
    add("-same", "P-14", "two anchors of one entry", anchored(&[1, 1]));
    add("s-many", "P-14", "three anchors of two entries", anchored(&[0, 1, 2]));
}

//! Vectors of whole packs (rules P-1 to P-14, S-1, S-2, S-9 to S-12, N-3).

use super::{changed, keyed, put};
use crate::vectors::fixed::{
    MASTER, REPOSITORY, anchor, keys, pattern, random, segment_plaintext, subkey, zstd_frame,
};
use crate::vectors::form::Vector;
use crate::vectors::{Result, Set};
use diskvault_format::crypto::{ObjectKind, PackCipher, Secret, additional_data, context, seal_x};
use diskvault_format::footer::Footer;
use diskvault_format::id::{LeaseId, RepositoryId};
use diskvault_format::limits::FORMAT_VERSION;
use diskvault_format::pack::{
    PackKind, PackSecrets, PreparedSegment, SealedPack, TRAILER_BYTES, assemble,
};
use diskvault_format::segment::{Anchor, Entry, EntryKind, FRAME_BYTES};
use diskvault_format::splice::{Piece, Splice};

fn pack_key() -> Secret {
    Secret::new(random("pack key"))
}

fn prepared(kind: EntryKind, data: &[u8], compress: bool) -> PreparedSegment {
    let id = match kind {
        EntryKind::Page => keys().page_id(data).0,
        _ => keys().chunk_id(data).0,
    };
    let entries = vec![Entry { id, kind, bytes: data.len() as u32 }];
    let plaintext = match compress {
        true => segment_plaintext(1, &entries, &zstd_frame(data)),
        false => segment_plaintext(0, &entries, data),
    };
    PreparedSegment { entries, anchors: Vec::new(), plaintext }
}

/// A data pack of two segments, one raw and one compressed.
fn sample(kind: PackKind, entry: EntryKind) -> Result<SealedPack> {
    let runs = [vec![1; 5000], pattern(50), vec![2; 3000]].concat();
    let segments = vec![prepared(entry, &pattern(100), false), prepared(entry, &runs, true)];
    packed(kind, segments)
}

/// A pack of these segments.
fn packed(kind: PackKind, segments: Vec<PreparedSegment>) -> Result<SealedPack> {
    let wrap_random = random("wrap nonce");
    let secrets = PackSecrets { key: pack_key(), wrap_random, own_copy: None };
    Ok(assemble(&keys(), kind, LeaseId(random("lease")), &secrets, segments)?)
}

fn additional(object: ObjectKind, kind: u8, more: &[u8]) -> Vec<u8> {
    additional_data(FORMAT_VERSION, object, REPOSITORY, &[&[kind], more])
}

/// What a wrapped key says in the clear, before it is sealed.
struct Wrap {
    kind: u8,
    clear: [u8; 24],
    commitment: [u8; 32],
    nonce: [u8; 24],
}

impl Wrap {
    fn new(kind: u8) -> Wrap {
        let mut clear = [0; 24];
        clear[0] = 1;
        let key = pack_key();
        let commitment = blake3::derive_key(context::PACK_COMMITMENT, key.expose());
        Wrap { kind, clear, commitment, nonce: random("wrap nonce") }
    }

    fn seal(&self) -> Vec<u8> {
        let clear = [&self.clear[..], &self.commitment].concat();
        let additional = additional(ObjectKind::PackKey, self.kind, &clear);
        let key = subkey(context::PACK_WRAP, &MASTER, REPOSITORY);
        let sealed = seal_x(&key, &self.nonce, &additional, pack_key().expose());
        [&clear[..], &self.nonce, &sealed].concat()
    }
}

/// The pack with another footer, sealed under `ordinal`, and the trailer moved to fit.
fn with_footer(pack: &SealedPack, plaintext: &[u8], ordinal: u32) -> Vec<u8> {
    let trailer = pack.bytes.len() - TRAILER_BYTES;
    let offset: [u8; 4] = read_number(&pack.bytes, trailer + 128);
    let additional = additional(ObjectKind::Footer, pack.bytes[10], &offset);
    let mut sealed = plaintext.to_vec();
    let tag = PackCipher::new(&pack_key()).seal(ordinal, &additional, &mut sealed);
    sealed.extend_from_slice(&tag);
    let mut tail = pack.bytes[trailer..].to_vec();
    put(&mut tail, 132, &(sealed.len() as u32).to_le_bytes());
    [&pack.bytes[..u32::from_le_bytes(offset) as usize], &sealed, &tail].concat()
}

fn read_number(bytes: &[u8], offset: usize) -> [u8; 4] {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[offset..offset + 4]);
    number
}

/// Adds the vectors.
pub fn add(set: &mut Set) -> Result<()> {
    let data = sample(PackKind::Data, EntryKind::Chunk)?;
    let map = sample(PackKind::Map, EntryKind::Page)?;
    let ok = |comment, pack: &SealedPack| keyed(Vector::ok("pack", comment, pack.bytes.clone()));
    set.add("pack/data", ok("a data pack of two segments", &data));
    set.add("pack/map", ok("a map pack of two pages", &map));
    let tail = ok("the same data pack, read from its tail", &data);
    set.add("pack/data-tail", tail.with("read", "tail"));
    add_ends(set, &data);
    add_kinds(set, &data);
    add_wraps(set, &data);
    add_repositories(set, &data);
    add_footers(set, &data);
    add_segments(set, &data);
    add_tables(set)?;
    add_anchors(set)?;
    add_splices(set)
}

/// A data pack whose footer has an anchor of its only chunk.
fn add_anchors(set: &mut Set) -> Result<()> {
    let data = random::<5000>("a chunk with an anchor");
    let value = anchor(&keys(), &data).ok_or("the chunk is too short")?;
    let mut segment = prepared(EntryKind::Chunk, &data, false);
    segment.anchors = vec![Anchor { slot: 0, value }];
    let pack = packed(PackKind::Data, vec![segment])?;
    let bytes = pack.bytes.clone();
    set.add("pack/anchor", keyed(Vector::ok("pack", "a chunk with its anchor", bytes)));
    let mut footer = pack.footer.clone();
    footer.segments[0].anchors[0].slot = 1;
    let bytes = with_footer(&pack, &footer.encode(), u32::MAX);
    refuse(set, "anchor-slot", "P-14", "an anchor of entry 1 of one", bytes);
    Ok(())
}

/// Map packs of a splice and of the chunk that its pieces are of.
fn add_splices(set: &mut Set) -> Result<()> {
    let data = pattern(700);
    let chunk = keys().chunk_id(&data);
    let piece = |offset, bytes| Piece { chunk, offset, bytes };
    let pack = |pieces: &[Piece], told: &[u8]| -> Result<Vec<u8>> {
        let splice = Splice::new(pieces.to_vec())?.encode();
        let mut segment = prepared(EntryKind::Splice, &splice, false);
        segment.entries[0].id = keys().chunk_id(told).0;
        let segments = vec![segment, prepared(EntryKind::Chunk, &data, false)];
        Ok(packed(PackKind::Map, segments)?.bytes)
    };
    let told = [&data[600..], &data[..90]].concat();
    let pieces = [piece(600, 100), piece(0, 90)];
    let good = pack(&pieces, &told)?;
    set.add("pack/splice", keyed(Vector::ok("pack", "a splice of two pieces, a chunk", good)));
    refuse(set, "splice-id", "S-9", "the pieces are another chunk", pack(&pieces, &told[1..])?);
    let beyond = pack(&[piece(600, 101), piece(0, 90)], &told)?;
    refuse(set, "splice-beyond", "S-12", "a piece ends a byte behind its chunk", beyond);
    let behind = pack(&[piece(701, 1)], &told)?;
    refuse(set, "splice-behind", "S-12", "a piece starts behind the end of its chunk", behind);
    Ok(())
}

/// Packs whose segments are sealed well but hold something else than is said.
fn add_tables(set: &mut Set) -> Result<()> {
    let data = pattern(100);
    let good = || prepared(EntryKind::Chunk, &data, false);
    let mut false_id = good();
    false_id.entries[0].id[31] ^= 1;
    let mut exchanged = good();
    exchanged.plaintext = prepared(EntryKind::Chunk, &pattern(101)[1..], false).plaintext;
    let mut page = good();
    page.entries[0].kind = EntryKind::Page;
    page.plaintext = segment_plaintext(0, &page.entries, &data);
    let with_table = |entries: &[Entry], data: &[u8]| PreparedSegment {
        plaintext: segment_plaintext(0, entries, data),
        ..good()
    };
    let one = good().entries[0];
    let shorter = with_table(&[Entry { bytes: 99, ..one }], &data[1..]);
    let kind = with_table(&[Entry { kind: EntryKind::Page, ..one }], &data);
    let halves = with_table(&[Entry { bytes: 50, ..one }; 2], &data);
    for (path, rule, comment, segment) in [
        ("chunk-id", "S-9", "a bit of a chunk's id is flipped", false_id),
        ("chunk-exchanged", "S-9", "the footer names another chunk of the same length", exchanged),
        ("chunk-as-page", "S-9", "an entry called page has the id of a chunk", page),
        ("table", "S-10", "the segment's table tells a byte less than the footer", shorter),
        ("table-kind", "S-10", "a page in the segment's table, a chunk in the footer", kind),
        ("table-count", "S-10", "the segment's table cuts the footer's entry in two", halves),
    ] {
        refuse(set, path, rule, comment, packed(PackKind::Data, vec![segment])?.bytes);
    }
    Ok(())
}

fn refuse(set: &mut Set, path: &str, rule: &str, comment: &str, bytes: Vec<u8>) {
    set.add(&format!("pack/{path}"), keyed(Vector::refused("pack", rule, comment, bytes)));
}

fn add_ends(set: &mut Set, pack: &SealedPack) {
    let good = &pack.bytes;
    let trailer = good.len() - TRAILER_BYTES;
    let comment = "belongs to a pack of one byte more than 1 GiB";
    let vector = keyed(Vector::refused("pack", "P-1", comment, good.clone()));
    set.add("pack/long", vector.with("pack-bytes", (1_u64 << 30) + 1));
    let patch = |offset, value: &[u8]| changed(good, |bytes| put(bytes, offset, value));
    let mut refuse = |path, rule, comment, bytes| refuse(set, path, rule, comment, bytes);
    refuse("empty", "P-2", "no bytes", Vec::new());
    refuse("header-cut", "P-2", "ends inside the header", good[..191].to_vec());
    refuse("truncated", "P-2", "lacks its last byte", good[..good.len() - 1].to_vec());
    refuse("head-magic", "P-2", "the magic of the header ends in X", patch(7, b"X"));
    refuse("head-reserved", "P-2", "reserved bytes of the header", patch(11, &[1]));
    refuse("head-reserved-end", "P-2", "the last byte of the header", patch(191, &[1]));
    refuse("tail-magic", "P-2", "the magic of the trailer ends in X", patch(good.len() - 1, b"X"));
    refuse("tail-reserved", "P-2", "reserved bytes of the trailer", patch(trailer + 143, &[1]));
    refuse("tail-reserved-end", "P-2", "bytes before the magic", patch(trailer + 183, &[1]));
    let number = |offset, number: u32| patch(trailer + offset, &number.to_le_bytes());
    refuse(
        "footer-early",
        "P-4",
        "the footer starts a byte before the padding",
        number(128, 65535),
    );
    refuse("footer-long", "P-4", "the footer is said to be a byte longer", {
        number(132, pack.footer.encode().len() as u32 + 17)
    });
    let mut at_start = number(128, 0);
    put(&mut at_start, trailer + 132, &(trailer as u32).to_le_bytes());
    refuse("footer-at-start", "P-4", "the footer is said to start with the pack", at_start);
    let mut unpadded = number(128, 65536 - 64);
    let length = u32::from_le_bytes(read_number(good, trailer + 132)) + 64;
    put(&mut unpadded, trailer + 132, &length.to_le_bytes());
    refuse("footer-unpadded", "P-4", "the footer starts off the 64 KiB", unpadded);
    refuse("footer-overflow", "P-4", "offset and length are 2^32 - 1", {
        changed(&number(128, u32::MAX), |bytes| put(bytes, trailer + 132, &[255; 4]))
    });
}

/// A vector that is read from the tail, so that only the trailer is looked at.
fn refuse_tail(set: &mut Set, path: &str, rule: &str, comment: &str, bytes: Vec<u8>) {
    let vector = keyed(Vector::refused("pack", rule, comment, bytes));
    set.add(&format!("pack/{path}"), vector.with("read", "tail"));
}

/// Writes `value` at an offset in the header and at one in the trailer.
fn at_ends(pack: &SealedPack, offset: usize, in_trailer: usize, value: &[u8]) -> Vec<u8> {
    let trailer = pack.bytes.len() - TRAILER_BYTES;
    changed(&pack.bytes, |bytes| {
        put(bytes, offset, value);
        put(bytes, trailer + in_trailer, value);
    })
}

fn add_kinds(set: &mut Set, pack: &SealedPack) {
    let trailer = pack.bytes.len() - TRAILER_BYTES;
    let patch =
        |offset, value: &[u8]| changed(&pack.bytes, |bytes| put(bytes, trailer + offset, value));
    let newer = (FORMAT_VERSION + 1).to_le_bytes();
    refuse(set, "version", "P-3", "the version is one too new", at_ends(pack, 8, 136, &newer));
    refuse_tail(set, "tail-version", "P-3", "the version is one too new", patch(136, &newer));
    let comment = "format version 0, which was never released";
    refuse(set, "version-zero", "P-3", comment, at_ends(pack, 8, 136, &[0, 0]));
    let third = changed(&at_ends(pack, 10, 138, &[3]), |bytes| {
        put(bytes, 48, &Wrap::new(3).seal());
        put(bytes, trailer, &Wrap::new(3).seal());
    });
    refuse(set, "kind", "P-3", "kind 3, with a key wrapped for it", third);
    refuse_tail(set, "tail-kind", "P-3", "kind 0", patch(138, &[0]));
    let mut wrap = Wrap::new(PackKind::Data as u8);
    wrap.nonce = random("another wrap nonce");
    let comment = "the same key is wrapped with another nonce in the trailer";
    refuse(set, "ends-wrap", "P-13", comment, patch(0, &wrap.seal()));
    let other = changed(&patch(138, &[2]), |bytes| put(bytes, trailer, &Wrap::new(2).seal()));
    let comment = "a data pack in the header, a map pack in the trailer, each with its wrap";
    refuse(set, "ends-kind", "P-13", comment, other);
}

fn add_wraps(set: &mut Set, pack: &SealedPack) {
    let trailer = pack.bytes.len() - TRAILER_BYTES;
    let mut rewrap = |path: &str, rule: &str, comment: &str, change: &dyn Fn(&mut Wrap)| {
        let mut wrap = Wrap::new(PackKind::Data as u8);
        change(&mut wrap);
        refuse(set, path, rule, comment, at_ends(pack, 48, 0, &wrap.seal()));
        let tail = changed(&pack.bytes, |bytes| put(bytes, trailer, &wrap.seal()));
        refuse_tail(set, &format!("tail-{path}"), rule, comment, tail);
    };
    rewrap("wrap-algorithm", "P-5", "algorithm 2", &|wrap| wrap.clear[0] = 2);
    rewrap("wrap-kind", "P-5", "wrap kind 2, which nobody knows", &|wrap| wrap.clear[1] = 2);
    rewrap("wrap-epoch", "P-5", "key epoch 1", &|wrap| wrap.clear[4] = 1);
    rewrap("wrap-key-id", "P-5", "a wrap key id", &|wrap| wrap.clear[23] = 1);
    let comment = "a sealed key that is not the one committed to";
    rewrap("wrap-commitment", "P-6", comment, &|wrap| wrap.commitment[0] ^= 1);
    let comment = "the key was wrapped for a map pack";
    rewrap("wrap-other-kind", "P-6", comment, &|wrap| wrap.kind = 2);
    let mut flip = |path: &str, comment: &str, offset: usize| {
        let value = [pack.bytes[48 + offset] ^ 1];
        refuse(set, path, "P-6", comment, at_ends(pack, 48 + offset, offset, &value));
    };
    flip("wrap-flipped", "a bit of the wrapped key is flipped", 92);
    flip("commitment-flipped", "a bit of the commitment is flipped", 30);
    flip("wrap-nonce", "a bit of the wrap nonce is flipped", 60);
}

fn add_repositories(set: &mut Set, pack: &SealedPack) {
    let trailer = pack.bytes.len() - TRAILER_BYTES;
    let other = RepositoryId(*b"quite another dv");
    let comment = "names another repository";
    refuse(set, "repository", "P-7", comment, at_ends(pack, 16, 144, &other.0));
    let tail = changed(&pack.bytes, |bytes| put(bytes, trailer + 144, &other.0));
    refuse_tail(set, "tail-repository", "P-7", comment, tail);
    let vector = keyed(Vector::refused("pack", "N-3", "has another name", pack.bytes.clone()));
    set.add("pack/renamed", vector.with_bytes("name", &[7; 32]));
}

fn add_footers(set: &mut Set, pack: &SealedPack) {
    let plaintext = pack.footer.encode();
    let footer_offset = 65536;
    let flipped = changed(&pack.bytes, |bytes| bytes[footer_offset] ^= 1);
    let mut refuse = |path, rule, comment, bytes| refuse(set, path, rule, comment, bytes);
    refuse("footer-flipped", "P-8", "a bit of the sealed footer is flipped", flipped);
    let ordinal = with_footer(pack, &plaintext, u32::MAX - 1);
    refuse("footer-ordinal", "P-8", "the footer is sealed under another ordinal", ordinal);
    let again = |footer: &[u8]| with_footer(pack, footer, u32::MAX);
    refuse("footer-none", "P-10", "a footer of no segments", again(&Footer::default().encode()));
    refuse("footer-trailing", "P-10", "a byte follows the footer's record", {
        again(&[&plaintext[..], &[0]].concat())
    });
    let moved = changed(&plaintext, |bytes| put(bytes, 4, &65536_u32.to_le_bytes()));
    refuse("footer-outside", "P-11", "a segment lies behind the padding", again(&moved));
    let kind = changed(&plaintext, |bytes| bytes[55] = 0);
    refuse("footer-entry", "S-4", "an entry of kind 0", again(&kind));
}

fn add_segments(set: &mut Set, pack: &SealedPack) {
    let [first, second] =
        [0, 1].map(|ordinal: usize| pack.footer.segments[ordinal].offset as usize);
    let end = first + pack.footer.segments[0].stored_bytes() as usize;
    let patch = |offset, value: &[u8]| changed(&pack.bytes, |bytes| put(bytes, offset, value));
    let flip = |offset: usize| changed(&pack.bytes, |bytes| bytes[offset] ^= 0x40);
    let mut refuse = |path, rule, comment, bytes| refuse(set, path, rule, comment, bytes);
    refuse("frame-magic", "S-1", "the frame of a segment has another magic", patch(first, b"dvsg"));
    refuse("frame-reserved", "S-1", "the end of a frame is not zero", patch(second + 15, &[1]));
    refuse("frame-ordinal", "S-2", "the frame of segment 1 says 0", patch(second + 4, &[0]));
    let length = pack.footer.segments[0].sealed_bytes - 1;
    let shorter = patch(first + 8, &length.to_le_bytes());
    refuse("frame-length", "S-2", "the frame says a byte less than the footer", shorter);
    refuse("segment-flipped", "P-9", "a bit of a sealed segment is flipped", flip(first + 20));
    refuse("segment-tag", "P-9", "a bit of a segment's tag is flipped", flip(end - 1));
    let ordinal = changed(&pack.bytes, |bytes| {
        let body = first + FRAME_BYTES..end - 16;
        let additional = additional(ObjectKind::Segment, PackKind::Data as u8, &[0; 4]);
        let cipher = PackCipher::new(&pack_key());
        let mut sealed = bytes[first + FRAME_BYTES..end].to_vec();
        // Opened in place, then sealed with the nonce of ordinal 7.
        if cipher.open(0, &additional, &mut sealed, "P-9").is_ok() {
            bytes[body.clone()].copy_from_slice(&sealed[..body.len()]);
            let tag = cipher.seal(7, &additional, &mut bytes[body.clone()]);
            put(bytes, body.end, &tag);
        }
    });
    refuse("segment-nonce", "P-9", "a segment is sealed under another ordinal", ordinal);
    refuse("gap", "P-12", "a byte between two segments is not zero", patch(second - 1, &[1]));
    refuse("padding", "P-12", "a byte before the footer is not zero", patch(65535, &[0x80]));
}

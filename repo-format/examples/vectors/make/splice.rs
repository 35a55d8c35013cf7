//! Vectors of splices (rule S-11). S-9 and S-12 need the chunks of the pieces: they are packs.

use super::{changed, put};
use crate::vectors::Set;
use crate::vectors::fixed::random;
use crate::vectors::form::Vector;
use diskvault_format::limits::{CHUNK_BYTES_MAX, SPLICE_PIECES_MAX};
use diskvault_format::splice::PIECE_BYTES;

/// A piece as it is stored, possible or not.
fn piece(seed: &str, offset: u32, bytes: u32) -> Vec<u8> {
    [&random::<32>(seed)[..], &offset.to_le_bytes(), &bytes.to_le_bytes()].concat()
}

/// Adds the vectors.
pub fn add(set: &mut Set) {
    let mut add = |path: &str, rule: &str, comment: &str, bytes: Vec<u8>| {
        set.add(&format!("splice/{path}"), Vector::refused("splice", rule, comment, bytes));
    };
    let good = [piece("first", 1536, 31_232), piece("second", 0, 1536)].concat();
    add("two", "ok", "the end of one chunk and the start of another", good.clone());
    add("one", "ok", "one byte of one chunk", piece("first", 7, 1));
    let twice = [piece("first", 100, 50), piece("first", 0, 120)].concat();
    add("twice", "ok", "two pieces of one chunk that overlap", twice);
    let many: Vec<u8> = (0..SPLICE_PIECES_MAX as u32)
        .flat_map(|number| piece(&number.to_string(), number, CHUNK_BYTES_MAX / 16))
        .collect();
    add("many", "ok", "16 pieces that are 4 MiB together", many.clone());
    let at_end = piece("first", CHUNK_BYTES_MAX - 1, 1);
    add("end", "ok", "the last byte of the largest chunk", at_end);
    let mut refuse = |path: &str, comment: &str, bytes| add(path, "S-11", comment, bytes);
    let number =
        |offset, number: u32| changed(&good, |bytes| put(bytes, offset, &number.to_le_bytes()));
    refuse("none", "no pieces", Vec::new());
    refuse("pieces-many", "17 pieces", [&many[..], &piece("16", 0, 1)].concat());
    refuse("cut", "the second piece lacks its last byte", good[..2 * PIECE_BYTES - 1].to_vec());
    refuse("trailing", "one byte too many", [&good[..], &[0]].concat());
    refuse("piece-empty", "the second piece is empty", number(76, 0));
    refuse("piece-long", "a piece that ends behind 4 MiB", number(32, CHUNK_BYTES_MAX - 31_231));
    refuse("piece-absurd", "a piece that starts at 2^32 - 1", number(32, u32::MAX));
    refuse("piece-wraps", "offset and length add up to 2^32 + 1535", number(36, u32::MAX));
    let longer = changed(&many, |bytes| put(bytes, 36, &(CHUNK_BYTES_MAX / 16 + 1).to_le_bytes()));
    refuse("long", "the pieces are a byte longer together than 4 MiB", longer);
}

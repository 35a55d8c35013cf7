//! Splices: what decodes encodes to the same bytes, and is no longer than a chunk.
#![no_main]

use diskvault_format::limits::{CHUNK_BYTES_MAX, SPLICE_PIECES_MAX};
use diskvault_format::splice::Splice;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &[u8])| {
    let (bytes, chunk) = input;
    let Ok(splice) = Splice::decode(bytes) else { return };
    assert_eq!(splice.encode(), bytes);
    assert!((1..=SPLICE_PIECES_MAX).contains(&splice.pieces().len()));
    assert!((1..=CHUNK_BYTES_MAX).contains(&splice.chunk_bytes()));
    for piece in splice.pieces() {
        let Ok(part) = piece.of(chunk) else { continue };
        assert_eq!(part.len(), piece.bytes as usize);
    }
});

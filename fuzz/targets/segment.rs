//! Segments: the frame, the table of entries and the compressed data.
#![no_main]

use diskvault_format::limits::SEGMENT_BYTES_MAX;
use diskvault_format::segment::{SegmentDecoder, read_frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|plaintext: &[u8]| {
    let _ = read_frame(plaintext);
    let mut data = Vec::new();
    let mut decoder = SegmentDecoder::new().expect("a decoder");
    let Ok(entries) = decoder.decode(plaintext, &mut data) else { return };
    let bytes: u64 = entries.iter().map(|entry| u64::from(entry.bytes)).sum();
    assert_eq!(bytes, data.len() as u64);
    assert!(!entries.is_empty() && bytes <= u64::from(SEGMENT_BYTES_MAX));
});

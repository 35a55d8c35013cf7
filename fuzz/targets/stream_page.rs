//! Pages of stream maps: what decodes encodes to the same bytes.
#![no_main]

use diskvault_format::stream_map::StreamPage;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, &[u8])| {
    let (bytes, page) = input;
    let Ok(decoded) = StreamPage::decode(page, bytes) else { return };
    assert_eq!(decoded.encode(), page);
});

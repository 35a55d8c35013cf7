//! The instance object: what decodes encodes to the same bytes.
#![no_main]

use diskvault_format::instance::{decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(id) = decode(data) else { return };
    assert_eq!(encode(id), data);
});

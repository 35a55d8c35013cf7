//! Inner map pages: what decodes encodes to the same bytes.
#![no_main]

use diskvault_format::limits::INNER_SLOTS;
use diskvault_format::map::Inner;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (level, used, page) = input;
    let used = 1 + usize::from(used) % INNER_SLOTS;
    let Ok(inner) = Inner::decode(page, u32::from(level % 8), used) else { return };
    let _ = inner.chaining(used);
    assert_eq!(inner.encode().as_deref(), Some(page));
});

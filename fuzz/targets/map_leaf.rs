//! Leaf map pages: what decodes encodes to the same bytes.
#![no_main]

use diskvault_format::limits::LEAF_SLOTS;
use diskvault_format::map::Leaf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (used, page) = input;
    let used = 1 + usize::from(used) % LEAF_SLOTS;
    let Ok(leaf) = Leaf::decode(page, used) else { return };
    let _ = leaf.chaining(used);
    assert_eq!(leaf.encode().as_deref(), Some(page));
});

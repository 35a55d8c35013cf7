//! Key slots: what decodes under its own name encodes to the same bytes. The key derivation is
//! left out, because it is slow by design.
#![no_main]

use diskvault_format::id::KeySlotId;
use diskvault_format::key_slot::KeySlot;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let hashed = libfuzzer_hash(data);
    let Ok(slot) = KeySlot::decode(hashed, data) else { return };
    let (id, bytes) = slot.encode();
    assert_eq!((id, bytes.as_slice()), (hashed, data));
});

fn libfuzzer_hash(data: &[u8]) -> KeySlotId {
    KeySlotId(*blake3::hash(data).as_bytes())
}

//! Leases, heartbeats, condemned lists, notes and lost lists.
#![no_main]

use diskvault_format::record;
use diskvault_format::small::{Condemned, Heartbeat, Lease, Lost, Note};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(lease) = record::decode::<Lease>(data) {
        let _ = lease.validate();
    }
    if let Ok(list) = record::decode::<Condemned>(data) {
        let _ = list.validate();
    }
    if let Ok(note) = record::decode::<Note>(data) {
        let _ = note.validate();
    }
    if let Ok(list) = record::decode::<Lost>(data) {
        let _ = list.validate();
    }
    if let Ok(beat) = record::decode::<Heartbeat>(data) {
        assert_eq!(record::encode(&beat).unwrap(), data);
    }
});

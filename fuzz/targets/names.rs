//! Object names: what is accepted is made only of the ids that it gives.
#![no_main]

use diskvault_format::names;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|leaf: &str| {
    if let Some((lease, Some(number))) = names::parse_lease(leaf) {
        assert_eq!(names::heartbeat(lease, number), leaf);
    }
    if let Some(generation) = names::parse_config(leaf) {
        assert!(leaf.starts_with(&format!("{generation:08x}-")));
    }
    if let Some(point) = names::parse_note(leaf) {
        assert!(leaf.starts_with(&point.to_hex()));
    }
    if names::parse_point(leaf).is_some() {
        assert!(leaf.len() == 64 || leaf.len() == 67);
    }
});

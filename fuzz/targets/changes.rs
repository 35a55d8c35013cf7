//! Change lists of an attacker, of every kind: reading ends, in memory that the list's length bounds,
//! with ranges in order or an error.
#![no_main]

use diskvault::source::changes::read_changes;
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;

fuzz_target!(|input: &[u8]| {
    let path = PathBuf::from(format!("/dev/shm/fuzz-changes-{}", std::process::id()));
    std::fs::write(&path, input).unwrap();
    for granularity in [None, Some(512), Some(1 << 63)] {
        let Ok(ranges) = read_changes(&path, granularity) else { continue };
        let mut end = None;
        for range in ranges {
            assert!(range.start < range.end && end.is_none_or(|end| end < range.start));
            end = Some(range.end);
        }
    }
});

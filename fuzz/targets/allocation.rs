//! Allocation lists: what decodes encodes to the same bytes.
#![no_main]

use diskvault_format::allocation::{AllocationWriter, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, &[u8])| {
    let (size, list) = input;
    let size = size >> 4;
    let Ok(runs) = decode(list, size) else { return };
    let mut writer = AllocationWriter::new();
    let mut end = 0;
    for run in &runs {
        assert_eq!(run.start, end);
        writer.push(run.bytes, run.is_allocated);
        end += run.bytes;
    }
    assert_eq!(end, size);
    assert_eq!(writer.finish(), list);
});

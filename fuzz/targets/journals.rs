//! File systems of an attacker whose journal is looked for: that ends, and what is found lies on the
//! disk. The first byte says which mark is put where it belongs.
#![no_main]

use diskvault::error::{Error, ErrorKind, Result};
use diskvault::source::RandomAccess;
use diskvault::source::journals::journal_starts;
use libfuzzer_sys::fuzz_target;
use std::cell::Cell;

struct Bytes {
    bytes: Vec<u8>,
    reads: Cell<u32>,
}

impl RandomAccess for Bytes {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.reads.set(self.reads.get() + 1);
        let found = self.bytes.get(offset as usize..).and_then(|rest| rest.get(..buffer.len()));
        let found = found.ok_or_else(|| Error::new(ErrorKind::Usage, "behind the end"))?;
        buffer.copy_from_slice(found);
        Ok(())
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, image)) = input.split_first() else { return };
    let mut bytes = image.to_vec();
    let (at, mark): (usize, &[u8]) = match kind % 4 {
        0 => (1024 + 56, &[0x53, 0xef]),
        1 => (3, b"NTFS    "),
        2 => (0, b"XFSB"),
        _ => (0, &[]),
    };
    if let Some(place) = bytes.get_mut(at..at + mark.len()) {
        place.copy_from_slice(mark);
    }
    let disk = Bytes { bytes, reads: Cell::new(0) };
    for start in [0, 512, u64::from(*kind) * 512] {
        disk.reads.set(0);
        // Nothing is read beyond the end.
        let found = journal_starts(&disk, start).unwrap();
        assert!(found.len() <= 2 && found.iter().all(|place| *place < disk.size()));
        assert!(disk.reads.get() <= 8);
    }
});

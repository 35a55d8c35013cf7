//! Disks of an attacker with a file system on them: every file is read, and reading ends, in
//! bounded memory, with bytes or an error. The first byte says which mark is put where it belongs,
//! so that the fuzzer need not guess it; images from the tools of each kind make good seeds.
#![no_main]

use diskvault::error::{Error, ErrorKind, Result};
use diskvault::files::{DiskContent, Go, Kind, Name, Step, resolve, walk};
use diskvault::source::RandomAccess;
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

/// Files may say that they are of any size: sparse ones are.
const READ_BYTES_MAX: u64 = 1 << 20;

struct Bytes(Vec<u8>);

impl RandomAccess for Bytes {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let found = self.0.get(offset as usize..).and_then(|rest| rest.get(..buffer.len()));
        let found = found.ok_or_else(|| Error::new(ErrorKind::Usage, "behind the end"))?;
        buffer.copy_from_slice(found);
        Ok(())
    }
}

fn read_all(disk: Bytes) -> Result<()> {
    let content = DiskContent::open(Arc::new(disk), "disk")?;
    for place in &content.places {
        let Ok(volume) = content.volume(place) else { continue };
        let Ok(start) = resolve(&volume, &Name(b"/".to_vec())) else { continue };
        let mut steps = 0;
        walk(&volume, &start, &mut |at, step| {
            steps += 1;
            if steps > 2000 {
                return Err(Error::new(ErrorKind::Failed, "enough"));
            }
            if let Step::Entry(entry) = step {
                let mut bytes = 0;
                match entry.facts.kind {
                    Kind::Link => drop(volume.target(entry, at.path)),
                    Kind::File => drop(volume.read(entry, at.path, &mut |data| {
                        bytes += data.len() as u64;
                        if bytes > READ_BYTES_MAX {
                            return Err(Error::new(ErrorKind::Failed, "enough"));
                        }
                        Ok(())
                    })),
                    _ => {}
                }
            }
            Ok(Go::In)
        })?;
    }
    Ok(())
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, image)) = input.split_first() else { return };
    let mut image = image.to_vec();
    let mut put = |at: usize, mark: &[u8]| {
        if let Some(place) = image.get_mut(at..at + mark.len()) {
            place.copy_from_slice(mark);
        }
    };
    match kind % 4 {
        0 => put(0x438, &[0x53, 0xef]),
        1 => put(3, b"NTFS    "),
        2 => {
            put(0, &[0xeb]);
            put(510, &[0x55, 0xaa]);
        }
        _ => {}
    }
    let _ = read_all(Bytes(image));
});

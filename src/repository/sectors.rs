//! Reading objects from a medium that fails here and there: only the sectors that cannot be read are
//! given up.
//!
//! Invariant: what could not be read is told, and is zeros.

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{ObjectName, Storage};
use diskvault_format::limits::PACK_BYTES_MAX;
use std::ops::Range;

/// Bytes that are read at once, and in which an error is looked for.
const PIECE_BYTES: usize = 1 << 20;
/// Bytes that are given up together where reading fails: a sector of a disk.
const SECTOR_BYTES: usize = 4 << 10;

/// What could be read of an object.
pub struct Sectors {
    /// All bytes; zeros where they could not be read.
    pub bytes: Vec<u8>,
    /// What could not be read, ascending.
    pub unreadable: Vec<Range<u64>>,
}

/// Reads the first `bytes` bytes of an object, at most 1 GiB. For a storage that tells what is
/// wrong with one object from what is wrong with all, see
/// [`Repository::forgiving`](super::Repository::forgiving).
///
/// # Errors
/// `NotFound`; `Damage` once more than `unreadable_max` bytes cannot be read: a failing disk takes
/// seconds for each error; what else the storage says.
pub fn read_sectors(
    storage: &dyn Storage,
    name: &ObjectName,
    bytes: u64,
    unreadable_max: u64,
) -> Result<Sectors> {
    let mut read =
        Sectors { bytes: vec![0; bytes.min(PACK_BYTES_MAX) as usize], unreadable: Vec::new() };
    let mut lost = 0;
    for (number, piece) in read.bytes.chunks_mut(PIECE_BYTES).enumerate() {
        let start = (number * PIECE_BYTES) as u64;
        if !is_lost(storage.get_range(name, start, piece))? {
            continue;
        }
        for (number, sector) in piece.chunks_mut(SECTOR_BYTES).enumerate() {
            let start = start + (number * SECTOR_BYTES) as u64;
            let result = storage.get_range(name, start, sector);
            let cause = result.as_ref().err().map(Error::full_text).unwrap_or_default();
            if !is_lost(result)? {
                continue;
            }
            sector.fill(0);
            let end = start + sector.len() as u64;
            match read.unreadable.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => read.unreadable.push(start..end),
            }
            lost += end - start;
            if lost > unreadable_max {
                let text = format!("cannot read {name}: {lost} bytes of it are lost: {cause}");
                return Err(Error::new(ErrorKind::Damage, text));
            }
        }
    }
    Ok(read)
}

/// True for bytes that cannot be read, or that are not there any more.
fn is_lost(result: Result<()>) -> Result<bool> {
    match result {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == ErrorKind::Damage => Ok(true),
        Err(error) => Err(error),
    }
}

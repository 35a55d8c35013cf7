//! Files in which a cache keeps objects: each with a check of its own, and under its name only when
//! it is whole.

use std::fs;
use std::io::Write;
use std::path::Path;

/// Bytes of the BLAKE3 of the rest that a file starts with.
pub const CHECK_BYTES: usize = 32;

/// What a file keeps, if it is whole and not larger than is wanted.
pub fn read_kept(file: &Path, bytes_max: u64) -> Option<Vec<u8>> {
    let bytes = fs::metadata(file).ok()?.len();
    if bytes.saturating_sub(CHECK_BYTES as u64) > bytes_max {
        return None;
    }
    let mut data = fs::read(file).ok()?;
    let check = data.get(..CHECK_BYTES)?;
    if blake3::hash(data.get(CHECK_BYTES..)?) != *<&[u8; CHECK_BYTES]>::try_from(check).ok()? {
        return None;
    }
    data.drain(..CHECK_BYTES);
    Some(data)
}

/// Keeps an object in `folder`, which is made if it is not there.
///
/// # Errors
/// Those of the file system.
pub fn write_kept(folder: &Path, leaf: &str, data: &[u8]) -> std::io::Result<()> {
    write_whole(folder, leaf, &[blake3::hash(data).as_bytes(), data])
}

/// Writes a file that has its name only when it is whole.
///
/// # Errors
/// Those of the file system.
pub fn write_whole(folder: &Path, leaf: &str, parts: &[&[u8]]) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    parts.iter().try_for_each(|part| temporary.write_all(part))?;
    temporary.persist(folder.join(leaf))?;
    Ok(())
}

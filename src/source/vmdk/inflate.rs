//! Compressed grains.
//!
//! Invariant: a grain gives no more bytes than a grain has, and none that its own checksum does
//! not confirm.

use flate2::{Decompress, FlushDecompress, Status};

/// Decodes a zlib stream, which bytes may follow, into `least` to `most` bytes.
///
/// # Errors
/// What is wrong.
pub(super) fn inflate(input: &[u8], least: usize, most: usize) -> Result<Vec<u8>, String> {
    // One byte more tells a grain that is too long from one whose end was not looked at yet.
    let mut grain = vec![0; most + 1];
    let mut decoder = Decompress::new(true);
    let status = decoder.decompress(input, &mut grain, FlushDecompress::Finish);
    let status = status.map_err(|cause| cause.to_string())?;
    let found = decoder.total_out() as usize;
    if found > most {
        return Err("it is longer than a grain".into());
    }
    if status != Status::StreamEnd {
        return Err("it has no end".into());
    }
    if found < least {
        return Err(format!("it has {found} bytes, expected {least}"));
    }
    grain.truncate(found);
    Ok(grain)
}

//! Compressed clusters.
//!
//! Invariant: a cluster gives as many bytes as a cluster has, or an error; it takes no more memory
//! than that and a window, whatever it says. What goes on behind a cluster's bytes is what it is to
//! QEMU: of deflate it is left away, of zstd it is an error.

use super::header::Compression;
use flate2::{Decompress, FlushDecompress};
use std::io::Read;

/// Largest window of a zstd frame, as a power of two: 16 MiB. QEMU writes at most 2 MiB.
const ZSTD_WINDOW_BITS_MAX: u32 = 24;

/// Fills `cluster` from `input`, which may be longer than what is compressed.
///
/// # Errors
/// What is wrong.
pub(super) fn inflate(
    compression: Compression,
    input: &[u8],
    cluster: &mut [u8],
) -> Result<(), String> {
    match compression {
        Compression::Deflate => {
            let mut decoder = Decompress::new(false);
            let done = decoder.decompress(input, cluster, FlushDecompress::Finish);
            done.map_err(|cause| cause.to_string())?;
            if decoder.total_out() == cluster.len() as u64 {
                return Ok(());
            }
            Err("it is too short".into())
        }
        Compression::Zstd => {
            let failed = |cause: std::io::Error| cause.to_string();
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(failed)?;
            decoder.window_log_max(ZSTD_WINDOW_BITS_MAX).map_err(failed)?;
            let mut frame = decoder.single_frame();
            frame.read_exact(cluster).map_err(failed)?;
            // The frame ends where the cluster does; a checksum behind it is compared here.
            match frame.read(&mut [0]).map_err(failed)? {
                0 => Ok(()),
                _ => Err("it is longer than a cluster".into()),
            }
        }
    }
}

//! Where chunks begin and end. Disks are cut on a fixed grid, because a guest overwrites in
//! place; streams and misaligned disks are cut by their content, because what shifts must
//! still meet itself. Zeros are no chunks at all.
//!
//! Invariant: cuts depend on the bytes and the repository's key alone, never on how the bytes
//! arrived, so that the same bytes always deduplicate.

pub mod anchor;
pub mod content;
pub mod zero;

pub use content::{ContentCutter, ContentParameters, Gear, Piece};
pub use zero::{is_zero, nonzero_runs};

use crate::error::{Error, ErrorKind, Result};

/// The smallest chunk of a fixed grid, in bytes: the block of nearly every file system.
pub const FIXED_BYTES_MIN: u32 = 4096;

/// The largest chunk of a fixed grid, in bytes.
pub const FIXED_BYTES_MAX: u32 = 4 << 20;

/// How one disk or stream is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunking {
    /// Every chunk starts at a multiple of `chunk_bytes`; the last may be shorter.
    Fixed {
        /// A power of two from 4 KiB to 4 MiB.
        chunk_bytes: u32,
    },
    /// Cut by content.
    Content(ContentParameters),
}

impl Chunking {
    /// Checks all numbers against their limits.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`], naming the number that is out of range.
    pub fn validate(&self) -> Result<()> {
        match self {
            Chunking::Fixed { chunk_bytes } => {
                if chunk_bytes.is_power_of_two()
                    && (FIXED_BYTES_MIN..=FIXED_BYTES_MAX).contains(chunk_bytes)
                {
                    return Ok(());
                }
                let message = format!(
                    "cannot use chunks of {chunk_bytes} bytes: the size is a power of two from \
                     {FIXED_BYTES_MIN} to {FIXED_BYTES_MAX}"
                );
                Err(Error::new(ErrorKind::Usage, message))
            }
            Chunking::Content(parameters) => parameters.validate(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_are_powers_of_two_in_their_range() {
        for (chunk_bytes, valid) in [
            (4096, true),
            (65536, true),
            (4 << 20, true),
            (2048, false),
            (8 << 20, false),
            (65535, false),
            (0, false),
        ] {
            assert_eq!(Chunking::Fixed { chunk_bytes }.validate().is_ok(), valid, "{chunk_bytes}");
        }
        assert!(Chunking::Content(ContentParameters::default()).validate().is_ok());
    }
}

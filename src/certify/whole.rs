//! The digest of a whole disk outside, as coreutils and `b3sum` print it for the file that holds it as
//! it is.

use crate::backup::{DigestKind, Digests};
use crate::error::Result;
use crate::monitor::Monitor;
use crate::source::DiskSource;
use rayon::ThreadPool;

/// Read at once while the piece before is hashed.
const PIECE_BYTES: u64 = 8 << 20;

enum Hasher {
    Blake3(Box<blake3::Hasher>),
    Other(Box<Digests>),
}

/// Hashes the first `size` bytes of a disk, which are there, from front to back: BLAKE3 on all cores
/// if `kind` is `None`.
///
/// # Errors
/// `Source` for what cannot be read, `Cancelled`.
pub fn digest_of(
    source: &dyn DiskSource,
    size: u64,
    kind: Option<DigestKind>,
    pool: &ThreadPool,
    monitor: &dyn Monitor,
) -> Result<Vec<u8>> {
    let mut hasher = match kind {
        None => Hasher::Blake3(Box::default()),
        Some(kind) => Hasher::Other(Box::new(Digests::new(false, &[kind]))),
    };
    let read = |at: u64, buffer: &mut Vec<u8>| {
        let bytes = PIECE_BYTES.min(size - at);
        buffer.resize(bytes as usize, 0);
        source.read_at(at, buffer)
    };
    let (mut current, mut next) = (Vec::new(), Vec::new());
    let mut at = 0;
    read(at, &mut current)?;
    while at < size {
        monitor.check_cancelled()?;
        let after = at + current.len() as u64;
        let hash = || match &mut hasher {
            Hasher::Blake3(hasher) => {
                hasher.update_rayon(&current);
            }
            Hasher::Other(digests) => digests.update(&current),
        };
        let ((), result) = pool.join(hash, || read(after, &mut next));
        result?;
        monitor.advance(current.len() as u64);
        std::mem::swap(&mut current, &mut next);
        at = after;
    }
    Ok(match hasher {
        Hasher::Blake3(hasher) => hasher.finalize().as_bytes().to_vec(),
        Hasher::Other(digests) => {
            let mut others = digests.finish().others;
            others.pop().map(|(_, value)| value).unwrap_or_default()
        }
    })
}

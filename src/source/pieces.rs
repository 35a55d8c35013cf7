//! Pieces of an image's tables, kept while they are used.
//!
//! Invariant: never more pieces, and never more bytes, than the limits below, whatever the image
//! says; but always the last one.

use crate::error::Result;
use std::sync::{Arc, Mutex, PoisonError};

const PIECES_MAX: usize = 1024;
const BYTES_MAX: usize = 16 << 20;

/// Pieces by their place in the file, the one used last at the end.
#[derive(Default)]
pub(super) struct Pieces(Mutex<Vec<Piece>>);

type Piece = (u64, Arc<Vec<u8>>);

impl Pieces {
    /// The piece at `place`, which `read` reads if it is not here.
    ///
    /// # Errors
    /// What `read` returns.
    pub fn get(&self, place: u64, read: impl FnOnce() -> Result<Vec<u8>>) -> Result<Arc<Vec<u8>>> {
        let mut pieces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = pieces.iter().rposition(|(at, _)| *at == place) {
            let piece = pieces.remove(found);
            let bytes = piece.1.clone();
            pieces.push(piece);
            return Ok(bytes);
        }
        drop(pieces);
        let bytes = Arc::new(read()?);
        let mut pieces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.push((place, bytes.clone()));
        let mut kept: usize = pieces.iter().map(|(_, bytes)| bytes.len()).sum();
        while pieces.len() > 1 && (pieces.len() > PIECES_MAX || kept > BYTES_MAX) {
            kept -= pieces.remove(0).1.len();
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_not_read_again() {
        let pieces = Pieces::default();
        let mut reads = 0;
        let mut get = |place: u64, bytes: usize| {
            pieces
                .get(place, || {
                    reads += 1;
                    Ok(vec![place as u8; bytes])
                })
                .unwrap();
            let kept = pieces.0.lock().unwrap();
            let bytes: usize = kept.iter().map(|(_, bytes)| bytes.len()).sum();
            assert!(kept.len() == 1 || bytes <= BYTES_MAX);
            (kept.len(), reads)
        };
        assert_eq!(get(1, BYTES_MAX + 1), (1, 1));
        assert_eq!(get(2, BYTES_MAX / 2), (1, 2));
        assert_eq!(get(3, BYTES_MAX / 2), (2, 3));
        assert_eq!(get(2, BYTES_MAX / 2), (2, 3));
        // The one that was used last stays.
        assert_eq!(get(4, 10), (2, 4));
        assert_eq!(get(2, BYTES_MAX / 2), (2, 4));
        for place in 5..5 + 2 * PIECES_MAX as u64 {
            assert!(get(place, 1).0 <= PIECES_MAX);
        }
    }
}

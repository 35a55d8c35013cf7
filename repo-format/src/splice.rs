//! Splices (spec/32-pack.md): a chunk told as pieces of other chunks instead of its bytes.
//!
//! A file that lies on a disk twice, or moved, seldom lies at the same phase of the grid: each of
//! its chunks then consists of the end of one stored chunk and the start of the next. A splice
//! says so in 80 bytes where the chunk itself would take 32 KiB.
//!
//! ```text
//! 40*n  pieces, one after another: chunk id (32), first byte in that chunk (4), bytes (4)
//! ```
//!
//! Invariant: a piece names a chunk that is stored by its bytes, so nothing is looked up more than
//! twice; the id of a splice is that of the chunk it stands for.

use crate::cursor::Cursor;
use crate::error::{Result, malformed};
use crate::id::ChunkId;
use crate::limits::{CHUNK_BYTES_MAX, SPLICE_PIECES_MAX};

/// Bytes of one piece.
pub const PIECE_BYTES: usize = 40;

/// A range of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The chunk, stored by its bytes.
    pub chunk: ChunkId,
    /// Its first byte that counts.
    pub offset: u32,
    /// How many bytes count, at least 1.
    pub bytes: u32,
}

impl Piece {
    /// The bytes that it names of its chunk.
    ///
    /// # Errors
    /// S-12 if the chunk ends before.
    pub fn of<'a>(&self, chunk: &'a [u8]) -> Result<&'a [u8]> {
        let end = self.offset as usize + self.bytes as usize;
        let ends_behind = || malformed("S-12", "is a splice with a piece that leaves its chunk");
        chunk.get(self.offset as usize..end).ok_or_else(ends_behind)
    }
}

/// The pieces of a chunk, in order: 1 to 16.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Splice {
    pieces: Vec<Piece>,
}

impl Splice {
    /// A splice of these pieces.
    ///
    /// # Errors
    /// S-11 if there are none or more than 16, if one is empty or leaves the largest chunk, or if
    /// together they are longer than one.
    pub fn new(pieces: Vec<Piece>) -> Result<Splice> {
        if !(1..=SPLICE_PIECES_MAX).contains(&pieces.len()) {
            return Err(malformed("S-11", format!("is a splice of {} pieces", pieces.len())));
        }
        let most = u64::from(CHUNK_BYTES_MAX);
        let end = |piece: &Piece| u64::from(piece.offset) + u64::from(piece.bytes);
        if pieces.iter().any(|piece| piece.bytes == 0 || end(piece) > most) {
            return Err(malformed("S-11", "is a splice with a piece that cannot be"));
        }
        if pieces.iter().map(|piece| u64::from(piece.bytes)).sum::<u64>() > most {
            return Err(malformed("S-11", "is a splice longer than a chunk can be"));
        }
        Ok(Splice { pieces })
    }

    /// The pieces, in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Length of the chunk it stands for.
    pub fn chunk_bytes(&self) -> u32 {
        self.pieces.iter().map(|piece| piece.bytes).sum()
    }

    /// Encodes it: 40 bytes for each piece.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.pieces.len() * PIECE_BYTES);
        for piece in &self.pieces {
            bytes.extend_from_slice(&piece.chunk.0);
            bytes.extend_from_slice(&piece.offset.to_le_bytes());
            bytes.extend_from_slice(&piece.bytes.to_le_bytes());
        }
        bytes
    }

    /// Decodes an entry of a segment that has been authenticated.
    ///
    /// # Errors
    /// S-11 as [`Splice::new`], and for a length that is no multiple of 40.
    pub fn decode(bytes: &[u8]) -> Result<Splice> {
        if !bytes.len().is_multiple_of(PIECE_BYTES) {
            return Err(malformed("S-11", format!("is a splice of {} bytes", bytes.len())));
        }
        if bytes.len() > SPLICE_PIECES_MAX * PIECE_BYTES {
            return Err(malformed("S-11", "is a splice of too many pieces"));
        }
        let mut cursor = Cursor::new(bytes, "S-11");
        let mut pieces = Vec::with_capacity(bytes.len() / PIECE_BYTES);
        while !cursor.rest().is_empty() {
            let chunk = ChunkId(cursor.array()?);
            pieces.push(Piece { chunk, offset: cursor.u32()?, bytes: cursor.u32()? });
        }
        Splice::new(pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u32, bytes: u32) -> Piece {
        Piece { chunk: ChunkId([offset as u8; 32]), offset, bytes }
    }

    #[test]
    fn what_is_encoded_comes_back() {
        for pieces in [vec![piece(0, 1)], vec![piece(7, 100), piece(CHUNK_BYTES_MAX - 1, 1)]] {
            let splice = Splice::new(pieces.clone()).unwrap();
            assert_eq!(splice.chunk_bytes(), pieces.iter().map(|piece| piece.bytes).sum::<u32>());
            let bytes = splice.encode();
            assert_eq!(bytes.len(), pieces.len() * PIECE_BYTES);
            assert_eq!(Splice::decode(&bytes).unwrap().pieces(), pieces);
            for length in 0..bytes.len() {
                if length % PIECE_BYTES != 0 || length == 0 {
                    assert_eq!(Splice::decode(&bytes[..length]).unwrap_err().rule, "S-11");
                }
            }
        }
    }

    #[test]
    fn a_piece_ends_within_its_chunk() {
        assert_eq!(piece(2, 3).of(b"abcde").unwrap(), b"cde");
        assert_eq!(piece(0, 5).of(b"abcde").unwrap(), b"abcde");
        for beyond in [piece(2, 4), piece(5, 1), piece(6, 1)] {
            assert_eq!(beyond.of(b"abcde").unwrap_err().rule, "S-12");
        }
    }

    #[test]
    fn impossible_pieces_are_refused() {
        for pieces in [
            vec![],
            vec![piece(0, 1); SPLICE_PIECES_MAX + 1],
            vec![piece(0, 0)],
            vec![piece(1, CHUNK_BYTES_MAX)],
            vec![piece(u32::MAX, 1)],
            vec![piece(0, CHUNK_BYTES_MAX), piece(0, 1)],
        ] {
            let bytes: Vec<u8> = pieces
                .iter()
                .flat_map(|piece: &Piece| {
                    let mut bytes = piece.chunk.0.to_vec();
                    bytes.extend_from_slice(&piece.offset.to_le_bytes());
                    bytes.extend_from_slice(&piece.bytes.to_le_bytes());
                    bytes
                })
                .collect();
            assert_eq!(Splice::decode(&bytes).unwrap_err().rule, "S-11", "{pieces:?}");
            assert_eq!(Splice::new(pieces).unwrap_err().rule, "S-11");
        }
    }
}

//! Pack footers (spec/32-pack.md): what a pack holds and where, sealed at its end.
//!
//! ```text
//! 0  4  number of segments
//! then for each segment
//!    4  offset of its frame in the pack
//!    4  sealed bytes, with the tag
//!    4  number of entries, n
//!    4  number of anchors, m
//!    36*n  entries: id (32), then kind and length as in the segment's own table (4)
//!    12*m  anchors, by slot: slot (4), value (8)
//! ```

use crate::cursor::Cursor;
use crate::error::{Result, limit, malformed};
use crate::id::WriterId;
use crate::limits::{PACK_SEGMENTS_MAX, SEGMENT_ALIGNMENT_BYTES, SEGMENT_ENTRIES_MAX};
use crate::segment::{
    Anchor, Entry, EntryShape, FRAME_BYTES, SEALED_SEGMENT_BYTES_MAX, SEALED_SEGMENT_BYTES_MIN,
    validate_lengths,
};

/// Bytes of one entry in a footer.
pub const FOOTER_ENTRY_BYTES: usize = 36;
/// Bytes of one anchor in a footer.
pub const ANCHOR_BYTES: usize = 12;
/// Bytes of a segment in a footer, without its entries and anchors.
const SEGMENT_HEAD_BYTES: usize = 16;

/// One segment as the footer describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FooterSegment {
    /// Where its frame starts, in bytes from the start of the pack.
    pub offset: u32,
    /// Bytes of ciphertext and tag behind the frame.
    pub sealed_bytes: u32,
    /// Its entries, in order.
    pub entries: Vec<Entry>,
    /// Anchors of some of them, by ascending slot.
    pub anchors: Vec<Anchor>,
}

impl FooterSegment {
    /// Bytes that it takes in a footer.
    pub fn footer_bytes(&self) -> usize {
        SEGMENT_HEAD_BYTES
            + self.entries.len() * FOOTER_ENTRY_BYTES
            + self.anchors.len() * ANCHOR_BYTES
    }

    /// Uncompressed bytes of all entries.
    pub fn raw_bytes(&self) -> u32 {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// Bytes of frame, ciphertext and tag: what has to be read.
    pub fn stored_bytes(&self) -> u32 {
        self.sealed_bytes + FRAME_BYTES as u32
    }

    /// Compares kinds and lengths with the segment's own table.
    ///
    /// # Errors
    /// S-10.
    pub fn verify_table(&self, table: &[EntryShape]) -> Result<()> {
        if self.entries.iter().map(Entry::shape).eq(table.iter().copied()) {
            return Ok(());
        }
        Err(malformed("S-10", "has another table than the footer"))
    }
}

/// Everything a pack holds.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Footer {
    /// The segments, by ordinal.
    pub segments: Vec<FooterSegment>,
    /// The writer that signed it, if that is one that may not read (spec/21-writers.md).
    pub signer: Option<WriterId>,
}

impl Footer {
    /// Number of entries of all segments.
    pub fn entry_count(&self) -> u64 {
        self.segments.iter().map(|segment| segment.entries.len() as u64).sum()
    }

    /// Encodes the plaintext of the footer.
    pub fn encode(&self) -> Vec<u8> {
        let total = self.segments.iter().map(FooterSegment::footer_bytes).sum::<usize>();
        let mut bytes = Vec::with_capacity(4 + total);
        bytes.extend_from_slice(&(self.segments.len() as u32).to_le_bytes());
        for segment in &self.segments {
            bytes.extend_from_slice(&segment.offset.to_le_bytes());
            bytes.extend_from_slice(&segment.sealed_bytes.to_le_bytes());
            bytes.extend_from_slice(&(segment.entries.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&(segment.anchors.len() as u32).to_le_bytes());
            for entry in &segment.entries {
                bytes.extend_from_slice(&entry.id);
                entry.shape().write(&mut bytes);
            }
            for anchor in &segment.anchors {
                bytes.extend_from_slice(&anchor.slot.to_le_bytes());
                bytes.extend_from_slice(&anchor.value.to_le_bytes());
            }
        }
        bytes
    }

    /// Decodes an opened footer of a pack whose segments lie in `first..end`.
    ///
    /// # Errors
    /// P-10 if it is too short or has trailing bytes, P-11 if segments overlap, are not aligned,
    /// leave the pack or have a length that no segment has, P-14 for anchors that no entry has,
    /// S-4 and S-5 for the entries.
    pub fn decode(plaintext: &[u8], first: u64, end: u64) -> Result<Footer> {
        let mut cursor = Cursor::new(plaintext, "P-10");
        let count = cursor.u32()?;
        if count == 0 || count > PACK_SEGMENTS_MAX {
            let most = u64::from(PACK_SEGMENTS_MAX);
            return Err(limit("P-10", "the number of segments", most, u64::from(count)));
        }
        let mut segments = Vec::new();
        let mut free = first;
        for ordinal in 0..count {
            let offset = cursor.u32()?;
            let sealed_bytes = cursor.u32()?;
            let entry_count = cursor.u32()?;
            let anchor_count = cursor.u32()?;
            let after = u64::from(offset) + FRAME_BYTES as u64 + u64::from(sealed_bytes);
            let aligned = u64::from(offset).is_multiple_of(SEGMENT_ALIGNMENT_BYTES);
            let possible = SEALED_SEGMENT_BYTES_MIN..=SEALED_SEGMENT_BYTES_MAX;
            if !possible.contains(&sealed_bytes) {
                let text = format!("segment {ordinal} has {sealed_bytes} bytes, which it cannot");
                return Err(malformed("P-11", text));
            }
            if !aligned || u64::from(offset) < free || after > end {
                return Err(malformed("P-11", format!("segment {ordinal} lies where it cannot")));
            }
            free = after;
            if entry_count > SEGMENT_ENTRIES_MAX {
                let most = u64::from(SEGMENT_ENTRIES_MAX);
                return Err(limit("S-5", "the number of entries", most, entry_count.into()));
            }
            if anchor_count > entry_count {
                return Err(malformed("P-14", format!("segment {ordinal} has too many anchors")));
            }
            let table = cursor.bytes(entry_count as usize * FOOTER_ENTRY_BYTES)?;
            let mut table = Cursor::new(table, "P-10");
            let mut entries = Vec::with_capacity(entry_count as usize);
            for _ in 0..entry_count {
                let id = table.array()?;
                let EntryShape { kind, bytes } = EntryShape::read(&mut table)?;
                entries.push(Entry { id, kind, bytes });
            }
            validate_lengths(entries.iter().map(|entry| entry.bytes))?;
            let mut anchors: Vec<Anchor> = Vec::with_capacity(anchor_count as usize);
            for _ in 0..anchor_count {
                let anchor = Anchor { slot: cursor.u32()?, value: cursor.u64()? };
                let ascends = anchors.last().is_none_or(|last| last.slot < anchor.slot);
                if !ascends || anchor.slot >= entry_count {
                    let text = format!("segment {ordinal} has an anchor where it cannot be");
                    return Err(malformed("P-14", text));
                }
                anchors.push(anchor);
            }
            segments.push(FooterSegment { offset, sealed_bytes, entries, anchors });
        }
        cursor.finish()?;
        Ok(Footer { segments, signer: None })
    }
}

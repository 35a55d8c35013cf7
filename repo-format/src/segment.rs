//! Segments (spec/32-pack.md): runs of chunks or pages, compressed and sealed as one.
//!
//! In a pack a segment is a 16-byte clear frame, then the sealed plaintext and its tag:
//!
//! ```text
//! frame   0  4  magic "DVSG"
//!         4  4  ordinal in the pack, from 0
//!         8  4  sealed bytes, with the tag
//!        12  4  0
//! plain   0  1  codec: 0 raw, 1 zstd, 2 reserved
//!         1  3  0
//!         4  4  number of entries, n
//!         8  4*n  entries: length in the low 24 bits, kind in the high 8
//!         .  .  payload: the entries' bytes one after another, encoded by the codec
//! ```
//!
//! The table stands inside every segment, so that a pack without a footer can be salvaged. It has
//! no ids: they follow from the bytes, and the footer has them.

use crate::cursor::Cursor;
use crate::error::{Result, limit, malformed, newer};
use crate::limits::{CHUNK_BYTES_MAX, SEGMENT_BYTES_MAX, SEGMENT_ENTRIES_MAX};
use zstd::zstd_safe::CParameter;

/// Magic of a segment's frame.
pub const FRAME_MAGIC: &[u8; 4] = b"DVSG";
/// Bytes of a segment's frame.
pub const FRAME_BYTES: usize = 16;
/// Bytes of one entry in a segment's own table.
pub const TABLE_ENTRY_BYTES: usize = 4;

/// Fewest bytes that a segment has with its tag: a plaintext is never empty.
pub const SEALED_SEGMENT_BYTES_MIN: u32 = 17;
/// Most bytes that a segment has with its tag: header, the longest table, and raw bytes, which a
/// writer stores whenever compression does not shorten them.
pub const SEALED_SEGMENT_BYTES_MAX: u32 =
    8 + SEGMENT_ENTRIES_MAX * TABLE_ENTRY_BYTES as u32 + SEGMENT_BYTES_MAX + 16;

const CODEC_RAW: u8 = 0;
const CODEC_ZSTD: u8 = 1;
const TABLE_START: usize = 8;

/// What an entry of a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// A chunk of a disk or stream.
    Chunk = 1,
    /// A page of a disk map or stream map.
    Page = 2,
    /// A chunk told as pieces of others: [`crate::splice`].
    Splice = 3,
}

/// One entry: the id it is found by, its kind and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Chunk id or page id; of a splice the id of the chunk it stands for.
    pub id: [u8; 32],
    /// Chunk, page or splice.
    pub kind: EntryKind,
    /// Uncompressed bytes, 1 to 4 MiB; of a splice its own, not those of its chunk.
    pub bytes: u32,
}

/// Where to look for the same content at another phase: a hash of a place in a chunk that any
/// other chunk with the same bytes there, at whatever offset, would choose too
/// (spec/38-chunking.md). Advice: a wrong one costs a look, never a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// The entry of the segment.
    pub slot: u32,
    /// Hash in the high 42 bits, offset of its last byte in the chunk in the low 22.
    pub value: u64,
}

/// What a segment's own table says of an entry: all but the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryShape {
    /// Chunk, page or splice.
    pub kind: EntryKind,
    /// Uncompressed bytes, 1 to 4 MiB.
    pub bytes: u32,
}

impl Entry {
    /// The entry without its id.
    pub fn shape(&self) -> EntryShape {
        EntryShape { kind: self.kind, bytes: self.bytes }
    }
}

impl EntryShape {
    /// Appends the 4 bytes of kind and length.
    pub fn write(self, output: &mut Vec<u8>) {
        output.extend_from_slice(&((self.kind as u32) << 24 | self.bytes).to_le_bytes());
    }

    /// Reads 4 bytes.
    ///
    /// # Errors
    /// S-4 for an unknown kind or a length of zero or beyond the largest chunk.
    pub fn read(cursor: &mut Cursor<'_>) -> Result<EntryShape> {
        let word = cursor.u32()?;
        let kind = match word >> 24 {
            1 => EntryKind::Chunk,
            2 => EntryKind::Page,
            3 => EntryKind::Splice,
            other => return Err(malformed("S-4", format!("has an entry of kind {other}"))),
        };
        let bytes = word & 0x00ff_ffff;
        if bytes == 0 || bytes > CHUNK_BYTES_MAX {
            return Err(malformed("S-4", format!("has an entry of {bytes} bytes")));
        }
        Ok(EntryShape { kind, bytes })
    }
}

/// Checks the lengths of one segment's entries together and returns their sum.
///
/// # Errors
/// S-5 if there are none, too many, or more bytes than a segment may hold.
pub fn validate_lengths(lengths: impl ExactSizeIterator<Item = u32>) -> Result<u32> {
    let count = lengths.len() as u64;
    if count == 0 || count > u64::from(SEGMENT_ENTRIES_MAX) {
        let most = u64::from(SEGMENT_ENTRIES_MAX);
        return Err(limit("S-5", "the number of entries of a segment", most, count));
    }
    let total: u64 = lengths.map(u64::from).sum();
    if total > u64::from(SEGMENT_BYTES_MAX) {
        return Err(limit("S-5", "segment length", u64::from(SEGMENT_BYTES_MAX), total));
    }
    Ok(total as u32)
}

/// The zstd level that this project uses unless it is told otherwise.
pub const LEVEL_DEFAULT: i32 = 3;

/// Compresses segments; one for each worker, because the zstd context is reused.
pub struct SegmentEncoder {
    compressor: zstd::bulk::Compressor<'static>,
    /// `None` to store raw.
    level: Option<i32>,
}

impl SegmentEncoder {
    /// A compressor at `level` (of zstd), see [`LEVEL_DEFAULT`].
    ///
    /// # Errors
    /// S-8 if zstd cannot be set up.
    pub fn new(level: i32) -> Result<Self> {
        let cannot = |cause| malformed("S-8", format!("cannot start zstd: {cause}"));
        let compressor = zstd::bulk::Compressor::new(level).map_err(cannot)?;
        let mut encoder = SegmentEncoder { compressor, level: None };
        encoder.set_level(Some(level))?;
        Ok(encoder)
    }

    /// Another level for the segments that follow; `None` stores them raw.
    ///
    /// # Errors
    /// S-8 if zstd refuses it.
    pub fn set_level(&mut self, level: Option<i32>) -> Result<()> {
        if self.level == level {
            return Ok(());
        }
        if let Some(level) = level {
            let cannot = |cause| malformed("S-8", format!("cannot set up zstd: {cause}"));
            // Tables of twice the size: 0.5 % smaller for 8 % of zstd's time, on 4 MiB of a disk.
            // 0 stands for what zstd takes by itself.
            let (hash, chain) = if level == LEVEL_DEFAULT { (18, 17) } else { (0, 0) };
            self.compressor.set_compression_level(level).map_err(cannot)?;
            self.compressor.set_parameter(CParameter::HashLog(hash)).map_err(cannot)?;
            self.compressor.set_parameter(CParameter::ChainLog(chain)).map_err(cannot)?;
        }
        self.level = level;
        Ok(())
    }

    /// Encodes the plaintext of a segment whose entries' bytes stand in `data` in order.
    ///
    /// The payload is stored raw where zstd saves less than 1/32: opening it is then a copy.
    ///
    /// # Errors
    /// S-5 for entries out of bounds, S-8 if zstd fails.
    pub fn encode(&mut self, entries: &[Entry], data: &[u8], output: &mut Vec<u8>) -> Result<()> {
        let total = validate_lengths(entries.iter().map(|entry| entry.bytes))? as usize;
        if total != data.len() {
            return Err(malformed("S-6", "the entries do not add up to the data"));
        }
        output.clear();
        output.extend_from_slice(&[CODEC_ZSTD, 0, 0, 0]);
        output.extend_from_slice(&(entries.len() as u32).to_le_bytes());
        for entry in entries {
            entry.shape().write(output);
        }
        let start = output.len();
        if self.level.is_none() {
            output[0] = CODEC_RAW;
            output.extend_from_slice(data);
            return Ok(());
        }
        // Behind the table, without filling the room with zeros first.
        output.reserve(zstd::zstd_safe::compress_bound(total));
        let mut behind_table = std::io::Cursor::new(std::mem::take(output));
        behind_table.set_position(start as u64);
        let used = self.compressor.compress_to_buffer(data, &mut behind_table);
        *output = behind_table.into_inner();
        let used = used.map_err(|cause| malformed("S-8", format!("cannot compress: {cause}")))?;
        if used >= total - total / 32 {
            output[0] = CODEC_RAW;
            output.truncate(start);
            output.extend_from_slice(data);
        } else {
            output.truncate(start + used);
        }
        Ok(())
    }
}

/// Decompresses segments; one for each worker.
pub struct SegmentDecoder {
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl SegmentDecoder {
    /// A decompressor.
    ///
    /// # Errors
    /// S-8 if zstd cannot be set up.
    pub fn new() -> Result<Self> {
        let decompressor = zstd::bulk::Decompressor::new()
            .map_err(|cause| malformed("S-8", format!("cannot start zstd: {cause}")))?;
        Ok(SegmentDecoder { decompressor })
    }

    /// Decodes an opened segment: kind and length of its entries, and their bytes into `data`.
    ///
    /// # Errors
    /// S-3 header, S-4 and S-5 entries, S-6 lengths that do not add up, S-7 codec,
    /// S-8 payload that does not decompress to exactly the entries' length.
    pub fn decode(&mut self, plaintext: &[u8], data: &mut Vec<u8>) -> Result<Vec<EntryShape>> {
        let (codec, entries, payload) = decode_table(plaintext)?;
        let total = validate_lengths(entries.iter().map(|entry| entry.bytes))? as usize;
        data.clear();
        match codec {
            CODEC_RAW => {
                if payload.len() != total {
                    return Err(malformed("S-6", "the raw payload has another length"));
                }
                data.extend_from_slice(payload);
            }
            _ => {
                // The buffer has the authenticated length, so a bomb cannot make it grow.
                let frame = zstd::zstd_safe::find_frame_compressed_size(payload);
                if frame != Ok(payload.len()) {
                    return Err(malformed("S-8", "the payload is not one zstd frame"));
                }
                // zstd writes into the room it finds, so that need not be filled with zeros.
                data.reserve(total);
                let used = self
                    .decompressor
                    .decompress_to_buffer(payload, data)
                    .map_err(|cause| malformed("S-8", format!("cannot decompress: {cause}")))?;
                if used != total {
                    return Err(malformed("S-8", "the payload decompresses to another length"));
                }
            }
        }
        Ok(entries)
    }
}

fn decode_table(plaintext: &[u8]) -> Result<(u8, Vec<EntryShape>, &[u8])> {
    let mut cursor = Cursor::new(plaintext, "S-3");
    let codec = cursor.u8()?;
    if codec > CODEC_ZSTD {
        return Err(newer("S-7", format!("uses codec {codec}")));
    }
    cursor.zeros(3, "S-3")?;
    let count = cursor.u32()?;
    if count > SEGMENT_ENTRIES_MAX {
        let most = u64::from(SEGMENT_ENTRIES_MAX);
        return Err(limit("S-5", "the number of entries of a segment", most, u64::from(count)));
    }
    let mut table = Cursor::new(cursor.bytes(count as usize * TABLE_ENTRY_BYTES)?, "S-3");
    let mut entries = Vec::with_capacity(count as usize);
    for _ in 0..count {
        entries.push(EntryShape::read(&mut table)?);
    }
    debug_assert_eq!(
        TABLE_START + entries.len() * TABLE_ENTRY_BYTES + cursor.rest().len(),
        plaintext.len()
    );
    Ok((codec, entries, cursor.rest()))
}

/// Writes a segment's frame.
pub fn write_frame(ordinal: u32, sealed_bytes: u32, output: &mut Vec<u8>) {
    output.extend_from_slice(FRAME_MAGIC);
    output.extend_from_slice(&ordinal.to_le_bytes());
    output.extend_from_slice(&sealed_bytes.to_le_bytes());
    output.extend_from_slice(&[0; 4]);
}

/// Reads a segment's frame: ordinal and sealed bytes.
///
/// # Errors
/// S-1 if it is no frame.
pub fn read_frame(frame: &[u8]) -> Result<(u32, u32)> {
    let mut cursor = Cursor::new(frame, "S-1");
    if cursor.bytes(4)? != FRAME_MAGIC {
        return Err(malformed("S-1", "a segment's frame has the wrong magic"));
    }
    let ordinal = cursor.u32()?;
    let sealed_bytes = cursor.u32()?;
    cursor.zeros(4, "S-1")?;
    Ok((ordinal, sealed_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(bytes: u32) -> Entry {
        Entry { id: [bytes as u8; 32], kind: EntryKind::Chunk, bytes }
    }

    #[test]
    fn compressible_and_random_data_come_back() {
        let mut random = vec![0_u8; 5000];
        blake3::Hasher::new().finalize_xof().fill(&mut random);
        for (data, codec) in [(vec![7_u8; 5000], CODEC_ZSTD), (random, CODEC_RAW)] {
            let entries = [entry(4096), entry(904)];
            let mut plaintext = Vec::new();
            SegmentEncoder::new(3).unwrap().encode(&entries, &data, &mut plaintext).unwrap();
            assert_eq!(plaintext[0], codec);
            let mut back = Vec::new();
            let found = SegmentDecoder::new().unwrap().decode(&plaintext, &mut back).unwrap();
            assert_eq!(found, entries.map(|entry| entry.shape()));
            assert!(plaintext.len() <= 8 + 2 * 4 + data.len());
            assert_eq!(back, data);
        }
    }

    #[test]
    fn a_payload_of_another_length_is_refused() {
        let data = vec![7_u8; 5000];
        let mut plaintext = Vec::new();
        SegmentEncoder::new(3).unwrap().encode(&[entry(5000)], &data, &mut plaintext).unwrap();
        for bytes in [4999_u32, 5001] {
            let mut changed = plaintext.clone();
            changed[8..12].copy_from_slice(&(1 << 24 | bytes).to_le_bytes());
            let error = SegmentDecoder::new().unwrap().decode(&changed, &mut Vec::new());
            assert_eq!(error.unwrap_err().rule, "S-8");
        }
    }

    #[test]
    fn every_prefix_is_refused() {
        let data = vec![7_u8; 300];
        let mut plaintext = Vec::new();
        SegmentEncoder::new(3).unwrap().encode(&[entry(300)], &data, &mut plaintext).unwrap();
        for length in 0..plaintext.len() {
            let result =
                SegmentDecoder::new().unwrap().decode(&plaintext[..length], &mut Vec::new());
            assert!(result.is_err(), "length {length}");
        }
    }
}

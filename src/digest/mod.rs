//! The digest of a whole disk: BLAKE3 from the map without reading a chunk, others from their
//! record or from the data.
//!
//! Invariant: the value is exactly what `b3sum`, `sha256sum`, `sha1sum` or `md5sum` print for the
//! restored disk. Zeros have values that depend on the offset, so they are hashed, on all cores;
//! the result is kept in the index.

use crate::backup::{DigestKind, Digests};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::map_reader::MapReader;
use crate::repository::objects::refused;
use crate::restore::Part;
use crate::restore::fetch::Fetcher;
use crate::restore::sequential::{Output, read_part};
use diskvault_format::digest::{Chaining, chaining_value_of_zeros, merge, merge_root};
use diskvault_format::id::PageId;
use diskvault_format::limits::{INNER_SLOTS, LEAF_SLOTS};
use diskvault_format::manifest::DiskRecord;
use diskvault_format::map::{InnerSlot, LeafSlot, MapShape, map_root};
use rayon::ThreadPool;
use rayon::prelude::*;

/// Zeros hashed by one task: large enough that the split costs nothing.
const ZERO_TASK_BYTES: u64 = 8 << 20;

/// What a digest will cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// It is recorded or cached.
    Nothing,
    /// So many zeros have to be hashed: about 10 GB/s on each core.
    Zeros(u64),
    /// So many bytes of data have to be read and hashed on one core.
    Data(u64),
}

/// Computes digests of parts.
pub struct Digester<'a> {
    /// Reads chunks, for digests that need the data.
    pub fetcher: Fetcher<'a>,
    /// Hashes zeros.
    pub pool: &'a ThreadPool,
}

impl Digester<'_> {
    fn note_key(disk: &DiskRecord) -> String {
        format!("digest/blake3/{}", disk.root)
    }

    fn cached(&self, disk: &DiskRecord) -> Result<Option<[u8; 32]>> {
        if disk.digest.is_some() {
            return Ok(disk.digest);
        }
        let note = self.fetcher.locator.index().get_note(&Self::note_key(disk))?;
        Ok(note.and_then(|bytes| bytes.try_into().ok()))
    }

    /// What the BLAKE3 (`None`) or another digest of a part will cost.
    ///
    /// # Errors
    /// `Damage` if the map cannot be read.
    pub fn cost(&self, part: Part<'_>, kind: Option<DigestKind>) -> Result<Cost> {
        match (part, kind) {
            (_, Some(kind)) => match recorded(part, kind) {
                Some(_) => Ok(Cost::Nothing),
                None => Ok(Cost::Data(part.bytes())),
            },
            (Part::Stream(_), None) => Ok(Cost::Nothing),
            (Part::Disk(disk), None) => {
                if self.cached(disk)?.is_some() {
                    return Ok(Cost::Nothing);
                }
                let mut data = 0;
                let (reader, shape) = (self.reader(), shape_of(disk)?);
                reader.walk_disk(shape, disk.top, &mut |number, leaf| {
                    self.fetcher.monitor.check_cancelled()?;
                    for (slot, content) in leaf.slots.iter().enumerate() {
                        if matches!(content, LeafSlot::Chunk { .. }) {
                            let slot = number * LEAF_SLOTS as u64 + slot as u64;
                            data += u64::from(shape.bytes_in_slot(slot));
                        }
                    }
                    Ok(())
                })?;
                Ok(Cost::Zeros(disk.size - data))
            }
        }
    }

    fn reader(&self) -> MapReader<'_> {
        MapReader::new(self.fetcher.repository, self.fetcher.locator)
    }

    /// Computes the digest.
    ///
    /// # Errors
    /// `Damage` for what does not verify, `Cancelled`.
    pub fn compute(&self, part: Part<'_>, kind: Option<DigestKind>) -> Result<Vec<u8>> {
        match (part, kind) {
            (Part::Stream(stream), None) => Ok(stream.digest.to_vec()),
            (Part::Disk(disk), None) => self.blake3_of(disk).map(|digest| digest.to_vec()),
            (_, Some(kind)) => match recorded(part, kind) {
                Some(value) => Ok(value),
                None => self.hash_data(part, kind),
            },
        }
    }

    fn hash_data(&self, part: Part<'_>, kind: DigestKind) -> Result<Vec<u8>> {
        let monitor = self.fetcher.monitor;
        monitor.start(&format!("{} of {}", kind.name(), part.name()), Some(part.bytes()));
        let mut output = HashOutput(Digests::new(false, &[kind]));
        read_part(&self.fetcher, part, &mut output)?;
        monitor.finish();
        let values = output.0.finish().others;
        values
            .into_iter()
            .next()
            .map(|(_, value)| value)
            .ok_or_else(|| Error::new(ErrorKind::Failed, format!("cannot compute {}", kind.name())))
    }

    fn blake3_of(&self, disk: &DiskRecord) -> Result<[u8; 32]> {
        if let Some(digest) = self.cached(disk)? {
            return Ok(digest);
        }
        let keys = self.fetcher.repository.keys();
        if map_root(keys, disk.size, &disk.chunking, disk.top) != disk.root {
            let text = "cannot use the disk's map: its root does not fit (rule F-9)";
            return Err(Error::new(ErrorKind::Damage, text));
        }
        let walk =
            Walk { reader: self.reader(), shape: shape_of(disk)?, monitor: self.fetcher.monitor };
        let digest = self.pool.install(|| walk.root(disk.top))?;
        // Only the next call would be faster.
        let index = self.fetcher.locator.index();
        if let Err(error) =
            index.set_note(&Self::note_key(disk), &digest).and_then(|()| index.flush())
        {
            self.fetcher.monitor.warn(&format!("cannot keep the digest: {}", error.full_text()));
        }
        Ok(digest)
    }
}

fn shape_of(disk: &DiskRecord) -> Result<MapShape> {
    let Some(chunk_bytes) = disk.chunking.grid() else {
        let text = "cannot use the disk's record: its digest is missing (rule F-10)";
        return Err(Error::new(ErrorKind::Damage, text));
    };
    MapShape::new(disk.size, chunk_bytes).map_err(|cause| refused("the disk's map", cause))
}

fn recorded(part: Part<'_>, kind: DigestKind) -> Option<Vec<u8>> {
    let digests = match part {
        Part::Disk(disk) => &disk.digests,
        Part::Stream(stream) => &stream.digests,
    };
    digests.iter().find(|(name, _)| name == kind.name()).map(|(_, value)| value.clone())
}

struct HashOutput(Digests);

impl Output for HashOutput {
    fn data(&mut self, data: &[u8]) -> Result<()> {
        self.0.update(data);
        Ok(())
    }

    fn zeros(&mut self, bytes: u64) -> Result<()> {
        self.0.update_zeros(bytes);
        Ok(())
    }
}

/// One walk over a map of more than one chunk, in parallel.
struct Walk<'a> {
    reader: MapReader<'a>,
    shape: MapShape,
    monitor: &'a dyn Monitor,
}

impl Walk<'_> {
    fn root(&self, top: Option<PageId>) -> Result<[u8; 32]> {
        let level = self.shape.depth().saturating_sub(1);
        let values = self.children(level, 0, top)?;
        merge_root(&values).ok_or_else(|| too_few("the top page"))
    }

    /// Values of the used slots of page `number` of `level`; `None` is a page of zeros.
    fn children(&self, level: u32, number: u64, page: Option<PageId>) -> Result<Vec<Chaining>> {
        self.monitor.check_cancelled()?;
        if level == 0 {
            return self.leaf_values(number, page);
        }
        let used = self.shape.used_children(level, number);
        let inner = match page {
            Some(id) => Some(self.reader.decode_inner(id, self.shape, level, number)?),
            None => None,
        };
        let value = |slot: usize| -> Result<Chaining> {
            let below = number * INNER_SLOTS as u64 + slot as u64;
            match inner.as_ref().map(|inner| inner.slots[slot]) {
                Some(InnerSlot::Child { chaining: Some(value), .. }) => Ok(value),
                Some(InnerSlot::Child { page, chaining: None }) => {
                    let values = self.children(level - 1, below, Some(page))?;
                    merge(&values).ok_or_else(|| too_few("a map page"))
                }
                _ => {
                    let leaves = MapShape::leaves_per_page(level - 1);
                    self.zeros(below * leaves * LEAF_SLOTS as u64, leaves * LEAF_SLOTS as u64)
                }
            }
        };
        (0..used).into_par_iter().map(value).collect()
    }

    fn leaf_values(&self, number: u64, page: Option<PageId>) -> Result<Vec<Chaining>> {
        let first = number * LEAF_SLOTS as u64;
        let leaf = match page {
            Some(id) => Some(self.reader.decode_leaf(id, self.shape, number)?),
            None => None,
        };
        let value = |slot: usize| match leaf.as_ref().map(|leaf| leaf.slots[slot]) {
            Some(LeafSlot::Chunk { chaining, .. }) => Ok(chaining),
            _ => self.zeros(first + slot as u64, 1),
        };
        (0..self.shape.used_slots(number)).map(value).collect()
    }

    /// The value of `slots` zero chunks from `first`, cut at the end of the disk.
    fn zeros(&self, first: u64, slots: u64) -> Result<Chaining> {
        let chunk = u64::from(self.shape.chunk_bytes());
        let start = first * chunk;
        let end = self.shape.size().min((first + slots).saturating_mul(chunk));
        self.zero_range(start, end - start)
    }

    fn zero_range(&self, start: u64, bytes: u64) -> Result<Chaining> {
        if bytes <= ZERO_TASK_BYTES {
            self.monitor.check_cancelled()?;
            let value = chaining_value_of_zeros(start, bytes);
            self.monitor.advance(bytes);
            return Ok(value);
        }
        // The left side is the largest power of two below the whole, as in BLAKE3 itself.
        let left = bytes.div_ceil(2).next_power_of_two();
        let (a, b) = rayon::join(
            || self.zero_range(start, left),
            || self.zero_range(start + left, bytes - left),
        );
        merge(&[a?, b?]).ok_or_else(|| too_few("zeros"))
    }
}

fn too_few(what: &str) -> Error {
    Error::new(ErrorKind::Damage, format!("cannot compute the digest: {what} has no slots"))
}

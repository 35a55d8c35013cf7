//! Segments that are asked for again and again: found through open packs, decoded, and a bounded
//! number of them kept.
//!
//! Invariant: a segment in the cache was authenticated, and has the table that its footer lists.

use super::pack_reader::{OpenPack, PackCache};
use super::{Repository, lock};
use crate::error::Result;
use crate::repository::objects::refused;
use crate::storage::Storage;
use diskvault_format::crypto::Keys;
use diskvault_format::id::PackId;
use diskvault_format::segment::{EntryShape, SegmentDecoder};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// A segment's entries and their bytes.
pub struct DecodedSegment {
    /// Kind and length of each entry, and where its bytes start.
    entries: Vec<(EntryShape, usize)>,
    data: Vec<u8>,
}

impl DecodedSegment {
    /// The entry in `slot`; `None` if there are not so many.
    pub fn entry(&self, slot: u32) -> Option<(EntryShape, &[u8])> {
        let (shape, start) = self.entries.get(slot as usize)?;
        let bytes = self.data.get(*start..*start + shape.bytes as usize)?;
        Some((*shape, bytes))
    }
}

/// A segment that is there or on its way: who comes second waits for the first.
#[derive(Default)]
struct Cell(Mutex<Option<Arc<DecodedSegment>>>);

/// The segments used last.
pub struct SegmentCache {
    most: usize,
    /// The one used last is at the back.
    kept: Mutex<VecDeque<(PackId, u32, Arc<Cell>)>>,
}

impl SegmentCache {
    /// A cache of at most so many segments.
    pub fn new(most: usize) -> SegmentCache {
        SegmentCache { most, kept: Mutex::default() }
    }

    /// The segment, from the cache or the storage.
    ///
    /// # Errors
    /// As the storage, or `Damage`.
    pub fn get(
        &self,
        storage: &dyn Storage,
        pack: &OpenPack,
        ordinal: u32,
    ) -> Result<Arc<DecodedSegment>> {
        let cell = self.cell(pack.id, ordinal);
        let mut segment = lock(&cell.0);
        if let Some(segment) = &*segment {
            return Ok(segment.clone());
        }
        let decoded = Arc::new(decode(storage, pack, ordinal)?);
        *segment = Some(decoded.clone());
        Ok(decoded)
    }

    fn cell(&self, pack: PackId, ordinal: u32) -> Arc<Cell> {
        let mut kept = lock(&self.kept);
        let is_it = |kept: &(PackId, u32, Arc<Cell>)| kept.0 == pack && kept.1 == ordinal;
        let place = kept.iter().position(is_it);
        let cell = place.and_then(|place| kept.remove(place)).map(|(_, _, cell)| cell);
        let cell = cell.unwrap_or_default();
        if kept.len() >= self.most {
            kept.pop_front();
        }
        kept.push_back((pack, ordinal, cell.clone()));
        cell
    }
}

/// The packs of a repository and the segments of them that were used last, for several threads
/// that outlive nobody's reference to the repository.
pub struct StoredSegments {
    storage: Arc<dyn Storage>,
    keys: Arc<Keys>,
    packs: Arc<PackCache>,
    segments: SegmentCache,
}

impl StoredSegments {
    /// Keeps at most `most` segments; footers are kept in `packs`.
    pub fn new(repository: &Repository, packs: &Arc<PackCache>, most: usize) -> StoredSegments {
        StoredSegments {
            storage: repository.storage().clone(),
            keys: repository.keys().clone(),
            packs: packs.clone(),
            segments: SegmentCache::new(most),
        }
    }

    /// The keys that open them.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The open pack.
    ///
    /// # Errors
    /// As [`super::pack_reader::open_pack`].
    pub fn pack(&self, id: PackId) -> Result<Arc<OpenPack>> {
        self.packs.get(self.storage.as_ref(), &self.keys, id)
    }

    /// A segment of an open pack.
    ///
    /// # Errors
    /// As the storage, or `Damage`.
    pub fn segment(&self, pack: &OpenPack, ordinal: u32) -> Result<Arc<DecodedSegment>> {
        self.segments.get(self.storage.as_ref(), pack, ordinal)
    }
}

fn decode(storage: &dyn Storage, pack: &OpenPack, ordinal: u32) -> Result<DecodedSegment> {
    let mut decoder = SegmentDecoder::new().map_err(|cause| refused("a segment", cause))?;
    let mut data = Vec::new();
    let mut start = 0;
    let entries = pack.read_segment(storage, ordinal, &mut decoder, &mut data)?;
    let entries = entries
        .into_iter()
        .map(|shape| {
            let from = start;
            start += shape.bytes as usize;
            (shape, from)
        })
        .collect();
    Ok(DecodedSegment { entries, data })
}

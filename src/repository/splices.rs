//! Chunks that are told as pieces of others: reading what they consist of, and whether all of it is
//! there.
//!
//! Invariant: a splice counts as present only if every chunk that it takes a piece of is present
//! by its bytes; one whose pieces went is as absent as one that was never stored.

use super::Repository;
use super::entries::{Place, places_of, prefix};
use super::objects::refused;
use super::pack_reader::PackCache;
use super::segment_cache::StoredSegments;
use crate::error::{Error, ErrorKind, Result};
use crate::index::ChunkIndex;
use diskvault_format::id::ChunkId;
use diskvault_format::segment::EntryKind;
use diskvault_format::splice::Splice;
use std::sync::Arc;

/// Decoded segments with splices kept in memory: 256 KiB each as this program writes them. One
/// holds some 3,000 splices, in the order of the disk.
const SEGMENTS_KEPT: usize = 8;

/// Says whether what is at a place under an id counts.
pub type Counts<'a> = dyn Fn(&ChunkId, &Place) -> bool + 'a;

/// Reads splices of one repository, from several threads.
pub struct SpliceReader {
    index: Arc<ChunkIndex>,
    stored: StoredSegments,
}

impl SpliceReader {
    /// A reader that finds chunks through `index` and keeps footers in `packs`.
    pub fn new(
        repository: &Repository,
        index: &Arc<ChunkIndex>,
        packs: &Arc<PackCache>,
    ) -> SpliceReader {
        let stored = StoredSegments::new(repository, packs, SEGMENTS_KEPT);
        SpliceReader { index: index.clone(), stored }
    }

    /// What the splice at a place consists of. Whether its pieces make up the chunk is for who
    /// assembles them.
    ///
    /// # Errors
    /// `Damage` if there is no such splice, or the storage's error.
    pub fn read(&self, id: ChunkId, place: &Place) -> Result<Splice> {
        let pack = self.stored.pack(place.pack)?;
        let listed = pack.entry(place.segment, place.slot);
        if listed.is_none_or(|entry| entry.id != id.0 || entry.kind != EntryKind::Splice) {
            let text = format!("cannot find chunk {id} in pack {}: it is not there", place.pack);
            return Err(Error::new(ErrorKind::Damage, text));
        }
        let segment = self.stored.segment(&pack, place.segment)?;
        let bytes = segment.entry(place.slot).map_or(&[][..], |(_, bytes)| bytes);
        Splice::decode(bytes).map_err(|cause| refused(format!("chunk {id}"), cause))
    }

    /// True if a chunk or page is there, by its bytes or as pieces of such. `counts` is asked of
    /// each id and a pack that holds it.
    ///
    /// # Errors
    /// What the index or the storage say. A splice that is damaged or gone is none.
    pub fn is_present(&self, id: ChunkId, counts: &Counts<'_>) -> Result<bool> {
        let mut splices = Vec::new();
        let mut is_stored = false;
        self.index.search(&prefix(&id.0), &mut |location| {
            let place = Place::from(location);
            if !counts(&id, &place) {
                return true;
            }
            if place.is_splice {
                splices.push(place);
                return true;
            }
            is_stored = true;
            false
        })?;
        if is_stored {
            return Ok(true);
        }
        for place in splices {
            match self.read(id, &place) {
                Ok(splice) if self.has_all_pieces(&splice, counts)? => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind().is_finding() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// True if a chunk is stored as a splice of which all pieces are there. One that no point needs
    /// may have lost some to a prune.
    ///
    /// # Errors
    /// As [`SpliceReader::is_present`].
    pub fn has_whole_splice(&self, id: ChunkId) -> Result<bool> {
        for place in places_of(&self.index, &id.0)?.iter().filter(|place| place.is_splice) {
            match self.read(id, place) {
                Ok(splice) if !self.has_all_pieces(&splice, &|_, _| true)? => {}
                Err(error) if !error.kind().is_finding() => return Err(error),
                _ => return Ok(true),
            }
        }
        Ok(false)
    }

    fn has_all_pieces(&self, splice: &Splice, counts: &Counts<'_>) -> Result<bool> {
        for piece in splice.pieces() {
            let mut is_held = false;
            self.index.search(&prefix(&piece.chunk.0), &mut |location| {
                let place = Place::from(location);
                is_held = !place.is_splice && counts(&piece.chunk, &place);
                !is_held
            })?;
            if !is_held {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

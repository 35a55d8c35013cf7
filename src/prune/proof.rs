//! Whether a pack really holds what its footer says, before another that holds the same goes.
//!
//! Whoever may add packs and has the keys can make a footer that names chunks of others, with other
//! bytes behind it. Nothing is lost by that as long as nobody believes it.
//!
//! Invariant: what is said to be held was read and has its id, or this run has stored it itself.

use crate::error::Result;
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::entries::{Place, places_of};
use crate::repository::locate::Locator;
use crate::repository::segment_cache::SegmentCache;
use diskvault_format::id::{ChunkId, PackId, PageId};
use diskvault_format::segment::EntryKind;
use diskvault_format::splice::Splice;
use std::collections::HashSet;

/// Decoded segments that are kept: 4 MiB each. Maps meet chunks about in the order of the segments.
const SEGMENTS_KEPT: usize = 8;

/// Reads what has to be believed.
pub(super) struct Proof<'a> {
    repository: &'a Repository,
    locator: &'a Locator,
    /// Packs that this run has made of verified bytes.
    copies: &'a HashSet<PackId>,
    segments: SegmentCache,
    monitor: &'a dyn Monitor,
}

impl<'a> Proof<'a> {
    /// Believes what is in `copies`.
    pub fn new(
        repository: &'a Repository,
        locator: &'a Locator,
        copies: &'a HashSet<PackId>,
        monitor: &'a dyn Monitor,
    ) -> Proof<'a> {
        let segments = SegmentCache::new(SEGMENTS_KEPT);
        Proof { repository, locator, copies, segments, monitor }
    }

    /// True if this run has made the pack.
    pub fn is_copy(&self, pack: PackId) -> bool {
        self.copies.contains(&pack)
    }

    /// True if a place really has the bytes of a chunk or page of this id. A pack that lies is known
    /// as damaged afterwards, and told of.
    ///
    /// # Errors
    /// What the storage says.
    pub fn holds(&self, id: ChunkId, kind: EntryKind, place: &Place) -> Result<bool> {
        if self.is_copy(place.pack) {
            return Ok(true);
        }
        Ok(self.bytes(id, kind, place)?.is_some())
    }

    /// True if what is at a place is a splice of pieces that make up the chunk, each of them by its
    /// bytes in a pack that counts.
    ///
    /// # Errors
    /// What the index or the storage say.
    pub fn is_spliced(
        &self,
        id: ChunkId,
        place: &Place,
        splice: &Splice,
        counts: &dyn Fn(&Place) -> bool,
    ) -> Result<bool> {
        let mut chunk = Vec::with_capacity(splice.chunk_bytes() as usize);
        for piece in splice.pieces() {
            let places = places_of(self.locator.index(), &piece.chunk.0)?;
            let mut found = None;
            for place in places.iter().filter(|place| !place.is_splice && counts(place)) {
                found = self.bytes(piece.chunk, EntryKind::Chunk, place)?;
                if found.is_some() {
                    break;
                }
            }
            match found.as_deref().map(|bytes| piece.of(bytes)) {
                Some(Ok(bytes)) => chunk.extend_from_slice(bytes),
                _ => return Ok(false),
            }
        }
        let is_it = self.repository.keys().chunk_id(&chunk) == id;
        if !is_it {
            self.refuse(id, place.pack);
        }
        Ok(is_it)
    }

    /// The bytes at a place, if they have the id.
    fn bytes(&self, id: ChunkId, kind: EntryKind, place: &Place) -> Result<Option<Vec<u8>>> {
        if self.locator.is_met_damaged(place.pack) {
            return Ok(None);
        }
        let read = || -> Result<Option<Vec<u8>>> {
            let Some(found) = self.locator.found_at(self.repository, &id.0, place)? else {
                return Ok(None);
            };
            let storage = self.repository.storage().as_ref();
            let segment = self.segments.get(storage, &found.pack, found.segment)?;
            Ok(segment.entry(found.slot).map(|(_, bytes)| bytes.to_vec()))
        };
        let keys = self.repository.keys();
        let fits = |bytes: &Vec<u8>| match kind {
            EntryKind::Page => keys.page_id(bytes) == PageId(id.0),
            _ => keys.chunk_id(bytes) == id,
        };
        match read() {
            Ok(found) => {
                let found = found.filter(fits);
                if found.is_none() {
                    self.refuse(id, place.pack);
                }
                Ok(found)
            }
            Err(error) if error.kind().is_finding() => {
                self.locator.met_damaged(place.pack);
                self.monitor.warn(&error.full_text());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn refuse(&self, id: ChunkId, pack: PackId) {
        self.locator.met_damaged(pack);
        self.monitor.warn(&format!(
            "pack {pack} does not hold chunk {id}, which its footer names (rule S-9): no other pack \
             goes on its account"
        ));
    }
}

//! Walking maps: pages are found through the index, read by whole segments and verified by id.
//!
//! Invariant: every page that is handed out hashed to the id by which it was asked for, and lies
//! at the level and within the length its parent says.

use super::Repository;
use super::locate::Locator;
use super::objects::refused;
use super::segment_cache::SegmentCache;
use crate::error::{Error, ErrorKind, Result};
use diskvault_format::digest::Chaining;
use diskvault_format::id::PageId;
use diskvault_format::limits::INNER_SLOTS;
use diskvault_format::manifest::StreamReference;
use diskvault_format::map::{Inner, InnerSlot, Leaf, MapShape};
use diskvault_format::stream_map::{StreamEntry, StreamPage};
use std::ops::Range;
use std::sync::Arc;

/// Decoded segments of map packs kept in memory: 256 KiB each as this program writes them. Such
/// a segment holds the leaves of 128 MiB of disk on the 32 KiB grid, so a walk in order reads
/// each segment once.
const SEGMENTS_KEPT: usize = 32;

/// Reads pages and walks maps.
pub struct MapReader<'a> {
    repository: &'a Repository,
    locator: &'a Locator,
    segments: Arc<SegmentCache>,
}

impl<'a> MapReader<'a> {
    /// A reader with an empty cache.
    pub fn new(repository: &'a Repository, locator: &'a Locator) -> MapReader<'a> {
        MapReader::with_cache(repository, locator, MapReader::new_cache())
    }

    /// A reader with a cache that outlives it.
    pub fn with_cache(
        repository: &'a Repository,
        locator: &'a Locator,
        segments: Arc<SegmentCache>,
    ) -> MapReader<'a> {
        MapReader { repository, locator, segments }
    }

    /// A cache for [`MapReader::with_cache`], of 8 MiB of map pages.
    pub fn new_cache() -> Arc<SegmentCache> {
        Arc::new(SegmentCache::new(SEGMENTS_KEPT))
    }

    /// The repository it reads from.
    pub fn repository(&self) -> &'a Repository {
        self.repository
    }

    /// Where it looks things up.
    pub fn locator(&self) -> &'a Locator {
        self.locator
    }

    /// The verified bytes of a page.
    ///
    /// # Errors
    /// `Damage` if no pack holds it or its bytes do not fit its id.
    pub fn page(&self, id: PageId) -> Result<Vec<u8>> {
        match self.find_page(id) {
            Err(error)
                if error.kind().is_finding() && self.locator.look_again(self.repository)? =>
            {
                self.find_page(id)
            }
            found => found,
        }
    }

    fn find_page(&self, id: PageId) -> Result<Vec<u8>> {
        let mut damaged = Vec::new();
        let mut first_error = None;
        loop {
            let found = match self.locator.find_except(self.repository, &id.0, &damaged) {
                Ok(Some(found)) => found,
                Ok(None) => {
                    let text = format!("cannot find map page {id}: no pack holds it");
                    let missing = || Error::new(ErrorKind::Damage, text);
                    return Err(first_error.unwrap_or_else(missing));
                }
                Err(error) => return Err(first_error.unwrap_or(error)),
            };
            match self.page_at(id, &found) {
                // Another pack may hold it whole.
                Err(error) if matches!(error.kind(), ErrorKind::Damage | ErrorKind::NotFound) => {
                    damaged.push((found.pack.id, found.segment));
                    self.locator.met_damaged(found.pack.id);
                    first_error.get_or_insert(error);
                }
                result => return result,
            }
        }
    }

    fn page_at(&self, id: PageId, found: &super::locate::Found) -> Result<Vec<u8>> {
        let storage = self.repository.storage().as_ref();
        let segment = self.segments.get(storage, &found.pack, found.segment)?;
        let bytes = segment.entry(found.slot).map(|(_, bytes)| bytes);
        let Some(bytes) = bytes else {
            let text = format!("cannot read map page {id}: its segment has another table");
            return Err(Error::new(ErrorKind::Damage, text));
        };
        if self.repository.keys().page_id(bytes) != id {
            let text = format!(
                "cannot read map page {id} in pack {}: the bytes have another id (rule M-7)",
                found.pack.id
            );
            return Err(Error::new(ErrorKind::Damage, text));
        }
        Ok(bytes.to_vec())
    }

    /// Decodes page `id` as leaf number `number`.
    ///
    /// # Errors
    /// `Damage`.
    pub fn decode_leaf(&self, id: PageId, shape: MapShape, number: u64) -> Result<Leaf> {
        Leaf::decode(&self.page(id)?, shape.used_slots(number))
            .map_err(|cause| refused(format!("map page {id}"), cause))
    }

    /// Decodes page `id` as inner page number `number` of `level`.
    ///
    /// # Errors
    /// `Damage`.
    pub fn decode_inner(
        &self,
        id: PageId,
        shape: MapShape,
        level: u32,
        number: u64,
    ) -> Result<Inner> {
        Inner::decode(&self.page(id)?, level, shape.used_children(level, number))
            .map_err(|cause| refused(format!("map page {id}"), cause))
    }

    /// Calls `each` with the number and slots of every present leaf, in order.
    ///
    /// # Errors
    /// `Damage`, or what `each` says.
    pub fn walk_disk(
        &self,
        shape: MapShape,
        top: Option<PageId>,
        each: &mut dyn FnMut(u64, &Leaf) -> Result<()>,
    ) -> Result<()> {
        let Some(top) = top else { return Ok(()) };
        match shape.depth() {
            0 => Ok(()),
            depth => self.walk_level(shape, top, depth - 1, 0, each),
        }
    }

    /// Depth is at most 7, so recursion is bounded.
    fn walk_level(
        &self,
        shape: MapShape,
        id: PageId,
        level: u32,
        number: u64,
        each: &mut dyn FnMut(u64, &Leaf) -> Result<()>,
    ) -> Result<()> {
        if level == 0 {
            return each(number, &self.decode_leaf(id, shape, number)?);
        }
        let inner = self.decode_inner(id, shape, level, number)?;
        for (slot, child) in inner.slots.iter().enumerate() {
            if let InnerSlot::Child { page, .. } = child {
                let below = number * INNER_SLOTS as u64 + slot as u64;
                self.walk_level(shape, *page, level - 1, below, each)?;
            }
        }
        Ok(())
    }

    /// Calls `each` with the largest pages of a map all of whose leaves are among `leaves`, in order:
    /// level and number, id, and chaining value. `shape` is that of the disk with the map; `wanted`
    /// that of the disk whose leaves they shall be, which begins as the other does.
    ///
    /// # Errors
    /// `Damage`, or what `each` says.
    pub fn walk_whole_pages(
        &self,
        (shape, wanted): (MapShape, MapShape),
        top: Option<PageId>,
        leaves: Range<u64>,
        each: &mut EachPage<'_>,
    ) -> Result<()> {
        let (Some(page), Some(level)) = (top, shape.depth().checked_sub(1)) else { return Ok(()) };
        let walk = WholePages { reader: self, shape, wanted, leaves };
        let chaining = match level {
            0 => self.decode_leaf(page, shape, 0)?.chaining(shape.used_slots(0)),
            _ => self.decode_inner(page, shape, level, 0)?.chaining(shape.used_children(level, 0)),
        };
        walk.below((level, 0), page, chaining, each)
    }

    /// Calls `each` with offset and entry of everything in a stream map, in order.
    ///
    /// # Errors
    /// `Damage`, or what `each` says.
    pub fn walk_stream(
        &self,
        bytes: u64,
        top: Option<PageId>,
        each: &mut dyn FnMut(u64, StreamEntry) -> Result<()>,
    ) -> Result<()> {
        match top {
            None => Ok(()),
            Some(top) => self.walk_stream_page(StreamPlace { bytes, level: None }, top, 0, each),
        }
    }

    /// Levels only go down, from at most 20 (T-1), so recursion is bounded.
    fn walk_stream_page(
        &self,
        place: StreamPlace,
        id: PageId,
        start: u64,
        each: &mut dyn FnMut(u64, StreamEntry) -> Result<()>,
    ) -> Result<()> {
        let mut offset = start;
        match self.decode_stream_page(id, place)? {
            StreamPage::Leaf(entries) => {
                for entry in entries {
                    each(offset, entry)?;
                    offset += entry.bytes();
                }
            }
            StreamPage::Inner(level, entries) => {
                for (bytes, child) in entries {
                    let level = Some(level - 1);
                    self.walk_stream_page(StreamPlace { bytes, level }, child, offset, each)?;
                    offset += bytes;
                }
            }
        }
        Ok(())
    }

    /// Decodes page `id` as the one at that place of a stream map.
    ///
    /// # Errors
    /// `Damage`.
    pub fn decode_stream_page(&self, id: PageId, place: StreamPlace) -> Result<StreamPage> {
        let page = StreamPage::decode(&self.page(id)?, place.bytes)
            .map_err(|cause| refused(format!("map page {id}"), cause))?;
        if place.level.is_some_and(|level| level != stream_level(&page)) {
            let text = format!(
                "cannot open map page {id}: its level is not one below its parent's (rule T-6)"
            );
            return Err(Error::new(ErrorKind::Damage, text));
        }
        Ok(page)
    }

    /// Checks a stream's root against its size, chunking and top page.
    ///
    /// # Errors
    /// `Damage` (rule F-9).
    pub fn verify_stream_root(&self, stream: &StreamReference) -> Result<()> {
        let keys = self.repository.keys();
        let root =
            diskvault_format::map::map_root(keys, stream.bytes, &stream.chunking, stream.top);
        if root == stream.root {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Damage, "cannot use the map: its root does not fit (rule F-9)"))
    }
}

/// Is told level and number, id and chaining value of a page.
pub type EachPage<'a> = dyn FnMut((u32, u64), PageId, Option<Chaining>) -> Result<()> + 'a;

struct WholePages<'a, 'r> {
    reader: &'a MapReader<'r>,
    shape: MapShape,
    wanted: MapShape,
    leaves: Range<u64>,
}

impl WholePages<'_, '_> {
    /// Depth is at most 7, so recursion is bounded.
    fn below(
        &self,
        (level, number): (u32, u64),
        page: PageId,
        chaining: Option<Chaining>,
        each: &mut EachPage<'_>,
    ) -> Result<()> {
        let covers = MapShape::leaves_per_page(level);
        let first = number * covers;
        // What a page of the larger disk covers beyond the smaller one is not in this page.
        let end = first.saturating_add(covers).min(self.wanted.leaves());
        if end <= self.leaves.start || self.leaves.end <= first {
            return Ok(());
        }
        if self.leaves.start <= first && end <= self.leaves.end {
            return each((level, number), page, chaining);
        }
        if level == 0 {
            return Ok(());
        }
        let inner = self.reader.decode_inner(page, self.shape, level, number)?;
        for (slot, child) in inner.slots.iter().enumerate() {
            if let InnerSlot::Child { page, chaining } = child {
                let below = number * INNER_SLOTS as u64 + slot as u64;
                self.below((level - 1, below), *page, *chaining, each)?;
            }
        }
        Ok(())
    }
}

/// What a page of a stream map has to be where its parent names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamPlace {
    /// The bytes it covers.
    pub bytes: u64,
    /// Its level, one below its parent's; `None` at the top, where any will do.
    pub level: Option<u8>,
}

/// The level of a page: 0 for a leaf.
pub fn stream_level(page: &StreamPage) -> u8 {
    match page {
        StreamPage::Leaf(_) => 0,
        StreamPage::Inner(level, _) => *level,
    }
}

/// Reads leaves of one map in ascending order, keeping the pages on the way.
pub struct LeafCursor<'a> {
    reader: &'a MapReader<'a>,
    shape: MapShape,
    top: Option<PageId>,
    /// The inner page of each level from the top down, with its number.
    path: Vec<(u64, Inner)>,
    last: Option<(u64, Option<Arc<Leaf>>)>,
}

impl<'a> LeafCursor<'a> {
    /// A cursor on a map.
    pub fn new(reader: &'a MapReader<'a>, shape: MapShape, top: Option<PageId>) -> LeafCursor<'a> {
        LeafCursor { reader, shape, top, path: Vec::new(), last: None }
    }

    /// The reader behind the cursor.
    pub fn reader(&self) -> &'a MapReader<'a> {
        self.reader
    }

    /// Leaf number `number`; `None` if it is all zero or beyond the end of the map.
    ///
    /// # Errors
    /// `Damage` if a page on the way is missing or refused.
    pub fn leaf(&mut self, number: u64) -> Result<Option<Arc<Leaf>>> {
        if let Some((last, leaf)) = &self.last
            && *last == number
        {
            return Ok(leaf.clone());
        }
        let leaf = self.find(number)?.map(Arc::new);
        self.last = Some((number, leaf.clone()));
        Ok(leaf)
    }

    fn find(&mut self, number: u64) -> Result<Option<Leaf>> {
        if number >= self.shape.leaves() {
            return Ok(None);
        }
        let levels = self.shape.depth() - 1;
        let mut page = self.top;
        for level in (1..=levels).rev() {
            let Some(id) = page else { return Ok(None) };
            let depth = (levels - level) as usize;
            let wanted = number / MapShape::leaves_per_page(level);
            if self.path.get(depth).is_none_or(|(have, _)| *have != wanted) {
                self.path.truncate(depth);
                let inner = self.reader.decode_inner(id, self.shape, level, wanted)?;
                self.path.push((wanted, inner));
            }
            let slot = number / MapShape::leaves_per_page(level - 1) % INNER_SLOTS as u64;
            page = match self.path.get(depth).map(|(_, inner)| inner.slots[slot as usize]) {
                Some(InnerSlot::Child { page, .. }) => Some(page),
                _ => None,
            };
        }
        page.map(|id| self.reader.decode_leaf(id, self.shape, number)).transpose()
    }
}

//! Checking maps: every page is there and fits, every chunk it names is in some pack.
//!
//! Invariants: each distinct page is looked at once, however many points share it, and again only
//! where something else is asked of it; a finding names the point, the disk and the bytes that are
//! affected.

use super::data::DamagedEntries;
use super::{Affected, Finding};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::locate::Locator;
use crate::repository::map_reader::{MapReader, StreamPlace, stream_level};
use crate::repository::points::Point;
use crate::restore::fetch::Fetcher;
use crate::restore::sequential::read_bytes;
use diskvault_format::allocation::AllocationReader;
use diskvault_format::digest::Chaining;
use diskvault_format::id::{ChunkId, PageId, PointId};
use diskvault_format::limits::{ALLOCATION_BYTES_MAX, INNER_SLOTS, LEAF_SLOTS};
use diskvault_format::manifest::{DiskRecord, StreamReference};
use diskvault_format::map::{InnerSlot, LeafSlot, MapShape, map_root};
use diskvault_format::stream_map::{StreamEntry, StreamPage};
use std::collections::HashSet;
use std::ops::Range;

/// Findings about one disk after which the rest is only counted.
const FINDINGS_PER_PART_MAX: u64 = 20;

/// All that decides whether a page of a disk's map, and what is below it, is valid at its place:
/// its bytes, its level, and how many of the slots it spans lie on the disk.
#[derive(Clone, Copy)]
struct DiskPlace {
    id: PageId,
    level: u32,
    slots: u64,
}

impl DiskPlace {
    fn new(shape: MapShape, id: PageId, level: u32, number: u64) -> DiskPlace {
        let span = MapShape::leaves_per_page(level).saturating_mul(LEAF_SLOTS as u64);
        let slots = shape.slots().saturating_sub(number.saturating_mul(span)).min(span);
        DiskPlace { id, level, slots }
    }

    /// Stands for the page, its place and what its parent says of its chaining value; nothing is
    /// said of the top.
    fn mark(&self, told: Told) -> Mark {
        let (kind, chaining) = match told {
            None => (0, [0; 32]),
            Some(None) => (1, [0; 32]),
            Some(Some(chaining)) => (2, chaining),
        };
        let numbers = [u64::from(self.level), self.slots].map(u64::to_le_bytes);
        mark(&[&[kind], &chaining, numbers.as_flattened(), &self.id.0])
    }
}

/// What a parent says of a page's chaining value: nothing at the top; that it is unknown, or the
/// value.
type Told = Option<Option<Chaining>>;

/// Half of a hash of what was checked: as the index does, it takes that for all of it. Of a page in
/// a set that is 18 to 36 bytes, where page, place and value took 120.
type Mark = [u8; 16];

fn mark(parts: &[&[u8]]) -> Mark {
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|part| _ = hasher.update(part));
    crate::repository::entries::prefix(hasher.finalize().as_bytes())
}

/// The mark of a page of a stream map: its bytes, what it covers and its level; none at the top,
/// where any will do.
fn stream_mark(id: PageId, bytes: u64, level: Option<u8>) -> Mark {
    let level = level.map_or([3, 0], |level| [4, level]);
    mark(&[&level, &bytes.to_le_bytes(), &id.0])
}

struct Checker<'a> {
    reader: MapReader<'a>,
    locator: &'a Locator,
    damaged: &'a DamagedEntries,
    monitor: &'a dyn Monitor,
    findings: Vec<Finding>,
    pages: u64,
    /// Pages found whole, with all below them, and as their parents say.
    seen: HashSet<Mark>,
    /// The part that is being looked at: series, point, name.
    part: (String, PointId, String),
    /// Findings about the part.
    found_here: u64,
    /// Grows with every chunk and page that is not as it should be, also where they are told as one
    /// finding.
    trouble: u64,
    gap: Option<Gap>,
}

/// Bytes whose chunks are gone, before it is told.
struct Gap {
    bytes: Range<u64>,
    first: ChunkId,
    chunks: u64,
    is_damaged: bool,
}

/// What a walk over maps met.
pub(super) struct MapFindings {
    /// Damage, each with what it touches.
    pub findings: Vec<Finding>,
    /// Pages that were looked at.
    pub pages: u64,
}

/// Checks the maps of points. Chunks in `damaged` count as gone.
///
/// # Errors
/// `Cancelled`, or what the index says.
pub(super) fn check_maps(
    repository: &Repository,
    locator: &Locator,
    points: &[&Point],
    damaged: &DamagedEntries,
    monitor: &dyn Monitor,
) -> Result<MapFindings> {
    let mut checker = Checker {
        reader: MapReader::new(repository, locator),
        locator,
        damaged,
        monitor,
        findings: Vec::new(),
        pages: 0,
        seen: HashSet::new(),
        part: (String::new(), PointId([0; 32]), String::new()),
        found_here: 0,
        trouble: 0,
        gap: None,
    };
    monitor.start("checking maps", Some(points.len() as u64));
    for point in points {
        checker.check_point(point)?;
        monitor.advance(1);
    }
    monitor.finish();
    Ok(MapFindings { findings: checker.findings, pages: checker.pages })
}

impl Checker<'_> {
    fn check_point(&mut self, point: &Point) -> Result<()> {
        for disk in &point.manifest.disks {
            self.enter(point, &disk.name);
            self.check_disk(disk)?;
            self.leave();
        }
        for stream in &point.manifest.streams {
            self.enter(point, &stream.name);
            self.check_stream(&stream.content)?;
            self.leave();
        }
        Ok(())
    }

    fn enter(&mut self, point: &Point, part: &str) {
        self.part = (point.manifest.series.clone(), point.id, part.to_string());
        self.found_here = 0;
    }

    fn leave(&mut self) {
        self.tell_gap();
        if self.found_here > FINDINGS_PER_PART_MAX {
            let more = self.found_here - FINDINGS_PER_PART_MAX;
            self.push(None, &format!("{more} more findings"));
        }
    }

    fn push(&mut self, bytes: Option<Range<u64>>, text: &str) {
        let (series, point, part) = &self.part;
        let (series_text, part_text) = (series.escape_debug(), part.escape_debug());
        let text = format!("{series_text} {}/{part_text}: {text}", point.short());
        let affected =
            Affected { series: series.clone(), point: *point, part: part.clone(), bytes };
        self.findings.push(Finding { is_damage: true, text, affected: Some(affected) });
    }

    fn damage(&mut self, bytes: Option<Range<u64>>, text: &str) {
        self.tell_gap();
        self.count(bytes, text);
    }

    fn count(&mut self, bytes: Option<Range<u64>>, text: &str) {
        self.found_here += 1;
        self.trouble += 1;
        if self.found_here <= FINDINGS_PER_PART_MAX {
            self.push(bytes, text);
        }
    }

    /// A chunk that is gone; those that follow each other are told together.
    fn gone(&mut self, bytes: Range<u64>, id: ChunkId) -> Result<()> {
        let is_damaged = self.locator.splices().is_present(id, &|_, _| true)?;
        self.trouble += 1;
        if let Some(gap) = &mut self.gap
            && gap.bytes.end == bytes.start
            && gap.is_damaged == is_damaged
        {
            gap.bytes.end = bytes.end;
            gap.chunks += 1;
            return Ok(());
        }
        self.tell_gap();
        self.gap = Some(Gap { bytes, first: id, chunks: 1, is_damaged });
        Ok(())
    }

    fn tell_gap(&mut self) {
        let Some(Gap { bytes, first, chunks, is_damaged }) = self.gap.take() else { return };
        let (start, end) = (bytes.start, bytes.end);
        let what = match (chunks, is_damaged) {
            (1, false) => format!("chunk {first} is in no pack"),
            (1, true) => format!("chunk {first} is damaged"),
            (_, false) => format!("{chunks} chunks, the first {first}, are in no pack"),
            (_, true) => format!("{chunks} chunks, the first {first}, are damaged"),
        };
        self.count(Some(bytes), &format!("bytes {start} to {end}: {what}"));
    }

    /// Turns a damaged page into a finding; other failures end the check.
    fn tolerate<T>(
        &mut self,
        result: Result<T>,
        bytes: Option<Range<u64>>,
        where_: &str,
    ) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::Damage | ErrorKind::Newer | ErrorKind::NotFound
                ) =>
            {
                self.damage(bytes, &format!("{where_}: {}", error.full_text()));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn check_disk(&mut self, disk: &DiskRecord) -> Result<()> {
        if let Some(allocation) = &disk.allocation {
            self.check_allocation(disk, allocation)?;
        }
        let keys = self.reader.repository().keys();
        if map_root(keys, disk.size, &disk.chunking, disk.top) != disk.root {
            self.damage(None, "the map root does not fit (rule F-9)");
            return Ok(());
        }
        let Some(chunk_bytes) = disk.chunking.grid() else {
            return self.walk_stream(disk.size, disk.top);
        };
        let shape = match MapShape::new(disk.size, chunk_bytes) {
            Ok(shape) => shape,
            Err(cause) => {
                self.damage(None, &cause.to_string());
                return Ok(());
            }
        };
        if let Some(top) = disk.top {
            self.check_page(shape, top, shape.depth().saturating_sub(1), 0, None)?;
        }
        Ok(())
    }

    fn check_allocation(&mut self, disk: &DiskRecord, list: &StreamReference) -> Result<()> {
        let fetcher = Fetcher {
            repository: self.reader.repository(),
            locator: self.locator,
            threads: 1,
            monitor: &crate::monitor::Silent,
        };
        let decode = |bytes: Vec<u8>| -> Result<()> {
            let mut runs = AllocationReader::new(&bytes, disk.size);
            loop {
                match runs.next_run() {
                    Ok(Some(_)) => {}
                    Ok(None) => return Ok(()),
                    Err(cause) => {
                        let text = "cannot use the allocation list";
                        return Err(Error::new(ErrorKind::Damage, text).because(cause));
                    }
                }
            }
        };
        let result =
            read_bytes(&fetcher, &self.reader, list, ALLOCATION_BYTES_MAX).and_then(decode);
        self.tolerate(result, None, "allocation list").map(|_| ())
    }

    /// Checks a page of which its parent told something, and all below it; its chaining value if
    /// that is known and the page whole.
    fn check_page(
        &mut self,
        shape: MapShape,
        id: PageId,
        level: u32,
        number: u64,
        told: Told,
    ) -> Result<Option<Chaining>> {
        let place = DiskPlace::new(shape, id, level, number);
        if self.seen.contains(&place.mark(told)) {
            return Ok(told.flatten());
        }
        self.monitor.check_cancelled()?;
        self.pages += 1;
        let trouble = self.trouble;
        let chaining = if level == 0 {
            self.check_leaf(shape, id, number)?
        } else {
            self.check_inner(shape, id, level, number)?
        };
        // A page with findings is looked at again for the next point, so that it is named too.
        if self.trouble == trouble {
            self.seen.insert(place.mark(told.map(|_| chaining)));
        }
        Ok(chaining)
    }

    fn check_inner(
        &mut self,
        shape: MapShape,
        id: PageId,
        level: u32,
        number: u64,
    ) -> Result<Option<Chaining>> {
        let covered = MapShape::leaves_per_page(level);
        let bytes = byte_range(shape, number * covered, covered);
        let where_ = format!("bytes {} to {}", bytes.start, bytes.end);
        let decoded = self.reader.decode_inner(id, shape, level, number);
        let Some(inner) = self.tolerate(decoded, Some(bytes.clone()), &where_)? else {
            return Ok(None);
        };
        for (slot, child) in inner.slots.iter().enumerate() {
            if let InnerSlot::Child { page, chaining } = child {
                let below = number * INNER_SLOTS as u64 + slot as u64;
                let trouble = self.trouble;
                let found = self.check_page(shape, *page, level - 1, below, Some(*chaining))?;
                if self.trouble == trouble && found != *chaining {
                    self.damage(
                        Some(bytes.clone()),
                        &format!("{where_}: a chaining value does not fit (rule M-9)"),
                    );
                }
            }
        }
        Ok(inner.chaining(shape.used_children(level, number)))
    }

    fn check_leaf(&mut self, shape: MapShape, id: PageId, number: u64) -> Result<Option<Chaining>> {
        let bytes = byte_range(shape, number, 1);
        let where_ = format!("bytes {} to {}", bytes.start, bytes.end);
        let decoded = self.reader.decode_leaf(id, shape, number);
        let Some(leaf) = self.tolerate(decoded, Some(bytes.clone()), &where_)? else {
            return Ok(None);
        };
        for (slot, content) in leaf.slots.iter().enumerate() {
            if let LeafSlot::Chunk { id, .. } = content
                && !self.is_present(*id)?
            {
                let slot = number * LEAF_SLOTS as u64 + slot as u64;
                let start = slot * u64::from(shape.chunk_bytes());
                let end = start + u64::from(shape.bytes_in_slot(slot));
                self.gone(start..end, *id)?;
            }
        }
        Ok(leaf.chaining(shape.used_slots(number)))
    }

    /// True if the chunk is in some pack, or all is that it is put together of.
    fn is_present(&self, id: ChunkId) -> Result<bool> {
        self.damaged.leave(self.locator, id)
    }

    fn check_stream(&mut self, stream: &StreamReference) -> Result<()> {
        let verified = self.reader.verify_stream_root(stream);
        if self.tolerate(verified, None, "stream")?.is_none() {
            return Ok(());
        }
        self.walk_stream(stream.bytes, stream.top)
    }

    fn walk_stream(&mut self, bytes: u64, top: Option<PageId>) -> Result<()> {
        match top {
            Some(top) => self.check_stream_page(top, StreamPlace { bytes, level: None }, 0),
            None => Ok(()),
        }
    }

    /// Checks a page of a stream map and all below it. Levels go down, so recursion is bounded.
    fn check_stream_page(&mut self, id: PageId, place: StreamPlace, start: u64) -> Result<()> {
        let mark = stream_mark(id, place.bytes, place.level);
        // What a part has beyond the findings that are told is not worth a walk.
        if self.seen.contains(&mark) || self.found_here > FINDINGS_PER_PART_MAX {
            return Ok(());
        }
        self.monitor.check_cancelled()?;
        self.pages += 1;
        let trouble = self.trouble;
        let range = start..start.saturating_add(place.bytes);
        let where_ = format!("bytes {} to {}", range.start, range.end);
        let decoded = self.reader.decode_stream_page(id, place);
        let Some(page) = self.tolerate(decoded, Some(range), &where_)? else {
            return Ok(());
        };
        let level = stream_level(&page);
        let mut offset = start;
        match page {
            StreamPage::Leaf(entries) => {
                for entry in entries {
                    let end = offset.saturating_add(entry.bytes());
                    if let StreamEntry::Chunk { id, .. } = entry
                        && !self.is_present(id)?
                    {
                        self.gone(offset..end, id)?;
                    }
                    offset = end;
                }
            }
            StreamPage::Inner(_, entries) => {
                for (bytes, child) in entries {
                    let below = StreamPlace { bytes, level: Some(level - 1) };
                    self.check_stream_page(child, below, offset)?;
                    offset = offset.saturating_add(bytes);
                }
            }
        }
        // As for disks: one with findings is looked at again, so that the next point is named too.
        if self.trouble == trouble {
            self.seen.insert(mark);
        }
        Ok(())
    }
}

fn byte_range(shape: MapShape, first_leaf: u64, leaves: u64) -> Range<u64> {
    let leaf_bytes = u64::from(shape.chunk_bytes()) * LEAF_SLOTS as u64;
    let start = first_leaf.saturating_mul(leaf_bytes);
    let end = first_leaf.saturating_add(leaves).saturating_mul(leaf_bytes).min(shape.size());
    start..end
}

//! Checking maps: every page is there and fits, every chunk it names is in some pack.
//!
//! Invariants: each distinct page is looked at once, however many points share it, and again only
//! where something else is asked of it; a finding names the point, the disk and the bytes that are
//! affected.

use super::CheckReport;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::locate::Locator;
use crate::repository::map_reader::{MapReader, StreamPlace, stream_level};
use crate::repository::points::{Point, PointSet};
use crate::restore::fetch::Fetcher;
use crate::restore::sequential::read_bytes;
use diskvault_format::allocation::AllocationReader;
use diskvault_format::digest::Chaining;
use diskvault_format::id::{ChunkId, PageId};
use diskvault_format::limits::{ALLOCATION_BYTES_MAX, INNER_SLOTS, LEAF_SLOTS};
use diskvault_format::manifest::{DiskRecord, StreamReference};
use diskvault_format::map::{InnerSlot, LeafSlot, MapShape, map_root};
use diskvault_format::stream_map::{StreamEntry, StreamPage};
use std::collections::HashMap;

/// Findings about one disk after which the rest is only counted.
const FINDINGS_PER_PART_MAX: u64 = 20;

/// All that decides whether a page of a disk's map, and what is below it, is valid at its place:
/// its bytes, its level, and how many of the slots it spans lie on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
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
}

struct Checker<'a> {
    reader: MapReader<'a>,
    locator: &'a Locator,
    monitor: &'a dyn Monitor,
    report: &'a mut CheckReport,
    /// Pages found whole, with all below them, and their chaining value.
    seen: HashMap<DiskPlace, Option<Chaining>>,
    /// Pages of stream maps found whole, with all below them, by the bytes they cover; and their
    /// level.
    seen_streams: HashMap<(PageId, u64), u8>,
    context: String,
    found_here: u64,
}

/// Checks the maps of all points.
///
/// # Errors
/// `Cancelled`, or what the index says.
pub fn check_maps(
    repository: &Repository,
    locator: &Locator,
    points: &PointSet,
    report: &mut CheckReport,
    monitor: &dyn Monitor,
) -> Result<()> {
    let mut checker = Checker {
        reader: MapReader::new(repository, locator),
        locator,
        monitor,
        report,
        seen: HashMap::new(),
        seen_streams: HashMap::new(),
        context: String::new(),
        found_here: 0,
    };
    monitor.start("checking maps", Some(points.points.len() as u64));
    for point in &points.points {
        checker.check_point(point)?;
        monitor.advance(1);
    }
    monitor.finish();
    Ok(())
}

impl Checker<'_> {
    fn check_point(&mut self, point: &Point) -> Result<()> {
        let series = point.manifest.series.escape_debug().to_string();
        for disk in &point.manifest.disks {
            self.enter(format!("{series} {}/{}", point.id.short(), disk.name.escape_debug()));
            self.check_disk(disk)?;
            self.leave();
        }
        for stream in &point.manifest.streams {
            self.enter(format!("{series} {}/{}", point.id.short(), stream.name.escape_debug()));
            self.check_stream(&stream.content)?;
            self.leave();
        }
        Ok(())
    }

    fn enter(&mut self, context: String) {
        self.context = context;
        self.found_here = 0;
    }

    fn leave(&mut self) {
        if self.found_here > FINDINGS_PER_PART_MAX {
            let more = self.found_here - FINDINGS_PER_PART_MAX;
            self.report.damage(format!("{}: {more} more findings", self.context));
        }
    }

    fn damage(&mut self, text: &str) {
        self.found_here += 1;
        if self.found_here <= FINDINGS_PER_PART_MAX {
            self.report.damage(format!("{}: {text}", self.context));
        }
    }

    /// Turns a damaged page into a finding; other failures end the check.
    fn tolerate<T>(&mut self, result: Result<T>, where_: &str) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::Damage | ErrorKind::Newer | ErrorKind::NotFound
                ) =>
            {
                self.damage(&format!("{where_}: {}", error.full_text()));
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
            self.damage("the map root does not fit (rule F-9)");
            return Ok(());
        }
        let Some(chunk_bytes) = disk.chunking.grid() else {
            return self.walk_stream(disk.size, disk.top);
        };
        let shape = match MapShape::new(disk.size, chunk_bytes) {
            Ok(shape) => shape,
            Err(cause) => {
                self.damage(&cause.to_string());
                return Ok(());
            }
        };
        if let Some(top) = disk.top {
            self.check_page(shape, top, shape.depth().saturating_sub(1), 0)?;
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
        self.tolerate(result, "allocation list").map(|_| ())
    }

    /// Checks a page and all below it; its chaining value if that is known and the page whole.
    fn check_page(
        &mut self,
        shape: MapShape,
        id: PageId,
        level: u32,
        number: u64,
    ) -> Result<Option<Chaining>> {
        let place = DiskPlace::new(shape, id, level, number);
        if let Some(chaining) = self.seen.get(&place) {
            return Ok(*chaining);
        }
        self.monitor.check_cancelled()?;
        self.report.pages += 1;
        let findings = self.found_here;
        let chaining = if level == 0 {
            self.check_leaf(shape, id, number)?
        } else {
            self.check_inner(shape, id, level, number)?
        };
        // A page with findings is looked at again for the next point, so that it is named too.
        if self.found_here == findings {
            self.seen.insert(place, chaining);
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
        let where_ = byte_range(shape, number * covered, covered);
        let decoded = self.reader.decode_inner(id, shape, level, number);
        let Some(inner) = self.tolerate(decoded, &where_)? else { return Ok(None) };
        for (slot, child) in inner.slots.iter().enumerate() {
            if let InnerSlot::Child { page, chaining } = child {
                let below = number * INNER_SLOTS as u64 + slot as u64;
                let findings = self.found_here;
                let found = self.check_page(shape, *page, level - 1, below)?;
                if self.found_here == findings && found != *chaining {
                    self.damage(&format!("{where_}: a chaining value does not fit (rule M-9)"));
                }
            }
        }
        Ok(inner.chaining(shape.used_children(level, number)))
    }

    fn check_leaf(&mut self, shape: MapShape, id: PageId, number: u64) -> Result<Option<Chaining>> {
        let where_ = byte_range(shape, number, 1);
        let decoded = self.reader.decode_leaf(id, shape, number);
        let Some(leaf) = self.tolerate(decoded, &where_)? else { return Ok(None) };
        for (slot, content) in leaf.slots.iter().enumerate() {
            if let LeafSlot::Chunk { id, .. } = content
                && !self.is_present(*id)?
            {
                let slot = number * LEAF_SLOTS as u64 + slot as u64;
                let start = slot * u64::from(shape.chunk_bytes());
                let end = start + u64::from(shape.bytes_in_slot(slot));
                self.damage(&format!("bytes {start} to {end}: chunk {id} is in no pack"));
            }
        }
        Ok(leaf.chaining(shape.used_slots(number)))
    }

    /// True if the chunk is in some pack, or all is that it is put together of.
    fn is_present(&self, id: ChunkId) -> Result<bool> {
        self.locator.splices().is_present(id, &|_, _| true)
    }

    fn check_stream(&mut self, stream: &StreamReference) -> Result<()> {
        let verified = self.reader.verify_stream_root(stream);
        if self.tolerate(verified, "stream")?.is_none() {
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
        let key = (id, place.bytes);
        let is_seen = |level: &u8| place.level.is_none_or(|wanted| wanted == *level);
        // What a part has beyond the findings that are told is not worth a walk.
        if self.seen_streams.get(&key).is_some_and(is_seen)
            || self.found_here > FINDINGS_PER_PART_MAX
        {
            return Ok(());
        }
        self.monitor.check_cancelled()?;
        self.report.pages += 1;
        let findings = self.found_here;
        let where_ = format!("bytes {start} to {}", start.saturating_add(place.bytes));
        let decoded = self.reader.decode_stream_page(id, place);
        let Some(page) = self.tolerate(decoded, &where_)? else { return Ok(()) };
        let level = stream_level(&page);
        let mut offset = start;
        match page {
            StreamPage::Leaf(entries) => {
                for entry in entries {
                    let end = offset.saturating_add(entry.bytes());
                    if let StreamEntry::Chunk { id, .. } = entry
                        && !self.is_present(id)?
                    {
                        self.damage(&format!("bytes {offset} to {end}: chunk {id} is in no pack"));
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
        if self.found_here == findings {
            self.seen_streams.insert(key, level);
        }
        Ok(())
    }
}

fn byte_range(shape: MapShape, first_leaf: u64, leaves: u64) -> String {
    let leaf_bytes = u64::from(shape.chunk_bytes()) * LEAF_SLOTS as u64;
    let start = first_leaf.saturating_mul(leaf_bytes);
    let end = first_leaf.saturating_add(leaves).saturating_mul(leaf_bytes).min(shape.size());
    format!("bytes {start} to {end}")
}

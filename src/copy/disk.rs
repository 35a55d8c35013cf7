//! Copying a disk on a grid.
//!
//! The source's map is walked. A chunk whose chaining value stands in the same slot of the target's
//! nearest point is taken over from there: the value depends on the bytes and their offset alone,
//! not on a key, so equal values are equal bytes. The others are fetched a window at a time, each
//! segment once for a window; workers give them their ids in the target.
//!
//! Invariants: a chaining value is copied only after it was computed from the bytes again; what is
//! taken over is known to be stored; memory is a window and the leaves it belongs to.

use super::WINDOW_BYTES;
use super::place::Base;
use crate::backup::displaced::{Candidate, Displaced};
use crate::backup::{Context, store_bytes};
use crate::chunking::Gear;
use crate::chunking::anchor::listed_anchor;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::map_reader::{LeafCursor, MapReader};
use crate::repository::objects::{cannot_make, refused};
use crate::restore::fetch::{Fetcher, Wanted};
use crate::restore::sequential::{fetch_in_order, read_bytes};
use diskvault_format::crypto::Keys;
use diskvault_format::digest::chaining_value;
use diskvault_format::id::ChunkId;
use diskvault_format::limits::{ALLOCATION_BYTES_MAX, LEAF_SLOTS};
use diskvault_format::manifest::{DiskRecord, Statistics, StreamReference};
use diskvault_format::map::{Leaf, LeafSlot, MapBuilder, MapShape, map_root};
use diskvault_format::pack::PackKind;
use diskvault_format::segment::EntryKind;
use diskvault_format::splice::Splice;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Leaves gathered at most, however little of them has to be fetched: some 16 MiB.
const LEAVES_MAX: usize = 4096;

/// Copies a disk.
///
/// # Errors
/// `Damage` for what does not verify; what the writer says.
pub(super) fn copy(
    context: &mut Context<'_>,
    fetcher: &Fetcher<'_>,
    reader: &MapReader<'_>,
    base: &Base,
    disk: &DiskRecord,
    chunk_bytes: u32,
) -> Result<DiskRecord> {
    let source_keys = fetcher.repository.keys();
    if map_root(source_keys, disk.size, &disk.chunking, disk.top) != disk.root {
        let name = disk.name.escape_debug();
        let text = format!("cannot use the map of {name}: its root does not fit (rule F-9)");
        return Err(Error::new(ErrorKind::Damage, text));
    }
    let shape =
        MapShape::new(disk.size, chunk_bytes).map_err(|cause| refused("the disk's map", cause))?;
    let (repository, session) = (context.repository, context.session);
    let base_reader = MapReader::new(repository, session.locator());
    let mut copy = Copy {
        fetcher,
        shape,
        base: base_cursor(&base_reader, base, disk)?,
        base_is_complete: base.is_complete,
        keys: repository.keys().clone(),
        gear: Gear::from_key(repository.keys().gear_key()),
        displaced: Displaced::new(repository, session),
        builder: MapBuilder::new(shape),
        window: Window::default(),
        statistics: Statistics::default(),
        end: 0,
        context,
    };
    reader.walk_disk(shape, disk.top, &mut |number, leaf| copy.take(number, leaf))?;
    let (top, mut statistics) = copy.finish()?;
    let recorded = &disk.statistics;
    statistics.virtual_bytes = disk.size;
    statistics.allocated_bytes = recorded.allocated_bytes;
    statistics.hole_bytes = recorded.hole_bytes;
    statistics.zero_bytes = recorded.zero_bytes;
    let allocation = copy_allocation(context, fetcher, reader, disk)?;
    let root = shape.root(repository.keys(), &disk.chunking, top);
    Ok(DiskRecord { root, top, allocation, statistics, extensions: Vec::new(), ..disk.clone() })
}

/// Copies the list of what was allocated at the source.
///
/// # Errors
/// `Damage` for what does not verify; what the writer says.
pub(super) fn copy_allocation(
    context: &mut Context<'_>,
    fetcher: &Fetcher<'_>,
    reader: &MapReader<'_>,
    disk: &DiskRecord,
) -> Result<Option<StreamReference>> {
    let Some(allocation) = &disk.allocation else { return Ok(None) };
    let list = read_bytes(fetcher, reader, allocation, ALLOCATION_BYTES_MAX)?;
    store_bytes(context, &list).map(Some)
}

/// The target's map of this disk, if it was cut the same way.
fn base_cursor<'a>(
    reader: &'a MapReader<'a>,
    base: &Base,
    disk: &DiskRecord,
) -> Result<Option<LeafCursor<'a>>> {
    let mut known = base.point.iter().flat_map(|point| &point.manifest.disks);
    let same = |known: &&DiskRecord| known.name == disk.name && known.chunking == disk.chunking;
    let Some(known) = known.find(same) else { return Ok(None) };
    let Some(chunk_bytes) = known.chunking.grid() else { return Ok(None) };
    let shape =
        MapShape::new(known.size, chunk_bytes).map_err(|cause| cannot_make("a map", cause))?;
    Ok(Some(LeafCursor::new(reader, shape, known.top)))
}

/// Leaves that are not finished, and the chunks that they wait for.
#[derive(Default)]
struct Window {
    leaves: Vec<(u64, Leaf)>,
    wanted: Vec<Wanted>,
    /// Of each wanted chunk its leaf and its slot in it.
    places: Vec<(usize, usize)>,
    bytes: usize,
    data: Vec<u8>,
}

/// What a worker found out about a chunk.
enum Found {
    /// It is stored in the target.
    Stored(ChunkId),
    /// It is new there.
    New(ChunkId, Option<u64>),
    /// It is new, but its bytes are stored at another phase.
    Displaced(ChunkId, Splice),
}

struct Copy<'a, 'b> {
    context: &'a mut Context<'b>,
    fetcher: &'a Fetcher<'a>,
    shape: MapShape,
    base: Option<LeafCursor<'a>>,
    base_is_complete: bool,
    keys: Arc<Keys>,
    gear: Gear,
    displaced: Displaced,
    builder: MapBuilder,
    window: Window,
    statistics: Statistics,
    /// Bytes of the disk that progress was told of, or that are fetched.
    end: u64,
}

impl Copy<'_, '_> {
    /// Takes the next leaf of the source.
    fn take(&mut self, number: u64, leaf: &Leaf) -> Result<()> {
        self.context.monitor.check_cancelled()?;
        let before = self.base_leaf(number)?;
        let mut own = Leaf::ZERO;
        for (slot, content) in leaf.slots.iter().enumerate() {
            let LeafSlot::Chunk { id, chaining } = content else { continue };
            let global = number * LEAF_SLOTS as u64 + slot as u64;
            let bytes = self.shape.bytes_in_slot(global);
            let offset = global * u64::from(self.shape.chunk_bytes());
            self.advance(offset);
            if let Some(known @ LeafSlot::Chunk { id: known_id, chaining: known_chaining }) =
                before.as_ref().map(|leaf| leaf.slots[slot])
                && known_chaining == *chaining
                && (self.base_is_complete
                    || self.context.session.presence().contains(&known_id.0)?)
            {
                own.slots[slot] = known;
                self.statistics.unchanged_bytes += u64::from(bytes);
                self.advance(offset + u64::from(bytes));
                continue;
            }
            // Its id here is not known yet.
            own.slots[slot] = LeafSlot::Chunk { id: ChunkId([0; 32]), chaining: *chaining };
            self.window.wanted.push(Wanted { offset, bytes, id: *id });
            self.window.places.push((self.window.leaves.len(), slot));
            self.window.bytes += bytes as usize;
            // Fetching it tells.
            self.end = offset + u64::from(bytes);
        }
        self.window.leaves.push((number, own));
        if self.window.bytes >= WINDOW_BYTES || self.window.leaves.len() >= LEAVES_MAX {
            self.flush()?;
        }
        Ok(())
    }

    fn advance(&mut self, end: u64) {
        self.context.monitor.advance(end.saturating_sub(self.end));
        self.end = end;
    }

    /// The target's leaf. Damage there must not keep points from being copied: the rest of the
    /// disk is then read and looked up chunk by chunk.
    fn base_leaf(&mut self, number: u64) -> Result<Option<Arc<Leaf>>> {
        let Some(cursor) = self.base.as_mut() else { return Ok(None) };
        match cursor.leaf(number) {
            Err(error) if error.kind().is_finding() => {
                let text = error.full_text();
                self.context.monitor.warn(&format!("cannot use the target's last map: {text}"));
                // So that this point gets pages of its own.
                cursor.reader().locator().forget_met_damaged()?;
                self.base = None;
                Ok(None)
            }
            other => other,
        }
    }

    /// Fetches what is wanted, stores what is new and finishes the leaves.
    fn flush(&mut self) -> Result<()> {
        let mut window = std::mem::take(&mut self.window);
        fetch_in_order(self.fetcher, &window.wanted, &mut window.data)?;
        let mut end = 0;
        let ranges: Vec<Range<usize>> = window
            .wanted
            .iter()
            .map(|wanted| {
                let start = end;
                end += wanted.bytes as usize;
                start..end
            })
            .collect();
        let found = self.context.pool.install(|| self.examine(&window, &ranges))?;
        for (number, found) in found.into_iter().enumerate() {
            let data = &window.data[ranges[number].clone()];
            let own_id = self.store(found, data)?;
            let (leaf, slot) = window.places[number];
            if let LeafSlot::Chunk { id, .. } = &mut window.leaves[leaf].1.slots[slot] {
                *id = own_id;
            }
        }
        for (number, leaf) in &window.leaves {
            let writer = &mut self.context.writer;
            self.builder.push(&self.keys, *number, leaf, &mut |page, bytes| {
                writer.push(PackKind::Map, EntryKind::Page, page.0, &bytes).map(|_| ())
            })?;
        }
        self.statistics.read_bytes += window.bytes as u64;
        // The buffer is used again.
        self.window.data = window.data;
        Ok(())
    }

    /// What the chunks of a window are in the target; on all cores.
    fn examine(&self, window: &Window, ranges: &[Range<usize>]) -> Result<Vec<Found>> {
        let numbers = 0..window.wanted.len();
        let found: Vec<Found> = numbers
            .into_par_iter()
            .map(|number| {
                let (wanted, data) = (&window.wanted[number], &window.data[ranges[number].clone()]);
                let (leaf, slot) = window.places[number];
                self.examine_one(wanted, &window.leaves[leaf].1.slots[slot], data)
            })
            .collect::<Result<_>>()?;
        // Leaf by leaf, as a backup looks for them in batches.
        let mut leaves: Vec<Range<usize>> = Vec::new();
        for (number, (leaf, _)) in window.places.iter().enumerate() {
            match leaves.last_mut() {
                Some(open) if window.places[open.start].0 == *leaf => open.end = number + 1,
                _ => leaves.push(number..number + 1),
            }
        }
        let splices: Vec<Vec<(usize, Splice)>> = leaves
            .into_par_iter()
            .map(|numbers| self.find_displaced(window, ranges, numbers, &found))
            .collect::<Result<_>>()?;
        let mut found = found;
        for (number, splice) in splices.into_iter().flatten() {
            if let Found::New(id, _) = found[number] {
                found[number] = Found::Displaced(id, splice);
            }
        }
        Ok(found)
    }

    fn examine_one(&self, wanted: &Wanted, slot: &LeafSlot, data: &[u8]) -> Result<Found> {
        let chaining = chaining_value(wanted.offset, data);
        if !matches!(slot, LeafSlot::Chunk { chaining: recorded, .. } if *recorded == chaining) {
            let (id, offset) = (wanted.id, wanted.offset);
            let why = "its map has another chaining value for these bytes";
            let text = format!("cannot copy chunk {id} at offset {offset}: {why}");
            return Err(Error::new(ErrorKind::Damage, text));
        }
        let id = self.keys.chunk_id(data);
        if self.context.session.presence().contains(&id.0)? {
            return Ok(Found::Stored(id));
        }
        Ok(Found::New(id, listed_anchor(&self.gear, data)))
    }

    /// Which of the new chunks of one leaf are stored at another phase.
    fn find_displaced(
        &self,
        window: &Window,
        ranges: &[Range<usize>],
        numbers: Range<usize>,
        found: &[Found],
    ) -> Result<Vec<(usize, Splice)>> {
        let base = window.wanted[numbers.start].offset;
        let (mut new, mut candidates) = (Vec::new(), Vec::new());
        for number in numbers {
            let Found::New(_, anchor) = &found[number] else { continue };
            let offset = (window.wanted[number].offset - base) as usize;
            let data = &window.data[ranges[number].clone()];
            new.push(number);
            candidates.push(Candidate { offset, data, anchor: *anchor });
        }
        let splices = self.displaced.find(&candidates, self.shape.chunk_bytes() as usize)?;
        let pairs = new.into_iter().zip(splices);
        Ok(pairs.filter_map(|(number, splice)| Some((number, splice?))).collect())
    }

    /// Stores a chunk unless it is there; its id.
    fn store(&mut self, found: Found, data: &[u8]) -> Result<ChunkId> {
        let (statistics, bytes) = (&mut self.statistics, data.len() as u64);
        let writer = &mut self.context.writer;
        let (id, is_new) = match found {
            Found::Stored(id) => (id, false),
            Found::Displaced(id, splice) => {
                writer.push(PackKind::Map, EntryKind::Splice, id.0, &splice.encode())?;
                (id, false)
            }
            Found::New(id, anchor) => {
                let (pack, kind) = (PackKind::Data, EntryKind::Chunk);
                (id, writer.push_anchored(pack, kind, id.0, data, anchor)?)
            }
        };
        if is_new {
            statistics.new_bytes += bytes;
            statistics.new_chunks += 1;
        } else {
            statistics.deduplicated_bytes += bytes;
        }
        Ok(id)
    }

    fn finish(mut self) -> Result<(Option<diskvault_format::id::PageId>, Statistics)> {
        self.flush()?;
        self.advance(self.shape.size());
        let writer = &mut self.context.writer;
        let top = self.builder.finish(&self.keys, &mut |page, bytes| {
            writer.push(PackKind::Map, EntryKind::Page, page.0, &bytes).map(|_| ())
        })?;
        Ok((top, self.statistics))
    }
}

//! Backing up a disk on the fixed grid, on all cores.
//!
//! One thread walks the source's extents, skips holes and hands out batches of up to 4 MiB; the
//! workers read them, test for zeros, hash, and compare with the previous point; this thread puts
//! the results back into order, pushes what is new and builds the map.
//!
//! Invariants: memory is a fixed number of batches; a chunk that equals the previous point's is
//! taken over only if it is known to be stored; the map depends on the bytes alone.

use super::Context;
use super::digests::{DigestValues, Digests};
use super::displaced::Displaced;
use super::examine::{Batch, Hashed, Outcome, Work, process};
use super::stream::{backup_disk_by_content, store_bytes};
use crate::chunking::{self, Gear};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::map_reader::{LeafCursor, MapReader};
use crate::repository::objects::cannot_make;
use crate::repository::points::Point;
use crate::source::{DiskSource, Extent, ExtentKind, TolerantSource};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use diskvault_format::allocation::AllocationWriter;
use diskvault_format::limits::{ALLOCATION_BYTES_MAX, LEAF_SLOTS};
use diskvault_format::manifest::{ByteRange, Chunking, DiskRecord, Statistics, StreamReference};
use diskvault_format::map::{Leaf, LeafSlot, MapBuilder, MapShape};
use diskvault_format::pack::PackKind;
use diskvault_format::segment::EntryKind;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most bytes of a batch, which never leaves its leaf: large enough for sequential reading.
const BATCH_BYTES: u64 = 4 << 20;
/// One disk to back up.
pub struct DiskRequest<'a> {
    /// Its name.
    pub name: String,
    /// Where it is read.
    pub source: Arc<TolerantSource>,
    /// How it is cut.
    pub chunking: chunking::Chunking,
    /// The series' last point.
    pub parent: Option<&'a Point>,
}

/// Backs up a disk.
///
/// # Errors
/// `Source` if it cannot be read or changes its size, or what the writer says.
pub fn backup_disk(context: &mut Context<'_>, request: DiskRequest<'_>) -> Result<DiskRecord> {
    let chunk_bytes = match request.chunking {
        chunking::Chunking::Fixed { chunk_bytes } => chunk_bytes,
        chunking::Chunking::Content(_) => return backup_disk_by_content(context, request),
    };
    let source = request.source.clone();
    let shape =
        MapShape::new(source.size(), chunk_bytes).map_err(|cause| cannot_make("a map", cause))?;
    let recorded = Chunking::fixed(chunk_bytes);
    context.monitor.start(&format!("disk {}", request.name.escape_debug()), Some(shape.size()));
    let work = Arc::new(Work {
        source: source.clone(),
        shape,
        keys: context.repository.keys().clone(),
        presence: context.session.presence().clone(),
        parent_is_complete: match request.parent {
            Some(parent) => context.session.is_known_complete(parent)?,
            None => false,
        },
        gear: Gear::from_key(context.repository.keys().gear_key()),
        displaced: Displaced::new(context.repository, context.session),
    });
    let reader = MapReader::new(context.repository, context.session.locator());
    let mut cursor = parent_cursor(&reader, &request, &recorded)?;
    let needs_blake3 = shape.slots() <= 1;
    let digests = Digests::new(needs_blake3, context.digests);
    let (planned, assembled) = run_pipeline(context, &work, &mut cursor, digests)?;
    source.check_unchanged_size()?;
    let allocation = allocation_of(context, source.as_ref(), planned.allocation)?;
    context.monitor.finish();
    let mut statistics = assembled.statistics;
    statistics.virtual_bytes = shape.size();
    statistics.hole_bytes = planned.hole_bytes;
    statistics.allocated_bytes = shape.size() - planned.hole_bytes;
    let values = assembled.digests.finish();
    let root = shape.root(&work.keys, &recorded, assembled.top);
    let cut = StreamReference { bytes: shape.size(), chunking: recorded, root, top: assembled.top };
    Ok(record(request.name, source.as_ref(), cut, values, allocation, statistics))
}

/// The record of a disk that was read in full from `source` and whose map is `cut`.
pub(super) fn record(
    name: String,
    source: &TolerantSource,
    cut: StreamReference,
    values: DigestValues,
    allocation: Option<StreamReference>,
    statistics: Statistics,
) -> DiskRecord {
    let bad_extents = source.bad_extents().into_iter();
    let bad_extents =
        bad_extents.map(|range| ByteRange { start: range.start, bytes: range.end - range.start });
    DiskRecord {
        name,
        size: cut.bytes,
        chunking: cut.chunking,
        grid_offset: 0,
        source_format: source.format().to_string(),
        root: cut.root,
        top: cut.top,
        digest: values.blake3,
        allocation,
        bad_extents: bad_extents.collect(),
        token: source.identity(),
        inherited: Vec::new(),
        free_space_mode: 0,
        digests: values.others,
        statistics,
        extensions: Vec::new(),
    }
}

/// The previous point's map of this disk, if it was cut the same way.
fn parent_cursor<'a>(
    reader: &'a MapReader<'a>,
    request: &DiskRequest<'_>,
    chunking: &Chunking,
) -> Result<Option<LeafCursor<'a>>> {
    let Some(parent) = request.parent else { return Ok(None) };
    let same = |disk: &&DiskRecord| disk.name == request.name && disk.chunking == *chunking;
    let Some(disk) = parent.manifest.disks.iter().find(same) else { return Ok(None) };
    let Some(chunk_bytes) = chunking.grid() else { return Ok(None) };
    let shape =
        MapShape::new(disk.size, chunk_bytes).map_err(|cause| cannot_make("a map", cause))?;
    Ok(Some(LeafCursor::new(reader, shape, disk.top)))
}

/// Stores the allocation list, if the source could tell and the list is not absurd.
///
/// # Errors
/// What the writer says.
pub(super) fn allocation_of(
    context: &mut Context<'_>,
    source: &dyn DiskSource,
    allocation: AllocationWriter,
) -> Result<Option<StreamReference>> {
    if !source.allocation_known() {
        return Ok(None);
    }
    let list = allocation.finish();
    if list.len() as u64 > ALLOCATION_BYTES_MAX {
        let what = source.describe();
        context.monitor.warn(&format!("{what} has too many holes: their places are not kept"));
        return Ok(None);
    }
    store_bytes(context, &list).map(Some)
}

struct Planned {
    allocation: AllocationWriter,
    hole_bytes: u64,
}

struct Assembled {
    top: Option<diskvault_format::id::PageId>,
    statistics: Statistics,
    digests: Digests,
}

fn run_pipeline(
    context: &mut Context<'_>,
    work: &Arc<Work>,
    cursor: &mut Option<LeafCursor<'_>>,
    digests: Digests,
) -> Result<(Planned, Assembled)> {
    let batches = context.pool.current_num_threads() + 4;
    let (free, take_free) = bounded::<Vec<u8>>(batches);
    for _ in 0..batches {
        // Filled once; a full channel cannot happen, since it holds exactly so many.
        let _ = free.send(Vec::new());
    }
    let (hashed, take_hashed) = unbounded::<Result<Hashed>>();
    let (pool, monitor) = (context.pool.clone(), context.monitor);
    std::thread::scope(|scope| {
        let planner = scope.spawn(move || {
            let mut planner = Planner {
                work,
                cursor,
                take_free,
                hashed,
                pool: &pool,
                monitor,
                next_number: 0,
                open: None,
                planned: Planned { allocation: AllocationWriter::new(), hole_bytes: 0 },
            };
            planner.run().map(|()| planner.planned)
        });
        let assembled = assemble(context, work, &take_hashed, free, digests);
        let planned = planner.join().unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Failed, "cannot plan the backup: a thread panicked"))
        });
        // The assembler's error is the cause; the planner only notices that it stopped.
        match (assembled, planned) {
            (Ok(assembled), Ok(planned)) => Ok((planned, assembled)),
            (Err(error), Ok(_)) => Err(error),
            (Ok(_), Err(error)) => Err(error),
            (Err(error), Err(planner)) => {
                Err(if planner.kind() == ErrorKind::Failed { error } else { planner })
            }
        }
    })
}

/// Walks the extents and hands out batches.
struct Planner<'a, 'c> {
    work: &'a Arc<Work>,
    cursor: &'a mut Option<LeafCursor<'c>>,
    take_free: Receiver<Vec<u8>>,
    hashed: Sender<Result<Hashed>>,
    pool: &'a Arc<rayon::ThreadPool>,
    monitor: &'a dyn crate::monitor::Monitor,
    next_number: u64,
    open: Option<Batch>,
    planned: Planned,
}

impl Planner<'_, '_> {
    fn run(&mut self) -> Result<()> {
        let source = self.work.source.clone();
        source.extents(&mut |extent| {
            self.monitor.check_cancelled()?;
            let is_data = extent.kind == ExtentKind::Data;
            self.planned.allocation.push(extent.bytes, is_data);
            if is_data {
                return self.add_data(extent);
            }
            self.planned.hole_bytes += extent.bytes;
            self.monitor.advance(extent.bytes);
            Ok(())
        })?;
        self.emit()
    }

    fn add_data(&mut self, extent: Extent) -> Result<()> {
        let chunk = u64::from(self.work.shape.chunk_bytes());
        let slots = (BATCH_BYTES / chunk).clamp(1, LEAF_SLOTS as u64);
        let batch_bytes = slots * chunk;
        let end = extent.start + extent.bytes;
        let mut start = extent.start;
        while start < end {
            let first_slot = start / batch_bytes * slots;
            if self.open.as_ref().is_none_or(|open| open.first_slot != first_slot) {
                self.emit()?;
                self.open_batch(first_slot, slots)?;
            }
            let stop = end.min((first_slot + slots) * chunk);
            if let Some(open) = &mut self.open {
                open.data.push(start..stop);
            }
            start = stop;
        }
        Ok(())
    }

    fn open_batch(&mut self, first_slot: u64, slots: u64) -> Result<()> {
        let slots = slots.min(self.work.shape.slots() - first_slot) as usize;
        let parent = self.parent_leaf(first_slot / LEAF_SLOTS as u64)?;
        self.open = Some(Batch {
            number: self.next_number,
            first_slot,
            slots,
            data: Vec::new(),
            parent,
            buffer: Vec::new(),
        });
        self.next_number += 1;
        Ok(())
    }

    /// The previous point's leaf. A damaged map there must not keep the next point from being
    /// made: the rest of the disk is then looked up chunk by chunk.
    fn parent_leaf(&mut self, number: u64) -> Result<Option<Arc<Leaf>>> {
        let Some(cursor) = self.cursor.as_mut() else { return Ok(None) };
        match cursor.leaf(number) {
            Ok(leaf) => Ok(leaf),
            Err(error) if matches!(error.kind(), ErrorKind::Damage | ErrorKind::NotFound) => {
                let text = error.full_text();
                self.monitor.warn(&format!("cannot use the previous point's map: {text}"));
                // So that this point gets pages of its own.
                cursor.reader().locator().forget_met_damaged()?;
                *self.cursor = None;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn emit(&mut self) -> Result<()> {
        let Some(mut batch) = self.open.take() else { return Ok(()) };
        for range in &batch.data {
            self.work.source.prefetch(range.start, range.end - range.start);
        }
        self.monitor.check_cancelled()?;
        let stopped = || Error::new(ErrorKind::Failed, "the backup stopped");
        batch.buffer = self.take_free.recv().map_err(|_| stopped())?;
        let (work, hashed) = (self.work.clone(), self.hashed.clone());
        self.pool.spawn(move || {
            // Nobody listens any more only after a failure.
            let _ = hashed.send(process(&work, batch));
        });
        Ok(())
    }
}

/// Takes results in order, stores what is new and builds the map.
struct Assembler<'a, 'b> {
    context: &'a mut Context<'b>,
    work: &'a Work,
    builder: MapBuilder,
    leaf_number: u64,
    leaf: Leaf,
    statistics: Statistics,
    digests: Digests,
    digested: u64,
}

fn assemble(
    context: &mut Context<'_>,
    work: &Work,
    take_hashed: &Receiver<Result<Hashed>>,
    free: Sender<Vec<u8>>,
    digests: Digests,
) -> Result<Assembled> {
    let mut assembler = Assembler {
        context,
        work,
        builder: MapBuilder::new(work.shape),
        leaf_number: 0,
        leaf: Leaf::ZERO,
        statistics: Statistics::default(),
        digests,
        digested: 0,
    };
    let mut waiting = BTreeMap::new();
    let mut next = 0;
    for result in take_hashed {
        let hashed = result?;
        waiting.insert(hashed.batch.number, hashed);
        while let Some(hashed) = waiting.remove(&next) {
            assembler.context.monitor.check_cancelled()?;
            next += 1;
            let buffer = assembler.take(hashed)?;
            // The planner is gone once it has handed out everything.
            let _ = free.send(buffer);
        }
    }
    assembler.finish()
}

impl Assembler<'_, '_> {
    fn take(&mut self, hashed: Hashed) -> Result<Vec<u8>> {
        let Hashed { batch, outcomes, read_bytes } = hashed;
        let chunk = self.work.shape.chunk_bytes() as usize;
        let number = batch.first_slot / LEAF_SLOTS as u64;
        if number != self.leaf_number {
            self.close_leaf()?;
            self.leaf_number = number;
        }
        self.statistics.read_bytes += read_bytes;
        self.context.monitor.advance(batch.data.iter().map(|range| range.end - range.start).sum());
        let start = batch.first_slot * chunk as u64;
        self.digests.update_zeros(start - self.digested);
        for (position, outcome) in outcomes.into_iter().enumerate() {
            let from = position * chunk;
            let data = &batch.buffer[from..(from + chunk).min(batch.buffer.len())];
            let slot = (batch.first_slot as usize + position) % LEAF_SLOTS;
            self.leaf.slots[slot] = self.count(outcome, data)?;
        }
        self.digested = start + batch.buffer.len() as u64;
        Ok(batch.buffer)
    }

    fn count(&mut self, outcome: Outcome, data: &[u8]) -> Result<LeafSlot> {
        let bytes = data.len() as u64;
        let statistics = &mut self.statistics;
        let slot = match outcome {
            Outcome::Zero { was_read } => {
                statistics.zero_bytes += if was_read { bytes } else { 0 };
                self.digests.update_zeros(bytes);
                return Ok(LeafSlot::Zero);
            }
            Outcome::Unchanged(slot) => {
                statistics.unchanged_bytes += bytes;
                slot
            }
            Outcome::Stored(slot) => {
                statistics.deduplicated_bytes += bytes;
                slot
            }
            Outcome::Displaced(slot, splice) => {
                if let LeafSlot::Chunk { id, .. } = slot {
                    let writer = &mut self.context.writer;
                    writer.push(PackKind::Map, EntryKind::Splice, id.0, &splice.encode())?;
                }
                statistics.deduplicated_bytes += bytes;
                slot
            }
            Outcome::New(slot, anchor) => {
                if let LeafSlot::Chunk { id, .. } = slot {
                    let (pack, kind) = (PackKind::Data, EntryKind::Chunk);
                    if self.context.writer.push_anchored(pack, kind, id.0, data, anchor)? {
                        statistics.new_bytes += bytes;
                        statistics.new_chunks += 1;
                    } else {
                        statistics.deduplicated_bytes += bytes;
                    }
                }
                slot
            }
        };
        self.digests.update(data);
        Ok(slot)
    }

    fn close_leaf(&mut self) -> Result<()> {
        let leaf = std::mem::replace(&mut self.leaf, Leaf::ZERO);
        let writer = &mut self.context.writer;
        self.builder.push(&self.work.keys, self.leaf_number, &leaf, &mut |page, bytes| {
            writer.push(PackKind::Map, EntryKind::Page, page.0, &bytes).map(|_| ())
        })
    }

    fn finish(mut self) -> Result<Assembled> {
        self.close_leaf()?;
        self.digests.update_zeros(self.work.shape.size() - self.digested);
        let writer = &mut self.context.writer;
        let top = self.builder.finish(&self.work.keys, &mut |page, bytes| {
            writer.push(PackKind::Map, EntryKind::Page, page.0, &bytes).map(|_| ())
        })?;
        Ok(Assembled { top, statistics: self.statistics, digests: self.digests })
    }
}

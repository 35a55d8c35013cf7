//! Backing up a disk on the fixed grid, on all cores.
//!
//! One thread walks the source's extents, skips holes and hands out batches of up to 4 MiB; the
//! workers read them, test for zeros, hash, and compare with the previous point; this thread puts
//! the results back into order, pushes what is new and builds the map.
//!
//! Invariants: memory is a fixed number of batches; a chunk that equals the previous point's is
//! taken over only if it is known to be stored; the map depends on the bytes alone.

use super::Context;
use super::assembler::{Assembled, Base, assemble};
use super::digests::{DigestValues, Digests};
use super::displaced::Displaced;
use super::examine::{Hashed, Work};
use super::hint::{Hint, Reading};
use super::hinted;
use super::planner::{Planned, Planner};
use super::stream::{backup_disk_by_content, store_bytes};
use crate::chunking::{self, Gear};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::map_reader::{LeafCursor, MapReader};
use crate::repository::objects::cannot_make;
use crate::repository::points::Point;
use crate::source::{DiskSource, TolerantSource};
use crossbeam_channel::{bounded, unbounded};
use diskvault_format::allocation::AllocationWriter;
use diskvault_format::limits::ALLOCATION_BYTES_MAX;
use diskvault_format::manifest::{ByteRange, Chunking, DiskRecord, Statistics, StreamReference};
use diskvault_format::map::MapShape;
use std::ops::Range;
use std::sync::Arc;

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
    /// What somebody says has changed.
    pub hint: Option<Arc<Hint>>,
    /// Whether that counts.
    pub reading: Reading,
    /// When the new point is made, in nanoseconds since 1970.
    pub time_unix_ns: i64,
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
    let hinted = hinted::read(context, &work, &reader, &request)?;
    let (planned, assembled) = match hinted.read {
        Some(read) => read,
        None => {
            let mut cursor = parent_cursor(&reader, &request, &recorded)?;
            let digests = Digests::new(shape.slots() <= 1, context.digests);
            run_pipeline(context, &work, &mut cursor, digests, None)?
        }
    };
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
    let mut made = record(request.name, source.as_ref(), cut, values, allocation, statistics);
    made.inherited = hinted.inherited;
    if let Some(tracking) = hinted.tracking {
        let extension = tracking.to_extension().map_err(|cause| cannot_make("a record", cause))?;
        made.extensions.push(extension);
    }
    Ok(made)
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

/// Part of a disk that is examined, and the map that has the rest.
pub(super) struct Selected<'a> {
    /// On the grid, ascending, none touching another.
    pub ranges: &'a [Range<u64>],
    pub base: Base<'a>,
}

/// Reads a disk, or what is selected of it.
///
/// # Errors
/// As [`backup_disk`]; `Damage` or `NotFound` for a base that cannot be read.
pub(super) fn run_pipeline(
    context: &mut Context<'_>,
    work: &Arc<Work>,
    cursor: &mut Option<LeafCursor<'_>>,
    digests: Digests,
    selected: Option<&Selected<'_>>,
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
                selection: selected.map(|selected| selected.ranges),
            };
            planner.run().map(|()| planner.planned)
        });
        let assembled = assemble(
            context,
            work,
            &take_hashed,
            free,
            digests,
            selected.map(|selected| &selected.base),
        );
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

//! Keeping a file or device at a point: made if it is not there, brought to the point by what
//! differs if it is.
//!
//! Invariants: a new file appears under its name only when it is complete; what is known of a target
//! is forgotten before it is written to.

use super::disk::{SparseMode, restore_disk};
use super::fetch::Fetcher;
use super::in_place::{InPlaceOptions, InPlaceReport, restore_in_place};
use super::remembered::{Recalled, TargetMemory};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::map_cursor::Cursor;
use crate::repository::map_reader::MapReader;
use crate::repository::points::{Point, PointSet};
use crate::target::{DiskTarget, Layout, ReuseTarget, Reused, new_target};
use diskvault_format::id::PointId;
use diskvault_format::manifest::DiskRecord;
use rayon::ThreadPool;
use std::path::Path;

/// A target to be kept at a point.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// Where it is.
    pub path: &'a Path,
    /// How the disk lies in it.
    pub layout: Layout,
    /// What zeros become.
    pub mode: SparseMode,
    /// Whether what is in use may be written to, and what was never a target.
    pub force: bool,
    /// Whether what was never a target is written to all the same.
    pub overwrites: bool,
    /// Whether nothing is written.
    pub dry_run: bool,
}

/// What the target was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// There was nothing.
    New,
    /// It was known to hold a point, and only maps were compared.
    Known,
    /// It was known and somebody has changed it since, so it was read.
    Changed,
    /// Nobody could know what it held, so it was read.
    Unknown,
}

impl Before {
    /// Lower-case name, as it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Before::New => "new",
            Before::Known => "known",
            Before::Changed => "changed",
            Before::Unknown => "unknown",
        }
    }
}

/// Brings a target to a disk of a point.
///
/// # Errors
/// As [`Reused::open`], [`restore_in_place`] and [`restore_disk`].
pub fn bring_to(
    fetcher: &Fetcher<'_>,
    pool: &ThreadPool,
    (point, disk): (&Point, &DiskRecord),
    kept: Kept<'_>,
) -> Result<(Before, InPlaceReport)> {
    let Kept { path, layout, mode, dry_run, .. } = kept;
    let memory = TargetMemory::new(fetcher.repository);
    if !path.exists() {
        let report = if dry_run {
            plan_new(fetcher, disk, kept)?
        } else {
            make_new(fetcher, (point, disk), kept)?
        };
        return Ok((Before::New, report));
    }
    let options = ReuseTarget { size: disk.size, layout, force: kept.force, read_only: dry_run };
    let target = Reused::open(path, options)?;
    // Looked at while nobody else may write to it.
    let (before, known) = what_is_there(fetcher, &memory, &target, kept)?;
    if !dry_run {
        memory.begin(path, layout)?;
    }
    let restore = |known: Option<&DiskRecord>| {
        restore_in_place(fetcher, pool, disk, &target, InPlaceOptions { mode, known, dry_run })
    };
    let report = match (restore(known.as_ref()), &known) {
        // The map of the point before may be what is damaged, and is not needed.
        (Err(error), Some(_)) if error.kind().is_finding() => restore(None)?,
        (report, _) => report?,
    };
    if !dry_run {
        target.sync()?;
        memory.remember(path, target.file(), layout, (point.id, &disk.name))?;
    }
    Ok((before, report))
}

/// Makes a new file.
fn make_new(
    fetcher: &Fetcher<'_>,
    (point, disk): (&Point, &DiskRecord),
    kept: Kept<'_>,
) -> Result<InPlaceReport> {
    let target = new_target(kept.path, disk.size, kept.layout)?;
    let file = target.claim()?;
    let restored = restore_disk(fetcher, disk, &target, kept.mode)?;
    Box::new(target).finish()?;
    let memory = TargetMemory::new(fetcher.repository);
    memory.remember(kept.path, &file, kept.layout, (point.id, &disk.name))?;
    let (virtual_bytes, written_bytes) = (restored.virtual_bytes, restored.data_bytes);
    Ok(InPlaceReport { virtual_bytes, written_bytes, ..InPlaceReport::default() })
}

/// What making a new file would write.
fn plan_new(fetcher: &Fetcher<'_>, disk: &DiskRecord, kept: Kept<'_>) -> Result<InPlaceReport> {
    // Made and taken away again: whatever keeps it from being made is said now.
    drop(new_target(kept.path, disk.size, kept.layout)?);
    let reader = MapReader::new(fetcher.repository, fetcher.locator);
    let mut cursor = Cursor::new(&reader, disk)?;
    let mut report = InPlaceReport { virtual_bytes: disk.size, ..InPlaceReport::default() };
    let mut at = 0;
    while at < disk.size {
        fetcher.monitor.check_cancelled()?;
        let run = cursor.run_from(at)?;
        report.written_bytes += run.chunk.map_or(0, |_| run.end - run.start);
        at = run.end;
    }
    Ok(report)
}

/// What a target was before, and the disk that it is known to hold.
fn what_is_there(
    fetcher: &Fetcher<'_>,
    memory: &TargetMemory,
    target: &Reused,
    kept: Kept<'_>,
) -> Result<(Before, Option<DiskRecord>)> {
    match memory.recall(kept.path, target.file(), kept.layout) {
        Recalled::Holds { point, disk } => {
            let known = known_disk(fetcher, point, &disk)?;
            // Where the disk begins in an image depends on its size.
            let known = known.filter(|known| target.lies_as(known.size));
            Ok((known.as_ref().map_or(Before::Unknown, |_| Before::Known), known))
        }
        Recalled::Changed => Ok((Before::Changed, None)),
        Recalled::Unsure => Ok((Before::Unknown, None)),
        Recalled::Nothing if kept.overwrites || kept.force => Ok((Before::Unknown, None)),
        Recalled::Nothing => {
            let path = kept.path.display();
            let text =
                format!("cannot mirror to {path}: it exists, and is not known to be a mirror");
            let error = Error::new(ErrorKind::AlreadyExists, text);
            Err(error.hint("use --force to overwrite it"))
        }
    }
}

/// The disk of a point that may have been forgotten meanwhile.
fn known_disk(fetcher: &Fetcher<'_>, id: PointId, name: &str) -> Result<Option<DiskRecord>> {
    let points = PointSet::load(fetcher.repository)?;
    let point = points.points.into_iter().find(|point| point.id == id);
    Ok(point.and_then(|point| point.manifest.disks.into_iter().find(|disk| disk.name == name)))
}

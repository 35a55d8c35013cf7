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
use crate::repository::points::{Point, PointSet};
use crate::target::{Layout, ReuseTarget, Reused, new_target};
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
    /// Nobody knew what it held, so it was read.
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
    let Kept { path, layout, mode, force, overwrites, dry_run } = kept;
    let memory = TargetMemory::new(fetcher.repository);
    if !path.exists() {
        if dry_run {
            let report = InPlaceReport { virtual_bytes: disk.size, ..InPlaceReport::default() };
            return Ok((Before::New, report));
        }
        let target = new_target(path, disk.size, layout)?;
        let restored = restore_disk(fetcher, disk, target.as_ref(), mode)?;
        target.finish()?;
        memory.remember(path, layout, point.id, disk);
        let (virtual_bytes, written_bytes) = (restored.virtual_bytes, restored.data_bytes);
        let report = InPlaceReport { virtual_bytes, written_bytes, ..InPlaceReport::default() };
        return Ok((Before::New, report));
    }
    let options = ReuseTarget { size: disk.size, layout, force, read_only: dry_run };
    let target = Reused::open(path, options)?;
    // Looked at while nobody else of this program can write to it.
    let (before, known) = match memory.recall(path, layout) {
        Recalled::Holds { point, disk } => match known_disk(fetcher, point, &disk)? {
            Some(known) => (Before::Known, Some(known)),
            None => (Before::Unknown, None),
        },
        Recalled::Changed => (Before::Changed, None),
        Recalled::Nothing if overwrites || force => (Before::Unknown, None),
        Recalled::Nothing => {
            let text = format!(
                "cannot mirror to {}: it exists, and is not known to be a mirror",
                path.display()
            );
            let error = Error::new(ErrorKind::AlreadyExists, text);
            return Err(error.hint("use --force to overwrite it"));
        }
    };
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
        drop(target);
        memory.remember(path, layout, point.id, disk);
    }
    Ok((before, report))
}

/// The disk of a point that may have been forgotten meanwhile.
fn known_disk(fetcher: &Fetcher<'_>, id: PointId, name: &str) -> Result<Option<DiskRecord>> {
    let points = PointSet::load(fetcher.repository)?;
    let point = points.points.into_iter().find(|point| point.id == id);
    Ok(point.and_then(|point| point.manifest.disks.into_iter().find(|disk| disk.name == name)))
}

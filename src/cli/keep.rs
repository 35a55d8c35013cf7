//! What `restore --in-place`, `mirror` and `backup --then-mirror` share: bringing targets to parts of
//! a point, and telling what that took.

use super::context::Context;
use super::output::{escape, json_line, line};
use super::sizes::format_bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::points::Point;
use crate::restore::fetch::Fetcher;
use crate::restore::in_place::InPlaceReport;
use crate::restore::keep::{Before, Kept, bring_to};
use crate::restore::remembered::TargetMemory;
use crate::restore::{Part, SparseMode};
use crate::source::device_token;
use crate::target::Layout;
use diskvault_format::manifest::DiskRecord;
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// How targets are brought to a point.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// What zeros become.
    pub mode: SparseMode,
    /// Whether what is in use may be written to, and what was never a target.
    pub force: bool,
    /// Whether what was never a target is written to all the same.
    pub overwrites: bool,
    /// Whether nothing is written.
    pub dry_run: bool,
    /// The layout that was asked for; by what is there or by the name if `None`.
    pub layout: Option<Layout>,
}

/// Brings the file or device at `path` to a disk of a point, and tells what that took.
///
/// # Errors
/// `Target` for what is in use, or as [`bring_to`].
pub fn keep_disk(
    context: &Context,
    fetcher: &Fetcher<'_>,
    (point, disk): (&Point, &DiskRecord),
    path: &Path,
    manner: Manner,
) -> Result<()> {
    // What it was made as comes before its bytes: a guest may have written them.
    let was = || TargetMemory::new(fetcher.repository).layout(path);
    let layout = match manner.layout.or_else(was) {
        Some(layout) => layout,
        None => layout_of(path)?,
    };
    let Manner { mode, force, overwrites, dry_run, .. } = manner;
    let kept = Kept { path, layout, mode, force, overwrites, dry_run };
    let monitor = context.monitor();
    let pool = context.pool()?;
    Part::Disk(disk).warn_of_bad_extents(monitor);
    monitor.start(&format!("bringing {} to {}", path.display(), disk.name), Some(disk.size));
    let (before, report) = bring_to(fetcher, &pool, (point, disk), kept)?;
    monitor.finish();
    if before == Before::Changed {
        let path = path.display();
        monitor.note(&format!("{path} was changed since it was written: it was read and mended"));
    }
    print(context, (point, disk), path, manner, before, report)
}

fn print(
    context: &Context,
    (point, disk): (&Point, &DiskRecord),
    path: &Path,
    manner: Manner,
    before: Before,
    report: InPlaceReport,
) -> Result<()> {
    if context.json() {
        return json_line(&json!({
            "message_type": "target",
            "point_id": point.id.to_hex(),
            "name": disk.name,
            "path": path.display().to_string(),
            "before": before.name(),
            "dry_run": manner.dry_run,
            "bytes": report.virtual_bytes,
            "target_read_bytes": report.read_bytes,
            "written_bytes": report.written_bytes,
            "zeroed_bytes": report.zeroed_bytes,
        }));
    }
    let is = if manner.dry_run { "would be" } else { "is" };
    line(&format!(
        "{} {is} {} of point {}: read {}, written {}, zeroed {} of {} ({})",
        escape(&path.display().to_string()),
        escape(&disk.name),
        point.id.short(),
        format_bytes(report.read_bytes),
        format_bytes(report.written_bytes),
        format_bytes(report.zeroed_bytes),
        format_bytes(report.virtual_bytes),
        match before {
            Before::New => "there was nothing",
            Before::Known => "its content was known",
            Before::Changed => "it had been changed",
            Before::Unknown => "its content was not known",
        }
    ))
}

/// A file that starts as a qcow2 image does is one; a new one is what its name says.
///
/// # Errors
/// `Target` if it cannot be read.
pub fn layout_of(path: &Path) -> Result<Layout> {
    let is_file = std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
    if !is_file {
        let is_named = path.extension().is_some_and(|extension| extension == "qcow2");
        return Ok(if is_named && !path.exists() { Layout::Qcow2 } else { Layout::Raw });
    }
    let mut magic = [0; 4];
    let opened = File::open(path);
    let read = opened.and_then(|file| std::os::unix::fs::FileExt::read_at(&file, &mut magic, 0));
    let bytes = read.map_err(|cause| {
        let text = format!("cannot read {}", path.display());
        Error::io(ErrorKind::Target, text, cause)
    })?;
    Ok(if bytes == 4 && magic == *b"QFI\xfb" { Layout::Qcow2 } else { Layout::Raw })
}

/// Refuses to write a disk to the file that it was read from, as far as its token tells.
///
/// # Errors
/// `Target` for that file.
pub fn refuse_source(disk: &DiskRecord, path: &Path) -> Result<()> {
    let Ok(metadata) = std::fs::metadata(path) else { return Ok(()) };
    let wanted = match metadata.file_type().is_block_device() {
        true => device_token(metadata.rdev()),
        false => [metadata.dev().to_le_bytes(), metadata.ino().to_le_bytes()].concat(),
    };
    // The token of an image is made of those of its files, which are numbers of eight bytes.
    let has_it =
        |token: &[u8]| (0..token.len()).step_by(8).any(|at| token[at..].starts_with(&wanted));
    if !has_it(&disk.token) {
        return Ok(());
    }
    let text = format!("cannot write to {}: the point was made of it", path.display());
    let error = Error::new(ErrorKind::Target, text);
    Err(error.hint("use --force to bring the source itself back to the point"))
}

/// True if two paths lead to one file or device.
pub fn is_same(one: &Path, other: &Path) -> bool {
    let (Ok(a), Ok(b)) = (std::fs::metadata(one), std::fs::metadata(other)) else { return false };
    if a.file_type().is_block_device() && b.file_type().is_block_device() {
        return a.rdev() == b.rdev();
    }
    a.dev() == b.dev() && a.ino() == b.ino()
}

//! Hints that nobody gave: what the files of a disk say about what has changed since the last point of
//! its series.
//!
//! Invariant: files speak for a point only if they are the ones that it was read from, in the format
//! that they were read in, and were written last long enough before it was begun.

use super::Context;
use super::disk::DiskRequest;
use super::hint::{BitmapHint, Hint};
use super::marks;
use crate::error::{Error, Result};
use crate::repository::points::Point;
use crate::source::{Changes, DiskSource, token_of};
use diskvault_format::manifest::DiskRecord;
use std::cell::RefCell;
use std::path::Path;

/// A file that was changed so shortly before it was read may have been changed after it with the
/// same times: those tick up to every 10 ms, and clocks of file servers differ.
const RACY_NS: i64 = 2_000_000_000;

/// What a disk says by itself.
///
/// # Errors
/// `Source` for tables of an image that cannot be read, and `Cancelled`.
pub(super) fn find(context: &Context<'_>, request: &DiskRequest<'_>) -> Result<Option<Hint>> {
    // The times of a file that is open to a writer say nothing: what it wrote may not show yet.
    if request.source.written_by_machine().is_some() {
        return Ok(None);
    }
    if let Some(hint) = unchanged_file(request) {
        return Ok(Some(hint));
    }
    match over_base(context, request)? {
        Some(hint) => Ok(Some(hint)),
        None => Ok(by_mark(context, request)),
    }
}

/// The last point, and its record of the disk.
fn last_record<'a>(request: &DiskRequest<'a>) -> Option<(&'a Point, &'a DiskRecord)> {
    let base = request.parent?;
    let disk = base.manifest.disks.iter().find(|disk| disk.name == request.name)?;
    Some((base, disk))
}

/// True for what `base` has read as `disk`, changed long enough before.
fn is_as_then(source: &dyn DiskSource, base: &Point, disk: &DiskRecord) -> bool {
    let changed_unix_ns = source.changed_unix_ns();
    let is_settled = changed_unix_ns.is_some_and(|changed_unix_ns| {
        changed_unix_ns.saturating_add(RACY_NS) < base.manifest.started_unix_ns
    });
    // The format as well: the files of an image are also those of its raw bytes.
    is_settled
        && !disk.token.is_empty()
        && disk.source_format == source.format()
        && disk.token == token_of(source)
}

/// Files with the identity that the last point saw.
fn unchanged_file(request: &DiskRequest<'_>) -> Option<Hint> {
    let (base, disk) = last_record(request)?;
    let told_by = "the file's times".to_string();
    is_as_then(request.source.as_ref(), base, disk).then(|| Hint {
        base: base.clone(),
        changed: Vec::new(),
        told_by,
        unfit: None,
    })
}

/// Images that were laid over the files that the last point saw: what they hold is what has changed.
fn over_base(context: &Context<'_>, request: &DiskRequest<'_>) -> Result<Option<Hint>> {
    let Some((base, disk)) = last_record(request) else { return Ok(None) };
    let found = RefCell::new(String::new());
    let is_base = |below: &dyn DiskSource| {
        *found.borrow_mut() = below.describe();
        is_as_then(below, base, disk)
    };
    let size = request.source.size();
    let mut changes = Changes::default();
    let is_over = request.source.changed_over(&is_base, &mut |range| {
        context.monitor.check_cancelled()?;
        changes.add(range.start..range.end.min(size));
        Ok(())
    })?;
    let found = found.into_inner();
    let name = Path::new(&found).file_name().and_then(|name| name.to_str()).unwrap_or(&found);
    let told_by = format!("what lies over {}", name.escape_debug());
    Ok(is_over.then(|| Hint {
        base: base.clone(),
        changed: changes.finish(),
        told_by,
        unfit: None,
    }))
}

/// A bitmap that was begun when a point of the series was made, and named so: of several points the
/// newest.
fn by_mark(context: &Context<'_>, request: &DiskRequest<'_>) -> Option<Hint> {
    let series = &request.parent?.manifest.series;
    let repository = context.repository.id();
    // Nobody asked for it: what is wrong with it is said, and the disk is read in full.
    let warn = |error: Error| context.monitor.warn(&error.full_text());
    let names = request.source.bitmaps().map_err(warn).ok()?;
    let point_of = |name: &str| {
        let (_, backup) = marks::parse(name)?;
        let is_ours = marks::is_of(repository, series, &request.name, name);
        let has_disk = |point: &Point| {
            let manifest = &point.manifest;
            manifest.backup_id == backup
                && manifest.disks.iter().any(|disk| disk.name == request.name)
        };
        let writers = context.repository.keys().writers();
        // A writer that may not read could say anything of what it has read, but to itself.
        let may_say = |point: &&Point| {
            context.repository.own_copies().is_some()
                || writers.get(point.manifest.writer).is_none()
        };
        let points = context.session.points().points.iter().filter(|_| is_ours);
        let mut points = points.filter(may_say);
        points.find(|point| point.manifest.series == *series && has_disk(point))
    };
    let found = names.iter().filter_map(|name| Some((name, point_of(name)?)));
    let newest = |(_, point): &(&String, &Point)| {
        (point.manifest.sequence, point.manifest.time_unix_ns, point.id)
    };
    let (name, base) = found.max_by_key(newest)?;
    let told = BitmapHint { base: base.clone(), bitmap: name.clone() };
    told.ask(request.source.as_ref()).map_err(warn).ok()
}

//! Checking small objects and the chain of points.
//!
//! Invariant: a point that a later point follows, or that this host remembers, must be there or
//! be explained by a removal note or the trash.

use super::CheckReport;
use crate::error::{ErrorKind, Result};
use crate::repository::Repository;
use crate::repository::objects::{get_hashed, get_record, open_record, refused};
use crate::repository::points::{PointSet, read_manifest};
use crate::repository::writers;
use crate::storage::{Folder, ObjectName};
use diskvault_format::crypto::ObjectKind;
use diskvault_format::id::{LostId, PointId};
use diskvault_format::names;
use diskvault_format::small::{Condemned, Heartbeat, Lease, Lost, NOTE_REMOVAL, Note};
use std::collections::BTreeSet;

/// Opens every small object and returns the points whose absence is explained.
///
/// # Errors
/// Fails only if a folder cannot be listed.
pub fn check_small_objects(
    repository: &Repository,
    report: &mut CheckReport,
) -> Result<BTreeSet<PointId>> {
    let mut explained = BTreeSet::new();
    let folders = [
        Folder::Leases,
        Folder::Condemned,
        Folder::Notes,
        Folder::Lost,
        Folder::Trash,
        Folder::Writers,
    ];
    let mut leases = 0;
    for folder in folders {
        for entry in repository.storage().list(folder)? {
            match check_one(repository, folder, &entry.name) {
                Ok(Some(point)) => {
                    explained.insert(point);
                }
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => report.damage(error.full_text()),
            }
            leases += u32::from(folder == Folder::Leases && !entry.name.leaf().contains('.'));
        }
    }
    if leases > 0 {
        let backups = if leases == 1 { "backup is" } else { "backups are" };
        report.remark(format!("{leases} {backups} running or left behind (leases/)"));
    }
    match repository.storage().list(Folder::Aside)?.len() {
        0 => {}
        1 => report.remark("1 damaged object was set aside (aside/)"),
        count => report.remark(format!("{count} damaged objects were set aside (aside/)")),
    }
    Ok(explained)
}

/// Opens one small object; the point whose absence it explains, if it does.
fn check_one(
    repository: &Repository,
    folder: Folder,
    name: &ObjectName,
) -> Result<Option<PointId>> {
    let storage = repository.storage().as_ref();
    let keys = repository.keys();
    let refuse = |cause| refused(name, cause);
    match folder {
        Folder::Leases => match names::parse_lease(name.leaf()) {
            Some((_, None)) => {
                let lease: Lease = get_record(storage, keys, ObjectKind::Lease, name)?;
                lease.validate().map_err(refuse)?;
            }
            Some((lease, Some(number))) => {
                let beat: Heartbeat = get_record(storage, keys, ObjectKind::Heartbeat, name)?;
                beat.validate(lease, number).map_err(refuse)?;
            }
            None => {}
        },
        Folder::Condemned => {
            let list: Condemned = get_record(storage, keys, ObjectKind::Condemned, name)?;
            list.validate().map_err(refuse)?;
        }
        Folder::Notes => {
            let Some(point) = names::parse_note(name.leaf()) else { return Ok(None) };
            let note: Note = get_record(storage, keys, ObjectKind::Note, name)?;
            note.validate().map_err(refuse)?;
            return Ok((note.kind == NOTE_REMOVAL).then_some(point));
        }
        Folder::Lost => {
            let Some(id) = LostId::from_hex(name.leaf()) else { return Ok(None) };
            let object = get_hashed(storage, name, &id.0)?;
            let list: Lost = open_record(keys, ObjectKind::Lost, name, &object)?;
            list.validate().map_err(refuse)?;
        }
        Folder::Writers if names::is_writer(name.leaf()) => {
            writers::read_one(storage, keys, name)?;
        }
        Folder::Trash => {
            let Some(id) = PointId::from_hex(name.leaf()) else { return Ok(None) };
            read_manifest(repository, Folder::Trash, id)?;
            return Ok(Some(id));
        }
        _ => {}
    }
    Ok(None)
}

/// Checks manifests, `ok`s and the chain of every series.
///
/// # Errors
/// Fails only if the notes cannot be listed.
pub fn check_points(
    repository: &Repository,
    points: &PointSet,
    explained: &BTreeSet<PointId>,
    report: &mut CheckReport,
) -> Result<()> {
    for (_, error) in &points.damaged {
        report.damage(error.full_text());
    }
    for id in &points.lonely_oks {
        if !explained.contains(id) {
            report.damage(format!("the manifest of point {id} is gone: only its ok is left"));
        }
    }
    for id in &points.unfinished {
        match read_manifest(repository, Folder::Points, *id) {
            Ok(_) => report.remark(format!("point {id} was not finished, or is being written")),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => report.damage(error.full_text()),
        }
    }
    let mut known: BTreeSet<PointId> = points.points.iter().map(|point| point.id).collect();
    known.extend(points.unfinished.iter());
    known.extend(points.lonely_oks.iter());
    known.extend(points.damaged.iter().chain(&points.unlisted).map(|(id, _)| *id));
    known.extend(explained);
    let writers = repository.keys().writers();
    for point in &points.points {
        for previous in &point.manifest.previous {
            // A writer that may not read can name what it likes.
            let is_sure = writers.get(point.manifest.writer).is_none();
            if is_sure && !known.contains(previous) {
                report.damage(format!(
                    "point {previous} of {} is gone without a removal note: point {} follows it",
                    point.manifest.series.escape_debug(),
                    point.id.short()
                ));
            }
        }
    }
    // An unfinished manifest is no point: its `ok` may have been taken away.
    let hidden: BTreeSet<&PointId> = points.unfinished.iter().collect();
    for gone in points.unexplained_heads(repository)? {
        let (id, series) = (gone.id, gone.series.escape_debug());
        report.damage(if hidden.contains(&id) {
            format!("the ok of point {id} is gone: this host saw it")
        } else {
            format!("point {id} of {series} is gone without a removal note: this host saw it")
        });
    }
    for point in &points.points {
        for previous in &point.manifest.previous {
            if hidden.contains(previous) {
                let by = point.id.short();
                report.damage(format!("the ok of point {previous} is gone: point {by} follows it"));
            }
        }
    }
    Ok(())
}

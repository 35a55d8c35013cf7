//! Forgetting points (spec/40-protocol.md, "Forget").
//!
//! Order, which must not change without the model check: 1. refuse a pinned point; 2. put a removal
//! note; 3. copy the sealed manifest to the trash; 4. delete the manifest, then its `ok`.

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::notes::{Notes, put_note};
use crate::repository::points::{Point, PointSet, manifest_name};
use crate::storage::{Folder, ObjectName};
use diskvault_format::id::PointId;
use diskvault_format::limits::SEALED_BYTES_MAX;
use diskvault_format::names;
use diskvault_format::small::{NOTE_REMOVAL, NOTE_UNPIN};

/// How points are forgotten.
#[derive(Clone, Copy, Debug)]
pub struct ForgetOptions<'a> {
    /// This host, for the notes.
    pub host: &'a str,
    /// Why, for the notes.
    pub reason: &'a str,
    /// Whether pins are ended instead of respected.
    pub ends_pins: bool,
}

/// Forgets points, one after the other, and tells which are gone. What an earlier run began is
/// finished.
///
/// # Errors
/// `Pinned` for a point that is pinned, `Damage` for one with a note that cannot be read, before
/// anything is written; what the storage says; `Cancelled`. Points before it are gone then.
pub fn forget(
    repository: &Repository,
    points: &[&Point],
    options: &ForgetOptions<'_>,
    monitor: &dyn Monitor,
) -> Result<Vec<PointId>> {
    repository.check_may_write()?;
    if !options.ends_pins {
        let notes = Notes::load(repository)?;
        points.iter().try_for_each(|point| check_pins(repository, &notes, point, options))?;
    }
    let mut gone = Vec::new();
    monitor.start("forgetting points", Some(points.len() as u64));
    for point in points {
        monitor.check_cancelled()?;
        // Anew for each: a long reader may pin its point meanwhile.
        let notes = Notes::load(repository)?;
        check_pins(repository, &notes, point, options)?;
        forget_one(repository, &notes, point.id, options)?;
        gone.push(point.id);
        monitor.advance(1);
    }
    monitor.finish();
    Ok(gone)
}

fn check_pins(
    repository: &Repository,
    notes: &Notes,
    point: &Point,
    options: &ForgetOptions<'_>,
) -> Result<()> {
    let pins = notes.pins(point)?;
    let Some(pin) = pins.first() else { return Ok(()) };
    if !options.ends_pins {
        let (id, reason) = (point.id.short(), pin.reason.escape_debug());
        let why = if pin.reason.is_empty() { String::new() } else { format!(" ({reason})") };
        let error =
            Error::new(ErrorKind::Pinned, format!("cannot forget point {id}: it is pinned{why}"));
        return Err(error.hint("`diskvault unpin` ends its pins"));
    }
    put_note(repository, point.id, NOTE_UNPIN, options.host, Vec::new())
}

fn forget_one(
    repository: &Repository,
    notes: &Notes,
    id: PointId,
    options: &ForgetOptions<'_>,
) -> Result<()> {
    let storage = repository.storage();
    if !notes.removed().contains(&id) {
        let reason = vec![("reason".into(), options.reason.into())];
        put_note(repository, id, NOTE_REMOVAL, options.host, reason)?;
    }
    let name = manifest_name(id)?;
    let trash = ObjectName::new(Folder::Trash, &id.to_hex())?;
    if storage.size(&trash)?.is_none() {
        let sealed = match storage.get(&name, SEALED_BYTES_MAX) {
            // Forgotten by somebody else at the same time.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        put_if_absent(repository, &trash, &sealed)?;
    }
    storage.delete(&name)?;
    storage.delete(&ok_name(id)?)
}

/// The bytes are the same whoever puts them.
fn put_if_absent(repository: &Repository, name: &ObjectName, bytes: &[u8]) -> Result<()> {
    match repository.storage().put_new(name, bytes) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn ok_name(id: PointId) -> Result<ObjectName> {
    ObjectName::new(Folder::Points, &names::point_ok(id))
}

/// Deletes the `ok`s of which the manifest is gone for a reason that a note or the trash tells:
/// what a forget leaves that was stopped between its last two steps.
///
/// # Errors
/// What the storage says.
pub fn delete_lonely_oks(repository: &Repository, points: &PointSet) -> Result<()> {
    if points.lonely_oks.is_empty() {
        return Ok(());
    }
    let removed = crate::repository::points::removed_points(repository)?;
    for id in points.lonely_oks.iter().filter(|id| removed.contains(id)) {
        repository.storage().delete(&ok_name(*id)?)?;
    }
    Ok(())
}

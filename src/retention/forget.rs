//! Forgetting points (spec/40-protocol.md, "Forget").
//!
//! Order, which must not change without the model check: 1. refuse a pinned point; 2. put a removal
//! note; 3. copy the sealed manifest to the trash, and look for pins once more; 4. delete the
//! manifest, then its `ok`.

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::notes::{Notes, end_pins, put_note};
use crate::repository::objects::get_hashed;
use crate::repository::points::{Point, manifest_name, ok_name};
use crate::storage::{Folder, ObjectName};
use diskvault_format::id::PointId;
use diskvault_format::small::NOTE_REMOVAL;

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
    repository.check_may_change()?;
    if !options.ends_pins {
        let notes = Notes::of_points(repository, points.iter().copied())?;
        points.iter().try_for_each(|point| refuse_pinned(&notes, point))?;
    }
    let mut gone = Vec::new();
    monitor.start("forgetting points", Some(points.len() as u64));
    for point in points {
        monitor.check_cancelled()?;
        forget_one(repository, point, options)?;
        gone.push(point.id);
        monitor.advance(1);
    }
    monitor.finish();
    Ok(gone)
}

/// Refuses a point that is pinned.
///
/// # Errors
/// `Pinned`; `Damage` or `Newer` if it cannot be told.
pub fn refuse_pinned(notes: &Notes, point: &Point) -> Result<()> {
    let pins = notes.pins(point)?;
    let Some(pin) = pins.first() else { return Ok(()) };
    let (id, reason) = (point.id.short(), pin.reason.escape_debug());
    let why = if pin.reason.is_empty() { String::new() } else { format!(" ({reason})") };
    let text = format!("cannot forget point {id}: it is pinned{why}");
    Err(Error::new(ErrorKind::Pinned, text).hint("`diskvault unpin` ends its pins"))
}

fn forget_one(repository: &Repository, point: &Point, options: &ForgetOptions<'_>) -> Result<()> {
    let storage = repository.storage();
    let id = point.id;
    let name = manifest_name(id)?;
    let sealed = match get_hashed(storage.as_ref(), &name, &id.0) {
        // Forgotten by somebody else at the same time, who deletes the rest.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if options.ends_pins {
        end_pins(repository, point, options.host, true)?;
    }
    // Also if an earlier run has put one: how long a point is kept counts from now.
    let reason = vec![("reason".into(), options.reason.into())];
    put_note(repository, id, NOTE_REMOVAL, options.host, reason)?;
    put_into_trash(repository, id, &sealed)?;
    // Whoever pins the point from here on sees the trash and knows that it goes.
    if !options.ends_pins {
        refuse_pinned(&Notes::of_points(repository, [point])?, point)?;
    }
    storage.delete(&name)?;
    storage.delete(&ok_name(id)?)
}

/// Sees to it that the trash has the manifest, whole.
fn put_into_trash(repository: &Repository, id: PointId, sealed: &[u8]) -> Result<()> {
    let storage = repository.storage();
    let trash = ObjectName::new(Folder::Trash, &id.to_hex())?;
    match storage.put_new(&trash, sealed) {
        // From a run that was stopped, or one at the same time: the bytes have to be the same.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        other => return other,
    }
    if get_hashed(storage.as_ref(), &trash, &id.0).is_ok() {
        return Ok(());
    }
    storage.delete(&trash)?;
    storage.put_new(&trash, sealed)
}

//! Publishing a forgotten point anew (spec/40-protocol.md, "Undo").
//!
//! Invariants: it is published as a writer publishes, and only if every page and chunk it needs is
//! present by the writer's rules; time, sequence and previous points are the old ones, so that it
//! stands in its series where it stood.

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::complete::find_missing;
use crate::repository::map_reader::MapReader;
use crate::repository::notes::{Notes, store_note};
use crate::repository::points::{Point, PointSet, read_manifest};
use crate::repository::session::Session;
use crate::storage::{Folder, ObjectName};
use diskvault_format::id::PointId;
use diskvault_format::small::{NOTE_PIN, NOTE_TAG, NOTE_UNPIN};

/// Tries of an undo that is fenced each time.
const TRIES: u32 = 3;

/// Points in the trash, by series and age; and manifests that cannot be read, with their ids.
pub type Trash = (Vec<Point>, Vec<(PointId, Error)>);

/// The forgotten points that are still in the trash and were not brought back.
///
/// # Errors
/// Fails if a folder cannot be listed.
pub fn forgotten(repository: &Repository) -> Result<Trash> {
    let visible = PointSet::load(repository)?;
    let is_back = |id: PointId| {
        let mut points = visible.points.iter();
        points.any(|point| point.id == id || point.manifest.republishes == Some(id))
    };
    let (mut points, damaged) = read_trash(repository)?;
    points.retain(|point| !is_back(point.id));
    Ok((points, damaged))
}

fn read_trash(repository: &Repository) -> Result<Trash> {
    let (mut points, mut damaged) = (Vec::new(), Vec::new());
    for entry in repository.storage().list(Folder::Trash)? {
        let Some(id) = PointId::from_hex(entry.name.leaf()) else { continue };
        match read_manifest(repository, Folder::Trash, id) {
            Ok(manifest) => points.push(Point { id, manifest }),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => damaged.push((id, error)),
        }
    }
    points.sort_by_key(|point| {
        let manifest = &point.manifest;
        (manifest.series.clone(), manifest.sequence, manifest.time_unix_ns, point.id)
    });
    Ok((points, damaged))
}

/// Publishes the forgotten point whose id starts with `prefix`; the id of the new point. One that
/// an earlier run has published and not cleared up after is only cleared up after.
///
/// # Errors
/// `NotFound` if there is none in the trash, or if something that it needs is stored no more;
/// `Usage` if several fit; `Fenced` as a backup; what the storage says.
pub fn undo(
    repository: &Repository,
    prefix: &str,
    host: &str,
    monitor: &dyn Monitor,
) -> Result<PointId> {
    let mut tries = 1;
    let (old, new) = loop {
        match publish(repository, prefix, host, monitor) {
            Err(error) if error.kind() == ErrorKind::Fenced && tries < TRIES => tries += 1,
            other => break other?,
        }
    };
    // The point is back. What fails from here on is done by the next undo, or costs a tag.
    if let Err(error) = clear_up(repository, &old, new) {
        monitor.warn(&format!("the point was brought back, but: {}", error.full_text()));
    }
    Ok(new)
}

fn publish(
    repository: &Repository,
    prefix: &str,
    host: &str,
    monitor: &dyn Monitor,
) -> Result<(Point, PointId)> {
    let session = Session::begin(repository, host, monitor)?;
    let old = find(repository, session.points(), prefix)?;
    let mut visible = session.points().points.iter();
    if let Some(back) = visible.find(|point| point.manifest.republishes == Some(old.id)) {
        return Ok((old, back.id));
    }
    let reader = MapReader::new(repository, session.locator());
    monitor.start("looking for what the point needs", None);
    // What a writer stored that may not read is brought back as it is, also before it was verified.
    let is_by_writer = repository.keys().writers().get(old.manifest.writer).is_some();
    let presence = match is_by_writer {
        true => &session.presence().of_writers(),
        false => session.presence().as_ref(),
    };
    let missing = match find_missing(&reader, presence, &old.manifest, monitor) {
        Ok(None) => None,
        Ok(Some(what)) => {
            let point = old.id.short();
            let text = format!("cannot bring back point {point}: {what} is stored no more");
            Some(Error::new(ErrorKind::NotFound, text))
        }
        Err(error) if error.kind().is_finding() => Some(error),
        Err(error) => return Err(error),
    };
    if let Some(error) = missing {
        // A prune has taken it for dead and need not keep what it looks at.
        let fenced = || Error::new(ErrorKind::Fenced, "the lease of this undo was removed");
        return Err(if session.is_registered()? { error } else { fenced() });
    }
    monitor.finish();
    drop(reader);
    let mut manifest = old.manifest.clone();
    manifest.lease = session.lease();
    manifest.republishes = Some(old.id);
    let new = session.publish(&manifest)?;
    Ok((old, new))
}

fn clear_up(repository: &Repository, old: &Point, new: PointId) -> Result<()> {
    let notes = Notes::of_points(repository, [old])?;
    // What holds for the old point through the one before it would be two steps away now.
    for stored in old.manifest.republishes.map_or(&[][..], |older| notes.under(older)) {
        let is_kept = matches!(stored.note.kind, NOTE_TAG | NOTE_PIN | NOTE_UNPIN);
        let random = diskvault_format::id::from_hex::<16>(&stored.random);
        if let (true, Some(random)) = (is_kept, random) {
            match store_note(repository, new, &random, &stored.note) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                other => other?,
            }
        }
    }
    repository.storage().delete(&ObjectName::new(Folder::Trash, &old.id.to_hex())?)?;
    crate::repository::session::remember_heads(repository, &PointSet::load(repository)?)
}

fn find(repository: &Repository, points: &PointSet, prefix: &str) -> Result<Point> {
    let digits = prefix.strip_prefix("id:").unwrap_or(prefix).to_ascii_lowercase();
    let is_id = digits.len() >= 4 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let fits = |id: PointId| is_id && id.to_hex().starts_with(&digits);
    if points.points.iter().any(|point| fits(point.id)) {
        let text = format!("cannot bring back point {digits}: it is not forgotten");
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let (trash, damaged) = read_trash(repository)?;
    let mut fitting = trash.into_iter().filter(|point| fits(point.id));
    match (fitting.next(), fitting.next()) {
        (Some(point), None) => Ok(point),
        (Some(_), Some(_)) => {
            let text = format!("cannot choose a forgotten point: several ids start with {digits}");
            Err(Error::new(ErrorKind::Usage, text))
        }
        (None, _) => {
            if let Some((_, error)) = damaged.into_iter().find(|(id, _)| fits(*id)) {
                return Err(error);
            }
            let text = format!("cannot find a forgotten point with id {}", prefix.escape_debug());
            let error = Error::new(ErrorKind::NotFound, text);
            Err(error.hint("`diskvault list --forgotten` shows what can be brought back"))
        }
    }
}

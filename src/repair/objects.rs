//! Setting small objects aside that cannot be read: manifests, notes, lost lists, what lies in the
//! trash, condemned lists. They keep a prune or every backup from running, because nobody knows
//! what they say.
//!
//! Invariants: nothing is deleted but the `ok` of a point whose manifest is set aside; what a newer
//! program wrote is left alone.

use crate::environment::random_array;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::aside::put_aside;
use crate::repository::notes::put_note;
use crate::repository::objects::{get_hashed, get_record, open_record, refused};
use crate::repository::points::read_manifest;
use crate::repository::writers;
use crate::storage::{Folder, ObjectName};
use diskvault_format::crypto::ObjectKind;
use diskvault_format::id::{InstanceId, LostId, PointId};
use diskvault_format::names::{self, PointName};
use diskvault_format::small::{Condemned, Lost, NOTE_REMOVAL, Note};

/// What may be set aside.
#[derive(Clone, Copy, Debug)]
pub struct ObjectRepairOptions<'a> {
    /// True if somebody vouches that no prune runs on any host: only then a condemned list may go.
    pub no_prune_runs: bool,
    /// This host, for the removal notes.
    pub host: &'a str,
    /// Only say what would be done.
    pub is_dry_run: bool,
}

/// One object that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectRepair {
    /// What it was called.
    pub name: String,
    /// Why it cannot be read.
    pub text: String,
    /// What it is called now; none if it was left where it is.
    pub aside: Option<ObjectName>,
}

/// Where small objects are that can be set aside.
const FOLDERS: [Folder; 6] = [
    Folder::Points,
    Folder::Notes,
    Folder::Lost,
    Folder::Trash,
    Folder::Condemned,
    Folder::Writers,
];

/// Sets aside what cannot be read, and makes a new instance if there is none.
///
/// # Errors
/// `Newer` if the repository must not be written; what the storage says.
pub fn repair_objects(
    repository: &Repository,
    options: &ObjectRepairOptions<'_>,
    monitor: &dyn Monitor,
) -> Result<Vec<ObjectRepair>> {
    repository.check_may_change()?;
    let repository = &repository.forgiving();
    let mut repairs = Vec::new();
    let mut suspects = Vec::new();
    for folder in FOLDERS {
        for entry in repository.storage().list(folder)? {
            if let Err(error) = read(repository, folder, &entry.name) {
                suspects.push((folder, entry.name, error));
            }
        }
    }
    // What is signed by nobody known may be good if it is the record of its writer that is damaged.
    let lacks_a_writer = suspects.iter().any(|(.., error)| error.kind() == ErrorKind::Unlisted);
    let lacks_a_record = suspects.iter().any(|(folder, ..)| *folder == Folder::Writers);
    for (folder, name, first) in suspects {
        // After all others: a medium that failed once may be well again.
        let Err(error) = read(repository, folder, &name) else {
            let text = first.full_text();
            monitor.warn(&format!("{text}; the second time {name} was whole"));
            continue;
        };
        match error.kind() {
            // Gone since the listing.
            ErrorKind::NotFound => continue,
            ErrorKind::Damage => {}
            ErrorKind::Unlisted if !lacks_a_record => {}
            ErrorKind::Newer | ErrorKind::Unlisted => {
                monitor.warn(&format!("{}; it is left alone", error.full_text()));
                continue;
            }
            _ => return Err(error),
        }
        let may_go = match folder {
            Folder::Condemned => options.no_prune_runs,
            Folder::Writers => !lacks_a_writer,
            _ => true,
        };
        let aside = match may_go && !options.is_dry_run {
            true => Some(take_away(repository, &name, options.host)?),
            false => None,
        };
        repairs.push(ObjectRepair { name: name.to_string(), text: error.full_text(), aside });
    }
    repairs.extend(repair_instance(repository, options.is_dry_run)?);
    Ok(repairs)
}

/// Reads an object as whoever needs it does.
fn read(repository: &Repository, folder: Folder, name: &ObjectName) -> Result<()> {
    let (storage, keys) = (repository.storage().as_ref(), repository.keys());
    let refuse = |cause| refused(name, cause);
    match folder {
        Folder::Points => match names::parse_point(name.leaf()) {
            Some(PointName::Manifest(id)) => {
                read_manifest(repository, folder, id)?;
            }
            Some(PointName::Ok(_)) | None => {}
        },
        Folder::Trash => {
            if let Some(id) = PointId::from_hex(name.leaf()) {
                read_manifest(repository, folder, id)?;
            }
        }
        Folder::Notes if names::parse_note(name.leaf()).is_some() => {
            let note: Note = get_record(storage, keys, ObjectKind::Note, name)?;
            note.validate().map_err(refuse)?;
        }
        Folder::Lost => {
            if let Some(id) = LostId::from_hex(name.leaf()) {
                let object = get_hashed(storage, name, &id.0)?;
                let list: Lost = open_record(keys, ObjectKind::Lost, name, &object)?;
                list.validate().map_err(refuse)?;
            }
        }
        Folder::Condemned => {
            let list: Condemned = get_record(storage, keys, ObjectKind::Condemned, name)?;
            list.validate().map_err(refuse)?;
        }
        Folder::Writers if names::is_writer(name.leaf()) => {
            writers::read_one(storage, keys, name)?;
        }
        _ => {}
    }
    Ok(())
}

/// A manifest goes as by a forget: the note that explains it, the manifest, then its `ok`.
fn take_away(repository: &Repository, name: &ObjectName, host: &str) -> Result<ObjectName> {
    let manifest = match (name.folder(), names::parse_point(name.leaf())) {
        (Folder::Points, Some(PointName::Manifest(id))) => Some(id),
        _ => None,
    };
    if let Some(id) = manifest {
        let reason = vec![("reason".into(), "its manifest was damaged and set aside".into())];
        put_note(repository, id, NOTE_REMOVAL, host, reason)?;
    }
    let aside = put_aside(repository, name)?;
    if let Some(id) = manifest {
        repository.storage().delete(&ObjectName::new(Folder::Points, &names::point_ok(id))?)?;
    }
    Ok(aside)
}

/// The instance says which copy of the repository this is; a new one is as good.
fn repair_instance(repository: &Repository, is_dry_run: bool) -> Result<Option<ObjectRepair>> {
    let error: Error = match repository.instance() {
        Ok(_) => return Ok(None),
        Err(error) if error.kind().is_finding() && error.kind() != ErrorKind::Newer => error,
        Err(error) => return Err(error),
    };
    let name = ObjectName::new(Folder::Instance, names::INSTANCE)?;
    let mut aside = None;
    if !is_dry_run {
        if error.kind() != ErrorKind::NotFound {
            aside = Some(put_aside(repository, &name)?);
        }
        let id = InstanceId(random_array(repository.environment().as_ref())?);
        repository.storage().put_new(&name, &diskvault_format::instance::encode(id))?;
        repository.remember(|memory| memory.instance = id.to_hex())?;
    }
    Ok(Some(ObjectRepair { name: name.to_string(), text: error.full_text(), aside }))
}

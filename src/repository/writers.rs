//! Writers that may not read: their records, and who becomes one or ceases to be one
//! (spec/21-writers.md).
//!
//! Invariants: a record is put before anything counts that needs it; who is retired stays so; points
//! that counted go on to count.

use super::Repository;
use super::at_once::at_once;
use super::objects::{get_record, refused, seal_record};
use super::points::{PointSet, read_manifest};
use crate::environment::random_array;
use crate::error::{ErrorKind, Result};
use crate::storage::{Folder, ObjectName, Storage};
use diskvault_format::crypto::{Keys, ObjectKind};
use diskvault_format::id::PointId;
use diskvault_format::names;
use diskvault_format::writers::WriterRecord;
use std::collections::BTreeSet;

/// Reads one record.
///
/// # Errors
/// What the storage says; `Damage`.
pub fn read_one(storage: &dyn Storage, keys: &Keys, name: &ObjectName) -> Result<WriterRecord> {
    let record: WriterRecord = get_record(storage, keys, ObjectKind::Writer, name)?;
    record.validate().map_err(|cause| refused(name, cause))?;
    Ok(record)
}

/// Reads all records; with those that cannot be read, in words: what their writers stored is refused.
///
/// # Errors
/// What the storage says.
pub fn read_all(storage: &dyn Storage, keys: &Keys) -> Result<(Vec<WriterRecord>, Vec<String>)> {
    let (mut records, mut problems) = (Vec::new(), Vec::new());
    let mut listed = storage.list(Folder::Writers)?;
    listed.retain(|entry| names::is_writer(entry.name.leaf()));
    let read = at_once(storage, &listed, &|| Ok(()), |entry| read_one(storage, keys, &entry.name))?;
    for read in read {
        match read {
            Ok(record) => records.push(record),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind().is_finding() => {
                problems.push(format!("{}; who it names may be refused", error.full_text()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok((records, problems))
}

/// Stores a record, twice: without any, what its writer stored would count for nothing.
///
/// # Errors
/// `Failed` for one that breaks the rules; what the storage says.
pub fn put(repository: &Repository, record: &WriterRecord) -> Result<()> {
    record.validate().map_err(|cause| super::objects::cannot_make("a writer's record", cause))?;
    let environment = repository.environment().as_ref();
    for _ in 0..2 {
        let name = ObjectName::new(Folder::Writers, &names::writer(&random_array(environment)?))?;
        let random = random_array(environment)?;
        let (keys, kind) = (repository.keys(), ObjectKind::Writer);
        let object = seal_record(keys, kind, Some(&name), &random, record)?;
        repository.storage().put_new(&name, &object)?;
    }
    Ok(())
}

/// Retires a writer: what it has made by now goes on to count, and nothing else. Points that are
/// forgotten or not finished yet too, and those that cannot be read, of which nobody knows whose they
/// are: an id counts only with the writer's signature.
///
/// # Errors
/// What the storage says.
pub fn retire(repository: &Repository, record: &WriterRecord) -> Result<()> {
    let writer = record.writer();
    let points = PointSet::load(repository)?;
    let own = points.points.iter().filter(|point| point.manifest.writer == writer);
    let mut counting: BTreeSet<PointId> = own.map(|point| point.id).collect();
    counting.extend(points.damaged.iter().map(|(id, _)| *id));
    let trash = repository.storage().list(Folder::Trash)?;
    let trash = trash.iter().filter_map(|entry| PointId::from_hex(entry.name.leaf()));
    let unfinished = points.unfinished.iter().map(|id| (Folder::Points, *id));
    for (folder, id) in trash.map(|id| (Folder::Trash, id)).chain(unfinished) {
        let is_of_another =
            read_manifest(repository, folder, id).is_ok_and(|manifest| manifest.writer != writer);
        if !is_of_another {
            counting.insert(id);
        }
    }
    let retired = Some(counting.into_iter().collect());
    let time_unix_ns = repository.environment().now_unix_ns();
    put(repository, &WriterRecord { time_unix_ns, retired, ..record.clone() })
}

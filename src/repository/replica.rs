//! A replica: another copy of a repository, with the same id and keys and an instance of its own.
//!
//! Order of writing, as in `init`: key slots, instance, records of writers, config. So a crash leaves no repository, or
//! a replica that has no points yet.

use super::Repository;
use super::secrets::slot_name;
use super::writers;
use crate::environment::random_array;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Folder, ObjectName, Storage};
use diskvault_format::id::{InstanceId, KeySlotId};
use diskvault_format::limits::{CONFIG_BYTES_MAX, KEY_SLOT_BYTES_MAX, SEALED_BYTES_MAX};
use diskvault_format::{instance, names};

/// How the keys of two copies stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Both have the same config.
    Same,
    /// The source has a newer config.
    SourceIsNewer,
    /// The replica has a newer config: its keys were changed there.
    ReplicaIsNewer,
}

/// Makes a replica without points on an empty storage.
///
/// # Errors
/// `AlreadyExists` if there is a config, or what the storages say.
pub fn initialise_replica(source: &Repository, target: &dyn Storage) -> Result<()> {
    if !target.list(Folder::Config)?.is_empty() {
        let text = format!("cannot make replica {}: there is a repository", target.location());
        return Err(Error::new(ErrorKind::AlreadyExists, text));
    }
    copy_slots(source, target)?;
    let own = InstanceId(random_array(source.environment().as_ref())?);
    let name = ObjectName::new(Folder::Instance, names::INSTANCE)?;
    target.put_new(&name, &instance::encode(own))?;
    copy_writers(source, target)?;
    copy_object(source, target, &config_name(source)?, CONFIG_BYTES_MAX)
}

/// Compares two copies before anything goes from one to the other.
///
/// # Errors
/// `Usage` if both are one copy, or say so; `Storage` if both have changed their keys since they
/// were the same.
pub fn relation(source: &Repository, target: &Repository) -> Result<Relation> {
    let own = source.instance()?;
    if own == target.instance()? {
        let text = format!(
            "cannot tell {} from {}: both are copy {} of the repository",
            source.storage().location(),
            target.storage().location(),
            own.to_hex()
        );
        return Err(Error::new(ErrorKind::Usage, text).hint(
            "if one was made by copying files, delete its file `instance` and run `diskvault \
             repair objects` on it",
        ));
    }
    let (here, there) = (&source.config_leaf, &target.config_leaf);
    let generations = (source.config().generation, target.config().generation);
    match generations.0.cmp(&generations.1) {
        _ if here == there => Ok(Relation::Same),
        std::cmp::Ordering::Greater => Ok(Relation::SourceIsNewer),
        std::cmp::Ordering::Less => Ok(Relation::ReplicaIsNewer),
        std::cmp::Ordering::Equal => {
            let text = format!(
                "cannot sync: the two have drifted apart: each has a config {here:.8} of its own, \
                 {here} in {} and {there} in {}",
                source.storage().location(),
                target.storage().location()
            );
            Err(Error::new(ErrorKind::Storage, text)
                .hint("change the keys of the one whose keys are to count once more"))
        }
    }
}

/// Gives a replica the newer config and the key slots that it lists. A writer that was retired in the
/// source keeps all its points in the replica, which may be more than the source has.
///
/// # Errors
/// What the storages say.
pub fn bring_keys_up(source: &Repository, target: &Repository) -> Result<()> {
    for record in source.keys().writers().iter().filter(|record| record.retired.is_some()) {
        let known = target.keys().writers().get(record.writer());
        if known.is_some_and(|known| known.retired.is_none()) {
            writers::retire(target, record)?;
        }
    }
    let target = target.storage().as_ref();
    copy_slots(source, target)?;
    copy_writers(source, target)?;
    copy_object(source, target, &config_name(source)?, CONFIG_BYTES_MAX)?;
    // Those that no config lists open nothing; they go as where they were removed.
    for entry in target.list(Folder::Keys)? {
        let listed = KeySlotId::from_hex(entry.name.leaf())
            .is_some_and(|id| source.config().key_slots.contains(&id));
        if !listed {
            target.delete(&entry.name)?;
        }
    }
    Ok(())
}

fn config_name(source: &Repository) -> Result<ObjectName> {
    ObjectName::new(Folder::Config, &source.config_leaf)
}

fn copy_slots(source: &Repository, target: &dyn Storage) -> Result<()> {
    for id in &source.config().key_slots {
        copy_object(source, target, &slot_name(*id)?, KEY_SLOT_BYTES_MAX)?;
    }
    Ok(())
}

/// Without these what writers stored that may not read would be refused.
fn copy_writers(source: &Repository, target: &dyn Storage) -> Result<()> {
    for entry in source.storage().list(Folder::Writers)? {
        copy_object(source, target, &entry.name, SEALED_BYTES_MAX)?;
    }
    Ok(())
}

/// Copies one object as it is; one that is there is the same.
fn copy_object(
    source: &Repository,
    target: &dyn Storage,
    name: &ObjectName,
    bytes_max: u64,
) -> Result<()> {
    match target.put_new(name, &source.storage().get(name, bytes_max)?) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

//! Packs that their parity makes whole (spec/39-parity.md), and parity for those that have none.
//!
//! Invariants: healed bytes hash to the pack's name before anything is moved; the damaged ones are
//! set aside, not replaced. Between the two steps the pack is absent for a moment, and a run that is
//! stopped there leaves it under `aside/`, from where the next one heals it.

use crate::error::{ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::aside::{packs_aside, put_aside};
use crate::repository::pack_reader::pack_name;
use crate::repository::parity::{
    heal_stored, heal_stored_at, parity_name, store_parity, verify_parity,
};
use crate::repository::salvage::load;
use crate::storage::{Folder, ObjectName};
use diskvault_format::id::PackId;
use std::collections::HashSet;

/// Heals those of these packs that have enough parity.
///
/// # Errors
/// `NoSpace` if there is no room for a healed pack, which then stays as it is; what the storage
/// says; `Cancelled`.
pub fn heal_packs(
    repository: &Repository,
    packs: &[PackId],
    monitor: &dyn Monitor,
) -> Result<Vec<PackId>> {
    let storage = repository.storage().as_ref();
    let mut healed = Vec::new();
    for id in packs {
        monitor.check_cancelled()?;
        let Some(bytes) = usable(heal_stored(storage, *id), monitor)? else { continue };
        let name = pack_name(*id)?;
        let aside = put_aside(repository, &name)?;
        put_back(repository, &name, &bytes, &aside)?;
        healed.push(*id);
    }
    Ok(healed)
}

/// Puts a healed pack in its place, or the damaged one back.
fn put_back(
    repository: &Repository,
    name: &ObjectName,
    bytes: &[u8],
    aside: &ObjectName,
) -> Result<()> {
    let storage = repository.storage();
    match storage.put_new(name, bytes) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => {
            // Best effort: what stays aside is healed by the next run.
            let _ = storage.rename(aside, name);
            Err(error)
        }
        Ok(()) => Ok(()),
    }
}

/// Heals packs that an earlier run has set aside and not put back.
///
/// # Errors
/// As [`heal_packs`].
pub(super) fn heal_what_is_aside(
    repository: &Repository,
    monitor: &dyn Monitor,
) -> Result<Vec<PackId>> {
    let storage = repository.storage().as_ref();
    let mut healed = Vec::new();
    for (id, aside) in packs_aside(repository)? {
        let name = pack_name(id)?;
        if storage.size(&name)?.is_some() || storage.size(&parity_name(id)?)?.is_none() {
            continue;
        }
        let Some(bytes) = usable(heal_stored_at(storage, id, &aside), monitor)? else { continue };
        match storage.put_new(&name, &bytes) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            other => other?,
        }
        healed.push(id);
    }
    Ok(healed)
}

/// Healed bytes; nothing without parity, and a warning if it does not suffice.
fn usable(healed: Result<Option<Vec<u8>>>, monitor: &dyn Monitor) -> Result<Option<Vec<u8>>> {
    match healed {
        Err(error) if error.kind().is_finding() || error.kind() == ErrorKind::Storage => {
            monitor.warn(&error.full_text());
            Ok(None)
        }
        healed => healed,
    }
}

/// Makes parity for the packs among `whole` that have none, or none that is whole, if the config
/// asks for it; how many.
///
/// # Errors
/// `NoSpace`, or what the storage says; `Cancelled`.
pub(super) fn complete_parity(
    repository: &Repository,
    whole: &HashSet<PackId>,
    monitor: &dyn Monitor,
) -> Result<u64> {
    let per_mille = repository.config().parity_per_mille();
    if per_mille == 0 {
        return Ok(0);
    }
    let storage = repository.storage().as_ref();
    let mut made = 0;
    for entry in storage.list(Folder::Packs)? {
        let id = PackId::from_hex(entry.name.leaf()).filter(|id| whole.contains(id));
        let Some(id) = id else { continue };
        monitor.check_cancelled()?;
        let name = parity_name(id)?;
        match verify_parity(storage, id) {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) if error.kind() == ErrorKind::Damage => _ = put_aside(repository, &name)?,
            Err(error) => return Err(error),
        }
        let read = load(storage, &entry.name)?;
        if read.unreadable.is_empty() && *blake3::hash(&read.bytes).as_bytes() == id.0 {
            store_parity(storage, id, &read.bytes, per_mille)?;
            made += 1;
        }
    }
    Ok(made)
}

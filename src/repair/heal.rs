//! Packs that their parity makes whole (spec/39-parity.md), and parity for those that have none.
//!
//! Invariants: healed bytes hash to the pack's name before anything is moved; the damaged ones are
//! set aside, not replaced. Between the two steps the pack is absent for a moment, and a run that is
//! stopped there leaves it under `aside/`, from where the next one heals it.

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::aside::{packs_aside, put_aside};
use crate::repository::condemned;
use crate::repository::pack_reader::pack_name;
use crate::repository::parity::{
    heal_stored, heal_stored_at, parity_name, store_parity, verify_parity,
};
use crate::repository::salvage::load;
use crate::repository::verify::verify_pack;
use crate::storage::{Folder, ObjectName};
use diskvault_format::id::PackId;
use std::collections::HashSet;

/// What became of damaged packs.
#[derive(Debug, Default)]
pub struct Healing {
    /// Those that their parity has made whole.
    pub healed: Vec<PackId>,
    /// Those that were whole when they were read again.
    pub whole: Vec<PackId>,
    /// What ended it before all were looked at.
    pub error: Option<Error>,
}

/// Heals those of these packs that have enough parity, while no prune and no other repair of this
/// host runs.
///
/// # Errors
/// `Newer` for a repository that must not be written to; `Failed` if another runs. What happens on
/// the way is told beside what was done until then.
pub fn heal_damaged(
    repository: &Repository,
    packs: &[PackId],
    monitor: &dyn Monitor,
) -> Result<Healing> {
    repository.check_may_change()?;
    let repository = &repository.forgiving();
    let _lock = condemned::claim(repository, "repair")?;
    Ok(heal_packs(repository, packs, monitor))
}

/// Heals those of these packs that have enough parity.
pub(super) fn heal_packs(
    repository: &Repository,
    packs: &[PackId],
    monitor: &dyn Monitor,
) -> Healing {
    let mut healing = Healing::default();
    for id in packs {
        if let Err(error) = heal_one(repository, *id, &mut healing, monitor) {
            healing.error = Some(error);
            break;
        }
    }
    healing
}

fn heal_one(
    repository: &Repository,
    id: PackId,
    healing: &mut Healing,
    monitor: &dyn Monitor,
) -> Result<()> {
    monitor.check_cancelled()?;
    let storage = repository.storage().as_ref();
    let name = pack_name(id)?;
    let is_whole = || verify_pack(repository, id, &|_, _, _, _| Ok(())).is_ok();
    let there = match load(storage, &name) {
        // A prune has deleted it, or nothing of it can be read.
        Err(error) if error.kind().is_finding() => return Ok(()),
        other => other?,
    };
    if there.unreadable.is_empty() && *blake3::hash(&there.bytes).as_bytes() == id.0 {
        // Nothing that parity knows of is wrong: what was read before was, or what was written.
        if is_whole() {
            monitor.warn(&format!("the second time pack {id} was whole"));
            healing.whole.push(id);
        }
        return Ok(());
    }
    drop(there);
    let Some(bytes) = usable(heal_stored(storage, id), monitor)? else { return Ok(()) };
    let aside = match put_aside(repository, &name) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    put_back(repository, &name, &bytes, &aside)?;
    if is_whole() {
        healing.healed.push(id);
    }
    Ok(())
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
/// `NoSpace` if there is no room for a healed pack; what the storage says; `Cancelled`.
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
        Err(error) if error.kind().is_finding() => {
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
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::Damage => _ = put_aside(repository, &name)?,
            Err(error) => return Err(error),
        }
        let read = match load(storage, &entry.name) {
            // A prune has deleted it.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        if read.unreadable.is_empty() && *blake3::hash(&read.bytes).as_bytes() == id.0 {
            store_parity(storage, id, &read.bytes, per_mille)?;
            made += 1;
        }
    }
    Ok(made)
}

//! Condemned lists and leases as a pruner sees them (spec/40-protocol.md, "Pruner", step 2): lists of
//! packs that are about to go, and waiting for the writers that may not have seen them.
//!
//! Order, which must not change without the model check: put the own list, *then* list the leases
//! once and wait for exactly these. A lease stands still by a monotonic clock of this process alone.

use super::Repository;
use super::address::format_time_utc;
use super::aside::packs_aside;
use super::host_memory::{CondemnedMemory, StandingLease};
use super::objects::{get_record, refused, seal_record};
use super::pack_reader::pack_name;
use crate::environment::random_array;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::storage::{Folder, ObjectName};
use diskvault_format::crypto::ObjectKind;
use diskvault_format::id::{LeaseId, PackId, to_hex};
use diskvault_format::names;
use diskvault_format::small::{Condemned, Lease};
use rustix::fs::{FlockOperation, flock};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::time::Duration;

/// Held while a prune or repair of this host runs.
const LOCK: &str = "prune.lock";
/// Most packs of one list: 16 MiB of sealed object hold 520,000 ids.
const LIST_PACKS_MAX: usize = 400_000;
/// How often leases are looked at while they are waited for.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// A list, by the last part of its name.
#[derive(Clone, Debug)]
pub struct List {
    /// Its object.
    pub name: ObjectName,
    /// Its packs.
    pub packs: Vec<PackId>,
}

/// Reads all lists.
///
/// # Errors
/// `Damage` or `Newer` for one that cannot be read: any pack may be on it.
pub fn read_lists(repository: &Repository) -> Result<Vec<List>> {
    let storage = repository.storage().as_ref();
    let mut lists = Vec::new();
    for entry in storage.list(Folder::Condemned)? {
        let name = entry.name;
        let read: Result<Condemned> =
            get_record(storage, repository.keys(), ObjectKind::Condemned, &name);
        match read {
            Ok(list) => {
                list.validate().map_err(|cause| refused(&name, cause))?;
                lists.push(List { name, packs: list.packs });
            }
            // Dropped by its owner since the listing.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(lists)
}

/// Puts a list of `packs` (ascending, at most as many as fit); it counts from then on.
///
/// # Errors
/// `NoSpace`, or what the storage says.
pub fn put_list(repository: &Repository, packs: &[PackId], host: &str) -> Result<List> {
    let packs = packs[..packs.len().min(LIST_PACKS_MAX)].to_vec();
    let environment = repository.environment().as_ref();
    let random: [u8; 16] = random_array(environment)?;
    let name = ObjectName::new(Folder::Condemned, &to_hex(&random))?;
    let time_unix_ns = environment.now_unix_ns();
    let record = Condemned { packs: packs.clone(), host: host.to_string(), time_unix_ns };
    let nonce = random_array(environment)?;
    let keys = repository.keys();
    let object = seal_record(keys, ObjectKind::Condemned, Some(&name), &nonce, &record)?;
    repository.storage().put_new(&name, &object)?;
    Ok(List { name, packs })
}

/// The leases there are, each with the number of its newest heartbeat; 0 if it has none.
///
/// # Errors
/// What the storage says.
pub fn leases(repository: &Repository) -> Result<BTreeMap<LeaseId, u64>> {
    let (mut leases, mut beats) = (BTreeSet::new(), BTreeMap::new());
    for entry in repository.storage().list(Folder::Leases)? {
        match names::parse_lease(entry.name.leaf()) {
            Some((lease, None)) => _ = leases.insert(lease),
            Some((lease, Some(number))) => {
                let newest: &mut u64 = beats.entry(lease).or_default();
                *newest = number.max(*newest);
            }
            None => {}
        }
    }
    Ok(leases.into_iter().map(|lease| (lease, beats.get(&lease).copied().unwrap_or(0))).collect())
}

/// How long to wait for writers.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A lease whose heartbeat has not grown for so long is fenced.
    pub stands_still: Duration,
    /// False to wait for nobody: what is being written keeps its packs for the next run.
    pub waits: bool,
}

/// Waits until all of these leases are gone, fencing those that stand still. Tells how many were
/// fenced; nothing if some are left and nobody is to be waited for.
///
/// # Errors
/// What the storage says; `Cancelled`.
pub fn wait_for(
    repository: &Repository,
    mut waited: BTreeSet<LeaseId>,
    patience: Patience,
    monitor: &dyn Monitor,
) -> Result<Option<u64>> {
    let mut watch = Watch::new(repository);
    let (mut fenced, mut is_told) = (0, false);
    loop {
        fenced += watch.look(&mut waited, patience, monitor)?;
        if waited.is_empty() {
            return Ok(Some(fenced));
        }
        if !patience.waits {
            return Ok(None);
        }
        if !std::mem::replace(&mut is_told, true) {
            let backups = if waited.len() == 1 { "backup" } else { "backups" };
            monitor.note(&format!("waiting for {} running {backups} to end", waited.len()));
        }
        let interval = LOOK_INTERVAL.min(patience.stands_still);
        repository.environment().pause(interval, &|| monitor.check_cancelled())?;
    }
}

/// Fences all leases that have stood still for long enough; how many. Waits for none.
///
/// # Errors
/// What the storage says.
pub fn fence_dead(
    repository: &Repository,
    patience: Patience,
    monitor: &dyn Monitor,
) -> Result<u64> {
    let mut all = leases(repository)?.into_keys().collect();
    Watch::new(repository).look(&mut all, patience, monitor)
}

/// Since when leases stand still, as this host saw it: in this run, and before it since the last
/// boot, so that a run that waits for nobody finds out as well.
struct Watch<'a> {
    repository: &'a Repository,
    boot: Option<String>,
    /// The newest beat, and when it was first seen, on the monotonic clock of this boot.
    seen: BTreeMap<LeaseId, (u64, Duration)>,
    /// True once it is remembered.
    is_stored: bool,
}

impl<'a> Watch<'a> {
    fn new(repository: &'a Repository) -> Watch<'a> {
        let boot = repository.environment().boot_id();
        let now = repository.environment().monotonic();
        let mut seen = BTreeMap::new();
        for standing in repository.memory().standing {
            let since = Duration::from_secs(standing.since_seconds);
            if boot.as_ref() == Some(&standing.boot)
                && since <= now
                && let Some(lease) = LeaseId::from_hex(&standing.lease)
            {
                seen.insert(lease, (standing.beat, since));
            }
        }
        Watch { repository, boot, seen, is_stored: false }
    }

    /// Takes the leases that are gone out of `waited`, and those that it fences; how many these are.
    fn look(
        &mut self,
        waited: &mut BTreeSet<LeaseId>,
        patience: Patience,
        monitor: &dyn Monitor,
    ) -> Result<u64> {
        let there = leases(self.repository)?;
        waited.retain(|lease| there.contains_key(lease));
        self.seen.retain(|lease, _| there.contains_key(lease));
        let mut fenced = 0;
        for lease in waited.clone() {
            let newest = there[&lease];
            let now = self.repository.environment().monotonic();
            let (known, since) = *self.seen.entry(lease).or_insert((newest, now));
            if newest > known {
                self.seen.insert(lease, (newest, now));
            } else if now.saturating_sub(since) >= patience.stands_still {
                fence(self.repository, lease, newest, monitor)?;
                fenced += 1;
                waited.remove(&lease);
                self.seen.remove(&lease);
            }
        }
        if !std::mem::replace(&mut self.is_stored, true) {
            self.store()?;
        }
        Ok(fenced)
    }

    fn store(&self) -> Result<()> {
        let Some(boot) = &self.boot else { return Ok(()) };
        let standing: Vec<StandingLease> = self
            .seen
            .iter()
            .map(|(lease, (beat, since))| StandingLease {
                lease: lease.to_hex(),
                beat: *beat,
                boot: boot.clone(),
                // Rounded up: never longer than it was.
                since_seconds: since.as_secs() + u64::from(since.subsec_nanos() > 0),
            })
            .collect();
        if standing != self.repository.memory().standing {
            self.repository.remember(|memory| memory.standing.clone_from(&standing))?;
        }
        Ok(())
    }
}

/// Deletes a lease whose writer is taken for dead, and then its heartbeats.
fn fence(
    repository: &Repository,
    lease: LeaseId,
    newest: u64,
    monitor: &dyn Monitor,
) -> Result<()> {
    let storage = repository.storage();
    let name = ObjectName::new(Folder::Leases, &lease.to_hex())?;
    let writer = describe_writer(repository, &name);
    storage.delete(&name)?;
    monitor.warn(&format!(
        "{writer} gave no sign of life and was taken off; if it still runs it starts over"
    ));
    for number in newest.saturating_sub(1)..=newest {
        if number > 0 {
            storage.delete(&ObjectName::new(Folder::Leases, &names::heartbeat(lease, number))?)?;
        }
    }
    Ok(())
}

/// Whose lease it is, as far as it says.
fn describe_writer(repository: &Repository, name: &ObjectName) -> String {
    let (storage, keys) = (repository.storage().as_ref(), repository.keys());
    match get_record::<Lease>(storage, keys, ObjectKind::Lease, name) {
        Ok(Lease { host, process, started_unix_ns, .. }) => {
            let (host, since) = (host.escape_debug(), format_time_utc(started_unix_ns));
            format!("the backup of host {host}, process {process}, that began at {since}")
        }
        Err(_) => format!("the backup with lease {}", name.leaf()),
    }
}

/// Deletes heartbeats of leases that are gone.
///
/// # Errors
/// What the storage says.
pub fn delete_orphaned_heartbeats(repository: &Repository) -> Result<()> {
    let storage = repository.storage();
    let mut beats = Vec::new();
    for entry in storage.list(Folder::Leases)? {
        if let Some((lease, Some(_))) = names::parse_lease(entry.name.leaf()) {
            beats.push((lease, entry.name));
        }
    }
    // After the beats: a lease is there before its first beat, and goes before its last.
    let there = leases(repository)?;
    for (_, name) in beats.iter().filter(|(lease, _)| !there.contains_key(lease)) {
        storage.delete(name)?;
    }
    Ok(())
}

/// Drops the lists of which no pack exists any more, also not aside, from where a healing puts it
/// back: anybody may.
///
/// # Errors
/// What the storage says.
pub fn drop_empty_lists(repository: &Repository) -> Result<()> {
    let lists = read_lists(repository)?;
    let storage = repository.storage();
    for list in lists {
        let mut is_empty = true;
        for id in &list.packs {
            is_empty = is_empty && storage.size(&pack_name(*id)?)?.is_none();
        }
        // Looked up behind the packs: one that was taken aside before is there now.
        if is_empty && !list.packs.is_empty() {
            let aside = packs_aside(repository)?;
            is_empty = !list.packs.iter().any(|id| aside.contains_key(id));
        }
        if is_empty {
            storage.delete(&list.name)?;
        }
    }
    Ok(())
}

/// One prune or repair of a host at a time: two would act on the same list. `verb` is what is to be
/// done. Nothing where the cache has no locks; lists of earlier runs are left to other hosts then.
///
/// # Errors
/// `Failed` if another runs.
pub fn claim(repository: &Repository, verb: &str) -> Result<Option<File>> {
    let path = repository.cache().join(LOCK);
    let Ok(file) = File::options().create(true).append(true).open(&path) else { return Ok(None) };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let text = "a prune or repair of this repository runs on this host";
            Err(Error::new(ErrorKind::Failed, format!("cannot {verb}: {text}")))
        }
        Err(_) => Ok(None),
    }
}

/// Remembers a list of this host and what it waits for, so that a later run goes on.
///
/// # Errors
/// As [`Repository::remember`].
pub fn remember(
    repository: &Repository,
    list: &List,
    leases: &BTreeSet<LeaseId>,
    is_for_repair: bool,
) -> Result<()> {
    let own = CondemnedMemory {
        list: list.name.leaf().to_string(),
        leases: leases.iter().map(|lease| lease.to_hex()).collect(),
        instance: repository.memory().instance,
        is_for_repair,
    };
    repository.remember(|memory| memory.condemned.push(own.clone()))
}

/// Takes up a list that an earlier run of this host has put: a list to go on with, and the leases
/// it waits for. Nothing if there is nothing to go on with.
///
/// The cache that remembers the list may have been copied, with a machine or a home, and then two
/// owners act on it. So a list of the same packs is put first, and the old one looked for then. If
/// that is still there, whoever registered since it was put has seen one of the two, and the
/// remembered leases are all that can matter. If it is gone, the new list is as any new one.
///
/// # Errors
/// `Damage` or `Newer` for a list that cannot be read; what the storage says.
pub fn take_up(
    repository: &Repository,
    own: &CondemnedMemory,
    host: &str,
) -> Result<Option<(List, BTreeSet<LeaseId>)>> {
    let find = || -> Result<Option<List>> {
        Ok(read_lists(repository)?.into_iter().find(|list| list.name.leaf() == own.list))
    };
    // Of another copy of the repository, the leases are other ones.
    if own.instance != repository.memory().instance {
        return Ok(None);
    }
    let Some(old) = find()? else {
        forget_list(repository, &own.list)?;
        return Ok(None);
    };
    if own.is_for_repair {
        // Nothing is deleted on its account; the next repair looks at its packs anew.
        drop_list(repository, &old)?;
        return Ok(None);
    }
    let new = match put_list(repository, &old.packs, host) {
        // Rather that than no room ever again.
        Err(error) if error.kind() == ErrorKind::NoSpace => old.clone(),
        other => other?,
    };
    let remembered: Option<BTreeSet<LeaseId>> =
        own.leases.iter().map(|lease| LeaseId::from_hex(lease)).collect();
    let leases = match (find()?.is_some(), remembered) {
        (true, Some(leases)) => leases,
        _ => leases(repository)?.into_keys().collect(),
    };
    if new.name != old.name {
        remember(repository, &new, &leases, false)?;
        drop_list(repository, &old)?;
    }
    Ok(Some((new, leases)))
}

/// Forgets a list of this host.
///
/// # Errors
/// As [`Repository::remember`].
pub fn forget_list(repository: &Repository, leaf: &str) -> Result<()> {
    repository.remember(|memory| memory.condemned.retain(|own| own.list != leaf))
}

/// Drops a list of this host on whose account nothing will be deleted any more.
///
/// # Errors
/// What the storage says.
pub fn drop_list(repository: &Repository, list: &List) -> Result<()> {
    repository.storage().delete(&list.name)?;
    forget_list(repository, list.name.leaf())
}

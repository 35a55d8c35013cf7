//! Lists of packs that are about to be deleted, and waiting for the writers that may not have seen
//! them (spec/40-protocol.md, "Pruner", steps 2 to 4).
//!
//! Order, which must not change without the model check: put the own list, *then* list the leases
//! once and wait for exactly these; mark again (lists, packs, manifests); delete, then drop the
//! list. A lease stands still by a monotonic clock of this process alone.

use super::roots::{Needs, Root, find_stored, find_whole, read_roots, walk};
use crate::environment::random_array;
use crate::error::{ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::entries::Place;
use crate::repository::locate::Locator;
use crate::repository::objects::{get_record, refused, seal_record};
use crate::repository::pack_reader::pack_name;
use crate::storage::{Folder, ObjectName};
use diskvault_format::crypto::ObjectKind;
use diskvault_format::id::{ChunkId, LeaseId, PackId, PageId, to_hex};
use diskvault_format::names;
use diskvault_format::small::Condemned;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

/// Most packs of one list: 16 MiB of sealed object hold 520,000 ids.
const LIST_PACKS_MAX: usize = 400_000;
/// How often leases are looked at while they are waited for.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// A list, by the last part of its name.
#[derive(Clone, Debug)]
pub(super) struct List {
    /// Its object.
    pub name: ObjectName,
    /// Its packs.
    pub packs: Vec<PackId>,
}

/// Reads all lists.
///
/// # Errors
/// `Damage` or `Newer` for one that cannot be read: any pack may be on it.
pub(super) fn read_lists(repository: &Repository) -> Result<Vec<List>> {
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
pub(super) fn put_list(repository: &Repository, packs: &[PackId], host: &str) -> Result<List> {
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
pub(super) fn leases(repository: &Repository) -> Result<BTreeMap<LeaseId, u64>> {
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
pub(super) fn wait_for(
    repository: &Repository,
    mut waited: BTreeSet<LeaseId>,
    patience: Patience,
    monitor: &dyn Monitor,
) -> Result<Option<u64>> {
    let mut seen: BTreeMap<LeaseId, (u64, Instant)> = BTreeMap::new();
    let (mut fenced, mut is_told) = (0, false);
    loop {
        let there = leases(repository)?;
        waited.retain(|lease| there.contains_key(lease));
        for lease in waited.clone() {
            let newest = there[&lease];
            let (known, since) = *seen.entry(lease).or_insert((newest, Instant::now()));
            if newest > known {
                seen.insert(lease, (newest, Instant::now()));
            } else if since.elapsed() >= patience.stands_still {
                fence(repository, lease, newest, monitor)?;
                fenced += 1;
                waited.remove(&lease);
            }
        }
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
        let until = Instant::now() + LOOK_INTERVAL.min(patience.stands_still);
        while Instant::now() < until {
            monitor.check_cancelled()?;
            std::thread::sleep(Duration::from_millis(50));
        }
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
    storage.delete(&ObjectName::new(Folder::Leases, &lease.to_hex())?)?;
    monitor.warn(&format!(
        "the backup with lease {lease} gave no sign of life and was taken off; \
         if it still runs it starts over"
    ));
    for number in newest.saturating_sub(1)..=newest {
        if number > 0 {
            storage.delete(&ObjectName::new(Folder::Leases, &names::heartbeat(lease, number))?)?;
        }
    }
    Ok(())
}

/// Deletes heartbeats of leases that are gone.
///
/// # Errors
/// What the storage says.
pub(super) fn delete_orphaned_heartbeats(repository: &Repository) -> Result<()> {
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

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Swept {
    /// Packs that are gone.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packs that somebody needs now.
    pub kept: u64,
}

/// Marks again, deletes what is still needed by nobody, and drops the list. All leases that were
/// to be waited for are gone.
///
/// # Errors
/// `Damage` for a map that cannot be read: nothing was deleted then, and the list is dropped.
pub(super) fn sweep(
    repository: &Repository,
    own: &List,
    kept_since: Option<i64>,
    monitor: &dyn Monitor,
) -> Result<Swept> {
    let kept = match second_mark(repository, own, kept_since, monitor) {
        Ok(kept) => kept,
        Err(error) => {
            // Nothing was deleted on its account, so it need not stay.
            let _ = repository.storage().delete(&own.name);
            return Err(error);
        }
    };
    let storage = repository.storage();
    let mut swept = Swept::default();
    let going: Vec<PackId> = own.packs.iter().copied().filter(|id| !kept.contains(id)).collect();
    swept.kept = (own.packs.len() - going.len()) as u64;
    monitor.start("deleting packs", Some(going.len() as u64));
    for id in going {
        let name = pack_name(id)?;
        if let Some(bytes) = storage.size(&name)? {
            storage.delete(&name)?;
            swept.packs += 1;
            swept.bytes += bytes;
        }
        monitor.advance(1);
    }
    monitor.finish();
    storage.delete(&own.name)?;
    Ok(swept)
}

/// Packs on the own list that have to stay.
fn second_mark(
    repository: &Repository,
    own: &List,
    kept_since: Option<i64>,
    monitor: &dyn Monitor,
) -> Result<HashSet<PackId>> {
    // In this order.
    let lists = read_lists(repository)?;
    let locator = Locator::open_fresh(repository, monitor)?;
    let roots: Vec<Root> = read_roots(repository, kept_since)?;
    let mut listed: HashSet<PackId> = own.packs.iter().copied().collect();
    listed.extend(lists.iter().flat_map(|list| &list.packs));
    let mut keeps = Keeps { locator: &locator, listed: &listed, kept: HashSet::new() };
    walk(repository, &locator, &roots, "marking again", &mut keeps, monitor)?;
    Ok(keeps.kept)
}

/// Finds listed packs with something that no unlisted pack holds.
struct Keeps<'a> {
    locator: &'a Locator,
    listed: &'a HashSet<PackId>,
    kept: HashSet<PackId>,
}

impl Keeps<'_> {
    /// Keeps every listed pack that holds the chunk or page by its bytes, unless another holds it.
    fn keep_whole(&mut self, id: ChunkId) -> Result<()> {
        let (locator, listed) = (self.locator, self.listed);
        let unlisted = |place: &Place| !listed.contains(&place.pack);
        if find_whole(locator, id, &unlisted)?.is_some() {
            return Ok(());
        }
        let places = crate::repository::entries::places_of(locator.index(), &id.0)?;
        let whole = places.iter().filter(|place| !place.is_splice);
        self.kept.extend(whole.map(|place| place.pack));
        Ok(())
    }
}

impl Needs for Keeps<'_> {
    fn page(&mut self, id: PageId) -> Result<()> {
        self.keep_whole(ChunkId(id.0))
    }

    fn chunk(&mut self, id: ChunkId) -> Result<()> {
        let (locator, listed) = (self.locator, self.listed);
        let unlisted = |place: &Place| !listed.contains(&place.pack);
        if find_stored(locator, id, &unlisted)?.is_some() {
            return Ok(());
        }
        // Every pack that has a part in any way to it.
        let places = crate::repository::entries::places_of(locator.index(), &id.0)?;
        self.kept.extend(places.iter().map(|place| place.pack));
        for place in places.iter().filter(|place| place.is_splice) {
            let Ok(splice) = locator.splices().read(id, place) else { continue };
            for piece in splice.pieces() {
                self.keep_whole(piece.chunk)?;
            }
        }
        Ok(())
    }
}

/// Drops the lists of which no pack exists any more: anybody may.
///
/// # Errors
/// What the storage says.
pub(super) fn drop_empty_lists(repository: &Repository) -> Result<()> {
    let lists = read_lists(repository)?;
    let storage = repository.storage();
    for list in lists {
        let mut is_empty = true;
        for id in &list.packs {
            is_empty = is_empty && storage.size(&pack_name(*id)?)?.is_none();
        }
        if is_empty {
            storage.delete(&list.name)?;
        }
    }
    Ok(())
}

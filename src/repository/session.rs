//! The writer's side of the protocol (spec/40-protocol.md): register, read in order, store,
//! publish.
//!
//! Order, which must not change without the model check: 1. put a new lease. 2. Read all
//! condemned lists; list the packs and read the footers that are new; list the points. 3. Store
//! packs, heartbeat. 4. Put the manifest, *then* look whether the own lease is still there: put
//! `ok` and delete the lease; or, if it is gone, put a removal note, delete the manifest and start
//! over with a new lease and a new manifest.

use super::Repository;
use super::at_once::both;
use super::entries::{Place, places_of};
use super::locate::{Locator, loss_epoch, note_loss};
use super::lost::{LostList, put_lists, read_lists};
use super::notes::put_note;
use super::objects::{get_record, seal_own_manifest, seal_record};
use super::points::{Point, PointSet, manifest_name, ok_name};
use super::splices::SpliceReader;
use super::trust::Trust;
use crate::environment::{Bell, Environment, random_array};
use crate::error::{Error, ErrorKind, Result};
use crate::index::ChunkIndex;
use crate::monitor::Monitor;
use crate::storage::{Folder, ObjectName, Storage};
use diskvault_format::crypto::ObjectKind;
use diskvault_format::id::{ChunkId, LeaseId, PackId, PointId};
use diskvault_format::manifest::Manifest;
use diskvault_format::names;
use diskvault_format::small::{Condemned, Heartbeat, Lease, NOTE_REMOVAL};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Time between two heartbeats; a pruner gives up on a lease after an hour without one.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(60);
/// Purpose number of a backup's lease.
const PURPOSE_BACKUP: u8 = 1;

/// What counts as stored: in a listed pack that is not condemned and may be built upon, and not known
/// to be lost.
pub struct Presence {
    index: Arc<ChunkIndex>,
    condemned: HashSet<PackId>,
    trust: Trust,
    lost: HashSet<[u8; 32]>,
    splices: Arc<SpliceReader>,
}

impl Presence {
    /// What counts as stored once the packs in `leaving` are gone.
    pub fn without(locator: &Locator, leaving: HashSet<PackId>) -> Presence {
        let (index, splices) = (locator.index().clone(), locator.splices().clone());
        let (trust, lost) = (locator.trust().clone(), HashSet::new());
        Presence { index, condemned: leaving, trust, lost, splices }
    }

    /// As this, for what a writer stored that may not read: nobody builds upon it anew by that.
    #[must_use]
    pub fn of_writers(&self) -> Presence {
        Presence {
            index: self.index.clone(),
            condemned: self.condemned.clone(),
            trust: Trust::default(),
            lost: self.lost.clone(),
            splices: self.splices.clone(),
        }
    }

    /// The index that is asked.
    pub fn index(&self) -> &Arc<ChunkIndex> {
        &self.index
    }

    /// True if nothing is condemned or lost, so that what a visible point names is present.
    pub fn is_plain(&self) -> bool {
        self.condemned.is_empty() && self.lost.is_empty()
    }

    /// True if the entry is present: in a pack that is not condemned, and if it is a splice, all
    /// that it takes pieces of as well.
    ///
    /// # Errors
    /// What the index says.
    pub fn contains(&self, id: &[u8; 32]) -> Result<bool> {
        let counts = |id: &ChunkId, place: &Place| {
            let is_leaving = self.condemned.contains(&place.pack);
            !self.lost.contains(&id.0) && !is_leaving && self.trust.counts(place)
        };
        self.splices.is_present(ChunkId(*id), &counts)
    }

    /// True if the chunk is present by its bytes, so that a splice may take pieces of it.
    ///
    /// # Errors
    /// What the index says.
    pub fn contains_bytes(&self, id: &[u8; 32]) -> Result<bool> {
        let counts = |place: &Place| {
            !place.is_splice && !self.condemned.contains(&place.pack) && self.trust.counts(place)
        };
        Ok(!self.lost.contains(id) && places_of(&self.index, id)?.iter().any(counts))
    }
}

/// A registered writer.
pub struct Session<'a> {
    repository: &'a Repository,
    lease: LeaseId,
    lease_name: ObjectName,
    locator: Locator,
    presence: Arc<Presence>,
    points: PointSet,
    lost: Vec<LostList>,
    /// Losses counted when it began: what is met later was not looked up by all of the backup.
    loss_epoch: u64,
    heartbeat: Option<HeartbeatThread>,
    is_closed: bool,
}

impl<'a> Session<'a> {
    /// Registers a writer and reads what it builds on.
    ///
    /// # Errors
    /// What the storage says; the lease is removed again.
    pub fn begin(
        repository: &'a Repository,
        host: &str,
        monitor: &dyn Monitor,
    ) -> Result<Session<'a>> {
        repository.check_may_write()?;
        let environment = repository.environment().as_ref();
        let lease = LeaseId(random_array(environment)?);
        let lease_name = ObjectName::new(Folder::Leases, &lease.to_hex())?;
        let record = Lease {
            purpose: PURPOSE_BACKUP,
            host: host.to_string(),
            process: std::process::id(),
            started_unix_ns: environment.now_unix_ns(),
            program: crate::PROGRAM.to_string(),
        };
        let nonce = random_array(environment)?;
        let keys = repository.keys();
        let object = seal_record(keys, ObjectKind::Lease, Some(&lease_name), &nonce, &record)?;
        repository.storage().put_new(&lease_name, &object)?;
        let State { locator, presence, points, lost, doubts } =
            match read_state(repository, monitor) {
                Ok(read) => read,
                Err(error) => {
                    // Best effort: a lease that stays behind is fenced by the next prune.
                    let _ = repository.storage().delete(&lease_name);
                    return Err(error);
                }
            };
        for (_, error) in locator.damaged() {
            monitor.warn(&format!("{}; its chunks count as absent", error.full_text()));
        }
        // Also a head that this host saw and that is gone: the new point takes its place there.
        for doubt in &doubts {
            monitor.warn(doubt);
        }
        let loss_epoch = loss_epoch(locator.index())?;
        let heartbeat = HeartbeatThread::start(repository, lease);
        Ok(Session {
            repository,
            lease,
            lease_name,
            locator,
            presence: Arc::new(presence),
            points,
            lost,
            loss_epoch,
            heartbeat: Some(heartbeat),
            is_closed: false,
        })
    }

    /// The lease's id.
    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    /// True while the lease is there: what was found stays until it is gone.
    ///
    /// # Errors
    /// What the storage says.
    pub fn is_registered(&self) -> Result<bool> {
        Ok(self.repository.storage().size(&self.lease_name)?.is_some())
    }

    /// Where things are.
    pub fn locator(&self) -> &Locator {
        &self.locator
    }

    /// What counts as stored.
    pub fn presence(&self) -> &Arc<Presence> {
        &self.presence
    }

    /// The points that were visible when the session began.
    pub fn points(&self) -> &PointSet {
        &self.points
    }

    /// True if everything `point` names is present without looking: this host saw the point
    /// complete, and no pack was gone, damaged or condemned and no chunk lost since.
    ///
    /// # Errors
    /// What the index says.
    pub fn is_known_complete(&self, point: &Point) -> Result<bool> {
        let index = self.locator.index();
        let writers = self.repository.keys().writers();
        if self.repository.own_copies().is_none() && writers.get(point.manifest.writer).is_some() {
            // Complete, but by packs that may not be built upon.
            return Ok(false);
        }
        let known = index.get_note(&complete_key(&point.manifest.series))?;
        let expected = complete_value(point.id, loss_epoch(index)?);
        Ok(self.presence.is_plain() && known.as_deref() == Some(&expected[..]))
    }

    /// Publishes a manifest and ends the session.
    ///
    /// # Errors
    /// `Fenced` if somebody deleted the lease: nothing was published, and the work has to start
    /// over. Otherwise what the storage says.
    pub fn publish(mut self, manifest: &Manifest) -> Result<PointId> {
        let id = self.put_point(manifest)?;
        let _ = self.close();
        Ok(id)
    }

    /// As [`Session::publish`], and lists the points with the new one.
    ///
    /// # Errors
    /// As [`Session::publish`]; what the listing says is beside the point, which is done.
    pub fn publish_and_list(mut self, manifest: &Manifest) -> Result<(PointId, Result<PointSet>)> {
        let id = self.put_point(manifest)?;
        let repository = self.repository;
        let storage = repository.storage().as_ref();
        let (_, points) = both(storage, || self.close(), || PointSet::load(repository));
        Ok((id, points))
    }

    /// Puts the manifest and makes it visible: all of a publishing but its end.
    fn put_point(&mut self, manifest: &Manifest) -> Result<PointId> {
        manifest.validate().map_err(|cause| super::objects::cannot_make("a manifest", cause))?;
        let repository = self.repository;
        let storage = repository.storage();
        let random = random_array(repository.environment().as_ref())?;
        let object = seal_record(repository.keys(), ObjectKind::Manifest, None, &random, manifest)?;
        let id = PointId(*blake3::hash(&object).as_bytes());
        let name = manifest_name(id)?;
        storage.put_new(&name, &object)?;
        if let Some(copies) = repository.own_copies() {
            let random = random_array(repository.environment().as_ref())?;
            // One that is not kept is missed, and told, when this host looks for its point.
            let _ =
                copies.keep_point(id, &seal_own_manifest(repository.keys(), &random, manifest)?);
        }
        // Only now: a pruner that deleted the lease before has marked without this manifest.
        if !self.is_registered()? {
            self.is_closed = true;
            if let Some(last) = self.heartbeat.take().and_then(HeartbeatThread::stop) {
                storage.delete(&last)?;
            }
            if repository.own_copies().is_some() {
                // It can write no removal note, without which a manifest does not go: it stays
                // without its `ok`, for a resolver to decide about.
                return Err(Error::new(ErrorKind::Fenced, "the lease of this backup was removed"));
            }
            let reason = vec![("reason".into(), "the writer's lease was removed".into())];
            put_note(repository, id, NOTE_REMOVAL, &manifest.host, reason)?;
            storage.delete(&name)?;
            return Err(Error::new(ErrorKind::Fenced, "the lease of this backup was removed"));
        }
        match storage.put_new(&ok_name(id)?, &[]) {
            // Taken for dead since the look, and completed by a resolver: it is as done.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            other => other?,
        }
        // The point is done. What fails from here on costs time in the next run, not the point:
        // an index that forgets is filled again, a lease that stays is fenced by a prune.
        let _ = self.remember_complete(&manifest.series, id);
        let _ = self.take_off_what_is_there_again();
        Ok(id)
    }

    /// Puts a sealed manifest as another copy of the repository has it, and makes it visible. The
    /// session goes on, for more of them.
    ///
    /// # Errors
    /// `Fenced` if somebody deleted the lease: the manifest stays without its `ok`, for a resolver
    /// or the next sync to decide about. `AlreadyExists` if another object has the manifest's name.
    /// Otherwise what the storage says.
    pub fn publish_as_it_is(&self, id: PointId, series: &str, object: &[u8]) -> Result<()> {
        let storage = self.repository.storage();
        let name = manifest_name(id)?;
        match storage.put_new(&name, object) {
            // Left by a sync that did not come to its end.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if storage.get(&name, object.len() as u64)? != object {
                    return Err(error);
                }
            }
            other => other?,
        }
        // Only now: a pruner that deleted the lease before has marked without this manifest.
        if !self.is_registered()? {
            return Err(Error::new(ErrorKind::Fenced, "the lease of this sync was removed"));
        }
        match storage.put_new(&ok_name(id)?, &[]) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            other => other?,
        }
        // The point is done: an index that forgets costs time in the next run.
        let _ = self.remember_complete(series, id);
        Ok(())
    }

    /// Ends a session that published as many points as it wanted to.
    ///
    /// # Errors
    /// What the storage says; a lease that stays is fenced by a prune.
    pub fn end(mut self) -> Result<()> {
        let _ = self.take_off_what_is_there_again();
        self.close()
    }

    fn remember_complete(&self, series: &str, id: PointId) -> Result<()> {
        let index = self.locator.index();
        index.set_note(&complete_key(series), &complete_value(id, self.loss_epoch))?;
        index.flush()
    }

    /// Takes the chunks off the lost lists that this backup has stored: the points that lacked
    /// them are whole again. The shorter list comes first, so what two backups store at once stays
    /// named on one of them, and is stored once more.
    fn take_off_what_is_there_again(&self) -> Result<()> {
        if self.lost.is_empty() {
            return Ok(());
        }
        let mut left = BTreeSet::new();
        let mut is_changed = false;
        for id in self.lost.iter().flat_map(|list| &list.ids) {
            let places = places_of(self.locator.index(), id)?;
            // This run's index learns of no pack but its own after the listing.
            if places.iter().any(|place| !self.locator.listed().contains(&place.pack)) {
                is_changed = true;
            } else {
                left.insert(*id);
            }
        }
        if is_changed {
            put_lists(self.repository, &left)?;
            for list in &self.lost {
                self.repository.storage().delete(&list.name)?;
            }
        }
        Ok(())
    }

    /// Ends the registration.
    fn close(&mut self) -> Result<()> {
        self.is_closed = true;
        let last = self.heartbeat.take().and_then(HeartbeatThread::stop);
        self.repository.storage().delete(&self.lease_name)?;
        if let Some(name) = last {
            self.repository.storage().delete(&name)?;
        }
        Ok(())
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if !self.is_closed {
            // Best effort: what stays behind is fenced by the next prune.
            let _ = self.close();
        }
    }
}

/// What a writer has read.
struct State {
    locator: Locator,
    presence: Presence,
    points: PointSet,
    lost: Vec<LostList>,
    doubts: Vec<String>,
}

/// Step 2 of the protocol, in its order: condemned lists, packs and footers, points.
fn read_state(repository: &Repository, monitor: &dyn Monitor) -> Result<State> {
    let condemned = read_condemned(repository, monitor)?;
    let locator = Locator::open(repository, monitor)?;
    // Both after the packs; neither says anything of the other.
    let storage = repository.storage().as_ref();
    let (points, lost) = both(storage, || PointSet::load(repository), || read_lists(repository));
    let (points, lost) = (points?, lost?);
    // A pack of nobody whose signature counts is no loss, or each run would look at everything.
    let is_lost = |(_, error): &(_, Error)| error.kind() != ErrorKind::Unlisted;
    if !locator.vanished().is_empty() || locator.damaged().iter().any(is_lost) {
        note_loss(locator.index())?;
    }
    let (index, splices) = (locator.index().clone(), locator.splices().clone());
    let lost_ids = lost.iter().flat_map(|list| list.ids.iter().copied()).collect();
    let trust = locator.trust().clone();
    let presence = Presence { index, condemned, trust, lost: lost_ids, splices };
    let doubts = points.warnings(repository)?;
    Ok(State { locator, presence, points, lost, doubts })
}

fn complete_key(series: &str) -> String {
    format!("complete/{series}")
}

fn complete_value(id: PointId, epoch: u64) -> Vec<u8> {
    let mut value = id.0.to_vec();
    value.extend_from_slice(&epoch.to_le_bytes());
    value
}

/// Reads all condemned lists. One that cannot be read condemns unknown packs, so it is an error.
fn read_condemned(repository: &Repository, monitor: &dyn Monitor) -> Result<HashSet<PackId>> {
    let mut packs = HashSet::new();
    for entry in repository.storage().list(Folder::Condemned)? {
        let list: Result<Condemned> = get_record(
            repository.storage().as_ref(),
            repository.keys(),
            ObjectKind::Condemned,
            &entry.name,
        );
        match list {
            Ok(list) => {
                list.validate().map_err(|cause| super::objects::refused(&entry.name, cause))?;
                packs.extend(list.packs);
            }
            // Dropped by its owner since the listing: its packs are gone or kept.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                monitor.warn(&error.full_text());
                return Err(error);
            }
        }
    }
    Ok(packs)
}

/// Remembers the heads of all series, so that a rollback shows on this host. A head that is gone
/// unexplained stays remembered, whatever was made since; so does one that another process saw
/// after `points` were listed.
///
/// # Errors
/// Fails if the cache cannot be written or the notes cannot be listed.
pub fn remember_heads(repository: &Repository, points: &PointSet) -> Result<()> {
    let seen = points.listing(repository)?;
    repository.remember(|memory| memory.merge(&seen))
}

/// Puts a heartbeat every minute until it is stopped.
struct HeartbeatThread {
    stop: Bell,
    thread: JoinHandle<Option<ObjectName>>,
}

impl HeartbeatThread {
    fn start(repository: &Repository, lease: LeaseId) -> HeartbeatThread {
        let stop = Bell::default();
        let storage = repository.storage().clone();
        let environment = repository.environment().clone();
        let clock = environment.clone();
        let keys = repository.keys().clone();
        let stopped = stop.clone();
        let beat = move |number: u64| -> Result<ObjectName> {
            let name = ObjectName::new(Folder::Leases, &names::heartbeat(lease, number))?;
            let nonce = random_array(environment.as_ref())?;
            let record = Heartbeat { lease, number };
            let object = seal_record(&keys, ObjectKind::Heartbeat, Some(&name), &nonce, &record)?;
            storage.put_new(&name, &object)?;
            Ok(name)
        };
        let delete_from = repository.storage().clone();
        let thread = std::thread::spawn(move || {
            run_heartbeat(clock.as_ref(), &stopped, &beat, delete_from.as_ref())
        });
        HeartbeatThread { stop, thread }
    }

    /// Stops it and returns the heartbeat that is still stored, if there is one.
    fn stop(self) -> Option<ObjectName> {
        self.stop.ring();
        self.thread.join().ok().flatten()
    }
}

fn run_heartbeat(
    environment: &dyn Environment,
    stop: &Bell,
    beat: &dyn Fn(u64) -> Result<ObjectName>,
    storage: &dyn Storage,
) -> Option<ObjectName> {
    let mut last: Option<ObjectName> = None;
    let mut number = 1;
    while !environment.wait(stop, HEARTBEAT_INTERVAL) {
        // A beat that fails is tried again in a minute; a writer that is fenced for it starts
        // over, so nothing is lost but time.
        if let Ok(name) = beat(number) {
            if let Some(previous) = last.replace(name) {
                let _ = storage.delete(&previous);
            }
            number += 1;
        }
    }
    last
}

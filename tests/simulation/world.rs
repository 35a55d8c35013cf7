//! The world of a simulation: a repository, hosts with their caches, and a book of what was
//! promised.
//!
//! Invariant: the book is kept apart from the repository. What a point has to hold is known from
//! what was backed up, never from what was stored.

use super::chance::Chance;
use super::stage::{ActorId, Stage};
use super::wrap::{StagedEnvironment, StagedStorage};
use crate::support::vault::{
    CHUNK_BYTES, PASSWORD, Parts, copy_folder, damage_of, noise, passphrase, restore, scratch,
};
use diskvault::check::{self, CheckOptions, DataSubset};
use diskvault::error::Result;
use diskvault::monitor::Silent;
use diskvault::repository::locate::Locator;
use diskvault::repository::points::{Point, PointSet, read_manifest};
use diskvault::repository::{InitOptions, Repository, initialise};
use diskvault::storage::Folder;
use diskvault::storage::memory::MemoryStorage;
use diskvault_format::id::PointId;
use diskvault_format::key_slot::KdfCost;
use diskvault_format::names;
use rayon::ThreadPool;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;

/// Bytes of a segment and of a pack: so small that a small disk fills several.
const SEGMENT_BYTES: u32 = 16 << 10;
const PACK_BYTES: u32 = 48 << 10;
/// Bytes of what disks are put together from, and how many of these there are.
const PIECE_BYTES: usize = 16 << 10;
const PIECES: u64 = 20;
/// Pieces of a disk.
const DISK_PIECES: usize = 8;
/// Bytes by which moved content is away from the grid.
const MOVED_BYTES: usize = 1000;
/// The tag by which a point tells which backup made it.
pub const RUN_TAG: &str = "run";

/// What was done and what is owed.
#[derive(Clone, Default)]
pub struct Book {
    /// What each backup was given, by its actor.
    pub given: BTreeMap<ActorId, Parts>,
    /// Which backup made a point, if that was told.
    pub made_by: BTreeMap<PointId, ActorId>,
    /// Points that were reported as done, and that nobody began to forget.
    pub owed: BTreeSet<PointId>,
    /// Points that were reported as forgotten.
    pub gone: BTreeSet<PointId>,
    /// Points that somebody began to forget.
    pub doomed: BTreeSet<PointId>,
}

impl Book {
    /// A point was reported as done. It is seen before that, so somebody may have begun to forget
    /// it.
    pub fn owe(&mut self, point: PointId) {
        if !self.doomed.contains(&point) {
            self.owed.insert(point);
        }
    }
}

/// A machine with a cache.
#[derive(Clone)]
pub struct Host {
    /// Its name, which is also that of its cache.
    pub name: String,
    /// What its clock is wrong by, in seconds.
    pub offset_seconds: i64,
}

/// Everything there is.
pub struct World {
    /// Where everything happens.
    pub stage: Arc<Stage>,
    /// The machines.
    pub hosts: Vec<Host>,
    /// What is owed.
    pub book: Arc<Mutex<Book>>,
    folder: TempDir,
    seed: u64,
    next_actor: ActorId,
    pool: ThreadPool,
}

/// A world that can be had again: objects, caches and book.
pub struct Saved {
    objects: BTreeMap<String, Vec<u8>>,
    folder: TempDir,
    book: Book,
    hosts: Vec<Host>,
    next_actor: ActorId,
    seconds: std::time::Duration,
}

/// One thread of a host: what a run of the program has.
pub struct Seat {
    /// Who it is.
    pub actor: ActorId,
    /// Its host.
    pub host: Host,
    /// Where everything happens.
    pub stage: Arc<Stage>,
    /// What is owed.
    pub book: Arc<Mutex<Book>>,
    /// Folder of the caches of its host.
    pub cache: PathBuf,
    /// Folder for what is backed up.
    pub sources: PathBuf,
    seed: u64,
}

impl Seat {
    /// Opens the repository as a run of the program does.
    pub fn open(&self) -> Result<Repository> {
        let storage = Arc::new(StagedStorage::new(&self.stage, self.actor));
        let offset = self.host.offset_seconds;
        let environment = StagedEnvironment::new(&self.stage, self.actor, self.seed, offset);
        Repository::open(storage, Arc::new(environment), &self.cache, &passphrase(PASSWORD))
    }

    /// The book.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    /// A repository without points; all follows from `seed`.
    pub fn new(seed: u64, hosts: &[&str]) -> World {
        let host = |name: &&str| Host { name: (*name).into(), offset_seconds: 0 };
        let world = World::of(seed, MemoryStorage::new(), hosts.iter().map(host).collect());
        world.initialise();
        world
    }

    fn of(seed: u64, storage: MemoryStorage, hosts: Vec<Host>) -> World {
        World {
            stage: Stage::new(storage),
            hosts,
            book: Arc::default(),
            folder: scratch(),
            seed,
            next_actor: 1,
            pool: rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap(),
        }
    }

    fn initialise(&self) {
        let storage = self.stage.storage();
        let options = InitOptions {
            passphrase: &passphrase(PASSWORD),
            recovery: None,
            chunk_bytes: Some(CHUNK_BYTES),
            pack_bytes: Some(PACK_BYTES),
            parity_per_mille: 0,
            cost: KdfCost::RECOVERY,
            host: "host",
        };
        let environment = StagedEnvironment::new(&self.stage, 0, self.seed, 0);
        initialise(storage, &environment, &options).unwrap();
        let repository = self.seat_of(0, "init").open().unwrap();
        let mut config = repository.config().clone();
        config.segment_bytes = SEGMENT_BYTES;
        let leaf = names::config(1, &[0xee; 16]);
        let bytes = config.encode(repository.keys(), &leaf);
        let old = storage.snapshot().into_keys().filter(|name| name.starts_with("config/"));
        old.for_each(|name| _ = storage.remove(name));
        storage.insert(format!("config/{leaf}"), bytes);
        self.drop_cache("init");
    }

    /// The world as it is.
    pub fn save(&self) -> Saved {
        let folder = scratch();
        copy_folder(self.folder.path(), folder.path());
        Saved {
            objects: self.stage.storage().snapshot(),
            folder,
            book: self.book().clone(),
            hosts: self.hosts.clone(),
            next_actor: self.next_actor,
            seconds: self.stage.now(),
        }
    }

    /// A world as it was saved; what is random from here on follows from `seed`.
    pub fn restore(saved: &Saved, seed: u64) -> World {
        let storage = MemoryStorage::new();
        saved.objects.iter().for_each(|(name, data)| storage.insert(name, data.clone()));
        let mut world = World::of(seed, storage, saved.hosts.clone());
        world.next_actor = saved.next_actor;
        world.stage.pass(saved.seconds);
        copy_folder(saved.folder.path(), world.folder.path());
        *world.book() = saved.book.clone();
        world
    }

    /// The book.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new actor on a host.
    pub fn seat(&mut self, host: &Host) -> Seat {
        let actor = self.next_actor;
        self.next_actor += 1;
        self.seat_for(actor, host.clone())
    }

    fn seat_of(&self, actor: ActorId, host: &str) -> Seat {
        self.seat_for(actor, Host { name: host.into(), offset_seconds: 0 })
    }

    fn seat_for(&self, actor: ActorId, host: Host) -> Seat {
        Seat {
            actor,
            cache: self.cache(&host.name),
            sources: self.folder.path().join(format!("sources-{actor}")),
            host,
            stage: self.stage.clone(),
            book: self.book.clone(),
            seed: self.seed,
        }
    }

    /// The folder of a host's caches.
    pub fn cache(&self, host: &str) -> PathBuf {
        self.folder.path().join(format!("cache-{host}"))
    }

    /// Takes a host's cache away.
    pub fn drop_cache(&self, host: &str) {
        let _ = std::fs::remove_dir_all(self.cache(host));
    }

    /// Looks at everything, through no cache and through a copy of those of these hosts, and tells
    /// how many points were restored.
    ///
    /// # Errors
    /// The first promise that was broken.
    pub fn verify(&self, hosts: &[Host]) -> std::result::Result<u64, String> {
        let mut restored = self.verify_through("stranger", true)?;
        for host in hosts {
            restored += self.verify_known(host)?;
        }
        Ok(restored)
    }

    /// Restores everything through a copy of a host's cache, and does not check the rest.
    ///
    /// # Errors
    /// The first promise that was broken.
    pub fn verify_known(&self, host: &Host) -> std::result::Result<u64, String> {
        if self.cache(&host.name).exists() {
            copy_folder(&self.cache(&host.name), &self.cache("copy"));
        }
        self.verify_through("copy", false)
    }

    fn verify_through(&self, cache: &str, checks: bool) -> std::result::Result<u64, String> {
        let result = self.look_at_all(cache, checks);
        self.drop_cache(cache);
        match result {
            Ok(Ok(restored)) => Ok(restored),
            Ok(Err(text)) => Err(format!("through cache {cache}: {text}")),
            Err(error) => Err(format!("through cache {cache}: {}", error.full_text())),
        }
    }

    fn look_at_all(&self, cache: &str, checks: bool) -> Result<std::result::Result<u64, String>> {
        let repository = self.seat_of(0, cache).open()?;
        if checks {
            let options = CheckOptions { data: Some(DataSubset::All) };
            let report = check::run(&repository, &options, &self.pool, &Silent)?;
            if report.damage_count() > 0 {
                return Ok(Err(format!("check finds damage: {}", damage_of(&report))));
            }
        }
        let points = PointSet::load(&repository)?;
        for id in &points.unfinished {
            read_manifest(&repository, Folder::Points, *id)?;
        }
        let book = self.book();
        let visible: BTreeSet<PointId> = points.points.iter().map(|point| point.id).collect();
        if let Some(id) = book.owed.difference(&visible).next() {
            return Ok(Err(format!("point {id} was reported as done and is not there")));
        }
        if let Some(id) = book.gone.intersection(&visible).next() {
            return Ok(Err(format!("point {id} was reported as forgotten and is there")));
        }
        let locator = Locator::open(&repository, &Silent)?;
        for point in &points.points {
            let is_right = book.given.get(&run_of(point))
                == Some(&match restore(&repository, &locator, point) {
                    Ok(parts) => parts,
                    Err(error) => {
                        return Ok(Err(format!("point {}: {}", point.id, error.full_text())));
                    }
                });
            if !is_right {
                return Ok(Err(format!("point {} has wrong bytes", point.id)));
            }
        }
        Ok(Ok(points.points.len() as u64))
    }

    /// What a prune would still delete, and what it and the backups left behind.
    ///
    /// # Errors
    /// There is something.
    pub fn verify_clear(&self) -> std::result::Result<(), String> {
        let names = self.stage.storage().snapshot();
        // A forget that was stopped has put the manifest into the trash and left the point.
        let is_on_its_way = |name: &str| {
            name.strip_prefix("trash/")
                .is_some_and(|id| names.contains_key(&format!("points/{id}")))
        };
        let is_left = |name: &&String| {
            let folders = [Folder::Condemned, Folder::Leases, Folder::Trash];
            folders.iter().any(|folder| name.starts_with(&format!("{folder}/")))
                && !is_on_its_way(name)
        };
        if let Some(name) = names.keys().find(is_left) {
            return Err(format!("{name} is left behind"));
        }
        let repository = self.seat_of(0, "stranger").open();
        let outlook = repository.and_then(|repository| super::actions::outlook(&repository, 1));
        self.drop_cache("stranger");
        let plan = outlook.map_err(|error| error.full_text())?.plan;
        if !plan.delete.is_empty() || !plan.repack.is_empty() {
            return Err(format!("garbage is left: {plan:?}"));
        }
        Ok(())
    }

    /// The folder that everything lies in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// The backup that made a point, or 0.
pub fn run_of(point: &Point) -> ActorId {
    let tag = point.manifest.tags.iter().find(|(key, _)| key == RUN_TAG);
    tag.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// A machine's disks: of pieces that others have as well, some of them moved away from the grid.
pub fn contents(chance: &mut Chance) -> Parts {
    let mut disk = Vec::new();
    for _ in 0..DISK_PIECES {
        match chance.below(10) {
            0 => disk.resize(disk.len() + PIECE_BYTES, 0),
            1 => {
                // The start of it is as at home, so that it is told as pieces.
                disk.extend(noise(chance.below(1000), MOVED_BYTES));
                disk.extend(noise(chance.below(PIECES), PIECE_BYTES));
                disk.resize(disk.len().next_multiple_of(CHUNK_BYTES as usize), 7);
            }
            _ => disk.extend(noise(chance.below(PIECES), PIECE_BYTES)),
        }
    }
    let mut parts = Parts::from([("vda".into(), disk)]);
    if chance.percent(25) {
        parts.insert("conf".into(), noise(500 + chance.below(5), 9000));
    }
    parts
}

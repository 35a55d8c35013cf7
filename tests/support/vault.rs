//! A repository in memory whose points have known bytes, and the way to get them back through the
//! library.
//!
//! Invariant: whatever is compared here was read from the repository; the expected bytes are kept
//! apart from it.

#![allow(dead_code, reason = "each test program uses a part of it")]

use diskvault::backup::{self, BackupOptions, BackupReport, ChunkerChoice, InputRequest, Reading};
use diskvault::check::{self, CheckOptions, CheckReport, DataSubset};
use diskvault::environment::Environment;
use diskvault::error::{Error, Result};
use diskvault::monitor::{Monitor, Silent};
use diskvault::repository::compression::Compression;
use diskvault::repository::locate::Locator;
use diskvault::repository::points::{Point, PointSet};
use diskvault::repository::secrets::Passphrase;
use diskvault::repository::{InitOptions, Repository, initialise};
use diskvault::restore::fetch::Fetcher;
use diskvault::restore::sequential::{Output, read_part};
use diskvault::restore::{Part, SparseMode, parts, restore_disk};
use diskvault::source::InputKind;
use diskvault::storage::memory::MemoryStorage;
use diskvault::storage::{Folder, Storage};
use diskvault::target::{DiskTarget, ZeroState};
use diskvault_format::id::PointId;
use diskvault_format::key_slot::KdfCost;
use diskvault_format::names;
use rayon::ThreadPool;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// The password of every repository made here.
pub const PASSWORD: &str = "one";
/// Grid of the repositories made here.
pub const CHUNK_BYTES: u32 = 4 << 10;
/// Bytes of a segment and of a pack: small, so that a small disk fills several.
const SEGMENT_BYTES: u32 = 64 << 10;
const PACK_BYTES: u32 = 256 << 10;

/// Names and bytes of a point's parts.
pub type Parts = BTreeMap<String, Vec<u8>>;

/// A clock that ticks a second at each look, and random bytes that follow from a seed.
pub struct SeededEnvironment {
    seed: [u8; 32],
    drawn: AtomicU64,
    clock: AtomicI64,
}

impl SeededEnvironment {
    pub fn new(seed: u64) -> SeededEnvironment {
        SeededEnvironment {
            seed: *blake3::hash(&seed.to_le_bytes()).as_bytes(),
            drawn: AtomicU64::new(0),
            clock: AtomicI64::new(1_800_000_000_000_000_000),
        }
    }
}

impl Environment for SeededEnvironment {
    fn now_unix_ns(&self) -> i64 {
        self.clock.fetch_add(1_000_000_000, Ordering::Relaxed)
    }

    fn random(&self, buffer: &mut [u8]) -> Result<()> {
        let number = self.drawn.fetch_add(1, Ordering::Relaxed);
        let mut hasher = blake3::Hasher::new_keyed(&self.seed);
        hasher.update(&number.to_le_bytes()).finalize_xof().fill(buffer);
        Ok(())
    }
}

/// Incompressible bytes that follow from `seed`.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
    data
}

pub fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(text.as_bytes().to_vec())
}

/// A folder in memory where the system has one: caches are written with many fsyncs.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Makes a repository with the password [`PASSWORD`] on an empty storage.
pub fn init(storage: &dyn Storage, environment: &dyn Environment) -> Result<()> {
    init_with(storage, environment, 0)
}

/// As [`init`], with parity.
fn init_with(
    storage: &dyn Storage,
    environment: &dyn Environment,
    parity_per_mille: u32,
) -> Result<()> {
    let options = InitOptions {
        passphrase: &passphrase(PASSWORD),
        recovery: None,
        chunk_bytes: Some(CHUNK_BYTES),
        pack_bytes: Some(PACK_BYTES),
        parity_per_mille,
        cost: KdfCost::RECOVERY,
        host: "host",
    };
    initialise(storage, environment, &options).map(|_| ())
}

/// A repository in memory and a folder for caches and sources.
pub struct Vault {
    pub storage: MemoryStorage,
    pub environment: Arc<dyn Environment>,
    pub folder: TempDir,
    pub pool: Arc<ThreadPool>,
    /// The bytes of every point that was reported as done.
    pub known: BTreeMap<PointId, Parts>,
}

impl Vault {
    /// Nothing but an empty storage.
    pub fn empty(environment: Arc<dyn Environment>) -> Vault {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        Vault {
            storage: MemoryStorage::new(),
            environment,
            folder: scratch(),
            pool: Arc::new(pool),
            known: BTreeMap::new(),
        }
    }

    /// A repository without points, with small segments; everything random follows from `seed`.
    pub fn new(seed: u64) -> Vault {
        Vault::with_parity(seed, 0)
    }

    /// As [`Vault::new`]; packs get parity of that many thousandths.
    pub fn with_parity(seed: u64, per_mille: u32) -> Vault {
        let vault = Vault::empty(Arc::new(SeededEnvironment::new(seed)));
        init_with(&vault.storage, vault.environment.as_ref(), per_mille).unwrap();
        let repository = vault.open("init").unwrap();
        let mut config = repository.config().clone();
        config.segment_bytes = SEGMENT_BYTES;
        let leaf = names::config(1, &[0xee; 16]);
        let bytes = config.encode(repository.keys(), &leaf);
        for old in vault.names(Folder::Config) {
            vault.storage.remove(old);
        }
        vault.storage.insert(format!("config/{leaf}"), bytes);
        std::fs::remove_dir_all(vault.cache("init")).unwrap();
        vault
    }

    /// Another storage with the same objects, and a folder without caches.
    pub fn copy(&self, seed: u64) -> Vault {
        let mut vault = Vault::empty(Arc::new(SeededEnvironment::new(seed)));
        for (name, data) in self.storage.snapshot() {
            vault.storage.insert(name, data);
        }
        vault.known.clone_from(&self.known);
        vault
    }

    /// The folder of the cache called `name`: one for each host.
    pub fn cache(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("cache-{name}"))
    }

    pub fn open(&self, cache: &str) -> Result<Repository> {
        self.open_as(cache, PASSWORD)
    }

    pub fn open_as(&self, cache: &str, password: &str) -> Result<Repository> {
        let storage = Arc::new(self.storage.clone());
        let secret = passphrase(password);
        Repository::open(storage, self.environment.clone(), &self.cache(cache), &secret)
    }

    /// All object names of a folder, sorted.
    pub fn names(&self, folder: Folder) -> Vec<String> {
        let prefix = format!("{}/", folder.name());
        let all = self.storage.snapshot().into_keys();
        all.filter(|name| name.starts_with(&prefix) || *name == folder.name()).collect()
    }

    /// Backs up `contents`; what is called `vd…` is a disk, the rest are streams.
    pub fn try_backup(
        &self,
        repository: &Repository,
        series: &str,
        contents: &Parts,
        monitor: &dyn Monitor,
    ) -> Result<BackupReport> {
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap();
        let mut inputs = Vec::new();
        for (name, data) in contents {
            let path = folder.path().join(name);
            std::fs::write(&path, data).unwrap();
            let kind = if name.starts_with("vd") { InputKind::Disk } else { InputKind::Stream };
            inputs.push(InputRequest::new(Some(name.clone()), path, Some(kind)));
        }
        backup::run(repository, &options(series, inputs), &self.pool, monitor)
    }

    /// As [`Vault::try_backup`]; remembers what the new point has to hold.
    pub fn backup(
        &mut self,
        repository: &Repository,
        series: &str,
        contents: &Parts,
    ) -> Result<BackupReport> {
        let report = self.try_backup(repository, series, contents, &Silent)?;
        self.known.insert(report.point, contents.clone());
        Ok(report)
    }

    pub fn check(&self, repository: &Repository, with_data: bool) -> Result<CheckReport> {
        let data = with_data.then_some(DataSubset::All);
        check::run(repository, &CheckOptions { data }, &self.pool, &Silent)
    }

    /// Restores every visible point; each has to be one of the known ones, and what comes back is
    /// its bytes or an error, never something else.
    pub fn restore_all(&self, repository: &Repository) -> Result<BTreeMap<PointId, Result<()>>> {
        let points = PointSet::load(repository)?;
        let locator = Locator::open(repository, &Silent)?;
        let mut outcomes = BTreeMap::new();
        for point in &points.points {
            let restored = restore(repository, &locator, point);
            if let Ok(restored) = &restored {
                let known = &self.known[&point.id];
                assert!(restored == known, "point {} has wrong bytes", point.id);
            }
            outcomes.insert(point.id, restored.map(|_| ()));
        }
        Ok(outcomes)
    }
}

/// Options of a plain backup.
pub fn options(series: &str, inputs: Vec<InputRequest>) -> BackupOptions {
    BackupOptions {
        series: series.into(),
        inputs,
        chunker: ChunkerChoice::Fixed,
        compression: Compression::default(),
        stdin_name: None,
        tags: Vec::new(),
        time_unix_ns: None,
        digests: Vec::new(),
        host: "host".into(),
        reading: Reading::default(),
    }
}

/// The texts of all findings that are damage, one a line.
pub fn damage_of(report: &CheckReport) -> String {
    let damage = report.findings.iter().filter(|finding| finding.is_damage);
    damage.map(|finding| finding.text.clone() + "\n").collect()
}

struct Bytes(Vec<u8>);

impl Output for Bytes {
    fn data(&mut self, data: &[u8]) -> Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }
}

/// Everything of a point; disks are read both ways, from front to back and out of order.
pub fn restore(repository: &Repository, locator: &Locator, point: &Point) -> Result<Parts> {
    let fetcher = Fetcher { repository, locator, threads: 2, monitor: &Silent };
    let mut restored = Parts::new();
    let mut first_error: Option<Error> = None;
    for part in parts(point) {
        let mut bytes = Bytes(Vec::new());
        let read = read_part(&fetcher, part, &mut bytes);
        if let Part::Disk(disk) = part {
            let target = MemoryTarget(Mutex::new(vec![0; disk.size as usize]));
            let written = restore_disk(&fetcher, disk, &target, SparseMode::Auto);
            assert_eq!(read.is_ok(), written.is_ok(), "{read:?}, {written:?}");
            if written.is_ok() {
                assert!(*target.0.lock().unwrap() == bytes.0, "two ways, two results");
            }
        }
        match read {
            Ok(()) => drop(restored.insert(part.name().to_string(), bytes.0)),
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    match first_error {
        Some(error) => Err(error),
        None => Ok(restored),
    }
}

struct MemoryTarget(Mutex<Vec<u8>>);

impl DiskTarget for MemoryTarget {
    fn describe(&self) -> String {
        "memory".into()
    }

    fn zero_state(&self) -> ZeroState {
        ZeroState::AlreadyZero
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let start = offset as usize;
        self.0.lock().unwrap()[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn make_hole(&self, offset: u64, bytes: u64) -> Result<()> {
        self.write_at(offset, &vec![0; bytes as usize])
    }

    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()> {
        self.make_hole(offset, bytes)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// Copies a folder with everything in it, as cloning a machine does.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

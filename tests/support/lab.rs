//! A repository to try things on, by the library alone: backup, restore, digest and check, each
//! in one call. Time and randomness can be repeated, so that a failing case fails again.

#![allow(dead_code, reason = "no test uses all of it")]

use diskvault::backup::{BackupOptions, BackupReport, ChunkerChoice, DigestKind, InputRequest};
use diskvault::check::{CheckOptions, DataSubset};
use diskvault::digest::Digester;
use diskvault::environment::Environment;
use diskvault::error::Result;
use diskvault::monitor::Silent;
use diskvault::repository::compression::Compression;
use diskvault::repository::locate::Locator;
use diskvault::repository::points::{Point, PointSet};
use diskvault::repository::secrets::Passphrase;
use diskvault::repository::{InitOptions, Repository, initialise};
use diskvault::restore::fetch::Fetcher;
use diskvault::restore::sequential::{Output, read_part};
use diskvault::restore::{Part, RestoreReport, SparseMode, find_part, restore_disk};
use diskvault::source::InputKind;
use diskvault::storage::Storage;
use diskvault::storage::memory::MemoryStorage;
use diskvault::target::{OpenTarget, open_target};
use diskvault_format::id::PointId;
use diskvault_format::key_slot::KdfCost;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;

/// Opens every repository of a lab.
pub const PASSWORD: &str = "a password for tests";
/// Small, so that a few mebibytes make several packs.
const PACK_BYTES: u32 = 256 << 10;

/// A clock that goes on by a second each time it is read, and noise that starts with a seed.
struct Repeatable {
    seed: u64,
    calls: AtomicU64,
}

impl Environment for Repeatable {
    fn now_unix_ns(&self) -> i64 {
        let seconds = self.calls.fetch_add(1, Ordering::Relaxed);
        (1_790_000_000 + seconds as i64) * 1_000_000_000
    }

    fn random(&self, buffer: &mut [u8]) -> Result<()> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes()).update(&call.to_le_bytes());
        hasher.finalize_xof().fill(buffer);
        Ok(())
    }
}

/// A repository, its cache and a folder for files.
pub struct Lab {
    pub repository: Repository,
    pub pool: Arc<rayon::ThreadPool>,
    pub threads: usize,
    folder: TempDir,
}

impl Lab {
    /// A new repository on `storage`.
    pub fn make(storage: Arc<dyn Storage>, chunk_bytes: u32, threads: usize) -> Lab {
        let passphrase = Passphrase::new(PASSWORD.into());
        let options = InitOptions {
            passphrase: &passphrase,
            recovery: Some(&Passphrase::new(b"a recovery key".to_vec())),
            chunk_bytes: Some(chunk_bytes),
            pack_bytes: Some(PACK_BYTES),
            parity_per_mille: 0,
            cost: KdfCost::RECOVERY,
            host: "lab",
        };
        let environment = Repeatable { seed: 1, calls: AtomicU64::new(0) };
        initialise(storage.as_ref(), &environment, &options).unwrap();
        Lab::open(storage, 2, threads)
    }

    /// A new repository in memory.
    pub fn in_memory(chunk_bytes: u32, threads: usize) -> (Lab, MemoryStorage) {
        let storage = MemoryStorage::new();
        (Lab::make(Arc::new(storage.clone()), chunk_bytes, threads), storage)
    }

    /// Opens a repository that a lab made, with an empty cache. `seed` must be a new one.
    pub fn open(storage: Arc<dyn Storage>, seed: u64, threads: usize) -> Lab {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let environment = Arc::new(Repeatable { seed, calls: AtomicU64::new(0) });
        let secret = Passphrase::new(PASSWORD.into());
        let cache = folder.path().join("cache");
        let repository = Repository::open(storage, environment, &cache, &secret).unwrap();
        assert_eq!(repository.warnings(), [""; 0]);
        let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
        Lab { repository, pool: Arc::new(builder.build().unwrap()), threads, folder }
    }

    /// The path of a file in the lab's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a point of `inputs`.
    pub fn backup(
        &self,
        series: &str,
        inputs: &[InputRequest],
        chunker: ChunkerChoice,
        digests: &[DigestKind],
    ) -> BackupReport {
        let options = BackupOptions {
            series: series.into(),
            inputs: inputs.to_vec(),
            chunker,
            compression: Compression::default(),
            stdin_name: None,
            tags: Vec::new(),
            time_unix_ns: None,
            digests: digests.to_vec(),
            host: "lab".into(),
            reading: diskvault::backup::Reading::Full,
        };
        diskvault::backup::run(&self.repository, &options, &self.pool, &Silent).unwrap()
    }

    /// The point of that id, read anew.
    pub fn point(&self, id: PointId) -> Point {
        let points = PointSet::load(&self.repository).unwrap();
        points.points.into_iter().find(|point| point.id == id).unwrap()
    }

    /// Where things are, according to this lab's index.
    pub fn locator(&self) -> Locator {
        Locator::open(&self.repository, &Silent).unwrap()
    }

    pub fn fetcher<'a>(&'a self, locator: &'a Locator) -> Fetcher<'a> {
        Fetcher { repository: &self.repository, locator, threads: self.threads, monitor: &Silent }
    }

    /// Restores a disk of a point.
    pub fn restore(
        &self,
        locator: &Locator,
        point: &Point,
        name: &str,
        (target, force): (&Path, bool),
        mode: SparseMode,
    ) -> RestoreReport {
        let Part::Disk(disk) = find_part(point, name).unwrap() else { panic!("{name} is no disk") };
        let opened = open_target(target, OpenTarget { size: disk.size, force }).unwrap();
        let report = restore_disk(&self.fetcher(locator), disk, opened.as_ref(), mode).unwrap();
        opened.finish().unwrap();
        report
    }

    /// All bytes of a part, read from front to back.
    pub fn read(&self, locator: &Locator, point: &Point, name: &str) -> Vec<u8> {
        struct Gathered(Vec<u8>);
        impl Output for Gathered {
            fn data(&mut self, data: &[u8]) -> Result<()> {
                self.0.write_all(data).unwrap();
                Ok(())
            }
        }
        let mut gathered = Gathered(Vec::new());
        read_part(&self.fetcher(locator), find_part(point, name).unwrap(), &mut gathered).unwrap();
        gathered.0
    }

    /// The digest of a part; BLAKE3 without a kind.
    pub fn digest(
        &self,
        locator: &Locator,
        point: &Point,
        name: &str,
        kind: Option<DigestKind>,
    ) -> Vec<u8> {
        let digester = Digester { fetcher: self.fetcher(locator), pool: &self.pool };
        digester.compute(find_part(point, name).unwrap(), kind).unwrap()
    }

    /// Reads and verifies everything; nothing at all may be found.
    pub fn assert_sound(&self) {
        let options = CheckOptions { data: Some(DataSubset::All) };
        let report =
            diskvault::check::run(&self.repository, &options, &self.pool, &Silent).unwrap();
        assert_eq!(report.findings, []);
        assert_eq!(report.packs_read, report.packs);
    }
}

/// A disk to back up.
pub fn disk(name: &str, path: &Path) -> InputRequest {
    InputRequest::new(Some(name.into()), path, Some(InputKind::Disk))
}

/// A stream to back up.
pub fn stream(name: &str, path: &Path) -> InputRequest {
    InputRequest::new(Some(name.into()), path, Some(InputKind::Stream))
}

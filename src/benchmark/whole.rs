//! A first backup, an unchanged one and a restore through the engine, into a repository made for
//! it. The disk lies in memory, so that its storage is not measured; the key slot is the
//! cheapest, and is opened before the clock starts.

use super::storage::drop_from_cache;
use super::{Benchmark, Cache, Work, data};
use crate::backup::{BackupOptions, ChunkerChoice, InputRequest, Reading, run as run_backup};
use crate::environment::SystemEnvironment;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::compression::Compression;
use crate::repository::locate::Locator;
use crate::repository::points::read_manifest;
use crate::repository::secrets::Passphrase;
use crate::repository::{InitOptions, Repository, initialise};
use crate::restore::fetch::Fetcher;
use crate::restore::{SparseMode, restore_disk};
use crate::source::InputKind;
use crate::storage::Folder;
use crate::storage::local::LocalStorage;
use crate::target::{OpenTarget, open_target};
use diskvault_format::key_slot::KdfCost;
use rayon::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Most bytes of the disk; they are in memory.
const DISK_BYTES_MAX: u64 = 256 << 20;
/// Its pieces are none of those that the parts were measured with.
const FIRST_PIECE: u64 = 1 << 20;

/// How fast a whole run was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WholeRate {
    /// Which.
    pub work: Work,
    /// Bytes of the disk, all of them data.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Where a restore read its packs from.
    pub cache: Option<Cache>,
}

impl WholeRate {
    /// Bytes a second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / self.seconds.max(1e-9)
    }
}

/// Only the wish to stop and the warnings pass; stages and notes of the engine do not.
struct Quiet<'a>(&'a dyn Monitor);

impl Monitor for Quiet<'_> {
    fn advance(&self, bytes: u64) {
        self.0.advance(bytes);
    }

    fn warn(&self, text: &str) {
        self.0.warn(text);
    }

    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// Runs all three.
///
/// # Errors
/// As the backup and the restore; `Damage` if other bytes came back.
pub(super) fn measure(benchmark: &Benchmark<'_>, expected: f64) -> Result<Vec<WholeRate>> {
    let piece = data::PIECE_BYTES as u64;
    let affordable = (expected * benchmark.options.seconds) as u64;
    let pieces = affordable.min(DISK_BYTES_MAX).min(benchmark.options.bytes / 4) / piece;
    let pieces = pieces.max(1);
    let bytes = pieces * piece;
    let disk = make_disk(benchmark, pieces)?;
    let root = benchmark.folder.path().join("repository");
    let repository = make_repository(&root, &benchmark.folder.path().join("cache"))?;
    let monitor = benchmark.monitor;
    let quiet = Quiet(monitor);
    let options = backup_options(&disk);
    let mut rates = Vec::new();
    for (work, stage) in [(Work::First, "first backup"), (Work::Unchanged, "unchanged backup")] {
        monitor.start(stage, Some(bytes));
        let began = Instant::now();
        let report = run_backup(&repository, &options, &benchmark.pool, &quiet)?;
        let seconds = began.elapsed().as_secs_f64();
        monitor.finish();
        let statistics = report.statistics;
        let wanted =
            if work == Work::First { statistics.new_bytes } else { statistics.unchanged_bytes };
        if wanted != bytes {
            let text = format!("cannot trust the {stage}: it handled {wanted} of {bytes} bytes");
            return Err(Error::new(ErrorKind::Failed, text));
        }
        rates.push(WholeRate { work, bytes, seconds, cache: None });
        if work == Work::Unchanged {
            let target = benchmark.folder.path().join("restored");
            let cache = forget_packs(&repository, &root)?;
            monitor.start("restore", Some(bytes));
            let seconds = restore(benchmark, &repository, report.point, &target, &quiet)?;
            monitor.finish();
            compare(&disk, &target, pieces, monitor)?;
            rates.push(WholeRate { work: Work::Restore, bytes, seconds, cache: Some(cache) });
        }
    }
    Ok(rates)
}

/// A disk in memory.
fn make_disk(benchmark: &Benchmark<'_>, pieces: u64) -> Result<File> {
    let cannot =
        |cause: std::io::Error| Error::io(ErrorKind::Failed, "cannot make a disk in memory", cause);
    let made = memfd_create("diskvault-benchmark", MemfdFlags::CLOEXEC);
    let disk = File::from(made.map_err(|errno| cannot(errno.into()))?);
    disk.set_len(pieces * data::PIECE_BYTES as u64).map_err(cannot)?;
    benchmark.monitor.start("making a disk", None);
    benchmark.pool.install(|| {
        (0..pieces).into_par_iter().try_for_each(|number| {
            benchmark.monitor.check_cancelled()?;
            let offset = number * data::PIECE_BYTES as u64;
            disk.write_all_at(&data::piece(FIRST_PIECE + number), offset).map_err(cannot)
        })
    })?;
    benchmark.monitor.finish();
    Ok(disk)
}

fn make_repository(root: &Path, cache: &Path) -> Result<Repository> {
    let storage = Arc::new(LocalStorage::create(root)?);
    let environment = Arc::new(SystemEnvironment);
    let passphrase = Passphrase::new(b"benchmark".to_vec());
    let options = InitOptions {
        passphrase: &passphrase,
        recovery: None,
        chunk_bytes: None,
        pack_bytes: None,
        parity_per_mille: 0,
        cost: KdfCost::RECOVERY,
        host: "benchmark",
    };
    initialise(storage.as_ref(), environment.as_ref(), &options)?;
    Repository::open(storage, environment, cache, &passphrase)
}

fn backup_options(disk: &File) -> BackupOptions {
    BackupOptions {
        series: "benchmark".into(),
        inputs: vec![InputRequest::new(
            Some("disk".into()),
            format!("/proc/self/fd/{}", disk.as_raw_fd()),
            Some(InputKind::Disk),
        )],
        chunker: ChunkerChoice::Fixed,
        compression: Compression::default(),
        stdin_name: None,
        tags: Vec::new(),
        time_unix_ns: None,
        digests: Vec::new(),
        host: "benchmark".into(),
        // What is measured is reading.
        reading: Reading::Full,
    }
}

/// Drops all packs from the page cache.
fn forget_packs(repository: &Repository, root: &Path) -> Result<Cache> {
    let mut cache = Cache::Dropped;
    for entry in repository.storage().list(Folder::Packs)? {
        let found = drop_from_cache(&root.join(entry.name.as_str()))?;
        if found != Cache::Dropped {
            cache = found;
        }
    }
    Ok(cache)
}

/// Restores the disk; the seconds it took.
fn restore(
    benchmark: &Benchmark<'_>,
    repository: &Repository,
    point: diskvault_format::id::PointId,
    target: &Path,
    monitor: &dyn Monitor,
) -> Result<f64> {
    let began = Instant::now();
    let manifest = read_manifest(repository, Folder::Points, point)?;
    let locator = Locator::open(repository, monitor)?;
    let fetcher = Fetcher { repository, locator: &locator, threads: benchmark.threads(), monitor };
    for disk in &manifest.disks {
        let target = open_target(target, OpenTarget { size: disk.size, force: false })?;
        restore_disk(&fetcher, disk, target.as_ref(), SparseMode::Auto)?;
        target.finish()?;
    }
    Ok(began.elapsed().as_secs_f64())
}

fn compare(disk: &File, target: &Path, pieces: u64, monitor: &dyn Monitor) -> Result<()> {
    let cannot = |cause| Error::io(ErrorKind::Target, "cannot compare the restored disk", cause);
    let restored = File::open(target).map_err(cannot)?;
    let (mut one, mut two) = (vec![0; data::PIECE_BYTES], vec![0; data::PIECE_BYTES]);
    for number in 0..pieces {
        monitor.check_cancelled()?;
        let offset = number * data::PIECE_BYTES as u64;
        disk.read_exact_at(&mut one, offset).map_err(cannot)?;
        restored.read_exact_at(&mut two, offset).map_err(cannot)?;
        if one != two {
            let text = format!("the restored disk differs after byte {offset}");
            return Err(Error::new(ErrorKind::Damage, text));
        }
    }
    Ok(())
}

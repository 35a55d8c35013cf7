//! The storage under a folder, measured through the storage of repositories: objects as large as
//! packs written under the write rules, read back from the medium, and the time that small
//! operations take.

use super::{Benchmark, data};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::lock;
use crate::storage::local::LocalStorage;
use crate::storage::{Folder, ObjectName, Storage};
use diskvault_format::limits::PACK_BYTES_DEFAULT;
use rustix::fs::{Advice, fadvise, statfs};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::fs::File;
use std::io::IoSliceMut;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Threads that write, as many as store packs in a backup, and threads that read, as in a restore.
const THREADS: usize = 2;
/// Bytes of one read, as a restore reads.
const READ_BYTES: usize = 4 << 20;
/// The first object: by its time the size of the others is chosen.
const FIRST_BYTES: u64 = 4 << 20;
/// Bytes of an object in the round trips: a lease or a manifest.
const SMALL_BYTES: usize = 512;
/// Most and least round trips.
const ROUNDS: std::ops::RangeInclusive<usize> = 3..=200;
/// So many bytes apart each object's blocks are made unique, so that nothing below can store
/// two of them once.
const STAMP_BYTES: usize = 4096;

/// Whether what was read came from the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// The page cache had none of it.
    Dropped,
    /// The page cache kept it.
    Kept,
    /// The file system does not tell.
    Unknown,
}

/// A small operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A durable write of a new object of 512 bytes.
    Put,
    /// Reading it whole, out of the page cache where it can be dropped.
    Get,
    /// Listing the folder it is in.
    List,
    /// Deleting it, durably.
    Delete,
}

impl Operation {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Put => "put",
            Operation::Get => "get",
            Operation::List => "list",
            Operation::Delete => "delete",
        }
    }
}

/// How long an operation takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Which.
    pub operation: Operation,
    /// Half of them took less.
    pub median_seconds: f64,
    /// 95 of 100 took less.
    pub p95_seconds: f64,
    /// Number of measurements.
    pub rounds: usize,
}

/// What a storage can do.
#[derive(Clone, Debug, PartialEq)]
pub struct StorageReport {
    /// The name of the file system.
    pub file_system: String,
    /// Size of the objects, that of packs unless the storage is very slow.
    pub object_bytes: u64,
    /// Bytes written and read back.
    pub bytes: u64,
    /// Bytes a second of durable writing.
    pub write: f64,
    /// Bytes a second of reading in order.
    pub read: f64,
    /// Where the reads came from.
    pub cache: Cache,
    /// Small operations.
    pub latencies: [Latency; 4],
}

impl StorageReport {
    /// The time of an operation, in seconds.
    pub fn median(&self, operation: Operation) -> f64 {
        let found = self.latencies.iter().find(|latency| latency.operation == operation);
        found.map_or(0.0, |latency| latency.median_seconds)
    }
}

/// Runs all tests, and removes their objects.
///
/// # Errors
/// What the storage says; `Cancelled`.
pub(super) fn measure(benchmark: &Benchmark<'_>) -> Result<StorageReport> {
    let root = benchmark.folder.path().join("storage");
    let test = Test {
        storage: LocalStorage::create(&root)?,
        root: &root,
        bytes: benchmark.options.bytes,
        seconds: benchmark.options.seconds,
        monitor: benchmark.monitor,
    };
    let (objects, object_bytes, write) = test.write()?;
    let mut cache = Cache::Dropped;
    for name in &objects {
        cache = worse(cache, drop_from_cache(&root.join(name.as_str()))?);
    }
    let file_system = file_system_name(&root);
    if ["tmpfs", "ramfs"].contains(&file_system.as_str()) {
        cache = Cache::Kept;
    }
    let (bytes, read) = test.read(&objects)?;
    for name in &objects {
        test.storage.delete(name)?;
    }
    let latencies = test.round_trips()?;
    std::fs::remove_dir_all(&root).map_err(|cause| {
        let text = format!("cannot remove {}", root.display());
        Error::io(ErrorKind::Storage, text, cause)
    })?;
    Ok(StorageReport { file_system, object_bytes, bytes, write, read, cache, latencies })
}

struct Test<'a> {
    storage: LocalStorage,
    root: &'a Path,
    bytes: u64,
    seconds: f64,
    monitor: &'a dyn Monitor,
}

impl Test<'_> {
    /// Writes objects; their names, their size, and bytes a second.
    fn write(&self) -> Result<(Vec<ObjectName>, u64, f64)> {
        let pack = u64::from(PACK_BYTES_DEFAULT);
        let mut noise = vec![0; pack.min(self.bytes) as usize];
        data::noise(&mut noise, 0);
        let first = FIRST_BYTES.min(self.bytes);
        self.monitor.start("writing", Some(self.bytes));
        // Does not count: it also makes the folders.
        let took = self.put(0, &mut noise[..first as usize])?;
        self.storage.delete(&object_name(0)?)?;
        let is_slow = took * pack as f64 / first as f64 * THREADS as f64 > self.seconds;
        let object_bytes = if is_slow { first } else { pack }.min(self.bytes / THREADS as u64);
        let count = (self.bytes / object_bytes).max(THREADS as u64);
        noise.truncate(object_bytes as usize);
        let buffers = Mutex::new(vec![noise; THREADS]);
        let next = AtomicU64::new(1);
        let began = Instant::now();
        let work = || -> Result<Vec<ObjectName>> {
            let mut noise = lock(&buffers).pop().unwrap_or_default();
            let mut names = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let is_late = began.elapsed().as_secs_f64() > self.seconds;
                if number > count || (is_late && number > THREADS as u64) {
                    return Ok(names);
                }
                self.put(number, &mut noise)?;
                names.push(object_name(number)?);
                self.monitor.advance(object_bytes);
            }
        };
        let names: Vec<ObjectName> = on_threads(work)?.into_iter().flatten().collect();
        let seconds = began.elapsed().as_secs_f64();
        self.monitor.finish();
        let rate = (names.len() as u64 * object_bytes) as f64 / seconds;
        Ok((names, object_bytes, rate))
    }

    /// Writes one object; the seconds it took.
    fn put(&self, number: u64, noise: &mut [u8]) -> Result<f64> {
        self.monitor.check_cancelled()?;
        for block in noise.chunks_exact_mut(STAMP_BYTES) {
            block[..8].copy_from_slice(&number.to_le_bytes());
        }
        let began = Instant::now();
        self.storage.put_new(&object_name(number)?, noise)?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// Reads objects; how many bytes, and bytes a second.
    fn read(&self, names: &[ObjectName]) -> Result<(u64, f64)> {
        self.monitor.start("reading", Some(self.bytes));
        let next = AtomicU64::new(0);
        let read = AtomicU64::new(0);
        let began = Instant::now();
        let work = || -> Result<()> {
            let mut buffer = vec![0; READ_BYTES];
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(name) = names.get(number as usize) else { return Ok(()) };
                let size = self.storage.size(name)?.unwrap_or(0);
                let mut offset = 0;
                while offset < size {
                    self.monitor.check_cancelled()?;
                    let is_late = began.elapsed().as_secs_f64() > self.seconds;
                    if is_late && read.load(Ordering::Relaxed) > 0 {
                        return Ok(());
                    }
                    let step = (size - offset).min(READ_BYTES as u64);
                    self.storage.get_range(name, offset, &mut buffer[..step as usize])?;
                    offset += step;
                    read.fetch_add(step, Ordering::Relaxed);
                    self.monitor.advance(step);
                }
            }
        };
        on_threads(work)?;
        let seconds = began.elapsed().as_secs_f64();
        self.monitor.finish();
        let bytes = read.into_inner();
        Ok((bytes, bytes as f64 / seconds))
    }

    fn round_trips(&self) -> Result<[Latency; 4]> {
        self.monitor.start("round trips", None);
        let mut seconds: [Vec<f64>; 4] = Default::default();
        let mut noise = [0; SMALL_BYTES];
        let whole = Instant::now();
        for round in 0..*ROUNDS.end() {
            self.monitor.check_cancelled()?;
            if round >= *ROUNDS.start() && whole.elapsed().as_secs_f64() > self.seconds {
                break;
            }
            data::noise(&mut noise, round as u64);
            let name = ObjectName::new(Folder::Leases, &format!("{round:032x}"))?;
            let mut took = |slot: usize, began: Instant| {
                seconds[slot].push(began.elapsed().as_secs_f64());
            };
            let began = Instant::now();
            self.storage.put_new(&name, &noise)?;
            took(0, began);
            drop_from_cache(&self.root.join(name.as_str()))?;
            let began = Instant::now();
            self.storage.get(&name, SMALL_BYTES as u64)?;
            took(1, began);
            let began = Instant::now();
            self.storage.list(Folder::Leases)?;
            took(2, began);
            let began = Instant::now();
            self.storage.delete(&name)?;
            took(3, began);
        }
        self.monitor.finish();
        let names = [Operation::Put, Operation::Get, Operation::List, Operation::Delete];
        let mut latencies = names.map(|operation| Latency {
            operation,
            median_seconds: 0.0,
            p95_seconds: 0.0,
            rounds: 0,
        });
        for (latency, mut seconds) in latencies.iter_mut().zip(seconds) {
            seconds.sort_by(f64::total_cmp);
            // At least the least number of rounds.
            latency.rounds = seconds.len();
            latency.median_seconds = seconds[seconds.len() / 2];
            latency.p95_seconds = seconds[(seconds.len() * 95 / 100).min(seconds.len() - 1)];
        }
        Ok(latencies)
    }
}

fn object_name(number: u64) -> Result<ObjectName> {
    // The first two digits are the sub-folder: spread over all, as pack ids are.
    let first = number.wrapping_mul(97) % 256;
    ObjectName::new(Folder::Packs, &format!("{first:02x}{number:062x}"))
}

/// Runs `work` on as many threads as the engine uses; the first error.
fn on_threads<T: Send>(work: impl Fn() -> Result<T> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(&work)).collect();
        let ended = threads.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Failed, "cannot measure: a thread panicked"))
            })
        });
        // All are joined before the first error is returned.
        ended.collect::<Vec<Result<T>>>().into_iter().collect()
    })
}

/// Asks the kernel to forget the pages of a file, and looks whether it did.
pub(super) fn drop_from_cache(path: &Path) -> Result<Cache> {
    let cannot = |cause: std::io::Error| {
        Error::io(ErrorKind::Storage, format!("cannot open {}", path.display()), cause)
    };
    let file = File::open(path).map_err(cannot)?;
    let size = file.metadata().map_err(cannot)?.len();
    if fadvise(&file, 0, None, Advice::DontNeed).is_err() {
        return Ok(Cache::Unknown);
    }
    let mut found = Cache::Dropped;
    for part in 0..4 {
        let mut byte = [0];
        let mut into = [IoSliceMut::new(&mut byte)];
        // Answers only what needs no waiting: what is in the page cache.
        found = match preadv2(&file, &mut into, size / 4 * part, ReadWriteFlags::NOWAIT) {
            Err(Errno::AGAIN) => found,
            Ok(_) => worse(found, Cache::Kept),
            Err(_) => worse(found, Cache::Unknown),
        };
    }
    Ok(found)
}

fn worse(one: Cache, two: Cache) -> Cache {
    match (one, two) {
        (Cache::Kept, _) | (_, Cache::Kept) => Cache::Kept,
        (Cache::Unknown, _) | (_, Cache::Unknown) => Cache::Unknown,
        _ => Cache::Dropped,
    }
}

/// The file system by the kernel's magic numbers, the usual ones by name.
fn file_system_name(path: &Path) -> String {
    let magic = statfs(path).map_or(0, |found| found.f_type as u32);
    let name = match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x8584_58f6 => "ramfs",
        0x794c_7630 => "overlay",
        0x6969 => "nfs",
        0xff53_4d42 | 0xfe53_4d42 => "smb",
        0x6573_5546 => "fuse",
        0x2fc1_2fc1 => "zfs",
        0xf2f5_2010 => "f2fs",
        0x00c3_6400 => "ceph",
        0x0102_1997 => "9p",
        0xca45_1a4e => "bcachefs",
        _ => return format!("file system {magic:#x}"),
    };
    name.to_string()
}

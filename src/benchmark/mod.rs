//! What this machine and the storage under a folder can do: `benchmark`.
//!
//! `storage` measures the folder through the repository's own storage, `parts` what the processor
//! does to each byte, `whole` a backup, its repetition and a restore through the engine. `verdict`
//! computes from the first two what a large disk will get, and what the limit is.
//!
//! Invariants: everything lies in one new sub-folder, which is removed at the end, after errors
//! and after an interruption; nothing else in the folder is touched. Only the code that backups
//! and restores run is measured.

mod data;
mod parts;
mod storage;
mod verdict;
mod whole;

pub use data::DESCRIPTION as DATA_DESCRIPTION;
pub use parts::{LEVELS, Part, PartRate};
pub use storage::{Cache, Latency, Operation, StorageReport};
pub use verdict::{Limit, Prediction, Work, free_level, point_seconds, predict};
pub use whole::WholeRate;

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use rayon::ThreadPool;
use rustix::fs::statvfs;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// Least data of a storage test.
pub const SIZE_BYTES_MIN: u64 = 1 << 20;

/// What the engine takes beside the data: the cache of the index, small objects.
const SPARE_BYTES: u64 = 4 << 20;

/// Start of the sub-folder's name.
const FOLDER_PREFIX: &str = "diskvault-benchmark-";

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The folder whose storage is measured.
    pub folder: &'a Path,
    /// Data of each storage test, in bytes.
    pub bytes: u64,
    /// Most seconds of each storage test and each whole run; a part of the processor takes a
    /// twentieth.
    pub seconds: f64,
}

/// A benchmark on its way, with its sub-folder.
pub struct Benchmark<'a> {
    options: Options<'a>,
    pool: Arc<ThreadPool>,
    monitor: &'a dyn Monitor,
    folder: TempDir,
}

impl<'a> Benchmark<'a> {
    /// Looks whether there is room and makes the sub-folder.
    ///
    /// # Errors
    /// `Usage` for a size or time that cannot be, `NotFound` if there is no such folder,
    /// `NoSpace` if it is too full, `Storage` if nothing can be written there.
    pub fn begin(
        options: Options<'a>,
        pool: Arc<ThreadPool>,
        monitor: &'a dyn Monitor,
    ) -> Result<Benchmark<'a>> {
        let shown = options.folder.display();
        if options.bytes < SIZE_BYTES_MIN {
            let text = format!("cannot measure with {} bytes: at least 1 MiB", options.bytes);
            return Err(Error::new(ErrorKind::Usage, text));
        }
        if !(options.seconds > 0.0 && options.seconds <= 3600.0) {
            let text = format!("cannot measure for {} s: more than 0 to 3600", options.seconds);
            return Err(Error::new(ErrorKind::Usage, text));
        }
        let metadata = std::fs::metadata(options.folder).map_err(|cause| {
            let kind = match cause.kind() {
                std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::Storage,
            };
            Error::io(kind, format!("cannot measure the storage at {shown}"), cause)
        })?;
        if !metadata.is_dir() {
            let text = format!("cannot measure the storage at {shown}: it is no folder");
            return Err(Error::new(ErrorKind::Usage, text));
        }
        check_room(&options)?;
        let folder = tempfile::Builder::new().prefix(FOLDER_PREFIX).tempdir_in(options.folder);
        let folder = folder.map_err(|cause| {
            Error::io(ErrorKind::Storage, format!("cannot write to {shown}"), cause)
        })?;
        Ok(Benchmark { options, pool, monitor, folder })
    }

    /// Measures the storage.
    ///
    /// # Errors
    /// `Storage`, `NoSpace`, `Cancelled`.
    pub fn storage(&self) -> Result<StorageReport> {
        storage::measure(self)
    }

    /// Measures the processor, on one core and on all.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn parts(&self) -> Result<Vec<PartRate>> {
        parts::measure(self)
    }

    /// Measures a first backup, an unchanged one and a restore, with as much data as takes the
    /// time at the expected rate, in bytes a second.
    ///
    /// # Errors
    /// As the backup and the restore; `Damage` if other bytes came back.
    pub fn whole(&self, expected: f64) -> Result<Vec<WholeRate>> {
        whole::measure(self, expected)
    }

    /// Removes the sub-folder.
    ///
    /// # Errors
    /// `Storage` if something of it stays.
    pub fn end(self) -> Result<()> {
        let text = format!("cannot remove {}", self.folder.path().display());
        self.folder.close().map_err(|cause| Error::io(ErrorKind::Storage, text, cause))
    }

    fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }
}

/// Refuses to fill a storage to its end: others may be writing to it.
fn check_room(options: &Options<'_>) -> Result<()> {
    let shown = options.folder.display();
    let found = statvfs(options.folder).map_err(|errno| {
        let text = format!("cannot measure the storage at {shown}");
        Error::io(ErrorKind::Storage, text, errno.into())
    })?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let needed = needed_bytes(options.bytes);
    if free < needed {
        let text = format!(
            "cannot measure the storage at {shown}: {} MiB are free and {} MiB are needed",
            free >> 20,
            needed.div_ceil(1 << 20)
        );
        return Err(Error::new(ErrorKind::NoSpace, text).hint("use a smaller --size"));
    }
    Ok(())
}

/// What lies in the sub-folder at most: the objects of the storage test, and later a repository
/// and a restored disk of an eighth to a quarter of them each.
fn needed_bytes(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 8).saturating_add(SPARE_BYTES)
}

//! Cache slots: one directory for each process that uses the index at the same time.
//!
//! Invariant: whoever holds a [`Slot`] is alone in its directory (flock on `lock`). A slot
//! counts only with its `version` file, which is written last and removed first. A private slot
//! goes with its holder; what a killed one left goes when the next slot is taken.

use crate::error::{Error, ErrorKind, Result};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::ErrorKind as Io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// More processes of one user at once than that get an error.
const SLOTS: u32 = 32;
/// First characters of the names of private slots.
const PRIVATE: &str = "index-";
/// Tries for a private slot before something else is wrong than a sweep at the same moment.
const TRIES_MAX: u32 = 16;
/// Another layout or another sled rebuilds the slot.
const VERSION: &str = "diskvault index layout 2, sled 0.34.7, catalogue ";

/// What a slot's directory holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing yet.
    Empty,
    /// A catalogue and runs of this version.
    Usable,
    /// Something that has to go, and why.
    Unusable(String),
}

/// A directory that belongs to this process until it is dropped.
pub struct Slot {
    dir: PathBuf,
    /// Changes with every rebuild, so that a sled that panicked while opening, and may still
    /// have a thread at work, never meets the new one.
    catalogue: String,
    _lock: File,
    temporary: Option<tempfile::TempDir>,
}

fn failed(verb: &str, path: &Path, cause: std::io::Error) -> Error {
    Error::io(ErrorKind::Failed, format!("cannot {verb} {}", path.display()), cause)
}

fn make_dir(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|cause| failed("make index directory", path, cause))
}

/// A number for a new name, from the seeds that the standard library takes for hash maps.
pub fn random_name() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}

/// A number that changes with every boot of the machine, never 0; 0 where it is not known.
pub fn boot_tag() -> u64 {
    let id = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digest = blake3::hash(&id);
    let tag = digest.as_bytes().first_chunk::<8>().map_or(1, |head| u64::from_le_bytes(*head));
    if id.is_empty() { 0 } else { tag.max(1) }
}

/// Opens the lock file and tries to lock it; `None` if somebody else has it.
fn lock(dir: &Path) -> Result<Option<File>> {
    let path = dir.join("lock");
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|cause| failed("open index lock", &path, cause))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(cause) => Err(failed("lock index slot", dir, cause.into())
            .hint("use a cache directory on a local file system")),
    }
}

impl Slot {
    /// Takes the first free slot under `<cache>/index`, made if there is none.
    ///
    /// # Errors
    /// Fails if all 32 are in use, and if a directory cannot be made or locked.
    pub fn take(cache: &Path) -> Result<Slot> {
        sweep(cache);
        for number in 0..SLOTS {
            let dir = cache.join("index").join(format!("slot-{number}"));
            make_dir(&dir)?;
            if let Some(lock) = lock(&dir)? {
                return Ok(Slot { dir, catalogue: String::new(), _lock: lock, temporary: None });
            }
        }
        let text = format!("cannot take an index slot: all {SLOTS} are in use");
        Err(Error::new(ErrorKind::Failed, text).hint("give this process another cache directory"))
    }

    /// Makes a private slot under `parent` that is removed when it is dropped.
    ///
    /// # Errors
    /// Fails if the directory cannot be made.
    pub fn temporary(parent: &Path) -> Result<Slot> {
        make_dir(parent)?;
        sweep(parent);
        let broken = |cause| failed("make index directory in", parent, cause);
        for _ in 0..TRIES_MAX {
            let made = tempfile::Builder::new().prefix(PRIVATE).tempdir_in(parent);
            let holder = made.map_err(broken)?;
            let dir = holder.path().to_path_buf();
            // Between making and locking it, another process may take it for a dead one's.
            match lock(&dir) {
                Ok(Some(lock)) if is_at(&lock, &dir.join("lock")) => {
                    let (catalogue, temporary) = (String::new(), Some(holder));
                    return Ok(Slot { dir, catalogue, _lock: lock, temporary });
                }
                Err(error) if dir.exists() => return Err(error),
                _ => {}
            }
        }
        let text = "cannot make a private index directory: others remove it";
        Err(Error::new(ErrorKind::Failed, text))
    }

    /// Makes a private slot in the folder `parent`, for temporary files, that is removed when it is
    /// dropped. What a killed process leaves there is the system's to clear: nothing is removed by
    /// its name in a folder that others write to.
    ///
    /// # Errors
    /// Fails if the directory cannot be made.
    pub fn elsewhere(parent: &Path) -> Result<Slot> {
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("diskvault-index-").permissions(Permissions::from_mode(0o700));
        let holder = builder
            .tempdir_in(parent)
            .map_err(|cause| failed("make index directory in", parent, cause))?;
        let dir = holder.path().to_path_buf();
        // Nobody else knows it; the lock is what a slot has.
        let path = dir.join("lock");
        let lock = File::create(&path).map_err(|cause| failed("open index lock", &path, cause))?;
        Ok(Slot { dir, catalogue: String::new(), _lock: lock, temporary: Some(holder) })
    }

    /// Whether it vanishes with its holder.
    pub fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    /// Looks at what is there.
    ///
    /// # Errors
    /// Fails if the directory cannot be read.
    pub fn contents(&mut self) -> Result<Contents> {
        let broken = |cause| failed("read index slot", &self.dir, cause);
        match fs::read_to_string(self.dir.join("version")) {
            Ok(text) => {
                let name = text.strip_prefix(VERSION).map(str::trim_end);
                let Some(name) = name.filter(|name| u64::from_str_radix(name, 16).is_ok()) else {
                    return Ok(Contents::Unusable("it has another layout".into()));
                };
                if self.dir.join("distrusted").exists() {
                    return Ok(Contents::Unusable("it had given a wrong answer".into()));
                }
                self.catalogue = name.to_string();
                Ok(Contents::Usable)
            }
            Err(cause) if cause.kind() == Io::NotFound => {
                let others = fs::read_dir(&self.dir).map_err(broken)?.count();
                // The lock file is always there.
                let unfinished = || Contents::Unusable("it was left half made".into());
                Ok(if others <= 1 { Contents::Empty } else { unfinished() })
            }
            Err(cause) if cause.kind() == Io::InvalidData => {
                Ok(Contents::Unusable("its version file is damaged".into()))
            }
            Err(cause) => Err(broken(cause)),
        }
    }

    /// Removes everything but the lock and prepares for a new catalogue.
    ///
    /// # Errors
    /// Fails if something cannot be removed.
    pub fn reset(&mut self) -> Result<()> {
        remove(&self.dir.join("version"))?;
        let broken = |cause| failed("read index slot", &self.dir, cause);
        for entry in fs::read_dir(&self.dir).map_err(broken)? {
            let path = entry.map_err(broken)?.path();
            if !path.ends_with("lock") {
                remove(&path)?;
            }
        }
        self.catalogue = format!("{:016x}", random_name());
        make_dir(&self.dir.join("runs"))
    }

    /// Makes the slot count, after its catalogue was made.
    ///
    /// # Errors
    /// Fails if the version file cannot be written.
    pub fn seal(&self) -> Result<()> {
        let (new, path) = (self.dir.join("version.new"), self.dir.join("version"));
        let written = fs::write(&new, format!("{VERSION}{}\n", self.catalogue));
        let renamed = written.and_then(|()| fs::rename(&new, &path));
        renamed.map_err(|cause| failed("write index version", &path, cause))
    }

    /// Where sled lives.
    pub fn catalogue_path(&self) -> PathBuf {
        self.dir.join(format!("catalogue-{}", self.catalogue))
    }

    /// The file of a run.
    pub fn run_path(&self, name: u64) -> PathBuf {
        self.dir.join("runs").join(format!("{name:016x}.run"))
    }

    /// Removes run files other than those named: leftovers of a crash.
    ///
    /// # Errors
    /// Fails if the folder cannot be read.
    pub fn remove_strays(&self, keep: &[PathBuf]) -> Result<()> {
        let dir = self.dir.join("runs");
        let broken = |cause| failed("read index runs", &dir, cause);
        for entry in fs::read_dir(&dir).map_err(broken)? {
            let path = entry.map_err(broken)?.path();
            if !keep.contains(&path) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Makes the next open throw the contents away.
    pub fn distrust(&self) {
        let marked = File::create(self.dir.join("distrusted"));
        if marked.is_err() {
            // No inode to be had: taking the version away says the same. If that fails too,
            // the directory is not ours to write, and nothing will be opened from it either.
            let _ = fs::remove_file(self.dir.join("version"));
        }
    }

    /// Takes a mark of distrust back, after everything was cleared.
    ///
    /// # Errors
    /// Fails if the mark cannot be removed.
    pub fn trust(&self) -> Result<()> {
        remove(&self.dir.join("distrusted"))?;
        self.seal()
    }
}

/// True if `path` still leads to the open file.
fn is_at(file: &File, path: &Path) -> bool {
    let named = fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let open = file.metadata().map(|found| (found.dev(), found.ino()));
    matches!((named, open), (Ok(named), Ok(open)) if named == open)
}

/// Removes private slots under `parent` whose holder has died: nobody has their lock. Best effort,
/// as they only take room.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_private = entry.file_name().to_string_lossy().starts_with(PRIVATE);
        if !is_private || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let dir = entry.path();
        match OpenOptions::new().read(true).write(true).open(dir.join("lock")) {
            Ok(lock) => {
                let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
                if rustix::fs::flock(&lock, exclusive).is_ok() {
                    // The lock last: a sweep that is killed here goes on another time.
                    for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                        if entry.file_name() != "lock" {
                            let _ = remove(&entry.path());
                        }
                    }
                    let _ = fs::remove_file(dir.join("lock"));
                    let _ = fs::remove_dir(&dir);
                }
            }
            // Only an empty one goes: its holder died, or is about to make the lock and tries anew.
            Err(_) => drop(fs::remove_dir(&dir)),
        }
    }
}

/// Removes a file or a folder, or nothing.
fn remove(path: &Path) -> Result<()> {
    let folder = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    let removed = if folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(cause) if cause.kind() != Io::NotFound => Err(failed("remove", path, cause)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn names(folder: &Path) -> BTreeSet<String> {
        let list = fs::read_dir(folder).unwrap();
        list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// What a process leaves that is killed in `check`.
    fn leave_dead(cache: &Path, name: &str) {
        let dir = cache.join(name);
        fs::create_dir_all(dir.join("runs")).unwrap();
        fs::write(dir.join("lock"), b"").unwrap();
        fs::write(dir.join("runs/1.run"), b"records").unwrap();
    }

    #[test]
    fn private_slots_of_the_dead_go_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path();
        let alive = Slot::temporary(cache).unwrap();
        alive.seal().unwrap();
        fs::write(cache.join("index-file"), b"no folder").unwrap();
        fs::create_dir(cache.join("other")).unwrap();
        let name = alive.dir.file_name().unwrap().to_str().unwrap().to_string();
        let keep: BTreeSet<String> =
            [&name[..], "index-file", "other"].into_iter().map(String::from).collect();
        for round in 0..2 {
            leave_dead(cache, "index-dead");
            // Killed before it had a lock.
            fs::create_dir(cache.join("index-empty")).unwrap();
            if round == 0 {
                drop(Slot::temporary(cache).unwrap());
                assert_eq!(names(cache), keep);
            } else {
                let _slot = Slot::take(cache).unwrap();
                assert_eq!(&names(cache) - &keep, BTreeSet::from(["index".to_string()]));
            }
        }
        assert!(alive.dir.join("version").exists());
        drop(alive);
        assert!(!cache.join(name).exists());
    }

    /// A sweep between making and locking a private slot costs a try, not the slot.
    #[test]
    fn private_slots_are_made_beside_sweeps() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let slot = Slot::temporary(cache).unwrap();
                        slot.seal().unwrap();
                        sweep(cache);
                        assert!(slot.dir.join("version").exists(), "a living slot was swept");
                    }
                });
            }
        });
        assert_eq!(names(cache), BTreeSet::new());
    }
}

//! What this host remembers of files that it brought to a point: which point each holds, and by which
//! token it shows that nobody has written to it since.
//!
//! A file that holds a point is given a time of last change that lies in the past. Whoever writes to
//! it sets that to the present, so it shows also where file times are whole seconds, or two.
//!
//! Invariants: what a target holds is forgotten, durably, before it is written to, and remembered only
//! when all of it is on stable storage and while nobody else may write to it; tokens are those of
//! the open file, not of a path; after another boot nothing is known, because a power cut may have kept
//! bytes and lost times; where anything is in doubt the target is read.

use crate::environment::{Environment, SystemEnvironment};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;
use crate::target::Layout;
use diskvault_format::id::PointId;
use rustix::fs::{Timespec, Timestamps, futimens};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Below the repository's cache.
const FOLDER: &str = "targets";
/// So far back is the time of last change set, in seconds, and then to an even one: FAT knows no others.
const PAST_SECONDS: i64 = 4;

/// One target, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    path: String,
    /// Nothing while it is being written to.
    point: String,
    disk: String,
    layout: String,
    /// The boot in which the token holds.
    boot: Option<String>,
    /// Nothing while it is being written to, and for devices.
    token: Option<Token>,
}

/// What of a file changes when somebody writes to it: device, inode, size, and both times in
/// nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Token {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: i128,
    changed: i128,
}

impl Token {
    fn of(metadata: &Metadata) -> Token {
        let time = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        Token {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: time(metadata.mtime(), metadata.mtime_nsec()),
            changed: time(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What is known of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recalled {
    /// It was never one, or nobody remembers.
    Nothing,
    /// It is one, but a run was not finished, or it is a device, or this is another boot.
    Unsure,
    /// Somebody has changed it since.
    Changed,
    /// It holds a disk of a point.
    Holds {
        /// The point.
        point: PointId,
        /// The disk's name in it.
        disk: String,
    },
}

/// The memory of one repository's targets.
pub struct TargetMemory {
    folder: PathBuf,
}

impl TargetMemory {
    /// The one of this host.
    pub fn new(repository: &Repository) -> TargetMemory {
        TargetMemory { folder: repository.cache().join(FOLDER) }
    }

    /// A file has one name here, whatever link leads to it. Of a device the name counts as it is
    /// given: what it leads to may be another one tomorrow.
    fn file_of(&self, path: &Path) -> io::Result<PathBuf> {
        let is_file = fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
        let path = if is_file { fs::canonicalize(path)? } else { std::path::absolute(path)? };
        let name = blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex();
        Ok(self.folder.join(format!("{}.json", &name[..32])))
    }

    fn load(&self, path: &Path) -> io::Result<Entry> {
        Ok(serde_json::from_slice(&fs::read(self.file_of(path)?)?)?)
    }

    /// The layout that the target at `path` has had; `None` if it was never one.
    pub fn layout(&self, path: &Path) -> Option<Layout> {
        let entry = self.load(path).ok()?;
        [Layout::Raw, Layout::Qcow2].into_iter().find(|layout| layout.name() == entry.layout)
    }

    /// What the file or device at `path`, which is open as `file`, is known to hold. Anything that
    /// goes wrong counts as nothing.
    pub fn recall(&self, path: &Path, file: &File, layout: Layout) -> Recalled {
        let Ok(entry) = self.load(path) else { return Recalled::Nothing };
        if entry.layout != layout.name() {
            return Recalled::Nothing;
        }
        let now = file.metadata().ok().map(|metadata| Token::of(&metadata));
        match (PointId::from_hex(&entry.point), entry.token) {
            (_, None) | (None, _) => Recalled::Unsure,
            (_, Some(token)) if now.as_ref() != Some(&token) => Recalled::Changed,
            _ if entry.boot.is_none() || entry.boot != SystemEnvironment.boot_id() => {
                Recalled::Unsure
            }
            (Some(point), _) => Recalled::Holds { point, disk: entry.disk },
        }
    }

    /// Forgets what the target at `path` holds, before it is written to, but not that it is one.
    ///
    /// # Errors
    /// `Failed` if it cannot be made sure that it is forgotten after a power cut.
    pub fn begin(&self, path: &Path, layout: Layout) -> Result<()> {
        let before = self.load(path);
        let entry = self.entry(path, layout, String::new(), String::new(), None);
        match (self.store(path, &entry), before) {
            (Ok(()), _) => Ok(()),
            // Nothing was known, and nothing will be.
            (Err(_), Ok(Entry { token: None, .. })) => Ok(()),
            (Err(_), Err(cause)) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
            (Err(cause), _) => {
                let text = format!("cannot forget what {} holds", path.display());
                Err(Error::io(ErrorKind::Failed, text, cause))
            }
        }
    }

    /// Remembers that the target at `path`, which is open as `file` and on stable storage, holds a
    /// disk. Call it while nobody else may write to it. What cannot be remembered is read next
    /// time.
    ///
    /// # Errors
    /// `Target` if the path leads to another file by now.
    pub fn remember(
        &self,
        path: &Path,
        file: &File,
        layout: Layout,
        (point, disk): (PointId, &str),
    ) -> Result<()> {
        let same = |a: &Metadata, b: &Metadata| a.dev() == b.dev() && a.ino() == b.ino();
        let is_there = match (fs::metadata(path), file.metadata()) {
            (Ok(found), Ok(own)) => same(&found, &own),
            _ => false,
        };
        if !is_there {
            let text = format!("cannot keep {}: another file is there now", path.display());
            return Err(Error::new(ErrorKind::Target, text));
        }
        // Only the next run would be faster.
        if let Ok(token) = stamp(file) {
            let entry = self.entry(path, layout, point.to_hex(), disk.to_owned(), token);
            let _ = self.store(path, &entry);
        }
        Ok(())
    }

    fn entry(
        &self,
        path: &Path,
        layout: Layout,
        point: String,
        disk: String,
        token: Option<Token>,
    ) -> Entry {
        let (path, layout) = (path.display().to_string(), layout.name().to_owned());
        Entry { path, point, disk, layout, boot: SystemEnvironment.boot_id(), token }
    }

    fn store(&self, path: &Path, entry: &Entry) -> io::Result<()> {
        let file = self.file_of(path)?;
        store_durably(&file, &serde_json::to_vec(entry)?)
    }
}

/// Replaces a small file, or makes it with its folder; it is there after a power cut.
pub fn store_durably(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    if !folder.is_dir() {
        fs::create_dir_all(folder)?;
        if let Some(parent) = folder.parent() {
            File::open(parent)?.sync_all()?;
        }
    }
    let temporary = file.with_extension(format!("new-{}", std::process::id()));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut new = options.open(&temporary)?;
    new.write_all(bytes)?;
    new.sync_all()?;
    fs::rename(&temporary, file)?;
    File::open(folder)?.sync_all()
}

/// Gives a file a time of last change in the past; its token then. Nothing for a device.
fn stamp(file: &File) -> io::Result<Option<Token>> {
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let now = SystemEnvironment.now_unix_ns() / 1_000_000_000;
    let past = Timespec { tv_sec: (now - PAST_SECONDS) & !1, tv_nsec: 0 };
    let kept = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    futimens(file, &Timestamps { last_access: kept, last_modification: past })?;
    file.sync_all()?;
    let token = Token::of(&file.metadata()?);
    // Somebody who has written since has set another.
    let is_stamped = token.modified == i128::from(past.tv_sec) * 1_000_000_000;
    Ok(Some(token).filter(|_| is_stamped))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINT: PointId = PointId([7; 32]);

    fn holds() -> Recalled {
        Recalled::Holds { point: POINT, disk: "sda".into() }
    }

    /// A memory, and a file that it knows.
    fn known(folder: &Path) -> (TargetMemory, PathBuf, File) {
        let memory = TargetMemory { folder: folder.join("cache/targets") };
        let path = folder.join("disk");
        fs::write(&path, b"bytes").unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        memory.begin(&path, Layout::Raw).unwrap();
        memory.remember(&path, &file, Layout::Raw, (POINT, "sda")).unwrap();
        (memory, path, file)
    }

    #[test]
    fn a_target_is_known_until_it_is_begun_or_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let (memory, path, file) = known(folder.path());
        assert_eq!(memory.recall(&path, &file, Layout::Raw), holds());
        assert_eq!(memory.recall(&path, &file, Layout::Qcow2), Recalled::Nothing);
        // By another name too.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(memory.recall(&link, &file, Layout::Raw), holds());
        memory.begin(&link, Layout::Raw).unwrap();
        assert_eq!(memory.recall(&path, &file, Layout::Raw), Recalled::Unsure);
        memory.remember(&path, &file, Layout::Raw, (POINT, "sda")).unwrap();
        (&file).write_all(b"other").unwrap();
        assert_eq!(memory.recall(&path, &file, Layout::Raw), Recalled::Changed);
    }

    #[test]
    fn another_file_under_the_name_is_not_known() {
        let folder = tempfile::tempdir().unwrap();
        let (memory, path, file) = known(folder.path());
        let other = folder.path().join("other");
        fs::write(&other, b"bytes").unwrap();
        fs::rename(&other, &path).unwrap();
        let found = File::open(&path).unwrap();
        assert_eq!(memory.recall(&path, &found, Layout::Raw), Recalled::Changed);
        let error = memory.remember(&path, &file, Layout::Raw, (POINT, "sda")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Target);
        assert_eq!(memory.recall(&path, &found, Layout::Raw), Recalled::Changed);
    }

    #[test]
    fn after_another_boot_nothing_is_sure() {
        let folder = tempfile::tempdir().unwrap();
        let (memory, path, file) = known(folder.path());
        let stored = memory.file_of(&path).unwrap();
        let mut entry = memory.load(&path).unwrap();
        for boot in [Some("another".to_string()), None] {
            entry.boot = boot;
            fs::write(&stored, serde_json::to_vec(&entry).unwrap()).unwrap();
            assert_eq!(memory.recall(&path, &file, Layout::Raw), Recalled::Unsure);
        }
    }

    #[test]
    fn what_cannot_be_forgotten_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let (memory, path, _file) = known(folder.path());
        // No file can be made there any more, and what is known stays.
        let stored = memory.file_of(&path).unwrap();
        let in_the_way = stored.with_extension(format!("new-{}", std::process::id()));
        fs::create_dir(&in_the_way).unwrap();
        let error = memory.begin(&path, Layout::Raw).unwrap_err();
        assert!(error.full_text().starts_with("cannot forget what "), "{error:?}");
        // Where nothing was known it does not matter.
        fs::remove_file(&stored).unwrap();
        memory.begin(&path, Layout::Raw).unwrap();
    }
}

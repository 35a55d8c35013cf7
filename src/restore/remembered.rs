//! What this host remembers of files that it restored or mirrored: which point each holds, and by
//! which token it shows that nobody has written to it since.
//!
//! Invariants: what a target holds is forgotten, durably, before it is written to, and remembered
//! only when all of it is on stable storage; where anything is in doubt it counts as changed or
//! unknown, and is read.

use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;
use crate::target::Layout;
use diskvault_format::id::PointId;
use diskvault_format::manifest::DiskRecord;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Below the repository's cache.
const FOLDER: &str = "targets";
/// The kernel's clock for file times ticks every 1 to 10 ms. A file that was changed longer ago than
/// this gets another time by the next write.
const TICK: Duration = Duration::from_millis(20);
/// Longest wait for that: a server's clock may be ahead of this host's.
const WAIT_MAX: Duration = Duration::from_millis(200);

/// One target, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    path: String,
    point: String,
    disk: String,
    root: String,
    layout: String,
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
    /// It was not restored or mirrored here, or nobody remembers.
    Nothing,
    /// It was begun to, and has changed since or cannot tell.
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

    fn file_of(&self, path: &Path) -> io::Result<PathBuf> {
        // As the user names it: what a name of a device leads to may be another one tomorrow.
        let path = std::path::absolute(path)?;
        let name = blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex();
        Ok(self.folder.join(format!("{}.json", &name[..32])))
    }

    fn load(&self, path: &Path) -> io::Result<Entry> {
        Ok(serde_json::from_slice(&fs::read(self.file_of(path)?)?)?)
    }

    /// What the file or device at `path` is known to hold. Anything that goes wrong counts as
    /// nothing.
    pub fn recall(&self, path: &Path, layout: Layout) -> Recalled {
        let Ok(entry) = self.load(path) else { return Recalled::Nothing };
        if entry.layout != layout.name() {
            return Recalled::Nothing;
        }
        let now = fs::metadata(path).ok().filter(Metadata::is_file).map(|now| Token::of(&now));
        match (PointId::from_hex(&entry.point), now) {
            (Some(point), Some(now)) if entry.token.as_ref() == Some(&now) => {
                Recalled::Holds { point, disk: entry.disk }
            }
            _ => Recalled::Changed,
        }
    }

    /// Forgets what the target at `path` holds, before it is written to, but not that it is one.
    ///
    /// # Errors
    /// `Failed` if it cannot be made sure that it is forgotten after a power cut.
    pub fn begin(&self, path: &Path, layout: Layout) -> Result<()> {
        let before = self.load(path).ok();
        let forgotten = Entry {
            path: path.display().to_string(),
            point: String::new(),
            disk: String::new(),
            root: String::new(),
            layout: layout.name().to_owned(),
            token: None,
        };
        match (self.store(path, &forgotten), before) {
            (Err(cause), Some(Entry { token: Some(_), .. })) => {
                let text = format!("cannot forget what {} holds", path.display());
                Err(Error::io(ErrorKind::Failed, text, cause))
            }
            _ => Ok(()),
        }
    }

    /// Remembers that the target at `path`, which is on stable storage, holds a disk. What cannot
    /// be remembered is read next time.
    pub fn remember(&self, path: &Path, layout: Layout, point: PointId, disk: &DiskRecord) {
        let remember = || -> io::Result<()> {
            let metadata = fs::metadata(path)?;
            let token = Some(Token::of(&metadata))
                .filter(|token| metadata.is_file() && is_past(token.changed.max(token.modified)));
            let entry = Entry {
                path: path.display().to_string(),
                point: point.to_hex(),
                disk: disk.name.clone(),
                root: disk.root.to_string(),
                layout: layout.name().to_owned(),
                token,
            };
            self.store(path, &entry)
        };
        // Only the next run would be faster.
        let _ = remember();
    }

    fn store(&self, path: &Path, entry: &Entry) -> io::Result<()> {
        let file = self.file_of(path)?;
        fs::create_dir_all(&self.folder)?;
        let temporary = file.with_extension(format!("new-{}", std::process::id()));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut new = options.open(&temporary)?;
        new.write_all(&serde_json::to_vec(entry)?)?;
        new.sync_all()?;
        fs::rename(&temporary, &file)?;
        File::open(&self.folder)?.sync_all()
    }
}

/// Waits until a write would give a file another time than this one.
fn is_past(changed_unix_ns: i128) -> bool {
    let began = std::time::Instant::now();
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let age = (now.as_nanos() as i128).saturating_sub(changed_unix_ns);
        if age > TICK.as_nanos() as i128 {
            return true;
        }
        if began.elapsed() > WAIT_MAX {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

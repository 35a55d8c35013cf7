//! Folders and unfinished files of a local storage, by directory handles: the system calls under
//! `local.rs`, without a word about objects beyond their names.
//!
//! Invariants owned here: a file is fsynced before it gets its final name, and never gets one
//! that is taken; what fails leaves no file behind; a failed fsync is never asked for again.

use crate::storage::{Folder, ObjectEntry, ObjectName, is_hex};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, Stat, fstat, fsync, linkat, mkdirat,
    openat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An unfinished file older than this, whose process is gone, is swept away.
const TEMPORARY_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// A list of what a login has put, to which nothing was added for so long, is swept away.
const LOGIN_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// What the names of these lists begin with; 32 hex digits follow.
pub const LOGIN_PREFIX: &str = "login-";

const FOLDER_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

const CREATE_FLAGS: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// An open folder, and whether its own entry is known to be durable.
pub struct OpenFolder {
    pub fd: OwnedFd,
    parent: Option<Arc<OpenFolder>>,
    /// Set once the parent was fsynced by us. That somebody else made the folder does not mean
    /// that he has got as far as the fsync.
    linked: OnceLock<()>,
    /// The first failure of an fsync of this folder. The kernel tells a failure once per handle,
    /// so without this lock a second thread would be told that its entry is safe.
    synced: Mutex<Result<(), Errno>>,
}

impl OpenFolder {
    /// Opens the folder `leaf` in `parent`, making it if `make` says so; `NOENT` if there is none.
    pub fn open(parent: Arc<OpenFolder>, leaf: &str, make: bool) -> Result<OpenFolder, Errno> {
        let fd = match openat(&parent.fd, leaf, FOLDER_FLAGS, Mode::empty()) {
            Err(Errno::NOENT) if make => {
                match mkdirat(&parent.fd, leaf, Mode::RWXU) {
                    // Another process may have been faster.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                openat(&parent.fd, leaf, FOLDER_FLAGS, Mode::empty())?
            }
            other => other?,
        };
        Ok(OpenFolder::new(fd, Some(parent)))
    }

    /// Opens the directory `root`, which is durable where it stands.
    pub fn open_root(root: &Path) -> Result<OpenFolder, Errno> {
        // The way to the repository is the user's own and may lead over links.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, root, flags, Mode::empty())?;
        Ok(OpenFolder::new(fd, None))
    }

    fn new(fd: OwnedFd, parent: Option<Arc<OpenFolder>>) -> OpenFolder {
        OpenFolder { fd, parent, linked: OnceLock::new(), synced: Mutex::new(Ok(())) }
    }

    /// Makes the folder's own entry durable, and those above it.
    pub fn make_durable(&self) -> Result<(), Errno> {
        let Some(parent) = &self.parent else { return Ok(()) };
        if self.linked.get().is_none() {
            parent.make_durable()?;
            parent.sync()?;
            // If another thread was faster, it is as durable.
            let _ = self.linked.set(());
        }
        Ok(())
    }

    /// Makes the entries in the folder durable. Once this has failed it fails for ever.
    pub fn sync(&self) -> Result<(), Errno> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if synced.is_ok() {
            *synced = fsync(&self.fd);
        }
        *synced
    }

    /// True if the folder was removed under us.
    pub fn is_gone(&self) -> bool {
        fstat(&self.fd).is_ok_and(|stat| stat.st_nlink == 0)
    }
}

/// An unfinished file; it is removed when this is dropped, unless it was renamed.
pub struct Temporary {
    folder: Arc<OpenFolder>,
    leaf: String,
    file: File,
    renamed: bool,
}

impl Temporary {
    /// Makes a new, empty file in `folder`. `random` must be different for each file of a process.
    pub fn new(folder: Arc<OpenFolder>, random: u64) -> Result<Temporary, Errno> {
        let leaf = format!("{}-{random:016x}", std::process::id());
        let fd = openat(&folder.fd, &*leaf, CREATE_FLAGS, Mode::RUSR | Mode::WUSR)?;
        // From here on it is removed if anything fails.
        Ok(Temporary { folder, leaf, file: File::from(fd), renamed: false })
    }

    /// Adds bytes.
    pub fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all(data)
    }

    /// Makes the bytes durable.
    pub fn sync(&self) -> Result<(), Errno> {
        // Once only, and so not by File::sync_all, which repeats an interrupted call.
        fsync(&self.file)
    }

    /// Gives the file its final name, if that is free; `EXIST` if it is taken.
    pub fn publish(&mut self, folder: &OpenFolder, leaf: &str) -> Result<(), Errno> {
        let flags = RenameFlags::NOREPLACE;
        match renameat_with(&self.folder.fd, &*self.leaf, &folder.fd, leaf, flags) {
            Ok(()) => {
                self.renamed = true;
                Ok(())
            }
            // NFS and many FUSE file systems know no NOREPLACE.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                self.publish_by_link(folder, leaf)
            }
            Err(errno) => Err(errno),
        }
    }

    /// As `publish`, by a second name; the first goes away when this is dropped.
    fn publish_by_link(&self, folder: &OpenFolder, leaf: &str) -> Result<(), Errno> {
        match linkat(&self.folder.fd, &*self.leaf, &folder.fd, leaf, AtFlags::empty()) {
            // An NFS client repeats a call whose reply was lost, and then meets its own link.
            Err(Errno::EXIST) => {
                let ours = statat(&self.folder.fd, &*self.leaf, AtFlags::SYMLINK_NOFOLLOW)?;
                if ours.st_nlink == 2 { Ok(()) } else { Err(Errno::EXIST) }
            }
            other => other,
        }
    }
}

/// Gives `leaf` in `from` the name `new_leaf` in `to`, if that is free; `EXIST` if it is taken.
pub fn rename_new(
    from: &OpenFolder,
    leaf: &str,
    to: &OpenFolder,
    new_leaf: &str,
) -> Result<(), Errno> {
    match renameat_with(&from.fd, leaf, &to.fd, new_leaf, RenameFlags::NOREPLACE) {
        // NFS and many FUSE file systems know no NOREPLACE: the second name first.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            linkat(&from.fd, leaf, &to.fd, new_leaf, AtFlags::empty())?;
            unlinkat(&from.fd, leaf, AtFlags::empty())
        }
        other => other,
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // What cannot be removed now is swept by a later open.
            let _ = unlinkat(&self.folder.fd, &*self.leaf, AtFlags::empty());
        }
    }
}

/// Removes unfinished files of processes that are gone, as far as it is possible.
pub fn sweep_temporaries(folder: &OpenFolder, now: SystemTime) {
    let _ = read_folder(folder, |leaf| {
        let pid = temporary_pid(leaf);
        let age_max = match pid {
            Some(_) => TEMPORARY_AGE_MAX,
            None if is_login(leaf) => LOGIN_AGE_MAX,
            None => return Ok(()),
        };
        let stat = statat(&folder.fd, leaf, AtFlags::SYMLINK_NOFOLLOW)?;
        // A writer on another host has no entry here; for it, only the age speaks.
        let is_alive = pid.is_some_and(|pid| Path::new("/proc").join(pid).exists());
        if is_file(&stat) && is_older(&stat, age_max, now) && !is_alive {
            unlinkat(&folder.fd, leaf, AtFlags::empty())?;
        }
        Ok(())
    });
}

/// What was found in a folder.
#[derive(PartialEq, Eq)]
pub enum Entry {
    Object(ObjectEntry),
    Folder,
    /// What fits no name, stands in the wrong place or is no regular file.
    Foreign,
}

/// Says what `leaf` is; `None` if it was deleted meanwhile.
pub fn classify(
    opened: &OpenFolder,
    folder: Folder,
    path: &str,
    leaf: &CStr,
) -> Result<Option<Entry>, Errno> {
    let stat = match statat(&opened.fd, leaf, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Ok(Some(Entry::Folder));
    }
    let name = leaf.to_str().ok().and_then(|leaf| ObjectName::new(folder, leaf).ok());
    Ok(Some(match name {
        Some(name) if is_file(&stat) && name.parent() == path => {
            // A file keeps the time of its last write: under its final name nobody writes to it.
            let stored_unix_ns = stat.st_mtime.checked_mul(1_000_000_000);
            let stored_unix_ns =
                stored_unix_ns.and_then(|ns| ns.checked_add(stat.st_mtime_nsec as i64));
            Entry::Object(ObjectEntry { name, bytes: file_bytes(&stat), stored_unix_ns })
        }
        _ => Entry::Foreign,
    }))
}

/// The name of a subfolder of `packs`, if `leaf` can be one.
pub fn subfolder(leaf: &CStr) -> Option<&str> {
    let leaf = leaf.to_str().ok()?;
    (leaf.len() == 2 && leaf.bytes().all(is_hex)).then_some(leaf)
}

/// Calls `found` with each name in the folder, in no order.
pub fn read_folder(
    folder: &OpenFolder,
    mut found: impl FnMut(&CStr) -> Result<(), Errno>,
) -> Result<(), Errno> {
    for entry in Dir::read_from(&folder.fd)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            found(entry.file_name())?;
        }
    }
    Ok(())
}

/// Makes `root` and the directories above it, each durable in the one that holds it.
pub fn make_directories(root: &Path) -> io::Result<()> {
    match mkdirat(CWD, root, Mode::RWXU) {
        Ok(()) => {}
        // If it is no directory, opening it will say so.
        Err(Errno::EXIST) => return Ok(()),
        Err(Errno::NOENT) => match root.parent() {
            Some(above) if !above.as_os_str().is_empty() => {
                make_directories(above)?;
                mkdirat(CWD, root, Mode::RWXU)?;
            }
            _ => return Err(Errno::NOENT.into()),
        },
        Err(errno) => return Err(errno.into()),
    }
    let above = match root.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    Ok(fsync(File::open(above)?)?)
}

/// The process number in the name of an unfinished file; `None` if it is no such name.
fn temporary_pid(leaf: &CStr) -> Option<&str> {
    let (pid, random) = leaf.to_str().ok()?.split_once('-')?;
    let fits = !pid.is_empty()
        && pid.bytes().all(|byte| byte.is_ascii_digit())
        && random.len() == 16
        && random.bytes().all(is_hex);
    fits.then_some(pid)
}

/// True for the name of a list of what a login has put; see `far/login.rs`.
fn is_login(leaf: &CStr) -> bool {
    let digits = leaf.to_str().ok().and_then(|leaf| leaf.strip_prefix(LOGIN_PREFIX));
    digits.is_some_and(|digits| digits.len() == 32 && digits.bytes().all(is_hex))
}

fn is_older(stat: &Stat, age_max: Duration, now: SystemTime) -> bool {
    // A time before 1970 or after all times is nonsense, and no reason to delete.
    let seconds = u64::try_from(stat.st_mtime).ok();
    let written = seconds.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    let age = written.and_then(|written| now.duration_since(written).ok());
    age.is_some_and(|age| age > age_max)
}

/// True for a regular file.
pub fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// The size of a file in bytes.
pub fn file_bytes(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (tempfile::TempDir, Arc<OpenFolder>) {
        let root = tempfile::tempdir().unwrap();
        let opened = Arc::new(OpenFolder::open_root(root.path()).unwrap());
        (root, opened)
    }

    #[test]
    fn a_link_serves_where_rename_cannot_refuse_to_replace() {
        let (root, top) = root();
        let tmp = Arc::new(OpenFolder::open(top.clone(), "tmp", true).unwrap());
        let keys = OpenFolder::open(top, "keys", true).unwrap();
        let mut first = Temporary::new(tmp.clone(), 1).unwrap();
        first.write(b"first").unwrap();
        let second = Temporary::new(tmp, 2).unwrap();
        first.publish_by_link(&keys, "aa").unwrap();
        first.publish_by_link(&keys, "aa").unwrap(); // as a repeated NFS call
        assert_eq!(second.publish_by_link(&keys, "aa"), Err(Errno::EXIST));
        drop((first, second));
        assert_eq!(std::fs::read(root.path().join("keys/aa")).unwrap(), b"first");
        assert_eq!(std::fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn only_old_unfinished_files_of_dead_processes_are_swept() {
        let (root, top) = root();
        let dead = root.path().join("4194999-0123456789abcdef"); // above the kernel's largest pid
        let alive = root.path().join(format!("{}-0123456789abcdef", std::process::id()));
        let foreign = root.path().join("notes.txt");
        for path in [&dead, &alive, &foreign] {
            std::fs::write(path, "x").unwrap();
        }
        sweep_temporaries(&top, SystemTime::now() + Duration::from_secs(23 * 3600));
        assert!(dead.exists());
        sweep_temporaries(&top, SystemTime::now() + Duration::from_secs(25 * 3600));
        assert!(!dead.exists() && alive.exists() && foreign.exists());
        let login = root.path().join(format!("login-{}", "0f".repeat(16)));
        std::fs::write(&login, "x").unwrap();
        sweep_temporaries(&top, SystemTime::now() + Duration::from_secs(6 * 24 * 3600));
        assert!(login.exists());
        sweep_temporaries(&top, SystemTime::now() + Duration::from_secs(8 * 24 * 3600));
        assert!(!login.exists() && foreign.exists());
    }

    #[test]
    fn a_failed_fsync_of_a_folder_is_never_asked_again() {
        let (_root, top) = root();
        let packs = Arc::new(OpenFolder::open(top, "packs", true).unwrap());
        let before = OpenFolder::open(packs.clone(), "3e", true).unwrap();
        assert_eq!(before.make_durable(), Ok(()));
        *packs.synced.lock().unwrap() = Err(Errno::IO);
        assert_eq!(packs.sync(), Err(Errno::IO));
        let after = OpenFolder::open(packs, "3f", true).unwrap();
        assert_eq!(after.make_durable(), Err(Errno::IO));
        assert_eq!(before.make_durable(), Ok(()));
    }

    #[test]
    fn a_removed_folder_is_known_to_be_gone() {
        let (root, top) = root();
        let keys = OpenFolder::open(top, "keys", true).unwrap();
        assert!(!keys.is_gone());
        std::fs::remove_dir(root.path().join("keys")).unwrap();
        assert!(keys.is_gone());
    }

    #[test]
    fn directories_are_made_down_to_the_root() {
        let root = tempfile::tempdir().unwrap();
        make_directories(&root.path().join("a/b/c")).unwrap();
        make_directories(&root.path().join("a/b/c")).unwrap();
        assert!(root.path().join("a/b/c").is_dir());
        std::fs::write(root.path().join("file"), "x").unwrap();
        assert!(make_directories(&root.path().join("file/a")).is_err());
    }
}

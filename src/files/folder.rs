//! The target folder of a copy, and what may be made in it.
//!
//! Invariants: everything is made below the folder that was opened first: each step is one name,
//! opened without following links. A file appears under its name when it is complete. What is
//! there stays, unless it is to be overwritten, and a folder stays always.

use super::Name;
use crate::error::{Error, ErrorKind, Result};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, chownat,
    fchmod, fchown, futimens, mkdirat, openat, renameat, renameat_with, statat, symlinkat, syncfs,
    unlinkat, utimensat,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Zeros of this length, at a multiple of it, become a hole.
const HOLE_BYTES: usize = 4096;

/// What is set on what was made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes {
    /// Permissions; by the process's mask if there are none.
    pub mode: Option<u32>,
    /// User and group; those of the process if there are none.
    pub ids: Option<(u32, u32)>,
    /// Seconds and nanoseconds since 1970.
    pub modified: (i64, u32),
}

/// The folder that everything is made in.
pub struct Target {
    root: OwnedFd,
    path: PathBuf,
    overwrites: bool,
}

/// A folder in it.
pub struct Folder<'t> {
    target: &'t Target,
    handle: OwnedFd,
    path: PathBuf,
}

const FOLDER_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Target {
    /// Opens an existing folder, by whatever path the user has for it.
    ///
    /// # Errors
    /// `Target`.
    pub fn open(path: &Path, overwrites: bool) -> Result<Target> {
        let root = openat(CWD, path, FOLDER_FLAGS, Mode::empty())
            .map_err(|cause| failed("open the folder", path, cause))?;
        Ok(Target { root, path: path.to_owned(), overwrites })
    }

    /// Opens a folder below, one name after the other.
    ///
    /// # Errors
    /// `Target` if one of them is no folder, or a link.
    pub fn folder(&self, names: &[Name]) -> Result<Folder<'_>> {
        let mut path = self.path.clone();
        let mut handle = openat(&self.root, ".", FOLDER_FLAGS, Mode::empty())
            .map_err(|cause| failed("open the folder", &path, cause))?;
        for name in names {
            path.push(checked(name)?);
            handle = open_below(&handle, name, &path)?;
        }
        Ok(Folder { target: self, handle, path })
    }

    /// Brings everything to stable storage.
    ///
    /// # Errors
    /// `Target`, `NoSpace`.
    pub fn finish(&self) -> Result<()> {
        syncfs(&self.root).map_err(|cause| failed("sync", &self.path, cause))
    }
}

fn open_below(folder: &OwnedFd, name: &Name, path: &Path) -> Result<OwnedFd> {
    let flags = FOLDER_FLAGS.union(OFlags::NOFOLLOW);
    openat(folder, OsStr::from_bytes(&name.0), flags, Mode::empty())
        .map_err(|cause| failed("open the folder", path, cause))
}

/// The name as one for this system.
fn checked(name: &Name) -> Result<&OsStr> {
    if name.is_safe() {
        return Ok(OsStr::from_bytes(&name.0));
    }
    let text = format!("cannot make a file called {name:?}: it would leave the folder");
    Err(Error::new(ErrorKind::Damage, text))
}

fn failed(verb: &str, path: &Path, cause: Errno) -> Error {
    let text = format!("cannot {verb} {}", path.display().to_string().escape_debug());
    Error::io(ErrorKind::Target, text, cause.into())
}

fn exists(path: &Path) -> Error {
    let text = format!("cannot write {}: it exists", path.display().to_string().escape_debug());
    Error::new(ErrorKind::AlreadyExists, text).hint("use --force to overwrite it")
}

impl Folder<'_> {
    /// Makes a folder, which only the user may look into for now, or takes the one that is there.
    ///
    /// # Errors
    /// `Target`, `NoSpace`; `AlreadyExists` for something else.
    pub fn make_folder(&self, name: &Name) -> Result<()> {
        let path = self.path.join(checked(name)?);
        match mkdirat(&self.handle, checked(name)?, Mode::RWXU) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => open_below(&self.handle, name, &path).map(drop).map_err(|_| {
                let text = format!(
                    "cannot make the folder {}: something else is there",
                    path.display().to_string().escape_debug()
                );
                Error::new(ErrorKind::AlreadyExists, text)
            }),
            Err(cause) => Err(failed("make the folder", &path, cause)),
        }
    }

    /// Sets what a folder is to have, when nothing more is made in it.
    ///
    /// # Errors
    /// `Target`.
    pub fn finish_folder(&self, attributes: &Attributes) -> Result<()> {
        set(&self.handle, attributes, default_folder_mode(), &self.path)
    }

    /// Makes a link, which is not followed by anything here.
    ///
    /// # Errors
    /// `AlreadyExists`, `Target`, `NoSpace`.
    pub fn make_link(&self, name: &Name, target: &Name, attributes: &Attributes) -> Result<()> {
        let path = self.path.join(checked(name)?);
        let (name, target) = (checked(name)?, OsStr::from_bytes(&target.0));
        let made = match symlinkat(target, &self.handle, name) {
            Err(Errno::EXIST) if !self.target.overwrites => return Err(exists(&path)),
            Err(Errno::EXIST) => unlinkat(&self.handle, name, AtFlags::empty())
                .and_then(|()| symlinkat(target, &self.handle, name)),
            other => other,
        };
        made.map_err(|cause| failed("make the link", &path, cause))?;
        if let Some((user, group)) = attributes.ids {
            let ids = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
            chownat(&self.handle, name, ids.0, ids.1, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|cause| failed("set the owner of", &path, cause))?;
        }
        utimensat(&self.handle, name, &times(attributes), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|cause| failed("set the time of", &path, cause))
    }

    /// Begins a file.
    ///
    /// # Errors
    /// `AlreadyExists`, `Target`, `NoSpace`.
    pub fn new_file(&self, name: &Name) -> Result<NewFile<'_>> {
        let path = self.path.join(checked(name)?);
        match statat(&self.handle, checked(name)?, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => {
                let is_folder = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
                if is_folder || !self.target.overwrites {
                    return Err(exists(&path));
                }
            }
            Err(Errno::NOENT) => {}
            Err(cause) => return Err(failed("look at", &path, cause)),
        }
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|cause| {
            Error::new(ErrorKind::Failed, "cannot get random bytes").because(cause)
        })?;
        let temporary = format!(".diskvault-{:016x}", u64::from_ne_bytes(random));
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let handle = openat(&self.handle, &temporary, flags, mode)
            .map_err(|cause| failed("write", &path, cause))?;
        let (file, name) = (File::from(handle), name.clone());
        Ok(NewFile { folder: self, file, name, path, temporary: Some(temporary), bytes: 0 })
    }
}

/// A file that is being written; if it is not finished, it goes again.
pub struct NewFile<'f> {
    folder: &'f Folder<'f>,
    file: File,
    name: Name,
    path: PathBuf,
    temporary: Option<String>,
    bytes: u64,
}

impl NewFile<'_> {
    /// Adds to the end. Zeros become holes.
    ///
    /// # Errors
    /// `Target`, `NoSpace`.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        // Pieces begin at multiples of their length but for the first, which ends at one.
        let mut rest = data;
        while !rest.is_empty() {
            let until = HOLE_BYTES - (self.bytes % HOLE_BYTES as u64) as usize;
            let (mut piece, behind) = rest.split_at(until.min(rest.len()));
            rest = behind;
            let is_zero = |data: &[u8]| data.iter().all(|byte| *byte == 0);
            if !is_zero(piece) {
                // As many as can be written at once.
                let first = piece.len();
                let more = rest.chunks(HOLE_BYTES).take_while(|more| !is_zero(more));
                let more: usize = more.map(<[u8]>::len).sum();
                let start = data.len() - rest.len() - first;
                piece = &data[start..start + first + more];
                rest = &rest[more..];
                self.file.write_all_at(piece, self.bytes).map_err(|cause| self.cannot(cause))?;
            }
            self.bytes += piece.len() as u64;
        }
        Ok(())
    }

    fn cannot(&self, cause: std::io::Error) -> Error {
        let path = self.path.display().to_string();
        Error::io(ErrorKind::Target, format!("cannot write {}", path.escape_debug()), cause)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// `AlreadyExists` if another one has taken it meanwhile; `Target`, `NoSpace`.
    pub fn finish(mut self, attributes: &Attributes) -> Result<()> {
        self.file.set_len(self.bytes).map_err(|cause| self.cannot(cause))?;
        set(&self.file, attributes, default_file_mode(), &self.path)?;
        let (handle, name) = (&self.folder.handle, OsStr::from_bytes(&self.name.0));
        let Some(temporary) = self.temporary.as_deref() else { return Ok(()) };
        let renamed = if self.folder.target.overwrites {
            renameat(handle, temporary, handle, name)
        } else {
            match renameat_with(handle, temporary, handle, name, RenameFlags::NOREPLACE) {
                // Some file systems cannot; it was not there a moment ago.
                Err(Errno::INVAL | Errno::NOSYS) => renameat(handle, temporary, handle, name),
                other => other,
            }
        };
        match renamed {
            Ok(()) => {
                self.temporary = None;
                Ok(())
            }
            Err(Errno::EXIST) => Err(exists(&self.path)),
            Err(cause) => Err(failed("write", &self.path, cause)),
        }
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // What is left has no name that anybody would take for the file's.
            let _ = unlinkat(&self.folder.handle, temporary.as_str(), AtFlags::empty());
        }
    }
}

fn times(attributes: &Attributes) -> Timestamps {
    let (seconds, nanoseconds) = attributes.modified;
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}

fn set(handle: &impl AsFd, attributes: &Attributes, default: u32, path: &Path) -> Result<()> {
    if let Some((user, group)) = attributes.ids {
        fchown(handle, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))
            .map_err(|cause| failed("set the owner of", path, cause))?;
    }
    let mode = attributes.mode.unwrap_or(default);
    fchmod(handle, Mode::from_raw_mode(mode))
        .map_err(|cause| failed("set the permissions of", path, cause))?;
    futimens(handle, &times(attributes)).map_err(|cause| failed("set the time of", path, cause))
}

/// What a new file has by the mask of the process, which others of its threads may use meanwhile.
fn default_file_mode() -> u32 {
    0o666 & !mask()
}

fn default_folder_mode() -> u32 {
    0o777 & !mask()
}

/// From `/proc`, for asking the kernel sets it, too; 022 where there is none.
fn mask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}

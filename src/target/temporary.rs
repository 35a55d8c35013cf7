//! A new file under a temporary name, until it is complete.
//!
//! Invariant: the final name appears at once, with the complete file behind it, and never
//! replaces what this program was not told to replace. Without that the temporary disappears;
//! only a killed process leaves it, and its name says whose it was.

use super::{examine, exists, failed, refused};
use crate::error::{Error, ErrorKind, Result};
use rustix::fs::{
    AtFlags, Mode, OFlags, RenameFlags, open, openat, renameat, renameat_with, unlinkat,
};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// For its owner alone: what was sealed in the repository must not become readable by every user
/// of the host because it was restored. Whoever wants more says so with `chmod`.
const MODE: u32 = 0o600;

/// So much of the final name goes into the temporary one, in bytes: 255 are allowed, and the
/// rest of the temporary name takes 28.
const NAME_BYTES_MAX: usize = 220;

/// What happens if the final name exists at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    /// It is kept, and finishing fails.
    Keep,
    /// It is replaced.
    Replace,
}

/// A file that has no name of its own yet.
pub(super) struct Temporary {
    file: File,
    /// The directory is held open, so that its own renaming does no harm.
    directory: OwnedFd,
    name: OsString,
    final_name: OsString,
    path: PathBuf,
    existing: Existing,
    finished: bool,
}

impl Temporary {
    /// Makes an empty file in the directory of `path`, for reading and writing.
    pub(super) fn create(path: &Path, existing: Existing) -> Result<Temporary> {
        let Some(final_name) = path.file_name() else {
            return Err(refused(path, "it does not name a file"));
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = match open(parent, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                let cause = format!("directory {} does not exist", parent.display());
                return Err(refused(path, &cause));
            }
            Err(errno) => return Err(failed("open directory", parent, errno)),
            Ok(directory) => directory,
        };
        let name = temporary_name(final_name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&directory, &name, flags, Mode::from_raw_mode(MODE))
            .map_err(|errno| failed("create a file beside", path, errno))?;
        Ok(Temporary {
            file: File::from(file),
            directory,
            name,
            final_name: final_name.to_owned(),
            path: path.to_owned(),
            existing,
            finished: false,
        })
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The final path, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Brings the file to stable storage and gives it its name.
    pub(super) fn finish(mut self) -> Result<()> {
        self.file.sync_all().map_err(|cause| failed("write", &self.path, cause))?;
        match self.existing {
            Existing::Replace => {
                renameat(&self.directory, &self.name, &self.directory, &self.final_name)
                    .map_err(|errno| failed("rename the finished file to", &self.path, errno))?;
            }
            Existing::Keep => self.rename_without_replacing()?,
        }
        self.finished = true;
        // The name itself is only durable once its directory is. File systems that cannot
        // sync a directory say EINVAL; there is nothing more to be done on those.
        match rustix::fs::fsync(&self.directory) {
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(failed("write the directory of", &self.path, errno)),
        }
    }

    fn rename_without_replacing(&self) -> Result<()> {
        let (from, to) = (&self.name, &self.final_name);
        match renameat_with(&self.directory, from, &self.directory, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(exists(&self.path)),
            // NFS and some FUSE file systems cannot.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.rename_over_claim(),
            Err(errno) => Err(failed("rename the finished file to", &self.path, errno)),
        }
    }

    /// Takes the name by an empty file of our own, which fails if there is one, and replaces
    /// that one.
    fn rename_over_claim(&self) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match openat(&self.directory, &self.final_name, flags, Mode::from_raw_mode(MODE)) {
            Ok(_) => {}
            Err(Errno::EXIST) => return Err(exists(&self.path)),
            Err(errno) => return Err(failed("rename the finished file to", &self.path, errno)),
        }
        renameat(&self.directory, &self.name, &self.directory, &self.final_name).map_err(|errno| {
            let _ = unlinkat(&self.directory, &self.final_name, AtFlags::empty());
            failed("rename the finished file to", &self.path, errno)
        })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.finished {
            // Nobody is left to be told, and the name explains itself.
            let _ = unlinkat(&self.directory, &self.name, AtFlags::empty());
        }
    }
}

/// A file that takes the name `path` when it is finished: of nothing, or with `force` of a file that
/// is there, whose mode it gets; a symbolic link goes on to lead to it.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] if there is something and `force` is not set; otherwise as
/// [`open_target`](super::open_target).
pub(super) fn new_or_replaced(path: &Path, force: bool) -> Result<Temporary> {
    let Some(metadata) = examine(path)? else {
        return Temporary::create(path, Existing::Keep);
    };
    if !force {
        return Err(exists(path));
    }
    let real = path.canonicalize().map_err(|cause| failed("write to", path, cause))?;
    let temporary = Temporary::create(&real, Existing::Replace)?;
    // Best effort: not every file system has modes.
    let _ = temporary.file().set_permissions(metadata.permissions());
    Ok(temporary)
}

/// `.<name>.diskvault-<random>`: hidden, beside the final name, unlike any other.
fn temporary_name(final_name: &OsStr) -> Result<OsString> {
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).map_err(|cause| {
        Error::new(ErrorKind::Failed, format!("cannot get random bytes: {cause}"))
    })?;
    let bytes = final_name.as_bytes();
    let mut name = vec![b'.'];
    name.extend_from_slice(&bytes[..bytes.len().min(NAME_BYTES_MAX)]);
    name.extend_from_slice(format!(".diskvault-{:016x}", u64::from_le_bytes(random)).as_bytes());
    Ok(OsString::from_vec(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn the_name_appears_at_the_end_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let temporary = Temporary::create(&path, Existing::Keep).unwrap();
        let there = names(folder.path());
        assert!(there.len() == 1 && there[0].starts_with(".x.diskvault-"), "{there:?}");
        drop(temporary);
        assert!(names(folder.path()).is_empty());
        let temporary = Temporary::create(&path, Existing::Keep).unwrap();
        temporary.file().write_all(b"abc").unwrap();
        temporary.finish().unwrap();
        assert_eq!(names(folder.path()), ["x"]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read(&path).unwrap(), b"abc");
    }

    #[test]
    fn what_appears_meanwhile_is_kept_by_both_ways() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let rename = |temporary: &mut Temporary, claim: bool| {
            let result = if claim {
                temporary.rename_over_claim()
            } else {
                temporary.rename_without_replacing()
            };
            temporary.finished = result.is_ok();
            result
        };
        for claim in [false, true] {
            std::fs::write(&path, b"theirs").unwrap();
            let mut temporary = Temporary::create(&path, Existing::Keep).unwrap();
            let error = rename(&mut temporary, claim).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists);
            assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
            std::fs::remove_file(&path).unwrap();
            temporary.file().write_all(b"ours").unwrap();
            rename(&mut temporary, claim).unwrap();
            drop(temporary);
            assert_eq!(std::fs::read(&path).unwrap(), b"ours");
            assert_eq!(names(folder.path()), ["x"]);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn the_longest_name_still_has_a_temporary_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n".repeat(255));
        Temporary::create(&path, Existing::Keep).unwrap().finish().unwrap();
        assert!(path.exists());
    }
}

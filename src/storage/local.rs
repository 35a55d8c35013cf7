//! A repository in a directory of this machine, or of a network file system.
//!
//! Invariants owned here:
//!
//! - A file under a final name is complete and durable in its bytes before it gets that name:
//!   it is written as `tmp/<pid>-<random>`, fsynced, and then renamed without replacing. A
//!   name is reported as put only after its directory, and every directory above it that this
//!   process was first to use, has been fsynced.
//! - A failed fsync is final. The kernel may drop the dirty pages after it, so a second fsync
//!   that succeeds proves nothing. The file is thrown away; a folder that could not be made
//!   durable takes no more objects from this process.
//! - No symbolic link inside the repository is ever followed.

mod folders;

pub(super) use self::folders::LOGIN_PREFIX;
use self::folders::{
    Entry, OpenFolder, Temporary, classify, file_bytes, is_file, make_directories, read_folder,
    rename_new, subfolder, sweep_temporaries,
};
use super::{
    FOREIGN_NAMES_MAX, Folder, ObjectEntry, ObjectName, Storage, absent, taken, too_long, too_short,
};
use crate::environment::{SystemEnvironment, random_array};
use crate::error::{Error, ErrorKind, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, statat, statvfs, unlinkat};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

const INSTANCE_LEAF: &CStr = c"instance";

/// Unfinished files are written here; the folder is no part of the repository.
const TEMPORARY: &str = "tmp";

/// So many packs stay open for ranged reads; a restore reads each of them many times.
const OPEN_PACKS_MAX: usize = 64;

// Without NONBLOCK, somebody's FIFO under an object's name would stop us for ever.
const READ_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// A storage in a directory.
pub struct LocalStorage {
    root: PathBuf,
    top: Arc<OpenFolder>,
    /// Folders opened so far, by path inside the repository: at most 268.
    folders: Mutex<HashMap<String, Arc<OpenFolder>>>,
    packs: Mutex<OpenPacks>,
}

/// Packs open for ranged reads, the last used in front.
#[derive(Default)]
struct OpenPacks(VecDeque<(ObjectName, Arc<File>)>);

impl OpenPacks {
    fn find(&mut self, name: &ObjectName) -> Option<Arc<File>> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        let entry = self.0.remove(at)?;
        let file = entry.1.clone();
        self.0.push_front(entry);
        Some(file)
    }

    fn keep(&mut self, name: &ObjectName, file: &Arc<File>) {
        self.forget(name);
        self.0.push_front((name.clone(), file.clone()));
        self.0.truncate(OPEN_PACKS_MAX);
    }

    fn forget(&mut self, name: &ObjectName) {
        self.0.retain(|(known, _)| known != name);
    }
}

impl LocalStorage {
    /// Makes the directory for a new repository, if it is not there, and opens it. Nothing is
    /// written into it.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] if the directory is not empty; [`ErrorKind::Storage`] if it
    /// cannot be made or read.
    pub fn create(root: &Path) -> Result<LocalStorage> {
        let failed = |cause: io::Error| {
            let message = format!("cannot create repository {}", root.display());
            Error::io(ErrorKind::Storage, message, cause)
        };
        make_directories(root).map_err(failed)?;
        let storage = LocalStorage::at(root).map_err(|errno| failed(errno.into()))?;
        storage.refuse_entries(root)?;
        Ok(storage)
    }

    /// Looks whether [`LocalStorage::create`] would refuse what is at `root`; makes nothing.
    ///
    /// # Errors
    /// As [`LocalStorage::create`], as far as it can be told without writing.
    pub fn may_create(root: &Path) -> Result<()> {
        match LocalStorage::at(root) {
            Ok(storage) => storage.refuse_entries(root),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => {
                let message = format!("cannot create repository {}", root.display());
                Err(Error::io(ErrorKind::Storage, message, errno.into()))
            }
        }
    }

    fn refuse_entries(&self, root: &Path) -> Result<()> {
        let message = format!("cannot create repository {}", root.display());
        let mut entries = 0;
        let read = read_folder(&self.top, |_| {
            entries += 1;
            Ok(())
        });
        if let Err(errno) = read {
            return Err(Error::io(ErrorKind::Storage, message, errno.into()));
        }
        if entries > 0 {
            let message = format!("{message}: the folder is not empty");
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        Ok(())
    }

    /// Opens the directory of an existing repository, and sweeps away what killed processes left
    /// unfinished more than a day ago.
    ///
    /// # Errors
    /// [`ErrorKind::NoRepository`] if `root` is no directory or has no `config` folder;
    /// [`ErrorKind::Storage`] if it cannot be looked into.
    pub fn open(root: &Path) -> Result<LocalStorage> {
        let shown = root.display();
        let nothing = |cause: &str| {
            Error::new(ErrorKind::NoRepository, format!("cannot open repository {shown}: {cause}"))
        };
        let failed = |errno: Errno| {
            Error::io(ErrorKind::Storage, format!("cannot open repository {shown}"), errno.into())
        };
        let storage = LocalStorage::at(root).map_err(|errno| match errno {
            Errno::NOENT => nothing("no such directory"),
            Errno::NOTDIR => nothing("it is no directory"),
            _ => failed(errno),
        })?;
        match statat(&storage.top.fd, Folder::Config.name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
            Ok(_) => return Err(nothing("its config is no folder")),
            Err(Errno::NOENT) => return Err(nothing("it has no config folder")),
            Err(errno) => return Err(failed(errno)),
        }
        if let Ok(folder) = storage.folder(TEMPORARY, false) {
            sweep_temporaries(&folder, SystemTime::now());
        }
        Ok(storage)
    }

    /// Begins a put of which the bytes come in pieces. The name is taken by
    /// [`Unfinished::finish`]; until then nothing is there.
    ///
    /// # Errors
    /// As [`Storage::put_new`], except that a name that is taken is found later.
    pub fn begin(&self, name: &ObjectName) -> Result<Unfinished> {
        let failed = |errno| cannot_write(name, errno);
        let folder = self.folder(name.parent(), true).map_err(failed)?;
        folder.make_durable().map_err(failed)?;
        let unfinished = self.folder(TEMPORARY, true).map_err(failed)?;
        let random = u64::from_le_bytes(random_array(&SystemEnvironment)?);
        let file = Temporary::new(unfinished, random).map_err(failed)?;
        Ok(Unfinished { name: name.clone(), folder, file })
    }

    /// Makes a name durable that another process may have put and not come to its end with.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] if that fails.
    pub fn settle(&self, name: &ObjectName) -> Result<()> {
        let settled = self.folder(name.parent(), false).and_then(|folder| {
            folder.make_durable()?;
            folder.sync()
        });
        settled.map_err(|errno| cannot_write(name, errno))
    }

    /// The folder of unfinished files, and of other things that are no part of the repository.
    pub(super) fn temporary_folder(&self) -> PathBuf {
        self.root.join(TEMPORARY)
    }

    fn at(root: &Path) -> Result<LocalStorage, Errno> {
        Ok(LocalStorage {
            root: root.to_owned(),
            top: Arc::new(OpenFolder::open_root(root)?),
            folders: Mutex::default(),
            packs: Mutex::default(),
        })
    }

    /// Opens the folder at `path` (inside the repository, empty for the top), making it and
    /// those above it if `make` says so. `NOENT` if it does not exist.
    fn folder(&self, path: &str, make: bool) -> Result<Arc<OpenFolder>, Errno> {
        if path.is_empty() {
            return Ok(self.top.clone());
        }
        let known = lock(&self.folders).get(path).cloned();
        match known {
            Some(folder) if !folder.is_gone() => return Ok(folder),
            // Somebody tidied the empty folder away; one of that name may be there again.
            Some(_) => drop(lock(&self.folders).remove(path)),
            None => {}
        }
        let (above, leaf) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = self.folder(above, make)?;
        let opened = Arc::new(OpenFolder::open(parent, leaf, make)?);
        // Of two threads that got here at once, one's folder is kept by both.
        Ok(lock(&self.folders).entry(path.to_owned()).or_insert(opened).clone())
    }

    /// Opens an object for reading; `NOENT` for what is no regular file, as in a listing.
    fn open_object(&self, name: &ObjectName) -> Result<(File, Stat), Errno> {
        let folder = self.folder(name.parent(), false)?;
        match openat(&folder.fd, name.leaf(), READ_FLAGS, Mode::empty()) {
            Ok(fd) => match fstat(&fd)? {
                stat if is_file(&stat) => Ok((File::from(fd), stat)),
                _ => Err(Errno::NOENT),
            },
            // A symbolic link gives LOOP, a socket NXIO.
            Err(Errno::LOOP | Errno::NXIO) => Err(Errno::NOENT),
            Err(errno) => Err(errno),
        }
    }

    /// Opens an object for ranged reads and tells its size in bytes. Packs stay open.
    fn open_ranged(&self, name: &ObjectName) -> Result<(Arc<File>, u64)> {
        let known = lock(&self.packs).find(name);
        if let Some(file) = known {
            let stat = fstat(&file).map_err(|errno| cannot_read(name, errno))?;
            // With no name left it was deleted, by whomever: look for the name again.
            if stat.st_nlink != 0 {
                return Ok((file, file_bytes(&stat)));
            }
            lock(&self.packs).forget(name);
        }
        let (file, stat) = self.open_object(name).map_err(|errno| cannot_read(name, errno))?;
        let file = Arc::new(file);
        if name.folder() == Folder::Packs {
            lock(&self.packs).keep(name, &file);
        }
        Ok((file, file_bytes(&stat)))
    }

    /// Calls `found` with the path and leaf of everything in `folder`, and what it is.
    fn walk(&self, folder: Folder, found: &mut Found<'_>) -> Result<(), Errno> {
        match folder {
            Folder::Instance => {
                if let Some(entry) = classify(&self.top, folder, "", INSTANCE_LEAF)? {
                    found("", INSTANCE_LEAF, entry);
                }
                Ok(())
            }
            Folder::Packs => {
                let mut paths = Vec::new();
                self.walk_path(
                    folder,
                    folder.name(),
                    &mut |path, leaf, entry| match subfolder(leaf) {
                        Some(digits) if entry == Entry::Folder => {
                            paths.push(format!("{path}/{digits}"));
                        }
                        _ => found(path, leaf, entry),
                    },
                )?;
                paths.iter().try_for_each(|path| self.walk_path(folder, path, found))
            }
            _ => self.walk_path(folder, folder.name(), found),
        }
    }

    fn walk_path(&self, folder: Folder, path: &str, found: &mut Found<'_>) -> Result<(), Errno> {
        let opened = match self.folder(path, false) {
            Ok(opened) => opened,
            // Never written, so empty.
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        read_folder(&opened, |leaf| {
            if let Some(entry) = classify(&opened, folder, path, leaf)? {
                found(path, leaf, entry);
            }
            Ok(())
        })
    }
}

/// An object that is being put in pieces. Dropped before it is finished, it leaves nothing.
pub struct Unfinished {
    name: ObjectName,
    folder: Arc<OpenFolder>,
    file: Temporary,
}

impl Unfinished {
    /// Adds bytes.
    ///
    /// # Errors
    /// As [`Storage::put_new`].
    pub fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.file.write(piece).map_err(|cause| cannot_write(&self.name, cause))
    }

    /// Gives the object its name; durable when it returns.
    ///
    /// # Errors
    /// As [`Storage::put_new`].
    pub fn finish(mut self) -> Result<()> {
        let failed = |errno: Errno| cannot_write(&self.name, errno);
        self.file.sync().map_err(failed)?;
        match self.file.publish(&self.folder, self.name.leaf()) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(taken(&self.name)),
            Err(errno) => return Err(failed(errno)),
        }
        self.folder.sync().map_err(failed)
    }
}

impl Storage for LocalStorage {
    fn put_new(&self, name: &ObjectName, data: &[u8]) -> Result<()> {
        let mut unfinished = self.begin(name)?;
        unfinished.write(data)?;
        unfinished.finish()
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        let (file, stat) = self.open_object(name).map_err(|errno| cannot_read(name, errno))?;
        let bytes = file_bytes(&stat);
        if bytes > bytes_max {
            return Err(too_long(name, bytes, bytes_max));
        }
        let mut data = reserve(name, bytes)?;
        file.take(bytes).read_to_end(&mut data).map_err(|cause| cannot_read(name, cause))?;
        if data.len() as u64 != bytes {
            // Objects do not shrink: somebody cut it while it was read.
            return Err(too_short(name, bytes, 0));
        }
        Ok(data)
    }

    fn get_range(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let (file, bytes) = self.open_ranged(name)?;
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > bytes) {
            return Err(too_short(name, offset, buffer.len()));
        }
        read_at(&file, name, offset, buffer)
    }

    fn get_tail(&self, name: &ObjectName, bytes: usize) -> Result<(Vec<u8>, u64)> {
        let (file, whole) = self.open_ranged(name)?;
        let wanted = whole.min(bytes as u64);
        let mut tail = reserve(name, wanted)?;
        // No more than `bytes`, so it fits.
        tail.resize(wanted as usize, 0);
        read_at(&file, name, whole - wanted, &mut tail)?;
        Ok((tail, whole))
    }

    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        let found = self
            .folder(name.parent(), false)
            .and_then(|folder| statat(&folder.fd, name.leaf(), AtFlags::SYMLINK_NOFOLLOW));
        match found {
            Ok(stat) if is_file(&stat) => Ok(Some(file_bytes(&stat))),
            Ok(_) | Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(cannot_read(name, errno)),
        }
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectEntry>> {
        let mut entries = Vec::new();
        self.walk(folder, &mut |_, _, entry| {
            if let Entry::Object(entry) = entry {
                entries.push(entry);
            }
        })
        .map_err(|errno| cannot_list(folder, errno))?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn foreign(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for folder in Folder::ALL {
            self.walk(folder, &mut |path, leaf, entry| {
                if !matches!(entry, Entry::Object(_)) && names.len() < FOREIGN_NAMES_MAX {
                    let slash = if path.is_empty() { "" } else { "/" };
                    names.push(format!("{path}{slash}{}", leaf.to_bytes().escape_ascii()));
                }
            })
            .map_err(|errno| cannot_list(folder, errno))?;
        }
        names.sort();
        Ok(names)
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        lock(&self.packs).forget(name);
        let removed = self.folder(name.parent(), false).and_then(|folder| {
            match unlinkat(&folder.fd, name.leaf(), AtFlags::empty()) {
                // Also if it was gone: whoever removed it may not have got as far as the fsync.
                Ok(()) | Err(Errno::NOENT) => folder.sync(),
                Err(errno) => Err(errno),
            }
        });
        match removed {
            // The folder was never written.
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => {
                let message = format!("cannot delete {name}");
                Err(Error::io(ErrorKind::Storage, message, errno.into()))
            }
        }
    }

    fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<()> {
        lock(&self.packs).forget(from);
        let failed = |errno| {
            let message = format!("cannot rename {from} to {to}");
            Error::io(ErrorKind::Storage, message, io::Error::from(errno))
        };
        if self.size(from)?.is_none() {
            return Err(absent(from));
        }
        let old = self.folder(from.parent(), false).map_err(failed)?;
        let new = self.folder(to.parent(), true).map_err(failed)?;
        new.make_durable().map_err(failed)?;
        match rename_new(&old, from.leaf(), &new, to.leaf()) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(taken(to)),
            Err(Errno::NOENT) => return Err(absent(from)),
            Err(errno) => return Err(failed(errno)),
        }
        // The new name first: a power cut between leaves both or the old one, never none.
        new.sync().and_then(|()| old.sync()).map_err(failed)
    }

    fn room(&self) -> Result<Option<u64>> {
        let found = statvfs(&self.root).ok();
        // Some file systems in user space know no sizes.
        let found = found.filter(|found| found.f_blocks > 0);
        Ok(found.map(|found| found.f_bavail.saturating_mul(found.f_frsize)))
    }

    fn location(&self) -> String {
        self.root.display().to_string()
    }

    fn identity(&self) -> String {
        let path = self.root.canonicalize().unwrap_or_else(|_| self.root.clone());
        path.display().to_string()
    }
}

/// Receives the path of a folder, a leaf in it, and what that is.
type Found<'a> = dyn FnMut(&str, &CStr, Entry) + 'a;

/// Takes memory for `bytes` bytes, or says that there is none.
fn reserve(name: &ObjectName, bytes: u64) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    let fits = usize::try_from(bytes).is_ok_and(|bytes| data.try_reserve_exact(bytes).is_ok());
    if fits {
        return Ok(data);
    }
    let message = format!("cannot read {name}: no memory for its {bytes} bytes");
    Err(Error::new(ErrorKind::Failed, message))
}

fn read_at(file: &File, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
    file.read_exact_at(buffer, offset).map_err(|cause| match cause.kind() {
        io::ErrorKind::UnexpectedEof => too_short(name, offset, buffer.len()),
        _ => cannot_read(name, cause),
    })
}

fn cannot_read(name: &ObjectName, cause: impl Into<io::Error>) -> Error {
    let cause = cause.into();
    match cause.kind() {
        io::ErrorKind::NotFound => absent(name),
        _ => Error::io(ErrorKind::Storage, format!("cannot read {name}"), cause),
    }
}

fn cannot_write(name: &ObjectName, cause: impl Into<io::Error>) -> Error {
    Error::io(ErrorKind::Storage, format!("cannot write {name}"), cause.into())
}

fn cannot_list(folder: Folder, cause: Errno) -> Error {
    Error::io(ErrorKind::Storage, format!("cannot list {folder}"), cause.into())
}

/// The locked value, also after a panic elsewhere: each change under these locks is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_packs_stay_open() {
        let root = tempfile::tempdir().unwrap();
        let storage = LocalStorage::create(root.path()).unwrap();
        for number in 0..2 * OPEN_PACKS_MAX {
            let name = ObjectName::new(Folder::Packs, &format!("00{number:04x}")).unwrap();
            storage.put_new(&name, b"pack").unwrap();
            storage.get_range(&name, 0, &mut [0; 4]).unwrap();
            storage.get_range(&name, 0, &mut [0; 4]).unwrap();
        }
        assert_eq!(lock(&storage.packs).0.len(), OPEN_PACKS_MAX);
    }
}

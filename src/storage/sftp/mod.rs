//! A repository on a machine where no program can be run, by the SFTP server of its SSH: `sftp://`.
//!
//! What it does not promise, and says when it is opened: SFTP can make no folder durable, so a power
//! cut over there may take the names of what was put last. Everything else is as the trait says where
//! the server knows OpenSSH's extensions for fsync and hard links; without the first of them, bytes
//! may be lost as well, and without the second a name is looked for and then taken, in two steps.
//!
//! Invariant: an object has its name only when all its bytes are there, and never a name that is taken.

mod files;
mod packets;
mod session;

use self::files::{Trouble, look};
use self::packets::Attributes;
use self::session::Session;
use super::far::{Dialer, FarOptions, Purpose, lock};
use super::{
    FOREIGN_NAMES_MAX, Folder, ObjectEntry, ObjectName, Storage, absent, is_hex, taken, too_long,
    too_short,
};
use crate::environment::{SystemEnvironment, random_array};
use crate::error::{Error, ErrorKind, Result};
use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Unfinished files are written here, as the local storage does, which also sweeps them.
const TEMPORARY: &str = "tmp";

/// Unfinished files older than this are swept, by this machine's clock.
const TEMPORARY_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Waits between two tries to make a line grow from the first to the second of these.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(20));

/// A request that cuts so many lines, one after the other, is given up.
const TRIES_MAX: usize = 12;

/// Room that a disk must have for a write that failed not to have failed for want of it.
const ROOM_MIN: u64 = 64 << 10;

/// A repository by SFTP.
pub struct SftpStorage {
    dialer: Arc<dyn Dialer>,
    options: FarOptions,
    /// Without a slash at its end.
    root: String,
    current: Mutex<Option<Arc<Session>>>,
    /// Folders that are known to be there.
    folders: Mutex<HashSet<String>>,
}

impl SftpStorage {
    /// Reaches the far end. `path` is absolute, or begins with `~/`.
    ///
    /// # Errors
    /// What keeps it from being reached; as [`super::local::LocalStorage`] what is there.
    pub fn open(
        dialer: Arc<dyn Dialer>,
        path: &str,
        purpose: Purpose,
        options: FarOptions,
    ) -> Result<SftpStorage> {
        // A relative path is below the home.
        let root = path.strip_prefix("~/").unwrap_or(path).trim_end_matches('/').to_owned();
        let storage = SftpStorage {
            dialer,
            options,
            root,
            current: Mutex::new(None),
            folders: Mutex::default(),
        };
        let session = storage.dial(true)?;
        *lock(&storage.current) = Some(session.clone());
        let place = storage.location();
        let failed = |what: &str, trouble: Trouble| {
            storage.error(&session, &format!("cannot {what} repository {place}"), trouble)
        };
        match purpose {
            Purpose::Open => {
                storage.open_existing(&session).map_err(|trouble| failed("open", trouble))??;
            }
            Purpose::Create | Purpose::MayCreate => {
                storage
                    .make(&session, purpose == Purpose::Create)
                    .map_err(|trouble| failed("create", trouble))??;
            }
        }
        storage.say_what_is_not_promised(&session);
        Ok(storage)
    }

    fn say_what_is_not_promised(&self, session: &Session) {
        let place = self.location();
        if session.extension("fsync@openssh.com").is_some() {
            self.options.monitor.note(&format!(
                "{place}: SFTP can make no folder durable, so a power cut there may take the last \
                 points; ssh:// has no such weakness"
            ));
        } else {
            self.options.monitor.warn(&format!(
                "{place}: this SFTP server cannot make anything durable, so a power cut there may \
                 take or damage the last points"
            ));
        }
    }

    fn open_existing(&self, session: &Session) -> Result<Result<()>, Trouble> {
        let nothing = |why: &str| {
            let text = format!("cannot open repository {}: {why}", self.location());
            Ok(Err(Error::new(ErrorKind::NoRepository, text)))
        };
        let config = look(session, &self.path(Folder::Config.name()))?;
        match config {
            Some(found) if found.is_folder() => {}
            Some(_) => return nothing("its config is no folder"),
            None => return nothing("it has no config folder"),
        }
        self.sweep(session)?;
        Ok(Ok(()))
    }

    /// Removes what was left unfinished long ago.
    fn sweep(&self, session: &Session) -> Result<(), Trouble> {
        let found = files::list(session, &[self.path(TEMPORARY)])?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let is_old = |found: &Attributes| {
            let modified = found.modified.map(|it| Duration::from_secs(it.into()));
            modified.is_some_and(|it| now.saturating_sub(it) > TEMPORARY_AGE_MAX)
        };
        for (name, attributes) in found.into_iter().flatten().flatten() {
            let Ok(name) = String::from_utf8(name) else { continue };
            let is_unfinished = name.split_once('-').is_some_and(|(pid, random)| {
                pid.bytes().all(|byte| byte.is_ascii_digit()) && random.bytes().all(is_hex)
            });
            if is_unfinished && attributes.is_file() && is_old(&attributes) {
                // As far as it is possible.
                let _ = files::remove(session, &self.path(&format!("{TEMPORARY}/{name}")));
            }
        }
        Ok(())
    }

    fn make(&self, session: &Session, makes: bool) -> Result<Result<()>, Trouble> {
        let found = files::list(session, std::slice::from_ref(&self.root))?.into_iter().flatten();
        if found.flatten().next().is_some() {
            let text =
                format!("cannot create repository {}: the folder is not empty", self.location());
            return Ok(Err(Error::new(ErrorKind::AlreadyExists, text)));
        }
        if makes {
            let ends = self.root.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0);
            for end in ends.chain([self.root.len()]) {
                let folder = &self.root[..end];
                if look(session, folder)?.is_none() && !files::make_folder(session, folder)? {
                    let cause = io::Error::other("the server refuses to make a folder");
                    return Err(Trouble::File(cause));
                }
            }
        }
        Ok(Ok(()))
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }

    fn dial(&self, is_first: bool) -> Result<Arc<Session>> {
        self.try_dial(is_first).map_err(|(error, _)| error)
    }

    fn try_dial(&self, is_first: bool) -> Result<Arc<Session>, (Error, bool)> {
        let look = || if is_first { self.options.monitor.check_cancelled() } else { Ok(()) };
        let patience = (self.options.greeting, self.options.silence);
        Session::open(&*self.dialer, &self.options.limits, patience, &look)
    }

    /// The session, made again if it was cut.
    fn session(&self, since: Option<Instant>) -> Result<Arc<Session>> {
        let mut current = lock(&self.current);
        if let Some(session) = current.as_ref().filter(|session| session.is_open()) {
            return Ok(session.clone());
        }
        let began = since.unwrap_or_else(Instant::now);
        let mut wait = WAITS.0;
        loop {
            match self.try_dial(false) {
                Ok(session) => {
                    *current = Some(session.clone());
                    return Ok(session);
                }
                Err((error, is_final)) => {
                    let is_stopped = self.options.monitor.is_cancelled();
                    if is_final || is_stopped || began.elapsed() >= self.options.patience {
                        return Err(error);
                    }
                }
            }
            std::thread::sleep(wait);
            wait = (wait * 2).min(WAITS.1);
        }
    }

    /// Does something, again as often as the line is cut. The work hears whether it is done again.
    fn again<T>(
        &self,
        what: &str,
        mut work: impl FnMut(&Session, bool) -> Result<Result<T>, Trouble>,
    ) -> Result<T> {
        let mut since = None;
        for tried in 0..TRIES_MAX {
            let session = self.session(since)?;
            match work(&session, tried > 0) {
                Ok(done) => return done,
                Err(Trouble::Cut(cut)) => {
                    let began = *since.get_or_insert_with(Instant::now);
                    if tried + 1 == TRIES_MAX || began.elapsed() > self.options.patience {
                        return Err(self.error(&session, what, Trouble::Cut(cut)));
                    }
                }
                Err(trouble) => return Err(self.error(&session, what, trouble)),
            }
        }
        Err(Error::new(ErrorKind::Storage, what))
    }

    /// The error of this storage. A server does not say that a disk is full; so we look.
    fn error(&self, session: &Session, what: &str, trouble: Trouble) -> Error {
        let cause = match trouble {
            Trouble::Cut(cut) => {
                let text = format!("{what}: cannot reach {}: {}", self.location(), cut.0);
                return Error::new(ErrorKind::Storage, text);
            }
            Trouble::File(cause) => cause,
        };
        let is_vague = cause.kind() == io::ErrorKind::Other;
        let is_full = || {
            let room = files::room(session, &self.root).ok().flatten();
            room.is_some_and(|room| room < ROOM_MIN)
        };
        let kind = if is_vague && is_full() { ErrorKind::NoSpace } else { ErrorKind::Storage };
        Error::new(kind, what).because(cause)
    }

    /// Makes the folder of an object, unless it is known to be there.
    fn make_parent(&self, session: &Session, name: &ObjectName) -> Result<(), Trouble> {
        let parent = name.parent();
        if parent.is_empty() || lock(&self.folders).contains(parent) {
            return Ok(());
        }
        if let Some((above, _)) = parent.rsplit_once('/') {
            files::make_folder(session, &self.path(above))?;
        }
        files::make_folder(session, &self.path(parent))?;
        lock(&self.folders).insert(parent.to_owned());
        Ok(())
    }

    /// Puts an object by way of an unfinished file; false if its name is taken.
    fn put(&self, session: &Session, name: &ObjectName, data: &[u8]) -> Result<bool, Trouble> {
        let random = u64::from_le_bytes(
            random_array(&SystemEnvironment)
                .map_err(|error| Trouble::File(io::Error::other(error)))?,
        );
        let leaf = format!("{}-{random:016x}", std::process::id());
        let unfinished = self.path(&format!("{TEMPORARY}/{leaf}"));
        let put = files::write(session, &unfinished, data)
            .and_then(|()| files::move_new(session, &unfinished, &self.path(name.as_str())));
        if !matches!(put, Ok(true)) {
            // As far as it is possible; a later open sweeps it.
            let _ = files::remove(session, &unfinished);
        }
        put
    }

    /// As [`SftpStorage::put`], and makes the folders if they are not there.
    fn put_making(
        &self,
        session: &Session,
        name: &ObjectName,
        data: &[u8],
    ) -> Result<bool, Trouble> {
        if look(session, &self.path(name.as_str()))?.is_some() {
            return Ok(false);
        }
        self.make_parent(session, name)?;
        match self.put(session, name, data) {
            Err(trouble) if trouble.is_absent() => {
                // The folder of unfinished files, or one that somebody tidied away.
                lock(&self.folders).clear();
                files::make_folder(session, &self.path(TEMPORARY))?;
                self.make_parent(session, name)?;
                self.put(session, name, data)
            }
            put => put,
        }
    }

    fn read_part(
        &self,
        session: &Session,
        name: &ObjectName,
        part: impl FnOnce(u64) -> Result<(u64, u64)>,
    ) -> Result<Result<(Vec<u8>, u64)>, Trouble> {
        let (handle, whole) = match files::open(session, &self.path(name.as_str())) {
            Err(trouble) if trouble.is_absent() => return Ok(Err(absent(name))),
            opened => opened?,
        };
        let (offset, bytes) = match part(whole) {
            Ok(part) => part,
            Err(error) => {
                files::close(session, &handle)?;
                return Ok(Err(error));
            }
        };
        let mut data = Vec::new();
        let fits = usize::try_from(bytes).is_ok_and(|bytes| data.try_reserve_exact(bytes).is_ok());
        if !fits {
            files::close(session, &handle)?;
            let text = format!("cannot read {name}: no memory for its {bytes} bytes");
            return Ok(Err(Error::new(ErrorKind::Failed, text)));
        }
        // It fits.
        data.resize(bytes as usize, 0);
        let read = files::read(session, &handle, offset, &mut data);
        files::close(session, &handle)?;
        match read {
            Err(Trouble::File(cause)) if cause.kind() == io::ErrorKind::UnexpectedEof => {
                Ok(Err(too_short(name, offset, data.len())))
            }
            Err(trouble) => Err(trouble),
            Ok(()) => Ok(Ok((data, whole))),
        }
    }

    /// Calls `found` with everything in a folder: its path inside the repository, its leaf, and the
    /// object if it is one.
    fn walk(
        &self,
        session: &Session,
        folder: Folder,
        found: &mut Found<'_>,
    ) -> Result<(), Trouble> {
        if folder == Folder::Instance {
            if let Some(attributes) = look(session, &self.path(folder.name()))? {
                let leaf = folder.name().as_bytes();
                found("", leaf, classify(folder, "", leaf, &attributes));
            }
            return Ok(());
        }
        let mut paths = vec![folder.name().to_owned()];
        let mut is_top = true;
        while !paths.is_empty() {
            let full: Vec<String> = paths.iter().map(|path| self.path(path)).collect();
            let mut below = Vec::new();
            for (path, entries) in paths.iter().zip(files::list(session, &full)?) {
                for (leaf, attributes) in entries.into_iter().flatten() {
                    let digits = std::str::from_utf8(&leaf).ok().filter(|leaf| {
                        folder == Folder::Packs && leaf.len() == 2 && leaf.bytes().all(is_hex)
                    });
                    match digits {
                        Some(digits) if is_top && attributes.is_folder() => {
                            below.push(format!("{path}/{digits}"));
                        }
                        _ => found(path, &leaf, classify(folder, path, &leaf, &attributes)),
                    }
                }
            }
            paths = below;
            is_top = false;
        }
        Ok(())
    }
}

/// Receives the path of a folder, a leaf in it, and the object that it is, if it is one.
type Found<'a> = dyn FnMut(&str, &[u8], Option<ObjectEntry>) + 'a;

/// The object that a file is, if it is one.
fn classify(
    folder: Folder,
    path: &str,
    leaf: &[u8],
    attributes: &Attributes,
) -> Option<ObjectEntry> {
    let name = ObjectName::new(folder, std::str::from_utf8(leaf).ok()?).ok()?;
    let fits = attributes.is_file() && name.parent() == path;
    let stored_unix_ns = attributes.modified.map(|seconds| i64::from(seconds) * 1_000_000_000);
    fits.then_some(ObjectEntry { name, bytes: attributes.bytes?, stored_unix_ns })
}

impl Storage for SftpStorage {
    fn put_new(&self, name: &ObjectName, data: &[u8]) -> Result<()> {
        self.again(&format!("cannot write {name}"), |session, is_again| {
            if self.put_making(session, name, data)? {
                return Ok(Ok(()));
            }
            if is_again {
                // It may be ours, and its reply was lost.
                let found = self.read_part(session, name, |whole| Ok((0, whole)))?;
                if found.is_ok_and(|(found, _)| found == data) {
                    return Ok(Ok(()));
                }
            }
            Ok(Err(taken(name)))
        })
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        let found = self.again(&format!("cannot read {name}"), |session, _| {
            self.read_part(session, name, |whole| match whole > bytes_max {
                true => Err(too_long(name, whole, bytes_max)),
                false => Ok((0, whole)),
            })
        });
        found.map(|(data, _)| data)
    }

    fn get_range(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let bytes = buffer.len();
        let (data, _) = self.again(&format!("cannot read {name}"), |session, _| {
            self.read_part(session, name, |whole| {
                match offset.checked_add(bytes as u64).is_some_and(|end| end <= whole) {
                    true => Ok((offset, bytes as u64)),
                    false => Err(too_short(name, offset, bytes)),
                }
            })
        })?;
        buffer.copy_from_slice(&data);
        Ok(())
    }

    fn get_tail(&self, name: &ObjectName, bytes: usize) -> Result<(Vec<u8>, u64)> {
        self.again(&format!("cannot read {name}"), |session, _| {
            self.read_part(session, name, |whole| {
                let wanted = whole.min(bytes as u64);
                Ok((whole - wanted, wanted))
            })
        })
    }

    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.again(&format!("cannot read {name}"), |session, _| {
            let found = look(session, &self.path(name.as_str()))?;
            Ok(Ok(found.filter(Attributes::is_file).and_then(|found| found.bytes)))
        })
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectEntry>> {
        let mut entries = self.again(&format!("cannot list {folder}"), |session, _| {
            let mut entries = Vec::new();
            self.walk(session, folder, &mut |_, _, entry| entries.extend(entry))?;
            Ok(Ok(entries))
        })?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn foreign(&self) -> Result<Vec<String>> {
        let mut names = self.again("cannot list what is no object", |session, _| {
            let mut names = Vec::new();
            for folder in Folder::ALL {
                self.walk(session, folder, &mut |path, leaf, entry| {
                    if entry.is_none() && names.len() < FOREIGN_NAMES_MAX {
                        let slash = if path.is_empty() { "" } else { "/" };
                        names.push(format!("{path}{slash}{}", leaf.escape_ascii()));
                    }
                })?;
            }
            Ok(Ok(names))
        })?;
        names.sort();
        Ok(names)
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        self.again(&format!("cannot delete {name}"), |session, _| {
            files::remove(session, &self.path(name.as_str())).map(Ok)
        })
    }

    fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<()> {
        self.again(&format!("cannot rename {from} to {to}"), |session, is_again| {
            let (old, new) = (self.path(from.as_str()), self.path(to.as_str()));
            let is_there = look(session, &old)?.is_some_and(|found| found.is_file());
            if !is_there {
                let is_done = is_again && look(session, &new)?.is_some();
                return Ok(if is_done { Ok(()) } else { Err(absent(from)) });
            }
            self.make_parent(session, to)?;
            let moved = match files::move_new(session, &old, &new) {
                Err(trouble) if trouble.is_absent() => {
                    lock(&self.folders).clear();
                    self.make_parent(session, to)?;
                    files::move_new(session, &old, &new)?
                }
                moved => moved?,
            };
            Ok(if moved { Ok(()) } else { Err(taken(to)) })
        })
    }

    fn room(&self) -> Result<Option<u64>> {
        self.again("cannot find out how much room there is", |session, _| {
            files::room(session, &self.root).map(Ok)
        })
    }

    fn calls_at_once(&self) -> usize {
        8
    }

    fn location(&self) -> String {
        self.dialer.location()
    }
}

impl Drop for SftpStorage {
    fn drop(&mut self) {
        if let Some(session) = &*lock(&self.current) {
            session.close();
        }
    }
}

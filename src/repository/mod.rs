//! The repository: keys, sealed objects, packs and maps on top of a dumb storage.
//!
//! Invariants: this floor is the only one that seals and opens; the index is asked but never
//! believed, because every chunk and page is verified by its id when it is read; nothing is
//! referred to before it is durable.

pub mod address;
pub mod aside;
pub mod at_once;
pub mod complete;
pub mod compression;
pub mod condemned;
mod describe;
pub mod entries;
pub mod host_memory;
mod key_slots;
pub mod ledger;
pub mod locate;
pub mod lost;
mod make;
pub mod map_cursor;
pub mod map_reader;
pub mod marks;
pub mod notes;
pub mod objects;
mod opening;
pub mod own;
pub mod pack_reader;
pub mod packer;
pub mod parity;
pub mod points;
pub mod reach;
pub mod replica;
pub mod salvage;
pub mod secrets;
mod sectors;
pub mod segment_cache;
pub mod session;
pub mod splices;
pub mod stored;
pub mod trust;
pub mod verify;
pub mod writers;

pub use describe::ConfigProblem;
pub use key_slots::SlotDescription;
pub use make::{InitOptions, InitReport, initialise};

use crate::environment::{Environment, random_array};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::{Monitor, Silent};
use crate::storage::Storage;
use crate::storage::forgiving::Forgiving;
use crate::storage::remembering::Remembering;
use diskvault_format::config::Config;
use diskvault_format::crypto::Keys;
use diskvault_format::id::{InstanceId, KeySlotId, RepositoryId, WriterId};
use diskvault_format::key_slot::SlotKeys;
use diskvault_format::pack::{PackKind, decode_header};
use diskvault_format::writers::Writers;
use host_memory::HostMemory;
pub(crate) use opening::{ConfigCandidate, read_configs};
use opening::{Found, Opened, Opening, open_config, read_instance};
use own::{OwnCopies, OwnView};
use secrets::Passphrase;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An open repository. Cheap to share through [`Arc`].
#[derive(Clone)]
pub struct Repository {
    storage: Arc<dyn Storage>,
    environment: Arc<dyn Environment>,
    opens: SlotKeys,
    keys: Arc<Keys>,
    /// Of a writer that may not read: what it keeps of what it stored. Its storage shows no more.
    own_copies: Option<Arc<OwnCopies>>,
    config: Config,
    config_leaf: String,
    opened_by: KeySlotId,
    cache: PathBuf,
    memory: Arc<Mutex<HostMemory>>,
    /// The memory cannot be stored: it lives and ends with this run.
    is_forgetful: Arc<AtomicBool>,
    /// Its storage keeps here what this host has read or written.
    is_remembering: bool,
    warnings: Vec<String>,
    cache_warnings: Vec<String>,
    monitor: Arc<dyn Monitor>,
}

/// Locks a mutex; a panic elsewhere while it was held does not make its data invalid, because
/// every holder replaces values as a whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Repository {
    /// As [`Repository::open_with`], with nobody who listens.
    ///
    /// # Errors
    /// As [`Repository::open_with`].
    pub fn open(
        storage: Arc<dyn Storage>,
        environment: Arc<dyn Environment>,
        cache: &Path,
        secret: &Passphrase,
    ) -> Result<Repository> {
        Repository::open_with(storage, environment, cache, secret, Arc::new(Silent))
    }

    /// Opens a repository with a passphrase or recovery key. `cache` is the folder of all
    /// repositories' caches; this one gets a folder of its own in it. A cache that cannot be used
    /// is a warning: it is never needed. What goes wrong with it later is told to `monitor`.
    ///
    /// # Errors
    /// `NoRepository` if there is no config, `WrongKey`, `Newer`, `Damage`, or `Cancelled`; `Usage`
    /// for a write-only key.
    pub fn open_with(
        storage: Arc<dyn Storage>,
        environment: Arc<dyn Environment>,
        cache: &Path,
        secret: &Passphrase,
        monitor: Arc<dyn Monitor>,
    ) -> Result<Repository> {
        let opened = Repository::open_to_write(storage, environment, cache, secret, monitor)?;
        if opened.own_copies.is_some() {
            return Err(opened.is_write_only());
        }
        Ok(opened)
    }

    /// As [`Repository::open_with`], for who does nothing but back up or look at its own points: a
    /// write-only key will do.
    ///
    /// # Errors
    /// As [`Repository::open_with`], but for that key.
    pub fn open_to_write(
        storage: Arc<dyn Storage>,
        environment: Arc<dyn Environment>,
        cache: &Path,
        secret: &Passphrase,
        monitor: Arc<dyn Monitor>,
    ) -> Result<Repository> {
        Repository::open_by(storage, environment, cache, &Opening::Secret(secret), monitor)
    }

    /// Opens another copy of this repository by the keys of this one, so that nobody is asked for
    /// them again.
    ///
    /// # Errors
    /// As [`Repository::open_with`]; `Usage` if what is there is another repository.
    pub fn open_copy(
        &self,
        storage: Arc<dyn Storage>,
        cache: &Path,
        monitor: Arc<dyn Monitor>,
    ) -> Result<Repository> {
        let (candidates, _) = read_configs(storage.as_ref())?;
        if let Some(other) = candidates.iter().find(|found| found.config.repository != self.id()) {
            let (own, other) = (self.id().short(), other.config.repository.short());
            let text = format!(
                "cannot use {} as a copy of repository {own}: it is repository {other}",
                storage.location()
            );
            return Err(Error::new(ErrorKind::Usage, text)
                .hint("`diskvault copy` takes points into another repository"));
        }
        let opening = Opening::Keys(&self.opens, self.opened_by);
        Repository::open_by(storage, self.environment.clone(), cache, &opening, monitor)
    }

    fn open_by(
        storage: Arc<dyn Storage>,
        environment: Arc<dyn Environment>,
        cache: &Path,
        opening: &Opening<'_>,
        monitor: Arc<dyn Monitor>,
    ) -> Result<Repository> {
        let mut found = Found::read(storage.as_ref())?;
        let opened = open_config(storage.as_ref(), &mut found, opening)?;
        let Opened { opens, opened_by, mut keys, config, config_leaf, mut warnings } = opened;
        let copy = found.instance(storage.as_ref());
        let identity = storage.identity();
        let writer = keys.write_only_writer();
        // What a writer knows that may not read is not what others know.
        let cache = writer
            .map_or_else(|| cache.to_owned(), |writer| cache.join(format!("writer-{writer}")));
        let folder = cache_folder(&cache, config.repository, copy.as_ref().ok(), &identity);
        if writer.is_none() && config.has_writers() {
            let (records, problems) = writers::read_all(storage.as_ref(), &keys)?;
            warnings.extend(problems);
            keys = keys.with_writers(Writers::new(records));
        }
        let own_copies = writer.map(|_| Arc::new(OwnCopies::new(folder.join("own"))));
        let loaded = make_private_folder(&folder).and_then(|()| HostMemory::load(&folder));
        let is_forgetful = loaded.is_err();
        let (memory, problem) =
            loaded.unwrap_or_else(|error| (HostMemory::default(), Some(forgets(&error))));
        let mut repository = Repository {
            storage: seen_by(own_copies.as_ref(), storage),
            environment,
            opens,
            keys: Arc::new(keys),
            own_copies,
            config,
            config_leaf,
            opened_by,
            cache: folder,
            memory: Arc::new(Mutex::new(memory)),
            is_forgetful: Arc::new(AtomicBool::new(is_forgetful)),
            is_remembering: false,
            warnings,
            cache_warnings: Vec::from_iter(problem),
            monitor,
        };
        repository.compare_with_memory()?;
        if let Ok(copy) = copy {
            repository.compare_instance(copy)?;
        }
        Ok(repository)
    }

    /// The storage the repository lies on.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The same repository, seen by who goes on where one object cannot be read: it counts as damaged
    /// then. Not for a prune, which would have to decide by what it cannot see.
    pub fn forgiving(&self) -> Repository {
        let storage = Arc::new(Forgiving::new(self.storage.clone()));
        Repository { storage, ..self.clone() }
    }

    /// The same repository, seen by who reads what was just listed: manifests and notes of a far
    /// storage that this host has read before, and maps that it has written, are taken from its
    /// cache. Not for a check, which looks at what is stored.
    pub fn remembering(&self) -> Repository {
        if self.is_remembering || !at_once::is_far(self.storage.as_ref()) {
            return self.clone();
        }
        let folder = self.cache.join("objects");
        let remembering = Remembering::new(self.storage.clone(), &folder, is_map_pack);
        let storage = seen_by(self.own_copies.as_ref(), Arc::new(remembering));
        Repository { storage, is_remembering: true, ..self.clone() }
    }

    /// Clock and randomness.
    pub fn environment(&self) -> &Arc<dyn Environment> {
        &self.environment
    }

    /// The subkeys.
    pub fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// Of a writer that may not read: what it keeps of what it has stored.
    pub fn own_copies(&self) -> Option<&Arc<OwnCopies>> {
        self.own_copies.as_ref()
    }

    /// The configuration that counts.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The repository's id.
    pub fn id(&self) -> RepositoryId {
        self.config.repository
    }

    /// The folder of this repository's cache on this host.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// What was wrong but did not keep the repository from opening.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What was wrong with this host's cache alone: nothing that is stored is worse for it.
    pub fn cache_warnings(&self) -> &[String] {
        &self.cache_warnings
    }

    /// A copy of what this host remembers.
    pub fn memory(&self) -> HostMemory {
        lock(&self.memory).clone()
    }

    /// Changes what this host remembers and stores it. `change` gets what is stored now, which
    /// another process may have changed since this one looked; it may be called twice. A memory
    /// that cannot be stored is a warning, and from then on lives in this run only.
    ///
    /// # Errors
    /// `Cancelled` while another process has the memory.
    pub fn remember(&self, change: impl FnMut(&mut HostMemory)) -> Result<()> {
        for problem in self.change_memory(change)? {
            self.monitor.warn(&problem);
        }
        Ok(())
    }

    /// As [`Repository::remember`]; what went wrong.
    fn change_memory(&self, mut change: impl FnMut(&mut HostMemory)) -> Result<Vec<String>> {
        let mut memory = lock(&self.memory);
        if self.is_forgetful.load(Ordering::Relaxed) {
            change(&mut memory);
            return Ok(Vec::new());
        }
        match HostMemory::update(&self.cache, &memory, self.monitor.as_ref(), &mut change) {
            Ok((stored, mut problems)) => {
                *memory = stored;
                // Once is enough for a file system without locks.
                problems.retain(|problem| !self.cache_warnings.contains(problem));
                Ok(problems)
            }
            Err(error) if error.kind() == ErrorKind::Cancelled => Err(error),
            Err(error) => {
                self.is_forgetful.store(true, Ordering::Relaxed);
                change(&mut memory);
                Ok(vec![forgets(&error)])
            }
        }
    }

    /// The id of this host's writer; made at first use.
    ///
    /// # Errors
    /// Fails without randomness or if the cache cannot be written.
    pub fn writer_id(&self) -> Result<WriterId> {
        if let Some(id) = self.keys.write_only_writer() {
            return Ok(id);
        }
        if let Some(id) = WriterId::from_hex(&self.memory().writer) {
            return Ok(id);
        }
        let mut id = WriterId(random_array(self.environment.as_ref())?);
        self.remember(|memory| match WriterId::from_hex(&memory.writer) {
            // Another process of this host was first.
            Some(first) => id = first,
            None => memory.writer = id.to_hex(),
        })?;
        Ok(id)
    }

    /// Reads the instance object.
    ///
    /// # Errors
    /// `NotFound` or `Damage`; either is damage for `check`.
    pub fn instance(&self) -> Result<InstanceId> {
        read_instance(self.storage.as_ref())
    }

    /// Refuses to write if the config names features this program does not know.
    ///
    /// # Errors
    /// `Newer`.
    pub fn check_may_write(&self) -> Result<()> {
        match self.config.unknown_write_features() {
            0 => Ok(()),
            mask => Err(Error::new(
                ErrorKind::Newer,
                format!("cannot write: the repository needs unknown features (mask {mask:#x})"),
            )
            .hint("use a newer diskvault")),
        }
    }

    /// As [`Repository::check_may_write`], for who does more than add points.
    ///
    /// # Errors
    /// `Newer`; `Usage` for a write-only key, which does not see what there is.
    pub fn check_may_change(&self) -> Result<()> {
        match self.own_copies {
            None => self.check_may_write(),
            Some(_) => Err(self.is_write_only()),
        }
    }

    fn is_write_only(&self) -> Error {
        let key = self.opened_by.short();
        let text = format!(
            "cannot open the repository: key {key} is write-only, and can do nothing but back up"
        );
        Error::new(ErrorKind::Usage, text).hint("use a password or recovery key that may read")
    }

    /// A warning if the newest config this host saw is gone, which is how a rollback looks.
    fn compare_with_memory(&mut self) -> Result<()> {
        let remembered = self.memory().config;
        if !remembered.is_empty() && remembered.as_str() > self.config_leaf.as_str() {
            self.warnings.push(format!(
                "the config went back: this host saw config/{remembered}, the newest is now \
                 config/{}",
                self.config_leaf
            ));
            return Ok(());
        }
        let problems = self.change_memory(|memory| memory.see_config(self.config_leaf.clone()))?;
        self.cache_warnings.extend(problems);
        Ok(())
    }

    /// A warning if this is another copy of the repository than the one used last, which an
    /// older copy put in its place would be. A damaged instance is for `check` to report.
    fn compare_instance(&mut self, instance: InstanceId) -> Result<()> {
        let instance = instance.to_hex();
        let remembered = self.memory().instance;
        if !remembered.is_empty() && remembered != instance {
            self.warnings.push(format!(
                "this is another copy of the repository ({instance}) than the one used last on \
                 this host ({remembered})"
            ));
        }
        let place = self.storage.identity();
        let problems = self.change_memory(|memory| {
            memory.instance.clone_from(&instance);
            memory.place.clone_from(&place);
        })?;
        self.cache_warnings.extend(problems);
        Ok(())
    }
}

/// The storage as a writer sees it that may not read, or as it is.
fn seen_by(own_copies: Option<&Arc<OwnCopies>>, storage: Arc<dyn Storage>) -> Arc<dyn Storage> {
    match own_copies {
        Some(copies) => Arc::new(OwnView::new(storage, copies.clone())),
        None => storage,
    }
}

/// The folder of a repository's cache. The first copy that a host sees has that of the repository's
/// id. Another copy, at another place and with an instance of its own, is a replica, and has one of
/// its own: its packs are not those of the first. Another copy at the *same* place is not: that is
/// how an older copy looks which was put in place of the one used last, and the memory tells it.
fn cache_folder(
    cache: &Path,
    repository: RepositoryId,
    instance: Option<&InstanceId>,
    place: &str,
) -> PathBuf {
    let first = cache.join(repository.to_hex());
    let (Some(instance), Ok((memory, _))) = (instance, HostMemory::load(&first)) else {
        return first;
    };
    let is_known = memory.instance.is_empty() || memory.instance == instance.to_hex();
    if is_known || memory.place.is_empty() || memory.place == place {
        return first;
    }
    cache.join(format!("{}-{}", repository.to_hex(), instance.to_hex()))
}

/// True for a pack of map pages, by its header: the next backup compares with them.
fn is_map_pack(pack: &[u8]) -> bool {
    decode_header(pack).is_ok_and(|header| header.identity.kind == PackKind::Map)
}

/// The warning for a memory that cannot be kept.
fn forgets(error: &Error) -> String {
    let text = error.full_text();
    format!("{text}; this host will not remember what this run saw, and not miss it later")
}

pub(crate) fn make_private_folder(folder: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|cause| {
        Error::io(ErrorKind::Failed, format!("cannot make folder {}", folder.display()), cause)
    })
}

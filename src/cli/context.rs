//! What every command needs: options, monitor, threads, and the open repository.

use super::GlobalOptions;
use super::password;
use super::progress::Progress;
use super::remote::{self, FromRemote};
use crate::environment::{Environment, SystemEnvironment};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::address::{Address, Resolved, parse_time, resolve, resolve_at, sure_id};
use crate::repository::at_once::{both, is_far};
use crate::repository::locate::Locator;
use crate::repository::points::{Point, PointSet};
use crate::repository::secrets::Passphrase;
use crate::restore::fetch::Fetcher;
use crate::storage::place::Place;
use crate::storage::{Folder, ObjectEntry, Storage};
use crate::view::Vault;
use rayon::ThreadPool;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tempfile::TempDir;

/// Where a repository is named.
enum Named {
    /// By its path or address.
    Place(OsString),
    /// In the first line of a file.
    File(PathBuf),
}

/// Options and monitor of one run.
pub struct Context {
    options: GlobalOptions,
    monitor: Arc<Progress>,
    /// Removed with the context.
    temporary_cache: OnceLock<TempDir>,
}

/// How a repository is opened: by which keys.
type Opens = fn(
    Arc<dyn Storage>,
    Arc<dyn Environment>,
    &Path,
    &Passphrase,
    Arc<dyn Monitor>,
) -> Result<Repository>;

impl Context {
    /// Prepares a run.
    ///
    /// # Errors
    /// Fails if signals cannot be handled; `Usage` for zero threads.
    pub fn new(options: GlobalOptions) -> Result<Context> {
        if options.threads == Some(0) {
            return Err(Error::new(ErrorKind::Usage, "cannot work with 0 threads"));
        }
        if options.repo.is_some() && options.repository_file.is_some() {
            let text = "cannot use --repo and --repository-file together";
            return Err(Error::new(ErrorKind::Usage, text));
        }
        let monitor =
            Progress::new(options.json, options.quiet, options.progress, options.no_progress)?;
        Ok(Context { options, monitor: Arc::new(monitor), temporary_cache: OnceLock::new() })
    }

    /// True if results are JSON.
    pub fn json(&self) -> bool {
        self.options.json
    }

    /// True if nothing but results and errors is wanted.
    pub fn quiet(&self) -> bool {
        self.options.quiet
    }

    /// Hears of progress and warnings.
    pub fn monitor(&self) -> &Progress {
        &self.monitor
    }

    /// True if more is to be said.
    pub fn verbose(&self) -> bool {
        self.options.verbose > 0
    }

    /// The same, for threads that outlast a call.
    pub fn shared_monitor(&self) -> Arc<Progress> {
        self.monitor.clone()
    }

    /// True if a repository is named, by option or environment.
    pub fn names_repository(&self) -> bool {
        self.repository_name().is_some()
    }

    /// Where the repository is named: an option before any variable.
    fn repository_name(&self) -> Option<Named> {
        let options = &self.options;
        name_of(&options.repo, &options.repository_file, "DISKVAULT_REPOSITORY")
    }

    /// Where the repository is.
    ///
    /// # Errors
    /// `Usage` if none is named, or by an address of an unknown kind.
    pub fn place(&self) -> Result<Place> {
        self.repository_name().map_or_else(
            || {
                let error = Error::new(ErrorKind::Usage, "cannot find out which repository to use");
                Err(error.hint("use --repo or set DISKVAULT_REPOSITORY"))
            },
            read_place,
        )
    }

    /// The folder of all caches: `--cache-dir`, `DISKVAULT_CACHE_DIR`, or below `XDG_CACHE_HOME` or `~/.cache`.
    ///
    /// # Errors
    /// `Usage` if none can be found.
    pub fn cache(&self) -> Result<PathBuf> {
        if let Some(folder) = &self.options.cache_dir {
            return Ok(folder.clone());
        }
        if let Some(folder) = variable("DISKVAULT_CACHE_DIR") {
            return Ok(PathBuf::from(folder));
        }
        if let Some(folder) = variable("XDG_CACHE_HOME") {
            return Ok(PathBuf::from(folder).join("diskvault"));
        }
        if let Some(home) = variable("HOME") {
            return Ok(PathBuf::from(home).join(".cache/diskvault"));
        }
        let error = Error::new(ErrorKind::Usage, "cannot find a place for the cache");
        Err(error.hint("use --cache-dir or set DISKVAULT_CACHE_DIR"))
    }

    /// A folder for this run alone, where there is no place for a cache that stays.
    fn temporary_cache(&self, why: &Error) -> Result<PathBuf> {
        let made = tempfile::Builder::new().prefix("diskvault-").tempdir().map_err(|cause| {
            Error::io(ErrorKind::Failed, "cannot make a temporary folder for the cache", cause)
        })?;
        self.monitor.warn(&format!("{}; this run uses a temporary folder", why.full_text()));
        Ok(self.temporary_cache.get_or_init(|| made).path().to_owned())
    }

    /// The first password of a new repository.
    ///
    /// # Errors
    /// As [`password::first`].
    pub fn first_password(&self) -> Result<Passphrase> {
        password::first(
            self.options.password_file.as_deref(),
            self.options.password_command.as_deref(),
            self.monitor.as_ref(),
        )
    }

    /// The storage of the repository, for what needs no key.
    ///
    /// # Errors
    /// As [`remote::open`], and `Usage` if no repository is named.
    pub fn storage(&self) -> Result<Arc<dyn Storage>> {
        remote::open(&self.place()?, self)
    }

    /// How storages of other machines are reached.
    pub fn remote(&self) -> &remote::RemoteOptions {
        &self.options.remote
    }

    /// Opens the repository.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub fn open(&self) -> Result<Repository> {
        let storage = self.storage()?;
        self.open_on(storage, &|| self.password(), Repository::open_with)
    }

    /// Opens the repository for a backup or a look at own points: a write-only key will do.
    ///
    /// # Errors
    /// As [`Repository::open_to_write`].
    pub fn open_to_write(&self) -> Result<Repository> {
        let storage = self.storage()?;
        self.open_on(storage, &|| self.password(), Repository::open_to_write)
    }

    /// As [`Context::open`], or with `may_write_only` as [`Context::open_to_write`]. Where every round
    /// trip counts, the points are listed meanwhile.
    ///
    /// # Errors
    /// As these.
    pub fn open_and_list(
        &self,
        may_write_only: bool,
    ) -> Result<(Repository, Option<Vec<ObjectEntry>>)> {
        let storage = self.storage()?;
        let opens: Opens =
            if may_write_only { Repository::open_to_write } else { Repository::open_with };
        let open = || self.open_on(storage.clone(), &|| self.password(), opens);
        if !is_far(storage.as_ref()) {
            return Ok((open()?, None));
        }
        let (opened, listed) = both(storage.as_ref(), open, || storage.list(Folder::Points));
        let opened = opened?;
        // Who may not read sees points of its own only.
        let listed = listed.ok().filter(|_| opened.own_copies().is_none());
        Ok((opened, listed))
    }

    /// Opens the repository that points are copied from.
    ///
    /// # Errors
    /// As [`Context::open`], saying that it is the source.
    pub fn open_source(&self, from: &FromOptions) -> Result<Repository> {
        from.place.place().and_then(|place| {
            let storage = remote::open_source(&place, &from.place.remote, self)?;
            let secret = || {
                let (file, command) = (&from.from_password_file, &from.from_password_command);
                let monitor = self.monitor.as_ref();
                password::of_source(file.as_deref(), command.as_deref(), monitor)
            };
            self.open_on(storage, &secret, Repository::open_with)
        })
    }

    /// Opens a replica by the keys of its source.
    ///
    /// # Errors
    /// As [`Repository::open_copy`].
    pub fn open_replica(&self, source: &Repository) -> Result<Repository> {
        let cache = match self.cache() {
            Ok(cache) => cache,
            Err(error) => self.temporary_cache(&error)?,
        };
        let replica = source.open_copy(self.storage()?, &cache, self.monitor.clone())?;
        for warning in replica.warnings().iter().chain(replica.cache_warnings()) {
            self.monitor.warn(warning);
        }
        Ok(replica)
    }

    /// Opens the source of a replica, by this run's password.
    ///
    /// # Errors
    /// As [`Context::open`].
    pub fn open_replicated(&self, from: &FromPlace) -> Result<Repository> {
        let storage = remote::open_source(&from.place()?, &from.remote, self)?;
        self.open_on(storage, &|| self.password(), Repository::open_with)
    }

    fn password(&self) -> Result<Passphrase> {
        password::existing(
            self.options.password_file.as_deref(),
            self.options.password_command.as_deref(),
            self.monitor.as_ref(),
        )
    }

    fn open_on(
        &self,
        storage: Arc<dyn Storage>,
        secret: &dyn Fn() -> Result<Passphrase>,
        open: Opens,
    ) -> Result<Repository> {
        let cache = match self.cache() {
            Ok(cache) => cache,
            // No reason not to restore: services and rescue systems have no HOME.
            Err(error) => self.temporary_cache(&error)?,
        };
        let secret = secret()?;
        let environment = Arc::new(SystemEnvironment);
        let monitor = self.monitor.clone();
        let repository = open(storage, environment, &cache, &secret, monitor)?;
        for warning in repository.warnings().iter().chain(repository.cache_warnings()) {
            self.monitor.warn(warning);
        }
        if self.options.verbose > 0 {
            self.monitor.note(&format!(
                "repository {} by key {}, config generation {}, cache in {}",
                repository.id(),
                repository.current_key().short(),
                repository.config().generation,
                repository.cache().display()
            ));
        }
        Ok(repository)
    }

    /// Number of worker threads.
    pub fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
        self.options.threads.unwrap_or_else(cores)
    }

    /// The worker threads.
    ///
    /// # Errors
    /// Fails if they cannot be started.
    pub fn pool(&self) -> Result<Arc<ThreadPool>> {
        let builder = rayon::ThreadPoolBuilder::new().num_threads(self.threads());
        let pool = builder.build().map_err(|cause| {
            Error::new(ErrorKind::Failed, "cannot start the worker threads").because(cause)
        })?;
        Ok(Arc::new(pool))
    }

    /// Reads chunks.
    pub fn fetcher<'a>(&'a self, repository: &'a Repository, locator: &'a Locator) -> Fetcher<'a> {
        Fetcher { repository, locator, threads: self.threads(), monitor: self.monitor.as_ref() }
    }

    /// For reading disks of a repository anywhere, for as long as somebody wants to.
    ///
    /// # Errors
    /// As [`Locator::open`] and [`Context::pool`].
    pub fn vault(&self, repository: Repository) -> Result<Arc<Vault>> {
        let locator = Locator::open_for_reading(&repository, self.monitor())?;
        let (repository, locator) = (Arc::new(repository), Arc::new(locator));
        Ok(Arc::new(Vault::new(repository, locator, self.pool()?, self.monitor.clone())))
    }

    /// Finds the point an address names, with `--at` if it is given.
    ///
    /// A name that depends on which points there are (`latest`, a series, a time) is refused if
    /// one of them is damaged or gone: the answer could be an older point than the user means.
    ///
    /// # Errors
    /// `NotFound`, `Usage`, or `Damage`.
    pub fn find_point(
        &self,
        repository: &Repository,
        address: &Address<'_>,
        at: Option<&str>,
    ) -> Result<Point> {
        find_among(repository, &PointSet::load(repository)?, address, at)
    }

    /// As [`Context::find_point`], without `--at`, if possible among points that were listed when the
    /// repository was opened.
    ///
    /// # Errors
    /// As [`Context::find_point`].
    pub fn find_point_of(
        &self,
        repository: &Repository,
        address: &Address<'_>,
        listed: Option<Vec<ObjectEntry>>,
    ) -> Result<Point> {
        let points = listed.and_then(|listed| PointSet::of_earlier(repository, listed).ok());
        let found = points.and_then(|it| find_among(repository, &it, address, None).ok());
        // What was made since may explain why it cannot be told.
        found.map_or_else(|| self.find_point(repository, address, None), Ok)
    }
}

/// Finds a point as [`Context::find_point`] does.
fn find_among(
    repository: &Repository,
    points: &PointSet,
    address: &Address<'_>,
    at: Option<&str>,
) -> Result<Point> {
    let found = match at {
        None => resolve(points, address.point),
        Some(_) if address.point.contains('@') || address.point.starts_with("id:") => {
            let text = "cannot use --at with a point that names its time or id";
            return Err(Error::new(ErrorKind::Usage, text));
        }
        Some(time) => resolve_at(points, address.point, parse_time(time)?)
            .map(|point| Resolved { point, is_by_id: false }),
    };
    let doubts = points.doubts(repository)?;
    let is_by_id = match &found {
        Ok(found) => found.is_by_id,
        // That it is not there, or damaged, is what to say then, and not a doubt about others.
        Err(_) => at.is_none() && sure_id(points, address.point).is_some(),
    };
    if let (Some(doubt), false) = (doubts.first(), is_by_id) {
        let text = format!("cannot tell which point is meant: {doubt}");
        return Err(Error::new(ErrorKind::Damage, text)
            .hint("name a point by its id, as `diskvault list` shows it"));
    }
    found.map(|found| found.point.clone())
}

/// Which repository points come from.
#[derive(clap::Args, Debug)]
pub struct FromPlace {
    /// The repository to copy from; DISKVAULT_FROM_REPOSITORY by default
    #[arg(long, value_name = "PLACE")]
    from_repo: Option<OsString>,
    /// File whose first line names it; DISKVAULT_FROM_REPOSITORY_FILE by default
    #[arg(long, value_name = "FILE", conflicts_with = "from_repo")]
    from_repository_file: Option<PathBuf>,
    #[command(flatten)]
    remote: FromRemote,
}

/// Which repository points are copied from, and what opens it.
#[derive(clap::Args, Debug)]
pub struct FromOptions {
    #[command(flatten)]
    place: FromPlace,
    /// File whose first line is its password
    #[arg(long, value_name = "FILE")]
    from_password_file: Option<PathBuf>,
    /// Command that prints its password; run without a shell
    #[arg(long, value_name = "COMMAND")]
    from_password_command: Option<String>,
}

impl FromPlace {
    /// Where the repository is.
    ///
    /// # Errors
    /// As [`Context::place`].
    pub fn place(&self) -> Result<Place> {
        let (repo, file) = (&self.from_repo, &self.from_repository_file);
        name_of(repo, file, "DISKVAULT_FROM_REPOSITORY").map_or_else(
            || {
                let text = "cannot find out which repository to copy from";
                let error = Error::new(ErrorKind::Usage, text);
                Err(error.hint("use --from-repo or set DISKVAULT_FROM_REPOSITORY"))
            },
            read_place,
        )
    }
}

/// Where a repository is named: an option before the variable `name`, and that before `name`_FILE.
fn name_of(repo: &Option<OsString>, file: &Option<PathBuf>, name: &str) -> Option<Named> {
    let option = repo.clone().map(Named::Place);
    let file = || file.clone().map(Named::File);
    let by_variable = || variable(name).map(Named::Place);
    let by_file = || variable(&format!("{name}_FILE")).map(|file| Named::File(PathBuf::from(file)));
    option.or_else(file).or_else(by_variable).or_else(by_file)
}

/// The place that is named.
fn read_place(named: Named) -> Result<Place> {
    let text = match named {
        Named::Place(text) => text,
        Named::File(file) => {
            let cannot = |cause| {
                let text = format!("cannot read repository file {}", file.display());
                Error::io(ErrorKind::Failed, text, cause)
            };
            let mut line = String::new();
            let opened = std::fs::File::open(&file).map_err(cannot)?;
            BufReader::new(opened).read_line(&mut line).map_err(cannot)?;
            OsString::from(line.trim_end_matches(['\r', '\n']))
        }
    };
    Place::parse(&text)
}

/// A variable of the environment, unless it is empty.
pub(super) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|text| !text.is_empty())
}

/// The name of this host.
pub fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "localhost".into() } else { name }
}

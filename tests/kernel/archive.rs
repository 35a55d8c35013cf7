//! A repository in a folder, runs of the program on it, and the promises that are looked at after
//! everything that happens to it.
//!
//! Invariant: a point is known from the moment its backup printed its id and ended with 0, until it
//! was to be forgotten; what is known has to come back byte for byte.

use diskvault::environment::SystemEnvironment;
use diskvault::repository::secrets::Passphrase;
use diskvault::repository::{InitOptions, initialise};
use diskvault::storage::local::LocalStorage;
use diskvault_format::key_slot::KdfCost;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

const PASSWORD: &str = "correct horse battery";
/// Two segments, so that there are many packs.
const PACK_BYTES: u32 = 8 << 20;

/// The text says which promise is broken, and how.
pub type Promise<T = ()> = Result<T, String>;

/// Breaks off with a text unless something holds.
macro_rules! promise {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err(format!($($text)+));
        }
    };
}
pub(crate) use promise;

/// Turns what the machine refuses to do for the rig into a text.
pub fn say<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> Promise<T> {
    result.map_err(|cause| format!("the rig cannot {what}: {cause}"))
}

/// Says that something cannot be had here.
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
pub fn say_skipped(why: &str) {
    eprintln!("skipped: {why}");
}

/// What a run did.
pub struct Outcome {
    /// The exit code, or 1000 and the number of the signal.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let printed = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(4000)]);
        write!(f, "exit code {}, {printed:?}, {:?}", self.code, self.stderr)
    }
}

impl Outcome {
    pub fn succeeded(&self) -> bool {
        self.code == 0
    }

    /// Also with warnings.
    pub fn is_done(&self) -> bool {
        [0, 4].contains(&self.code)
    }

    pub fn was_killed(&self) -> bool {
        self.code == 1009
    }

    /// The last line of the output as JSON; null if there is none.
    pub fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.stdout);
        text.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default()
    }

    /// A run that ended by itself with an error says so, and did not panic.
    pub fn is_clear(&self, what: &str) -> Promise {
        let says = self.is_done()
            || self.was_killed()
            || self.stderr.contains("diskvault: ")
            || self.stderr.contains("\"exit_error\"");
        promise!(says && !self.panicked(), "{what}: not a clear end: {self:?}");
        Ok(())
    }

    /// A panic within sled, which the cache catches, is told by the runtime all the same.
    pub fn panicked(&self) -> bool {
        let is_own = |line: &str| line.contains("panicked at") && !line.contains("/sled-");
        self.code == 101 || self.stderr.lines().any(is_own)
    }
}

/// Reads both outputs while the run goes on, then waits for its end.
pub fn wait(mut child: Child) -> Outcome {
    let mut stderr = child.stderr.take();
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(stderr) = &mut stderr {
            let _ = stderr.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let mut stdout = Vec::new();
    if let Some(pipe) = &mut child.stdout {
        let _ = pipe.read_to_end(&mut stdout);
    }
    let status = child.wait().ok();
    let signal = status.and_then(|status| status.signal()).map_or(-1, |signal| 1000 + signal);
    let code = status.and_then(|status| status.code()).unwrap_or(signal);
    Outcome { code, stdout, stderr: errors.join().unwrap_or_default() }
}

/// A repository as one host sees it.
#[derive(Clone)]
pub struct Archive {
    pub program: PathBuf,
    pub repository: PathBuf,
    pub cache: PathBuf,
    /// Where temporary files of the runs go.
    pub temporary: PathBuf,
    /// What has to come back, by the id of the point.
    pub known: BTreeMap<String, Arc<Vec<u8>>>,
    /// What backups were given that did not end well.
    open: Vec<Arc<Vec<u8>>>,
}

/// Dead backups that are remembered: a prune completes or removes what they left long before that.
const OPEN_MAX: usize = 8;

impl Archive {
    /// Makes a repository `repo` in the folder, with a cache `cache` beside it.
    pub fn make(program: &Path, folder: &Path, parity_per_mille: u32) -> Promise<Archive> {
        let archive = Archive {
            program: program.to_owned(),
            repository: folder.join("repo"),
            cache: folder.join("cache"),
            temporary: std::env::temp_dir(),
            known: BTreeMap::new(),
            open: Vec::new(),
        };
        let storage = say("make a repository", LocalStorage::create(&archive.repository))?;
        let options = InitOptions {
            passphrase: &Passphrase::new(PASSWORD.into()),
            recovery: None,
            chunk_bytes: Some(32 << 10),
            pack_bytes: Some(PACK_BYTES),
            parity_per_mille,
            // The cheapest there is: opening is not what is looked at.
            cost: KdfCost::RECOVERY,
            host: "kernel",
        };
        say("make a repository", initialise(&storage, &SystemEnvironment, &options))?;
        Ok(archive)
    }

    /// The same repository through another cache: another host.
    pub fn with_cache(&self, cache: &Path) -> Archive {
        Archive { cache: cache.to_owned(), ..self.clone() }
    }

    /// A copy of repository and cache below another folder, for trying something on.
    pub fn copy_to(&self, folder: &Path) -> Promise<Archive> {
        let _ = fs::remove_dir_all(folder);
        say("copy", copy_folder(&self.repository, &folder.join("repo")))?;
        say("copy", copy_folder(&self.cache, &folder.join("cache")))?;
        let (repository, cache) = (folder.join("repo"), folder.join("cache"));
        Ok(Archive { repository, cache, ..self.clone() })
    }

    /// Puts the repository and a clean environment on a command.
    pub fn dress(&self, command: &mut Command, arguments: &[&str]) {
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TMPDIR", &self.temporary)
            .env("DISKVAULT_REPOSITORY", &self.repository)
            .env("DISKVAULT_PASSWORD", PASSWORD)
            .env("DISKVAULT_CACHE_DIR", &self.cache)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }

    /// Starts a run.
    pub fn start(&self, arguments: &[&str]) -> Promise<Child> {
        let mut command = Command::new(&self.program);
        self.dress(&mut command, arguments);
        say("start the program", command.spawn())
    }

    pub fn run(&self, arguments: &[&str]) -> Promise<Outcome> {
        let outcome = wait(self.start(arguments)?);
        outcome.is_clear(&arguments.join(" "))?;
        Ok(outcome)
    }

    /// Runs; it has to succeed.
    pub fn must(&self, what: &str, arguments: &[&str]) -> Promise<Outcome> {
        let outcome = self.run(arguments)?;
        promise!(outcome.succeeded(), "{what}: {arguments:?} does not go on: {outcome:?}");
        Ok(outcome)
    }

    /// The ids of the visible points of a series, oldest first; of all without one.
    pub fn points(&self, what: &str, series: Option<&str>) -> Promise<Vec<String>> {
        let listed = self.must(what, &["--json", "list"])?.json();
        let points = listed.as_array().cloned().unwrap_or_default();
        let is_wanted =
            |point: &&Value| series.is_none_or(|series| point["series"].as_str() == Some(series));
        let id = |point: &Value| point["point_id"].as_str().map(str::to_string);
        Ok(points.iter().filter(is_wanted).filter_map(id).collect())
    }

    /// Takes note of what a backup of `bytes` reported.
    pub fn learn(&mut self, outcome: &Outcome, bytes: &Arc<Vec<u8>>) {
        if outcome.succeeded()
            && let Some(id) = outcome.json()["point_id"].as_str()
        {
            self.known.insert(id.to_string(), bytes.clone());
        }
    }

    /// A backup that died or failed may have made its point all the same, or a later prune
    /// completes it: remembers what it would hold.
    pub fn expect(&mut self, bytes: &Arc<Vec<u8>>) {
        self.open.push(bytes.clone());
        let more = self.open.len().saturating_sub(OPEN_MAX);
        self.open.drain(..more);
    }

    /// Takes note of points that nobody reported: each has to hold what some backup that died was
    /// given.
    pub fn adopt(&mut self, what: &str) -> Promise {
        for id in self.points(what, None)? {
            if self.known.contains_key(&id) {
                continue;
            }
            let dumped = self.must(what, &["dump", &id])?.stdout;
            let Some(bytes) = self.open.iter().find(|bytes| ***bytes == dumped) else {
                return Err(format!("{what}: point {id} holds what no backup was given"));
            };
            self.known.insert(id, bytes.clone());
        }
        Ok(())
    }

    /// Backs up the image as the series' next point; it has to succeed.
    pub fn backup(&mut self, what: &str, image: &Path, bytes: &Arc<Vec<u8>>) -> Promise {
        let outcome = self.must(what, &backup_arguments(&disk(image)))?;
        self.learn(&outcome, bytes);
        Ok(())
    }

    /// Forgets all but the newest points. They count as forgotten from its start on.
    pub fn forget(&mut self, what: &str, keep: usize) -> Promise<Outcome> {
        let points = self.points(what, None)?;
        for id in &points[..points.len().saturating_sub(keep)] {
            self.known.remove(id);
        }
        self.must(what, &["forget", "--keep-last", &keep.to_string()])
    }

    /// True if the point comes back as it was.
    pub fn comes_back(&self, id: &str) -> Promise<bool> {
        let outcome = self.run(&["dump", id])?;
        Ok(outcome.succeeded() && self.known.get(id).is_some_and(|it| **it == outcome.stdout))
    }

    /// The known points that come back, in the order of their ids.
    pub fn readable(&self) -> Promise<Vec<String>> {
        let mut readable = Vec::new();
        for id in self.known.keys() {
            if self.comes_back(id)? {
                readable.push(id.clone());
            }
        }
        Ok(readable)
    }

    /// Every known point comes back byte for byte, and a check of everything finds nothing.
    pub fn assert_whole(&self, what: &str) -> Promise {
        let visible = self.points(what, None)?;
        for id in self.known.keys() {
            promise!(visible.contains(id), "{what}: point {id} is gone");
            let outcome = self.run(&["dump", id])?;
            let is_same = outcome.is_done() && *self.known[id] == outcome.stdout;
            let (code, stderr) = (outcome.code, &outcome.stderr);
            promise!(is_same, "{what}: point {id} does not come back: {code} {stderr}");
        }
        let outcome = self.run(&["check", "--read-data"])?;
        promise!(outcome.is_done(), "{what}: the check finds damage: {outcome:?}");
        Ok(())
    }

    /// Deletes all leases by hand, as a prune does when a lease has stood still for long enough.
    /// Nothing may be running.
    pub fn let_time_pass(&self) -> Promise {
        for name in files(&self.repository.join("leases")) {
            say("delete a lease", fs::remove_file(self.repository.join("leases").join(name)))?;
        }
        Ok(())
    }

    /// One prune when all is quiet: nothing is left that nobody needs.
    pub fn assert_garbage_goes(&self, what: &str) -> Promise {
        self.let_time_pass()?;
        self.must(what, &["prune", "--max-unused", "0"])?;
        for folder in ["leases", "condemned", "trash"] {
            let left = files(&self.repository.join(folder));
            promise!(left.is_empty(), "{what}: left in {folder}: {left:?}");
        }
        let visible = self.points(what, None)?.len();
        let points = files(&self.repository.join("points"));
        promise!(points.len() == 2 * visible, "{what}: unfinished points: {points:?}");
        let plan = self.must(what, &["--json", "prune", "--dry-run", "--max-unused", "0"])?.json();
        let left = plan["delete_packs"].as_u64().zip(plan["repack_packs"].as_u64());
        promise!(left == Some((0, 0)), "{what}: one more prune would free more: {plan}");
        Ok(())
    }
}

/// The arguments of a backup of the only series; `disk` as [`disk`] gives it.
pub fn backup_arguments(disk: &str) -> [&str; 6] {
    ["--json", "backup", "--name", "vm", "--disk", disk]
}

pub fn disk(image: &Path) -> String {
    format!("vda={}", image.display())
}

/// Copies a folder with everything below it; what goes away meanwhile is left out.
pub fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Files below a folder, as paths relative to it, in order.
pub fn files(folder: &Path) -> Vec<String> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = open.pop() {
        let Ok(entries) = fs::read_dir(&next) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                open.push(path);
            } else if let Ok(relative) = path.strip_prefix(folder) {
                found.push(relative.display().to_string());
            }
        }
    }
    found.sort();
    found
}

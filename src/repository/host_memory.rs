//! What this host remembers of a repository, so that a rollback shows: the newest config, the
//! heads of each series, the copy it used, and the host's writer id.
//!
//! Invariants: it lives in the cache folder and is never needed to restore; it is replaced as a
//! whole, so a crash leaves the old or the new one; it changes only under its lock (where there are
//! locks), and no process takes away what another has seen since it looked; a memory that makes no
//! sense is reported and started anew, never trusted in part; one that cannot be read is left as
//! it is.

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const FILE: &str = "memory.json";
const LOCK: &str = "memory.lock";
/// Longest wait for another process, which holds the lock for a write and an fsync.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// Longest time between two looks at the lock and at whether the user wants to stop.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The newest points of one series that this host saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeriesMemory {
    /// Greatest sequence number.
    pub sequence: u64,
    /// Ids of the heads, in hexadecimal.
    pub heads: Vec<String>,
    /// Heads that were gone, unexplained, when this host looked again; with the greatest sequence
    /// number it had seen by then.
    #[serde(default)]
    pub gone: Vec<(String, u64)>,
}

/// All that this host remembers of one repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMemory {
    /// Random id of this host's writer, in hexadecimal.
    #[serde(default)]
    pub writer: String,
    /// Leaf name of the newest config seen.
    #[serde(default)]
    pub config: String,
    /// Instance id of the copy used last, in hexadecimal.
    #[serde(default)]
    pub instance: String,
    /// Where that copy was.
    #[serde(default)]
    pub place: String,
    /// What it saw of each series.
    #[serde(default)]
    pub series: BTreeMap<String, SeriesMemory>,
    /// Condemned lists of this host that it is still waiting to act on.
    #[serde(default)]
    pub condemned: Vec<CondemnedMemory>,
    /// Leases that were looked at, for runs that do not wait.
    #[serde(default)]
    pub standing: Vec<StandingLease>,
}

/// A condemned list of this host, and what it waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CondemnedMemory {
    /// Leaf name of the list.
    pub list: String,
    /// The leases there were when it had been put, in hexadecimal.
    pub leases: Vec<String>,
    /// The copy of the repository that it is of, in hexadecimal.
    #[serde(default)]
    pub instance: String,
    /// True if its packs were to be set aside by a repair, and not to be deleted.
    #[serde(default)]
    pub is_for_repair: bool,
}

/// A lease, and since when this host sees it stand still.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandingLease {
    /// The lease, in hexadecimal.
    pub lease: String,
    /// Its newest heartbeat; 0 for none.
    pub beat: u64,
    /// The boot of the host in which it was seen.
    pub boot: String,
    /// When it was first seen so, in seconds of that boot's monotonic clock.
    pub since_seconds: u64,
}

impl HostMemory {
    /// Reads the memory in `folder`; the text says why if it has to be started anew.
    ///
    /// # Errors
    /// `Failed` if there may be a memory that cannot be read; it must not be replaced.
    pub fn load(folder: &Path) -> Result<(HostMemory, Option<String>)> {
        let path = folder.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => Ok(match serde_json::from_slice(&bytes) {
                Ok(memory) => (memory, None),
                Err(cause) => {
                    let text = format!("cannot read {}, starting it anew: {cause}", path.display());
                    (HostMemory::default(), Some(text))
                }
            }),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                Ok((HostMemory::default(), None))
            }
            Err(cause) => {
                let text = format!("cannot read {}", path.display());
                Err(Error::io(ErrorKind::Failed, text, cause))
            }
        }
    }

    /// Loads the memory in `folder`, changes it and stores it if that made a difference; no other
    /// process does so meanwhile. `otherwise` counts where nothing is stored. The texts say what
    /// was wrong but did not keep it from being stored.
    ///
    /// # Errors
    /// Fails if the folder cannot be locked, read or written, and when another process has had the
    /// lock for ten seconds; `Cancelled`.
    pub fn update(
        folder: &Path,
        otherwise: &HostMemory,
        monitor: &dyn Monitor,
        change: impl FnOnce(&mut HostMemory),
    ) -> Result<(HostMemory, Vec<String>)> {
        let (_lock, without_lock) = lock(folder, monitor)?;
        let (mut memory, problem) = HostMemory::load(folder)?;
        if memory == HostMemory::default() {
            memory.clone_from(otherwise);
        }
        let before = memory.clone();
        change(&mut memory);
        if memory != before || problem.is_some() {
            memory.store(folder)?;
        }
        Ok((memory, without_lock.into_iter().chain(problem).collect()))
    }

    /// Replaces the memory in `folder`; the caller holds the lock.
    fn store(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let fail = |cause: io::Error| {
            Error::io(ErrorKind::Failed, format!("cannot write {}", path.display()), cause)
        };
        let mut text = serde_json::to_vec_pretty(self).map_err(|cause| {
            Error::new(ErrorKind::Failed, "cannot encode the host's memory").because(cause)
        })?;
        text.push(b'\n');
        let temporary: PathBuf = folder.join(format!("{FILE}.new"));
        let write = || -> io::Result<()> {
            match fs::remove_file(&temporary) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
                _ => {}
            }
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(fail)
    }

    /// Takes in the newest config of a listing; names ascend with their generations.
    pub fn see_config(&mut self, leaf: String) {
        if leaf > self.config {
            self.config = leaf;
        }
    }

    /// Takes in what a listing showed. A head that was known before the listing and is not in it
    /// is gone, or explained; one that another process saw since stays, and one that is there but
    /// cannot be read.
    pub fn merge(&mut self, seen: &Listing) {
        let old = std::mem::take(&mut self.series);
        for (name, (sequence, heads)) in &seen.heads {
            let listed =
                SeriesMemory { sequence: *sequence, heads: heads.clone(), gone: Vec::new() };
            self.series.insert(name.clone(), listed);
        }
        for (name, stored) in old {
            let before = seen.before.get(&name);
            let stays = |id: &String| {
                let known = before.is_some_and(|before| before.knows(id));
                seen.unreadable.contains(id) || (!known && !seen.visible.contains(id))
            };
            let heads: Vec<String> = stored.heads.into_iter().filter(|id| stays(id)).collect();
            let gone: Vec<_> = stored.gone.into_iter().filter(|(id, _)| stays(id)).collect();
            if heads.is_empty() && gone.is_empty() {
                continue;
            }
            let series = self.series.entry(name).or_default();
            if !heads.is_empty() {
                series.sequence = series.sequence.max(stored.sequence);
            }
            series.heads.extend(heads);
            series.gone.extend(gone);
        }
        for (name, id, sequence) in &seen.gone {
            let series = self.series.entry(name.clone()).or_default();
            series.gone.push((id.clone(), *sequence));
        }
    }
}

impl SeriesMemory {
    fn knows(&self, id: &String) -> bool {
        self.heads.contains(id) || self.gone.iter().any(|(gone, _)| gone == id)
    }
}

/// What one listing of the points showed to a host that knew something before; ids in hexadecimal.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// What this process knew before it listed.
    pub before: BTreeMap<String, SeriesMemory>,
    /// All points it saw.
    pub visible: BTreeSet<String>,
    /// Points of which only a damaged manifest or an `ok` is there.
    pub unreadable: BTreeSet<String>,
    /// Greatest sequence number and heads of each series it saw.
    pub heads: BTreeMap<String, (u64, Vec<String>)>,
    /// Heads it knew before, by series, that were gone without an explanation; with the sequence
    /// number they were remembered with.
    pub gone: Vec<(String, String, u64)>,
}

/// Waits until no other process changes the memory in `folder`; until the file is dropped. Where
/// there are no locks, as on some network file systems, a text says so.
fn lock(folder: &Path, monitor: &dyn Monitor) -> Result<(File, Option<String>)> {
    let path = folder.join(LOCK);
    let fail = |cause: io::Error| {
        Error::io(ErrorKind::Failed, format!("cannot lock {}", path.display()), cause)
    };
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&path).map_err(fail)?;
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok((file, None)),
            Err(Errno::WOULDBLOCK | Errno::INTR) if began.elapsed() < LOCK_PATIENCE => {}
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                let seconds = LOCK_PATIENCE.as_secs();
                let text = format!("another process has held it for {seconds} s");
                return Err(fail(io::Error::other(text)));
            }
            Err(cause @ (Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)) => {
                let text = fail(cause.into()).full_text();
                return Ok((file, Some(format!("{text}; going on without the lock"))));
            }
            Err(cause) => return Err(fail(cause.into())),
        }
        monitor.check_cancelled()?;
        std::thread::sleep(pause);
        pause = (pause * 2).min(LOOK_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Silent;
    use std::os::unix::fs::PermissionsExt;

    fn set_writer(folder: &Path) -> Result<(HostMemory, Vec<String>)> {
        let set = |memory: &mut HostMemory| memory.writer = "me".into();
        HostMemory::update(folder, &HostMemory::default(), &Silent, set)
    }

    #[test]
    fn what_cannot_be_read_is_not_replaced_and_what_makes_no_sense_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        fs::create_dir(&path).unwrap();
        let error = set_writer(folder.path()).unwrap_err();
        assert!(error.full_text().starts_with("cannot read "), "{error:?}");
        assert!(path.is_dir());
        fs::remove_dir(&path).unwrap();
        fs::write(&path, b"{\"writer\": 7").unwrap();
        let (memory, problems) = set_writer(folder.path()).unwrap();
        assert_eq!(memory.writer, "me");
        assert!(problems.len() == 1 && problems[0].contains("starting it anew"), "{problems:?}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(set_writer(folder.path()).unwrap(), (memory, Vec::new()));
    }

    fn memory(sequence: u64, heads: &[&str], gone: &[(&str, u64)]) -> SeriesMemory {
        let heads = heads.iter().map(|id| id.to_string()).collect();
        let gone = gone.iter().map(|(id, sequence)| (id.to_string(), *sequence)).collect();
        SeriesMemory { sequence, heads, gone }
    }

    fn of_series_a(series: SeriesMemory) -> BTreeMap<String, SeriesMemory> {
        BTreeMap::from([("a".to_string(), series)])
    }

    /// What is remembered of a series after a listing with these points, of which the last is the
    /// head, by a process that knew `before` where `stored` is known now.
    fn merged(
        before: SeriesMemory,
        stored: SeriesMemory,
        points: &[&str],
        gone: &[(&str, u64)],
    ) -> SeriesMemory {
        let mut memory = HostMemory { series: of_series_a(stored), ..HostMemory::default() };
        let head = points.last().map(|id| id.to_string());
        let heads = (points.len() as u64, head.into_iter().collect());
        memory.merge(&Listing {
            before: of_series_a(before),
            visible: points.iter().map(|id| id.to_string()).collect(),
            unreadable: BTreeSet::from(["damaged".to_string()]),
            heads: BTreeMap::from([("a".to_string(), heads)]),
            gone: gone.iter().map(|(id, at)| ("a".into(), id.to_string(), *at)).collect(),
        });
        memory.series.remove("a").unwrap()
    }

    #[test]
    fn a_listing_replaces_what_it_has_seen() {
        let old = memory(2, &["p2"], &[]);
        let found = merged(old.clone(), old.clone(), &["p1", "p2", "p3"], &[]);
        assert_eq!(found, memory(3, &["p3"], &[]));
        // A head that a removal note explains is not told as gone, and is forgotten.
        assert_eq!(merged(old.clone(), old.clone(), &["p1"], &[]), memory(1, &["p1"], &[]));
        // One that is damaged is still to be missed if it goes.
        let damaged = memory(2, &["damaged"], &[]);
        let found = merged(damaged.clone(), damaged, &["p1"], &[]);
        assert_eq!(found, memory(2, &["p1", "damaged"], &[]));
        // And one without a note stays on record, whatever is made since.
        let lost = merged(old.clone(), old, &["p1"], &[("p2", 2)]);
        assert_eq!(lost, memory(1, &["p1"], &[("p2", 2)]));
        let later = merged(lost.clone(), lost, &["p1", "q2", "q3"], &[("p2", 2)]);
        assert_eq!(later, memory(3, &["q3"], &[("p2", 2)]));
    }

    #[test]
    fn an_older_listing_takes_no_newer_head_away() {
        let (before, newer) = (memory(1, &["p1"], &[]), memory(4, &["p4"], &[("x", 3)]));
        let found = merged(before.clone(), newer, &["p1", "p2"], &[]);
        assert_eq!(found, memory(4, &["p2", "p4"], &[("x", 3)]));
        // A series that this process did not see at all.
        let mut memory = HostMemory { series: of_series_a(before), ..HostMemory::default() };
        let expected = memory.clone();
        memory.merge(&Listing::default());
        assert_eq!(memory, expected);
    }

    #[test]
    fn changes_of_many_at_once_are_all_kept() {
        const THREADS: u64 = 8;
        const CHANGES: u64 = 12;
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let folder = folder.path();
                scope.spawn(move || {
                    for change in 0..CHANGES {
                        let add = |memory: &mut HostMemory| {
                            let series = SeriesMemory { sequence: change, ..Default::default() };
                            memory.series.insert(format!("{thread}-{change}"), series);
                        };
                        HostMemory::update(folder, &HostMemory::default(), &Silent, add).unwrap();
                    }
                });
            }
        });
        let (memory, problem) = HostMemory::load(folder.path()).unwrap();
        assert_eq!(problem, None);
        assert_eq!(memory.series.len() as u64, THREADS * CHANGES);
        let mut left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [FILE, LOCK]);
    }
}

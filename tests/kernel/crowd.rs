//! Many processes on one folder: three backups, two hosts that forget and prune, a restore that
//! compares every byte, a check that reads everything, each again and again.

use crate::archive::{Archive, Outcome, Promise, disk, promise, say};
use crate::image::{Image, Numbers};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const KEEP: usize = 3;

/// Points that were reported as done, and those of them that some forget was started on.
#[derive(Default)]
struct Board {
    done: BTreeMap<String, (String, Arc<Vec<u8>>)>,
    forgotten: BTreeSet<String>,
}

struct Crowd {
    archive: Archive,
    board: Mutex<Board>,
    has_broken: AtomicBool,
    ends: Instant,
    backups: AtomicU64,
    prunes: AtomicU64,
    restores: AtomicU64,
    gone: AtomicU64,
    checks: AtomicU64,
}

fn lock(board: &Mutex<Board>) -> std::sync::MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the crowd work for `time`.
pub fn run(
    program: &Path,
    folder: &Path,
    seed: u64,
    time: Duration,
    mib: usize,
) -> Promise<String> {
    let crowd = Crowd {
        archive: Archive::make(program, folder, 0)?,
        board: Mutex::default(),
        has_broken: AtomicBool::new(false),
        ends: Instant::now() + time,
        backups: AtomicU64::new(0),
        prunes: AtomicU64::new(0),
        restores: AtomicU64::new(0),
        gone: AtomicU64::new(0),
        checks: AtomicU64::new(0),
    };
    let results = std::thread::scope(|scope| {
        let crowd = &crowd;
        let mut threads = Vec::new();
        for number in 0..3 {
            threads.push(scope.spawn(move || crowd.backups(folder, seed, number, mib)));
        }
        for number in 0..2 {
            threads.push(scope.spawn(move || crowd.prunes(folder, number)));
        }
        threads.push(scope.spawn(move || crowd.restores(folder, seed)));
        threads.push(scope.spawn(move || crowd.checks(folder)));
        let join = |thread: std::thread::ScopedJoinHandle<'_, Promise>| {
            thread.join().unwrap_or_else(|_| Err("the rig panicked".into()))
        };
        threads.into_iter().map(join).collect::<Vec<_>>()
    });
    let broken: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    promise!(broken.is_empty(), "{}", broken.join("\nand "));
    crowd.end()
}

impl Crowd {
    fn goes_on(&self) -> bool {
        !self.has_broken.load(Ordering::Relaxed) && Instant::now() < self.ends
    }

    /// Remembers that something broke, so that all others end.
    fn mark(&self, result: Promise) -> Promise {
        if result.is_err() {
            self.has_broken.store(true, Ordering::Relaxed);
        }
        result
    }

    fn host(&self, folder: &Path, name: &str) -> Archive {
        self.archive.with_cache(&folder.join(format!("cache-{name}")))
    }

    fn backups(&self, folder: &Path, seed: u64, number: u64, mib: usize) -> Promise {
        let series = format!("vm{number}");
        let host = self.host(folder, &series);
        let path = folder.join(format!("image-{number}"));
        let disk = disk(&path);
        // The first two have much in common.
        let mut image = Image::new(seed + number / 2, mib << 20);
        let mut work = || {
            while self.goes_on() {
                image.change(6);
                let bytes = Arc::new(image.bytes.clone());
                say("write the image", fs::write(&path, &bytes[..]))?;
                let arguments = ["--json", "backup", "--name", &series, "--disk", &disk];
                let outcome = host.must("a backup in the crowd", &arguments)?;
                let is_fenced = outcome.stderr.contains("starts over");
                promise!(!is_fenced, "a backup was fenced: {outcome:?}");
                let id = outcome.json()["point_id"].as_str().unwrap_or_default().to_string();
                lock(&self.board).done.insert(id, (series.clone(), bytes));
                self.backups.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        self.mark(work())
    }

    fn prunes(&self, folder: &Path, number: u64) -> Promise {
        let host = self.host(folder, &format!("pruner{number}"));
        let keep = KEEP.to_string();
        let work = || {
            while self.goes_on() {
                self.expect_forgotten(&host)?;
                let what = "a prune in the crowd";
                if number == 0 {
                    host.must(what, &["forget", "--keep-last", &keep, "--prune"])?;
                } else {
                    host.must(what, &["forget", "--keep-last", &keep])?;
                    host.must(what, &["prune", "--max-unused", "0"])?;
                }
                self.prunes.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        self.mark(work())
    }

    /// A forget is about to drop what is behind the newest points. While it runs each backup that
    /// ends adds one more: a restore may choose that, and finds it gone.
    fn expect_forgotten(&self, host: &Archive) -> Promise {
        for number in 0..3 {
            let series = format!("vm{number}");
            let points = host.points("a list in the crowd", Some(&series))?;
            let mut board = lock(&self.board);
            // What a forget has taken is compared no more: some GiB in a minute.
            let Board { done, forgotten } = &mut *board;
            done.retain(|id, (of, _)| {
                *of != series || points.contains(id) || !forgotten.contains(id)
            });
            for id in &points[..points.len().saturating_sub(KEEP)] {
                board.forgotten.insert(id.clone());
            }
        }
        Ok(())
    }

    /// A point that is gone now, with as many of its series there as are kept, was forgotten.
    fn was_forgotten(&self, host: &Archive, id: &str, series: &str) -> Promise<bool> {
        let points = host.points("a list in the crowd", Some(series))?;
        Ok(points.len() >= KEEP && !points.iter().any(|point| point == id))
    }

    fn restores(&self, folder: &Path, seed: u64) -> Promise {
        let host = self.host(folder, "restorer");
        let mut numbers = Numbers::new(seed ^ 0x7265_7374);
        let target = folder.join("restored");
        let mut work = || {
            while self.goes_on() {
                let chosen = {
                    let board = lock(&self.board);
                    let open: Vec<_> = board
                        .done
                        .iter()
                        .filter(|(id, _)| !board.forgotten.contains(*id))
                        .collect();
                    let at = numbers.within(0..open.len().max(1) as u64) as usize;
                    open.get(at).map(|(id, it)| ((*id).clone(), (*it).clone()))
                };
                let Some((id, (series, bytes))) = chosen else {
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                };
                let outcome = if numbers.within(0..2) == 0 {
                    host.run(&["dump", &id])?
                } else {
                    let _ = fs::remove_file(&target);
                    let arguments = ["restore", &id, &target.display().to_string()];
                    let mut outcome = host.run(&arguments)?;
                    outcome.stdout = fs::read(&target).unwrap_or_default();
                    outcome
                };
                if outcome.succeeded() {
                    promise!(outcome.stdout == *bytes, "point {id} came back differently");
                    self.restores.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                self.excuse(&host, &id, &series, &outcome)?;
            }
            Ok(())
        };
        self.mark(work())
    }

    /// A restore may fail if its point was forgotten meanwhile.
    fn excuse(&self, host: &Archive, id: &str, series: &str, outcome: &Outcome) -> Promise {
        let Outcome { code, stderr, .. } = outcome;
        let was_forgotten = self.was_forgotten(host, id, series)?;
        promise!(was_forgotten, "point {id} of {series} does not come back: {code} {stderr}");
        lock(&self.board).forgotten.insert(id.to_string());
        self.gone.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn checks(&self, folder: &Path) -> Promise {
        let host = self.host(folder, "checker");
        let work = || {
            while self.goes_on() {
                let outcome = host.run(&["check", "--read-data"])?;
                let text = String::from_utf8_lossy(&outcome.stdout);
                let (code, stderr) = (outcome.code, &outcome.stderr);
                promise!(outcome.succeeded(), "a check in the crowd: {code} {text} {stderr}");
                self.checks.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        self.mark(work())
    }

    /// When all is quiet, the newest of each series come back and nothing else is left.
    fn end(self) -> Promise<String> {
        let mut archive = self.archive;
        let leases = crate::archive::files(&archive.repository.join("leases"));
        promise!(leases.is_empty(), "leases are left although all ended: {leases:?}");
        let visible = archive.points("the end", None)?;
        let board = self.board.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (id, (_, bytes)) in board.done {
            if visible.contains(&id) {
                archive.known.insert(id, bytes);
            }
        }
        promise!(archive.known.len() == visible.len(), "points that nobody reported: {visible:?}");
        archive.assert_garbage_goes("the end")?;
        archive.assert_whole("the end")?;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Ok(format!(
            "crowd: {} backups, {} prunes, {} restores compared ({} of points forgotten \
             meanwhile), {} checks; {} points left, 0 broken",
            read(&self.backups),
            read(&self.prunes),
            read(&self.restores),
            read(&self.gone),
            read(&self.checks),
            visible.len()
        ))
    }
}

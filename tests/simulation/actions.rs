//! What actors do: the library's verbs, as the program calls them, with what each may answer.

use super::chance::Chance;
use super::stage::Stop;
use super::stage::Verdict;
use super::world::{RUN_TAG, Seat, run_of};
use crate::support::vault::{Parts, options};
use diskvault::backup::{self, InputRequest};
use diskvault::check::{self, CheckOptions, DataSubset};
use diskvault::error::{Error, ErrorKind, Result};
use diskvault::monitor::{Monitor, Silent};
use diskvault::prune::choose::Unused;
use diskvault::prune::{Outlook, Patience, PruneOptions, PruneReport};
use diskvault::repository::Repository;
use diskvault::repository::locate::Locator;
use diskvault::repository::points::{Point, PointSet};
use diskvault::restore::fetch::Fetcher;
use diskvault::restore::parts;
use diskvault::restore::sequential::{Output, read_part};
use diskvault::retention::forget::{ForgetOptions, forget};
use diskvault::retention::undo::{forgotten, undo};
use diskvault::source::{DiskSource, Extent, InputKind, open_disk};
use rayon::ThreadPool;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Something to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// A backup of these disks.
    Backup {
        /// Into this series.
        series: String,
        /// What is on them.
        given: Parts,
    },
    /// Forgets one visible point, or two.
    Forget {
        /// Chooses among them.
        chance: u64,
    },
    /// Forgets all points of a series.
    ForgetAll {
        /// Its name.
        series: String,
    },
    /// Brings a forgotten point back.
    Undo {
        /// Chooses among them.
        chance: u64,
    },
    /// A prune.
    Prune {
        /// Whether it waits for writers.
        waits: bool,
        /// After how many seconds without a heartbeat it takes a lease away.
        stands_still: u64,
        /// Thousandths of a percent that may stay unused.
        unused: u32,
        /// Seconds for which forgotten points stay whole.
        keeps: Option<u64>,
    },
    /// Restores a visible point.
    Restore {
        /// Chooses among them.
        chance: u64,
    },
    /// A check of everything.
    Check,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Its failure.
    pub error: Option<Error>,
    /// A promise that was broken.
    pub broken: Option<String>,
    /// What a prune did.
    pub pruned: Option<PruneReport>,
    /// Points that were made.
    pub made: u64,
    /// Points that were restored.
    pub restored: u64,
    /// A reader met something that was being deleted.
    pub lost_race: bool,
    /// Tries of a backup that ended because its lease was gone.
    pub fenced: u64,
}

impl Outcome {
    fn of(result: Result<Outcome>) -> Outcome {
        result.unwrap_or_else(|error| Outcome { error: Some(error), ..Outcome::default() })
    }
}

/// Does it.
pub fn act(seat: &Seat, action: &Action) -> Outcome {
    if seat.stage.stop(seat.actor, Stop::Begin, format!("Begin {}", name(action))) == Verdict::Dead
    {
        return Outcome { error: Some(killed()), ..Outcome::default() };
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let Ok(pool) = pool else {
        return Outcome { broken: Some("no threads are left".into()), ..Outcome::default() };
    };
    let pool = Arc::new(pool);
    let outcome = Outcome::of(seat.open().and_then(|repository| match action {
        Action::Backup { series, given } => back_up(seat, &repository, series, given, &pool),
        Action::Forget { chance } => {
            let points = PointSet::load(&repository)?.points;
            forget_points(seat, &repository, &some_of(&points, *chance))
        }
        Action::ForgetAll { series } => {
            let points = PointSet::load(&repository)?;
            let all: Vec<&Point> = points.series(series).collect();
            forget_points(seat, &repository, &all)
        }
        Action::Undo { chance } => bring_back(seat, &repository, *chance),
        Action::Prune { waits, stands_still, unused, keeps } => {
            let patience =
                Patience { stands_still: Duration::from_secs(*stands_still), waits: *waits };
            let options = PruneOptions {
                max_unused: Unused::MilliPercent(*unused),
                keep_forgotten: keeps.map(Duration::from_secs),
                ..prune_options(&seat.host.name, patience)
            };
            let report = diskvault::prune::run(&repository, &options, &pool, &|_| Ok(()), &Silent)?;
            Ok(Outcome { pruned: Some(report), ..Outcome::default() })
        }
        Action::Restore { chance } => restore_one(seat, &repository, *chance),
        Action::Check => {
            let options = CheckOptions { data: Some(DataSubset::All) };
            let report = check::run(&repository, &options, &pool, &Silent)?;
            Ok(Outcome { lost_race: report.damage_count() > 0, ..Outcome::default() })
        }
    }));
    let mut outcome = outcome;
    if seat.stage.is_dead(seat.actor) && outcome.error.is_some() {
        // Nobody hears what it says.
        outcome.error = Some(killed());
    }
    let said = match (&outcome.error, &outcome.broken) {
        (_, Some(text)) => text.clone(),
        (Some(error), _) => error.full_text(),
        _ => "done".into(),
    };
    seat.stage.remark(format!("{} {}: {said}", seat.actor, name(action)));
    outcome
}

fn killed() -> Error {
    Error::new(ErrorKind::Cancelled, "the process was killed")
}

/// What it is, without what is on the disks.
pub fn name(action: &Action) -> String {
    match action {
        Action::Backup { series, .. } => format!("Backup {series}"),
        other => format!("{other:?}"),
    }
}

fn back_up(
    seat: &Seat,
    repository: &Repository,
    series: &str,
    given: &Parts,
    pool: &Arc<ThreadPool>,
) -> Result<Outcome> {
    seat.book().given.insert(seat.actor, given.clone());
    let cannot = |cause| Error::io(ErrorKind::Source, "cannot write a source", cause);
    std::fs::create_dir_all(&seat.sources).map_err(cannot)?;
    let mut inputs = Vec::new();
    for (name, data) in given {
        let path = seat.sources.join(name);
        std::fs::write(&path, data).map_err(cannot)?;
        let kind = if name.starts_with("vd") { InputKind::Disk } else { InputKind::Stream };
        inputs.push(InputRequest::new(Some(name.clone()), path, Some(kind)));
    }
    let mut options = options(series, inputs);
    options.tags = vec![(RUN_TAG.into(), seat.actor.to_string())];
    let open = |input: &InputRequest| -> Result<Box<dyn DiskSource>> {
        Ok(Box::new(Unmarked(open_disk(&input.path)?)))
    };
    let heard = Restarts::default();
    let made = backup::run_with(repository, &options, &open, pool, &heard);
    let _ = std::fs::remove_dir_all(&seat.sources);
    let point = made?.point;
    seat.book().made_by.insert(point, seat.actor);
    seat.book().owe(point);
    let fenced = heard.0.load(Ordering::Relaxed);
    Ok(Outcome { made: 1, fenced, ..Outcome::default() })
}

/// Counts how often a backup starts over.
#[derive(Default)]
struct Restarts(AtomicU64);

impl Monitor for Restarts {
    fn warn(&self, text: &str) {
        if text.contains("starting over") {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A disk without the token of its file, which is another one each time.
struct Unmarked(Box<dyn DiskSource>);

impl DiskSource for Unmarked {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn describe(&self) -> String {
        self.0.describe()
    }

    fn format(&self) -> &'static str {
        self.0.format()
    }

    fn extents_in(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        self.0.extents_in(range, each)
    }

    fn allocation_known(&self) -> bool {
        self.0.allocation_known()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, buffer)
    }

    fn prefetch(&self, offset: u64, bytes: u64) {
        self.0.prefetch(offset, bytes);
    }

    fn check_unchanged_size(&self) -> Result<()> {
        self.0.check_unchanged_size()
    }

    fn identity(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// One or two of these, but not all.
fn some_of(points: &[Point], chance: u64) -> Vec<&Point> {
    let mut chance = Chance::new(chance, "forget");
    let mut some: Vec<&Point> = Vec::new();
    for _ in 0..=chance.below(2) {
        if points.len() > some.len() + 1 {
            let point = chance.pick(points);
            if some.iter().all(|known| known.id != point.id) {
                some.push(point);
            }
        }
    }
    some
}

fn forget_points(seat: &Seat, repository: &Repository, going: &[&Point]) -> Result<Outcome> {
    {
        let mut book = seat.book();
        for point in going {
            book.owed.remove(&point.id);
            book.doomed.insert(point.id);
        }
    }
    let host = seat.host.name.as_str();
    let options = ForgetOptions { host, reason: "simulation", ends_pins: false };
    let gone = forget(repository, going, &options, &Silent)?;
    seat.book().gone.extend(gone);
    Ok(Outcome::default())
}

fn bring_back(seat: &Seat, repository: &Repository, chance: u64) -> Result<Outcome> {
    let (points, damaged) = forgotten(repository)?;
    let mut findings = damaged.iter().filter(|(_, error)| error.kind().is_finding());
    if let Some((id, error)) = findings.next() {
        let broken = format!("forgotten point {id}: {}", error.full_text());
        return Ok(Outcome { broken: Some(broken), ..Outcome::default() });
    }
    if points.is_empty() {
        return Ok(Outcome::default());
    }
    let point = Chance::new(chance, "undo").pick(&points).id;
    let new = undo(repository, &point.to_hex(), &seat.host.name, &Silent)?;
    seat.book().owe(new);
    Ok(Outcome { made: 1, ..Outcome::default() })
}

fn restore_one(seat: &Seat, repository: &Repository, chance: u64) -> Result<Outcome> {
    let points = PointSet::load(repository)?.points;
    if points.is_empty() {
        return Ok(Outcome::default());
    }
    let point = Chance::new(chance, "restore").pick(&points);
    let locator = Locator::open(repository, &Silent)?;
    match read_point(repository, &locator, point) {
        Ok(parts) => {
            let is_right = seat.book().given.get(&run_of(point)) == Some(&parts);
            let broken = (!is_right).then(|| format!("point {} has wrong bytes", point.id));
            Ok(Outcome { broken, restored: 1, ..Outcome::default() })
        }
        Err(error) if error.kind().is_finding() => {
            // Forgotten meanwhile, or moved more often than a reader looks again.
            Ok(Outcome { lost_race: true, ..Outcome::default() })
        }
        Err(error) => Err(error),
    }
}

struct Bytes(Vec<u8>);

impl Output for Bytes {
    fn data(&mut self, data: &[u8]) -> Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }
}

fn read_point(repository: &Repository, locator: &Locator, point: &Point) -> Result<Parts> {
    let fetcher = Fetcher { repository, locator, threads: 1, monitor: &Silent };
    let mut read = Parts::new();
    for part in parts(point) {
        let mut bytes = Bytes(Vec::new());
        read_part(&fetcher, part, &mut bytes)?;
        read.insert(part.name().to_string(), bytes.0);
    }
    Ok(read)
}

fn prune_options(host: &str, patience: Patience) -> PruneOptions<'_> {
    PruneOptions {
        max_unused: Unused::MilliPercent(0),
        max_repack: None,
        keep_forgotten: None,
        accepts_vanished: false,
        patience,
        host,
    }
}

/// What a prune would do.
///
/// # Errors
/// What it says.
pub fn outlook(repository: &Repository, threads: usize) -> Result<Outlook> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool
        .map_err(|cause| Error::new(ErrorKind::Failed, format!("cannot start threads: {cause}")))?;
    let patience = Patience { stands_still: Duration::from_secs(3600), waits: false };
    let options = prune_options("nobody", patience);
    diskvault::prune::foresee(repository, &options, &BTreeSet::new(), &Arc::new(pool), &Silent)
}

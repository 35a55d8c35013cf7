//! Reading packs in full: which, in which order, and what that says about the points.
//!
//! Invariants: what was not read for longest goes first; a pack that is damaged is looked at once
//! more, so that what can still be read of it does not count as lost; one that a prune took away
//! meanwhile is no damage.

use super::CheckReport;
use super::splices::{Quiet, Splices, look_again};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::entries::{Place, known_bytes, places_of, prefix};
use crate::repository::ledger::Ledger;
use crate::repository::locate::Locator;
use crate::repository::parity::verify_parity;
use crate::repository::salvage::Remains;
use crate::repository::verify::verify_pack;
use crate::repository::{Repository, lock};
use crate::restore::fetch::Fetcher;
use crate::restore::joining::Joining;
use diskvault_format::id::{ChunkId, PackId};
use diskvault_format::segment::Entry;
use rayon::ThreadPool;
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const NANOSECONDS: i64 = 1_000_000_000;

/// Which packs to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataSubset {
    /// All.
    All,
    /// Part `number` (from 1) of `of` equal parts, by id: `of` runs read everything once.
    Part {
        /// From 1 to `of`.
        number: u32,
        /// Number of parts.
        of: u32,
    },
    /// A random share, in thousandths of a percent.
    Random {
        /// 100,000 is everything.
        milli_percent: u32,
    },
    /// As many as can be begun in this time, those first that this host has not read for longest.
    Budget(Duration),
    /// These.
    Packs(Vec<PackId>),
}

impl DataSubset {
    /// Reads `n/t` or `x%`.
    ///
    /// # Errors
    /// `Usage`.
    pub fn parse(text: &str) -> Result<DataSubset> {
        let bad = || {
            let text = format!("cannot read the subset {text:?}: expected such as 1/7 or 2.5%");
            Error::new(ErrorKind::Usage, text)
        };
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.parse().map_err(|_| bad())?;
            if !(percent > 0.0 && percent <= 100.0) {
                return Err(bad());
            }
            return Ok(DataSubset::Random { milli_percent: (percent * 1000.0).ceil() as u32 });
        }
        let (number, of) = text.split_once('/').ok_or_else(bad)?;
        let (number, of) = (number.parse().map_err(|_| bad())?, of.parse().map_err(|_| bad())?);
        if number == 0 || number > of {
            return Err(bad());
        }
        Ok(DataSubset::Part { number, of })
    }

    pub(super) fn contains(&self, id: PackId, random: u64) -> bool {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&id.0[..8]);
        let value = u64::from_le_bytes(bytes);
        match self {
            DataSubset::All | DataSubset::Budget(_) => true,
            DataSubset::Part { number, of } => value % u64::from(*of) == u64::from(*number) - 1,
            DataSubset::Random { milli_percent } => {
                (value ^ random) % 100_000 < u64::from(*milli_percent)
            }
            DataSubset::Packs(packs) => packs.contains(&id),
        }
    }
}

/// Entries that are damaged though a footer names them.
#[derive(Debug, Default)]
pub(super) struct DamagedEntries {
    stored: HashSet<(PackId, [u8; 16])>,
    /// Chunks that do not come of the splices that are stored for them.
    spliced: HashSet<[u8; 16]>,
}

impl DamagedEntries {
    /// True if a chunk is there undamaged, as far as it is known.
    ///
    /// # Errors
    /// What the index or the storage say.
    pub fn leave(&self, locator: &Locator, id: ChunkId) -> Result<bool> {
        let counts =
            |id: &ChunkId, place: &Place| !self.stored.contains(&(place.pack, prefix(&id.0)));
        if self.spliced.contains(&prefix(&id.0)) {
            let places = places_of(locator.index(), &id.0)?;
            return Ok(places.iter().any(|place| !place.is_splice && counts(&id, place)));
        }
        locator.splices().is_present(id, &counts)
    }
}

/// How long ago what was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Packs that this host has never read in full, or found damaged.
    pub unread_packs: u64,
    /// Bytes of all packs.
    pub bytes: u64,
    /// Seconds since the pack was read that was not read for longest, of those that were.
    pub oldest_seconds: u64,
}

/// Reads and verifies the packs of the subset, each worker one at a time, and tells what of them
/// is damaged.
///
/// # Errors
/// `Cancelled`, no randomness, or what the index says.
pub(super) fn check_packs(
    repository: &Repository,
    locator: &Locator,
    subset: &DataSubset,
    pool: &ThreadPool,
    report: &mut CheckReport,
    monitor: &dyn Monitor,
) -> Result<DamagedEntries> {
    let mut ledger = Ledger::load(repository.cache());
    let now = repository.environment().now_unix_ns() / NANOSECONDS;
    let chosen = choose(repository, locator, subset, &ledger, now)?;
    let deadline = match subset {
        DataSubset::Budget(time) => Instant::now().checked_add(*time),
        _ => None,
    };
    let quiet = Quiet(monitor);
    let threads = pool.current_num_threads();
    let fetcher = Fetcher { repository, locator, threads, monitor: &quiet };
    // With a budget nobody knows which packs will be read.
    let mut splices = Splices::new(&fetcher, if deadline.is_some() { &[] } else { &chosen });
    let joining = splices.join()?;
    let results = read_all(repository, locator, &chosen, deadline, &joining, pool, monitor)?;
    let mut damaged = DamagedEntries::default();
    let (mut whole, mut bad) = (Vec::new(), Vec::new());
    for (id, result) in results {
        match result {
            Ok(bytes) => {
                report.packs_read += 1;
                report.bytes_read += bytes;
                whole.push(id);
            }
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) if error.kind() == ErrorKind::NotFound => report.packs_gone += 1,
            // Told with all that could not be opened.
            Err(error) if error.kind() == ErrorKind::Unlisted => report.packs_read += 1,
            Err(error) => {
                report.packs_read += 1;
                bad.push(id);
                name_damage(repository, id, &error, &mut damaged, report)?;
            }
        }
    }
    check_parity(repository, &whole, report)?;
    let mut refused = splices.finish(joining)?;
    if deadline.is_some() {
        let mut splices = Splices::new(&fetcher, &whole);
        let joining = splices.join()?;
        refused.extend(splices.finish(joining)?);
    }
    let (refused, newer) = look_again(&fetcher, refused, monitor)?;
    let splices = newer.as_ref().unwrap_or(locator).splices();
    for (id, error) in refused {
        damaged.spliced.insert(prefix(&id.0));
        // A splice that no point needs may have lost its pieces to a prune; if one does, its map
        // shows.
        if splices.has_whole_splice(id)? {
            report.damage(format!("chunk {id} cannot be put together: {}", error.full_text()));
        }
    }
    report.damaged_packs.clone_from(&bad);
    if let Err(error) = ledger.store(&whole, &bad, &mut locator.listed().iter().copied(), now) {
        monitor.warn(&format!("{}; the next check begins anew", error.full_text()));
    }
    report.coverage = Some(coverage(locator, &ledger, now)?);
    Ok(damaged)
}

/// Reads the parity of packs that are whole.
fn check_parity(repository: &Repository, packs: &[PackId], report: &mut CheckReport) -> Result<()> {
    let mut missing = 0;
    for id in packs {
        match verify_parity(repository.storage().as_ref(), *id) {
            Ok(is_there) => missing += u64::from(!is_there),
            Err(error) => report.damage(error.full_text()),
        }
    }
    if missing > 0 && repository.config().parity_per_mille() > 0 {
        report.remark(format!("{missing} packs have no parity: `repair packs` makes it"));
    }
    Ok(())
}

/// The packs to read, in their order.
fn choose(
    repository: &Repository,
    locator: &Locator,
    subset: &DataSubset,
    ledger: &Ledger,
    now: i64,
) -> Result<Vec<PackId>> {
    let random = crate::environment::random_array(repository.environment().as_ref())?;
    let random = u64::from_le_bytes(random);
    let listed = locator.listed().iter().copied();
    let mut chosen: Vec<PackId> = listed.filter(|id| subset.contains(*id, random)).collect();
    if matches!(subset, DataSubset::Budget(_)) {
        chosen.sort_by_key(|id| ledger.read_at(*id, now));
    }
    Ok(chosen)
}

type ReadResults = Vec<(PackId, Result<u64>)>;

/// Reads packs in order until the deadline; a pack that was begun is read to its end.
fn read_all(
    repository: &Repository,
    locator: &Locator,
    chosen: &[PackId],
    deadline: Option<Instant>,
    joining: &Joining<'_>,
    pool: &ThreadPool,
    monitor: &dyn Monitor,
) -> Result<ReadResults> {
    let mut total = 0;
    for id in chosen {
        total += known_bytes(locator.index(), *id)?.unwrap_or(0);
    }
    monitor.start("reading packs", Some(total));
    let taking =
        |pack, ordinal, entries: &[Entry], data: &[u8]| joining.take(pack, ordinal, entries, data);
    let results = in_order(pool, chosen, &|id: &PackId| {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return None;
        }
        let result = monitor.check_cancelled().and_then(|()| verify_pack(repository, *id, &taking));
        if let Ok(bytes) = &result {
            monitor.advance(*bytes);
        }
        Some((*id, result))
    });
    monitor.finish();
    Ok(results)
}

/// Does `each` for all items on all threads, until it gives nothing. Items are begun in their
/// order, one by one: handed out in blocks, a thread keeps the last few to itself while others
/// idle. The results come in the order of the items.
pub(super) fn in_order<T: Sync, R: Send>(
    pool: &ThreadPool,
    items: &[T],
    each: &(dyn Fn(&T) -> Option<R> + Sync),
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    pool.broadcast(|_| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(result) = items.get(number).and_then(each) else { return };
            lock(&results).push((number, result));
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Reports a damaged pack, and remembers what of it cannot be read.
fn name_damage(
    repository: &Repository,
    id: PackId,
    error: &Error,
    damaged: &mut DamagedEntries,
    report: &mut CheckReport,
) -> Result<()> {
    let why = format!("pack {id} is damaged: {}", error.full_text());
    let storage = repository.storage().as_ref();
    let remains = match Remains::of_pack(storage, repository.keys(), id) {
        Ok(remains) => remains,
        Err(error) => {
            report.damage(format!("{why}; nothing of it can be read: {}", error.full_text()));
            return Ok(());
        }
    };
    let mut lost: HashSet<[u8; 16]> = HashSet::new();
    let segments = remains.footer().map_or(&[][..], |footer| &footer.segments);
    lost.extend(
        segments.iter().flat_map(|segment| &segment.entries).map(|entry| prefix(&entry.id)),
    );
    let extent = remains.read(&mut |segment| {
        for entry in segment.entries {
            lost.remove(&entry.id.map_or([0; 16], |id| prefix(&id)));
        }
        Ok(())
    })?;
    report.damage(if remains.footer().is_some() {
        format!("{why}; {} of its {} segments can be read", extent.readable, extent.segments)
    } else {
        format!("{why}; its footer is gone, {} segments can be read", extent.readable)
    });
    damaged.stored.extend(lost.into_iter().map(|prefix| (id, prefix)));
    Ok(())
}

fn coverage(locator: &Locator, ledger: &Ledger, now: i64) -> Result<Coverage> {
    let mut coverage = Coverage::default();
    for id in locator.listed() {
        coverage.bytes += known_bytes(locator.index(), *id)?.unwrap_or(0);
        match ledger.read_at(*id, now) {
            Some(time) => {
                let seconds = now.saturating_sub(time).unsigned_abs();
                coverage.oldest_seconds = coverage.oldest_seconds.max(seconds);
            }
            None => coverage.unread_packs += 1,
        }
    }
    Ok(coverage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once() {
        assert_eq!(DataSubset::parse("2/7").unwrap(), DataSubset::Part { number: 2, of: 7 });
        assert_eq!(DataSubset::parse("2.5%").unwrap(), DataSubset::Random { milli_percent: 2500 });
        for bad in ["", "0/3", "4/3", "x%", "0%", "101%", "3"] {
            assert!(DataSubset::parse(bad).is_err(), "{bad}");
        }
        for first in 0..=255 {
            let id = PackId([first; 32]);
            let parts = (1..=7)
                .filter(|number| DataSubset::Part { number: *number, of: 7 }.contains(id, 0));
            assert_eq!(parts.count(), 1);
        }
    }
}

//! Giving back the room of what no point needs, while backups and other prunes run
//! (spec/40-protocol.md, "Pruner").
//!
//! Order, which must not change without the model check: 1. mark, choose packs, copy out what is
//! needed of them; 2. put an own list, *then* list the leases once and wait for these; 3. mark
//! again; 4. delete, then drop the list.
//!
//! Invariants: nothing is deleted that a manifest needs, whoever wrote it and whenever, and nothing on
//! the word of a footer alone; what cannot be read is never deleted; a run that is stopped anywhere leaves only what the next one clears.

mod changes;
pub mod choose;
mod condemn;
mod proof;
mod repack;
mod resolve;
mod roots;
pub mod usage;
mod vanished;

pub use crate::repository::condemned::Patience;
pub use resolve::Resolved;

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::aside::packs_aside;
use crate::repository::condemned::{self, List};
use crate::repository::locate::Locator;
use crate::repository::marks::Marks;
use crate::repository::pack_reader::pack_name;
use crate::repository::parity::delete_orphaned_parity;
use crate::repository::points::{PointSet, delete_lonely_oks};
use changes::Changes;
use choose::{Plan, Unused, choose};
use condemn::Swept;
use diskvault_format::id::{LeaseId, PackId, PointId};
use rayon::ThreadPool;
use roots::Root;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;
use usage::Usage;

/// Where there is no room, the next round copies so many times less, ...
const SHRINK: u64 = 4;
/// ... and one that found room lets the next copy so many times more.
const GROW: u64 = 2;
/// A round that had no room for so little is the last.
const COPY_BYTES_MIN: u64 = 64 << 10;
/// What is not filled with copies.
const ROOM_KEPT: u64 = 1 << 20;

/// What a prune may do.
#[derive(Clone, Copy, Debug)]
pub struct PruneOptions<'a> {
    /// What may stay although nobody needs it.
    pub max_unused: Unused,
    /// Most bytes that are copied.
    pub max_repack: Option<u64>,
    /// Points forgotten more recently than this stay whole in the trash.
    pub keep_forgotten: Option<Duration>,
    /// How long running backups are waited for.
    pub patience: Patience,
    /// This host, for the list.
    pub host: &'a str,
    /// True to go on although points have vanished that nobody forgot.
    pub accepts_vanished: bool,
}

/// What there is, and what a prune is about to do.
#[derive(Clone, Debug, Default)]
pub struct Outlook {
    /// Packs there are.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What of that somebody needs.
    pub used_bytes: u64,
    /// Chunks that points name and no pack holds.
    pub missing_chunks: u64,
    /// What is to be done.
    pub plan: Plan,
}

/// What a prune did.
#[derive(Clone, Debug, Default)]
pub struct PruneReport {
    /// As it was announced.
    pub outlook: Outlook,
    /// Manifests without `ok` that were dealt with.
    pub resolved: Resolved,
    /// Bytes of new packs and their parity.
    pub copied_bytes: u64,
    /// Packs that were deleted.
    pub deleted_packs: u64,
    /// Their bytes, with those of their parity and of parity whose pack was gone already.
    pub deleted_bytes: u64,
    /// Packs that were to go and that somebody needs now.
    pub kept_packs: u64,
    /// Leases of backups that gave no sign of life.
    pub fenced_leases: u64,
    /// True if backups are running and nobody waited: the next run of this host goes on.
    pub is_waiting: bool,
}

/// What a prune would do if `forgotten` were forgotten first. Writes nothing but the host's caches.
///
/// # Errors
/// As [`run`].
pub fn foresee(
    repository: &Repository,
    options: &PruneOptions<'_>,
    forgotten: &BTreeSet<PointId>,
    pool: &Arc<ThreadPool>,
    monitor: &dyn Monitor,
) -> Result<Outlook> {
    vanished::refuse_vanished(repository, false, options.host, monitor)?;
    let kept_since = kept_since(repository, options);
    let run = Run { repository, options, kept_since, without: forgotten, pool, monitor };
    Ok(look(&run)?.outlook)
}

/// Frees what nobody needs. `announce` hears what will be done before it is.
///
/// # Errors
/// `Damage` or `Newer` if it cannot be told what has to stay; `NoSpace` if there is no room even
/// to begin with; what the storage says; `Cancelled`.
pub fn run(
    repository: &Repository,
    options: &PruneOptions<'_>,
    pool: &Arc<ThreadPool>,
    announce: &dyn Fn(&Outlook) -> Result<()>,
    monitor: &dyn Monitor,
) -> Result<PruneReport> {
    let kept_since = kept_since(repository, options);
    repository.check_may_change()?;
    let lock = condemned::claim(repository, "prune")?;
    vanished::refuse_vanished(repository, options.accepts_vanished, options.host, monitor)?;
    let without = &BTreeSet::new();
    let run = Run { repository, options, kept_since, without, pool, monitor };
    let mut report = PruneReport::default();
    condemned::drop_empty_lists(repository)?;
    if lock.is_some() {
        resume(&run, &mut report)?;
    }
    let trash = resolve::list_trash(repository)?;
    report.resolved = resolve::resolve(repository, monitor)?;
    if !report.is_waiting {
        // Else there would be one more list of the same packs each time.
        free_in_rounds(&run, announce, &mut report)?;
    }
    take_off_dead_writers(&run, &mut report)?;
    if !report.is_waiting {
        resolve::empty_trash(repository, &trash, kept_since)?;
        delete_lonely_oks(repository, &PointSet::load(repository)?)?;
    }
    condemned::delete_orphaned_heartbeats(repository)?;
    condemned::drop_empty_lists(repository)?;
    // Looked up after the packs were listed: what a repair sets aside meanwhile is found here.
    let is_aside = |id| packs_aside(repository).map_or(true, |aside| aside.contains_key(&id));
    report.deleted_bytes += delete_orphaned_parity(repository, &is_aside)?;
    Ok(report)
}

/// Fences writers that have stood still for long enough, also if nothing was to be freed: what they
/// left unfinished is completed or removed then.
fn take_off_dead_writers(run: &Run<'_>, report: &mut PruneReport) -> Result<()> {
    let Run { repository, options, monitor, .. } = *run;
    report.fenced_leases += condemned::fence_dead(repository, options.patience, monitor)?;
    if report.fenced_leases > 0 {
        let Resolved { finished, deleted } = resolve::resolve(repository, monitor)?;
        report.resolved.finished += finished;
        report.resolved.deleted += deleted;
    }
    Ok(())
}

fn kept_since(repository: &Repository, options: &PruneOptions<'_>) -> Option<i64> {
    let keep = options.keep_forgotten?;
    let nanoseconds = i64::try_from(keep.as_nanos()).unwrap_or(i64::MAX);
    Some(repository.environment().now_unix_ns().saturating_sub(nanoseconds))
}

/// What every step of a run needs.
#[derive(Clone, Copy)]
struct Run<'a> {
    repository: &'a Repository,
    options: &'a PruneOptions<'a>,
    kept_since: Option<i64>,
    /// Points that count as forgotten.
    without: &'a BTreeSet<PointId>,
    pool: &'a Arc<ThreadPool>,
    monitor: &'a dyn Monitor,
}

/// What a first mark found.
struct Looked {
    outlook: Outlook,
    locator: Locator,
    roots: Vec<Root>,
    /// What the roots need.
    marks: Marks,
    unreadable: BTreeMap<PackId, Error>,
    broken_forgotten: u64,
}

/// Step 1 without the copying. Made anew while it does not find something that others may have put
/// or deleted meanwhile.
fn look(run: &Run<'_>) -> Result<Looked> {
    let mut changes = Changes::default();
    loop {
        let looked = look_once(run);
        let is_whole = match &looked {
            Ok(looked) => looked.outlook.missing_chunks == 0 && looked.broken_forgotten == 0,
            Err(error) => !error.kind().is_finding(),
        };
        if is_whole || !changes.may_explain_it(run.repository)? {
            let looked = looked?;
            warn_of(&looked, run.monitor)?;
            return Ok(looked);
        }
    }
}

/// Tells what is not as it should be.
///
/// # Errors
/// `Damage` if nobody can tell what is missing from what cannot be read.
fn warn_of(looked: &Looked, monitor: &dyn Monitor) -> Result<()> {
    let missing = looked.outlook.missing_chunks;
    if missing > 0 && !looked.unreadable.is_empty() {
        let text = "chunks are in no pack that can be read";
        let text = format!("cannot tell what has to stay: {missing} {text}");
        return Err(Error::new(ErrorKind::Damage, text)
            .hint("`diskvault repair packs` saves what can be read and names what is lost"));
    }
    for error in looked.unreadable.values() {
        monitor.warn(&format!("{}; it is left alone", error.full_text()));
    }
    if missing > 0 {
        let text = "chunks are in no pack: `diskvault check` says which points need them";
        monitor.warn(&format!("{missing} {text}"));
    }
    if looked.broken_forgotten > 0 {
        let text = "forgotten points can no longer come back: an earlier prune did not keep them";
        monitor.warn(&format!("{} {text}", looked.broken_forgotten));
    }
    Ok(())
}

fn look_once(run: &Run<'_>) -> Result<Looked> {
    let Run { repository, options, kept_since, without, monitor, .. } = *run;
    let lists = condemned::read_lists(repository)?;
    let listed: HashSet<PackId> = lists.into_iter().flat_map(|list| list.packs).collect();
    // This host's index will do here: where it is wrong, packs are chosen badly, and the second mark
    // keeps those that are needed. That one reads all footers.
    let locator = Locator::open(repository, monitor)?;
    let mut roots = roots::read_roots(repository, kept_since)?;
    roots.retain(|root| !without.contains(&root.id));
    let usage = usage::measure(repository, &locator, &roots, &listed, monitor)?;
    let outlook = Outlook {
        packs: usage.packs.len() as u64,
        bytes: usage.packs.iter().map(|pack| pack.bytes).sum(),
        used_bytes: usage.packs.iter().map(|pack| pack.used_bytes).sum(),
        missing_chunks: usage.missing,
        plan: choose(&usage.packs, options.max_unused, options.max_repack),
    };
    let Usage { marks, unreadable, broken_forgotten, .. } = usage;
    Ok(Looked { outlook, locator, roots, marks, unreadable, broken_forgotten })
}

/// What a round had no room for.
enum Lack {
    Nothing,
    /// All of the list: some packs go with the next one.
    List,
    /// What is needed of other packs.
    Copies(Error),
}

/// Rounds of the protocol: one, unless there is little room. A round copies no more than has room,
/// as far as the storage tells; where it does not, what a round without room has copied goes with
/// the next, which copies less. One that has freed some makes room for more.
fn free_in_rounds(
    run: &Run<'_>,
    announce: &dyn Fn(&Outlook) -> Result<()>,
    report: &mut PruneReport,
) -> Result<()> {
    let (first, copied) = (report.deleted_bytes, report.copied_bytes);
    let mut lack: Option<Error> = None;
    // What may be copied after rounds that had no room, and what the last of them wanted to: packs
    // on a list are copied whatever the limit.
    let (mut shrunk, mut failed) = (None, u64::MAX);
    loop {
        let spent = report.copied_bytes.saturating_sub(copied);
        let left = run.options.max_repack.map(|most| most.saturating_sub(spent));
        let room = room_to_copy(run.repository)?;
        let max_repack = [left, shrunk, room].into_iter().flatten().min();
        let options = PruneOptions { max_repack, ..*run.options };
        let before = (report.deleted_bytes, report.copied_bytes);
        let lacks = free(&Run { options: &options, ..*run }, announce, report)?;
        let has_freed = report.deleted_bytes > before.0;
        let has_copied = report.copied_bytes > before.1;
        if report.is_waiting {
            return Ok(());
        }
        let planned = report.outlook.plan.copy_bytes;
        match lacks {
            Lack::List if !has_freed => return Ok(()),
            // There is room for the rest now.
            Lack::List => {}
            Lack::Copies(error) => {
                let is_last = planned >= failed || !has_freed && planned <= COPY_BYTES_MIN;
                if is_last {
                    return lacks_room(run.monitor, report.deleted_bytes > first, error);
                }
                lack = Some(error);
                (shrunk, failed) = (Some(planned / SHRINK), planned);
            }
            Lack::Nothing if !report.outlook.plan.is_limited || max_repack == left => {
                return Ok(());
            }
            Lack::Nothing if has_copied || shrunk.is_none() && has_freed => {
                shrunk = shrunk.map(|most: u64| most.max(COPY_BYTES_MIN).saturating_mul(GROW));
                failed = u64::MAX;
            }
            // Not even the pack that needs the least copying has room.
            Lack::Nothing => {
                let error = lack.unwrap_or_else(|| {
                    Error::new(ErrorKind::NoSpace, "cannot copy what is needed of other packs")
                });
                return lacks_room(run.monitor, report.deleted_bytes > first, error);
            }
        }
    }
}

/// Bytes that may be copied with what is free: some is left for lists, indexes and other writers,
/// and a quarter for footers, parity and what compresses less well together.
fn room_to_copy(repository: &Repository) -> Result<Option<u64>> {
    let room = repository.storage().room()?;
    Ok(room.map(|bytes| bytes.saturating_sub(ROOM_KEPT) / 4 * 3))
}

/// The end where packs stay that could not be copied: no failure if others went.
fn lacks_room(monitor: &dyn Monitor, has_freed: bool, error: Error) -> Result<()> {
    if has_freed {
        monitor.warn(&format!("{}; what needs copying stays for now", error.full_text()));
        return Ok(());
    }
    Err(error.hint("free some room by other means, as much as one pack takes"))
}

/// One round of the protocol.
fn free(
    run: &Run<'_>,
    announce: &dyn Fn(&Outlook) -> Result<()>,
    report: &mut PruneReport,
) -> Result<Lack> {
    let Run { repository, options, .. } = *run;
    let mut looked = look(run)?;
    announce(&looked.outlook)?;
    let mut changes = Changes::default();
    let mut copies = HashSet::new();
    let (packs, no_room) = loop {
        match copy(run, &looked, &mut copies, report) {
            // Another prune has deleted what was to be copied; it has a copy, or nobody needs it.
            Err(error) if error.kind().is_finding() && changes.may_explain_it(repository)? => {
                // It has the index, which the next look needs.
                drop(looked);
                looked = look(run)?;
            }
            other => break other?,
        }
    };
    report.outlook = looked.outlook.clone();
    drop(looked);
    if packs.is_empty() {
        return Ok(no_room.map_or(Lack::Nothing, Lack::Copies));
    }
    let list = put_list(repository, &packs, options.host)?;
    let is_short = list.packs.len() < packs.len();
    // Only now: who registers from here on has read the list.
    let leases: BTreeSet<LeaseId> = condemned::leases(repository)?.into_keys().collect();
    condemned::remember(repository, &list, &leases, false)?;
    finish(run, &list, leases, &copies, report)?;
    Ok(match no_room {
        Some(error) => Lack::Copies(error),
        None if is_short => Lack::List,
        None => Lack::Nothing,
    })
}

/// The copying of step 1. Tells which packs go then, ascending, and the error if some were left
/// because there was no room to copy.
fn copy(
    run: &Run<'_>,
    looked: &Looked,
    copies: &mut HashSet<PackId>,
    report: &mut PruneReport,
) -> Result<(Vec<PackId>, Option<Error>)> {
    let Run { repository, pool, monitor, .. } = *run;
    let Plan { delete: mut packs, mut repack, .. } = looked.outlook.plan.clone();
    let mut no_room = None;
    while !repack.is_empty() {
        let leaving: HashSet<PackId> = repack.iter().chain(&packs).copied().collect();
        match repack::copy_out(repository, looked, &leaving, copies, pool, monitor) {
            Ok(bytes) => {
                report.copied_bytes += bytes;
                packs.append(&mut repack);
            }
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                let first = "first goes what needs little copying or none";
                monitor.note(&format!("{}; {first}", error.full_text()));
                no_room = Some(error);
                break;
            }
            Err(error) if error.kind().is_finding() => {
                // A damaged pack stays; what others have put or deleted is for who called.
                let damaged = looked.locator.damaged_on_the_way();
                for id in &damaged {
                    if repository.storage().size(&pack_name(*id)?)?.is_none() {
                        return Err(error);
                    }
                }
                let before = repack.len();
                repack.retain(|id| !damaged.contains(id));
                if repack.len() == before {
                    return Err(error);
                }
                monitor.warn(&format!("{}; its pack is left alone", error.full_text()));
            }
            Err(error) => return Err(error),
        }
    }
    packs.sort_unstable();
    Ok((packs, no_room))
}

/// Puts a list of as many of the packs as there is room for.
fn put_list(repository: &Repository, packs: &[PackId], host: &str) -> Result<List> {
    let mut count = packs.len();
    loop {
        match condemned::put_list(repository, &packs[..count], host) {
            Err(error) if error.kind() == ErrorKind::NoSpace && count > 1 => count /= 2,
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                return Err(error.hint("a few free KiB are enough to begin with"));
            }
            other => return other,
        }
    }
}

/// Steps 2 (the wait) to 4 for an own list. `copies` are packs that this run has made.
fn finish(
    run: &Run<'_>,
    list: &List,
    leases: BTreeSet<LeaseId>,
    copies: &HashSet<PackId>,
    report: &mut PruneReport,
) -> Result<()> {
    let Run { repository, options, kept_since, monitor, .. } = *run;
    match condemned::wait_for(repository, leases, options.patience, monitor)? {
        None => report.is_waiting = true,
        Some(fenced) => {
            report.fenced_leases += fenced;
            let Swept { packs, bytes, kept } =
                condemn::sweep(repository, list, copies, kept_since, monitor)?;
            report.deleted_packs += packs;
            report.deleted_bytes += bytes;
            report.kept_packs += kept;
            condemned::forget_list(repository, list.name.leaf())?;
        }
    }
    Ok(())
}

/// Goes on with the lists that earlier runs of this host have put.
fn resume(run: &Run<'_>, report: &mut PruneReport) -> Result<()> {
    let repository = run.repository;
    for own in repository.memory().condemned {
        if let Some((list, leases)) = condemned::take_up(repository, &own, run.options.host)? {
            finish(run, &list, leases, &HashSet::new(), report)?;
        }
    }
    Ok(())
}

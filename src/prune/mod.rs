//! Giving back the room of what no point needs, while backups and other prunes run
//! (spec/40-protocol.md, "Pruner").
//!
//! Order, which must not change without the model check: 1. mark, choose packs, copy out what is
//! needed of them; 2. put an own list, *then* list the leases once and wait for these; 3. mark
//! again; 4. delete, then drop the list.
//!
//! Invariants: nothing is deleted that a manifest needs, whoever wrote it and whenever; what cannot
//! be read is never deleted; a run that is stopped anywhere leaves only what the next one clears.

pub mod choose;
mod condemn;
mod repack;
mod resolve;
mod roots;
pub mod usage;

pub use crate::repository::condemned::Patience;
pub use resolve::Resolved;

use crate::error::{ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::condemned::{self, List};
use crate::repository::locate::Locator;
use choose::{Plan, Unused, choose};
use condemn::Swept;
use diskvault_format::id::{LeaseId, PackId};
use rayon::ThreadPool;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

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
    /// Only say what would be done.
    pub is_dry_run: bool,
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
    /// Bytes of new packs.
    pub copied_bytes: u64,
    /// Packs that were deleted.
    pub deleted_packs: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Packs that were to go and that somebody needs now.
    pub kept_packs: u64,
    /// Leases of backups that gave no sign of life.
    pub fenced_leases: u64,
    /// True if backups are running and nobody waited: the next run of this host goes on.
    pub is_waiting: bool,
}

/// Frees what nobody needs. `announce` hears what will be done before it is.
///
/// # Errors
/// `Damage` or `Newer` if it cannot be told what has to stay; `NoSpace` if there is no room even
/// for what needs no copying; what the storage says; `Cancelled`.
pub fn run(
    repository: &Repository,
    options: &PruneOptions<'_>,
    pool: &Arc<ThreadPool>,
    announce: &dyn Fn(&Outlook) -> Result<()>,
    monitor: &dyn Monitor,
) -> Result<PruneReport> {
    let kept_since = kept_since(repository, options);
    if options.is_dry_run {
        let (outlook, ..) = look(repository, options, kept_since, monitor)?;
        announce(&outlook)?;
        return Ok(PruneReport { outlook, ..PruneReport::default() });
    }
    repository.check_may_write()?;
    let lock = condemned::claim(repository, "prune")?;
    let mut report = PruneReport::default();
    if lock.is_some() {
        resume(repository, options, kept_since, &mut report, monitor)?;
    }
    let trash = resolve::list_trash(repository)?;
    report.resolved = resolve::resolve(repository, monitor)?;
    let needs_another =
        free(repository, options, kept_since, pool, announce, &mut report, monitor)?;
    if needs_another && !report.is_waiting {
        // There was no room to copy; there is now.
        free(repository, options, kept_since, pool, announce, &mut report, monitor)?;
    }
    if !report.is_waiting {
        resolve::empty_trash(repository, &trash, kept_since)?;
    }
    condemned::delete_orphaned_heartbeats(repository)?;
    condemned::drop_empty_lists(repository)?;
    Ok(report)
}

fn kept_since(repository: &Repository, options: &PruneOptions<'_>) -> Option<i64> {
    let keep = options.keep_forgotten?;
    let nanoseconds = i64::try_from(keep.as_nanos()).unwrap_or(i64::MAX);
    Some(repository.environment().now_unix_ns().saturating_sub(nanoseconds))
}

type Looked = (Outlook, Locator, Vec<roots::Root>);

/// Step 1 without the copying.
fn look(
    repository: &Repository,
    options: &PruneOptions<'_>,
    kept_since: Option<i64>,
    monitor: &dyn Monitor,
) -> Result<Looked> {
    let lists = condemned::read_lists(repository)?;
    let listed: HashSet<PackId> = lists.into_iter().flat_map(|list| list.packs).collect();
    let locator = Locator::open_fresh(repository, monitor)?;
    for (_, error) in locator.damaged() {
        monitor.warn(&format!("{}; it is left alone", error.full_text()));
    }
    let roots = roots::read_roots(repository, kept_since)?;
    let usage = usage::measure(repository, &locator, &roots, &listed, monitor)?;
    if usage.missing > 0 {
        let text = "chunks are in no pack: `diskvault check` says which points need them";
        monitor.warn(&format!("{} {text}", usage.missing));
    }
    let outlook = Outlook {
        packs: usage.packs.len() as u64,
        bytes: usage.packs.iter().map(|pack| pack.bytes).sum(),
        used_bytes: usage.packs.iter().map(|pack| pack.used_bytes).sum(),
        missing_chunks: usage.missing,
        plan: choose(&usage.packs, options.max_unused, options.max_repack),
    };
    Ok((outlook, locator, roots))
}

/// One round of the protocol; true if packs were left because there was no room to copy.
fn free(
    repository: &Repository,
    options: &PruneOptions<'_>,
    kept_since: Option<i64>,
    pool: &Arc<ThreadPool>,
    announce: &dyn Fn(&Outlook) -> Result<()>,
    report: &mut PruneReport,
    monitor: &dyn Monitor,
) -> Result<bool> {
    let (outlook, locator, roots) = look(repository, options, kept_since, monitor)?;
    announce(&outlook)?;
    let plan = outlook.plan.clone();
    report.outlook = outlook;
    let mut packs = plan.delete;
    let mut needs_another = false;
    if !plan.repack.is_empty() {
        let leaving: HashSet<PackId> = plan.repack.iter().chain(&packs).copied().collect();
        match repack::copy_out(repository, &locator, &roots, &leaving, pool, monitor) {
            Ok(bytes) => {
                report.copied_bytes += bytes;
                packs.extend(plan.repack);
            }
            Err(error) if error.kind() == ErrorKind::NoSpace && !packs.is_empty() => {
                monitor.warn(&format!("{}; first goes what needs no copying", error.full_text()));
                needs_another = true;
            }
            Err(error) => return Err(error),
        }
    }
    drop((locator, roots));
    if packs.is_empty() {
        return Ok(false);
    }
    packs.sort_unstable();
    let list = condemned::put_list(repository, &packs, options.host)?;
    // Only now: who registers from here on has read the list.
    let leases: BTreeSet<LeaseId> = condemned::leases(repository)?.into_keys().collect();
    condemned::remember(repository, &list, &leases, false)?;
    finish(repository, options, &list, leases, kept_since, report, monitor)?;
    Ok(needs_another)
}

/// Steps 2 (the wait) to 4 for an own list.
fn finish(
    repository: &Repository,
    options: &PruneOptions<'_>,
    list: &List,
    leases: BTreeSet<LeaseId>,
    kept_since: Option<i64>,
    report: &mut PruneReport,
    monitor: &dyn Monitor,
) -> Result<()> {
    match condemned::wait_for(repository, leases, options.patience, monitor)? {
        None => report.is_waiting = true,
        Some(fenced) => {
            report.fenced_leases += fenced;
            let Swept { packs, bytes, kept } =
                condemn::sweep(repository, list, kept_since, monitor)?;
            report.deleted_packs += packs;
            report.deleted_bytes += bytes;
            report.kept_packs += kept;
            condemned::forget_list(repository, list.name.leaf())?;
        }
    }
    Ok(())
}

/// Goes on with the lists that earlier runs of this host have put.
fn resume(
    repository: &Repository,
    options: &PruneOptions<'_>,
    kept_since: Option<i64>,
    report: &mut PruneReport,
    monitor: &dyn Monitor,
) -> Result<()> {
    let remembered = repository.memory().condemned;
    if remembered.is_empty() {
        return Ok(());
    }
    let lists = condemned::read_lists(repository)?;
    for own in remembered {
        let Some(list) = lists.iter().find(|list| list.name.leaf() == own.list) else {
            condemned::forget_list(repository, &own.list)?;
            continue;
        };
        if own.is_for_repair {
            // Nothing is deleted on its account; the next repair looks at its packs anew.
            condemned::drop_list(repository, list)?;
            continue;
        }
        let leases = own.leases.iter().filter_map(|lease| LeaseId::from_hex(lease)).collect();
        finish(repository, options, list, leases, kept_since, report, monitor)?;
    }
    Ok(())
}

//! Making damaged packs whole by their parity, and setting those aside that have none, after saving
//! what can be read of them (spec/40-protocol.md, "Repair").
//!
//! Order, by the protocol of pruners: 1. read the packs; copy out of the damaged ones all that can be
//! read. 2. Put a condemned list of them, *then* list the leases once and wait for these. 3. Look
//! again (lists, packs): a pack whose readable entries are not all in packs that no list names stays.
//! 4. Give the others a name under `aside/`, then drop the list, then name what is lost.
//!
//! Invariants: nothing is deleted; what can be read anywhere can be read afterwards; a run that is
//! stopped anywhere leaves the packs where they are, and the next one begins anew.

mod examine;
mod heal;
mod lost;
mod objects;
mod salvage;

pub use heal::{Healing, heal_damaged};
pub use objects::{ObjectRepair, ObjectRepairOptions, repair_objects};

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::aside::put_aside;
use crate::repository::condemned::{self, List, Patience};
use crate::repository::locate::Locator;
use crate::repository::pack_reader::pack_name;
use crate::storage::ObjectName;
use diskvault_format::id::{LeaseId, PackId};
use examine::Examined;
use rayon::ThreadPool;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// What a repair may do.
#[derive(Clone, Copy, Debug)]
pub struct RepairOptions<'a> {
    /// The packs to look at; all if there are none.
    pub packs: &'a [PackId],
    /// How long running backups are waited for.
    pub patience: Patience,
    /// This host, for the list.
    pub host: &'a str,
    /// Only say what would be done.
    pub is_dry_run: bool,
}

/// One damaged pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedPack {
    /// The pack.
    pub id: PackId,
    /// What is wrong with it.
    pub text: String,
    /// Segments that can be read.
    pub readable_segments: u32,
    /// Segments it has; if its footer is gone, those that are known of.
    pub segments: u32,
    /// False if its footer is gone, so that nobody can tell all that it held.
    pub has_footer: bool,
}

/// What a repair found and did.
#[derive(Clone, Debug, Default)]
pub struct RepairReport {
    /// Packs that were read.
    pub packs_read: u64,
    /// Packs that are damaged.
    pub damaged: Vec<DamagedPack>,
    /// Those that their parity has made whole.
    pub healed: Vec<PackId>,
    /// Packs that were given parity.
    pub parity_made: u64,
    /// Chunks, splices and pages that were stored anew.
    pub saved_entries: u64,
    /// Bytes of the packs in which they are now.
    pub saved_bytes: u64,
    /// Where the damaged packs are now.
    pub set_aside: Vec<ObjectName>,
    /// Damaged packs that stay: something of them is nowhere else yet, or nothing of them can be
    /// read just now.
    pub kept: u64,
    /// Leases of backups that gave no sign of life.
    pub fenced_leases: u64,
    /// Chunks and pages that points need and no pack holds.
    pub lost: u64,
    /// Those that were lost before and are there again.
    pub found_again: u64,
}

/// Repairs packs. `announce` hears which are damaged before anything is done about it.
///
/// # Errors
/// `Damage` or `Newer` for a condemned list that cannot be read; `NoSpace` if there is no room for
/// what is saved; what the storage says; `Cancelled`.
pub fn run(
    repository: &Repository,
    options: &RepairOptions<'_>,
    pool: &Arc<ThreadPool>,
    announce: &dyn Fn(&RepairReport) -> Result<()>,
    monitor: &dyn Monitor,
) -> Result<RepairReport> {
    let repository = &repository.forgiving();
    let mut report = RepairReport::default();
    let lock = match options.is_dry_run {
        true => None,
        false => {
            repository.check_may_change()?;
            condemned::claim(repository, "repair")?
        }
    };
    if lock.is_some() {
        drop_own_lists(repository)?;
    }
    if !options.is_dry_run {
        report.healed = heal::heal_what_is_aside(repository, monitor)?;
    }
    let locator = Locator::open_fresh(repository, monitor)?;
    let mut examined = examine::examine(repository, &locator, options.packs, pool, monitor)?;
    report.packs_read = examined.read;
    report.damaged = examined.damaged.iter().chain(&examined.unreadable).cloned().collect();
    report.kept = examined.unreadable.len() as u64;
    announce(&report)?;
    if options.is_dry_run {
        return Ok(report);
    }
    let damaged: Vec<PackId> = examined.damaged.iter().map(|damaged| damaged.id).collect();
    let healing = heal::heal_packs(repository, &damaged, monitor);
    if let Some(error) = healing.error {
        return Err(error);
    }
    examined.whole.extend(healing.healed.iter().chain(&healing.whole));
    examined.damaged.retain(|damaged| !examined.whole.contains(&damaged.id));
    report.healed.extend(healing.healed);
    let mut lost = BTreeSet::new();
    if !examined.damaged.is_empty() {
        // Made anew: a pack whose footer was damaged is whole now.
        let locator = match report.healed.is_empty() {
            true => locator,
            false => Locator::open_fresh(repository, monitor)?,
        };
        let saved = salvage::copy_out(repository, &locator, &examined, pool, monitor)?;
        report.saved_entries = saved.entries;
        report.saved_bytes = saved.bytes;
        lost = saved.lost;
        drop(locator);
        set_aside(repository, options, &examined, &mut report, monitor)?;
    }
    lost::name_lost(repository, lost, &mut report, monitor)?;
    report.parity_made = heal::complete_parity(repository, &examined.whole, monitor)?;
    Ok(report)
}

/// What an earlier repair of this host condemned stays; nothing was deleted.
fn drop_own_lists(repository: &Repository) -> Result<()> {
    let own: Vec<_> =
        repository.memory().condemned.into_iter().filter(|own| own.is_for_repair).collect();
    if own.is_empty() {
        return Ok(());
    }
    let lists = condemned::read_lists(repository)?;
    for own in own {
        match lists.iter().find(|list| list.name.leaf() == own.list) {
            Some(list) => condemned::drop_list(repository, list)?,
            None => condemned::forget_list(repository, &own.list)?,
        }
    }
    Ok(())
}

/// Steps 2 to 4.
fn set_aside(
    repository: &Repository,
    options: &RepairOptions<'_>,
    examined: &Examined,
    report: &mut RepairReport,
    monitor: &dyn Monitor,
) -> Result<()> {
    let mut packs: Vec<PackId> = examined.damaged.iter().map(|damaged| damaged.id).collect();
    packs.sort_unstable();
    let list = condemned::put_list(repository, &packs, options.host)?;
    // Only now: who registers from here on has read the list.
    let leases: BTreeSet<LeaseId> = condemned::leases(repository)?.into_keys().collect();
    condemned::remember(repository, &list, &leases, true)?;
    match condemned::wait_for(repository, leases, options.patience, monitor)? {
        Some(fenced) => report.fenced_leases = fenced,
        None => {
            condemned::drop_list(repository, &list)?;
            let text = "cannot set damaged packs aside: backups are running";
            return Err(Error::new(ErrorKind::Failed, text).hint("repair again when they are over"));
        }
    }
    let going = packs_that_may_go(repository, &list, &examined.whole, monitor)?;
    report.kept += (list.packs.len() - going.len()) as u64;
    for id in going {
        let name = pack_name(id)?;
        match put_aside(repository, &name) {
            Ok(aside) => report.set_aside.push(aside),
            // A prune has deleted it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    condemned::drop_list(repository, &list)
}

/// The packs of the own list of which all that can be read is in packs that no list names. Those in
/// `whole` were just read in full.
fn packs_that_may_go(
    repository: &Repository,
    own: &List,
    whole: &HashSet<PackId>,
    monitor: &dyn Monitor,
) -> Result<Vec<PackId>> {
    // In this order.
    let lists = condemned::read_lists(repository)?;
    let locator = Locator::open_fresh(repository, monitor)?;
    let mut listed: HashSet<PackId> = own.packs.iter().copied().collect();
    listed.extend(lists.iter().flat_map(|list| &list.packs));
    let mut going = Vec::new();
    for id in &own.packs {
        if salvage::is_held_elsewhere(repository, &locator, *id, &listed, whole)? {
            going.push(*id);
        } else {
            monitor.warn(&format!("pack {id} stays: something of it is nowhere else yet"));
        }
    }
    Ok(going)
}

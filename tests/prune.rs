//! Prune on a storage in memory: what it frees, in which order, with every fault at every
//! operation, and beside backups that began before it.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;

#[path = "crash/rig.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod rig;

#[path = "prune/cost.rs"]
mod cost;

#[path = "prune/damage.rs"]
mod damage;

#[path = "prune/forged.rs"]
mod forged;

use diskvault::environment::Environment;
use diskvault::error::{ErrorKind, Result};
use diskvault::monitor::{Monitor, Silent};
use diskvault::prune::choose::Unused;
use diskvault::prune::{Outlook, Patience, PruneOptions, PruneReport};
use diskvault::repository::Repository;
use diskvault::repository::locate::Locator;
use diskvault::repository::points::{Point, PointSet};
use diskvault::retention::forget::{ForgetOptions, forget};
use diskvault::retention::undo::undo;
use diskvault::storage::memory::Operation;
use diskvault::storage::{Folder, Storage};
use diskvault_format::id::PointId;
use rig::{FAULTS, adopt, assert_whole, count, machine, recover, set};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::vault::{Parts, Vault, damage_of, noise, restore};

const PATIENT: Patience = Patience { stands_still: Duration::from_secs(3600), waits: true };
const HASTY: Patience = Patience { stands_still: Duration::from_millis(200), waits: true };
const NOT_WAITING: Patience = Patience { stands_still: Duration::from_secs(3600), waits: false };

const DAY: Duration = Duration::from_secs(86_400);

fn options(patience: Patience) -> PruneOptions<'static> {
    PruneOptions {
        max_unused: Unused::MilliPercent(0),
        max_repack: None,
        keep_forgotten: None,
        accepts_vanished: false,
        patience,
        host: "host",
    }
}

fn foresee(vault: &Vault, repository: &Repository, forgotten: &[PointId]) -> Outlook {
    let forgotten = forgotten.iter().copied().collect();
    let (options, pool) = (options(PATIENT), &vault.pool);
    diskvault::prune::foresee(repository, &options, &forgotten, pool, &Silent).unwrap()
}

fn prune(vault: &Vault, repository: &Repository, patience: Patience) -> Result<PruneReport> {
    diskvault::prune::run(repository, &options(patience), &vault.pool, &|_| Ok(()), &Silent)
}

/// A reader holds no lease. What it read in the index before a prune is in other packs after it.
#[test]
fn a_reader_finds_what_a_prune_has_copied_elsewhere() {
    let (mut vault, ids) = with_four_days();
    let reader = vault.open("reader").unwrap();
    let point = PointSet::load(&reader).unwrap().points.pop().unwrap();
    assert_eq!(point.id, ids[3]);
    let locator = Locator::open_for_reading(&reader, &Silent).unwrap();
    let pruner = vault.open("host").unwrap();
    forget_ids(&mut vault, &pruner, &ids[..3]);
    let report = prune(&vault, &pruner, PATIENT).unwrap();
    assert!(report.copied_bytes > 0 && report.deleted_packs > 0, "{report:?}");
    let restored = restore(&reader, &locator, &point).unwrap();
    assert!(restored == vault.known[&point.id]);
}

/// Four points of a machine, and their ids.
fn with_four_days() -> (Vault, Vec<PointId>) {
    let mut vault = Vault::new(1);
    let repository = vault.open("host").unwrap();
    let backup = |day| vault.backup(&repository, "web01", &machine(day)).unwrap().point;
    let ids = (1..=4).map(backup).collect();
    (vault, ids)
}

fn forget_ids(vault: &mut Vault, repository: &Repository, ids: &[PointId]) {
    let points = PointSet::load(repository).unwrap().points;
    let going: Vec<&Point> = points.iter().filter(|point| ids.contains(&point.id)).collect();
    let options = ForgetOptions { host: "host", reason: "policy", ends_pins: false };
    forget(repository, &going, &options, &Silent).unwrap();
    ids.iter().for_each(|id| _ = vault.known.remove(id));
}

fn pack_bytes(vault: &Vault) -> u64 {
    vault.storage.list(Folder::Packs).unwrap().iter().map(|entry| entry.bytes).sum()
}

/// Nothing of a prune or a backup is left that the next one would have to clear.
fn assert_clear(vault: &Vault, what: &str) {
    for folder in [Folder::Condemned, Folder::Leases, Folder::Trash] {
        assert!(vault.names(folder).is_empty(), "{what}: {folder} {:?}", vault.names(folder));
    }
}

#[test]
fn dropping_all_but_the_newest_leaves_what_a_fresh_repository_has() {
    let (mut vault, ids) = with_four_days();
    let repository = vault.open("host").unwrap();
    let before = pack_bytes(&vault);
    let idle = prune(&vault, &repository, PATIENT).unwrap();
    assert_eq!((idle.deleted_packs, pack_bytes(&vault)), (0, before), "all is needed");
    forget_ids(&mut vault, &repository, &ids[..3]);
    let report = prune(&vault, &repository, PATIENT).unwrap();
    assert_eq!(report.deleted_bytes - report.copied_bytes, before - pack_bytes(&vault));
    let mut fresh = Vault::new(9);
    let alone = fresh.open("host").unwrap();
    fresh.backup(&alone, "web01", &machine(4)).unwrap();
    // Footers and padding of a pack more or less: packs are small here.
    let (left, ideal) = (pack_bytes(&vault), pack_bytes(&fresh));
    assert!(left < ideal + ideal / 10 + (200 << 10), "{left} left, {ideal} would do");
    for cache in ["host", "stranger"] {
        assert_whole(&vault, cache, "pruned");
    }
    assert_clear(&vault, "pruned");
    let again = prune(&vault, &vault.open("host").unwrap(), PATIENT).unwrap();
    assert_eq!(again.deleted_packs, 0, "a second prune finds nothing");
    // And the next backup takes over what is left.
    let repository = vault.open("host").unwrap();
    let next = vault.backup(&repository, "web01", &machine(4)).unwrap();
    assert_eq!(next.statistics.new_bytes, 0);
}

#[test]
fn points_go_in_any_order_and_the_others_stay() {
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
        let (mut vault, ids) = with_four_days();
        for number in order {
            let repository = vault.open("host").unwrap();
            forget_ids(&mut vault, &repository, &[ids[number]]);
            prune(&vault, &repository, PATIENT).unwrap();
            assert_whole(&vault, "stranger", &format!("{order:?} after {number}"));
        }
        assert_eq!(vault.names(Folder::Packs), [""; 0], "nothing is needed any more");
    }
}

#[test]
fn a_dry_run_says_it_and_does_nothing() {
    let (mut vault, ids) = with_four_days();
    let repository = vault.open("host").unwrap();
    let supposed = foresee(&vault, &repository, &ids[..2]).plan;
    forget_ids(&mut vault, &repository, &ids[..2]);
    let before = vault.storage.snapshot();
    let plan = foresee(&vault, &repository, &[]).plan;
    assert_eq!(plan, supposed);
    assert_eq!(vault.storage.snapshot(), before);
    let report = prune(&vault, &repository, PATIENT).unwrap();
    assert_eq!(report.outlook.plan, plan);
    assert_eq!(report.deleted_bytes, plan.delete_bytes + plan.repack_bytes);
    assert!(plan.delete_bytes + plan.repack_bytes > 0);
}

#[test]
fn a_pruner_does_everything_in_order() {
    let (mut vault, ids) = with_four_days();
    let repository = vault.open("host").unwrap();
    forget_ids(&mut vault, &repository, &ids[..3]);
    let began = vault.storage.operations() as usize;
    prune(&vault, &repository, PATIENT).unwrap();
    let log = vault.storage.log().split_off(began);
    let at = |operation: Operation, prefix: &str| -> Vec<usize> {
        let fits = |(_, (found, name)): &(usize, &(Operation, String))| {
            *found == operation && name.starts_with(prefix)
        };
        log.iter().enumerate().filter(fits).map(|(number, _)| number).collect()
    };
    let list = at(Operation::Put, "condemned/");
    assert_eq!(list.len(), 1);
    let list = list[0];
    let copied = at(Operation::Put, "packs/");
    assert!(!copied.is_empty() && copied.iter().all(|put| *put < list), "copies, then the list");
    let after = |operation, prefix: &str| {
        at(operation, prefix).into_iter().filter(|number| *number > list).collect::<Vec<_>>()
    };
    let leases = after(Operation::List, "leases")[0];
    let lists = after(Operation::List, "condemned")[0];
    let packs = after(Operation::List, "packs")[0];
    let points = after(Operation::List, "points")[0];
    assert!(leases < lists && lists < packs && packs < points, "leases, lists, packs, points");
    let deleted = after(Operation::Delete, "packs/");
    assert!(deleted.iter().all(|delete| points < *delete), "the second mark, then the deletes");
    let dropped = after(Operation::Delete, "condemned/")[0];
    assert!(deleted.iter().all(|delete| *delete < dropped), "the deletes, then the list");
    assert!(at(Operation::Delete, "packs/").iter().all(|delete| *delete > list));
}

#[test]
fn pruning_survives_every_fault() {
    let (mut base, ids) = with_four_days();
    let repository = base.open("host").unwrap();
    forget_ids(&mut base, &repository, &ids[..2]);
    drop(repository);
    let operations = count(&base, |vault| {
        prune(vault, &vault.open("host").unwrap(), PATIENT).unwrap();
    });
    for n in 0..operations {
        for (kind, once) in FAULTS {
            let what = format!("{kind:?} at {n}, once {once}");
            let vault = base.copy(700 + n);
            let repository = vault.open("host").unwrap();
            set(&vault.storage, n, kind, once);
            let result = prune(&vault, &repository, PATIENT);
            recover(&vault.storage);
            drop(repository);
            if let Err(error) = &result {
                let kind = error.kind();
                assert!(
                    matches!(kind, ErrorKind::Storage | ErrorKind::NoSpace),
                    "{what}: {error:?}"
                );
            }
            assert_whole(&vault, "host", &what);
            // The same host goes on, or another one.
            let cache = if n % 2 == 0 { "host" } else { "stranger" };
            prune(&vault, &vault.open(cache).unwrap(), PATIENT).expect(&what);
            assert_whole(&vault, "later", &what);
            prune(&vault, &vault.open(cache).unwrap(), PATIENT).expect(&what);
            assert_clear(&vault, &what);
            let left = prune(&vault, &vault.open(cache).unwrap(), PATIENT).expect(&what);
            assert_eq!(left.outlook.plan.delete.len(), 0, "{what}: garbage is left");
        }
    }
}

/// Prunes once when a backup has begun to read its disk.
struct PruneMeanwhile<'a> {
    vault: &'a Vault,
    cache: &'a str,
    patience: Patience,
    is_done: AtomicBool,
    report: Mutex<Option<PruneReport>>,
}

impl<'a> PruneMeanwhile<'a> {
    fn new(vault: &'a Vault, cache: &'a str, patience: Patience) -> PruneMeanwhile<'a> {
        PruneMeanwhile { vault, cache, patience, is_done: false.into(), report: Mutex::default() }
    }
}

impl Monitor for PruneMeanwhile<'_> {
    fn start(&self, stage: &str, _total: Option<u64>) {
        if stage.starts_with("disk vda") && !self.is_done.swap(true, Ordering::Relaxed) {
            let repository = self.vault.open(self.cache).unwrap();
            *self.report.lock().unwrap() =
                Some(prune(self.vault, &repository, self.patience).unwrap());
        }
    }
}

/// A backup takes over chunks of a forgotten point that a prune has condemned since it began.
fn backup_beside_a_prune(patience: Patience) -> (Vault, PruneReport) {
    let (mut vault, ids) = with_four_days();
    let repository = vault.open("host").unwrap();
    // Of another machine, so that nobody else has its chunks.
    let other = Parts::from([("vda".into(), noise(90, 512 << 10))]);
    let gone = vault.backup(&repository, "db01", &other).unwrap().point;
    forget_ids(&mut vault, &repository, &[gone]);
    forget_ids(&mut vault, &repository, &ids[..2]);
    let writer = vault.open("writer").unwrap();
    let meanwhile = PruneMeanwhile::new(&vault, "host", patience);
    let made = vault.try_backup(&writer, "db02", &other, &meanwhile).unwrap();
    let report = meanwhile.report.into_inner().unwrap().unwrap();
    vault.known.insert(made.point, other);
    (vault, report)
}

#[test]
fn what_a_running_backup_took_over_stays() {
    let (vault, report) = backup_beside_a_prune(NOT_WAITING);
    assert!(report.is_waiting && report.deleted_packs == 0, "{report:?}");
    assert_eq!(vault.names(Folder::Condemned).len(), 1, "the list stays");
    assert_whole(&vault, "stranger", "while condemned");
    let report = prune(&vault, &vault.open("host").unwrap(), PATIENT).unwrap();
    assert!(report.kept_packs > 0 && report.deleted_packs > 0, "{report:?}");
    assert_whole(&vault, "stranger", "after the second mark");
    assert_clear(&vault, "after the second mark");
}

#[test]
fn a_backup_that_was_fenced_starts_over_and_is_whole() {
    // The backup stands still while the prune runs inside of it, so it is taken for dead.
    let (vault, report) = backup_beside_a_prune(HASTY);
    assert_eq!(report.fenced_leases, 1);
    assert!(report.deleted_packs > 0);
    assert_whole(&vault, "stranger", "after the fence");
    assert_eq!(vault.names(Folder::Leases), [""; 0]);
}

#[test]
fn another_host_prunes_without_waiting_for_a_list_that_was_left() {
    let (vault, _) = backup_beside_a_prune(NOT_WAITING);
    let report = prune(&vault, &vault.open("other").unwrap(), PATIENT).unwrap();
    assert!(report.deleted_packs > 0, "{report:?}");
    assert_whole(&vault, "stranger", "pruned by another");
    // The owner comes back.
    prune(&vault, &vault.open("host").unwrap(), PATIENT).unwrap();
    assert_whole(&vault, "stranger", "the owner is back");
    assert_clear(&vault, "the owner is back");
}

#[test]
fn a_dead_writers_lease_is_fenced_and_its_point_completed() {
    let (mut vault, ids) = with_four_days();
    // As if the writer had died between manifest and ok.
    let lease = {
        let repository = vault.open("host").unwrap();
        let points = PointSet::load(&repository).unwrap().points;
        points.iter().find(|point| point.id == ids[3]).unwrap().manifest.lease
    };
    assert!(vault.storage.remove(format!("points/{}.ok", ids[3])));
    vault.storage.insert(format!("leases/{lease}"), b"of a dead writer".to_vec());
    let repository = vault.open("host").unwrap();
    forget_ids(&mut vault, &repository, &ids[..1]);
    let report = prune(&vault, &repository, HASTY).unwrap();
    assert_eq!(report.fenced_leases, 1);
    assert_eq!((report.resolved.finished, report.resolved.deleted), (1, 0));
    assert_whole(&vault, "stranger", "completed");
    // With something missing it can never be complete.
    assert!(vault.storage.remove(format!("points/{}.ok", ids[3])));
    let victim = vault.names(Folder::Packs);
    let before: Vec<String> = victim.clone();
    let mut deleted = 0;
    for name in before {
        let copy = vault.copy(33);
        assert!(copy.storage.remove(&name));
        let repository = copy.open("host").unwrap();
        if let Ok(report) = prune(&copy, &repository, PATIENT) {
            deleted += report.resolved.deleted;
        }
    }
    assert!(deleted > 0, "some pack is of the newest point alone");
}

#[test]
fn what_cannot_be_read_stops_it_before_anything_is_deleted() {
    let (mut vault, ids) = with_four_days();
    let repository = vault.open("host").unwrap();
    forget_ids(&mut vault, &repository, &ids[..2]);
    let cases = [
        (format!("points/{}", ids[3]), "cannot tell what has to stay"),
        (format!("condemned/{}", "ab".repeat(16)), "cannot open condemned/"),
    ];
    for (name, text) in cases {
        let copy = vault.copy(12);
        if !copy.storage.corrupt(&name, |bytes| *bytes.last_mut().unwrap() ^= 1) {
            copy.storage.insert(&name, noise(5, 200));
        }
        let before = copy.storage.snapshot();
        let repository = copy.open("host").unwrap();
        let error = prune(&copy, &repository, PATIENT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damage, "{name}");
        assert!(error.full_text().contains(text), "{error:?}");
        assert_eq!(copy.storage.snapshot(), before, "{name}");
    }
}

#[test]
fn forgotten_points_come_back_until_their_time_is_over() {
    let (mut vault, ids) = with_four_days();
    let repository = vault.open("host").unwrap();
    let contents = vault.known[&ids[0]].clone();
    forget_ids(&mut vault, &repository, &ids[..1]);
    let keeping = PruneOptions { keep_forgotten: Some(DAY), ..options(PATIENT) };
    let keep = |repository: &Repository| {
        diskvault::prune::run(repository, &keeping, &vault.pool, &|_| Ok(()), &Silent).unwrap()
    };
    assert_eq!(keep(&repository).deleted_packs, 0);
    let new = undo(&repository, &ids[0].to_hex(), "host", &Silent).unwrap();
    vault.known.insert(new, contents);
    assert_whole(&vault, "stranger", "brought back");
    forget_ids(&mut vault, &repository, &[new]);
    assert!(prune(&vault, &repository, PATIENT).unwrap().deleted_packs > 0);
    let error = undo(&repository, &new.to_hex(), "host", &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_whole(&vault, "stranger", "collected");
}

/// Cancels once a pack is deleted.
#[derive(Default)]
struct CancelsDeletion {
    is_deleting: AtomicBool,
    is_cancelled: AtomicBool,
}

impl Monitor for CancelsDeletion {
    fn start(&self, stage: &str, _total: Option<u64>) {
        self.is_deleting.store(stage == "deleting packs", Ordering::Relaxed);
    }

    fn advance(&self, _amount: u64) {
        if self.is_deleting.load(Ordering::Relaxed) {
            self.is_cancelled.store(true, Ordering::Relaxed);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }
}

#[test]
fn a_prune_that_is_interrupted_while_it_deletes_is_finished_by_the_next() {
    let (mut vault, ids) = with_four_days();
    let repository = vault.open("host").unwrap();
    forget_ids(&mut vault, &repository, &ids[..2]);
    // What a forget leaves that dies before its last step goes with the garbage.
    vault.storage.insert(format!("points/{}.ok", ids[0]), Vec::new());
    let planned = foresee(&vault, &repository, &[]).plan;
    let before = vault.names(Folder::Packs).len();
    let monitor = CancelsDeletion::default();
    let error =
        diskvault::prune::run(&repository, &options(PATIENT), &vault.pool, &|_| Ok(()), &monitor)
            .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(vault.names(Folder::Condemned).len(), 1);
    assert_whole(&vault, "stranger", "interrupted");
    let report = prune(&vault, &repository, PATIENT).unwrap();
    let going = planned.delete.len() + planned.repack.len();
    assert!(going > 2 && before > going, "{planned:?}");
    assert_eq!(report.deleted_packs, going as u64 - 1);
    assert!(PointSet::load(&repository).unwrap().lonely_oks.is_empty());
    assert_whole(&vault, "stranger", "finished");
    assert_clear(&vault, "finished");
}

/// The clock of a host, off by so many years.
struct YearsOff(Arc<dyn Environment>, i64);

impl Environment for YearsOff {
    fn now_unix_ns(&self) -> i64 {
        self.0.now_unix_ns() + self.1 * 365 * 86_400 * 1_000_000_000
    }

    fn random(&self, buffer: &mut [u8]) -> Result<()> {
        self.0.random(buffer)
    }
}

#[test]
fn clocks_that_are_years_off_lose_nothing() {
    for (of_backups, of_prunes) in [(30, 0), (-40, 0), (0, 30), (0, -40)] {
        let what = format!("backups {of_backups}, prunes {of_prunes} years off");
        let mut vault = Vault::new(1);
        let right = vault.environment.clone();
        vault.environment = Arc::new(YearsOff(right.clone(), of_backups));
        let repository = vault.open("host").unwrap();
        let ids: Vec<PointId> = (1..=4)
            .map(|day| vault.backup(&repository, "web01", &machine(day)).unwrap().point)
            .collect();
        forget_ids(&mut vault, &repository, &ids[..2]);
        vault.environment = Arc::new(YearsOff(right, of_prunes));
        let pruner = vault.open("pruner").unwrap();
        let kept = PruneOptions { keep_forgotten: Some(DAY), ..options(PATIENT) };
        diskvault::prune::run(&pruner, &kept, &vault.pool, &|_| Ok(()), &Silent).unwrap();
        assert_whole(&vault, "stranger", &what);
        // Forgotten in what is the future here, or just now: not a day ago.
        let is_kept = !vault.names(Folder::Trash).is_empty();
        assert_eq!(is_kept, of_backups > of_prunes, "{what}");
        assert!(prune(&vault, &pruner, PATIENT).is_ok(), "{what}");
        vault.backup(&repository, "web01", &machine(3)).unwrap();
        vault.backup(&pruner, "web01", &machine(2)).unwrap();
        assert_whole(&vault, "stranger", &what);
        assert_clear(&vault, &what);
    }
}

#[test]
fn a_point_that_is_forgotten_meanwhile_can_still_come_back() {
    let (mut vault, ids) = with_four_days();
    let repository = vault.open("host").unwrap();
    forget_ids(&mut vault, &repository, &ids[..1]);
    let late = PointSet::load(&repository).unwrap().points[0].clone();
    let announce = |_: &Outlook| {
        let options = ForgetOptions { host: "host", reason: "policy", ends_pins: false };
        forget(&repository, &[&late], &options, &Silent).map(|_| ())
    };
    diskvault::prune::run(&repository, &options(PATIENT), &vault.pool, &announce, &Silent).unwrap();
    let contents = vault.known.remove(&late.id).unwrap();
    assert_eq!(vault.names(Folder::Trash), [format!("trash/{}", late.id)]);
    // The second mark may have let go what only this point needs; then it says so.
    match undo(&repository, &late.id.to_hex(), "host", &Silent) {
        Ok(new) => _ = vault.known.insert(new, contents),
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
    }
    assert_whole(&vault, "stranger", "forgotten meanwhile");
}

/// A disk with the same file somewhere on it; `phase` says where.
fn with_file_at(phase: usize) -> Parts {
    let mut disk = noise(phase as u64, 65_536);
    disk.resize(65_536 + phase, 7);
    disk.extend(noise(1, 1 << 20));
    disk.resize(disk.len().next_multiple_of(4096), 0);
    Parts::from([("vda".into(), disk)])
}

#[test]
fn pieces_of_chunks_stay_for_the_splices_that_take_them() {
    let mut vault = Vault::new(1);
    let repository = vault.open("host").unwrap();
    let first = vault.backup(&repository, "a", &with_file_at(0)).unwrap().point;
    let second = vault.backup(&repository, "b", &with_file_at(1000)).unwrap();
    assert!(second.statistics.new_bytes < 400 << 10, "most of it is spliced");
    // A third one needs all splices of the second and something of its own.
    let mut third = with_file_at(1000);
    third.get_mut("vda").unwrap()[..4096].copy_from_slice(&noise(8, 4096));
    let third_id = vault.backup(&repository, "b", &third).unwrap().point;
    forget_ids(&mut vault, &repository, &[first, second.point]);
    for round in 0..3 {
        let report = prune(&vault, &repository, PATIENT).unwrap();
        assert_eq!(report.kept_packs, 0, "round {round}: all that is needed was copied");
        assert_whole(&vault, "stranger", &format!("round {round}"));
    }
    // What was stored by its bytes and is now told as pieces comes back all the same.
    vault.backup(&repository, "c", &with_file_at(0)).unwrap();
    forget_ids(&mut vault, &repository, &[third_id]);
    prune(&vault, &repository, PATIENT).unwrap();
    assert_whole(&vault, "stranger", "the other way round");
    assert_eq!(damage_of(&vault.check(&vault.open("x").unwrap(), true).unwrap()), "");
    adopt(&mut vault, &with_file_at(0));
}

//! `stats` through the library: what only some points need is what forgetting and pruning them
//! frees, what is shared stays, and memory and answers do not depend on how often something is
//! named.

#![allow(clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;

use diskvault::monitor::{Monitor, Silent};
use diskvault::prune::choose::Unused;
use diskvault::prune::{Patience, PruneOptions, run as prune};
use diskvault::repository::Repository;
use diskvault::repository::locate::Locator;
use diskvault::repository::points::PointSet;
use diskvault::retention::forget::{ForgetOptions, forget};
use diskvault::stats::{Report, run};
use diskvault::storage::{Folder, Storage};
use diskvault_format::id::PointId;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::vault::{Parts, Vault, noise};

/// A machine on a day: 400 KiB that stay, 100 KiB of the day, zeros, and a stream of the day.
fn machine(day: u64) -> Parts {
    let mut disk = noise(1, 400 << 10);
    disk.resize(600 << 10, 0);
    disk.extend(noise(100 + day, 100 << 10));
    Parts::from([("vda".to_string(), disk), ("notes".to_string(), noise(200 + day, 20 << 10))])
}

fn measure(repository: &Repository, wanted: &[PointId]) -> Report {
    run(repository, &|id, _| wanted.contains(&id), &Silent).unwrap()
}

fn pack_bytes(vault: &Vault) -> u64 {
    vault.storage.list(Folder::Packs).unwrap().iter().map(|entry| entry.bytes).sum()
}

fn forget_and_prune(vault: &Vault, repository: &Repository, ids: &[PointId]) -> u64 {
    let before = pack_bytes(vault);
    let points = PointSet::load(repository).unwrap().points;
    let going: Vec<_> = points.iter().filter(|point| ids.contains(&point.id)).collect();
    let options = ForgetOptions { host: "host", reason: "test", ends_pins: false };
    forget(repository, &going, &options, &Silent).unwrap();
    let options = PruneOptions {
        max_unused: Unused::Bytes(0),
        max_repack: None,
        keep_forgotten: None,
        accepts_vanished: false,
        patience: Patience { stands_still: Duration::from_secs(3600), waits: true },
        host: "host",
    };
    prune(repository, &options, &vault.pool, &|_| Ok(()), &Silent).unwrap();
    before - pack_bytes(vault)
}

#[test]
fn what_only_some_points_need_is_what_goes_with_them() {
    let mut vault = Vault::new(1);
    let repository = vault.open("host").unwrap();
    let ids: Vec<PointId> = (1..=4)
        .map(|day| vault.backup(&repository, "web01", &machine(day)).unwrap().point)
        .collect();
    let all = measure(&repository, &ids);
    assert_eq!((all.described.points, all.described.series), (4, 1));
    assert_eq!((all.described.disks, all.described.streams), (1, 1));
    assert_eq!(all.described.virtual_bytes, 4 * (720 << 10));
    assert_eq!(all.described.data_bytes, 4 * (520 << 10));
    assert_eq!(all.needed.chunk_bytes, (400 << 10) + 4 * (120 << 10), "each chunk once");
    assert_eq!((all.needed, all.packs.unneeded_bytes), (all.exclusive, 0));
    assert_eq!(all.packs.data_pack_bytes + all.packs.map_pack_bytes, pack_bytes(&vault));

    let some = measure(&repository, &ids[1..3]);
    assert_eq!(some.needed.chunk_bytes, (400 << 10) + 2 * (120 << 10));
    assert_eq!(some.exclusive.chunk_bytes, 2 * (120 << 10));
    let expected = some.exclusive.stored_bytes();
    let freed = forget_and_prune(&vault, &repository, &ids[1..3]);
    // Padding and footers of packs go or come with it: 64 KiB for each.
    assert!(freed.abs_diff(expected) < 300 << 10, "{freed} freed, {expected} expected");
    let repository = vault.open("host").unwrap();
    let left = measure(&repository, &[ids[0], ids[3]]);
    assert_eq!(left.needed.chunk_bytes, all.needed.chunk_bytes - some.exclusive.chunk_bytes);
    assert_eq!(measure(&repository, &[ids[1]]).described.points, 0);
}

#[test]
fn what_was_forgotten_and_not_pruned_is_needed_by_nobody() {
    let mut vault = Vault::new(2);
    let repository = vault.open("host").unwrap();
    let one = vault.backup(&repository, "web01", &machine(1)).unwrap().point;
    let two = vault.backup(&repository, "web01", &machine(2)).unwrap().point;
    let alone = measure(&repository, &[one]).exclusive.stored_bytes();
    let points = PointSet::load(&repository).unwrap().points;
    let going: Vec<_> = points.iter().filter(|point| point.id == one).collect();
    let options = ForgetOptions { host: "host", reason: "test", ends_pins: false };
    forget(&repository, &going, &options, &Silent).unwrap();
    let report = measure(&repository, &[two]);
    let unneeded = report.packs.unneeded_bytes;
    // Shares of segments are rounded.
    assert!(alone > 100 << 10 && unneeded.abs_diff(alone) < 100, "{unneeded}, {alone}");
}

#[test]
fn points_that_are_not_finished_keep_what_they_need() {
    let mut vault = Vault::new(3);
    let repository = vault.open("host").unwrap();
    let one = vault.backup(&repository, "web01", &machine(1)).unwrap().point;
    let two = vault.backup(&repository, "web01", &machine(1)).unwrap().point;
    vault.storage.remove(format!("points/{two}.ok"));
    let report = measure(&repository, &[one]);
    assert_eq!(report.exclusive.chunks, 0, "the unfinished one needs all of it");
    assert!(report.needed.chunks > 0);
}

#[test]
fn damage_is_counted_and_does_not_end_it() {
    let mut vault = Vault::new(4);
    let repository = vault.open("host").unwrap();
    let one = vault.backup(&repository, "web01", &machine(1)).unwrap().point;
    let two = vault.backup(&repository, "db", &machine(2)).unwrap().point;
    // Has all its pages from another.
    let three = vault.backup(&repository, "copy", &machine(1)).unwrap().point;
    let locator = Locator::open(&repository, &Silent).unwrap();
    let kinds: Vec<_> = locator
        .listed()
        .iter()
        .map(|id| (*id, locator.pack(&repository, *id).unwrap().kind))
        .collect();
    drop(locator);
    let maps = |(_, kind): &&(_, _)| *kind == diskvault_format::pack::PackKind::Map;
    for (id, _) in kinds.iter().filter(maps) {
        let hex = id.to_hex();
        let name =
            vault.names(Folder::Packs).into_iter().find(|name| name.ends_with(&hex)).unwrap();
        let mut bytes = vault.storage.snapshot()[&name].clone();
        bytes[..8192].fill(0);
        vault.storage.insert(name, bytes);
    }
    let report = measure(&repository, &[one, two, three]);
    assert_eq!(report.damaged_points, 3);
    let hex = kinds[0].0.to_hex();
    let name = vault.names(Folder::Packs).into_iter().find(|name| name.ends_with(&hex)).unwrap();
    let bytes = vault.storage.snapshot()[&name].clone();
    vault.storage.insert(name, bytes[..bytes.len() - 100].to_vec());
    let report = measure(&vault.open("stranger").unwrap(), &[one, two]);
    assert_eq!(report.packs.unreadable, 1);
}

/// Runs something once, when the walk begins, and keeps what it is warned of.
struct Meanwhile<'a> {
    act: &'a (dyn Fn() + Sync),
    is_done: AtomicBool,
    warnings: Mutex<Vec<String>>,
}

impl Monitor for Meanwhile<'_> {
    fn start(&self, stage: &str, _total: Option<u64>) {
        if stage == "walking maps" && !self.is_done.swap(true, Ordering::Relaxed) {
            (self.act)();
        }
    }

    fn warn(&self, text: &str) {
        self.warnings.lock().unwrap().push(text.into());
    }
}

#[test]
fn a_prune_beside_it_is_no_damage() {
    let mut vault = Vault::new(5);
    let repository = vault.open("host").unwrap();
    let ids: Vec<PointId> = (1..=3)
        .map(|day| vault.backup(&repository, "web01", &machine(day)).unwrap().point)
        .collect();
    // The first point's packs are rewritten: the others need most of them.
    let act = || _ = forget_and_prune(&vault, &vault.open("pruner").unwrap(), &ids[..1]);
    let (is_done, warnings) = (AtomicBool::new(false), Mutex::default());
    let meanwhile = Meanwhile { act: &act, is_done, warnings };
    let before = vault.names(Folder::Packs);
    let report = run(&repository, &|id, _| id != ids[0], &meanwhile).unwrap();
    assert!(before.iter().any(|name| !vault.names(Folder::Packs).contains(name)));
    assert_eq!(*meanwhile.warnings.lock().unwrap(), Vec::<String>::new());
    assert_eq!(report, measure(&vault.open("stranger").unwrap(), &ids[1..]));
    assert_eq!(report.described.points, 2);
}

//! Parity through the whole program: a repository with it gets it for every pack, every damaged
//! pack heals, and nothing of it is left when its pack goes.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;

#[path = "crash/rig.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod rig;

use diskvault::monitor::Silent;
use diskvault::prune::choose::Unused;
use diskvault::prune::{Patience, PruneOptions, PruneReport};
use diskvault::repair::{RepairOptions, RepairReport, run as run_repair};
use diskvault::repository::Repository;
use diskvault::repository::pack_reader::pack_name;
use diskvault::repository::parity::{delete_orphaned_parity, heal_stored, parity_name};
use diskvault::repository::points::PointSet;
use diskvault::retention::forget::{ForgetOptions, forget};
use diskvault::storage::memory::FaultKind;
use diskvault::storage::{Folder, Storage};
use diskvault_format::id::PackId;
use diskvault_format::key_slot::{KdfCost, SlotKind};
use rig::{FAULTS, assert_whole, count, machine, recover, set};
use std::collections::BTreeSet;
use std::time::Duration;
use support::vault::{Vault, damage_of, passphrase};

const PER_MILLE: u32 = 20;

fn ids(vault: &Vault, folder: Folder) -> BTreeSet<PackId> {
    let entries = vault.storage.list(folder).unwrap();
    entries.iter().map(|entry| PackId::from_hex(entry.name.leaf()).unwrap()).collect()
}

/// Every pack has parity, and there is no other.
fn assert_paired(vault: &Vault, what: &str) {
    assert_eq!(ids(vault, Folder::Parity), ids(vault, Folder::Packs), "{what}");
}

fn prune(vault: &Vault, repository: &Repository) -> PruneReport {
    let options = PruneOptions {
        max_unused: Unused::MilliPercent(0),
        max_repack: None,
        keep_forgotten: None,
        accepts_vanished: false,
        patience: Patience { stands_still: Duration::from_secs(3600), waits: true },
        host: "host",
    };
    diskvault::prune::run(repository, &options, &vault.pool, &|_| Ok(()), &Silent).unwrap()
}

/// Bytes of packs and of parity.
fn bytes(vault: &Vault) -> u64 {
    let folders = [Folder::Packs, Folder::Parity].into_iter();
    folders.flat_map(|folder| vault.storage.list(folder).unwrap()).map(|entry| entry.bytes).sum()
}

#[test]
fn every_pack_of_a_backup_heals() {
    let mut vault = Vault::with_parity(1, PER_MILLE);
    let repository = vault.open("host").unwrap();
    assert_eq!(repository.config().parity_per_mille(), PER_MILLE);
    let report = vault.backup(&repository, "web01", &machine(1)).unwrap();
    assert_eq!(report.statistics.stored_bytes, bytes(&vault), "parity counts as stored");
    assert_paired(&vault, "backed up");
    let packs = ids(&vault, Folder::Packs);
    assert!(packs.len() >= 3, "{}", packs.len());
    let heal = |id| heal_stored(&vault.storage, id).unwrap().unwrap();
    for id in packs {
        let name = pack_name(id).unwrap();
        let good = vault.storage.snapshot()[name.as_str()].clone();
        for place in [0, 100, good.len() / 2, good.len() - 70, good.len() - 1] {
            vault.storage.corrupt(&name, |bytes| bytes[place] ^= 0x40);
            assert!(heal(id) == good, "byte {place} of {name}");
            vault.storage.insert(name.as_str(), good.clone());
        }
        vault.storage.corrupt(&name, |bytes| bytes.truncate(good.len() - 4000));
        assert!(heal(id) == good, "the end of {name}");
        vault.storage.insert(name.as_str(), good);
    }
    let report = vault.check(&repository, true).unwrap();
    assert_eq!(damage_of(&report), "");
    let told = report.findings.iter().any(|finding| finding.text.contains("parity"));
    assert!(!told, "parity is nothing to mention: {:?}", report.findings);
}

#[test]
fn without_parity_there_is_none() {
    let mut vault = Vault::new(1);
    let repository = vault.open("host").unwrap();
    vault.backup(&repository, "web01", &machine(1)).unwrap();
    assert!(ids(&vault, Folder::Parity).is_empty());
    let id = *ids(&vault, Folder::Packs).first().unwrap();
    assert!(heal_stored(&vault.storage, id).unwrap().is_none());
}

#[test]
fn keys_that_come_and_go_leave_the_amount() {
    let vault = Vault::with_parity(1, 500);
    let mut repository = vault.open("host").unwrap();
    let (kind, cost) = (SlotKind::Passphrase, KdfCost::RECOVERY);
    let added = repository.add_key(kind, &passphrase("two"), cost, "second", "host").unwrap();
    assert_eq!(vault.open("other").unwrap().config().parity_per_mille(), 500);
    repository.remove_key(&added.to_hex()).unwrap();
    let config = vault.open("other").unwrap().config().clone();
    assert_eq!((config.generation, config.parity_per_mille()), (3, 500));
}

#[test]
fn a_prune_leaves_parity_of_what_is_there_and_no_other() {
    let mut vault = Vault::with_parity(1, PER_MILLE);
    let repository = vault.open("host").unwrap();
    for day in 1..=4 {
        vault.backup(&repository, "web01", &machine(day)).unwrap();
    }
    let points = PointSet::load(&repository).unwrap().points;
    let going: Vec<_> = points.iter().take(3).collect();
    let options = ForgetOptions { host: "host", reason: "policy", ends_pins: false };
    forget(&repository, &going, &options, &Silent).unwrap();
    going.iter().for_each(|point| _ = vault.known.remove(&point.id));
    let (before, old) = (bytes(&vault), ids(&vault, Folder::Packs));
    let report = prune(&vault, &repository);
    assert!(report.copied_bytes > 0 && report.deleted_packs > 0, "{report:?}");
    assert_eq!(report.deleted_bytes - report.copied_bytes, before - bytes(&vault));
    assert_paired(&vault, "pruned");
    assert!(!ids(&vault, Folder::Packs).is_subset(&old), "something was copied");
    assert_whole(&vault, "stranger", "pruned");
}

#[test]
fn orphans_go_with_the_next_prune() {
    let mut vault = Vault::with_parity(1, PER_MILLE);
    let repository = vault.open("host").unwrap();
    vault.backup(&repository, "web01", &machine(1)).unwrap();
    let [gone, aside] = [PackId([1; 32]), PackId([2; 32])];
    let names = [gone, aside].map(|id| parity_name(id).unwrap());
    names.iter().for_each(|name| vault.storage.insert(name.as_str(), vec![7; 100]));
    // Not a name of the grammar: no object of ours.
    vault.storage.insert("parity/77", vec![7; 10]);
    let freed = delete_orphaned_parity(&repository, &|id| id == aside).unwrap();
    assert_eq!(freed, 100);
    let there = vault.storage.snapshot();
    assert!(!there.contains_key(names[0].as_str()) && there.contains_key(names[1].as_str()));
    assert_eq!(prune(&vault, &repository).deleted_bytes, 100);
    vault.storage.remove("parity/77");
    assert_paired(&vault, "pruned");
}

#[test]
fn a_backup_that_dies_between_a_pack_and_its_parity_does_no_harm() {
    let base = Vault::with_parity(1, PER_MILLE);
    let operations = count(&base, |vault| {
        let repository = vault.open("host").unwrap();
        vault.backup(&repository, "web01", &machine(1)).unwrap();
    });
    let mut unpaired = 0;
    for n in 0..operations {
        let mut vault = base.copy(1000 + n);
        let repository = vault.open("host").unwrap();
        set(&vault.storage, n, FaultKind::PowerCut, true);
        let result = vault.backup(&repository, "web01", &machine(1));
        recover(&vault.storage);
        if result.is_ok() {
            continue;
        }
        let (packs, parity) = (ids(&vault, Folder::Packs), ids(&vault, Folder::Parity));
        assert!(parity.is_subset(&packs), "operation {n}: parity before its pack");
        unpaired += usize::from(parity != packs);
        let repository = vault.open("host").unwrap();
        vault.backup(&repository, "web01", &machine(1)).unwrap();
        assert_whole(&vault, "stranger", &format!("power cut at {n}"));
    }
    assert!(unpaired > 0, "no cut met a pack without parity");
}

fn repair(vault: &Vault) -> diskvault::error::Result<RepairReport> {
    let repository = vault.open("host")?;
    let patience = Patience { stands_still: Duration::from_secs(3600), waits: true };
    let options = RepairOptions { packs: &[], patience, host: "host", is_dry_run: false };
    run_repair(&repository, &options, &vault.pool, &|_| Ok(()), &Silent)
}

/// Two packs rot; wherever a repair is stopped, they are whole in the end, as they were.
#[test]
fn a_repair_that_is_stopped_anywhere_heals_in_the_end() {
    let mut base = Vault::with_parity(5, PER_MILLE);
    let repository = base.open("host").unwrap();
    base.backup(&repository, "web01", &machine(1)).unwrap();
    let good = base.storage.snapshot();
    let packs: Vec<PackId> = ids(&base, Folder::Packs).into_iter().take(2).collect();
    for id in &packs {
        base.storage.corrupt(pack_name(*id).unwrap(), |bytes| bytes[300] ^= 1);
    }
    let operations = count(&base, |vault| drop(repair(vault).unwrap()));
    for (kind, once) in FAULTS {
        for n in 0..=operations {
            let what = format!("{kind:?} at {n} of {operations}, once {once}");
            let vault = base.copy(40 + n);
            set(&vault.storage, n, kind, once);
            let _ = repair(&vault);
            recover(&vault.storage);
            let report = repair(&vault).expect(&what);
            assert_eq!(report.lost, 0, "{what}");
            let now = vault.storage.snapshot();
            for id in &packs {
                let name = pack_name(*id).unwrap();
                assert!(now.get(name.as_str()) == good.get(name.as_str()), "{what}: {name}");
            }
            assert_whole(&vault, "stranger", &what);
        }
    }
}

#[test]
fn a_repair_makes_parity_where_it_is_missing_or_damaged() {
    let mut vault = Vault::with_parity(6, PER_MILLE);
    let repository = vault.open("host").unwrap();
    vault.backup(&repository, "web01", &machine(1)).unwrap();
    let good = vault.storage.snapshot();
    let names = vault.names(Folder::Parity);
    assert!(vault.storage.remove(&names[0]));
    assert!(vault.storage.corrupt(&names[1], |bytes| *bytes.last_mut().unwrap() ^= 1));
    let report = vault.check(&repository, true).unwrap();
    let id = names[1].rsplit('/').next().unwrap();
    assert!(damage_of(&report).contains(id), "{report:?}");
    assert!(report.findings.iter().any(|found| found.text.contains("1 packs have no parity")));
    assert_eq!(repair(&vault).unwrap().parity_made, 2);
    let now = vault.storage.snapshot();
    assert!(names.iter().all(|name| now[name] == good[name]));
    assert_eq!(damage_of(&vault.check(&repository, true).unwrap()), "");
}

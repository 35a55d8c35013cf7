//! One object on a bad sector ends nothing: it is told, saved from, and set aside.

use super::*;
use diskvault::storage::memory::{Fault, FaultKind};

/// Every object beside the configs and keys, with the byte that cannot be read.
fn places(vault: &Vault) -> Vec<(String, u64)> {
    let all = vault.storage.snapshot();
    let is_needed = |name: &String| name.starts_with("config/") || name.starts_with("keys/");
    let mut places = Vec::new();
    for (name, bytes) in all.iter().filter(|(name, _)| !is_needed(name)) {
        let bytes = bytes.len() as u64;
        let ends = [bytes / 2, bytes.saturating_sub(1)];
        places.extend(ends.into_iter().filter(|_| bytes > 0).map(|at| (name.clone(), at)));
    }
    places
}

fn repair_objects_of(vault: &Vault, cache: &str) -> usize {
    let options = ObjectRepairOptions { no_prune_runs: true, host: "host", is_dry_run: false };
    repair_objects(&vault.open(cache).unwrap(), &options, &Silent).unwrap().len()
}

#[test]
fn a_bad_sector_anywhere_is_found_and_ends_neither_check_nor_repair() {
    let base = with_points();
    let mut packs = 0;
    for (number, (name, at)) in places(&base).into_iter().enumerate() {
        let vault = base.copy(100 + number as u64);
        vault.storage.spoil(&name, at..at + 1);
        // A host that knows nothing has to read every footer.
        let report = vault.check(&vault.open("stranger").unwrap(), true).unwrap();
        let found = damage_of(&report);
        assert!(found.contains(name.rsplit('/').next().unwrap()), "{name} {at}: {found}");
        let readable = broken(&vault, "stranger");
        let mut repaired = repair_objects_of(&vault, "third");
        if name.starts_with("packs/") {
            let report = repair(&vault, "fourth");
            repaired = report.set_aside.len();
            packs += 1;
        }
        assert_eq!(repaired, 1, "{name} {at}");
        let aside = vault.names(Folder::Aside);
        assert_eq!(aside.len(), 1, "{name} {at}: the evidence is kept");
        let left = broken(&vault, "fifth");
        assert!(left.is_subset(&readable), "{name} {at}: {left:?} {readable:?}");
        // Backups and prunes go on.
        let repository = vault.open("sixth").unwrap();
        vault.try_backup(&repository, "new", &machine(1), &Silent).unwrap();
    }
    assert!(packs > 4, "{packs}");
}

#[test]
fn a_footer_on_a_bad_sector_stops_no_backup() {
    let base = with_points();
    for name in base.names(Folder::Packs) {
        let mut vault = base.copy(7);
        let bytes = vault.storage.snapshot()[&name].len() as u64;
        vault.storage.spoil(&name, bytes - 1..bytes);
        let repository = vault.open("stranger").unwrap();
        let made = vault.backup(&repository, "web01", &machine(3)).unwrap();
        // What the pack holds was stored again.
        let outcomes = vault.restore_all(&vault.open("other").unwrap()).unwrap();
        assert!(matches!(outcomes[&made.point], Ok(())), "{name}: {outcomes:?}");
        vault.storage.spoil(&name, 0..0);
        assert_eq!(broken(&vault, "third"), BTreeSet::new(), "{name}");
    }
}

#[test]
fn a_pack_of_which_nothing_can_be_read_stays_where_it_is() {
    let vault = with_points();
    let name = vault.names(Folder::Packs)[0].clone();
    vault.storage.spoil(&name, 0..u64::MAX);
    let report = repair(&vault, "host");
    assert_eq!((report.damaged.len(), report.kept, report.set_aside.len()), (1, 1, 0));
    vault.storage.spoil(&name, 0..0);
    assert_eq!(broken(&vault, "stranger"), BTreeSet::new());
    assert_eq!(repair(&vault, "other").damaged, []);
}

/// Nobody takes a storage that is away for one whose objects are damaged.
#[test]
fn a_storage_that_fails_altogether_ends_check_and_repair_and_changes_nothing() {
    let base = with_points();
    let operations = {
        let vault = base.copy(5);
        let repository = vault.open("host").unwrap();
        let before = vault.storage.operations();
        vault.check(&repository, true).unwrap();
        vault.storage.operations() - before
    };
    assert!(operations > 100, "{operations}");
    let both_end = |vault: &Vault, repository: &Repository, what: &str| {
        let before = vault.storage.snapshot();
        let options = ObjectRepairOptions { no_prune_runs: true, host: "host", is_dry_run: false };
        let checked = vault.check(repository, true).err().unwrap();
        let repaired = repair_objects(repository, &options, &Silent).unwrap_err();
        for error in [checked, repaired] {
            assert_eq!(error.kind(), ErrorKind::Storage, "{what}: {error:?}");
        }
        recover(&vault.storage);
        assert_eq!(vault.storage.snapshot(), before, "{what}");
    };
    for n in (0..operations).step_by(5) {
        let vault = base.copy(n);
        let repository = vault.open("host").unwrap();
        let at_operation = vault.storage.operations() + n;
        vault.storage.set_fault(Fault { at_operation, kind: FaultKind::Error, once: false });
        both_end(&vault, &repository, &format!("operation {n}"));
    }
    // A disk whose names are still known, and nothing else.
    let vault = base.copy(3);
    let repository = vault.open("host").unwrap();
    vault.storage.snapshot().keys().for_each(|name| vault.storage.spoil(name, 0..u64::MAX));
    both_end(&vault, &repository, "all spoilt");
}

//! Faults and crashes at every operation, one after the other, until a run meets none any more.
//!
//! Promises 1 and 5: a point that was reported as done is restorable after any crash at any
//! instant; a full disk, an I/O error or a power cut gives a clear error and no damage, and the
//! next run goes on without help.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;

#[path = "crash/rig.rs"]
mod rig;

use diskvault::error::ErrorKind;
use diskvault::repository::Repository;
use diskvault::storage::Folder;
use diskvault::storage::memory::FaultKind;
use diskvault_format::key_slot::{KdfCost, SlotKind};
use rig::{FAULTS, adopt, assert_whole, backup_with_fault, count, machine, quiet_backup};
use rig::{recover, set};
use std::sync::Arc;
use support::vault::{PASSWORD, SeededEnvironment, Vault, damage_of, init, passphrase};

/// A repository with one point.
fn with_one_point() -> Vault {
    let mut vault = Vault::new(1);
    let repository = vault.open("host").unwrap();
    vault.backup(&repository, "web01", &machine(1)).unwrap();
    vault
}

/// All faults at all operations of a backup of `day`.
fn every_fault(base: &Vault, day: u64) {
    // Opening is counted too, so that the last numbers strike nothing.
    let operations = count(base, |vault| quiet_backup(vault, day).unwrap());
    for n in 0..operations {
        for (kind, once) in FAULTS {
            backup_with_fault(base, day, n, kind, once);
        }
    }
}

#[test]
fn the_first_backup_survives_every_fault() {
    every_fault(&Vault::new(1), 1);
}

#[test]
fn the_second_backup_survives_every_fault() {
    every_fault(&with_one_point(), 2);
}

#[test]
fn init_survives_every_fault() {
    let fresh = |seed| Vault::empty(Arc::new(SeededEnvironment::new(seed)));
    let clean = fresh(1);
    init(&clean.storage, clean.environment.as_ref()).unwrap();
    for n in 0..clean.storage.operations() + 1 {
        for (kind, once) in FAULTS {
            let what = format!("{kind:?} at {n}, once {once}");
            let vault = fresh(2);
            set(&vault.storage, n, kind, once);
            let made = init(&vault.storage, vault.environment.as_ref());
            recover(&vault.storage);
            if let Err(error) = &made {
                assert!(matches!(error.kind(), ErrorKind::Storage | ErrorKind::NoSpace), "{what}");
            }
            let opened = vault.open("host");
            match &opened {
                Ok(_) => assert_whole(&vault, "host", &what),
                Err(error) => {
                    assert!(made.is_err(), "{what}: reported as done, but {error:?}");
                    assert_eq!(error.kind(), ErrorKind::NoRepository, "{what}");
                    // What is left keeps a new init from taking the place for empty, or is
                    // nothing that counts.
                    let again = init(&vault.storage, vault.environment.as_ref());
                    let has_instance = !vault.names(Folder::Instance).is_empty();
                    if let Err(error) = again {
                        assert!(has_instance, "{what}: {error:?}");
                        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{what}");
                    } else {
                        assert_whole(&vault, "host", &what);
                    }
                }
            }
        }
    }
}

fn add(repository: &mut Repository) -> diskvault::error::Result<()> {
    let secret = passphrase("two");
    repository
        .add_key(SlotKind::Passphrase, &secret, KdfCost::RECOVERY, "other", "host")
        .map(|_| ())
}

#[test]
fn adding_and_removing_keys_survives_every_fault() {
    let one = with_one_point();
    let two = one.copy(3);
    add(&mut two.open("host").unwrap()).unwrap();
    for n in 0..8 {
        for (kind, once) in FAULTS {
            let what = format!("{kind:?} at {n}, once {once}");
            let vault = one.copy(4);
            let mut repository = vault.open("host").unwrap();
            set(&vault.storage, n, kind, once);
            let added = add(&mut repository);
            recover(&vault.storage);
            assert_whole(&vault, "host", &what);
            if added.is_ok() {
                vault.open_as("host", "two").expect(&what);
            }
            if vault.open_as("stranger", "two").is_err() {
                add(&mut vault.open("host").unwrap()).expect(&what);
                vault.open_as("stranger", "two").expect(&what);
            }

            let vault = two.copy(5);
            let mut repository = vault.open("host").unwrap();
            let other = repository.key_slots().unwrap();
            let other = other.iter().find(|slot| !slot.is_current).unwrap().id.to_hex();
            set(&vault.storage, n, kind, once);
            let removed = repository.remove_key(&other);
            recover(&vault.storage);
            assert_whole(&vault, "host", &what);
            if removed.is_ok() {
                let error = vault.open_as("stranger", "two").map(|_| ()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::WrongKey, "{what}");
            }
            vault.open_as("stranger", PASSWORD).expect(&what);
        }
    }
}

/// A storage that says durable and is not lies outside of every promise: what it was told last
/// may be gone. It is not gone unseen, though, and nothing older suffers; and a lie is made good
/// by the next honest operation, as with a disk that keeps the order of its writes.
#[test]
fn a_storage_that_lies_about_durability_loses_only_what_came_last() {
    let base = with_one_point();
    let operations = count(&base, |vault| quiet_backup(vault, 2).unwrap());
    for n in 0..operations {
        for once in [true, false] {
            let what = format!("lies at {n}, once {once}");
            let mut vault = base.copy(6);
            let repository = vault.open("host").unwrap();
            set(&vault.storage, 0, FaultKind::LoseUnsynced, once);
            vault.storage.add_fault(diskvault::storage::memory::Fault {
                at_operation: vault.storage.operations() + n,
                kind: FaultKind::PowerCut,
                once: true,
            });
            let done = vault.backup(&repository, "web01", &machine(2));
            if done.is_ok() {
                vault.storage.power_cut();
            }
            recover(&vault.storage);
            adopt(&mut vault, &machine(2));
            // What it reported last is the one thing that nobody can promise then.
            if let Ok(report) = &done {
                let ok = format!("points/{}.ok", report.point);
                if !vault.storage.snapshot().contains_key(&ok) {
                    vault.known.remove(&report.point);
                }
            }
            assert_whole(&vault, "stranger", &what);
            quiet_backup(&mut vault, 2).expect(&what);
        }
    }
}

/// A storage that shows half an object under its final name breaks its promises too. The half is
/// seen by a check, is never taken for the whole, and harms nothing that was done before.
#[test]
fn half_an_object_under_a_final_name_is_seen_and_harms_nothing() {
    let base = with_one_point();
    let operations = count(&base, |vault| quiet_backup(vault, 2).unwrap());
    for n in 0..operations {
        let mut vault = base.copy(8);
        let repository = vault.open("host").unwrap();
        set(&vault.storage, n, FaultKind::TornPut { visible: true }, true);
        let result = vault.backup(&repository, "web01", &machine(2));
        recover(&vault.storage);
        let before = vault.storage.snapshot();
        adopt(&mut vault, &machine(2));
        let repository = vault.open("stranger").unwrap();
        let report = vault.check(&repository, true).unwrap();
        if result.is_err() && before.keys().any(|name| name.ends_with(".ok")) {
            // The half of an `ok` is the whole of it.
            let has_half = !damage_of(&report).is_empty();
            let is_ok = vault.known.len() > base.known.len();
            assert!(has_half || is_ok, "the half object at {n} was not seen");
        }
        assert!(vault.restore_all(&repository).unwrap().values().all(Result::is_ok), "{n}");
        let next = vault.backup(&repository, "web01", &machine(2)).unwrap().point;
        let repository = vault.open("later").unwrap();
        assert!(vault.restore_all(&repository).unwrap()[&next].is_ok(), "{n}");
    }
}

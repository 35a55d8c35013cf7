//! Forgetting and bringing back, seen from the storage: the order of things, every fault at every
//! operation, and what keeps a point from coming back.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;

#[path = "crash/rig.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod rig;

use diskvault::error::{ErrorKind, Result};
use diskvault::monitor::Silent;
use diskvault::repository::Repository;
use diskvault::repository::locate::Locator;
use diskvault::repository::notes::{Notes, put_note};
use diskvault::repository::objects::seal_record;
use diskvault::repository::points::{Point, PointSet};
use diskvault::retention::forget::{ForgetOptions, delete_lonely_oks, forget};
use diskvault::retention::undo::{forgotten, undo};
use diskvault::storage::memory::Operation;
use diskvault::storage::{Folder, ObjectName, Storage};
use diskvault_format::crypto::ObjectKind;
use diskvault_format::id::{PackId, PointId};
use diskvault_format::small::{Condemned, NOTE_PIN, NOTE_TAG, NOTE_UNPIN};
use rig::{FAULTS, assert_whole, count, machine, recover, set};
use support::vault::{Vault, damage_of};

const OPTIONS: ForgetOptions<'static> =
    ForgetOptions { host: "host", reason: "policy", ends_pins: false };

/// A repository with points of three days, the first one first.
fn with_three_points() -> (Vault, Vec<PointId>) {
    let mut vault = Vault::new(1);
    let repository = vault.open("host").unwrap();
    let ids = (1..=3)
        .map(|day| vault.backup(&repository, "web01", &machine(day)).unwrap().point)
        .collect();
    (vault, ids)
}

fn point(repository: &Repository, id: PointId) -> Option<Point> {
    PointSet::load(repository).unwrap().points.into_iter().find(|point| point.id == id)
}

fn forget_id(repository: &Repository, id: PointId) -> Result<()> {
    let found = point(repository, id).unwrap();
    forget(repository, &[&found], &OPTIONS, &Silent).map(|_| ())
}

#[test]
fn forgetting_is_explained_before_the_point_is_gone() {
    let (vault, ids) = with_three_points();
    let repository = vault.open("host").unwrap();
    let before = vault.storage.snapshot();
    let began = vault.storage.operations() as usize;
    forget_id(&repository, ids[1]).unwrap();
    let log = vault.storage.log().split_off(began);
    let changes: Vec<(Operation, String)> = log
        .into_iter()
        .filter(|(operation, _)| matches!(operation, Operation::Put | Operation::Delete))
        .collect();
    let manifest = format!("points/{}", ids[1]);
    assert_eq!(changes.len(), 4);
    assert!(changes[0].1.starts_with(&format!("notes/{}-", ids[1])));
    assert_eq!(changes[1], (Operation::Put, format!("trash/{}", ids[1])));
    assert_eq!(changes[2], (Operation::Delete, manifest.clone()));
    assert_eq!(changes[3], (Operation::Delete, format!("{manifest}.ok")));
    let after = vault.storage.snapshot();
    assert_eq!(after[&format!("trash/{}", ids[1])], before[&manifest]);
    let report = vault.check(&vault.open("stranger").unwrap(), true).unwrap();
    assert_eq!(damage_of(&report), "");
}

#[test]
fn forgetting_survives_every_fault() {
    let (base, ids) = with_three_points();
    let operations = count(&base, |vault| {
        let repository = vault.open("host").unwrap();
        forget_id(&repository, ids[0]).unwrap();
    });
    for n in 0..operations {
        for (kind, once) in FAULTS {
            let what = format!("{kind:?} at {n}, once {once}");
            let mut vault = base.copy(500 + n);
            let repository = vault.open("host").unwrap();
            let found = point(&repository, ids[0]).unwrap();
            set(&vault.storage, n, kind, once);
            let result = forget(&repository, &[&found], &OPTIONS, &Silent);
            recover(&vault.storage);
            let is_there = point(&vault.open("host").unwrap(), ids[0]).is_some();
            assert!(!(result.is_ok() && is_there), "{what}: reported as forgotten");
            if !is_there {
                vault.known.remove(&ids[0]);
            }
            assert_whole(&vault, "host", &what);
            // The next one goes on.
            let repository = vault.open("host").unwrap();
            if is_there {
                forget_id(&repository, ids[0]).expect(&what);
                vault.known.remove(&ids[0]);
            }
            let points = PointSet::load(&repository).unwrap();
            delete_lonely_oks(&repository, &points).expect(&what);
            assert!(PointSet::load(&repository).unwrap().lonely_oks.is_empty(), "{what}");
            assert_whole(&vault, "later", &what);
            assert_eq!(forgotten(&repository).unwrap().0.len(), 1, "{what}");
        }
    }
}

#[test]
fn what_was_forgotten_comes_back_where_it_stood() {
    let (mut vault, ids) = with_three_points();
    let repository = vault.open("host").unwrap();
    let old = point(&repository, ids[1]).unwrap();
    let tag = vec![("state".to_string(), "good".to_string())];
    put_note(&repository, ids[1], NOTE_TAG, "host", tag).unwrap();
    forget_id(&repository, ids[1]).unwrap();
    let new = undo(&repository, &ids[1].to_hex()[..8], "host", &Silent).unwrap();
    let contents = vault.known.remove(&ids[1]).unwrap();
    vault.known.insert(new, contents);
    let points = PointSet::load(&repository).unwrap();
    let order: Vec<PointId> = points.series("web01").map(|point| point.id).collect();
    assert_eq!(order, [ids[0], new, ids[2]]);
    let back = point(&repository, new).unwrap();
    assert_eq!(back.manifest.time_unix_ns, old.manifest.time_unix_ns);
    assert_eq!(back.manifest.republishes, Some(ids[1]));
    assert_eq!(Notes::load(&repository).unwrap().tags(&back)["state"], "good");
    assert!(forgotten(&repository).unwrap().0.is_empty());
    assert!(vault.names(Folder::Leases).is_empty());
    assert_whole(&vault, "stranger", "brought back");
    // Once more: what holds for it does not get lost on the way.
    forget_id(&repository, new).unwrap();
    let again = undo(&repository, &new.to_hex(), "host", &Silent).unwrap();
    let back = point(&repository, again).unwrap();
    assert_eq!(Notes::load(&repository).unwrap().tags(&back)["state"], "good");
}

/// The packs that only this day's point has chunks in.
fn packs_of_day(vault: &Vault, repository: &Repository, day: u64) -> Vec<PackId> {
    let locator = Locator::open(repository, &Silent).unwrap();
    let disk = &machine(day)["vda"];
    let from = (day as usize * 48) << 10;
    let id = repository.keys().chunk_id(&disk[from..from + 4096]);
    assert!(!vault.names(Folder::Packs).is_empty());
    vec![locator.find(repository, &id.0).unwrap().unwrap().pack.id]
}

#[test]
fn a_point_does_not_come_back_without_all_it_needs() {
    for is_condemned in [true, false] {
        let (vault, ids) = with_three_points();
        let repository = vault.open("host").unwrap();
        forget_id(&repository, ids[1]).unwrap();
        let packs = packs_of_day(&vault, &repository, 2);
        if is_condemned {
            let name = ObjectName::new(Folder::Condemned, &"ab".repeat(16)).unwrap();
            let list = Condemned { packs, host: "other".into(), time_unix_ns: 1 };
            let keys = repository.keys();
            let object =
                seal_record(keys, ObjectKind::Condemned, Some(&name), &[3; 24], &list).unwrap();
            vault.storage.put_new(&name, &object).unwrap();
        } else {
            for id in packs {
                let hex = id.to_hex();
                assert!(vault.storage.remove(format!("packs/{}/{hex}", &hex[..2])));
            }
        }
        let error = undo(&repository, &ids[1].to_hex(), "host", &Silent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
        assert!(error.full_text().contains("is stored no more"), "{error:?}");
        assert!(point(&repository, ids[1]).is_none());
        assert_eq!(forgotten(&repository).unwrap().0.len(), 1, "it stays in the trash");
        assert!(vault.names(Folder::Leases).is_empty());
    }
}

#[test]
fn a_pinned_point_stays_whoever_pinned_it() {
    let (vault, ids) = with_three_points();
    let repository = vault.open("host").unwrap();
    let found: Vec<Point> = PointSet::load(&repository).unwrap().points;
    let all: Vec<&Point> = found.iter().collect();
    let reason = vec![("reason".to_string(), "mounted".to_string())];
    put_note(&repository, ids[2], NOTE_PIN, "other", reason.clone()).unwrap();
    put_note(&repository, ids[2], NOTE_PIN, "host", reason).unwrap();
    let error = forget(&repository, &all, &OPTIONS, &Silent).unwrap_err();
    assert_eq!((error.kind(), error.kind().exit_code()), (ErrorKind::Pinned, 1));
    assert!(error.full_text().ends_with("it is pinned (mounted)"), "{error:?}");
    assert_eq!(PointSet::load(&repository).unwrap().points.len(), 3, "none is gone");
    // One of the two pins ends.
    let notes = Notes::load(&repository).unwrap();
    let pins = notes.pins(&found[2]).unwrap();
    assert_eq!(pins.len(), 2);
    let first = vec![("pin".to_string(), pins[0].random.clone())];
    put_note(&repository, ids[2], NOTE_UNPIN, "host", first).unwrap();
    assert_eq!(forget_id(&repository, ids[2]).unwrap_err().kind(), ErrorKind::Pinned);
    put_note(&repository, ids[2], NOTE_UNPIN, "host", Vec::new()).unwrap();
    forget_id(&repository, ids[2]).unwrap();
}

#[test]
fn a_note_that_cannot_be_read_may_be_a_pin() {
    let (vault, ids) = with_three_points();
    let repository = vault.open("host").unwrap();
    put_note(&repository, ids[0], NOTE_PIN, "host", Vec::new()).unwrap();
    let note = vault.names(Folder::Notes).remove(0);
    vault.storage.corrupt(&note, |bytes| *bytes.last_mut().unwrap() ^= 1);
    let error = forget_id(&repository, ids[0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damage);
    assert!(error.full_text().contains("cannot tell whether point"), "{error:?}");
    forget_id(&repository, ids[1]).unwrap();
    assert!(point(&repository, ids[0]).is_some());
}

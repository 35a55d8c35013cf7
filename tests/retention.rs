//! Forgetting and bringing back, seen from the storage: the order of things, every fault at every
//! operation, and what keeps a point from coming back.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;

#[path = "crash/rig.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod rig;

use diskvault::error::{ErrorKind, Result};
use diskvault::monitor::{Monitor, Silent};
use diskvault::repository::Repository;
use diskvault::repository::entries::places_of;
use diskvault::repository::locate::Locator;
use diskvault::repository::map_reader::MapReader;
use diskvault::repository::notes::{Notes, put_note};
use diskvault::repository::objects::seal_record;
use diskvault::repository::points::{Point, PointSet, delete_lonely_oks};
use diskvault::repository::reach::{Visitor, visit};
use diskvault::retention::forget::{ForgetOptions, forget};
use diskvault::retention::undo::{forgotten, undo};
use diskvault::storage::memory::Operation;
use diskvault::storage::{Folder, ObjectName, Storage};
use diskvault_format::crypto::ObjectKind;
use diskvault_format::id::{ChunkId, PackId, PageId, PointId};
use diskvault_format::small::{Condemned, NOTE_PIN, NOTE_TAG, NOTE_UNPIN};
use rig::{FAULTS, assert_whole, count, machine, recover, set};
use std::collections::BTreeSet;
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
    assert_eq!(Notes::of_points(&repository, [&back]).unwrap().tags(&back)["state"], "good");
    assert!(forgotten(&repository).unwrap().0.is_empty());
    assert!(vault.names(Folder::Leases).is_empty());
    assert_whole(&vault, "stranger", "brought back");
    // Once more: what holds for it does not get lost on the way.
    forget_id(&repository, new).unwrap();
    let again = undo(&repository, &new.to_hex(), "host", &Silent).unwrap();
    let back = point(&repository, again).unwrap();
    assert_eq!(Notes::of_points(&repository, [&back]).unwrap().tags(&back)["state"], "good");
}

#[test]
fn a_point_does_not_come_back_without_all_it_needs() {
    let (base, ids) = with_three_points();
    let repository = base.open("host").unwrap();
    forget_id(&repository, ids[1]).unwrap();
    let before: BTreeSet<String> = base.names(Folder::Packs).into_iter().collect();
    // Each pack in turn, of chunks and of map pages: some are of this point alone.
    let mut refused = 0;
    for pack in &before {
        for is_condemned in [true, false] {
            let vault = base.copy(77);
            let repository = vault.open("host").unwrap();
            if is_condemned {
                let packs = vec![PackId::from_hex(pack.rsplit('/').next().unwrap()).unwrap()];
                let name = ObjectName::new(Folder::Condemned, &"ab".repeat(16)).unwrap();
                let list = Condemned { packs, host: "other".into(), time_unix_ns: 1 };
                let keys = repository.keys();
                let object =
                    seal_record(keys, ObjectKind::Condemned, Some(&name), &[3; 32], &list).unwrap();
                vault.storage.put_new(&name, &object).unwrap();
            } else {
                assert!(vault.storage.remove(pack));
            }
            let Err(error) = undo(&repository, &ids[1].to_hex(), "host", &Silent) else { continue };
            let kinds = [ErrorKind::NotFound, ErrorKind::Damage];
            assert!(kinds.contains(&error.kind()), "{error:?}");
            assert!(point(&repository, ids[1]).is_none());
            assert_eq!(PointSet::load(&repository).unwrap().points.len(), 2);
            assert_eq!(forgotten(&repository).unwrap().0.len(), 1, "it stays in the trash");
            assert!(vault.names(Folder::Leases).is_empty());
            refused += 1;
        }
    }
    // Of the point's own and the shared ones, by what the point needs.
    let locator = Locator::open(&repository, &Silent).unwrap();
    let mut needed = Needed { locator: &locator, packs: BTreeSet::new() };
    let old = forgotten(&repository).unwrap().0.remove(0);
    visit(&MapReader::new(&repository, &locator), &old.manifest, &mut needed).unwrap();
    assert_eq!(refused, 2 * needed.packs.len());
}

/// The packs of all that is visited.
struct Needed<'a> {
    locator: &'a Locator,
    packs: BTreeSet<PackId>,
}

impl Visitor for Needed<'_> {
    fn page(&mut self, id: PageId) -> Result<bool> {
        self.packs.extend(places_of(self.locator.index(), &id.0)?.iter().map(|place| place.pack));
        Ok(true)
    }

    fn chunk(&mut self, id: ChunkId) -> Result<()> {
        self.packs.extend(places_of(self.locator.index(), &id.0)?.iter().map(|place| place.pack));
        Ok(())
    }
}

#[test]
fn bringing_back_survives_every_fault_and_happens_once() {
    let (mut base, ids) = with_three_points();
    let repository = base.open("host").unwrap();
    forget_id(&repository, ids[1]).unwrap();
    let contents = base.known.remove(&ids[1]).unwrap();
    drop(repository);
    let operations = count(&base, |vault| {
        undo(&vault.open("host").unwrap(), &ids[1].to_hex(), "host", &Silent).unwrap();
    });
    for n in 0..operations {
        let (kind, once) = FAULTS[n as usize % FAULTS.len()];
        let what = format!("{kind:?} at {n}, once {once}");
        let mut vault = base.copy(800 + n);
        let repository = vault.open("host").unwrap();
        set(&vault.storage, n, kind, once);
        let _ = undo(&repository, &ids[1].to_hex(), "host", &Silent);
        recover(&vault.storage);
        drop(repository);
        let repository = vault.open("host").unwrap();
        let again = undo(&repository, &ids[1].to_hex(), "host", &Silent);
        if let Err(error) = &again {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{what}: {error:?}");
        }
        let points = PointSet::load(&repository).unwrap();
        let back: Vec<PointId> = points
            .points
            .iter()
            .filter(|point| point.manifest.republishes == Some(ids[1]))
            .map(|point| point.id)
            .collect();
        assert_eq!(back.len(), 1, "{what}: once");
        vault.known.insert(back[0], contents.clone());
        assert_whole(&vault, "host", &what);
        assert!(forgotten(&repository).unwrap().0.is_empty(), "{what}");
    }
}

#[test]
fn a_point_that_is_still_there_is_not_brought_back() {
    let (vault, ids) = with_three_points();
    let repository = vault.open("host").unwrap();
    // As a forget that was stopped behind its third step leaves it.
    let manifest = vault.storage.snapshot()[&format!("points/{}", ids[0])].clone();
    vault.storage.insert(format!("trash/{}", ids[0]), manifest);
    let error = undo(&repository, &ids[0].to_hex(), "host", &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(forgotten(&repository).unwrap().0.is_empty());
    // A copy in the trash that is no copy is made anew before the point goes.
    let trash = format!("trash/{}", ids[0]);
    vault.storage.corrupt(&trash, |bytes| *bytes.last_mut().unwrap() ^= 1);
    forget_id(&repository, ids[0]).unwrap();
    undo(&repository, &ids[0].to_hex(), "host", &Silent).unwrap();
}

/// Pins a point when somebody begins to forget points.
struct PinMeanwhile<'a>(&'a Repository, PointId);

impl Monitor for PinMeanwhile<'_> {
    fn start(&self, _stage: &str, _total: Option<u64>) {
        put_note(self.0, self.1, NOTE_PIN, "other", Vec::new()).unwrap();
    }
}

#[test]
fn a_pin_that_comes_meanwhile_is_respected() {
    let (vault, ids) = with_three_points();
    let repository = vault.open("host").unwrap();
    let found = point(&repository, ids[0]).unwrap();
    let monitor = PinMeanwhile(&repository, ids[0]);
    let error = forget(&repository, &[&found], &OPTIONS, &monitor).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Pinned);
    assert!(point(&repository, ids[0]).is_some());
    let forced = ForgetOptions { ends_pins: true, ..OPTIONS };
    forget(&repository, &[&found], &forced, &Silent).unwrap();
    assert!(point(&repository, ids[0]).is_none());
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
    // One of the two pins ends, whatever the clocks say.
    let notes = Notes::of_points(&repository, &found).unwrap();
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
    let forced = ForgetOptions { ends_pins: true, ..OPTIONS };
    let found = point(&repository, ids[2]).unwrap();
    forget(&repository, &[&found], &forced, &Silent).unwrap();
    forget_id(&repository, ids[1]).unwrap();
    assert!(point(&repository, ids[0]).is_some());
}

/// Years of hourly backups leave a removal note for each point: nobody reads them to list what is
/// there.
#[test]
fn notes_of_forgotten_points_are_not_read_for_those_that_are_there() {
    let (vault, ids) = with_three_points();
    let repository = vault.open("host").unwrap();
    put_note(&repository, ids[2], NOTE_TAG, "host", vec![("state".into(), "good".into())]).unwrap();
    forget_id(&repository, ids[0]).unwrap();
    let points = PointSet::load(&repository).unwrap();
    let before = vault.storage.log().len();
    let notes = Notes::of_points(&repository, &points.points).unwrap();
    assert_eq!(notes.tags(points.latest("web01").unwrap())["state"], "good");
    assert!(points.doubts(&repository).unwrap().is_empty());
    let read: Vec<String> =
        vault.storage.log().split_off(before).into_iter().map(|op| op.1).collect();
    let of_removed = read.iter().filter(|name| name.contains(&ids[0].to_hex()));
    assert_eq!(of_removed.count(), 0, "{read:?}");
    assert!(read.iter().any(|name| name.contains(&ids[2].to_hex())));
}

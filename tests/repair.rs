//! Repair: what can be read of a damaged pack is saved, what cannot is named, and the next backup
//! that meets it heals the points that need it.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;
#[path = "repair/unreadable.rs"]
mod unreadable;

#[path = "crash/rig.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod rig;

use diskvault::environment::Environment;
use diskvault::error::{ErrorKind, Result};
use diskvault::monitor::Silent;
use diskvault::prune::PruneOptions;
use diskvault::prune::choose::Unused;
use diskvault::repair::{
    ObjectRepairOptions, RepairOptions, RepairReport, repair_objects, run as run_repair,
};
use diskvault::repository::Repository;
use diskvault::repository::condemned::{Patience, put_list};
use diskvault::repository::locate::Locator;
use diskvault::repository::pack_reader::{OpenPack, pack_name};
use diskvault::repository::points::{Point, PointSet};
use diskvault::repository::session::Session;
use diskvault::retention::forget::{ForgetOptions, forget};
use diskvault::storage::memory::MemoryStorage;
use diskvault::storage::{Folder, ObjectEntry, ObjectName, Storage};
use diskvault_format::id::{PackId, PointId};
use diskvault_format::pack::{HEADER_BYTES, PackKind, TRAILER_BYTES};
use rig::{FAULTS, count, machine, recover, set};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use support::vault::{PASSWORD, Parts, Vault, damage_of, noise, passphrase};

const PATIENT: Patience = Patience { stands_still: Duration::from_secs(3600), waits: true };
const NOT_WAITING: Patience = Patience { stands_still: Duration::from_secs(3600), waits: false };

fn repair_with(vault: &Vault, cache: &str, patience: Patience) -> Result<RepairReport> {
    let repository = vault.open(cache)?;
    let options = RepairOptions { packs: &[], patience, host: "host", is_dry_run: false };
    run_repair(&repository, &options, &vault.pool, &|_| Ok(()), &Silent)
}

fn repair(vault: &Vault, cache: &str) -> RepairReport {
    repair_with(vault, cache, PATIENT).unwrap()
}

fn with_file_at(phase: usize) -> Parts {
    let mut disk = noise(phase as u64, 65_536);
    disk.resize(65_536 + phase, 7);
    disk.extend(noise(1, 300 << 10));
    disk.resize(disk.len().next_multiple_of(4096), 0);
    Parts::from([("vda".into(), disk)])
}

/// Points with everything a pack can hold: chunks of disks and streams, pages, splices.
fn with_points() -> Vault {
    let mut vault = Vault::new(1);
    let repository = vault.open("host").unwrap();
    for day in 1..=2 {
        vault.backup(&repository, "web01", &machine(day)).unwrap();
    }
    vault.backup(&repository, "a", &with_file_at(0)).unwrap();
    vault.backup(&repository, "b", &with_file_at(1000)).unwrap();
    vault
}

fn open_packs(repository: &Repository) -> Vec<Arc<OpenPack>> {
    let locator = Locator::open(repository, &Silent).unwrap();
    locator.listed().iter().map(|id| locator.pack(repository, *id).unwrap()).collect()
}

/// Every entry of every footer, by id and whether it is a splice, and the packs that hold it.
type Holders = BTreeMap<([u8; 32], bool), BTreeSet<PackId>>;

fn holders(packs: &[Arc<OpenPack>]) -> Holders {
    let mut holders = Holders::new();
    for pack in packs {
        for entry in pack.footer.segments.iter().flat_map(|segment| &segment.entries) {
            let is_splice = entry.kind == diskvault_format::segment::EntryKind::Splice;
            holders.entry((entry.id, is_splice)).or_default().insert(pack.id);
        }
    }
    holders
}

/// Points that cannot be restored.
fn broken(vault: &Vault, cache: &str) -> BTreeSet<PointId> {
    let outcomes = vault.restore_all(&vault.open(cache).unwrap()).unwrap();
    let known = vault.known.keys().copied();
    known.filter(|point| !matches!(outcomes.get(point), Some(Ok(())))).collect()
}

type Change = Box<dyn Fn(&mut Vec<u8>)>;

/// Ways to damage one part of a pack, and whether something of its segments is lost by it.
fn ways(pack: &OpenPack) -> Vec<(String, Change, bool)> {
    let bytes = pack.bytes as usize;
    let first = &pack.footer.segments[0];
    let last = pack.footer.segments.last().unwrap();
    let (frame, body) = (first.offset as usize, first.offset as usize + 40);
    let footer = pack.trailer.footer_offset as usize;
    let flip = |at: usize| -> Change { Box::new(move |bytes| bytes[at] ^= 4) };
    let mut ways = vec![
        ("magic of the header".to_string(), flip(0), false),
        ("wrap of the header".into(), flip(100), false),
        ("first frame".into(), flip(frame + 5), false),
        ("padding".into(), flip(footer - 1), false),
        ("footer".into(), flip(footer + 9), false),
        ("footer offset".into(), flip(bytes - TRAILER_BYTES + 129), false),
        ("wrap of the trailer".into(), flip(bytes - TRAILER_BYTES + 60), false),
        ("magic of the trailer".into(), flip(bytes - 1), false),
        ("first segment".into(), flip(body), true),
    ];
    let end = (last.offset + last.stored_bytes()) as usize;
    ways.push((
        "footer and trailer cut off".into(),
        Box::new(move |bytes| bytes.truncate(end)),
        false,
    ));
    if pack.footer.segments.len() > 1 {
        let cut = last.offset as usize + 10;
        ways.push(("cut in the last segment".into(), Box::new(move |b| b.truncate(cut)), true));
        // The frame that tells where a segment is, and the footer that would tell as well.
        let both = move |bytes: &mut Vec<u8>| {
            bytes[frame] ^= 4;
            bytes[footer + 9] ^= 4;
        };
        ways.push(("first frame and footer".into(), Box::new(both), false));
    }
    let ends = move |data: &mut Vec<u8>| {
        data[..HEADER_BYTES].fill(0);
        data[bytes - TRAILER_BYTES..].fill(0);
    };
    ways.push(("both ends".into(), Box::new(ends), true));
    ways
}

#[test]
fn what_can_be_read_is_saved_and_the_next_backup_heals_the_rest() {
    let vault = with_points();
    let packs = open_packs(&vault.open("host").unwrap());
    let kinds: BTreeSet<u8> = packs.iter().map(|pack| pack.kind as u8).collect();
    assert_eq!(kinds.len(), 2);
    let mut cells = 0;
    for pack in &packs {
        for (what, damage, loses) in ways(pack) {
            let what = format!("{:?} pack {}: {what}", pack.kind, pack.id);
            assert_saved(&vault, pack.id, &*damage, loses, &what);
            cells += 1;
        }
    }
    assert!(cells > 50, "{cells}");
}

fn assert_saved(base: &Vault, id: PackId, damage: &dyn Fn(&mut Vec<u8>), loses: bool, what: &str) {
    let mut vault = base.copy(7);
    let name = pack_name(id).unwrap();
    let mut damaged = Vec::new();
    assert!(vault.storage.corrupt(&name, |bytes| {
        damage(bytes);
        damaged.clone_from(bytes);
    }));
    let report = repair(&vault, "host");
    assert_eq!(report.damaged.len(), 1, "{what}");
    assert_eq!((report.set_aside.len(), report.kept), (1, 0), "{what}: {report:?}");
    // The evidence is there, byte for byte, and nowhere else.
    let all = vault.storage.snapshot();
    assert!(all[report.set_aside[0].as_str()] == damaged, "{what}");
    assert!(!all.contains_key(name.as_str()), "{what}");
    for folder in [Folder::Condemned, Folder::Leases] {
        assert_eq!(vault.names(folder), [""; 0], "{what}");
    }
    let broken_now = broken(&vault, "stranger");
    assert_eq!(report.lost > 0, loses, "{what}: {report:?}");
    assert_eq!(!broken_now.is_empty(), loses, "{what}");
    assert_eq!(vault.names(Folder::Lost).len(), usize::from(loses), "{what}");
    if !loses {
        let repository = vault.open("stranger").unwrap();
        assert_eq!(damage_of(&vault.check(&repository, true).unwrap()), "", "{what}");
    }
    // The machines are backed up again as they were: what is met is stored again.
    let contents: BTreeMap<PointId, Parts> = vault.known.clone();
    for (number, cache) in ["host", "stranger"].into_iter().enumerate() {
        let repository = vault.open(cache).unwrap();
        for parts in contents.values() {
            vault.backup(&repository, &format!("again{number}"), parts).unwrap();
        }
    }
    assert_eq!(broken(&vault, "host"), BTreeSet::new(), "{what}");
    assert_eq!(vault.names(Folder::Lost), [""; 0], "{what}: nothing is lost any more");
    let repository = vault.open("third").unwrap();
    assert_eq!(damage_of(&vault.check(&repository, true).unwrap()), "", "{what}");
    let again = repair(&vault, "host");
    assert_eq!((again.damaged.len(), again.lost), (0, 0), "{what}");
}

#[test]
fn what_another_pack_holds_as_well_is_not_lost() {
    let mut vault = with_points();
    let repository = vault.open("host").unwrap();
    let before = holders(&open_packs(&repository));
    // Another host, which saw nothing of this, stores the same once more.
    let shared = vault.copy(3);
    let twin = shared.open("twin").unwrap();
    for name in shared.names(Folder::Packs) {
        shared.storage.remove(name);
    }
    let mut shared = shared;
    for (_, parts) in vault.known.clone() {
        shared.backup(&twin, "twin", &parts).unwrap();
    }
    for name in shared.names(Folder::Packs) {
        let bytes = shared.storage.snapshot()[&name].clone();
        vault.storage.insert(name, bytes);
    }
    for (number, id) in
        before.values().flatten().copied().collect::<BTreeSet<_>>().into_iter().enumerate()
    {
        if number % 2 == 0 {
            let name = pack_name(id).unwrap();
            vault.storage.corrupt(name, |bytes| bytes.fill(0));
        }
    }
    let report = repair(&vault, "stranger");
    assert!(report.damaged.len() > 1);
    assert_eq!((report.lost, report.saved_entries), (0, 0), "{report:?}");
    assert_eq!(broken(&vault, "stranger"), BTreeSet::new());
    vault.known.clear();
}

/// Two packs are damaged; everything that could be read before can be read whatever happens.
#[test]
fn a_repair_survives_every_fault() {
    let mut base = with_points();
    let packs = open_packs(&base.open("host").unwrap());
    for pack in packs.iter().filter(|pack| pack.kind == PackKind::Data).take(2) {
        let at = pack.footer.segments[0].offset as usize + 50;
        assert!(base.storage.corrupt(pack_name(pack.id).unwrap(), |bytes| bytes[at] ^= 1));
    }
    let lost = broken(&base, "stranger");
    assert!(!lost.is_empty());
    base.known.retain(|point, _| !lost.contains(point));
    assert!(!base.known.is_empty());
    let operations = count(&base, |vault| drop(repair(vault, "host")));
    for (kind, once) in FAULTS {
        for n in 0..=operations {
            let what = format!("{kind:?} at {n} of {operations}, once {once}");
            let vault = base.copy(100 + n);
            set(&vault.storage, n, kind, once);
            let result = repair_with(&vault, "host", PATIENT);
            recover(&vault.storage);
            if let Err(error) = &result {
                assert!(
                    !error.kind().is_finding() || error.kind() == ErrorKind::NotFound,
                    "{what}: {error:?}"
                );
            }
            assert_readable(&vault, &what);
            // The next one goes on, here and elsewhere.
            for cache in ["host", "other"] {
                let report = repair_with(&vault, cache, PATIENT).expect(&what);
                assert_eq!(report.kept, 0, "{what}");
            }
            assert_readable(&vault, &what);
            assert_eq!(vault.names(Folder::Aside).len(), 2, "{what}");
            // A list whose owner forgot it is for the next prune.
            assert!(vault.names(Folder::Condemned).len() <= 1, "{what}");
        }
    }
}

fn assert_readable(vault: &Vault, what: &str) {
    let outcomes = vault.restore_all(&vault.open("stranger").unwrap()).unwrap();
    for point in vault.known.keys() {
        assert!(matches!(outcomes.get(point), Some(Ok(()))), "{what}: {:?}", outcomes.get(point));
    }
}

#[test]
fn a_running_backup_is_waited_for() {
    let vault = with_points();
    let name = vault.names(Folder::Packs)[0].clone();
    assert!(vault.storage.corrupt(&name, |bytes| bytes[300] ^= 1));
    let repository = vault.open("writer").unwrap();
    let session = Session::begin(&repository, "writer", &Silent).unwrap();
    let error = repair_with(&vault, "host", NOT_WAITING).unwrap_err();
    assert!(error.full_text().contains("backups are running"), "{error:?}");
    assert!(vault.storage.snapshot().contains_key(&name), "it stays");
    assert_eq!(vault.names(Folder::Condemned), [""; 0], "its list went");
    drop(session);
    assert_eq!(repair(&vault, "host").set_aside.len(), 1);
}

/// Repairs, and does something at the first pause in which it waits.
fn repair_and_meanwhile(vault: &Vault, meanwhile: &(dyn Fn() + Send + Sync)) -> RepairReport {
    struct Pausing(Arc<dyn Environment>, Mutex<mpsc::Sender<()>>, Mutex<mpsc::Receiver<()>>);
    impl Environment for Pausing {
        fn now_unix_ns(&self) -> i64 {
            self.0.now_unix_ns()
        }

        fn random(&self, buffer: &mut [u8]) -> Result<()> {
            self.0.random(buffer)
        }

        fn pause(&self, _: Duration, _: &dyn Fn() -> Result<()>) -> Result<()> {
            self.1.lock().unwrap().send(()).unwrap();
            self.2.lock().unwrap().recv().unwrap();
            Ok(())
        }
    }
    let (waits, is_waiting) = mpsc::channel();
    let (go_on, goes_on) = mpsc::channel();
    let environment = Pausing(vault.environment.clone(), Mutex::new(waits), Mutex::new(goes_on));
    let storage = Arc::new(vault.storage.clone());
    let secret = passphrase(PASSWORD);
    let repository =
        Repository::open(storage, Arc::new(environment), &vault.cache("host"), &secret).unwrap();
    std::thread::scope(|scope| {
        let repairing = scope.spawn(|| {
            let options =
                RepairOptions { packs: &[], patience: PATIENT, host: "host", is_dry_run: false };
            run_repair(&repository, &options, &vault.pool, &|_| Ok(()), &Silent).unwrap()
        });
        is_waiting.recv().unwrap();
        meanwhile();
        go_on.send(()).unwrap();
        repairing.join().unwrap()
    })
}

/// While a repair waits for a backup, a prune puts the new packs on its list: until that is over,
/// what they hold may go, so the damaged pack stays.
#[test]
fn a_damaged_pack_stays_while_its_copy_is_listed_by_a_prune() {
    let vault = with_points();
    let damaged = vault.names(Folder::Packs)[0].clone();
    assert!(vault.storage.corrupt(&damaged, |bytes| bytes[100] ^= 1));
    let readable = broken(&vault, "stranger");
    let lease = format!("leases/{}", "cd".repeat(16));
    vault.storage.insert(&lease, b"of a backup".to_vec());
    let meanwhile = || {
        let other = vault.open("other").unwrap();
        let id = |name: &String| PackId::from_hex(name.rsplit('/').next().unwrap()).unwrap();
        let mut packs: Vec<PackId> = vault.names(Folder::Packs).iter().map(id).collect();
        packs.retain(|pack| *pack != id(&damaged));
        packs.sort_unstable();
        put_list(&other, &packs, "other").unwrap();
        vault.storage.remove(&lease);
    };
    let report = repair_and_meanwhile(&vault, &meanwhile);
    assert_eq!((report.kept, report.set_aside.len()), (1, 0), "{report:?}");
    assert!(vault.storage.snapshot().contains_key(&damaged));
    assert_eq!(broken(&vault, "stranger"), readable);
    // The prune is over and has kept them: now it can go.
    vault.names(Folder::Condemned).iter().for_each(|list| _ = vault.storage.remove(list));
    assert_eq!(repair(&vault, "host").set_aside.len(), 1);
    assert_eq!(broken(&vault, "third"), readable);
}

/// A prune of the same host never deletes what a repair wanted to keep as evidence.
#[test]
fn a_prune_drops_the_list_of_a_repair_that_died() {
    let base = with_points();
    let name = base.names(Folder::Packs)[0].clone();
    assert!(base.storage.corrupt(&name, |bytes| bytes[300] ^= 1));
    let operations = count(&base, |vault| drop(repair(vault, "host")));
    let mut seen = 0;
    for n in 0..operations {
        let vault = base.copy(50 + n);
        set(&vault.storage, n, diskvault::storage::memory::FaultKind::Error, false);
        let result = repair_with(&vault, "host", PATIENT);
        recover(&vault.storage);
        if result.is_ok() || vault.names(Folder::Condemned).is_empty() {
            continue;
        }
        seen += 1;
        let repository = vault.open("host").unwrap();
        let options = PruneOptions {
            max_unused: Unused::Unlimited,
            max_repack: None,
            keep_forgotten: None,
            accepts_vanished: false,
            patience: PATIENT,
            host: "host",
        };
        let _ = diskvault::prune::run(&repository, &options, &vault.pool, &|_| Ok(()), &Silent);
        let all = vault.storage.snapshot();
        let is_evidence = |found: &String| found == &name || found.starts_with("aside/");
        assert!(all.keys().any(is_evidence), "operation {n}: the damaged pack is gone");
    }
    assert!(seen > 2, "{seen}");
}

#[test]
fn objects_that_cannot_be_read_keep_nothing_from_going_on() {
    let mut vault = with_points();
    let newest = {
        let repository = vault.open("host").unwrap();
        let points = PointSet::load(&repository).unwrap();
        points.latest("web01").unwrap().id
    };
    vault.storage.corrupt(format!("points/{newest}"), |bytes| bytes[60] ^= 1);
    vault.storage.insert(format!("condemned/{}", "ab".repeat(16)), noise(1, 300));
    vault.storage.remove("instance");
    vault.known.remove(&newest);
    let repository = vault.open("host").unwrap();
    assert!(vault.try_backup(&repository, "x", &machine(1), &Silent).is_err());
    let run = |is_dry_run, no_prune_runs| {
        let options = ObjectRepairOptions { no_prune_runs, host: "host", is_dry_run };
        repair_objects(&repository, &options, &Silent).unwrap()
    };
    let before = vault.storage.snapshot();
    assert_eq!(run(true, true).len(), 3);
    assert_eq!(vault.storage.snapshot(), before, "a dry run does nothing");
    let repairs = run(false, false);
    assert_eq!(repairs.len(), 3);
    let list = repairs.iter().find(|repair| repair.name.starts_with("condemned/")).unwrap();
    assert_eq!(list.aside, None, "a prune may be running by it");
    assert_eq!(vault.names(Folder::Condemned).len(), 1);
    assert!(run(false, true).iter().all(|repair| repair.aside.is_some()));
    assert_eq!(vault.names(Folder::Aside).len(), 2);
    assert_eq!(run(false, true), []);
    // Now a backup, a check and a prune run; the point is gone, and everybody knows why.
    let repository = vault.open("host").unwrap();
    vault.backup(&repository, "x", &machine(1)).unwrap();
    assert_eq!(damage_of(&vault.check(&repository, true).unwrap()), "");
    assert_eq!(broken(&vault, "stranger"), BTreeSet::new());
    let points = PointSet::load(&repository).unwrap().points;
    let going: Vec<&Point> = points.iter().filter(|point| point.manifest.series == "a").collect();
    let options = ForgetOptions { host: "host", reason: "policy", ends_pins: false };
    forget(&repository, &going, &options, &Silent).unwrap();
}

/// A storage that gives other bytes of one object, the first time.
struct Glitch {
    inner: MemoryStorage,
    name: String,
    is_over: AtomicBool,
}

impl Storage for Glitch {
    fn put_new(&self, name: &ObjectName, data: &[u8]) -> Result<()> {
        self.inner.put_new(name, data)
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        let mut bytes = self.inner.get(name, bytes_max)?;
        if name.as_str() == self.name && !self.is_over.swap(true, Ordering::Relaxed) {
            bytes[60] ^= 1;
        }
        Ok(bytes)
    }

    fn get_range(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.inner.get_range(name, offset, buffer)
    }

    fn get_tail(&self, name: &ObjectName, bytes: usize) -> Result<(Vec<u8>, u64)> {
        self.inner.get_tail(name, bytes)
    }

    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.inner.size(name)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectEntry>> {
        self.inner.list(folder)
    }

    fn foreign(&self) -> Result<Vec<String>> {
        self.inner.foreign()
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        self.inner.delete(name)
    }

    fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<()> {
        self.inner.rename(from, to)
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

#[test]
fn a_point_is_not_given_up_for_one_wrong_reading() {
    let vault = with_points();
    let point = *vault.known.keys().next().unwrap();
    let glitch = Glitch {
        inner: vault.storage.clone(),
        name: format!("points/{point}"),
        is_over: AtomicBool::new(false),
    };
    let secret = passphrase(PASSWORD);
    let cache = vault.cache("host");
    let opened =
        Repository::open(Arc::new(glitch), vault.environment.clone(), &cache, &secret).unwrap();
    let before = vault.storage.snapshot();
    let options = ObjectRepairOptions { no_prune_runs: true, host: "host", is_dry_run: false };
    assert_eq!(repair_objects(&opened, &options, &Silent).unwrap(), []);
    assert_eq!(vault.storage.snapshot(), before);
}

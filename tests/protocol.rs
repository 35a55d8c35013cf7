//! The writer's side of the protocol (repo-format/spec/40-protocol.md), seen from the storage: in
//! which order things happen, and what a fenced writer and absent chunks lead to.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;

use diskvault::backup::{self, InputRequest};
use diskvault::error::{ErrorKind, Result};
use diskvault::monitor::{Monitor, Silent};
use diskvault::repository::Repository;
use diskvault::repository::locate::Locator;
use diskvault::repository::objects::{get_record, seal_record};
use diskvault::repository::pack_reader::pack_name;
use diskvault::repository::points::PointSet;
use diskvault::repository::session::remember_heads;
use diskvault::source::InputKind;
use diskvault::storage::memory::{MemoryStorage, Operation};
use diskvault::storage::{Folder, ObjectName};
use diskvault_format::crypto::ObjectKind;
use diskvault_format::id::{PackId, PointId};
use diskvault_format::small::{Condemned, Lost, NOTE_REMOVAL, Note};
use std::sync::atomic::{AtomicUsize, Ordering};
use support::vault::{Parts, Vault, damage_of, noise, options};

fn machine(day: u64) -> Parts {
    let mut disk = noise(1, 640 << 10);
    disk[..64 << 10].copy_from_slice(&noise(100 + day, 64 << 10));
    Parts::from([("vda".into(), disk), ("conf".into(), noise(200 + day, 30_000))])
}

fn with_one_point() -> (Vault, Repository, PointId) {
    let mut vault = Vault::new(1);
    let repository = vault.open("host").unwrap();
    let point = vault.backup(&repository, "web01", &machine(1)).unwrap().point;
    (vault, repository, point)
}

/// Numbers of the operations that `fits`.
fn numbers(log: &[(Operation, String)], fits: impl Fn(Operation, &str) -> bool) -> Vec<usize> {
    let found = log.iter().enumerate().filter(|(_, (operation, name))| fits(*operation, name));
    found.map(|(number, _)| number).collect()
}

#[test]
fn a_writer_does_everything_in_order() {
    let (mut vault, repository, _) = with_one_point();
    let began = vault.storage.operations() as usize;
    let point = vault.backup(&repository, "web01", &machine(2)).unwrap().point;
    let log = vault.storage.log().split_off(began);
    let put = |prefix: &str| {
        numbers(&log, |operation, name| operation == Operation::Put && name.starts_with(prefix))
    };
    let list = |folder: &str| {
        numbers(&log, |operation, name| operation == Operation::List && name == folder)[0]
    };
    let lease = put("leases/")[0];
    let lease_name = &log[lease].1;
    let manifest = format!("points/{point}");
    let stored_manifest = put(&manifest)[0];
    let ok = put(&format!("{manifest}.ok"))[0];
    let looks = numbers(&log, |operation, name| operation == Operation::Size && name == lease_name);
    let deletes = numbers(&log, |operation, _| operation == Operation::Delete);
    let packs = put("packs/");
    assert_eq!(lease, 0, "the lease comes first");
    assert!(lease < list("condemned"), "lease, then condemned lists");
    assert!(list("condemned") < list("packs"), "condemned lists, then packs");
    assert!(list("packs") < list("points"), "packs, then points");
    assert!(packs.len() > 1 && list("points") < packs[0], "everything is read, then packs stored");
    assert!(packs.iter().all(|pack| *pack < stored_manifest), "packs, then the manifest");
    assert_eq!(looks.len(), 1, "the lease is looked for once");
    assert!(stored_manifest < looks[0], "the manifest, then the look at the lease");
    assert!(looks[0] < ok, "the look, then the ok");
    assert_eq!(deletes.len(), 1, "one delete");
    assert!(ok < deletes[0] && log[deletes[0]].1 == *lease_name, "the ok, then the lease goes");
    let changes = numbers(&log, |operation, _| operation == Operation::Put);
    assert!(changes.iter().all(|change| *change <= ok), "nothing is stored after the ok");
}

/// Deletes all leases when a disk or stream begins, so often as it was told to.
struct Fencer {
    storage: MemoryStorage,
    times: usize,
    done: AtomicUsize,
}

impl Monitor for Fencer {
    fn start(&self, stage: &str, _total_bytes: Option<u64>) {
        let is_part = stage.starts_with("disk vda") || stage.starts_with("stream pipe");
        if !is_part || self.done.fetch_add(1, Ordering::Relaxed) >= self.times {
            return;
        }
        for name in self.storage.snapshot().into_keys().filter(|name| name.starts_with("leases/")) {
            self.storage.remove(name);
        }
    }
}

fn fencer(vault: &Vault, times: usize) -> Fencer {
    Fencer { storage: vault.storage.clone(), times, done: AtomicUsize::new(0) }
}

/// Manifests that were put, in order.
fn manifests_put(log: &[(Operation, String)]) -> Vec<String> {
    let is_manifest = |name: &String| name.starts_with("points/") && !name.ends_with(".ok");
    let puts = log.iter().filter(|(operation, _)| *operation == Operation::Put);
    puts.map(|(_, name)| name.clone()).filter(is_manifest).collect()
}

fn assert_withdrawn(vault: &Vault, repository: &Repository, manifest: &str) {
    let all = vault.storage.snapshot();
    assert!(!all.contains_key(manifest), "the fenced manifest is deleted");
    let log = vault.storage.log();
    let ok = format!("{manifest}.ok");
    assert!(log.iter().all(|(_, name)| *name != ok), "there never was an ok for it");
    let id = manifest.trim_start_matches("points/");
    let note = all.keys().find(|name| name.starts_with(&format!("notes/{id}-"))).unwrap();
    let name = ObjectName::parse(note).unwrap();
    let note: Note =
        get_record(&vault.storage, repository.keys(), ObjectKind::Note, &name).unwrap();
    assert_eq!(note.kind, NOTE_REMOVAL);
    let noted = log.iter().position(|(_, name)| name.contains(&format!("{id}-"))).unwrap();
    let delete = (Operation::Delete, manifest.to_string());
    let deleted = log.iter().position(|entry| *entry == delete).unwrap();
    assert!(noted < deleted, "the note comes before the delete");
}

#[test]
fn a_fenced_writer_starts_over_with_a_new_lease() {
    let (mut vault, repository, first) = with_one_point();
    let began = vault.storage.operations() as usize;
    let contents = machine(2);
    let report = vault.try_backup(&repository, "web01", &contents, &fencer(&vault, 1)).unwrap();
    vault.known.insert(report.point, contents);
    let log = vault.storage.log().split_off(began);
    let leases = numbers(&log, |operation, name| {
        operation == Operation::Put && name.starts_with("leases/") && !name.contains('.')
    });
    assert_eq!(leases.len(), 2, "a new lease");
    assert_ne!(log[leases[0]].1, log[leases[1]].1);
    let manifests = manifests_put(&log);
    assert_eq!(manifests.len(), 2);
    assert_eq!(manifests[1], format!("points/{}", report.point));
    assert_withdrawn(&vault, &repository, &manifests[0]);
    let points = PointSet::load(&repository).unwrap();
    assert_eq!(points.points.len(), 2);
    assert_eq!(points.heads("web01"), [report.point]);
    assert_eq!(report.manifest.previous, [first]);
    assert!(vault.names(Folder::Leases).is_empty());
    assert!(vault.restore_all(&repository).unwrap()[&report.point].is_ok());
    assert_eq!(damage_of(&vault.check(&repository, true).unwrap()), "");
}

#[test]
fn a_writer_that_is_always_fenced_gives_up_and_publishes_nothing() {
    let (vault, repository, first) = with_one_point();
    let result = vault.try_backup(&repository, "web01", &machine(2), &fencer(&vault, usize::MAX));
    let error = result.map(|_| ()).unwrap_err();
    assert_eq!((error.kind(), error.kind().exit_code()), (ErrorKind::Fenced, 11));
    let points = PointSet::load(&repository).unwrap();
    let ids: Vec<PointId> = points.points.iter().map(|point| point.id).collect();
    assert_eq!(ids, [first]);
    assert!(points.unfinished.is_empty() && points.lonely_oks.is_empty());
    assert_eq!(damage_of(&vault.check(&repository, true).unwrap()), "");
}

/// What was read from a pipe cannot be read again.
#[test]
fn a_fenced_backup_of_a_pipe_fails_and_publishes_nothing() -> Result<()> {
    let (vault, repository, first) = with_one_point();
    let path = vault.folder.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
    let (name, kind) = (Some("pipe".into()), Some(InputKind::Stream));
    let inputs = vec![InputRequest::new(name, &path, kind)];
    let writer = std::thread::spawn(move || std::fs::write(path, noise(9, 100_000)));
    let fencer = fencer(&vault, 1);
    let result = backup::run(&repository, &options("dump", inputs), &vault.pool, &fencer);
    writer.join().unwrap().unwrap();
    let error = result.map(|_| ()).unwrap_err();
    assert_eq!((error.kind(), error.kind().exit_code()), (ErrorKind::Fenced, 11));
    let points = PointSet::load(&repository)?;
    assert_eq!(points.points.len(), 1);
    assert_eq!(points.points[0].id, first);
    assert!(points.unfinished.is_empty());
    let manifests = manifests_put(&vault.storage.log());
    assert_withdrawn(&vault, &repository, manifests.last().unwrap());
    Ok(())
}

/// The packs that hold the chunks of the disk at `offsets`.
fn packs_of(repository: &Repository, contents: &Parts, offsets: &[usize]) -> Vec<PackId> {
    let locator = Locator::open(repository, &Silent).unwrap();
    let pack = |offset: &usize| {
        let id = repository.keys().chunk_id(&contents["vda"][*offset..*offset + 4096]);
        locator.find(repository, &id.0).unwrap().unwrap().pack.id
    };
    let mut packs: Vec<PackId> = offsets.iter().map(pack).collect();
    packs.sort_unstable();
    packs.dedup();
    packs
}

#[test]
fn chunks_of_condemned_packs_are_stored_again_also_inherited_ones() {
    let (mut vault, repository, first) = with_one_point();
    let contents = machine(1);
    let packs = packs_of(&repository, &contents, &[0, 300 << 10]);
    let list = Condemned { packs: packs.clone(), host: "pruner".into(), time_unix_ns: 1 };
    let name = ObjectName::new(Folder::Condemned, &"ab".repeat(16)).unwrap();
    let object =
        seal_record(repository.keys(), ObjectKind::Condemned, Some(&name), &[3; 32], &list);
    vault.storage.insert(&name, object.unwrap());
    // The very same bytes: every chunk could be inherited.
    let report = vault.backup(&repository, "web01", &contents).unwrap();
    let condemned_bytes = held_bytes(&repository, &packs);
    assert!(condemned_bytes > 0);
    assert_eq!(report.statistics.new_bytes, condemned_bytes);
    // The pruner goes on: the packs go, then its list.
    for pack in packs {
        vault.storage.remove(pack_name(pack).unwrap());
    }
    vault.storage.remove(&name);
    let repository = vault.open("stranger").unwrap();
    let outcomes = vault.restore_all(&repository).unwrap();
    assert!(outcomes[&report.point].is_ok());
    // The first point named the same chunks, so it is whole again as well.
    assert!(outcomes[&first].is_ok());
    assert_eq!(damage_of(&vault.check(&repository, true).unwrap()), "");
}

/// Uncompressed bytes of what packs hold.
fn held_bytes(repository: &Repository, packs: &[PackId]) -> u64 {
    let locator = Locator::open(repository, &Silent).unwrap();
    let each = |id: &PackId| {
        let pack = locator.pack(repository, *id).unwrap();
        pack.footer.segments.iter().map(|segment| u64::from(segment.raw_bytes())).sum::<u64>()
    };
    packs.iter().map(each).sum()
}

/// A bad sector takes a whole segment; a check puts its chunks on a lost list; the next backup
/// stores them again, and from then on every point is whole, though the bad copy is still there.
fn lose_and_store_again(vault: &mut Vault, repository: &Repository, id: &[u8; 32]) -> (u64, u64) {
    let found = Locator::open(repository, &Silent).unwrap().find(repository, id);
    let found = found.unwrap().unwrap();
    let segment = &found.pack.footer.segments[found.segment as usize];
    let mut ids: Vec<[u8; 32]> = segment.entries.iter().map(|entry| entry.id).collect();
    ids.sort_unstable();
    let bad = segment.offset as usize + 100;
    assert!(vault.storage.corrupt(pack_name(found.pack.id).unwrap(), |data| data[bad] ^= 1));
    assert!(vault.restore_all(repository).unwrap().values().all(Result::is_err));
    let list = Lost { ids, time_unix_ns: 1 };
    let object = seal_record(repository.keys(), ObjectKind::Lost, None, &[4; 32], &list).unwrap();
    vault.storage.insert(format!("lost/{}", blake3::hash(&object)), object);
    let report = vault.backup(repository, "web01", &machine(1)).unwrap();
    for cache in ["host", "stranger"] {
        let repository = vault.open(cache).unwrap();
        for (point, outcome) in vault.restore_all(&repository).unwrap() {
            assert!(outcome.is_ok(), "{cache}: point {point}: {outcome:?}");
        }
    }
    (report.statistics.new_bytes, u64::from(segment.raw_bytes()))
}

#[test]
fn lost_chunks_are_stored_again_and_the_good_copy_counts() {
    let (mut vault, repository, _) = with_one_point();
    let id = repository.keys().chunk_id(&machine(1)["vda"][300 << 10..304 << 10]);
    let (stored, lost) = lose_and_store_again(&mut vault, &repository, &id.0);
    assert_eq!(stored, lost);
}

#[test]
fn lost_pages_are_stored_again_and_the_good_copy_counts() {
    let (mut vault, repository, _) = with_one_point();
    let points = PointSet::load(&repository).unwrap();
    let top = points.points[0].manifest.disks[0].top.unwrap();
    let (stored, _) = lose_and_store_again(&mut vault, &repository, &top.0);
    assert_eq!(stored, 0, "no chunk was lost");
}

#[test]
fn a_manifest_without_ok_is_no_point() {
    let (mut vault, repository, first) = with_one_point();
    let second = vault.backup(&repository, "web01", &machine(2)).unwrap().point;
    vault.storage.remove(format!("points/{second}.ok"));
    let points = PointSet::load(&repository).unwrap();
    assert_eq!(points.latest("web01").unwrap().id, first);
    assert_eq!(points.points.len(), 1);
    assert_eq!(points.unfinished, [second]);
    assert_eq!(vault.restore_all(&repository).unwrap().len(), 1);
    // The next point follows what is visible.
    vault.known.remove(&second);
    let third = vault.backup(&repository, "web01", &machine(3)).unwrap();
    assert_eq!(third.manifest.previous, [first]);
    assert_eq!(third.manifest.sequence, 2);
}

/// Two programs of one host: what the slower one listed is older than what the faster one has
/// already remembered.
#[test]
fn an_older_listing_takes_no_head_from_the_hosts_memory() {
    let (mut vault, slow, _) = with_one_point();
    let listed = PointSet::load(&slow).unwrap();
    let fast = vault.open("host").unwrap();
    let newer = vault.backup(&fast, "web01", &machine(2)).unwrap().point;
    let other = vault.backup(&fast, "web02", &machine(3)).unwrap().point;
    remember_heads(&slow, &listed).unwrap();
    for point in [newer, other] {
        vault.storage.remove(format!("points/{point}"));
        vault.storage.remove(format!("points/{point}.ok"));
    }
    let repository = vault.open("host").unwrap();
    let doubts = PointSet::load(&repository).unwrap().doubts(&repository).unwrap().join("\n");
    for point in [newer, other] {
        assert!(doubts.contains(&point.to_hex()), "{point}: {doubts}");
    }
    // The slow one never knew them, so it does not say that they are gone.
    assert_eq!(listed.unexplained_heads(&slow).unwrap(), []);
}

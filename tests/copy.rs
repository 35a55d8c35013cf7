//! `copy` through the library: what comes over is the same in every byte and record, what is there
//! is neither read nor stored again, and a copy that is stopped anywhere is gone on with.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;

#[path = "crash/rig.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod rig;

use diskvault::backup::{self, ChunkerChoice, InputRequest};
use diskvault::copy::{Copier, ORIGIN_TAG, Outcome, plan};
use diskvault::digest::Digester;
use diskvault::error::{ErrorKind, Result};
use diskvault::monitor::Silent;
use diskvault::repository::Repository;
use diskvault::repository::compression::Compression;
use diskvault::repository::locate::Locator;
use diskvault::repository::map_reader::MapReader;
use diskvault::repository::notes::{Notes, end_pins, put_note};
use diskvault::repository::packer::ChunkWriter;
use diskvault::repository::points::{Point, PointSet};
use diskvault::repository::session::Session;
use diskvault::restore::fetch::Fetcher;
use diskvault::restore::parts;
use diskvault::restore::sequential::read_bytes;
use diskvault::retention::forget::{ForgetOptions, forget};
use diskvault::source::InputKind;
use diskvault::storage::Folder;
use diskvault_format::id::{BackupId, PackId, PageId, PointId};
use diskvault_format::manifest::{Manifest, Statistics};
use diskvault_format::map::{LeafSlot, MapShape};
use diskvault_format::pack::PackKind;
use diskvault_format::segment::EntryKind;
use diskvault_format::small::{NOTE_PIN, NOTE_TAG};
use rig::{FAULTS, machine, recover, set};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use support::vault::{self, Parts, Vault, damage_of, noise};

/// Copies the points for which `wanted` holds; what became of each, in order.
fn copy_some(
    source: &Vault,
    target: &Vault,
    wanted: &dyn Fn(&Point) -> bool,
) -> Result<Vec<(PointId, Outcome)>> {
    let (from, to) = (source.open("reader")?, target.open("host")?);
    let copier = Copier {
        source: &from,
        target: &to,
        compression: Compression::default(),
        host: "copier",
        pool: &target.pool,
        monitor: &Silent,
    };
    let mut outcomes = Vec::new();
    copier.run(&plan(&from, &to, wanted)?, &mut |point, outcome| {
        outcomes.push((
            point.id,
            match outcome {
                Outcome::Copied { point, statistics } => {
                    Outcome::Copied { point: *point, statistics: *statistics }
                }
                Outcome::Present(point) => Outcome::Present(*point),
                Outcome::Unreadable(error) => Outcome::Unreadable(diskvault::error::Error::new(
                    error.kind(),
                    error.full_text(),
                )),
            },
        ));
        Ok(())
    })?;
    Ok(outcomes)
}

fn copy_all(source: &Vault, target: &Vault) -> Vec<(PointId, Outcome)> {
    copy_some(source, target, &|_| true).unwrap()
}

fn statistics(outcome: &Outcome) -> Statistics {
    match outcome {
        Outcome::Copied { statistics, .. } => *statistics,
        other => panic!("it was not copied: {other:?}"),
    }
}

fn points(vault: &Vault) -> Vec<Point> {
    PointSet::load(&vault.open("looker").unwrap()).unwrap().points
}

/// Every point of the target is the copy of one of the source, and whole: byte for byte, by both
/// ways of reading, and by a check that reads everything.
fn assert_copied(source: &Vault, target: &mut Vault) {
    let originals = points(source);
    for copied in points(target) {
        let same = |original: &&Point| original.manifest.backup_id == copied.manifest.backup_id;
        let original = originals.iter().find(same).unwrap();
        target.known.insert(copied.id, source.known[&original.id].clone());
    }
    for cache in ["host", "stranger"] {
        let repository = target.open(cache).unwrap();
        let restored = target.restore_all(&repository).unwrap();
        assert!(restored.values().all(Result::is_ok), "{restored:?}");
        assert_eq!(damage_of(&target.check(&repository, true).unwrap()), "");
    }
}

fn digests(repository: &Repository, vault: &Vault, point: &Point) -> Vec<Vec<u8>> {
    let locator = Locator::open(repository, &Silent).unwrap();
    let fetcher = Fetcher { repository, locator: &locator, threads: 2, monitor: &Silent };
    let digester = Digester { fetcher, pool: &vault.pool };
    parts(point).map(|part| digester.compute(part, None).unwrap()).collect()
}

/// Three days of a machine, and two vaults; and the packs that each day has stored.
fn with_packs_of_days() -> (Vault, Vault, Vec<PointId>, Vec<Vec<String>>) {
    let (mut source, target) = (Vault::new(1), Vault::new(2));
    let repository = source.open("host").unwrap();
    let (mut ids, mut packs) = (Vec::new(), Vec::new());
    for day in 1..=3 {
        let before = source.names(Folder::Packs);
        ids.push(source.backup(&repository, "web01", &machine(day)).unwrap().point);
        let mut new = source.names(Folder::Packs);
        new.retain(|name| !before.contains(name));
        packs.push(new);
    }
    (source, target, ids, packs)
}

fn with_three_days() -> (Vault, Vault, Vec<PointId>) {
    let (source, target, ids, _) = with_packs_of_days();
    (source, target, ids)
}

#[test]
fn points_come_over_whole_and_only_once() {
    let (source, mut target, ids) = with_three_days();
    let repository = source.open("host").unwrap();
    put_note(&repository, ids[0], NOTE_TAG, "host", vec![("rack".into(), "7".into())]).unwrap();
    put_note(&repository, ids[1], NOTE_PIN, "host", vec![("reason".into(), "audit".into())])
        .unwrap();
    let outcomes = copy_all(&source, &target);
    assert_eq!(outcomes.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids, "oldest first");
    assert_copied(&source, &mut target);
    let (originals, copies) = (points(&source), points(&target));
    let own = target.open("host").unwrap();
    let notes = Notes::of_points(&own, &copies).unwrap();
    for (number, (original, copied)) in originals.iter().zip(&copies).enumerate() {
        let (old, new) = (&original.manifest, &copied.manifest);
        assert_eq!((old.backup_id, &old.series), (new.backup_id, &new.series));
        assert_eq!(
            (old.time_unix_ns, old.started_unix_ns),
            (new.time_unix_ns, new.started_unix_ns)
        );
        assert_eq!((&old.host, old.duration_ms), (&new.host, new.duration_ms));
        assert_eq!(new.sequence, number as u64 + 1);
        let before: Vec<PointId> =
            number.checked_sub(1).map(|n| copies[n].id).into_iter().collect();
        assert_eq!(new.previous, before, "a chain");
        assert_eq!(
            digests(&repository, &source, original),
            digests(&own, &target, copied),
            "what b3sum prints"
        );
        let origin = format!("{}/{}", repository.id().short(), &original.id.to_hex()[..16]);
        assert_eq!(notes.tags(copied)[ORIGIN_TAG], origin);
        assert_ne!(old.disks[0].root, new.disks[0].root, "ids are keyed");
    }
    assert_eq!(notes.tags(&copies[0])["rack"], "7");
    let reasons: Vec<String> =
        notes.pins(&copies[1]).unwrap().into_iter().map(|pin| pin.reason).collect();
    assert_eq!(reasons, ["audit"]);
    assert!(notes.pins(&copies[0]).unwrap().is_empty());

    let before = target.storage.snapshot();
    let again = copy_all(&source, &target);
    assert!(again.iter().all(|(_, outcome)| matches!(outcome, Outcome::Present(_))));
    assert_eq!(before, target.storage.snapshot(), "nothing is written");
    // A run that was stopped before it has pinned a copy is made up for.
    put_note(&repository, ids[0], NOTE_PIN, "host", Vec::new()).unwrap();
    copy_all(&source, &target);
    assert_eq!(Notes::of_points(&own, &copies).unwrap().pins(&copies[0]).unwrap().len(), 1);
    // Who ends a pin in the target wants it so.
    end_pins(&own, &copies[1], "host", false).unwrap();
    copy_all(&source, &target);
    assert!(Notes::of_points(&own, &copies).unwrap().pins(&copies[1]).unwrap().is_empty());
}

#[test]
fn what_did_not_change_is_neither_read_nor_stored() {
    let (source, mut target, ids, packs) = with_packs_of_days();
    copy_some(&source, &target, &|point| point.id == ids[0]).unwrap();
    // Of the first day's data nothing can be read any more.
    assert!(spoil_data(&source, &packs[0]) > 0);
    let outcomes = copy_some(&source, &target, &|point| point.id == ids[1]).unwrap();
    let (done, made) = (statistics(&outcomes[0].1), points(&source)[1].manifest.statistics());
    assert_eq!(done.read_bytes, made.new_bytes, "what that day's backup stored, and no more");
    assert_eq!((done.unchanged_bytes, done.new_bytes), (made.unchanged_bytes, made.new_bytes));
    assert_copied(&source, &mut target);
}

/// Flips a bit in each segment of those packs that has data; how many.
fn spoil_data(vault: &Vault, packs: &[String]) -> usize {
    let repository = vault.open("spoiler").unwrap();
    let locator = Locator::open(&repository, &Silent).unwrap();
    let mut spoilt = 0;
    for name in packs {
        let id = PackId::from_hex(name.rsplit('/').next().unwrap()).unwrap();
        let pack = locator.pack(&repository, id).unwrap();
        let is_data = pack.kind == PackKind::Data;
        for segment in pack.footer.segments.iter().filter(|_| is_data) {
            let at = segment.offset as usize + 100;
            assert!(vault.storage.corrupt(name, |bytes| bytes[at] ^= 1));
            spoilt += 1;
        }
    }
    spoilt
}

#[test]
fn what_the_target_backed_up_itself_is_not_read() {
    let (source, mut target, _) = with_three_days();
    let repository = target.open("host").unwrap();
    target.backup(&repository, "web01", &machine(1)).unwrap();
    let before = target.known.clone();
    let outcomes = copy_all(&source, &target);
    let first = statistics(&outcomes[0].1);
    // Equal chaining values are equal bytes, whatever the keys: even the disk is not read.
    assert_eq!((first.read_bytes, first.new_bytes), (0, 0));
    assert!(statistics(&outcomes[1].1).new_bytes > 0);
    let own: Vec<PointId> = before.keys().copied().collect();
    for copied in points(&target).iter().filter(|point| !own.contains(&point.id)) {
        let same = |p: &&Point| p.manifest.backup_id == copied.manifest.backup_id;
        let original = points(&source).iter().find(same).unwrap().id;
        target.known.insert(copied.id, source.known[&original].clone());
    }
    let restored = target.restore_all(&repository).unwrap();
    assert_eq!((restored.len(), restored.values().all(Result::is_ok)), (4, true));
}

#[test]
fn an_older_point_that_comes_later_stands_where_it_belongs() {
    let (source, mut target, ids) = with_three_days();
    copy_some(&source, &target, &|point| point.id == ids[2]).unwrap();
    copy_some(&source, &target, &|point| point.id == ids[0]).unwrap();
    copy_some(&source, &target, &|point| point.id == ids[1]).unwrap();
    let repository = target.open("host").unwrap();
    let set = PointSet::load(&repository).unwrap();
    let originals = points(&source);
    let newest = set.latest("web01").unwrap();
    assert_eq!(newest.manifest.backup_id, originals[2].manifest.backup_id);
    let order: Vec<_> = set.points.iter().map(|point| point.manifest.backup_id).collect();
    assert_eq!(order, originals.iter().map(|p| p.manifest.backup_id).collect::<Vec<_>>());
    assert!(set.points.iter().all(|p| (p.manifest.sequence, p.manifest.previous.len()) == (1, 0)));
    assert_copied(&source, &mut target);
    // The next backup joins what has forked.
    let next = target.backup(&repository, "web01", &machine(4)).unwrap();
    let report = target.check(&target.open("host").unwrap(), false).unwrap();
    assert_eq!(damage_of(&report), "");
    assert_eq!(next.manifest.previous.len(), set.heads("web01").len());
}

#[test]
fn one_that_comes_between_two_stands_between_them() {
    let (source, target, ids) = with_three_days();
    copy_some(&source, &target, &|point| point.id != ids[1]).unwrap();
    copy_some(&source, &target, &|point| point.id == ids[1]).unwrap();
    let found: Vec<_> = points(&target)
        .iter()
        .map(|point| (point.manifest.time_unix_ns, point.manifest.sequence))
        .collect();
    assert!(found.is_sorted() && found.iter().map(|it| it.1).eq([1, 2, 2]), "{found:?}");
}

#[test]
fn every_kind_of_part_comes_over_with_its_cut_and_its_holes() {
    let (mut source, mut target) = (Vault::new(1), Vault::new(2));
    let repository = source.open("host").unwrap();
    let path = source.folder.path().join("sparse");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(3 << 20).unwrap();
    file.write_all_at(&noise(1, 300 << 10), 1 << 20).unwrap();
    // Zeros that are written are no hole.
    file.write_all_at(&[0; 64 << 10], 2 << 20).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for (series, cut) in [("grid", ChunkerChoice::Fixed), ("cuts", ChunkerChoice::Content)] {
        let (name, path, kind) = (Some("vda".into()), path.clone(), Some(InputKind::Disk));
        let mut options = vault::options(series, vec![InputRequest::new(name, path, kind)]);
        options.chunker = cut;
        options.digests = vec![backup::DigestKind::Sha256];
        let report = backup::run(&repository, &options, &source.pool, &Silent).unwrap();
        source.known.insert(report.point, Parts::from([("vda".into(), bytes.clone())]));
    }
    let odd = Parts::from([
        ("vd-empty".to_string(), Vec::new()),
        ("vd-short".to_string(), noise(3, 1000)),
        ("vd-zeros".to_string(), vec![0; 100_000]),
        ("vd-odd".to_string(), noise(4, 70_001)),
        ("empty".to_string(), Vec::new()),
        ("zeros".to_string(), vec![0; 100_000]),
    ]);
    source.backup(&repository, "odd", &odd).unwrap();
    copy_all(&source, &target);
    assert_copied(&source, &mut target);
    let own = target.open("host").unwrap();
    let list = |repository: &Repository, point: &Point| {
        let locator = Locator::open(repository, &Silent).unwrap();
        let fetcher = Fetcher { repository, locator: &locator, threads: 2, monitor: &Silent };
        let reader = MapReader::new(repository, &locator);
        let allocation = point.manifest.disks[0].allocation.clone().unwrap();
        read_bytes(&fetcher, &reader, &allocation, 1 << 20).unwrap()
    };
    for (original, copied) in points(&source).iter().zip(&points(&target)) {
        for (old, new) in original.manifest.disks.iter().zip(&copied.manifest.disks) {
            assert_eq!(
                (&old.name, &old.chunking, &old.digest),
                (&new.name, &new.chunking, &new.digest)
            );
            assert_eq!((&old.digests, &old.token), (&new.digests, &new.token));
            assert_eq!(old.statistics.hole_bytes, new.statistics.hole_bytes);
        }
        assert_eq!(list(&repository, original), list(&own, copied), "holes");
        assert_eq!(digests(&repository, &source, original), digests(&own, &target, copied));
    }
}

#[test]
fn content_at_another_phase_is_stored_once_in_the_target_too() {
    let (mut source, mut target) = (Vault::new(1), Vault::new(2));
    let repository = source.open("host").unwrap();
    let at = |phase: usize| {
        let mut disk = noise(phase as u64, 65_536);
        disk.resize(65_536 + phase, 7);
        disk.extend(noise(1, 4 << 20));
        disk.resize(disk.len().next_multiple_of(4096), 0);
        Parts::from([("vda".to_string(), disk)])
    };
    source.backup(&repository, "a", &at(0)).unwrap();
    source.backup(&repository, "b", &at(1000)).unwrap();
    let outcomes = copy_all(&source, &target);
    let new = statistics(&outcomes[1].1).new_bytes;
    assert!(new < 65_536 + (4 << 20) / 4, "{new} new bytes");
    assert_copied(&source, &mut target);
}

#[test]
fn a_copy_that_is_stopped_anywhere_goes_on() {
    let (source, base, _) = with_three_days();
    let operations = {
        let target = base.copy(900);
        let before = target.storage.operations();
        copy_all(&source, &target);
        target.storage.operations() - before
    };
    let step = (operations / 24).max(1) as usize;
    for (number, n) in (0..operations).step_by(step).enumerate() {
        let (kind, once) = FAULTS[number % FAULTS.len()];
        let what = format!("{kind:?} at {n} of {operations}, once {once}");
        let mut target = base.copy(1000 + n);
        target.open("host").unwrap();
        set(&target.storage, n, kind, once);
        let first = copy_some(&source, &target, &|_| true);
        recover(&target.storage);
        let done = points(&target).len();
        assert_copied(&source, &mut target);
        let again = copy_all(&source, &target);
        let present = again.iter().filter(|(_, o)| matches!(o, Outcome::Present(_))).count();
        assert_eq!(present, done, "{what}: {first:?}");
        assert_copied(&source, &mut target);
        assert_eq!(points(&target).len(), 3, "{what}");
    }
}

#[test]
fn damage_in_the_source_costs_the_points_that_it_touches() {
    let (source, mut target, ids, packs) = with_packs_of_days();
    assert!(spoil_data(&source, &packs[2]) > 0);
    let outcomes = copy_all(&source, &target);
    let unreadable: Vec<PointId> = outcomes
        .iter()
        .filter(|(_, outcome)| matches!(outcome, Outcome::Unreadable(_)))
        .map(|(id, _)| *id)
        .collect();
    assert_eq!(unreadable, [ids[2]]);
    assert_eq!(points(&target).len(), 2, "nothing is made of what cannot be read");
    assert_copied(&source, &mut target);
    assert!(target.names(Folder::Leases).is_empty());
}

#[test]
fn what_the_target_has_lost_is_read_again() {
    let (source, mut target, ids) = with_three_days();
    copy_some(&source, &target, &|point| point.id == ids[0]).unwrap();
    let repository = target.open("host").unwrap();
    let locator = Locator::open(&repository, &Silent).unwrap();
    for name in target.names(Folder::Packs) {
        let id = PackId::from_hex(name.rsplit('/').next().unwrap()).unwrap();
        if locator.pack(&repository, id).unwrap().kind == PackKind::Data {
            target.storage.remove(&name);
        }
    }
    drop((locator, repository));
    copy_some(&source, &target, &|point| point.id == ids[1]).unwrap();
    for copied in points(&target) {
        let same = |p: &&Point| p.manifest.backup_id == copied.manifest.backup_id;
        let original = points(&source).iter().find(same).unwrap().id;
        target.known.insert(copied.id, source.known[&original].clone());
    }
    let second = points(&target)[1].id;
    let restored = target.restore_all(&target.open("host").unwrap()).unwrap();
    assert!(restored[&second].is_ok(), "{restored:?}");
}

/// Publishes `manifest` in the source as if another backup had made it.
fn publish(repository: &Repository, manifest: Manifest, pages: &[(PageId, Vec<u8>)]) -> PointId {
    let session = Session::begin(repository, "evil", &Silent).unwrap();
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap());
    let presence = session.presence().clone();
    let compression = Compression::default();
    let mut writer = ChunkWriter::new(repository, session.lease(), presence, pool, compression);
    for (id, page) in pages {
        writer.push(PackKind::Map, EntryKind::Page, id.0, page).unwrap();
    }
    writer.finish().unwrap();
    drop(writer);
    let lease = session.lease();
    session.publish(&Manifest { lease, ..manifest }).unwrap()
}

#[test]
fn what_a_source_says_wrong_of_its_bytes_is_not_passed_on() {
    let (mut source, target) = (Vault::new(1), Vault::new(2));
    let repository = source.open("host").unwrap();
    let contents = Parts::from([("vda".into(), noise(1, 8192)), ("conf".into(), noise(2, 9000))]);
    let id = source.backup(&repository, "web01", &contents).unwrap().point;
    let made = points(&source).remove(0).manifest;
    let mut wrong_digest = made.clone();
    wrong_digest.backup_id = BackupId([1; 16]);
    wrong_digest.streams[0].digest[0] ^= 1;
    let mut wrong_value = made.clone();
    wrong_value.backup_id = BackupId([2; 16]);
    let disk = &mut wrong_value.disks[0];
    let shape = MapShape::new(disk.size, vault::CHUNK_BYTES).unwrap();
    let locator = Locator::open(&repository, &Silent).unwrap();
    let reader = MapReader::new(&repository, &locator);
    let mut leaf = reader.decode_leaf(disk.top.unwrap(), shape, 0).unwrap();
    drop(reader);
    drop(locator);
    if let LeafSlot::Chunk { chaining, .. } = &mut leaf.slots[1] {
        chaining[0] ^= 1;
    }
    let page = leaf.encode().unwrap();
    let top = repository.keys().page_id(&page);
    disk.top = Some(top);
    disk.root = shape.root(repository.keys(), &disk.chunking, disk.top);
    let evil = [
        publish(&repository, wrong_digest, &[]),
        publish(&repository, wrong_value, &[(top, page)]),
    ];
    for (point, outcome) in copy_all(&source, &target) {
        match outcome {
            Outcome::Copied { .. } => assert_eq!(point, id),
            Outcome::Unreadable(error) => {
                assert!(evil.contains(&point));
                let text = error.full_text();
                assert!(text.contains("rule F-11") || text.contains("chaining value"), "{text}");
            }
            Outcome::Present(_) => panic!("{point} is not there"),
        }
    }
    assert_eq!(points(&target).len(), 1);
}

#[test]
fn a_target_that_forgot_a_point_gets_it_again() {
    let (source, mut target, _) = with_three_days();
    copy_all(&source, &target);
    let repository = target.open("host").unwrap();
    let all = points(&target);
    let options = ForgetOptions { host: "host", reason: "test", ends_pins: false };
    forget(&repository, &[&all[1]], &options, &Silent).unwrap();
    let outcomes = copy_all(&source, &target);
    assert_eq!(statistics(&outcomes[1].1).new_bytes, 0, "its chunks were not pruned yet");
    assert_copied(&source, &mut target);
    assert_eq!(points(&target).len(), 3);
}

#[test]
fn a_repository_is_not_copied_into_itself() {
    let (source, ..) = with_three_days();
    let (one, two) = (source.open("one").unwrap(), source.open("two").unwrap());
    let error = plan(&one, &two, &|_| true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.full_text().contains("cannot copy a repository into itself"));
}

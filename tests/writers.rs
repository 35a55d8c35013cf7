//! Writers that may not read, through the library: what they can do, what one that was taken over
//! cannot, and that whoever may read loses nothing by either.

#![allow(clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;

use diskvault::error::{ErrorKind, Result};
use diskvault::monitor::Silent;
use diskvault::prune::choose::Unused;
use diskvault::prune::{Patience, PruneOptions, PruneReport};
use diskvault::repair::{ObjectRepairOptions, repair_objects};
use diskvault::repository::Repository;
use diskvault::repository::pack_reader::pack_name;
use diskvault::repository::points::{PointSet, manifest_name, ok_name};
use diskvault::repository::replica::{Relation, bring_keys_up, initialise_replica, relation};
use diskvault::repository::session::Session;
use diskvault::retention::forget::{ForgetOptions, forget};
use diskvault::retention::undo::undo;
use diskvault::storage::{Folder, Storage};
use diskvault::sync::{Syncer, plan};
use diskvault_format::crypto::{Keys, ObjectKind, Secret};
use diskvault_format::id::{KeySlotId, LeaseId, PackId, PointId, WriterId};
use diskvault_format::key_slot::KdfCost;
use diskvault_format::manifest::Manifest;
use diskvault_format::pack::{
    PackKind, PackOpener, PackSecrets, PreparedSegment, assemble, decode_header,
};
use diskvault_format::segment::{Entry, EntryKind, SegmentEncoder};
use diskvault_format::{names, record, sealed};
use std::sync::Arc;
use std::time::Duration;
use support::vault::{CHUNK_BYTES, Parts, SeededEnvironment, Vault, damage_of, noise, passphrase};

/// A repair that does what it can.
const REPAIR: ObjectRepairOptions<'static> =
    ObjectRepairOptions { no_prune_runs: true, host: "admin", is_dry_run: false };
/// The password of the writer.
const WRITER: &str = "writer";

/// A repository with a writer that may write to series that start with `web`.
fn with_writer() -> Vault {
    let vault = Vault::new(1);
    let mut repository = vault.open("admin").unwrap();
    add_writer(&mut repository, WRITER, &["web*"]);
    vault
}

fn add_writer(repository: &mut Repository, password: &str, series: &[&str]) {
    let series: Vec<String> = series.iter().map(|name| (*name).to_owned()).collect();
    let secret = passphrase(password);
    repository.add_writer(&secret, KdfCost::RECOVERY, "kvm1", "host", &series).unwrap();
}

fn open_writer(vault: &Vault, cache: &str, password: &str) -> Result<Repository> {
    let storage = Arc::new(vault.storage.clone());
    let (environment, cache) = (vault.environment.clone(), vault.cache(cache));
    Repository::open_to_write(storage, environment, &cache, &passphrase(password), Arc::new(Silent))
}

fn writer(vault: &Vault) -> Repository {
    open_writer(vault, "kvm1", WRITER).unwrap()
}

/// A disk of so many chunks; 64 of them fill a pack.
fn disk(seed: u64, chunks: usize) -> Parts {
    Parts::from([("vda".into(), noise(seed, chunks * CHUNK_BYTES as usize))])
}

/// The same disk with `chunks` others at the start.
fn changed(parts: &Parts, seed: u64, chunks: usize) -> Parts {
    let mut parts = parts.clone();
    let new = noise(seed, chunks * CHUNK_BYTES as usize);
    parts.get_mut("vda").unwrap()[..new.len()].copy_from_slice(&new);
    parts
}

/// Every point that counts restores byte for byte, and a check that reads all finds no damage.
fn assert_whole(vault: &Vault, points: usize) {
    let repository = vault.open("stranger").unwrap();
    let restored = vault.restore_all(&repository).unwrap();
    assert!(restored.values().all(Result::is_ok), "{restored:?}");
    assert_eq!(restored.len(), points);
    assert_eq!(damage_of(&vault.check(&repository, true).unwrap()), "");
}

fn prune(vault: &Vault, repository: &Repository) -> Result<PruneReport> {
    let options = PruneOptions {
        max_unused: Unused::MilliPercent(0),
        max_repack: None,
        keep_forgotten: None,
        accepts_vanished: false,
        patience: Patience { stands_still: Duration::from_secs(3600), waits: true },
        host: "admin",
    };
    diskvault::prune::run(repository, &options, &vault.pool, &|_| Ok(()), &Silent)
}

fn forget_ids(repository: &Repository, ids: &[PointId]) {
    let points = PointSet::load(repository).unwrap();
    let chosen: Vec<_> = points.points.iter().filter(|point| ids.contains(&point.id)).collect();
    assert_eq!(chosen.len(), ids.len());
    let options = ForgetOptions { reason: "policy", host: "admin", ends_pins: false };
    forget(repository, &chosen, &options, &Silent).unwrap();
}

fn packs(vault: &Vault, kind: PackKind) -> Vec<(PackId, Vec<u8>)> {
    let objects = vault.storage.snapshot();
    let packs = objects.into_iter().filter(|(name, _)| name.starts_with("packs/"));
    packs
        .filter(|(_, bytes)| decode_header(bytes).unwrap().identity.kind == kind)
        .map(|(name, bytes)| (PackId::from_hex(name.rsplit('/').next().unwrap()).unwrap(), bytes))
        .collect()
}

/// A pack by `keys` that lists `id` and has other bytes.
fn put_lie(vault: &Vault, keys: &Keys, kind: EntryKind, id: [u8; 32], data: &[u8]) -> PackId {
    let entries = vec![Entry { id, kind, bytes: data.len() as u32 }];
    let mut plaintext = Vec::new();
    SegmentEncoder::new(3).unwrap().encode(&entries, data, &mut plaintext).unwrap();
    let segments = vec![PreparedSegment { entries, anchors: Vec::new(), plaintext }];
    let secrets = PackSecrets { key: Secret::new([9; 32]), wrap_random: [8; 32], own_copy: None };
    let pack = assemble(keys, PackKind::Data, LeaseId([7; 16]), &secrets, segments).unwrap();
    vault.storage.put_new(&pack_name(pack.id).unwrap(), &pack.bytes).unwrap();
    pack.id
}

/// Makes a manifest visible, as one that was taken over can.
fn put_manifest(vault: &Vault, keys: &Keys, manifest: &Manifest) -> PointId {
    let plaintext = record::encode(manifest).unwrap();
    let object = sealed::seal(keys, ObjectKind::Manifest, "", &[5; 32], &plaintext).unwrap();
    let id = PointId(*blake3::hash(&object).as_bytes());
    vault.storage.put_new(&manifest_name(id).unwrap(), &object).unwrap();
    vault.storage.put_new(&ok_name(id).unwrap(), &[]).unwrap();
    id
}

fn host_keys(vault: &Vault) -> Arc<Keys> {
    writer(vault).keys().clone()
}

/// Keys of a writer that nobody has listed.
fn stranger(vault: &Vault) -> Keys {
    let repository = vault.open("admin").unwrap();
    let secrets = repository.keys().for_writer(Secret::new([3; 32]), Vec::new()).unwrap();
    Keys::write_only(&secrets, repository.id())
}

#[test]
fn a_writer_backs_up_what_changed_and_who_may_read_restores_it() {
    let mut vault = with_writer();
    let host = writer(&vault);
    let (first, second) = (disk(1, 100), changed(&disk(1, 100), 2, 5));
    let one = vault.backup(&host, "web01", &first).unwrap();
    assert_eq!(one.statistics.new_chunks, 100);
    let two = vault.backup(&host, "web01", &second).unwrap();
    assert_eq!(two.statistics.new_chunks, 5);
    assert_eq!(two.manifest.sequence, one.manifest.sequence + 1);
    assert_eq!(two.manifest.previous, [one.point]);
    // Another run of the same host, and another series of it.
    let again = vault.backup(&writer(&vault), "web02", &second).unwrap();
    assert_eq!(again.statistics.new_chunks, 0);
    assert_whole(&vault, 3);
}

#[test]
fn a_writer_opens_nothing_that_is_stored_but_the_maps_it_made() {
    let mut vault = with_writer();
    let admin = vault.open("admin").unwrap();
    vault.backup(&admin, "db", &disk(9, 50)).unwrap();
    vault.backup(&writer(&vault), "web01", &disk(1, 50)).unwrap();
    // With all that its cache keeps.
    let host = writer(&vault);
    let opens = |id: PackId| host.storage().get_tail(&pack_name(id).unwrap(), 192).is_ok();
    for (id, pack) in packs(&vault, PackKind::Data) {
        let header = decode_header(&pack).unwrap();
        let opened = PackOpener::new(host.keys(), &header.identity, &header.wrap);
        assert!(opened.is_err() && opens(id));
    }
    for name in vault.names(Folder::Points).iter().filter(|name| !name.ends_with(".ok")) {
        let object = vault.storage.snapshot()[name].clone();
        assert!(Manifest::open(host.keys(), &object).is_err());
    }
    // It sees its own point and packs only.
    let seen = PointSet::load(&host).unwrap();
    let series: Vec<_> = seen.points.iter().map(|point| point.manifest.series.as_str()).collect();
    assert_eq!((series, seen.damaged.len()), (vec!["web01"], 0));
    assert_eq!(host.storage().list(Folder::Packs).unwrap().len(), 2);
    // And what it keeps does not open a chunk: a restore of its own point fails.
    let restored = vault.restore_all(&host).unwrap();
    assert!(restored.values().all(Result::is_err) && restored.len() == 1);
    assert_whole(&vault, 2);
}

#[test]
fn a_write_only_key_opens_for_backups_only() {
    let vault = with_writer();
    let error = vault.open_as("kvm1", WRITER).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.full_text().contains("is write-only"), "{error}");
    let host = writer(&vault);
    let error = vault.try_backup(&host, "db", &disk(1, 1), &Silent).unwrap_err();
    let text = "cannot back up to series db: this key may write to web* only";
    assert_eq!((error.kind(), error.full_text().as_str()), (ErrorKind::Usage, text));
    assert!(prune(&vault, &host).is_err());
    assert!(vault.names(Folder::Points).is_empty());
}

#[test]
fn a_lost_cache_costs_a_full_backup_and_no_order() {
    let mut vault = with_writer();
    vault.backup(&writer(&vault), "web01", &disk(1, 50)).unwrap();
    let latest = vault.backup(&writer(&vault), "web01", &disk(1, 50)).unwrap();
    std::fs::remove_dir_all(vault.cache("kvm1")).unwrap();
    let after = vault.backup(&writer(&vault), "web01", &disk(2, 50)).unwrap();
    assert!(after.manifest.sequence > latest.manifest.sequence);
    let next = vault.backup(&writer(&vault), "web01", &disk(2, 50)).unwrap();
    assert_eq!(
        (next.statistics.new_chunks, next.manifest.sequence),
        (0, after.manifest.sequence + 1)
    );
    let points = PointSet::load(&vault.open("admin").unwrap()).unwrap();
    assert_eq!(points.latest("web01").unwrap().id, next.point);
    assert_whole(&vault, 4);
}

#[test]
fn a_spoilt_cache_is_a_lost_one() {
    let mut vault = with_writer();
    vault.backup(&writer(&vault), "web01", &disk(1, 50)).unwrap();
    let mut spoilt = 0;
    let mut folders = vec![vault.cache("kvm1")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.components().any(|part| part.as_os_str() == "own") {
                let mut bytes = std::fs::read(&path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(&path, bytes).unwrap();
                spoilt += 1;
            }
        }
    }
    assert!(spoilt >= 3, "two packs and a manifest");
    vault.backup(&writer(&vault), "web01", &disk(1, 50)).unwrap();
    assert_whole(&vault, 2);
}

#[test]
fn nobody_builds_upon_a_writer_before_its_pack_was_read() {
    let mut vault = with_writer();
    vault.backup(&writer(&vault), "web01", &disk(1, 50)).unwrap();
    let admin = vault.open("admin").unwrap();
    let first = vault.backup(&admin, "db", &disk(1, 50)).unwrap();
    assert_eq!(first.statistics.new_chunks, 50);
    // Also where the point before is the writer's.
    let third = vault.backup(&admin, "web01", &changed(&disk(1, 50), 4, 1)).unwrap();
    assert_eq!(third.statistics.new_chunks, 1);
    assert_whole(&vault, 3);
    // Another writer builds on its own only, verified or not.
    let mut vault = with_writer();
    vault.backup(&writer(&vault), "web01", &disk(1, 50)).unwrap();
    let mut admin = vault.open("admin").unwrap();
    assert_eq!(damage_of(&vault.check(&admin, true).unwrap()), "");
    let verified = vault.backup(&admin, "db", &disk(1, 50)).unwrap();
    assert_eq!(verified.statistics.new_chunks, 0);
    add_writer(&mut admin, "other", &[]);
    let other = open_writer(&vault, "kvm2", "other").unwrap();
    let own = vault.backup(&other, "app", &disk(1, 50)).unwrap();
    assert_eq!(own.statistics.new_chunks, 50);
    assert_whole(&vault, 3);
}

#[test]
fn a_lie_under_a_known_id_harms_nobody_and_shows() {
    let mut vault = with_writer();
    let admin = vault.open("admin").unwrap();
    let keys = writer(&vault).keys().clone();
    let content = disk(1, 40);
    let (chunk, _) = content["vda"].split_at(CHUNK_BYTES as usize);
    let id = keys.chunk_id(chunk).0;
    // Before anybody stored the chunk, and after.
    let lie = put_lie(&vault, &keys, EntryKind::Chunk, id, &noise(77, chunk.len()));
    let stored = vault.backup(&admin, "db", &content).unwrap();
    assert_eq!(stored.statistics.new_chunks, 40);
    put_lie(&vault, &keys, EntryKind::Chunk, id, &noise(78, chunk.len()));
    put_lie(&vault, &keys, EntryKind::Splice, id, &noise(79, 40));
    // A prune does not take the true one for superfluous, nor the pack that it lies in.
    let extra = vault.backup(&admin, "db", &changed(&content, 5, 20)).unwrap();
    forget_ids(&admin, &[extra.point]);
    vault.known.remove(&extra.point);
    prune(&vault, &admin).unwrap();
    let repository = vault.open("stranger").unwrap();
    let restored = vault.restore_all(&repository).unwrap();
    assert!(restored.values().all(Result::is_ok) && restored.len() == 1, "{restored:?}");
    assert!(vault.storage.size(&pack_name(lie).unwrap()).unwrap().is_none(), "nobody needs it");
    let lie = put_lie(&vault, &keys, EntryKind::Chunk, id, &noise(80, chunk.len()));
    let repository = vault.open("stranger").unwrap();
    let damage = damage_of(&vault.check(&repository, true).unwrap());
    assert!(damage.contains(&format!("pack {lie} is damaged")), "{damage}");
    // Found to be lies, they are still nothing to build upon.
    let again = vault.backup(&repository, "other", &content).unwrap();
    assert_eq!(again.statistics.new_chunks, 0);
    let restored = vault.restore_all(&repository).unwrap();
    assert!(restored.values().all(Result::is_ok), "{restored:?}");
}

#[test]
fn who_is_not_listed_makes_no_points_and_no_packs() {
    let mut vault = with_writer();
    let report = vault.backup(&writer(&vault), "web01", &disk(1, 20)).unwrap();
    let keys = stranger(&vault);
    let writer = keys.write_only_writer().unwrap();
    let forged = Manifest { sequence: u64::MAX, writer, ..report.manifest.clone() };
    let point = put_manifest(&vault, &keys, &forged);
    let pack = put_lie(&vault, &keys, EntryKind::Chunk, [1; 32], &noise(7, 100));
    assert_no_point(&vault, point, "is signed by writer");
    let admin = vault.open("admin").unwrap();
    // A restore of the newest point does not doubt which it is.
    let points = PointSet::load(&admin).unwrap();
    assert_eq!(points.doubts(&admin).unwrap(), [""; 0]);
    assert_eq!(points.latest("web01").unwrap().id, report.point);
    // What has to stay is told only once somebody has looked: the record may be what is lost.
    let error = prune(&vault, &admin).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unlisted);
    assert_eq!(
        error.hint_text().unwrap(),
        "`diskvault repair objects` sets aside what does not count"
    );
    repair_objects(&admin, &REPAIR, &Silent).unwrap();
    prune(&vault, &admin).unwrap();
    let name = pack_name(pack).unwrap();
    assert!(vault.storage.size(&name).unwrap().is_some(), "evidence stays");
    assert_whole(&vault, 1);
}

#[test]
fn a_damaged_record_of_a_writer_takes_no_point_away() {
    let mut vault = with_writer();
    vault.backup(&writer(&vault), "web01", &disk(1, 20)).unwrap();
    let records = vault.names(Folder::Writers);
    assert_eq!(records.len(), 2);
    let spoil = |name: &str| {
        let mut bytes = vault.storage.snapshot()[name].clone();
        bytes[60] ^= 1;
        vault.storage.remove(name);
        vault.storage.insert(name, bytes);
    };
    spoil(&records[0]);
    let admin = vault.open("admin").unwrap();
    assert!(
        admin.warnings().iter().any(|text| text.contains(&records[0])),
        "{:?}",
        admin.warnings()
    );
    assert!(damage_of(&vault.check(&admin, true).unwrap()).contains(&records[0]));
    // With both it cannot be told what counts: nothing is taken away, not even by a repair.
    spoil(&records[1]);
    let admin = vault.open("admin").unwrap();
    assert_eq!(PointSet::load(&admin).unwrap().unlisted.len(), 1);
    assert_eq!(prune(&vault, &admin).unwrap_err().kind(), ErrorKind::Unlisted);
    let before = vault.storage.snapshot();
    let repairs = repair_objects(&admin, &REPAIR, &Silent).unwrap();
    assert!(repairs.iter().all(|repair| repair.aside.is_none()), "{repairs:?}");
    assert!(before == vault.storage.snapshot());
    // One is enough for all, and the other can go then.
    spoil(&records[1]);
    let admin = vault.open("admin").unwrap();
    let repairs = repair_objects(&admin, &REPAIR, &Silent).unwrap();
    assert_eq!(repairs.len(), 1);
    assert_whole(&vault, 1);
}

fn assert_no_point(vault: &Vault, id: PointId, why: &str) {
    let admin = vault.open("admin").unwrap();
    let points = PointSet::load(&admin).unwrap();
    assert!(points.points.iter().all(|point| point.id != id));
    let warnings = points.warnings(&admin).unwrap().join("\n");
    assert!(warnings.contains(&id.to_hex()) && warnings.contains(why), "{warnings}");
}

#[test]
fn a_writer_that_was_taken_over_stays_in_its_series_and_under_its_name() {
    let mut vault = with_writer();
    let admin = vault.open("admin").unwrap();
    let good = vault.backup(&admin, "db", &disk(2, 20)).unwrap();
    let host = writer(&vault);
    let own = vault.backup(&host, "web01", &disk(1, 20)).unwrap();
    let into_db = Manifest { series: "db".into(), sequence: 99, ..own.manifest.clone() };
    assert_no_point(
        &vault,
        put_manifest(&vault, host.keys(), &into_db),
        "may not write to series db",
    );
    let named = Manifest { writer: WriterId([1; 16]), ..own.manifest.clone() };
    assert_no_point(&vault, put_manifest(&vault, host.keys(), &named), "says that");
    let points = PointSet::load(&admin).unwrap();
    assert_eq!(points.latest("db").unwrap().id, good.point);
    assert_whole(&vault, 2);
}

#[test]
fn a_removed_key_leaves_its_points_and_makes_no_more() {
    let mut vault = with_writer();
    let host = writer(&vault);
    let report = vault.backup(&host, "web01", &disk(1, 20)).unwrap();
    let keys = host.keys().clone();
    let mut admin = vault.open("admin").unwrap();
    let slots = admin.key_slots().unwrap();
    let slot = slots.iter().find(|slot| slot.writer.is_some()).unwrap();
    admin.remove_key(&slot.id.to_hex()).unwrap();
    assert_eq!(open_writer(&vault, "kvm1", WRITER).err().unwrap().kind(), ErrorKind::WrongKey);
    // Whoever has kept the keys still makes no point, also not after another admin's look.
    let late = Manifest { sequence: 50, ..report.manifest.clone() };
    assert_no_point(&vault, put_manifest(&vault, &keys, &late), "was retired before");
    assert_whole(&vault, 1);
}

#[test]
fn a_prune_leaves_a_writer_its_packs_and_one_that_loses_some_goes_on() {
    let mut vault = with_writer();
    let admin = vault.open("admin").unwrap();
    let host = writer(&vault);
    let base = disk(1, 200);
    let mut ids = Vec::new();
    for day in 0..4 {
        let report = vault.backup(&host, "web01", &changed(&base, 10 + day, 64)).unwrap();
        ids.push(report.point);
    }
    forget_ids(&admin, &ids[..2]);
    ids[..2].iter().for_each(|id| drop(vault.known.remove(id)));
    assert!(prune(&vault, &admin).unwrap().deleted_packs > 0);
    let next = vault.backup(&writer(&vault), "web01", &changed(&base, 13, 64)).unwrap();
    assert_eq!(next.statistics.new_chunks, 0, "all it needs is in packs of its own");
    assert_whole(&vault, 3);
    // Now little is left of some packs, and it is moved to where the writer does not see it.
    let last = vault.backup(&writer(&vault), "web01", &changed(&disk(3, 200), 99, 0)).unwrap();
    let mut mixed = disk(3, 200);
    mixed.get_mut("vda").unwrap()[..10 * CHUNK_BYTES as usize]
        .copy_from_slice(&base["vda"][150 * CHUNK_BYTES as usize..160 * CHUNK_BYTES as usize]);
    let kept = vault.backup(&writer(&vault), "web01", &mixed).unwrap();
    assert_eq!(kept.statistics.new_chunks, 0);
    let gone = [ids[2], ids[3], next.point, last.point];
    forget_ids(&admin, &gone);
    gone.iter().for_each(|id| drop(vault.known.remove(id)));
    let pruned = prune(&vault, &admin).unwrap();
    assert!(pruned.copied_bytes > 0 && pruned.deleted_packs > 0, "{pruned:?}");
    assert_whole(&vault, 1);
    let after = vault.backup(&writer(&vault), "web01", &mixed).unwrap();
    assert!((10..=64).contains(&after.statistics.new_chunks), "{:?}", after.statistics);
    assert_whole(&vault, 2);
}

#[test]
fn a_writer_that_was_fenced_leaves_its_manifest_to_the_resolver() {
    let mut vault = with_writer();
    let host = writer(&vault);
    let report = vault.backup(&host, "web01", &disk(1, 20)).unwrap();
    let session = Session::begin(&host, "kvm1", &Silent).unwrap();
    for lease in vault.names(Folder::Leases) {
        vault.storage.remove(lease);
    }
    let sequence = report.manifest.sequence + 1;
    let manifest = Manifest { lease: session.lease(), sequence, ..report.manifest.clone() };
    assert_eq!(session.publish(&manifest).unwrap_err().kind(), ErrorKind::Fenced);
    let admin = vault.open("admin").unwrap();
    assert_eq!(PointSet::load(&admin).unwrap().unfinished.len(), 1);
    assert_eq!(prune(&vault, &admin).unwrap().resolved.finished, 1);
    let points = PointSet::load(&admin).unwrap();
    let latest = points.latest("web01").unwrap().id;
    vault.known.insert(latest, vault.known[&report.point].clone());
    assert_whole(&vault, 2);
}

/// Brings the keys of a replica up to date, then its points.
fn sync(admin: &Repository, target: &Vault) {
    let storage = Arc::new(target.storage.clone());
    let open =
        || admin.open_copy(storage.clone(), &target.cache("syncer"), Arc::new(Silent)).unwrap();
    let mut to = open();
    if relation(admin, &to).unwrap() == Relation::SourceIsNewer {
        bring_keys_up(admin, &to).unwrap();
        to = open();
    }
    let planned = plan(admin, &to, false, &|_| true).unwrap();
    let syncer = Syncer { source: admin, target: &to, host: "syncer", monitor: &Silent };
    syncer.run(&planned, &mut |_, _| Ok(())).unwrap();
}

#[test]
fn a_key_that_is_removed_takes_no_point_from_a_replica_that_has_more() {
    let mut source = with_writer();
    let host = writer(&source);
    for day in 0..3 {
        source.backup(&host, "web01", &changed(&disk(1, 50), day, 5)).unwrap();
    }
    let mut admin = source.open("admin").unwrap();
    let mut target = Vault::empty(Arc::new(SeededEnvironment::new(2)));
    initialise_replica(&admin, &target.storage).unwrap();
    sync(&admin, &target);
    target.known.clone_from(&source.known);
    let points = PointSet::load(&admin).unwrap();
    forget_ids(&admin, &[points.points[0].id]);
    prune(&source, &admin).unwrap();
    let slot = admin.key_slots().unwrap().into_iter().find(|slot| slot.writer.is_some()).unwrap();
    admin.remove_key(&slot.id.to_hex()).unwrap();
    sync(&admin, &target);
    assert_whole(&target, 3);
}

#[test]
fn a_forgotten_point_of_a_removed_key_comes_back() {
    let mut vault = with_writer();
    let report = vault.backup(&writer(&vault), "web01", &disk(1, 20)).unwrap();
    let mut admin = vault.open("admin").unwrap();
    forget_ids(&admin, &[report.point]);
    let slot = admin.key_slots().unwrap().into_iter().find(|slot| slot.writer.is_some()).unwrap();
    admin.remove_key(&slot.id.to_hex()).unwrap();
    let new = undo(&admin, &report.point.to_hex(), "admin", &Silent).unwrap();
    vault.known.insert(new, vault.known[&report.point].clone());
    assert_whole(&vault, 1);
    prune(&vault, &admin).unwrap();
}

#[test]
fn a_prune_does_not_tell_a_writer_what_others_stored() {
    let mut vault = with_writer();
    let admin = vault.open("admin").unwrap();
    let content = disk(1, 20);
    vault.backup(&admin, "db", &content).unwrap();
    let keys = host_keys(&vault);
    let (chunk, _) = content["vda"].split_at(CHUNK_BYTES as usize);
    let right = put_lie(&vault, &keys, EntryKind::Chunk, keys.chunk_id(chunk).0, chunk);
    let wrong = noise(70, chunk.len());
    let wrong = put_lie(&vault, &keys, EntryKind::Chunk, keys.chunk_id(&wrong).0, &wrong);
    prune(&vault, &admin).unwrap();
    let is_there = |id| vault.storage.size(&pack_name(id).unwrap()).unwrap().is_some();
    assert_eq!([is_there(right), is_there(wrong)], [false, false]);
    assert_whole(&vault, 1);
}

#[test]
fn a_lie_does_not_go_to_a_replica_in_place_of_the_chunk() {
    let mut source = with_writer();
    let mut admin = source.open("admin").unwrap();
    add_writer(&mut admin, "other", &["app"]);
    let content = disk(1, 20);
    let (chunk, _) = content["vda"].split_at(CHUNK_BYTES as usize);
    let keys = host_keys(&source);
    let id = keys.chunk_id(chunk).0;
    put_lie(&source, &keys, EntryKind::Chunk, id, &noise(70, chunk.len()));
    let other = open_writer(&source, "kvm2", "other").unwrap();
    source.backup(&other, "app", &content).unwrap();
    put_lie(&source, &keys, EntryKind::Chunk, id, &noise(71, chunk.len()));
    let admin = source.open("admin").unwrap();
    let mut target = Vault::empty(Arc::new(SeededEnvironment::new(2)));
    initialise_replica(&admin, &target.storage).unwrap();
    sync(&admin, &target);
    target.known.clone_from(&source.known);
    let repository = target.open("stranger").unwrap();
    let restored = target.restore_all(&repository).unwrap();
    assert!(restored.values().all(Result::is_ok) && restored.len() == 1, "{restored:?}");
}

#[test]
fn a_replica_takes_writers_over_with_all_they_stored() {
    let mut source = with_writer();
    let host = writer(&source);
    for day in 0..3 {
        source.backup(&host, "web01", &changed(&disk(1, 50), day, 5)).unwrap();
    }
    let admin = source.open("admin").unwrap();
    source.backup(&admin, "db", &disk(1, 50)).unwrap();
    let mut target = Vault::empty(Arc::new(SeededEnvironment::new(2)));
    initialise_replica(&admin, &target.storage).unwrap();
    sync(&admin, &target);
    let there = target.storage.snapshot();
    sync(&admin, &target);
    assert!(there == target.storage.snapshot(), "a second one writes nothing");
    target.known.clone_from(&source.known);
    assert_whole(&target, 4);
}

#[test]
fn a_config_of_nobody_locks_nobody_out() {
    let mut vault = with_writer();
    vault.backup(&writer(&vault), "web01", &disk(1, 20)).unwrap();
    // As somebody without keys can put one: of a great generation, and a slot that opens nothing.
    let admin = vault.open("admin").unwrap();
    let mut config = admin.config().clone();
    config.generation = u32::MAX;
    config.key_slots = vec![KeySlotId([7; 32])];
    let leaf = names::config(config.generation, &[5; 16]);
    let bytes = config.encode(host_keys(&vault).as_ref(), &leaf);
    vault.storage.insert(format!("config/{leaf}"), bytes);
    // And a copy of the one that counts, with a byte changed: its slots open, and it is nobody's.
    let config = vault.names(Folder::Config).into_iter().rev().nth(1).unwrap();
    let mut bytes = vault.storage.snapshot()[&config].clone();
    bytes[12..16].copy_from_slice(&0xffff_fffe_u32.to_le_bytes());
    let copy = names::config(0xffff_fffe, &[6; 16]);
    vault.storage.insert(format!("config/{copy}"), bytes);
    let admin = vault.open("admin").unwrap();
    let warns = |leaf| admin.warnings().iter().any(|text| text.contains(leaf));
    assert!(warns(leaf.as_str()) && warns(copy.as_str()), "{:?}", admin.warnings());
    let host = writer(&vault);
    assert!(host.warnings().iter().any(|text| text.contains(&leaf)), "{:?}", host.warnings());
    assert_eq!(vault.backup(&host, "web01", &disk(1, 20)).unwrap().statistics.new_chunks, 0);
    assert_eq!(vault.open_as("admin", "wrong").err().unwrap().kind(), ErrorKind::Damage);
    assert_eq!(vault.restore_all(&admin).unwrap().len(), 2);
}

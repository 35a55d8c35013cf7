//! Content at another phase of the grid: stored once, put together on the way back, and never
//! trusted more than a chunk of its own.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]

#[path = "support/lab.rs"]
mod lab;
mod support;

use diskvault::backup::ChunkerChoice;
use diskvault::error::ErrorKind;
use diskvault::monitor::Silent;
use diskvault::repository::Repository;
use diskvault::repository::locate::Locator;
use diskvault::repository::objects::seal_record;
use diskvault::repository::pack_reader::pack_name;
use diskvault::repository::points::PointSet;
use diskvault::repository::session::Session;
use diskvault::restore::fetch::Wanted;
use diskvault::storage::{Folder, ObjectName};
use diskvault_format::crypto::{ObjectKind, Secret};
use diskvault_format::id::{ChunkId, LeaseId, PackId};
use diskvault_format::pack::{PackKind, PackSecrets, PreparedSegment, SealedPack, assemble};
use diskvault_format::segment::{Entry, EntryKind, SegmentDecoder, SegmentEncoder};
use diskvault_format::small::Condemned;
use diskvault_format::splice::{PIECE_BYTES, Piece, Splice};
use lab::Lab;
use std::collections::BTreeMap;
use std::sync::Mutex;
use support::vault::{Parts, Vault, damage_of, noise, restore};

const FILE_BYTES: usize = 4 << 20;
const MIB: usize = 1 << 20;

/// A disk with the same file somewhere on it; `phase` says where.
fn with_file_at(phase: usize) -> Parts {
    let mut disk = noise(phase as u64, 65_536);
    disk.resize(65_536 + phase, 7);
    disk.extend(noise(1, FILE_BYTES));
    disk.resize(disk.len().next_multiple_of(4096), 0);
    Parts::from([("vda".into(), disk)])
}

/// A repository where the file is stored by its bytes, and a second point where it is displaced.
fn with_two_phases() -> (Vault, Repository) {
    let mut vault = Vault::new(1);
    let repository = vault.open("host").unwrap();
    let first = vault.backup(&repository, "a", &with_file_at(0)).unwrap();
    assert!(first.statistics.new_bytes > FILE_BYTES as u64);
    let second = vault.backup(&repository, "b", &with_file_at(1000)).unwrap();
    // The start of the disk, and what lies near the ends of packs, which are small here.
    let new = second.statistics.new_bytes;
    assert!(new < 65_536 + FILE_BYTES as u64 / 5, "{new} new bytes");
    (vault, repository)
}

fn packs_of_kind(repository: &Repository, kind: PackKind) -> Vec<PackId> {
    let locator = Locator::open(repository, &Silent).unwrap();
    let is_it = |id: &PackId| locator.pack(repository, *id).unwrap().kind == kind;
    locator.listed().iter().copied().filter(is_it).collect()
}

fn entries_of_kind(repository: &Repository, kind: EntryKind) -> Vec<Entry> {
    let locator = Locator::open(repository, &Silent).unwrap();
    let packs = locator.listed().iter().map(|id| locator.pack(repository, *id).unwrap());
    let segments = packs.flat_map(|pack| pack.footer.segments.clone());
    segments.flat_map(|segment| segment.entries).filter(|entry| entry.kind == kind).collect()
}

#[test]
fn displaced_content_is_stored_once_and_comes_back() {
    let (mut vault, repository) = with_two_phases();
    let splices = entries_of_kind(&repository, EntryKind::Splice);
    assert!(splices.len() > FILE_BYTES / 4096 * 4 / 5, "{}", splices.len());
    assert!(splices.iter().all(|splice| splice.bytes as usize == 2 * PIECE_BYTES));
    // Known by its id as any other chunk is, whoever asks.
    for (cache, series) in [("host", "b"), ("host", "c"), ("stranger", "d")] {
        let repository = vault.open(cache).unwrap();
        let report = vault.backup(&repository, series, &with_file_at(1000)).unwrap();
        assert_eq!(report.statistics.new_bytes, 0, "{cache}: {series}");
    }
    // Another host finds it too: the anchors stand in the footers.
    let repository = vault.open("third").unwrap();
    let report = vault.backup(&repository, "e", &with_file_at(2220)).unwrap();
    let new = report.statistics.new_bytes;
    assert!(new < 65_536 + FILE_BYTES as u64 / 5, "{new} new bytes");
    let outcomes = vault.restore_all(&repository).unwrap();
    assert_eq!(outcomes.len(), 6);
    assert!(outcomes.values().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(damage_of(&vault.check(&repository, true).unwrap()), "");
}

#[test]
fn what_was_changed_in_place_is_no_splice() {
    let mut vault = Vault::new(1);
    let repository = vault.open("host").unwrap();
    let mut parts = with_file_at(0);
    vault.backup(&repository, "a", &parts).unwrap();
    let disk = parts.get_mut("vda").unwrap();
    disk.chunks_mut(4096).for_each(|chunk| chunk[100] ^= 1);
    let report = vault.backup(&repository, "a", &parts).unwrap();
    assert_eq!(report.statistics.new_bytes, parts["vda"].len() as u64);
    assert_eq!(entries_of_kind(&repository, EntryKind::Splice), []);
}

#[test]
fn lost_pieces_are_named_and_stored_again() {
    let (mut vault, repository) = with_two_phases();
    // The pack with the middle of the file, which both points need.
    let middle = &with_file_at(0)["vda"][65_536 + FILE_BYTES / 2..][..4096];
    let id = repository.keys().chunk_id(middle);
    let locator = Locator::open(&repository, &Silent).unwrap();
    let lost = locator.find(&repository, &id.0).unwrap().unwrap().pack.id;
    drop(locator);
    assert!(vault.storage.remove(pack_name(lost).unwrap()));
    for cache in ["host", "stranger"] {
        let repository = vault.open(cache).unwrap();
        let outcomes = vault.restore_all(&repository).unwrap();
        for outcome in outcomes.into_values() {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damage);
            assert!(error.full_text().contains("no pack holds it"), "{error:?}");
        }
        let found = damage_of(&vault.check(&repository, false).unwrap());
        assert!(found.contains(" in no pack") && found.contains("b "), "{found}");
        let found = damage_of(&vault.check(&repository, true).unwrap());
        assert!(found.contains(" in no pack") && found.contains("b "), "{found}");
    }
    // A splice without its pieces counts as absent, though its own pack is there.
    let repository = vault.open("host").unwrap();
    let report = vault.backup(&repository, "b", &with_file_at(1000)).unwrap();
    assert!(report.statistics.new_bytes > 0);
    assert!(!packs_of_kind(&repository, PackKind::Data).contains(&lost));
    let outcomes = vault.restore_all(&repository).unwrap();
    assert!(outcomes[&report.point].is_ok(), "{outcomes:?}");
    assert_eq!(outcomes.values().filter(|outcome| outcome.is_ok()).count(), 2);
}

#[test]
fn pieces_in_condemned_packs_are_not_built_upon() {
    let (mut vault, repository) = with_two_phases();
    let packs = packs_of_kind(&repository, PackKind::Data);
    let name = condemn(&vault, &repository, &packs);
    // What is there as splices, and what would be one for the first time.
    let known = vault.backup(&repository, "c", &with_file_at(1000)).unwrap();
    assert_eq!(known.statistics.new_bytes, with_file_at(1000)["vda"].len() as u64);
    let other = vault.backup(&repository, "d", &with_file_at(1000 + 4096)).unwrap();
    assert!(other.statistics.new_bytes < 65_536 + FILE_BYTES as u64 / 5, "{:?}", other.statistics);
    // The pruner goes on.
    for pack in packs {
        vault.storage.remove(pack_name(pack).unwrap());
    }
    vault.storage.remove(&name);
    let repository = vault.open("stranger").unwrap();
    let outcomes = vault.restore_all(&repository).unwrap();
    for point in [known.point, other.point] {
        assert!(outcomes[&point].is_ok(), "{outcomes:?}");
    }
}

type Forge = fn(&[Piece]) -> Vec<Piece>;

/// What may be wrong with a splice, and what is said then.
const FORGERIES: [(Forge, &str); 4] = [
    (|pieces| with_first(pieces, |piece| piece.offset -= 1), "S-9"),
    (|pieces| with_first(pieces, |piece| piece.offset += 1), "S-12"),
    (|pieces| pieces[..1].to_vec(), "M-8"),
    (|pieces| with_first(pieces, |piece| piece.chunk = ChunkId([8; 32])), "no pack holds it"),
];

fn with_first(pieces: &[Piece], change: impl Fn(&mut Piece)) -> Vec<Piece> {
    let mut pieces = pieces.to_vec();
    change(&mut pieces[0]);
    pieces
}

/// Replaces every splice by what `forge` makes of it; pages stay as they are.
fn forge(vault: &Vault, repository: &Repository, forge: &dyn Fn(&[Piece]) -> Vec<Piece>) {
    for id in packs_of_kind(repository, PackKind::Map) {
        let pack = forged(vault, repository, id, 5, forge);
        vault.storage.remove(pack_name(id).unwrap());
        vault.storage.insert(pack_name(pack.id).unwrap(), pack.bytes);
    }
}

/// A map pack with other splices; `number` gives it another id.
fn forged(
    vault: &Vault,
    repository: &Repository,
    id: PackId,
    number: u8,
    forge: &dyn Fn(&[Piece]) -> Vec<Piece>,
) -> SealedPack {
    let locator = Locator::open(repository, &Silent).unwrap();
    let mut decoder = SegmentDecoder::new().unwrap();
    let mut encoder = SegmentEncoder::new(3).unwrap();
    let pack = locator.pack(repository, id).unwrap();
    let mut segments = Vec::new();
    for (ordinal, segment) in (0..).zip(&pack.footer.segments) {
        let mut data = Vec::new();
        pack.read_segment(&vault.storage, ordinal, &mut decoder, &mut data).unwrap();
        let (mut entries, mut forged, mut start) = (Vec::new(), Vec::new(), 0);
        for entry in &segment.entries {
            let mut bytes = data[start..start + entry.bytes as usize].to_vec();
            start += bytes.len();
            if entry.kind == EntryKind::Splice {
                let splice = Splice::decode(&bytes).unwrap();
                bytes = Splice::new(forge(splice.pieces())).unwrap().encode();
            }
            entries.push(Entry { bytes: bytes.len() as u32, ..*entry });
            forged.extend(bytes);
        }
        let mut plaintext = Vec::new();
        encoder.encode(&entries, &forged, &mut plaintext).unwrap();
        segments.push(PreparedSegment { entries, anchors: Vec::new(), plaintext });
    }
    let secrets =
        PackSecrets { key: Secret::new([number; 32]), wrap_random: [6; 32], own_copy: None };
    let lease = LeaseId([7; 16]);
    assemble(repository.keys(), PackKind::Map, lease, &secrets, segments).unwrap()
}

/// A chunk may have been stored as several splices; those that are no good do not hide one that is.
#[test]
fn a_good_splice_is_found_among_others() {
    for (forgery, rule) in FORGERIES {
        let (vault, repository) = with_two_phases();
        for id in packs_of_kind(&repository, PackKind::Map) {
            // One that comes before the good one and one that comes behind it, in the order of
            // their names.
            for is_before in [true, false] {
                let mut all =
                    (5..250).map(|number| forged(&vault, &repository, id, number, &forgery));
                let pack = all.find(|pack| (pack.id < id) == is_before).unwrap();
                vault.storage.insert(pack_name(pack.id).unwrap(), pack.bytes);
            }
        }
        let repository = vault.open("stranger").unwrap();
        let outcomes = vault.restore_all(&repository).unwrap();
        assert!(outcomes.values().all(Result::is_ok), "{rule}: {outcomes:?}");
        let found = damage_of(&vault.check(&repository, true).unwrap());
        assert!(found.contains("cannot be put together"), "{rule}: {found}");
    }
}

/// A chunk stored both ways comes back by its splice when its bytes are gone, though the index of
/// this run still knows them.
#[test]
fn a_splice_stands_in_for_bytes_that_are_gone() {
    let (mut vault, repository) = with_two_phases();
    let first = packs_of_kind(&repository, PackKind::Data);
    let name = condemn(&vault, &repository, &first);
    let again = vault.backup(&repository, "c", &with_file_at(1000)).unwrap();
    assert_eq!(again.statistics.new_bytes, with_file_at(1000)["vda"].len() as u64);
    // The pruner thinks better of it: the file is there by its bytes in both phases.
    vault.storage.remove(&name);
    let repository = vault.open("stranger").unwrap();
    let locator = Locator::open(&repository, &Silent).unwrap();
    let all = packs_of_kind(&repository, PackKind::Data);
    for id in all.iter().filter(|id| !first.contains(id)) {
        vault.storage.remove(pack_name(*id).unwrap());
    }
    let points = PointSet::load(&repository).unwrap();
    for point in points.points.iter().filter(|point| point.manifest.series != "a") {
        // What was not spliced in the second point is in the first packs, too.
        let restored = restore(&repository, &locator, point).unwrap();
        assert!(restored == with_file_at(1000), "{}", point.manifest.series);
    }
}

fn condemn(vault: &Vault, repository: &Repository, packs: &[PackId]) -> ObjectName {
    let list = Condemned { packs: packs.to_vec(), host: "pruner".into(), time_unix_ns: 1 };
    let name = ObjectName::new(Folder::Condemned, &"ab".repeat(16)).unwrap();
    let object =
        seal_record(repository.keys(), ObjectKind::Condemned, Some(&name), &[3; 32], &list);
    vault.storage.insert(&name, object.unwrap());
    name
}

/// A map pack holds content now: a point that was made while one was met damaged may have taken
/// over what is in it, so the next backup has to look again.
#[test]
fn damage_met_on_the_way_is_not_remembered_as_whole() {
    let (mut vault, repository) = with_two_phases();
    let report = vault.backup(&repository, "b", &with_file_at(1000)).unwrap();
    assert_eq!(report.statistics.new_bytes, 0);
    let is_known = |repository: &Repository| {
        let session = Session::begin(repository, "host", &Silent).unwrap();
        let point = session.points().latest("b").unwrap();
        session.is_known_complete(point).unwrap()
    };
    assert!(is_known(&repository));
    let top = report.manifest.disks[0].top.unwrap();
    let locator = Locator::open(&repository, &Silent).unwrap();
    let found = locator.find(&repository, &top.0).unwrap().unwrap();
    let segment = &found.pack.footer.segments[found.segment as usize];
    let bad = segment.offset as usize + 100;
    assert!(vault.storage.corrupt(pack_name(found.pack.id).unwrap(), |data| data[bad] ^= 1));
    drop(locator);
    let report = vault.backup(&repository, "b", &with_file_at(1000)).unwrap();
    assert!(!is_known(&repository));
    let outcomes = vault.restore_all(&repository).unwrap();
    assert!(outcomes[&report.point].is_ok(), "{outcomes:?}");
}

#[test]
fn forged_splices_are_refused() {
    for (forgery, rule) in FORGERIES {
        let (vault, repository) = with_two_phases();
        forge(&vault, &repository, &forgery);
        let repository = vault.open("stranger").unwrap();
        let outcomes = vault.restore_all(&repository).unwrap();
        let errors: Vec<_> = outcomes.into_values().filter_map(Result::err).collect();
        assert_eq!(errors.len(), 1, "{rule}: the point without splices is whole");
        assert_eq!(errors[0].kind(), ErrorKind::Damage);
        assert!(errors[0].full_text().contains(rule), "{rule}: {:?}", errors[0]);
        let found = damage_of(&vault.check(&repository, true).unwrap());
        assert!(!found.is_empty(), "{rule}");
    }
}

/// A splice of splices could be one of itself.
#[test]
fn a_splice_of_splices_is_refused() {
    let (vault, repository) = with_two_phases();
    let inner = entries_of_kind(&repository, EntryKind::Splice).remove(0);
    forge(&vault, &repository, &|pieces| {
        let bytes = pieces.iter().map(|piece| piece.bytes).sum();
        vec![Piece { chunk: ChunkId(inner.id), offset: 0, bytes }]
    });
    let repository = vault.open("stranger").unwrap();
    let outcomes = vault.restore_all(&repository).unwrap();
    let errors: Vec<_> = outcomes.into_values().filter_map(Result::err).collect();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].full_text().contains("no pack holds it"), "{errors:?}");
}

/// Chunks that wait for pieces from other segments are put together in rounds, so that they take
/// a bounded part of memory: here 30 MiB of them, of which 16 fit into a round.
#[test]
fn what_is_spread_over_segments_comes_in_rounds() {
    let (lab, _) = Lab::in_memory(1 << 20, 2);
    let data = noise(5, 40 * MIB);
    std::fs::write(lab.path("disk"), &data).unwrap();
    lab.backup("a", &[lab::disk("vda", &lab.path("disk"))], ChunkerChoice::Fixed, &[]);
    let keys = lab.repository.keys();
    let ids: Vec<ChunkId> = data.chunks(MIB).map(|chunk| keys.chunk_id(chunk)).collect();
    let half = MIB / 2;
    let mut wanted = Vec::new();
    let mut expected = BTreeMap::new();
    for round in 0..3 {
        for (number, pair) in ids.windows(2).enumerate() {
            let piece = |chunk, offset| Piece { chunk, offset, bytes: half as u32 };
            let splice = Splice::new(vec![piece(pair[0], half as u32), piece(pair[1], 0)]).unwrap();
            let start = number * MIB + half;
            let chunk = &data[start..start + MIB];
            let offset = (round * data.len() + start) as u64;
            let item = Wanted { offset, bytes: MIB as u32, id: keys.chunk_id(chunk) };
            wanted.push((item, splice));
            expected.insert(offset, chunk);
        }
    }
    let locator = lab.locator();
    let found = Mutex::new(BTreeMap::new());
    let sink = |offset, chunk: &[u8]| {
        let before = found.lock().unwrap().insert(offset, chunk.to_vec());
        assert!(before.is_none(), "{offset} came twice");
        Ok(())
    };
    let refused = lab.fetcher(&locator).put_together(wanted, &sink).unwrap();
    assert!(refused.is_empty(), "{refused:?}");
    let found = found.into_inner().unwrap();
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|(offset, chunk)| expected[offset] == &chunk[..]));
}

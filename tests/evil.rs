//! Hostile inputs: objects made by somebody who has the keys or plays the storage. They are
//! refused before they cost memory or time, and no clone of a client repeats a name or a nonce.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;

use diskvault::environment::{Environment, SystemEnvironment};
use diskvault::error::ErrorKind;
use diskvault::monitor::Silent;
use diskvault::repository::Repository;
use diskvault::repository::locate::Locator;
use diskvault::repository::objects::seal_record;
use diskvault::repository::pack_reader::pack_name;
use diskvault::repository::points::PointSet;
use diskvault::storage::memory::MemoryStorage;
use diskvault::storage::{Folder, ObjectEntry, ObjectName, Storage};
use diskvault_format::crypto::{ObjectKind, Secret};
use diskvault_format::id::{LeaseId, MapRoot, PointId};
use diskvault_format::manifest::Manifest;
use diskvault_format::map::map_root;
use diskvault_format::names;
use diskvault_format::pack::{PackKind, PackSecrets, PreparedSegment, SealedPack, assemble};
use diskvault_format::segment::{Entry, EntryKind, SegmentEncoder};
use diskvault_format::stream_map::StreamPage;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::vault::{Parts, Vault, copy_folder, damage_of, noise, passphrase, restore};

/// What a hostile object may cost beyond what a harmless one costs.
const MEMORY_BYTES_MAX: u64 = 192 << 20;

fn machine(day: u64) -> Parts {
    let mut disk = noise(1, 256 << 10);
    disk[..32 << 10].copy_from_slice(&noise(100 + day, 32 << 10));
    Parts::from([("vda".into(), disk), ("conf".into(), noise(200 + day, 10_000))])
}

/// The most memory this process ever had, in bytes.
fn memory_peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Replaces every data pack by one pack of somebody who has the keys: its footer has the same
/// entries, its one segment has `payload` under them.
fn poison(vault: &Vault, repository: &Repository, payload: &dyn Fn(&[Entry]) -> Vec<u8>) -> String {
    let locator = Locator::open(repository, &Silent).unwrap();
    let mut entries = Vec::new();
    for id in locator.listed() {
        let pack = locator.pack(repository, *id).unwrap();
        if pack.kind == PackKind::Data {
            entries.extend(pack.footer.segments.iter().flat_map(|segment| segment.entries.clone()));
            vault.storage.remove(pack_name(*id).unwrap());
        }
    }
    let plaintext = payload(&entries);
    let pack = seal(repository, PreparedSegment { entries, anchors: Vec::new(), plaintext });
    let name = pack_name(pack.id).unwrap();
    vault.storage.insert(&name, pack.bytes);
    name.leaf().to_string()
}

fn seal(repository: &Repository, segment: PreparedSegment) -> SealedPack {
    let secrets = PackSecrets { key: Secret::new([5; 32]), wrap_random: [6; 32], own_copy: None };
    let keys = repository.keys();
    assemble(keys, PackKind::Data, LeaseId([7; 16]), &secrets, vec![segment]).unwrap()
}

/// A segment's plaintext: codec, table, payload.
fn plaintext(codec: u8, entries: &[Entry], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![codec, 0, 0, 0];
    bytes.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for entry in entries {
        entry.shape().write(&mut bytes);
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// A zstd frame of some 50 KiB that becomes 1 GiB of zeros.
fn bomb() -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..1024 {
        encoder.write_all(&zeros).unwrap();
    }
    encoder.finish().unwrap()
}

fn with_one_point() -> (Vault, Repository) {
    let mut vault = Vault::new(1);
    let repository = vault.open("host").unwrap();
    vault.backup(&repository, "web01", &machine(1)).unwrap();
    (vault, repository)
}

/// Everything is refused as damage, and what is refused is named.
fn assert_refused(vault: &Vault, pack: &str, rule: &str) {
    let repository = vault.open("stranger").unwrap();
    let outcomes = vault.restore_all(&repository).unwrap();
    assert_eq!(outcomes.len(), 1);
    let error = outcomes.into_values().next().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damage, "{error:?}");
    let text = error.full_text();
    assert!(text.contains(pack) && text.contains(rule), "{text}");
    let found = damage_of(&vault.check(&repository, true).unwrap());
    assert!(found.contains(pack) && found.contains(rule), "{found}");
}

#[test]
fn other_bytes_under_the_id_of_a_chunk_are_refused() {
    let (vault, repository) = with_one_point();
    let pack = poison(&vault, &repository, &|entries| {
        let total = entries.iter().map(|entry| entry.bytes as usize).sum();
        let mut plaintext = Vec::new();
        let mut encoder = SegmentEncoder::new(3).unwrap();
        encoder.encode(entries, &noise(9, total), &mut plaintext).unwrap();
        plaintext
    });
    assert_refused(&vault, &pack, "S-9");
}

#[test]
fn another_table_than_the_footer_is_refused() {
    let (vault, repository) = with_one_point();
    let pack = poison(&vault, &repository, &|entries| {
        let mut shorter = entries.to_vec();
        shorter[0].bytes -= 1;
        let total = shorter.iter().map(|entry| entry.bytes as usize).sum();
        plaintext(0, &shorter, &noise(9, total))
    });
    let repository = vault.open("stranger").unwrap();
    let outcome = vault.restore_all(&repository).unwrap().into_values().next().unwrap();
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Damage);
    let found = damage_of(&vault.check(&repository, true).unwrap());
    assert!(found.contains(&pack) && found.contains("S-10"), "{found}");
}

/// A manifest whose roots are not those of its maps, sealed with the right keys.
#[test]
fn a_map_under_another_root_is_refused() {
    let (mut vault, repository) = with_one_point();
    let mut manifest = PointSet::load(&repository).unwrap().points.remove(0).manifest;
    // Nothing else is wrong, so that only the comparison of the roots can find it.
    manifest.disks[0].root = MapRoot([1; 32]);
    manifest.streams[0].content.root = MapRoot([1; 32]);
    let forged = publish(&vault, &repository, &manifest);
    vault.known.insert(forged, Parts::new());
    let repository = vault.open("stranger").unwrap();
    let points = PointSet::load(&repository).unwrap();
    let point = points.points.iter().find(|point| point.id == forged).unwrap();
    let locator = Locator::open(&repository, &Silent).unwrap();
    // Each part by itself, so that no other rule steps in first.
    for alone in [0, 1] {
        let mut point = point.clone();
        if alone == 0 {
            point.manifest.streams.clear();
        } else {
            point.manifest.disks.clear();
        }
        let error = restore(&repository, &locator, &point).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damage);
        assert!(error.full_text().contains("F-9"), "{error:?}");
    }
    let found = damage_of(&vault.check(&repository, false).unwrap());
    let rules = found.matches("F-9").count();
    assert!(rules == 2 && found.contains(&forged.short()), "{found}");
}

/// Puts a visible point with that manifest, sealed with the right keys.
fn publish(vault: &Vault, repository: &Repository, manifest: &Manifest) -> PointId {
    let kind = ObjectKind::Manifest;
    let object = seal_record(repository.keys(), kind, None, &[9; 32], manifest).unwrap();
    let id = PointId(*blake3::hash(&object).as_bytes());
    vault.storage.insert(format!("points/{id}"), object);
    vault.storage.insert(format!("points/{id}.ok"), []);
    id
}

/// A page that is whole where one point has it is not believed where another asks more of it.
#[test]
fn a_map_page_is_judged_by_its_place() {
    let (vault, repository) = with_one_point();
    let mut manifest = PointSet::load(&repository).unwrap().points.remove(0).manifest;
    // Behind the real one, so that its pages have been found whole by then.
    manifest.sequence += 1;
    let keys = repository.keys();

    // The leaf of the disk under a disk that has one slot less.
    let disk = &mut manifest.disks[0];
    disk.allocation = None;
    disk.size -= u64::from(disk.chunking.grid().unwrap());
    disk.root = map_root(keys, disk.size, &disk.chunking, disk.top);

    // The leaf of the stream two levels below its parent.
    let stream = &mut manifest.streams[0].content;
    let page = StreamPage::Inner(2, vec![(stream.bytes, stream.top.unwrap())]).encode();
    let id = keys.page_id(&page);
    let entries = vec![Entry { id: id.0, kind: EntryKind::Page, bytes: page.len() as u32 }];
    let mut plaintext = Vec::new();
    SegmentEncoder::new(3).unwrap().encode(&entries, &page, &mut plaintext).unwrap();
    let secrets = PackSecrets { key: Secret::new([5; 32]), wrap_random: [6; 32], own_copy: None };
    let segments = vec![PreparedSegment { entries, anchors: Vec::new(), plaintext }];
    let pack = assemble(keys, PackKind::Map, LeaseId([7; 16]), &secrets, segments).unwrap();
    vault.storage.insert(pack_name(pack.id).unwrap(), pack.bytes);
    stream.top = Some(id);
    stream.root = map_root(keys, stream.bytes, &stream.chunking, stream.top);

    let forged = publish(&vault, &repository, &manifest);
    let found = damage_of(&vault.check(&vault.open("stranger").unwrap(), false).unwrap());
    for rule in ["M-6", "T-6"] {
        let line = found.lines().find(|line| line.contains(rule));
        assert!(line.is_some_and(|line| line.contains(&forged.short())), "{rule}: {found}");
    }
    assert_eq!(found.lines().count(), 2, "{found}");
}

#[test]
fn a_decompression_bomb_is_refused_without_its_memory() {
    let (vault, repository) = with_one_point();
    let payload = bomb();
    assert!(payload.len() < 1 << 20);
    let pack = poison(&vault, &repository, &|entries| plaintext(1, entries, &payload));
    let before = memory_peak_bytes();
    assert_refused(&vault, &pack, "S-8");
    let grown = memory_peak_bytes().saturating_sub(before);
    assert!(grown < MEMORY_BYTES_MAX, "{} MiB", grown >> 20);
}

#[test]
fn a_table_that_claims_more_than_a_segment_holds_is_refused() {
    let (vault, repository) = with_one_point();
    let huge = |number: u32| {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_le_bytes());
        Entry { id, kind: EntryKind::Chunk, bytes: 4 << 20 }
    };
    let entries: Vec<Entry> = (0..4096).map(huge).collect();
    let plaintext = plaintext(1, &entries, &bomb());
    let pack = seal(&repository, PreparedSegment { entries, anchors: Vec::new(), plaintext });
    vault.storage.insert(pack_name(pack.id).unwrap(), pack.bytes);
    let before = memory_peak_bytes();
    let repository = vault.open("stranger").unwrap();
    let found = damage_of(&vault.check(&repository, true).unwrap());
    assert!(found.contains(&pack.id.to_hex()) && found.contains("S-5"), "{found}");
    // What does not need it is not disturbed.
    assert!(vault.restore_all(&repository).unwrap().values().all(Result::is_ok));
    assert!(memory_peak_bytes().saturating_sub(before) < MEMORY_BYTES_MAX);
}

/// A slot and a config that lists it, as a host may plant them: nobody can tell before a key is
/// open. So the cost is what has to be refused.
fn plant(vault: &Vault, repository: &Repository, slots: Vec<Vec<u8>>) {
    let mut config = repository.config().clone();
    config.generation += 1;
    config.key_slots.clear();
    for bytes in slots {
        let id = diskvault_format::id::KeySlotId(*blake3::hash(&bytes).as_bytes());
        vault.storage.insert(format!("keys/{id}"), bytes);
        config.key_slots.push(id);
    }
    config.key_slots.sort_unstable();
    let leaf = names::config(config.generation, &[1; 16]);
    vault.storage.insert(format!("config/{leaf}"), config.encode(repository.keys(), &leaf));
}

fn with_cost(slot: &[u8], memory_kib: u32, passes: u32, salt: u8) -> Vec<u8> {
    let mut bytes = slot.to_vec();
    bytes[12..16].copy_from_slice(&memory_kib.to_le_bytes());
    bytes[16..20].copy_from_slice(&passes.to_le_bytes());
    bytes[40] = salt;
    bytes
}

#[test]
fn absurd_key_derivations_are_refused_before_they_run() {
    let (vault, repository) = with_one_point();
    let slot = vault.storage.snapshot()[&vault.names(Folder::Keys)[0]].clone();
    // 4 TiB of memory; 2^32 passes; and nine slots that are just allowed one by one.
    let cases = [
        (vec![with_cost(&slot, u32::MAX, 1, 0)], "K-4"),
        (vec![with_cost(&slot, 8 << 10, u32::MAX, 0)], "K-4"),
        ((0..9).map(|salt| with_cost(&slot, 1 << 20, 4, salt)).collect(), "K-5"),
    ];
    for (slots, rule) in cases {
        let copy = vault.copy(2);
        plant(&copy, &repository, slots);
        let (began, before) = (Instant::now(), memory_peak_bytes());
        let error = copy.open("stranger").map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damage);
        assert!(error.full_text().contains(rule), "{error:?}");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert!(memory_peak_bytes().saturating_sub(before) < MEMORY_BYTES_MAX);
    }
}

#[test]
fn names_that_are_paths_or_escapes_are_told_and_left_alone() {
    let (mut vault, repository) = with_one_point();
    let hostile = [
        "points/../../etc/passwd",
        "packs/3f/../../keys/x",
        "notes/\u{1b}[2J",
        "leases/",
        "packs/zz/zz",
        "keys/.hidden",
        "condemned/a b",
    ];
    for name in hostile {
        vault.storage.insert(name, b"junk".to_vec());
    }
    let report = vault.check(&repository, true).unwrap();
    assert_eq!(damage_of(&report), "");
    for name in hostile {
        let shown = name.as_bytes().escape_ascii().to_string();
        assert!(report.findings.iter().any(|found| found.text.contains(&shown)), "{shown}");
    }
    let is_clean = |text: &str| !text.chars().any(char::is_control);
    assert!(report.findings.iter().all(|found| is_clean(&found.text)));
    let second = vault.backup(&repository, "web01", &machine(2)).unwrap().point;
    assert!(vault.restore_all(&repository).unwrap()[&second].is_ok());
    let all = vault.storage.snapshot();
    assert!(hostile.iter().all(|name| all.contains_key(*name)), "nothing foreign is deleted");
}

type NamedBytes = (String, Vec<u8>);

/// Keeps everything that was ever put, also what was deleted since.
#[derive(Clone, Default)]
struct Recorder {
    inner: MemoryStorage,
    puts: Arc<Mutex<Vec<NamedBytes>>>,
}

impl Storage for Recorder {
    fn put_new(&self, name: &ObjectName, data: &[u8]) -> diskvault::error::Result<()> {
        self.puts.lock().unwrap().push((name.to_string(), data.to_vec()));
        self.inner.put_new(name, data)
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> diskvault::error::Result<Vec<u8>> {
        self.inner.get(name, bytes_max)
    }

    fn get_range(
        &self,
        name: &ObjectName,
        offset: u64,
        buffer: &mut [u8],
    ) -> diskvault::error::Result<()> {
        self.inner.get_range(name, offset, buffer)
    }

    fn get_tail(
        &self,
        name: &ObjectName,
        bytes: usize,
    ) -> diskvault::error::Result<(Vec<u8>, u64)> {
        self.inner.get_tail(name, bytes)
    }

    fn size(&self, name: &ObjectName) -> diskvault::error::Result<Option<u64>> {
        self.inner.size(name)
    }

    fn list(&self, folder: Folder) -> diskvault::error::Result<Vec<ObjectEntry>> {
        self.inner.list(folder)
    }

    fn foreign(&self) -> diskvault::error::Result<Vec<String>> {
        self.inner.foreign()
    }

    fn delete(&self, name: &ObjectName) -> diskvault::error::Result<()> {
        self.inner.delete(name)
    }

    fn rename(&self, from: &ObjectName, to: &ObjectName) -> diskvault::error::Result<()> {
        self.inner.rename(from, to)
    }

    fn location(&self) -> String {
        "recorder".into()
    }
}

/// Everything in an object that must never be seen twice: nonces, salts, key commitments.
fn once_only(name: &str, bytes: &[u8]) -> Vec<Vec<u8>> {
    let folder = name.split('/').next().unwrap();
    let parts: &[(usize, usize)] = match folder {
        // Wrapped key: commitment to the pack's own key, then the nonce of the wrap.
        "packs" => &[(72, 104), (104, 128)],
        "keys" => &[(40, 72), (72, 104), (104, 128)],
        "points" if name.ends_with(".ok") => &[],
        "points" | "notes" | "leases" | "lost" | "condemned" => &[(16, 40)],
        _ => &[],
    };
    parts.iter().map(|part| bytes[part.0..part.1].to_vec()).collect()
}

#[test]
fn two_clones_of_a_client_never_repeat_a_name_or_a_nonce() {
    let environment: Arc<dyn Environment> = Arc::new(SystemEnvironment);
    let vault = Vault::empty(environment.clone());
    let storage = Recorder::default();
    support::vault::init(&storage, environment.as_ref()).unwrap();
    let secret = passphrase(support::vault::PASSWORD);
    let open = |cache: &str| {
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        Repository::open(shared, environment.clone(), &vault.cache(cache), &secret).unwrap()
    };
    let first = open("a");
    vault.try_backup(&first, "web01", &machine(1), &Silent).unwrap();
    copy_folder(&vault.cache("a"), &vault.cache("b"));
    let clone = open("b");
    std::thread::scope(|scope| {
        for repository in [&first, &clone] {
            let vault = &vault;
            scope.spawn(move || {
                for day in 2..6 {
                    // The same bytes at the same time, as after a machine was cloned.
                    vault.try_backup(repository, "web01", &machine(day), &Silent).unwrap();
                }
            });
        }
    });
    let puts = storage.puts.lock().unwrap();
    assert!(puts.iter().filter(|(name, _)| name.starts_with("packs/")).count() > 8);
    let mut names = BTreeSet::new();
    let mut seen: BTreeMap<Vec<u8>, &str> = BTreeMap::new();
    for (name, bytes) in puts.iter() {
        assert!(names.insert(name), "{name} was put twice");
        for value in once_only(name, bytes) {
            if let Some(other) = seen.insert(value, name) {
                panic!("{name} repeats a value of {other}");
            }
        }
    }
}

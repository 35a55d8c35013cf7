//! A hostile repository, opened by somebody who has its password: stored bytes are changed, objects
//! are added, and whoever wrote it had the keys, so that its maps and manifests authenticate and
//! say anything. Run with a limit of memory: CONTRIBUTING.md.
#![no_main]

use diskvault::check::{CheckOptions, DataSubset, run as check};
use diskvault::environment::SystemEnvironment;
use diskvault::monitor::Silent;
use diskvault::repository::locate::Locator;
use diskvault::repository::objects::seal_record;
use diskvault::repository::pack_reader::pack_name;
use diskvault::repository::points::PointSet;
use diskvault::repository::secrets::Passphrase;
use diskvault::repository::{InitOptions, Repository, initialise};
use diskvault::restore::fetch::Fetcher;
use diskvault::restore::parts;
use diskvault::restore::sequential::{Output, read_part};
use diskvault::storage::memory::MemoryStorage;
use diskvault_format::crypto::{Keys, ObjectKind, Secret};
use diskvault_format::id::LeaseId;
use diskvault_format::key_slot::KdfCost;
use diskvault_format::manifest::Manifest;
use diskvault_format::pack::{PackKind, PackSecrets, PreparedSegment, assemble};
use diskvault_format::record;
use diskvault_format::segment::{Entry, EntryKind, SegmentEncoder};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

/// Larger disks and streams are checked, and not read: their zeros take too long.
const READ_BYTES_MAX: u64 = 16 << 20;
const PASSWORD: &[u8] = b"hostile";

#[derive(Arbitrary, Debug)]
struct Input {
    /// Pages of maps, sealed as their writer would; where one names another by a zero id, the id of
    /// the one after it is put.
    pages: Vec<Vec<u8>>,
    /// Chunks.
    chunks: Vec<Vec<u8>>,
    /// A manifest's record; its first disk or stream gets the first page as its top.
    manifest: Vec<u8>,
    changes: Vec<Change>,
}

#[derive(Arbitrary, Debug)]
enum Change {
    Overwrite { object: u8, at: u16, bytes: Vec<u8> },
    Cut { object: u8, length: u16 },
    Replace { object: u8, bytes: Vec<u8> },
    Remove { object: u8 },
    Add { folder: u8, name: [u8; 4], bytes: Vec<u8> },
}

struct Base {
    objects: BTreeMap<String, Vec<u8>>,
    keys: Arc<Keys>,
    pool: rayon::ThreadPool,
    folder: tempfile::TempDir,
}

static BASE: LazyLock<Base> = LazyLock::new(|| {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let storage = MemoryStorage::new();
    let options = InitOptions {
        passphrase: &Passphrase::new(PASSWORD.to_vec()),
        recovery: None,
        chunk_bytes: Some(4 << 10),
        pack_bytes: None,
        parity_per_mille: 20,
        cost: KdfCost::RECOVERY,
        host: "fuzz",
    };
    initialise(&storage, &SystemEnvironment, &options).unwrap();
    let keys = open(&storage, &folder).unwrap().keys().clone();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    Base { objects: storage.snapshot(), keys, pool, folder }
});

fn open(
    storage: &MemoryStorage,
    folder: &tempfile::TempDir,
) -> diskvault::error::Result<Repository> {
    let cache = folder.path().join("cache");
    let _ = std::fs::remove_dir_all(&cache);
    let secret = Passphrase::new(PASSWORD.to_vec());
    Repository::open(Arc::new(storage.clone()), Arc::new(SystemEnvironment), &cache, &secret)
}

/// Puts pages and chunks into packs that authenticate; the id of the first page.
fn put_packs(base: &Base, storage: &MemoryStorage, input: &Input) -> Option<[u8; 32]> {
    let mut first = None;
    let kinds = [
        (PackKind::Map, EntryKind::Page, &input.pages),
        (PackKind::Data, EntryKind::Chunk, &input.chunks),
    ];
    for (number, (pack, kind, contents)) in (1..).zip(kinds) {
        let mut entries = Vec::new();
        let mut data = Vec::new();
        for content in contents.iter().filter(|content| !content.is_empty()).take(16) {
            let id = match kind {
                EntryKind::Page => base.keys.page_id(content).0,
                _ => base.keys.chunk_id(content).0,
            };
            if kind == EntryKind::Page {
                first.get_or_insert(id);
            }
            entries.push(Entry { id, kind, bytes: content.len() as u32 });
            data.extend_from_slice(content);
        }
        let mut plaintext = Vec::new();
        let encoded = SegmentEncoder::new(3).unwrap().encode(&entries, &data, &mut plaintext);
        if encoded.is_err() {
            continue;
        }
        let segment = PreparedSegment { entries, anchors: Vec::new(), plaintext };
        let secrets = PackSecrets {
            key: Secret::new([number; 32]),
            wrap_random: [number; 32],
            own_copy: None,
        };
        let sealed = assemble(&base.keys, pack, LeaseId([1; 16]), &secrets, vec![segment]);
        if let Ok(sealed) = sealed {
            storage.insert(pack_name(sealed.id).unwrap(), sealed.bytes);
        }
    }
    first
}

fn put_point(base: &Base, storage: &MemoryStorage, manifest: &[u8], top: Option<[u8; 32]>) {
    let Ok(mut manifest) = record::decode::<Manifest>(manifest) else { return };
    let top = top.map(diskvault_format::id::PageId);
    if let Some(disk) = manifest.disks.first_mut() {
        disk.top = top;
        disk.root =
            diskvault_format::map::map_root(&base.keys, disk.size, &disk.chunking, disk.top);
    } else if let Some(stream) = manifest.streams.first_mut() {
        stream.content.top = top;
    }
    let sealed = seal_record(&base.keys, ObjectKind::Manifest, None, &[9; 32], &manifest);
    let Ok(sealed) = sealed else { return };
    let id = blake3::hash(&sealed).to_hex();
    storage.insert(format!("points/{id}"), sealed);
    storage.insert(format!("points/{id}.ok"), Vec::new());
}

fn change(storage: &MemoryStorage, change: &Change) {
    let names: Vec<String> = storage.snapshot().into_keys().collect();
    // Key slots have a target of their own, and honest ones take a second to be tried.
    let pick = |object: u8| {
        let name = names[object as usize % names.len()].clone();
        (!name.starts_with("keys/")).then_some(name)
    };
    match change {
        Change::Overwrite { object, at, bytes } => {
            let Some(name) = pick(*object) else { return };
            storage.corrupt(name, |data| {
                let start = (*at as usize).min(data.len());
                let end = (start + bytes.len()).min(data.len());
                data[start..end].copy_from_slice(&bytes[..end - start]);
            });
        }
        Change::Cut { object, length } => {
            let Some(name) = pick(*object) else { return };
            storage.corrupt(name, |data| data.truncate(*length as usize));
        }
        Change::Replace { object, bytes } => {
            let Some(name) = pick(*object) else { return };
            storage.insert(name, bytes.clone());
        }
        Change::Remove { object } => {
            let Some(name) = pick(*object) else { return };
            storage.remove(name);
        }
        Change::Add { folder, name, bytes } => {
            let folders = ["points", "notes", "lost", "leases", "condemned", "trash", "parity"];
            let folder = folders[*folder as usize % folders.len()];
            let leaf: String = name.iter().map(|byte| format!("{byte:02x}").repeat(8)).collect();
            storage.insert(format!("{folder}/{leaf}"), bytes.clone());
        }
    }
}

struct Sink(u64);

impl Output for Sink {
    fn data(&mut self, data: &[u8]) -> diskvault::error::Result<()> {
        self.0 += data.len() as u64;
        Ok(())
    }
}

fuzz_target!(|input: Input| {
    let base = &*BASE;
    let storage = MemoryStorage::new();
    for (name, data) in &base.objects {
        storage.insert(name, data.clone());
    }
    let top = put_packs(base, &storage, &input);
    put_point(base, &storage, &input.manifest, top);
    input.changes.iter().take(8).for_each(|one| change(&storage, one));
    let Ok(repository) = open(&storage, &base.folder) else { return };
    let options = CheckOptions { data: Some(DataSubset::All) };
    let _ = check(&repository, &options, &base.pool, &Silent);
    let (Ok(points), Ok(locator)) =
        (PointSet::load(&repository), Locator::open(&repository, &Silent))
    else {
        return;
    };
    let fetcher =
        Fetcher { repository: &repository, locator: &locator, threads: 1, monitor: &Silent };
    for point in &points.points {
        let sizes = point.manifest.disks.iter().map(|disk| disk.size);
        let sizes = sizes.chain(point.manifest.streams.iter().map(|stream| stream.content.bytes));
        for (part, size) in parts(point).into_iter().zip(sizes) {
            if size > READ_BYTES_MAX {
                continue;
            }
            let mut sink = Sink(0);
            if read_part(&fetcher, part, &mut sink).is_ok() {
                assert_eq!(sink.0, size);
            }
        }
    }
});

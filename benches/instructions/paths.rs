//! The hot paths, each small enough for a second under callgrind. `prepare` runs outside of
//! valgrind, `run` inside, and only what happens in `function` is counted.

use crate::support::{compressible, random};
use diskvault::backup::{BackupOptions, ChunkerChoice, InputRequest};
use diskvault::chunking::{ContentCutter, ContentParameters, Gear, is_zero};
use diskvault::environment::SystemEnvironment;
use diskvault::index::ChunkIndex;
use diskvault::monitor::Silent;
use diskvault::repository::compression::{Compression, ZSTD_LEVEL};
use diskvault::repository::secrets::Passphrase;
use diskvault::repository::{InitOptions, Repository, initialise};
use diskvault::source::InputKind;
use diskvault::storage::local::LocalStorage;
use diskvault_format::crypto::{Keys, PackCipher, Secret};
use diskvault_format::digest::chaining_value;
use diskvault_format::id::{LeaseId, RepositoryId};
use diskvault_format::key_slot::KdfCost;
use diskvault_format::limits::LEAF_SLOTS;
use diskvault_format::map::{Leaf, LeafSlot, MapBuilder, MapShape};
use diskvault_format::pack::{PackKind, PackSecrets, PreparedSegment, assemble};
use diskvault_format::segment::{Entry, EntryKind, SegmentDecoder, SegmentEncoder};
use std::hint::black_box;
use std::path::Path as Folder;
use std::sync::Arc;

const CHUNK: usize = 64 << 10;
const KIB: usize = 1 << 10;

/// The function below, in which counting is on.
const MEASURED: &str = "*measured_work*";
/// What a worker of a backup does with a batch: read, test, hash, compare with the last point.
const WORKER: &str = "*backup*examine*process*";

/// A hot path.
pub struct Path {
    pub name: &'static str,
    /// Pattern of the function that is counted, with all it calls.
    pub function: &'static str,
    /// A count may grow by so much.
    pub tolerance_percent: f64,
    pub prepare: fn(&Folder),
    pub run: fn(&Folder),
}

const fn path(name: &'static str, run: fn(&Folder)) -> Path {
    Path { name, function: MEASURED, tolerance_percent: 5.0, prepare: |_| {}, run }
}

pub const PATHS: &[Path] = &[
    path("zero-test", zero_test),
    path("chunk-id", chunk_id),
    path("chaining-value", chaining),
    path("content-cuts", content_cuts),
    path("map-leaves", map_leaves),
    path("index-insert", index_insert),
    path("index-hit", |folder| index_look_up(folder, true)),
    path("index-miss", |folder| index_look_up(folder, false)),
    path("segment-compress", |_| segment_encode(&compressible(128 * KIB, 1))),
    path("segment-store", |_| segment_encode(&random(256 * KIB, 1))),
    path("segment-decode", |_| segment_decode(&compressible(256 * KIB, 1))),
    path("segment-decode-raw", |_| segment_decode(&random(1024 * KIB, 1))),
    path("seal", seal),
    path("open", open),
    path("pack", pack),
    Path {
        function: WORKER,
        prepare: |folder| drop(make_repository(folder)),
        ..path("worker-first", |folder| backup(&open_repository(folder), folder))
    },
    Path {
        function: WORKER,
        prepare: |folder| backup(&make_repository(folder), folder),
        ..path("worker-unchanged", |folder| backup(&open_repository(folder), folder))
    },
];

/// Runs what is counted. The barrier behind the call keeps it from becoming a jump.
#[inline(never)]
fn measured_work(work: &mut dyn FnMut()) {
    work();
    black_box(());
}

fn keys() -> Keys {
    Keys::derive(&Secret::new([1; 32]), RepositoryId([2; 16]))
}

fn zero_test(_: &Folder) {
    let zeros = vec![0_u8; CHUNK];
    measured_work(&mut || {
        for _ in 0..64 {
            assert!(is_zero(black_box(&zeros)));
        }
    });
}

fn chunk_id(_: &Folder) {
    let (keys, data) = (keys(), random(8 * CHUNK, 1));
    measured_work(&mut || {
        for chunk in data.chunks(CHUNK) {
            black_box(keys.chunk_id(chunk));
        }
    });
}

fn chaining(_: &Folder) {
    let data = random(8 * CHUNK, 1);
    measured_work(&mut || {
        for (number, chunk) in data.chunks(CHUNK).enumerate() {
            black_box(chaining_value((number * CHUNK) as u64, chunk));
        }
    });
}

fn content_cuts(_: &Folder) {
    let gear = Gear::from_key(keys().gear_key());
    let mut cutter = Some(ContentCutter::new(ContentParameters::default(), gear).unwrap());
    let data = random(2048 * KIB, 1);
    measured_work(&mut || {
        let mut cutter = cutter.take().unwrap();
        let mut count = 0;
        let mut each = |_: diskvault::chunking::Piece<'_>| {
            count += 1;
            Ok(())
        };
        cutter.push(&data, &mut each).unwrap();
        cutter.finish(&mut each).unwrap();
        black_box(count);
    });
}

/// Builds the map of 128 full leaves and the pages above.
fn map_leaves(_: &Folder) {
    const LEAVES: u64 = 128;
    let (keys, data) = (keys(), random(64 * LEAF_SLOTS, 1));
    let mut leaf = Leaf::ZERO;
    for (slot, bytes) in leaf.slots.iter_mut().zip(data.chunks(64)) {
        let chaining = chaining_value(0, bytes);
        *slot = LeafSlot::Chunk { id: keys.chunk_id(bytes), chaining };
    }
    let shape = MapShape::new(LEAVES * (LEAF_SLOTS * CHUNK) as u64, CHUNK as u32).unwrap();
    measured_work(&mut || {
        let mut builder = MapBuilder::new(shape);
        let mut bytes = 0;
        let mut sink = |_, page: Vec<u8>| {
            bytes += page.len();
            Ok::<(), ()>(())
        };
        for number in 0..LEAVES {
            builder.push(&keys, number, &leaf, &mut sink).unwrap();
        }
        black_box(builder.finish(&keys, &mut sink).unwrap());
        black_box(bytes);
    });
}

const INDEX_PACKS: u64 = 8;
const INDEX_PER_PACK: u64 = 1000;

fn prefix(number: u64) -> [u8; 16] {
    let mut prefix = [0; 16];
    prefix.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..16]);
    prefix
}

fn fill(index: &ChunkIndex, prefixes: &[[u8; 16]]) {
    for (pack, prefixes) in prefixes.chunks(INDEX_PER_PACK as usize).enumerate() {
        let entries = prefixes.iter().enumerate();
        let mut entries = entries.map(|(at, prefix)| (*prefix, at as u32 / 16, at as u32 % 16));
        index.add_pack(&[pack as u8; 32], 1, &mut entries).unwrap();
    }
    index.flush().unwrap();
}

fn index_insert(folder: &Folder) {
    let index = ChunkIndex::open_temporary(folder).unwrap();
    let prefixes: Vec<_> = (0..INDEX_PACKS * INDEX_PER_PACK).map(prefix).collect();
    measured_work(&mut || fill(&index, &prefixes));
}

fn index_look_up(folder: &Folder, expected: bool) {
    let index = ChunkIndex::open_temporary(folder).unwrap();
    let prefixes: Vec<_> = (0..INDEX_PACKS * INDEX_PER_PACK).map(prefix).collect();
    fill(&index, &prefixes);
    let absent: Vec<_> = (0..2000).map(|number| prefix(u64::MAX - number)).collect();
    let probes = if expected { &prefixes[..2000] } else { &absent };
    measured_work(&mut || {
        for probe in probes {
            assert_eq!(index.contains(probe).unwrap(), expected);
        }
    });
}

fn entries_of(data: &[u8]) -> Vec<Entry> {
    let entry = |(number, chunk): (usize, &[u8])| Entry {
        id: [number as u8; 32],
        kind: EntryKind::Chunk,
        bytes: chunk.len() as u32,
    };
    data.chunks(CHUNK).enumerate().map(entry).collect()
}

fn encoded(data: &[u8]) -> Vec<u8> {
    let mut plaintext = Vec::new();
    let mut encoder = SegmentEncoder::new(ZSTD_LEVEL).unwrap();
    encoder.encode(&entries_of(data), data, &mut plaintext).unwrap();
    plaintext
}

fn segment_encode(data: &[u8]) {
    let entries = entries_of(data);
    let mut encoder = SegmentEncoder::new(ZSTD_LEVEL).unwrap();
    let mut plaintext = Vec::new();
    measured_work(&mut || encoder.encode(&entries, data, &mut plaintext).unwrap());
}

fn segment_decode(data: &[u8]) {
    let plaintext = encoded(data);
    let mut decoder = SegmentDecoder::new().unwrap();
    let mut output = Vec::new();
    measured_work(&mut || drop(black_box(decoder.decode(&plaintext, &mut output).unwrap())));
    assert!(output == data);
}

fn seal(_: &Folder) {
    let cipher = PackCipher::new(&Secret::new([3; 32]));
    let mut data = random(512 * KIB, 1);
    measured_work(&mut || _ = black_box(cipher.seal(1, b"bench", &mut data)));
}

fn open(_: &Folder) {
    let cipher = PackCipher::new(&Secret::new([3; 32]));
    let mut sealed = random(512 * KIB, 1);
    let tag = cipher.seal(1, b"bench", &mut sealed);
    sealed.extend_from_slice(&tag);
    measured_work(&mut || assert!(cipher.open(1, b"bench", &mut sealed, "P-9").is_ok()));
}

fn pack(_: &Folder) {
    let data = compressible(512 * KIB, 1);
    let prepare = |piece: &[u8]| PreparedSegment {
        entries: entries_of(piece),
        anchors: Vec::new(),
        plaintext: encoded(piece),
    };
    let mut segments: Vec<PreparedSegment> = data.chunks(CHUNK).map(prepare).collect();
    let keys = keys();
    let secrets = PackSecrets { key: Secret::new([7; 32]), wrap_random: [8; 32], own_copy: None };
    measured_work(&mut || {
        let segments = std::mem::take(&mut segments);
        let writer = LeaseId([5; 16]);
        black_box(assemble(&keys, PackKind::Data, writer, &secrets, segments).unwrap());
    });
}

fn passphrase() -> Passphrase {
    Passphrase::new(b"bench".to_vec())
}

/// An empty repository, and beside it a disk of 2 MiB: one chunk in four is zeros.
fn make_repository(folder: &Folder) -> Repository {
    let mut disk = random(2048 * KIB, 1);
    for chunk in disk.chunks_mut(CHUNK).step_by(4) {
        chunk.fill(0);
    }
    std::fs::write(folder.join("disk"), disk).unwrap();
    let storage = LocalStorage::create(&folder.join("repository")).unwrap();
    let options = InitOptions {
        passphrase: &passphrase(),
        recovery: None,
        chunk_bytes: None,
        pack_bytes: None,
        parity_per_mille: 0,
        cost: KdfCost::RECOVERY,
        host: "bench",
    };
    initialise(&storage, &SystemEnvironment, &options).unwrap();
    open_repository(folder)
}

fn open_repository(folder: &Folder) -> Repository {
    let storage = Arc::new(LocalStorage::open(&folder.join("repository")).unwrap());
    let cache = folder.join("cache");
    Repository::open(storage, Arc::new(SystemEnvironment), &cache, &passphrase()).unwrap()
}

fn backup(repository: &Repository, folder: &Folder) {
    let input = InputRequest::new(None, folder.join("disk"), Some(InputKind::Disk));
    let options = BackupOptions {
        series: "bench".into(),
        inputs: vec![input],
        chunker: ChunkerChoice::Fixed,
        compression: Compression::default(),
        stdin_name: None,
        tags: Vec::new(),
        time_unix_ns: None,
        digests: Vec::new(),
        host: "bench".into(),
        reading: diskvault::backup::Reading::Full,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    diskvault::backup::run(repository, &options, &Arc::new(pool), &Silent).unwrap();
}

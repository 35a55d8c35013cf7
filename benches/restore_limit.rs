//! What a restore of a point's disk costs at least: the same segments read, opened, decompressed,
//! hashed chunk by chunk and written to a sparse file, by all cores, without a repository.
//!
//! `restore_limit [--threads N] REPOSITORY POINT[/DISK] FILE`, with `DISKVAULT_PASSWORD` and
//! `DISKVAULT_CACHE_DIR`. What is needed for that (keys, map, index, footers, who wants what) is
//! gathered first and takes no part in the time; nothing is compared with an id, and each thread
//! does everything for one segment after the other. Where a chunk is stored as pieces of others,
//! the first of those is hashed and written in its place: the same work, other bytes. One line of
//! JSON says the wall seconds and what was done in them.

#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

use diskvault::environment::SystemEnvironment;
use diskvault::monitor::Silent;
use diskvault::repository::Repository;
use diskvault::repository::address::resolve;
use diskvault::repository::entries::{Place, places_of};
use diskvault::repository::locate::Locator;
use diskvault::repository::map_reader::MapReader;
use diskvault::repository::pack_reader::PackSegments;
use diskvault::repository::points::PointSet;
use diskvault::repository::secrets::Passphrase;
use diskvault::storage::local::LocalStorage;
use diskvault_format::id::{ChunkId, PackId};
use diskvault_format::limits::LEAF_SLOTS;
use diskvault_format::manifest::DiskRecord;
use diskvault_format::map::{LeafSlot, MapShape};
use diskvault_format::segment::SegmentDecoder;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// One segment, and which of its entries go where.
struct Work {
    pack: Arc<PackSegments>,
    file: Arc<File>,
    ordinal: u32,
    offset: u64,
    bytes: usize,
    uses: Vec<(u32, u64)>,
}

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    if arguments.first().is_some_and(|first| first == "--threads") {
        threads = arguments[1].parse().unwrap();
        arguments.drain(..2);
    }
    let [folder, point, target] = &arguments[..] else {
        panic!("expected: [--threads N] REPOSITORY POINT FILE");
    };
    let folder = Path::new(folder);
    let repository = open(folder);
    let (size, work) = gather(&repository, folder, point);
    let output = File::create_new(target).unwrap();
    output.set_len(size).unwrap();

    let began = Instant::now();
    let next = AtomicUsize::new(0);
    let written = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut decoder = SegmentDecoder::new().unwrap();
                let (mut stored, mut data) = (Vec::new(), Vec::new());
                while let Some(work) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    stored.resize(work.bytes, 0);
                    work.file.read_exact_at(&mut stored, work.offset).unwrap();
                    let entries =
                        work.pack.decode(work.ordinal, &mut stored, &mut decoder, &mut data);
                    let mut ends = Vec::new();
                    for entry in entries.unwrap() {
                        ends.push(ends.last().unwrap_or(&0) + entry.bytes as usize);
                    }
                    for (slot, offset) in &work.uses {
                        let end = ends[*slot as usize];
                        let start = slot.checked_sub(1).map_or(0, |before| ends[before as usize]);
                        let chunk = &data[start..end];
                        let id = repository.keys().chunk_id(chunk);
                        std::hint::black_box(id);
                        output.write_all_at(chunk, *offset).unwrap();
                        written.fetch_add(chunk.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    output.sync_all().unwrap();
    let wall = began.elapsed().as_secs_f64();
    let (segments, written) = (work.len(), written.into_inner());
    println!("{{\"wall\": {wall:.3}, \"segments\": {segments}, \"written_bytes\": {written}}}");
}

fn open(path: &Path) -> Repository {
    let storage = Arc::new(LocalStorage::open(path).unwrap());
    let cache = PathBuf::from(std::env::var_os("DISKVAULT_CACHE_DIR").unwrap());
    let password = std::env::var("DISKVAULT_PASSWORD").unwrap();
    let secret = Passphrase::new(password.into_bytes());
    Repository::open(storage, Arc::new(SystemEnvironment), &cache, &secret).unwrap()
}

/// The disk's size, and its segments in the order of a restore.
fn gather(repository: &Repository, folder: &Path, point: &str) -> (u64, Vec<Work>) {
    let points = PointSet::load(repository).unwrap();
    let (point, name) = point.split_once('/').map_or((point, None), |(p, name)| (p, Some(name)));
    let disks = &resolve(&points, point).unwrap().point.manifest.disks;
    let is_it = |disk: &&DiskRecord| name.is_none_or(|name| disk.name == name);
    let disk = disks.iter().find(is_it).unwrap().clone();
    let locator = Locator::open(repository, &Silent).unwrap();
    let shape = MapShape::new(disk.size, disk.chunking.grid().unwrap()).unwrap();
    let mut uses: BTreeMap<(PackId, u32), Vec<(u32, u64)>> = BTreeMap::new();
    let reader = MapReader::new(repository, &locator);
    let mut add_leaf = |number, leaf: &diskvault_format::map::Leaf| {
        for (slot, content) in leaf.slots.iter().enumerate() {
            if let LeafSlot::Chunk { id, .. } = content {
                let place = place_of(&locator, *id);
                let offset =
                    (number * LEAF_SLOTS as u64 + slot as u64) * u64::from(shape.chunk_bytes());
                uses.entry((place.pack, place.segment)).or_default().push((place.slot, offset));
            }
        }
        Ok(())
    };
    reader.walk_disk(shape, disk.top, &mut add_leaf).unwrap();
    let mut files: BTreeMap<PackId, Arc<File>> = BTreeMap::new();
    let work = uses.into_iter().map(|((id, segment), mut uses)| {
        uses.sort_unstable();
        let pack = locator.pack(repository, id).unwrap();
        let described = &pack.footer.segments[segment as usize];
        let file = files.entry(id).or_insert_with(|| Arc::new(pack_file(folder, id)));
        Work {
            pack: pack.segments.clone(),
            file: file.clone(),
            ordinal: segment,
            offset: described.offset.into(),
            bytes: described.stored_bytes() as usize,
            uses,
        }
    });
    (disk.size, work.collect())
}

/// Where a chunk's bytes are, or those of the chunk that its first piece is of.
fn place_of(locator: &Locator, id: ChunkId) -> Place {
    let places = places_of(locator.index(), &id.0).unwrap();
    if places[0].is_splice {
        let splice = locator.splices().read(id, &places[0]).unwrap();
        return place_of(locator, splice.pieces()[0].chunk);
    }
    places[0]
}

fn pack_file(folder: &Path, id: PackId) -> File {
    let hex = id.to_hex();
    File::open(folder.join("packs").join(&hex[..2]).join(&hex)).unwrap()
}

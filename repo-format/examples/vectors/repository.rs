//! One complete tiny repository: two points of a disk and a stream, written as a backup would. The
//! second has another disk, which holds the first one's content at another phase of the grid.

use super::fixed::{MASTER, TIME_NS, anchor, is_listed, random, segment_plaintext, zstd_frame};
use super::{Result, Tree};
use diskvault_format::allocation::AllocationWriter;
use diskvault_format::config::Config;
use diskvault_format::crypto::{Keys, ObjectKind, Secret};
use diskvault_format::digest::chaining_value;
use diskvault_format::id::{
    BackupId, ChunkId, InstanceId, KeySlotId, LeaseId, PageId, PointId, RepositoryId, WriterId,
};
use diskvault_format::key_slot::{KdfCost, KeySlot, SlotKeys, SlotKind, SlotLabel, SlotNonces};
use diskvault_format::manifest::{
    Chunking, DiskRecord, Manifest, Statistics, StreamRecord, StreamReference,
};
use diskvault_format::map::{Leaf, LeafSlot, MapBuilder, MapShape, map_root};
use diskvault_format::pack::{PackKind, PackSecrets, PreparedSegment, assemble};
use diskvault_format::segment::{Anchor, Entry, EntryKind};
use diskvault_format::splice::{self, Splice};
use diskvault_format::stream_map::{StreamEntry, StreamMapBuilder};
use diskvault_format::{instance, names, record, sealed};
use std::collections::BTreeSet;

/// What opens the first key slot.
pub const PASSPHRASE: &[u8] = b"correct horse battery staple";
const CHUNK_BYTES: u32 = 64 << 10;
const SECTOR_BYTES: usize = 512;
/// Three chunks and nine sectors.
const SECTORS: usize = 3 * 128 + 9;
const DAY_NS: i64 = 86_400_000_000_000;
/// A stream of each point.
pub(super) const XML: &str = "<domain type='kvm'>\n  <name>tiny</name>\n  <memory unit='MiB'>64</memory>\n  \
                   <devices>\n    <disk type='file'><target dev='vda'/></disk>\n  </devices>\n\
                   </domain>\n";

/// What opens the second key slot: a recovery key as spec/31 normalizes it.
pub const RECOVERY_KEY: &[u8] = b"DVRK0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// The objects of the repository by name, and the files that its points restore to.
pub struct Made {
    /// Objects by name.
    pub objects: Tree,
    /// Files by path below `expected/`.
    pub expected: Tree,
    /// The slots of its config.
    pub key_slots: Vec<KeySlotId>,
}

/// Runs of sectors of the disk at its source: how many, and whether there was storage.
const ALLOCATION: [(usize, bool); 5] =
    [(100, true), (4, false), (24, true), (64, false), (SECTORS - 192, true)];

/// The disk on `day`: each sector is one byte repeated. Four sectors of chunk 0 are a hole; chunk 1
/// is zeros, the first half a hole and the second half written; chunk 3 is short.
fn disk(day: usize) -> Vec<u8> {
    let mut disk = Vec::new();
    for sector in 0..SECTORS {
        let fill = match sector {
            100..104 | 128..256 => 0,
            // What changes between the days: 16 sectors in chunk 2.
            300..316 => (sector % 100 + day * 100) as u8,
            _ => (sector * 3 % 251 + 1) as u8,
        };
        disk.extend_from_slice(&[fill; SECTOR_BYTES]);
    }
    disk[..24].copy_from_slice(b"diskvault tiny test disk");
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

/// How far the content of the second disk lies behind its place on the first.
const MOVED_BY: usize = 3 * SECTOR_BYTES;

/// The second disk: three sectors of its own, then the chunks of `disk` that are not zero.
fn moved(disk: &[u8]) -> Vec<u8> {
    let chunks = disk.chunks(CHUNK_BYTES as usize).filter(|chunk| !is_zero(chunk));
    [&[0xee; MOVED_BY][..], &chunks.collect::<Vec<_>>().concat()].concat()
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn allocation_text() -> String {
    let mut start = 0;
    let mut text = String::new();
    for (sectors, is_allocated) in ALLOCATION {
        let (bytes, kind) =
            (sectors * SECTOR_BYTES, if is_allocated { "allocated" } else { "hole" });
        text.push_str(&format!("{start}+{bytes} {kind}\n"));
        start += bytes;
    }
    text
}

/// A chunk or page on its way into a pack.
struct Piece {
    entry: Entry,
    /// For chunks of a disk that have one to be listed.
    anchor: Option<u64>,
    bytes: Vec<u8>,
}

/// Gathers the pieces that the repository does not have yet, for a data and a map pack.
pub(super) struct Writer {
    keys: Keys,
    /// What it has stored.
    pub(super) objects: Tree,
    stored: BTreeSet<[u8; 32]>,
    data: Vec<Piece>,
    map: Vec<Piece>,
    /// How many anchors the footers list.
    anchors: usize,
}

impl Writer {
    /// One that has stored nothing.
    pub(super) fn new(keys: Keys) -> Writer {
        Writer {
            keys,
            objects: Tree::new(),
            stored: BTreeSet::new(),
            data: Vec::new(),
            map: Vec::new(),
            anchors: 0,
        }
    }

    fn add(&mut self, pack: PackKind, entry: Entry, anchor: Option<u64>, bytes: &[u8]) -> bool {
        let is_new = self.stored.insert(entry.id);
        if is_new {
            let piece = Piece { entry, anchor, bytes: bytes.to_vec() };
            match pack {
                PackKind::Data => self.data.push(piece),
                PackKind::Map => self.map.push(piece),
            }
        }
        is_new
    }

    /// Stores a chunk; the anchor is for one of a disk.
    fn chunk(&mut self, pack: PackKind, anchor: Option<u64>, bytes: &[u8]) -> (ChunkId, bool) {
        let id = self.keys.chunk_id(bytes);
        let entry = Entry { id: id.0, kind: EntryKind::Chunk, bytes: bytes.len() as u32 };
        (id, self.add(pack, entry, anchor, bytes))
    }

    /// Stores a chunk as pieces of others; whether it was not stored before.
    fn splice(&mut self, id: ChunkId, pieces: Vec<splice::Piece>) -> Result<bool> {
        let bytes = Splice::new(pieces)?.encode();
        let entry = Entry { id: id.0, kind: EntryKind::Splice, bytes: bytes.len() as u32 };
        Ok(self.add(PackKind::Map, entry, None, &bytes))
    }

    fn pages(&mut self, pages: Vec<([u8; 32], Vec<u8>)>) {
        for (id, bytes) in pages {
            let entry = Entry { id, kind: EntryKind::Page, bytes: bytes.len() as u32 };
            self.add(PackKind::Map, entry, None, &bytes);
        }
    }

    /// Writes a pack of what was gathered, two pieces to a segment; the bytes that takes.
    pub(super) fn flush(&mut self, kind: PackKind, lease: LeaseId, seed: &str) -> Result<u64> {
        let pieces = match kind {
            PackKind::Data => std::mem::take(&mut self.data),
            PackKind::Map => std::mem::take(&mut self.map),
        };
        let prepare = |pieces: &[Piece]| {
            let entries: Vec<Entry> = pieces.iter().map(|piece| piece.entry).collect();
            let data: Vec<u8> = pieces.iter().flat_map(|piece| piece.bytes.clone()).collect();
            let frame = zstd_frame(&data);
            let plaintext = if frame.len() < data.len() {
                segment_plaintext(1, &entries, &frame)
            } else {
                segment_plaintext(0, &entries, &data)
            };
            let anchor = |(slot, piece): (usize, &Piece)| {
                Some(Anchor { slot: slot as u32, value: piece.anchor? })
            };
            let anchors = pieces.iter().enumerate().filter_map(anchor).collect();
            PreparedSegment { entries, anchors, plaintext }
        };
        self.anchors += pieces.iter().filter(|piece| piece.anchor.is_some()).count();
        let segments = pieces.chunks(2).map(prepare).collect();
        let key = Secret::new(random(&format!("tiny pack key {seed}")));
        let wrap_random = random(&format!("tiny wrap nonce {seed}"));
        let secrets = PackSecrets { key, wrap_random, own_copy: None };
        let pack = assemble(&self.keys, kind, lease, &secrets, segments)?;
        let stored = pack.footer.segments.iter().map(|segment| u64::from(segment.stored_bytes()));
        let stored = stored.sum();
        let name = pack.id.to_hex();
        self.objects.insert(format!("packs/{}/{name}", &name[..2]), pack.bytes);
        Ok(stored)
    }

    /// Stores a byte string of one chunk behind a stream map.
    pub(super) fn stream(
        &mut self,
        pack: PackKind,
        bytes: &[u8],
    ) -> Result<(StreamReference, bool)> {
        let (id, is_new) = self.chunk(pack, None, bytes);
        let mut pages = Vec::new();
        let mut sink = |id: PageId, page: Vec<u8>| -> Result<()> {
            pages.push((id.0, page));
            Ok(())
        };
        let mut builder = StreamMapBuilder::new();
        let entry = StreamEntry::Chunk { bytes: bytes.len() as u32, id };
        builder.push(&self.keys, entry, &mut sink)?;
        let top = builder.finish(&self.keys, &mut sink)?;
        self.pages(pages);
        let chunking = Chunking::content(16 << 10, 64 << 10, 256 << 10);
        let length = bytes.len() as u64;
        let root = map_root(&self.keys, length, &chunking, top);
        Ok((StreamReference { bytes: length, chunking, root, top }, is_new))
    }

    fn disk(&mut self, day: usize) -> Result<DiskRecord> {
        let hole_bytes = (4 + 64) * SECTOR_BYTES as u64;
        let statistics =
            Statistics { hole_bytes, zero_bytes: 64 * SECTOR_BYTES as u64, ..Default::default() };
        let mut record = self.grid_disk("disk", &disk(day), &[], statistics)?;
        let mut list = AllocationWriter::new();
        for (sectors, is_allocated) in ALLOCATION {
            list.push((sectors * SECTOR_BYTES) as u64, is_allocated);
        }
        record.allocation = Some(self.stream(PackKind::Map, &list.finish())?.0);
        Ok(record)
    }

    /// The second disk, all of whose chunks but the first are told as pieces of the first disk's.
    fn moved_disk(&mut self, day: usize) -> Result<DiskRecord> {
        let disk = disk(day);
        let chunks: Vec<&[u8]> =
            disk.chunks(CHUNK_BYTES as usize).filter(|chunk| !is_zero(chunk)).collect();
        let bytes = moved(&disk);
        self.grid_disk("moved", &bytes, &chunks, Statistics::default())
    }

    /// A disk on a grid. If there are `sources`, its chunk `i` but the first is the end of source
    /// `i - 1` and the start of source `i`.
    pub(super) fn grid_disk(
        &mut self,
        name: &str,
        disk: &[u8],
        sources: &[&[u8]],
        mut statistics: Statistics,
    ) -> Result<DiskRecord> {
        let size = disk.len() as u64;
        let shape = MapShape::new(size, CHUNK_BYTES)?;
        let mut leaf = Leaf::ZERO;
        statistics.virtual_bytes = size;
        statistics.allocated_bytes = size - statistics.hole_bytes;
        statistics.read_bytes = statistics.allocated_bytes;
        for (slot, chunk) in disk.chunks(CHUNK_BYTES as usize).enumerate() {
            if is_zero(chunk) {
                continue;
            }
            let length = chunk.len() as u64;
            let id = self.keys.chunk_id(chunk);
            if slot > 0 && !sources.is_empty() {
                self.splice(id, pieces(&self.keys, sources, slot, chunk.len()))?;
                statistics.deduplicated_bytes += length;
            } else {
                let anchor = anchor(&self.keys, chunk).filter(|value| is_listed(*value));
                let (_, is_new) = self.chunk(PackKind::Data, anchor, chunk);
                statistics.new_bytes += if is_new { length } else { 0 };
                statistics.new_chunks += u64::from(is_new);
                statistics.unchanged_bytes += if is_new { 0 } else { length };
            }
            let chaining = chaining_value(slot as u64 * u64::from(CHUNK_BYTES), chunk);
            leaf.slots[slot] = LeafSlot::Chunk { id, chaining };
        }
        let mut pages = Vec::new();
        let mut sink = |id: PageId, page: Vec<u8>| -> Result<()> {
            pages.push((id.0, page));
            Ok(())
        };
        let mut builder = MapBuilder::new(shape);
        builder.push(&self.keys, 0, &leaf, &mut sink)?;
        let top = builder.finish(&self.keys, &mut sink)?;
        self.pages(pages);
        let chunking = Chunking::fixed(CHUNK_BYTES);
        Ok(DiskRecord {
            name: name.into(),
            size,
            root: shape.root(&self.keys, &chunking, top),
            chunking,
            grid_offset: 0,
            source_format: "raw".into(),
            top,
            digest: None,
            allocation: None,
            bad_extents: Vec::new(),
            token: Vec::new(),
            inherited: Vec::new(),
            free_space_mode: 0,
            digests: Vec::new(),
            statistics,
            extensions: Vec::new(),
        })
    }

    fn point(&mut self, day: usize, previous: &[PointId]) -> Result<PointId> {
        let lease = LeaseId(random(&format!("tiny lease {day}")));
        let mut disks = vec![self.disk(day)?];
        if day == 2 {
            disks.push(self.moved_disk(day)?);
        }
        let (content, is_new) = self.stream(PackKind::Data, XML.as_bytes())?;
        for (kind, name) in [(PackKind::Data, "data"), (PackKind::Map, "map")] {
            disks[0].statistics.stored_bytes +=
                self.flush(kind, lease, &format!("{name} {day}"))?;
        }
        let bytes = XML.len() as u64;
        let new_bytes = if is_new { bytes } else { 0 };
        let stream = StreamRecord {
            name: "vm.xml".into(),
            content,
            digest: *blake3::hash(XML.as_bytes()).as_bytes(),
            digests: Vec::new(),
            statistics: Statistics {
                virtual_bytes: bytes,
                allocated_bytes: bytes,
                read_bytes: bytes,
                unchanged_bytes: bytes - new_bytes,
                new_bytes,
                new_chunks: u64::from(is_new),
                ..Statistics::default()
            },
            extensions: Vec::new(),
        };
        let time_unix_ns = TIME_NS + (day as i64 - 1) * DAY_NS;
        let manifest = Manifest {
            backup_id: BackupId(random(&format!("tiny backup {day}"))),
            lease,
            series: "tiny".into(),
            time_unix_ns,
            started_unix_ns: time_unix_ns,
            duration_ms: 250,
            host: "kvm1".into(),
            writer: WriterId(random("tiny writer")),
            program: "diskvault 0.1.0".into(),
            sequence: day as u64,
            previous: previous.to_vec(),
            republishes: None,
            tags: vec![("day".into(), day.to_string())],
            disks,
            streams: vec![stream],
            signature_kind: 0,
            extensions: Vec::new(),
        };
        self.publish(&manifest, &format!("tiny manifest {day}"))
    }

    /// Stores a manifest and its ok.
    pub(super) fn publish(&mut self, manifest: &Manifest, seed: &str) -> Result<PointId> {
        manifest.validate()?;
        let plaintext = record::encode(manifest)?;
        let bytes = sealed::seal(&self.keys, ObjectKind::Manifest, "", &random(seed), &plaintext)?;
        let point = PointId(*blake3::hash(&bytes).as_bytes());
        self.objects.insert(format!("points/{point}"), bytes);
        self.objects.insert(format!("points/{}", names::point_ok(point)), Vec::new());
        Ok(point)
    }

    /// Stores a slot that opens `opens`.
    pub(super) fn slot(
        &mut self,
        kind: SlotKind,
        secret: &[u8],
        name: &str,
        opens: &SlotKeys,
    ) -> Result<KeySlotId> {
        let seed = |part: &str| format!("tiny {name} {part}");
        let nonces = SlotNonces {
            salt: random(&seed("salt")),
            keys: random(&seed("keys")),
            label: random(&seed("label")),
        };
        let label = SlotLabel { name: name.into(), created_unix_ns: TIME_NS, host: "kvm1".into() };
        let cost = KdfCost::RECOVERY;
        let slot = KeySlot::make(kind, secret, cost, opens, &self.keys, &label, &nonces)?;
        let (id, bytes) = slot.encode();
        self.objects.insert(format!("keys/{id}"), bytes);
        Ok(id)
    }
}

/// Chunk `slot` of the second disk as pieces of the first disk's chunks.
fn pieces(keys: &Keys, sources: &[&[u8]], slot: usize, length: usize) -> Vec<splice::Piece> {
    let start = CHUNK_BYTES - MOVED_BY as u32;
    let piece = |source: usize, offset: u32, bytes: u32| splice::Piece {
        chunk: keys.chunk_id(sources[source]),
        offset,
        bytes,
    };
    vec![piece(slot - 1, start, MOVED_BY as u32), piece(slot, 0, (length - MOVED_BY) as u32)]
}

/// The id of the repository.
pub(super) const REPOSITORY: RepositoryId = RepositoryId(*b"tiny repository!");

/// The config of generation 1, which lists the two slots.
pub(super) fn config(mut key_slots: Vec<KeySlotId>) -> Config {
    key_slots.sort();
    Config {
        generation: 1,
        repository: REPOSITORY,
        features_ignorable: 0,
        features_write: 0,
        features_read: 0,
        chunk_bytes: CHUNK_BYTES,
        segment_bytes: 1 << 20,
        pack_bytes: 32 << 20,
        key_slots,
    }
}

/// Makes the repository.
pub fn make() -> Result<Made> {
    let mut writer = Writer::new(Keys::derive(&Secret::new(MASTER), REPOSITORY));
    let full = SlotKeys::Full(Secret::new(MASTER));
    let key_slots = vec![
        writer.slot(SlotKind::Passphrase, PASSPHRASE, "passphrase", &full)?,
        writer.slot(SlotKind::Recovery, RECOVERY_KEY, "recovery", &full)?,
    ];
    let config = config(key_slots.clone());
    let name = names::config(config.generation, &random("tiny config"));
    let bytes = config.encode(&writer.keys, &name);
    writer.objects.insert(format!("config/{name}"), bytes);
    let copy = instance::encode(InstanceId(random("tiny instance")));
    writer.objects.insert(names::INSTANCE.to_owned(), copy);
    let first = writer.point(1, &[])?;
    writer.point(2, &[first])?;
    if writer.anchors == 0 {
        return Err("no footer of the repository has an anchor".into());
    }
    let mut expected = Tree::new();
    for day in 1..=2 {
        expected.insert(format!("day-{day}/disk"), disk(day));
        expected.insert(format!("day-{day}/disk.allocation"), allocation_text().into_bytes());
        expected.insert(format!("day-{day}/vm.xml"), XML.as_bytes().to_vec());
    }
    expected.insert("day-2/moved".into(), moved(&disk(2)));
    Ok(Made { objects: writer.objects, expected, key_slots })
}

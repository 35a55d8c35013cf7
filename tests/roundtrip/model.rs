//! What a disk should be after any edits, kept as plain bytes beside the real file, and what a
//! backup of it should count.

use crate::files::{BLOCK, data_ranges, noise, punch};
use diskvault_format::manifest::Statistics;
use proptest::prelude::*;
use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Where and how long, as shares of a disk whose size is not known yet, rounded to a multiple.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    at: u32,
    bytes: usize,
    multiple: usize,
}

impl Place {
    fn range(self, size: usize) -> Range<usize> {
        let at = (size as u64 * u64::from(self.at) / u64::from(u32::MAX)) as usize;
        let start = at / self.multiple * self.multiple;
        let end = (start + self.bytes).next_multiple_of(self.multiple);
        start.min(size)..end.min(size)
    }
}

/// A change to a disk.
#[derive(Clone, Debug)]
pub enum Edit {
    Noise(Place, u64),
    /// Zeros that are written, and so take storage.
    Zeros(Place),
    /// A hole, in whole blocks.
    Hole(Place),
    /// Bytes of another place of the same disk.
    Copy(Place, u32),
    Resize(usize),
}

/// Sizes where something begins or ends, and others.
pub fn sizes() -> impl Strategy<Value = usize> {
    const SPECIAL: [usize; 17] = [
        0, 1, 511, 512, 513, 4095, 4096, 4097, 65_535, 65_536, 65_537, 131_072, 262_144, 262_145,
        1_048_576, 4_194_304, 4_194_305,
    ];
    prop_oneof![
        3 => prop::sample::select(&SPECIAL[..]),
        2 => 0_usize..20_000,
        3 => 0_usize..1_000_000,
        2 => (1_usize..1100).prop_map(|blocks| blocks * 4096),
    ]
}

fn places() -> impl Strategy<Value = Place> {
    let bytes = prop_oneof![1_usize..600, 1_usize..20_000, 1_usize..500_000];
    let multiple = prop::sample::select(&[1_usize, 512, 4096, 65_536][..]);
    (any::<u32>(), bytes, multiple).prop_map(|(at, bytes, multiple)| Place { at, bytes, multiple })
}

pub fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = prop_oneof![
        5 => (places(), 0_u64..6).prop_map(|(place, seed)| Edit::Noise(place, seed)),
        2 => places().prop_map(Edit::Zeros),
        3 => places().prop_map(Edit::Hole),
        2 => (places(), any::<u32>()).prop_map(|(place, from)| Edit::Copy(place, from)),
        1 => sizes().prop_map(Edit::Resize),
    ];
    prop::collection::vec(edit, 0..8)
}

/// A file that is a disk, and what its bytes are.
pub struct Disk {
    pub path: PathBuf,
    pub bytes: Vec<u8>,
    file: File,
}

impl Disk {
    /// A new disk that is one hole.
    pub fn create(path: PathBuf, size: usize) -> Disk {
        let file = File::options().write(true).create_new(true).open(&path).unwrap();
        file.set_len(size as u64).unwrap();
        Disk { path, bytes: vec![0; size], file }
    }

    /// Writes `data`, or the start of it, over `range`.
    pub fn write(&mut self, range: Range<usize>, data: &[u8]) {
        self.file.write_all_at(&data[..range.len()], range.start as u64).unwrap();
        self.bytes[range.clone()].copy_from_slice(&data[..range.len()]);
    }

    pub fn apply(&mut self, edit: &Edit) {
        let size = self.bytes.len();
        match edit {
            Edit::Noise(place, seed) => {
                let range = place.range(size);
                self.write(range.clone(), &noise(*seed, range.len()));
            }
            Edit::Zeros(place) => {
                let range = place.range(size);
                self.write(range.clone(), &vec![0; range.len()]);
            }
            Edit::Hole(place) => {
                let block = BLOCK as usize;
                let range = place.range(size);
                let start = range.start.next_multiple_of(block).min(range.end);
                let end = (range.end / block * block).max(start);
                punch(&self.file, start as u64, (end - start) as u64);
                self.bytes[start..end].fill(0);
            }
            Edit::Copy(place, from) => {
                let range = place.range(size);
                let from = Place { at: *from, ..*place }.range(size);
                let data = self.bytes[from].to_vec();
                let range = range.start..range.end.min(range.start + data.len());
                self.write(range, &data);
            }
            Edit::Resize(bytes) => {
                self.file.set_len(*bytes as u64).unwrap();
                self.bytes.resize(*bytes, 0);
            }
        }
    }

    /// Asserts that the file is what the model says: otherwise the test itself is wrong.
    pub fn assert_is_model(&self) {
        assert!(std::fs::read(&self.path).unwrap() == self.bytes, "the file is not the model");
    }

    pub fn data(&self) -> Vec<Range<u64>> {
        data_ranges(&self.path)
    }
}

/// What a repository holds, so that the next backup's statistics can be foretold.
#[derive(Default)]
pub struct Ledger {
    chunks: HashSet<blake3::Hash>,
    /// Whole disks that were backed up.
    disks: Vec<Vec<u8>>,
}

/// What [`Ledger::foretell`] foretells.
pub struct Foretold {
    pub statistics: Statistics,
    /// Chunks counted as new there whose bytes may be known from another place at another phase
    /// of the grid: each may count as deduplicated instead, if the content was recognised.
    pub displaced: Vec<u64>,
}

impl Foretold {
    /// Asserts that a backup counted this, with any number of the displaced chunks recognised.
    pub fn assert_is(&self, counts: &Statistics) {
        let mut expected = self.statistics;
        expected.stored_bytes = counts.stored_bytes;
        let chunks = expected.new_chunks.saturating_sub(counts.new_chunks);
        let bytes = expected.new_bytes.saturating_sub(counts.new_bytes);
        assert!(chunks <= self.displaced.len() as u64, "{counts:?}, expected {expected:?}");
        assert!(bytes <= self.displaced.iter().sum(), "{counts:?}, expected {expected:?}");
        expected.new_chunks -= chunks;
        expected.new_bytes -= bytes;
        expected.deduplicated_bytes += bytes;
        assert_eq!(*counts, expected);
    }
}

impl Ledger {
    /// What the backup of `bytes`, allocated in `data`, counts on a grid, after `parent`.
    pub fn foretell(
        &mut self,
        chunk_bytes: usize,
        bytes: &[u8],
        data: &[Range<u64>],
        parent: Option<&[u8]>,
    ) -> Foretold {
        let read_bytes = crate::files::sum(data);
        let size = bytes.len() as u64;
        let mut counts = Statistics {
            virtual_bytes: size,
            allocated_bytes: read_bytes,
            read_bytes,
            hole_bytes: size - read_bytes,
            ..Statistics::default()
        };
        let mut displaced = Vec::new();
        self.disks.push(bytes.to_vec());
        let before = |number: usize| parent?.chunks(chunk_bytes).nth(number);
        for (number, chunk) in bytes.chunks(chunk_bytes).enumerate() {
            let start = (number * chunk_bytes) as u64;
            let (end, length) = (start + chunk.len() as u64, chunk.len() as u64);
            if !data.iter().any(|range| range.start < end && start < range.end) {
                continue;
            }
            if chunk.iter().all(|byte| *byte == 0) {
                counts.zero_bytes += length;
            } else if before(number) == Some(chunk) {
                counts.unchanged_bytes += length;
            } else if self.chunks.insert(blake3::hash(chunk)) {
                counts.new_bytes += length;
                counts.new_chunks += 1;
                if self.is_displaced(chunk, chunk_bytes) {
                    displaced.push(length);
                }
            } else {
                counts.deduplicated_bytes += length;
            }
        }
        Foretold { statistics: counts, displaced }
    }

    /// True if both ends of a chunk are in a disk of the ledger, at another phase of the
    /// grid.
    fn is_displaced(&self, chunk: &[u8], chunk_bytes: usize) -> bool {
        let ends = chunk.len().min(64);
        let elsewhere = |piece: &[u8], phase: usize| {
            let finder = memchr::memmem::Finder::new(piece);
            let mut found = self.disks.iter().flat_map(|disk| finder.find_iter(disk));
            found.any(|at| at % chunk_bytes != phase)
        };
        let behind = chunk.len() - ends;
        elsewhere(&chunk[..ends], 0) && elsewhere(&chunk[behind..], behind)
    }
}

/// Asserts what holds for every disk and stream, however it is cut.
pub fn assert_adds_up(counts: &Statistics) {
    assert_eq!(counts.read_bytes + counts.hole_bytes, counts.virtual_bytes, "{counts:?}");
    assert_eq!(counts.allocated_bytes + counts.hole_bytes, counts.virtual_bytes, "{counts:?}");
    let seen =
        counts.zero_bytes + counts.unchanged_bytes + counts.deduplicated_bytes + counts.new_bytes;
    // More than was read only by holes inside of chunks that also hold data.
    assert!(seen >= counts.read_bytes, "{counts:?}");
    assert!(seen <= counts.virtual_bytes, "{counts:?}");
}

/// Bytes of all packs.
pub fn pack_bytes(storage: &diskvault::storage::memory::MemoryStorage) -> u64 {
    let objects = storage.snapshot();
    objects.iter().filter(|(name, _)| name.starts_with("packs/")).map(|(_, o)| o.len() as u64).sum()
}

/// A file of `bytes` noise where nothing is a hole.
pub fn write_noise(path: &Path, seed: u64, bytes: usize) {
    std::fs::write(path, noise(seed, bytes)).unwrap();
}

//! A disk of 1 TiB that holds 64 MiB: its holes must cost nothing, neither at backup nor at
//! restore. Nothing is timed: what was read is counted.

use crate::files::{assert_not_less_sparse, assert_same, data_ranges, noise, sum};
use crate::lab::{Lab, disk};
use diskvault::backup::ChunkerChoice;
use diskvault::repository::map_reader::MapReader;
use diskvault::restore::SparseMode;
use diskvault_format::map::{LeafSlot, MapShape};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SIZE: u64 = 1 << 40;
const PIECE: u64 = 64 << 10;
const PIECES: usize = 1000;

/// Places of the pieces: anywhere, the first and the last chunk included.
fn places(seed: u64) -> BTreeSet<u64> {
    let mut places = BTreeSet::from([0, SIZE / PIECE - 1]);
    let words = noise(seed, 16 * PIECES);
    for word in words.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())) {
        if places.len() < PIECES {
            places.insert(word % (SIZE / PIECE));
        }
    }
    places
}

/// Makes the disk; false where the file system knows no files of 1 TiB.
fn make(path: &Path, places: &BTreeSet<u64>) -> bool {
    let file = File::create_new(path).unwrap();
    if let Err(error) = file.set_len(SIZE) {
        eprintln!("skipped: cannot make a file of 1 TiB: {error}");
        return false;
    }
    for place in places {
        file.write_all_at(&noise(*place, PIECE as usize), place * PIECE).unwrap();
    }
    true
}

#[test]
fn a_sparse_tebibyte_costs_its_data() {
    let (lab, _) = Lab::in_memory(PIECE as u32, 2);
    let (path, places) = (lab.path("disk"), places(1));
    if !make(&path, &places) {
        return;
    }
    let data = data_ranges(&path);
    let data_bytes = places.len() as u64 * PIECE;
    assert_eq!(sum(&data), data_bytes, "the file system rounds pieces of 64 KiB up");

    let report = lab.backup("vm", &[disk("sda", &path)], ChunkerChoice::Auto, &[]);
    let counts = report.statistics;
    assert_eq!(counts.virtual_bytes, SIZE);
    assert_eq!((counts.read_bytes, counts.hole_bytes), (data_bytes, SIZE - data_bytes));
    assert_eq!(counts.new_bytes, data_bytes);
    // A map of 16 million slots, of which a thousand are used, each in a leaf of its own; most of
    // what comes on top is the padding of the lab's small packs.
    assert!(counts.stored_bytes < data_bytes + data_bytes / 10, "{counts:?}");

    // One more piece: only it is new, though all pieces are read again.
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&noise(2, PIECE as usize), SIZE / 2 + 3 * PIECE).unwrap();
    let second = lab.backup("vm", &[disk("sda", &path)], ChunkerChoice::Auto, &[]);
    assert_eq!(second.statistics.new_chunks, 1);
    assert_eq!(second.statistics.unchanged_bytes, data_bytes);
    assert_eq!(second.statistics.read_bytes, data_bytes + PIECE);

    let (locator, point) = (lab.locator(), lab.point(report.point));
    let record = &point.manifest.disks[0];
    let reader = MapReader::new(&lab.repository, &locator);
    let shape = MapShape::new(SIZE, PIECE as u32).unwrap();
    let mut found = BTreeSet::new();
    reader
        .walk_disk(shape, record.top, &mut |number, leaf| {
            for (slot, content) in leaf.slots.iter().enumerate() {
                if !matches!(content, LeafSlot::Zero) {
                    found.insert(number * leaf.slots.len() as u64 + slot as u64);
                }
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(found, places);

    // Onto nothing, and onto another disk of that size with other pieces.
    let other = lab.path("other");
    make(&other, &self::places(9));
    file.set_len(SIZE).unwrap();
    let newest = lab.point(second.point);
    for (target, force) in [(lab.path("new"), false), (other, true)] {
        for mode in [SparseMode::Auto, SparseMode::Exact] {
            let force = force || mode == SparseMode::Exact;
            let restored = lab.restore(&locator, &newest, "sda", (&target, force), mode);
            assert_eq!(restored.data_bytes, data_bytes + PIECE);
            assert_eq!(restored.zero_bytes, SIZE - data_bytes - PIECE);
            assert_eq!(data_ranges(&target), data_ranges(&path));
            assert_same(&target, &path);
            assert_not_less_sparse(&target, &path);
        }
    }
    drop(locator);
    lab.assert_sound();
}

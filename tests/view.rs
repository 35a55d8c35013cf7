//! Disks that are read anywhere: every byte is the right one or an error, holes are told as they
//! are, and damage is an error only where it lies.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/files.rs"]
mod files;
#[path = "support/lab.rs"]
mod lab;

use diskvault::backup::ChunkerChoice;
use diskvault::error::ErrorKind;
use diskvault::monitor::Silent;
use diskvault::restore::find_part;
use diskvault::storage::memory::MemoryStorage;
use diskvault::view::{Extent, Reader, Vault, View};
use diskvault_format::id::PointId;
use files::{data_ranges, noise};
use lab::{Lab, disk, stream};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

const MIB: usize = 1 << 20;

fn vault(lab: &Lab) -> Arc<Vault> {
    let (repository, locator) = (Arc::new(lab.repository.clone()), Arc::new(lab.locator()));
    Arc::new(Vault::new(repository, locator, lab.pool.clone(), Arc::new(Silent)))
}

fn open(lab: &Lab, vault: &Arc<Vault>, point: PointId, name: &str) -> View {
    let point = lab.point(point);
    View::open(vault, find_part(&point, name).unwrap()).unwrap()
}

/// Dense, sparse and zero parts, and an end inside of a block.
fn make_source(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; 24 * MIB + 700];
    let mut places = vec![(0, 3 * MIB), (5 * MIB + 100, 70_000), (23 * MIB, MIB + 700)];
    places.extend((0..40).map(|number| (8 * MIB + number * 262_144 + 4096 * number, 5000)));
    let file = File::create_new(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (at, length) in places {
        let data = noise(at as u64, length);
        file.write_all_at(&data, at as u64).unwrap();
        bytes[at..at + length].copy_from_slice(&data);
    }
    // Zeros that take storage.
    file.write_all_at(&[0; 65_536], 20 * MIB as u64).unwrap();
    bytes
}

/// Places and lengths that repeat themselves from run to run.
fn reads(size: usize, count: usize) -> Vec<(usize, usize)> {
    let numbers = noise(77, count * 16);
    let number = |at: usize| u64::from_le_bytes(numbers[at..at + 8].try_into().unwrap()) as usize;
    let lengths = [1, 512, 4096, 32_768, 100_000, 3 * MIB];
    (0..count)
        .map(|read| {
            let start = number(read * 16) % (size + 1);
            let length = lengths[number(read * 16 + 8) % lengths.len()];
            (start, length.min(size - start))
        })
        .collect()
}

#[test]
fn any_range_is_what_the_source_was() {
    let (lab, _) = Lab::in_memory(32_768, 2);
    let path = lab.path("disk");
    let bytes = make_source(&path);
    let vault_of = |lab: &Lab| vault(lab);
    for (series, input, chunker) in [
        ("grid", disk("sda", &path), ChunkerChoice::Fixed),
        ("content", disk("sda", &path), ChunkerChoice::Content),
        ("stream", stream("sda", &path), ChunkerChoice::Auto),
    ] {
        let report = lab.backup(series, &[input], chunker, &[]);
        let view = Arc::new(open(&lab, &vault_of(&lab), report.point, "sda"));
        assert_eq!(view.size(), bytes.len() as u64);
        let mut reader = Reader::new(view.clone());
        for (start, length) in reads(bytes.len(), 200) {
            let mut found = vec![1; length];
            reader.read_at(start as u64, &mut found).unwrap();
            assert!(found == bytes[start..start + length], "{series}: {length} at {start}");
        }
        // From front to back, so that it reads ahead.
        for (number, wanted) in bytes.chunks(300_000).enumerate() {
            let mut found = vec![1; wanted.len()];
            reader.read_at(number as u64 * 300_000, &mut found).unwrap();
            assert!(found == wanted, "{series}: piece {number}");
        }
        for (offset, length) in [(bytes.len() as u64, 1), (u64::MAX, 1), (u64::MAX - 4, 100)] {
            let error = view.read_at(offset, &mut vec![0; length]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{error:?}");
        }
    }
}

#[test]
fn extents_are_the_holes_of_the_source() {
    let (lab, _) = Lab::in_memory(32_768, 2);
    let path = lab.path("disk");
    let bytes = make_source(&path);
    let report = lab.backup("vm", &[disk("sda", &path)], ChunkerChoice::Fixed, &[]);
    let view = open(&lab, &vault(&lab), report.point, "sda");
    for range in [0..view.size(), 5_300_000..9_000_001, 7..8] {
        let mut at = range.start;
        let mut allocated = Vec::new();
        view.extents(range.clone(), &mut |extent| {
            let Extent { start, end, is_zero, is_allocated } = extent;
            assert!(start == at && end > start, "a gap at {at}: {extent:?}");
            let data = &bytes[start as usize..end as usize];
            assert!(!is_zero || data.iter().all(|byte| *byte == 0), "{extent:?} hides data");
            assert!(is_allocated || data.iter().all(|byte| *byte == 0), "{extent:?} hides data");
            if is_allocated {
                allocated.push(start..end);
            }
            at = end;
            Ok(())
        })
        .unwrap();
        assert_eq!(at, range.end);
        let clipped: Vec<_> = data_ranges(&path)
            .into_iter()
            .map(|data| data.start.max(range.start)..data.end.min(range.end))
            .filter(|data| !data.is_empty())
            .collect();
        assert_eq!(joined(&allocated), clipped);
    }
}

fn joined(ranges: &[std::ops::Range<u64>]) -> Vec<std::ops::Range<u64>> {
    let mut joined: Vec<std::ops::Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range.clone()),
        }
    }
    joined
}

/// What lies at another phase of the grid is put together out of pieces.
#[test]
fn displaced_content_is_put_together() {
    let (lab, _) = Lab::in_memory(32_768, 2);
    let path = lab.path("disk");
    std::fs::write(&path, noise(1, 4 * MIB)).unwrap();
    lab.backup("vm", &[disk("sda", &path)], ChunkerChoice::Fixed, &[]);
    let moved = [noise(2, 5 * 512), noise(1, 4 * MIB)].concat();
    std::fs::write(&path, &moved).unwrap();
    let report = lab.backup("vm", &[disk("sda", &path)], ChunkerChoice::Fixed, &[]);
    assert!(report.statistics.new_chunks < 5, "{:?}", report.statistics);
    let view = open(&lab, &vault(&lab), report.point, "sda");
    for (start, length) in reads(moved.len(), 60) {
        let mut found = vec![1; length];
        view.read_at(start as u64, &mut found).unwrap();
        assert!(found == moved[start..start + length], "{length} at {start}");
    }
}

fn damage_one_pack(storage: &MemoryStorage) {
    let objects = storage.snapshot();
    let (name, object) = objects
        .iter()
        .filter(|(name, _)| name.starts_with("packs/"))
        .max_by_key(|o| o.1.len())
        .unwrap();
    let mut object = object.clone();
    // The frames at the start; the footer at the end stays whole.
    let middle = object.len() / 3;
    object[middle] ^= 1;
    storage.insert(name, object);
}

#[test]
fn damage_is_an_error_only_where_it_lies() {
    let (lab, storage) = Lab::in_memory(32_768, 2);
    let path = lab.path("disk");
    let bytes = noise(9, 6 * MIB);
    std::fs::write(&path, &bytes).unwrap();
    let report = lab.backup("vm", &[disk("sda", &path)], ChunkerChoice::Fixed, &[]);
    damage_one_pack(&storage);
    let view = open(&lab, &vault(&lab), report.point, "sda");
    let (mut right, mut refused) = (0, 0);
    for (number, wanted) in bytes.chunks(32_768).enumerate() {
        let mut found = vec![0; wanted.len()];
        match view.read_at(number as u64 * 32_768, &mut found) {
            Ok(()) => {
                assert!(found == wanted, "wrong bytes in chunk {number}");
                right += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Damage);
                let offset = number * 32_768;
                let start = format!("cannot read sda at offset {offset}: cannot ");
                assert!(error.full_text().starts_with(&start), "{}", error.full_text());
                refused += 1;
            }
        }
    }
    assert!(right > 0 && refused > 0, "{right} right, {refused} refused");
}

//! Single cases that chance would seldom meet.

use crate::files::{assert_not_less_sparse, assert_same, data_ranges, noise, sum};
use crate::lab::{Lab, disk, stream};
use crate::model::{assert_adds_up, write_noise};
use diskvault::backup::ChunkerChoice;
use diskvault::restore::SparseMode;
use std::fs::File;
use std::os::unix::fs::FileExt;

const MIB: usize = 1 << 20;

#[test]
fn two_equal_disks_are_stored_once() {
    let (lab, _) = Lab::in_memory(65_536, 4);
    let (one, two) = (lab.path("one"), lab.path("two"));
    write_noise(&one, 1, 3 * MIB);
    write_noise(&two, 1, 3 * MIB);
    let inputs = [disk("sda", &one), disk("sdb", &two)];
    for chunker in [ChunkerChoice::Fixed, ChunkerChoice::Content] {
        let report = lab.backup(&format!("{chunker:?}"), &inputs, chunker, &[]);
        let [sda, sdb] = &report.manifest.disks[..] else { panic!("two disks") };
        assert_eq!(sda.root, sdb.root);
        assert_eq!(sdb.statistics.new_chunks, 0);
        assert_eq!(sdb.statistics.deduplicated_bytes, 3 * MIB as u64);
        assert_eq!(sda.statistics.new_bytes + sda.statistics.deduplicated_bytes, 3 * MIB as u64);
        let mut total = sda.statistics;
        total.add(&sdb.statistics);
        assert_eq!(report.statistics, total);
        let locator = lab.locator();
        let point = lab.point(report.point);
        for name in ["sda", "sdb"] {
            assert!(lab.read(&locator, &point, name) == noise(1, 3 * MIB));
        }
    }
    lab.assert_sound();
}

#[test]
fn a_moved_stream_meets_itself() {
    let (lab, _) = Lab::in_memory(65_536, 2);
    let path = lab.path("dump");
    let bytes = noise(5, 8 * MIB);
    std::fs::write(&path, &bytes).unwrap();
    lab.backup("vm", &[stream("dump", &path)], ChunkerChoice::Auto, &[]);
    let mut moved = noise(6, 1001);
    moved.extend_from_slice(&bytes);
    std::fs::write(&path, &moved).unwrap();
    let report = lab.backup("vm", &[stream("dump", &path)], ChunkerChoice::Auto, &[]);
    let counts = report.statistics;
    assert_adds_up(&counts);
    assert!(counts.deduplicated_bytes > 7 * MIB as u64, "{counts:?}");
    // The same as a disk that is cut by content, and the other way round on the grid.
    let content = lab.backup("c", &[disk("dump", &path)], ChunkerChoice::Content, &[]);
    assert_eq!(content.statistics.new_chunks, 0);
    let grid = lab.backup("g", &[disk("dump", &path)], ChunkerChoice::Fixed, &[]);
    assert_eq!(grid.statistics.deduplicated_bytes, 0);
    lab.assert_sound();
}

#[test]
fn digests_fit_at_every_edge() {
    let (lab, _) = Lab::in_memory(4096, 2);
    let path = lab.path("disk");
    let leaf = 64 * 4096_u64;
    for size in [0, 1, 1024, 1025, 4095, 4096, 4097, 12_289, leaf - 1, leaf, leaf + 1, 5 * leaf] {
        let all = noise(size, size as usize);
        let half = [&all[..all.len() / 2], &vec![0; all.len() - all.len() / 2]].concat();
        for bytes in [all, half, vec![0; size as usize]] {
            for is_hole in [false, true] {
                File::create(&path).unwrap().set_len(if is_hole { size } else { 0 }).unwrap();
                let file = File::options().write(true).open(&path).unwrap();
                let end = if is_hole { bytes.iter().rposition(|b| *b != 0) } else { None };
                let end = end.map_or(if is_hole { 0 } else { bytes.len() }, |last| last + 1);
                file.write_all_at(&bytes[..end], 0).unwrap();
                let input = [disk("sda", &path)];
                let report = lab.backup("vm", &input, ChunkerChoice::Fixed, &[]);
                let point = lab.point(report.point);
                let digest = lab.digest(&lab.locator(), &point, "sda", None);
                assert_eq!(digest, blake3::hash(&bytes).as_bytes(), "{size} bytes");
            }
        }
    }
}

/// 70 MiB on the smallest grid: leaves and two levels of inner pages, some absent.
#[test]
fn a_deep_map_comes_back() {
    let (lab, _) = Lab::in_memory(4096, 4);
    let path = lab.path("disk");
    let file = File::create_new(&path).unwrap();
    file.set_len(70 * MIB as u64 - 512).unwrap();
    for (at, bytes) in [(0, 70_000), (33 * MIB - 5000, 10_000), (70 * MIB - 1512, 1000)] {
        file.write_all_at(&noise(at as u64, bytes), at as u64).unwrap();
    }
    let report = lab.backup("vm", &[disk("sda", &path)], ChunkerChoice::Fixed, &[]);
    assert_eq!(report.statistics.read_bytes, sum(&data_ranges(&path)));
    let (locator, point) = (lab.locator(), lab.point(report.point));
    let digest = lab.digest(&locator, &point, "sda", None);
    assert_eq!(digest, blake3::hash(&std::fs::read(&path).unwrap()).as_bytes());
    for mode in [SparseMode::Auto, SparseMode::Exact, SparseMode::Never] {
        let target = lab.path(&format!("{mode:?}"));
        lab.restore(&locator, &point, "sda", (&target, false), mode);
        assert_same(&target, &path);
        if mode != SparseMode::Never {
            assert_not_less_sparse(&target, &path);
        }
    }
    drop(locator);
    lab.assert_sound();
}

/// A disk that is cut another way than before starts a new map and is still complete.
#[test]
fn the_cut_may_change_between_points() {
    let (lab, _) = Lab::in_memory(4096, 2);
    let path = lab.path("disk");
    let mut days = Vec::new();
    for (day, chunker) in
        [ChunkerChoice::Fixed, ChunkerChoice::Content, ChunkerChoice::Fixed].into_iter().enumerate()
    {
        let mut bytes = noise(3, MIB);
        bytes.extend(noise(day as u64 + 10, 5000));
        std::fs::write(&path, &bytes).unwrap();
        let report = lab.backup("vm", &[disk("sda", &path)], chunker, &[]);
        days.push((report.point, bytes));
    }
    let locator = lab.locator();
    for (id, bytes) in &days {
        assert!(lab.read(&locator, &lab.point(*id), "sda") == *bytes);
    }
    drop(locator);
    lab.assert_sound();
}

/// A file that ends inside of a block, in a hole: the last block of an existing target must go
/// too, and it does only if it is punched as a whole.
#[test]
fn a_hole_at_an_odd_end_comes_back_onto_an_existing_file() {
    let (lab, _) = Lab::in_memory(4096, 2);
    let (path, target) = (lab.path("disk"), lab.path("target"));
    for size in [1, 4095, 4097, 10_000, 100_001] {
        std::fs::write(&path, noise(1, 4096)).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(if size > 4096 { 4096 } else { 0 }).unwrap();
        file.set_len(size).unwrap();
        let report = lab.backup("vm", &[disk("sda", &path)], ChunkerChoice::Fixed, &[]);
        let (locator, point) = (lab.locator(), lab.point(report.point));
        for mode in [SparseMode::Auto, SparseMode::Exact] {
            write_noise(&target, 2, 50_000);
            lab.restore(&locator, &point, "sda", (&target, true), mode);
            assert_same(&target, &path);
            assert_eq!(data_ranges(&target), data_ranges(&path), "{size} bytes, {mode:?}");
        }
    }
}

/// Dense data, then chunks that are mostly holes: a worker's buffer is used again, and what it
/// held must not show where the source is not read.
#[test]
fn holes_inside_of_chunks_are_zeros_in_a_used_buffer() {
    let (lab, _) = Lab::in_memory(65_536, 1);
    let path = lab.path("disk");
    let file = File::create_new(&path).unwrap();
    file.set_len(48 * MIB as u64).unwrap();
    file.write_all_at(&noise(1, 24 * MIB), 0).unwrap();
    for number in 0..24 * MIB as u64 / 65_536 {
        let start = 24 * MIB as u64 + number * 65_536 + number % 16 * 4096;
        file.write_all_at(&noise(number, 4096), start).unwrap();
    }
    let report = lab.backup("vm", &[disk("sda", &path)], ChunkerChoice::Fixed, &[]);
    assert_eq!(report.statistics.read_bytes, sum(&data_ranges(&path)));
    let (locator, point) = (lab.locator(), lab.point(report.point));
    assert!(lab.read(&locator, &point, "sda") == std::fs::read(&path).unwrap());
    let target = lab.path("target");
    lab.restore(&locator, &point, "sda", (&target, false), SparseMode::Exact);
    assert_same(&target, &path);
    assert_eq!(data_ranges(&target), data_ranges(&path));
}

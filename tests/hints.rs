//! Reading only what somebody says has changed: the same map as a full read where that is true, and a
//! full read where it is not.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]
#![allow(clippy::print_stdout, reason = "a test says what it measured")]

#[path = "hints/bitmaps.rs"]
mod bitmaps;
#[path = "hints/images.rs"]
mod images;
#[path = "hints/journals.rs"]
mod journals;
#[path = "hints/lies.rs"]
mod lies;
#[path = "hints/rig.rs"]
mod rig;
mod support;

use diskvault::backup::{ChunkerChoice, Reading, Reread};
use diskvault_format::manifest::Chunking;
use diskvault_format::tracking::Tracking;
use proptest::prelude::*;
use rig::{CHUNK, Given, Made, assert_restores, back_up, disk, newest, one, overwrite};
use support::vault::{CHUNK_BYTES, Vault};

#[test]
fn only_what_has_changed_is_read_and_the_map_is_that_of_a_full_read() {
    let mut vault = Vault::new(1);
    let repository = vault.open("host").unwrap();
    // Two levels of pages: 64 leaves.
    let mut data = disk(1, 64 * 64);
    back_up(&mut vault, &repository, Given::full(&data));
    let base = newest(&repository);
    let changed = [5 * CHUNK + 17..5 * CHUNK + 90, 2000 * CHUNK..2003 * CHUNK + 1];
    for (number, range) in changed.iter().enumerate() {
        overwrite(&mut data, 50 + number as u64, range.clone());
    }
    let given = Given {
        reading: Reading::ByHints(Reread::Part(1000)),
        ..Given::hinted(&data, &base, changed.to_vec())
    };
    let hinted = back_up(&mut vault, &repository, given);
    assert_eq!(hinted.warnings, Vec::<String>::new());
    let tracking = hinted.tracking();
    let looked_at = tracking.sampled_bytes + tracking.reread_bytes;
    // Partition tables are looked for in a few more bytes.
    assert!(
        hinted.read_bytes - 5 * CHUNK - looked_at < 20_000,
        "{} {tracking:?}",
        hinted.read_bytes
    );
    assert_eq!(hinted.report.statistics.new_bytes, 5 * CHUNK);
    assert_eq!(hinted.report.statistics.unchanged_bytes, data.len() as u64 - 5 * CHUNK);
    assert_eq!(tracking.inherited_bytes, data.len() as u64 - 5 * CHUNK);
    let inherited = hinted.disk().inherited.iter().map(|range| range.bytes).sum::<u64>();
    assert_eq!(inherited, tracking.inherited_bytes);
    let full = Given { reading: Reading::Full, ..Given::full(&data) };
    let full = back_up(&mut vault, &repository, full);
    assert_eq!(hinted.disk().root, full.disk().root);
    assert_restores(&vault, &repository, "both");
    // What is stored anew: the chunks, their two leaves and the page above.
    assert!(hinted.report.statistics.stored_bytes < 6 * CHUNK + (160 << 10));
}

#[test]
fn a_lie_that_is_seen_makes_it_a_full_read() {
    let mut vault = Vault::new(2);
    let repository = vault.open("host").unwrap();
    let data = disk(1, 500);
    back_up(&mut vault, &repository, Given::full(&data));
    let base = newest(&repository);
    // Every chunk is read at random or in turn: 300 of 500, and all in a second.
    for chunk in [0, 3, 250, 499] {
        let mut other = data.clone();
        overwrite(&mut other, 9, chunk * CHUNK + 5..chunk * CHUNK + 6);
        let made = back_up(&mut vault, &repository, Given::hinted(&other, &base, vec![]));
        let tracking = made.tracking();
        let text = format!("the disk is another at {}", chunk * CHUNK);
        assert!(tracking.refused.contains(&text), "{tracking:?}");
        assert!(made.warnings[0].contains("read in full: the test does not count: the disk is"));
        assert_eq!((tracking.inherited_bytes, made.disk().inherited.len()), (0, 0));
        assert!(made.read_bytes >= other.len() as u64);
    }
    assert_restores(&vault, &repository, "lies");
}

#[test]
fn a_hint_about_something_else_does_not_count() {
    let mut vault = Vault::new(3);
    let repository = vault.open("host").unwrap();
    let data = disk(1, 300);
    back_up(&mut vault, &repository, Given::full(&data));
    let base = newest(&repository);
    let packs = vault.names(diskvault::storage::Folder::Packs);
    let mut renamed = base.clone();
    renamed.manifest.disks[0].name = "vdb".into();
    let mut recut = base.clone();
    recut.manifest.disks[0].chunking = Chunking::fixed(2 * CHUNK_BYTES);
    let mut imported = base.clone();
    imported.manifest.disks[0].source_format = "qcow2".into();
    let shorter = &data[..data.len() / 2];
    for (given, text) in [
        (Given::hinted(&data, &renamed, vec![]), "has no such disk"),
        (Given::hinted(&data, &recut, vec![]), "has it cut another way"),
        (Given::hinted(&data, &imported, vec![]), "has it from qcow2, and it is raw now"),
        (Given::hinted(shorter, &base, vec![]), "the disk was larger at point"),
        (Given::hinted(&data, &base, one(1 << 40..1 << 41)), "beyond the end of the disk"),
        (
            Given { chunker: ChunkerChoice::Content, ..Given::hinted(&data, &base, vec![]) },
            "it is cut by its content",
        ),
    ] {
        let made = back_up(&mut vault, &repository, given);
        assert!(made.tracking().refused.contains(text), "{:?}", made.tracking());
        let warned = made.warnings.iter().any(|warning| warning.contains(text));
        assert!(warned, "{text}: {:?}", made.warnings);
    }
    // Of a base that lacks a chunk nothing is taken over.
    let largest = packs.iter().max_by_key(|name| vault.storage.snapshot()[*name].len());
    vault.storage.remove(largest.unwrap());
    let repository = vault.open("stranger").unwrap();
    let made = back_up(&mut vault, &repository, Given::hinted(&data, &base, vec![]));
    assert!(made.tracking().refused.contains("is stored no more"), "{:?}", made.tracking());
    let outcomes = vault.restore_all(&repository).unwrap();
    assert!(outcomes[&made.report.point].is_ok());
}

#[test]
fn a_file_with_its_old_times_is_not_read_again_unless_it_was_just_written() {
    let mut vault = Vault::new(4);
    let repository = vault.open("host").unwrap();
    let data = disk(1, 4096);
    let file = |seconds: i64, before: i64| (vec![7; 56], Some(before - seconds * 1_000_000_000));
    let first = back_up(&mut vault, &repository, Given { file: file(60, 0), ..Given::full(&data) });
    for (seconds, is_hint) in [(10, true), (1, false), (-10, false)] {
        let mut given = Given { file: file(60, 0), ..Given::full(&data) };
        given.file.1 = file(seconds, newest(&repository).manifest.started_unix_ns).1;
        given.reading = Reading::ByHints(Reread::Part(100));
        let made = back_up(&mut vault, &repository, given);
        assert_eq!(!made.disk().inherited.is_empty(), is_hint, "{seconds} s before");
        assert_eq!(made.read_bytes < data.len() as u64, is_hint);
        assert_eq!(made.disk().root, first.disk().root);
        assert_eq!(made.disk().extensions.is_empty(), !is_hint);
    }
    for (token, reading) in [(vec![8; 56], Reading::default()), (vec![7; 56], Reading::Full)] {
        let given = Given { file: (token, Some(0)), reading, ..Given::full(&data) };
        assert!(back_up(&mut vault, &repository, given).read_bytes >= data.len() as u64);
    }
    // An image of hundreds of files.
    for _ in 0..2 {
        let file = (vec![9; 100_000], Some(0));
        let made = back_up(&mut vault, &repository, Given { file, ..Given::full(&data) });
        assert_eq!(made.disk().token.len(), 32);
    }
    assert!(!newest(&repository).manifest.disks[0].inherited.is_empty());
    assert_restores(&vault, &repository, "by times");
}

/// Nobody asked for that hint either, but the point says why the disk was read in full.
#[test]
fn a_disk_that_is_cut_by_its_content_is_read_in_full_and_the_point_says_so() {
    let mut vault = Vault::new(31);
    let repository = vault.open("host").unwrap();
    let data = disk(1, 1000);
    let file = || (vec![7; 56], Some(0));
    let chunker = ChunkerChoice::Content;
    let mut tracked = Vec::new();
    for (file, reading) in [
        (file(), Reading::default()),
        (file(), Reading::default()),
        (file(), Reading::Full),
        ((vec![8; 56], Some(0)), Reading::default()),
    ] {
        let made = back_up(
            &mut vault,
            &repository,
            Given { file, reading, chunker, ..Given::full(&data) },
        );
        assert_eq!(made.warnings, Vec::<String>::new());
        assert!(made.read_bytes >= data.len() as u64);
        let tracking = Tracking::find(&made.disk().extensions);
        tracked.push(tracking.map(|tracking| (tracking.hint, tracking.refused)));
    }
    let told = ("the file's times".to_string(), "it is cut by its content".to_string());
    // Of the first and the last point the file says nothing, and the third was asked for.
    assert_eq!(tracked, [None, Some(told), None, None]);
    assert_restores(&vault, &repository, "by content");
}

/// Nobody asked for that hint: where it cannot be used, nothing is said.
#[test]
fn a_file_that_cannot_be_judged_by_its_times_is_read_without_a_word() {
    let mut vault = Vault::new(8);
    let repository = vault.open("host").unwrap();
    let file = || (vec![7; 56], Some(0));
    let tiny = disk(1, 1);
    for _ in 0..2 {
        let made = back_up(&mut vault, &repository, Given { file: file(), ..Given::full(&tiny) });
        assert_eq!((made.warnings, made.report.manifest.disks[0].extensions.len()), (vec![], 0));
    }
    // Same times, other bytes: somebody put them back, and that is said.
    let (data, other) = (disk(2, 300), disk(3, 300));
    back_up(&mut vault, &repository, Given { file: file(), ..Given::full(&data) });
    let made = back_up(&mut vault, &repository, Given { file: file(), ..Given::full(&other) });
    assert!(made.warnings[0].contains("the file's times does not count: the disk is another"));
    assert_restores(&vault, &repository, "by times");
}

#[test]
fn every_byte_is_read_again_in_turn() {
    let mut vault = Vault::new(5);
    let repository = vault.open("host").unwrap();
    let data = disk(1, 1000);
    let first = back_up(&mut vault, &repository, Given::full(&data));
    let first_time = first.report.manifest.time_unix_ns;
    let (mut times, mut positions) = (vec![], vec![]);
    for _ in 0..9 {
        let base = newest(&repository);
        let given = Given {
            reading: Reading::ByHints(Reread::Part(4)),
            ..Given::hinted(&data, &base, one(8 * CHUNK..9 * CHUNK))
        };
        let made = back_up(&mut vault, &repository, given);
        times.push(made.report.manifest.time_unix_ns);
        positions.push((made.tracking().position, made.tracking().proven_unix_ns));
    }
    // 999 chunks in fours: 250 at a time; the fourth finds less than that, and ends the round.
    let at = |chunk: u64| chunk * CHUNK;
    assert_eq!(positions[0], (at(251), first_time));
    assert_eq!(positions[2], (at(751), first_time));
    assert_eq!(positions[3], (0, times[0]));
    assert_eq!(positions[6], (at(751), times[0]));
    assert_eq!(positions[7], (0, times[4]));
}

#[test]
fn what_was_discarded_is_seen_without_a_hint() {
    let mut vault = Vault::new(7);
    let repository = vault.open("host").unwrap();
    let mut data = disk(1, 64 * 64);
    back_up(&mut vault, &repository, Given::full(&data));
    let base = newest(&repository);
    // Leaves 3 to 9, and the last ones of the disk.
    let holes = [3 * 64..10 * 64, 60 * 64..64 * 64];
    for hole in &holes {
        data[(hole.start * CHUNK) as usize..(hole.end * CHUNK) as usize].fill(0);
    }
    let given = Given { holes: &holes, ..Given::hinted(&data, &base, vec![]) };
    let made = back_up(&mut vault, &repository, given);
    assert_eq!(made.tracking().refused, "");
    assert_restores(&vault, &repository, "discarded");
}

#[test]
fn what_could_not_be_read_then_is_read_now() {
    let mut vault = Vault::new(6);
    let repository = vault.open("host").unwrap();
    let mut data = disk(1, 4096);
    data[3000 * CHUNK as usize..][..4096].fill(0);
    back_up(&mut vault, &repository, Given::full(&data));
    let mut base = newest(&repository);
    let bad = diskvault_format::manifest::ByteRange { start: 3000 * CHUNK, bytes: 4096 };
    base.manifest.disks[0].bad_extents.push(bad);
    overwrite(&mut data, 3, 3000 * CHUNK..3000 * CHUNK + 4096);
    let given = Given {
        reading: Reading::ByHints(Reread::Part(10_000)),
        ..Given::hinted(&data, &base, vec![])
    };
    let made = back_up(&mut vault, &repository, given);
    assert_eq!(made.tracking().refused, "");
    assert_restores(&vault, &repository, "healed");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Any disk, any change, told as any superset: the map of a full read.
    #[test]
    fn a_true_hint_gives_the_map_of_a_full_read(
        chunks in 2_u64..700,
        tail in 0_u64..3,
        grown in prop::option::of(0_u64..700),
        zeros in prop::collection::vec((0_u64..700, 1_u64..200), 0..4),
        writes in prop::collection::vec((0_u64..1 << 26, 1_u64..200_000, prop::bool::ANY), 0..6),
        holes in prop::collection::vec((0_u64..1000, 1_u64..100), 0..3),
        seed in 0_u64..1000,
    ) {
        let mut vault = Vault::new(seed);
        let repository = vault.open("host").unwrap();
        let mut data = disk(seed, chunks);
        data.truncate(data.len() - (tail * 512) as usize);
        for (first, count) in zeros {
            let range = (first * CHUNK).min(data.len() as u64)..((first + count) * CHUNK).min(data.len() as u64);
            data[range.start as usize..range.end as usize].fill(0);
        }
        let before = data.clone();
        back_up(&mut vault, &repository, Given::full(&before));
        let base = newest(&repository);
        let mut changed = Vec::new();
        if let Some(more) = grown {
            data.resize(data.len() + (more * CHUNK) as usize + 512, 0);
        }
        let size = data.len() as u64;
        for (start, bytes, is_zero) in writes {
            let start = start % size;
            let end = (start + bytes).min(size);
            match is_zero {
                true => data[start as usize..end as usize].fill(0),
                false => overwrite(&mut data, start, start..end),
            }
            changed.push(start..end);
        }
        let mut hollow = Vec::new();
        for (first, count) in holes {
            let range = (first * CHUNK).min(size)..((first + count) * CHUNK).min(size);
            data[range.start as usize..range.end as usize].fill(0);
            if range.start < range.end {
                hollow.push(first..first + count);
                changed.push(range);
            }
        }
        let changed = diskvault::source::changes::join(changed);
        let given = Given { holes: &hollow, ..Given::hinted(&data, &base, changed) };
        let hinted = back_up(&mut vault, &repository, given);
        prop_assert_eq!(hinted.tracking().refused, "");
        let given = Given { holes: &hollow, reading: Reading::Full, ..Given::full(&data) };
        let full = back_up(&mut vault, &repository, given);
        prop_assert_eq!(hinted.disk().root, full.disk().root);
        prop_assert_eq!(hinted.report.statistics.hole_bytes, full.report.statistics.hole_bytes);
        let data_bytes = |made: &Made| {
            let sum = &made.report.statistics;
            sum.unchanged_bytes + sum.deduplicated_bytes + sum.new_bytes
        };
        prop_assert_eq!(data_bytes(&hinted), data_bytes(&full));
        assert_restores(&vault, &repository, "hinted");
        let checked = vault.check(&vault.open("stranger").unwrap(), true).unwrap();
        prop_assert_eq!(support::vault::damage_of(&checked), "");

    }
}

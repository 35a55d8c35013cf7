//! `diff` through the library, against a comparison of the bytes themselves: every byte that
//! differs lies in an extent, and every extent has a difference, to the chunk.

#![allow(clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;

use diskvault::backup::{self, ChunkerChoice, InputRequest};
use diskvault::diff::{Change, Comparison, Extent};
use diskvault::monitor::Silent;
use diskvault::repository::Repository;
use diskvault::repository::locate::Locator;
use diskvault::repository::points::{Point, PointSet};
use diskvault::source::InputKind;
use diskvault::storage::Folder;
use diskvault_format::id::PointId;
use proptest::prelude::*;
use support::vault::{self, CHUNK_BYTES, Parts, Vault, noise};

const CHUNK: usize = CHUNK_BYTES as usize;

fn parts(disk: &[u8]) -> Parts {
    Parts::from([("vda".to_string(), disk.to_vec())])
}

fn point(repository: &Repository, id: PointId) -> Point {
    let points = PointSet::load(repository).unwrap().points;
    points.into_iter().find(|point| point.id == id).unwrap()
}

fn extents(repository: &Repository, old: &Point, new: &Point) -> Vec<Extent> {
    let locator = Locator::open(repository, &Silent).unwrap();
    let comparison = Comparison { repository, locator: &locator, monitor: &Silent };
    let mut found = Vec::new();
    let disks = (old.manifest.disks.first(), new.manifest.disks.first());
    comparison
        .disks(disks.0, disks.1, &mut |extent| {
            found.push(*extent);
            Ok(())
        })
        .unwrap();
    found
}

/// Backs both up and compares them in both directions.
fn compare(vault: &mut Vault, old: &[u8], new: &[u8]) -> Vec<Extent> {
    let repository = vault.open("host").unwrap();
    let one = vault.backup(&repository, "one", &parts(old)).unwrap().point;
    let two = vault.backup(&repository, "two", &parts(new)).unwrap().point;
    let (one, two) = (point(&repository, one), point(&repository, two));
    let found = extents(&repository, &one, &two);
    assert_right(&found, old, new);
    assert_right(&extents(&repository, &two, &one), new, old);
    assert_eq!(extents(&repository, &one, &one), []);
    found
}

fn assert_right(found: &[Extent], old: &[u8], new: &[u8]) {
    let bytes = old.len().max(new.len());
    let byte = |disk: &[u8], at: usize| disk.get(at).copied().unwrap_or(0);
    let is_zero = |disk: &[u8], from: usize, to: usize| (from..to).all(|at| byte(disk, at) == 0);
    let mut end = 0;
    let mut covered = vec![false; bytes];
    for extent in found {
        let (start, stop) = (extent.start as usize, (extent.start + extent.bytes) as usize);
        assert!(start >= end && stop > start && stop <= bytes, "{extent:?} of {bytes}");
        end = stop;
        covered[start..stop].fill(true);
        for chunk in start / CHUNK..stop.div_ceil(CHUNK) {
            let (from, to) = (chunk * CHUNK, ((chunk + 1) * CHUNK).min(bytes));
            let differs = (from..to).any(|at| byte(old, at) != byte(new, at));
            // A chunk that has grown or shrunk is another one, whatever its new bytes are.
            let is_edge = old.len() != new.len()
                && [old.len(), new.len()].iter().any(|size| (from + 1..to).contains(size));
            assert!(differs || is_edge, "{extent:?} has no difference in chunk {chunk}");
            let (was_zero, now_zero) = (is_zero(old, from, to), is_zero(new, from, to));
            let fits = match extent.change {
                Change::Written => was_zero || is_edge,
                Change::Zeroed => !was_zero && now_zero,
                Change::Cut => start >= new.len(),
                Change::Changed => !was_zero && !now_zero || is_edge,
                Change::Unknown => false,
            };
            assert!(fits, "{extent:?}, chunk {chunk}: {was_zero} {now_zero}");
        }
    }
    for (at, is_covered) in covered.into_iter().enumerate() {
        assert!(is_covered || byte(old, at) == byte(new, at), "byte {at} differs, {found:?}");
    }
}

/// A disk: runs of chunks that are zeros, old or new noise, and an end off the grid.
fn disk() -> impl Strategy<Value = Vec<u8>> {
    let run = (0_u8..4, 0_u64..3, 1_usize..150);
    (proptest::collection::vec(run, 0..6), 0_usize..8).prop_map(|(runs, rest)| {
        let mut disk = Vec::new();
        for (kind, seed, chunks) in runs {
            match kind {
                0 => disk.resize(disk.len() + chunks * CHUNK, 0),
                _ => disk.extend(noise(seed, chunks * CHUNK)),
            }
        }
        disk.extend(noise(9, rest * 512));
        disk
    })
}

/// Bytes and where they go, ranges that become zeros, and another size.
type Edit = (Vec<(usize, u8)>, Vec<(usize, usize)>, usize);

fn edit() -> impl Strategy<Value = Edit> {
    let byte = (any::<usize>(), any::<u8>());
    let range = (any::<usize>(), 0_usize..100 * CHUNK);
    let bytes = proptest::collection::vec(byte, 0..12);
    (bytes, proptest::collection::vec(range, 0..3), 0_usize..600)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn it_finds_exactly_what_differs(
        old in disk(),
        (bytes, ranges, sectors) in edit(),
        other in disk(),
        resized in any::<bool>(),
    ) {
        let mut vault = Vault::new(1);
        let mut new = old.clone();
        for (at, bytes) in ranges {
            let start = at.checked_rem(new.len()).unwrap_or(0) / 512 * 512;
            let end = (start + bytes).min(new.len());
            new[start..end].fill(0);
        }
        for (at, byte) in bytes {
            if let Some(at) = at.checked_rem(new.len()) {
                new[at] = byte;
            }
        }
        if resized {
            new.resize(sectors * 512 * 8, 0);
        }
        compare(&mut vault, &old, &new);
        compare(&mut vault, &new, &other);
    }
}

#[test]
fn what_was_written_zeroed_and_changed_is_told_apart() {
    let mut vault = Vault::new(2);
    let mut old = noise(1, 1000 * CHUNK);
    old[300 * CHUNK..600 * CHUNK].fill(0);
    let mut new = old.clone();
    new[10 * CHUNK] ^= 1;
    new[12 * CHUNK - 1] ^= 1;
    new[100 * CHUNK..103 * CHUNK].fill(0);
    new[400 * CHUNK + 7] = 1;
    new.truncate(900 * CHUNK);
    let found = compare(&mut vault, &old, &new);
    let chunks: Vec<_> = found
        .iter()
        .map(|extent| (extent.change, extent.start / CHUNK as u64, extent.bytes / CHUNK as u64))
        .collect();
    let expected = [
        (Change::Changed, 10, 2),
        (Change::Zeroed, 100, 3),
        (Change::Written, 400, 1),
        (Change::Cut, 900, 100),
    ];
    assert_eq!(chunks, expected);
}

#[test]
fn a_disk_that_grows_by_levels_of_its_map_keeps_what_it_had() {
    let mut vault = Vault::new(3);
    let old = noise(1, 50 * CHUNK);
    let mut new = old.clone();
    // Past one leaf, and past one page of leaves.
    new.resize(9000 * CHUNK, 0);
    assert_eq!(compare(&mut vault, &old, &new), []);
    new[8999 * CHUNK] = 1;
    let found = compare(&mut vault, &old, &new);
    let written = Change::Written;
    let start = 8999 * CHUNK as u64;
    assert_eq!(found, [Extent { start, bytes: CHUNK as u64, change: written }]);
}

#[test]
fn no_data_is_read_and_equal_pages_are_not() {
    let mut vault = Vault::new(4);
    let repository = vault.open("host").unwrap();
    let old = noise(1, 20_000 * CHUNK);
    let mut new = old.clone();
    new[15_000 * CHUNK] ^= 1;
    let one = vault.backup(&repository, "web", &parts(&old)).unwrap().point;
    let two = vault.backup(&repository, "web", &parts(&new)).unwrap().point;
    let (one, two) = (point(&repository, one), point(&repository, two));
    // All data goes.
    let index = Locator::open(&repository, &Silent).unwrap();
    for name in vault.names(Folder::Packs) {
        let id = diskvault_format::id::PackId::from_hex(name.rsplit('/').next().unwrap()).unwrap();
        if index.pack(&repository, id).unwrap().kind == diskvault_format::pack::PackKind::Data {
            let mut bytes = vault.storage.snapshot()[&name].clone();
            // The footer stays: it says where things are.
            bytes[..4096].fill(0);
            vault.storage.insert(name, bytes);
        }
    }
    drop(index);
    let locator = Locator::open(&repository, &Silent).unwrap();
    let comparison = Comparison { repository: &repository, locator: &locator, monitor: &Silent };
    let (mut found, before) = (Vec::new(), vault.storage.operations());
    let disks = (one.manifest.disks.first(), two.manifest.disks.first());
    let mut take = |extent: &Extent| {
        found.push(*extent);
        Ok(())
    };
    comparison.disks(disks.0, disks.1, &mut take).unwrap();
    // Three pages of each map at most, with the footers of their packs; each map has 316.
    let reads = vault.storage.operations() - before;
    assert!(reads <= 12, "{reads} reads");
    let changed =
        Extent { start: 15_000 * CHUNK as u64, bytes: CHUNK as u64, change: Change::Changed };
    assert_eq!(found, [changed]);
}

fn backup_cut(vault: &Vault, repository: &Repository, cut: ChunkerChoice, data: &[u8]) -> Point {
    let path = vault.folder.path().join("disk");
    std::fs::write(&path, data).unwrap();
    let input = InputRequest::new(Some("vda".into()), path, Some(InputKind::Disk));
    let mut options = vault::options("web", vec![input]);
    options.chunker = cut;
    let report = backup::run(repository, &options, &vault.pool, &Silent).unwrap();
    point(repository, report.point)
}

#[test]
fn disks_cut_by_content_are_compared_by_their_chunks() {
    let vault = Vault::new(5);
    let repository = vault.open("host").unwrap();
    let old = noise(1, 8 << 20);
    let mut new = old.clone();
    new[3 << 20] ^= 1;
    new[5 << 20..6 << 20].fill(0);
    let one = backup_cut(&vault, &repository, ChunkerChoice::Content, &old);
    let two = backup_cut(&vault, &repository, ChunkerChoice::Content, &new);
    let found = extents(&repository, &one, &two);
    let holds = |at: u64, change: Change| {
        found.iter().any(|extent| {
            extent.change == change && (extent.start..extent.start + extent.bytes).contains(&at)
        })
    };
    assert!(holds(3 << 20, Change::Changed) && holds(5_500_000, Change::Zeroed), "{found:?}");
    let bytes: u64 = found.iter().map(|extent| extent.bytes).sum();
    assert!(bytes < 3 << 20, "{bytes}: {found:?}");
    for (at, (before, after)) in old.iter().zip(&new).enumerate() {
        let is_in = || found.iter().any(|e| (e.start..e.start + e.bytes).contains(&(at as u64)));
        assert!(before == after || is_in(), "byte {at}");
    }
    assert_eq!(extents(&repository, &one, &one), []);
}

#[test]
fn different_cuts_are_told_as_unknown_where_both_have_data() {
    let vault = Vault::new(6);
    let repository = vault.open("host").unwrap();
    let mut old = noise(1, 4 << 20);
    old[1 << 20..2 << 20].fill(0);
    let mut new = old.clone();
    new[2 << 20..3 << 20].fill(0);
    new[1 << 20..(1 << 20) + 4096].fill(7);
    let one = backup_cut(&vault, &repository, ChunkerChoice::Fixed, &old);
    let two = backup_cut(&vault, &repository, ChunkerChoice::Content, &new);
    let found = extents(&repository, &one, &two);
    let at = |offset: u64| {
        let holds = |e: &&Extent| (e.start..e.start + e.bytes).contains(&offset);
        found.iter().find(holds).map(|extent| extent.change)
    };
    assert_eq!(at(1 << 20), Some(Change::Written));
    assert_eq!(at(3 << 19), None, "zeros in both");
    assert_eq!(at(5 << 19), Some(Change::Zeroed));
    assert_eq!(at(100), Some(Change::Unknown));
    assert!(found.iter().all(|extent| extent.change != Change::Changed));
}

//! Tests of the index as a whole: against a model, over crashes, with damage.

use super::catalogue::Catalogue;
use super::run::{PENDING_MAX, Record, Run, RunWriter, merge_start};
use super::{ChunkIndex, Location, PackRecord, SEGMENTS_MAX, SLOTS_MAX};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

type Entry = ([u8; 16], u32, u32);

/// xorshift64*: repeatable, and as uniform as ids are.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

fn prefix(number: u64) -> [u8; 16] {
    *blake3::hash(&number.to_le_bytes()).as_bytes().first_chunk().unwrap()
}

fn pack_id(number: u64) -> [u8; 32] {
    *blake3::keyed_hash(&[7; 32], &number.to_le_bytes()).as_bytes()
}

/// Chunks `first..first + count` as one pack, 16 to a segment.
fn entries(first: u64, count: u64) -> Vec<Entry> {
    (0..count).map(|i| (prefix(first + i), (i / 16) as u32, (i % 16) as u32)).collect()
}

fn add(index: &ChunkIndex, pack: u64, list: &[Entry]) {
    index.add_pack(&pack_id(pack), (pack % 3) as u8, &mut list.iter().copied()).unwrap();
}

fn find(index: &ChunkIndex, number: u64) -> Vec<Location> {
    let mut found = Vec::new();
    index.locations(&prefix(number), &mut found).unwrap();
    assert_eq!(index.contains(&prefix(number)).unwrap(), !found.is_empty());
    found
}

fn run_files(cache: &Path) -> Vec<PathBuf> {
    let list = fs::read_dir(cache.join("index/slot-0/runs")).unwrap();
    list.map(|entry| entry.unwrap().path()).collect()
}

fn catalogue_dir(cache: &Path) -> PathBuf {
    let list = fs::read_dir(cache.join("index/slot-0")).unwrap();
    let mut paths = list.map(|entry| entry.unwrap().path());
    paths.find(|path| path.to_string_lossy().contains("catalogue-")).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

fn compare(index: &ChunkIndex, model: &HashMap<u64, Vec<Entry>>, chunks: u64) {
    let mut packs = index.packs().unwrap();
    packs.sort_by_key(|pack| pack.id);
    let record = |(number, list): (&u64, &Vec<Entry>)| {
        let (kind, entries) = ((number % 3) as u8, list.len() as u32);
        PackRecord { id: pack_id(*number), kind, entries }
    };
    let mut wanted: Vec<PackRecord> = model.iter().map(record).collect();
    wanted.sort_by_key(|pack| pack.id);
    assert_eq!(packs, wanted);
    assert_eq!(index.entries(), model.values().map(|list| list.len() as u64).sum::<u64>());
    let mut places: HashMap<[u8; 16], Vec<Location>> = HashMap::new();
    for (number, list) in model {
        for &(key, segment, slot) in list {
            let pack = pack_id(*number);
            places.entry(key).or_default().push(Location { pack, segment, slot });
        }
    }
    let order = |location: &Location| (location.pack, location.segment, location.slot);
    for number in 0..chunks {
        let mut found = find(index, number);
        found.sort_by_key(order);
        let mut wanted = places.remove(&prefix(number)).unwrap_or_default();
        wanted.sort_by_key(order);
        assert_eq!(found, wanted, "chunk {number}");
    }
}

#[test]
fn it_answers_like_a_hash_map() {
    const CHUNKS: u64 = 1500;
    for seed in 1..=4 {
        let cache = tempfile::tempdir().unwrap();
        let mut random = Random(seed * 0x9e37_79b9);
        let mut model: HashMap<u64, Vec<Entry>> = HashMap::new();
        let mut flushed = model.clone();
        let mut index = ChunkIndex::open(cache.path()).unwrap();
        for step in 0..150 {
            let number = random.below(40);
            match random.below(12) {
                0..=5 => {
                    let mut list = entries(random.below(CHUNKS - 100), random.below(100));
                    list.reverse();
                    add(&index, number, &list);
                    model.entry(number).or_insert(list);
                }
                6 | 7 => {
                    index.drop_pack(&pack_id(number)).unwrap();
                    model.remove(&number);
                }
                8 | 9 => {
                    index.flush().unwrap();
                    flushed = model.clone();
                }
                10 => {
                    index.flush().unwrap();
                    flushed = model.clone();
                    drop(index);
                    index = ChunkIndex::open(cache.path()).unwrap();
                    assert_eq!(index.was_rebuilt(), None);
                }
                _ if random.below(8) == 0 => {
                    index.clear().unwrap();
                    model.clear();
                    flushed.clear();
                }
                _ => {
                    // A kill: packs not flushed are gone, drops may have survived or not.
                    let other = tempfile::tempdir().unwrap();
                    copy(cache.path(), other.path());
                    let copied = ChunkIndex::open(other.path()).unwrap();
                    assert_eq!(copied.was_rebuilt(), None);
                    compare(&copied, &flushed, CHUNKS);
                }
            }
            assert_eq!(index.has_pack(&pack_id(number)).unwrap(), model.contains_key(&number));
            if step % 10 == 0 {
                compare(&index, &model, CHUNKS);
            }
            assert!(run_files(cache.path()).len() <= 8);
        }
        compare(&index, &model, CHUNKS);
    }
}

#[test]
fn a_chunk_in_several_packs_has_several_places() {
    let cache = tempfile::tempdir().unwrap();
    let index = ChunkIndex::open_temporary(cache.path()).unwrap();
    for pack in 0..400 {
        add(&index, pack, &entries(5, 1));
        if pack % 100 == 50 {
            index.flush().unwrap();
        }
    }
    assert_eq!(find(&index, 5).len(), 400);
    index.drop_pack(&pack_id(3)).unwrap();
    index.drop_pack(&pack_id(399)).unwrap();
    assert_eq!(find(&index, 5).len(), 398);
    drop(index);
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn many_entries_keep_few_runs_and_reopen() {
    let cache = tempfile::tempdir().unwrap();
    let index = ChunkIndex::open(cache.path()).unwrap();
    for pack in 0..600 {
        add(&index, pack, &entries(pack * 1000, 1000));
        if pack % 20 == 0 {
            index.flush().unwrap();
        }
    }
    index.flush().unwrap();
    assert!(run_files(cache.path()).len() <= 8);
    index.set_note("token", b"abc").unwrap();
    // Two thirds dropped: the dead are merged away.
    let size = |path: &PathBuf| fs::metadata(path).unwrap().len();
    for pack in 0..500 {
        index.drop_pack(&pack_id(pack)).unwrap();
    }
    add(&index, 1000, &entries(600_000, 10));
    index.flush().unwrap();
    assert!(run_files(cache.path()).iter().map(size).sum::<u64>() < 110_000 * 24);
    drop(index);
    let index = ChunkIndex::open(cache.path()).unwrap();
    assert_eq!(index.was_rebuilt(), None);
    assert_eq!(index.entries(), 100_010);
    assert_eq!(index.get_note("token").unwrap().unwrap(), b"abc");
    for number in (0..601_000).step_by(997) {
        let known = (500_000..600_010).contains(&number);
        assert_eq!(find(&index, number).len(), usize::from(known), "chunk {number}");
    }
}

#[test]
fn a_pack_larger_than_the_memory_spills() {
    let cache = tempfile::tempdir().unwrap();
    let index = ChunkIndex::open(cache.path()).unwrap();
    let count = PENDING_MAX * 4 + 1000;
    add(&index, 1, &entries(0, count));
    assert!(!run_files(cache.path()).is_empty());
    for number in [0, 1, 777, PENDING_MAX, count - 1] {
        assert_eq!(find(&index, number).len(), 1);
    }
    // The second one fails after it spilled: nothing of it is visible, now or later.
    let bad = std::iter::once((prefix(9), 0, SLOTS_MAX));
    let mut list = entries(count, count).into_iter().chain(bad);
    assert!(index.add_pack(&pack_id(2), 0, &mut list).is_err());
    assert!(find(&index, count + 5).is_empty());
    index.flush().unwrap();
    drop(index);
    let index = ChunkIndex::open(cache.path()).unwrap();
    assert_eq!((index.was_rebuilt(), index.entries()), (None, count));
    assert!(find(&index, count + 5).is_empty());
}

#[test]
fn limits_are_refused() {
    let cache = tempfile::tempdir().unwrap();
    let index = ChunkIndex::open_temporary(cache.path()).unwrap();
    for (segment, slot) in [(SEGMENTS_MAX, 0), (0, SLOTS_MAX), (u32::MAX, u32::MAX)] {
        let mut list = [(prefix(1), 0, 0), (prefix(2), segment, slot)].into_iter();
        assert!(index.add_pack(&pack_id(1), 0, &mut list).is_err());
        assert!(!index.has_pack(&pack_id(1)).unwrap());
        assert!(find(&index, 1).is_empty());
    }
    let list = [(prefix(1), SEGMENTS_MAX - 1, SLOTS_MAX - 1)];
    add(&index, 1, &list);
    let place = Location { pack: pack_id(1), segment: SEGMENTS_MAX - 1, slot: SLOTS_MAX - 1 };
    assert_eq!(find(&index, 1), [place]);
}

/// Opens a cache with one flushed pack after `spoil` has had its way; returns the reason.
fn reopen_after(spoil: impl FnOnce(&Path)) -> Option<String> {
    let cache = tempfile::tempdir().unwrap();
    let index = ChunkIndex::open(cache.path()).unwrap();
    add(&index, 1, &entries(0, 5000));
    index.flush().unwrap();
    drop(index);
    spoil(cache.path());
    let index = ChunkIndex::open(cache.path()).unwrap();
    let reason = index.was_rebuilt().map(str::to_string);
    // sled may also come back as it was before the flush: then it knows nothing, and says so.
    let left = if index.has_pack(&pack_id(1)).unwrap() { 5000 } else { 0 };
    assert!(reason.is_none() || left == 0);
    assert_eq!(index.entries(), left);
    for number in 0..5000 {
        assert_eq!(find(&index, number).is_empty(), left == 0);
    }
    add(&index, 1, &entries(0, 5000));
    index.flush().unwrap();
    drop(index);
    let index = ChunkIndex::open(cache.path()).unwrap();
    assert_eq!((index.was_rebuilt(), index.entries()), (None, 5000));
    reason
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 4;
    fs::write(path, bytes).unwrap();
}

#[test]
fn damage_rebuilds() {
    assert_eq!(reopen_after(|_| {}), None);
    let run = |cache: &Path| run_files(cache).remove(0);
    for at in [0, 9, 13, 17, 30, 60, 96 + 5000 * 24 + 5] {
        assert!(reopen_after(|cache| flip(&run(cache), at)).is_some(), "byte {at}");
    }
    assert!(reopen_after(|cache| fs::remove_file(run(cache)).unwrap()).is_some());
    let cut = |cache: &Path, size| {
        fs::File::options().write(true).open(run(cache)).unwrap().set_len(size).unwrap();
    };
    assert!(reopen_after(|cache| cut(cache, 0)).is_some());
    assert!(reopen_after(|cache| cut(cache, 5000)).is_some());
    let version = |cache: &Path| cache.join("index/slot-0/version");
    assert!(reopen_after(|cache| flip(&version(cache), 5)).is_some());
    assert!(reopen_after(|cache| fs::remove_file(version(cache)).unwrap()).is_some());
    assert!(reopen_after(|cache| fs::remove_dir_all(catalogue_dir(cache)).unwrap()).is_some());
    assert!(
        reopen_after(|cache| fs::write(run(cache).with_file_name("x"), b"x").unwrap()).is_none()
    );
}

#[test]
fn a_damaged_sled_rebuilds_or_is_whole() {
    let mut random = Random(99);
    for round in 0..30 {
        reopen_after(|cache| {
            let path = catalogue_dir(cache).join(if round % 5 == 4 { "conf" } else { "db" });
            let mut bytes = fs::read(&path).unwrap();
            let end = bytes.iter().rposition(|&byte| byte != 0).unwrap_or(0) + 1;
            match round % 3 {
                0 => bytes.truncate(random.below(end as u64) as usize),
                _ => {
                    for _ in 0..20 {
                        bytes[random.below(end as u64) as usize] ^= 1 << random.below(8);
                    }
                }
            }
            fs::write(&path, bytes).unwrap();
        });
    }
}

#[test]
fn distrust_rebuilds_and_clear_takes_it_back() {
    let marked = |clear: bool| {
        let cache = tempfile::tempdir().unwrap();
        let index = ChunkIndex::open(cache.path()).unwrap();
        index.distrust();
        if clear {
            index.clear().unwrap();
        }
        add(&index, 1, &entries(0, 10));
        index.flush().unwrap();
        drop(index);
        ChunkIndex::open(cache.path()).unwrap().was_rebuilt().is_some()
    };
    assert!(marked(false));
    assert!(!marked(true));
}

#[test]
fn a_flipped_record_is_found_by_the_merge() {
    let cache = tempfile::tempdir().unwrap();
    let index = ChunkIndex::open(cache.path()).unwrap();
    add(&index, 1, &entries(0, 5000));
    index.flush().unwrap();
    flip(&run_files(cache.path())[0], 96 + 24 * 2500 + 20);
    add(&index, 2, &entries(5000, 5000));
    index.flush().unwrap();
    assert_eq!(run_files(cache.path()).len(), 2);
    drop(index);
    assert!(ChunkIndex::open(cache.path()).unwrap().was_rebuilt().is_some());
}

#[test]
fn runs_from_before_a_boot_are_read_once() {
    for flipped in [false, true] {
        let reason = reopen_after(|cache| {
            let catalogue = Catalogue::open(&catalogue_dir(cache)).unwrap();
            let mut state = catalogue.state().unwrap();
            state.runs[0].boot ^= 1;
            catalogue.commit(&state).unwrap();
            drop(catalogue);
            if flipped {
                flip(&run_files(cache)[0], 96 + 24 * 2000 + 18);
            } else {
                drop(ChunkIndex::open(cache).unwrap());
                let catalogue = Catalogue::open(&catalogue_dir(cache)).unwrap();
                assert_eq!(catalogue.state().unwrap().runs[0].boot, 0);
            }
        });
        assert_eq!(reason.is_some(), flipped);
    }
}

#[test]
fn threads_may_share_it() {
    fn shared<T: Send + Sync>() {}
    shared::<ChunkIndex>();
}

#[test]
fn two_at_once_have_two_slots() {
    let cache = tempfile::tempdir().unwrap();
    let first = ChunkIndex::open(cache.path()).unwrap();
    add(&first, 1, &entries(0, 10));
    first.flush().unwrap();
    let second = ChunkIndex::open(cache.path()).unwrap();
    assert_eq!((second.entries(), second.was_rebuilt()), (0, None));
    add(&second, 2, &entries(0, 10));
    drop(first);
    let third = ChunkIndex::open(cache.path()).unwrap();
    assert_eq!((third.entries(), third.was_rebuilt()), (10, None));
    assert!(third.has_pack(&pack_id(1)).unwrap());
    assert!(second.has_pack(&pack_id(2)).unwrap());
}

#[test]
fn look_ups_run_beside_additions() {
    let cache = tempfile::tempdir().unwrap();
    let index = ChunkIndex::open_temporary(cache.path()).unwrap();
    add(&index, 0, &entries(0, 2000));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 1..=4 {
            let (index, done) = (&index, &done);
            scope.spawn(move || {
                let mut random = Random(seed);
                while !done.load(Ordering::Relaxed) {
                    // Flushes and merges move it; it is there exactly once all the time.
                    assert_eq!(find(index, random.below(2000)).len(), 1);
                    assert!(find(index, 1 << 40 | random.below(1000)).is_empty());
                }
            });
        }
        for pack in 1..300 {
            add(&index, pack, &entries(pack * 2000, 2000));
            if pack % 10 == 0 {
                index.flush().unwrap();
                index.drop_pack(&pack_id(pack - 3)).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(index.entries(), 300 * 2000 - 29 * 2000);
}

#[test]
fn keys_that_are_not_uniform_only_cost_time() {
    let folder = tempfile::tempdir().unwrap();
    let mut records = BTreeSet::new();
    let mut random = Random(5);
    for i in 0..40_000_u64 {
        let mut key = [0_u8; 16];
        match i % 4 {
            0 => key[8..].copy_from_slice(&random.next().to_be_bytes()),
            1 => key[..2].copy_from_slice(&[255, 255]),
            2 => key[..8].copy_from_slice(&(random.next() >> random.below(64)).to_be_bytes()),
            _ => key = [255; 16],
        }
        records.insert(Record::new(&key, random.below(900) as u32, random.next() as u32));
    }
    let mut writer = RunWriter::create(folder.path().join("a.run")).unwrap();
    records.iter().for_each(|record| writer.push(*record).unwrap());
    assert!(writer.push(Record::new(&[0; 16], 0, 0)).is_err());
    let count = writer.finish().unwrap().unwrap().count();
    let run = Run::open(folder.path().join("a.run"), count).unwrap();
    let key = |record: &Record| -> [u8; 16] { record.prefix().try_into().unwrap() };
    let mut counts: HashMap<[u8; 16], usize> = HashMap::new();
    records.iter().for_each(|record| *counts.entry(key(record)).or_default() += 1);
    for (key, wanted) in &counts {
        let mut found = 0;
        let mut visit = |_| {
            found += 1;
            *wanted < 1000 || found < 1000
        };
        run.find(key, &mut visit).unwrap();
        assert_eq!(found, *(wanted.min(&1000)));
        let mut near = *key;
        near[15] ^= 1;
        let mut any = false;
        run.find(&near, &mut |_| {
            any = true;
            false
        })
        .unwrap();
        assert_eq!(any, counts.contains_key(&near));
    }
}

#[test]
fn merging_keeps_at_most_eight_runs_at_any_size() {
    let mut random = Random(11);
    let mut runs: Vec<u64> = Vec::new();
    let (mut total, mut written) = (0, 0);
    while total < 2_000_000_000 {
        // Ends of backups flush early, so some runs are short.
        let new = if random.below(3) == 0 { 1 + random.below(PENDING_MAX) } else { PENDING_MAX };
        runs.push(new);
        (total, written) = (total + new, written + new);
        if let Some(start) = merge_start(&runs, total) {
            let sum = runs.drain(start..).sum();
            runs.push(sum);
            written += sum;
        }
        assert!(runs.len() <= 8, "{runs:?}");
    }
    assert!(written / total < 20, "each record was written {} times", written / total);
}

//! Disks of any size under any edits, on grids and by content, over several points.

use crate::cases_of;
use crate::files::{assert_not_less_sparse, data_ranges, noise};
use crate::lab::{Lab, disk};
use crate::model::{Disk, Edit, Ledger, assert_adds_up, edits, pack_bytes, sizes, write_noise};
use diskvault::backup::{BackupReport, ChunkerChoice, DigestKind};
use diskvault::repository::locate::Locator;
use diskvault::repository::points::Point;
use diskvault::restore::SparseMode;
use diskvault::storage::memory::MemoryStorage;
use diskvault_format::id::{MapRoot, PointId};
use diskvault_format::manifest::Statistics;
use proptest::prelude::*;
use sha2::Digest;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

const KINDS: [DigestKind; 2] = [DigestKind::Sha256, DigestKind::Md5];
const MODES: [SparseMode; 3] = [SparseMode::Auto, SparseMode::Exact, SparseMode::Never];

/// A point that was made, and what its disk was.
struct Day {
    point: PointId,
    root: MapRoot,
    bytes: Vec<u8>,
    data: Vec<Range<u64>>,
}

struct Trial {
    lab: Lab,
    storage: MemoryStorage,
    chunk_bytes: u32,
    chunker: ChunkerChoice,
    ledger: Ledger,
    /// What the last point of the series was.
    last: Option<Vec<u8>>,
}

impl Trial {
    fn new(chunk_bytes: u32, chunker: ChunkerChoice) -> Trial {
        let (lab, storage) = Lab::in_memory(chunk_bytes, 4);
        Trial { lab, storage, chunk_bytes, chunker, ledger: Ledger::default(), last: None }
    }

    fn is_grid(&self) -> bool {
        self.chunker == ChunkerChoice::Fixed
    }

    /// Backs up the disk and checks every number of the report.
    fn backup(&mut self, source: &Disk) -> BackupReport {
        let (data, packs) = (source.data(), pack_bytes(&self.storage));
        let input = [disk("sda", &source.path)];
        let report = self.lab.backup("vm", &input, self.chunker, &KINDS);
        let counts = report.statistics;
        assert_adds_up(&counts);
        assert_eq!(counts.stored_bytes, pack_bytes(&self.storage) - packs);
        assert_eq!(counts.read_bytes, crate::files::sum(&data));
        if self.is_grid() {
            let chunk = self.chunk_bytes as usize;
            let last = self.last.as_deref();
            self.ledger.foretell(chunk, &source.bytes, &data, last).assert_is(&counts);
        } else {
            let zeros = counts.virtual_bytes - counts.deduplicated_bytes - counts.new_bytes;
            assert_eq!(counts.zero_bytes, zeros.saturating_sub(counts.hole_bytes));
            assert_eq!(counts.unchanged_bytes, 0);
        }
        self.last = Some(source.bytes.clone());
        report
    }

    /// Makes the day's point, and a second one of the same bytes, which must add nothing.
    fn make_day(&mut self, source: &Disk) -> Day {
        let first = self.backup(source);
        let again = self.backup(source);
        let root = first.manifest.disks[0].root;
        assert_eq!(again.manifest.disks[0].root, root, "a second read gave another map");
        let Statistics { new_chunks, new_bytes, stored_bytes, .. } = again.statistics;
        assert_eq!((new_chunks, new_bytes, stored_bytes), (0, 0, 0));
        Day { point: first.point, root, bytes: source.bytes.clone(), data: source.data() }
    }

    /// Map roots of the disk read anew without a parent: with one thread, and into a repository
    /// of the same keys that is empty.
    fn assert_same_root_elsewhere(&self, source: &Disk, root: MapRoot) {
        let input = [disk("sda", &source.path)];
        let other = Lab::open(Arc::new(self.storage.clone()), 3, 1);
        let alone = other.backup("other", &input, self.chunker, &[]);
        assert_eq!(alone.manifest.disks[0].root, root, "one thread gave another map");
        assert_eq!(alone.statistics.new_chunks, 0);
        let empty = MemoryStorage::new();
        for (name, object) in self.storage.snapshot() {
            let folder = name.split('/').next().unwrap_or_default();
            if matches!(folder, "config" | "keys" | "instance") {
                empty.insert(name, object);
            }
        }
        for threads in [1, 4] {
            let twin = Lab::open(Arc::new(empty.clone()), 4 + threads as u64, threads);
            let series = format!("threads-{threads}");
            let report = twin.backup(&series, &input, self.chunker, &[]);
            assert_eq!(report.manifest.disks[0].root, root, "{threads} threads");
        }
    }

    fn assert_digests(&self, locator: &Locator, point: &Point, bytes: &[u8]) {
        let digest = |kind| self.lab.digest(locator, point, "sda", kind);
        assert_eq!(digest(None), blake3::hash(bytes).as_bytes());
        // Once more, from the cache.
        assert_eq!(digest(None), blake3::hash(bytes).as_bytes());
        assert_eq!(digest(Some(DigestKind::Sha256))[..], sha2::Sha256::digest(bytes)[..]);
        assert_eq!(digest(Some(DigestKind::Md5))[..], md5::Md5::digest(bytes)[..]);
        // Not recorded, so it is computed from the data.
        assert_eq!(digest(Some(DigestKind::Sha1))[..], sha1::Sha1::digest(bytes)[..]);
        let recorded: Vec<&str> =
            point.manifest.disks[0].digests.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(recorded, ["sha256", "md5"]);
    }

    /// Restores the point in every way.
    fn assert_restores(&self, locator: &Locator, point: &Point, day: &Day) {
        for mode in MODES {
            for exists in [false, true] {
                let target = self.lab.path("restored");
                if exists {
                    // Longer or shorter than the disk.
                    let bytes = if mode == SparseMode::Auto { 300_001 } else { 1_000_000 };
                    write_noise(&target, 99, bytes);
                }
                let way = (target.as_path(), exists);
                let report = self.lab.restore(locator, point, "sda", way, mode);
                assert_eq!(report.virtual_bytes, day.bytes.len() as u64);
                assert_eq!(report.data_bytes + report.zero_bytes, report.virtual_bytes);
                let restored = std::fs::read(&target).unwrap();
                assert!(restored == day.bytes, "{mode:?}, existing {exists}: other bytes");
                self.assert_holes(&target, mode, day);
                std::fs::remove_file(&target).unwrap();
            }
        }
    }

    fn assert_holes(&self, target: &Path, mode: SparseMode, day: &Day) {
        let found = data_ranges(target);
        match mode {
            SparseMode::Exact => assert_eq!(found, day.data, "holes are not the source's"),
            SparseMode::Never => assert_eq!(crate::files::sum(&found), day.bytes.len() as u64),
            SparseMode::Auto => {
                let is_data = |range: &Range<u64>| {
                    day.data.iter().any(|data| data.start <= range.start && range.end <= data.end)
                };
                assert!(found.iter().all(is_data), "{found:?} is less sparse than {:?}", day.data);
            }
        }
    }

    /// A restored disk is backed up as the same map.
    fn assert_comes_back_the_same(&self, locator: &Locator, point: &Point, day: &Day) {
        let target = self.lab.path("to and fro");
        self.lab.restore(locator, point, "sda", (&target, false), SparseMode::Auto);
        let input = [disk("sda", &target)];
        let report = self.lab.backup("fro", &input, self.chunker, &[]);
        assert_eq!(report.manifest.disks[0].root, day.root);
        assert_eq!(report.statistics.new_chunks, 0);
        std::fs::remove_file(&target).unwrap();
    }
}

fn run(chunk_bytes: u32, chunker: ChunkerChoice, size: usize, changes: &[Vec<Edit>]) {
    let mut trial = Trial::new(chunk_bytes, chunker);
    let mut source = Disk::create(trial.lab.path("source"), size);
    let mut days = Vec::new();
    for edits in changes {
        for edit in edits {
            source.apply(edit);
        }
        source.assert_is_model();
        let day = trial.make_day(&source);
        trial.assert_same_root_elsewhere(&source, day.root);
        days.push(day);
    }
    let locator = trial.lab.locator();
    for day in &days {
        let point = trial.lab.point(day.point);
        assert_eq!(point.manifest.disks[0].size, day.bytes.len() as u64);
        assert!(trial.lab.read(&locator, &point, "sda") == day.bytes, "read in order");
        trial.assert_digests(&locator, &point, &day.bytes);
        trial.assert_restores(&locator, &point, day);
    }
    drop(locator);
    if let Some(day) = days.last() {
        let locator = trial.lab.locator();
        let point = trial.lab.point(day.point);
        let target = trial.lab.path("beside the source");
        trial.lab.restore(&locator, &point, "sda", (&target, false), SparseMode::Auto);
        assert_not_less_sparse(&target, &source.path);
    }
    for day in &days {
        let locator = trial.lab.locator();
        let point = trial.lab.point(day.point);
        trial.assert_comes_back_the_same(&locator, &point, day);
    }
    trial.lab.assert_sound();
}

fn days() -> impl Strategy<Value = Vec<Vec<Edit>>> {
    prop::collection::vec(edits(), 1..4)
}

/// What lay on the grid is written once more beside it: its middle is recognised.
#[test]
fn content_at_another_phase_is_no_new_content() {
    let mut trial = Trial::new(4096, ChunkerChoice::Fixed);
    let mut source = Disk::create(trial.lab.path("source"), 741_376);
    source.write(0..12_288, &noise(1, 12_288));
    trial.make_day(&source);
    source.write(182_620..193_700, &noise(1, 11_080));
    let counts = trial.backup(&source).statistics;
    assert_eq!((counts.new_chunks, counts.deduplicated_bytes), (2, 8192));
}

proptest! {
    #![proptest_config(cases_of(16))]

    #[test]
    fn disks_on_the_grid_of_4_kib(size in sizes(), changes in days()) {
        run(4096, ChunkerChoice::Fixed, size, &changes);
    }

    #[test]
    fn disks_on_the_grid_of_64_kib(size in sizes(), changes in days()) {
        run(65_536, ChunkerChoice::Fixed, size, &changes);
    }

    #[test]
    fn disks_cut_by_content(size in sizes(), changes in days()) {
        run(65_536, ChunkerChoice::Content, size, &changes);
    }
}

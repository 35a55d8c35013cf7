//! Disks with bad sectors: the backup goes on, says what it could not read, and the next one heals
//! it; a disk that is mostly gone gives no point.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;

use diskvault::backup::{BackupReport, ChunkerChoice, InputRequest, run_with};
use diskvault::error::{Error, ErrorKind, Result};
use diskvault::monitor::Silent;
use diskvault::repository::Repository;
use diskvault::repository::points::PointSet;
use diskvault::source::{DiskSource, Extent, ExtentKind, InputKind, TolerantSource};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use support::vault::{Parts, Vault, noise, options};

const SECTOR: u64 = 4096;
const EIO: i32 = 5;

/// A disk in memory of which some sectors cannot be read.
struct Worn {
    data: Vec<u8>,
    bad: BTreeSet<u64>,
    /// Sectors that can be read at the second try.
    shy: Mutex<BTreeSet<u64>>,
    errno: i32,
    reads: AtomicU64,
}

impl Worn {
    fn new(data: Vec<u8>, bad: impl IntoIterator<Item = u64>) -> Worn {
        let bad = bad.into_iter().collect();
        Worn { data, bad, shy: Mutex::default(), errno: EIO, reads: AtomicU64::new(0) }
    }
}

impl DiskSource for Worn {
    fn size(&self) -> u64 {
        self.data.len() as u64
    }

    fn describe(&self) -> String {
        "/dev/worn".into()
    }

    fn format(&self) -> &'static str {
        "raw"
    }

    fn extents_in(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        let bytes = range.end.min(self.size()) - range.start;
        each(Extent { start: range.start, bytes, kind: ExtentKind::Data })
    }

    fn allocation_known(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let end = offset + buffer.len() as u64;
        let mut sectors = offset / SECTOR..end.div_ceil(SECTOR);
        let was_shy = {
            let mut shy = self.shy.lock().unwrap();
            sectors.clone().filter(|sector| shy.remove(sector)).count() > 0
        };
        if was_shy || sectors.any(|sector| self.bad.contains(&sector)) {
            let cause = io::Error::from_raw_os_error(self.errno);
            return Err(Error::io(ErrorKind::Source, "cannot read disk /dev/worn", cause));
        }
        buffer.copy_from_slice(&self.data[offset as usize..end as usize]);
        Ok(())
    }

    fn prefetch(&self, _offset: u64, _bytes: u64) {}

    fn check_unchanged_size(&self) -> Result<()> {
        Ok(())
    }

    fn identity(&self) -> Vec<u8> {
        Vec::new()
    }
}

fn zeroed(data: &[u8], bad: &[u64]) -> Vec<u8> {
    let mut data = data.to_vec();
    for sector in bad {
        let start = (sector * SECTOR) as usize;
        let end = (start + SECTOR as usize).min(data.len());
        data[start..end].fill(0);
    }
    data
}

fn back_up(
    vault: &Vault,
    repository: &Repository,
    chunker: ChunkerChoice,
    make: &dyn Fn() -> Worn,
) -> Result<BackupReport> {
    // The path is only looked at; the disk is the one in memory.
    let path = vault.folder.path().join("vda");
    std::fs::write(&path, noise(0, 4096)).unwrap();
    let input = InputRequest::new(Some("vda".into()), path, Some(InputKind::Disk));
    let options = diskvault::backup::BackupOptions { chunker, ..options("web01", vec![input]) };
    let open = |_: &InputRequest| Ok(Box::new(make()) as Box<dyn DiskSource>);
    run_with(repository, &options, &open, &vault.pool, &Silent)
}

fn bad_of(report: &BackupReport) -> Vec<(u64, u64)> {
    let bad = report.manifest.disks[0].bad_extents.iter();
    bad.map(|range| (range.start / SECTOR, range.bytes / SECTOR)).collect()
}

#[test]
fn a_backup_goes_on_and_the_next_one_heals_it() {
    for chunker in [ChunkerChoice::Fixed, ChunkerChoice::Content] {
        let mut vault = Vault::new(1);
        let repository = vault.open("host").unwrap();
        let data = noise(1, 3 << 20);
        // One alone, two that touch, two of one chunk, the last of the disk.
        let bad = [7, 100, 101, 256, 258, 767];
        let report =
            back_up(&vault, &repository, chunker, &|| Worn::new(data.clone(), bad)).unwrap();
        assert_eq!(bad_of(&report), [(7, 1), (100, 2), (256, 1), (258, 1), (767, 1)]);
        assert_eq!(report.unreadable_bytes(), 6 * SECTOR);
        let parts = |data: Vec<u8>| Parts::from([("vda".to_string(), data)]);
        vault.known.insert(report.point, parts(zeroed(&data, &bad)));
        let healed =
            back_up(&vault, &repository, chunker, &|| Worn::new(data.clone(), [])).unwrap();
        assert_eq!(bad_of(&healed), []);
        vault.known.insert(healed.point, parts(data.clone()));
        let outcomes = vault.restore_all(&repository).unwrap();
        assert!(outcomes.len() == 2 && outcomes.values().all(Result::is_ok), "{outcomes:?}");
    }
}

#[test]
fn a_disk_that_is_mostly_gone_gives_no_point() {
    let vault = Vault::new(2);
    let repository = vault.open("host").unwrap();
    // 16 MiB may be bad of any disk; this is one sector more.
    let worn = |sectors: u64| move || Worn::new(vec![1; 64 << 20], 0..sectors);
    let error = back_up(&vault, &repository, ChunkerChoice::Fixed, &worn(4097)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Source);
    assert!(error.full_text().contains("16781312 bytes of it are unreadable"), "{error:?}");
    assert!(PointSet::load(&repository).unwrap().points.is_empty());
    back_up(&vault, &repository, ChunkerChoice::Fixed, &worn(4096)).unwrap();
}

#[test]
fn only_the_medium_is_forgiven() {
    let vault = Vault::new(3);
    let repository = vault.open("host").unwrap();
    for (errno, is_forgiven) in [(EIO, true), (61, true), (13, false), (9, false), (12, false)] {
        let worn = || Worn { errno, ..Worn::new(noise(1, 1 << 20), [3]) };
        let made = back_up(&vault, &repository, ChunkerChoice::Fixed, &worn);
        assert_eq!(made.is_ok(), is_forgiven, "errno {errno}: {made:?}");
    }
}

#[test]
fn a_sector_that_fails_once_is_no_bad_one() {
    let worn = Worn::new(noise(1, 1 << 20), []);
    *worn.shy.lock().unwrap() = BTreeSet::from([3, 9]);
    let data = worn.data.clone();
    let tolerant = TolerantSource::new(Arc::new(worn));
    let mut buffer = vec![0; 1 << 20];
    tolerant.read_at(0, &mut buffer).unwrap();
    assert!(buffer == data && tolerant.bad_extents().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// However it is read: what can be read is right, the rest is zeros and told.
    #[test]
    fn exactly_the_bad_sectors_are_told(
        bad in prop::collection::btree_set(0_u64..40, 0..12),
        reads in prop::collection::vec((0_usize..160_000, 1_usize..60_000), 1..20),
    ) {
        let data = noise(5, 40 * SECTOR as usize - 1000);
        let sectors: Vec<u64> = bad.iter().copied().collect();
        let tolerant = TolerantSource::new(Arc::new(Worn::new(data.clone(), bad)));
        let expected = zeroed(&data, &sectors);
        let mut touched = BTreeSet::new();
        for (start, bytes) in reads {
            let start = start.min(data.len() - 1);
            let end = (start + bytes).min(data.len());
            let mut buffer = vec![0xaa; end - start];
            tolerant.read_at(start as u64, &mut buffer).unwrap();
            for (number, byte) in buffer.iter().enumerate() {
                let at = start + number;
                prop_assert_eq!(*byte, expected[at], "at {}", at);
                if sectors.contains(&(at as u64 / SECTOR)) {
                    touched.insert(at as u64);
                }
            }
        }
        let told: Vec<Range<u64>> = tolerant.bad_extents();
        prop_assert!(told.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", told);
        let told: BTreeSet<u64> = told.into_iter().flatten().collect();
        prop_assert_eq!(told, touched);
    }
}

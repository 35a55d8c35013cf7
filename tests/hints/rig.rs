//! A disk in memory that counts what is read of it, and backups of it by hints.

use crate::support::vault::{CHUNK_BYTES, Parts, Vault, noise, options};
use diskvault::backup::{
    BackupOptions, BackupReport, ChunkerChoice, Hint, InputRequest, Reading, run_with,
};
use diskvault::error::Result;
use diskvault::monitor::Monitor;
use diskvault::repository::Repository;
use diskvault::repository::points::{Point, PointSet};
use diskvault::source::{DiskSource, Extent, ExtentKind, InputKind};
use diskvault_format::manifest::DiskRecord;
use diskvault_format::tracking::Tracking;
use std::ops::Range;
use std::sync::{Arc, Mutex};

pub const CHUNK: u64 = CHUNK_BYTES as u64;

/// A disk in memory that counts what is read of it.
#[derive(Default)]
pub struct Counted {
    data: Vec<u8>,
    /// Zeros that are holes, in chunks.
    holes: Vec<Range<u64>>,
    read: Arc<Mutex<Vec<Range<u64>>>>,
    token: Vec<u8>,
    changed_unix_ns: Option<i64>,
}

impl DiskSource for Counted {
    fn size(&self) -> u64 {
        self.data.len() as u64
    }

    fn describe(&self) -> String {
        "memory".into()
    }

    fn format(&self) -> &'static str {
        "raw"
    }

    fn extents_in(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        let end = range.end.min(self.size());
        let mut at = range.start;
        while at < end {
            let is_hole = |at: u64| self.holes.iter().any(|hole| hole.contains(&(at / CHUNK)));
            let kind = if is_hole(at) { ExtentKind::Hole } else { ExtentKind::Data };
            let mut stop = at;
            while stop < end && is_hole(stop) == is_hole(at) {
                stop = ((stop / CHUNK + 1) * CHUNK).min(end);
            }
            each(Extent { start: at, bytes: stop - at, kind })?;
            at = stop;
        }
        Ok(())
    }

    fn allocation_known(&self) -> bool {
        true
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset + buffer.len() as u64;
        self.read.lock().unwrap().push(offset..end);
        buffer.copy_from_slice(&self.data[offset as usize..end as usize]);
        Ok(())
    }

    fn prefetch(&self, _offset: u64, _bytes: u64) {}

    fn check_unchanged_size(&self) -> Result<()> {
        Ok(())
    }

    fn identity(&self) -> Vec<u8> {
        self.token.clone()
    }

    fn changed_unix_ns(&self) -> Option<i64> {
        self.changed_unix_ns
    }
}

/// Keeps what it is warned of.
#[derive(Default)]
pub struct Warnings(Mutex<Vec<String>>);

impl Warnings {
    pub fn into_inner(self) -> Vec<String> {
        self.0.into_inner().unwrap()
    }
}

impl Monitor for Warnings {
    fn warn(&self, text: &str) {
        self.0.lock().unwrap().push(text.into());
    }
}

pub struct Given<'a> {
    pub data: &'a [u8],
    pub holes: &'a [Range<u64>],
    pub hint: Option<Hint>,
    pub reading: Reading,
    pub chunker: ChunkerChoice,
    /// Token and time of its last change.
    pub file: (Vec<u8>, Option<i64>),
}

impl<'a> Given<'a> {
    pub fn full(data: &'a [u8]) -> Given<'a> {
        let (holes, hint, reading) = (&[][..], None, Reading::default());
        let (chunker, file) = (ChunkerChoice::Fixed, (Vec::new(), None));
        Given { data, holes, hint, reading, chunker, file }
    }

    pub fn hinted(data: &'a [u8], base: &Point, changed: Vec<Range<u64>>) -> Given<'a> {
        let told_by = "the test".to_string();
        let hint = Some(Hint { base: base.clone(), changed, told_by, unfit: None });
        Given { hint, ..Given::full(data) }
    }
}

pub struct Made {
    pub report: BackupReport,
    pub read_bytes: u64,
    pub warnings: Vec<String>,
}

impl Made {
    pub fn disk(&self) -> &DiskRecord {
        &self.report.manifest.disks[0]
    }

    pub fn tracking(&self) -> Tracking {
        Tracking::find(&self.disk().extensions).unwrap()
    }
}

pub fn back_up(vault: &mut Vault, repository: &Repository, given: Given<'_>) -> Made {
    let path = vault.folder.path().join("vda");
    std::fs::write(&path, noise(0, 4096)).unwrap();
    let mut input = InputRequest::new(Some("vda".into()), path, Some(InputKind::Disk));
    input.hint = given.hint.map(Arc::new);
    let options = BackupOptions {
        chunker: given.chunker,
        reading: given.reading,
        ..options("web01", vec![input])
    };
    let read = Arc::new(Mutex::default());
    let open = |_: &InputRequest| {
        Ok(Box::new(Counted {
            data: given.data.to_vec(),
            holes: given.holes.to_vec(),
            read: Arc::clone(&read),
            token: given.file.0.clone(),
            changed_unix_ns: given.file.1,
        }) as Box<dyn DiskSource>)
    };
    let warnings = Warnings::default();
    let report = run_with(repository, &options, &open, &vault.pool, &warnings).unwrap();
    let parts = Parts::from([("vda".to_string(), given.data.to_vec())]);
    vault.known.insert(report.point, parts);
    let read_bytes = read.lock().unwrap().iter().map(|range| range.end - range.start).sum();
    Made { report, read_bytes, warnings: warnings.into_inner() }
}

pub fn newest(repository: &Repository) -> Point {
    PointSet::load(repository).unwrap().latest("web01").unwrap().clone()
}

pub fn assert_restores(vault: &Vault, repository: &Repository, what: &str) {
    let outcomes = vault.restore_all(repository).unwrap();
    assert!(outcomes.values().all(Result::is_ok), "{what}: {outcomes:?}");
}

/// So many chunks; no two are equal.
pub fn disk(seed: u64, chunks: u64) -> Vec<u8> {
    noise(seed, (chunks * CHUNK) as usize)
}

pub fn one(range: Range<u64>) -> Vec<Range<u64>> {
    std::iter::once(range).collect()
}

pub fn overwrite(data: &mut [u8], seed: u64, range: Range<u64>) {
    let bytes = noise(seed, (range.end - range.start) as usize);
    data[range.start as usize..range.end as usize].copy_from_slice(&bytes);
}

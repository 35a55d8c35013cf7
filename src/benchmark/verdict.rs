//! What a large disk will get, computed from the measured parts, and which of them is the limit.
//!
//! A pipeline is as fast as its slowest stage: the storage, or all the work of the processor
//! together. Work that follows the amount of data and not its bytes (looking up chunks, maps) is
//! left out: it is less than one part in fifty at 32 KiB.

use super::parts::{Part, PartRate};
use super::storage::{Operation, StorageReport};
use crate::repository::compression::ZSTD_LEVEL;

/// What is predicted and measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Everything is new.
    First,
    /// Everything is read and nothing is new.
    Unchanged,
    /// Everything comes back, into a file on the same storage.
    Restore,
}

impl Work {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Work::First => "first backup",
            Work::Unchanged => "unchanged backup",
            Work::Restore => "restore",
        }
    }
}

/// The slowest stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Writing to the storage.
    Write,
    /// Reading the storage, and writing the restored disk to the same one.
    ReadAndWrite,
    /// The processor, of whose time this part takes most.
    Processor(Part),
}

/// How fast some work will be for data like the test data.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Which.
    pub work: Work,
    /// Bytes of the disk a second.
    pub rate: f64,
    /// What keeps it from being faster.
    pub limit: Limit,
    /// What all cores could do if the storage were no limit.
    pub processor: f64,
    /// What the storage could do if the processor were no limit; `None` if it is not used.
    pub storage: Option<f64>,
    /// How the processor's time is spent: each part's share of 1.
    pub shares: Vec<(Part, f64)>,
}

/// Predicts a first backup, an unchanged one and a restore at a compression level.
pub fn predict(storage: &StorageReport, parts: &[PartRate], level: i32) -> [Prediction; 3] {
    let ratio = ratio(parts, level);
    let level = Part::Compress(level);
    // Reading the disk, and once more into a segment; the packs into the page cache.
    let first = [
        (Part::MemoryCopy, 2.0 + ratio),
        (Part::ChunkId, 1.0),
        (Part::ChainingValue, 1.0),
        (level, 1.0),
        (Part::Pack, ratio),
    ];
    let unchanged = [(Part::MemoryCopy, 1.0), (Part::ChunkId, 1.0)];
    let restore = [
        (Part::MemoryCopy, ratio + 1.0),
        (Part::Open, ratio),
        (Part::Decode, 1.0),
        (Part::ChunkId, 1.0),
    ];
    let both = 1.0 / (ratio / storage.read + 1.0 / storage.write);
    [
        combine(Work::First, parts, &first, Some((Limit::Write, storage.write / ratio))),
        combine(Work::Unchanged, parts, &unchanged, None),
        combine(Work::Restore, parts, &restore, Some((Limit::ReadAndWrite, both))),
    ]
}

/// What the bytes become at a level, of 1.
fn ratio(parts: &[PartRate], level: i32) -> f64 {
    let found = parts.iter().find(|rate| rate.part == Part::Compress(level));
    found.and_then(|rate| rate.ratio).unwrap_or(1.0)
}

fn combine(
    work: Work,
    parts: &[PartRate],
    uses: &[(Part, f64)],
    storage: Option<(Limit, f64)>,
) -> Prediction {
    let seconds_of = |(part, times): &(Part, f64)| {
        let found = parts.iter().find(|rate| rate.part == *part);
        (*part, found.map_or(0.0, |rate| times / rate.all_cores))
    };
    let costs: Vec<(Part, f64)> = uses.iter().map(seconds_of).collect();
    let total: f64 = costs.iter().map(|(_, seconds)| seconds).sum();
    let processor = 1.0 / total;
    let most = costs.iter().max_by(|one, two| one.1.total_cmp(&two.1));
    let busiest = most.map_or(Part::MemoryCopy, |(part, _)| *part);
    let (rate, limit) = match storage {
        Some((limit, rate)) if rate < processor => (rate, limit),
        _ => (processor, Limit::Processor(busiest)),
    };
    let shares = costs.iter().map(|(part, seconds)| (*part, seconds / total)).collect();
    Prediction { work, rate, limit, processor, storage: storage.map(|(_, rate)| rate), shares }
}

/// What a point costs however little has changed, in seconds: a lease, two packs, a manifest and
/// its mark are put, the lease is deleted, and seven folders are listed.
pub fn point_seconds(storage: &StorageReport) -> f64 {
    5.0 * storage.median(Operation::Put)
        + storage.median(Operation::Delete)
        + 7.0 * storage.median(Operation::List)
}

/// The highest level measured at which a first backup is as fast as at the usual one; `None` if
/// that is the usual one, or the processor is the limit.
pub fn free_level(storage: &StorageReport, parts: &[PartRate]) -> Option<(i32, f64)> {
    let [usual, ..] = predict(storage, parts, ZSTD_LEVEL);
    let higher = super::LEVELS.into_iter().filter(|level| *level > ZSTD_LEVEL).max()?;
    let [first, ..] = predict(storage, parts, higher);
    let saved = 1.0 - ratio(parts, higher) / ratio(parts, ZSTD_LEVEL);
    let is_free = usual.limit == Limit::Write && first.rate >= usual.rate;
    (is_free && saved > 0.01).then_some((higher, saved))
}

//! Whether a disk outside is the disk of a point: all of it, or a sample with a chance of error that is
//! told.
//!
//! Invariants: what is called equal was read and hashed to the ids of the point's map; of a sample,
//! every part that was to be looked at was looked at.

mod whole;

pub use whole::digest_of;

use crate::chunking::is_zero;
use crate::environment::Environment;
use crate::error::Result;
use crate::repository::lock;
use crate::repository::map_cursor::Cursor;
use crate::repository::map_reader::MapReader;
use crate::restore::fetch::Fetcher;
use crate::source::{DiskSource, ExtentKind};
use diskvault_format::id::ChunkId;
use diskvault_format::manifest::DiskRecord;
use rayon::ThreadPool;
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pieces that are handed to the threads at once.
const WINDOW_PIECES: usize = 16 << 10;
/// Most bytes of one piece of zeros.
const PIECE_BYTES: u64 = 1 << 20;
/// Disks that are cut by content are sampled in units of this size.
const UNIT_BYTES: u64 = 64 << 10;
/// Ranges that are remembered; of more, only the bytes are counted.
const RANGES_MAX: usize = 10_000;

/// What a quick look looks at, beside the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// Bytes at the beginning.
    pub first_bytes: u64,
    /// Bytes at the end.
    pub last_bytes: u64,
    /// Chunks of the rest, chosen at random.
    pub samples: u64,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Size of the point's disk in bytes.
    pub point_bytes: u64,
    /// Size of what it was compared with.
    pub found_bytes: u64,
    /// Bytes of the disk that were compared; holes on both sides count.
    pub compared_bytes: u64,
    /// Bytes of chunks that differ.
    pub different_bytes: u64,
    /// Where they are, ascending and joined, cut at the chunks; at most 10,000 ranges.
    pub different: Vec<Range<u64>>,
    /// How many ranges there were.
    pub ranges: u64,
    /// Chunks that were to be chosen from.
    pub units: u64,
    /// Chunks that were chosen.
    pub sampled_units: u64,
}

impl Verdict {
    /// True if nothing that was looked at differs.
    pub fn is_equal(&self) -> bool {
        self.point_bytes == self.found_bytes && self.different_bytes == 0
    }

    /// The chance that a quick look misses a difference in `different` of the chunks that were to be
    /// chosen from: none of them is among those that were chosen, without putting back.
    pub fn chance_to_miss(&self, different: u64) -> f64 {
        if self.sampled_units == self.units {
            return 0.0;
        }
        let different = different.min(self.units);
        (0..different).fold(1.0, |chance, taken| {
            let left = (self.units - taken) as f64;
            let spared = (self.units - self.sampled_units).saturating_sub(taken) as f64;
            chance * spared / left
        })
    }
}

/// Compares disks outside with a disk of a point.
pub struct Certifier<'a> {
    /// Reads the map; hears of progress.
    pub fetcher: Fetcher<'a>,
    /// Reads and hashes.
    pub pool: &'a ThreadPool,
}

/// A chunk or zeros that the disk has to have.
struct Piece {
    start: u64,
    end: u64,
    chunk: Option<ChunkId>,
}

#[derive(Default)]
struct Found {
    compared: AtomicU64,
    /// Since the last window was over.
    different: Mutex<Vec<Range<u64>>>,
    /// Before, ascending and joined.
    joined: Mutex<Joined>,
}

#[derive(Default)]
struct Joined {
    kept: Vec<Range<u64>>,
    count: u64,
    bytes: u64,
    end: Option<u64>,
}

impl Found {
    /// Joins what the last window found, which lies behind all before.
    fn join(&self) {
        let mut ranges = std::mem::take(&mut *lock(&self.different));
        ranges.sort_unstable_by_key(|range| range.start);
        let mut joined = lock(&self.joined);
        for range in ranges {
            joined.bytes += range.end - range.start;
            let follows = joined.end.replace(range.end) == Some(range.start);
            let is_kept = joined.count <= RANGES_MAX as u64;
            joined.count += u64::from(!follows);
            let has_room = joined.kept.len() < RANGES_MAX;
            match joined.kept.last_mut() {
                Some(last) if follows && is_kept => last.end = range.end,
                _ if has_room => joined.kept.push(range),
                _ => {}
            }
        }
    }
}

impl Certifier<'_> {
    /// Compares every byte.
    ///
    /// # Errors
    /// `Damage` for a map that cannot be read, `Source` for a disk that cannot, `Cancelled`.
    pub fn full(&self, disk: &DiskRecord, source: &dyn DiskSource) -> Result<Verdict> {
        let whole = std::iter::once(0..disk.size);
        let found = self.compare(disk, source, whole)?;
        Ok(verdict(disk, source, found))
    }

    /// Compares the beginning, the end and a sample.
    ///
    /// # Errors
    /// As [`Certifier::full`]; `Failed` without randomness.
    pub fn quick(
        &self,
        disk: &DiskRecord,
        source: &dyn DiskSource,
        sampling: Sampling,
        environment: &dyn Environment,
    ) -> Result<Verdict> {
        let unit = disk.chunking.grid().map_or(UNIT_BYTES, u64::from);
        let first = sampling.first_bytes.min(disk.size).next_multiple_of(unit).min(disk.size);
        let last = disk.size.saturating_sub(sampling.last_bytes).max(first);
        let last = last - (last - first) % unit;
        let units = (last - first) / unit;
        let chosen = choose(units, sampling.samples.min(units), environment)?;
        let sampled_units = chosen.len() as u64;
        let samples = chosen.into_iter().map(|number| {
            let start = first + number * unit;
            start..start + unit
        });
        let ranges =
            std::iter::once(0..first).chain(samples).chain(std::iter::once(last..disk.size));
        let found = self.compare(disk, source, ranges)?;
        Ok(Verdict { units, sampled_units, ..verdict(disk, source, found) })
    }

    /// Compares the parts of ascending ranges.
    fn compare(
        &self,
        disk: &DiskRecord,
        source: &dyn DiskSource,
        ranges: impl Iterator<Item = Range<u64>>,
    ) -> Result<Found> {
        let reader = MapReader::new(self.fetcher.repository, self.fetcher.locator);
        let mut cursor = Cursor::new(&reader, disk)?;
        let found = Found::default();
        let mut window = Vec::new();
        let mut done = 0;
        for range in ranges {
            let mut at = range.start.max(done);
            while at < range.end {
                self.fetcher.monitor.check_cancelled()?;
                let run = cursor.run_from(at)?;
                at = match run.chunk {
                    Some((id, start)) => {
                        window.push(Piece { start, end: run.end, chunk: Some(id) });
                        run.end
                    }
                    None => {
                        let end = run.end.min(range.end);
                        self.add_zeros(source, run.start..end, &found, &mut window)?;
                        end
                    }
                };
                if window.len() >= WINDOW_PIECES {
                    self.compare_window(source, &mut window, &found)?;
                }
            }
            done = done.max(at);
        }
        self.compare_window(source, &mut window, &found)?;
        Ok(found)
    }

    /// Of a range that has to be zeros, what the source does not call a hole is looked at.
    fn add_zeros(
        &self,
        source: &dyn DiskSource,
        range: Range<u64>,
        found: &Found,
        window: &mut Vec<Piece>,
    ) -> Result<()> {
        let there = range.end.min(source.size()).max(range.start);
        source.extents_in(range.start..there, &mut |extent| {
            let end = extent.start + extent.bytes;
            if extent.kind == ExtentKind::Hole {
                found.compared.fetch_add(extent.bytes, Ordering::Relaxed);
                self.fetcher.monitor.advance(extent.bytes);
                return Ok(());
            }
            let mut start = extent.start;
            while start < end {
                let until = (start + PIECE_BYTES).min(end);
                window.push(Piece { start, end: until, chunk: None });
                start = until;
                if window.len() >= WINDOW_PIECES {
                    self.compare_window(source, window, found)?;
                }
            }
            Ok(())
        })?;
        // Behind all of them: what is found is joined in its order.
        if there < range.end {
            lock(&found.different).push(there..range.end);
        }
        Ok(())
    }

    fn compare_window(
        &self,
        source: &dyn DiskSource,
        window: &mut Vec<Piece>,
        found: &Found,
    ) -> Result<()> {
        let pieces = std::mem::take(window);
        self.pool.install(|| {
            pieces.par_iter().try_for_each_init(Vec::new, |buffer, piece| {
                self.fetcher.monitor.check_cancelled()?;
                let bytes = piece.end - piece.start;
                if piece.end > source.size() {
                    lock(&found.different).push(piece.start..piece.end);
                    return Ok(());
                }
                buffer.resize(bytes as usize, 0);
                source.read_at(piece.start, buffer)?;
                let is_equal = match piece.chunk {
                    Some(id) => self.fetcher.repository.keys().chunk_id(buffer) == id,
                    None => is_zero(buffer),
                };
                if !is_equal {
                    lock(&found.different).push(piece.start..piece.end);
                }
                found.compared.fetch_add(bytes, Ordering::Relaxed);
                self.fetcher.monitor.advance(bytes);
                Ok(())
            })
        })?;
        found.join();
        Ok(())
    }
}

fn verdict(disk: &DiskRecord, source: &dyn DiskSource, found: Found) -> Verdict {
    // A device may be larger than the disk on it.
    let is_larger_device = source.format() == "block-device" && source.size() > disk.size;
    let joined = std::mem::take(&mut *lock(&found.joined));
    Verdict {
        point_bytes: disk.size,
        found_bytes: if is_larger_device { disk.size } else { source.size() },
        compared_bytes: found.compared.into_inner(),
        different_bytes: joined.bytes,
        different: joined.kept,
        ranges: joined.count,
        ..Verdict::default()
    }
}

/// `count` different numbers below `units`, ascending, each set of them as likely as any other
/// (Floyd's algorithm).
fn choose(units: u64, count: u64, environment: &dyn Environment) -> Result<BTreeSet<u64>> {
    let mut chosen = BTreeSet::new();
    for last in units - count..units {
        let mut bytes = [0; 16];
        environment.random(&mut bytes)?;
        // Of 128 random bits the remainder is even but for one part in 2^64.
        let number = (u128::from_le_bytes(bytes) % (u128::from(last) + 1)) as u64;
        if !chosen.insert(number) {
            chosen.insert(last);
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::SystemEnvironment;

    #[test]
    fn the_chance_is_that_of_drawing_without_putting_back() {
        let verdict = |units, sampled_units| Verdict { units, sampled_units, ..Verdict::default() };
        assert!((verdict(100, 25).chance_to_miss(1) - 0.75).abs() < 1e-12);
        assert!((verdict(4, 2).chance_to_miss(2) - 1.0 / 6.0).abs() < 1e-12);
        assert_eq!(verdict(4, 3).chance_to_miss(2), 0.0);
        assert_eq!(verdict(10, 0).chance_to_miss(10), 1.0);
        assert_eq!(verdict(0, 0).chance_to_miss(5), 0.0);
    }

    #[test]
    fn every_unit_is_chosen_as_often_as_any_other() {
        let mut times = [0_u32; 10];
        for _ in 0..20_000 {
            let chosen = choose(10, 3, &SystemEnvironment).unwrap();
            assert_eq!(chosen.len(), 3);
            chosen.iter().for_each(|number| times[*number as usize] += 1);
        }
        // 6,000 each; 7 standard deviations are 453.
        assert!(times.iter().all(|times| times.abs_diff(6000) < 453), "{times:?}");
        assert_eq!(choose(5, 5, &SystemEnvironment).unwrap().len(), 5);
        assert!(choose(0, 0, &SystemEnvironment).unwrap().is_empty());
    }
}

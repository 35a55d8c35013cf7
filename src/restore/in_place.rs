//! Bringing a disk back onto what is already there: only what differs is written.
//!
//! What the target holds is known, because it was restored or mirrored before and not touched since:
//! then two maps are compared, and nothing is read. Or it is not: then all of it but its holes is read
//! and hashed on all cores, and compared with the map.
//!
//! Invariants: nothing unverified is written; when it is done, every byte of the disk is the
//! point's, whatever the target held, provided that what was said to be known was right; running
//! it again after an interruption writes what is left.

use super::allocated::{Boundaries, read_allocation};
use super::disk::{Placer, SparseMode};
use super::fetch::{Fetcher, Wanted};
use crate::chunking::is_zero;
use crate::diff::{Comparison, Extent};
use crate::error::Result;
use crate::repository::lock;
use crate::repository::map_cursor::Cursor;
use crate::repository::map_reader::MapReader;
use crate::target::{DiskTarget, Reused, ZeroState};
use diskvault_format::manifest::DiskRecord;
use rayon::ThreadPool;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Chunks that are looked at before those of them that differ are fetched: 512 MiB at 32 KiB.
const WINDOW_CHUNKS: usize = 16 << 10;
/// Most bytes that one thread reads and hashes at once.
const GROUP_BYTES: u64 = 1 << 20;

/// How a disk is restored in place.
#[derive(Clone, Copy, Debug)]
pub struct InPlaceOptions<'a> {
    /// What zeros become.
    pub mode: SparseMode,
    /// The disk that the target is known to hold.
    pub known: Option<&'a DiskRecord>,
    /// Whether nothing is written.
    pub dry_run: bool,
}

/// What a restore in place did, or would have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InPlaceReport {
    /// Size of the disk.
    pub virtual_bytes: u64,
    /// Bytes of the target that were read and compared.
    pub read_bytes: u64,
    /// Bytes of data that were written.
    pub written_bytes: u64,
    /// Bytes that were made zeros or holes.
    pub zeroed_bytes: u64,
}

/// Restores a disk onto a target that holds something. The target is not finished here.
///
/// # Errors
/// `Damage` for what does not verify, `Target` or `NoSpace` for what cannot be read or written.
pub fn restore_in_place(
    fetcher: &Fetcher<'_>,
    pool: &ThreadPool,
    record: &DiskRecord,
    target: &Reused,
    options: InPlaceOptions<'_>,
) -> Result<InPlaceReport> {
    let reader = MapReader::new(fetcher.repository, fetcher.locator);
    let mut cursor = Cursor::new(&reader, record)?;
    let allocation = match options.mode {
        SparseMode::Never => None,
        _ => read_allocation(fetcher, &reader, record)?,
    };
    if !options.dry_run {
        target.prepare()?;
    }
    let counted = Counted {
        target,
        is_dry: options.dry_run,
        written: AtomicU64::new(0),
        zeroed: AtomicU64::new(0),
    };
    let placer = Placer { target: &counted, mode: options.mode, allocation, is_new: false };
    let mut work = Work {
        fetcher,
        pool,
        target,
        placer: &placer,
        counted: &counted,
        window: Vec::new(),
        read: AtomicU64::new(0),
    };
    match options.known {
        Some(known) if options.mode == SparseMode::Auto => {
            work.compare_maps(known, record, &mut cursor)?;
        }
        // The holes that are wanted do not show in maps.
        _ => work.compare_target(record.size, &mut cursor)?,
    }
    Ok(InPlaceReport {
        virtual_bytes: record.size,
        read_bytes: work.read.into_inner(),
        written_bytes: counted.written.into_inner(),
        zeroed_bytes: counted.zeroed.into_inner(),
    })
}

/// Counts what is written, and writes it unless this is only a trial.
struct Counted<'a> {
    target: &'a Reused,
    is_dry: bool,
    written: AtomicU64,
    zeroed: AtomicU64,
}

impl DiskTarget for Counted<'_> {
    fn describe(&self) -> String {
        self.target.describe()
    }

    fn zero_state(&self) -> ZeroState {
        ZeroState::Unknown
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        if self.is_dry { Ok(()) } else { self.target.write_at(offset, data) }
    }

    fn make_hole(&self, offset: u64, bytes: u64) -> Result<()> {
        self.zeroed.fetch_add(bytes, Ordering::Relaxed);
        if self.is_dry { Ok(()) } else { self.target.make_hole(offset, bytes) }
    }

    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()> {
        self.zeroed.fetch_add(bytes, Ordering::Relaxed);
        if self.is_dry { Ok(()) } else { self.target.write_zeroes(offset, bytes) }
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

struct Work<'a> {
    fetcher: &'a Fetcher<'a>,
    pool: &'a ThreadPool,
    target: &'a Reused,
    placer: &'a Placer<'a>,
    counted: &'a Counted<'a>,
    window: Vec<Wanted>,
    read: AtomicU64,
}

impl Work<'_> {
    /// Brings the target from the disk that it is known to hold to another.
    fn compare_maps(
        &mut self,
        known: &DiskRecord,
        record: &DiskRecord,
        cursor: &mut Cursor<'_>,
    ) -> Result<()> {
        let Fetcher { repository, locator, monitor, .. } = *self.fetcher;
        let comparison = Comparison { repository, locator, monitor };
        let mut taken = 0;
        comparison.disks(Some(known), Some(record), &mut |extent: &Extent| {
            let end = (extent.start + extent.bytes).min(record.size);
            let mut at = extent.start.max(taken);
            while at < end {
                let run = cursor.run_from(at)?;
                at = match run.chunk {
                    // All of it: its bytes are the point's, also where they were before.
                    Some((id, offset)) => {
                        let bytes = (run.end - offset) as u32;
                        self.add_different(Wanted { offset, bytes, id })?;
                        run.end
                    }
                    None => {
                        let end = run.end.min(end);
                        self.zero(run.start..end, true)?;
                        end
                    }
                };
            }
            taken = taken.max(at);
            Ok(())
        })?;
        self.fetch_window()
    }

    fn add_different(&mut self, wanted: Wanted) -> Result<()> {
        self.window.push(wanted);
        if self.window.len() >= WINDOW_CHUNKS { self.fetch_window() } else { Ok(()) }
    }

    fn fetch_window(&mut self) -> Result<()> {
        let window = std::mem::take(&mut self.window);
        self.fetch(window)
    }

    fn fetch(&self, wanted: Vec<Wanted>) -> Result<()> {
        if self.counted.is_dry {
            let bytes = wanted.iter().map(|wanted| u64::from(wanted.bytes)).sum::<u64>();
            self.counted.written.fetch_add(bytes, Ordering::Relaxed);
            self.fetcher.monitor.advance(bytes);
            return Ok(());
        }
        self.fetcher.fetch(wanted, &|offset, data| self.placer.place_data(offset, data))
    }

    /// Goes over all of the disk, whatever the target holds.
    fn compare_target(&mut self, size: u64, cursor: &mut Cursor<'_>) -> Result<()> {
        let mut at = 0;
        while at < size {
            let run = cursor.run_from(at)?;
            match run.chunk {
                Some((id, offset)) => {
                    self.window.push(Wanted { offset, bytes: (run.end - offset) as u32, id });
                    if self.window.len() >= WINDOW_CHUNKS {
                        self.compare_window()?;
                    }
                }
                None => {
                    self.fetcher.monitor.check_cancelled()?;
                    self.zero(run.start..run.end, false)?;
                    self.fetcher.monitor.advance(run.end - run.start);
                }
            }
            at = run.end;
        }
        self.compare_window()
    }

    /// Compares the window's chunks with the target and fetches those that differ.
    fn compare_window(&mut self) -> Result<()> {
        let window = std::mem::take(&mut self.window);
        let different = Mutex::new(Vec::new());
        let groups = groups_of(&window);
        self.pool.install(|| {
            groups.into_par_iter().try_for_each(|group| {
                self.fetcher.monitor.check_cancelled()?;
                let found = self.compare_group(&window[group])?;
                lock(&different).extend(found);
                Ok(())
            })
        })?;
        let mut different = std::mem::take(&mut *lock(&different));
        different.sort_unstable_by_key(|wanted: &Wanted| wanted.offset);
        self.fetch(different)
    }

    /// The chunks of a group, which follow each other, that the target does not have.
    fn compare_group(&self, group: &[Wanted]) -> Result<Vec<Wanted>> {
        let (Some(first), Some(last)) = (group.first(), group.last()) else {
            return Ok(Vec::new());
        };
        let range = first.offset..last.offset + u64::from(last.bytes);
        let mut allocated = Vec::new();
        self.target.allocated(range.clone(), &mut |start, end, is_allocated| {
            if is_allocated {
                allocated.push(start..end);
            }
            Ok(())
        })?;
        let mut data = vec![0; (range.end - range.start) as usize];
        for part in &allocated {
            let (from, to) = (part.start - range.start, part.end - range.start);
            self.target.read_at(part.start, &mut data[from as usize..to as usize])?;
            self.read.fetch_add(to - from, Ordering::Relaxed);
        }
        let keys = self.fetcher.repository.keys();
        let mut different = Vec::new();
        for wanted in group {
            let start = (wanted.offset - range.start) as usize;
            let chunk = &data[start..start + wanted.bytes as usize];
            let end = wanted.offset + u64::from(wanted.bytes);
            // A map has no chunk of zeros alone, so a hole is never one.
            let is_hole =
                !allocated.iter().any(|part| part.start < end && wanted.offset < part.end);
            if is_hole || keys.chunk_id(chunk) != wanted.id {
                different.push(*wanted);
                continue;
            }
            self.mend_holes(wanted.offset, chunk, &allocated)?;
            self.fetcher.monitor.advance(chunk.len() as u64);
        }
        Ok(different)
    }

    /// Makes the holes of a chunk whose bytes are right those of the disk.
    fn mend_holes(&self, offset: u64, chunk: &[u8], allocated: &[Range<u64>]) -> Result<()> {
        let end = offset + chunk.len() as u64;
        self.wanted_allocation(offset, end, &mut |from, to, is_wanted| {
            let is_wanted = match is_wanted {
                Some(is_wanted) if !self.target.is_device() => is_wanted,
                _ => return Ok(()),
            };
            let piece =
                |from: u64, to: u64| &chunk[(from - offset) as usize..(to - offset) as usize];
            let mut at = from;
            for part in allocated.iter().filter(|part| part.start < to && from < part.end) {
                let (start, end) = (part.start.max(from), part.end.min(to));
                if is_wanted && at < start {
                    self.counted.write_at(at, piece(at, start))?;
                }
                if !is_wanted && is_zero(piece(start, end)) {
                    self.counted.make_hole(start, end - start)?;
                }
                at = end;
            }
            if is_wanted && at < to { self.counted.write_at(at, piece(at, to)) } else { Ok(()) }
        })
    }

    /// Which parts of a range are to take storage; `None` where it does not matter.
    fn wanted_allocation(
        &self,
        start: u64,
        end: u64,
        each: &mut dyn FnMut(u64, u64, Option<bool>) -> Result<()>,
    ) -> Result<()> {
        let list: Option<&Boundaries> = self.placer.allocation.as_ref();
        match (self.placer.mode, list) {
            (SparseMode::Never, _) | (SparseMode::Exact, None) => each(start, end, Some(true)),
            (SparseMode::Auto, None) => each(start, end, None),
            (SparseMode::Auto | SparseMode::Exact, Some(list)) => {
                list.each(start, end, &mut |from, to, is_wanted| each(from, to, Some(is_wanted)))
            }
        }
    }

    /// Makes a range zeros, which it may be already. `is_different` says that it is not.
    fn zero(&self, range: Range<u64>, is_different: bool) -> Result<()> {
        let is_device = self.target.is_device();
        let mut parts = Vec::new();
        self.target.allocated(range.clone(), &mut |start, end, is_allocated| {
            parts.push((start, end, is_allocated));
            Ok(())
        })?;
        for (start, end, is_allocated) in parts {
            // Of zeros, holes are wanted wherever nobody asked for storage.
            let is_auto = self.placer.mode == SparseMode::Auto;
            self.wanted_allocation(start, end, &mut |from, to, is_wanted| {
                let is_wanted = is_wanted.unwrap_or(false) && !is_auto;
                match (is_wanted, is_allocated) {
                    (false, false) => Ok(()),
                    (true, false) => self.counted.write_zeroes(from, to - from),
                    (false, true) if !is_device || is_different => {
                        self.counted.make_hole(from, to - from)
                    }
                    (is_wanted, true) => self.zero_what_is_not(from, to, is_wanted),
                }
            })?;
        }
        Ok(())
    }

    /// Reads an allocated range, and makes zeros of what is none.
    fn zero_what_is_not(&self, start: u64, end: u64, is_wanted: bool) -> Result<()> {
        let groups: Vec<u64> = (start..end).step_by(GROUP_BYTES as usize).collect();
        self.pool.install(|| {
            groups.into_par_iter().try_for_each(|from| {
                self.fetcher.monitor.check_cancelled()?;
                let bytes = GROUP_BYTES.min(end - from);
                let mut data = vec![0; bytes as usize];
                self.target.read_at(from, &mut data)?;
                self.read.fetch_add(bytes, Ordering::Relaxed);
                match (is_zero(&data), is_wanted) {
                    (true, _) => Ok(()),
                    (false, true) => self.counted.write_zeroes(from, bytes),
                    (false, false) => self.counted.make_hole(from, bytes),
                }
            })
        })
    }
}

/// Chunks that follow each other without a gap, up to [`GROUP_BYTES`], as ranges of the window.
fn groups_of(window: &[Wanted]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let (mut start, mut end) = (0, None);
    for (number, wanted) in window.iter().enumerate() {
        let follows = end == Some(wanted.offset)
            && wanted.offset + u64::from(wanted.bytes) - window[start].offset <= GROUP_BYTES;
        match groups.last_mut() {
            Some(group) if follows => group.end = number + 1,
            _ => {
                start = number;
                groups.push(number..number + 1);
            }
        }
        end = Some(wanted.offset + u64::from(wanted.bytes));
    }
    groups
}

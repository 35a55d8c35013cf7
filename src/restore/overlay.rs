//! A disk as a thin image over another one: only what differs from it.
//!
//! The base is read once, and what lies at a chunk's place is told by the chunk's own id: nothing is
//! read of the repository but the map, and then the chunks that differ.
//!
//! Invariants: the base is only read; a cluster is left to the base only if all its bytes were found
//! there; behind the base's end are zeros.

use super::fetch::{Fetcher, Wanted};
use crate::chunking::is_zero;
use crate::error::Result;
use crate::repository::map_cursor::Cursor;
use crate::repository::map_reader::MapReader;
use crate::source::{DiskSource, ExtentKind};
use crate::target::DiskTarget;
use crate::target::image::{
    Backing, ClusterSet, Clusters, Description, PackedFormat, create_packed,
};
use diskvault_format::manifest::DiskRecord;
use rayon::ThreadPool;
use rayon::prelude::*;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Pieces that are compared at the same time: 32 MiB on the grid of 32 KiB.
const BATCH_PIECES: usize = 1024;
/// Zeros that are compared by one thread.
const ZEROS_BYTES: u64 = 1 << 20;
/// Chunks gathered before they are fetched, as in a whole restore.
const WINDOW_CHUNKS: usize = 128 << 10;

/// What lies below an overlay.
pub struct Base<'a> {
    /// The guest's view of it.
    pub source: &'a dyn DiskSource,
    /// Its name, as the overlay is to say it.
    pub name: &'a str,
    /// Its format, by QEMU's name.
    pub format: &'a str,
}

/// What an overlay holds.
struct Differences {
    data: Clusters,
    zeros: Clusters,
}

/// A part of the disk that is compared.
enum Piece {
    Chunk(Wanted),
    /// Zeros, with data at the base: no more than [`ZEROS_BYTES`], of the run of zeros behind it.
    Zeros(Range<u64>, Range<u64>),
}

/// Restores a disk into a new qcow2 image over a base.
///
/// # Errors
/// `Damage` for what does not verify, `Source` if the base cannot be read; otherwise as
/// [`create_packed`].
pub fn restore_overlay(
    fetcher: &Fetcher<'_>,
    disk: &DiskRecord,
    (path, force): (&Path, bool),
    base: &Base<'_>,
    pool: &ThreadPool,
) -> Result<()> {
    let format = PackedFormat::Qcow2;
    let name = disk.name.escape_debug();
    fetcher.monitor.start(&format!("comparing {name} with its base"), Some(disk.size));
    let found = find_differences(fetcher, disk, base.source, format, pool)?;
    let backing = Backing { name: base.name, format: base.format, zeros: Some(&found.zeros) };
    let description = Description { backing: Some(backing), ..Description::default() };
    let held = Arc::new(found.data);
    let target = create_packed(path, force, format, &description, held.clone())?;
    let bytes = held.used() * held.cluster_bytes();
    fetcher.monitor.start(&format!("restoring {name}"), Some(bytes));
    fetch_held(fetcher, disk, &held, target.as_ref())?;
    target.finish()
}

/// Compares all of a disk with what lies below.
fn find_differences(
    fetcher: &Fetcher<'_>,
    disk: &DiskRecord,
    base: &dyn DiskSource,
    format: PackedFormat,
    pool: &ThreadPool,
) -> Result<Differences> {
    let cluster_bytes = format.cluster_bytes(disk.size);
    let new_set = || ClusterSet::new(disk.size, cluster_bytes);
    let mut comparison = Comparison {
        fetcher,
        base,
        pool,
        cluster_bytes,
        size: disk.size,
        pieces: Vec::new(),
        data: new_set(),
        zeros: new_set(),
    };
    let reader = MapReader::new(fetcher.repository, fetcher.locator);
    let mut cursor = Cursor::new(&reader, disk)?;
    let mut zeros = 0..0;
    let mut at = 0;
    while at < disk.size {
        let run = cursor.run_from(at)?;
        at = run.end;
        match run.chunk {
            None if zeros.end == run.start => zeros.end = run.end,
            None => zeros = run.start..run.end,
            Some((id, offset)) => {
                comparison.add_zeros(std::mem::take(&mut zeros))?;
                let bytes = (run.end - offset) as u32;
                comparison.add(Piece::Chunk(Wanted { offset, bytes, id }))?;
            }
        }
    }
    comparison.add_zeros(zeros)?;
    comparison.flush()?;
    Ok(Differences { data: comparison.data.finish(), zeros: comparison.zeros.finish() })
}

struct Comparison<'a> {
    fetcher: &'a Fetcher<'a>,
    base: &'a dyn DiskSource,
    pool: &'a ThreadPool,
    cluster_bytes: u64,
    size: u64,
    pieces: Vec<Piece>,
    data: ClusterSet,
    zeros: ClusterSet,
}

impl Comparison<'_> {
    /// Adds a run of zeros, as long as it gets. Only where the base has data it can differ.
    fn add_zeros(&mut self, run: Range<u64>) -> Result<()> {
        self.fetcher.monitor.advance(run.end - run.start);
        let base = self.base;
        base.extents_in(run.clone(), &mut |extent| {
            self.fetcher.monitor.check_cancelled()?;
            let end = extent.start + extent.bytes;
            let mut at = extent.start;
            while extent.kind == ExtentKind::Data && at < end {
                let stop = (at + 1).next_multiple_of(ZEROS_BYTES).min(end);
                self.add(Piece::Zeros(at..stop, run.clone()))?;
                at = stop;
            }
            Ok(())
        })
    }

    fn add(&mut self, piece: Piece) -> Result<()> {
        self.pieces.push(piece);
        if self.pieces.len() >= BATCH_PIECES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let pieces = std::mem::take(&mut self.pieces);
        let found: Vec<Result<Vec<Range<u64>>>> = self.pool.install(|| {
            let compare = |buffer: &mut Vec<u8>, piece: &Piece| self.differing(piece, buffer);
            pieces.par_iter().map_init(Vec::new, compare).collect()
        });
        for (piece, ranges) in pieces.iter().zip(found) {
            for range in ranges? {
                match piece {
                    Piece::Chunk(_) => self.data.add(range),
                    Piece::Zeros(_, run) => self.add_differing_zeros(range, run),
                }
            }
            if let Piece::Chunk(wanted) = piece {
                self.fetcher.monitor.advance(u64::from(wanted.bytes));
            }
        }
        self.fetcher.monitor.check_cancelled()
    }

    /// Zeros in one cluster, where the base has something else.
    fn add_differing_zeros(&mut self, range: Range<u64>, run: &Range<u64>) {
        let start = range.start - range.start % self.cluster_bytes;
        let end = (start + self.cluster_bytes).min(self.size);
        if run.start <= start && end <= run.end {
            self.zeros.add(range);
        } else {
            // The rest of the cluster, a chunk, has to be in the overlay with it.
            self.data.add(range);
        }
    }

    /// What of a piece is not the same at the base: all of a chunk, of zeros the parts in each
    /// cluster.
    fn differing(&self, piece: &Piece, buffer: &mut Vec<u8>) -> Result<Vec<Range<u64>>> {
        match piece {
            Piece::Chunk(wanted) => {
                let range = wanted.offset..wanted.offset + u64::from(wanted.bytes);
                self.read_base(&range, buffer)?;
                let is_same = self.fetcher.repository.keys().chunk_id(buffer) == wanted.id;
                Ok(if is_same { Vec::new() } else { vec![range] })
            }
            Piece::Zeros(range, _) => {
                self.read_base(range, buffer)?;
                let mut found = Vec::new();
                let mut at = range.start;
                while at < range.end {
                    let stop = (at + 1).next_multiple_of(self.cluster_bytes).min(range.end);
                    let place = (at - range.start) as usize..(stop - range.start) as usize;
                    if !is_zero(&buffer[place]) {
                        found.push(at..stop);
                    }
                    at = stop;
                }
                Ok(found)
            }
        }
    }

    /// The bytes of the base at a range; behind its end they are zeros.
    fn read_base(&self, range: &Range<u64>, buffer: &mut Vec<u8>) -> Result<()> {
        buffer.clear();
        buffer.resize((range.end - range.start) as usize, 0);
        let there = range.end.min(self.base.size()).saturating_sub(range.start);
        if there == 0 {
            return Ok(());
        }
        self.base.read_at(range.start, &mut buffer[..there as usize])
    }
}

/// Fetches the chunks that have a byte in a cluster that the overlay holds.
fn fetch_held(
    fetcher: &Fetcher<'_>,
    disk: &DiskRecord,
    held: &Clusters,
    target: &dyn DiskTarget,
) -> Result<()> {
    let reader = MapReader::new(fetcher.repository, fetcher.locator);
    let mut cursor = Cursor::new(&reader, disk)?;
    let cluster_bytes = held.cluster_bytes();
    let fetch = |window: Vec<Wanted>| {
        fetcher.fetch(window, &|offset, data| write_held(target, held, offset, data))
    };
    let mut window = Vec::new();
    let mut at = 0;
    while at < disk.size {
        let run = cursor.run_from(at)?;
        at = run.end;
        let Some((id, offset)) = run.chunk else { continue };
        if held.any(offset / cluster_bytes..run.end.div_ceil(cluster_bytes)) {
            window.push(Wanted { offset, bytes: (run.end - offset) as u32, id });
        }
        if window.len() >= WINDOW_CHUNKS {
            fetch(std::mem::take(&mut window))?;
        }
    }
    fetch(window)
}

/// Writes what lies in clusters that the overlay holds.
fn write_held(target: &dyn DiskTarget, held: &Clusters, offset: u64, data: &[u8]) -> Result<()> {
    let cluster_bytes = held.cluster_bytes();
    let end = offset + data.len() as u64;
    let mut at = offset;
    while at < end {
        let stop = (at + 1).next_multiple_of(cluster_bytes).min(end);
        if held.rank(at / cluster_bytes).is_some() {
            let piece = &data[(at - offset) as usize..(stop - offset) as usize];
            target.write_at(at, piece)?;
        }
        at = stop;
    }
    Ok(())
}

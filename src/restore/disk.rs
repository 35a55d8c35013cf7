//! Writing a disk to a target, out of order, zeros as the user wants them.
//!
//! Invariants: the map root is verified before anything is written; a range is skipped as a hole
//! only if its verified bytes are zeros, whatever the allocation list says.

use super::allocated::{Boundaries, read_allocation};
use super::fetch::{Fetcher, Wanted};
use crate::chunking::{is_zero, nonzero_runs};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::map_reader::MapReader;
use crate::repository::objects::refused;
use crate::target::{DiskTarget, ZeroState};
use diskvault_format::limits::LEAF_SLOTS;
use diskvault_format::manifest::DiskRecord;
use diskvault_format::map::{LeafSlot, MapShape, map_root};
use diskvault_format::stream_map::StreamEntry;

/// Chunks gathered before they are fetched: 4 GiB of disk at 32 KiB, some 10 MiB of memory.
const WINDOW_CHUNKS: usize = 128 << 10;
/// Where the source could not tell holes, zeros of at least one file system block become holes.
const HOLE_BYTES_MIN: usize = 4096;

/// What zeros become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SparseMode {
    /// Holes wherever the disk has zeros, down to the source's own holes.
    #[default]
    Auto,
    /// Holes where the source had holes, written zeros where it had written zeros.
    Exact,
    /// Everything written.
    Never,
}

/// What a restore wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// Size of the disk.
    pub virtual_bytes: u64,
    /// Bytes of chunks.
    pub data_bytes: u64,
    /// Bytes of zeros.
    pub zero_bytes: u64,
}

/// Restores a disk. The target has the disk's size and is not finished here.
///
/// # Errors
/// `Damage` for what does not verify, `Target` or `NoSpace` for what cannot be written.
pub fn restore_disk(
    fetcher: &Fetcher<'_>,
    record: &DiskRecord,
    target: &dyn DiskTarget,
    mode: SparseMode,
) -> Result<RestoreReport> {
    let keys = fetcher.repository.keys();
    if map_root(keys, record.size, &record.chunking, record.top) != record.root {
        let text = "cannot use the disk's map: its root does not fit (rule F-9)";
        return Err(Error::new(ErrorKind::Damage, text));
    }
    let reader = MapReader::new(fetcher.repository, fetcher.locator);
    let allocation = match mode {
        SparseMode::Never => None,
        _ => read_allocation(fetcher, &reader, record)?,
    };
    let placer =
        Placer { target, mode, allocation, is_new: target.zero_state() == ZeroState::AlreadyZero };
    let mut gatherer = Gatherer {
        fetcher,
        placer: &placer,
        window: Vec::new(),
        end: 0,
        report: RestoreReport::default(),
    };
    match record.chunking.grid() {
        Some(chunk_bytes) => {
            let shape = MapShape::new(record.size, chunk_bytes)
                .map_err(|cause| refused("the disk's map", cause))?;
            reader.walk_disk(shape, record.top, &mut |number, leaf| {
                for (slot, content) in leaf.slots.iter().enumerate() {
                    if let LeafSlot::Chunk { id, .. } = content {
                        let slot = number * LEAF_SLOTS as u64 + slot as u64;
                        let offset = slot * u64::from(chunk_bytes);
                        gatherer.add(Wanted {
                            offset,
                            bytes: shape.bytes_in_slot(slot),
                            id: *id,
                        })?;
                    }
                }
                Ok(())
            })?;
        }
        None => {
            reader.walk_stream(record.size, record.top, &mut |offset, entry| match entry {
                StreamEntry::Chunk { bytes, id } => gatherer.add(Wanted { offset, bytes, id }),
                StreamEntry::Zeros(_) => Ok(()),
            })?;
        }
    }
    gatherer.zeros_up_to(record.size)?;
    gatherer.flush()?;
    let mut report = gatherer.report;
    report.virtual_bytes = record.size;
    Ok(report)
}

struct Gatherer<'a> {
    fetcher: &'a Fetcher<'a>,
    placer: &'a Placer<'a>,
    window: Vec<Wanted>,
    end: u64,
    report: RestoreReport,
}

impl Gatherer<'_> {
    fn add(&mut self, wanted: Wanted) -> Result<()> {
        self.zeros_up_to(wanted.offset)?;
        self.end = wanted.offset + u64::from(wanted.bytes);
        self.report.data_bytes += u64::from(wanted.bytes);
        self.window.push(wanted);
        if self.window.len() >= WINDOW_CHUNKS {
            self.flush()?;
        }
        Ok(())
    }

    fn zeros_up_to(&mut self, end: u64) -> Result<()> {
        if end > self.end {
            self.fetcher.monitor.check_cancelled()?;
            self.placer.place_zeros(self.end, end)?;
            self.report.zero_bytes += end - self.end;
            self.fetcher.monitor.advance(end - self.end);
            self.end = end;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let window = std::mem::take(&mut self.window);
        self.fetcher.fetch(window, &|offset, data| self.placer.place_data(offset, data))
    }
}

/// Decides what is written, what is a hole and what is written zeros.
pub(super) struct Placer<'a> {
    pub target: &'a dyn DiskTarget,
    pub mode: SparseMode,
    pub allocation: Option<Boundaries>,
    pub is_new: bool,
}

impl Placer<'_> {
    fn place_zeros(&self, start: u64, end: u64) -> Result<()> {
        match (self.mode, &self.allocation) {
            (SparseMode::Never, _) => self.target.write_zeroes(start, end - start),
            (SparseMode::Exact, Some(allocation)) => {
                allocation.each(start, end, &mut |from, to, is_allocated| {
                    if is_allocated {
                        self.target.write_zeroes(from, to - from)
                    } else {
                        self.make_hole(from, to)
                    }
                })
            }
            // A source that could not tell had storage everywhere.
            (SparseMode::Exact, None) => self.target.write_zeroes(start, end - start),
            (SparseMode::Auto, _) => self.make_hole(start, end),
        }
    }

    fn make_hole(&self, start: u64, end: u64) -> Result<()> {
        if self.is_new {
            return Ok(());
        }
        self.target.make_hole(start, end - start)
    }

    /// Writes verified bytes of the disk.
    pub fn place_data(&self, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset + data.len() as u64;
        match (self.mode, &self.allocation) {
            (SparseMode::Auto | SparseMode::Exact, Some(allocation)) => {
                allocation.each(offset, end, &mut |from, to, is_allocated| {
                    let piece = &data[(from - offset) as usize..(to - offset) as usize];
                    if is_allocated || !is_zero(piece) {
                        self.target.write_at(from, piece)
                    } else {
                        self.make_hole(from, to)
                    }
                })
            }
            (SparseMode::Auto, None) if self.is_new => {
                let mut result = Ok(());
                nonzero_runs(data, HOLE_BYTES_MIN, &mut |start, bytes| {
                    if result.is_ok() {
                        let piece = &data[start..start + bytes];
                        result = self.target.write_at(offset + start as u64, piece);
                    }
                });
                result
            }
            _ => self.target.write_at(offset, data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::lock;
    use diskvault_format::allocation::AllocationWriter;
    use std::sync::Mutex;

    /// Remembers what was written.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, usize)>>);

    impl DiskTarget for Recorder {
        fn describe(&self) -> String {
            "recorder".into()
        }
        fn zero_state(&self) -> ZeroState {
            ZeroState::AlreadyZero
        }
        fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
            lock(&self.0).push((offset, data.len()));
            Ok(())
        }
        fn make_hole(&self, _: u64, _: u64) -> Result<()> {
            Ok(())
        }
        fn write_zeroes(&self, _: u64, _: u64) -> Result<()> {
            Ok(())
        }
        fn finish(self: Box<Self>) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_allocation_list_that_calls_data_a_hole_hides_nothing() {
        let mut writer = AllocationWriter::new();
        writer.push(4096, false);
        let list = writer.finish();
        for mode in [SparseMode::Auto, SparseMode::Exact] {
            for (byte, written) in [(0_u8, vec![]), (7, vec![(0, 4096)])] {
                let target = Recorder::default();
                let allocation = Some(Boundaries::decode(&list, 4096).unwrap());
                let placer = Placer { target: &target, mode, allocation, is_new: true };
                placer.place_data(0, &[byte; 4096]).unwrap();
                assert_eq!(*lock(&target.0), written, "{mode:?}");
            }
        }
    }
}

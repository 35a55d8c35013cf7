//! The first step of a disk's backup: walks the source's extents, skips holes and hands out batches.
//!
//! Invariant: every byte of data, or of what is to be examined, is in exactly one batch, and batches
//! ascend.

use super::examine::{Batch, Hashed, Work, process};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::map_reader::LeafCursor;
use crate::source::{Extent, ExtentKind};
use crossbeam_channel::{Receiver, Sender};
use diskvault_format::allocation::AllocationWriter;
use diskvault_format::limits::LEAF_SLOTS;
use diskvault_format::map::Leaf;
use rayon::ThreadPool;
use std::ops::Range;
use std::sync::Arc;

/// Most bytes of a batch, which never leaves its leaf: large enough for sequential reading.
const BATCH_BYTES: u64 = 4 << 20;

/// What the planner learned of the source.
pub(super) struct Planned {
    pub allocation: AllocationWriter,
    pub hole_bytes: u64,
}

/// Walks the extents and hands out batches.
pub(super) struct Planner<'a, 'c> {
    pub work: &'a Arc<Work>,
    pub cursor: &'a mut Option<LeafCursor<'c>>,
    pub take_free: Receiver<Vec<u8>>,
    pub hashed: Sender<Result<Hashed>>,
    pub pool: &'a Arc<ThreadPool>,
    pub monitor: &'a dyn Monitor,
    pub next_number: u64,
    pub open: Option<Batch>,
    pub planned: Planned,
    /// What is to be examined, on the grid; everything if nothing is known to be unchanged.
    pub selection: Option<&'a [Range<u64>]>,
}

impl Planner<'_, '_> {
    pub fn run(&mut self) -> Result<()> {
        let source = self.work.source.clone();
        source.extents(&mut |extent| {
            self.monitor.check_cancelled()?;
            let is_data = extent.kind == ExtentKind::Data;
            self.planned.allocation.push(extent.bytes, is_data);
            let is_examined = self.selection.is_none();
            if is_data {
                return if is_examined { self.add_data(extent) } else { Ok(()) };
            }
            self.planned.hole_bytes += extent.bytes;
            if is_examined {
                self.monitor.advance(extent.bytes);
            }
            Ok(())
        })?;
        for range in self.selection.unwrap_or_default() {
            self.add_selected(range)?;
        }
        self.emit()
    }

    /// A part that is to be examined: what of it is a hole becomes zeros.
    fn add_selected(&mut self, range: &Range<u64>) -> Result<()> {
        let source = self.work.source.clone();
        self.each_batch(range.clone(), &mut |open, part| {
            open.selected.get_or_insert_default().push(part.clone());
            source.extents_in(part, &mut |extent| {
                if extent.kind == ExtentKind::Data {
                    open.data.push(extent.start..extent.start + extent.bytes);
                }
                Ok(())
            })
        })
    }

    fn add_data(&mut self, extent: Extent) -> Result<()> {
        let range = extent.start..extent.start + extent.bytes;
        self.each_batch(range, &mut |open, part| {
            open.data.push(part);
            Ok(())
        })
    }

    /// Gives each part of a range to the batch that it lies in.
    fn each_batch(
        &mut self,
        range: Range<u64>,
        take: &mut dyn FnMut(&mut Batch, Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let chunk = u64::from(self.work.shape.chunk_bytes());
        let slots = (BATCH_BYTES / chunk).clamp(1, LEAF_SLOTS as u64);
        let batch_bytes = slots * chunk;
        let end = range.end;
        let mut start = range.start;
        while start < end {
            let first_slot = start / batch_bytes * slots;
            if self.open.as_ref().is_none_or(|open| open.first_slot != first_slot) {
                self.emit()?;
                self.open_batch(first_slot, slots)?;
            }
            let stop = end.min((first_slot + slots) * chunk);
            if let Some(open) = &mut self.open {
                take(open, start..stop)?;
            }
            start = stop;
        }
        Ok(())
    }

    fn open_batch(&mut self, first_slot: u64, slots: u64) -> Result<()> {
        let slots = slots.min(self.work.shape.slots() - first_slot) as usize;
        let parent = self.parent_leaf(first_slot / LEAF_SLOTS as u64)?;
        self.open = Some(Batch {
            number: self.next_number,
            first_slot,
            slots,
            data: Vec::new(),
            parent,
            selected: None,
            buffer: Vec::new(),
        });
        self.next_number += 1;
        Ok(())
    }

    /// The previous point's leaf. A damaged map there must not keep the next point from being
    /// made: the rest of the disk is then looked up chunk by chunk.
    fn parent_leaf(&mut self, number: u64) -> Result<Option<Arc<Leaf>>> {
        let Some(cursor) = self.cursor.as_mut() else { return Ok(None) };
        match cursor.leaf(number) {
            Ok(leaf) => Ok(leaf),
            // What is taken over from there cannot be.
            Err(error) if self.selection.is_some() => Err(error),
            Err(error) if matches!(error.kind(), ErrorKind::Damage | ErrorKind::NotFound) => {
                let text = error.full_text();
                self.monitor.warn(&format!("cannot use the previous point's map: {text}"));
                // So that this point gets pages of its own.
                cursor.reader().locator().forget_met_damaged()?;
                *self.cursor = None;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn emit(&mut self) -> Result<()> {
        let Some(mut batch) = self.open.take() else { return Ok(()) };
        for range in &batch.data {
            self.work.source.prefetch(range.start, range.end - range.start);
        }
        self.monitor.check_cancelled()?;
        let stopped = || Error::new(ErrorKind::Failed, "the backup stopped");
        batch.buffer = self.take_free.recv().map_err(|_| stopped())?;
        let (work, hashed) = (self.work.clone(), self.hashed.clone());
        self.pool.spawn(move || {
            // Nobody listens any more only after a failure.
            let _ = hashed.send(process(&work, batch));
        });
        Ok(())
    }
}

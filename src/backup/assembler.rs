//! The last step of a disk's backup: takes results in order, stores what is new and builds the map.
//!
//! Invariant: the map depends on the bytes alone, whatever order the workers end in.

use super::Context;
use super::digests::Digests;
use super::examine::{Hashed, Outcome, Work};
use crate::error::Result;
use crossbeam_channel::{Receiver, Sender};
use diskvault_format::id::PageId;
use diskvault_format::limits::LEAF_SLOTS;
use diskvault_format::manifest::Statistics;
use diskvault_format::map::{Leaf, LeafSlot, MapBuilder};
use diskvault_format::pack::PackKind;
use diskvault_format::segment::EntryKind;
use std::collections::BTreeMap;

/// A map that is stored, and what was counted on the way.
pub(super) struct Assembled {
    pub top: Option<PageId>,
    pub statistics: Statistics,
    pub digests: Digests,
}

/// Takes results in order, stores what is new and builds the map.
struct Assembler<'a, 'b> {
    context: &'a mut Context<'b>,
    work: &'a Work,
    builder: MapBuilder,
    leaf_number: u64,
    leaf: Leaf,
    statistics: Statistics,
    digests: Digests,
    digested: u64,
}

/// Assembles what comes, until nobody sends any more.
///
/// # Errors
/// What the workers or the writer say; `Cancelled`.
pub(super) fn assemble(
    context: &mut Context<'_>,
    work: &Work,
    take_hashed: &Receiver<Result<Hashed>>,
    free: Sender<Vec<u8>>,
    digests: Digests,
) -> Result<Assembled> {
    let mut assembler = Assembler {
        context,
        work,
        builder: MapBuilder::new(work.shape),
        leaf_number: 0,
        leaf: Leaf::ZERO,
        statistics: Statistics::default(),
        digests,
        digested: 0,
    };
    let mut waiting = BTreeMap::new();
    let mut next = 0;
    for result in take_hashed {
        let hashed = result?;
        waiting.insert(hashed.batch.number, hashed);
        while let Some(hashed) = waiting.remove(&next) {
            assembler.context.monitor.check_cancelled()?;
            next += 1;
            let buffer = assembler.take(hashed)?;
            // The planner is gone once it has handed out everything.
            let _ = free.send(buffer);
        }
    }
    assembler.finish()
}

impl Assembler<'_, '_> {
    fn take(&mut self, hashed: Hashed) -> Result<Vec<u8>> {
        let Hashed { batch, outcomes, read_bytes } = hashed;
        let chunk = self.work.shape.chunk_bytes() as usize;
        let number = batch.first_slot / LEAF_SLOTS as u64;
        if number != self.leaf_number {
            self.close_leaf()?;
            self.leaf_number = number;
        }
        self.statistics.read_bytes += read_bytes;
        self.context.monitor.advance(batch.data.iter().map(|range| range.end - range.start).sum());
        let start = batch.first_slot * chunk as u64;
        self.digests.update_zeros(start - self.digested);
        for (position, outcome) in outcomes.into_iter().enumerate() {
            let from = position * chunk;
            let data = &batch.buffer[from..(from + chunk).min(batch.buffer.len())];
            let slot = (batch.first_slot as usize + position) % LEAF_SLOTS;
            self.leaf.slots[slot] = self.count(outcome, data)?;
        }
        self.digested = start + batch.buffer.len() as u64;
        Ok(batch.buffer)
    }

    fn count(&mut self, outcome: Outcome, data: &[u8]) -> Result<LeafSlot> {
        let bytes = data.len() as u64;
        let statistics = &mut self.statistics;
        let slot = match outcome {
            Outcome::Zero { was_read } => {
                statistics.zero_bytes += if was_read { bytes } else { 0 };
                self.digests.update_zeros(bytes);
                return Ok(LeafSlot::Zero);
            }
            Outcome::Unchanged(slot) => {
                statistics.unchanged_bytes += bytes;
                slot
            }
            Outcome::Stored(slot) => {
                statistics.deduplicated_bytes += bytes;
                slot
            }
            Outcome::Displaced(slot, splice) => {
                if let LeafSlot::Chunk { id, .. } = slot {
                    let writer = &mut self.context.writer;
                    writer.push(PackKind::Map, EntryKind::Splice, id.0, &splice.encode())?;
                }
                statistics.deduplicated_bytes += bytes;
                slot
            }
            Outcome::New(slot, anchor) => {
                if let LeafSlot::Chunk { id, .. } = slot {
                    let (pack, kind) = (PackKind::Data, EntryKind::Chunk);
                    if self.context.writer.push_anchored(pack, kind, id.0, data, anchor)? {
                        statistics.new_bytes += bytes;
                        statistics.new_chunks += 1;
                    } else {
                        statistics.deduplicated_bytes += bytes;
                    }
                }
                slot
            }
        };
        self.digests.update(data);
        Ok(slot)
    }

    fn close_leaf(&mut self) -> Result<()> {
        let leaf = std::mem::replace(&mut self.leaf, Leaf::ZERO);
        let writer = &mut self.context.writer;
        self.builder.push(&self.work.keys, self.leaf_number, &leaf, &mut |page, bytes| {
            writer.push(PackKind::Map, EntryKind::Page, page.0, &bytes).map(|_| ())
        })
    }

    fn finish(mut self) -> Result<Assembled> {
        self.close_leaf()?;
        self.digests.update_zeros(self.work.shape.size() - self.digested);
        let writer = &mut self.context.writer;
        let top = self.builder.finish(&self.work.keys, &mut |page, bytes| {
            writer.push(PackKind::Map, EntryKind::Page, page.0, &bytes).map(|_| ())
        })?;
        Ok(Assembled { top, statistics: self.statistics, digests: self.digests })
    }
}

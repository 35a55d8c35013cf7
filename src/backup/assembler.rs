//! The last step of a disk's backup: takes results in order, stores what is new and builds the map.
//!
//! Invariant: the map depends on the bytes alone, whatever order the workers end in.

use super::Context;
use super::digests::Digests;
use super::examine::{Hashed, Outcome, Work};
use crate::error::Result;
use crate::repository::map_reader::MapReader;
use crossbeam_channel::{Receiver, Sender};
use diskvault_format::id::PageId;
use diskvault_format::limits::LEAF_SLOTS;
use diskvault_format::manifest::Statistics;
use diskvault_format::map::{Leaf, LeafSlot, MapBuilder, MapShape};
use diskvault_format::pack::PackKind;
use diskvault_format::segment::EntryKind;
use std::collections::BTreeMap;

/// The map of an earlier point of which a part is taken over unread.
pub(super) struct Base<'a> {
    pub reader: &'a MapReader<'a>,
    /// Of the disk as it was then.
    pub shape: MapShape,
    pub top: Option<PageId>,
    /// Leaves from here on are not taken over.
    pub leaves: u64,
    /// Bytes of it that are no zeros.
    pub data_bytes: u64,
}

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
    /// The leaf that is being filled, if there is one.
    leaf: Option<(u64, Leaf)>,
    /// The first leaf that the builder has not got yet.
    next_leaf: u64,
    base: Option<&'a Base<'a>>,
    /// Bytes of the base that were looked at again.
    examined_bytes: u64,
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
    base: Option<&Base<'_>>,
) -> Result<Assembled> {
    let mut assembler = Assembler {
        context,
        work,
        builder: MapBuilder::new(work.shape),
        leaf: None,
        next_leaf: 0,
        base,
        examined_bytes: 0,
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
        if self.leaf.as_ref().is_none_or(|(open, _)| *open != number) {
            self.close_leaf()?;
            self.take_over(number)?;
            let before = batch.parent.as_deref().filter(|_| self.base.is_some());
            self.leaf = Some((number, before.cloned().unwrap_or(Leaf::ZERO)));
        }
        self.statistics.read_bytes += read_bytes;
        self.context.monitor.advance(batch.data.iter().map(|range| range.end - range.start).sum());
        let start = batch.first_slot * chunk as u64;
        self.digests.update_zeros(start - self.digested);
        for (position, outcome) in outcomes.into_iter().enumerate() {
            let from = position * chunk;
            let data = &batch.buffer[from..(from + chunk).min(batch.buffer.len())];
            let is_chunk = matches!(batch.before(position), Some(LeafSlot::Chunk { .. }));
            if is_chunk && !matches!(outcome, Outcome::Kept(_)) {
                self.examined_bytes += self.bytes_of_base(start + from as u64, data.len());
            }
            let slot = (batch.first_slot as usize + position) % LEAF_SLOTS;
            let found = self.count(outcome, data)?;
            if let Some((_, leaf)) = &mut self.leaf {
                leaf.slots[slot] = found;
            }
        }
        self.digested = start + batch.buffer.len() as u64;
        Ok(batch.buffer)
    }

    /// How much of a chunk the base had: of one at its end less.
    fn bytes_of_base(&self, start: u64, bytes: usize) -> u64 {
        let rest = self.base.map_or(0, |base| base.shape.size().saturating_sub(start));
        rest.min(bytes as u64)
    }

    fn count(&mut self, outcome: Outcome, data: &[u8]) -> Result<LeafSlot> {
        let bytes = data.len() as u64;
        let statistics = &mut self.statistics;
        let slot = match outcome {
            Outcome::Kept(slot) => return Ok(slot),
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
        let Some((number, leaf)) = self.leaf.take() else { return Ok(()) };
        self.next_leaf = number + 1;
        let writer = &mut self.context.writer;
        self.builder.push(&self.work.keys, number, &leaf, &mut |page, bytes| {
            writer.push(PackKind::Map, EntryKind::Page, page.0, &bytes).map(|_| ())
        })
    }

    /// Takes over the base's pages in front of leaf `until` that nobody looked at.
    fn take_over(&mut self, until: u64) -> Result<()> {
        let Some(base) = self.base else { return Ok(()) };
        let leaves = self.next_leaf..until.min(base.leaves);
        let (writer, builder) = (&mut self.context.writer, &mut self.builder);
        let keys = &self.work.keys;
        let shapes = (base.shape, self.work.shape);
        base.reader.walk_whole_pages(shapes, base.top, leaves, &mut |place, page, chaining| {
            builder.push_page(keys, place, page, chaining, &mut |page, bytes| {
                writer.push(PackKind::Map, EntryKind::Page, page.0, &bytes).map(|_| ())
            })
        })
    }

    fn finish(mut self) -> Result<Assembled> {
        self.close_leaf()?;
        self.take_over(u64::MAX)?;
        if let Some(base) = self.base {
            self.statistics.unchanged_bytes += base.data_bytes.saturating_sub(self.examined_bytes);
        }
        self.digests.update_zeros(self.work.shape.size() - self.digested);
        let writer = &mut self.context.writer;
        let top = self.builder.finish(&self.work.keys, &mut |page, bytes| {
            writer.push(PackKind::Map, EntryKind::Page, page.0, &bytes).map(|_| ())
        })?;
        Ok(Assembled { top, statistics: self.statistics, digests: self.digests })
    }
}

//! What a worker does with a part of a disk: reads it, tests for zeros, hashes, compares with the
//! previous point, and looks where the bytes are stored at another phase.
//!
//! Invariant: what it finds out depends on the bytes and on what is stored, not on other workers.

use super::displaced::{Candidate, Displaced};
use crate::chunking::anchor::listed_anchor;
use crate::chunking::{Gear, is_zero};
use crate::error::Result;
use crate::repository::session::Presence;
use crate::source::DiskSource;
use diskvault_format::crypto::Keys;
use diskvault_format::digest::chaining_value;
use diskvault_format::limits::LEAF_SLOTS;
use diskvault_format::map::{Leaf, LeafSlot, MapShape};
use diskvault_format::splice::Splice;
use std::ops::Range;
use std::sync::Arc;

/// Bytes read at once by a worker: small enough to be hashed while in its L2 cache.
const READ_BYTES: usize = 256 << 10;

/// The part of a disk that one worker handles at a time, inside one leaf.
pub(super) struct Batch {
    pub number: u64,
    pub first_slot: u64,
    pub slots: usize,
    /// Ranges of the disk that have to be read, ascending, inside the batch.
    pub data: Vec<Range<u64>>,
    /// The previous point's slots, if it has the leaf.
    pub parent: Option<Arc<Leaf>>,
    /// What is to be examined of it, on the grid; everything if nothing is known to be unchanged.
    pub selected: Option<Vec<Range<u64>>>,
    pub buffer: Vec<u8>,
}

impl Batch {
    /// What the parent has in a slot of the batch.
    pub fn before(&self, slot: usize) -> Option<LeafSlot> {
        let number = (self.first_slot as usize + slot) % LEAF_SLOTS;
        self.parent.as_ref().map(|leaf| leaf.slots[number])
    }

    /// Whether the chunk that begins at `start` is to be examined.
    fn is_selected(&self, start: u64) -> bool {
        let Some(selected) = &self.selected else { return true };
        selected.iter().any(|range| range.contains(&start))
    }
}

/// What a worker found out about a chunk.
pub(super) enum Outcome {
    /// It was not looked at: what the parent has stays.
    Kept(LeafSlot),
    Zero {
        was_read: bool,
    },
    Unchanged(LeafSlot),
    Stored(LeafSlot),
    /// Its anchor goes with it.
    New(LeafSlot, Option<u64>),
    /// New, but its bytes are stored at another phase.
    Displaced(LeafSlot, Splice),
}

pub(super) struct Hashed {
    pub batch: Batch,
    pub outcomes: Vec<Outcome>,
    pub read_bytes: u64,
}

/// What the workers share.
pub(super) struct Work {
    pub source: Arc<dyn DiskSource>,
    pub shape: MapShape,
    pub keys: Arc<Keys>,
    pub presence: Arc<Presence>,
    pub parent_is_complete: bool,
    pub gear: Gear,
    pub displaced: Displaced,
}

/// What a worker does: read, test, hash, compare. Never inlined, because benches/instructions
/// counts what happens in it.
#[inline(never)]
pub(super) fn process(work: &Work, mut batch: Batch) -> Result<Hashed> {
    let chunk = u64::from(work.shape.chunk_bytes());
    let base = batch.first_slot * chunk;
    let end = (base + batch.slots as u64 * chunk).min(work.shape.size());
    let mut buffer = std::mem::take(&mut batch.buffer);
    buffer.resize((end - base) as usize, 0);
    let group = (READ_BYTES as u64 / chunk).max(1) as usize;
    let mut outcomes = Vec::with_capacity(batch.slots);
    let mut read_bytes = 0;
    while outcomes.len() < batch.slots {
        let first = outcomes.len();
        let is_selected = |slot: usize| batch.is_selected(base + slot as u64 * chunk);
        if !is_selected(first) {
            outcomes.push(Outcome::Kept(batch.before(first).unwrap_or(LeafSlot::Zero)));
            continue;
        }
        let most = (first + group).min(batch.slots);
        let last = (first..most).find(|slot| !is_selected(*slot)).unwrap_or(most);
        let from = base + first as u64 * chunk;
        let to = end.min(base + last as u64 * chunk);
        if !batch.data.iter().any(|range| range.start < to && from < range.end) {
            // A scattered disk has mostly such groups: clearing them would cost more than reading.
            outcomes.resize_with(last, || Outcome::Zero { was_read: false });
            continue;
        }
        let area = &mut buffer[(from - base) as usize..(to - base) as usize];
        read_bytes += read_group(work.source.as_ref(), &batch.data, from, area)?;
        for slot in first..last {
            let start = base + slot as u64 * chunk;
            let stop = end.min(start + chunk);
            let has_data = batch.data.iter().any(|range| range.start < stop && start < range.end);
            if !has_data {
                outcomes.push(Outcome::Zero { was_read: false });
                continue;
            }
            let data = &buffer[(start - base) as usize..(stop - base) as usize];
            outcomes.push(examine(work, start, data, batch.before(slot))?);
        }
    }
    find_displaced(work, &buffer, &mut outcomes)?;
    batch.buffer = buffer;
    Ok(Hashed { batch, outcomes, read_bytes })
}

/// Looks among what is new for what is stored at another phase.
fn find_displaced(work: &Work, buffer: &[u8], outcomes: &mut [Outcome]) -> Result<()> {
    let chunk = work.shape.chunk_bytes() as usize;
    let mut numbers = Vec::new();
    let mut candidates = Vec::new();
    for (number, outcome) in outcomes.iter().enumerate() {
        if let Outcome::New(_, anchor) = outcome {
            let offset = number * chunk;
            let data = &buffer[offset..(offset + chunk).min(buffer.len())];
            numbers.push(number);
            candidates.push(Candidate { offset, data, anchor: *anchor });
        }
    }
    for (number, splice) in numbers.into_iter().zip(work.displaced.find(&candidates, chunk)?) {
        if let (Outcome::New(slot, _), Some(splice)) = (&outcomes[number], splice) {
            outcomes[number] = Outcome::Displaced(*slot, splice);
        }
    }
    Ok(())
}

/// Reads the data ranges that lie in `area`, which starts at `from`; the rest becomes zeros.
fn read_group(
    source: &dyn DiskSource,
    data: &[Range<u64>],
    from: u64,
    area: &mut [u8],
) -> Result<u64> {
    let to = from + area.len() as u64;
    let mut read_bytes = 0;
    let mut filled = from;
    for range in data {
        let start = range.start.max(from);
        let stop = range.end.min(to);
        if start >= stop {
            continue;
        }
        area[(filled - from) as usize..(start - from) as usize].fill(0);
        source.read_at(start, &mut area[(start - from) as usize..(stop - from) as usize])?;
        read_bytes += stop - start;
        filled = stop;
    }
    area[(filled - from) as usize..].fill(0);
    Ok(read_bytes)
}

fn examine(work: &Work, offset: u64, data: &[u8], before: Option<LeafSlot>) -> Result<Outcome> {
    if is_zero(data) {
        return Ok(Outcome::Zero { was_read: true });
    }
    let id = work.keys.chunk_id(data);
    if let Some(slot @ LeafSlot::Chunk { id: known, .. }) = before
        && known == id
    {
        let is_stored = work.parent_is_complete || work.presence.contains(&id.0)?;
        return Ok(if is_stored { Outcome::Unchanged(slot) } else { new(work, slot, data) });
    }
    let slot = LeafSlot::Chunk { id, chaining: chaining_value(offset, data) };
    let is_stored = work.presence.contains(&id.0)?;
    Ok(if is_stored { Outcome::Stored(slot) } else { new(work, slot, data) })
}

fn new(work: &Work, slot: LeafSlot, data: &[u8]) -> Outcome {
    Outcome::New(slot, listed_anchor(&work.gear, data))
}

//! The first mark: how much of each pack somebody needs.
//!
//! Invariant: memory is a bit for each entry of a pack that has one in use, whatever the number of
//! points.

use super::roots::{Needs, Root, Stored, find_stored, find_whole, walk};
use crate::error::Result;
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::entries::Place;
use crate::repository::locate::Locator;
use diskvault_format::id::{ChunkId, PackId, PageId};
use std::collections::{BTreeMap, HashSet};

/// One pack, and how much of it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackUsage {
    /// The pack.
    pub id: PackId,
    /// Its size.
    pub bytes: u64,
    /// What of that belongs to entries that somebody needs: of each segment as large a part as of
    /// its uncompressed bytes.
    pub used_bytes: u64,
    /// What belongs to entries that nobody needs. Header, footer and padding are neither.
    pub unused_bytes: u64,
    /// True if some pruner's list has it.
    pub is_listed: bool,
}

/// What the first mark found.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// All packs that can be read, by id.
    pub packs: Vec<PackUsage>,
    /// Chunks that no pack holds: lost already, whatever a prune does.
    pub missing: u64,
}

/// Marks what the roots need.
///
/// # Errors
/// As [`walk`].
pub(super) fn measure(
    repository: &Repository,
    locator: &Locator,
    roots: &[Root],
    listed: &HashSet<PackId>,
    monitor: &dyn Monitor,
) -> Result<Usage> {
    let mut marks = Marks { locator, listed, bits: BTreeMap::new(), missing: 0 };
    walk(repository, locator, roots, "marking what is needed", &mut marks, monitor)?;
    let mut usage = Usage { packs: Vec::new(), missing: marks.missing };
    for id in locator.listed() {
        let pack = match locator.pack(repository, *id) {
            Ok(pack) => pack,
            // Not to be touched: what cannot be read is evidence, not garbage.
            Err(error) if error.kind().is_finding() => continue,
            Err(error) => return Err(error),
        };
        let bits = marks.bits.get(id);
        let (mut used_bytes, mut all_bytes) = (0, 0);
        for (ordinal, segment) in pack.footer.segments.iter().enumerate() {
            all_bytes += u64::from(segment.stored_bytes());
            let Some(bits) = bits.and_then(|bits| bits.get(ordinal)) else { continue };
            let entries = segment.entries.iter().enumerate();
            let used = entries.filter(|(slot, _)| is_set(bits, *slot));
            let used: u64 = used.map(|(_, entry)| u64::from(entry.bytes)).sum();
            let raw = u64::from(segment.raw_bytes()).max(1);
            used_bytes += u64::from(segment.stored_bytes()) * used / raw;
        }
        let is_listed = listed.contains(id);
        // Something of it is needed, however little: never nothing.
        let used_bytes = if bits.is_some() { used_bytes.max(1) } else { 0 };
        let unused_bytes = all_bytes.saturating_sub(used_bytes);
        let bytes = pack.bytes;
        usage.packs.push(PackUsage { id: *id, bytes, used_bytes, unused_bytes, is_listed });
    }
    Ok(usage)
}

/// A bit for each slot of a segment.
type Bits = Vec<u64>;

fn is_set(bits: &Bits, slot: usize) -> bool {
    bits.get(slot / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
}

struct Marks<'a> {
    locator: &'a Locator,
    listed: &'a HashSet<PackId>,
    /// By pack, then by segment.
    bits: BTreeMap<PackId, Vec<Bits>>,
    missing: u64,
}

impl Marks<'_> {
    fn set(&mut self, place: &Place) {
        let segments = self.bits.entry(place.pack).or_default();
        let (segment, slot) = (place.segment as usize, place.slot as usize);
        if segments.len() <= segment {
            segments.resize(segment + 1, Bits::new());
        }
        let bits = &mut segments[segment];
        if bits.len() <= slot / 64 {
            bits.resize(slot / 64 + 1, 0);
        }
        bits[slot / 64] |= 1 << (slot % 64);
    }
}

impl Needs for Marks<'_> {
    fn page(&mut self, id: PageId) -> Result<()> {
        let (locator, listed) = (self.locator, self.listed);
        let unlisted = |place: &Place| !listed.contains(&place.pack);
        let found = match find_whole(locator, ChunkId(id.0), &unlisted)? {
            Some(place) => Some(place),
            None => find_whole(locator, ChunkId(id.0), &|_| true)?,
        };
        // One that is in no pack is met when it is read.
        if let Some(place) = found {
            self.set(&place);
        }
        Ok(())
    }

    fn chunk(&mut self, id: ChunkId) -> Result<()> {
        let (locator, listed) = (self.locator, self.listed);
        let unlisted = |place: &Place| !listed.contains(&place.pack);
        let found = match find_stored(locator, id, &unlisted)? {
            Some(stored) => Some(stored),
            None => find_stored(locator, id, &|_| true)?,
        };
        match found {
            Some(Stored::Whole(place)) => self.set(&place),
            Some(Stored::Spliced { place, pieces, .. }) => {
                self.set(&place);
                pieces.iter().for_each(|place| self.set(place));
            }
            None => self.missing += 1,
        }
        Ok(())
    }
}

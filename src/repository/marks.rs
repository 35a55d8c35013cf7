//! Which entries of packs are marked: by who looks what is needed, and by who walks maps and wants
//! each page once.
//!
//! Invariant: memory is a bit for each entry of a pack that has a marked one, whatever the number
//! of points that need it.

use super::entries::{Place, places_of};
use super::locate::Locator;
use crate::error::Result;
use diskvault_format::footer::FooterSegment;
use diskvault_format::id::{PackId, PageId};
use std::collections::BTreeMap;

/// Bits of one word.
const WORD_BITS: usize = 64;

/// A bit for each entry of a segment.
type Bits = Vec<u64>;

/// Marked entries, by pack and segment.
#[derive(Debug, Default)]
pub struct Marks {
    bits: BTreeMap<PackId, Vec<Bits>>,
}

impl Marks {
    /// Marks an entry; false if it was marked before.
    pub fn insert(&mut self, place: &Place) -> bool {
        let segments = self.bits.entry(place.pack).or_default();
        let (segment, slot) = (place.segment as usize, place.slot as usize);
        if segments.len() <= segment {
            segments.resize(segment + 1, Bits::new());
        }
        let bits = &mut segments[segment];
        if bits.len() <= slot / WORD_BITS {
            bits.resize(slot / WORD_BITS + 1, 0);
        }
        let bit = 1 << (slot % WORD_BITS);
        let is_new = bits[slot / WORD_BITS] & bit == 0;
        bits[slot / WORD_BITS] |= bit;
        is_new
    }

    /// True if the entry is marked.
    pub fn contains(&self, place: &Place) -> bool {
        self.of(place.pack, place.segment as usize).contains(place.slot as usize)
    }

    /// Marked entries of a pack.
    pub fn count(&self, pack: PackId) -> u64 {
        let words = self.bits.get(&pack).into_iter().flatten().flatten();
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// The packs that have a marked entry, ascending.
    pub fn packs(&self) -> impl Iterator<Item = PackId> {
        self.bits.keys().copied()
    }

    /// True if the pack has a marked entry.
    pub fn has_pack(&self, pack: PackId) -> bool {
        self.bits.contains_key(&pack)
    }

    /// The marks of one segment.
    pub fn of(&self, pack: PackId, segment: usize) -> SegmentMarks<'_> {
        let bits = self.bits.get(&pack).and_then(|segments| segments.get(segment));
        SegmentMarks(bits.map_or(&[], Vec::as_slice))
    }
}

/// The marked entries of a segment.
#[derive(Clone, Copy, Debug)]
pub struct SegmentMarks<'a>(&'a [u64]);

impl SegmentMarks<'_> {
    /// True if the entry is marked.
    pub fn contains(self, slot: usize) -> bool {
        self.0.get(slot / WORD_BITS).is_some_and(|word| word >> (slot % WORD_BITS) & 1 == 1)
    }
}

/// The pages that a walk is done with. They are known by where they are stored: a bit for each instead of
/// the id in a set, which takes 18 to 36 bytes.
pub struct MetPages<'a> {
    locator: &'a Locator,
    marks: Marks,
}

impl<'a> MetPages<'a> {
    /// No page yet.
    pub fn new(locator: &'a Locator) -> MetPages<'a> {
        MetPages { locator, marks: Marks::default() }
    }

    /// True if the page was added before.
    ///
    /// # Errors
    /// What the index says.
    pub fn contains(&self, id: PageId) -> Result<bool> {
        let places = places_of(self.locator.index(), &id.0)?;
        Ok(places.iter().any(|place| !place.is_splice && self.marks.contains(place)))
    }

    /// Adds a page; false if it was met before. One that no pack holds is new each time.
    ///
    /// # Errors
    /// What the index says.
    pub fn insert(&mut self, id: PageId) -> Result<bool> {
        let mut is_new = true;
        // All of them: the index may name a new copy first by the time that it is met again.
        for place in places_of(self.locator.index(), &id.0)? {
            is_new &= place.is_splice || self.marks.insert(&place);
        }
        Ok(is_new)
    }
}

/// What of a segment's stored bytes belongs to entries of `bytes` uncompressed bytes: as large a
/// part as they are of its uncompressed bytes.
pub fn stored_share(segment: &FooterSegment, bytes: u64) -> u64 {
    let (stored, raw) =
        (u128::from(segment.stored_bytes()), u128::from(segment.raw_bytes().max(1)));
    (stored * u128::from(bytes) / raw) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_one_entry() {
        let place = |pack: u8, segment, slot| Place {
            pack: PackId([pack; 32]),
            segment,
            slot,
            is_splice: false,
        };
        let mut marks = Marks::default();
        assert!(marks.insert(&place(1, 2, 200)) && !marks.insert(&place(1, 2, 200)));
        assert!(marks.insert(&place(1, 2, 199)) && marks.insert(&place(3, 2, 200)));
        let is_marked =
            |pack: u8, segment, slot| marks.of(PackId([pack; 32]), segment).contains(slot);
        assert!(is_marked(1, 2, 200) && is_marked(1, 2, 199) && is_marked(3, 2, 200));
        for (pack, segment, slot) in [(1, 2, 201), (1, 1, 200), (1, 3, 0), (2, 2, 200), (1, 2, 8)] {
            assert!(!is_marked(pack, segment, slot), "{pack} {segment} {slot}");
        }
        assert!(marks.contains(&place(1, 2, 199)) && !marks.contains(&place(1, 2, 198)));
        let counts = [1, 2, 3].map(|pack: u8| marks.count(PackId([pack; 32])));
        assert_eq!(counts, [2, 0, 1]);
        assert_eq!(marks.packs().map(|pack| pack.0[0]).collect::<Vec<_>>(), [1, 3]);
    }
}

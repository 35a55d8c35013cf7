//! Which entries of packs are marked: by who looks what is needed.
//!
//! Invariant: memory is a bit for each entry of a pack that has a marked one, whatever the number
//! of points that need it.

use super::entries::Place;
use diskvault_format::footer::FooterSegment;
use diskvault_format::id::PackId;
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
        assert_eq!(marks.packs().map(|pack| pack.0[0]).collect::<Vec<_>>(), [1, 3]);
    }
}

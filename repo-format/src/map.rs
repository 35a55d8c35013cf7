//! Disk maps (spec/33-map.md): a radix tree from disk offset to chunk.
//!
//! A leaf covers 64 chunks, an inner page 128 pages below it; the depth is the least that covers
//! the disk. A page does not know its position. There is no all-zero page: its parent has an
//! absent child instead, and a disk of zeros has no page at all. So one content has one form, and
//! equal roots mean equal bytes.
//!
//! ```text
//! leaf    0   1  page kind 1          inner   0   1  page kind 2
//!         1   1  level 0                      1   1  level, from 1
//!         2   2  0                            2   2  0
//!         4  16  64 slot kinds, 2 bits        4  32  128 slot kinds, 2 bits
//!        20  64*n  id, chaining value        36  .   id, chaining value unless kind 2
//! ```
//!
//! Leaf slot kinds: 0 zero, 1 chunk; 2 delta and 3 unreadable are reserved. Inner slot kinds: 0
//! absent, 1 child whose chaining value is known because no slot below is zero, 2 child whose
//! value is not known; 3 is reserved. Slot `s` has bits `2*(s%4)` and up of byte `s/4`.

use crate::crypto::Keys;
use crate::cursor::Cursor;
use crate::digest::{Chaining, merge};
use crate::error::{Result, limit, malformed, newer};
use crate::id::{ChunkId, MapRoot, PageId};
use crate::limits::{
    CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, DISK_BYTES_MAX, INNER_SLOTS, LEAF_SLOTS, MAP_DEPTH_MAX,
};
use crate::manifest::Chunking;

const LEAF_KIND: u8 = 1;
const INNER_KIND: u8 = 2;

/// The shape of a disk map: everything that follows from size and chunk size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    size: u64,
    chunk_bytes: u32,
}

impl MapShape {
    /// The shape for a disk of `size` bytes in chunks of `chunk_bytes` (a power of two).
    ///
    /// # Errors
    /// M-1 if the disk is too large or the chunk size is no power of two from 4 KiB to 4 MiB.
    pub fn new(size: u64, chunk_bytes: u32) -> Result<MapShape> {
        if size > DISK_BYTES_MAX {
            return Err(limit("M-1", "the disk's size", DISK_BYTES_MAX, size));
        }
        if !chunk_bytes.is_power_of_two()
            || !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk_bytes)
        {
            return Err(malformed("M-1", "the chunk size is no power of two from 4 KiB to 4 MiB"));
        }
        Ok(MapShape { size, chunk_bytes })
    }

    /// Bytes of the disk.
    pub fn size(self) -> u64 {
        self.size
    }

    /// Bytes of a chunk; the last may be shorter.
    pub fn chunk_bytes(self) -> u32 {
        self.chunk_bytes
    }

    /// Number of chunks.
    pub fn slots(self) -> u64 {
        self.size.div_ceil(u64::from(self.chunk_bytes))
    }

    /// Number of leaves, present or not.
    pub fn leaves(self) -> u64 {
        self.slots().div_ceil(LEAF_SLOTS as u64)
    }

    /// Levels of pages: 0 for an empty disk, 1 for a leaf alone.
    pub fn depth(self) -> u32 {
        let mut covered = 1;
        let mut depth = 0;
        while covered < self.slots() || (depth == 0 && self.size > 0) {
            covered *= if depth == 0 { LEAF_SLOTS as u64 } else { INNER_SLOTS as u64 };
            depth += 1;
        }
        debug_assert!(depth <= MAP_DEPTH_MAX);
        depth
    }

    /// True length of the chunk in `slot`.
    pub fn bytes_in_slot(self, slot: u64) -> u32 {
        let start = slot.saturating_mul(u64::from(self.chunk_bytes));
        self.size.saturating_sub(start).min(u64::from(self.chunk_bytes)) as u32
    }

    /// Leaves covered by one page of `level` (0 is a leaf).
    pub fn leaves_per_page(level: u32) -> u64 {
        (INNER_SLOTS as u64).pow(level)
    }

    /// Slots of leaf number `leaf` that lie on the disk, 1 to 64.
    pub fn used_slots(self, leaf: u64) -> usize {
        self.slots().saturating_sub(leaf.saturating_mul(LEAF_SLOTS as u64)).min(LEAF_SLOTS as u64)
            as usize
    }

    /// Children of inner page number `page` of `level` that lie on the disk, 1 to 128.
    pub fn used_children(self, level: u32, page: u64) -> usize {
        let below = self.leaves().div_ceil(Self::leaves_per_page(level.saturating_sub(1)));
        below.saturating_sub(page.saturating_mul(INNER_SLOTS as u64)).min(INNER_SLOTS as u64)
            as usize
    }

    /// The map root: a keyed hash of size, chunking and top page.
    pub fn root(self, keys: &Keys, chunking: &Chunking, top: Option<PageId>) -> MapRoot {
        map_root(keys, self.size, chunking, top)
    }
}

/// The root of any map: keyed BLAKE3 of size (8), chunking numbers (1 + 3 * 4), whether there is a
/// top page (1), its id or zeros (32).
pub fn map_root(keys: &Keys, size: u64, chunking: &Chunking, top: Option<PageId>) -> MapRoot {
    let mut input = Vec::with_capacity(54);
    input.extend_from_slice(&size.to_le_bytes());
    let (kind, numbers) = chunking.numbers();
    input.push(kind);
    for number in numbers {
        input.extend_from_slice(&number.to_le_bytes());
    }
    input.push(u8::from(top.is_some()));
    input.extend_from_slice(&top.map_or([0; 32], |id| id.0));
    MapRoot(keys.map_root_hash(&input))
}

/// One slot of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafSlot {
    /// Zeros; never stored, hashed or indexed.
    Zero,
    /// A chunk.
    Chunk {
        /// Its id.
        id: ChunkId,
        /// Its chaining value at its offset.
        chaining: Chaining,
    },
}

/// The slots of one leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// All 64 slots; those beyond the end of the disk are zero.
    pub slots: [LeafSlot; LEAF_SLOTS],
}

impl Leaf {
    /// A leaf of zeros, which is never stored.
    pub const ZERO: Leaf = Leaf { slots: [LeafSlot::Zero; LEAF_SLOTS] };

    /// True if no slot is a chunk.
    pub fn is_zero(&self) -> bool {
        self.slots.iter().all(|slot| *slot == LeafSlot::Zero)
    }

    /// The chaining value of the first `used` slots, if none of them is zero.
    pub fn chaining(&self, used: usize) -> Option<Chaining> {
        let mut values = Vec::with_capacity(used);
        for slot in &self.slots[..used] {
            match slot {
                LeafSlot::Chunk { chaining, .. } => values.push(*chaining),
                LeafSlot::Zero => return None,
            }
        }
        merge(&values)
    }

    /// Encodes the leaf; `None` if it is all zero.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut kinds = [0_u8; LEAF_SLOTS / 4];
        let mut bytes = vec![LEAF_KIND, 0, 0, 0];
        bytes.extend_from_slice(&kinds);
        for (number, slot) in self.slots.iter().enumerate() {
            if let LeafSlot::Chunk { id, chaining } = slot {
                set_kind(&mut kinds, number, 1);
                bytes.extend_from_slice(&id.0);
                bytes.extend_from_slice(chaining);
            }
        }
        if bytes.len() == 4 + kinds.len() {
            return None;
        }
        bytes[4..4 + kinds.len()].copy_from_slice(&kinds);
        Some(bytes)
    }

    /// Decodes a leaf that has been authenticated, of which the first `used` slots lie on the disk.
    ///
    /// # Errors
    /// M-2 page kind or length, M-3 level, M-4 reserved slot kind, M-5 an all-zero page, M-6 a
    /// slot beyond the end.
    pub fn decode(bytes: &[u8], used: usize) -> Result<Leaf> {
        let mut cursor = start_page(bytes, LEAF_KIND, 0)?;
        let kinds = cursor.bytes(LEAF_SLOTS / 4)?;
        let mut leaf = Leaf::ZERO;
        for number in 0..LEAF_SLOTS {
            match kind_of(kinds, number) {
                0 => {}
                1 => {
                    check_used(number, used)?;
                    let id = ChunkId(cursor.array()?);
                    leaf.slots[number] = LeafSlot::Chunk { id, chaining: cursor.array()? };
                }
                other => return Err(newer("M-4", format!("has a leaf slot of kind {other}"))),
            }
        }
        cursor.finish()?;
        if leaf.is_zero() {
            return Err(malformed("M-5", "is a page of zeros"));
        }
        Ok(leaf)
    }
}

/// One slot of an inner page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InnerSlot {
    /// Zeros.
    Absent,
    /// A page below.
    Child {
        /// Its id.
        page: PageId,
        /// The chaining value of all below, if no slot below is zero.
        chaining: Option<Chaining>,
    },
}

/// The slots of one inner page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Height above the leaves, from 1.
    pub level: u32,
    /// All 128 slots.
    pub slots: Vec<InnerSlot>,
}

impl Inner {
    /// A page of absent children, which is never stored.
    pub fn absent(level: u32) -> Inner {
        Inner { level, slots: vec![InnerSlot::Absent; INNER_SLOTS] }
    }

    /// True if no child is present.
    pub fn is_absent(&self) -> bool {
        self.slots.iter().all(|slot| *slot == InnerSlot::Absent)
    }

    /// The chaining value of the first `used` children, if all are known.
    pub fn chaining(&self, used: usize) -> Option<Chaining> {
        let mut values = Vec::with_capacity(used);
        for slot in &self.slots[..used] {
            match slot {
                InnerSlot::Child { chaining: Some(value), .. } => values.push(*value),
                _ => return None,
            }
        }
        merge(&values)
    }

    /// Encodes the page; `None` if no child is present.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut kinds = [0_u8; INNER_SLOTS / 4];
        let mut bytes = vec![INNER_KIND, self.level as u8, 0, 0];
        bytes.extend_from_slice(&kinds);
        for (number, slot) in self.slots.iter().enumerate() {
            if let InnerSlot::Child { page, chaining } = slot {
                set_kind(&mut kinds, number, if chaining.is_some() { 1 } else { 2 });
                bytes.extend_from_slice(&page.0);
                bytes.extend_from_slice(chaining.as_ref().map_or(&[], |value| &value[..]));
            }
        }
        if bytes.len() == 4 + kinds.len() {
            return None;
        }
        bytes[4..4 + kinds.len()].copy_from_slice(&kinds);
        Some(bytes)
    }

    /// Decodes an authenticated page of `level`, of which the first `used` slots lie on the disk.
    ///
    /// # Errors
    /// M-2 to M-6 as [`Leaf::decode`].
    pub fn decode(bytes: &[u8], level: u32, used: usize) -> Result<Inner> {
        let mut cursor = start_page(bytes, INNER_KIND, level)?;
        let kinds = cursor.bytes(INNER_SLOTS / 4)?;
        let mut inner = Inner::absent(level);
        for number in 0..INNER_SLOTS {
            let kind = kind_of(kinds, number);
            if kind == 0 {
                continue;
            }
            if kind == 3 {
                return Err(newer("M-4", "has an inner slot of kind 3"));
            }
            check_used(number, used)?;
            let page = PageId(cursor.array()?);
            let chaining = if kind == 1 { Some(cursor.array()?) } else { None };
            inner.slots[number] = InnerSlot::Child { page, chaining };
        }
        cursor.finish()?;
        if inner.is_absent() {
            return Err(malformed("M-5", "is a page of zeros"));
        }
        Ok(inner)
    }
}

fn start_page(bytes: &[u8], kind: u8, level: u32) -> Result<Cursor<'_>> {
    let mut cursor = Cursor::new(bytes, "M-2");
    if cursor.u8()? != kind {
        return Err(malformed("M-2", "is a page of another kind"));
    }
    if u32::from(cursor.u8()?) != level {
        return Err(malformed("M-3", "is a page of another level"));
    }
    cursor.zeros(2, "M-2")?;
    Ok(cursor)
}

fn check_used(number: usize, used: usize) -> Result<()> {
    if number < used {
        return Ok(());
    }
    Err(malformed("M-6", format!("slot {number} lies beyond the end of the disk")))
}

fn kind_of(kinds: &[u8], slot: usize) -> u8 {
    kinds[slot / 4] >> (slot % 4 * 2) & 3
}

fn set_kind(kinds: &mut [u8], slot: usize, kind: u8) {
    kinds[slot / 4] |= kind << (slot % 4 * 2);
}

/// Receives pages from a builder, children before parents.
pub type PageSink<'a, E> = dyn FnMut(PageId, Vec<u8>) -> std::result::Result<(), E> + 'a;

/// Builds a map from its leaves in ascending order; what is not pushed is zeros.
pub struct MapBuilder {
    shape: MapShape,
    /// The open inner page of each level from 1, with its number.
    open: Vec<(u64, Inner)>,
    top: Option<PageId>,
}

impl MapBuilder {
    /// Starts the map of a disk.
    pub fn new(shape: MapShape) -> MapBuilder {
        let levels = shape.depth().saturating_sub(1);
        let open = (1..=levels).map(|level| (0, Inner::absent(level))).collect();
        MapBuilder { shape, open, top: None }
    }

    /// Adds leaf number `number`; numbers ascend. Zero leaves may be pushed or left out.
    ///
    /// # Errors
    /// Only those of `sink`.
    pub fn push<E>(
        &mut self,
        keys: &Keys,
        number: u64,
        leaf: &Leaf,
        sink: &mut PageSink<'_, E>,
    ) -> std::result::Result<(), E> {
        let Some(bytes) = leaf.encode() else { return Ok(()) };
        let page = keys.page_id(&bytes);
        sink(page, bytes)?;
        let chaining = leaf.chaining(self.shape.used_slots(number));
        self.add(keys, 1, number, InnerSlot::Child { page, chaining }, sink)
    }

    /// Adds page number `number` of `level` with all below it, which a map of the same chunks has
    /// there already: from another map, all of whose slots below the page lie on both disks. Numbers
    /// ascend as for [`MapBuilder::push`], and what is pushed later lies behind it.
    ///
    /// # Errors
    /// Only those of `sink`.
    pub fn push_page<E>(
        &mut self,
        keys: &Keys,
        (level, number): (u32, u64),
        page: PageId,
        chaining: Option<Chaining>,
        sink: &mut PageSink<'_, E>,
    ) -> std::result::Result<(), E> {
        // What is open below lies in front of it.
        for below in 1..=(level as usize).min(self.open.len()) {
            self.close(keys, below, sink)?;
        }
        self.add(keys, level as usize + 1, number, InnerSlot::Child { page, chaining }, sink)
    }

    /// Puts `child`, page number `number` of the level below, into the open page of `level`.
    fn add<E>(
        &mut self,
        keys: &Keys,
        level: usize,
        number: u64,
        child: InnerSlot,
        sink: &mut PageSink<'_, E>,
    ) -> std::result::Result<(), E> {
        let Some((open, _)) = self.open.get(level - 1) else {
            if let InnerSlot::Child { page, .. } = child {
                self.top = Some(page);
            }
            return Ok(());
        };
        let wanted = number / INNER_SLOTS as u64;
        if *open != wanted {
            self.close(keys, level, sink)?;
            self.open[level - 1].0 = wanted;
        }
        self.open[level - 1].1.slots[(number % INNER_SLOTS as u64) as usize] = child;
        Ok(())
    }

    /// Emits the open page of `level`, if it has a child, and hands it to the level above.
    fn close<E>(
        &mut self,
        keys: &Keys,
        level: usize,
        sink: &mut PageSink<'_, E>,
    ) -> std::result::Result<(), E> {
        let absent = Inner::absent(level as u32);
        let (number, inner) = std::mem::replace(&mut self.open[level - 1], (0, absent));
        let Some(bytes) = inner.encode() else { return Ok(()) };
        let page = keys.page_id(&bytes);
        sink(page, bytes)?;
        let chaining = inner.chaining(self.shape.used_children(level as u32, number));
        self.add(keys, level + 1, number, InnerSlot::Child { page, chaining }, sink)
    }

    /// Emits what is open and returns the top page; `None` for a disk of zeros.
    ///
    /// # Errors
    /// Only those of `sink`.
    pub fn finish<E>(
        mut self,
        keys: &Keys,
        sink: &mut PageSink<'_, E>,
    ) -> std::result::Result<Option<PageId>, E> {
        for level in 1..=self.open.len() {
            self.close(keys, level, sink)?;
        }
        Ok(self.top)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Secret;
    use crate::id::RepositoryId;
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    fn shape(size: u64) -> MapShape {
        MapShape::new(size, 4096).unwrap()
    }

    #[test]
    fn depth_is_the_least_that_covers_the_disk() {
        let cases = [
            (0, 0),
            (1, 1),
            (64 * 4096, 1),
            (64 * 4096 + 1, 2),
            (64 * 128 * 4096, 2),
            (64 * 128 * 4096 + 1, 3),
            (DISK_BYTES_MAX, 7),
        ];
        for (size, depth) in cases {
            assert_eq!(shape(size).depth(), depth, "{size}");
        }
    }

    fn chunk(number: u8) -> LeafSlot {
        LeafSlot::Chunk { id: ChunkId([number; 32]), chaining: [number ^ 0x55; 32] }
    }

    #[test]
    fn pages_come_back_and_only_in_one_form() {
        let mut leaf = Leaf::ZERO;
        assert_eq!(leaf.encode(), None);
        leaf.slots[3] = chunk(1);
        leaf.slots[63] = chunk(2);
        let bytes = leaf.encode().unwrap();
        assert_eq!(Leaf::decode(&bytes, 64).unwrap(), leaf);
        assert_eq!(Leaf::decode(&bytes, 63).unwrap_err().rule, "M-6");
        for length in 0..bytes.len() {
            assert!(Leaf::decode(&bytes[..length], 64).is_err());
        }
        let mut inner = Inner::absent(2);
        inner.slots[0] = InnerSlot::Child { page: PageId([1; 32]), chaining: None };
        inner.slots[127] = InnerSlot::Child { page: PageId([2; 32]), chaining: Some([3; 32]) };
        let bytes = inner.encode().unwrap();
        assert_eq!(Inner::decode(&bytes, 2, 128).unwrap(), inner);
        assert_eq!(Inner::decode(&bytes, 1, 128).unwrap_err().rule, "M-3");
    }

    #[test]
    fn a_sparse_disk_has_only_the_pages_on_the_way() {
        let keys = Keys::derive(&Secret::new([1; 32]), RepositoryId([2; 16]));
        let shape = shape(1 << 40);
        let mut builder = MapBuilder::new(shape);
        let mut pages = BTreeMap::new();
        let mut sink = |id: PageId, bytes: Vec<u8>| -> std::result::Result<(), Infallible> {
            pages.insert(id, bytes);
            Ok(())
        };
        let mut leaf = Leaf::ZERO;
        leaf.slots[5] = chunk(9);
        for number in [0, 1, shape.leaves() - 1] {
            builder.push(&keys, number, &leaf, &mut sink).unwrap();
        }
        let top = builder.finish(&keys, &mut sink).unwrap().unwrap();
        // One shared leaf, two inner pages on each of the levels below the top, and the top.
        assert_eq!(shape.depth(), 5);
        assert_eq!(pages.len(), 1 + 2 * 3 + 1);
        assert!(Inner::decode(&pages[&top], 4, shape.used_children(4, 0)).is_ok());
        let empty = MapBuilder::new(shape).finish(&keys, &mut |_, _| Ok::<(), Infallible>(()));
        assert_eq!(empty.unwrap(), None);
    }
}

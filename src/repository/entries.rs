//! How a pack's footer stands in the index: ids, which of them are splices, and anchors.
//!
//! Invariant: the index gives hints; what it says is verified against the footer of the pack.

use super::pack_reader::OpenPack;
use crate::error::Result;
use crate::index::{ChunkIndex, Location, SEGMENTS_MAX};
use diskvault_format::footer::{Footer, FooterSegment};
use diskvault_format::id::{PackId, WriterId};
use diskvault_format::limits::PACK_SEGMENTS_MAX;
use diskvault_format::pack::PackKind;
use diskvault_format::segment::EntryKind;

/// Marks the segment number of a splice, so that nobody has to open a footer to know.
const SPLICE_MARK: u32 = 1 << 19;
const _: () = assert!(PACK_SEGMENTS_MAX <= SPLICE_MARK && 2 * SPLICE_MARK <= SEGMENTS_MAX);

/// The low bits of an anchor are a place in the chunk; the others are found in the index.
const ANCHOR_HASH_MASK: u64 = !((1 << 22) - 1);
/// No id has this as its second half, except once in 2^64.
const ANCHOR_TAG: [u8; 8] = *b"anchored";

/// The index prefix of an id: 128 of 256 bits of a keyed hash decide.
pub fn prefix(id: &[u8; 32]) -> [u8; 16] {
    let mut prefix = [0; 16];
    prefix.copy_from_slice(&id[..16]);
    prefix
}

/// The index prefix under which the chunks with an anchor are found.
pub fn anchor_prefix(value: u64) -> [u8; 16] {
    let mut prefix = [0; 16];
    prefix[..8].copy_from_slice(&(value & ANCHOR_HASH_MASK).to_be_bytes());
    prefix[8..].copy_from_slice(&ANCHOR_TAG);
    prefix
}

/// Where the index says that an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The pack.
    pub pack: PackId,
    /// The segment's number in the pack.
    pub segment: u32,
    /// The entry's number in the segment.
    pub slot: u32,
    /// True if it is a splice, and so no chunk or page.
    pub is_splice: bool,
}

impl Place {
    /// True if the footer lists what the index says: the entry, and whether it is a splice.
    pub fn is_held_by(&self, pack: &OpenPack, id: &[u8; 32]) -> bool {
        pack.entry(self.segment, self.slot).is_some_and(|entry| {
            entry.id == *id && (entry.kind == EntryKind::Splice) == self.is_splice
        })
    }
}

impl From<Location> for Place {
    fn from(location: Location) -> Place {
        Place {
            pack: PackId(location.pack),
            segment: location.segment & !SPLICE_MARK,
            slot: location.slot,
            is_splice: location.segment & SPLICE_MARK != 0,
        }
    }
}

/// All places of an id, splices last: a chunk's own bytes are the shorter way to it.
///
/// # Errors
/// What the index says.
pub fn places_of(index: &ChunkIndex, id: &[u8; 32]) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    index.search(&prefix(id), &mut |location| {
        places.push(Place::from(location));
        true
    })?;
    places.sort_by_key(|place| place.is_splice);
    Ok(places)
}

/// Some place of a chunk with this anchor.
///
/// # Errors
/// What the index says.
pub fn place_of_anchor(index: &ChunkIndex, value: u64) -> Result<Option<Place>> {
    let mut found = None;
    index.search(&anchor_prefix(value), &mut |location| {
        found = Some(Place::from(location));
        false
    })?;
    Ok(found)
}

/// Puts all entries of the footer of a pack of `bytes` bytes into the index. Of the chunks with
/// one anchor the first is enough: there may be as many as there are chunks. What a writer lists
/// that may not read must not stand in front of what can be compared.
///
/// # Errors
/// What the index says.
pub fn add_footer_to_index(
    index: &ChunkIndex,
    id: PackId,
    kind: PackKind,
    footer: &Footer,
    bytes: u64,
) -> Result<()> {
    let segments = footer.segments.iter().map(|segment| u64::from(segment.stored_bytes()));
    let figures = [bytes, footer.entry_count(), segments.sum()];
    let mut figures = figures.map(u64::to_le_bytes).concat();
    figures.extend(footer.signer.iter().flat_map(|writer| writer.0));
    index.set_note(&figures_key(id), &figures)?;
    let anchors = match footer.signer {
        None => new_anchors(index, footer)?,
        Some(_) => {
            index.set_note(HAS_PACKS_OF_WRITERS, &[1])?;
            Vec::new()
        }
    };
    let segments = || (0..).zip(&footer.segments);
    let entries = segments().flat_map(|(number, segment)| entries_of(number, segment));
    index.add_pack(&id.0, kind as u8, &mut entries.chain(anchors))
}

fn entries_of(
    number: u32,
    segment: &FooterSegment,
) -> impl Iterator<Item = ([u8; 16], u32, u32)> + '_ {
    (0..).zip(&segment.entries).map(move |(slot, entry)| {
        let mark = if entry.kind == EntryKind::Splice { SPLICE_MARK } else { 0 };
        (prefix(&entry.id), number | mark, slot)
    })
}

/// The anchors of a footer that the index does not know.
fn new_anchors(index: &ChunkIndex, footer: &Footer) -> Result<Vec<([u8; 16], u32, u32)>> {
    let mut anchors = Vec::new();
    for (number, segment) in (0..).zip(&footer.segments) {
        for anchor in &segment.anchors {
            anchors.push((anchor_prefix(anchor.value), number, anchor.slot));
        }
    }
    anchors.sort_unstable();
    anchors.dedup_by_key(|(prefix, _, _)| *prefix);
    let mut new = Vec::with_capacity(anchors.len());
    for anchor in anchors {
        if !index.contains(&anchor.0)? {
            new.push(anchor);
        }
    }
    Ok(new)
}

fn figures_key(id: PackId) -> String {
    format!("pack-bytes/{id}")
}

/// What the index keeps of a pack beside its entries, as it was when it was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackFigures {
    /// Length of the pack.
    pub bytes: u64,
    /// Chunks, pages and splices in it.
    pub entries: u64,
    /// Bytes of its segments: what is left are header, footer and padding.
    pub segment_bytes: u64,
    /// The writer that made it, if that is one that may not read.
    pub signer: Option<WriterId>,
}

/// Note in the index: it has or had packs of writers that may not read.
const HAS_PACKS_OF_WRITERS: &str = "has-packs-of-writers";

/// True if the index has or had packs of writers that may not read.
///
/// # Errors
/// What the index says.
pub fn has_packs_of_writers(index: &ChunkIndex) -> Result<bool> {
    Ok(index.get_note(HAS_PACKS_OF_WRITERS)?.is_some())
}

/// The figures of a pack; nothing for one that is not known, or was added by a program that did not
/// keep them.
///
/// # Errors
/// What the index says.
pub fn known_figures(index: &ChunkIndex, id: PackId) -> Result<Option<PackFigures>> {
    let note = index.get_note(&figures_key(id))?.unwrap_or_default();
    let (numbers, _) = note.as_chunks::<8>();
    let &[bytes, entries, segment_bytes, ref writer @ ..] = numbers else { return Ok(None) };
    let [bytes, entries, segment_bytes] = [bytes, entries, segment_bytes].map(u64::from_le_bytes);
    let signer = writer.as_flattened().try_into().ok().map(WriterId);
    Ok(Some(PackFigures { bytes, entries, segment_bytes, signer }))
}

/// The length of a pack as it was when it was added.
///
/// # Errors
/// What the index says.
pub fn known_bytes(index: &ChunkIndex, id: PackId) -> Result<Option<u64>> {
    let note = index.get_note(&figures_key(id))?;
    Ok(note.and_then(|note| note.first_chunk().copied()).map(u64::from_le_bytes))
}

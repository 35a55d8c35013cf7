//! What is left of a damaged pack (spec/32-pack.md, "Reading from the head"): every segment that can
//! still be opened, with whichever end of the pack is whole, with the footer or without.
//!
//! Invariants: what is handed out was authenticated, and each entry has the id that is told for it;
//! nothing is written. Memory: the pack, and a segment.

use super::pack_reader::pack_name;
use super::sectors::{Sectors, read_sectors};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{ObjectName, Storage};
use diskvault_format::crypto::Keys;
use diskvault_format::footer::{Footer, FooterSegment};
use diskvault_format::id::PackId;
use diskvault_format::limits::{PACK_BYTES_MAX, PACK_PADDING_BYTES, SEGMENT_ALIGNMENT_BYTES};
use diskvault_format::pack::{
    HEADER_BYTES, PackIdentity, PackKind, PackOpener, TRAILER_BYTES, Trailer, WRAP_BYTES,
    decode_header, decode_trailer,
};
use diskvault_format::segment::{
    EntryKind, EntryShape, FRAME_BYTES, SEALED_SEGMENT_BYTES_MAX, SEALED_SEGMENT_BYTES_MIN,
    SegmentDecoder, read_frame, write_frame,
};
use std::ops::Range;

/// How far before the end a footer is looked for when the trailer does not say where it is: one
/// of the default size has 60 KiB.
const FOOTER_SEARCH_BYTES: usize = 4 << 20;
/// The longest zero padding behind a segment whose own length is not known.
const ALIGNMENT: usize = SEGMENT_ALIGNMENT_BYTES as usize;

/// Reads a whole pack, giving up only the sectors that cannot be read.
///
/// # Errors
/// `NotFound`; `Damage` for one that is longer than any pack, or if nothing of it can be read;
/// what else the storage says.
pub fn load(storage: &dyn Storage, name: &ObjectName) -> Result<Sectors> {
    let absent = || Error::new(ErrorKind::NotFound, format!("cannot read {name}: it is gone"));
    let bytes = storage.size(name)?.ok_or_else(absent)?;
    if bytes > PACK_BYTES_MAX {
        let text = format!("cannot read {name}: it has {bytes} bytes, more than any pack");
        return Err(Error::new(ErrorKind::Damage, text));
    }
    read_sectors(storage, name, bytes, bytes.saturating_sub(1))
}

/// An entry of a segment that could be read.
pub struct SavedEntry {
    /// Its id; none for a splice of a pack without a footer, whose chunk has to be put together
    /// first.
    pub id: Option<[u8; 32]>,
    /// What it is.
    pub kind: EntryKind,
    /// Where it lies in the segment's bytes.
    pub place: Range<usize>,
}

/// A segment that could be read.
pub struct SavedSegment<'a> {
    /// Its number in the pack.
    pub ordinal: u32,
    /// Those of its entries that are what their id says.
    pub entries: Vec<SavedEntry>,
    /// Its bytes.
    pub data: &'a [u8],
}

/// How much of a pack could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Segments that could be read.
    pub readable: u32,
    /// Segments there are; of a pack without a footer, those that are known to have been.
    pub segments: u32,
}

/// A damaged pack and all that helps to read it.
pub struct Remains<'a> {
    keys: &'a Keys,
    bytes: Vec<u8>,
    /// The keys of its ends; the same twice if both are whole.
    ends: Vec<End>,
    footer: Option<Footer>,
    /// Where the segments end.
    end: usize,
}

struct End {
    opener: PackOpener,
    identity: PackIdentity,
    wrap: [u8; WRAP_BYTES],
}

impl<'a> Remains<'a> {
    /// Looks at a pack in its place.
    ///
    /// # Errors
    /// As [`load`].
    pub fn of_pack(storage: &dyn Storage, keys: &'a Keys, id: PackId) -> Result<Remains<'a>> {
        Ok(Remains::of_bytes(keys, load(storage, &pack_name(id)?)?.bytes))
    }

    /// Looks at the bytes of what was a pack.
    pub fn of_bytes(keys: &'a Keys, bytes: Vec<u8>) -> Remains<'a> {
        let mut ends = Vec::new();
        let mut add = |identity: PackIdentity, wrap: [u8; WRAP_BYTES]| {
            if let Ok(opener) = PackOpener::new(keys, &identity, &wrap) {
                ends.push(End { opener, identity, wrap });
            }
        };
        let trailer = decode_trailer(&bytes, bytes.len() as u64);
        if let Ok(trailer) = &trailer {
            add(trailer.identity, trailer.wrap);
        }
        if let Ok(header) = decode_header(&bytes) {
            add(header.identity, header.wrap);
        }
        let mut remains = Remains { keys, end: bytes.len(), bytes, ends, footer: None };
        if let Ok(trailer) = trailer {
            remains.try_footer(trailer.footer_offset, trailer.footer_bytes);
        }
        remains.search_footer();
        remains
    }

    /// What kind of pack it was, if one of its ends tells.
    pub fn kind(&self) -> Option<PackKind> {
        self.ends.first().map(|end| end.identity.kind)
    }

    /// What it held, if its footer can be read.
    pub fn footer(&self) -> Option<&Footer> {
        self.footer.as_ref()
    }

    fn try_footer(&mut self, offset: u32, bytes: u32) -> bool {
        let start = offset as usize;
        let Some(sealed) = self.bytes.get(start..start.saturating_add(bytes as usize)) else {
            return false;
        };
        for end in &self.ends {
            let End { identity, wrap, .. } = end;
            let trailer = Trailer {
                identity: *identity,
                footer_offset: offset,
                footer_bytes: bytes,
                wrap: *wrap,
            };
            if let Ok(footer) = end.opener.open_footer(self.keys, &trailer, &mut sealed.to_vec()) {
                self.end = start;
                self.footer = Some(footer);
                return true;
            }
        }
        false
    }

    /// Looks for a footer whose place nobody tells: it starts on the padding, and ends before the
    /// trailer.
    fn search_footer(&mut self) {
        let Some(end) = self.bytes.len().checked_sub(TRAILER_BYTES) else { return };
        let step = PACK_PADDING_BYTES as usize;
        let mut start = end / step * step;
        while self.footer.is_none() && start > 0 && end - start <= FOOTER_SEARCH_BYTES {
            if self.try_footer(start as u32, (end - start) as u32) {
                return;
            }
            start -= step;
        }
    }

    /// Hands out every segment that can be read, in order.
    ///
    /// # Errors
    /// What `each` says.
    pub fn read(&self, each: &mut dyn FnMut(SavedSegment<'_>) -> Result<()>) -> Result<Extent> {
        let cannot = |cause| super::objects::refused("a segment", cause);
        let mut decoder = SegmentDecoder::new().map_err(cannot)?;
        let mut data = Vec::new();
        let mut extent = Extent { readable: 0, segments: 0 };
        match &self.footer {
            Some(footer) => {
                extent.segments = footer.segments.len() as u32;
                for (ordinal, segment) in (0..).zip(&footer.segments) {
                    let place = segment.offset as usize
                        ..segment.offset as usize + segment.stored_bytes() as usize;
                    let table = self.open(ordinal, place, &mut decoder, &mut data);
                    let Some(table) = table.filter(|table| segment.verify_table(table).is_ok())
                    else {
                        continue;
                    };
                    let entries = self.entries(&table, Some(segment), &data);
                    extent.readable += 1;
                    each(SavedSegment { ordinal, entries, data: &data })?;
                }
            }
            None => {
                for (ordinal, place) in self.find_segments(&mut decoder, &mut data) {
                    extent.segments = extent.segments.max(ordinal + 1);
                    if let Some(table) = self.open(ordinal, place, &mut decoder, &mut data) {
                        let entries = self.entries(&table, None, &data);
                        extent.readable += 1;
                        each(SavedSegment { ordinal, entries, data: &data })?;
                    }
                }
            }
        }
        Ok(extent)
    }

    /// Opens what lies at a place as segment `ordinal`. The clear frame before it is made anew: it
    /// says nothing that is not known.
    fn open(
        &self,
        ordinal: u32,
        place: Range<usize>,
        decoder: &mut SegmentDecoder,
        data: &mut Vec<u8>,
    ) -> Option<Vec<EntryShape>> {
        let sealed = self.bytes.get(place)?.get(FRAME_BYTES..)?;
        self.ends.iter().find_map(|end| {
            let mut stored = Vec::with_capacity(FRAME_BYTES + sealed.len());
            write_frame(ordinal, sealed.len() as u32, &mut stored);
            stored.extend_from_slice(sealed);
            let plaintext = end.opener.open_segment(ordinal, &mut stored).ok()?;
            decoder.decode(plaintext, data).ok()
        })
    }

    /// The entries that are what their id says.
    fn entries(
        &self,
        table: &[EntryShape],
        segment: Option<&FooterSegment>,
        data: &[u8],
    ) -> Vec<SavedEntry> {
        let mut start = 0;
        let mut entries = Vec::new();
        for (slot, shape) in table.iter().enumerate() {
            let place = start..start + shape.bytes as usize;
            start = place.end;
            let content = &data[place.clone()];
            let named = segment.and_then(|segment| segment.entries.get(slot)).map(|entry| entry.id);
            let computed = match shape.kind {
                EntryKind::Chunk => Some(self.keys.chunk_id(content).0),
                EntryKind::Page => Some(self.keys.page_id(content).0),
                EntryKind::Splice => named,
            };
            if named.is_none() || named == computed {
                entries.push(SavedEntry { id: computed, kind: shape.kind, place });
            }
        }
        entries
    }

    /// Where segments are in a pack without a footer, ascending: those whose frame is whole, and
    /// single ones between them whose frame is not.
    fn find_segments(
        &self,
        decoder: &mut SegmentDecoder,
        data: &mut Vec<u8>,
    ) -> Vec<(u32, Range<usize>)> {
        let mut found: Vec<(u32, Range<usize>)> = Vec::new();
        let mut at = HEADER_BYTES;
        while at + FRAME_BYTES <= self.bytes.len() {
            let framed = read_frame(&self.bytes[at..at + FRAME_BYTES]).ok().and_then(|frame| {
                let (ordinal, bytes) = frame;
                let possible = SEALED_SEGMENT_BYTES_MIN..=SEALED_SEGMENT_BYTES_MAX;
                let place = at..at + FRAME_BYTES + bytes as usize;
                let opens = possible.contains(&bytes)
                    && self.open(ordinal, place.clone(), decoder, data).is_some();
                opens.then_some((ordinal, place))
            });
            at = match framed {
                Some((ordinal, place)) => {
                    self.fill_gap(ordinal, place.start, &mut found, decoder, data);
                    let end = place.end.next_multiple_of(ALIGNMENT);
                    found.push((ordinal, place));
                    end
                }
                None => at + ALIGNMENT,
            };
        }
        found
    }

    /// Tries the one segment that is missing before segment `next`, which starts at `end`: where it
    /// starts is known, and its length but for the padding.
    fn fill_gap(
        &self,
        next: u32,
        end: usize,
        found: &mut Vec<(u32, Range<usize>)>,
        decoder: &mut SegmentDecoder,
        data: &mut Vec<u8>,
    ) {
        let (ordinal, start) = match found.last() {
            Some((last, place)) => (last + 1, place.end.next_multiple_of(ALIGNMENT)),
            None => (0, HEADER_BYTES),
        };
        if ordinal + 1 != next {
            return;
        }
        for padding in 0..ALIGNMENT {
            let place = start..end - padding;
            if place.len() >= FRAME_BYTES + SEALED_SEGMENT_BYTES_MIN as usize
                && self.open(ordinal, place.clone(), decoder, data).is_some()
            {
                found.push((ordinal, place));
                return;
            }
        }
    }
}

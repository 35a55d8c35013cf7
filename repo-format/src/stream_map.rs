//! Stream maps (spec/34-stream-map.md): trees over content-defined chunks.
//!
//! Entries have lengths and no positions, so an insertion moves nothing behind it. Pages are cut
//! where an id says so, hence two streams share the pages of what they have in common.
//!
//! ```text
//! leaf    0  1  page kind 3           inner   0  1  page kind 4
//!         1  1  level 0                       1  1  level, from 1
//!         2  2  number of entries             2  2  number of entries
//!         4  41*n  entries                    4  40*n  entries
//! entry   0  1  0 zeros, 1 chunk      entry   0  8  bytes of the subtree
//!         1  8  bytes                         8  32 page id
//!         9  32 chunk id, or zeros
//! ```
//!
//! A page is closed after 128 entries, or after an entry (not the first seven of the page) whose
//! id's last byte has its low five bits zero; zero entries close no page. Two neighbouring zero
//! entries are one. A stream of zero bytes has no page.

use crate::crypto::Keys;
use crate::cursor::Cursor;
use crate::error::{Result, limit, malformed};
use crate::id::{ChunkId, PageId};
use crate::limits::{CHUNK_BYTES_MAX, DISK_BYTES_MAX, STREAM_DEPTH_MAX, STREAM_PAGE_ENTRIES_MAX};
use crate::map::PageSink;

const LEAF_KIND: u8 = 3;
const INNER_KIND: u8 = 4;
/// A page holds at least this many entries before an id may close it.
const ENTRIES_MIN: usize = 8;

/// One entry of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEntry {
    /// A run of zeros of this many bytes.
    Zeros(u64),
    /// A chunk.
    Chunk {
        /// Its length, 1 byte to 4 MiB.
        bytes: u32,
        /// Its id.
        id: ChunkId,
    },
}

impl StreamEntry {
    /// Length in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            StreamEntry::Zeros(bytes) => bytes,
            StreamEntry::Chunk { bytes, .. } => u64::from(bytes),
        }
    }
}

/// A page of a stream map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamPage {
    /// Level 0.
    Leaf(Vec<StreamEntry>),
    /// Levels above: bytes and id of each page below.
    Inner(u8, Vec<(u64, PageId)>),
}

impl StreamPage {
    /// Encodes the page.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, level, count) = match self {
            StreamPage::Leaf(entries) => (LEAF_KIND, 0, entries.len()),
            StreamPage::Inner(level, entries) => (INNER_KIND, *level, entries.len()),
        };
        let mut bytes = vec![kind, level];
        bytes.extend_from_slice(&(count as u16).to_le_bytes());
        match self {
            StreamPage::Leaf(entries) => {
                for entry in entries {
                    let (kind, id) = match entry {
                        StreamEntry::Zeros(_) => (0, [0; 32]),
                        StreamEntry::Chunk { id, .. } => (1, id.0),
                    };
                    bytes.push(kind);
                    bytes.extend_from_slice(&entry.bytes().to_le_bytes());
                    bytes.extend_from_slice(&id);
                }
            }
            StreamPage::Inner(_, entries) => {
                for (length, id) in entries {
                    bytes.extend_from_slice(&length.to_le_bytes());
                    bytes.extend_from_slice(&id.0);
                }
            }
        }
        bytes
    }

    /// Decodes an authenticated page that must cover exactly `bytes_expected` bytes.
    ///
    /// # Errors
    /// T-1 kind, level or length, T-2 number of entries, T-3 an entry, T-4 a sum that is not
    /// what the parent says, T-5 two zero entries side by side.
    pub fn decode(bytes: &[u8], bytes_expected: u64) -> Result<StreamPage> {
        let mut cursor = Cursor::new(bytes, "T-1");
        let kind = cursor.u8()?;
        let level = cursor.u8()?;
        let count = usize::from(cursor.u16()?);
        if count == 0 || count > STREAM_PAGE_ENTRIES_MAX {
            let most = STREAM_PAGE_ENTRIES_MAX as u64;
            return Err(limit("T-2", "the number of entries", most, count as u64));
        }
        let page = match (kind, level) {
            (LEAF_KIND, 0) => StreamPage::Leaf(decode_leaf(&mut cursor, count)?),
            (INNER_KIND, 1..=STREAM_DEPTH_MAX) => {
                StreamPage::Inner(level, decode_inner(&mut cursor, count)?)
            }
            _ => return Err(malformed("T-1", "is no stream map page of a known kind and level")),
        };
        cursor.finish()?;
        let total = page.checked_total_bytes();
        if total != Some(bytes_expected) {
            let found = total.unwrap_or(u64::MAX);
            let detail = format!("covers another length: expected {bytes_expected}, found {found}");
            return Err(malformed("T-4", detail));
        }
        Ok(page)
    }

    /// `None` if the sum does not fit: 128 entries of up to 2^60 bytes can exceed 64 bits.
    fn checked_total_bytes(&self) -> Option<u64> {
        let add = |sum: u64, bytes: u64| sum.checked_add(bytes);
        match self {
            StreamPage::Leaf(entries) => {
                entries.iter().try_fold(0, |sum, entry| add(sum, entry.bytes()))
            }
            StreamPage::Inner(_, entries) => {
                entries.iter().try_fold(0, |sum, entry| add(sum, entry.0))
            }
        }
    }

    fn total_bytes(&self) -> u64 {
        match self {
            StreamPage::Leaf(entries) => entries.iter().map(|entry| entry.bytes()).sum(),
            StreamPage::Inner(_, entries) => entries.iter().map(|entry| entry.0).sum(),
        }
    }
}

fn decode_leaf(cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<StreamEntry>> {
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let kind = cursor.u8()?;
        let bytes = cursor.u64()?;
        let id = cursor.array::<32>()?;
        let entry = match kind {
            0 if id == [0; 32] && (1..=DISK_BYTES_MAX).contains(&bytes) => {
                StreamEntry::Zeros(bytes)
            }
            1 if (1..=u64::from(CHUNK_BYTES_MAX)).contains(&bytes) => {
                StreamEntry::Chunk { bytes: bytes as u32, id: ChunkId(id) }
            }
            _ => {
                return Err(malformed(
                    "T-3",
                    format!("has an entry of kind {kind}, {bytes} bytes"),
                ));
            }
        };
        let zeros = matches!(entry, StreamEntry::Zeros(_));
        if zeros && matches!(entries.last(), Some(StreamEntry::Zeros(_))) {
            return Err(malformed("T-5", "has two runs of zeros side by side"));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn decode_inner(cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<(u64, PageId)>> {
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let bytes = cursor.u64()?;
        if bytes == 0 || bytes > DISK_BYTES_MAX {
            return Err(malformed("T-3", format!("has a subtree of {bytes} bytes")));
        }
        entries.push((bytes, PageId(cursor.array()?)));
    }
    Ok(entries)
}

fn closes(count: usize, id: Option<&[u8; 32]>) -> bool {
    count >= STREAM_PAGE_ENTRIES_MAX
        || (count >= ENTRIES_MIN && id.is_some_and(|id| id[31] & 0x1f == 0))
}

/// Builds a stream map from its entries in order.
#[derive(Default)]
pub struct StreamMapBuilder {
    leaf: Vec<StreamEntry>,
    inner: Vec<Vec<(u64, PageId)>>,
    zeros: u64,
    size: u64,
}

impl StreamMapBuilder {
    /// Starts a map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes pushed so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds the next piece of the stream; pieces of no bytes are ignored.
    ///
    /// # Errors
    /// Only those of `sink`.
    pub fn push<E>(
        &mut self,
        keys: &Keys,
        entry: StreamEntry,
        sink: &mut PageSink<'_, E>,
    ) -> std::result::Result<(), E> {
        self.size += entry.bytes();
        if let StreamEntry::Zeros(bytes) = entry {
            self.zeros += bytes;
            return Ok(());
        }
        self.push_zeros(keys, sink)?;
        if entry.bytes() > 0 {
            self.push_entry(keys, entry, sink)?;
        }
        Ok(())
    }

    fn push_zeros<E>(
        &mut self,
        keys: &Keys,
        sink: &mut PageSink<'_, E>,
    ) -> std::result::Result<(), E> {
        match std::mem::take(&mut self.zeros) {
            0 => Ok(()),
            bytes => self.push_entry(keys, StreamEntry::Zeros(bytes), sink),
        }
    }

    fn push_entry<E>(
        &mut self,
        keys: &Keys,
        entry: StreamEntry,
        sink: &mut PageSink<'_, E>,
    ) -> std::result::Result<(), E> {
        self.leaf.push(entry);
        let id = match &entry {
            StreamEntry::Chunk { id, .. } => Some(&id.0),
            StreamEntry::Zeros(_) => None,
        };
        if closes(self.leaf.len(), id) {
            self.close_leaf(keys, sink)?;
        }
        Ok(())
    }

    fn close_leaf<E>(
        &mut self,
        keys: &Keys,
        sink: &mut PageSink<'_, E>,
    ) -> std::result::Result<(), E> {
        if self.leaf.is_empty() {
            return Ok(());
        }
        let page = StreamPage::Leaf(std::mem::take(&mut self.leaf));
        let child = emit(keys, &page, sink)?;
        self.add(keys, 0, child, sink)
    }

    fn add<E>(
        &mut self,
        keys: &Keys,
        level: usize,
        child: (u64, PageId),
        sink: &mut PageSink<'_, E>,
    ) -> std::result::Result<(), E> {
        if self.inner.len() == level {
            self.inner.push(Vec::new());
        }
        self.inner[level].push(child);
        if closes(self.inner[level].len(), Some(&child.1.0)) {
            self.close_inner(keys, level, sink)?;
        }
        Ok(())
    }

    fn close_inner<E>(
        &mut self,
        keys: &Keys,
        level: usize,
        sink: &mut PageSink<'_, E>,
    ) -> std::result::Result<(), E> {
        let entries = std::mem::take(&mut self.inner[level]);
        if entries.is_empty() {
            return Ok(());
        }
        let child = emit(keys, &StreamPage::Inner(level as u8 + 1, entries), sink)?;
        self.add(keys, level + 1, child, sink)
    }

    /// Emits what is open and returns the top page: the only page of the lowest level that has
    /// just one. `None` for an empty stream.
    ///
    /// # Errors
    /// Only those of `sink`.
    pub fn finish<E>(
        mut self,
        keys: &Keys,
        sink: &mut PageSink<'_, E>,
    ) -> std::result::Result<Option<PageId>, E> {
        self.push_zeros(keys, sink)?;
        self.close_leaf(keys, sink)?;
        let mut level = 0;
        loop {
            let last = level + 1 == self.inner.len();
            match self.inner.get(level).map(Vec::as_slice) {
                None => return Ok(None),
                Some([only]) if last => return Ok(Some(only.1)),
                Some(_) => self.close_inner(keys, level, sink)?,
            }
            level += 1;
        }
    }
}

fn emit<E>(
    keys: &Keys,
    page: &StreamPage,
    sink: &mut PageSink<'_, E>,
) -> std::result::Result<(u64, PageId), E> {
    let bytes = page.encode();
    let id = keys.page_id(&bytes);
    sink(id, bytes)?;
    Ok((page.total_bytes(), id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Secret;
    use crate::id::RepositoryId;
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    type Pages = BTreeMap<PageId, Vec<u8>>;

    fn build(keys: &Keys, entries: &[StreamEntry]) -> (Option<PageId>, Pages, u64) {
        let mut pages = Pages::new();
        let mut sink = |id: PageId, bytes: Vec<u8>| -> std::result::Result<(), Infallible> {
            pages.insert(id, bytes);
            Ok(())
        };
        let mut builder = StreamMapBuilder::new();
        for entry in entries {
            builder.push(keys, *entry, &mut sink).unwrap();
        }
        let size = builder.size();
        let top = builder.finish(keys, &mut sink).unwrap();
        (top, pages, size)
    }

    fn read(pages: &Pages, page: PageId, bytes: u64, found: &mut Vec<StreamEntry>) {
        match StreamPage::decode(&pages[&page], bytes).unwrap() {
            StreamPage::Leaf(entries) => found.extend(entries),
            StreamPage::Inner(_, entries) => {
                for (bytes, child) in entries {
                    read(pages, child, bytes, found);
                }
            }
        }
    }

    fn entries(count: u32) -> Vec<StreamEntry> {
        let mut random = blake3::Hasher::new().finalize_xof();
        let mut next = || {
            let mut id = [0; 32];
            random.fill(&mut id);
            let bytes = 1 + u32::from(id[0]) * 100;
            StreamEntry::Chunk { bytes, id: ChunkId(id) }
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn comes_back_at_every_height() {
        let keys = Keys::derive(&Secret::new([1; 32]), RepositoryId([2; 16]));
        assert_eq!(build(&keys, &[]).0, None);
        for count in [1, 7, 8, 9, 127, 129, 5000] {
            let entries = entries(count);
            let (top, pages, size) = build(&keys, &entries);
            let mut found = Vec::new();
            read(&pages, top.unwrap(), size, &mut found);
            assert_eq!(found, entries, "{count}");
        }
    }

    #[test]
    fn an_insertion_leaves_most_pages_shared_and_zeros_merge() {
        let keys = Keys::derive(&Secret::new([1; 32]), RepositoryId([2; 16]));
        let mut list = entries(5000);
        let (_, before, _) = build(&keys, &list);
        let inserted = StreamEntry::Zeros(5);
        list.splice(2500..2500, [inserted, inserted]);
        let (top, after, size) = build(&keys, &list);
        let fresh = after.keys().filter(|page| !before.contains_key(page)).count();
        assert!(fresh < 12, "{fresh} of {} pages are new", after.len());
        let mut found = Vec::new();
        read(&after, top.unwrap(), size, &mut found);
        assert_eq!(found[2500], StreamEntry::Zeros(10));
    }
}

//! A disk's map as a row of pages and runs, opened only where somebody asks.
//!
//! Invariant: the items cover the disk once and in order; memory is the items of the pages on the
//! way from the top, some hundred for each level.

use super::map_reader::{MapReader, StreamPlace, stream_level};
use super::objects::refused;
use crate::error::{Error, ErrorKind, Result};
use diskvault_format::id::{ChunkId, PageId};
use diskvault_format::limits::{INNER_SLOTS, LEAF_SLOTS};
use diskvault_format::manifest::{DiskRecord, StreamReference};
use diskvault_format::map::{InnerSlot, LeafSlot, MapShape, map_root};
use diskvault_format::stream_map::{StreamEntry, StreamPage};

/// A page that was not opened yet.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Its id.
    pub id: PageId,
    /// First byte that it covers.
    pub start: u64,
    /// Bytes that it covers; of a map on a grid also what lies behind the disk's end.
    pub bytes: u64,
    kind: PageKind,
}

impl Page {
    /// True if both say the same of the same bytes. A page does not know its place, and on two
    /// grids one page may stand for bytes at two places.
    pub fn is_same(&self, other: &Page) -> bool {
        self.id == other.id && self.start == other.start && self.bytes == other.bytes
    }
}

#[derive(Clone, Copy, Debug)]
enum PageKind {
    /// On a grid: its level and number.
    Grid(u32, u64),
    /// Of a stream map.
    Stream(Option<u8>),
}

/// A chunk or zeros, or what is left of it.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// First byte that is left.
    pub start: u64,
    /// Byte behind its last.
    pub end: u64,
    /// The chunk and where it began; nothing for zeros.
    pub chunk: Option<(ChunkId, u64)>,
}

/// What a cursor stands on.
#[derive(Clone, Copy, Debug)]
pub enum Item {
    /// A page that was not opened.
    Page(Page),
    /// A chunk or zeros.
    Run(Run),
}

/// Stands on an item of a map.
pub struct Cursor<'a> {
    reader: &'a MapReader<'a>,
    shape: Option<MapShape>,
    size: u64,
    /// What comes, the next one last.
    items: Vec<Item>,
}

impl<'a> Cursor<'a> {
    /// On a disk that is not there.
    pub fn empty(reader: &'a MapReader<'a>) -> Cursor<'a> {
        Cursor { reader, shape: None, size: 0, items: Vec::new() }
    }

    /// At the beginning of a disk, whose map root is verified.
    ///
    /// # Errors
    /// `Damage` if the root does not fit.
    pub fn new(reader: &'a MapReader<'a>, disk: &DiskRecord) -> Result<Cursor<'a>> {
        let keys = reader.repository().keys();
        if map_root(keys, disk.size, &disk.chunking, disk.top) != disk.root {
            let name = disk.name.escape_debug();
            let text = format!("cannot use the map of {name}: its root does not fit (rule F-9)");
            return Err(Error::new(ErrorKind::Damage, text));
        }
        let size = disk.size;
        let shape = match disk.chunking.grid() {
            Some(chunk_bytes) => Some(
                MapShape::new(size, chunk_bytes)
                    .map_err(|cause| refused("the disk's map", cause))?,
            ),
            None => None,
        };
        let mut cursor = Cursor { reader, shape, size, items: Vec::new() };
        let first = match (disk.top, shape) {
            (None, _) => cursor.zeros(0, size),
            (Some(id), Some(shape)) => cursor.grid_page(id, shape, shape.depth().max(1) - 1, 0),
            (Some(id), None) => {
                Item::Page(Page { id, start: 0, bytes: size, kind: PageKind::Stream(None) })
            }
        };
        if size > 0 {
            cursor.items.push(first);
        }
        Ok(cursor)
    }

    /// At the beginning of a stream, whose map root is verified.
    ///
    /// # Errors
    /// `Damage` if the root does not fit.
    pub fn of_stream(reader: &'a MapReader<'a>, stream: &StreamReference) -> Result<Cursor<'a>> {
        reader.verify_stream_root(stream)?;
        let size = stream.bytes;
        let mut cursor = Cursor { reader, shape: None, size, items: Vec::new() };
        if size > 0 {
            let page = |id| Page { id, start: 0, bytes: size, kind: PageKind::Stream(None) };
            let first = stream.top.map(|id| Item::Page(page(id)));
            cursor.items.push(first.unwrap_or_else(|| cursor.zeros(0, size)));
        }
        Ok(cursor)
    }

    /// The first run that ends behind `start`, which lies before the end, cut there. The cursor stays
    /// on it; pages in front of it are passed over unread. Calls go on from where the last one was.
    ///
    /// # Errors
    /// As [`Cursor::descend`], and `Damage` for a map that does not reach so far.
    pub fn run_from(&mut self, start: u64) -> Result<Run> {
        while let Some(item) = self.peek() {
            match item {
                Item::Page(page) if page.start.saturating_add(page.bytes) <= start => self.skip(),
                Item::Page(_) => self.descend()?,
                Item::Run(run) if run.end <= start => self.skip(),
                Item::Run(run) => return Ok(Run { start: run.start.max(start), ..run }),
            }
        }
        let text = format!("cannot use a map: it ends before offset {start}");
        Err(Error::new(ErrorKind::Damage, text))
    }

    fn zeros(&self, start: u64, end: u64) -> Item {
        Item::Run(Run { start, end: end.min(self.size), chunk: None })
    }

    fn grid_page(&self, id: PageId, shape: MapShape, level: u32, number: u64) -> Item {
        let bytes = page_bytes(shape, level);
        let kind = PageKind::Grid(level, number);
        Item::Page(Page { id, start: number.saturating_mul(bytes), bytes, kind })
    }

    /// The item it stands on; nothing at the end.
    pub fn peek(&self) -> Option<Item> {
        self.items.last().copied()
    }

    /// Passes the item over.
    pub fn skip(&mut self) {
        self.items.pop();
    }

    /// Passes a run over up to `end`, and no more of it than there is.
    pub fn advance(&mut self, end: u64) {
        if let Some(Item::Run(run)) = self.items.last_mut() {
            run.start = end;
            if run.start >= run.end {
                self.items.pop();
            }
        }
    }

    /// Opens the page it stands on, and then stands on the first item of it.
    ///
    /// # Errors
    /// `Damage` for a page that cannot be read.
    pub fn descend(&mut self) -> Result<()> {
        let Some(Item::Page(page)) = self.items.last().copied() else { return Ok(()) };
        self.items.pop();
        let first = self.items.len();
        match (page.kind, self.shape) {
            (PageKind::Grid(0, number), Some(shape)) => self.open_leaf(page, shape, number)?,
            (PageKind::Grid(level, number), Some(shape)) => {
                let inner = self.reader.decode_inner(page.id, shape, level, number)?;
                let below = page_bytes(shape, level - 1);
                for (slot, child) in inner.slots.iter().enumerate() {
                    let child_number = number * INNER_SLOTS as u64 + slot as u64;
                    let start = child_number.saturating_mul(below);
                    if start >= self.size {
                        break;
                    }
                    self.items.push(match child {
                        InnerSlot::Child { page, .. } => {
                            self.grid_page(*page, shape, level - 1, child_number)
                        }
                        InnerSlot::Absent => self.zeros(start, start.saturating_add(below)),
                    });
                }
            }
            (PageKind::Stream(level), _) => self.open_stream_page(page, level)?,
            (PageKind::Grid(..), None) => {}
        }
        self.items[first..].reverse();
        Ok(())
    }

    fn open_leaf(&mut self, page: Page, shape: MapShape, number: u64) -> Result<()> {
        let leaf = self.reader.decode_leaf(page.id, shape, number)?;
        for (slot, content) in leaf.slots.iter().enumerate() {
            let slot = number * LEAF_SLOTS as u64 + slot as u64;
            let start = slot * u64::from(shape.chunk_bytes());
            let end = start + u64::from(shape.bytes_in_slot(slot));
            if end <= start {
                break;
            }
            let chunk = match content {
                LeafSlot::Zero => None,
                LeafSlot::Chunk { id, .. } => Some((*id, start)),
            };
            self.items.push(Item::Run(Run { start, end, chunk }));
        }
        Ok(())
    }

    fn open_stream_page(&mut self, page: Page, level: Option<u8>) -> Result<()> {
        let place = StreamPlace { bytes: page.bytes, level };
        let opened = self.reader.decode_stream_page(page.id, place)?;
        let own_level = stream_level(&opened);
        let mut start = page.start;
        match opened {
            StreamPage::Leaf(entries) => {
                for entry in entries {
                    let end = start + entry.bytes();
                    let chunk = match entry {
                        StreamEntry::Chunk { id, .. } => Some((id, start)),
                        StreamEntry::Zeros(_) => None,
                    };
                    self.items.push(Item::Run(Run { start, end, chunk }));
                    start = end;
                }
            }
            StreamPage::Inner(_, entries) => {
                for (bytes, id) in entries {
                    let kind = PageKind::Stream(own_level.checked_sub(1));
                    self.items.push(Item::Page(Page { id, start, bytes, kind }));
                    start += bytes;
                }
            }
        }
        Ok(())
    }
}

/// Bytes of disk below a page of a map on a grid.
fn page_bytes(shape: MapShape, level: u32) -> u64 {
    let slots = MapShape::leaves_per_page(level).saturating_mul(LEAF_SLOTS as u64);
    slots.saturating_mul(u64::from(shape.chunk_bytes()))
}

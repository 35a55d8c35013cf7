//! Everything that a point needs: the pages of its maps and the chunks they name.
//!
//! Invariant: nothing is left out. What is below a page depends on its bytes alone, so a visitor
//! that was told that a page is done has seen all below it, wherever that was. A page that was told
//! and is not done has something below it that could not be read.

use super::map_reader::{MapReader, StreamPlace, stream_level};
use super::objects::refused;
use crate::error::{Error, ErrorKind, Result};
use diskvault_format::id::{ChunkId, PageId};
use diskvault_format::limits::INNER_SLOTS;
use diskvault_format::manifest::{DiskRecord, Manifest, StreamReference};
use diskvault_format::map::{InnerSlot, LeafSlot, MapShape, map_root};
use diskvault_format::stream_map::{StreamEntry, StreamPage};

/// Is told what a point needs.
pub trait Visitor {
    /// A page. False if what is below it need not be told.
    ///
    /// # Errors
    /// Ends the walk.
    fn page(&mut self, id: PageId) -> Result<bool>;

    /// A page of a disk's map on the grid, at its level: 0 is a leaf.
    ///
    /// # Errors
    /// Ends the walk.
    fn page_of_grid(&mut self, id: PageId, _level: u32) -> Result<bool> {
        self.page(id)
    }

    /// A page of which all below has been told, or was not to be.
    ///
    /// # Errors
    /// Ends the walk.
    fn page_done(&mut self, _id: PageId) -> Result<()> {
        Ok(())
    }

    /// A chunk; one that is named several times is told as often.
    ///
    /// # Errors
    /// Ends the walk.
    fn chunk(&mut self, id: ChunkId) -> Result<()>;
}

/// Tells `visitor` every page and chunk that a manifest needs.
///
/// # Errors
/// `Damage` for a map that cannot be read in full, or what the visitor says.
pub fn visit(reader: &MapReader<'_>, manifest: &Manifest, visitor: &mut dyn Visitor) -> Result<()> {
    let mut walk = Walk { reader, visitor };
    for disk in &manifest.disks {
        walk.disk(disk)?;
    }
    for stream in &manifest.streams {
        walk.stream(&stream.content)?;
    }
    Ok(())
}

struct Walk<'a, 'v> {
    reader: &'a MapReader<'a>,
    visitor: &'v mut dyn Visitor,
}

impl Walk<'_, '_> {
    fn disk(&mut self, disk: &DiskRecord) -> Result<()> {
        if let Some(allocation) = &disk.allocation {
            self.stream(allocation)?;
        }
        let keys = self.reader.repository().keys();
        if map_root(keys, disk.size, &disk.chunking, disk.top) != disk.root {
            let name = disk.name.escape_debug();
            let text = format!("cannot use the map of {name}: its root does not fit (rule F-9)");
            return Err(Error::new(ErrorKind::Damage, text));
        }
        let Some(top) = disk.top else { return Ok(()) };
        let Some(chunk_bytes) = disk.chunking.grid() else {
            return self.stream_page(top, StreamPlace { bytes: disk.size, level: None });
        };
        let shape = MapShape::new(disk.size, chunk_bytes)
            .map_err(|cause| refused("the disk's map", cause))?;
        match shape.depth() {
            0 => Ok(()),
            depth => self.disk_page(shape, top, depth - 1, 0),
        }
    }

    /// Depth is at most 7, so recursion is bounded.
    fn disk_page(&mut self, shape: MapShape, id: PageId, level: u32, number: u64) -> Result<()> {
        if !self.visitor.page_of_grid(id, level)? {
            return Ok(());
        }
        if level == 0 {
            let leaf = self.reader.decode_leaf(id, shape, number)?;
            for slot in &leaf.slots {
                if let LeafSlot::Chunk { id, .. } = slot {
                    self.visitor.chunk(*id)?;
                }
            }
            return self.visitor.page_done(id);
        }
        let inner = self.reader.decode_inner(id, shape, level, number)?;
        for (slot, child) in inner.slots.iter().enumerate() {
            if let InnerSlot::Child { page, .. } = child {
                let below = number * INNER_SLOTS as u64 + slot as u64;
                self.disk_page(shape, *page, level - 1, below)?;
            }
        }
        self.visitor.page_done(id)
    }

    fn stream(&mut self, stream: &StreamReference) -> Result<()> {
        self.reader.verify_stream_root(stream)?;
        match stream.top {
            Some(top) => self.stream_page(top, StreamPlace { bytes: stream.bytes, level: None }),
            None => Ok(()),
        }
    }

    /// Levels only go down, from at most 20 (T-1), so recursion is bounded.
    fn stream_page(&mut self, id: PageId, place: StreamPlace) -> Result<()> {
        if !self.visitor.page(id)? {
            return Ok(());
        }
        let page = self.reader.decode_stream_page(id, place)?;
        let level = stream_level(&page);
        match page {
            StreamPage::Leaf(entries) => {
                for entry in entries {
                    if let StreamEntry::Chunk { id, .. } = entry {
                        self.visitor.chunk(id)?;
                    }
                }
            }
            StreamPage::Inner(_, entries) => {
                for (bytes, child) in entries {
                    self.stream_page(child, StreamPlace { bytes, level: Some(level - 1) })?;
                }
            }
        }
        self.visitor.page_done(id)
    }
}

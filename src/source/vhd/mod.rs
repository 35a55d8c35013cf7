//! VHD images: the guest's view of a fixed, dynamic or differencing one
//! (Microsoft, Virtual Hard Disk Image Format Specification, version 1.0).
//!
//! Invariants: nothing is read that no image of the chain allocates; what a table says is checked
//! against the file before it is followed; memory is bounded whatever the image says.

mod header;
mod locator;

pub use header::{COOKIE, Header, Parent, ends_as_vhd};
pub(super) use locator::from_windows;

use super::DiskSource;
use super::layer::{Layer, Layered, Place, bit_run};
use super::pieces::Pieces;
use crate::error::{Error, Result};
use header::{Blocks, SECTOR_BYTES, bad};
use std::sync::Arc;

/// Bytes of the table of blocks that are read at once.
const PIECE_BYTES: u64 = 64 << 10;
const ENTRY_BYTES: u64 = 4;
/// The entry of a block that is nowhere.
const ABSENT: u32 = u32::MAX;

/// One VHD image.
struct Vhd {
    file: Box<dyn DiskSource>,
    /// What shows through where nothing is written.
    below: Option<Box<dyn DiskSource>>,
    size: u64,
    /// Nothing for a fixed image: its disk is the start of the file.
    blocks: Option<Blocks>,
    /// Pieces of the table of blocks.
    tables: Pieces,
    /// The bitmaps of blocks.
    bitmaps: Pieces,
}

/// The guest's view of a VHD image over its parent, if it has one.
pub fn open_view(
    file: Box<dyn DiskSource>,
    header: &Header,
    below: Option<Box<dyn DiskSource>>,
) -> Box<dyn DiskSource> {
    let (size, blocks) = (header.size, header.blocks);
    let (tables, bitmaps) = (Pieces::default(), Pieces::default());
    Box::new(Layered(Vhd { file, below, size, blocks, tables, bitmaps }))
}

/// Bit 7 of the first byte is for the first sector.
fn high_bit_first(bits: &[u8], number: u64) -> bool {
    bits[(number / 8) as usize] >> (7 - number % 8) & 1 == 1
}

impl Vhd {
    /// The piece of the table with the entry of `block`; the number of its first block.
    fn table(&self, blocks: &Blocks, block: u64) -> Result<(u64, Arc<Vec<u8>>)> {
        let per_piece = PIECE_BYTES / ENTRY_BYTES;
        let first = block / per_piece * per_piece;
        let bytes = (blocks.count - first).min(per_piece) * ENTRY_BYTES;
        let at = blocks.table_at + first * ENTRY_BYTES;
        let read = || header::read(self.file(), at, bytes as usize, "the table of blocks");
        Ok((first, self.tables.get(at, read)?))
    }

    fn locate_block(&self, blocks: &Blocks, at: u64, end: u64) -> Result<(Place, u64)> {
        let number = at / blocks.bytes;
        let (first, table) = self.table(blocks, number)?;
        let entry = |block: u64| {
            let index = ((block - first) * ENTRY_BYTES) as usize;
            table.get(index..index + 4).map(|bytes| header::u32_at(bytes, 0))
        };
        let start = number * blocks.bytes;
        let place = entry(number).unwrap_or(ABSENT);
        if place == ABSENT {
            let mut next = number + 1;
            while next * blocks.bytes < end && entry(next) == Some(ABSENT) {
                next += 1;
            }
            return Ok((Place::Below, end.min(next * blocks.bytes)));
        }
        let bitmap_at = u64::from(place) * SECTOR_BYTES;
        let bitmap_bytes = (blocks.bytes / SECTOR_BYTES).div_ceil(8);
        let data_at = bitmap_at + bitmap_bytes.next_multiple_of(SECTOR_BYTES);
        let on_disk = blocks.bytes.min(self.size - start);
        if data_at + on_disk > self.file.size() {
            let text = format!("block {number} at {bitmap_at} lies beyond the end of the file");
            return Err(self.bad(text));
        }
        let read = || header::read(self.file(), bitmap_at, bitmap_bytes as usize, "a bitmap");
        let bitmap = self.bitmaps.get(bitmap_at, read)?;
        let within = at - start;
        let to = (end - start).min(on_disk).div_ceil(SECTOR_BYTES);
        let (is_here, stop) = bit_run(&bitmap, within / SECTOR_BYTES, to, high_bit_first);
        let place = if is_here { Place::Host(data_at + within) } else { Place::Below };
        Ok((place, end.min(start + stop * SECTOR_BYTES)))
    }
}

impl Layer for Vhd {
    const FORMAT: &'static str = "vhd";

    fn size(&self) -> u64 {
        self.size
    }

    fn file(&self) -> &dyn DiskSource {
        self.file.as_ref()
    }

    fn below(&self) -> Option<&dyn DiskSource> {
        self.below.as_deref()
    }

    fn knows_allocation(&self) -> bool {
        self.blocks.is_some() || self.file.allocation_known()
    }

    fn locate(&self, at: u64, end: u64) -> Result<(Place, u64)> {
        match &self.blocks {
            Some(blocks) => self.locate_block(blocks, at, end),
            None => Ok((Place::Through(at), end)),
        }
    }

    fn read_host(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_at(at, buffer)
    }

    fn bad(&self, text: String) -> Error {
        bad(self.file(), text)
    }
}

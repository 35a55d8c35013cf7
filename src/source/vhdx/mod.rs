//! VHDX images: the guest's view of a fixed, dynamic or differencing one (MS-VHDX).
//!
//! Invariants: nothing is read that no image of the chain allocates; what a table says is checked
//! against the file before it is followed; memory is bounded whatever the image says.

mod header;
mod log;
mod metadata;

pub use header::SIGNATURE;
pub use metadata::Parent;

use super::DiskSource;
use super::layer::{Layer, Layered, Place, bit_run};
use super::pieces::Pieces;
use crate::error::{Error, Result};
use header::{Header, Id, MIB, Regions, u64_at};
use log::Replayed;
use metadata::Metadata;
use std::fmt::Display;
use std::sync::Arc;

/// Bytes of the table of blocks that are read at once.
const PIECE_BYTES: u64 = 64 << 10;
const ENTRY_BYTES: u64 = 8;
/// Bits of a sector bitmap, which is always one MiB.
const BITMAP_BITS: u64 = 8 * MIB;
/// The bits of an entry that are a place in the file, in bytes.
const OFFSET_MASK: u64 = !(MIB - 1);
const STATE_MASK: u64 = 7;

const NOT_PRESENT: u64 = 0;
const UNDEFINED: u64 = 1;
const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
/// What version 0.95 of the format had for unmapped.
const UNMAPPED_OLD: u64 = 5;
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;

/// A VHDX image whose structures have been read.
pub struct Image {
    file: Replayed,
    metadata: Metadata,
    data_write_id: Id,
    /// Where the table of blocks is, and its entries that the disk needs.
    table: (u64, u64),
}

impl Image {
    /// Reads headers, log, region tables and metadata of a file.
    ///
    /// # Errors
    /// `Source` for what is no such image, or one that cannot be read.
    pub fn read(file: Box<dyn DiskSource>) -> Result<Image> {
        let header = Header::read(file.as_ref())?;
        let file = Replayed::new(file, &header)?;
        let regions = Regions::read(&file)?;
        let metadata = Metadata::read(&file, regions.metadata)?;
        let blocks = metadata.size.div_ceil(metadata.block_bytes);
        let ratio = blocks_per_bitmap(&metadata);
        let entries = match &metadata.parent {
            Some(_) => blocks.div_ceil(ratio) * (ratio + 1),
            None => blocks + blocks.saturating_sub(1) / ratio,
        };
        let (at, bytes) = regions.blocks;
        if entries * ENTRY_BYTES > bytes {
            let (size, entries) = (metadata.size, bytes / ENTRY_BYTES);
            let text = format!("its table of {entries} blocks is for another size than {size}");
            return Err(file.bad(text));
        }
        let data_write_id = header.data_write_id;
        Ok(Image { file, metadata, data_write_id, table: (at, entries) })
    }

    /// What a differencing image says of its parent.
    pub fn parent(&self) -> Option<&Parent> {
        self.metadata.parent.as_ref()
    }

    /// Checks that `parent` is the parent of this image, with the data that it had.
    ///
    /// # Errors
    /// `Source` if its data have another id.
    pub fn check_parent(&self, parent: &Image) -> Result<()> {
        let ids = self.parent().map_or(&[][..], |parent| &parent.ids);
        if ids.contains(&parent.data_write_id) {
            return Ok(());
        }
        let expected: Vec<String> = ids.iter().map(Id::to_string).collect();
        let (expected, found) = (expected.join(" or "), parent.data_write_id);
        let parent = parent.file.file().describe();
        let text = format!("{parent} is not its parent: expected id {expected}, found {found}");
        Err(self.file.bad(text))
    }

    /// The guest's view over the parent, if there is one.
    pub fn open(self, below: Option<Box<dyn DiskSource>>) -> Box<dyn DiskSource> {
        let Image { file, metadata, table, .. } = self;
        let blocks_per_bitmap = blocks_per_bitmap(&metadata);
        let (tables, bitmaps) = (Pieces::default(), Pieces::default());
        Box::new(Layered(Vhdx { file, below, metadata, blocks_per_bitmap, table, tables, bitmaps }))
    }
}

const fn blocks_per_bitmap(metadata: &Metadata) -> u64 {
    BITMAP_BITS * metadata.sector_bytes / metadata.block_bytes
}

/// One VHDX image.
struct Vhdx {
    file: Replayed,
    /// What shows through where nothing is written.
    below: Option<Box<dyn DiskSource>>,
    metadata: Metadata,
    /// Blocks whose sectors one sector bitmap is for; their entries stand in front of its own.
    blocks_per_bitmap: u64,
    /// Where the table of blocks is, and its entries that the disk needs.
    table: (u64, u64),
    /// Pieces of the table of blocks.
    tables: Pieces,
    /// Parts of sector bitmaps, each for a block.
    bitmaps: Pieces,
}

/// Bit 0 of the first byte is for the first sector.
fn low_bit_first(bits: &[u8], number: u64) -> bool {
    bits[(number / 8) as usize] >> (number % 8) & 1 == 1
}

impl Vhdx {
    /// The piece of the table with an entry; the index of its first one.
    fn piece(&self, index: u64) -> Result<(u64, Arc<Vec<u8>>)> {
        let (table_at, entries) = self.table;
        let per_piece = PIECE_BYTES / ENTRY_BYTES;
        let first = index / per_piece * per_piece;
        let bytes = (entries - first).min(per_piece) * ENTRY_BYTES;
        let at = table_at + first * ENTRY_BYTES;
        let read = || self.file.read(at, bytes as usize, "the table of blocks");
        Ok((first, self.tables.get(at, read)?))
    }

    const fn index(&self, block: u64) -> u64 {
        block + block / self.blocks_per_bitmap
    }

    /// Where the blocks from `block` on are no more in the state `is_same` knows, as far as one
    /// piece of the table tells.
    fn run_end(&self, block: u64, end: u64, is_same: impl Fn(u64) -> bool) -> Result<u64> {
        let (first, piece) = self.piece(self.index(block))?;
        let mut next = block + 1;
        while next * self.metadata.block_bytes < end {
            let at = ((self.index(next) - first) * ENTRY_BYTES) as usize;
            if !piece.get(at..at + 8).is_some_and(|entry| is_same(u64_at(entry, 0) & STATE_MASK)) {
                break;
            }
            next += 1;
        }
        Ok(end.min(next * self.metadata.block_bytes))
    }

    fn entry(&self, index: u64) -> Result<u64> {
        let (first, piece) = self.piece(index)?;
        Ok(u64_at(&piece, ((index - first) * ENTRY_BYTES) as usize))
    }

    /// Checks that so many bytes of what an entry names are in the file, behind the headers.
    fn check_place(&self, entry: u64, bytes: u64, what: impl Display) -> Result<u64> {
        let at = entry & OFFSET_MASK;
        let is_there = at.checked_add(bytes).is_some_and(|end| end <= self.file.size());
        if at == 0 || !is_there {
            return Err(self.file.bad(format!("{what} at {at} is not within the file")));
        }
        Ok(at)
    }

    /// The run of sectors in a block of which only some are here.
    fn locate_sectors(&self, block: u64, host: u64, at: u64, end: u64) -> Result<(Place, u64)> {
        let Metadata { block_bytes, sector_bytes, .. } = self.metadata;
        let ratio = self.blocks_per_bitmap;
        let entry = self.entry(block / ratio * (ratio + 1) + ratio)?;
        if entry & STATE_MASK != FULLY_PRESENT {
            return Err(self.file.bad(format!("block {block} has no sector bitmap")));
        }
        let bitmap_at = self.check_place(entry, MIB, "a sector bitmap")?;
        let bytes = block_bytes / sector_bytes / 8;
        let part_at = bitmap_at + block % ratio * bytes;
        let read = || self.file.read(part_at, bytes as usize, "a sector bitmap");
        let bits = self.bitmaps.get(part_at, read)?;
        let start = block * block_bytes;
        let to = (end.min(start + block_bytes) - start).div_ceil(sector_bytes);
        let (is_here, stop) = bit_run(&bits, (at - start) / sector_bytes, to, low_bit_first);
        let place = if is_here { Place::Host(host + (at - start)) } else { Place::Below };
        Ok((place, end.min(start + stop * sector_bytes)))
    }

    /// True if the holes of the file are those of the disk.
    fn goes_through(&self) -> bool {
        self.metadata.is_fixed && self.file.is_as_stored()
    }
}

impl Layer for Vhdx {
    const FORMAT: &'static str = "vhdx";

    fn size(&self) -> u64 {
        self.metadata.size
    }

    fn file(&self) -> &dyn DiskSource {
        self.file.file()
    }

    fn below(&self) -> Option<&dyn DiskSource> {
        self.below.as_deref()
    }

    fn knows_allocation(&self) -> bool {
        !self.goes_through() || self.file().allocation_known()
    }

    fn locate(&self, at: u64, end: u64) -> Result<(Place, u64)> {
        let block_bytes = self.metadata.block_bytes;
        let block = at / block_bytes;
        let entry = self.entry(self.index(block))?;
        let is_zeros = |state| matches!(state, UNDEFINED | ZERO | UNMAPPED | UNMAPPED_OLD);
        match entry & STATE_MASK {
            NOT_PRESENT => {
                Ok((Place::Below, self.run_end(block, end, |state| state == NOT_PRESENT)?))
            }
            // Of these the parent's data are no more the disk's, whatever they are.
            state if is_zeros(state) => Ok((Place::Zero, self.run_end(block, end, is_zeros)?)),
            state @ (FULLY_PRESENT | PARTIALLY_PRESENT) => {
                let start = block * block_bytes;
                let on_disk = block_bytes.min(self.metadata.size - start);
                let host = self.check_place(entry, on_disk, format_args!("block {block}"))?;
                if state == PARTIALLY_PRESENT && self.metadata.parent.is_some() {
                    return self.locate_sectors(block, host, at, end);
                }
                if state == PARTIALLY_PRESENT {
                    let text = format!("block {block} is there in part, and there is no parent");
                    return Err(self.file.bad(text));
                }
                let host = host + (at - start);
                let is_through = self.goes_through();
                let place = if is_through { Place::Through(host) } else { Place::Host(host) };
                Ok((place, end.min(start + block_bytes)))
            }
            state => Err(self.file.bad(format!("block {block} has state {state}"))),
        }
    }

    fn read_host(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_at(at, buffer)
    }

    fn bad(&self, text: String) -> Error {
        self.file.bad(text)
    }
}

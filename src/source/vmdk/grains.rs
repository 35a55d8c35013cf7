//! What the directory and the tables of a sparse extent say.
//!
//! Invariant: a directory is within its file and the budget of its image; an entry is checked
//! before what it names is read.

use super::cache::Tables;
use super::{Budget, bad, inflate, sesparse};
use crate::error::Result;
use crate::source::{DiskSource, SECTOR_BYTES};
use std::ops::Range;

/// Largest grain in bytes, which is also what a compressed one takes of memory. VMware writes
/// 64 KiB, and lets nobody choose.
const GRAIN_BYTES_MAX: u64 = 16 << 20;

/// Bytes in front of each grain of an extent with markers: a sector of the disk and a length.
const MARKER_BYTES: usize = 12;

/// How a sparse extent is divided, and what its entries mean.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Bytes of the disk, a multiple of 512.
    pub capacity: u64,
    /// Bytes of a grain, a power of two.
    pub grain: u64,
    /// Entries of a table.
    pub table_entries: u64,
    /// Where the directory of the tables begins, in bytes.
    pub directory_at: u64,
    /// Where a copy of it begins that names copies of the tables.
    pub redundant_at: Option<u64>,
    /// What the entries say.
    pub entries: Entries,
}

/// What the entries of a directory and its tables say.
#[derive(Clone, Copy, Debug)]
pub(super) enum Entries {
    /// Sectors of the file.
    Sectors {
        /// The first sector that can hold a grain or a table.
        first: u32,
        /// True if an entry of 1 says that a grain is zeros.
        has_zeros: bool,
        /// How grains are packed, if they are.
        packing: Option<Packing>,
    },
    /// Numbers with a kind, in units of their own.
    Numbers(sesparse::Regions),
}

/// How compressed grains are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// Behind a marker that says how long they are.
    Marked,
    /// As they are, up to their own end.
    Bare,
}

/// Where the bytes of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the parent, or nowhere.
    Below,
    /// They are zeros.
    Zero,
    /// At this place in the file.
    Host(u64),
    /// In the compressed grain at this place in the file.
    Packed(u64, Packing),
}

impl Layout {
    /// Checks what all kinds of extents have in common.
    ///
    /// # Errors
    /// `Source` for sizes that no extent has.
    pub fn new(
        file: &dyn DiskSource,
        (capacity, grain): (u64, u64),
        table_entries: u64,
        directory_at: u64,
        entries: Entries,
    ) -> Result<Layout> {
        let bytes = |sectors: u64| sectors.checked_mul(SECTOR_BYTES);
        let size = bytes(capacity).filter(|size| *size != 0 && *size <= i64::MAX as u64);
        let size = size.ok_or_else(|| bad(file, format!("a capacity of {capacity} sectors")))?;
        let is_grain = |bytes: &u64| bytes.is_power_of_two() && *bytes <= GRAIN_BYTES_MAX;
        let grain_bytes = bytes(grain).filter(is_grain);
        let grain = grain_bytes.ok_or_else(|| bad(file, format!("grains of {grain} sectors")))?;
        let directory_at = bytes(directory_at).ok_or_else(|| {
            let text = format!("its grain directory at sector {directory_at} lies beyond the end");
            bad(file, text)
        })?;
        let redundant_at = None;
        Ok(Layout { capacity: size, grain, table_entries, directory_at, redundant_at, entries })
    }

    /// Bytes of the disk that one table is for.
    fn table_covers(&self) -> u64 {
        self.grain * self.table_entries
    }

    /// Entries of the directory that the capacity needs.
    pub fn directory_entries(&self) -> u64 {
        self.capacity.div_ceil(self.table_covers())
    }

    /// Bytes of the directory as far as it is needed.
    fn directory_bytes(&self) -> u64 {
        self.directory_entries() * self.entries.bytes() as u64
    }
}

impl Entries {
    /// Bytes of an entry.
    const fn bytes(&self) -> usize {
        match self {
            Entries::Sectors { .. } => 4,
            Entries::Numbers(_) => 8,
        }
    }

    fn entry(&self, table: &[u8], index: u64) -> u64 {
        let at = index as usize * self.bytes();
        match self {
            Entries::Sectors { .. } => u64::from(super::u32_at(table, at)),
            Entries::Numbers(_) => super::u64_at(table, at),
        }
    }

    /// Where the table that an entry of the directory names is; nothing if there is none.
    fn table_at(&self, entry: u64) -> Result<Option<u64>, String> {
        match self {
            Entries::Sectors { .. } if entry == 0 => Ok(None),
            Entries::Sectors { first, .. } if entry < u64::from(*first) => {
                Err(format!("a grain table at sector {entry} lies in its header"))
            }
            Entries::Sectors { .. } => Ok(Some(entry * SECTOR_BYTES)),
            Entries::Numbers(regions) => regions.table_at(entry),
        }
    }

    fn place(&self, entry: u64) -> Result<Place, String> {
        match self {
            Entries::Sectors { .. } if entry == 0 => Ok(Place::Below),
            Entries::Sectors { has_zeros: true, .. } if entry == 1 => Ok(Place::Zero),
            Entries::Sectors { first, .. } if entry < u64::from(*first) => {
                Err(format!("a grain at sector {entry} lies in its header"))
            }
            Entries::Sectors { packing, .. } => {
                let at = entry * SECTOR_BYTES;
                Ok(packing.map_or(Place::Host(at), |packing| Place::Packed(at, packing)))
            }
            Entries::Numbers(regions) => regions.place(entry),
        }
    }
}

/// A sparse extent: its file, and where its tables are.
pub(super) struct Grains {
    file: Box<dyn DiskSource>,
    layout: Layout,
    /// As stored, as far as the capacity needs it.
    directory: Vec<u8>,
}

impl Grains {
    /// The extent of a file. `on_loss` is told if only the copy of the directory can be read.
    ///
    /// # Errors
    /// `Source` if the directory is not within the file or the budget.
    pub fn open(
        file: Box<dyn DiskSource>,
        layout: Layout,
        budget: &mut Budget,
        on_loss: &mut dyn FnMut(&str),
    ) -> Result<Grains> {
        let bytes = layout.directory_bytes();
        if !budget.take(bytes) {
            let text = format!("its grain directory of {bytes} bytes is too long");
            return Err(bad(file.as_ref(), text));
        }
        let read = |at: u64, what: &str| match at {
            0 => Err(bad(file.as_ref(), format!("{what} lies in its header"))),
            at => super::read(file.as_ref(), at, bytes as usize, what),
        };
        let directory = read(layout.directory_at, "the grain directory").or_else(|error| {
            let Some(copy) = layout.redundant_at else { return Err(error) };
            let directory = read(copy, "the copy of the grain directory").map_err(|_| error)?;
            let file = file.describe();
            on_loss(&format!("{file}: its grain directory cannot be read; its copy is used"));
            Ok(directory)
        })?;
        Ok(Grains { file, layout, directory })
    }

    /// The file that it is in.
    pub fn file(&self) -> &dyn DiskSource {
        self.file.as_ref()
    }

    /// Bytes of the disk that its header says it holds.
    pub const fn capacity(&self) -> u64 {
        self.layout.capacity
    }

    /// Bytes of a grain.
    pub const fn grain_bytes(&self) -> u64 {
        self.layout.grain
    }

    /// The run that begins at the start of `range`, in bytes of the extent: what it is, and how
    /// long, at most all of the range. `number` is that of the extent among those of `tables`.
    pub fn run(&self, tables: &Tables, number: usize, range: Range<u64>) -> Result<(Place, u64)> {
        let failed = |text: String| bad(self.file(), text);
        let covers = self.layout.table_covers();
        let table = range.start / covers;
        let end = range.end.min((table + 1).saturating_mul(covers));
        let entries = &self.layout.entries;
        let entry = entries.entry(&self.directory, table);
        let Some(at) = entries.table_at(entry).map_err(failed)? else {
            return Ok((Place::Below, end - range.start));
        };
        let bytes = self.layout.table_entries as usize * entries.bytes();
        let words = tables.get((number, at), || {
            super::read(self.file(), at, bytes, &format!("the grain table at {at}"))
        })?;
        let grain = self.layout.grain;
        let place = |offset: u64| entries.place(entries.entry(&words, offset % covers / grain));
        let first = place(range.start).map_err(failed)?;
        let mut stop = (range.start / grain + 1) * grain;
        let first = match first {
            Place::Host(at) => Place::Host(at.saturating_add(range.start % grain)),
            Place::Packed(..) => return Ok((first, stop.min(end) - range.start)),
            other => other,
        };
        while stop < end {
            let next = place(stop).map_err(failed)?;
            let goes_on = match (first, next) {
                (Place::Host(first), Place::Host(next)) => {
                    next == first.saturating_add(stop - range.start)
                }
                (first, next) => first == next,
            };
            if !goes_on {
                break;
            }
            stop += grain;
        }
        Ok((first, stop.min(end) - range.start))
    }

    /// Fills `buffer` from a place in the file.
    ///
    /// # Errors
    /// `Source` if it is not within the file, or cannot be read.
    pub fn read_host(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        if at.checked_add(buffer.len() as u64).is_none_or(|end| end > self.file.size()) {
            return Err(bad(self.file(), format!("a grain at {at} lies beyond the end")));
        }
        self.file.read_at(at, buffer)
    }

    /// Fills `buffer` with what the compressed grain at `at` holds for `offset` of the extent.
    ///
    /// # Errors
    /// `Source` if it is not within the file, is another grain, or does not decode.
    pub fn read_packed(
        &self,
        (at, packing): (u64, Packing),
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        let grain = self.layout.grain;
        let start = offset / grain * grain;
        let failed = |text: String| bad(self.file(), format!("a compressed grain at {at} {text}"));
        // The length that a decoder could need: noise grows by less than this.
        let most = 2 * grain;
        let (at, bytes) = match packing {
            Packing::Bare => (at, self.file.size().saturating_sub(at).min(most)),
            Packing::Marked => {
                let marker = super::read(self.file(), at, MARKER_BYTES, "a compressed grain")?;
                let sector = super::u64_at(&marker, 0);
                if sector != start / SECTOR_BYTES {
                    let expected = start / SECTOR_BYTES;
                    return Err(failed(format!("is for sector {sector}, expected {expected}")));
                }
                (at + MARKER_BYTES as u64, u64::from(super::u32_at(&marker, 8)))
            }
        };
        if bytes > most || bytes == 0 {
            return Err(failed(format!("has {bytes} bytes")));
        }
        let input = super::read(self.file(), at, bytes as usize, "a compressed grain")?;
        // The last grain may end with the disk.
        let least = grain.min(self.layout.capacity - start) as usize;
        let grain = inflate::inflate(&input, least, grain as usize)
            .map_err(|cause| failed(format!("does not decode: {cause}")))?;
        let skip = (offset - start) as usize;
        buffer.copy_from_slice(&grain[skip..skip + buffer.len()]);
        Ok(())
    }
}

//! Space-efficient deltas, which descriptors call SESPARSE. VMware has not published them; the
//! layout is what the reader in QEMU's block/vmdk.c knows.
//!
//! Invariant: what that reader has not seen is refused, a journal that waits to be replayed above
//! all: until then the tables are not those of the disk.

use super::grains::{Entries, Layout, Place};
use super::{bad, read, u64_at};
use crate::error::Result;
use crate::source::{DiskSource, SECTOR_BYTES};

/// The first number of such an extent, little-endian.
pub const MAGIC: u64 = 0xcafe_babe;

const VOLATILE_MAGIC: u64 = 0xcafe_cafe;
const HEADER_BYTES: usize = SECTOR_BYTES as usize;
/// Numbers of the header in front of its padding.
const HEADER_NUMBERS: usize = 26;
const VERSION: u64 = 0x2_0000_0001;
const GRAIN_SECTORS: u64 = 8;
const TABLE_SECTORS: u64 = 64;
const TABLE_BYTES: u64 = TABLE_SECTORS * SECTOR_BYTES;
/// The kind of an entry is in its top four bits.
const KIND_SHIFT: u32 = 60;

/// Where the tables and the grains begin, in bytes of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Regions {
    tables_at: u64,
    grains_at: u64,
}

/// Reads and checks both headers of `file`.
///
/// # Errors
/// `Source` for what is no such header, or one of an extent that cannot be read.
pub(super) fn read_layout(file: &dyn DiskSource) -> Result<Layout> {
    let bytes = read(file, 0, HEADER_BYTES, "the header")?;
    let mut numbers = [0; HEADER_NUMBERS];
    for (index, number) in numbers.iter_mut().enumerate() {
        *number = u64_at(&bytes, index * 8);
    }
    let [_, version, capacity, grain, table, flags, ..] = numbers;
    if version != VERSION {
        return Err(bad(file, format!("version {version:#x} is not known")));
    }
    if (grain, table) != (GRAIN_SECTORS, TABLE_SECTORS) {
        let text = format!("grains of {grain} sectors in tables of {table} are not known");
        return Err(bad(file, text));
    }
    let is_padding = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    if flags != 0 || !is_padding(&bytes[48..80]) || !is_padding(&bytes[HEADER_NUMBERS * 8..]) {
        return Err(bad(file, format!("flags {flags:#x} or reserved fields are not known")));
    }
    let place = |number: usize, what: &str| {
        let at = numbers[number].checked_mul(SECTOR_BYTES);
        at.ok_or_else(|| bad(file, format!("{what} lies beyond the end of the file")))
    };
    check_journal(file, place(10, "the volatile header")?)?;
    let (tables_at, grains_at) = (place(18, "the grain tables")?, place(24, "the grains")?);
    let entries = Entries::Numbers(Regions { tables_at, grains_at });
    let table_entries = TABLE_BYTES / 8;
    let layout = Layout::new(file, (capacity, grain), table_entries, numbers[16], entries)?;
    let (there, needed) = (numbers[17], layout.directory_entries());
    if there < (needed * 8).div_ceil(SECTOR_BYTES) {
        let text = format!("its grain directory has {there} sectors for {needed} entries");
        return Err(bad(file, text));
    }
    Ok(layout)
}

fn check_journal(file: &dyn DiskSource, at: u64) -> Result<()> {
    let bytes = read(file, at, HEADER_BYTES, "the volatile header")?;
    let magic = u64_at(&bytes, 0);
    if magic != VOLATILE_MAGIC {
        return Err(bad(file, format!("a volatile header that begins with {magic:#x}")));
    }
    if u64_at(&bytes, 24) != 0 {
        let error = bad(file, "its journal waits to be replayed");
        return Err(error.hint("start and stop the virtual machine, or consolidate its snapshots"));
    }
    Ok(())
}

impl Regions {
    /// Where the table that an entry of the directory names is; nothing if there is none.
    pub fn table_at(&self, entry: u64) -> Result<Option<u64>, String> {
        // A number of 32 bits is enough for the largest disk, so the bits between are always 0.
        match (entry >> 32, entry & 0xffff_ffff) {
            (0, 0) => Ok(None),
            (0x1000_0000, number) => {
                let at = (number * TABLE_BYTES).checked_add(self.tables_at);
                at.map(Some).ok_or_else(|| format!("a grain table {number} beyond any file"))
            }
            _ => Err(format!("an entry {entry:#x} of its grain directory is not known")),
        }
    }

    /// What an entry of a table says.
    pub fn place(&self, entry: u64) -> Result<Place, String> {
        match entry >> KIND_SHIFT {
            0 if entry == 0 => Ok(Place::Below),
            // Unmapped by the guest, or zeros that it wrote: not the parent's bytes.
            1 | 2 => Ok(Place::Zero),
            3 => {
                // The number's low 12 bits stand on top of the others.
                let number = entry >> 48 & 0xfff | (entry & 0xffff_ffff_ffff) << 12;
                let at = number.checked_mul(GRAIN_SECTORS * SECTOR_BYTES);
                let at = at.and_then(|at| at.checked_add(self.grains_at));
                at.map(Place::Host).ok_or_else(|| format!("a grain {number} beyond any file"))
            }
            _ => Err(format!("an entry {entry:#x} of a grain table is not known")),
        }
    }
}

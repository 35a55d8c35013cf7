//! The header of hosted sparse extents and of stream-optimized ones, `KDMV`
//! (VMware, Virtual Disk Format 5.0, "Hosted Sparse Extents" and "Stream-Optimized Compressed
//! Sparse Extents").
//!
//! Invariant: what this reader does not know how to read is refused, not guessed.

use super::grains::{Entries, Layout, Packing};
use super::{bad, read, u32_at, u64_at};
use crate::error::Result;
use crate::source::{DiskSource, SECTOR_BYTES};

/// The first bytes of such an extent.
pub const MAGIC: [u8; 4] = *b"KDMV";

const HEADER_BYTES: usize = SECTOR_BYTES as usize;
const VERSION_MAX: u32 = 3;
/// Entries of a table; the note has no other number, and QEMU reads fewer.
const TABLE_ENTRIES_MAX: u32 = 512;
/// The sector behind the header belongs to the descriptor or the directory.
const FIRST_SECTOR: u32 = 2;

const FLAG_NEWLINES: u32 = 1 << 0;
const FLAG_REDUNDANT: u32 = 1 << 1;
const FLAG_ZEROS: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;

/// What a transfer as text would change.
const NEWLINES: [u8; 4] = *b"\n \r\n";
const COMPRESSION_DEFLATE: u16 = 1;

/// The place of a directory that is only known at the end of the file.
const AT_THE_END: u64 = u64::MAX;
const MARKER_END: u32 = 0;
const MARKER_FOOTER: u32 = 3;
/// The marker of the footer, the footer, and the marker of the end.
const FOOTER_BYTES: u64 = 3 * SECTOR_BYTES;

/// What the header of an extent says.
pub(super) struct Header {
    /// The descriptor's place and length in bytes; a length of 0 if there is none.
    pub descriptor: (u64, u64),
    /// How it is divided; nothing if it holds only a descriptor.
    pub layout: Option<Layout>,
}

impl Header {
    /// Reads and checks the header of `file`, and its footer if it has one.
    ///
    /// # Errors
    /// `Source` for what is no such header, or one of an extent that cannot be read.
    pub fn read(file: &dyn DiskSource) -> Result<Header> {
        let bytes = read(file, 0, HEADER_BYTES, "the header")?;
        check_version(file, &bytes)?;
        let place = |at: usize| u64_at(&bytes, at).checked_mul(SECTOR_BYTES);
        let descriptor = match (place(28), place(36)) {
            (Some(at), Some(length)) => (at, length),
            _ => return Err(bad(file, "the descriptor lies beyond the end of the file")),
        };
        let layout = match u64_at(&bytes, 12) {
            0 => None,
            _ if u64_at(&bytes, 56) == AT_THE_END => Some(layout(file, &read_footer(file)?)?),
            _ => Some(layout(file, &bytes)?),
        };
        Ok(Header { descriptor, layout })
    }
}

fn check_version(file: &dyn DiskSource, bytes: &[u8]) -> Result<()> {
    if bytes[..4] != MAGIC {
        return Err(bad(file, "it has no header of a sparse extent"));
    }
    let version = u32_at(bytes, 4);
    if !(1..=VERSION_MAX).contains(&version) {
        return Err(bad(file, format!("version {version} is not known")));
    }
    if u32_at(bytes, 8) & FLAG_NEWLINES != 0 && bytes[73..77] != NEWLINES {
        return Err(bad(file, "its line ends were changed by a transfer as text"));
    }
    Ok(())
}

fn layout(file: &dyn DiskSource, bytes: &[u8]) -> Result<Layout> {
    let flags = u32_at(bytes, 8);
    let algorithm = u16::from_le_bytes([bytes[77], bytes[78]]);
    let packing = match (flags & FLAG_COMPRESSED != 0, flags & FLAG_MARKERS != 0, algorithm) {
        (false, false, 0) => None,
        (true, true, COMPRESSION_DEFLATE) => Some(Packing::Marked),
        (true, false, COMPRESSION_DEFLATE) => Some(Packing::Bare),
        _ => {
            let text = format!("compression {algorithm} with flags {flags:#x} is not known");
            return Err(bad(file, text));
        }
    };
    let entries_per_table = u32_at(bytes, 44);
    if !(1..=TABLE_ENTRIES_MAX).contains(&entries_per_table) {
        return Err(bad(file, format!("grain tables of {entries_per_table} entries")));
    }
    let has_zeros = flags & FLAG_ZEROS != 0;
    let entries = Entries::Sectors { first: FIRST_SECTOR, has_zeros, packing };
    let sizes = (u64_at(bytes, 12), u64_at(bytes, 20));
    let table_entries = u64::from(entries_per_table);
    let mut layout = Layout::new(file, sizes, table_entries, u64_at(bytes, 56), entries)?;
    if flags & FLAG_REDUNDANT != 0 {
        layout.redundant_at = u64_at(bytes, 48).checked_mul(SECTOR_BYTES);
    }
    Ok(layout)
}

/// The footer: a header, with the directory's place, between two markers at the very end.
fn read_footer(file: &dyn DiskSource) -> Result<Vec<u8>> {
    let truncated = || bad(file, "it does not end with a footer: it may have been cut off");
    let at = file.size().checked_sub(FOOTER_BYTES).ok_or_else(truncated)?;
    let bytes = read(file, at, FOOTER_BYTES as usize, "the footer")?;
    let (before, rest) = bytes.split_at(HEADER_BYTES);
    let (footer, after) = rest.split_at(HEADER_BYTES);
    // A marker: a number of sectors or 0, the bytes of a grain or 0, the kind.
    let is_marker = |bytes: &[u8], kind: u32| u32_at(bytes, 8) == 0 && u32_at(bytes, 12) == kind;
    let is_end = u64_at(after, 0) == 0 && is_marker(after, MARKER_END);
    if footer[..4] != MAGIC || !is_marker(before, MARKER_FOOTER) || !is_end {
        return Err(truncated());
    }
    check_version(file, footer)?;
    if u64_at(footer, 56) == AT_THE_END {
        return Err(bad(file, "its footer does not say where the grain directory is"));
    }
    Ok(footer.to_vec())
}

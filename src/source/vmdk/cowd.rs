//! The header of the deltas of VMFS, `COWD`, which descriptors call VMFSSPARSE (VMware, Virtual
//! Disk Format 5.0, "ESX Server Sparse Extents"; the reader in QEMU's block/vmdk.c).

use super::grains::{Entries, Layout};
use super::{bad, read, u32_at};
use crate::error::Result;
use crate::source::DiskSource;

/// The first bytes of such an extent.
pub const MAGIC: [u8; 4] = *b"COWD";

/// What is known of the header: the rest of its four sectors names the virtual machine.
const HEADER_BYTES: usize = 32;
const VERSION: u32 = 1;
const TABLE_ENTRIES: u64 = 4096;
/// The sectors in front belong to the header.
const FIRST_SECTOR: u32 = 4;

/// Reads and checks the header of `file`.
///
/// # Errors
/// `Source` for what is no such header, or one of an extent that cannot be read.
pub(super) fn read_layout(file: &dyn DiskSource) -> Result<Layout> {
    let bytes = read(file, 0, HEADER_BYTES, "the header")?;
    let version = u32_at(&bytes, 4);
    if version != VERSION {
        return Err(bad(file, format!("version {version} is not known")));
    }
    let entries = Entries::Sectors { first: FIRST_SECTOR, has_zeros: false, packing: None };
    let sizes = (u64::from(u32_at(&bytes, 12)), u64::from(u32_at(&bytes, 16)));
    let directory_at = u64::from(u32_at(&bytes, 20));
    let layout = Layout::new(file, sizes, TABLE_ENTRIES, directory_at, entries)?;
    let (there, needed) = (u64::from(u32_at(&bytes, 24)), layout.directory_entries());
    if there < needed {
        let text = format!("its grain directory has {there} entries, expected {needed}");
        return Err(bad(file, text));
    }
    Ok(layout)
}

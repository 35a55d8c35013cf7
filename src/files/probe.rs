//! What is in a partition, by the marks that file systems and their kin leave in fixed places.

use super::window::Window;
use crate::error::{Error, ErrorKind, Result};

/// What is in a partition.
pub struct Found {
    /// `None` if it is not known. `ext4` and `fat32` stand for their families.
    pub name: Option<&'static str>,
    /// True if its files can be read.
    pub is_readable: bool,
}

/// Places of marks, the marks, and whose they are.
const MARKS: &[(u64, &[u8], &str)] = &[
    (0x438, &[0x53, 0xef], "ext4"),
    (3, b"NTFS    ", "ntfs"),
    (3, b"EXFAT   ", "exfat"),
    (3, b"-FVE-FS-", "bitlocker"),
    (3, b"ReFS\0\0\0\0", "refs"),
    (0, b"XFSB", "xfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0x218, b"LVM2 001", "lvm2"),
    (4096 - 10, b"SWAPSPACE2", "swap"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "raid"),
    (0x8001, b"CD001", "iso9660"),
    (0, b"hsqs", "squashfs"),
    (0x400, &[0x10, 0x20, 0xf5, 0xf2], "f2fs"),
];

/// What an operation here may read: all marks.
const LIMIT: u64 = 1 << 20;

/// Looks for marks.
///
/// # Errors
/// What reading the disk says.
pub fn probe(window: &Window) -> Result<Found> {
    for (offset, mark, name) in MARKS {
        let mut bytes = vec![0; mark.len()];
        if read(window, *offset, &mut bytes)? && bytes == *mark {
            let is_readable = matches!(*name, "ext4" | "ntfs");
            return Ok(Found { name: Some(name), is_readable });
        }
    }
    let mut sector = [0; 512];
    if read(window, 0, &mut sector)? && is_fat(&sector) {
        return Ok(Found { name: Some("fat32"), is_readable: true });
    }
    Ok(Found { name: None, is_readable: false })
}

/// False if the window ends before.
fn read(window: &Window, offset: u64, buffer: &mut [u8]) -> Result<bool> {
    if offset + buffer.len() as u64 > window.size() {
        return Ok(false);
    }
    window.begin(LIMIT);
    window.read_exact_at(offset, buffer).map(|()| true).map_err(|cause| {
        window
            .take_failure()
            .unwrap_or_else(|| Error::io(ErrorKind::Damage, "cannot look for a file system", cause))
    })
}

/// FAT has no mark of its own, only numbers that fit: a jump, sectors of 512 to 4096 bytes, a
/// power of two of them in a cluster, one or two tables, a media byte.
fn is_fat(sector: &[u8; 512]) -> bool {
    let sector_bytes = u16::from_le_bytes([sector[11], sector[12]]);
    let reserved = u16::from_le_bytes([sector[14], sector[15]]);
    matches!(sector[0], 0xeb | 0xe9)
        && matches!(sector_bytes, 512 | 1024 | 2048 | 4096)
        && sector[13].is_power_of_two()
        && reserved > 0
        && matches!(sector[16], 1 | 2)
        && (sector[21] == 0xf0 || sector[21] >= 0xf8)
        && sector[510..] == [0x55, 0xaa]
}

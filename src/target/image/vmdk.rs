//! VMDK images in one file, sparse
//! (VMware, Virtual Disk Format 5.0, "Hosted Sparse Extents").
//!
//! Invariant: a place fits the 32 bits of a grain table, in sectors of 512 bytes; the redundant
//! directory and its tables say the same as the first ones.

use super::packed::{Places, Put, put_entries};
use super::used::Clusters;
use super::{SECTOR_BYTES, random_bytes};
use crate::error::{Error, Result};

/// Bytes of a grain, everybody's choice.
pub const GRAIN_BYTES: u64 = GRAIN_SECTORS * SECTOR_BYTES;
pub(super) const GRAIN_SECTORS: u64 = 128;
/// Entries of a grain table; there is no other number.
pub(super) const TABLE_ENTRIES: u64 = 512;
pub(super) const TABLE_SECTORS: u64 = TABLE_ENTRIES * 4 / SECTOR_BYTES;
/// Where the descriptor begins, in sectors, and its room.
const DESCRIPTOR_AT: u64 = 1;
pub(super) const DESCRIPTOR_SECTORS: u64 = 20;
/// QEMU's limit: a directory of 2^25 entries.
pub(super) const DISK_BYTES_MAX: u64 = 1 << 50;
/// A grain of sector 2^32 or behind has no place in a table.
pub(super) const FILE_SECTORS_MAX: u64 = 1 << 32;
/// Bytes of the name in the descriptor: 20 sectors have room for it and the rest.
const NAME_BYTES_MAX: usize = 1024;

/// That the bytes of line ends are as they were, and that there is a redundant directory.
const FLAGS: u32 = 0b11;
/// What a transfer as text would change.
const NEWLINES: &[u8; 4] = b"\n \r\n";

/// What the header of a sparse extent says, places in sectors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub version: u32,
    pub flags: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// 0 if there is none.
    pub redundant_at: u64,
    pub directory_at: u64,
    /// Where data begin.
    pub data_at: u64,
    pub is_compressed: bool,
}

impl Header {
    /// Its sector.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SECTOR_BYTES as usize);
        bytes.extend(b"KDMV");
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend((self.size / SECTOR_BYTES).to_le_bytes());
        bytes.extend(GRAIN_SECTORS.to_le_bytes());
        bytes.extend(DESCRIPTOR_AT.to_le_bytes());
        bytes.extend(DESCRIPTOR_SECTORS.to_le_bytes());
        bytes.extend((TABLE_ENTRIES as u32).to_le_bytes());
        bytes.extend(self.redundant_at.to_le_bytes());
        bytes.extend(self.directory_at.to_le_bytes());
        bytes.extend(self.data_at.to_le_bytes());
        // Shut down cleanly.
        bytes.push(0);
        bytes.extend(NEWLINES);
        bytes.extend(u16::from(self.is_compressed).to_le_bytes());
        bytes.resize(SECTOR_BYTES as usize, 0);
        bytes
    }
}

/// The descriptor of an image in one file, which has this name.
pub(super) fn descriptor(kind: &str, name: &str, size: u64) -> Result<Vec<u8>> {
    let sectors = size / SECTOR_BYTES;
    // Any number but those with a meaning: 0 is of encrypted disks, all ones says no parent.
    let content_id = u32::from_le_bytes(random_bytes()?).clamp(1, u32::MAX - 2);
    let mut shown: String = name.chars().map(plain).collect();
    while shown.len() > NAME_BYTES_MAX {
        shown.pop();
    }
    // The geometry of BIOSes for disks of more than 8 GB; nobody reads it from smaller ones.
    let cylinders = (sectors / (255 * 63)).clamp(1, 65_535);
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID={content_id:08x}\nparentCID=ffffffff\n\
         createType=\"{kind}\"\n\n# Extent description\nRW {sectors} SPARSE \"{shown}\"\n\n\
         # The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\n\
         ddb.geometry.cylinders = \"{cylinders}\"\nddb.geometry.heads = \"255\"\n\
         ddb.geometry.sectors = \"63\"\nddb.adapterType = \"lsilogic\"\n"
    );
    Ok(text.into_bytes())
}

/// What stands in quotes on one line.
fn plain(character: char) -> char {
    if character == '"' || character.is_control() { '_' } else { character }
}

/// Why the format cannot hold a disk of this size.
pub(super) fn refusal(size: u64) -> Option<&'static str> {
    match size {
        0 => Some("it holds no disk of 0 bytes"),
        size if size > DISK_BYTES_MAX => Some("it holds at most 1 PiB"),
        _ => None,
    }
}

/// Writes everything but the grains: header, descriptor, the redundant directory and its tables,
/// the directory and its tables. Tables without a used grain are holes: programs that write to
/// the image expect every table to be there.
pub(super) fn write_tables(
    clusters: &Clusters,
    name: &str,
    put: &mut Put<'_>,
    refuse: &dyn Fn(&str) -> Error,
) -> Result<Places> {
    let size = clusters.size();
    if let Some(why) = refusal(size) {
        return Err(refuse(why));
    }
    let tables = clusters.count().div_ceil(TABLE_ENTRIES);
    let directory_sectors = (tables * 4).div_ceil(SECTOR_BYTES);
    let redundant_at = DESCRIPTOR_AT + DESCRIPTOR_SECTORS;
    let directory_at = redundant_at + directory_sectors + tables * TABLE_SECTORS;
    let end = directory_at + directory_sectors + tables * TABLE_SECTORS;
    let data_at = end.next_multiple_of(GRAIN_SECTORS);
    let total = data_at + clusters.used() * GRAIN_SECTORS;
    if total > FILE_SECTORS_MAX {
        return Err(refuse("its file would be larger than 2 TiB"));
    }
    let header = Header {
        version: 1,
        flags: FLAGS,
        size,
        redundant_at,
        directory_at,
        data_at,
        is_compressed: false,
    };
    put(0, &header.bytes())?;
    put(SECTOR_BYTES, &descriptor("monolithicSparse", name, size)?)?;
    let places = Places {
        data_at: data_at * SECTOR_BYTES,
        stride: GRAIN_BYTES,
        file_bytes: total * SECTOR_BYTES,
    };
    for directory_at in [redundant_at, directory_at] {
        let first = directory_at + directory_sectors;
        put_entries(put, directory_at * SECTOR_BYTES, tables, &mut |number| {
            ((first + number * TABLE_SECTORS) as u32).to_le_bytes()
        })?;
        put_grain_tables(clusters, places, first, put)?;
    }
    Ok(places)
}

fn put_grain_tables(
    clusters: &Clusters,
    places: Places,
    first: u64,
    put: &mut Put<'_>,
) -> Result<()> {
    let mut entries = vec![0; (TABLE_ENTRIES * 4) as usize];
    for number in 0..clusters.count().div_ceil(TABLE_ENTRIES) {
        let grains = number * TABLE_ENTRIES..(number + 1) * TABLE_ENTRIES;
        if !clusters.any(grains.clone()) {
            continue;
        }
        entries.fill(0);
        let start = grains.start;
        clusters.each_used(grains, &mut |grain, rank| {
            let place = (grain - start) as usize * 4;
            let sector = (places.of(rank) / SECTOR_BYTES) as u32;
            entries[place..place + 4].copy_from_slice(&sector.to_le_bytes());
        });
        put((first + number * TABLE_SECTORS) * SECTOR_BYTES, &entries)?;
    }
    Ok(())
}

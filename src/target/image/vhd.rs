//! Dynamic VHD images
//! (Microsoft, Virtual Hard Disk Image Format Specification, version 1.0).
//!
//! Invariant: the footer at the end and its copy at the start are the same; every block's data
//! begin at a multiple of 4096 bytes, so that the file's holes are those of the disk.

use super::packed::{Places, Put, put_entries};
use super::used::Clusters;
use super::{Description, SECTOR_BYTES, random_bytes};
use crate::error::{Error, Result};

/// Bytes of a block, everybody's choice.
pub const BLOCK_BYTES: u64 = 2 << 20;
/// A bit for each sector of a block; it stands directly in front of the data.
const BITMAP_BYTES: u64 = BLOCK_BYTES / SECTOR_BYTES / 8;
/// From the end of a block to the data of the next one: room for the bitmap, and then some.
const GAP_BYTES: u64 = 4096;
/// 2040 GiB: a table of 32-bit sector numbers reaches so far, and all programs have this limit.
const DISK_BYTES_MAX: u64 = 2040 << 30;
const HEADER_AT: u64 = SECTOR_BYTES;
const HEADER_BYTES: usize = 1024;
const TABLE_AT: u64 = HEADER_AT + HEADER_BYTES as u64;
const NOWHERE: u64 = u64::MAX;
const VERSION: u32 = 0x0001_0000;
const TYPE_DYNAMIC: u32 = 3;
/// What QEMU writes for an image whose size is the one in the footer. Older versions of it give the
/// size of the geometry, which cannot express most sizes, to images of programs they do not know.
const CREATOR: &[u8; 4] = b"qem2";
/// Windows, as all programs write.
const CREATOR_SYSTEM: &[u8; 4] = b"Wi2k";
/// Seconds from 1970 to 2000, from which the format counts.
const EPOCH_SECONDS: u64 = 946_684_800;

/// Writes everything but the data of blocks.
pub(super) fn write_tables(
    clusters: &Clusters,
    description: &Description<'_>,
    put: &mut Put<'_>,
    refuse: &dyn Fn(&str) -> Error,
) -> Result<Places> {
    let size = clusters.size();
    if size > DISK_BYTES_MAX {
        return Err(refuse("it holds at most 2040 GiB"));
    }
    let footer = footer(size, description.unix_seconds, random_bytes()?);
    put(0, &footer)?;
    put(HEADER_AT, &dynamic_header(clusters.count()))?;
    let entries_end = TABLE_AT + clusters.count() * 4;
    let table_end = entries_end.next_multiple_of(SECTOR_BYTES);
    let data_at = (table_end + BITMAP_BYTES).next_multiple_of(GAP_BYTES);
    let stride = BLOCK_BYTES + GAP_BYTES;
    let footer_at = match clusters.used() {
        0 => table_end,
        used => data_at + (used - 1) * stride + BLOCK_BYTES,
    };
    let places = Places { data_at, stride, file_bytes: footer_at + SECTOR_BYTES };
    // The rest of the table's last sector is unused too.
    put_entries(put, TABLE_AT, (table_end - TABLE_AT) / 4, &mut |block| {
        let sector = clusters.rank(block).map(|rank| (places.of(rank) - BITMAP_BYTES) / 512);
        sector.map_or(u32::MAX, |sector| sector as u32).to_be_bytes()
    })?;
    for rank in 0..clusters.used() {
        put(places.of(rank) - BITMAP_BYTES, &[0xff; BITMAP_BYTES as usize])?;
    }
    put(footer_at, &footer)?;
    Ok(places)
}

fn footer(size: u64, unix_seconds: u64, id: [u8; 16]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SECTOR_BYTES as usize);
    bytes.extend(b"conectix");
    // No features: only the bit that is reserved and always set.
    bytes.extend(2_u32.to_be_bytes());
    bytes.extend(VERSION.to_be_bytes());
    bytes.extend(HEADER_AT.to_be_bytes());
    bytes.extend((unix_seconds.saturating_sub(EPOCH_SECONDS) as u32).to_be_bytes());
    bytes.extend(CREATOR);
    bytes.extend([0, 5, 0, 3]);
    bytes.extend(CREATOR_SYSTEM);
    bytes.extend(size.to_be_bytes());
    bytes.extend(size.to_be_bytes());
    let (cylinders, heads, sectors) = geometry(size / SECTOR_BYTES);
    bytes.extend(cylinders.to_be_bytes());
    bytes.extend([heads, sectors]);
    bytes.extend(TYPE_DYNAMIC.to_be_bytes());
    let checksum_at = bytes.len();
    bytes.extend([0; 4]);
    bytes.extend(id);
    bytes.resize(SECTOR_BYTES as usize, 0);
    with_checksum(bytes, checksum_at)
}

fn dynamic_header(blocks: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend(b"cxsparse");
    bytes.extend(NOWHERE.to_be_bytes());
    bytes.extend(TABLE_AT.to_be_bytes());
    bytes.extend(VERSION.to_be_bytes());
    bytes.extend((blocks as u32).to_be_bytes());
    bytes.extend((BLOCK_BYTES as u32).to_be_bytes());
    let checksum_at = bytes.len();
    // No parent.
    bytes.resize(HEADER_BYTES, 0);
    with_checksum(bytes, checksum_at)
}

/// The complement of the sum of all bytes.
fn with_checksum(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    let sum = bytes.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
    bytes
}

/// Cylinders, heads and sectors of a track, by the appendix of the specification.
fn geometry(sectors: u64) -> (u16, u8, u8) {
    let sectors = sectors.min(65_535 * 16 * 255);
    let (mut track, mut heads) = (255, 16);
    if sectors < 65_535 * 16 * 63 {
        track = 17;
        heads = (sectors / 17).div_ceil(1024).max(4);
        if sectors / 17 >= heads * 1024 || heads > 16 {
            (track, heads) = (31, 16);
        }
        if track == 31 && sectors / 31 >= heads * 1024 {
            track = 63;
        }
    }
    ((sectors / track / heads) as u16, heads as u8, track as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What qemu-img 10.0 writes for these sizes, which their geometries express.
    #[test]
    fn geometries() {
        for (sectors, expected) in [
            (20_468, (301, 4, 17)),
            (69_700, (820, 5, 17)),
            (278_256, (1023, 16, 17)),
            (300_080, (605, 16, 31)),
            (524_160, (520, 16, 63)),
            (4_194_288, (4161, 16, 63)),
            (66_059_280, (16_191, 16, 255)),
        ] {
            assert_eq!(geometry(sectors), expected, "{sectors}");
        }
    }
}

//! Dynamic VHDX images, with sectors of 512 bytes
//! (Microsoft, MS-VHDX).
//!
//! Invariant: every region and block begins at a multiple of 1 MiB; the log is empty.

use super::packed::{Places, Put, put_entries};
use super::used::Clusters;
use super::{SECTOR_BYTES, random_bytes};
use crate::error::{Error, Result};
use crc::{CRC_32_ISCSI, Crc};

const MIB: u64 = 1 << 20;
/// 64 TiB.
const DISK_BYTES_MAX: u64 = 64 << 40;
const BLOCK_BYTES_MIN: u64 = 2 * MIB;
/// Blocks of a disk at most: a table of 8 MiB, which programs keep in memory. So blocks have 2 MiB
/// up to 2 TiB, and 64 MiB at 64 TiB.
const BLOCKS_MAX: u64 = 1 << 20;
/// Sectors that a bitmap of 1 MiB has bits for: between the entries of so many, the table has one for
/// a bitmap. Only differencing images have bitmaps.
const SECTORS_PER_BITMAP: u64 = 1 << 23;

const HEADERS_AT: [u64; 2] = [64 << 10, 128 << 10];
const HEADER_BYTES: usize = 4096;
const REGION_TABLES_AT: [u64; 2] = [192 << 10, 256 << 10];
const TABLE_BYTES: usize = 64 << 10;
const LOG_AT: u64 = MIB;
const LOG_BYTES: u64 = MIB;
const METADATA_AT: u64 = LOG_AT + LOG_BYTES;
const METADATA_BYTES: u64 = MIB;
const BLOCK_TABLE_AT: u64 = METADATA_AT + METADATA_BYTES;

/// A block that reads as zeros.
const STATE_ZERO: u64 = 2;
const STATE_PRESENT: u64 = 6;

const REGION_BLOCKS: u128 = 0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08;
const REGION_METADATA: u128 = 0x8b7c_a206_4790_4b9a_b8fe_575f_050f_886e;
const ITEM_FILE_PARAMETERS: u128 = 0xcaa1_6737_fa36_4d43_b3b6_33f0_aa44_e76b;
const ITEM_DISK_BYTES: u128 = 0x2fa5_4224_cd1b_4876_b211_5dbe_d83b_f4b8;
const ITEM_DISK_ID: u128 = 0xbeca_12ab_b2e6_4523_93ef_c309_e000_c746;
const ITEM_LOGICAL_SECTOR: u128 = 0x8141_bf1d_a96f_4709_ba47_f233_a8fa_ab5f;
const ITEM_PHYSICAL_SECTOR: u128 = 0xcda3_48c7_445d_4471_9cc9_e988_5251_c556;
/// Metadata that a reader must know, and of which the disk depends.
const FLAG_REQUIRED: u32 = 1 << 2;
const FLAG_DISK: u32 = 1 << 1;
/// The physical sectors of nearly all drives; guests align to them.
const PHYSICAL_SECTOR_BYTES: u32 = 4096;

/// Bytes of a block of a disk of this size.
pub(super) fn block_bytes(size: u64) -> u64 {
    size.div_ceil(BLOCKS_MAX).next_power_of_two().max(BLOCK_BYTES_MIN)
}

/// Writes everything but the blocks.
pub(super) fn write_tables(
    clusters: &Clusters,
    put: &mut Put<'_>,
    refuse: &dyn Fn(&str) -> Error,
) -> Result<Places> {
    if clusters.size() == 0 {
        // QEMU's own image of one cannot be read by others, and it cannot read theirs.
        return Err(refuse("it holds no disk of 0 bytes"));
    }
    if clusters.size() > DISK_BYTES_MAX {
        return Err(refuse("it holds at most 64 TiB"));
    }
    put(0, &file_type())?;
    for (sequence, at) in HEADERS_AT.into_iter().enumerate() {
        put(at, &header(sequence as u64)?)?;
    }
    let ratio = SECTORS_PER_BITMAP * SECTOR_BYTES / clusters.cluster_bytes();
    let count = clusters.count();
    let entries = count + (count - 1) / ratio;
    let table_bytes = (entries * 8).next_multiple_of(MIB);
    for at in REGION_TABLES_AT {
        put(at, &region_table(table_bytes))?;
    }
    put_metadata(clusters, put)?;
    let data_at = BLOCK_TABLE_AT + table_bytes;
    let stride = clusters.cluster_bytes();
    let file_bytes = data_at + clusters.used() * stride;
    let places = Places { data_at, stride, file_bytes };
    put_entries(put, BLOCK_TABLE_AT, entries, &mut |entry| {
        if entry % (ratio + 1) == ratio {
            return [0; 8];
        }
        let block = entry - entry / (ratio + 1);
        let rank = clusters.rank(block);
        rank.map_or(STATE_ZERO, |rank| places.of(rank) | STATE_PRESENT).to_le_bytes()
    })?;
    Ok(places)
}

fn file_type() -> Vec<u8> {
    let mut bytes = b"vhdxfile".to_vec();
    bytes.extend("diskvault".encode_utf16().flat_map(u16::to_le_bytes));
    bytes
}

fn header(sequence: u64) -> Result<Vec<u8>> {
    let mut bytes = b"head\0\0\0\0".to_vec();
    bytes.extend(sequence.to_le_bytes());
    // Who writes to the file and to the disk; new for each who begins to.
    bytes.extend(random_bytes::<16>()?);
    bytes.extend(random_bytes::<16>()?);
    // No log, of version 0.
    bytes.extend([0; 18]);
    bytes.extend(1_u16.to_le_bytes());
    bytes.extend((LOG_BYTES as u32).to_le_bytes());
    bytes.extend(LOG_AT.to_le_bytes());
    bytes.resize(HEADER_BYTES, 0);
    Ok(with_checksum(bytes))
}

fn region_table(table_bytes: u64) -> Vec<u8> {
    let mut bytes = b"regi\0\0\0\0".to_vec();
    bytes.extend(2_u32.to_le_bytes());
    bytes.extend([0; 4]);
    let regions = [
        (REGION_BLOCKS, BLOCK_TABLE_AT, table_bytes),
        (REGION_METADATA, METADATA_AT, METADATA_BYTES),
    ];
    for (id, at, length) in regions {
        bytes.extend(id_bytes(id));
        bytes.extend(at.to_le_bytes());
        bytes.extend((length as u32).to_le_bytes());
        // Required.
        bytes.extend(1_u32.to_le_bytes());
    }
    bytes.resize(TABLE_BYTES, 0);
    with_checksum(bytes)
}

fn put_metadata(clusters: &Clusters, put: &mut Put<'_>) -> Result<()> {
    let (is_needed, of_disk) = (FLAG_REQUIRED, FLAG_REQUIRED | FLAG_DISK);
    // Blocks need not stay allocated, and there is no parent.
    let parameters = clusters.cluster_bytes().to_le_bytes();
    let logical = (SECTOR_BYTES as u32).to_le_bytes();
    let items: [(u128, &[u8], u32); 5] = [
        (ITEM_FILE_PARAMETERS, &parameters, is_needed),
        (ITEM_DISK_BYTES, &clusters.size().to_le_bytes(), of_disk),
        (ITEM_DISK_ID, &random_bytes::<16>()?, of_disk),
        (ITEM_LOGICAL_SECTOR, &logical, of_disk),
        (ITEM_PHYSICAL_SECTOR, &PHYSICAL_SECTOR_BYTES.to_le_bytes(), of_disk),
    ];
    let mut table = b"metadata\0\0".to_vec();
    table.extend((items.len() as u16).to_le_bytes());
    table.extend([0; 20]);
    let mut values = Vec::new();
    for (id, value, flags) in items {
        table.extend(id_bytes(id));
        table.extend(((TABLE_BYTES + values.len()) as u32).to_le_bytes());
        table.extend((value.len() as u32).to_le_bytes());
        table.extend(flags.to_le_bytes());
        table.extend([0; 4]);
        values.extend_from_slice(value);
    }
    put(METADATA_AT, &table)?;
    put(METADATA_AT + TABLE_BYTES as u64, &values)
}

/// As the format stores ids: the first three fields begin with their low byte.
fn id_bytes(id: u128) -> [u8; 16] {
    let mut bytes = id.to_be_bytes();
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

/// CRC-32C over all bytes, with zeros where it stands.
fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = Crc::<u32>::new(&CRC_32_ISCSI).checksum(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_grow_with_the_disk() {
        assert_eq!(block_bytes(0), 2 * MIB);
        assert_eq!(block_bytes(2 << 40), 2 * MIB);
        assert_eq!(block_bytes((2 << 40) + 512), 4 * MIB);
        assert_eq!(block_bytes(64 << 40), 64 * MIB);
    }
}

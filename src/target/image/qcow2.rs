//! qcow2 images, version 3: header, reference counts and tables
//! (QEMU, docs/interop/qcow2.rst).
//!
//! Invariant: every cluster of the file is used once, and its reference count is 1.

use super::packed::{Places, Put, put_entries};
use super::used::Clusters;
use super::{Backing, Description};
use crate::error::{Error, Result};

/// Bytes of a cluster, QEMU's own choice.
pub const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 16;
/// Entries of a table of the second level.
pub(super) const TABLE_ENTRIES: u64 = CLUSTER_BYTES / 8;
/// Reference counts of 16 bits in a block of them.
pub(super) const COUNTS_PER_BLOCK: u64 = CLUSTER_BYTES / 2;
/// QEMU's limit for the table of the first level is 32 MiB, that for the table of reference counts
/// 8 MiB: both are 2 PiB.
pub(super) const DISK_BYTES_MAX: u64 = 2 << 50;
/// Longest name of a backing file.
const BACKING_BYTES_MAX: usize = 1023;

/// The one reference that there is to a cluster.
pub(super) const FLAG_COPIED: u64 = 1 << 63;
/// A cluster that reads as zeros, whatever is below.
const FLAG_ZERO: u64 = 1;

const HEADER_BYTES: u32 = 112;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// An incompatible feature: clusters are compressed with what byte 104 says.
const FEATURE_COMPRESSION: u64 = 1 << 3;

/// Where the tables are, in clusters of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TablePlaces {
    /// Of the table of the first level.
    pub first_level_at: u64,
    /// Its entries.
    pub first_level_entries: u64,
    /// Of the table of reference counts.
    pub counts_at: u64,
    /// Its clusters.
    pub counts_clusters: u64,
}

/// The cluster of the header.
pub(super) fn header(
    size: u64,
    tables: TablePlaces,
    is_zstd: bool,
    backing: Option<&Backing<'_>>,
) -> Result<Vec<u8>, &'static str> {
    let mut bytes = Vec::with_capacity(256);
    let mut extensions = Vec::new();
    if let Some(backing) = backing {
        extensions.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
        extensions.extend((backing.format.len() as u32).to_be_bytes());
        extensions.extend(backing.format.as_bytes());
        extensions.resize(extensions.len().next_multiple_of(8), 0);
        if backing.name.len() > BACKING_BYTES_MAX {
            return Err("the name of its base is longer than 1023 bytes");
        }
    }
    // The end of the extensions.
    extensions.resize(extensions.len() + 8, 0);
    let name_at = u64::from(HEADER_BYTES) + extensions.len() as u64;
    let name = backing.map_or("", |backing| backing.name);
    bytes.extend(b"QFI\xfb");
    bytes.extend(3_u32.to_be_bytes());
    bytes.extend(if backing.is_some() { name_at } else { 0 }.to_be_bytes());
    bytes.extend((name.len() as u32).to_be_bytes());
    bytes.extend(CLUSTER_BITS.to_be_bytes());
    bytes.extend(size.to_be_bytes());
    // No encryption.
    bytes.extend(0_u32.to_be_bytes());
    bytes.extend((tables.first_level_entries as u32).to_be_bytes());
    bytes.extend((tables.first_level_at * CLUSTER_BYTES).to_be_bytes());
    bytes.extend((tables.counts_at * CLUSTER_BYTES).to_be_bytes());
    bytes.extend((tables.counts_clusters as u32).to_be_bytes());
    // No snapshots.
    bytes.extend([0; 12]);
    let incompatible = if is_zstd { FEATURE_COMPRESSION } else { 0 };
    bytes.extend(incompatible.to_be_bytes());
    // No compatible and no autoclear features; reference counts of 2^4 bits.
    bytes.extend([0; 16]);
    bytes.extend(4_u32.to_be_bytes());
    bytes.extend(HEADER_BYTES.to_be_bytes());
    bytes.push(u8::from(is_zstd));
    bytes.extend([0; 7]);
    bytes.extend(extensions);
    bytes.extend(name.as_bytes());
    Ok(bytes)
}

/// Tables of reference counts for `others` clusters and themselves: clusters of the table, blocks.
fn count_tables(others: u64) -> (u64, u64) {
    let (mut table, mut blocks) = (1, 1);
    loop {
        let total = others + table + blocks;
        let needed = total.div_ceil(COUNTS_PER_BLOCK);
        let table_needed = (needed * 8).div_ceil(CLUSTER_BYTES);
        if (table_needed, needed) == (table, blocks) {
            return (table, blocks);
        }
        (table, blocks) = (table_needed.max(table), needed.max(blocks));
    }
}

/// Where everything is: the header, the table and blocks of reference counts, the table of the first
/// level, those of the second level that are not empty, and the clusters.
struct Layout {
    tables: TablePlaces,
    blocks: u64,
    blocks_at: u64,
    second_level_at: u64,
    places: Places,
    /// Clusters of the file.
    total: u64,
}

impl Layout {
    fn new(size: u64, used: u64, second_level: u64) -> Layout {
        let first_level_entries = size.div_ceil(CLUSTER_BYTES).div_ceil(TABLE_ENTRIES);
        let first_level = (first_level_entries * 8).div_ceil(CLUSTER_BYTES);
        let (counts_clusters, blocks) = count_tables(1 + first_level + second_level + used);
        let blocks_at = 1 + counts_clusters;
        let first_level_at = blocks_at + blocks;
        let second_level_at = first_level_at + first_level;
        let data_at = second_level_at + second_level;
        let total = data_at + used;
        let places = Places {
            data_at: data_at * CLUSTER_BYTES,
            stride: CLUSTER_BYTES,
            file_bytes: total * CLUSTER_BYTES,
        };
        let tables =
            TablePlaces { first_level_at, first_level_entries, counts_at: 1, counts_clusters };
        Layout { tables, blocks, blocks_at, second_level_at, places, total }
    }
}

/// Writes everything but the clusters.
pub(super) fn write_tables(
    clusters: &Clusters,
    description: &Description<'_>,
    put: &mut Put<'_>,
    refuse: &dyn Fn(&str) -> Error,
) -> Result<Places> {
    let size = clusters.size();
    if size > DISK_BYTES_MAX {
        return Err(refuse("it holds at most 2 PiB"));
    }
    let backing = description.backing.as_ref();
    let zeros = backing.and_then(|backing| backing.zeros);
    let has_table = |number: u64| {
        let range = number * TABLE_ENTRIES..(number + 1) * TABLE_ENTRIES;
        clusters.any(range.clone()) || zeros.is_some_and(|zeros| zeros.any(range))
    };
    let tables = clusters.count().div_ceil(TABLE_ENTRIES);
    let second_level = (0..tables).filter(|number| has_table(*number)).count() as u64;
    let layout = Layout::new(size, clusters.used(), second_level);
    put(0, &header(size, layout.tables, false, backing).map_err(refuse)?)?;
    let at = |cluster: u64| cluster * CLUSTER_BYTES;
    put_entries(put, at(layout.tables.counts_at), layout.blocks, &mut |block| {
        at(layout.blocks_at + block).to_be_bytes()
    })?;
    put_entries(put, at(layout.blocks_at), layout.total, &mut |_| 1_u16.to_be_bytes())?;
    let mut next = layout.second_level_at;
    put_entries(put, at(layout.tables.first_level_at), tables, &mut |number| {
        if !has_table(number) {
            return [0; 8];
        }
        next += 1;
        (at(next - 1) | FLAG_COPIED).to_be_bytes()
    })?;
    let mut table = vec![0; CLUSTER_BYTES as usize];
    let numbers = (0..tables).filter(|number| has_table(*number));
    for (next, number) in (layout.second_level_at..).zip(numbers) {
        let first = number * TABLE_ENTRIES;
        let range = first..first + TABLE_ENTRIES;
        table.fill(0);
        let mut set = |cluster: u64, entry: u64| {
            let place = (cluster - first) as usize * 8;
            table[place..place + 8].copy_from_slice(&entry.to_be_bytes());
        };
        if let Some(zeros) = zeros {
            zeros.each_used(range.clone(), &mut |cluster, _| set(cluster, FLAG_ZERO));
        }
        let places = layout.places;
        clusters.each_used(range, &mut |cluster, rank| set(cluster, places.of(rank) | FLAG_COPIED));
        put(at(next), &table)?;
    }
    Ok(layout.places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_counts_cover_their_own_tables() {
        let borders = (1..6).map(|blocks| blocks * COUNTS_PER_BLOCK);
        for others in borders.flat_map(|border| border - 5..border + 5).chain([1, 1 << 30]) {
            let (table, blocks) = count_tables(others);
            let total = others + table + blocks;
            assert!(blocks * COUNTS_PER_BLOCK >= total, "{others}");
            assert!((blocks - 1) * COUNTS_PER_BLOCK <= total, "{others}");
            assert!(table * CLUSTER_BYTES >= blocks * 8, "{others}");
        }
    }
}

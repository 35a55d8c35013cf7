//! qcow2 images with compressed clusters.
//!
//! Compressed clusters lie byte by byte behind each other, across the borders of the file's
//! clusters; what gets no smaller has a cluster of its own. A block of reference counts is the first
//! cluster of the 2 GiB that it counts, and is written when those are full. A table of the second
//! level is written behind the last cluster that it names.
//!
//! Invariant: a reference count is the number of compressed clusters that have a byte in a cluster of
//! the file, or 1 for any other use; memory is one block, one table and the tables above them.

use super::file::ImageFile;
use super::qcow2::{
    CLUSTER_BYTES, COUNTS_PER_BLOCK, DISK_BYTES_MAX, FLAG_COPIED, TABLE_ENTRIES, TablePlaces,
    header,
};
use super::refuse;
use super::serial::{ClusterSink, Packing};
use crate::error::Result;
use std::path::Path;

/// An entry of the second level: a compressed cluster, the number of sectors of 512 bytes behind
/// its first one, its first byte.
const FLAG_COMPRESSED: u64 = 1 << 62;
const SECTORS_SHIFT: u32 = 54;
const SECTOR_BYTES: u64 = 512;

/// A new image.
pub struct Qcow2Compressed {
    file: ImageFile,
    size: u64,
    packing: Packing,
    /// The next free cluster of the file.
    next: u64,
    /// Behind the last byte of the last compressed cluster, if more may follow there; else 0.
    tail: u64,
    first_level: Vec<u64>,
    /// The table of the second level under way, which entry of the first it belongs to, and whether
    /// it has any.
    table: Vec<u64>,
    table_number: u64,
    table_is_used: bool,
    /// Of the clusters of the 2 GiB under way.
    counts: Vec<u16>,
    /// Where the blocks of counts are.
    count_blocks: Vec<u64>,
}

impl Qcow2Compressed {
    /// Begins an image of a disk of `size` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Target`](crate::error::ErrorKind::Target) if the format cannot hold it;
    /// otherwise as [`open_target`](crate::target::open_target).
    pub fn create(path: &Path, force: bool, size: u64, packing: Packing) -> Result<Self> {
        if size > DISK_BYTES_MAX {
            return Err(refuse(path, "qcow2", "it holds at most 2 PiB"));
        }
        let file = ImageFile::create(path, force)?;
        let tables = size.div_ceil(CLUSTER_BYTES).div_ceil(TABLE_ENTRIES);
        let mut counts = vec![0; COUNTS_PER_BLOCK as usize];
        // The header, and the block itself.
        counts[..2].fill(1);
        Ok(Qcow2Compressed {
            file,
            size,
            packing,
            next: 2,
            tail: 0,
            first_level: vec![0; tables as usize],
            table: vec![0; TABLE_ENTRIES as usize],
            table_number: 0,
            table_is_used: false,
            counts,
            count_blocks: vec![CLUSTER_BYTES],
        })
    }

    /// A free cluster of the file, with one reference to it.
    fn take_cluster(&mut self) -> Result<u64> {
        if self.next.is_multiple_of(COUNTS_PER_BLOCK) {
            self.write_counts()?;
            self.count_blocks.push(self.next * CLUSTER_BYTES);
            self.counts.fill(0);
            self.counts[0] = 1;
            self.next += 1;
            // Counts behind it are written.
            self.tail = 0;
        }
        let cluster = self.next;
        self.next += 1;
        self.count(cluster);
        Ok(cluster)
    }

    /// Free clusters behind each other; the first one, or any place if there are none.
    fn take_clusters(&mut self, count: u64) -> Result<u64> {
        if count == 0 {
            return Ok(self.next);
        }
        let within = self.next % COUNTS_PER_BLOCK;
        if within + count > COUNTS_PER_BLOCK {
            self.next += COUNTS_PER_BLOCK - within;
        }
        let first = self.take_cluster()?;
        for _ in 1..count {
            self.take_cluster()?;
        }
        Ok(first)
    }

    fn count(&mut self, cluster: u64) {
        self.counts[(cluster % COUNTS_PER_BLOCK) as usize] += 1;
    }

    fn write_counts(&mut self) -> Result<()> {
        let at = self.count_blocks.last().copied().unwrap_or_default();
        let bytes: Vec<u8> = self.counts.iter().flat_map(|count| count.to_be_bytes()).collect();
        self.file.write_at(at, &bytes)
    }

    /// A place for so many compressed bytes, at most a cluster.
    fn place(&mut self, bytes: u64) -> Result<u64> {
        let room = self.tail.next_multiple_of(CLUSTER_BYTES) - self.tail;
        let at = self.tail;
        let border = at + room;
        let may_grow =
            border / CLUSTER_BYTES == self.next && !self.next.is_multiple_of(COUNTS_PER_BLOCK);
        if room > 0 && (bytes <= room || may_grow) {
            self.count(at / CLUSTER_BYTES);
            if bytes > room {
                self.take_cluster()?;
            }
            self.tail = at + bytes;
            return Ok(at);
        }
        let at = self.take_cluster()? * CLUSTER_BYTES;
        self.tail = at + bytes;
        Ok(at)
    }

    fn write_table(&mut self) -> Result<()> {
        if !self.table_is_used {
            return Ok(());
        }
        let at = self.take_cluster()? * CLUSTER_BYTES;
        self.file.write_at(at, &big_endian(&self.table))?;
        self.first_level[self.table_number as usize] = at | FLAG_COPIED;
        self.table.fill(0);
        self.table_is_used = false;
        Ok(())
    }

    /// Writes the tables that are left, and gives the image its name.
    ///
    /// # Errors
    /// As [`DiskTarget::finish`](crate::target::DiskTarget::finish).
    pub fn finish(mut self) -> Result<()> {
        self.write_table()?;
        let clusters = |entries: usize| (entries as u64 * 8).div_ceil(CLUSTER_BYTES);
        let first_level_at = self.take_clusters(clusters(self.first_level.len()))?;
        self.file.write_at(first_level_at * CLUSTER_BYTES, &big_endian(&self.first_level))?;
        // Its own clusters may need one more block.
        let counts_clusters = clusters(self.count_blocks.len() + 1);
        let counts_at = self.take_clusters(counts_clusters)?;
        self.write_counts()?;
        self.file.write_at(counts_at * CLUSTER_BYTES, &big_endian(&self.count_blocks))?;
        self.file.set_size(self.next * CLUSTER_BYTES)?;
        let tables = TablePlaces {
            first_level_at,
            first_level_entries: self.first_level.len() as u64,
            counts_at,
            counts_clusters,
        };
        let is_zstd = self.packing == Packing::Zstd;
        let header = header(self.size, tables, is_zstd, None);
        let header = header.map_err(|why| refuse(self.file.path(), "qcow2", why))?;
        self.file.write_at(0, &header)?;
        self.file.finish()
    }
}

impl ClusterSink for Qcow2Compressed {
    fn packing(&self) -> Packing {
        self.packing
    }

    fn cluster_bytes(&self) -> usize {
        CLUSTER_BYTES as usize
    }

    fn add(&mut self, number: u64, cluster: &[u8], packed: &[u8]) -> Result<()> {
        if number / TABLE_ENTRIES != self.table_number {
            self.write_table()?;
            self.table_number = number / TABLE_ENTRIES;
        }
        let entry = if packed.is_empty() {
            let at = self.take_cluster()? * CLUSTER_BYTES;
            self.file.write_at(at, cluster)?;
            at | FLAG_COPIED
        } else {
            let bytes = packed.len() as u64;
            let at = self.place(bytes)?;
            self.file.write_at(at, packed)?;
            let sectors = (at + bytes - 1) / SECTOR_BYTES - at / SECTOR_BYTES;
            at | sectors << SECTORS_SHIFT | FLAG_COMPRESSED
        };
        self.table[(number % TABLE_ENTRIES) as usize] = entry;
        self.table_is_used = true;
        Ok(())
    }
}

fn big_endian(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

//! A qcow2 image in which every cluster has its place from the start: guest offset plus a constant.
//!
//! Such an image is a raw file behind a head of tables that never change while a guest writes to
//! it, so it can be kept up to date as a raw file can. What the guest never wrote are holes of the
//! file. Layout: header, refcount table, refcount blocks, L1 table, L2 tables, data, each part at a
//! cluster of its own (QEMU, docs/interop/qcow2.txt, version 3).
//!
//! Invariant: the head depends on nothing but the size of the disk.

use crate::error::{Error, ErrorKind, Result};

/// The largest that QEMU takes: the head is a millionth of the disk then.
const CLUSTER_BITS: u32 = 21;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Of each cluster: 2^4 bits.
const REFCOUNT_ORDER: u32 = 4;
const REFCOUNT_BYTES: u64 = 2;
const ENTRY_BYTES: u64 = 8;
const HEADER_BYTES: u32 = 104;
/// Of an entry that names a cluster with a refcount of 1: the guest may write in place.
const COPIED: u64 = 1 << 63;
/// With 2 MiB clusters a table of 32 MiB, the longest that QEMU reads, would take 2 EiB; the head
/// is built in memory, and takes 256 MiB for this size.
const SIZE_MAX: u64 = 64 << 40;

/// Where everything is in an image of a disk of some size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlatQcow2 {
    size: u64,
    /// Clusters of each part, in their order.
    table: u64,
    blocks: u64,
    l1: u64,
    l2: u64,
    data: u64,
}

impl FlatQcow2 {
    /// The layout for a disk of `size` bytes.
    pub(super) fn new(size: u64) -> Result<FlatQcow2> {
        if size > SIZE_MAX || !size.is_multiple_of(512) {
            let text = format!(
                "cannot make a qcow2 mirror of a disk of {size} bytes: expected a multiple of 512 \
                 up to 64 TiB"
            );
            return Err(Error::new(ErrorKind::Usage, text));
        }
        let data = size.div_ceil(CLUSTER);
        let l2 = data.div_ceil(CLUSTER / ENTRY_BYTES);
        let l1 = (l2 * ENTRY_BYTES).div_ceil(CLUSTER).max(1);
        let per_block = CLUSTER / REFCOUNT_BYTES;
        // The blocks also count themselves: a few rounds until they do.
        let (mut table, mut blocks) = (1, 1);
        loop {
            let clusters = 1 + table + blocks + l1 + l2 + data;
            let wanted = clusters.div_ceil(per_block);
            let wanted_table = (wanted * ENTRY_BYTES).div_ceil(CLUSTER).max(1);
            if (wanted_table, wanted) == (table, blocks) {
                return Ok(FlatQcow2 { size, table, blocks, l1, l2, data });
            }
            (table, blocks) = (wanted_table, wanted);
        }
    }

    fn l1_start(&self) -> u64 {
        (1 + self.table + self.blocks) * CLUSTER
    }

    fn l2_start(&self) -> u64 {
        self.l1_start() + self.l1 * CLUSTER
    }

    /// Where the guest's first byte is in the file.
    pub(super) fn data_start(&self) -> u64 {
        self.l2_start() + self.l2 * CLUSTER
    }

    /// Length of the file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.data_start() + self.data * CLUSTER
    }

    /// Everything in front of the data that is not zeros: offsets and bytes, ascending.
    pub(super) fn head(&self) -> Vec<(u64, Vec<u8>)> {
        let clusters = self.file_bytes() / CLUSTER;
        let table = (0..self.blocks).map(|block| (1 + self.table + block) * CLUSTER);
        let refcounts = (0..clusters).flat_map(|_| 1_u16.to_be_bytes()).collect();
        let l1 = (0..self.l2).map(|number| (self.l2_start() + number * CLUSTER) | COPIED);
        let l2 = (0..self.data).map(|number| (self.data_start() + number * CLUSTER) | COPIED);
        vec![
            (0, self.header()),
            (CLUSTER, entries(table)),
            ((1 + self.table) * CLUSTER, refcounts),
            (self.l1_start(), entries(l1)),
            (self.l2_start(), entries(l2)),
        ]
    }

    fn header(&self) -> Vec<u8> {
        let mut header = b"QFI\xfb".to_vec();
        header.extend(3_u32.to_be_bytes());
        // No backing file.
        header.extend([0; 12]);
        header.extend(CLUSTER_BITS.to_be_bytes());
        header.extend(self.size.to_be_bytes());
        // Not encrypted.
        header.extend([0; 4]);
        // Of a disk of no bytes one entry that names nothing: its cluster has to be of use.
        header.extend((self.l2.max(1) as u32).to_be_bytes());
        header.extend(self.l1_start().to_be_bytes());
        header.extend(CLUSTER.to_be_bytes());
        header.extend((self.table as u32).to_be_bytes());
        // No snapshots, no features.
        header.extend([0; 12 + 24]);
        header.extend(REFCOUNT_ORDER.to_be_bytes());
        header.extend(HEADER_BYTES.to_be_bytes());
        // The end of the header's extensions.
        header.extend([0; 8]);
        header
    }
}

fn entries(values: impl Iterator<Item = u64>) -> Vec<u8> {
    values.flat_map(u64::to_be_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_overlap_and_all_clusters_are_counted() {
        let sizes = [0, 512, CLUSTER - 512, CLUSTER, CLUSTER + 512, 1 << 40, (1 << 40) + 512];
        for size in sizes {
            let layout = FlatQcow2::new(size).unwrap();
            let head = layout.head();
            let mut end = 0;
            for (start, bytes) in &head {
                assert!(*start >= end && start.is_multiple_of(CLUSTER), "{size}: {start}");
                end = start + bytes.len() as u64;
            }
            assert!(end <= layout.data_start());
            assert_eq!(head[2].1.len() as u64, layout.file_bytes() / CLUSTER * 2);
            assert_eq!(head[4].1.len() as u64, size.div_ceil(CLUSTER) * 8);
            assert_eq!(head[0].1.len(), HEADER_BYTES as usize + 8);
        }
        assert!(FlatQcow2::new(513).is_err() && FlatQcow2::new(SIZE_MAX + 512).is_err());
    }
}

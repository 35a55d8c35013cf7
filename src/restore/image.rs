//! A disk into an image of another program's format.
//!
//! What the map says of zeros tells which clusters the image holds, before anything is read. So an
//! image whose clusters lie as they are is written by `disk`, in any order; one with compressed
//! clusters by `sequential`, from front to back.
//!
//! Invariant: a cluster is left out only if the map or its verified bytes say that it is zeros.

use super::disk::{SparseMode, restore_disk};
use super::fetch::Fetcher;
use super::part::Part;
use super::sequential::{Output, read_part};
use crate::chunking::is_zero;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::map_cursor::Cursor;
use crate::repository::map_reader::MapReader;
use crate::target::image::{
    ClusterSet, ClusterSink, Clusters, Description, PackedFormat, Packer, create_packed,
};
use diskvault_format::manifest::DiskRecord;
use rayon::ThreadPool;
use rayon::prelude::*;
use std::path::Path;
use std::sync::Arc;

/// Bytes of clusters that are compressed at the same time.
const BATCH_BYTES: usize = 8 << 20;

/// The clusters of a disk that are not zeros by its map.
fn used_clusters(fetcher: &Fetcher<'_>, disk: &DiskRecord, cluster_bytes: u64) -> Result<Clusters> {
    let reader = MapReader::new(fetcher.repository, fetcher.locator);
    let mut cursor = Cursor::new(&reader, disk)?;
    let mut set = ClusterSet::new(disk.size, cluster_bytes);
    let mut at = 0;
    while at < disk.size {
        let run = cursor.run_from(at)?;
        if run.chunk.is_some() {
            set.add(run.start..run.end);
        } else {
            fetcher.monitor.check_cancelled()?;
        }
        at = run.end;
    }
    Ok(set.finish())
}

/// Restores a disk into a new image whose clusters lie as they are.
///
/// # Errors
/// `Damage` for what does not verify; otherwise as [`create_packed`].
pub fn restore_packed(
    fetcher: &Fetcher<'_>,
    disk: &DiskRecord,
    (path, force): (&Path, bool),
    format: PackedFormat,
    description: &Description<'_>,
) -> Result<()> {
    let clusters = used_clusters(fetcher, disk, format.cluster_bytes(disk.size))?;
    let target = create_packed(path, force, format, description, Arc::new(clusters))?;
    restore_disk(fetcher, disk, target.as_ref(), SparseMode::Auto)?;
    target.finish()
}

/// Restores a disk into an image that takes compressed clusters in their order; it is not finished
/// here.
///
/// # Errors
/// `Damage` for what does not verify, or what the image says.
pub fn restore_in_order(
    fetcher: &Fetcher<'_>,
    disk: &DiskRecord,
    image: &mut dyn ClusterSink,
    pool: &ThreadPool,
) -> Result<()> {
    let cluster_bytes = image.cluster_bytes();
    let mut gatherer = Gatherer {
        image,
        pool,
        cluster_bytes,
        data: Vec::with_capacity(BATCH_BYTES),
        numbers: Vec::new(),
        at: 0,
    };
    read_part(fetcher, Part::Disk(disk), &mut gatherer)?;
    gatherer.finish(disk.size)
}

/// Gathers clusters, and has batches of them compressed on all cores.
struct Gatherer<'a> {
    image: &'a mut dyn ClusterSink,
    pool: &'a ThreadPool,
    cluster_bytes: usize,
    /// Whole clusters of the batch, and the beginning of the next one.
    data: Vec<u8>,
    /// Of the whole clusters.
    numbers: Vec<u64>,
    /// Bytes of the disk so far.
    at: u64,
}

impl Gatherer<'_> {
    /// Bytes of the cluster under way that are there.
    fn partial(&self) -> usize {
        self.data.len() - self.numbers.len() * self.cluster_bytes
    }

    /// Takes the cluster that became whole into the batch, unless it is zeros.
    fn end_cluster(&mut self) -> Result<()> {
        let start = self.data.len() - self.cluster_bytes;
        if is_zero(&self.data[start..]) {
            self.data.truncate(start);
            return Ok(());
        }
        self.numbers.push((self.at - 1) / self.cluster_bytes as u64);
        if self.data.len() >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let packing = self.image.packing();
        let clusters = self.data.par_chunks(self.cluster_bytes);
        let packed: Vec<Result<Vec<u8>>> = self.pool.install(|| {
            let pack = |packer: &mut Result<Packer>, cluster: &[u8]| match packer {
                Ok(packer) => packer.pack(cluster),
                Err(error) => Err(Error::new(error.kind(), error.full_text())),
            };
            clusters.map_init(|| Packer::new(packing), pack).collect()
        });
        let clusters = self.data.chunks(self.cluster_bytes);
        for ((number, cluster), packed) in self.numbers.iter().zip(clusters).zip(packed) {
            self.image.add(*number, cluster, &packed?)?;
        }
        self.data.clear();
        self.numbers.clear();
        Ok(())
    }

    fn finish(mut self, size: u64) -> Result<()> {
        if self.at != size {
            let text = format!("cannot restore a disk of {size} bytes: it ends at {}", self.at);
            return Err(Error::new(ErrorKind::Damage, text));
        }
        let partial = self.partial();
        if partial > 0 {
            // Behind the disk's end are zeros.
            self.data.resize(self.data.len() + self.cluster_bytes - partial, 0);
            self.end_cluster()?;
        }
        self.flush()
    }
}

impl Output for Gatherer<'_> {
    fn data(&mut self, data: &[u8]) -> Result<()> {
        let mut rest = data;
        while !rest.is_empty() {
            let step = rest.len().min(self.cluster_bytes - self.partial());
            let (piece, behind) = rest.split_at(step);
            self.data.extend_from_slice(piece);
            self.at += step as u64;
            rest = behind;
            if self.partial() == self.cluster_bytes {
                self.end_cluster()?;
            }
        }
        Ok(())
    }

    fn zeros(&mut self, bytes: u64) -> Result<()> {
        let cluster = self.cluster_bytes as u64;
        let end = self.at + bytes;
        // The rest of a cluster that was begun, whole clusters, the beginning of one.
        let border = end.min(self.at.next_multiple_of(cluster));
        let middle = border.max(end - end % cluster);
        for (is_whole, stop) in [(false, border), (true, middle), (false, end)] {
            let step = stop - self.at;
            self.at = stop;
            if is_whole || step == 0 {
                continue;
            }
            self.data.resize(self.data.len() + step as usize, 0);
            if self.partial() == self.cluster_bytes {
                self.end_cluster()?;
            }
        }
        Ok(())
    }
}

//! Images whose clusters lie one behind the other, compressed, in the order of the disk.
//!
//! Invariant: clusters are added ascending, each at most once; those that nobody adds are zeros.

use crate::error::{Error, ErrorKind, Result};
use flate2::{Compress, Compression, FlushCompress, Status};

/// zlib's and QEMU's own choice.
const DEFLATE_LEVEL: u32 = 6;
/// Of qcow2: a window of 4 KiB is what readers have to keep.
const DEFLATE_WINDOW_BITS: u8 = 12;
/// Of grains: zlib's largest.
const GRAIN_WINDOW_BITS: u8 = 15;
/// zstd's own choice.
const ZSTD_LEVEL: i32 = 3;
/// What deflate may add to a grain that does not get smaller; it takes 5 bytes for each 16 KiB.
const GRAIN_BYTES_MORE: usize = 1 << 10;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Deflate as qcow2 has it; a cluster that gets no smaller becomes no bytes.
    Deflate,
    /// zstd as qcow2 has it; likewise.
    Zstd,
    /// zlib streams, as VMDK has them; always compressed.
    Grain,
}

/// Compresses clusters, one after the other.
pub enum Packer {
    /// For [`Packing::Deflate`].
    Deflate(Compress),
    /// For [`Packing::Zstd`].
    Zstd(zstd::bulk::Compressor<'static>),
    /// For [`Packing::Grain`].
    Grain(Compress),
}

impl Packer {
    /// One that compresses so.
    ///
    /// # Errors
    /// Fails if zstd cannot be had.
    pub fn new(packing: Packing) -> Result<Packer> {
        let level = Compression::new(DEFLATE_LEVEL);
        let deflate = |has_header, bits| Compress::new_with_window_bits(level, has_header, bits);
        Ok(match packing {
            Packing::Deflate => Packer::Deflate(deflate(false, DEFLATE_WINDOW_BITS)),
            Packing::Grain => Packer::Grain(deflate(true, GRAIN_WINDOW_BITS)),
            Packing::Zstd => Packer::Zstd(zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(failed)?),
        })
    }

    /// A cluster, compressed.
    ///
    /// # Errors
    /// Fails if the library does.
    pub fn pack(&mut self, cluster: &[u8]) -> Result<Vec<u8>> {
        // What has the size of a cluster is no gain.
        let room = cluster.len() - 1;
        match self {
            Packer::Deflate(deflate) => {
                Ok(run_deflate(deflate, cluster, room)?.unwrap_or_default())
            }
            Packer::Grain(deflate) => run_deflate(deflate, cluster, room + GRAIN_BYTES_MORE)?
                .ok_or_else(|| failed("a grain became larger than it may")),
            Packer::Zstd(zstd) => {
                let packed = zstd.compress(cluster).map_err(failed)?;
                Ok(if packed.len() > room { Vec::new() } else { packed })
            }
        }
    }
}

/// Nothing if it does not fit `room`.
fn run_deflate(deflate: &mut Compress, cluster: &[u8], room: usize) -> Result<Option<Vec<u8>>> {
    deflate.reset();
    let mut packed = vec![0; room];
    let status = deflate.compress(cluster, &mut packed, FlushCompress::Finish).map_err(failed)?;
    if status != Status::StreamEnd {
        return Ok(None);
    }
    packed.truncate(deflate.total_out() as usize);
    Ok(Some(packed))
}

fn failed(cause: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Failed, format!("cannot compress a cluster: {cause}"))
}

/// An image that takes its clusters in the order of the disk.
pub trait ClusterSink {
    /// How clusters are compressed.
    fn packing(&self) -> Packing;

    /// Bytes of a cluster.
    fn cluster_bytes(&self) -> usize;

    /// Adds the cluster of this number, which is greater than the last one; `packed` is what a
    /// [`Packer`] made of it.
    ///
    /// # Errors
    /// As [`DiskTarget::write_at`](crate::target::DiskTarget::write_at).
    fn add(&mut self, number: u64, cluster: &[u8], packed: &[u8]) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Decompress, FlushDecompress};

    #[test]
    fn distances_stay_within_the_window_of_qcow2() {
        // 4 KiB of noise, again and again at a distance of 8 KiB, with other noise between.
        let mut noise = vec![0; 64 << 10];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let mut cluster = noise.clone();
        for start in (8 << 10..64 << 10).step_by(8 << 10) {
            cluster.copy_within(0..4 << 10, start);
        }
        let mut packer = Packer::new(Packing::Deflate).unwrap();
        assert!(packer.pack(&cluster).unwrap().is_empty(), "it looked back farther");
        let mut grains = Packer::new(Packing::Grain).unwrap();
        assert!(grains.pack(&cluster).unwrap().len() < 40 << 10);
        // At 2 KiB it may.
        for start in (2 << 10..64 << 10).step_by(2 << 10) {
            cluster.copy_within(0..2 << 10, start);
        }
        let packed = packer.pack(&cluster).unwrap();
        assert!(!packed.is_empty() && packed.len() < 16 << 10, "{}", packed.len());
        let mut inflated = vec![0; cluster.len()];
        let mut inflate = Decompress::new_with_window_bits(false, 12);
        inflate.decompress(&packed, &mut inflated, FlushDecompress::Finish).unwrap();
        assert!(inflated == cluster);
    }

    #[test]
    fn noise_is_no_smaller() {
        let mut noise = vec![0; 64 << 10];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        for packing in [Packing::Deflate, Packing::Zstd] {
            assert!(Packer::new(packing).unwrap().pack(&noise).unwrap().is_empty());
        }
        let packed = Packer::new(Packing::Grain).unwrap().pack(&noise).unwrap();
        assert!(packed.len() > noise.len());
    }
}

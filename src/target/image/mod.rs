//! Disks into images of other programs' formats.
//!
//! `used` knows which clusters an image holds; `packed` writes them at places that are known before
//! (`qcow2`, `vmdk`, `vhd`, `vhdx`), `serial` one behind the other as they are compressed
//! (`qcow2_compressed`, `vmdk_stream`, `ova` with `ovf`). `file` is the file of all of them.
//!
//! Invariants: an image has its name only when it is complete, and replaces a file as a whole; a
//! disk that a format cannot hold as it is is refused, never rounded.

mod file;
mod ova;
mod ovf;
mod packed;
mod qcow2;
mod qcow2_compressed;
mod serial;
mod used;
mod vhd;
mod vhdx;
mod vmdk;
mod vmdk_stream;

pub use file::check_target;
pub use ova::Ova;
pub use packed::create_packed;
pub use qcow2_compressed::Qcow2Compressed;
pub use serial::{ClusterSink, Packer, Packing};
pub use used::{ClusterSet, Clusters};
pub use vmdk_stream::VmdkStream;

use crate::error::{Error, ErrorKind, Result};
use std::path::Path;

/// What the size of a disk is a multiple of, in every format.
const SECTOR_BYTES: u64 = 512;

/// A format whose clusters have places that are known before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedFormat {
    /// QEMU's format, version 3.
    Qcow2,
    /// VMware's, sparse in one file.
    Vmdk,
    /// Virtual PC's, dynamic.
    Vhd,
    /// Hyper-V's, dynamic.
    Vhdx,
}

impl PackedFormat {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            PackedFormat::Qcow2 => "qcow2",
            PackedFormat::Vmdk => "vmdk",
            PackedFormat::Vhd => "vhd",
            PackedFormat::Vhdx => "vhdx",
        }
    }

    /// Bytes of a cluster of a disk of `size` bytes.
    pub fn cluster_bytes(self, size: u64) -> u64 {
        match self {
            PackedFormat::Qcow2 => qcow2::CLUSTER_BYTES,
            PackedFormat::Vmdk => vmdk::GRAIN_BYTES,
            PackedFormat::Vhd => vhd::BLOCK_BYTES,
            PackedFormat::Vhdx => vhdx::block_bytes(size),
        }
    }

    fn refuse(self, path: &Path, why: &str) -> Error {
        refuse(path, self.name(), why)
    }
}

/// The error for a disk that a format cannot hold.
fn refuse(path: &Path, format: &str, why: &str) -> Error {
    let path = path.display();
    Error::new(ErrorKind::Target, format!("cannot write {path} as {format}: {why}"))
}

/// Checks what every format wants of a disk's size.
///
/// # Errors
/// [`ErrorKind::Target`] if it is no multiple of 512 bytes.
pub fn check_size(path: &Path, format: &str, size: u64) -> Result<()> {
    if size.is_multiple_of(SECTOR_BYTES) {
        return Ok(());
    }
    let why = format!("the disk has {size} bytes, no multiple of {SECTOR_BYTES}");
    Err(refuse(path, format, &why).hint("restore it as raw"))
}

/// What an image tells beside the disk's bytes.
#[derive(Clone, Copy, Default)]
pub struct Description<'a> {
    /// When the disk was so, in seconds since 1970.
    pub unix_seconds: u64,
    /// The image below, for qcow2.
    pub backing: Option<Backing<'a>>,
}

/// An image below a new one.
#[derive(Clone, Copy)]
pub struct Backing<'a> {
    /// Its name, as the new image is to say it.
    pub name: &'a str,
    /// Its format, by QEMU's name.
    pub format: &'a str,
    /// Clusters that are zeros although it has something else there.
    pub zeros: Option<&'a Clusters>,
}

/// Random bytes for ids.
fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|cause| {
        Error::new(ErrorKind::Failed, format!("cannot get random bytes: {cause}"))
    })?;
    Ok(bytes)
}

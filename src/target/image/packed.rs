//! Images of which every cluster's place is known before the first one is written, so that they can
//! come in any order.
//!
//! Invariants: the tables name a place for each used cluster and for no other; what is written to a
//! cluster that is not used is an error, not lost; zeros inside of a used cluster stay holes.

use super::file::ImageFile;
use super::used::Clusters;
use super::{Description, PackedFormat, qcow2, vhd, vhdx, vmdk};
use crate::error::{Error, ErrorKind, Result};
use crate::target::{DiskTarget, ZeroState};
use std::path::Path;
use std::sync::Arc;

/// Bytes of tables that are put into order before they are written.
pub(super) const PIECE_BYTES: usize = 64 << 10;

/// Where the used clusters are: one behind the other, in the order of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Places {
    /// Of the first used cluster.
    pub data_at: u64,
    /// From one to the next.
    pub stride: u64,
    /// Of the file.
    pub file_bytes: u64,
}

impl Places {
    /// Where the used cluster of this rank is.
    pub fn of(&self, rank: u64) -> u64 {
        self.data_at + rank * self.stride
    }
}

/// Writes bytes of tables at an offset of the file.
pub(super) type Put<'a> = dyn FnMut(u64, &[u8]) -> Result<()> + 'a;

/// Puts entries of a table of which there may be very many, in pieces. Runs of zeros that fill
/// pieces stay holes.
pub(super) fn put_entries<const N: usize>(
    put: &mut Put<'_>,
    mut at: u64,
    count: u64,
    entry: &mut dyn FnMut(u64) -> [u8; N],
) -> Result<()> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    for number in 0..count {
        piece.extend_from_slice(&entry(number));
        if piece.len() + N > PIECE_BYTES || number + 1 == count {
            if piece.iter().any(|byte| *byte != 0) {
                put(at, &piece)?;
            }
            at += piece.len() as u64;
            piece.clear();
        }
    }
    Ok(())
}

/// A new image of a disk.
struct PackedImage {
    file: ImageFile,
    clusters: Arc<Clusters>,
    places: Places,
}

/// Makes an image of a disk of which these clusters are used; all others are zeros, or what a
/// backing image has there. Its tables are written at once, under a temporary name as all of it.
///
/// # Errors
/// [`ErrorKind::Target`] if the format cannot hold such a disk; otherwise as
/// [`open_target`](crate::target::open_target).
pub fn create_packed(
    path: &Path,
    force: bool,
    format: PackedFormat,
    description: &Description<'_>,
    clusters: Arc<Clusters>,
) -> Result<Box<dyn DiskTarget>> {
    let file = ImageFile::create(path, force)?;
    let mut put = |at, data: &[u8]| file.write_at(at, data);
    let refuse = |why: &str| format.refuse(path, why);
    let places = match format {
        PackedFormat::Qcow2 => qcow2::write_tables(&clusters, description, &mut put, &refuse)?,
        PackedFormat::Vmdk => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            vmdk::write_tables(&clusters, &name, &mut put, &refuse)?
        }
        PackedFormat::Vhd => vhd::write_tables(&clusters, description, &mut put, &refuse)?,
        PackedFormat::Vhdx => vhdx::write_tables(&clusters, &mut put, &refuse)?,
    };
    file.set_size(places.file_bytes)?;
    Ok(Box::new(PackedImage { file, clusters, places }))
}

impl PackedImage {
    /// Where a byte of the disk is in the file, and how many behind it are in the same cluster.
    fn place(&self, offset: u64) -> Option<(u64, u64)> {
        let cluster_bytes = self.clusters.cluster_bytes();
        let rank = self.clusters.rank(offset / cluster_bytes)?;
        let within = offset % cluster_bytes;
        Some((self.places.of(rank) + within, cluster_bytes - within))
    }

    /// Calls `each` with the pieces of a range, as they lie in the file.
    fn each_piece(
        &self,
        offset: u64,
        bytes: u64,
        each: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let outside = || {
            let path = self.describe();
            let text = format!("cannot write {path} at offset {offset} of the disk: no such place");
            Error::new(ErrorKind::Target, text)
        };
        let end = offset.checked_add(bytes).filter(|end| *end <= self.clusters.size());
        let end = end.ok_or_else(outside)?;
        // Used clusters that follow each other mostly do so in the file: one write for all.
        let (mut start, mut length) = (0, 0);
        let mut at = offset;
        while at < end {
            let (place, left) = self.place(at).ok_or_else(outside)?;
            let step = left.min(end - at);
            if length > 0 && start + length != place {
                each(start, length)?;
                length = 0;
            }
            if length == 0 {
                start = place;
            }
            length += step;
            at += step;
        }
        if length > 0 { each(start, length) } else { Ok(()) }
    }
}

impl DiskTarget for PackedImage {
    fn describe(&self) -> String {
        self.file.path().display().to_string()
    }

    fn zero_state(&self) -> ZeroState {
        ZeroState::AlreadyZero
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut rest = data;
        self.each_piece(offset, data.len() as u64, &mut |at, bytes| {
            let (piece, behind) = rest.split_at(bytes as usize);
            rest = behind;
            self.file.write_at(at, piece)
        })
    }

    /// Nothing to do: a new file is holes, and each range is written at most once.
    fn make_hole(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    /// As holes: an image says by its tables what is allocated.
    fn write_zeroes(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.file.finish()
    }
}

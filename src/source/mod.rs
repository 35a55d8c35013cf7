//! Where disks and streams come from. A disk is read at random offsets by several threads and
//! says which of its ranges are holes; a stream is read once, from front to back.
//!
//! Invariant of this floor: nothing is ever written to a source, and a source that changes its
//! size while it is read is an error, never a silently shorter disk.

pub mod changes;
mod device;
mod extents;
mod image;
pub mod journals;
mod layer;
pub mod libvirt;
pub mod machine;
pub mod nbd;
pub mod ova;
pub mod partitions;
mod pieces;
mod pipe;
pub mod qcow2;
pub mod qemu;
mod raw;
pub mod reflink;
mod tolerant;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;
mod window;

pub use device::device_token;
pub use extents::{Changes, Extent, ExtentKind};
pub use image::{ImageFormat, ImageOptions, open_image};
pub use partitions::{
    Partition, PartitionLayout, PartitionTable, RandomAccess, partition_layout, partition_table,
};
pub use pipe::open_stream;
pub use raw::open_disk;
pub use tolerant::{TolerantSource, token_of};
pub use window::Window;

use crate::error::{Error, ErrorKind, Result};
use std::fs::Metadata;
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// The path that means standard input.
pub const STANDARD_INPUT: &str = "-";

/// A regular file below this size is not taken for a disk unless the user says so: firmware
/// variables, configuration and keys often have a multiple of 512 bytes by accident.
const DISK_BYTES_MIN: u64 = 1 << 20;

/// The sector size that every disk's size is a multiple of, in bytes.
const SECTOR_BYTES: u64 = 512;

/// Random-access disk source. All methods may be called from any thread at the same time.
pub trait DiskSource: Send + Sync {
    /// Virtual size in bytes, fixed at open.
    fn size(&self) -> u64;

    /// The path, for messages.
    fn describe(&self) -> String;

    /// The format, as it is written into a manifest: `raw`, `block-device`, `nbd`, `qcow2`, `vmdk`,
    /// `vhd` or `vhdx`.
    fn format(&self) -> &'static str;

    /// Calls `each` with extents in order that cover `range`, as far as it lies on the disk, exactly,
    /// adjacent ones of one kind merged. Where [`DiskSource::allocation_known`] is false that is one
    /// extent of data.
    ///
    /// A source that is written to meanwhile gives extents of different moments, but they
    /// still cover the range once and the walk ends.
    ///
    /// # Errors
    /// [`ErrorKind::Source`] if the allocation cannot be read; and whatever `each` returns.
    fn extents_in(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()>;

    /// The extents of all of the disk; one of 0 bytes has none.
    ///
    /// # Errors
    /// As [`DiskSource::extents_in`].
    fn extents(&self, each: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
        self.extents_in(0..self.size(), each)
    }

    /// True when holes can be told from written zeros.
    fn allocation_known(&self) -> bool;

    /// Fills the whole `buffer` with the bytes from `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::Source`] if the system cannot read, if the disk has become shorter, or if
    /// the range reaches beyond [`DiskSource::size`].
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Tells the system that the range will be read soon. Best effort: failure is ignored.
    fn prefetch(&self, offset: u64, bytes: u64);

    /// Checks, at the end of a backup, that the size is still what it was at open, and for a
    /// file that its path still leads to it.
    ///
    /// # Errors
    /// [`ErrorKind::Source`] if it grew, shrank, was replaced or removed, or cannot be examined.
    fn check_unchanged_size(&self) -> Result<()>;

    /// An opaque token of the state at open: for a file of its device, inode, size and times in
    /// nanoseconds, for a device only of which one it is, for an image of all its files. Equal tokens
    /// of files say that the file was most probably not written in between: the kernel's clock for
    /// file times ticks every 1 to 10 ms, so a write within the tick of the open does not show.
    fn identity(&self) -> Vec<u8>;

    /// When a file of the disk, or what the system knows of it, was changed last before it was
    /// opened, in nanoseconds since 1970 by the clock of the file system; nothing for what has no
    /// such times.
    fn changed_unix_ns(&self) -> Option<i64> {
        None
    }

    /// The first file of the disk that a running machine is writing to, as far as it says so: QEMU
    /// does, by locks. Looked at anew each time.
    fn written_by_machine(&self) -> Option<String> {
        None
    }

    /// Tells of an image what may be another on it than on the disk that it lies over: if `is_base`
    /// says true of a disk below this one, at any depth, `each` is called with ranges in bytes that
    /// cover all differences, in any order, some more than once and some beyond the end of this
    /// disk, and the answer is true. If there is no such disk it is false.
    ///
    /// # Errors
    /// [`ErrorKind::Source`] if the tables of an image cannot be read; and whatever `each` returns.
    fn changed_over(
        &self,
        is_base: &dyn Fn(&dyn DiskSource) -> bool,
        each: &mut dyn FnMut(Range<u64>) -> Result<()>,
    ) -> Result<bool> {
        let _ = (is_base, each);
        Ok(false)
    }

    /// The names of the dirty bitmaps that are kept of the disk and can be relied on: that are
    /// closed and miss no write.
    ///
    /// # Errors
    /// [`ErrorKind::Source`] if what lists them cannot be read.
    fn bitmaps(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// What may have changed since a dirty bitmap was begun: ascending, disjoint ranges in bytes,
    /// none beyond the size; nothing if there is no bitmap of this name.
    ///
    /// # Errors
    /// [`ErrorKind::Source`] for a bitmap that cannot be read or relied on, and why.
    fn changed_by_bitmap(&self, name: &str) -> Result<Option<Vec<Range<u64>>>> {
        let _ = name;
        Ok(None)
    }
}

/// What [`DiskSource::changed_over`] says of an image of `size` bytes: `locate` tells of an offset
/// whether the image itself says what is there, and where that ends, beyond the offset.
fn changed_over(
    (size, below): (u64, Option<&dyn DiskSource>),
    is_base: &dyn Fn(&dyn DiskSource) -> bool,
    each: &mut dyn FnMut(Range<u64>) -> Result<()>,
    locate: &dyn Fn(u64) -> Result<(bool, u64)>,
) -> Result<bool> {
    let Some(below) = below else { return Ok(false) };
    if !is_base(below) && !below.changed_over(is_base, each)? {
        return Ok(false);
    }
    allocated(size, each, locate)?;
    // It goes on with zeros, whatever lies farther below.
    if below.size() < size {
        each(below.size()..size)?;
    }
    Ok(true)
}

/// Calls `each` with what an image itself holds; `locate` is as for [`changed_over`].
fn allocated(
    size: u64,
    each: &mut dyn FnMut(Range<u64>) -> Result<()>,
    locate: &dyn Fn(u64) -> Result<(bool, u64)>,
) -> Result<()> {
    let mut at = 0;
    while at < size {
        let (is_own, stop) = locate(at)?;
        if is_own {
            each(at..stop)?;
        }
        at = stop;
    }
    Ok(())
}

/// When the files of an image were changed last; nothing if one of them has no such time.
fn newest_change<'a>(files: impl IntoIterator<Item = &'a dyn DiskSource>) -> Option<i64> {
    let changed: Option<Vec<i64>> = files.into_iter().map(DiskSource::changed_unix_ns).collect();
    changed?.into_iter().max()
}

/// How an input is stored if the user does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// As a disk: random access, holes kept, fixed grid.
    Disk,
    /// As a stream: read once, cut by its content.
    Stream,
}

/// Chooses how `path` is stored: a block device, a regular file of at least 1 MiB whose size is a
/// multiple of 512 bytes, and an image of a known format are disks; everything else, `-` and FIFOs included, is a
/// stream.
///
/// # Errors
/// [`ErrorKind::Source`] if there is nothing at `path`, or a directory.
pub fn default_kind(path: &Path) -> Result<InputKind> {
    if path.as_os_str() == STANDARD_INPUT {
        return Ok(InputKind::Stream);
    }
    if nbd::is_address(path) {
        return Ok(InputKind::Disk);
    }
    let metadata = examine(path)?;
    let kind = metadata.file_type();
    let size = metadata.len();
    let is_disk = kind.is_block_device()
        || (kind.is_file() && size >= DISK_BYTES_MIN && size.is_multiple_of(SECTOR_BYTES))
        || (kind.is_file() && image::looks_like_image(path));
    Ok(if is_disk { InputKind::Disk } else { InputKind::Stream })
}

/// Looks at what `path` leads to; a directory is refused here for disks and streams alike.
fn examine(path: &Path) -> Result<Metadata> {
    let metadata = std::fs::metadata(path).map_err(|cause| {
        Error::io(ErrorKind::Source, format!("cannot open source {}", path.display()), cause)
    })?;
    if metadata.is_dir() {
        let message = format!("cannot open source {}: it is a directory", path.display());
        return Err(Error::new(ErrorKind::Source, message));
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn the_kind_follows_type_and_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let file = File::create(&path).unwrap();
        for (size, kind) in [
            (0, InputKind::Stream),
            (512, InputKind::Stream),
            (DISK_BYTES_MIN - 512, InputKind::Stream),
            (DISK_BYTES_MIN, InputKind::Disk),
            (DISK_BYTES_MIN + 1, InputKind::Stream),
            (DISK_BYTES_MIN + 512, InputKind::Disk),
        ] {
            file.set_len(size).unwrap();
            assert_eq!(default_kind(&path).unwrap(), kind, "{size} bytes");
        }
        assert_eq!(default_kind(Path::new("-")).unwrap(), InputKind::Stream);
        assert_eq!(default_kind(Path::new("/dev/null")).unwrap(), InputKind::Stream);
    }

    #[test]
    fn directories_and_missing_paths_are_source_errors() {
        let folder = tempfile::tempdir().unwrap();
        let error = default_kind(folder.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Source);
        assert!(error.full_text().ends_with("it is a directory"), "{error:?}");
        let error = default_kind(&folder.path().join("missing")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Source);
        assert!(error.full_text().contains("missing: No such file"), "{error:?}");
    }
}

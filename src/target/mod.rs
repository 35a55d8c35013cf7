//! Where disks and streams go: a new file, an existing file in place, or a block device.
//!
//! Invariants of this floor: nothing is overwritten without `force`; a new file gets its name
//! only when it is complete and on stable storage, and leaves nothing behind otherwise; no byte
//! outside of the disk's size is touched.

mod device;
mod file;
mod flat_qcow2;
pub mod image;
mod in_place;
mod in_use;
mod output;
mod reused;
mod stream;
mod temporary;
#[cfg(test)]
mod tests;
mod write_back;

pub use file::NewFile;
pub use reused::{Layout, ReuseTarget, Reused};
pub use stream::stream_target;

use crate::error::{Error, ErrorKind, Result};
use std::fs::Metadata;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// What ranges hold that nobody has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroState {
    /// Zeros, as holes: they need not be written.
    AlreadyZero,
    /// Anything: every range has to be written or made a hole.
    Unknown,
}

/// Where a disk's bytes go. All methods may be called from many threads at the same time, each
/// range at most once. Dropped without [`DiskTarget::finish`], a new file's temporary is
/// removed, and an existing target is left as it is at that moment.
pub trait DiskTarget: Send + Sync {
    /// The path, for messages.
    fn describe(&self) -> String;

    /// What ranges hold that nobody has written.
    fn zero_state(&self) -> ZeroState;

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] on a full file system, [`ErrorKind::Target`] otherwise, also for a
    /// range beyond the size given at open.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// Makes the range read as zeros by the cheapest sure means; leaves holes where the target
    /// has them. Any offset and length will do.
    ///
    /// # Errors
    /// As [`DiskTarget::write_at`].
    fn make_hole(&self, offset: u64, bytes: u64) -> Result<()>;

    /// Makes the range read as zeros and stay allocated.
    ///
    /// # Errors
    /// As [`DiskTarget::write_at`].
    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()>;

    /// Waits until everything is on stable storage, and gives a new file its name.
    ///
    /// # Errors
    /// As [`DiskTarget::write_at`]; [`ErrorKind::AlreadyExists`] if somebody else has made
    /// something of that name meanwhile, which is kept.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Where a stream's bytes go, in order. Errors of its [`Write`] say verb, path and cause, and
/// keep the kind of the cause. Dropped without [`StreamTarget::finish`], a new file's
/// temporary is removed.
pub trait StreamTarget: Write + Send {
    /// Waits until everything is on stable storage, and gives a new file its name.
    ///
    /// # Errors
    /// As [`DiskTarget::finish`].
    fn finish(self: Box<Self>) -> Result<()>;
}

/// What [`open_target`] has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenTarget {
    /// The disk's size in bytes.
    pub size: u64,
    /// Whether something that exists may be overwritten.
    pub force: bool,
}

/// Opens a new file for a disk of `size` bytes that will be kept up to date in place.
///
/// # Errors
/// As [`open_target`] without `force`; `Usage` for a size that the layout cannot have.
pub fn new_target(path: &Path, size: u64, layout: Layout) -> Result<NewFile> {
    match examine(path)? {
        Some(_) => Err(exists(path)),
        None => NewFile::create(path, size, layout),
    }
}

/// Opens `path` to write a disk of `options.size` bytes.
///
/// If there is nothing, a new sparse file is made, under a temporary name beside it until it is
/// finished. With `force`, an existing file is brought to the size and overwritten in place, and
/// of a block device the first `size` bytes are overwritten. Symbolic links are followed.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] if there is something and `force` is not set;
/// [`ErrorKind::Target`] for a directory or anything else that is no disk, what is in use, a
/// device that is too small, a missing parent directory, and what the system refuses.
pub fn open_target(path: &Path, options: OpenTarget) -> Result<Box<dyn DiskTarget>> {
    let Some(metadata) = examine(path)? else {
        return Ok(Box::new(NewFile::create(path, options.size, Layout::Raw)?));
    };
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let cause = "it is neither a regular file nor a block device";
        return Err(refused(path, cause));
    }
    if !options.force {
        return Err(exists(path));
    }
    if kind.is_block_device() {
        return device::open(path, options.size);
    }
    file::open_existing(path, options.size)
}

/// Looks at what `path` leads to; none if there is nothing and it can be made. Directories,
/// names that can only be directories and links to nothing are refused for every target.
fn examine(path: &Path) -> Result<Option<Metadata>> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Err(refused(path, "it is a directory")),
        Ok(metadata) => Ok(Some(metadata)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            let bytes = path.as_os_str().as_bytes();
            if path.file_name().is_none() || bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
                return Err(refused(path, "it does not name a file"));
            }
            if path.is_symlink() {
                // The new file would have to replace the link at the end, hours later.
                return Err(refused(path, "it is a symbolic link to nothing"));
            }
            Ok(None)
        }
        Err(cause) => Err(failed("write to", path, cause)),
    }
}

/// The error for a target that cannot be one.
fn refused(path: &Path, cause: &str) -> Error {
    let message = format!("cannot write to {}: {cause}", path.display());
    Error::new(ErrorKind::Target, message)
}

/// The error for a target that exists.
fn exists(path: &Path) -> Error {
    let message = format!("cannot write to {}: it exists", path.display());
    Error::new(ErrorKind::AlreadyExists, message).hint("use --force to overwrite it")
}

/// The error for a failed system call.
fn failed(what: &str, path: &Path, cause: impl Into<io::Error>) -> Error {
    Error::io(ErrorKind::Target, format!("cannot {what} {}", path.display()), cause.into())
}

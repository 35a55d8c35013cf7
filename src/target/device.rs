//! Disks onto block devices.
//!
//! Invariant: a device that anything else uses (mounted, part of RAID or LVM, held by another
//! restore) is never written, and of a larger device only the first bytes are.

use super::in_place::InPlace;
use super::output::Output;
use super::{DiskTarget, failed, refused};
use crate::error::Result;
use rustix::fs::{Mode, OFlags, SeekFrom, open as open_path, seek};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Opens a block device of at least `size` bytes for itself alone.
pub(super) fn open(path: &Path, size: u64) -> Result<Box<dyn DiskTarget>> {
    // Without O_CREAT, O_EXCL claims the device against mounts, RAID, LVM and other claims.
    let flags = OFlags::WRONLY | OFlags::EXCL | OFlags::CLOEXEC;
    let file = match open_path(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::BUSY) => {
            let cause = "it is in use (mounted, or held by another program)";
            return Err(refused(path, cause));
        }
        Err(errno) => return Err(failed("write to", path, errno)),
    };
    let metadata = file.metadata().map_err(|cause| failed("write to", path, cause))?;
    if !metadata.file_type().is_block_device() {
        return Err(refused(path, "it is no longer a block device"));
    }
    let found = seek(&file, SeekFrom::End(0)).map_err(|errno| failed("examine", path, errno))?;
    if found < size {
        let cause = format!("it holds {found} bytes, the disk has {size}");
        return Err(refused(path, &cause));
    }
    Ok(Box::new(InPlace::new(file, Output::new(path, size, true))))
}

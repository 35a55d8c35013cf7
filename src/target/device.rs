//! Disks onto block devices.
//!
//! Invariant: a device that anything else uses (mounted, part of RAID or LVM, held by another
//! restore) is never written, and of a larger device only the first bytes are.

use super::output::Output;
use super::{DiskTarget, ZeroState, failed, refused};
use crate::error::Result;
use rustix::fs::{Mode, OFlags, SeekFrom, open as open_path, seek};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// A block device that this process holds exclusively.
struct Device {
    file: File,
    output: Output,
}

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
        Err(errno) => return Err(failed("restore to", path, errno)),
    };
    let metadata = file.metadata().map_err(|cause| failed("restore to", path, cause))?;
    if !metadata.file_type().is_block_device() {
        return Err(refused(path, "it is no longer a block device"));
    }
    let found = seek(&file, SeekFrom::End(0)).map_err(|errno| failed("examine", path, errno))?;
    if found < size {
        let cause = format!("it holds {found} bytes, the disk has {size}");
        return Err(refused(path, &cause));
    }
    Ok(Box::new(Device { file, output: Output::new(path, size, true) }))
}

impl DiskTarget for Device {
    fn describe(&self) -> String {
        self.output.path().display().to_string()
    }

    fn zero_state(&self) -> ZeroState {
        ZeroState::Unknown
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.output.write_at(&self.file, offset, data)
    }

    fn make_hole(&self, offset: u64, bytes: u64) -> Result<()> {
        self.output.make_hole(&self.file, offset, bytes)
    }

    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()> {
        self.output.write_zeroes(&self.file, offset, bytes)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.output.sync(&self.file)
    }
}

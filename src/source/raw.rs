//! Raw disks: regular files, whose holes the file system knows, and block devices.
//!
//! Invariant: `extents` covers the disk exactly once, in order, and ends, whatever somebody
//! else does to the file meanwhile.

use super::extents::Merger;
use super::{DiskSource, Extent, ExtentKind, examine};
use crate::error::{Error, ErrorKind, Result};
use crate::qemu_locks;
use rustix::fs::{Advice, Mode, OFlags, SeekFrom, fadvise, open, seek};
use rustix::io::Errno;
use std::fs::{File, Metadata};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The step by which the walk goes on when the file system contradicts itself, in bytes: the
/// block size of ext4 and XFS, so that an extent is never cut finer than it was.
const STEP_BYTES: u64 = 4096;

/// `st_blocks` counts in this unit on Linux, whatever the file system's block size.
const STAT_BLOCK_BYTES: u64 = 512;

/// A regular file or a block device, opened read-only.
struct RawSource {
    file: File,
    path: PathBuf,
    size: u64,
    is_device: bool,
    allocation_known: bool,
    metadata: Metadata,
}

/// Opens a regular file of any size or a block device as a disk, read-only.
///
/// # Errors
/// [`ErrorKind::Source`] if there is nothing at `path`, or something that is neither of the
/// two, or it cannot be opened.
pub fn open_disk(path: &Path) -> Result<Box<dyn DiskSource>> {
    let failed = |cause: io::Error| {
        Error::io(ErrorKind::Source, format!("cannot open disk {}", path.display()), cause)
    };
    // Looked at before it is opened, because opening a FIFO would wait for a writer.
    check_type(path, &examine(path)?)?;
    let file = open_quietly(path).map_err(|errno| failed(errno.into()))?;
    let metadata = file.metadata().map_err(failed)?;
    check_type(path, &metadata)?;
    let is_device = metadata.file_type().is_block_device();
    let size = if is_device {
        seek(&file, SeekFrom::End(0)).map_err(|errno| failed(errno.into()))?
    } else {
        metadata.len()
    };
    let allocation_known = !is_device && tells_holes(&file, &metadata);
    Ok(Box::new(RawSource {
        file,
        path: path.to_owned(),
        size,
        is_device,
        allocation_known,
        metadata,
    }))
}

fn check_type(path: &Path, metadata: &Metadata) -> Result<()> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let message = format!(
        "cannot open disk {}: it is neither a regular file nor a block device",
        path.display()
    );
    Err(Error::new(ErrorKind::Source, message))
}

/// Opens read-only without touching the access time, where the kernel permits that: only to
/// the owner and to root; others get a plain open.
fn open_quietly(path: &Path) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    match open(path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => open(path, flags, Mode::empty()),
        other => other,
    }
    .map(File::from)
}

/// Whether the file system tells holes. One that cannot either refuses or claims that the
/// whole file is data; the latter is believed only if the file's blocks are as many as its bytes.
fn tells_holes(file: &File, metadata: &Metadata) -> bool {
    if metadata.len() == 0 {
        return true;
    }
    match seek(file, SeekFrom::Hole(0)) {
        Ok(hole) if hole < metadata.len() => true,
        Ok(_) => metadata.blocks().saturating_mul(STAT_BLOCK_BYTES) >= metadata.len(),
        Err(_) => false,
    }
}

impl RawSource {
    fn error(&self, what: &str, cause: impl Into<io::Error>) -> Error {
        let message = format!("cannot {what} disk {}", self.path.display());
        Error::io(ErrorKind::Source, message, cause.into())
    }

    fn changed(&self, how: &str) -> Error {
        let message = format!("cannot trust disk {}: it {how}", self.path.display());
        Error::new(ErrorKind::Source, message)
    }

    /// The size at this moment, in bytes.
    fn size_now(&self) -> io::Result<u64> {
        if self.is_device {
            return Ok(seek(&self.file, SeekFrom::End(0))?);
        }
        Ok(self.file.metadata()?.len())
    }

    /// The error for an end of file in front of the size at open. `end` is where it was met;
    /// it stands in for the size where the file has grown again meanwhile.
    fn shrank(&self, offset: u64, end: u64) -> Error {
        let found = self.size_now().ok().filter(|&now| now < self.size).unwrap_or(end);
        let message = format!(
            "cannot read disk {} at offset {offset}: shrank while it was read: expected {}, \
             found {found} bytes",
            self.path.display(),
            self.size
        );
        Error::new(ErrorKind::Source, message)
    }

    /// The end of the hole and the end of the data behind it, both from `position` up to the
    /// size at open; at least one of the two lies beyond `position`.
    fn next_ends(&self, position: u64) -> Result<(u64, u64)> {
        let data = match seek(&self.file, SeekFrom::Data(position)) {
            Ok(data) => data.clamp(position, self.size),
            // No data up to the end, or the file has shrunk: then the check at the end tells.
            Err(Errno::NXIO) => return Ok((self.size, self.size)),
            Err(errno) => return Err(self.error("read the allocation of", errno)),
        };
        if data == self.size {
            return Ok((data, data));
        }
        let hole = match seek(&self.file, SeekFrom::Hole(data)) {
            Ok(hole) => hole.min(self.size),
            // It has just shrunk below `data`. Call the rest data: reading it says so.
            Err(Errno::NXIO) => self.size,
            Err(errno) => return Err(self.error("read the allocation of", errno)),
        };
        // Data may have become a hole between the two calls. Calling one block data is
        // always right, and goes on.
        Ok((data, hole.max(data.saturating_add(STEP_BYTES).min(self.size))))
    }
}

impl DiskSource for RawSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn format(&self) -> &'static str {
        if self.is_device { "block-device" } else { "raw" }
    }

    fn extents_in(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        let end = range.end.min(self.size);
        let mut merger = Merger::new(each);
        if !self.allocation_known {
            merger.add_range(range.start, end, ExtentKind::Data)?;
            return merger.flush();
        }
        let mut position = range.start;
        while position < end {
            let (hole_end, data_end) = self.next_ends(position)?;
            let (hole_end, data_end) = (hole_end.min(end), data_end.min(end));
            merger.add_range(position, hole_end, ExtentKind::Hole)?;
            merger.add_range(hole_end, data_end, ExtentKind::Data)?;
            position = data_end;
        }
        merger.flush()
    }

    fn allocation_known(&self) -> bool {
        self.allocation_known
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.size) {
            let message = format!(
                "cannot read disk {} at offset {offset}: {} bytes reach beyond its end at {}",
                self.path.display(),
                buffer.len(),
                self.size
            );
            return Err(Error::new(ErrorKind::Source, message));
        }
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            match self.file.read_at(&mut buffer[done..], at) {
                Ok(0) => return Err(self.shrank(at, at)),
                Ok(count) => done += count,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => {
                    let message = format!("cannot read disk {} at offset {at}", self.describe());
                    return Err(Error::io(ErrorKind::Source, message, cause));
                }
            }
        }
        Ok(())
    }

    fn prefetch(&self, offset: u64, bytes: u64) {
        // A length of 0 would mean: up to the end.
        if let Some(bytes) = NonZeroU64::new(bytes) {
            let _ = fadvise(&self.file, offset, Some(bytes), Advice::WillNeed);
        }
    }

    fn check_unchanged_size(&self) -> Result<()> {
        let now = self.size_now().map_err(|cause| self.error("examine", cause))?;
        if now != self.size {
            let how = if now < self.size { "shrank" } else { "grew" };
            return Err(self.changed(&format!(
                "{how} while it was read: expected {}, found {now} bytes",
                self.size
            )));
        }
        if self.is_device {
            return Ok(());
        }
        match std::fs::metadata(&self.path) {
            Ok(there)
                if (there.dev(), there.ino()) == (self.metadata.dev(), self.metadata.ino()) =>
            {
                Ok(())
            }
            Ok(_) => Err(self.changed("was replaced by another file while it was read")),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                Err(self.changed("was removed while it was read"))
            }
            Err(cause) => Err(self.error("examine", cause)),
        }
    }

    fn identity(&self) -> Vec<u8> {
        if self.is_device {
            return super::device::device_token(self.metadata.rdev());
        }
        let metadata = &self.metadata;
        let mut token = Vec::with_capacity(7 * 8);
        for number in [metadata.dev(), metadata.ino(), metadata.size()] {
            token.extend_from_slice(&number.to_le_bytes());
        }
        for number in
            [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()]
        {
            token.extend_from_slice(&number.to_le_bytes());
        }
        token
    }

    fn changed_unix_ns(&self) -> Option<i64> {
        let metadata = Some(&self.metadata).filter(|_| !self.is_device)?;
        let of = |seconds: i64, ns: i64| seconds.saturating_mul(1_000_000_000).saturating_add(ns);
        let changed = of(metadata.ctime(), metadata.ctime_nsec());
        Some(changed.max(of(metadata.mtime(), metadata.mtime_nsec())))
    }

    fn written_by_machine(&self) -> Option<String> {
        qemu_locks::is_written(&self.file).then(|| self.describe())
    }
}

#[cfg(test)]
mod tests;

//! Writing into an open file or device within a fixed size: what all disk targets share.
//!
//! Invariant: no byte at or beyond the size given at open is ever written, and a range that
//! was said to be zeros reads as zeros, whether or not the file system can punch holes.

use super::failed;
use super::write_back::WriteBack;
use crate::error::{Error, ErrorKind, Result};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

/// Zeros for one write, in bytes: the copy of 64 KiB takes ten times as long as the call.
const ZEROS_BYTES: usize = 64 << 10;

/// Devices punch whole logical blocks only, of 512 or 4096 bytes. With larger ones the call
/// fails and zeros are written.
const DEVICE_BLOCK_BYTES: u64 = 4096;

/// The block of nearly every file system, and the page of x86.
const FILE_BLOCK_BYTES: u64 = 4096;

/// What `fallocate` is asked for, the cheapest first. For a device, the kernel promises that
/// both read as zeros afterwards; the second keeps the blocks allocated.
const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO_RANGE: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// Bits of [`Output::missing`].
const NO_PUNCH: u8 = 1;
const NO_ZERO_RANGE: u8 = 2;

/// An open target and its bounds.
pub(super) struct Output {
    path: PathBuf,
    size: u64,
    is_device: bool,
    /// What the target has said it cannot do; asked once, not once per hole.
    missing: AtomicU8,
    /// Whose turn it is to write to a file. A file system lets one write at a time into a file
    /// and has the others spin: 12 % of a restore by two threads. Here they sleep, and another
    /// one decodes.
    turn: Mutex<()>,
    write_back: Mutex<WriteBack>,
}

impl Output {
    /// An output to `path` of `size` bytes.
    pub(super) fn new(path: &Path, size: u64, is_device: bool) -> Output {
        let path = path.to_owned();
        let (missing, turn, write_back) = (AtomicU8::new(0), Mutex::default(), Mutex::default());
        Output { path, size, is_device, missing, turn, write_back }
    }

    /// The path, as the user gave it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `data` at `offset`.
    pub(super) fn write_at(&self, file: &File, offset: u64, data: &[u8]) -> Result<()> {
        self.check_range(offset, data.len() as u64)?;
        self.write_all(file, offset, data)
    }

    fn write_all(&self, file: &File, offset: u64, data: &[u8]) -> Result<()> {
        let turn = (!self.is_device).then(|| wait_for(&self.turn));
        file.write_all_at(data, offset).map_err(|cause| self.write_failed(offset, cause))?;
        drop(turn);
        wait_for(&self.write_back)
            .note(file, data.len() as u64)
            .map_err(|cause| self.write_failed(offset, cause))
    }

    /// Makes the range read as zeros, as a hole if that is possible.
    pub(super) fn make_hole(&self, file: &File, offset: u64, bytes: u64) -> Result<()> {
        self.check_range(offset, bytes)?;
        self.within_blocks(file, offset, bytes, |start, length| {
            if self.ask(file, PUNCH, NO_PUNCH, start, self.whole_tail(start, length))? {
                return Ok(());
            }
            // A file system's ZERO_RANGE is no cheaper to read back than written zeros, but a
            // device's spares the transfer.
            if self.is_device && self.ask(file, ZERO_RANGE, NO_ZERO_RANGE, start, length)? {
                return Ok(());
            }
            self.write_zeros(file, start, length)
        })
    }

    /// The length to punch: up to the end of the block that a file's last byte lies in, because
    /// a block that is punched in part is kept. There is nothing behind that byte.
    fn whole_tail(&self, start: u64, length: u64) -> u64 {
        if self.is_device || start + length != self.size {
            return length;
        }
        self.size.next_multiple_of(FILE_BLOCK_BYTES) - start
    }

    /// Makes the range read as zeros and stay allocated. In a file that takes written zeros:
    /// ZERO_RANGE leaves unwritten extents, which count as holes everywhere.
    pub(super) fn write_zeroes(&self, file: &File, offset: u64, bytes: u64) -> Result<()> {
        self.check_range(offset, bytes)?;
        if !self.is_device {
            return self.write_zeros(file, offset, bytes);
        }
        self.within_blocks(file, offset, bytes, |start, length| {
            if self.ask(file, ZERO_RANGE, NO_ZERO_RANGE, start, length)? {
                return Ok(());
            }
            self.write_zeros(file, start, length)
        })
    }

    /// Calls `whole` for the part of the range that consists of whole blocks, and writes zeros
    /// in front of it and behind it. A file system does that by itself.
    fn within_blocks(
        &self,
        file: &File,
        offset: u64,
        bytes: u64,
        whole: impl FnOnce(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let end = offset + bytes;
        let (first, last) = if self.is_device {
            let first = offset.next_multiple_of(DEVICE_BLOCK_BYTES);
            (first.min(end), end - end % DEVICE_BLOCK_BYTES)
        } else {
            (offset, end)
        };
        if first >= last {
            return self.write_zeros(file, offset, bytes);
        }
        self.write_zeros(file, offset, first - offset)?;
        whole(first, last - first)?;
        self.write_zeros(file, last, end - last)
    }

    /// Asks for a kind of `fallocate`; false if the target has none.
    fn ask(
        &self,
        file: &File,
        flags: FallocateFlags,
        bit: u8,
        offset: u64,
        bytes: u64,
    ) -> Result<bool> {
        if self.missing.load(Ordering::Relaxed) & bit != 0 {
            return Ok(false);
        }
        loop {
            match fallocate(file, flags, offset, bytes) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => {
                    self.missing.fetch_or(bit, Ordering::Relaxed);
                    return Ok(false);
                }
                // An alignment it does not like, or one it forbids: not for every range.
                Err(Errno::INVAL | Errno::PERM) => return Ok(false),
                Err(errno) => return Err(self.write_failed(offset, errno)),
            }
        }
    }

    fn write_zeros(&self, file: &File, offset: u64, bytes: u64) -> Result<()> {
        static ZEROS: [u8; ZEROS_BYTES] = [0; ZEROS_BYTES];
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            let count = (end - at).min(ZEROS_BYTES as u64);
            self.write_all(file, at, &ZEROS[..count as usize])?;
            at += count;
        }
        Ok(())
    }

    fn check_range(&self, offset: u64, bytes: u64) -> Result<()> {
        if offset.checked_add(bytes).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        let message = format!(
            "cannot write {} at offset {offset}: {bytes} bytes reach beyond its end at {}",
            self.path.display(),
            self.size
        );
        Err(Error::new(ErrorKind::Target, message))
    }

    fn write_failed(&self, offset: u64, cause: impl Into<std::io::Error>) -> Error {
        let message = format!("cannot write {} at offset {offset}", self.path.display());
        Error::io(ErrorKind::Target, message, cause.into())
    }

    /// Brings everything to stable storage.
    pub(super) fn sync(&self, file: &File) -> Result<()> {
        let written = wait_for(&self.write_back).finish();
        written.and_then(|()| file.sync_all()).map_err(|cause| failed("write", &self.path, cause))
    }

    /// Pretends that the target has no `fallocate` of any kind.
    #[cfg(test)]
    pub(super) fn forget_fallocate(&self) {
        self.missing.store(NO_PUNCH | NO_ZERO_RANGE, Ordering::Relaxed);
    }
}

/// Nothing behind these locks is half done after a panic.
fn wait_for<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Disks onto what is already there: it can be read back, so that only what differs is written.
//!
//! Invariants: nothing is written before [`Reused::prepare`]; nobody else of this program writes to
//! the file meanwhile; what lies behind the end of a file that is too short reads as zeros.

use super::flat_qcow2::FlatQcow2;
use super::in_use::loop_device_of;
use super::output::Output;
use super::{DiskTarget, ZeroState, examine, failed, refused};
use crate::error::{Error, ErrorKind, Result};
use crate::qemu_locks;
use rustix::fs::{FlockOperation, Mode, OFlags, SeekFrom, flock, open as open_path, seek};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a lock on a device may be held by others: udev has one for an instant whenever it looks
/// at what is on a device, which it does after each program that wrote to it.
const DEVICE_PATIENCE: Duration = Duration::from_secs(2);
const DEVICE_LOOK: Duration = Duration::from_millis(20);

/// How a disk lies in a file that is kept up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Layout {
    /// As it is.
    #[default]
    Raw,
    /// Behind the head of a qcow2 image, each cluster at its own place.
    Qcow2,
}

impl Layout {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Layout::Raw => "raw",
            Layout::Qcow2 => "qcow2",
        }
    }

    /// Where the disk begins in the file, how long the file is, and what stands before the disk.
    pub(super) fn shape(self, size: u64) -> Result<Shape> {
        Ok(match self {
            Layout::Raw => Shape { base: 0, file_bytes: size, head: Vec::new() },
            Layout::Qcow2 => {
                let layout = FlatQcow2::new(size)?;
                let (base, file_bytes) = (layout.data_start(), layout.file_bytes());
                Shape { base, file_bytes, head: layout.head() }
            }
        })
    }
}

/// A [`Layout`] for a disk of some size.
pub(super) struct Shape {
    pub base: u64,
    pub file_bytes: u64,
    pub head: Vec<(u64, Vec<u8>)>,
}

impl Shape {
    /// Writes what stands before the disk.
    pub(super) fn write_head(&self, file: &File, output: &Output) -> Result<()> {
        self.head.iter().try_for_each(|(offset, bytes)| output.write_at(file, *offset, bytes))
    }
}

/// What [`Reused::open`] has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReuseTarget {
    /// The disk's size in bytes.
    pub size: u64,
    /// How the disk lies in it.
    pub layout: Layout,
    /// Whether what is in use may be written to.
    pub force: bool,
    /// Whether nothing will be written.
    pub read_only: bool,
}

/// An existing file or block device that is to hold a disk.
pub struct Reused {
    file: File,
    layout: Layout,
    output: Output,
    shape: Shape,
    size: u64,
    is_device: bool,
    file_bytes_before: u64,
    has_head: bool,
}

impl Reused {
    /// Opens what is there.
    ///
    /// # Errors
    /// [`ErrorKind::Target`] for what is no file or block device, a device that is too small, what
    /// is in use, and a file that another run is writing to; [`ErrorKind::NotFound`] if there is
    /// nothing; `Usage` for a size that the layout cannot have.
    pub fn open(path: &Path, options: ReuseTarget) -> Result<Reused> {
        let Some(metadata) = examine(path)? else {
            let text = format!("cannot restore in place to {}: there is nothing", path.display());
            return Err(Error::new(ErrorKind::NotFound, text));
        };
        let kind = metadata.file_type();
        let is_device = kind.is_block_device();
        if !kind.is_file() && !is_device {
            return Err(refused(path, "it is neither a regular file nor a block device"));
        }
        if is_device && options.layout != Layout::Raw {
            return Err(refused(path, "a block device takes a raw disk only"));
        }
        let shape = options.layout.shape(options.size)?;
        let file = open_file(path, is_device, options)?;
        let file_bytes_before =
            seek(&file, SeekFrom::End(0)).map_err(|errno| failed("examine", path, errno))?;
        if is_device && file_bytes_before < options.size {
            let size = options.size;
            let cause = format!("it holds {file_bytes_before} bytes, the disk has {size}");
            return Err(refused(path, &cause));
        }
        let output = Output::new(path, shape.file_bytes, is_device);
        let ReuseTarget { size, layout, .. } = options;
        let has_head = false;
        let mut reused =
            Reused { file, layout, output, shape, size, is_device, file_bytes_before, has_head };
        reused.has_head = reused.examine_head()?;
        Ok(reused)
    }

    /// True if a disk of so many bytes lies at the same place in a file of this layout: what was
    /// written for it is where it is looked for.
    pub fn lies_as(&self, bytes: u64) -> bool {
        self.layout.shape(bytes).is_ok_and(|shape| shape.base == self.shape.base)
    }

    /// True for a block device.
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    /// Bytes of the disk that the file holds now: less than the disk's size if it is too short.
    pub fn bytes_there(&self) -> u64 {
        self.file_bytes_before.saturating_sub(self.shape.base).min(self.size)
    }

    /// True if everything before the disk is as it should be, the zeros between its parts too.
    fn examine_head(&self) -> Result<bool> {
        let mut at = 0;
        let end = (self.shape.base, Vec::new());
        for (offset, bytes) in self.shape.head.iter().chain(std::iter::once(&end)) {
            let mut wanted = vec![0; (offset - at) as usize];
            wanted.extend_from_slice(bytes);
            let mut found = vec![0; wanted.len()];
            match self.file.read_exact_at(&mut found, at) {
                Ok(()) if found == wanted => at += wanted.len() as u64,
                Ok(()) => return Ok(false),
                Err(cause) if cause.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Ok(false);
                }
                Err(cause) => return Err(failed("read", self.output.path(), cause)),
            }
        }
        Ok(true)
    }

    /// Brings the file to its length and writes what stands before the disk, if that is another.
    ///
    /// # Errors
    /// As [`DiskTarget::write_at`].
    pub fn prepare(&self) -> Result<()> {
        if !self.is_device && self.file_bytes_before != self.shape.file_bytes {
            self.file.set_len(self.shape.file_bytes).map_err(|cause| {
                let what = format!("make room for {} bytes in", self.shape.file_bytes);
                failed(&what, self.output.path(), cause)
            })?;
        }
        if !self.has_head {
            if self.shape.base > 0 {
                self.output.make_hole(&self.file, 0, self.shape.base)?;
            }
            self.shape.write_head(&self.file, &self.output)?;
        }
        // What lies between the disk and the end of its last cluster is read when the disk grows.
        let end = self.shape.base + self.size;
        if !self.is_device && end < self.shape.file_bytes {
            self.output.make_hole(&self.file, end, self.shape.file_bytes - end)?;
        }
        Ok(())
    }

    /// Reads the disk as it is now; zeros behind the end of the file.
    ///
    /// # Errors
    /// [`ErrorKind::Target`] if the system cannot read.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let at = self.shape.base + offset + done as u64;
            match self.file.read_at(&mut buffer[done..], at) {
                Ok(0) => break,
                Ok(bytes) => done += bytes,
                Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => {}
                Err(cause) => {
                    let path = self.output.path().display();
                    let text = format!("cannot read {path} at offset {at}");
                    return Err(Error::io(ErrorKind::Target, text, cause));
                }
            }
        }
        buffer[done..].fill(0);
        Ok(())
    }

    /// Calls `each` with the parts of a range of the disk, ascending and without gaps, and whether
    /// they are allocated: what is not reads as zeros. A device is allocated everywhere.
    ///
    /// # Errors
    /// [`ErrorKind::Target`] if the system cannot tell, or what `each` says.
    pub fn allocated(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(u64, u64, bool) -> Result<()>,
    ) -> Result<()> {
        if self.is_device {
            return if range.is_empty() { Ok(()) } else { each(range.start, range.end, true) };
        }
        let mut at = range.start;
        while at < range.end {
            let data = self.seek(SeekFrom::Data(self.shape.base + at), at, range.end)?;
            let data = data.clamp(at, range.end);
            if data > at {
                each(at, data, false)?;
            }
            if data == range.end {
                break;
            }
            let hole = self.seek(SeekFrom::Hole(self.shape.base + data), data, range.end)?;
            let hole = hole.clamp(data + 1, range.end);
            each(data, hole, true)?;
            at = hole;
        }
        Ok(())
    }

    /// Where the next data or hole begins on the disk; `end` if there is none.
    fn seek(&self, to: SeekFrom, at: u64, end: u64) -> Result<u64> {
        match seek(&self.file, to) {
            Ok(found) => Ok(found.saturating_sub(self.shape.base)),
            Err(Errno::NXIO) => Ok(end),
            // A file system that knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                Ok(if matches!(to, SeekFrom::Data(_)) { at } else { end })
            }
            Err(errno) => Err(failed("examine", self.output.path(), errno)),
        }
    }

    /// Waits until everything is on stable storage.
    ///
    /// # Errors
    /// As [`DiskTarget::write_at`].
    pub fn sync(&self) -> Result<()> {
        self.output.sync(&self.file)
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

fn open_file(path: &Path, is_device: bool, options: ReuseTarget) -> Result<File> {
    let mut flags = OFlags::CLOEXEC;
    flags |= if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    if is_device && !options.force {
        // Without O_CREAT, O_EXCL claims the device against mounts, RAID, LVM and other claims.
        flags |= OFlags::EXCL;
    }
    let file = match open_path(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::BUSY) => {
            let error = refused(path, "it is in use (mounted, or held by another program)");
            return Err(error.hint("use --force to write to it all the same"));
        }
        Err(errno) => return Err(failed("write to", path, errno)),
    };
    let kind = file.metadata().map_err(|cause| failed("examine", path, cause))?.file_type();
    if kind.is_block_device() != is_device || !(is_device || kind.is_file()) {
        return Err(refused(path, "something else is there now"));
    }
    if !options.read_only {
        claim(&file, path, options.force)?;
    }
    Ok(file)
}

/// Keeps other runs of this program from a file as long as it is open.
pub(super) fn lock_against_runs(file: &File, path: &Path) -> Result<()> {
    let is_device = file.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device());
    let began = Instant::now();
    let mut locked = flock(file, FlockOperation::NonBlockingLockExclusive);
    while is_device && locked == Err(Errno::WOULDBLOCK) && began.elapsed() < DEVICE_PATIENCE {
        std::thread::sleep(DEVICE_LOOK);
        locked = flock(file, FlockOperation::NonBlockingLockExclusive);
    }
    match locked {
        Err(Errno::WOULDBLOCK) => Err(refused(path, "another program holds a lock on it")),
        // Any other error is that of a file system without locks.
        _ => Ok(()),
    }
}

/// Refuses a file that a loop device or a QEMU has open.
pub(super) fn refuse_used(file: &File, path: &Path, hint: &str) -> Result<()> {
    let user = match loop_device_of(path) {
        Some(device) => Some(device.display().to_string()),
        None => qemu_locks::is_open(file).then(|| "a QEMU".to_string()),
    };
    match user {
        Some(user) => Err(refused(path, &format!("it is in use by {user}")).hint(hint)),
        None => Ok(()),
    }
}

/// Keeps other runs of this program, and QEMU, from a file as long as it is open.
pub(super) fn claim(file: &File, path: &Path, force: bool) -> Result<()> {
    lock_against_runs(file, path)?;
    if !force {
        refuse_used(file, path, "use --force to write to it all the same")?;
    }
    // Not where the file system has no locks, and then QEMU knows none either.
    qemu_locks::hold(file);
    Ok(())
}

impl DiskTarget for Reused {
    fn describe(&self) -> String {
        self.output.path().display().to_string()
    }

    fn zero_state(&self) -> ZeroState {
        ZeroState::Unknown
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.output.write_at(&self.file, self.shape.base + offset, data)
    }

    fn make_hole(&self, offset: u64, bytes: u64) -> Result<()> {
        self.output.make_hole(&self.file, self.shape.base + offset, bytes)
    }

    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()> {
        self.output.write_zeroes(&self.file, self.shape.base + offset, bytes)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.sync()
    }
}

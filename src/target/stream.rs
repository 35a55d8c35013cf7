//! Streams into files, and into pipes and devices that take bytes in order.
//!
//! Invariant: an existing file is replaced as a whole and only at the end, so that it is
//! always either the old one or the new one.

use super::temporary::{Temporary, new_or_replaced};
use super::{StreamTarget, examine, exists, failed, refused};
use crate::error::Result;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Opens `path` to write a stream. If there is nothing, or a file and `force` is set, a new
/// file takes the name when it is finished; it gets the mode of the one it replaces, and a
/// symbolic link goes on to lead to it. A FIFO is written directly, once it has a reader, and
/// so is a device with `force`.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`](crate::error::ErrorKind::AlreadyExists) if there is something
/// and `force` is not set; otherwise as [`open_target`](super::open_target).
pub fn stream_target(path: &Path, force: bool) -> Result<Box<dyn StreamTarget>> {
    let found = examine(path)?;
    let Some(metadata) = found.filter(|metadata| !metadata.is_file()) else {
        return Ok(Box::new(NewFile { temporary: new_or_replaced(path, force)? }));
    };
    let kind = metadata.file_type();
    if kind.is_socket() {
        return Err(refused(path, "it is a socket"));
    }
    // A FIFO holds nothing that could be lost.
    if !force && !kind.is_fifo() {
        return Err(exists(path));
    }
    write_directly(path, &metadata)
}

fn write_directly(path: &Path, metadata: &Metadata) -> Result<Box<dyn StreamTarget>> {
    let mut flags = OFlags::WRONLY | OFlags::CLOEXEC;
    if metadata.file_type().is_block_device() {
        // Claims the device against mounts and other claims.
        flags |= OFlags::EXCL;
    }
    match open(path, flags, Mode::empty()) {
        Ok(file) => Ok(Box::new(Direct { file: File::from(file), path: path.to_owned() })),
        Err(Errno::BUSY) => {
            Err(refused(path, "it is in use (mounted, or held by another program)"))
        }
        Err(errno) => Err(failed("write to", path, errno)),
    }
}

/// Puts the path into an error of [`Write`]; its kind stays, since callers retry interrupted
/// writes and tell a full disk by it.
fn named(path: &Path, cause: io::Error) -> io::Error {
    if cause.kind() == io::ErrorKind::Interrupted {
        return cause;
    }
    io::Error::new(cause.kind(), format!("cannot write {}: {cause}", path.display()))
}

/// A new file, still under its temporary name.
struct NewFile {
    temporary: Temporary,
}

impl Write for NewFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.temporary.file().write(data).map_err(|cause| named(self.temporary.path(), cause))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StreamTarget for NewFile {
    fn finish(self: Box<Self>) -> Result<()> {
        self.temporary.finish()
    }
}

/// A pipe or device.
struct Direct {
    file: File,
    path: PathBuf,
}

impl Write for Direct {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write(data).map_err(|cause| named(&self.path, cause))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StreamTarget for Direct {
    fn finish(self: Box<Self>) -> Result<()> {
        match self.file.sync_all() {
            // Pipes and terminals have no stable storage.
            Err(cause) if cause.kind() == io::ErrorKind::InvalidInput => Ok(()),
            other => other.map_err(|cause| failed("write", &self.path, cause)),
        }
    }
}

//! The file of an image, under its temporary name until it is complete.
//!
//! Invariant: an existing file is replaced as a whole, and only at the end.

use crate::error::Result;
use crate::target::output::Output;
use crate::target::reused::refuse_used;
use crate::target::temporary::{Temporary, new_or_replaced};
use crate::target::{examine, exists, failed, refused};
use std::fs::File;
use std::path::Path;

/// The largest file of Linux.
const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// A new file that is written at any place.
pub(super) struct ImageFile {
    temporary: Temporary,
    output: Output,
}

impl ImageFile {
    /// Makes a file that takes the name at its end; `force` allows it to replace another.
    pub fn create(path: &Path, force: bool) -> Result<ImageFile> {
        check_target(path, force)?;
        let temporary = new_or_replaced(path, force)?;
        Ok(ImageFile { temporary, output: Output::new(path, FILE_BYTES_MAX, false) })
    }

    /// The final path.
    pub fn path(&self) -> &Path {
        self.output.path()
    }

    /// Writes at an offset; from several threads.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.output.write_at(self.temporary.file(), offset, data)
    }

    /// Makes the file so long; what nobody writes is a hole.
    pub fn set_size(&self, bytes: u64) -> Result<()> {
        let what = format!("make room for {bytes} bytes in");
        self.temporary.file().set_len(bytes).map_err(|cause| failed(&what, self.path(), cause))
    }

    /// Brings it to stable storage and gives it its name.
    pub fn finish(self) -> Result<()> {
        self.output.sync(self.temporary.file())?;
        self.temporary.finish()
    }
}

/// Checks that an image may be made at a path, before work is put into it.
///
/// # Errors
/// [`ErrorKind::Target`](crate::error::ErrorKind::Target) for anything that is no regular file,
/// devices included; [`ErrorKind::AlreadyExists`](crate::error::ErrorKind::AlreadyExists) if there
/// is something and `force` is not set; `Target` also for what is in use.
pub fn check_target(path: &Path, force: bool) -> Result<()> {
    match examine(path)? {
        Some(metadata) if !metadata.is_file() => {
            let cause = "it is no regular file, and an image of a format is one";
            Err(refused(path, cause))
        }
        Some(_) if !force => Err(exists(path)),
        Some(_) => match File::open(path) {
            // Its name would lead to another file than what uses it goes on with.
            Ok(file) => refuse_used(&file, path, "stop what uses it"),
            // It can be replaced without being read.
            Err(_) => Ok(()),
        },
        None => Ok(()),
    }
}

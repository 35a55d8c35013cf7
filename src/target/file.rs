//! Disks into regular files: a new sparse one, or an existing one in place.
//!
//! Invariant: a new file is complete when its name appears; an existing one keeps its inode,
//! owner and mode, and is exactly as long as the disk from the start.

use super::in_place::InPlace;
use super::output::Output;
use super::reused::{claim, lock_against_runs, refuse_used};
use super::temporary::{Existing, Temporary};
use super::{DiskTarget, Layout, ZeroState, failed, refused};
use crate::error::Result;
use std::fs::File;
use std::path::Path;

/// A new file, still under its temporary name.
pub struct NewFile {
    temporary: Temporary,
    output: Output,
    /// Where the disk begins.
    base: u64,
}

impl NewFile {
    /// Makes a new sparse file for a disk of `size` bytes.
    pub(super) fn create(path: &Path, size: u64, layout: Layout) -> Result<NewFile> {
        let shape = layout.shape(size)?;
        let temporary = Temporary::create(path, Existing::Keep)?;
        set_size(temporary.file(), path, shape.file_bytes)?;
        let output = Output::new(path, shape.file_bytes, false);
        shape.write_head(temporary.file(), &output)?;
        Ok(NewFile { temporary, output, base: shape.base })
    }

    /// The file, open beyond the end of this; nobody else may write to it as long as it is.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Target`] if the system has no more open files.
    pub fn claim(&self) -> Result<File> {
        let path = self.output.path();
        let file = self.temporary.file().try_clone();
        let file = file.map_err(|cause| failed("keep open", path, cause))?;
        claim(&file, path, true)?;
        Ok(file)
    }
}

fn set_size(file: &File, path: &Path, size: u64) -> Result<()> {
    file.set_len(size)
        .map_err(|cause| failed(&format!("make room for {size} bytes in"), path, cause))
}

impl DiskTarget for NewFile {
    fn describe(&self) -> String {
        self.output.path().display().to_string()
    }

    fn zero_state(&self) -> ZeroState {
        ZeroState::AlreadyZero
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.output.write_at(self.temporary.file(), self.base + offset, data)
    }

    fn make_hole(&self, offset: u64, bytes: u64) -> Result<()> {
        self.output.make_hole(self.temporary.file(), self.base + offset, bytes)
    }

    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()> {
        self.output.write_zeroes(self.temporary.file(), self.base + offset, bytes)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        // Before its name appears.
        self.output.sync(self.temporary.file())?;
        self.temporary.finish()
    }
}

/// Opens an existing file and brings it to `size` bytes.
pub(super) fn open_existing(path: &Path, size: u64) -> Result<Box<dyn DiskTarget>> {
    let file =
        File::options().write(true).open(path).map_err(|cause| failed("write to", path, cause))?;
    let metadata = file.metadata().map_err(|cause| failed("write to", path, cause))?;
    if !metadata.is_file() {
        return Err(refused(path, "it is no longer a regular file"));
    }
    // What is known of it is forgotten by its times; a run that keeps it up to date is not to be
    // disturbed.
    lock_against_runs(&file, path)?;
    // What is in use is another matter than what exists.
    refuse_used(&file, path, "stop what uses it, or use --in-place with --force")?;
    set_size(&file, path, size)?;
    Ok(Box::new(InPlace::new(file, Output::new(path, size, false))))
}

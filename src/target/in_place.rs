//! What is written where it lies: an existing file or a block device.
//!
//! Invariant: nothing is known of what unwritten ranges hold, so every range that has to be zero is
//! made so.

use super::output::Output;
use super::{DiskTarget, ZeroState};
use crate::error::Result;
use std::fs::File;

/// An open file or device of which every range is written once.
pub(super) struct InPlace {
    file: File,
    output: Output,
}

impl InPlace {
    /// Takes over an open file or device.
    pub(super) fn new(file: File, output: Output) -> InPlace {
        InPlace { file, output }
    }
}

impl DiskTarget for InPlace {
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

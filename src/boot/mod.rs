//! Starts QEMU on the disks of a point, to use the machine at once or to see whether it boots.
//!
//! Invariants: the guest has no network, and what it writes goes to overlays; QEMU does not outlive
//! this process; what a guest says is bounded in memory and never trusted to be text.

mod console;
mod firmware;
mod machine;
mod watch;

pub use firmware::{Firmware, FirmwareChoice};
pub use machine::{DiskBus, MachineOptions, run_interactively, test};
pub use watch::{Expectations, Verdict};

use crate::error::Result;
use crate::repository::Repository;
use crate::repository::notes::put_note;
use diskvault_format::id::PointId;
use diskvault_format::limits::TEXT_BYTES_MAX;
use diskvault_format::small::NOTE_VERDICT;

/// What the notes of boot tests call the test, and both of its results.
pub const TEST: &str = "boot";
/// It booted.
pub const GOOD: &str = "good";
/// It did not.
pub const BAD: &str = "bad";

/// Keeps a verdict with its point.
///
/// # Errors
/// As [`put_note`].
pub fn store(repository: &Repository, point: PointId, host: &str, verdict: &Verdict) -> Result<()> {
    let result = if verdict.is_good { GOOD } else { BAD };
    let mut detail = format!("{} after {:.1} s", verdict.because, verdict.seconds);
    // A pattern may be long.
    while detail.len() > TEXT_BYTES_MAX {
        detail.pop();
    }
    let fields = [("test", TEST), ("result", result), ("detail", &detail)];
    let fields = fields.map(|(key, value)| (key.to_string(), value.to_string()));
    put_note(repository, point, NOTE_VERDICT, host, fields.to_vec())
}

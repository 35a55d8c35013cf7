//! How the silent library speaks: progress, problems that do not stop the work, and whether the
//! user wants it to stop. The command line implements it for terminals and JSON; tests count.

use crate::error::{Error, ErrorKind, Result};

/// Receives what happens while an operation runs. All methods may be called from any thread.
pub trait Monitor: Send + Sync {
    /// A stage of the work begins; `total_bytes` is what [`Monitor::advance`] will add up to, if known.
    fn start(&self, _stage: &str, _total_bytes: Option<u64>) {}

    /// So many more bytes of the current stage are done.
    fn advance(&self, _bytes: u64) {}

    /// The stage is over.
    fn finish(&self) {}

    /// A decision worth telling, such as the chunking of a disk.
    fn note(&self, _text: &str) {}

    /// Something is wrong, but the work goes on.
    fn warn(&self, _text: &str) {}

    /// True once the user asked to stop.
    fn is_cancelled(&self) -> bool {
        false
    }

    /// Fails with [`ErrorKind::Cancelled`] once the user asked to stop.
    fn check_cancelled(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "interrupted"));
        }
        Ok(())
    }
}

/// A monitor that ignores everything.
pub struct Silent;

impl Monitor for Silent {}

//! Ranges of a disk, and joining them.

use crate::error::Result;

/// What is known about the bytes of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// May hold anything, zeros included; has to be read.
    Data,
    /// Not allocated, or known to be zeros: reads as zeros and need not be read.
    Hole,
}

/// A range of a disk that is all data or all hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset of the first byte.
    pub start: u64,
    /// Length in bytes, never 0.
    pub bytes: u64,
    /// Whether the range has to be read.
    pub kind: ExtentKind,
}

/// Joins adjacent extents of one kind before they are passed on.
pub(super) struct Merger<'a> {
    each: &'a mut dyn FnMut(Extent) -> Result<()>,
    pending: Option<Extent>,
}

impl<'a> Merger<'a> {
    /// Passes what it joins on to `each`.
    pub fn new(each: &'a mut dyn FnMut(Extent) -> Result<()>) -> Merger<'a> {
        Merger { each, pending: None }
    }

    /// Takes the next extent.
    ///
    /// # Errors
    /// What `each` returns.
    pub fn add(&mut self, extent: Extent) -> Result<()> {
        self.add_range(extent.start, extent.start + extent.bytes, extent.kind)
    }

    /// Takes the range `start..end`; an empty one is ignored.
    ///
    /// # Errors
    /// What `each` returns.
    pub fn add_range(&mut self, start: u64, end: u64, kind: ExtentKind) -> Result<()> {
        let bytes = end.saturating_sub(start);
        if bytes == 0 {
            return Ok(());
        }
        if let Some(pending) = self.pending.as_mut().filter(|pending| pending.kind == kind) {
            pending.bytes += bytes;
            return Ok(());
        }
        self.flush()?;
        self.pending = Some(Extent { start, bytes, kind });
        Ok(())
    }

    /// Passes the last one on.
    ///
    /// # Errors
    /// What `each` returns.
    pub fn flush(&mut self) -> Result<()> {
        self.pending.take().map_or(Ok(()), &mut *self.each)
    }
}

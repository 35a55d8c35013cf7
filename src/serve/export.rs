//! A disk as clients see it: a disk of a point, and what was written over it.
//!
//! Invariants: without an overlay nothing can be written; the disk of the point never changes.

use super::overlay::Overlay;
use super::protocol::*;
use crate::error::{Error, ErrorKind, Result};
use crate::view::{Extent, Reader, View};
use std::ops::Range;
use std::sync::Arc;

/// Most extents of one answer about block status: 128 KiB.
const EXTENTS_MAX: usize = 16 << 10;

/// Hears of reads in the order in which a client asks for them: offset and bytes.
pub type Foreseer = Box<dyn FnMut(u64, u64) + Send>;

/// What lies under an export and never changes.
pub trait Base: Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// What keeps this range from being read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Calls `each` with the parts of a range, ascending and without gaps.
    ///
    /// # Errors
    /// As [`Base::read_at`], or what `each` says.
    fn extents(&self, range: Range<u64>, each: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()>;

    /// One for each client, which may load what comes next.
    fn foreseer(&self) -> Foreseer;
}

impl Base for Arc<View> {
    fn size(&self) -> u64 {
        self.as_ref().size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.as_ref().read_at(offset, buffer)
    }

    fn extents(&self, range: Range<u64>, each: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
        self.as_ref().extents(range, each)
    }

    fn foreseer(&self) -> Foreseer {
        let mut reader = Reader::new(self.clone());
        Box::new(move |offset, bytes| reader.foresee(offset, bytes))
    }
}

/// A disk under a name.
pub struct Export {
    name: String,
    description: String,
    preferred_bytes: u32,
    base: Box<dyn Base>,
    overlay: Option<Overlay>,
}

impl Export {
    /// `preferred_bytes` is what reads best, a power of two.
    pub fn new(
        name: String,
        description: String,
        preferred_bytes: u32,
        base: Box<dyn Base>,
        overlay: Option<Overlay>,
    ) -> Export {
        Export { name, description, preferred_bytes, base, overlay }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is, for people.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.base.size()
    }

    /// True if nothing can be written.
    pub fn is_read_only(&self) -> bool {
        self.overlay.is_none()
    }

    pub(super) fn preferred_bytes(&self) -> u32 {
        self.preferred_bytes
    }

    /// Transmission flags. Several connections see the same at once: there is one overlay, and a
    /// flush is of all of it.
    pub(super) fn flags(&self, is_structured: bool) -> u16 {
        let writing = match self.is_read_only() {
            true => READ_ONLY,
            false => SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES,
        };
        let structured = if is_structured { SEND_DF } else { 0 };
        HAS_FLAGS | SEND_FLUSH | CAN_MULTI_CONN | writing | structured
    }

    pub(super) fn foreseer(&self) -> Foreseer {
        self.base.foreseer()
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match &self.overlay {
            Some(overlay) => overlay.read(self.base.as_ref(), offset, buffer),
            None => self.base.read_at(offset, buffer),
        }
    }

    fn writable(&self) -> Result<&Overlay> {
        let refuse = || Error::new(ErrorKind::Usage, "cannot write: the export is read-only");
        self.overlay.as_ref().ok_or_else(refuse)
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.writable()?.write(self.base.as_ref(), offset, data)
    }

    pub(super) fn write_zeroes(&self, range: Range<u64>, is_written: bool) -> Result<()> {
        self.writable()?.write_zeroes(self.base.as_ref(), range, is_written)
    }

    pub(super) fn trim(&self, range: Range<u64>) -> Result<()> {
        self.writable()?.trim(range)
    }

    /// Brings all that was written onto stable storage.
    ///
    /// # Errors
    /// `Target` or `NoSpace`.
    pub fn flush(&self) -> Result<()> {
        self.overlay.as_ref().map_or(Ok(()), Overlay::flush)
    }

    /// Lengths and states from the start of a range on, at least one, not all of it if it has many.
    pub(super) fn status(&self, range: Range<u64>, only_one: bool) -> Result<Vec<(u32, u32)>> {
        let mut found: Vec<(u32, u32)> = Vec::new();
        let most = if only_one { 1 } else { EXTENTS_MAX };
        let mut is_full = false;
        let mut add = |extent: Extent| {
            let zero = if extent.is_zero { STATE_ZERO } else { 0 };
            // What the source had no storage for reads as zeros.
            let state = if extent.is_allocated { zero } else { STATE_HOLE | STATE_ZERO };
            let bytes = (extent.end - extent.start) as u32;
            if let Some((length, _)) = found.last_mut().filter(|(_, last)| *last == state) {
                *length += bytes;
            } else if found.len() < most {
                found.push((bytes, state));
            } else {
                is_full = true;
                return Err(Error::new(ErrorKind::Cancelled, "enough"));
            }
            Ok(())
        };
        let walked = match &self.overlay {
            Some(overlay) => overlay.extents(self.base.as_ref(), range, &mut add),
            None => self.base.extents(range, &mut add),
        };
        match walked {
            Err(error) if !is_full => Err(error),
            _ => Ok(found),
        }
    }
}

//! Ranges of a disk, and joining them.

use super::changes::join;
use crate::error::Result;
use std::ops::Range;

/// Ranges that [`Changes`] keeps: 16 MiB.
const RANGES_MAX: usize = 1 << 20;
/// The first distance over which ranges are joined that are too many, in bytes.
const GAP_BYTES: u64 = 512;

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

/// Ranges of a disk that may have changed, in bounded memory: of too many, what lies between those
/// that are nearest to each other counts as changed as well.
#[derive(Debug, Default)]
pub struct Changes {
    ranges: Vec<Range<u64>>,
    /// Ranges that are no farther apart than this are joined.
    gap: u64,
}

impl Changes {
    /// Takes a range in bytes, in any order; an empty one is ignored.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        if self.ranges.len() >= RANGES_MAX {
            self.shorten();
        }
        let gap = self.gap;
        let touches = |last: &&mut Range<u64>| {
            last.start <= range.start && range.start <= last.end.saturating_add(gap)
        };
        match self.ranges.last_mut().filter(touches) {
            Some(last) => last.end = last.end.max(range.end),
            None => self.ranges.push(range),
        }
    }

    fn shorten(&mut self) {
        self.ranges = join(std::mem::take(&mut self.ranges));
        while self.ranges.len() > RANGES_MAX / 2 {
            self.gap = (self.gap * 2).max(GAP_BYTES);
            let gap = self.gap;
            self.ranges.dedup_by(|range, last| {
                let touches = range.start - last.end <= gap;
                if touches {
                    last.end = range.end;
                }
                touches
            });
        }
    }

    /// All of them: ascending, disjoint, none touching another.
    pub fn finish(self) -> Vec<Range<u64>> {
        join(self.ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_joined_and_none_is_lost_however_many_there_are() {
        let mut changes = Changes::default();
        for range in [7..9, 1..3, 5..5, 2..4, 9..12] {
            changes.add(range);
        }
        assert_eq!(changes.finish(), [1..4, 7..12]);
        // Every second sector, from the end: none can be joined with the one before.
        let count = 3 * RANGES_MAX as u64;
        let mut changes = Changes::default();
        for number in (0..count).rev() {
            changes.add(number * 1024..number * 1024 + 512);
            assert!(changes.ranges.len() <= RANGES_MAX);
        }
        let ranges = changes.finish();
        let mut rest = &ranges[..];
        for number in 0..count {
            while rest[0].end <= number * 1024 {
                rest = &rest[1..];
            }
            assert!(rest[0].start <= number * 1024 && rest[0].end >= number * 1024 + 512);
        }
    }
}

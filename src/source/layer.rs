//! Images that lie over a parent: reading, walking and prefetching of what a table says where.
//!
//! Invariants: a range that is nowhere is not read; every walk covers its range exactly, because
//! each step of [`Layer::locate`] goes forward.

use super::extents::Merger;
use super::{DiskSource, Extent, ExtentKind, changed_over, newest_change};
use crate::error::{Error, Result};
use std::ops::Range;

/// Where the bytes of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the parent, or nowhere.
    Below,
    /// They are zeros.
    Zero,
    /// At this place in the file.
    Host(u64),
    /// At this place in the file, which has holes where the disk has.
    Through(u64),
}

/// One image of a chain.
pub(super) trait Layer: Send + Sync {
    /// The format, as it is written into a manifest.
    const FORMAT: &'static str;

    /// Virtual size in bytes.
    fn size(&self) -> u64;

    /// The image's own file.
    fn file(&self) -> &dyn DiskSource;

    /// What shows through where nothing is allocated.
    fn below(&self) -> Option<&dyn DiskSource>;

    /// True when holes of this image can be told from written zeros.
    fn knows_allocation(&self) -> bool;

    /// What the run that begins at `at` is, and where it ends: behind `at`, at most `end`.
    fn locate(&self, at: u64, end: u64) -> Result<(Place, u64)>;

    /// Reads bytes of the file that [`Layer::locate`] gave.
    fn read_host(&self, at: u64, buffer: &mut [u8]) -> Result<()>;

    /// An error about the image.
    fn bad(&self, text: String) -> Error;
}

/// The guest's view of an image.
pub(super) struct Layered<L>(pub L);

impl<L: Layer> Layered<L> {
    fn read_below(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let Some(below) = self.0.below() else {
            buffer.fill(0);
            return Ok(());
        };
        // A parent that is smaller goes on with zeros.
        let there = below.size().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (there, beyond) = buffer.split_at_mut(there);
        beyond.fill(0);
        if there.is_empty() { Ok(()) } else { below.read_at(offset, there) }
    }

    fn files(&self) -> impl Iterator<Item = &dyn DiskSource> {
        std::iter::once(self.0.file()).chain(self.0.below())
    }
}

impl<L: Layer> DiskSource for Layered<L> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn describe(&self) -> String {
        self.0.file().describe()
    }

    fn format(&self) -> &'static str {
        L::FORMAT
    }

    fn extents_in(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        let mut merger = Merger::new(each);
        let end = range.end.min(self.size());
        let mut at = range.start;
        while at < end {
            let (place, stop) = self.0.locate(at, end)?;
            match (place, self.0.below()) {
                (Place::Below, Some(below)) => {
                    let shown = stop.min(below.size()).max(at);
                    if at < shown {
                        below.extents_in(at..shown, &mut |extent| merger.add(extent))?;
                    }
                    merger.add_range(shown, stop, ExtentKind::Hole)?;
                }
                (Place::Below | Place::Zero, _) => merger.add_range(at, stop, ExtentKind::Hole)?,
                (Place::Host(_), _) => merger.add_range(at, stop, ExtentKind::Data)?,
                (Place::Through(host), _) => {
                    let file = self.0.file();
                    file.extents_in(host..host + (stop - at), &mut |extent| {
                        merger.add(Extent { start: extent.start - host + at, ..extent })
                    })?;
                }
            }
            at = stop;
        }
        merger.flush()
    }

    fn allocation_known(&self) -> bool {
        self.0.knows_allocation() && self.0.below().is_none_or(DiskSource::allocation_known)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.size());
        let Some(end) = end else {
            return Err(self.0.bad(format!("a read at {offset} reaches beyond its end")));
        };
        let mut at = offset;
        let mut rest = buffer;
        while at < end {
            let (place, stop) = self.0.locate(at, end)?;
            let (now, later) = rest.split_at_mut((stop - at) as usize);
            match place {
                Place::Below => self.read_below(at, now)?,
                Place::Zero => now.fill(0),
                Place::Host(host) | Place::Through(host) => self.0.read_host(host, now)?,
            }
            rest = later;
            at = stop;
        }
        Ok(())
    }

    fn prefetch(&self, offset: u64, bytes: u64) {
        let end = offset.saturating_add(bytes).min(self.size());
        let mut at = offset;
        while at < end {
            let Ok((place, stop)) = self.0.locate(at, end) else { return };
            match (place, self.0.below()) {
                (Place::Below, Some(below)) => below.prefetch(at, stop - at),
                (Place::Host(host) | Place::Through(host), _) => {
                    self.0.file().prefetch(host, stop - at);
                }
                _ => {}
            }
            at = stop;
        }
    }

    fn check_unchanged_size(&self) -> Result<()> {
        self.files().try_for_each(DiskSource::check_unchanged_size)
    }

    fn identity(&self) -> Vec<u8> {
        self.files().flat_map(DiskSource::identity).collect()
    }

    fn changed_unix_ns(&self) -> Option<i64> {
        newest_change(self.files())
    }

    fn written_by_machine(&self) -> Option<String> {
        self.files().find_map(DiskSource::written_by_machine)
    }

    fn changed_over(
        &self,
        is_base: &dyn Fn(&dyn DiskSource) -> bool,
        each: &mut dyn FnMut(Range<u64>) -> Result<()>,
    ) -> Result<bool> {
        let below = self.0.below();
        changed_over((self.size(), below), is_base, each, &|at| {
            let (place, stop) = self.0.locate(at, self.size())?;
            Ok((!matches!(place, Place::Below), stop))
        })
    }
}

/// The run of equal bits that begins with bit `from`, up to bit `to` at most: where it ends, and
/// what its bits are. `bit` gives the bit of a number, which is in the byte of an eighth of it.
pub(super) fn bit_run(bits: &[u8], from: u64, to: u64, bit: fn(&[u8], u64) -> bool) -> (bool, u64) {
    let is_set = bit(bits, from);
    let same = if is_set { 0xff } else { 0 };
    let mut at = from + 1;
    while at < to {
        if at.is_multiple_of(8) && at + 8 <= to && bits[(at / 8) as usize] == same {
            at += 8;
        } else if bit(bits, at) == is_set {
            at += 1;
        } else {
            break;
        }
    }
    (is_set, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_bits_end_where_a_bit_is_another() {
        let low_first = |bits: &[u8], at: u64| bits[(at / 8) as usize] >> (at % 8) & 1 == 1;
        let bits = [0xff, 0xff, 0x0f, 0x00, 0x00, 0x80];
        for (from, to, run) in [
            (0, 48, (true, 20)),
            (0, 13, (true, 13)),
            (3, 48, (true, 20)),
            (20, 48, (false, 47)),
            (47, 48, (true, 48)),
        ] {
            assert_eq!(bit_run(&bits, from, to, low_first), run, "{from}..{to}");
        }
    }
}

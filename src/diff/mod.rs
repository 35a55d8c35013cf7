//! What two points differ in, from their maps alone: no data is read.
//!
//! Pages that both maps have at one place are passed over unread, so the cost is that of the
//! difference. What lies behind the end of a disk counts as zeros.
//!
//! Invariants: every byte that differs lies in an extent; of two maps that were cut the same way
//! no extent is without a difference, to the chunk. Maps that were cut in different ways are never
//! guessed about: data against data is told as unknown.

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::locate::Locator;
use crate::repository::map_cursor::{Cursor, Item, Run};
use crate::repository::map_reader::MapReader;
use crate::repository::points::Point;
use diskvault_format::manifest::{DiskRecord, StreamRecord};
use std::collections::BTreeSet;

/// How a range of a disk differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Data before and after, and not the same.
    Changed,
    /// Zeros before, data now.
    Written,
    /// Data before, zeros now.
    Zeroed,
    /// Data that lay behind the disk's new end.
    Cut,
    /// Data before and after, cut into chunks in two ways: the maps cannot tell.
    Unknown,
}

impl Change {
    /// Lower-case name, as it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Change::Changed => "changed",
            Change::Written => "written",
            Change::Zeroed => "zeroed",
            Change::Cut => "cut",
            Change::Unknown => "unknown",
        }
    }
}

/// A range of a disk that differs; whole chunks, cut at the ends of the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its first byte.
    pub start: u64,
    /// Its length in bytes, not 0.
    pub bytes: u64,
    /// How it differs.
    pub change: Change,
}

/// Sums over a disk's extents, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Data before and after.
    pub changed_bytes: u64,
    /// Zeros before, data now.
    pub written_bytes: u64,
    /// Data before, zeros now.
    pub zeroed_bytes: u64,
    /// Data behind the new end.
    pub cut_bytes: u64,
    /// Cannot be told.
    pub unknown_bytes: u64,
    /// Number of extents.
    pub extents: u64,
}

impl Sums {
    /// Counts an extent.
    pub fn add(&mut self, extent: &Extent) {
        let sum = match extent.change {
            Change::Changed => &mut self.changed_bytes,
            Change::Written => &mut self.written_bytes,
            Change::Zeroed => &mut self.zeroed_bytes,
            Change::Cut => &mut self.cut_bytes,
            Change::Unknown => &mut self.unknown_bytes,
        };
        *sum = sum.saturating_add(extent.bytes);
        self.extents += 1;
    }

    /// Counts all that another sum has.
    pub fn merge(&mut self, other: &Sums) {
        for (sum, more) in [
            (&mut self.changed_bytes, other.changed_bytes),
            (&mut self.written_bytes, other.written_bytes),
            (&mut self.zeroed_bytes, other.zeroed_bytes),
            (&mut self.cut_bytes, other.cut_bytes),
            (&mut self.unknown_bytes, other.unknown_bytes),
            (&mut self.extents, other.extents),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    /// Bytes of all extents.
    pub fn bytes(&self) -> u64 {
        let known = [self.changed_bytes, self.written_bytes, self.zeroed_bytes, self.cut_bytes];
        known.iter().fold(self.unknown_bytes, |sum, bytes| sum.saturating_add(*bytes))
    }
}

/// Compares disks of one repository.
pub struct Comparison<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// Where things are.
    pub locator: &'a Locator,
    /// Hears of progress.
    pub monitor: &'a dyn Monitor,
}

impl Comparison<'_> {
    /// Tells `each` the extents in which two disks differ, ascending; neighbours of one kind are
    /// one extent. A disk that is not there counts as one of no bytes.
    ///
    /// # Errors
    /// `Damage` for a map that cannot be read where it differs; `Cancelled`; what `each` says.
    pub fn disks(
        &self,
        old: Option<&DiskRecord>,
        new: Option<&DiskRecord>,
        each: &mut dyn FnMut(&Extent) -> Result<()>,
    ) -> Result<()> {
        let reader = MapReader::new(self.repository, self.locator);
        let open = |disk: Option<&DiskRecord>| match disk {
            Some(disk) => Cursor::new(&reader, disk),
            None => Ok(Cursor::empty(&reader)),
        };
        let (mut one, mut two) = (open(old)?, open(new)?);
        let is_one_cut = match (old, new) {
            (Some(old), Some(new)) => old.chunking == new.chunking,
            _ => true,
        };
        let mut merger = Merger { open: None, each };
        loop {
            self.monitor.check_cancelled()?;
            match (one.peek(), two.peek()) {
                (None, None) => break,
                (Some(Item::Page(a)), Some(Item::Page(b))) if a.is_same(&b) => {
                    one.skip();
                    two.skip();
                }
                (Some(Item::Page(a)), Some(Item::Page(b))) => {
                    // The larger one first, so that pages of one size meet.
                    let (first, second) = (a.bytes >= b.bytes, b.bytes >= a.bytes);
                    first.then(|| one.descend()).transpose()?;
                    second.then(|| two.descend()).transpose()?;
                }
                (Some(Item::Page(_)), _) => one.descend()?,
                (_, Some(Item::Page(_))) => two.descend()?,
                (Some(Item::Run(a)), Some(Item::Run(b))) => {
                    let end = a.end.min(b.end);
                    let change = change_of(Some(&a), Some(&b), is_one_cut);
                    merger.add(a.start.max(b.start), end, change)?;
                    one.advance(end);
                    two.advance(end);
                }
                (Some(Item::Run(a)), None) => {
                    merger.add(a.start, a.end, a.chunk.map(|_| Change::Cut))?;
                    one.skip();
                }
                (None, Some(Item::Run(b))) => {
                    merger.add(b.start, b.end, change_of(None, Some(&b), is_one_cut))?;
                    two.skip();
                }
            }
        }
        merger.finish()
    }
}

/// How two runs that begin or end somewhere in each other differ.
fn change_of(old: Option<&Run>, new: Option<&Run>, is_one_cut: bool) -> Option<Change> {
    let chunk = |run: Option<&Run>| run.and_then(|run| run.chunk);
    match (chunk(old), chunk(new)) {
        (None, None) => None,
        (None, Some(_)) => Some(Change::Written),
        (Some(_), None) => Some(Change::Zeroed),
        // Equal ids are equal bytes, also in maps that were cut in different ways.
        (Some(a), Some(b)) if a == b => None,
        _ if is_one_cut => Some(Change::Changed),
        _ => Some(Change::Unknown),
    }
}

/// Makes one extent of neighbours of one kind.
struct Merger<'e> {
    open: Option<Extent>,
    each: &'e mut dyn FnMut(&Extent) -> Result<()>,
}

impl Merger<'_> {
    fn add(&mut self, start: u64, end: u64, change: Option<Change>) -> Result<()> {
        let Some(change) = change.filter(|_| end > start) else { return Ok(()) };
        if let Some(open) = &mut self.open
            && open.change == change
            && open.start + open.bytes == start
        {
            open.bytes = end - open.start;
            return Ok(());
        }
        self.finish()?;
        self.open = Some(Extent { start, bytes: end - start, change });
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.open.take().map_or(Ok(()), |extent| (self.each)(&extent))
    }
}

/// Parts of one name in two points, or under two names that a user has put beside each other.
#[derive(Clone, Copy, Debug)]
pub enum Pair<'a> {
    /// A disk before and after; one of them is there.
    Disks(Option<&'a DiskRecord>, Option<&'a DiskRecord>),
    /// A stream before and after; one of them is there.
    Streams(Option<&'a StreamRecord>, Option<&'a StreamRecord>),
}

impl<'a> Pair<'a> {
    /// The name in the new point, else in the old one.
    pub fn name(self) -> &'a str {
        match self {
            Pair::Disks(old, new) => new.or(old).map_or("", |disk| &disk.name),
            Pair::Streams(old, new) => new.or(old).map_or("", |stream| &stream.name),
        }
    }

    /// Sizes in bytes, before and after.
    pub fn sizes(self) -> (Option<u64>, Option<u64>) {
        match self {
            Pair::Disks(old, new) => (old.map(|disk| disk.size), new.map(|disk| disk.size)),
            Pair::Streams(old, new) => {
                let bytes = |stream: &StreamRecord| stream.content.bytes;
                (old.map(bytes), new.map(bytes))
            }
        }
    }

    /// True if both are there and hold the same bytes; `None` if their records cannot tell.
    pub fn is_equal(self) -> Option<bool> {
        let (old_bytes, new_bytes) = self.sizes();
        if old_bytes != new_bytes {
            return Some(false);
        }
        match self {
            Pair::Disks(Some(old), Some(new)) if old.chunking == new.chunking => {
                Some(old.root == new.root)
            }
            Pair::Disks(Some(old), Some(new)) => {
                let digests = old.digest.zip(new.digest);
                digests.map(|(old, new)| old == new)
            }
            Pair::Streams(Some(old), Some(new)) => Some(old.digest == new.digest),
            _ => Some(false),
        }
    }
}

/// The parts of two points, side by side by name: disks in the new point's order, then those that
/// are gone, then streams. A name that was a disk and is a stream now is in two pairs.
pub fn pairs<'a>(old: &'a Point, new: &'a Point) -> Vec<Pair<'a>> {
    let (old, new) = (&old.manifest, &new.manifest);
    let mut pairs = Vec::new();
    let names: BTreeSet<&str> = new.disks.iter().map(|disk| disk.name.as_str()).collect();
    for disk in &new.disks {
        let before = old.disks.iter().find(|before| before.name == disk.name);
        pairs.push(Pair::Disks(before, Some(disk)));
    }
    let gone = old.disks.iter().filter(|disk| !names.contains(disk.name.as_str()));
    pairs.extend(gone.map(|disk| Pair::Disks(Some(disk), None)));
    let names: BTreeSet<&str> = new.streams.iter().map(|stream| stream.name.as_str()).collect();
    for stream in &new.streams {
        let before = old.streams.iter().find(|before| before.name == stream.name);
        pairs.push(Pair::Streams(before, Some(stream)));
    }
    let gone = old.streams.iter().filter(|stream| !names.contains(stream.name.as_str()));
    pairs.extend(gone.map(|stream| Pair::Streams(Some(stream), None)));
    pairs
}

/// Two parts that a user has put beside each other by name.
///
/// # Errors
/// `NotFound` if one is not there; `Usage` for a disk beside a stream.
pub fn pair<'a>(old: (&'a Point, &str), new: (&'a Point, &str)) -> Result<Pair<'a>> {
    let disk = |(point, name): (&'a Point, &str)| {
        point.manifest.disks.iter().find(|disk| disk.name == name)
    };
    let stream = |(point, name): (&'a Point, &str)| {
        point.manifest.streams.iter().find(|stream| stream.name == name)
    };
    for side @ (point, name) in [old, new] {
        if disk(side).is_none() && stream(side).is_none() {
            let names: Vec<String> =
                point.manifest.part_names().map(|name| name.escape_debug().to_string()).collect();
            let (name, id) = (name.escape_debug(), point.id.short());
            let text = format!("cannot find {name} in point {id}: it has {}", names.join(", "));
            return Err(Error::new(ErrorKind::NotFound, text));
        }
    }
    match (disk(old), disk(new)) {
        (Some(before), Some(after)) => Ok(Pair::Disks(Some(before), Some(after))),
        (None, None) => Ok(Pair::Streams(stream(old), stream(new))),
        _ => {
            let (old, new) = (old.1.escape_debug(), new.1.escape_debug());
            let text = format!("cannot compare {old} with {new}: one is a disk, one a stream");
            Err(Error::new(ErrorKind::Usage, text))
        }
    }
}

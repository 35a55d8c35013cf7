//! The first mark: how much of each pack somebody needs.
//!
//! Invariant: memory is a bit for each entry of a pack that has one in use, whatever the number of
//! points.

use super::roots::{Needs, Root, walk};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::entries::{Place, known_figures, places_of};
use crate::repository::locate::Locator;
use crate::repository::marks::{Marks, stored_share};
use crate::repository::stored::{Stored, find_stored, find_stored_rather, find_whole};
use diskvault_format::id::{ChunkId, PackId, PageId, WriterId};
use std::collections::{BTreeMap, HashSet};

/// One pack, and how much of it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackUsage {
    /// The pack.
    pub id: PackId,
    /// Its size.
    pub bytes: u64,
    /// What of that belongs to entries that somebody needs: of each segment as large a part as of
    /// its uncompressed bytes.
    pub used_bytes: u64,
    /// What belongs to entries that nobody needs. Header, footer and padding are neither.
    pub unused_bytes: u64,
    /// True if some pruner's list has it.
    pub is_listed: bool,
    /// True if it is of a writer that may not read, and so does not find what it needs elsewhere.
    pub is_by_writer: bool,
}

/// What the first mark found.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// All packs that can be read, by id.
    pub packs: Vec<PackUsage>,
    /// What the roots need.
    pub marks: Marks,
    /// Packs that cannot be read, and why. One that this host's index knows and of which nothing or
    /// everything is needed is not looked at.
    pub unreadable: BTreeMap<PackId, Error>,
    /// Chunks that no pack holds: lost already, whatever a prune does.
    pub missing: u64,
    /// Forgotten points that are to be kept and have a map that cannot be read in full.
    pub broken_forgotten: u64,
}

/// Marks what the roots need.
///
/// # Errors
/// As [`walk`].
pub(super) fn measure(
    repository: &Repository,
    locator: &Locator,
    roots: &[Root],
    listed: &HashSet<PackId>,
    monitor: &dyn Monitor,
) -> Result<Usage> {
    let mut mark = Mark { locator, listed, writer: None, marks: Marks::default(), missing: 0 };
    let mut broken_forgotten = 0;
    let writers = repository.keys().writers();
    let is_by_writer = |root: &Root| writers.get(root.manifest.writer).is_some();
    let mut by_writer: BTreeMap<Option<WriterId>, Vec<&Root>> = BTreeMap::new();
    for root in roots {
        let writer = is_by_writer(root).then_some(root.manifest.writer);
        by_writer.entry(writer).or_default().push(root);
    }
    // Each writer by itself: whether one's copy of a chunk stays must not depend on what others
    // stored, or it could ask that way.
    for (writer, roots) in by_writer {
        mark.writer = writer;
        let stage = "marking what is needed";
        broken_forgotten += walk(repository, locator, &roots, stage, &mut mark, monitor)?;
    }
    let (marks, missing) = (mark.marks, mark.missing);
    let mut usage = Usage { missing, broken_forgotten, ..Usage::default() };
    let damaged = locator.damaged().iter();
    usage.unreadable = damaged.map(|(id, error)| (*id, repeat(error))).collect();
    for id in locator.listed() {
        monitor.check_cancelled()?;
        if usage.unreadable.contains_key(id) {
            // Not to be touched: what cannot be read is evidence, not garbage.
            continue;
        }
        match measure_pack(repository, locator, &marks, *id) {
            Ok(pack) => usage.packs.push(PackUsage {
                is_listed: listed.contains(id),
                is_by_writer: locator.trust().writer_of(*id).is_some(),
                ..pack
            }),
            // Deleted since the listing.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind().is_finding() => _ = usage.unreadable.insert(*id, error),
            Err(error) => return Err(error),
        }
    }
    usage.marks = marks;
    Ok(usage)
}

fn repeat(error: &Error) -> Error {
    Error::new(error.kind(), error.full_text())
}

/// How much of a pack is marked. Its footer is opened only if the index cannot tell: if something
/// of it is marked and something is not.
fn measure_pack(
    repository: &Repository,
    locator: &Locator,
    marks: &Marks,
    id: PackId,
) -> Result<PackUsage> {
    let usage = |bytes, used_bytes, unused_bytes| {
        let (is_listed, is_by_writer) = (false, false);
        Ok(PackUsage { id, bytes, used_bytes, unused_bytes, is_listed, is_by_writer })
    };
    if let Some(known) = known_figures(locator.index(), id)? {
        match marks.count(id) {
            0 => return usage(known.bytes, 0, known.segment_bytes),
            marked if marked == known.entries => return usage(known.bytes, known.segment_bytes, 0),
            _ => {}
        }
    }
    let pack = locator.pack(repository, id)?;
    let (mut used_bytes, mut all_bytes) = (0, 0);
    for (ordinal, segment) in pack.footer.segments.iter().enumerate() {
        all_bytes += u64::from(segment.stored_bytes());
        let marked = marks.of(id, ordinal);
        let entries = segment.entries.iter().enumerate();
        let used = entries.filter(|(slot, _)| marked.contains(*slot));
        let used: u64 = used.map(|(_, entry)| u64::from(entry.bytes)).sum();
        used_bytes += stored_share(segment, used);
    }
    // Something of it is needed, however little: never nothing.
    let used_bytes = if marks.has_pack(id) { used_bytes.max(1) } else { 0 };
    usage(pack.bytes, used_bytes, all_bytes.saturating_sub(used_bytes))
}

struct Mark<'a> {
    locator: &'a Locator,
    listed: &'a HashSet<PackId>,
    /// Whose points are looked at, if they are of a writer that may not read.
    writer: Option<WriterId>,
    marks: Marks,
    missing: u64,
}

impl Mark<'_> {
    /// The copies in packs of the writer whose points are looked at: it does not find others. True if
    /// there are any.
    fn mark_own_of_writer(&mut self, id: ChunkId) -> Result<bool> {
        let mut is_marked = false;
        if self.writer.is_some() {
            let trust = self.locator.trust();
            for place in places_of(self.locator.index(), &id.0)? {
                if !place.is_splice && trust.writer_of(place.pack) == self.writer {
                    self.marks.insert(&place);
                    is_marked = true;
                }
            }
        }
        Ok(is_marked)
    }
}

impl Needs for Mark<'_> {
    fn page(&mut self, id: PageId) -> Result<()> {
        let (locator, listed) = (self.locator, self.listed);
        if self.mark_own_of_writer(ChunkId(id.0))? {
            return Ok(());
        }
        let is_whole = |place: &Place| !locator.is_met_damaged(place.pack);
        let trusted = |place: &Place| is_whole(place) && locator.trust().counts(place);
        let unlisted = |place: &Place| trusted(place) && !listed.contains(&place.pack);
        let mut found = find_whole(locator, ChunkId(id.0), &unlisted)?;
        if found.is_none() {
            found = find_whole(locator, ChunkId(id.0), &trusted)?;
        }
        if found.is_none() {
            found = find_whole(locator, ChunkId(id.0), &is_whole)?;
        }
        if found.is_none() {
            found = find_whole(locator, ChunkId(id.0), &|_| true)?;
        }
        // One that is in no pack is met when it is read.
        if let Some(place) = found {
            self.marks.insert(&place);
        }
        Ok(())
    }

    fn chunk(&mut self, id: ChunkId) -> Result<()> {
        let (locator, listed) = (self.locator, self.listed);
        if self.mark_own_of_writer(id)? {
            return Ok(());
        }
        let trusted = |place: &Place| locator.trust().counts(place);
        let unlisted = |place: &Place| trusted(place) && !listed.contains(&place.pack);
        let found = match find_stored(locator, id, &unlisted) {
            Ok(None) => find_stored_rather(locator, id, &trusted)?,
            Err(error) if error.kind().is_finding() => find_stored_rather(locator, id, &trusted)?,
            found => found?,
        };
        match found {
            Some(Stored::Whole(place)) => _ = self.marks.insert(&place),
            Some(Stored::Spliced { place, pieces, .. }) => {
                self.marks.insert(&place);
                pieces.iter().for_each(|place| _ = self.marks.insert(place));
            }
            None => self.missing += 1,
        }
        Ok(())
    }
}

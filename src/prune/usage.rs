//! The first mark: how much of each pack somebody needs.
//!
//! Invariant: memory is a bit for each entry of a pack that has one in use, whatever the number of
//! points.

use super::roots::{Needs, Root, walk};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::entries::{Place, known_figures};
use crate::repository::locate::Locator;
use crate::repository::marks::{Marks, stored_share};
use crate::repository::stored::{Stored, find_stored_rather, find_whole};
use diskvault_format::id::{ChunkId, PackId, PageId};
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
    let mut mark = Mark { locator, listed, marks: Marks::default(), missing: 0 };
    let broken_forgotten =
        walk(repository, locator, roots, "marking what is needed", &mut mark, monitor)?;
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
            Ok(pack) => usage.packs.push(PackUsage { is_listed: listed.contains(id), ..pack }),
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
        Ok(PackUsage { id, bytes, used_bytes, unused_bytes, is_listed: false })
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
    marks: Marks,
    missing: u64,
}

impl Needs for Mark<'_> {
    fn page(&mut self, id: PageId) -> Result<()> {
        let (locator, listed) = (self.locator, self.listed);
        let is_whole = |place: &Place| !locator.is_met_damaged(place.pack);
        let unlisted = |place: &Place| is_whole(place) && !listed.contains(&place.pack);
        let mut found = find_whole(locator, ChunkId(id.0), &unlisted)?;
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
        let unlisted = |place: &Place| !listed.contains(&place.pack);
        match find_stored_rather(locator, id, &unlisted)? {
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

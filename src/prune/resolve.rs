//! Manifests without `ok` whose writer is gone (spec/40-protocol.md, "Resolver"), and what else
//! stopped runs leave behind.
//!
//! Order, which must not change without the model check: see the manifest; see its lease gone; read
//! the lists; list the packs.

use super::roots::{Needs, Root, forgotten_at, walk};
use crate::error::{ErrorKind, Result};
use crate::monitor::{Monitor, Silent};
use crate::repository::Repository;
use crate::repository::aside::packs_aside;
use crate::repository::condemned::read_lists;
use crate::repository::entries::Place;
use crate::repository::locate::Locator;
use crate::repository::lost;
use crate::repository::notes::Notes;
use crate::repository::points::{PointSet, manifest_name, read_manifest};
use crate::repository::stored::{find_stored, find_whole};
use crate::storage::{Folder, ObjectName};
use diskvault_format::id::{ChunkId, PackId, PageId, PointId, WriterId};
use diskvault_format::names;
use std::collections::HashSet;

/// What became of manifests without `ok`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Points that were complete and count now.
    pub finished: u64,
    /// Manifests that were deleted, because something they name is stored nowhere.
    pub deleted: u64,
}

/// Finishes or deletes manifests without `ok` whose lease is gone; leaves what it cannot tell.
///
/// # Errors
/// What the storage says.
pub(super) fn resolve(repository: &Repository, monitor: &dyn Monitor) -> Result<Resolved> {
    let storage = repository.storage();
    let mut resolved = Resolved::default();
    let mut waiting: Vec<Root> = Vec::new();
    for id in PointSet::load(repository)?.unfinished {
        // One that cannot be read stops the mark, which says so.
        let Ok(manifest) = read_manifest(repository, Folder::Points, id) else { continue };
        let lease = ObjectName::new(Folder::Leases, &manifest.lease.to_hex())?;
        if storage.size(&lease)?.is_none() {
            waiting.push(Root { id, manifest, is_forgotten: false });
        }
    }
    if waiting.is_empty() {
        return Ok(resolved);
    }
    let lists = read_lists(repository)?;
    let listed: HashSet<PackId> = lists.into_iter().flat_map(|list| list.packs).collect();
    let locator = Locator::open_fresh(repository, monitor)?;
    // After the packs were listed: one that is being healed is aside for a moment.
    let aside = packs_aside(repository)?;
    let has_more_aside = aside.keys().any(|id| !locator.listed().contains(id));
    let lost: HashSet<[u8; 32]> =
        lost::read_lists(repository)?.into_iter().flat_map(|list| list.ids).collect();
    for root in waiting {
        let id = root.id;
        let (locator, listed, lost) = (&locator, &listed, &lost);
        // What a manifest needs is not in packs that its writer could not have built upon.
        let writer = root.manifest.writer;
        let writer = repository.keys().writers().get(writer).map(|_| writer);
        let state = State::Complete;
        let mut found = Found { locator, listed, has_more_aside, lost, writer, state };
        match walk(repository, locator, &[&root], "", &mut found, &Silent) {
            Ok(_) => {}
            // A page that is in no pack was noted. Another fault of one that a writer made which may
            // not read is what it wrote: it must not stop prunes for ever.
            Err(error) if error.kind().is_finding() && found.writer.is_some() => {
                found.lacks(&[0; 32])
            }
            // Else it is for a check to tell.
            Err(error) if error.kind().is_finding() => found.at_most(State::Unclear),
            Err(error) => return Err(error),
        }
        match found.state {
            State::Complete => {
                let ok = ObjectName::new(Folder::Points, &names::point_ok(id))?;
                match storage.put_new(&ok, &[]) {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                    other => other?,
                }
                resolved.finished += 1;
            }
            State::Incomplete => {
                storage.delete(&manifest_name(id)?)?;
                resolved.deleted += 1;
            }
            State::Unclear => {}
        }
    }
    Ok(resolved)
}

/// From good to bad.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// All is in unlisted packs.
    Complete,
    /// Some is in listed packs only.
    Unclear,
    /// Some is in no pack at all.
    Incomplete,
}

struct Found<'a> {
    locator: &'a Locator,
    listed: &'a HashSet<PackId>,
    /// True if packs are set aside that are not in their place.
    has_more_aside: bool,
    /// What no pack gives, as far as that is named.
    lost: &'a HashSet<[u8; 32]>,
    /// The writer of the manifest, if it may not read.
    writer: Option<WriterId>,
    state: State,
}

impl Found<'_> {
    fn at_most(&mut self, state: State) {
        self.state = self.state.max(state);
    }

    /// Something is in no pack. It may be in one that cannot be read just now, or that is aside to
    /// be healed; what a repair has given up is named as lost.
    fn lacks(&mut self, id: &[u8; 32]) {
        let may_come_back = self.has_more_aside && !self.lost.contains(id);
        let mut damaged = self.locator.damaged().iter();
        let is_readable = damaged.all(|(_, error)| error.kind() == ErrorKind::Unlisted);
        let is_sure = is_readable && !may_come_back;
        self.at_most(if is_sure { State::Incomplete } else { State::Unclear });
    }

    /// True if what is at a place is there for the manifest. What only a doubted pack lists may be
    /// something else: nobody knows.
    fn serves(&self, place: &Place) -> bool {
        let trust = self.locator.trust();
        let is_own = self.writer.is_some() && trust.writer_of(place.pack) == self.writer;
        (is_own || trust.counts(place)) && !self.listed.contains(&place.pack)
    }

    fn look_for_page(&mut self, id: PageId) -> Result<()> {
        let locator = self.locator;
        let unlisted = |place: &Place| self.serves(place) && !locator.is_met_damaged(place.pack);
        let chunk = ChunkId(id.0);
        if find_whole(locator, chunk, &unlisted)?.is_none() {
            match find_whole(locator, chunk, &|_| true)? {
                Some(_) => self.at_most(State::Unclear),
                None => self.lacks(&id.0),
            }
        }
        Ok(())
    }
}

impl Needs for Found<'_> {
    /// One that is in no pack ends the walk when it is read.
    fn before_page(&mut self, id: PageId) -> Result<()> {
        self.look_for_page(id)
    }

    fn page(&mut self, id: PageId) -> Result<()> {
        self.look_for_page(id)
    }

    fn chunk(&mut self, id: ChunkId) -> Result<()> {
        let locator = self.locator;
        let unlisted = |place: &Place| self.serves(place);
        let is_there = |counts: &dyn Fn(&Place) -> bool| match find_stored(locator, id, counts) {
            Err(error) if error.kind().is_finding() => Ok(None),
            found => found.map(|found| Some(found.is_some())),
        };
        let found = is_there(&unlisted)?;
        match found {
            Some(true) => return Ok(()),
            // A splice that cannot be read: nobody knows.
            None => self.at_most(State::Unclear),
            Some(false) => match is_there(&|_| true)? {
                Some(false) => self.lacks(&id.0),
                _ => self.at_most(State::Unclear),
            },
        }
        Ok(())
    }
}

/// The points in the trash.
///
/// # Errors
/// What the storage says.
pub(super) fn list_trash(repository: &Repository) -> Result<Vec<PointId>> {
    let entries = repository.storage().list(Folder::Trash)?;
    Ok(entries.iter().filter_map(|entry| PointId::from_hex(entry.name.leaf())).collect())
}

/// Deletes from the trash what is no longer kept, of what was there before the mark: what these
/// points need may be gone. What was forgotten since still has all it needs, and so has one that
/// is on its way into the trash.
///
/// # Errors
/// What the storage says.
pub(super) fn empty_trash(
    repository: &Repository,
    before: &[PointId],
    kept_since: Option<i64>,
) -> Result<()> {
    let storage = repository.storage();
    let notes = match kept_since {
        Some(_) => Notes::under_ids(repository, &before.iter().copied().collect())?,
        None => Notes::default(),
    };
    for id in before.iter().copied() {
        let is_kept = kept_since
            .is_some_and(|since| forgotten_at(&notes, id).is_none_or(|time| time >= since));
        if !is_kept && storage.size(&manifest_name(id)?)?.is_none() {
            storage.delete(&ObjectName::new(Folder::Trash, &id.to_hex())?)?;
        }
    }
    Ok(())
}

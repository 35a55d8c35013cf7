//! Deleting what a list condemns (spec/40-protocol.md, "Pruner", steps 3 and 4).
//!
//! Order, which must not change without the model check: mark again (lists, packs, manifests);
//! delete, then drop the list.
//!
//! Invariant: a pack goes with something that is needed only if the same was read in a pack that
//! stays: footers may lie.

use super::changes::Changes;
use super::proof::Proof;
use super::roots::{Needs, Root, read_roots, walk};
use crate::error::Result;
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::condemned::{List, read_lists};
use crate::repository::entries::{Place, places_of};
use crate::repository::locate::Locator;
use crate::repository::pack_reader::pack_name;
use crate::repository::parity::delete_parity;
use crate::repository::stored::{Stored, find_stored};
use diskvault_format::id::{ChunkId, PackId, PageId};
use diskvault_format::segment::EntryKind;
use std::collections::HashSet;

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Swept {
    /// Packs that are gone.
    pub packs: u64,
    /// Their bytes, with those of their parity.
    pub bytes: u64,
    /// Packs that somebody needs now.
    pub kept: u64,
}

/// Marks again, deletes what is still needed by nobody, and drops the list. All leases that were
/// to be waited for are gone. What is in `copies` this run has made of verified bytes.
///
/// # Errors
/// `Damage` for a map that cannot be read: nothing was deleted then, and the list is dropped.
pub(super) fn sweep(
    repository: &Repository,
    own: &List,
    copies: &HashSet<PackId>,
    kept_since: Option<i64>,
    monitor: &dyn Monitor,
) -> Result<Swept> {
    let kept = match second_mark(repository, own, copies, kept_since, monitor) {
        Ok(kept) => kept,
        Err(error) => {
            // Nothing was deleted on its account, so it need not stay.
            let _ = repository.storage().delete(&own.name);
            return Err(error);
        }
    };
    let storage = repository.storage();
    let mut swept = Swept::default();
    let going: Vec<PackId> = own.packs.iter().copied().filter(|id| !kept.contains(id)).collect();
    swept.kept = (own.packs.len() - going.len()) as u64;
    monitor.start("deleting packs", Some(going.len() as u64));
    for id in going {
        // What is left stays on the list, with which the next run goes on.
        monitor.check_cancelled()?;
        let name = pack_name(id)?;
        if let Some(bytes) = storage.size(&name)? {
            storage.delete(&name)?;
            swept.packs += 1;
            // Behind its pack: parity is of no use to anything else.
            swept.bytes += bytes + delete_parity(storage.as_ref(), id)?;
        }
        monitor.advance(1);
    }
    monitor.finish();
    storage.delete(&own.name)?;
    Ok(swept)
}

/// Packs on the own list that have to stay. Made anew, as a whole, while it does not find something
/// that others may have put or deleted meanwhile: after the first time only new footers are read, so
/// that little can come between packs and manifests where backups end all the time.
fn second_mark(
    repository: &Repository,
    own: &List,
    copies: &HashSet<PackId>,
    kept_since: Option<i64>,
    monitor: &dyn Monitor,
) -> Result<HashSet<PackId>> {
    let mut changes = Changes::default();
    let mut locator = None;
    loop {
        match mark_again(repository, own, copies, kept_since, &mut locator, monitor) {
            Err(error) if error.kind().is_finding() && changes.may_explain_it(repository)? => {}
            Ok((_, broken)) if broken > 0 && changes.may_explain_it(repository)? => {}
            other => return other.map(|(kept, _)| kept),
        }
    }
}

fn mark_again(
    repository: &Repository,
    own: &List,
    copies: &HashSet<PackId>,
    kept_since: Option<i64>,
    before: &mut Option<Locator>,
    monitor: &dyn Monitor,
) -> Result<(HashSet<PackId>, u64)> {
    // In this order.
    let lists = read_lists(repository)?;
    let fresh = match before.take() {
        None => Locator::open_fresh(repository, monitor)?,
        Some(before) => before.list_anew(repository, monitor)?,
    };
    let locator = &*before.insert(fresh);
    let roots: Vec<Root> = read_roots(repository, kept_since)?;
    let leaving: HashSet<PackId> = own.packs.iter().copied().collect();
    let mut listed = leaving.clone();
    listed.extend(lists.iter().flat_map(|list| &list.packs));
    // A footer that could be read when the pack was chosen, and cannot now: nobody knows what the
    // pack holds.
    let unreadable = locator.damaged().iter().map(|(id, error)| {
        monitor.warn(&format!("{}; it is left alone", error.full_text()));
        *id
    });
    let kept = unreadable.collect();
    let proof = Proof::new(repository, locator, copies, monitor);
    let mut keeps = Keeps { locator, listed: &listed, leaving: &leaving, proof, kept };
    let all: Vec<&Root> = roots.iter().collect();
    let broken = walk(repository, locator, &all, "marking again", &mut keeps, monitor)?;
    Ok((keeps.kept, broken))
}

/// Finds listed packs with something that no unlisted pack holds.
struct Keeps<'a> {
    locator: &'a Locator,
    listed: &'a HashSet<PackId>,
    /// The packs of the own list.
    leaving: &'a HashSet<PackId>,
    proof: Proof<'a>,
    kept: HashSet<PackId>,
}

impl Keeps<'_> {
    /// True if a pack that holds it is about to go: then what is to stand for it is read.
    fn is_leaving(&self, places: &[Place]) -> bool {
        let goes =
            |place: &Place| self.leaving.contains(&place.pack) && !self.kept.contains(&place.pack);
        places.iter().any(goes)
    }

    /// True if a chunk or page is by its bytes in a pack that stays.
    fn has_whole(&self, id: ChunkId, kind: EntryKind, places: &[Place]) -> Result<bool> {
        // A pack that turned out to be damaged may hold it no more.
        let stays = |place: &&Place| {
            !place.is_splice
                && !self.listed.contains(&place.pack)
                && !self.locator.is_met_damaged(place.pack)
        };
        let mut staying = places.iter().filter(stays);
        if !self.is_leaving(places) {
            return Ok(staying.next().is_some());
        }
        // What others build upon does not go for what they may not build upon.
        for place in staying.filter(|place| self.locator.trust().counts(place)) {
            if self.proof.holds(id, kind, place)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Keeps every listed pack that holds the chunk or page by its bytes, unless another holds it.
    fn keep_whole(&mut self, id: ChunkId, kind: EntryKind) -> Result<()> {
        let places = places_of(self.locator.index(), &id.0)?;
        if !self.has_whole(id, kind, &places)? {
            let whole = places.iter().filter(|place| !place.is_splice);
            self.kept.extend(whole.map(|place| place.pack));
        }
        Ok(())
    }

    /// True if a chunk is stored as pieces in packs that stay, each of which is kept if need be.
    fn has_splice(&mut self, id: ChunkId, places: &[Place]) -> Result<bool> {
        let (locator, listed) = (self.locator, self.listed);
        let unlisted =
            |place: &Place| !listed.contains(&place.pack) && locator.trust().counts(place);
        let (place, splice) = match find_stored(locator, id, &unlisted) {
            Ok(Some(Stored::Spliced { place, splice, .. })) => (place, splice),
            Ok(_) => return Ok(false),
            Err(error) if error.kind().is_finding() => return Ok(false),
            Err(error) => return Err(error),
        };
        for piece in splice.pieces() {
            self.keep_whole(piece.chunk, EntryKind::Chunk)?;
        }
        let leaving = places.iter().filter(|place| self.leaving.contains(&place.pack)).count();
        // The only one there was, copied by this run: there is nothing to compare it with.
        let is_moved = leaving == 1 && self.proof.is_copy(place.pack);
        Ok(!self.is_leaving(places)
            || is_moved
            || self.proof.is_spliced(id, &place, &splice, &unlisted)?)
    }
}

impl Needs for Keeps<'_> {
    fn page(&mut self, id: PageId) -> Result<()> {
        self.keep_whole(ChunkId(id.0), EntryKind::Page)
    }

    fn chunk(&mut self, id: ChunkId) -> Result<()> {
        let locator = self.locator;
        let places = places_of(locator.index(), &id.0)?;
        if self.has_whole(id, EntryKind::Chunk, &places)? || self.has_splice(id, &places)? {
            return Ok(());
        }
        // Every pack that has a part in any way to it.
        self.kept.extend(places.iter().map(|place| place.pack));
        let is_whole = places.iter().any(|place| !place.is_splice);
        for place in places.iter().filter(|place| place.is_splice) {
            let splice = match locator.splices().read(id, place) {
                Ok(splice) => splice,
                // Its bytes stay, so nobody has to know the pieces.
                Err(error) if is_whole && error.kind().is_finding() => continue,
                Err(error) => return Err(error),
            };
            for piece in splice.pieces() {
                self.keep_whole(piece.chunk, EntryKind::Chunk)?;
            }
        }
        Ok(())
    }
}

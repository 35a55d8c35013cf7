//! Deleting what a list condemns (spec/40-protocol.md, "Pruner", steps 3 and 4).
//!
//! Order, which must not change without the model check: mark again (lists, packs, manifests);
//! delete, then drop the list.

use super::changes::Changes;
use super::roots::{Needs, Root, read_roots, walk};
use crate::error::Result;
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::condemned::{List, read_lists};
use crate::repository::entries::Place;
use crate::repository::locate::Locator;
use crate::repository::pack_reader::pack_name;
use crate::repository::parity::delete_parity;
use crate::repository::stored::{find_stored, find_whole};
use diskvault_format::id::{ChunkId, PackId, PageId};
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
/// to be waited for are gone.
///
/// # Errors
/// `Damage` for a map that cannot be read: nothing was deleted then, and the list is dropped.
pub(super) fn sweep(
    repository: &Repository,
    own: &List,
    kept_since: Option<i64>,
    monitor: &dyn Monitor,
) -> Result<Swept> {
    let kept = match second_mark(repository, own, kept_since, monitor) {
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
    kept_since: Option<i64>,
    monitor: &dyn Monitor,
) -> Result<HashSet<PackId>> {
    let mut changes = Changes::default();
    let mut locator = None;
    loop {
        match mark_again(repository, own, kept_since, &mut locator, monitor) {
            Err(error) if error.kind().is_finding() && changes.may_explain_it(repository)? => {}
            Ok((_, broken)) if broken > 0 && changes.may_explain_it(repository)? => {}
            other => return other.map(|(kept, _)| kept),
        }
    }
}

fn mark_again(
    repository: &Repository,
    own: &List,
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
    let mut listed: HashSet<PackId> = own.packs.iter().copied().collect();
    listed.extend(lists.iter().flat_map(|list| &list.packs));
    // A footer that could be read when the pack was chosen, and cannot now: nobody knows what the
    // pack holds.
    let unreadable = locator.damaged().iter().map(|(id, error)| {
        monitor.warn(&format!("{}; it is left alone", error.full_text()));
        *id
    });
    let kept = unreadable.collect();
    let mut keeps = Keeps { locator, listed: &listed, kept };
    let broken = walk(repository, locator, &roots, "marking again", &mut keeps, monitor)?;
    Ok((keeps.kept, broken))
}

/// Finds listed packs with something that no unlisted pack holds.
struct Keeps<'a> {
    locator: &'a Locator,
    listed: &'a HashSet<PackId>,
    kept: HashSet<PackId>,
}

impl Keeps<'_> {
    /// Keeps every listed pack that holds the chunk or page by its bytes, unless another holds it.
    fn keep_whole(&mut self, id: ChunkId) -> Result<()> {
        let (locator, listed) = (self.locator, self.listed);
        // A pack that turned out to be damaged may hold it no more.
        let unlisted =
            |place: &Place| !listed.contains(&place.pack) && !locator.is_met_damaged(place.pack);
        if find_whole(locator, id, &unlisted)?.is_some() {
            return Ok(());
        }
        let places = crate::repository::entries::places_of(locator.index(), &id.0)?;
        let whole = places.iter().filter(|place| !place.is_splice);
        self.kept.extend(whole.map(|place| place.pack));
        Ok(())
    }
}

impl Needs for Keeps<'_> {
    fn page(&mut self, id: PageId) -> Result<()> {
        self.keep_whole(ChunkId(id.0))
    }

    fn chunk(&mut self, id: ChunkId) -> Result<()> {
        let (locator, listed) = (self.locator, self.listed);
        let unlisted = |place: &Place| !listed.contains(&place.pack);
        match find_stored(locator, id, &unlisted) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => {}
            Err(error) if error.kind().is_finding() => {}
            Err(error) => return Err(error),
        }
        // Every pack that has a part in any way to it.
        let places = crate::repository::entries::places_of(locator.index(), &id.0)?;
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
                self.keep_whole(piece.chunk)?;
            }
        }
        Ok(())
    }
}

//! Deleting what a list condemns (spec/40-protocol.md, "Pruner", steps 3 and 4).
//!
//! Order, which must not change without the model check: mark again (lists, packs, manifests);
//! delete, then drop the list.

use super::roots::{Needs, Root, read_roots, walk};
use crate::error::Result;
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::condemned::{List, read_lists};
use crate::repository::entries::Place;
use crate::repository::locate::Locator;
use crate::repository::pack_reader::pack_name;
use crate::repository::stored::{find_stored, find_whole};
use diskvault_format::id::{ChunkId, PackId, PageId};
use std::collections::HashSet;

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Swept {
    /// Packs that are gone.
    pub packs: u64,
    /// Their bytes.
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
        let name = pack_name(id)?;
        if let Some(bytes) = storage.size(&name)? {
            storage.delete(&name)?;
            swept.packs += 1;
            swept.bytes += bytes;
        }
        monitor.advance(1);
    }
    monitor.finish();
    storage.delete(&own.name)?;
    Ok(swept)
}

/// Packs on the own list that have to stay.
fn second_mark(
    repository: &Repository,
    own: &List,
    kept_since: Option<i64>,
    monitor: &dyn Monitor,
) -> Result<HashSet<PackId>> {
    // In this order.
    let lists = read_lists(repository)?;
    let locator = Locator::open_fresh(repository, monitor)?;
    let roots: Vec<Root> = read_roots(repository, kept_since)?;
    let mut listed: HashSet<PackId> = own.packs.iter().copied().collect();
    listed.extend(lists.iter().flat_map(|list| &list.packs));
    let mut keeps = Keeps { locator: &locator, listed: &listed, kept: HashSet::new() };
    walk(repository, &locator, &roots, "marking again", &mut keeps, monitor)?;
    Ok(keeps.kept)
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
        let unlisted = |place: &Place| !listed.contains(&place.pack);
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
        if find_stored(locator, id, &unlisted)?.is_some() {
            return Ok(());
        }
        // Every pack that has a part in any way to it.
        let places = crate::repository::entries::places_of(locator.index(), &id.0)?;
        self.kept.extend(places.iter().map(|place| place.pack));
        for place in places.iter().filter(|place| place.is_splice) {
            let Ok(splice) = locator.splices().read(id, place) else { continue };
            for piece in splice.pieces() {
                self.keep_whole(piece.chunk)?;
            }
        }
        Ok(())
    }
}

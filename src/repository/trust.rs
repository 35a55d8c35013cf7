//! Which packs may be built upon: not those of a writer that may not read, until this host has read
//! all of one and found every entry to be what its id says. Such a writer, once it is taken over,
//! can list any id it knows beside other bytes (spec/21-writers.md).
//!
//! Invariants: a doubted pack is read like any other, because an id vouches for its bytes; nothing
//! that is elsewhere is superfluous because a doubted pack lists it; a pack that came after this
//! looked is doubted unless the index says that it is of somebody who may read.

use super::Repository;
use super::entries::{Place, has_packs_of_writers, known_figures};
use super::ledger::Ledger;
use crate::error::Result;
use crate::index::ChunkIndex;
use diskvault_format::id::{PackId, WriterId};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// What is known of packs by writers that may not read.
#[derive(Clone, Default)]
pub struct Trust {
    known: Option<Arc<Known>>,
}

struct Known {
    index: Arc<ChunkIndex>,
    /// The packs that were listed, by those who may read.
    plain: HashSet<PackId>,
    by_writers: HashMap<PackId, WriterId>,
    doubted: HashSet<PackId>,
}

impl Trust {
    /// Looks at the packs that are listed. To a writer that may not read all packs it sees are its
    /// own.
    ///
    /// # Errors
    /// What the index says.
    pub fn load(
        repository: &Repository,
        index: &Arc<ChunkIndex>,
        listed: &BTreeSet<PackId>,
    ) -> Result<Trust> {
        // Also where an older config, from before there were writers, was put in place of the newest.
        let has_writers = repository.config().has_writers() || has_packs_of_writers(index)?;
        if !has_writers || repository.own_copies().is_some() {
            return Ok(Trust::default());
        }
        let (mut plain, mut by_writers) = (HashSet::new(), HashMap::new());
        for id in listed {
            match known_figures(index, *id)?.and_then(|figures| figures.signer) {
                Some(writer) => _ = by_writers.insert(*id, writer),
                None => _ = plain.insert(*id),
            }
        }
        let ledger = Ledger::load(repository.cache());
        let is_unread = |id: &&PackId| ledger.read_at(**id, i64::MAX).is_none();
        let doubted = by_writers.keys().filter(is_unread).copied().collect();
        let index = index.clone();
        Ok(Trust { known: Some(Arc::new(Known { index, plain, by_writers, doubted })) })
    }

    /// True if what the pack holds under an id may be built upon. Splices by such writers never:
    /// they make none, and one would have to be put together to be known.
    pub fn counts(&self, place: &Place) -> bool {
        let Some(known) = &self.known else { return true };
        if known.plain.contains(&place.pack) {
            return true;
        }
        if known.by_writers.contains_key(&place.pack) {
            return !place.is_splice && !known.doubted.contains(&place.pack);
        }
        let figures = known_figures(&known.index, place.pack).ok().flatten();
        figures.is_some_and(|figures| figures.signer.is_none())
    }

    /// True if there are packs of such writers.
    pub fn has_packs_of_writers(&self) -> bool {
        self.known.as_ref().is_some_and(|known| !known.by_writers.is_empty())
    }

    /// The writer of a pack that was listed, if it is one that may not read.
    pub fn writer_of(&self, pack: PackId) -> Option<WriterId> {
        self.known.as_ref()?.by_writers.get(&pack).copied()
    }
}

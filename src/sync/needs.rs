//! Which packs of the source a point needs that the replica lacks.
//!
//! Invariant: every page and chunk of the point, and every chunk that a splice of it takes a piece
//! of, is present in the replica by a writer's rules, or in one of the packs told. What is below a
//! page of a point that is known to be whole there is not looked at again.

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::entries::{Place, places_of};
use crate::repository::locate::Locator;
use crate::repository::map_reader::MapReader;
use crate::repository::points::Point;
use crate::repository::reach::{Visitor, visit};
use crate::repository::session::Presence;
use diskvault_format::id::{ChunkId, PackId, PageId, to_hex};
use std::collections::{BTreeSet, HashSet};

/// The needs of one point.
pub struct Needs<'a> {
    source: &'a Repository,
    locator: &'a Locator,
    presence: &'a Presence,
    monitor: &'a dyn Monitor,
    /// Pages that need no look: seen, or part of a point that is whole in the replica.
    pages: HashSet<PageId>,
    packs: BTreeSet<PackId>,
}

impl<'a> Needs<'a> {
    /// Compares a source with what counts as stored in the replica.
    pub fn new(
        source: &'a Repository,
        locator: &'a Locator,
        presence: &'a Presence,
        monitor: &'a dyn Monitor,
    ) -> Needs<'a> {
        let (pages, packs) = (HashSet::new(), BTreeSet::new());
        Needs { source, locator, presence, monitor, pages, packs }
    }

    /// Leaves out what a point has that is whole in the replica: of the pages of its disks only the
    /// inner ones are read for that, one in 64.
    ///
    /// # Errors
    /// What reading the source says; a page that cannot be read leaves nothing out.
    pub fn leave_out(&mut self, base: &Point) -> Result<()> {
        let reader = MapReader::new(self.source, self.locator);
        let mut known = Known(HashSet::new());
        match visit(&reader, &base.manifest, &mut known) {
            Ok(()) => self.pages = known.0,
            // Forgotten in the source meanwhile, or damaged there: then all is looked at.
            Err(error) if error.kind().is_finding() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The packs that have to go over.
    ///
    /// # Errors
    /// `Damage` if the source cannot give all that the point needs; `Cancelled`.
    pub fn packs_of(mut self, point: &Point) -> Result<BTreeSet<PackId>> {
        let reader = MapReader::new(self.source, self.locator);
        visit(&reader, &point.manifest, &mut self)?;
        Ok(self.packs)
    }

    /// Sees to an entry: a page, or a chunk in whichever way it is stored.
    fn need(&mut self, what: &str, id: &[u8; 32]) -> Result<()> {
        if self.presence.contains(id)? || self.is_on_its_way(id)? {
            return Ok(());
        }
        let places = places_of(self.locator.index(), id)?;
        let chosen = self.choose(&places);
        if !chosen.is_empty() {
            return chosen.into_iter().try_for_each(|pack| self.take(pack));
        }
        for place in &places {
            match self.need_splice(ChunkId(*id), place) {
                Err(error) if error.kind().is_finding() => {}
                other => return other,
            }
        }
        let text = format!("cannot find {what} {} in the source", to_hex(id));
        Err(Error::new(ErrorKind::Damage, text))
    }

    fn need_splice(&mut self, id: ChunkId, place: &Place) -> Result<()> {
        let splice = self.locator.splices().read(id, place)?;
        let mut packs = vec![place.pack];
        for piece in splice.pieces() {
            let chunk = &piece.chunk.0;
            if self.presence.contains_bytes(chunk)? || self.is_on_its_way(chunk)? {
                continue;
            }
            let places = places_of(self.locator.index(), chunk)?;
            let chosen = self.choose(&places);
            if chosen.is_empty() {
                let text = format!("cannot find chunk {} in the source", to_hex(chunk));
                return Err(Error::new(ErrorKind::Damage, text));
            }
            packs.extend(chosen);
        }
        packs.into_iter().try_for_each(|pack| self.take(pack))
    }

    /// The packs from which an entry is taken: one that may be built upon, or else all that list it,
    /// as some of them may lie.
    fn choose(&self, places: &[Place]) -> Vec<PackId> {
        let trust = self.locator.trust();
        let mut whole = places.iter().filter(|place| !place.is_splice);
        match whole.clone().find(|place| trust.counts(place)) {
            Some(place) => vec![place.pack],
            None => whole.by_ref().map(|place| place.pack).collect(),
        }
    }

    /// A pack that goes over unless it is there: one that may not be built upon does not count as
    /// present.
    fn take(&mut self, pack: PackId) -> Result<()> {
        if !self.presence.index().has_pack(&pack.0)? {
            self.packs.insert(pack);
        }
        Ok(())
    }

    /// True if a pack that goes over holds the entry by its bytes.
    fn is_on_its_way(&self, id: &[u8; 32]) -> Result<bool> {
        if self.packs.is_empty() {
            return Ok(false);
        }
        let places = places_of(self.locator.index(), id)?;
        let trust = self.locator.trust();
        let counts = |place: &Place| !place.is_splice && trust.counts(place);
        Ok(places.iter().any(|place| counts(place) && self.packs.contains(&place.pack)))
    }
}

impl Visitor for Needs<'_> {
    fn page(&mut self, id: PageId) -> Result<bool> {
        if !self.pages.insert(id) {
            return Ok(false);
        }
        self.monitor.check_cancelled()?;
        self.need("map page", &id.0)?;
        Ok(true)
    }

    fn chunk(&mut self, id: ChunkId) -> Result<()> {
        self.need("chunk", &id.0)
    }
}

/// Gathers the pages of a point without reading the leaves of its disks.
struct Known(HashSet<PageId>);

impl Visitor for Known {
    fn page(&mut self, id: PageId) -> Result<bool> {
        Ok(self.0.insert(id))
    }

    fn page_of_grid(&mut self, id: PageId, level: u32) -> Result<bool> {
        Ok(self.0.insert(id) && level > 0)
    }

    fn chunk(&mut self, _id: ChunkId) -> Result<()> {
        Ok(())
    }
}

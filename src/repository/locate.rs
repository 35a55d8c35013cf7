//! Where chunks and pages are: the index, brought up to what the storage lists.
//!
//! Invariant: after a `Locator` is open the index speaks of the listed packs only; whatever
//! it says is verified against the pack's footer and the entry's id before it is used. A reader's
//! may look again: a prune has copied what is needed out of a pack before it takes that away.

use super::aside::packs_aside;
use super::at_once::at_once;
use super::entries::{Place, add_footer_to_index, known_bytes, places_of};
use super::pack_reader::{OpenPack, PackCache, open_pack};
use super::splices::SpliceReader;
use super::trust::Trust;
use super::{Repository, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::index::ChunkIndex;
use crate::monitor::{Monitor, Silent};
use crate::storage::Folder;
use crate::storage::forgiving::Forgiving;
use diskvault_format::id::PackId;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// Index, listing and open packs of one run.
pub struct Locator {
    index: Arc<ChunkIndex>,
    packs: Arc<PackCache>,
    splices: Arc<SpliceReader>,
    listed: BTreeSet<PackId>,
    trust: Trust,
    entries_read: u64,
    vanished: Vec<PackId>,
    damaged: Vec<(PackId, Error)>,
    /// Packs that turned out to be damaged when something in them was wanted.
    met_damaged: Mutex<BTreeSet<PackId>>,
    /// How often it may still look again; nothing unless it is a reader's.
    looks_left: Option<Mutex<u32>>,
}

/// What the storage listed, compared with the index.
struct Listing {
    listed: BTreeSet<PackId>,
    entries_read: u64,
    vanished: Vec<PackId>,
    damaged: Vec<(PackId, Error)>,
}

/// Looks of one reader beside the first: each follows a miss, and a miss that stays ends it.
const LOOKS_MAX: u32 = 64;

/// One entry, found and verified to be in its pack's footer.
#[derive(Clone)]
pub struct Found {
    /// The open pack.
    pub pack: Arc<OpenPack>,
    /// The segment.
    pub segment: u32,
    /// The entry in the segment.
    pub slot: u32,
}

impl Locator {
    /// Opens this host's index and brings it up to date. Where the cache cannot be used, the index
    /// is made in a temporary folder for this run, or in memory if that is full too, with a warning:
    /// it is never needed.
    ///
    /// # Errors
    /// Fails if the storage cannot be listed, or neither the cache nor the temporary folder can be
    /// written.
    pub fn open(repository: &Repository, monitor: &dyn Monitor) -> Result<Locator> {
        let opened = ChunkIndex::open(repository.cache()).and_then(|index| {
            if let Some(reason) = index.was_rebuilt() {
                monitor.note(&format!("rebuilding the index: {reason}"));
            }
            Self::synchronise(repository, Arc::new(index), monitor)
        });
        Self::or_elsewhere(opened, repository, monitor)
    }

    /// As [`Locator::open`], for who only reads and holds no lease: packs may be taken away by a
    /// prune meanwhile, and [`Locator::look_again`] finds what they held in others.
    ///
    /// # Errors
    /// As [`Locator::open`].
    pub fn open_for_reading(repository: &Repository, monitor: &dyn Monitor) -> Result<Locator> {
        let looks_left = Some(Mutex::new(LOOKS_MAX));
        Ok(Locator { looks_left, ..Self::open(repository, monitor)? })
    }

    /// Brings a reader's index up to what the storage lists now. True if it did: what was missed
    /// is to be looked up once more. Never for a writer or a pruner, whose order of reading counts.
    ///
    /// # Errors
    /// As [`Locator::open`].
    pub fn look_again(&self, repository: &Repository) -> Result<bool> {
        let Some(looks_left) = &self.looks_left else { return Ok(false) };
        // Held meanwhile: whoever waits for it finds the index up to date.
        let mut looks_left = lock(looks_left);
        if *looks_left == 0 {
            return Ok(false);
        }
        *looks_left -= 1;
        update(repository, &self.index, &Silent)?;
        Ok(true)
    }

    /// Tries anew in the temporary folder if it was the cache that failed.
    fn or_elsewhere(
        opened: Result<Locator>,
        repository: &Repository,
        monitor: &dyn Monitor,
    ) -> Result<Locator> {
        match opened {
            // A storage's own errors have kinds of their own; one that has not fails again.
            Err(error) if matches!(error.kind(), ErrorKind::Failed | ErrorKind::NoSpace) => {
                let text = error.full_text();
                monitor.warn(&format!("{text}; the index is made in a temporary folder"));
                let made = ChunkIndex::open_elsewhere()
                    .and_then(|index| Self::synchronise(repository, Arc::new(index), monitor));
                match made {
                    Err(error) if error.kind() == ErrorKind::NoSpace => {
                        let Some(index) = ChunkIndex::open_in_memory()? else {
                            return Err(error.hint("name a folder with room by --cache-dir"));
                        };
                        monitor.warn(&format!("{}; it is made in memory", error.full_text()));
                        Self::synchronise(repository, Arc::new(index), monitor)
                    }
                    made => made,
                }
            }
            other => other,
        }
    }

    /// Makes an index of its own from all footers, for runs that must not trust an older one.
    ///
    /// # Errors
    /// As [`Locator::open`].
    pub fn open_fresh(repository: &Repository, monitor: &dyn Monitor) -> Result<Locator> {
        let opened = ChunkIndex::open_temporary(repository.cache())
            .and_then(|index| Self::synchronise(repository, Arc::new(index), monitor));
        Self::or_elsewhere(opened, repository, monitor)
    }

    /// As [`Locator::open_fresh`], but footers that this one has read are not read again. The packs are
    /// listed anew, so it takes the place of a listing in an order that counts.
    ///
    /// # Errors
    /// As [`Locator::open`].
    pub fn list_anew(self, repository: &Repository, monitor: &dyn Monitor) -> Result<Locator> {
        let opened = Self::synchronise(repository, self.index, monitor);
        Self::or_elsewhere(opened, repository, monitor)
    }

    /// Empties this host's index and fills it from the footers.
    ///
    /// # Errors
    /// Fails if the storage cannot be listed or the cache cannot be written.
    pub fn rebuild(repository: &Repository, monitor: &dyn Monitor) -> Result<Locator> {
        let index = ChunkIndex::open(repository.cache())?;
        index.clear()?;
        Self::synchronise(repository, Arc::new(index), monitor)
    }

    /// Brings the index up to what the storage lists.
    fn synchronise(
        repository: &Repository,
        index: Arc<ChunkIndex>,
        monitor: &dyn Monitor,
    ) -> Result<Locator> {
        let listing = update(repository, &index, monitor)?;
        let Listing { listed, entries_read, vanished, damaged } = listing;
        let trust = Trust::load(repository, &index, &listed)?;
        let (packs, met_damaged) = (Arc::new(PackCache::new()), Mutex::default());
        let splices = Arc::new(SpliceReader::new(repository, &index, &packs));
        let looks_left = None;
        Ok(Locator {
            index,
            packs,
            splices,
            listed,
            trust,
            entries_read,
            vanished,
            damaged,
            met_damaged,
            looks_left,
        })
    }

    /// The index itself.
    pub fn index(&self) -> &Arc<ChunkIndex> {
        &self.index
    }

    /// The open packs.
    pub fn packs(&self) -> &Arc<PackCache> {
        &self.packs
    }

    /// What reads chunks that are told as pieces of others.
    pub fn splices(&self) -> &Arc<SpliceReader> {
        &self.splices
    }

    /// Says that something in a pack was wanted and is damaged.
    pub fn met_damaged(&self, pack: PackId) {
        lock(&self.met_damaged).insert(pack);
    }

    /// True if a pack has turned out to be damaged so far.
    pub fn is_met_damaged(&self, pack: PackId) -> bool {
        lock(&self.met_damaged).contains(&pack)
    }

    /// The packs that turned out to be damaged so far.
    pub fn damaged_on_the_way(&self) -> BTreeSet<PackId> {
        lock(&self.met_damaged).clone()
    }

    /// Lets the index forget the packs that were met damaged: what they hold counts as absent
    /// until the next run finds them in the listing again, so that a backup stores it anew.
    ///
    /// # Errors
    /// What the index says.
    pub fn forget_met_damaged(&self) -> Result<()> {
        for pack in std::mem::take(&mut *lock(&self.met_damaged)) {
            note_loss(&self.index)?;
            self.index.drop_pack(&pack.0)?;
        }
        Ok(())
    }

    /// The packs of the listing.
    pub fn listed(&self) -> &BTreeSet<PackId> {
        &self.listed
    }

    /// Which of these packs may be built upon.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Entries of the footers that were read when this was opened: of all, if it was made anew.
    pub fn entries_read(&self) -> u64 {
        self.entries_read
    }

    /// Packs this host knew that are gone.
    pub fn vanished(&self) -> &[PackId] {
        &self.vanished
    }

    /// True if packs that were listed are gone, also if that was seen when their footers were read;
    /// or if a healing has put one back.
    ///
    /// # Errors
    /// What the storage says.
    pub fn is_outdated(&self, repository: &Repository) -> Result<bool> {
        if !self.vanished.is_empty() {
            return Ok(true);
        }
        let listing = repository.storage().list(Folder::Packs)?;
        let now: BTreeSet<PackId> =
            listing.iter().filter_map(|entry| PackId::from_hex(entry.name.leaf())).collect();
        if !self.listed.is_subset(&now) {
            return Ok(true);
        }
        let aside = packs_aside(repository)?;
        Ok(now.difference(&self.listed).any(|id| aside.contains_key(id)))
    }

    /// Packs whose footer does not open, and why.
    pub fn damaged(&self) -> &[(PackId, Error)] {
        &self.damaged
    }

    /// The open pack.
    ///
    /// # Errors
    /// As [`open_pack`].
    pub fn pack(&self, repository: &Repository, id: PackId) -> Result<Arc<OpenPack>> {
        self.packs.get(repository.storage().as_ref(), repository.keys(), id)
    }

    /// Finds an entry and verifies it against the footer of its pack.
    ///
    /// `Ok(None)` if no pack holds it.
    ///
    /// # Errors
    /// What the index or the storage say; a single unreadable pack is passed over if another
    /// holds the entry.
    pub fn find(&self, repository: &Repository, id: &[u8; 32]) -> Result<Option<Found>> {
        self.find_except(repository, id, &[])
    }

    /// As [`Locator::find`], but passes over segments that turned out to be damaged: an entry may
    /// have been stored again since.
    ///
    /// # Errors
    /// As [`Locator::find`].
    pub fn find_except(
        &self,
        repository: &Repository,
        id: &[u8; 32],
        damaged: &[(PackId, u32)],
    ) -> Result<Option<Found>> {
        let mut unreadable = None;
        for place in places_of(&self.index, id)? {
            if damaged.contains(&(place.pack, place.segment)) {
                continue;
            }
            match self.found_at(repository, id, &place) {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error) => {
                    self.met_damaged(place.pack);
                    unreadable = Some(error);
                }
            }
        }
        match unreadable {
            Some(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(None),
        }
    }

    /// The entry at a place that the index gave, if the footer of the pack agrees.
    ///
    /// # Errors
    /// As [`open_pack`].
    pub fn found_at(
        &self,
        repository: &Repository,
        id: &[u8; 32],
        place: &Place,
    ) -> Result<Option<Found>> {
        let pack = self.pack(repository, place.pack)?;
        if !place.is_held_by(&pack, id) {
            // The index is wrong; the next open rebuilds it from the footers.
            self.index.distrust();
            return Ok(None);
        }
        Ok(Some(Found { pack, segment: place.segment, slot: place.slot }))
    }
}

/// Footers that are read before the index is told of them: some 60 KiB each.
const FOOTERS_AT_ONCE: usize = 64;

/// Lists the packs, forgets those that are gone and reads the footers of new ones.
fn update(repository: &Repository, index: &ChunkIndex, monitor: &dyn Monitor) -> Result<Listing> {
    let storage = repository.storage();
    let mut listed = BTreeSet::new();
    let mut changed = BTreeSet::new();
    for entry in storage.list(Folder::Packs)? {
        let Some(id) = PackId::from_hex(entry.name.leaf()) else { continue };
        listed.insert(id);
        // A pack never changes its size: one that did was cut or replaced, and its footer has
        // to be read again before anything builds on it.
        if known_bytes(index, id)?.is_some_and(|known| known != entry.bytes) {
            changed.insert(id);
        }
    }
    let mut vanished = drop_gone(index, &listed, &changed)?;
    let mut unknown = Vec::new();
    for id in &listed {
        if !index.has_pack(&id.0)? {
            unknown.push(*id);
        }
    }
    // One footer that cannot be read keeps nobody from all others.
    let forgiving = Forgiving::new(storage.clone());
    let (mut damaged, mut entries_read) = (Vec::new(), 0);
    if unknown.len() > 64 {
        monitor.start("reading pack footers", Some(unknown.len() as u64));
    }
    for ids in unknown.chunks(FOOTERS_AT_ONCE) {
        let look = || monitor.check_cancelled();
        let opened = at_once(storage.as_ref(), ids, &look, |id| {
            open_pack(&forgiving, repository.keys(), *id)
        })?;
        for (id, opened) in ids.iter().zip(opened) {
            match opened {
                Ok(pack) => {
                    entries_read += pack.footer.entry_count();
                    add_footer_to_index(index, pack.id, pack.kind, &pack.footer, pack.bytes)?;
                }
                // Deleted since the listing: it holds nothing any more.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    vanished.push(*id);
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Damage | ErrorKind::Unlisted | ErrorKind::Newer
                    ) =>
                {
                    damaged.push((*id, error));
                }
                Err(error) => return Err(error),
            }
            if unknown.len() > 64 {
                monitor.advance(1);
            }
        }
    }
    if unknown.len() > 64 {
        monitor.finish();
    }
    for id in &vanished {
        listed.remove(id);
    }
    if !unknown.is_empty() || !vanished.is_empty() {
        index.flush()?;
    }
    Ok(Listing { listed, entries_read, vanished, damaged })
}

/// Lets the index forget packs that are not listed, or have another size than they had; those that
/// are not listed.
fn drop_gone(
    index: &ChunkIndex,
    listed: &BTreeSet<PackId>,
    changed: &BTreeSet<PackId>,
) -> Result<Vec<PackId>> {
    let mut vanished = Vec::new();
    let known = index.packs()?.into_iter().map(|record| PackId(record.id));
    let gone: Vec<PackId> =
        known.filter(|id| !listed.contains(id) || changed.contains(id)).collect();
    if !gone.is_empty() {
        // Before they are dropped: the next run would not know any more that they are gone,
        // also if this one is no backup, or ends here.
        note_loss(index)?;
    }
    for id in gone {
        index.drop_pack(&id.0)?;
        if !listed.contains(&id) {
            vanished.push(id);
        }
    }
    Ok(vanished)
}

/// Note in the index: how often packs were found gone, changed or damaged.
const LOSS_EPOCH: &str = "loss-epoch";

/// How often packs were found gone, changed or damaged on this host. What a point was known to
/// hold under another number has to be looked up again.
///
/// # Errors
/// What the index says.
pub fn loss_epoch(index: &ChunkIndex) -> Result<u64> {
    let note = index.get_note(LOSS_EPOCH)?;
    Ok(note.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes))
}

/// Counts a loss.
///
/// # Errors
/// What the index says.
pub fn note_loss(index: &ChunkIndex) -> Result<()> {
    index.set_note(LOSS_EPOCH, &(loss_epoch(index)? + 1).to_le_bytes())
}

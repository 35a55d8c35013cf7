//! Saving what can be read of damaged packs.
//!
//! Invariants: an entry is stored anew unless a pack that was read and found whole in this run holds
//! it; what cannot be read and is in no other pack is named.

use super::examine::Examined;
use crate::environment::random_array;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::{Monitor, Silent};
use crate::repository::Repository;
use crate::repository::compression::Compression;
use crate::repository::entries::{Place, places_of};
use crate::repository::locate::Locator;
use crate::repository::packer::ChunkWriter;
use crate::repository::salvage::{Remains, SavedEntry};
use crate::repository::session::Presence;
use crate::restore::fetch::{Fetcher, Wanted};
use diskvault_format::footer::Footer;
use diskvault_format::id::{ChunkId, LeaseId, PackId};
use diskvault_format::pack::PackKind;
use diskvault_format::segment::EntryKind;
use diskvault_format::splice::Splice;
use rayon::ThreadPool;
use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex};

/// What was saved, and what was not.
#[derive(Default)]
pub(super) struct Saved {
    /// Entries that were stored anew.
    pub entries: u64,
    /// Bytes of their packs.
    pub bytes: u64,
    /// Ids that the footers of the damaged packs name and that nothing holds any more.
    pub lost: BTreeSet<[u8; 32]>,
}

/// Stores everything that can be read of the damaged packs in new ones.
///
/// # Errors
/// `NoSpace`, or what reading and storing say; `Cancelled`.
pub(super) fn copy_out(
    repository: &Repository,
    locator: &Locator,
    examined: &Examined,
    pool: &Arc<ThreadPool>,
    monitor: &dyn Monitor,
) -> Result<Saved> {
    let presence = Arc::new(Presence::without(locator, HashSet::new()));
    let writer_id = LeaseId(random_array(repository.environment().as_ref())?);
    let compression = Compression::default();
    let mut copier = Copier {
        repository,
        locator,
        whole: &examined.whole,
        writer: ChunkWriter::new(repository, writer_id, presence, pool.clone(), compression),
        done: HashSet::new(),
        splices: Vec::new(),
        saved: Saved::default(),
    };
    monitor.start("saving what can be read", Some(examined.damaged.len() as u64));
    let mut named: BTreeSet<[u8; 32]> = BTreeSet::new();
    for damaged in &examined.damaged {
        monitor.check_cancelled()?;
        let storage = repository.storage().as_ref();
        let remains = match Remains::of_pack(storage, repository.keys(), damaged.id) {
            Ok(remains) => remains,
            // A prune has deleted it.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let kind = remains.kind().unwrap_or(PackKind::Data);
        named.extend(remains.footer().into_iter().flat_map(ids_of));
        remains.read(&mut |segment| {
            segment.entries.iter().try_for_each(|entry| copier.take(kind, entry, segment.data))
        })?;
        monitor.advance(1);
    }
    copier.writer.finish()?;
    copier.put_splices_together(pool.current_num_threads())?;
    let stored = copier.writer.finish()?;
    monitor.finish();
    let Copier { mut saved, .. } = copier;
    saved.bytes = stored.pack_bytes;
    let damaged: HashSet<PackId> = examined.damaged.iter().map(|damaged| damaged.id).collect();
    let counts = |_: &ChunkId, place: &Place| !damaged.contains(&place.pack);
    for id in named {
        if !locator.splices().is_present(ChunkId(id), &counts)? {
            saved.lost.insert(id);
        }
    }
    Ok(saved)
}

fn ids_of(footer: &Footer) -> impl Iterator<Item = [u8; 32]> + '_ {
    let entries = footer.segments.iter().flat_map(|segment| &segment.entries);
    entries.map(|entry| entry.id)
}

struct Copier<'a> {
    repository: &'a Repository,
    locator: &'a Locator,
    whole: &'a HashSet<PackId>,
    writer: ChunkWriter,
    /// What was stored already, by id and whether it is a splice: damaged packs may hold the same.
    done: HashSet<([u8; 16], bool)>,
    /// Splices without an id.
    splices: Vec<Splice>,
    saved: Saved,
}

impl Copier<'_> {
    fn take(&mut self, pack: PackKind, entry: &SavedEntry, data: &[u8]) -> Result<()> {
        let content = &data[entry.place.clone()];
        match entry.id {
            Some(id) => self.store(pack, entry.kind, id, content),
            None => {
                // Who wrote it may have been wrong; nobody has verified it by an id.
                self.splices.extend(Splice::decode(content));
                Ok(())
            }
        }
    }

    fn store(&mut self, pack: PackKind, kind: EntryKind, id: [u8; 32], data: &[u8]) -> Result<()> {
        let is_splice = kind == EntryKind::Splice;
        // A splice by a writer that may not read is none, whatever pack it lies in.
        let trust = self.locator.trust();
        let is_safe = |place: &Place| {
            place.is_splice == is_splice
                && self.whole.contains(&place.pack)
                && (!is_splice || trust.counts(place))
        };
        let places = places_of(self.locator.index(), &id)?;
        let key = (crate::repository::entries::prefix(&id), is_splice);
        if places.iter().any(is_safe) || !self.done.insert(key) {
            return Ok(());
        }
        self.saved.entries += 1;
        self.writer.append(pack, kind, id, data, None)
    }

    /// The id of a splice without a footer is that of the chunk that its pieces make up; what lacks
    /// a piece makes up nothing.
    fn put_splices_together(&mut self, threads: usize) -> Result<()> {
        let repository = self.repository;
        for splice in std::mem::take(&mut self.splices) {
            let fetcher = Fetcher { repository, locator: self.locator, threads, monitor: &Silent };
            let Some(chunk) = join(&fetcher, &splice) else { continue };
            let id = repository.keys().chunk_id(&chunk).0;
            self.store(PackKind::Map, EntryKind::Splice, id, &splice.encode())?;
        }
        Ok(())
    }
}

/// The bytes that a splice stands for.
fn join(fetcher: &Fetcher<'_>, splice: &Splice) -> Option<Vec<u8>> {
    let mut joined = Vec::new();
    for piece in splice.pieces() {
        let place = places_of(fetcher.locator.index(), &piece.chunk.0).ok()?;
        let place = place.into_iter().find(|place| !place.is_splice)?;
        let pack = fetcher.locator.pack(fetcher.repository, place.pack).ok()?;
        let bytes = pack.entry(place.segment, place.slot)?.bytes;
        let whole = Mutex::new(Vec::new());
        let wanted = Wanted { offset: 0, bytes, id: piece.chunk };
        let fetched = fetcher.fetch(vec![wanted], &|_, data| {
            *crate::repository::lock(&whole) = data.to_vec();
            Ok(())
        });
        fetched.ok()?;
        let whole = crate::repository::lock(&whole);
        joined.extend_from_slice(piece.of(&whole).ok()?);
    }
    Some(joined)
}

/// True if everything that can be read of a pack is held by packs that are not `listed`, in the
/// same way: as bytes, or as a splice.
///
/// # Errors
/// What the index or the storage say.
pub(super) fn is_held_elsewhere(
    repository: &Repository,
    locator: &Locator,
    id: PackId,
    listed: &HashSet<PackId>,
    whole: &HashSet<PackId>,
) -> Result<bool> {
    let storage = repository.storage().as_ref();
    let remains = match Remains::of_pack(storage, repository.keys(), id) {
        Ok(remains) => remains,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    let mut is_held = true;
    let read = remains.read(&mut |segment| {
        for entry in &segment.entries {
            // A splice without an id was saved if it could be put together at all.
            let Some(id) = entry.id else { continue };
            let is_splice = entry.kind == EntryKind::Splice;
            let places = places_of(locator.index(), &id)?;
            let trust = locator.trust();
            let holds = |place: &Place| {
                let is_read = !is_splice && whole.contains(&place.pack);
                place.is_splice == is_splice
                    && !listed.contains(&place.pack)
                    && (is_read || trust.counts(place))
            };
            if !places.iter().any(holds) {
                is_held = false;
                return Err(Error::new(ErrorKind::Cancelled, "enough was seen"));
            }
        }
        Ok(())
    });
    match read {
        Err(error) if is_held => Err(error),
        _ => Ok(is_held),
    }
}

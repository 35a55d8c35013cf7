//! The chunk index: chunk id prefix -> every pack, segment and slot that holds it.
//!
//! Invariant: it is a cache, never the truth. For every pack it says it knows, [`ChunkIndex`]
//! returns all entries that were added, after a crash at any moment too; what cannot be shown
//! to be in order when it is opened is thrown away, and the caller adds the packs again.
//!
//! New entries gather in RAM (some 262,144), then become a sorted run file; runs are merged so
//! that there are about eight at most. sled catalogues packs and runs: docs/adr/0003.

mod catalogue;
mod run;
mod slot;
#[cfg(test)]
mod tests;
mod write;

use crate::error::{Error, ErrorKind, Result};
use catalogue::{Catalogue, State};
use run::{PENDING_MAX, Record, Run};
use slot::{Contents, Slot};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Segments of one pack must be fewer than this.
pub const SEGMENTS_MAX: u32 = 1 << 20;
/// Slots of one segment must be fewer than this.
pub const SLOTS_MAX: u32 = 1 << 12;
/// A file system in memory that every user may write to.
const MEMORY_FOLDER: &str = "/dev/shm";
/// Dropped packs remembered in RAM before the catalogue is told.
const DROPPED_MAX: usize = 1024;

/// Where a chunk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Id of the pack.
    pub pack: [u8; 32],
    /// Ordinal of the segment in the pack, below [`SEGMENTS_MAX`].
    pub segment: u32,
    /// Ordinal of the chunk in the segment, below [`SLOTS_MAX`].
    pub slot: u32,
}

/// A pack that the index knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackRecord {
    /// Id of the pack.
    pub id: [u8; 32],
    /// What the caller said it is: data, map pages.
    pub kind: u8,
    /// Number of its entries.
    pub entries: u32,
}

/// What look-ups see; one lock, so that an entry is never in RAM and in a run at once.
struct View {
    pending: BTreeSet<Record>,
    /// Packs that are in no catalogue row yet, by id.
    pending_packs: HashMap<[u8; 32], (u32, PackRecord)>,
    /// All known packs. A record whose ordinal is not here does not exist.
    packs: HashMap<u32, [u8; 32]>,
    runs: Arc<Vec<Arc<Run>>>,
    entries: u64,
}

/// What only the one writer at a time sees.
struct Writer {
    /// As the catalogue has it, or will after the drops below.
    state: State,
    /// The ordinal of the next pack; ahead of the state's while packs are only in RAM.
    next: u32,
    dropped: Vec<(u32, [u8; 32])>,
    /// The pack that is being added and how many of its entries went into runs already.
    open_pack: Option<u32>,
    spilled: u64,
}

/// The index of one repository in one process; look-ups from any number of threads.
pub struct ChunkIndex {
    writer: Mutex<Writer>,
    view: RwLock<View>,
    catalogue: Catalogue,
    rebuilt: Option<String>,
    // Last, so that the slot is free only after sled has closed its files.
    slot: Slot,
}

impl ChunkIndex {
    /// Opens the index under the directory `cache`, in the first slot no other process holds.
    /// What is damaged there is thrown away: [`ChunkIndex::was_rebuilt`].
    ///
    /// # Errors
    /// Fails if no slot can be taken or the directory cannot be written.
    pub fn open(cache: &Path) -> Result<ChunkIndex> {
        ChunkIndex::open_slot(Slot::take(cache)?)
    }

    /// Makes an empty, private index in a new directory under `parent`, removed on drop.
    ///
    /// # Errors
    /// Fails if the directory cannot be written.
    pub fn open_temporary(parent: &Path) -> Result<ChunkIndex> {
        ChunkIndex::open_slot(Slot::temporary(parent)?)
    }

    /// Makes an empty, private index in the system's folder for temporary files, removed on drop.
    ///
    /// # Errors
    /// Fails if the directory cannot be written.
    pub fn open_elsewhere() -> Result<ChunkIndex> {
        ChunkIndex::open_slot(Slot::elsewhere(&tempfile::env::temp_dir())?)
    }

    /// As [`ChunkIndex::open_elsewhere`], in memory: for a prune on a system whose only disk is full.
    /// It takes some 30 bytes for each chunk of the repository. Nothing where the system has no
    /// folder in memory.
    ///
    /// # Errors
    /// As [`ChunkIndex::open_elsewhere`].
    pub fn open_in_memory() -> Result<Option<ChunkIndex>> {
        let parent = Path::new(MEMORY_FOLDER);
        if !parent.is_dir() {
            return Ok(None);
        }
        ChunkIndex::open_slot(Slot::elsewhere(parent)?).map(Some)
    }

    fn open_slot(mut slot: Slot) -> Result<ChunkIndex> {
        let rebuilt = match slot.contents()? {
            Contents::Empty => None,
            Contents::Unusable(reason) => Some(reason),
            Contents::Usable => {
                let opened = Catalogue::open(&slot.catalogue_path());
                match opened.and_then(|catalogue| load(&slot, catalogue)) {
                    Ok(loaded) => return Ok(ChunkIndex::assemble(slot, loaded, None)),
                    Err(cause) => Some(cause.full_text()),
                }
            }
        };
        slot.reset()?;
        let catalogue = Catalogue::open(&slot.catalogue_path())?;
        catalogue.commit(&State::default())?;
        slot.seal()?;
        let loaded = load(&slot, catalogue)?;
        Ok(ChunkIndex::assemble(slot, loaded, rebuilt))
    }

    fn assemble(slot: Slot, loaded: Loaded, rebuilt: Option<String>) -> ChunkIndex {
        let Loaded { catalogue, state, packs, runs } = loaded;
        let view = View {
            pending: BTreeSet::new(),
            pending_packs: HashMap::new(),
            packs,
            runs: Arc::new(runs),
            entries: state.entries,
        };
        let next = state.next;
        let writer = Writer { state, next, dropped: Vec::new(), open_pack: None, spilled: 0 };
        let (writer, view) = (Mutex::new(writer), RwLock::new(view));
        ChunkIndex { writer, view, catalogue, rebuilt, slot }
    }

    /// Why the old contents were thrown away when this was opened, if they were.
    pub fn was_rebuilt(&self) -> Option<&str> {
        self.rebuilt.as_deref()
    }

    /// Makes the next open start empty: for a caller that was sent to a wrong place. This
    /// index goes on answering as before.
    pub fn distrust(&self) {
        self.slot.distrust();
    }

    /// All packs it knows, in no particular order; 40 bytes of RAM each.
    ///
    /// # Errors
    /// As [`ChunkIndex::for_each_pack`].
    pub fn packs(&self) -> Result<Vec<PackRecord>> {
        let mut packs = Vec::new();
        self.for_each_pack(|pack| packs.push(pack))?;
        Ok(packs)
    }

    /// Calls `visit` with every pack it knows. `visit` may add and drop packs; whether those
    /// are still visited is open.
    ///
    /// # Errors
    /// Fails if the catalogue cannot be read.
    pub fn for_each_pack(&self, mut visit: impl FnMut(PackRecord)) -> Result<()> {
        // Taken first: a pack that is flushed meanwhile is then seen in both, and skipped once.
        let pending: Vec<_> = self.read().pending_packs.values().copied().collect();
        let ordinals: HashSet<u32> = pending.iter().map(|(ordinal, _)| *ordinal).collect();
        pending.into_iter().for_each(|(_, pack)| visit(pack));
        self.checked(self.catalogue.each_row(&mut |ordinal, pack| {
            let known = self.read().packs.contains_key(&ordinal);
            if known && !ordinals.contains(&ordinal) {
                visit(pack);
            }
        }))
    }

    /// Whether it knows a pack.
    ///
    /// # Errors
    /// Fails if the catalogue cannot be read.
    pub fn has_pack(&self, id: &[u8; 32]) -> Result<bool> {
        if self.read().pending_packs.contains_key(id) {
            return Ok(true);
        }
        Ok(self.flushed_ordinal(id)?.is_some())
    }

    /// The ordinal of a known pack that has its catalogue row.
    fn flushed_ordinal(&self, id: &[u8; 32]) -> Result<Option<u32>> {
        let ordinal = self.checked(self.catalogue.ordinal(id))?;
        Ok(ordinal.filter(|ordinal| self.read().packs.get(ordinal) == Some(id)))
    }

    /// Adds a pack's entries (id prefix, segment, slot) in any order, one call at a time;
    /// look-ups find them when it returns. Adding a known pack again does nothing. The pack
    /// survives a crash after the next flush; every 262,144 entries that happens by itself.
    ///
    /// # Errors
    /// Fails, and leaves the pack unknown, if a segment or slot is out of range; fails if a
    /// run or the catalogue cannot be written: the entries are then kept in RAM.
    pub fn add_pack(
        &self,
        id: &[u8; 32],
        kind: u8,
        entries: &mut dyn Iterator<Item = ([u8; 16], u32, u32)>,
    ) -> Result<()> {
        let mut writer = self.lock();
        if self.has_pack(id)? {
            return Ok(());
        }
        let ordinal = writer.next;
        let next = ordinal.checked_add(1);
        writer.next = next.ok_or_else(|| refused("there were 2^32 packs already"))?;
        (writer.open_pack, writer.spilled) = (Some(ordinal), 0);
        let gathered = self.gather(&mut writer, ordinal, entries);
        (writer.open_pack, writer.spilled) = (None, 0);
        let pack = PackRecord { id: *id, kind, entries: gathered? };
        let full = {
            let mut view = self.write();
            view.packs.insert(ordinal, *id);
            view.pending_packs.insert(*id, (ordinal, pack));
            view.entries += u64::from(pack.entries);
            // Packs without entries count too, so that many of them are bounded as well.
            view.pending.len() + view.pending_packs.len() >= PENDING_MAX as usize
        };
        if full { self.commit(&mut writer) } else { Ok(()) }
    }

    /// Forgets a pack: its records are no longer returned, and leave the disk with a later
    /// merge. After a crash before the next flush the pack may be known again. Forgetting an
    /// unknown pack does nothing.
    ///
    /// # Errors
    /// Fails if the catalogue cannot be read or written.
    pub fn drop_pack(&self, id: &[u8; 32]) -> Result<()> {
        let mut writer = self.lock();
        {
            let mut view = self.write();
            if let Some((ordinal, pack)) = view.pending_packs.remove(id) {
                view.packs.remove(&ordinal);
                view.entries -= u64::from(pack.entries);
                return Ok(());
            }
        }
        let Some(ordinal) = self.flushed_ordinal(id)? else {
            return Ok(());
        };
        let pack = self.checked(self.catalogue.pack(ordinal))?;
        let entries = u64::from(pack.ok_or_else(|| refused("a pack row is missing"))?.entries);
        let mut view = self.write();
        view.packs.remove(&ordinal);
        view.entries = view.entries.saturating_sub(entries);
        drop(view);
        writer.state.packs = writer.state.packs.saturating_sub(1);
        writer.state.entries = writer.state.entries.saturating_sub(entries);
        writer.dropped.push((ordinal, *id));
        if writer.dropped.len() >= DROPPED_MAX { self.commit_drops(&mut writer) } else { Ok(()) }
    }

    /// Appends every place of the chunks with this prefix to `found`.
    ///
    /// # Errors
    /// Fails if a run cannot be read; the next open then rebuilds.
    pub fn locations(&self, prefix: &[u8; 16], found: &mut Vec<Location>) -> Result<()> {
        self.search(prefix, &mut |location| {
            found.push(location);
            true
        })
    }

    /// Whether any known pack holds a chunk with this prefix.
    ///
    /// # Errors
    /// As [`ChunkIndex::locations`].
    pub fn contains(&self, prefix: &[u8; 16]) -> Result<bool> {
        let mut found = false;
        self.search(prefix, &mut |_| {
            found = true;
            false
        })?;
        Ok(found)
    }

    /// Calls `visit` with the places of the chunks with this prefix, until it answers false: RAM
    /// first, then the runs, newest first.
    ///
    /// # Errors
    /// As [`ChunkIndex::locations`].
    pub fn search(&self, prefix: &[u8; 16], visit: &mut dyn FnMut(Location) -> bool) -> Result<()> {
        let locate = |record: Record, packs: &HashMap<u32, [u8; 32]>| {
            let (pack, position) = (*packs.get(&record.ordinal())?, record.position());
            Some(Location { pack, segment: position >> 12, slot: position & (SLOTS_MAX - 1) })
        };
        let runs = {
            let view = self.read();
            let (low, high) = (Record::new(prefix, 0, 0), Record::new(prefix, u32::MAX, u32::MAX));
            for record in view.pending.range(low..=high) {
                if locate(*record, &view.packs).is_some_and(|location| !visit(location)) {
                    return Ok(());
                }
            }
            Arc::clone(&view.runs)
        };
        let mut more = true;
        for run in runs.iter().rev() {
            self.checked(run.find(prefix, &mut |record| {
                let location = locate(record, &self.read().packs);
                more = location.is_none_or(&mut *visit);
                more
            }))?;
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// Entries of all known packs.
    pub fn entries(&self) -> u64 {
        self.read().entries
    }

    /// A note: a small value that the caller keeps beside the index.
    ///
    /// # Errors
    /// Fails if the catalogue cannot be read.
    pub fn get_note(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.checked(self.catalogue.note(key))
    }

    /// Sets a note; it survives a crash after the next flush.
    ///
    /// # Errors
    /// Fails if the catalogue cannot be written.
    pub fn set_note(&self, key: &str, value: &[u8]) -> Result<()> {
        self.checked(self.catalogue.set_note(key, value))
    }

    /// Forgets everything, notes and a mark of distrust included, as if the slot were new.
    ///
    /// # Errors
    /// Fails if the catalogue or the slot cannot be written.
    pub fn clear(&self) -> Result<()> {
        let mut writer = self.lock();
        self.checked(self.catalogue.clear_notes())?;
        let next = writer.next;
        let state = State { first: next, next, ..State::default() };
        self.checked(self.catalogue.commit(&state))?;
        writer.state = state;
        writer.dropped.clear();
        let old = {
            let mut view = self.write();
            view.pending.clear();
            view.pending_packs.clear();
            view.packs = HashMap::new();
            view.entries = 0;
            std::mem::take(&mut view.runs)
        };
        old.iter().for_each(|run| run.unlink());
        self.checked(self.catalogue.clear_packs())?;
        self.slot.trust()
    }

    /// Writes what is in RAM to a run and the catalogue: what was added before survives a
    /// crash of the process.
    ///
    /// # Errors
    /// Fails if a run or the catalogue cannot be written; nothing is lost from RAM then.
    pub fn flush(&self) -> Result<()> {
        self.commit(&mut self.lock())
    }

    /// Lets a failure of the cache's own files rebuild it next time; a full disk is not one.
    fn checked<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|cause| {
            if cause.kind() != ErrorKind::NoSpace {
                self.slot.distrust();
            }
        })
    }

    // A thread that panicked leaves nothing half changed under these locks that a later
    // commit would make worse than a rebuild, so poison is ignored.
    fn lock(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ChunkIndex {
    fn drop(&mut self) {
        if !self.slot.is_temporary() && !std::thread::panicking() {
            // Drops and notes cost little to keep; entries were the caller's to flush.
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = self.commit_drops(&mut writer).and_then(|()| self.catalogue.flush());
        }
    }
}

fn refused(why: &str) -> Error {
    Error::new(ErrorKind::Failed, format!("cannot change the chunk index: {why}"))
}

/// What an existing slot holds, after all checks.
struct Loaded {
    catalogue: Catalogue,
    state: State,
    packs: HashMap<u32, [u8; 32]>,
    runs: Vec<Arc<Run>>,
}

/// Reads and checks a catalogue and the runs it names. Files are written without fsync, so
/// runs from before the last boot are read as a whole, once.
fn load(slot: &Slot, catalogue: Catalogue) -> Result<Loaded> {
    let boot = slot::boot_tag();
    let mut state = catalogue.state()?;
    let packs = catalogue.load(&state)?;
    let mut runs = Vec::with_capacity(state.runs.len());
    let mut settled = false;
    for named in &mut state.runs {
        let run = Arc::new(Run::open(slot.run_path(named.name), named.count)?);
        if named.boot != 0 && named.boot != boot {
            run.verify()?;
            (named.boot, settled) = (0, true);
        }
        runs.push(run);
    }
    state.dropping.clear();
    if settled {
        catalogue.commit(&state)?;
    }
    let paths: Vec<_> = state.runs.iter().map(|run| slot.run_path(run.name)).collect();
    slot.remove_strays(&paths)?;
    Ok(Loaded { catalogue, state, packs, runs })
}

//! Copying what is needed out of packs that are to go.
//!
//! Invariants: nothing is held that was not read back and verified by its id; each segment is read
//! once, and all that is needed of it is copied then, so that what lay together stays together;
//! segments come in the order in which the newest map meets them; no lease is needed, because a pack
//! that nobody refers to yet does no harm.

use super::Looked;
use super::roots::{Needs, Root, walk};
use crate::environment::random_array;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::{Monitor, Silent};
use crate::repository::Repository;
use crate::repository::compression::Compression;
use crate::repository::entries::Place;
use crate::repository::map_reader::MapReader;
use crate::repository::marks::Marks;
use crate::repository::pack_reader::OpenPack;
use crate::repository::packer::ChunkWriter;
use crate::repository::session::Presence;
use crate::repository::stored::{Stored, find_stored, find_stored_rather, find_whole};
use crate::restore::fetch::{Fetcher, Wanted};
use diskvault_format::id::{ChunkId, LeaseId, PackId, PageId};
use diskvault_format::pack::PackKind;
use diskvault_format::segment::EntryKind;
use rayon::ThreadPool;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of chunks that are read and written together, and up to a segment more.
const WINDOW_BYTES: u64 = 8 << 20;

/// Packs that wait to be stored: the reads want memory too.
const PACKS_RUNNING: usize = 1;

/// Copies everything that the roots need and that only packs in `leaving` hold; bytes stored. The
/// packs that were made are added to `copies`.
///
/// # Errors
/// `NoSpace`, or what reading and storing say.
pub(super) fn copy_out(
    repository: &Repository,
    looked: &Looked,
    leaving: &HashSet<PackId>,
    copies: &mut HashSet<PackId>,
    pool: &Arc<ThreadPool>,
    monitor: &dyn Monitor,
) -> Result<u64> {
    let Looked { locator, roots, marks, .. } = looked;
    let presence = Arc::new(Presence::without(locator, leaving.clone()));
    let writer_id = LeaseId(random_array(repository.environment().as_ref())?);
    let (pool_of_writer, compression) = (pool.clone(), Compression::default());
    let writer = ChunkWriter::with_packs_running(
        repository,
        writer_id,
        presence,
        pool_of_writer,
        compression,
        PACKS_RUNNING,
    );
    let threads = pool.current_num_threads();
    let mut copier = Copier {
        reader: MapReader::new(repository, locator),
        fetcher: Fetcher { repository, locator, threads, monitor: &Silent },
        leaving,
        marks,
        writer,
        window: Vec::new(),
        window_bytes: 0,
        data: Vec::new(),
        queued: HashSet::new(),
    };
    let all: Vec<&Root> = roots.iter().collect();
    walk(repository, locator, &all, "copying what is needed", &mut copier, monitor)?;
    copier.flush()?;
    let bytes = copier.writer.finish()?.bytes();
    copies.extend(copier.writer.packs());
    Ok(bytes)
}

struct Copier<'a> {
    reader: MapReader<'a>,
    fetcher: Fetcher<'a>,
    leaving: &'a HashSet<PackId>,
    /// What the first mark found to be needed.
    marks: &'a Marks,
    writer: ChunkWriter,
    /// Chunks that wait to be read, in the order in which they are to be stored.
    /// With the anchor each one has.
    window: Vec<(Wanted, Option<u64>)>,
    window_bytes: u64,
    /// What was read of the window.
    data: Vec<u8>,
    queued: HashSet<ChunkId>,
}

impl Copier<'_> {
    /// True if what is at a place will be there whatever is done, and may be built upon.
    fn place_stays(&self, place: &Place) -> bool {
        let locator = self.reader.locator();
        !self.leaving.contains(&place.pack) && locator.trust().counts(place)
    }

    /// True if a chunk will be there by its bytes whatever is done.
    fn stays(&self, id: ChunkId) -> Result<bool> {
        // In this order: a pack is told to the index before its entries are no longer on their way.
        if self.queued.contains(&id) || self.writer.is_on_its_way(&id.0) {
            return Ok(true);
        }
        let stays = |place: &Place| self.place_stays(place);
        Ok(find_whole(self.reader.locator(), id, &stays)?.is_some())
    }

    /// Sees to it that a chunk will be there by its bytes; and with it all others of its segment
    /// that are needed, so that the segment is read once.
    fn need_whole(&mut self, id: ChunkId, place: &Place) -> Result<()> {
        if self.stays(id)? {
            return Ok(());
        }
        let found = self.reader.locator().found_at(self.reader.repository(), &id.0, place)?;
        let Some(found) = found else {
            let text = format!("cannot copy chunk {id}: its pack does not hold it");
            return Err(Error::new(ErrorKind::Damage, text));
        };
        let marked = self.marks.of(found.pack.id, found.segment as usize);
        let entries = &found.pack.footer.segments[found.segment as usize].entries;
        for (slot, entry) in (0..).zip(entries) {
            let is_it = slot == found.slot;
            let goes_along = entry.kind == EntryKind::Chunk
                && self.leaving.contains(&found.pack.id)
                && marked.contains(slot as usize);
            if is_it || goes_along && !self.stays(ChunkId(entry.id))? {
                self.queue(&found.pack, found.segment, slot);
            }
        }
        if self.window_bytes >= WINDOW_BYTES { self.flush() } else { Ok(()) }
    }

    fn queue(&mut self, pack: &OpenPack, segment: u32, slot: u32) {
        let segment = &pack.footer.segments[segment as usize];
        let entry = &segment.entries[slot as usize];
        let (id, bytes) = (ChunkId(entry.id), entry.bytes);
        let anchor = segment.anchors.iter().find(|anchor| anchor.slot == slot);
        // The offset is the place in the window.
        let wanted = Wanted { offset: self.window_bytes, bytes, id };
        self.window.push((wanted, anchor.map(|anchor| anchor.value)));
        self.window_bytes += u64::from(bytes);
        self.queued.insert(id);
    }

    /// Reads the chunks of the window and stores them in their order.
    fn flush(&mut self) -> Result<()> {
        let window = std::mem::take(&mut self.window);
        let bytes = usize::try_from(std::mem::take(&mut self.window_bytes)).unwrap_or(usize::MAX);
        let mut data = std::mem::take(&mut self.data);
        data.resize(data.len().max(bytes), 0);
        let data = Mutex::new(data);
        let wanted = window.iter().map(|(wanted, _)| *wanted).collect();
        self.fetcher.fetch(wanted, &|offset, read| {
            let start = offset as usize;
            crate::repository::lock(&data)[start..start + read.len()].copy_from_slice(read);
            Ok(())
        })?;
        self.data = data.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (wanted, anchor) in window {
            let start = wanted.offset as usize;
            let chunk = &self.data[start..start + wanted.bytes as usize];
            self.writer.append(PackKind::Data, EntryKind::Chunk, wanted.id.0, chunk, anchor)?;
        }
        self.queued.clear();
        Ok(())
    }
}

impl Needs for Copier<'_> {
    fn page(&mut self, id: PageId) -> Result<()> {
        let locator = self.reader.locator();
        let stays = |place: &Place| self.place_stays(place) && !locator.is_met_damaged(place.pack);
        let chunk = ChunkId(id.0);
        if self.writer.is_on_its_way(&id.0) || find_whole(locator, chunk, &stays)?.is_some() {
            return Ok(());
        }
        let bytes = self.reader.page(id)?;
        self.writer.append(PackKind::Map, EntryKind::Page, id.0, &bytes, None)
    }

    fn chunk(&mut self, id: ChunkId) -> Result<()> {
        let leaving = self.leaving;
        let stays = |place: &Place| self.place_stays(place);
        let locator = self.reader.locator();
        if self.queued.contains(&id)
            || self.writer.is_on_its_way(&id.0)
            || find_stored(locator, id, &stays)?.is_some()
        {
            return Ok(());
        }
        // As the first mark did, so that each chunk comes of the segment that is read anyway.
        let trust = locator.trust();
        let goes = |place: &Place| leaving.contains(&place.pack) && self.marks.contains(place);
        let sure = find_stored(locator, id, &|place| goes(place) && trust.counts(place));
        let found = match sure {
            Ok(None) => find_stored_rather(locator, id, &goes)?,
            Err(error) if error.kind().is_finding() => find_stored_rather(locator, id, &goes)?,
            found => found?,
        };
        match found {
            Some(Stored::Whole(place)) => self.need_whole(id, &place),
            Some(Stored::Spliced { place, splice, pieces }) => {
                for (piece, place) in splice.pieces().iter().zip(&pieces) {
                    self.need_whole(piece.chunk, place)?;
                }
                if !leaving.contains(&place.pack) || self.writer.is_on_its_way(&id.0) {
                    return Ok(());
                }
                let bytes = splice.encode();
                self.writer.append(PackKind::Map, EntryKind::Splice, id.0, &bytes, None)
            }
            // Lost already.
            None => Ok(()),
        }
    }
}

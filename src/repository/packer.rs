//! Writing chunks and pages: into segments, packs and onto the storage, on all cores.
//!
//! One thread pushes entries; workers compress segments; whichever worker has the next segment of
//! the order seals it, and those behind it, into the open pack; a full pack is stored by one of
//! two threads, which then tell the index. Segments keep the order in which they were pushed, so
//! that a disk's chunks lie side by side.
//!
//! Invariants: memory is bounded by the numbers below, and buffers are used again; an entry is
//! known to the index only when its pack is durable; the first failure stops everything and is
//! what `finish` returns.

use super::at_once::is_far;
use super::compression::{Compression, ZSTD_LEVEL, next_auto_level};
use super::entries::{add_footer_to_index, prefix};
use super::objects::cannot_make;
use super::own::{OwnCopies, pack_secrets};
use super::pack_reader::pack_name;
use super::parity::store_parity;
use super::session::Presence;
use super::{Repository, lock};
use crate::environment::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::index::ChunkIndex;
use crate::storage::Storage;
use crossbeam_channel::{Receiver, Sender, unbounded};
use diskvault_format::crypto::Keys;
use diskvault_format::id::{LeaseId, PackId};
use diskvault_format::limits::SEGMENT_ENTRIES_MAX;
use diskvault_format::pack::{PackBuilder, PackKind, PreparedSegment, SealedPack};
use diskvault_format::segment::{Anchor, Entry, EntryKind, SegmentEncoder};
use rayon::ThreadPool;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Uncompressed bytes of a segment of map pages: they hardly compress, and who wants one page
/// reads its segment.
const MAP_SEGMENT_BYTES: usize = 256 << 10;
/// Most threads that store packs. On a disk it is two: one writes while the other waits for its
/// fsync. A far storage that takes more at once gets twice as many.
const STORING_THREADS_MAX: usize = 4;

/// A pack of which so much is there is worth sending while something else is done.
const SEND_OFF_BYTES: usize = 4 << 20;

/// What the last segment, the footer's rounding and the padding add to a pack's size.
const PACK_SLACK_BYTES: usize = 6 << 20;

/// What a writer stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Bytes of all packs.
    pub pack_bytes: u64,
    /// Bytes of their parity.
    pub parity_bytes: u64,
    /// Number of packs.
    pub packs: u64,
}

impl Stored {
    /// All bytes that this took on the storage.
    pub fn bytes(&self) -> u64 {
        self.pack_bytes + self.parity_bytes
    }
}

struct Shared {
    storage: Arc<dyn Storage>,
    environment: Arc<dyn Environment>,
    keys: Arc<Keys>,
    own_copies: Option<Arc<OwnCopies>>,
    lease: LeaseId,
    index: Arc<ChunkIndex>,
    pack_bytes: usize,
    parity_per_mille: u32,
    pool: Arc<ThreadPool>,
    segments_running_max: usize,
    packs_running_max: usize,
    compression: Compression,
    state: Mutex<State>,
    changed: Condvar,
    data: Mutex<Collector>,
    map: Mutex<Collector>,
    spare: Mutex<Spare>,
}

/// What was used and can be used again.
#[derive(Default)]
struct Spare {
    encoders: Vec<SegmentEncoder>,
    /// For the chunks of a segment, and for its encoded form.
    segments: Vec<Vec<u8>>,
    packs: Vec<Vec<u8>>,
}

#[derive(Default)]
struct State {
    failure: Option<Error>,
    /// The index could not be written; nothing stored is lost by that.
    index_failure: Option<Error>,
    /// Handed to a worker and not yet in a pack.
    segments_running: usize,
    packs_running: usize,
    /// Entries pushed whose pack the index does not know yet.
    in_flight: HashSet<[u8; 16]>,
    stored: Stored,
    packs: Vec<PackId>,
    /// What `Compression::Auto` adds to the default level.
    auto_levels: i32,
}

/// Puts compressed segments back into order and into packs.
#[derive(Default)]
struct Collector {
    next: u64,
    /// Those that are ready; `None` for one that failed, so that the others get past it.
    waiting: BTreeMap<u64, Option<PreparedSegment>>,
    /// The open pack, while no worker has it.
    pack: Option<PackBuilder>,
    /// True while a worker is sealing: others leave their segments to it and go on.
    is_draining: bool,
}

impl Shared {
    fn collector(&self, kind: PackKind) -> &Mutex<Collector> {
        match kind {
            PackKind::Data => &self.data,
            PackKind::Map => &self.map,
        }
    }
}

/// The segment that one kind of entries is being gathered into.
struct Lane {
    kind: PackKind,
    segment_bytes: usize,
    entries: Vec<Entry>,
    anchors: Vec<Anchor>,
    data: Vec<u8>,
    number: u64,
}

type Sealed = (PackKind, SealedPack);

/// Stores chunks and pages. Pushing is for one thread; asking what is present for any.
pub struct ChunkWriter {
    shared: Arc<Shared>,
    presence: Arc<Presence>,
    data: Lane,
    map: Lane,
    sealed: Option<Sender<Sealed>>,
    storing: Vec<JoinHandle<()>>,
}

impl ChunkWriter {
    /// Starts a writer under a lease.
    pub fn new(
        repository: &Repository,
        lease: LeaseId,
        presence: Arc<Presence>,
        pool: Arc<ThreadPool>,
        compression: Compression,
    ) -> ChunkWriter {
        // One more than threads, so that none is idle.
        let most = storing_threads(repository.storage().as_ref()) + 1;
        ChunkWriter::with_packs_running(repository, lease, presence, pool, compression, most)
    }

    /// As [`ChunkWriter::new`], with at most so many packs that wait to be stored or are being
    /// stored, at least one: for who has other things in memory and can wait for a pack.
    pub fn with_packs_running(
        repository: &Repository,
        lease: LeaseId,
        presence: Arc<Presence>,
        pool: Arc<ThreadPool>,
        compression: Compression,
        packs_running_max: usize,
    ) -> ChunkWriter {
        let threads = pool.current_num_threads();
        let shared = Arc::new(Shared {
            storage: repository.storage().clone(),
            environment: repository.environment().clone(),
            keys: repository.keys().clone(),
            own_copies: repository.own_copies().cloned(),
            lease,
            index: presence.index().clone(),
            pack_bytes: repository.config().pack_bytes as usize,
            parity_per_mille: repository.config().parity_per_mille(),
            pool,
            segments_running_max: threads + 2,
            packs_running_max,
            compression,
            state: Mutex::default(),
            changed: Condvar::new(),
            data: Mutex::default(),
            map: Mutex::default(),
            spare: Mutex::default(),
        });
        let (sender, receiver) = unbounded();
        let storing = (0..storing_threads(shared.storage.as_ref()).min(packs_running_max))
            .map(|_| {
                let (shared, receiver) = (shared.clone(), receiver.clone());
                std::thread::spawn(move || store_packs(&shared, &receiver))
            })
            .collect();
        let lane = |kind, segment_bytes| Lane {
            kind,
            segment_bytes,
            entries: Vec::new(),
            anchors: Vec::new(),
            data: Vec::new(),
            number: 0,
        };
        let segment_bytes = repository.config().segment_bytes as usize;
        ChunkWriter {
            shared,
            presence,
            data: lane(PackKind::Data, segment_bytes),
            map: lane(PackKind::Map, segment_bytes.min(MAP_SEGMENT_BYTES)),
            sealed: Some(sender),
            storing,
        }
    }

    /// True if the entry is stored, or pushed and on its way.
    ///
    /// # Errors
    /// What the index says.
    pub fn is_present(&self, id: &[u8; 32]) -> Result<bool> {
        // In this order: a pack is told to the index before its entries leave the set.
        if lock(&self.shared.state).in_flight.contains(&prefix(id)) {
            return Ok(true);
        }
        self.presence.contains(id)
    }

    /// Stores an entry unless it is present; true if it is new.
    ///
    /// # Errors
    /// The first failure of the writer.
    pub fn push(
        &mut self,
        pack: PackKind,
        kind: EntryKind,
        id: [u8; 32],
        data: &[u8],
    ) -> Result<bool> {
        self.push_anchored(pack, kind, id, data, None)
    }

    /// As [`ChunkWriter::push`], with an anchor by which the same bytes are found at another
    /// phase.
    ///
    /// # Errors
    /// The first failure of the writer.
    pub fn push_anchored(
        &mut self,
        pack: PackKind,
        kind: EntryKind,
        id: [u8; 32],
        data: &[u8],
        anchor: Option<u64>,
    ) -> Result<bool> {
        if self.is_present(&id)? {
            return Ok(false);
        }
        self.append(pack, kind, id, data, anchor)?;
        Ok(true)
    }

    /// True if the entry was pushed and is not yet told to the index.
    pub fn is_on_its_way(&self, id: &[u8; 32]) -> bool {
        lock(&self.shared.state).in_flight.contains(&prefix(id))
    }

    /// Stores an entry whether or not it is present, such as one whose pack is to go.
    ///
    /// # Errors
    /// The first failure of the writer.
    pub fn append(
        &mut self,
        pack: PackKind,
        kind: EntryKind,
        id: [u8; 32],
        data: &[u8],
        anchor: Option<u64>,
    ) -> Result<()> {
        let lane = match pack {
            PackKind::Data => &mut self.data,
            PackKind::Map => &mut self.map,
        };
        let full = lane.data.len() + data.len() > lane.segment_bytes
            || lane.entries.len() == SEGMENT_ENTRIES_MAX as usize;
        if full && !lane.entries.is_empty() {
            dispatch(&self.shared, lane, self.sealed.as_ref())?;
        }
        lane.data.extend_from_slice(data);
        let slot = lane.entries.len() as u32;
        lane.anchors.extend(anchor.map(|value| Anchor { slot, value }));
        lane.entries.push(Entry { id, kind, bytes: data.len() as u32 });
        lock(&self.shared.state).in_flight.insert(prefix(&id));
        if lane.data.len() >= lane.segment_bytes {
            dispatch(&self.shared, lane, self.sealed.as_ref())?;
        }
        Ok(())
    }

    /// Fails once storing has failed, for who waits for something else meanwhile.
    ///
    /// # Errors
    /// The first failure.
    pub fn check(&self) -> Result<()> {
        lock(&self.shared.state).failure.as_ref().map_or(Ok(()), |error| Err(repeat(error)))
    }

    /// Why the index could not be written, if it could not: the next run fills it again.
    pub fn take_index_failure(&self) -> Option<Error> {
        lock(&self.shared.state).index_failure.take()
    }

    /// Bytes stored so far.
    pub fn stored(&self) -> Stored {
        lock(&self.shared.state).stored
    }

    /// The packs stored so far.
    pub fn packs(&self) -> Vec<PackId> {
        lock(&self.shared.state).packs.clone()
    }

    /// Has the data that is there stored while its user does something else, if it is worth a pack of
    /// its own and the storage is far away.
    ///
    /// # Errors
    /// The first failure so far.
    pub fn send_off(&mut self) -> Result<()> {
        if !is_far(self.shared.storage.as_ref()) {
            return Ok(());
        }
        if !self.data.entries.is_empty() {
            dispatch(&self.shared, &mut self.data, self.sealed.as_ref())?;
        }
        drop(wait(&self.shared, |state| state.segments_running == 0)?);
        let mut collector = lock(self.shared.collector(PackKind::Data));
        let pack = collector.pack.take_if(|pack| pack.bytes() >= SEND_OFF_BYTES);
        drop(collector);
        pack.map_or(Ok(()), |pack| close(&self.shared, PackKind::Data, pack, self.sealed.as_ref()))
    }

    /// Stores what is left and waits until everything is durable.
    ///
    /// # Errors
    /// The first failure.
    pub fn finish(&mut self) -> Result<Stored> {
        for lane in [&mut self.data, &mut self.map] {
            if !lane.entries.is_empty() {
                dispatch(&self.shared, lane, self.sealed.as_ref())?;
            }
        }
        drop(wait(&self.shared, |state| state.segments_running == 0)?);
        for kind in [PackKind::Data, PackKind::Map] {
            let open = lock(self.shared.collector(kind)).pack.take();
            if let Some(pack) = open {
                close(&self.shared, kind, pack, self.sealed.as_ref())?;
            }
        }
        let state = wait(&self.shared, |state| state.packs_running == 0)?;
        debug_assert!(state.in_flight.is_empty());
        Ok(state.stored)
    }
}

impl Drop for ChunkWriter {
    fn drop(&mut self) {
        // Lets running workers finish, so that nothing is stored after the lease is gone.
        let mut state = lock(&self.shared.state);
        if state.failure.is_none() && (state.segments_running > 0 || state.packs_running > 0) {
            state.failure = Some(Error::new(ErrorKind::Cancelled, "interrupted"));
        }
        while state.segments_running > 0 || state.packs_running > 0 {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        self.sealed = None;
        for thread in self.storing.drain(..) {
            // What went wrong there is the failure already.
            let _ = thread.join();
        }
    }
}

fn storing_threads(storage: &dyn Storage) -> usize {
    storage.calls_at_once().clamp(1, STORING_THREADS_MAX)
}

type StateGuard<'a> = std::sync::MutexGuard<'a, State>;

/// Waits until `ready` or a failure, which it returns.
fn wait<'a>(shared: &'a Shared, ready: impl Fn(&State) -> bool) -> Result<StateGuard<'a>> {
    let mut state = lock(&shared.state);
    loop {
        if let Some(error) = &state.failure {
            return Err(repeat(error));
        }
        if ready(&state) {
            return Ok(state);
        }
        state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

fn repeat(error: &Error) -> Error {
    let again = Error::new(error.kind(), error.full_text());
    match error.hint_text() {
        Some(hint) => again.hint(hint),
        None => again,
    }
}

fn fail(shared: &Shared, error: Error) {
    lock(&shared.state).failure.get_or_insert(error);
}

/// Hands the lane's segment to a worker.
fn dispatch(shared: &Arc<Shared>, lane: &mut Lane, sealed: Option<&Sender<Sealed>>) -> Result<()> {
    let most = shared.segments_running_max;
    let level = choose_level(shared);
    let mut state = wait(shared, |state| {
        state.segments_running < most && state.packs_running < shared.packs_running_max
    })?;
    state.segments_running += 1;
    drop(state);
    let spare = lock(&shared.spare).segments.pop().unwrap_or_default();
    let data = std::mem::replace(&mut lane.data, spare);
    let entries = std::mem::take(&mut lane.entries);
    let anchors = std::mem::take(&mut lane.anchors);
    let (kind, number) = (lane.kind, lane.number);
    lane.number += 1;
    let (shared, sealed) = (shared.clone(), sealed.cloned());
    shared.clone().pool.spawn(move || {
        let segment = match encode(&shared, level, entries, anchors, data) {
            Ok(segment) => Some(segment),
            Err(error) => {
                fail(&shared, error);
                None
            }
        };
        collect(&shared, kind, number, segment, sealed.as_ref());
    });
    Ok(())
}

/// The level for the next segment; `None` is not to compress.
fn choose_level(shared: &Shared) -> Option<i32> {
    match shared.compression {
        Compression::Off => None,
        Compression::Level(level) => Some(level),
        Compression::Auto => {
            let mut state = lock(&shared.state);
            let waits_for_storage = state.packs_running >= shared.packs_running_max;
            let waits_for_worker = state.segments_running >= shared.segments_running_max;
            let level = ZSTD_LEVEL + state.auto_levels;
            let level = next_auto_level(level, waits_for_storage, waits_for_worker);
            state.auto_levels = level - ZSTD_LEVEL;
            Some(level)
        }
    }
}

fn encode(
    shared: &Shared,
    level: Option<i32>,
    entries: Vec<Entry>,
    anchors: Vec<Anchor>,
    mut data: Vec<u8>,
) -> Result<PreparedSegment> {
    let cannot = |cause| cannot_make("a segment", cause);
    let (encoder, plaintext) = {
        let mut spare = lock(&shared.spare);
        (spare.encoders.pop(), spare.segments.pop())
    };
    let mut encoder = match encoder {
        Some(encoder) => encoder,
        None => SegmentEncoder::new(ZSTD_LEVEL).map_err(cannot)?,
    };
    encoder.set_level(level).map_err(cannot)?;
    let mut plaintext = plaintext.unwrap_or_default();
    encoder.encode(&entries, &data, &mut plaintext).map_err(cannot)?;
    data.clear();
    let mut spare = lock(&shared.spare);
    spare.encoders.push(encoder);
    spare.segments.push(data);
    Ok(PreparedSegment { entries, anchors, plaintext })
}

/// Takes a compressed segment. If it is the next of the order, and no other worker is at it
/// already, this one seals what is ready.
fn collect(
    shared: &Shared,
    kind: PackKind,
    number: u64,
    segment: Option<PreparedSegment>,
    sealed: Option<&Sender<Sealed>>,
) {
    let mut collector = lock(shared.collector(kind));
    collector.waiting.insert(number, segment);
    if collector.is_draining {
        return;
    }
    loop {
        let next = collector.next;
        let Some(segment) = collector.waiting.remove(&next) else { return };
        collector.next += 1;
        collector.is_draining = true;
        let pack = collector.pack.take();
        drop(collector);
        let pack = match segment {
            Some(segment) => add(shared, kind, pack, segment, sealed).unwrap_or_else(|error| {
                fail(shared, error);
                None
            }),
            None => pack,
        };
        collector = lock(shared.collector(kind));
        collector.pack = pack;
        collector.is_draining = false;
        // Only now: who waits for the last segment closes the pack that it is in.
        lock(&shared.state).segments_running -= 1;
        shared.changed.notify_all();
    }
}

/// Seals a segment into the open pack, or a new one; the pack, unless it is full now.
fn add(
    shared: &Shared,
    kind: PackKind,
    pack: Option<PackBuilder>,
    segment: PreparedSegment,
    sealed: Option<&Sender<Sealed>>,
) -> Result<Option<PackBuilder>> {
    let mut pack = match pack {
        Some(pack) => pack,
        None => open_pack(shared, kind)?,
    };
    let PreparedSegment { entries, anchors, mut plaintext } = segment;
    pack.push(entries, anchors, &plaintext).map_err(|cause| cannot_make("a pack", cause))?;
    plaintext.clear();
    lock(&shared.spare).segments.push(plaintext);
    if pack.bytes() < shared.pack_bytes {
        return Ok(Some(pack));
    }
    close(shared, kind, pack, sealed).map(|()| None)
}

fn open_pack(shared: &Shared, kind: PackKind) -> Result<PackBuilder> {
    let secrets = pack_secrets(shared.environment.as_ref(), shared.own_copies.is_some())?;
    let mut buffer = lock(&shared.spare).packs.pop().unwrap_or_default();
    buffer.clear();
    // Its last segment and its footer may not make it grow to twice the size.
    buffer.reserve(shared.pack_bytes + PACK_SLACK_BYTES);
    PackBuilder::new(&shared.keys, kind, shared.lease, &secrets, buffer)
        .map_err(|cause| cannot_make("a pack", cause))
}

/// Finishes a pack and hands it to the storing threads.
fn close(
    shared: &Shared,
    kind: PackKind,
    pack: PackBuilder,
    sealed: Option<&Sender<Sealed>>,
) -> Result<()> {
    let pack = pack.finish().map_err(|cause| cannot_make("a pack", cause))?;
    let gone = || Error::new(ErrorKind::Failed, "cannot store a pack: storing has ended");
    lock(&shared.state).packs_running += 1;
    sealed
        .ok_or_else(gone)
        .and_then(|sealed| sealed.send((kind, pack)).map_err(|_| gone()))
        .inspect_err(|_| {
            lock(&shared.state).packs_running -= 1;
            shared.changed.notify_all();
        })
}

/// The storing threads: put, with its parity, then tell the index, then let the entries go.
fn store_packs(shared: &Shared, sealed: &Receiver<Sealed>) {
    for (kind, pack) in sealed {
        let has_failed = lock(&shared.state).failure.is_some();
        // A panic would leave the count below as it is, and whoever waits for it would wait for
        // ever; the index runs code of others.
        let store = || if has_failed { Ok(()) } else { store_pack(shared, kind, &pack) };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(store));
        let panicked = |_| Err(Error::new(ErrorKind::Failed, "cannot store a pack: it panicked"));
        if let Err(error) = result.unwrap_or_else(panicked) {
            fail(shared, error);
        }
        lock(&shared.spare).packs.push(pack.bytes);
        let mut state = lock(&shared.state);
        state.packs_running -= 1;
        drop(state);
        shared.changed.notify_all();
    }
}

fn store_pack(shared: &Shared, kind: PackKind, pack: &SealedPack) -> Result<()> {
    shared.storage.put_new(&pack_name(pack.id)?, &pack.bytes)?;
    let bytes = pack.bytes.len() as u64;
    let kept = shared.own_copies.as_ref().map_or(Ok(()), |copies| copies.keep_pack(pack));
    let mut parity_bytes = 0;
    if shared.parity_per_mille > 0 {
        // Behind the pack, so that parity without a pack is parity of one that is gone.
        let storage = shared.storage.as_ref();
        parity_bytes = store_parity(storage, pack.id, &pack.bytes, shared.parity_per_mille)?;
    }
    let indexed = add_footer_to_index(&shared.index, pack.id, kind, &pack.footer, bytes);
    let mut state = lock(&shared.state);
    if let Err(error) = kept.and(indexed) {
        // The pack is stored, which is what counts. The index keeps in RAM what it cannot write,
        // and the next run reads the footer again.
        state.index_failure.get_or_insert(error);
    }
    for segment in &pack.footer.segments {
        for entry in &segment.entries {
            state.in_flight.remove(&prefix(&entry.id));
        }
    }
    state.packs.push(pack.id);
    state.stored.packs += 1;
    state.stored.pack_bytes += pack.bytes.len() as u64;
    state.stored.parity_bytes += parity_bytes;
    Ok(())
}

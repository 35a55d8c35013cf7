//! Getting chunks out of packs: each segment is read once per window, in pack order, and decoded
//! on all cores; results arrive in any order.
//!
//! Invariants: every chunk is verified by its id and length before anybody sees it; memory is
//! bounded by the window and the reads in flight.

use crate::error::{Error, ErrorKind, Result};
use crate::index::Location;
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::locate::{Found, Locator, prefix};
use crate::repository::lock;
use crate::repository::objects::refused;
use crate::repository::pack_reader::{OpenPack, PackSegments, pack_name};
use crossbeam_channel::{Receiver, Sender, bounded};
use diskvault_format::id::{ChunkId, PackId};
use diskvault_format::segment::SegmentDecoder;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Two segments of a pack are read with one call if at most this many bytes lie between them.
const GAP_BYTES_MAX: u64 = 64 << 10;
/// Most bytes of one read.
const READ_BYTES_MAX: u64 = 4 << 20;
/// Threads that read; one waits for the storage while the other copies.
const READING_THREADS: usize = 2;

/// A chunk and the place it goes to.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Offset in the disk or stream.
    pub offset: u64,
    /// Its length.
    pub bytes: u32,
    /// Its id.
    pub id: ChunkId,
}

/// Receives verified chunks, from several threads.
pub type ChunkSink<'a> = dyn Fn(u64, &[u8]) -> Result<()> + Sync + 'a;

/// Reads chunks of one repository.
pub struct Fetcher<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// Where things are.
    pub locator: &'a Locator,
    /// Decoding threads.
    pub threads: usize,
    /// Hears of progress.
    pub monitor: &'a dyn Monitor,
}

/// One segment: where it lies, and what it is read for. It holds on to no footer: a window over
/// scattered chunks can touch thousands of packs.
struct WantedSegment {
    pack: Arc<PackSegments>,
    ordinal: u32,
    /// Offset of its frame in the pack.
    offset: u64,
    /// Frame, ciphertext and tag.
    stored_bytes: usize,
    /// Slots, and where each goes.
    uses: Vec<(u32, Wanted)>,
}

/// One read: neighbouring segments of one pack.
struct Run {
    pack: Arc<PackSegments>,
    start: u64,
    bytes: u64,
    segments: Vec<WantedSegment>,
}

struct Shared<'a> {
    runs: Vec<Run>,
    next: AtomicUsize,
    has_failed: AtomicBool,
    failure: Mutex<Option<Error>>,
    sink: &'a ChunkSink<'a>,
}

impl Shared<'_> {
    fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
        self.has_failed.store(true, Ordering::Relaxed);
    }
}

impl Fetcher<'_> {
    /// Gets all wanted chunks and hands them to `sink`, in any order.
    ///
    /// # Errors
    /// `Damage` for a chunk that no pack holds or that does not verify, naming it and the offset;
    /// the storage's or the sink's first error.
    pub fn fetch(&self, wanted: Vec<Wanted>, sink: &ChunkSink<'_>) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        let runs = self.plan(wanted)?;
        let shared = Shared {
            runs,
            next: AtomicUsize::new(0),
            has_failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            sink,
        };
        // At most this many reads wait to be decoded: 4 MiB each.
        let (send, receive) = bounded::<(usize, Vec<u8>)>(self.threads + 1);
        std::thread::scope(|scope| {
            for _ in 0..READING_THREADS {
                let send = send.clone();
                scope.spawn(|| self.read_runs(&shared, send));
            }
            drop(send);
            for _ in 0..self.threads {
                let receive = receive.clone();
                let shared = &shared;
                scope.spawn(move || self.decode_runs(shared, &receive));
            }
            drop(receive);
        });
        match lock(&shared.failure).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Finds every chunk and groups them into reads, in pack order.
    fn plan(&self, wanted: Vec<Wanted>) -> Result<Vec<Run>> {
        let mut by_pack: HashMap<PackId, Vec<(Location, Wanted)>> = HashMap::new();
        let mut locations = Vec::new();
        for item in wanted {
            locations.clear();
            self.locator.index().locations(&prefix(&item.id.0), &mut locations)?;
            let Some(location) = locations.first() else { return Err(missing(&item)) };
            by_pack.entry(PackId(location.pack)).or_default().push((*location, item));
        }
        let mut packs: Vec<_> = by_pack.into_iter().collect();
        packs.sort_unstable_by_key(|(id, _)| *id);
        let mut grouped: BTreeMap<(PackId, u32), WantedSegment> = BTreeMap::new();
        for (id, items) in packs {
            let pack = self.locator.pack(self.repository, id).ok();
            for (location, item) in items {
                let found = self.verify_location(pack.as_ref(), &location, &item)?;
                let segment = grouped.entry((found.pack.id, found.segment)).or_insert_with(|| {
                    let described = &found.pack.footer.segments[found.segment as usize];
                    WantedSegment {
                        pack: found.pack.segments.clone(),
                        ordinal: found.segment,
                        offset: u64::from(described.offset),
                        stored_bytes: described.stored_bytes() as usize,
                        uses: Vec::new(),
                    }
                });
                segment.uses.push((found.slot, item));
            }
        }
        Ok(coalesce(grouped))
    }

    /// The location if the footer agrees, another one otherwise.
    fn verify_location(
        &self,
        pack: Option<&Arc<OpenPack>>,
        location: &Location,
        item: &Wanted,
    ) -> Result<Found> {
        if let Some(pack) = pack {
            let segment = pack.footer.segments.get(location.segment as usize);
            let entry = segment.and_then(|segment| segment.entries.get(location.slot as usize));
            if entry.is_some_and(|entry| entry.id == item.id.0) {
                let (segment, slot) = (location.segment, location.slot);
                return Ok(Found { pack: pack.clone(), segment, slot });
            }
        }
        self.locator.find(self.repository, &item.id.0)?.ok_or_else(|| missing(item))
    }

    fn read_runs(&self, shared: &Shared<'_>, send: Sender<(usize, Vec<u8>)>) {
        loop {
            let number = shared.next.fetch_add(1, Ordering::Relaxed);
            let Some(run) = shared.runs.get(number) else { return };
            if shared.has_failed.load(Ordering::Relaxed) {
                return;
            }
            if let Err(error) = self.monitor.check_cancelled() {
                return shared.fail(error);
            }
            let mut stored = vec![0; run.bytes as usize];
            let read = pack_name(run.pack.id).and_then(|name| {
                self.repository.storage().get_range(&name, run.start, &mut stored)
            });
            match read {
                Ok(()) => {
                    if send.send((number, stored)).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let mut segments = run.segments.iter();
                    let found = segments
                        .try_for_each(|segment| self.fetch_elsewhere(shared.sink, segment, &error));
                    if let Err(error) = found {
                        return shared.fail(error);
                    }
                }
            }
        }
    }

    fn decode_runs(&self, shared: &Shared<'_>, receive: &Receiver<(usize, Vec<u8>)>) {
        let mut decoder = match SegmentDecoder::new() {
            Ok(decoder) => decoder,
            Err(cause) => return shared.fail(refused("a segment", cause)),
        };
        let mut data = Vec::new();
        for (number, mut stored) in receive {
            if shared.has_failed.load(Ordering::Relaxed) {
                continue;
            }
            let run = &shared.runs[number];
            for segment in &run.segments {
                let start = (segment.offset - run.start) as usize;
                let sealed = &mut stored[start..start + segment.stored_bytes];
                let result =
                    self.decode_segment(shared.sink, segment, sealed, &mut decoder, &mut data);
                if let Err(error) = result {
                    shared.fail(error);
                    break;
                }
            }
        }
    }

    fn decode_segment(
        &self,
        sink: &ChunkSink<'_>,
        segment: &WantedSegment,
        sealed: &mut [u8],
        decoder: &mut SegmentDecoder,
        data: &mut Vec<u8>,
    ) -> Result<()> {
        let entries = match segment.pack.decode(segment.ordinal, sealed, decoder, data) {
            Ok(entries) => entries,
            Err(error) => return self.fetch_elsewhere(sink, segment, &error),
        };
        let mut starts = Vec::with_capacity(entries.len());
        let mut end = 0;
        for entry in &entries {
            starts.push(end);
            end += entry.bytes as usize;
        }
        let mut verified: Option<u32> = None;
        for (slot, item) in &segment.uses {
            let place = entries.get(*slot as usize).zip(starts.get(*slot as usize));
            let chunk =
                place.and_then(|(entry, start)| data.get(*start..*start + entry.bytes as usize));
            if let Some(chunk) = chunk
                && chunk.len() != item.bytes as usize
            {
                return Err(refuse_chunk(
                    segment.pack.id,
                    item,
                    "it has another length (rules M-8 and T-7)",
                ));
            }
            // The same slot may go to several places; it is hashed once.
            let fits = |chunk: &&[u8]| {
                verified == Some(*slot) || self.repository.keys().chunk_id(chunk) == item.id
            };
            let Some(chunk) = chunk.filter(fits) else {
                return Err(refuse_chunk(
                    segment.pack.id,
                    item,
                    "its bytes have another id (rule S-9)",
                ));
            };
            verified = Some(*slot);
            sink(item.offset, chunk)?;
            self.monitor.advance(chunk.len() as u64);
        }
        Ok(())
    }

    /// Gets the chunks of a damaged segment from others, if they were stored again; fails with
    /// what was wrong there otherwise.
    fn fetch_elsewhere(
        &self,
        sink: &ChunkSink<'_>,
        segment: &WantedSegment,
        cause: &Error,
    ) -> Result<()> {
        let damaged = (segment.pack.id, segment.ordinal);
        let mut items = segment.uses.iter().map(|(_, item)| item);
        items.try_for_each(|item| self.fetch_one_elsewhere(sink, item, damaged, cause))
    }

    fn fetch_one_elsewhere(
        &self,
        sink: &ChunkSink<'_>,
        item: &Wanted,
        damaged: (PackId, u32),
        cause: &Error,
    ) -> Result<()> {
        let again = || Error::new(cause.kind(), cause.full_text());
        if !matches!(cause.kind(), ErrorKind::Damage | ErrorKind::NotFound) {
            return Err(again());
        }
        let mut decoder = SegmentDecoder::new().map_err(|cause| refused("a segment", cause))?;
        let (mut damaged, mut data) = (vec![damaged], Vec::new());
        let storage = self.repository.storage().as_ref();
        while let Ok(Some(found)) = self.locator.find_except(self.repository, &item.id.0, &damaged)
        {
            damaged.push((found.pack.id, found.segment));
            let read = found.pack.read_segment(storage, found.segment, &mut decoder, &mut data);
            let Ok(entries) = read else { continue };
            let slot = found.slot as usize;
            let start = entries.iter().take(slot).map(|entry| entry.bytes as usize).sum::<usize>();
            let chunk = data.get(start..start + item.bytes as usize);
            if let Some(chunk) = chunk
                && self.repository.keys().chunk_id(chunk) == item.id
            {
                sink(item.offset, chunk)?;
                self.monitor.advance(chunk.len() as u64);
                return Ok(());
            }
        }
        Err(again())
    }
}

fn refuse_chunk(pack: PackId, item: &Wanted, why: &str) -> Error {
    let (id, offset) = (item.id, item.offset);
    let text = format!("cannot use chunk {id} at offset {offset} from pack {pack}: {why}");
    Error::new(ErrorKind::Damage, text)
}

fn missing(item: &Wanted) -> Error {
    let text = format!("cannot find chunk {} at offset {}: no pack holds it", item.id, item.offset);
    Error::new(ErrorKind::Damage, text)
}

fn coalesce(grouped: BTreeMap<(PackId, u32), WantedSegment>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for mut segment in grouped.into_values() {
        segment.uses.sort_unstable_by_key(|(slot, item)| (*slot, item.offset));
        let (start, bytes) = (segment.offset, segment.stored_bytes as u64);
        if let Some(run) = runs.last_mut() {
            let run_end = run.start + run.bytes;
            let is_near = start >= run_end && start - run_end <= GAP_BYTES_MAX;
            let end = start + bytes;
            if run.pack.id == segment.pack.id && is_near && end - run.start <= READ_BYTES_MAX {
                run.bytes = end - run.start;
                run.segments.push(segment);
                continue;
            }
        }
        runs.push(Run { pack: segment.pack.clone(), start, bytes, segments: vec![segment] });
    }
    runs
}

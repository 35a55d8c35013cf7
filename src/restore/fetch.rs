//! Getting chunks out of packs: each segment is read once per window, in pack order, and decoded
//! on all cores; results arrive in any order.
//!
//! Invariants: every chunk is verified by its id and length before anybody sees it, whether it was
//! stored by its bytes or as pieces of others; memory is bounded by the window, the reads in flight
//! and the splices under way.

use super::reads::{Assembly, Goal, Plan, ReadRun, WantedSegment, plan_reads, refuse_chunk};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::entries::{Place, places_of};
use crate::repository::locate::Locator;
use crate::repository::lock;
use crate::repository::objects::refused;
use crate::repository::pack_reader::pack_name;
use crossbeam_channel::{Receiver, Sender, bounded};
use diskvault_format::id::{ChunkId, PackId};
use diskvault_format::segment::SegmentDecoder;
use diskvault_format::splice::Splice;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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

struct Shared<'a> {
    runs: Vec<ReadRun>,
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
        self.fetch_all(wanted.into_iter().map(|item| (item, None)).collect(), sink)
    }

    /// As [`Fetcher::fetch`], but chunks for which a splice is given are put together by it and by
    /// nothing else.
    ///
    /// # Errors
    /// As [`Fetcher::fetch`].
    pub fn fetch_all(
        &self,
        wanted: Vec<(Wanted, Option<Splice>)>,
        sink: &ChunkSink<'_>,
    ) -> Result<()> {
        let mut rest = wanted;
        while !rest.is_empty() {
            let Plan { runs, deferred } = plan_reads(self.repository, self.locator, rest)?;
            self.run(runs, sink)?;
            rest = deferred;
        }
        Ok(())
    }

    fn run(&self, runs: Vec<ReadRun>, sink: &ChunkSink<'_>) -> Result<()> {
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
        for (slot, goal) in &segment.uses {
            let place = entries.get(*slot as usize).zip(starts.get(*slot as usize));
            let chunk =
                place.and_then(|(entry, start)| data.get(*start..*start + entry.bytes as usize));
            match goal {
                Goal::Whole(item) => {
                    let known = verified == Some(*slot);
                    self.hand_out(sink, segment.pack.id, item, chunk, known)?;
                    verified = Some(*slot);
                }
                Goal::Piece { assembly, number } => {
                    let pack = segment.pack.id;
                    self.add_piece(sink, pack, assembly, *number, chunk.unwrap_or_default())?;
                }
            }
        }
        Ok(())
    }

    /// Verifies a chunk, unless the same slot was verified just before, and hands it out.
    fn hand_out(
        &self,
        sink: &ChunkSink<'_>,
        pack: PackId,
        item: &Wanted,
        chunk: Option<&[u8]>,
        known: bool,
    ) -> Result<()> {
        if chunk.is_some_and(|chunk| chunk.len() != item.bytes as usize) {
            let why = "it has another length (rules M-8 and T-7)";
            return Err(refuse_chunk(pack, item, why));
        }
        let fits = |chunk: &&[u8]| known || self.repository.keys().chunk_id(chunk) == item.id;
        let Some(chunk) = chunk.filter(fits) else {
            return Err(refuse_chunk(pack, item, "its bytes have another id (rule S-9)"));
        };
        sink(item.offset, chunk)?;
        self.monitor.advance(chunk.len() as u64);
        Ok(())
    }

    /// Puts a piece into its chunk, and verifies and hands out the chunk with the last one.
    pub(super) fn add_piece(
        &self,
        sink: &ChunkSink<'_>,
        pack: PackId,
        assembly: &Assembly,
        number: usize,
        chunk: &[u8],
    ) -> Result<()> {
        let item = &assembly.item;
        let Ok(bytes) = assembly.splice.pieces()[number].of(chunk) else {
            return Err(refuse_chunk(pack, item, "a piece ends behind its chunk (rule S-12)"));
        };
        match assembly.add(number, bytes) {
            Some(whole) => self.hand_out(sink, pack, item, Some(&whole[..]), false),
            None => Ok(()),
        }
    }

    /// Gets the chunks of a damaged segment from others, if they were stored again; fails with
    /// what was wrong there otherwise.
    fn fetch_elsewhere(
        &self,
        sink: &ChunkSink<'_>,
        segment: &WantedSegment,
        cause: &Error,
    ) -> Result<()> {
        let again = || Error::new(cause.kind(), cause.full_text());
        if !matches!(cause.kind(), ErrorKind::Damage | ErrorKind::NotFound) {
            return Err(again());
        }
        for (_, goal) in &segment.uses {
            let mut damaged = vec![(segment.pack.id, segment.ordinal)];
            match goal {
                Goal::Whole(item) => {
                    let found = self.read_undamaged(item.id, item.bytes, &mut damaged);
                    sink(item.offset, &found.ok_or_else(again)?)?;
                    self.monitor.advance(u64::from(item.bytes));
                }
                Goal::Piece { assembly, number } => {
                    let piece = assembly.splice.pieces()[*number];
                    let found = self.read_stored(piece.chunk, &mut damaged).ok_or_else(again)?;
                    self.add_piece(sink, segment.pack.id, assembly, *number, &found)?;
                }
            }
        }
        Ok(())
    }

    /// A chunk from any segment but the damaged ones, by its bytes or as pieces of others.
    fn read_undamaged(
        &self,
        id: ChunkId,
        bytes: u32,
        damaged: &mut Vec<(PackId, u32)>,
    ) -> Option<Vec<u8>> {
        if let Some(chunk) =
            self.read_stored(id, damaged).filter(|chunk| chunk.len() == bytes as usize)
        {
            return Some(chunk);
        }
        let places = places_of(self.locator.index(), &id.0).ok()?;
        places.iter().filter(|place| place.is_splice).find_map(|place| {
            let splice = self.locator.splices().read(id, place).ok()?;
            let mut chunk = Vec::with_capacity(bytes as usize);
            for piece in splice.pieces() {
                let stored = self.read_stored(piece.chunk, damaged)?;
                chunk.extend_from_slice(piece.of(&stored).ok()?);
            }
            let fits =
                chunk.len() == bytes as usize && self.repository.keys().chunk_id(&chunk) == id;
            fits.then_some(chunk)
        })
    }

    /// A chunk that is stored by its bytes, from any segment but the damaged ones.
    fn read_stored(&self, id: ChunkId, damaged: &mut Vec<(PackId, u32)>) -> Option<Vec<u8>> {
        let mut decoder = SegmentDecoder::new().ok()?;
        let mut data = Vec::new();
        for place in places_of(self.locator.index(), &id.0).ok()? {
            let Place { pack, segment, slot, is_splice } = place;
            if is_splice || damaged.contains(&(pack, segment)) {
                continue;
            }
            let found = self.locator.found_at(self.repository, &id.0, &place).ok().flatten();
            let read = found.and_then(|found| {
                let storage = self.repository.storage().as_ref();
                found.pack.read_segment(storage, segment, &mut decoder, &mut data).ok()
            });
            let Some(entries) = read else {
                damaged.push((pack, segment));
                continue;
            };
            let before = entries.iter().take(slot as usize);
            let start = before.map(|entry| entry.bytes as usize).sum::<usize>();
            let end = start + entries.get(slot as usize).map_or(0, |entry| entry.bytes as usize);
            let chunk = data.get(start..end)?;
            if self.repository.keys().chunk_id(chunk) == id {
                return Some(chunk.to_vec());
            }
        }
        None
    }
}

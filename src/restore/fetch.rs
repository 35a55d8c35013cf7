//! Getting chunks out of packs: each segment is read once per window, in pack order, and decoded
//! on all cores; results arrive in any order.
//!
//! Invariants: every chunk is verified by its id and length before anybody sees it, whether it was
//! stored by its bytes or as pieces of others; memory is bounded by the window, the reads in flight
//! and the splices under way.

use super::reads::{Assembly, Goal, ReadRun, Request, WantedSegment, plan_reads, refuse_chunk};
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::entries::{Place, places_of};
use crate::repository::locate::Locator;
use crate::repository::lock;
use crate::repository::objects::refused;
use crate::repository::pack_reader::pack_name;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use diskvault_format::id::{ChunkId, PackId};
use diskvault_format::segment::SegmentDecoder;
use diskvault_format::splice::{Piece, Splice};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Most threads that read. On a disk it is two: one waits for the storage while the other copies.
const READING_THREADS_MAX: usize = 8;
/// Threads that decode beyond those the user gives: one of them waits for its turn to write to a
/// file.
const WAITING_THREADS: usize = 1;
/// Chunks that follow each other in a segment and in the disk are handed out together, up to so
/// many bytes: that many are still in the cache of a core.
const RUN_BYTES_MAX: usize = 256 << 10;

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

/// Receives verified chunks, from several threads: an offset, and one chunk or several that follow
/// each other from there on.
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

/// Chunks that could not be put together by the one splice that was asked for, and why.
pub type Refused = Vec<(ChunkId, Error)>;

/// Where chunks go, and what is told of those that do not.
pub(super) struct Delivery<'a> {
    /// Takes what is verified.
    pub sink: &'a ChunkSink<'a>,
    /// Gathers what was refused.
    pub refused: &'a Mutex<Refused>,
}

struct Shared<'a> {
    runs: Vec<ReadRun>,
    next: AtomicUsize,
    has_failed: AtomicBool,
    failure: Mutex<Option<Error>>,
    delivery: &'a Delivery<'a>,
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
        let requests = wanted.into_iter().map(|item| Request::new(item, None)).collect();
        // Nothing is refused that may come by any way.
        self.get(requests, sink).map(|_| ())
    }

    /// As [`Fetcher::fetch`], but puts each chunk together by the given splice and by nothing
    /// else. Tells which of them that did not work for.
    ///
    /// # Errors
    /// The storage's or the sink's first error.
    pub fn put_together(
        &self,
        wanted: Vec<(Wanted, Splice)>,
        sink: &ChunkSink<'_>,
    ) -> Result<Refused> {
        let request = |(item, splice)| Request::new(item, Some(splice));
        self.get(wanted.into_iter().map(request).collect(), sink)
    }

    fn get(&self, requests: Vec<Request>, sink: &ChunkSink<'_>) -> Result<Refused> {
        let refused = Mutex::default();
        let delivery = Delivery { sink, refused: &refused };
        let mut rest = requests;
        while !rest.is_empty() {
            let plan = plan_reads(self.repository, self.locator, rest)?;
            for (goal, error) in plan.failed {
                self.find_elsewhere(&delivery, &goal, None, &error)?;
            }
            self.run(plan.runs, &delivery)?;
            rest = plan.deferred;
        }
        Ok(refused.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn run(&self, runs: Vec<ReadRun>, delivery: &Delivery<'_>) -> Result<()> {
        let shared = Shared {
            runs,
            next: AtomicUsize::new(0),
            has_failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            delivery,
        };
        // At most this many reads wait to be decoded: 4 MiB each.
        let (send, receive) = bounded::<(usize, Vec<u8>)>(self.threads + 1);
        let (give_back, spare) = unbounded::<Vec<u8>>();
        std::thread::scope(|scope| {
            for _ in 0..self.repository.storage().calls_at_once().clamp(1, READING_THREADS_MAX) {
                let (send, spare) = (send.clone(), spare.clone());
                let shared = &shared;
                scope.spawn(move || self.read_runs(shared, &send, &spare));
            }
            drop(send);
            for _ in 0..self.threads + WAITING_THREADS {
                let (receive, give_back) = (receive.clone(), give_back.clone());
                let shared = &shared;
                scope.spawn(move || self.decode_runs(shared, &receive, &give_back));
            }
            drop(receive);
        });
        match lock(&shared.failure).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn read_runs(
        &self,
        shared: &Shared<'_>,
        send: &Sender<(usize, Vec<u8>)>,
        spare: &Receiver<Vec<u8>>,
    ) {
        loop {
            let number = shared.next.fetch_add(1, Ordering::Relaxed);
            let Some(run) = shared.runs.get(number) else { return };
            if shared.has_failed.load(Ordering::Relaxed) {
                return;
            }
            if let Err(error) = self.monitor.check_cancelled() {
                return shared.fail(error);
            }
            // Used again: filling new ones with zeros took 2 % of a restore.
            let mut stored = spare.try_recv().unwrap_or_default();
            let bytes = run.bytes as usize;
            stored.resize(stored.len().max(bytes), 0);
            let read = pack_name(run.pack.id).and_then(|name| {
                self.repository.storage().get_range(&name, run.start, &mut stored[..bytes])
            });
            match read {
                Ok(()) => {
                    if send.send((number, stored)).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let mut segments = run.segments.iter();
                    let found = segments.try_for_each(|segment| {
                        self.fetch_elsewhere(shared.delivery, segment, &error)
                    });
                    if let Err(error) = found {
                        return shared.fail(error);
                    }
                }
            }
        }
    }

    fn decode_runs(
        &self,
        shared: &Shared<'_>,
        receive: &Receiver<(usize, Vec<u8>)>,
        give_back: &Sender<Vec<u8>>,
    ) {
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
                    self.decode_segment(shared.delivery, segment, sealed, &mut decoder, &mut data);
                if let Err(error) = result {
                    shared.fail(error);
                    break;
                }
            }
            // Nobody wants it when the readers are done.
            let _ = give_back.send(stored);
        }
    }

    fn decode_segment(
        &self,
        delivery: &Delivery<'_>,
        segment: &WantedSegment,
        sealed: &mut [u8],
        decoder: &mut SegmentDecoder,
        data: &mut Vec<u8>,
    ) -> Result<()> {
        let entries = match segment.pack.decode(segment.ordinal, sealed, decoder, data) {
            Ok(entries) => entries,
            Err(error) => return self.fetch_elsewhere(delivery, segment, &error),
        };
        let lengths = entries.iter().map(|entry| entry.bytes);
        self.serve(delivery, segment.pack.id, &segment.uses, lengths, data)
    }

    /// Does what a segment was read for, whose entries of these lengths make up `data`.
    pub(super) fn serve(
        &self,
        delivery: &Delivery<'_>,
        pack: PackId,
        uses: &[(u32, Goal)],
        lengths: impl Iterator<Item = u32>,
        data: &[u8],
    ) -> Result<()> {
        let mut end = 0;
        let places: Vec<_> = lengths
            .map(|bytes| {
                let start = end;
                end += bytes as usize;
                start..end
            })
            .collect();
        let chunk = |slot: u32| places.get(slot as usize).and_then(|place| data.get(place.clone()));
        let mut verified: Option<u32> = None;
        let mut joined = Vec::new();
        let mut run = Run { fetcher: self, sink: delivery.sink, data, offset: 0, place: 0..0 };
        for (slot, goal) in uses {
            let (assembly, made) = match goal {
                Goal::Whole(item) => {
                    let known = verified == Some(*slot);
                    if let Err(error) = self.verify(pack, item, chunk(*slot), known) {
                        // Its pack lists an id beside other bytes; another may have the right ones.
                        self.locator.met_damaged(pack);
                        self.find_elsewhere(delivery, goal, None, &error)?;
                        continue;
                    }
                    verified = Some(*slot);
                    run.add(item.offset, places[*slot as usize].clone())?;
                    continue;
                }
                Goal::Local { assembly, slots } => {
                    joined.clear();
                    let made =
                        slots.iter().zip(assembly.splice.pieces()).try_for_each(|(slot, piece)| {
                            joined.extend_from_slice(take(pack, assembly, piece, chunk(*slot))?);
                            Ok(())
                        });
                    let made = made.and_then(|()| {
                        self.hand_out(delivery.sink, pack, &assembly.item, &joined)?;
                        assembly.end();
                        Ok(())
                    });
                    (assembly, made)
                }
                Goal::Piece { assembly, number } => {
                    let piece = &assembly.splice.pieces()[*number];
                    let made = take(pack, assembly, piece, chunk(*slot)).and_then(|bytes| {
                        let Some(whole) = assembly.add(*number, bytes) else { return Ok(()) };
                        self.hand_out(delivery.sink, pack, &assembly.item, &whole)
                            .inspect_err(|_| assembly.begin_again())
                    });
                    (assembly, made)
                }
            };
            match made {
                Err(error) if error.kind().is_finding() => {
                    self.rescue(delivery, assembly, Vec::new(), &error)?;
                }
                other => other?,
            }
        }
        run.hand_out()
    }

    /// Verifies a chunk and hands it out.
    fn hand_out(
        &self,
        sink: &ChunkSink<'_>,
        pack: PackId,
        item: &Wanted,
        chunk: &[u8],
    ) -> Result<()> {
        self.verify(pack, item, Some(chunk), false)?;
        sink(item.offset, chunk)?;
        self.monitor.advance(chunk.len() as u64);
        Ok(())
    }

    /// Verifies a chunk's length, and its bytes unless they are known to have its id.
    fn verify(&self, pack: PackId, item: &Wanted, chunk: Option<&[u8]>, known: bool) -> Result<()> {
        if chunk.is_some_and(|chunk| chunk.len() != item.bytes as usize) {
            let why = "it has another length (rules M-8 and T-7)";
            return Err(refuse_chunk(pack, item, why));
        }
        let fits = |chunk: &&[u8]| known || self.repository.keys().chunk_id(chunk) == item.id;
        if chunk.filter(fits).is_none() {
            return Err(refuse_chunk(pack, item, "its bytes have another id (rule S-9)"));
        }
        Ok(())
    }

    /// Gets what a damaged segment was read for from others, if it was stored again; fails with
    /// what was wrong there otherwise.
    fn fetch_elsewhere(
        &self,
        delivery: &Delivery<'_>,
        segment: &WantedSegment,
        cause: &Error,
    ) -> Result<()> {
        if !cause.kind().is_finding() {
            return Err(again(cause));
        }
        let damaged = (segment.pack.id, segment.ordinal);
        self.locator.met_damaged(segment.pack.id);
        let mut goals = segment.uses.iter().map(|(_, goal)| goal);
        goals.try_for_each(|goal| self.find_elsewhere(delivery, goal, Some(damaged), cause))
    }

    fn find_elsewhere(
        &self,
        delivery: &Delivery<'_>,
        goal: &Goal,
        damaged: Option<(PackId, u32)>,
        cause: &Error,
    ) -> Result<()> {
        let mut damaged: Vec<_> = damaged.into_iter().collect();
        let item = match goal {
            Goal::Whole(item) => item,
            Goal::Local { assembly, .. } | Goal::Piece { assembly, .. } => {
                return self.rescue(delivery, assembly, damaged, cause);
            }
        };
        let found = self.read_undamaged(item, &mut damaged).ok_or_else(|| again(cause))?;
        (delivery.sink)(item.offset, &found)?;
        self.monitor.advance(u64::from(item.bytes));
        Ok(())
    }

    /// Gets a chunk that could not be put together as planned: by the same pieces from elsewhere,
    /// or by any other way if it may come so.
    fn rescue(
        &self,
        delivery: &Delivery<'_>,
        assembly: &Assembly,
        mut damaged: Vec<(PackId, u32)>,
        cause: &Error,
    ) -> Result<()> {
        if !assembly.end() {
            return Ok(());
        }
        let item = &assembly.item;
        let mut found = self.read_pieces(item, &assembly.splice, &mut damaged);
        if found.is_none() && !assembly.is_exclusive {
            found = self.read_undamaged(item, &mut damaged);
        }
        let Some(found) = found else {
            if !assembly.is_exclusive {
                return Err(again(cause));
            }
            lock(delivery.refused).push((item.id, again(cause)));
            return Ok(());
        };
        (delivery.sink)(item.offset, &found)?;
        self.monitor.advance(u64::from(item.bytes));
        Ok(())
    }

    /// A chunk from any segment but the damaged ones, by its bytes or as pieces of others; also
    /// from packs that were put since the listing.
    fn read_undamaged(&self, item: &Wanted, damaged: &mut Vec<(PackId, u32)>) -> Option<Vec<u8>> {
        if let Some(chunk) = self.read_known(item, damaged) {
            return Some(chunk);
        }
        let is_new = self.locator.look_again(self.repository).ok()?;
        is_new.then(|| self.read_known(item, damaged)).flatten()
    }

    fn read_known(&self, item: &Wanted, damaged: &mut Vec<(PackId, u32)>) -> Option<Vec<u8>> {
        let stored = self.read_stored(item.id, damaged);
        if let Some(chunk) = stored.filter(|chunk| chunk.len() == item.bytes as usize) {
            return Some(chunk);
        }
        let places = places_of(self.locator.index(), &item.id.0).ok()?;
        places.iter().filter(|place| place.is_splice).find_map(|place| {
            let splice = self.locator.splices().read(item.id, place).ok()?;
            self.read_pieces(item, &splice, damaged)
        })
    }

    /// A chunk put together by this splice, out of any segments but the damaged ones.
    fn read_pieces(
        &self,
        item: &Wanted,
        splice: &Splice,
        damaged: &mut Vec<(PackId, u32)>,
    ) -> Option<Vec<u8>> {
        let mut chunk = Vec::new();
        for piece in splice.pieces() {
            let stored = self.read_stored(piece.chunk, damaged)?;
            chunk.extend_from_slice(piece.of(&stored).ok()?);
        }
        let fits = chunk.len() == item.bytes as usize
            && self.repository.keys().chunk_id(&chunk) == item.id;
        fits.then_some(chunk)
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
            let fits = |chunk: &&[u8]| self.repository.keys().chunk_id(chunk) == id;
            if let Some(chunk) = data.get(start..end).filter(fits) {
                return Some(chunk.to_vec());
            }
        }
        None
    }
}

/// Verified chunks of a segment that follow each other, there and where they go to.
struct Run<'a> {
    fetcher: &'a Fetcher<'a>,
    sink: &'a ChunkSink<'a>,
    data: &'a [u8],
    offset: u64,
    place: Range<usize>,
}

impl Run<'_> {
    /// Adds a chunk; hands out those before it if it does not follow them.
    fn add(&mut self, offset: u64, place: Range<usize>) -> Result<()> {
        let follows = self.place.end == place.start
            && self.offset + self.place.len() as u64 == offset
            && self.place.len() + place.len() <= RUN_BYTES_MAX;
        if follows {
            self.place.end = place.end;
            return Ok(());
        }
        self.hand_out()?;
        (self.offset, self.place) = (offset, place);
        Ok(())
    }

    fn hand_out(&mut self) -> Result<()> {
        if self.place.is_empty() {
            return Ok(());
        }
        (self.sink)(self.offset, &self.data[self.place.clone()])?;
        self.fetcher.monitor.advance(self.place.len() as u64);
        Ok(())
    }
}

fn again(error: &Error) -> Error {
    Error::new(error.kind(), error.full_text())
}

/// The bytes that a piece takes of its chunk.
fn take<'a>(
    pack: PackId,
    assembly: &Assembly,
    piece: &Piece,
    chunk: Option<&'a [u8]>,
) -> Result<&'a [u8]> {
    let why = "a piece ends behind its chunk (rule S-12)";
    piece.of(chunk.unwrap_or_default()).map_err(|_| refuse_chunk(pack, &assembly.item, why))
}

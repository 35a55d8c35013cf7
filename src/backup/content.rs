//! The pipeline for what is cut by content: streams, misaligned disks, allocation lists.
//!
//! One thread reads and cuts; the workers compute chunk ids, a batch of some 1 MiB at a time;
//! the calling thread takes the batches in order, computes digests, pushes what is new and
//! builds the map.
//!
//! Invariants: map and digests depend on the bytes alone, not on how they arrived or on timing;
//! memory is a fixed number of batches, which are used again and again; when storing fails the
//! cutting thread ends, also if its pipe gives nothing.

use super::Context;
use super::digests::Digests;
use crate::chunking::{ContentCutter, ContentParameters, Gear, Piece};
use crate::error::{Error, ErrorKind, Result};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use diskvault_format::crypto::Keys;
use diskvault_format::limits::DISK_BYTES_MAX;
use diskvault_format::manifest::{Chunking, Statistics, StreamReference};
use diskvault_format::map::map_root;
use diskvault_format::pack::PackKind;
use diskvault_format::segment::EntryKind;
use diskvault_format::stream_map::{StreamEntry, StreamMapBuilder};
use rayon::ThreadPool;
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A batch goes to a worker when it holds so many bytes of chunks: some 13 chunks, so that
/// handing over costs nothing beside hashing.
const BATCH_BYTES: usize = 1 << 20;
/// Or so many pieces, which only zeros between short chunks can reach.
const BATCH_PIECES: usize = 1024;

/// How often the gathering thread looks whether storing has failed, while nothing comes.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What the cutting thread knows of a piece.
#[derive(Clone, Copy)]
enum Length {
    Zeros(u64),
    Chunk(u32),
}

/// Pieces on their way to a worker: the chunks' bytes stand one behind the other.
#[derive(Default)]
struct Batch {
    number: u64,
    lengths: Vec<Length>,
    data: Vec<u8>,
}

struct Hashed {
    batch: Batch,
    entries: Vec<StreamEntry>,
}

/// What was cut and stored.
pub(crate) struct Cut {
    /// The map.
    pub content: StreamReference,
    /// The digests that were asked for.
    pub digests: Digests,
    /// New, deduplicated and zero bytes.
    pub statistics: Statistics,
}

/// Cuts what `feed` gives and stores it in packs of the kind `packs`.
///
/// # Errors
/// What `feed`, the cutter or the writer say; `Source` beyond 2^60 bytes.
pub(crate) fn cut<T: Send>(
    context: &mut Context<'_>,
    parameters: ContentParameters,
    digests: Digests,
    packs: PackKind,
    feed: impl FnOnce(&mut Cutting) -> Result<T> + Send,
) -> Result<(Cut, T)> {
    let keys = context.repository.keys().clone();
    let cutter = ContentCutter::new(parameters, Gear::from_key(keys.gear_key()))?;
    let (min, average) = (parameters.bytes_min, parameters.bytes_average);
    let chunking = Chunking::content(min, average, parameters.bytes_max);
    let batches = context.pool.current_num_threads() + 4;
    let (free, take_free) = bounded(batches);
    for _ in 0..batches {
        // Filled once; a full channel cannot happen, since it holds exactly so many.
        let _ = free.send(Batch::default());
    }
    let (hashed, take_hashed) = unbounded();
    let (pool, hashing_keys) = (context.pool.clone(), keys.clone());
    let outlet = Outlet { next: 0, open: None, take_free, hashed, keys: hashing_keys, pool };
    let stopped = Arc::new(AtomicBool::new(false));
    let is_stopped = stopped.clone();
    std::thread::scope(|scope| {
        let cutting = scope.spawn(move || {
            let mut cutting = Cutting { cutter, outlet, stopped: is_stopped };
            let fed = feed(&mut cutting)?;
            cutting.finish().map(|()| fed)
        });
        let gatherer = Gatherer {
            context,
            keys: &keys,
            map: StreamMapBuilder::new(),
            digests,
            statistics: Statistics::default(),
            packs,
        };
        let gathered = gatherer.run(&take_hashed, &free, chunking);
        // Ends a cutter that waits for its input or for a free batch.
        stopped.store(gathered.is_err(), Ordering::Relaxed);
        drop((take_hashed, free));
        let fed = cutting.join().unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Failed, "cannot cut a stream: a thread panicked"))
        });
        match (gathered, fed) {
            (Ok(cut), Ok(fed)) => Ok((cut, fed)),
            // Of two the gatherer's is the cause: the cutter only notices that it stopped.
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        }
    })
}

/// The cutting thread's end: takes bytes in order.
pub(crate) struct Cutting {
    cutter: ContentCutter,
    outlet: Outlet,
    stopped: Arc<AtomicBool>,
}

impl Cutting {
    /// True once nobody needs any more bytes: for a reader that waits.
    pub(crate) fn stopped(&self) -> Arc<AtomicBool> {
        self.stopped.clone()
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// `Failed` if the other end has stopped.
    pub(crate) fn push(&mut self, data: &[u8]) -> Result<()> {
        let outlet = &mut self.outlet;
        self.cutter.push(data, &mut |piece| outlet.take(piece))
    }

    /// Takes so many zeros.
    ///
    /// # Errors
    /// As [`Cutting::push`].
    pub(crate) fn push_zeros(&mut self, bytes: u64) -> Result<()> {
        let outlet = &mut self.outlet;
        self.cutter.push_zeros(bytes, &mut |piece| outlet.take(piece))
    }

    /// Reads once; 0 is the end.
    ///
    /// # Errors
    /// `Source` if the reader fails, or as [`Cutting::push`].
    pub(crate) fn fill_from(&mut self, reader: &mut dyn Read) -> Result<usize> {
        let outlet = &mut self.outlet;
        self.cutter.fill_from(reader, &mut |piece| outlet.take(piece))
    }

    fn finish(self) -> Result<()> {
        let Cutting { cutter, mut outlet, .. } = self;
        cutter.finish(&mut |piece| outlet.take(piece))?;
        outlet.emit();
        Ok(())
    }
}

/// Copies pieces into batches and hands these to the workers.
struct Outlet {
    next: u64,
    open: Option<Batch>,
    take_free: Receiver<Batch>,
    hashed: Sender<Hashed>,
    keys: Arc<Keys>,
    pool: Arc<ThreadPool>,
}

impl Outlet {
    fn take(&mut self, piece: Piece<'_>) -> Result<()> {
        if self.open.is_none() {
            let stopped = |_| Error::new(ErrorKind::Failed, "the backup stopped");
            let mut batch = self.take_free.recv().map_err(stopped)?;
            batch.number = self.next;
            self.next += 1;
            self.open = Some(batch);
        }
        let Some(batch) = &mut self.open else { return Ok(()) };
        match piece {
            Piece::Zeros(bytes) => batch.lengths.push(Length::Zeros(bytes)),
            Piece::Chunk(data) => {
                batch.lengths.push(Length::Chunk(data.len() as u32));
                batch.data.extend_from_slice(data);
            }
        }
        if batch.data.len() >= BATCH_BYTES || batch.lengths.len() >= BATCH_PIECES {
            self.emit();
        }
        Ok(())
    }

    fn emit(&mut self) {
        let Some(batch) = self.open.take() else { return };
        let (keys, hashed) = (self.keys.clone(), self.hashed.clone());
        self.pool.spawn(move || {
            // Nobody listens any more only after a failure.
            let _ = hashed.send(hash(&keys, batch));
        });
    }
}

/// What a worker does.
fn hash(keys: &Keys, batch: Batch) -> Hashed {
    let mut rest = &batch.data[..];
    let mut entry = |length: &Length| match *length {
        Length::Zeros(bytes) => StreamEntry::Zeros(bytes),
        Length::Chunk(bytes) => {
            let (data, behind) = rest.split_at(bytes as usize);
            rest = behind;
            StreamEntry::Chunk { bytes, id: keys.chunk_id(data) }
        }
    };
    let entries = batch.lengths.iter().map(&mut entry).collect();
    Hashed { batch, entries }
}

/// Takes batches in order, stores what is new and builds the map.
struct Gatherer<'a, 'b> {
    context: &'a mut Context<'b>,
    keys: &'a Keys,
    map: StreamMapBuilder,
    digests: Digests,
    statistics: Statistics,
    packs: PackKind,
}

impl Gatherer<'_, '_> {
    fn run(
        mut self,
        take_hashed: &Receiver<Hashed>,
        free: &Sender<Batch>,
        chunking: Chunking,
    ) -> Result<Cut> {
        let mut waiting = BTreeMap::new();
        let mut next = 0;
        loop {
            let hashed = match take_hashed.recv_timeout(LOOK_INTERVAL) {
                Ok(hashed) => hashed,
                Err(RecvTimeoutError::Disconnected) => return self.finish(chunking),
                Err(RecvTimeoutError::Timeout) => {
                    self.context.writer.check()?;
                    continue;
                }
            };
            waiting.insert(hashed.batch.number, hashed);
            while let Some(Hashed { mut batch, entries }) = waiting.remove(&next) {
                next += 1;
                let mut start = 0;
                for entry in entries {
                    let end = match entry {
                        StreamEntry::Chunk { bytes, .. } => start + bytes as usize,
                        StreamEntry::Zeros(_) => start,
                    };
                    self.take(entry, &batch.data[start..end])?;
                    start = end;
                }
                batch.lengths.clear();
                batch.data.clear();
                // The cutter is gone once it has handed out everything.
                let _ = free.send(batch);
            }
        }
    }

    fn take(&mut self, entry: StreamEntry, data: &[u8]) -> Result<()> {
        match entry {
            StreamEntry::Zeros(bytes) => {
                self.digests.update_zeros(bytes);
                self.statistics.zero_bytes += bytes;
            }
            StreamEntry::Chunk { bytes, id } => {
                self.digests.update(data);
                if self.context.writer.push(self.packs, EntryKind::Chunk, id.0, data)? {
                    self.statistics.new_bytes += u64::from(bytes);
                    self.statistics.new_chunks += 1;
                } else {
                    self.statistics.deduplicated_bytes += u64::from(bytes);
                }
            }
        }
        if self.map.size() + entry.bytes() > DISK_BYTES_MAX {
            return Err(Error::new(ErrorKind::Source, "cannot store a stream beyond 2^60 bytes"));
        }
        let writer = &mut self.context.writer;
        self.map.push(self.keys, entry, &mut |page, bytes| {
            writer.push(PackKind::Map, EntryKind::Page, page.0, &bytes).map(|_| ())
        })
    }

    fn finish(self, chunking: Chunking) -> Result<Cut> {
        let bytes = self.map.size();
        let writer = &mut self.context.writer;
        let top = self.map.finish(self.keys, &mut |page, bytes| {
            writer.push(PackKind::Map, EntryKind::Page, page.0, &bytes).map(|_| ())
        })?;
        let root = map_root(self.keys, bytes, &chunking, top);
        let content = StreamReference { bytes, chunking, root, top };
        Ok(Cut { content, digests: self.digests, statistics: self.statistics })
    }
}

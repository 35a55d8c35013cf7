//! A disk or stream of a point, to be read anywhere at any time: for servers, mounts and whoever
//! looks into a disk.
//!
//! Invariants: every byte that is handed out belongs to a chunk that was verified by its id just
//! before; memory is the kept segments, whatever is read; what cannot be read is an error of that
//! read alone.

mod ahead;

pub use ahead::Reader;

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::entries::places_of;
use crate::repository::locate::Locator;
use crate::repository::lock;
use crate::repository::map_cursor::{Cursor, Run};
use crate::repository::map_reader::MapReader;
use crate::repository::segment_cache::{DecodedSegment, SegmentCache};
use crate::restore::Part;
use crate::restore::allocated::{Boundaries, read_allocation};
use crate::restore::fetch::{Fetcher, Wanted};
use diskvault_format::id::{ChunkId, PackId, RepositoryId};
use diskvault_format::manifest::{DiskRecord, StreamReference};
use rayon::ThreadPool;
use rayon::prelude::*;
use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Decoded segments that all views of a repository keep: 256 MiB where segments have 4 MiB.
const SEGMENTS_KEPT: usize = 64;
/// Chunks kept that were put together of others, or found past damage: 16 MiB at 32 KiB each.
const CHUNKS_KEPT: usize = 512;

/// A repository that disks are read from, shared by all views of it.
pub struct Vault {
    repository: Arc<Repository>,
    locator: Arc<Locator>,
    pool: Arc<ThreadPool>,
    monitor: Arc<dyn Monitor + Send + Sync>,
    pages: Arc<SegmentCache>,
    segments: SegmentCache,
    /// The one used last is at the back.
    chunks: Mutex<VecDeque<(ChunkId, Arc<Vec<u8>>)>>,
}

/// A chunk as it lies in memory.
enum Chunk {
    InSegment(Arc<DecodedSegment>, u32),
    Alone(Arc<Vec<u8>>),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::InSegment(segment, slot) => {
                segment.entry(*slot).map(|(_, bytes)| bytes).unwrap_or_default()
            }
            Chunk::Alone(bytes) => bytes,
        }
    }
}

impl Vault {
    /// Reads through `locator`, which may look again; decodes in `pool`.
    pub fn new(
        repository: Arc<Repository>,
        locator: Arc<Locator>,
        pool: Arc<ThreadPool>,
        monitor: Arc<dyn Monitor + Send + Sync>,
    ) -> Vault {
        Vault {
            repository,
            locator,
            pool,
            monitor,
            pages: MapReader::new_cache(),
            segments: SegmentCache::new(SEGMENTS_KEPT),
            chunks: Mutex::default(),
        }
    }

    /// The repository's id.
    pub fn repository_id(&self) -> RepositoryId {
        self.repository.id()
    }

    /// The repository.
    pub fn repository(&self) -> &Arc<Repository> {
        &self.repository
    }

    fn fetcher(&self) -> Fetcher<'_> {
        let threads = self.pool.current_num_threads();
        let (repository, locator) = (self.repository.as_ref(), self.locator.as_ref());
        Fetcher { repository, locator, threads, monitor: &crate::monitor::Silent }
    }

    /// A verified chunk.
    fn chunk(&self, wanted: Wanted) -> Result<Chunk> {
        if let Some(kept) = self.kept(wanted.id) {
            return Ok(Chunk::Alone(kept));
        }
        if let Some(chunk) = self.chunk_in_segment(wanted)? {
            return Ok(chunk);
        }
        // A splice, or something is wrong with the segment: the long way.
        let found = Mutex::new(Vec::new());
        let whole = Wanted { offset: 0, ..wanted };
        self.fetcher().fetch(vec![whole], &|_, bytes| {
            *lock(&found) = bytes.to_vec();
            Ok(())
        })?;
        let chunk = Arc::new(std::mem::take(&mut *lock(&found)));
        let mut chunks = lock(&self.chunks);
        if chunks.len() >= CHUNKS_KEPT {
            chunks.pop_front();
        }
        chunks.push_back((wanted.id, chunk.clone()));
        Ok(Chunk::Alone(chunk))
    }

    fn kept(&self, id: ChunkId) -> Option<Arc<Vec<u8>>> {
        let mut chunks = lock(&self.chunks);
        let place = chunks.iter().position(|(kept, _)| *kept == id)?;
        let found = chunks.remove(place)?;
        let chunk = found.1.clone();
        chunks.push_back(found);
        Some(chunk)
    }

    /// The segment in which the chunk lies by its bytes; `None` if it has to come another way.
    fn segment_of(&self, id: ChunkId) -> Result<Option<(PackId, u32, u32)>> {
        let places = places_of(self.locator.index(), &id.0)?;
        let place = places.first().filter(|place| !place.is_splice);
        Ok(place.map(|place| (place.pack, place.segment, place.slot)))
    }

    fn chunk_in_segment(&self, wanted: Wanted) -> Result<Option<Chunk>> {
        let Some((pack, ordinal, slot)) = self.segment_of(wanted.id)? else { return Ok(None) };
        let Some(segment) = self.load(pack, ordinal)? else { return Ok(None) };
        let chunk = Chunk::InSegment(segment, slot);
        let bytes = chunk.bytes();
        let fits = bytes.len() == wanted.bytes as usize
            && self.repository.keys().chunk_id(bytes) == wanted.id;
        Ok(fits.then_some(chunk))
    }

    /// A decoded segment; `None` if it is damaged or gone.
    fn load(&self, pack: PackId, ordinal: u32) -> Result<Option<Arc<DecodedSegment>>> {
        let storage = self.repository.storage().as_ref();
        let opened = self.locator.pack(&self.repository, pack);
        let read = opened.and_then(|pack| {
            if pack.footer.segments.len() <= ordinal as usize {
                let text = format!("cannot find segment {ordinal} of pack {}", pack.id);
                return Err(Error::new(ErrorKind::Damage, text));
            }
            self.segments.get(storage, &pack, ordinal)
        });
        match read {
            Ok(segment) => Ok(Some(segment)),
            Err(error) if error.kind().is_finding() || error.kind() == ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Which map a view reads.
enum Content {
    Disk(Box<DiskRecord>),
    Stream(StreamReference),
}

/// A part of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its first byte.
    pub start: u64,
    /// The byte behind its last, greater.
    pub end: u64,
    /// True if the map says that it is zeros; then it is.
    pub is_zero: bool,
    /// True if the source had storage there, as far as it could tell; if it could not, what is
    /// zeros had none. What has none is zeros.
    pub is_allocated: bool,
}

/// A disk or stream that can be read anywhere, from several threads.
pub struct View {
    vault: Arc<Vault>,
    name: String,
    content: Content,
    allocation: Option<Boundaries>,
}

impl View {
    /// Opens a part of a point.
    ///
    /// # Errors
    /// `Damage` if the root of its map does not fit, or what the storage says.
    pub fn open(vault: &Arc<Vault>, part: Part<'_>) -> Result<View> {
        let mut allocation = None;
        let content = match part {
            Part::Disk(disk) => {
                let fetcher = Fetcher { monitor: vault.monitor.as_ref(), ..vault.fetcher() };
                let reader = MapReader::new(&vault.repository, &vault.locator);
                allocation = read_allocation(&fetcher, &reader, disk)?;
                Content::Disk(Box::new(disk.clone()))
            }
            Part::Stream(stream) => Content::Stream(stream.content.clone()),
        };
        let view = View { vault: vault.clone(), name: part.name().to_owned(), content, allocation };
        view.with_cursor(&mut |_| Ok(()))?;
        Ok(view)
    }

    /// The disk's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        match &self.content {
            Content::Disk(disk) => disk.size,
            Content::Stream(stream) => stream.bytes,
        }
    }

    /// Reads from `offset` on until `buffer` is full.
    ///
    /// # Errors
    /// `Damage` if a chunk or map page of the range cannot be read anywhere; `Usage` for a range
    /// that ends behind the disk.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let range = self.check_range(offset, buffer.len() as u64)?;
        let mut pieces: Vec<(Wanted, Range<usize>, &mut [u8])> = Vec::new();
        let mut rest = buffer;
        self.each_run(range, &mut |run| {
            let (piece, behind) =
                std::mem::take(&mut rest).split_at_mut((run.end - run.start) as usize);
            rest = behind;
            match run.wanted {
                None => piece.fill(0),
                Some(wanted) => {
                    let start = (run.start - wanted.offset) as usize;
                    pieces.push((wanted, start..start + piece.len(), piece));
                }
            }
            Ok(())
        })?;
        let read = |(wanted, within, piece): (Wanted, Range<usize>, &mut [u8])| {
            let chunk = self.vault.chunk(wanted).map_err(|error| self.at(error, wanted.offset))?;
            piece.copy_from_slice(&chunk.bytes()[within]);
            Ok(())
        };
        // A handful is read sooner by the thread that asks.
        if pieces.len() <= 4 {
            return pieces.into_iter().try_for_each(read);
        }
        self.vault.pool.install(|| pieces.into_par_iter().try_for_each(read))
    }

    /// Calls `each` with the parts of a range, ascending and without gaps; neighbours may be alike.
    ///
    /// # Errors
    /// As [`View::read_at`], or what `each` says.
    pub fn extents(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        let range = self.check_range(range.start, range.end.saturating_sub(range.start))?;
        self.each_run(range, &mut |run| {
            let is_zero = run.wanted.is_none();
            let Some(allocation) = &self.allocation else {
                let is_allocated = !is_zero;
                return each(Extent { start: run.start, end: run.end, is_zero, is_allocated });
            };
            allocation.each(run.start, run.end, &mut |start, end, is_allocated| {
                each(Extent { start, end, is_zero, is_allocated })
            })
        })
    }

    /// Loads the segments that a range lies in. Whatever goes wrong shows when it is read.
    fn prefetch(&self, range: Range<u64>) {
        let mut segments = HashSet::new();
        let found = self.each_run(range, &mut |run| {
            if let Some(wanted) = run.wanted
                && let Some((pack, ordinal, _)) = self.vault.segment_of(wanted.id)?
            {
                segments.insert((pack, ordinal));
            }
            Ok(())
        });
        if found.is_ok() {
            segments.into_par_iter().for_each(|(pack, ordinal)| {
                let _ = self.vault.load(pack, ordinal);
            });
        }
    }

    fn check_range(&self, offset: u64, bytes: u64) -> Result<Range<u64>> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.size() => Ok(offset..end),
            _ => {
                let (name, size) = (self.name.escape_debug(), self.size());
                let text = format!(
                    "cannot read {bytes} bytes of {name} at offset {offset}: it has {size} bytes"
                );
                Err(Error::new(ErrorKind::Usage, text))
            }
        }
    }

    fn at(&self, error: Error, offset: u64) -> Error {
        let name = self.name.escape_debug();
        let text = format!("cannot read {name} at offset {offset}: {}", error.full_text());
        Error::new(error.kind(), text)
    }

    fn with_cursor(&self, work: &mut dyn FnMut(Cursor<'_>) -> Result<()>) -> Result<()> {
        let vault = &self.vault;
        let pages = vault.pages.clone();
        let reader = MapReader::with_cache(&vault.repository, &vault.locator, pages);
        let cursor = match &self.content {
            Content::Disk(disk) => Cursor::new(&reader, disk)?,
            Content::Stream(stream) => Cursor::of_stream(&reader, stream)?,
        };
        work(cursor)
    }

    fn each_run(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(ViewRun) -> Result<()>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.with_cursor(&mut |mut cursor| {
            let mut start = range.start;
            while start < range.end {
                let Some(run) = cursor.next_run(start)? else {
                    let text = format!("cannot read {}: its map is too short", self.name);
                    return Err(Error::new(ErrorKind::Damage, text));
                };
                let end = run.end.min(range.end);
                each(ViewRun { start, end, wanted: wanted_of(&run) })?;
                start = end;
            }
            Ok(())
        })
    }
}

/// A chunk or zeros, clipped to what is read.
struct ViewRun {
    start: u64,
    end: u64,
    wanted: Option<Wanted>,
}

fn wanted_of(run: &Run) -> Option<Wanted> {
    run.chunk.map(|(id, offset)| Wanted { offset, bytes: (run.end - offset) as u32, id })
}

//! Runs: immutable files of sorted 24-byte records, and the merge that keeps them few.
//!
//! Invariant: a file that [`Run::open`] accepts has the size, header and fence that its writer
//! gave it; its records ascend strictly. Records themselves are covered by a checksum that is
//! looked at when the file is read as a whole: by a merge and by [`Run::verify`].
//!
//! Layout (little-endian): header of 96 bytes (magic 8, version u32, fence bits u32, count u64,
//! BLAKE3 of the records 32, BLAKE3 of these 56 bytes and the fence 32, zeros 8), records,
//! fence (2^bits + 1 times u32: how many records have smaller leading bits).

use crate::error::{Error, ErrorKind, Result};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of one record: prefix 16, pack ordinal 4, position 4, all big-endian, so that the
/// order of the bytes is the order of the records.
pub const RECORD_BYTES: usize = 24;
/// Entries kept in RAM before they become a run: 6 MiB of file, about 10 MiB of RAM.
pub const PENDING_MAX: u64 = 262_144;

const MAGIC: &[u8; 8] = b"dvaultRN";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 96;
const HEADER_HASHED: usize = 56;
/// 65,536 buckets cap the fence at 256 KiB of RAM a run, whatever its length.
const FENCE_BITS_MAX: u32 = 16;
/// Most records of one look-up read: 4,080 bytes. In a bucket of n records interpolation errs
/// by sqrt(n)/2 at most (one sigma), so 4 sqrt(n) records round the guess hold the place, and
/// one read does up to buckets of 1,800 records: runs of 120 million.
const WINDOW: u64 = 170;
/// Records of one sequential read or write: 192 KiB.
const STREAM: u64 = 8192;

/// One entry of the index as it is stored; ordered by prefix, pack, position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record([u8; RECORD_BYTES]);

impl Record {
    /// Joins the parts; `position` is (segment << 12 | slot).
    pub fn new(prefix: &[u8; 16], ordinal: u32, position: u32) -> Record {
        let mut bytes = [0_u8; RECORD_BYTES];
        bytes[..16].copy_from_slice(prefix);
        bytes[16..20].copy_from_slice(&ordinal.to_be_bytes());
        bytes[20..].copy_from_slice(&position.to_be_bytes());
        Record(bytes)
    }

    /// The leading 16 bytes of the chunk id.
    pub fn prefix(&self) -> &[u8] {
        &self.0[..16]
    }

    /// The local number of the pack.
    pub fn ordinal(&self) -> u32 {
        big_endian(&self.0[16..20])
    }

    /// (segment << 12 | slot) in the pack.
    pub fn position(&self) -> u32 {
        big_endian(&self.0[20..])
    }
}

fn big_endian(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |value, &byte| value << 8 | u32::from(byte))
}

fn leading(prefix: &[u8]) -> u64 {
    prefix.iter().take(8).fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Damage, format!("cannot use index run {}: {what}", path.display()))
}

fn failed(verb: &str, path: &Path, cause: std::io::Error) -> Error {
    Error::io(ErrorKind::Failed, format!("cannot {verb} index run {}", path.display()), cause)
}

/// Writes one run; a file that was not finished is removed again.
pub struct RunWriter {
    file: Option<File>,
    path: PathBuf,
    buffer: Vec<u8>,
    hasher: blake3::Hasher,
    histogram: Vec<u32>,
    last: Option<Record>,
    count: u64,
}

impl RunWriter {
    /// Starts a new file at `path`.
    ///
    /// # Errors
    /// Fails if the file exists or cannot be created.
    pub fn create(path: PathBuf) -> Result<RunWriter> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
        let mut file = file.map_err(|cause| failed("create", &path, cause))?;
        file.write_all(&[0; HEADER_BYTES]).map_err(|cause| failed("write", &path, cause))?;
        Ok(RunWriter {
            file: Some(file),
            path,
            buffer: Vec::with_capacity(STREAM as usize * RECORD_BYTES),
            hasher: blake3::Hasher::new(),
            histogram: vec![0; 1 << FENCE_BITS_MAX],
            last: None,
            count: 0,
        })
    }

    /// Appends a record.
    ///
    /// # Errors
    /// Fails if it does not follow the record before it, if there are 2^32 already, or if the
    /// file cannot be written.
    pub fn push(&mut self, record: Record) -> Result<()> {
        if self.last.is_some_and(|last| last >= record) || self.count >= u64::from(u32::MAX) {
            return Err(damaged(&self.path, "records are out of order or too many"));
        }
        self.last = Some(record);
        self.count += 1;
        self.histogram[(leading(record.prefix()) >> (64 - FENCE_BITS_MAX)) as usize] += 1;
        self.buffer.extend_from_slice(&record.0);
        if self.buffer.len() >= STREAM as usize * RECORD_BYTES { self.drain() } else { Ok(()) }
    }

    fn drain(&mut self) -> Result<()> {
        self.hasher.update(&self.buffer);
        if let Some(file) = &mut self.file {
            file.write_all(&self.buffer).map_err(|cause| failed("write", &self.path, cause))?;
        }
        self.buffer.clear();
        Ok(())
    }

    /// Completes the file; `None` (and no file) if it holds no record.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn finish(mut self) -> Result<Option<Run>> {
        if self.count == 0 {
            return Ok(None);
        }
        self.drain()?;
        // About 256 records a bucket, until the cap of the fence is reached.
        let bits = (1..FENCE_BITS_MAX).find(|bits| self.count >> bits <= 256);
        let bits = bits.unwrap_or(FENCE_BITS_MAX);
        let mut fence = Vec::with_capacity((1 << bits) + 1);
        let mut before = 0_u32;
        fence.push(0);
        for bucket in self.histogram.chunks(1 << (FENCE_BITS_MAX - bits)) {
            before += bucket.iter().sum::<u32>();
            fence.push(before);
        }
        let fence_bytes: Vec<u8> = fence.iter().flat_map(|at| at.to_le_bytes()).collect();
        let mut header = [0_u8; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&bits.to_le_bytes());
        header[16..24].copy_from_slice(&self.count.to_le_bytes());
        header[24..HEADER_HASHED].copy_from_slice(self.hasher.finalize().as_bytes());
        let check = header_check(&header, &fence_bytes);
        header[HEADER_HASHED..HEADER_HASHED + 32].copy_from_slice(&check);
        let Some(mut file) = self.file.take() else {
            return Ok(None);
        };
        let written = file.write_all(&fence_bytes).and_then(|()| file.write_all_at(&header, 0));
        if let Err(cause) = written {
            self.file = Some(file);
            return Err(failed("write", &self.path, cause));
        }
        let path = std::mem::take(&mut self.path);
        let checksum = *self.hasher.finalize().as_bytes();
        Ok(Some(Run { file, path, count: self.count, bits, fence, checksum }))
    }
}

impl Drop for RunWriter {
    fn drop(&mut self) {
        if self.file.is_some() {
            // Left behind at worst; the next open removes what the catalogue does not name.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn header_check(header: &[u8; HEADER_BYTES], fence: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header[..HEADER_HASHED]).update(fence);
    *hasher.finalize().as_bytes()
}

/// One complete run, open for look-ups from any number of threads.
pub struct Run {
    file: File,
    path: PathBuf,
    count: u64,
    bits: u32,
    fence: Vec<u32>,
    checksum: [u8; 32],
}

impl Run {
    /// Opens a run and checks size, header, fence and a few samples of the order: at most
    /// 256 KiB and five small reads, however long the run is.
    ///
    /// # Errors
    /// Fails with [`ErrorKind::Damage`] if the file is not the run of `count` records that the
    /// catalogue says it is, and if it cannot be read.
    pub fn open(path: PathBuf, count: u64) -> Result<Run> {
        let file = File::open(&path).map_err(|cause| failed("open", &path, cause))?;
        let size = file.metadata().map_err(|cause| failed("open", &path, cause))?.len();
        let mut header = [0_u8; HEADER_BYTES];
        file.read_exact_at(&mut header, 0).map_err(|cause| failed("read", &path, cause))?;
        let bits = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
        let known = header[..8] == MAGIC[..] && header[8..12] == VERSION.to_le_bytes();
        let counted = header[16..24] == count.to_le_bytes() && count <= u64::from(u32::MAX);
        if !known || !counted || !(1..=FENCE_BITS_MAX).contains(&bits) {
            return Err(damaged(&path, "the header is not the expected one"));
        }
        let fence_at = HEADER_BYTES as u64 + count * RECORD_BYTES as u64;
        let mut fence_bytes = vec![0_u8; ((1 << bits) + 1) * 4];
        if size != fence_at + fence_bytes.len() as u64 {
            return Err(damaged(&path, "the size is not the expected one"));
        }
        let read = file.read_exact_at(&mut fence_bytes, fence_at);
        read.map_err(|cause| failed("read", &path, cause))?;
        let check = header_check(&header, &fence_bytes);
        if header[HEADER_HASHED..HEADER_HASHED + 32] != check {
            return Err(damaged(&path, "the header checksum differs"));
        }
        let words = fence_bytes.chunks_exact(4);
        let fence = words.map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        let mut checksum = [0_u8; 32];
        checksum.copy_from_slice(&header[24..HEADER_HASHED]);
        let run = Run { file, path, count, bits, fence: fence.collect(), checksum };
        run.sample()?;
        Ok(run)
    }

    /// Reads a window at each quarter: catches zeroed or foreign pages without a full read.
    fn sample(&self) -> Result<()> {
        let length = WINDOW.min(self.count);
        let mut window = Window::new();
        for quarter in 0..=4 {
            let start = (self.count - length) * quarter / 4;
            window.read(self, start, length)?;
            let placed = (0..length).all(|i| {
                let (low, high) = self.bucket(window.record(i).prefix());
                (low..high).contains(&(start + i))
            });
            if !placed || (1..length).any(|i| window.record(i - 1) >= window.record(i)) {
                return Err(damaged(&self.path, "records are out of order"));
            }
        }
        Ok(())
    }

    /// How many records it holds.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Reads everything and compares the checksum of the records.
    ///
    /// # Errors
    /// Fails with [`ErrorKind::Damage`] if it differs.
    pub fn verify(self: &Arc<Run>) -> Result<()> {
        let mut stream = RunStream::new(Arc::clone(self))?;
        while stream.head.is_some() {
            stream.advance()?;
        }
        Ok(())
    }

    fn bucket(&self, prefix: &[u8]) -> (u64, u64) {
        let at = (leading(prefix) >> (64 - self.bits)) as usize;
        (u64::from(self.fence[at]), u64::from(self.fence[at + 1]))
    }

    /// Calls `visit` with every record of this prefix until it answers false.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn find(&self, prefix: &[u8; 16], visit: &mut dyn FnMut(Record) -> bool) -> Result<()> {
        let (low, end) = self.bucket(prefix);
        if low == end {
            return Ok(());
        }
        let mut window = Window::new();
        let mut at = self.lower_bound(prefix, (low, end), &mut window)?;
        while at < end {
            if !(window.start..window.start + window.length).contains(&at) {
                window.read(self, at, WINDOW.min(end - at))?;
            }
            let record = window.record(at - window.start);
            if record.prefix() != prefix || !visit(record) {
                break;
            }
            at += 1;
        }
        Ok(())
    }

    /// The first index in `low..=high` whose prefix is not smaller. Interpolation first, then
    /// the neighbouring window, then halving, so that keys that are not uniform only cost time.
    fn lower_bound(
        &self,
        prefix: &[u8; 16],
        (mut low, mut high): (u64, u64),
        window: &mut Window,
    ) -> Result<u64> {
        let fraction = (leading(prefix) << self.bits) >> 32;
        let span = high - low;
        let mut most = (span.isqrt() * 4 + 8).min(WINDOW);
        let mut start = (low + ((span * fraction) >> 32)).saturating_sub(most / 2);
        let mut reads = 0;
        while low < high {
            let length = most.min(high - low);
            if reads >= 2 {
                start = (low + (high - low) / 2).saturating_sub(WINDOW / 2);
            }
            start = start.clamp(low, high - length);
            window.read(self, start, length)?;
            reads += 1;
            most = WINDOW;
            if window.record(length - 1).prefix() < &prefix[..] {
                low = start + length;
                start = low;
            } else if start > low && window.record(0).prefix() >= &prefix[..] {
                high = start;
                start = high.saturating_sub(WINDOW);
            } else {
                return Ok(start + window.smaller(prefix));
            }
        }
        Ok(low)
    }

    /// Removes the file; look-ups that still hold the run go on.
    pub fn unlink(&self) {
        // Left behind at worst; the next open removes what the catalogue does not name.
        let _ = fs::remove_file(&self.path);
    }
}

/// One look-up's read buffer, on the stack.
struct Window {
    bytes: [u8; WINDOW as usize * RECORD_BYTES],
    start: u64,
    length: u64,
}

impl Window {
    fn new() -> Window {
        Window { bytes: [0; WINDOW as usize * RECORD_BYTES], start: 0, length: 0 }
    }

    fn read(&mut self, run: &Run, start: u64, length: u64) -> Result<()> {
        let bytes = &mut self.bytes[..length as usize * RECORD_BYTES];
        let read = run.file.read_exact_at(bytes, record_offset(start));
        read.map_err(|cause| failed("read", &run.path, cause))?;
        (self.start, self.length) = (start, length);
        Ok(())
    }

    fn record(&self, at: u64) -> Record {
        record_at(&self.bytes, at as usize)
    }

    /// How many of its records have a smaller prefix.
    fn smaller(&self, prefix: &[u8; 16]) -> u64 {
        let (mut low, mut high) = (0, self.length);
        while low < high {
            let middle = (low + high) / 2;
            if self.record(middle).prefix() < &prefix[..] {
                low = middle + 1
            } else {
                high = middle
            }
        }
        low
    }
}

fn record_offset(at: u64) -> u64 {
    HEADER_BYTES as u64 + at * RECORD_BYTES as u64
}

fn record_at(bytes: &[u8], at: usize) -> Record {
    let mut record = [0_u8; RECORD_BYTES];
    record.copy_from_slice(&bytes[at * RECORD_BYTES..(at + 1) * RECORD_BYTES]);
    Record(record)
}

/// A run read from front to back with 192 KiB of memory; the end compares the checksum.
struct RunStream {
    run: Arc<Run>,
    head: Option<Record>,
    buffer: Vec<u8>,
    at: usize,
    next: u64,
    hasher: blake3::Hasher,
}

impl RunStream {
    fn new(run: Arc<Run>) -> Result<RunStream> {
        let hasher = blake3::Hasher::new();
        let mut stream = RunStream { run, head: None, buffer: Vec::new(), at: 0, next: 0, hasher };
        stream.advance()?;
        Ok(stream)
    }

    fn advance(&mut self) -> Result<()> {
        if self.at * RECORD_BYTES == self.buffer.len() {
            let length = STREAM.min(self.run.count - self.next);
            if length == 0 {
                self.head = None;
                let same = *self.hasher.finalize().as_bytes() == self.run.checksum;
                return if same { Ok(()) } else { Err(damaged(&self.run.path, "bad checksum")) };
            }
            self.buffer.resize(length as usize * RECORD_BYTES, 0);
            let read = self.run.file.read_exact_at(&mut self.buffer, record_offset(self.next));
            read.map_err(|cause| failed("read", &self.run.path, cause))?;
            self.hasher.update(&self.buffer);
            self.next += length;
            self.at = 0;
        }
        self.head = Some(record_at(&self.buffer, self.at));
        self.at += 1;
        Ok(())
    }
}

/// Merges runs into a new one at `path`, without the records whose pack `keep` refuses;
/// `None` if nothing is left. Memory: 192 KiB a run.
///
/// # Errors
/// Fails with [`ErrorKind::Damage`] if the records of an input do not match its checksum.
pub fn merge(runs: &[Arc<Run>], keep: &dyn Fn(u32) -> bool, path: PathBuf) -> Result<Option<Run>> {
    let mut writer = RunWriter::create(path)?;
    let mut streams = Vec::with_capacity(runs.len());
    for run in runs {
        streams.push(RunStream::new(Arc::clone(run))?);
    }
    loop {
        // At most nine streams: a scan is as fast as a heap.
        let least = streams.iter_mut().filter(|stream| stream.head.is_some());
        let Some(stream) = least.min_by_key(|stream| stream.head) else { break };
        if let Some(record) = stream.head
            && keep(record.ordinal())
            && writer.last != Some(record)
        {
            writer.push(record)?;
        }
        stream.advance()?;
    }
    writer.finish()
}

/// Which runs to merge, oldest first in `counts`: all from the answer on. Keeps each run at
/// least r times as long as the next (r = 2 up to 33 million records, 3 up to 570 million),
/// which bounds them to eight, and rewrites all once half of the records are dead.
pub fn merge_start(counts: &[u64], live: u64) -> Option<usize> {
    let total: u64 = counts.iter().sum();
    if total > live.saturating_mul(2).saturating_add(PENDING_MAX) {
        return Some(0);
    }
    let ratio = (2_u64..64).find(|ratio| PENDING_MAX * ratio.pow(7) >= total).unwrap_or(64);
    let too_short = |count: u64, next: u64| count < ratio * next.max(PENDING_MAX);
    let mut start = counts.windows(2).position(|pair| too_short(pair[0], pair[1]))?;
    let mut sum: u64 = counts[start..].iter().sum();
    while start > 0 && too_short(counts[start - 1], sum) {
        start -= 1;
        sum += counts[start];
    }
    Some(start)
}

//! What is written over a disk, in a sparse file: docs/overlay.md has its layout.
//!
//! Invariants: a block counts as written once all of it is in the file; on stable storage its data are
//! before the bit that names it; what a flush was answered for survives a crash at any instant. One
//! process has the file.

mod header;

pub use header::Identity;

use super::export::Base;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::lock;
use crate::view::Extent;
use header::{HEADER_BYTES, Layout};
use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom, fallocate, flock, seek};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Bytes of the bitmap that are written at once.
const PAGE_BYTES: usize = 4096;
const PAGE_WORDS: usize = PAGE_BYTES / 8;
/// Blocks that are completed at the same time.
const STRIPES: usize = 64;
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// Which blocks were written.
struct Marks {
    /// A bit for each block, the lowest first.
    words: Vec<u64>,
    /// Pages that the file does not have yet.
    dirty: BTreeSet<usize>,
}

/// The written blocks of one disk.
pub struct Overlay {
    file: File,
    /// For messages.
    name: String,
    layout: Layout,
    marks: Mutex<Marks>,
    /// Held while a block is completed from the disk below.
    stripes: [Mutex<()>; STRIPES],
    flushing: Mutex<()>,
    /// A flush failed: what the system still has of it is unknown.
    is_failed: AtomicBool,
}

impl Overlay {
    /// Opens the overlay of a disk, or makes it if there is none.
    ///
    /// # Errors
    /// `Target` if the file is of another disk, damaged, none of these, in use, or cannot be opened;
    /// `NoSpace`.
    pub fn open(path: &Path, identity: &Identity) -> Result<Overlay> {
        let name = path.display().to_string();
        let cannot =
            |cause| Error::io(ErrorKind::Target, format!("cannot open overlay {name}"), cause);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(cannot)?;
        if !file.metadata().map_err(cannot)?.is_file() {
            return Err(refused(&name, "it is no file"));
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(refused(&name, "another program has it in use"));
            }
            Err(errno) => return Err(cannot(errno.into())),
        }
        // A run that ended before it wrote the header leaves a file without any bytes.
        let length = file.metadata().map_err(cannot)?.len();
        let is_made = length == Layout::of(identity.size).file_bytes();
        let is_all_hole = || seek(&file, SeekFrom::Data(0)) == Err(Errno::NXIO);
        if length == 0 || is_made && is_all_hole() {
            let overlay = Overlay::make(file, name, identity).inspect_err(|_| {
                // It was made here, or is as good as not there.
                let _ = std::fs::remove_file(path);
            })?;
            let folder = path.parent().filter(|folder| *folder != Path::new(""));
            let folder = File::open(folder.unwrap_or(Path::new(".")))
                .map_err(|cause| overlay.failed("make", cause))?;
            folder.sync_all().map_err(|cause| overlay.failed("make", cause))?;
            return Ok(overlay);
        }
        Overlay::load(file, name, identity)
    }

    /// An overlay that is gone with the process.
    ///
    /// # Errors
    /// `Target` or `NoSpace`.
    pub fn temporary(identity: &Identity) -> Result<Overlay> {
        let file = tempfile::tempfile().map_err(|cause| {
            Error::io(ErrorKind::Target, "cannot make a temporary overlay", cause)
        })?;
        Overlay::make(file, "in a temporary file".into(), identity)
    }

    fn make(file: File, name: String, identity: &Identity) -> Result<Overlay> {
        let layout = Layout::of(identity.size);
        let overlay = Overlay::with(file, name, layout);
        let header = identity
            .encode(&layout)
            .ok_or_else(|| refused(&overlay.name, "the disk's name is too long for it"))?;
        let write = || {
            // The header last: without it the file is none yet.
            overlay.file.set_len(layout.file_bytes())?;
            overlay.file.write_all_at(&header, 0)?;
            overlay.file.sync_all()
        };
        write().map_err(|cause| {
            let is_too_large = cause.kind() == io::ErrorKind::FileTooLarge;
            let error = overlay.failed("make", cause);
            let hint = "put it on a file system for larger files, such as XFS";
            if is_too_large { error.hint(hint) } else { error }
        })?;
        Ok(overlay)
    }

    fn load(file: File, name: String, identity: &Identity) -> Result<Overlay> {
        let mut header = [0; HEADER_BYTES];
        let read = file.read_exact_at(&mut header, 0);
        match read {
            Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(refused(&name, "it is no overlay"));
            }
            Err(cause) => {
                let text = format!("cannot read overlay {name}");
                return Err(Error::io(ErrorKind::Target, text, cause));
            }
            Ok(()) => {}
        }
        identity.compare(&header).map_err(|why| refused(&name, &why))?;
        let layout = Layout::of(identity.size);
        let overlay = Overlay::with(file, name, layout);
        let failed = |cause| overlay.failed("read", cause);
        if overlay.file.metadata().map_err(failed)?.len() != layout.file_bytes() {
            return Err(refused(&overlay.name, "it was cut or has grown"));
        }
        {
            let mut marks = lock(&overlay.marks);
            let mut page = [0; PAGE_BYTES];
            for (number, words) in marks.words.chunks_mut(PAGE_WORDS).enumerate() {
                let at = HEADER_BYTES as u64 + (number * PAGE_BYTES) as u64;
                overlay.file.read_exact_at(&mut page, at).map_err(failed)?;
                // Only what has bits is touched: the rest takes no memory.
                if page != [0; PAGE_BYTES] {
                    let (bytes, _) = page.as_chunks::<8>();
                    for (word, bytes) in words.iter_mut().zip(bytes) {
                        *word = u64::from_le_bytes(*bytes);
                    }
                }
            }
        }
        Ok(overlay)
    }

    fn with(file: File, name: String, layout: Layout) -> Overlay {
        let words = vec![0; layout.blocks().div_ceil(64) as usize];
        Overlay {
            file,
            name,
            layout,
            marks: Mutex::new(Marks { words, dirty: BTreeSet::new() }),
            stripes: [const { Mutex::new(()) }; STRIPES],
            flushing: Mutex::new(()),
            is_failed: AtomicBool::new(false),
        }
    }

    fn failed(&self, verb: &str, cause: io::Error) -> Error {
        Error::io(ErrorKind::Target, format!("cannot {verb} overlay {}", self.name), cause)
    }

    /// The end of the blocks from `at` on that are all written, or all not; and which.
    fn run(&self, at: u64, end: u64) -> (u64, bool) {
        let marks = lock(&self.marks);
        let bit = |block: u64| marks.words[(block / 64) as usize] >> (block % 64) & 1 == 1;
        let first = at / self.layout.block_bytes;
        let last = (end - 1) / self.layout.block_bytes;
        let is_written = bit(first);
        let whole = if is_written { u64::MAX } else { 0 };
        let mut block = first + 1;
        while block <= last {
            if block.is_multiple_of(64) && marks.words[(block / 64) as usize] == whole {
                block += 64;
            } else if bit(block) == is_written {
                block += 1;
            } else {
                break;
            }
        }
        (end.min(block * self.layout.block_bytes), is_written)
    }

    /// Blocks that are in the file from now on.
    fn mark(&self, range: Range<u64>) {
        let mut marks = lock(&self.marks);
        for block in
            range.start / self.layout.block_bytes..range.end.div_ceil(self.layout.block_bytes)
        {
            let (word, bit) = ((block / 64) as usize, 1 << (block % 64));
            if marks.words[word] & bit == 0 {
                marks.words[word] |= bit;
                marks.dirty.insert(word / PAGE_WORDS);
            }
        }
    }

    /// Reads what was written from the file, and the rest from the disk below.
    pub(super) fn read(&self, base: &dyn Base, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset + buffer.len() as u64;
        let (mut at, mut rest) = (offset, buffer);
        while at < end {
            let (run_end, is_written) = self.run(at, end);
            let (now, later) = rest.split_at_mut((run_end - at) as usize);
            if is_written {
                let place = self.layout.data_start() + at;
                self.file.read_exact_at(now, place).map_err(|cause| self.failed("read", cause))?;
            } else {
                base.read_at(at, now)?;
            }
            (at, rest) = (run_end, later);
        }
        Ok(())
    }

    /// Writes; blocks of which only a part is written are completed from the disk below.
    pub(super) fn write(&self, base: &dyn Base, offset: u64, data: &[u8]) -> Result<()> {
        let (head, body, tail) = self.split(offset..offset + data.len() as u64);
        let of = |range: &Range<u64>| {
            &data[(range.start - offset) as usize..(range.end - offset) as usize]
        };
        for part in [&head, &tail] {
            self.complete(base, part, of(part))?;
        }
        if !body.is_empty() {
            let _turns = self.turns_of(&body);
            self.write_file(body.start, of(&body))?;
            self.mark(body);
        }
        Ok(())
    }

    /// Keeps blocks from being completed while all of them are written: what is taken over from the disk
    /// below must not come after. Blocks that are in the file already are never completed.
    fn turns_of(&self, range: &Range<u64>) -> Vec<MutexGuard<'_, ()>> {
        let block = self.layout.block_bytes;
        let numbers = range.start / block..range.end.div_ceil(block);
        if numbers.is_empty() || self.run(range.start, range.end) == (range.end, true) {
            return Vec::new();
        }
        let stripes: BTreeSet<u64> = match numbers.end - numbers.start < STRIPES as u64 {
            true => numbers.map(|number| number % STRIPES as u64).collect(),
            false => (0..STRIPES as u64).collect(),
        };
        // All take them in ascending order, so that nobody waits in a circle.
        stripes.iter().map(|stripe| lock(&self.stripes[*stripe as usize])).collect()
    }

    /// Zeros; as holes of the file, unless they are to be written.
    pub(super) fn write_zeroes(
        &self,
        base: &dyn Base,
        range: Range<u64>,
        is_written: bool,
    ) -> Result<()> {
        let (head, body, tail) = self.split(range);
        for part in [head, tail] {
            // Less than a block, which may be larger than the zeros at hand.
            let mut at = part.start;
            while at < part.end {
                let end = part.end.min(at + ZEROS.len() as u64);
                self.complete(base, &(at..end), &ZEROS[..(end - at) as usize])?;
                at = end;
            }
        }
        self.zero_blocks(body, is_written)
    }

    /// Whole blocks become zeros; the rest stays.
    pub(super) fn trim(&self, range: Range<u64>) -> Result<()> {
        self.zero_blocks(self.split(range).1, false)
    }

    fn zero_blocks(&self, range: Range<u64>, is_written: bool) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let _turns = self.turns_of(&range);
        let place = self.layout.data_start() + range.start;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punched = match is_written {
            true => Err(Errno::OPNOTSUPP),
            false => fallocate(&self.file, flags, place, range.end - range.start),
        };
        match punched {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => {
                let mut at = range.start;
                while at < range.end {
                    let end = range.end.min(at + ZEROS.len() as u64);
                    self.write_file(at, &ZEROS[..(end - at) as usize])?;
                    at = end;
                }
            }
            Err(errno) => return Err(self.failed("write", errno.into())),
        }
        self.mark(range);
        Ok(())
    }

    /// The begin that is less than a block, whole blocks, and the rest. What is in one block is a
    /// begin, and the last block ends with the disk.
    fn split(&self, range: Range<u64>) -> (Range<u64>, Range<u64>, Range<u64>) {
        let block = self.layout.block_bytes;
        let head_end = range.start.next_multiple_of(block).min(range.end);
        let is_last = range.end == self.layout.size;
        let body_end = if is_last { range.end } else { range.end / block * block };
        let body_end = body_end.max(head_end);
        (range.start..head_end, head_end..body_end, body_end..range.end)
    }

    fn write_file(&self, offset: u64, data: &[u8]) -> Result<()> {
        let place = self.layout.data_start() + offset;
        self.file.write_all_at(data, place).map_err(|cause| self.failed("write", cause))
    }

    /// Writes a part of one block, which is taken over from the disk below before.
    fn complete(&self, base: &dyn Base, part: &Range<u64>, data: &[u8]) -> Result<()> {
        if part.is_empty() {
            return Ok(());
        }
        let start = part.start / self.layout.block_bytes * self.layout.block_bytes;
        let end = (start + self.layout.block_bytes).min(self.layout.size);
        let number = (start / self.layout.block_bytes) as usize % STRIPES;
        // Two parts of a block that are written at once must both be there afterwards.
        let _turn = lock(&self.stripes[number]);
        if self.run(part.start, part.end).1 {
            return self.write_file(part.start, data);
        }
        let mut block = vec![0; (end - start) as usize];
        base.read_at(start, &mut block)?;
        block[(part.start - start) as usize..(part.end - start) as usize].copy_from_slice(data);
        self.write_file(start, &block)?;
        self.mark(start..end);
        Ok(())
    }

    /// Parts of a range; holes of the file are zeros without storage.
    pub(super) fn extents(
        &self,
        base: &dyn Base,
        range: Range<u64>,
        each: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let (end, is_written) = self.run(at, range.end);
            if is_written {
                self.written_extents(at..end, each)?;
            } else {
                base.extents(at..end, each)?;
            }
            at = end;
        }
        Ok(())
    }

    fn written_extents(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        let data_start = self.layout.data_start();
        let mut start = range.start;
        while start < range.end {
            let place = data_start + start;
            // A file system that cannot tell says that all is data.
            let data = match seek(&self.file, SeekFrom::Data(place)) {
                Ok(found) => found.max(place) - data_start,
                Err(Errno::NXIO) => range.end,
                Err(_) => start,
            };
            let is_data = data == start;
            let end = match is_data {
                true => match seek(&self.file, SeekFrom::Hole(place)) {
                    Ok(found) => found.max(place + 1) - data_start,
                    Err(_) => range.end,
                },
                false => data,
            };
            let end = end.min(range.end);
            each(Extent { start, end, is_zero: !is_data, is_allocated: is_data })?;
            start = end;
        }
        Ok(())
    }

    /// Brings everything that was written before onto stable storage.
    ///
    /// # Errors
    /// `Target` or `NoSpace`; from the first failure on all fail, because the system forgets what it
    /// could not write.
    pub fn flush(&self) -> Result<()> {
        let _turn = lock(&self.flushing);
        if self.is_failed.load(Ordering::Relaxed) {
            return Err(refused(&self.name, "an earlier flush failed"));
        }
        let pages: Vec<(usize, Vec<u8>)> = {
            let mut marks = lock(&self.marks);
            let dirty = std::mem::take(&mut marks.dirty);
            dirty.into_iter().map(|page| (page, marks.page(page))).collect()
        };
        let written = self.write_pages(&pages);
        if written.is_err() {
            self.is_failed.store(true, Ordering::Relaxed);
        }
        written.map_err(|cause| self.failed("flush", cause))
    }

    /// The data before the bits that name them.
    fn write_pages(&self, pages: &[(usize, Vec<u8>)]) -> io::Result<()> {
        self.file.sync_data()?;
        for (page, bytes) in pages {
            let at = HEADER_BYTES as u64 + (page * PAGE_BYTES) as u64;
            self.file.write_all_at(bytes, at)?;
        }
        if pages.is_empty() { Ok(()) } else { self.file.sync_data() }
    }
}

impl Marks {
    fn page(&self, page: usize) -> Vec<u8> {
        let start = page * PAGE_WORDS;
        let end = (start + PAGE_WORDS).min(self.words.len());
        let mut bytes: Vec<u8> =
            self.words[start..end].iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(PAGE_BYTES, 0);
        bytes
    }
}

fn refused(name: &str, why: &str) -> Error {
    Error::new(ErrorKind::Target, format!("cannot use overlay {name}: {why}"))
}

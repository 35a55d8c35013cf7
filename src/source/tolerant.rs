//! Reading a disk that has bad sectors: what cannot be read becomes zeros and is remembered.
//!
//! Invariants: only what the medium itself failed to give, twice, counts as bad, in sectors of
//! 4 KiB; a disk that is mostly gone is an error and no disk of zeros.

use super::{DiskSource, Extent};
use crate::error::{Error, ErrorKind, Result};
use diskvault_format::limits::{BAD_EXTENTS_MAX, TEXT_BYTES_MAX};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::error::Error as _;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that are given up together: the sector of today's disks and the page of the kernel.
const SECTOR_BYTES: u64 = 4 << 10;
/// One part in so many may be unreadable, and [`BAD_BYTES_MIN`] of any disk: with more it was
/// unplugged rather than worn.
const BAD_PART: u64 = 16;
/// Bytes that may be unreadable of a small disk.
const BAD_BYTES_MIN: u64 = 16 << 20;

/// What the block layer and file systems of Linux answer for a medium that fails.
const MEDIUM: [Errno; 6] =
    [Errno::IO, Errno::NODATA, Errno::REMOTEIO, Errno::ILSEQ, Errno::TIMEDOUT, Errno::BADMSG];

/// A disk whose bad sectors read as zeros.
pub struct TolerantSource {
    inner: Arc<dyn DiskSource>,
    /// Start and end of what could not be read; disjoint, and no two touch.
    bad: Mutex<BTreeMap<u64, u64>>,
}

impl TolerantSource {
    /// In front of a disk.
    pub fn new(inner: Arc<dyn DiskSource>) -> TolerantSource {
        TolerantSource { inner, bad: Mutex::default() }
    }

    /// What could not be read so far, ascending.
    pub fn bad_extents(&self) -> Vec<Range<u64>> {
        self.lock().iter().map(|(start, end)| *start..*end).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.bad.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what could not be read.
    fn give_up(&self, range: Range<u64>, cause: &Error) -> Result<()> {
        let mut bad = self.lock();
        let (mut start, mut end) = (range.start, range.end);
        // What overlaps or touches it becomes one with it.
        while let Some((first, last)) = bad.range(..=end).next_back().map(|(a, b)| (*a, *b)) {
            if last < start {
                break;
            }
            (start, end) = (start.min(first), end.max(last));
            bad.remove(&first);
        }
        bad.insert(start, end);
        let bytes: u64 = bad.iter().map(|(start, end)| end - start).sum();
        let most = (self.size() / BAD_PART).max(BAD_BYTES_MIN);
        if bytes > most || bad.len() > BAD_EXTENTS_MAX {
            let text = format!("{}; {bytes} bytes of it are unreadable", cause.full_text());
            let error = Error::new(ErrorKind::Source, text);
            return Err(error.hint("copy what can be read with ddrescue, and back up the copy"));
        }
        Ok(())
    }

    /// Reads sector by sector.
    fn read_pieces(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset + buffer.len() as u64;
        let mut at = offset;
        let mut rest = buffer;
        while at < end {
            let stop = end.min((at / SECTOR_BYTES + 1) * SECTOR_BYTES);
            let (sector, later) = rest.split_at_mut((stop - at) as usize);
            match self.inner.read_at(at, sector) {
                Err(error) if is_medium(&error) => {
                    sector.fill(0);
                    self.give_up(at..stop, &error)?;
                }
                other => other?,
            }
            (at, rest) = (stop, later);
        }
        Ok(())
    }
}

/// True for what the medium failed to give, and false for what is wrong with an image or a path.
fn is_medium(error: &Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    let errno = cause.and_then(Errno::from_io_error);
    error.kind() == ErrorKind::Source && errno.is_some_and(|errno| MEDIUM.contains(&errno))
}

impl DiskSource for TolerantSource {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn format(&self) -> &'static str {
        self.inner.format()
    }

    fn extents_in(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        self.inner.extents_in(range, each)
    }

    fn allocation_known(&self) -> bool {
        self.inner.allocation_known()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self.inner.read_at(offset, buffer) {
            Err(error) if is_medium(&error) => self.read_pieces(offset, buffer),
            other => other,
        }
    }

    fn prefetch(&self, offset: u64, bytes: u64) {
        self.inner.prefetch(offset, bytes);
    }

    fn check_unchanged_size(&self) -> Result<()> {
        self.inner.check_unchanged_size()
    }

    /// As [`token_of`] the disk.
    fn identity(&self) -> Vec<u8> {
        token_of(self.inner.as_ref())
    }

    fn changed_unix_ns(&self) -> Option<i64> {
        self.inner.changed_unix_ns()
    }

    fn written_by_machine(&self) -> Option<String> {
        self.inner.written_by_machine()
    }

    fn changed_over(
        &self,
        is_base: &dyn Fn(&dyn DiskSource) -> bool,
        each: &mut dyn FnMut(Range<u64>) -> Result<()>,
    ) -> Result<bool> {
        self.inner.changed_over(is_base, each)
    }

    fn bitmaps(&self) -> Result<Vec<String>> {
        self.inner.bitmaps()
    }

    fn changed_by_bitmap(&self, name: &str) -> Result<Option<Vec<Range<u64>>>> {
        self.inner.changed_by_bitmap(name)
    }
}

/// The identity of a disk as a manifest has it: or its BLAKE3 if there is no room for it, since an
/// image can have hundreds of files.
pub fn token_of(disk: &dyn DiskSource) -> Vec<u8> {
    let identity = disk.identity();
    match identity.len() <= TEXT_BYTES_MAX {
        true => identity,
        false => blake3::hash(&identity).as_bytes().to_vec(),
    }
}

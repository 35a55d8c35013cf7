//! The log of a VHDX image (MS-VHDX, 2.3), and the file as it is when the log is replayed.
//!
//! Invariants: nothing is written: what the log says lies over the file where it is read. Only the
//! newest whole sequence of entries counts; what was torn behind it does not. Every place of the
//! log is looked at once, and memory is bounded by its length.

use super::header::{CRC, Header, Id, bad, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::source::DiskSource;
use std::collections::BTreeMap;

/// Bytes of a sector of the log, and of the page of the file that one holds.
const SECTOR_BYTES: u64 = 4096;
const ENTRY_HEADER_BYTES: u64 = 64;
const DESCRIPTOR_BYTES: u64 = 32;
/// Where a page has the 4 bytes that a sector has no room for.
const TAIL_AT: usize = 4092;
/// Descriptors of a sequence: those of a log full of pages are far fewer.
const DESCRIPTORS_MAX: u64 = 1 << 18;
/// Entries that are whole do not overlap, so a log is read about once; entries of an attacker may.
const READS_MAX: u64 = 16;

/// The file of an image with its log replayed.
pub(super) struct Replayed {
    file: Box<dyn DiskSource>,
    size: u64,
    /// What the log put over the file, by its start; without overlaps.
    patches: BTreeMap<u64, Patch>,
}

#[derive(Clone, Copy)]
struct Patch {
    end: u64,
    content: Content,
}

#[derive(Clone, Copy)]
enum Content {
    Zeros,
    /// The data sector at this place in the file, and what it has no room for.
    Page {
        sector: u64,
        head: [u8; 8],
        tail: [u8; 4],
    },
}

impl Replayed {
    /// Replays what the header says is in the log.
    ///
    /// # Errors
    /// `Source` if it has no whole sequence of entries, or is of a longer file.
    pub fn new(file: Box<dyn DiskSource>, header: &Header) -> Result<Replayed> {
        let size = file.size();
        let mut replayed = Replayed { file, size, patches: BTreeMap::new() };
        if header.log_id == Id::ZERO {
            return Ok(replayed);
        }
        let (at, bytes) = header.log;
        let mut log = Log {
            file: replayed.file.as_ref(),
            at,
            bytes,
            id: header.log_id,
            budget: READS_MAX * bytes,
            seen: BTreeMap::new(),
        };
        let entries = log.active()?;
        let Some(last) = entries.last() else {
            return Err(replayed.bad("there should be something in its log, but no entry is whole"));
        };
        if size < last.flushed {
            let expected = last.flushed;
            let text = format!("it was cut off: expected at least {expected} bytes, found {size}");
            return Err(replayed.bad(text));
        }
        let mut patches = Vec::new();
        for entry in &entries {
            log.patches_of(entry, &mut patches)?;
        }
        replayed.size = size.max(last.last);
        for (start, patch) in patches {
            replayed.cover(start, patch);
        }
        Ok(replayed)
    }

    /// Size of the file when it was replayed, in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The file as it is.
    pub fn file(&self) -> &dyn DiskSource {
        self.file.as_ref()
    }

    /// True if the log says nothing of the file.
    pub fn is_as_stored(&self) -> bool {
        self.patches.is_empty() && self.size == self.file.size()
    }

    /// An error about the image.
    pub fn bad(&self, text: impl std::fmt::Display) -> Error {
        bad(self.file(), text)
    }

    /// Reads `bytes` bytes; `what` is for the error if they are not there.
    pub fn read(&self, at: u64, bytes: usize, what: &str) -> Result<Vec<u8>> {
        if at.checked_add(bytes as u64).is_none_or(|end| end > self.size) {
            return Err(self.bad(format!("{what} lies beyond the end of the file")));
        }
        let mut buffer = vec![0; bytes];
        self.read_at(at, &mut buffer)?;
        Ok(buffer)
    }

    /// Fills `buffer` with what is at `at`, which is within the size.
    pub fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        let end = at + buffer.len() as u64;
        let (mut at, mut rest) = (at, buffer);
        while at < end {
            let before = self.patches.range(..=at).next_back();
            let patch = before.filter(|(_, patch)| patch.end > at);
            let next = self.patches.range(at..).next().map_or(end, |(start, _)| *start);
            let stop = patch.map_or(next, |(_, patch)| patch.end).min(end);
            let (now, later) = rest.split_at_mut((stop - at) as usize);
            match patch {
                None => self.read_stored(at, now)?,
                Some((_, Patch { content: Content::Zeros, .. })) => now.fill(0),
                Some((start, Patch { content: Content::Page { sector, head, tail }, .. })) => {
                    let mut page = [0; SECTOR_BYTES as usize];
                    self.file.read_at(*sector, &mut page)?;
                    page[..8].copy_from_slice(head);
                    page[TAIL_AT..].copy_from_slice(tail);
                    now.copy_from_slice(&page[(at - start) as usize..][..now.len()]);
                }
            }
            (at, rest) = (stop, later);
        }
        Ok(())
    }

    /// What the log made longer is zeros until it says more.
    fn read_stored(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        let there = self.file.size().saturating_sub(at).min(buffer.len() as u64) as usize;
        let (there, beyond) = buffer.split_at_mut(there);
        beyond.fill(0);
        if there.is_empty() { Ok(()) } else { self.file.read_at(at, there) }
    }

    /// Puts a patch over what is there. Only zeros are longer than a page, so only they are cut.
    fn cover(&mut self, start: u64, patch: Patch) {
        let zeros = |end| Patch { end, content: Content::Zeros };
        if let Some((_, before)) = self.patches.range_mut(..start).next_back()
            && before.end > start
        {
            let end = std::mem::replace(&mut before.end, start);
            if end > patch.end {
                self.patches.insert(patch.end, zeros(end));
            }
        }
        while let Some((at, below)) =
            self.patches.range(start..patch.end).next().map(|(at, below)| (*at, *below))
        {
            self.patches.remove(&at);
            if below.end > patch.end {
                self.patches.insert(patch.end, zeros(below.end));
            }
        }
        self.patches.insert(start, patch);
    }
}

/// A whole entry of the log.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Offset in the log.
    at: u64,
    bytes: u64,
    /// Offset of the oldest entry that is needed with this one.
    tail: u64,
    number: u64,
    descriptors: u64,
    /// Bytes that the file had for certain, and those that it has to have.
    flushed: u64,
    last: u64,
}

impl Entry {
    /// Sectors with the header and the descriptors.
    fn head_sectors(&self) -> u64 {
        (ENTRY_HEADER_BYTES + self.descriptors * DESCRIPTOR_BYTES).div_ceil(SECTOR_BYTES)
    }
}

/// A ring of sectors.
struct Log<'a> {
    file: &'a dyn DiskSource,
    at: u64,
    bytes: u64,
    id: Id,
    /// Bytes that may still be read.
    budget: u64,
    /// What was found at each place that was looked at.
    seen: BTreeMap<u64, Option<Entry>>,
}

impl Log<'_> {
    /// Where in the file an offset is that may go round.
    fn place(&self, offset: u64) -> u64 {
        self.at + offset % self.bytes
    }

    fn sector(&mut self, offset: u64) -> Result<[u8; SECTOR_BYTES as usize]> {
        let left = self.budget.checked_sub(SECTOR_BYTES);
        self.budget = left.ok_or_else(|| bad(self.file, "the entries of its log overlap"))?;
        let mut sector = [0; SECTOR_BYTES as usize];
        self.file.read_at(self.place(offset), &mut sector)?;
        Ok(sector)
    }

    /// The entries that are to be replayed, in order: of the sequences of whole entries with
    /// numbers one after the other that reach back to the tail of their last entry, the newest.
    fn active(&mut self) -> Result<Vec<Entry>> {
        let mut active: Vec<Entry> = Vec::new();
        let mut start = 0;
        while start < self.bytes {
            let run = self.run(start)?;
            let length: u64 = run.iter().map(|entry| entry.bytes).sum();
            let tail = run.last().and_then(|last| run.iter().position(|it| it.at == last.tail));
            match (tail, run.last()) {
                (Some(tail), Some(last)) => {
                    if active.last().is_none_or(|other| last.number > other.number) {
                        active = run[tail..].to_vec();
                    }
                    start += length;
                }
                _ => start += SECTOR_BYTES,
            }
        }
        Ok(active)
    }

    /// The entries from `start` that follow each other, once round at most.
    fn run(&mut self, start: u64) -> Result<Vec<Entry>> {
        let (mut run, mut length): (Vec<Entry>, u64) = (Vec::new(), 0);
        while let Some(entry) = self.entry((start + length) % self.bytes)? {
            let follows =
                run.last().is_none_or(|last| last.number.checked_add(1) == Some(entry.number));
            if !follows || length + entry.bytes > self.bytes {
                break;
            }
            length += entry.bytes;
            run.push(entry);
        }
        Ok(run)
    }

    fn entry(&mut self, at: u64) -> Result<Option<Entry>> {
        if let Some(entry) = self.seen.get(&at) {
            return Ok(*entry);
        }
        let entry = self.read_entry(at)?;
        self.seen.insert(at, entry);
        Ok(entry)
    }

    /// The entry at `at`, if there is one that is whole and of this log.
    fn read_entry(&mut self, at: u64) -> Result<Option<Entry>> {
        let head = self.sector(at)?;
        let entry = Entry {
            at,
            bytes: u64::from(u32_at(&head, 8)),
            tail: u64::from(u32_at(&head, 12)),
            number: u64_at(&head, 16),
            descriptors: u64::from(u32_at(&head, 24)),
            flushed: u64_at(&head, 48),
            last: u64_at(&head, 56),
        };
        let is_one = head.starts_with(b"loge") && Id::at(&head, 32) == self.id && entry.number != 0;
        let has_sectors =
            [entry.bytes, entry.tail].iter().all(|it| it.is_multiple_of(SECTOR_BYTES));
        let fits = (entry.head_sectors() * SECTOR_BYTES..=self.bytes).contains(&entry.bytes);
        if !is_one || !has_sectors || !fits || entry.last > i64::MAX as u64 {
            return Ok(None);
        }
        let mut digest = CRC.digest();
        digest.update(&head[..4]);
        digest.update(&[0; 4]);
        digest.update(&head[8..]);
        for offset in (SECTOR_BYTES..entry.bytes).step_by(SECTOR_BYTES as usize) {
            digest.update(&self.sector(at + offset)?);
        }
        let is_whole = digest.finalize() == u32_at(&head, 4);
        Ok(if is_whole && self.descriptors(&entry, &mut |_, _| ())? { Some(entry) } else { None })
    }

    /// Calls `each` with what an entry puts over the file; false if the entry is not whole.
    fn descriptors(&mut self, entry: &Entry, each: &mut dyn FnMut(u64, Patch)) -> Result<bool> {
        let mut data = entry.head_sectors() * SECTOR_BYTES;
        let mut head = [0; SECTOR_BYTES as usize];
        for number in 0..entry.descriptors {
            let at = ENTRY_HEADER_BYTES + number * DESCRIPTOR_BYTES;
            if number == 0 || at.is_multiple_of(SECTOR_BYTES) {
                head = self.sector(entry.at + at / SECTOR_BYTES * SECTOR_BYTES)?;
            }
            let descriptor = &head[(at % SECTOR_BYTES) as usize..][..DESCRIPTOR_BYTES as usize];
            let is_page = descriptor.starts_with(b"desc");
            let (start, bytes) = (
                u64_at(descriptor, 16),
                if is_page { SECTOR_BYTES } else { u64_at(descriptor, 8) },
            );
            let is_known = is_page || descriptor.starts_with(b"zero");
            let is_even = start.is_multiple_of(SECTOR_BYTES) && bytes.is_multiple_of(SECTOR_BYTES);
            let end = start.checked_add(bytes);
            let (true, true, Some(end)) = (is_known, is_even, end) else { return Ok(false) };
            if u64_at(descriptor, 24) != entry.number {
                return Ok(false);
            }
            let content = if is_page {
                if data == entry.bytes || !self.is_data(entry, data)? {
                    return Ok(false);
                }
                data += SECTOR_BYTES;
                Content::Page {
                    sector: self.place(entry.at + data - SECTOR_BYTES),
                    head: std::array::from_fn(|index| descriptor[8 + index]),
                    tail: std::array::from_fn(|index| descriptor[4 + index]),
                }
            } else {
                Content::Zeros
            };
            if bytes != 0 {
                each(start, Patch { end, content });
            }
        }
        Ok(true)
    }

    /// True if a sector of an entry holds data of it: its number is at both ends.
    fn is_data(&mut self, entry: &Entry, offset: u64) -> Result<bool> {
        let sector = self.sector(entry.at + offset)?;
        let number = u64::from(u32_at(&sector, 4)) << 32 | u64::from(u32_at(&sector, TAIL_AT));
        Ok(sector.starts_with(b"data") && number == entry.number)
    }

    fn patches_of(&mut self, entry: &Entry, patches: &mut Vec<(u64, Patch)>) -> Result<()> {
        if patches.len() as u64 + entry.descriptors > DESCRIPTORS_MAX {
            return Err(bad(self.file, "there is too much in its log"));
        }
        self.descriptors(entry, &mut |start, patch| patches.push((start, patch)))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::open_disk;

    /// Patches over each other in every way, against a model of pages.
    #[test]
    fn later_patches_lie_over_earlier_ones() {
        const PAGES: u64 = 24;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let page = |number: u8| [number; SECTOR_BYTES as usize];
        let stored: Vec<u8> = (1..=PAGES as u8).flat_map(page).collect();
        std::fs::write(&path, &stored).unwrap();
        for seed in 0..50_u64 {
            let (file, size) = (open_disk(&path).unwrap(), PAGES * SECTOR_BYTES);
            let mut replayed = Replayed { file, size, patches: BTreeMap::new() };
            let mut model = stored.clone();
            for step in 0..20_u64 {
                let random = blake3::hash(&(seed << 32 | step).to_le_bytes());
                let [kind, start, count, source] =
                    [0, 1, 2, 3].map(|at| u64::from(random.as_bytes()[at]));
                let (start, source) = (start % PAGES, source % PAGES);
                let count = if kind % 2 == 0 { 1 } else { 1 + count % (PAGES - start) };
                let range = start * SECTOR_BYTES..(start + count) * SECTOR_BYTES;
                let content = if kind % 2 == 0 {
                    Content::Page { sector: source * SECTOR_BYTES, head: [100; 8], tail: [101; 4] }
                } else {
                    Content::Zeros
                };
                replayed.cover(range.start, Patch { end: range.end, content });
                let model = &mut model[range.start as usize..range.end as usize];
                model.fill(if kind % 2 == 0 { 1 + source as u8 } else { 0 });
                if kind % 2 == 0 {
                    model[..8].fill(100);
                    model[TAIL_AT..].fill(101);
                }
            }
            let whole = replayed.read(0, model.len(), "all").unwrap();
            assert!(whole == model, "seed {seed}");
            for (at, bytes) in [(5, 10), (4090, 4), (4000, 9000), (8191, 30_000)] {
                let part = replayed.read(at, bytes, "a part").unwrap();
                assert!(part == model[at as usize..][..bytes], "seed {seed}: {bytes} at {at}");
            }
        }
    }
}

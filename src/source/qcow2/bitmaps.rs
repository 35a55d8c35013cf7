//! The dirty bitmaps that a qcow2 image keeps (QEMU, docs/interop/qcow2.rst, "Bitmaps").
//!
//! Invariants: a bitmap that may lack a write is an error and never a list of changes; what the
//! directory says is checked against the file and the disk's size before it is followed; memory is
//! bounded whatever the image says.

use super::header::{bad, read, u16_at, u32_at, u64_at};
use crate::error::{Error, ErrorKind, Result};
use crate::source::layer::bit_run;
use crate::source::{Changes, DiskSource};
use std::collections::BTreeSet;
use std::ops::Range;

/// Bytes of the header extension.
const EXTENSION_BYTES: u64 = 24;
/// Most bitmaps and most bytes of their directory, as in QEMU.
const BITMAPS_MAX: u32 = 65_535;
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of one bitmap, as in QEMU.
const BITMAP_BYTES_MAX: u64 = 512 << 20;
/// Longest name, as in QEMU.
const NAME_BYTES_MAX: usize = 1023;
/// Bytes of an entry of the directory in front of extra data and name.
const ENTRY_BYTES: usize = 24;

const IN_USE: u32 = 1 << 0;
const AUTO: u32 = 1 << 1;
const EXTRA_DATA_COMPATIBLE: u32 = 1 << 2;
const FLAGS_KNOWN: u32 = IN_USE | AUTO | EXTRA_DATA_COMPATIBLE;
/// The only type there is: what was written to since.
const DIRTY_TRACKING: u8 = 1;

/// Bits of a table's entry that are a place in the file, 9 to 55, and the one that stands for a
/// cluster of ones where there is no place.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const ALL_ONES: u64 = 1;
/// Entries of a table that are read at once.
const TABLE_PIECE: u64 = 8192;

/// What a header says of bitmaps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extension {
    /// Where its bytes are, and how many; none if there are no bitmaps.
    pub place: Option<(u64, u64)>,
    /// True if nobody wrote to the image who does not know bitmaps.
    pub is_current: bool,
}

/// The bitmaps of an image.
pub(super) struct Bitmaps {
    pub extension: Extension,
    pub cluster_bits: u32,
    /// Virtual size of the disk, in bytes.
    pub size: u64,
}

/// An entry of the directory.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    table: (u64, u32),
    flags: u32,
    kind: u8,
    granularity_bits: u8,
    extra_bytes: u32,
}

impl Bitmaps {
    /// All that the directory names, usable or not.
    ///
    /// # Errors
    /// `Source` for a directory that is not within its limits or the file, or contradicts itself.
    pub fn entries(&self, file: &dyn DiskSource) -> Result<Vec<Entry>> {
        let Some(place) = self.extension.place else { return Ok(Vec::new()) };
        match self.directory(file, place) {
            // It may have been written over by a program that does not know it.
            Err(_) if !self.extension.is_current => Ok(Vec::new()),
            entries => entries,
        }
    }

    fn directory(&self, file: &dyn DiskSource, (at, bytes): (u64, u64)) -> Result<Vec<Entry>> {
        if bytes != EXTENSION_BYTES {
            return Err(bad(file, format!("its bitmaps extension has {bytes} bytes")));
        }
        let head = read(file, at, EXTENSION_BYTES as usize, "the bitmaps extension")?;
        let (count, bytes, start) = (u32_at(&head, 0), u64_at(&head, 8), u64_at(&head, 16));
        if count == 0 || count > BITMAPS_MAX || bytes > DIRECTORY_BYTES_MAX {
            return Err(bad(file, format!("{count} bitmaps in a directory of {bytes} bytes")));
        }
        let directory = read(file, start, bytes as usize, "the directory of bitmaps")?;
        let mut entries = Vec::new();
        let mut names = BTreeSet::new();
        let mut rest = &directory[..];
        for number in 0..count {
            let parsed = Entry::parse(rest);
            let (entry, bytes) =
                parsed.map_err(|why| bad(file, format!("bitmap {number} {why}")))?;
            if !names.insert(entry.name.clone()) {
                let name = entry.name.escape_debug();
                return Err(bad(file, format!("two bitmaps are called {name}")));
            }
            entries.push(entry);
            rest = &rest[bytes..];
        }
        match rest.len() {
            0 => Ok(entries),
            more => Err(bad(file, format!("its directory of bitmaps has {more} bytes more"))),
        }
    }

    /// Why a bitmap does not tell all changes; nothing if it does.
    pub fn problem(&self, entry: &Entry) -> Option<String> {
        let needed = self.bytes_needed(entry);
        let clusters = needed.div_ceil(1 << self.cluster_bits);
        if !self.extension.is_current {
            return Some("may lack writes of a program that does not know bitmaps".into());
        }
        if entry.flags & IN_USE != 0 {
            return Some("was not closed: qemu was killed or is running".into());
        }
        if entry.kind != DIRTY_TRACKING {
            return Some(format!("has type {}, which is not known", entry.kind));
        }
        if entry.flags & !FLAGS_KNOWN != 0 {
            return Some(format!("has flags {:#x}, which are not known", entry.flags));
        }
        if entry.extra_bytes > 0 && entry.flags & EXTRA_DATA_COMPATIBLE == 0 {
            return Some("has extra data that are not known".into());
        }
        if !(9..=31).contains(&entry.granularity_bits) {
            return Some(format!("has a granularity of 2^{} bytes", entry.granularity_bits));
        }
        if needed > BITMAP_BYTES_MAX || u64::from(entry.table.1) != clusters {
            let (entries, size) = (entry.table.1, self.size);
            return Some(format!("has a table of {entries} entries for a disk of {size} bytes"));
        }
        if entry.flags & AUTO == 0 {
            return Some("is not enabled: it may have missed writes".into());
        }
        None
    }

    /// Bytes that the bits of the whole disk need.
    fn bytes_needed(&self, entry: &Entry) -> u64 {
        let granularity = 1_u64.checked_shl(u32::from(entry.granularity_bits)).unwrap_or(u64::MAX);
        self.size.div_ceil(granularity).div_ceil(8)
    }

    /// What the bits of a bitmap without [`Bitmaps::problem`] are set for.
    ///
    /// # Errors
    /// `Source` for a table or a cluster of it that is not within the file or says what it cannot.
    pub fn changed(&self, file: &dyn DiskSource, entry: &Entry) -> Result<Vec<Range<u64>>> {
        let cluster_bytes = 1_u64 << self.cluster_bits;
        let name = entry.name.escape_debug();
        let wrong = |what: String| bad(file, format!("bitmap {name} {what}"));
        let granularity_bits = u32::from(entry.granularity_bits);
        let bits_all = self.size.div_ceil(1 << granularity_bits);
        let bits_cluster = cluster_bytes * 8;
        let mut changes = Changes::default();
        // A bit at most covers what is left of the disk.
        let mut add = |bits: Range<u64>| {
            let end = (u128::from(bits.end) << granularity_bits).min(u128::from(self.size)) as u64;
            changes.add(bits.start << granularity_bits..end);
        };
        let (at, entries) = (entry.table.0, u64::from(entry.table.1));
        for first in (0..entries).step_by(TABLE_PIECE as usize) {
            let count = TABLE_PIECE.min(entries - first);
            let place = at.checked_add(first * 8).ok_or_else(|| wrong("has no table".into()))?;
            let table = read(file, place, count as usize * 8, "the table of a bitmap")?;
            for (number, word) in (first..).zip(table.chunks_exact(8)) {
                let word = u64_at(word, 0);
                let (from, to) = (number * bits_cluster, (number + 1) * bits_cluster);
                let bits = from..to.min(bits_all);
                let host = word & OFFSET_MASK;
                let is_odd = word & !(OFFSET_MASK | ALL_ONES) != 0
                    || host != 0 && word & ALL_ONES != 0
                    || !host.is_multiple_of(cluster_bytes);
                match (host, word) {
                    _ if is_odd => return Err(wrong(format!("has an entry {word:#x}"))),
                    (0, 0) => {}
                    (0, _) => add(bits),
                    (host, _) => {
                        let length = (bits.end - bits.start).div_ceil(8) as usize;
                        let bytes = read(file, host, length, "a cluster of a bitmap")?;
                        each_set(&bytes, bits, &mut add);
                    }
                }
            }
        }
        Ok(changes.finish())
    }

    /// The error of a bitmap that cannot be used.
    pub fn refuse(file: &dyn DiskSource, name: &str, problem: &str) -> Error {
        let (name, file) = (name.escape_debug(), file.describe());
        let text = format!("cannot use bitmap {name} of {file}: it {problem}");
        Error::new(ErrorKind::Source, text).hint("leave it out; the disk is then read in full")
    }
}

/// Calls `add` with runs of bits that are set in the bytes of these bits.
fn each_set(bytes: &[u8], bits: Range<u64>, add: &mut dyn FnMut(Range<u64>)) {
    let low_first = |bytes: &[u8], at: u64| bytes[(at / 8) as usize] >> (at % 8) & 1 == 1;
    let (mut at, end) = (0, bits.end - bits.start);
    while at < end {
        let (is_set, stop) = bit_run(bytes, at, end, low_first);
        if is_set {
            add(bits.start + at..bits.start + stop);
        }
        at = stop;
    }
}

impl Entry {
    /// The entry that these bytes begin with, and how many of them it has.
    fn parse(bytes: &[u8]) -> std::result::Result<(Entry, usize), String> {
        let too_short = || "reaches beyond the directory".to_string();
        if bytes.len() < ENTRY_BYTES {
            return Err(too_short());
        }
        let (name_bytes, extra_bytes) = (usize::from(u16_at(bytes, 18)), u32_at(bytes, 20));
        if name_bytes == 0 || name_bytes > NAME_BYTES_MAX {
            return Err(format!("has a name of {name_bytes} bytes"));
        }
        let name_at = ENTRY_BYTES.checked_add(extra_bytes as usize).ok_or_else(too_short)?;
        let end = name_at.checked_add(name_bytes).ok_or_else(too_short)?;
        let padded = end.checked_next_multiple_of(8).filter(|end| *end <= bytes.len());
        let padded = padded.ok_or_else(too_short)?;
        let name = String::from_utf8(bytes[name_at..end].to_vec());
        let entry = Entry {
            name: name.map_err(|_| "has a name that is no text".to_string())?,
            table: (u64_at(bytes, 0), u32_at(bytes, 8)),
            flags: u32_at(bytes, 12),
            kind: bytes[16],
            granularity_bits: bytes[17],
            extra_bytes,
        };
        Ok((entry, padded))
    }
}

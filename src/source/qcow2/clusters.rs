//! What the entries of a qcow2 image's tables say.

use std::ops::Range;

/// The bits of an entry that are a place in the file: 9 to 55.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
/// Set on entries of clusters that are allocated and used once.
const COPIED: u64 = 1 << 63;
const ALL_ZEROS: u64 = 1;
/// Subclusters of a cluster, where there are some.
const SUBCLUSTERS: u64 = 32;
const SECTOR_BYTES: u64 = 512;

/// How an image is divided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    /// Clusters have two to the power of this bytes; from 9 to 21.
    pub cluster_bits: u32,
    /// True if entries have a bit for each 32nd part of a cluster.
    pub has_subclusters: bool,
    /// True if an entry can say that a cluster reads as zeros.
    pub has_zero_flag: bool,
    /// True if plain clusters are in another file, whose first one may be in use.
    pub has_data_file: bool,
}

/// Where the bytes of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the backing file, or nowhere.
    Below,
    /// They are zeros.
    Zero,
    /// At this place in the file.
    Host(u64),
    /// In a compressed cluster, behind so many bytes of it.
    Compressed { descriptor: u64, skip: usize },
}

/// A second-level table.
pub(super) struct Table {
    words: Vec<u64>,
}

impl Table {
    /// The table of these bytes.
    pub fn new(bytes: &[u8]) -> Table {
        let words = bytes.chunks_exact(8).map(|word| super::header::u64_at(word, 0));
        Table { words: words.collect() }
    }
}

impl Geometry {
    const fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of the disk that one second-level table is for.
    pub const fn table_covers(&self) -> u64 {
        let entry_bits = if self.has_subclusters { 4 } else { 3 };
        1 << (2 * self.cluster_bits - entry_bits)
    }

    /// The place of the table that a first-level entry names; nothing if there is none.
    pub fn table_at(&self, entry: u64) -> Result<Option<u64>, String> {
        let at = entry & OFFSET_MASK;
        if !at.is_multiple_of(self.cluster()) {
            return Err(format!("a table at {at} is not at a cluster"));
        }
        Ok((at != 0).then_some(at))
    }

    /// The run that begins at the start of `range`, in bytes from what the table is for: what it
    /// is, and how long, at most all of the range.
    pub fn run(&self, table: &Table, range: Range<u64>) -> Result<(Place, u64), String> {
        let unit = self.cluster() / if self.has_subclusters { SUBCLUSTERS } else { 1 };
        let place = self.place(table, range.start, unit)?;
        let mut end = (range.start / unit + 1) * unit;
        if let Place::Compressed { .. } = place {
            let cluster = (range.start / self.cluster() + 1) * self.cluster();
            return Ok((place, cluster.min(range.end) - range.start));
        }
        while end < range.end {
            let next = self.place(table, end, unit)?;
            let goes_on = match (place, next) {
                (Place::Host(first), Place::Host(next)) => next == first + (end - range.start),
                (place, next) => place == next,
            };
            if !goes_on {
                break;
            }
            end += unit;
        }
        Ok((place, end.min(range.end) - range.start))
    }

    /// What is at a place in what the table is for.
    fn place(&self, table: &Table, at: u64, unit: u64) -> Result<Place, String> {
        let index = (at / self.cluster()) as usize;
        let within = at % self.cluster();
        let (entry, bitmap) = if self.has_subclusters {
            (table.words[2 * index], table.words[2 * index + 1])
        } else {
            (table.words[index], 0)
        };
        if entry & COMPRESSED != 0 {
            return Ok(Place::Compressed { descriptor: entry, skip: within as usize });
        }
        let host = entry & OFFSET_MASK;
        if !host.is_multiple_of(self.cluster()) {
            return Err(format!("a cluster at {host} is not at a multiple of its size"));
        }
        let is_there = host != 0 || self.has_data_file && entry & COPIED != 0;
        let is_zero = self.has_zero_flag && !self.has_subclusters && entry & ALL_ZEROS != 0;
        let (is_zero, is_here) = if self.has_subclusters {
            let bit = within / unit;
            (bitmap >> (32 + bit) & 1 == 1, bitmap >> bit & 1 == 1)
        } else {
            (is_zero, is_there)
        };
        match (is_zero, is_here) {
            (true, true) if self.has_subclusters => {
                Err("a subcluster is both allocated and zero".into())
            }
            (true, _) => Ok(Place::Zero),
            (false, true) if !is_there => Err("a subcluster is allocated nowhere".into()),
            (false, true) => Ok(Place::Host(host + within)),
            (false, false) => Ok(Place::Below),
        }
    }

    /// Where a compressed cluster is, and how many bytes it has at most.
    pub const fn compressed_at(&self, descriptor: u64) -> (u64, u64) {
        let bits = 62 - (self.cluster_bits - 8);
        let at = descriptor & ((1 << bits) - 1);
        let sectors = (descriptor & (COMPRESSED - 1)) >> bits;
        (at, (sectors + 1) * SECTOR_BYTES - at % SECTOR_BYTES)
    }
}

//! Manifests (spec/36-manifest.md): the record of one restore point.
//!
//! A manifest is sealed; its id is the BLAKE3 of the sealed bytes. It names everything the point
//! needs: maps by root and top page, digests, and the points before it in its series, so that a
//! point that vanished or was rolled back shows from any later one.

use crate::crypto::{Keys, ObjectKind};
use crate::error::{Result, limit, malformed, newer, unauthentic};
use crate::id::{BackupId, LeaseId, MapRoot, PageId, PointId, WriterId};
use crate::limits::{
    ALLOCATION_BYTES_MAX, BAD_EXTENTS_MAX, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, DISK_BYTES_MAX,
    FIELDS_MAX, NAME_BYTES_MAX, PARTS_MAX, PREVIOUS_MAX, TEXT_BYTES_MAX,
};
use crate::writers::WriterRecord;
use crate::{record, sealed};
use serde::{Deserialize, Serialize};

/// Sequences of points by writers that may not read are smaller, so that there is always a next.
const SEQUENCE_END_OF_WRITERS: u64 = 1 << 63;

/// How a disk or stream was cut into chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunking {
    /// 1 fixed grid, 2 content-defined.
    kind: u8,
    /// Chunk bytes of the grid, or least bytes of a cut.
    first: u32,
    /// 0, or average bytes of a cut.
    second: u32,
    /// 0, or most bytes of a cut.
    third: u32,
}

impl Chunking {
    /// A fixed grid from byte 0.
    pub fn fixed(chunk_bytes: u32) -> Chunking {
        Chunking { kind: 1, first: chunk_bytes, second: 0, third: 0 }
    }

    /// Content-defined cuts.
    pub fn content(bytes_min: u32, bytes_average: u32, bytes_max: u32) -> Chunking {
        Chunking { kind: 2, first: bytes_min, second: bytes_average, third: bytes_max }
    }

    /// The chunk size of a fixed grid; `None` for content-defined cuts.
    pub fn grid(&self) -> Option<u32> {
        (self.kind == 1).then_some(self.first)
    }

    /// Least, average and most bytes of content-defined cuts.
    pub fn cuts(&self) -> Option<(u32, u32, u32)> {
        (self.kind == 2).then_some((self.first, self.second, self.third))
    }

    pub(crate) fn numbers(&self) -> (u8, [u32; 3]) {
        (self.kind, [self.first, self.second, self.third])
    }

    fn validate(&self) -> Result<()> {
        match self.numbers() {
            (1, [chunk, 0, 0])
                if chunk.is_power_of_two()
                    && (CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk) =>
            {
                Ok(())
            }
            (2, [least, average, most])
                if 0 < least && least <= average && average <= most && most <= CHUNK_BYTES_MAX =>
            {
                Ok(())
            }
            (1 | 2, _) => Err(malformed("F-4", "the chunking has impossible sizes")),
            (kind, _) => Err(newer("F-4", format!("uses chunking {kind}"))),
        }
    }
}

/// A byte string stored through a stream map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamReference {
    /// Length in bytes.
    pub bytes: u64,
    /// How it was cut.
    pub chunking: Chunking,
    /// The map root.
    pub root: MapRoot,
    /// The top page; none for no bytes.
    pub top: Option<PageId>,
}

/// A range of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// Length.
    pub bytes: u64,
}

/// A field of a later version; its number says whether a reader must know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// From 0x8000 on a reader that does not know the number refuses the record.
    pub number: u16,
    /// Meaning depends on the number.
    pub value: Vec<u8>,
}

/// What one backup of one disk or stream did; all in bytes but the chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Size as the guest sees it.
    pub virtual_bytes: u64,
    /// Allocated at the source.
    pub allocated_bytes: u64,
    /// Read from the source.
    pub read_bytes: u64,
    /// Skipped as holes.
    pub hole_bytes: u64,
    /// Read and found zero.
    pub zero_bytes: u64,
    /// Equal to the previous point.
    pub unchanged_bytes: u64,
    /// Changed, but stored before.
    pub deduplicated_bytes: u64,
    /// Stored now, before compression.
    pub new_bytes: u64,
    /// Stored now, after compression and sealing, maps included.
    pub stored_bytes: u64,
    /// Chunks stored now.
    pub new_chunks: u64,
}

impl Statistics {
    /// Adds another part of the same point.
    pub fn add(&mut self, other: &Statistics) {
        self.virtual_bytes = self.virtual_bytes.saturating_add(other.virtual_bytes);
        self.allocated_bytes = self.allocated_bytes.saturating_add(other.allocated_bytes);
        self.read_bytes = self.read_bytes.saturating_add(other.read_bytes);
        self.hole_bytes = self.hole_bytes.saturating_add(other.hole_bytes);
        self.zero_bytes = self.zero_bytes.saturating_add(other.zero_bytes);
        self.unchanged_bytes = self.unchanged_bytes.saturating_add(other.unchanged_bytes);
        self.deduplicated_bytes = self.deduplicated_bytes.saturating_add(other.deduplicated_bytes);
        self.new_bytes = self.new_bytes.saturating_add(other.new_bytes);
        self.stored_bytes = self.stored_bytes.saturating_add(other.stored_bytes);
        self.new_chunks = self.new_chunks.saturating_add(other.new_chunks);
    }
}

/// One disk of a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Stable name, unique in the point.
    pub name: String,
    /// Size as the guest sees it, in bytes.
    pub size: u64,
    /// How it was cut.
    pub chunking: Chunking,
    /// Offset of the grid; 0, others reserved.
    pub grid_offset: u32,
    /// Format it was read from, such as `raw`.
    pub source_format: String,
    /// The map root: equal roots mean equal bytes.
    pub root: MapRoot,
    /// The top page; none for zeros only or no bytes.
    pub top: Option<PageId>,
    /// BLAKE3 of the whole disk; only for content-defined cuts and disks of at most one chunk.
    pub digest: Option<[u8; 32]>,
    /// The allocation list, if the source could tell.
    pub allocation: Option<StreamReference>,
    /// Ranges that could not be read and stand as zeros, ascending.
    pub bad_extents: Vec<ByteRange>,
    /// Change-tracking token of the source; empty if there is none.
    pub token: Vec<u8>,
    /// Ranges taken over from the previous point without reading, ascending.
    pub inherited: Vec<ByteRange>,
    /// 0: free space of the guest is kept; others reserved.
    pub free_space_mode: u8,
    /// Other digests asked for: name (`sha256`, ...) and value.
    pub digests: Vec<(String, Vec<u8>)>,
    /// What the backup did.
    pub statistics: Statistics,
    /// Later fields.
    pub extensions: Vec<Extension>,
}

/// One stream of a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRecord {
    /// Stable name, unique in the point.
    pub name: String,
    /// Where its bytes are.
    pub content: StreamReference,
    /// BLAKE3 of the whole stream.
    pub digest: [u8; 32],
    /// Other digests asked for.
    pub digests: Vec<(String, Vec<u8>)>,
    /// What the backup did.
    pub statistics: Statistics,
    /// Later fields.
    pub extensions: Vec<Extension>,
}

/// The record of one restore point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Random; the same through all tries of one backup.
    pub backup_id: BackupId,
    /// The lease it was written under.
    pub lease: LeaseId,
    /// The series it belongs to.
    pub series: String,
    /// The point in time it shows, in nanoseconds since 1970-01-01T00:00:00Z.
    pub time_unix_ns: i64,
    /// When the backup began.
    pub started_unix_ns: i64,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// Host that made it.
    pub host: String,
    /// The host's writer.
    pub writer: WriterId,
    /// Program and version that made it.
    pub program: String,
    /// One more than the greatest among `previous`, from 1.
    pub sequence: u64,
    /// All heads of the series when it was made, ascending.
    pub previous: Vec<PointId>,
    /// The point this one publishes anew after an undone removal.
    pub republishes: Option<PointId>,
    /// Tags given at backup: key and value.
    pub tags: Vec<(String, String)>,
    /// The disks, in the order given.
    pub disks: Vec<DiskRecord>,
    /// The streams, in the order given.
    pub streams: Vec<StreamRecord>,
    /// 0: none; others reserved.
    pub signature_kind: u8,
    /// Later fields.
    pub extensions: Vec<Extension>,
}

impl Manifest {
    /// Opens a sealed manifest, decodes and checks it. One of a writer that may not read has to be
    /// its own, of a series that it may write to, and no point published anew.
    ///
    /// # Errors
    /// O-1 to O-6, R-1 to R-3, F-1 to F-10, F-12.
    pub fn open(keys: &Keys, object: &[u8]) -> Result<Manifest> {
        let opened = sealed::open(keys, ObjectKind::Manifest, "", object)?;
        let manifest: Manifest = record::decode(&opened.plaintext)?;
        manifest.validate()?;
        if let Some(signer) = opened.signer {
            manifest.validate_signed(signer, keys)?;
        }
        Ok(manifest)
    }

    /// Checks what a writer may say that may not read, whatever it signs.
    fn validate_signed(&self, signer: WriterId, keys: &Keys) -> Result<()> {
        let may_write = |record: &WriterRecord| record.may_write_to(&self.series);
        let refuse = |text: String| Err(unauthentic("F-12", text));
        if self.writer != signer {
            return refuse(format!("is signed by {signer} and says that {} made it", self.writer));
        }
        if !keys.writers().get(signer).is_some_and(may_write) {
            let series = self.series.escape_debug();
            return refuse(format!("writer {signer} may not write to series {series}"));
        }
        if self.republishes.is_some() {
            return refuse(format!("writer {signer} may not publish a point anew"));
        }
        if self.sequence >= SEQUENCE_END_OF_WRITERS {
            return refuse(format!("writer {signer} leaves no sequence numbers to others"));
        }
        Ok(())
    }

    /// Checks everything that does not need another object.
    ///
    /// # Errors
    /// F-1 counts, F-2 names, F-3 sizes, F-4 chunking, F-5 reserved values, F-6 order,
    /// F-7 a top page where there can be none, F-8 extensions that must be known.
    pub fn validate(&self) -> Result<()> {
        check_count("disks", self.disks.len(), PARTS_MAX)?;
        check_count("streams", self.streams.len(), PARTS_MAX)?;
        check_count("previous points", self.previous.len(), PREVIOUS_MAX)?;
        check_count("tags", self.tags.len(), FIELDS_MAX)?;
        validate_series_name(&self.series)?;
        for text in [&self.host, &self.program] {
            validate_text(text)?;
        }
        for (key, value) in &self.tags {
            validate_text(key)?;
            validate_text(value)?;
        }
        if self.sequence == 0 || self.signature_kind != 0 {
            return Err(newer("F-5", "has a sequence number or signature that cannot be"));
        }
        if !self.previous.is_sorted_by(|a, b| a < b) {
            return Err(malformed("F-6", "the previous points are not in ascending order"));
        }
        validate_extensions(&self.extensions)?;
        for disk in &self.disks {
            disk.validate()?;
        }
        for stream in &self.streams {
            validate_part_name(&stream.name)?;
            stream.content.validate()?;
            validate_digests(&stream.digests)?;
            validate_extensions(&stream.extensions)?;
        }
        let mut names: Vec<&str> = self.part_names().collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(malformed("F-2", "two parts have the same name"));
        }
        Ok(())
    }

    /// Names of all disks, then of all streams.
    pub fn part_names(&self) -> impl Iterator<Item = &str> {
        let disks = self.disks.iter().map(|disk| disk.name.as_str());
        disks.chain(self.streams.iter().map(|stream| stream.name.as_str()))
    }

    /// The sum over all parts.
    pub fn statistics(&self) -> Statistics {
        let mut sum = Statistics::default();
        for disk in &self.disks {
            sum.add(&disk.statistics);
        }
        for stream in &self.streams {
            sum.add(&stream.statistics);
        }
        sum
    }
}

impl DiskRecord {
    fn validate(&self) -> Result<()> {
        validate_part_name(&self.name)?;
        validate_text(&self.source_format)?;
        check_size(self.size)?;
        self.chunking.validate()?;
        check_count("bad extents", self.bad_extents.len(), BAD_EXTENTS_MAX)?;
        check_count("inherited ranges", self.inherited.len(), BAD_EXTENTS_MAX)?;
        check_count("bytes of the token", self.token.len(), TEXT_BYTES_MAX)?;
        if self.grid_offset != 0 || self.free_space_mode != 0 {
            return Err(newer("F-5", "uses a grid offset or free-space mode"));
        }
        let is_grid = self.chunking.grid();
        if (self.size == 0 && self.top.is_some())
            || (is_grid.is_none() && self.size > 0 && self.top.is_none())
        {
            return Err(malformed("F-7", "a disk has a top page where there is none, or none"));
        }
        let follows_from_map = is_grid.is_some_and(|chunk| self.size > u64::from(chunk));
        if self.digest.is_some() == follows_from_map {
            return Err(malformed("F-10", "a digest stands where the map gives it, or is missing"));
        }
        validate_digests(&self.digests)?;
        for list in [&self.bad_extents, &self.inherited] {
            validate_ranges(list, self.size)?;
        }
        if let Some(allocation) = &self.allocation {
            allocation.validate()?;
            if allocation.bytes > ALLOCATION_BYTES_MAX {
                let most = ALLOCATION_BYTES_MAX;
                return Err(limit("A-3", "the allocation list's length", most, allocation.bytes));
            }
        }
        validate_extensions(&self.extensions)
    }
}

impl StreamReference {
    fn validate(&self) -> Result<()> {
        check_size(self.bytes)?;
        self.chunking.validate()?;
        if self.chunking.cuts().is_none() {
            return Err(malformed("F-4", "a stream is cut on a fixed grid"));
        }
        if (self.bytes == 0) != self.top.is_none() {
            return Err(malformed("F-7", "a stream has bytes but no top page, or the reverse"));
        }
        Ok(())
    }
}

fn validate_ranges(ranges: &[ByteRange], size: u64) -> Result<()> {
    let mut free = 0;
    for range in ranges {
        let end = range.start.checked_add(range.bytes);
        let fits = end.is_some_and(|end| end <= size);
        if range.bytes == 0 || range.start < free || !fits {
            return Err(malformed("F-6", "a list of ranges overlaps or leaves the disk"));
        }
        free = range.start + range.bytes;
    }
    Ok(())
}

fn validate_digests(digests: &[(String, Vec<u8>)]) -> Result<()> {
    check_count("digests", digests.len(), FIELDS_MAX)?;
    for (name, value) in digests {
        validate_text(name)?;
        check_count("bytes of a digest", value.len(), TEXT_BYTES_MAX)?;
    }
    Ok(())
}

fn validate_extensions(extensions: &[Extension]) -> Result<()> {
    check_count("extensions", extensions.len(), FIELDS_MAX)?;
    for extension in extensions {
        check_count("bytes of an extension", extension.value.len(), TEXT_BYTES_MAX)?;
    }
    match extensions.iter().find(|extension| extension.number >= 0x8000) {
        Some(unknown) => Err(newer("F-8", format!("needs extension {:#06x}", unknown.number))),
        None => Ok(()),
    }
}

fn check_count(what: &str, found: usize, most: usize) -> Result<()> {
    if found > most {
        return Err(limit("F-1", &format!("the number of {what}"), most as u64, found as u64));
    }
    Ok(())
}

fn check_size(size: u64) -> Result<()> {
    if size > DISK_BYTES_MAX {
        return Err(limit("F-3", "the size", DISK_BYTES_MAX, size));
    }
    Ok(())
}

fn validate_text(text: &str) -> Result<()> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(limit("F-1", "the length of a text", TEXT_BYTES_MAX as u64, text.len() as u64));
    }
    Ok(())
}

fn validate_name(name: &str, forbidden: &[char], what: &str) -> Result<()> {
    let problem = if name.is_empty() {
        "is empty"
    } else if name.len() > NAME_BYTES_MAX {
        "is longer than 255 bytes"
    } else if name == "." || name == ".." {
        "is a path of its own"
    } else if name.chars().any(char::is_control) {
        "has a control character"
    } else if name.contains(forbidden) {
        return Err(malformed("F-2", format!("the {what} name has one of {forbidden:?}")));
    } else {
        return Ok(());
    };
    Err(malformed("F-2", format!("the {what} name {problem}")))
}

/// Checks a series name: 1 to 255 bytes of UTF-8 without control characters and `/ @ ~ :`.
///
/// # Errors
/// F-2.
pub fn validate_series_name(name: &str) -> Result<()> {
    validate_name(name, &['/', '@', '~', ':'], "series")
}

/// Checks a disk or stream name: 1 to 255 bytes of UTF-8 without control characters and `/ :`.
///
/// # Errors
/// F-2.
pub fn validate_part_name(name: &str) -> Result<()> {
    validate_name(name, &['/', ':'], "disk or stream")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record;

    /// A manifest with everything in it.
    fn sample() -> Manifest {
        let content = StreamReference {
            bytes: 5,
            chunking: Chunking::content(16384, 65536, 262_144),
            root: MapRoot([3; 32]),
            top: Some(PageId([4; 32])),
        };
        let disk = DiskRecord {
            name: "vda".into(),
            size: 1 << 30,
            chunking: Chunking::fixed(65536),
            grid_offset: 0,
            source_format: "raw".into(),
            root: MapRoot([1; 32]),
            top: Some(PageId([2; 32])),
            digest: None,
            allocation: Some(content.clone()),
            bad_extents: vec![ByteRange { start: 512, bytes: 512 }],
            token: vec![1, 2],
            inherited: Vec::new(),
            free_space_mode: 0,
            digests: vec![("sha256".into(), vec![0; 32])],
            statistics: Statistics::default(),
            extensions: vec![Extension { number: 1, value: vec![] }],
        };
        let stream = StreamRecord {
            name: "vm.xml".into(),
            content,
            digest: [9; 32],
            digests: Vec::new(),
            statistics: Statistics::default(),
            extensions: Vec::new(),
        };
        Manifest {
            backup_id: BackupId([1; 16]),
            lease: LeaseId([2; 16]),
            series: "web01".into(),
            time_unix_ns: -5,
            started_unix_ns: 1,
            duration_ms: 2,
            host: "kvm1".into(),
            writer: WriterId([3; 16]),
            program: "diskvault 0.1.0".into(),
            sequence: 1,
            previous: vec![PointId([1; 32]), PointId([2; 32])],
            republishes: None,
            tags: vec![("os".into(), "debian".into())],
            disks: vec![disk],
            streams: vec![stream],
            signature_kind: 0,
            extensions: Vec::new(),
        }
    }

    fn rule(change: impl FnOnce(&mut Manifest)) -> &'static str {
        let mut manifest = sample();
        change(&mut manifest);
        manifest.validate().unwrap_err().rule
    }

    #[test]
    fn comes_back_and_validates() {
        let manifest = sample();
        manifest.validate().unwrap();
        let bytes = record::encode(&manifest).unwrap();
        assert_eq!(record::decode::<Manifest>(&bytes).unwrap(), manifest);
    }

    #[test]
    fn each_rule_refuses() {
        assert_eq!(rule(|m| m.disks = vec![m.disks[0].clone(); 1025]), "F-1");
        for name in ["", "..", "a/b", "a:b", "a\0b", "a\nb", "\x1b[31m"] {
            assert_eq!(rule(|m| m.disks[0].name = name.into()), "F-2", "{name:?}");
            assert_eq!(rule(|m| m.series = name.into()), "F-2", "{name:?}");
        }
        assert_eq!(rule(|m| m.series = "web@1".into()), "F-2");
        assert_eq!(rule(|m| m.streams[0].name = "vda".into()), "F-2");
        assert_eq!(rule(|m| m.disks[0].size = (1 << 60) + 1), "F-3");
        assert_eq!(rule(|m| m.disks[0].chunking = Chunking::fixed(5000)), "F-4");
        assert_eq!(rule(|m| m.disks[0].chunking.kind = 9), "F-4");
        assert_eq!(rule(|m| m.streams[0].content.chunking = Chunking::fixed(4096)), "F-4");
        assert_eq!(rule(|m| m.sequence = 0), "F-5");
        assert_eq!(rule(|m| m.disks[0].grid_offset = 1), "F-5");
        assert_eq!(rule(|m| m.previous.reverse()), "F-6");
        let beyond = ByteRange { start: u64::MAX, bytes: 2 };
        assert_eq!(rule(|m| m.disks[0].bad_extents.push(beyond)), "F-6");
        assert_eq!(rule(|m| m.streams[0].content.top = None), "F-7");
        assert_eq!(rule(|m| m.disks[0].digest = Some([0; 32])), "F-10");
        assert_eq!(rule(|m| m.disks[0].size = 65536), "F-10");
        assert_eq!(rule(|m| m.disks[0].digests[0].0 = "x".repeat(5000)), "F-1");
        let too_long = |m: &mut Manifest| {
            if let Some(list) = &mut m.disks[0].allocation {
                list.bytes = ALLOCATION_BYTES_MAX + 1;
            }
        };
        assert_eq!(rule(too_long), "A-3");
        assert_eq!(rule(|m| m.extensions.push(Extension { number: 0x8000, value: vec![] })), "F-8");
    }
}

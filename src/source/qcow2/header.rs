//! The header of a qcow2 image, its extensions and the table of its internal snapshots
//! (QEMU, docs/interop/qcow2.rst).
//!
//! Invariant: every count and offset that is handed on is within its limit; what this reader does
//! not know how to read is refused, not guessed.

use super::bitmaps;
use crate::error::{Error, ErrorKind, Result};
use crate::source::DiskSource;

/// The first bytes of every image.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

const HEADER_V2_BYTES: usize = 72;
/// All of a version 3 header that is known.
const HEADER_BYTES_MAX: usize = 112;
/// Longest name of a backing file or a data file.
const NAME_BYTES_MAX: u64 = 1023;
/// Longest first-level table, as in QEMU.
const L1_BYTES_MAX: u64 = 32 << 20;
/// Most snapshots and most bytes of their table, as in QEMU.
const SNAPSHOTS_MAX: u32 = 65_536;
const SNAPSHOT_TABLE_BYTES_MAX: u64 = 64 << 20;
/// Bytes of one snapshot's extra data.
const SNAPSHOT_EXTRA_MAX: u32 = 1024;

const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const INCOMPATIBLE_KNOWN: u64 = INCOMPATIBLE_DIRTY
    | INCOMPATIBLE_CORRUPT
    | INCOMPATIBLE_DATA_FILE
    | INCOMPATIBLE_COMPRESSION
    | INCOMPATIBLE_EXTENDED_L2;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xE279_2ACA;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;

/// Bitmaps are as the image is: a program that writes to it and does not know them clears the bit.
const AUTOCLEAR_BITMAPS: u64 = 1 << 0;

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Deflate without a header.
    Deflate,
    /// One zstd frame.
    Zstd,
}

/// What a header says.
#[derive(Clone, Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Name of the backing file, if there is one.
    pub backing: Option<String>,
    /// The format of the backing file, if the image says so.
    pub backing_format: Option<String>,
    /// Name of the file that holds the data, if it is another.
    pub data_file: Option<String>,
    /// From 9 to 21.
    pub cluster_bits: u32,
    /// Virtual size in bytes.
    pub size: u64,
    /// True if the contents are encrypted.
    pub is_encrypted: bool,
    /// Where the first-level table is, and its number of entries.
    pub l1: (u64, u32),
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// True if second-level entries have subclusters.
    pub has_subclusters: bool,
    /// Where the table of snapshots is, and their number.
    pub snapshots: (u64, u32),
    /// What it says of dirty bitmaps.
    pub bitmaps: bitmaps::Extension,
}

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number, as text.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where its first-level table is, and its number of entries.
    pub l1: (u64, u32),
    /// Virtual size in bytes, if it says so.
    pub size: Option<u64>,
}

/// An error about an image.
pub(super) fn bad(file: &dyn DiskSource, text: impl std::fmt::Display) -> Error {
    let message = format!("cannot read qcow2 image {}: {text}", file.describe());
    Error::new(ErrorKind::Source, message)
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

/// Reads `bytes` bytes of the image's file; `what` is for the error if they are not there.
pub(super) fn read(file: &dyn DiskSource, at: u64, bytes: usize, what: &str) -> Result<Vec<u8>> {
    if at.checked_add(bytes as u64).is_none_or(|end| end > file.size()) {
        return Err(bad(file, format!("{what} lies beyond the end of the file")));
    }
    let mut buffer = vec![0; bytes];
    file.read_at(at, &mut buffer)?;
    Ok(buffer)
}

impl Header {
    /// Reads and checks the header of `file`.
    ///
    /// # Errors
    /// `Source` for what is no such header, or one of an image that cannot be read.
    pub fn read(file: &dyn DiskSource) -> Result<Header> {
        let there = usize::try_from(file.size()).unwrap_or(usize::MAX).min(HEADER_BYTES_MAX);
        let mut bytes = read(file, 0, there, "the header")?;
        if bytes.len() < HEADER_V2_BYTES || bytes[..4] != MAGIC {
            return Err(bad(file, "it has no qcow2 header"));
        }
        let version = u32_at(&bytes, 4);
        bytes.resize(HEADER_BYTES_MAX, 0);
        let (features, autoclear_end) = match version {
            2 => (0, HEADER_V2_BYTES as u32),
            3 => (u64_at(&bytes, 72), u32_at(&bytes, 100)),
            _ => return Err(bad(file, format!("version {version} is not known"))),
        };
        check_features(file, features)?;
        if version == 3 && autoclear_end < 104 {
            return Err(bad(file, "its header is too short"));
        }
        let compression = match (features & INCOMPATIBLE_COMPRESSION, bytes[104]) {
            (0, _) => Compression::Deflate,
            (_, 1) if autoclear_end > 104 => Compression::Zstd,
            (_, kind) => return Err(bad(file, format!("compression {kind} is not known"))),
        };
        let mut header = Header {
            version,
            backing: None,
            backing_format: None,
            data_file: None,
            cluster_bits: u32_at(&bytes, 20),
            size: u64_at(&bytes, 24),
            is_encrypted: u32_at(&bytes, 32) != 0,
            l1: (u64_at(&bytes, 40), u32_at(&bytes, 36)),
            compression,
            has_subclusters: features & INCOMPATIBLE_EXTENDED_L2 != 0,
            snapshots: (u64_at(&bytes, 64), u32_at(&bytes, 60)),
            bitmaps: bitmaps::Extension {
                place: None,
                is_current: version == 3 && u64_at(&bytes, 88) & AUTOCLEAR_BITMAPS != 0,
            },
        };
        header.check(file)?;
        let backing = (u64_at(&bytes, 8), u32_at(&bytes, 16));
        header.read_extensions(file, u64::from(autoclear_end), backing.0)?;
        if backing.0 != 0 {
            header.backing = Some(read_name(file, backing.0, u64::from(backing.1), "backing")?);
        }
        let has_data_file = features & INCOMPATIBLE_DATA_FILE != 0;
        if has_data_file && header.data_file.is_none() {
            return Err(bad(file, "it does not name its data file"));
        }
        if !has_data_file {
            header.data_file = None;
        }
        Ok(header)
    }

    fn check(&self, file: &dyn DiskSource) -> Result<()> {
        if !(9..=21).contains(&self.cluster_bits) {
            return Err(bad(file, format!("clusters of 2^{} bytes", self.cluster_bits)));
        }
        if self.has_subclusters && self.cluster_bits < 14 {
            return Err(bad(file, "subclusters need clusters of 16 KiB or more"));
        }
        if self.size > i64::MAX as u64 {
            return Err(bad(file, format!("a size of {} bytes", self.size)));
        }
        Ok(())
    }

    /// Entries of the first-level table that a disk of this size needs.
    pub fn l1_entries(&self, size: u64) -> u64 {
        let entry_bits = if self.has_subclusters { 4 } else { 3 };
        size.div_ceil(1 << (2 * self.cluster_bits - entry_bits))
    }

    /// Reads a first-level table, of which a disk of `size` bytes needs a part.
    ///
    /// # Errors
    /// `Source` if it is too short, too long, or not within the file.
    pub fn read_l1(&self, file: &dyn DiskSource, l1: (u64, u32), size: u64) -> Result<Vec<u64>> {
        let (at, there) = l1;
        let needed = self.l1_entries(size);
        if needed > u64::from(there) || needed * 8 > L1_BYTES_MAX {
            let text =
                format!("its first table of {there} entries is for another size than {size}");
            return Err(bad(file, text));
        }
        let bytes = read(file, at, needed as usize * 8, "the first table")?;
        Ok(bytes.chunks_exact(8).map(|entry| u64_at(entry, 0)).collect())
    }

    fn read_extensions(&mut self, file: &dyn DiskSource, start: u64, backing: u64) -> Result<()> {
        let cluster = 1 << self.cluster_bits;
        // They end with their end mark, in front of the backing file's name, or with the cluster.
        let end = if backing == 0 { cluster } else { backing.min(cluster) }.min(file.size());
        let mut at = start;
        while at + 8 <= end {
            let head = read(file, at, 8, "a header extension")?;
            let (kind, bytes) = (u32_at(&head, 0), u64::from(u32_at(&head, 4)));
            if kind == EXTENSION_END {
                break;
            }
            at += 8;
            if bytes > end - at {
                return Err(bad(file, "a header extension is too long"));
            }
            match kind {
                EXTENSION_BACKING_FORMAT => {
                    self.backing_format = Some(read_name(file, at, bytes, "backing format")?);
                }
                EXTENSION_DATA_FILE => {
                    self.data_file = Some(read_name(file, at, bytes, "data file")?);
                }
                EXTENSION_BITMAPS => self.bitmaps.place = Some((at, bytes)),
                _ => {}
            }
            at += bytes.next_multiple_of(8);
        }
        Ok(())
    }

    /// Reads the table of snapshots.
    ///
    /// # Errors
    /// `Source` if it is not within its limits or the file.
    pub fn read_snapshots(&self, file: &dyn DiskSource) -> Result<Vec<Snapshot>> {
        const HEAD: usize = 40;
        let (start, count) = self.snapshots;
        if count > SNAPSHOTS_MAX {
            return Err(bad(file, format!("{count} snapshots")));
        }
        let mut snapshots = Vec::new();
        let mut at = start;
        for _ in 0..count {
            let head = read(file, at, HEAD, "the table of snapshots")?;
            let (id_bytes, name_bytes) = (u16_at(&head, 12) as usize, u16_at(&head, 14) as usize);
            let extra_bytes = u32_at(&head, 36);
            if extra_bytes > SNAPSHOT_EXTRA_MAX {
                return Err(bad(file, "a snapshot has too much extra data"));
            }
            let extra = extra_bytes as usize;
            let total: usize = extra + id_bytes + name_bytes;
            let rest = read(file, at + HEAD as u64, total, "the table of snapshots")?;
            let (id, name) = rest[extra..].split_at(id_bytes);
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            snapshots.push(Snapshot {
                id: text(id),
                name: text(name),
                l1: (u64_at(&head, 0), u32_at(&head, 8)),
                size: (extra >= 16).then(|| u64_at(&rest, 8)),
            });
            at += (HEAD + total).next_multiple_of(8) as u64;
            if at - start > SNAPSHOT_TABLE_BYTES_MAX {
                return Err(bad(file, "its table of snapshots is too long"));
            }
        }
        Ok(snapshots)
    }
}

fn check_features(file: &dyn DiskSource, features: u64) -> Result<()> {
    if features & INCOMPATIBLE_CORRUPT != 0 {
        let error = bad(file, "it is marked as corrupt");
        return Err(error.hint("`qemu-img check -r all` may repair it"));
    }
    let unknown = features & !INCOMPATIBLE_KNOWN;
    if unknown != 0 {
        return Err(bad(file, format!("it needs features that are not known: {unknown:#x}")));
    }
    Ok(())
}

fn read_name(file: &dyn DiskSource, at: u64, bytes: u64, what: &str) -> Result<String> {
    if bytes > NAME_BYTES_MAX {
        return Err(bad(file, format!("the name of its {what} has {bytes} bytes")));
    }
    let name = read(file, at, bytes as usize, "a name")?;
    String::from_utf8(name).map_err(|_| bad(file, format!("the name of its {what} is no text")))
}

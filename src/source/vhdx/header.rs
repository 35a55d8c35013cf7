//! Headers and region tables of a VHDX image (MS-VHDX, 2.2), and the numbers of all its structures.
//!
//! Invariant: of the two copies of each structure one is used whose checksum is right; every place
//! that is handed on is within the file.

use super::log::Replayed;
use crate::error::{Error, ErrorKind, Result};
use crate::source::DiskSource;
use crc::{CRC_32_ISCSI, Crc, Table};

/// The first bytes of every image.
pub const SIGNATURE: [u8; 8] = *b"vhdxfile";

pub(super) const MIB: u64 = 1 << 20;
/// CRC-32C, of which all structures have one at byte 4.
pub(super) const CRC: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

const HEADERS_AT: [u64; 2] = [64 << 10, 128 << 10];
const HEADER_BYTES: usize = 4096;
/// The one version of a header, and of a log.
const VERSION: u16 = 1;
const LOG_VERSION: u16 = 0;
/// Longest log that is read, if there is something in it. Hyper-V and QEMU make 1 MiB.
const LOG_BYTES_MAX: u64 = 64 << 20;

const REGION_TABLES_AT: [u64; 2] = [192 << 10, 256 << 10];
const REGION_TABLE_BYTES: usize = 64 << 10;
const REGION_ENTRIES_MAX: u32 = 2047;
const REGION_BLOCKS: Id = Id::new(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
const REGION_METADATA: Id = Id::new(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);

/// A GUID, as it is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Id([u8; 16]);

impl Id {
    pub const ZERO: Id = Id([0; 16]);

    /// The one that is written as these numbers, from left to right.
    pub const fn new(first: u32, second: u16, third: u16, rest: u64) -> Id {
        let (a, b, c, d) =
            (first.to_le_bytes(), second.to_le_bytes(), third.to_le_bytes(), rest.to_be_bytes());
        Id([
            a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5],
            d[6], d[7],
        ])
    }

    pub fn at(bytes: &[u8], at: usize) -> Id {
        Id(std::array::from_fn(|index| bytes[at + index]))
    }

    /// Reads 32 digits; hyphens and braces do not matter.
    pub fn parse(text: &str) -> Option<Id> {
        let digits: String = text.chars().filter(|mark| !"{-}".contains(*mark)).collect();
        let is_id = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = u128::from_str_radix(&digits, 16).ok().filter(|_| is_id)?;
        Some(Id::new(
            (number >> 96) as u32,
            (number >> 80) as u16,
            (number >> 64) as u16,
            number as u64,
        ))
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (bytes, rest) = (&self.0, u64::from_be_bytes(std::array::from_fn(|at| self.0[8 + at])));
        let (first, second, third) = (u32_at(bytes, 0), u16_at(bytes, 4), u16_at(bytes, 6));
        let (fourth, last) = (rest >> 48, rest & 0xffff_ffff_ffff);
        write!(to, "{first:08x}-{second:04x}-{third:04x}-{fourth:04x}-{last:012x}")
    }
}

/// An error about an image.
pub(super) fn bad(file: &dyn DiskSource, text: impl std::fmt::Display) -> Error {
    let message = format!("cannot read vhdx image {}: {text}", file.describe());
    Error::new(ErrorKind::Source, message)
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// True if a structure begins with `signature` and its checksum is right.
fn is_whole(bytes: &[u8], signature: &[u8; 4]) -> bool {
    let mut digest = CRC.digest();
    digest.update(&bytes[..4]);
    digest.update(&[0; 4]);
    digest.update(&bytes[8..]);
    bytes.starts_with(signature) && digest.finalize() == u32_at(bytes, 4)
}

/// What the current header says.
pub(super) struct Header {
    /// Changes with the data of the disk; a child names it.
    pub data_write_id: Id,
    /// Zero if there is nothing in the log.
    pub log_id: Id,
    /// Where the log is, and how long; within the file if there is something in it.
    pub log: (u64, u64),
}

impl Header {
    /// Reads the header with the higher number of the two.
    pub fn read(file: &dyn DiskSource) -> Result<Header> {
        let mut signature = [0; SIGNATURE.len()];
        let end = HEADERS_AT[1] + HEADER_BYTES as u64;
        if file.size() < end {
            return Err(bad(file, "it has no vhdx header"));
        }
        file.read_at(0, &mut signature)?;
        if signature != SIGNATURE {
            return Err(bad(file, "it has no vhdx header"));
        }
        let mut current: Option<Vec<u8>> = None;
        for at in HEADERS_AT {
            let mut header = vec![0; HEADER_BYTES];
            file.read_at(at, &mut header)?;
            if !is_whole(&header, b"head") {
                continue;
            }
            match current.as_ref().map(|other| u64_at(&header, 8).cmp(&u64_at(other, 8))) {
                Some(std::cmp::Ordering::Less) => {}
                Some(std::cmp::Ordering::Equal) if current.as_ref() != Some(&header) => {
                    return Err(bad(file, "both of its headers have the same number"));
                }
                _ => current = Some(header),
            }
        }
        let header = current.ok_or_else(|| bad(file, "both of its headers are damaged"))?;
        Header::check(file, &header)
    }

    fn check(file: &dyn DiskSource, header: &[u8]) -> Result<Header> {
        let (log_version, version) = (u16_at(header, 64), u16_at(header, 66));
        if version != VERSION {
            return Err(bad(file, format!("version {version} is not known")));
        }
        let (log_id, log) =
            (Id::at(header, 48), (u64_at(header, 72), u64::from(u32_at(header, 68))));
        if log_id != Id::ZERO {
            if log_version != LOG_VERSION {
                return Err(bad(file, format!("version {log_version} of its log is not known")));
            }
            let (at, bytes) = log;
            if bytes > LOG_BYTES_MAX {
                return Err(bad(file, format!("its log has {bytes} bytes")));
            }
            if !is_place(at, bytes, file.size()) {
                return Err(bad(file, "its log is not within the file"));
            }
        }
        Ok(Header { data_write_id: Id::at(header, 32), log_id, log })
    }
}

/// True if a region is behind the headers and within a file of `size` bytes, in units of 1 MiB.
fn is_place(at: u64, bytes: u64, size: u64) -> bool {
    let is_within = at.checked_add(bytes).is_some_and(|end| end <= size);
    at >= MIB && at.is_multiple_of(MIB) && bytes != 0 && bytes.is_multiple_of(MIB) && is_within
}

/// Where the regions are, and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Regions {
    pub blocks: (u64, u64),
    pub metadata: (u64, u64),
}

impl Regions {
    pub fn read(file: &Replayed) -> Result<Regions> {
        let mut table = None;
        for at in REGION_TABLES_AT {
            let bytes = file.read(at, REGION_TABLE_BYTES, "a table of regions")?;
            if is_whole(&bytes, b"regi") {
                table = Some(bytes);
                break;
            }
        }
        let table = table.ok_or_else(|| file.bad("both tables of its regions are damaged"))?;
        let count = u32_at(&table, 8);
        if count > REGION_ENTRIES_MAX {
            return Err(file.bad(format!("{count} regions")));
        }
        let (mut blocks, mut metadata) = (None, None);
        for entry in table[16..].chunks_exact(32).take(count as usize) {
            let (id, at, bytes) = (Id::at(entry, 0), u64_at(entry, 16), u32_at(entry, 24));
            let found = match id {
                REGION_BLOCKS => &mut blocks,
                REGION_METADATA => &mut metadata,
                _ if u32_at(entry, 28) & 1 == 1 => {
                    return Err(file.bad(format!("it needs a region that is not known: {id}")));
                }
                _ => continue,
            };
            if !is_place(at, u64::from(bytes), file.size()) {
                return Err(file.bad(format!("region {id} is not within the file")));
            }
            if found.replace((at, u64::from(bytes))).is_some() {
                return Err(file.bad(format!("it has region {id} twice")));
            }
        }
        match (blocks, metadata) {
            (Some(blocks), Some(metadata)) => Ok(Regions { blocks, metadata }),
            (None, _) => Err(file.bad("it has no table of blocks")),
            (_, None) => Err(file.bad("it has no metadata")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_written_as_they_are_read() {
        let text = "2dc27766-f623-4200-9d64-115e9bfd4a08";
        let stored = [0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0, 0x42, 0x9d, 0x64, 0x11, 0x5e];
        assert_eq!(REGION_BLOCKS.0[..12], stored);
        assert_eq!(REGION_BLOCKS.to_string(), text);
        for text in [text.to_string(), text.to_uppercase(), format!("{{{text}}}")] {
            assert!(Id::parse(&text) == Some(REGION_BLOCKS), "{text}");
        }
        for text in
            ["", "{}", "2dc27766f62342009d64115e9bfd4a0", "+dc27766f62342009d64115e9bfd4a08"]
        {
            assert!(Id::parse(text).is_none(), "{text}");
        }
    }
}

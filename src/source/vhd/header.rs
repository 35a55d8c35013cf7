//! Footer and dynamic header of a VHD image
//! (Microsoft, Virtual Hard Disk Image Format Specification, version 1.0).
//!
//! Invariant: every number that is handed on is within the file and the limits of the format.

use super::locator;
use crate::error::{Error, ErrorKind, Result};
use crate::source::DiskSource;

/// The first bytes of a footer and of its copy.
pub const COOKIE: [u8; 8] = *b"conectix";
const HEADER_COOKIE: [u8; 8] = *b"cxsparse";

pub(super) const FOOTER_BYTES: usize = 512;
/// What versions before Virtual PC 2004 wrote: the last byte, which is reserved, is not there.
const OLD_FOOTER_BYTES: u64 = 511;
const HEADER_BYTES: usize = 1024;
pub(super) const SECTOR_BYTES: u64 = 512;
/// The one version of both structures; the low half is the minor one.
const VERSION_MAJOR: u32 = 1;

const TYPE_FIXED: u32 = 2;
const TYPE_DYNAMIC: u32 = 3;
const TYPE_DIFFERENCING: u32 = 4;

/// Blocks of this size need the largest bitmap that is read at once: 512 KiB.
const BLOCK_BYTES_MAX: u64 = 2 << 30;
/// Sectors of the largest geometry: 65 535 cylinders, 16 heads, 255 sectors. It is written for
/// every larger disk, so it says nothing of the size.
const GEOMETRY_SECTORS_MAX: u64 = 65_535 * 16 * 255;

/// How the blocks of an image lie in its file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    /// Where the table of blocks is.
    pub table_at: u64,
    /// Entries of it that the disk needs.
    pub count: u64,
    /// Bytes of a block: a power of two from 512 to 2 GiB.
    pub bytes: u64,
}

/// What footer and header say.
#[derive(Clone, Debug)]
pub struct Header {
    /// Virtual size in bytes.
    pub size: u64,
    /// The image's unique id.
    pub id: [u8; 16],
    /// What a differencing image says of its parent.
    pub parent: Option<Parent>,
    /// True if the footer was damaged and its copy at the start was read.
    pub is_copy: bool,
    /// Nothing for a fixed image.
    pub(super) blocks: Option<Blocks>,
}

/// What a differencing image says of its parent.
#[derive(Clone, Debug)]
pub struct Parent {
    /// The parent's unique id.
    pub id: [u8; 16],
    /// The names under which it may be, the best one first; never empty.
    pub names: Vec<String>,
}

impl Parent {
    /// Checks that an image, of which `header` is, is the parent of another one.
    ///
    /// # Errors
    /// `Source` if it has another id.
    pub fn check(
        &self,
        image: &dyn DiskSource,
        parent: &dyn DiskSource,
        header: &Header,
    ) -> Result<()> {
        if self.id == header.id {
            return Ok(());
        }
        let (expected, found) = (id_text(&self.id), id_text(&header.id));
        let parent = parent.describe();
        let text = format!("{parent} is not its parent: expected id {expected}, found {found}");
        Err(bad(image, text))
    }
}

fn id_text(id: &[u8; 16]) -> String {
    let mut text = String::new();
    for (index, byte) in id.iter().enumerate() {
        text.push_str(if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" });
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// An error about an image.
pub(super) fn bad(file: &dyn DiskSource, text: impl std::fmt::Display) -> Error {
    let message = format!("cannot read vhd image {}: {text}", file.describe());
    Error::new(ErrorKind::Source, message)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

fn id_at(bytes: &[u8], at: usize) -> [u8; 16] {
    std::array::from_fn(|index| bytes[at + index])
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

/// The complement of the sum of all bytes but those of the checksum itself, at `at`.
fn has_checksum(bytes: &[u8], at: usize) -> bool {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    u32_at(bytes, at) == !(sum(&bytes[..at]) + sum(&bytes[at + 4..]))
}

/// Where the footer begins, if the file is long enough for one, and how long it is.
fn footer_place(file: &dyn DiskSource) -> Option<(u64, u64)> {
    let size = file.size();
    let bytes = if size % SECTOR_BYTES == OLD_FOOTER_BYTES { OLD_FOOTER_BYTES } else { 512 };
    Some((size.checked_sub(bytes)?, bytes))
}

/// True if a file has the cookie of a footer at its end.
///
/// # Errors
/// `Source` if it cannot be read.
pub fn ends_as_vhd(file: &dyn DiskSource) -> Result<bool> {
    let Some((at, _)) = footer_place(file) else { return Ok(false) };
    let mut cookie = [0; COOKIE.len()];
    file.read_at(at, &mut cookie)?;
    Ok(cookie == COOKIE)
}

/// The footer, or its copy, and whether it is the copy; and where the data in front of it end.
fn read_footer(file: &dyn DiskSource) -> Result<(Vec<u8>, bool, u64)> {
    let Some((at, bytes)) = footer_place(file) else {
        return Err(bad(file, "it has no vhd footer"));
    };
    let mut footer = read(file, at, bytes as usize, "the footer")?;
    footer.resize(FOOTER_BYTES, 0);
    let is_footer = |bytes: &[u8]| bytes.starts_with(&COOKIE) && has_checksum(bytes, 64);
    if is_footer(&footer) {
        return Ok((footer, false, at));
    }
    // A fixed disk has no copy: its guest wrote what is there, and would have files of the host
    // read as its disk.
    let may_be_fixed = footer.starts_with(&COOKIE) && u32_at(&footer, 60) == TYPE_FIXED;
    let start = file.size().min(FOOTER_BYTES as u64) as usize;
    let mut copy = read(file, 0, start, "the copy of the footer")?;
    copy.resize(FOOTER_BYTES, 0);
    if is_footer(&copy) && u32_at(&copy, 60) != TYPE_FIXED && !may_be_fixed {
        return Ok((copy, true, file.size()));
    }
    if footer.starts_with(&COOKIE) || copy.starts_with(&COOKIE) {
        return Err(bad(file, "the checksum of its footer is wrong, and no copy is right"));
    }
    Err(bad(file, "it has no vhd footer"))
}

/// The size of the disk. Virtual PC shows its guest what the geometry has room for, and QEMU does
/// likewise for images that it made for Virtual PC; every other program shows the current size
/// (QEMU, block/vpc.c). A program that is not known is taken for one of the latter: then nothing
/// is cut off.
fn disk_bytes(footer: &[u8]) -> u64 {
    let cylinders = u64::from(u32_at(footer, 56) >> 16);
    let (heads, sectors) = (u64::from(footer[58]), u64::from(footer[59]));
    let geometry = cylinders * heads * sectors;
    let by_geometry = matches!(&footer[28..32], b"vpc " | b"qemu");
    if by_geometry && geometry != 0 && geometry != GEOMETRY_SECTORS_MAX {
        return geometry * SECTOR_BYTES;
    }
    u64_at(footer, 48)
}

impl Header {
    /// Reads and checks the footer of `file`, and the header of an image that has one.
    ///
    /// # Errors
    /// `Source` for what is no such footer, or one of an image that cannot be read.
    pub fn read(file: &dyn DiskSource) -> Result<Header> {
        let (footer, is_copy, data_end) = read_footer(file)?;
        let version = u32_at(&footer, 12);
        if version >> 16 != VERSION_MAJOR {
            return Err(bad(
                file,
                format!("version {}.{} is not known", version >> 16, version & 0xffff),
            ));
        }
        let size = disk_bytes(&footer);
        if !size.is_multiple_of(SECTOR_BYTES) {
            return Err(bad(file, format!("a size of {size} bytes")));
        }
        let mut header =
            Header { size, id: id_at(&footer, 68), parent: None, is_copy, blocks: None };
        match u32_at(&footer, 60) {
            TYPE_FIXED if size <= data_end => {}
            TYPE_FIXED => {
                let text = format!("a size of {size} bytes, of which the file has {data_end}");
                return Err(bad(file, text));
            }
            kind @ (TYPE_DYNAMIC | TYPE_DIFFERENCING) => {
                let bytes = header.read_blocks(file, u64_at(&footer, 16))?;
                if kind == TYPE_DIFFERENCING {
                    let names = locator::parent_names(file, &bytes)?;
                    header.parent = Some(Parent { id: id_at(&bytes, 40), names });
                }
            }
            kind => return Err(bad(file, format!("disk type {kind} is not known"))),
        }
        Ok(header)
    }

    /// Reads the dynamic header; its bytes.
    fn read_blocks(&mut self, file: &dyn DiskSource, at: u64) -> Result<Vec<u8>> {
        let bytes = read(file, at, HEADER_BYTES, "the dynamic header")?;
        if !bytes.starts_with(&HEADER_COOKIE) {
            return Err(bad(file, format!("it has no dynamic header at {at}")));
        }
        if !has_checksum(&bytes, 36) {
            return Err(bad(file, "the checksum of its dynamic header is wrong"));
        }
        let version = u32_at(&bytes, 24);
        if version >> 16 != VERSION_MAJOR {
            let text = format!("version {:#x} of its dynamic header is not known", version);
            return Err(bad(file, text));
        }
        let block = u64::from(u32_at(&bytes, 32));
        if !block.is_power_of_two() || !(SECTOR_BYTES..=BLOCK_BYTES_MAX).contains(&block) {
            return Err(bad(file, format!("blocks of {block} bytes")));
        }
        let (entries, count) = (u64::from(u32_at(&bytes, 28)), self.size.div_ceil(block));
        if count > entries {
            let text =
                format!("its table of {entries} blocks is for another size than {}", self.size);
            return Err(bad(file, text));
        }
        let table_at = u64_at(&bytes, 16);
        if table_at.checked_add(count * 4).is_none_or(|end| end > file.size()) {
            return Err(bad(file, "the table of blocks lies beyond the end of the file"));
        }
        self.blocks = Some(Blocks { table_at, count, bytes: block });
        Ok(bytes)
    }
}

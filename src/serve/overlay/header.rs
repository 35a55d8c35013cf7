//! The header of an overlay, and where its parts lie: docs/overlay.md.
//!
//! Invariant: an overlay is taken for a disk only if everything in its header is that disk's.

use diskvault_format::id::{MapRoot, PointId, RepositoryId};

/// Bytes of the header.
pub(super) const HEADER_BYTES: usize = 4096;
const MAGIC: &[u8; 16] = b"DISKVAULTOVERLAY";
const VERSION: u32 = 1;
const NAME_AT: usize = 114;
const CHECKSUM_AT: usize = HEADER_BYTES - 32;

/// The smallest block, and what most guests write.
const BLOCK_BYTES_MIN: u64 = 4096;
/// Blocks of an overlay at most: their bits take 32 MiB.
const BLOCKS_MAX: u64 = 1 << 28;
/// Data begin at a multiple of this.
const DATA_ALIGNMENT: u64 = 1 << 20;

/// The disk that an overlay belongs to.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The repository.
    pub repository: RepositoryId,
    /// The point.
    pub point: PointId,
    /// The point's id before it was forgotten and brought back.
    pub republishes: Option<PointId>,
    /// The disk's name.
    pub disk: String,
    /// What its map begins with: equal for equal content.
    pub root: MapRoot,
    /// Its size in bytes.
    pub size: u64,
}

/// Where what lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub size: u64,
    pub block_bytes: u64,
}

impl Layout {
    /// The layout for a disk of so many bytes.
    pub fn of(size: u64) -> Layout {
        let mut block_bytes = BLOCK_BYTES_MIN;
        while size.div_ceil(block_bytes) > BLOCKS_MAX {
            block_bytes *= 2;
        }
        Layout { size, block_bytes }
    }

    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block_bytes)
    }

    /// Where the disk's first byte is in the file.
    pub fn data_start(&self) -> u64 {
        let bitmap = self.blocks().div_ceil(8).next_multiple_of(4096);
        (HEADER_BYTES as u64 + bitmap).next_multiple_of(DATA_ALIGNMENT)
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.data_start() + self.size
    }
}

impl Identity {
    /// The header; `None` if the disk's name is too long.
    pub(super) fn encode(&self, layout: &Layout) -> Option<Vec<u8>> {
        let name = self.disk.as_bytes();
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&u32::try_from(layout.block_bytes).ok()?.to_le_bytes());
        header.extend_from_slice(&self.size.to_le_bytes());
        header.extend_from_slice(&self.repository.0);
        header.extend_from_slice(&self.point.0);
        header.extend_from_slice(&self.root.0);
        header.extend_from_slice(&u16::try_from(name.len()).ok()?.to_le_bytes());
        header.extend_from_slice(name);
        if header.len() > CHECKSUM_AT {
            return None;
        }
        header.resize(CHECKSUM_AT, 0);
        let checksum = blake3::hash(&header);
        header.extend_from_slice(checksum.as_bytes());
        Some(header)
    }

    /// Compares a header with what it should be.
    ///
    /// # Errors
    /// Why it is another, in words.
    pub(super) fn compare(&self, header: &[u8; HEADER_BYTES]) -> Result<(), String> {
        if &header[..16] != MAGIC {
            return Err("it is no overlay".into());
        }
        let version = header[16..20].iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        if version != VERSION {
            return Err(format!("its version is {version}, this program knows {VERSION}"));
        }
        if blake3::hash(&header[..CHECKSUM_AT]).as_bytes() != &header[CHECKSUM_AT..] {
            return Err("its header is damaged".into());
        }
        if header[32..48] != self.repository.0 {
            return Err("it is of another repository".into());
        }
        let point = &header[48..80];
        if point != self.point.0 && self.republishes.is_none_or(|old| point != old.0) {
            let short = diskvault_format::id::to_hex(&point[..4]);
            return Err(format!("it is of point {short}, not of {}", self.point.short()));
        }
        let name_bytes = usize::from(u16::from_le_bytes([header[112], header[113]]));
        let name = header.get(NAME_AT..NAME_AT + name_bytes).unwrap_or_default();
        if name != self.disk.as_bytes() {
            let name = String::from_utf8_lossy(name).escape_debug().to_string();
            return Err(format!("it is of disk {name}, not of {}", self.disk.escape_debug()));
        }
        let mut as_wanted = self.encode(&Layout::of(self.size)).unwrap_or_default();
        // The ids may differ for one that was brought back; everything else may not.
        if let Some(ids) = as_wanted.get_mut(48..80) {
            ids.copy_from_slice(point);
        }
        match as_wanted.get(..CHECKSUM_AT) == Some(&header[..CHECKSUM_AT]) {
            true => Ok(()),
            false => Err("the disk has other content or another size now".into()),
        }
    }
}

//! VHD images that qemu-img does not write: with parents, bitmaps with gaps, blocks of any size.
//! After the Virtual Hard Disk Image Format Specification, version 1.0.

use std::collections::BTreeMap;
use std::ops::Range;

const SECTOR: u64 = 512;

/// The code of a parent locator, and its bytes.
pub(super) type Locator = (&'static [u8; 4], Vec<u8>);

/// What is to be in a dynamic or differencing image.
pub(super) struct Made {
    pub size: u64,
    pub block_bytes: u64,
    pub id: u8,
    /// The parent's id, and locators with their codes.
    pub parent: Option<(u8, Vec<Locator>)>,
    /// The parent's name in the header.
    pub parent_name: &'static str,
    /// Sectors, and the byte that they are full of.
    pub writes: Vec<(Range<u64>, u8)>,
}

impl Made {
    pub fn new(size: u64, block_bytes: u64, id: u8, writes: Vec<(Range<u64>, u8)>) -> Made {
        Made { size, block_bytes, id, parent: None, parent_name: "", writes }
    }

    pub fn over(mut self, id: u8, locators: Vec<Locator>) -> Made {
        self.parent = Some((id, locators));
        self
    }

    /// What the guest sees over what lies below.
    pub fn view(&self, below: &[u8]) -> Vec<u8> {
        let mut view = below.to_vec();
        view.resize(self.size as usize, 0);
        for (sectors, byte) in &self.writes {
            view[(sectors.start * SECTOR) as usize..(sectors.end * SECTOR) as usize].fill(*byte);
        }
        view
    }

    /// The file. In blocks that are there, sectors that are not written are full of poison.
    pub fn file(&self) -> Vec<u8> {
        let mut image = footer(self.size, if self.parent.is_some() { 4 } else { 3 }, self.id);
        let count = self.size.div_ceil(self.block_bytes);
        let table_bytes = (count * 4).next_multiple_of(SECTOR);
        let mut header = self.header(count);
        let mut at = 1536 + table_bytes;
        let mut names = vec![];
        for (number, (code, name)) in self.parent.iter().flat_map(|it| &it.1).enumerate() {
            let entry = 576 + number * 24;
            header[entry..entry + 4].copy_from_slice(*code);
            set_u32(&mut header, entry + 4, 1);
            set_u32(&mut header, entry + 8, name.len() as u32);
            set_u64(&mut header, entry + 16, at);
            names.extend_from_slice(name);
            names.resize(names.len().next_multiple_of(SECTOR as usize), 0);
            at = 1536 + table_bytes + names.len() as u64;
        }
        set_checksum(&mut header, 36);
        image.extend(header);
        image.resize(image.len() + table_bytes as usize, 0xff);
        image.extend(names);
        for (number, (bits, data)) in self.blocks() {
            let place = (image.len() as u64 / SECTOR) as u32;
            set_u32(&mut image, 1536 + number as usize * 4, place);
            image.extend(bits);
            image.extend(data);
        }
        image.extend_from_within(..512);
        image
    }

    fn header(&self, count: u64) -> Vec<u8> {
        let mut header = vec![0; 1024];
        header[..8].copy_from_slice(b"cxsparse");
        header[8..16].fill(0xff);
        set_u64(&mut header, 16, 1536);
        set_u32(&mut header, 24, 0x0001_0000);
        set_u32(&mut header, 28, count as u32);
        set_u32(&mut header, 32, self.block_bytes as u32);
        if let Some((id, _)) = &self.parent {
            header[40..56].fill(*id);
            // A time that is not the parent's: copying a file changes it.
            set_u32(&mut header, 56, 77);
        }
        for (number, unit) in self.parent_name.encode_utf16().enumerate() {
            header[64 + 2 * number..][..2].copy_from_slice(&unit.to_be_bytes());
        }
        header
    }

    /// Bitmap and data of each block that has a sector.
    fn blocks(&self) -> BTreeMap<u64, (Vec<u8>, Vec<u8>)> {
        let sectors = self.block_bytes / SECTOR;
        let mut blocks = BTreeMap::new();
        for (range, byte) in &self.writes {
            for sector in range.clone() {
                let (bits, data) = blocks.entry(sector / sectors).or_insert_with(|| {
                    let bits = sectors.div_ceil(8).next_multiple_of(SECTOR) as usize;
                    (vec![0; bits], vec![0xee; self.block_bytes as usize])
                });
                let within = (sector % sectors) as usize;
                bits[within / 8] |= 0x80 >> (within % 8);
                data[within * 512..][..512].fill(*byte);
            }
        }
        blocks
    }
}

/// A footer without a geometry, by Hyper-V.
pub(super) fn footer(size: u64, kind: u32, id: u8) -> Vec<u8> {
    let mut footer = vec![0; 512];
    footer[..8].copy_from_slice(b"conectix");
    set_u32(&mut footer, 8, 2);
    set_u32(&mut footer, 12, 0x0001_0000);
    set_u64(&mut footer, 16, if kind == 2 { u64::MAX } else { 512 });
    footer[28..32].copy_from_slice(b"win ");
    set_u64(&mut footer, 40, size);
    set_u64(&mut footer, 48, size);
    set_u32(&mut footer, 60, kind);
    footer[68..84].fill(id);
    set_checksum(&mut footer, 64);
    footer
}

pub(super) fn set_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

pub(super) fn set_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// Makes the checksum at `at` right.
pub(super) fn set_checksum(bytes: &mut [u8], at: usize) {
    set_u32(bytes, at, 0);
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    set_u32(bytes, at, !sum);
}

pub(super) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

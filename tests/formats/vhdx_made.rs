//! VHDX images that qemu-img does not write: with parents, with sectors of 4096 bytes, with
//! something in the log. After MS-VHDX.

use crc::{CRC_32_ISCSI, Crc};
use std::collections::BTreeMap;
use std::ops::Range;

pub(super) const MIB: u64 = 1 << 20;
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Where the parts of a made image are.
pub(super) const HEADERS_AT: [usize; 2] = [64 << 10, 128 << 10];
pub(super) const REGIONS_AT: [usize; 2] = [192 << 10, 256 << 10];
pub(super) const LOG_AT: usize = 1 << 20;
pub(super) const METADATA_AT: usize = 2 << 20;
pub(super) const BLOCKS_AT: usize = 3 << 20;

const PARAMETERS: &str = "caa16737fa364d43b3b633f0aa44e76b";
const DISK_BYTES: &str = "2fa54224cd1b4876b2115dbed83bf4b8";
const DISK_ID: &str = "beca12abb2e6452393efc309e000c746";
const LOGICAL_SECTOR: &str = "8141bf1da96f4709ba47f233a8faab5f";
const PHYSICAL_SECTOR: &str = "cda348c7445d44719cc9e9885251c556";
const PARENT: &str = "a8d35f2db30b454dabf7d3d84834ab0c";
const LOCATOR: &str = "b04aefb7d19e4a81b78925b8e9445913";

/// What is to be in an image.
pub(super) struct Made {
    pub size: u64,
    pub block_bytes: u64,
    pub sector_bytes: u64,
    /// Each byte of the id of its data.
    pub id: u8,
    /// Keys and values of the parent locator.
    pub parent: Option<Vec<(&'static str, String)>>,
    /// Sectors, and the byte that they are full of.
    pub writes: Vec<(Range<u64>, u8)>,
    /// Blocks without data, and their states.
    pub states: Vec<(u64, u64)>,
}

/// The id of which each byte is this one, as a parent locator has it.
pub(super) fn linkage(id: u8) -> String {
    let hex = format!("{id:02x}");
    format!("{{{}-{}-{1}-{1}-{}}}", hex.repeat(4), hex.repeat(2), hex.repeat(6))
}

impl Made {
    pub fn new(size: u64, block_bytes: u64, id: u8, writes: Vec<(Range<u64>, u8)>) -> Made {
        let (parent, states) = (None, vec![]);
        Made { size, block_bytes, sector_bytes: 512, id, parent, writes, states }
    }

    /// Makes it a child of the image with these data.
    pub fn over(mut self, id: u8, path: &str) -> Made {
        self.parent = Some(vec![("parent_linkage", linkage(id)), ("relative_path", path.into())]);
        self
    }

    /// What the guest sees over what lies below.
    pub fn view(&self, below: &[u8]) -> Vec<u8> {
        let mut view = below.to_vec();
        view.resize(self.size as usize, 0);
        for (block, _) in &self.states {
            let start = (block * self.block_bytes) as usize;
            let end = (start + self.block_bytes as usize).min(view.len());
            view[start..end].fill(0);
        }
        for (sectors, byte) in &self.writes {
            let bytes = sectors.start * self.sector_bytes..sectors.end * self.sector_bytes;
            view[bytes.start as usize..bytes.end as usize].fill(*byte);
        }
        view
    }

    pub fn file(&self) -> Vec<u8> {
        let mut image = vec![0; BLOCKS_AT];
        image[..8].copy_from_slice(b"vhdxfile");
        for (number, at) in HEADERS_AT.into_iter().enumerate() {
            image[at..at + 4].copy_from_slice(b"head");
            set_u64(&mut image, at + 8, number as u64 + 1);
            image[at + 32..at + 48].fill(self.id);
            set_u32(&mut image, at + 64, 1 << 16);
            set_u32(&mut image, at + 68, MIB as u32);
            set_u64(&mut image, at + 72, LOG_AT as u64);
        }
        let blocks = self.size.div_ceil(self.block_bytes);
        let ratio = (self.sector_bytes << 23) / self.block_bytes;
        let table = (blocks.div_ceil(ratio) * (ratio + 1) * 8).next_multiple_of(MIB);
        for at in REGIONS_AT {
            image[at..at + 4].copy_from_slice(b"regi");
            set_u32(&mut image, at + 8, 2);
            let regions = [
                ("2dc27766f62342009d64115e9bfd4a08", BLOCKS_AT, table),
                ("8b7ca20647904b9ab8fe575f050f886e", METADATA_AT, MIB),
            ];
            for (number, (id, place, bytes)) in regions.into_iter().enumerate() {
                let at = at + 16 + number * 32;
                image[at..at + 16].copy_from_slice(&guid(id));
                set_u64(&mut image, at + 16, place as u64);
                set_u32(&mut image, at + 24, bytes as u32);
                set_u32(&mut image, at + 28, 1);
            }
        }
        image.resize(BLOCKS_AT + table as usize, 0);
        self.add_metadata(&mut image);
        self.add_blocks(&mut image, ratio);
        mend(&mut image);
        image
    }

    fn add_metadata(&self, image: &mut [u8]) {
        let flags = if self.parent.is_some() { 2_u32 } else { 0 };
        let sector = (self.sector_bytes as u32).to_le_bytes().to_vec();
        let parameters = [(self.block_bytes as u32).to_le_bytes(), flags.to_le_bytes()].concat();
        let mut items = vec![
            (PARAMETERS, parameters),
            (DISK_BYTES, self.size.to_le_bytes().to_vec()),
            (DISK_ID, vec![9; 16]),
            (LOGICAL_SECTOR, sector.clone()),
            (PHYSICAL_SECTOR, sector),
        ];
        items.extend(self.parent.as_ref().map(|pairs| (PARENT, locator(pairs))));
        image[METADATA_AT..METADATA_AT + 8].copy_from_slice(b"metadata");
        image[METADATA_AT + 10] = items.len() as u8;
        let mut place = 64 << 10;
        for (number, (id, bytes)) in items.into_iter().enumerate() {
            let at = METADATA_AT + 32 + number * 32;
            image[at..at + 16].copy_from_slice(&guid(id));
            set_u32(image, at + 16, place as u32);
            set_u32(image, at + 20, bytes.len() as u32);
            set_u32(image, at + 24, 6);
            image[METADATA_AT + place..][..bytes.len()].copy_from_slice(&bytes);
            place += bytes.len();
        }
    }

    /// Blocks with sectors that were written; of a child, the others are full of poison.
    fn add_blocks(&self, image: &mut Vec<u8>, ratio: u64) {
        let sectors = self.block_bytes / self.sector_bytes;
        let mut blocks: BTreeMap<u64, Vec<Option<u8>>> = BTreeMap::new();
        for (range, byte) in &self.writes {
            for sector in range.clone() {
                let block = blocks.entry(sector / sectors);
                let block = block.or_insert_with(|| vec![None; sectors as usize]);
                block[(sector % sectors) as usize] = Some(*byte);
            }
        }
        for (block, state) in &self.states {
            set_u64(image, BLOCKS_AT + 8 * (block + block / ratio) as usize, *state);
        }
        let mut bitmaps: BTreeMap<u64, usize> = BTreeMap::new();
        for (block, bytes) in blocks {
            let in_part = self.parent.is_some() && bytes.contains(&None);
            let place = image.len() as u64;
            let entry = BLOCKS_AT + 8 * (block + block / ratio) as usize;
            set_u64(image, entry, place | if in_part { 7 } else { 6 });
            let unwritten = if in_part { 0xee } else { 0 };
            for byte in &bytes {
                let end = image.len() + self.sector_bytes as usize;
                image.resize(end, byte.unwrap_or(unwritten));
            }
            if !in_part {
                continue;
            }
            let chunk = block / ratio;
            let bitmap = *bitmaps.entry(chunk).or_insert_with(|| {
                let place = image.len();
                image.resize(place + MIB as usize, 0);
                let entry = BLOCKS_AT + 8 * (chunk * (ratio + 1) + ratio) as usize;
                set_u64(image, entry, place as u64 | 6);
                place
            });
            for (sector, _) in bytes.iter().enumerate().filter(|(_, byte)| byte.is_some()) {
                let bit = (block % ratio * sectors) as usize + sector;
                image[bitmap + bit / 8] |= 1 << (bit % 8);
            }
        }
    }
}

fn locator(pairs: &[(&str, String)]) -> Vec<u8> {
    let mut bytes = vec![0; 20 + 12 * pairs.len()];
    bytes[..16].copy_from_slice(&guid(LOCATOR));
    bytes[18] = pairs.len() as u8;
    for (number, (key, value)) in pairs.iter().enumerate() {
        for (half, text) in [*key, value.as_str()].into_iter().enumerate() {
            let text: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let (place, entry) = (bytes.len() as u32, 20 + 12 * number);
            set_u32(&mut bytes, entry + 4 * half, place);
            bytes[entry + 8 + 2 * half..][..2].copy_from_slice(&(text.len() as u16).to_le_bytes());
            bytes.extend(text);
        }
    }
    bytes
}

/// The stored form of 32 digits.
fn guid(digits: &str) -> [u8; 16] {
    let mut bytes = u128::from_str_radix(digits, 16).unwrap().to_be_bytes();
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

pub(super) fn set_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn set_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn set_checksum(bytes: &mut [u8]) {
    set_u32(bytes, 4, 0);
    let sum = CRC.checksum(bytes);
    set_u32(bytes, 4, sum);
}

/// Makes the checksums of headers and region tables right.
pub(super) fn mend(image: &mut [u8]) {
    for at in HEADERS_AT {
        set_checksum(&mut image[at..at + 4096]);
    }
    for at in REGIONS_AT {
        set_checksum(&mut image[at..at + (64 << 10)]);
    }
}

/// What an entry of a log says of the file.
#[derive(Clone)]
pub(super) enum Change {
    Zeros { at: u64, bytes: u64 },
    Page { at: u64, bytes: Vec<u8> },
}

pub(super) struct Entry {
    pub number: u64,
    /// Offset in the log of the oldest entry that is needed.
    pub tail: u32,
    /// Bytes that the file has to have before and after.
    pub flushed: u64,
    pub last: u64,
    pub changes: Vec<Change>,
}

/// Each byte of the id of a log.
pub(super) const LOG_ID: u8 = 0x5a;

impl Entry {
    pub fn bytes(&self) -> Vec<u8> {
        let mut head = vec![0; 64];
        let mut data = Vec::new();
        head[..4].copy_from_slice(b"loge");
        set_u32(&mut head, 12, self.tail);
        set_u64(&mut head, 16, self.number);
        set_u32(&mut head, 24, self.changes.len() as u32);
        head[32..48].fill(LOG_ID);
        set_u64(&mut head, 48, self.flushed);
        set_u64(&mut head, 56, self.last);
        for change in &self.changes {
            let mut descriptor = vec![0; 32];
            set_u64(&mut descriptor, 24, self.number);
            match change {
                Change::Zeros { at, bytes } => {
                    descriptor[..4].copy_from_slice(b"zero");
                    set_u64(&mut descriptor, 8, *bytes);
                    set_u64(&mut descriptor, 16, *at);
                }
                Change::Page { at, bytes } => {
                    descriptor[..4].copy_from_slice(b"desc");
                    descriptor[4..8].copy_from_slice(&bytes[4092..]);
                    descriptor[8..16].copy_from_slice(&bytes[..8]);
                    set_u64(&mut descriptor, 16, *at);
                    let mut sector = bytes.clone();
                    sector[..4].copy_from_slice(b"data");
                    set_u32(&mut sector, 4, (self.number >> 32) as u32);
                    set_u32(&mut sector, 4092, self.number as u32);
                    data.extend(sector);
                }
            }
            head.extend(descriptor);
        }
        head.resize(head.len().next_multiple_of(4096), 0);
        head.extend(data);
        let bytes = head.len() as u32;
        set_u32(&mut head, 8, bytes);
        set_checksum(&mut head);
        head
    }
}

/// Puts entries at offsets into the log, around its end if they reach so far, and says in the
/// headers that there is something.
pub(super) fn set_log(image: &mut [u8], entries: &[(usize, Vec<u8>)]) {
    let header = HEADERS_AT[0];
    let log_at = u64_at(image, header + 72) as usize;
    let log_bytes = u64_at(image, header + 64) as usize >> 32;
    for at in HEADERS_AT {
        image[at + 48..at + 64].fill(LOG_ID);
    }
    for (offset, bytes) in entries {
        for (number, sector) in bytes.chunks(4096).enumerate() {
            let at = log_at + (offset + number * 4096) % log_bytes;
            image[at..at + sector.len()].copy_from_slice(sector);
        }
    }
    mend(image);
}

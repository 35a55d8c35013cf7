//! The metadata of a VHDX image (MS-VHDX, 2.6).
//!
//! Invariant: every number that is handed on is within its limits; an item that an image needs and
//! this reader does not know is refused.

use super::header::{Id, MIB, u16_at, u32_at, u64_at};
use super::log::Replayed;
use crate::error::Result;
use crate::source::vhd::from_windows;

const TABLE_BYTES: usize = 64 << 10;
const ENTRIES_MAX: u16 = 2047;
const ITEM_BYTES_MAX: u32 = 1 << 20;
/// Largest disk: 64 TiB.
const DISK_BYTES_MAX: u64 = 64 << 40;
const BLOCK_BYTES_MAX: u64 = 256 * MIB;
/// The ids of which one has to be that of the parent's data; an interrupted change leaves two.
const KEY_PARENT_IDS: [&str; 2] = ["parent_linkage", "parent_linkage2"];
/// Where the parent may be; the best one first.
const KEY_PARENT_PATHS: [&str; 3] = ["relative_path", "volume_path", "absolute_win32_path"];

const FLAG_USER: u32 = 1 << 0;
const FLAG_REQUIRED: u32 = 1 << 2;

const ITEM_FILE_PARAMETERS: Id = Id::new(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
const ITEM_DISK_BYTES: Id = Id::new(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
const ITEM_DISK_ID: Id = Id::new(0xbeca_12ab, 0xb2e6, 0x4523, 0x93ef_c309_e000_c746);
const ITEM_LOGICAL_SECTOR: Id = Id::new(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f);
const ITEM_PHYSICAL_SECTOR: Id = Id::new(0xcda3_48c7, 0x445d, 0x4471, 0x9cc9_e988_5251_c556);
const ITEM_PARENT: Id = Id::new(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c);
const KNOWN: [Id; 6] = [
    ITEM_FILE_PARAMETERS,
    ITEM_DISK_BYTES,
    ITEM_DISK_ID,
    ITEM_LOGICAL_SECTOR,
    ITEM_PHYSICAL_SECTOR,
    ITEM_PARENT,
];
/// The one kind of a parent locator.
const LOCATOR_VHDX: Id = Id::new(0xb04a_efb7, 0xd19e, 0x4a81, 0xb789_25b8_e944_5913);

/// What the metadata say.
pub(super) struct Metadata {
    /// Virtual size in bytes: a multiple of a sector, at most 64 TiB.
    pub size: u64,
    /// Bytes of a block: a power of two from 1 MiB to 256 MiB.
    pub block_bytes: u64,
    /// Bytes of a logical sector: 512 or 4096.
    pub sector_bytes: u64,
    /// True if all blocks are to stay allocated.
    pub is_fixed: bool,
    /// What a differencing image says of its parent.
    pub parent: Option<Parent>,
}

/// What a differencing image says of its parent.
pub struct Parent {
    /// The ids of which the parent's data have one.
    pub(super) ids: Vec<Id>,
    /// The names under which it may be, the best one first; never empty.
    pub names: Vec<String>,
}

impl Metadata {
    /// Reads the region of so many bytes at a place.
    pub fn read(file: &Replayed, region: (u64, u64)) -> Result<Metadata> {
        let items = Items::read(file, region)?;
        let parameters = items.need(ITEM_FILE_PARAMETERS, 8, "file parameters")?;
        let block_bytes = u64::from(u32_at(&parameters, 0));
        if !block_bytes.is_power_of_two() || !(MIB..=BLOCK_BYTES_MAX).contains(&block_bytes) {
            return Err(file.bad(format!("blocks of {block_bytes} bytes")));
        }
        let logical = items.need(ITEM_LOGICAL_SECTOR, 4, "logical sector size")?;
        let sector_bytes = u64::from(u32_at(&logical, 0));
        if !matches!(sector_bytes, 512 | 4096) {
            return Err(file.bad(format!("sectors of {sector_bytes} bytes")));
        }
        let size = u64_at(&items.need(ITEM_DISK_BYTES, 8, "virtual disk size")?, 0);
        if size > DISK_BYTES_MAX || !size.is_multiple_of(sector_bytes) {
            return Err(file.bad(format!("a size of {size} bytes")));
        }
        let flags = u32_at(&parameters, 4);
        let (is_fixed, has_parent) = (flags & 1 != 0, flags & 2 != 0);
        let parent = if has_parent {
            Some(Parent::read(file, &items.need(ITEM_PARENT, 20, "parent locator")?)?)
        } else {
            None
        };
        let is_fixed = is_fixed && !has_parent;
        Ok(Metadata { size, block_bytes, sector_bytes, is_fixed, parent })
    }
}

/// The items that are known, with offset in the file and bytes.
struct Items<'a> {
    file: &'a Replayed,
    found: Vec<(Id, u64, u32)>,
}

impl Items<'_> {
    fn read(file: &Replayed, region: (u64, u64)) -> Result<Items<'_>> {
        let table = file.read(region.0, TABLE_BYTES, "the table of metadata")?;
        if !table.starts_with(b"metadata") {
            return Err(file.bad("it has no table of metadata"));
        }
        let count = u16_at(&table, 10);
        if count > ENTRIES_MAX {
            return Err(file.bad(format!("{count} items of metadata")));
        }
        let mut found = Vec::new();
        for entry in table[32..].chunks_exact(32).take(usize::from(count)) {
            let (id, at, bytes) = (Id::at(entry, 0), u32_at(entry, 16), u32_at(entry, 20));
            let flags = u32_at(entry, 24);
            if !KNOWN.contains(&id) || flags & FLAG_USER != 0 {
                if flags & FLAG_REQUIRED != 0 {
                    let text = format!("it needs metadata that are not known: {id}");
                    return Err(file.bad(text));
                }
                continue;
            }
            let end = u64::from(at) + u64::from(bytes);
            if bytes > ITEM_BYTES_MAX || end > region.1 || (at as usize) < TABLE_BYTES {
                return Err(file.bad(format!("metadata {id} are not within their region")));
            }
            found.push((id, region.0 + u64::from(at), bytes));
        }
        Ok(Items { file, found })
    }

    /// The bytes of an item that has to have `bytes_min`.
    fn need(&self, id: Id, bytes_min: u32, what: &str) -> Result<Vec<u8>> {
        let found = self.found.iter().find(|item| item.0 == id && item.2 >= bytes_min);
        let Some((_, at, bytes)) = found else {
            return Err(self.file.bad(format!("it has no {what}")));
        };
        self.file.read(*at, *bytes as usize, what)
    }
}

impl Parent {
    fn read(file: &Replayed, locator: &[u8]) -> Result<Parent> {
        let kind = Id::at(locator, 0);
        if kind != LOCATOR_VHDX {
            return Err(file.bad(format!("a parent locator of type {kind} is not known")));
        }
        let ids = KEY_PARENT_IDS.iter().filter_map(|key| Id::parse(&value(locator, key)?));
        let ids: Vec<Id> = ids.collect();
        if ids.is_empty() {
            return Err(file.bad("it does not name the id of its parent"));
        }
        let paths = KEY_PARENT_PATHS.iter().filter_map(|key| from_windows(&value(locator, key)?));
        let names: Vec<String> = paths.collect();
        if names.is_empty() {
            return Err(file.bad("it does not name its parent"));
        }
        Ok(Parent { ids, names })
    }
}

/// The value of a key in a parent locator; nothing if it is not there, or not within the locator.
fn value(locator: &[u8], key: &str) -> Option<String> {
    let key: Vec<u8> = key.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let count = usize::from(u16_at(locator, 18));
    let part = |at: u32, bytes: u16| locator.get(at as usize..)?.get(..usize::from(bytes));
    let entry = locator[20..]
        .chunks_exact(12)
        .take(count)
        .find(|entry| part(u32_at(entry, 0), u16_at(entry, 8)) == Some(key.as_slice()))?;
    let value = part(u32_at(entry, 4), u16_at(entry, 10))?;
    let units: Vec<u16> = value.chunks_exact(2).map(|unit| u16_at(unit, 0)).collect();
    String::from_utf16(&units).ok()
}

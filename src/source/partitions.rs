//! The partitions of a disk, read from its GPT or MBR.
//!
//! File systems place their blocks at multiples of 4 KiB from the start of their partition. If
//! that start is no multiple of 4 KiB, a fixed grid of chunks never meets the same bytes at
//! the same place on a disk with another start, so such disks are cut by content instead.
//!
//! Invariant: a table is input of a stranger. Every number is checked against the size of the
//! disk before it is used, every loop has a bound, and garbage means "no table".

use super::DiskSource;
use crate::error::Result;
use crc::{CRC_32_ISO_HDLC, Crc};

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Partitions that start on a multiple of this many bytes are aligned.
const ALIGNMENT_BYTES: u64 = 4096;

/// The unit of an MBR, in bytes. A disk with 4 KiB sectors counts in those, and then every
/// partition is aligned, whatever is computed here.
const MBR_SECTOR_BYTES: u64 = 512;

/// Offset of the four partition entries in a boot record, and the length of one.
const MBR_ENTRIES: usize = 446;
const MBR_ENTRY_BYTES: usize = 16;

/// An extended partition's chain is followed this far; Linux itself stops at 256 partitions.
const LOGICAL_MAX: usize = 128;

/// A GPT has 128 entries of 128 bytes (16 KiB); 1 MiB of them is more than any tool writes.
const GPT_TABLE_BYTES_MAX: u64 = 1 << 20;

/// Starts that are kept.
const STARTS_MAX: usize = 256;

/// Whatever has bytes that can be read in any order.
pub trait RandomAccess {
    /// Size in bytes, which does not change.
    fn size(&self) -> u64;

    /// Fills the whole `buffer` with the bytes from `offset`.
    ///
    /// # Errors
    /// If they cannot be read, or some of them lie behind the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;
}

impl RandomAccess for &dyn DiskSource {
    fn size(&self) -> u64 {
        DiskSource::size(*self)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        DiskSource::read_at(*self, offset, buffer)
    }
}

/// A partition, as its table has it. It may reach beyond the end of a disk that was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// As Linux numbers it: its place in the table from 1 on, logical partitions from 5 on.
    pub number: u32,
    /// Its first byte, which lies on the disk.
    pub start: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// The GUID of its type, or its type in an MBR such as `0x83`.
    pub kind: String,
    /// The name that a GPT gives it; empty without one.
    pub name: String,
}

/// The partition table of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionTable {
    /// `gpt`, `mbr` or `none`.
    pub kind: &'static str,
    /// Logical ones included and extended ones (mere containers) not.
    pub partitions: Vec<Partition>,
}

impl PartitionTable {
    const fn empty(kind: &'static str) -> PartitionTable {
        PartitionTable { kind, partitions: Vec::new() }
    }
}

/// What a disk's partition table says about where partitions begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionLayout {
    /// `gpt`, `mbr` or `none`.
    pub table: &'static str,
    /// Partitions found, logical ones included and extended ones (mere containers) not.
    pub partitions: u32,
    /// Partitions whose start is no multiple of 4096 bytes.
    pub misaligned: u32,
    /// Where they begin, in bytes: of the first 256.
    pub starts: Vec<u64>,
}

/// Where the partitions begin that [`partition_table`] finds.
///
/// # Errors
/// Only what [`DiskSource::read_at`] returns.
pub fn partition_layout(source: &dyn DiskSource) -> Result<PartitionLayout> {
    let PartitionTable { kind, partitions } = partition_table(&source)?;
    let is_off = |partition: &&Partition| !partition.start.is_multiple_of(ALIGNMENT_BYTES);
    Ok(PartitionLayout {
        table: kind,
        partitions: partitions.len() as u32,
        misaligned: partitions.iter().filter(is_off).count() as u32,
        starts: partitions.iter().take(STARTS_MAX).map(|partition| partition.start).collect(),
    })
}

/// Reads GPT (512 and 4096 byte sectors) or MBR partitions, logical ones included. Whatever is
/// no valid table counts as none; a protective MBR without a GPT too.
///
/// A GPT counts by its checksums: the first one, else the one at the end of the disk, else the
/// first one without them, for that is what is left. It gives way to an MBR that names real
/// partitions and no protective one, as in Linux: then it is a leftover.
///
/// # Errors
/// Only what [`RandomAccess::read_at`] returns.
pub fn partition_table(disk: &dyn RandomAccess) -> Result<PartitionTable> {
    let Some(entries) = boot_record(disk, 0)? else {
        return Ok(gpt(disk)?.unwrap_or(PartitionTable::empty("none")));
    };
    let protective = entries.iter().any(|entry| entry.kind == 0xee);
    if !protective {
        let table = mbr(disk, &entries)?;
        if !table.partitions.is_empty() {
            return Ok(table);
        }
    }
    Ok(gpt(disk)?.unwrap_or(PartitionTable::empty("none")))
}

/// One entry of a boot record, in sectors of 512 bytes.
#[derive(Clone, Copy)]
struct Entry {
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Entry {
    fn is_used(&self) -> bool {
        self.kind != 0 && self.sectors != 0
    }

    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// The entries of the boot record in sector `sector`, or none if there is no valid one: too
/// small a disk, no signature, or boot code where the flags should be (the first sector of a
/// FAT or NTFS file system has the same signature).
fn boot_record(disk: &dyn RandomAccess, sector: u64) -> Result<Option<[Entry; 4]>> {
    let Some(offset) = sector.checked_mul(MBR_SECTOR_BYTES) else { return Ok(None) };
    if offset.checked_add(MBR_SECTOR_BYTES).is_none_or(|end| end > disk.size()) {
        return Ok(None);
    }
    let mut record = [0_u8; MBR_SECTOR_BYTES as usize];
    disk.read_at(offset, &mut record)?;
    if record[510..] != [0x55, 0xaa] {
        return Ok(None);
    }
    let mut entries = [Entry { kind: 0, start: 0, sectors: 0 }; 4];
    for (index, entry) in entries.iter_mut().enumerate() {
        let bytes = &record[MBR_ENTRIES + index * MBR_ENTRY_BYTES..][..MBR_ENTRY_BYTES];
        if bytes[0] & 0x7f != 0 {
            return Ok(None);
        }
        let (start, sectors) = (u64::from(u32_at(bytes, 8)), u64::from(u32_at(bytes, 12)));
        *entry = Entry { kind: bytes[4], start, sectors };
    }
    Ok(Some(entries))
}

/// The primary and logical partitions whose start lies on the disk.
fn mbr(disk: &dyn RandomAccess, entries: &[Entry; 4]) -> Result<PartitionTable> {
    let sectors = disk.size() / MBR_SECTOR_BYTES;
    let mut table = PartitionTable::empty("mbr");
    let mut logical_ones = Vec::new();
    for (number, entry) in (1..).zip(entries) {
        if !entry.is_used() || entry.start == 0 || entry.start >= sectors {
            continue;
        }
        if entry.is_extended() {
            logical(disk, entry.start, &mut logical_ones)?;
        } else {
            table.partitions.push(mbr_partition(number, entry.start, entry));
        }
    }
    table.partitions.extend(logical_ones);
    Ok(table)
}

fn mbr_partition(number: u32, start: u64, entry: &Entry) -> Partition {
    Partition {
        number,
        start: start * MBR_SECTOR_BYTES,
        bytes: entry.sectors * MBR_SECTOR_BYTES,
        kind: format!("{:#04x}", entry.kind),
        name: String::new(),
    }
}

/// Follows the chain of boot records in the extended partition at sector `first`: entry 0 is
/// the logical partition, counted from this record, entry 1 the next record, counted from
/// `first`. The bound also ends a chain that bites its tail.
fn logical(disk: &dyn RandomAccess, first: u64, found: &mut Vec<Partition>) -> Result<()> {
    let sectors = disk.size() / MBR_SECTOR_BYTES;
    let mut record = first;
    for _ in 0..LOGICAL_MAX {
        let Some(entries) = boot_record(disk, record)? else { return Ok(()) };
        let start = record + entries[0].start;
        if entries[0].is_used() && entries[0].start != 0 && start < sectors {
            found.push(mbr_partition(5 + found.len() as u32, start, &entries[0]));
        }
        if !entries[1].is_used() || !entries[1].is_extended() || entries[1].start == 0 {
            return Ok(());
        }
        // Two 32-bit numbers: no overflow.
        record = first + entries[1].start;
    }
    Ok(())
}

/// The GPT, or none if neither sector size shows a valid header.
fn gpt(disk: &dyn RandomAccess) -> Result<Option<PartitionTable>> {
    let mut unsure = None;
    for sector_bytes in [512, 4096] {
        let last = (disk.size() / sector_bytes).saturating_sub(1);
        for sector in [1, last] {
            match gpt_at(disk, sector_bytes, sector)? {
                Some((table, true)) => return Ok(Some(table)),
                Some((table, false)) if sector == 1 => unsure = unsure.or(Some(table)),
                _ => {}
            }
        }
    }
    Ok(unsure)
}

/// The GPT whose header stands in a sector, and whether its checksums are right.
fn gpt_at(
    disk: &dyn RandomAccess,
    sector_bytes: u64,
    sector: u64,
) -> Result<Option<(PartitionTable, bool)>> {
    const HEADER_BYTES: usize = 92;
    if disk.size() / sector_bytes <= sector || sector == 0 {
        return Ok(None);
    }
    let mut header = vec![0_u8; sector_bytes as usize];
    disk.read_at(sector * sector_bytes, &mut header)?;
    let header_bytes = u32_at(&header, 12) as usize;
    if &header[..8] != b"EFI PART"
        || header_bytes < HEADER_BYTES
        || header_bytes > header.len()
        || u64_at(&header, 24) != sector
    {
        return Ok(None);
    }
    let count = u64::from(u32_at(&header, 80));
    let entry_bytes = u64::from(u32_at(&header, 84));
    if !(128..=4096).contains(&entry_bytes) || !entry_bytes.is_multiple_of(8) {
        return Ok(None);
    }
    // Below 2^44: no overflow.
    let table_bytes = count * entry_bytes;
    let Some(table_start) = u64_at(&header, 72).checked_mul(sector_bytes) else { return Ok(None) };
    if table_bytes > GPT_TABLE_BYTES_MAX
        || table_start < 2 * sector_bytes
        || table_start.checked_add(table_bytes).is_none_or(|end| end > disk.size())
    {
        return Ok(None);
    }
    let mut entries = vec![0_u8; table_bytes as usize];
    disk.read_at(table_start, &mut entries)?;
    let (sum, sum_of_entries) = (u32_at(&header, 16), u32_at(&header, 88));
    header[16..20].fill(0);
    let is_sure =
        CRC.checksum(&header[..header_bytes]) == sum && CRC.checksum(&entries) == sum_of_entries;
    let mut table = PartitionTable::empty("gpt");
    for (number, entry) in (1..).zip(entries.chunks_exact(entry_bytes as usize)) {
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let used = entry[..16].iter().any(|&byte| byte != 0);
        if used && first != 0 && first <= last && last < disk.size() / sector_bytes {
            table.partitions.push(Partition {
                number,
                start: first * sector_bytes,
                bytes: (last - first + 1) * sector_bytes,
                kind: guid(entry),
                name: gpt_name(&entry[56..128]),
            });
        }
    }
    Ok(Some((table, is_sure)))
}

/// A GUID at the start of `bytes` in its usual form: three little-endian numbers, eight bytes.
fn guid(bytes: &[u8]) -> String {
    let (one, two) = (u32_at(bytes, 0), u32_at(bytes, 4));
    let tail: String = bytes[10..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let four = format!("{:02x}{:02x}", bytes[8], bytes[9]);
    format!("{one:08x}-{:04x}-{:04x}-{four}-{tail}", two & 0xffff, two >> 16)
}

fn gpt_name(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

/// The little-endian number at `offset`; 0 where the bytes do not reach.
fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let at = bytes.get(offset..).and_then(|rest| rest.first_chunk::<4>());
    at.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// As [`u32_at`].
fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let at = bytes.get(offset..).and_then(|rest| rest.first_chunk::<8>());
    at.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::super::open_disk;
    use super::*;
    use proptest::prelude::*;

    fn layout(image: &[u8]) -> (&'static str, u32, u32) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), image).unwrap();
        let found = partition_layout(&*open_disk(file.path()).unwrap()).unwrap();
        let off = found.starts.iter().filter(|start| !start.is_multiple_of(4096)).count();
        assert_eq!((found.starts.len(), off as u32), (found.partitions as usize, found.misaligned));
        (found.table, found.partitions, found.misaligned)
    }

    fn boot(image: &mut [u8], sector: usize, entries: &[(u8, u32, u32)]) {
        let record = &mut image[sector * 512..][..512];
        record[510..].copy_from_slice(&[0x55, 0xaa]);
        for (index, &(kind, start, sectors)) in entries.iter().enumerate() {
            let entry = &mut record[446 + index * 16..][..16];
            entry[4] = kind;
            entry[8..12].copy_from_slice(&start.to_le_bytes());
            entry[12..].copy_from_slice(&sectors.to_le_bytes());
        }
    }

    fn put_gpt(image: &mut [u8], sector: usize, starts: &[u64]) {
        let header = &mut image[sector..][..92];
        header[..8].copy_from_slice(b"EFI PART");
        header[12..16].copy_from_slice(&92_u32.to_le_bytes());
        header[24..32].copy_from_slice(&1_u64.to_le_bytes());
        header[72..80].copy_from_slice(&2_u64.to_le_bytes());
        header[80..84].copy_from_slice(&128_u32.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        for (index, start) in starts.iter().enumerate() {
            let entry = &mut image[2 * sector + index * 128..][..128];
            entry[..16].fill(7);
            entry[32..40].copy_from_slice(&start.to_le_bytes());
            entry[40..48].copy_from_slice(&(start + 7).to_le_bytes());
        }
    }

    fn result(table: &'static str, partitions: u32, misaligned: u32) -> (&'static str, u32, u32) {
        (table, partitions, misaligned)
    }

    #[test]
    fn primary_and_logical_partitions_are_counted() {
        let mut image = vec![0; 1 << 20];
        boot(&mut image, 0, &[(0x83, 8, 8), (0x07, 63, 9), (0x0f, 100, 1000), (0x83, 1 << 30, 9)]);
        boot(&mut image, 100, &[(0x83, 4, 8), (0x05, 100, 50)]);
        boot(&mut image, 200, &[(0x83, 1, 8), (0x05, 300, 50)]);
        // 100 + 4 = 104 is a multiple of 8; 200 + 1 is not; at 400 the chain ends in garbage.
        assert_eq!(layout(&image), result("mbr", 4, 2));
        // A chain that bites its tail ends.
        boot(&mut image, 200, &[(0x83, 1, 8), (0x05, 100, 50)]);
        assert_eq!(layout(&image), result("mbr", 2 + 128, 1 + 127));
    }

    #[test]
    fn a_gpt_is_read_at_both_sector_sizes() {
        for sector in [512, 4096] {
            let mut image = vec![0; 1 << 20];
            put_gpt(&mut image, sector, &[64, 71, 100_000]);
            let misaligned = u32::from(sector == 512);
            assert_eq!(layout(&image), result("gpt", 2, misaligned));
            boot(&mut image, 0, &[(0xee, 1, u32::MAX)]);
            assert_eq!(layout(&image), result("gpt", 2, misaligned));
            // A leftover GPT behind real MBR partitions.
            boot(&mut image, 0, &[(0x83, 8, 8)]);
            assert_eq!(layout(&image), result("mbr", 1, 0));
        }
    }

    #[test]
    fn no_table_is_none() {
        assert_eq!(layout(&[]), result("none", 0, 0));
        assert_eq!(layout(&[0x55; 511]), result("none", 0, 0));
        assert_eq!(layout(&[0; 8192]), result("none", 0, 0));
        let mut image = vec![0; 8192];
        boot(&mut image, 0, &[(0xee, 1, u32::MAX)]);
        assert_eq!(layout(&image), result("none", 0, 0), "protective without GPT");
        // Boot code of a file system.
        boot(&mut image, 0, &[(0x83, 1, 8)]);
        image[446] = 0x33;
        assert_eq!(layout(&image), result("none", 0, 0));
        // A table that reaches beyond the end.
        let mut image = vec![0; 1 << 20];
        put_gpt(&mut image, 512, &[64]);
        image.truncate(16 * 1024);
        assert_eq!(layout(&image), result("none", 0, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn garbage_never_fails(
            bytes in prop::collection::vec(any::<u8>(), 4096),
            flags in any::<bool>(),
            header in any::<bool>(),
        ) {
            let mut image = bytes;
            if flags {
                image[510..512].copy_from_slice(&[0x55, 0xaa]);
                for index in 0..4 {
                    image[446 + index * 16] = 0x80;
                    image[446 + index * 16 + 4] = if index == 0 { 0xee } else { 0x05 };
                }
            }
            if header {
                image[512..520].copy_from_slice(b"EFI PART");
                image[524..528].copy_from_slice(&92_u32.to_le_bytes());
                image[536..544].copy_from_slice(&1_u64.to_le_bytes());
            }
            layout(&image);
        }
    }
}

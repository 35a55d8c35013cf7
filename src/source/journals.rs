//! Where file systems write whenever they are in use: the journals of ext2, ext3, ext4 and XFS, the
//! file table and the log of NTFS.
//!
//! Invariant: a disk is input of a stranger. A place is told only if it lies on the disk, a file
//! system costs at most eight short reads, and garbage means "none".

use super::RandomAccess;
use crate::error::Result;

/// Bytes that are read of a superblock or of a record.
const RECORD_BYTES: usize = 512;
/// Where the superblock of an ext file system lies in its partition.
const EXT_SUPERBLOCK: u64 = 1024;
/// What a node of an extent tree begins with.
const EXTENT_MAGIC: u16 = 0xf30a;
/// Most levels of an extent tree, as Linux has it.
const EXTENT_DEPTH_MAX: u16 = 5;
/// Blocks and clusters are no larger: 2 MiB, of NTFS.
const BLOCK_BYTES_MAX: u64 = 2 << 20;
/// The number of the log's record in the file table of NTFS.
const NTFS_LOG: u64 = 2;
/// The type of an attribute that holds a file's data, and the mark behind the last attribute.
const NTFS_DATA: u32 = 0x80;
const NTFS_END: u32 = u32::MAX;

/// The first bytes of the journals of the file system that begins at `start`; of NTFS, of its file table
/// as well. An ext file system says it in the copy of the journal's inode in its superblock, and only a
/// journal on the same disk counts.
///
/// # Errors
/// Only what [`RandomAccess::read_at`] returns.
pub fn journal_starts(disk: &dyn RandomAccess, start: u64) -> Result<Vec<u64>> {
    let volume = Volume { disk, start };
    let Some(first) = volume.read(0)? else { return Ok(Vec::new()) };
    let found = match &first {
        first if first.starts_with(b"XFSB") => vec![xfs(first)],
        first if first[3..11] == *b"NTFS    " => ntfs(&volume, first)?,
        _ => vec![ext(&volume)?],
    };
    let places = found.into_iter().flatten().filter_map(|place| start.checked_add(place));
    Ok(places.filter(|place| *place < disk.size()).collect())
}

/// A part of a disk that may hold a file system.
struct Volume<'a> {
    disk: &'a dyn RandomAccess,
    start: u64,
}

impl Volume<'_> {
    /// The bytes from a place in it on; none where the disk is at its end.
    fn read(&self, at: u64) -> Result<Option<[u8; RECORD_BYTES]>> {
        let begin = self.start.checked_add(at);
        let end = begin.and_then(|begin| begin.checked_add(RECORD_BYTES as u64));
        let (Some(begin), Some(end)) = (begin, end) else { return Ok(None) };
        if end > self.disk.size() {
            return Ok(None);
        }
        let mut record = [0; RECORD_BYTES];
        self.disk.read_at(begin, &mut record)?;
        Ok(Some(record))
    }
}

fn bytes<const N: usize>(record: &[u8], at: usize) -> [u8; N] {
    let found = record.get(at..).and_then(|rest| rest.first_chunk::<N>());
    found.copied().unwrap_or([0; N])
}

fn u16_at(record: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes(record, at))
}

fn u32_at(record: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes(record, at))
}

fn u64_at(record: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes(record, at))
}

/// Bytes of a block of which there is `1 << shift`, if that is one.
fn block_bytes(shift: u32) -> Option<u64> {
    1_u64.checked_shl(shift).filter(|bytes| *bytes <= BLOCK_BYTES_MAX)
}

/// The first block of the log of an XFS, unless that is on another disk.
fn xfs(superblock: &[u8]) -> Option<u64> {
    let block_bytes = u64::from(u32::from_be_bytes(bytes(superblock, 4)));
    let log = u64::from_be_bytes(bytes(superblock, 48));
    let group_blocks = u64::from(u32::from_be_bytes(bytes(superblock, 84)));
    let group_shift = u32::from(superblock[124]);
    // Block numbers are a group's number and a number in it, with so many bits.
    let group = log.checked_shr(group_shift)?;
    let in_group = log & 1_u64.checked_shl(group_shift)?.wrapping_sub(1);
    let block = group.checked_mul(group_blocks)?.checked_add(in_group)?;
    (log != 0 && block_bytes <= BLOCK_BYTES_MAX).then(|| block.checked_mul(block_bytes))?
}

/// The first block of the journal of an ext file system.
fn ext(volume: &Volume<'_>) -> Result<Option<u64>> {
    let Some(superblock) = volume.read(EXT_SUPERBLOCK)? else { return Ok(None) };
    let block = block_bytes(u32_at(&superblock, 24).saturating_add(10));
    let has_copy = u16_at(&superblock, 56) == 0xef53 && superblock[253] == 1;
    let Some(block_bytes) = block.filter(|_| has_copy) else { return Ok(None) };
    // What an inode has of its blocks: 15 numbers, or the root of a tree.
    let mut node = superblock;
    node.copy_within(268..328, 0);
    if u16_at(&node, 0) != EXTENT_MAGIC {
        let block = u64::from(u32_at(&node, 0));
        return Ok((block != 0).then(|| block.saturating_mul(block_bytes)));
    }
    for _ in 0..=EXTENT_DEPTH_MAX {
        let is_node = u16_at(&node, 0) == EXTENT_MAGIC && u16_at(&node, 2) != 0;
        if !is_node {
            return Ok(None);
        }
        let is_leaf = u16_at(&node, 6) == 0;
        let (low, high) = if is_leaf { (20, 18) } else { (16, 20) };
        let block = u64::from(u16_at(&node, high)) << 32 | u64::from(u32_at(&node, low));
        let at = block.saturating_mul(block_bytes);
        if is_leaf {
            return Ok(Some(at));
        }
        let Some(child) = volume.read(at)? else { return Ok(None) };
        node = child;
    }
    Ok(None)
}

/// The file table and the log of an NTFS.
fn ntfs(volume: &Volume<'_>, boot: &[u8]) -> Result<Vec<Option<u64>>> {
    let sector = u64::from(u16_at(boot, 11));
    // Large clusters are told as a power of two, negative.
    let clusters = match boot[13] {
        count @ ..=0x80 => u64::from(count).saturating_mul(sector),
        power => block_bytes(u32::from(power.wrapping_neg())).map_or(0, |count| count * sector),
    };
    if clusters == 0 || clusters > BLOCK_BYTES_MAX {
        return Ok(Vec::new());
    }
    let table = u64_at(boot, 48).checked_mul(clusters);
    let record_bytes = match boot[64] {
        count @ ..=0x7f => u64::from(count) * clusters,
        power => block_bytes(u32::from(power.wrapping_neg())).unwrap_or(0),
    };
    let at = table.and_then(|table| table.checked_add(NTFS_LOG * record_bytes));
    let record = match at {
        Some(at) => volume.read(at)?,
        None => None,
    };
    let log = record.and_then(|record| ntfs_first_cluster(&record));
    Ok(vec![table, log.and_then(|cluster| cluster.checked_mul(clusters))])
}

/// The first cluster of the data of the file that a record is about. Its first sector is enough: the
/// last two bytes of that, which are stored elsewhere, are never needed.
fn ntfs_first_cluster(record: &[u8; RECORD_BYTES]) -> Option<u64> {
    let record = record.strip_suffix(&bytes::<2>(record, RECORD_BYTES - 2))?;
    if !record.starts_with(b"FILE") {
        return None;
    }
    let mut at = usize::from(u16_at(record, 20));
    while at + 64 <= record.len() {
        let (kind, length) = (u32_at(record, at), u32_at(record, at + 4) as usize);
        if kind == NTFS_DATA && record[at + 8] == 1 {
            let runs = record.get(at + usize::from(u16_at(record, at + 32))..)?;
            // One byte with two lengths, then a length, then where it begins.
            let (length_bytes, place_bytes) = (runs.first()? & 15, runs.first()? >> 4);
            let place =
                runs.get(1 + usize::from(length_bytes)..)?.get(..usize::from(place_bytes))?;
            let mut number = [0; 8];
            number.get_mut(..place.len())?.copy_from_slice(place);
            return (!place.is_empty()).then_some(u64::from_le_bytes(number));
        }
        if kind == NTFS_END || length == 0 {
            return None;
        }
        at = at.checked_add(length)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    const NONE: [u64; 0] = [];

    struct Bytes(Vec<u8>);

    impl RandomAccess for Bytes {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
            let found = self.0.get(offset as usize..).and_then(|rest| rest.get(..buffer.len()));
            let found = found.ok_or_else(|| Error::new(ErrorKind::Usage, "behind the end"))?;
            buffer.copy_from_slice(found);
            Ok(())
        }
    }

    fn starts(image: &[u8]) -> Vec<u64> {
        journal_starts(&Bytes(image.to_vec()), 0).unwrap()
    }

    fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// An ext4 with blocks of 4 KiB, whose journal has a tree of `depth` levels.
    fn ext_with_tree(depth: u16) -> Vec<u8> {
        let mut image = vec![0; 1 << 20];
        put(&mut image, 1024 + 24, &2_u32.to_le_bytes());
        put(&mut image, 1024 + 56, &[0x53, 0xef]);
        image[1024 + 253] = 1;
        for level in 0..=depth {
            let node = if level == 0 { 1024 + 268 } else { usize::from(level) * 4096 };
            let header = [EXTENT_MAGIC, 1, 4, depth - level].map(u16::to_le_bytes).concat();
            put(&mut image, node, &header);
            match level == depth {
                true => put(&mut image, node + 20, &77_u32.to_le_bytes()),
                false => put(&mut image, node + 16, &u32::from(level + 1).to_le_bytes()),
            }
        }
        image
    }

    #[test]
    fn journals_of_large_ext_file_systems_are_found_through_their_trees() {
        for depth in [0, 1, 5] {
            assert_eq!(starts(&ext_with_tree(depth)), [77 * 4096], "{depth}");
        }
        assert_eq!(starts(&ext_with_tree(6)), NONE);
        // A tree that never ends.
        let mut endless = ext_with_tree(1);
        put(&mut endless, 4096 + 6, &1_u16.to_le_bytes());
        put(&mut endless, 4096 + 16, &1_u32.to_le_bytes());
        assert_eq!(starts(&endless), NONE);
    }

    #[test]
    fn what_lies_beyond_the_disk_or_is_none_is_not_told() {
        assert_eq!(starts(&[]), NONE);
        assert_eq!(starts(&[0; 4096]), NONE);
        let mut far = ext_with_tree(0);
        put(&mut far, 1024 + 268 + 18, &[0xff; 6]);
        assert_eq!(starts(&far), NONE);
        let mut huge = ext_with_tree(0);
        put(&mut huge, 1024 + 24, &[0xff; 4]);
        assert_eq!(starts(&huge), NONE);
        let mut copyless = ext_with_tree(0);
        copyless[1024 + 253] = 0;
        assert_eq!(starts(&copyless), NONE);
        let image = ext_with_tree(0);
        let disk = Bytes([&[0; 8192][..], &image].concat());
        assert_eq!(journal_starts(&disk, 8192).unwrap(), [8192 + 77 * 4096]);
        assert_eq!(journal_starts(&disk, u64::MAX).unwrap(), NONE);
    }

    /// An NTFS as Windows makes it: its file table lies 3 GiB behind its start.
    #[test]
    fn the_file_table_of_ntfs_is_told_where_it_lies_on_the_disk() {
        let mut boot = vec![0; 512];
        put(&mut boot, 3, b"NTFS    ");
        put(&mut boot, 11, &512_u16.to_le_bytes());
        put(&mut boot, 48, &786_432_u64.to_le_bytes());
        boot[64] = 0xf6;
        for (sectors, bytes) in [(8, 4096), (0x80, 65_536), (0xf4, 2 << 20)] {
            boot[13] = sectors;
            let found = ntfs(&Volume { disk: &Bytes(boot.clone()), start: 0 }, &boot).unwrap();
            assert_eq!(found, [Some(786_432 * bytes), None], "{sectors:#x}");
        }
        assert_eq!(starts(&boot), NONE);
        boot[13] = 0xf3;
        assert_eq!(starts(&boot), NONE);
    }
}

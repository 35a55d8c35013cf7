//! Sparse files for tests: noise that can be repeated, maps of what is allocated, comparisons
//! that read only what is there.

#![allow(dead_code, reason = "no test uses all of it")]

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// What a file system allocates at once, nearly everywhere.
pub const BLOCK: u64 = 4096;

/// `bytes` of noise; the same seed gives the same.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut data);
    data
}

/// The parts of a file that are no holes, ascending, as the file system tells.
pub fn data_ranges(path: &Path) -> Vec<Range<u64>> {
    let file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(&file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(errno) => panic!("cannot find the holes of {}: {errno}", path.display()),
        };
        let end = seek(&file, SeekFrom::Hole(start)).unwrap().min(size);
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
        at = end;
    }
    ranges
}

/// The sum of the lengths.
pub fn sum(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Bytes of storage that a file takes.
pub fn stored_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// Asserts that `copy` takes no more storage than `original`. The file system's own notes on
/// where the extents lie count as storage of a file: a block for every 340 extents on ext4.
pub fn assert_not_less_sparse(copy: &Path, original: &Path) {
    let (of_copy, of_original) = (data_ranges(copy), data_ranges(original));
    assert!(
        sum(&of_copy) <= sum(&of_original),
        "{} has {} bytes of data, {} has {}",
        copy.display(),
        sum(&of_copy),
        original.display(),
        sum(&of_original)
    );
    File::open(original).unwrap().sync_all().unwrap();
    let notes = (2 + of_copy.len() as u64 / 100) * BLOCK;
    let (copied, source) = (stored_bytes(copy), stored_bytes(original));
    assert!(copied <= source + notes, "{copied} bytes stored, {source} at the source");
}

/// Makes a hole.
pub fn punch(file: &File, offset: u64, bytes: u64) {
    if bytes > 0 {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(file, flags, offset, bytes).unwrap();
    }
}

/// Where two files differ first; `None` if they are equal. Every byte of both is compared, but
/// what is a hole in both is not read.
pub fn first_difference(one: &Path, other: &Path) -> Option<u64> {
    let (a, b) = (File::open(one).unwrap(), File::open(other).unwrap());
    let (size, other_size) = (a.metadata().unwrap().len(), b.metadata().unwrap().len());
    let mut ranges = data_ranges(one);
    ranges.extend(data_ranges(other));
    ranges.sort_unstable_by_key(|range| range.start);
    let (mut left, mut right) = (vec![0_u8; 1 << 20], vec![0_u8; 1 << 20]);
    let mut at = 0;
    for range in ranges {
        at = range.start.max(at);
        while at < range.end.min(size).min(other_size) {
            let count = (range.end.min(size).min(other_size) - at).min(1 << 20) as usize;
            a.read_exact_at(&mut left[..count], at).unwrap();
            b.read_exact_at(&mut right[..count], at).unwrap();
            if left[..count] != right[..count] {
                let same = left.iter().zip(&right).take_while(|(l, r)| l == r).count();
                return Some(at + same as u64);
            }
            at += count as u64;
        }
    }
    (size != other_size).then_some(size.min(other_size))
}

/// Asserts that two files have the same bytes.
pub fn assert_same(one: &Path, other: &Path) {
    let difference = first_difference(one, other);
    assert_eq!(difference, None, "{} and {} differ", one.display(), other.display());
}

/// Copies a range of a file into a new one, holes as holes.
pub fn extract(from: &Path, range: Range<u64>, to: &Path) {
    let (mut source, mut target) = (File::open(from).unwrap(), File::create_new(to).unwrap());
    target.set_len(range.end - range.start).unwrap();
    for data in data_ranges(from) {
        let (start, end) = (data.start.max(range.start), data.end.min(range.end));
        if start < end {
            source.seek(io::SeekFrom::Start(start)).unwrap();
            target.seek(io::SeekFrom::Start(start - range.start)).unwrap();
            let mut part = Read::by_ref(&mut source).take(end - start);
            assert_eq!(io::copy(&mut part, &mut target).unwrap(), end - start);
        }
    }
    target.flush().unwrap();
}

/// BLAKE3 of a file, as `b3sum` prints it.
pub fn blake3_of(path: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).unwrap()).unwrap();
    hasher.finalize().to_hex().to_string()
}

/// Where a tool is installed, if it is.
pub fn find_tool(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin".into(), "/sbin".into()]);
    folders.into_iter().map(|folder| folder.join(name)).find(|tool| tool.is_file())
}

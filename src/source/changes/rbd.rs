//! The streams of `rbd export-diff`, versions 1 and 2 (Ceph, doc/dev/rbd-diff.rst).
//!
//! Invariants: a stream counts only from its first byte to its end record; data are passed over, so
//! that memory is bounded by the number of separate ranges, which is.

use super::{Parsed, join, range};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;

/// What a stream begins with, up to its version.
const MAGIC: &[u8] = b"rbd diff v";
/// Bytes that tell a stream and its version.
pub(super) const START_BYTES: u64 = 12;
/// Separate ranges that a list may have.
const RANGES_MAX: usize = 1 << 22;

/// The version of the stream that `start` begins, in [`START_BYTES`].
pub(super) fn version(start: &[u8]) -> Option<u8> {
    match start.strip_prefix(MAGIC)? {
        [version @ (b'1' | b'2'), b'\n'] => Some(version - b'0'),
        _ => None,
    }
}

/// A file from behind its start, which may be a pipe.
struct Stream {
    file: BufReader<File>,
    /// True for a file, in which seeking passes over bytes; false for a pipe.
    seeks: bool,
    /// Bytes that are behind.
    at: u64,
}

impl Stream {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes).map_err(|cause| self.failed(&cause))?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn skip(&mut self, bytes: u64) -> Result<(), String> {
        let end = self.at.checked_add(bytes).ok_or("it ends beyond 2^64")?;
        // Behind the end of a file there is no end record either, so a seek may go there.
        let passed = match i64::try_from(bytes) {
            Ok(bytes) if self.seeks => self.file.seek_relative(bytes).map(|()| true),
            _ => io::copy(&mut self.file.by_ref().take(bytes), &mut io::sink())
                .map(|count| count == bytes),
        };
        match passed {
            Ok(true) => self.at = end,
            Ok(false) => return Err(self.failed(&io::ErrorKind::UnexpectedEof.into())),
            Err(cause) => return Err(self.failed(&cause)),
        }
        Ok(())
    }

    fn is_at_end(&mut self) -> Result<bool, String> {
        let read = self.file.by_ref().take(1).read_to_end(&mut Vec::new());
        Ok(read.map_err(|cause| self.failed(&cause))? == 0)
    }

    fn failed(&self, cause: &io::Error) -> String {
        match cause.kind() {
            io::ErrorKind::UnexpectedEof => "the stream is cut: it has no end record".into(),
            _ => format!("{cause}"),
        }
    }
}

/// What a record says.
enum Record {
    /// The snapshot that the stream begins at.
    From,
    Changed(Range<u64>),
    Other,
    End,
}

/// Reads a stream of this version from behind its first [`START_BYTES`].
pub(super) fn read(file: File, version: u8) -> Parsed {
    let seeks = file.metadata().is_ok_and(|metadata| metadata.is_file());
    let mut stream = Stream { file: BufReader::new(file), seeks, at: START_BYTES };
    let mut ranges = Vec::new();
    let mut has_from = false;
    loop {
        let place = stream.at;
        let record = record(&mut stream, version);
        match record.map_err(|what| format!("record at byte {place}: {what}"))? {
            Record::From => has_from = true,
            Record::Changed(range) => add(&mut ranges, range, RANGES_MAX)?,
            Record::Other => {}
            Record::End => break,
        }
    }
    if !stream.is_at_end()? {
        return Err(format!("byte {}: there is more behind the end record", stream.at));
    }
    if !has_from {
        // Such a stream has what there is, and not what was discarded since a point.
        return Err("it begins at no snapshot: it was made without --from-snap".into());
    }
    Ok(ranges)
}

fn add(ranges: &mut Vec<Range<u64>>, new: Range<u64>, most: usize) -> Result<(), String> {
    match ranges.last_mut().filter(|last| last.end == new.start) {
        Some(last) => last.end = new.end,
        None => ranges.push(new),
    }
    if ranges.len() > 2 * most {
        *ranges = join(std::mem::take(ranges));
        if ranges.len() > most {
            return Err(format!("it has more than {most} separate ranges"));
        }
    }
    Ok(())
}

/// Version 1 is a tag and what it stands for; version 2 has the length of that in between, by which
/// what is not known is passed over.
fn record(stream: &mut Stream, version: u8) -> Result<Record, String> {
    let [tag] = stream.bytes()?;
    if tag == b'e' {
        return Ok(Record::End);
    }
    if version == 1 {
        let record = body(stream, tag)?;
        return record.ok_or_else(|| format!("{:?} is no kind of record", char::from(tag)));
    }
    let bytes = stream.u64()?;
    let start = stream.at;
    let Some(record) = body(stream, tag)? else {
        stream.skip(bytes)?;
        return Ok(Record::Other);
    };
    match stream.at - start {
        found if found == bytes => Ok(record),
        found => Err(format!("it has {found} bytes, and its length says {bytes}")),
    }
}

/// What follows a tag; nothing, and nothing read, for one that is not known.
fn body(stream: &mut Stream, tag: u8) -> Result<Option<Record>, String> {
    Ok(Some(match tag {
        b'f' | b't' => {
            let bytes = stream.u32()?;
            stream.skip(bytes.into())?;
            if tag == b'f' { Record::From } else { Record::Other }
        }
        b's' => {
            stream.u64()?;
            Record::Other
        }
        b'w' | b'z' => {
            let changed = range(stream.u64()?, stream.u64()?)?;
            if tag == b'w' {
                stream.skip(changed.end - changed.start)?;
            }
            Record::Changed(changed)
        }
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::source::changes::read_changes;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    /// A record: its tag, and what it stands for.
    type Part = (u8, Vec<u8>);

    fn text(tag: u8, name: &str) -> Part {
        (tag, [&(name.len() as u32).to_le_bytes()[..], name.as_bytes()].concat())
    }

    fn numbers(tag: u8, numbers: &[u64]) -> Part {
        (tag, numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
    }

    fn data(offset: u64, bytes: usize) -> Part {
        let (tag, mut body) = numbers(b'w', &[offset, bytes as u64]);
        // What looks like records in data is none.
        body.extend(b"ewz".iter().cycle().take(bytes));
        (tag, body)
    }

    fn stream(version: u8, parts: &[Part]) -> Vec<u8> {
        let mut bytes = format!("rbd diff v{version}\n").into_bytes();
        for (tag, body) in parts {
            bytes.push(*tag);
            if version == 2 && *tag != b'e' {
                bytes.extend((body.len() as u64).to_le_bytes());
            }
            bytes.extend(body);
        }
        bytes
    }

    fn parts() -> Vec<Part> {
        vec![
            text(b'f', "before"),
            text(b't', "after"),
            numbers(b's', &[1 << 40]),
            data(4096, 512),
            data(4608, 700),
            numbers(b'z', &[1 << 30, 1 << 35]),
            data(0, 512),
            numbers(b'e', &[]),
        ]
    }

    fn read_bytes(bytes: &[u8]) -> crate::error::Result<Vec<Range<u64>>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("diff");
        std::fs::write(&path, bytes).unwrap();
        read_changes(&path, None)
    }

    fn refused(bytes: &[u8], expected: &str) -> Error {
        let error = read_bytes(bytes).expect_err(expected);
        assert_eq!(error.kind(), ErrorKind::Usage, "{error:?}");
        assert!(error.full_text().contains(expected), "{expected}: {error:?}");
        error
    }

    #[test]
    fn written_and_zeroed_ranges_have_changed() {
        let expected = [0..512, 4096..5308, 1 << 30..(1 << 30) + (1 << 35)];
        for version in [1, 2] {
            let bytes = stream(version, &parts());
            assert_eq!(read_bytes(&bytes).unwrap(), expected, "version {version}");
            // Through a pipe, in which nothing can be passed over by seeking.
            let folder = tempfile::tempdir().unwrap();
            let fifo = folder.path().join("fifo");
            rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
            let writer = fifo.clone();
            let thread = std::thread::spawn(move || std::fs::write(writer, bytes));
            assert_eq!(read_changes(&fifo, None).unwrap(), expected, "version {version}");
            thread.join().unwrap().unwrap();
        }
        let nothing = [text(b'f', "x"), numbers(b's', &[9]), numbers(b'e', &[])];
        assert_eq!(read_bytes(&stream(1, &nothing)).unwrap(), []);
    }

    #[test]
    fn a_stream_that_is_cut_anywhere_is_an_error() {
        for version in [1, 2] {
            let bytes = stream(version, &parts());
            for end in 12..bytes.len() {
                refused(&bytes[..end], "the stream is cut: it has no end record");
            }
            refused(&[&bytes[..], &bytes].concat(), "there is more behind the end record");
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        let with = |part: Part| {
            let mut parts = parts();
            parts.insert(3, part);
            parts
        };
        let unknown = with((b'q', vec![7; 300]));
        refused(&stream(1, &unknown), "record at byte 42: 'q' is no kind of record");
        // Version 2 has lengths, so that programs can add records.
        assert_eq!(read_bytes(&stream(2, &unknown)).unwrap().len(), 3);
        let far = with(numbers(b'z', &[u64::MAX, 1]));
        refused(&stream(1, &far), "record at byte 42: a range ends beyond 2^64");
        refused(&stream(2, &far), "a range ends beyond 2^64");
        refused(&stream(1, &with(numbers(b'w', &[0, u64::MAX]))), "it ends beyond 2^64");
        let mut long = with(numbers(b'z', &[0, 1]));
        long[3].1.push(0);
        refused(&stream(2, &long), "it has 16 bytes, and its length says 17");
        refused(&stream(1, &parts()[1..]), "it was made without --from-snap");
        for start in ["rbd diff v3\n", "rbd diff v1", "rbd diff v1\r"] {
            refused(start.as_bytes(), "line 1: expected START LENGTH");
        }
    }

    /// A stream may be as long as the disk; and a bitmap may begin like one.
    #[test]
    fn data_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("diff");
        let gib = 1 << 30;
        let start = stream(1, &[text(b'f', "x"), numbers(b'w', &[gib, 600 * gib])]);
        let file = File::create(&path).unwrap();
        file.write_all_at(&start, 0).unwrap();
        file.write_all_at(b"e", start.len() as u64 + 600 * gib).unwrap();
        assert_eq!(read_changes(&path, None).unwrap(), std::slice::from_ref(&(gib..601 * gib)));
        std::fs::write(&path, b"rbd diff v1\n").unwrap();
        assert!(!read_changes(Path::new(&path), Some(512)).unwrap().is_empty());
    }

    #[test]
    fn the_number_of_separate_ranges_is_bounded() {
        let mut ranges = Vec::new();
        for number in (0..50).chain(0..50) {
            add(&mut ranges, number * 10..number * 10 + 5, 50).unwrap();
        }
        assert!(ranges.len() <= 100);
        let all =
            (50..101).try_for_each(|number| add(&mut ranges, number * 10..number * 10 + 5, 50));
        assert_eq!(all.unwrap_err(), "it has more than 50 separate ranges");
    }
}

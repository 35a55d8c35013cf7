//! A range of a file as a disk or a stream of its own: a member of an archive that is not unpacked.
//!
//! Invariants: nothing outside of the range is read or told; the file is the one in which the range
//! was found, or an error.

use super::extents::Merger;
use super::{DiskSource, Extent, open_disk};
use crate::error::{Error, ErrorKind, Result};
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Where a member lies in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The member's name, for messages.
    pub member: String,
    /// Its bytes in the file.
    pub range: Range<u64>,
    /// [`DiskSource::identity`] of the file in which the member was found.
    pub identity: Vec<u8>,
}

impl Window {
    /// Opens the file at `path` and shows the member as a disk of its bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Source`] if it cannot be opened, or is not the file as it was when the member was
    /// found: the range would be any bytes.
    pub fn open(&self, path: &Path) -> Result<Box<dyn DiskSource>> {
        Ok(Box::new(self.over(path, Arc::from(open_disk(path)?))?))
    }

    /// Opens the member for reading it once. Read into pieces of 64 KiB or more.
    ///
    /// # Errors
    /// As [`Window::open`].
    pub fn open_stream(&self, path: &Path) -> Result<Box<dyn Read + Send>> {
        let source = self.over(path, Arc::from(open_disk(path)?))?;
        Ok(Box::new(WindowReader { source, at: 0 }))
    }

    /// The member in an opened file.
    pub(super) fn over(&self, path: &Path, file: Arc<dyn DiskSource>) -> Result<WindowSource> {
        let Range { start, end } = self.range;
        let is_there = start <= end && end <= file.size() && file.identity() == self.identity;
        if !is_there {
            let text = format!("cannot trust {}: it changed after it was examined", path.display());
            return Err(Error::new(ErrorKind::Source, text));
        }
        let name = path.join(&self.member).display().to_string();
        Ok(WindowSource { file, name, start, bytes: end - start })
    }
}

/// A range of a file as a disk.
pub(super) struct WindowSource {
    file: Arc<dyn DiskSource>,
    name: String,
    start: u64,
    bytes: u64,
}

impl DiskSource for WindowSource {
    fn size(&self) -> u64 {
        self.bytes
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn format(&self) -> &'static str {
        "raw"
    }

    fn extents_in(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        let end = range.end.min(self.bytes);
        if range.start >= end {
            return Ok(());
        }
        let mut merger = Merger::new(each);
        let in_file = self.start + range.start..self.start + end;
        self.file.extents_in(in_file, &mut |extent| {
            merger.add(Extent { start: extent.start - self.start, ..extent })
        })?;
        merger.flush()
    }

    fn allocation_known(&self) -> bool {
        self.file.allocation_known()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.bytes) {
            let text = format!(
                "cannot read disk {} at offset {offset}: {} bytes reach beyond its end at {}",
                self.name,
                buffer.len(),
                self.bytes
            );
            return Err(Error::new(ErrorKind::Source, text));
        }
        self.file.read_at(self.start + offset, buffer)
    }

    fn prefetch(&self, offset: u64, bytes: u64) {
        let offset = offset.min(self.bytes);
        self.file.prefetch(self.start + offset, bytes.min(self.bytes - offset));
    }

    fn check_unchanged_size(&self) -> Result<()> {
        self.file.check_unchanged_size()
    }

    /// That of the file, with the range: another member of it is another disk.
    fn identity(&self) -> Vec<u8> {
        let mut token = self.file.identity();
        // A device has none, and no range makes one of that.
        if !token.is_empty() {
            token.extend_from_slice(&self.start.to_le_bytes());
            token.extend_from_slice(&self.bytes.to_le_bytes());
        }
        token
    }

    fn changed_unix_ns(&self) -> Option<i64> {
        self.file.changed_unix_ns()
    }
}

/// A range of a file, read once.
struct WindowReader {
    source: WindowSource,
    at: u64,
}

impl Read for WindowReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = (self.source.bytes - self.at).min(buffer.len() as u64) as usize;
        let read = self.source.read_at(self.at, &mut buffer[..bytes]);
        read.map_err(|error| io::Error::other(error.full_text()))?;
        self.at += bytes as u64;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::ExtentKind;
    use std::os::unix::fs::FileExt;

    const KIB: u64 = 1 << 10;

    fn window(path: &Path, range: Range<u64>) -> Window {
        let identity = open_disk(path).unwrap().identity();
        Window { member: "m".into(), range, identity }
    }

    #[test]
    fn a_window_shows_its_range_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(1024 * KIB).unwrap();
        // Data in front of it, in it up to its middle, and behind it.
        file.write_all_at(&vec![1; 192 << 10], 0).unwrap();
        file.write_all_at(&vec![2; 64 << 10], 512 * KIB).unwrap();
        let source = window(&path, 128 * KIB..384 * KIB).open(&path).unwrap();
        assert_eq!((source.size(), source.format()), (256 * KIB, "raw"));
        let mut buffer = vec![9; 256 << 10];
        source.read_at(0, &mut buffer).unwrap();
        assert!(buffer[..64 << 10].iter().all(|byte| *byte == 1));
        assert!(buffer[64 << 10..].iter().all(|byte| *byte == 0));
        for (offset, bytes) in [(256 * KIB, 1), (255 * KIB, 1025), (u64::MAX, 2)] {
            let error = source.read_at(offset, &mut buffer[..bytes]).unwrap_err();
            assert!(error.full_text().contains("file/m at offset"), "{error:?}");
        }
        let mut found = Vec::new();
        let mut gather = |extent: Extent| {
            found.push((extent.start, extent.bytes, extent.kind));
            Ok(())
        };
        source.extents(&mut gather).unwrap();
        source.extents_in(192 * KIB..9999 * KIB, &mut gather).unwrap();
        source.extents_in(256 * KIB..9999 * KIB, &mut gather).unwrap();
        let hole = ExtentKind::Hole;
        let data = (0, 64 * KIB, ExtentKind::Data);
        assert_eq!(found, [data, (64 * KIB, 192 * KIB, hole), (192 * KIB, 64 * KIB, hole)]);
        let mut text = Vec::new();
        let mut stream = window(&path, 512 * KIB..512 * KIB + 5).open_stream(&path).unwrap();
        stream.read_to_end(&mut text).unwrap();
        assert_eq!(text, [2; 5]);
    }

    #[test]
    fn it_is_the_file_in_which_it_was_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [1; 4096]).unwrap();
        let (first, second) = (window(&path, 0..512), window(&path, 512..1024));
        let source = first.open(&path).unwrap();
        assert_ne!(source.identity(), second.open(&path).unwrap().identity());
        assert_eq!(source.identity(), first.open(&path).unwrap().identity());
        assert_eq!(source.changed_unix_ns(), open_disk(&path).unwrap().changed_unix_ns());
        source.check_unchanged_size().unwrap();
        assert!(window(&path, 4000..4097).open(&path).is_err());
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8192).unwrap();
        assert!(source.check_unchanged_size().is_err());
        let Err(error) = first.open(&path) else { panic!("opened another file") };
        assert_eq!(error.kind(), ErrorKind::Source);
        assert!(error.full_text().ends_with("it changed after it was examined"), "{error:?}");
        assert!(first.open_stream(&path).is_err());
    }
}

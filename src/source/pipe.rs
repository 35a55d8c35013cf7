//! Streams: standard input, FIFOs and files that are read once from front to back.
//!
//! Invariants: the reader says in its own error which input failed and at which offset, so that
//! no layer above has to know the path. Opening never waits: a FIFO without a writer keeps its
//! reader waiting, which may be a thread that nobody needs.

use super::{STANDARD_INPUT, examine};
use crate::error::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Advice, OFlags, fadvise, fcntl_getfl, fcntl_setfl};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// A reader that counts, and names itself when it fails.
struct Stream {
    file: File,
    name: String,
    offset: u64,
    /// True for a FIFO that may have had no writer yet: a read would say that it has ended.
    waits: bool,
}

impl Stream {
    /// Waits for the first byte of a FIFO, or for a writer that goes without one.
    fn wait_for_writer(&mut self) -> io::Result<()> {
        poll(&mut [PollFd::new(&self.file, PollFlags::IN)], None)?;
        fcntl_setfl(&self.file, fcntl_getfl(&self.file)? - OFlags::NONBLOCK)?;
        self.waits = false;
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let waited = if self.waits { self.wait_for_writer() } else { Ok(()) };
        match waited.and_then(|()| self.file.read(buffer)) {
            Ok(count) => {
                self.offset += count as u64;
                Ok(count)
            }
            // Callers retry by this kind; it is no failure yet.
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => Err(cause),
            Err(cause) => {
                let text = format!("cannot read {} at offset {}: {cause}", self.name, self.offset);
                Err(io::Error::new(cause.kind(), text))
            }
        }
    }
}

/// Opens `path` for reading it once; `-` is standard input. The first read of a FIFO waits for its
/// writer.
///
/// The reader has no buffer of its own: read into pieces of 64 KiB or more.
///
/// # Errors
/// [`ErrorKind::Source`] if there is nothing at `path`, a directory, or something unreadable.
pub fn open_stream(path: &Path) -> Result<Box<dyn Read + Send>> {
    let failed = |cause: io::Error| {
        Error::io(ErrorKind::Source, format!("cannot open source {}", path.display()), cause)
    };
    let (file, name, waits) = if path.as_os_str() == STANDARD_INPUT {
        // A duplicate of the descriptor, because std's stdin copies through 8 KiB.
        let owned = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
        (File::from(owned), "standard input".to_owned(), false)
    } else {
        let waits = examine(path)?.file_type().is_fifo();
        let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
        let flags = if waits { nonblocking } else { 0 };
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
        (file, path.display().to_string(), waits)
    };
    // Doubles the kernel's read-ahead; a pipe says ESPIPE, which does no harm.
    let _ = fadvise(&file, 0, None, Advice::Sequential);
    Ok(Box::new(Stream { file, name, offset: 0, waits }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_a_fifo_are_read_to_their_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"some bytes").unwrap();
        let mut text = String::new();
        open_stream(&path).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "some bytes");

        let fifo = folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
        let writer = fifo.clone();
        let thread = std::thread::spawn(move || std::fs::write(writer, b"through a pipe"));
        let mut text = String::new();
        open_stream(&fifo).unwrap().read_to_string(&mut text).unwrap();
        thread.join().unwrap().unwrap();
        assert_eq!(text, "through a pipe");
    }

    #[test]
    fn a_fifo_is_open_at_once_and_waits_for_its_writer() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
        let (send, opened) = std::sync::mpsc::channel();
        let path = fifo.clone();
        let thread = std::thread::spawn(move || {
            let mut reader = open_stream(&path).unwrap();
            send.send(()).unwrap();
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        let patience = std::time::Duration::from_secs(30);
        opened.recv_timeout(patience).expect("the open waits for a writer");
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!thread.is_finished(), "it ended before it had a writer");
        let mut writer = OpenOptions::new().write(true).open(&fifo).unwrap();
        for part in ["in ", "two parts"] {
            io::Write::write_all(&mut writer, part.as_bytes()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        drop(writer);
        assert_eq!(thread.join().unwrap().unwrap(), "in two parts");
        // A writer that says nothing ends it too.
        let mut reader = open_stream(&fifo).unwrap();
        drop(OpenOptions::new().write(true).open(&fifo).unwrap());
        assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0);
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_owned(), folder.path().join("missing")] {
            let Err(error) = open_stream(&path) else { panic!("opened {}", path.display()) };
            assert_eq!(error.kind(), ErrorKind::Source);
            assert!(error.full_text().contains(&path.display().to_string()));
        }
    }

    #[test]
    fn a_failing_read_names_input_and_offset() {
        // Reading a directory descriptor fails with EISDIR.
        let folder = tempfile::tempdir().unwrap();
        let file = File::open(folder.path()).unwrap();
        let mut stream = Stream { file, name: "/x".to_owned(), offset: 4096, waits: false };
        let error = stream.read(&mut [0; 8]).unwrap_err();
        assert!(error.to_string().starts_with("cannot read /x at offset 4096: Is a directory"));
    }
}

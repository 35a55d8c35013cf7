//! Writing to standard output on a thread of its own, so that a reader that does not read cannot
//! keep the program from stopping, and writing overlaps with fetching.
//!
//! Invariant: bytes leave in order, an error of the thread is the error of the next call, and
//! [`WriteBehind::finish`] succeeds only when all bytes are written; memory is four buffers of
//! 1 MiB.

use super::output::cannot_write;
use crate::error::Result;
use crate::monitor::Monitor;
use crate::restore::sequential::Output;
use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use std::io::{self, Write};
use std::time::Duration;

const BUFFER_BYTES: usize = 1 << 20;
const BUFFERS: usize = 4;
/// How often a waiting writer looks whether the user wants to stop.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// An output behind a thread.
pub struct WriteBehind<'a> {
    full: Option<Sender<Vec<u8>>>,
    spare: Receiver<Vec<u8>>,
    done: Receiver<io::Result<()>>,
    current: Vec<u8>,
    monitor: &'a dyn Monitor,
}

impl<'a> WriteBehind<'a> {
    /// Starts the thread. It ends at an error, or when this is finished or dropped and its write
    /// returns; a write that never returns ends with the process.
    pub fn start(writer: Box<dyn Write + Send>, monitor: &'a dyn Monitor) -> WriteBehind<'a> {
        let (full, filled) = bounded(BUFFERS);
        let (empty, spare) = bounded(BUFFERS);
        // All but the current one.
        for _ in 1..BUFFERS {
            // Holds more than that, so it cannot be full.
            let _ = empty.send(Vec::new());
        }
        let (result, done) = bounded(1);
        std::thread::spawn(move || {
            // Dropping its ends of the channels is what wakes the other side, so it comes last.
            let written = write_all(writer, &filled, &empty);
            let _ = result.send(written);
            drop((filled, empty));
        });
        WriteBehind { full: Some(full), spare, done, current: Vec::new(), monitor }
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// `Failed` if it cannot be, `Cancelled`.
    pub fn finish(mut self) -> Result<()> {
        self.pass_on()?;
        self.full = None;
        self.outcome()
    }

    /// Hands the current buffer to the thread.
    fn pass_on(&mut self) -> Result<()> {
        let Some(full) = &self.full else { return Ok(()) };
        let mut buffer = std::mem::take(&mut self.current);
        loop {
            match full.send_timeout(buffer, LOOK_INTERVAL) {
                Ok(()) => return Ok(()),
                Err(SendTimeoutError::Disconnected(_)) => return self.outcome(),
                Err(SendTimeoutError::Timeout(same)) => {
                    self.monitor.check_cancelled()?;
                    buffer = same;
                }
            }
        }
    }

    /// Waits for an empty buffer.
    fn next_buffer(&mut self) -> Result<()> {
        loop {
            match self.spare.recv_timeout(LOOK_INTERVAL) {
                Ok(mut buffer) => {
                    buffer.clear();
                    buffer.reserve_exact(BUFFER_BYTES);
                    self.current = buffer;
                    return Ok(());
                }
                Err(RecvTimeoutError::Timeout) => self.monitor.check_cancelled()?,
                Err(RecvTimeoutError::Disconnected) => return self.outcome(),
            }
        }
    }

    /// What came of the thread, once it has ended.
    fn outcome(&self) -> Result<()> {
        loop {
            match self.done.recv_timeout(LOOK_INTERVAL) {
                Ok(written) => return written.map_err(cannot_write),
                Err(RecvTimeoutError::Timeout) => self.monitor.check_cancelled()?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(cannot_write(io::Error::other("its thread has ended")));
                }
            }
        }
    }
}

impl Output for WriteBehind<'_> {
    fn data(&mut self, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            if self.current.len() == BUFFER_BYTES {
                self.pass_on()?;
                self.next_buffer()?;
            }
            let count = data.len().min(BUFFER_BYTES - self.current.len());
            self.current.extend_from_slice(&data[..count]);
            data = &data[count..];
        }
        Ok(())
    }
}

fn write_all(
    mut writer: Box<dyn Write + Send>,
    filled: &Receiver<Vec<u8>>,
    empty: &Sender<Vec<u8>>,
) -> io::Result<()> {
    for buffer in filled {
        writer.write_all(&buffer)?;
        // Holds them all; nobody may want it any more.
        let _ = empty.try_send(buffer);
    }
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::monitor::Silent;
    use std::sync::{Arc, Mutex};

    /// Takes so many bytes, then fails.
    struct Failing(usize, Arc<Mutex<Vec<u8>>>);

    impl Write for Failing {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::other("gone"));
            }
            let count = data.len().min(self.0).min(70_000);
            self.0 -= count;
            self.1.lock().unwrap().extend_from_slice(&data[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Ten and a half buffers, in pieces of several sizes.
    fn feed(output: &mut WriteBehind<'_>) -> (Vec<u8>, Result<()>) {
        let bytes: Vec<u8> = (0..21 * BUFFER_BYTES / 2).map(|at| (at / 777) as u8).collect();
        let (first, rest) = bytes.split_at(5);
        let fed = output.data(first).and_then(|()| {
            rest.chunks(3 * BUFFER_BYTES / 2).try_for_each(|piece| output.data(piece))
        });
        (bytes, fed)
    }

    #[test]
    fn bytes_leave_in_order() {
        let written = Arc::default();
        let writer = Failing(usize::MAX, Arc::clone(&written));
        let mut output = WriteBehind::start(Box::new(writer), &Silent);
        let (bytes, fed) = feed(&mut output);
        fed.and_then(|()| output.finish()).unwrap();
        assert!(*written.lock().unwrap() == bytes);
    }

    #[test]
    fn no_error_is_lost() {
        for room in [0, 1, BUFFER_BYTES, 9 * BUFFER_BYTES, 21 * BUFFER_BYTES / 2 - 1] {
            let written = Arc::default();
            let writer = Failing(room, Arc::clone(&written));
            let mut output = WriteBehind::start(Box::new(writer), &Silent);
            let (bytes, fed) = feed(&mut output);
            let error = fed.and_then(|()| output.finish()).unwrap_err();
            assert_eq!(error.full_text(), "cannot write to standard output: gone");
            assert!(written.lock().unwrap()[..] == bytes[..room]);
        }
    }

    #[test]
    fn a_reader_that_does_not_read_cannot_keep_it() {
        struct Stopped;
        impl Monitor for Stopped {
            fn is_cancelled(&self) -> bool {
                true
            }
        }
        let (_read, write) = io::pipe().unwrap();
        let mut output = WriteBehind::start(Box::new(write), &Stopped);
        assert_eq!(feed(&mut output).1.unwrap_err().kind(), ErrorKind::Cancelled);
        // Also when all is handed over and only the end is waited for.
        let (_read, write) = io::pipe().unwrap();
        let mut output = WriteBehind::start(Box::new(write), &Stopped);
        output.data(&vec![0; BUFFER_BYTES]).unwrap();
        assert_eq!(output.finish().unwrap_err().kind(), ErrorKind::Cancelled);
    }
}

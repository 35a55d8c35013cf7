//! Reading a stream on a thread of its own, so that a pipe that gives nothing cannot keep the
//! program from stopping, and reading overlaps with cutting and hashing.
//!
//! Invariant: bytes arrive in order, and an error or the end arrives behind them; memory is
//! four buffers of 1 MiB.

use crate::monitor::Monitor;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const BUFFER_BYTES: usize = 1 << 20;
const BUFFERS: usize = 4;
/// How often a waiting reader looks whether the user wants to stop.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A reader behind a thread.
pub struct ReadAhead<'a> {
    filled: Receiver<io::Result<Vec<u8>>>,
    spare: Sender<Vec<u8>>,
    current: Vec<u8>,
    used: usize,
    monitor: &'a dyn Monitor,
    stopped: Arc<AtomicBool>,
}

impl<'a> ReadAhead<'a> {
    /// Starts reading. A wait ends when the user cancels or `stopped` becomes true. The thread
    /// ends with the stream, at an error, or when this is dropped and its read returns; a read
    /// that never returns ends with the process.
    pub fn start(
        reader: Box<dyn Read + Send>,
        monitor: &'a dyn Monitor,
        stopped: Arc<AtomicBool>,
    ) -> ReadAhead<'a> {
        let (send, filled) = bounded(BUFFERS);
        let (spare, empty) = bounded(BUFFERS);
        for _ in 0..BUFFERS {
            // Holds exactly so many, so it cannot be full.
            let _ = spare.send(Vec::new());
        }
        std::thread::spawn(move || read_all(reader, &send, &empty));
        ReadAhead { filled, spare, current: Vec::new(), used: 0, monitor, stopped }
    }

    /// Waits for the next buffer; `None` at the end.
    fn next(&self) -> io::Result<Option<Vec<u8>>> {
        loop {
            match self.filled.recv_timeout(LOOK_INTERVAL) {
                Ok(filled) => return filled.map(Some),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {
                    if self.monitor.is_cancelled() || self.stopped.load(Ordering::Relaxed) {
                        return Err(io::Error::other("interrupted"));
                    }
                }
            }
        }
    }
}

impl Read for ReadAhead<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.used == self.current.len() {
            let Some(next) = self.next()? else { return Ok(0) };
            let old = std::mem::replace(&mut self.current, next);
            self.used = 0;
            // The thread may have ended; then nobody needs the buffer.
            let _ = self.spare.try_send(old);
        }
        let count = buffer.len().min(self.current.len() - self.used);
        buffer[..count].copy_from_slice(&self.current[self.used..self.used + count]);
        self.used += count;
        Ok(count)
    }
}

fn read_all(
    mut reader: Box<dyn Read + Send>,
    send: &Sender<io::Result<Vec<u8>>>,
    empty: &Receiver<Vec<u8>>,
) {
    for mut buffer in empty {
        buffer.resize(BUFFER_BYTES, 0);
        let result = loop {
            match reader.read(&mut buffer) {
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let filled = match result {
            Ok(0) => return,
            Ok(count) => {
                buffer.truncate(count);
                Ok(buffer)
            }
            Err(cause) => Err(cause),
        };
        let is_last = filled.is_err();
        if send.send(filled).is_err() || is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Silent;
    use std::io::Write;

    #[test]
    fn bytes_come_in_order_and_the_error_behind_them() {
        struct Failing(usize);
        impl Read for Failing {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                if self.0 > 3 {
                    return Err(io::Error::other("gone"));
                }
                buffer[..2].fill(self.0 as u8);
                Ok(2)
            }
        }
        let mut reader = ReadAhead::start(Box::new(Failing(0)), &Silent, Arc::default());
        let mut found = Vec::new();
        let error = reader.read_to_end(&mut found).unwrap_err();
        assert_eq!((found, error.to_string()), (vec![1, 1, 2, 2, 3, 3], "gone".into()));
    }

    #[test]
    fn a_silent_pipe_does_not_keep_it() {
        struct Stopped;
        impl Monitor for Stopped {
            fn is_cancelled(&self) -> bool {
                true
            }
        }
        let (read, mut write) = io::pipe().unwrap();
        let mut reader = ReadAhead::start(Box::new(read), &Stopped, Arc::default());
        assert_eq!(reader.read(&mut [0; 8]).unwrap_err().to_string(), "interrupted");
        write.write_all(b"x").unwrap();
        let (read, mut write) = io::pipe().unwrap();
        let stopped = Arc::new(AtomicBool::new(true));
        let mut reader = ReadAhead::start(Box::new(read), &Silent, stopped);
        assert_eq!(reader.read(&mut [0; 8]).unwrap_err().to_string(), "interrupted");
        write.write_all(b"x").unwrap();
    }
}

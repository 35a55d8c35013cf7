//! Waiting for people and pipes, so that a signal ends the wait; and asking on the terminal.
//!
//! Invariant: what is typed at a prompt is not shown, and the terminal is as before when a
//! [`Hidden`] is dropped.

use super::output::escape;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

/// How often a wait looks whether the user wants to stop: 100 ms.
const LOOK_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A reader that waits with an eye on the monitor; interrupted, it fails with an error that the
/// caller replaces by what the monitor says.
pub struct Interruptible<'a, R> {
    reader: R,
    monitor: &'a dyn Monitor,
}

impl<'a, R: Read + AsFd> Interruptible<'a, R> {
    /// Wraps a reader without a buffer of its own.
    pub fn new(reader: R, monitor: &'a dyn Monitor) -> Interruptible<'a, R> {
        Interruptible { reader, monitor }
    }
}

impl<R: Read + AsFd> Read for Interruptible<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.monitor.is_cancelled() {
                return Err(io::Error::other("interrupted"));
            }
            match poll(&mut [PollFd::new(&self.reader, PollFlags::IN)], Some(&LOOK_INTERVAL)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => match self.reader.read(buffer) {
                    Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
                    read => return read,
                },
                Err(cause) => return Err(cause.into()),
            }
        }
    }
}

/// Longest answer to a question, in bytes.
const ANSWER_BYTES_MAX: usize = 4096;

/// Shows a question on standard error and reads a line from standard input; `None` at its end.
///
/// # Errors
/// `Cancelled` if the user wants to stop; `Failed` if the input cannot be read.
pub fn ask(question: &str, monitor: &dyn Monitor) -> Result<Option<String>> {
    let cannot = |cause| Error::io(ErrorKind::Failed, "cannot read the answer", cause);
    let mut shown = io::stderr().lock();
    // Whoever sees nothing gives no answer.
    let _ = write!(shown, "{}", escape(question)).and_then(|()| shown.flush());
    drop(shown);
    // Past the buffer of the standard library, which a wait could not see into.
    let input = io::stdin().as_fd().try_clone_to_owned().map_err(cannot)?;
    let mut input = Interruptible::new(File::from(input), monitor);
    let mut answer = Vec::new();
    while !answer.ends_with(b"\n") && answer.len() < ANSWER_BYTES_MAX {
        let mut byte = [0];
        let read = input.read(&mut byte);
        if monitor.is_cancelled() || !matches!(read, Ok(1)) {
            // The question's line was not ended.
            let _ = writeln!(io::stderr().lock());
        }
        monitor.check_cancelled()?;
        match read.map_err(cannot)? {
            0 => return Ok(None),
            _ => answer.extend(byte),
        }
    }
    Ok(Some(String::from_utf8_lossy(&answer).into_owned()))
}

/// The terminal of this process, which does not show what is typed.
pub struct Hidden {
    terminal: File,
    before: Termios,
    is_done: bool,
}

impl Hidden {
    /// Opens the terminal, turns its echo off and shows `prompt`.
    ///
    /// # Errors
    /// Fails if there is no terminal.
    pub fn ask(prompt: &str) -> io::Result<Hidden> {
        let mut terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
        let before = tcgetattr(&terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        // The end of the line shows, so that what follows starts on a line of its own.
        silent.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(&terminal, OptionalActions::Now, &silent)?;
        let shown = terminal.write_all(prompt.as_bytes());
        let hidden = Hidden { terminal, before, is_done: false };
        shown.map(|()| hidden)
    }

    /// The answer was read; what was typed behind it is kept for the next one.
    pub fn done(mut self) {
        self.is_done = true;
    }
}

impl Read for &Hidden {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.terminal).read(buffer)
    }
}

impl AsFd for Hidden {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.terminal.as_fd()
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let action = if self.is_done {
            OptionalActions::Now
        } else {
            // Half an answer is not for the shell that comes next; and its line was not ended.
            let _ = self.terminal.write_all(b"\n");
            OptionalActions::Flush
        };
        // A terminal that has gone needs nothing.
        let _ = tcsetattr(&self.terminal, action, &self.before);
    }
}

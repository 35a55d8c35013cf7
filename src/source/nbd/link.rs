//! Requests to an export over all connections to it.

use super::client::{Answer, Ranges, Request};
use super::connection::{Driver, Failure, Job, Reply, Way};
use super::handshake::{CAN_MULTI_CONN, Export};
use super::queue::{Sender, queue};
use super::trouble::Trouble;
use crate::error::{Error, ErrorKind, Result};
use crossbeam_channel::{Receiver, bounded};
use std::io;
use std::ops::Range;

/// Connections to a server that can have several: more of them are not faster, because each has many
/// requests on its way, and servers have few threads.
const CONNECTIONS: usize = 4;
/// Most that is asked for by one request for block status.
const STATUS_BYTES: u64 = 1 << 31;

/// An export, through threads that end with it.
pub(super) struct Link {
    text: String,
    pub export: Export,
    jobs: Sender<Job>,
}

impl Link {
    /// Connects.
    ///
    /// # Errors
    /// `Source` if there is no such server or export.
    pub fn open(way: Way) -> Result<Link> {
        let text = way.address.text.clone();
        let client = way.connect().map_err(|trouble| cannot_open(&text, trouble))?;
        let export = client.export().clone();
        let (jobs, take_jobs) = queue().map_err(|cause| {
            Error::io(ErrorKind::Source, format!("cannot open disk {text}"), cause)
        })?;
        let several = export.flags & CAN_MULTI_CONN != 0;
        let first = Driver::new(way.clone(), export.clone(), take_jobs.clone(), client);
        std::thread::spawn(move || first.run());
        for _ in 1..if several { CONNECTIONS } else { 1 } {
            let (way, export, take_jobs) = (way.clone(), export.clone(), take_jobs.clone());
            std::thread::spawn(move || {
                // A server may have its reasons to want no more; the first one does it all then.
                if let Ok(client) = way.connect() {
                    Driver::new(way, export, take_jobs, client).run();
                }
            });
        }
        Ok(Link { text, export, jobs })
    }

    /// Sends a request, whose answer comes there.
    pub fn ask(&self, request: Request) -> Receiver<Reply> {
        let (reply, answer) = bounded(1);
        // What nobody takes shows at the other end.
        self.jobs.send(Job { request, reply });
        answer
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// `Source`, with an I/O error as cause if the server gave an error number.
    pub fn wait(&self, answer: &Receiver<Reply>, what: &str, offset: u64) -> Result<Answer> {
        let text = format!("cannot {what} disk {} at offset {offset}", self.text);
        match answer.recv() {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Failure::Answered(number, said))) => {
                let cause = i32::try_from(number).unwrap_or(0);
                let text = if said.is_empty() { text } else { format!("{text}: {said}") };
                Err(Error::new(ErrorKind::Source, text)
                    .because(io::Error::from_raw_os_error(cause)))
            }
            Ok(Err(Failure::Lost(why, hint))) => {
                let error = Error::new(ErrorKind::Source, format!("{text}: {why}"));
                Err(if let Some(hint) = hint { error.hint(hint) } else { error })
            }
            Err(_) => Err(Error::new(ErrorKind::Source, format!("{text}: a thread stopped"))),
        }
    }

    /// True if the server tells this context.
    pub fn has_context(&self, name: &str) -> bool {
        self.export.contexts.iter().any(|(_, known)| known == name)
    }

    /// Calls `each` with ranges and flags that cover `range` exactly.
    ///
    /// # Errors
    /// `Source`, and what `each` returns.
    pub fn walk_status(
        &self,
        context: &str,
        range: Range<u64>,
        each: &mut dyn FnMut(Range<u64>, u32) -> Result<()>,
    ) -> Result<()> {
        let known = self.export.contexts.iter().find(|(_, name)| name == context);
        let id = known.map(|(id, _)| *id);
        let least = u64::from(self.export.blocks.0);
        let end = range.end.min(self.export.size);
        let mut at = range.start;
        while at < end {
            let from = at - at % least;
            let to = (end.next_multiple_of(least)).min(self.export.size);
            let bytes = (to - from).min(STATUS_BYTES) as u32;
            let answer = self.ask(Request::Status(from, bytes));
            let answer = self.wait(&answer, "read the allocation of", from)?;
            let Answer::Status(contexts) = answer else { return Err(self.odd(from)) };
            let ranges = contexts.into_iter().find(|(number, _)| Some(*number) == id);
            let (_, ranges): (u32, Ranges) = ranges.ok_or_else(|| self.odd(from))?;
            let (mut start, before) = (from, at);
            for (length, flags) in ranges {
                let stop = (start + u64::from(length)).min(end);
                if start.max(at) < stop {
                    each(start.max(at)..stop, flags)?;
                    at = stop;
                }
                start = stop;
            }
            if at == before {
                return Err(self.odd(from));
            }
        }
        Ok(())
    }

    fn odd(&self, offset: u64) -> Error {
        let text = format!("cannot read the allocation of disk {} at offset {offset}", self.text);
        Error::new(ErrorKind::Source, format!("{text}: the server told something else"))
    }
}

/// The error of a server that has nothing for us.
fn cannot_open(text: &str, trouble: Trouble) -> Error {
    let text = format!("cannot open disk {text}");
    match trouble {
        Trouble::Gone(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => {
            Error::new(ErrorKind::Source, format!("{text}: the server closed the connection"))
        }
        Trouble::Gone(cause) if is_timeout(&cause) => {
            Error::new(ErrorKind::Source, format!("{text}: the server does not answer"))
        }
        Trouble::Gone(cause) => Error::io(ErrorKind::Source, text, cause),
        Trouble::Wrong(what) => {
            Error::new(ErrorKind::Source, format!("{text}: the server sent {what}"))
        }
        Trouble::Refused(what, hint) => {
            let error = Error::new(ErrorKind::Source, format!("{text}: {what}"));
            if let Some(hint) = hint { error.hint(hint) } else { error }
        }
    }
}

/// What the system says to a read that took too long differs by the kind of socket.
pub(super) fn is_timeout(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

//! The second phase of NBD on one connection: requests, and simple and structured replies to them.
//!
//! Invariants: a reply counts only if it is to a request that waits, fills exactly its range, and
//! each byte of it once; no reply makes more memory be taken than the request asked for.

use super::handshake::{Export, choose};
use super::numbers::Numbers;
use super::transport::Stream;
use super::trouble::{Outcome, Trouble, wrong};
use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;

const READ: u16 = 0;
const DISCONNECT: u16 = 2;
const BLOCK_STATUS: u16 = 7;

const DONE: u16 = 1;
const NONE: u16 = 0;
const OFFSET_DATA: u16 = 1;
const OFFSET_HOLE: u16 = 2;
const STATUS: u16 = 5;
const IS_ERROR: u16 = 1 << 15;

/// Bytes of one reply with block status: 8 for each extent.
const STATUS_BYTES_MAX: u32 = 16 << 20;
/// Bytes of a text that explains an error.
const TEXT_BYTES_MAX: u32 = 64 << 10;
/// Parts of one reply, without data none is needed twice.
const CHUNKS_MAX: usize = 1 << 16;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// So many bytes from an offset.
    Read(u64, u32),
    /// What is known of so many bytes from an offset.
    Status(u64, u32),
}

/// Ranges of a context from the offset of the request on: bytes and flags.
pub type Ranges = Vec<(u32, u32)>;

/// What a server answers.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The bytes.
    Data(Vec<u8>),
    /// The ranges of each context, by the server's number.
    Status(Vec<(u32, Ranges)>),
    /// An error number of the protocol, which are those of Linux, and what the server says to it.
    Failed(u32, String),
}

impl Client<Box<dyn Stream>> {
    /// True if something of an answer is here already.
    pub(super) fn has_buffered(&self) -> bool {
        !self.stream.buffer().is_empty() || self.stream().has_buffered()
    }
}

/// A request whose reply has not ended.
struct Waiting {
    request: Request,
    data: Vec<u8>,
    /// Start and end of what has come, in bytes behind the offset.
    filled: Vec<(u32, u32)>,
    status: Vec<(u32, Ranges)>,
    error: Option<(u32, String)>,
    chunks: usize,
}

/// A connection to an export.
pub struct Client<S: Read + Write> {
    stream: BufReader<S>,
    export: Export,
    next_cookie: u64,
    waiting: BTreeMap<u64, Waiting>,
}

impl<S: Read + Write> Client<S> {
    /// Negotiates on a stream that has been greeted.
    ///
    /// # Errors
    /// [`Trouble`] if the server has no such export, or does not keep to the protocol.
    pub(super) fn choose(mut stream: S, name: &str, has_zeroes: bool) -> Outcome<Client<S>> {
        let export = choose(&mut stream, name, has_zeroes)?;
        let stream = BufReader::with_capacity(8 << 10, stream);
        Ok(Client { stream, export, next_cookie: 0, waiting: BTreeMap::new() })
    }

    /// Greets a server and chooses an export of it, without TLS.
    ///
    /// # Errors
    /// [`Trouble`] as the server gives it.
    pub fn negotiate(mut stream: S, name: &str) -> Result<Client<S>, Trouble> {
        let has_zeroes = super::handshake::greet(&mut stream)?;
        Client::choose(stream, name, has_zeroes)
    }

    /// What the server said of the export.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// The stream below.
    pub(super) fn stream(&self) -> &S {
        self.stream.get_ref()
    }

    /// The number of requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sends a request; the number that its answer will have.
    ///
    /// # Errors
    /// [`Trouble::Gone`].
    pub fn ask(&mut self, request: Request) -> Result<u64, Trouble> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let (kind, offset, bytes) = match request {
            Request::Read(offset, bytes) => (READ, offset, bytes),
            Request::Status(offset, bytes) => (BLOCK_STATUS, offset, bytes),
        };
        self.send(kind, cookie, offset, bytes)?;
        let waiting = Waiting {
            request,
            data: Vec::new(),
            filled: Vec::new(),
            status: Vec::new(),
            error: None,
            chunks: 0,
        };
        self.waiting.insert(cookie, waiting);
        Ok(cookie)
    }

    fn send(&mut self, kind: u16, cookie: u64, offset: u64, bytes: u32) -> Outcome<()> {
        let mut request = [0; 28];
        request[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        request[6..8].copy_from_slice(&kind.to_be_bytes());
        request[8..16].copy_from_slice(&cookie.to_be_bytes());
        request[16..24].copy_from_slice(&offset.to_be_bytes());
        request[24..].copy_from_slice(&bytes.to_be_bytes());
        let stream = self.stream.get_mut();
        stream.write_all(&request)?;
        Ok(stream.flush()?)
    }

    /// Tells the server that this was all. What goes wrong with that does not matter.
    pub fn disconnect(&mut self) {
        let _ = self.send(DISCONNECT, 0, 0, 0);
    }

    /// Waits until the answer to one request is whole: its number, and the answer.
    ///
    /// # Errors
    /// [`Trouble::Gone`] and [`Trouble::Wrong`]; the connection is of no use then.
    pub fn answer(&mut self) -> Result<(u64, Answer), Trouble> {
        loop {
            let magic = self.stream.u32()?;
            let done = match magic {
                SIMPLE_MAGIC => Some(self.simple()?),
                STRUCTURED_MAGIC => self.structured()?,
                _ => return wrong(format!("a reply with magic number {magic:#x}")),
            };
            if let Some((cookie, waiting)) = done {
                return Ok((cookie, finished(waiting, &self.export)?));
            }
        }
    }

    fn take_waiting(&mut self, cookie: u64) -> Outcome<Waiting> {
        match self.waiting.remove(&cookie) {
            Some(waiting) => Ok(waiting),
            None => wrong(format!("a reply to request {cookie}, which nobody made")),
        }
    }

    fn simple(&mut self) -> Outcome<(u64, Waiting)> {
        let (error, cookie) = (self.stream.u32()?, self.stream.u64()?);
        let mut waiting = self.take_waiting(cookie)?;
        match (error, waiting.request) {
            (0, Request::Read(_, bytes)) if !self.export.is_structured => {
                waiting.data = vec![0; bytes as usize];
                self.stream.read_exact(&mut waiting.data)?;
                waiting.filled.push((0, bytes));
            }
            (0, _) => return wrong("a simple reply where a structured one was agreed on"),
            (error, _) => waiting.error = Some((error, String::new())),
        }
        Ok((cookie, waiting))
    }

    /// One part of a reply; the request if it was the last one.
    fn structured(&mut self) -> Outcome<Option<(u64, Waiting)>> {
        let (flags, kind) = (self.stream.u16()?, self.stream.u16()?);
        let (cookie, bytes) = (self.stream.u64()?, self.stream.u32()?);
        if !self.export.is_structured {
            return wrong("a structured reply that was not agreed on");
        }
        let mut waiting = self.take_waiting(cookie)?;
        waiting.chunks += 1;
        if waiting.chunks > CHUNKS_MAX {
            return wrong(format!("a reply of more than {CHUNKS_MAX} parts"));
        }
        match (kind, waiting.request) {
            (NONE, _) if bytes == 0 => {}
            (OFFSET_DATA, Request::Read(offset, asked)) if bytes > 8 => {
                let at = self.stream.u64()?;
                let (start, end) = waiting.fill(offset, asked, at, bytes - 8)?;
                self.stream.read_exact(&mut waiting.data[start as usize..end as usize])?;
            }
            (OFFSET_HOLE, Request::Read(offset, asked)) if bytes == 12 => {
                let (at, length) = (self.stream.u64()?, self.stream.u32()?);
                waiting.fill(offset, asked, at, length)?;
            }
            (STATUS, Request::Status(..)) if bytes >= 12 && bytes % 8 == 4 => {
                self.status(&mut waiting, bytes)?;
            }
            (kind, _) if kind & IS_ERROR != 0 && bytes >= 6 => self.error(&mut waiting, bytes)?,
            (kind, request) => {
                return wrong(format!("a part of kind {kind} and {bytes} bytes to {request:?}"));
            }
        }
        if flags & DONE != 0 {
            return Ok(Some((cookie, waiting)));
        }
        self.waiting.insert(cookie, waiting);
        Ok(None)
    }

    fn status(&mut self, waiting: &mut Waiting, bytes: u32) -> Outcome<()> {
        if bytes > STATUS_BYTES_MAX {
            return wrong(format!("{bytes} bytes of block status"));
        }
        let context = self.stream.u32()?;
        if waiting.status.iter().any(|(known, _)| *known == context) {
            return wrong(format!("block status of context {context} twice"));
        }
        let mut list = vec![0; (bytes - 4) as usize];
        self.stream.read_exact(&mut list)?;
        let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        let ranges: Ranges =
            list.chunks_exact(8).map(|pair| (number(&pair[..4]), number(&pair[4..]))).collect();
        if ranges.iter().any(|(length, _)| *length == 0) {
            return wrong("block status of 0 bytes");
        }
        waiting.status.push((context, ranges));
        Ok(())
    }

    fn error(&mut self, waiting: &mut Waiting, bytes: u32) -> Outcome<()> {
        if bytes > TEXT_BYTES_MAX {
            return wrong(format!("an error that is told in {bytes} bytes"));
        }
        let (number, length) = (self.stream.u32()?, self.stream.u16()?);
        let mut rest = vec![0; (bytes - 6) as usize];
        self.stream.read_exact(&mut rest)?;
        if usize::from(length) > rest.len() {
            return wrong("an error whose text is longer than itself");
        }
        let text = String::from_utf8_lossy(&rest[..usize::from(length)]);
        // Zero is no error; the part that follows might contradict it.
        let number = if number == 0 { 22 } else { number };
        waiting.error.get_or_insert((number, text.trim().escape_debug().to_string()));
        Ok(())
    }
}

impl Waiting {
    /// Makes room for a part of a read: its place in the data.
    fn fill(&mut self, offset: u64, asked: u32, at: u64, bytes: u32) -> Outcome<(u32, u32)> {
        let start = at.checked_sub(offset).filter(|start| *start < u64::from(asked));
        let end = start.and_then(|start| (start as u32).checked_add(bytes));
        let (Some(start), Some(end)) = (start, end.filter(|end| *end <= asked && bytes > 0)) else {
            return wrong(format!("{bytes} bytes at {at}, outside of what was asked for"));
        };
        if self.data.is_empty() {
            self.data = vec![0; asked as usize];
        }
        self.filled.push((start as u32, end));
        Ok((start as u32, end))
    }

    /// Whether each byte has come once.
    fn is_filled(&mut self, asked: u32) -> bool {
        self.filled.sort_unstable();
        let mut end = 0;
        for (start, stop) in &self.filled {
            if *start != end {
                return false;
            }
            end = *stop;
        }
        end == asked
    }
}

fn finished(mut waiting: Waiting, export: &Export) -> Outcome<Answer> {
    if let Some((number, text)) = waiting.error {
        return Ok(Answer::Failed(number, text));
    }
    match waiting.request {
        Request::Read(_, asked) => {
            if !waiting.is_filled(asked) {
                return wrong(format!("a reply that does not give {asked} bytes once each"));
            }
            Ok(Answer::Data(waiting.data))
        }
        Request::Status(..) => {
            let known = |id: &u32| export.contexts.iter().any(|(context, _)| context == id);
            if waiting.status.is_empty() || !waiting.status.iter().all(|(id, _)| known(id)) {
                return wrong("block status of other contexts than were agreed on");
            }
            Ok(Answer::Status(waiting.status))
        }
    }
}

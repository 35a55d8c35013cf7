//! Frames, requests and answers on the line, as docs/far-protocol.md has them: little-endian, each
//! with its length in front.
//!
//! Invariants: no memory is taken for a length before it was compared with its limit; a name is one
//! by the grammar of names before anybody sees it; text of the other end has no control characters.

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Folder, ObjectEntry, ObjectName};
use std::io::{self, Read};

/// Bytes of the body of a frame.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// Bytes of an error's text.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// Bytes that a page of a listing should have.
const PAGE_BYTES: usize = 64 << 10;

/// Length, kind and number of the request.
const FRAME_HEADER_BYTES: usize = 13;

/// One message, of whatever kind.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: u8,
    /// The request that it is, or answers.
    pub id: u64,
    /// The rest.
    pub body: Vec<u8>,
}

/// What the client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A new object of so many bytes, which follow in pieces.
    Put { name: ObjectName, bytes: u64 },
    /// Some of them.
    Piece(Vec<u8>),
    /// A whole object, if it is not larger.
    Get { name: ObjectName, bytes_max: u64 },
    /// A part of an object.
    Range { name: ObjectName, offset: u64, bytes: u64 },
    /// The end of an object.
    Tail { name: ObjectName, bytes: u64 },
    /// Its size.
    Size { name: ObjectName },
    /// All objects of a folder.
    List { folder: Folder },
    /// What is no object.
    Foreign,
    /// Removes an object.
    Delete { name: ObjectName },
    /// Gives an object another name. If this is asked again, it may have been done before.
    Rename { from: ObjectName, to: ObjectName, is_again: bool },
    /// Free bytes.
    Room,
    /// Nothing but a sign of life.
    Ping,
    /// Whether an object has these bytes and no others; if so it is durable then.
    Same { name: ObjectName, bytes: u64, digest: [u8; 32] },
}

/// What the far end says.
#[derive(Debug)]
pub enum Answer {
    /// It is done; the number that was asked for, if there is one. The last of a request's answers.
    Done(Option<u64>),
    /// Some of the bytes.
    Piece(Vec<u8>),
    /// All bytes of a put have come; it is not done yet.
    Received,
    /// Some of the objects.
    Entries(Vec<ObjectEntry>),
    /// Some of the names.
    Names(Vec<String>),
    /// It failed. The last of a request's answers.
    Failed(Error),
}

const PUT: u8 = 0x01;
const PIECE: u8 = 0x02;
const GET: u8 = 0x03;
const RANGE: u8 = 0x04;
const TAIL: u8 = 0x05;
const SIZE: u8 = 0x06;
const LIST: u8 = 0x07;
const FOREIGN: u8 = 0x08;
const DELETE: u8 = 0x09;
const RENAME: u8 = 0x0a;
const ROOM: u8 = 0x0b;
const PING: u8 = 0x0c;
const SAME: u8 = 0x0d;

const DONE: u8 = 0x81;
const ANSWER_PIECE: u8 = 0x82;
const ENTRIES: u8 = 0x83;
const NAMES: u8 = 0x84;
const FAILED: u8 = 0x85;
const RECEIVED: u8 = 0x86;

/// Kinds of errors on the line. What has none of its own is a failure.
const ERROR_KINDS: [(u8, ErrorKind); 7] = [
    (1, ErrorKind::Failed),
    (2, ErrorKind::Usage),
    (3, ErrorKind::NotFound),
    (4, ErrorKind::AlreadyExists),
    (5, ErrorKind::Storage),
    (6, ErrorKind::NoSpace),
    (7, ErrorKind::NoRepository),
];
/// As 3 to 7, damage.
const ERROR_DAMAGE: u8 = 8;
/// Of kind storage, because it is not allowed.
const ERROR_REFUSED: u8 = 9;

impl Frame {
    /// Reads one; `None` if the line was closed between two.
    ///
    /// # Errors
    /// Those of the line, and `InvalidData` for a frame that is too long.
    pub fn read(input: &mut dyn Read) -> io::Result<Option<Frame>> {
        let mut header = [0; FRAME_HEADER_BYTES];
        let mut filled = 0;
        while filled < header.len() {
            match input.read(&mut header[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
        let [b0, b1, b2, b3, kind, id @ ..] = header;
        let (bytes, id) = (u32::from_le_bytes([b0, b1, b2, b3]), u64::from_le_bytes(id));
        if bytes as usize > BODY_BYTES_MAX {
            let text = format!("a message of {bytes} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut body = vec![0; bytes as usize];
        input.read_exact(&mut body)?;
        Ok(Some(Frame { kind, id, body }))
    }
}

/// A frame as bytes.
pub fn encode_frame(kind: u8, id: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FRAME_HEADER_BYTES + body.len());
    // Bodies are pieces, pages and names: none comes near 4 GiB.
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.push(kind);
    bytes.extend(id.to_le_bytes());
    bytes.extend(body);
    bytes
}

/// A piece of a put as bytes, without another copy of it.
pub fn encode_piece(id: u64, piece: &[u8]) -> Vec<u8> {
    encode_frame(PIECE, id, piece)
}

impl Request {
    /// As bytes.
    pub fn encode(&self, id: u64) -> Vec<u8> {
        let mut body = Vec::new();
        let mut named = |numbers: &[u64], name: &ObjectName| {
            body.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            body.extend(name.as_str().as_bytes());
        };
        let kind = match self {
            Request::Put { name, bytes } => {
                named(&[*bytes], name);
                PUT
            }
            Request::Piece(piece) => return encode_piece(id, piece),
            Request::Get { name, bytes_max } => {
                named(&[*bytes_max], name);
                GET
            }
            Request::Range { name, offset, bytes } => {
                named(&[*offset, *bytes], name);
                RANGE
            }
            Request::Tail { name, bytes } => {
                named(&[*bytes], name);
                TAIL
            }
            Request::Size { name } => {
                named(&[], name);
                SIZE
            }
            Request::List { folder } => {
                body.extend(folder.name().as_bytes());
                LIST
            }
            Request::Foreign => FOREIGN,
            Request::Delete { name } => {
                named(&[], name);
                DELETE
            }
            Request::Rename { from, to, is_again } => {
                body.push(u8::from(*is_again));
                push_text(&mut body, from.as_str());
                push_text(&mut body, to.as_str());
                RENAME
            }
            Request::Room => ROOM,
            Request::Ping => PING,
            Request::Same { name, bytes, digest } => {
                body.extend(bytes.to_le_bytes());
                body.extend(digest);
                body.extend(name.as_str().as_bytes());
                SAME
            }
        };
        encode_frame(kind, id, &body)
    }

    /// Reads one.
    ///
    /// # Errors
    /// `Usage` for one that is not known or not well formed.
    pub fn decode(kind: u8, body: Vec<u8>) -> Result<Request> {
        let mut fields = Fields(&body);
        let request = match kind {
            PUT => Request::Put { bytes: fields.u64()?, name: fields.name()? },
            PIECE => return Ok(Request::Piece(body)),
            GET => Request::Get { bytes_max: fields.u64()?, name: fields.name()? },
            RANGE => {
                let (offset, bytes) = (fields.u64()?, fields.u64()?);
                Request::Range { offset, bytes, name: fields.name()? }
            }
            TAIL => Request::Tail { bytes: fields.u64()?, name: fields.name()? },
            SIZE => Request::Size { name: fields.name()? },
            LIST => {
                let name = fields.rest_text()?;
                let folder = Folder::from_name(name).ok_or_else(|| malformed("a folder"))?;
                Request::List { folder }
            }
            FOREIGN => Request::Foreign,
            DELETE => Request::Delete { name: fields.name()? },
            RENAME => {
                let is_again = fields.u8()? == 1;
                let from = ObjectName::parse(fields.text()?)?;
                Request::Rename { from, to: ObjectName::parse(fields.text()?)?, is_again }
            }
            ROOM => Request::Room,
            PING => Request::Ping,
            SAME => {
                let (bytes, digest) = (fields.u64()?, fields.array()?);
                Request::Same { bytes, digest, name: fields.name()? }
            }
            _ => {
                let text = format!("cannot do operation {kind}: this end does not know it");
                return Err(Error::new(ErrorKind::Usage, text));
            }
        };
        fields.end()?;
        Ok(request)
    }
}

impl Answer {
    /// As bytes.
    pub fn encode(&self, id: u64) -> Vec<u8> {
        let mut body = Vec::new();
        let kind = match self {
            Answer::Done(number) => {
                body.extend(number.iter().flat_map(|number| number.to_le_bytes()));
                DONE
            }
            Answer::Piece(piece) => return encode_frame(ANSWER_PIECE, id, piece),
            Answer::Received => RECEIVED,
            Answer::Entries(entries) => {
                entries.iter().for_each(|entry| push_entry(&mut body, entry));
                ENTRIES
            }
            Answer::Names(names) => {
                names.iter().for_each(|name| push_text(&mut body, name));
                NAMES
            }
            Answer::Failed(error) => {
                body.push(error_code(error));
                body.extend(shorten(&error.full_text()).as_bytes());
                FAILED
            }
        };
        encode_frame(kind, id, &body)
    }

    /// Reads one.
    ///
    /// # Errors
    /// `Storage` for one that is not well formed.
    pub fn decode(kind: u8, body: Vec<u8>) -> Result<Answer> {
        let mut fields = Fields(&body);
        Ok(match kind {
            DONE if body.is_empty() => Answer::Done(None),
            DONE => {
                let number = fields.u64()?;
                fields.end()?;
                Answer::Done(Some(number))
            }
            ANSWER_PIECE => Answer::Piece(body),
            RECEIVED => Answer::Received,
            ENTRIES => {
                let mut entries = Vec::new();
                while !fields.0.is_empty() {
                    entries.push(fields.entry()?);
                }
                Answer::Entries(entries)
            }
            NAMES => {
                let mut names = Vec::new();
                while !fields.0.is_empty() {
                    names.push(printable(fields.text()?));
                }
                Answer::Names(names)
            }
            FAILED => {
                let code = fields.u8()?;
                Answer::Failed(error_of(code, &String::from_utf8_lossy(fields.0)))
            }
            _ => return Err(malformed("an answer")),
        })
    }
}

/// Cuts a listing into pages.
pub fn pages(entries: Vec<ObjectEntry>) -> impl Iterator<Item = Answer> {
    let mut entries = entries.into_iter().peekable();
    std::iter::from_fn(move || {
        entries.peek()?;
        let (mut page, mut bytes) = (Vec::new(), 0);
        while bytes < PAGE_BYTES {
            let Some(entry) = entries.next() else { break };
            bytes += entry.name.as_str().len() + 19;
            page.push(entry);
        }
        Some(Answer::Entries(page))
    })
}

fn push_text(body: &mut Vec<u8>, text: &str) {
    let text = shorten(text);
    // No longer than TEXT_BYTES_MAX.
    body.extend((text.len() as u16).to_le_bytes());
    body.extend(text.as_bytes());
}

fn push_entry(body: &mut Vec<u8>, entry: &ObjectEntry) {
    body.extend(entry.bytes.to_le_bytes());
    body.push(u8::from(entry.stored_unix_ns.is_some()));
    body.extend(entry.stored_unix_ns.unwrap_or(0).to_le_bytes());
    push_text(body, entry.name.as_str());
}

/// What fits into a text on the line.
fn shorten(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Text of the other end, safe for a terminal and of one line.
pub fn printable(text: &str) -> String {
    let is_safe = |mark: char| !mark.is_control();
    let shown = text.chars().take(TEXT_BYTES_MAX);
    shown
        .flat_map(|mark| if is_safe(mark) { vec![mark] } else { mark.escape_default().collect() })
        .collect()
}

/// The kind of an error as a number.
pub fn error_code(error: &Error) -> u8 {
    if crate::storage::is_refused(error) {
        return ERROR_REFUSED;
    }
    if error.kind() == ErrorKind::Damage {
        return ERROR_DAMAGE;
    }
    let known = ERROR_KINDS.iter().find(|(_, kind)| *kind == error.kind());
    known.map_or(1, |(code, _)| *code)
}

/// The error that a number and a text stand for.
pub fn error_of(code: u8, text: &str) -> Error {
    let text = printable(text);
    if code == ERROR_REFUSED {
        let cause = io::Error::new(io::ErrorKind::PermissionDenied, text);
        return Error::new(ErrorKind::Storage, "refused by the far end").because(cause);
    }
    if code == ERROR_DAMAGE {
        return Error::new(ErrorKind::Damage, text);
    }
    let known = ERROR_KINDS.iter().find(|(known, _)| *known == code);
    Error::new(known.map_or(ErrorKind::Storage, |(_, kind)| *kind), text)
}

/// The error for a message that is not well formed, and what was looked for in it.
pub fn malformed(what: &str) -> Error {
    let text = format!("cannot read a message of the other end: {what} is malformed");
    Error::new(ErrorKind::Usage, text)
}

/// What is left to be read of a message.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8]> {
        let (taken, rest) =
            self.0.split_at_checked(bytes).ok_or_else(|| malformed("its length"))?;
        self.0 = rest;
        Ok(taken)
    }

    /// So many bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// A number.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// A number.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// A number.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A number.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A text with its length in front.
    pub fn text(&mut self) -> Result<&'a str> {
        let bytes = usize::from(self.u16()?);
        if bytes > TEXT_BYTES_MAX {
            return Err(malformed("a text"));
        }
        std::str::from_utf8(self.take(bytes)?).map_err(|_| malformed("a text"))
    }

    /// The rest as a text.
    pub fn rest_text(&mut self) -> Result<&'a str> {
        if self.0.len() > TEXT_BYTES_MAX {
            return Err(malformed("a text"));
        }
        std::str::from_utf8(std::mem::take(&mut self.0)).map_err(|_| malformed("a text"))
    }

    fn name(&mut self) -> Result<ObjectName> {
        ObjectName::parse(self.rest_text()?)
    }

    fn entry(&mut self) -> Result<ObjectEntry> {
        let (bytes, has_time, time) = (self.u64()?, self.u8()?, i64::from_le_bytes(self.array()?));
        let name = ObjectName::parse(self.text()?)?;
        let stored_unix_ns = (has_time == 1).then_some(time);
        Ok(ObjectEntry { name, bytes, stored_unix_ns })
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(malformed("its end")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ObjectName {
        ObjectName::parse(text).unwrap()
    }

    #[test]
    fn requests_come_out_as_they_went_in() {
        let requests = [
            Request::Put { name: name("packs/3f/3f00"), bytes: 1 << 30 },
            Request::Piece(vec![1, 2, 3]),
            Request::Get { name: name("keys/3f"), bytes_max: u64::MAX },
            Request::Range { name: name("keys/3f"), offset: 7, bytes: 9 },
            Request::Tail { name: name("keys/3f"), bytes: 9 },
            Request::Size { name: name("instance") },
            Request::List { folder: Folder::Points },
            Request::Foreign,
            Request::Delete { name: name("leases/3f.7") },
            Request::Rename {
                from: name("packs/3f/3f00"),
                to: name("aside/packs-3f.1"),
                is_again: true,
            },
            Request::Room,
            Request::Ping,
            Request::Same { name: name("points/3f.ok"), bytes: 0, digest: [7; 32] },
        ];
        for request in requests {
            let bytes = request.encode(77);
            let frame = Frame::read(&mut &bytes[..]).unwrap().unwrap();
            assert_eq!(encode_frame(frame.kind, 77, &frame.body), bytes);
            assert_eq!(frame.id, 77);
            assert_eq!(Request::decode(frame.kind, frame.body.clone()).unwrap(), request);
            for cut in 1..bytes.len() {
                assert!(Frame::read(&mut &bytes[..cut]).is_err(), "{request:?} cut at {cut}");
            }
            for cut in 0..frame.body.len() {
                // A shorter one is another request or none, and no panic.
                let _ = Request::decode(frame.kind, frame.body[..cut].to_vec());
            }
        }
        for (kind, body) in [
            (GET, b"12345678packs/../x".to_vec()),
            (SIZE, b"tmp/1".to_vec()),
            (LIST, b"tmp".to_vec()),
            (PING, b"x".to_vec()),
            (RENAME, b"\x01\x00ab".to_vec()),
            (0x7f, Vec::new()),
        ] {
            assert!(Request::decode(kind, body).is_err(), "{kind}");
        }
    }

    #[test]
    fn a_length_is_believed_only_up_to_its_limit() {
        let mut bytes = Request::Ping.encode(1);
        bytes[..4].copy_from_slice(&(BODY_BYTES_MAX as u32 + 1).to_le_bytes());
        let error = Frame::read(&mut &bytes[..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(Frame::read(&mut &[][..]).unwrap().is_none());
    }

    #[test]
    fn errors_keep_their_kind_and_lose_what_a_terminal_would_obey() {
        let kinds = ERROR_KINDS.map(|(_, kind)| kind).into_iter().chain([ErrorKind::Damage]);
        for kind in kinds {
            let error = Error::new(kind, "cannot write \x1b[2Jx\n");
            let answer = Answer::Failed(error).encode(1);
            let frame = Frame::read(&mut &answer[..]).unwrap().unwrap();
            let Ok(Answer::Failed(error)) = Answer::decode(frame.kind, frame.body) else {
                panic!("no error");
            };
            assert_eq!(error.kind(), kind);
            assert_eq!(error.full_text(), "cannot write \\u{1b}[2Jx\\n");
        }
        let cause = io::Error::from(io::ErrorKind::PermissionDenied);
        let refused = Error::io(ErrorKind::Storage, "cannot read x", cause);
        let again = error_of(error_code(&refused), &refused.full_text());
        assert!(crate::storage::is_refused(&again));
        assert_eq!(again.full_text(), "refused by the far end: cannot read x: permission denied");
    }

    #[test]
    fn a_listing_comes_in_pages() {
        let entry = |number: u32| ObjectEntry {
            name: name(&format!("notes/{number:064x}")),
            bytes: u64::from(number),
            stored_unix_ns: number.is_multiple_of(2).then_some(-1),
        };
        let entries: Vec<_> = (0..2000).map(entry).collect();
        let mut found = Vec::new();
        let mut count = 0;
        for page in pages(entries.clone()) {
            let bytes = page.encode(1);
            assert!(bytes.len() < 2 * PAGE_BYTES);
            let frame = Frame::read(&mut &bytes[..]).unwrap().unwrap();
            match Answer::decode(frame.kind, frame.body).unwrap() {
                Answer::Entries(page) => found.extend(page),
                other => panic!("{other:?}"),
            }
            count += 1;
        }
        assert_eq!((found, count), (entries, 3));
        assert_eq!(pages(Vec::new()).count(), 0);
    }
}

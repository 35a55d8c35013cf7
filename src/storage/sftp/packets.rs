//! Packets of SFTP version 3, as OpenSSH speaks it: big-endian, each with its length in front.
//!
//! Invariant: no memory is taken for a length before it was compared with its limit, and what is not
//! well formed is an error.

use std::io::{self, Read};

/// Bytes of a packet; OpenSSH sends no longer ones.
const PACKET_BYTES_MAX: usize = 256 << 10;

pub const INIT: u8 = 1;
pub const VERSION: u8 = 2;
pub const OPEN: u8 = 3;
pub const CLOSE: u8 = 4;
pub const READ: u8 = 5;
pub const WRITE: u8 = 6;
pub const LSTAT: u8 = 7;
pub const OPENDIR: u8 = 11;
pub const READDIR: u8 = 12;
pub const REMOVE: u8 = 13;
pub const MKDIR: u8 = 14;
pub const RENAME: u8 = 18;
pub const EXTENDED: u8 = 200;

const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRIBUTES: u8 = 105;
const EXTENDED_REPLY: u8 = 201;

/// Flags of `OPEN`.
pub const FOR_READING: u32 = 0x01;
pub const FOR_NEW: u32 = 0x02 | 0x08 | 0x20;

/// Codes of a status.
pub const OK: u32 = 0;
pub const END: u32 = 1;
pub const NO_SUCH_FILE: u32 = 2;
pub const PERMISSION_DENIED: u32 = 3;
pub const UNSUPPORTED: u32 = 8;

/// A request in the making.
pub struct Packet(Vec<u8>);

impl Packet {
    /// One of this type; the number of the request comes first in all but `INIT`.
    pub fn new(kind: u8, number: u32) -> Packet {
        let mut bytes = vec![0; 4];
        bytes.push(kind);
        bytes.extend(number.to_be_bytes());
        Packet(bytes)
    }

    /// Adds a number.
    #[must_use]
    pub fn u32(mut self, number: u32) -> Packet {
        self.0.extend(number.to_be_bytes());
        self
    }

    /// Adds a number.
    #[must_use]
    pub fn u64(mut self, number: u64) -> Packet {
        self.0.extend(number.to_be_bytes());
        self
    }

    /// Adds bytes with their length.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Packet {
        // Names, handles, and pieces of objects.
        self.0.extend((bytes.len() as u32).to_be_bytes());
        self.0.extend(bytes);
        self
    }

    /// The whole packet.
    pub fn finish(mut self) -> Vec<u8> {
        let bytes = (self.0.len() - 4) as u32;
        self.0[..4].copy_from_slice(&bytes.to_be_bytes());
        self.0
    }
}

/// What is known of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub bytes: Option<u64>,
    pub mode: Option<u32>,
    /// Seconds since 1970.
    pub modified: Option<u32>,
}

impl Attributes {
    /// True for a plain file.
    pub fn is_file(&self) -> bool {
        self.mode.is_some_and(|mode| mode & 0o170_000 == 0o100_000)
    }

    /// True for a folder.
    pub fn is_folder(&self) -> bool {
        self.mode.is_some_and(|mode| mode & 0o170_000 == 0o040_000)
    }
}

/// What the server says.
#[derive(Debug)]
pub enum Reply {
    Status(u32, String),
    Handle(Vec<u8>),
    Data(Vec<u8>),
    Names(Vec<(Vec<u8>, Attributes)>),
    Attributes(Attributes),
    Extended(Vec<u8>),
}

/// Reads a packet: its type and the rest; `None` if the line was closed between two.
pub fn read_packet(input: &mut dyn Read) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut length = [0; 4];
    let mut filled = 0;
    while filled < length.len() {
        match input.read(&mut length[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
    let bytes = u32::from_be_bytes(length) as usize;
    if !(1..=PACKET_BYTES_MAX + 1024).contains(&bytes) {
        return Err(malformed(&format!("a packet of {bytes} bytes")));
    }
    let mut body = vec![0; bytes];
    input.read_exact(&mut body)?;
    let kind = body.remove(0);
    Ok(Some((kind, body)))
}

/// Takes a reply apart: the number of its request, and what it says.
pub fn parse_reply(kind: u8, body: &[u8]) -> io::Result<(u32, Reply)> {
    let mut fields = Fields(body);
    let number = fields.u32()?;
    let reply = match kind {
        STATUS => {
            let code = fields.u32()?;
            // Some servers leave the text out.
            let text = fields.bytes().unwrap_or_default();
            Reply::Status(code, String::from_utf8_lossy(text).into_owned())
        }
        HANDLE => Reply::Handle(fields.bytes()?.to_vec()),
        DATA => Reply::Data(fields.bytes()?.to_vec()),
        NAME => {
            let count = fields.u32()?;
            let mut names = Vec::new();
            for _ in 0..count {
                let name = fields.bytes()?.to_vec();
                fields.bytes()?;
                names.push((name, fields.attributes()?));
            }
            Reply::Names(names)
        }
        ATTRIBUTES => Reply::Attributes(fields.attributes()?),
        EXTENDED_REPLY => Reply::Extended(fields.0.to_vec()),
        _ => return Err(malformed("a reply of an unknown kind")),
    };
    Ok((number, reply))
}

/// Names of extensions, with what is said of each.
pub type Extensions = Vec<(String, Vec<u8>)>;

/// The version in the rest of a `VERSION`, and the extensions.
pub fn parse_version(body: &[u8]) -> io::Result<(u32, Extensions)> {
    let mut fields = Fields(body);
    let version = fields.u32()?;
    let mut extensions = Vec::new();
    while !fields.0.is_empty() {
        let name = String::from_utf8_lossy(fields.bytes()?).into_owned();
        extensions.push((name, fields.bytes()?.to_vec()));
    }
    Ok((version, extensions))
}

/// Numbers of 64 bits one after the other.
pub fn parse_numbers(body: &[u8]) -> Vec<u64> {
    let mut fields = Fields(body);
    std::iter::from_fn(|| fields.u64().ok()).collect()
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let split = self.0.split_first_chunk::<N>();
        let (array, rest) = split.ok_or_else(|| malformed("a packet that is too short"))?;
        self.0 = rest;
        Ok(*array)
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let bytes = self.u32()? as usize;
        let split = self.0.split_at_checked(bytes);
        let (taken, rest) = split.ok_or_else(|| malformed("a packet that is too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn attributes(&mut self) -> io::Result<Attributes> {
        let flags = self.u32()?;
        let mut attributes = Attributes::default();
        if flags & 0x1 != 0 {
            attributes.bytes = Some(self.u64()?);
        }
        if flags & 0x2 != 0 {
            self.u64()?;
        }
        if flags & 0x4 != 0 {
            attributes.mode = Some(self.u32()?);
        }
        if flags & 0x8 != 0 {
            self.u32()?;
            attributes.modified = Some(self.u32()?);
        }
        if flags & 0x8000_0000 != 0 {
            for _ in 0..self.u32()? {
                self.bytes()?;
                self.bytes()?;
            }
        }
        Ok(attributes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_what_the_standard_says() {
        let packet = Packet::new(OPEN, 7).bytes(b"a").u32(FOR_READING).u32(0).finish();
        assert_eq!(packet, b"\0\0\0\x12\x03\0\0\0\x07\0\0\0\x01a\0\0\0\x01\0\0\0\0");
        let names = b"\0\0\0\x01\0\0\0\x01\0\0\0\x01a\0\0\0\x02-r\0\0\0\x0d\
                      \0\0\0\0\0\0\0\x05\0\0\x81\xa4\0\0\0\x01\0\0\0\x02";
        let Ok((1, Reply::Names(found))) = parse_reply(NAME, names) else { panic!() };
        let attributes = Attributes { bytes: Some(5), mode: Some(0o100_644), modified: Some(2) };
        assert_eq!(found, [(b"a".to_vec(), attributes)]);
        assert!(attributes.is_file() && !attributes.is_folder());
        for cut in 0..names.len() {
            assert!(parse_reply(NAME, &names[..cut]).is_err());
        }
        let status = b"\0\0\0\x01\0\0\0\x02";
        assert!(matches!(parse_reply(STATUS, status), Ok((1, Reply::Status(NO_SUCH_FILE, _)))));
    }

    #[test]
    fn lengths_are_believed_only_up_to_their_limit() {
        for bytes in [&b"\xff\xff\xff\xffx"[..], b"\0\0\0\0", b"\0\0\0\x05x"] {
            assert!(read_packet(&mut &bytes[..]).is_err());
        }
        assert!(read_packet(&mut &b""[..]).unwrap().is_none());
        // A count of names that are not there.
        assert!(parse_reply(NAME, b"\0\0\0\x01\xff\xff\xff\xff").is_err());
    }
}

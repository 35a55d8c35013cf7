//! Numbers of the NBD protocol, as the document of the NBD project names them, and how they are read
//! and put together. The highest byte comes first.

use std::io::{self, Read};

/// What a server says first.
pub(super) const GREETING: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// Newstyle negotiation, and the begin of each option.
pub(super) const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// The begin of each reply to an option.
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// The port that IANA gave to NBD.
pub(super) const PORT: u16 = 10809;

/// Handshake flags of both sides.
pub(super) const FIXED_NEWSTYLE: u16 = 1;
pub(super) const NO_ZEROES: u16 = 2;

/// Options.
pub(super) const EXPORT_NAME: u32 = 1;
pub(super) const ABORT: u32 = 2;
pub(super) const LIST: u32 = 3;
pub(super) const STARTTLS: u32 = 5;
pub(super) const INFO: u32 = 6;
pub(super) const GO: u32 = 7;
pub(super) const STRUCTURED_REPLY: u32 = 8;
pub(super) const LIST_META_CONTEXT: u32 = 9;
pub(super) const SET_META_CONTEXT: u32 = 10;

/// Replies to options.
pub(super) const REPLY_ACK: u32 = 1;
pub(super) const REPLY_SERVER: u32 = 2;
pub(super) const REPLY_INFO: u32 = 3;
pub(super) const REPLY_META_CONTEXT: u32 = 4;
const REPLY_IS_ERROR: u32 = 1 << 31;
pub(super) const ERROR_UNSUPPORTED: u32 = REPLY_IS_ERROR + 1;
pub(super) const ERROR_INVALID: u32 = REPLY_IS_ERROR + 3;
pub(super) const ERROR_TLS_REQUIRED: u32 = REPLY_IS_ERROR + 5;
pub(super) const ERROR_UNKNOWN: u32 = REPLY_IS_ERROR + 6;

/// What is told of an export.
pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_NAME: u16 = 1;
pub(super) const INFO_DESCRIPTION: u16 = 2;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flags.
pub(super) const HAS_FLAGS: u16 = 1;
pub(super) const READ_ONLY: u16 = 1 << 1;
pub(super) const SEND_FLUSH: u16 = 1 << 2;
pub(super) const SEND_FUA: u16 = 1 << 3;
pub(super) const SEND_TRIM: u16 = 1 << 5;
pub(super) const SEND_WRITE_ZEROES: u16 = 1 << 6;
pub(super) const SEND_DF: u16 = 1 << 7;
pub(super) const CAN_MULTI_CONN: u16 = 1 << 8;

/// The begin of requests and replies.
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Commands.
pub(super) const READ: u16 = 0;
pub(super) const WRITE: u16 = 1;
pub(super) const DISCONNECT: u16 = 2;
pub(super) const FLUSH: u16 = 3;
pub(super) const TRIM: u16 = 4;
pub(super) const WRITE_ZEROES: u16 = 6;
pub(super) const BLOCK_STATUS: u16 = 7;

/// Flags of commands.
pub(super) const FUA: u16 = 1;
pub(super) const NO_HOLE: u16 = 1 << 1;
pub(super) const DONT_FRAGMENT: u16 = 1 << 2;
pub(super) const REQUEST_ONE: u16 = 1 << 3;

/// Parts of structured replies.
pub(super) const CHUNK_DONE: u16 = 1;
pub(super) const CHUNK_NONE: u16 = 0;
pub(super) const CHUNK_OFFSET_DATA: u16 = 1;
pub(super) const CHUNK_OFFSET_HOLE: u16 = 2;
pub(super) const CHUNK_BLOCK_STATUS: u16 = 5;
pub(super) const CHUNK_ERROR: u16 = (1 << 15) + 1;

/// Error numbers.
pub(super) const EPERM: u32 = 1;
pub(super) const EIO: u32 = 5;
pub(super) const EINVAL: u32 = 22;
pub(super) const ENOSPC: u32 = 28;

/// The one context of block status that is served.
pub(super) const ALLOCATION: &str = "base:allocation";
/// Its number here.
pub(super) const ALLOCATION_ID: u32 = 1;
/// What it says of a range.
pub(super) const STATE_HOLE: u32 = 1;
pub(super) const STATE_ZERO: u32 = 2;

/// The longest string of the protocol, in bytes.
pub(super) const STRING_BYTES_MAX: u32 = 4096;
/// Data of one option: a few contexts and names.
pub(super) const OPTION_BYTES_MAX: u32 = 64 << 10;
/// Most bytes of one request that has or wants data.
pub(super) const REQUEST_BYTES_MAX: u32 = 32 << 20;

/// An array read from a stream.
pub(super) fn read_array<const N: usize>(stream: &mut dyn Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Takes numbers and strings off the front of an option's data; `None` where it is too short.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_be_bytes)
    }

    /// A string behind its length.
    pub fn string(&mut self) -> Option<&'a str> {
        let bytes = self.u32().filter(|bytes| *bytes <= STRING_BYTES_MAX)?;
        std::str::from_utf8(self.take(bytes as usize)?).ok()
    }
}

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub bytes: u32,
}

impl Request {
    /// Bytes of a request without its payload.
    pub const BYTES: usize = 28;

    /// Reads one; `None` for other bytes.
    pub fn decode(bytes: &[u8; Request::BYTES]) -> Option<Request> {
        let mut fields = Fields(bytes);
        let magic = fields.u32()?;
        let (flags, command, cookie) = (fields.u16()?, fields.u16()?, fields.u64()?);
        let (offset, bytes) = (fields.u64()?, fields.u32()?);
        (magic == REQUEST_MAGIC).then_some(Request { flags, command, cookie, offset, bytes })
    }
}

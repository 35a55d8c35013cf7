//! Replies to requests, simple and structured.
//!
//! Invariant: a reply is written as a whole, by one thread at a time.

use super::protocol::*;
use crate::chunking::nonzero_runs;
use std::io::{self, Write};

/// Zeros of at least so many bytes are told and not sent.
const HOLE_BYTES_MIN: usize = 4096;
/// Bytes of a text that explains an error.
const TEXT_BYTES_MAX: usize = 1024;

/// Writes replies to one client.
pub(super) struct Replies<W> {
    pub output: W,
    pub is_structured: bool,
}

impl<W: Write> Replies<W> {
    fn simple(&mut self, cookie: u64, error: u32, data: &[u8]) -> io::Result<()> {
        let mut head = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
        head.extend_from_slice(&error.to_be_bytes());
        head.extend_from_slice(&cookie.to_be_bytes());
        self.output.write_all(&head)?;
        self.output.write_all(data)?;
        self.output.flush()
    }

    /// One part of a structured reply: `head` are the first bytes of its payload.
    fn chunk(
        &mut self,
        (flags, kind): (u16, u16),
        cookie: u64,
        head: &[u8],
        data: &[u8],
    ) -> io::Result<()> {
        let mut bytes = STRUCTURED_REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&((head.len() + data.len()) as u32).to_be_bytes());
        bytes.extend_from_slice(head);
        self.output.write_all(&bytes)?;
        self.output.write_all(data)
    }

    /// It was done.
    pub fn done(&mut self, cookie: u64) -> io::Result<()> {
        if !self.is_structured {
            return self.simple(cookie, 0, &[]);
        }
        self.chunk((CHUNK_DONE, CHUNK_NONE), cookie, &[], &[])?;
        self.output.flush()
    }

    /// It failed.
    pub fn failed(&mut self, cookie: u64, error: u32, text: &str) -> io::Result<()> {
        if !self.is_structured {
            return self.simple(cookie, error, &[]);
        }
        let most = text.len().min(TEXT_BYTES_MAX);
        let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        let text = &text.as_bytes()[..end];
        let mut head = error.to_be_bytes().to_vec();
        head.extend_from_slice(&(text.len() as u16).to_be_bytes());
        self.chunk((CHUNK_DONE, CHUNK_ERROR), cookie, &head, text)?;
        self.output.flush()
    }

    /// What was read from `offset` on; zeros are told and not sent, unless it has to be one piece.
    pub fn data(
        &mut self,
        cookie: u64,
        offset: u64,
        data: &[u8],
        is_whole: bool,
    ) -> io::Result<()> {
        if !self.is_structured {
            return self.simple(cookie, 0, data);
        }
        let hole_bytes = if is_whole { data.len() } else { HOLE_BYTES_MIN };
        let mut at = 0;
        let mut result = Ok(());
        nonzero_runs(data, hole_bytes, &mut |start, bytes| {
            if result.is_ok() {
                result = self.hole(cookie, offset, at..start, false).and_then(|()| {
                    let end = start + bytes;
                    let flags = if end == data.len() { CHUNK_DONE } else { 0 };
                    let head = (offset + start as u64).to_be_bytes();
                    self.chunk((flags, CHUNK_OFFSET_DATA), cookie, &head, &data[start..end])
                });
                at = start + bytes;
            }
        });
        result?;
        self.hole(cookie, offset, at..data.len(), true)?;
        self.output.flush()
    }

    fn hole(
        &mut self,
        cookie: u64,
        offset: u64,
        range: std::ops::Range<usize>,
        is_last: bool,
    ) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mut head = (offset + range.start as u64).to_be_bytes().to_vec();
        head.extend_from_slice(&(range.len() as u32).to_be_bytes());
        let flags = if is_last { CHUNK_DONE } else { 0 };
        self.chunk((flags, CHUNK_OFFSET_HOLE), cookie, &head, &[])
    }

    /// Lengths and states of what is allocated.
    pub fn status(&mut self, cookie: u64, extents: &[(u32, u32)]) -> io::Result<()> {
        let numbers = extents.iter().flat_map(|(bytes, state)| [*bytes, *state]);
        let list: Vec<u8> = numbers.flat_map(u32::to_be_bytes).collect();
        let head = ALLOCATION_ID.to_be_bytes();
        self.chunk((CHUNK_DONE, CHUNK_BLOCK_STATUS), cookie, &head, &list)?;
        self.output.flush()
    }
}

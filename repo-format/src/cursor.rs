//! Bounds-checked reading of fixed little-endian layouts (spec/00-conventions.md).
//!
//! Invariant: a read past the end is an error with the rule of the layout, never a panic.

use crate::error::{Result, malformed};

/// Reads a byte string front to back.
pub struct Cursor<'a> {
    rest: &'a [u8],
    rule: &'static str,
}

impl<'a> Cursor<'a> {
    /// Starts at the front of `bytes`; `rule` is named when they are too short.
    pub fn new(bytes: &'a [u8], rule: &'static str) -> Self {
        Cursor { rest: bytes, rule }
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        match self.rest.split_at_checked(count) {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(head)
            }
            None => Err(malformed(
                self.rule,
                format!("is too short: expected {count} more bytes, found {}", self.rest.len()),
            )),
        }
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0_u8; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// The next 16-bit number.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// The next 32-bit number.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// The next 64-bit number.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Reserved bytes, which must be zero.
    pub fn zeros(&mut self, count: usize, rule: &'static str) -> Result<()> {
        if self.bytes(count)?.iter().any(|byte| *byte != 0) {
            return Err(malformed(rule, "reserved bytes are not zero"));
        }
        Ok(())
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Refuses trailing bytes.
    pub fn finish(&self) -> Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(malformed(self.rule, format!("has {} trailing bytes", self.rest.len())))
    }
}

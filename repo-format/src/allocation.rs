//! Allocation lists (spec/35-allocation.md): which parts of a disk were allocated at its source.
//!
//! The map knows zeros from data; this list knows holes from written zeros, exact to 512 bytes.
//! It is a byte string stored like a stream: run lengths in units of 512 bytes, as LEB128
//! numbers, holes and allocated runs in turn, a hole first (possibly of length 0). The last unit
//! may be shorter than 512 bytes. Equal lists have equal bytes.

use crate::error::{Result, malformed};

/// Bytes of one unit.
pub const UNIT_BYTES: u64 = 512;

/// A run of the disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub start: u64,
    /// Length in bytes, not zero.
    pub bytes: u64,
    /// True if the source had storage there.
    pub is_allocated: bool,
}

/// Writes an allocation list from runs in order.
#[derive(Default)]
pub struct AllocationWriter {
    bytes: Vec<u8>,
    open_units: u64,
    open_is_allocated: bool,
    end: u64,
}

impl AllocationWriter {
    /// Starts a list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next `bytes` of the disk, a multiple of 512 except for the last.
    pub fn push(&mut self, bytes: u64, is_allocated: bool) {
        let units = (self.end + bytes).div_ceil(UNIT_BYTES) - self.end.div_ceil(UNIT_BYTES);
        self.end += bytes;
        if units == 0 {
            return;
        }
        if is_allocated != self.open_is_allocated {
            write_number(self.open_units, &mut self.bytes);
            self.open_units = 0;
            self.open_is_allocated = is_allocated;
        }
        self.open_units += units;
    }

    /// The list; empty for a disk of no bytes.
    pub fn finish(mut self) -> Vec<u8> {
        if self.end > 0 {
            write_number(self.open_units, &mut self.bytes);
        }
        self.bytes
    }
}

fn write_number(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Reads the runs of a list for a disk of `size` bytes.
pub struct AllocationReader<'a> {
    rest: &'a [u8],
    size: u64,
    start: u64,
    is_allocated: bool,
    is_first: bool,
}

impl<'a> AllocationReader<'a> {
    /// Starts at the front.
    pub fn new(list: &'a [u8], size: u64) -> Self {
        AllocationReader { rest: list, size, start: 0, is_allocated: false, is_first: true }
    }

    /// The next run; `None` at the end.
    ///
    /// # Errors
    /// A-1 a number that is cut off, too long or zero (except the first), A-2 runs that do not
    /// end with the disk.
    pub fn next_run(&mut self) -> Result<Option<Run>> {
        loop {
            if self.start == self.size {
                if !self.rest.is_empty() {
                    return Err(malformed("A-2", "the runs go on behind the end of the disk"));
                }
                return Ok(None);
            }
            let units = self.number()?;
            if units == 0 && !self.is_first {
                return Err(malformed("A-1", "has a run of no length"));
            }
            let start = self.start;
            let left = self.size - start;
            if units > left.div_ceil(UNIT_BYTES) {
                return Err(malformed("A-2", "a run ends behind the end of the disk"));
            }
            let bytes = (units * UNIT_BYTES).min(left);
            let run = Run { start, bytes, is_allocated: self.is_allocated };
            self.start += bytes;
            self.is_allocated = !self.is_allocated;
            self.is_first = false;
            if bytes > 0 {
                return Ok(Some(run));
            }
        }
    }

    fn number(&mut self) -> Result<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let Some((byte, rest)) = self.rest.split_first() else {
                return Err(malformed("A-1", "the list is cut off"));
            };
            self.rest = rest;
            let bits = u64::from(byte & 0x7f);
            if (shift == 63 && bits > 1) || (shift > 0 && *byte == 0) {
                return Err(malformed("A-1", "has a number that is too long"));
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(malformed("A-1", "has a number that is too long"))
    }
}

/// All runs of a list, in order.
///
/// # Errors
/// as [`AllocationReader::next_run`].
pub fn decode(list: &[u8], size: u64) -> Result<Vec<Run>> {
    let mut reader = AllocationReader::new(list, size);
    let mut runs = Vec::new();
    while let Some(run) = reader.next_run()? {
        runs.push(run);
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_come_back_merged() {
        let mut writer = AllocationWriter::new();
        for (bytes, is_allocated) in
            [(1024, true), (512, true), (1 << 30, false), (4096, true), (100, true)]
        {
            writer.push(bytes, is_allocated);
        }
        let list = writer.finish();
        let size = 1536 + (1 << 30) + 4196;
        let runs = decode(&list, size).unwrap();
        let short: Vec<(u64, bool)> =
            runs.iter().map(|run| (run.bytes, run.is_allocated)).collect();
        assert_eq!(short, [(1536, true), (1 << 30, false), (4196, true)]);
        assert_eq!(decode(&list, size + 512).unwrap_err().rule, "A-1");
        assert_eq!(decode(&list, size - 512).unwrap_err().rule, "A-2");
        assert_eq!(AllocationWriter::new().finish(), b"");
        assert_eq!(decode(b"", 0).unwrap(), []);
    }

    #[test]
    fn other_encodings_are_refused() {
        assert_eq!(decode(&[0x82, 0x00], 1024).unwrap_err().rule, "A-1");
        assert_eq!(decode(&[1, 0, 1], 1024).unwrap_err().rule, "A-1");
        assert_eq!(decode(&[0xff; 11], 1024).unwrap_err().rule, "A-1");
        assert_eq!(decode(&[2, 0], 1024).unwrap_err().rule, "A-2");
    }
}

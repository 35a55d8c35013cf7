//! Numbers of the protocol, which have their highest byte first.

use std::io::{self, Read};

/// Reads numbers.
pub(super) trait Numbers: Read {
    /// Two bytes.
    fn u16(&mut self) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.read_exact(&mut bytes)?;
        Ok(u16::from_be_bytes(bytes))
    }

    /// Four bytes.
    fn u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    /// Eight bytes.
    fn u64(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read_exact(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
}

impl<R: Read + ?Sized> Numbers for R {}

//! A part of a disk as the crates for file systems read it: blocks that are kept, and a limit to
//! what one of their operations may read.
//!
//! Invariants: nothing is written, whoever asks; memory is the kept blocks; an operation that
//! reads without end, as a chain of clusters that bites its tail makes it, is stopped; why the
//! disk could not be read is kept for the message.

use crate::error::Error;
use crate::source::RandomAccess;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::rc::Rc;
use std::sync::Arc;

/// What is read at once and kept.
const BLOCK_BYTES: u64 = 128 << 10;
/// Blocks that are kept: 16 MiB.
const BLOCKS_KEPT: usize = 128;
/// What a small read costs of an operation's limit, however small it is.
const READ_COST_BYTES: u64 = 64;

/// A part of a disk; clones share the kept blocks and the limit, each has its own position.
#[derive(Clone)]
pub struct Window {
    shared: Rc<Shared>,
    position: u64,
}

struct Shared {
    disk: Arc<dyn RandomAccess + Send + Sync>,
    start: u64,
    bytes: u64,
    blocks: RefCell<HashMap<u64, Block>>,
    clock: Cell<u64>,
    /// What the operation that runs may still read.
    left: Cell<u64>,
    /// Where it read first.
    first: Cell<Option<u64>>,
    failure: RefCell<Option<Error>>,
}

struct Block {
    bytes: Rc<Vec<u8>>,
    used: u64,
}

impl Window {
    /// The `bytes` from `start` on, as far as they lie on the disk.
    pub fn new(disk: Arc<dyn RandomAccess + Send + Sync>, start: u64, bytes: u64) -> Window {
        let bytes = bytes.min(disk.size().saturating_sub(start));
        let shared = Shared {
            disk,
            start,
            bytes,
            blocks: RefCell::default(),
            clock: Cell::new(0),
            left: Cell::new(0),
            first: Cell::new(None),
            failure: RefCell::new(None),
        };
        Window { shared: Rc::new(shared), position: 0 }
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.shared.bytes
    }

    /// An operation begins, which may read so much.
    pub fn begin(&self, limit: u64) {
        self.shared.left.set(limit);
        self.shared.first.set(None);
        self.shared.failure.take();
    }

    /// Where the operation read first.
    pub fn first_read(&self) -> Option<u64> {
        self.shared.first.get()
    }

    /// Why the last operation could not read the disk, if that is what went wrong.
    pub fn take_failure(&self) -> Option<Error> {
        self.shared.failure.take()
    }

    /// Fills all of `buffer`.
    ///
    /// # Errors
    /// If it does not lie in the window, the limit is reached, or the disk cannot be read.
    pub fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let shared = &self.shared;
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= shared.bytes);
        if end.is_none() {
            let text = format!("it goes on behind its end, at {offset}");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        let cost = READ_COST_BYTES.max(buffer.len() as u64);
        let Some(left) = shared.left.get().checked_sub(cost) else {
            return Err(io::Error::other("it has no end: a loop"));
        };
        shared.left.set(left);
        if shared.first.get().is_none() {
            shared.first.set(Some(offset));
        }
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let block = self.block(at / BLOCK_BYTES)?;
            let within = (at % BLOCK_BYTES) as usize;
            let piece = block.get(within..).unwrap_or_default();
            let count = piece.len().min(buffer.len() - done);
            buffer[done..done + count].copy_from_slice(&piece[..count]);
            done += count;
        }
        Ok(())
    }

    fn block(&self, number: u64) -> io::Result<Rc<Vec<u8>>> {
        let shared = &self.shared;
        let now = shared.clock.get() + 1;
        shared.clock.set(now);
        let mut blocks = shared.blocks.borrow_mut();
        if let Some(block) = blocks.get_mut(&number) {
            block.used = now;
            return Ok(block.bytes.clone());
        }
        let start = number * BLOCK_BYTES;
        let mut bytes = vec![0; BLOCK_BYTES.min(shared.bytes - start) as usize];
        if let Err(error) = shared.disk.read_at(shared.start + start, &mut bytes) {
            let text = error.full_text();
            shared.failure.replace(Some(error));
            return Err(io::Error::other(text));
        }
        if blocks.len() >= BLOCKS_KEPT {
            let oldest = blocks.iter().min_by_key(|(_, block)| block.used);
            if let Some(oldest) = oldest.map(|(number, _)| *number) {
                blocks.remove(&oldest);
            }
        }
        let bytes = Rc::new(bytes);
        blocks.insert(number, Block { bytes: bytes.clone(), used: now });
        Ok(bytes)
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.size().saturating_sub(self.position);
        let count = left.min(buffer.len() as u64) as usize;
        if count > 0 {
            self.read_exact_at(self.position, &mut buffer[..count])?;
            self.position += count as u64;
        }
        Ok(count)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.size().checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, "a place that cannot be");
        self.position = position.ok_or_else(outside)?;
        Ok(self.position)
    }
}

/// The crate for FAT wants a disk that it could write to.
impl Write for Window {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "a point is not written to"))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ext4_view::Ext4Read for Window {
    fn read(
        &mut self,
        start: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.read_exact_at(start, buffer)?)
    }
}

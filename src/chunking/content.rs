//! Content-defined chunking: FastCDC under a gear table that only the repository's key gives,
//! so that chunk sizes do not tell what is stored.
//!
//! Invariant, the cutting rule; it depends on nothing but the bytes and the key:
//! 1. The stream is seen in blocks of 64 KiB, counted from its start; the last may be shorter.
//!    A maximal run of blocks that are all zero is a zero piece. It ends the piece in front of
//!    it, and FastCDC (v2020, normalization level 1) starts anew behind it.
//! 2. A FastCDC piece that is all zero is a zero piece too.
//! 3. Adjacent zero pieces are one.
//!
//! The first rule is why holes need not be read: they are whole blocks, whoever skips them.

use super::zero::is_zero;
use crate::error::{Error, ErrorKind, Result};
use fastcdc::v2020::{
    AVERAGE_MAX, AVERAGE_MIN, MAXIMUM_MAX, MAXIMUM_MIN, MINIMUM_MAX, MINIMUM_MIN, Normalization,
    cut_gear, select_masks,
};
use std::io::{ErrorKind as IoErrorKind, Read};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The unit of zero runs in a stream, in bytes. Part of the cutting rule.
pub const ZERO_BLOCK_BYTES: usize = 64 << 10;

/// Room for input beside what a cut waits for, in bytes. What waits is moved to the front once
/// per refill: with 2 MiB of room and chunks of up to 256 KiB that adds an eighth of a copy.
const ROOM_BYTES: usize = 2 << 20;

/// The sizes that FastCDC aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentParameters {
    /// No chunk is smaller, except the last one in front of zeros or the end; 64 bytes to
    /// 1 MiB, even.
    pub bytes_min: u32,
    /// The target; a power of two from 256 bytes to 4 MiB. The real average is about a third
    /// higher.
    pub bytes_average: u32,
    /// No chunk is larger; 1 KiB to 16 MiB, even.
    pub bytes_max: u32,
}

impl Default for ContentParameters {
    /// 16, 64 and 256 KiB: the grid of disks, and a factor of four to either side.
    fn default() -> Self {
        ContentParameters { bytes_min: 16 << 10, bytes_average: 64 << 10, bytes_max: 256 << 10 }
    }
}

impl ContentParameters {
    /// Checks the limits of the fastcdc crate, which itself checks them only in debug builds:
    /// an odd size would silently move cuts in release builds.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`], naming the number that is out of range.
    pub fn validate(&self) -> Result<()> {
        let (min, average, max) = self.sizes();
        check_size("minimum", min, MINIMUM_MIN, MINIMUM_MAX)?;
        check_size("average", average, AVERAGE_MIN, AVERAGE_MAX)?;
        check_size("maximum", max, MAXIMUM_MIN, MAXIMUM_MAX)?;
        if !average.is_power_of_two() {
            let message =
                format!("cannot cut with an average of {average} bytes: it is no power of two");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        if min > average || average > max {
            let message = format!(
                "cannot cut with sizes {min}, {average} and {max}: minimum, average and maximum \
                 do not ascend"
            );
            return Err(Error::new(ErrorKind::Usage, message));
        }
        Ok(())
    }

    /// Minimum, average and maximum.
    fn sizes(&self) -> (usize, usize, usize) {
        (self.bytes_min as usize, self.bytes_average as usize, self.bytes_max as usize)
    }
}

fn check_size(name: &str, value: usize, low: usize, high: usize) -> Result<()> {
    if value.is_multiple_of(2) && (low..=high).contains(&value) {
        return Ok(());
    }
    let message = format!(
        "cannot cut with a {name} of {value} bytes: it is an even number from {low} to {high}"
    );
    Err(Error::new(ErrorKind::Usage, message))
}

/// The table that FastCDC rolls over the bytes, made from a key. It is as secret as the key:
/// who has it can tell a known file by its chunk sizes.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Gear {
    table: [u64; 256],
    /// Every entry times two, for the two bytes a step of v2020.
    table_shifted: [u64; 256],
}

impl Gear {
    /// Entry `i` is the little-endian number in bytes `8 i..8 i + 8` of the extended output of
    /// BLAKE3's keyed hash of nothing.
    pub fn from_key(key: &[u8; 32]) -> Gear {
        let mut output = blake3::Hasher::new_keyed(key).finalize_xof();
        let mut gear = Gear { table: [0; 256], table_shifted: [0; 256] };
        let mut bytes = [0_u8; 8];
        for (entry, shifted) in gear.table.iter_mut().zip(&mut gear.table_shifted) {
            output.fill(&mut bytes);
            *entry = u64::from_le_bytes(bytes);
            *shifted = *entry << 1;
        }
        gear
    }

    /// What is added for each value of a byte.
    pub(super) fn table(&self) -> &[u64; 256] {
        &self.table
    }
}

/// What the cutter yields, in stream order. The lengths add up to the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The bytes of a chunk, not all zero; valid during the call.
    Chunk(&'a [u8]),
    /// So many zero bytes, at least 1; the next piece is no zeros.
    Zeros(u64),
}

/// Receives the pieces of one stream.
pub type EachPiece<'a> = dyn FnMut(Piece<'_>) -> Result<()> + 'a;

/// Cuts one stream into pieces. How the bytes arrive (in which portions, zeros as bytes or as
/// [`ContentCutter::push_zeros`]) has no influence on the pieces.
///
/// It runs at the speed of FastCDC itself, 1.8 GB/s a core where that was measured. Memory is
/// 2 MiB and twice the largest chunk. After an error the cutter is of no more use.
pub struct ContentCutter {
    parameters: ContentParameters,
    gear: Gear,
    /// Masks for the part of a chunk below the average size and above it.
    mask_small: u64,
    mask_large: u64,
    /// The bytes that are not cut yet are `start..end`. Up to `tested` they are blocks known
    /// not to be zero; from there on follows less than one block. `tested` always stands at a
    /// multiple of the block size in the stream.
    buffer: Vec<u8>,
    start: usize,
    tested: usize,
    end: usize,
    /// Zeros that may still grow.
    zeros: u64,
    /// Bytes taken so far.
    offset: u64,
}

impl ContentCutter {
    /// Makes a cutter at the start of a stream.
    ///
    /// # Errors
    /// As [`ContentParameters::validate`].
    pub fn new(parameters: ContentParameters, gear: Gear) -> Result<ContentCutter> {
        parameters.validate()?;
        let (_, average, max) = parameters.sizes();
        let (mask_small, mask_large) = select_masks(average, Normalization::Level1);
        Ok(ContentCutter {
            parameters,
            gear,
            mask_small,
            mask_large,
            buffer: vec![0; ROOM_BYTES + 2 * max],
            start: 0,
            tested: 0,
            end: 0,
            zeros: 0,
            offset: 0,
        })
    }

    /// Takes the next bytes of the stream; they are copied once.
    ///
    /// # Errors
    /// What `each` returns.
    pub fn push(&mut self, mut data: &[u8], each: &mut EachPiece<'_>) -> Result<()> {
        while !data.is_empty() {
            let room = self.room();
            let count = room.len().min(data.len());
            let (now, later) = data.split_at(count);
            room[..count].copy_from_slice(now);
            data = later;
            self.advance(count, each)?;
        }
        Ok(())
    }

    /// Takes `bytes` zeros, as [`ContentCutter::push`] would take them. Whole blocks at the
    /// block's alignment, which holes usually are, cost nothing, however many they are.
    ///
    /// # Errors
    /// What `each` returns.
    pub fn push_zeros(&mut self, bytes: u64, each: &mut EachPiece<'_>) -> Result<()> {
        const BLOCK: u64 = ZERO_BLOCK_BYTES as u64;
        static ZEROS: [u8; ZERO_BLOCK_BYTES] = [0; ZERO_BLOCK_BYTES];
        let partial = self.end - self.tested;
        let to_block = if partial == 0 { 0 } else { BLOCK - partial as u64 };
        let head = bytes.min(to_block);
        self.push(&ZEROS[..head as usize], each)?;
        let tail = (bytes - head) % BLOCK;
        let blocks = bytes - head - tail;
        if blocks > 0 {
            self.end_run(each)?;
            self.zeros = self.zeros.saturating_add(blocks);
            self.offset = self.offset.saturating_add(blocks);
        }
        self.push(&ZEROS[..tail as usize], each)
    }

    /// Reads once from `reader`, without a copy, and returns how many bytes came; 0 is the end
    /// of the stream, and [`ContentCutter::finish`] is due.
    ///
    /// # Errors
    /// [`ErrorKind::Source`] if the reader fails; and what `each` returns.
    pub fn fill_from(&mut self, reader: &mut dyn Read, each: &mut EachPiece<'_>) -> Result<usize> {
        let offset = self.offset;
        let room = self.room();
        let count = loop {
            match reader.read(room) {
                // A reader that claims more than its buffer holds is a broken one.
                Ok(count) => break count.min(room.len()),
                Err(cause) if cause.kind() == IoErrorKind::Interrupted => {}
                // The reader's own words are better: they name the input.
                Err(cause) if cause.get_ref().is_some() => {
                    return Err(Error::new(ErrorKind::Source, cause.to_string()));
                }
                Err(cause) => {
                    let message = format!("cannot read stream at offset {offset}");
                    return Err(Error::io(ErrorKind::Source, message, cause));
                }
            }
        };
        self.advance(count, each)?;
        Ok(count)
    }

    /// Bytes taken so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Ends the stream: yields what is left.
    ///
    /// # Errors
    /// What `each` returns.
    pub fn finish(mut self, each: &mut EachPiece<'_>) -> Result<()> {
        let rest = self.end - self.tested;
        if is_zero(&self.buffer[self.tested..self.end]) {
            self.end_run(each)?;
            self.zeros = self.zeros.saturating_add(rest as u64);
        } else {
            self.tested = self.end;
            self.end_run(each)?;
        }
        self.flush_zeros(each)
    }

    /// Free space behind `end`, at least one block. What waits is less than the largest chunk
    /// and a block, so there is room whenever it has been moved to the front.
    fn room(&mut self) -> &mut [u8] {
        if self.buffer.len() - self.end < ZERO_BLOCK_BYTES {
            self.buffer.copy_within(self.start..self.end, 0);
            self.tested -= self.start;
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// Takes `count` bytes that now stand behind `end`, and cuts what can be cut.
    fn advance(&mut self, count: usize, each: &mut EachPiece<'_>) -> Result<()> {
        self.end += count;
        self.offset = self.offset.saturating_add(count as u64);
        while self.end - self.tested >= ZERO_BLOCK_BYTES {
            let block_end = self.tested + ZERO_BLOCK_BYTES;
            if is_zero(&self.buffer[self.tested..block_end]) {
                self.end_run(each)?;
                self.zeros = self.zeros.saturating_add(ZERO_BLOCK_BYTES as u64);
                self.start = block_end;
                self.tested = block_end;
            } else {
                self.tested = block_end;
                self.cut_while(self.parameters.bytes_max as usize, each)?;
            }
        }
        if self.start == self.end {
            (self.start, self.tested, self.end) = (0, 0, 0);
        }
        Ok(())
    }

    /// Cuts all tested bytes, because zeros or the end of the stream follow.
    fn end_run(&mut self, each: &mut EachPiece<'_>) -> Result<()> {
        self.cut_while(1, each)
    }

    /// Cuts as long as at least `bytes` tested bytes wait. With as many as the largest chunk
    /// has, no byte behind them can change the cut.
    fn cut_while(&mut self, bytes: usize, each: &mut EachPiece<'_>) -> Result<()> {
        let (min, average, max) = self.parameters.sizes();
        while self.tested - self.start >= bytes {
            let window = &self.buffer[self.start..self.tested];
            let (_, count) = cut_gear(
                window,
                min,
                average,
                max,
                self.mask_small,
                self.mask_large,
                self.mask_small << 1,
                self.mask_large << 1,
                &self.gear.table,
                &self.gear.table_shifted,
            );
            // Always within 1..=window; a cut of 0 would not end.
            let count = count.clamp(1, window.len());
            let piece_end = self.start + count;
            if is_zero(&window[..count]) {
                self.zeros = self.zeros.saturating_add(count as u64);
            } else {
                self.flush_zeros(each)?;
                each(Piece::Chunk(&self.buffer[self.start..piece_end]))?;
            }
            self.start = piece_end;
        }
        Ok(())
    }

    fn flush_zeros(&mut self, each: &mut EachPiece<'_>) -> Result<()> {
        match std::mem::take(&mut self.zeros) {
            0 => Ok(()),
            zeros => each(Piece::Zeros(zeros)),
        }
    }
}

#[cfg(test)]
mod tests;

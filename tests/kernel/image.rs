//! Disk images that change, and the numbers by which they do: the same for the same seed.

use std::ops::Range;

/// Numbers that look random, from a seed.
#[derive(Clone)]
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in the range, which is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }
}

/// A disk that nothing compresses. Some of each change was there before, elsewhere.
pub struct Image {
    pub bytes: Vec<u8>,
    numbers: Numbers,
}

impl Image {
    pub fn new(seed: u64, bytes: usize) -> Image {
        let mut image = Image { bytes: vec![0; bytes], numbers: Numbers::new(seed) };
        image.fill(0..bytes);
        image
    }

    fn fill(&mut self, range: Range<usize>) {
        let seed = self.numbers.next().to_le_bytes();
        let mut noise = blake3::Hasher::new();
        noise.update(&seed).finalize_xof().fill(&mut self.bytes[range]);
    }

    /// Writes about one part in `one_in` anew, in runs: mostly noise, some zeros, some moved.
    pub fn change(&mut self, one_in: u64) {
        let all = self.bytes.len() as u64;
        let mut left = (all / one_in).max(1);
        while left > 0 {
            let length = self.numbers.within(1..(256 << 10)).min(left).min(all / 2);
            let start = self.numbers.within(0..all - length);
            let range = start as usize..(start + length) as usize;
            match self.numbers.within(0..8) {
                0 => self.bytes[range].fill(0),
                1 => {
                    // Whole 4 KiB further on, so that the grid may meet it again.
                    let from = self.numbers.within(0..(all - length) / 4096 + 1) * 4096;
                    let from = (from as usize).min((all - length) as usize);
                    self.bytes.copy_within(from..from + length as usize, range.start);
                }
                _ => self.fill(range),
            }
            left -= length;
        }
    }
}

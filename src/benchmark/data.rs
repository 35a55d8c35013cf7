//! Test data, the same bytes on every machine: a mix of text, records and noise, as a disk
//! of programs, logs and photographs has it.
//!
//! Invariant: every piece of 1 MiB has the same mixture, so that a rate or a ratio measured
//! over any number of pieces means the same, and no two chunks of the default size are equal.

/// What the data is, for reports.
pub const DESCRIPTION: &str = "1/2 text, 1/4 records, 1/4 noise";

/// Bytes of a piece.
pub const PIECE_BYTES: usize = 1 << 20;

/// Bytes of a run of one kind of data.
const RUN_BYTES: usize = 64 << 10;

/// The kinds of the 16 runs of a piece, side by side as files have them: zstd finds less behind
/// noise.
const MIXTURE: &[u8; PIECE_BYTES / RUN_BYTES] = b"ttttttttrrrrnnnn";

const SYLLABLES: [&str; 32] = [
    "al", "an", "ar", "co", "de", "en", "er", "es", "fo", "ga", "he", "in", "is", "ke", "la", "le",
    "ma", "me", "ne", "on", "or", "pa", "pe", "ra", "re", "se", "st", "ta", "te", "ti", "un", "ve",
];

/// Marsaglia's xorshift: fast, and good enough to choose words.
struct Choices(u64);

impl Choices {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Piece number `number` of the endless stream of test data.
pub fn piece(number: u64) -> Vec<u8> {
    let mut piece = Vec::with_capacity(PIECE_BYTES + 64);
    for (chunk, kind) in MIXTURE.iter().enumerate() {
        let seed = number * MIXTURE.len() as u64 + chunk as u64 + 1;
        let mut choices = Choices(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let end = (chunk + 1) * RUN_BYTES;
        match kind {
            b't' => text(&mut piece, end, &mut choices),
            b'r' => records(&mut piece, end, &mut choices),
            _ => {
                piece.resize(end, 0);
                noise(&mut piece[chunk * RUN_BYTES..], seed);
            }
        }
        piece.truncate(end);
    }
    piece
}

/// Fills `buffer` with bytes that do not compress, others for each seed.
pub fn noise(buffer: &mut [u8], seed: u64) {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(buffer);
}

/// Lines of words, the short ones frequent, with a number now and then as logs have them, and
/// with repetitions from far before.
fn text(output: &mut Vec<u8>, end: usize, choices: &mut Choices) {
    while output.len() < end {
        let choice = choices.next();
        if repeat(output, choice, 1, 16 + (choice >> 40) as usize % 80) {
            continue;
        }
        if choice.is_multiple_of(11) {
            output.extend_from_slice(format!("{:06}", choice >> 40 & 0xf_ffff).as_bytes());
        }
        // The product of two numbers is mostly small: few words are most of the text.
        let word = ((choice & 63) * (choice >> 6 & 63)) >> 1;
        for part in 0..1 + word.checked_ilog2().unwrap_or(0) / 4 {
            let syllable = (word >> (5 * part)) as usize % SYLLABLES.len();
            output.extend_from_slice(SYLLABLES[syllable].as_bytes());
        }
        output.push(if choice >> 12 & 15 == 0 { b'\n' } else { b' ' });
    }
}

/// Records of 24 bytes as programs and databases have them: a growing number, a pointer, two
/// small fields, and noise; some are repeated.
fn records(output: &mut Vec<u8>, end: usize, choices: &mut Choices) {
    const BYTES: usize = 24;
    let mut key = choices.next() as u32;
    while output.len() < end {
        let choice = choices.next();
        if repeat(output, choice, BYTES, BYTES * (1 + (choice >> 40) as usize % 4)) {
            continue;
        }
        key = key.wrapping_add(1 + (choice & 3) as u32);
        output.extend_from_slice(&key.to_le_bytes());
        output.extend_from_slice(&(0x7f3a_1000_0000 | (choice >> 8 & 0xf_fff0)).to_le_bytes());
        output.extend_from_slice(&((choice >> 32 & 31) as u32).to_le_bytes());
        output.extend_from_slice(&((choice >> 40 & 7) as u32 * 4096).to_le_bytes());
        output.extend_from_slice(&(choice >> 44 & 0xffff).to_le_bytes()[..4]);
    }
}

/// One time in eight, appends so many bytes from up to 256 KiB before; true if it did.
fn repeat(output: &mut Vec<u8>, choice: u64, unit: usize, bytes: usize) -> bool {
    const BACK_MAX: usize = 256 << 10;
    if !choice.is_multiple_of(8) || output.len() < 2 * bytes.max(4096) {
        return false;
    }
    let units = output.len().min(BACK_MAX) / unit;
    let back = (1 + (choice >> 8) as usize % units) * unit;
    let start = output.len() - back;
    output.extend_from_within(start..start + bytes.min(back));
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use diskvault_format::limits::CHUNK_BYTES_DEFAULT;
    use std::collections::HashSet;

    #[test]
    fn pieces_are_alike_and_have_no_equal_chunks() {
        let mut chunks = HashSet::new();
        let mut sizes = Vec::new();
        for number in 0..4 {
            let piece = piece(number);
            assert_eq!(piece.len(), PIECE_BYTES);
            let each = piece.chunks(CHUNK_BYTES_DEFAULT as usize);
            chunks.extend(each.map(|chunk| *blake3::hash(chunk).as_bytes()));
            sizes.push(zstd::bulk::compress(&piece, 3).unwrap().len());
        }
        assert_eq!(chunks.len(), 4 * PIECE_BYTES / CHUNK_BYTES_DEFAULT as usize);
        let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        assert!(most - least < PIECE_BYTES / 100, "{sizes:?}");
        assert!((PIECE_BYTES * 2 / 5..PIECE_BYTES * 3 / 5).contains(most), "{sizes:?}");
        let smaller = zstd::bulk::compress(&piece(0), 6).unwrap().len();
        assert!(smaller < sizes[0], "a higher level gains nothing");
    }

    #[test]
    fn the_data_is_the_same_everywhere() {
        let digest = blake3::hash(&piece(7)).to_hex();
        assert_eq!(&digest[..16], "ad97f22ad1baf4cb");
    }
}

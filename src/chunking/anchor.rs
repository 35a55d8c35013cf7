//! Anchors: places in a chunk that any other chunk with the same bytes around them chooses too, at
//! whatever offset they lie there, in steps of four bytes (repo-format/spec/38-chunking.md).
//!
//! Invariant: an anchor depends on the bytes and the gear table alone.

use super::Gear;

/// A chunk is seen in words of so many bytes. What was copied or moved lies at a distance that four
/// divides: file systems work in blocks, archives in words. Of what was found on six days of a
/// server when any distance counted, 99 of 100 were such.
const WORD_BYTES: usize = 4;
/// Bits by which the hash moves on with each word.
const STEP_BITS: u32 = 4;
/// The words that a hash covers: older ones have left it.
const WINDOW_WORDS: usize = (u64::BITS / STEP_BITS) as usize;
/// Low bits of a value that hold the place, so that a chunk of 4 MiB fits.
const PLACE_BITS: u32 = 22;
/// Spreads a hash over its high bits: the greatest of many has mostly ones there. 2^64 divided by
/// the golden ratio (Knuth, The Art of Computer Programming, volume 3, section 6.4).
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
/// Anchors with these bits are neither stored nor looked up. One in four is left: two that agree
/// are needed to look closer, and a run of 2 MiB at 32 KiB has some eleven of which both sides
/// know.
const UNLISTED_BITS: u64 = 0b11 << PLACE_BITS;
/// Independent scans at once: one alone waits for each of its own additions.
const LANES: usize = 4;

type Word = [u8; WORD_BYTES];

/// The greatest hash so far, and the word at which its window starts: the first that has it.
#[derive(Clone, Copy, Default)]
struct Greatest {
    hash: u64,
    start: usize,
}

/// The anchor of a chunk if it is one of those that are listed.
pub fn listed_anchor(gear: &Gear, chunk: &[u8]) -> Option<u64> {
    anchor(gear, chunk).filter(|value| value & UNLISTED_BITS == 0)
}

/// Where in its chunk the anchor lies: the last byte of its window.
pub fn place_of(value: u64) -> u32 {
    (value & ((1 << PLACE_BITS) - 1)) as u32
}

/// Hash in the high 42 bits, place in the low 22; `None` for a chunk of less than 64 bytes.
fn anchor(gear: &Gear, chunk: &[u8]) -> Option<u64> {
    let (words, _) = chunk.as_chunks::<WORD_BYTES>();
    let windows = words.len().checked_sub(WINDOW_WORDS - 1).filter(|windows| *windows > 0)?;
    let multiplier = gear.table()[0] | 1;
    let lane = windows / LANES;
    let mut greatest = scan_lanes(multiplier, words, lane);
    scan(multiplier, words, LANES * lane, &mut greatest);
    let place = (greatest.start + WINDOW_WORDS) * WORD_BYTES - 1;
    Some((greatest.hash.wrapping_mul(SPREAD) >> PLACE_BITS << PLACE_BITS) | place as u64)
}

fn step(multiplier: u64, hash: u64, word: Word) -> u64 {
    (hash << STEP_BITS).wrapping_add(u64::from(u32::from_le_bytes(word)).wrapping_mul(multiplier))
}

fn warm(multiplier: u64, words: &[Word]) -> u64 {
    words.iter().fold(0, |hash, word| step(multiplier, hash, *word))
}

/// The first `LANES * lane` windows.
fn scan_lanes(multiplier: u64, words: &[Word], lane: usize) -> Greatest {
    const BEFORE: usize = WINDOW_WORDS - 1;
    let mut hashes = [0; LANES];
    let mut found = [Greatest::default(); LANES];
    let mut lanes = [&words[..0]; LANES];
    if lane > 0 {
        for number in 0..LANES {
            let view = &words[number * lane..(number + 1) * lane + BEFORE];
            hashes[number] = warm(multiplier, &view[..BEFORE]);
            lanes[number] = &view[BEFORE..];
        }
    }
    let [a, b, c, d] = lanes.map(<[Word]>::iter);
    for (start, (((a, b), c), d)) in a.zip(b).zip(c).zip(d).enumerate() {
        for (number, word) in [a, b, c, d].into_iter().enumerate() {
            hashes[number] = step(multiplier, hashes[number], *word);
            if hashes[number] > found[number].hash {
                found[number] = Greatest { hash: hashes[number], start };
            }
        }
    }
    let mut greatest = Greatest::default();
    for (number, Greatest { hash, start }) in found.into_iter().enumerate() {
        if hash > greatest.hash {
            greatest = Greatest { hash, start: number * lane + start };
        }
    }
    greatest
}

/// The windows from number `first` on.
fn scan(multiplier: u64, words: &[Word], first: usize, greatest: &mut Greatest) {
    let Some((before, rest)) = words[first..].split_at_checked(WINDOW_WORDS - 1) else { return };
    let mut hash = warm(multiplier, before);
    for (start, word) in (first..).zip(rest) {
        hash = step(multiplier, hash, *word);
        if hash > greatest.hash {
            *greatest = Greatest { hash, start };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
        data
    }

    /// The definition of the specification, word for word.
    fn defined(gear: &Gear, data: &[u8]) -> Option<u64> {
        let multiplier = gear.table()[0] | 1;
        let mut hash = 0_u64;
        let mut best: Option<(u64, usize)> = None;
        for i in 0..data.len() / 4 {
            let word = u32::from_le_bytes(data[4 * i..4 * i + 4].try_into().unwrap());
            hash = (hash << 4).wrapping_add(u64::from(word).wrapping_mul(multiplier));
            if i >= 15 && best.is_none_or(|(greatest, _)| hash > greatest) {
                best = Some((hash, 4 * i + 3));
            }
        }
        best.map(|(hash, j)| (hash.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 22 << 22) | j as u64)
    }

    #[test]
    fn lanes_find_what_the_definition_says() {
        let gear = Gear::from_key(&[7; 32]);
        for bytes in [0, 1, 63, 64, 65, 67, 68, 75, 76, 77, 200, 4096, 32 << 10, (32 << 10) - 7] {
            for seed in 0..8 {
                let data = random(seed, bytes);
                assert_eq!(anchor(&gear, &data), defined(&gear, &data), "{bytes} bytes");
            }
        }
        // One hash everywhere: the first place has it.
        for (bytes, byte) in [(64, 9), (5000, 9), (5000, 0)] {
            let same = vec![byte; bytes];
            assert_eq!(anchor(&gear, &same), defined(&gear, &same));
            assert_eq!(anchor(&gear, &same).map(place_of), Some(63));
        }
    }

    #[test]
    fn shifted_content_has_the_same_anchors() {
        const CHUNK: usize = 32 << 10;
        let gear = Gear::from_key(&[7; 32]);
        let data = random(1, 400 * CHUNK);
        let stored: std::collections::HashMap<u64, usize> = data
            .chunks(CHUNK)
            .enumerate()
            .filter_map(|(number, chunk)| {
                let value = listed_anchor(&gear, chunk)?;
                Some((value >> PLACE_BITS, number * CHUNK + place_of(value) as usize))
            })
            .collect();
        // A quarter of 400, give or take four deviations.
        assert!((66..134).contains(&stored.len()), "{}", stored.len());
        let shift = 5000;
        let shifted = data[shift..].chunks(CHUNK).enumerate();
        let found = shifted.filter_map(|(number, chunk)| {
            let value = listed_anchor(&gear, chunk)?;
            let place = shift + number * CHUNK + place_of(value) as usize;
            Some(*stored.get(&(value >> PLACE_BITS))? == place)
        });
        let found: Vec<bool> = found.collect();
        assert!(found.iter().all(|is_there| *is_there));
        // At this shift a place is chosen by both sides for 85 of 100 chunks that share it.
        assert!(found.len() > stored.len() / 2, "{} of {}", found.len(), stored.len());
    }
}

//! The digest of a whole disk from the chaining values in its map (spec/33-map.md).
//!
//! BLAKE3 is a tree over 1 KiB leaves. A chunk at an offset that is a multiple of its own
//! power-of-two size is a subtree of it, so its *chaining value* can be kept in the map, and the
//! values of neighbours merge to the value of a page and at last to exactly what `b3sum` prints.
//! The value depends on the offset: it identifies nothing, and the same bytes elsewhere have
//! another one.

use blake3::Hasher;
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// A chaining value: 32 bytes.
pub type Chaining = [u8; 32];

/// The chaining value of `data` (not empty) at `offset` of the disk, a multiple of the chunk
/// size. Only for disks of more than one chunk: a whole input ends differently.
pub fn chaining_value(offset: u64, data: &[u8]) -> Chaining {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(data);
    hasher.finalize_non_root()
}

/// The chaining value of `bytes` zeros at `offset`; `bytes` is at most the largest subtree there.
pub fn chaining_value_of_zeros(offset: u64, bytes: u64) -> Chaining {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut hasher = Hasher::new();
    hasher.set_input_offset(offset);
    let mut left = bytes;
    while left > 0 {
        let step = left.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..step as usize]);
        left -= step;
    }
    hasher.finalize_non_root()
}

/// Merges the values of neighbours, which cover equal power-of-two lengths except that the last
/// may be shorter. `None` for an empty list.
pub fn merge(values: &[Chaining]) -> Option<Chaining> {
    match values {
        [] => None,
        [one] => Some(*one),
        _ => {
            let (left, right) = values.split_at(left_count(values.len()));
            Some(merge_subtrees_non_root(&merge(left)?, &merge(right)?, Mode::Hash))
        }
    }
}

/// Merges at least two values to the digest of the whole disk; `None` for fewer.
pub fn merge_root(values: &[Chaining]) -> Option<[u8; 32]> {
    if values.len() < 2 {
        return None;
    }
    let (left, right) = values.split_at(left_count(values.len()));
    let root = merge_subtrees_root(&merge(left)?, &merge(right)?, Mode::Hash);
    Some(*root.as_bytes())
}

/// The left subtree takes the largest power of two that is less than the whole.
fn left_count(count: usize) -> usize {
    (count / 2 + count % 2).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_left_side_is_the_largest_power_of_two_below() {
        let found: Vec<usize> = (2..10).map(left_count).collect();
        assert_eq!(found, [1, 2, 2, 4, 4, 4, 4, 8]);
    }

    #[test]
    fn merged_values_are_the_plain_hash() {
        let chunk = 4096_usize;
        for length in [chunk + 1, 2 * chunk, 3 * chunk + 1, 7 * chunk - 5, 64 * chunk + 1023] {
            let mut data = vec![0_u8; length];
            Hasher::new().finalize_xof().fill(&mut data);
            data[chunk..(2 * chunk).min(length)].fill(0);
            let values: Vec<Chaining> = data
                .chunks(chunk)
                .enumerate()
                .map(|(slot, bytes)| {
                    let offset = (slot * chunk) as u64;
                    if bytes.iter().all(|byte| *byte == 0) {
                        chaining_value_of_zeros(offset, bytes.len() as u64)
                    } else {
                        chaining_value(offset, bytes)
                    }
                })
                .collect();
            assert_eq!(merge_root(&values), Some(*blake3::hash(&data).as_bytes()), "{length}");
        }
    }
}

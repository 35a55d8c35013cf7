//! The code of parity objects as the specification defines it (spec/39-parity.md), without any of
//! what makes it fast: for the vectors, and to compare the library with.

/// The basis in which 16-bit numbers stand for elements of the field.
const BASIS: [u32; 16] = [
    0x0001, 0xacca, 0x3c0e, 0x163e, 0xc582, 0xed2e, 0x914c, 0x4012, 0x6c98, 0x10d8, 0x6a72, 0xb900,
    0xfdb8, 0xfb34, 0xff38, 0x991e,
];
/// The polynomial of the field.
const POLYNOMIAL: u32 = 0x1_002d;

/// The element that a number stands for, as a polynomial.
fn element(number: usize) -> u32 {
    (0..16).filter(|bit| number >> bit & 1 == 1).fold(0, |sum, bit| sum ^ BASIS[bit])
}

/// The number of every element.
fn numbers() -> Vec<u16> {
    let mut numbers = vec![0; 1 << 16];
    (0..=u16::MAX).for_each(|number| numbers[element(number.into()) as usize] = number);
    numbers
}

fn multiply(a: u32, b: u32) -> u32 {
    let product =
        (0..16).filter(|bit| b >> bit & 1 == 1).fold(0_u64, |sum, bit| sum ^ u64::from(a) << bit);
    (16..32).rev().fold(product, |rest, bit| {
        if rest >> bit & 1 == 1 { rest ^ u64::from(POLYNOMIAL) << (bit - 16) } else { rest }
    }) as u32
}

/// a^(2^16 - 2).
fn invert(a: u32) -> u32 {
    let square = |power| multiply(power, power);
    (0..15)
        .scan(a, |power, _| {
            *power = square(*power);
            Some(*power)
        })
        .fold(1, multiply)
}

/// The symbol at a place of a shard, as a polynomial; what lies behind the shard's end is zero.
fn symbol(shard: &[u8], place: usize) -> u32 {
    let at = place / 32 * 64 + place % 32;
    let byte = |at| usize::from(shard.get(at).copied().unwrap_or(0));
    element(byte(at) | byte(at + 32) << 8)
}

/// All recovery shards of `data`, one behind the other.
pub fn recovery_shards(data: &[u8], shard_bytes: usize, recovery: usize) -> Vec<u8> {
    let run = recovery.next_power_of_two();
    let shards: Vec<&[u8]> = data.chunks(shard_bytes).collect();
    let numbers = numbers();
    let mut coded = vec![0; recovery * shard_bytes];
    for (number, coded) in coded.chunks_mut(shard_bytes).enumerate() {
        let at = element(number);
        for (position, shard) in shards.iter().enumerate() {
            // Of the polynomial that is 1 at this shard's point and 0 at the others of its run.
            let own = element(run + position);
            let first = run + position / run * run;
            let others = (first..first + run).map(element).filter(|other| *other != own);
            let factor = others.fold(1, |factor, other| {
                multiply(factor, multiply(at ^ other, invert(own ^ other)))
            });
            for place in 0..shard_bytes / 2 {
                let sum = numbers[multiply(factor, symbol(shard, place)) as usize].to_le_bytes();
                let at = place / 32 * 64 + place % 32;
                coded[at] ^= sum[0];
                coded[at + 32] ^= sum[1];
            }
        }
    }
    coded
}

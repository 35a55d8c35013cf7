//! Change lists that lie: how often that is seen by the chunks that are read at random.
//!
//! The usual run makes 12 backups for each share of lies; `DISKVAULT_LIES=200` makes so many.

use crate::rig::{CHUNK, Given, back_up, disk, newest, overwrite};
use crate::support::vault::Vault;
use diskvault::backup::{Reading, Reread};

/// Chunks of the disk, without its ends, which are always read.
const CHUNKS: u64 = 8000;
/// Chunks at both ends that are always read: 1 MiB each.
const ENDS: u64 = (1 << 20) / CHUNK;
/// Chunks that are read at random, one perhaps more than once.
const SAMPLE: i32 = 3000;

/// Pseudo-random numbers below `most`, all different.
fn draw(seed: u64, count: usize, most: u64) -> Vec<u64> {
    let mut drawn = std::collections::BTreeSet::new();
    let mut stream = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    while drawn.len() < count {
        let mut number = [0; 8];
        stream.fill(&mut number);
        drawn.insert(u64::from_le_bytes(number) % most);
    }
    drawn.into_iter().collect()
}

#[test]
fn lies_are_seen_as_often_as_the_sample_promises_and_then_cost_nothing() {
    let runs: u32 =
        std::env::var("DISKVAULT_LIES").map_or(12, |runs| runs.parse().expect("a number"));
    let data = disk(1, CHUNKS + 2 * ENDS);
    let mut vault = Vault::new(9);
    let repository = vault.open("host").unwrap();
    back_up(&mut vault, &repository, Given::full(&data));
    let base = newest(&repository);
    // One chunk of the 8000, 0.05 %, 0.1 %, 1 %.
    for wrong in [1, 4, 8, 80] {
        let missed_once = (1.0 - wrong as f64 / (CHUNKS + 2 * ENDS) as f64).powi(SAMPLE);
        let (expected, mut seen) = (1.0 - missed_once, 0);
        for run in 0..runs {
            let mut other = data.clone();
            for chunk in draw(u64::from(run) * 1000 + wrong as u64, wrong, CHUNKS) {
                let at = (ENDS + chunk) * CHUNK + 77;
                overwrite(&mut other, u64::from(run), at..at + 8);
            }
            let reading = Reading::ByHints(Reread::Part(u64::MAX));
            let given = Given { reading, ..Given::hinted(&other, &base, vec![]) };
            let made = back_up(&mut vault, &repository, given);
            let is_seen = !made.tracking().refused.is_empty();
            seen += u32::from(is_seen);
            let full = Given { reading: Reading::Full, ..Given::full(&other) };
            let full = back_up(&mut vault, &repository, full);
            assert_eq!(made.disk().root == full.disk().root, is_seen, "run {run}");
            // Of no use here: 34 MB each.
            vault.known.clear();
        }
        // Four standard deviations below what is to be expected: by chance once in 30,000.
        let mean = f64::from(runs) * expected;
        let least = mean - 4.0 * (mean * missed_once).sqrt();
        println!("{wrong} of {CHUNKS} chunks wrong: seen in {seen} of {runs}, expected {mean:.1}");
        assert!(f64::from(seen) >= least, "{wrong} wrong: {seen} of {runs}, least {least:.1}");
    }
}

/// What is always read, and what is read in turn, each see a lie that the chunks at random miss in
/// seven of ten backups: all of them, every time.
#[test]
fn heads_and_what_is_read_in_turn_miss_no_lie() {
    let mut data = disk(2, CHUNKS);
    // A partition that begins in the middle, at 16 MiB.
    let middle = 4096;
    data[446..512].fill(0);
    data[450] = 0x83;
    data[454..458].copy_from_slice(&((middle * CHUNK / 512) as u32).to_le_bytes());
    data[458..462].copy_from_slice(&1000_u32.to_le_bytes());
    data[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut vault = Vault::new(10);
    let repository = vault.open("host").unwrap();
    back_up(&mut vault, &repository, Given::full(&data));
    let base = newest(&repository);
    let heads = [1, ENDS - 1, middle, middle + ENDS - 1, CHUNKS - ENDS, CHUNKS - 1];
    let elsewhere = [ENDS, 1000, 2500, 3999, 6000, CHUNKS - ENDS - 1];
    // In turn the first chunk alone, and then all of the disk.
    let rounds = [(u64::MAX, heads), (1, elsewhere)];
    for (parts, chunks) in rounds {
        for chunk in chunks {
            let mut other = data.clone();
            overwrite(&mut other, 7, chunk * CHUNK + 9..chunk * CHUNK + 10);
            let reading = Reading::ByHints(Reread::Part(parts));
            let given = Given { reading, ..Given::hinted(&other, &base, vec![]) };
            let made = back_up(&mut vault, &repository, given);
            let text = format!("the disk is another at {}", chunk * CHUNK);
            assert!(made.tracking().refused.contains(&text), "{chunk}: {:?}", made.tracking());
            vault.known.clear();
        }
    }
}

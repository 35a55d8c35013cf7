//! The real engine in a simulated world: a short run of what `diskvault-sim` does for hours.
//!
//! A failure names the seed, and `cargo run --release --example diskvault-sim -- --seed S` plays it
//! again. docs/testing.md says what is simulated.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]
#![allow(clippy::print_stderr, reason = "what happened before a failure")]

#[path = "simulation/mod.rs"]
mod simulation;
mod support;

use simulation::faults::{Extent, every_fault};
use simulation::histories::{Figures, beginning, history};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Histories of the short run.
const SEEDS: std::ops::Range<u64> = 0..10;

/// One simulation at a time: it watches all threads of the process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn histories_of_several_hosts_keep_every_promise() {
    let _alone = alone();
    let beginning = beginning().unwrap();
    let mut figures = Figures::default();
    for seed in SEEDS {
        if let Err((text, tail)) = history(&beginning, seed, &mut figures) {
            panic!("{tail}\n--seed {seed}: {text}");
        }
    }
    for what in ["power cuts", "processes killed", "packs deleted", "leases fenced"] {
        assert!(figures.counts.get(what).is_some_and(|many| *many > 0), "no {what}: {figures:?}");
    }
}

#[test]
fn the_same_seed_is_the_same_history() {
    let _alone = alone();
    let play = |seed| {
        let played = history(&beginning().unwrap(), seed, &mut Figures::default());
        played.map_err(|(text, _)| text).unwrap().0
    };
    let first: Vec<String> = (3..6).map(play).collect();
    let again: Vec<String> = (3..6).map(play).collect();
    assert_eq!(first, again);
    assert_ne!(first[0], first[1]);
}

/// Not at every operation here.
#[test]
fn a_script_keeps_every_promise_with_every_fault() {
    let _alone = alone();
    let beginning = beginning().unwrap();
    let extent = Extent { only_cuts: false, stride: 23, actions: 4 };
    let mut figures = Figures::default();
    if let Err((text, tail)) = every_fault(&beginning, 1, extent, &mut figures) {
        panic!("{tail}\n--script 1: {text}");
    }
    assert!(figures.counts["faults"] > 20, "{figures:?}");
}

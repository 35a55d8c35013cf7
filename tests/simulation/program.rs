//! The long run of the simulation: `cargo run --release --example diskvault-sim -- --seeds 2000`.
//!
//! `--seeds N` plays the histories of the seeds below N, `--scripts N` the scripts below N with a
//! power cut at every operation, and every eighth of them with every other fault as well. `--seed S`
//! and `--script S` play one of them again and tell each step. One process plays one history at a
//! time, so there are several: `--processes N`.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for developers, which may stop where it fails"
)]

#[path = "../support/mod.rs"]
mod support;

#[path = "mod.rs"]
mod simulation;

use simulation::faults::{Extent, every_fault};
use simulation::histories::{Figures, beginning, history};
use std::collections::BTreeMap;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// Histories and scripts of a run of which nothing else is said.
const SEEDS: u64 = 2000;
const SCRIPTS: u64 = 16;

fn main() -> ExitCode {
    let mut options = BTreeMap::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|text| text.parse::<u64>().ok());
        let (Some(key), Some(value)) = (name.strip_prefix("--"), value) else {
            eprintln!("usage: [--seeds N] [--scripts N] [--processes N] | --seed S | --script S");
            return ExitCode::from(2);
        };
        options.insert(key.to_string(), value);
    }
    let get = |key: &str, otherwise: u64| options.get(key).copied().unwrap_or(otherwise);
    if let Some(seed) = options.get("seed") {
        return play(vec![(*seed, false)], true);
    }
    if let Some(seed) = options.get("script") {
        return play(vec![(*seed, true)], true);
    }
    // Asked for scripts alone, or histories alone, it plays only these.
    let is_asked = options.contains_key("seeds") || options.contains_key("scripts");
    let seeds = get("seeds", if is_asked { 0 } else { SEEDS });
    let scripts = get("scripts", if is_asked { 0 } else { SCRIPTS });
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let processes = get("processes", cores).max(1);
    if let Some(own) = options.get("process") {
        let all = (0..scripts).map(|seed| (seed, true)).chain((0..seeds).map(|seed| (seed, false)));
        return play(all.filter(|(seed, _)| seed % processes == *own).collect(), false);
    }
    share(seeds, scripts, processes)
}

/// Lets processes play, and adds up what they tell.
fn share(seeds: u64, scripts: u64, processes: u64) -> ExitCode {
    let began = Instant::now();
    let program = std::env::current_exe().unwrap();
    let start = |own: u64| {
        let mut command = Command::new(&program);
        for (key, value) in
            [("seeds", seeds), ("scripts", scripts), ("processes", processes), ("process", own)]
        {
            command.arg(format!("--{key}")).arg(value.to_string());
        }
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<_> = (0..processes).map(start).collect();
    let (mut figures, mut has_failed) = (Figures::default(), false);
    for child in children {
        let output = child.wait_with_output().unwrap();
        has_failed |= !output.status.success();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            match line.split_once('\t') {
                Some((what, many)) => figures.add(what, many.parse().unwrap_or(0)),
                None => println!("{line}"),
            }
        }
    }
    figures.counts.iter().for_each(|(what, many)| println!("{many:>12} {what}"));
    println!("{:>12} seconds", began.elapsed().as_secs());
    if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Plays histories and scripts, one after the other, and tells figures, or every step of one.
fn play(seeds: Vec<(u64, bool)>, is_told: bool) -> ExitCode {
    let beginning = beginning().unwrap();
    let mut figures = Figures::default();
    let mut exit = ExitCode::SUCCESS;
    for (seed, is_script) in seeds {
        let extent = Extent { only_cuts: seed % 8 != 0, stride: 1, actions: usize::MAX };
        let played = match is_script {
            true => every_fault(&beginning, seed, extent, &mut figures)
                .map(|()| <(String, String)>::default()),
            false => history(&beginning, seed, &mut figures),
        };
        let option = if is_script { "--script" } else { "--seed" };
        match played {
            Ok((hash, tail)) if is_told => println!("{tail}{hash}"),
            Ok(_) => {}
            Err((text, tail)) => {
                println!("{}{option} {seed}: {text}", if is_told { tail.as_str() } else { "" });
                exit = ExitCode::FAILURE;
            }
        }
    }
    figures.counts.iter().for_each(|(what, many)| println!("{what}\t{many}"));
    exit
}

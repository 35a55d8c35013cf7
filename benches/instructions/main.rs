//! Counts the instructions of the hot paths and compares them with `baseline.txt`, so that a
//! regression shows without a clock.
//!
//! `cargo bench --bench instructions [-- --update | NAME...]`. Every path runs in a process of its
//! own under valgrind's callgrind, which counts only inside of one function and shows every
//! program the same processor, whatever this machine is. Two things are left of the machine: valgrind
//! passes on whether there is AVX2 and the like, so counts are compared only on the level they were
//! recorded on; and another compiler makes other code, so counts are judged only if compilers and
//! valgrind are those of the baseline, and shown otherwise.
//!
//! Exit code 1 if a path has more instructions than the tolerance allows, or does not run; 0 if
//! nothing can be said on this machine, with a message.

#![allow(missing_docs, clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used)]

mod paths;
#[path = "../support/mod.rs"]
mod support;

use paths::{PATHS, Path};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions/baseline.txt");
const UPDATE: &str = "cargo bench --bench instructions -- --update";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--level"] => println!("{}", level()),
        ["--prepare", name, folder] => (find(name).prepare)(folder.as_ref()),
        ["--run", name, folder] => (find(name).run)(folder.as_ref()),
        _ => return count(&words),
    }
    ExitCode::SUCCESS
}

fn find(name: &str) -> &'static Path {
    PATHS.iter().find(|path| path.name == name).unwrap_or_else(|| panic!("no path {name}"))
}

/// What decides which code runs: the architecture and the vector units that libraries look for.
fn level() -> String {
    let mut level = std::env::consts::ARCH.to_string();
    #[cfg(target_arch = "x86_64")]
    for (name, has) in [
        ("sse4.1", is_x86_feature_detected!("sse4.1")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("bmi2", is_x86_feature_detected!("bmi2")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("sha", is_x86_feature_detected!("sha")),
    ] {
        if has {
            level = format!("{level} {name}");
        }
    }
    level
}

/// What a baseline was, or will be, recorded with.
struct Baseline {
    level: String,
    tools: String,
    counts: BTreeMap<String, u64>,
}

impl Baseline {
    fn read() -> Option<Baseline> {
        let text = std::fs::read_to_string(BASELINE).ok()?;
        let mut baseline =
            Baseline { level: String::new(), tools: String::new(), counts: BTreeMap::new() };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            match line.split_once(' ') {
                Some(("level", rest)) => baseline.level = rest.trim().into(),
                Some(("tools", rest)) => baseline.tools = rest.trim().into(),
                Some((name, count)) => {
                    _ = baseline.counts.insert(name.into(), count.trim().parse().unwrap());
                }
                None => {}
            }
        }
        Some(baseline)
    }

    fn write(&self) {
        let mut text = format!(
            "# Instructions of the hot paths, counted by benches/instructions. Made anew by\n\
             # {UPDATE}\n\
             level {}\ntools {}\n",
            self.level, self.tools
        );
        for path in PATHS {
            if let Some(count) = self.counts.get(path.name) {
                writeln!(text, "{:<20} {count:>12}", path.name).unwrap();
            }
        }
        std::fs::write(BASELINE, text).unwrap();
    }
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_string();
    output.status.success().then_some(text)
}

fn count(words: &[&str]) -> ExitCode {
    let program = std::env::current_exe().unwrap();
    let program = program.to_str().unwrap();
    let Some(valgrind) = output("valgrind", &["--version"]) else {
        println!("skipped: there is no valgrind");
        return ExitCode::SUCCESS;
    };
    let Some(level) = output("valgrind", &["-q", "--tool=none", program, "--level"]) else {
        println!("skipped: {valgrind} cannot run this program");
        return ExitCode::SUCCESS;
    };
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let rustc = output(&rustc, &["--version"]).unwrap_or_else(|| "unknown rustc".into());
    let cc = output("cc", &["-dumpfullversion"]).unwrap_or_else(|| "unknown".into());
    let tools = format!("{rustc}, cc {cc}, {valgrind}");
    let is_update = words.contains(&"--update");
    let baseline = Baseline::read();
    if let (Some(baseline), false) = (&baseline, is_update)
        && baseline.level != level
    {
        println!("skipped: the baseline is for {}, and this is {level}", baseline.level);
        return ExitCode::SUCCESS;
    }
    let names: Vec<&str> = words.iter().copied().filter(|word| !word.starts_with('-')).collect();
    let wanted: Vec<&Path> =
        PATHS.iter().filter(|path| names.is_empty() || names.contains(&path.name)).collect();
    let counts = count_all(program, &wanted);
    println!("level {level}, {tools}\n");
    if is_update {
        let mut all = baseline.map(|baseline| baseline.counts).unwrap_or_default();
        all.extend(counts);
        all.retain(|name, _| PATHS.iter().any(|path| path.name == name));
        Baseline { level, tools, counts: all }.write();
        println!("{}", std::fs::read_to_string(BASELINE).unwrap());
        return ExitCode::SUCCESS;
    }
    let Some(baseline) = baseline else {
        println!("there is no baseline: {UPDATE}");
        return ExitCode::FAILURE;
    };
    compare(&wanted, &counts, &baseline, &tools)
}

/// Counts all paths, as many at a time as there are cores: that changes no count.
fn count_all(program: &str, wanted: &[&Path]) -> BTreeMap<String, u64> {
    let next = AtomicUsize::new(0);
    let counts = Mutex::new(BTreeMap::new());
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(path) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let count = count_one(program, path);
                    counts.lock().unwrap().insert(path.name.to_string(), count);
                }
            });
        }
    });
    counts.into_inner().unwrap()
}

fn count_one(program: &str, path: &Path) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().to_str().unwrap();
    let prepared = Command::new(program).args(["--prepare", path.name, place]).status().unwrap();
    assert!(prepared.success(), "cannot prepare {}", path.name);
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={}", path.function))
        .args([program, "--run", path.name, place])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} failed:\n{text}", path.name);
    let count = text.lines().find_map(|line| line.split_once("Collected :"));
    let count = count.and_then(|(_, count)| count.trim().parse().ok()).unwrap_or(0);
    assert!(count > 0, "nothing was counted in {} of {}:\n{text}", path.function, path.name);
    count
}

fn compare(
    wanted: &[&Path],
    counts: &BTreeMap<String, u64>,
    baseline: &Baseline,
    tools: &str,
) -> ExitCode {
    println!("{:<20} {:>12} {:>12} {:>9}", "path", "baseline", "now", "change");
    let (mut worse, mut better) = (0, 0);
    for path in wanted {
        let now = counts[path.name];
        let Some(before) = baseline.counts.get(path.name) else {
            println!("{:<20} {:>12} {now:>12}            NEW: {UPDATE}", path.name, "-");
            worse += 1;
            continue;
        };
        let change = now as f64 / *before as f64 * 100.0 - 100.0;
        let verdict = if change > path.tolerance_percent {
            worse += 1;
            format!("MORE THAN {} % WORSE", path.tolerance_percent)
        } else if change < -path.tolerance_percent {
            better += 1;
            "better".into()
        } else {
            String::new()
        };
        println!("{:<20} {before:>12} {now:>12} {change:>+8.2} % {verdict}", path.name);
    }
    if baseline.tools != tools {
        println!("\nnot judged: the baseline was recorded with {}", baseline.tools);
        return ExitCode::SUCCESS;
    }
    if better > 0 {
        println!("\nrecord what became better, so that it stays: {UPDATE}");
    }
    if worse > 0 {
        println!(
            "\n{worse} paths became worse; if that is worth it, say why in the commit: {UPDATE}"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

//! A whole backup and restore over a generated image, beside `b3sum`, `zstd -3 -T0` and plain
//! copies of the same file, in turns.
//!
//! `cargo bench --bench whole [-- --gib N] [--image FILE] [--runs N] [--folder DIR]`. The image
//! has N GiB (2 by default), half of it data: compressible, random, repeated and written zeros.
//! It runs the release binary; `b3sum` and `zstd` are taken from `PATH` and left out if absent.

#![allow(missing_docs, clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{compressible, print_machine, random};

const MIB: u64 = 1 << 20;

struct Options {
    gib: u64,
    runs: usize,
    image: Option<PathBuf>,
    folder: Option<PathBuf>,
}

/// Wall seconds, CPU seconds and peak resident MiB of one command.
#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
    peak_mib: f64,
}

fn main() {
    let options = options();
    print_machine();
    let temporary = match &options.folder {
        Some(folder) => tempfile::tempdir_in(folder).unwrap(),
        None => tempfile::tempdir().unwrap(),
    };
    let folder = temporary.path();
    let image = match &options.image {
        Some(image) => image.clone(),
        None => make_image(&folder.join("image.raw"), options.gib),
    };
    let meta = fs::metadata(&image).unwrap();
    let gib = (1_u64 << 30) as f64;
    let (size, data) = (meta.size() as f64 / gib, meta.blocks() as f64 * 512.0 / gib);
    println!("image: {size:.2} GiB, {data:.2} GiB of it allocated, in the page cache\n");
    // Reads the image once, so that every command finds it in the page cache.
    std::io::copy(&mut File::open(&image).unwrap(), &mut std::io::sink()).unwrap();
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get()).to_string();
    let bench = Bench { folder, image: &image, threads: &threads };
    let mut results: Vec<(&str, Vec<Cost>)> = Vec::new();
    for _ in 0..options.runs {
        for (name, cost) in bench.one_round() {
            match results.iter_mut().find(|(known, _)| *known == name) {
                Some((_, costs)) => costs.push(cost),
                None => results.push((name, vec![cost])),
            }
        }
    }
    print(&results, meta.size() as f64);
}

fn options() -> Options {
    let mut options = Options { gib: 2, runs: 3, image: None, folder: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--gib" => options.gib = arguments.next().unwrap().parse().unwrap(),
            "--runs" => options.runs = arguments.next().unwrap().parse().unwrap(),
            "--image" => options.image = Some(arguments.next().unwrap().into()),
            "--folder" => options.folder = Some(arguments.next().unwrap().into()),
            // What cargo bench passes.
            _ => {}
        }
    }
    options
}

/// Data in pieces of 8 MiB with holes of 8 MiB between; of 16 pieces 12 are compressible, two
/// random, one written zeros and one a repetition.
fn make_image(path: &Path, gib: u64) -> PathBuf {
    let file = File::create(path).unwrap();
    file.set_len(gib << 30).unwrap();
    let piece = 8 * MIB;
    for number in 0..(gib << 30) / (2 * piece) {
        let data = match number % 16 {
            3 | 11 => random(piece as usize, number),
            7 => vec![0; piece as usize],
            15 => compressible(piece as usize, 1),
            _ => compressible(piece as usize, number),
        };
        file.write_all_at(&data, number * 2 * piece).unwrap();
    }
    file.sync_all().unwrap();
    path.to_path_buf()
}

struct Bench<'a> {
    folder: &'a Path,
    image: &'a Path,
    threads: &'a str,
}

impl Bench<'_> {
    fn one_round(&self) -> Vec<(&'static str, Cost)> {
        let mut costs = Vec::new();
        let image = self.image.to_str().unwrap();
        let mut add = |name, cost: Option<Cost>| costs.extend(cost.map(|cost| (name, cost)));
        add("b3sum (mmap)", run("b3sum", &["--num-threads", self.threads, image]));
        add("b3sum (reads)", run("b3sum", &["--no-mmap", "--num-threads", self.threads, image]));
        let out = self.folder.join("image.zst");
        let threads = format!("-T{}", self.threads);
        let zstd = ["-q", "-f", "-3", &threads, image, "-o", out.to_str().unwrap()];
        add("zstd -3 -T0", run("zstd", &zstd));
        add("zstd -d", run("zstd", &["-q", "-f", "-d", out.to_str().unwrap(), "-o", "/dev/null"]));
        // A name that was not there is no failure.
        let _ = fs::remove_file(&out);
        let copy = self.folder.join("copy.raw");
        add("cp --sparse=always", run("cp", &["--sparse=always", image, copy.to_str().unwrap()]));
        let _ = fs::remove_file(&copy);
        self.vault(&["init", "--no-recovery-key"]);
        let backup = ["backup", "-q", "--name", "bench", image];
        add("diskvault backup, first", self.vault(&backup));
        add("diskvault backup, unchanged", self.vault(&backup));
        let restored = self.folder.join("restored.raw");
        add(
            "diskvault restore",
            self.vault(&["restore", "-q", "bench", restored.to_str().unwrap()]),
        );
        add("diskvault check --read-data", self.vault(&["check", "-q", "--read-data"]));
        let _ = fs::remove_file(&restored);
        for name in ["repository", "cache"] {
            let _ = fs::remove_dir_all(self.folder.join(name));
        }
        costs
    }

    fn vault(&self, arguments: &[&str]) -> Option<Cost> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_diskvault"));
        command
            .args(["--threads", self.threads])
            .args(arguments)
            .env("DISKVAULT_REPOSITORY", self.folder.join("repository"))
            .env("DISKVAULT_CACHE_DIR", self.folder.join("cache"))
            .env("DISKVAULT_PASSWORD", "bench");
        measure(command)
    }
}

fn run(program: &str, arguments: &[&str]) -> Option<Cost> {
    let mut command = Command::new(program);
    command.args(arguments);
    measure(command)
}

/// Runs a command; `None` if it is not there. Peak memory is the kernel's own high-water mark,
/// polled until the end.
fn measure(mut command: Command) -> Option<Cost> {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let before = children_cpu();
    let began = Instant::now();
    let mut child = command.spawn().ok()?;
    let status_file = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0.0_f64;
    let status = loop {
        let text = fs::read_to_string(&status_file).unwrap_or_default();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|text| text.trim().strip_suffix(" kB")?.trim().parse().ok());
        peak_kib = peak_kib.max(peak.unwrap_or(0.0));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let wall = began.elapsed().as_secs_f64();
    assert!(status.success(), "{command:?} failed");
    Some(Cost { wall, cpu: children_cpu() - before, peak_mib: peak_kib / 1024.0 })
}

/// CPU seconds of all children that ended, from the process's own record (fields 16 and 17).
fn children_cpu() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |field: usize| fields[field].parse::<f64>().unwrap();
    (ticks(13) + ticks(14)) / 100.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print(results: &[(&str, Vec<Cost>)], size: f64) {
    let wall_of = |name: &str| {
        let found = results.iter().find(|(known, _)| *known == name);
        found.map(|(_, costs)| median(costs.iter().map(|cost| cost.wall).collect()))
    };
    println!(
        "{:<30} {:>8} {:>8} {:>9} {:>9}  speed against",
        "", "wall s", "CPU s", "MB/s", "peak MiB"
    );
    for (name, costs) in results {
        let wall = median(costs.iter().map(|cost| cost.wall).collect());
        let cpu = median(costs.iter().map(|cost| cost.cpu).collect());
        let peak = median(costs.iter().map(|cost| cost.peak_mib).collect());
        let yardstick = match *name {
            "diskvault backup, first" => Some("zstd -3 -T0"),
            "diskvault backup, unchanged" => Some("b3sum (mmap)"),
            "diskvault restore" | "diskvault check --read-data" => Some("zstd -d"),
            _ => None,
        };
        let against = yardstick.and_then(|yardstick| {
            Some(format!("{:.2} of {yardstick}", wall_of(yardstick)? / wall))
        });
        let rate = size / 1e6 / wall;
        let against = against.unwrap_or_default();
        println!("{name:<30} {wall:>8.2} {cpu:>8.2} {rate:>9.0} {peak:>9.0}  {against}");
    }
}

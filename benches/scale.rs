//! How commands stand a repository of many chunks: 20 million by default, made through the real
//! writer from disks that exist only while they are read.
//!
//! `cargo run --release --example scale -- --diskvault target/release/diskvault [--chunks N]
//! [--disks N] [--folder DIR]`. Each disk is a series of its own; one in four has a second point,
//! which changes an eighth. The grid is 4 KiB and packs are 256 KiB, so that a pack has some 1,600
//! chunks, as one of 32 MiB has on the default grid; a chunk stores about 130 bytes. Then the
//! program runs each command and the table says its wall time, what it read and its peak memory,
//! the kernel's own high-water mark. In a folder that holds a repository of a run before nothing is
//! made. 20 million chunks take some 5 GB, and the changed image as much as one disk.

#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

use diskvault::backup::{BackupOptions, ChunkerChoice, InputRequest, Reading, run_with};
use diskvault::environment::SystemEnvironment;
use diskvault::error::Result;
use diskvault::monitor::Silent;
use diskvault::repository::compression::Compression;
use diskvault::repository::secrets::Passphrase;
use diskvault::repository::{InitOptions, Repository, initialise};
use diskvault::source::{DiskSource, Extent, ExtentKind, InputKind};
use diskvault::storage::local::LocalStorage;
use diskvault_format::key_slot::KdfCost;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const CHUNK: usize = 4 << 10;
const PACK: u32 = 256 << 10;
/// Bytes of a chunk that do not compress; the others are zeros.
const NOISE: usize = 96;
/// Chunks that change together.
const RUN: u64 = 64;
/// One disk in so many has a second point.
const CHANGING: usize = 4;
const PASSWORD: &str = "scale";

/// A disk that is computed while it is read. In generation `n` a run of chunks has the content of
/// the last generation in which it changed: one in eight does each time.
struct Synthetic {
    number: u64,
    chunks: u64,
    generation: u64,
}

fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

impl Synthetic {
    fn fill(&self, chunk: u64, buffer: &mut [u8]) {
        let run = (self.number << 48) | (chunk / RUN);
        let changed = |generation: &u64| mix(run ^ (generation << 40)).is_multiple_of(8);
        let version = (1..=self.generation).rev().find(changed).unwrap_or(0);
        let mut value = mix((version << 56) | (self.number << 40) | chunk);
        for word in buffer[..NOISE].chunks_exact_mut(8) {
            value = mix(value.wrapping_add(0x9E37_79B9_7F4A_7C15));
            word.copy_from_slice(&value.to_le_bytes());
        }
        buffer[NOISE..].fill(0);
    }

    /// Writes the disk to a file, with another generation in its first `changed` chunks.
    fn write(&self, path: &Path, changed: u64) {
        let file = File::create(path).unwrap();
        file.set_len(self.size()).unwrap();
        let new = Synthetic { number: self.number + 1000, ..*self };
        let mut buffer = vec![0; 256 * CHUNK];
        for first in (0..self.chunks).step_by(256) {
            let count = (self.chunks - first).min(256) as usize;
            for (chunk, bytes) in (first..).zip(buffer[..count * CHUNK].chunks_exact_mut(CHUNK)) {
                if chunk < changed { &new } else { self }.fill(chunk, bytes);
            }
            file.write_all_at(&buffer[..count * CHUNK], first * CHUNK as u64).unwrap();
        }
        file.sync_all().unwrap();
    }
}

impl DiskSource for Synthetic {
    fn size(&self) -> u64 {
        self.chunks * CHUNK as u64
    }

    fn describe(&self) -> String {
        format!("synthetic disk {}", self.number)
    }

    fn format(&self) -> &'static str {
        "raw"
    }

    fn extents_in(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        each(Extent { start: range.start, bytes: range.end - range.start, kind: ExtentKind::Data })
    }

    fn allocation_known(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut chunk_bytes = [0; CHUNK];
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let (chunk, skip) = (at / CHUNK as u64, at as usize % CHUNK);
            let count = (CHUNK - skip).min(buffer.len() - done);
            self.fill(chunk, &mut chunk_bytes);
            buffer[done..done + count].copy_from_slice(&chunk_bytes[skip..skip + count]);
            done += count;
        }
        Ok(())
    }

    fn prefetch(&self, _offset: u64, _bytes: u64) {}

    fn check_unchanged_size(&self) -> Result<()> {
        Ok(())
    }

    fn identity(&self) -> Vec<u8> {
        self.generation.to_le_bytes().to_vec()
    }
}

struct Options {
    diskvault: PathBuf,
    chunks: u64,
    disks: u64,
    folder: Option<PathBuf>,
}

fn options() -> Options {
    let mut options = Options {
        diskvault: "target/release/diskvault".into(),
        chunks: 20_000_000,
        disks: 20,
        folder: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().unwrap();
        match argument.as_str() {
            "--diskvault" => options.diskvault = value.into(),
            "--chunks" => options.chunks = value.parse().unwrap(),
            "--disks" => options.disks = value.parse().unwrap(),
            "--folder" => options.folder = Some(value.into()),
            other => panic!("unknown option {other}"),
        }
    }
    options
}

fn main() {
    let options = options();
    let temporary = tempfile::tempdir().unwrap();
    let folder = options.folder.clone().unwrap_or_else(|| temporary.path().to_path_buf());
    // An eighth of a quarter is stored twice.
    let chunks_per_disk = options.chunks * 32 / 33 / options.disks;
    if !folder.join("repository").exists() {
        make(&folder, options.disks, chunks_per_disk);
    }
    let disk = Synthetic { number: 0, chunks: chunks_per_disk, generation: 1 };
    let image = folder.join("disk");
    disk.write(&image, (1 << 30) / CHUNK as u64);
    let bench = Bench { program: &options.diskvault, folder: &folder };
    println!("| | wall s | CPU s | read MB | peak MiB |\n|---|---|---|---|---|");
    let image = image.to_str().unwrap();
    bench.row("list", &["list"]);
    bench.row("stats, with an index to be made", &["stats"]);
    bench.row("stats", &["stats"]);
    bench.row("backup of 1 GiB changed", &["backup", "--chunker", "fixed", "--name", "vm0", image]);
    bench.row("check", &["check"]);
    let forget = ["forget", "--keep-last", "1"];
    bench.row("forget --prune --dry-run", &[&forget[..], &["--prune", "--dry-run"]].concat());
    bench.row("forget", &forget);
    bench.row("prune", &["prune"]);
    bench.row("check afterwards", &["check"]);
    fs::remove_file(image).unwrap();
}

/// Makes the repository: the first generation of each disk, then the second of some.
fn make(folder: &Path, disks: u64, chunks: u64) {
    let began = Instant::now();
    let root = folder.join("repository");
    fs::create_dir_all(&root).unwrap();
    let storage = Arc::new(LocalStorage::create(&root).unwrap());
    let environment = Arc::new(SystemEnvironment);
    let passphrase = Passphrase::new(PASSWORD.as_bytes().to_vec());
    let init = InitOptions {
        passphrase: &passphrase,
        recovery: None,
        chunk_bytes: Some(CHUNK as u32),
        pack_bytes: Some(PACK),
        parity_per_mille: 0,
        cost: KdfCost::PASSPHRASE,
        host: "scale",
    };
    initialise(storage.as_ref(), environment.as_ref(), &init).unwrap();
    let cache = folder.join("cache");
    let repository = Repository::open(storage, environment, &cache, &passphrase).unwrap();
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().build().unwrap());
    // The path has to be something that is there; what it leads to is not read.
    let path = std::env::current_exe().unwrap();
    let mut stored = 0;
    for (generation, step) in [(0, 1), (1, CHANGING)] {
        for number in (0..disks).step_by(step) {
            let options = BackupOptions {
                series: format!("vm{number}"),
                inputs: vec![InputRequest::new(Some("disk".into()), &path, Some(InputKind::Disk))],
                chunker: ChunkerChoice::Fixed,
                compression: Compression::default(),
                stdin_name: None,
                tags: Vec::new(),
                time_unix_ns: None,
                digests: Vec::new(),
                host: "scale".into(),
                reading: Reading::default(),
            };
            let open = |_: &InputRequest| -> Result<Box<dyn DiskSource>> {
                Ok(Box::new(Synthetic { number, chunks, generation }))
            };
            let report = run_with(&repository, &options, &open, &pool, &Silent).unwrap();
            stored += report.statistics.new_bytes / CHUNK as u64;
        }
    }
    println!("{stored} chunks stored in {:.0} s\n", began.elapsed().as_secs_f64());
}

struct Bench<'a> {
    program: &'a Path,
    folder: &'a Path,
}

impl Bench<'_> {
    /// Runs a command and prints what it took.
    fn row(&self, name: &str, arguments: &[&str]) {
        let mut command = Command::new(self.program);
        command
            .args(arguments)
            .env("DISKVAULT_REPOSITORY", self.folder.join("repository"))
            .env("DISKVAULT_CACHE_DIR", self.folder.join("cache-of-program"))
            .env("DISKVAULT_PASSWORD", PASSWORD)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let began = Instant::now();
        let cpu = children_cpu();
        let mut child = command.spawn().unwrap();
        let (mut read, mut peak_kib) = (0, 0);
        let status = loop {
            let process = PathBuf::from(format!("/proc/{}", child.id()));
            read = read.max(field(&process.join("io"), "rchar:"));
            peak_kib = peak_kib.max(field(&process.join("status"), "VmHWM:"));
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        assert!(status.success(), "{name} failed");
        let (wall, cpu) = (began.elapsed().as_secs_f64(), children_cpu() - cpu);
        println!("| {name} | {wall:.2} | {cpu:.2} | {} | {} |", read / 1_000_000, peak_kib >> 10);
    }
}

/// A number from a file of the kernel's about a process; 0 if it has ended.
fn field(path: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// CPU seconds of all children that ended, from the process's own record (fields 16 and 17).
fn children_cpu() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |field: usize| fields[field].parse::<f64>().unwrap();
    (ticks(13) + ticks(14)) / 100.0
}

//! How much memory the program takes at most, as the kernel counts it.
//!
//! The bound is far above what the table in `docs/architecture.md` adds up to for two threads, and
//! far below the data: what grows with the disk, the stream or the repository meets it.

use crate::support::{MIB, Vault};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::Duration;

/// Data of each test: more than the bound, so that keeping it all shows.
const DATA_BYTES: u64 = 400 * MIB;
/// Most memory a run may take.
const PEAK_BYTES_MAX: u64 = 256 * MIB;

/// The most memory that a process has used so far; 0 once it is gone.
fn peak_bytes(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Runs to a good end, and the most memory that was seen on the way. What is taken in the last
/// millisecond may be missed, but what grows with the data is there before.
fn run(vault: &Vault, threads: u64, arguments: &[&str]) -> u64 {
    let threads = threads.to_string();
    let mut all = vec!["--threads", &threads];
    all.extend(arguments);
    let mut child = vault
        .command(&all)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdin.take());
    let mut output = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        while output.read(&mut buffer).unwrap() > 0 {}
    });
    let mut peak = 0;
    let status = loop {
        peak = peak.max(peak_bytes(child.id()));
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    reader.join().unwrap();
    assert!(status.success(), "{arguments:?}: {status}");
    assert!(peak > MIB, "{arguments:?}: nothing was measured");
    peak
}

fn assert_bounded(vault: &Vault, arguments: &[&str]) {
    let peak = run(vault, 2, arguments);
    assert!(peak < PEAK_BYTES_MAX, "{arguments:?} took {} MiB", peak / MIB);
}

/// Bytes that neither compress nor repeat, from a counter.
fn fill(file: &File, bytes: u64) {
    let mut block = vec![0_u8; MIB as usize];
    for number in 0..bytes / MIB {
        let mut output = blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof();
        output.fill(&mut block);
        file.write_all_at(&block, number * MIB).unwrap();
    }
}

#[test]
fn memory_does_not_grow_with_a_disk_or_a_stream() {
    let vault = Vault::new();
    let path = vault.arg("data");
    let file = File::create(&path).unwrap();
    fill(&file, DATA_BYTES);
    let disk = format!("disk={path}");
    assert_bounded(&vault, &["backup", "--name", "a", "--disk", &disk]);
    // Known and unchanged chunks go other ways than new ones.
    assert_bounded(&vault, &["backup", "--name", "a", "--disk", &disk]);
    // Sixteen threads that held a pack each would hold all data.
    let peak = run(&vault, 16, &["check", "--read-data"]);
    assert!(peak < PEAK_BYTES_MAX, "a check with 16 threads took {} MiB", peak / MIB);
    let stream = format!("stream={path}");
    assert_bounded(&vault, &["backup", "--name", "b", "--stream", &stream]);
    assert_bounded(&vault, &["backup", "--name", "c", "--chunker", "fastcdc", "--disk", &disk]);
    assert_bounded(&vault, &["check", "--read-data"]);
    for part in ["a/disk", "b/stream", "c/disk"] {
        assert_bounded(&vault, &["restore", part, &vault.arg("restored")]);
        assert!(fs::read(vault.path("restored")).unwrap() == fs::read(&path).unwrap(), "{part}");
        fs::remove_file(vault.path("restored")).unwrap();
        assert_bounded(&vault, &["dump", part]);
        assert_bounded(&vault, &["digest", part, "--with", "sha1", "--yes"]);
    }
}

//! Disks of NBD servers: of the real ones, of a made one that fails as told, and of hostile ones.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]
#![allow(clippy::print_stderr, reason = "a test says what it skips")]

use diskvault::error::{ErrorKind, Result};
use diskvault::source::nbd::{Address, NbdSource, open_with_patience};
use diskvault::source::{DiskSource, ExtentKind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

#[path = "nbd/faults.rs"]
mod faults;
#[path = "nbd/made.rs"]
mod made;
#[path = "nbd/real.rs"]
mod real;

/// Long enough for a server that starts again beside other tests.
const PATIENCE: Duration = Duration::from_secs(20);

fn open(address: &str) -> Result<NbdSource> {
    open_with_patience(Address::parse(address)?, PATIENCE)
}

/// A server that ends with the test.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts a program that listens on a socket of this folder; nothing, with a message, if there is
    /// no such program.
    fn start(folder: &Path, program: &str, arguments: &[&str]) -> Option<Server> {
        if Command::new(program).arg("--version").output().is_err() {
            eprintln!("skipped: there is no {program}");
            return None;
        }
        let socket = folder.join(format!("{program}.sock"));
        let _ = std::fs::remove_file(&socket);
        let path = socket.to_str().unwrap();
        let mut command = Command::new(program);
        match program {
            "nbdkit" => command.args(["--foreground", "--unix", path]),
            _ => command.args(["--persistent", "--socket", path]),
        };
        let child = command.args(arguments).current_dir(folder).stdin(Stdio::null()).spawn();
        let server = Server { child: child.unwrap(), socket };
        for _ in 0..2000 {
            if std::os::unix::net::UnixStream::connect(&server.socket).is_ok() {
                return Some(server);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{program} {arguments:?} does not listen");
    }

    fn address(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    fn open(&self) -> NbdSource {
        open(&self.address("")).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes that do not compress and are others for each seed.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
    noise
}

fn data_of(source: &dyn DiskSource) -> Vec<Range<u64>> {
    let (mut at, mut data) = (0, Vec::new());
    source
        .extents(&mut |extent| {
            assert_eq!(extent.start, at);
            at += extent.bytes;
            if extent.kind == ExtentKind::Data {
                data.push(extent.start..at);
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(at, source.size());
    data
}

/// All of a disk, in steps, each asked for ahead or not.
fn read_all(source: &dyn DiskSource, step: usize, ahead: bool) -> Vec<u8> {
    let mut found = vec![0xaa; source.size() as usize];
    for (number, piece) in found.chunks_mut(step).enumerate() {
        let offset = (number * step) as u64;
        if ahead {
            source.prefetch(offset, 8 * step as u64);
        }
        source.read_at(offset, piece).unwrap();
    }
    found
}

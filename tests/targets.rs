//! Points brought back onto what is already there: restores in place and mirrors.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "shared with the other tests of the program")]
#[path = "cli/support.rs"]
mod support;

#[path = "targets/certify.rs"]
mod certify;
#[path = "targets/delta.rs"]
mod delta;
#[path = "targets/dump.rs"]
mod dump;
#[path = "targets/every_path.rs"]
mod every_path;
#[path = "targets/in_place.rs"]
mod in_place;
#[path = "targets/killed.rs"]
mod killed;
#[path = "targets/mirror.rs"]
mod mirror;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use support::{KIB, MIB, Vault, random, write_sparse};

/// A sparse disk of 9.5 MiB and some sectors, with three points of it; their bytes.
struct History {
    vault: Vault,
    points: Vec<String>,
    days: Vec<Vec<u8>>,
}

const SIZE: u64 = 9 * MIB + 512 * 7;

impl History {
    fn new() -> History {
        let vault = Vault::new();
        let disk = vault.path("disk");
        let (start, middle, end) = (random(1, 3 * MIB), random(2, 100_000), random(3, 5000));
        let ranges = [(0, &start[..]), (5 * MIB + 4096, &middle), (SIZE - 5000, &end)];
        write_sparse(&disk, SIZE, &ranges);
        let mut history = History { vault, points: Vec::new(), days: Vec::new() };
        history.add_point();
        write(&disk, MIB + 100, &random(4, 300));
        write(&disk, 7 * MIB, &random(5, 64 * KIB));
        history.add_point();
        // Data becomes a hole, and zeros that take storage appear.
        let command = ["-p", "-o", "65536", "-l", "131072"];
        let punched = Command::new("fallocate").args(command).arg(&disk).status().unwrap();
        assert!(punched.success());
        write(&disk, 8 * MIB, &[0; 65_536]);
        history.add_point();
        history
    }

    fn add_point(&mut self) {
        let disk = self.vault.arg("disk");
        self.points.push(self.vault.backup("vm", &["--disk", &format!("sda={disk}")]));
        self.days.push(fs::read(disk).unwrap());
    }
}

fn write(path: &Path, offset: u64, bytes: &[u8]) {
    fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

fn number(summary: &serde_json::Value, name: &str) -> u64 {
    summary[name].as_u64().unwrap_or_else(|| panic!("no {name} in {summary}"))
}

/// Runs a program that must succeed.
fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

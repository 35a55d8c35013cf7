//! Runs that are killed while they write: the next one ends right, whatever it is to bring the target to.

use crate::support::{MIB, Vault, random};
use crate::tool;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const SIZE: u64 = 32 * MIB;
/// Runs that must have been killed with the target half way.
const HALFWAY: usize = 2;
/// Runs that may be killed before that or behind it.
const ROUNDS_MAX: u32 = 60;

/// A target and two points that are nowhere the same.
struct Rig {
    vault: Vault,
    target: &'static str,
    command: &'static [&'static str],
}

impl Rig {
    fn new(target: &'static str, command: &'static [&'static str]) -> Rig {
        let vault = Vault::new();
        for (series, seed) in [("one", 1), ("two", 2)] {
            let disk = vault.write(series, &random(seed, SIZE));
            vault.backup(series, &["--disk", &format!("sda={disk}")]);
        }
        Rig { vault, target, command }
    }

    fn arguments(&self, series: &str) -> Vec<String> {
        let words = self.command.iter().map(|word| (*word).to_owned());
        words.chain([format!("{series}/sda"), self.vault.arg(self.target)]).collect()
    }

    fn bring_to(&self, series: &str) {
        let arguments = self.arguments(series);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.vault.ok(&arguments);
        assert!(self.holds(series), "{} is not {series}", self.target);
    }

    /// Starts to, and is killed; true if that was before its end.
    fn is_killed_after(&self, series: &str, time: Duration) -> bool {
        let arguments = self.arguments(series);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = self.vault.command(&arguments);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(time);
        child.kill().unwrap();
        child.wait().unwrap().code().is_none()
    }

    fn holds(&self, series: &str) -> bool {
        let (target, disk) = (self.vault.path(self.target), self.vault.path(series));
        if target.extension().is_none_or(|extension| extension != "qcow2") {
            return is_equal(&target, &disk);
        }
        let check = ["check", "-q", "-f", "qcow2", target.to_str().unwrap()];
        tool("qemu-img", &check);
        let formats = ["compare", "-q", "-f", "raw", "-F", "qcow2"];
        let mut compare = std::process::Command::new("qemu-img");
        compare.args(formats).args([disk, target]).status().unwrap().success()
    }

    /// Kills runs from one point to the other, until enough of them were half way.
    fn kill_many(&self) {
        self.bring_to("one");
        let began = Instant::now();
        self.bring_to("two");
        let whole = began.elapsed();
        let mut halfway = 0;
        for round in 1.. {
            assert!(round < ROUNDS_MAX, "only {halfway} runs were killed half way");
            self.bring_to("one");
            // Spread over all of a run, by the golden section.
            let share = (f64::from(round) * 0.618).fract();
            let is_killed = self.is_killed_after("two", whole.mul_f64(share));
            if is_killed && !self.holds("one") && !self.holds("two") {
                halfway += 1;
            }
            // Further, or back.
            self.bring_to(if round % 2 == 0 { "two" } else { "one" });
            if halfway == HALFWAY {
                return;
            }
        }
    }
}

fn is_equal(one: &Path, other: &Path) -> bool {
    fs::read(one).unwrap() == fs::read(other).unwrap()
}

#[test]
fn a_restore_in_place() {
    let rig = Rig::new("target", &["restore", "--in-place"]);
    fs::write(rig.vault.path("target"), random(3, SIZE + 700)).unwrap();
    rig.kill_many();
}

#[test]
fn a_raw_mirror() {
    Rig::new("target.raw", &["mirror"]).kill_many();
}

#[test]
fn a_qcow2_mirror() {
    Rig::new("target.qcow2", &["mirror"]).kill_many();
}

/// A mirror that is made has no name until it is whole, or is brought to its end by the next run.
#[test]
fn a_mirror_that_is_made() {
    for target in ["target.raw", "target.qcow2"] {
        let rig = Rig::new(target, &["mirror"]);
        let began = Instant::now();
        rig.bring_to("two");
        let whole = began.elapsed();
        let mut killed = 0;
        for round in 1..=5 {
            fs::remove_file(rig.vault.path(target)).unwrap();
            killed += u32::from(rig.is_killed_after("two", whole.mul_f64(f64::from(round) / 6.0)));
            rig.bring_to("two");
        }
        assert!(killed >= 2, "only {killed} runs were killed");
    }
}

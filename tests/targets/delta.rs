//! `export-delta` and `apply`.

use crate::support::{LoopDevice, MIB, Outcome, Vault, finish, random};
use crate::{History, SIZE, number, write};
use diskvault::target::{Layout, ReuseTarget, Reused};
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

const SECRET: &str = "over the line";

/// Applies without any repository, password or cache.
fn apply(vault: &Vault, arguments: &[&str]) -> Outcome {
    finish(&mut apply_command(vault, arguments))
}

fn apply_command(vault: &Vault, arguments: &[&str]) -> Command {
    let mut command = vault.command(&[&["apply"], arguments].concat());
    for name in ["REPOSITORY", "PASSWORD", "CACHE_DIR"] {
        command.env_remove(format!("DISKVAULT_{name}"));
    }
    command.env("DISKVAULT_DELTA_PASSWORD", SECRET);
    command
}

fn export(vault: &Vault, old: &str, new: &str, file: &str, options: &[&str]) -> serde_json::Value {
    let mut all = vec!["--json", "export-delta", old, new, file];
    all.extend(options);
    let outcome = finish(vault.command(&all).env("DISKVAULT_DELTA_PASSWORD", SECRET));
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    outcome.json()
}

#[test]
fn the_second_disk_is_made_of_the_first_without_a_repository() {
    let history = History::new();
    let vault = &history.vault;
    for (from, to) in [(0, 1), (1, 2), (0, 2), (2, 0)] {
        for options in [&[][..], &["--plain"]] {
            let name = format!("{from}-{to}-{}", options.len());
            let file = vault.arg(&name);
            let (old, new) = (&history.points[from], &history.points[to]);
            let report = export(vault, old, new, &file, options);
            let length = fs::metadata(&file).unwrap().len();
            assert_eq!(number(&report, "file_bytes"), length);
            // Day 1 wrote 300 bytes inside of a block and 64 KiB of noise.
            if (from, to) == (0, 1) {
                assert_eq!(number(&report, "changed_bytes"), 4096 + 65_536);
                assert!(length < 80_000, "{length}");
            }
            let base = vault.write("base", &history.days[from]);
            let outcome = apply(vault, &[&file, &base]);
            assert_eq!(outcome.code, 0, "{}", outcome.stderr);
            assert!(fs::read(&base).unwrap() == history.days[to], "{name}");
            apply(vault, &[&file, &base]).prints("already");
            assert!(fs::read(&base).unwrap() == history.days[to]);
        }
    }
    let sealed = fs::read(vault.path("0-1-0")).unwrap();
    let plain = fs::read(vault.path("0-1-1")).unwrap();
    let has_name = |bytes: &[u8]| bytes.windows(3).any(|window| window == b"sda");
    assert!(has_name(&plain) && !has_name(&sealed));
}

#[test]
fn a_disk_that_grew_shrank_or_lies_on_a_device() {
    let vault = Vault::new();
    let mut points = Vec::new();
    let mut days = Vec::new();
    for (seed, bytes) in [(1, 3 * MIB), (1, 5 * MIB + 512), (2, 2 * MIB + 4096)] {
        let mut data = random(seed, bytes);
        data[(MIB as usize)..(MIB + 300_000) as usize].fill(0);
        let disk = vault.write("disk", &data);
        points.push(vault.backup("vm", &["--disk", &format!("sda={disk}")]));
        days.push(data);
    }
    for (from, to) in [(0, 1), (1, 2), (2, 1), (1, 0)] {
        let file = vault.arg(&format!("{from}-{to}"));
        export(&vault, &points[from], &points[to], &file, &["--plain"]);
        let base = vault.write("base", &days[from]);
        let outcome = apply(&vault, &[&file, &base]);
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        assert!(fs::read(&base).unwrap() == days[to], "{from} to {to}");
    }
    let behind = random(9, MIB);
    let mut backing = random(8, 7 * MIB);
    backing[..days[0].len()].copy_from_slice(&days[0]);
    backing[6 * MIB as usize..].copy_from_slice(&behind);
    vault.write("backing", &backing);
    let Some(device) = LoopDevice::new(&vault.path("backing")) else { return };
    let outcome = apply(&vault, &[&vault.arg("0-1"), &device.0]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let found = fs::read(&device.0).unwrap();
    assert!(found[..days[1].len()] == days[1] && found[6 * MIB as usize..] == behind);
}

#[test]
fn another_disk_is_not_written_to() {
    let history = History::new();
    let vault = &history.vault;
    let file = vault.arg("delta");
    export(vault, &history.points[0], &history.points[1], &file, &[]);
    let mut foreign = history.days[0].clone();
    foreign[SIZE as usize - 1] ^= 1;
    for base in [foreign, random(1, SIZE), history.days[2].clone(), vec![1; 100], Vec::new()] {
        let path = vault.write("base", &base);
        let outcome = apply(vault, &[&file, &path]);
        assert_eq!(outcome.code, 5, "{}", outcome.stderr);
        outcome.says(&format!("it is not sda of point {}", history.points[0]));
        assert!(fs::read(&path).unwrap() == base, "it was written to");
    }
    let outcome = apply(vault, &[&file, &vault.arg("missing")]);
    assert_eq!(outcome.code, 1);
    assert!(!vault.path("missing").exists());
}

/// What one run has verified another must not change before it writes.
#[test]
fn two_runs_do_not_get_at_one_base() {
    let history = History::new();
    let vault = &history.vault;
    let file = vault.arg("delta");
    export(vault, &history.points[0], &history.points[1], &file, &[]);
    let base = vault.write("base", &history.days[0]);
    let options = ReuseTarget { size: SIZE, layout: Layout::Raw, force: false, read_only: false };
    let held = Reused::open(vault.path("base").as_path(), options).unwrap();
    let outcome = apply(vault, &[&file, &base]);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    outcome.says("another program holds a lock on it");
    assert!(fs::read(&base).unwrap() == history.days[0]);
    drop(held);
    assert_eq!(apply(vault, &[&file, &base]).code, 0);
}

#[test]
fn a_damaged_delta_changes_nothing() {
    let history = History::new();
    let vault = &history.vault;
    for options in [&[][..], &["--plain"]] {
        let whole = vault.arg(&format!("delta{}", options.len()));
        export(vault, &history.points[0], &history.points[2], &whole, options);
        let bytes = fs::read(&whole).unwrap();
        let base = vault.write("base", &history.days[0]);
        let mut broken: Vec<Vec<u8>> =
            [0, 40, 63, 64, 70, 900, bytes.len() / 2, bytes.len() - 30, bytes.len() - 1]
                .map(|length| bytes[..length].to_vec())
                .into();
        for at in [0, 8, 11, 40, 66, 67, 100, bytes.len() / 2, bytes.len() - 1] {
            let mut other = bytes.clone();
            other[at] ^= 1;
            broken.push(other);
        }
        broken.push([&bytes[..], b"more"].concat());
        for (number, bytes) in broken.into_iter().enumerate() {
            let file = vault.write("broken", &bytes);
            let outcome = apply(vault, &[&file, &base]);
            assert!([5, 12, 13].contains(&outcome.code), "{number}: {}", outcome.stderr);
            assert!(fs::read(&base).unwrap() == history.days[0], "{number}: it was written to");
        }
    }
    let mut command = vault.command(&["apply", &vault.arg("delta0"), &vault.arg("base")]);
    let outcome = finish(command.env("DISKVAULT_DELTA_PASSWORD", "another"));
    assert_eq!(outcome.code, 12, "{}", outcome.stderr);
    outcome.says("wrong password");
    let outcome = apply(vault, &[&vault.write("no-delta", &random(1, 5000)), &vault.arg("base")]);
    assert_eq!(outcome.code, 5);
    outcome.says("is no delta (rule D-1)");
}

#[test]
fn killed_at_any_instant_it_is_gone_on_with() {
    let vault = Vault::new();
    let (old, mut new) = (random(1, 32 * MIB), random(1, 32 * MIB));
    new[MIB as usize..20 * MIB as usize].copy_from_slice(&random(2, 19 * MIB));
    new[25 * MIB as usize..26 * MIB as usize].fill(0);
    let mut points = Vec::new();
    for data in [&old, &new] {
        let disk = vault.write("disk", data);
        points.push(vault.backup("vm", &["--disk", &format!("sda={disk}")]));
    }
    let file = vault.arg("delta");
    export(&vault, &points[0], &points[1], &file, &["--plain"]);
    let journals = vault.path(".cache/diskvault/deltas");
    let mut begun = 0;
    for round in 0..20 {
        let base = vault.write("base", &old);
        let mut command = apply_command(&vault, &[&file, &base]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let is_journal = |name: &String| name.ends_with(".begun");
        let has_begun = || crate::support::files(&journals).iter().any(is_journal);
        assert!(crate::support::poll(&mut child, has_begun) || round > 0, "it never began");
        std::thread::sleep(Duration::from_millis(round));
        child.kill().unwrap();
        child.wait().unwrap();
        if has_begun() {
            // A write that was broken off leaves a part of a change.
            let part = 19 * MIB + 8192..19 * MIB + 16_384;
            let bytes = &new[part.start as usize..part.end as usize];
            write(vault.path("base").as_path(), part.start, bytes);
        }
        let outcome = apply(&vault, &["--json", &file, &base]);
        assert_eq!(outcome.code, 0, "{round}: {}", outcome.stderr);
        assert!(fs::read(&base).unwrap() == new, "round {round}");
        begun += u32::from(outcome.json()["was_begun"] == true);
    }
    assert!(begun >= 5, "hardly any run was killed while it wrote");
    // What looks like it, and was never begun.
    let mut foreign = old.clone();
    foreign[2 * MIB as usize..3 * MIB as usize]
        .copy_from_slice(&new[2 * MIB as usize..3 * MIB as usize]);
    let base = vault.write("base", &foreign);
    let before = fs::read(&base).unwrap();
    assert_eq!(apply(&vault, &[&file, &base]).code, 5);
    assert!(fs::read(&base).unwrap() == before);
}

#[test]
fn what_cannot_be_exported() {
    let history = History::new();
    let vault = &history.vault;
    let (a, b) = (&history.points[0], &history.points[1]);
    let theirs = vault.write("theirs", b"theirs");
    vault.fails(1, &["export-delta", a, b, &theirs, "--plain"], "it exists");
    assert_eq!(fs::read(&theirs).unwrap(), b"theirs");
    // Sealed or plain has to be said where nobody can be asked.
    vault.fails(2, &["export-delta", a, b, &vault.arg("new")], "--delta-password-file");
    assert!(!vault.path("new").exists());
    let note = vault.write("note", b"text");
    vault.ok(&["backup", "--name", "notes", "--stream", &format!("note={note}")]);
    let arguments = ["export-delta", "notes", "notes", &vault.arg("new"), "--plain"];
    vault.fails(2, &arguments, "it is no disk");
}

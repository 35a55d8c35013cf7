//! `benchmark`: what it prints, and that nothing of it stays. No test here looks at the clock.

use crate::support::{MIB, Outcome, Tmpfs, Vault, files, finish, poll, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Options under which it takes a moment.
const SMALL: [&str; 4] = ["--size", "4MiB", "--seconds", "0.02"];

fn small<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&["benchmark"], &SMALL[..], arguments].concat()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn lines(outcome: &Outcome) -> Vec<Value> {
    outcome.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn assert_positive(value: &Value, field: &str) {
    let number = value[field].as_f64();
    assert!(number.is_some_and(|number| number > 0.0 && number.is_finite()), "{field} of {value}");
}

#[test]
fn json_has_all_fields_with_positive_rates() {
    let vault = Vault::new();
    fs::create_dir(vault.path("target")).unwrap();
    let outcome = vault.ok(&small(&["--json", "target"]));
    let lines = lines(&outcome);
    let of_type = |wanted: &str| -> Vec<&Value> {
        lines.iter().filter(|line| line["message_type"] == wanted).collect()
    };
    let machine = of_type("machine");
    assert_eq!(machine.len(), 1);
    for field in ["program", "blake3", "chacha20", "zstd", "data"] {
        assert!(machine[0][field].as_str().is_some_and(|text| !text.is_empty()), "{field}");
    }
    assert_positive(machine[0], "threads");
    let storage = of_type("storage");
    assert_eq!(storage.len(), 1);
    for field in ["object_bytes", "bytes", "write_bytes_per_second", "read_bytes_per_second"] {
        assert_positive(storage[0], field);
    }
    assert_eq!(storage[0]["path"], vault.arg("target"));
    assert!(["dropped", "kept", "unknown"].contains(&storage[0]["page_cache"].as_str().unwrap()));
    for operation in ["put", "get", "list", "delete"] {
        let latency = &storage[0][operation];
        for field in ["median_seconds", "p95_seconds", "rounds"] {
            assert_positive(latency, field);
        }
        assert!(latency["p95_seconds"].as_f64() >= latency["median_seconds"].as_f64());
    }
    let parts = of_type("part");
    let found: BTreeSet<&str> = parts.iter().map(|part| part["name"].as_str().unwrap()).collect();
    for name in ["memory copy", "zero test", "chunk id", "chaining value", "FastCDC", "zstd 1"] {
        assert!(found.contains(name), "{name} in {found:?}");
    }
    assert_eq!((found.len(), parts.len()), (12, 12));
    for part in &parts {
        assert_positive(part, "one_core_bytes_per_second");
        assert_positive(part, "all_cores_bytes_per_second");
        let is_zstd = part["name"].as_str().unwrap().starts_with("zstd");
        assert_eq!(part["ratio"].as_f64().is_some_and(|it| it > 0.0 && it < 1.0), is_zstd);
        assert_eq!(part["level"].is_u64(), is_zstd);
    }
    let works = of_type("work");
    let found: Vec<&str> = works.iter().map(|work| work["name"].as_str().unwrap()).collect();
    assert_eq!(found, ["first backup", "unchanged backup", "restore"]);
    for work in &works {
        for field in ["predicted", "processor", "measured"] {
            assert_positive(work, &format!("{field}_bytes_per_second"));
        }
        assert_positive(work, "measured_bytes");
        assert_positive(work, "measured_seconds");
        assert!(!work["limit"].as_str().unwrap().is_empty());
    }
    assert!(of_type("advice").len() >= 4);
    assert!(names(&vault.path("target")).is_empty());
    assert!(!vault.path("cache").exists(), "the user's cache was written to");
}

#[test]
fn text_names_the_folder_the_limits_and_the_data() {
    let vault = Vault::new();
    fs::create_dir(vault.path("target")).unwrap();
    let outcome = vault.ok(&small(&["--threads", "1", "target"]));
    outcome.prints(&vault.arg("target")).prints("test data: 1/2 text").prints("1 threads");
    outcome.prints("MEASURED").prints("a first backup runs at").prints("a restore runs at");
    assert!(names(&vault.path("target")).is_empty());
    let outcome = vault.ok(&small(&["--quiet", "target"]));
    assert_eq!(outcome.stderr, "");
}

#[test]
fn without_a_path_it_is_the_repository_or_else_this_folder() {
    let vault = Vault::new();
    let before = files(&vault.path(""));
    let mut command = vault.command(&small(&["--json"]));
    let outcome = finish(command.env_remove("DISKVAULT_PASSWORD"));
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert_eq!(lines(&outcome)[1]["path"], vault.arg("repo"));
    let mut command = vault.command(&small(&["--json"]));
    let outcome = finish(command.env_remove("DISKVAULT_REPOSITORY"));
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let here = fs::canonicalize(vault.path("")).unwrap();
    assert_eq!(lines(&outcome)[1]["path"], here.to_str().unwrap());
    assert_eq!(files(&vault.path("")), before);
    vault.assert_intact();
}

#[test]
fn what_cannot_be_measured_is_said() {
    let vault = Vault::without_repository();
    vault.write("file", b"x");
    vault.fails(10, &small(&[]), "no such folder").hints("make the repository first");
    let text = "diskvault: cannot measure the storage at missing: No such file";
    vault.fails(1, &small(&["missing"]), text);
    vault.fails(2, &small(&["file"]), "it is no folder");
    vault.fails(2, &["benchmark", "--size", "1KiB", "."], "at least 1 MiB");
    vault.fails(2, &["benchmark", "--size", "much", "."], "cannot read the size");
    for seconds in ["0", "-1", "NaN", "inf", "99999"] {
        let option = format!("--seconds={seconds}");
        vault.fails(2, &["benchmark", &option, "."], "cannot measure for");
    }
    let text = "MiB are needed";
    vault.fails(6, &["benchmark", "--size", "1000000TiB", "."], text).hints("--size");
    assert_eq!(names(&vault.path("")), ["file"]);
}

#[test]
fn a_read_only_folder_is_an_error() {
    let vault = Vault::without_repository();
    let Some(small_disk) = Tmpfs::new(&vault.path("small"), "size=32m") else { return };
    small_disk.remount("ro");
    vault.fails(1, &small(&["small"]), "Read-only file system").says("cannot write to");
}

#[test]
fn a_folder_that_is_or_runs_full_is_an_error_and_is_left_clean() {
    let vault = Vault::without_repository();
    let at = vault.path("small");
    let Some(small_disk) = Tmpfs::new(&at, "size=8m") else { return };
    vault.fails(6, &["benchmark", "--size", "16MiB", "small"], "MiB are free and");
    assert!(names(&at).is_empty());
    // Room for the bytes and not for the files: what the first look does not see.
    small_disk.remount("size=64m,nr_inodes=6");
    let outcome = vault.fails(6, &small(&["small"]), "No space left on device");
    outcome.says("diskvault: cannot ");
    assert!(names(&at).is_empty());
}

#[test]
fn storage_in_memory_is_called_that() {
    let vault = Vault::without_repository();
    let at = vault.path("small");
    let Some(_small_disk) = Tmpfs::new(&at, "size=64m") else { return };
    let outcome = vault.ok(&small(&["small"]));
    outcome.prints("(tmpfs)").prints("FROM THE PAGE CACHE").prints("this folder is in memory");
    assert!(names(&at).is_empty());
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let vault = Vault::without_repository();
    let at = vault.path("target");
    fs::create_dir(&at).unwrap();
    let long = ["benchmark", "--size", "256MiB", "--seconds", "20", "target"];
    let mut was_interrupted = 0;
    // In the writing, and in the parts of the processor, when the objects are gone again.
    for (signal, moment) in [(Signal::INT, 0), (Signal::TERM, 1)] {
        let mut child = vault.command(&long).spawn().unwrap();
        let mut most = 0;
        let is_running = poll(&mut child, || {
            let now = files(&at).iter().filter(|name| name.contains("/packs/")).count();
            most = most.max(now);
            most > 0 && (moment == 0 || now == 0)
        });
        if is_running {
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            kill_process(pid, signal).unwrap();
        }
        let outcome = wait(child);
        assert!(names(&at).is_empty(), "{:?} was left behind", files(&at));
        if outcome.code == 0 {
            continue;
        }
        was_interrupted += 1;
        assert_eq!(outcome.code, 130, "{outcome:?}");
        assert_eq!(outcome.stderr.lines().last(), Some("diskvault: interrupted"));
    }
    assert!(was_interrupted > 0, "every run was done before it could be interrupted");
}

#[test]
fn a_run_beside_a_repository_takes_no_more_than_it_says() {
    let vault = Vault::without_repository();
    let at = vault.path("small");
    // A quarter more than the data and what the index takes.
    let Some(_small_disk) = Tmpfs::new(&at, "size=16m") else { return };
    let outcome = vault.ok(&["benchmark", "--size", "8MiB", "--seconds", "1", "small"]);
    outcome.prints("measured with a disk of 2.00 MiB");
    assert_eq!(files(&at).len() as u64 * MIB, 0);
}

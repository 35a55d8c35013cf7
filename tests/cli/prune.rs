//! `prune`, as a user meets it.

use crate::support::{MIB, Vault, files, finish, poll, random};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

fn with_three_days(vault: &Vault) -> Vec<String> {
    (1..=3)
        .map(|day| {
            let mut disk = random(1, 4 * MIB);
            disk[..MIB as usize].copy_from_slice(&random(10 + day, MIB));
            let image = vault.write("image", &disk);
            vault.backup("web01", &["--time", &format!("2026-11-0{day}"), &image])
        })
        .collect()
}

#[test]
fn it_says_what_it_will_free_and_what_it_freed() {
    let vault = Vault::new();
    with_three_days(&vault);
    vault.ok(&["prune"]).prints("freed 0 B: 0 packs deleted");
    vault.ok(&["forget", "--keep-last", "1"]);
    vault.ok(&["prune", "--dry-run", "--max-unused", "0%"]).prints("would free about ");
    let plan = vault.json(&["prune", "-n", "--max-unused", "0%"]);
    assert_eq!(
        (plan["message_type"].as_str(), plan["dry_run"].as_bool()),
        (Some("plan"), Some(true))
    );
    let summary = vault.json(&["prune", "--max-unused", "0%"]);
    assert!(summary["freed_bytes"].as_u64().unwrap() > 3 * MIB / 2, "{summary}");
    assert_eq!(summary["waiting"], false);
    let mut disk = random(1, 4 * MIB);
    disk[..MIB as usize].copy_from_slice(&random(13, MIB));
    vault.assert_restores("web01", &disk);
    vault.assert_intact();
    vault.fails(1, &["forget", "--undo", "0000"], "cannot find a forgotten point");
}

#[test]
fn forget_prunes_when_it_is_told_to() {
    let vault = Vault::new();
    with_three_days(&vault);
    let outcome = vault.ok(&["forget", "--keep-last", "1", "--prune"]);
    outcome.prints("forgot 2 points").prints("freed ").prints("packs deleted");
    vault.ok(&["list", "--forgotten"]).prints("0 points");
    vault.assert_intact();
}

#[test]
fn what_makes_no_sense_is_refused() {
    let vault = Vault::new();
    with_three_days(&vault);
    for (arguments, text) in [
        (["--max-unused", "lots"], "cannot read the size"),
        (["--max-unused", "101%"], "cannot read the share"),
        (["--max-repack", "-1"], "unexpected argument"),
        (["--keep-forgotten", "1mo"], "cannot read the duration"),
        (["--lease-timeout", "soon"], "cannot read the duration"),
    ] {
        vault.fails(2, &["prune", arguments[0], arguments[1]], text);
    }
    assert_eq!(vault.point_count(), 3);
    vault.assert_intact();
}

#[test]
fn a_wrong_key_frees_nothing() {
    let vault = Vault::new();
    with_three_days(&vault);
    vault.ok(&["forget", "--keep-last", "1"]);
    let before = files(&vault.repo());
    let mut wrong = vault.command(&["prune"]);
    let outcome = finish(wrong.env("DISKVAULT_PASSWORD", "of another repository"));
    assert_eq!(outcome.code, 12, "{outcome:?}");
    outcome.says("wrong password");
    assert_eq!(files(&vault.repo()), before);
    vault.assert_intact();
}

/// A list that a newer version has put may hold what this one does not know of.
#[test]
fn a_condemned_list_of_a_newer_version_stops_who_would_write() {
    let vault = Vault::new();
    with_three_days(&vault);
    let (list, good) = leave_a_list(&vault);
    let mut newer = good.clone();
    newer[8..10].copy_from_slice(&999_u16.to_le_bytes());
    fs::write(&list, &newer).unwrap();
    let before = files(&vault.repo());
    vault.fails(13, &["prune"], "has format version 999");
    vault.fails(13, &["backup", "--name", "web01", "image"], "has format version 999");
    assert_eq!(files(&vault.repo()), before);
    assert_eq!(fs::read(&list).unwrap(), newer);
    // Reading needs no list.
    vault.ok(&["dump", "web01"]);
    fs::write(&list, good).unwrap();
    vault.ok(&["prune", "--no-wait"]).prints("backups are running");
    vault.assert_intact();
}

/// A prune that waits for nobody beside a backup that was killed leaves its list.
fn leave_a_list(vault: &Vault) -> (PathBuf, Vec<u8>) {
    leave_a_lease(vault);
    vault.ok(&["forget", "--keep-last", "1"]);
    let outcome = vault.ok(&["prune", "--max-unused", "0", "--no-wait"]);
    outcome.prints("backups are running: the next prune on this host frees");
    let list = vault.path("repo/condemned");
    let list = list.join(&files(&list)[0]);
    let bytes = fs::read(&list).unwrap();
    (list, bytes)
}

fn leave_a_lease(vault: &Vault) {
    vault.write("large", &random(5, 100 * MIB));
    let leases = vault.path("repo/leases");
    for _ in 0..10 {
        let mut child = vault.command(&["backup", "--name", "large", "large"]).spawn().unwrap();
        poll(&mut child, || !files(&leases).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        if !files(&leases).is_empty() {
            return;
        }
    }
    panic!("every backup was done before it could be killed");
}

#[test]
fn a_backup_of_a_dead_host_is_taken_off_and_named() {
    let vault = Vault::new();
    with_three_days(&vault);
    leave_a_list(&vault);
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    if uptime.split('.').next().unwrap().parse::<u64>().unwrap() < 200 {
        eprintln!("skipped: this host has not been up for as long as the lease has to stand still");
        return;
    }
    vault.ok(&["prune", "--no-wait", "--lease-timeout", "3min"]).prints("backups are running");
    // As if this host had seen it stand still since it booted.
    let folder = fs::read_dir(vault.path("cache")).unwrap();
    let memory = folder.map(|entry| entry.unwrap().path().join("memory.json"));
    let memory = memory.into_iter().find(|path| path.exists()).unwrap();
    let mut known: Value = serde_json::from_slice(&fs::read(&memory).unwrap()).unwrap();
    known["standing"][0]["since_seconds"] = 0.into();
    fs::write(&memory, known.to_string()).unwrap();
    let outcome = vault.run(&["prune", "--no-wait", "--lease-timeout", "3min"]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    outcome.says("warning: the backup of host ").says("gave no sign of life and was taken off");
    outcome.prints("packs deleted");
    for folder in ["leases", "condemned"] {
        assert!(files(&vault.path("repo").join(folder)).is_empty(), "{folder}");
    }
    vault.assert_intact();
    vault.backup("large", &["large"]);
}

//! `key add --write-only`: what its holder can and cannot do with the real program, here and over SSH.

use crate::far::Far;
use crate::support::{MIB, Outcome, Vault, finish, random};
use serde_json::Value;
use std::process::Command;

const WRITER: &str = "the host's password";
const REFUSED: &str = "is write-only, and can do nothing but back up";

/// Adds a write-only key; its id.
fn add_writer(vault: &Vault, series: &[&str]) -> String {
    let file = vault.write("writer.password", WRITER.as_bytes());
    let mut arguments = vec!["key", "add", "--write-only", "--new-password-file", &file];
    arguments.extend(["--name", "kvm1"]);
    series.iter().for_each(|name| arguments.extend(["--series", name]));
    vault.json(&arguments)["key_id"].as_str().unwrap().to_owned()
}

/// As the host that has nothing but the write-only key, and a cache of its own.
fn as_writer(vault: &Vault, command: &mut Command) -> Outcome {
    finish(
        command
            .env("DISKVAULT_PASSWORD", WRITER)
            .env("DISKVAULT_CACHE_DIR", vault.path("cache-of-the-host")),
    )
}

fn host(vault: &Vault, arguments: &[&str]) -> Outcome {
    as_writer(vault, &mut vault.command(arguments))
}

fn stored(outcome: &Outcome) -> u64 {
    outcome.json()["new_bytes"].as_u64().unwrap()
}

#[test]
fn a_host_backs_up_with_it_and_does_nothing_else() {
    let vault = Vault::new();
    let mut disk = random(1, 4 * MIB);
    let path = vault.write("disk.raw", &disk);
    vault.backup("db", &[&path]);
    let id = add_writer(&vault, &["web*", "app"]);
    let table = vault.ok(&["key", "list"]);
    table.prints("write web*, app").prints("do everything");
    let listed = vault.json(&["key", "list"]);
    let own = listed.as_array().unwrap().iter().find(|key| key["key_id"] == id.as_str()).unwrap();
    assert_eq!((&own["write_only"], &own["series"][1]), (&Value::Bool(true), &Value::from("app")));

    let backup = ["--json", "backup", "--name", "web01", &path];
    let first = host(&vault, &backup);
    assert_eq!((first.code, stored(&first)), (0, 4 * MIB), "{first:?}");
    disk[..100_000].copy_from_slice(&random(2, 100_000));
    vault.write("disk.raw", &disk);
    let second = host(&vault, &backup);
    assert_eq!(second.code, 0, "{second:?}");
    assert!(stored(&second) < 200_000, "{second:?}");
    let seen = host(&vault, &["list"]);
    seen.prints("2 points").prints("web01");

    let target = vault.arg("out");
    for arguments in [
        &["restore", "web01", &target][..],
        &["dump", "web01/disk.raw"],
        &["list", "--forgotten"],
        &["check"],
        &["prune"],
        &["forget", "web01@latest"],
        &["repair", "objects"],
        &["key", "list"],
        &["stats"],
        &["pin", "web01@latest"],
    ] {
        let outcome = host(&vault, arguments);
        assert_eq!(outcome.code, 2, "{arguments:?}: {outcome:?}");
        outcome.says(REFUSED).hints("use a password or recovery key that may read");
    }
    let mirror = host(&vault, &["backup", "--name", "web01", &path, "--then-mirror", &target]);
    assert_eq!(mirror.code, 2, "{mirror:?}");
    let other = host(&vault, &["backup", "--name", "db", &path]);
    assert_eq!(other.code, 2, "{other:?}");
    other.says("cannot back up to series db: this key may write to web*, app only");

    assert_eq!(vault.point_count(), 3, "and no more");
    vault.assert_restores("web01", &disk);
    vault.assert_intact();
}

#[test]
fn a_removed_one_keeps_its_points_and_opens_nothing() {
    let vault = Vault::new();
    let disk = random(1, MIB);
    let path = vault.write("disk.raw", &disk);
    let id = add_writer(&vault, &[]);
    assert_eq!(host(&vault, &["backup", "--name", "web01", &path]).code, 0);
    vault.ok(&["key", "remove", &id[..8]]);
    assert_eq!(host(&vault, &["backup", "--name", "web01", &path]).code, 12);
    vault.assert_restores("web01", &disk);
    vault.assert_intact();
}

#[test]
fn series_that_cannot_be_and_options_that_do_not_fit_are_refused() {
    let vault = Vault::new();
    let file = vault.write("writer.password", WRITER.as_bytes());
    let add = ["key", "add", "--write-only", "--new-password-file", &file, "--series", "a/b"];
    vault.fails(2, &add, "cannot add a writer").says("no series can be named a/b");
    let without = ["key", "add", "--new-password-file", &file, "--series", "web"];
    assert_eq!(vault.run(&without).code, 2);
    let recovery = ["key", "add", "--write-only", "--recovery-key-file", &vault.arg("key")];
    assert_eq!(vault.run(&recovery).code, 2);
    assert_eq!(vault.json(&["key", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn over_a_line_that_may_only_add_points_a_stolen_host_gives_nothing_away() {
    let Some(far) = Far::new() else { return };
    let vault = &far.vault;
    let secret = random(7, MIB);
    let others = vault.write("others.raw", &secret);
    vault.backup("db", &[&others]);
    add_writer(vault, &["web*"]);
    let mut disk = random(1, 4 * MIB);
    let path = vault.write("disk.raw", &disk);
    let run =
        |arguments: &[&str]| as_writer(vault, &mut far.command("append", &vault.repo(), arguments));
    let backup = ["--json", "backup", "--name", "web01", &path];
    for day in 0..3 {
        disk[..50_000].copy_from_slice(&random(10 + day, 50_000));
        vault.write("disk.raw", &disk);
        let made = run(&backup);
        assert_eq!(made.code, 0, "{made:?}");
        assert!(day == 0 || stored(&made) < 100_000, "{made:?}");
    }
    let target = vault.arg("stolen");
    for arguments in [
        &["restore", "db", &target][..],
        &["restore", "web01", &target],
        &["forget", "db@latest"],
        &["prune"],
    ] {
        let outcome = run(arguments);
        assert_eq!(outcome.code, 2, "{outcome:?}");
        outcome.says(REFUSED);
    }
    vault.assert_restores("db", &secret);
    vault.assert_restores("web01", &disk);
    vault.assert_intact();
}

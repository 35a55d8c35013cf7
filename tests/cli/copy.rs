//! `copy`, as a user meets it: two repositories with passwords of their own.

use crate::support::{MIB, Outcome, Vault, finish, random};
use diskvault::environment::SystemEnvironment;
use diskvault::repository::secrets::Passphrase;
use diskvault::repository::{InitOptions, initialise};
use diskvault::storage::local::LocalStorage;
use diskvault_format::key_slot::KdfCost;
use serde_json::Value;

/// The password of the target.
const OTHER: &str = "staple of the other";

/// A vault with three days of a machine and one of another, and an empty repository `other` on
/// another grid.
fn with_two_repositories() -> Vault {
    let vault = Vault::new();
    let storage = LocalStorage::create(&vault.path("other")).unwrap();
    let options = InitOptions {
        passphrase: &Passphrase::new(OTHER.into()),
        recovery: None,
        chunk_bytes: Some(16 << 10),
        pack_bytes: None,
        parity_per_mille: 0,
        cost: KdfCost::RECOVERY,
        host: "test",
    };
    initialise(&storage, &SystemEnvironment, &options).unwrap();
    vault.write("password", PASSWORD_LINE.as_bytes());
    let mut disk = random(1, 4 * MIB);
    for day in 1..=3 {
        disk[..MIB as usize].copy_from_slice(&random(10 + day, MIB));
        let (image, notes) = (vault.write("vda", &disk), vault.write("notes", b"some notes"));
        vault.backup("web01", &["--time", &format!("2026-11-0{day}"), &image, &notes]);
    }
    let image = vault.write("sda", &random(2, MIB));
    vault.backup("db", &["--tag", "rack=7", &image]);
    vault
}

const PASSWORD_LINE: &str = concat!("correct horse battery", "\n");

/// Runs a command on `other`, which has its own password.
fn on_other(vault: &Vault, arguments: &[&str]) -> Outcome {
    let mut command = vault.command(arguments);
    command.env("DISKVAULT_REPOSITORY", vault.path("other")).env("DISKVAULT_PASSWORD", OTHER);
    finish(&mut command)
}

/// Copies with these further arguments.
fn copy(vault: &Vault, arguments: &[&str]) -> Outcome {
    let (repo, password) = (vault.arg("repo"), vault.arg("password"));
    let fixed = ["copy", "--from-repo", &repo, "--from-password-file", &password];
    on_other(vault, &[&fixed, arguments].concat())
}

fn ok(outcome: Outcome) -> Outcome {
    assert_eq!(outcome.code, 0, "{outcome:?}");
    outcome
}

fn lines(outcome: &Outcome) -> Vec<Value> {
    outcome.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn all_points_come_over_and_only_once() {
    let vault = with_two_repositories();
    ok(copy(&vault, &["--dry-run"])).prints("would copy 4 points; 0 are there already");
    assert!(ok(on_other(&vault, &["list"])).text().contains("0 points"));
    ok(copy(&vault, &[])).prints("copied 4 points, 0 were there already");
    ok(on_other(&vault, &["check", "--read-data"])).prints("no damage found");
    for address in ["web01@2026-11-01/vda", "web01/vda", "db"] {
        let (here, there) =
            (vault.ok(&["digest", address]), on_other(&vault, &["digest", address]));
        let digest = |outcome: &Outcome| outcome.text().split(' ').next().unwrap().to_string();
        assert_eq!(digest(&here), digest(&there), "{address}");
        let bytes = on_other(&vault, &["dump", address]).stdout;
        assert!(vault.ok(&["dump", address]).stdout == bytes, "{address}");
    }
    let shown = ok(on_other(&vault, &["--json", "show", "db"])).json();
    assert_eq!(shown["tags"]["rack"], "7");
    assert!(shown["tags"]["copied-from"].as_str().unwrap().len() == 25, "{shown}");
    assert!(shown["disks"][0]["chunking"].as_str().unwrap().contains("64.0 KiB"), "{shown}");
    ok(copy(&vault, &[])).prints("copied 0 points, 4 were there already: 0 B read");
    ok(copy(&vault, &["-n"])).prints("would copy 0 points; 4 are there already");
}

#[test]
fn json_says_what_became_of_each_point() {
    let vault = with_two_repositories();
    let plan = lines(&ok(copy(&vault, &["--json", "-n", "--series", "web01"])));
    let actions: Vec<_> = plan.iter().map(|line| line["action"].as_str().unwrap_or("-")).collect();
    assert_eq!(actions, ["copy", "copy", "copy", "-"]);
    let done = lines(&ok(copy(&vault, &["--json", "web01@latest~1"])));
    assert_eq!((done.len(), &done[0]["message_type"]), (2, &"copied".into()));
    assert_eq!(done[0]["read_bytes"].as_u64(), Some(4 * MIB + 10));
    let rest = lines(&ok(copy(&vault, &["--json", "--series", "web01"])));
    let types: Vec<_> = rest.iter().map(|line| line["message_type"].as_str().unwrap()).collect();
    assert_eq!(types, ["copied", "skipped", "copied", "summary"]);
    // Only what differs is read: 1 MiB of each, since the notes are known, too.
    assert!(rest[2]["unchanged_bytes"].as_u64().unwrap() >= 3 * MIB, "{rest:?}");
    assert!(rest[2]["read_bytes"].as_u64().unwrap() <= MIB + 10, "{rest:?}");
    let summary = &rest[3];
    assert_eq!((&summary["copied"], &summary["present"]), (&2.into(), &1.into()));
    // The one that came first stands between the others.
    let listed = ok(on_other(&vault, &["--json", "list"])).json();
    let times: Vec<_> =
        listed.as_array().unwrap().iter().map(|point| point["time"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn the_environment_names_the_source() {
    let vault = with_two_repositories();
    let mut command = vault.command(&["copy", "db"]);
    command
        .env("DISKVAULT_REPOSITORY", vault.path("other"))
        .env("DISKVAULT_PASSWORD", OTHER)
        .env("DISKVAULT_FROM_REPOSITORY", vault.path("repo"))
        .env("DISKVAULT_FROM_PASSWORD_COMMAND", format!("cat {}", vault.arg("password")));
    ok(finish(&mut command)).prints("copied 1 point");
}

#[test]
fn errors_say_which_of_the_two_it_is() {
    let vault = with_two_repositories();
    let wrong = vault.write("wrong", b"not it\n");
    let (repo, password) = (vault.arg("repo"), vault.arg("password"));
    let missing = vault.arg("missing");
    let from = |repo: &str, password: &str| {
        on_other(&vault, &["copy", "--from-repo", repo, "--from-password-file", password])
    };
    let outcome = from(&repo, &wrong);
    assert_eq!(outcome.code, 12, "{outcome:?}");
    outcome.says("cannot open the source repository");
    let outcome = from(&missing, &password);
    assert_eq!(outcome.code, 10, "{outcome:?}");
    outcome.says("cannot open the source repository");
    assert!(!outcome.stderr.contains("init"), "no hint to make one: {outcome:?}");
    let mut command =
        vault.command(&["copy", "--from-repo", &repo, "--from-password-file", &password]);
    command.env("DISKVAULT_REPOSITORY", vault.path("other")).env("DISKVAULT_PASSWORD", "not it");
    let outcome = finish(&mut command);
    assert_eq!(outcome.code, 12, "{outcome:?}");
    outcome.says("cannot open the target repository");
    let outcome = on_other(&vault, &["copy", "--from-repo", &repo]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    outcome.says("there is no terminal").hints("--from-password-file");
    let outcome = on_other(&vault, &["copy"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    outcome.hints("--from-repo");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let vault = with_two_repositories();
    let refused = |code: i32, arguments: &[&str], text: &str| {
        let outcome = copy(&vault, arguments);
        assert_eq!(outcome.code, code, "{outcome:?}");
        outcome.says(text);
    };
    refused(1, &["web02"], "cannot find a series or point named web02");
    refused(1, &["--series", "web02"], "cannot find a series named web02 in the source");
    refused(2, &["web01/vda"], "points are copied as a whole");
    refused(2, &["--series", "web01", "web01"], "cannot be used with");
    refused(2, &["--compression", "99"], "expected off, auto");
    refused(2, &["--from-repository-file", "x"], "cannot be used with");
    let (repo, password) = (vault.arg("repo"), vault.arg("password"));
    let itself = ["copy", "--from-repo", &repo, "--from-password-file", &password];
    vault.fails(2, &itself, "cannot copy a repository into itself");
    assert!(ok(on_other(&vault, &["list"])).text().contains("0 points"));
}

#[test]
fn a_damaged_point_is_left_out_and_the_rest_comes() {
    let vault = with_two_repositories();
    let packs = vault.repo().join("packs");
    let before = crate::support::files(&packs);
    let image = vault.write("bad", &random(9, MIB));
    vault.backup("bad", &[&image]);
    for name in crate::support::files(&packs).iter().filter(|name| !before.contains(name)) {
        let path = packs.join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 3;
        bytes[middle] ^= 1;
        let mut permissions = std::fs::metadata(&path).unwrap().permissions();
        #[allow(clippy::permissions_set_readonly_false, reason = "a file of this test alone")]
        permissions.set_readonly(false);
        std::fs::set_permissions(&path, permissions).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    let outcome = copy(&vault, &[]);
    assert_eq!(outcome.code, 5, "{outcome:?}");
    outcome.says("1 point was not copied").prints("copied 4 points");
    assert_eq!(ok(on_other(&vault, &["--json", "list"])).json().as_array().unwrap().len(), 4);
}

#[test]
fn a_point_with_a_damaged_manifest_is_told_and_the_rest_comes() {
    let vault = with_two_repositories();
    let image = vault.write("bad", &random(9, MIB));
    let id = vault.backup("bad", &[&image]);
    let path = vault.repo().join("points").join(&id);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[60] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let outcome = copy(&vault, &[]);
    assert_eq!(outcome.code, 5, "{outcome:?}");
    outcome.says("1 point was not copied").says(&id).prints("copied 4 points");
}

//! `sync`, as a user meets it: a repository, and a replica of it on another disk.

use crate::support::{MIB, Outcome, Vault, finish, random};
use serde_json::Value;

fn vault() -> Vault {
    let vault = Vault::new();
    for day in 1..=2 {
        let image = vault.write("vda", &random(day, MIB));
        vault.backup("web01", &["--time", &format!("2026-11-0{day}"), &image]);
    }
    let image = vault.write("sda", &random(9, MIB));
    vault.backup("db", &[&image]);
    vault
}

/// Runs a command on the replica.
fn on_replica(vault: &Vault, arguments: &[&str]) -> Outcome {
    let mut command = vault.command(arguments);
    command.env("DISKVAULT_REPOSITORY", vault.path("replica"));
    finish(&mut command)
}

fn sync(vault: &Vault, arguments: &[&str]) -> Outcome {
    let repo = vault.arg("repo");
    on_replica(vault, &[&["sync", "--from-repo", &repo], arguments].concat())
}

fn ok(outcome: Outcome) -> Outcome {
    assert_eq!(outcome.code, 0, "{outcome:?}");
    outcome
}

#[test]
fn a_replica_is_made_and_brought_up_and_used_like_its_source() {
    let vault = vault();
    let outcome = sync(&vault, &[]);
    assert_eq!(outcome.code, 10, "{outcome:?}");
    assert!(!vault.path("replica").exists());
    ok(sync(&vault, &["--init"])).prints("synced 3 points, ").prints("; 0 were there");
    // Both are used in turn by one host, and none of them is taken for the other gone back.
    for _ in 0..2 {
        assert_eq!(ok(on_replica(&vault, &["list"])).stderr, "");
        assert_eq!(vault.ok(&["list"]).stderr, "");
    }
    ok(on_replica(&vault, &["check", "--read-data"])).prints("no damage found");
    let bytes = ok(on_replica(&vault, &["dump", "web01/vda"])).stdout;
    assert!(bytes == vault.ok(&["dump", "web01/vda"]).stdout);
    let again = sync(&vault, &["--init"]);
    assert_eq!(again.code, 1);
    again.says("cannot create repository ").says("the folder is not empty");
    let image = vault.write("vda", &random(3, MIB));
    vault.backup("web01", &[&image]);
    ok(sync(&vault, &["--dry-run"])).prints("would sync 1 points; 3 are there already");
    let outcome = ok(sync(&vault, &["--json", "--series", "web01"]));
    let lines: Vec<Value> =
        outcome.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (&lines[0]["message_type"], &lines[0]["series"]),
        (&"synced".into(), &"web01".into())
    );
    assert_eq!((&lines[1]["synced"], &lines[1]["present"]), (&1.into(), &2.into()));
    let unknown = sync(&vault, &["--series", "mail"]);
    assert_eq!(unknown.code, 1);
    unknown.says("cannot find a series named mail in the source");
}

#[test]
fn a_change_of_the_password_goes_over_with_the_points() {
    let vault = vault();
    ok(sync(&vault, &["--init"]));
    vault.write("new", b"staple\n");
    vault.ok(&["key", "passwd", "--new-password-file", &vault.arg("new")]);
    let mut command = vault.command(&["sync", "--from-repo", &vault.arg("repo")]);
    command.env("DISKVAULT_REPOSITORY", vault.path("replica")).env("DISKVAULT_PASSWORD", "staple");
    ok(finish(&mut command));
    assert_eq!(on_replica(&vault, &["list"]).code, 12, "the old password opens nothing");
    let mut command = vault.command(&["list"]);
    command.env("DISKVAULT_REPOSITORY", vault.path("replica")).env("DISKVAULT_PASSWORD", "staple");
    ok(finish(&mut command));
}

#[test]
fn what_is_no_replica_is_not_written_to() {
    let vault = vault();
    crate::support::copy_folder(&vault.repo(), &vault.path("replica"));
    let twins = sync(&vault, &[]);
    assert_eq!(twins.code, 2, "{twins:?}");
    twins.says("both are copy ").hints("repair objects`");
    // As the hint says.
    std::fs::remove_file(vault.path("replica/instance")).unwrap();
    assert_eq!(ok(on_replica(&vault, &["repair", "objects"])).code, 0);
    let image = vault.write("vda", &random(7, MIB));
    vault.backup("web01", &[&image]);
    ok(sync(&vault, &[])).prints("synced 1 point, ").prints("; 3 were there");
    let mut command = vault.command(&["init", "--no-recovery-key"]);
    command.env("DISKVAULT_REPOSITORY", vault.path("other"));
    ok(finish(&mut command));
    let mut command = vault.command(&["sync", "--from-repo", &vault.arg("repo")]);
    command.env("DISKVAULT_REPOSITORY", vault.path("other"));
    let outcome = finish(&mut command);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    outcome.says("it is repository ").hints("`diskvault copy`");
}

#[test]
fn copies_whose_keys_were_changed_in_both_are_told() {
    let vault = vault();
    ok(sync(&vault, &["--init"]));
    vault.write("new", b"staple\n");
    let add = ["key", "add", "--new-password-file", &vault.arg("new")];
    vault.ok(&add);
    ok(on_replica(&vault, &add));
    let image = vault.write("vda", &random(7, MIB));
    vault.backup("web01", &[&image]);
    let outcome = sync(&vault, &[]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    outcome.says("the two have drifted apart").hints("change the keys");
    // Both are as they were, and as the hint says it goes on.
    vault.assert_intact();
    ok(on_replica(&vault, &["check", "--read-data"])).prints("no damage found");
    vault.ok(&add);
    ok(sync(&vault, &[])).prints("synced 1 point, ");
}

/// An image of some years ago, the name of the disk that it was, and the first backup of that.
#[test]
fn an_adopted_image_is_what_the_first_backup_is_compared_with() {
    let vault = Vault::new();
    let mut disk = random(4, 8 * MIB);
    let old = vault.write("old.img", &disk);
    let written = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_600_000_000);
    std::fs::File::options().write(true).open(&old).unwrap().set_modified(written).unwrap();
    vault.ok(&["adopt", "--name", "mail", "--disk", &format!("vda={old}")]);
    vault.ok(&["list"]).prints("2020-09-13");
    disk[..100_000].copy_from_slice(&random(5, 100_000));
    let image = vault.write("vda", &disk);
    let outcome = vault.ok(&["backup", "--json", "--name", "mail", &image]);
    let summary: Value = serde_json::from_str(outcome.text().lines().last().unwrap()).unwrap();
    let new = summary["new_bytes"].as_u64().unwrap();
    assert!((100_000..=4 * 32768).contains(&new), "{summary}");
    assert!(vault.ok(&["dump", "mail/vda"]).stdout == disk);
    assert!(vault.ok(&["dump", "mail@latest~1/vda"]).stdout == std::fs::read(&old).unwrap());
    vault.fails(1, &["adopt", "--name", "mail", "missing.img"], "cannot adopt missing.img: ");
}

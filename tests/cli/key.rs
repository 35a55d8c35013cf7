//! `key`: adding, listing, changing, removing and exporting.

use crate::support::{Outcome, PASSWORD, Vault, finish, random};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn list_with(vault: &Vault, password: &str) -> Outcome {
    finish(vault.command(&["list"]).env("DISKVAULT_PASSWORD", password))
}

fn keys(vault: &Vault) -> Vec<Value> {
    vault.json(&["key", "list"]).as_array().unwrap().clone()
}

#[test]
fn passwords_come_and_go() {
    let vault = Vault::new();
    let content = random(1, 100_000);
    let file = vault.write("file", &content);
    vault.backup("a", &[&file]);
    let second = vault.write("second", b"second password\n");
    let added =
        vault.json(&["key", "add", "--new-password-file", &second, "--name", "night shift"]);
    assert_eq!(added["message_type"], "key_added");
    let id = added["key_id"].as_str().unwrap();
    assert_eq!(list_with(&vault, "second password").code, 0);
    vault.ok(&["list"]);
    let listed = keys(&vault);
    assert_eq!(listed.len(), 2);
    for key in &listed {
        assert_eq!(key["kind"], "password");
        assert_eq!(key["is_current"], key["key_id"] != id);
    }
    let night = listed.iter().find(|key| key["key_id"] == id).unwrap();
    assert_eq!(night["name"], "night shift");
    let table = vault.ok(&["key", "list"]);
    table.prints(&id[..8]).prints("night shift");

    vault.fails(1, &["key", "remove", "zz"], "cannot find key slot zz").hints("key list");
    vault.fails(1, &["key", "remove", ""], "cannot find key slot");
    vault.ok(&["key", "remove", &id[..8]]).prints("removed key");
    assert_eq!(list_with(&vault, "second password").code, 12);
    assert!(!vault.path("repo/keys").join(id).exists());
    vault.assert_restores("a", &content);
    vault.assert_intact();
}

#[test]
fn the_last_key_stays() {
    let vault = Vault::new();
    let only = keys(&vault)[0]["key_id"].as_str().unwrap().to_string();
    let outcome = vault.fails(2, &["key", "remove", &only], "cannot remove the last key slot");
    outcome.says("nobody could open the repository");
    vault.ok(&["list"]);
    assert_eq!(keys(&vault).len(), 1);
}

#[test]
fn a_changed_password_replaces_the_old_one() {
    let vault = Vault::new();
    let new = vault.write("new", b"the new one\n");
    vault.ok(&["key", "passwd", "--new-password-file", &new]).prints("changed key");
    let outcome = vault.run(&["list"]);
    assert_eq!(outcome.code, 12, "{}", outcome.stderr);
    assert_eq!(list_with(&vault, "the new one").code, 0);
    // From the environment, as a service has it.
    let mut command = vault.command(&["key", "passwd"]);
    command.env("DISKVAULT_PASSWORD", "the new one").env("DISKVAULT_NEW_PASSWORD", PASSWORD);
    let outcome = finish(&mut command);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    vault.ok(&["list"]);
    assert_eq!(keys(&vault).len(), 1);
    let stored = fs::read_dir(vault.path("repo/keys")).unwrap().count();
    assert_eq!(stored, 1, "old slots are left behind");
    vault.assert_intact();
}

/// What somebody does who forgot the password.
#[test]
fn a_password_changed_with_the_recovery_key_leaves_it() {
    let vault = Vault::new();
    vault.ok(&["key", "add", "--recovery-key-file", "recovery", "--name", "on paper"]);
    let key = fs::read_to_string(vault.path("recovery")).unwrap();
    let new = vault.write("new", b"the new one\n");
    let mut command = vault.command(&["key", "passwd", "--new-password-file", &new]);
    let outcome = finish(command.env("DISKVAULT_PASSWORD", key.trim()));
    assert_eq!(outcome.code, 0, "{outcome:?}");
    outcome.prints("added key").says("the recovery key stays");
    for password in [key.trim(), "the new one", PASSWORD] {
        assert_eq!(list_with(&vault, password).code, 0);
    }
    let listed = keys(&vault);
    let recovery = |key: &&Value| key["kind"] == "recovery key";
    assert_eq!(listed.iter().filter(recovery).count(), 1);
    let added = listed.iter().find(|key| key["name"] == "password").unwrap();
    assert_eq!(added["kind"], "password");
    assert_eq!(listed.len(), 3);
}

#[test]
fn a_refused_change_changes_nothing() {
    let vault = Vault::new();
    let empty = vault.write("empty", b"\n");
    for command in ["add", "passwd"] {
        let arguments = ["key", command, "--new-password-file", &empty];
        vault.fails(1, &arguments, "it is empty");
        vault.fails(2, &["key", command], "cannot ask for a password: there is no terminal");
    }
    vault.write("taken", b"mine");
    let arguments = ["key", "add", "--recovery-key-file", "taken"];
    vault.fails(1, &arguments, "cannot write taken: File exists");
    assert_eq!(fs::read(vault.path("taken")).unwrap(), b"mine");
    assert_eq!(keys(&vault).len(), 1);
    vault.assert_intact();
}

#[test]
fn a_recovery_key_can_be_added() {
    let vault = Vault::new();
    let outcome = vault.ok(&["key", "add", "--recovery-key-file", "recovery", "--name", "safe"]);
    let text = fs::read_to_string(vault.path("recovery")).unwrap();
    let mode = fs::metadata(vault.path("recovery")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!outcome.text().contains(text.trim()) && !outcome.stderr.contains(text.trim()));
    let typed = text.trim().to_lowercase().replace('-', " ");
    assert_eq!(list_with(&vault, &typed).code, 0);
    assert!(keys(&vault).iter().any(|key| key["kind"] == "recovery key"));
}

/// The slot counts once its config is stored; that this host cannot remember it changes nothing.
#[test]
fn a_key_counts_although_this_host_cannot_remember_it() {
    let vault = Vault::new();
    vault.ok(&["list"]);
    let cache = fs::read_dir(vault.path("cache")).unwrap().next().unwrap().unwrap().path();
    // The memory can be read and not be replaced.
    fs::create_dir(cache.join("memory.json.new")).unwrap();
    let outcome = vault.run(&["key", "add", "--recovery-key-file", "recovery"]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    outcome.says("warning: cannot write ").says("this host will not remember").prints("added key");
    fs::remove_dir(cache.join("memory.json.new")).unwrap();
    let key = fs::read_to_string(vault.path("recovery")).unwrap();
    assert_eq!(list_with(&vault, key.trim()).code, 0);
}

#[test]
fn an_exported_slot_replaces_a_lost_one() {
    let vault = Vault::new();
    let id = keys(&vault)[0]["key_id"].as_str().unwrap().to_string();
    let stored = vault.path("repo/keys").join(&id);
    let bytes = fs::read(&stored).unwrap();
    vault.ok(&["key", "export", "slot"]).prints("exported key");
    assert_eq!(fs::read(vault.path("slot")).unwrap(), bytes);
    let mode = fs::metadata(vault.path("slot")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(vault.ok(&["key", "export", "-"]).stdout, bytes);
    vault.fails(1, &["key", "export", "slot"], "cannot write slot: File exists");

    fs::remove_file(&stored).unwrap();
    let outcome = vault.run(&["list"]);
    assert_eq!(outcome.code, 5, "a lost slot is no wrong password: {}", outcome.stderr);
    outcome.says(&id);
    fs::copy(vault.path("slot"), &stored).unwrap();
    vault.ok(&["list"]);
    vault.assert_intact();
}

#[test]
fn an_ambiguous_key_is_not_removed() {
    let vault = Vault::new();
    // Of 17 ids two start with the same digit.
    for number in 0..17 {
        let file = format!("recovery{number}");
        let added = vault.json(&["key", "add", "--recovery-key-file", &file]);
        let digit = added["key_id"].as_str().unwrap()[..1].to_string();
        let fits = |key: &&Value| key["key_id"].as_str().unwrap().starts_with(&digit);
        let before = keys(&vault);
        if before.iter().filter(fits).count() > 1 {
            let text = "cannot choose a key slot: several ids start with ";
            vault.fails(2, &["key", "remove", &digit], text);
            assert_eq!(keys(&vault), before);
            return;
        }
    }
    panic!("18 ids have 18 different first digits");
}

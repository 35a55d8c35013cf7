//! `init`: what it refuses, what it leaves behind, and the recovery key.

use crate::support::{Outcome, Vault, files, finish, random};
use crate::terminal::{Terminal, on_terminal};
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn without_terminal_and_flags_nothing_is_made() {
    let vault = Vault::without_repository();
    vault
        .fails(2, &["init"], "diskvault: cannot show the recovery key: there is no terminal")
        .hints("--no-recovery-key");
    let both = ["init", "--no-recovery-key", "--recovery-key-file", "key"];
    assert_eq!(vault.run(&both).code, 2);
    assert!(files(&vault.path("")).is_empty());
    assert!(!vault.repo().exists());
}

#[test]
fn bad_chunk_sizes_make_nothing() {
    let vault = Vault::without_repository();
    for size in ["0", "1", "65537", "2KiB", "8MiB", "4GiB", "99999999999999999999", "-1", "x", ""] {
        let option = format!("--chunk-size={size}");
        let outcome = vault.run(&["init", "--recovery-key-file", "key", &option]);
        assert_eq!(outcome.code, 2, "{size}: {}", outcome.stderr);
        outcome.says("cannot ");
    }
    assert!(files(&vault.path("")).is_empty());
    assert!(!vault.repo().exists());
}

#[test]
fn the_chunk_size_counts() {
    let vault = Vault::without_repository();
    let made = vault.json(&["init", "--no-recovery-key", "--chunk-size", "4KiB"]);
    assert_eq!(made["message_type"], "initialized");
    assert_eq!(made["chunk_bytes"], 4096);
    assert_eq!(made["key_slots"].as_array().unwrap().len(), 1);
    let outcome = vault.ok(&["init", "--no-recovery-key", "--repo", "second"]);
    outcome.says("without the password nobody can read it again");
    let disk = vault.write("disk", &random(1, 1 << 20));
    let summary = vault.json(&["backup", "--name", "a", &disk]);
    assert_eq!(summary["new_chunks"], 256);
}

#[test]
fn bad_shares_of_parity_make_nothing() {
    let vault = Vault::without_repository();
    let bad = [
        "",
        "2",
        "%",
        "0%",
        "0.0%",
        "0.05%",
        "50.1%",
        "51%",
        "-1%",
        "+2%",
        "2 %",
        "2.%",
        ".5%",
        "x%",
        "1e1%",
        "2%%",
        "99999999999999999999%",
        "2.+%",
    ];
    for share in bad {
        let option = format!("--parity={share}");
        let outcome = vault.run(&["init", "--recovery-key-file", "key", &option]);
        assert_eq!(outcome.code, 2, "{share}: {}", outcome.stderr);
        outcome.says("cannot add parity of ").says("from 0.1% to 50%");
    }
    assert!(files(&vault.path("")).is_empty());
    assert!(!vault.repo().exists());
}

#[test]
fn parity_is_told_and_written_for_every_pack() {
    let vault = Vault::without_repository();
    for (share, per_mille) in [("0.1%", 1), ("0.5%", 5), ("50%", 500), ("50.0%", 500)] {
        let path = format!("with-{share}");
        let init = ["init", "--no-recovery-key", "--parity", share, "--repo", &path];
        assert_eq!(vault.json(&init)["parity_per_mille"], per_mille, "{share}");
    }
    let plain = vault.json(&["init", "--no-recovery-key", "--repo", "plain"]);
    assert_eq!(plain["parity_per_mille"], 0);
    let half = ["init", "--no-recovery-key", "--parity=2.5%", "--repo", "half"];
    vault.ok(&half).prints(", parity of 2.5%, 1 key slots");
    vault.ok(&["init", "--no-recovery-key", "--parity", "2%"]).prints(", parity of 2%, 1 key");
    let disk = vault.write("disk", &random(1, 1 << 20));
    let stored = vault.json(&["backup", "--name", "a", &disk])["stored_bytes"].as_u64().unwrap();
    let repository = files(&vault.repo());
    let below = |folder: &str| {
        let there = repository.iter().filter(|path| path.starts_with(folder));
        let bytes = |path: &String| fs::metadata(vault.repo().join(path)).unwrap().len();
        there.map(bytes).collect::<Vec<_>>()
    };
    let (packs, parity) = (below("packs/"), below("parity/"));
    assert!(packs.len() == parity.len() && packs.len() >= 2, "{packs:?} {parity:?}");
    assert_eq!(stored, packs.iter().chain(&parity).sum::<u64>());
    vault.ok(&["check", "--read-data"]).prints("no damage found");
}

/// Runs with `password` in place of the usual one.
fn list_with(vault: &Vault, password: &str) -> Outcome {
    finish(vault.command(&["list"]).env("DISKVAULT_PASSWORD", password))
}

#[test]
fn the_recovery_key_is_private_and_opens_the_repository() {
    let vault = Vault::without_repository();
    let file = vault.path("recovery");
    let made = vault.ok(&["init", "--recovery-key-file", file.to_str().unwrap()]);
    made.prints("2 key slots");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&file).unwrap();
    let key = text.strip_suffix('\n').unwrap();
    assert!(key.starts_with("DVRK-") && key.len() == 44, "the key has another form");
    for output in [made.text(), made.stderr.clone()] {
        assert!(!output.contains("DVRK") && !output.contains(&key[5..]));
    }
    vault.ok(&["list"]);
    vault.ok(&["list", "--password-file", file.to_str().unwrap()]);
    let careless = key.to_lowercase().replace('-', " ");
    for typed in [key, &careless, &key.replace('-', ""), &format!("  {key} ")] {
        let outcome = list_with(&vault, typed);
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    }
    let mut wrong = key.to_string();
    let last = if wrong.pop() == Some('0') { '1' } else { '0' };
    wrong.push(last);
    let outcome = list_with(&vault, &wrong);
    assert_eq!(outcome.code, 12);
    assert!(!outcome.stderr.contains(&wrong), "a secret was printed");
}

#[test]
fn what_is_there_is_kept() {
    let vault = Vault::new();
    let before = files(&vault.repo());
    let arguments = ["init", "--recovery-key-file", "recovery"];
    vault.fails(1, &arguments, "cannot create repository ").says("the folder is not empty");
    assert!(!vault.path("recovery").exists());
    assert_eq!(files(&vault.repo()), before);
    vault.ok(&["list"]);

    fs::create_dir(vault.path("other")).unwrap();
    vault.write("other/letter", b"dear");
    let other = vault.arg("other");
    vault.fails(1, &["init", "--repo", &other, "--no-recovery-key"], "the folder is not empty");
    assert_eq!(files(&vault.path("other")), ["letter"]);

    let file = vault.write("file", b"x");
    let arguments = ["init", "--repo", &file, "--recovery-key-file", "recovery"];
    vault.fails(1, &arguments, "cannot create repository ");
    assert!(!vault.path("recovery").exists());
    assert_eq!(fs::read(&file).unwrap(), b"x");
}

#[test]
fn an_existing_recovery_file_is_kept() {
    let vault = Vault::without_repository();
    vault.write("recovery", b"older key");
    let arguments = ["init", "--recovery-key-file", "recovery"];
    vault.fails(1, &arguments, "cannot write recovery key file recovery: File exists");
    assert_eq!(fs::read(vault.path("recovery")).unwrap(), b"older key");
    assert!(!vault.repo().exists());
    let arguments = ["init", "--recovery-key-file", "missing/recovery"];
    vault.fails(1, &arguments, "cannot write recovery key file missing/recovery");
    assert!(!vault.repo().exists());
}

#[test]
fn an_empty_password_makes_nothing() {
    let vault = Vault::without_repository();
    let file = vault.write("password", b"\nsecond line\n");
    let arguments = ["init", "--no-recovery-key", "--password-file", &file];
    vault.fails(1, &arguments, "cannot use password file ").says("it is empty");
    let arguments = ["init", "--no-recovery-key", "--password-command", "true"];
    vault.fails(1, &arguments, "cannot use password command true: it is empty");
    let mut command = vault.command(&["init", "--no-recovery-key"]);
    let outcome = finish(command.env("DISKVAULT_PASSWORD", ""));
    assert_eq!(outcome.code, 2);
    outcome.says("cannot ask for a password: there is no terminal");
    assert!(!vault.repo().exists());
}

#[test]
fn a_repository_in_a_new_deep_folder_works_at_once() {
    let vault = Vault::without_repository();
    let deep = vault.arg("a/b/c d");
    vault.ok(&["init", "--repo", &deep, "--no-recovery-key"]);
    vault.ok(&["list", "--repo", &deep]).prints("0 points");
    let file = vault.write("where", format!("{deep}\nsecond line\n").as_bytes());
    let mut command = vault.command(&["check", "--repository-file", &file]);
    let outcome = finish(command.env_remove("DISKVAULT_REPOSITORY"));
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    outcome.prints("no damage found");
}

#[test]
fn on_a_terminal_the_recovery_key_is_shown_there_and_nowhere_else() {
    let vault = Vault::without_repository();
    let Some((terminal, code)) = on_terminal(&vault, "$0 init >out") else { return };
    assert_eq!(code, 0, "{terminal}");
    let key = terminal.split_whitespace().find(|word| word.starts_with("DVRK-")).unwrap();
    let printed = fs::read_to_string(vault.path("out")).unwrap();
    assert!(printed.starts_with("made repository ") && !printed.contains("DVRK"), "{printed}");
    assert_eq!(list_with(&vault, key).code, 0);
}

/// The recovery key that a terminal shows.
fn shown_key(terminal: &str) -> &str {
    terminal.split_whitespace().find(|word| word.starts_with("DVRK-")).unwrap()
}

#[test]
fn a_password_is_typed_twice_and_never_shown() {
    const TYPED: &str = "typed by hand";
    let vault = Vault::without_repository();
    let Some(mut terminal) = Terminal::start(&vault, "$0 init >out", false) else { return };
    terminal.answer("new password: ", "typed by hand\n");
    terminal.answer("the same again: ", "typed by hand\n");
    let (shown, code) = terminal.finish();
    assert_eq!(code, 0, "{shown}");
    assert!(!shown.contains(TYPED), "the password was shown");
    let key = shown_key(&shown);
    assert_eq!(list_with(&vault, TYPED).code, 0);
    for command in [["key", "list"], ["check", "--read-data"]] {
        let outcome = finish(vault.command(&command).env("DISKVAULT_PASSWORD", key));
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    }
    // And typed once to open it.
    for (typed, expected) in [(TYPED, 0), (key, 0), ("something else", 12)] {
        let mut terminal = Terminal::start(&vault, "$0 list", false).unwrap();
        terminal.answer("password: ", &format!("{typed}\n"));
        let (again, code) = terminal.finish();
        assert_eq!(code, expected, "{again}");
        assert!(!again.contains(typed), "the password was shown");
    }
}

#[test]
fn two_different_passwords_make_nothing() {
    let vault = Vault::without_repository();
    let Some(mut terminal) = Terminal::start(&vault, "$0 init", false) else { return };
    terminal.answer("new password: ", "one\n");
    terminal.answer("the same again: ", "two\n");
    let (shown, code) = terminal.finish();
    assert_eq!(code, 2, "{shown}");
    assert!(shown.contains("cannot use the password: the two differ"), "{shown}");
    assert!(!shown.contains("DVRK") && !vault.repo().exists());
}

#[test]
fn a_key_that_cannot_be_shown_makes_nothing() {
    let vault = Vault::without_repository();
    // A session without a terminal of its own, whose descriptors are one all the same.
    let Some((shown, code)) = on_terminal(&vault, "setsid -w $0 init") else { return };
    assert_eq!(code, 1, "{shown}");
    assert!(shown.contains("cannot show the recovery key: "), "{shown}");
    assert!(!shown.contains("DVRK") && !vault.repo().exists());
}

#[test]
fn where_no_repository_can_be_made_nothing_is_asked_or_shown() {
    let vault = Vault::new();
    vault.write("file", b"x");
    for (path, text) in [("repo", "the folder is not empty"), ("file", "Not a directory")] {
        let line = format!("$0 init --repo {path}");
        let Some(terminal) = Terminal::start(&vault, &line, false) else { return };
        let (shown, code) = terminal.finish();
        assert_eq!(code, 1, "{shown}");
        assert!(shown.contains(text), "{shown}");
        assert!(!shown.contains("password") && !shown.contains("ecovery key"), "{shown}");
    }
}

#[test]
fn a_key_that_was_shown_in_vain_is_called_void() {
    let vault = Vault::without_repository();
    // The folder is taken while the password is asked for.
    let Some(mut terminal) = Terminal::start(&vault, "$0 init", false) else { return };
    terminal.answer("new password: ", "typed by hand\n");
    terminal.wait_for("the same again: ");
    fs::create_dir(vault.repo()).unwrap();
    vault.write("repo/letter", b"dear");
    terminal.answer("the same again: ", "typed by hand\n");
    let (shown, code) = terminal.finish();
    assert_eq!(code, 1, "{shown}");
    let (key, rest) = shown.split_once("DVRK-").unwrap();
    assert!(key.contains("Write it down now"), "{shown}");
    assert!(rest.contains("the recovery key shown above is void: no repository was made"));
    assert!(rest.contains("the folder is not empty"), "{shown}");
}

/// The key file and its folder are on stable storage before the first object is written.
#[test]
fn a_recovery_key_file_is_durable_before_the_repository() {
    let vault = Vault::without_repository();
    fs::create_dir(vault.path("safe")).unwrap();
    let plain = vault.command(&["init", "--recovery-key-file", "safe/recovery"]);
    let mut command = std::process::Command::new("strace");
    command.args(["-f", "-y", "-e", "trace=fsync", "-o", "log"]);
    command.arg(plain.get_program()).args(plain.get_args()).current_dir(vault.path(""));
    command.env_clear();
    for (name, value) in plain.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    match command.output() {
        Ok(output) if output.status.success() => {}
        _ => {
            eprintln!("skipped: strace is missing or may not trace");
            return;
        }
    }
    let log = fs::read_to_string(vault.path("log")).unwrap();
    let at = |end: &str| log.find(end).unwrap_or_else(|| panic!("no {end} in {log}"));
    assert!(at("/safe/recovery>") < at("/safe>"), "{log}");
    assert!(at("/safe>") < at("/repo"), "{log}");
}

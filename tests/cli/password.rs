//! Where passwords come from, in which order, and that they never go anywhere else.

use crate::support::{PASSWORD, Vault, finish, poll, wait};
use std::fs;
use std::io::Write;
use std::process::Stdio;

/// A run of `list` with these further arguments and only these variables for passwords.
fn list(vault: &Vault, arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
    let mut all = vec!["list"];
    all.extend(arguments);
    let mut command = vault.command(&all);
    command.env_remove("DISKVAULT_PASSWORD").envs(variables.iter().copied());
    let outcome = finish(&mut command);
    (outcome.code, outcome.stderr)
}

#[test]
fn every_source_opens() {
    let vault = Vault::new();
    let file = vault.write("file", format!("{PASSWORD}\r\nsecond line\n").as_bytes());
    let bare = vault.write("bare", PASSWORD.as_bytes());
    let command = format!("printf '%s\\nmore' '{PASSWORD}'");
    let cat = format!("cat {file}");
    for (arguments, variables) in [
        (vec!["--password-file", &file], vec![]),
        (vec!["-p", &bare], vec![]),
        (vec!["--password-command", &command], vec![]),
        (vec![], vec![("DISKVAULT_PASSWORD", PASSWORD)]),
        (vec![], vec![("DISKVAULT_PASSWORD_COMMAND", &*cat)]),
        (vec![], vec![("DISKVAULT_PASSWORD_FILE", &*bare)]),
    ] {
        let (code, stderr) = list(&vault, &arguments, &variables);
        assert_eq!(code, 0, "{arguments:?} {variables:?}: {stderr}");
    }
}

#[test]
fn an_open_descriptor_opens() {
    let vault = Vault::new();
    let file = vault.write("file", format!("{PASSWORD}\nsecond line\n").as_bytes());
    let run = |number: &str| {
        let mut command = vault.command(&["list"]);
        command.env_remove("DISKVAULT_PASSWORD").env("DISKVAULT_PASSWORD_FD", number);
        finish(command.stdin(fs::File::open(&file).unwrap()))
    };
    assert_eq!(run("0").code, 0);
    let outcome = run("x");
    assert_eq!(outcome.code, 2, "{outcome:?}");
    outcome.says("cannot read DISKVAULT_PASSWORD_FD: expected a number");
    let outcome = run("999");
    assert_eq!(outcome.code, 1, "{outcome:?}");
    outcome.says("cannot read password file /proc/self/fd/999");
}

#[test]
fn the_order_is_the_documented_one() {
    let vault = Vault::new();
    let good = vault.write("good", PASSWORD.as_bytes());
    let bad = vault.write("bad", b"wrong");
    let (cat_good, cat_bad) = (format!("cat {good}"), format!("cat {bad}"));
    let file = |path| ("DISKVAULT_PASSWORD_FILE", path);
    let command = |text| ("DISKVAULT_PASSWORD_COMMAND", text);
    let plain = |text| ("DISKVAULT_PASSWORD", text);
    let (good, bad, cat_good, cat_bad) = (&*good, &*bad, &*cat_good, &*cat_bad);
    // Each line has the right password at one place and wrong ones at all places behind it.
    let flags = ["--password-file", good, "--password-command", cat_bad];
    assert_eq!(list(&vault, &flags, &[plain("wrong")]).0, 0);
    let flags = ["--password-command", cat_good];
    assert_eq!(list(&vault, &flags, &[plain("wrong"), command(cat_bad), file(bad)]).0, 0);
    assert_eq!(list(&vault, &[], &[plain(PASSWORD), command(cat_bad), file(bad)]).0, 0);
    assert_eq!(list(&vault, &[], &[command(cat_good), file(bad)]).0, 0);
    // And the other way round the wrong one in front decides.
    let flags = ["--password-file", bad, "--password-command", cat_good];
    assert_eq!(list(&vault, &flags, &[plain(PASSWORD)]).0, 12);
    let flags = ["--password-command", cat_bad];
    assert_eq!(list(&vault, &flags, &[plain(PASSWORD)]).0, 12);
    assert_eq!(list(&vault, &[], &[plain("wrong"), command(cat_good), file(good)]).0, 12);
    assert_eq!(list(&vault, &[], &[command(cat_bad), file(good)]).0, 12);
}

#[test]
fn a_password_command_runs_without_a_shell() {
    let vault = Vault::new();
    let (code, stderr) = list(&vault, &["--password-command", "printf %s secret;touch X"], &[]);
    assert_ne!(code, 0);
    assert!(!vault.path("X").exists(), "a shell ran the command");
    assert!(!stderr.contains("secret"), "{stderr}");
    let (code, _) = list(&vault, &["--password-command", "printf %s $HOME"], &[]);
    assert_eq!(code, 12);
    let (code, stderr) = list(&vault, &["--password-command", "printf 'open"], &[]);
    assert_eq!(code, 2);
    assert!(stderr.contains("cannot split the password command into words"), "{stderr}");
    let (code, stderr) = list(&vault, &["--password-command", ""], &[]);
    assert_eq!(code, 2, "{stderr}");
}

#[test]
fn a_source_that_fails_is_named_and_nothing_else_is_tried() {
    let vault = Vault::new();
    let good = [("DISKVAULT_PASSWORD", PASSWORD)];
    let cases = [
        (["--password-file", "missing"], 1, "cannot read password file missing: No such file"),
        (["--password-file", "."], 1, "cannot read password file .: Is a directory"),
        (["--password-command", "false"], 1, "cannot use password command false: it ended with"),
        (["--password-command", "no-such-program"], 1, "cannot run password command no-such"),
    ];
    for (arguments, expected, text) in cases {
        let (code, stderr) = list(&vault, &arguments, &good);
        assert_eq!(code, expected, "{stderr}");
        assert!(stderr.contains(text), "{stderr}");
    }
}

#[test]
fn what_is_too_long_for_a_password_is_refused() {
    let vault = Vault::new();
    // The first line would do: what has so many more is the wrong file all the same.
    let mut text = format!("{PASSWORD}\n").into_bytes();
    text.resize(64 << 10, b'x');
    let fits = vault.write("fits", &text);
    assert_eq!(list(&vault, &["--password-file", &fits], &[]).0, 0);
    text.push(b'x');
    let long = vault.write("long", &text);
    let endless = format!("sh -c 'echo {PASSWORD}; exec cat /dev/zero'");
    let cat = format!("cat {long}");
    for (arguments, what) in [
        (["--password-file", &long], "file "),
        (["--password-file", "/dev/zero"], "file /dev/zero"),
        (["--password-command", &cat], "command cat"),
        (["--password-command", &endless], "command sh"),
    ] {
        let (code, stderr) = list(&vault, &arguments, &[]);
        assert_eq!(code, 1, "{stderr}");
        let start = format!("diskvault: cannot use password {what}");
        assert!(stderr.starts_with(&start) && stderr.contains("more than 65536 bytes"), "{stderr}");
    }
}

#[test]
fn a_wrong_password_and_none_at_all() {
    let vault = Vault::new();
    let (code, stderr) = list(&vault, &[], &[("DISKVAULT_PASSWORD", "hunter2 hunter2")]);
    assert_eq!(code, 12);
    assert_eq!(stderr, "diskvault: cannot open the repository: wrong password\n");
    let (code, stderr) = list(&vault, &[], &[]);
    assert_eq!(code, 2);
    assert!(stderr.contains("cannot ask for a password: there is no terminal"), "{stderr}");
    assert!(stderr.contains("hint: set DISKVAULT_PASSWORD_FILE or use --password-file"));
}

#[test]
fn no_argument_of_a_running_process_holds_the_password() {
    let vault = Vault::new();
    let mut command = vault.command(&["backup", "--name", "a", "--stream", "s=-"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let input = child.stdin.take().unwrap();
    let leases = vault.path("repo/leases");
    let path = format!("/proc/{}/cmdline", child.id());
    let is_running =
        poll(&mut child, || fs::read_dir(&leases).is_ok_and(|mut d| d.next().is_some()));
    assert!(is_running);
    let line = fs::read(path).unwrap();
    assert!(!line.is_empty() && !String::from_utf8_lossy(&line).contains(PASSWORD));
    drop(input);
    assert_eq!(wait(child).code, 0);
    // Nor does anything that was left on the disk.
    for folder in ["repo", "cache"] {
        for file in crate::support::files(&vault.path(folder)) {
            let bytes = fs::read(vault.path(folder).join(&file)).unwrap();
            let found = bytes.windows(PASSWORD.len()).any(|part| part == PASSWORD.as_bytes());
            assert!(!found, "{file} holds the password");
        }
    }
}

/// What a password command read of it would be missing in the point.
#[test]
fn a_password_command_leaves_standard_input_alone() {
    let vault = Vault::new();
    let mut command = vault.command(&["backup", "--name", "a", "--stream", "pipe=-"]);
    command
        .env_remove("DISKVAULT_PASSWORD")
        .env("DISKVAULT_PASSWORD_COMMAND", format!("sh -c 'cat >/dev/null; echo {PASSWORD}'"))
        .stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"from the very beginning").unwrap();
    let outcome = wait(child);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert_eq!(vault.ok(&["dump", "a"]).stdout, b"from the very beginning");
}

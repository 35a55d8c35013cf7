//! What goes where: results on standard output, everything else on standard error, JSON for
//! programs; and readers that are not there.

use crate::support::{Vault, finish, random, wait};
use crate::terminal::on_terminal;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// The program in a shell, which closes or redirects what `redirection` says.
fn in_shell(vault: &Vault, redirection: &str, arguments: &[&str]) -> Command {
    let plain = vault.command(arguments);
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec \"$0\" \"$@\" {redirection}")]);
    command.arg(plain.get_program()).args(plain.get_args()).env_clear();
    for (name, value) in plain.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command.current_dir(vault.path("")).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn closed_outputs_are_no_panic_and_the_point_is_made() {
    let vault = Vault::new();
    vault.write("file", b"content");
    let mut points = 0;
    for redirection in [">&-", "<&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"] {
        for json in [false, true] {
            let mut arguments = vec!["backup", "--name", "a", "--stream", "file=file"];
            arguments.extend(json.then_some("--json"));
            let outcome = finish(&mut in_shell(&vault, redirection, &arguments));
            assert_eq!(outcome.code, 0, "{redirection}: {outcome:?}");
            points += 1;
            for arguments in [vec!["list"], vec!["show", "a"], vec!["check"], vec!["--help"]] {
                let outcome = finish(&mut in_shell(&vault, redirection, &arguments));
                assert_eq!(outcome.code, 0, "{redirection} {arguments:?}: {outcome:?}");
            }
            let outcome = finish(&mut in_shell(&vault, redirection, &["show", "nobody"]));
            assert_eq!(outcome.code, 1, "{redirection}");
        }
    }
    assert_eq!(vault.point_count(), points);
    vault.assert_intact();
}

/// Their result is the bytes; a script that lost them must not take it for success.
#[test]
fn a_closed_output_is_refused_where_bytes_are_the_result() {
    let vault = Vault::new();
    vault.write("file", b"content");
    vault.backup("a", &["file"]);
    for arguments in [vec!["dump", "a"], vec!["key", "export", "-"], vec!["completions", "bash"]] {
        for redirection in [">&-", "<&- >&-"] {
            let outcome = finish(&mut in_shell(&vault, redirection, &arguments));
            assert_eq!(outcome.code, 1, "{redirection} {arguments:?}: {outcome:?}");
            outcome.says("cannot write to standard output: it is closed").hints("writing only");
        }
        for redirection in [">/dev/null", "2>&-", "<&-"] {
            let outcome = finish(&mut in_shell(&vault, redirection, &arguments));
            assert_eq!(outcome.code, 0, "{redirection} {arguments:?}: {outcome:?}");
        }
    }
}

#[test]
fn a_reader_that_has_gone_or_is_full() {
    let vault = Vault::new();
    vault.write("file", b"content");
    let gone = |arguments: &[&str]| {
        let mut child = vault.command(arguments).spawn().unwrap();
        drop(child.stdout.take());
        wait(child)
    };
    let outcome = gone(&["backup", "--name", "a", "--stream", "file=file"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    outcome.says(" was made, but cannot write to standard output: Broken pipe");
    assert_eq!(vault.point_count(), 1);
    for arguments in [
        vec!["list"],
        vec!["show", "a"],
        vec!["digest", "a"],
        vec!["completions", "bash"],
        vec!["--json", "list"],
    ] {
        let outcome = gone(&arguments);
        assert_eq!(outcome.code, 0, "{arguments:?}: {outcome:?}");
    }
    for arguments in [
        vec!["list"],
        vec!["backup", "--name", "a", "--stream", "file=file"],
        vec!["key", "export", "-"],
        vec!["completions", "bash"],
    ] {
        let outcome = finish(&mut in_shell(&vault, ">/dev/full", &arguments));
        assert!(outcome.code != 0, "{outcome:?}");
        outcome.says("cannot write to standard output: No space left on device");
    }
    assert_eq!(vault.point_count(), 2);
    vault.assert_intact();
}

#[test]
fn errors_are_one_line_with_one_hint() {
    let vault = Vault::new();
    let outcome = vault.run(&["show", "nobody"]);
    assert_eq!(
        outcome.stderr,
        "diskvault: cannot find a series or point named nobody\n\
         hint: `diskvault list` shows what there is\n"
    );
    assert!(outcome.stdout.is_empty());
}

#[test]
fn json_errors_are_the_last_line_of_standard_error() {
    let vault = Vault::new();
    let file = vault.write("file", b"x");
    for (code, arguments) in [
        (1, vec!["show", "nobody"]),
        (1, vec!["backup", "--name", "a", "missing"]),
        (2, vec!["backup", "--name", "a/b", &file]),
        (2, vec!["list", "--repo", "ftp://host/x"]),
        (10, vec!["list", "--repo", "nowhere"]),
        (12, vec!["list", "--password-file", &file]),
        (2, vec!["list", "--frobnicate"]),
        (2, vec!["backup", &file]),
        (2, vec!["backup", "--name", "a", "--chunker", "\x1b[31m"]),
        (2, vec![]),
    ] {
        let mut all = vec!["--json"];
        all.extend(&arguments);
        let outcome = vault.run(&all);
        assert_eq!(outcome.code, code, "{arguments:?}");
        assert!(outcome.stdout.is_empty());
        let lines: Vec<Value> =
            outcome.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let last = lines.last().unwrap();
        assert_eq!(last["message_type"], "exit_error");
        assert_eq!(last["code"], code);
        assert!(last["message"].as_str().unwrap().starts_with("cannot "));
    }
}

#[test]
fn everything_printed_with_json_is_json() {
    let vault = Vault::new();
    vault.write("disk", &random(1, 1 << 20));
    for arguments in [
        vec!["backup", "--name", "a", "disk"],
        vec!["list"],
        vec!["show", "a"],
        vec!["check"],
        vec!["check", "--read-data"],
        vec!["restore", "a", "target"],
        vec!["digest", "a"],
        vec!["digest", "a", "--with", "sha256"],
        vec!["key", "list"],
        vec!["repair", "index"],
    ] {
        let mut all = vec!["--json", "--progress"];
        all.extend(&arguments);
        let outcome = vault.ok(&all);
        for line in outcome.text().lines().chain(outcome.stderr.lines()) {
            let parsed: Result<Value, _> = serde_json::from_str(line);
            assert!(parsed.is_ok(), "{arguments:?} printed {line}");
        }
        assert!(!outcome.stdout.is_empty(), "{arguments:?}");
    }
    assert!(fs::read(vault.path("target")).unwrap() == random(1, 1 << 20));
}

/// Lines on standard error of a backup that is fed until `enough`, or `pieces` pieces.
fn lines_of_slow_backup(flags: &[&str], pieces: usize) -> Vec<String> {
    let vault = Vault::new();
    let mut arguments = flags.to_vec();
    arguments.extend(["backup", "--name", "a", "-"]);
    let mut child = vault.command(&arguments).stdin(Stdio::piped()).spawn().unwrap();
    let (mut input, errors) = (child.stdin.take().unwrap(), child.stderr.take().unwrap());
    let enough = AtomicBool::new(false);
    let lines = std::thread::scope(|scope| {
        let stop = &enough;
        scope.spawn(move || {
            let piece = random(1, 64 << 10);
            for _ in 0..pieces {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                input.write_all(&piece).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        });
        let lines: Vec<String> = BufReader::new(errors)
            .lines()
            .map(|line| {
                let line = line.unwrap();
                let is_status = line.contains("\"status\"");
                enough.fetch_or(is_status, Ordering::Relaxed);
                line
            })
            .collect();
        lines
    });
    assert_eq!(wait(child).code, 0);
    lines
}

#[test]
fn progress_is_json_on_standard_error() {
    let lines = lines_of_slow_backup(&["--json", "--progress"], 5000);
    let status = lines.iter().find(|line| line.contains("\"status\"")).unwrap();
    let status: Value = serde_json::from_str(status).unwrap();
    assert_eq!(status["message_type"], "status");
    assert_eq!(status["stage"], "stream stdin");
    assert!(status["bytes_done"].as_u64().unwrap() > 0);
    assert!(status["seconds_elapsed"].as_f64().unwrap() >= 1.0);
    for field in ["percent_done", "total_bytes", "seconds_remaining"] {
        assert!(status.as_object().unwrap().contains_key(field), "{field}");
    }
    let has_status = |flags: &[&str]| {
        // 1.5 s, in which a line comes.
        let lines = lines_of_slow_backup(&[&["--json"], flags].concat(), 150);
        lines.iter().any(|line| line.contains("\"status\""))
    };
    for flags in [&["--no-progress"][..], &["--quiet"], &["--progress", "--no-progress"]] {
        assert!(!has_status(flags), "{flags:?}");
    }
    for flags in [["--quiet", "--progress"], ["--no-progress", "--progress"]] {
        assert!(has_status(&flags), "{flags:?}");
    }
}

#[test]
fn completions_and_versions() {
    let vault = Vault::without_repository();
    for shell in ["bash", "zsh", "fish"] {
        let mut command = vault.command(&["completions", shell]);
        let outcome = finish(command.env_remove("DISKVAULT_REPOSITORY"));
        assert_eq!(outcome.code, 0);
        outcome.prints("diskvault").prints("restore");
    }
    let script = vault.ok(&["completions", "bash"]).text();
    let path = vault.write("completions.sh", script.as_bytes());
    if let Ok(output) = Command::new("bash").args(["-n", &path]).output() {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(vault.run(&["completions", "tcl"]).code, 2);
    let version = vault.ok(&["--version"]).text();
    assert_eq!(version, format!("diskvault {}\n", env!("CARGO_PKG_VERSION")));
    let verbose = vault.ok(&["--version", "-v"]);
    for backend in ["format version", "blake3 ", "chacha20 ", "zstd ", "sled "] {
        verbose.prints(backend);
    }
    vault.ok(&["--help"]).prints("Exit codes: 0 done");
    assert_eq!(vault.run(&[]).code, 2);
    assert_eq!(vault.run(&["frobnicate"]).code, 2);
    assert_eq!(vault.run(&["list", "--frobnicate"]).code, 2);
}

#[test]
fn help_has_no_secret_from_the_environment() {
    let vault = Vault::new();
    for command in ["init", "backup", "list", "restore", "key"] {
        let outcome = vault.ok(&[command, "--help"]);
        assert!(!outcome.text().contains(crate::support::PASSWORD));
    }
}

#[test]
fn arguments_cannot_drive_the_terminal() {
    let vault = Vault::new();
    let evil = "\x1b]0;owned\x07";
    for arguments in [
        vec!["list", evil],
        vec!["show", evil],
        vec!["restore", "a", evil],
        vec!["list", "--repo", evil],
        vec!["list", "--password-file", evil],
        vec!["list", "--password-command", evil],
        vec!["list", "--cache-dir", evil, "--repo", "x"],
        vec!["backup", "--name", evil, "x"],
        vec!["backup", "--name", "a", evil],
        vec!["backup", "--name", "a", "--chunker", evil],
        vec!["key", "remove", evil],
        vec!["init", "--chunk-size", evil],
        vec!["check", "--read-data-subset", evil],
        vec![evil],
        vec!["--threads", evil, "list"],
    ] {
        // `run` looks at the output.
        assert_ne!(vault.run(&arguments).code, 0, "{arguments:?}");
    }
}

#[test]
fn a_file_name_from_a_glob_cannot_drive_the_terminal_either() {
    let vault = Vault::new();
    for arguments in [
        vec!["backup", "--name", "a", "--x\x1b]0;owned\x07"],
        vec!["backup", "--name", "a", "--chunker", "\x1b]0;owned\x07"],
        vec!["restore", "a", "x", "\x1b]0;owned\x07"],
        vec!["show", "\x1b]0;owned\x07"],
    ] {
        let line = format!("$0 '{}'", arguments.join("' '"));
        let Some((terminal, code)) = on_terminal(&vault, &line) else { return };
        assert_ne!(code, 0);
        assert!(!terminal.contains("\x1b]"), "{}", terminal.escape_debug());
    }
}

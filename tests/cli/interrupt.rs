//! Runs that are interrupted or killed at several moments: nothing is damaged, and the next run
//! goes on from what was stored.

use crate::support::{MIB, Outcome, Vault, files, poll, random, wait};
use crate::terminal::Terminal;
use rustix::process::{Pid, Signal, kill_process};
use std::io::Write;
use std::process::{Child, Stdio};
use std::sync::OnceLock;

const BYTES: u64 = 200 * MIB;

fn content() -> &'static [u8] {
    static CONTENT: OnceLock<Vec<u8>> = OnceLock::new();
    CONTENT.get_or_init(|| random(1, BYTES))
}

fn send(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Starts a backup and sends `signal` once the folder holds `count` more files than before.
/// `None` if it was done before that.
fn interrupt(vault: &Vault, signal: Signal, folder: &str, count: usize) -> Option<Outcome> {
    let folder = vault.path(folder);
    let before = files(&folder).len();
    let mut child = vault.command(&["backup", "--name", "big", "disk"]).spawn().unwrap();
    let is_running = poll(&mut child, || files(&folder).len() >= before + count);
    if is_running {
        send(&child, signal);
    }
    let outcome = wait(child);
    let was_interrupted = outcome.code != 0;
    was_interrupted.then_some(outcome)
}

/// As a terminal that goes, and one whose going does not matter.
#[test]
fn a_hangup_ends_a_run_unless_it_is_ignored() {
    let vault = Vault::new();
    vault.write("disk", content());
    for (trap, code) in [("", 130), ("trap '' HUP;", 0)] {
        let mut shell = vault.command::<&str>(&[]);
        let script = format!("{trap} exec \"$@\"");
        let words = ["-c", &script, "sh", env!("CARGO_BIN_EXE_diskvault")];
        let environment: Vec<_> = shell
            .get_envs()
            .map(|(name, value)| (name.to_owned(), value.unwrap().to_owned()))
            .collect();
        shell = std::process::Command::new("sh");
        shell.args(words).args(["backup", "--name", "big", "disk"]).env_clear().envs(environment);
        shell.current_dir(vault.path(".")).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        let packs = vault.path("repo/packs");
        let before = files(&packs).len();
        let leases = vault.path("repo/leases");
        assert!(poll(&mut child, || !files(&leases).is_empty() || files(&packs).len() > before));
        send(&child, Signal::HUP);
        assert_eq!(wait(child).code, code, "{trap}");
        assert!(files(&leases).is_empty(), "the lease was left behind");
    }
}

/// Interrupts a backup at several moments, then lets it finish.
fn interrupt_often(signal: Signal, code: i32) {
    let vault = Vault::new();
    let old = random(2, 2 * MIB);
    vault.write("old", &old);
    vault.backup("old", &["old"]);
    vault.write("disk", content());
    let mut interrupted = 0;
    for (folder, count) in [("repo/leases", 1), ("repo/packs", 1), ("repo/packs", 2)] {
        let Some(outcome) = interrupt(&vault, signal, folder, count) else { continue };
        interrupted += 1;
        assert_eq!(outcome.code, code, "{outcome:?}");
        if code == 130 {
            assert_eq!(outcome.stderr.lines().last(), Some("diskvault: interrupted"));
            assert!(files(&vault.path("repo/leases")).is_empty(), "the lease was left behind");
            assert!(files(&vault.path("repo/tmp")).is_empty(), "unfinished files were left");
        }
        vault.ok(&["check"]).prints("no damage found");
        vault.assert_restores("old", &old);
    }
    assert!(interrupted > 0, "every run was done before it could be interrupted");
    let had = files(&vault.path("repo/packs")).len() > 2;
    let was_finished = interrupted < 3;
    let summary = vault.json(&["backup", "--name", "big", "disk"]);
    if had && !was_finished {
        let found = summary["deduplicated_bytes"].as_u64().unwrap();
        assert!(found > 16 * MIB, "what was stored is not used: {summary}");
    }
    let outcome = vault.ok(&["dump", "big"]);
    assert!(outcome.stdout == content());
    vault.assert_intact();
}

#[test]
fn sigint_during_a_backup() {
    interrupt_often(Signal::INT, 130);
}

#[test]
fn sigterm_during_a_backup() {
    interrupt_often(Signal::TERM, 130);
}

#[test]
fn sigkill_during_a_backup() {
    interrupt_often(Signal::KILL, 1009);
}

#[test]
fn a_stream_is_interrupted_when_a_pack_was_stored() {
    let vault = Vault::new();
    for (signal, code) in [(Signal::INT, 130), (Signal::KILL, 1009)] {
        let before = files(&vault.path("repo/packs")).len();
        let mut command = vault.command(&["backup", "--name", "a", "-"]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let bytes = usize::try_from(120 * MIB).unwrap();
        let feed = if before == 0 { &content()[..bytes] } else { &content()[bytes / 2..] };
        input.write_all(&feed[..bytes]).unwrap();
        assert!(poll(&mut child, || files(&vault.path("repo/packs")).len() > before));
        send(&child, signal);
        // Whoever fed it goes on or stops; either way it notices.
        let _ = input.write_all(&feed[..1 << 20]);
        drop(input);
        let outcome = wait(child);
        assert_eq!(outcome.code, code, "{outcome:?}");
        assert_eq!(vault.point_count(), 0);
        vault.assert_intact();
    }
    vault.write("disk", &content()[..usize::try_from(64 * MIB).unwrap()]);
    let summary = vault.json(&["backup", "--name", "a", "--stream", "disk=disk"]);
    assert!(summary["deduplicated_bytes"].as_u64().unwrap() > 8 * MIB, "{summary}");
}

#[test]
fn one_signal_ends_a_run_that_waits_for_its_input() {
    let vault = Vault::new();
    let mut command = vault.command(&["backup", "--name", "a", "-"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let input = child.stdin.take();
    let leases = vault.path("repo/leases");
    assert!(poll(&mut child, || !files(&leases).is_empty()));
    send(&child, Signal::TERM);
    // The writer's end stays open: nothing but the signal ends the wait.
    let outcome = wait(child);
    drop(input);
    assert_eq!(outcome.code, 130, "{outcome:?}");
    assert!(files(&leases).is_empty(), "the lease was left behind");
    vault.assert_intact();
    assert_eq!(vault.point_count(), 0);
}

#[test]
fn one_signal_ends_a_run_whose_fifo_has_no_writer() {
    let vault = Vault::new();
    rustix::fs::mkfifoat(rustix::fs::CWD, vault.path("fifo"), 0o600.into()).unwrap();
    for signal in [Signal::INT, Signal::TERM] {
        let mut command = vault.command(&["backup", "--name", "a", "--stream", "x=fifo"]);
        let mut child = command.spawn().unwrap();
        let leases = vault.path("repo/leases");
        assert!(poll(&mut child, || !files(&leases).is_empty()));
        // Long enough to be at the FIFO.
        std::thread::sleep(std::time::Duration::from_millis(300));
        send(&child, signal);
        assert!(!poll(&mut child, || false));
        let outcome = wait(child);
        assert_eq!(outcome.code, 130, "{outcome:?}");
        assert_eq!(outcome.stderr.lines().last(), Some("diskvault: interrupted"));
        assert!(files(&leases).is_empty(), "the lease was left behind");
    }
    // The password of a FIFO without a writer, too.
    let mut command = vault.command(&["list", "--password-file", "fifo"]);
    let mut child = command.spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none());
    send(&child, Signal::INT);
    assert!(!poll(&mut child, || false));
    assert_eq!(wait(child).code, 130);
    assert_eq!(vault.point_count(), 0);
}

#[test]
fn one_ctrl_c_ends_a_prompt_and_the_terminal_shows_what_is_typed() {
    let vault = Vault::new();
    // The shell goes on after the signal that both get, and looks at the terminal.
    let line = "trap : INT; $0 list; echo \"code $?\"; stty -a";
    let Some(mut terminal) = Terminal::start(&vault, line, false) else { return };
    terminal.answer("password: ", "half a passw");
    std::thread::sleep(std::time::Duration::from_millis(200));
    terminal.answer("password: ", "\x03");
    terminal.wait_for("code ");
    let (shown, code) = terminal.finish();
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("diskvault: interrupted") && shown.contains("code 130"), "{shown}");
    assert!(!shown.contains("half"), "{shown}");
    let modes: Vec<&str> = shown.split_whitespace().collect();
    assert!(modes.contains(&"echo") && modes.contains(&"icanon"), "{shown}");
}

#[test]
fn one_signal_ends_a_dump_that_nobody_reads() {
    let vault = Vault::new();
    // Less than one buffer, and more than all.
    for (size, signal) in [(MIB / 2, Signal::INT), (40 * MIB, Signal::TERM)] {
        vault.write("disk", &random(3, size));
        vault.backup("a", &["disk"]);
        let mut child = vault.command(&["dump", "a"]).spawn().unwrap();
        let output = child.stdout.take();
        // Long enough for the pipe to be full.
        std::thread::sleep(std::time::Duration::from_millis(800));
        assert!(child.try_wait().unwrap().is_none());
        send(&child, signal);
        let outcome = wait(child);
        drop(output);
        assert_eq!(outcome.code, 130, "{outcome:?}");
        assert_eq!(outcome.stderr.lines().last(), Some("diskvault: interrupted"));
    }
}

#[test]
fn one_ctrl_c_ends_a_question() {
    let vault = Vault::new();
    crate::support::write_sparse(&vault.path("disk"), 300 << 30, &[(0, b"x")]);
    vault.backup("a", &["disk"]);
    let line = "trap : INT; $0 digest a; echo \"code $?\"";
    let Some(mut terminal) = Terminal::start(&vault, line, true) else { return };
    terminal.answer("have to be hashed; go on? [y/N] ", "\x03");
    terminal.wait_for("code ");
    let (shown, _) = terminal.finish();
    assert!(shown.contains("diskvault: interrupted") && shown.contains("code 130"), "{shown}");
    // Question and answer are on one line.
    let mut terminal = Terminal::start(&vault, line, true).unwrap();
    terminal.answer("go on? [y/N] ", "n\n");
    let (shown, _) = terminal.finish();
    assert!(shown.contains("go on? [y/N] n\r\ndiskvault: the digest was not wanted"), "{shown}");
}

#[test]
fn an_interrupted_restore_leaves_no_half_file() {
    let vault = Vault::new();
    vault.write("disk", content());
    vault.backup("a", &["disk"]);
    std::fs::create_dir(vault.path("out")).unwrap();
    let out = vault.path("out");
    for signal in [Signal::INT, Signal::TERM] {
        let mut child = vault.command(&["restore", "a", "out/disk"]).spawn().unwrap();
        if !poll(&mut child, || !files(&out).is_empty()) {
            continue;
        }
        send(&child, signal);
        let outcome = wait(child);
        if outcome.code == 0 {
            let restored = std::fs::read(out.join("disk")).unwrap();
            assert!(restored == content());
            std::fs::remove_file(out.join("disk")).unwrap();
            continue;
        }
        assert_eq!(outcome.code, 130, "{outcome:?}");
        assert!(files(&out).is_empty(), "{:?} was left behind", files(&out));
    }
}

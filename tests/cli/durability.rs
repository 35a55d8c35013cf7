//! What the program asks of the kernel before it calls something stored: each file is on stable
//! storage before it has its name, no name is ever replaced, and each name is on stable storage
//! before anything refers to it.

use crate::support::{MIB, Vault, random};
use std::fs;
use std::process::{Command, Stdio};

/// One system call that matters here.
#[derive(Debug, PartialEq)]
enum Call {
    /// A file or folder, by its path, made durable.
    Sync(String),
    /// A file of `tmp/` gets its name: the leaf it had, the folder, the leaf, the flags.
    Rename(String, String, String, String),
}

/// The path between `<` and `>` of a handle, as `strace -y` writes it.
fn path_of(handle: &str) -> Option<String> {
    let (_, rest) = handle.split_once('<')?;
    Some(rest.split_once('>')?.0.to_string())
}

fn parse(line: &str) -> Option<Call> {
    let (_, call) = line.split_once(' ')?;
    if !line.ends_with("= 0") {
        return None;
    }
    let call = call.trim_start();
    if let Some(rest) = call.strip_prefix("fsync(") {
        return path_of(rest).map(Call::Sync);
    }
    // A call that was interrupted has more spaces in front of its result.
    let (rest, _) = call.strip_prefix("renameat2(")?.rsplit_once(')')?;
    let parts: Vec<&str> = rest.split(", ").collect();
    let [_, old, folder, new, flags] = parts[..] else { return None };
    let unquote = |text: &str| text.trim_matches('"').to_string();
    Some(Call::Rename(unquote(old), path_of(folder)?, unquote(new), flags.to_string()))
}

/// The calls of one run, in order; nothing where the machine may not trace.
fn trace(vault: &Vault, arguments: &[&str]) -> Option<Vec<Call>> {
    let may_trace = Command::new("strace").args(["-o", "/dev/null", "true"]).status();
    if !may_trace.is_ok_and(|status| status.success()) {
        eprintln!("skipped: strace is missing or may not trace");
        return None;
    }
    let log = vault.path("calls");
    let inner = vault.command(arguments);
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-e", "trace=fsync,renameat2", "-e", "signal=none", "-o"]);
    command.arg(&log).arg(inner.get_program()).args(inner.get_args());
    command.env_clear();
    for (name, value) in inner.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command.current_dir(vault.path("")).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A call that another thread interrupts stands in two lines.
    let mut calls = Vec::new();
    let mut begun: Vec<(String, String)> = Vec::new();
    for line in fs::read_to_string(&log).unwrap().lines() {
        let (process, text) = line.split_once(' ').unwrap();
        if let Some(start) = text.trim_end().strip_suffix("<unfinished ...>") {
            begun.push((process.to_string(), start.trim().to_string()));
            continue;
        }
        let whole = match text.split_once("resumed>") {
            Some((_, end)) => {
                let at = begun.iter().position(|(of, _)| of == process).unwrap();
                format!("{process} {}{}", begun.remove(at).1, end)
            }
            None => line.to_string(),
        };
        calls.extend(parse(&whole));
    }
    Some(calls)
}

/// Every object of the repository that was put, by the rules above.
fn assert_durable(vault: &Vault, calls: &[Call]) -> usize {
    let repo = vault.repo().to_str().unwrap().to_string();
    let synced = |path: &str, from: usize, to: usize| {
        calls[from..to].iter().any(|call| *call == Call::Sync(path.to_string()))
    };
    let mut names = 0;
    for (at, call) in calls.iter().enumerate() {
        let Call::Rename(old, folder, new, flags) = call else { continue };
        if !folder.starts_with(&repo) {
            continue;
        }
        names += 1;
        assert_eq!(flags, "RENAME_NOREPLACE", "{new} may replace another");
        assert!(synced(&format!("{repo}/tmp/{old}"), 0, at), "the bytes of {new} are not durable");
        // What refers to others comes behind their durable names.
        let end = calls[at + 1..]
            .iter()
            .position(
                |later| matches!(later, Call::Rename(_, folder, ..) if folder.ends_with("/points")),
            )
            .map_or(calls.len(), |next| at + 1 + next);
        assert!(synced(folder, at + 1, end), "the name {new} in {folder} is not durable");
    }
    names
}

#[test]
fn bytes_and_names_are_durable_before_anything_refers_to_them() {
    let vault = Vault::new();
    let image = vault.write("image", &random(1, 40 * MIB));
    let Some(calls) = trace(&vault, &["backup", "--name", "web01", &image]) else { return };
    let names = assert_durable(&vault, &calls);
    // A lease, two data packs and a map pack at least, the manifest and its ok.
    assert!(names >= 6, "{calls:?}");
    let last = calls.iter().rev().find_map(|call| match call {
        Call::Rename(_, folder, new, _) if folder.ends_with("/points") => Some(new.clone()),
        _ => None,
    });
    assert!(last.unwrap().ends_with(".ok"));
    vault.backup("web01", &[&vault.write("image", &random(2, 8 * MIB))]);
    vault.ok(&["forget", "--keep-last", "1"]);
    let Some(calls) = trace(&vault, &["prune", "--max-unused", "0%"]) else { return };
    assert!(assert_durable(&vault, &calls) >= 1, "{calls:?}");
}

//! A short run of `diskvault-kernel`: the real binary against the kernel.
//!
//! Promises 1 and 5 as in tests/crash.rs, with real processes, signals, file systems and system
//! calls. What needs root, loop devices or strace skips itself, with a message.

#![allow(clippy::print_stderr, reason = "a test says what it skips")]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]
#![allow(dead_code, reason = "the program uses more of it")]

#[path = "kernel/archive.rs"]
mod archive;
#[path = "kernel/crowd.rs"]
mod crowd;
#[path = "kernel/full.rs"]
mod full;
#[path = "kernel/image.rs"]
mod image;
#[path = "kernel/inject.rs"]
mod inject;
#[path = "kernel/kills.rs"]
mod kills;
#[path = "kernel/mount.rs"]
mod mount;
#[path = "kernel/readonly.rs"]
mod readonly;

use std::path::Path;
use std::time::Duration;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_diskvault"))
}

#[test]
fn kills() {
    let folder = tempfile::tempdir().unwrap();
    kills::run(program(), folder.path(), 1, 9, 8).unwrap();
}

#[test]
fn a_full_file_system() {
    let folder = tempfile::tempdir().unwrap();
    full::run(program(), folder.path(), 1, &full::CASES[..1]).unwrap();
}

#[test]
fn system_calls_that_fail() {
    let folder = tempfile::tempdir().unwrap();
    let calls = [("fsync", "EIO"), ("/^rename", "EIO"), ("/^rename", "ENOSPC")];
    inject::run(program(), folder.path(), 1, &calls, 3).unwrap();
}

#[test]
fn a_file_system_that_turns_read_only() {
    let folder = tempfile::tempdir().unwrap();
    readonly::run(program(), folder.path(), 1, 2).unwrap();
}

#[test]
fn a_crowd() {
    let folder = tempfile::tempdir().unwrap();
    crowd::run(program(), folder.path(), 1, Duration::from_secs(5), 4).unwrap();
}

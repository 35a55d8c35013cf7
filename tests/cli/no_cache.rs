//! A cache that is full, read-only, cannot be made or cannot be locked: it is never needed, so what
//! is stored comes back all the same, with a warning.

use crate::support::{MIB, Tmpfs, Vault, files, finish, random, wait};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

fn vault_with_point() -> (Vault, Vec<u8>) {
    let vault = Vault::new();
    let data = random(1, 6 * MIB);
    vault.write("disk", &data);
    vault.backup("a", &["disk"]);
    fs::create_dir(vault.path("tmp")).unwrap();
    (vault, data)
}

/// Everything works with this cache, and says so; nothing stays in the temporary folder.
fn assert_works_without(vault: &Vault, cache: &Path, data: &[u8], text: &str) {
    let run = |arguments: &[&str]| {
        let mut command = vault.command(arguments);
        let outcome =
            finish(command.env("DISKVAULT_CACHE_DIR", cache).env("TMPDIR", vault.path("tmp")));
        assert_eq!(outcome.code, 4, "{arguments:?}: {outcome:?}");
        outcome.says("warning: cannot ").says(text).says("this host will not remember");
        assert!(files(&vault.path("tmp")).is_empty(), "{:?}", files(&vault.path("tmp")));
        outcome
    };
    run(&["list"]).prints("a ");
    run(&["show", "a"]);
    let outcome = run(&["dump", "a"]);
    outcome.says("the index is made in a temporary folder");
    assert!(outcome.stdout == data);
    run(&["restore", "a", "restored"]);
    assert!(fs::read(vault.path("restored")).unwrap() == data);
    fs::remove_file(vault.path("restored")).unwrap();
    run(&["digest", "a"]).prints(&crate::support::blake3_hex(data));
    run(&["check", "--read-data"]).prints("no damage found");
    run(&["key", "list"]);
    // A night without a backup would be worse than one that is not remembered.
    run(&["backup", "--name", "b", "disk"]).prints("unchanged");
    run(&["dump", "b"]);
}

#[test]
fn a_cache_that_cannot_be_made_or_written_is_not_needed() {
    let (vault, data) = vault_with_point();
    vault.write("taken", b"mine");
    assert_works_without(&vault, &vault.path("taken"), &data, "cannot make folder ");
    assert_eq!(fs::read(vault.path("taken")).unwrap(), b"mine");
    let at = vault.path("other");
    let Some(other) = Tmpfs::new(&at, "size=32m") else { return };
    other.remount("ro");
    assert_works_without(&vault, &at, &data, "Read-only file system");
    // One that was in use before.
    other.remount("rw");
    let mut command = vault.command(&["dump", "b"]);
    assert_eq!(finish(command.env("DISKVAULT_CACHE_DIR", &at)).code, 0);
    other.remount("ro");
    let mut command = vault.command(&["dump", "b"]);
    let outcome = finish(command.env("DISKVAULT_CACHE_DIR", &at));
    assert!(outcome.stdout == data && outcome.code == 4, "{}", outcome.stderr);
    vault.assert_intact();
}

#[test]
fn a_full_cache_is_not_needed() {
    let (vault, data) = vault_with_point();
    for pages in [1, 2, 4] {
        let at = vault.path(&format!("tiny{pages}"));
        let Some(_mount) = Tmpfs::new(&at, &format!("size={}k", 4 * pages)) else { return };
        fs::write(at.join("filler"), vec![1; 4096 * pages]).unwrap();
        assert_works_without(&vault, &at, &data, "No space left on device");
    }
    vault.assert_intact();
}

/// As on some network file systems.
#[test]
fn a_cache_without_locks_is_used_with_a_warning() {
    let (vault, data) = vault_with_point();
    let plain = vault.command(&["dump", "a"]);
    let mut command = Command::new("strace");
    command.args(["-f", "-o", "log", "-e", "inject=flock:error=ENOLCK:when=1..3"]);
    command.arg(plain.get_program()).args(plain.get_args()).current_dir(vault.path(""));
    command.env_clear();
    for (name, value) in plain.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    // The memory is locked twice, the index once; sled has a lock of its own behind them. And the
    // memory has something to be told.
    fs::remove_dir_all(vault.path("cache")).unwrap();
    let outcome = match command.output() {
        Ok(_) if vault.path("log").exists() => {
            fs::remove_dir_all(vault.path("cache")).unwrap();
            finish(&mut command)
        }
        _ => {
            eprintln!("skipped: strace is missing or may not trace");
            return;
        }
    };
    assert_eq!(outcome.code, 4, "{}", outcome.stderr);
    assert!(outcome.stdout == data);
    assert_eq!(outcome.stderr.lines().count(), 2, "{}", outcome.stderr);
    outcome.says("memory.lock: No locks available (os error 37); going on without the lock");
    outcome.says("the index is made in a temporary folder");
    assert!(files(&vault.path("cache")).iter().any(|file| file.ends_with("memory.json")));
}

#[test]
fn a_memory_that_another_process_holds_is_not_waited_for_for_ever() {
    let (vault, _) = vault_with_point();
    let cache = files(&vault.path("cache"));
    let name = cache.iter().find(|file| file.ends_with("memory.lock")).unwrap();
    let held = fs::File::open(vault.path("cache").join(name)).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let mut child = vault.command(&["list"]).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(800));
    assert!(child.try_wait().unwrap().is_none());
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let outcome = wait(child);
    assert_eq!(outcome.code, 130, "{outcome:?}");
    let outcome = vault.run(&["list"]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    outcome.says("memory.lock: another process has held it for 10 s").prints("1 point");
    drop(held);
    vault.ok(&["list"]);
}

/// Services and rescue systems have no home.
#[test]
fn no_place_for_a_cache_is_no_reason_not_to_restore() {
    let (vault, data) = vault_with_point();
    let mut command = vault.command(&["dump", "a"]);
    command.env_remove("HOME").env_remove("DISKVAULT_CACHE_DIR").env("TMPDIR", vault.path("tmp"));
    let outcome = finish(&mut command);
    assert_eq!(outcome.code, 4, "{}", outcome.stderr);
    outcome.says("warning: cannot find a place for the cache");
    assert!(outcome.stdout == data);
    assert!(files(&vault.path("tmp")).is_empty(), "{:?}", files(&vault.path("tmp")));
}

/// 262,144 new chunks are more than the index keeps in RAM: it writes them while the backup runs.
#[test]
fn a_cache_that_runs_full_does_not_end_a_backup() {
    const CHUNKS: u64 = 270_000;
    let vault = Vault::without_repository();
    vault.ok(&["init", "--no-recovery-key", "--chunk-size", "4KiB"]);
    let disk = fs::File::create(vault.path("disk")).unwrap();
    let mut block = vec![0_u8; 4 * MIB as usize];
    for first in (0..CHUNKS).step_by(1024) {
        for (number, chunk) in block.chunks_mut(4096).enumerate() {
            chunk[..8].copy_from_slice(&(first + number as u64 + 1).to_le_bytes());
        }
        disk.write_all_at(&block, first * 4096).unwrap();
    }
    let at = vault.path("small");
    let Some(_small) = Tmpfs::new(&at, "size=4m") else { return };
    let mut command = vault.command(&["backup", "--name", "a", "disk"]);
    let outcome = finish(command.env("DISKVAULT_CACHE_DIR", &at));
    assert_eq!(outcome.code, 4, "{outcome:?}");
    outcome.says("No space left on device").says("the next run fills the index again");
    // Another cache knows nothing of that.
    let outcome = vault.ok(&["backup", "--name", "a", "disk"]);
    outcome.prints("0 new chunks");
    vault.assert_intact();
}

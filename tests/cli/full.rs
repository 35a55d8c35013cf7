//! A repository on a file system that runs full.

use crate::support::{MIB, PATIENCE, Tmpfs, Vault, copy_folder, files, finish, random, wait};
use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Every file under a final name in packs/ is complete: its name is the hash of its bytes.
fn assert_packs_are_whole(vault: &Vault, repository: &str) -> usize {
    let packs = files(&vault.path(repository).join("packs"));
    for pack in &packs {
        let bytes = fs::read(vault.path(repository).join("packs").join(pack)).unwrap();
        let name = pack.rsplit('/').next().unwrap();
        assert_eq!(crate::support::blake3_hex(&bytes), name, "{pack} is a partial object");
    }
    packs.len()
}

#[test]
fn a_full_repository_loses_nothing_and_goes_on_when_there_is_room() {
    let vault = Vault::new();
    let at = vault.path("small");
    // Two packs of 32 MiB are written at a time: the first two fit, the third does not.
    let Some(small) = Tmpfs::new(&at, "size=96m") else { return };
    copy_folder(&vault.repo(), &at.join("repo"));
    let run = |arguments: &[&str]| {
        finish(vault.command(arguments).env("DISKVAULT_REPOSITORY", at.join("repo")))
    };
    let old = random(1, 8 * MIB);
    vault.write("old", &old);
    assert_eq!(run(&["backup", "--name", "a", "--disk", "vda=old"]).code, 0);
    let big = random(2, 100 * MIB);
    vault.write("big", &big);
    // Twice: the first attempt's complete packs must not make the second one succeed or worse.
    for kind in ["--disk", "--stream"] {
        let outcome = run(&["backup", "--name", "b", kind, "vda=big"]);
        assert_eq!(outcome.code, 6, "{outcome:?}");
        outcome.says("No space left on device").says("diskvault: cannot ");
        assert!(assert_packs_are_whole(&vault, "small/repo") >= 2);
        assert!(files(&at.join("repo/tmp")).is_empty(), "unfinished files take the space");
        let outcome = run(&["--json", "list"]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        assert_eq!(outcome.json().as_array().unwrap().len(), 1);
        let outcome = run(&["dump", "a"]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        assert!(outcome.stdout == old);
        let outcome = run(&["check", "--read-data"]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.prints("no damage found");
    }
    small.remount("size=512m");
    let outcome = run(&["--json", "backup", "--name", "b", "--disk", "vda=big"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let found = outcome.json()["deduplicated_bytes"].as_u64().unwrap();
    assert!(found > 8 * MIB, "what was stored is found again: {found}");
    assert!(run(&["dump", "b"]).stdout == big);
    let outcome = run(&["check", "--read-data"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert_packs_are_whole(&vault, "small/repo");
}

/// The producer says nothing more, and does not end either.
#[test]
fn a_full_repository_ends_a_backup_of_a_silent_pipe() {
    let vault = Vault::new();
    let at = vault.path("small");
    let Some(_small) = Tmpfs::new(&at, "size=20m") else { return };
    copy_folder(&vault.repo(), &at.join("repo"));
    let mut command = vault.command(&["backup", "--name", "a", "--stream", "vda=-"]);
    command.env("DISKVAULT_REPOSITORY", at.join("repo")).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // One pack's worth and a little more.
    pipe.write_all(&random(4, 44 * MIB)).unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < PATIENCE, "it waits for its pipe");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(pipe);
    let outcome = wait(child);
    assert_eq!(outcome.code, 6, "{outcome:?}");
    outcome.says("No space left on device");
}

#[test]
fn a_repository_without_any_room_still_gives_back_what_it_has() {
    let vault = Vault::new();
    let at = vault.path("small");
    let Some(_small) = Tmpfs::new(&at, "size=16m") else { return };
    copy_folder(&vault.repo(), &at.join("repo"));
    let run = |arguments: &[&str]| {
        finish(vault.command(arguments).env("DISKVAULT_REPOSITORY", at.join("repo")))
    };
    let old = random(3, 2 * MIB);
    vault.write("old", &old);
    assert_eq!(run(&["backup", "--name", "a", "--disk", "vda=old"]).code, 0);
    // Fill it to the last byte.
    let mut filler = fs::File::create(at.join("filler")).unwrap();
    let mut rest = 16 * MIB;
    while rest > 0 {
        if filler.write(&vec![1; usize::try_from(rest).unwrap()]).is_err() {
            rest /= 2;
        }
    }
    drop(filler);
    let outcome = run(&["backup", "--name", "b", "--disk", "vda=old"]);
    assert_eq!(outcome.code, 6, "{outcome:?}");
    let outcome = run(&["key", "add", "--recovery-key-file", "key"]);
    assert_eq!(outcome.code, 6, "{outcome:?}");
    assert!(!vault.path("key").exists(), "a key that opens nothing was left behind");
    for arguments in [vec!["list"], vec!["check", "--read-data"]] {
        let outcome = run(&arguments);
        assert_eq!(outcome.code, 0, "{outcome:?}");
    }
    assert!(run(&["dump", "a"]).stdout == old);
    fs::remove_file(at.join("filler")).unwrap();
    assert_eq!(run(&["backup", "--name", "b", "--disk", "vda=old"]).code, 0);
    let outcome = run(&["check", "--read-data"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

/// Everything lies on the one file system that is full: repository, cache and temporary files.
#[test]
fn a_prune_gives_room_back_when_there_is_hardly_any() {
    let vault = Vault::new();
    let at = vault.path("small");
    let Some(_small) = Tmpfs::new(&at, "size=24m") else { return };
    copy_folder(&vault.repo(), &at.join("repo"));
    fs::create_dir(at.join("tmp")).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = vault.command(arguments);
        command.env("DISKVAULT_REPOSITORY", at.join("repo"));
        command.env("DISKVAULT_CACHE_DIR", at.join("cache")).env("TMPDIR", at.join("tmp"));
        finish(&mut command)
    };
    let kept = random(5, MIB);
    vault.write("kept", &kept);
    vault.write("gone", &random(6, 6 * MIB));
    assert_eq!(run(&["backup", "--name", "a", "--disk", "vda=gone"]).code, 0);
    assert_eq!(run(&["backup", "--name", "a", "--disk", "vda=kept"]).code, 0);
    assert_eq!(run(&["forget", "--keep-last", "1"]).code, 0);
    // An index that has no room for its next state is made anew, which would give some.
    fs::remove_dir_all(at.join("cache")).unwrap();
    let mut filler = fs::File::create(at.join("filler")).unwrap();
    let mut filled = 0;
    let mut rest = 24 * MIB;
    while rest > 0 {
        match filler.write(&vec![1; usize::try_from(rest).unwrap()]) {
            Ok(bytes) if bytes > 0 => filled += bytes as u64,
            _ => rest /= 2,
        }
    }
    // Not a byte is free: no list can be put, and without one nothing may be deleted.
    let outcome = run(&["prune"]);
    assert_eq!(outcome.code, 6, "{outcome:?}");
    outcome.says("cannot write condemned/").hints("a few free KiB");
    filler.set_len(filled - (64 << 10)).unwrap();
    let outcome = run(&["prune"]);
    assert!([0, 4].contains(&outcome.code), "{outcome:?}");
    outcome.prints("freed 6.");
    // For the cache, which is made anew.
    filler.set_len(filled - 2 * MIB).unwrap();
    drop(filler);
    assert_eq!(run(&["dump", "a"]).stdout, kept);
    assert_eq!(run(&["backup", "--name", "a", "--disk", "vda=gone"]).code, 0);
    fs::remove_file(at.join("filler")).unwrap();
    let outcome = run(&["check", "--read-data"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

/// Every pack is needed in part, and there is no room to copy all that is needed at once.
#[test]
fn a_full_repository_is_pruned_bit_by_bit() {
    let vault = Vault::new();
    let at = vault.path("small");
    let Some(_small) = Tmpfs::new(&at, "size=120m") else { return };
    copy_folder(&vault.repo(), &at.join("repo"));
    let run = |arguments: &[&str]| {
        finish(vault.command(arguments).env("DISKVAULT_REPOSITORY", at.join("repo")))
    };
    let mut disk = random(5, 64 * MIB);
    for seed in [6, 7] {
        vault.write("disk", &disk);
        assert_eq!(run(&["backup", "--name", "a", "--disk", "vda=disk"]).code, 0);
        if seed == 6 {
            let new = random(seed, 32 * MIB);
            let mib = usize::try_from(MIB).unwrap();
            for (number, new) in new.chunks(mib).enumerate() {
                disk[2 * number * mib..][..mib].copy_from_slice(new);
            }
        }
    }
    assert_eq!(run(&["forget", "--keep-last", "1"]).code, 0);
    let outcome = run(&["prune", "--max-unused", "0"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let packs = at.join("repo/packs");
    let sizes = files(&packs).into_iter().map(|pack| fs::metadata(packs.join(pack)).unwrap().len());
    let left: u64 = sizes.sum();
    assert!(left < 66 * MIB, "{left} bytes are left");
    assert!(run(&["dump", "a"]).stdout == disk);
    assert_eq!(run(&["check", "--read-data"]).code, 0);
}

#[test]
fn init_without_room_leaves_no_recovery_key() {
    let vault = Vault::without_repository();
    let at = vault.path("small");
    let Some(_small) = Tmpfs::new(&at, "size=8k") else { return };
    let arguments = ["init", "--repo", "small/repo", "--recovery-key-file", "key"];
    vault.fails(6, &arguments, "No space left on device");
    assert!(!vault.path("key").exists(), "a key that opens nothing was left behind");
    let outcome = vault.fails(10, &["list", "--repo", "small/repo"], "cannot open repository");
    assert!(outcome.stdout.is_empty());
}

#[test]
fn a_read_only_repository_can_be_read() {
    let vault = Vault::new();
    let at = vault.path("small");
    let Some(small) = Tmpfs::new(&at, "size=32m") else { return };
    copy_folder(&vault.repo(), &at.join("repo"));
    vault.write("old", b"content");
    let repository = ["--repo", "small/repo"];
    let with = |arguments: &[&'static str]| [&repository[..], arguments].concat();
    vault.ok(&with(&["backup", "--name", "a", "old"]));
    small.remount("ro");
    for arguments in [vec!["list"], vec!["show", "a"], vec!["check", "--read-data"]] {
        vault.ok(&with(&arguments));
    }
    fs::remove_dir_all(vault.path("cache")).unwrap();
    assert_eq!(vault.ok(&with(&["dump", "a"])).stdout, b"content");
    let text = "Read-only file system";
    vault.fails(1, &with(&["backup", "--name", "a", "old"]), text);
    vault.fails(1, &with(&["key", "add", "--recovery-key-file", "key"]), text);
    assert!(!vault.path("key").exists());
    vault.ok(&with(&["list"])).prints("1 point\n");
}

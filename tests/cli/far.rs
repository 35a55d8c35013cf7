//! `ssh://`: the program at both ends, with a real sshd between them and keys bound to what they may.

use super::far_support::Sshd;
use super::support::{MIB, Outcome, Tmpfs, Vault, copy_folder, finish, poll, random, wait};
use diskvault::storage::local::LocalStorage;
use std::path::Path;
use std::process::Command;

/// A vault and an sshd with keys: `full`, which may run anything, `append` and `read`.
pub struct Far {
    pub vault: Vault,
    sshd: Sshd,
}

impl Far {
    /// `None`, with a message, where there is no sshd.
    pub fn new() -> Option<Far> {
        let vault = Vault::new();
        let serve = |flag: &str| {
            let program = env!("CARGO_BIN_EXE_diskvault");
            let (repo, log) = (vault.arg("repo"), vault.arg("log"));
            format!("{program} serve --stdio {flag} --restrict-to {repo} --log {log}")
        };
        let forced = [("append", serve("--append-only")), ("read", serve("--read-only"))];
        let sshd = Sshd::start(&forced)?;
        Some(Far { vault, sshd })
    }

    pub fn command(&self, key: &str, folder: &Path, arguments: &[&str]) -> Command {
        let mut command = self.vault.command(arguments);
        command
            .env("DISKVAULT_REPOSITORY", self.sshd.address("ssh", folder))
            .env("DISKVAULT_SSH_COMMAND", self.sshd.words(key).join(" "))
            .env("DISKVAULT_REMOTE_PROGRAM", env!("CARGO_BIN_EXE_diskvault"));
        command
    }

    fn run(&self, key: &str, arguments: &[&str]) -> Outcome {
        finish(&mut self.command(key, &self.vault.repo(), arguments))
    }

    fn ok(&self, key: &str, arguments: &[&str]) -> Outcome {
        let outcome = self.run(key, arguments);
        assert_eq!(outcome.code, 0, "{key} {arguments:?}: {outcome:?}");
        outcome
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.vault.path("log")).unwrap_or_default()
    }
}

#[test]
fn a_repository_over_there_is_used_as_one_here() {
    let Some(far) = Far::new() else { return };
    let disk = far.vault.write("disk.raw", &random(1, 8 * MIB));
    let folder = far.vault.path("over/there");
    let run = |arguments: &[&str]| finish(&mut far.command("full", &folder, arguments));
    let ok = |arguments: &[&str]| {
        let outcome = run(arguments);
        assert_eq!(outcome.code, 0, "{arguments:?}: {outcome:?}");
        outcome
    };
    let outcome = run(&["list"]);
    assert_eq!(outcome.code, 10, "{outcome:?}");
    ok(&["init", "--no-recovery-key"]);
    assert_eq!(run(&["init", "--no-recovery-key"]).code, 1);
    ok(&["backup", "--name", "web", &disk]);
    ok(&["backup", "--name", "web", &disk]);
    ok(&["restore", "web@latest~1/disk.raw", &far.vault.arg("back.raw")]);
    assert!(std::fs::read(far.vault.path("back.raw")).unwrap() == random(1, 8 * MIB));
    ok(&["forget", "web@latest~1"]);
    ok(&["prune"]);
    ok(&["check", "--read-data"]).prints("no damage found");
    assert!(LocalStorage::open(&folder).is_ok());
}

#[test]
fn a_key_that_may_only_add_points_adds_and_nothing_else() {
    let Some(far) = Far::new() else { return };
    let disk = far.vault.write("disk.raw", &random(1, 4 * MIB));
    let old = far.vault.write("old.raw", &random(9, 4 * MIB));
    far.ok("append", &["backup", "--name", "web", &old]);
    far.ok("append", &["backup", "--name", "web", "--tag", "a=b", &disk]);
    far.ok("append", &["restore", "web@latest/disk.raw", &far.vault.arg("back.raw")]);
    assert!(std::fs::read(far.vault.path("back.raw")).unwrap() == random(1, 4 * MIB));
    assert!(far.log().is_empty(), "{}", far.log());
    for arguments in
        [&["forget", "web@latest~1"][..], &["pin", "web@latest"], &["init", "--no-recovery-key"]]
    {
        let before = far.log().lines().count();
        let outcome = far.run("append", arguments);
        assert_eq!(outcome.code, 1, "{arguments:?}: {outcome:?}");
        let is_told = far.log().lines().count() > before;
        // A folder that is not empty is no new repository, whoever asks.
        assert!(is_told || arguments[0] == "init", "{arguments:?}");
    }
    assert!(far.log().contains("this login may only add points"), "{}", far.log());
    far.run("append", &["forget", "web@latest~1"]).says("this login may only add points");
    far.ok("read", &["check", "--read-data"]).prints("no damage found");
    let outcome = far.run("read", &["backup", "--name", "web", &disk]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    outcome.says("this login may only read");
    let elsewhere = finish(&mut far.command("append", &far.vault.path("elsewhere"), &["list"]));
    assert_eq!(elsewhere.code, 1, "{elsewhere:?}");
    elsewhere.says("this login may not use that folder");
    assert_eq!(far.vault.point_count(), 2);
    far.vault.assert_intact();
    far.vault.ok(&["forget", "web@latest~1"]);
    let outcome = far.run("append", &["prune"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    outcome.says("this login may only add points");
    far.vault.assert_intact();
    // Nothing of the finished runs stands in the way of others.
    far.vault.ok(&["prune"]).prints("1 packs deleted");
}

#[test]
fn sftp_serves_where_nothing_can_be_run() {
    let Some(far) = Far::new() else { return };
    let disk = far.vault.write("disk.raw", &random(1, 4 * MIB));
    let folder = far.vault.path("over/there");
    let run = |arguments: &[&str]| {
        let address = far.sshd.address("sftp", &folder);
        finish(far.command("full", &folder, arguments).env("DISKVAULT_REPOSITORY", address))
    };
    let ok = |arguments: &[&str]| {
        let outcome = run(arguments);
        assert_eq!(outcome.code, 0, "{arguments:?}: {outcome:?}");
        outcome
    };
    assert_eq!(run(&["list"]).code, 10);
    ok(&["init", "--no-recovery-key"]);
    assert_eq!(run(&["init", "--no-recovery-key"]).code, 1);
    let outcome = ok(&["backup", "--name", "web", &disk]);
    assert!(outcome.stderr.contains("SFTP can make no folder durable"), "{outcome:?}");
    ok(&["backup", "--name", "web", "--full", &disk]);
    ok(&["forget", "web@latest~1"]);
    ok(&["prune"]);
    ok(&["restore", "web@latest/disk.raw", &far.vault.arg("back.raw")]);
    assert!(std::fs::read(far.vault.path("back.raw")).unwrap() == random(1, 4 * MIB));
    ok(&["check", "--read-data"]).prints("no damage found");
    let unfinished = std::fs::read_dir(folder.join("tmp")).unwrap().count();
    assert_eq!(unfinished, 0);
}

/// A command in the place of ssh whose first line ends after so many writes to it, or fewer.
fn cutting(far: &Far, writes: u32) -> String {
    use std::os::unix::fs::PermissionsExt;
    let (once, words) = (far.vault.arg("once"), far.sshd.words("full").join(" "));
    let script = format!(
        "#!/bin/sh\nif mkdir {once} 2>/dev/null; then dd bs=64k count={writes} 2>/dev/null | {words} \"$@\"; \
         else exec {words} \"$@\"; fi\n"
    );
    let path = far.vault.write("cutting", script.as_bytes());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path
}

#[test]
fn a_backup_goes_on_when_its_line_is_cut() {
    let Some(far) = Far::new() else { return };
    let disk = far.vault.write("disk.raw", &random(1, 8 * MIB));
    for scheme in ["ssh", "sftp"] {
        let _ = std::fs::remove_dir(far.vault.path("once"));
        let outcome = finish(
            far.command("full", &far.vault.repo(), &["backup", "--full", "--name", scheme, &disk])
                .env("DISKVAULT_REPOSITORY", far.sshd.address(scheme, &far.vault.repo()))
                .env("DISKVAULT_SSH_COMMAND", cutting(&far, 80)),
        );
        assert_eq!(outcome.code, 0, "{scheme}: {outcome:?}");
        assert!(far.vault.path("once").exists());
        far.vault.ok(&["forget", "--force", scheme]);
        far.vault.ok(&["prune"]);
        far.vault.assert_intact();
    }
}

/// Backs up over SSH by a host that has nothing but the password; the bytes that went up and came down.
fn bytes_of_backup(far: &Far, folder: &Path, disk: &str) -> (u64, u64) {
    use std::os::unix::fs::PermissionsExt;
    let (up, down) = (far.vault.arg("up"), far.vault.arg("down"));
    let words = far.sshd.words("full").join(" ");
    let script = format!("#!/bin/sh\ntee {up} | {words} \"$@\" | tee {down}\n");
    let path = far.vault.write("counting", script.as_bytes());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    let disk = format!("vda={disk}");
    let mut command = far.command("full", folder, &["backup", "--name", "web", "--disk", &disk]);
    command.env("DISKVAULT_SSH_COMMAND", path);
    command.env("DISKVAULT_CACHE_DIR", far.vault.path("cache of the host"));
    let outcome = finish(&mut command);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let bytes = |file: &str| std::fs::metadata(file).unwrap().len();
    (bytes(&up), bytes(&down))
}

#[test]
fn a_repository_that_was_carried_there_is_gone_on_with() {
    let Some(far) = Far::new() else { return };
    let mut data = random(1, 24 * MIB);
    let disk = far.vault.write("disk.raw", &data);
    far.vault.ok(&["backup", "--name", "web", "--disk", &format!("vda={disk}")]);
    let there = far.vault.path("there");
    copy_folder(&far.vault.repo(), &there);
    data[5 << 20..6 << 20].copy_from_slice(&random(2, MIB));
    far.vault.write("disk.raw", &data);
    let (up, down) = bytes_of_backup(&far, &there, &disk);
    assert!((MIB..MIB + 300_000).contains(&up), "{up} bytes went up");
    // Its footers and its map: 32 bytes for each chunk in both.
    assert!(down < 300_000, "{down} bytes came down");
    let run = |arguments: &[&str]| finish(&mut far.command("full", &there, arguments));
    assert_eq!(run(&["check", "--read-data"]).code, 0);
    let back = run(&["restore", "web/vda", &far.vault.arg("back.raw")]);
    assert_eq!(back.code, 0, "{back:?}");
    assert!(std::fs::read(far.vault.path("back.raw")).unwrap() == data);
}

#[test]
fn an_image_adopted_over_there_spares_the_first_backup_its_bytes() {
    let Some(far) = Far::new() else { return };
    let mut data = random(1, 24 * MIB);
    // What rsync has left at the far end, where somebody adopts it.
    let old = far.vault.write("yesterday.img", &data);
    far.vault.ok(&["adopt", "--name", "web", "--disk", &format!("vda={old}")]);
    data[5 << 20..6 << 20].copy_from_slice(&random(2, MIB));
    let disk = far.vault.write("disk.raw", &data);
    let (up, down) = bytes_of_backup(&far, &far.vault.repo(), &disk);
    assert!((MIB..MIB + 300_000).contains(&up), "{up} bytes went up");
    assert!(down < 300_000, "{down} bytes came down");
    far.vault.assert_restores("web/vda", &data);
    far.vault.assert_intact();
}

#[test]
fn an_interrupted_backup_takes_its_lease_back() {
    use std::os::unix::process::CommandExt;
    let Some(far) = Far::new() else { return };
    let disk = far.vault.write("disk.raw", &random(1, 16 * MIB));
    let repo = far.vault.repo();
    let mut command =
        far.command("full", &repo, &["backup", "--limit-upload", "4MiB", "--name", "web", &disk]);
    // As a terminal does it: the signal goes to ssh as well.
    let mut child = command.process_group(0).spawn().unwrap();
    let leases = || std::fs::read_dir(repo.join("leases")).map_or(0, Iterator::count);
    assert!(poll(&mut child, || leases() > 0));
    std::thread::sleep(std::time::Duration::from_millis(500));
    let group = format!("-{}", child.id());
    assert!(Command::new("kill").args(["-INT", "--", &group]).status().unwrap().success());
    let outcome = wait(child);
    assert_eq!(outcome.code, 130, "{outcome:?}");
    assert_eq!(leases(), 0);
    far.vault.assert_intact();
}

#[test]
fn what_is_wrong_over_there_is_said() {
    let Some(far) = Far::new() else { return };
    let missing = finish(
        far.command("full", &far.vault.repo(), &["list"])
            .env("DISKVAULT_REMOTE_PROGRAM", "/nowhere/diskvault"),
    );
    assert_eq!(missing.code, 1, "{missing:?}");
    missing.says("/nowhere/diskvault").hints("has to be installed there");
    let keyless = "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=no \
                   -o UserKnownHostsFile=/dev/null -o IdentityFile=/nowhere";
    let denied = finish(
        far.command("full", &far.vault.repo(), &["list"]).env("DISKVAULT_SSH_COMMAND", keyless),
    );
    assert_eq!(denied.code, 1, "{denied:?}");
    denied.says("Permission denied");
    let away = finish(
        far.command("full", &far.vault.repo(), &["list"])
            .env("DISKVAULT_SSH_COMMAND", keyless)
            .env("DISKVAULT_REPOSITORY", "ssh://127.0.0.1:1/srv"),
    );
    assert_eq!(away.code, 1, "{away:?}");
    away.says("cannot reach ssh://127.0.0.1:1/srv: ");
    let usage = far.vault.run(&["serve"]);
    assert_eq!(usage.code, 2);
}

#[test]
fn a_full_disk_over_there_is_no_space_and_loses_nothing() {
    let Some(far) = Far::new() else { return };
    let folder = far.vault.path("small");
    let Some(_small) = Tmpfs::new(&folder, "size=12m") else { return };
    let run =
        |arguments: &[&str]| finish(&mut far.command("full", &folder.join("repo"), arguments));
    assert_eq!(run(&["init", "--no-recovery-key"]).code, 0);
    let little = far.vault.write("little.raw", &random(1, 2 * MIB));
    let much = far.vault.write("much.raw", &random(2, 32 * MIB));
    assert_eq!(run(&["backup", "--name", "web", &little]).code, 0);
    let outcome = run(&["backup", "--name", "big", &much]);
    assert_eq!(outcome.code, 6, "{outcome:?}");
    let checked = run(&["check", "--read-data"]);
    assert!(checked.code == 0 || checked.code == 4, "{checked:?}");
    assert_eq!(run(&["backup", "--name", "web", &little]).code, 0);
}

#[test]
fn a_far_end_of_another_version_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let vault = Vault::new();
    for (versions, code, text, hint) in [
        (
            "\\143\\000\\143\\000",
            13,
            "it has diskvault 9.9.9, whose protocol is too new",
            "on this machine",
        ),
        ("\\000\\000\\000\\000", 1, "whose protocol is too old", "over there"),
    ] {
        let hello = format!("dvfar\\r\\n\\000{versions}\\010\\000\\000\\000\\005\\0009.9.9\\001");
        let script = format!("#!/bin/sh\nprintf '{hello}'\ncat >/dev/null\n");
        let path = vault.write("another", script.as_bytes());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        for arguments in [&["list"][..], &["backup", "--name", "web", &path]] {
            let mut command = vault.command(arguments);
            command.env("DISKVAULT_REPOSITORY", "ssh://nas/srv/vault");
            let outcome = finish(command.env("DISKVAULT_SSH_COMMAND", &path));
            assert_eq!(outcome.code, code, "{outcome:?}");
            outcome.says(text).hints(hint);
        }
    }
}

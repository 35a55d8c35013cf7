//! `mirror` and `backup --then-mirror`.

use crate::support::{MIB, Vault, allocated, random};
use crate::{History, SIZE, number, tool};
use std::fs;

#[test]
fn a_qcow2_mirror_follows_and_is_mended_after_it_was_started() {
    let history = History::new();
    let vault = &history.vault;
    let mirror = vault.arg("mirror.qcow2");
    let follow =
        |day: usize| vault.json(&["mirror", &format!("{}/sda", history.points[day]), &mirror]);
    let assert_is = |day: usize, what: &str| {
        let day = vault.write("day", &history.days[day]);
        tool("qemu-img", &["check", "-f", "qcow2", &mirror]);
        tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &day, &mirror]);
        let info = tool("qemu-img", &["info", "--output", "json", &mirror]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["virtual-size"], SIZE, "{what}");
        assert!(allocated(vault.path("mirror.qcow2").as_path()) < 5 * MIB, "{what}");
    };
    assert_eq!(follow(0)["before"], "new");
    assert_is(0, "new");
    for day in [1, 2, 0, 2] {
        let report = follow(day);
        assert_eq!(report["before"], "known");
        assert_eq!(number(&report, "target_read_bytes"), 0);
        assert_is(day, "known");
    }
    // A machine was started on it and wrote, also zeros, to its disk.
    let writes =
        ["-c", "write -P 7 1M 64k", "-c", "write -z 0 128k", "-c", "discard 2M 1M", &mirror];
    tool("qemu-io", &[&["-f", "qcow2", "-d", "unmap"][..], &writes].concat());
    let outcome = vault.ok(&["mirror", &format!("{}/sda", history.points[1]), &mirror]);
    outcome.says("was changed since it was written");
    assert_is(1, "after it was started");
    // And somebody made a snapshot of it, and made it longer.
    tool("qemu-img", &["snapshot", "-c", "before", &mirror]);
    tool("qemu-io", &["-f", "qcow2", "-c", "write -P 9 3M 2M", &mirror]);
    tool("qemu-img", &["snapshot", "-d", "before", &mirror]);
    tool("qemu-img", &["resize", &mirror, "40M"]);
    assert_eq!(follow(2)["before"], "changed");
    assert_is(2, "after a snapshot");
    assert_eq!(follow(2)["before"], "known");
}

#[test]
fn a_running_machine_keeps_its_mirror() {
    let history = History::new();
    let vault = &history.vault;
    let mirror = vault.arg("mirror.qcow2");
    vault.ok(&["mirror", "vm/sda", &mirror]);
    let before = fs::read(&mirror).unwrap();
    // Holds the image open for writing until its standard input ends.
    let mut machine = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", &mirror])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let file = fs::File::open(&mirror).unwrap();
    let is_locked = || diskvault::source::qemu_locks::is_written(&file);
    assert!(crate::support::poll(&mut machine, is_locked), "qemu-io ended");
    let first = format!("{}/sda", history.points[0]);
    vault.fails(1, &["mirror", &first, &mirror], "it is in use by a QEMU that may write to it");
    drop(machine.stdin.take());
    machine.wait().unwrap();
    assert!(fs::read(&mirror).unwrap() == before);
    vault.ok(&["mirror", &first, &mirror]);
}

#[test]
fn what_was_never_a_mirror_is_not_overwritten() {
    let history = History::new();
    let vault = &history.vault;
    let theirs = random(9, MIB);
    let target = vault.write("theirs", &theirs);
    let outcome = vault.fails(1, &["mirror", "vm/sda", &target], "is not known to be a mirror");
    outcome.hints("use --force to overwrite it");
    assert!(fs::read(&target).unwrap() == theirs);
    vault.ok(&["mirror", "--force", "vm/sda", &target]);
    assert!(fs::read(&target).unwrap() == history.days[2]);
    // From now on it is one, also after a run that was not finished.
    fs::write(&target, random(10, MIB)).unwrap();
    vault.ok(&["mirror", "vm/sda", &target]);
    assert!(fs::read(&target).unwrap() == history.days[2]);
}

#[test]
fn a_backup_feeds_its_mirror() {
    let vault = Vault::new();
    let disk = vault.write("disk", &random(1, 3 * MIB));
    let mirror = vault.arg("mirror.raw");
    let named = format!("sda={disk}");
    let backup = |target: &str| {
        vault.run(&["backup", "--name", "vm", "--disk", &named, "--then-mirror", target])
    };
    for seed in [1, 2] {
        fs::write(&disk, random(seed, 3 * MIB)).unwrap();
        let outcome = backup(&mirror);
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        assert!(fs::read(&mirror).unwrap() == random(seed, 3 * MIB));
    }
    let points = vault.point_count();
    let outcome = backup(&disk);
    assert_eq!(outcome.code, 1);
    outcome.says("it is a source of this backup");
    assert_eq!(vault.point_count(), points, "a point was made all the same");
    let outcome = backup(&vault.arg("missing/mirror"));
    assert_eq!(outcome.code, 1);
    outcome.says("was made, but cannot restore to").says("does not exist");
    assert_eq!(vault.point_count(), points + 1);
}

#[test]
fn a_machine_of_several_disks_is_mirrored_into_a_folder() {
    let vault = Vault::new();
    let (sda, sdb) = (vault.write("a", &random(1, 2 * MIB)), vault.write("b", &random(2, MIB)));
    let xml = vault.write("domain.xml", b"<domain/>");
    let arguments = ["--disk", &format!("sda={sda}"), "--disk", &format!("sdb={sdb}"), &xml];
    vault.backup("vm", &arguments);
    let folder = vault.arg("mirrors");
    vault.ok(&["mirror", "vm", &folder]);
    fs::write(&sdb, random(3, MIB)).unwrap();
    fs::write(&xml, b"<domain>2</domain>").unwrap();
    vault.backup("vm", &arguments);
    vault.ok(&["mirror", "vm", &folder]);
    for (name, bytes) in [
        ("sda", random(1, 2 * MIB)),
        ("sdb", random(3, MIB)),
        ("domain.xml", b"<domain>2</domain>".to_vec()),
    ] {
        assert!(fs::read(vault.path("mirrors").join(name)).unwrap() == bytes, "{name}");
    }
    assert_eq!(fs::read_dir(vault.path("mirrors")).unwrap().count(), 3);
    // One disk of it alone, and a file where a folder is needed.
    vault.ok(&["mirror", "vm/sdb", &vault.arg("one")]);
    assert!(fs::read(vault.path("one")).unwrap() == random(3, MIB));
    vault.fails(1, &["mirror", "vm", &vault.arg("one")], "it is no folder");
}

//! `mirror` and `backup --then-mirror`.

use crate::support::{LoopDevice, MIB, Vault, allocated, random, write_sparse};
use crate::{History, SIZE, number, tool, write};
use diskvault::target::{Layout, ReuseTarget, Reused};
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
    let is_locked = || diskvault::qemu_locks::is_written(&file);
    assert!(crate::support::poll(&mut machine, is_locked), "qemu-io ended");
    let first = format!("{}/sda", history.points[0]);
    vault.fails(1, &["mirror", &first, &mirror], "it is in use by a QEMU");
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
    outcome.says("was made, but cannot write to").says("does not exist");
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

/// The tables of an image grow by 2 MiB for each 512 GiB, and all that is behind them moves.
#[test]
fn a_qcow2_mirror_follows_a_disk_over_the_border_of_its_tables() {
    let vault = Vault::new();
    let (disk, mirror) = (vault.arg("disk"), vault.arg("mirror.qcow2"));
    let gib = 1 << 30;
    for (size, byte) in [(511 * gib, 0x11), (513 * gib, 0x11), (511 * gib, 0x22)] {
        write_sparse(
            vault.path("disk").as_path(),
            size,
            &[(0, &vec![byte; 3 << 20]), (MIB * 9, b"x")],
        );
        vault.backup("vm", &["--disk", &format!("sda={disk}")]);
        vault.ok(&["mirror", "vm/sda", &mirror]);
        tool("qemu-img", &["check", "-f", "qcow2", &mirror]);
        let commands = [format!("read -P {byte} 0 3M"), "read -P 120 9M 1".to_string()];
        for command in &commands {
            let said = tool("qemu-io", &["-r", "-f", "qcow2", "-c", command, &mirror]);
            assert!(!said.contains("verification failed"), "{size}: {said}");
        }
        assert!(allocated(vault.path("mirror.qcow2").as_path()) < 12 * MIB);
    }
}

#[test]
fn a_qcow2_mirror_forgets_what_a_disk_that_shrank_held() {
    let vault = Vault::new();
    let (disk, mirror) = (vault.write("disk", &random(1, 3 * MIB)), vault.arg("mirror.qcow2"));
    let file = fs::File::options().write(true).open(&disk).unwrap();
    for size in [3 * MIB, 2560 << 10, 3 * MIB, 0, 3 * MIB] {
        file.set_len(size).unwrap();
        vault.backup("vm", &["--disk", &format!("sda={disk}")]);
        vault.ok(&["mirror", "vm/sda", &mirror]);
        tool("qemu-img", &["check", "-f", "qcow2", &mirror]);
        tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &disk, &mirror]);
    }
}

/// File times are whole seconds there, and the write comes within the same one.
#[test]
fn a_write_shows_where_file_times_are_coarse() {
    let history = History::new();
    let vault = &history.vault;
    let image = vault.path("file-system");
    fs::File::create(&image).unwrap().set_len(64 * MIB).unwrap();
    tool("mkfs.ext4", &["-q", "-I", "128", image.to_str().unwrap()]);
    let Some(device) = LoopDevice::new(&image) else { return };
    let at = vault.path("mounted");
    fs::create_dir(&at).unwrap();
    tool("mount", &[&device.0, at.to_str().unwrap()]);
    let target = at.join("mirror");
    let path = target.to_str().unwrap();
    let mirror = || vault.json(&["mirror", "vm/sda", path]);
    let mut found = Vec::new();
    for _ in 0..3 {
        found.push(mirror()["before"].clone());
        write(&target, 100, b"somebody else");
        found.push(mirror()["before"].clone());
        found.push(serde_json::Value::Bool(fs::read(&target).unwrap() == history.days[2]));
    }
    tool("umount", &[at.to_str().unwrap()]);
    let expected = ["new", "changed", "known", "changed", "known", "changed"];
    let before: Vec<_> = found.iter().filter_map(|found| found.as_str()).collect();
    assert_eq!(before, expected);
    assert!(found.iter().all(|found| *found != false), "{found:?}");
}

#[test]
fn nobody_else_gets_at_a_mirror_that_is_written_to() {
    let history = History::new();
    let vault = &history.vault;
    let mirror = vault.arg("mirror");
    vault.ok(&["mirror", "vm/sda", &mirror]);
    let options = ReuseTarget { size: SIZE, layout: Layout::Raw, force: false, read_only: false };
    let held = Reused::open(vault.path("mirror").as_path(), options).unwrap();
    let locked = "another program holds a lock on it";
    vault.fails(1, &["mirror", "vm/sda", &mirror], locked);
    vault.fails(1, &["restore", "--force", "vm/sda", &mirror], locked);
    let mut qemu = std::process::Command::new("qemu-io");
    let output = qemu.args(["-f", "raw", "-c", "write 0 4k", &mirror]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("lock"), "{said}");
    assert!(fs::read(&mirror).unwrap() == history.days[2]);
    drop(held);
    vault.ok(&["restore", "--force", "vm/sda", &mirror]);
}

#[test]
fn a_mirror_below_an_overlay_that_is_open_is_left_alone() {
    let history = History::new();
    let vault = &history.vault;
    let (mirror, overlay) = (vault.arg("mirror"), vault.arg("overlay.qcow2"));
    vault.ok(&["mirror", "vm/sda", &mirror]);
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &mirror, "-F", "raw", &overlay]);
    let mut machine = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", &overlay])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let file = fs::File::open(&mirror).unwrap();
    let is_read = || diskvault::qemu_locks::is_open(&file);
    assert!(crate::support::poll(&mut machine, is_read), "qemu-io ended");
    let first = format!("{}/sda", history.points[0]);
    vault.fails(1, &["mirror", &first, &mirror], "it is in use by a QEMU");
    drop(machine.stdin.take());
    machine.wait().unwrap();
    assert!(fs::read(&mirror).unwrap() == history.days[2]);
}

#[test]
fn a_file_of_somebody_else_is_not_replaced_by_a_stream() {
    let vault = Vault::new();
    let disk = vault.write("a", &random(1, 2 * MIB));
    let notes = vault.write("notes.txt", b"ours");
    vault.backup("vm", &["--disk", &format!("sda={disk}"), &notes]);
    fs::create_dir(vault.path("folder")).unwrap();
    vault.write("folder/notes.txt", b"theirs");
    let folder = vault.arg("folder");
    let outcome = vault.fails(1, &["mirror", "vm", &folder], "is not known to be a mirror");
    outcome.hints("use --force");
    assert_eq!(fs::read(vault.path("folder/notes.txt")).unwrap(), b"theirs");
    vault.ok(&["mirror", "--force", "vm", &folder]);
    vault.write("folder/notes.txt", b"changed");
    vault.ok(&["mirror", "vm", &folder]);
    assert_eq!(fs::read(vault.path("folder/notes.txt")).unwrap(), b"ours");
}

/// A guest can write what it likes to the first bytes of its disk.
#[test]
fn a_raw_mirror_stays_raw_whatever_its_guest_writes() {
    let history = History::new();
    let vault = &history.vault;
    let mirror = vault.arg("mirror");
    vault.ok(&["mirror", "vm/sda", &mirror]);
    write(vault.path("mirror").as_path(), 0, b"QFI\xfb");
    vault.ok(&["mirror", "vm/sda", &mirror]);
    assert!(fs::read(&mirror).unwrap() == history.days[2]);
    // And an image is not made raw by a restore that does not know of it.
    let image = vault.arg("image.qcow2");
    vault.ok(&["mirror", "vm/sda", &image]);
    let before = fs::read(&image).unwrap();
    let arguments = ["restore", "--in-place", "vm/sda", &image];
    vault.fails(1, &arguments, "it is a qcow2 image").hints("diskvault mirror");
    assert!(fs::read(&image).unwrap() == before);
}

#[test]
fn a_trial_tells_what_a_new_mirror_takes_and_makes_nothing() {
    let history = History::new();
    let vault = &history.vault;
    fs::create_dir(vault.path("folder")).unwrap();
    let mirror = vault.arg("folder/mirror");
    let trial = vault.json(&["mirror", "--dry-run", "vm/sda", &mirror]);
    assert_eq!(fs::read_dir(vault.path("folder")).unwrap().count(), 0);
    let report = vault.json(&["mirror", "vm/sda", &mirror]);
    assert_eq!(number(&trial, "written_bytes"), number(&report, "written_bytes"));
    assert!(number(&trial, "written_bytes") > 3 * MIB);
    let missing = vault.arg("missing/mirror");
    vault.fails(1, &["mirror", "--dry-run", "vm/sda", &missing], "does not exist");
    tool("mkfifo", &[&vault.arg("fifo")]);
    vault.fails(1, &["mirror", "vm/sda", &vault.arg("fifo")], "neither a regular file nor");
}

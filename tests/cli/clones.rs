//! Reflink clones of raw disks, on an XFS and a btrfs of their own.

use crate::support::{LoopDevice, MIB, Vault, files, random};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Mounted {
    at: PathBuf,
    _device: LoopDevice,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
    }
}

/// A file system in the vault's folder; nothing, with a message, where there can be none.
fn mount(vault: &Vault, kind: &str) -> Option<Mounted> {
    let file = vault.path("file-system");
    fs::File::create(&file).unwrap().set_len(600 * MIB).unwrap();
    let made = Command::new(format!("mkfs.{kind}")).arg("-q").arg(&file).output();
    let device = LoopDevice::new(&file);
    let (Ok(made), Some(device)) = (made, device) else {
        eprintln!("skipped: there is no {kind} here");
        return None;
    };
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let at = vault.path(kind);
    fs::create_dir(&at).unwrap();
    let mounted = Command::new("mount").arg(&device.0).arg(&at).output().unwrap();
    if !mounted.status.success() {
        eprintln!("skipped: {}", String::from_utf8_lossy(&mounted.stderr));
        return None;
    }
    Some(Mounted { at, _device: device })
}

fn tracking(vault: &Vault) -> Value {
    vault.json(&["show", "m"])["disks"][0]["tracking"].clone()
}

fn write(disk: &Path, offset: u64, bytes: &[u8]) {
    fs::File::options().write(true).open(disk).unwrap().write_all_at(bytes, offset).unwrap();
}

#[test]
fn what_differs_from_the_last_clone_is_read() {
    for kind in ["xfs", "btrfs"] {
        let vault = Vault::new();
        let Some(mounted) = mount(&vault, kind) else { continue };
        let disk = mounted.at.join("disk.raw");
        let clones = mounted.at.join("clones");
        fs::create_dir(&clones).unwrap();
        fs::write(&disk, random(1, 40 * MIB)).unwrap();
        fs::File::options().write(true).open(&disk).unwrap().set_len(64 * MIB).unwrap();
        let (path, folder) = (disk.to_str().unwrap(), clones.to_str().unwrap());
        let backup = |further: &[&str]| {
            let arguments = ["backup", "--name", "m", "--clones", folder, path];
            vault.run(&[&arguments[..], further].concat())
        };
        assert_eq!(backup(&[]).code, 0);
        assert!(tracking(&vault).is_null());
        for round in 0..4_u64 {
            // Into data, into holes, a hole into data, and the times put back.
            write(&disk, round * 8 * MIB + 5, &random(round + 2, 4096));
            write(&disk, (50 + round) * MIB, b"into a hole");
            let punched = format!("--offset={}", (20 + round) * MIB);
            let arguments = ["--punch-hole", &punched, "--length=65536", path];
            assert!(Command::new("fallocate").args(arguments).status().unwrap().success());
            let state = fs::read(&disk).unwrap();
            let outcome = backup(&["--reread", "1/1000"]);
            assert_eq!(outcome.code, 0, "{kind}: {outcome:?}");
            let tracking = tracking(&vault);
            assert_eq!(tracking["hint"], "the clone of the last backup", "{kind}: {tracking}");
            assert!(tracking["inherited_bytes"].as_u64().unwrap() > 55 * MIB, "{kind}: {tracking}");
            vault.assert_restores("m", &state);
            assert_eq!(files(&clones).len(), 1, "{kind}");
        }
        // One that was written to is no witness, and neither is one of another point.
        let clone = clones.join(&files(&clones)[0]);
        write(&disk, 3 * MIB, b"new");
        write(&clone, 3 * MIB, b"new");
        let outcome = backup(&[]);
        assert_eq!(outcome.code, 4, "{kind}: {outcome:?}");
        outcome.says("the clone of the last backup does not count: ").says("was written to since");
        vault.assert_restores("m", &fs::read(&disk).unwrap());
        // Of a disk that has grown.
        fs::File::options().write(true).open(&disk).unwrap().set_len(72 * MIB).unwrap();
        write(&disk, 70 * MIB, b"grown");
        assert_eq!(backup(&[]).code, 0);
        assert!(!tracking(&vault)["inherited_bytes"].is_null());
        vault.assert_restores("m", &fs::read(&disk).unwrap());
        // A backup that fails takes its clone with it.
        let before = files(&clones);
        let arguments = ["backup", "--name", "m", "--clones", folder, path, "/nowhere/file"];
        assert_eq!(vault.run(&arguments).code, 1);
        assert_eq!(files(&clones), before, "{kind}");
        vault.assert_intact();
        let other = vault.arg("other");
        fs::create_dir(&other).unwrap();
        let outcome = vault.run(&["backup", "--name", "m", "--clones", &other, path]);
        assert_eq!(outcome.code, 1, "{outcome:?}");
        outcome.says("cannot clone disk ").hints("clones need a folder on the same XFS or btrfs");
        assert!(files(Path::new(&other)).is_empty());
    }
}

/// A disk in a subvolume, by what btrfs says between two snapshots of it: written, punched, cloned onto
/// itself, cut and grown.
#[test]
fn the_steps_between_two_btrfs_snapshots_are_a_change_list() {
    let vault = Vault::new();
    let Some(mounted) = mount(&vault, "btrfs") else { return };
    let run = |line: &str| {
        let mut command = Command::new("sh");
        let output = command.args(["-ec", line]).current_dir(&mounted.at).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        output.stdout
    };
    run("btrfs subvolume create vms");
    let disk = mounted.at.join("vms/disk.raw");
    fs::write(&disk, random(1, 40 * MIB)).unwrap();
    let resize = |size| fs::File::options().write(true).open(&disk).unwrap().set_len(size).unwrap();
    resize(64 * MIB);
    run("sync; btrfs subvolume snapshot -r vms 0");
    let backup = |number: u64, code: i32, further: &[&str]| {
        let path = format!("vda={}/{number}/disk.raw", mounted.at.display());
        let arguments = ["backup", "--name", "m", "--disk", &path];
        let outcome = vault.run(&[&arguments[..], further].concat());
        assert_eq!(outcome.code, code, "{}", outcome.stderr);
    };
    backup(0, 0, &[]);
    for number in 1..4_u64 {
        write(&disk, number * 8 * MIB + 5, &random(number + 2, 4096));
        write(&disk, (50 + number) * MIB, b"into a hole");
        let at = (20 + number) * MIB;
        run(&format!("fallocate --punch-hole --offset {at} --length 65536 vms/disk.raw"));
        if number == 2 {
            resize(63 * MIB);
            resize(64 * MIB + 512);
            run("cp --reflink=always vms/disk.raw copy");
        }
        let old = number - 1;
        run(&format!("sync; btrfs subvolume snapshot -r vms {number}"));
        let send = format!("btrfs send -q --no-data -p {old} {number} | btrfs receive --dump");
        vault.write("steps", &run(&send));
        backup(number, 0, &["--base", "m", "--changed", "steps", "--reread", "1/1000"]);
        let hinted = vault.json(&["show", "m"])["disks"][0].clone();
        assert_eq!(hinted["tracking"]["hint"], "change list steps");
        // Of a disk that has grown, the leaf of the map at its old end is read; and btrfs may tell more
        // than has changed.
        let inherited = if number == 1 { 58 * MIB } else { 30 * MIB };
        assert!(hinted["tracking"]["inherited_bytes"].as_u64().unwrap() > inherited, "{hinted}");
        vault.assert_restores("m", &fs::read(&disk).unwrap());
        backup(number, 0, &["--full"]);
        assert_eq!(vault.json(&["show", "m"])["disks"][0]["map_root"], hinted["map_root"]);
    }
    // What does not tell of the holes, or of one file alone, is no list.
    for (line, text) in [
        ("btrfs subvolume find-new vms 1", "does not tell of holes"),
        ("btrfs send -q --no-data 1 | btrfs receive --dump", "without `-p OLD`"),
        (
            "cp vms/disk.raw vms/other; sync; btrfs subvolume snapshot -r vms 9 >&2; \
             btrfs send -q --no-data -p 3 9 | btrfs receive --dump",
            "a step \"mkfile\" may do more than change data",
        ),
    ] {
        vault.write("steps", &run(line));
        let disk = format!("vda={}", disk.display());
        let hint = ["--base", "m", "--changed", "steps"];
        vault.fails(2, &[&["backup", "--name", "m", "--disk", &disk], &hint[..]].concat(), text);
    }
    vault.assert_intact();
}

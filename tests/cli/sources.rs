//! Sources that misbehave: no point is made of them, the message names them, and what was
//! stored before stays whole.
//!
//! A FIFO in front of the disk makes the moment certain: all inputs are open by then, and the
//! disk is read only after the FIFO has ended.

use crate::support::{MIB, Outcome, Vault, files, finish, poll, random, wait};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

fn make_fifo(vault: &Vault, name: &str) {
    assert!(Command::new("mkfifo").arg(vault.path(name)).status().unwrap().success());
}

/// True if the process has the file open.
fn has_open(process: u32, path: &Path) -> bool {
    let Ok(links) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    links.flatten().any(|link| fs::read_link(link.path()).is_ok_and(|target| target == path))
}

/// A vault with a point of `disk`, 4 MiB.
fn vault_with_disk() -> (Vault, Vec<u8>) {
    let vault = Vault::new();
    let data = random(1, 4 * MIB);
    vault.write("disk", &data);
    vault.backup("a", &["disk"]);
    make_fifo(&vault, "fifo");
    (vault, data)
}

/// Backs up FIFO and disk, and does `change` to the disk while the program has it open.
fn back_up_during(vault: &Vault, further: &[&str], change: &dyn Fn(&Path)) -> Outcome {
    let mut arguments = vec!["backup", "--name", "a"];
    arguments.extend(further);
    arguments.extend(["fifo", "disk"]);
    let mut child = vault.command(&arguments).spawn().unwrap();
    // Opening waits until the program has opened its end.
    let mut fifo = fs::File::options().write(true).open(vault.path("fifo")).unwrap();
    let disk = vault.path("disk").canonicalize().unwrap();
    let process = child.id();
    assert!(poll(&mut child, || has_open(process, &disk)));
    change(&disk);
    fifo.write_all(b"go on").unwrap();
    drop(fifo);
    wait(child)
}

/// A vault where there is qemu-img; nothing, with a message, where there is none.
pub fn vault_with_qemu() -> Option<Vault> {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        eprintln!("skipped: there is no qemu-img");
        return None;
    }
    Some(Vault::new())
}

/// Runs a program in the vault's folder.
pub fn run_in(vault: &Vault, program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).current_dir(vault.path("")).output();
    assert!(status.unwrap().status.success(), "{program} {arguments:?}");
}

/// The failed run left the older point and nothing else.
fn assert_nothing_lost(vault: &Vault, older: &[u8]) {
    assert_eq!(vault.point_count(), 1);
    assert!(files(&vault.path("repo/leases")).is_empty(), "the lease was left behind");
    vault.assert_restores("a", older);
    vault.assert_intact();
}

fn set_size(path: &Path, bytes: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

#[test]
fn a_disk_that_shrinks_makes_no_point() {
    for chunker in ["auto", "fastcdc"] {
        let (vault, data) = vault_with_disk();
        for size in [MIB, 4 * MIB - 1, 0] {
            vault.write("disk", &data);
            let further = ["--chunker", chunker, "--threads", "1"];
            let outcome = back_up_during(&vault, &further, &|disk| set_size(disk, size));
            assert_eq!(outcome.code, 1, "{outcome:?}");
            outcome.says(" disk disk").says("shrank while it was read: expected 4194304, found ");
        }
        assert_nothing_lost(&vault, &data);
    }
}

#[test]
fn a_disk_that_grows_makes_no_point() {
    for chunker in ["auto", "fastcdc"] {
        let (vault, data) = vault_with_disk();
        for size in [4 * MIB + 1, 9 * MIB] {
            vault.write("disk", &data);
            let further = ["--chunker", chunker];
            let outcome = back_up_during(&vault, &further, &|disk| set_size(disk, size));
            assert_eq!(outcome.code, 1, "{outcome:?}");
            let text = format!("grew while it was read: expected 4194304, found {size} bytes");
            outcome.says("cannot trust disk disk: ").says(&text);
        }
        assert_nothing_lost(&vault, &data);
        // What it has grown to is a disk like any other next time.
        vault.backup("a", &["disk"]);
        assert_eq!(vault.json(&["show", "a"])["disks"][0]["bytes"], 9 * MIB);
    }
}

#[test]
fn a_disk_that_vanishes_or_is_replaced_makes_no_point() {
    let (vault, data) = vault_with_disk();
    let outcome = back_up_during(&vault, &[], &|disk| fs::remove_file(disk).unwrap());
    assert_eq!(outcome.code, 1, "{outcome:?}");
    outcome.says("cannot trust disk disk: it was removed while it was read");
    vault.write("disk", &data);
    vault.write("other", &data);
    let outcome = back_up_during(&vault, &[], &|disk| {
        fs::rename(disk.with_file_name("other"), disk).unwrap();
    });
    assert_eq!(outcome.code, 1, "{outcome:?}");
    outcome.says("cannot trust disk disk: it was replaced by another file while it was read");
    assert_nothing_lost(&vault, &data);
}

#[test]
fn a_disk_whose_bytes_change_is_whole_all_the_same() {
    // Writes during a backup are the user's affair; but what is stored has to verify.
    let (vault, _) = vault_with_disk();
    let changed = random(2, 4 * MIB);
    let outcome = back_up_during(&vault, &[], &|disk| {
        let mut file = fs::File::options().write(true).open(disk).unwrap();
        file.write_all(&changed).unwrap();
    });
    assert_eq!(outcome.code, 0, "{outcome:?}");
    vault.assert_restores("a/disk", &changed);
    vault.assert_restores("a/fifo", b"go on");
    vault.assert_intact();
}

#[test]
fn what_cannot_be_read_makes_no_point() {
    let (vault, data) = vault_with_disk();
    let outcome = vault.fails(
        1,
        &["backup", "--name", "a", "--stream", "memory=/proc/self/mem"],
        "cannot read /proc/self/mem at offset 0: Input/output error",
    );
    assert!(!outcome.text().contains("point "));
    // Also if a good part was stored before.
    vault.write("good", &random(3, 3 * MIB));
    let arguments = ["backup", "--name", "a", "--disk", "good=good", "/proc/self/mem"];
    vault.fails(1, &arguments, "cannot read /proc/self/mem at offset 0");
    assert_nothing_lost(&vault, &data);
}

#[test]
fn what_cannot_be_opened_costs_nothing() {
    let (vault, data) = vault_with_disk();
    let packs = files(&vault.path("repo/packs"));
    let cases = [
        (vec!["missing"], "cannot open source missing: No such file or directory"),
        (vec!["disk", "missing"], "cannot open source missing: No such file or directory"),
        (vec!["repo"], "cannot open source repo: it is a directory"),
        (vec!["--disk", "x=repo"], "cannot open source repo: it is a directory"),
        (vec!["--disk", "x=fifo"], "neither a regular file nor a block device"),
        (vec!["--disk", "x=/dev/null"], "neither a regular file nor a block device"),
        (vec!["disk/x"], "cannot open source disk/x: Not a directory"),
    ];
    for (inputs, text) in cases {
        let mut arguments = vec!["backup", "--name", "a"];
        arguments.extend(&inputs);
        vault.fails(1, &arguments, text);
    }
    assert_eq!(files(&vault.path("repo/packs")), packs);
    assert_nothing_lost(&vault, &data);
}

#[test]
fn a_fifo_and_a_device_of_bytes_are_streams() {
    let vault = Vault::new();
    make_fifo(&vault, "fifo");
    let data = random(4, 5 * MIB + 3);
    let child = vault.command(&["backup", "--name", "a", "fifo", "/dev/null"]).spawn().unwrap();
    fs::write(vault.path("fifo"), &data).unwrap();
    let outcome = wait(child);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    vault.assert_restores("a/fifo", &data);
    vault.assert_restores("a/null", b"");
}

#[test]
fn a_source_inside_a_folder_that_is_not_there_with_json() {
    let vault = Vault::new();
    let outcome = finish(&mut vault.command(&["--json", "backup", "--name", "a", "no/disk"]));
    assert_eq!(outcome.code, 1);
    assert!(outcome.stdout.is_empty());
    let error: Value = serde_json::from_str(outcome.stderr.trim()).unwrap();
    assert_eq!(error["message_type"], "exit_error");
    assert_eq!(error["code"], 1);
    assert!(error["message"].as_str().unwrap().starts_with("cannot open source no/disk"));
}

/// A delta and its parent are one disk, of which only what is allocated is read.
#[test]
fn a_vmdk_chain_is_the_disk_that_its_guest_sees() {
    let Some(vault) = vault_with_qemu() else { return };
    let run = |program: &str, arguments: &[&str]| run_in(&vault, program, arguments);
    let create = ["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicSparse"];
    run("qemu-img", &[&create[..], &["base.vmdk", "64M"]].concat());
    run("qemu-io", &["-c", "write -P 7 4M 1M", "base.vmdk"]);
    run("qemu-img", &[&create[..], &["-F", "vmdk", "-b", "base.vmdk", "top.vmdk"]].concat());
    run("qemu-io", &["-c", "write -P 8 5M 64k", "-c", "write -P 9 40M 1M", "top.vmdk"]);
    let backup = ["--json", "backup", "--name", "web01", "--disk", "sda=top.vmdk"];
    let point = vault.ok(&backup).json();
    assert_eq!(point["virtual_bytes"], 64 * MIB);
    assert_eq!(point["read_bytes"], 2 * MIB + (64 << 10));
    run("qemu-img", &["convert", "-O", "raw", "top.vmdk", "view"]);
    vault.assert_restores("web01/sda", &fs::read(vault.path("view")).unwrap());
    vault.ok(&["show", "web01"]).prints("vmdk");
    // A disk whose parent was written to is another disk.
    run("qemu-io", &["-c", "write -P 1 20M 64k", "base.vmdk"]);
    vault.fails(1, &backup, "its parent base.vmdk has CID");
    fs::rename(vault.path("base.vmdk"), vault.path("base.img")).unwrap();
    vault
        .fails(2, &["backup", "--name", "b", "base.img"], "cannot tell the format of base.img")
        .hints("use --format vmdk, or --format raw");
    let base = ["backup", "--name", "b", "base.img", "--format", "vmdk"];
    vault.ok(&base);
    let snapshot = [&base[..], &["--snapshot", "x"]].concat();
    vault.fails(2, &snapshot, "cannot read a snapshot of base.img: it is vmdk");
    assert_eq!(vault.point_count(), 2);
    vault.assert_intact();
}

/// Of images of Hyper-V and its ancestors, only blocks that are there are read.
#[test]
fn vhd_and_vhdx_images_are_the_disks_that_their_guests_see() {
    let Some(vault) = vault_with_qemu() else { return };
    let run = |program: &str, arguments: &[&str]| run_in(&vault, program, arguments);
    for (format, options, name, block) in [
        ("vpc", "subformat=dynamic,force_size=on", "a.vhd", 2 * MIB),
        ("vhdx", "subformat=dynamic,block_size=1M", "a.vhdx", MIB),
    ] {
        run("qemu-img", &["create", "-q", "-f", format, "-o", options, name, "64M"]);
        run("qemu-io", &["-c", "write -P 7 4M 1M", "-c", "write -P 8 40M 64k", name]);
        let disk = format!("sda={name}");
        let point = vault.ok(&["--json", "backup", "--name", "web01", "--disk", &disk]).json();
        assert_eq!(point["virtual_bytes"], 64 * MIB);
        assert_eq!(point["read_bytes"], 2 * block);
        run("qemu-img", &["convert", "-f", format, "-O", "raw", name, "view"]);
        vault.assert_restores("web01/sda", &fs::read(vault.path("view")).unwrap());
        vault.ok(&["show", "web01"]).prints(&name[2..]);
    }
    vault.assert_intact();
}

/// The guest's view of a qcow2 chain is stored as the disk that it is; what no image allocates is
/// not read, and the next point finds what both have.
#[test]
fn a_qcow2_chain_is_the_disk_that_its_guest_sees() {
    let Some(vault) = vault_with_qemu() else { return };
    let run = |program: &str, arguments: &[&str]| run_in(&vault, program, arguments);
    vault.write("base.raw", &random(1, 8 * MIB));
    let below = ["-F", "raw", "-b", "base.raw", "top.qcow2", "64M"];
    run("qemu-img", &[&["create", "-q", "-f", "qcow2"][..], &below].concat());
    run("qemu-io", &["-c", "write -P 7 4M 1M", "-c", "write -P 8 40M 64k", "top.qcow2"]);
    run("qemu-img", &["snapshot", "-c", "before", "top.qcow2"]);
    let backup = ["--json", "backup", "--name", "web01"];
    let stored = |further: &[&str]| vault.ok(&[&backup[..], further].concat()).json();
    let first = stored(&["--disk", "vda=top.qcow2"]);
    assert_eq!(first["virtual_bytes"], 64 * MIB);
    assert_eq!(first["read_bytes"], 8 * MIB + (64 << 10));
    run("qemu-img", &["convert", "-O", "raw", "top.qcow2", "view"]);
    let view = fs::read(vault.path("view")).unwrap();
    vault.assert_restores("web01/vda", &view);
    run("qemu-io", &["-c", "write -P 9 60M 128k", "top.qcow2"]);
    let second = stored(&["--disk", "vda=top.qcow2"]);
    assert!(second["new_bytes"].as_u64().unwrap() <= 128 << 10, "{second}");
    stored(&["--disk", "vda=top.qcow2", "--snapshot", "vda=before"]);
    vault.assert_restores("web01/vda", &view);
    vault.ok(&["show", "web01"]).prints("qcow2");
    // Nothing is made of what cannot be told, or must not be opened.
    let points = vault.point_count();
    fs::rename(vault.path("top.qcow2"), vault.path("top.img")).unwrap();
    vault
        .fails(2, &["backup", "--name", "web01", "top.img"], "cannot tell the format of top.img")
        .hints("use --format qcow2, or --format raw");
    vault.ok(&["backup", "--name", "web01", "--disk", "vda=top.img", "--format", "vda=qcow2"]);
    for (arguments, code, text) in [
        (
            ["--format", "vhs"],
            2,
            "cannot read the format \"vhs\": expected raw, qcow2, vmdk, vhd, vhdx or ova",
        ),
        (["--format", "vdb=qcow2"], 2, "cannot find a disk named vdb"),
        (["--snapshot", "after"], 2, "cannot read a snapshot of base.raw: it is raw"),
    ] {
        let all = ["backup", "--name", "b", "--disk", "vda=base.raw"];
        vault.fails(code, &[&all[..], &arguments].concat(), text);
    }
    fs::create_dir(vault.path("away")).unwrap();
    fs::rename(vault.path("top.img"), vault.path("away/top.qcow2")).unwrap();
    run("qemu-img", &["rebase", "-u", "-F", "raw", "-b", "../base.raw", "away/top.qcow2"]);
    let outside = ["backup", "--name", "c", "--disk", "vda=away/top.qcow2"];
    vault.fails(1, &outside, "is outside of the image's folder").hints("--allow-backing");
    vault.ok(&[&outside[..], &["--allow-backing"]].concat());
    assert_eq!(vault.point_count(), points + 2);
    vault.assert_intact();
}

/// Every read of the disk fails from the `from`th to the `to`th, in each thread.
fn back_up_worn(vault: &Vault, from: u32, to: u32) -> Outcome {
    let plain = vault.command(&["--json", "backup", "--name", "a", "--disk", "vda=disk"]);
    let disk = vault.path("disk").canonicalize().unwrap();
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=pread64", "-P"]).arg(disk);
    command.args(["-e", &format!("inject=pread64:error=EIO:when={from}..{to}")]);
    command.arg(plain.get_program()).args(plain.get_args()).current_dir(vault.path(""));
    command.env_clear();
    command.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
    finish(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

#[test]
fn a_disk_with_bad_sectors_is_backed_up_and_the_exit_code_says_so() {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("skipped: there is no strace");
        return;
    }
    let vault = Vault::new();
    let data = random(1, 8 * MIB);
    vault.write("disk", &data);
    let outcome = back_up_worn(&vault, 3, 5);
    assert_eq!(outcome.code, 3, "{}", outcome.stderr);
    let summary: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let unreadable = summary["unreadable_bytes"].as_u64().unwrap();
    assert!(unreadable > 0 && unreadable.is_multiple_of(4096), "{summary}");
    assert!(outcome.stderr.contains("could not be read"), "{}", outcome.stderr);
    // The point is there: zeros where it says so, and the disk's bytes elsewhere.
    let shown = vault.json(&["show", "a"]);
    let mut expected = data.clone();
    let mut told = 0;
    for range in shown["disks"][0]["bad_extents"].as_array().unwrap() {
        let number = |key: &str| range[key].as_u64().unwrap() as usize;
        expected[number("start")..number("start") + number("bytes")].fill(0);
        told += number("bytes") as u64;
    }
    assert_eq!(told, unreadable);
    for arguments in [&["restore", "a/vda", "back"][..], &["dump", "a/vda"]] {
        let outcome = vault.run(arguments);
        assert_eq!(outcome.code, 4, "{}", outcome.stderr);
        let back = fs::read(vault.path("back")).unwrap();
        assert!(back == expected && outcome.stderr.contains("could not be read at backup"));
        assert!(arguments[0] == "restore" || outcome.stdout == expected);
    }
    vault.ok(&["show", "a"]).prints("unread");
    // The next backup heals it.
    assert_eq!(vault.ok(&["--json", "backup", "--name", "a", "--disk", "vda=disk"]).code, 0);
    vault.assert_restores("a/vda", &data);
    vault.assert_intact();
}

#[test]
fn an_encrypted_disk_is_told_of_once_and_stored_as_it_is() {
    let vault = Vault::new();
    let disk = [b"LUKS\xba\xbe\0\x02".to_vec(), random(3, 2 * MIB - 8)].concat();
    let path = vault.write("disk.raw", &disk);
    for code in [4, 0] {
        let outcome = vault.run(&["backup", "--name", "a", "-v", &path]);
        assert_eq!(outcome.code, code, "{outcome:?}");
        outcome.says("disk disk.raw is encrypted by LUKS; it is stored as it is");
        vault.assert_restores("a", &disk);
    }
}

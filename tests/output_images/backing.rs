//! Overlays: only what differs from a base, whatever the base is.

use super::files::{noise, stored_bytes};
use super::rig::{KIB, MIB, Rig, digest};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

const SIZE: u64 = 40 * MIB;

/// A point of a disk called `disk`.
fn rig() -> Rig {
    let rig = Rig::new();
    rig.disk("disk", SIZE, &[(0, 9 * MIB), (20 * MIB + 4 * KIB, 70 * KIB), (SIZE - 512, 512)]);
    rig.backup("disk");
    rig
}

fn change(rig: &Rig, name: &str, at: u64, bytes: u64) {
    let file = File::options().write(true).open(rig.path(name)).unwrap();
    file.write_all_at(&noise(at + 99, bytes as usize), at).unwrap();
}

/// Restores over the base, which stays as it is; the bytes that the overlay takes.
fn assert_restores_over(rig: &Rig, base: &str, more: &[&str]) -> u64 {
    let before = digest(&rig.path(base));
    let arguments = ["restore", "disk", "over.qcow2", "--format", "qcow2", "--backing", base];
    rig.shell.ok(&[&arguments[..], &["--verify"], more].concat());
    rig.assert_is_disk("over.qcow2", "disk", "qcow2");
    assert_eq!(digest(&rig.path(base)), before, "the base was written to");
    let bytes = stored_bytes(&rig.path("over.qcow2"));
    fs::remove_file(rig.path("over.qcow2")).unwrap();
    bytes
}

#[test]
fn a_base_that_is_equal_needs_no_cluster() {
    let rig = rig();
    fs::copy(rig.path("disk"), rig.path("base.raw")).unwrap();
    let bytes = assert_restores_over(&rig, "base.raw", &[]);
    assert!(bytes <= 128 * KIB, "{bytes}");
}

#[test]
fn only_clusters_that_differ_are_held() {
    let rig = rig();
    fs::copy(rig.path("disk"), rig.path("base.raw")).unwrap();
    // Other data; data where the disk has zeros, of parts of clusters, of whole ones, of a cluster
    // of which the other chunk is data.
    change(&rig, "base.raw", 3 * MIB + 5000, 512);
    change(&rig, "base.raw", 12 * MIB + 512, 1000);
    change(&rig, "base.raw", 14 * MIB, 3 * MIB);
    change(&rig, "base.raw", 20 * MIB + 127 * KIB, KIB);
    let before = fs::read(rig.path("disk")).unwrap();
    assert!(before[20 << 20..][127 << 10..128 << 10].iter().all(|byte| *byte == 0));
    let bytes = assert_restores_over(&rig, "base.raw", &[]);
    assert!(bytes <= 512 * KIB, "{bytes}");
}

#[test]
fn smaller_larger_empty_and_unrelated_bases() {
    let rig = rig();
    let part = |name: &str, bytes: u64| {
        fs::copy(rig.path("disk"), rig.path(name)).unwrap();
        let file = File::options().write(true).open(rig.path(name)).unwrap();
        file.set_len(bytes).unwrap();
    };
    // One that ends within a chunk, one within the hole, one behind the disk's end.
    part("in-chunk.raw", 5 * MIB + 512);
    part("in-hole.raw", 15 * MIB + 512);
    part("larger.raw", SIZE + 3 * MIB + 512);
    change(&rig, "larger.raw", SIZE, 2 * MIB);
    let bytes = assert_restores_over(&rig, "in-chunk.raw", &[]);
    assert!(bytes < 5 * MIB, "{bytes}");
    assert!(assert_restores_over(&rig, "in-hole.raw", &[]) < MIB);
    assert!(assert_restores_over(&rig, "larger.raw", &[]) < MIB);
    rig.disk("empty.raw", 0, &[]);
    assert_restores_over(&rig, "empty.raw", &[]);
    rig.disk("unrelated.raw", 30 * MIB, &[(0, 30 * MIB)]);
    let bytes = assert_restores_over(&rig, "unrelated.raw", &[]);
    // What is zeros at the disk is said to be, not written.
    assert!(bytes < 11 * MIB, "{bytes}");
}

#[test]
fn bases_of_every_format() {
    let rig = rig();
    fs::copy(rig.path("disk"), rig.path("old")).unwrap();
    change(&rig, "old", 6 * MIB, 100 * KIB);
    change(&rig, "old", 30 * MIB, 100 * KIB);
    for (format, ending) in [("qcow2", "qcow2"), ("vmdk", "vmdk"), ("vpc", "vhd"), ("vhdx", "vhdx")]
    {
        let base = format!("base.{ending}");
        let size: &[&str] = if format == "vpc" { &["-o", "force_size=on"] } else { &[] };
        let convert = [&["convert", "-f", "raw", "-O", format], size, &["old", &base]].concat();
        rig.tool("qemu-img", &convert);
        assert!(assert_restores_over(&rig, &base, &[]) < MIB);
    }
    // A base that has a base itself, elsewhere.
    fs::create_dir(rig.path("elsewhere")).unwrap();
    fs::rename(rig.path("base.qcow2"), rig.path("elsewhere/below.qcow2")).unwrap();
    let below = rig.path("elsewhere/below.qcow2");
    let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below.to_str().unwrap()];
    rig.tool("qemu-img", &[&create[..], &["top.qcow2"]].concat());
    fs::create_dir(rig.path("sub")).unwrap();
    fs::rename(rig.path("top.qcow2"), rig.path("sub/top.qcow2")).unwrap();
    let arguments = ["disk", "over.qcow2", "--format", "qcow2", "--backing", "sub/top.qcow2"];
    let error = rig.refusal(1, &arguments);
    assert!(error.contains("use --allow-backing if you trust the image"), "{error}");
    rig.shell.ok(&[&["restore"], &arguments[..], &["--allow-backing"]].concat());
    rig.tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", "disk", "over.qcow2"]);
    // Nor may the overlay take the place of what is below its base.
    let arguments =
        ["disk", "elsewhere/below.qcow2", "--force", "--format", "qcow2", "--allow-backing"];
    let over = [&arguments[..], &["--backing", "sub/top.qcow2"]].concat();
    let error = rig.refusal(2, &over);
    assert!(error.contains("needs it, and is the base"), "{error}");
}

#[test]
fn the_base_is_found_from_the_folder_of_the_overlay() {
    let rig = rig();
    for folder in ["a", "a/b", "c"] {
        fs::create_dir(rig.path(folder)).unwrap();
    }
    fs::copy(rig.path("disk"), rig.path("c/base:1.raw")).unwrap();
    fs::copy(rig.path("disk"), rig.path("base:1.raw")).unwrap();
    let absolute = rig.path("c/base:1.raw").to_str().unwrap().to_owned();
    for (target, base, expected) in [
        ("a/b/over.qcow2", "c/base:1.raw", "../../c/base:1.raw"),
        ("c/over.qcow2", "c/base:1.raw", "./base:1.raw"),
        ("over.qcow2", "./base:1.raw", "./base:1.raw"),
        ("a/over.qcow2", absolute.as_str(), absolute.as_str()),
    ] {
        rig.shell.ok(&["restore", "disk", target, "--format", "qcow2", "--backing", base]);
        let info = rig.tool("qemu-img", &["info", "--output=json", target]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["backing-filename"], expected);
        assert_eq!(info["backing-filename-format"], "raw");
        rig.tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", "disk", target]);
    }
}

/// An export is a base by its address, and the image is read back over it.
#[test]
fn an_export_is_a_base() {
    let rig = rig();
    fs::copy(rig.path("disk"), rig.path("old")).unwrap();
    change(&rig, "old", 6 * MIB, 100 * KIB);
    let socket = rig.path("socket").to_str().unwrap().to_owned();
    let served = ["-f", "raw", "-r", "-t", "-e", "4", "-x", "e", "-k", &socket, "old"];
    let mut server = std::process::Command::new("qemu-nbd");
    let mut server = server.args(served).current_dir(rig.path("")).spawn().unwrap();
    while !rig.path("socket").exists() {
        assert!(server.try_wait().unwrap().is_none(), "qemu-nbd has ended");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let base = format!("nbd+unix:///e?socket={socket}");
    let restored = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let arguments = ["disk", "over.qcow2", "--format", "qcow2", "--backing", &base];
        rig.shell.ok(&[&["restore", "--verify"], &arguments[..]].concat());
        rig.assert_is_disk("over.qcow2", "disk", "qcow2");
        rig.shell.ok(&["certify", "disk", "over.qcow2", "--allow-backing"]);
    }));
    server.kill().unwrap();
    server.wait().unwrap();
    restored.unwrap();
}

/// What a machine writes to is no base to rely on, and what it has open is not replaced.
#[test]
fn what_a_machine_has_open_is_told_or_refused() {
    let rig = rig();
    fs::copy(rig.path("disk"), rig.path("base.raw")).unwrap();
    let mut machine = std::process::Command::new("qemu-io")
        .args(["-f", "raw", "base.raw"])
        .current_dir(rig.path(""))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Its prompt comes when the file is open.
    std::io::Read::read_exact(machine.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let over = ["restore", "disk", "over.qcow2", "--format", "qcow2", "--backing", "base.raw"];
    let output = rig.shell.run(&over);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{error}");
    assert!(error.contains("is being written to by a running machine"), "{error}");
    fs::remove_file(rig.path("over.qcow2")).unwrap();
    let before = digest(&rig.path("base.raw"));
    for options in [&["--format", "vhd"][..], &[]] {
        let error = rig.refusal(1, &[&["disk", "base.raw", "--force"], options].concat());
        assert!(error.contains("cannot write to base.raw: it is in use by a QEMU"), "{error}");
    }
    assert_eq!(digest(&rig.path("base.raw")), before);
    drop(machine.stdin.take());
    machine.wait().unwrap();
    rig.shell.ok(&["restore", "disk", "base.raw", "--force"]);
}

#[test]
fn bases_that_cannot_be() {
    let rig = rig();
    let over = |target: &'static str, base: &'static str| {
        ["disk", target, "--format", "qcow2", "--backing", base, "--force"]
    };
    let error = rig.refusal(1, &over("over.qcow2", "missing"));
    assert!(error.contains("cannot open source missing: No such file"), "{error}");
    fs::copy(rig.path("disk"), rig.path("base.raw")).unwrap();
    std::os::unix::fs::symlink("base.raw", rig.path("link")).unwrap();
    for target in ["base.raw", "./base.raw", "link"] {
        let error = rig.refusal(2, &over(target, "base.raw"));
        assert!(error.contains(&format!("cannot write to {target}: base.raw needs it")), "{error}");
    }
    // A raw disk on which a guest wrote the beginning of an image.
    rig.tool("qemu-img", &["create", "-q", "-f", "qcow2", "tricky", "1M"]);
    let error = rig.refusal(2, &over("over.qcow2", "tricky"));
    assert!(error.contains("use --backing-format qcow2, or --backing-format raw"), "{error}");
    let as_raw = [&over("over.qcow2", "tricky")[..], &["--backing-format", "raw"]].concat();
    rig.shell.ok(&[&["restore"], &as_raw[..]].concat());
    rig.tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", "disk", "over.qcow2"]);
    let other = [&over("other.qcow2", "tricky")[..], &["--backing-format", "vdi"]].concat();
    let error = rig.refusal(2, &other);
    assert!(error.contains("cannot use format vdi for a base"), "{error}");
}

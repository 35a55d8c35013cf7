//! What cannot be: nothing is written, nothing is lost.

use super::rig::{KIB, MIB, Rig};
use std::fs;

#[test]
fn flags_that_contradict_each_other() {
    let rig = Rig::new();
    rig.disk("disk", MIB, &[(0, 4 * KIB)]);
    rig.backup("disk");
    for (flags, text) in [
        (&["--format", "vhd", "--compress"][..], "cannot compress a vhd image"),
        (&["--compress"], "cannot compress a raw image"),
        (&["--format", "vmdk", "--backing", "disk"], "cannot put a vmdk image over a base"),
        (&["--backing", "disk"], "cannot put a raw image over a base"),
        (
            &["--format", "qcow2", "--compress=zstd", "--backing", "disk"],
            "cannot use --backing and --compress together",
        ),
        (&["--format", "vhdx", "--sparse", "never"], "cannot keep zeros in a vhdx image"),
        (&["--format", "qcow2", "--sparse", "exact"], "cannot keep zeros in a qcow2 image"),
        (&["--format", "qcow2", "--in-place"], "cannot restore a qcow2 image in place"),
        (&["--format", "vdi"], "invalid value 'vdi'"),
        (&["--format", "qcow2", "--compress=lzma"], "invalid value 'lzma'"),
        (&["--backing-format", "raw"], "--backing <BASE>"),
    ] {
        let error = rig.refusal(2, &[&["disk", "out"], flags].concat());
        assert!(error.contains(text), "{flags:?}: {error}");
    }
}

/// As `mirror` makes and `backup` reads it.
#[test]
fn without_a_format_the_name_tells() {
    let rig = Rig::new();
    rig.disk("disk", MIB, &[(0, 4 * KIB)]);
    fs::write(rig.path("nvram"), b"variables").unwrap();
    let disks = ["--disk", "real.qcow2=disk", "--disk", "sda=disk", "--stream", "a.vmdk=nvram"];
    rig.shell.backup(&[&["--name", "vm"], &disks[..]].concat());
    rig.shell.ok(&["restore", "--verify", "vm", "folder/"]);
    rig.assert_is_disk("folder/real.qcow2", "disk", "qcow2");
    rig.assert_is_disk("folder/sda", "disk", "raw");
    assert_eq!(fs::read(rig.path("folder/a.vmdk")).unwrap(), b"variables");
    for (name, kind) in
        [("x.QCOW2", "qcow2"), ("x.vmdk", "vmdk"), ("x.vhd", "vpc"), ("x.vhdx", "vhdx")]
    {
        rig.shell.ok(&["restore", "vm/sda", name]);
        rig.assert_is_disk(name, "disk", kind);
    }
    for (name, options) in
        [("a.qcow2", &["--format", "raw"][..]), ("b.qcow2", &["--sparse", "exact"]), ("c.img", &[])]
    {
        rig.shell.ok(&[&["restore", "vm/sda", name], options].concat());
        rig.assert_is_disk(name, "disk", "raw");
    }
    rig.shell.ok(&["restore", "vm/sda", "y.qcow2", "--compress"]);
    rig.assert_is_disk("y.qcow2", "disk", "qcow2");
    let error = rig.refusal(2, &["vm/sda", "-"]);
    assert!(error.contains("cannot restore to standard output"), "{error}");
    assert!(error.contains("use `diskvault dump`"), "{error}");
}

#[test]
fn sizes_that_a_format_does_not_have() {
    let rig = Rig::new();
    rig.disk("odd", MIB + 100, &[(0, 4 * KIB)]);
    rig.backup("odd");
    for format in ["qcow2", "vmdk", "vmdk-stream", "vhd", "vhdx", "ova"] {
        let error = rig.refusal(1, &["odd", "out", "--format", format]);
        let text = format!("cannot write out as {format}: the disk has 1048676 bytes");
        assert!(error.contains(&text) && error.contains("restore it as raw"), "{error}");
    }
    rig.disk("large", (2040 << 30) + 512, &[(0, 4 * KIB)]);
    rig.backup("large");
    let error = rig.refusal(1, &["large", "out", "--format", "vhd"]);
    assert!(error.contains("cannot write out as vhd: it holds at most 2040 GiB"), "{error}");
}

#[test]
fn targets_that_exist_are_replaced_only_with_force_and_as_a_whole() {
    let rig = Rig::new();
    rig.disk("disk", MIB, &[(0, 4 * KIB)]);
    rig.backup("disk");
    fs::create_dir(rig.path("folder")).unwrap();
    for format in ["qcow2", "vmdk", "vmdk-stream", "vhd", "vhdx", "ova"] {
        fs::write(rig.path("mine"), b"mine").unwrap();
        let arguments = ["disk", "mine", "--format", format];
        let error = rig.refusal(1, &arguments);
        assert!(error.contains("cannot write to mine: it exists"), "{error}");
        assert_eq!(fs::read(rig.path("mine")).unwrap(), b"mine");
        // Whoever has the old file open goes on to see it.
        let old = fs::File::open(rig.path("mine")).unwrap();
        rig.shell.ok(&[&["restore"], &arguments[..], &["--force"]].concat());
        assert_eq!(std::io::read_to_string(old).unwrap(), "mine");
        assert!(fs::read(rig.path("mine")).unwrap().len() > 1000);
        fs::remove_file(rig.path("mine")).unwrap();
        for target in ["/dev/null", "/dev/full"] {
            let error = rig.refusal(1, &["disk", target, "--format", format, "--force"]);
            assert!(error.contains("an image of a format is one"), "{error}");
        }
        let error = rig.refusal(1, &["disk", "missing/out", "--format", format]);
        assert!(error.contains("directory missing does not exist"), "{error}");
    }
}

#[test]
fn streams_have_no_format() {
    let rig = Rig::new();
    rig.disk("disk", MIB, &[(0, 4 * KIB)]);
    fs::write(rig.path("nvram"), b"variables").unwrap();
    rig.shell.backup(&["--name", "vm", "--disk", "vda=disk", "--stream", "nvram=nvram"]);
    rig.shell.backup(&["--name", "stream", "--stream", "nvram=nvram"]);
    for (point, format) in [("vm/nvram", "qcow2"), ("stream", "vhdx"), ("vm/nvram", "ova")] {
        let error = rig.refusal(2, &[point, "out", "--format", format]);
        let text = format!("cannot restore nvram as {format}: it is a stream, not a disk");
        assert!(error.contains(&text), "{error}");
    }
    let error = rig.refusal(1, &["stream", "out", "--format", "ova"]);
    assert!(error.contains("it has no disk"), "{error}");
    // In a folder, disks get the ending, and streams stay as they are.
    rig.shell.ok(&["restore", "vm", "new", "--format", "vmdk-stream"]);
    assert!(rig.path("new").is_file(), "the only disk");
    fs::create_dir(rig.path("folder")).unwrap();
    rig.shell.ok(&["restore", "vm", "folder", "--format", "vmdk-stream"]);
    rig.assert_is_disk("folder/vda.vmdk", "disk", "vmdk");
    assert_eq!(fs::read(rig.path("folder/nvram")).unwrap(), b"variables");
    assert_eq!(fs::read_dir(rig.path("folder")).unwrap().count(), 2);
    rig.shell.ok(&["restore", "vm/vda", "folder", "--format", "qcow2"]);
    rig.assert_is_disk("folder/vda.qcow2", "disk", "qcow2");
}

#[test]
fn names_that_become_one() {
    let rig = Rig::new();
    rig.disk("disk", MIB, &[(0, 4 * KIB)]);
    rig.shell.backup(&["--name", "vm", "--disk", "a=disk", "--disk", "a.qcow2=disk"]);
    let error = rig.refusal(2, &["vm", "out", "--format", "qcow2"]);
    assert!(error.contains("cannot restore two parts to out/a.qcow2"), "{error}");
    rig.shell.ok(&["restore", "vm", "out", "--format", "vhd"]);
    rig.assert_is_disk("out/a.vhd", "disk", "vpc");
    rig.assert_is_disk("out/a.qcow2.vhd", "disk", "vpc");
}

/// A damaged repository gives no image, and an image that was there stays.
#[test]
fn a_failed_restore_leaves_nothing_behind() {
    let rig = Rig::new();
    rig.disk("disk", 3 * MIB, &[(0, 3 * MIB)]);
    rig.backup("disk");
    for entry in walk(&rig.path("repository/packs")) {
        let mut bytes = fs::read(&entry).unwrap();
        if bytes.len() > 1 << 20 {
            bytes[5000..6000].fill(7);
            let mut mode = fs::metadata(&entry).unwrap().permissions();
            #[allow(
                clippy::permissions_set_readonly_false,
                reason = "it is removed with the folder"
            )]
            mode.set_readonly(false);
            fs::set_permissions(&entry, mode).unwrap();
            fs::write(&entry, bytes).unwrap();
        }
    }
    fs::write(rig.path("mine"), b"mine").unwrap();
    for format in ["qcow2", "vmdk", "vmdk-stream", "vhd", "vhdx", "ova"] {
        rig.refusal(5, &["disk", "out", "--format", format]);
        rig.refusal(5, &["disk", "mine", "--format", format, "--force"]);
        assert_eq!(fs::read(rig.path("mine")).unwrap(), b"mine");
    }
    rig.refusal(5, &["disk", "out", "--format", "qcow2", "--compress"]);
    rig.disk("base.raw", MIB, &[]);
    rig.refusal(5, &["disk", "out", "--format", "qcow2", "--backing", "base.raw"]);
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

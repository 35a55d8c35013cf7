//! `restore` and `dump`: where they write, what they refuse, and which zeros become holes.

use crate::support::{
    KIB, LoopDevice, MIB, Tmpfs, Vault, allocated, blake3_hex, data_map, files, finish, random,
    read_range, write_sparse,
};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// A disk whose chunks of 64 KiB are: data; two of written zeros; hole; at 1 MiB data with
/// written zeros and a hole inside the chunk; hole up to the end, which is no chunk's end.
fn vault_with_sparse_disk() -> (Vault, Vec<u8>) {
    let vault = Vault::new();
    let mut front = random(1, 64 * KIB);
    front.extend(vec![0; 128 << 10]);
    let mut mixed = random(2, 16 * KIB);
    mixed[4096..12288].fill(0);
    let ranges: [(u64, &[u8]); 3] =
        [(0, &front), (MIB, &mixed), (MIB + 48 * KIB, &random(3, 8 * KIB))];
    write_sparse(&vault.path("disk"), 3 * MIB + 512, &ranges);
    vault.backup("a", &["disk"]);
    let content = fs::read(vault.path("disk")).unwrap();
    (vault, content)
}

#[test]
fn zeros_become_what_was_asked_for() {
    let (vault, content) = vault_with_sparse_disk();
    let source = data_map(&vault.path("disk"));
    assert!(source.len() > 2, "this file system keeps no holes: {source:?}");
    for (mode, expected) in [
        (None, None),
        (Some("auto"), None),
        (Some("exact"), Some(source.clone())),
        (Some("never"), Some(vec![(0, content.len() as u64)])),
    ] {
        let target = vault.path(&format!("target-{mode:?}"));
        let mut arguments = vec!["restore", "a", target.to_str().unwrap()];
        arguments.extend(mode.iter().flat_map(|mode| ["--sparse", *mode]));
        vault.ok(&arguments);
        assert!(fs::read(&target).unwrap() == content, "{mode:?}");
        let found = data_map(&target);
        match expected {
            Some(expected) => assert_eq!(found, expected, "{mode:?}"),
            None => {
                // The written zeros of whole chunks are holes now; what was a hole is one still.
                assert!(found.contains(&(0, 64 * KIB)), "{found:?}");
                assert!(found.iter().all(|(start, end)| *end <= MIB + 64 * KIB && start <= end));
                assert!(allocated(&target) <= 128 * KIB + 4096);
            }
        }
        if mode == Some("never") {
            assert!(allocated(&target) >= content.len() as u64);
        }
    }
    // Backed up again, the exact copy tells the same holes.
    let summary = vault.json(&["backup", "--name", "b", "--disk", "disk=target-Some(\"exact\")"]);
    let holes: u64 = 3 * MIB + 512 - source.iter().map(|(start, end)| end - start).sum::<u64>();
    assert_eq!(summary["hole_bytes"], holes);
}

#[test]
fn a_used_target_is_overwritten_to_the_last_byte() {
    let (vault, content) = vault_with_sparse_disk();
    for mode in ["auto", "exact", "never"] {
        for size in [0, 100, content.len() as u64, 5 * MIB] {
            let target = vault.write("target", &random(9, size));
            let arguments = ["restore", "a", &target, "--sparse", mode];
            vault.fails(1, &arguments, "it exists").hints("use --force");
            assert!(fs::read(&target).unwrap() == random(9, size), "touched without --force");
            let mut all = arguments.to_vec();
            all.push("--force");
            vault.ok(&all);
            assert!(fs::read(&target).unwrap() == content, "{mode} over {size} bytes");
        }
    }
    assert!(allocated(&vault.path("target")) >= content.len() as u64);
    vault.ok(&["restore", "a", "target", "--force"]);
    assert!(allocated(&vault.path("target")) <= 128 * KIB + 4096, "zeros were not made holes");
    assert!(fs::read(vault.path("target")).unwrap() == content);
}

#[test]
fn a_new_target_appears_complete_and_alone() {
    let (vault, content) = vault_with_sparse_disk();
    fs::create_dir(vault.path("out")).unwrap();
    let summary = vault.json(&["restore", "a", "out/disk"]);
    assert_eq!(summary["restored_bytes"], content.len());
    assert_eq!(summary["targets"][0]["name"], "disk");
    assert_eq!(files(&vault.path("out")), ["disk"]);
    vault.ok(&["restore", "a/disk", "out/second"]).prints("restored disk of point ");
    assert!(fs::read(vault.path("out/second")).unwrap() == content);
    assert!(vault.ok(&["dump", "a"]).stdout == content, "dump is not what restore is");
}

#[test]
fn impossible_targets_are_named() {
    let (vault, content) = vault_with_sparse_disk();
    fs::create_dir(vault.path("folder")).unwrap();
    vault.write("file", b"mine");
    assert!(Command::new("mkfifo").arg(vault.path("fifo")).status().unwrap().success());
    std::os::unix::fs::symlink("nowhere", vault.path("link")).unwrap();
    for (target, text) in [
        ("new/", "cannot write to new/: it does not name a file"),
        ("missing/new", "cannot write to missing/new: directory missing does not exist"),
        ("file/new", "cannot write to file/new: Not a directory"),
        ("fifo", "cannot write to fifo: it is neither a regular file nor a block device"),
        ("link", "cannot write to link: it is a symbolic link to nothing"),
        ("/dev/null", "it is neither a regular file nor a block device"),
        ("/proc/new", "/proc/new"),
    ] {
        vault.fails(1, &["restore", "a", target, "--force"], text);
    }
    assert_eq!(fs::read(vault.path("file")).unwrap(), b"mine");
    assert!(files(&vault.path("folder")).is_empty());
    assert_eq!(vault.run(&["restore", "a"]).code, 2);
    assert_eq!(vault.run(&["restore", "a", "x", "--sparse", "maybe"]).code, 2);
    vault.assert_restores("a", &content);
}

/// As all parts of a point that has several do.
#[test]
fn one_part_goes_into_a_folder_that_is_there() {
    let (vault, content) = vault_with_sparse_disk();
    let folder = vault.path("folder");
    fs::create_dir(&folder).unwrap();
    let name = vault.json(&["show", "a"])["disks"][0]["name"].as_str().unwrap().to_string();
    for (address, target) in [("a".to_string(), "folder/"), (format!("a/{name}"), "folder")] {
        let summary = vault.json(&["restore", &address, target]);
        assert_eq!(summary["targets"][0]["path"], format!("folder/{name}"));
        assert!(fs::read(folder.join(&name)).unwrap() == content);
        let text = format!("cannot write to folder/{name}: it exists");
        vault.fails(1, &["restore", &address, "folder"], &text).hints("--force");
        fs::remove_file(folder.join(&name)).unwrap();
    }
    // What is in its way is named.
    fs::create_dir(folder.join(&name)).unwrap();
    vault.fails(1, &["restore", "a", "folder", "--force"], "it is a directory");
}

#[test]
fn several_parts_go_into_a_folder() {
    let vault = Vault::new();
    let (disk, stream) = (random(4, 2 * MIB), random(5, 1000));
    vault.write("vda.raw", &disk);
    vault.write("vdb.raw", &disk);
    vault.write("vm.xml", &stream);
    vault.backup("a", &["vda.raw", "vdb.raw", "vm.xml"]);
    let outcome = vault.ok(&["restore", "a", "new/deep"]);
    outcome.prints("restored vda.raw of point ").prints("restored vm.xml of point ");
    let folder = vault.path("new/deep");
    assert_eq!(files(&folder), ["vda.raw", "vdb.raw", "vm.xml"]);
    fs::remove_file(folder.join("vdb.raw")).unwrap();
    assert!(fs::read(folder.join("vda.raw")).unwrap() == disk);
    assert_eq!(fs::read(folder.join("vm.xml")).unwrap(), stream);

    // One name is taken: nothing at all is written.
    fs::remove_file(folder.join("vda.raw")).unwrap();
    fs::write(folder.join("vm.xml"), "changed").unwrap();
    let outcome = vault.fails(1, &["restore", "a", "new/deep"], "vm.xml: it exists");
    outcome.hints("--force");
    assert_eq!(files(&folder), ["vm.xml"]);
    assert_eq!(fs::read(folder.join("vm.xml")).unwrap(), b"changed");
    fs::set_permissions(folder.join("vm.xml"), fs::Permissions::from_mode(0o640)).unwrap();
    vault.ok(&["restore", "a", "new/deep", "--force"]);
    assert_eq!(fs::read(folder.join("vm.xml")).unwrap(), stream);
    let mode = fs::metadata(folder.join("vm.xml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640, "a replaced file keeps its mode");

    let outcome = vault.fails(1, &["restore", "a", "vm.xml"], "vm.xml: it is no folder");
    outcome.hints("POINT/DISK");
    assert_eq!(fs::read(vault.path("vm.xml")).unwrap(), stream);
}

#[test]
fn the_only_disk_needs_no_name() {
    let vault = Vault::new();
    let (disk, stream) = (random(4, 2 * MIB), random(5, 1000));
    vault.write("vda.raw", &disk);
    vault.write("vm.xml", &stream);
    vault.backup("a", &["vda.raw", "vm.xml"]);
    assert!(vault.ok(&["dump", "a"]).stdout == disk);
    vault.ok(&["digest", "a"]).prints(&blake3_hex(&disk));
    let outcome = vault.ok(&["restore", "a", "out.raw"]);
    outcome.says("only the disk is restored").prints("restored vda.raw of point ");
    assert!(fs::read(vault.path("out.raw")).unwrap() == disk);
    // An existing folder takes the stream too.
    fs::create_dir(vault.path("all")).unwrap();
    vault.ok(&["restore", "a", "all"]).prints("restored vm.xml of point ");
    assert_eq!(files(&vault.path("all")), ["vda.raw", "vm.xml"]);
}

#[test]
fn a_stream_goes_into_a_pipe() {
    let vault = Vault::new();
    let data = random(6, 2 * MIB + 5);
    vault.write("s", &data);
    vault.backup("a", &["--stream", "s=s"]);
    assert!(Command::new("mkfifo").arg(vault.path("fifo")).status().unwrap().success());
    let child = vault.command(&["restore", "a", "fifo"]).spawn().unwrap();
    assert!(fs::read(vault.path("fifo")).unwrap() == data);
    assert_eq!(crate::support::wait(child).code, 0);
    vault.fails(1, &["restore", "a", "/dev/full"], "it exists");
    vault.fails(6, &["restore", "a", "/dev/full", "--force"], "cannot write /dev/full: No space");
}

#[test]
fn a_read_only_and_a_full_file_system() {
    let (vault, content) = vault_with_sparse_disk();
    vault.write("big", &random(7, 6 * MIB));
    vault.backup("big", &["big"]);
    vault.backup("stream", &["--stream", "big=big"]);
    let at = vault.path("small");
    let Some(small) = Tmpfs::new(&at, "size=2m") else { return };
    for series in ["big", "stream"] {
        vault.fails(6, &["restore", series, "small/big"], "No space left on device");
        assert!(files(&at).is_empty(), "{:?} stayed behind", files(&at));
    }
    vault.ok(&["restore", "a", "small/disk"]);
    assert!(fs::read(at.join("disk")).unwrap() == content, "holes take no space");
    small.remount("ro");
    vault.fails(1, &["restore", "a", "small/new"], "Read-only file system");
    vault.fails(1, &["restore", "a", "small/disk", "--force"], "Read-only file system");
    assert_eq!(files(&at), ["disk"]);
    assert!(fs::read(at.join("disk")).unwrap() == content);
}

#[test]
fn block_devices_are_written_within_the_disk() {
    let (vault, content) = vault_with_sparse_disk();
    for (name, size) in [("short", 2 * MIB), ("long", 5 * MIB)] {
        let before = random(8, size);
        vault.write(name, &before);
        let Some(device) = LoopDevice::new(&vault.path(name)) else { return };
        let arguments = ["restore", "a", &device.0];
        vault.fails(1, &arguments, "it exists").hints("--force");
        let forced = ["restore", "a", &device.0, "--force"];
        if name == "short" {
            vault.fails(1, &forced, "it holds 2097152 bytes, the disk has 3146240");
            drop(device);
            assert!(fs::read(vault.path(name)).unwrap() == before, "the device was touched");
            continue;
        }
        for mode in ["auto", "exact", "never"] {
            let mut all = forced.to_vec();
            all.extend(["--sparse", mode]);
            vault.ok(&all);
            let written = read_range(device.0.as_ref(), 0, content.len());
            assert!(written == content, "{mode}");
            let rest = before.len() - content.len();
            let behind = read_range(device.0.as_ref(), content.len() as u64, rest);
            assert!(behind == before[content.len()..], "{mode} wrote behind the disk");
        }
    }
}

#[test]
fn a_reader_that_leaves_early_is_an_error_and_no_panic() {
    let vault = Vault::new();
    vault.write("disk", &random(10, 8 * MIB));
    vault.backup("a", &["disk"]);
    let mut child = vault.command(&["dump", "a"]).spawn().unwrap();
    let mut first = [0; 1000];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    assert_eq!(first[..], random(10, 1000)[..]);
    drop(child.stdout.take());
    let outcome = crate::support::wait(child);
    assert_eq!(outcome.code, 1);
    outcome.says("cannot write to standard output: Broken pipe");
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let outcome = finish(vault.command(&["dump", "a"]).stdout(full));
    assert_eq!(outcome.code, 6);
    outcome.says("cannot write to standard output: No space left on device");
}

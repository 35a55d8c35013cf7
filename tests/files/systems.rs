//! What the tools put in comes out, for each file system and each table.

use crate::images::{Abilities, MIB, Scene, assert_same, look, make_tree, noise};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const UNIX: Abilities = Abilities { is_unix: true, names: 3000, depth: 60, hole: MIB / 5 };

/// All files by `cp`, and again by a tar.
fn assert_comes_out(scene: &Scene, point: &str, wanted: &Path, step: i64) {
    let _ = fs::remove_dir_all(scene.path("out"));
    scene.shell.ok(&["cp", point, "/", "out"]);
    assert_same(&look(&scene.path("out"), step), &look(wanted, step));
    let archive = scene.shell.run(&["cp", point, "/", "-"]);
    assert!(archive.status.success(), "{}", String::from_utf8_lossy(&archive.stderr));
    fs::write(scene.path("out.tar"), archive.stdout).unwrap();
    let _ = fs::remove_dir_all(scene.path("unpacked"));
    fs::create_dir(scene.path("unpacked")).unwrap();
    scene.tool("tar", &["--warning=no-unknown-keyword", "-xpf", "out.tar", "-C", "unpacked"]);
    assert_same(&look(&scene.path("unpacked"), 0), &look(wanted, 0));
    // What had no storage gets none.
    let sparse = fs::metadata(scene.path("out/sparse")).unwrap();
    assert!(sparse.blocks() * 512 < MIB / 2, "{} blocks", sparse.blocks());
}

#[test]
fn every_kind_of_ext_comes_out() {
    let scene = Scene::new();
    make_tree(&scene.path("tree"), UNIX);
    for (number, (kind, options)) in [
        ("ext2", &["-t", "ext2", "-b", "1024"][..]),
        ("ext3", &["-t", "ext3", "-b", "4096"]),
        ("ext4", &["-t", "ext4", "-b", "1024", "-O", "64bit,metadata_csum"]),
        ("ext4", &["-t", "ext4", "-b", "4096", "-O", "^has_journal", "-I", "256"]),
        ("ext4", &["-t", "ext4", "-O", "^extents,^64bit,^metadata_csum", "-b", "2048"]),
        ("ext4", &["-t", "ext4", "-O", "^resize_inode", "-L", "a label"]),
    ]
    .into_iter()
    .enumerate()
    {
        scene.image("image", 64 * MIB);
        scene.tool("mke2fs", &[options, &["-q", "-F", "-d", "tree", "image"]].concat());
        // Makes trees of the large directories.
        let fsck = Command::new("e2fsck").args(["-fyD"]).arg(scene.path("image")).output().unwrap();
        assert!(fsck.status.code().unwrap() < 4, "{}", String::from_utf8_lossy(&fsck.stdout));
        let series = format!("ext{number}");
        scene.backup(&series, "image");
        let listed = scene.shell.ok(&["--json", "ls", "--partitions", &series]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        assert_eq!(listed["file_system"], kind, "{options:?}");
        let label = if options.contains(&"-L") { "a label" } else { "" };
        assert_eq!(listed["label"], label);
        assert_comes_out(&scene, &series, &scene.path("tree"), 1);
    }
}

#[test]
fn large_holes_without_extents_are_refused() {
    let scene = Scene::new();
    fs::create_dir(scene.path("tree")).unwrap();
    fs::File::create(scene.path("tree/sparse")).unwrap().set_len(2 * MIB).unwrap();
    fs::write(scene.path("tree/other"), "other").unwrap();
    scene.image("image", 8 * MIB);
    scene.tool("mke2fs", &["-q", "-F", "-t", "ext2", "-b", "1024", "-d", "tree", "image"]);
    scene.backup("vm", "image");
    scene.fails(1, &["cp", "vm", "/", "out"], "cannot read /sparse: it has a large hole");
    assert!(!scene.path("out/sparse").exists());
    assert_eq!(fs::read(scene.path("out/other")).unwrap(), b"other");
}

#[test]
fn every_kind_of_fat_comes_out() {
    let scene = Scene::new();
    make_tree(&scene.path("tree"), Abilities { is_unix: false, names: 600, depth: 20, hole: MIB });
    // mtools knows no characters of two units.
    fs::rename(scene.path("tree/Grüße, 日本 🦀.txt"), scene.path("tree/Grüße, 日本.txt")).unwrap();
    for (bits, bytes, cluster) in
        [("12", 16 * MIB, "16"), ("16", 64 * MIB, "4"), ("32", 80 * MIB, "1")]
    {
        scene.image("image", bytes);
        scene.tool("mkfs.fat", &["-F", bits, "-s", cluster, "-n", "LABEL", "image"]);
        let names: Vec<String> = fs::read_dir(scene.path("tree"))
            .unwrap()
            .map(|entry| format!("tree/{}", entry.unwrap().file_name().into_string().unwrap()))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut command = Command::new("mcopy");
        command.args(["-s", "-m", "-i", "image"]).args(names).arg("::/");
        // Without a locale mtools knows no names but ASCII ones.
        command.current_dir(&scene.shell.folder).env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
        assert!(command.status().unwrap().success());
        let series = format!("fat{bits}");
        scene.backup(&series, "image");
        let listed = scene.shell.ok(&["--json", "ls", "--partitions", &series]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        assert_eq!(
            (&listed["file_system"], &listed["label"]),
            (&series.as_str().into(), &"LABEL".into())
        );
        assert_comes_out(&scene, &series, &scene.path("tree"), 0);
        let modified = fs::metadata(scene.path("out/folder/block")).unwrap().mtime();
        assert_eq!(modified, 1_500_000_000, "steps of two seconds");
        // Names are the same whatever their case.
        assert_eq!(scene.shell.ok(&["ls", &series, "/SMALL"]).lines().count(), 1);
    }
}

/// A file system mounted by ntfs-3g, which no kernel reads; unmounted at the end.
struct Mounted<'s>(&'s Scene, Child);

impl Mounted<'_> {
    fn new<'s>(scene: &'s Scene, image: &str, options: &str) -> Option<Mounted<'s>> {
        fs::create_dir_all(scene.path("mnt")).unwrap();
        let options = format!("no_detach,{options}");
        let mut command = Command::new("ntfs-3g");
        command.args(["-o", &options, image, "mnt"]).current_dir(&scene.shell.folder);
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let device = |path: &str| fs::metadata(scene.path(path)).unwrap().dev();
        while device("mnt") == device(".") {
            if child.try_wait().unwrap().is_some() {
                eprintln!("skipped: ntfs-3g cannot mount here");
                return None;
            }
            std::thread::yield_now();
        }
        Some(Mounted(scene, child))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0.path("mnt")).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
        // It writes what is left after it is unmounted.
        assert!(self.1.wait().unwrap().success());
    }
}

#[test]
fn ntfs_comes_out_as_ntfscp_put_it_in() {
    let scene = Scene::new();
    scene.image("image", 30 * MIB);
    scene.tool("mkntfs", &["-q", "-F", "-L", "Läbel", "image"]);
    for (name, bytes) in [("resident", 300), ("file", 5_000_001), ("empty", 0)] {
        fs::write(scene.path(name), noise(bytes as u64, bytes)).unwrap();
        scene.tool("ntfscp", &["-q", "image", name, name]);
    }
    scene.backup("vm", "image");
    assert!(scene.shell.ok(&["ls", "--partitions", "vm"]).contains("Läbel"));
    for name in ["resident", "file", "empty"] {
        scene.shell.ok(&["cp", "vm", name, "copy"]);
        assert!(fs::read(scene.path("copy")).unwrap() == fs::read(scene.path(name)).unwrap());
        fs::remove_file(scene.path("copy")).unwrap();
    }
    let names = scene.shell.ok(&["find", "vm", "/"]);
    assert_eq!(names, "/\n/empty\n/file\n/resident\n", "system files are not shown");
}

#[test]
fn what_was_never_written_of_an_ntfs_file_is_zeros() {
    let scene = Scene::new();
    scene.image("image", 16 * MIB);
    scene.tool("mkntfs", &["-q", "-F", "image"]);
    fs::write(scene.path("file"), noise(6, 300_000)).unwrap();
    scene.tool("ntfscp", &["-q", "image", "file", "file"]);
    // Its size, and how much of it was written.
    let sizes = |written: u64| [300_000, written].map(u64::to_le_bytes).concat();
    scene.patch("image", &sizes(300_000), &sizes(100_001), 1);
    let wanted = scene.tool("ntfscat", &["image", "file"]);
    assert!(wanted.len() == 300_000 && wanted[100_001..].iter().all(|byte| *byte == 0));
    scene.backup("vm", "image");
    scene.shell.ok(&["cp", "vm", "file", "copy"]);
    assert!(fs::read(scene.path("copy")).unwrap() == wanted);
}

#[test]
fn ntfs_comes_out_as_ntfs_3g_wrote_it() {
    let scene = Scene::new();
    make_tree(&scene.path("tree"), Abilities { is_unix: false, names: 3000, depth: 40, hole: MIB });
    scene.image("image", 64 * MIB);
    scene.tool("mkntfs", &["-q", "-F", "-c", "512", "image"]);
    {
        let Some(_mounted) = Mounted::new(&scene, "image", "compression,streams_interface=windows")
        else {
            return;
        };
        scene.tool("cp", &["-r", "--sparse=always", "--preserve=timestamps", "tree/.", "mnt"]);
        scene.tool("ln", &["-s", "folder/below", "mnt/link"]);
        // Thousands of runs, so that their list does not fit into one record.
        let torn = fs::File::create(scene.path("mnt/torn")).unwrap();
        for piece in 0..1500 {
            use std::os::unix::fs::FileExt;
            torn.write_all_at(&noise(piece, 512), piece * 2048).unwrap();
        }
        fs::copy(scene.path("mnt/torn"), scene.path("torn")).unwrap();
        fs::write(scene.path("mnt/small:stream"), "another stream").unwrap();
        // Behind what was written: nothing was written there, and zeros are read.
        let grown = fs::File::create(scene.path("mnt/grown")).unwrap();
        grown.set_len(300_000).unwrap();
    }
    scene.backup("vm", "image");
    scene.shell.ok(&["cp", "vm", "/", "out"]);
    let mut wanted = look(&scene.path("tree"), 0);
    let mut found = look(&scene.path("out"), 0);
    for name in ["torn", "grown", "link"] {
        found.remove(name.as_bytes()).unwrap();
    }
    // ntfs-3g writes names as they are.
    assert_same(&found, &wanted);
    wanted.clear();
    assert!(fs::read(scene.path("out/torn")).unwrap() == fs::read(scene.path("torn")).unwrap());
    assert!(fs::read(scene.path("out/grown")).unwrap() == vec![0; 300_000]);
    assert_eq!(fs::read_link(scene.path("out/link")).unwrap(), Path::new("folder/below"));
    assert_eq!(fs::metadata(scene.path("out/folder/block")).unwrap().mtime(), 1_500_000_000);
    assert!(scene.shell.ok(&["ls", "vm", "/link/large"]).contains("3000001"));
    let output = scene.shell.run(&["cp", "--force", "vm", "/small", "copy"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.contains("1 alternate data streams"), "{error}");
}

#[test]
fn compressed_files_of_ntfs_are_refused() {
    let scene = Scene::new();
    scene.image("image", 16 * MIB);
    scene.tool("mkntfs", &["-q", "-F", "-C", "image"]);
    {
        let Some(_mounted) = Mounted::new(&scene, "image", "compression") else { return };
        fs::write(scene.path("mnt/squeezed"), "much of the same ".repeat(100_000)).unwrap();
        fs::write(scene.path("mnt/tiny"), "tiny").unwrap();
    }
    scene.backup("vm", "image");
    scene.fails(1, &["cp", "vm", "/", "out"], "cannot read /squeezed: it is compressed");
    assert!(!scene.path("out/squeezed").exists());
    assert_eq!(fs::read(scene.path("out/tiny")).unwrap(), b"tiny", "others are copied");
}

#[test]
fn partitions_have_the_numbers_of_the_kernel() {
    let scene = Scene::new();
    fs::create_dir(scene.path("tree")).unwrap();
    for (table, script, expected) in [
        (
            "gpt",
            "label: gpt\n1 : start=2048, size=20480\n3 : start=22528, size=20480, name=\"third one\"\n",
            [1, 3].as_slice(),
        ),
        (
            "mbr",
            "label: dos\n2 : start=2048, size=20480\n3 : start=22528, size=81920, type=5\n\
             5 : start=24576, size=20480\n6 : start=47104, size=20480\n",
            &[2, 5, 6],
        ),
    ] {
        scene.image("disk", 60 * MIB);
        fs::write(scene.path("script"), script).unwrap();
        scene.tool("sh", &["-c", "sfdisk -q disk < script"]);
        let dump: Value =
            serde_json::from_slice(&scene.tool("sfdisk", &["--json", "disk"])).unwrap();
        let partitions = dump["partitiontable"]["partitions"].as_array().unwrap();
        for partition in partitions.iter().filter(|partition| partition["type"] != "5") {
            let start = partition["start"].as_u64().unwrap();
            fs::write(scene.path("tree/where"), start.to_string()).unwrap();
            let offset = format!("offset={}", start * 512);
            scene.tool("mke2fs", &["-q", "-F", "-d", "tree", "-E", &offset, "disk", "10M"]);
        }
        scene.backup(table, "disk");
        let listed = scene.shell.ok(&["--json", "ls", table]);
        let listed: Vec<Value> =
            listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let numbers: Vec<u64> =
            listed.iter().map(|line| line["number"].as_u64().unwrap()).collect();
        assert_eq!(numbers, expected);
        for line in &listed {
            let number = line["number"].as_u64().unwrap();
            let node = format!("disk{number}");
            let known = partitions.iter().find(|known| known["node"] == node.as_str()).unwrap();
            let start = known["start"].as_u64().unwrap();
            assert_eq!(line["start"], start * 512);
            assert_eq!(line["bytes"], known["size"].as_u64().unwrap() * 512);
            assert_eq!(line["table"], table);
            scene.shell.ok(&["cp", "--force", &format!("{table}/sda:{number}"), "where", "copy"]);
            assert_eq!(fs::read_to_string(scene.path("copy")).unwrap(), start.to_string());
            let option = number.to_string();
            scene.shell.ok(&["ls", "--partition", &option, &format!("{table}@latest"), "/where"]);
        }
        let one = format!("{table}:{}", expected[0]);
        scene.fails(
            2,
            &["ls", table, "/"],
            "cannot choose a file system of sda: it has partitions",
        );
        scene.fails(2, &["ls", "--partition", "1", &one], "cannot use --partition");
        scene.fails(1, &["ls", &format!("{table}:9")], "cannot find partition 9 of sda");
    }
    // The table at the end counts where the first one is gone.
    scene.image("disk", 60 * MIB);
    fs::write(scene.path("script"), "label: gpt\n2 : start=2048, size=20480\n").unwrap();
    scene.tool("sh", &["-c", "sfdisk -q disk < script"]);
    scene.tool("mke2fs", &["-q", "-F", "-E", "offset=1048576", "disk", "10M"]);
    scene.tool("dd", &["if=/dev/zero", "of=disk", "bs=512", "count=30", "seek=1", "conv=notrunc"]);
    scene.backup("second", "disk");
    assert!(scene.shell.ok(&["ls", "second"]).contains("lost+found"), "the only one is meant");
    assert!(scene.shell.ok(&["ls", "--partitions", "second"]).contains("\n2  "));
}

#[test]
fn listings_show_what_ls_shows() {
    let scene = Scene::new();
    make_tree(&scene.path("tree"), Abilities { is_unix: true, names: 3, depth: 2, hole: MIB });
    scene.image("image", 20 * MIB);
    scene.tool("mke2fs", &["-q", "-F", "-d", "tree", "image"]);
    scene.backup("vm", "image");
    let plain = scene.shell.ok(&["ls", "vm/sda", "/"]);
    let line = |name: &str| plain.lines().find(|line| line.ends_with(name)).unwrap().to_string();
    assert!(line("  small").starts_with("-rws--x--x  "), "{plain}");
    assert!(line("  small").contains("  2017-07-14T02:40:10Z  "), "{plain}");
    assert!(line("  folder").starts_with("drwxr-s---  "), "{plain}");
    assert!(line("  link -> small").starts_with("lrwxrwxrwx  "), "{plain}");
    line(r"  no \xff utf-8");
    let names = plain.lines().filter(|line| !line.contains("\\x"));
    let names: Vec<&str> = names.map(|line| &line[63..]).collect();
    assert!(names.is_sorted(), "{plain}");
    let json = scene.shell.ok(&["--json", "ls", "-R", "vm"]);
    let json: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |path: &str| json.iter().find(|line| line["path"] == path).unwrap();
    assert_eq!(of("/no \u{fffd} utf-8")["name_bytes"], "6e6f20ff207574662d38");
    assert_eq!(of("/small")["mode"], "4711");
    assert_eq!(of("/link")["target"], "small");
    assert_eq!(of("/folder/below/large")["bytes"], 3_000_001);
    assert_eq!(of("/folder/block")["modified"], "2017-07-14T02:40:00Z");
    // Links on the way are followed inside, one at the end with a slash.
    assert!(scene.shell.ok(&["ls", "vm", "/absolute/large"]).contains("large"));
    assert!(scene.shell.ok(&["ls", "vm", "/absolute/"]).contains("large"));
    assert!(scene.shell.ok(&["ls", "vm", "/absolute"]).contains("absolute -> /folder/below"));
    assert!(scene.shell.ok(&["ls", "vm", "../../folder/./below/../block"]).contains("block"));
    scene.fails(1, &["ls", "vm", "/folder/missing"], "cannot find /folder/missing on sda");
    scene.fails(1, &["ls", "vm", "/small/x"], "/small is no folder");
    scene.fails(1, &["ls", "vm:1"], "cannot find partition 1 of sda: it has no partitions");
}

#[test]
fn finding_is_by_name_and_kind() {
    let scene = Scene::new();
    make_tree(&scene.path("tree"), Abilities { is_unix: true, names: 12, depth: 2, hole: MIB });
    scene.image("image", 20 * MIB);
    scene.tool("mke2fs", &["-q", "-F", "-d", "tree", "image"]);
    scene.backup("vm", "image");
    let find = |arguments: &[&str]| scene.shell.ok(&[&["find", "vm"], arguments].concat());
    assert_eq!(
        find(&["/", "--name", "b[!x]*"]),
        "/folder/below\n/folder/block\n/level0/level1/bottom\n"
    );
    assert_eq!(find(&["/folder", "--type", "d"]), "/folder\n/folder/below\n");
    assert_eq!(find(&["--type", "l", "--name", "*"]), "/absolute\n/link\n/long link\n");
    assert_eq!(find(&["--name", "SMALL"]), "");
    assert_eq!(find(&["--name", "SMALL", "--ignore-case"]), "/small\n");
    assert_eq!(find(&["--name", "*number 1?"]).lines().count(), 2);
    let found: Value =
        serde_json::from_str(&scene.shell.ok(&["--json", "find", "vm", "--name", "large"]))
            .unwrap();
    assert_eq!(
        (&found["path"], &found["bytes"]),
        (&"/folder/below/large".into(), &3_000_001.into())
    );
    scene.fails(2, &["find", "vm", "--name", "[a"], "cannot read the pattern");
}

#[test]
fn what_is_there_stays_unless_forced() {
    let scene = Scene::new();
    make_tree(&scene.path("tree"), Abilities { is_unix: true, names: 3, depth: 2, hole: MIB });
    fs::set_permissions(scene.path("tree/small"), fs::Permissions::from_mode(0o4711)).unwrap();
    scene.tool("mkfifo", &["tree/pipe"]);
    scene.image("image", 20 * MIB);
    scene.tool("mke2fs", &["-q", "-F", "-d", "tree", "image"]);
    scene.backup("vm", "image");
    fs::create_dir(scene.path("out")).unwrap();
    fs::write(scene.path("out/small"), "mine").unwrap();
    scene.fails(1, &["cp", "vm", "small", "out"], "out/small: it exists (use --force");
    scene.fails(1, &["cp", "vm", "small", "missing/name"], "cannot open the folder missing");
    assert_eq!(fs::read(scene.path("out/small")).unwrap(), b"mine");
    scene.shell.ok(&["cp", "--force", "vm", "small", "out"]);
    assert_eq!(fs::read(scene.path("out/small")).unwrap(), b"small\n");
    // Set-id bits only where they are asked for.
    let mode = |name: &str| fs::metadata(scene.path(name)).unwrap().mode() & 0o7777;
    assert_eq!(mode("out/small"), 0o711);
    scene.shell.ok(&["cp", "--force", "--owner", "vm", "small", "out"]);
    assert_eq!(mode("out/small"), 0o4711);
    // A folder goes into a folder that is there, or under the new name.
    scene.shell.ok(&["cp", "vm", "folder", "out"]);
    assert!(scene.path("out/folder/below/large").exists());
    scene.shell.ok(&["cp", "vm", "folder", "new"]);
    assert!(scene.path("new/below/large").exists());
    // One that fails does not keep the others.
    fs::remove_file(scene.path("out/folder/below/large")).unwrap();
    scene.fails(1, &["cp", "vm", "folder", "out"], "1 file or folder failed");
    assert!(scene.path("out/folder/below/large").exists());
    let left: Vec<_> = fs::read_dir(scene.path("out/folder")).unwrap().collect();
    assert_eq!(left.len(), 2, "nothing unfinished is left: {left:?}");
    let output = scene.shell.run(&["cp", "vm", "pipe", "out"]);
    assert_eq!(output.status.code(), Some(4), "a pipe is left out, with a warning");
    assert!(!scene.path("out/pipe").exists());
}

#[test]
fn what_is_no_known_file_system_is_refused() {
    let scene = Scene::new();
    scene.image("image", MIB);
    scene.tool("mkswap", &["-q", "image"]);
    scene.backup("swap", "image");
    scene.fails(1, &["ls", "swap"], "cannot read files of sda: it has swap");
    for features in ["inline_data", "meta_bg,^resize_inode"] {
        scene.image("newer", 8 * MIB);
        scene.tool("mke2fs", &["-q", "-F", "-t", "ext4", "-I", "256", "-O", features, "newer"]);
        scene.backup("newer", "newer");
        scene.fails(1, &["ls", "newer"], "unsupported features");
    }
    scene.image("zeros", MIB);
    scene.backup("zeros", "zeros");
    scene.fails(1, &["cp", "zeros", "/", "out"], "it has no file system that is known");
    fs::write(scene.path("noise"), noise(5, 3_000_000)).unwrap();
    scene.backup("noise", "noise");
    scene.fails(1, &["find", "noise"], "it has no file system that is known");
    fs::write(scene.path("none"), "").unwrap();
    scene.backup("none", "none");
    scene.fails(1, &["ls", "none"], "it has no file system that is known");
}

//! Points as folders: what is read through the kernel is what was backed up, holes are where they
//! were, and the mount goes away whenever it is told to.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

#[path = "support/command.rs"]
mod command;
#[path = "support/files.rs"]
mod files;

use command::{PASSWORD, Shell};
use files::{data_ranges, noise};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

struct Scene {
    shell: Shell,
    _folder: TempDir,
}

impl Scene {
    fn new() -> Scene {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::create_dir(folder.path().join("mnt")).unwrap();
        Scene { shell: Shell::init(folder.path(), &[]), _folder: folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.shell.folder.join(name)
    }

    /// A disk with data here and there.
    fn make_disk(&self, name: &str, seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; 24 * MIB + 512];
        let file = File::create(self.path(name)).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for (at, length) in [(0, 3 * MIB), (5 * MIB, 70_000), (23 * MIB, MIB + 512)] {
            let data = noise(seed + at as u64, length);
            file.write_all_at(&data, at as u64).unwrap();
            bytes[at..at + length].copy_from_slice(&data);
        }
        bytes
    }

    fn backup(&self, series: &str, arguments: &[&str]) {
        self.shell.ok(&[&["-q", "backup", "--name", series], arguments].concat());
    }

    fn mount(&self, arguments: &[&str]) -> Option<Mounted<'_>> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_diskvault"));
        command
            .args([&["mount", "mnt"], arguments].concat())
            .current_dir(&self.shell.folder)
            .env("DISKVAULT_REPOSITORY", "repository")
            .env("DISKVAULT_PASSWORD", PASSWORD)
            .env("DISKVAULT_CACHE_DIR", "cache")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if !line.is_empty() {
            assert!(line.starts_with("mounted on mnt"), "{line}");
            return Some(Mounted { scene: self, child: Some(child) });
        }
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        let is_unable = error.contains("/dev/fuse") || error.contains("EPERM");
        assert!(is_unable || error.contains("not permitted"), "{error}");
        eprintln!("skipped: nothing can be mounted here: {error}");
        None
    }

    fn is_mounted(&self) -> bool {
        let device = |name: &str| fs::metadata(self.path(name)).map(|found| found.dev()).ok();
        device("mnt") != device(".")
    }
}

struct Mounted<'s> {
    scene: &'s Scene,
    child: Option<Child>,
}

impl Mounted<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.scene.path("mnt").join(name)
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    fn signal(&self, signal: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// Waits until it has ended by itself.
    fn output(mut self) -> Output {
        self.child.take().unwrap().wait_with_output().unwrap()
    }

    /// Ends it, and gives its exit code and what it said.
    fn end(self, signal: &str) -> (Option<i32>, String) {
        self.signal(signal);
        let output = self.output();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // After a test that failed.
        if let Some(mut child) = self.child.take() {
            let _ = Command::new("umount").arg("-l").arg(self.scene.path("mnt")).status();
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn points_are_folders_of_their_disks() {
    let scene = Scene::new();
    let first = scene.make_disk("vda", 1);
    fs::write(scene.path("notes"), "notes").unwrap();
    let time = "2026-11-01T03:00:00Z";
    scene.backup("web", &["--time", time, "vda", "notes"]);
    let second = scene.make_disk("vda", 2);
    scene.backup("web", &["--time", time, "vda"]);
    scene.backup("db", &["--time", "2026-11-02T04:05:06Z", "--disk", "a disk=vda"]);
    let Some(mounted) = scene.mount(&[]) else { return };
    assert_eq!(mounted.names("."), ["db", "web"]);
    assert_eq!(mounted.names("db"), ["2026-11-02T04-05-06Z"]);
    assert_eq!(mounted.names("db/2026-11-02T04-05-06Z"), ["a disk"]);
    let twins = mounted.names("web");
    assert_eq!((twins.len(), twins[0].as_str()), (2, "2026-11-01T03-00-00Z"));
    assert!(twins[1].starts_with("2026-11-01T03-00-00Z-") && twins[1].len() == 29, "{twins:?}");
    assert_eq!(mounted.names(&format!("web/{}", twins[0])), ["notes", "vda"]);
    let old = mounted.path("web/2026-11-01T03-00-00Z/vda");
    assert!(fs::read(&old).unwrap() == first);
    assert!(fs::read(mounted.path(&format!("web/{}/vda", twins[1]))).unwrap() == second);
    assert!(fs::read(mounted.path("db/2026-11-02T04-05-06Z/a disk")).unwrap() == second);
    assert_eq!(fs::read(mounted.path("web/2026-11-01T03-00-00Z/notes")).unwrap(), b"notes");
    let (found, source) = (fs::metadata(&old).unwrap(), fs::metadata(scene.path("vda")).unwrap());
    assert_eq!((found.len(), found.mtime()), (first.len() as u64, 1_793_502_000));
    // The source's last block is there in whole.
    assert!(source.blocks() - found.blocks() < 8, "storage as at the source");
    assert_eq!(found.mode() & 0o7777, 0o444);
    let holes = data_ranges(&old);
    assert_eq!(holes, data_ranges(&scene.path("vda")), "holes where they were");
    for (name, kind) in [("web/missing", ErrorKind::NotFound), ("other", ErrorKind::NotFound)] {
        assert_eq!(fs::metadata(mounted.path(name)).unwrap_err().kind(), kind);
    }
    let refused = File::options().write(true).open(&old).unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied));
    assert!(fs::write(mounted.path("web/new"), "new").is_err());
    let (code, said) = mounted.end("-TERM");
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert!(!scene.is_mounted());
}

#[test]
fn other_programs_read_disks() {
    let scene = Scene::new();
    scene.make_disk("vda", 3);
    let script = "printf 'label: gpt\\nstart=2048, size=8192, name=here\\n' | sfdisk -q vda";
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let sh = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(&scene.shell.folder).env("PATH", &path);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert!(sh(script).0);
    scene.backup("vm", &["--time", "2026-11-01T03:00:00Z", "vda"]);
    let Some(mounted) = scene.mount(&[]) else { return };
    let disk = "mnt/vm/2026-11-01T03-00-00Z/vda";
    let (is_read, table) = sh(&format!("sfdisk --json {disk}"));
    assert!(is_read && table.contains("\"name\": \"here\""), "{table}");
    assert!(sh(&format!("cp --sparse=always {disk} copy && cmp copy vda")).0);
    let copied = fs::metadata(scene.path("copy")).unwrap().blocks();
    assert!(copied * 512 < 6 * MIB as u64, "{copied} blocks");
    assert!(sh(&format!("qemu-img compare -f raw -F raw {disk} vda")).0);
    let (is_attached, device) = sh(&format!("losetup -r -f --show {disk}"));
    if is_attached {
        let device = device.trim();
        let same = sh(&format!("cmp {device} vda")).0;
        assert!(sh(&format!("losetup -d {device}")).0);
        assert!(same, "what a loop device reads");
    } else {
        eprintln!("skipped: no loop device can be had here");
    }
    assert_eq!(mounted.end("-INT").0, Some(0));
}

#[test]
fn many_readers_get_what_they_ask_for() {
    let scene = Scene::new();
    let bytes = scene.make_disk("vda", 4);
    scene.backup("vm", &["--time", "2026-11-01T03:00:00Z", "vda"]);
    let Some(mounted) = scene.mount(&["--threads", "4"]) else { return };
    let disk = mounted.path("vm/2026-11-01T03-00-00Z/vda");
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (disk, bytes) = (&disk, &bytes);
            scope.spawn(move || {
                let file = File::open(disk).unwrap();
                let places = noise(reader, 100 * 8);
                for place in places.chunks(8) {
                    let place = u64::from_le_bytes(place.try_into().unwrap()) as usize;
                    let start = place % bytes.len();
                    let length = (place >> 40) % 300_000;
                    let end = (start + length).min(bytes.len());
                    let mut found = vec![1; end - start];
                    file.read_exact_at(&mut found, start as u64).unwrap();
                    assert!(found == bytes[start..end], "{start}..{end}");
                }
            });
        }
    });
    assert_eq!(mounted.end("-INT").0, Some(0));
}

#[test]
fn new_points_appear() {
    let scene = Scene::new();
    scene.make_disk("vda", 5);
    scene.backup("vm", &["--time", "2026-11-01T03:00:00Z", "vda"]);
    let Some(mounted) = scene.mount(&[]) else { return };
    assert_eq!(mounted.names("vm").len(), 1);
    let open = File::open(mounted.path("vm/2026-11-01T03-00-00Z/vda")).unwrap();
    let second = scene.make_disk("vda", 6);
    scene.backup("vm", &["--time", "2026-11-02T03:00:00Z", "vda"]);
    scene.backup("new", &["vda"]);
    let began = Instant::now();
    while mounted.names(".") != ["new", "vm"] || mounted.names("vm").len() < 2 {
        assert!(began.elapsed() < Duration::from_secs(30), "new points do not appear");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(fs::read(mounted.path("vm/2026-11-02T03-00-00Z/vda")).unwrap() == second);
    drop(open);
    assert_eq!(mounted.end("-INT").0, Some(0));
}

#[test]
fn it_goes_away_when_told_to() {
    let scene = Scene::new();
    scene.make_disk("vda", 7);
    scene.backup("vm", &["--time", "2026-11-01T03:00:00Z", "vda"]);
    for signal in ["-INT", "-TERM", "-HUP"] {
        let Some(mounted) = scene.mount(&["--series", "vm"]) else { return };
        assert!(scene.is_mounted());
        assert_eq!(mounted.end(signal), (Some(0), String::new()), "{signal}");
        assert!(!scene.is_mounted(), "{signal}");
    }
    // In use: it goes all the same, and says so.
    let mounted = scene.mount(&["--point", "vm@latest"]).unwrap();
    let mut open = File::open(mounted.path("vm/2026-11-01T03-00-00Z/vda")).unwrap();
    let (code, said) = mounted.end("-TERM");
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("was in use"), "{said}");
    assert!(!scene.is_mounted());
    assert!(open.read(&mut [0; 10]).is_err());
    drop(open);
    // By somebody else.
    let mounted = scene.mount(&[]).unwrap();
    assert!(Command::new("umount").arg(scene.path("mnt")).status().unwrap().success());
    let output = mounted.output();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.as_ref()), (Some(0), ""));
    assert_eq!(fs::read_dir(scene.path("mnt")).unwrap().count(), 0);
}

#[test]
fn damage_is_an_error_of_that_read() {
    let scene = Scene::new();
    fs::write(scene.path("vda"), noise(8, 8 * MIB)).unwrap();
    scene.backup("vm", &["--time", "2026-11-01T03:00:00Z", "vda"]);
    let mut packs = Vec::new();
    for folder in fs::read_dir(scene.path("repository/packs")).unwrap() {
        packs
            .extend(fs::read_dir(folder.unwrap().path()).unwrap().map(|pack| pack.unwrap().path()));
    }
    let largest = packs.iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    let mut bytes = fs::read(largest).unwrap();
    // The second of its segments of 4 MiB.
    bytes[6 * MIB] ^= 1;
    let other = largest.with_extension("damaged");
    fs::write(&other, bytes).unwrap();
    fs::rename(&other, largest).unwrap();
    let Some(mounted) = scene.mount(&[]) else { return };
    let disk = File::open(mounted.path("vm/2026-11-01T03-00-00Z/vda")).unwrap();
    let wanted = noise(8, 8 * MIB);
    let (mut right, mut refused) = (0, 0);
    for (number, wanted) in wanted.chunks(32_768).enumerate() {
        let mut found = vec![0; wanted.len()];
        match disk.read_exact_at(&mut found, number as u64 * 32_768) {
            Ok(()) => {
                assert!(found == wanted, "wrong bytes in piece {number}");
                right += 1;
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5));
                refused += 1;
            }
        }
    }
    assert!(right > 0 && refused > 0, "{right} right, {refused} refused");
    drop(disk);
    let (code, said) = mounted.end("-INT");
    assert_eq!(code, Some(4));
    assert!(said.contains("warning: cannot read vda at offset"), "{said}");
}

fn fails(scene: &Scene, code: i32, arguments: &[&str], words: &str) {
    let output = scene.shell.run(&[&["mount"], arguments].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    assert!(error.contains(words), "{arguments:?}: {error}");
    assert!(!scene.is_mounted());
}

#[test]
fn what_is_no_empty_folder_is_refused() {
    let scene = Scene::new();
    fs::write(scene.path("vda"), noise(9, MIB)).unwrap();
    scene.backup("vm", &["vda"]);
    fs::create_dir(scene.path("full")).unwrap();
    fs::write(scene.path("full/file"), "mine").unwrap();
    fails(&scene, 1, &["full"], "cannot mount on full: it is not empty");
    assert_eq!(fs::read(scene.path("full/file")).unwrap(), b"mine");
    fails(&scene, 1, &["missing"], "cannot mount on missing: No such file");
    fails(&scene, 1, &["vda"], "cannot mount on vda: Not a directory");
    fails(&scene, 1, &["--series", "other", "mnt"], "cannot find a series named other");
    fails(&scene, 1, &["--point", "other", "mnt"], "cannot find a series or point named other");
    fails(&scene, 2, &["--point", "vm", "--series", "vm", "mnt"], "cannot be used with");
}

#[test]
fn a_machine_without_fuse_is_told_so() {
    let scene = Scene::new();
    let script = "mount -t tmpfs none /dev && exec \"$0\" mount mnt";
    let run = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script, env!("CARGO_BIN_EXE_diskvault")]);
        command.current_dir(&scene.shell.folder);
        command
            .env("DISKVAULT_REPOSITORY", "repository")
            .env("DISKVAULT_PASSWORD", PASSWORD)
            .env("DISKVAULT_CACHE_DIR", "cache");
        command.output().unwrap()
    };
    if !run("mount -t tmpfs none /dev").status.success() {
        eprintln!("skipped: no /dev can be hidden here");
        return;
    }
    let output = run(script);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot mount on mnt: this machine has no /dev/fuse"), "{error}");
    assert!(Path::new("/dev/null").exists());
}

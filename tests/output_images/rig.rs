//! A repository, disks to put into it, and the judges of what comes out.

use super::command::Shell;
use super::files::{data_ranges, noise, stored_bytes, sum};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// Options of `restore`, the ending of the file, and QEMU's name of the format.
pub struct Form {
    pub options: &'static [&'static str],
    pub ending: &'static str,
    pub qemu: &'static str,
    /// Tables of an image without data, and what each range of data may take more, in bytes.
    pub tables: u64,
}

const fn form(options: &'static [&'static str], ending: &'static str, qemu: &'static str) -> Form {
    Form { options, ending, qemu, tables: 2 * MIB }
}

/// Every way to write an image of one disk.
pub const FORMS: [Form; 7] = [
    form(&["--format", "qcow2"], "qcow2", "qcow2"),
    form(&["--format", "qcow2", "--compress"], "qcow2", "qcow2"),
    form(&["--format", "qcow2", "--compress=zstd"], "qcow2", "qcow2"),
    form(&["--format", "vmdk"], "vmdk", "vmdk"),
    form(&["--format", "vmdk-stream"], "vmdk", "vmdk"),
    form(&["--format", "vhd"], "vhd", "vpc"),
    form(&["--format", "vhdx"], "vhdx", "vhdx"),
];

pub struct Rig {
    folder: TempDir,
    pub shell: Shell,
}

impl Rig {
    pub fn new() -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let shell = Shell::init(folder.path(), &[]);
        Rig { folder, shell }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(program).args(arguments).current_dir(self.folder.path()).output().unwrap()
    }

    /// Runs a program, which must succeed; its output.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run(program, arguments);
        let (out, error) = (output.stdout, String::from_utf8_lossy(&output.stderr));
        let out = String::from_utf8(out).unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {out}{error}");
        out
    }

    /// A raw disk with noise at these places, sparse otherwise.
    pub fn disk(&self, name: &str, size: u64, data: &[(u64, u64)]) {
        let file = File::create(self.path(name)).unwrap();
        file.set_len(size).unwrap();
        for (offset, bytes) in data {
            file.write_all_at(&noise(offset ^ size, *bytes as usize), *offset).unwrap();
        }
    }

    /// Backs a disk up under a series of its own name.
    pub fn backup(&self, name: &str) -> Value {
        let disk = format!("disk={name}");
        self.shell.backup(&["--name", name, "--disk", &disk])
    }

    /// The restored image, which QEMU and our own readers have to accept as the disk.
    pub fn assert_restores(&self, series: &str, raw: &str, form: &Form) {
        let image = format!("{series}-out.{}", form.ending);
        let out = self.shell.ok(&[&["restore", "--verify", series, &image], form.options].concat());
        assert!(out.contains(&format!("read back: {image} is disk")), "{out}");
        self.assert_is_disk(&image, raw, form.qemu);
        self.assert_not_larger(&image, raw, form);
        fs::remove_file(self.path(&image)).unwrap();
    }

    /// QEMU finds nothing wrong with an image, and the disk in it.
    pub fn assert_is_disk(&self, image: &str, raw: &str, qemu: &str) {
        if !matches!(qemu, "vpc" | "raw") {
            self.tool("qemu-img", &["check", "-f", qemu, image]);
        }
        self.tool("qemu-img", &["compare", "-f", "raw", "-F", qemu, raw, image]);
        let info = self.tool("qemu-img", &["info", "--output=json", "-f", qemu, image]);
        let info: Value = serde_json::from_str(&info).unwrap();
        let size = self.path(raw).metadata().unwrap().len();
        assert_eq!(info["virtual-size"], size, "{image}");
    }

    /// A backup of the image has the map root of a backup of the disk, and stores nothing.
    pub fn assert_reads_back(&self, image: &str, raw: &str) {
        let disks = [format!("disk={raw}"), format!("disk={image}")];
        let roots = disks.map(|disk| {
            let name = format!("again-{}", disk.replace(['=', '.', '/'], "-"));
            let arguments = ["--name", &name, "--full", "--disk", &disk];
            let summary = self.shell.backup(&arguments);
            if !disk.ends_with(raw) {
                assert_eq!(summary["new_chunks"], 0, "{image}: {summary}");
            }
            let shown = self.shell.ok(&["--json", "show", &format!("{name}/disk")]);
            let shown: Value = serde_json::from_str(shown.lines().next().unwrap()).unwrap();
            find(&shown, "map_root").unwrap_or_else(|| panic!("no root in {shown}"))
        });
        assert_eq!(roots[0], roots[1], "{image}");
    }

    /// The image takes no more storage than the disk and tables do.
    fn assert_not_larger(&self, image: &str, raw: &str, form: &Form) {
        let (image, raw) = (self.path(image), self.path(raw));
        File::open(&raw).unwrap().sync_all().unwrap();
        // At the border of each range a cluster of a compressed image may grow by that of the disk.
        let ranges = data_ranges(&raw);
        let more = form.tables + ranges.len() as u64 * 8 * KIB;
        let (found, source) = (stored_bytes(&image), sum(&ranges));
        assert!(found <= source + more, "{}: {found} bytes, source {source}", image.display());
    }

    /// What `restore` says when it must fail with this code, and leave `target` as it is.
    pub fn refusal(&self, code: i32, arguments: &[&str]) -> String {
        let before = self.listing();
        let output = self.shell.run(&[&["restore"], arguments].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "restore {arguments:?}: {error}");
        assert_eq!(self.listing(), before, "restore {arguments:?} left something");
        error
    }

    /// Names and sizes in the folder.
    fn listing(&self) -> Vec<(PathBuf, u64)> {
        let mut found: Vec<_> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_name() != "cache")
            .map(|entry| (entry.path(), entry.metadata().unwrap().len()))
            .collect();
        found.sort();
        found
    }
}

/// The first value of this name, anywhere.
fn find(value: &Value, name: &str) -> Option<Value> {
    match value {
        Value::Object(fields) => {
            fields.get(name).cloned().or_else(|| fields.values().find_map(|it| find(it, name)))
        }
        Value::Array(items) => items.iter().find_map(|it| find(it, name)),
        _ => None,
    }
}

/// SHA-256 of a file, by sha256sum.
pub fn digest(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

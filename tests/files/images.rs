//! Trees of files, the images that the tools of each file system make of them, and comparing.

use crate::command::Shell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;

/// Runs a tool, which must be there and succeed; gives its standard output.
pub fn tool(folder: &Path, program: &str, arguments: &[&str]) -> Vec<u8> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).env("PATH", path).env("MTOOLS_SKIP_CHECK", "1");
    let output = command.output().unwrap_or_else(|cause| panic!("{program}: {cause}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    output.stdout
}

/// Bytes that follow from a seed.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
    data
}

/// A folder for images, with a repository.
pub struct Scene {
    pub shell: Shell,
    _folder: TempDir,
}

impl Scene {
    pub fn new() -> Scene {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Scene { shell: Shell::init(folder.path(), &[]), _folder: folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.shell.folder.join(name)
    }

    pub fn tool(&self, program: &str, arguments: &[&str]) -> Vec<u8> {
        tool(&self.shell.folder, program, arguments)
    }

    /// An empty image.
    pub fn image(&self, name: &str, bytes: u64) {
        fs::File::create(self.path(name)).unwrap().set_len(bytes).unwrap();
    }

    pub fn backup(&self, series: &str, image: &str) {
        self.shell.ok(&["-q", "backup", "--name", series, "--disk", &format!("sda={image}")]);
    }

    /// Runs the program, which must fail with that code and say `words`.
    pub fn fails(&self, code: i32, arguments: &[&str], words: &str) {
        let output = self.shell.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
        assert!(!error.contains("panicked"), "{error}");
    }

    /// Replaces every `old` in a file; there must be `count`.
    pub fn patch(&self, image: &str, old: &[u8], new: &[u8], count: usize) {
        let bytes = fs::read(self.path(image)).unwrap();
        let places: Vec<usize> = memchr::memmem::find_iter(&bytes, old).collect();
        assert_eq!(places.len(), count, "{old:?} at {places:?}");
        let file = fs::File::options().write(true).open(self.path(image)).unwrap();
        places.iter().for_each(|place| file.write_all_at(new, *place as u64).unwrap());
    }
}

/// What a tree may have in it.
#[derive(Clone, Copy)]
pub struct Abilities {
    /// Links, permissions, and names that are no UTF-8.
    pub is_unix: bool,
    /// Names in one folder.
    pub names: usize,
    /// Folders in each other.
    pub depth: usize,
    /// Bytes between what is written to a sparse file.
    pub hole: u64,
}

/// Makes a tree.
pub fn make_tree(root: &Path, abilities: Abilities) {
    let write = |name: &str, data: &[u8]| fs::write(root.join(name), data).unwrap();
    fs::create_dir_all(root.join("folder/below")).unwrap();
    fs::create_dir(root.join("nothing here")).unwrap();
    write("empty", b"");
    write("small", b"small\n");
    write("Grüße, 日本 🦀.txt", b"unicode");
    write("folder/block", &noise(1, 4096));
    write("folder/below/large", &noise(2, 3_000_001));
    write(&format!("{}.long", "long name ".repeat(20)), &noise(3, 100_000));
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(2 * MIB).unwrap();
    for place in (0..2 * MIB).step_by(abilities.hole as usize) {
        sparse.write_all_at(&noise(place, 10_000), place).unwrap();
    }
    fs::create_dir(root.join("many")).unwrap();
    for number in 0..abilities.names {
        fs::write(root.join(format!("many/a file with number {number}")), number.to_string())
            .unwrap();
    }
    let mut deep = root.to_owned();
    for level in 0..abilities.depth {
        deep.push(format!("level{level}"));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), "bottom").unwrap();
    if abilities.is_unix {
        symlink("small", root.join("link")).unwrap();
        symlink("/folder/below", root.join("absolute")).unwrap();
        symlink("x".repeat(200), root.join("long link")).unwrap();
        fs::write(root.join(OsStr::from_bytes(b"no \xff utf-8")), "bytes").unwrap();
        fs::write(root.join(OsStr::from_bytes(&[0xfe; 150])), "long bytes").unwrap();
        for (name, mode) in [("small", 0o4711), ("folder", 0o2750), ("empty", 0o000)] {
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    let time = |seconds| std::time::UNIX_EPOCH + std::time::Duration::new(seconds, 120_000_000);
    for (number, name) in ["folder/block", "small", "folder"].into_iter().enumerate() {
        let file = fs::File::open(root.join(name)).unwrap();
        file.set_modified(time(1_500_000_000 + 10 * number as u64)).unwrap();
    }
}

/// What is compared of an entry: kind, permissions, time in steps, and content or target.
pub type Seen = BTreeMap<Vec<u8>, (char, u32, i64, Vec<u8>)>;

/// Everything below a folder. Times are in units of `step` seconds; 0 leaves them out, and with
/// them permissions.
pub fn look(root: &Path, step: i64) -> Seen {
    let mut seen = Seen::new();
    look_into(root, root, step, &mut seen);
    seen
}

fn look_into(root: &Path, folder: &Path, step: i64, seen: &mut Seen) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let found = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        if name == b"lost+found" {
            continue;
        }
        let (kind, content) = if found.is_symlink() {
            ('l', fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes())
        } else if found.is_dir() {
            look_into(root, &path, step, seen);
            ('d', Vec::new())
        } else {
            ('-', blake3::hash(&fs::read(&path).unwrap()).as_bytes().to_vec())
        };
        let is_link = kind == 'l';
        let mode = if step == 0 || is_link { 0 } else { found.mode() & 0o777 };
        // mke2fs gives links a time of its own.
        let time = if step == 0 || is_link { 0 } else { found.mtime() / step };
        seen.insert(name, (kind, mode, time, content));
    }
}

/// Compares, and names what differs.
pub fn assert_same(found: &Seen, wanted: &Seen) {
    let names = |seen: &Seen| {
        seen.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(found), names(wanted));
    for (name, wanted) in wanted {
        assert_eq!(&found[name], wanted, "{}", String::from_utf8_lossy(name));
    }
}

//! A repository in a temporary folder, and runs of the binary on it.

use diskvault::environment::SystemEnvironment;
use diskvault::repository::secrets::Passphrase;
use diskvault::repository::{InitOptions, initialise};
use diskvault::storage::local::LocalStorage;
use diskvault_format::key_slot::KdfCost;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The password of every repository here; no output may ever contain it.
pub const PASSWORD: &str = "correct horse battery";
/// Longest time anything here is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;

/// A folder with a repository `repo`, a cache `cache`, and whatever a test puts beside them.
pub struct Vault {
    folder: TempDir,
}

/// What a run did.
pub struct Outcome {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

/// An empty repository, made once for each process; with the cheapest key slot, since only
/// `init` itself is about the usual one.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<TempDir> = OnceLock::new();
    let made = TEMPLATE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let storage = LocalStorage::create(&folder.path().join("repo")).unwrap();
        let options = InitOptions {
            passphrase: &Passphrase::new(PASSWORD.into()),
            recovery: None,
            chunk_bytes: Some(64 << 10),
            pack_bytes: None,
            parity_per_mille: 0,
            cost: KdfCost::RECOVERY,
            host: "test",
        };
        initialise(&storage, &SystemEnvironment, &options).unwrap();
        folder
    });
    made.path()
}

/// Copies a folder with everything below it.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

impl Vault {
    /// A vault with an empty repository.
    pub fn new() -> Vault {
        let vault = Vault::without_repository();
        copy_folder(&template().join("repo"), &vault.repo());
        vault
    }

    /// A vault whose repository is yet to be made.
    pub fn without_repository() -> Vault {
        Vault { folder: tempfile::tempdir().unwrap() }
    }

    pub fn repo(&self) -> PathBuf {
        self.path("repo")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The path as an argument.
    pub fn arg(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_string()
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.path(name), bytes).unwrap();
        self.arg(name)
    }

    /// A command with a clean environment, the password in it, and no terminal.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_diskvault"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path())
            .env("TZ", "UTC")
            .env("DISKVAULT_REPOSITORY", self.repo())
            .env("DISKVAULT_PASSWORD", PASSWORD)
            .env("DISKVAULT_CACHE_DIR", self.path("cache"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs to the end.
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        finish(&mut self.command(arguments))
    }

    /// Runs; it must succeed.
    pub fn ok(&self, arguments: &[&str]) -> Outcome {
        let outcome = self.run(arguments);
        assert_eq!(outcome.code, 0, "{arguments:?}: {}", outcome.stderr);
        outcome
    }

    /// Runs; it must fail with `code` and say `text` in an error that starts as all do.
    pub fn fails(&self, code: i32, arguments: &[&str], text: &str) -> Outcome {
        let outcome = self.run(arguments);
        assert_eq!(outcome.code, code, "{arguments:?}: {}", outcome.stderr);
        outcome.says(text);
        outcome
    }

    /// Runs with `--json`; the last line of its output.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        self.ok(&all).json()
    }

    /// Everything that is stored is whole, down to the last byte.
    pub fn assert_intact(&self) {
        self.ok(&["check", "--read-data"]).prints("no damage found");
    }

    /// Number of visible points.
    pub fn point_count(&self) -> usize {
        self.json(&["list"]).as_array().unwrap().len()
    }

    /// Makes a point of `path` with these further arguments; its full id.
    pub fn backup(&self, series: &str, arguments: &[&str]) -> String {
        let mut all = vec!["backup", "--name", series];
        all.extend(arguments);
        self.json(&all)["point_id"].as_str().unwrap().to_string()
    }

    /// Restores a part of one point into a new file and compares it.
    pub fn assert_restores(&self, address: &str, expected: &[u8]) {
        let target = self.path("assert-restores");
        let _ = fs::remove_file(&target);
        self.ok(&["restore", address, target.to_str().unwrap()]);
        assert!(fs::read(&target).unwrap() == expected, "{address} came back differently");
    }
}

impl Outcome {
    fn new(output: Output) -> Outcome {
        let signal = output.status.signal().map_or(-1, |signal| 1000 + signal);
        let outcome = Outcome {
            code: output.status.code().unwrap_or(signal),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        let printed = String::from_utf8_lossy(&outcome.stdout);
        for secret in [PASSWORD, "\x1b"] {
            assert!(!outcome.stderr.contains(secret), "{}", outcome.stderr.escape_debug());
            // Restored data may hold anything.
            let is_data = outcome.stdout.len() > 64 << 10 || printed.contains('\u{fffd}');
            assert!(is_data || !printed.contains(secret), "{}", printed.escape_debug());
        }
        outcome
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    /// The last line of the output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(self.text().lines().last().unwrap()).unwrap()
    }

    /// Standard error has an error line with `text` in it.
    pub fn says(&self, text: &str) -> &Outcome {
        let has = self.stderr.lines().any(|line| line.contains(text));
        assert!(has, "expected {text:?} in {:?}", self.stderr);
        self
    }

    /// Standard output has a line with `text` in it.
    pub fn prints(&self, text: &str) -> &Outcome {
        assert!(self.text().contains(text), "expected {text:?} in {:?}", self.text());
        self
    }

    /// The run gave a hint with `text` in it.
    pub fn hints(&self, text: &str) -> &Outcome {
        let hint = self.stderr.lines().find(|line| line.starts_with("hint: "));
        assert!(hint.is_some_and(|hint| hint.contains(text)), "{:?}", self.stderr);
        self
    }
}

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Outcome {
    Outcome::new(command.output().unwrap())
}

/// Waits for a started run.
pub fn wait(child: Child) -> Outcome {
    Outcome::new(child.wait_with_output().unwrap())
}

/// Waits until `condition` holds; false if the child ends before.
pub fn poll(child: &mut Child, mut condition: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(began.elapsed() < PATIENCE, "waited too long");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes that nothing compresses or finds twice; the same for the same seed.
pub fn random(seed: u64, bytes: u64) -> Vec<u8> {
    let mut data = vec![0; usize::try_from(bytes).unwrap()];
    let mut reader = blake3::Hasher::new();
    reader.update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
    data
}

/// BLAKE3 as `b3sum` prints it.
pub fn blake3_hex(data: &[u8]) -> String {
    blake3::hash(data).to_hex().to_string()
}

/// A file of `size` bytes with data only in `ranges`.
pub fn write_sparse(path: &Path, size: u64, ranges: &[(u64, &[u8])]) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (offset, data) in ranges {
        file.write_all_at(data, *offset).unwrap();
    }
    file.sync_all().unwrap();
}

/// Ranges of data in a file, as the file system tells them.
pub fn data_map(path: &Path) -> Vec<(u64, u64)> {
    let file = fs::File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let mut map = Vec::new();
    let mut at = 0;
    while at < size {
        let Ok(start) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) else { break };
        at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(start)).unwrap();
        map.push((start, at));
    }
    map
}

/// Bytes that a file takes on its file system.
pub fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// Files below a folder, as paths relative to it.
pub fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        // A file or folder may go away while this looks.
        let Ok(entries) = fs::read_dir(&next) else { continue };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            } else {
                let path = entry.path();
                found.push(path.strip_prefix(folder).unwrap().to_str().unwrap().to_string());
            }
        }
    }
    found.sort();
    found
}

/// The digest as one of coreutils' programs prints it.
pub fn sum_program(program: &str, path: &Path) -> String {
    let output = Command::new(program).arg(path).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_string()
}

/// Reads a range of a file.
pub fn read_range(path: &Path, offset: u64, bytes: usize) -> Vec<u8> {
    let mut file = fs::File::open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    let mut data = vec![0; bytes];
    file.read_exact(&mut data).unwrap();
    data
}

/// A loop device over a file, let go at the end. `None`, with a message, where there is none.
pub struct LoopDevice(pub String);

impl LoopDevice {
    pub fn new(file: &Path) -> Option<LoopDevice> {
        let output = Command::new("losetup").args(["-f", "--show"]).arg(file).output();
        match output {
            Ok(output) if output.status.success() => {
                let name = String::from_utf8(output.stdout).unwrap();
                Some(LoopDevice(name.trim().to_string()))
            }
            _ => {
                eprintln!("skipped: no loop device can be had here");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// A file system in memory, unmounted at the end. `None`, with a message, without the right to.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    pub fn new(at: &Path, options: &str) -> Option<Tmpfs> {
        fs::create_dir_all(at).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "diskvault-test"]).arg(at);
        if command.output().is_ok_and(|output| output.status.success()) {
            return Some(Tmpfs(at.to_owned()));
        }
        eprintln!("skipped: no file system can be mounted here");
        None
    }

    pub fn remount(&self, options: &str) {
        let mut command = Command::new("mount");
        command.arg("-o").arg(format!("remount,{options}")).arg(&self.0);
        assert!(command.output().unwrap().status.success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let printed = String::from_utf8_lossy(&self.stdout);
        write!(f, "exit code {}, {printed:?}, {:?}", self.code, self.stderr)
    }
}

//! `serve-nbd` with real clients as judges: qemu-io, qemu-img, nbdinfo and nbdcopy; with hostile ones;
//! and with writes that must survive.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]

#[path = "support/command.rs"]
mod command;
#[path = "support/files.rs"]
mod files;
#[path = "serve_nbd/hostile.rs"]
mod hostile;
#[path = "serve_nbd/overlay.rs"]
mod overlay;
#[path = "serve_nbd/places.rs"]
mod places;

use command::Shell;
use files::noise;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 40 * MIB + 512;

/// A repository with one point of the series `vm`, whose one disk is `vda`.
struct Stage {
    folder: TempDir,
    shell: Shell,
}

/// Data, holes, zeros in storage, and an end that is no multiple of anything but a sector.
fn make_disk(path: &Path, seed: u64) {
    let file = File::create_new(path).unwrap();
    file.set_len(DISK_BYTES).unwrap();
    for (offset, bytes) in [(0, 2 * MIB), (5 * MIB, 64 << 10), (9 * MIB, 9 * MIB), (40 * MIB, 512)]
    {
        file.write_all_at(&noise(seed + offset, bytes as usize), offset).unwrap();
    }
    file.write_all_at(&[0; 1 << 20], 20 * MIB).unwrap();
}

impl Stage {
    fn new() -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let shell = Shell::init(folder.path(), &[]);
        make_disk(&folder.path().join("vda"), 1);
        shell.backup(&["--name", "vm", "--disk", "vda=vda"]);
        Stage { folder, shell }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path("vda")).unwrap()
    }

    /// Serves on a socket of the folder.
    fn serve(&self, arguments: &[&str]) -> Server {
        Server::start(&self.shell, &[&["--socket", "s"], arguments].concat())
    }

    /// Runs a client, which must succeed.
    fn client(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.try_client(program, arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn try_client(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        let run = command.args(arguments).current_dir(self.folder.path()).output();
        run.unwrap_or_else(|cause| panic!("{program} is needed: {cause}"))
    }

    /// All bytes of an export, as nbdcopy reads them.
    fn copy(&self, uri: &str) -> Vec<u8> {
        let _ = std::fs::remove_file(self.path("copy"));
        self.client("nbdcopy", &[uri, "copy"]);
        std::fs::read(self.path("copy")).unwrap()
    }

    /// Commands of qemu-io on an export; what it printed.
    fn qemu_io(&self, uri: &str, options: &[&str], commands: &[&str]) -> String {
        let mut arguments = vec!["-f", "raw"];
        arguments.extend(options);
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(uri);
        let output = self.try_client("qemu-io", &arguments);
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    fn digest(&self) -> String {
        let text = self.shell.ok(&["digest", "--with", "sha256", "vm/vda"]);
        text.split_whitespace().next().unwrap().to_string()
    }
}

/// A server that ends with the test.
struct Server {
    child: Child,
    uris: Vec<String>,
    stderr: Option<ChildStderr>,
}

impl Server {
    fn start(shell: &Shell, arguments: &[&str]) -> Server {
        Server::begin(shell, "vm", arguments, 1)
    }

    fn begin(shell: &Shell, point: &str, arguments: &[&str], exports: usize) -> Server {
        let mut command = shell.command(&[&["serve-nbd", point], arguments].concat());
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = child.stderr.take();
        let mut uris = Vec::new();
        for _ in 0..exports {
            let mut line = String::new();
            if output.read_line(&mut line).unwrap() == 0 {
                let mut text = String::new();
                stderr.take().unwrap().read_to_string(&mut text).unwrap();
                panic!("no server: {text}");
            }
            uris.push(line.trim().to_string());
        }
        Server { child, uris, stderr }
    }

    fn uri(&self) -> &str {
        &self.uris[0]
    }

    /// Ends it with a signal: its exit code, and what it said.
    fn end(mut self, signal: &str) -> (Option<i32>, String) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        self.wait()
    }

    fn wait(&mut self) -> (Option<i32>, String) {
        let mut text = String::new();
        self.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap().code(), text)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn real_clients_read_what_was_backed_up() {
    let stage = Stage::new();
    let server = stage.serve(&[]);
    let (uri, bytes) = (server.uri(), stage.bytes());
    assert!(stage.copy(uri) == bytes);
    stage.client("nbdcopy", &["--connections=4", "--requests=16", uri, "four"]);
    assert!(std::fs::read(stage.path("four")).unwrap() == bytes);
    let compared = stage.client("qemu-img", &["compare", "-f", "raw", "-F", "raw", uri, "vda"]);
    assert!(compared.contains("identical"), "{compared}");
    stage.client("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", uri, "c.qcow2"]);
    stage.client("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", "c.qcow2", "vda"]);
    let (code, _) = server.end("-TERM");
    assert_eq!(code, Some(130));
    assert!(!stage.path("s").exists(), "the socket is left");
}

#[test]
fn allocation_is_that_of_the_source() {
    let stage = Stage::new();
    let server = stage.serve(&[]);
    let text = stage.client("nbdinfo", &["--map", "--json", server.uri()]);
    let map: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut data = Vec::new();
    let mut zeros = Vec::new();
    let mut at = 0;
    for extent in map.as_array().unwrap() {
        let (start, length) =
            (extent["offset"].as_u64().unwrap(), extent["length"].as_u64().unwrap());
        assert_eq!(start, at, "{map}");
        at += length;
        let list = match extent["type"].as_u64().unwrap() {
            0 => &mut data,
            2 => &mut zeros,
            3 => continue,
            other => panic!("state {other}"),
        };
        list.push(start..at);
    }
    assert_eq!(at, DISK_BYTES);
    assert!(zeros.contains(&(20 * MIB..21 * MIB)), "{zeros:?}");
    // Both kinds have storage at the source.
    let mut stored: Vec<_> = data.into_iter().chain(zeros).collect();
    stored.sort_by_key(|range| range.start);
    let mut joined: Vec<std::ops::Range<u64>> = Vec::new();
    for range in stored {
        match joined.last_mut().filter(|last| last.end == range.start) {
            Some(last) => last.end = range.end,
            None => joined.push(range),
        }
    }
    assert_eq!(joined, files::data_ranges(&stage.path("vda")));
}

#[test]
fn what_nbdinfo_shows_is_right() {
    let stage = Stage::new();
    make_disk(&stage.path("vdb"), 99);
    stage.shell.backup(&["--name", "two", "--disk", "vda=vda", "--disk", "b c=vdb"]);
    let server = Server::begin(&stage.shell, "two", &["--socket", "s"], 2);
    let text = stage.client("nbdinfo", &["--list", "--json", server.uri()]);
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    let exports = list["exports"].as_array().unwrap();
    let names: Vec<_> = exports.iter().map(|export| export["export-name"].clone()).collect();
    assert_eq!(names, ["vda", "b c"]);
    for export in exports {
        assert_eq!(export["export-size"], DISK_BYTES);
        assert_eq!(export["is_read_only"], true, "{export}");
        assert_eq!(export["can_multi_conn"], true);
        assert_eq!((&export["can_trim"], &export["can_fua"]), (&false.into(), &false.into()));
        assert_eq!(export["block_size_minimum"], 1);
        assert_eq!(export["block_size_maximum"], 32 << 20);
        assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
    }
    assert!(server.uris[1].starts_with("nbd+unix:///b%20c?socket=/"), "{:?}", server.uris);
    assert!(stage.copy(&server.uris[1]) == std::fs::read(stage.path("vdb")).unwrap());
    // The first one is the one without a name.
    let socket = stage.path("s");
    assert!(stage.copy(&format!("nbd+unix:///?socket={}", socket.display())) == stage.bytes());
    let other = format!("nbd+unix:///vdz?socket={}", socket.display());
    let refused = stage.try_client("nbdinfo", &[&other]);
    assert!(!refused.status.success());
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("No such file or directory for export: vdz"), "{text}");
    drop(server);
    let json = ["--json", "--socket", "s"];
    let server = Server::begin(&stage.shell, "two/b c", &json, 1);
    let line: serde_json::Value = serde_json::from_str(server.uri()).unwrap();
    assert_eq!(line["message_type"], "serving");
    assert_eq!(line["exports"].as_array().unwrap().len(), 1);
    let uri = line["exports"][0]["uri"].as_str().unwrap();
    assert!(stage.copy(uri) == std::fs::read(stage.path("vdb")).unwrap());
}

#[test]
fn nothing_is_written_without_an_overlay() {
    let stage = Stage::new();
    let server = stage.serve(&[]);
    let said = stage.qemu_io(server.uri(), &[], &["write -P 1 0 4k"]);
    assert!(said.contains("Permission denied"), "{said}");
    assert!(stage.copy(server.uri()) == stage.bytes());
}

/// One damaged pack: its chunks are I/O errors, and all others are read.
#[test]
fn damage_is_an_error_only_where_it_lies() {
    let stage = Stage::new();
    // A second point with other data, whose pack is damaged afterwards.
    let before = list_packs(&stage);
    let file = File::options().write(true).open(stage.path("vda")).unwrap();
    file.write_all_at(&noise(1234, 64 << 10), 12 * MIB).unwrap();
    stage.shell.backup(&["--name", "vm", "--disk", "vda=vda"]);
    for pack in list_packs(&stage).into_iter().filter(|pack| !before.contains(pack)) {
        let length = std::fs::metadata(&pack).unwrap().len();
        let holds_data = length > 32 << 10;
        if holds_data {
            let file = File::options().write(true).open(&pack).unwrap();
            file.write_all_at(&[0x55; 16], 10_000).unwrap();
        }
    }
    let server = stage.serve(&[]);
    let reads = ["read -v 12M 1k", "read 8M 4M", "read 12352k 4M", "read 0 1M"];
    let said = stage.qemu_io(server.uri(), &["-r"], &reads);
    assert_eq!(said.matches("read failed: Input/output error").count(), 1, "{said}");
    assert_eq!(said.matches("read 4194304/4194304 bytes").count(), 2, "{said}");
    assert!(said.contains("read 1048576/1048576 bytes"), "{said}");
    let (code, text) = server.end("-INT");
    assert_eq!(code, Some(130));
    assert!(text.contains("warning: cannot read vda at offset 12582912"), "{text}");
}

fn list_packs(stage: &Stage) -> Vec<PathBuf> {
    let mut packs = Vec::new();
    for folder in std::fs::read_dir(stage.path("repository/packs")).unwrap() {
        for pack in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            packs.push(pack.unwrap().path());
        }
    }
    packs
}

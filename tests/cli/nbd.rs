//! NBD servers as sources.

use crate::support::{MIB, Vault, random};
use std::fs;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server that listens at `sock` in the vault's folder; nothing, with a message, where there
/// is no such program.
fn serve(vault: &Vault, program: &str, arguments: &[&str]) -> Option<Server> {
    if Command::new(program).arg("--version").output().is_err() {
        eprintln!("skipped: there is no {program}");
        return None;
    }
    let socket = vault.arg("sock");
    let _ = fs::remove_file(&socket);
    let mut command = Command::new(program);
    match program {
        "nbdkit" => command.args(["--foreground", "--unix", &socket]),
        _ => command.args(["--persistent", "--socket", &socket]),
    };
    command.args(arguments).current_dir(vault.path("")).stdin(Stdio::null());
    let server = Server(command.stderr(Stdio::null()).spawn().unwrap());
    for _ in 0..2000 {
        if UnixStream::connect(&socket).is_ok() {
            return Some(server);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{program} does not listen");
}

fn address(vault: &Vault, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", vault.arg("sock"))
}

#[test]
fn an_export_is_the_disk_that_the_server_reads() {
    let vault = Vault::new();
    let disk = [random(1, 3 * MIB), vec![0; 9 << 20], random(2, 5 * MIB)].concat();
    vault.write("d.raw", &disk);
    let arguments = ["-r", "-f", "raw", "-x", "vda", "d.raw"];
    let Some(server) = serve(&vault, "qemu-nbd", &arguments) else { return };
    vault.backup("over", &[&address(&vault, "vda")]);
    vault.backup("direct", &["--disk", &format!("vda={}", vault.arg("d.raw"))]);
    let over = &vault.json(&["show", "over"])["disks"][0];
    let direct = &vault.json(&["show", "direct"])["disks"][0];
    assert_eq!((&over["name"], &over["source_format"]), (&"vda".into(), &"nbd".into()));
    for field in ["map_root", "bytes"] {
        assert!(!over[field].is_null(), "{field} of {over}");
        assert_eq!(over[field], direct[field], "{field}");
    }
    vault.assert_restores("over/vda", &disk);
    // A second point of the same disk stores nothing.
    vault.backup("over", &[&address(&vault, "vda")]);
    assert_eq!(vault.json(&["show", "over"])["disks"][0]["statistics"]["new_bytes"], 0);
    drop(server);
    let gone = address(&vault, "vda");
    vault.fails(
        1,
        &["backup", "--name", "over", &gone],
        "cannot open disk nbd+unix:///vda?socket=",
    );
    assert_eq!(vault.point_count(), 3);
    vault.assert_intact();
}

#[test]
fn a_tebibyte_of_holes_is_backed_up_and_restored() {
    let vault = Vault::new();
    let data = "data=@0x100000 \"hello\"*1000 @0x8000000000 1";
    let Some(_server) = serve(&vault, "nbdkit", &["data", data, "size=1T"]) else { return };
    vault.backup("a", &[&address(&vault, "")]);
    let shown = &vault.json(&["show", "a"])["disks"][0];
    assert_eq!(shown["bytes"], 1_u64 << 40);
    assert!(shown["statistics"]["read_bytes"].as_u64().unwrap() <= 128 << 10, "{shown}");
    vault.ok(&["restore", "a/disk", &vault.arg("back")]);
    let back = vault.path("back");
    assert_eq!(fs::metadata(&back).unwrap().len(), 1 << 40);
    let expected = [b"hello".repeat(1000), vec![0; 100]].concat();
    assert_eq!(crate::support::read_range(&back, 1 << 20, 5100), expected);
    assert_eq!(crate::support::read_range(&back, 1 << 39, 3), [1, 0, 0]);
    assert!(crate::support::allocated(&back) <= 256 << 10);
}

#[test]
fn a_server_whose_disk_is_bad_makes_a_point_that_says_so() {
    let vault = Vault::new();
    let bad = "error-file=on";
    let arguments =
        ["--filter=error", "pattern", "4M", "error-pread=EIO", "error-pread-rate=100%", bad];
    let Some(_server) = serve(&vault, "nbdkit", &arguments) else { return };
    let address = address(&vault, "");
    vault.backup("a", &[&address]);
    let shown = vault.json(&["show", "a"])["disks"][0].clone();
    vault.write("on", b"");
    let outcome = vault.run(&["backup", "--name", "a", &address]);
    assert_eq!(outcome.code, 3, "{outcome:?}");
    fs::remove_file(vault.path("on")).unwrap();
    vault.backup("a", &[&address]);
    assert_eq!(vault.json(&["show", "a"])["disks"][0]["map_root"], shown["map_root"]);
}

#[test]
fn addresses_that_are_none_are_refused() {
    let vault = Vault::new();
    let name = ["backup", "--name", "a"];
    for (arguments, text) in [
        (&["nbd://h:x/"][..], "cannot read the address nbd://h:x/: expected HOST[:PORT]"),
        (&["nbd+unix:///a"][..], "expected ?socket=PATH"),
        (
            &["--format", "qcow2", "nbd://127.0.0.1:1/a"][..],
            "cannot read qcow2 in nbd://127.0.0.1:1/a",
        ),
        (&["--snapshot", "x", "nbd://127.0.0.1:1/a"][..], "cannot read a snapshot in nbd://"),
    ] {
        vault.fails(2, &[&name, arguments].concat(), text);
    }
    vault.fails(1, &["backup", "--name", "a", "nbd://127.0.0.1:1/a"], "Connection refused");
    assert_eq!(vault.point_count(), 0);
}

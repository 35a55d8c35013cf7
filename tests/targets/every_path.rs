//! Each way back for a disk from each kind of source: the same bytes, and no more storage than the
//! source took.

use crate::support::{KIB, LoopDevice, MIB, Vault, allocated, random, write_sparse};
use crate::tool;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};

const SIZE: u64 = 24 * MIB + 512 * 5;
/// Clusters at the borders of data, and tables.
const MORE_BYTES: u64 = 600 * KIB;

/// Ended with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A disk, and points of it from each kind of source, in series of their names.
struct Rig {
    vault: Vault,
    bytes: Vec<u8>,
    data_bytes: u64,
}

impl Rig {
    fn new() -> Rig {
        let vault = Vault::new();
        let raw = vault.path("raw");
        let (one, two, three) = (random(1, 3 * MIB), random(2, 300_000), random(3, 700));
        let ranges = [(0, &one[..]), (9 * MIB + 1000, &two), (SIZE - 700, &three)];
        write_sparse(&raw, SIZE, &ranges);
        let bytes = fs::read(&raw).unwrap();
        let data_bytes = 3 * MIB + 300_000 + 700;
        let rig = Rig { vault, bytes, data_bytes };
        let disk = rig.vault.arg("raw");
        rig.back_up("raw", &disk, &[]);
        rig.back_up("cut", &disk, &["--chunker", "fastcdc"]);
        for (format, options) in [
            ("qcow2", "compat=1.1"),
            ("vmdk", "subformat=monolithicSparse"),
            ("vpc", "force_size=on"),
            ("vhdx", "subformat=dynamic"),
        ] {
            let ending = if format == "vpc" { "vhd" } else { format };
            let image = rig.vault.arg(&format!("image.{ending}"));
            let convert = ["convert", "-f", "raw", "-O", format, "-o", options, &disk, &image];
            tool("qemu-img", &convert);
            rig.back_up(format, &image, &[]);
        }
        let socket = rig.vault.arg("socket");
        let served = ["-f", "raw", "-r", "-t", "-k", &socket, &disk];
        let server = std::process::Command::new("qemu-nbd").args(served).spawn().unwrap();
        let mut server = Server(server);
        assert!(crate::support::poll(&mut server.0, || Path::new(&socket).exists()));
        rig.back_up("nbd", &format!("nbd+unix:///?socket={socket}"), &[]);
        rig
    }

    fn back_up(&self, series: &str, disk: &str, more: &[&str]) {
        let disk = format!("sda={disk}");
        self.vault.backup(series, &[&["--disk", &disk], more].concat());
    }

    /// A target that is full of something else.
    fn other(&self, name: &str, bytes: u64) -> String {
        self.vault.write(name, &random(bytes, bytes))
    }

    fn assert_is_disk(&self, target: &str, what: &str) {
        assert!(fs::read(target).unwrap() == self.bytes, "{what}");
        let found = allocated(Path::new(target));
        assert!(found <= self.data_bytes + MORE_BYTES, "{what}: {found} bytes of storage");
    }

    /// The guest's view of an image.
    fn assert_holds_disk(&self, image: &str, format: &str, what: &str) {
        let raw = self.vault.arg("raw");
        tool("qemu-img", &["compare", "-q", "-f", "raw", "-F", format, &raw, image]);
        let found = allocated(Path::new(image));
        // Blocks of 2 MiB are whole in VHD, VHDX and mirrors as far as data are written there.
        assert!(found <= self.data_bytes + MORE_BYTES, "{what}: {found} bytes of storage");
    }

    /// All paths, for the series of one kind of source.
    fn assert_comes_back(&self, series: &str) {
        let vault = &self.vault;
        let address = format!("{series}/sda");
        let target = vault.arg("target");
        vault.ok(&["restore", "--verify", &address, &target]);
        self.assert_is_disk(&target, &format!("{series}, restore"));
        fs::remove_file(&target).unwrap();
        for bytes in [SIZE - 3 * MIB, SIZE, SIZE + 1000] {
            let target = self.other("target", bytes);
            vault.ok(&["restore", "--in-place", "--verify", &address, &target]);
            self.assert_is_disk(&target, &format!("{series}, in place of {bytes} bytes"));
            fs::remove_file(&target).unwrap();
        }
        let target = self.other("mirror.raw", SIZE + MIB);
        vault.ok(&["mirror", "--force", &address, &target]);
        self.assert_is_disk(&target, &format!("{series}, mirror"));
        let mirror = vault.arg("mirror.qcow2");
        vault.ok(&["mirror", &address, &mirror]);
        tool("qemu-img", &["check", "-q", "-f", "qcow2", &mirror]);
        self.assert_holds_disk(&mirror, "qcow2", &format!("{series}, mirror as qcow2"));
        fs::remove_file(&mirror).unwrap();
        for (format, kind) in
            [("qcow2", "qcow2"), ("vmdk", "vmdk"), ("vhd", "vpc"), ("vhdx", "vhdx")]
        {
            let image = vault.arg(&format!("out.{format}"));
            vault.ok(&["restore", "--format", format, &address, &image]);
            self.assert_holds_disk(&image, kind, &format!("{series}, restore as {format}"));
            fs::remove_file(&image).unwrap();
        }
        self.assert_is_served(series);
        let dump = vault.command(&["dump", &address]).output().unwrap();
        assert!(dump.stdout == self.bytes, "{series}, dump");
        vault.ok(&["certify", &address, &vault.arg("raw")]);
    }

    /// Over NBD, onto a sparse file.
    fn assert_is_served(&self, series: &str) {
        let vault = &self.vault;
        let socket = vault.arg("serve");
        let mut command = vault.command(&["serve-nbd", series, "--socket", &socket]);
        let mut server = Server(command.stdout(Stdio::piped()).spawn().unwrap());
        // It says where it is once it can be connected to.
        server.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let copy = vault.arg("copy");
        tool("nbdcopy", &[&format!("nbd+unix:///sda?socket={socket}"), &copy]);
        self.assert_is_disk(&copy, &format!("{series}, serve-nbd"));
        fs::remove_file(&copy).unwrap();
        drop(server);
        fs::remove_file(&socket).unwrap();
    }

    /// Onto a device that is larger.
    fn assert_comes_back_onto_a_device(&self, series: &str) {
        let before = random(6, 30 * MIB);
        let file = self.vault.write("backing", &before);
        let Some(device) = LoopDevice::new(Path::new(&file)) else { return };
        self.vault.ok(&["restore", "--in-place", "--verify", &format!("{series}/sda"), &device.0]);
        let found = fs::read(&device.0).unwrap();
        let (disk, behind) = found.split_at(SIZE as usize);
        assert!(disk == self.bytes && behind == &before[SIZE as usize..], "{series}, device");
    }
}

#[test]
fn every_way_back_gives_the_disk_of_every_source() {
    let rig = Rig::new();
    for series in ["raw", "cut", "qcow2", "vmdk", "vpc", "vhdx", "nbd"] {
        rig.assert_comes_back(series);
        rig.assert_comes_back_onto_a_device(series);
    }
}

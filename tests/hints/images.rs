//! Images that lie over what a point holds: what they hold is what has changed.

use crate::rig::{Warnings, assert_restores, newest};
use crate::support::vault::{Parts, Vault, noise, options};
use diskvault::backup::{BackupReport, ChunkerChoice, InputRequest, Reading, Reread, run};
use diskvault::error::Result;
use diskvault::repository::Repository;
use diskvault::source::{ImageFormat, InputKind};
use diskvault_format::manifest::DiskRecord;
use diskvault_format::tracking::Tracking;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_RDLCK, F_WRLCK, flock};
use proptest::prelude::*;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

pub const MIB: u64 = 1 << 20;

/// A vault, with images in its folder and points of them.
pub struct Studio {
    pub vault: Vault,
    pub repository: Repository,
    pub reading: Reading,
}

/// A point of an image, and what was said of it.
pub struct Taken {
    pub report: BackupReport,
    pub warnings: Vec<String>,
}

impl Taken {
    pub fn disk(&self) -> &DiskRecord {
        &self.report.manifest.disks[0]
    }

    pub fn tracking(&self) -> Option<Tracking> {
        Tracking::find(&self.disk().extensions)
    }

    /// Who told what had changed, if that counted.
    pub fn told_by(&self) -> Option<String> {
        let tracking = self.tracking()?;
        assert_eq!((tracking.refused.as_str(), &self.warnings[..]), ("", &[][..]));
        Some(tracking.hint)
    }
}

impl Studio {
    /// Nothing, with a message, where there is no qemu-img.
    pub fn new(seed: u64) -> Option<Studio> {
        if Command::new("qemu-img").arg("--version").output().is_err() {
            println!("skipped: there is no qemu-img");
            return None;
        }
        let vault = Vault::new(seed);
        let repository = vault.open("host").unwrap();
        Some(Studio { vault, repository, reading: Reading::default() })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.vault.folder.path().join(name)
    }

    pub fn run(&self, program: &str, arguments: &[&str]) {
        let folder = self.vault.folder.path();
        let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {error}");
    }

    pub fn qemu_img(&self, line: &str) {
        self.run("qemu-img", &line.split(' ').collect::<Vec<_>>());
    }

    /// Writes as a guest would: each command is one of qemu-io.
    pub fn write(&self, image: &str, commands: &[&str]) {
        let mut arguments = vec!["-d", "unmap"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(image);
        self.run("qemu-io", &arguments);
    }

    /// A new image over another one, or over nothing.
    pub fn create(&self, name: &str, more: &str, over: Option<(&str, &str)>, size: Option<u64>) {
        let format = name.rsplit('.').next().unwrap();
        let over = over.map_or(String::new(), |(format, name)| format!(" -F {format} -b {name}"));
        let size = size.map_or(String::new(), |size| format!(" {size}"));
        self.qemu_img(&format!("create -q -f {format}{more}{over} {name}{size}"));
    }

    pub fn input(&self, name: &str) -> InputRequest {
        InputRequest::new(Some("vda".into()), self.path(name), Some(InputKind::Disk))
    }

    /// A point of an image, whose bytes qemu-img tells.
    pub fn back_up(&mut self, name: &str) -> Taken {
        self.qemu_img(&format!("convert -O raw {name} converted"));
        self.back_up_as(self.input(name))
    }

    /// Why there is no point.
    pub fn try_back_up(&self, input: InputRequest) -> Result<BackupReport> {
        let options = options("web01", vec![input]);
        run(&self.repository, &options, &self.vault.pool, &Warnings::default())
    }

    /// A point of what was converted last.
    pub fn back_up_as(&mut self, input: InputRequest) -> Taken {
        let bytes = fs::read(self.path("converted")).unwrap();
        let mut options = options("web01", vec![input]);
        (options.chunker, options.reading) = (ChunkerChoice::Fixed, self.reading);
        let warnings = Warnings::default();
        let report = run(&self.repository, &options, &self.vault.pool, &warnings).unwrap();
        self.vault.known.insert(report.point, Parts::from([("vda".to_string(), bytes)]));
        Taken { report, warnings: warnings.into_inner() }
    }

    /// Backs an image up by what it says itself, and in full: the same map. What the first was.
    pub fn back_up_twice(&mut self, name: &str) -> Taken {
        let by_hints = self.back_up(name);
        let before = std::mem::replace(&mut self.reading, Reading::Full);
        let in_full = self.back_up(name);
        self.reading = before;
        assert_eq!(by_hints.disk().root, in_full.disk().root, "{name}");
        assert_eq!(in_full.tracking(), None);
        by_hints
    }
}

#[test]
fn what_lies_over_the_last_point_is_what_has_changed() {
    let Some(mut studio) = Studio::new(20) else { return };
    studio.reading = Reading::ByHints(Reread::Part(1000));
    let size = 64 * MIB;
    fs::write(studio.path("base.raw"), noise(1, size as usize)).unwrap();
    assert_eq!(studio.back_up("base.raw").told_by(), None);
    studio.create("one.qcow2", "", Some(("raw", "base.raw")), None);
    studio.write("one.qcow2", &["write -P 1 20M 64k", "write -z 40M 1M", "discard 50M 64k"]);
    let made = studio.back_up("one.qcow2");
    assert_eq!(made.told_by().unwrap(), "what lies over base.raw");
    let changed = MIB + (64 << 10) * 2;
    assert_eq!(made.tracking().unwrap().inherited_bytes, size - changed);
    assert_eq!(made.disk().source_format, "qcow2");
    assert!(made.report.statistics.read_bytes < size / 2);
    // Two more, of which the lower one is in no point.
    studio.create("two.qcow2", "", Some(("qcow2", "one.qcow2")), None);
    studio.write("two.qcow2", &["write -P 2 10M 5k"]);
    studio.create("three.qcow2", "", Some(("qcow2", "two.qcow2")), None);
    studio.write("three.qcow2", &["write -P 3 30M 1M"]);
    let made = studio.back_up("three.qcow2");
    assert_eq!(made.told_by().unwrap(), "what lies over one.qcow2");
    assert_eq!(made.tracking().unwrap().inherited_bytes, size - MIB - (64 << 10));
    // The same once more: no image is new.
    assert_eq!(studio.back_up("three.qcow2").told_by().unwrap(), "the file's times");
    // A point of the middle: what lies over it has changed, whatever the points before had.
    studio.back_up("two.qcow2");
    assert_eq!(studio.back_up("three.qcow2").told_by().unwrap(), "what lies over two.qcow2");
    assert_restores(&studio.vault, &studio.repository, "overlays");
}

#[test]
fn a_base_that_was_written_to_tells_nothing() {
    let Some(mut studio) = Studio::new(21) else { return };
    studio.create("base.qcow2", "", None, Some(8 * MIB));
    // Its raw bytes are fewer than those of the disk.
    studio.write("base.qcow2", &["write -P 1 0 4M"]);
    studio.back_up("base.qcow2");
    let over = Some(("qcow2", "base.qcow2"));
    studio.create("top.qcow2", "", over, None);
    studio.write("top.qcow2", &["write -P 2 1M 1M"]);
    // Committed: the base has other bytes, and what lies over it none.
    studio.qemu_img("commit -q top.qcow2");
    assert_eq!(studio.back_up("top.qcow2").told_by(), None);
    // Of the last point only: that is of the top, in which the base lies no more.
    assert_eq!(studio.back_up("base.qcow2").told_by(), None);
    // Onto another base, with the same bytes but for a few.
    studio.qemu_img("convert -O qcow2 base.qcow2 other.qcow2");
    studio.write("other.qcow2", &["write -P 3 3M 64k"]);
    studio.qemu_img("rebase -u -F qcow2 -b other.qcow2 top.qcow2");
    assert_eq!(studio.back_up("top.qcow2").told_by(), None);
    // Times alone.
    studio.back_up("base.qcow2");
    studio.qemu_img("rebase -u -F qcow2 -b base.qcow2 top.qcow2");
    let file = fs::File::open(studio.path("base.qcow2")).unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
    assert_eq!(studio.back_up("top.qcow2").told_by(), None);
    // Just before the point was begun, by the clock of the vault.
    let begun = newest(&studio.repository).manifest.started_unix_ns as u64;
    let later = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(begun + 3_600_000_000_000);
    file.set_modified(later).unwrap();
    studio.back_up("base.qcow2");
    assert_eq!(studio.back_up("top.qcow2").told_by(), None);
    // The raw bytes of the image are another disk than what the guest sees.
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    fs::copy(studio.path("base.qcow2"), studio.path("converted")).unwrap();
    let mut input = studio.input("base.qcow2");
    input.image.format = Some(ImageFormat::Raw);
    studio.back_up_as(input);
    let made = studio.back_up("top.qcow2");
    assert_eq!((made.tracking(), made.warnings), (None, vec![]));
    assert_restores(&studio.vault, &studio.repository, "rewritten");
}

#[test]
fn sizes_snapshots_data_files_and_other_formats() {
    let Some(mut studio) = Studio::new(22) else { return };
    let tops = [
        // The disk grows, by way of an image that is smaller than both.
        ("grown.qcow2", "", Some(12 * MIB)),
        ("data.qcow2", " -o data_file=data,data_file_raw=off", None),
        ("old.qcow2", " -o compat=0.10", None),
        ("plain.qcow2", "", None),
    ];
    studio.create("base.qcow2", "", None, Some(8 * MIB));
    studio.write("base.qcow2", &["write -P 1 0 8M"]);
    studio.create("small.qcow2", "", Some(("qcow2", "base.qcow2")), Some(5 * MIB));
    for (name, more, size) in tops {
        studio.back_up("base.qcow2");
        let below = if size.is_some() { "small.qcow2" } else { "base.qcow2" };
        studio.create(name, more, Some(("qcow2", below)), size);
        studio.write(name, &["write -P 2 1M 1M", "write -P 3 2950k 9k"]);
        let made = studio.back_up_twice(name);
        assert_eq!(made.told_by().unwrap(), "what lies over base.qcow2", "{name}");
    }
    // Smaller than then: no hint, and no word of it.
    studio.back_up("base.qcow2");
    let made = studio.back_up("small.qcow2");
    assert_eq!((made.tracking(), made.warnings), (None, vec![]));
    // An internal snapshot of what lies on top: what it holds, and not what was written later.
    studio.back_up("base.qcow2");
    studio.qemu_img("snapshot -c then plain.qcow2");
    studio.qemu_img("convert -O raw plain.qcow2 converted");
    studio.write("plain.qcow2", &["write -P 4 6M 64k"]);
    let mut input = studio.input("plain.qcow2");
    input.image.snapshot = Some("then".into());
    let made = studio.back_up_as(input);
    assert_eq!(made.told_by().unwrap(), "what lies over base.qcow2");
    assert_eq!(made.tracking().unwrap().inherited_bytes, 8 * MIB - MIB - (64 << 10));
    // VMDK deltas.
    studio.create("one.vmdk", "", None, Some(8 * MIB));
    studio.write("one.vmdk", &["write -P 1 0 8M"]);
    studio.back_up("one.vmdk");
    studio.create("two.vmdk", " -o zeroed_grain=on", Some(("vmdk", "one.vmdk")), None);
    studio.write("two.vmdk", &["write -P 2 1M 64k", "write -z 2M 64k"]);
    assert_eq!(studio.back_up_twice("two.vmdk").told_by().unwrap(), "what lies over one.vmdk");
    assert_restores(&studio.vault, &studio.repository, "kinds");
}

/// A QEMU that has an image open until it is told to quit.
struct Machine(Child);

impl Machine {
    fn start(studio: &Studio, arguments: &[&str]) -> Machine {
        let mut command = Command::new("qemu-io");
        command.args(arguments).current_dir(studio.vault.folder.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // It answers when the image is open.
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut answer = BufReader::new(child.stdout.as_mut().unwrap());
        let mut line = String::new();
        while !line.contains("MiB") {
            line.clear();
            assert!(answer.read_line(&mut line).unwrap() > 0, "no answer");
        }
        Machine(child)
    }

    fn stop(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[test]
fn a_disk_that_a_machine_writes_to_is_told_and_read_in_full() {
    let Some(mut studio) = Studio::new(24) else { return };
    fs::write(studio.path("base.raw"), noise(1, 8 << 20)).unwrap();
    studio.create("top.qcow2", "", Some(("raw", "base.raw")), None);
    let warning = |file: &str| {
        let path = studio.path(file);
        format!("disk {} is being written to by a running machine;", path.display())
    };
    let cases = [
        ("base.raw", ["-f", "raw", "base.raw"], warning("base.raw")),
        ("top.qcow2", ["-f", "qcow2", "top.qcow2"], warning("top.qcow2")),
        // The disk itself is read by nobody but by way of what lies over it.
        ("top.qcow2", ["-f", "raw", "base.raw"], warning("base.raw")),
    ];
    for (image, arguments, warning) in cases {
        studio.back_up(image);
        assert_eq!(studio.back_up(image).told_by().unwrap(), "the file's times");
        let machine = Machine::start(&studio, &arguments);
        let made = studio.back_up_as(studio.input(image));
        assert_eq!(made.tracking(), None, "{image}");
        assert_eq!(made.warnings.len(), 1);
        assert!(made.warnings[0].starts_with(&warning), "{:?}", made.warnings);
        machine.stop();
        // It was open, and may have been written to: by its times it was not.
        assert_eq!(studio.back_up(image).warnings, Vec::<String>::new());
    }
    // One that only reads, and locks of other programs.
    let machine = Machine::start(&studio, &["-r", "-f", "raw", "base.raw"]);
    assert_eq!(studio.back_up_as(studio.input("base.raw")).warnings, Vec::<String>::new());
    machine.stop();
    let other = fs::File::options().read(true).write(true).open(studio.path("base.raw")).unwrap();
    other.lock_shared().unwrap();
    for (kind, start, bytes) in [(F_RDLCK, 0, 0), (F_RDLCK, 0, 300), (F_WRLCK, 101, 1)] {
        let lock =
            flock { l_type: kind as i16, l_whence: 0, l_start: start, l_len: bytes, l_pid: 0 };
        fcntl(&other, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
        let made = studio.back_up_as(studio.input("base.raw"));
        assert_eq!(made.warnings, Vec::<String>::new(), "{kind} {start} {bytes}");
    }
    assert_restores(&studio.vault, &studio.repository, "with a machine");
}

/// What a guest does to an image, in sectors of 512 bytes or clusters.
fn writes() -> impl Strategy<Value = Vec<(u8, u64, u64)>> {
    prop::collection::vec((0_u8..6, 0_u64..1 << 30, 1_u64..400), 0..7)
}

/// The commands of qemu-io for writes that an image of clusters of `cluster` bytes can take.
fn commands(writes: &[(u8, u64, u64)], size: u64, cluster: u64) -> Vec<String> {
    let mut compressed = std::collections::BTreeSet::new();
    let (mut first, mut then) = (Vec::new(), Vec::new());
    for (kind, at, sectors) in writes {
        let start = at % size / 512 * 512;
        let bytes = (sectors * 512).min(size - start);
        let whole = start / cluster * cluster;
        let byte = at % 250;
        match kind {
            0 => then.push(format!("write -P {byte} {start} {bytes}")),
            1 => then.push(format!("write -z {start} {bytes}")),
            2 => then.push(format!("write -z -u {start} {bytes}")),
            3 => then.push(format!("discard {start} {bytes}")),
            4 => then.push(format!("write -P 0 {start} {bytes}")),
            // QEMU compresses whole clusters, and none that is there.
            _ if compressed.insert(whole) => {
                first.push(format!("write -c -P {byte} {whole} {}", cluster.min(size - whole)));
            }
            _ => {}
        }
    }
    first.append(&mut then);
    first
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Any images over any: the map of a full read, and no lie among what was said.
    #[test]
    fn any_overlays_give_the_map_of_a_full_read(
        is_raw in prop::bool::ANY,
        below in writes(),
        layers in prop::collection::vec((writes(), 0_usize..4, prop::option::of(8_u64..30)), 1..4),
        seed in 0_u64..1000,
    ) {
        let Some(mut studio) = Studio::new(seed) else { return Ok(()) };
        let first_size = 4 * MIB;
        let mut last = ("qcow2", "base.qcow2".to_string());
        if is_raw {
            last = ("raw", "base.raw".to_string());
            fs::write(studio.path("base.raw"), noise(seed, first_size as usize)).unwrap();
        } else {
            studio.create("base.qcow2", "", None, Some(first_size));
            let mut written = commands(&below, first_size, 64 << 10);
            written.push("write -P 77 1M 2M".into());
            studio.write("base.qcow2", &written.iter().map(String::as_str).collect::<Vec<_>>());
        }
        studio.back_up(&last.1);
        let mut size = first_size;
        for (number, (writes, kind, resized)) in layers.iter().enumerate() {
            // Of several sizes; the last image is not smaller than the first.
            size = resized.map_or(size, |parts| parts * 200 * 1024);
            if number + 1 == layers.len() {
                size = size.max(first_size);
            }
            let name = format!("{number}.qcow2");
            let more = ["", " -o cluster_size=4k", " -o extended_l2=on", " -o compression_type=zstd"][*kind];
            studio.create(&name, more, Some((last.0, &last.1)), Some(size));
            let cluster = if *kind == 1 { 4 << 10 } else { 64 << 10 };
            let written = commands(writes, size, cluster);
            if !written.is_empty() {
                studio.write(&name, &written.iter().map(String::as_str).collect::<Vec<_>>());
            }
            last = ("qcow2", name);
        }
        let made = studio.back_up_twice(&last.1);
        prop_assert!(made.told_by().unwrap().starts_with("what lies over base."));
        assert_restores(&studio.vault, &studio.repository, "overlays");
    }
}

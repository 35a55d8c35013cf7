//! `boot` with a real QEMU: boot sectors whose machine code is written here, good ones and broken
//! ones; a Linux guest; and that QEMU never stays behind.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]

#[path = "support/command.rs"]
mod command;
#[path = "boot/linux.rs"]
mod linux;

use command::Shell;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SECTOR: usize = 512;
const GREETING: &str = "a good bootloader";
/// Options that make a small machine on every host.
const SMALL: [&str; 6] = ["--accel", "tcg", "--memory", "512MiB", "--cpus", "1"];

/// Segments at zero, for 16-bit code at 0x7c00.
const BEGIN: [u8; 7] = [
    0xfc, // cld
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, // mov ds, ax
    0x8e, 0xc0, // mov es, ax
];

/// Writes this very sector over the second one of the disk, by the BIOS.
const WRITE: [u8; 14] = [
    0xb8, 0x01, 0x03, // mov ax, 0x0301: write one sector
    0xbb, 0x00, 0x7c, // mov bx, 0x7c00
    0xb9, 0x02, 0x00, // mov cx, 2: cylinder 0, sector 2
    0xba, 0x80, 0x00, // mov dx, 0x80: head 0, first disk
    0xcd, 0x13, // int 0x13
];

/// Has the keyboard controller reset the machine.
const RESET: [u8; 4] = [
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
];

/// Stops for good.
const HALT: [u8; 4] = [
    0xfa, // cli
    0xf4, // hlt
    0xeb, 0xfd, // jmp to hlt
];

/// Says a text on the first serial port, if it stands at `at` in the sector, with a zero behind it.
fn say(at: usize) -> Vec<u8> {
    let [low, high] = (0x7c00 + at as u16).to_le_bytes();
    vec![
        0xbe, low, high, // mov si, text
        0xac, // next: lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x12, // jz end
        0x88, 0xc4, // mov ah, al
        0xba, 0xfd, 0x03, // mov dx, 0x3fd
        0xec, // wait: in al, dx
        0xa8, 0x20, // test al, 0x20
        0x74, 0xfb, // jz wait
        0x88, 0xe0, // mov al, ah
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee, // out dx, al
        0xeb, 0xe9, // jmp next; end:
    ]
}

/// A disk of 1 MiB with a boot sector of these pieces of code, which may say [`GREETING`].
fn disk(code: &[&[u8]], signature: [u8; 2]) -> Vec<u8> {
    const TEXT_AT: usize = 256;
    let mut sector = code.concat();
    assert!(sector.len() <= TEXT_AT);
    sector.resize(TEXT_AT, 0);
    sector.extend(GREETING.as_bytes());
    sector.resize(510, 0);
    sector.extend(signature);
    sector.resize(1 << 20, 0);
    sector
}

fn good() -> Vec<u8> {
    disk(&[&BEGIN, &say(256), &HALT], [0x55, 0xaa])
}

/// False, with a message, where there is no QEMU, or no firmware for UEFI if that is wanted.
#[allow(clippy::print_stderr, reason = "a test says what it skips")]
fn has_qemu(wants_uefi: bool) -> bool {
    let runs = Command::new("qemu-system-x86_64").arg("--version").output().is_ok();
    let has = runs && (!wants_uefi || Path::new("/usr/share/OVMF").exists());
    if !has {
        eprintln!("skipped: there is no QEMU, or no OVMF for it");
    }
    has
}

struct Stage {
    folder: TempDir,
    shell: Shell,
}

impl Stage {
    fn new(disk: &[u8]) -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let shell = Shell::init(folder.path(), &[]);
        std::fs::write(folder.path().join("vda"), disk).unwrap();
        shell.backup(&["--name", "vm", "--disk", "vda=vda"]);
        Stage { folder, shell }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Tests the newest point: the result, and the summary.
    fn test(&self, options: &[&str]) -> (Output, Value) {
        let arguments = [&["--json", "boot", "vm", "--test"], &SMALL[..], options].concat();
        let output = self.shell.run(&arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        let summary = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}: {error}"));
        (output, summary)
    }

    fn show(&self) -> Value {
        serde_json::from_str(&self.shell.ok(&["--json", "show", "vm"])).unwrap()
    }

    fn digest(&self) -> String {
        self.shell.ok(&["digest", "vm/vda", "--with", "sha256"])
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[test]
fn a_good_bootloader_is_told_from_a_broken_one() {
    if !has_qemu(false) {
        return;
    }
    let stage = Stage::new(&good());
    let (output, summary) = stage.test(&["--console", GREETING]);
    assert_eq!(code(&output), 0, "{summary}");
    assert_eq!((&summary["message_type"], &summary["booted"]), (&"summary".into(), &true.into()));
    assert_eq!(summary["console"], serde_json::json!([GREETING]));
    let verdicts = stage.show()["verdicts"].clone();
    assert_eq!(verdicts.as_array().unwrap().len(), 1);
    assert_eq!((&verdicts[0]["test"], &verdicts[0]["result"]), (&"boot".into(), &"good".into()));

    // Without its signature, it is no boot sector.
    let broken = disk(&[&BEGIN, &say(256), &HALT], [0x55, 0xab]);
    std::fs::write(stage.path("vda"), broken).unwrap();
    stage.shell.backup(&["--name", "vm", "--disk", "vda=vda"]);
    for options in [&["--console", GREETING][..], &["--for", "200"]] {
        let (output, summary) = stage.test(options);
        assert_eq!(code(&output), 5, "{summary}");
        assert_eq!(summary["booted"], false);
        assert_eq!(summary["because"], "the firmware found nothing to boot");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains("does not boot: the firmware found nothing"), "{error}");
    }
    let text = stage.shell.ok(&["show", "vm"]);
    assert_eq!(text.matches("verdict   boot bad: the firmware found nothing to boot").count(), 2);
    // The older point keeps its own.
    assert!(stage.shell.ok(&["show", "vm@latest~1"]).contains("verdict   boot good: its console"));

    // One whose code does something else.
    std::fs::write(stage.path("vda"), disk(&[&HALT], [0x55, 0xaa])).unwrap();
    stage.shell.backup(&["--name", "vm", "--disk", "vda=vda"]);
    let (output, summary) = stage.test(&["--console", GREETING, "--time-limit", "8"]);
    assert_eq!(code(&output), 5, "{summary}");
    let because = summary["because"].as_str().unwrap();
    assert!(because.contains("its console did not say \"a good bootloader\""), "{because}");
    assert!(summary["seconds"].as_f64().unwrap() >= 8.0, "{summary}");
}

#[test]
fn a_machine_that_goes_on_is_told_from_one_that_resets() {
    if !has_qemu(false) {
        return;
    }
    let stage = Stage::new(&good());
    let (output, summary) = stage.test(&["--for", "5"]);
    assert_eq!(code(&output), 0, "{summary}");
    assert_eq!(summary["because"], "it went on running");
    let (output, summary) =
        stage.test(&["--for", "5", "--console", GREETING, "--agent", "--time-limit", "7"]);
    assert_eq!(code(&output), 5, "{summary}");
    assert_eq!(summary["because"], "its guest agent did not answer");

    let resets = disk(&[&BEGIN, &say(256), &RESET, &HALT], [0x55, 0xaa]);
    std::fs::write(stage.path("vda"), resets).unwrap();
    stage.shell.backup(&["--name", "vm", "--disk", "vda=vda"]);
    let (output, summary) = stage.test(&["--for", "100"]);
    assert_eq!(code(&output), 5, "{summary}");
    assert_eq!(summary["because"], "the machine was reset or switched off");
    // A reset is no failure of one that has to say something: many reset in their first boot.
    let (output, summary) = stage.test(&["--console", GREETING]);
    assert_eq!(code(&output), 0, "{summary}");
}

#[test]
fn what_a_guest_writes_is_kept_only_in_an_overlay() {
    if !has_qemu(false) {
        return;
    }
    let disk = disk(&[&BEGIN, &WRITE, &say(256), &HALT], [0x55, 0xaa]);
    let stage = Stage::new(&disk);
    let digest = stage.digest();
    let (output, summary) = stage.test(&["--console", GREETING]);
    assert_eq!(code(&output), 0, "{summary}");
    let (output, summary) = stage.test(&["--console", GREETING, "--overlay", "o"]);
    assert_eq!(code(&output), 0, "{summary}");
    assert_eq!(stage.digest(), digest);
    let mut serve = stage.shell.command(&["serve-nbd", "vm", "--socket", "s", "--overlay", "o"]);
    let mut serve = Reaped(serve.stdout(Stdio::piped()).spawn().unwrap());
    let mut first = [0];
    std::io::Read::read_exact(serve.0.stdout.as_mut().unwrap(), &mut first).unwrap();
    let copied = Command::new("nbdcopy")
        .args([&format!("nbd+unix:///?socket={}", stage.path("s").display()), "-"])
        .output()
        .unwrap();
    let mut expected = disk.clone();
    expected.copy_within(..SECTOR, SECTOR);
    assert!(copied.stdout == expected);
}

#[test]
fn disks_hang_on_either_bus() {
    if !has_qemu(false) {
        return;
    }
    let stage = Stage::new(&good());
    for bus in ["virtio", "sata"] {
        let (output, summary) = stage.test(&["--console", GREETING, "--bus", bus]);
        assert_eq!(code(&output), 0, "{bus}: {summary}");
    }
}

/// A disk that only UEFI boots gets UEFI, which finds no loader on it and says so on the console.
#[test]
fn a_disk_for_uefi_is_booted_by_uefi() {
    if !has_qemu(true) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("gpt");
    std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let mut sfdisk =
        Command::new("sfdisk").arg("-q").arg(&image).stdin(Stdio::piped()).spawn().unwrap();
    let script = "label: gpt\nstart=2048, size=8192, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n";
    std::io::Write::write_all(&mut sfdisk.stdin.take().unwrap(), script.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    let stage = Stage::new(&std::fs::read(&image).unwrap());
    let (output, summary) = stage.test(&["--console", "BdsDxe"]);
    assert_eq!(code(&output), 0, "{summary}");
    // A BIOS says nothing on the console.
    let options = ["--console", "BdsDxe", "--bios", "--time-limit", "10"];
    let (output, summary) = stage.test(&options);
    assert_eq!(code(&output), 5, "{summary}");
}

/// A process that ends with the test.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// QEMU under a process, once it is there.
fn qemu_of(parent: u32) -> u32 {
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(id) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let Some((name, rest)) = stat.rsplit_once(')') else { continue };
            let of = rest.split_whitespace().nth(1).and_then(|of| of.parse::<u32>().ok());
            let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            if of == Some(parent) && name.contains("qemu-system") && line.contains("-blockdev") {
                return id;
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("no QEMU");
}

fn is_gone(id: u32) -> bool {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"));
        if stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z ")) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

#[test]
fn qemu_does_not_stay_behind() {
    if !has_qemu(false) {
        return;
    }
    let stage = Stage::new(&good());
    let folders = stage.path("folders");
    std::fs::create_dir(&folders).unwrap();
    let count = || std::fs::read_dir(&folders).unwrap().count();
    for (signal, expected) in
        [("-TERM", Some(130)), ("-INT", Some(130)), ("-HUP", Some(130)), ("-KILL", None)]
    {
        let arguments = [&["boot", "vm", "--test", "--for", "200"][..], &SMALL].concat();
        let mut command = stage.shell.command(&arguments);
        command.env("TMPDIR", &folders);
        let mut run = Reaped(command.stderr(Stdio::null()).spawn().unwrap());
        let qemu = qemu_of(run.0.id());
        let id = run.0.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        assert_eq!(run.0.wait().unwrap().code(), expected);
        assert!(is_gone(qemu), "QEMU is left after {signal}");
    }
    // What was killed leaves its folder, until a later run finds it old.
    assert_eq!(count(), 1);
    let left = std::fs::read_dir(&folders).unwrap().next().unwrap().unwrap().path();
    let old = std::time::SystemTime::now() - Duration::from_secs(3600);
    std::fs::File::open(&left).unwrap().set_modified(old).unwrap();
    let arguments = [&["boot", "vm", "--test", "--for", "1"][..], &SMALL].concat();
    let output = stage.shell.command(&arguments).env("TMPDIR", &folders).output().unwrap();
    assert_eq!((code(&output), count()), (0, 0));
    let verdicts = stage.show()["verdicts"].as_array().unwrap().len();
    assert_eq!(verdicts, 1);
}

/// What was ended is no verdict, and what was seen of an overlay is none of the point.
#[test]
fn only_whole_tests_of_the_point_itself_are_kept() {
    if !has_qemu(false) {
        return;
    }
    let stage = Stage::new(&good());
    let arguments = [&["boot", "vm", "--test", "--for", "200"][..], &SMALL].concat();
    let mut run = Reaped(stage.shell.command(&arguments).stderr(Stdio::null()).spawn().unwrap());
    qemu_of(run.0.id());
    let id = run.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert_eq!(run.0.wait().unwrap().code(), Some(130));
    let (output, summary) = stage.test(&["--console", GREETING, "--overlay", "o"]);
    assert_eq!(code(&output), 0, "{summary}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("the point does not keep it"), "{said}");
    assert_eq!(stage.show()["verdicts"], serde_json::json!([]));
}

/// A program in QEMU's place that has an agent, but no guest.
#[test]
fn an_agent_that_answers_is_a_boot() {
    const AGENT: &str = r#"#!/usr/bin/env python3
import socket, sys
if "--version" in sys.argv:
    print("QEMU emulator version 0")
    sys.exit(0)
path = next(word.split("path=")[1] for word in sys.argv if word.startswith("socket,id=agent"))
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
while True:
    client = listener.accept()[0]
    if b"guest-ping" in client.recv(1000):
        client.sendall(b'{"return": {}}\n')
"#;
    let stage = Stage::new(&good());
    let program = stage.path("qemu");
    std::fs::write(&program, AGENT).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let (output, summary) = stage.test(&["--agent", "--qemu", program.to_str().unwrap()]);
    assert_eq!(code(&output), 0, "{summary}");
    assert_eq!(summary["because"], "its guest agent answered");
}

#[test]
fn the_machine_is_used_on_the_terminal() {
    if !has_qemu(false) {
        return;
    }
    let stage = Stage::new(&disk(&[&BEGIN, &say(256), &HALT], [0x55, 0xaa]));
    let arguments = [&["boot", "vm"][..], &SMALL].concat();
    let mut command = stage.shell.command(&arguments);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut run = Reaped(command.spawn().unwrap());
    let mut said = vec![0; GREETING.len()];
    std::io::Read::read_exact(run.0.stdout.as_mut().unwrap(), &mut said).unwrap();
    assert_eq!(String::from_utf8_lossy(&said), GREETING);
    // Control-A and x end QEMU.
    std::io::Write::write_all(run.0.stdin.as_mut().unwrap(), b"\x01x").unwrap();
    assert_eq!(run.0.wait().unwrap().code(), Some(0));
}

#[test]
fn what_cannot_be_is_refused() {
    let stage = Stage::new(&good());
    let missing = stage.path("nothing").display().to_string();
    for (options, expected, why) in [
        (&["--test", "--qemu", &missing][..], 1, "cannot start "),
        (&["--console", "x"], 2, "--test"),
        (&["--test", "--console", ""], 2, "an empty text"),
        (&["--test", "--for", "20", "--time-limit", "10"], 2, "less time than"),
        (&["--test", "--memory", "1MiB"], 2, "less than 16 MiB"),
        (&["--uefi", "--bios"], 2, "cannot be used with"),
        (&["--test", "--overlay", "vda"], 1, "it is no overlay"),
        (&["--test", "--qemu", "/bin/false"], 1, "cannot start /bin/false: it is no QEMU"),
        (&["--test", "--qemu", "/bin/true"], 1, "cannot start /bin/true: it is no QEMU"),
    ] {
        let output = stage.shell.run(&[&["boot", "vm"], options].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(code(&output), expected, "{options:?}: {text}");
        assert!(text.contains(why), "{options:?}: {text}");
    }
    assert_eq!(stage.show()["verdicts"], serde_json::json!([]));
}

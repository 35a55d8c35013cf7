//! Whole machines: QEMU with its devices and a guest agent, and domains of libvirt. The guest's writes
//! are those of QEMU's own qemu-io, so that no guest has to boot.

use crate::support::{MIB, Vault, random, wait};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn disk(vault: &Vault, point: &str, name: &str) -> Value {
    let shown = vault.json(&["show", point]);
    let found = shown["disks"].as_array().unwrap().iter().find(|disk| disk["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {shown}")).clone()
}

/// The bytes that the guest sees on an image, also while QEMU has it.
fn contents(vault: &Vault, image: &str) -> Vec<u8> {
    let (image, copy) = (vault.arg(image), vault.arg("copy"));
    run("qemu-img", &["convert", "-U", "-O", "raw", &image, &copy]);
    fs::read(copy).unwrap()
}

struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// QEMU with a qcow2 disk, a raw disk, an empty drive and a disk that is read only.
fn start(vault: &Vault) -> Option<Machine> {
    if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        eprintln!("skipped: there is no qemu-system-x86_64");
        return None;
    }
    let drive = |name: &str, format: &str, more: &str| {
        format!("file={},format={format},if=none,id=b-{name}{more}", vault.arg(name))
    };
    let socket = |name: &str| format!("unix:{},server=on,wait=off", vault.arg(name));
    let child = Command::new("qemu-system-x86_64")
        .args(["-M", "q35", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-S"])
        .args(["-qmp", &socket("qmp.sock"), "-qmp", &socket("guest.sock")])
        .args(["-drive", &drive("root.qcow2", "qcow2", "")])
        .args(["-device", "virtio-blk-pci,drive=b-root.qcow2,id=root"])
        .args([
            "-drive",
            &drive("data.raw", "raw", ""),
            "-device",
            "virtio-blk-pci,drive=b-data.raw",
        ])
        .args(["-drive", &drive("ro.raw", "raw", ",readonly=on")])
        .args(["-device", "virtio-blk-pci,drive=b-ro.raw,id=ro", "-device", "ide-cd,id=cd"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let machine = Machine(child);
    for _ in 0..2000 {
        // QEMU makes its sockets in the order of its arguments.
        let is_whole = vault.path("guest.sock").exists();
        if is_whole && UnixStream::connect(vault.path("qmp.sock")).is_ok() {
            return Some(machine);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("QEMU does not listen");
}

/// Writes as the guest of a machine does.
fn write(vault: &Vault, drive: &str, command: &str) {
    let socket = UnixStream::connect(vault.path("guest.sock")).unwrap();
    let mut lines = BufReader::new(&socket).lines();
    lines.next();
    let line = format!("qemu-io {drive} \"{command}\"");
    for command in [
        json!({"execute": "qmp_capabilities"}),
        json!({"execute": "human-monitor-command", "arguments": {"command-line": line}}),
        // What is in a cache shows in no copy of the image.
        json!({"execute": "human-monitor-command", "arguments": {"command-line": format!("qemu-io {drive} flush")}}),
    ] {
        writeln!(&socket, "{command}").unwrap();
        loop {
            let answer: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            if let Some(said) = answer.get("return") {
                assert!(!said.to_string().contains("rror"), "{said}");
                break;
            }
        }
    }
}

/// A guest agent that remembers what it was asked.
fn agent(vault: &Vault, can_freeze: bool) -> Arc<Mutex<Vec<String>>> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let path = vault.path("agent.sock");
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(path).unwrap();
    let heard = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // What an earlier client has not read.
            writeln!(stream, "{{\"return\": 7}}").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while let Some(Ok(line)) = lines.next() {
                let command: Value = serde_json::from_str(&line).unwrap();
                let name = command["execute"].as_str().unwrap().to_string();
                let answer = match &*name {
                    "guest-sync" => json!({"return": command["arguments"]["id"]}),
                    "guest-fsfreeze-freeze" if !can_freeze => {
                        json!({"error": {"class": "GenericError", "desc": "vss is away"}})
                    }
                    _ => json!({"return": 3}),
                };
                heard.lock().unwrap().push(name);
                writeln!(stream, "{answer}").unwrap();
            }
        }
    });
    asked
}

#[test]
fn a_machine_of_qemu_is_backed_up_by_its_devices() {
    let vault = Vault::new();
    vault.write("data.raw", &random(5, 3 * MIB));
    vault.write("ro.raw", &random(6, MIB));
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return;
    }
    run("qemu-img", &["create", "-q", "-f", "qcow2", &vault.arg("root.qcow2"), "40M"]);
    let Some(_machine) = start(&vault) else { return };
    write(&vault, "b-root.qcow2", "write -P 1 0 20M");
    let address = format!("qemu:{}?agent={}", vault.arg("qmp.sock"), vault.arg("agent.sock"));
    let asked = agent(&vault, true);
    for round in 0..3 {
        let root = contents(&vault, "root.qcow2");
        let outcome = vault.run(&["backup", "--name", "m", "-v", "--freeze", &address]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.says("3 file systems of the guest are at rest");
        let expected = ["guest-sync", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"];
        assert_eq!(std::mem::take(&mut *asked.lock().unwrap()), expected);
        let shown = vault.json(&["show", "m"]);
        let names: Vec<&str> = shown["disks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|disk| disk["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["root", "b-data.raw"]);
        vault.assert_restores("m/root", &root);
        vault.assert_restores("m/b-data.raw", &fs::read(vault.path("data.raw")).unwrap());
        let tracking = &disk(&vault, "m", "root")["tracking"];
        assert_eq!(tracking.is_null(), round == 0, "{tracking}");
        write(&vault, "b-root.qcow2", &format!("write -P {} {}M 100k", round + 2, round * 9 + 3));
        write(&vault, "b-data.raw", &format!("write -P {} 1M 4k", round + 2));
    }
    // A guest that cannot freeze: no point, and it is thawed all the same.
    let asked = agent(&vault, false);
    let outcome = vault.run(&["backup", "--name", "m", "--freeze", &address]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    outcome.says("cannot freeze the guest by its agent at ").says("vss is away");
    assert_eq!(asked.lock().unwrap().last().unwrap(), "guest-fsfreeze-thaw");
    assert_eq!(vault.point_count(), 3);
    // It works on without.
    let root = contents(&vault, "root.qcow2");
    vault.ok(&["backup", "--name", "m", &address]);
    vault.assert_restores("m/root", &root);
    let left: Vec<_> = fs::read_dir(vault.path("")).unwrap().flatten().collect();
    assert!(
        !left.iter().any(|entry| entry.file_name().to_string_lossy().starts_with("diskvault-"))
    );
}

/// A domain of libvirt that is destroyed with the test.
struct Domain(&'static str);

impl Drop for Domain {
    fn drop(&mut self) {
        let undefine = ["undefine", "--nvram", "--checkpoints-metadata", self.0];
        for arguments in [&["destroy", self.0][..], &undefine] {
            let _ = Command::new("virsh").args(["-c", URI]).args(arguments).output();
        }
    }
}

const URI: &str = "qemu:///system";
/// Code and variables of a firmware, as Debian has them.
const OVMF: [&str; 2] = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"];

fn virsh(arguments: &[&str]) -> String {
    run("virsh", &[&["-q", "-c", URI], arguments].concat())
}

impl Domain {
    /// Nothing, with a message, where no libvirtd answers.
    fn start(vault: &Vault, name: &'static str) -> Option<Domain> {
        let answers = Command::new("virsh").args(["-c", URI, "version"]).output();
        if !answers.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: there is no libvirtd");
            return None;
        }
        run("chmod", &["755", &vault.arg("")]);
        let disk = |file: &str, format: &str, target: &str| {
            let file = vault.arg(file);
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='{format}'/>\
                 <source file='{file}'/><target dev='{target}' bus='virtio'/></disk>"
            )
        };
        // Variables of a firmware, where there is one.
        let has_uefi = OVMF.iter().all(|file| Path::new(file).exists());
        let nvram = vault.arg("nvram.fd");
        let firmware = match has_uefi {
            true => format!(
                "<loader readonly='yes' type='pflash'>{}</loader><nvram template='{}'>{nvram}</nvram>",
                OVMF[0], OVMF[1]
            ),
            false => String::new(),
        };
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='q35'>hvm</type>{firmware}</os><features><acpi/></features><devices>{}{}\
             <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>\
             </devices></domain>",
            disk("root.qcow2", "qcow2", "vda"),
            disk("data.raw", "raw", "vdb"),
        );
        let path = vault.write("domain.xml", xml.as_bytes());
        virsh(&["define", &path]);
        virsh(&["start", name]);
        Some(Domain(name))
    }

    fn write(&self, target: &str, command: &str) {
        let number = if target == "vda" { 0 } else { 1 };
        let device = format!("/machine/peripheral/virtio-disk{number}/virtio-backend");
        for command in [command, "flush"] {
            let line = format!("qemu-io -d {device} \"{command}\"");
            let said = virsh(&["qemu-monitor-command", self.0, "--hmp", &line]);
            assert!(!said.contains("rror"), "{said}");
        }
    }

    fn checkpoints(&self) -> Vec<String> {
        let listed = virsh(&["checkpoint-list", "--name", self.0]);
        listed.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect()
    }
}

#[test]
fn domains_of_libvirt_are_backed_up_by_checkpoints() {
    let vault = Vault::new();
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return;
    }
    run("qemu-img", &["create", "-q", "-f", "qcow2", &vault.arg("root.qcow2"), "40M"]);
    vault.write("data.raw", &random(5, 3 * MIB));
    let Some(domain) = Domain::start(&vault, "diskvault-test") else { return };
    domain.write("vda", "write -P 1 0 20M");
    let address = format!("libvirt:{}?connect={URI}", domain.0);
    let mut states = Vec::new();
    for round in 0..4 {
        let state = (contents(&vault, "root.qcow2"), fs::read(vault.path("data.raw")).unwrap());
        let outcome = vault.run(&["backup", "--name", "m", &address]);
        assert_eq!(outcome.code, 0, "{round}: {outcome:?}");
        let tracking = disk(&vault, "m", "vda")["tracking"].clone();
        assert_eq!(tracking.is_null(), round == 0, "{tracking}");
        vault.assert_restores("m/vda", &state.0);
        vault.assert_restores("m/vdb", &state.1);
        assert_eq!(domain.checkpoints().len(), 1);
        states.push(state);
        domain.write("vda", &format!("write -P {} {}M 100k", round + 2, round * 9 + 3));
        domain.write("vdb", &format!("write -P {} 1M 4k", round + 2));
    }
    let shown = vault.json(&["show", "m"]);
    assert_eq!(shown["streams"][0]["name"], "domain.xml");
    let xml = vault.ok(&["dump", "m/domain.xml"]).text();
    assert!(xml.contains("<name>diskvault-test</name>"), "{xml}");
    if vault.path("nvram.fd").exists() {
        let kept = vault.ok(&["dump", "m/nvram.fd"]).stdout;
        assert!(kept == fs::read(vault.path("nvram.fd")).unwrap());
    }
    // Killed in the middle: its job is ended by the next one, which reads what has changed since.
    let before = domain.checkpoints();
    run("mkfifo", &[&vault.arg("fifo")]);
    let fifo = vault.arg("fifo");
    let mut child = vault.command(&["backup", "--name", "m", &fifo, &address]).spawn().unwrap();
    let writer = fs::File::options().write(true).open(&fifo).unwrap();
    // Another one beside it is told, and does no harm.
    let outcome = vault.run(&["backup", "--name", "other", &address]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    outcome.says("another backup of it is running");
    child.kill().unwrap();
    child.wait().unwrap();
    drop(writer);
    assert_eq!(domain.checkpoints().len(), 2);
    let state = contents(&vault, "root.qcow2");
    let outcome = vault.run(&["backup", "--name", "m", "-v", &address]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    outcome.says("a backup that was killed has left its job in libvirt");
    assert!(!disk(&vault, "m", "vda")["tracking"].is_null());
    vault.assert_restores("m/vda", &state);
    let after = domain.checkpoints();
    assert!(after.len() == 1 && after != before, "{after:?}");
    // Interrupted: as it was.
    let child = vault.command(&["backup", "--name", "m", &fifo, &address]).spawn().unwrap();
    let writer = fs::File::options().write(true).open(&fifo).unwrap();
    run("kill", &["-INT", &child.id().to_string()]);
    assert_eq!(wait(child).code, 130);
    drop(writer);
    assert_eq!(domain.checkpoints(), after);
    domain.write("vda", "write -P 77 30M 1M");
    let state = contents(&vault, "root.qcow2");
    vault.run(&["backup", "--name", "m", &address]);
    assert!(!disk(&vault, "m", "vda")["tracking"].is_null());
    vault.assert_restores("m/vda", &state);
    // QEMU was killed: its bitmaps have lost what happened then.
    let pid = fs::read_to_string(format!("/run/libvirt/qemu/{}.pid", domain.0)).unwrap();
    domain.write("vda", "write -P 78 31M 1M");
    run("kill", &["-KILL", pid.trim()]);
    for _ in 0..1000 {
        if virsh(&["domstate", domain.0]).trim() == "shut off" {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let outcome = vault.run(&["backup", "--name", "m", &address]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    outcome.says("it is shut off").hints("back up its images by their paths");
    virsh(&["start", domain.0]);
    for tracked in [false, true] {
        let state = contents(&vault, "root.qcow2");
        let outcome = vault.run(&["backup", "--name", "m", &address]);
        assert_eq!(outcome.code, if tracked { 0 } else { 4 }, "{outcome:?}");
        let tracking = disk(&vault, "m", "vda")["tracking"].clone();
        assert_eq!(tracking["refused"] == "", tracked, "{tracking}");
        vault.assert_restores("m/vda", &state);
        domain.write("vda", "write -P 79 32M 1M");
    }
    vault.assert_intact();
    vault.fails(
        1,
        &["backup", "--name", "m", "libvirt:nobody?connect=qemu:///system"],
        "cannot run domstate for domain nobody: failed to get domain 'nobody'",
    );
}

//! Running machines: a storage daemon of QEMU whose disks are written to while they are backed up.

use crate::support::{MIB, Outcome, Vault, finish, random};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const DISK_BYTES: u64 = 48 * MIB;

/// A storage daemon with a qcow2 disk `vda` and a raw disk `vdb`, which a guest writes to over NBD.
struct Machine<'a> {
    vault: &'a Vault,
    daemon: Child,
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// A vault where there is a storage daemon; nothing, with a message, where there is none.
fn vault_with_daemon() -> Option<Vault> {
    if Command::new("qemu-storage-daemon").arg("--version").output().is_err() {
        eprintln!("skipped: there is no qemu-storage-daemon");
        return None;
    }
    let vault = Vault::new();
    let path = vault.arg("vda.qcow2");
    let size = DISK_BYTES.to_string();
    run("qemu-img", &["create", "-q", "-f", "qcow2", &path, &size]);
    vault.write("vdb.raw", &random(9, 4 * MIB));
    Some(vault)
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
}

impl<'a> Machine<'a> {
    fn start(vault: &'a Vault) -> Machine<'a> {
        for socket in ["qmp.sock", "other.sock", "guest.sock"] {
            let _ = fs::remove_file(vault.path(socket));
        }
        let path = |name: &str| vault.arg(name);
        let daemon = Command::new("qemu-storage-daemon")
            .args([
                "--blockdev",
                &format!("driver=file,filename={},node-name=fa", path("vda.qcow2")),
            ])
            .args(["--blockdev", "driver=qcow2,file=fa,node-name=vda,discard=unmap"])
            .args(["--blockdev", &format!("driver=file,filename={},node-name=fb", path("vdb.raw"))])
            .args(["--blockdev", "driver=raw,file=fb,node-name=vdb"])
            .args(["--nbd-server", &format!("addr.type=unix,addr.path={}", path("guest.sock"))])
            .args(["--export", "type=nbd,id=ga,node-name=vda,name=vda,writable=on"])
            .args(["--export", "type=nbd,id=gb,node-name=vdb,name=vdb,writable=on"])
            .args([
                "--chardev",
                &format!("socket,id=m,path={},server=on,wait=off", path("qmp.sock")),
            ])
            .args(["--monitor", "chardev=m"])
            .args([
                "--chardev",
                &format!("socket,id=n,path={},server=on,wait=off", path("other.sock")),
            ])
            .args(["--monitor", "chardev=n"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let machine = Machine { vault, daemon };
        for _ in 0..2000 {
            if UnixStream::connect(path("other.sock")).is_ok() {
                return machine;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the storage daemon does not listen");
    }

    /// Writes as the guest does.
    fn write(&self, disk: &str, commands: &[&str]) {
        let address = format!("nbd+unix:///{disk}?socket={}", self.vault.arg("guest.sock"));
        let mut arguments = vec!["-f", "raw"];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        arguments.push(&address);
        run("qemu-io", &arguments);
    }

    /// What the guest has on a disk.
    fn read(&self, disk: &str) -> Vec<u8> {
        let address = format!("nbd+unix:///{disk}?socket={}", self.vault.arg("guest.sock"));
        let copy = self.vault.arg("copy");
        run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &address, &copy]);
        fs::read(copy).unwrap()
    }

    fn address(&self) -> String {
        format!("qemu:{}?nbd={}", self.vault.arg("qmp.sock"), self.vault.arg("guest.sock"))
    }

    fn back_up(&self, further: &[&str]) -> Outcome {
        let mut arguments = vec!["backup", "--name", "m"];
        arguments.extend(further);
        let address = self.address();
        arguments.push(&address);
        self.vault.run(&arguments)
    }

    /// Runs commands of QMP; the last answer.
    fn qmp(&self, commands: &[Value]) -> Value {
        let socket = UnixStream::connect(self.vault.path("other.sock")).unwrap();
        let mut lines = BufReader::new(&socket).lines();
        let mut last = Value::Null;
        lines.next();
        for command in [&[json!({"execute": "qmp_capabilities"})], commands].concat() {
            writeln!(&socket, "{command}").unwrap();
            last = loop {
                let answer: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
                assert!(answer.get("error").is_none(), "{command}: {answer}");
                if answer.get("return").is_some() {
                    break answer["return"].clone();
                }
            };
        }
        last
    }

    /// Names of bitmaps, nodes, jobs and exports of backups.
    fn traces(&self) -> (Vec<String>, Vec<String>) {
        let nodes = self.qmp(&[json!({"execute": "query-named-block-nodes"})]);
        let ours = |name: &Value| {
            name.as_str().filter(|name| name.starts_with("diskvault-")).map(String::from)
        };
        let (mut bitmaps, mut others) = (Vec::new(), Vec::new());
        for node in nodes.as_array().unwrap() {
            others.extend(ours(&node["node-name"]));
            for bitmap in node["dirty-bitmaps"].as_array().into_iter().flatten() {
                bitmaps.extend(ours(&bitmap["name"]));
            }
        }
        for question in ["query-jobs", "query-block-exports"] {
            for found in self.qmp(&[json!({"execute": question})]).as_array().unwrap() {
                others.extend(ours(&found["id"]));
            }
        }
        let scratch = fs::read_dir(self.vault.path("")).unwrap().flatten();
        let scratch = scratch.map(|entry| entry.file_name().into_string().unwrap());
        others.extend(scratch.filter(|name| name.starts_with("diskvault-")));
        bitmaps.sort();
        (bitmaps, others)
    }
}

/// Opens a FIFO when somebody reads it: all inputs are open by then, and machines frozen.
fn open_for(fifo: &str) -> fs::File {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    for _ in 0..6000 {
        if let Ok(file) = fs::File::options().write(true).custom_flags(nonblocking).open(fifo) {
            return file;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("nobody reads the FIFO");
}

fn disk(vault: &Vault, point: &str, name: &str) -> Value {
    let shown = vault.json(&["show", point]);
    let found = shown["disks"].as_array().unwrap().iter().find(|disk| disk["name"] == name);
    found.unwrap().clone()
}

#[test]
fn points_of_a_running_machine_follow_its_changes() {
    let Some(vault) = vault_with_daemon() else { return };
    let machine = Machine::start(&vault);
    machine.write("vda", &["write -P 1 0 5M", "write -P 2 20M 9M"]);
    let mut states = Vec::new();
    for round in 0..6_u64 {
        let state = (machine.read("vda"), machine.read("vdb"));
        let outcome = machine.back_up(&[]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        let shown = [disk(&vault, "m", "vda"), disk(&vault, "m", "vdb")];
        for shown in &shown {
            assert_eq!(shown["tracking"].is_null(), round == 0, "{round}: {shown}");
        }
        if round > 0 {
            let hint = shown[0]["tracking"]["hint"].as_str().unwrap();
            assert!(hint == "bitmap diskvault-changes", "{hint}");
            // One for each disk, of the last point.
            let (bitmaps, others) = machine.traces();
            assert_eq!((bitmaps.len(), others.len()), (2, 0), "{bitmaps:?} {others:?}");
        }
        states.push(state);
        let (at, byte) = (round * 5, round + 10);
        machine.write(
            "vda",
            &[&format!("write -P {byte} {at}M 300k"), &format!("discard {}M 1M", at + 20)],
        );
        machine.write("vdb", &[&format!("write -P {byte} {}k 4k", round * 100)]);
    }
    let points = vault.json(&["list", "m"]);
    let points = points.as_array().unwrap();
    assert_eq!(points.len(), 6);
    for (point, (vda, vdb)) in points.iter().zip(&states) {
        let id = point["point_id"].as_str().unwrap();
        vault.assert_restores(&format!("id:{id}/vda"), vda);
        vault.assert_restores(&format!("id:{id}/vdb"), vdb);
    }
    // What the bitmaps say gives what a full read gives.
    machine.back_up(&[]);
    let hinted = disk(&vault, "m", "vda");
    machine.back_up(&["--full"]);
    assert_eq!(disk(&vault, "m", "vda")["map_root"], hinted["map_root"]);
    vault.assert_intact();
}

#[test]
fn all_disks_are_of_one_instant_while_the_guest_writes() {
    let Some(vault) = vault_with_daemon() else { return };
    let machine = Machine::start(&vault);
    machine.write("vda", &["write -P 1 0 48M"]);
    // A FIFO in front of the disks: they are frozen by then, and read only after it has ended.
    run("mkfifo", &[&vault.arg("fifo")]);
    let during = AtomicU64::new(0);
    for round in 0..4_u64 {
        let before = (machine.read("vda"), machine.read("vdb"));
        let (address, fifo) = (machine.address(), vault.arg("fifo"));
        let child = vault.command(&["backup", "--name", "m", &fifo, &address]).spawn().unwrap();
        let mut writer = open_for(&fifo);
        machine.write("vda", &[&format!("write -P {} 3M 20M", 50 + round), "discard 30M 5M"]);
        machine.write("vdb", &[&format!("write -P {} 0 2M", 60 + round)]);
        assert!(machine.read("vda") != before.0 && machine.read("vdb") != before.1);
        // And on without a pause, while the disks are read.
        let (is_read, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0.. {
                    if is_over.load(Ordering::SeqCst) {
                        break;
                    }
                    let byte = 100 + (number + round) % 100;
                    let at = number * 7 % 47;
                    machine.write("vda", &[&format!("write -P {byte} {at}M 700k")]);
                    machine.write("vdb", &[&format!("write -P {byte} {}k 12k", at * 64)]);
                    let counts = is_read.load(Ordering::SeqCst) && !is_over.load(Ordering::SeqCst);
                    during.fetch_add(u64::from(counts), Ordering::SeqCst);
                }
            });
            writer.write_all(b"go on").unwrap();
            is_read.store(true, Ordering::SeqCst);
            drop(writer);
            let outcome = crate::support::wait(child);
            is_over.store(true, Ordering::SeqCst);
            outcome
        });
        assert_eq!(outcome.code, 0, "{outcome:?}");
        assert_eq!(disk(&vault, "m", "vda")["tracking"].is_null(), round == 0);
        vault.assert_restores("m/vda", &before.0);
        vault.assert_restores("m/vdb", &before.1);
    }
    assert!(during.into_inner() > 0, "nothing was written while disks were read");
    let last = machine.read("vda");
    machine.back_up(&[]);
    vault.assert_restores("m/vda", &last);
}

#[test]
fn a_backup_that_is_killed_or_fails_leaves_the_machine_as_it_was() {
    let Some(vault) = vault_with_daemon() else { return };
    let machine = Machine::start(&vault);
    machine.write("vda", &["write -P 1 0 30M"]);
    machine.back_up(&[]);
    let (bitmaps, _) = machine.traces();
    machine.write("vda", &["write -P 2 10M 1M"]);
    // Interrupted in the middle: it takes back what it has done.
    run("mkfifo", &[&vault.arg("fifo")]);
    let (fifo, address) = (vault.arg("fifo"), machine.address());
    let start = || {
        let child = vault.command(&["backup", "--name", "m", &fifo, &address]).spawn().unwrap();
        let writer = open_for(&fifo);
        (child, writer)
    };
    let (child, writer) = start();
    run("kill", &["-INT", &child.id().to_string()]);
    let outcome = crate::support::wait(child);
    assert_eq!(outcome.code, 130, "{outcome:?}");
    drop(writer);
    assert_eq!(machine.traces(), (bitmaps.clone(), Vec::new()));
    // Killed: the next one finds what it has left.
    let (mut child, writer) = start();
    child.kill().unwrap();
    child.wait().unwrap();
    drop(writer);
    assert!(!machine.traces().1.is_empty());
    machine.write("vda", &["write -P 3 20M 1M"]);
    let state = machine.read("vda");
    let outcome = machine.back_up(&["-v"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    outcome.says("a backup that was killed has left its traces in the machine");
    vault.assert_restores("m/vda", &state);
    assert!(!disk(&vault, "m", "vda")["tracking"].is_null());
    let (bitmaps, others) = machine.traces();
    assert_eq!((bitmaps.len(), others), (2, Vec::new()));
}

/// Passes QMP on to the machine, but for the command of a number, which is refused; the commands.
fn between(machine: &Machine<'_>, refused: usize) -> std::thread::JoinHandle<Vec<Value>> {
    let _ = fs::remove_file(machine.vault.path("between.sock"));
    let listener = UnixListener::bind(machine.vault.path("between.sock")).unwrap();
    let server = UnixStream::connect(machine.vault.path("qmp.sock")).unwrap();
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        // Whole lines, one at a time: events come at any moment.
        let says = Arc::new(Mutex::new(client.try_clone().unwrap()));
        let (from, to) = (server.try_clone().unwrap(), says.clone());
        let back = std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                let _ = to.lock().unwrap().write_all(format!("{line}\n").as_bytes());
            }
        });
        let mut commands = Vec::new();
        for line in BufReader::new(client.try_clone().unwrap()).lines().map_while(Result::ok) {
            let command: Value = serde_json::from_str(&line).unwrap();
            if commands.len() == refused {
                let error = json!({"class": "GenericError", "desc": "not this one"});
                let line = format!("{}\n", json!({"error": error, "id": command["id"]}));
                says.lock().unwrap().write_all(line.as_bytes()).unwrap();
            } else {
                writeln!(&server, "{line}").unwrap();
            }
            commands.push(command);
        }
        server.shutdown(std::net::Shutdown::Both).unwrap();
        back.join().unwrap();
        commands
    })
}

#[test]
fn disks_are_frozen_before_their_bitmaps_are_copied() {
    let Some(vault) = vault_with_daemon() else { return };
    let machine = Machine::start(&vault);
    machine.back_up(&[]);
    let commands = between(&machine, usize::MAX);
    let address = format!("qemu:{}?nbd={}", vault.arg("between.sock"), vault.arg("guest.sock"));
    vault.ok(&["backup", "--name", "m", &address]);
    let commands = commands.join().unwrap();
    let is_transaction = |command: &&Value| command["execute"] == "transaction";
    let transaction = commands.iter().find(is_transaction).unwrap();
    let actions = transaction["arguments"]["actions"].as_array().unwrap();
    let kinds: Vec<&str> = actions.iter().map(|action| action["type"].as_str().unwrap()).collect();
    let bitmap = ["block-dirty-bitmap-add", "block-dirty-bitmap-add", "block-dirty-bitmap-merge"];
    assert_eq!(kinds, [&["blockdev-backup"; 2][..], &bitmap, &bitmap].concat());
}

#[test]
fn a_command_that_is_refused_leaves_nothing_behind() {
    let Some(vault) = vault_with_daemon() else { return };
    let machine = Machine::start(&vault);
    machine.write("vda", &["write -P 1 0 3M"]);
    machine.back_up(&[]);
    let (bitmaps, _) = machine.traces();
    let address = format!("qemu:{}?nbd={}", vault.arg("between.sock"), vault.arg("guest.sock"));
    for refused in 0.. {
        let commands = between(&machine, refused);
        let outcome = vault.run(&["backup", "--name", "m", &address]);
        let commands = commands.join().unwrap();
        let command = commands[refused]["execute"].clone();
        if outcome.code != 1 {
            // From here on it is about the end of a backup whose point is made.
            assert!(commands.iter().any(|it| it["execute"] == "block-export-del"), "{outcome:?}");
            break;
        }
        outcome.says("not this one");
        let left = machine.traces();
        assert_eq!(left, (bitmaps.clone(), Vec::new()), "{refused}: {command}: {outcome:?}");
    }
    assert_eq!(vault.point_count(), 2);
}

#[test]
fn a_backup_that_another_one_takes_for_dead_reads_nothing_of_that() {
    let Some(vault) = vault_with_daemon() else { return };
    let machine = Machine::start(&vault);
    machine.write("vda", &["write -P 1 0 30M"]);
    let start = |fifo: &str, series: &str, socket: &str| {
        run("mkfifo", &[&vault.arg(fifo)]);
        let server = vault.arg("guest.sock");
        let address = format!("qemu:{}?nbd={server}", vault.arg(socket));
        let arguments = ["backup", "--name", series, &vault.arg(fifo), &address];
        let child = vault.command(&arguments).spawn().unwrap();
        (child, open_for(&vault.arg(fifo)))
    };
    let (first, first_writer) = start("fifo", "m", "qmp.sock");
    machine.write("vda", &["write -P 2 0 30M"]);
    // It comes by another socket, and cannot know better.
    let (second, second_writer) = start("fifo2", "n", "other.sock");
    drop(first_writer);
    let outcome = crate::support::wait(first);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    drop(second_writer);
    let outcome = crate::support::wait(second);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    vault.assert_restores("n/vda", &machine.read("vda"));
}

#[test]
fn two_machines_with_disks_of_one_name_are_refused_and_left_alone() {
    let (Some(vault), Some(other)) = (vault_with_daemon(), vault_with_daemon()) else { return };
    let (machine, second) = (Machine::start(&vault), Machine::start(&other));
    let outcome = machine.back_up(&[&second.address()]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    outcome.says("cannot back up two inputs with one name: vd");
    for machine in [machine, second] {
        assert_eq!(machine.traces(), (Vec::new(), Vec::new()));
    }
}

#[test]
fn a_disk_whose_job_was_ended_makes_no_point() {
    let Some(vault) = vault_with_daemon() else { return };
    let machine = Machine::start(&vault);
    machine.write("vda", &["write -P 1 0 30M"]);
    machine.back_up(&[]);
    let (bitmaps, _) = machine.traces();
    run("mkfifo", &[&vault.arg("fifo")]);
    let (fifo, address) = (vault.arg("fifo"), machine.address());
    let child = vault.command(&["backup", "--name", "m", &fifo, &address]).spawn().unwrap();
    let writer = open_for(&fifo);
    let jobs = machine.qmp(&[json!({"execute": "query-jobs"})]);
    let job = jobs.as_array().unwrap().iter().find(|job| job["type"] == "backup").unwrap();
    let cancel = json!({"device": job["id"], "force": true});
    machine.qmp(&[json!({"execute": "block-job-cancel", "arguments": cancel})]);
    // Seen through the scratch image, this belongs to the past now.
    machine.write("vda", &["write -P 9 0 30M"]);
    drop(writer);
    let outcome = crate::support::wait(child);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    outcome.says("it was held still no more, for the job in the machine is gone");
    assert_eq!(vault.point_count(), 1);
    assert_eq!(machine.traces(), (bitmaps, Vec::new()));
}

#[test]
fn bitmaps_of_a_machine_that_was_killed_do_not_count() {
    let Some(vault) = vault_with_daemon() else { return };
    let mut machine = Machine::start(&vault);
    machine.write("vda", &["write -P 1 0 30M"]);
    machine.back_up(&[]);
    machine.write("vda", &["write -P 2 10M 1M"]);
    machine.daemon.kill().unwrap();
    machine.daemon.wait().unwrap();
    drop(machine);
    let machine = Machine::start(&vault);
    machine.write("vda", &["write -P 3 12M 1M"]);
    let state = machine.read("vda");
    let outcome = machine.back_up(&[]);
    assert_eq!(outcome.code, 4, "{outcome:?}");
    outcome.says("disk vda is read in full: the machine's bitmap does not count: it has no whole one since point ");
    let tracking = disk(&vault, "m", "vda")["tracking"].clone();
    assert!(tracking["refused"].as_str().unwrap().contains("no whole one"), "{tracking}");
    vault.assert_restores("m/vda", &state);
    // From then on it has.
    let outcome = machine.back_up(&[]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(!disk(&vault, "m", "vda")["tracking"].is_null());
    let (bitmaps, others) = machine.traces();
    assert_eq!((bitmaps.len(), others), (2, Vec::new()));
    // A clean end keeps the bitmap of the qcow2 disk.
    machine.qmp(&[json!({"execute": "quit"})]);
    drop(machine);
    let machine = Machine::start(&vault);
    machine.write("vda", &["write -P 4 14M 1M"]);
    let state = machine.read("vda");
    let outcome = machine.back_up(&["-v"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    outcome.says("disk vdb is read in full");
    assert!(!disk(&vault, "m", "vda")["tracking"].is_null());
    vault.assert_restores("m/vda", &state);
}

#[test]
fn sockets_that_are_no_machine_are_refused() {
    let vault = Vault::new();
    let name = ["backup", "--name", "m"];
    for (address, code, text) in [
        ("qemu:", 2, "expected qemu:SOCKET"),
        ("qemu:/x?y=z", 2, "it has no parameter y"),
        ("qemu:/x?nbd", 2, "expected KEY=VALUE behind ?"),
        ("libvirt:", 2, "expected libvirt:DOMAIN"),
        ("libvirt:-x", 2, "expected libvirt:DOMAIN"),
        ("qemu:/nowhere.sock", 1, "cannot speak to the machine at /nowhere.sock: No such file"),
    ] {
        vault.fails(code, &[&name[..], &[address]].concat(), text);
    }
    vault.fails(2, &["backup", "--name", "m", "--freeze", "qemu:/x"], "--freeze needs the socket");
    vault.fails(
        2,
        &["backup", "--name", "m", "--disk", "a=qemu:/x"],
        "its disks have names of their own",
    );
    let says = |line: &'static str| {
        let path = vault.path("odd.sock");
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                stream.write_all(line.as_bytes()).unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while let Some(Ok(asked)) = lines.next() {
                    let asked: Value = serde_json::from_str(&asked).unwrap();
                    let id = &asked["id"];
                    let answer = match asked["execute"].as_str().unwrap() {
                        "qmp_capabilities" => json!({"return": {}, "id": id}),
                        _ => {
                            json!({"error": {"class": "GenericError", "desc": "no\u{1b}[1m"}, "id": id})
                        }
                    };
                    writeln!(stream, "{{\"event\": \"X\"}}\n{answer}").unwrap();
                }
            }
        });
        format!("qemu:{}", path.display())
    };
    let address = says("220 mail.example.com ESMTP\n");
    vault.fails(1, &[&name[..], &[&address]].concat(), "it sent a line that is no JSON");
    let address = says("{\"hello\": 1}\n");
    vault.fails(1, &[&name[..], &[&address]].concat(), "the socket does not speak QMP");
    let address = says("{\"QMP\": {}}\n");
    vault.fails(
        1,
        &[&name[..], &[&address]].concat(),
        "cannot run query-block-exports in the machine at",
    );
    assert_eq!(vault.point_count(), 0);
}

#[test]
fn a_socket_that_another_client_holds_is_told() {
    let Some(vault) = vault_with_daemon() else { return };
    let machine = Machine::start(&vault);
    let held = UnixStream::connect(vault.path("qmp.sock")).unwrap();
    let mut greeting = String::new();
    BufReader::new(&held).read_line(&mut greeting).unwrap();
    let outcome = machine.back_up(&[]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    outcome.says("it does not greet; another program may hold the socket");
    drop(held);
    let _ = finish(&mut Command::new("true"));
}

//! Writes: they are kept, they survive, and the point stays what it was.

use super::*;
use std::os::unix::fs::MetadataExt;

/// What the disk should be after some commands of qemu-io.
struct Expected(Vec<u8>);

impl Expected {
    fn fill(&mut self, range: std::ops::Range<u64>, value: u8) {
        self.0[range.start as usize..range.end as usize].fill(value);
    }
}

/// Writes of all kinds, on blocks and not; 37 bytes at the end of the disk.
const WRITES: [&str; 8] = [
    "write -P 1 1M 64k",
    "write -P 2 5242981 1",
    "write -P 3 9437183 8194",
    "write -z 10M 100k",
    "write -z -u 11534337 30000",
    "discard 14M 1M",
    "write -P 4 41943515 37",
    "write -f -P 5 30M 4k",
];

fn after_writes(stage: &Stage) -> Vec<u8> {
    let mut expected = Expected(stage.bytes());
    expected.fill(MIB..MIB + (64 << 10), 1);
    expected.fill(5_242_981..5_242_982, 2);
    expected.fill(9_437_183..9_437_183 + 8194, 3);
    expected.fill(10 * MIB..10 * MIB + (100 << 10), 0);
    expected.fill(11_534_337..11_534_337 + 30_000, 0);
    expected.fill(14 * MIB..15 * MIB, 0);
    expected.fill(41_943_515..41_943_515 + 37, 4);
    expected.fill(30 * MIB..30 * MIB + (4 << 10), 5);
    expected.0
}

fn write(stage: &Stage, uri: &str) {
    let said = stage.qemu_io(uri, &["-d", "unmap"], &WRITES);
    assert!(!said.contains("failed") && !said.contains("rror"), "{said}");
}

#[test]
fn writes_persist_and_the_point_does_not_change() {
    let stage = Stage::new();
    let digest = stage.digest();
    let expected = after_writes(&stage);
    let server = stage.serve(&["--overlay", "o"]);
    assert!(stage.copy(server.uri()) == stage.bytes());
    write(&stage, server.uri());
    assert!(stage.copy(server.uri()) == expected);
    assert_eq!(server.end("-TERM").0, Some(130));
    let file = std::fs::metadata(stage.path("o")).unwrap();
    assert_eq!(file.mode() & 0o777, 0o600);
    assert!(file.blocks() * 512 < 2 * MIB, "the overlay has {} blocks", file.blocks());
    let server = stage.serve(&["--overlay", "o"]);
    assert!(stage.copy(server.uri()) == expected);
    let text = stage.client("nbdinfo", &["--map", server.uri()]);
    let hole = |line: &str| line.split_whitespace().take(3).eq(["14680064", "1048576", "3"]);
    assert!(text.lines().any(hole), "what was discarded is no hole:\n{text}");
    let text = stage.client("nbdinfo", &["--json", server.uri()]);
    for flag in ["can_trim", "can_fua", "can_zero", "can_flush", "can_multi_conn"] {
        assert!(text.contains(&format!("\"{flag}\": true")), "{flag}: {text}");
    }
    assert!(text.contains("\"can_fast_zero\": false"), "{text}");
    drop(server);
    assert_eq!(stage.digest(), digest);
    // Without it, the disk is the point's.
    assert!(stage.copy(stage.serve(&[]).uri()) == stage.bytes());
}

/// A whole disk is written by several connections at once, in parts that share blocks.
#[test]
fn several_connections_write_to_one_disk() {
    let stage = Stage::new();
    let other = noise(5, DISK_BYTES as usize);
    std::fs::write(stage.path("other"), &other).unwrap();
    let server = stage.serve(&["--overlay", "o"]);
    let odd = ["--connections=4", "--request-size=65536", "--flush", "other", server.uri()];
    stage.client("nbdcopy", &odd);
    assert_eq!(server.end("-KILL").0, None);
    assert!(stage.copy(stage.serve(&["--overlay", "o"]).uri()) == other);
}

/// Sectors of one block, each from another of two clients, with many of each under way: the block is
/// completed from the point once, and nobody's sector is lost.
#[test]
fn writes_to_parts_of_one_block_do_not_undo_each_other() {
    const COUNT: u64 = 4096;
    let stage = Stage::new();
    let server = stage.serve(&["--overlay", "o"]);
    let path = stage.path("s");
    std::thread::scope(|scope| {
        for parity in 0..2 {
            let mut client = hostile::Raw::connect(&path);
            client.go("vda");
            let mut reader = hostile::Raw(client.0.try_clone().unwrap());
            scope.spawn(move || {
                for sector in (parity..COUNT).step_by(2) {
                    let data = [sector as u8 | 1; 512];
                    client.request(1, 0, 9 * MIB + sector * 512, &data, None);
                }
            });
            scope.spawn(move || {
                for _ in 0..COUNT / 2 {
                    assert_eq!(reader.simple_reply(), (0, 1));
                }
            });
        }
    });
    let mut expected = Expected(stage.bytes());
    for sector in 0..COUNT {
        expected.fill(9 * MIB + sector * 512..9 * MIB + sector * 512 + 512, sector as u8 | 1);
    }
    assert!(stage.copy(server.uri()) == expected.0);
}

/// Of a block that is completed from the disk below while all of it is written, nothing from below may
/// come last.
#[test]
fn a_write_of_a_whole_block_is_not_undone_by_one_of_a_part() {
    const COUNT: u64 = 1000;
    const BLOCK: u64 = 4096;
    const PART: std::ops::Range<u64> = 100..612;
    let stage = Stage::new();
    let server = stage.serve(&["--temporary-overlay"]);
    for (round, command) in [(0, 1), (1, 6)] {
        let start = 9 * MIB + round * COUNT * BLOCK;
        let mut client = hostile::Raw::connect(&stage.path("s"));
        client.go("vda");
        let mut reader = hostile::Raw(client.0.try_clone().unwrap());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for _ in 0..2 * COUNT {
                    assert_eq!(reader.simple_reply().0, 0);
                }
            });
            for offset in (0..COUNT).map(|block| start + block * BLOCK) {
                let part = [0xbb; (PART.end - PART.start) as usize];
                client.request(1, 0, offset + PART.start, &part, None);
                match command {
                    1 => client.request(1, 0, offset, &[0xaa; BLOCK as usize], None),
                    _ => client.request(command, 0, offset, &[], Some(BLOCK as u32)),
                }
            }
        });
        let found = stage.copy(server.uri());
        let whole = if command == 1 { 0xaa } else { 0 };
        for block in 0..COUNT {
            let place = (start + block * BLOCK) as usize;
            let bytes = &found[place..place + BLOCK as usize];
            let outside = bytes[..PART.start as usize].iter().chain(&bytes[PART.end as usize..]);
            assert!(outside.clone().all(|byte| *byte == whole), "block {block}, command {command}");
        }
    }
}

/// Ctrl-C, a service that is stopped, a terminal that goes: what was written is kept, flushed or not.
#[test]
fn signals_end_a_server_and_keep_what_was_written() {
    let stage = Stage::new();
    let mut expected = Expected(stage.bytes());
    for (number, signal) in (1..).zip(["-INT", "-TERM", "-HUP"]) {
        let server = stage.serve(&["--overlay", "o"]);
        let mut client = hostile::Raw::connect(&stage.path("s"));
        client.go("vda");
        let range = number * MIB..number * MIB + 5000;
        client.request(1, 0, range.start, &[0xc0 + number as u8; 5000], None);
        assert_eq!(client.simple_reply(), (0, 1));
        assert_eq!(server.end(signal).0, Some(130), "{signal}");
        assert!(!stage.path("s").exists(), "the socket is left after {signal}");
        expected.fill(range, 0xc0 + number as u8);
    }
    assert!(stage.copy(stage.serve(&["--overlay", "o"]).uri()) == expected.0);
}

/// A run that was killed between making the file and its header, and a file system that has no room.
#[test]
fn what_was_only_begun_is_made_anew_and_what_cannot_be_made_is_gone() {
    let stage = Stage::new();
    drop(stage.serve(&["--overlay", "o"]));
    let bytes = std::fs::metadata(stage.path("o")).unwrap().len();
    let begun = File::create(stage.path("begun")).unwrap();
    begun.set_len(bytes).unwrap();
    let server = stage.serve(&["--overlay", "begun"]);
    assert!(stage.copy(server.uri()) == stage.bytes());
    drop(server);
    let huge = File::create(stage.path("huge")).unwrap();
    if huge.set_len(1 << 43).is_err() {
        return;
    }
    stage.shell.backup(&["--name", "huge", "--disk", "vda=huge"]);
    let script = "ulimit -f 1048576; trap '' XFSZ; exec \"$@\"";
    let mut command = Command::new("bash");
    let program =
        stage.shell.command(&["serve-nbd", "huge", "--overlay", "large", "--socket", "s"]);
    command.args(["-c", script, "bash"]).arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let output = command.current_dir(stage.folder.path()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot make overlay large: File too large"), "{error}");
    assert!(error.contains("such as XFS"), "{error}");
    assert!(!stage.path("large").exists());
}

#[test]
fn what_was_flushed_survives_a_kill() {
    let stage = Stage::new();
    let expected = after_writes(&stage);
    let server = stage.serve(&["--overlay", "o"]);
    // qemu-io flushes when it ends; FUA is told apart below.
    write(&stage, server.uri());
    server.end("-KILL");
    let server = stage.serve(&["--overlay", "o"]);
    assert!(stage.copy(server.uri()) == expected);
    drop(server);
    // A client that writes with FUA and goes without a flush.
    let server = stage.serve(&["--overlay", "o"]);
    let mut client = hostile::Raw::connect(&stage.path("s"));
    client.go("vda");
    client.request(1, 1, 7 * MIB, &[0xab; 5000], None);
    assert_eq!(client.simple_reply(), (0, 1));
    server.end("-KILL");
    let mut expected = Expected(expected);
    expected.fill(7 * MIB..7 * MIB + 5000, 0xab);
    assert!(stage.copy(stage.serve(&["--overlay", "o"]).uri()) == expected.0);
}

#[test]
fn a_temporary_overlay_is_gone_afterwards() {
    let stage = Stage::new();
    let server = stage.serve(&["--temporary-overlay"]);
    write(&stage, server.uri());
    assert!(stage.copy(server.uri()) == after_writes(&stage));
    drop(server);
    assert!(stage.copy(stage.serve(&["--temporary-overlay"]).uri()) == stage.bytes());
}

fn refuse(stage: &Stage, point: &str, overlay: &str, why: &str) {
    let before = std::fs::read(stage.path(overlay)).ok();
    let idle = ["--exit-when-idle", "1"];
    let arguments = ["serve-nbd", point, "--socket", "s2", "--overlay", overlay];
    let output = stage.shell.run(&[&arguments[..], &idle].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains(&format!("cannot open overlay {overlay}: "))
            || text.contains(&format!("cannot use overlay {overlay}: ")),
        "{text}"
    );
    assert!(text.contains(why), "{text}");
    assert!(std::fs::read(stage.path(overlay)).ok() == before, "{overlay} was changed");
    assert!(!stage.path("s2").exists());
}

#[test]
fn overlays_that_do_not_fit_are_refused() {
    let stage = Stage::new();
    let server = stage.serve(&["--overlay", "o"]);
    refuse(&stage, "vm", "o", "another program has it in use");
    server.end("-TERM");
    make_disk(&stage.path("vdb"), 99);
    stage.shell.backup(&["--name", "vm", "--disk", "vda=vdb"]);
    refuse(&stage, "vm", "o", "it is of point ");
    stage.shell.backup(&["--name", "two", "--disk", "vda=vda", "--disk", "vdb=vdb"]);
    drop(Server::begin(&stage.shell, "two/vda", &["--socket", "s", "--overlay", "a"], 1));
    refuse(&stage, "two/vdb", "a", "it is of disk vda, not of vdb");
    std::fs::write(stage.path("text"), "what somebody wrote").unwrap();
    refuse(&stage, "vm", "text", "it is no overlay");
    let other = tempfile::tempdir().unwrap();
    let other = Shell::init(other.path(), &[]);
    std::fs::copy(stage.path("vda"), other.folder.join("vda")).unwrap();
    other.backup(&["--name", "vm", "--disk", "vda=vda"]);
    let path = stage.path("a").display().to_string();
    let output = other.run(&["serve-nbd", "vm", "--socket", "s2", "--overlay", &path]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("it is of another repository"), "{text}");
}

#[test]
fn damaged_overlays_are_refused() {
    let stage = Stage::new();
    stage.serve(&["--overlay", "o"]).end("-TERM");
    let file = File::options().write(true).open(stage.path("o")).unwrap();
    let header = std::fs::read(stage.path("o")).unwrap()[..4096].to_vec();
    for (offset, why) in [
        (3, "it is no overlay"),
        (16, "its version is"),
        (21, "its header is damaged"),
        (3000, "its header is damaged"),
        (4095, "its header is damaged"),
    ] {
        file.write_all_at(&[!header[offset]], offset as u64).unwrap();
        refuse(&stage, "vm", "o", why);
        file.write_all_at(&header, 0).unwrap();
    }
    let length = file.metadata().unwrap().len();
    file.set_len(length - 1).unwrap();
    refuse(&stage, "vm", "o", "it was cut or has grown");
    file.set_len(100).unwrap();
    refuse(&stage, "vm", "o", "it is no overlay");
    // An empty file is what a run leaves that ended before it began.
    file.set_len(0).unwrap();
    stage.serve(&["--overlay", "o"]);
}

#[test]
fn several_disks_have_a_folder_of_overlays() {
    let stage = Stage::new();
    make_disk(&stage.path("vdb"), 99);
    stage.shell.backup(&["--name", "two", "--disk", "vda=vda", "--disk", "vdb=vdb"]);
    let arguments = ["serve-nbd", "two", "--socket", "s", "--overlay", "kept"];
    let output = stage.shell.run(&arguments);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("2 disks in kept: it is no folder"), "{text}");
    std::fs::create_dir(stage.path("kept")).unwrap();
    let arguments = ["--socket", "s", "--overlay", "kept"];
    let server = Server::begin(&stage.shell, "two", &arguments, 2);
    stage.qemu_io(&server.uris[1], &[], &["write -P 9 0 1M"]);
    server.end("-TERM");
    let server = Server::begin(&stage.shell, "two", &arguments, 2);
    assert!(stage.copy(&server.uris[0]) == stage.bytes());
    assert!(stage.copy(&server.uris[1])[..MIB as usize].iter().all(|byte| *byte == 9));
    assert!(stage.path("kept/vda.overlay").exists() && stage.path("kept/vdb.overlay").exists());
}

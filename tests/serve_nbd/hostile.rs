//! Clients that say what they should not, or nothing, or go: others are served as before.

use super::*;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A client that says whatever it is told to.
pub(super) struct Raw(pub UnixStream);

impl Raw {
    pub fn connect(path: &Path) -> Raw {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Raw(socket)
    }

    fn send(&mut self, bytes: &[u8]) {
        // The server may have left.
        let _ = self.0.write_all(bytes);
    }

    fn read<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn greet(&mut self) {
        assert_eq!(&self.read::<18>(), b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&3_u32.to_be_bytes());
    }

    fn option(&mut self, option: u32, data: &[u8]) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.send(&bytes);
    }

    /// The kind and data of a reply to an option.
    fn option_reply(&mut self) -> (u32, Vec<u8>) {
        assert_eq!(self.read::<8>(), 0x0003_e889_0455_65a9_u64.to_be_bytes());
        self.read::<4>();
        let kind = u32::from_be_bytes(self.read());
        let mut data = vec![0; u32::from_be_bytes(self.read()) as usize];
        self.0.read_exact(&mut data).unwrap();
        (kind, data)
    }

    /// Chooses an export without structured replies.
    pub fn go(&mut self, name: &str) {
        self.greet();
        self.option(1, name.as_bytes());
        self.read::<10>();
    }

    /// A request; `length` if it lies about its data.
    pub fn request(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        data: &[u8],
        length: Option<u32>,
    ) {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(u64::from(command).to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.unwrap_or(data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.send(&bytes);
    }

    /// The error number and the cookie, which is the command.
    pub fn simple_reply(&mut self) -> (u32, u64) {
        assert_eq!(self.read::<4>(), 0x6744_6698_u32.to_be_bytes());
        (u32::from_be_bytes(self.read()), u64::from_be_bytes(self.read()))
    }

    /// True if the server ends the connection, after whatever it still says.
    fn is_left(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(cause) => cause.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn bad_requests_are_answered_and_the_connection_goes_on() {
    let stage = Stage::new();
    let _server = stage.serve(&[]);
    let bytes = stage.bytes();
    let mut client = Raw::connect(&stage.path("s"));
    client.go("vda");
    let (inval, perm) = (22, 1);
    for (command, flags, offset, length, error) in [
        (0, 0, DISK_BYTES, 1, inval),
        (0, 0, DISK_BYTES - 1, 2, inval),
        (0, 0, u64::MAX, 1, inval),
        (0, 0, u64::MAX - 3, u32::MAX, inval),
        (0, 0, 0, 0, inval),
        (0, 0, 0, (32 << 20) + 1, inval),
        // No structured replies, so no flag for them.
        (0, 4, 0, 512, inval),
        (0, 0x8000, 0, 512, inval),
        (4, 0, 0, 4096, perm),
        (6, 0, 0, 4096, perm),
        (6, 16, 0, 4096, perm),
        (7, 0, 0, 4096, inval),
        (5, 0, 0, 4096, inval),
        (77, 0, 0, 4096, inval),
        (3, 0, 0, 0, 0),
    ] {
        client.request(command, flags, offset, &[], Some(length));
        let expected = (error, u64::from(command));
        assert_eq!(client.simple_reply(), expected, "{command} {flags} {offset} {length}");
    }
    client.request(1, 0, 0, &[7; 70_000], None);
    assert_eq!(client.simple_reply(), (perm, 1));
    client.request(0, 0, 9 * MIB, &[], Some(1000));
    assert_eq!(client.simple_reply(), (0, 0));
    assert!(client.read::<1000>()[..] == bytes[9 << 20..(9 << 20) + 1000]);
    // What nobody can go on from.
    client.send(&[0x5a; 28]);
    assert!(client.is_left());
}

#[test]
fn writes_out_of_range_change_nothing() {
    let stage = Stage::new();
    let server = stage.serve(&["--overlay", "o"]);
    let mut client = Raw::connect(&stage.path("s"));
    client.go("vda");
    let nospc = 28;
    client.request(1, 0, DISK_BYTES - 10, &[1; 20], None);
    assert_eq!(client.simple_reply(), (nospc, 1));
    client.request(6, 0, DISK_BYTES - 10, &[], Some(20));
    assert_eq!(client.simple_reply(), (nospc, 6));
    client.request(4, 0, u64::MAX - 10, &[], Some(20));
    assert_eq!(client.simple_reply(), (22, 4));
    // A fast zero was never offered.
    client.request(6, 16, 0, &[], Some(4096));
    assert_eq!(client.simple_reply(), (22, 6));
    assert!(stage.copy(server.uri()) == stage.bytes());
    // Less data than it said, and the client goes.
    client.request(1, 0, 0, &[1; 20], Some(1 << 20));
    drop(client);
    assert!(stage.copy(server.uri()) == stage.bytes());
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let stage = Stage::new();
    let _server = stage.serve(&[]);
    let mut client = Raw::connect(&stage.path("s"));
    client.greet();
    let is_error = 1 << 31;
    let long_name = [&5000_u32.to_be_bytes()[..], &[b'x'; 5000], &[0, 0]].concat();
    for (option, data, error) in [
        (99, &b"?"[..], 1),
        (5, b"", 1),
        (3, b"data", 3),
        (8, b"data", 3),
        (7, b"", 3),
        (7, b"\xff\xff\xff\xffvda\0\0", 3),
        (7, b"\0\0\0\x03vda\xff\xff", 3),
        (7, b"\0\0\0\x02\xff\xfe\0\0", 3),
        (7, &long_name, 3),
        (6, b"\0\0\0\x03vdz\0\0", 6),
        (10, b"\0\0\0\x03vda\0\0\0\x01\0\0\0\x0fbase:allocation", 3),
        (9, b"\0\0\0\x03vda\xff\xff\xff\xff\0\0\0\x0fbase:allocation", 3),
        (11, b"", 1),
    ] {
        client.option(option, data);
        let (kind, text) = client.option_reply();
        assert_eq!(kind, is_error + error, "{option} {}", String::from_utf8_lossy(&text));
    }
    // After all of that, it works.
    client.option(3, b"");
    assert_eq!(client.option_reply(), (2, b"\0\0\0\x03vda".to_vec()));
    assert_eq!(client.option_reply().0, 1);
    client.option(2, b"");
    assert_eq!(client.option_reply().0, 1);
    assert!(client.is_left());
}

#[test]
fn clients_that_talk_rubbish_or_vanish_hurt_nobody() {
    let stage = Stage::new();
    let server = stage.serve(&["--max-connections", "8"]);
    let path = stage.path("s");
    for round in 0..40_u64 {
        let rubbish = noise(round, 300);
        let mut client = Raw::connect(&path);
        match round % 8 {
            // Goes at once, or says rubbish in each phase.
            0 => continue,
            1 => client.send(&rubbish),
            2 => {
                client.greet();
                client.send(&rubbish);
            }
            3 => {
                client.go("vda");
                client.send(&rubbish);
            }
            // Options of 4 GiB, and half of one.
            4 => {
                client.greet();
                client.send(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff");
            }
            5 => {
                client.greet();
                client.send(b"IHAVEOPT\0\0\0\x07\0\0\xff\xff...");
                continue;
            }
            // Goes while its reads are under way.
            6 => {
                client.go("vda");
                for number in 0..20 {
                    client.request(0, 0, number * MIB, &[], Some(8 << 20));
                }
                continue;
            }
            _ => {
                client.go("vda");
                client.request(1, 0, 0, &[], Some(u32::MAX));
            }
        }
        assert!(client.is_left(), "round {round}");
    }
    assert!(stage.copy(server.uri()) == stage.bytes());
    let (code, text) = server.end("-TERM");
    assert_eq!(code, Some(130));
    assert!(!text.contains("error of this program"), "{text}");
}

/// Some that ask for much and read nothing, beside one that works; then all that may connect are silent.
#[test]
fn clients_that_wait_do_not_hold_up_others() {
    let stage = Stage::new();
    let server = stage.serve(&["--max-connections", "4"]);
    let path = stage.path("s");
    let mut greedy: Vec<Raw> = (0..3).map(|_| Raw::connect(&path)).collect();
    for client in &mut greedy {
        client.go("vda");
        for number in 0..100 {
            client.request(0, 0, number * 1000, &[], Some(16 << 20));
        }
    }
    stage.client("nbdcopy", &["--connections=1", server.uri(), "copy"]);
    assert!(std::fs::read(stage.path("copy")).unwrap() == stage.bytes());
    let status = format!("/proc/{}/status", server.child.id());
    let text = std::fs::read_to_string(status).unwrap();
    let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 300 << 10, "{peak} KiB");
    drop(greedy);
    let began = Instant::now();
    let mut silent: Vec<Raw> = (0..4).map(|_| Raw::connect(&path)).collect();
    // Whoever comes now is turned away, and the silent ones are left in time.
    for client in &mut silent {
        assert!(client.is_left());
    }
    assert!(began.elapsed() < Duration::from_secs(50));
    assert!(stage.copy(server.uri()) == stage.bytes());
}

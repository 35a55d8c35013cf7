//! Servers that fail, go away, come back, and lie.

use super::made::{Plan, serve};
use super::*;
use diskvault::source::TolerantSource;
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn made(folder: &Path, plan: Plan) -> (Arc<Plan>, String) {
    let plan = Arc::new(plan);
    let socket = serve(folder, plan.clone());
    (plan, format!("nbd+unix:///?socket={}", socket.display()))
}

fn disk(bytes: usize) -> (TempDir, Arc<Plan>, String, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let disk = noise(3, bytes);
    let plan = Plan { disk: disk.clone().into(), ..Plan::default() };
    let (plan, address) = made(folder.path(), plan);
    (folder, plan, address, disk)
}

#[test]
fn sixteen_requests_are_on_their_way_and_come_in_any_order() {
    let (_folder, plan, address, disk) = disk(64 << 20);
    // It answers none before it has them all.
    plan.gathers.store(16, Ordering::SeqCst);
    let source = open(&address).unwrap();
    let mut found = vec![0; 16 << 20];
    source.read_at(0, &mut found).unwrap();
    assert!(found == disk[..16 << 20]);
    source.prefetch(16 << 20, 16 << 20);
    source.read_at(20 << 20, &mut found[..4 << 20]).unwrap();
    assert!(found[..4 << 20] == disk[20 << 20..24 << 20]);
    // What was asked for ahead is not asked for again, also by who reads in smaller pieces.
    for at in (16 << 20..20 << 20).step_by(200_000) {
        let end = (at + 200_000).min(20 << 20);
        source.read_at(at as u64, &mut found[..end - at]).unwrap();
        assert!(found[..end - at] == disk[at..end], "{at}");
    }
    assert_eq!(plan.read_bytes.load(Ordering::SeqCst), 32 << 20);
}

#[test]
fn a_connection_that_ends_is_made_again() {
    let (_folder, plan, address, disk) = disk(24 << 20);
    *plan.breaks_at.lock().unwrap() = vec![0, 5, 17, 18];
    let source = open(&address).unwrap();
    assert!(read_all(&source, 4 << 20, true) == disk);
    assert_eq!(plan.connections.load(Ordering::SeqCst), 5);
}

#[test]
fn a_server_that_starts_again_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["pattern", "8M"];
    let Some(mut server) = Server::start(folder.path(), "nbdkit", &arguments) else { return };
    let source = server.open();
    let bytes = read_all(&source, 1 << 20, false);
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    std::thread::scope(|scope| {
        let read = scope.spawn(|| read_all(&source, 1 << 20, true));
        std::thread::sleep(Duration::from_millis(300));
        let again = Server::start(folder.path(), "nbdkit", &arguments).unwrap();
        assert!(read.join().unwrap() == bytes);
        drop(again);
    });
}

#[test]
fn a_server_that_stays_away_is_an_error() {
    let (_folder, plan, address, _) = disk(4 << 20);
    let address = Address::parse(&address).unwrap();
    let source = open_with_patience(address, Duration::from_millis(250)).unwrap();
    *plan.always_breaks.lock().unwrap() = true;
    let error = source.read_at(0, &mut [0; 4096]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Source);
    let text = error.full_text();
    assert!(
        text.ends_with("at offset 0: the server went away: it closed the connection"),
        "{text}"
    );
    // It is not waited for again and again.
    let before = plan.connections.load(Ordering::SeqCst);
    source.read_at(4096, &mut [0; 4096]).unwrap_err();
    assert_eq!(plan.connections.load(Ordering::SeqCst), before);
}

#[test]
fn one_that_always_breaks_is_not_tried_for_ever() {
    let (_folder, plan, address, _) = disk(4 << 20);
    let address = Address::parse(&address).unwrap();
    let source = open_with_patience(address, Duration::from_secs(3600)).unwrap();
    *plan.always_breaks.lock().unwrap() = true;
    source.read_at(0, &mut [0; 4096]).unwrap_err();
    assert_eq!(plan.connections.load(Ordering::SeqCst), 6);
}

#[test]
fn another_disk_under_the_same_name_is_refused() {
    let (_folder, plan, address, _) = disk(4 << 20);
    let source = open(&address).unwrap();
    *plan.breaks_at.lock().unwrap() = vec![0];
    *plan.disk.lock().unwrap() = noise(4, 5 << 20);
    let text = source.read_at(0, &mut [0; 4096]).unwrap_err().full_text();
    assert!(text.ends_with("the export had 4194304 bytes and has 5242880 now"), "{text}");
}

#[test]
fn reads_that_fail_now_and_then_are_made_again() {
    let (_folder, plan, address, disk) = disk(8 << 20);
    plan.failing.store(3, Ordering::SeqCst);
    let source = TolerantSource::new(Arc::new(open(&address).unwrap()));
    assert!(read_all(&source, 1 << 20, false) == disk);
    assert_eq!(source.bad_extents(), []);

    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--filter=error", "pattern", "16M", "error-pread=EIO", "error-pread-rate=5%"];
    let Some(server) = Server::start(folder.path(), "nbdkit", &arguments) else { return };
    let source = TolerantSource::new(Arc::new(server.open()));
    let bytes = read_all(&source, 64 << 10, false);
    assert!(bytes.chunks(8).enumerate().all(|(at, word)| word == (at as u64 * 8).to_be_bytes()));
    assert_eq!(source.bad_extents(), []);
}

#[test]
fn bad_sectors_of_a_server_are_bad_extents() {
    let (_folder, plan, address, mut disk) = disk(8 << 20);
    *plan.bad.lock().unwrap() = Some(((3 << 20) + 5..(3 << 20) + 4097, 5));
    let source = TolerantSource::new(Arc::new(open(&address).unwrap()));
    let found = read_all(&source, 1 << 20, true);
    let bad = 3 << 20..(3 << 20) + 8192;
    disk[bad.start as usize..bad.end as usize].fill(0);
    assert!(found == disk);
    assert_eq!(source.bad_extents(), [bad]);
    // What is no failing medium is an error.
    *plan.bad.lock().unwrap() = Some((0..10, 1));
    let error = source.read_at(0, &mut [0; 4096]).unwrap_err();
    assert!(error.full_text().ends_with("Operation not permitted (os error 1)"), "{error:?}");
}

#[test]
fn replies_that_break_the_protocol_end_it() {
    let head = |flags: u8, kind: [u8; 2], cookie: u8, bytes: u8| {
        let mut head = vec![0x66, 0x8e, 0x33, 0xef, 0, flags, kind[0], kind[1]];
        head.extend([0, 0, 0, 0, 0, 0, 0, cookie, 0, 0, 0, bytes]);
        head
    };
    let hole = |start: u8, bytes: u8| [0, 0, 0, 0, 0, 0, 0, start, 0, 0, 0, bytes];
    for (says, why) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "a reply with magic number 0x47455420"),
        (head(1, [0, 0], 9, 0), "a reply to request 9, which nobody made"),
        (head(1, [0, 0], 0, 0), "a reply that does not give 64 bytes once each"),
        (head(1, [0, 9], 0, 0), "a part of kind 9 and 0 bytes"),
        (head(1, [0, 5], 0, 12), "a part of kind 5 and 12 bytes"),
        ([head(1, [0, 2], 0, 12), hole(0, 63).to_vec()].concat(), "64 bytes once each"),
        ([head(1, [0, 2], 0, 12), hole(0, 65).to_vec()].concat(), "65 bytes at 0, outside"),
        ([head(1, [0, 2], 0, 12), hole(64, 1).to_vec()].concat(), "1 bytes at 64, outside"),
        ([head(1, [0, 2], 0, 12), hole(3, 0).to_vec()].concat(), "0 bytes at 3, outside"),
        (
            [
                head(0, [0, 2], 0, 12),
                hole(0, 40).to_vec(),
                head(1, [0, 2], 0, 12),
                hole(30, 34).to_vec(),
            ]
            .concat(),
            "64 bytes once each",
        ),
        (b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(), "a simple reply where a structured"),
        ([head(1, [0x80, 1], 0, 6), vec![0, 0, 0, 5, 0, 9]].concat(), "longer than itself"),
    ] {
        let (_folder, plan, address, _) = disk(1 << 20);
        *plan.says.lock().unwrap() = Some(says);
        let source = open(&address).unwrap();
        let text = source.read_at(0, &mut [0; 64]).unwrap_err().full_text();
        assert!(text.contains("the server sent ") && text.contains(why), "{why}: {text}");
        assert_eq!(plan.connections.load(Ordering::SeqCst), 1, "{why}");
    }
}

#[test]
fn several_connections_only_where_the_server_can_have_them() {
    for (flags, expected) in [(0, 1), (1 << 8, 4)] {
        let (_folder, plan, address, disk) = disk(40 << 20);
        plan.flags.store(flags, Ordering::SeqCst);
        let source = open(&address).unwrap();
        assert!(read_all(&source, 4 << 20, true) == disk);
        // The threads that make the others may come late.
        for _ in 0..500 {
            if plan.connections.load(Ordering::SeqCst) == expected {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(plan.connections.load(Ordering::SeqCst), expected);
    }
}

#[test]
fn slow_servers_are_read_with_what_is_asked_for_ahead() {
    let folder = tempfile::tempdir().unwrap();
    for filter in [["--filter=delay", "rdelay=5ms"], ["--filter=rate", "rate=200M"]] {
        let [name, setting] = filter;
        let arguments = [name, "pattern", "16M", setting];
        let Some(server) = Server::start(folder.path(), "nbdkit", &arguments) else { return };
        let source = server.open();
        let bytes = read_all(&source, 1 << 20, true);
        assert!(
            bytes.chunks(8).enumerate().all(|(at, word)| word == (at as u64 * 8).to_be_bytes())
        );
    }
}

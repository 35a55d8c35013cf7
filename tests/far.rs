//! Repositories at the other end of a line: lines that are cut, hang or lie, other versions, what a
//! login may do, and how fast bytes go. That the storage keeps what all storages promise is in
//! `tests/storage_conformance.rs`, and the program as a user meets it in `tests/cli/far.rs`.

#![allow(clippy::unwrap_used, reason = "a test may stop where it fails")]

use diskvault::error::{Error, ErrorKind, Result};
use diskvault::storage::far::permissions::Access;
use diskvault::storage::far::process::{Remote, SshDialer};
use diskvault::storage::far::{FarOptions, FarStorage, Purpose};
use diskvault::storage::local::LocalStorage;
use diskvault::storage::place::Place;
use diskvault::storage::throttle::Limits;
use diskvault::storage::{Folder, ObjectName, Storage};
use far::{Fault, Inside, open, quick};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

#[path = "support/far.rs"]
mod far;

const MIB: usize = 1 << 20;

fn name(text: &str) -> ObjectName {
    ObjectName::parse(text).unwrap()
}

/// A folder with an empty repository.
fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("config")).unwrap();
    root
}

fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut data = vec![0; count];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
    data
}

/// A number that depends on the seed, below the limit.
fn chance(seed: u64, below: u64) -> u64 {
    let random = bytes(seed, 8);
    u64::from_le_bytes(random.try_into().unwrap()) % below
}

#[test]
fn a_line_that_is_cut_goes_on_and_sends_one_pack_again_at_most() {
    const PACK: usize = 3 * MIB;
    for seed in 0..12 {
        let cuts = 1 + seed % 3;
        let fault = |cut: u64| Fault::CutUp(chance(100 * seed + cut, 7 * MIB as u64));
        let faults: Vec<Fault> = (0..cuts).map(fault).filter(|it| !is_in_hello(*it)).collect();
        let dialer = Arc::new(Inside::with_faults(&faults));
        let root = root();
        let storage = open(&dialer, root.path(), quick()).unwrap();
        let pack =
            |number: u64| (name(&format!("packs/0{number}/0{number}aa")), bytes(number, PACK));
        thread::scope(|scope| {
            for part in [[0, 1], [2, 3]] {
                let storage = &storage;
                scope.spawn(move || {
                    for number in part {
                        let (name, data) = pack(number);
                        storage.put_new(&name, &data).unwrap();
                    }
                });
            }
        });
        for number in 0..4 {
            let (name, data) = pack(number);
            assert_eq!(storage.get(&name, PACK as u64).unwrap(), data);
        }
        assert_eq!(storage.list(Folder::Packs).unwrap().len(), 4);
        let again = storage.sent_bytes() - 4 * PACK as u64;
        assert!(again <= (faults.len() * PACK) as u64, "seed {seed}: {again} bytes went again");
        drop(storage);
        no_leftovers(root.path());
    }
}

fn is_in_hello(fault: Fault) -> bool {
    matches!(fault, Fault::CutUp(0..=200))
}

/// Waits until the far end has ended: nothing unfinished may stay.
fn no_leftovers(root: &Path) {
    let count = || std::fs::read_dir(root.join("tmp")).map_or(0, Iterator::count);
    let began = Instant::now();
    while count() > 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "something is left in tmp");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_was_done_and_not_answered_is_not_done_twice() {
    // The far end's answers are lost from different bytes on. Its hello has about 40.
    for bytes in (45..160).step_by(5) {
        let faults = [Fault::CutDown(bytes), Fault::CutDown(bytes + 7), Fault::CutDown(2 * bytes)];
        let dialer = Arc::new(Inside::with_faults(&faults));
        let root = root();
        let storage = open(&dialer, root.path(), quick()).unwrap();
        storage.put_new(&name("notes/aa-01"), b"first").unwrap();
        storage.put_new(&name("notes/aa-02"), b"second").unwrap();
        let error = storage.put_new(&name("notes/aa-01"), b"other").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{bytes}");
        storage.rename(&name("notes/aa-01"), &name("aside/notes-aa-01.1")).unwrap();
        let error = storage.rename(&name("notes/aa-01"), &name("aside/x")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{bytes}");
        storage.delete(&name("notes/aa-02")).unwrap();
        assert!(storage.list(Folder::Notes).unwrap().is_empty());
        assert_eq!(storage.get(&name("aside/notes-aa-01.1"), 9).unwrap(), b"first");
        assert!(*dialer.dialed.lock().unwrap() > 1);
    }
}

#[test]
fn a_line_that_hangs_is_cut_and_made_again() {
    let dialer = Arc::new(Inside::with_faults(&[Fault::Hang(MIB as u64), Fault::Hang(300)]));
    let root = root();
    let options = FarOptions { silence: Duration::from_secs(1), ..quick() };
    let storage = open(&dialer, root.path(), options).unwrap();
    let began = Instant::now();
    let data = bytes(1, 4 * MIB);
    storage.put_new(&name("packs/aa/aa01"), &data).unwrap();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!(storage.get(&name("packs/aa/aa01"), u64::MAX).unwrap(), data);
    assert_eq!(*dialer.dialed.lock().unwrap(), 3);
}

#[test]
fn patience_has_an_end() {
    let faults = vec![Fault::CutUp(150); 1000];
    let dialer = Arc::new(Inside::with_faults(&faults));
    let root = root();
    let options = FarOptions { patience: Duration::from_millis(500), ..quick() };
    let opened = open(&dialer, root.path(), options);
    let began = Instant::now();
    let error = match opened {
        Ok(storage) => storage.put_new(&name("packs/aa/aa01"), &bytes(1, MIB)).unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.kind(), ErrorKind::Storage);
    assert!(error.full_text().starts_with("cannot reach ssh://inside/: "), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn requests_overtake_a_pack_on_a_slow_line_and_rates_are_kept() {
    let root = root();
    let dialer = Arc::new(Inside::new(Access::Full));
    let rate = 4 * MIB as u64;
    let options = FarOptions { limits: Limits::new(Some(rate), Some(rate)), ..quick() };
    let storage = open(&dialer, root.path(), options).unwrap();
    let data = bytes(1, 6 * MIB);
    let began = Instant::now();
    thread::scope(|scope| {
        let put = scope.spawn(|| storage.put_new(&name("packs/aa/aa01"), &data).unwrap());
        thread::sleep(Duration::from_millis(300));
        let asked = Instant::now();
        storage.put_new(&name("leases/aa.1"), b"beat").unwrap();
        assert!(!put.is_finished(), "the heartbeat waited behind the pack");
        assert!(asked.elapsed() < Duration::from_millis(700), "{:?}", asked.elapsed());
    });
    let put = began.elapsed().as_secs_f64();
    let began = Instant::now();
    assert!(storage.get(&name("packs/aa/aa01"), u64::MAX).unwrap() == data);
    let got = began.elapsed().as_secs_f64();
    // 1.5 s each, if the rate is kept.
    for seconds in [put, got] {
        assert!((1.3..4.5).contains(&seconds), "put {put} s, got {got} s");
    }
}

#[test]
fn several_lines_share_the_work() {
    let root = root();
    let dialer = Arc::new(Inside::new(Access::Full));
    let storage = open(&dialer, root.path(), FarOptions { connections: 3, ..quick() }).unwrap();
    assert_eq!(*dialer.dialed.lock().unwrap(), 1);
    thread::scope(|scope| {
        for number in 0..6_u64 {
            let storage = &storage;
            scope.spawn(move || {
                for part in 0..4 {
                    let name = name(&format!("packs/0{number}/0{number}0{part}"));
                    let data = bytes(10 * number + part, 2 * MIB);
                    storage.put_new(&name, &data).unwrap();
                    assert!(storage.get(&name, u64::MAX).unwrap() == data);
                }
            });
        }
    });
    assert_eq!(*dialer.dialed.lock().unwrap(), 3);
    assert_eq!(storage.list(Folder::Packs).unwrap().len(), 24);
}

#[test]
fn who_may_only_add_points_harms_nobody() {
    let root = root();
    let owner = LocalStorage::open(root.path()).unwrap();
    for text in [
        "config/00000001-aa",
        "keys/aa",
        "packs/aa/aa01",
        "points/aa01",
        "points/aa01.ok",
        "points/aa02",
        "leases/aa01",
        "leases/aa01.1",
        "notes/aa01-01",
        "trash/aa03",
    ] {
        owner.put_new(&name(text), text.as_bytes()).unwrap();
    }
    let dialer = Arc::new(Inside::new(Access::AppendOnly));
    let thief = open(&dialer, root.path(), quick()).unwrap();
    let before = everything(&owner);
    let mut refused = 0;
    let mut refuse = |what: Result<()>| {
        let error = what.unwrap_err();
        assert!(error.full_text().starts_with("refused by the far end: cannot "), "{error:?}");
        refused += 1;
    };
    for text in before.iter().map(|(name, _)| name.as_str()) {
        refuse(thief.delete(&name(text)));
        refuse(thief.rename(&name(text), &name("aside/thief")));
    }
    for text in [
        "config/00000002-bb",
        "keys/bb",
        "instance",
        "condemned/bb",
        "lost/bb",
        "trash/bb",
        "aside/bb",
        "index/bb",
        "points/aa02.ok",
        "notes/aa01-02",
        "leases/aa01.2",
        "parity/aa01",
    ] {
        refuse(thief.put_new(&name(text), b"thief"));
    }
    for text in ["packs/aa/aa01", "points/aa01", "points/aa02", "leases/aa01"] {
        let error = thief.put_new(&name(text), b"thief").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{text}");
        // That it has tried does not make it the owner.
        refuse(thief.delete(&name(text)));
        // Nor that it puts what is there.
        let error = thief.put_new(&name(text), text.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{text}");
        refuse(thief.delete(&name(text)));
    }
    assert_eq!(everything(&owner), before);
    // Also the eight that wanted to replace something.
    assert_eq!(dialer.log.lock().unwrap().len(), refused + 8, "each is told");

    // What it has put itself it may take back, until the point is done; also after a cut.
    for text in ["leases/bb01", "leases/bb01.1", "packs/bb/bb01", "parity/bb01", "points/bb01"] {
        thief.put_new(&name(text), b"own").unwrap();
    }
    let other = open(&dialer, root.path(), quick()).unwrap();
    assert!(other.delete(&name("points/bb01")).is_err(), "another run is another login");
    thief.delete(&name("leases/bb01.1")).unwrap();
    thief.delete(&name("leases/bb01")).unwrap();
    thief.delete(&name("points/bb01")).unwrap();
    thief.put_new(&name("points/bb02"), b"own").unwrap();
    thief.put_new(&name("notes/bb02-01"), b"own").unwrap();
    thief.put_new(&name("points/bb02.ok"), b"").unwrap();
    for text in ["points/bb02", "points/bb02.ok", "packs/bb/bb01", "parity/bb01", "notes/bb02-01"] {
        assert!(thief.delete(&name(text)).is_err(), "{text}");
    }
}

fn everything(storage: &dyn Storage) -> Vec<(ObjectName, Vec<u8>)> {
    let entries = Folder::ALL.into_iter().flat_map(|folder| storage.list(folder).unwrap());
    entries.map(|entry| (entry.name.clone(), storage.get(&entry.name, u64::MAX).unwrap())).collect()
}

#[test]
fn a_login_keeps_what_it_has_put_when_its_line_is_cut() {
    let root = root();
    let inside = Inside::new(Access::AppendOnly);
    inside.faults.lock().unwrap().extend([Fault::CutUp(600), Fault::CutUp(600)]);
    let dialer = Arc::new(inside);
    let storage = open(&dialer, root.path(), quick()).unwrap();
    for number in 0..20 {
        storage.put_new(&name(&format!("leases/aa{number:02}")), b"lease").unwrap();
    }
    for number in 0..20 {
        storage.delete(&name(&format!("leases/aa{number:02}"))).unwrap();
    }
    assert_eq!(*dialer.dialed.lock().unwrap(), 3);
}

#[test]
fn who_may_only_read_reads_and_a_folder_elsewhere_is_refused() {
    let root = root();
    LocalStorage::open(root.path()).unwrap().put_new(&name("keys/aa"), b"key").unwrap();
    let mut inside = Inside::new(Access::ReadOnly);
    let parent = root.path().parent().unwrap();
    inside.options.restrict_to = vec![root.path().to_owned()];
    let dialer = Arc::new(inside);
    let storage = open(&dialer, root.path(), quick()).unwrap();
    assert_eq!(storage.get(&name("keys/aa"), 9).unwrap(), b"key");
    for result in [
        storage.put_new(&name("packs/aa/aa01"), b"x"),
        storage.delete(&name("keys/aa")),
        storage.rename(&name("keys/aa"), &name("aside/keys-aa.1")),
    ] {
        let text = result.unwrap_err().full_text();
        assert!(text.ends_with(": this login may only read"), "{text}");
    }
    let error = open(&dialer, parent, quick()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Storage);
    assert!(error.full_text().contains("this login may not use that folder"), "{error:?}");
    assert_eq!(dialer.log.lock().unwrap().len(), 4);
    no_leftovers(root.path());
}

#[test]
fn repositories_are_made_where_there_is_none() {
    let top = tempfile::tempdir().unwrap();
    let path = top.path().join("new/repository");
    let text = path.to_str().unwrap();
    let at =
        |access, purpose| FarStorage::open(Arc::new(Inside::new(access)), text, purpose, quick());
    let kind = |result: Result<FarStorage>| result.err().map(|error| error.kind());
    assert_eq!(kind(at(Access::Full, Purpose::Open)), Some(ErrorKind::NoRepository));
    // Whoever asks whether it could be made gets at nothing by that.
    let asked = at(Access::ReadOnly, Purpose::MayCreate).unwrap();
    assert!(asked.list(Folder::Config).is_err());
    assert!(!path.exists());
    assert_eq!(kind(at(Access::AppendOnly, Purpose::Create)), Some(ErrorKind::Storage));
    assert!(!path.exists());
    let storage = at(Access::Full, Purpose::Create).unwrap();
    storage.put_new(&name("config/00000001-aa"), b"config").unwrap();
    assert_eq!(kind(at(Access::Full, Purpose::Open)), None);
    for purpose in [Purpose::Create, Purpose::MayCreate] {
        assert_eq!(kind(at(Access::Full, purpose)), Some(ErrorKind::AlreadyExists));
    }
}

/// What comes of a far end that is this shell script.
fn script(script: &str) -> Error {
    let words = ["sh", "-c", script].map(String::from);
    let Ok(Place::Ssh(to)) = "ssh://nas/srv/vault".parse() else { panic!() };
    let dialer = SshDialer::new(&words, &to, "ssh", &Remote::Program("diskvault".into()));
    let options = FarOptions { greeting: Duration::from_secs(2), ..quick() };
    FarStorage::open(Arc::new(dialer), &to.path, Purpose::Open, options).err().unwrap()
}

#[test]
fn far_ends_that_are_none_give_clear_errors() {
    let began = Instant::now();
    let hello = |versions: &str| {
        format!(
            r"printf 'dvfar\r\n\000{versions}\010\000\000\000\005\0009.9.9\001'; cat >/dev/null"
        )
    };
    let cases = [
        (
            "echo 'nas: Permission denied (publickey).' >&2; exit 255".to_owned(),
            "cannot reach ssh://nas/srv/vault: nas: Permission denied (publickey).",
            None,
        ),
        ("exit 127".into(), "exit code 127", Some("diskvault has to be installed there")),
        (
            "echo 'sh: diskvault: not found' >&2; exit 127".into(),
            "sh: diskvault: not found",
            Some("--remote-program"),
        ),
        (
            "echo; echo 'Welcome to nas'; cat >/dev/null".into(),
            "\"Welcome to nas\" was heard",
            Some("print nothing"),
        ),
        ("head -c 1M /dev/zero; cat >/dev/null".into(), "instead of a diskvault", None),
        ("cat >/dev/null; sleep 9".into(), "it does not answer", None),
        (
            hello(r"\143\000\143\000"),
            "it has diskvault 9.9.9, whose protocol is too new",
            Some("on this machine"),
        ),
        (hello(r"\000\000\000\000"), "whose protocol is too old", Some("over there")),
        ("exit 0".into(), "cannot reach ssh://nas/srv/vault: ", None),
    ];
    for (text, message, hint) in cases {
        let error = script(&text);
        assert!(error.full_text().contains(message), "{text}: {error:?}");
        let is_newer = message.ends_with("too new");
        let kind = if is_newer { ErrorKind::Newer } else { ErrorKind::Storage };
        assert_eq!(error.kind(), kind, "{text}");
        if let Some(hint) = hint {
            assert!(error.hint_text().is_some_and(|it| it.contains(hint)), "{text}: {error:?}");
        }
    }
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let words = vec!["/nowhere/ssh".to_owned()];
    let Ok(Place::Ssh(to)) = "ssh://nas/srv".parse() else { panic!() };
    let dialer = SshDialer::new(&words, &to, "ssh", &Remote::Program("diskvault".into()));
    let opened = FarStorage::open(Arc::new(dialer), "/srv", Purpose::Open, quick());
    assert!(opened.err().unwrap().full_text().contains("/nowhere/ssh"));
}

#[test]
fn a_client_that_keeps_to_no_protocol_is_told_or_left() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    for seed in 0..40_u64 {
        let root = root();
        let (mut near, far) = UnixStream::pair().unwrap();
        let inside = Inside::new(Access::AppendOnly);
        let options = inside.options.clone();
        let server = thread::spawn(move || {
            let input = far.try_clone().unwrap();
            let _ = diskvault::storage::far::serve(input, far, &options);
        });
        let path = root.path().to_str().unwrap();
        let mut hello = b"dvfar\r\n\0\x01\0\x01\0".to_vec();
        hello.extend((39 + path.len() as u32 + 1).to_le_bytes());
        hello.extend(b"\x02\0hi");
        hello.extend([7; 32]);
        hello.extend(b"\0\0\x01");
        hello.extend((path.len() as u16).to_le_bytes());
        hello.extend(path.as_bytes());
        near.write_all(&hello[..hello.len()]).unwrap();
        let noise = bytes(seed, 64);
        for id in 0..30_u64 {
            let body = bytes(seed * 1000 + id, chance(seed + id, 60) as usize);
            let kind = noise[id as usize] % 16;
            let mut frame = (body.len() as u32).to_le_bytes().to_vec();
            frame.push(kind);
            frame.extend((id % 5).to_le_bytes());
            frame.extend(body);
            if near.write_all(&frame).is_err() {
                break;
            }
        }
        near.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answers = Vec::new();
        let _ = near.read_to_end(&mut answers);
        assert!(answers.starts_with(b"dvfar\r\n\0"));
        server.join().unwrap();
        assert!(everything(&LocalStorage::open(root.path()).unwrap()).is_empty());
    }
}

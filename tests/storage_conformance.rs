//! What every storage promises, as one list of cases that each storage has to pass, and the
//! rules that only one of them has. A new storage adds a rig here and nothing else.

#![allow(clippy::unwrap_used, reason = "a test may stop where it fails")]
#![allow(clippy::print_stdout, reason = "a test says which case ran, and what it skipped")]

use diskvault::error::ErrorKind;
use diskvault::storage::far::permissions::Access;
use diskvault::storage::far::process::{Remote, SshDialer};
use diskvault::storage::far::{FarStorage, Purpose};
use diskvault::storage::local::LocalStorage;
use diskvault::storage::memory::MemoryStorage;
use diskvault::storage::place::Place;
use diskvault::storage::s3::S3Storage;
use diskvault::storage::sftp::SftpStorage;
use diskvault::storage::{Folder, ObjectName, Storage};
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread;

#[path = "support/far.rs"]
mod far;
#[path = "support/storage_local.rs"]
mod local_rules;
#[path = "support/storage_memory.rs"]
mod memory_faults;
#[path = "support/storage_s3.rs"]
mod s3_rules;
#[path = "support/s3.rs"]
mod s3_server;

/// A fresh storage, and a way to put foreign things into it.
struct Rig<'a> {
    storage: &'a dyn Storage,
    /// A second handle to the same storage, as another process has it.
    other: &'a dyn Storage,
    junk: &'a dyn Fn(&str),
    /// The oddest name that can be had there.
    odd: &'a str,
}

const ODD: &str = "keys/new\nline \u{e9}";

type Case = (&'static str, fn(&Rig<'_>));

const CASES: &[Case] = &[
    ("roundtrip at many sizes", roundtrip),
    ("every folder", every_folder),
    ("put twice", put_twice),
    ("missing objects", missing),
    ("range past the end", range_past_the_end),
    ("get larger than allowed", get_larger_than_allowed),
    ("list order and sizes", list_order_and_sizes),
    ("foreign names", foreign_names),
    ("foreign names are capped", foreign_names_are_capped),
    ("delete", delete),
    ("rename", rename),
    ("changes are seen by others", changes_are_seen_by_others),
    ("racing puts", racing_puts),
    ("location", location),
];

#[test]
fn memory_storage_conforms() {
    for (title, case) in CASES {
        println!("memory: {title}");
        let storage = MemoryStorage::new();
        let other = storage.clone();
        case(&Rig {
            storage: &storage,
            other: &other,
            junk: &|name| storage.insert(name, "junk"),
            odd: ODD,
        });
    }
}

#[test]
fn local_storage_conforms() {
    for (title, case) in CASES {
        println!("local: {title}");
        let root = tempfile::tempdir().unwrap();
        let storage = LocalStorage::create(root.path()).unwrap();
        std::fs::create_dir(root.path().join("config")).unwrap();
        let other = LocalStorage::open(root.path()).unwrap();
        let junk = |name: &str| put_junk(root.path(), name);
        case(&Rig { storage: &storage, other: &other, junk: &junk, odd: ODD });
        assert_eq!(local_rules::unfinished(root.path()), 0, "{title}");
    }
}

/// Puts a file where no object is.
fn put_junk(root: &Path, name: &str) {
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, "junk").unwrap();
}

#[test]
fn far_storage_conforms() {
    for (title, case) in CASES {
        println!("far: {title}");
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("config")).unwrap();
        let dialer = Arc::new(far::Inside::new(Access::Full));
        let open = || far::open(&dialer, root.path(), far::quick()).unwrap();
        let (storage, other) = (open(), open());
        let junk = |name: &str| put_junk(root.path(), name);
        case(&Rig { storage: &storage, other: &other, junk: &junk, odd: ODD });
        assert_eq!(*dialer.dialed.lock().unwrap(), 2, "{title}: a line was cut");
    }
}

#[test]
fn far_storage_conforms_over_ssh() {
    let Some(sshd) = far::Sshd::start(&[]) else { return };
    for (title, case) in CASES {
        println!("ssh: {title}");
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("config")).unwrap();
        let open = || {
            let Ok(Place::Ssh(to)) = sshd.address("ssh", root.path()).parse() else { panic!() };
            let remote = Remote::Program(env!("CARGO_BIN_EXE_diskvault").into());
            let dialer = SshDialer::new(&sshd.words("full"), &to, "ssh", &remote);
            FarStorage::open(Arc::new(dialer), &to.path, Purpose::Open, far::quick()).unwrap()
        };
        let (storage, other) = (open(), open());
        let junk = |name: &str| put_junk(root.path(), name);
        case(&Rig { storage: &storage, other: &other, junk: &junk, odd: ODD });
    }
}

#[test]
fn s3_storage_conforms() {
    let Some(server) = s3_server::Server::start() else { return };
    server.make_bucket("diskvault-test", false);
    // Some servers take no name with an end of line in it.
    let taken = server.request("PUT", "diskvault-test", ODD, &[], b"junk").0;
    let odd = if taken == 200 { ODD } else { "keys/new line+ \u{e9}" };
    for (title, case) in CASES {
        let options = server.options("diskvault-test", &s3_rules::fresh_prefix(title));
        let storage = S3Storage::create(options.clone()).unwrap();
        let findings = storage.probe().unwrap();
        if *title == "racing puts" && !findings.refuses_taken_names {
            println!("s3: skipped: {title}: this server ignores If-None-Match");
            continue;
        }
        println!("s3: {title}");
        let other = S3Storage::create(options.clone()).unwrap();
        other.know(findings);
        let junk = |name: &str| {
            let key = format!("{}/{name}", options.bucket.prefix);
            assert_eq!(server.request("PUT", &options.bucket.name, &key, &[], b"junk").0, 200);
        };
        case(&Rig { storage: &storage, other: &other, junk: &junk, odd });
    }
}

/// What cannot be promised over SFTP is no case here: that a name survives a power cut.
#[test]
fn sftp_storage_conforms() {
    let Some(sshd) = far::Sshd::start(&[]) else { return };
    for (title, case) in CASES {
        println!("sftp: {title}");
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("config")).unwrap();
        let open = || {
            let Ok(Place::Sftp(to)) = sshd.address("sftp", root.path()).parse() else { panic!() };
            let remote = Remote::Subsystem("sftp");
            let dialer = SshDialer::new(&sshd.words("full"), &to, "sftp", &remote);
            SftpStorage::open(Arc::new(dialer), &to.path, Purpose::Open, far::quick()).unwrap()
        };
        let (storage, other) = (open(), open());
        let junk = |name: &str| put_junk(root.path(), name);
        case(&Rig { storage: &storage, other: &other, junk: &junk, odd: ODD });
        assert_eq!(local_rules::unfinished(root.path()), 0, "{title}");
    }
}

fn name(folder: Folder, leaf: &str) -> ObjectName {
    ObjectName::new(folder, leaf).unwrap()
}

/// Bytes that repeat nowhere near.
fn bytes(count: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count).map(|_| next()).collect()
}

fn roundtrip(rig: &Rig<'_>) {
    for folder in [Folder::Packs, Folder::Notes] {
        for size in [0, 1, 4095, 4096, (1 << 20) + 1] {
            let name = name(folder, &format!("{size:08x}"));
            let data = bytes(size, 7);
            rig.storage.put_new(&name, &data).unwrap();

            assert_eq!(rig.storage.get(&name, size as u64).unwrap(), data);
            assert_eq!(rig.storage.size(&name).unwrap(), Some(size as u64));
            for (start, end) in
                [(0, size), (0, 0), (size, size), (size / 2, size), (size / 3, size / 2)]
            {
                let mut buffer = vec![0xee; end - start];
                rig.storage.get_range(&name, start as u64, &mut buffer).unwrap();
                assert_eq!(buffer, data[start..end], "{start}..{end} of {size}");
            }
            for wanted in [0, 1, 64, size, size + 1, 3 << 20] {
                let (tail, whole) = rig.storage.get_tail(&name, wanted).unwrap();
                assert_eq!(whole, size as u64);
                assert_eq!(tail, data[size.saturating_sub(wanted)..]);
            }
        }
    }
}

fn every_folder(rig: &Rig<'_>) {
    for folder in Folder::ALL {
        assert!(rig.storage.list(folder).unwrap().is_empty(), "{folder}");
        let leaf = if folder == Folder::Instance { "instance" } else { "00000001-3f" };
        let name = name(folder, leaf);
        rig.storage.put_new(&name, folder.name().as_bytes()).unwrap();
    }
    for folder in Folder::ALL {
        let entries = rig.storage.list(folder).unwrap();
        assert_eq!(entries.len(), 1, "{folder}");
        let data = rig.storage.get(&entries[0].name, 100).unwrap();
        assert_eq!(data, folder.name().as_bytes());
    }
    assert!(rig.storage.foreign().unwrap().is_empty());
}

fn put_twice(rig: &Rig<'_>) {
    let name = name(Folder::Points, "77.ok");
    rig.storage.put_new(&name, b"first").unwrap();
    let error = rig.storage.put_new(&name, b"the second").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(error.full_text(), "cannot write points/77.ok: it exists already");
    assert_eq!(rig.storage.get(&name, 100).unwrap(), b"first");
}

fn missing(rig: &Rig<'_>) {
    let never = [name(Folder::Packs, "3f00"), name(Folder::Keys, "3f00")];
    let check = || {
        for name in &never {
            let storage = rig.storage;
            let not_found = ErrorKind::NotFound;
            assert_eq!(storage.get(name, u64::MAX).unwrap_err().kind(), not_found);
            assert_eq!(storage.get_range(name, 0, &mut []).unwrap_err().kind(), not_found);
            assert_eq!(storage.get_tail(name, 0).unwrap_err().kind(), not_found);
            assert_eq!(storage.size(name).unwrap(), None);
        }
    };
    check();
    // The folders exist now, the objects still do not.
    rig.storage.put_new(&name(Folder::Packs, "3f01"), b"x").unwrap();
    rig.storage.put_new(&name(Folder::Keys, "3f01"), b"x").unwrap();
    check();
}

fn range_past_the_end(rig: &Rig<'_>) {
    for folder in [Folder::Packs, Folder::Lost] {
        let name = name(folder, "3f00");
        rig.storage.put_new(&name, &bytes(100, 1)).unwrap();
        for (offset, count) in [(0, 101), (99, 2), (101, 0), (u64::MAX, 1), (u64::MAX - 1, 1)] {
            let error = rig.storage.get_range(&name, offset, &mut vec![0; count]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damage, "{offset}+{count}");
            assert!(error.full_text().contains("is shorter than"), "{error:?}");
        }
    }
}

fn get_larger_than_allowed(rig: &Rig<'_>) {
    let name = name(Folder::Config, "00000001-3f");
    rig.storage.put_new(&name, &bytes(100, 1)).unwrap();
    assert_eq!(rig.storage.get(&name, 99).unwrap_err().kind(), ErrorKind::Damage);
    assert_eq!(rig.storage.get(&name, 100).unwrap().len(), 100);
}

fn list_order_and_sizes(rig: &Rig<'_>) {
    let leaves = ["ff00", "00ff.7", "3f", "3f-1", "3f.1", "00ff"];
    for folder in [Folder::Packs, Folder::Leases] {
        let mut expected = Vec::new();
        for (size, leaf) in leaves.iter().enumerate() {
            let name = name(folder, leaf);
            rig.storage.put_new(&name, &bytes(size, 3)).unwrap();
            expected.push((name, size as u64));
        }
        expected.sort();
        let entries = rig.storage.list(folder).unwrap();
        let found: Vec<_> = entries.into_iter().map(|entry| (entry.name, entry.bytes)).collect();
        assert_eq!(found, expected);
    }
}

fn foreign_names(rig: &Rig<'_>) {
    rig.storage.put_new(&name(Folder::Packs, "3f00"), b"x").unwrap();
    rig.storage.put_new(&name(Folder::Keys, "3f00"), b"x").unwrap();
    let foreign = ["keys/.hidden", "keys/3F00", "keys/readme.txt", "packs/3f/4a00", "packs/stray"];
    for junk in foreign {
        (rig.junk)(junk);
    }
    (rig.junk)(rig.odd);
    (rig.junk)("elsewhere/unknown");
    assert_eq!(rig.storage.list(Folder::Packs).unwrap().len(), 1);
    assert_eq!(rig.storage.list(Folder::Keys).unwrap().len(), 1);
    let mut expected: Vec<_> = foreign.map(str::to_owned).to_vec();
    expected.push(rig.odd.as_bytes().escape_ascii().to_string());
    expected.sort();
    assert_eq!(rig.storage.foreign().unwrap(), expected);
}

fn foreign_names_are_capped(rig: &Rig<'_>) {
    for number in 0..130 {
        (rig.junk)(&format!("notes/junk{number}"));
    }
    assert_eq!(rig.storage.foreign().unwrap().len(), 100);
}

fn delete(rig: &Rig<'_>) {
    for folder in [Folder::Packs, Folder::Trash] {
        let name = name(folder, "3f00");
        rig.storage.delete(&name).unwrap();
        rig.storage.put_new(&name, b"some bytes").unwrap();
        // Read first, so that a storage that keeps things open has it open.
        rig.storage.get_range(&name, 0, &mut [0; 4]).unwrap();
        rig.storage.delete(&name).unwrap();
        rig.storage.delete(&name).unwrap();
        let not_found = ErrorKind::NotFound;
        assert_eq!(rig.storage.get(&name, 100).unwrap_err().kind(), not_found);
        assert_eq!(rig.storage.get_range(&name, 0, &mut [0]).unwrap_err().kind(), not_found);
        assert_eq!(rig.storage.get_tail(&name, 1).unwrap_err().kind(), not_found);
        assert_eq!(rig.storage.size(&name).unwrap(), None);
        assert!(rig.storage.list(folder).unwrap().is_empty());
        rig.storage.put_new(&name, b"again").unwrap();
        assert_eq!(rig.storage.get_tail(&name, 100).unwrap().0, b"again");
    }
}

fn rename(rig: &Rig<'_>) {
    let old = name(Folder::Packs, "0a1b");
    let new = name(Folder::Aside, "packs-0a1b.00000001");
    let taken = name(Folder::Aside, "packs-0a1b.00000002");
    let error = rig.storage.rename(&old, &new).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    rig.storage.put_new(&old, b"evidence").unwrap();
    rig.storage.put_new(&taken, b"other").unwrap();
    // A pack that is open for ranged reads as well.
    rig.storage.get_range(&old, 0, &mut [0; 8]).unwrap();
    let error = rig.storage.rename(&old, &taken).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(rig.other.get(&old, 9).unwrap(), b"evidence");
    assert_eq!(rig.other.get(&taken, 9).unwrap(), b"other");
    rig.storage.rename(&old, &new).unwrap();
    assert_eq!(rig.other.get(&new, 9).unwrap(), b"evidence");
    assert_eq!(rig.other.size(&old).unwrap(), None);
    let gone = rig.storage.get_range(&old, 0, &mut [0; 8]).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    assert!(rig.other.list(Folder::Packs).unwrap().is_empty());
    // The old name is free again.
    rig.other.put_new(&old, b"healed").unwrap();
    assert_eq!(rig.storage.get(&old, 9).unwrap(), b"healed");
}

fn changes_are_seen_by_others(rig: &Rig<'_>) {
    let name = name(Folder::Packs, "3f00");
    assert_eq!(rig.other.size(&name).unwrap(), None);
    rig.storage.put_new(&name, b"bytes").unwrap();
    assert_eq!(rig.other.get(&name, 100).unwrap(), b"bytes");
    assert_eq!(rig.other.get_tail(&name, 2).unwrap().0, b"es");
    assert_eq!(rig.other.list(Folder::Packs).unwrap().len(), 1);
    assert_eq!(rig.other.put_new(&name, b"x").unwrap_err().kind(), ErrorKind::AlreadyExists);
    rig.storage.delete(&name).unwrap();
    assert_eq!(rig.other.get_tail(&name, 2).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(rig.other.list(Folder::Packs).unwrap().is_empty());
}

fn racing_puts(rig: &Rig<'_>) {
    for round in 0..20 {
        let name = name(Folder::Packs, &format!("{round:02x}00"));
        let start = Barrier::new(8);
        let outcomes: Vec<_> = thread::scope(|scope| {
            let racer = |seed| {
                let (name, start) = (&name, &start);
                let storage = if seed % 2 == 0 { rig.storage } else { rig.other };
                scope.spawn(move || {
                    let data = bytes(10_000 + seed as usize, seed);
                    start.wait();
                    storage.put_new(name, &data).map(|()| data)
                })
            };
            let racers: Vec<_> = (0..8).map(racer).collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        assert_eq!(won.len(), 1);
        for error in lost {
            assert_eq!(error.unwrap_err().kind(), ErrorKind::AlreadyExists);
        }
        let winner = won.into_iter().next().unwrap().unwrap();
        assert_eq!(rig.storage.get(&name, 100_000).unwrap(), winner);
    }
}

fn location(rig: &Rig<'_>) {
    assert!(!rig.storage.location().is_empty());
    assert_eq!(rig.storage.location(), rig.other.location());
}

#[test]
fn names_outside_the_grammar_are_refused() {
    let long = "a".repeat(161);
    let bad = [
        "",
        ".",
        "..",
        ".a",
        "a\0",
        "a/b",
        "/",
        "../a",
        "A",
        "3F",
        "g",
        "a b",
        "a\n",
        "é",
        "a_b",
        "a.ok",
        "ok",
        "tmp",
        long.as_str(),
    ];
    for folder in Folder::ALL {
        for leaf in bad {
            let is_own = folder == Folder::Points && leaf == "a.ok";
            // The folder that an object had stands in the name that it has now.
            let is_folder = folder == Folder::Aside && leaf.starts_with(|c: char| c.is_lowercase());
            if is_own || is_folder && ObjectName::new(folder, leaf).is_ok() {
                continue;
            }
            let error = ObjectName::new(folder, leaf).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{folder} {leaf:?}");
            assert!(!error.full_text().contains(['\n', '\0']), "{error:?}");
        }
    }
    assert!(ObjectName::new(Folder::Keys, &long[..160]).is_ok());
    for leaf in [".ok", "..ok", "a.ok.ok", "A.ok", &format!("{}.ok", &long[..158])] {
        assert!(ObjectName::new(Folder::Points, leaf).is_err(), "{leaf}");
    }
    for leaf in ["a", "-a", "a-", "a."] {
        assert!(ObjectName::new(Folder::Packs, leaf).is_err(), "{leaf}");
        assert!(ObjectName::new(Folder::Keys, leaf).is_ok(), "{leaf}");
    }
    assert!(ObjectName::new(Folder::Instance, "3f").is_err());
}

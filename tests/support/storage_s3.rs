//! What the S3 storage alone promises: what it makes of servers that can do more or less.

use super::s3_server::Server;
use super::{bytes, name};
use diskvault::error::ErrorKind;
use diskvault::storage::s3::{LockMode, ObjectLock, S3Options, S3Storage};
use diskvault::storage::throttle::Limits;
use diskvault::storage::{Folder, ObjectName, Storage};
use std::time::{Duration, Instant};

/// A prefix that nobody has used.
pub fn fresh_prefix(title: &str) -> String {
    let mut random = [0; 8];
    getrandom::fill(&mut random).unwrap();
    let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{random}", title.replace(' ', "-"))
}

fn fresh(server: &Server, title: &str) -> S3Options {
    server.make_bucket("diskvault-test", false);
    server.options("diskvault-test", &fresh_prefix(title))
}

/// A new storage on a server that has been looked at.
fn probed(options: S3Options) -> S3Storage {
    let storage = S3Storage::create(options).unwrap();
    storage.probe().unwrap();
    storage
}

fn config() -> ObjectName {
    name(Folder::Config, "00000001-3f")
}

#[test]
fn a_bucket_or_prefix_that_is_not_there_is_no_repository() {
    let Some(server) = Server::start() else { return };
    let options = fresh(&server, "open");
    let error = S3Storage::open(options.clone()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NoRepository);
    let none = server.options("no-such-bucket-here", "");
    let error = S3Storage::open(none.clone()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NoRepository, "{error:?}");
    assert!(error.full_text().ends_with("there is no such bucket"), "{error:?}");
    let error = S3Storage::create(none).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Storage);

    let storage = probed(options.clone());
    storage.put_new(&config(), b"x").unwrap();
    S3Storage::open(options.clone()).unwrap();
    let error = S3Storage::create(options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
}

#[test]
fn a_probe_leaves_nothing_and_says_what_it_found() {
    let Some(server) = Server::start() else { return };
    let options = fresh(&server, "probe");
    let storage = S3Storage::create(options.clone()).unwrap();
    let found = storage.probe().unwrap();
    println!("{}: {found}", options.endpoint.clone().unwrap_or_default());
    // Nothing at all is there.
    S3Storage::create(options).unwrap();
}

#[test]
fn many_objects_are_listed_page_by_page() {
    let Some(server) = Server::start() else { return };
    let options = fresh(&server, "pages");
    let (bucket, prefix) = (&options.bucket.name, &options.bucket.prefix);
    let storage = probed(options.clone());
    std::thread::scope(|scope| {
        for part in 0..8 {
            let server = &server;
            scope.spawn(move || {
                for number in 0..128 {
                    let key = format!("{prefix}/lost/{part:02x}{number:04x}");
                    assert_eq!(server.request("PUT", bucket, &key, &[], b"x").0, 200);
                }
            });
        }
    });
    let listed = storage.list(Folder::Lost).unwrap();
    assert_eq!(listed.len(), 1024);
    assert!(listed.is_sorted_by(|one, other| one.name < other.name));
    assert!(listed.iter().all(|entry| entry.stored_unix_ns.is_some_and(|time| time > 0)));
}

#[test]
fn a_limit_holds_in_both_directions() {
    let Some(server) = Server::start() else { return };
    let options = fresh(&server, "limit");
    let limits = Limits::new(Some(1 << 20), Some(2 << 20));
    let storage = probed(S3Options { limits, ..options });
    let (data, began) = (bytes(1 << 20, 5), Instant::now());
    storage.put_new(&name(Folder::Packs, "3f00"), &data).unwrap();
    let sent = began.elapsed();
    assert_eq!(storage.get(&name(Folder::Packs, "3f00"), 1 << 20).unwrap(), data);
    let received = began.elapsed() - sent;
    // A tenth of a second's worth may go at once.
    assert!(sent > Duration::from_millis(850), "{sent:?}");
    assert!(received > Duration::from_millis(380), "{received:?}");
}

#[test]
fn what_is_locked_cannot_be_deleted_for_good_and_is_renewed() {
    // Few servers enforce locks.
    let Some(server) = Server::moto() else { return };
    server.make_bucket("locked", true);
    let lock = Some(ObjectLock::new(30, LockMode::Compliance).unwrap());
    let options = S3Options { lock, ..server.options("locked", "a") };
    let storage = probed(options);
    let pack = name(Folder::Packs, "3f00");
    let lease = name(Folder::Leases, "3f00");
    for name in [&pack, &lease] {
        storage.put_new(name, b"bytes").unwrap();
    }
    let retention = |name: &ObjectName| {
        let (status, head) = server.head("locked", &format!("a/{name}"));
        assert_eq!(status, 200);
        let line = head.lines().find(|line| line.starts_with("x-amz-object-lock-retain"))?;
        Some(format!("{line} {}", head.contains("COMPLIANCE")))
    };
    assert!(retention(&pack).unwrap().ends_with("true"));
    assert_eq!(retention(&lease), None);
    // A delete hides the pack, and its bytes stay.
    let versions = |key: &str| {
        let (_, body) =
            server.request("GET", "locked", &format!("?prefix={key}&versions="), &[], b"");
        String::from_utf8(body).unwrap()
    };
    let listed = versions("a/packs");
    let version = listed.split("<VersionId>").nth(1).unwrap().split('<').next().unwrap();
    let key = format!("a/{pack}?versionId={version}");
    assert_eq!(server.request("DELETE", "locked", &key, &[], b"").0, 403);
    storage.delete(&pack).unwrap();
    assert_eq!(storage.size(&pack).unwrap(), None);
    assert!(versions("a/packs").contains(version));

    let later = name(Folder::Keys, "3f00");
    storage.put_new(&later, b"key").unwrap();
    assert_eq!(storage.renew(&later).unwrap(), Some(false));
    assert_eq!(storage.renew(&lease).unwrap(), None);
    let before = retention(&later).unwrap();
    let storage = storage_for(&server, 60);
    assert_eq!(storage.renew(&later).unwrap(), Some(true));
    assert_ne!(retention(&later).unwrap(), before);
    assert_eq!(storage.renew(&pack).unwrap_err().kind(), ErrorKind::NotFound);
}

fn storage_for(server: &Server, days: u32) -> S3Storage {
    let lock = Some(ObjectLock::new(days, LockMode::Compliance).unwrap());
    let options = S3Options { lock, ..server.options("locked", "a") };
    // The config is what makes it a repository.
    let key = format!("a/{}", config());
    assert_eq!(server.request("PUT", "locked", &key, &[], b"x").0, 200);
    S3Storage::open(options).unwrap()
}

/// No test of a promise: figures, for `docs/testing.md`; with `DISKVAULT_S3_FIGURES`.
#[test]
fn figures_of_puts_and_gets() {
    if std::env::var_os("DISKVAULT_S3_FIGURES").is_none() {
        return;
    }
    let Some(server) = Server::start() else { return };
    let storage = probed(fresh(&server, "figures"));
    let small = bytes(4096, 1);
    let began = Instant::now();
    for number in 0..100 {
        storage.put_new(&name(Folder::Notes, &format!("{number:04x}")), &small).unwrap();
    }
    println!("100 puts of 4 KiB, each looked at: {:.2?}", began.elapsed());
    let large = bytes(32 << 20, 2);
    for number in 0..3 {
        let pack = name(Folder::Packs, &format!("{number:04x}"));
        let began = Instant::now();
        storage.put_new(&pack, &large).unwrap();
        let put = began.elapsed();
        assert!(storage.get(&pack, 32 << 20).unwrap() == large);
        let got = began.elapsed() - put;
        println!("32 MiB: put {put:.2?}, get {got:.2?}");
    }
}

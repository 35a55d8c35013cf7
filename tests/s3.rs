//! Backups, restores and checks on S3 through a server that lies: never wrong bytes, and no point
//! that was reported is lost.

#![allow(clippy::unwrap_used, reason = "a test may stop where it fails")]
#![allow(clippy::print_stdout, reason = "a test says what it skipped and what was done to it")]

use diskvault::backup::{BackupOptions, ChunkerChoice, Reading};
use diskvault::check::{CheckOptions, CheckReport, DataSubset};
use diskvault::environment::SystemEnvironment;
use diskvault::error::Result;
use diskvault::monitor::Silent;
use diskvault::repository::compression::Compression;
use diskvault::repository::locate::Locator;
use diskvault::repository::points::PointSet;
use diskvault::repository::secrets::Passphrase;
use diskvault::repository::{InitOptions, Repository, initialise};
use diskvault::restore::fetch::Fetcher;
use diskvault::restore::find_part;
use diskvault::restore::sequential::{Output, read_part};
use diskvault::source::InputKind;
use diskvault::storage::Storage;
use diskvault::storage::s3::{Findings, S3Options, S3Storage};
use diskvault_format::id::PointId;
use diskvault_format::key_slot::KdfCost;
use proxy::{Fault, Proxy};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

#[path = "s3/proxy.rs"]
mod proxy;
#[path = "support/s3.rs"]
mod s3_server;

const DISK_BYTES: usize = 768 << 10;

/// What was reported as done, and what has to come back.
type Done = Vec<(PointId, Vec<u8>)>;

fn password() -> Passphrase {
    Passphrase::new(b"a password for tests".to_vec())
}

fn noise(seed: u64) -> Vec<u8> {
    let mut data = vec![0; DISK_BYTES];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
    data
}

fn make(storage: &dyn Storage) {
    let options = InitOptions {
        passphrase: &password(),
        recovery: None,
        chunk_bytes: Some(32 << 10),
        pack_bytes: Some(256 << 10),
        parity_per_mille: 0,
        cost: KdfCost::RECOVERY,
        host: "test",
    };
    initialise(storage, &SystemEnvironment, &options).unwrap();
}

fn open(storage: S3Storage, cache: &Path) -> Result<Repository> {
    Repository::open(Arc::new(storage), Arc::new(SystemEnvironment), cache, &password())
}

/// Backs up bytes that follow from `seed`.
fn backup(repository: &Repository, folder: &Path, seed: u64) -> Result<(PointId, Vec<u8>)> {
    let (data, path) = (noise(seed), folder.join("disk.raw"));
    std::fs::write(&path, &data).unwrap();
    let input =
        diskvault::backup::InputRequest::new(Some("disk".into()), &path, Some(InputKind::Disk));
    let options = BackupOptions {
        series: "machine".into(),
        inputs: vec![input],
        chunker: ChunkerChoice::default(),
        compression: Compression::default(),
        stdin_name: None,
        tags: Vec::new(),
        time_unix_ns: None,
        digests: Vec::new(),
        host: "test".into(),
        reading: Reading::Full,
    };
    let report = diskvault::backup::run(repository, &options, &pool(), &Silent)?;
    Ok((report.point, data))
}

fn pool() -> Arc<rayon::ThreadPool> {
    Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap())
}

/// The bytes of a point's disk.
fn read(repository: &Repository, id: PointId) -> Result<Vec<u8>> {
    struct Gathered(Vec<u8>);
    impl Output for Gathered {
        fn data(&mut self, data: &[u8]) -> Result<()> {
            self.0.extend_from_slice(data);
            Ok(())
        }
    }
    let points = PointSet::load(repository)?;
    let missing =
        || diskvault::error::Error::new(diskvault::error::ErrorKind::NotFound, "no point");
    let point = points.points.iter().find(|point| point.id == id).ok_or_else(missing)?;
    let locator = Locator::open(repository, &Silent)?;
    let fetcher = Fetcher { repository, locator: &locator, threads: 2, monitor: &Silent };
    let mut gathered = Gathered(Vec::new());
    read_part(&fetcher, find_part(point, "disk")?, &mut gathered)?;
    Ok(gathered.0)
}

fn check(repository: &Repository) -> Result<CheckReport> {
    let options = CheckOptions { data: Some(DataSubset::All) };
    diskvault::check::run(repository, &options, &pool(), &Silent)
}

/// One round of work through the proxy. Errors are fine, wrong bytes are not.
fn work(options: S3Options, findings: Findings, done: &mut Done, seed: u64) -> Result<()> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let storage = S3Storage::open(options)?;
    storage.know(findings);
    let repository = open(storage, &folder.path().join("cache"))?;
    done.push(backup(&repository, folder.path(), seed)?);
    for (id, expected) in done.iter() {
        if let Ok(found) = read(&repository, *id) {
            assert!(found == *expected, "point {id} came back as something else");
        }
    }
    // Whatever it says: it must come to an end.
    let _ = check(&repository);
    Ok(())
}

fn lies(server: &s3_server::Server, fault: Fault) {
    let prefix = format!("lies-{fault:?}").to_lowercase();
    let clean = server.options("diskvault-lies", &prefix);
    let storage = S3Storage::create(clean.clone()).unwrap();
    let findings = storage.probe().unwrap();
    make(&storage);
    let proxy = Proxy::start(&server.endpoint, fault, 7);
    let mut evil = S3Options { endpoint: Some(proxy.endpoint.clone()), ..clean.clone() };
    evil.patience.in_all = Duration::from_secs(2);
    evil.patience.idle = Duration::from_millis(1000);
    let mut done = Done::new();
    let (mut errors, rounds) = (Vec::new(), 2);
    for round in 0..rounds {
        let seed = fault as u64 * 100 + round;
        if let Err(error) = work(evil.clone(), findings, &mut done, seed) {
            errors.push(error.full_text());
        }
    }
    println!(
        "{fault:?}: {} strikes, {} of {rounds} points: {errors:?}",
        proxy.struck(),
        done.len()
    );
    assert!(proxy.struck() > 0, "{fault:?} never struck");

    // What was reported is there, and whole.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let storage = S3Storage::open(clean).unwrap();
    storage.know(findings);
    let repository = open(storage, &folder.path().join("cache")).unwrap();
    for (id, expected) in &done {
        assert!(read(&repository, *id).unwrap() == *expected, "{fault:?}");
    }
    let report = check(&repository).unwrap();
    assert_eq!(report.damage_count(), 0, "{fault:?}: {:?}", report.findings);
}

#[test]
fn no_lie_of_a_server_gives_wrong_bytes_or_loses_a_point() {
    // Signatures are not made anew behind the proxy; moto does not look at them.
    let Some(server) = s3_server::Server::moto() else { return };
    server.make_bucket("diskvault-lies", false);
    std::thread::scope(|scope| {
        for fault in Fault::SOME {
            let server = &server;
            scope.spawn(move || lies(server, fault));
        }
    });
}

#[test]
fn a_server_whose_puts_are_not_seen_is_refused() {
    let Some(server) = s3_server::Server::moto() else { return };
    server.make_bucket("diskvault-lies", false);
    for (fault, text) in [
        (Fault::StaleLists, "a completed put is not seen by the next list"),
        (Fault::DropAllPuts, "a completed put is not seen by the next get"),
    ] {
        let clean = server.options("diskvault-lies", &format!("refused-{}", fault as u8));
        let proxy = Proxy::start(&server.endpoint, fault, 1);
        let evil = S3Options { endpoint: Some(proxy.endpoint.clone()), ..clean.clone() };
        let storage = S3Storage::create(evil).unwrap();
        let error = storage.probe().unwrap_err();
        assert_eq!(error.kind(), diskvault::error::ErrorKind::Storage);
        assert!(error.full_text().contains(text), "{error:?}");
        // It has cleaned up, and nothing else is there.
        S3Storage::create(clean).unwrap();
    }
}

//! What a backup asks a far storage for: in how many rounds, of which each waits for the one before, and
//! what of it lies in the cache of this host.

#![allow(clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;

use diskvault::backup::{self, Hint, InputRequest};
use diskvault::error::{Error, ErrorKind, Result};
use diskvault::repository::points::PointSet;
use diskvault::repository::{InitOptions, Repository, initialise};
use diskvault::source::InputKind;
use diskvault::storage::memory::{MemoryStorage, Operation};
use diskvault::storage::{Folder, ObjectEntry, ObjectName, Storage};
use diskvault_format::key_slot::KdfCost;
use diskvault_format::pack::{PackKind, decode_header};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use support::vault::{PASSWORD, Parts, SeededEnvironment, Vault, noise, options, passphrase};

/// Who waits so long for the others of a round does not get them.
const PATIENCE: Duration = Duration::from_secs(30);

/// A storage that answers a round of calls when all of them have been made.
struct Rounds {
    inner: MemoryStorage,
    script: Mutex<Script>,
    changed: Condvar,
}

#[derive(Default)]
struct Script {
    rounds: Vec<Vec<&'static str>>,
    /// Which of the current round have come.
    come: Vec<&'static str>,
    number: usize,
    wrong: Vec<String>,
}

impl Rounds {
    fn new(inner: &MemoryStorage, rounds: &[&[&'static str]]) -> Arc<Rounds> {
        let rounds = rounds.iter().map(|round| round.to_vec()).collect();
        let script = Mutex::new(Script { rounds, ..Script::default() });
        Arc::new(Rounds { inner: inner.clone(), script, changed: Condvar::new() })
    }

    /// Lets a call pass with all others of its round.
    fn wait(&self, verb: &str, name: &str) -> Result<()> {
        let call = format!("{verb} {}", if name.ends_with(".ok") { "ok" } else { folder_of(name) });
        let mut script = self.script.lock().unwrap();
        let number = script.number;
        let expected = script.rounds.get(number).cloned().unwrap_or_default();
        let Some(call) = expected.iter().find(|it| **it == call && !script.come.contains(it))
        else {
            script.wrong.push(format!("{call} in round {number}, which is {expected:?}"));
            return Err(Error::new(ErrorKind::Storage, "not in the script"));
        };
        script.come.push(call);
        if script.come.len() == expected.len() {
            script.come.clear();
            script.number += 1;
            self.changed.notify_all();
            return Ok(());
        }
        let began = Instant::now();
        while script.number == number {
            if began.elapsed() > PATIENCE {
                script.wrong.push(format!("{call} is alone in round {number}: {expected:?}"));
                return Err(Error::new(ErrorKind::Storage, "not asked for at once"));
            }
            script = self.changed.wait_timeout(script, PATIENCE).unwrap().0;
        }
        Ok(())
    }
}

fn folder_of(name: &str) -> &str {
    name.split('/').next().unwrap_or_default()
}

impl Storage for Rounds {
    fn put_new(&self, name: &ObjectName, data: &[u8]) -> Result<()> {
        self.wait("put", name.as_str())?;
        self.inner.put_new(name, data)
    }
    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        self.wait("get", name.as_str())?;
        self.inner.get(name, bytes_max)
    }
    fn get_range(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.wait("range", name.as_str())?;
        self.inner.get_range(name, offset, buffer)
    }
    fn get_tail(&self, name: &ObjectName, bytes: usize) -> Result<(Vec<u8>, u64)> {
        self.wait("tail", name.as_str())?;
        self.inner.get_tail(name, bytes)
    }
    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.wait("size", name.as_str())?;
        self.inner.size(name)
    }
    fn list(&self, folder: Folder) -> Result<Vec<ObjectEntry>> {
        self.wait("list", folder.name())?;
        self.inner.list(folder)
    }
    fn foreign(&self) -> Result<Vec<String>> {
        self.wait("foreign", "")?;
        self.inner.foreign()
    }
    fn delete(&self, name: &ObjectName) -> Result<()> {
        self.wait("delete", name.as_str())?;
        self.inner.delete(name)
    }
    fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<()> {
        self.wait("rename", from.as_str())?;
        self.inner.rename(from, to)
    }
    fn calls_at_once(&self) -> usize {
        8
    }
    fn location(&self) -> String {
        self.inner.location()
    }
}

/// A machine of one disk.
fn machine() -> Parts {
    Parts::from([("vda".to_string(), noise(7, 3_000_000))])
}

/// A far repository with a point that a host with the cache "host" has made.
fn far() -> Vault {
    let mut vault = Vault::new(1);
    vault.storage.set_calls_at_once(8);
    let repository = vault.open("host").unwrap();
    vault.backup(&repository, "web01", &machine()).unwrap();
    vault
}

#[test]
fn a_backup_of_an_unchanged_disk_waits_ten_times_for_a_far_storage() {
    let vault = far();
    let rounds = Rounds::new(
        &vault.storage,
        &[
            &["list config", "list keys", "get instance"],
            &["get config", "get keys"],
            &["put leases"],
            &["list condemned"],
            &["list packs"],
            &["list points", "list lost"],
            &["put points"],
            &["size leases"],
            &["put ok"],
            &["delete leases", "list points"],
        ],
    );
    let secret = passphrase(PASSWORD);
    let environment = vault.environment.clone();
    let made = Repository::open(rounds.clone(), environment, &vault.cache("host"), &secret)
        .and_then(|it| vault.try_backup(&it, "web01", &machine(), &diskvault::monitor::Silent));
    let script = rounds.script.lock().unwrap();
    assert_eq!(script.wrong, Vec::<String>::new());
    assert_eq!(made.unwrap().manifest.sequence, 2);
    assert_eq!(script.number, script.rounds.len());
}

/// Packs that a backup puts of two disks of which a list tells what has changed, 5 MiB each.
fn packs_of_two_disks(calls_at_once: usize) -> usize {
    let vault = Vault::empty(Arc::new(SeededEnvironment::new(1)));
    vault.storage.set_calls_at_once(calls_at_once);
    let secret = passphrase(PASSWORD);
    let made = InitOptions {
        passphrase: &secret,
        recovery: None,
        chunk_bytes: None,
        pack_bytes: None,
        parity_per_mille: 0,
        cost: KdfCost::RECOVERY,
        host: "host",
    };
    initialise(&vault.storage, vault.environment.as_ref(), &made).unwrap();
    let repository = vault.open("host").unwrap();
    let disks = ["vda", "vdb"].map(|name| (name, vault.folder.path().join(name)));
    let mut hint = None;
    let mut before = 0;
    for seed in [0, 10] {
        let mut inputs = Vec::new();
        for (number, (name, path)) in disks.iter().enumerate() {
            let mut data = noise(number as u64, 8 << 20);
            data[1 << 20..6 << 20].copy_from_slice(&noise(seed + 5 + number as u64, 5 << 20));
            std::fs::write(path, data).unwrap();
            let kind = Some(InputKind::Disk);
            let mut input = InputRequest::new(Some(name.to_string()), path, kind);
            input.hint.clone_from(&hint);
            inputs.push(input);
        }
        before = vault.names(Folder::Packs).len();
        let silent = diskvault::monitor::Silent;
        let report = backup::run(&repository, &options("web01", inputs), &vault.pool, &silent);
        let point = PointSet::load(&repository).unwrap().latest("web01").unwrap().clone();
        assert_eq!(report.unwrap().point, point.id);
        let changed = std::iter::once(1 << 20..6 << 20).collect();
        let told_by = "the test".to_string();
        hint = Some(Arc::new(Hint { base: point, changed, told_by, unfit: None }));
    }
    vault.names(Folder::Packs).len() - before
}

#[test]
fn data_go_over_a_line_while_more_is_read() {
    // One of data and one of maps.
    assert_eq!(packs_of_two_disks(2), 2);
    // That of the first disk is on its way before the second one is begun.
    assert_eq!(packs_of_two_disks(8), 3);
}

#[test]
fn a_far_backup_reads_its_own_maps_from_the_cache() {
    let vault = far();
    let packs_read = |host: &str| {
        let repository = vault.open(host).unwrap();
        let before = vault.storage.log().len();
        let report =
            vault.try_backup(&repository, "web01", &machine(), &diskvault::monitor::Silent);
        assert_eq!(report.unwrap().statistics.unchanged_bytes, 3_000_000);
        let log = vault.storage.log().split_off(before);
        let is_of_pack = |(operation, name): &&(Operation, String)| {
            matches!(operation, Operation::Get | Operation::Range) && name.starts_with("packs/")
        };
        log.iter().filter(is_of_pack).count()
    };
    assert_eq!(packs_read("host"), 0);
    // One that has no cache reads the footers of all packs, and the map.
    let packs = vault.names(Folder::Packs).len();
    assert!(packs_read("another") > packs);
}

#[test]
fn a_map_that_was_cut_over_there_is_stored_anew_whatever_the_cache_holds() {
    let mut vault = far();
    for name in vault.names(Folder::Packs) {
        let data = vault.storage.snapshot().remove(&name).unwrap();
        let is_map = decode_header(&data).unwrap().identity.kind == PackKind::Map;
        if is_map {
            vault.storage.insert(name, &data[..data.len() / 2]);
        }
    }
    let repository = vault.open("host").unwrap();
    let report = vault.backup(&repository, "web01", &machine()).unwrap();
    let restored = vault.restore_all(&vault.open("another").unwrap()).unwrap();
    assert!(restored[&report.point].is_ok(), "{restored:?}");
}

//! Every byte of every object of a small repository is flipped, one at a time: a check that reads
//! everything notices each, and parity heals every pack.
//!
//! The usual run takes every byte of the small objects and a sample of packs and parity, at a
//! distance that is prime, so that over all objects every field is met. `DISKVAULT_EVERY_BYTE=1`
//! takes all (docs/testing.md).

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]
#![allow(clippy::print_stdout, reason = "a test says how many bytes it flipped")]

mod support;

use diskvault::monitor::Silent;
use diskvault::repair::{RepairOptions, heal_damaged, run as run_repair};
use diskvault::repository::Repository;
use diskvault::repository::condemned::Patience;
use diskvault::repository::lost::put_lists;
use diskvault::repository::notes::put_note;
use diskvault::repository::points::{Point, PointSet};
use diskvault::repository::session::Session;
use diskvault::retention::forget::{ForgetOptions, forget};
use diskvault::storage::Folder;
use diskvault_format::id::PackId;
use diskvault_format::small::NOTE_TAG;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::vault::{Parts, Vault, damage_of, noise};

/// Distance of the bytes that the usual run takes of packs and parity.
const STRIDE: usize = 211;
/// Of the packs that heal, one in so many is healed by a whole repair.
const REPAIR_EVERY: usize = 97;

/// One data pack, one map pack, and an object of every other kind.
fn small_repository() -> Vault {
    let mut vault = Vault::with_parity(1, 20);
    let repository = vault.open("host").unwrap();
    let parts = |day| {
        let mut disk = noise(1, 12 << 10);
        disk.extend(noise(day, 8 << 10));
        Parts::from([("vda".to_string(), disk), ("conf".to_string(), noise(9, 700))])
    };
    vault.backup(&repository, "web01", &parts(1)).unwrap();
    let second = vault.backup(&repository, "web01", &parts(1)).unwrap().point;
    vault.backup(&repository, "web01", &parts(1)).unwrap();
    let points = PointSet::load(&repository).unwrap().points;
    let going: Vec<&Point> = points.iter().filter(|point| point.id == second).collect();
    let options = ForgetOptions { host: "host", reason: "policy", ends_pins: false };
    forget(&repository, &going, &options, &Silent).unwrap();
    let tag = vec![("purpose".to_string(), "test".to_string())];
    put_note(&repository, points[0].id, NOTE_TAG, "host", tag).unwrap();
    put_lists(&repository, &BTreeSet::from([[7; 32]])).unwrap();
    // A writer that died: its lease stays.
    std::mem::forget(Session::begin(&repository, "dead", &Silent).unwrap());
    vault
}

fn is_noticed(vault: &Vault, repository: Option<&Repository>) -> bool {
    let opened;
    let repository = match repository {
        Some(repository) => repository,
        None => match vault.open("stranger") {
            Ok(repository) => {
                opened = repository;
                // What is wrong with a config or a slot is a warning of the opening.
                if !opened.warnings().is_empty() {
                    return true;
                }
                &opened
            }
            Err(_) => return true,
        },
    };
    vault.check(repository, true).unwrap().damage_count() > 0
}

/// Flips byte `at` of an object; what nobody notices, or does not heal, is told.
fn flip(vault: &Vault, repository: &Repository, name: &str, at: usize) -> Option<String> {
    let mut good = Vec::new();
    vault.storage.corrupt(name, |bytes| {
        good.clone_from(bytes);
        bytes[at] ^= 1 << (at % 8);
    });
    let is_pack = name.starts_with("packs/");
    let is_large = is_pack || name.starts_with("parity/");
    let noticed = is_noticed(vault, is_large.then_some(repository));
    let mut healed = true;
    if is_pack {
        let id = PackId::from_hex(name.rsplit('/').next().unwrap()).unwrap();
        if at.is_multiple_of(REPAIR_EVERY) {
            let patience = Patience { stands_still: Duration::from_secs(3600), waits: false };
            let options = RepairOptions { packs: &[id], patience, host: "host", is_dry_run: false };
            let report =
                run_repair(repository, &options, &vault.pool, &|_| Ok(()), &Silent).unwrap();
            healed = report.healed == [id] && report.lost == 1;
        } else {
            healed = heal_damaged(repository, &[id], &Silent).unwrap().healed == [id];
        }
        let all = vault.storage.snapshot();
        healed &= all[name] == good;
        for aside in all.keys().filter(|name| name.starts_with("aside/")) {
            vault.storage.remove(aside);
        }
    }
    vault.storage.insert(name, good);
    let what = match (noticed, healed) {
        (true, true) => return None,
        (false, _) => "was not noticed",
        (true, false) => "was not healed",
    };
    Some(format!("byte {at} of {name} {what}"))
}

#[test]
fn no_flipped_byte_goes_unnoticed_and_parity_heals_every_pack() {
    let base = small_repository();
    let repository = base.open("host").unwrap();
    assert_eq!(damage_of(&base.check(&repository, true).unwrap()), "");
    let takes_all = std::env::var_os("DISKVAULT_EVERY_BYTE").is_some();
    let mut wanted: Vec<(String, usize)> = Vec::new();
    let mut folders: BTreeMap<String, usize> = BTreeMap::new();
    for (name, bytes) in base.storage.snapshot() {
        let folder = name.split('/').next().unwrap().to_string();
        let is_large = ["packs", "parity"].contains(&folder.as_str());
        let step = if is_large && !takes_all { STRIDE } else { 1 };
        // Both ends whole: they have the most to say.
        let is_end = |at: usize| at < 320 || at + 320 >= bytes.len();
        let taken = (0..bytes.len())
            .filter(|at| at % step == 0 || takes_all || (is_large && is_end(*at) && at % 7 == 0));
        let before = wanted.len();
        wanted.extend(taken.map(|at| (name.clone(), at)));
        *folders.entry(folder).or_default() += wanted.len() - before;
    }
    for folder in [
        Folder::Config,
        Folder::Instance,
        Folder::Keys,
        Folder::Packs,
        Folder::Points,
        Folder::Notes,
        Folder::Lost,
        Folder::Parity,
        Folder::Leases,
        Folder::Trash,
    ] {
        assert!(folders.contains_key(folder.name()), "{folder}: {folders:?}");
    }
    let next = AtomicUsize::new(0);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let work = |seed| {
            let (base, wanted, next) = (&base, &wanted, &next);
            move || {
                let vault = base.copy(seed);
                let repository = vault.open("host").unwrap();
                let mut failures = Vec::new();
                while let Some((name, at)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    failures.extend(flip(&vault, &repository, name, *at));
                }
                failures
            }
        };
        let threads = [scope.spawn(work(2)), scope.spawn(work(3))];
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    println!("flipped {} bytes: {folders:?}", wanted.len());
    assert!(
        failures.is_empty(),
        "{} of {}: {:#?}",
        failures.len(),
        wanted.len(),
        &failures[..failures.len().min(20)]
    );
}

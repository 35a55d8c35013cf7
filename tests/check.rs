//! What `check` says beyond that there is damage: whom it touches, and what it has read.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;

use diskvault::check::{self, CheckOptions, CheckReport, DataSubset};
use diskvault::environment::Environment;
use diskvault::monitor::Silent;
use diskvault::repository::Repository;
use diskvault::repository::locate::Locator;
use diskvault::repository::pack_reader::pack_name;
use diskvault::storage::Folder;
use diskvault::storage::memory::Operation;
use diskvault_format::id::PackId;
use diskvault_format::pack::PackKind;
use std::collections::BTreeSet;
use std::time::Duration;
use support::vault::{CHUNK_BYTES, Parts, SeededEnvironment, Vault, damage_of, noise};

const CHUNKS: usize = 200;

/// A disk of which nothing compresses, with a zero chunk in front.
fn disk(seed: u64) -> Parts {
    let mut bytes = noise(seed, CHUNKS * CHUNK_BYTES as usize);
    bytes[..CHUNK_BYTES as usize].fill(0);
    Parts::from([("vda".to_string(), bytes)])
}

fn run(vault: &Vault, repository: &Repository, data: DataSubset) -> CheckReport {
    let options = CheckOptions { data: Some(data) };
    check::run(repository, &options, &vault.pool, &Silent).unwrap()
}

/// A data pack, and its footer's first segment: offset, length and entries.
fn first_data_segment(repository: &Repository) -> (PackId, u64, usize, Vec<[u8; 32]>) {
    let locator = Locator::open(repository, &Silent).unwrap();
    let packs = locator.listed().iter();
    let mut open = packs.map(|id| locator.pack(repository, *id).unwrap());
    let pack = open.find(|pack| pack.kind == PackKind::Data).unwrap();
    let segment = &pack.footer.segments[0];
    let ids = segment.entries.iter().map(|entry| entry.id).collect();
    (pack.id, u64::from(segment.offset), segment.stored_bytes() as usize, ids)
}

#[test]
fn damage_names_the_points_the_disks_and_the_bytes_that_it_touches() {
    let mut vault = Vault::new(1);
    let repository = vault.open("host").unwrap();
    let first = vault.backup(&repository, "web01", &disk(1)).unwrap().point;
    let mut changed = disk(1);
    changed.get_mut("vda").unwrap()[(CHUNKS - 1) * CHUNK_BYTES as usize] ^= 1;
    let second = vault.backup(&repository, "web01", &changed).unwrap().point;
    vault.backup(&repository, "other", &disk(2)).unwrap();
    let (pack, offset, bytes, ids) = first_data_segment(&repository);
    // Which chunks of which disk these are, from the bytes themselves.
    let is_hit = |content: &[u8]| ids.contains(&repository.keys().chunk_id(content).0);
    let mut expected = BTreeSet::new();
    for (point, parts) in &vault.known {
        for (number, chunk) in parts["vda"].chunks(CHUNK_BYTES as usize).enumerate() {
            if is_hit(chunk) {
                expected.insert((*point, number as u64));
            }
        }
    }
    assert!(expected.len() >= ids.len());
    let flip = |bytes_: &mut Vec<u8>| bytes_[offset as usize + bytes / 2] ^= 1;
    assert!(vault.storage.corrupt(pack_name(pack).unwrap(), flip));
    let report = run(&vault, &repository, DataSubset::All);
    let text = damage_of(&report);
    assert!(text.contains(&format!("pack {pack} is damaged")), "{text}");
    assert!(text.contains(" of its ") && text.contains("segments can be read"), "{text}");
    assert_eq!(report.damaged_packs, [pack]);
    let mut found = BTreeSet::new();
    for affected in report.findings.iter().filter_map(|finding| finding.affected.clone()) {
        let range = affected.bytes.unwrap();
        assert_eq!(affected.part, "vda");
        let chunks = range.start / u64::from(CHUNK_BYTES)..range.end / u64::from(CHUNK_BYTES);
        found.extend(chunks.map(|number| (affected.point, number)));
    }
    assert_eq!(found, expected);
    let touched: Vec<_> = report.affected_points().into_iter().collect();
    assert!(touched.len() <= 2, "{touched:?}");
    for (series, point) in touched {
        assert!(series == "other" || point == first || point == second);
    }
    // Many chunks that follow each other are one finding.
    assert!(report.damage_count() <= 5, "{text}");
}

/// The packs of which segments were read, in the order in which they were begun.
fn read_order(vault: &Vault, from: u64) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    for (operation, name) in vault.storage.log().into_iter().skip(from as usize) {
        if operation == Operation::Size && name.starts_with("packs/") && !order.contains(&name) {
            order.push(name);
        }
    }
    order
}

#[test]
fn a_budget_begins_with_what_was_not_read_for_longest() {
    let mut vault = Vault::new(2);
    vault.pool =
        std::sync::Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap());
    let repository = vault.open("host").unwrap();
    vault.backup(&repository, "web01", &disk(1)).unwrap();
    let packs = vault.names(Folder::Packs);
    assert!(packs.len() >= 4);
    // Nothing fits into no time.
    let report = run(&vault, &repository, DataSubset::Budget(Duration::ZERO));
    assert_eq!((report.packs_read, report.coverage.unwrap().unread_packs), (0, packs.len() as u64));
    let before = vault.storage.operations();
    let report = run(&vault, &repository, DataSubset::Part { number: 1, of: 2 });
    let first: Vec<String> = read_order(&vault, before);
    assert_eq!(report.packs_read, first.len() as u64);
    assert!(!first.is_empty() && first.len() < packs.len());
    let unread = packs.len() - first.len();
    assert_eq!(report.coverage.unwrap().unread_packs, unread as u64);
    let before = vault.storage.operations();
    let report = run(&vault, &repository, DataSubset::Budget(Duration::from_secs(3600)));
    let order = read_order(&vault, before);
    assert_eq!(order.len(), packs.len());
    assert!(order[..unread].iter().all(|name| !first.contains(name)), "{order:?}, {first:?}");
    let coverage = report.coverage.unwrap();
    assert_eq!((coverage.unread_packs, report.packs_read), (0, packs.len() as u64));
    assert!(coverage.oldest_seconds < 3600, "{coverage:?}");
    // One that turns out damaged counts as unread, and is the first of the next run.
    let last = order.last().unwrap();
    assert!(vault.storage.corrupt(last, |bytes| bytes[300] ^= 1));
    let report = run(&vault, &repository, DataSubset::Budget(Duration::from_secs(3600)));
    assert_eq!((report.damaged_packs.len(), report.coverage.unwrap().unread_packs), (1, 1));
    let before = vault.storage.operations();
    run(&vault, &repository, DataSubset::Budget(Duration::from_secs(3600)));
    assert_eq!(&read_order(&vault, before)[0], last);
}

#[test]
fn without_a_key_every_object_is_compared_with_its_name() {
    let mut vault = Vault::new(3);
    let repository = vault.open("host").unwrap();
    vault.backup(&repository, "web01", &disk(1)).unwrap();
    let environment = SeededEnvironment::new(9);
    let check = |vault: &Vault| {
        let environment: &dyn Environment = &environment;
        check::check_names(&vault.storage, environment, &DataSubset::All, &vault.pool, &Silent)
    };
    let report = check(&vault).unwrap();
    assert_eq!((report.damage_count(), report.points), (0, 1));
    assert_eq!(report.packs_read, vault.names(Folder::Packs).len() as u64);
    assert!(report.bytes_read > (CHUNKS as u64 - 1) * u64::from(CHUNK_BYTES));
    let hashed = [Folder::Packs, Folder::Keys].map(|folder| vault.names(folder)).concat();
    let manifests = vault.names(Folder::Points).into_iter().filter(|name| !name.ends_with(".ok"));
    for name in hashed.into_iter().chain(manifests) {
        let damaged = vault.copy(1);
        assert!(damaged.storage.corrupt(&name, |bytes| *bytes.last_mut().unwrap() ^= 1));
        let text = damage_of(&check(&damaged).unwrap());
        assert!(text.contains(&name) && text.contains("rule N-3"), "{name}: {text}");
    }
    let damaged = vault.copy(1);
    assert!(damaged.storage.corrupt("instance", |bytes| bytes[20] ^= 1));
    assert!(damage_of(&check(&damaged).unwrap()).contains("instance"));
}

//! Runs one operation with a fault at operation N, then looks at what is left.
//!
//! Invariants asserted for every N: what was reported as done restores byte for byte; a check that
//! reads everything finds no damage; the next run goes on by itself and stores no more than what
//! was lost.

use crate::support::vault::{Parts, Vault, damage_of, noise};
use diskvault::error::{ErrorKind, Result};
use diskvault::monitor::Silent;
use diskvault::repository::Repository;
use diskvault::repository::pack_reader::open_pack;
use diskvault::repository::points::{PointSet, read_manifest};
use diskvault::storage::memory::{Fault, FaultKind, MemoryStorage};
use diskvault::storage::{Folder, Storage};
use diskvault_format::id::PackId;
use diskvault_format::pack::PackKind;

/// Everything that can go wrong, and whether it goes on going wrong. The storage that fails from
/// N on is also what a process that is killed before N leaves: nothing of it happens any more.
pub const FAULTS: [(FaultKind, bool); 6] = [
    (FaultKind::Error, true),
    (FaultKind::Error, false),
    (FaultKind::NoSpace, false),
    (FaultKind::PowerCut, true),
    (FaultKind::TornPut { visible: false }, true),
    (FaultKind::LostReply, true),
];

/// What a machine holds on a day: several packs.
pub fn machine(day: u64) -> Parts {
    let mut disk = noise(50, 384 << 10);
    disk.extend_from_slice(&[0; 64 << 10]);
    let from = (day as usize * 48) << 10;
    disk[from..from + (256 << 10)].copy_from_slice(&noise(60 + day, 256 << 10));
    Parts::from([("vda".into(), disk), ("conf".into(), noise(70 + day, 20_000))])
}

/// Uncompressed bytes of all chunks in data packs.
pub fn chunk_bytes(vault: &Vault, repository: &Repository) -> u64 {
    let packs = vault.storage.list(Folder::Packs).unwrap();
    let each = |id: PackId| {
        let pack = open_pack(&vault.storage, repository.keys(), id).unwrap();
        let raw = pack.footer.segments.iter().map(|segment| u64::from(segment.raw_bytes()));
        if pack.kind == PackKind::Data { raw.sum() } else { 0 }
    };
    packs.iter().filter_map(|entry| PackId::from_hex(entry.name.leaf())).map(each).sum()
}

/// Sets a fault at the `n`th operation from now.
pub fn set(storage: &MemoryStorage, n: u64, kind: FaultKind, once: bool) {
    let at_operation = storage.operations() + n;
    storage.set_fault(Fault { at_operation, kind, once });
}

/// The machine comes back.
pub fn recover(storage: &MemoryStorage) {
    storage.clear_faults();
    storage.restore_power();
}

/// How many operations `work` takes without any fault.
pub fn count(vault: &Vault, work: impl FnOnce(&mut Vault)) -> u64 {
    let mut copy = vault.copy(900);
    let before = copy.storage.operations();
    work(&mut copy);
    copy.storage.operations() - before
}

/// One backup of day `day` with a fault, and everything after it.
pub fn backup_with_fault(base: &Vault, day: u64, n: u64, kind: FaultKind, once: bool) {
    let what = format!("day {day}, {kind:?} at {n}, once {once}");
    let mut vault = base.copy(1000 + n);
    let repository = vault.open("host").unwrap();
    let before = chunk_bytes(&vault, &repository);
    let contents = machine(day);
    let clean_bytes = clean_new_bytes(base, day);
    set(&vault.storage, n, kind, once);
    let result = vault.backup(&repository, "web01", &contents);
    recover(&vault.storage);
    drop(repository);
    if let Err(error) = &result {
        assert_clear(error.kind(), kind, &what);
    }
    adopt(&mut vault, &contents);
    for cache in ["host", "stranger"] {
        assert_whole(&vault, cache, &what);
    }
    let repository = vault.open("host").unwrap();
    let survived = chunk_bytes(&vault, &repository) - before;
    let next = vault.backup(&repository, "web01", &contents).expect(&what);
    let lost = clean_bytes - survived;
    assert!(
        next.statistics.new_bytes <= lost,
        "{what}: stored more than the {lost} that were lost"
    );
    assert_whole(&vault, "later", &what);
}

/// What a backup without a fault stores.
fn clean_new_bytes(base: &Vault, day: u64) -> u64 {
    let mut vault = base.copy(7);
    let repository = vault.open("clean").unwrap();
    vault.backup(&repository, "web01", &machine(day)).unwrap().statistics.new_bytes
}

/// Full space is told as such, everything else as a failure of the storage.
fn assert_clear(found: ErrorKind, fault: FaultKind, what: &str) {
    let expected = match fault {
        FaultKind::NoSpace => ErrorKind::NoSpace,
        _ => ErrorKind::Storage,
    };
    assert_eq!(found, expected, "{what}");
}

/// A backup that failed may all the same have made its point: the answer was lost. It has to
/// hold what was backed up.
pub fn adopt(vault: &mut Vault, contents: &Parts) {
    let repository = vault.open("adopt").unwrap();
    for point in PointSet::load(&repository).unwrap().points {
        vault.known.entry(point.id).or_insert_with(|| contents.clone());
    }
}

/// No damage, and every point that was reported as done is visible and restores.
pub fn assert_whole(vault: &Vault, cache: &str, what: &str) {
    let repository = vault.open(cache).expect(what);
    let report = vault.check(&repository, true).unwrap();
    assert_eq!(damage_of(&report), "", "{what}");
    let outcomes = vault.restore_all(&repository).unwrap();
    for point in vault.known.keys() {
        match outcomes.get(point) {
            Some(Ok(())) => {}
            Some(Err(error)) => panic!("{what}: point {point}: {error:?}"),
            None => panic!("{what}: point {point} is gone"),
        }
    }
    // What is unfinished is whole as an object.
    for id in PointSet::load(&repository).unwrap().unfinished {
        read_manifest(&repository, Folder::Points, id).expect(what);
    }
}

/// A backup that nobody disturbs.
pub fn quiet_backup(vault: &mut Vault, day: u64) -> Result<()> {
    let repository = vault.open("host")?;
    vault.try_backup(&repository, "web01", &machine(day), &Silent).map(|_| ())
}

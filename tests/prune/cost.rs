//! What a prune reads, and that it does so on the word of an index which it does not believe.

use super::*;
use diskvault::backup::BackupReport;
use diskvault::index::ChunkIndex;
use diskvault::repository::entries::prefix;
use diskvault::repository::pack_reader::{OpenPack, open_pack};
use diskvault::storage::memory::MemoryStorage;
use diskvault::storage::{ObjectEntry, ObjectName};
use diskvault_format::id::PackId;
use diskvault_format::pack::PackKind;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use support::vault::{PASSWORD, passphrase};

fn packs(vault: &Vault) -> BTreeMap<String, OpenPack> {
    let repository = vault.open("looker").unwrap();
    let names = vault.names(Folder::Packs).into_iter();
    names
        .map(|name| {
            let id = PackId::from_hex(name.rsplit('/').next().unwrap()).unwrap();
            let pack = open_pack(&vault.storage, repository.keys(), id).unwrap();
            (name, pack)
        })
        .collect()
}

fn count_of(vault: &Vault, from: u64, to: u64, operation: Operation) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (found, name) in &vault.storage.log()[from as usize..to as usize] {
        if *found == operation {
            *counts.entry(name.clone()).or_default() += 1;
        }
    }
    counts
}

/// Remembers how many operations there were when each stage began.
struct Stages<'a>(&'a Vault, Mutex<BTreeMap<String, u64>>);

impl Monitor for Stages<'_> {
    fn start(&self, stage: &str, _total: Option<u64>) {
        self.1.lock().unwrap().insert(stage.to_string(), self.0.storage.operations());
    }
}

/// Each day changes a few chunks all over the disk, so that they are one segment, which the order of
/// the disk meets again and again; and something of each pack of the first day, so that more is
/// copied between than is read at once.
#[test]
fn what_is_needed_of_a_segment_is_copied_when_it_is_read() {
    const CHUNK: usize = 4096;
    let mut vault = Vault::new(1);
    let repository = vault.open("host").unwrap();
    let mut disk = noise(1, 24 << 20);
    let mut ids = Vec::new();
    for day in 0..8 {
        for place in 0..14 {
            let at = (place * 400 + day * 7) * CHUNK;
            disk[at..at + CHUNK].copy_from_slice(&noise((day * 100 + place + 9) as u64, CHUNK));
        }
        if day == 1 {
            for at in (8 * CHUNK..disk.len()).step_by(16 * CHUNK) {
                disk[at..at + CHUNK].copy_from_slice(&noise(9000 + at as u64, CHUNK));
            }
        }
        // What each day has for itself.
        disk[..CHUNK].copy_from_slice(&noise(5000 + day as u64, CHUNK));
        let contents = Parts::from([("vda".to_string(), disk.clone())]);
        ids.push(vault.backup(&repository, "web01", &contents).unwrap().point);
    }
    let last = ids.pop().unwrap();
    forget_ids(&mut vault, &repository, &ids);
    let before = packs(&vault);
    let stages = Stages(&vault, Mutex::default());
    let pool = &vault.pool;
    let report =
        diskvault::prune::run(&repository, &options(PATIENT), pool, &|_| Ok(()), &stages).unwrap();
    assert!(report.copied_bytes > 20 << 20, "{report:?}");
    let stages = stages.1.into_inner().unwrap();
    let (from, to) = (stages["copying what is needed"], stages["marking again"]);
    let reads = count_of(&vault, from, to, Operation::Range);
    let mut days = 0;
    for (name, pack) in before.iter().filter(|(_, pack)| pack.kind == PackKind::Data) {
        let count = reads.get(name).copied().unwrap_or(0);
        let segments = pack.footer.segments.len();
        // And the footer.
        assert!(count <= segments + 1, "{count} reads of {segments} segments");
        days += u32::from(count > 0 && segments == 1);
    }
    assert!(days > 3, "{days}");
    assert!(vault.known.contains_key(&last));
    assert_whole(&vault, "stranger", "pruned");
}

#[test]
fn the_first_mark_asks_the_index_and_opens_only_packs_that_are_partly_needed() {
    let (mut vault, ids) = with_four_days();
    let repository = vault.open("host").unwrap();
    // The index knows all packs from now on.
    prune(&vault, &repository, PATIENT).unwrap();
    let opened = |vault: &Vault| {
        let repository = vault.open("host").unwrap();
        let from = vault.storage.operations();
        let outlook = foresee(vault, &repository, &[]);
        let reads = count_of(vault, from, vault.storage.operations(), Operation::Range);
        (reads, outlook)
    };
    let packs = packs(&vault);
    let is_data = |name: &&String| packs[*name].kind == PackKind::Data;
    let (reads, outlook) = opened(&vault);
    assert_eq!(reads.keys().filter(is_data).count(), 0, "all is needed");
    let segments = packs.values().flat_map(|pack| &pack.footer.segments);
    let bytes: u64 = segments.map(|segment| u64::from(segment.stored_bytes())).sum();
    assert_eq!(outlook.used_bytes, bytes, "as the footers say");
    forget_ids(&mut vault, &repository, &ids[..3]);
    let (reads, outlook) = opened(&vault);
    let gone = outlook.plan.delete.iter().map(|id| format!("packs/{}/{id}", &id.to_hex()[..2]));
    assert!(gone.clone().count() > 0 && !outlook.plan.repack.is_empty());
    assert!(gone.into_iter().all(|name| !reads.contains_key(&name)), "{reads:?}");
}

/// The index says of all chunks that they are in a pack that nobody needs.
#[test]
fn a_wrong_index_costs_nothing_that_is_needed() {
    let mut base = Vault::new(1);
    let repository = base.open("host").unwrap();
    let contents = Parts::from([("vda".to_string(), noise(90, 512 << 10))]);
    let gone = base.backup(&repository, "db01", &contents).unwrap().point;
    base.backup(&repository, "web01", &machine(1)).unwrap();
    forget_ids(&mut base, &repository, &[gone]);
    drop(repository);
    let mut packs: Vec<OpenPack> = packs(&base).into_values().collect();
    packs.retain(|pack| pack.kind == PackKind::Data);
    for (liar, max_unused) in
        packs.iter().flat_map(|pack| [(pack, Unused::Unlimited), (pack, Unused::Bytes(0))])
    {
        let mut copy = base.copy(5);
        let cache = copy.cache("host");
        let repository = copy.open("host").unwrap();
        Locator::open(&repository, &Silent).unwrap();
        let index = ChunkIndex::open(repository.cache()).unwrap();
        let mut all = Vec::new();
        for pack in &packs {
            let entries = pack.footer.segments.iter().flat_map(|segment| &segment.entries);
            all.extend(entries.map(|entry| (prefix(&entry.id), 0, 0)));
            index.drop_pack(&pack.id.0).unwrap();
            index.add_pack(&pack.id.0, 1, &mut std::iter::empty()).unwrap();
        }
        index.drop_pack(&liar.id.0).unwrap();
        index.add_pack(&liar.id.0, 1, &mut all.into_iter()).unwrap();
        index.flush().unwrap();
        drop(index);
        let options = PruneOptions { max_unused, ..options(PATIENT) };
        let planned = Mutex::new(0);
        let announce = |outlook: &Outlook| {
            *planned.lock().unwrap() += outlook.plan.delete.len();
            Ok(())
        };
        let report =
            diskvault::prune::run(&repository, &options, &copy.pool, &announce, &Silent).unwrap();
        assert!(planned.into_inner().unwrap() > 0 && cache.exists());
        if max_unused == Unused::Unlimited {
            assert!(report.kept_packs > 0, "the second mark knows better");
        }
        copy.known.clone_from(&base.known);
        assert_whole(&copy, "stranger", "after a wrong index");
    }
}

/// A storage at which another host ends a backup whenever more than a few footers are read between the
/// listing of packs and that of points.
struct Busy {
    inner: MemoryStorage,
    footers: AtomicUsize,
    backup: Box<dyn Fn() -> BackupReport + Send + Sync>,
    made: AtomicUsize,
}

impl Storage for Busy {
    fn put_new(&self, name: &ObjectName, data: &[u8]) -> Result<()> {
        self.inner.put_new(name, data)
    }
    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        self.inner.get(name, bytes_max)
    }
    fn get_range(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.inner.get_range(name, offset, buffer)
    }
    fn get_tail(&self, name: &ObjectName, bytes: usize) -> Result<(Vec<u8>, u64)> {
        self.footers.fetch_add(1, Ordering::Relaxed);
        self.inner.get_tail(name, bytes)
    }
    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.inner.size(name)
    }
    fn list(&self, folder: Folder) -> Result<Vec<ObjectEntry>> {
        match folder {
            Folder::Packs => self.footers.store(0, Ordering::Relaxed),
            Folder::Points if self.footers.swap(0, Ordering::Relaxed) > 4 => {
                (self.backup)();
                self.made.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        self.inner.list(folder)
    }
    fn foreign(&self) -> Result<Vec<String>> {
        self.inner.foreign()
    }
    fn delete(&self, name: &ObjectName) -> Result<()> {
        self.inner.delete(name)
    }
    fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<()> {
        self.inner.rename(from, to)
    }
    fn location(&self) -> String {
        self.inner.location()
    }
}

#[test]
fn backups_that_end_all_the_time_keep_no_prune_from_its_end() {
    let (mut vault, ids) = with_four_days();
    let pruner = vault.open("host").unwrap();
    forget_ids(&mut vault, &pruner, &ids[..3]);
    // The first mark has the host's index, which knows all packs.
    Locator::open(&pruner, &Silent).unwrap();
    drop(pruner);
    assert!(vault.names(Folder::Packs).len() > 8);
    let mut known = std::mem::take(&mut vault.known);
    let (vault, number) = (Arc::new(vault), AtomicUsize::new(0));
    let made = Arc::new(Mutex::new(Vec::new()));
    let (beside, remembered) = (vault.clone(), made.clone());
    let backup = move || {
        let seed = 700 + number.fetch_add(1, Ordering::Relaxed) as u64;
        let contents = Parts::from([("vda".to_string(), noise(seed, 50_000))]);
        let repository = beside.open("other").unwrap();
        let report = beside.try_backup(&repository, "db01", &contents, &Silent).unwrap();
        remembered.lock().unwrap().push((report.point, contents));
        report
    };
    let busy = Arc::new(Busy {
        inner: vault.storage.clone(),
        footers: AtomicUsize::new(0),
        backup: Box::new(backup),
        made: AtomicUsize::new(0),
    });
    let (secret, environment) = (passphrase(PASSWORD), vault.environment.clone());
    let repository =
        Repository::open(busy.clone(), environment, &vault.cache("host"), &secret).unwrap();
    let report = prune(&vault, &repository, PATIENT).unwrap();
    assert!(report.deleted_packs > 0, "{report:?}");
    assert!(busy.made.load(Ordering::Relaxed) > 0, "nobody disturbed it");
    known.extend(made.lock().unwrap().drain(..));
    drop((repository, busy));
    let mut vault = Arc::into_inner(vault).unwrap();
    vault.known = known;
    assert_whole(&vault, "stranger", "pruned beside backups");
}

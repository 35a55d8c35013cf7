//! Prune where something cannot be read, has vanished or was copied: it frees nothing that a point
//! needs, also not what would be needed once the damage is healed.

use super::*;
use diskvault::check::{self, CheckOptions, DataSubset};
use diskvault::environment::Environment;
use diskvault::error::Error;
use diskvault::repository::pack_reader::{OpenPack, open_pack};
use diskvault::repository::session::{Session, remember_heads};
use diskvault::storage::memory::{FaultKind, MemoryStorage};
use diskvault::storage::{ObjectEntry, ObjectName};
use diskvault_format::id::PackId;
use diskvault_format::manifest::Manifest;
use diskvault_format::pack::PackKind;
use diskvault_format::segment::EntryKind;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use support::vault::{PASSWORD, copy_folder, passphrase};

/// A point that is told as pieces of others wherever it can be; others are forgotten.
fn with_splices() -> Vault {
    let mut vault = Vault::new(1);
    let repository = vault.open("host").unwrap();
    let first = vault.backup(&repository, "a", &with_file_at(0)).unwrap().point;
    let second = vault.backup(&repository, "b", &with_file_at(1000)).unwrap().point;
    // Every leaf of the map changes, so that its pages lie elsewhere than the splices.
    let mut third = with_file_at(1000);
    let disk = third.get_mut("vda").unwrap();
    for (number, leaf) in disk.chunks_mut(64 * 4096).enumerate() {
        leaf[..4096].copy_from_slice(&noise(2000 + number as u64, 4096));
    }
    vault.backup(&repository, "b", &third).unwrap();
    forget_ids(&mut vault, &repository, &[first, second]);
    vault
}

/// The packs with splices, and the first segment that has some.
fn splice_packs(vault: &Vault) -> Vec<(String, usize)> {
    let repository = vault.open("looker").unwrap();
    let names = vault.names(Folder::Packs).into_iter();
    let found = names.filter_map(|name| {
        let id = PackId::from_hex(name.rsplit('/').next().unwrap()).unwrap();
        let pack = open_pack(&vault.storage, repository.keys(), id).unwrap();
        let has_splice = |entries: &[diskvault_format::segment::Entry]| {
            entries.iter().any(|entry| entry.kind == EntryKind::Splice)
        };
        let segment = pack.footer.segments.iter().find(|segment| has_splice(&segment.entries))?;
        Some((name, segment.offset as usize + 40))
    });
    found.collect()
}

#[test]
fn a_splice_that_cannot_be_read_keeps_the_packs_of_its_pieces() {
    let vault = with_splices();
    let packs = splice_packs(&vault);
    assert!(!packs.is_empty());
    let mut refused = 0;
    for (name, segment) in packs {
        let end = vault.storage.snapshot()[&name].len() - 1;
        for at in [segment, end] {
            let mut copy = vault.copy(5);
            assert!(copy.storage.corrupt(&name, |bytes| bytes[at] ^= 1));
            let result = prune(&copy, &copy.open("host").unwrap(), PATIENT);
            refused += u32::from(result.is_err());
            if let Err(error) = result {
                assert_eq!(error.kind(), ErrorKind::Damage, "{error:?}");
            }
            // The bit is put right, by parity or from a copy: all is there.
            assert!(copy.storage.corrupt(&name, |bytes| bytes[at] ^= 1), "it stays");
            copy.known.clone_from(&vault.known);
            assert_whole(&copy, "stranger", &format!("{name} at {at}"));
        }
    }
    assert!(refused > 0);
}

/// A storage that cannot read one object for a while, or on which a resolver is always faster.
struct Flaky {
    inner: MemoryStorage,
    name: String,
    is_on: Arc<AtomicBool>,
    has_fast_resolver: bool,
}

impl Storage for Flaky {
    fn put_new(&self, name: &ObjectName, data: &[u8]) -> Result<()> {
        if self.has_fast_resolver && name.as_str().ends_with(".ok") {
            self.inner.put_new(name, data)?;
        }
        self.inner.put_new(name, data)
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        self.inner.get(name, bytes_max)
    }

    fn get_range(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if name.as_str() == self.name && self.is_on.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Storage, "cannot read: timed out"));
        }
        self.inner.get_range(name, offset, buffer)
    }

    fn get_tail(&self, name: &ObjectName, bytes: usize) -> Result<(Vec<u8>, u64)> {
        self.inner.get_tail(name, bytes)
    }

    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.inner.size(name)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectEntry>> {
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

/// Switches it on while the second mark runs.
struct InSecondMark(Arc<AtomicBool>);

impl Monitor for InSecondMark {
    fn start(&self, stage: &str, _total: Option<u64>) {
        match stage {
            "marking again" => self.0.store(true, Ordering::Relaxed),
            "deleting packs" => self.0.store(false, Ordering::Relaxed),
            _ => {}
        }
    }
}

/// A prune that waits for nobody runs inside of a backup of `contents`, which takes over what the
/// prune condemns.
fn condemned_beside(vault: &mut Vault, contents: &Parts) -> PointId {
    struct Meanwhile<'a>(&'a Vault, AtomicBool);
    impl Monitor for Meanwhile<'_> {
        fn start(&self, stage: &str, _total: Option<u64>) {
            if stage.starts_with("disk vda") && !self.1.swap(true, Ordering::Relaxed) {
                prune(self.0, &self.0.open("host").unwrap(), NOT_WAITING).unwrap();
            }
        }
    }
    let writer = vault.open("writer").unwrap();
    let meanwhile = Meanwhile(vault, false.into());
    let made = vault.try_backup(&writer, "taker", contents, &meanwhile).unwrap();
    assert_eq!(vault.names(Folder::Condemned).len(), 1);
    vault.known.insert(made.point, contents.clone());
    made.point
}

#[test]
fn a_failed_read_in_the_second_mark_deletes_nothing_that_is_needed() {
    let mut base = with_splices();
    let contents = base.known.values().next().unwrap().clone();
    let ids: Vec<PointId> = base.known.keys().copied().collect();
    let repository = base.open("host").unwrap();
    forget_ids(&mut base, &repository, &ids);
    condemned_beside(&mut base, &contents);
    let mut failed = 0;
    for name in base.names(Folder::Packs) {
        let mut copy = base.copy(9);
        copy_folder(&base.cache("host"), &copy.cache("host"));
        let is_on = Arc::new(AtomicBool::new(false));
        let flaky = Flaky {
            inner: copy.storage.clone(),
            name: name.clone(),
            is_on: is_on.clone(),
            has_fast_resolver: false,
        };
        let cache = copy.cache("host");
        let secret = passphrase(PASSWORD);
        let opened =
            Repository::open(Arc::new(flaky), copy.environment.clone(), &cache, &secret).unwrap();
        let watch = InSecondMark(is_on);
        let result =
            diskvault::prune::run(&opened, &options(PATIENT), &copy.pool, &|_| Ok(()), &watch);
        failed += u32::from(result.is_err());
        copy.known.clone_from(&base.known);
        assert_whole(&copy, "stranger", &name);
    }
    assert!(failed > 0, "some read was needed");
}

/// Found by the simulation: a writer was taken for dead after it had looked for its lease, and its
/// point completed before it came to that.
#[test]
fn a_point_that_a_resolver_completes_first_is_done() {
    let mut vault = Vault::new(4);
    let fast = Flaky {
        inner: vault.storage.clone(),
        name: String::new(),
        is_on: Arc::default(),
        has_fast_resolver: true,
    };
    let (cache, secret) = (vault.cache("host"), passphrase(PASSWORD));
    let repository =
        Repository::open(Arc::new(fast), vault.environment.clone(), &cache, &secret).unwrap();
    vault.backup(&repository, "web01", &machine(1)).unwrap();
    assert_whole(&vault, "stranger", "completed by another");
}

#[test]
fn a_footer_that_rots_between_the_marks_keeps_its_pack() {
    let mut base = Vault::new(1);
    let repository = base.open("host").unwrap();
    let contents = Parts::from([("vda".to_string(), noise(90, 512 << 10))]);
    let gone = base.backup(&repository, "db01", &contents).unwrap().point;
    forget_ids(&mut base, &repository, &[gone]);
    condemned_beside(&mut base, &contents);
    for name in base.names(Folder::Packs) {
        let mut copy = base.copy(5);
        copy_folder(&base.cache("host"), &copy.cache("host"));
        assert!(copy.storage.corrupt(&name, |bytes| *bytes.last_mut().unwrap() ^= 1));
        let _ = prune(&copy, &copy.open("host").unwrap(), PATIENT);
        assert!(
            copy.storage.corrupt(&name, |bytes| *bytes.last_mut().unwrap() ^= 1),
            "{name} went"
        );
        copy.known.clone_from(&base.known);
        assert_whole(&copy, "stranger", &name);
    }
}

#[test]
fn points_that_vanished_stop_it_until_they_are_given_up() {
    let (base, ids) = with_four_days();
    let home = base.open("host").unwrap();
    remember_heads(&home, &PointSet::load(&home).unwrap()).unwrap();
    // All manifests, with their oks left; one of the middle with its ok; the newest with its ok.
    let all: Vec<String> = ids.iter().map(|id| format!("points/{id}")).collect();
    let both = |id: &PointId| vec![format!("points/{id}"), format!("points/{id}.ok")];
    for (what, names, cache) in [
        ("all", all, "stranger"),
        ("middle", both(&ids[1]), "stranger"),
        ("newest", both(&ids[3]), "host"),
    ] {
        let copy = base.copy(5);
        copy_folder(&base.cache("host"), &copy.cache("host"));
        for name in names {
            assert!(copy.storage.remove(name));
        }
        let before = copy.names(Folder::Packs);
        let repository = copy.open(cache).unwrap();
        let nothing = BTreeSet::new();
        let (options, pool) = (options(PATIENT), &copy.pool);
        let foreseen = diskvault::prune::foresee(&repository, &options, &nothing, pool, &Silent);
        let real = prune(&copy, &repository, PATIENT);
        for error in [foreseen.unwrap_err(), real.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Damage, "{what}");
            assert!(error.full_text().contains("gone without a removal note"), "{error:?}");
        }
        assert_eq!(copy.names(Folder::Packs), before, "{what}");
        let forced = PruneOptions { accepts_vanished: true, ..options };
        diskvault::prune::run(&repository, &forced, &copy.pool, &|_| Ok(()), &Silent).unwrap();
        assert!(copy.names(Folder::Packs).len() < before.len(), "{what}");
        // From now on everybody knows why.
        prune(&copy, &copy.open(cache).unwrap(), PATIENT).unwrap();
        assert_eq!(damage_of(&copy.check(&copy.open(cache).unwrap(), true).unwrap()), "", "{what}");
    }
}

#[test]
fn a_manifest_without_ok_stays_while_a_pack_cannot_be_read() {
    let (base, ids) = with_four_days();
    assert!(base.storage.remove(format!("points/{}.ok", ids[3])));
    for name in base.names(Folder::Packs) {
        let mut copy = base.copy(5);
        let flip = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
        assert!(copy.storage.corrupt(&name, flip));
        if let Ok(report) = prune(&copy, &copy.open("host").unwrap(), PATIENT) {
            assert_eq!(report.resolved.deleted, 0, "{name}");
        }
        assert!(copy.storage.corrupt(&name, flip), "{name} went");
        prune(&copy, &copy.open("host").unwrap(), PATIENT).unwrap();
        copy.known.clone_from(&base.known);
        assert_whole(&copy, "stranger", &name);
    }
}

#[test]
fn a_damaged_pack_does_not_keep_the_others_from_going() {
    let (mut base, ids) = with_four_days();
    let repository = base.open("host").unwrap();
    let contents = Parts::from([("vda".to_string(), noise(90, 512 << 10))]);
    let gone = base.backup(&repository, "db01", &contents).unwrap().point;
    forget_ids(&mut base, &repository, &[ids[0], ids[1], ids[2], gone]);
    for name in base.names(Folder::Packs) {
        let copy = base.copy(5);
        assert!(copy.storage.corrupt(&name, |bytes| {
            let end = bytes.len().saturating_sub(70_000).max(400);
            (200..end).step_by(5000).for_each(|at| bytes[at] ^= 1);
        }));
        let before = copy.names(Folder::Packs).len();
        match prune(&copy, &copy.open("host").unwrap(), PATIENT) {
            Ok(report) => assert!(report.deleted_packs > 0, "{name}"),
            // A map that cannot be read: nobody knows what has to stay.
            Err(error) => {
                assert!(error.full_text().contains("cannot tell what has to stay"), "{error:?}");
                assert_eq!(copy.names(Folder::Packs).len(), before);
            }
        }
    }
}

/// A machine whose monotonic clock the test sets.
struct Booted {
    inner: Arc<dyn Environment>,
    seconds: AtomicU64,
}

impl Environment for Booted {
    fn now_unix_ns(&self) -> i64 {
        self.inner.now_unix_ns()
    }

    fn random(&self, buffer: &mut [u8]) -> Result<()> {
        self.inner.random(buffer)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.seconds.load(Ordering::Relaxed))
    }

    fn boot_id(&self) -> Option<String> {
        Some("a boot".into())
    }
}

#[test]
fn a_dead_writer_is_found_by_runs_that_wait_for_nobody_or_have_nothing_to_free() {
    let (mut vault, ids) = with_four_days();
    let lease = {
        let points = PointSet::load(&vault.open("host").unwrap()).unwrap().points;
        points.iter().find(|point| point.id == ids[3]).unwrap().manifest.lease
    };
    assert!(vault.storage.remove(format!("points/{}.ok", ids[3])));
    vault.storage.insert(format!("leases/{lease}"), b"of a dead writer".to_vec());
    let booted = Arc::new(Booted { inner: vault.environment.clone(), seconds: 1000.into() });
    vault.environment = booted.clone();
    // Nothing is to be freed; the first run sees it, one after its time is over finds it dead.
    for seconds in [1000, 4500] {
        booted.seconds.store(seconds, Ordering::Relaxed);
        let report = prune(&vault, &vault.open("host").unwrap(), NOT_WAITING).unwrap();
        assert_eq!((report.fenced_leases, report.is_waiting), (0, false));
        assert_eq!(vault.open("host").unwrap().memory().standing.len(), 1);
    }
    booted.seconds.store(4601, Ordering::Relaxed);
    let report = prune(&vault, &vault.open("host").unwrap(), NOT_WAITING).unwrap();
    assert_eq!((report.fenced_leases, report.resolved.finished), (1, 1));
    assert_whole(&vault, "stranger", "completed");
    assert_clear(&vault, "completed");
    vault.known.clear();
}

/// The cache of a host was copied while it waited on a list; both act on it, one late.
#[test]
fn two_owners_of_one_list_delete_nothing_that_is_needed() {
    let mut base = Vault::new(1);
    let repository = base.open("host").unwrap();
    let contents = Parts::from([("vda".to_string(), noise(90, 512 << 10))]);
    let gone = base.backup(&repository, "db01", &contents).unwrap().point;
    forget_ids(&mut base, &repository, &[gone]);
    let taken = condemned_beside(&mut base, &contents);
    copy_folder(&base.cache("host"), &base.cache("clone"));
    let late = base.open("late").unwrap();
    let pending: Mutex<Option<(Session<'_>, Manifest)>> = Mutex::new(None);
    let vault = &base;
    // The clone has read what it needs; now the host ends its list, a writer takes over from the
    // packs that stay, and the point for which they stayed is forgotten.
    let meanwhile = || {
        let host = vault.open("host").unwrap();
        prune(vault, &host, PATIENT).unwrap();
        let session = Session::begin(&late, "late", &Silent).unwrap();
        let points = PointSet::load(&host).unwrap().points;
        let point = points.into_iter().find(|point| point.id == taken).unwrap();
        let manifest = Manifest { lease: session.lease(), ..point.manifest.clone() };
        *pending.lock().unwrap() = Some((session, manifest));
        let options = ForgetOptions { host: "host", reason: "policy", ends_pins: false };
        forget(&host, &[&point], &options, &Silent).unwrap();
    };
    let publish = || {
        if let Some((session, manifest)) = pending.lock().unwrap().take() {
            session.publish(&manifest).unwrap();
        }
    };
    struct Hooks<'a> {
        has_begun: AtomicBool,
        meanwhile: &'a (dyn Fn() + Send + Sync),
        publish: &'a (dyn Fn() + Send + Sync),
    }
    impl Monitor for Hooks<'_> {
        fn is_cancelled(&self) -> bool {
            if !self.has_begun.swap(true, Ordering::Relaxed) {
                (self.meanwhile)();
            }
            false
        }
        fn start(&self, stage: &str, _total: Option<u64>) {
            if stage == "deleting packs" && self.has_begun.load(Ordering::Relaxed) {
                (self.publish)();
            }
        }
    }
    let hooks = Hooks { has_begun: false.into(), meanwhile: &meanwhile, publish: &publish };
    let clone = vault.open("clone").unwrap();
    let hasty = Patience { waits: false, ..PATIENT };
    let _ = diskvault::prune::run(&clone, &options(hasty), &vault.pool, &|_| Ok(()), &hooks);
    publish();
    let report = vault.check(&vault.open("stranger").unwrap(), true).unwrap();
    assert_eq!(damage_of(&report), "");
}

/// A forgotten point that is kept and has a damaged map must not hide what others need below the
/// pages that it shares with them.
#[test]
fn a_broken_forgotten_point_hides_nothing() {
    let mut base = Vault::new(1);
    let repository = base.open("host").unwrap();
    let disk = |seed, kib: usize| ("vda".to_string(), noise(seed, kib << 10));
    let more = ("vdb".to_string(), noise(71, 64 << 10));
    let points = [
        // It has the list of what is allocated, which the next two share.
        Parts::from([disk(69, 300)]),
        Parts::from([disk(70, 300)]),
        Parts::from([disk(70, 300), more]),
        Parts::from([disk(72, 200)]),
    ];
    let ids = points.map(|contents| base.backup(&repository, "web01", &contents).unwrap().point);
    forget_ids(&mut base, &repository, &ids[2..3]);
    let maps = open_packs(&base).into_iter().filter(|pack| pack.kind == PackKind::Map);
    let mut stopped = 0;
    for pack in maps.collect::<Vec<_>>() {
        for segment in &pack.footer.segments {
            let copy = base.copy(31);
            let at = segment.offset as usize + 40;
            assert!(copy.storage.corrupt(pack_name_of(pack.id), |bytes| bytes[at] ^= 1));
            let before = copy.names(Folder::Packs);
            let keeping = PruneOptions { keep_forgotten: Some(DAY), ..options(PATIENT) };
            let repository = copy.open("host").unwrap();
            let result =
                diskvault::prune::run(&repository, &keeping, &copy.pool, &|_| Ok(()), &Silent);
            stopped += u32::from(result.is_err());
            // Unless it went, because nobody needs it.
            copy.storage.corrupt(pack_name_of(pack.id), |bytes| bytes[at] ^= 1);
            assert!(result.is_ok() || copy.names(Folder::Packs) == before);
            assert_whole(&copy, "stranger", "the segment is whole again");
        }
    }
    assert!(stopped > 0, "no segment is of a point that stays");
}

/// The map of a disk is stored in two packs, because the first is damaged; its footer is not.
#[test]
fn the_only_whole_copy_of_a_page_stays() {
    let whole = |vault: &Vault, host: &str| {
        let restored = vault.restore_all(&vault.open(host).unwrap()).unwrap();
        restored.values().filter(|result| result.is_ok()).count()
    };
    // Which of the two an index names first goes by their ids.
    for seed in 0..8 {
        let mut vault = Vault::new(seed);
        let repository = vault.open("host").unwrap();
        let contents = Parts::from([("vda".to_string(), noise(70, 300 << 10))]);
        vault.backup(&repository, "web01", &contents).unwrap();
        let mut packs = open_packs(&vault).into_iter();
        let first = packs.find(|pack| pack.kind == PackKind::Map).unwrap();
        let at = first.footer.segments[0].offset as usize + 40;
        assert!(vault.storage.corrupt(pack_name_of(first.id), |bytes| bytes[at] ^= 1));
        vault.backup(&repository, "web01", &contents).unwrap();
        assert_eq!(whole(&vault, "reader"), 2, "the second backup has healed the first point");
        for host in ["stranger", "host", "third"] {
            prune(&vault, &vault.open(host).unwrap(), PATIENT).unwrap();
            assert_eq!(whole(&vault, "reader"), 2, "seed {seed}, pruned by {host}");
        }
    }
}

fn open_packs(vault: &Vault) -> Vec<Arc<OpenPack>> {
    let repository = vault.open("looker").unwrap();
    let names = vault.names(Folder::Packs).into_iter();
    let ids = names.map(|name| PackId::from_hex(name.rsplit('/').next().unwrap()).unwrap());
    ids.map(|id| Arc::new(open_pack(&vault.storage, repository.keys(), id).unwrap())).collect()
}

fn pack_name_of(id: PackId) -> String {
    format!("packs/{}/{id}", &id.to_hex()[..2])
}

/// An error of the storage is told as such, at whatever operation: nothing is taken for damaged or
/// vanished because of it.
#[test]
fn a_failed_read_is_no_damage() {
    let (mut base, ids) = with_four_days();
    let repository = base.open("host").unwrap();
    forget_ids(&mut base, &repository, &ids[1..2]);
    // The next point names it, and from now on its note alone explains where it is.
    prune(&base, &repository, PATIENT).unwrap();
    forget_ids(&mut base, &repository, &ids[..1]);
    for n in 0.. {
        let copy = base.copy(700 + n);
        let repository = copy.open("host").unwrap();
        let before = copy.storage.operations();
        set(&copy.storage, n, FaultKind::Error, true);
        let result = prune(&copy, &repository, PATIENT);
        if copy.storage.operations() - before <= n {
            assert!(n > 20 && result.is_ok(), "only {n} operations");
            break;
        }
        let Err(error) = result else { continue };
        assert_eq!(error.kind(), ErrorKind::Storage, "operation {n}: {error:?}");
    }
}

/// Prunes at one of the moments at which a check looks for an interruption.
struct PruneAt<'a> {
    vault: &'a Vault,
    at: u64,
    calls: AtomicU64,
}

impl Monitor for PruneAt<'_> {
    fn is_cancelled(&self) -> bool {
        if self.calls.fetch_add(1, Ordering::Relaxed) == self.at {
            prune(self.vault, &self.vault.open("pruner").unwrap(), PATIENT).unwrap();
        }
        false
    }
}

#[test]
fn a_check_takes_no_prune_for_damage() {
    let base = with_splices();
    for at in 0.. {
        let vault = base.copy(800 + at);
        let monitor = PruneAt { vault: &vault, at, calls: 0.into() };
        let repository = vault.open("host").unwrap();
        let options = CheckOptions { data: Some(DataSubset::All) };
        let report = check::run(&repository, &options, &vault.pool, &monitor).unwrap();
        assert_eq!(damage_of(&report), "", "pruned at {at}");
        if monitor.calls.into_inner() <= at {
            assert!(at > 2, "only {at} moments");
            break;
        }
    }
}

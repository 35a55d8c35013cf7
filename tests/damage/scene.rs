//! The repository that is damaged: three visible points of two series, two forgotten ones, two of
//! every kind of object, and the cache of the host that made them.

use crate::support::vault::{PASSWORD, Parts, Vault, noise, passphrase};
use diskvault::monitor::Silent;
use diskvault::repository::Repository;
use diskvault::repository::locate::Locator;
use diskvault::repository::objects::seal_record;
use diskvault::repository::points::{PointSet, manifest_name};
use diskvault::storage::{Folder, ObjectName};
use diskvault_format::crypto::ObjectKind;
use diskvault_format::id::{LeaseId, PackId, PageId, PointId};
use diskvault_format::key_slot::{KdfCost, SlotKind};
use diskvault_format::names;
use diskvault_format::small::{Condemned, Heartbeat, Lease, Lost, NOTE_REMOVAL, NOTE_TAG, Note};
use serde::Serialize;

/// The second password, in the slot that the tests do not use.
const OTHER_PASSWORD: &str = "two";

/// One object to be damaged.
pub struct Subject {
    /// What it is, for the table.
    pub label: &'static str,
    /// Its name.
    pub name: String,
    /// Deleted together with it.
    pub also: Option<String>,
    /// Another object of the same kind.
    pub sibling: Option<String>,
    /// What a message about it has to contain.
    pub needle: String,
    /// True if the lists that a plain repository does not have must be there.
    pub needs_lists: bool,
}

/// A repository and what is in it.
pub struct Scene {
    pub vault: Vault,
    pub subjects: Vec<Subject>,
    /// The newest point of `web01`.
    pub newest: PointId,
    /// What the next backup of `web01` finds.
    pub next: Parts,
    /// Leases, condemned and lost lists.
    lists: Vec<(String, Vec<u8>)>,
}

/// One machine's disk and its configuration, on day `day`.
fn web01(seed: u64, day: u64) -> Parts {
    let mut disk = noise(seed, 512 << 10);
    disk.extend_from_slice(&vec![0; 128 << 10]);
    disk.extend(b"all work and no play ".iter().cycle().take(128 << 10));
    disk.extend_from_slice(&noise(seed + 1, 256 << 10));
    let from = 160 << 10;
    disk[from..from + (96 << 10)].copy_from_slice(&noise(seed + 100 + day, 96 << 10));
    let conf = noise(seed + 2, (40 << 10) + 17 * day as usize);
    Parts::from([("vda".into(), disk), ("conf".into(), conf)])
}

impl Scene {
    pub fn new(seed: u64) -> Scene {
        let mut vault = Vault::new(seed);
        let mut repository = vault.open("home").unwrap();
        let old = Parts::from([("vdo".into(), noise(seed + 7, 64 << 10))]);
        let old = vault.backup(&repository, "old", &old).unwrap().point;
        let first = vault.backup(&repository, "web01", &web01(seed, 1)).unwrap();
        // Its map pack holds most pages of the later points too.
        let first_top = first.manifest.disks[0].top.unwrap();
        let first = first.point;
        let second = vault.backup(&repository, "web01", &web01(seed, 2)).unwrap().point;
        let secret = passphrase(OTHER_PASSWORD);
        let other_slot = repository
            .add_key(SlotKind::Passphrase, &secret, KdfCost::RECOVERY, "other", "host")
            .unwrap();
        let db = Parts::from([("vdb".into(), noise(seed + 3, 512 << 10))]);
        let db = vault.backup(&repository, "db01", &db).unwrap().point;
        let newest = vault.backup(&repository, "web01", &web01(seed, 3)).unwrap().point;
        for point in [old, first] {
            forget(&mut vault, &repository, point);
        }
        note(&vault, &repository, newest, NOTE_TAG);
        let used_slot = repository.current_key();
        let lists = lists(&vault, &repository);
        let mut scene = Scene { vault, subjects: Vec::new(), newest, next: web01(seed, 4), lists };
        scene.add_clear_objects(used_slot.to_hex(), other_slot.to_hex());
        scene.add_packs(&repository, db, first_top);
        scene.add_points(second);
        scene.add_small_objects([old, first]);
        scene
    }

    /// A copy to be damaged: `home` is the cache of the host that made everything.
    pub fn copy(&self, seed: u64, with_lists: bool) -> Vault {
        let vault = self.vault.copy(seed);
        if with_lists {
            for (name, data) in &self.lists {
                vault.storage.insert(name, data.clone());
            }
        }
        crate::support::vault::copy_folder(&self.vault.cache("home"), &vault.cache("home"));
        vault
    }

    /// The bytes of an object, lists included.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let listed = self.lists.iter().find(|(listed, _)| listed == name);
        let stored = || self.vault.storage.snapshot()[name].clone();
        listed.map_or_else(stored, |(_, data)| data.clone())
    }

    fn add(&mut self, label: &'static str, name: &str, sibling: Option<&str>) -> &mut Subject {
        let leaf = name.rsplit('/').next().unwrap_or(name);
        self.subjects.push(Subject {
            label,
            name: name.into(),
            also: None,
            sibling: sibling.map(str::to_string),
            needle: leaf.trim_end_matches(".ok").into(),
            needs_lists: false,
        });
        self.subjects.last_mut().unwrap()
    }

    fn add_clear_objects(&mut self, used: String, other: String) {
        let configs = self.vault.names(Folder::Config);
        self.add("newest config", &configs[1], Some(&configs[0]));
        self.add("older config", &configs[0], Some(&configs[1]));
        self.add("instance", "instance", None);
        let (used, other) = (format!("keys/{used}"), format!("keys/{other}"));
        self.add("key slot in use", &used, Some(&other));
        self.add("other key slot", &other, Some(&used));
    }

    fn add_packs(&mut self, repository: &Repository, db: PointId, first_top: PageId) {
        let locator = Locator::open(repository, &Silent).unwrap();
        let points = PointSet::load(repository).unwrap();
        let pack_of = |id: &[u8; 32]| {
            let pack = locator.find(repository, id).unwrap().unwrap().pack.id;
            diskvault::repository::pack_reader::pack_name(pack).unwrap().to_string()
        };
        let known = &self.vault.known;
        let chunk = |point: PointId, disk: &str| {
            let bytes = &known[&point][disk];
            pack_of(&repository.keys().chunk_id(&bytes[..4096]).0)
        };
        let top = |point: PointId| {
            let point = points.points.iter().find(|known| known.id == point).unwrap();
            pack_of(&point.manifest.disks[0].top.unwrap().0)
        };
        let data = (chunk(self.newest, "vda"), chunk(db, "vdb"));
        let maps = (pack_of(&first_top.0), top(db));
        self.add("data pack", &data.0, Some(&data.1));
        self.add("map pack", &maps.0, Some(&maps.1));
    }

    fn add_points(&mut self, second: PointId) {
        let (newest, older) = (format!("points/{}", self.newest), format!("points/{second}"));
        let (newest_ok, older_ok) = (format!("{newest}.ok"), format!("{older}.ok"));
        self.add("newest manifest", &newest, Some(&older));
        self.add("older manifest", &older, Some(&newest));
        self.add("ok of the newest point", &newest_ok, None);
        self.add("ok of an older point", &older_ok, None);
        self.add("newest point, both objects", &newest, None).also = Some(newest_ok);
        self.add("older point, both objects", &older, None).also = Some(older_ok);
    }

    fn add_small_objects(&mut self, forgotten: [PointId; 2]) {
        let notes = self.vault.names(Folder::Notes);
        let leaf = |point: PointId| format!("notes/{point}");
        let of = |point: PointId| notes.iter().find(|name| name.starts_with(&leaf(point)));
        let (tag, removal) = (of(self.newest).unwrap(), of(forgotten[1]).unwrap());
        let trash = forgotten.map(|point| format!("trash/{point}"));
        self.add("tag note", tag, Some(removal));
        self.add("removal note", removal, Some(tag));
        self.add("forgotten manifest in the trash", &trash[1], Some(&trash[0]));
        let lists = self.lists.clone();
        let labels = ["lease", "heartbeat", "condemned list", "lost list"];
        for (label, pair) in labels.into_iter().zip(lists.chunks(2)) {
            self.add(label, &pair[0].0, Some(&pair[1].0)).needs_lists = true;
        }
    }
}

fn put<T: Serialize>(
    repository: &Repository,
    kind: ObjectKind,
    name: Option<&ObjectName>,
    value: &T,
) -> Vec<u8> {
    let mut nonce = [0; 32];
    repository.environment().random(&mut nonce).unwrap();
    seal_record(repository.keys(), kind, name, &nonce, value).unwrap()
}

fn random<const N: usize>(repository: &Repository) -> [u8; N] {
    let mut bytes = [0; N];
    repository.environment().random(&mut bytes).unwrap();
    bytes
}

fn note(vault: &Vault, repository: &Repository, point: PointId, kind: u8) {
    let leaf = names::note(point, &random(repository));
    let name = ObjectName::new(Folder::Notes, &leaf).unwrap();
    let fields = vec![("reason".into(), "policy".into())];
    let note = Note { kind, time_unix_ns: 1, host: "host".into(), fields };
    vault.storage.insert(&name, put(repository, ObjectKind::Note, Some(&name), &note));
}

/// What `forget` does (spec/40-protocol.md).
fn forget(vault: &mut Vault, repository: &Repository, point: PointId) {
    note(vault, repository, point, NOTE_REMOVAL);
    let name = manifest_name(point).unwrap();
    let sealed = vault.storage.snapshot()[name.as_str()].clone();
    vault.storage.insert(format!("trash/{point}"), sealed);
    vault.storage.remove(&name);
    vault.storage.remove(format!("{name}.ok"));
    vault.known.remove(&point);
}

/// Two leases, heartbeats, condemned lists and lost lists, as a crash may leave them.
fn lists(vault: &Vault, repository: &Repository) -> Vec<(String, Vec<u8>)> {
    assert_eq!(repository.id(), vault.open_as("home", PASSWORD).unwrap().id());
    let leases: [LeaseId; 2] = [LeaseId(random(repository)), LeaseId(random(repository))];
    let mut found = Vec::new();
    for lease in leases {
        let name = ObjectName::new(Folder::Leases, &lease.to_hex()).unwrap();
        let record = Lease {
            purpose: 1,
            host: "host".into(),
            process: 1,
            started_unix_ns: 1,
            program: "test".into(),
        };
        found.push((name.to_string(), put(repository, ObjectKind::Lease, Some(&name), &record)));
    }
    for lease in leases {
        let name = ObjectName::new(Folder::Leases, &names::heartbeat(lease, 1)).unwrap();
        let beat = Heartbeat { lease, number: 1 };
        found.push((name.to_string(), put(repository, ObjectKind::Heartbeat, Some(&name), &beat)));
    }
    for _ in 0..2 {
        let leaf = names::condemned(&random(repository));
        let name = ObjectName::new(Folder::Condemned, &leaf).unwrap();
        let packs = vec![PackId(random(repository))];
        let list = Condemned { packs, host: "host".into(), time_unix_ns: 1 };
        found.push((name.to_string(), put(repository, ObjectKind::Condemned, Some(&name), &list)));
    }
    for _ in 0..2 {
        let list = Lost { ids: vec![random(repository)], time_unix_ns: 1 };
        let object = put(repository, ObjectKind::Lost, None, &list);
        found.push((format!("lost/{}", blake3::hash(&object)), object));
    }
    found
}

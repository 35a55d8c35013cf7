//! A host that was taken over, played with what it has: its own login, which a forced command binds to
//! `serve --append-only --restrict-to`, the program, the password, and a client of the protocol that
//! keeps to no rule. Each attack is refused or does no harm, and each shows; in the end every good
//! point is there, byte for byte.
//!
//! A new attack is a test of its own here: `Siege::new`, the attack, `siege.stands()`.
//!
//! With the password the host can read what others have backed up. Nothing here is about that.

use super::far_support::Sshd;
use super::support::{MIB, Outcome, Vault, files, finish, random};
use diskvault::environment::SystemEnvironment;
use diskvault::error::Result;
use diskvault::repository::Repository;
use diskvault::repository::objects::seal_record;
use diskvault::repository::pack_reader::{open_pack, pack_name};
use diskvault::repository::points::PointSet;
use diskvault::repository::secrets::Passphrase;
use diskvault::storage::far::process::{Remote, SshDialer};
use diskvault::storage::far::{FarOptions, FarStorage, Purpose};
use diskvault::storage::local::LocalStorage;
use diskvault::storage::place::Place;
use diskvault::storage::{Folder, ObjectName, Storage};
use diskvault_format::crypto::{ObjectKind, Secret};
use diskvault_format::id::{LeaseId, PackId, PageId, PointId};
use diskvault_format::manifest::Manifest;
use diskvault_format::pack::{PackKind, PackSecrets, PreparedSegment, assemble};
use diskvault_format::segment::{Entry, EntryKind, SegmentEncoder};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Days with a good point of each machine.
const DAYS: u64 = 7;
const DAY: Duration = Duration::from_secs(86_400);

/// A repository with a week of two machines, `db` and `web`; `web` is the one that was taken over.
struct Siege {
    vault: Vault,
    sshd: Sshd,
    /// Address and bytes of every good point.
    good: Vec<(String, Vec<u8>)>,
}

impl Siege {
    /// `None`, with a message, where there is no sshd.
    fn new() -> Option<Siege> {
        let vault = Vault::new();
        let (repo, log) = (vault.arg("repo"), vault.arg("log"));
        let program = env!("CARGO_BIN_EXE_diskvault");
        let serve =
            format!("{program} serve --stdio --append-only --restrict-to {repo} --log {log}");
        let sshd = Sshd::start(&[("web", serve)])?;
        let mut siege = Siege { vault, sshd, good: Vec::new() };
        for day in 0..DAYS {
            for (number, series) in ["db", "web"].into_iter().enumerate() {
                let data = random(100 * day + number as u64, MIB / 4);
                let id = siege.good_point(series, day, &data);
                siege.good.push((format!("id:{id}/vda"), data));
            }
        }
        Some(siege)
    }

    /// A point of so many days after the first, that the storage took then.
    fn good_point(&self, series: &str, day: u64, data: &[u8]) -> String {
        let image = self.vault.write("good", data);
        let at = SystemTime::now() - DAY * (DAYS - day) as u32;
        let time = jiff::Timestamp::try_from(at).unwrap().to_string();
        let disk = format!("vda={image}");
        let id = self.vault.backup(series, &["--time", &time, "--disk", &disk]);
        let points = self.vault.path("repo/points");
        for name in [id.clone(), format!("{id}.ok")] {
            let file = std::fs::File::options().write(true).open(points.join(name)).unwrap();
            file.set_modified(at).unwrap();
        }
        id
    }

    /// The taken-over host runs the program.
    fn attack(&self, arguments: &[&str]) -> Outcome {
        let mut command = self.vault.command(arguments);
        command
            .env("DISKVAULT_REPOSITORY", self.sshd.address("ssh", &self.vault.repo()))
            .env("DISKVAULT_SSH_COMMAND", self.sshd.words("web").join(" "))
            .env("DISKVAULT_CACHE_DIR", self.vault.path("cache-web"));
        finish(&mut command)
    }

    /// The taken-over host speaks the protocol as it likes.
    fn raw(&self, folder: &str, purpose: Purpose) -> Result<FarStorage> {
        let address = self.sshd.address("ssh", &self.vault.repo());
        let Ok(Place::Ssh(to)) = address.parse() else { panic!("{address}") };
        let program = Remote::Program("/nowhere/but/the/command/is/forced".into());
        let dialer = SshDialer::new(&self.sshd.words("web"), &to, "ssh", &program);
        FarStorage::open(Arc::new(dialer), folder, purpose, FarOptions::default())
    }

    fn line(&self) -> FarStorage {
        self.raw(&self.vault.arg("repo"), Purpose::Open).unwrap()
    }

    /// The repository as whoever has the password sees it, to make objects that are sealed well.
    fn keys(&self) -> Repository {
        let storage = Arc::new(LocalStorage::open(&self.vault.repo()).unwrap());
        let password = Passphrase::new(super::support::PASSWORD.into());
        let cache = self.vault.path("cache-forger");
        Repository::open(storage, Arc::new(SystemEnvironment), &cache, &password).unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.vault.path("log")).unwrap_or_default()
    }

    /// All objects and their bytes.
    fn snapshot(&self) -> Vec<(String, Vec<u8>)> {
        let repo = self.vault.repo();
        let names = files(&repo).into_iter().filter(|name| !name.starts_with("tmp/"));
        names.map(|name| (name.clone(), std::fs::read(repo.join(name)).unwrap())).collect()
    }

    /// Every good point comes back as it was.
    fn stands(&self) {
        for (address, data) in &self.good {
            let outcome = self.vault.ok(&["dump", address]);
            assert!(outcome.stdout == *data, "{address} came back otherwise");
        }
    }

    /// Puts an object that the login may put.
    fn plant(&self, line: &FarStorage, folder: Folder, leaf: &str, bytes: &[u8]) {
        line.put_new(&ObjectName::new(folder, leaf).unwrap(), bytes).unwrap();
    }

    /// Puts a visible point with this manifest; its id.
    fn publish(&self, line: &FarStorage, manifest: &Manifest) -> PointId {
        let keys = self.keys();
        let kind = ObjectKind::Manifest;
        let object = seal_record(keys.keys(), kind, None, &[9; 32], manifest).unwrap();
        let id = PointId(*blake3::hash(&object).as_bytes());
        self.plant(line, Folder::Points, &id.to_hex(), &object);
        self.plant(line, Folder::Points, &format!("{id}.ok"), &[]);
        id
    }

    fn newest(&self, series: &str) -> Manifest {
        let points = PointSet::load(&self.keys()).unwrap();
        points.latest(series).unwrap().manifest.clone()
    }
}

fn name(text: &str) -> ObjectName {
    ObjectName::parse(text).unwrap()
}

#[test]
fn nothing_that_is_there_goes_or_changes() {
    let Some(siege) = Siege::new() else { return };
    let before = siege.snapshot();
    let line = siege.line();
    for (object, bytes) in &before {
        let known = name(object);
        let told = siege.log().lines().count();
        let error = line.delete(&known).unwrap_err();
        assert!(error.full_text().contains("this login may only add points"), "{error:?}");
        let aside = name(&format!("aside/{}.01", object.replace('/', "-")));
        line.rename(&known, &aside).unwrap_err();
        assert_eq!(siege.log().lines().count(), told + 2, "{object}");
        let mut other = bytes.clone();
        other.push(b'x');
        line.put_new(&known, &other).unwrap_err();
        assert_eq!(siege.log().lines().count(), told + 3, "{object}");
    }
    // And its own, once they are done.
    let image = siege.vault.write("own", &random(77, MIB));
    assert_eq!(siege.attack(&["backup", "--name", "web", &image]).code, 0);
    let own: Vec<_> = siege.snapshot().into_iter().filter(|one| !before.contains(one)).collect();
    assert!(own.iter().any(|(name, _)| name.starts_with("points/")), "{}", own.len());
    for (object, _) in &own {
        line.delete(&name(object)).unwrap_err();
    }
    let after = siege.snapshot();
    assert!(before.iter().chain(&own).all(|one| after.contains(one)));
    for arguments in [
        &["forget", "web", "--force"][..],
        &["forget", "--keep-last", "1", "--allow-many"],
        &["key", "passwd", "--new-password-file", "good"],
        &["pin", "db"],
        &["tag", "db", "good=no"],
    ] {
        assert_ne!(siege.attack(arguments).code, 0, "{arguments:?}");
    }
    siege.vault.assert_intact();
    siege.stands();
}

#[test]
fn what_steers_others_cannot_be_planted() {
    let Some(siege) = Siege::new() else { return };
    let before = siege.snapshot();
    let line = siege.line();
    let (pack, point) = ("ab".repeat(32), siege.good[0].0[3..67].to_owned());
    for planted in [
        // A list of packs that are about to go, one of what is lost, a newer config, a key.
        format!("condemned/{}", "ab".repeat(16)),
        format!("lost/{}", "ab".repeat(16)),
        format!("config/00000009-{}", "ab".repeat(16)),
        format!("keys/{pack}"),
        "instance".to_owned(),
        // A removal of another's point, a mark for it, parity of a pack, a heartbeat, a bundle.
        format!("notes/{point}-{}", "ab".repeat(16)),
        format!("trash/{point}"),
        format!("points/{pack}.ok"),
        format!("parity/{pack}"),
        format!("leases/{}.7", "cd".repeat(16)),
        format!("index/{}", "ab".repeat(16)),
        format!("aside/packs-{pack}.01"),
    ] {
        let told = siege.log().lines().count();
        let error = line.put_new(&name(&planted), b"planted").unwrap_err();
        assert!(error.full_text().contains("this login may only add points"), "{planted}");
        assert_eq!(siege.log().lines().count(), told + 1, "{planted}");
    }
    assert!(siege.snapshot() == before);
    siege.vault.assert_intact();
    siege.stands();
}

#[test]
fn no_other_folder_can_be_named() {
    let Some(siege) = Siege::new() else { return };
    let (repo, beside) = (siege.vault.repo(), siege.vault.path("beside"));
    super::support::copy_folder(&repo, &beside);
    std::os::unix::fs::symlink(&beside, siege.vault.path("repo/tmp-link")).unwrap();
    let of_vault = |path: &str| siege.vault.arg(path);
    let folders = [
        of_vault("beside"),
        of_vault("."),
        of_vault("repo/../beside"),
        of_vault("repo/tmp-link"),
        of_vault("new"),
        "/".into(),
        "~/".into(),
    ];
    for (number, folder) in folders.iter().enumerate() {
        for purpose in [Purpose::Open, Purpose::Create, Purpose::MayCreate] {
            let error = siege.raw(folder, purpose).err().unwrap();
            let text = error.full_text();
            assert!(text.contains("this login may not use that folder"), "{folder}: {text}");
        }
        assert_eq!(siege.log().matches("may not use that folder").count(), 3 * (number + 1));
    }
    // A repository may not be made either where it may look.
    let error = siege.raw(&of_vault("repo/inner"), Purpose::Create).err().unwrap();
    assert!(error.full_text().contains("this login may make none"), "{error:?}");
    assert!(!siege.vault.path("new").exists() && !repo.join("inner").exists());
    std::fs::remove_file(siege.vault.path("repo/tmp-link")).unwrap();
    siege.vault.assert_intact();
    siege.stands();
}

#[test]
fn dates_of_choice_take_no_good_points_place() {
    let Some(siege) = Siege::new() else { return };
    let image = siege.vault.write("bad", &random(66, MIB / 4));
    let disk = format!("vda={image}");
    for series in ["db", "web"] {
        for day in 0..DAYS {
            // Later on the day of each good point, so that they were its newest.
            let at = SystemTime::now() - DAY * (DAYS - day) as u32 + Duration::from_secs(60);
            let time = jiff::Timestamp::try_from(at).unwrap().to_string();
            let outcome =
                siege.attack(&["backup", "--name", series, "--time", &time, "--disk", &disk]);
            assert_eq!(outcome.code, 0, "{outcome:?}");
        }
        for time in ["1970-01-02", "2199-01-01"] {
            siege.attack(&["backup", "--name", series, "--time", time, "--disk", &disk]);
        }
    }
    let outcome = siege.vault.ok(&["forget", "--keep-daily", "7", "--keep-last", "3", "--prune"]);
    assert!(outcome.text().matches("dated before points that were received earlier").count() >= 12);
    outcome.prints("dated in the future");
    siege.vault.assert_intact();
    siege.stands();
}

#[test]
fn a_flood_of_points_is_seen_before_it_costs_one() {
    let Some(siege) = Siege::new() else { return };
    let image = siege.vault.write("bad", b"nothing at all");
    // As many as a policy keeps: in the series of another, and in its own.
    for series in ["db", "web"] {
        for _ in 0..DAYS {
            assert_eq!(siege.attack(&["backup", "--name", series, &image]).code, 0);
        }
        let policy = ["forget", "--keep-last", "7", "--series", series];
        let outcome = siege.vault.run(&policy);
        assert_eq!(outcome.code, 1, "{outcome:?}");
        let text = format!("cannot forget 7 of 14 points of {series} at once: others that came");
        outcome.says(&text).prints("held: others that came in a rush").hints("--allow-many");
        let outcome = siege.vault.run(&[&policy[..], &["--dry-run"]].concat());
        assert_eq!(outcome.code, 4, "{outcome:?}");
    }
    // Counted by days, all of it takes one place.
    let dry = ["forget", "--keep-daily", "8", "--dry-run", "--allow-many"];
    let kept = siege.vault.ok(&dry);
    assert_eq!(kept.text().lines().filter(|row| row.starts_with("keep")).count(), 16);
    siege.vault.assert_intact();
    siege.stands();
}

#[test]
fn a_lease_that_never_ends_is_told_and_can_be_ended() {
    let Some(mut siege) = Siege::new() else { return };
    // Something that is to be freed.
    let (address, _) = siege.good.remove(1);
    siege.vault.ok(&["forget", &address[..address.len() - "/vda".len()]]);
    let line = siege.line();
    let lease = "ab".repeat(16);
    siege.plant(&line, Folder::Leases, &lease, b"for ever");
    siege.plant(&line, Folder::Leases, &format!("{lease}.{}", u64::MAX), b"");
    for number in 1..20 {
        siege.plant(&line, Folder::Leases, &format!("{lease}.{number}"), b"");
    }
    let outcome = siege.vault.run(&["prune", "--no-wait", "--max-unused", "0"]);
    outcome.prints("backups are running: the next prune on this host");
    let checked = siege.vault.run(&["check"]);
    assert_eq!(checked.code, 5, "{checked:?}");
    checked.prints(&lease);
    // Whoever keeps the repository fences it; a writer that lives would start over.
    std::fs::remove_file(siege.vault.path("repo/leases").join(&lease)).unwrap();
    siege.vault.ok(&["prune", "--max-unused", "0"]);
    assert!(!files(&siege.vault.repo()).iter().any(|name| name.starts_with("leases/")));
    siege.vault.assert_intact();
    siege.stands();
}

/// A pack whose footer names all chunks, or all pages, of others, with other bytes behind it.
fn false_pack(keys: &Repository, kind: PackKind) -> (String, Vec<u8>) {
    let storage = keys.storage();
    let mut entries: Vec<Entry> = Vec::new();
    for entry in storage.list(Folder::Packs).unwrap() {
        let id = PackId::from_hex(entry.name.leaf()).unwrap();
        let pack = open_pack(storage.as_ref(), keys.keys(), id).unwrap();
        if pack.kind == kind {
            entries.extend(pack.footer.segments.iter().flat_map(|it| it.entries.clone()));
        }
    }
    entries.retain(|entry| entry.kind != EntryKind::Splice);
    let total = entries.iter().map(|entry| u64::from(entry.bytes)).sum();
    let mut plaintext = Vec::new();
    let mut encoder = SegmentEncoder::new(3).unwrap();
    encoder.encode(&entries, &random(5, total), &mut plaintext).unwrap();
    let secrets = PackSecrets { key: Secret::new([5; 32]), wrap_random: [6; 32], own_copy: None };
    let segment = PreparedSegment { entries, anchors: Vec::new(), plaintext };
    let pack = assemble(keys.keys(), kind, LeaseId([7; 16]), &secrets, vec![segment]).unwrap();
    (pack_name(pack.id).unwrap().leaf().to_owned(), pack.bytes)
}

#[test]
fn packs_that_lie_about_what_they_hold_take_no_good_ones_away() {
    let Some(siege) = Siege::new() else { return };
    let line = siege.line();
    let mut planted = Vec::new();
    for kind in [PackKind::Data, PackKind::Map] {
        let (leaf, bytes) = false_pack(&siege.keys(), kind);
        siege.plant(&line, Folder::Packs, &leaf, &bytes);
        planted.push(leaf);
    }
    siege.stands();
    // By what the footers say, the good packs may go now.
    let outcome = siege.vault.run(&["prune", "--max-unused", "0"]);
    assert!(matches!(outcome.code, 0 | 4), "{outcome:?}");
    siege.stands();
    let checked = siege.vault.run(&["check", "--read-data"]);
    let left = files(&siege.vault.repo());
    let is_left = |leaf: &&String| left.iter().any(|name| name.ends_with(leaf.as_str()));
    let left: Vec<_> = planted.iter().filter(is_left).collect();
    assert_eq!(checked.code, if left.is_empty() { 0 } else { 5 }, "{checked:?}");
    assert!(left.iter().all(|leaf| checked.text().contains(leaf.as_str())), "{checked:?}");
    if !left.is_empty() {
        let outcome = siege.vault.run(&["repair", "packs"]);
        assert!(matches!(outcome.code, 0 | 4), "{outcome:?}");
    }
    siege.vault.assert_intact();
    siege.stands();
}

#[test]
fn points_that_cannot_be_are_seen_and_stop_nobody() {
    let Some(siege) = Siege::new() else { return };
    let line = siege.line();
    // The last number that there is: nobody's next point can have a greater one.
    let mut manifest = siege.newest("db");
    manifest.sequence = u64::MAX;
    let last = siege.publish(&line, &manifest).to_hex();
    let image = siege.vault.write("next", &random(8, MIB / 4));
    let next = siege.vault.backup("db", &["--disk", &format!("vda={image}")]);
    siege.vault.assert_restores(&format!("id:{next}/vda"), &random(8, MIB / 4));
    siege.vault.assert_restores("db/vda", &random(8, MIB / 4));
    // One whose map is nowhere, and that names points which never were.
    manifest.sequence = 1;
    manifest.disks[0].top = Some(PageId([3; 32]));
    manifest.previous = vec![PointId([4; 32])];
    let broken = siege.publish(&line, &manifest).to_hex();
    let checked = siege.vault.run(&["check"]);
    assert_eq!(checked.code, 5, "{checked:?}");
    checked.prints(&broken[..8]);
    siege.stands();
    let pruned = siege.vault.run(&["prune"]);
    assert_ne!(pruned.code, 0, "{pruned:?}");
    siege.stands();
    // Who keeps the repository takes them away.
    siege.vault.run(&["forget", "--force", &broken]);
    siege.vault.run(&["forget", "--force", &last]);
    let pruned = siege.vault.run(&["prune", "--force"]);
    assert!(matches!(pruned.code, 0 | 4), "{pruned:?}");
    siege.vault.assert_intact();
    siege.stands();
}

#[test]
fn bytes_that_are_no_objects_harm_nobody() {
    let Some(siege) = Siege::new() else { return };
    let line = siege.line();
    let junk = random(4, MIB);
    for number in 0..8 {
        let leaf = blake3::hash(&[number]).to_hex();
        siege.plant(&line, Folder::Packs, &leaf, &junk);
    }
    siege.plant(&line, Folder::Points, &"ab".repeat(32), &junk[..4000]);
    siege.plant(&line, Folder::Points, &format!("{}.ok", "ab".repeat(32)), b"");
    siege.stands();
    let checked = siege.vault.run(&["check", "--no-key"]);
    assert_eq!(checked.code, 5, "{checked:?}");
    assert_eq!(siege.vault.run(&["check"]).code, 5);
    // Everybody else goes on.
    let image = siege.vault.write("next", &random(8, MIB / 4));
    let outcome = siege.vault.run(&["backup", "--name", "db", "--disk", &format!("vda={image}")]);
    assert!(matches!(outcome.code, 0 | 4), "{outcome:?}");
    siege.vault.run(&["repair", "packs"]);
    siege.vault.run(&["repair", "objects"]);
    siege.vault.run(&["prune", "--force"]);
    let checked = siege.vault.run(&["check", "--read-data"]);
    assert!(matches!(checked.code, 0 | 4), "{checked:?}");
    siege.stands();
}

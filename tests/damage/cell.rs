//! One cell of the table: an object, what happened to it, and what the program then does.
//!
//! Invariants that hold for every cell are asserted here: nothing panics, no wrong byte comes
//! back, every error is of a kind that a caller can act on, and names what is damaged.

use super::scene::{Scene, Subject};
use crate::support::vault::{Vault, damage_of, restore};
use diskvault::error::{Error, ErrorKind};
use diskvault::monitor::Silent;
use diskvault::repository::Repository;
use diskvault::repository::address::resolve;
use diskvault::repository::locate::Locator;
use diskvault::repository::points::PointSet;
use diskvault_format::pack::HEADER_BYTES;
use diskvault_format::segment::FRAME_BYTES;

/// What happens to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    Delete,
    Truncate,
    FlipFirst,
    FlipMiddle,
    FlipLast,
    /// Only packs: in what the first segment holds.
    FlipSegment,
    Zero,
    Swap,
    OtherObject,
    OtherRepository,
}

impl Damage {
    pub const ALL: [Damage; 10] = [
        Damage::Delete,
        Damage::Truncate,
        Damage::FlipFirst,
        Damage::FlipMiddle,
        Damage::FlipLast,
        Damage::FlipSegment,
        Damage::Zero,
        Damage::Swap,
        Damage::OtherObject,
        Damage::OtherRepository,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Damage::Delete => "deleted",
            Damage::Truncate => "cut in half",
            Damage::FlipFirst => "bit in the first byte",
            Damage::FlipMiddle => "bit in the middle",
            Damage::FlipLast => "bit in the last byte",
            Damage::FlipSegment => "bit in the first segment",
            Damage::Zero => "zeroed",
            Damage::Swap => "swapped with a sibling",
            Damage::OtherObject => "replaced by a sibling",
            Damage::OtherRepository => "replaced by another repository's",
        }
    }

    /// False where it would change nothing or cannot be done.
    pub fn fits(self, subject: &Subject) -> bool {
        match self {
            Damage::Delete => true,
            // An `ok` is empty, and its bytes are not read.
            _ if subject.name.ends_with(".ok") || subject.also.is_some() => false,
            Damage::FlipSegment => subject.name.starts_with("packs/"),
            Damage::Swap | Damage::OtherObject => subject.sibling.is_some(),
            _ => true,
        }
    }

    fn apply(self, vault: &Vault, subject: &Subject, foreign: &[u8]) {
        let storage = &vault.storage;
        let name = &subject.name;
        let change = |change: &dyn Fn(&mut Vec<u8>)| assert!(storage.corrupt(name, change));
        match (self, &subject.sibling) {
            (Damage::Delete, _) => {
                assert!(storage.remove(name));
                if let Some(also) = &subject.also {
                    assert!(storage.remove(also));
                }
            }
            (Damage::Truncate, _) => change(&|data| data.truncate(data.len() / 2)),
            (Damage::FlipFirst, _) => change(&|data| data[0] ^= 1),
            (Damage::FlipMiddle, _) => change(&|data| {
                let middle = data.len() / 2;
                data[middle] ^= 1;
            }),
            (Damage::FlipLast, _) => change(&|data| *data.last_mut().unwrap() ^= 1),
            (Damage::FlipSegment, _) => change(&|data| data[HEADER_BYTES + FRAME_BYTES + 1] ^= 1),
            (Damage::Zero, _) => change(&|data| data.fill(0)),
            (Damage::Swap | Damage::OtherObject, Some(sibling)) => {
                let all = storage.snapshot();
                storage.insert(name, all[sibling].clone());
                if self == Damage::Swap {
                    storage.insert(sibling, all[name].clone());
                }
            }
            (Damage::OtherRepository, _) => storage.insert(name, foreign),
            (Damage::Swap | Damage::OtherObject, None) => unreachable!("see `fits`"),
        }
    }
}

/// What the program does; texts of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub check: String,
    pub check_data: String,
    pub check_home: String,
    pub by_id: String,
    pub by_id_home: String,
    pub latest: String,
    pub latest_home: String,
    pub backup: String,
    pub backup_home: String,
}

/// Damages one object of a fresh copy and looks at everything.
pub fn run(scene: &Scene, other: &Scene, number: usize, damage: Damage) -> Outcome {
    let subject = &scene.subjects[number];
    let foreign = other.bytes(&other.subjects[number].name);
    let seed = 1000 + (number * 100 + damage as usize) as u64;
    let mut vault = scene.copy(seed, subject.needs_lists);
    damage.apply(&vault, subject, &foreign);
    let cell = Cell { scene, subject, what: format!("{}, {}", subject.label, damage.label()) };
    let check = cell.check(&vault, "check", false);
    let check_data = cell.check(&vault, "check-data", true);
    let by_id = cell.restore_by_id(&vault, "restore");
    let latest = cell.restore_latest(&vault, "restore");
    // With the index of the host that made the points, and what it remembers.
    let by_id_home = cell.restore_by_id(&vault, "home");
    let latest_home = cell.restore_latest(&vault, "home");
    assert_ne!(latest_home, "an older one", "{}", cell.what);
    let check_home = cell.check(&vault, "home", false);
    let mut second = scene.copy(seed + 50, subject.needs_lists);
    damage.apply(&second, subject, &foreign);
    let backup = cell.backup(&mut vault, "backup");
    // Whoever looked in between must not take from the backup what it has to know.
    cell.restore_by_id(&second, "home");
    let backup_home = cell.backup(&mut second, "home");
    Outcome {
        check,
        check_data,
        check_home,
        by_id,
        by_id_home,
        latest,
        latest_home,
        backup,
        backup_home,
    }
}

struct Cell<'a> {
    scene: &'a Scene,
    subject: &'a Subject,
    what: String,
}

impl Cell<'_> {
    /// An error has to be of a kind that fits, and to name the object or the chunk it took away.
    fn judge(&self, error: &Error) -> String {
        let what = &self.what;
        let text = error.full_text();
        let kind = match error.kind() {
            ErrorKind::Damage => "damage",
            ErrorKind::NoRepository => "no repository",
            ErrorKind::WrongKey => "wrong key",
            ErrorKind::NotFound => "not found",
            other => panic!("{what}: {other:?}: {text}"),
        };
        if error.kind() == ErrorKind::Damage {
            assert!(self.names_it(&text), "{what}: {text} does not name {}", self.subject.needle);
        }
        kind.into()
    }

    fn names_it(&self, text: &str) -> bool {
        let sibling = self.subject.sibling.as_deref().unwrap_or("instance");
        let sibling = sibling.rsplit('/').next().unwrap_or(sibling);
        let is_pack = self.subject.name.starts_with("packs/");
        text.contains(&self.subject.needle)
            || text.contains(sibling)
            // A pack that is gone can only be told by what it held.
            || is_pack && text.contains("no pack holds it")
            || is_pack && text.contains(" in no pack")
    }

    fn open(&self, vault: &Vault, cache: &str) -> Result<Repository, String> {
        vault.open(cache).map_err(|error| format!("does not open: {}", self.judge(&error)))
    }

    fn check(&self, vault: &Vault, cache: &str, with_data: bool) -> String {
        let repository = match self.open(vault, cache) {
            Ok(repository) => repository,
            Err(text) => return text,
        };
        let report = vault.check(&repository, with_data).unwrap();
        if report.damage_count() == 0 {
            return "clean".into();
        }
        let text = damage_of(&report);
        assert!(self.names_it(&text), "{}: {text}", self.what);
        "damage".into()
    }

    fn restore_by_id(&self, vault: &Vault, cache: &str) -> String {
        let repository = match self.open(vault, cache) {
            Ok(repository) => repository,
            Err(text) => return text,
        };
        let outcomes = vault.restore_all(&repository).unwrap();
        let all = self.scene.vault.known.len();
        let whole = outcomes.values().filter(|outcome| outcome.is_ok()).count();
        for error in outcomes.into_values().filter_map(Result::err) {
            self.judge(&error);
        }
        if whole == all { format!("all {all}") } else { format!("{whole} of {all}") }
    }

    /// As the command line finds a point by its series.
    fn restore_latest(&self, vault: &Vault, cache: &str) -> String {
        let repository = match self.open(vault, cache) {
            Ok(repository) => repository,
            Err(text) => return text,
        };
        let points = PointSet::load(&repository).unwrap();
        if !points.doubts(&repository).unwrap().is_empty() {
            return "refused".into();
        }
        let point = resolve(&points, "web01").unwrap().point;
        if point.id != self.scene.newest {
            return "an older one".into();
        }
        let locator = Locator::open(&repository, &Silent).unwrap();
        match restore(&repository, &locator, point) {
            Ok(_) => "the newest".into(),
            Err(error) => self.judge(&error),
        }
    }

    /// Backs up once more and restores the new point on a host that knows nothing.
    fn backup(&self, vault: &mut Vault, cache: &str) -> String {
        let repository = match self.open(vault, cache) {
            Ok(repository) => repository,
            Err(text) => return text,
        };
        let report = match vault.backup(&repository, "web01", &self.scene.next) {
            Ok(report) => report,
            Err(error) => return format!("refused: {}", self.judge(&error)),
        };
        let repository = vault.open("stranger").unwrap();
        let outcomes = vault.restore_all(&repository).unwrap();
        match &outcomes[&report.point] {
            Ok(()) => "whole".into(),
            Err(error) => {
                self.judge(error);
                "not whole".into()
            }
        }
    }
}

//! The damage matrix: every kind of object, damaged in every way, and what `check`, `restore` and
//! `backup` do then.
//!
//! Promise 2: no damaged, swapped, replayed or truncated object goes unnoticed, and none yields
//! wrong bytes. What cannot be noticed stands in `EXCEPTIONS`, one by one. The measured table is
//! compared with docs/damage.md; `UPDATE_DOCS=1` writes it there.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;

#[path = "damage/cell.rs"]
mod cell;
#[path = "damage/scene.rs"]
mod scene;

use cell::{Damage, Outcome};
use diskvault::error::ErrorKind;
use diskvault::storage::Folder;
use diskvault::storage::memory::{Fault, FaultKind};
use scene::Scene;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use support::vault::{PASSWORD, Vault};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/damage.md");
const BEGIN: &str = "<!-- measured by tests/damage.rs: begin -->\n";
const END: &str = "<!-- measured by tests/damage.rs: end -->";

/// Who can see what a complete check of a strange host does not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// A host that remembers.
    AtHome,
    /// Nobody, and nothing is lost but what the object said.
    Never,
}

/// The cells in which `check --read-data` of a host that knows nothing finds no damage.
const EXCEPTIONS: [(&str, Damage, Seen); 12] = [
    ("newest config", Damage::Delete, Seen::AtHome),
    ("older config", Damage::Delete, Seen::Never),
    ("instance", Damage::OtherRepository, Seen::Never),
    ("ok of the newest point", Damage::Delete, Seen::AtHome),
    ("newest point, both objects", Damage::Delete, Seen::AtHome),
    ("tag note", Damage::Delete, Seen::Never),
    // The trash still explains the point's absence, and the note the trash's.
    ("removal note", Damage::Delete, Seen::Never),
    ("forgotten manifest in the trash", Damage::Delete, Seen::Never),
    ("lease", Damage::Delete, Seen::Never),
    ("heartbeat", Damage::Delete, Seen::Never),
    ("condemned list", Damage::Delete, Seen::Never),
    ("lost list", Damage::Delete, Seen::Never),
];

/// The cells after which a backup can make a point that is not whole: it believes a footer it has
/// read, and does not read segments.
const NOT_HEALED: [(&str, Damage); 2] =
    [("data pack", Damage::FlipMiddle), ("data pack", Damage::FlipSegment)];

/// As above, for the host whose index knows the pack: it does not read the footer again while the
/// pack has its size (another repository's has other anchors, and so another size).
const NOT_HEALED_AT_HOME: [(&str, Damage); 2] =
    [("data pack", Damage::FlipLast), ("data pack", Damage::Zero)];

type Cells = Vec<(usize, Damage, Outcome)>;

#[test]
fn no_damage_goes_unnoticed_and_none_yields_wrong_bytes() {
    let scene = Scene::new(1);
    let other = Scene::new(2);
    let cells = measure(&scene, &other);
    for (number, damage, outcome) in &cells {
        verify(scene.subjects[*number].label, *damage, outcome);
        verify_backup(scene.subjects[*number].label, *damage, outcome);
    }
    compare_with_docs(&render(&scene, &cells));
}

/// No config, no repository; a wrong password is told from damage, and damage from a storage that
/// fails.
#[test]
fn what_keeps_a_repository_from_opening_is_told_apart() {
    let vault = Vault::new(3);
    let kind =
        |vault: &Vault, password| vault.open_as("x", password).map(|_| ()).unwrap_err().kind();
    assert_eq!(kind(&vault, "wrong"), ErrorKind::WrongKey);
    let failing = vault.copy(1);
    // Listing and reading the config go well, reading the slot does not.
    failing.storage.set_fault(Fault { at_operation: 2, kind: FaultKind::Error, once: true });
    assert_eq!(kind(&failing, PASSWORD), ErrorKind::Storage);
    vault.open("x").unwrap();
    for name in vault.names(Folder::Config) {
        vault.storage.remove(name);
    }
    assert_eq!(kind(&vault, PASSWORD), ErrorKind::NoRepository);
}

/// Measures all cells, two at a time.
fn measure(scene: &Scene, other: &Scene) -> Cells {
    let fitting = |number: usize| {
        let subject = &scene.subjects[number];
        Damage::ALL
            .into_iter()
            .filter(|damage| damage.fits(subject))
            .map(move |damage| (number, damage))
    };
    let wanted: Vec<(usize, Damage)> = (0..scene.subjects.len()).flat_map(fitting).collect();
    let next = AtomicUsize::new(0);
    let cells = Mutex::new(Cells::new());
    let failed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((number, damage)) = wanted.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    // One cell that fails hides no other; its message is printed by the panic.
                    let run = || cell::run(scene, other, *number, *damage);
                    let Ok(outcome) = catch_unwind(AssertUnwindSafe(run)) else {
                        failed.fetch_add(1, Ordering::Relaxed);
                        continue;
                    };
                    let mut cells = cells.lock().unwrap_or_else(PoisonError::into_inner);
                    cells.push((*number, *damage, outcome));
                }
            });
        }
    });
    assert_eq!(failed.into_inner(), 0, "cells failed, as printed above");
    let mut cells = cells.into_inner().unwrap();
    cells.sort_by_key(|(number, damage, _)| (*number, *damage as usize));
    cells
}

/// A complete check sees everything but the exceptions, and those are just these.
fn verify(label: &str, damage: Damage, outcome: &Outcome) {
    let exception = EXCEPTIONS.iter().find(|known| (known.0, known.1) == (label, damage));
    let cell = format!("{label}, {}: {outcome:?}", damage.label());
    match exception.map(|known| known.2) {
        None => assert_ne!(outcome.check_data, "clean", "{cell}"),
        Some(Seen::AtHome) => {
            assert_eq!(outcome.check_data, "clean", "{cell}");
            assert_eq!(outcome.check_home, "damage", "{cell}");
        }
        Some(Seen::Never) => {
            assert_eq!(outcome.check_data, "clean", "{cell}");
            assert_eq!(outcome.check_home, "clean", "{cell}");
        }
    }
}

/// A backup makes a whole point or none, but for the exceptions, and those are just these.
fn verify_backup(label: &str, damage: Damage, outcome: &Outcome) {
    let cell = format!("{label}, {}: {outcome:?}", damage.label());
    let everywhere = NOT_HEALED.contains(&(label, damage));
    let is_pack = label.ends_with("pack");
    let at_home = everywhere || NOT_HEALED_AT_HOME.contains(&(label, damage));
    assert_eq!(outcome.backup == "not whole", everywhere, "{cell}");
    assert_eq!(outcome.backup_home == "not whole", at_home, "{cell}");
    if is_pack && !everywhere {
        assert_eq!(outcome.backup, "whole", "{cell}");
    }
}

/// The table; ways of damage with one outcome share a row.
fn render(scene: &Scene, cells: &Cells) -> String {
    let mut table = String::from(
        "| object | what happened | check | check --read-data | restore by id | restore latest \
         | next backup |\n|---|---|---|---|---|---|---|\n",
    );
    for (number, subject) in scene.subjects.iter().enumerate() {
        let mut rows: Vec<(String, &Outcome)> = Vec::new();
        for (_, damage, outcome) in cells.iter().filter(|cell| cell.0 == number) {
            match rows.iter_mut().find(|row| row.1 == outcome) {
                Some(row) => row.0 += &format!(", {}", damage.label()),
                None => rows.push((damage.label().into(), outcome)),
            }
        }
        for (damages, outcome) in rows {
            writeln!(
                table,
                "| {} | {damages} | {} | {} | {} | {} | {} |",
                subject.label,
                both(&outcome.check, &outcome.check_home),
                outcome.check_data,
                both(&outcome.by_id, &outcome.by_id_home),
                both(&outcome.latest, &outcome.latest_home),
                both(&outcome.backup, &outcome.backup_home)
            )
            .unwrap();
        }
    }
    table
}

/// What a strange host does, and the one that made the points if that differs.
fn both(stranger: &str, home: &str) -> String {
    if stranger == home { home.into() } else { format!("{stranger}; same host: {home}") }
}

fn compare_with_docs(measured: &str) {
    let docs = std::fs::read_to_string(DOCS).unwrap();
    let (before, rest) = docs.split_once(BEGIN).unwrap();
    let (documented, after) = rest.split_once(END).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(DOCS, format!("{before}{BEGIN}{measured}{END}{after}")).unwrap();
        return;
    }
    assert!(
        documented == measured,
        "docs/damage.md says something else than was measured (UPDATE_DOCS=1 rewrites it):\n{measured}"
    );
}

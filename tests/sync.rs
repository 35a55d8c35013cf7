//! `sync` through the library: a replica has the same objects, a sync that is stopped anywhere is
//! gone on with, and nothing that is damaged or condemned gets in the way of what is whole. And
//! what a storage at the far end of a slow line is asked for.

#![allow(clippy::unwrap_used, reason = "a test may stop where it fails")]

mod support;

#[path = "crash/rig.rs"]
#[allow(dead_code, reason = "each test program uses a part of it")]
mod rig;

use diskvault::error::{ErrorKind, Result};
use diskvault::monitor::Silent;
use diskvault::repository::Repository;
use diskvault::repository::condemned::put_list;
use diskvault::repository::notes::put_note;
use diskvault::repository::points::PointSet;
use diskvault::repository::replica::{Relation, bring_keys_up, initialise_replica, relation};
use diskvault::retention::forget::{ForgetOptions, forget};
use diskvault::storage::memory::Operation;
use diskvault::storage::{Folder, ObjectName, Storage};
use diskvault::sync::{Outcome, State, Syncer, plan};
use diskvault_format::id::PackId;
use diskvault_format::pack::{PackKind, decode_header};
use diskvault_format::small::NOTE_PIN;
use rig::{FAULTS, machine, recover, set};
use std::sync::Arc;
use support::vault::{Parts, SeededEnvironment, Vault, damage_of, noise};

/// A repository with three days of a machine, and a replica without points.
fn with_replica() -> (Vault, Vault) {
    let mut source = Vault::new(1);
    let repository = source.open("host").unwrap();
    for day in 1..=3 {
        source.backup(&repository, "web01", &machine(day)).unwrap();
    }
    let target = Vault::empty(Arc::new(SeededEnvironment::new(2)));
    initialise_replica(&repository, &target.storage).unwrap();
    (source, target)
}

fn open_both(source: &Vault, target: &Vault) -> Result<(Repository, Repository)> {
    let from = source.open("syncer")?;
    let storage = Arc::new(target.storage.clone());
    let to = from.open_copy(storage, &target.cache("syncer"), Arc::new(Silent))?;
    Ok((from, to))
}

/// Syncs everything; the errors of what failed.
fn sync(source: &Vault, target: &Vault, brings_back: bool) -> Result<Vec<String>> {
    let (from, to) = open_both(source, target)?;
    let planned = plan(&from, &to, brings_back, &|_| true)?;
    let syncer = Syncer { source: &from, target: &to, host: "syncer", monitor: &Silent };
    let mut failures = Vec::new();
    syncer.run(&planned, &mut |_, outcome| {
        if let Outcome::Failed(error) = outcome {
            failures.push(error.full_text());
        }
        Ok(())
    })?;
    Ok(failures)
}

/// All points of the replica come back as they are in the source, and a check is content.
fn assert_whole(source: &Vault, target: &mut Vault, points: usize) {
    target.known.clone_from(&source.known);
    let repository = target.open("stranger").unwrap();
    let restored = target.restore_all(&repository).unwrap();
    assert!(restored.values().all(Result::is_ok), "{restored:?}");
    assert_eq!(restored.len(), points);
    assert_eq!(damage_of(&target.check(&repository, true).unwrap()), "");
}

fn states(source: &Vault, target: &Vault) -> Vec<State> {
    let (from, to) = open_both(source, target).unwrap();
    let planned = plan(&from, &to, false, &|_| true).unwrap();
    planned.points.iter().map(|planned| planned.state).collect()
}

fn forget_first(vault: &Vault) {
    let repository = vault.open("host").unwrap();
    let points = PointSet::load(&repository).unwrap();
    let options = ForgetOptions { reason: "policy", host: "host", ends_pins: false };
    forget(&repository, &[&points.points[0]], &options, &Silent).unwrap();
}

#[test]
fn a_replica_has_the_same_objects_and_an_instance_of_its_own() {
    let (source, mut target) = with_replica();
    assert_eq!(sync(&source, &target, false).unwrap(), [""; 0]);
    assert_whole(&source, &mut target, 3);
    let there = target.storage.snapshot();
    for (name, bytes) in source.storage.snapshot() {
        if name == "instance" {
            assert_ne!(there[&name], bytes);
        } else {
            assert!(there[&name] == bytes, "{name}");
        }
    }
    assert_eq!(source.storage.snapshot().len(), there.len(), "no lease stays");
    // Nothing is written by a second one.
    sync(&source, &target, false).unwrap();
    assert!(there == target.storage.snapshot());
}

#[test]
fn only_what_the_replica_lacks_goes_over() {
    let (mut source, mut target) = with_replica();
    sync(&source, &target, false).unwrap();
    let repository = source.open("host").unwrap();
    let before = source.names(Folder::Packs);
    source.backup(&repository, "web01", &machine(4)).unwrap();
    let new = source.names(Folder::Packs).len() - before.len();
    let log = target.storage.log().len();
    let read = source.storage.log().len();
    sync(&source, &target, false).unwrap();
    let puts = |log: &[(Operation, String)], operation, folder: &str| {
        log.iter().filter(|(done, name)| *done == operation && name.starts_with(folder)).count()
    };
    assert_eq!(puts(&target.storage.log()[log..], Operation::Put, "packs/"), new);
    assert_eq!(puts(&source.storage.log()[read..], Operation::Get, "packs/"), new);
    assert_whole(&source, &mut target, 4);
}

#[test]
fn a_sync_that_is_stopped_anywhere_is_gone_on_with() {
    let (source, base) = with_replica();
    for (kind, once) in FAULTS {
        for n in 0.. {
            let mut target = base.copy(100 + n);
            set(&target.storage, n, kind, once);
            let stopped = sync(&source, &target, false);
            let is_over = target.storage.operations() <= n;
            recover(&target.storage);
            // What was reported is there, whatever happened.
            let visible =
                target.names(Folder::Points).iter().filter(|n| n.ends_with(".ok")).count();
            if stopped.is_ok() {
                assert_eq!(visible, 3, "{kind:?} at {n}");
            }
            let failures = sync(&source, &target, false).unwrap();
            assert_eq!(failures, [""; 0], "{kind:?} at {n}");
            if n % 5 == 0 || stopped.is_ok() {
                assert_whole(&source, &mut target, 3);
            }
            if is_over || stopped.is_ok() && n > 60 {
                break;
            }
        }
    }
}

#[test]
fn damage_in_the_source_stays_there_and_ends_its_point_alone() {
    let (source, mut target) = with_replica();
    // The newest data pack is needed by the last day alone.
    let repository = source.open("host").unwrap();
    let points = PointSet::load(&repository).unwrap().points;
    assert_eq!(points.len(), 3);
    let mut days = Vec::new();
    for day in 1..=3 {
        let mut alone = Vault::new(1);
        let host = alone.open("host").unwrap();
        for earlier in 1..=day {
            alone.backup(&host, "web01", &machine(earlier)).unwrap();
        }
        days.push(alone.names(Folder::Packs));
    }
    let objects = source.storage.snapshot();
    let is_data =
        |name: &str| decode_header(&objects[name]).unwrap().identity.kind == PackKind::Data;
    let mut new = days[2].iter().filter(|name| !days[1].contains(name));
    let last = new.find(|name| is_data(name)).unwrap().clone();
    let mut bytes = objects[&last].to_vec();
    bytes[300] ^= 1;
    source.storage.remove(last.clone());
    source.storage.insert(last.clone(), bytes);
    let failures = sync(&source, &target, false).unwrap();
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].contains("do not hash to its name"), "{failures:?}");
    assert!(!target.names(Folder::Packs).contains(&last));
    assert_whole(&source, &mut target, 2);
}

#[test]
fn what_was_forgotten_in_the_replica_stays_away_until_it_is_asked_for() {
    let (source, mut target) = with_replica();
    sync(&source, &target, false).unwrap();
    forget_first(&target);
    assert_eq!(states(&source, &target), [State::Forgotten, State::Present, State::Present]);
    sync(&source, &target, false).unwrap();
    assert_whole(&source, &mut target, 2);
    sync(&source, &target, true).unwrap();
    assert_whole(&source, &mut target, 3);
    // A forget of the source is not a forget of the replica.
    forget_first(&source);
    sync(&source, &target, false).unwrap();
    assert_whole(&source, &mut target, 3);
}

#[test]
fn notes_go_over_and_removals_explain_what_is_gone() {
    let (source, mut target) = with_replica();
    let repository = source.open("host").unwrap();
    let second = PointSet::load(&repository).unwrap().points[1].id;
    put_note(&repository, second, NOTE_PIN, "host", Vec::new()).unwrap();
    forget_first(&source);
    sync(&source, &target, false).unwrap();
    // The second day follows one that the replica has never seen; `check` says no word of it.
    assert_whole(&source, &mut target, 2);
    let notes = target.names(Folder::Notes);
    assert!(notes.iter().any(|name| name.contains(&second.to_hex())), "{notes:?}");
    assert_eq!(notes, source.names(Folder::Notes));
}

#[test]
fn a_replica_that_is_pruned_or_damaged_is_left_alone() {
    let (source, target) = with_replica();
    let (from, to) = open_both(&source, &target).unwrap();
    let packs: Vec<PackId> = source
        .names(Folder::Packs)
        .iter()
        .filter_map(|name| PackId::from_hex(name.rsplit('/').next()?))
        .collect();
    let list = put_list(&to, &packs[..1], "pruner").unwrap();
    let error = sync(&source, &target, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage);
    assert!(error.full_text().contains("a prune is at work there"), "{error:?}");
    assert!(target.names(Folder::Points).is_empty() && target.names(Folder::Leases).is_empty());
    target.storage.delete(&list.name).unwrap();
    drop((from, to));
    // A damaged pack under the name of a good one counts for nothing and is not written over.
    let name = source.names(Folder::Packs)[0].clone();
    target.storage.insert(name.clone(), vec![0; 1000]);
    let failures = sync(&source, &target, false).unwrap();
    assert!(failures.iter().all(|text| text.contains("the replica has a damaged one")));
    assert!(!failures.is_empty());
    target.storage.delete(&ObjectName::parse(&name).unwrap()).unwrap();
    assert_eq!(sync(&source, &target, false).unwrap(), [""; 0]);
}

#[test]
fn a_syncer_that_was_taken_for_dead_makes_no_point_visible() {
    let (source, mut target) = with_replica();
    let (from, to) = open_both(&source, &target).unwrap();
    let planned = plan(&from, &to, false, &|_| true).unwrap();
    let syncer = Syncer { source: &from, target: &to, host: "syncer", monitor: &Silent };
    let storage = target.storage.clone();
    let fenced = syncer.run(&planned, &mut |_, _| {
        // After the first point somebody gives up on it.
        for entry in storage.list(Folder::Leases)? {
            storage.delete(&entry.name)?;
        }
        Ok(())
    });
    assert_eq!(fenced.unwrap_err().kind(), ErrorKind::Fenced);
    let visible = target.names(Folder::Points).iter().filter(|name| name.ends_with(".ok")).count();
    assert_eq!(visible, 1);
    assert_eq!(sync(&source, &target, false).unwrap(), [""; 0]);
    assert_whole(&source, &mut target, 3);
}

#[test]
fn copies_that_are_one_or_have_drifted_apart_are_told() {
    let (source, target) = with_replica();
    let (from, to) = open_both(&source, &target).unwrap();
    assert_eq!(relation(&from, &to).unwrap(), Relation::Same);
    let twin = source.copy(7);
    let (from, to) = open_both(&source, &twin).unwrap();
    let error = relation(&from, &to).unwrap_err();
    assert!(error.full_text().contains("both are copy "), "{error:?}");
    // A change of keys in the source goes over; one in the replica is told.
    let change = |vault: &Vault, generation: u32, random: u8| {
        let repository = vault.open("admin").unwrap();
        let mut config = repository.config().clone();
        config.generation = generation;
        let leaf = diskvault_format::names::config(generation, &[random; 16]);
        let bytes = config.encode(repository.keys(), &leaf);
        vault.storage.insert(format!("config/{leaf}"), bytes);
    };
    change(&source, 2, 1);
    let (from, to) = open_both(&source, &target).unwrap();
    assert_eq!(relation(&from, &to).unwrap(), Relation::SourceIsNewer);
    bring_keys_up(&from, &to).unwrap();
    let (from, to) = open_both(&source, &target).unwrap();
    assert_eq!(relation(&from, &to).unwrap(), Relation::Same);
    change(&target, 3, 2);
    let (from, to) = open_both(&source, &target).unwrap();
    assert_eq!(relation(&from, &to).unwrap(), Relation::ReplicaIsNewer);
    change(&source, 3, 3);
    let (from, to) = open_both(&source, &target).unwrap();
    let error = relation(&from, &to).unwrap_err();
    assert!(error.full_text().contains("the two have drifted apart"), "{error:?}");
    let stranger = Vault::new(99);
    let storage = Arc::new(stranger.storage.clone());
    let opened = from.open_copy(storage, &stranger.cache("x"), Arc::new(Silent));
    let error = opened.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Usage);
}

#[test]
fn a_sync_that_finds_nothing_to_do_lists_each_end_once() {
    let (source, target) = with_replica();
    assert!(sync(&source, &target, false).unwrap().is_empty());
    let (from, to) = open_both(&source, &target).unwrap();
    let opened = [&source, &target].map(|vault| vault.storage.log().len());
    let planned = plan(&from, &to, false, &|_| true).unwrap();
    let syncer = Syncer { source: &from, target: &to, host: "syncer", monitor: &Silent };
    syncer.run(&planned, &mut |_, _| Ok(())).unwrap();
    for (vault, opened) in [&source, &target].into_iter().zip(opened) {
        let mut listed: Vec<String> = vault
            .storage
            .log()
            .split_off(opened)
            .into_iter()
            .filter(|(operation, _)| *operation == Operation::List)
            .map(|(_, name)| name)
            .collect();
        listed.sort();
        assert_eq!(listed, ["notes", "points"]);
    }
}

#[test]
fn manifests_are_read_once_by_each_host_and_by_every_check() {
    let mut vault = Vault::new(1);
    vault.storage.set_calls_at_once(8);
    let writer = vault.open("writer").unwrap();
    for number in 0..5 {
        let disk = Parts::from([("vda".to_string(), noise(number, 100_000))]);
        vault.backup(&writer, "web01", &disk).unwrap();
    }
    let manifests_read = |host: &str, fresh: bool| {
        let repository = vault.open(host).unwrap();
        let before = vault.storage.log().len();
        let set = match fresh {
            true => PointSet::load_fresh(&repository),
            false => PointSet::load(&repository),
        };
        assert_eq!(set.unwrap().points.len(), 5);
        let log = vault.storage.log().split_off(before);
        let is_manifest = |(operation, name): &&(Operation, String)| {
            *operation == Operation::Get && name.starts_with("points/")
        };
        log.iter().filter(is_manifest).count()
    };
    assert_eq!(manifests_read("reader", false), 5);
    assert_eq!(manifests_read("reader", false), 0);
    assert_eq!(manifests_read("reader", true), 5);
    assert_eq!(manifests_read("another", false), 5);
}

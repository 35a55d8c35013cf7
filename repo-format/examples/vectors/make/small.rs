//! Vectors of small sealed objects (rules O-1 to O-5) and their records (L-1 to L-3).

use super::{changed, keyed};
use crate::vectors::fixed::{REPOSITORY, TIME_NS, envelope, keys, random};
use crate::vectors::form::Vector;
use crate::vectors::{Result, Set};
use diskvault_format::crypto::ObjectKind;
use diskvault_format::id::{LeaseId, PackId, PointId};
use diskvault_format::limits::FORMAT_VERSION;
use diskvault_format::small::{Condemned, Heartbeat, Lease, Lost, NOTE_PIN, NOTE_TAG, Note};
use diskvault_format::{names, record, sealed};

fn lease() -> LeaseId {
    LeaseId(random("lease"))
}

fn heartbeat() -> Heartbeat {
    Heartbeat { lease: lease(), number: 300 }
}

fn seal(kind: ObjectKind, name: &str, plaintext: &[u8]) -> Result<Vec<u8>> {
    let nonce = random("nonce of a small object");
    Ok(sealed::seal(&keys(), kind, name, &nonce, plaintext)?)
}

/// The header of a small object with its kind byte, algorithm and epoch.
fn header(version: u16, kind: u8, algorithm: u8, epoch: u32) -> Vec<u8> {
    let numbers = [kind, algorithm];
    [b"DVSEALED", &version.to_le_bytes()[..], &numbers, &epoch.to_le_bytes()].concat()
}

fn named(vector: Vector, name: &str) -> Vector {
    let vector = keyed(vector);
    if name.is_empty() { vector } else { vector.with("name", name) }
}

/// Adds the vectors.
pub fn add(set: &mut Set) -> Result<()> {
    add_ok(set)?;
    add_notes(set)?;
    add_faults(set)?;
    add_unauthentic(set)?;
    add_lists(set)?;
    add_records(set)
}

/// Records that decode and then break a rule of their own.
fn add_lists(set: &mut Set) -> Result<()> {
    let mut refuse =
        |path: &str, kind, name: &str, rule, comment, plaintext: Vec<u8>| -> Result<()> {
            let object = format!("sealed-{}", path.split('-').next().unwrap_or(""));
            let vector = Vector::refused(&object, rule, comment, seal(kind, name, &plaintext)?);
            set.add(&format!("sealed/{path}"), named(vector, name));
            Ok(())
        };
    let long = "\0".repeat(4097);
    let begun = |host: &str, program: &str| Lease {
        purpose: 1,
        host: host.into(),
        process: 1,
        started_unix_ns: TIME_NS,
        program: program.into(),
    };
    let name = lease().to_hex();
    let comment = "a host of 4097 bytes";
    let record = record::encode(&begun(&long, ""))?;
    refuse("lease-host", ObjectKind::Lease, &name, "L-1", comment, record)?;
    let comment = "a program of 4097 bytes";
    let record = record::encode(&begun("", &long))?;
    refuse("lease-program", ObjectKind::Lease, &name, "L-1", comment, record)?;
    let name = names::condemned(&random("condemned"));
    let condemned = |packs: &[u8], host: &str| Condemned {
        packs: packs.iter().map(|number| PackId([*number; 32])).collect(),
        host: host.into(),
        time_unix_ns: TIME_NS,
    };
    let kind = ObjectKind::Condemned;
    let record = record::encode(&condemned(&[1], &long))?;
    refuse("condemned-host", kind, &name, "L-1", "a host of 4097 bytes", record)?;
    let record = record::encode(&condemned(&[2, 1], ""))?;
    refuse("condemned-order", kind, &name, "L-3", "the packs descend", record)?;
    let record = record::encode(&condemned(&[1, 1], ""))?;
    refuse("condemned-twice", kind, &name, "L-3", "the same pack twice", record)?;
    let lost = Lost { ids: vec![[2; 32], [1; 32]], time_unix_ns: TIME_NS };
    let record = record::encode(&lost)?;
    refuse("lost-order", ObjectKind::Lost, "", "L-3", "the ids descend", record)?;
    let kind = ObjectKind::Heartbeat;
    let record = || record::encode(&heartbeat());
    let name = names::heartbeat(lease(), 301);
    let comment = "number 300 sealed under the name of 301";
    refuse("heartbeat-number", kind, &name, "L-2", comment, record()?)?;
    let name = names::heartbeat(LeaseId(random("another lease")), 300);
    let comment = "sealed under the name of another lease";
    refuse("heartbeat-lease", kind, &name, "L-2", comment, record()?)
}

fn add_ok(set: &mut Set) -> Result<()> {
    let mut ok = |path: &str, kind, name: &str, comment, plaintext: Vec<u8>| -> Result<()> {
        let bytes = seal(kind, name, &plaintext)?;
        let vector = Vector::ok(&format!("sealed-{path}"), comment, bytes);
        set.add(&format!("sealed/{path}"), named(vector, name));
        Ok(())
    };
    let begun = Lease {
        purpose: 1,
        host: "kvm1".into(),
        process: 4711,
        started_unix_ns: TIME_NS,
        program: "diskvault 0.1.0".into(),
    };
    let comment = "a writer's registration";
    ok("lease", ObjectKind::Lease, &lease().to_hex(), comment, record::encode(&begun)?)?;
    let name = names::heartbeat(lease(), 300);
    let comment = "heartbeat 300, whose number takes three bytes";
    ok("heartbeat", ObjectKind::Heartbeat, &name, comment, record::encode(&heartbeat())?)?;
    let mut packs = vec![PackId(random("pack 1")), PackId(random("pack 2"))];
    packs.sort();
    let condemned = Condemned { packs, host: "kvm2".into(), time_unix_ns: TIME_NS };
    let name = names::condemned(&random("condemned"));
    let plaintext = record::encode(&condemned)?;
    ok("condemned", ObjectKind::Condemned, &name, "two condemned packs", plaintext)?;
    let lost = Lost { ids: vec![random("lost chunk")], time_unix_ns: TIME_NS };
    let comment = "a lost chunk; the name is a hash, so none is bound";
    ok("lost", ObjectKind::Lost, "", comment, record::encode(&lost)?)?;
    let name = names::note(PointId(random("point")), &random("note"));
    let plaintext = record::encode(&note(NOTE_PIN, Vec::new()))?;
    ok("note", ObjectKind::Note, &name, "a pin", plaintext)
}

fn note(kind: u8, fields: Vec<(String, String)>) -> Note {
    Note { kind, time_unix_ns: TIME_NS, host: "kvm1".into(), fields }
}

fn add_notes(set: &mut Set) -> Result<()> {
    let name = names::note(PointId(random("point")), &random("note"));
    let mut add = |path: &str, rule: &str, comment, note: &Note| -> Result<()> {
        let bytes = seal(ObjectKind::Note, &name, &record::encode(note)?)?;
        let vector = Vector::refused("sealed-note", rule, comment, bytes);
        set.add(&format!("sealed/{path}"), named(vector, &name));
        Ok(())
    };
    let field = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
    let long = "\0".repeat(4097);
    add("note-unknown", "ok", "notes of unknown kinds are read", &note(99, field("a", "b")))?;
    let many = note(NOTE_TAG, vec![field("a", "b").remove(0); 257]);
    add("note-fields", "L-1", "257 fields", &many)?;
    add("note-key", "L-1", "a key of 4097 bytes", &note(NOTE_TAG, field(&long, "")))?;
    add("note-value", "L-1", "a value of 4097 bytes", &note(NOTE_TAG, field("", &long)))?;
    let host = Note { host: long, ..note(NOTE_TAG, Vec::new()) };
    add("note-host", "L-1", "a host of 4097 bytes", &host)
}

fn add_faults(set: &mut Set) -> Result<()> {
    let name = names::heartbeat(lease(), 300);
    let plaintext = record::encode(&heartbeat())?;
    let good = seal(ObjectKind::Heartbeat, &name, &plaintext)?;
    let mut refuse = |path: &str, object: &str, rule, comment, bytes: Vec<u8>| {
        let vector = Vector::refused(&format!("sealed-{object}"), rule, comment, bytes);
        set.add(&format!("sealed/{path}"), named(vector, &name));
    };
    let object = "heartbeat";
    refuse("empty", object, "O-1", "no bytes", Vec::new());
    refuse("short", object, "O-1", "ends inside the nonce", good[..39].to_vec());
    let long = changed(&good, |bytes| bytes.resize((16 << 20) + 1, 0));
    refuse("long", object, "O-1", "one byte beyond 16 MiB", long);
    let kind = ObjectKind::Heartbeat;
    let with = |header: &[u8]| envelope(kind, header, &name, &plaintext);
    let right = header(FORMAT_VERSION, kind as u8, 1, 0);
    let magic = changed(&right, |bytes| bytes[7] = b'X');
    refuse("magic", object, "O-2", "the magic ends in X", with(&magic));
    let comment = "a heartbeat where a lease is wanted";
    refuse("other-kind", "lease", "O-3", comment, good.clone());
    let comment = "the kind byte says lease";
    refuse("kind", object, "O-3", comment, with(&header(FORMAT_VERSION, 8, 1, 0)));
    let comment = "a segment is no small object";
    let segment = header(FORMAT_VERSION, ObjectKind::Segment as u8, 1, 0);
    refuse("segment", "segment", "O-3", comment, with(&segment));
    let comment = "the format version is one too new";
    refuse("version", object, "O-4", comment, with(&header(FORMAT_VERSION + 1, kind as u8, 1, 0)));
    let comment = "format version 0, which was never released";
    refuse("version-zero", object, "O-4", comment, with(&header(0, kind as u8, 1, 0)));
    refuse(
        "algorithm",
        object,
        "O-4",
        "algorithm 2",
        with(&header(FORMAT_VERSION, kind as u8, 2, 0)),
    );
    refuse("epoch", object, "O-4", "key epoch 1", with(&header(FORMAT_VERSION, kind as u8, 1, 1)));
    Ok(())
}

fn add_unauthentic(set: &mut Set) -> Result<()> {
    let name = names::heartbeat(lease(), 300);
    let good = seal(ObjectKind::Heartbeat, &name, &record::encode(&heartbeat())?)?;
    let mut refuse = |path: &str, object: &str, comment, bytes: Vec<u8>, name: &str| {
        let vector = Vector::refused(&format!("sealed-{object}"), "O-5", comment, bytes);
        set.add(&format!("sealed/{path}"), named(vector, name));
    };
    let flip = |offset: usize| changed(&good, |bytes| bytes[offset] ^= 1);
    refuse("nonce", "heartbeat", "a bit of the nonce is flipped", flip(20), &name);
    refuse("ciphertext", "heartbeat", "a bit of the record is flipped", flip(40), &name);
    refuse("tag", "heartbeat", "a bit of the tag is flipped", flip(good.len() - 1), &name);
    let cut = good[..good.len() - 1].to_vec();
    refuse("tag-cut", "heartbeat", "the tag lacks a byte", cut, &name);
    refuse("no-tag", "heartbeat", "ends with the nonce", good[..40].to_vec(), &name);
    let next = names::heartbeat(lease(), 301);
    let comment = "stands under the name of the next heartbeat";
    refuse("renamed", "heartbeat", comment, good.clone(), &next);
    let comment = "a heartbeat whose kind byte was changed to lease";
    let relabelled = changed(&good, |bytes| bytes[10] = ObjectKind::Lease as u8);
    refuse("relabelled", "lease", comment, relabelled, &name);
    let point = names::note(PointId(random("point")), &random("note"));
    let moved = seal(ObjectKind::Note, &point, &record::encode(&note(NOTE_PIN, Vec::new()))?)?;
    let other = names::note(PointId(random("another point")), &random("note"));
    refuse("note-moved", "note", "a note moved to another point", moved, &other);
    let lost = record::encode(&Lost { ids: Vec::new(), time_unix_ns: 0 })?;
    let lost = seal(ObjectKind::Lost, "", &lost)?;
    let vector = keyed(Vector::refused("sealed-lost", "N-3", "has another name", lost));
    set.add("sealed/lost-renamed", vector.with_bytes("name", &[7; 32]));
    let comment = "sealed for another repository";
    let vector = Vector::refused("sealed-heartbeat", "O-5", comment, good)
        .with_bytes("master", &crate::vectors::fixed::MASTER)
        .with_bytes("repository", &changed(&REPOSITORY.0, |bytes| bytes[0] ^= 1))
        .with("name", name);
    set.add("sealed/other-repository", vector);
    Ok(())
}

/// Sealed objects whose record is not in its one encoding.
fn add_records(set: &mut Set) -> Result<()> {
    let name = names::heartbeat(lease(), 5);
    let good = record::encode(&Heartbeat { lease: lease(), number: 5 })?;
    let mut refuse = |path: &str, rule, comment, plaintext: &[u8]| -> Result<()> {
        let bytes = seal(ObjectKind::Heartbeat, &name, plaintext)?;
        let vector = Vector::refused("sealed-heartbeat", rule, comment, bytes);
        set.add(&format!("sealed/{path}"), named(vector, &name));
        Ok(())
    };
    refuse("record-empty", "R-2", "seals no bytes", &[])?;
    refuse("record-cut", "R-2", "the record ends inside the lease id", &good[..10])?;
    let long = [&good[..16], &[251, 5, 0]].concat();
    refuse("record-long-number", "R-3", "5 in three bytes", &long)?;
    refuse("record-trailing", "R-3", "one byte follows the record", &[&good[..], &[0]].concat())
}

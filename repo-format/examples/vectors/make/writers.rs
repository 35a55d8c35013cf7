//! Vectors of writers that may not read: their records (rules W-1 and W-2), their manifests (O-6,
//! F-12) and their packs (P-15).

mod manifest;
mod pack;

use super::{changed, keyed, put};
use crate::vectors::fixed::{REPOSITORY, TIME_NS, keys, random, seed, subkey, version_of};
use crate::vectors::form::Vector;
use crate::vectors::{Result, Set};
use diskvault_format::asymmetric::{public_key, seal_to, sign, verifying_key};
use diskvault_format::crypto::{ObjectKind, additional_data, context, seal_x};
use diskvault_format::id::{KeySlotId, PointId, to_hex};
use diskvault_format::limits::FORMAT_VERSION;
use diskvault_format::writers::{WriterRecord, writer_id};
use diskvault_format::{names, record, sealed};

/// The record of the writer with number `number`, which may write to all series.
fn record_of(number: u8) -> WriterRecord {
    WriterRecord {
        verifying_key: verifying_key(&seed(number)),
        slot: KeySlotId(random(&format!("slot of writer {number}"))),
        name: format!("kvm{number}"),
        series: Vec::new(),
        time_unix_ns: TIME_NS,
        retired: None,
    }
}

fn retired(number: u8, points: &[PointId]) -> WriterRecord {
    let mut points = points.to_vec();
    points.sort();
    WriterRecord { retired: Some(points), ..record_of(number) }
}

/// A vector for a reader that knows these writers.
fn knowing(records: &[WriterRecord], vector: Vector) -> Result<Vector> {
    let mut list = Vec::new();
    for record in records {
        list.push(to_hex(&record::encode(record)?));
    }
    let vector = keyed(vector);
    Ok(if list.is_empty() { vector } else { vector.with("writers", list.join(" ")) })
}

/// What says that writer `claims` signed it, and is signed by writer `signs`.
fn signed(claims: u8, signs: u8, before: &[&[u8]], content: &[u8]) -> Vec<u8> {
    let parts: Vec<&[u8]> = before.iter().copied().chain([content]).collect();
    let signature = sign(&seed(signs), &parts);
    [&writer_id(&verifying_key(&seed(claims))).0[..], &signature, content].concat()
}

/// Sealed to the public key of the vectors' repository: enc and ciphertext.
fn to_public_key(additional: &[u8], plaintext: &[u8]) -> Result<Vec<u8>> {
    let public = public_key(&subkey(context::OPENING, &super::fixed::MASTER, REPOSITORY));
    let (enc, sealed) = seal_to(&public, &random("ephemeral"), additional, plaintext, "O-5")?;
    Ok([&enc[..], &sealed].concat())
}

/// The header of a small object.
fn header(kind: ObjectKind, algorithm: u8, epoch: u32) -> Vec<u8> {
    let numbers = [kind as u8, algorithm];
    [b"DVSEALED", &FORMAT_VERSION.to_le_bytes()[..], &numbers, &epoch.to_le_bytes()].concat()
}

/// Adds the vectors.
pub fn add(set: &mut Set) -> Result<()> {
    add_records(set)?;
    add_wrong_records(set)?;
    add_unauthentic(set)?;
    manifest::add(set)?;
    pack::add(set)
}

fn name() -> String {
    names::writer(&random("name of a writer's record"))
}

fn sealed_record(name: &str, plaintext: &[u8]) -> Result<Vec<u8>> {
    let random = random("nonce of a writer's record");
    Ok(sealed::seal(&keys(), ObjectKind::Writer, name, &random, plaintext)?)
}

fn add_record(
    set: &mut Set,
    path: &str,
    rule: &str,
    comment: &str,
    record: &WriterRecord,
) -> Result<()> {
    let bytes = sealed_record(&name(), &record::encode(record)?)?;
    let vector = keyed(Vector::refused("sealed-writer", rule, comment, bytes));
    set.add(&format!("sealed/{path}"), vector.with("name", name()));
    Ok(())
}

fn with_series(series: &[&str]) -> WriterRecord {
    let series = series.iter().map(|series| (*series).to_owned()).collect();
    WriterRecord { series, ..record_of(1) }
}

fn add_records(set: &mut Set) -> Result<()> {
    let points = [PointId(random("a point")), PointId(random("another point"))];
    let starts = with_series(&["web*", "db", "*", ".*", "a*b", "**"]);
    for (path, comment, record) in [
        ("writer", "series by name and by how they start", starts),
        ("writer-retired", "a retired writer, two of whose points count", retired(1, &points)),
    ] {
        add_record(set, path, "ok", comment, &record)?;
    }
    Ok(())
}

fn add_wrong_records(set: &mut Set) -> Result<()> {
    let name = WriterRecord { name: "n".repeat(256), ..record_of(1) };
    let many = WriterRecord { series: vec!["*".into(); 257], ..record_of(1) };
    for (path, comment, record) in [
        ("name-long", "a name of 256 bytes", name),
        ("series-many", "257 series", many),
        ("series-empty", "a series without a name", with_series(&["db", ""])),
        ("series-dots", "a series named ..", with_series(&[".."])),
        ("series-start", "series that start with a:", with_series(&["a:*"])),
    ] {
        add_record(set, &format!("writer-{path}"), "W-1", comment, &record)?;
    }
    let [one, two] = [PointId([1; 32]), PointId([2; 32])];
    let with = |points: &[PointId]| WriterRecord { retired: Some(points.into()), ..record_of(1) };
    add_record(set, "writer-points-order", "W-2", "the points descend", &with(&[two, one]))?;
    add_record(set, "writer-points-twice", "W-2", "the same point twice", &with(&[one, one]))
}

fn add_unauthentic(set: &mut Set) -> Result<()> {
    let plaintext = record::encode(&record_of(1))?;
    let good = sealed_record(&name(), &plaintext)?;
    let mut refuse = |path: &str, object: &str, rule, comment, bytes: Vec<u8>, name: &str| {
        let vector = keyed(Vector::refused(object, rule, comment, bytes));
        set.add(&format!("sealed/{path}"), vector.with("name", name));
    };
    let other = names::writer(&random("another name"));
    let comment = "stands under another name";
    refuse("writer-renamed", "sealed-writer", "O-5", comment, good.clone(), &other);
    // Sealed with the key that every writer has, as one that would like to be listed might.
    let head = header(ObjectKind::Writer, 1, 0);
    let more = [&head[..], name().as_bytes()].concat();
    let additional = additional_data(version_of(&head), ObjectKind::Writer, REPOSITORY, &[&more]);
    let key = subkey(context::PROTOCOL, &super::fixed::MASTER, REPOSITORY);
    let nonce = random("nonce of a writer's record");
    let forged = [&head[..], &nonce, &seal_x(&key, &nonce, &additional, &plaintext)].concat();
    let comment = "sealed under the protocol subkey, which every writer has";
    refuse("writer-protocol", "sealed-writer", "O-5", comment, forged, &name());
    for (object, kind) in [("writer", ObjectKind::Writer), ("note", ObjectKind::Note)] {
        let name = match kind {
            ObjectKind::Note => names::note(PointId(random("point")), &random("note")),
            _ => name(),
        };
        let head = header(kind, 2, 0);
        let more = [&head[..], name.as_bytes()];
        let additional = additional_data(version_of(&head), kind, REPOSITORY, &more);
        let plaintext = signed(1, 1, &[&additional], &plaintext);
        let bytes = [head, to_public_key(&additional, &plaintext)?].concat();
        let comment = format!("a {object} sealed to the public key");
        let vector = Vector::refused(&format!("sealed-{object}"), "O-4", &comment, bytes);
        let vector = knowing(&[record_of(1)], vector)?.with("name", name);
        set.add(&format!("sealed/{object}-public-key"), vector);
    }
    Ok(())
}

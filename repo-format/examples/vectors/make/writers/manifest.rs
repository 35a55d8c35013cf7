//! Manifests by writers that may not read.

use super::{changed, header, keys, knowing, put, record_of, retired, signed, to_public_key};
use crate::vectors::fixed::{REPOSITORY, TIME_NS, random, seed, writer_keys};
use crate::vectors::form::Vector;
use crate::vectors::{Result, Set};
use diskvault_format::asymmetric::{public_key, seal_to, verifying_key};
use diskvault_format::crypto::{ObjectKind, Secret, additional_data};
use diskvault_format::id::{BackupId, LeaseId, PointId, RepositoryId};
use diskvault_format::limits::FORMAT_VERSION;
use diskvault_format::manifest::Manifest;
use diskvault_format::writers::{WriterRecord, writer_id};
use diskvault_format::{record, sealed};

/// A point without parts by writer 1.
fn sample() -> Manifest {
    Manifest {
        backup_id: BackupId(random("backup")),
        lease: LeaseId(random("lease")),
        series: "web01".into(),
        time_unix_ns: TIME_NS,
        started_unix_ns: TIME_NS,
        duration_ms: 20,
        host: "kvm1".into(),
        writer: writer_id(&verifying_key(&seed(1))),
        program: "diskvault 0.1.0".into(),
        sequence: 1_767_578_400,
        previous: Vec::new(),
        republishes: None,
        tags: Vec::new(),
        disks: Vec::new(),
        streams: Vec::new(),
        signature_kind: 0,
        extensions: Vec::new(),
    }
}

/// The manifest as writer 1 seals it.
fn sealed_by_writer(manifest: &Manifest) -> Result<Vec<u8>> {
    let plaintext = record::encode(manifest)?;
    let random = random("ephemeral");
    Ok(sealed::seal(&writer_keys(1), ObjectKind::Manifest, "", &random, &plaintext)?)
}

fn additional(repository: RepositoryId) -> Vec<u8> {
    let head = header(ObjectKind::Manifest, 2, 0);
    additional_data(FORMAT_VERSION, ObjectKind::Manifest, repository, &[&head])
}

/// Anything sealed to the public key as a manifest.
fn sealed_to_public_key(plaintext: &[u8]) -> Result<Vec<u8>> {
    let sealed = to_public_key(&additional(REPOSITORY), plaintext)?;
    Ok([header(ObjectKind::Manifest, 2, 0), sealed].concat())
}

fn add_one(
    set: &mut Set,
    (path, rule, comment): (&str, &str, &str),
    writers: &[WriterRecord],
    bytes: Vec<u8>,
) -> Result<()> {
    let vector = Vector::refused("sealed-manifest", rule, comment, bytes);
    set.add(&format!("sealed/manifest-{path}"), knowing(writers, vector)?);
    Ok(())
}

/// Adds the vectors.
pub fn add(set: &mut Set) -> Result<()> {
    add_ok(set)?;
    add_signatures(set)?;
    add_retired(set)?;
    add_records(set)?;
    add_seals(set)?;
    add_layout(set)
}

fn with_series(series: &str, time: i64) -> WriterRecord {
    WriterRecord { series: vec![series.into()], time_unix_ns: TIME_NS + time, ..record_of(1) }
}

fn add_ok(set: &mut Set) -> Result<()> {
    let good = sealed_by_writer(&sample())?;
    let point = PointId(*blake3::hash(&good).as_bytes());
    let mut ok = |path: &str, comment, writers: &[WriterRecord]| {
        add_one(set, (path, "ok", comment), writers, good.clone())
    };
    let comment =
        "by a writer of three records: the later ones tell the series, the last of the two";
    let records = [with_series("db", 1), with_series("web*", 1), with_series("db", 0)];
    ok("writer", comment, &records)?;
    let other = PointId(random("another point"));
    let comment = "two records retire the writer, and one of them names the point";
    ok("writer-retired-twice", comment, &[retired(1, &[point]), retired(1, &[other])])
}

fn add_signatures(set: &mut Set) -> Result<()> {
    let content = record::encode(&sample())?;
    let right = additional(REPOSITORY);
    let good = signed(1, 1, &[&right], &content);
    let mut refuse = |path: &str, comment, writers: &[WriterRecord], plaintext: &[u8]| {
        add_one(set, (path, "O-6", comment), writers, sealed_to_public_key(plaintext)?)
    };
    refuse("writer-unlisted", "no writer is listed", &[], &good)?;
    let listed = [record_of(1)];
    let flip = |offset: usize| changed(&good, |bytes| bytes[offset] ^= 1);
    refuse("signature-s", "a bit of S is flipped", &listed, &flip(48))?;
    // S + L of RFC 8032 would verify wherever S is not compared with L.
    let malleable = changed(&good, |bytes| add_order(&mut bytes[48..80]));
    refuse("signature-malleable", "S is not below the order of the group", &listed, &malleable)?;
    let comment = "names one writer and is signed by another, who is listed too";
    let both = [record_of(1), record_of(2)];
    refuse("signature-other", comment, &both, &signed(1, 2, &[&right], &content))?;
    refuse("signature-short", "79 bytes hold no signature", &listed, &good[..79])?;
    let nothing = signed(1, 1, &[], &content);
    refuse("signature-bare", "the record alone is signed", &listed, &nothing)?;
    let elsewhere = additional(RepositoryId(*b"quite another dv"));
    let elsewhere = signed(1, 1, &[&elsewhere], &content);
    refuse("signature-repository", "signed for another repository", &listed, &elsewhere)?;
    let footer = additional_data(FORMAT_VERSION, ObjectKind::Footer, REPOSITORY, &[&[1; 37]]);
    let footer = signed(1, 1, &[&footer], &content);
    refuse("signature-kind", "signed as a footer", &listed, &footer)?;
    // With a key of small order this signature of zeros and a one fits everything, if let.
    let weak = WriterRecord { verifying_key: small_order(), ..record_of(1) };
    let id = weak.writer();
    let anything = [&id.0[..], &small_order(), &[0; 32], &content].concat();
    refuse("signature-small-order", "by a key of small order", &[weak], &anything)
}

/// The encoding of the neutral element.
fn small_order() -> [u8; 32] {
    let mut point = [0; 32];
    point[0] = 1;
    point
}

/// Adds the order of the group of Ed25519, 2^252 + 277...493, to a little-endian number.
fn add_order(number: &mut [u8]) {
    const ORDER: [u8; 16] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14,
    ];
    let mut carry = 0;
    for (place, byte) in number.iter_mut().enumerate() {
        let digit = ORDER.get(place).copied().unwrap_or(if place == 31 { 0x10 } else { 0 });
        let sum = u16::from(*byte) + u16::from(digit) + carry;
        (*byte, carry) = (sum as u8, sum >> 8);
    }
}

fn add_retired(set: &mut Set) -> Result<()> {
    let good = sealed_by_writer(&sample())?;
    let mut refuse = |path: &str, comment, writers: &[WriterRecord]| {
        add_one(set, (path, "O-6", comment), writers, good.clone())
    };
    let comment = "the writer is retired, and another point counts";
    refuse("retired-other", comment, &[retired(1, &[PointId(random("another point"))])])?;
    let again = WriterRecord { time_unix_ns: TIME_NS + 1, ..record_of(1) };
    let comment = "a later record does not undo that the writer is retired";
    refuse("retired-again", comment, &[retired(1, &[]), again])
}

fn add_records(set: &mut Set) -> Result<()> {
    let good = sealed_by_writer(&sample())?;
    let mut refuse = |path: &str, rule, comment, writers: &[WriterRecord], bytes: Vec<u8>| {
        add_one(set, (path, rule, comment), writers, bytes)
    };
    let listed = [record_of(1), record_of(2)];
    let other = Manifest { writer: writer_id(&verifying_key(&seed(2))), ..sample() };
    let comment = "the record names another writer, who is listed too";
    refuse("record-writer", "F-12", comment, &listed, sealed_by_writer(&other)?)?;
    let series = |series: &[&str]| WriterRecord {
        series: series.iter().map(|series| (*series).to_owned()).collect(),
        ..record_of(1)
    };
    for (path, comment, series) in [
        ("series", "a series that the writer may not write to", series(&["db", "web02"])),
        ("series-start", "the writer's series is only how it starts", series(&["web"])),
    ] {
        refuse(path, "F-12", comment, &[series], good.clone())?;
    }
    let again = Manifest { republishes: Some(PointId([1; 32])), ..sample() };
    let comment = "passes for a point that was published before";
    refuse("writer-republishes", "F-12", comment, &listed[..1], sealed_by_writer(&again)?)?;
    let last = Manifest { sequence: 1 << 63, ..sample() };
    let comment = "a sequence of 2^63";
    refuse("writer-sequence", "F-12", comment, &listed[..1], sealed_by_writer(&last)?)?;
    let comment = "only the earlier of two records lets it write to the series";
    let records = [with_series("db", 1), with_series("web01", 0)];
    refuse("series-earlier", "F-12", comment, &records, good.clone())?;
    Ok(())
}

fn add_seals(set: &mut Set) -> Result<()> {
    let good = sealed_by_writer(&sample())?;
    let content = signed(1, 1, &[&additional(REPOSITORY)], &record::encode(&sample())?);
    let mut refuse = |path: &str, comment, bytes: Vec<u8>| {
        add_one(set, (path, "O-5", comment), &[record_of(1)], bytes)
    };
    let patch = |offset: usize, value: &[u8]| changed(&good, |bytes| put(bytes, offset, value));
    let comment = "the highest bit of enc, which X25519 ignores, is flipped";
    refuse("enc-high-bit", comment, patch(47, &[good[47] ^ 0x80]))?;
    refuse("enc-zero", "enc is zero, which gives no secret", patch(16, &[0; 32]))?;
    refuse("public-key-tag-cut", "15 bytes hold no tag", good[..63].to_vec())?;
    let other = public_key(&Secret::new(random("another opening key")));
    let additional = additional(REPOSITORY);
    let (enc, sealed) = seal_to(&other, &random("ephemeral"), &additional, &content, "O-5")?;
    let other = [&header(ObjectKind::Manifest, 2, 0), &enc[..], &sealed].concat();
    refuse("public-key-other", "sealed to another public key", other)?;
    let comment = "sealed to the public key and relabelled algorithm 1";
    refuse("relabelled-1", comment, patch(11, &[1]))?;
    let keys = keys();
    let record = record::encode(&sample())?;
    let usual = sealed::seal(&keys, ObjectKind::Manifest, "", &random("nonce"), &record)?;
    let comment = "sealed under the manifest subkey and relabelled algorithm 2";
    refuse("relabelled-2", comment, changed(&usual, |bytes| bytes[11] = 2))?;
    let own = sealed::seal_own_copy(
        &writer_keys(1),
        ObjectKind::Manifest,
        "",
        &random("nonce"),
        &record,
    )?;
    refuse("own-copy", "what a writer keeps for itself of its manifest", own)?;
    Ok(())
}

fn add_layout(set: &mut Set) -> Result<()> {
    let good = sealed_by_writer(&sample())?;
    let mut refuse = |path: &str, rule, comment, bytes: Vec<u8>| {
        add_one(set, (path, rule, comment), &[record_of(1)], bytes)
    };
    refuse("enc-cut", "O-1", "ends inside enc", good[..47].to_vec())?;
    let patch = |offset: usize, value: &[u8]| changed(&good, |bytes| put(bytes, offset, value));
    refuse("algorithm", "O-4", "algorithm 3", patch(11, &[3]))?;
    refuse("public-key-epoch", "O-4", "key epoch 1", patch(12, &[1]))?;
    let vector = Vector::refused("sealed-manifest", "N-3", "has another name", good);
    let vector = knowing(&[record_of(1)], vector)?.with_bytes("name", &[7; 32]);
    set.add("sealed/manifest-writer-renamed", vector);
    Ok(())
}

//! What a writer that may not read adds to the tiny repository: a later config with its key slot,
//! its record, and a point of a series of its own, in packs of its own. It cannot know what is
//! stored, so it stores one chunk and one page once more.

use super::fixed::{MASTER, TIME_NS, random};
use super::form::Vector;
use super::repository::{Made, REPOSITORY, Writer, XML, config};
use super::{Result, Tree};
use diskvault_format::asymmetric::verifying_key;
use diskvault_format::crypto::{Keys, ObjectKind, Secret};
use diskvault_format::id::{BackupId, LeaseId};
use diskvault_format::key_slot::{SlotKeys, SlotKind};
use diskvault_format::manifest::{Manifest, Statistics, StreamRecord};
use diskvault_format::pack::PackKind;
use diskvault_format::writers::{WriterRecord, writer_id};
use diskvault_format::{names, record, sealed};

/// What opens the writer's key slot.
pub const PASSPHRASE: &[u8] = b"write and never read";
const SERIES: &str = "kvm2";

/// A disk of three sectors and a half, which is one chunk.
fn disk() -> Vec<u8> {
    let mut disk = vec![0x77; 1792];
    disk[..31].copy_from_slice(b"diskvault disk by a mere writer");
    disk
}

/// Makes what is added.
pub fn make(before: &Made) -> Result<Made> {
    let full = Keys::derive(&Secret::new(MASTER), REPOSITORY);
    let seed = Secret::new(random("tiny seed of a writer"));
    let secrets = full.for_writer(seed.clone(), Vec::new()).ok_or("may not read")?;
    let mut admin = Writer::new(full.clone());
    let opens = SlotKeys::WriteOnly(Box::new(secrets));
    let slot = admin.slot(SlotKind::Passphrase, PASSPHRASE, "writer", &opens)?;
    let listed = WriterRecord {
        verifying_key: verifying_key(&seed),
        slot,
        name: "kvm2".into(),
        series: vec!["kvm2*".into()],
        time_unix_ns: TIME_NS,
        retired: None,
    };
    let name = names::writer(&random("tiny writer's record"));
    let (kind, random_bytes) = (ObjectKind::Writer, random("tiny nonce of a writer's record"));
    let object = sealed::seal(&full, kind, &name, &random_bytes, &record::encode(&listed)?)?;
    admin.objects.insert(format!("writers/{name}"), object);
    let key_slots = [&before.key_slots[..], &[slot]].concat();
    let mut config = config(key_slots.clone());
    config.generation = 2;
    config.set_has_writers();
    let name = names::config(config.generation, &random("tiny config with a writer"));
    admin.objects.insert(format!("config/{name}"), config.encode(&full, &name));

    let mut writer = Writer::new(opens.keys(REPOSITORY));
    let manifest = point(&mut writer)?;
    writer.publish(&manifest, "tiny ephemeral of a manifest")?;
    admin.objects.append(&mut writer.objects);
    let expected = [("disk", disk()), ("vm.xml", XML.into())];
    let expected = expected.map(|(part, bytes)| (format!("{SERIES}/{part}"), bytes));
    Ok(Made { objects: admin.objects, expected: expected.into(), key_slots })
}

fn point(writer: &mut Writer) -> Result<Manifest> {
    let lease = LeaseId(random("tiny lease of a writer"));
    let mut disk_record = writer.grid_disk("disk", &disk(), &[], Statistics::default())?;
    disk_record.digest = Some(*blake3::hash(&disk()).as_bytes());
    let (content, _) = writer.stream(PackKind::Data, XML.as_bytes())?;
    for (kind, name) in [(PackKind::Data, "data"), (PackKind::Map, "map")] {
        disk_record.statistics.stored_bytes +=
            writer.flush(kind, lease, &format!("{name} of a writer"))?;
    }
    let bytes = XML.len() as u64;
    let statistics = Statistics {
        virtual_bytes: bytes,
        read_bytes: bytes,
        new_bytes: bytes,
        new_chunks: 1,
        ..Statistics::default()
    };
    let stream = StreamRecord {
        name: "vm.xml".into(),
        content,
        digest: *blake3::hash(XML.as_bytes()).as_bytes(),
        digests: Vec::new(),
        statistics,
        extensions: Vec::new(),
    };
    let seed = Secret::new(random("tiny seed of a writer"));
    Ok(Manifest {
        backup_id: BackupId(random("tiny backup of a writer")),
        lease,
        series: SERIES.into(),
        time_unix_ns: TIME_NS,
        started_unix_ns: TIME_NS,
        duration_ms: 25,
        host: "kvm2".into(),
        writer: writer_id(&verifying_key(&seed)),
        program: "diskvault 0.1.0".into(),
        // It has seen no point of the series.
        sequence: (TIME_NS / 1_000_000_000) as u64,
        previous: Vec::new(),
        republishes: None,
        tags: Vec::new(),
        disks: vec![disk_record],
        streams: vec![stream],
        signature_kind: 0,
        extensions: Vec::new(),
    })
}

/// The objects as the bytes of vectors, without long runs of zeros.
pub fn squeezed(objects: &Tree) -> Tree {
    let squeeze = |(path, bytes): (&String, &Vec<u8>)| {
        let folder = path.split('/').next().unwrap_or_default();
        let comment = format!("an object below {folder}/");
        (path.clone(), Vector::ok("stored", &comment, bytes.clone()).encode())
    };
    objects.iter().map(squeeze).collect()
}

/// The objects that [`squeezed`] was given.
///
/// # Errors
/// A file that is no vector.
pub fn stretched(files: &Tree) -> Result<Tree> {
    let stretch = |(path, file): (&String, &Vec<u8>)| {
        Ok((path.clone(), Vector::parse(file)?.body().to_vec()))
    };
    files.iter().map(stretch).collect()
}

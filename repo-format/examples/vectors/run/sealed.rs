//! Small sealed objects and the records in them.

use super::{Facts, Opened, Run, Stop, check_name, refuse};
use crate::vectors::fixed::{sealing_context, version_of};
use crate::vectors::form::Fields;
use diskvault_format::crypto::{ObjectKind, additional_data, context, seal_x};
use diskvault_format::id::to_hex;
use diskvault_format::manifest::{Chunking, DiskRecord, Manifest, StreamRecord, StreamReference};
use diskvault_format::map::map_root;
use diskvault_format::names::parse_lease;
use diskvault_format::small::{Condemned, Heartbeat, Lease, Lost, Note};
use diskvault_format::writers::{SIGNED_HEAD_BYTES, WriterRecord};
use diskvault_format::{record, sealed};

/// A small object of `kind`: opened under its name, decoded, validated.
pub fn sealed(fields: &Fields<'_>, kind: &str, body: &[u8]) -> Run {
    let opened = Opened::new(fields)?;
    let kind = match kind {
        "manifest" => ObjectKind::Manifest,
        "lease" => ObjectKind::Lease,
        "heartbeat" => ObjectKind::Heartbeat,
        "condemned" => ObjectKind::Condemned,
        "note" => ObjectKind::Note,
        "lost" => ObjectKind::Lost,
        "writer" => ObjectKind::Writer,
        "segment" => ObjectKind::Segment,
        other => return Err(format!("there is no small object {other}").into()),
    };
    let name = match kind {
        // Their name is the hash of the bytes and is not bound a second time.
        ObjectKind::Manifest | ObjectKind::Lost => {
            check_name(fields, body)?;
            ""
        }
        _ => fields.text("name")?,
    };
    let plaintext = sealed::open(&opened.keys, kind, name, body)?.plaintext;
    let is_signed = body[11] == 2;
    let mut facts = show(kind, name, &plaintext)?;
    if kind == ObjectKind::Manifest {
        check_roots(&opened, &Manifest::open(&opened.keys, body)?)?;
    }
    let subkey = opened.subkey(sealing_context(kind));
    let more = [&body[..16], name.as_bytes()];
    let additional = additional_data(version_of(body), kind, opened.repository, &more);
    if is_signed {
        show_sealed_to_public_key(&opened, body, &additional, &mut facts)?;
        return Ok(facts);
    }
    let mut nonce = [0; 24];
    nonce.copy_from_slice(&body[16..40]);
    if seal_x(&subkey, &nonce, &additional, &plaintext) != body[40..] {
        return Err("sealing again gives other bytes".into());
    }
    facts.add_bytes("subkey", subkey.expose());
    facts.add_bytes("nonce", &nonce);
    facts.add_bytes("additional-data", &additional);
    facts.add_bytes("plaintext", &plaintext);
    facts.add_bytes("sealed-blake3", blake3::hash(body).as_bytes());
    Ok(facts)
}

/// The values between the opening key and the record, derived without the crate's own reader.
fn show_sealed_to_public_key(
    opened: &Opened,
    body: &[u8],
    additional: &[u8],
    facts: &mut Facts,
) -> Result<(), Stop> {
    let signed = opened.open_sealed_to_public_key(&body[16..48], additional, &body[48..], facts)?;
    facts.add_bytes("additional-data", additional);
    show_signature(&[additional], &signed, facts);
    facts.add_bytes("plaintext", &signed[SIGNED_HEAD_BYTES..]);
    facts.add_bytes("sealed-blake3", blake3::hash(body).as_bytes());
    Ok(())
}

fn show_writer(record: &WriterRecord, facts: &mut Facts) -> Result<(), Stop> {
    record.validate()?;
    facts.add("writer", record.writer());
    facts.add_bytes("verifying-key", &record.verifying_key);
    facts.add("slot", record.slot);
    facts.add("writer-name", &record.name);
    facts.add_list("series", &record.series);
    facts.add("time", record.time_unix_ns);
    facts.add("is-retired", record.retired.is_some());
    facts.add_list("points", record.retired.iter().flatten());
    Ok(())
}

/// Writer, signature, and what is signed, of a plaintext that starts with them.
pub fn show_signature(before: &[&[u8]], signed: &[u8], facts: &mut Facts) {
    let content = &signed[SIGNED_HEAD_BYTES..];
    let input = [&before.concat(), content].concat();
    facts.add_bytes("signer", &signed[..16]);
    facts.add_bytes("signature", &signed[16..SIGNED_HEAD_BYTES]);
    facts.add_bytes("signed-digest", &blake3::derive_key(context::WRITER_SIGNATURE, &input));
}

/// Compares every map root with what size, chunking and top page give (F-9).
fn check_roots(opened: &Opened, manifest: &Manifest) -> Result<(), Stop> {
    let fits = |size, chunking, top, root| map_root(&opened.keys, size, chunking, top) == root;
    let contents = manifest.streams.iter().map(|stream| &stream.content);
    let lists = manifest.disks.iter().filter_map(|disk| disk.allocation.as_ref());
    let all =
        manifest.disks.iter().all(|disk| fits(disk.size, &disk.chunking, disk.top, disk.root))
            && contents.chain(lists).all(|map| fits(map.bytes, &map.chunking, map.top, map.root));
    if all { Ok(()) } else { Err(refuse("F-9", "a map has another root")) }
}

fn show(kind: ObjectKind, name: &str, plaintext: &[u8]) -> Run {
    let mut facts = Facts::default();
    match kind {
        ObjectKind::Manifest => return manifest(plaintext),
        ObjectKind::Lease => {
            let lease: Lease = record::decode(plaintext)?;
            lease.validate()?;
            facts.add("purpose", lease.purpose);
            facts.add("host", lease.host);
            facts.add("process", lease.process);
            facts.add("started", lease.started_unix_ns);
            facts.add("program", lease.program);
        }
        ObjectKind::Heartbeat => {
            let heartbeat: Heartbeat = record::decode(plaintext)?;
            if parse_lease(name) != Some((heartbeat.lease, Some(heartbeat.number))) {
                return Err(refuse("L-2", "the name tells another heartbeat"));
            }
            facts.add("lease", heartbeat.lease);
            facts.add("number", heartbeat.number);
        }
        ObjectKind::Condemned => {
            let condemned: Condemned = record::decode(plaintext)?;
            condemned.validate()?;
            facts.add_list("packs", condemned.packs);
            facts.add("host", condemned.host);
            facts.add("time", condemned.time_unix_ns);
        }
        ObjectKind::Writer => show_writer(&record::decode(plaintext)?, &mut facts)?,
        ObjectKind::Note => {
            let note: Note = record::decode(plaintext)?;
            note.validate()?;
            facts.add("kind", note.kind);
            facts.add("time", note.time_unix_ns);
            facts.add("host", note.host);
            facts.add_list("fields", pairs(&note.fields));
        }
        ObjectKind::Lost => {
            let lost: Lost = record::decode(plaintext)?;
            lost.validate()?;
            facts.add_list("ids", lost.ids.iter().map(|id| to_hex(id)));
            facts.add("time", lost.time_unix_ns);
        }
        _ => return Err(Stop::from("the kind has no record")),
    }
    Ok(facts)
}

fn pairs(pairs: &[(String, String)]) -> impl Iterator<Item = String> {
    pairs.iter().map(|(key, value)| format!("{key}={value}"))
}

/// The plaintext of a manifest, decoded and validated.
pub fn manifest(body: &[u8]) -> Run {
    let manifest: Manifest = record::decode(body)?;
    manifest.validate()?;
    let mut facts = Facts::default();
    facts.add("backup", manifest.backup_id);
    facts.add("lease", manifest.lease);
    facts.add("series", &manifest.series);
    facts.add("time", manifest.time_unix_ns);
    facts.add("started", manifest.started_unix_ns);
    facts.add("duration-ms", manifest.duration_ms);
    facts.add("host", &manifest.host);
    facts.add("writer", manifest.writer);
    facts.add("program", &manifest.program);
    facts.add("sequence", manifest.sequence);
    facts.add_list("previous", &manifest.previous);
    facts.add_list("republishes", manifest.republishes);
    facts.add_list("tags", pairs(&manifest.tags));
    for (number, disk) in manifest.disks.iter().enumerate() {
        show_disk(number, disk, &mut facts);
    }
    for (number, stream) in manifest.streams.iter().enumerate() {
        show_stream(number, stream, &mut facts);
    }
    Ok(facts)
}

fn show_disk(number: usize, disk: &DiskRecord, facts: &mut Facts) {
    let key = |name: &str| format!("disk-{number}-{name}");
    facts.add(&key("name"), &disk.name);
    facts.add(&key("size"), disk.size);
    facts.add(&key("chunking"), show_chunking(&disk.chunking));
    facts.add(&key("source-format"), &disk.source_format);
    facts.add(&key("root"), disk.root);
    facts.add_list(&key("top"), disk.top);
    facts.add_list(&key("digest"), disk.digest.map(|digest| to_hex(&digest)));
    facts.add_list(&key("allocation"), disk.allocation.as_ref().map(show_reference));
    for (name, ranges) in [("bad-extents", &disk.bad_extents), ("inherited", &disk.inherited)] {
        let ranges = ranges.iter().map(|range| format!("{}+{}", range.start, range.bytes));
        facts.add_list(&key(name), ranges);
    }
    facts.add(&key("new-bytes"), disk.statistics.new_bytes);
}

fn show_stream(number: usize, stream: &StreamRecord, facts: &mut Facts) {
    let key = |name: &str| format!("stream-{number}-{name}");
    facts.add(&key("name"), &stream.name);
    facts.add(&key("content"), show_reference(&stream.content));
    facts.add_bytes(&key("digest"), &stream.digest);
}

fn show_chunking(chunking: &Chunking) -> String {
    match (chunking.grid(), chunking.cuts()) {
        (Some(chunk), _) => format!("fixed:{chunk}"),
        (None, Some((least, average, most))) => format!("content:{least}:{average}:{most}"),
        (None, None) => "unknown".to_owned(),
    }
}

fn show_reference(content: &StreamReference) -> String {
    let top = content.top.map_or("none".to_owned(), |page| page.to_hex());
    format!("{}:{}:{}:{top}", content.bytes, show_chunking(&content.chunking), content.root)
}

//! The worked examples of the specification: the bytes in them are filled in by the crate, so that
//! they are made anew together with the vectors. The words around them stay as they are written.

use super::fixed::{anchor, is_listed, segment_plaintext, subkey};
use super::parity::recovery_shards;
use super::run::{SUBKEYS, derive_slot};
use super::{Result, Tree};
use diskvault_format::asymmetric::{public_key, sign, verifying_key};
use diskvault_format::config::Config;
use diskvault_format::crypto::{Keys, ObjectKind, Secret, additional_data, context};
use diskvault_format::id::{KeySlotId, LeaseId, PackId, RepositoryId, to_hex};
use diskvault_format::key_slot::{KdfCost, KeySlot, SlotKeys, SlotKind, SlotLabel, SlotNonces};
use diskvault_format::limits::FORMAT_VERSION;
use diskvault_format::manifest::Manifest;
use diskvault_format::pack::{PackKind, PackSecrets, PreparedSegment, SealedPack, assemble};
use diskvault_format::parity::{ParityHead, Shape, check_of, encode};
use diskvault_format::segment::{Anchor, Entry, EntryKind};
use diskvault_format::small::Lease;
use diskvault_format::writers::{WriterRecord, Writers};
use diskvault_format::{record, sealed};

const SECTION: &str = "\n## Worked example";
const MASTER: [u8; 32] = ascending(0);
const REPOSITORY: RepositoryId = RepositoryId(ascending(0xa0));
const LEASE: LeaseId = LeaseId(ascending(0xb0));
/// 4096 times "A", compressed by libzstd 1.5 at level 3.
const COMPRESSED: &[u8] = &[
    0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x0f, 0x4d, 0x00, 0x00, 0x10, 0x42, 0x42, 0x01, 0x00, 0xfb,
    0xf7, 0x01, 0x16,
];

/// `N` bytes that count up from `first`.
const fn ascending<const N: usize>(first: u8) -> [u8; N] {
    let mut bytes = [0; N];
    let mut number = 0;
    while number < N {
        bytes[number] = first + number as u8;
        number += 1;
    }
    bytes
}

fn keys() -> Keys {
    Keys::derive(&Secret::new(MASTER), REPOSITORY)
}

/// The pages, with all values of their worked examples as the crate makes them.
///
/// # Errors
/// A page that lacks an example, or has other room for a value than the value needs: then the
/// page is changed by hand first, with any digits.
pub fn filled(pages: &Tree) -> Result<Tree> {
    let mut pages = pages.clone();
    let slot = key_slot()?;
    let manifest = pages.get("36-manifest.md").ok_or("there is no page of manifests")?;
    let manifest: Manifest = record::decode(&Example::find(manifest)?.bytes()?)?;
    for (name, fill) in [
        ("20-crypto.md", &fill_lease as &dyn Fn(&mut Example) -> Result<()>),
        ("21-writers.md", &|example| fill_writer(example, &manifest)),
        ("30-config.md", &|example| fill_config(example, slot.encode().0)),
        ("31-key-slot.md", &|example| fill_key_slot(example, &slot)),
        ("32-pack.md", &fill_pack),
        ("36-manifest.md", &fill_manifest),
        ("38-chunking.md", &fill_anchors),
        ("39-parity.md", &fill_parity),
    ] {
        let page = pages.get_mut(name).ok_or("a page is missing")?;
        let mut example = Example::find(page).map_err(|cause| format!("{name}: {cause}"))?;
        fill(&mut example).map_err(|cause| format!("{name}: {cause}"))?;
        *page = example.text.into_bytes();
    }
    Ok(pages)
}

/// A page whose example is being filled.
struct Example {
    text: String,
    start: usize,
}

/// Length of the hex digits at the start of `text`, if they end where a word does.
fn hex_digits(text: &str) -> Option<usize> {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let length = text.bytes().take_while(|byte| is_digit(byte)).count();
    let ends = matches!(text.as_bytes().get(length), None | Some(b' ' | b'\n' | b'`'));
    (length > 0 && length % 2 == 0 && ends).then_some(length)
}

impl Example {
    fn find(page: &[u8]) -> Result<Example> {
        let text = String::from_utf8(page.to_vec())?;
        let start = text.find(SECTION).ok_or("there is no worked example")?;
        Ok(Example { text, start })
    }

    /// Writes `bytes` over the hex digits behind the only `label` of the example: line by line,
    /// up to the first word that is not hex, as long as there are bytes.
    fn fill(&mut self, label: &str, bytes: &[u8]) -> Result<()> {
        let mut found = self.text[self.start..].match_indices(label);
        let (Some((at, _)), None) = (found.next(), found.next()) else {
            return Err(format!("{label:?} does not stand there once").into());
        };
        let digits = to_hex(bytes);
        let (mut at, mut rest) = (self.start + at + label.len(), &digits[..]);
        let mut is_used = true;
        loop {
            at += self.text[at..].bytes().take_while(|byte| *byte == b' ').count();
            match hex_digits(&self.text[at..]) {
                Some(length) => {
                    let (now, later) = rest
                        .split_at_checked(length)
                        .ok_or_else(|| format!("{label:?} has only {} bytes", bytes.len()))?;
                    self.text.replace_range(at..at + length, now);
                    (at, rest, is_used) = (at + length, later, true);
                }
                None if rest.is_empty() => return Ok(()),
                None => {
                    let next = self.text[at..].find('\n').filter(|_| is_used);
                    at += next.ok_or_else(|| format!("{label:?} has {} bytes", bytes.len()))? + 1;
                    is_used = false;
                }
            }
        }
    }

    /// Writes `object` over a hex dump: each line starts with its offset, five digits, and words
    /// stand three blanks or more behind the bytes.
    fn fill_dump(&mut self, object: &[u8]) -> Result<()> {
        let mut at = self.start;
        while let Some(next) = self.text[at..].find('\n') {
            at += next + 1;
            let Some((offset, _)) = self.text[at..].split_once("  ") else { return Ok(()) };
            let offset = usize::from_str_radix(offset, 16).ok().filter(|_| offset.len() == 5);
            let Some(offset) = offset else { continue };
            let mut place = at + 7;
            for byte in object.get(offset..).ok_or("a line lies behind the object")? {
                if hex_digits(&self.text[place..]) != Some(2) {
                    break;
                }
                self.text.replace_range(place..place + 2, &to_hex(&[*byte]));
                place += 2;
                let blanks = self.text[place..].bytes().take_while(|byte| *byte == b' ').count();
                if blanks > 2 {
                    break;
                }
                place += blanks;
            }
        }
        Ok(())
    }

    /// All hex digits of the example's first block that stand before other words of their line.
    fn bytes(&self) -> Result<Vec<u8>> {
        let block = self.text[self.start..].split("```\n").nth(1).ok_or("there is no block")?;
        let mut bytes = Vec::new();
        for line in block.lines() {
            for word in
                line.split_whitespace().take_while(|word| hex_digits(word) == Some(word.len()))
            {
                for at in (0..word.len()).step_by(2) {
                    bytes.push(u8::from_str_radix(&word[at..at + 2], 16)?);
                }
            }
        }
        Ok(bytes)
    }
}

fn fill_lease(example: &mut Example) -> Result<()> {
    example.fill("\nmaterial  ", &[&MASTER[..], &REPOSITORY.0].concat())?;
    for (name, context) in SUBKEYS {
        let label = format!("\n{}  ", name.trim_start_matches("subkey-").replace('-', " "));
        example.fill(&label, subkey(context, &MASTER, REPOSITORY).expose())?;
    }
    let lease = Lease {
        purpose: 1,
        host: "kvm1".to_owned(),
        process: 4242,
        started_unix_ns: 1_700_000_000_000_000_000,
        program: "diskvault 0.1.0".to_owned(),
    };
    let (name, record) = (LEASE.to_hex(), record::encode(&lease)?);
    let object = sealed::seal(&keys(), ObjectKind::Lease, &name, &ascending(0xc0), &record)?;
    let more = [&object[..16], name.as_bytes()];
    example.fill("\nrecord  ", &record)?;
    example.fill(
        "\nadditional data  ",
        &additional_data(FORMAT_VERSION, ObjectKind::Lease, REPOSITORY, &more),
    )?;
    example.fill("\nobject  ", &object)
}

fn key_slot() -> Result<KeySlot> {
    let label =
        SlotLabel { name: "laptop".to_owned(), created_unix_ns: 0, host: "kvm1".to_owned() };
    let nonces =
        SlotNonces { salt: ascending(0x20), keys: ascending(0x40), label: ascending(0x60) };
    let opens = SlotKeys::Full(Secret::new(MASTER));
    let (kind, cost) = (SlotKind::Passphrase, KdfCost::RECOVERY);
    Ok(KeySlot::make(kind, SECRET, cost, &opens, &keys(), &label, &nonces)?)
}

const SECRET: &[u8] = b"correct horse";

fn fill_key_slot(example: &mut Example, slot: &KeySlot) -> Result<()> {
    let output = derive_slot(SECRET, &ascending::<32>(0x20), slot.cost)?;
    let (id, bytes) = slot.encode();
    example.fill("\nArgon2id output  ", &output)?;
    example.fill("\nslot key  ", &blake3::derive_key(context::SLOT_KEY, &output))?;
    example.fill("\ncommitment  ", &blake3::derive_key(context::SLOT_COMMITMENT, &output))?;
    example.fill("\nkeys record  ", &[&[1, 1, 0], &MASTER[..]].concat())?;
    example.fill("\nlabel record  ", &record::encode(&slot.label(&keys())?)?)?;
    example.fill("\nslot    ", &bytes)?;
    example.fill("\nid  ", &id.0)
}

fn fill_config(example: &mut Example, slot: KeySlotId) -> Result<()> {
    let config = Config {
        generation: 1,
        repository: REPOSITORY,
        features_ignorable: 0,
        features_write: 0,
        features_read: 0,
        chunk_bytes: 64 << 10,
        segment_bytes: 1 << 20,
        pack_bytes: 32 << 20,
        key_slots: vec![slot],
    };
    let name = format!("00000001-{}", to_hex(&ascending::<16>(0xe0)));
    example.fill("\n```\n4456", &config.encode(&keys(), &name)[2..])
}

/// The segments of the page's pack.
fn pack_segments() -> Vec<PreparedSegment> {
    let runs = [0x42; 4096];
    let chunks: [(&[u8], u8, &[u8]); 2] =
        [(b"hello, world\n", 0, b"hello, world\n"), (&runs, 1, COMPRESSED)];
    let prepare = |(data, codec, payload): (&[u8], u8, &[u8])| {
        let id = keys().chunk_id(data).0;
        let entries = vec![Entry { id, kind: EntryKind::Chunk, bytes: data.len() as u32 }];
        let plaintext = segment_plaintext(codec, &entries, payload);
        let value = anchor(&keys(), data).filter(|value| is_listed(*value));
        let anchors = value.map(|value| Anchor { slot: 0, value }).into_iter().collect();
        PreparedSegment { entries, anchors, plaintext }
    };
    chunks.into_iter().map(prepare).collect()
}

/// The pack of the page, by the holder of `keys`.
fn pack(keys: &Keys, segments: Vec<PreparedSegment>) -> Result<SealedPack> {
    let key = Secret::new(ascending(0xd0));
    let secrets = PackSecrets { key, wrap_random: ascending(0x40), own_copy: None };
    Ok(assemble(keys, PackKind::Data, LEASE, &secrets, segments)?)
}

/// Additional data of a part of that pack.
fn additional_of_pack(object: ObjectKind, more: &[u8]) -> Vec<u8> {
    additional_data(FORMAT_VERSION, object, REPOSITORY, &[&[PackKind::Data as u8], more])
}

fn fill_pack(example: &mut Example) -> Result<()> {
    let segments = pack_segments();
    let listed = segments[1].anchors.first().ok_or("the second chunk's anchor is not listed")?;
    example.fill("anchor that is listed,\n`", &listed.value.to_be_bytes())?;
    for (ordinal, segment) in segments.iter().enumerate() {
        let before = if ordinal == 0 { "Chunk ids\n`" } else { "` and\n`" };
        example.fill(before, &segment.entries[0].id)?;
        example.fill(&format!("\nsegment {ordinal} plaintext  "), &segment.plaintext)?;
    }
    let pack = pack(&keys(), segments)?;
    example.fill("pack id\n`", &pack.id.0)?;
    example.fill_dump(&pack.bytes)?;
    let additional = additional_of_pack;
    let wrap = additional(ObjectKind::PackKey, &pack.bytes[48..48 + 56]);
    example.fill("\nwrap additional data  ", &wrap)?;
    example.fill("\nsegment 0 additional  ", &additional(ObjectKind::Segment, &[0; 4]))?;
    let footer_offset = 65_536_u32.to_le_bytes();
    example.fill("\nfooter additional  ", &additional(ObjectKind::Footer, &footer_offset))?;
    example.fill("\nfooter plaintext  ", &pack.footer.encode())
}

fn fill_writer(example: &mut Example, manifest: &Manifest) -> Result<()> {
    let seed = Secret::new(ascending(0x30));
    let opening = subkey(context::OPENING, &MASTER, REPOSITORY);
    let listed = WriterRecord {
        verifying_key: verifying_key(&seed),
        slot: KeySlotId(ascending(0x60)),
        name: "kvm1".to_owned(),
        series: vec!["web*".to_owned()],
        time_unix_ns: 1_700_000_000_000_000_000,
        retired: None,
    };
    let (writer, record) = (listed.writer(), record::encode(&listed)?);
    example.fill("\nopening key  ", opening.expose())?;
    example.fill("\npublic key  ", &public_key(&opening))?;
    let list = subkey(context::WRITER_LIST, &MASTER, REPOSITORY);
    example.fill("\nwriter list  ", list.expose())?;
    example.fill("\nverifying key  ", &listed.verifying_key)?;
    example.fill("\nwriter   ", &writer.0)?;
    let own_copies = blake3::derive_key(context::OWN_COPIES, seed.expose());
    example.fill("\nown copies  ", &own_copies)?;
    example.fill("\nrecord  ", &record)?;
    let (name, nonce) = (LEASE.to_hex(), ascending(0xc0));
    let object = sealed::seal(&keys(), ObjectKind::Writer, &name, &nonce, &record)?;
    example.fill("\nobject  ", &object)?;
    let secrets = keys().for_writer(seed.clone(), vec!["web*".to_owned()]).ok_or("may not read")?;
    let by_writer = Keys::write_only(&secrets, REPOSITORY);
    let knowing = keys().with_writers(Writers::new([listed]));
    fill_pack_of_writer(example, &by_writer, &seed)?;

    let manifest = Manifest { writer, ..manifest.clone() };
    let record = record::encode(&manifest)?;
    let object = sealed::seal(&by_writer, ObjectKind::Manifest, "", &ascending(0x40), &record)?;
    if Manifest::open(&knowing, &object)? != manifest {
        return Err("the manifest is another".into());
    }
    let before =
        additional_data(FORMAT_VERSION, ObjectKind::Manifest, REPOSITORY, &[&object[..16]]);
    example.fill("\nmanifest before  ", &before)?;
    let digest = blake3::derive_key(context::WRITER_SIGNATURE, &[&before[..], &record].concat());
    example.fill("\nmanifest digest  ", &digest)?;
    let signed = [&writer.0[..], &sign(&seed, &[&before, &record])].concat();
    example.fill("\nmanifest signed  ", &signed)?;
    example.fill("\nmanifest object  ", &object[..80])?;
    example.fill("\npoint id  ", blake3::hash(&object).as_bytes())
}

fn fill_pack_of_writer(example: &mut Example, keys: &Keys, seed: &Secret) -> Result<()> {
    let pack = pack(keys, pack_segments())?;
    let wrap = &pack.bytes[48..176];
    example.fill("\nwrap  ", wrap)?;
    let additional = additional_of_pack(ObjectKind::PackKey, &wrap[..48]);
    example.fill("\nadditional data  ", &additional)?;
    let clear = additional_of_pack(ObjectKind::Footer, &65_536_u32.to_le_bytes());
    let before = [&clear[..], &wrap[16..48]].concat();
    example.fill("\nfooter before  ", &before)?;
    let footer = pack.footer.encode();
    let digest = blake3::derive_key(context::WRITER_SIGNATURE, &[&before[..], &footer].concat());
    example.fill("\nfooter digest  ", &digest)?;
    example.fill("\nfooter signature ", &sign(seed, &[&before, &footer]))
}

/// The record is the page's own; its id is that of the sealed object.
fn fill_manifest(example: &mut Example) -> Result<()> {
    let bytes = example.bytes()?;
    let manifest: Manifest = record::decode(&bytes)?;
    manifest.validate()?;
    let object = sealed::seal(&keys(), ObjectKind::Manifest, "", &ascending(0x70), &bytes)?;
    example.fill("the point id\n`", blake3::hash(&object).as_bytes())
}

/// The anchors of the first three chunks of the page's example.
fn fill_anchors(example: &mut Example) -> Result<()> {
    let chunks = [("first", 56_199), ("second", 38_205), ("third", 221_937)];
    let mut data = blake3::Hasher::new().finalize_xof();
    for (number, bytes) in chunks {
        let mut chunk = vec![0; bytes];
        data.fill(&mut chunk);
        let value = anchor(&keys(), &chunk).ok_or("the chunk is too short")?;
        example.fill(&format!("\n{number} chunk  "), &value.to_be_bytes())?;
    }
    Ok(())
}

/// The head and the shards of the parity of a hundred bytes that count up.
fn fill_parity(example: &mut Example) -> Result<()> {
    let data: [u8; 100] = ascending(0);
    let shape = Shape { pack_bytes: 100, shard_bytes: 64, recovery: 2 };
    let shards = recovery_shards(&data, 64, 2);
    let head = ParityHead {
        pack: PackId(*blake3::hash(&data).as_bytes()),
        shape,
        data_checks: data.chunks(64).map(check_of).collect(),
        recovery_checks: shards.chunks(64).map(check_of).collect(),
    };
    let object = encode(&head, &shards);
    let head_bytes = (object.len() - shards.len() - 4) / 2;
    example.fill("\nid  ", &head.pack.0)?;
    example.fill("\nhead  ", &object[..head_bytes])?;
    example.fill("\nrecovery shard 0  ", &shards[..64])?;
    example.fill("\nrecovery shard 1  ", &shards[64..])?;
    example.fill("once more, and `", &object[object.len() - 4..])
}

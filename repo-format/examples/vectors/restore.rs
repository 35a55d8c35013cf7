//! Reads a whole repository with the crate: from the passphrase to the bytes of every point.

use super::repository::{PASSPHRASE, RECOVERY_KEY};
use super::{Result, Tree};
use diskvault_format::config::Config;
use diskvault_format::crypto::{Keys, ObjectKind};
use diskvault_format::digest::{Chaining, chaining_value_of_zeros, merge_root};
use diskvault_format::id::{PageId, PointId};
use diskvault_format::key_slot::{KeySlot, SlotKeys, validate_total_cost};
use diskvault_format::manifest::{DiskRecord, Manifest, StreamReference};
use diskvault_format::map::{Inner, InnerSlot, Leaf, LeafSlot, MapShape, map_root};
use diskvault_format::names::{PointName, is_writer, parse_config, parse_point};
use diskvault_format::pack::{
    PackOpener, WrapKind, decode_header, decode_trailer, verify_padding, wrap_kind,
};
use diskvault_format::segment::{EntryKind, SegmentDecoder};
use diskvault_format::splice::Splice;
use diskvault_format::stream_map::{StreamEntry, StreamPage};
use diskvault_format::writers::{WriterRecord, Writers};
use diskvault_format::{allocation, instance, record, sealed};
use std::collections::{BTreeMap, BTreeSet};

/// Chunks and pages by id.
type Pieces = BTreeMap<[u8; 32], Vec<u8>>;

/// Restores every point with each of the secrets and compares with `expected`.
///
/// # Errors
/// What the crate refuses, and the first path that differs.
pub fn verify(objects: &Tree, expected: &Tree) -> Result<()> {
    for secret in [PASSPHRASE, RECOVERY_KEY] {
        let found = restore(objects, secret)?;
        if let Some(line) = super::differences(expected, &found).first() {
            return Err(format!("restored {line}").into());
        }
    }
    if unlock(objects, b"wrong").is_ok() {
        return Err("a wrong passphrase opens the repository".into());
    }
    Ok(())
}

/// The files of all points: `day-<sequence>/<part>`, and the allocation list of each disk; of
/// another series than `tiny` below its name.
///
/// # Errors
/// What the crate refuses, and every hash that does not fit.
pub fn restore(objects: &Tree, secret: &[u8]) -> Result<Tree> {
    instance::decode(objects.get("instance").ok_or("there is no instance")?)?;
    let keys = unlock(objects, secret)?;
    let pieces = open_packs(objects, &keys)?;
    let mut files = Tree::new();
    let mut heads: BTreeMap<String, Vec<PointId>> = BTreeMap::new();
    let mut points = open_points(objects, &keys)?;
    points.sort_by_key(|(_, manifest)| manifest.sequence);
    for (point, manifest) in points {
        let head = heads.entry(manifest.series.clone()).or_default();
        if manifest.previous != *head {
            return Err("a point does not follow the one before".into());
        }
        *head = vec![point];
        let day = match manifest.series.as_str() {
            "tiny" => format!("day-{}", manifest.sequence),
            other => other.to_owned(),
        };
        for disk in &manifest.disks {
            let path = format!("{day}/{}", disk.name);
            if let Some(list) = &disk.allocation {
                let runs = allocation_text(&read_stream(&keys, &pieces, list)?, disk.size)?;
                files.insert(format!("{path}.allocation"), runs.into_bytes());
            }
            files.insert(path, read_disk(&keys, &pieces, disk)?);
        }
        for stream in &manifest.streams {
            let bytes = read_stream(&keys, &pieces, &stream.content)?;
            if *blake3::hash(&bytes).as_bytes() != stream.digest {
                return Err("a stream has another digest".into());
            }
            files.insert(format!("{day}/{}", stream.name), bytes);
        }
    }
    Ok(files)
}

fn below<'a>(objects: &'a Tree, folder: &'a str) -> impl Iterator<Item = (&'a str, &'a Vec<u8>)> {
    objects.iter().filter_map(move |(path, bytes)| Some((path.strip_prefix(folder)?, bytes)))
}

/// Opens the newest config and the first key slot that `secret` opens.
fn unlock(objects: &Tree, secret: &[u8]) -> Result<Keys> {
    let newest = below(objects, "config/").max_by_key(|(leaf, _)| (parse_config(leaf), *leaf));
    let (name, bytes) = newest.ok_or("there is no config")?;
    let config = Config::decode(bytes)?;
    let mut slots = Vec::new();
    for id in &config.key_slots {
        let bytes = objects.get(&format!("keys/{id}")).ok_or("a key slot is missing")?;
        slots.push(KeySlot::decode(*id, bytes)?);
    }
    let costs: Vec<_> = slots.iter().map(|slot| slot.cost).collect();
    validate_total_cost(&costs)?;
    let mut found: Option<SlotKeys> = None;
    for slot in &slots {
        found = match found {
            None => slot.open(secret)?,
            some => some,
        };
    }
    let keys = found.ok_or("no key slot opens")?.keys(config.repository);
    if keys.write_only_writer().is_some() {
        return Err("the secret opens a key that may only write".into());
    }
    config.verify(&keys, name, bytes)?;
    let keys = with_writers(objects, keys)?;
    for slot in &slots {
        slot.label(&keys)?;
    }
    Ok(keys)
}

/// The keys, with the writers that the repository lists.
fn with_writers(objects: &Tree, keys: Keys) -> Result<Keys> {
    let mut records = Vec::new();
    for (leaf, object) in below(objects, "writers/").filter(|(leaf, _)| is_writer(leaf)) {
        let opened = sealed::open(&keys, ObjectKind::Writer, leaf, object)?;
        let record: WriterRecord = record::decode(&opened.plaintext)?;
        record.validate()?;
        records.push(record);
    }
    Ok(keys.with_writers(Writers::new(records)))
}

/// Opens every pack and gives all chunks and pages, each compared with its id. Splices come last,
/// as the chunks of their pieces are in any pack.
fn open_packs(objects: &Tree, keys: &Keys) -> Result<Pieces> {
    let (mut pieces, mut splices) = (Pieces::new(), BTreeMap::new());
    let mut once = BTreeSet::new();
    let mut decoder = SegmentDecoder::new()?;
    for (path, pack) in below(objects, "packs/") {
        let id = blake3::hash(pack).to_hex();
        if path != format!("{}/{id}", &id[..2]) {
            return Err("a pack has another name".into());
        }
        let header = decode_header(pack)?;
        let trailer = decode_trailer(pack, pack.len() as u64)?;
        PackOpener::new(keys, &header.identity, &header.wrap)?;
        let opener = PackOpener::new(keys, &trailer.identity, &trailer.wrap)?;
        let kind = wrap_kind(&trailer.wrap)?;
        let start = trailer.footer_offset as usize;
        let mut sealed = pack[start..start + trailer.footer_bytes as usize].to_vec();
        let footer = opener.open_footer(keys, &trailer, &mut sealed)?;
        verify_padding(pack, &footer, &trailer)?;
        for (ordinal, segment) in footer.segments.iter().enumerate() {
            let start = segment.offset as usize;
            let mut stored = pack[start..start + segment.stored_bytes() as usize].to_vec();
            let mut data = Vec::new();
            let plaintext = opener.open_segment(ordinal as u32, &mut stored)?;
            segment.verify_table(&decoder.decode(plaintext, &mut data)?)?;
            let mut rest = &data[..];
            for entry in &segment.entries {
                let (bytes, after) = rest.split_at(entry.bytes as usize);
                rest = after;
                let id = match entry.kind {
                    EntryKind::Chunk => keys.chunk_id(bytes).0,
                    EntryKind::Page => keys.page_id(bytes).0,
                    EntryKind::Splice => {
                        splices.insert(entry.id, Splice::decode(bytes)?);
                        continue;
                    }
                };
                if id != entry.id {
                    return Err("a piece has another id".into());
                }
                // A writer that may not read cannot know what others have stored.
                if kind == WrapKind::Repository && !once.insert(id) {
                    return Err("a piece is stored twice".into());
                }
                pieces.insert(id, bytes.to_vec());
            }
        }
    }
    let told =
        splices.into_iter().map(|(id, splice)| Ok((id, assemble(keys, &pieces, id, &splice)?)));
    let told = told.collect::<Result<Pieces>>()?;
    pieces.extend(told);
    Ok(pieces)
}

/// The chunk that a splice stands for, compared with its id.
fn assemble(keys: &Keys, pieces: &Pieces, id: [u8; 32], splice: &Splice) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for part in splice.pieces() {
        bytes.extend_from_slice(part.of(piece(pieces, part.chunk.0)?)?);
    }
    if keys.chunk_id(&bytes).0 != id {
        return Err("a splice has another id".into());
    }
    Ok(bytes)
}

/// Every manifest that has its ok.
fn open_points(objects: &Tree, keys: &Keys) -> Result<Vec<(PointId, Manifest)>> {
    let mut points = Vec::new();
    for (leaf, _) in below(objects, "points/") {
        let Some(PointName::Ok(point)) = parse_point(leaf) else { continue };
        let bytes = objects.get(&format!("points/{point}")).ok_or("an ok without a manifest")?;
        if *blake3::hash(bytes).as_bytes() != point.0 {
            return Err("a manifest has another name".into());
        }
        points.push((point, Manifest::open(keys, bytes)?));
    }
    Ok(points)
}

fn piece(pieces: &Pieces, id: [u8; 32]) -> Result<&[u8]> {
    Ok(pieces.get(&id).ok_or("a chunk or page is not stored")?)
}

/// Reads a disk on a fixed grid and compares its digest with the one that follows from the map,
/// or with that of the manifest.
fn read_disk(keys: &Keys, pieces: &Pieces, disk: &DiskRecord) -> Result<Vec<u8>> {
    let shape = MapShape::new(disk.size, disk.chunking.grid().ok_or("is not on a grid")?)?;
    if shape.root(keys, &disk.chunking, disk.top) != disk.root {
        return Err("a disk has another map root".into());
    }
    let mut slots = BTreeMap::new();
    if let Some(top) = disk.top {
        walk(pieces, shape, shape.depth() - 1, 0, top, &mut slots)?;
    }
    let mut bytes = Vec::new();
    let mut values = Vec::new();
    for slot in 0..shape.slots() {
        let length = shape.bytes_in_slot(slot) as usize;
        let offset = slot * u64::from(shape.chunk_bytes());
        match slots.get(&slot) {
            None => {
                bytes.resize(bytes.len() + length, 0);
                values.push(chaining_value_of_zeros(offset, length as u64));
            }
            Some((id, chaining)) => {
                let chunk = piece(pieces, *id)?;
                if chunk.len() != length {
                    return Err("a chunk has another length".into());
                }
                bytes.extend_from_slice(chunk);
                values.push(*chaining);
            }
        }
    }
    // A disk of one chunk has its digest in the manifest.
    if disk.digest.or_else(|| merge_root(&values)) != Some(*blake3::hash(&bytes).as_bytes()) {
        return Err("a disk has another digest".into());
    }
    Ok(bytes)
}

/// Collects the chunks below page number `number` of `level`.
fn walk(
    pieces: &Pieces,
    shape: MapShape,
    level: u32,
    number: u64,
    page: PageId,
    slots: &mut BTreeMap<u64, ([u8; 32], Chaining)>,
) -> Result<()> {
    let bytes = piece(pieces, page.0)?;
    if level > 0 {
        let inner = Inner::decode(bytes, level, shape.used_children(level, number))?;
        for (child, slot) in (number * 128..).zip(inner.slots) {
            if let InnerSlot::Child { page, .. } = slot {
                walk(pieces, shape, level - 1, child, page, slots)?;
            }
        }
        return Ok(());
    }
    let leaf = Leaf::decode(bytes, shape.used_slots(number))?;
    for (place, slot) in (number * 64..).zip(leaf.slots) {
        if let LeafSlot::Chunk { id, chaining } = slot {
            slots.insert(place, (id.0, chaining));
        }
    }
    Ok(())
}

fn read_stream(keys: &Keys, pieces: &Pieces, content: &StreamReference) -> Result<Vec<u8>> {
    if map_root(keys, content.bytes, &content.chunking, content.top) != content.root {
        return Err("a stream has another map root".into());
    }
    let mut bytes = Vec::new();
    let mut open: Vec<(u64, PageId)> =
        content.top.map(|top| (content.bytes, top)).into_iter().collect();
    while let Some((length, page)) = open.pop() {
        match StreamPage::decode(piece(pieces, page.0)?, length)? {
            StreamPage::Inner(_, children) => open.extend(children.into_iter().rev()),
            StreamPage::Leaf(entries) => {
                for entry in entries {
                    match entry {
                        StreamEntry::Zeros(zeros) => bytes.resize(bytes.len() + zeros as usize, 0),
                        StreamEntry::Chunk { id, .. } => {
                            bytes.extend_from_slice(piece(pieces, id.0)?);
                        }
                    }
                }
            }
        }
    }
    Ok(bytes)
}

fn allocation_text(list: &[u8], size: u64) -> Result<String> {
    let mut text = String::new();
    for run in allocation::decode(list, size)? {
        let kind = if run.is_allocated { "allocated" } else { "hole" };
        text.push_str(&format!("{}+{} {kind}\n", run.start, run.bytes));
    }
    Ok(text)
}

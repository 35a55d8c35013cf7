//! Map pages, stream map pages, and the digest of a whole disk.

use super::{Facts, Opened, Run, SUBKEYS, Stop, refuse};
use crate::vectors::fixed::pattern;
use crate::vectors::form::Fields;
use diskvault_format::digest::{Chaining, chaining_value, chaining_value_of_zeros, merge_root};
use diskvault_format::id::{PageId, to_hex};
use diskvault_format::manifest::Chunking;
use diskvault_format::map::{Inner, InnerSlot, Leaf, LeafSlot, MapBuilder, MapShape};
use diskvault_format::stream_map::{StreamEntry, StreamPage};
use std::convert::Infallible;

fn shape(fields: &Fields<'_>) -> Result<MapShape, Stop> {
    let chunk_bytes = fields.number("chunk-bytes")?;
    let chunk_bytes = u32::try_from(chunk_bytes).map_err(|cause| cause.to_string())?;
    Ok(MapShape::new(fields.number("size")?, chunk_bytes)?)
}

/// The slots in use: given, or of page number `page` of a disk of `size` bytes.
fn used(fields: &Fields<'_>, level: u32) -> Result<usize, Stop> {
    if fields.optional("used").is_some() {
        return Ok(fields.number("used")? as usize);
    }
    let (page, shape) = (fields.number("page")?, shape(fields)?);
    Ok(match level {
        0 => shape.used_slots(page),
        _ => shape.used_children(level, page),
    })
}

/// The id of a page, if the vector has a master key.
fn page_id(
    opened: Option<&Opened>,
    fields: &Fields<'_>,
    body: &[u8],
    facts: &mut Facts,
) -> Result<(), Stop> {
    let Some(opened) = opened else { return Ok(()) };
    let page = opened.keys.page_id(body);
    if fields.optional("asked-for").is_some_and(|asked| asked != page.to_hex()) {
        return Err(refuse("M-7", "the page has another id than was asked for"));
    }
    facts.add("page-id", page);
    Ok(())
}

fn known(chaining: Option<Chaining>) -> String {
    chaining.map_or("unknown".to_owned(), |value| to_hex(&value))
}

/// A leaf of a disk map.
pub fn leaf(fields: &Fields<'_>, body: &[u8]) -> Run {
    let mut facts = Facts::default();
    let opened = fields.optional("master").map(|_| Opened::new(fields)).transpose()?;
    let used = used(fields, 0)?;
    page_id(opened.as_ref(), fields, body, &mut facts)?;
    let leaf = Leaf::decode(body, used)?;
    if leaf.encode().as_deref() != Some(body) {
        return Err("encoding again gives other bytes".into());
    }
    for (number, slot) in leaf.slots.iter().enumerate() {
        if let LeafSlot::Chunk { id, chaining } = slot {
            facts.add(&format!("slot-{number}"), format!("{id} {}", to_hex(chaining)));
        }
    }
    facts.add("used-slots", used);
    facts.add("chaining", known(leaf.chaining(used)));
    Ok(facts)
}

/// An inner page of a disk map.
pub fn inner(fields: &Fields<'_>, body: &[u8]) -> Run {
    let mut facts = Facts::default();
    let opened = fields.optional("master").map(|_| Opened::new(fields)).transpose()?;
    let level = u32::try_from(fields.number("level")?).map_err(|cause| cause.to_string())?;
    let used = used(fields, level)?;
    page_id(opened.as_ref(), fields, body, &mut facts)?;
    let inner = Inner::decode(body, level, used)?;
    if inner.encode().as_deref() != Some(body) {
        return Err("encoding again gives other bytes".into());
    }
    for (number, slot) in inner.slots.iter().enumerate() {
        if let InnerSlot::Child { page, chaining } = slot {
            facts.add(&format!("slot-{number}"), format!("{page} {}", known(*chaining)));
        }
    }
    facts.add("used-slots", used);
    facts.add("chaining", known(inner.chaining(used)));
    Ok(facts)
}

/// A page of a stream map.
pub fn stream_page(fields: &Fields<'_>, body: &[u8]) -> Run {
    let mut facts = Facts::default();
    let opened = fields.optional("master").map(|_| Opened::new(fields)).transpose()?;
    let level = fields.optional("level").map(|_| fields.number("level")).transpose()?;
    let expected = fields.number("bytes-expected")?;
    page_id(opened.as_ref(), fields, body, &mut facts)?;
    let page = StreamPage::decode(body, expected)?;
    if level.is_some_and(|level| level != u64::from(body[1])) {
        return Err(refuse("T-6", "the level is not one less than the parent's"));
    }
    if page.encode() != body {
        return Err("encoding again gives other bytes".into());
    }
    match page {
        StreamPage::Leaf(entries) => {
            facts.add("page-level", 0);
            facts.add_list(
                "entries",
                entries.iter().map(|entry| match entry {
                    StreamEntry::Zeros(bytes) => format!("zeros:{bytes}"),
                    StreamEntry::Chunk { bytes, id } => format!("{id}:{bytes}"),
                }),
            );
        }
        StreamPage::Inner(level, entries) => {
            facts.add("page-level", level);
            facts.add_list("entries", entries.iter().map(|(bytes, id)| format!("{id}:{bytes}")));
        }
    }
    Ok(facts)
}

/// A disk whose byte `i` is `i % 251`, but zeros in the slots of `zero-slots`: chunk ids,
/// chaining values, map root and digest.
pub fn digest(fields: &Fields<'_>, body: &[u8]) -> Run {
    let opened = Opened::new(fields)?;
    let shape = shape(fields)?;
    let chunk_bytes = shape.chunk_bytes() as usize;
    let mut data = pattern(shape.size() as usize);
    for slot in fields.optional("zero-slots").unwrap_or("").split_terminator(' ') {
        let slot: usize = slot.parse().map_err(|_| "zero-slots holds no numbers")?;
        let zeros = data.chunks_mut(chunk_bytes).nth(slot).ok_or("a zero slot is not there")?;
        zeros.fill(0);
    }
    if !body.is_empty() {
        return Err("the content is given by the size alone".into());
    }
    let mut facts = Facts::default();
    let mut values = Vec::new();
    let mut leaves = vec![Leaf::ZERO; shape.leaves() as usize];
    for (slot, chunk) in data.chunks(chunk_bytes).enumerate() {
        let offset = (slot * chunk_bytes) as u64;
        let chaining = chaining_value(offset, chunk);
        values.push(chaining);
        let shown = if chunk.iter().all(|byte| *byte == 0) {
            if chaining != chaining_value_of_zeros(offset, chunk.len() as u64) {
                return Err("the chaining value of zeros is another".into());
            }
            "zero".to_owned()
        } else {
            let id = opened.keys.chunk_id(chunk);
            leaves[slot / 64].slots[slot % 64] = LeafSlot::Chunk { id, chaining };
            id.to_hex()
        };
        facts.add(&format!("slot-{slot}"), format!("{shown} {}", to_hex(&chaining)));
    }
    let digest = *blake3::hash(&data).as_bytes();
    if values.len() > 1 && merge_root(&values) != Some(digest) {
        return Err("the merged digest is another".into());
    }
    facts.add_bytes("digest", &digest);
    let top = build(&opened, shape, &leaves);
    facts.add("depth", shape.depth());
    facts.add_list("top", top);
    facts.add("root", shape.root(&opened.keys, &Chunking::fixed(shape.chunk_bytes()), top));
    if fields.optional("list-subkeys").is_some() {
        for (key, context) in SUBKEYS {
            facts.add_bytes(key, opened.subkey(context).expose());
        }
    }
    Ok(facts)
}

fn build(opened: &Opened, shape: MapShape, leaves: &[Leaf]) -> Option<PageId> {
    let mut sink = |_: PageId, _: Vec<u8>| -> Result<(), Infallible> { Ok(()) };
    let mut builder = MapBuilder::new(shape);
    for (number, leaf) in leaves.iter().enumerate() {
        let Ok(()) = builder.push(&opened.keys, number as u64, leaf, &mut sink);
    }
    let Ok(top) = builder.finish(&opened.keys, &mut sink);
    top
}

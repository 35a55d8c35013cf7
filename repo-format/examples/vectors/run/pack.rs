//! Packs, and the plaintext of their segments and footers.

use super::sealed::show_signature;
use super::{Facts, Opened, Run, Stop, check_name, refuse};
use crate::vectors::form::Fields;
use diskvault_format::crypto::{
    ObjectKind, PackCipher, Secret, additional_data, context, open_x, seal_x,
};
use diskvault_format::footer::{Footer, FooterSegment};
use diskvault_format::id::to_hex;
use diskvault_format::pack::{
    PackOpener, Trailer, WRAP_BYTES, decode_header, decode_trailer, verify_ends, verify_padding,
};
use diskvault_format::segment::{Anchor, Entry, EntryKind, EntryShape, SegmentDecoder};
use diskvault_format::splice::{Piece, Splice};
use std::collections::BTreeMap;

fn show_entry(entry: &Entry) -> String {
    format!("{}:{}", to_hex(&entry.id), show_shape(&entry.shape()))
}

fn show_shape(shape: &EntryShape) -> String {
    format!("{:?}:{}", shape.kind, shape.bytes).to_lowercase()
}

fn show_segment(segment: &FooterSegment) -> String {
    format!("{}+{}:{}", segment.offset, segment.stored_bytes(), segment.entries.len())
}

fn show_anchors((ordinal, segment): (usize, &FooterSegment)) -> Vec<String> {
    let show = |anchor: &Anchor| format!("{ordinal}.{}:{:016x}", anchor.slot, anchor.value);
    segment.anchors.iter().map(show).collect()
}

fn show_piece(piece: &Piece) -> String {
    format!("{}:{}+{}", piece.chunk, piece.offset, piece.bytes)
}

/// A pack: both ends, footer, padding, every segment, every id. With `read: tail` it is read as
/// over a network: from the trailer, without the header and the padding.
pub fn pack(fields: &Fields<'_>, body: &[u8]) -> Run {
    let opened = Opened::new(fields)?;
    let length = match fields.optional("pack-bytes") {
        Some(_) => fields.number("pack-bytes")?,
        None => body.len() as u64,
    };
    let header = match fields.optional("read") {
        Some(_) => None,
        None => Some(decode_header(body)?),
    };
    check_name(fields, body)?;
    let trailer = decode_trailer(body, length)?;
    if let Some(header) = &header {
        PackOpener::new(&opened.keys, &header.identity, &header.wrap)?;
        verify_ends(header, &trailer)?;
    }
    let opener = PackOpener::new(&opened.keys, &trailer.identity, &trailer.wrap)?;
    let start = trailer.footer_offset as usize;
    let mut sealed = body[start..start + trailer.footer_bytes as usize].to_vec();
    let footer = opener.open_footer(&opened.keys, &trailer, &mut sealed)?;
    if header.is_some() {
        verify_padding(body, &footer, &trailer)?;
    }
    let mut whole = Vec::new();
    for (ordinal, segment) in footer.segments.iter().enumerate() {
        let start = segment.offset as usize;
        let mut stored = body[start..start + segment.stored_bytes() as usize].to_vec();
        let plaintext = opener.open_segment(ordinal as u32, &mut stored)?;
        let mut data = Vec::new();
        segment.verify_table(&SegmentDecoder::new()?.decode(plaintext, &mut data)?)?;
        whole.append(&mut data);
    }
    check_ids(&opened, &footer, &whole)?;
    let mut facts = Facts::default();
    facts.add_bytes("pack-id", blake3::hash(body).as_bytes());
    facts.add("kind", format!("{:?}", trailer.identity.kind).to_lowercase());
    if let Some(header) = header {
        facts.add("writer", header.writer);
    }
    facts.add("footer-at", format!("{}+{}", trailer.footer_offset, trailer.footer_bytes));
    facts.add_list("segments", footer.segments.iter().map(show_segment));
    let entries = footer.segments.iter().flat_map(|segment| &segment.entries);
    facts.add_list("entries", entries.map(show_entry));
    facts.add_list("anchors", footer.segments.iter().enumerate().flat_map(show_anchors));
    facts.add_bytes("plaintext-blake3", blake3::hash(&whole).as_bytes());
    intermediates(&opened, &trailer, &mut sealed_footer(body, &trailer), &mut facts)?;
    Ok(facts)
}

fn sealed_footer(body: &[u8], trailer: &Trailer) -> Vec<u8> {
    let start = trailer.footer_offset as usize;
    body[start..start + trailer.footer_bytes as usize].to_vec()
}

/// Every id. Splices come last: the chunks of their pieces are in the pack too.
fn check_ids(opened: &Opened, footer: &Footer, mut data: &[u8]) -> Result<(), Stop> {
    let mut chunks = BTreeMap::new();
    let mut splices = Vec::new();
    let differs = || refuse("S-9", "an id is not that of the bytes");
    for entry in footer.segments.iter().flat_map(|segment| &segment.entries) {
        let (bytes, rest) = data.split_at(entry.bytes as usize);
        data = rest;
        let id = match entry.kind {
            EntryKind::Chunk => opened.keys.chunk_id(bytes).0,
            EntryKind::Page => opened.keys.page_id(bytes).0,
            EntryKind::Splice => {
                splices.push((entry.id, Splice::decode(bytes)?));
                continue;
            }
        };
        if id != entry.id {
            return Err(differs());
        }
        if entry.kind == EntryKind::Chunk {
            chunks.insert(id, bytes);
        }
    }
    for (id, splice) in splices {
        let mut whole = Vec::new();
        for piece in splice.pieces() {
            let chunk = chunks.get(&piece.chunk.0).ok_or("a piece's chunk is in no segment")?;
            whole.extend_from_slice(piece.of(chunk)?);
        }
        if opened.keys.chunk_id(&whole).0 != id {
            return Err(differs());
        }
    }
    Ok(())
}

/// The values between the master key and the plaintext, derived without the crate's own reader.
fn intermediates(
    opened: &Opened,
    trailer: &Trailer,
    sealed_footer: &mut [u8],
    facts: &mut Facts,
) -> Result<(), Stop> {
    let wrap: &[u8; WRAP_BYTES] = &trailer.wrap;
    let (version, kind) = (trailer.identity.version, [trailer.identity.kind as u8]);
    let additional =
        |object, more: &[u8]| additional_data(version, object, opened.repository, &[&kind, more]);
    let is_signed = wrap[1] == 1;
    let clear = if is_signed { 48 } else { 56 };
    let wrap_additional = additional(ObjectKind::PackKey, &wrap[..clear]);
    let key = if is_signed {
        let enc = &wrap[48..80];
        array(&opened.open_sealed_to_public_key(enc, &wrap_additional, &wrap[80..], facts)?)
    } else {
        unwrap_again(opened, wrap, &wrap_additional, facts)?
    };
    let commitment = blake3::derive_key(context::PACK_COMMITMENT, &key);
    let key = Secret::new(key);
    if commitment != wrap[clear - 32..clear] {
        return Err("the wrapped key is another".into());
    }
    facts.add_bytes("additional-data", &wrap_additional);
    facts.add_bytes("pack-key", key.expose());
    facts.add_bytes("commitment", &commitment);
    facts.add_bytes("segment-0-nonce", &[0; 12]);
    facts.add_bytes("segment-0-additional-data", &additional(ObjectKind::Segment, &[0; 4]));
    let footer_additional = additional(ObjectKind::Footer, &trailer.footer_offset.to_le_bytes());
    let cipher = PackCipher::new(&key);
    let footer = cipher.open(u32::MAX, &footer_additional, sealed_footer, "P-8")?;
    facts.add_bytes("footer-nonce", &[255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0]);
    facts.add_bytes("footer-additional-data", &footer_additional);
    facts.add_bytes("footer-plaintext", footer);
    if is_signed {
        show_signature(&[&footer_additional, &commitment], footer, facts);
    }
    Ok(())
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

/// The pack key from a wrap under the repository's subkey.
fn unwrap_again(
    opened: &Opened,
    wrap: &[u8; WRAP_BYTES],
    additional: &[u8],
    facts: &mut Facts,
) -> Result<[u8; 32], Stop> {
    let subkey = opened.subkey(context::PACK_WRAP);
    let nonce = array(&wrap[56..80]);
    let key = array(&open_x(&subkey, &nonce, additional, &wrap[80..], "P-6")?);
    if seal_x(&subkey, &nonce, additional, &key) != wrap[80..] {
        return Err("sealing again gives other bytes".into());
    }
    facts.add_bytes("subkey", subkey.expose());
    facts.add_bytes("nonce", &nonce);
    Ok(key)
}

/// The plaintext of a segment.
pub fn segment(body: &[u8]) -> Run {
    let mut data = Vec::new();
    let entries = SegmentDecoder::new()?.decode(body, &mut data)?;
    let mut facts = Facts::default();
    facts.add("codec", if body[0] == 0 { "raw" } else { "zstd" });
    facts.add_list("entries", entries.iter().map(show_shape));
    facts.add_bytes("plaintext-blake3", blake3::hash(&data).as_bytes());
    Ok(facts)
}

/// The plaintext of a footer, of a pack whose segments lie in `first..end`.
pub fn footer(fields: &Fields<'_>, body: &[u8]) -> Run {
    let footer = Footer::decode(body, fields.number("first")?, fields.number("end")?)?;
    let mut facts = Facts::default();
    facts.add_list("segments", footer.segments.iter().map(show_segment));
    let entries = footer.segments.iter().flat_map(|segment| &segment.entries);
    facts.add_list("entries", entries.map(show_entry));
    facts.add_list("anchors", footer.segments.iter().enumerate().flat_map(show_anchors));
    Ok(facts)
}

/// The bytes of an entry that is a splice.
pub fn splice(body: &[u8]) -> Run {
    let splice = Splice::decode(body)?;
    let mut facts = Facts::default();
    facts.add_list("pieces", splice.pieces().iter().map(show_piece));
    facts.add("chunk-bytes", splice.chunk_bytes());
    Ok(facts)
}

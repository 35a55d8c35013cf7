//! The fixed keys, and what the crate keeps to itself: subkeys by their context strings, small
//! objects sealed with a header that the crate would not write, zstd frames of plain blocks.

use diskvault_format::crypto::{Keys, ObjectKind, Secret, additional_data, context, seal_x};
use diskvault_format::id::RepositoryId;
use diskvault_format::limits::CHUNK_BYTES_MAX;
use diskvault_format::segment::Entry;

/// The master key of all vectors: bytes 0 to 31.
pub const MASTER: [u8; 32] = {
    let mut bytes = [0; 32];
    let mut number = 0;
    while number < 32 {
        bytes[number] = number as u8;
        number += 1;
    }
    bytes
};

/// The repository of all vectors.
pub const REPOSITORY: RepositoryId = RepositoryId(*b"vectors of dv v1");

/// 2026-01-05T02:00:00Z in nanoseconds, the time of the first day.
pub const TIME_NS: i64 = 1_767_578_400_000_000_000;

/// The keys of all vectors.
pub fn keys() -> Keys {
    Keys::derive(&Secret::new(MASTER), REPOSITORY)
}

/// The keys of the writer with number `number`, which may not read.
pub fn writer_keys(number: u8) -> Keys {
    match keys().for_writer(seed(number), Vec::new()) {
        Some(secrets) => Keys::write_only(&secrets, REPOSITORY),
        None => keys(),
    }
}

/// The seed of a writer's signing key.
pub fn seed(number: u8) -> Secret {
    Secret::new(random(&format!("seed of writer {number}")))
}

/// A subkey as the specification derives it: BLAKE3 derive_key over master key ‖ repository id.
pub fn subkey(context: &str, master: &[u8; 32], repository: RepositoryId) -> Secret {
    let material = [&master[..], &repository.0].concat();
    Secret::new(blake3::derive_key(context, &material))
}

/// The context of the subkey that seals small objects of `kind`.
pub fn sealing_context(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Manifest => context::MANIFEST,
        ObjectKind::Note => context::NOTE,
        ObjectKind::Lost => context::LOST,
        ObjectKind::KeyLabel => context::KEY_LABEL,
        ObjectKind::Writer => context::WRITER_LIST,
        _ => context::PROTOCOL,
    }
}

/// Bytes that look random: BLAKE3 of `seed` as an extendable output.
pub fn random<const N: usize>(seed: &str) -> [u8; N] {
    let mut bytes = [0; N];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// The anchor of a chunk as the specification defines it, listed in footers or not; none if the
/// chunk has no anchor.
pub fn anchor(keys: &Keys, chunk: &[u8]) -> Option<u64> {
    if chunk.len() > CHUNK_BYTES_MAX as usize {
        return None;
    }
    let mut first = [0; 8];
    blake3::Hasher::new_keyed(keys.gear_key()).finalize_xof().fill(&mut first);
    let factor = u64::from_le_bytes(first) | 1;
    let (words, _) = chunk.as_chunks::<4>();
    let (mut hash, mut best) = (0_u64, None);
    for (number, word) in words.iter().enumerate() {
        let word = u64::from(u32::from_le_bytes(*word));
        hash = (hash << 4).wrapping_add(word.wrapping_mul(factor));
        if number >= 15 && best.is_none_or(|(greatest, _)| hash > greatest) {
            best = Some((hash, number as u64 * 4 + 3));
        }
    }
    let (hash, place) = best?;
    Some(hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 22 << 22 | place)
}

/// Whether a writer lists such an anchor: bits 22 and 23 are zero.
pub fn is_listed(anchor: u64) -> bool {
    anchor >> 22 & 3 == 0
}

/// The repeating pattern of the digest vectors: byte `i` is `i % 251`.
pub fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|position| (position % 251) as u8).collect()
}

/// The format version of an object: bytes 8 and 9, behind the magic; 0 if it ends before.
pub fn version_of(object: &[u8]) -> u16 {
    object.get(8..10).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// A small object with any 16-byte header, sealed as if the header were right.
pub fn envelope(kind: ObjectKind, header: &[u8], name: &str, plaintext: &[u8]) -> Vec<u8> {
    let nonce = random::<24>("nonce of a small object");
    let key = subkey(sealing_context(kind), &MASTER, REPOSITORY);
    let more = [header, name.as_bytes()];
    let additional = additional_data(version_of(header), kind, REPOSITORY, &more);
    [header, &nonce, &seal_x(&key, &nonce, &additional, plaintext)].concat()
}

/// A zstd frame of raw and run-length blocks (RFC 8878), which no version of zstd can change.
pub fn zstd_frame(data: &[u8]) -> Vec<u8> {
    let mut frame = 0xfd2f_b528_u32.to_le_bytes().to_vec();
    // Single segment, four bytes of content size, no checksum, no dictionary.
    frame.push(0xa0);
    frame.extend_from_slice(&(data.len() as u32).to_le_bytes());
    let mut rest = data;
    while !rest.is_empty() {
        let run = run_length(rest);
        let (kind, taken) = if run >= 8 { (1, run) } else { (0, raw_length(rest)) };
        let (block, after) = rest.split_at(taken);
        let last = u32::from(after.is_empty());
        let header = last | kind << 1 | (taken as u32) << 3;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.extend_from_slice(if kind == 1 { &block[..1] } else { block });
        rest = after;
    }
    frame
}

/// Length of the run of equal bytes that `data` starts with, at most 64 KiB.
fn run_length(data: &[u8]) -> usize {
    data.iter().take(64 << 10).take_while(|byte| **byte == data[0]).count()
}

/// Bytes up to the next run of eight, at most 64 KiB.
fn raw_length(data: &[u8]) -> usize {
    let most = data.len().min(64 << 10);
    (1..most).find(|start| run_length(&data[*start..]) >= 8).unwrap_or(most)
}

/// The nonce and sealed label of a key slot with the clear part `clear`.
pub fn envelope_key_label(clear: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let nonce = random::<24>("label");
    let key = subkey(context::KEY_LABEL, &MASTER, REPOSITORY);
    let additional = additional_data(version_of(clear), ObjectKind::KeyLabel, REPOSITORY, &[clear]);
    [&nonce[..], &seal_x(&key, &nonce, &additional, plaintext)].concat()
}

/// The plaintext of a segment with any codec, table and payload.
pub fn segment_plaintext(codec: u8, entries: &[Entry], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![codec, 0, 0, 0];
    bytes.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for entry in entries {
        entry.shape().write(&mut bytes);
    }
    bytes.extend_from_slice(payload);
    bytes
}

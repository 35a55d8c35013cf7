//! Writing packs: segments are sealed and hashed as they come; footer and trailer follow.
//!
//! Invariant: a pack that is finished has the id that its bytes hash to.

use super::{
    FOOTER_ORDINAL, HEAD_MAGIC, HEADER_BYTES, PackIdentity, PackKind, TAIL_MAGIC, TRAILER_BYTES,
    WRAP_BYTES, commitment,
};
use crate::crypto::{Keys, ObjectKind, PackCipher, Secret, TAG_BYTES, seal_x};
use crate::error::{Result, limit};
use crate::footer::{Footer, FooterSegment};
use crate::id::{LeaseId, PackId};
use crate::limits::{
    FORMAT_VERSION, PACK_BYTES_MAX, PACK_PADDING_BYTES, PACK_SEGMENTS_MAX, SEGMENT_ALIGNMENT_BYTES,
};
use crate::segment::{Anchor, Entry, FRAME_BYTES, write_frame};

/// The fresh random values of one pack.
pub struct PackSecrets {
    /// The key that seals this pack and no other.
    pub key: Secret,
    /// The nonce of the wrapped key.
    pub wrap_nonce: [u8; 24],
}

/// A segment that is encoded but not yet sealed.
pub struct PreparedSegment {
    /// Its entries.
    pub entries: Vec<Entry>,
    /// Anchors of some of them, by ascending slot.
    pub anchors: Vec<Anchor>,
    /// Its plaintext, from `SegmentEncoder::encode`.
    pub plaintext: Vec<u8>,
}

/// A finished pack.
pub struct SealedPack {
    /// Its name.
    pub id: PackId,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What it holds.
    pub footer: Footer,
}

fn wrap_key(keys: &Keys, identity: &PackIdentity, secrets: &PackSecrets) -> [u8; WRAP_BYTES] {
    let mut wrap = Vec::with_capacity(WRAP_BYTES);
    // Algorithm 1, wrap kind 0 (repository key), key epoch 0, wrap key id 0.
    wrap.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    wrap.extend_from_slice(&[0; 16]);
    wrap.extend_from_slice(&commitment(&secrets.key));
    let additional = identity.additional(ObjectKind::PackKey, &wrap);
    wrap.extend_from_slice(&secrets.wrap_nonce);
    let nonce = &secrets.wrap_nonce;
    wrap.extend_from_slice(&seal_x(keys.pack_wrap(), nonce, &additional, secrets.key.expose()));
    let mut bytes = [0; WRAP_BYTES];
    bytes.copy_from_slice(&wrap);
    bytes
}

/// Most that alignment and padding add to a segment and the footer behind it.
const SLACK_BYTES: usize = SEGMENT_ALIGNMENT_BYTES as usize + PACK_PADDING_BYTES as usize;

fn align(offset: usize, to: u64) -> usize {
    offset.next_multiple_of(to as usize)
}

/// A pack that is being filled: each segment is sealed and hashed when it comes, while it is in
/// the processor's cache, so nothing is left to do at the end but the footer.
pub struct PackBuilder {
    identity: PackIdentity,
    wrap: [u8; WRAP_BYTES],
    cipher: PackCipher,
    bytes: Vec<u8>,
    hasher: blake3::Hasher,
    /// So many of `bytes` went into the hasher.
    hashed: usize,
    footer: Footer,
    footer_bytes: usize,
}

impl PackBuilder {
    /// An empty pack of the writer's. Its bytes go into `buffer`, which is emptied first: one with
    /// room spares the memory of another.
    pub fn new(
        keys: &Keys,
        kind: PackKind,
        writer: LeaseId,
        secrets: &PackSecrets,
        buffer: Vec<u8>,
    ) -> PackBuilder {
        let repository = keys.repository();
        let identity = PackIdentity { version: FORMAT_VERSION, kind, repository };
        PackBuilder::new_as(identity, keys, writer, secrets, buffer)
    }

    pub(super) fn new_as(
        identity: PackIdentity,
        keys: &Keys,
        writer: LeaseId,
        secrets: &PackSecrets,
        buffer: Vec<u8>,
    ) -> PackBuilder {
        let wrap = wrap_key(keys, &identity, secrets);
        let mut bytes = buffer;
        bytes.clear();
        bytes.extend_from_slice(HEAD_MAGIC);
        identity.write(&mut bytes);
        bytes.extend_from_slice(&writer.0);
        bytes.extend_from_slice(&wrap);
        bytes.resize(HEADER_BYTES, 0);
        PackBuilder {
            identity,
            wrap,
            cipher: PackCipher::new(&secrets.key),
            bytes,
            hasher: blake3::Hasher::new(),
            hashed: 0,
            footer: Footer::default(),
            footer_bytes: 4,
        }
    }

    /// Bytes that the pack would have if it were finished now, without padding.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + self.footer_bytes + TAG_BYTES + TRAILER_BYTES
    }

    /// Seals the plaintext of a segment, from `SegmentEncoder::encode`, behind the others.
    ///
    /// # Errors
    /// P-1 if the pack would be too large, P-10 for too many segments.
    pub fn push(
        &mut self,
        entries: Vec<Entry>,
        anchors: Vec<Anchor>,
        plaintext: &[u8],
    ) -> Result<()> {
        let count = self.footer.segments.len() as u64 + 1;
        if count > u64::from(PACK_SEGMENTS_MAX) {
            return Err(limit("P-10", "the number of segments", PACK_SEGMENTS_MAX.into(), count));
        }
        let ordinal = count as u32 - 1;
        let offset = align(self.bytes.len(), SEGMENT_ALIGNMENT_BYTES) as u32;
        let sealed_bytes = (plaintext.len() + TAG_BYTES) as u32;
        let segment = FooterSegment { offset, sealed_bytes, entries, anchors };
        let more = plaintext.len() + FRAME_BYTES + TAG_BYTES + segment.footer_bytes();
        let whole = (self.bytes() + more + SLACK_BYTES) as u64;
        if whole > PACK_BYTES_MAX {
            return Err(limit("P-1", "the pack's length", PACK_BYTES_MAX, whole));
        }
        self.bytes.resize(offset as usize, 0);
        write_frame(ordinal, sealed_bytes, &mut self.bytes);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(plaintext);
        let additional = self.identity.segment_additional(ordinal);
        let tag = self.cipher.seal(ordinal, &additional, &mut self.bytes[start..]);
        self.bytes.extend_from_slice(&tag);
        self.footer_bytes += segment.footer_bytes();
        self.footer.segments.push(segment);
        self.hash();
        Ok(())
    }

    fn hash(&mut self) {
        self.hasher.update(&self.bytes[self.hashed..]);
        self.hashed = self.bytes.len();
    }

    /// Writes footer and trailer.
    ///
    /// # Errors
    /// P-10 for a pack without segments.
    pub fn finish(mut self) -> Result<SealedPack> {
        if self.footer.segments.is_empty() {
            return Err(limit("P-10", "the number of segments", PACK_SEGMENTS_MAX.into(), 0));
        }
        self.bytes.resize(align(self.bytes.len(), PACK_PADDING_BYTES), 0);
        let footer_offset = self.bytes.len() as u32;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&self.footer.encode());
        let additional = self.identity.footer_additional(footer_offset);
        let tag = self.cipher.seal(FOOTER_ORDINAL, &additional, &mut self.bytes[start..]);
        self.bytes.extend_from_slice(&tag);
        let footer_bytes = self.bytes.len() as u32 - footer_offset;
        write_trailer(&mut self.bytes, &self.identity, &self.wrap, footer_offset, footer_bytes);
        self.hash();
        let id = PackId(*self.hasher.finalize().as_bytes());
        Ok(SealedPack { id, bytes: self.bytes, footer: self.footer })
    }
}

/// Seals segments that are all at hand into a pack.
///
/// # Errors
/// As [`PackBuilder::push`] and [`PackBuilder::finish`].
pub fn assemble(
    keys: &Keys,
    kind: PackKind,
    writer: LeaseId,
    secrets: &PackSecrets,
    segments: Vec<PreparedSegment>,
) -> Result<SealedPack> {
    let mut builder = PackBuilder::new(keys, kind, writer, secrets, Vec::new());
    for segment in segments {
        builder.push(segment.entries, segment.anchors, &segment.plaintext)?;
    }
    builder.finish()
}

fn write_trailer(
    bytes: &mut Vec<u8>,
    identity: &PackIdentity,
    wrap: &[u8; WRAP_BYTES],
    footer_offset: u32,
    footer_bytes: u32,
) {
    bytes.extend_from_slice(wrap);
    bytes.extend_from_slice(&footer_offset.to_le_bytes());
    bytes.extend_from_slice(&footer_bytes.to_le_bytes());
    identity.write(bytes);
    bytes.extend_from_slice(&[0; 24]);
    bytes.extend_from_slice(TAIL_MAGIC);
}

//! Writing packs: segments are sealed and hashed as they come; footer and trailer follow.
//!
//! Invariant: a pack that is finished has the id that its bytes hash to.

use super::{
    CLEAR_BYTES, FOOTER_ORDINAL, HEAD_MAGIC, HEADER_BYTES, PackIdentity, PackKind, TAIL_MAGIC,
    TRAILER_BYTES, WRAP_BYTES, WrapKind, commitment,
};
use crate::asymmetric::{PUBLIC_KEY_BYTES, seal_to, sign};
use crate::crypto::{Keys, ObjectKind, PackCipher, Secret, TAG_BYTES, seal_x};
use crate::error::{Result, limit, malformed};
use crate::footer::{Footer, FooterSegment};
use crate::id::{LeaseId, PackId, WriterId};
use crate::limits::{
    FORMAT_VERSION, PACK_BYTES_MAX, PACK_PADDING_BYTES, PACK_SEGMENTS_MAX, SEGMENT_ALIGNMENT_BYTES,
};
use crate::segment::{Anchor, Entry, FRAME_BYTES, write_frame};
use crate::writers::SIGNED_HEAD_BYTES;

/// The fresh random values of one pack.
pub struct PackSecrets {
    /// The key that seals this pack and no other.
    pub key: Secret,
    /// What wraps the key: its first 24 bytes as a nonce, or all of it for an encapsulation.
    pub wrap_random: [u8; 32],
    /// For a writer that may not read and wants to know later what it has stored.
    pub own_copy: Option<OwnCopySecrets>,
}

/// The fresh random values of what a writer that may not read keeps of a pack.
pub struct OwnCopySecrets {
    /// Seals the footer of the copy in place of the pack's own key, which of a data pack is not
    /// kept: it would open the chunks.
    pub key: Secret,
    /// The nonce of the key that is kept.
    pub nonce: [u8; 24],
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
    /// Of a writer that may not read: footer and trailer once more, for itself. They open by its
    /// own keys, and with them the segments of a map pack, but not those of a data pack.
    pub own_copy: Option<Vec<u8>>,
}

/// A wrap up to what is sealed: algorithm 1, key epoch 0, wrap key id 0, commitment.
fn clear_wrap(kind: WrapKind, key: &Secret) -> Vec<u8> {
    let mut wrap = Vec::with_capacity(WRAP_BYTES);
    wrap.extend_from_slice(&[1, kind as u8]);
    wrap.resize(CLEAR_BYTES[kind as usize], 0);
    wrap.extend_from_slice(&commitment(key));
    wrap
}

fn whole_wrap(wrap: &[u8]) -> [u8; WRAP_BYTES] {
    let mut bytes = [0; WRAP_BYTES];
    bytes[..wrap.len()].copy_from_slice(wrap);
    bytes
}

fn wrap_key(
    keys: &Keys,
    identity: &PackIdentity,
    secrets: &PackSecrets,
) -> Result<[u8; WRAP_BYTES]> {
    let (key, random) = (&secrets.key, &secrets.wrap_random);
    let mut wrap;
    if let Some(wrapping) = keys.pack_wrap() {
        wrap = clear_wrap(WrapKind::Repository, key);
        let additional = identity.additional(ObjectKind::PackKey, &wrap);
        let mut nonce = [0; 24];
        nonce.copy_from_slice(&random[..24]);
        wrap.extend_from_slice(&nonce);
        wrap.extend_from_slice(&seal_x(wrapping, &nonce, &additional, key.expose()));
    } else {
        let own = keys.as_write_only().ok_or_else(|| malformed("P-5", "no key wraps it"))?;
        wrap = clear_wrap(WrapKind::PublicKey, key);
        let additional = identity.additional(ObjectKind::PackKey, &wrap);
        let (encapsulated, sealed) =
            seal_to(&own.public_key, random, &additional, key.expose(), "P-6")?;
        wrap.extend_from_slice(&encapsulated);
        wrap.extend_from_slice(&sealed);
    }
    Ok(whole_wrap(&wrap))
}

/// Signs footers.
struct Signing {
    writer: WriterId,
    seed: Secret,
}

impl Signing {
    /// Writer, signature and footer.
    fn sign(&self, additional: &[u8], key: &Secret, footer: &[u8]) -> Vec<u8> {
        let signature = sign(&self.seed, &[additional, &commitment(key), footer]);
        [&self.writer.0[..], &signature, footer].concat()
    }
}

/// What a writer that may not read keeps of a pack.
struct OwnCopy {
    key: Secret,
    wrap: [u8; WRAP_BYTES],
}

impl OwnCopy {
    fn new(keys: &Keys, identity: &PackIdentity, secrets: &PackSecrets) -> Option<OwnCopy> {
        let (own, copy) = (keys.as_write_only()?, secrets.own_copy.as_ref()?);
        let key = match identity.kind {
            // Who backs up next compares with the maps.
            PackKind::Map => secrets.key.clone(),
            PackKind::Data => copy.key.clone(),
        };
        let mut wrap = clear_wrap(WrapKind::PublicKey, &key);
        let additional = identity.additional(ObjectKind::PackKey, &wrap);
        wrap.extend_from_slice(&copy.nonce);
        wrap.extend_from_slice(&[0; PUBLIC_KEY_BYTES - 24]);
        wrap.extend_from_slice(&seal_x(&own.own_copies, &copy.nonce, &additional, key.expose()));
        Some(OwnCopy { key, wrap: whole_wrap(&wrap) })
    }
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
    key: Secret,
    signing: Option<Signing>,
    own_copy: Option<OwnCopy>,
}

impl PackBuilder {
    /// An empty pack of the writer's. Its bytes go into `buffer`, which is emptied first: one with
    /// room spares the memory of another.
    ///
    /// # Errors
    /// P-6 for a public key of the repository that cannot be sealed to.
    pub fn new(
        keys: &Keys,
        kind: PackKind,
        writer: LeaseId,
        secrets: &PackSecrets,
        buffer: Vec<u8>,
    ) -> Result<PackBuilder> {
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
    ) -> Result<PackBuilder> {
        let wrap = wrap_key(keys, &identity, secrets)?;
        let own_copy = OwnCopy::new(keys, &identity, secrets);
        let signing = keys
            .as_write_only()
            .map(|own| Signing { writer: own.writer, seed: own.signing.clone() });
        let mut bytes = buffer;
        bytes.clear();
        bytes.extend_from_slice(HEAD_MAGIC);
        identity.write(&mut bytes);
        bytes.extend_from_slice(&writer.0);
        bytes.extend_from_slice(&wrap);
        bytes.resize(HEADER_BYTES, 0);
        Ok(PackBuilder {
            identity,
            wrap,
            cipher: PackCipher::new(&secrets.key),
            bytes,
            hasher: blake3::Hasher::new(),
            hashed: 0,
            footer: Footer {
                signer: signing.as_ref().map(|signing| signing.writer),
                ..Footer::default()
            },
            footer_bytes: 4 + signing.as_ref().map_or(0, |_| SIGNED_HEAD_BYTES),
            key: secrets.key.clone(),
            signing,
            own_copy,
        })
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
        let (identity, cipher) = (self.identity, &self.cipher);
        let additional = identity.footer_additional(footer_offset);
        let footer = self.footer.encode();
        let seal = |key: &Secret, cipher: &PackCipher, wrap, output: &mut Vec<u8>| {
            let start = output.len();
            match &self.signing {
                None => output.extend_from_slice(&footer),
                Some(signing) => {
                    output.extend_from_slice(&signing.sign(&additional, key, &footer));
                }
            }
            let tag = cipher.seal(FOOTER_ORDINAL, &additional, &mut output[start..]);
            output.extend_from_slice(&tag);
            let footer_bytes = (output.len() - start) as u32;
            write_trailer(output, &identity, wrap, footer_offset, footer_bytes);
        };
        seal(&self.key, cipher, &self.wrap, &mut self.bytes);
        let own_copy = self.own_copy.as_ref().map(|own| {
            let mut copy = Vec::new();
            seal(&own.key, &PackCipher::new(&own.key), &own.wrap, &mut copy);
            copy
        });
        self.hash();
        let id = PackId(*self.hasher.finalize().as_bytes());
        Ok(SealedPack { id, bytes: self.bytes, footer: self.footer, own_copy })
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
    let mut builder = PackBuilder::new(keys, kind, writer, secrets, Vec::new())?;
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

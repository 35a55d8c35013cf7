//! Keys, sealing and additional data (spec/20-crypto.md).
//!
//! Invariants: every purpose has a subkey of its own, so that an object of one kind can never be
//! taken for another; additional data binds the object's own version, its kind and the
//! repository; secrets are wiped when they are dropped.

use crate::asymmetric;
use crate::error::{Result, unauthentic};
use crate::id::{ChunkId, KeySlotId, PageId, RepositoryId, WriterId};
use crate::writers::{self, WriterRecord, WriterSecrets, Writers};
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, XChaCha20Poly1305, XNonce};
use std::sync::Arc;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Bytes of a Poly1305 tag.
pub const TAG_BYTES: usize = 16;

/// What a sealed or authenticated object is; the number stands in its additional data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectKind {
    /// The repository's configuration.
    Config = 1,
    /// The keys in a key slot.
    KeySlot = 2,
    /// The label of a key slot.
    KeyLabel = 3,
    /// A pack's wrapped key.
    PackKey = 4,
    /// A segment of a pack.
    Segment = 5,
    /// The footer of a pack.
    Footer = 6,
    /// The manifest of a restore point.
    Manifest = 7,
    /// A writer's registration.
    Lease = 8,
    /// A sign of life of a writer.
    Heartbeat = 9,
    /// A list of packs that will be deleted.
    Condemned = 10,
    /// A note on a point.
    Note = 11,
    /// A list of chunks known to be lost.
    Lost = 12,
    /// A writer whose signature counts.
    Writer = 13,
}

/// The additional data every object starts with: 24 bytes, then what the object adds. `version` is
/// the one that stands in the object, so that a later program still opens it.
pub fn additional_data(
    version: u16,
    kind: ObjectKind,
    repository: RepositoryId,
    more: &[&[u8]],
) -> Vec<u8> {
    let mut data = Vec::with_capacity(24 + more.iter().map(|part| part.len()).sum::<usize>());
    data.extend_from_slice(b"dvAD");
    data.extend_from_slice(&version.to_le_bytes());
    data.push(kind as u8);
    data.push(0);
    data.extend_from_slice(&repository.0);
    for part in more {
        data.extend_from_slice(part);
    }
    data
}

/// A 256-bit secret that is wiped when it is dropped and never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Takes over 32 secret bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Secret(bytes)
    }

    /// The bytes, to be used and not kept.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The context strings of the key derivation, one for each purpose (spec/20-crypto.md).
pub mod context {
    /// Chunk ids.
    pub const CHUNK_ID: &str = "diskvault v1 chunk id";
    /// Map page ids.
    pub const PAGE_ID: &str = "diskvault v1 page id";
    /// Map roots.
    pub const MAP_ROOT: &str = "diskvault v1 map root";
    /// The gear table of content-defined cuts.
    pub const GEAR: &str = "diskvault v1 gear table";
    /// Wrapping of pack keys.
    pub const PACK_WRAP: &str = "diskvault v1 pack wrap";
    /// Commitment to a pack key.
    pub const PACK_COMMITMENT: &str = "diskvault v1 pack commitment";
    /// Manifests.
    pub const MANIFEST: &str = "diskvault v1 manifest";
    /// Notes: the admin subkey.
    pub const NOTE: &str = "diskvault v1 note";
    /// Lost lists.
    pub const LOST: &str = "diskvault v1 lost";
    /// Leases, heartbeats and condemned lists.
    pub const PROTOCOL: &str = "diskvault v1 protocol";
    /// Authentication of configs.
    pub const CONFIG: &str = "diskvault v1 config";
    /// Labels of key slots.
    pub const KEY_LABEL: &str = "diskvault v1 key label";
    /// The key of a key slot, from the output of Argon2id.
    pub const SLOT_KEY: &str = "diskvault v1 slot key";
    /// Commitment to the key of a key slot.
    pub const SLOT_COMMITMENT: &str = "diskvault v1 slot commitment";
    /// The key of a delta, from the output of Argon2id.
    pub const DELTA_KEY: &str = "diskvault v1 delta key";
    /// The repository's X25519 private key.
    pub const OPENING: &str = "diskvault v1 opening";
    /// Records of writers.
    pub const WRITER_LIST: &str = "diskvault v1 writer list";
    /// The id of a writer, from its public key.
    pub const WRITER_ID: &str = "diskvault v1 writer id";
    /// What a writer signs.
    pub const WRITER_SIGNATURE: &str = "diskvault v1 writer signature";
    /// The info string of what is sealed to the repository's public key.
    pub const SEALED_TO_PUBLIC_KEY: &str = "diskvault v1 sealed to public key";
    /// What a writer that cannot read keeps for itself, from the seed of its signing key.
    pub const OWN_COPIES: &str = "diskvault v1 own copies";
}

/// The subkeys of a key holder: of one who may do everything, or of one who may only write.
#[derive(Clone)]
pub struct Keys {
    repository: RepositoryId,
    chunk_id: Secret,
    page_id: Secret,
    map_root: Secret,
    gear: Secret,
    protocol: Secret,
    rights: Rights,
    writers: Arc<Writers>,
}

#[derive(Clone)]
enum Rights {
    Full(Box<FullKeys>),
    WriteOnly(Box<WriteOnlyKeys>),
}

/// What only who may read and delete has.
#[derive(Clone)]
struct FullKeys {
    pack_wrap: Secret,
    manifest: Secret,
    note: Secret,
    lost: Secret,
    config: Secret,
    key_label: Secret,
    writer_list: Secret,
    opening: Secret,
}

/// What only a writer has that may not read.
#[derive(Clone)]
pub(crate) struct WriteOnlyKeys {
    /// The repository's public key.
    pub(crate) public_key: [u8; 32],
    /// The writer.
    pub(crate) writer: WriterId,
    /// Its signing seed.
    pub(crate) signing: Secret,
    /// Seals what it keeps for itself of what it writes.
    pub(crate) own_copies: Secret,
}

impl Keys {
    /// Derives all subkeys: BLAKE3 derive_key with the purpose's context over
    /// master key ‖ repository id. No writers are known yet.
    pub fn derive(master: &Secret, repository: RepositoryId) -> Keys {
        let mut material = Zeroizing::new([0_u8; 48]);
        material[..32].copy_from_slice(master.expose());
        material[32..].copy_from_slice(&repository.0);
        let subkey = |context: &str| Secret(blake3::derive_key(context, &material[..]));
        Keys {
            repository,
            chunk_id: subkey(context::CHUNK_ID),
            page_id: subkey(context::PAGE_ID),
            map_root: subkey(context::MAP_ROOT),
            gear: subkey(context::GEAR),
            protocol: subkey(context::PROTOCOL),
            rights: Rights::Full(Box::new(FullKeys {
                pack_wrap: subkey(context::PACK_WRAP),
                manifest: subkey(context::MANIFEST),
                note: subkey(context::NOTE),
                lost: subkey(context::LOST),
                config: subkey(context::CONFIG),
                key_label: subkey(context::KEY_LABEL),
                writer_list: subkey(context::WRITER_LIST),
                opening: subkey(context::OPENING),
            })),
            writers: Arc::default(),
        }
    }

    /// The keys of a writer that may not read. It knows no writer but itself.
    pub fn write_only(secrets: &WriterSecrets, repository: RepositoryId) -> Keys {
        let signing = &secrets.signing;
        let verifying_key = asymmetric::verifying_key(signing);
        let own_copies = Secret(blake3::derive_key(context::OWN_COPIES, signing.expose()));
        let itself = WriterRecord {
            verifying_key,
            slot: KeySlotId([0; 32]),
            name: String::new(),
            series: secrets.series.clone(),
            time_unix_ns: 0,
            retired: None,
        };
        Keys {
            repository,
            chunk_id: secrets.chunk_id.clone(),
            page_id: secrets.page_id.clone(),
            map_root: secrets.map_root.clone(),
            gear: secrets.gear.clone(),
            protocol: secrets.protocol.clone(),
            rights: Rights::WriteOnly(Box::new(WriteOnlyKeys {
                public_key: *secrets.public_key.expose(),
                writer: writers::writer_id(&verifying_key),
                signing: signing.clone(),
                own_copies,
            })),
            writers: Arc::new(Writers::new([itself])),
        }
    }

    /// What a slot holds for a writer that may not read, signs with `signing` and may write to
    /// `series`; nothing for who may not read itself.
    pub fn for_writer(&self, signing: Secret, series: Vec<String>) -> Option<WriterSecrets> {
        let Rights::Full(full) = &self.rights else { return None };
        Some(WriterSecrets {
            chunk_id: self.chunk_id.clone(),
            page_id: self.page_id.clone(),
            map_root: self.map_root.clone(),
            gear: self.gear.clone(),
            protocol: self.protocol.clone(),
            public_key: Secret(asymmetric::public_key(&full.opening)),
            signing,
            series,
        })
    }

    /// The same keys, with writers whose signatures count.
    #[must_use]
    pub fn with_writers(self, writers: Writers) -> Keys {
        Keys { writers: Arc::new(writers), ..self }
    }

    /// The writers whose signatures count.
    pub fn writers(&self) -> &Writers {
        &self.writers
    }

    /// The writer that may do nothing but write, if these are keys of such a one.
    pub fn write_only_writer(&self) -> Option<WriterId> {
        self.as_write_only().map(|keys| keys.writer)
    }

    pub(crate) fn as_write_only(&self) -> Option<&WriteOnlyKeys> {
        match &self.rights {
            Rights::Full(_) => None,
            Rights::WriteOnly(keys) => Some(keys),
        }
    }

    fn as_full(&self) -> Option<&FullKeys> {
        match &self.rights {
            Rights::Full(keys) => Some(keys),
            Rights::WriteOnly(_) => None,
        }
    }

    /// The repository these keys belong to.
    pub fn repository(&self) -> RepositoryId {
        self.repository
    }

    /// The id of a chunk.
    pub fn chunk_id(&self, plaintext: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(self.chunk_id.expose(), plaintext).as_bytes())
    }

    /// The id of a map page.
    pub fn page_id(&self, plaintext: &[u8]) -> PageId {
        PageId(*blake3::keyed_hash(self.page_id.expose(), plaintext).as_bytes())
    }

    /// A keyed hash under the map root subkey.
    pub(crate) fn map_root_hash(&self, input: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(self.map_root.expose(), input).as_bytes()
    }

    /// The authenticator of a config; nothing for who cannot tell.
    pub(crate) fn config_hash(&self, input: &[u8]) -> Option<blake3::Hash> {
        Some(blake3::keyed_hash(self.as_full()?.config.expose(), input))
    }

    /// The key of the gear table for content-defined cuts.
    pub fn gear_key(&self) -> &[u8; 32] {
        self.gear.expose()
    }

    /// The subkey that wraps pack keys, for who may read.
    pub(crate) fn pack_wrap(&self) -> Option<&Secret> {
        self.as_full().map(|keys| &keys.pack_wrap)
    }

    /// The private key of what is sealed to the repository, for who may read.
    pub(crate) fn opening(&self) -> Option<&Secret> {
        self.as_full().map(|keys| &keys.opening)
    }

    pub(crate) fn key_label(&self) -> Option<&Secret> {
        self.as_full().map(|keys| &keys.key_label)
    }

    /// The subkey that seals small objects of `kind`; packs and configs have none. Of a writer that
    /// may not read, manifests have that of its own copies.
    pub(crate) fn sealing(&self, kind: ObjectKind) -> Option<&Secret> {
        if matches!(kind, ObjectKind::Lease | ObjectKind::Heartbeat | ObjectKind::Condemned) {
            return Some(&self.protocol);
        }
        match (&self.rights, kind) {
            (Rights::Full(keys), ObjectKind::Manifest) => Some(&keys.manifest),
            (Rights::Full(keys), ObjectKind::Note) => Some(&keys.note),
            (Rights::Full(keys), ObjectKind::Lost) => Some(&keys.lost),
            (Rights::Full(keys), ObjectKind::Writer) => Some(&keys.writer_list),
            (Rights::WriteOnly(keys), ObjectKind::Manifest) => Some(&keys.own_copies),
            _ => None,
        }
    }
}

/// Seals `plaintext` with XChaCha20-Poly1305; the nonce must be random and used once.
pub fn seal_x(key: &Secret, nonce: &[u8; 24], additional: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(plaintext.len() + TAG_BYTES);
    sealed.extend_from_slice(plaintext);
    let cipher = XChaCha20Poly1305::new(key.expose().into());
    // The only error is a plaintext beyond 2^38 bytes, and limits keep it under 2^30.
    if let Ok(tag) = cipher.encrypt_inout_detached(
        &XNonce::from(*nonce),
        additional,
        sealed.as_mut_slice().into(),
    ) {
        sealed.extend_from_slice(&tag);
    }
    sealed
}

/// Opens what [`seal_x`] made.
///
/// # Errors
/// `rule` if it does not authenticate.
pub fn open_x(
    key: &Secret,
    nonce: &[u8; 24],
    additional: &[u8],
    sealed: &[u8],
    rule: &'static str,
) -> Result<Zeroizing<Vec<u8>>> {
    let (body, tag) = split_tag(sealed, rule)?;
    let mut plaintext = Zeroizing::new(body.to_vec());
    XChaCha20Poly1305::new(key.expose().into())
        .decrypt_inout_detached(
            &XNonce::from(*nonce),
            additional,
            plaintext.as_mut_slice().into(),
            &tag.into(),
        )
        .map_err(|_| unauthentic(rule, "authentication failed"))?;
    Ok(plaintext)
}

fn split_tag<'a>(sealed: &'a [u8], rule: &'static str) -> Result<(&'a [u8], [u8; TAG_BYTES])> {
    match sealed.split_last_chunk::<TAG_BYTES>() {
        Some((body, tag)) => Ok((body, *tag)),
        None => Err(unauthentic(rule, "authentication failed: is shorter than its tag")),
    }
}

/// The cipher of one pack: ChaCha20-Poly1305 under the pack's own random key, with the ordinal
/// of the segment as nonce. A key seals each ordinal once, because a retry takes a new key.
pub struct PackCipher {
    cipher: ChaCha20Poly1305,
}

impl PackCipher {
    /// The cipher for a pack key.
    pub fn new(key: &Secret) -> Self {
        PackCipher { cipher: ChaCha20Poly1305::new(key.expose().into()) }
    }

    fn nonce(ordinal: u32) -> [u8; 12] {
        let mut nonce = [0_u8; 12];
        nonce[..4].copy_from_slice(&ordinal.to_le_bytes());
        nonce
    }

    /// Seals `buffer` in place and returns its tag.
    pub fn seal(&self, ordinal: u32, additional: &[u8], buffer: &mut [u8]) -> [u8; TAG_BYTES] {
        let nonce = Self::nonce(ordinal);
        match self.cipher.encrypt_inout_detached(&nonce.into(), additional, buffer.into()) {
            Ok(tag) => tag.into(),
            // Only for a buffer beyond 2^38 bytes, which no pack holds; such a tag opens nothing.
            Err(_) => [0; TAG_BYTES],
        }
    }

    /// Opens `sealed` (ciphertext and tag) in place; the plaintext is all but the last 16 bytes.
    ///
    /// # Errors
    /// `rule` if it does not authenticate.
    pub fn open<'a>(
        &self,
        ordinal: u32,
        additional: &[u8],
        sealed: &'a mut [u8],
        rule: &'static str,
    ) -> Result<&'a [u8]> {
        let Some((body, tag)) = sealed.split_last_chunk_mut::<TAG_BYTES>() else {
            return Err(unauthentic(rule, "authentication failed: is shorter than its tag"));
        };
        let nonce = Self::nonce(ordinal);
        self.cipher
            .decrypt_inout_detached(&nonce.into(), additional, (&mut *body).into(), &(*tag).into())
            .map_err(|_| unauthentic(rule, "authentication failed"))?;
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_subkey_and_additional_data() {
        let repository = RepositoryId([7; 16]);
        let keys = Keys::derive(&Secret::new([1; 32]), repository);
        let manifest = keys.sealing(ObjectKind::Manifest).unwrap().expose();
        let note = keys.sealing(ObjectKind::Note).unwrap().expose();
        let lease = keys.sealing(ObjectKind::Lease).unwrap().expose();
        assert!(manifest != note && note != lease && manifest != lease);
        assert!(keys.sealing(ObjectKind::Segment).is_none());
        assert_ne!(keys.chunk_id(b"x").0, keys.page_id(b"x").0);
        let one = additional_data(1, ObjectKind::Lease, repository, &[b"a"]);
        let two = additional_data(1, ObjectKind::Heartbeat, repository, &[b"a"]);
        assert_ne!(one, two);
        assert_ne!(one, additional_data(0, ObjectKind::Lease, repository, &[b"a"]));
    }

    #[test]
    fn a_changed_bit_anywhere_fails() {
        let key = Secret::new([3; 32]);
        let sealed = seal_x(&key, &[9; 24], b"about", b"plain");
        assert_eq!(&open_x(&key, &[9; 24], b"about", &sealed, "O-5").unwrap()[..], b"plain");
        for position in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[position] ^= 1;
            assert!(open_x(&key, &[9; 24], b"about", &changed, "O-5").is_err());
        }
        assert!(open_x(&key, &[9; 24], b"About", &sealed, "O-5").is_err());
        assert!(open_x(&key, &[9; 24], b"about", &sealed[..10], "O-5").is_err());
    }

    #[test]
    fn a_segment_opens_only_under_its_ordinal() {
        let cipher = PackCipher::new(&Secret::new([5; 32]));
        let mut sealed = b"segment".to_vec();
        let tag = cipher.seal(3, b"aad", &mut sealed);
        sealed.extend_from_slice(&tag);
        assert!(cipher.open(4, b"aad", &mut sealed.clone(), "P-9").is_err());
        assert_eq!(cipher.open(3, b"aad", &mut sealed, "P-9").unwrap(), b"segment");
    }
}

//! Key slots (spec/31-key-slot.md): one secret a user knows, and the keys it opens.
//!
//! ```text
//! offset  size  field
//!      0     8  magic "DVKEYSLT"
//!      8     2  format version
//!     10     1  slot kind: 1 passphrase, 2 recovery key
//!     11     1  algorithm: 1 = Argon2id, XChaCha20-Poly1305
//!     12     4  Argon2id memory in KiB
//!     16     4  Argon2id passes
//!     20     4  Argon2id lanes
//!     24    16  repository id
//!     40    32  salt
//!     72    32  key commitment
//!    104    24  nonce of the keys
//!    128     4  length of the sealed keys
//!    132     n  sealed record of keys
//!      .    24  nonce of the label
//!      .     m  sealed record of the label, under a subkey of the repository, to the end
//! ```
//!
//! Invariants: the cost is checked before Argon2id runs, for one slot and for all together; the
//! commitment is compared before the AEAD, so that one ciphertext cannot open under two secrets.

use crate::crypto::{Keys, ObjectKind, Secret, additional_data, context, open_x, seal_x};
use crate::cursor::Cursor;
use crate::error::{FormatError, Result, check_version, limit, malformed, newer, unauthentic};
use crate::id::{KeySlotId, RepositoryId};
use crate::limits::{
    FORMAT_VERSION, KDF_COST_KIB_MAX, KDF_LANES_MAX, KDF_MEMORY_KIB_MAX, KDF_MEMORY_KIB_MIN,
    KDF_PASSES_MAX, KDF_TOTAL_COST_KIB_MAX, KEY_SLOT_BYTES_MAX, NAME_BYTES_MAX,
};
use crate::record;
use crate::writers::WriterSecrets;
use argon2::{Algorithm, Argon2, Params, Version};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const MAGIC: &[u8; 8] = b"DVKEYSLT";
const CLEAR_BYTES: usize = 104;

/// Purpose number of a full key set (spec/20-crypto.md).
pub const PURPOSE_FULL: u8 = 1;
/// Purpose numbers of what a writer has that may not read, in the order of [`WriterSecrets`].
const PURPOSES_OF_WRITER: [u8; 7] = [2, 3, 4, 5, 6, 7, 8];

/// What a slot opens.
#[derive(Clone, Debug)]
pub enum SlotKeys {
    /// The master key, from which all subkeys are derived.
    Full(Secret),
    /// What a writer needs that may not read.
    WriteOnly(Box<WriterSecrets>),
}

impl SlotKeys {
    /// The subkeys, of the repository of the slot.
    pub fn keys(&self, repository: RepositoryId) -> Keys {
        match self {
            SlotKeys::Full(master) => Keys::derive(master, repository),
            SlotKeys::WriteOnly(secrets) => Keys::write_only(secrets, repository),
        }
    }

    /// True if both open the same.
    pub fn is_same(&self, other: &SlotKeys) -> bool {
        let hash = |keys: &SlotKeys| {
            let mut hasher = blake3::Hasher::new();
            for entry in keys.entries() {
                hasher.update(&[entry.purpose]).update(&entry.key);
            }
            hasher.finalize()
        };
        // Hashes compare in constant time.
        hash(self) == hash(other)
    }

    fn entries(&self) -> Vec<KeyEntry> {
        let entry = |purpose, key: &Secret| KeyEntry { purpose, epoch: 0, key: *key.expose() };
        match self {
            SlotKeys::Full(master) => vec![entry(PURPOSE_FULL, master)],
            SlotKeys::WriteOnly(own) => {
                let keys = [
                    &own.chunk_id,
                    &own.page_id,
                    &own.map_root,
                    &own.gear,
                    &own.protocol,
                    &own.public_key,
                    &own.signing,
                ];
                PURPOSES_OF_WRITER.into_iter().zip(keys).map(|(n, key)| entry(n, key)).collect()
            }
        }
    }

    /// A full key set if there is one, else all that a writer needs. Behind the keys of a writer, and
    /// no others, stand the series that it may write to.
    fn decode(plaintext: &[u8]) -> Result<SlotKeys> {
        let (entries, series) = match record::decode::<Vec<KeyEntry>>(plaintext) {
            Ok(entries) => (entries, None),
            Err(refused) => {
                let Ok((entries, series)) = record::decode::<(Vec<KeyEntry>, _)>(plaintext) else {
                    return Err(refused);
                };
                (entries, Some((refused, series)))
            }
        };
        let find = |purpose| {
            let entry = entries.iter().find(|entry| entry.purpose == purpose && entry.epoch == 0);
            entry.map(|entry| Secret::new(entry.key))
        };
        match (find(PURPOSE_FULL), series) {
            (Some(master), None) => Ok(SlotKeys::Full(master)),
            (Some(_), Some((refused, _))) => Err(refused),
            (None, series) => {
                let keys = PURPOSES_OF_WRITER.map(find);
                let [Some(a), Some(b), Some(c), Some(d), Some(e), Some(f), Some(g)] = keys else {
                    return Err(newer("K-8", "the slot holds no full key set"));
                };
                let (chunk_id, page_id, map_root, gear) = (a, b, c, d);
                let (protocol, public_key, signing) = (e, f, g);
                let Some((_, series)) = series else {
                    return Err(malformed("R-2", "the keys of a writer have no list of series"));
                };
                Ok(SlotKeys::WriteOnly(Box::new(WriterSecrets {
                    chunk_id,
                    page_id,
                    map_root,
                    gear,
                    protocol,
                    public_key,
                    signing,
                    series,
                })))
            }
        }
    }
}

/// Which kind of secret opens a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SlotKind {
    /// A passphrase that a person chose.
    Passphrase = 1,
    /// A recovery key that `init` made.
    Recovery = 2,
}

/// The cost of Argon2id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KdfCost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl KdfCost {
    /// The cost of new passphrase slots: 64 MiB, three passes (RFC 9106, second choice).
    pub const PASSPHRASE: KdfCost = KdfCost { memory_kib: 64 << 10, passes: 3, lanes: 1 };
    /// The cost of recovery slots, whose secret has 160 random bits: the least allowed.
    pub const RECOVERY: KdfCost = KdfCost { memory_kib: KDF_MEMORY_KIB_MIN, passes: 1, lanes: 1 };

    /// Memory times passes, in KiB.
    pub fn total_kib(self) -> u64 {
        u64::from(self.memory_kib) * u64::from(self.passes)
    }

    pub(crate) fn validate(self) -> Result<()> {
        if self.memory_kib < KDF_MEMORY_KIB_MIN || self.passes == 0 || self.lanes == 0 {
            return Err(malformed("K-4", "the key derivation is too weak"));
        }
        let bounds = [
            ("memory in KiB", u64::from(KDF_MEMORY_KIB_MAX), u64::from(self.memory_kib)),
            ("number of passes", u64::from(KDF_PASSES_MAX), u64::from(self.passes)),
            ("number of lanes", u64::from(KDF_LANES_MAX), u64::from(self.lanes)),
            ("memory times passes in KiB", KDF_COST_KIB_MAX, self.total_kib()),
        ];
        for (what, most, found) in bounds {
            if found > most {
                return Err(limit("K-4", &format!("key derivation {what}"), most, found));
            }
        }
        Ok(())
    }
}

/// Refuses slots whose derivations together cost too much.
///
/// # Errors
/// K-5 if memory times passes of all slots exceeds the limit.
pub fn validate_total_cost(costs: &[KdfCost]) -> Result<()> {
    let total = costs.iter().map(|cost| cost.total_kib()).sum();
    if total > KDF_TOTAL_COST_KIB_MAX {
        let what = "key derivation memory times passes of all slots in KiB";
        return Err(limit("K-5", what, KDF_TOTAL_COST_KIB_MAX, total));
    }
    Ok(())
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct KeyEntry {
    purpose: u8,
    epoch: u32,
    key: [u8; 32],
}

/// What a person sees of a slot; sealed, so that the storage host does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotLabel {
    /// A name for the slot.
    pub name: String,
    /// When it was made, in nanoseconds since 1970-01-01T00:00:00Z.
    pub created_unix_ns: i64,
    /// Where it was made.
    pub host: String,
}

impl SlotLabel {
    fn validate(&self) -> Result<()> {
        let longest = self.name.len().max(self.host.len());
        if longest > NAME_BYTES_MAX {
            return Err(limit("K-3", "the label's length", NAME_BYTES_MAX as u64, longest as u64));
        }
        Ok(())
    }
}

/// Fresh random values for one new slot.
pub struct SlotNonces {
    /// Salt of Argon2id.
    pub salt: [u8; 32],
    /// Nonce of the sealed keys.
    pub keys: [u8; 24],
    /// Nonce of the sealed label.
    pub label: [u8; 24],
}

/// A decoded key slot, still closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlot {
    /// Which kind of secret opens it.
    pub kind: SlotKind,
    /// What the derivation costs.
    pub cost: KdfCost,
    /// The repository it belongs to.
    pub repository: RepositoryId,
    version: u16,
    salt: [u8; 32],
    commitment: [u8; 32],
    nonce: [u8; 24],
    sealed_keys: Vec<u8>,
    label_nonce: [u8; 24],
    sealed_label: Vec<u8>,
}

impl KeySlot {
    /// Makes a slot that opens `opens` with `secret`. `keys` are those of who makes it, and seal its
    /// label: a full key set.
    ///
    /// # Errors
    /// K-4 if the cost is out of bounds, K-3 if the label is too long, K-9 for keys that seal none.
    pub fn make(
        kind: SlotKind,
        secret: &[u8],
        cost: KdfCost,
        opens: &SlotKeys,
        keys: &Keys,
        label: &SlotLabel,
        nonces: &SlotNonces,
    ) -> Result<KeySlot> {
        cost.validate()?;
        label.validate()?;
        let (key, commitment) = derive(secret, &nonces.salt, cost)?;
        let mut slot = KeySlot {
            kind,
            cost,
            repository: keys.repository(),
            version: FORMAT_VERSION,
            salt: nonces.salt,
            commitment,
            nonce: nonces.keys,
            sealed_keys: Vec::new(),
            label_nonce: nonces.label,
            sealed_label: Vec::new(),
        };
        slot.seal(&key, opens, keys, label)?;
        Ok(slot)
    }

    fn seal(
        &mut self,
        key: &Secret,
        opens: &SlotKeys,
        keys: &Keys,
        label: &SlotLabel,
    ) -> Result<()> {
        let plaintext = Zeroizing::new(match opens {
            SlotKeys::Full(_) => record::encode(&opens.entries())?,
            SlotKeys::WriteOnly(secrets) => record::encode(&(opens.entries(), &secrets.series))?,
        });
        let additional = self.additional(ObjectKind::KeySlot);
        self.sealed_keys = seal_x(key, &self.nonce, &additional, &plaintext);
        let labelling = keys.key_label().ok_or_else(no_labels)?;
        let additional = self.additional(ObjectKind::KeyLabel);
        let plaintext = record::encode(label)?;
        self.sealed_label = seal_x(labelling, &self.label_nonce, &additional, &plaintext);
        Ok(())
    }

    fn clear(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.push(self.kind as u8);
        bytes.push(1);
        for number in [self.cost.memory_kib, self.cost.passes, self.cost.lanes] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.repository.0);
        bytes.extend_from_slice(&self.salt);
        bytes.extend_from_slice(&self.commitment);
        bytes
    }

    fn additional(&self, kind: ObjectKind) -> Vec<u8> {
        additional_data(self.version, kind, self.repository, &[&self.clear()])
    }

    /// Encodes the slot; its id is the BLAKE3 of these bytes.
    pub fn encode(&self) -> (KeySlotId, Vec<u8>) {
        let mut bytes = self.clear();
        bytes.extend_from_slice(&self.nonce);
        bytes.extend_from_slice(&(self.sealed_keys.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.sealed_keys);
        bytes.extend_from_slice(&self.label_nonce);
        bytes.extend_from_slice(&self.sealed_label);
        (KeySlotId(*blake3::hash(&bytes).as_bytes()), bytes)
    }

    /// Decodes the slot stored as `id`.
    ///
    /// # Errors
    /// K-1 length, K-2 magic, version, kind or algorithm, K-4 cost, K-6 name.
    pub fn decode(id: KeySlotId, bytes: &[u8]) -> Result<KeySlot> {
        Self::decode_up_to(FORMAT_VERSION, id, bytes)
    }

    fn decode_up_to(newest: u16, id: KeySlotId, bytes: &[u8]) -> Result<KeySlot> {
        if bytes.len() as u64 > KEY_SLOT_BYTES_MAX {
            return Err(limit("K-1", "slot length", KEY_SLOT_BYTES_MAX, bytes.len() as u64));
        }
        if *blake3::hash(bytes).as_bytes() != id.0 {
            return Err(unauthentic("K-6", "the bytes do not hash to the slot's name"));
        }
        let mut cursor = Cursor::new(bytes, "K-1");
        if cursor.bytes(8)? != MAGIC {
            return Err(malformed("K-2", "is no key slot: the magic is wrong"));
        }
        let version = cursor.u16()?;
        check_version("K-2", newest, version)?;
        let kind = match cursor.u8()? {
            1 => SlotKind::Passphrase,
            2 => SlotKind::Recovery,
            other => return Err(newer("K-2", format!("is a slot of kind {other}"))),
        };
        let algorithm = cursor.u8()?;
        if algorithm != 1 {
            return Err(newer("K-2", format!("uses algorithm {algorithm}")));
        }
        let cost =
            KdfCost { memory_kib: cursor.u32()?, passes: cursor.u32()?, lanes: cursor.u32()? };
        cost.validate()?;
        let repository = RepositoryId(cursor.array()?);
        let salt = cursor.array()?;
        let commitment = cursor.array()?;
        debug_assert_eq!(bytes.len() - cursor.rest().len(), CLEAR_BYTES);
        let nonce = cursor.array()?;
        let sealed_bytes = cursor.u32()? as usize;
        let sealed_keys = cursor.bytes(sealed_bytes)?.to_vec();
        let label_nonce = cursor.array()?;
        let sealed_label = cursor.rest().to_vec();
        Ok(KeySlot {
            kind,
            cost,
            repository,
            version,
            salt,
            commitment,
            nonce,
            sealed_keys,
            label_nonce,
            sealed_label,
        })
    }

    /// Opens the slot; `None` if the secret is not the slot's.
    ///
    /// # Errors
    /// K-7 if the keys do not authenticate although the commitment fits, K-8 if neither a full key
    /// set nor all that a writer needs is among them.
    pub fn open(&self, secret: &[u8]) -> Result<Option<SlotKeys>> {
        let (key, commitment) = derive(secret, &self.salt, self.cost)?;
        // blake3::Hash compares in constant time.
        if blake3::Hash::from(commitment) != self.commitment {
            return Ok(None);
        }
        let additional = self.additional(ObjectKind::KeySlot);
        let plaintext = open_x(&key, &self.nonce, &additional, &self.sealed_keys, "K-7")?;
        SlotKeys::decode(&plaintext).map(Some)
    }

    /// Opens the label, with the keys of the repository.
    ///
    /// # Errors
    /// K-9 if it does not authenticate.
    pub fn label(&self, keys: &Keys) -> Result<SlotLabel> {
        let key = keys.key_label().ok_or_else(no_labels)?;
        let additional = self.additional(ObjectKind::KeyLabel);
        let plaintext = open_x(key, &self.label_nonce, &additional, &self.sealed_label, "K-9")?;
        let label: SlotLabel = record::decode(&plaintext)?;
        label.validate()?;
        Ok(label)
    }
}

fn no_labels() -> FormatError {
    unauthentic("K-9", "a key that may only write opens no labels")
}

fn derive(secret: &[u8], salt: &[u8; 32], cost: KdfCost) -> Result<(Secret, [u8; 32])> {
    let output = stretch(secret, salt, cost)?;
    let key = Secret::new(blake3::derive_key(context::SLOT_KEY, &output[..]));
    Ok((key, blake3::derive_key(context::SLOT_COMMITMENT, &output[..])))
}

/// What keys that depend on a passphrase are derived from.
pub(crate) fn stretch(
    secret: &[u8],
    salt: &[u8; 32],
    cost: KdfCost,
) -> Result<Zeroizing<[u8; 32]>> {
    let refuse = |cause: argon2::Error| malformed("K-4", format!("cannot derive: {cause}"));
    let parameters =
        Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).map_err(refuse)?;
    let mut output = Zeroizing::new([0_u8; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters)
        .hash_password_into(secret, salt, &mut output[..])
        .map_err(refuse)?;
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: KdfCost = KdfCost::RECOVERY;

    fn keys() -> Keys {
        Keys::derive(&Secret::new([9; 32]), RepositoryId([4; 16]))
    }

    fn master(opened: Option<SlotKeys>) -> [u8; 32] {
        match opened {
            Some(SlotKeys::Full(master)) => *master.expose(),
            other => panic!("{other:?}"),
        }
    }

    fn slot(cost: KdfCost) -> Result<KeySlot> {
        let label = SlotLabel { name: "laptop".into(), created_unix_ns: 5, host: "kvm1".into() };
        let nonces = SlotNonces { salt: [1; 32], keys: [2; 24], label: [3; 24] };
        KeySlot::make(
            SlotKind::Passphrase,
            b"correct",
            cost,
            &SlotKeys::Full(Secret::new([9; 32])),
            &keys(),
            &label,
            &nonces,
        )
    }

    #[test]
    fn opens_with_its_secret_only() {
        let (id, bytes) = slot(CHEAP).unwrap().encode();
        let slot = KeySlot::decode(id, &bytes).unwrap();
        assert_eq!(master(slot.open(b"correct").unwrap()), [9; 32]);
        assert!(slot.open(b"wrong").unwrap().is_none());
        let keys = Keys::derive(&Secret::new([9; 32]), slot.repository);
        assert_eq!(slot.label(&keys).unwrap().name, "laptop");
    }

    #[test]
    fn a_slot_of_a_writer_opens_what_it_needs_and_no_more() {
        let series = vec!["web*".to_owned()];
        let secrets = keys().for_writer(Secret::new([5; 32]), series).unwrap();
        let label = SlotLabel { name: "kvm1".into(), created_unix_ns: 5, host: "kvm1".into() };
        let nonces = SlotNonces { salt: [1; 32], keys: [2; 24], label: [3; 24] };
        let opens = SlotKeys::WriteOnly(Box::new(secrets));
        let kind = SlotKind::Passphrase;
        let made = KeySlot::make(kind, b"correct", CHEAP, &opens, &keys(), &label, &nonces);
        let (id, bytes) = made.unwrap().encode();
        let slot = KeySlot::decode(id, &bytes).unwrap();
        let opened = slot.open(b"correct").unwrap().unwrap();
        let own = opened.keys(RepositoryId([4; 16]));
        let writer = own.write_only_writer().unwrap();
        let known = own.writers().get(writer).unwrap();
        assert!(known.may_write_to("web01") && !known.may_write_to("db"));
        assert_eq!(own.chunk_id(b"x"), keys().chunk_id(b"x"));
        assert_eq!(slot.label(&own).unwrap_err().rule, "K-9");
        assert_eq!(slot.label(&keys()).unwrap(), label);
        let none = KeySlot::make(kind, b"correct", CHEAP, &opens, &own, &label, &nonces);
        assert_eq!(none.unwrap_err().rule, "K-9");
    }

    #[test]
    fn opens_under_its_own_version_and_no_other() {
        for (version, other) in [(1_u16, 2_u16), (2, 1)] {
            let mut slot = slot(CHEAP).unwrap();
            slot.version = version;
            let (key, _) = derive(b"correct", &slot.salt, CHEAP).unwrap();
            let label = SlotLabel { name: "old".into(), created_unix_ns: 5, host: "kvm1".into() };
            slot.seal(&key, &SlotKeys::Full(Secret::new([9; 32])), &keys(), &label).unwrap();
            let (id, mut bytes) = slot.encode();
            let keys = Keys::derive(&Secret::new([9; 32]), slot.repository);
            let read = KeySlot::decode_up_to(2, id, &bytes).unwrap();
            assert_eq!(read, slot);
            assert_eq!(master(read.open(b"correct").unwrap()), [9; 32]);
            assert_eq!(read.label(&keys).unwrap(), label);
            bytes[8..10].copy_from_slice(&other.to_le_bytes());
            let id = KeySlotId(*blake3::hash(&bytes).as_bytes());
            let relabelled = KeySlot::decode_up_to(2, id, &bytes).unwrap();
            assert_eq!(relabelled.open(b"correct").unwrap_err().rule, "K-7");
            assert_eq!(relabelled.label(&keys).unwrap_err().rule, "K-9");
        }
    }

    #[test]
    fn refuses_absurd_cost_before_deriving() {
        let expensive = KdfCost { memory_kib: 4 << 20, passes: 16, lanes: 1 };
        assert_eq!(slot(expensive).unwrap_err().rule, "K-4");
        let (_, mut bytes) = slot(CHEAP).unwrap().encode();
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        let id = KeySlotId(*blake3::hash(&bytes).as_bytes());
        assert_eq!(KeySlot::decode(id, &bytes).unwrap_err().rule, "K-4");
        let most = KdfCost { memory_kib: 1 << 20, passes: 4, lanes: 1 };
        assert!(validate_total_cost(&[most; 8]).is_ok());
        assert_eq!(validate_total_cost(&[most; 9]).unwrap_err().rule, "K-5");
    }

    #[test]
    fn the_clear_part_is_authenticated() {
        let (_, bytes) = slot(CHEAP).unwrap().encode();
        // The salt and passes change the derivation; the kind byte and the repository id do not.
        for position in [10, 24, 39] {
            let mut changed = bytes.clone();
            changed[position] ^= 3;
            let id = KeySlotId(*blake3::hash(&changed).as_bytes());
            let slot = KeySlot::decode(id, &changed).unwrap();
            assert_eq!(slot.open(b"correct").unwrap_err().rule, "K-7", "byte {position}");
        }
    }
}

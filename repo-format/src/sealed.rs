//! The envelope of small sealed objects (spec/20-crypto.md, "Small objects").
//!
//! ```text
//! offset  size  field
//!      0     8  magic "DVSEALED"
//!      8     2  format version
//!     10     1  object kind
//!     11     1  algorithm: 1 = XChaCha20-Poly1305, 2 = sealed to the repository's public key
//!     12     4  key epoch, 0
//!     16    24  nonce, random (algorithm 2: 32 bytes, the encapsulated key)
//!     40     n  sealed record and tag (algorithm 2: writer, signature and record; from 48)
//! ```

use crate::asymmetric::{self, PUBLIC_KEY_BYTES};
use crate::crypto::{Keys, ObjectKind, TAG_BYTES, additional_data, open_x, seal_x};
use crate::cursor::Cursor;
use crate::error::{Result, check_version, limit, malformed, newer, unauthentic};
use crate::id::{PointId, WriterId};
use crate::limits::{FORMAT_VERSION, SEALED_BYTES_MAX};
use crate::writers::SIGNED_HEAD_BYTES;
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"DVSEALED";
/// Bytes before the nonce.
const HEAD_BYTES: usize = 16;
/// Sealed with a subkey.
const SUBKEY: u8 = 1;
/// Sealed to the repository's public key.
const PUBLIC_KEY: u8 = 2;

/// An opened object.
#[derive(Debug)]
pub struct Opened {
    /// The record.
    pub plaintext: Zeroizing<Vec<u8>>,
    /// Who signed it, if it was made by a writer that may not read.
    pub signer: Option<WriterId>,
}

/// Seals `plaintext` as an object of `kind` whose own name is `name` (empty where the name is a
/// hash of the sealed bytes). `random` must be fresh. A manifest of a writer that may not read is
/// signed and sealed to the repository's public key.
///
/// # Errors
/// O-1 if it would be too large, O-3 for a kind that is not a small object or that these keys do
/// not seal.
pub fn seal(
    keys: &Keys,
    kind: ObjectKind,
    name: &str,
    random: &[u8; 32],
    plaintext: &[u8],
) -> Result<Vec<u8>> {
    if kind == ObjectKind::Manifest && keys.as_write_only().is_some() {
        return seal_signed(keys, kind, name, random, plaintext);
    }
    seal_as(FORMAT_VERSION, keys, kind, name, random, plaintext)
}

/// Seals what a writer that may not read keeps for itself of an object that it has stored; it is
/// opened as the object would be by who may read. For who may read it is [`seal`].
///
/// # Errors
/// As [`seal`].
pub fn seal_own_copy(
    keys: &Keys,
    kind: ObjectKind,
    name: &str,
    random: &[u8; 32],
    plaintext: &[u8],
) -> Result<Vec<u8>> {
    seal_as(FORMAT_VERSION, keys, kind, name, random, plaintext)
}

fn head(version: u16, kind: ObjectKind, algorithm: u8) -> Vec<u8> {
    let mut object = Vec::with_capacity(HEAD_BYTES);
    object.extend_from_slice(MAGIC);
    object.extend_from_slice(&version.to_le_bytes());
    object.push(kind as u8);
    object.push(algorithm);
    object.extend_from_slice(&0_u32.to_le_bytes());
    object
}

fn check_length(bytes: usize) -> Result<()> {
    if bytes as u64 > SEALED_BYTES_MAX {
        return Err(limit("O-1", "the object's length", SEALED_BYTES_MAX, bytes as u64));
    }
    Ok(())
}

fn seal_as(
    version: u16,
    keys: &Keys,
    kind: ObjectKind,
    name: &str,
    random: &[u8; 32],
    plaintext: &[u8],
) -> Result<Vec<u8>> {
    let mut nonce = [0; 24];
    nonce.copy_from_slice(&random[..24]);
    check_length(HEAD_BYTES + nonce.len() + plaintext.len() + TAG_BYTES)?;
    let Some(key) = keys.sealing(kind) else {
        return Err(malformed("O-3", "is no small object that this key seals"));
    };
    let mut object = head(version, kind, SUBKEY);
    let additional = additional_data(version, kind, keys.repository(), &[&object, name.as_bytes()]);
    object.extend_from_slice(&nonce);
    object.extend_from_slice(&seal_x(key, &nonce, &additional, plaintext));
    Ok(object)
}

fn seal_signed(
    keys: &Keys,
    kind: ObjectKind,
    name: &str,
    random: &[u8; 32],
    plaintext: &[u8],
) -> Result<Vec<u8>> {
    let Some(own) = keys.as_write_only() else {
        return Err(malformed("O-3", "is not signed by who may read"));
    };
    let bytes = SIGNED_HEAD_BYTES + plaintext.len();
    check_length(HEAD_BYTES + PUBLIC_KEY_BYTES + bytes + TAG_BYTES)?;
    let mut object = head(FORMAT_VERSION, kind, PUBLIC_KEY);
    let more: [&[u8]; 2] = [&object, name.as_bytes()];
    let additional = additional_data(FORMAT_VERSION, kind, keys.repository(), &more);
    let mut signed = Zeroizing::new(Vec::with_capacity(bytes));
    signed.extend_from_slice(&own.writer.0);
    signed.extend_from_slice(&asymmetric::sign(&own.signing, &[&additional, plaintext]));
    signed.extend_from_slice(plaintext);
    let (encapsulated, sealed) =
        asymmetric::seal_to(&own.public_key, random, &additional, &signed, "O-5")?;
    object.extend_from_slice(&encapsulated);
    object.extend_from_slice(&sealed);
    Ok(object)
}

/// Opens a small object.
///
/// # Errors
/// O-1 length, O-2 magic, O-3 kind, O-4 version, algorithm or key epoch, O-5 authentication, O-6
/// for a signature that does not count.
pub fn open(keys: &Keys, kind: ObjectKind, name: &str, object: &[u8]) -> Result<Opened> {
    open_up_to(FORMAT_VERSION, keys, kind, name, object)
}

fn open_up_to(
    newest: u16,
    keys: &Keys,
    kind: ObjectKind,
    name: &str,
    object: &[u8],
) -> Result<Opened> {
    check_length(object.len())?;
    let mut cursor = Cursor::new(object, "O-1");
    let header = cursor.bytes(HEAD_BYTES)?;
    let mut fields = Cursor::new(header, "O-1");
    if fields.bytes(8)? != MAGIC {
        return Err(malformed("O-2", "is no sealed object: the magic is wrong"));
    }
    let version = fields.u16()?;
    check_version("O-4", newest, version)?;
    if fields.u8()? != kind as u8 {
        return Err(malformed("O-3", "is an object of another kind"));
    }
    let algorithm = fields.u8()?;
    let epoch = fields.u32()?;
    let is_known = algorithm == SUBKEY || algorithm == PUBLIC_KEY && kind == ObjectKind::Manifest;
    if !is_known || epoch != 0 {
        return Err(newer("O-4", format!("uses algorithm {algorithm}, key epoch {epoch}")));
    }
    let more = [header, name.as_bytes()];
    let additional = additional_data(version, kind, keys.repository(), &more);
    if algorithm == PUBLIC_KEY {
        return open_signed(keys, &additional, cursor, object);
    }
    let nonce = cursor.array::<24>()?;
    let Some(key) = keys.sealing(kind) else {
        return Err(malformed("O-3", "is no small object that this key opens"));
    };
    let plaintext = open_x(key, &nonce, &additional, cursor.rest(), "O-5")?;
    Ok(Opened { plaintext, signer: None })
}

fn open_signed(
    keys: &Keys,
    additional: &[u8],
    mut cursor: Cursor<'_>,
    object: &[u8],
) -> Result<Opened> {
    let encapsulated = cursor.array::<PUBLIC_KEY_BYTES>()?;
    let Some(key) = keys.opening() else {
        return Err(unauthentic("O-5", "is sealed to the repository, and this key cannot read"));
    };
    let signed = asymmetric::open_from(key, &encapsulated, additional, cursor.rest(), "O-5")?;
    let (writer, record) = keys.writers().open(&[additional], &signed, "O-6")?;
    if let Some(points) = &writer.retired {
        // A manifest's name is the hash of its bytes.
        let id = PointId(*blake3::hash(object).as_bytes());
        if points.binary_search(&id).is_err() {
            let text = format!("writer {} was retired before", writer.writer());
            return Err(unauthentic("O-6", text));
        }
    }
    let signer = Some(writer.writer());
    Ok(Opened { plaintext: Zeroizing::new(record.to_vec()), signer })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Secret;
    use crate::id::{KeySlotId, RepositoryId};
    use crate::writers::{WriterRecord, Writers};

    const SMALL: [ObjectKind; 7] = [
        ObjectKind::Manifest,
        ObjectKind::Lease,
        ObjectKind::Heartbeat,
        ObjectKind::Condemned,
        ObjectKind::Note,
        ObjectKind::Lost,
        ObjectKind::Writer,
    ];

    #[test]
    fn no_kind_opens_as_another() {
        let keys = Keys::derive(&Secret::new([1; 32]), RepositoryId([2; 16]));
        for made in SMALL {
            let mut object = seal(&keys, made, "n", &[0; 32], b"record").unwrap();
            for wanted in SMALL {
                assert_eq!(open(&keys, wanted, "n", &object).is_ok(), made == wanted);
                // Also not when the clear kind byte is changed to fit.
                object[10] = wanted as u8;
                assert_eq!(open(&keys, wanted, "n", &object).is_ok(), made == wanted);
                object[10] = made as u8;
            }
        }
    }

    #[test]
    fn an_object_opens_under_its_own_version_and_no_other() {
        let keys = Keys::derive(&Secret::new([1; 32]), RepositoryId([2; 16]));
        for (version, other) in [(1_u16, 2_u16), (2, 1)] {
            let kind = ObjectKind::Manifest;
            let mut object = seal_as(version, &keys, kind, "", &[0; 32], b"record").unwrap();
            assert_eq!(&open_up_to(2, &keys, kind, "", &object).unwrap().plaintext[..], b"record");
            object[8..10].copy_from_slice(&other.to_le_bytes());
            assert_eq!(open_up_to(2, &keys, kind, "", &object).unwrap_err().rule, "O-5");
        }
        let newer = seal_as(2, &keys, ObjectKind::Note, "n", &[0; 32], b"record").unwrap();
        assert_eq!(open_up_to(1, &keys, ObjectKind::Note, "n", &newer).unwrap_err().rule, "O-4");
    }

    #[test]
    fn another_repository_or_name_does_not_open() {
        let keys = Keys::derive(&Secret::new([1; 32]), RepositoryId([2; 16]));
        let other = Keys::derive(&Secret::new([1; 32]), RepositoryId([3; 16]));
        let object = seal(&keys, ObjectKind::Lease, "a", &[0; 32], b"record").unwrap();
        assert_eq!(open(&other, ObjectKind::Lease, "a", &object).unwrap_err().rule, "O-5");
        assert_eq!(open(&keys, ObjectKind::Lease, "b", &object).unwrap_err().rule, "O-5");
    }

    #[test]
    fn a_manifest_of_a_writer_is_opened_by_who_may_read_and_knows_the_writer() {
        let id = RepositoryId([2; 16]);
        let full = Keys::derive(&Secret::new([1; 32]), id);
        let seed = Secret::new([5; 32]);
        let writer = Keys::write_only(&full.for_writer(seed.clone(), Vec::new()).unwrap(), id);
        let kind = ObjectKind::Manifest;
        let object = seal(&writer, kind, "", &[7; 32], b"record").unwrap();
        assert_eq!(open(&writer, kind, "", &object).unwrap_err().rule, "O-5");
        assert_eq!(open(&full, kind, "", &object).unwrap_err().rule, "O-6");
        let record = |retired| WriterRecord {
            verifying_key: asymmetric::verifying_key(&seed),
            slot: KeySlotId([3; 32]),
            name: "kvm1".into(),
            series: Vec::new(),
            time_unix_ns: 5,
            retired,
        };
        let knowing = |retired| full.clone().with_writers(Writers::new([record(retired)]));
        let opened = open(&knowing(None), kind, "", &object).unwrap();
        assert_eq!(&opened.plaintext[..], b"record");
        assert_eq!(opened.signer, writer.write_only_writer());
        let point = PointId(*blake3::hash(&object).as_bytes());
        assert!(open(&knowing(Some(vec![point])), kind, "", &object).is_ok());
        let retired = open(&knowing(Some(Vec::new())), kind, "", &object);
        assert_eq!(retired.unwrap_err().rule, "O-6");
        for position in 0..object.len() {
            let mut changed = object.clone();
            changed[position] ^= 1;
            assert!(open(&knowing(None), kind, "", &changed).is_err(), "byte {position}");
        }
        // What it keeps for itself is opened by it alone.
        let own = seal_own_copy(&writer, kind, "", &[7; 32], b"record").unwrap();
        assert_eq!(&open(&writer, kind, "", &own).unwrap().plaintext[..], b"record");
        assert_eq!(open(&full, kind, "", &own).unwrap_err().rule, "O-5");
    }

    #[test]
    fn who_may_not_read_seals_no_notes_and_no_lost_lists() {
        let id = RepositoryId([2; 16]);
        let full = Keys::derive(&Secret::new([1; 32]), id);
        let secrets = full.for_writer(Secret::new([5; 32]), Vec::new()).unwrap();
        let writer = Keys::write_only(&secrets, id);
        assert!(writer.for_writer(Secret::new([6; 32]), Vec::new()).is_none());
        for kind in [ObjectKind::Note, ObjectKind::Lost, ObjectKind::Writer] {
            let refused = seal(&writer, kind, "n", &[0; 32], b"record");
            assert_eq!(refused.unwrap_err().rule, "O-3");
            let object = seal(&full, kind, "n", &[0; 32], b"record").unwrap();
            assert!(open(&writer, kind, "n", &object).is_err());
        }
        let lease = seal(&writer, ObjectKind::Lease, "n", &[0; 32], b"record").unwrap();
        assert!(open(&full, ObjectKind::Lease, "n", &lease).is_ok());
    }
}

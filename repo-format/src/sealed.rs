//! The envelope of small sealed objects (spec/20-crypto.md, "Small objects").
//!
//! ```text
//! offset  size  field
//!      0     8  magic "DVSEALED"
//!      8     2  format version
//!     10     1  object kind
//!     11     1  algorithm: 1 = XChaCha20-Poly1305
//!     12     4  key epoch, 0
//!     16    24  nonce, random
//!     40     n  sealed record and tag
//! ```

use crate::crypto::{Keys, ObjectKind, TAG_BYTES, additional_data, open_x, seal_x};
use crate::cursor::Cursor;
use crate::error::{Result, check_version, limit, malformed, newer};
use crate::limits::{FORMAT_VERSION, SEALED_BYTES_MAX};
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"DVSEALED";
const HEADER_BYTES: usize = 40;

/// Seals `plaintext` as an object of `kind` whose own name is `name` (empty where the name is a
/// hash of the sealed bytes).
///
/// # Errors
/// O-1 if it would be too large, O-3 for a kind that is not a small object.
pub fn seal(
    keys: &Keys,
    kind: ObjectKind,
    name: &str,
    nonce: &[u8; 24],
    plaintext: &[u8],
) -> Result<Vec<u8>> {
    seal_as(FORMAT_VERSION, keys, kind, name, nonce, plaintext)
}

fn seal_as(
    version: u16,
    keys: &Keys,
    kind: ObjectKind,
    name: &str,
    nonce: &[u8; 24],
    plaintext: &[u8],
) -> Result<Vec<u8>> {
    let bytes = (HEADER_BYTES + plaintext.len() + TAG_BYTES) as u64;
    if bytes > SEALED_BYTES_MAX {
        return Err(limit("O-1", "the object's length", SEALED_BYTES_MAX, bytes));
    }
    let Some(key) = keys.sealing(kind) else {
        return Err(malformed("O-3", "is no kind of small object"));
    };
    let mut object = Vec::with_capacity(bytes as usize);
    object.extend_from_slice(MAGIC);
    object.extend_from_slice(&version.to_le_bytes());
    object.push(kind as u8);
    object.push(1);
    object.extend_from_slice(&0_u32.to_le_bytes());
    let more = [&object[..16], name.as_bytes()];
    let additional = additional_data(version, kind, keys.repository(), &more);
    object.extend_from_slice(nonce);
    object.extend_from_slice(&seal_x(key, nonce, &additional, plaintext));
    Ok(object)
}

/// Opens a small object and returns its plaintext.
///
/// # Errors
/// O-1 length, O-2 magic, O-3 kind, O-4 version, algorithm or key epoch, O-5 authentication.
pub fn open(
    keys: &Keys,
    kind: ObjectKind,
    name: &str,
    object: &[u8],
) -> Result<Zeroizing<Vec<u8>>> {
    open_up_to(FORMAT_VERSION, keys, kind, name, object)
}

fn open_up_to(
    newest: u16,
    keys: &Keys,
    kind: ObjectKind,
    name: &str,
    object: &[u8],
) -> Result<Zeroizing<Vec<u8>>> {
    if object.len() as u64 > SEALED_BYTES_MAX {
        return Err(limit("O-1", "the object's length", SEALED_BYTES_MAX, object.len() as u64));
    }
    let mut cursor = Cursor::new(object, "O-1");
    let header = cursor.bytes(16)?;
    let nonce = cursor.array::<24>()?;
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
    if algorithm != 1 || epoch != 0 {
        return Err(newer("O-4", format!("uses algorithm {algorithm}, key epoch {epoch}")));
    }
    let Some(key) = keys.sealing(kind) else {
        return Err(malformed("O-3", "is no kind of small object"));
    };
    let more = [header, name.as_bytes()];
    let additional = additional_data(version, kind, keys.repository(), &more);
    open_x(key, &nonce, &additional, cursor.rest(), "O-5")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Secret;
    use crate::id::RepositoryId;

    const SMALL: [ObjectKind; 6] = [
        ObjectKind::Manifest,
        ObjectKind::Lease,
        ObjectKind::Heartbeat,
        ObjectKind::Condemned,
        ObjectKind::Note,
        ObjectKind::Lost,
    ];

    #[test]
    fn no_kind_opens_as_another() {
        let keys = Keys::derive(&Secret::new([1; 32]), RepositoryId([2; 16]));
        for made in SMALL {
            let mut object = seal(&keys, made, "n", &[0; 24], b"record").unwrap();
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
            let mut object = seal_as(version, &keys, kind, "", &[0; 24], b"record").unwrap();
            assert_eq!(&open_up_to(2, &keys, kind, "", &object).unwrap()[..], b"record");
            object[8..10].copy_from_slice(&other.to_le_bytes());
            assert_eq!(open_up_to(2, &keys, kind, "", &object).unwrap_err().rule, "O-5");
        }
        let newer = seal_as(2, &keys, ObjectKind::Note, "n", &[0; 24], b"record").unwrap();
        assert_eq!(open_up_to(1, &keys, ObjectKind::Note, "n", &newer).unwrap_err().rule, "O-4");
    }

    #[test]
    fn another_repository_or_name_does_not_open() {
        let keys = Keys::derive(&Secret::new([1; 32]), RepositoryId([2; 16]));
        let other = Keys::derive(&Secret::new([1; 32]), RepositoryId([3; 16]));
        let object = seal(&keys, ObjectKind::Lease, "a", &[0; 24], b"record").unwrap();
        assert_eq!(open(&other, ObjectKind::Lease, "a", &object).unwrap_err().rule, "O-5");
        assert_eq!(open(&keys, ObjectKind::Lease, "b", &object).unwrap_err().rule, "O-5");
    }
}

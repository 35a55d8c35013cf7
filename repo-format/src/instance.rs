//! The `instance` object (spec/37-small-objects.md): the random id of this copy of a repository.
//!
//! A replica has the same repository id and an instance id of its own. The id authenticates
//! nothing; the check value only finds damage.
//!
//! ```text
//! offset  size  field
//!      0     8  magic "DVINSTNC"
//!      8    16  instance id
//!     24    32  BLAKE3 of the 24 bytes before
//! ```

use crate::cursor::Cursor;
use crate::error::{Result, malformed, unauthentic};
use crate::id::InstanceId;

const MAGIC: &[u8; 8] = b"DVINSTNC";

/// Bytes of an instance object.
pub const INSTANCE_BYTES: u64 = 56;

/// Encodes an instance object.
pub fn encode(id: InstanceId) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&id.0);
    let check = blake3::hash(&bytes);
    bytes.extend_from_slice(check.as_bytes());
    bytes
}

/// Decodes an instance object.
///
/// # Errors
/// I-1 length or magic, I-2 check value.
pub fn decode(bytes: &[u8]) -> Result<InstanceId> {
    let mut cursor = Cursor::new(bytes, "I-1");
    if cursor.bytes(8)? != MAGIC {
        return Err(malformed("I-1", "is no instance object: the magic is wrong"));
    }
    let id = InstanceId(cursor.array()?);
    let check = cursor.array::<32>()?;
    cursor.finish()?;
    if blake3::hash(&bytes[..24]) != check {
        return Err(unauthentic("I-2", "the check value does not fit"));
    }
    Ok(id)
}

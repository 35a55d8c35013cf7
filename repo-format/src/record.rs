//! The record codec (spec/00-conventions.md, "Records"): the plaintext of small sealed objects.
//!
//! The encoding is what bincode 2 writes with its standard configuration: little endian, numbers
//! of 16 bits and more as variable-length integers, lengths before strings and lists. The
//! specification states it byte by byte, so that no reader needs bincode. Records hold no maps,
//! no recursion and no lists of empty items.
//!
//! Invariant: one value has one encoding. What decodes is encoded again and compared, so a
//! longer integer or trailing bytes are refused.

use crate::error::{Result, limit, malformed};
use crate::limits::SEALED_BYTES_MAX;
use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::Serialize;
use serde::de::DeserializeOwned;

const LIMIT: usize = SEALED_BYTES_MAX as usize;

fn configuration() -> Configuration<LittleEndian, Varint, Limit<LIMIT>> {
    bincode::config::standard().with_limit::<LIMIT>()
}

/// Encodes a record.
///
/// # Errors
/// R-1 if it would be larger than a sealed object may be.
pub fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>> {
    let bytes = bincode::serde::encode_to_vec(record, configuration())
        .map_err(|cause| malformed("R-1", format!("cannot encode the record: {cause}")))?;
    if bytes.len() > LIMIT {
        return Err(limit("R-1", "the record's length", SEALED_BYTES_MAX, bytes.len() as u64));
    }
    Ok(bytes)
}

/// Decodes a record that has been authenticated.
///
/// # Errors
/// R-1 for a record over the limit, R-2 for one that does not parse, R-3 for one that is not the
/// encoding of its own value.
pub fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    if bytes.len() > LIMIT {
        return Err(limit("R-1", "the record's length", SEALED_BYTES_MAX, bytes.len() as u64));
    }
    let (record, used): (T, usize) = bincode::serde::decode_from_slice(bytes, configuration())
        .map_err(|cause| malformed("R-2", format!("the record does not parse: {cause}")))?;
    if used != bytes.len() || encode(&record)? != bytes {
        return Err(malformed("R-3", "the record is not in its one encoding"));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        small: u64,
        text: String,
        list: Vec<u32>,
    }

    #[test]
    fn encodes_as_the_specification_says() {
        let sample = Sample { small: 300, text: "ab".into(), list: vec![1, 250, 251, 70_000] };
        let expected = [
            251, 0x2c, 0x01, // 300
            2, b'a', b'b', // text
            4, 1, 250, 251, 251, 0, 252, 0x70, 0x11, 0x01, 0x00,
        ];
        assert_eq!(encode(&sample).unwrap(), expected);
        assert_eq!(decode::<Sample>(&expected).unwrap(), sample);
    }

    #[test]
    fn refuses_long_integers_and_trailing_bytes() {
        assert_eq!(decode::<u64>(&[251, 5, 0]).unwrap_err().rule, "R-3");
        assert_eq!(decode::<u64>(&[5, 0]).unwrap_err().rule, "R-3");
    }

    #[test]
    fn refuses_a_claimed_length_without_allocating_it() {
        let huge = [253, 0, 0, 0, 0, 0, 1, 0, 0, b'x'];
        assert_eq!(decode::<String>(&huge).unwrap_err().rule, "R-2");
        assert_eq!(decode::<Vec<u64>>(&huge).unwrap_err().rule, "R-2");
    }
}

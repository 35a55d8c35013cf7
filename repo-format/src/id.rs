//! Identities: new types over fixed-size byte strings, so that a chunk id can never be taken for
//! a pack id. Hexadecimal is lower case, everywhere.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Lower-case hexadecimal of `bytes`.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text
}

/// The bytes of lower-case hexadecimal text of exactly `2 * N` digits.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return None;
    }
    let mut bytes = [0_u8; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
    }
    Some(bytes)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// Lower-case hexadecimal.
            pub fn to_hex(self) -> String {
                to_hex(&self.0)
            }

            /// Reads lower-case hexadecimal of exactly the right length.
            pub fn from_hex(text: &str) -> Option<Self> {
                from_hex(text).map($name)
            }

            /// The first eight digits, for tables and messages.
            pub fn short(self) -> String {
                to_hex(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.to_hex())
            }
        }
    };
}

identity!(
    /// Keyed BLAKE3 of a chunk's plaintext.
    ChunkId, 32
);
identity!(
    /// Keyed BLAKE3 of a map page's plaintext.
    PageId, 32
);
identity!(
    /// Keyed BLAKE3 of a map's shape and top page: equal roots mean equal bytes.
    MapRoot, 32
);
identity!(
    /// BLAKE3 of a pack's own bytes.
    PackId, 32
);
identity!(
    /// BLAKE3 of a sealed manifest.
    PointId, 32
);
identity!(
    /// BLAKE3 of a key slot.
    KeySlotId, 32
);
identity!(
    /// BLAKE3 of a sealed lost list.
    LostId, 32
);
identity!(
    /// Random; the same in every copy of a repository.
    RepositoryId, 16
);
identity!(
    /// Random; of one copy of a repository.
    InstanceId, 16
);
identity!(
    /// Random; of one writer's registration.
    LeaseId, 16
);
identity!(
    /// Random; of one backup, through all its tries.
    BackupId, 16
);
identity!(
    /// Random; of one host's writer, kept in its cache.
    WriterId, 16
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_is_lower_case_and_of_exact_length() {
        assert_eq!(to_hex(&[0x00, 0xaf, 0x10]), "00af10");
        assert_eq!(from_hex::<2>("af10"), Some([0xaf, 0x10]));
        assert_eq!(from_hex::<2>("AF10"), None);
        assert_eq!(from_hex::<2>("af1"), None);
        assert_eq!(from_hex::<2>("af1g"), None);
    }
}

//! The config object (spec/30-config.md): what every reader has to know before the first key.
//!
//! A config is never changed: a new one has the next generation, and the newest that
//! authenticates counts. It is readable without a key and authenticated once a key is open.
//!
//! ```text
//! offset  size  field
//!      0     8  magic "DVCONFIG"
//!      8     2  format version
//!     10     2  0
//!     12     4  generation, from 1
//!     16    16  repository id
//!     32     8  feature mask, ignorable: bits 0 to 9 are the amount of parity
//!     40     8  feature mask, must be known to write
//!     48     8  feature mask, must be known to read
//!     56     4  chunk bytes of the fixed grid
//!     60     4  segment bytes
//!     64     4  pack bytes
//!     68     4  number of key slots
//!     72  32*n  key slot ids, ascending
//!    end-32 32  keyed BLAKE3 of additional data ‖ all bytes before
//! ```

use crate::crypto::{Keys, ObjectKind, additional_data};
use crate::cursor::Cursor;
use crate::error::{Result, check_version, limit, malformed, newer, unauthentic};
use crate::id::{KeySlotId, RepositoryId};
use crate::limits::{
    CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, CONFIG_BYTES_MAX, FORMAT_VERSION, KEY_SLOTS_MAX,
    PACK_BYTES_MAX, PARITY_PER_MILLE_MAX, SEGMENT_BYTES_MAX,
};

const MAGIC: &[u8; 8] = b"DVCONFIG";
/// The bits of the ignorable features that tell the amount of parity.
const PARITY_BITS: u64 = 0x3ff;
/// The read feature of repositories that know writers which may not read (spec/21-writers.md).
const WRITERS_BIT: u64 = 1;

/// The configuration of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Counts up with every change; the newest counts.
    pub generation: u32,
    /// The repository, in all its copies.
    pub repository: RepositoryId,
    /// Features a program may ignore.
    pub features_ignorable: u64,
    /// Features a program must know before it writes.
    pub features_write: u64,
    /// Features a program must know before it reads.
    pub features_read: u64,
    /// Chunk size of the fixed grid, a power of two, in bytes.
    pub chunk_bytes: u32,
    /// Uncompressed size at which a segment is closed, in bytes.
    pub segment_bytes: u32,
    /// Size at which a pack is closed, in bytes.
    pub pack_bytes: u32,
    /// The key slots that count, ascending.
    pub key_slots: Vec<KeySlotId>,
}

impl Config {
    /// Encodes and authenticates the config for the object name leaf `name`.
    pub fn encode(&self, keys: &Keys, name: &str) -> Vec<u8> {
        self.encode_as(FORMAT_VERSION, keys, name)
    }

    fn encode_as(&self, version: u16, keys: &Keys, name: &str) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(104 + 32 * self.key_slots.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&version.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&self.repository.0);
        for mask in [self.features_ignorable, self.features_write, self.features_read] {
            bytes.extend_from_slice(&mask.to_le_bytes());
        }
        let slots = self.key_slots.len() as u32;
        for number in [self.chunk_bytes, self.segment_bytes, self.pack_bytes, slots] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for slot in &self.key_slots {
            bytes.extend_from_slice(&slot.0);
        }
        // Who may only write makes no config: without an authenticator it is one of nobody.
        let check = self.authenticator(version, keys, name, &bytes);
        bytes.extend_from_slice(check.map_or([0; 32], Into::into).as_slice());
        bytes
    }

    /// Nothing for keys that cannot tell.
    fn authenticator(
        &self,
        version: u16,
        keys: &Keys,
        name: &str,
        body: &[u8],
    ) -> Option<blake3::Hash> {
        let more = [name.as_bytes(), body];
        keys.config_hash(&additional_data(version, ObjectKind::Config, self.repository, &more))
    }

    /// Decodes a config without authenticating it; nothing may be written before [`Config::verify`].
    ///
    /// # Errors
    /// C-1 length, C-2 magic or reserved bytes, C-3 version, C-4 features, C-5 sizes,
    /// C-6 key slots, C-8 generation.
    pub fn decode(bytes: &[u8]) -> Result<Config> {
        if bytes.len() as u64 > CONFIG_BYTES_MAX {
            return Err(limit("C-1", "the config's length", CONFIG_BYTES_MAX, bytes.len() as u64));
        }
        let mut cursor = Cursor::new(bytes, "C-1");
        if cursor.bytes(8)? != MAGIC {
            return Err(malformed("C-2", "is no config: the magic is wrong"));
        }
        let version = cursor.u16()?;
        check_version("C-3", FORMAT_VERSION, version)?;
        cursor.zeros(2, "C-2")?;
        let mut config = Config {
            generation: cursor.u32()?,
            repository: RepositoryId(cursor.array()?),
            features_ignorable: cursor.u64()?,
            features_write: cursor.u64()?,
            features_read: cursor.u64()?,
            chunk_bytes: cursor.u32()?,
            segment_bytes: cursor.u32()?,
            pack_bytes: cursor.u32()?,
            key_slots: Vec::new(),
        };
        if config.generation == 0 {
            return Err(malformed("C-8", "has generation 0"));
        }
        if config.features_read & !WRITERS_BIT != 0 {
            let bits = config.features_read & !WRITERS_BIT;
            return Err(newer("C-4", format!("needs unknown features (mask {bits:#x})")));
        }
        config.validate_sizes()?;
        let slots = cursor.u32()? as usize;
        if slots == 0 || slots > KEY_SLOTS_MAX {
            return Err(limit(
                "C-6",
                "the number of key slots",
                KEY_SLOTS_MAX as u64,
                slots as u64,
            ));
        }
        for _ in 0..slots {
            config.key_slots.push(KeySlotId(cursor.array()?));
        }
        // The length first: in a config that is cut off, the authenticator stands where a slot
        // should, and would be in order or not by chance.
        cursor.bytes(32)?;
        cursor.finish()?;
        if !config.key_slots.is_sorted_by(|a, b| a < b) {
            return Err(malformed("C-6", "the key slots are not in ascending order"));
        }
        Ok(config)
    }

    fn validate_sizes(&self) -> Result<()> {
        let chunk = self.chunk_bytes;
        if !chunk.is_power_of_two() || !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk) {
            return Err(malformed("C-5", format!("cannot cut into chunks of {chunk} bytes")));
        }
        let segment = self.segment_bytes;
        if segment == 0 || segment > SEGMENT_BYTES_MAX {
            return Err(limit("C-5", "segment size", u64::from(SEGMENT_BYTES_MAX), segment.into()));
        }
        let pack = u64::from(self.pack_bytes);
        if pack == 0 || pack > PACK_BYTES_MAX / 2 {
            return Err(limit("C-5", "pack size", PACK_BYTES_MAX / 2, pack));
        }
        Ok(())
    }

    /// Authenticates the bytes this config was decoded from. A key that may only write cannot tell,
    /// and takes sizes and features on trust: they are bounded, and decide how it writes, not what.
    ///
    /// # Errors
    /// C-7 if they were changed, made for another name or another repository.
    pub fn verify(&self, keys: &Keys, name: &str, bytes: &[u8]) -> Result<()> {
        let Some((body, check)) = bytes.split_last_chunk::<32>() else {
            return Err(malformed("C-1", "is too short"));
        };
        let mut cursor = Cursor::new(body, "C-1");
        cursor.bytes(MAGIC.len())?;
        match self.authenticator(cursor.u16()?, keys, name, body) {
            Some(expected) if expected != *check => {
                Err(unauthentic("C-7", "authentication failed"))
            }
            _ => Ok(()),
        }
    }

    /// How much parity packs get, in thousandths of their bytes, 0 to 500; 0 is none. What is
    /// beyond that has no meaning yet and is none too, as for a program that knows no parity.
    pub fn parity_per_mille(&self) -> u32 {
        let amount = (self.features_ignorable & PARITY_BITS) as u32;
        if amount > PARITY_PER_MILLE_MAX { 0 } else { amount }
    }

    /// Sets how much parity packs get, and leaves all other features as they are.
    ///
    /// # Errors
    /// E-4 for more than 500.
    pub fn set_parity_per_mille(&mut self, amount: u32) -> Result<()> {
        if amount > PARITY_PER_MILLE_MAX {
            let most = PARITY_PER_MILLE_MAX.into();
            return Err(limit("E-4", "the amount of parity", most, amount.into()));
        }
        self.features_ignorable = self.features_ignorable & !PARITY_BITS | u64::from(amount);
        Ok(())
    }

    /// True if there are or were writers that may not read.
    pub fn has_writers(&self) -> bool {
        self.features_read & WRITERS_BIT != 0
    }

    /// Says that there are writers that may not read. No program that does not know of them opens
    /// the repository from then on.
    pub fn set_has_writers(&mut self) {
        self.features_read |= WRITERS_BIT;
    }

    /// The features that forbid this program to write, as a mask; zero if it may.
    pub fn unknown_write_features(&self) -> u64 {
        self.features_write
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Secret;

    fn sample() -> Config {
        Config {
            generation: 3,
            repository: RepositoryId([4; 16]),
            features_ignorable: 1,
            features_write: 0,
            features_read: 0,
            chunk_bytes: 65536,
            segment_bytes: 1 << 20,
            pack_bytes: 32 << 20,
            key_slots: vec![KeySlotId([1; 32]), KeySlotId([2; 32])],
        }
    }

    #[test]
    fn every_bit_is_authenticated() {
        let config = sample();
        let keys = Keys::derive(&Secret::new([1; 32]), config.repository);
        let bytes = config.encode(&keys, "name");
        assert_eq!(Config::decode(&bytes).unwrap(), config);
        config.verify(&keys, "name", &bytes).unwrap();
        assert_eq!(config.verify(&keys, "other", &bytes).unwrap_err().rule, "C-7");
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let refused = match Config::decode(&changed) {
                Ok(decoded) => decoded.verify(&keys, "name", &changed).is_err(),
                Err(_) => true,
            };
            assert!(refused, "bit {bit}");
        }
    }

    #[test]
    fn a_config_fits_its_own_version_and_no_other() {
        let config = sample();
        let keys = Keys::derive(&Secret::new([1; 32]), config.repository);
        for (version, other) in [(0_u16, 1_u16), (1, 0)] {
            let mut bytes = config.encode_as(version, &keys, "name");
            config.verify(&keys, "name", &bytes).unwrap();
            bytes[8..10].copy_from_slice(&other.to_le_bytes());
            assert_eq!(config.verify(&keys, "name", &bytes).unwrap_err().rule, "C-7");
        }
    }

    #[test]
    fn parity_is_ten_bits_of_what_may_be_ignored() {
        let mut config = Config { features_ignorable: u64::MAX, ..sample() };
        assert_eq!(config.parity_per_mille(), 0);
        for amount in [500, 0, 20] {
            config.set_parity_per_mille(amount).unwrap();
            assert_eq!(config.parity_per_mille(), amount);
            assert_eq!(config.features_ignorable, u64::MAX << 10 | u64::from(amount));
        }
        assert!(config.set_parity_per_mille(501).is_err());
        for (bits, amount) in [(500, 500), (501, 0), (1023, 0), (1024, 0), (1025, 1)] {
            config.features_ignorable = bits;
            assert_eq!(config.parity_per_mille(), amount, "{bits}");
        }
    }

    #[test]
    fn every_prefix_is_refused() {
        let config = sample();
        let keys = Keys::derive(&Secret::new([1; 32]), config.repository);
        let bytes = config.encode(&keys, "name");
        for length in 0..bytes.len() {
            assert!(Config::decode(&bytes[..length]).is_err());
        }
    }
}

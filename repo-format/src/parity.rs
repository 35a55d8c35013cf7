//! The parity object of a pack (spec/39-parity.md): what heals the pack from bit rot.
//!
//! Its head stands at both ends, so that one bad sector does not make the object useless, and the
//! checks in it tell which shards can be used. It is computed over the pack's stored bytes, says
//! nothing that they do not say, and authenticates nothing: healed bytes are believed because
//! their BLAKE3 is the pack's name (rule N-3).
//!
//! ```text
//! offset      size     field
//!      0         H     head
//!      H     r * s     recovery shards
//! H+r*s          H     head, the same bytes
//! end-4          4     H
//!
//! head:  0       8     magic "DVPARITY"
//!        8       2     format version
//!       10       2     0
//!       12       4     s, bytes of a shard
//!       16      32     pack id
//!       48       8     bytes of the pack
//!       56       4     k, number of data shards
//!       60       4     r, number of recovery shards
//!       64     4*k     checks of the data shards
//!  64+4*k      4*r     checks of the recovery shards
//!    end-32     32     BLAKE3 of all bytes of the head before
//! ```

use crate::cursor::Cursor;
use crate::error::{Result, check_version, limit, malformed, unauthentic};
use crate::id::PackId;
use crate::limits::{
    FORMAT_VERSION, PACK_BYTES_MAX, PARITY_BYTES_MAX, PARITY_DATA_SHARDS_MAX, PARITY_PER_MILLE_MAX,
    PARITY_SHARD_BYTES_DEFAULT, PARITY_SHARD_BYTES_MAX, PARITY_SHARD_BYTES_MIN,
};

const MAGIC: &[u8; 8] = b"DVPARITY";

/// Bytes of a head in front of its checks.
const FIXED_BYTES: usize = 64;
/// Bytes of the BLAKE3 at the end of a head.
const HASH_BYTES: usize = 32;
/// Bytes of the number at the end of the object.
const END_BYTES: usize = 4;

/// Fewest recovery shards that are written: a run of damage no longer than a shard touches two.
pub const RECOVERY_SHARDS_MIN: u32 = 2;

/// What tells whether a shard is whole: the first four bytes of its BLAKE3.
pub type ShardCheck = [u8; 4];

/// The check of a shard. The last data shard is taken without its padding.
pub fn check_of(shard: &[u8]) -> ShardCheck {
    let hash = blake3::hash(shard);
    let [a, b, c, d, ..] = *hash.as_bytes();
    [a, b, c, d]
}

/// How a pack is cut, and how many shards are added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of the pack, 1 to `PACK_BYTES_MAX`.
    pub pack_bytes: u64,
    /// Bytes of a shard, a power of two.
    pub shard_bytes: u32,
    /// Number of recovery shards: at most so many damaged shards heal.
    pub recovery: u32,
}

impl Shape {
    /// What a writer chooses for a pack of `pack_bytes` and `per_mille` thousandths of parity.
    ///
    /// # Errors
    /// E-4 for a pack of no bytes or more than the limit, or an amount of 0 or more than the
    /// limit.
    pub fn choose(pack_bytes: u64, per_mille: u32) -> Result<Shape> {
        if per_mille == 0 || per_mille > PARITY_PER_MILLE_MAX {
            let most = PARITY_PER_MILLE_MAX.into();
            return Err(limit("E-4", "the amount of parity", most, per_mille.into()));
        }
        let mut shard_bytes = PARITY_SHARD_BYTES_DEFAULT;
        while pack_bytes.div_ceil(shard_bytes.into()) > PARITY_DATA_SHARDS_MAX.into()
            && shard_bytes < PARITY_SHARD_BYTES_MAX
        {
            shard_bytes *= 2;
        }
        let mut shape = Shape { pack_bytes, shard_bytes, recovery: RECOVERY_SHARDS_MIN };
        shape.validate()?;
        let wanted = (u64::from(shape.data()) * u64::from(per_mille)).div_ceil(1000) as u32;
        shape.recovery = wanted.max(RECOVERY_SHARDS_MIN);
        Ok(shape)
    }

    /// Number of data shards.
    pub fn data(&self) -> u32 {
        // At most 2^14 once the shape is valid.
        self.pack_bytes.div_ceil(self.shard_bytes.max(1).into()) as u32
    }

    /// Where a data shard lies in the pack; the last one may be shorter than a shard.
    pub fn data_range(&self, number: u32) -> std::ops::Range<u64> {
        let start = u64::from(number) * u64::from(self.shard_bytes);
        start.min(self.pack_bytes)..(start + u64::from(self.shard_bytes)).min(self.pack_bytes)
    }

    /// Bytes of all recovery shards.
    pub fn recovery_bytes(&self) -> u64 {
        u64::from(self.recovery) * u64::from(self.shard_bytes)
    }

    fn validate(&self) -> Result<()> {
        let shard = self.shard_bytes;
        let fits = (PARITY_SHARD_BYTES_MIN..=PARITY_SHARD_BYTES_MAX).contains(&shard);
        if !shard.is_power_of_two() || !fits {
            return Err(malformed(
                "E-4",
                format!("cannot cut a pack into shards of {shard} bytes"),
            ));
        }
        if self.pack_bytes == 0 || self.pack_bytes > PACK_BYTES_MAX {
            return Err(limit("E-4", "the pack's length", PACK_BYTES_MAX, self.pack_bytes));
        }
        let data = self.pack_bytes.div_ceil(shard.into());
        if data > PARITY_DATA_SHARDS_MAX.into() {
            let most = PARITY_DATA_SHARDS_MAX.into();
            return Err(limit("E-4", "the number of data shards", most, data));
        }
        let most = data.div_ceil(2).max(RECOVERY_SHARDS_MIN.into());
        if self.recovery == 0 || u64::from(self.recovery) > most {
            let found = self.recovery.into();
            return Err(limit("E-4", "the number of recovery shards", most, found));
        }
        Ok(())
    }
}

/// What stands at both ends of a parity object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParityHead {
    /// The pack that it heals.
    pub pack: PackId,
    /// How the pack is cut.
    pub shape: Shape,
    /// A check for each data shard.
    pub data_checks: Vec<ShardCheck>,
    /// A check for each recovery shard.
    pub recovery_checks: Vec<ShardCheck>,
}

impl ParityHead {
    fn encode(&self) -> Vec<u8> {
        let checks = self.data_checks.len() + self.recovery_checks.len();
        let mut bytes = Vec::with_capacity(FIXED_BYTES + 4 * checks + HASH_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&self.shape.shard_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.pack.0);
        bytes.extend_from_slice(&self.shape.pack_bytes.to_le_bytes());
        bytes.extend_from_slice(&(self.data_checks.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(self.recovery_checks.len() as u32).to_le_bytes());
        for check in self.data_checks.iter().chain(&self.recovery_checks) {
            bytes.extend_from_slice(check);
        }
        let hash = blake3::hash(&bytes);
        bytes.extend_from_slice(hash.as_bytes());
        bytes
    }

    /// Reads the head at the front of `bytes`, and its length.
    fn decode(bytes: &[u8]) -> Result<(ParityHead, usize)> {
        let mut cursor = Cursor::new(bytes, "E-1");
        if cursor.bytes(8)? != MAGIC {
            return Err(malformed("E-2", "is no parity object: the magic is wrong"));
        }
        check_version("E-3", FORMAT_VERSION, cursor.u16()?)?;
        cursor.zeros(2, "E-2")?;
        let shard_bytes = cursor.u32()?;
        let pack = PackId(cursor.array()?);
        let pack_bytes = cursor.u64()?;
        let (data, recovery) = (cursor.u32()?, cursor.u32()?);
        let shape = Shape { pack_bytes, shard_bytes, recovery };
        shape.validate()?;
        if data != shape.data() {
            let text =
                format!("{pack_bytes} bytes are not {data} data shards of {shard_bytes} bytes");
            return Err(malformed("E-5", text));
        }
        // At most 24,576 checks: the shape is valid.
        let checks = cursor.bytes(4 * (data + recovery) as usize)?;
        let length = FIXED_BYTES + checks.len();
        if blake3::hash(&bytes[..length]) != cursor.array::<HASH_BYTES>()? {
            return Err(unauthentic("E-6", "the check value of the head does not fit"));
        }
        let (of_data, of_recovery) = checks.split_at(4 * data as usize);
        let list = |bytes: &[u8]| bytes.as_chunks::<4>().0.to_vec();
        let (data_checks, recovery_checks) = (list(of_data), list(of_recovery));
        let head = ParityHead { pack, shape, data_checks, recovery_checks };
        Ok((head, length + HASH_BYTES))
    }
}

/// A parity object, of which one head was found.
#[derive(Debug)]
pub struct Parity<'a> {
    /// What it says of the pack and of itself.
    pub head: ParityHead,
    object: &'a [u8],
    /// Where the recovery shards start; before the object if its front is gone.
    start: i64,
}

/// Encodes a parity object. `recovery` are all recovery shards, one behind the other, as long as
/// the head's shape says.
pub fn encode(head: &ParityHead, recovery: &[u8]) -> Vec<u8> {
    debug_assert_eq!(recovery.len() as u64, head.shape.recovery_bytes());
    let head = head.encode();
    let mut object = Vec::with_capacity(2 * head.len() + recovery.len() + END_BYTES);
    object.extend_from_slice(&head);
    object.extend_from_slice(recovery);
    object.extend_from_slice(&head);
    object.extend_from_slice(&(head.len() as u32).to_le_bytes());
    object
}

/// Finds a whole head, the first or else the last; damage anywhere else is passed over. It takes
/// memory for the checks only.
///
/// # Errors
/// What is wrong with the first head if neither can be used: E-1 length, E-2 magic or reserved
/// bytes, E-3 version, E-4 sizes beyond their limits, E-5 numbers that contradict each other,
/// E-6 check value; E-7 if it was made for another pack than `pack`.
pub fn decode(object: &[u8], pack: PackId) -> Result<Parity<'_>> {
    if object.len() as u64 > PARITY_BYTES_MAX {
        let found = object.len() as u64;
        return Err(limit("E-1", "the parity object's length", PARITY_BYTES_MAX, found));
    }
    let first = ParityHead::decode(object).map(|(head, length)| (head, length as i64));
    let (head, start) = first.or_else(|cause| decode_last(object).ok_or(cause))?;
    if head.pack != pack {
        let other = head.pack;
        return Err(malformed("E-7", format!("was made for another pack, {other}")));
    }
    Ok(Parity { head, object, start })
}

/// The head at the end, and where it says that the recovery shards start.
fn decode_last(object: &[u8]) -> Option<(ParityHead, i64)> {
    let (before, length) = object.split_last_chunk::<END_BYTES>()?;
    let length = u32::from_le_bytes(*length) as usize;
    let end = before.len().checked_sub(length)?;
    let (head, found) = ParityHead::decode(&before[end..]).ok()?;
    let start = end as i64 - head.shape.recovery_bytes() as i64;
    (found == length).then_some((head, start))
}

impl<'a> Parity<'a> {
    /// A recovery shard, unless it is damaged or missing.
    pub fn recovery_shard(&self, number: u32) -> Option<&'a [u8]> {
        let check = self.head.recovery_checks.get(number as usize)?;
        let shard_bytes = self.head.shape.shard_bytes;
        let start = self.start + i64::from(number) * i64::from(shard_bytes);
        let start = usize::try_from(start).ok()?;
        let shard = self.object.get(start..start + shard_bytes as usize)?;
        (check_of(shard) == *check).then_some(shard)
    }

    /// True if no byte of the object is damaged.
    pub fn is_whole(&self) -> bool {
        let shards: Option<Vec<&[u8]>> =
            (0..self.head.shape.recovery).map(|number| self.recovery_shard(number)).collect();
        shards.is_some_and(|shards| encode(&self.head, &shards.concat()) == self.object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACK: PackId = PackId([7; 32]);

    fn sample() -> Vec<u8> {
        let shape = Shape { pack_bytes: 300, shard_bytes: 64, recovery: 3 };
        let recovery: Vec<u8> = (0..192).collect();
        let head = ParityHead {
            pack: PACK,
            shape,
            data_checks: (0..5).map(|number| [number; 4]).collect(),
            recovery_checks: recovery.chunks(64).map(check_of).collect(),
        };
        encode(&head, &recovery)
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let object = sample();
        let parity = decode(&object, PACK).unwrap();
        assert_eq!(parity.head.shape.data(), 5);
        assert_eq!(parity.head.shape.data_range(4), 256..300);
        assert!(parity.is_whole());
        let shard = parity.recovery_shard(2).unwrap();
        assert_eq!(shard, (128..192).collect::<Vec<u8>>());
        assert_eq!(parity.recovery_shard(3), None);
        assert_eq!(decode(&object, PackId([8; 32])).unwrap_err().rule, "E-7");
    }

    #[test]
    fn every_flipped_byte_costs_at_most_one_shard() {
        let object = sample();
        for place in 0..object.len() {
            let mut damaged = object.clone();
            damaged[place] ^= 0x55;
            let parity = decode(&damaged, PACK).unwrap();
            assert!(!parity.is_whole(), "byte {place}");
            let usable = (0..3).filter(|number| parity.recovery_shard(*number).is_some()).count();
            assert!(usable >= 2, "byte {place}: {usable}");
        }
    }

    #[test]
    fn what_is_cut_off_at_one_end_leaves_the_rest() {
        let object = sample();
        let head = (object.len() - 192 - 4) / 2;
        // Without the last head and the last shard, and without the first ones.
        let cut = &object[..head + 100];
        let usable = |object: &[u8]| {
            let parity = decode(object, PACK).unwrap();
            (0..3).map(|number| parity.recovery_shard(number).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(usable(cut), [true, false, false]);
        assert_eq!(usable(&object[head + 70..]), [false, false, true]);
        assert_eq!(usable(&[&object[..], &[1; 9]].concat()), [true; 3]);
        for length in 0..head {
            assert!(decode(&object[..length], PACK).is_err(), "{length}");
        }
    }

    #[test]
    fn a_writer_chooses_within_the_limits() {
        let shape = |bytes, per_mille| Shape::choose(bytes, per_mille).unwrap();
        assert_eq!((shape(70_000, 20).data(), shape(70_000, 20).recovery), (18, 2));
        assert_eq!((shape(32 << 20, 20).data(), shape(32 << 20, 20).recovery), (8192, 164));
        assert_eq!(shape(64 << 20, 1).shard_bytes, 4096);
        assert_eq!(shape((64 << 20) + 1, 1).shard_bytes, 8192);
        let largest = shape(PACK_BYTES_MAX, PARITY_PER_MILLE_MAX);
        assert_eq!((largest.data(), largest.recovery), (1 << 14, 1 << 13));
        let head = (FIXED_BYTES + HASH_BYTES) as u64 + 4 * (3 << 13);
        assert!(largest.recovery_bytes() + 2 * head + 4 <= PARITY_BYTES_MAX);
        for bytes in [1, 4095, 4096, 4097, 8193, 1 << 20] {
            for per_mille in [1, 20, 333, 500] {
                let shape = shape(bytes, per_mille);
                assert!(shape.validate().is_ok() && shape.recovery >= 2, "{shape:?}");
            }
        }
        for (bytes, per_mille) in [(0, 1), (PACK_BYTES_MAX + 1, 1), (1, 0), (1, 501)] {
            assert_eq!(Shape::choose(bytes, per_mille).unwrap_err().rule, "E-4");
        }
    }
}

//! Packs (spec/32-pack.md): immutable objects of sealed segments, named by their own BLAKE3.
//!
//! ```text
//! header   192 bytes   magic, kind, repository, writer, key wrap
//! segments             each frame on a multiple of 64 bytes, zeros between
//! zeros                to a multiple of 64 KiB
//! footer               sealed under ordinal 2^32-1
//! trailer  192 bytes   key wrap, footer position, kind, repository, magic
//! ```
//!
//! Invariants: a pack key is random and used for one pack; the key wrap stands at both ends, so
//! that one bad sector loses neither; padding is zero and checked by whoever reads all of it.

mod build;

pub use build::{OwnCopySecrets, PackBuilder, PackSecrets, PreparedSegment, SealedPack, assemble};

use crate::asymmetric::{PUBLIC_KEY_BYTES, open_from};
use crate::crypto::{Keys, ObjectKind, PackCipher, Secret, additional_data, context, open_x};
use crate::cursor::Cursor;
use crate::error::{Result, check_version, limit, malformed, newer, unauthentic};
use crate::footer::Footer;
use crate::id::{LeaseId, RepositoryId};
use crate::limits::{FORMAT_VERSION, PACK_BYTES_MAX, PACK_PADDING_BYTES};
use crate::segment::{FRAME_BYTES, read_frame};

const HEAD_MAGIC: &[u8; 8] = b"DVPKHEAD";
const TAIL_MAGIC: &[u8; 8] = b"DVPKTAIL";
/// Bytes of a pack's header.
pub const HEADER_BYTES: usize = 192;
/// Bytes of a pack's trailer.
pub const TRAILER_BYTES: usize = 192;
/// Bytes of a wrapped pack key.
pub const WRAP_BYTES: usize = 128;
const FOOTER_ORDINAL: u32 = u32::MAX;

/// What a pack holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PackKind {
    /// Chunks of disks and streams.
    Data = 1,
    /// Map pages, splices, and the chunks of allocation lists.
    Map = 2,
}

impl PackKind {
    /// The kind with number `number`.
    ///
    /// # Errors
    /// P-3 for a number that no version knows.
    pub fn from_number(number: u8) -> Result<PackKind> {
        match number {
            1 => Ok(PackKind::Data),
            2 => Ok(PackKind::Map),
            other => Err(newer("P-3", format!("is a pack of kind {other}"))),
        }
    }
}

/// What both ends of a pack say of it. Wrapped key, segments and footer have no version of their
/// own: that of the end which was opened counts for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackIdentity {
    /// Format version.
    pub version: u16,
    /// What the pack holds.
    pub kind: PackKind,
    /// The repository it was made for.
    pub repository: RepositoryId,
}

impl PackIdentity {
    /// Appends the 24 bytes that stand in header and trailer.
    fn write(&self, output: &mut Vec<u8>) {
        output.extend_from_slice(&self.version.to_le_bytes());
        output.extend_from_slice(&[self.kind as u8, 0, 0, 0, 0, 0]);
        output.extend_from_slice(&self.repository.0);
    }

    /// Reads 24 bytes of a pack of version `newest` at most.
    fn read(newest: u16, cursor: &mut Cursor<'_>) -> Result<PackIdentity> {
        let version = cursor.u16()?;
        check_version("P-3", newest, version)?;
        let kind = PackKind::from_number(cursor.u8()?)?;
        cursor.zeros(5, "P-2")?;
        Ok(PackIdentity { version, kind, repository: RepositoryId(cursor.array()?) })
    }

    fn additional(&self, object: ObjectKind, more: &[u8]) -> Vec<u8> {
        additional_data(self.version, object, self.repository, &[&[self.kind as u8], more])
    }

    fn segment_additional(&self, ordinal: u32) -> Vec<u8> {
        self.additional(ObjectKind::Segment, &ordinal.to_le_bytes())
    }

    fn footer_additional(&self, offset: u32) -> Vec<u8> {
        self.additional(ObjectKind::Footer, &offset.to_le_bytes())
    }
}

fn commitment(key: &Secret) -> [u8; 32] {
    blake3::derive_key(context::PACK_COMMITMENT, key.expose())
}

/// How a pack key is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WrapKind {
    /// Under a subkey of the repository.
    Repository = 0,
    /// Sealed to the repository's public key, by a writer that may not read.
    PublicKey = 1,
}

/// Bytes of the wrap before the commitment, by kind: what stands in clear and is reserved there.
const CLEAR_BYTES: [usize; 2] = [24, 16];

/// How a wrap says that its key is wrapped.
///
/// # Errors
/// P-5 for an algorithm, wrap kind, epoch or key id that this version does not know.
pub fn wrap_kind(wrap: &[u8; WRAP_BYTES]) -> Result<WrapKind> {
    let kind = match wrap[1] {
        0 => WrapKind::Repository,
        1 => WrapKind::PublicKey,
        _ => return Err(newer("P-5", "has its key wrapped in an unknown way")),
    };
    if wrap[0] != 1 || wrap[2..CLEAR_BYTES[kind as usize]].iter().any(|byte| *byte != 0) {
        return Err(newer("P-5", "has its key wrapped in an unknown way"));
    }
    Ok(kind)
}

/// Opens a wrapped pack key. A writer that may not read opens those of its own copies only.
///
/// # Errors
/// P-5 for an algorithm, wrap kind, epoch or key id that this version does not know, P-6 if the
/// key does not authenticate or does not fit its commitment.
pub fn unwrap_key(keys: &Keys, identity: &PackIdentity, wrap: &[u8; WRAP_BYTES]) -> Result<Secret> {
    let kind = wrap_kind(wrap)?;
    let mut cursor = Cursor::new(wrap, "P-5");
    let clear = cursor.bytes(CLEAR_BYTES[kind as usize] + 32)?;
    let additional = identity.additional(ObjectKind::PackKey, clear);
    let cannot = || unauthentic("P-6", "the pack key is not for this key to open");
    let plaintext = match kind {
        WrapKind::Repository => {
            let nonce = cursor.array::<24>()?;
            let wrapping = keys.pack_wrap().ok_or_else(cannot)?;
            open_x(wrapping, &nonce, &additional, cursor.rest(), "P-6")?
        }
        WrapKind::PublicKey => {
            let encapsulated = cursor.array::<PUBLIC_KEY_BYTES>()?;
            match keys.as_write_only() {
                Some(own) => {
                    let mut nonce = [0; 24];
                    nonce.copy_from_slice(&encapsulated[..24]);
                    open_x(&own.own_copies, &nonce, &additional, cursor.rest(), "P-6")?
                }
                None => {
                    let opening = keys.opening().ok_or_else(cannot)?;
                    open_from(opening, &encapsulated, &additional, cursor.rest(), "P-6")?
                }
            }
        }
    };
    let mut key = [0_u8; 32];
    key.copy_from_slice(&plaintext);
    let key = Secret::new(key);
    if commitment(&key) != clear[clear.len() - 32..] {
        return Err(unauthentic("P-6", "the pack key does not fit its commitment"));
    }
    Ok(key)
}

/// The clear header of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version, kind and repository.
    pub identity: PackIdentity,
    /// The lease of its writer.
    pub writer: LeaseId,
    /// The wrapped pack key.
    pub wrap: [u8; WRAP_BYTES],
}

/// Decodes a pack's header.
///
/// # Errors
/// P-2 magic, length or reserved bytes, P-3 version or kind.
pub fn decode_header(bytes: &[u8]) -> Result<Header> {
    decode_header_up_to(FORMAT_VERSION, bytes)
}

fn decode_header_up_to(newest: u16, bytes: &[u8]) -> Result<Header> {
    let mut cursor = Cursor::new(bytes, "P-2");
    if cursor.bytes(8)? != HEAD_MAGIC {
        return Err(malformed("P-2", "is no pack: the magic is wrong"));
    }
    let identity = PackIdentity::read(newest, &mut cursor)?;
    let writer = LeaseId(cursor.array()?);
    let wrap = cursor.array()?;
    cursor.zeros(16, "P-2")?;
    Ok(Header { identity, writer, wrap })
}

/// The clear trailer of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Version, kind and repository.
    pub identity: PackIdentity,
    /// Where the sealed footer starts.
    pub footer_offset: u32,
    /// Bytes of the sealed footer, with its tag.
    pub footer_bytes: u32,
    /// The wrapped pack key.
    pub wrap: [u8; WRAP_BYTES],
}

/// Decodes the trailer of a pack of `pack_bytes` bytes from the pack's last bytes.
///
/// # Errors
/// P-1 length of the pack, P-2 magic or reserved bytes, P-3 version or kind, P-4 a footer that
/// does not end at the trailer or does not start on the padding.
pub fn decode_trailer(tail: &[u8], pack_bytes: u64) -> Result<Trailer> {
    decode_trailer_up_to(FORMAT_VERSION, tail, pack_bytes)
}

fn decode_trailer_up_to(newest: u16, tail: &[u8], pack_bytes: u64) -> Result<Trailer> {
    if pack_bytes > PACK_BYTES_MAX {
        return Err(limit("P-1", "the pack's length", PACK_BYTES_MAX, pack_bytes));
    }
    let Some(bytes) = tail.last_chunk::<TRAILER_BYTES>() else {
        return Err(malformed("P-2", "is too short for a trailer"));
    };
    let mut cursor = Cursor::new(bytes, "P-2");
    let wrap = cursor.array()?;
    let footer_offset = cursor.u32()?;
    let footer_bytes = cursor.u32()?;
    let mut end = Cursor::new(&bytes[TRAILER_BYTES - 8..], "P-2");
    if end.bytes(8)? != TAIL_MAGIC {
        return Err(malformed("P-2", "has no trailer: the magic is wrong"));
    }
    let identity = PackIdentity::read(newest, &mut cursor)?;
    cursor.zeros(24, "P-2")?;
    let ends = u64::from(footer_offset) + u64::from(footer_bytes) + TRAILER_BYTES as u64;
    let padded = u64::from(footer_offset).is_multiple_of(PACK_PADDING_BYTES);
    if ends != pack_bytes || !padded || footer_offset == 0 {
        return Err(malformed("P-4", "the footer does not lie where the trailer says"));
    }
    Ok(Trailer { identity, footer_offset, footer_bytes, wrap })
}

/// Checks that the two ends of a pack say the same.
///
/// # Errors
/// P-13.
pub fn verify_ends(header: &Header, trailer: &Trailer) -> Result<()> {
    if header.identity == trailer.identity && header.wrap == trailer.wrap {
        return Ok(());
    }
    Err(malformed("P-13", "the header and the trailer do not fit each other"))
}

/// The key of one pack, ready to open its parts.
pub struct PackOpener {
    cipher: PackCipher,
    identity: PackIdentity,
    /// Of a pack by a writer that may not read: the commitment to its key.
    signed: Option<[u8; 32]>,
}

impl PackOpener {
    /// Unwraps the pack key found in a header or trailer.
    ///
    /// # Errors
    /// P-7 for a pack of another repository, P-5 and P-6 as [`unwrap_key`].
    pub fn new(
        keys: &Keys,
        identity: &PackIdentity,
        wrap: &[u8; WRAP_BYTES],
    ) -> Result<PackOpener> {
        if identity.repository != keys.repository() {
            return Err(unauthentic("P-7", "belongs to another repository"));
        }
        let key = unwrap_key(keys, identity, wrap)?;
        let is_signed = wrap_kind(wrap)? == WrapKind::PublicKey;
        let signed = is_signed.then(|| commitment(&key));
        Ok(PackOpener { cipher: PackCipher::new(&key), identity: *identity, signed })
    }

    /// Opens the sealed footer, in place. That of a pack by a writer that may not read has to be
    /// signed by one that `keys` know.
    ///
    /// # Errors
    /// P-8 if it does not authenticate, P-15 for a signature that does not count, P-10 and P-11
    /// for its layout.
    pub fn open_footer(&self, keys: &Keys, trailer: &Trailer, sealed: &mut [u8]) -> Result<Footer> {
        let additional = self.identity.footer_additional(trailer.footer_offset);
        let mut plaintext = self.cipher.open(FOOTER_ORDINAL, &additional, sealed, "P-8")?;
        let mut signer = None;
        if let Some(commitment) = &self.signed {
            let before: [&[u8]; 2] = [&additional, commitment];
            let (writer, footer) = keys.writers().open(&before, plaintext, "P-15")?;
            (signer, plaintext) = (Some(writer.writer()), footer);
        }
        let end = u64::from(trailer.footer_offset);
        let footer = Footer::decode(plaintext, HEADER_BYTES as u64, end)?;
        Ok(Footer { signer, ..footer })
    }

    /// Opens one stored segment (frame, ciphertext, tag) in place and returns its plaintext.
    ///
    /// # Errors
    /// S-1 and S-2 if the frame does not fit, P-9 if the segment does not authenticate.
    pub fn open_segment<'a>(&self, ordinal: u32, stored: &'a mut [u8]) -> Result<&'a [u8]> {
        let Some((frame, sealed)) = stored.split_at_mut_checked(FRAME_BYTES) else {
            return Err(malformed("S-1", "a segment is too short for its frame"));
        };
        let (found, sealed_bytes) = read_frame(frame)?;
        if found != ordinal || sealed_bytes as usize != sealed.len() {
            return Err(malformed("S-2", "a segment's frame does not fit the footer"));
        }
        let additional = self.identity.segment_additional(ordinal);
        self.cipher.open(ordinal, &additional, sealed, "P-9")
    }
}

/// Checks that everything of a whole pack that is neither header, segment, footer nor trailer is
/// zero.
///
/// # Errors
/// P-12 for a byte that is not, or for a footer that leaves the pack.
pub fn verify_padding(pack: &[u8], footer: &Footer, trailer: &Trailer) -> Result<()> {
    let mut used = HEADER_BYTES;
    let ends = footer
        .segments
        .iter()
        .map(|segment| {
            let start = segment.offset as usize;
            (start, start + segment.stored_bytes() as usize)
        })
        .chain([(trailer.footer_offset as usize, trailer.footer_offset as usize)]);
    for (start, end) in ends {
        let leaves = || malformed("P-12", "the footer leaves the pack");
        verify_gap(pack.get(used..start).ok_or_else(leaves)?, start as u64)?;
        used = end;
    }
    Ok(())
}

/// Checks that the bytes before byte `end` of a pack, between two of its parts, are zero: for who
/// reads a pack piece by piece.
///
/// # Errors
/// P-12 for a byte that is not.
pub fn verify_gap(gap: &[u8], end: u64) -> Result<()> {
    if gap.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    Err(malformed("P-12", format!("the padding before byte {end} is not zero")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::KeySlotId;
    use crate::segment::{Entry, EntryKind, SegmentDecoder, SegmentEncoder};
    use crate::writers::{WriterRecord, Writers};

    impl SealedPack {
        fn footer_offset(&self) -> usize {
            decode_trailer(&self.bytes, self.bytes.len() as u64).unwrap().footer_offset as usize
        }
    }

    fn keys() -> Keys {
        Keys::derive(&Secret::new([1; 32]), RepositoryId([2; 16]))
    }

    fn sample(keys: &Keys) -> SealedPack {
        sample_as(FORMAT_VERSION, keys)
    }

    fn sample_as(version: u16, keys: &Keys) -> SealedPack {
        let mut encoder = SegmentEncoder::new(3).unwrap();
        let secrets =
            PackSecrets { key: Secret::new([7; 32]), wrap_random: [8; 32], own_copy: None };
        let writer = LeaseId([5; 16]);
        // A buffer that was used before.
        let identity =
            PackIdentity { version, kind: PackKind::Data, repository: keys.repository() };
        let mut builder =
            PackBuilder::new_as(identity, keys, writer, &secrets, vec![1; 99]).unwrap();
        for data in [b"first chunk".to_vec(), vec![9; 3000]] {
            let id = keys.chunk_id(&data).0;
            let entries = vec![Entry { id, kind: EntryKind::Chunk, bytes: data.len() as u32 }];
            let mut plaintext = Vec::new();
            encoder.encode(&entries, &data, &mut plaintext).unwrap();
            builder.push(entries, Vec::new(), &plaintext).unwrap();
        }
        let bytes = builder.bytes();
        let pack = builder.finish().unwrap();
        assert!(pack.bytes.len() - bytes < PACK_PADDING_BYTES as usize);
        assert_eq!(pack.id.0, *blake3::hash(&pack.bytes).as_bytes());
        pack
    }

    fn read(keys: &Keys, pack: &[u8]) -> Result<Vec<Vec<u8>>> {
        read_up_to(FORMAT_VERSION, keys, pack)
    }

    fn read_up_to(newest: u16, keys: &Keys, pack: &[u8]) -> Result<Vec<Vec<u8>>> {
        let header = decode_header_up_to(newest, pack)?;
        let trailer = decode_trailer_up_to(newest, pack, pack.len() as u64)?;
        let opener = PackOpener::new(keys, &trailer.identity, &trailer.wrap)?;
        PackOpener::new(keys, &header.identity, &header.wrap)?;
        let start = trailer.footer_offset as usize;
        let mut sealed = pack[start..start + trailer.footer_bytes as usize].to_vec();
        let footer = opener.open_footer(keys, &trailer, &mut sealed)?;
        verify_padding(pack, &footer, &trailer)?;
        let mut found = Vec::new();
        for (ordinal, segment) in footer.segments.iter().enumerate() {
            let start = segment.offset as usize;
            let mut stored = pack[start..start + segment.stored_bytes() as usize].to_vec();
            let plaintext = opener.open_segment(ordinal as u32, &mut stored)?;
            let mut data = Vec::new();
            segment.verify_table(&SegmentDecoder::new()?.decode(plaintext, &mut data)?)?;
            found.push(data);
        }
        Ok(found)
    }

    #[test]
    fn comes_back_and_is_padded() {
        let keys = keys();
        let pack = sample(&keys);
        assert_eq!(read(&keys, &pack.bytes).unwrap(), [b"first chunk".to_vec(), vec![9; 3000]]);
        assert_eq!(pack.bytes.len(), 65536 + 4 + 2 * (16 + 36) + 16 + 192);
        assert_eq!(pack.footer.segments[1].offset % 64, 0);
    }

    #[test]
    fn every_flipped_byte_but_the_writer_is_noticed_without_the_name() {
        let keys = keys();
        let pack = sample(&keys).bytes;
        for position in 0..pack.len() {
            let mut changed = pack.clone();
            changed[position] ^= 0x10;
            // The writer's lease is only information; the pack's name covers it.
            let information = (32..48).contains(&position);
            assert_eq!(read(&keys, &changed).is_ok(), information, "byte {position}");
        }
    }

    #[test]
    fn a_pack_opens_under_its_own_version_and_no_other() {
        let keys = keys();
        for (version, other) in [(1_u16, 2_u16), (2, 1)] {
            let pack = sample_as(version, &keys).bytes;
            assert_eq!(read_up_to(2, &keys, &pack).unwrap().len(), 2);
            let trailer = pack.len() - TRAILER_BYTES;
            let mut relabelled = pack.clone();
            relabelled[trailer + 136..trailer + 138].copy_from_slice(&other.to_le_bytes());
            let ends = (
                decode_header_up_to(2, &relabelled).unwrap(),
                decode_trailer_up_to(2, &relabelled, pack.len() as u64).unwrap(),
            );
            assert_eq!(verify_ends(&ends.0, &ends.1).unwrap_err().rule, "P-13");
            relabelled[8..10].copy_from_slice(&other.to_le_bytes());
            assert_eq!(read_up_to(2, &keys, &relabelled).unwrap_err().rule, "P-6");
            // Not only the wrapped key is bound to the version, but what it opens as well.
            let trailer = decode_trailer_up_to(2, &pack, pack.len() as u64).unwrap();
            let mut opener = PackOpener::new(&keys, &trailer.identity, &trailer.wrap).unwrap();
            opener.identity.version = other;
            let start = trailer.footer_offset as usize;
            let mut footer = pack[start..start + trailer.footer_bytes as usize].to_vec();
            assert_eq!(opener.open_footer(&keys, &trailer, &mut footer).unwrap_err().rule, "P-8");
            let segment = &sample_as(version, &keys).footer.segments[0];
            let start = segment.offset as usize;
            let mut stored = pack[start..start + segment.stored_bytes() as usize].to_vec();
            assert_eq!(opener.open_segment(0, &mut stored).unwrap_err().rule, "P-9");
        }
        let newer = sample_as(1, &keys).bytes;
        assert_eq!(read_up_to(0, &keys, &newer).unwrap_err().rule, "P-3");
    }

    #[test]
    fn a_pack_of_another_repository_is_refused() {
        let other = Keys::derive(&Secret::new([1; 32]), RepositoryId([3; 16]));
        assert_eq!(read(&keys(), &sample(&other).bytes).unwrap_err().rule, "P-7");
    }

    fn by_a_writer(keys: &Keys, kind: PackKind) -> SealedPack {
        let own_copy = Some(OwnCopySecrets { key: Secret::new([4; 32]), nonce: [6; 24] });
        let secrets = PackSecrets { key: Secret::new([7; 32]), wrap_random: [8; 32], own_copy };
        let data = b"a chunk of a machine";
        let id = keys.chunk_id(data).0;
        let entries = vec![Entry { id, kind: EntryKind::Chunk, bytes: data.len() as u32 }];
        let mut plaintext = Vec::new();
        SegmentEncoder::new(3).unwrap().encode(&entries, data, &mut plaintext).unwrap();
        let segment = PreparedSegment { entries, anchors: Vec::new(), plaintext };
        assemble(keys, kind, LeaseId([5; 16]), &secrets, vec![segment]).unwrap()
    }

    #[test]
    fn a_pack_of_a_writer_is_read_by_who_may_and_knows_the_writer() {
        let full = keys();
        let seed = Secret::new([5; 32]);
        let writer = Keys::write_only(
            &full.for_writer(seed.clone(), Vec::new()).unwrap(),
            full.repository(),
        );
        let pack = by_a_writer(&writer, PackKind::Data);
        assert_eq!(read(&full, &pack.bytes).unwrap_err().rule, "P-15");
        let record = WriterRecord {
            verifying_key: crate::asymmetric::verifying_key(&seed),
            slot: KeySlotId([3; 32]),
            name: "kvm1".into(),
            series: Vec::new(),
            time_unix_ns: 5,
            retired: None,
        };
        let knowing = full.clone().with_writers(Writers::new([record]));
        assert_eq!(read(&knowing, &pack.bytes).unwrap(), [b"a chunk of a machine".to_vec()]);
        assert_eq!(read(&writer, &pack.bytes).unwrap_err().rule, "P-6");
        // The parts that say what it is; the segment's own seal is as in any pack.
        for position in (0..32).chain(48..192).chain(pack.bytes.len() - 192..pack.bytes.len()) {
            let mut changed = pack.bytes.clone();
            changed[position] ^= 0x10;
            assert!(read(&knowing, &changed).is_err(), "byte {position}");
        }
    }

    #[test]
    fn what_a_writer_keeps_opens_the_maps_it_made_and_no_data() {
        let full = keys();
        let secrets = full.for_writer(Secret::new([5; 32]), Vec::new()).unwrap();
        let writer = Keys::write_only(&secrets, full.repository());
        for (kind, opens) in [(PackKind::Data, false), (PackKind::Map, true)] {
            let pack = by_a_writer(&writer, kind);
            let copy = pack.own_copy.as_ref().unwrap();
            assert_eq!(copy.len() + pack.footer_offset(), pack.bytes.len());
            let trailer = decode_trailer(copy, pack.bytes.len() as u64).unwrap();
            let opener = PackOpener::new(&writer, &trailer.identity, &trailer.wrap).unwrap();
            let mut footer = copy[..trailer.footer_bytes as usize].to_vec();
            assert_eq!(opener.open_footer(&writer, &trailer, &mut footer).unwrap(), pack.footer);
            let segment = &pack.footer.segments[0];
            let start = segment.offset as usize;
            let mut stored = pack.bytes[start..start + segment.stored_bytes() as usize].to_vec();
            assert_eq!(opener.open_segment(0, &mut stored).is_ok(), opens, "{kind:?}");
            assert!(PackOpener::new(&full, &trailer.identity, &trailer.wrap).is_err());
        }
    }
}

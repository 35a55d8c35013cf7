//! Reading packs: footers from their tails, segments by ranged reads.
//!
//! Invariants: a footer is believed only after its seal opened; memory is bounded by the bytes of
//! the footers kept, not by the repository.

use super::lock;
use super::objects::refused;
use crate::error::Result;
use crate::storage::{Folder, ObjectName, Storage};
use diskvault_format::crypto::Keys;
use diskvault_format::footer::{Footer, FooterSegment};
use diskvault_format::id::PackId;
use diskvault_format::limits::PACK_BYTES_MAX;
use diskvault_format::pack::{PackKind, PackOpener, TRAILER_BYTES, Trailer, decode_trailer};
use diskvault_format::segment::{Anchor, Entry, EntryShape, SegmentDecoder};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Bytes read from the tail at first: trailer and the footer of some 3,500 chunks, so that one
/// read serves packs of the default size.
const TAIL_BYTES: usize = 128 << 10;
/// Bytes of footers kept in memory: some 250 at the default sizes, where one is about 60 KiB. The
/// largest footer the format allows has 37 MiB; the one read last is always kept.
const FOOTER_BYTES_KEPT: usize = 16 << 20;
/// What a kept pack takes beside its footer: cipher, counters, place in the table.
const PACK_MEMORY_BYTES: usize = 512;

/// A pack whose footer is open.
pub struct OpenPack {
    /// The pack.
    pub id: PackId,
    /// Data or map.
    pub kind: PackKind,
    /// Size of the whole pack in bytes.
    pub bytes: u64,
    /// What its end says of it.
    pub trailer: Trailer,
    /// What it holds.
    pub footer: Footer,
    /// What opens its segments.
    pub segments: Arc<PackSegments>,
}

/// What opens the segments of a pack: all that a read needs once the footer has told where they
/// are, and a few hundred bytes instead of the footer's 60 KiB.
pub struct PackSegments {
    /// The pack.
    pub id: PackId,
    opener: PackOpener,
}

/// Name of a pack's object.
///
/// # Errors
/// None in practice: an id always makes a valid name.
pub fn pack_name(id: PackId) -> Result<ObjectName> {
    ObjectName::new(Folder::Packs, &id.to_hex())
}

/// Reads and opens the footer of a pack.
///
/// # Errors
/// `NotFound`, `Damage` or `Newer`, naming the pack.
pub fn open_pack(storage: &dyn Storage, keys: &Keys, id: PackId) -> Result<OpenPack> {
    let name = pack_name(id)?;
    let refuse = |cause| refused(format!("pack {id}"), cause);
    let (mut tail, bytes) = storage.get_tail(&name, TAIL_BYTES)?;
    let trailer = decode_trailer(&tail, bytes).map_err(refuse)?;
    let opener = PackOpener::new(keys, &trailer.identity, &trailer.wrap).map_err(refuse)?;
    let wanted = trailer.footer_bytes as usize + TRAILER_BYTES;
    if wanted > tail.len() {
        debug_assert!(bytes <= PACK_BYTES_MAX);
        (tail, _) = storage.get_tail(&name, wanted)?;
    }
    let start = tail.len().saturating_sub(wanted);
    let end = tail.len().saturating_sub(TRAILER_BYTES);
    let footer = opener.open_footer(keys, &trailer, &mut tail[start..end]).map_err(refuse)?;
    let segments = Arc::new(PackSegments { id, opener });
    let kind = trailer.identity.kind;
    Ok(OpenPack { id, kind, bytes, trailer, footer, segments })
}

impl PackSegments {
    /// Opens a stored segment in place and decodes it into `data`. Its table tells kinds and
    /// lengths; what the bytes are is up to whoever asked for an id.
    ///
    /// # Errors
    /// `Damage`, naming pack and segment.
    pub fn decode(
        &self,
        ordinal: u32,
        stored: &mut [u8],
        decoder: &mut SegmentDecoder,
        data: &mut Vec<u8>,
    ) -> Result<Vec<EntryShape>> {
        self.opener
            .open_segment(ordinal, stored)
            .and_then(|plaintext| decoder.decode(plaintext, data))
            .map_err(|cause| refused(format!("segment {ordinal} of pack {}", self.id), cause))
    }
}

impl OpenPack {
    /// Bytes of memory that the pack takes, without what the allocator adds.
    fn memory_bytes(&self) -> usize {
        let segments = &self.footer.segments;
        PACK_MEMORY_BYTES
            + segments.len() * size_of::<FooterSegment>()
            + self.footer.entry_count() as usize * size_of::<Entry>()
            + segments.iter().map(|segment| segment.anchors.len()).sum::<usize>()
                * size_of::<Anchor>()
    }

    /// The entry in a slot of a segment, as the footer lists it.
    pub fn entry(&self, segment: u32, slot: u32) -> Option<&Entry> {
        self.footer.segments.get(segment as usize)?.entries.get(slot as usize)
    }

    /// Reads and decodes one segment, and compares its table with the footer.
    ///
    /// # Errors
    /// As the storage, or `Damage`.
    pub fn read_segment(
        &self,
        storage: &dyn Storage,
        ordinal: u32,
        decoder: &mut SegmentDecoder,
        data: &mut Vec<u8>,
    ) -> Result<Vec<EntryShape>> {
        let segment = &self.footer.segments[ordinal as usize];
        let mut stored = vec![0; segment.stored_bytes() as usize];
        storage.get_range(&pack_name(self.id)?, u64::from(segment.offset), &mut stored)?;
        let table = self.segments.decode(ordinal, &mut stored, decoder, data)?;
        segment
            .verify_table(&table)
            .map_err(|cause| refused(format!("segment {ordinal} of pack {}", self.id), cause))?;
        Ok(table)
    }
}

/// Open packs, the most recently used ones kept.
#[derive(Default)]
pub struct PackCache {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    packs: HashMap<PackId, (u64, Arc<OpenPack>)>,
    bytes: usize,
    clock: u64,
}

impl Kept {
    fn get(&mut self, id: PackId) -> Option<Arc<OpenPack>> {
        self.clock += 1;
        let (used, pack) = self.packs.get_mut(&id)?;
        *used = self.clock;
        Some(pack.clone())
    }

    /// Takes a pack in and lets go of those used longest ago until the rest fits.
    fn insert(&mut self, pack: Arc<OpenPack>, bytes_kept: usize) {
        self.clock += 1;
        self.bytes += pack.memory_bytes();
        if let Some((_, old)) = self.packs.insert(pack.id, (self.clock, pack)) {
            self.bytes -= old.memory_bytes();
        }
        if self.bytes > bytes_kept {
            self.shrink(bytes_kept / 4 * 3);
        }
    }

    /// Lets go of a quarter at a time, because finding the oldest means looking at all.
    fn shrink(&mut self, bytes: usize) {
        let mut by_age: Vec<(u64, PackId)> =
            self.packs.iter().map(|(id, (used, _))| (*used, *id)).collect();
        by_age.sort_unstable();
        by_age.pop();
        for (_, id) in by_age {
            if self.bytes <= bytes {
                return;
            }
            if let Some((_, pack)) = self.packs.remove(&id) {
                self.bytes -= pack.memory_bytes();
            }
        }
    }
}

impl PackCache {
    /// An empty cache.
    pub fn new() -> PackCache {
        PackCache::default()
    }

    /// The open pack, from the cache or the storage.
    ///
    /// # Errors
    /// As [`open_pack`].
    pub fn get(&self, storage: &dyn Storage, keys: &Keys, id: PackId) -> Result<Arc<OpenPack>> {
        let kept = lock(&self.kept).get(id);
        if let Some(pack) = kept {
            return Ok(pack);
        }
        // Opened outside the lock: two threads may read the same footer once each.
        let pack = Arc::new(open_pack(storage, keys, id)?);
        lock(&self.kept).insert(pack.clone(), FOOTER_BYTES_KEPT);
        Ok(pack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use diskvault_format::crypto::Secret;
    use diskvault_format::id::{LeaseId, RepositoryId};
    use diskvault_format::pack::{PackSecrets, PreparedSegment, assemble};
    use diskvault_format::segment::{EntryKind, SegmentEncoder};

    fn pack(number: u8, entries: usize) -> Arc<OpenPack> {
        let keys = Keys::derive(&Secret::new([1; 32]), RepositoryId([2; 16]));
        let kind = EntryKind::Chunk;
        let entries: Vec<Entry> =
            (0..entries).map(|_| Entry { id: [number; 32], kind, bytes: 1 }).collect();
        let mut plaintext = Vec::new();
        let data = vec![number; entries.len()];
        SegmentEncoder::new(3).unwrap().encode(&entries, &data, &mut plaintext).unwrap();
        let segments = vec![PreparedSegment { entries, anchors: Vec::new(), plaintext }];
        let secrets = PackSecrets {
            key: Secret::new([number; 32]),
            wrap_random: [number; 32],
            own_copy: None,
        };
        let lease = LeaseId([3; 16]);
        let sealed = assemble(&keys, PackKind::Data, lease, &secrets, segments).unwrap();
        let storage = crate::storage::memory::MemoryStorage::new();
        storage.put_new(&pack_name(sealed.id).unwrap(), &sealed.bytes).unwrap();
        Arc::new(open_pack(&storage, &keys, sealed.id).unwrap())
    }

    #[test]
    fn the_cache_is_bounded_by_bytes_and_lets_go_of_the_oldest() {
        let packs: Vec<_> = (1..=5).map(|number| pack(number, 100)).collect();
        let one = packs[0].memory_bytes();
        assert!(one > 100 * 32);
        let mut kept = Kept::default();
        for pack in &packs[..4] {
            kept.insert(pack.clone(), 4 * one);
        }
        assert!(kept.get(packs[0].id).is_some());
        kept.insert(packs[4].clone(), 4 * one);
        let are_kept = packs.iter().map(|pack| kept.packs.contains_key(&pack.id));
        assert_eq!(are_kept.collect::<Vec<_>>(), [true, false, false, true, true]);
        assert_eq!(kept.bytes, 3 * one);
        // One that is larger than the bound by itself is kept alone.
        let large = pack(5, 1000);
        kept.insert(large.clone(), 4 * one);
        assert_eq!((kept.packs.len(), kept.bytes), (1, large.memory_bytes()));
    }
}

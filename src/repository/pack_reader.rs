//! Reading packs: footers from their tails, segments by ranged reads.
//!
//! Invariants: a footer is believed only after its seal opened; memory is bounded by the number
//! of footers kept, not by the repository.

use super::objects::refused;
use super::{Repository, lock};
use crate::error::Result;
use crate::storage::{Folder, ObjectName, Storage};
use diskvault_format::crypto::Keys;
use diskvault_format::footer::Footer;
use diskvault_format::id::PackId;
use diskvault_format::limits::PACK_BYTES_MAX;
use diskvault_format::pack::{PackKind, PackOpener, TRAILER_BYTES, decode_trailer};
use diskvault_format::segment::{Entry, SegmentDecoder};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Bytes read from the tail at first: trailer and the footer of some 3,500 chunks, so that one
/// read serves packs of the default size.
const TAIL_BYTES: usize = 128 << 10;
/// Footers kept in memory: about 60 KiB each at the default sizes.
const FOOTERS_KEPT: usize = 128;

/// A pack whose footer is open.
pub struct OpenPack {
    /// The pack.
    pub id: PackId,
    /// Data or map.
    pub kind: PackKind,
    /// Size of the whole pack in bytes.
    pub bytes: u64,
    /// What it holds.
    pub footer: Footer,
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
    let opener =
        PackOpener::new(keys, trailer.kind, trailer.repository, &trailer.wrap).map_err(refuse)?;
    let wanted = trailer.footer_bytes as usize + TRAILER_BYTES;
    if wanted > tail.len() {
        debug_assert!(bytes <= PACK_BYTES_MAX);
        (tail, _) = storage.get_tail(&name, wanted)?;
    }
    let start = tail.len().saturating_sub(wanted);
    let end = tail.len().saturating_sub(TRAILER_BYTES);
    let footer = opener.open_footer(&trailer, &mut tail[start..end]).map_err(refuse)?;
    Ok(OpenPack { id, kind: trailer.kind, bytes, footer, opener })
}

impl OpenPack {
    /// Opens a stored segment in place and decodes it into `data`.
    ///
    /// # Errors
    /// `Damage`, naming pack and segment.
    pub fn decode_segment(
        &self,
        ordinal: u32,
        stored: &mut [u8],
        decoder: &mut SegmentDecoder,
        data: &mut Vec<u8>,
    ) -> Result<Vec<Entry>> {
        self.opener
            .open_segment(ordinal, stored)
            .and_then(|plaintext| decoder.decode(plaintext, data))
            .map_err(|cause| refused(format!("segment {ordinal} of pack {}", self.id), cause))
    }

    /// Reads and decodes one segment.
    ///
    /// # Errors
    /// As the storage, or `Damage`.
    pub fn read_segment(
        &self,
        storage: &dyn Storage,
        ordinal: u32,
        decoder: &mut SegmentDecoder,
        data: &mut Vec<u8>,
    ) -> Result<Vec<Entry>> {
        let segment = &self.footer.segments[ordinal as usize];
        let mut stored = vec![0; segment.stored_bytes() as usize];
        storage.get_range(&pack_name(self.id)?, u64::from(segment.offset), &mut stored)?;
        self.decode_segment(ordinal, &mut stored, decoder, data)
    }
}

/// Open packs, the most recently used ones kept.
pub struct PackCache {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    packs: HashMap<PackId, (u64, Arc<OpenPack>)>,
    clock: u64,
}

impl PackCache {
    /// An empty cache.
    pub fn new() -> PackCache {
        PackCache { kept: Mutex::new(Kept::default()) }
    }

    /// The open pack, from the cache or the storage.
    ///
    /// # Errors
    /// As [`open_pack`].
    pub fn get(&self, repository: &Repository, id: PackId) -> Result<Arc<OpenPack>> {
        {
            let mut kept = lock(&self.kept);
            kept.clock += 1;
            let now = kept.clock;
            if let Some((used, pack)) = kept.packs.get_mut(&id) {
                *used = now;
                return Ok(pack.clone());
            }
        }
        // Opened outside the lock: two threads may read the same footer once each.
        let pack = Arc::new(open_pack(repository.storage().as_ref(), repository.keys(), id)?);
        let mut kept = lock(&self.kept);
        if kept.packs.len() >= FOOTERS_KEPT
            && let Some(oldest) = kept.packs.iter().min_by_key(|(_, kept)| kept.0)
        {
            let oldest = *oldest.0;
            kept.packs.remove(&oldest);
        }
        let now = kept.clock;
        kept.packs.insert(id, (now, pack.clone()));
        Ok(pack)
    }
}

impl Default for PackCache {
    fn default() -> Self {
        Self::new()
    }
}

//! Reading one pack in full and verifying every byte.
//!
//! Invariant: a pack that is passed has the BLAKE3 of its name, zero padding, equal ends, and
//! every entry has the id by which it is found.

use super::Repository;
use super::objects::refused;
use super::pack_reader::{OpenPack, open_pack, pack_name};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{ObjectName, Storage};
use diskvault_format::footer::FooterSegment;
use diskvault_format::id::PackId;
use diskvault_format::pack::{HEADER_BYTES, decode_header, verify_ends, verify_gap};
use diskvault_format::segment::{Entry, EntryKind, SegmentDecoder};
use diskvault_format::splice::Splice;

/// Most bytes read at once of what is no segment.
const PIECE_BYTES: u64 = 1 << 20;

/// Takes the entries and the bytes of a segment, by its pack and number.
pub type SegmentSink<'a> = dyn Fn(PackId, u32, &[Entry], &[u8]) -> Result<()> + Sync + 'a;

/// Verifies one pack and returns its size; `taking` gets each segment that is whole. It is read once, from front to back, a segment at a
/// time, so a thread needs the memory of a segment and not that of a pack.
///
/// # Errors
/// `NotFound` if it is gone, `Damage` for the first thing that is wrong with it, or what the
/// storage says.
pub fn verify_pack(repository: &Repository, id: PackId, taking: &SegmentSink<'_>) -> Result<u64> {
    let storage = repository.storage().as_ref();
    let pack = open_pack(storage, repository.keys(), id);
    let name = pack_name(id)?;
    let gone = || Error::new(ErrorKind::NotFound, format!("cannot find {name}"));
    let bytes = storage.size(&name)?.ok_or_else(gone)?;
    let hasher = blake3::Hasher::new();
    let mut reading = Reading { storage, name: &name, position: 0, buffer: Vec::new(), hasher };
    let checked = pack.and_then(|pack| verify_parts(repository, &pack, &mut reading, taking));
    reading.take_rest(bytes)?;
    // Whatever else is wrong follows from this, if it is.
    if *reading.hasher.finalize().as_bytes() != id.0 {
        let text = "its bytes do not hash to its name (rule N-3)";
        return Err(Error::new(ErrorKind::Damage, text));
    }
    checked.map(|()| bytes)
}

/// A pack on its way from front to back, hashed as it passes.
struct Reading<'a> {
    storage: &'a dyn Storage,
    name: &'a ObjectName,
    position: u64,
    buffer: Vec<u8>,
    hasher: blake3::Hasher,
}

impl Reading<'_> {
    /// The next bytes.
    fn take(&mut self, bytes: usize) -> Result<&mut [u8]> {
        self.buffer.resize(bytes, 0);
        self.storage.get_range(self.name, self.position, &mut self.buffer)?;
        self.hasher.update(&self.buffer);
        self.position += bytes as u64;
        Ok(&mut self.buffer)
    }

    /// The bytes up to `end`, in pieces, each with the position behind it.
    fn take_up_to(&mut self, end: u64, each: &dyn Fn(&[u8], u64) -> Result<()>) -> Result<()> {
        while self.position < end {
            let bytes = (end - self.position).min(PIECE_BYTES);
            let behind = self.position + bytes;
            each(self.take(bytes as usize)?, behind)?;
        }
        Ok(())
    }

    fn take_rest(&mut self, end: u64) -> Result<()> {
        self.take_up_to(end, &|_, _| Ok(()))
    }
}

/// Verifies header, segments and what lies between them.
fn verify_parts(
    repository: &Repository,
    pack: &OpenPack,
    reading: &mut Reading<'_>,
    taking: &SegmentSink<'_>,
) -> Result<()> {
    let refuse = |cause| refused(format!("pack {}", pack.id), cause);
    let gap = |gap: &[u8], end| verify_gap(gap, end).map_err(refuse);
    let header = decode_header(reading.take(HEADER_BYTES)?).map_err(refuse)?;
    verify_ends(&header, &pack.trailer).map_err(refuse)?;
    let mut decoder = SegmentDecoder::new().map_err(refuse)?;
    let mut data = Vec::new();
    for (ordinal, segment) in pack.footer.segments.iter().enumerate() {
        reading.take_up_to(segment.offset.into(), &gap)?;
        let stored = reading.take(segment.stored_bytes() as usize)?;
        let table = pack.segments.decode(ordinal as u32, stored, &mut decoder, &mut data)?;
        let refuse = |cause| refused(format!("segment {ordinal} of pack {}", pack.id), cause);
        segment.verify_table(&table).map_err(refuse)?;
        verify_ids(repository, segment, &data)?;
        taking(pack.id, ordinal as u32, &segment.entries, &data)?;
    }
    reading.take_up_to(pack.trailer.footer_offset.into(), &gap)
}

/// The ids stand in the footer alone; what they promise is computed from the bytes.
fn verify_ids(repository: &Repository, segment: &FooterSegment, data: &[u8]) -> Result<()> {
    let mut start = 0;
    for entry in &segment.entries {
        let content = &data[start..start + entry.bytes as usize];
        start += entry.bytes as usize;
        let found = match entry.kind {
            EntryKind::Chunk => repository.keys().chunk_id(content).0,
            EntryKind::Page => repository.keys().page_id(content).0,
            // Put together and hashed as its pieces come by, or afterwards by `splices`.
            EntryKind::Splice => {
                let id = diskvault_format::id::to_hex(&entry.id);
                Splice::decode(content).map_err(|cause| refused(format!("splice {id}"), cause))?;
                continue;
            }
        };
        if found != entry.id {
            let id = diskvault_format::id::to_hex(&entry.id);
            let text = format!("entry {id} has bytes of another id (rule S-9)");
            return Err(Error::new(ErrorKind::Damage, text));
        }
    }
    Ok(())
}

//! Finding stored content at another phase of the grid: a file that was copied or moved lies where
//! its old chunks do not fit, but each of its new ones is the end of one old chunk and the start of
//! the next.
//!
//! Each new chunk has a place by which it is known, its anchor. Where two new chunks of a batch
//! have anchors that are stored, and both say that the batch lies at the same distance, the stored
//! chunks are read back and compared, from there in both directions.
//!
//! Invariants: a splice is given only for bytes that were compared, out of chunks that have the ids
//! they are listed under and may be built upon; whatever cannot be read is no match, never an
//! error; memory is a few segments.

use crate::chunking::anchor::place_of;
use crate::error::Result;
use crate::repository::Repository;
use crate::repository::entries::{Place, place_of_anchor};
use crate::repository::pack_reader::OpenPack;
use crate::repository::segment_cache::{DecodedSegment, StoredSegments};
use crate::repository::session::{Presence, Session};
use diskvault_format::id::{ChunkId, PackId};
use diskvault_format::pack::PackKind;
use diskvault_format::segment::EntryKind;
use diskvault_format::splice::{Piece, Splice};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Hits that have to agree before anything is read: a database's pages have anchors that are met
/// elsewhere by the thousand, but hardly two in a row. On six days of a server with a database
/// one hit would read 3,000 segments and two read 500, for 1 % more bytes.
const HITS_MIN: usize = 2;
/// A batch has fewer than 32 chunks of this size, hence too few anchors to agree; but one anchor
/// stands for more bytes.
const LARGE_BYTES: usize = 256 << 10;
/// Most pieces of a splice that is made: more means that what it builds upon is scattered.
const PIECES_MAX: usize = 4;
/// Decoded segments kept, of up to 4 MiB each: a run of displaced chunks reads one or two at once.
const SEGMENTS_KEPT: usize = 4;

/// A new chunk of a batch.
pub struct Candidate<'a> {
    /// Where it starts, in bytes from the start of the batch.
    pub offset: usize,
    /// Its bytes.
    pub data: &'a [u8],
    /// Its anchor, if it has one.
    pub anchor: Option<u64>,
}

/// Finds displaced content, for all workers.
pub struct Displaced {
    /// False for a writer that may not read: it could compare nothing.
    may_read: bool,
    presence: Arc<Presence>,
    stored: StoredSegments,
}

/// The entries of a pack as one string of bytes, which a batch may be a part of.
struct Track {
    pack: Arc<OpenPack>,
    /// Byte of the track at which the batch would begin; may lie before it.
    start: i64,
    /// The candidates that say so.
    hits: Vec<usize>,
}

impl Displaced {
    /// One for this session.
    pub fn new(repository: &Repository, session: &Session<'_>) -> Displaced {
        let stored = StoredSegments::new(repository, session.locator().packs(), SEGMENTS_KEPT);
        let may_read = repository.own_copies().is_none();
        Displaced { may_read, presence: session.presence().clone(), stored }
    }

    /// What each of the candidates consists of, where that is known. They are of one batch, and
    /// cut into chunks of `chunk_bytes`.
    ///
    /// # Errors
    /// What the index says.
    pub fn find(
        &self,
        candidates: &[Candidate<'_>],
        chunk_bytes: usize,
    ) -> Result<Vec<Option<Splice>>> {
        let mut found: Vec<Option<Splice>> = candidates.iter().map(|_| None).collect();
        if !self.may_read {
            return Ok(found);
        }
        let mut trusted = HashSet::new();
        let hits_min = if chunk_bytes < LARGE_BYTES { HITS_MIN } else { 1 };
        for track in self.tracks(candidates, hits_min)? {
            for hit in &track.hits {
                if found[*hit].is_some() {
                    continue;
                }
                // One that fails where both anchors fit is no copy; its neighbours hardly are.
                let Some(splice) = self.compare(&track, &candidates[*hit], &mut trusted)? else {
                    break;
                };
                found[*hit] = Some(splice);
                let before = (0..*hit).rev();
                self.extend(&track, candidates, before, &mut found, &mut trusted)?;
                let behind = hit + 1..candidates.len();
                self.extend(&track, candidates, behind, &mut found, &mut trusted)?;
            }
        }
        Ok(found)
    }

    /// The places that enough candidates agree on, best first.
    fn tracks(&self, candidates: &[Candidate<'_>], hits_min: usize) -> Result<Vec<Track>> {
        let mut hits = Vec::new();
        for (number, candidate) in candidates.iter().enumerate() {
            let Some(value) = candidate.anchor else { continue };
            if let Some(place) = place_of_anchor(self.presence.index(), value)? {
                hits.push((number, value, place));
            }
        }
        let mut by_pack: BTreeMap<PackId, usize> = BTreeMap::new();
        for (_, _, place) in &hits {
            *by_pack.entry(place.pack).or_default() += 1;
        }
        let mut tracks: BTreeMap<(PackId, i64), Track> = BTreeMap::new();
        for (number, value, place) in hits {
            // Hits that cannot agree are not worth a footer.
            if by_pack[&place.pack] < hits_min {
                continue;
            }
            let Some((pack, start)) = self.start_at(&candidates[number], value, place) else {
                continue;
            };
            let track = tracks.entry((pack.id, start));
            track.or_insert_with(|| Track { pack, start, hits: Vec::new() }).hits.push(number);
        }
        let mut tracks: Vec<Track> =
            tracks.into_values().filter(|track| track.hits.len() >= hits_min).collect();
        tracks.sort_by_key(|track| std::cmp::Reverse(track.hits.len()));
        Ok(tracks)
    }

    /// Where the batch would begin if the candidate's anchor is the one at a place.
    fn start_at(
        &self,
        candidate: &Candidate<'_>,
        value: u64,
        place: Place,
    ) -> Option<(Arc<OpenPack>, i64)> {
        let opened = self.stored.pack(place.pack);
        let pack = opened.ok().filter(|pack| pack.kind == PackKind::Data)?;
        let segments = &pack.footer.segments;
        let segment = segments.get(place.segment as usize)?;
        let anchor =
            segment.anchors.binary_search_by_key(&place.slot, |anchor| anchor.slot).ok()?;
        let stored_at = place_of(segment.anchors[anchor].value);
        let chunk_bytes = segment.entries[place.slot as usize].bytes as usize;
        if stored_at == place_of(value) && chunk_bytes == candidate.data.len() {
            // Changed where it is: were all of it the same, its id would have been found.
            return None;
        }
        let whole: u64 =
            segments[..place.segment as usize].iter().map(|s| bytes_of(s.raw_bytes())).sum();
        let before = segment.entries[..place.slot as usize].iter();
        let before: u64 = before.map(|entry| bytes_of(entry.bytes)).sum();
        let stored = (whole + before) as i64 + i64::from(stored_at);
        let start = stored - candidate.offset as i64 - i64::from(place_of(value));
        Some((pack, start))
    }

    /// Compares candidates as long as they follow the track.
    fn extend(
        &self,
        track: &Track,
        candidates: &[Candidate<'_>],
        numbers: impl Iterator<Item = usize>,
        found: &mut [Option<Splice>],
        trusted: &mut HashSet<ChunkId>,
    ) -> Result<()> {
        for number in numbers {
            if found[number].is_some() {
                return Ok(());
            }
            match self.compare(track, &candidates[number], trusted)? {
                Some(splice) => found[number] = Some(splice),
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// The pieces of the track at which the candidate would lie, if they are its bytes.
    fn compare(
        &self,
        track: &Track,
        candidate: &Candidate<'_>,
        trusted: &mut HashSet<ChunkId>,
    ) -> Result<Option<Splice>> {
        let Ok(mut start) = u64::try_from(track.start + candidate.offset as i64) else {
            return Ok(None);
        };
        let mut rest = candidate.data;
        let mut pieces = Vec::new();
        let segments = &track.pack.footer.segments;
        for (ordinal, segment) in (0..).zip(segments) {
            if rest.is_empty() || pieces.len() > PIECES_MAX {
                break;
            }
            let bytes = bytes_of(segment.raw_bytes());
            if start >= bytes {
                start -= bytes;
                continue;
            }
            let read = self.stored.segment(&track.pack, ordinal);
            let Ok(decoded) = read else { return Ok(None) };
            for (slot, entry) in (0..).zip(&segment.entries) {
                if start >= bytes_of(entry.bytes) {
                    start -= bytes_of(entry.bytes);
                    continue;
                }
                let stored = decoded.entry(slot).map(|(_, stored)| stored).unwrap_or_default();
                let Some(stored) = stored.get(start as usize..) else { return Ok(None) };
                let bytes = stored.len().min(rest.len());
                if entry.kind != EntryKind::Chunk || stored[..bytes] != rest[..bytes] {
                    return Ok(None);
                }
                let piece =
                    Piece { chunk: ChunkId(entry.id), offset: start as u32, bytes: bytes as u32 };
                if !self.may_build_upon(&decoded, slot, piece.chunk, trusted)? {
                    return Ok(None);
                }
                pieces.push(piece);
                (rest, start) = (&rest[bytes..], 0);
                if rest.is_empty() || pieces.len() > PIECES_MAX {
                    break;
                }
            }
        }
        if !rest.is_empty() || pieces.len() > PIECES_MAX {
            return Ok(None);
        }
        Ok(Splice::new(pieces).ok())
    }

    /// True if a stored chunk has the id it is listed under, and is present.
    fn may_build_upon(
        &self,
        decoded: &DecodedSegment,
        slot: u32,
        id: ChunkId,
        trusted: &mut HashSet<ChunkId>,
    ) -> Result<bool> {
        if trusted.contains(&id) {
            return Ok(true);
        }
        let fits =
            decoded.entry(slot).is_some_and(|(_, data)| self.stored.keys().chunk_id(data) == id);
        let is_sound = fits && self.presence.contains_bytes(&id.0)?;
        if is_sound {
            trusted.insert(id);
        }
        Ok(is_sound)
    }
}

fn bytes_of(bytes: u32) -> u64 {
    u64::from(bytes)
}

//! Planning reads: which segments hold what is wanted, and what each is read for.
//!
//! Invariants: a segment is read once for all that needs it; chunks that are put together out of
//! several segments and so wait for each other take a bounded part of memory, the others are left
//! for another round.

use super::fetch::Wanted;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;
use crate::repository::entries::{Place, places_of};
use crate::repository::locate::{Found, Locator};
use crate::repository::lock;
use crate::repository::pack_reader::{OpenPack, PackSegments};
use diskvault_format::id::{ChunkId, PackId};
use diskvault_format::splice::Splice;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

/// Two segments of a pack are read with one call if at most this many bytes lie between them.
const GAP_BYTES_MAX: u64 = 64 << 10;
/// Most bytes of one read.
const READ_BYTES_MAX: u64 = 4 << 20;
/// Most bytes of chunks that are put together out of several segments in one round. Of chunks that
/// are displaced by the same distance one in 128 is, at the default sizes.
const SPREAD_BYTES_MAX: usize = 16 << 20;

/// What is to be done with an entry of a segment.
pub(super) enum Goal {
    /// It is wanted.
    Whole(Wanted),
    /// A piece of it is.
    Piece {
        /// The chunk that the piece belongs to.
        assembly: Arc<Assembly>,
        /// Which piece.
        number: usize,
    },
}

/// A chunk that is put together.
pub(super) struct Assembly {
    /// What it will be.
    pub item: Wanted,
    /// What it consists of.
    pub splice: Splice,
    state: Mutex<Unfinished>,
}

struct Unfinished {
    bytes: Vec<u8>,
    missing: usize,
}

impl Assembly {
    fn new(item: Wanted, splice: Splice) -> Assembly {
        let missing = splice.pieces().len();
        let state = Mutex::new(Unfinished { bytes: Vec::new(), missing });
        Assembly { item, splice, state }
    }

    /// True once all pieces are in.
    pub fn is_done(&self) -> bool {
        lock(&self.state).missing == 0
    }

    /// Puts piece `number` in; the chunk if that was the last.
    pub fn add(&self, number: usize, piece: &[u8]) -> Option<Vec<u8>> {
        let before = &self.splice.pieces()[..number];
        let start = before.iter().map(|piece| piece.bytes as usize).sum::<usize>();
        let mut state = lock(&self.state);
        // Taken with the first piece and given away with the last.
        state.bytes.resize(self.splice.chunk_bytes() as usize, 0);
        state.bytes[start..start + piece.len()].copy_from_slice(piece);
        state.missing -= 1;
        (state.missing == 0).then(|| std::mem::take(&mut state.bytes))
    }
}

/// One segment: where it lies, and what it is read for. It holds on to no footer: a window over
/// scattered chunks can touch thousands of packs.
pub(super) struct WantedSegment {
    /// What opens it.
    pub pack: Arc<PackSegments>,
    /// Its number in the pack.
    pub ordinal: u32,
    /// Offset of its frame in the pack.
    pub offset: u64,
    /// Frame, ciphertext and tag.
    pub stored_bytes: usize,
    /// Slots, and what each is for.
    pub uses: Vec<(u32, Goal)>,
}

/// One read: neighbouring segments of one pack.
pub(super) struct ReadRun {
    /// The pack.
    pub pack: Arc<PackSegments>,
    /// Where it starts.
    pub start: u64,
    /// How long it is.
    pub bytes: u64,
    /// The segments in it.
    pub segments: Vec<WantedSegment>,
}

/// Reads for a round, in pack order, and what is left for the next.
pub(super) struct Plan {
    /// The reads.
    pub runs: Vec<ReadRun>,
    /// Wanted and not planned.
    pub deferred: Vec<(Wanted, Option<Splice>)>,
}

struct Planner<'a> {
    repository: &'a Repository,
    locator: &'a Locator,
    by_pack: HashMap<PackId, Vec<(Place, Goal)>>,
    deferred: Vec<(Wanted, Option<Splice>)>,
    spread_bytes: usize,
}

/// Finds every chunk and groups them into reads.
///
/// # Errors
/// `Damage` for a chunk that no pack holds.
pub(super) fn plan_reads(
    repository: &Repository,
    locator: &Locator,
    wanted: Vec<(Wanted, Option<Splice>)>,
) -> Result<Plan> {
    let mut planner = Planner {
        repository,
        locator,
        by_pack: HashMap::new(),
        deferred: Vec::new(),
        spread_bytes: 0,
    };
    for (item, splice) in wanted {
        match splice {
            Some(splice) => planner.add_splice(item, splice)?,
            None => planner.add(item)?,
        }
    }
    planner.group()
}

impl Planner<'_> {
    fn add(&mut self, item: Wanted) -> Result<()> {
        let places = places_of(self.locator.index(), &item.id.0)?;
        let Some(first) = places.first() else { return Err(missing(item.id, &item)) };
        if !first.is_splice {
            self.by_pack.entry(first.pack).or_default().push((*first, Goal::Whole(item)));
            return Ok(());
        }
        let mut first_error = None;
        for place in &places {
            match self.locator.splices().read(item.id, place) {
                Ok(splice) => return self.add_splice(item, splice),
                Err(error) => {
                    self.locator.met_damaged(place.pack);
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| missing(item.id, &item)))
    }

    fn add_splice(&mut self, item: Wanted, splice: Splice) -> Result<()> {
        if splice.chunk_bytes() != item.bytes {
            let why = "its pieces have another length (rules M-8 and T-7)";
            let text = format!("cannot use chunk {} at offset {}: {why}", item.id, item.offset);
            return Err(Error::new(ErrorKind::Damage, text));
        }
        let mut places = Vec::with_capacity(splice.pieces().len());
        for piece in splice.pieces() {
            let found = places_of(self.locator.index(), &piece.chunk.0)?;
            let stored = found.into_iter().find(|place| !place.is_splice);
            places.push(stored.ok_or_else(|| missing(piece.chunk, &item))?);
        }
        let is_spread = places
            .windows(2)
            .any(|two| (two[0].pack, two[0].segment) != (two[1].pack, two[1].segment));
        if is_spread {
            if self.spread_bytes >= SPREAD_BYTES_MAX {
                self.deferred.push((item, Some(splice)));
                return Ok(());
            }
            self.spread_bytes += item.bytes as usize;
        }
        let assembly = Arc::new(Assembly::new(item, splice));
        for (number, place) in places.into_iter().enumerate() {
            let goal = Goal::Piece { assembly: assembly.clone(), number };
            self.by_pack.entry(place.pack).or_default().push((place, goal));
        }
        Ok(())
    }

    fn group(self) -> Result<Plan> {
        let mut packs: Vec<_> = self.by_pack.into_iter().collect();
        packs.sort_unstable_by_key(|(id, _)| *id);
        let mut grouped: BTreeMap<(PackId, u32), WantedSegment> = BTreeMap::new();
        for (id, items) in packs {
            let pack = self.locator.pack(self.repository, id).ok();
            for (place, goal) in items {
                let found = verify_place(self.repository, self.locator, &pack, &place, &goal)?;
                let segment = grouped.entry((found.pack.id, found.segment)).or_insert_with(|| {
                    let described = &found.pack.footer.segments[found.segment as usize];
                    WantedSegment {
                        pack: found.pack.segments.clone(),
                        ordinal: found.segment,
                        offset: u64::from(described.offset),
                        stored_bytes: described.stored_bytes() as usize,
                        uses: Vec::new(),
                    }
                });
                segment.uses.push((found.slot, goal));
            }
        }
        Ok(Plan { runs: coalesce(grouped), deferred: self.deferred })
    }
}

/// The place if the footer agrees, another one otherwise.
fn verify_place(
    repository: &Repository,
    locator: &Locator,
    pack: &Option<Arc<OpenPack>>,
    place: &Place,
    goal: &Goal,
) -> Result<Found> {
    let (id, item) = match goal {
        Goal::Whole(item) => (item.id, item),
        Goal::Piece { assembly, number } => {
            (assembly.splice.pieces()[*number].chunk, &assembly.item)
        }
    };
    if let Some(pack) = pack
        && pack.entry(place.segment, place.slot).is_some_and(|entry| entry.id == id.0)
    {
        return Ok(Found { pack: pack.clone(), segment: place.segment, slot: place.slot });
    }
    locator.find(repository, &id.0)?.ok_or_else(|| missing(id, item))
}

/// The error for a chunk that cannot be used as it is.
pub(super) fn refuse_chunk(pack: PackId, item: &Wanted, why: &str) -> Error {
    let (id, offset) = (item.id, item.offset);
    let text = format!("cannot use chunk {id} at offset {offset} from pack {pack}: {why}");
    Error::new(ErrorKind::Damage, text)
}

fn missing(id: ChunkId, item: &Wanted) -> Error {
    let text = format!("cannot find chunk {id} at offset {}: no pack holds it", item.offset);
    Error::new(ErrorKind::Damage, text)
}

fn coalesce(grouped: BTreeMap<(PackId, u32), WantedSegment>) -> Vec<ReadRun> {
    let mut runs: Vec<ReadRun> = Vec::new();
    for mut segment in grouped.into_values() {
        segment.uses.sort_unstable_by_key(|(slot, goal)| {
            let offset = match goal {
                Goal::Whole(item) => item.offset,
                Goal::Piece { assembly, .. } => assembly.item.offset,
            };
            (*slot, offset)
        });
        let (start, bytes) = (segment.offset, segment.stored_bytes as u64);
        if let Some(run) = runs.last_mut() {
            let run_end = run.start + run.bytes;
            let is_near = start >= run_end && start - run_end <= GAP_BYTES_MAX;
            let end = start + bytes;
            if run.pack.id == segment.pack.id && is_near && end - run.start <= READ_BYTES_MAX {
                run.bytes = end - run.start;
                run.segments.push(segment);
                continue;
            }
        }
        runs.push(ReadRun { pack: segment.pack.clone(), start, bytes, segments: vec![segment] });
    }
    runs
}

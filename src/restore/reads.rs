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
use diskvault_format::splice::{Piece, Splice};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

/// Two segments of a pack are read with one call if at most this many bytes lie between them.
const GAP_BYTES_MAX: u64 = 64 << 10;
/// Most bytes of one read.
const READ_BYTES_MAX: u64 = 4 << 20;
/// Most bytes of chunks that are put together out of several segments in one round. Of chunks that
/// are displaced by the same distance one in 128 is, at the default sizes.
const SPREAD_BYTES_MAX: usize = 16 << 20;

/// A chunk to be got.
pub(super) struct Request {
    /// Which, and where to.
    pub item: Wanted,
    /// The splice to put it together by, and by nothing else; any way will do if `None`.
    pub splice: Option<Splice>,
    /// A round before left it, because it is spread over segments.
    waited: bool,
}

impl Request {
    /// For a chunk by whatever way there is, or by this splice alone.
    pub fn new(item: Wanted, splice: Option<Splice>) -> Request {
        Request { item, splice, waited: false }
    }
}

/// What is to be done with an entry of a segment.
pub(super) enum Goal {
    /// It is wanted.
    Whole(Wanted),
    /// It and others of the same segment have the pieces of a chunk.
    Local {
        /// The chunk.
        assembly: Arc<Assembly>,
        /// The entry of each piece.
        slots: Vec<u32>,
    },
    /// A piece of it is of a chunk that is spread over segments.
    Piece {
        /// The chunk.
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
    /// True if it may come by this splice alone.
    pub is_exclusive: bool,
    state: Mutex<Unfinished>,
}

struct Unfinished {
    bytes: Vec<u8>,
    missing: usize,
    is_over: bool,
}

impl Assembly {
    fn new(item: Wanted, splice: Splice, is_exclusive: bool) -> Assembly {
        let missing = splice.pieces().len();
        let state = Mutex::new(Unfinished { bytes: Vec::new(), missing, is_over: false });
        Assembly { item, splice, is_exclusive, state }
    }

    /// Nothing more is done about it; true for the first who says so.
    pub fn end(&self) -> bool {
        let mut state = lock(&self.state);
        state.bytes = Vec::new();
        !std::mem::replace(&mut state.is_over, true)
    }

    /// Takes back that it was over with its last piece: what it was, was refused.
    pub fn begin_again(&self) {
        lock(&self.state).is_over = false;
    }

    /// True if nothing more is to be done about it.
    pub fn is_over(&self) -> bool {
        lock(&self.state).is_over
    }

    /// Puts piece `number` in; the chunk if that was the last.
    pub fn add(&self, number: usize, piece: &[u8]) -> Option<Vec<u8>> {
        let before = &self.splice.pieces()[..number];
        let start = before.iter().map(|piece| piece.bytes as usize).sum::<usize>();
        let mut state = lock(&self.state);
        if state.is_over {
            return None;
        }
        // Taken with the first piece and given away with the last.
        state.bytes.resize(self.splice.chunk_bytes() as usize, 0);
        state.bytes[start..start + piece.len()].copy_from_slice(piece);
        state.missing -= 1;
        state.is_over = state.missing == 0;
        state.is_over.then(|| std::mem::take(&mut state.bytes))
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
    /// Put together by these reads.
    pub assemblies: Vec<Arc<Assembly>>,
    /// What no pack holds where the index says, and what is to be said then.
    pub failed: Vec<(Goal, Error)>,
    /// Wanted and not planned.
    pub deferred: Vec<Request>,
}

struct Planner<'a> {
    repository: &'a Repository,
    locator: &'a Locator,
    by_pack: HashMap<PackId, Vec<(Place, Goal)>>,
    assemblies: Vec<Arc<Assembly>>,
    failed: Vec<(Goal, Error)>,
    deferred: Vec<Request>,
    spread_bytes: usize,
}

/// Finds every chunk and groups them into reads.
///
/// # Errors
/// `Damage` for a chunk that no pack holds in any way.
pub(super) fn plan_reads(
    repository: &Repository,
    locator: &Locator,
    wanted: Vec<Request>,
) -> Result<Plan> {
    let mut planner = Planner {
        repository,
        locator,
        by_pack: HashMap::new(),
        assemblies: Vec::new(),
        failed: Vec::new(),
        deferred: Vec::new(),
        spread_bytes: 0,
    };
    for request in wanted {
        // Without a look-up, or each round would look up all that are left.
        if request.waited && planner.spread_bytes >= SPREAD_BYTES_MAX {
            planner.deferred.push(request);
        } else {
            planner.add(request)?;
        }
    }
    planner.group()
}

impl Planner<'_> {
    fn add(&mut self, request: Request) -> Result<()> {
        let item = request.item;
        if let Some(splice) = request.splice {
            match self.places_of_pieces(&item, &splice) {
                Ok(places) => self.add_splice(item, splice, places, true),
                Err(error) if error.kind().is_finding() => {
                    let assembly = Arc::new(Assembly::new(item, splice, true));
                    self.failed.push((Goal::Piece { assembly, number: 0 }, error));
                }
                Err(error) => return Err(error),
            }
            return Ok(());
        }
        match self.add_known(item) {
            // A prune may have taken away what held it, and have put it elsewhere.
            Err(error)
                if error.kind().is_finding() && self.locator.look_again(self.repository)? =>
            {
                self.add_known(item)
            }
            added => added,
        }
    }

    fn add_known(&mut self, item: Wanted) -> Result<()> {
        let places = places_of(self.locator.index(), &item.id.0)?;
        // Rather from a pack that may be built upon: others may list an id beside other bytes.
        let trust = self.locator.trust();
        let whole = || places.iter().filter(|place| !place.is_splice);
        match whole().find(|place| trust.counts(place)).or_else(|| whole().next()) {
            Some(first) => {
                self.by_pack.entry(first.pack).or_default().push((*first, Goal::Whole(item)));
                Ok(())
            }
            _ => self.add_by_splice(item, &places),
        }
    }

    /// The first splice whose pieces are all there: another copy may have lost some.
    fn add_by_splice(&mut self, item: Wanted, places: &[Place]) -> Result<()> {
        let mut first_error = None;
        for place in places.iter().filter(|place| place.is_splice) {
            let read = self.locator.splices().read(item.id, place);
            if read.is_err() {
                self.locator.met_damaged(place.pack);
            }
            let found =
                read.and_then(|splice| Ok((self.places_of_pieces(&item, &splice)?, splice)));
            match found {
                Ok((pieces, splice)) => {
                    self.add_splice(item, splice, pieces, false);
                    return Ok(());
                }
                Err(error) if error.kind().is_finding() => _ = first_error.get_or_insert(error),
                Err(error) => return Err(error),
            }
        }
        Err(first_error.unwrap_or_else(|| missing(&item)))
    }

    /// Where the chunks of a splice's pieces are.
    fn places_of_pieces(&self, item: &Wanted, splice: &Splice) -> Result<Vec<Place>> {
        if splice.chunk_bytes() != item.bytes {
            let why = "its pieces have another length (rules M-8 and T-7)";
            let text = format!("cannot use chunk {} at offset {}: {why}", item.id, item.offset);
            return Err(Error::new(ErrorKind::Damage, text));
        }
        let place = |piece: &Piece| {
            let found = places_of(self.locator.index(), &piece.chunk.0)?;
            let stored = found.into_iter().find(|place| !place.is_splice);
            stored.ok_or_else(|| missing_piece(piece.chunk, item))
        };
        splice.pieces().iter().map(place).collect()
    }

    fn add_splice(&mut self, item: Wanted, splice: Splice, places: Vec<Place>, is_exclusive: bool) {
        let segment = |place: &Place| (place.pack, place.segment);
        let is_spread = places.iter().any(|place| segment(place) != segment(&places[0]));
        if is_spread {
            if self.spread_bytes >= SPREAD_BYTES_MAX {
                let splice = is_exclusive.then_some(splice);
                self.deferred.push(Request { item, splice, waited: true });
                return;
            }
            self.spread_bytes += item.bytes as usize;
        }
        let assembly = Arc::new(Assembly::new(item, splice, is_exclusive));
        self.assemblies.push(assembly.clone());
        if !is_spread {
            let slots = places.iter().map(|place| place.slot).collect();
            let goal = Goal::Local { assembly, slots };
            self.by_pack.entry(places[0].pack).or_default().push((places[0], goal));
            return;
        }
        for (number, place) in places.into_iter().enumerate() {
            let goal = Goal::Piece { assembly: assembly.clone(), number };
            self.by_pack.entry(place.pack).or_default().push((place, goal));
        }
    }

    fn group(mut self) -> Result<Plan> {
        let mut packs: Vec<_> = std::mem::take(&mut self.by_pack).into_iter().collect();
        packs.sort_unstable_by_key(|(id, _)| *id);
        let mut grouped: BTreeMap<(PackId, u32), WantedSegment> = BTreeMap::new();
        for (id, items) in packs {
            let pack = self.locator.pack(self.repository, id).ok();
            for (place, goal) in items {
                let Some(found) = self.verify(pack.as_ref(), &place, &goal) else {
                    let error = not_there(&goal);
                    self.failed.push((goal, error));
                    continue;
                };
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
        let Planner { assemblies, failed, deferred, .. } = self;
        Ok(Plan { runs: coalesce(grouped), assemblies, failed, deferred })
    }

    /// The place if the footer agrees; for a single chunk another one otherwise.
    fn verify(&self, pack: Option<&Arc<OpenPack>>, place: &Place, goal: &Goal) -> Option<Found> {
        let found = |pack: &Arc<OpenPack>| {
            let (segment, slot) = (place.segment, place.slot);
            Some(Found { pack: pack.clone(), segment, slot })
        };
        let id = match goal {
            Goal::Whole(item) => item.id,
            Goal::Piece { assembly, number } => assembly.splice.pieces()[*number].chunk,
            Goal::Local { assembly, slots } => {
                let holds = |(piece, slot): (&Piece, &u32)| {
                    let place = Place { slot: *slot, ..*place };
                    pack.is_some_and(|pack| place.is_held_by(pack, &piece.chunk.0))
                };
                let is_there = assembly.splice.pieces().iter().zip(slots).all(holds);
                return pack.filter(|_| is_there).and_then(found);
            }
        };
        if let Some(pack) = pack.filter(|pack| place.is_held_by(pack, &id.0)) {
            return found(pack);
        }
        let others = places_of(self.locator.index(), &id.0).ok()?;
        others
            .iter()
            .filter(|place| !place.is_splice)
            .find_map(|place| self.locator.found_at(self.repository, &id.0, place).ok().flatten())
    }
}

/// The error for a chunk that cannot be used as it is.
pub(super) fn refuse_chunk(pack: PackId, item: &Wanted, why: &str) -> Error {
    let (id, offset) = (item.id, item.offset);
    let text = format!("cannot use chunk {id} at offset {offset} from pack {pack}: {why}");
    Error::new(ErrorKind::Damage, text)
}

fn missing(item: &Wanted) -> Error {
    let text = format!("cannot find chunk {} at offset {}: no pack holds it", item.id, item.offset);
    Error::new(ErrorKind::Damage, text)
}

/// What is to be said of a goal whose chunk is not where the index says.
fn not_there(goal: &Goal) -> Error {
    match goal {
        Goal::Whole(item) => missing(item),
        Goal::Local { assembly, .. } => {
            missing_piece(assembly.splice.pieces()[0].chunk, &assembly.item)
        }
        Goal::Piece { assembly, number } => {
            missing_piece(assembly.splice.pieces()[*number].chunk, &assembly.item)
        }
    }
}

fn missing_piece(piece: ChunkId, item: &Wanted) -> Error {
    let (id, offset) = (item.id, item.offset);
    let text = format!("cannot put together chunk {id} at offset {offset}");
    let why = format!("it has a piece of chunk {piece}, and no pack holds it");
    Error::new(ErrorKind::Damage, format!("{text}: {why}"))
}

fn coalesce(grouped: BTreeMap<(PackId, u32), WantedSegment>) -> Vec<ReadRun> {
    let mut runs: Vec<ReadRun> = Vec::new();
    for mut segment in grouped.into_values() {
        segment.uses.sort_unstable_by_key(|(slot, goal)| {
            let offset = match goal {
                Goal::Whole(item) => item.offset,
                Goal::Local { assembly, .. } | Goal::Piece { assembly, .. } => assembly.item.offset,
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

//! Backing up a disk of which somebody says what has changed: only that is read, the rest is taken
//! over from an earlier point, and some of it is read all the same.
//!
//! Invariants: a hint counts only if it is about this disk as the base has it, on its grid, and
//! everything the base needs is stored; the map is that of a full read if the hint was right; a hint
//! that one read byte contradicts does not count at all; what was taken over is recorded.

use super::Context;
use super::assembler::{Assembled, Base};
use super::automatic;
use super::digests::Digests;
use super::disk::{DiskRequest, Selected, run_pipeline};
use super::examine::Work;
use super::hint::{Hint, Reading, Reread};
use super::planner::Planned;
use crate::chunking::is_zero;
use crate::environment::random_array;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::complete::find_missing;
use crate::repository::map_reader::{LeafCursor, MapReader};
use crate::source::changes::{OPEN_END, join};
use crate::source::journals::journal_starts;
use crate::source::{DiskSource, Extent, ExtentKind, partition_layout};
use diskvault_format::limits::{BAD_EXTENTS_MAX, LEAF_SLOTS};
use diskvault_format::manifest::{ByteRange, Chunking, DiskRecord};
use diskvault_format::map::{LeafSlot, MapShape};
use diskvault_format::tracking::Tracking;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Chunks that are read at random of what is said to be unchanged, whatever time that takes: of a
/// disk in which one chunk in a hundred is wrong, 300 find one with 95 %.
const SAMPLE_MIN: u64 = 300;
/// Most of them, if they take less than [`LOOK_TIME`]: one in a thousand is found with 95 %.
const SAMPLE_MAX: u64 = 3000;
/// Time that reading at random may take beyond the least number, and reading in turn always may.
const LOOK_TIME: Duration = Duration::from_secs(1);
/// Partition tables, superblocks and the heads of file systems and of their journals change whenever a
/// guest runs: so much of both ends of a disk, of the beginning of each partition and of what
/// [`journal_starts`] finds there is always read.
const HEAD_BYTES: u64 = 1 << 20;

/// What came of a hint.
#[derive(Default)]
pub(super) struct Hinted {
    /// The map; none if the disk is to be read in full.
    pub read: Option<(Planned, Assembled)>,
    /// What was taken over unread, for the record.
    pub inherited: Vec<ByteRange>,
    pub tracking: Option<Tracking>,
}

/// Reads a disk by its hint, if it has one that counts.
///
/// # Errors
/// As a full read. What is wrong with a hint is a warning, and in the record.
pub(super) fn read(
    context: &mut Context<'_>,
    work: &Arc<Work>,
    reader: &MapReader<'_>,
    request: &DiskRequest<'_>,
) -> Result<Hinted> {
    let Reading::ByHints(reread) = request.reading else { return Ok(Hinted::default()) };
    let hint = match &request.hint {
        Some(hint) => hint.clone(),
        None => match automatic::find(context, request)? {
            Some(hint) => Arc::new(hint),
            None => return Ok(Hinted::default()),
        },
    };
    let refusal = match by_hint(context, work, reader, request, (&hint, reread)) {
        Ok(Ok(hinted)) => return Ok(hinted),
        Ok(Err(refusal)) => refusal,
        // A map of the base that cannot be read; a full read meets what else there is.
        Err(error) if error.kind().is_finding() => Refusal::Unfit(error.full_text()),
        Err(error) => return Err(error),
    };
    let refused = match refusal {
        // Nobody asked for it, and nothing is wrong.
        Refusal::Unfit(_) if request.hint.is_none() => return Ok(Hinted::default()),
        Refusal::Unfit(text) | Refusal::Lie(text) => text,
    };
    let tracking = Some(refuse(context, request, &hint, refused));
    Ok(Hinted { tracking, ..Hinted::default() })
}

/// Why a hint does not count.
enum Refusal {
    /// It cannot be used here.
    Unfit(String),
    /// What was read contradicts it.
    Lie(String),
}

/// Says that a hint does not count, and why; for the record, too.
fn refuse(
    context: &Context<'_>,
    request: &DiskRequest<'_>,
    hint: &Hint,
    refused: String,
) -> Tracking {
    let (name, told_by) = (request.name.escape_debug(), &hint.told_by);
    let text = format!("disk {name} is read in full: {told_by} does not count: {refused}");
    context.monitor.warn(&text);
    refused_record(request, hint, refused)
}

/// The record of a hint that does not count.
fn refused_record(request: &DiskRequest<'_>, hint: &Hint, refused: String) -> Tracking {
    Tracking {
        hint: hint.told_by.clone(),
        refused,
        round_unix_ns: request.time_unix_ns,
        proven_unix_ns: request.time_unix_ns,
        ..Tracking::default()
    }
}

/// What the point says of the hint about a disk that is cut by its content, and so read in full.
///
/// # Errors
/// What looking for a hint that nobody gave returns.
pub(super) fn of_content(
    context: &Context<'_>,
    request: &DiskRequest<'_>,
) -> Result<Option<Tracking>> {
    if request.reading == Reading::Full {
        return Ok(None);
    }
    let refused = "it is cut by its content".to_string();
    Ok(match &request.hint {
        Some(hint) => Some(refuse(context, request, hint, refused)),
        // Nobody asked for it: the point says so, and no warning is made of each backup.
        None => {
            automatic::find(context, request)?.map(|hint| refused_record(request, &hint, refused))
        }
    })
}

fn by_hint(
    context: &mut Context<'_>,
    work: &Arc<Work>,
    reader: &MapReader<'_>,
    request: &DiskRequest<'_>,
    (hint, reread): (&Hint, Reread),
) -> Result<Result<Hinted, Refusal>> {
    let disk = match base_disk(context, work, request, hint) {
        Ok(disk) => disk,
        Err(refused) => return Ok(Err(Refusal::Unfit(refused))),
    };
    if let Some(missing) = missing_of_base(context, reader, hint, disk)? {
        let text = format!("{missing} of point {} is stored no more", hint.base.id.short());
        return Ok(Err(Refusal::Unfit(text)));
    }
    let grid = u64::from(work.shape.chunk_bytes());
    let old = MapShape::new(disk.size, work.shape.chunk_bytes())
        .map_err(|cause| crate::repository::objects::cannot_make("a map", cause))?;
    let leaf_bytes = grid * LEAF_SLOTS as u64;
    // Of a disk that has grown, the leaf at its old end has other slots in use.
    let leaves = match disk.size == work.shape.size() {
        true => old.leaves(),
        false => disk.size / leaf_bytes,
    };
    let kept = leaves.saturating_mul(leaf_bytes);
    let mut ranges = selection(hint, disk, grid, work.shape.size(), kept);
    let emptied = emptied(context, work, reader, (old, disk), kept)?;
    if !emptied.is_empty() {
        ranges.extend(emptied);
        ranges = join(ranges);
    }
    let mut look = Look::new(context, work, reader, (old, disk), &ranges)?;
    if let Some(lie) = look.at_heads(context)? {
        return Ok(Err(lie));
    }
    if let Some(lie) = look.at_random(context)? {
        return Ok(Err(lie));
    }
    let began = context.repository.environment().monotonic();
    let base = Base { reader, shape: old, top: disk.top, leaves, data_bytes: data_bytes_of(disk) };
    let selected = Selected { ranges: &ranges, base };
    let mut cursor = Some(LeafCursor::new(reader, old, disk.top));
    let digests = Digests::new(false, &[]);
    let (planned, mut assembled) =
        run_pipeline(context, work, &mut cursor, digests, Some(&selected))?;
    let took = context.repository.environment().monotonic().saturating_sub(began);
    // While these bytes go over the line there is time to read others.
    context.writer.send_off()?;
    let mut tracking = tracking_of(hint, disk, request);
    if let Some(lie) = look.in_turn(context, took, reread, &mut tracking)? {
        return Ok(Err(lie));
    }
    tracking.sampled_bytes = look.sampled_bytes;
    let inherited = between(&ranges, work.shape.size());
    tracking.inherited_bytes = inherited.iter().map(|range| range.bytes).sum();
    assembled.statistics.read_bytes += tracking.sampled_bytes + tracking.reread_bytes;
    let read = Some((planned, assembled));
    Ok(Ok(Hinted { read, inherited: at_most(inherited), tracking: Some(tracking) }))
}

/// The base's record of the disk, if a hint can be about it.
fn base_disk<'h>(
    context: &Context<'_>,
    work: &Work,
    request: &DiskRequest<'_>,
    hint: &'h Hint,
) -> Result<&'h DiskRecord, String> {
    if let Some(why) = &hint.unfit {
        return Err(why.clone());
    }
    let point = hint.base.id.short();
    let disks = &hint.base.manifest.disks;
    let Some(disk) = disks.iter().find(|disk| disk.name == request.name) else {
        return Err(format!("point {point} has no such disk"));
    };
    if disk.chunking != Chunking::fixed(work.shape.chunk_bytes()) {
        return Err(format!("point {point} has it cut another way"));
    }
    if disk.size > work.shape.size() {
        return Err(format!("the disk was larger at point {point}: {} bytes", disk.size));
    }
    // Of a hint that nobody gave, the format was looked at where it was found.
    if request.hint.is_some() && disk.source_format != request.source.format() {
        let (old, new) = (disk.source_format.escape_debug(), request.source.format());
        return Err(format!("point {point} has it from {old}, and it is {new} now"));
    }
    if work.shape.slots() <= 1 || disk.size == 0 {
        return Err("the disk has one chunk only".into());
    }
    if !context.digests.is_empty() {
        return Err("digests of the whole disk are asked for".into());
    }
    let is_beyond = |range: &Range<u64>| range.start >= work.shape.size() && range.end < OPEN_END;
    if hint.changed.last().is_some_and(is_beyond) {
        return Err("it tells of changes beyond the end of the disk".into());
    }
    Ok(disk)
}

/// What the base's disk needs and is not present.
fn missing_of_base(
    context: &Context<'_>,
    reader: &MapReader<'_>,
    hint: &Hint,
    disk: &DiskRecord,
) -> Result<Option<String>> {
    if context.session.is_known_complete(&hint.base)? {
        return Ok(None);
    }
    let mut alone = hint.base.manifest.clone();
    alone.disks = vec![DiskRecord { allocation: None, ..disk.clone() }];
    alone.streams.clear();
    find_missing(reader, context.session.presence(), &alone, context.monitor)
}

/// Bytes of a disk that are no zeros.
fn data_bytes_of(disk: &DiskRecord) -> u64 {
    let sum = &disk.statistics;
    sum.unchanged_bytes.saturating_add(sum.deduplicated_bytes).saturating_add(sum.new_bytes)
}

/// What is read: what has changed, what could not be read then, and what lies beyond `kept` of a disk
/// that has grown; on the grid, ascending, joined.
fn selection(hint: &Hint, disk: &DiskRecord, grid: u64, size: u64, kept: u64) -> Vec<Range<u64>> {
    let bad = disk.bad_extents.iter().map(|range| range.start..range.start + range.bytes);
    let beyond = (disk.size != size).then_some(kept..size);
    let mut ranges: Vec<Range<u64>> = hint.changed.iter().cloned().chain(bad).collect();
    ranges.extend(beyond);
    // Open ends may begin where the disk ends.
    ranges.retain(|range| range.start < size);
    for range in &mut ranges {
        range.start -= range.start % grid;
        range.end = range.end.min(size).next_multiple_of(grid).min(size);
    }
    join(ranges)
}

/// Where the base has whole leaves of data and the source has a hole: it was discarded, whether the
/// hint says so or not, and costs no read.
fn emptied(
    context: &Context<'_>,
    work: &Work,
    reader: &MapReader<'_>,
    (old, disk): (MapShape, &DiskRecord),
    kept: u64,
) -> Result<Vec<Range<u64>>> {
    let leaf_bytes = u64::from(old.chunk_bytes()) * LEAF_SLOTS as u64;
    let mut emptied = Vec::new();
    work.source.extents_in(0..kept.min(disk.size), &mut |extent: Extent| {
        context.monitor.check_cancelled()?;
        let end = extent.start + extent.bytes;
        let leaves = extent.start.div_ceil(leaf_bytes)..match end == disk.size {
            true => old.leaves(),
            false => end / leaf_bytes,
        };
        if extent.kind == ExtentKind::Data || leaves.is_empty() {
            return Ok(());
        }
        reader.walk_whole_pages((old, old), disk.top, leaves, &mut |(level, number), _, _| {
            let covers = MapShape::leaves_per_page(level).saturating_mul(leaf_bytes);
            let start = number * covers;
            emptied.push(start..start.saturating_add(covers).min(disk.size));
            Ok(())
        })
    })?;
    Ok(emptied)
}

/// What lies between ranges on a disk.
fn between(ranges: &[Range<u64>], size: u64) -> Vec<ByteRange> {
    let starts = std::iter::once(0).chain(ranges.iter().map(|range| range.end));
    let ends = ranges.iter().map(|range| range.start).chain(std::iter::once(size));
    let gaps = starts.zip(ends).filter(|(start, end)| start < end);
    gaps.map(|(start, end)| ByteRange { start, bytes: end - start }).collect()
}

/// No more ranges than a record has room for: the shortest parts between them are told as taken over
/// as well.
fn at_most(mut ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    let mut shortest = 1;
    while ranges.len() > BAD_EXTENTS_MAX {
        let mut joined: Vec<ByteRange> = Vec::new();
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.start - (last.start + last.bytes) <= shortest => {
                    last.bytes = range.start + range.bytes - last.start;
                }
                _ => joined.push(range),
            }
        }
        (ranges, shortest) = (joined, shortest * 2);
    }
    ranges
}

/// What the base says of reading in turn; a base that was read in full begins a round.
fn tracking_of(hint: &Hint, disk: &DiskRecord, request: &DiskRequest<'_>) -> Tracking {
    let before = Tracking::find(&disk.extensions).filter(|tracking| tracking.refused.is_empty());
    let base_time = hint.base.manifest.time_unix_ns;
    let (position, round_unix_ns, proven_unix_ns) = match before {
        Some(before) => (before.position, before.round_unix_ns, before.proven_unix_ns),
        None => (0, request.time_unix_ns, base_time),
    };
    let round_unix_ns = if position == 0 { request.time_unix_ns } else { round_unix_ns };
    let hint = hint.told_by.clone();
    Tracking { hint, position, round_unix_ns, proven_unix_ns, ..Tracking::default() }
}

/// Looks at what is said to be unchanged.
struct Look<'a> {
    work: &'a Work,
    cursor: LeafCursor<'a>,
    ranges: &'a [Range<u64>],
    /// Where nothing is known: the disk had not so many bytes.
    old_size: u64,
    /// Chunks of data outside of what is read anyway.
    chunks: u64,
    sampled_bytes: u64,
    buffer: Vec<u8>,
}

impl<'a> Look<'a> {
    fn new(
        context: &Context<'_>,
        work: &'a Work,
        reader: &'a MapReader<'a>,
        (old, disk): (MapShape, &DiskRecord),
        ranges: &'a [Range<u64>],
    ) -> Result<Look<'a>> {
        let cursor = LeafCursor::new(reader, old, disk.top);
        let buffer = vec![0; work.shape.chunk_bytes() as usize];
        let (chunks, sampled_bytes, old_size) = (0, 0, disk.size);
        let mut look = Look { work, cursor, ranges, old_size, chunks, sampled_bytes, buffer };
        let mut chunks = 0;
        look.each_rest(context, 0, &mut |slots| {
            chunks += slots.end - slots.start;
            Ok(true)
        })?;
        look.chunks = chunks;
        Ok(look)
    }

    /// Tells the slots from `from` on that the source has data in and that are not read anyway, in
    /// ascending ranges, until `each` says false.
    fn each_rest(
        &self,
        context: &Context<'_>,
        from: u64,
        each: &mut dyn FnMut(Range<u64>) -> Result<bool>,
    ) -> Result<()> {
        let grid = u64::from(self.work.shape.chunk_bytes());
        let mut next = from / grid;
        let mut goes_on = true;
        let first = self.ranges.partition_point(|range| range.end <= from);
        let mut skipped = self.ranges[first..].iter().peekable();
        let walked = self.work.source.extents_in(from..self.old_size, &mut |extent: Extent| {
            context.monitor.check_cancelled()?;
            if !goes_on {
                // A disk may have millions of extents behind.
                return Err(Error::new(ErrorKind::Failed, "enough was seen"));
            }
            if extent.kind == ExtentKind::Hole {
                return Ok(());
            }
            let end = (extent.start + extent.bytes).div_ceil(grid);
            next = next.max(extent.start / grid);
            while next < end && goes_on {
                while skipped.next_if(|range| range.end.div_ceil(grid) <= next).is_some() {}
                let stop = match skipped.peek() {
                    Some(range) if range.start / grid <= next => {
                        next = range.end.div_ceil(grid);
                        continue;
                    }
                    Some(range) => end.min(range.start / grid),
                    None => end,
                };
                goes_on = each(next..stop)?;
                next = stop;
            }
            Ok(())
        });
        match walked {
            Err(error) if error.kind() == ErrorKind::Failed && !goes_on => Ok(()),
            walked => walked,
        }
    }

    /// Whether a chunk is what the base has.
    fn is_as_told(&mut self, slot: u64) -> Result<bool> {
        let grid = u64::from(self.work.shape.chunk_bytes());
        let start = slot * grid;
        let bytes = (self.work.shape.size() - start).min(grid) as usize;
        let data = &mut self.buffer[..bytes];
        self.work.source.read_at(start, data)?;
        let leaf = self.cursor.leaf(slot / LEAF_SLOTS as u64)?;
        let before = leaf.map_or(LeafSlot::Zero, |leaf| leaf.slots[slot as usize % LEAF_SLOTS]);
        Ok(match before {
            LeafSlot::Zero => is_zero(data),
            LeafSlot::Chunk { id, .. } => self.work.keys.chunk_id(data) == id,
        })
    }

    fn lie(&self, slot: u64) -> Refusal {
        let at = slot * u64::from(self.work.shape.chunk_bytes());
        Refusal::Lie(format!("the disk is another at {at}, which is said to be unchanged"))
    }

    /// Reads what changes whenever a guest runs, as far as it is said to be unchanged; why the hint
    /// does not count, if a chunk is another.
    fn at_heads(&mut self, context: &Context<'_>) -> Result<Option<Refusal>> {
        let grid = u64::from(self.work.shape.chunk_bytes());
        let size = self.work.shape.size();
        let source: &dyn DiskSource = self.work.source.as_ref();
        let mut heads = partition_layout(source)?.starts;
        // Without a table a file system may begin where the disk does.
        heads.push(0);
        for begin in heads.clone() {
            heads.extend(journal_starts(&source, begin)?);
        }
        heads.push(size.saturating_sub(HEAD_BYTES));
        let heads = heads.into_iter().filter(|start| *start < self.old_size).map(|start| {
            let end = start.saturating_add(HEAD_BYTES).min(self.old_size);
            start - start % grid..end
        });
        for head in join(heads.collect()) {
            let mut slots = Vec::new();
            let end = head.end.div_ceil(grid);
            self.each_rest(context, head.start, &mut |range| {
                slots.extend(range.start..range.end.min(end));
                Ok(range.end < end)
            })?;
            for slot in slots {
                context.monitor.check_cancelled()?;
                self.sampled_bytes += grid;
                if !self.is_as_told(slot)? {
                    return Ok(Some(self.lie(slot)));
                }
            }
        }
        Ok(None)
    }

    /// Reads chunks at random places; why the hint does not count, if one is another.
    fn at_random(&mut self, context: &Context<'_>) -> Result<Option<Refusal>> {
        let count = SAMPLE_MAX.min(self.chunks);
        let seed: [u8; 32] = random_array(context.repository.environment().as_ref())?;
        let mut drawn = blake3::Hasher::new_keyed(&seed).finalize_xof();
        let mut places = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let mut number = [0; 8];
            drawn.fill(&mut number);
            // The bias of the remainder is below 2^-20 for any disk.
            places.push(u64::from_le_bytes(number) % self.chunks);
        }
        // The first ones are as random as all: those that count whatever time they take.
        let least = (SAMPLE_MIN.min(count)) as usize;
        let began = context.repository.environment().monotonic();
        for part in [0..least, least..places.len()] {
            let is_least = part.start == 0;
            let mut part = places[part].to_vec();
            part.sort_unstable();
            part.dedup();
            for slot in self.slots_of(context, &part)? {
                let now = context.repository.environment().monotonic();
                if !is_least && now.saturating_sub(began) > LOOK_TIME {
                    return Ok(None);
                }
                context.monitor.check_cancelled()?;
                self.sampled_bytes += u64::from(self.work.shape.chunk_bytes());
                if !self.is_as_told(slot)? {
                    return Ok(Some(self.lie(slot)));
                }
            }
        }
        Ok(None)
    }

    /// The slots of the chunks with these numbers, counted as in [`Look::chunks`], ascending.
    fn slots_of(&self, context: &Context<'_>, numbers: &[u64]) -> Result<Vec<u64>> {
        let mut slots = Vec::with_capacity(numbers.len());
        let mut wanted = numbers.iter().copied().peekable();
        let mut passed = 0;
        self.each_rest(context, 0, &mut |range| {
            let count = range.end - range.start;
            while let Some(number) = wanted.next_if(|number| *number < passed + count) {
                slots.push(range.start + number - passed);
            }
            passed += count;
            Ok(wanted.peek().is_some())
        })?;
        Ok(slots)
    }

    /// Reads the next part in turn; why the hint does not count, if a chunk is another.
    fn in_turn(
        &mut self,
        context: &Context<'_>,
        took: Duration,
        reread: Reread,
        tracking: &mut Tracking,
    ) -> Result<Option<Refusal>> {
        let grid = u64::from(self.work.shape.chunk_bytes());
        let environment = context.repository.environment();
        let (began, most) = (environment.monotonic(), took.max(LOOK_TIME));
        let part = match reread {
            Reread::AsLong => u64::MAX,
            Reread::Part(parts) => self.chunks.div_ceil(parts.max(1)),
        };
        let mut done = 0;
        while done < part {
            // In pieces, so that the walk of the extents is not inside of the reading.
            let wanted = PIECE_SLOTS.min(part - done) as usize;
            let mut piece = Vec::with_capacity(wanted);
            self.each_rest(context, tracking.position, &mut |slots| {
                piece.extend(slots.take(wanted - piece.len()));
                Ok(piece.len() < wanted)
            })?;
            for slot in &piece {
                let is_over = reread == Reread::AsLong
                    && environment.monotonic().saturating_sub(began) > most;
                if is_over {
                    return Ok(None);
                }
                context.monitor.check_cancelled()?;
                if !self.is_as_told(*slot)? {
                    return Ok(Some(self.lie(*slot)));
                }
                done += 1;
                tracking.reread_bytes += grid;
                tracking.position = (slot + 1) * grid;
            }
            if piece.len() < wanted {
                // The end of the disk: a round is over, and the next one begins.
                tracking.position = 0;
                tracking.proven_unix_ns = tracking.round_unix_ns;
                return Ok(None);
            }
        }
        Ok(None)
    }
}

/// Chunks that are looked up before they are read.
const PIECE_SLOTS: u64 = 4096;

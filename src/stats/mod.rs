//! What a repository holds, and what some of its points need: sizes from manifests, maps and
//! footers. No data is read and nothing is written.
//!
//! Invariants: an entry counts once, however many points need it; memory is two bits for each
//! entry that somebody needs, whatever the number of points; what a prune took away meanwhile is
//! no damage.

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::locate::Locator;
use crate::repository::map_reader::MapReader;
use crate::repository::marks::{Marks, MetPages, SegmentMarks, stored_share};
use crate::repository::points::{PointSet, read_manifest};
use crate::repository::reach::{Visitor, visit};
use crate::repository::stored::{Stored, find_stored, find_whole};
use crate::storage::Folder;
use diskvault_format::footer::FooterSegment;
use diskvault_format::id::{ChunkId, PageId, PointId};
use diskvault_format::manifest::Manifest;
use diskvault_format::pack::PackKind;
use std::collections::BTreeSet;

/// What is asked about.
pub type Wanted<'a> = dyn Fn(PointId, &Manifest) -> bool + 'a;

/// What manifests say of some points. Sums are over all of them: what two points share counts
/// twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// Points.
    pub points: u64,
    /// Series they belong to.
    pub series: u64,
    /// Disks in all series; a disk is the same from point to point.
    pub disks: u64,
    /// Streams in all series.
    pub streams: u64,
    /// Bytes as guests see them.
    pub virtual_bytes: u64,
    /// Bytes that were allocated at the sources.
    pub allocated_bytes: u64,
    /// Bytes that are no zeros.
    pub data_bytes: u64,
}

/// What lies in packs; an entry counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Chunks that are stored by their bytes.
    pub chunks: u64,
    /// Their bytes before compression.
    pub chunk_bytes: u64,
    /// Pages of maps, and notes on displaced chunks.
    pub pages: u64,
    /// What the chunks take in packs: of each segment as large a part as of its uncompressed bytes.
    pub stored_data_bytes: u64,
    /// What the pages take.
    pub stored_map_bytes: u64,
}

impl Held {
    /// What all of it takes in packs.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_data_bytes + self.stored_map_bytes
    }

    fn add(&mut self, kind: PackKind, segment: &FooterSegment, is_held: impl Fn(usize) -> bool) {
        let held = segment.entries.iter().enumerate().filter(|(slot, _)| is_held(*slot));
        let (mut count, mut bytes) = (0, 0);
        for (_, entry) in held {
            count += 1;
            bytes += u64::from(entry.bytes);
        }
        let stored = stored_share(segment, bytes);
        match kind {
            PackKind::Data => {
                self.chunks += count;
                self.chunk_bytes += bytes;
                self.stored_data_bytes += stored;
            }
            PackKind::Map => {
                self.pages += count;
                self.stored_map_bytes += stored;
            }
        }
    }
}

/// The packs there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packs {
    /// Their number.
    pub packs: u64,
    /// Bytes of packs with data, headers and footers included.
    pub data_pack_bytes: u64,
    /// Bytes of packs with maps.
    pub map_pack_bytes: u64,
    /// What belongs to entries that no manifest needs: forgotten and not pruned, or of backups
    /// that run.
    pub unneeded_bytes: u64,
    /// Packs whose footer does not open; they count nowhere else.
    pub unreadable: u64,
}

/// What was found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What the manifests of the wanted points say.
    pub described: Described,
    /// What they need.
    pub needed: Held,
    /// What nobody else needs: about what forgetting them and pruning would free.
    pub exclusive: Held,
    /// All packs.
    pub packs: Packs,
    /// Chunks that wanted points name and no pack holds.
    pub missing_chunks: u64,
    /// Points of which a map page cannot be read: what is below it is not counted.
    pub damaged_points: u64,
}

/// Measures the visible points for which `wanted` holds, beside all others.
///
/// # Errors
/// What the storage and the index say; `Cancelled`. A manifest or map that cannot be read is a
/// warning.
pub fn run(repository: &Repository, wanted: &Wanted<'_>, monitor: &dyn Monitor) -> Result<Report> {
    let mut looks = 0;
    loop {
        // Points before packs: a pack that a point needs was durable before the point was.
        let points = PointSet::load(repository)?;
        let locator = Locator::open(repository, monitor)?;
        let (report, doubts) = look(repository, &locator, points, wanted, monitor)?;
        looks += 1;
        // A prune may have moved what was missed, and what was read then was not all.
        if looks == LOOKS_MAX || !locator.is_outdated(repository)? {
            doubts.iter().for_each(|doubt| monitor.warn(doubt));
            return Ok(report);
        }
    }
}

/// Looks at a repository out of which packs are taken away meanwhile.
const LOOKS_MAX: usize = 8;

/// Measures once; what is to be warned of.
fn look(
    repository: &Repository,
    locator: &Locator,
    points: PointSet,
    wanted: &Wanted<'_>,
    monitor: &dyn Monitor,
) -> Result<(Report, Vec<String>)> {
    let damaged = points.damaged.iter().map(|(_, error)| error);
    let damaged = damaged.chain(locator.damaged().iter().map(|(_, error)| error));
    let not_counted = |error: &Error| format!("{}; it is not counted", error.full_text());
    let mut doubts: Vec<String> = damaged.map(not_counted).collect();
    let mut others: Vec<Manifest> = Vec::new();
    // What is being written or was left behind needs its chunks, too.
    for id in &points.unfinished {
        match read_manifest(repository, Folder::Points, *id) {
            Ok(manifest) => others.push(manifest),
            Err(error) if error.kind().is_finding() => {}
            Err(error) => return Err(error),
        }
    }
    let mut own: Vec<(PointId, Manifest)> = Vec::new();
    for point in points.points {
        match wanted(point.id, &point.manifest) {
            true => own.push((point.id, point.manifest)),
            false => others.push(point.manifest),
        }
    }
    let mut report = Report { described: describe(&own), ..Report::default() };
    let reader = MapReader::new(repository, locator);
    monitor.start("walking maps", Some((own.len() + others.len()) as u64));
    let mut by_others = Marker::new(locator, monitor);
    for manifest in &others {
        // Damage of points that nobody asked about makes what only the others need an upper bound.
        by_others.walk(&reader, manifest)?;
    }
    let mut by_own = Marker::new(locator, monitor);
    for (id, manifest) in &own {
        if let Some(error) = by_own.walk(&reader, manifest)? {
            report.damaged_points += 1;
            let text = error.full_text();
            doubts.push(format!("point {}: {text}; it is not counted in full", id.short()));
        }
    }
    monitor.finish();
    report.missing_chunks = by_own.missing;
    if by_own.missing > 0 {
        let text = "chunks are in no pack: `diskvault check` says which points need them";
        doubts.push(format!("{} {text}", by_own.missing));
    }
    measure(repository, locator, &by_own.marks, &by_others.marks, &mut report, monitor)?;
    Ok((report, doubts))
}

fn describe(points: &[(PointId, Manifest)]) -> Described {
    let mut described = Described { points: points.len() as u64, ..Described::default() };
    let (mut series, mut disks, mut streams) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (_, manifest) in points {
        let name = manifest.series.as_str();
        series.insert(name);
        disks.extend(manifest.disks.iter().map(|disk| (name, disk.name.as_str())));
        streams.extend(manifest.streams.iter().map(|stream| (name, stream.name.as_str())));
        let sum = manifest.statistics();
        let add = |total: &mut u64, bytes: u64| *total = total.saturating_add(bytes);
        add(&mut described.virtual_bytes, sum.virtual_bytes);
        add(&mut described.allocated_bytes, sum.allocated_bytes);
        // Each chunk of a part is one of these.
        for bytes in [sum.unchanged_bytes, sum.deduplicated_bytes, sum.new_bytes] {
            add(&mut described.data_bytes, bytes);
        }
    }
    described.series = series.len() as u64;
    described.disks = disks.len() as u64;
    described.streams = streams.len() as u64;
    described
}

fn measure(
    repository: &Repository,
    locator: &Locator,
    own: &Marks,
    others: &Marks,
    report: &mut Report,
    monitor: &dyn Monitor,
) -> Result<()> {
    report.packs.unreadable = locator.damaged().len() as u64;
    for id in locator.listed() {
        monitor.check_cancelled()?;
        let pack = match locator.pack(repository, *id) {
            Ok(pack) => pack,
            // Pruned since the listing.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) if error.kind().is_finding() => {
                if locator.damaged().iter().all(|(known, _)| known != id) {
                    report.packs.unreadable += 1;
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        report.packs.packs += 1;
        match pack.kind {
            PackKind::Data => report.packs.data_pack_bytes += pack.bytes,
            PackKind::Map => report.packs.map_pack_bytes += pack.bytes,
        }
        let mut unneeded = Held::default();
        for (ordinal, segment) in pack.footer.segments.iter().enumerate() {
            let marks: [SegmentMarks<'_>; 2] = [own.of(*id, ordinal), others.of(*id, ordinal)];
            let [by_own, by_others] = marks;
            report.needed.add(pack.kind, segment, |slot| by_own.contains(slot));
            let is_exclusive = |slot| by_own.contains(slot) && !by_others.contains(slot);
            report.exclusive.add(pack.kind, segment, is_exclusive);
            let is_unneeded = |slot| !by_own.contains(slot) && !by_others.contains(slot);
            unneeded.add(pack.kind, segment, is_unneeded);
        }
        report.packs.unneeded_bytes += unneeded.stored_bytes();
    }
    Ok(())
}

/// Marks what manifests need. A page that was met is known with all below it.
struct Marker<'a> {
    locator: &'a Locator,
    monitor: &'a dyn Monitor,
    marks: Marks,
    met: MetPages<'a>,
    missing: u64,
}

impl<'a> Marker<'a> {
    fn new(locator: &'a Locator, monitor: &'a dyn Monitor) -> Marker<'a> {
        Marker {
            locator,
            monitor,
            marks: Marks::default(),
            met: MetPages::new(locator),
            missing: 0,
        }
    }

    /// Marks what a manifest needs; what kept it from seeing all of that.
    fn walk(&mut self, reader: &MapReader<'_>, manifest: &Manifest) -> Result<Option<Error>> {
        let walked = visit(reader, manifest, self);
        self.monitor.advance(1);
        match walked {
            Err(error) if error.kind().is_finding() => Ok(Some(error)),
            other => other.map(|()| None),
        }
    }
}

impl Visitor for Marker<'_> {
    fn page(&mut self, id: PageId) -> Result<bool> {
        self.monitor.check_cancelled()?;
        if self.met.contains(id)? {
            return Ok(false);
        }
        // One that is in no pack is met when it is read.
        if let Some(place) = find_whole(self.locator, ChunkId(id.0), &|_| true)? {
            self.marks.insert(&place);
        }
        Ok(true)
    }

    fn page_done(&mut self, id: PageId) -> Result<()> {
        self.met.insert(id).map(|_| ())
    }

    fn chunk(&mut self, id: ChunkId) -> Result<()> {
        match find_stored(self.locator, id, &|_| true)? {
            Some(Stored::Whole(place)) => _ = self.marks.insert(&place),
            Some(Stored::Spliced { place, pieces, .. }) => {
                self.marks.insert(&place);
                pieces.iter().for_each(|place| _ = self.marks.insert(place));
            }
            None => self.missing += 1,
        }
        Ok(())
    }
}

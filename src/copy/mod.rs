//! Copying points into another repository: what `copy` does.
//!
//! A copy is a backup whose source is the map of a point elsewhere: chunks are read and verified
//! there, and get the ids, packs and keys of here. `disk` copies disks on a grid, `content` what is
//! cut by content, `place` finds a point's place in its series.
//!
//! Invariants: a point that was copied has the same bytes, time, host, tags and backup id as its
//! source; what is the same as in a point of here is not read there; a copy that is stopped
//! anywhere is gone on with by the next.

mod content;
mod disk;
mod place;

use crate::backup::{Context, TRIES_MAX, remember_point, share_stored_bytes};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::compression::Compression;
use crate::repository::locate::Locator;
use crate::repository::map_reader::MapReader;
use crate::repository::notes::{Notes, put_note};
use crate::repository::packer::ChunkWriter;
use crate::repository::points::{Point, PointSet};
use crate::repository::session::Session;
use crate::restore::fetch::Fetcher;
use diskvault_format::id::{BackupId, PointId};
use diskvault_format::limits::FIELDS_MAX;
use diskvault_format::manifest::{Manifest, Statistics};
use diskvault_format::small::NOTE_PIN;
use place::{Base, place};
use rayon::ThreadPool;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Tag of a copied point: the repository and the point it comes from, by the first digits of their
/// ids.
pub const ORIGIN_TAG: &str = "copied-from";
/// Digits of a point's id in that tag: enough to find it by.
const ORIGIN_DIGITS: usize = 16;
/// Bytes of chunks gathered before they are fetched, at most, so that segments which hold chunks of
/// several places of a disk are read less often.
const WINDOW_BYTES: usize = 32 << 20;

/// Two repositories, and how it is copied from one to the other.
pub struct Copier<'a> {
    /// Where points are read.
    pub source: &'a Repository,
    /// Where they go.
    pub target: &'a Repository,
    /// How hard what is new is compressed.
    pub compression: Compression,
    /// This host, for the lease and notes.
    pub host: &'a str,
    /// Working threads.
    pub pool: &'a Arc<ThreadPool>,
    /// Hears of progress.
    pub monitor: &'a dyn Monitor,
}

/// A point of the source, and what it is in the target already.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The point.
    pub point: Point,
    /// Its copy, if there is one.
    pub copied: Option<PointId>,
}

/// What became of a point.
#[derive(Debug)]
pub enum Outcome {
    /// It was copied.
    Copied {
        /// The new point.
        point: PointId,
        /// What was done for it: read in the source, unchanged and stored in the target.
        statistics: Statistics,
    },
    /// It was there.
    Present(PointId),
    /// It cannot be read in full, so nothing was made of it.
    Unreadable(Error),
}

/// What there is to copy, in the order in which it is copied: oldest first in each series.
///
/// # Errors
/// `Usage` if both are one repository; what listing says.
pub fn plan(
    source: &Repository,
    target: &Repository,
    wanted: &dyn Fn(&Point) -> bool,
) -> Result<Vec<Planned>> {
    if source.id() == target.id() {
        let text = "cannot copy a repository into itself: source and target have one id";
        return Err(Error::new(ErrorKind::Usage, text)
            .hint("a copy of all its files is a copy of a repository"));
    }
    let known = PointSet::load(target)?;
    let mut copies: BTreeMap<BackupId, PointId> = BTreeMap::new();
    for point in &known.points {
        copies.entry(point.manifest.backup_id).or_insert(point.id);
    }
    let points = PointSet::load(source)?.points;
    let planned = points.into_iter().filter(|point| wanted(point)).map(|point| {
        let copied = copies.get(&point.manifest.backup_id).copied();
        Planned { point, copied }
    });
    Ok(planned.collect())
}

impl Copier<'_> {
    /// Copies what is planned and not there, one point after the other. `tell` hears of each.
    ///
    /// # Errors
    /// What the target says; what reading the source says, but for damage, which ends only the
    /// point it is met in; `Cancelled`; what `tell` says.
    pub fn run(
        &self,
        plan: &[Planned],
        tell: &mut dyn FnMut(&Point, &Outcome) -> Result<()>,
    ) -> Result<()> {
        let order = place::Order::new(&PointSet::load(self.source)?);
        let notes = Notes::of_points(self.source, plan.iter().map(|planned| &planned.point))?;
        let present = plan.iter().filter_map(|planned| planned.copied).collect();
        let own_notes = Notes::under_ids(self.target, &present)?;
        let mut locator = Locator::open(self.source, self.monitor)?;
        for planned in plan {
            self.monitor.check_cancelled()?;
            let point = &planned.point;
            if let Some(copied) = planned.copied {
                self.carry_pins(&notes, point, copied, &own_notes)?;
                tell(point, &Outcome::Present(copied))?;
                continue;
            }
            let mut outcome = self.copy(&locator, &order, &notes, point)?;
            if let Outcome::Unreadable(_) = outcome {
                // Packs may have gone since: a prune has copied out of them what was needed.
                locator = Locator::open(self.source, self.monitor)?;
                outcome = self.copy(&locator, &order, &notes, point)?;
            }
            if let Outcome::Copied { point: copied, .. } = &outcome {
                // The point is done. What fails from here on is done by the next copy.
                let done = remember_point(self.target, *copied)
                    .and_then(|()| self.carry_pins(&notes, point, *copied, &own_notes));
                if let Err(error) = done {
                    let text = error.full_text();
                    self.monitor.warn(&format!("the point was copied, but: {text}"));
                }
            }
            tell(point, &outcome)?;
        }
        Ok(())
    }

    /// Copies a point; again if its lease is removed meanwhile.
    fn copy(
        &self,
        locator: &Locator,
        order: &place::Order,
        notes: &Notes,
        point: &Point,
    ) -> Result<Outcome> {
        let mut tries = 1;
        loop {
            match self.copy_once(locator, order, notes, point) {
                Err(error) if error.kind() == ErrorKind::Fenced && tries < TRIES_MAX => {
                    self.monitor.warn(&format!("{}; starting over", error.full_text()));
                    tries += 1;
                }
                other => return other,
            }
        }
    }

    fn copy_once(
        &self,
        locator: &Locator,
        order: &place::Order,
        notes: &Notes,
        point: &Point,
    ) -> Result<Outcome> {
        let session = Session::begin(self.target, self.host, self.monitor)?;
        let same = |known: &&Point| known.manifest.backup_id == point.manifest.backup_id;
        if let Some(known) = session.points().points.iter().find(same) {
            return Ok(Outcome::Present(known.id));
        }
        let (previous, sequence) = place(session.points(), order, &point.manifest);
        let base = Base::find(&session, order, &point.manifest)?;
        let mut manifest = Manifest {
            lease: session.lease(),
            writer: self.target.writer_id()?,
            program: crate::PROGRAM.to_string(),
            sequence,
            previous,
            republishes: None,
            tags: self.tags(notes, point),
            disks: Vec::new(),
            streams: Vec::new(),
            extensions: Vec::new(),
            ..point.manifest.clone()
        };
        let mut writer = ChunkWriter::new(
            self.target,
            session.lease(),
            session.presence().clone(),
            self.pool.clone(),
            self.compression,
        );
        let mut context = Context {
            repository: self.target,
            session: &session,
            writer: &mut writer,
            pool: self.pool,
            monitor: self.monitor,
            digests: &[],
        };
        match self.copy_parts(&mut context, locator, &base, point, &mut manifest) {
            Err(error) if error.kind().is_finding() => return Ok(Outcome::Unreadable(error)),
            other => other?,
        }
        let stored = writer.finish()?;
        if let Some(error) = writer.take_index_failure() {
            let text = error.full_text();
            self.monitor.warn(&format!("{text}; the next run fills the index again"));
        }
        drop(writer);
        share_stored_bytes(&mut manifest, stored.pack_bytes);
        self.monitor.check_cancelled()?;
        let statistics = manifest.statistics();
        let copied = session.publish(&manifest)?;
        Ok(Outcome::Copied { point: copied, statistics })
    }

    fn copy_parts(
        &self,
        context: &mut Context<'_>,
        locator: &Locator,
        base: &Base,
        point: &Point,
        manifest: &mut Manifest,
    ) -> Result<()> {
        let threads = self.pool.current_num_threads();
        let fetcher = Fetcher { repository: self.source, locator, threads, monitor: self.monitor };
        let reader = MapReader::new(self.source, locator);
        let id = point.id.short();
        for disk in &point.manifest.disks {
            let name = disk.name.escape_debug();
            self.monitor.start(&format!("point {id}, disk {name}"), Some(disk.size));
            let copied = match disk.chunking.grid() {
                Some(chunk_bytes) => {
                    disk::copy(context, &fetcher, &reader, base, disk, chunk_bytes)
                }
                None => content::copy_disk(context, &fetcher, &reader, base, disk),
            };
            manifest.disks.push(copied?);
            self.monitor.finish();
        }
        for stream in &point.manifest.streams {
            let name = stream.name.escape_debug();
            let bytes = Some(stream.content.bytes);
            self.monitor.start(&format!("point {id}, stream {name}"), bytes);
            manifest.streams.push(content::copy_stream(context, &fetcher, &reader, base, stream)?);
            self.monitor.finish();
        }
        Ok(())
    }

    /// The tags that hold for a point, and where it comes from.
    fn tags(&self, notes: &Notes, point: &Point) -> Vec<(String, String)> {
        let mut tags = notes.tags(point);
        let (repository, id) = (self.source.id().short(), point.id.to_hex());
        tags.remove(ORIGIN_TAG);
        if tags.len() >= FIELDS_MAX {
            let left = tags.len() + 1 - FIELDS_MAX;
            let text =
                format!("point {} has too many tags: {left} are not copied", point.id.short());
            self.monitor.warn(&text);
        }
        let origin = format!("{repository}/{}", &id[..ORIGIN_DIGITS]);
        let first = std::iter::once((ORIGIN_TAG.to_string(), origin));
        first.chain(tags).take(FIELDS_MAX).collect()
    }

    /// Pins the copy of a pinned point, unless it was ever pinned: who ended its pins wants it so.
    fn carry_pins(
        &self,
        notes: &Notes,
        point: &Point,
        copied: PointId,
        own_notes: &Notes,
    ) -> Result<()> {
        if own_notes.under(copied).iter().any(|stored| stored.note.kind == NOTE_PIN) {
            return Ok(());
        }
        let reasons: Vec<String> = match notes.pins(point) {
            Ok(pins) => pins.into_iter().map(|pin| pin.reason).collect(),
            Err(error) => {
                self.monitor.warn(&format!("{}; its copy is pinned", error.full_text()));
                vec!["it could not be read whether the source is pinned".into()]
            }
        };
        for reason in reasons {
            let fields = vec![("reason".to_string(), reason)];
            put_note(self.target, copied, NOTE_PIN, self.host, fields)?;
        }
        Ok(())
    }
}

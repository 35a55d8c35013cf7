//! Making a restore point: `backup`.
//!
//! `expand` finds the parts in inputs that hold several; `plan` decides what every input is and how it is cut; `disk`, with the workers of `examine`, and
//! `stream` read, find what is new and build maps; this file runs them under one session and publishes the manifest.
//!
//! Invariant: a point is published only after every byte of every part was read, everything it
//! names is durable, and each source still has the size it had at the start.

mod assembler;
mod automatic;
pub(crate) mod content;
mod digests;
mod disk;
pub(crate) mod displaced;
mod examine;
mod expand;
mod hint;
mod hinted;
mod machines;
pub(crate) mod marks;
mod plan;
mod planner;
mod read_ahead;
mod stream;

pub use digests::{DigestKind, Digests};
pub use hint::{BitmapHint, Hint, Reading, Reread};
use machines::Held;
pub use machines::MachineOptions;
use plan::PartPlan;
pub use plan::{ChunkerChoice, InputRequest, PlannedSource, validate_request as validate};
pub(crate) use stream::store_bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::compression::Compression;
use crate::repository::packer::ChunkWriter;
use crate::repository::points::{Point, PointSet};
use crate::repository::session::{Session, remember_heads};
use crate::source::{DiskSource, open_image};
use diskvault_format::id::{BackupId, PointId};
use diskvault_format::manifest::{DiskRecord, Manifest, Statistics};
use rayon::ThreadPool;
use std::sync::Arc;

/// A backup that is fenced starts over; more often than this somebody has to look.
pub(crate) const TRIES_MAX: u32 = 3;

/// What to back up and how.
#[derive(Clone)]
pub struct BackupOptions {
    /// The series the point belongs to.
    pub series: String,
    /// Its inputs, in order.
    pub inputs: Vec<InputRequest>,
    /// How disks are cut.
    pub chunker: ChunkerChoice,
    /// How hard what is new is compressed.
    pub compression: Compression,
    /// Name for standard input.
    pub stdin_name: Option<String>,
    /// Tags: key and value.
    pub tags: Vec<(String, String)>,
    /// The time the point shows; now if `None`. Nanoseconds since 1970.
    pub time_unix_ns: Option<i64>,
    /// Digests to compute beside BLAKE3.
    pub digests: Vec<DigestKind>,
    /// This host's name.
    pub host: String,
    /// Whether hints count.
    pub reading: Reading,
}

/// What a backup did.
#[derive(Clone, Debug)]
pub struct BackupReport {
    /// The new point.
    pub point: PointId,
    /// Its record.
    pub manifest: Manifest,
    /// The sum over all parts.
    pub statistics: Statistics,
    /// Wall time in seconds.
    pub duration_seconds: f64,
}

impl BackupReport {
    /// Bytes of all disks that could not be read and are zeros in the point.
    pub fn unreadable_bytes(&self) -> u64 {
        let bad = self.manifest.disks.iter().flat_map(|disk| &disk.bad_extents);
        bad.map(|range| range.bytes).sum()
    }
}

/// What all parts of one backup share.
pub(crate) struct Context<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) session: &'a Session<'a>,
    pub(crate) writer: &'a mut ChunkWriter,
    pub(crate) pool: &'a Arc<ThreadPool>,
    pub(crate) monitor: &'a dyn Monitor,
    pub(crate) digests: &'a [DigestKind],
}

/// Makes a restore point.
///
/// # Errors
/// `Usage` for names that cannot be, `Source` for an input that cannot be read or changes its
/// size, `NoSpace`, `Storage`, `Cancelled`; nothing is published then, and what was stored is
/// found by the next run.
pub fn run(
    repository: &Repository,
    options: &BackupOptions,
    pool: &Arc<ThreadPool>,
    monitor: &dyn Monitor,
) -> Result<BackupReport> {
    let open = |input: &InputRequest| open_image(&input.path, &input.image, monitor);
    run_with(repository, options, &open, pool, monitor)
}

/// How an input becomes a disk.
pub type OpenDisk<'a> = &'a dyn Fn(&InputRequest) -> Result<Box<dyn DiskSource>>;

/// As [`run`], with disks that `open` opens; again for each try.
///
/// # Errors
/// As [`run`].
pub fn run_with(
    repository: &Repository,
    options: &BackupOptions,
    open: OpenDisk<'_>,
    pool: &Arc<ThreadPool>,
    monitor: &dyn Monitor,
) -> Result<BackupReport> {
    let inputs = expand::expand(&options.inputs, monitor)?;
    let options = &BackupOptions { inputs, ..options.clone() };
    plan::validate_request(options)?;
    refuse_series_of_others(repository, &options.series)?;
    let backup_id = BackupId(crate::environment::random_array(repository.environment().as_ref())?);
    let repository = &repository.remembering();
    let mut held = machines::freeze(repository, options, backup_id, monitor)?;
    let made = run_tries(repository, &mut held, open, backup_id, pool, monitor);
    match &made {
        Ok(_) => held.keep(monitor),
        Err(_) => held.release(monitor),
    }
    made
}

/// What a writer that may not read puts into a series that is not its own would not count.
fn refuse_series_of_others(repository: &Repository, series: &str) -> Result<()> {
    let keys = repository.keys();
    let own = keys.write_only_writer().and_then(|writer| keys.writers().get(writer));
    match own {
        Some(record) if !record.may_write_to(series) => {
            let (series, own) = (series.escape_debug(), record.series.join(", "));
            let text = format!(
                "cannot back up to series {series}: this key may write to {} only",
                own.escape_debug()
            );
            Err(Error::new(ErrorKind::Usage, text))
        }
        _ => Ok(()),
    }
}

/// Makes a point, and starts over when its lease was removed.
fn run_tries(
    repository: &Repository,
    held: &mut Held,
    open: OpenDisk<'_>,
    backup_id: BackupId,
    pool: &Arc<ThreadPool>,
    monitor: &dyn Monitor,
) -> Result<BackupReport> {
    let mut tries = 1;
    loop {
        match run_once(repository, held, open, backup_id, pool, monitor) {
            Err(error) if error.kind() == ErrorKind::Fenced => {
                let from_pipe = held.options.inputs.iter().any(InputRequest::is_read_once);
                if from_pipe || tries == TRIES_MAX {
                    return Err(error.hint("run the backup again"));
                }
                monitor.warn(&format!("{}; starting over", error.full_text()));
                tries += 1;
            }
            other => return other,
        }
    }
}

fn run_once(
    repository: &Repository,
    held: &mut Held,
    open: OpenDisk<'_>,
    backup_id: BackupId,
    pool: &Arc<ThreadPool>,
    monitor: &dyn Monitor,
) -> Result<BackupReport> {
    let options = &held.options.clone();
    let environment = repository.environment();
    let began = environment.monotonic();
    let started_unix_ns = environment.now_unix_ns();
    // Sources are opened before anything is registered, so that a wrong path costs nothing.
    let sources = plan::open_inputs(options)?;
    let session = Session::begin(repository, &options.host, monitor)?;
    let latest = session.points().latest(&options.series).cloned();
    let parent = parent_of(repository, &session, &options.series);
    let parts = plan::decide(repository, options, open, sources, parent.as_ref(), monitor)?;
    let mut manifest =
        start_manifest(repository, &session, options, backup_id, started_unix_ns, latest.as_ref())?;
    let mut writer = ChunkWriter::new(
        repository,
        session.lease(),
        session.presence().clone(),
        pool.clone(),
        options.compression,
    );
    for part in parts {
        let mut context = Context {
            repository,
            session: &session,
            writer: &mut writer,
            pool,
            monitor,
            digests: &options.digests,
        };
        back_up_part(&mut context, part, parent.as_ref(), options.reading, &mut manifest)?;
    }
    let stored = writer.finish()?;
    if let Some(error) = writer.take_index_failure() {
        let text = error.full_text();
        monitor.warn(&match repository.own_copies() {
            None => format!("{text}; the next run fills the index again"),
            Some(_) => format!("{text}; a later run stores again what this one does not keep"),
        });
    }
    drop(writer);
    share_stored_bytes(&mut manifest, stored.bytes());
    let duration = environment.monotonic().saturating_sub(began);
    manifest.duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    monitor.check_cancelled()?;
    held.check()?;
    let (point, listed) = session.publish_and_list(&manifest)?;
    if let Err(error) = listed.and_then(|points| remember_in(repository, &points, point)) {
        // The point is done; only this host's memory of it is not.
        monitor.warn(&format!("the point was made, but: {}", error.full_text()));
    }
    Ok(BackupReport {
        point,
        statistics: manifest.statistics(),
        manifest,
        duration_seconds: environment.monotonic().saturating_sub(began).as_secs_f64(),
    })
}

fn back_up_part(
    context: &mut Context<'_>,
    part: PartPlan,
    parent: Option<&Point>,
    reading: Reading,
    manifest: &mut Manifest,
) -> Result<()> {
    let PartPlan { name, source, chunking, hint } = part;
    match source {
        PlannedSource::Disk(source) => {
            let time_unix_ns = manifest.time_unix_ns;
            let request =
                disk::DiskRequest { name, source, chunking, parent, hint, reading, time_unix_ns };
            let record = disk::backup_disk(context, request)?;
            warn_of_bad_extents(&record, context.monitor);
            manifest.disks.push(record);
        }
        PlannedSource::Stream(reader) => {
            manifest.streams.push(stream::backup_stream(context, name, reader)?);
        }
    }
    Ok(())
}

/// What could not be read is zeros in the point, which only its own record tells later.
fn warn_of_bad_extents(disk: &DiskRecord, monitor: &dyn Monitor) {
    let bytes: u64 = disk.bad_extents.iter().map(|range| range.bytes).sum();
    if let Some(first) = disk.bad_extents.first() {
        let (name, count) = (disk.name.escape_debug(), disk.bad_extents.len());
        let (ranges, end) =
            (if count == 1 { "range" } else { "ranges" }, first.start + first.bytes);
        monitor.warn(&format!(
            "disk {name}: {bytes} bytes in {count} {ranges} could not be read and are zeros in the \
             point, the first at {} to {end}",
            first.start
        ));
    }
}

fn start_manifest(
    repository: &Repository,
    session: &Session<'_>,
    options: &BackupOptions,
    backup_id: BackupId,
    started_unix_ns: i64,
    parent: Option<&Point>,
) -> Result<Manifest> {
    Ok(Manifest {
        backup_id,
        lease: session.lease(),
        series: options.series.clone(),
        time_unix_ns: options.time_unix_ns.unwrap_or(started_unix_ns),
        started_unix_ns,
        duration_ms: 0,
        host: options.host.clone(),
        writer: repository.writer_id()?,
        program: crate::PROGRAM.to_string(),
        sequence: next_sequence(repository, &options.series, parent),
        previous: session.points().heads(&options.series),
        republishes: None,
        tags: options.tags.clone(),
        disks: Vec::new(),
        streams: Vec::new(),
        signature_kind: 0,
        extensions: Vec::new(),
    })
}

/// The newest point that this run may take over from: of a writer that may not read its own, of others
/// none by such a writer, which could say anything of what it has read.
fn parent_of(repository: &Repository, session: &Session<'_>, series: &str) -> Option<Point> {
    let writers = repository.keys().writers();
    let is_full = |point: &&Point| writers.get(point.manifest.writer).is_none();
    let mut newest = session.points().series(series).rev();
    let found = match repository.own_copies() {
        Some(_) => newest.next(),
        None => newest.find(is_full),
    };
    found.cloned()
}

/// One more than the greatest sequence of the series. A writer that may not read sees its own points
/// only, and goes by what it remembers; if that is nothing, the seconds since 1970 are more than any
/// series has points (spec/21-writers.md).
fn next_sequence(repository: &Repository, series: &str, parent: Option<&Point>) -> u64 {
    let seen = parent.map_or(0, |point| point.manifest.sequence);
    if repository.own_copies().is_none() {
        return seen.saturating_add(1);
    }
    let remembered = repository.memory().series.get(series).map_or(0, |memory| memory.sequence);
    match seen.max(remembered) {
        0 => u64::try_from(repository.environment().now_unix_ns() / 1_000_000_000).unwrap_or(1),
        greatest => greatest.saturating_add(1),
    }
}

/// Segments of several parts share packs, so each part gets its share by its new bytes.
pub(crate) fn share_stored_bytes(manifest: &mut Manifest, stored_bytes: u64) {
    let new_bytes = manifest.statistics().new_bytes;
    let disks = manifest.disks.iter_mut().map(|disk| &mut disk.statistics);
    let streams = manifest.streams.iter_mut().map(|stream| &mut stream.statistics);
    let mut left = stored_bytes;
    let mut parts: Vec<&mut Statistics> = disks.chain(streams).collect();
    let last = parts.len().saturating_sub(1);
    for (number, statistics) in parts.iter_mut().enumerate() {
        let share = match u128::from(new_bytes) {
            0 => 0,
            all => (u128::from(stored_bytes) * u128::from(statistics.new_bytes) / all) as u64,
        };
        statistics.stored_bytes = if number == last { left } else { share.min(left) };
        left -= statistics.stored_bytes;
    }
}

/// Remembers the new head on this host, so that its loss shows here.
pub(crate) fn remember_point(repository: &Repository, point: PointId) -> Result<()> {
    remember_in(repository, &PointSet::load(repository)?, point)
}

fn remember_in(repository: &Repository, points: &PointSet, point: PointId) -> Result<()> {
    if !points.points.iter().any(|known| known.id == point) {
        let text = format!("cannot find the new point {} in the listing", point.short());
        return Err(Error::new(ErrorKind::Storage, text));
    }
    remember_heads(repository, points)
}

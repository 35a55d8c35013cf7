//! Looking for damage: `check`.
//!
//! Structure: every object parses and authenticates, every point's maps are whole, every chunk
//! they name is in a pack whose footer opens, no point of a series is missing unexplained. With
//! data: every byte of the chosen packs hashes to its name, and every entry to its id.
//!
//! Invariants: nothing is believed that the index says; locations are made anew from the footers;
//! one damaged object never hides another; what a forget or a prune took away meanwhile is no
//! damage.

mod data;
mod keyless;
mod locks;
mod maps;
mod objects;
mod splices;

pub use data::{Coverage, DataSubset};
pub use keyless::check_names;
pub use locks::{Renewal, renew_locks};

use crate::error::{ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::locate::Locator;
use crate::repository::points::{Point, PointSet};
use data::DamagedEntries;
use diskvault_format::id::{PackId, PointId};
use rayon::ThreadPool;
use std::collections::BTreeSet;
use std::ops::Range;

/// How thorough to be.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CheckOptions {
    /// Which packs to read in full; none if `None`.
    pub data: Option<DataSubset>,
}

/// What of a point some damage touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affected {
    /// The point's series.
    pub series: String,
    /// The point.
    pub point: PointId,
    /// The disk or stream.
    pub part: String,
    /// Its bytes; none if it is not known which.
    pub bytes: Option<Range<u64>>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// True for damage; false for what is merely worth knowing.
    pub is_damage: bool,
    /// What is wrong, naming the object.
    pub text: String,
    /// What it touches, if that is known.
    pub affected: Option<Affected>,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// All findings, in the order they were met.
    pub findings: Vec<Finding>,
    /// Visible points.
    pub points: u64,
    /// Packs in the repository.
    pub packs: u64,
    /// Chunks, splices and pages in them.
    pub entries: u64,
    /// Map pages that were looked at: each distinct one once for every place that asks something
    /// else of it.
    pub pages: u64,
    /// Packs read in full.
    pub packs_read: u64,
    /// Bytes of them that were found whole.
    pub bytes_read: u64,
    /// Packs that were taken away before they were read.
    pub packs_gone: u64,
    /// Packs that were read and are damaged.
    pub damaged_packs: Vec<PackId>,
    /// How long ago what was read; nothing if no packs were.
    pub coverage: Option<Coverage>,
    /// Newest point of every series: name and id, to be kept elsewhere.
    pub heads: Vec<(String, String)>,
}

impl CheckReport {
    /// Number of findings that are damage.
    pub fn damage_count(&self) -> usize {
        self.findings.iter().filter(|finding| finding.is_damage).count()
    }

    /// The points that damage touches, each with its series, sorted.
    pub fn affected_points(&self) -> BTreeSet<(&str, PointId)> {
        let affected = self.findings.iter().filter_map(|finding| finding.affected.as_ref());
        affected.map(|affected| (affected.series.as_str(), affected.point)).collect()
    }

    fn damage(&mut self, text: impl Into<String>) {
        let text = text.into();
        if self.findings.iter().all(|known| known.text != text) {
            self.findings.push(Finding { is_damage: true, text, affected: None });
        }
    }

    fn remark(&mut self, text: impl Into<String>) {
        self.findings.push(Finding { is_damage: false, text: text.into(), affected: None });
    }
}

/// Checks a repository.
///
/// # Errors
/// Fails only if the storage cannot be listed, the cache cannot be written, or on `Cancelled`;
/// damage is in the report.
pub fn run(
    repository: &Repository,
    options: &CheckOptions,
    pool: &ThreadPool,
    monitor: &dyn Monitor,
) -> Result<CheckReport> {
    let repository = &repository.forgiving();
    let mut report = CheckReport::default();
    for problem in repository.describe_problems()? {
        if problem.is_damage {
            report.damage(problem.text);
        } else {
            report.remark(problem.text);
        }
    }
    for text in repository.storage().foreign()? {
        report.remark(format!("{text} does not belong to the repository"));
    }
    // Points before packs: a pack that a point needs was durable before the point was.
    let points = PointSet::load_fresh(repository)?;
    report.points = points.points.len() as u64;
    for record in repository.keys().writers().iter() {
        let is_listed = repository.config().key_slots.contains(&record.slot);
        let (name, slot) = (record.name.escape_debug(), record.slot.short());
        if record.retired.is_none() && !is_listed {
            report.remark(format!(
                "writer {name} counts, but no config lists its key {slot}: a `key` command was \
                 interrupted, or the storage hides that it was retired; `key remove {slot}` retires it"
            ));
        } else if record.retired.is_some() && is_listed {
            report.remark(format!(
                "key {slot} of writer {name} opens, but what it stores counts for nothing: `key \
                 remove {slot}` ends it"
            ));
        }
    }
    // Nothing is damaged by what does not count; but somebody has put it there.
    for (_, error) in &points.unlisted {
        monitor.warn(&error.full_text());
    }
    let explained = objects::check_small_objects(repository, &mut report)?;
    objects::check_points(repository, &points, &explained, &mut report)?;
    let locator = Locator::open_fresh(repository, monitor)?;
    report.packs = locator.listed().len() as u64;
    report.entries = locator.entries_read();
    let damaged = match &options.data {
        Some(subset) => {
            data::check_packs(repository, &locator, subset, pool, &mut report, monitor)?
        }
        None => DamagedEntries::default(),
    };
    for (id, error) in locator.damaged() {
        if error.kind() == ErrorKind::Unlisted {
            monitor.warn(&error.full_text());
        } else if !report.damaged_packs.contains(id) {
            report.damage(error.full_text());
        }
    }
    check_maps(repository, locator, &points, &damaged, &mut report, monitor)?;
    for name in points.series_names() {
        if let Some(latest) = points.latest(name) {
            report.heads.push((name.to_string(), latest.id.to_hex()));
        }
    }
    if report.damage_count() == 0 {
        crate::repository::session::remember_heads(repository, &points)?;
    }
    Ok(report)
}

/// Looks at what was found, each after more packs were taken away.
const LOOKS_MAX: usize = 8;

/// Checks all maps; and those again that have findings, while a forget or a prune has been at
/// work meanwhile: pages and chunks may be in other packs now, and points gone.
fn check_maps(
    repository: &Repository,
    mut locator: Locator,
    points: &PointSet,
    damaged: &DamagedEntries,
    report: &mut CheckReport,
    monitor: &dyn Monitor,
) -> Result<()> {
    let all: Vec<&Point> = points.points.iter().collect();
    let mut found = maps::check_maps(repository, &locator, &all, damaged, monitor)?;
    report.pages = found.pages;
    for _ in 0..LOOKS_MAX {
        if found.findings.is_empty() || !locator.is_outdated(repository)? {
            break;
        }
        let touched: BTreeSet<PointId> = found
            .findings
            .iter()
            .filter_map(|found| Some(found.affected.as_ref()?.point))
            .collect();
        let points = PointSet::load_fresh(repository)?;
        let again: Vec<&Point> =
            points.points.iter().filter(|point| touched.contains(&point.id)).collect();
        locator = Locator::open_fresh(repository, monitor)?;
        found = maps::check_maps(repository, &locator, &again, damaged, monitor)?;
    }
    report.findings.append(&mut found.findings);
    Ok(())
}

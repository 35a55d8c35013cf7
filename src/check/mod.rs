//! Looking for damage: `check`.
//!
//! Structure: every object parses and authenticates, every point's maps are whole, every chunk
//! they name is in a pack whose footer opens, no point of a series is missing unexplained. With
//! data: every byte of the chosen packs hashes to its name, and every entry to its id.
//!
//! Invariants: nothing is believed that the index says; locations are made anew from the footers;
//! one damaged object never hides another.

mod data;
mod maps;
mod objects;
mod splices;

pub use data::DataSubset;

use crate::error::Result;
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::locate::Locator;
use crate::repository::points::PointSet;
use rayon::ThreadPool;

/// How thorough to be.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CheckOptions {
    /// Which packs to read in full; none if `None`.
    pub data: Option<DataSubset>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// True for damage; false for what is merely worth knowing.
    pub is_damage: bool,
    /// What is wrong, naming the object.
    pub text: String,
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
    /// Bytes of them.
    pub bytes_read: u64,
    /// Newest point of every series: name and id, to be kept elsewhere.
    pub heads: Vec<(String, String)>,
}

impl CheckReport {
    /// Number of findings that are damage.
    pub fn damage_count(&self) -> usize {
        self.findings.iter().filter(|finding| finding.is_damage).count()
    }

    fn damage(&mut self, text: impl Into<String>) {
        let text = text.into();
        if self.findings.iter().all(|known| known.text != text) {
            self.findings.push(Finding { is_damage: true, text });
        }
    }

    fn remark(&mut self, text: impl Into<String>) {
        self.findings.push(Finding { is_damage: false, text: text.into() });
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
    let points = PointSet::load(repository)?;
    report.points = points.points.len() as u64;
    let explained = objects::check_small_objects(repository, &mut report)?;
    objects::check_points(repository, &points, &explained, &mut report)?;
    let locator = Locator::open_fresh(repository, monitor)?;
    report.packs = locator.listed().len() as u64;
    report.entries = locator.entries_read();
    for (_, error) in locator.damaged() {
        report.damage(error.full_text());
    }
    maps::check_maps(repository, &locator, &points, &mut report, monitor)?;
    if let Some(subset) = &options.data {
        data::check_packs(repository, &locator, subset, pool, &mut report, monitor)?;
    }
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

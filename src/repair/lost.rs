//! Naming what is lost: `lost/<id>` (spec/37-small-objects.md).
//!
//! Invariants: an id is named only if no listed pack gives it, and taken off once one does; a list is
//! put before the one it replaces goes, so that two repairs at once name too much and never too
//! little.

use super::RepairReport;
use crate::error::Result;
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::locate::Locator;
use crate::repository::lost::{put_lists, read_lists};
use crate::repository::map_reader::MapReader;
use crate::repository::marks::MetPages;
use crate::repository::points::PointSet;
use crate::repository::reach::{Visitor, visit};
use diskvault_format::id::{ChunkId, PageId};
use std::collections::BTreeSet;

/// Names what no pack gives: of `suspects`, of the lists there are, and of what the points need.
///
/// # Errors
/// What the index or the storage say; `Cancelled`.
pub(super) fn name_lost(
    repository: &Repository,
    mut suspects: BTreeSet<[u8; 32]>,
    report: &mut RepairReport,
    monitor: &dyn Monitor,
) -> Result<()> {
    let locator = Locator::open_fresh(repository, monitor)?;
    add_missing(repository, &locator, &mut suspects, monitor)?;
    let lists = read_lists(repository)?;
    let named: BTreeSet<[u8; 32]> = lists.iter().flat_map(|list| list.ids.clone()).collect();
    let mut lost = BTreeSet::new();
    for id in suspects.union(&named) {
        if !locator.splices().is_present(ChunkId(*id), &|_, _| true)? {
            lost.insert(*id);
        }
    }
    report.lost = lost.len() as u64;
    report.found_again = named.difference(&lost).count() as u64;
    if lost != named || lists.len() > 1 {
        put_lists(repository, &lost)?;
        for list in lists {
            repository.storage().delete(&list.name)?;
        }
    }
    Ok(())
}

/// Adds the chunks that visible points name and no pack holds. What is below a page that cannot be
/// read is not known.
fn add_missing(
    repository: &Repository,
    locator: &Locator,
    suspects: &mut BTreeSet<[u8; 32]>,
    monitor: &dyn Monitor,
) -> Result<()> {
    let points = PointSet::load(repository)?;
    let reader = MapReader::new(repository, locator);
    let mut missing = Missing { locator, met: MetPages::new(locator), suspects, monitor };
    monitor.start("looking for what is missing", Some(points.points.len() as u64));
    for point in &points.points {
        match visit(&reader, &point.manifest, &mut missing) {
            Err(error) if error.kind().is_finding() => {
                let (series, id) = (point.manifest.series.escape_debug(), point.id.short());
                monitor.warn(&format!("{series} {id}: {}", error.full_text()));
            }
            other => other?,
        }
        monitor.advance(1);
    }
    monitor.finish();
    Ok(())
}

struct Missing<'a> {
    locator: &'a Locator,
    met: MetPages<'a>,
    suspects: &'a mut BTreeSet<[u8; 32]>,
    monitor: &'a dyn Monitor,
}

impl Visitor for Missing<'_> {
    fn page(&mut self, id: PageId) -> Result<bool> {
        self.monitor.check_cancelled()?;
        if self.met.contains(id)? {
            return Ok(false);
        }
        if !self.locator.splices().is_present(ChunkId(id.0), &|_, _| true)? {
            self.suspects.insert(id.0);
        }
        Ok(true)
    }

    fn page_done(&mut self, id: PageId) -> Result<()> {
        self.met.insert(id).map(|_| ())
    }

    fn chunk(&mut self, id: ChunkId) -> Result<()> {
        if !self.locator.splices().is_present(id, &|_, _| true)? {
            self.suspects.insert(id.0);
        }
        Ok(())
    }
}

//! The place of a copied point in its series, and the point that it is compared with.
//!
//! Invariant: copies of points stand in the order of their sources, whenever each was copied; a
//! copy of an old point never becomes the newest of a series that has newer ones.

use crate::error::Result;
use crate::repository::points::{Point, PointSet};
use crate::repository::session::Session;
use diskvault_format::id::{BackupId, PointId};
use diskvault_format::limits::PREVIOUS_MAX;
use diskvault_format::manifest::Manifest;
use std::collections::{BTreeSet, HashMap};

/// The order of the source's points.
pub(super) struct Order(HashMap<BackupId, usize>);

impl Order {
    /// The order of all points, series by series.
    pub fn new(points: &PointSet) -> Order {
        let numbered = points.points.iter().enumerate();
        Order(numbered.map(|(number, point)| (point.manifest.backup_id, number)).collect())
    }

    /// True if `known`, of the same series, stands before `manifest`: as in the source if it is a
    /// copy of a point there, else by its time.
    fn is_before(&self, known: &Manifest, manifest: &Manifest) -> bool {
        match (self.0.get(&known.backup_id), self.0.get(&manifest.backup_id)) {
            (Some(known), Some(own)) => known < own,
            _ => known.time_unix_ns <= manifest.time_unix_ns,
        }
    }
}

/// The points that a copy follows, and its sequence number: that of the first point behind it at
/// most. Of equal numbers the later time counts as newer.
pub(super) fn place(points: &PointSet, order: &Order, manifest: &Manifest) -> (Vec<PointId>, u64) {
    let (mut earlier, later): (Vec<&Point>, Vec<&Point>) = points
        .series(&manifest.series)
        .partition(|known| order.is_before(&known.manifest, manifest));
    if let Some(limit) = later.iter().map(|point| point.manifest.sequence).min() {
        earlier.retain(|point| point.manifest.sequence < limit);
    }
    let followed: BTreeSet<PointId> =
        earlier.iter().flat_map(|point| point.manifest.previous.iter().copied()).collect();
    let heads = earlier.iter().rev().filter(|point| !followed.contains(&point.id));
    let heads: Vec<&&Point> = heads.take(PREVIOUS_MAX).collect();
    let sequence = heads.iter().map(|point| point.manifest.sequence).max().unwrap_or(0);
    let mut previous: Vec<PointId> = heads.iter().map(|point| point.id).collect();
    previous.sort_unstable();
    (previous, sequence.saturating_add(1))
}

/// The point of the target that a copy is compared with.
pub(super) struct Base {
    /// The point.
    pub point: Option<Point>,
    /// True if all it needs is known to be present.
    pub is_complete: bool,
}

impl Base {
    /// The nearest earlier point of the series, else the nearest later one.
    ///
    /// # Errors
    /// What the index says.
    pub fn find(session: &Session<'_>, order: &Order, manifest: &Manifest) -> Result<Base> {
        let mut series = session.points().series(&manifest.series);
        let earlier = series.rfind(|known| order.is_before(&known.manifest, manifest));
        let nearest = earlier.or_else(|| session.points().series(&manifest.series).next());
        let is_complete = match nearest {
            Some(point) => session.is_known_complete(point)?,
            None => false,
        };
        Ok(Base { point: nearest.cloned(), is_complete })
    }
}

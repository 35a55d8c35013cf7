//! Which points stay, and taking the others away: `forget`, its undoing, pins and tags.
//!
//! Invariants: a pinned point is not forgotten; what is forgotten is in the trash, and explained by
//! a note, before it is gone from `points/`; nothing here deletes a pack.

pub mod forget;
pub mod policy;
pub mod trust;
pub mod undo;

use crate::repository::notes::Notes;
use crate::repository::points::{Point, PointSet};
use diskvault_format::id::PointId;
use policy::Candidate;
use std::collections::BTreeMap;
use trust::{Dated, Doubt, doubts};

/// The points whose dates are not to be believed, and why.
pub fn doubted(points: &PointSet) -> BTreeMap<PointId, Doubt> {
    let known: Vec<Dated<'_>> = points
        .points
        .iter()
        .map(|point| {
            let (id, received_unix_ns) = (point.id, points.received_unix_ns(point.id));
            let (series, time_unix_ns) = (&*point.manifest.series, point.manifest.time_unix_ns);
            Dated { id, series, time_unix_ns, received_unix_ns }
        })
        .collect();
    let found = known.iter().zip(doubts(&known));
    found.filter_map(|(point, doubt)| Some((point.id, doubt?))).collect()
}

/// What a policy has to know of a point. A note that cannot be read counts as a pin.
pub fn candidate(point: &Point, notes: &Notes, group: String, doubt: Option<Doubt>) -> Candidate {
    let pin = match notes.pins(point) {
        Ok(pins) => pins.first().map(|pin| pin.reason.clone()),
        Err(error) => Some(error.full_text()),
    };
    let manifest = &point.manifest;
    Candidate {
        id: point.id,
        group,
        series: manifest.series.clone(),
        sequence: manifest.sequence,
        time_unix_ns: manifest.time_unix_ns,
        doubt,
        pin,
        tags: notes.tags(point),
    }
}

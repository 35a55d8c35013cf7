//! Which points stay, and taking the others away: `forget`, its undoing, pins and tags.
//!
//! Invariants: a pinned point is not forgotten; what is forgotten is in the trash, and explained by
//! a note, before it is gone from `points/`; nothing here deletes a pack.

pub mod forget;
pub mod policy;
pub mod undo;

use crate::repository::notes::Notes;
use crate::repository::points::Point;
use policy::Candidate;

/// What a policy has to know of a point. A note that cannot be read counts as a pin.
pub fn candidate(point: &Point, notes: &Notes, group: String) -> Candidate {
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
        pin,
        tags: notes.tags(point),
    }
}

//! Points that are gone and that nobody forgot: what only they need would be freed as if somebody
//! had.
//!
//! Invariant: a prune frees nothing while a point is missing that a later point follows, that has
//! left its `ok`, or that this host saw as a head, unless a removal note or the trash explains it or
//! the user says that it is gone for good.

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::notes::put_note;
use crate::repository::points::{PointSet, removed_points};
use diskvault_format::id::PointId;
use diskvault_format::small::NOTE_REMOVAL;
use std::collections::BTreeSet;

/// Refuses to go on if points have vanished; or notes them as removed, if that `is_accepted`.
///
/// # Errors
/// `Damage`, naming one of them; what the storage says.
pub(super) fn refuse_vanished(
    repository: &Repository,
    is_accepted: bool,
    host: &str,
    monitor: &dyn Monitor,
) -> Result<()> {
    let vanished = find_vanished(repository)?;
    let Some(first) = vanished.first() else { return Ok(()) };
    let count = vanished.len();
    if !is_accepted {
        let text = format!(
            "cannot tell what has to stay: {count} points are gone without a removal note, such as {first}"
        );
        return Err(Error::new(ErrorKind::Damage, text)
            .hint("bring points/ back from a copy, or use --force if they are gone for good"));
    }
    for id in vanished {
        monitor.warn(&format!("point {id} is gone without a removal note; it is noted as removed"));
        let reason = "it had vanished, and a prune was told that it is gone for good";
        put_note(repository, id, NOTE_REMOVAL, host, vec![("reason".into(), reason.into())])?;
    }
    Ok(())
}

fn find_vanished(repository: &Repository) -> Result<BTreeSet<PointId>> {
    let points = PointSet::load(repository)?;
    let there: BTreeSet<PointId> = points
        .points
        .iter()
        .map(|point| point.id)
        .chain(points.unfinished.iter().copied())
        .chain(points.damaged.iter().chain(&points.unlisted).map(|(id, _)| *id))
        .collect();
    // A writer that may not read can name what it likes, and its own heads it remembers itself.
    let writers = repository.keys().writers();
    let full = points.points.iter().filter(|point| writers.get(point.manifest.writer).is_none());
    let followed = full.flat_map(|point| &point.manifest.previous);
    let heads = points.unexplained_heads(repository)?.into_iter().map(|gone| gone.id);
    let mut vanished: BTreeSet<PointId> =
        followed.chain(&points.lonely_oks).copied().chain(heads).collect();
    vanished.retain(|id| !there.contains(id));
    if !vanished.is_empty() {
        // After the points: a forget puts its note before the manifest goes.
        let removed = removed_points(repository, &vanished)?;
        vanished.retain(|id| !removed.contains(id));
    }
    Ok(vanished)
}

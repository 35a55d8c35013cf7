//! What has to stay: the manifests that every mark begins with, and the walk over all they need.
//!
//! Invariant: every manifest in `points/` counts, with or without `ok`, and one that cannot be read
//! stops the prune: nobody knows what it needs.

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::locate::Locator;
use crate::repository::map_reader::MapReader;
use crate::repository::marks::MetPages;
use crate::repository::notes::Notes;
use crate::repository::points::read_manifest;
use crate::repository::reach::{Visitor, visit};
use crate::storage::Folder;
use diskvault_format::id::{ChunkId, PageId, PointId};
use diskvault_format::manifest::Manifest;
use diskvault_format::names::{self, PointName};
use diskvault_format::small::NOTE_REMOVAL;
use std::collections::{BTreeMap, BTreeSet};

/// A manifest, and the point it is of.
pub(super) struct Root {
    /// The point.
    pub id: PointId,
    /// Its manifest.
    pub manifest: Manifest,
    /// True if it is in the trash and kept there for a while.
    pub is_forgotten: bool,
}

/// All manifests, newest first; and those forgotten at or after `kept_since`, if that is given.
///
/// # Errors
/// `Damage` or `Newer` for one that cannot be read; what the storage says.
pub(super) fn read_roots(repository: &Repository, kept_since: Option<i64>) -> Result<Vec<Root>> {
    let mut roots = BTreeMap::new();
    let mut read = |folder, id| match read_manifest(repository, folder, id) {
        Ok(manifest) => {
            let is_forgotten = folder == Folder::Trash;
            // One that is in both places is not forgotten yet.
            roots.entry(id).or_insert(Root { id, manifest, is_forgotten });
            Ok(())
        }
        // Forgotten since the listing, or brought back.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(cannot_prune(&error)),
    };
    for entry in repository.storage().list(Folder::Points)? {
        if let Some(PointName::Manifest(id)) = names::parse_point(entry.name.leaf()) {
            read(Folder::Points, id)?;
        }
    }
    if let Some(since) = kept_since {
        let trash = repository.storage().list(Folder::Trash)?;
        let trash: BTreeSet<PointId> =
            trash.iter().filter_map(|entry| PointId::from_hex(entry.name.leaf())).collect();
        let notes = Notes::under_ids(repository, &trash)?;
        for id in trash {
            if forgotten_at(&notes, id).is_none_or(|time| time >= since) {
                read(Folder::Trash, id)?;
            }
        }
    }
    let mut roots: Vec<Root> = roots.into_values().collect();
    roots.sort_by_key(|root| std::cmp::Reverse((root.manifest.time_unix_ns, root.id)));
    Ok(roots)
}

/// When a point was forgotten, by the latest note about it.
pub(super) fn forgotten_at(notes: &Notes, id: PointId) -> Option<i64> {
    let removals = notes.under(id).iter().filter(|stored| stored.note.kind == NOTE_REMOVAL);
    removals.map(|stored| stored.note.time_unix_ns).max()
}

fn cannot_prune(cause: &Error) -> Error {
    let text = format!("cannot tell what has to stay: {}", cause.full_text());
    // Also where a writer is not listed: its record may be what is lost, and not what it stored.
    Error::new(cause.kind(), text).hint(match cause.kind() {
        ErrorKind::Unlisted => "`diskvault repair objects` sets aside what does not count",
        _ => "`diskvault check` shows the damage",
    })
}

/// Is told each page once, and each chunk as often as a new page names it.
pub(super) trait Needs {
    /// A page that is about to be read, as often as it is.
    ///
    /// # Errors
    /// Ends the walk.
    fn before_page(&mut self, _id: PageId) -> Result<()> {
        Ok(())
    }

    /// A page that was read, and all below it told: a pack whose copy of it is damaged is known to
    /// be by now.
    ///
    /// # Errors
    /// Ends the walk.
    fn page(&mut self, id: PageId) -> Result<()>;

    /// A chunk.
    ///
    /// # Errors
    /// Ends the walk.
    fn chunk(&mut self, id: ChunkId) -> Result<()>;
}

/// Tells `needs` all that the roots need, in their order, and how many forgotten points have a map
/// that cannot be read in full: an earlier prune that did not keep them was stopped before it had
/// emptied the trash. They cannot come back whole, so they do not stop this one.
///
/// # Errors
/// `Damage` for a map of another point that cannot be read in full; what `needs` says; `Cancelled`.
pub(super) fn walk(
    repository: &Repository,
    locator: &Locator,
    roots: &[&Root],
    stage: &str,
    needs: &mut dyn Needs,
    monitor: &dyn Monitor,
) -> Result<u64> {
    let reader = MapReader::new(repository, locator);
    let mut once = Once { met: MetPages::new(locator), needs, monitor };
    let mut broken = 0;
    monitor.start(stage, Some(roots.len() as u64));
    for root in roots {
        match visit(&reader, &root.manifest, &mut once) {
            Err(error) if error.kind().is_finding() => {
                if !root.is_forgotten {
                    let text = format!("point {}: {}", root.id.short(), error.full_text());
                    return Err(cannot_prune(&Error::new(error.kind(), text)));
                }
                broken += 1;
            }
            other => other?,
        }
        monitor.advance(1);
    }
    monitor.finish();
    Ok(broken)
}

struct Once<'a> {
    met: MetPages<'a>,
    needs: &'a mut dyn Needs,
    monitor: &'a dyn Monitor,
}

impl Visitor for Once<'_> {
    fn page(&mut self, id: PageId) -> Result<bool> {
        self.monitor.check_cancelled()?;
        if self.met.contains(id)? {
            return Ok(false);
        }
        self.needs.before_page(id)?;
        Ok(true)
    }

    fn page_done(&mut self, id: PageId) -> Result<()> {
        // Only now: what is below a page that cannot be read in full is not known, also not to the
        // next root that shares it.
        if self.met.insert(id)? { self.needs.page(id) } else { Ok(()) }
    }

    fn chunk(&mut self, id: ChunkId) -> Result<()> {
        self.needs.chunk(id)
    }
}

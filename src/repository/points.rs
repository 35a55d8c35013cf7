//! Restore points: listing them, reading their manifests, the heads of a series.
//!
//! Invariant: a point is visible only if its manifest and its `ok` both exist.

use super::Repository;
use super::at_once::{at_once, both};
use super::host_memory::{Listing, SeriesMemory};
use super::notes::Notes;
use super::objects::{get_hashed, refused};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Folder, ObjectEntry, ObjectName};
use diskvault_format::id::PointId;
use diskvault_format::limits::{PREVIOUS_MAX, SEALED_BYTES_MAX};
use diskvault_format::manifest::Manifest;
use diskvault_format::names::{self, PointName};
use std::collections::{BTreeMap, BTreeSet};

/// One visible restore point.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its id.
    pub id: PointId,
    /// Its record.
    pub manifest: Manifest,
}

/// Everything in `points/`.
#[derive(Default)]
pub struct PointSet {
    /// Visible points by series, then sequence, then time, then id.
    pub points: Vec<Point>,
    /// Manifests without `ok`: being written, or left behind.
    pub unfinished: Vec<PointId>,
    /// An `ok` without manifest.
    pub lonely_oks: Vec<PointId>,
    /// Visible points whose manifest cannot be read.
    pub damaged: Vec<(PointId, Error)>,
    /// What is whole and by a writer that is not listed or may not write there: no points.
    pub unlisted: Vec<(PointId, Error)>,
    /// When the storage took what made a point visible, where it can tell.
    received: BTreeMap<PointId, i64>,
    /// What this host remembered before the listing: all of it has to be there, or be explained.
    before: BTreeMap<String, SeriesMemory>,
}

/// A point that this host saw as the newest of a series and that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoneHead {
    /// Its series.
    pub series: String,
    /// Its id.
    pub id: PointId,
    /// The greatest sequence number this host had seen in the series by then.
    pub sequence: u64,
}

/// Name of a manifest's object.
///
/// # Errors
/// None in practice: an id always makes a valid name.
pub fn manifest_name(id: PointId) -> Result<ObjectName> {
    ObjectName::new(Folder::Points, &id.to_hex())
}

/// Reads one manifest, visible or not, from `folder` (`points/` or `trash/`).
///
/// # Errors
/// `NotFound`, `Damage` or `Newer`.
pub fn read_manifest(repository: &Repository, folder: Folder, id: PointId) -> Result<Manifest> {
    let name = ObjectName::new(folder, &id.to_hex())?;
    let storage = repository.storage().as_ref();
    let object = match repository.own_copies() {
        // Its copy of a manifest has the name of what was stored, and a check of its own.
        Some(_) => storage.get(&name, SEALED_BYTES_MAX)?,
        None => get_hashed(storage, &name, &id.0)?,
    };
    Manifest::open(repository.keys(), &object).map_err(|cause| refused(&name, cause))
}

impl PointSet {
    /// Lists and reads all points.
    ///
    /// # Errors
    /// Fails if the storage cannot be listed; an unreadable manifest is in `damaged`.
    pub fn load(repository: &Repository) -> Result<PointSet> {
        PointSet::load_fresh(&repository.remembering())
    }

    /// As [`PointSet::load`], with each manifest read from where it is stored.
    ///
    /// # Errors
    /// As [`PointSet::load`].
    pub fn load_fresh(repository: &Repository) -> Result<PointSet> {
        let repository = &repository.forgiving();
        let before = repository.memory().series;
        let listed = repository.storage().list(Folder::Points)?;
        PointSet::of_listing(repository, before, listed)
    }

    /// As [`PointSet::load`], of what was listed a moment ago, before the repository was open. What
    /// another process has remembered since may be missed in it.
    ///
    /// # Errors
    /// As [`PointSet::load`].
    pub fn of_earlier(repository: &Repository, listed: Vec<ObjectEntry>) -> Result<PointSet> {
        let repository = &repository.remembering().forgiving();
        PointSet::of_listing(repository, repository.memory().series, listed)
    }

    fn of_listing(
        repository: &Repository,
        before: BTreeMap<String, SeriesMemory>,
        listed: Vec<ObjectEntry>,
    ) -> Result<PointSet> {
        let mut manifests = BTreeSet::new();
        let mut oks = BTreeSet::new();
        let mut received = BTreeMap::new();
        for entry in listed {
            match names::parse_point(entry.name.leaf()) {
                Some(PointName::Manifest(id)) => manifests.insert(id),
                Some(PointName::Ok(id)) => {
                    received.extend(entry.stored_unix_ns.map(|time| (id, time)));
                    oks.insert(id)
                }
                None => continue,
            };
        }
        // A listing that takes a while may show one half of a point that is made or forgotten then.
        let storage = repository.storage();
        for id in manifests.symmetric_difference(&oks).copied().collect::<Vec<_>>() {
            let is_there = |name| Ok::<_, Error>(storage.size(&name)?.is_some());
            // In this order: who sees an `ok` sees the manifest that was put before it.
            match is_there(ok_name(id)?)? {
                true => oks.insert(id),
                false => oks.remove(&id),
            };
            match is_there(manifest_name(id)?)? {
                true => manifests.insert(id),
                false => manifests.remove(&id),
            };
        }
        let mut set = PointSet {
            unfinished: manifests.difference(&oks).copied().collect(),
            lonely_oks: oks.difference(&manifests).copied().collect(),
            before,
            received,
            ..PointSet::default()
        };
        let visible: Vec<PointId> = manifests.intersection(&oks).copied().collect();
        let read = at_once(storage.as_ref(), &visible, &|| Ok(()), |id| {
            read_manifest(repository, Folder::Points, *id)
        })?;
        for (id, read) in visible.into_iter().zip(read) {
            match read {
                Ok(manifest) => set.points.push(Point { id, manifest }),
                // Forgotten since the listing.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) if error.kind() == ErrorKind::Unlisted => set.unlisted.push((id, error)),
                Err(error) if matches!(error.kind(), ErrorKind::Damage | ErrorKind::Newer) => {
                    set.damaged.push((id, error));
                }
                Err(error) => return Err(error),
            }
        }
        set.points.sort_by(|a, b| order_key(a).cmp(&order_key(b)));
        Ok(set)
    }

    /// When the storage took what made a point visible, by its own clock, in nanoseconds since 1970.
    pub fn received_unix_ns(&self, id: PointId) -> Option<i64> {
        self.received.get(&id).copied()
    }

    /// The points of one series, oldest first.
    pub fn series<'s, 'n>(
        &'s self,
        name: &'n str,
    ) -> impl DoubleEndedIterator<Item = &'s Point> + use<'s, 'n> {
        self.points.iter().filter(move |point| point.manifest.series == name)
    }

    /// The newest point of a series, by sequence.
    pub fn latest(&self, series: &str) -> Option<&Point> {
        self.series(series).next_back()
    }

    /// Names of all series, sorted.
    pub fn series_names(&self) -> BTreeSet<&str> {
        self.points.iter().map(|point| point.manifest.series.as_str()).collect()
    }

    /// The heads of a series: points that no other point follows; the newest ones if there are
    /// more than a manifest may name. Ascending by id.
    pub fn heads(&self, series: &str) -> Vec<PointId> {
        let followed: BTreeSet<PointId> =
            self.series(series).flat_map(|point| point.manifest.previous.clone()).collect();
        let newest_first = self.series(series).rev().map(|point| point.id);
        let mut heads: Vec<PointId> =
            newest_first.filter(|id| !followed.contains(id)).take(PREVIOUS_MAX).collect();
        heads.sort_unstable();
        heads
    }

    /// What a host has to remember of this listing to see a rollback.
    ///
    /// # Errors
    /// As [`PointSet::unexplained_heads`].
    pub fn listing(&self, repository: &Repository) -> Result<Listing> {
        let gone = self.unexplained_heads(repository)?.into_iter();
        let mut heads = BTreeMap::new();
        for name in self.series_names() {
            if let Some(latest) = self.latest(name) {
                let ids = self.heads(name).iter().map(|id| id.to_hex()).collect();
                heads.insert(name.to_string(), (latest.manifest.sequence, ids));
            }
        }
        let damaged = self.damaged.iter().map(|(id, _)| id);
        Ok(Listing {
            before: self.before.clone(),
            unreadable: damaged.chain(&self.lonely_oks).map(|id| id.to_hex()).collect(),
            visible: self.points.iter().map(|point| point.id.to_hex()).collect(),
            heads,
            gone: gone.map(|gone| (gone.series, gone.id.to_hex(), gone.sequence)).collect(),
        })
    }
}

fn order_key(point: &Point) -> (&str, u64, i64, PointId) {
    let manifest = &point.manifest;
    (&manifest.series, manifest.sequence, manifest.time_unix_ns, point.id)
}

impl PointSet {
    /// Reasons to doubt that the newest visible point of a series is the newest there was:
    /// unreadable manifests, an `ok` without manifest, a head this host saw that is gone and that
    /// no newer point has followed since.
    ///
    /// # Errors
    /// What the storage says of the notes.
    pub fn doubts(&self, repository: &Repository) -> Result<Vec<String>> {
        let mut doubts: Vec<String> =
            self.damaged.iter().map(|(_, error)| error.full_text()).collect();
        if !self.lonely_oks.is_empty() {
            let removed = removed_points(repository, &self.lonely_oks.iter().copied().collect())?;
            let unexplained = self.lonely_oks.iter().filter(|id| !removed.contains(id));
            doubts.extend(unexplained.map(|id| format!("the manifest of point {id} is gone")));
        }
        for gone in self.unexplained_heads(repository)? {
            let newest = self.latest(&gone.series).map_or(0, |point| point.manifest.sequence);
            if gone.sequence >= newest {
                let (id, series) = (gone.id, gone.series.escape_debug());
                doubts.push(format!("point {id} of {series}, seen here, is gone"));
            }
        }
        Ok(doubts)
    }

    /// What to tell who looks at the points: [`PointSet::doubts`], and what counts for nothing.
    ///
    /// # Errors
    /// As [`PointSet::doubts`].
    pub fn warnings(&self, repository: &Repository) -> Result<Vec<String>> {
        let mut warnings = self.doubts(repository)?;
        warnings.extend(self.unlisted.iter().map(|(_, error)| error.full_text()));
        Ok(warnings)
    }

    /// Heads that this host remembers and that are neither visible nor explained by a removal
    /// note or the trash.
    ///
    /// # Errors
    /// What the storage says of the notes.
    pub fn unexplained_heads(&self, repository: &Repository) -> Result<Vec<GoneHead>> {
        let known: BTreeSet<PointId> = self
            .points
            .iter()
            .map(|point| point.id)
            .chain(self.damaged.iter().chain(&self.unlisted).map(|(id, _)| *id))
            .chain(self.lonely_oks.iter().copied())
            .collect();
        let mut gone = Vec::new();
        for (series, remembered) in &self.before {
            let heads = remembered.heads.iter().map(|head| (head, remembered.sequence));
            let before = remembered.gone.iter().map(|(head, sequence)| (head, *sequence));
            for (head, sequence) in heads.chain(before) {
                if let Some(id) = PointId::from_hex(head).filter(|id| !known.contains(id)) {
                    gone.push(GoneHead { series: series.clone(), id, sequence });
                }
            }
        }
        if !gone.is_empty() {
            let ids = gone.iter().map(|gone| gone.id).collect();
            let removed = removed_points(repository, &ids)?;
            gone.retain(|gone| !removed.contains(&gone.id));
        }
        Ok(gone)
    }
}

/// The name of what makes a point visible.
///
/// # Errors
/// Never for an id.
pub fn ok_name(id: PointId) -> Result<ObjectName> {
    ObjectName::new(Folder::Points, &names::point_ok(id))
}

/// Deletes the `ok`s of which the manifest is gone for a reason that a note or the trash tells:
/// what a forget leaves that was stopped between its last two steps.
///
/// # Errors
/// What the storage says.
pub fn delete_lonely_oks(repository: &Repository, points: &PointSet) -> Result<()> {
    if points.lonely_oks.is_empty() {
        return Ok(());
    }
    let removed = removed_points(repository, &points.lonely_oks.iter().copied().collect())?;
    for id in points.lonely_oks.iter().filter(|id| removed.contains(id)) {
        repository.storage().delete(&ok_name(*id)?)?;
    }
    Ok(())
}

/// Those of some points that a removal note or the trash explains the absence of.
///
/// # Errors
/// What the storage says.
pub fn removed_points(
    repository: &Repository,
    ids: &BTreeSet<PointId>,
) -> Result<BTreeSet<PointId>> {
    if ids.is_empty() {
        return Ok(BTreeSet::new());
    }
    let storage = repository.storage();
    let notes = || match repository.own_copies() {
        None => Ok(Notes::under_ids(repository, ids)?.removed()),
        // Who may not read knows a note by its name, and takes it for what it mostly is.
        Some(_) => {
            let noted = storage.list(Folder::Notes)?.into_iter();
            let noted = noted.filter_map(|entry| names::parse_note(entry.name.leaf()));
            Ok(noted.filter(|id| ids.contains(id)).collect())
        }
    };
    let (noted, trash) = both(storage.as_ref(), notes, || storage.list(Folder::Trash));
    let mut removed: BTreeSet<PointId> = noted?;
    for entry in trash? {
        removed.extend(PointId::from_hex(entry.name.leaf()).filter(|id| ids.contains(id)));
    }
    Ok(removed)
}

//! Bringing a replica up to its source: what `sync` does.
//!
//! Sealed objects go over as they are: packs that hold what a point needs and the replica lacks,
//! their parity, the manifest, its notes. Only who has the keys can tell what a point needs, so
//! both are open. `needs` finds the packs.
//!
//! Invariants (spec/40-protocol.md, Sync): a point becomes visible in the replica only when all it
//! needs is in packs there that no list names; every pack was compared with its name before it was
//! put; what was forgotten in the replica does not come back by itself; nothing is deleted.

mod needs;

use self::needs::Needs;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::at_once::{at_once, both};
use crate::repository::condemned::read_lists;
use crate::repository::entries::add_footer_to_index;
use crate::repository::locate::Locator;
use crate::repository::objects::get_hashed;
use crate::repository::pack_reader::{open_pack, pack_name};
use crate::repository::parity::parity_name;
use crate::repository::points::{Point, PointSet, manifest_name, removed_points};
use crate::repository::session::{Session, remember_heads};
use crate::storage::{Folder, Storage};
use diskvault_format::id::{PackId, PointId};
use diskvault_format::limits::{PACK_BYTES_MAX, PARITY_BYTES_MAX, SEALED_BYTES_MAX};
use diskvault_format::names;
use std::collections::{BTreeSet, HashMap};

/// Packs that are on their way at once at most, so that memory stays bounded: 32 MiB each at the
/// default size.
const PACKS_AT_ONCE: usize = 4;

/// A source and its replica.
pub struct Syncer<'a> {
    /// Where points are read.
    pub source: &'a Repository,
    /// Where they go.
    pub target: &'a Repository,
    /// This host, for the lease.
    pub host: &'a str,
    /// Hears of progress.
    pub monitor: &'a dyn Monitor,
}

/// What a point of the source is in the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is to be brought over.
    Missing,
    /// It is there.
    Present,
    /// It was there, and was forgotten there.
    Forgotten,
}

/// A point of the source, and what it is in the replica.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The point.
    pub point: Point,
    /// What it is there.
    pub state: State,
}

/// What there is to bring over.
#[derive(Debug)]
pub struct Plan {
    /// Points of the source that are wanted, oldest first in each series.
    pub points: Vec<Planned>,
    /// How many points the replica has that the source has not.
    pub others: u64,
    /// All points of the source.
    here: BTreeSet<PointId>,
    /// All points of the replica.
    there: BTreeSet<PointId>,
}

/// What became of a point.
#[derive(Debug)]
pub enum Outcome {
    /// It is there now.
    Synced {
        /// Packs that went over for it.
        packs: u64,
        /// Bytes of these and of their parity.
        bytes: u64,
    },
    /// It cannot be brought over whole: it or its packs are damaged or gone in the source, or stand
    /// in the way in the replica.
    Failed(Error),
}

/// Compares a replica with its source. Of the points that are wanted, with `brings_back` those too that
/// were forgotten in the replica are to be brought over.
///
/// # Errors
/// What listing says.
pub fn plan(
    source: &Repository,
    target: &Repository,
    brings_back: bool,
    wanted: &dyn Fn(&Point) -> bool,
) -> Result<Plan> {
    let (points, known) =
        both(target.storage().as_ref(), || PointSet::load(source), || PointSet::load(target));
    let (points, there) = (points?.points, ids(&known?));
    let here: BTreeSet<PointId> = points.iter().map(|point| point.id).collect();
    let others = there.difference(&here).count() as u64;
    let missing = here.difference(&there).copied().collect();
    let removed = match brings_back {
        true => BTreeSet::new(),
        false => removed_points(target, &missing)?,
    };
    let planned = points.into_iter().filter(|point| wanted(point)).map(|point| {
        let state = match point.id {
            id if there.contains(&id) => State::Present,
            id if removed.contains(&id) => State::Forgotten,
            _ => State::Missing,
        };
        Planned { point, state }
    });
    Ok(Plan { points: planned.collect(), others, here, there })
}

fn ids(set: &PointSet) -> BTreeSet<PointId> {
    set.points.iter().map(|point| point.id).collect()
}

impl Syncer<'_> {
    /// Brings over what is planned and missing, and the notes of all that is planned and there
    /// afterwards. `tell` hears of each point that is brought over or fails.
    ///
    /// # Errors
    /// `Storage` while packs of the replica are condemned; `Fenced`; what the target says; what
    /// reading the source says, but for damage, which ends only the point it is met in;
    /// `Cancelled`; what `tell` says.
    pub fn run(
        &self,
        plan: &Plan,
        tell: &mut dyn FnMut(&Point, &Outcome) -> Result<()>,
    ) -> Result<()> {
        let mut there = plan.there.clone();
        let mut synced: BTreeSet<PointId> = plan
            .points
            .iter()
            .filter(|planned| planned.state == State::Present)
            .map(|planned| planned.point.id)
            .collect();
        if plan.points.iter().any(|planned| planned.state == State::Missing) {
            let session = Session::begin(self.target, self.host, self.monitor)?;
            self.refuse_condemned()?;
            let locator = Locator::open_for_reading(self.source, self.monitor)?;
            let mut newest = HashMap::new();
            for planned in plan.points.iter().filter(|planned| planned.state == State::Missing) {
                self.monitor.check_cancelled()?;
                let series = planned.point.manifest.series.as_str();
                let base = newest.get(series).copied();
                let outcome = match self.bring(&session, &locator, base, &planned.point) {
                    Ok((packs, bytes)) => {
                        synced.insert(planned.point.id);
                        newest.insert(series, &planned.point);
                        Outcome::Synced { packs, bytes }
                    }
                    Err(error) if error.kind().is_finding() => Outcome::Failed(error),
                    Err(error) => return Err(error),
                };
                tell(&planned.point, &outcome)?;
            }
            session.end()?;
            let points = PointSet::load(self.target)?;
            remember_heads(self.target, &points)?;
            there = ids(&points);
        }
        self.bring_notes(&synced, &plan.here, &there)
    }

    /// A pack that a list names may vanish at any moment, and its name must not be taken again
    /// while somebody may still delete it.
    fn refuse_condemned(&self) -> Result<()> {
        if read_lists(self.target)?.is_empty() {
            return Ok(());
        }
        let place = self.target.storage().location();
        let text = format!("cannot sync to {place}: a prune is at work there, or was interrupted");
        Err(Error::new(ErrorKind::Storage, text)
            .hint("wait for it, or run `diskvault prune` there to its end"))
    }

    /// Brings one point over; how many packs and bytes it took. `base` is whole in the replica.
    fn bring(
        &self,
        session: &Session<'_>,
        locator: &Locator,
        base: Option<&Point>,
        point: &Point,
    ) -> Result<(u64, u64)> {
        let manifest =
            get_hashed(self.source.storage().as_ref(), &manifest_name(point.id)?, &point.id.0)?;
        let mut needs = Needs::new(self.source, locator, session.presence(), self.monitor);
        let latest = session.points().latest(&point.manifest.series);
        if let Some(base) = base {
            needs.leave_out(base)?;
        } else if let Some(latest) = latest
            && session.is_known_complete(latest)?
        {
            needs.leave_out(latest)?;
        }
        let packs: Vec<PackId> = needs.packs_of(point)?.into_iter().collect();
        let id = point.id.short();
        self.monitor.start(&format!("packs of point {id}"), Some(packs.len() as u64));
        let mut bytes = 0;
        for some in packs.chunks(PACKS_AT_ONCE) {
            let look = || self.monitor.check_cancelled();
            let target = self.target.storage().as_ref();
            for copied in at_once(target, some, &look, |id| self.copy_pack(session, *id))? {
                bytes += copied?;
                self.monitor.advance(1);
            }
        }
        self.monitor.finish();
        session.publish_as_it_is(point.id, &point.manifest.series, &manifest)?;
        Ok((packs.len() as u64, bytes))
    }

    /// Copies a pack and its parity, and tells the replica's index of it; the bytes.
    fn copy_pack(&self, session: &Session<'_>, id: PackId) -> Result<u64> {
        let (source, target) = (self.source.storage(), self.target.storage());
        let name = pack_name(id)?;
        let pack = source.get(&name, PACK_BYTES_MAX)?;
        if blake3::hash(&pack) != id.0 {
            let text = format!("cannot copy pack {id}: its bytes do not hash to its name");
            return Err(Error::new(ErrorKind::Damage, text));
        }
        match target.put_new(&name, &pack) {
            // Another sync was faster, or what is there is damaged and counts for nothing.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let there = target.get(&name, PACK_BYTES_MAX);
                if there.is_err() || there.is_ok_and(|there| there != pack) {
                    let text = format!("cannot copy pack {id}: the replica has a damaged one");
                    return Err(Error::new(ErrorKind::Damage, text)
                        .hint("run `diskvault repair` on the replica first"));
                }
            }
            other => other?,
        }
        let mut bytes = pack.len() as u64;
        match source.get(&parity_name(id)?, PARITY_BYTES_MAX) {
            Ok(parity) => match target.put_new(&parity_name(id)?, &parity) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => bytes += parity.len() as u64,
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let opened = open_pack(target.as_ref(), self.target.keys(), id)?;
        let index = session.locator().index();
        add_footer_to_index(index, id, opened.kind, &opened.footer, opened.bytes)?;
        Ok(bytes)
    }

    /// Copies notes as they are: all of points that are there now, and of points that are not
    /// there the removals, which explain why a later point names one that is gone. A point that was
    /// forgotten `here` meanwhile has its turn in the next sync.
    fn bring_notes(
        &self,
        synced: &BTreeSet<PointId>,
        here: &BTreeSet<PointId>,
        there: &BTreeSet<PointId>,
    ) -> Result<()> {
        let (source, target) = (self.source.storage(), self.target.storage());
        let (brought, wanted) = both(
            target.as_ref(),
            || leaves(target.as_ref(), Folder::Notes),
            || source.list(Folder::Notes),
        );
        let (brought, mut wanted) = (brought?, wanted?);
        wanted.retain(|entry| {
            let point = names::parse_note(entry.name.leaf());
            let is_of_use = point.is_some_and(|id| {
                synced.contains(&id) || !there.contains(&id) && !here.contains(&id)
            });
            is_of_use && !brought.contains(entry.name.leaf())
        });
        let look = || self.monitor.check_cancelled();
        let copied = at_once(target.as_ref(), &wanted, &look, |entry| {
            let note = match source.get(&entry.name, SEALED_BYTES_MAX) {
                // Its series has gone since the listing.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                other => other?,
            };
            match target.put_new(&entry.name, &note) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                other => other,
            }
        })?;
        copied.into_iter().collect()
    }
}

fn leaves(storage: &dyn Storage, folder: Folder) -> Result<BTreeSet<String>> {
    Ok(storage.list(folder)?.into_iter().map(|entry| entry.name.leaf().to_string()).collect())
}

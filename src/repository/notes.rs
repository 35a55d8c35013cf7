//! Notes on points: tags, pins and removals, beside the points and without changing them.
//!
//! Invariant: a note that cannot be read may be a pin, so nobody is told that its point has none.

use super::Repository;
use super::at_once::at_once;
use super::objects::{get_record, refused, seal_record};
use super::points::Point;
use crate::environment::random_array;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Folder, ObjectName};
use diskvault_format::crypto::ObjectKind;
use diskvault_format::id::PointId;
use diskvault_format::names;
use diskvault_format::small::{NOTE_PIN, NOTE_REMOVAL, NOTE_TAG, NOTE_UNPIN, NOTE_VERDICT, Note};
use std::collections::{BTreeMap, BTreeSet};

/// One stored note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredNote {
    /// The random part of its name.
    pub random: String,
    /// What it says.
    pub note: Note,
}

/// A pin that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// What an unpin names to end it alone.
    pub random: String,
    /// Why the point is pinned; may be empty.
    pub reason: String,
}

/// What a test of a point found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredVerdict {
    /// The test, such as `boot`.
    pub test: String,
    /// Its result, such as `good`.
    pub result: String,
    /// Why, in words.
    pub detail: String,
    /// Where it ran.
    pub host: String,
    /// When it ended, in nanoseconds since 1970-01-01T00:00:00Z.
    pub time_unix_ns: i64,
}

/// The notes of some points.
#[derive(Debug, Default)]
pub struct Notes {
    by_point: BTreeMap<PointId, Vec<StoredNote>>,
    /// Points with a note that cannot be read, and why.
    damaged: BTreeMap<PointId, Error>,
}

impl Notes {
    /// Reads the notes that hold for some points.
    ///
    /// # Errors
    /// As [`Notes::under_ids`].
    pub fn of_points<'p>(
        repository: &Repository,
        points: impl IntoIterator<Item = &'p Point>,
    ) -> Result<Notes> {
        let ids = |point: &Point| [Some(point.id), point.manifest.republishes];
        Notes::under_ids(repository, &points.into_iter().flat_map(ids).flatten().collect())
    }

    /// Reads the notes under these ids; of all others, which after years are mostly those on points
    /// that were forgotten, only the names.
    ///
    /// # Errors
    /// What the storage says. A note that is damaged or of a newer version is remembered.
    pub fn under_ids(repository: &Repository, ids: &BTreeSet<PointId>) -> Result<Notes> {
        let mut notes = Notes::default();
        // A write-only key opens none, and a note that cannot be opened is no damage then.
        if ids.is_empty() || repository.own_copies().is_some() {
            return Ok(notes);
        }
        let repository = &repository.remembering();
        let mut listed = repository.storage().list(Folder::Notes)?;
        let point_of = |leaf: &str| names::parse_note(leaf).filter(|id| ids.contains(id));
        listed.retain(|entry| point_of(entry.name.leaf()).is_some());
        let found = at_once(repository.storage().as_ref(), &listed, &|| Ok(()), |entry| {
            read(repository, &entry.name)
        })?;
        for (entry, found) in listed.iter().zip(found) {
            let leaf = entry.name.leaf();
            let Some(point) = point_of(leaf) else { continue };
            match found {
                Ok(note) => {
                    let random = leaf.rsplit('-').next().unwrap_or_default().to_string();
                    notes.by_point.entry(point).or_default().push(StoredNote { random, note });
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) if error.kind().is_finding() => {
                    notes.damaged.insert(point, error);
                }
                Err(error) => return Err(error),
            }
        }
        for stored in notes.by_point.values_mut() {
            stored.sort_by(|a, b| order_key(a).cmp(&order_key(b)));
        }
        Ok(notes)
    }

    /// The notes under exactly this id, earliest first.
    pub fn under(&self, id: PointId) -> &[StoredNote] {
        self.by_point.get(&id).map_or(&[], Vec::as_slice)
    }

    /// The notes that hold for a point, earliest first: its own, and those of the one it publishes
    /// anew.
    pub fn of(&self, point: &Point) -> Vec<&StoredNote> {
        let old = point.manifest.republishes.map_or(&[][..], |old| self.under(old));
        let mut found: Vec<&StoredNote> = self.under(point.id).iter().chain(old).collect();
        found.sort_by(|a, b| order_key(a).cmp(&order_key(b)));
        found
    }

    /// The pins of a point that hold, earliest first.
    ///
    /// # Errors
    /// `Damage` or `Newer` if one of its notes cannot be read: it may be a pin.
    pub fn pins(&self, point: &Point) -> Result<Vec<Pin>> {
        let ids = [Some(point.id), point.manifest.republishes];
        if let Some(cause) = ids.iter().flatten().find_map(|id| self.damaged.get(id)) {
            let id = point.id.short();
            let text = format!("cannot tell whether point {id} is pinned: {}", cause.full_text());
            return Err(Error::new(cause.kind(), text));
        }
        let found = self.of(point);
        // One that is named ends whatever the clocks said.
        let named: BTreeSet<&str> = found
            .iter()
            .filter(|stored| stored.note.kind == NOTE_UNPIN)
            .filter_map(|stored| field(&stored.note, "pin"))
            .collect();
        let mut pins: Vec<Pin> = Vec::new();
        for stored in found {
            match stored.note.kind {
                NOTE_PIN if !named.contains(stored.random.as_str()) => {
                    let reason = field(&stored.note, "reason").unwrap_or_default().to_string();
                    pins.push(Pin { random: stored.random.clone(), reason });
                }
                NOTE_UNPIN if field(&stored.note, "pin").is_none() => pins.clear(),
                _ => {}
            }
        }
        Ok(pins)
    }

    /// The tags of a point: those it was made with, changed by its notes.
    pub fn tags(&self, point: &Point) -> BTreeMap<String, String> {
        let mut tags: BTreeMap<String, String> = point.manifest.tags.iter().cloned().collect();
        for stored in self.of(point).iter().filter(|stored| stored.note.kind == NOTE_TAG) {
            for (key, value) in &stored.note.fields {
                if value.is_empty() {
                    tags.remove(key);
                } else {
                    tags.insert(key.clone(), value.clone());
                }
            }
        }
        tags
    }

    /// What tests of a point found, earliest first.
    pub fn verdicts(&self, point: &Point) -> Vec<StoredVerdict> {
        let found = self.of(point).into_iter().map(|stored| &stored.note);
        let verdicts = found.filter(|note| note.kind == NOTE_VERDICT);
        let text = |note: &Note, key: &str| field(note, key).unwrap_or_default().to_string();
        verdicts
            .map(|note| StoredVerdict {
                test: text(note, "test"),
                result: text(note, "result"),
                detail: text(note, "detail"),
                host: note.host.clone(),
                time_unix_ns: note.time_unix_ns,
            })
            .collect()
    }

    /// Points that a removal note explains the absence of.
    pub fn removed(&self) -> BTreeSet<PointId> {
        let is_removal = |stored: &StoredNote| stored.note.kind == NOTE_REMOVAL;
        let removed = self.by_point.iter().filter(|(_, stored)| stored.iter().any(is_removal));
        removed.map(|(id, _)| *id).collect()
    }
}

fn order_key(stored: &StoredNote) -> (i64, &str) {
    (stored.note.time_unix_ns, &stored.random)
}

fn field<'n>(note: &'n Note, key: &str) -> Option<&'n str> {
    note.fields.iter().find(|(found, _)| found == key).map(|(_, value)| value.as_str())
}

fn read(repository: &Repository, name: &ObjectName) -> Result<Note> {
    let storage = repository.storage().as_ref();
    let note: Note = get_record(storage, repository.keys(), ObjectKind::Note, name)?;
    note.validate().map_err(|cause| refused(name, cause))?;
    Ok(note)
}

/// Ends all pins of a point that hold, by name and whatever the clocks say; and with `also_unknown`
/// those that cannot be read.
///
/// # Errors
/// As [`Notes::pins`], unless `also_unknown`; as [`put_note`].
pub fn end_pins(
    repository: &Repository,
    point: &Point,
    host: &str,
    also_unknown: bool,
) -> Result<()> {
    let pins = match Notes::of_points(repository, [point])?.pins(point) {
        Err(_) if also_unknown => Vec::new(),
        other => other?,
    };
    for pin in pins {
        let fields = vec![("pin".to_string(), pin.random)];
        put_note(repository, point.id, NOTE_UNPIN, host, fields)?;
    }
    Ok(())
}

/// Puts a note of now on a point.
///
/// # Errors
/// `Usage` for a text that is too long; what the storage says.
pub fn put_note(
    repository: &Repository,
    point: PointId,
    kind: u8,
    host: &str,
    fields: Vec<(String, String)>,
) -> Result<()> {
    let environment = repository.environment().as_ref();
    let random: [u8; 16] = random_array(environment)?;
    let time_unix_ns = environment.now_unix_ns();
    let note = Note { kind, time_unix_ns, host: host.to_string(), fields };
    store_note(repository, point, &random, &note)
}

/// Puts a note that somebody wrote on another point, under the same random part.
///
/// # Errors
/// As [`put_note`].
pub fn store_note(
    repository: &Repository,
    point: PointId,
    random: &[u8; 16],
    note: &Note,
) -> Result<()> {
    note.validate().map_err(|cause| {
        Error::new(ErrorKind::Usage, format!("cannot note that on point {}", point.short()))
            .because(cause)
    })?;
    let name = ObjectName::new(Folder::Notes, &names::note(point, random))?;
    let nonce = random_array(repository.environment().as_ref())?;
    let object = seal_record(repository.keys(), ObjectKind::Note, Some(&name), &nonce, note)?;
    repository.storage().put_new(&name, &object)
}

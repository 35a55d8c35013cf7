//! The other small sealed records (spec/37-small-objects.md): leases and heartbeats, condemned
//! lists, notes, lost lists.

use crate::error::{Result, limit, malformed};
use crate::id::{LeaseId, PackId};
use crate::limits::{FIELDS_MAX, TEXT_BYTES_MAX};
use serde::{Deserialize, Serialize};

/// A writer's registration, `leases/<lease>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// 1 backup; others reserved.
    pub purpose: u8,
    /// Host of the writer.
    pub host: String,
    /// Process id on that host.
    pub process: u32,
    /// When it began, in nanoseconds since 1970-01-01T00:00:00Z; for people, never for decisions.
    pub started_unix_ns: i64,
    /// Program and version.
    pub program: String,
}

impl Lease {
    /// Checks lengths.
    ///
    /// # Errors
    /// L-1.
    pub fn validate(&self) -> Result<()> {
        check_text(&self.host)?;
        check_text(&self.program)
    }
}

/// A sign of life, `leases/<lease>.<n>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The lease it belongs to.
    pub lease: LeaseId,
    /// Counts from 1.
    pub number: u64,
}

impl Heartbeat {
    /// Checks the record against the name it was read from.
    ///
    /// # Errors
    /// L-2.
    pub fn validate(&self, lease: LeaseId, number: u64) -> Result<()> {
        if self.lease == lease && self.number == number {
            return Ok(());
        }
        Err(malformed("L-2", "the heartbeat is not that of its name"))
    }
}

/// A pruner's list of packs that will be deleted, `condemned/<random>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condemned {
    /// The packs, ascending.
    pub packs: Vec<PackId>,
    /// Host of the pruner.
    pub host: String,
    /// When it was written; for people.
    pub time_unix_ns: i64,
}

impl Condemned {
    /// Checks lengths and order.
    ///
    /// # Errors
    /// L-1 and L-3.
    pub fn validate(&self) -> Result<()> {
        check_text(&self.host)?;
        check_ascending(&self.packs)
    }
}

/// A note on a point, `notes/<point>-<random>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// 1 tag, 2 pin, 3 unpin, 4 verdict, 5 removal; others are ignored.
    pub kind: u8,
    /// When it was written.
    pub time_unix_ns: i64,
    /// Where it was written.
    pub host: String,
    /// Key and value; what they mean depends on the kind.
    pub fields: Vec<(String, String)>,
}

/// [`Note::kind`] of a tag.
pub const NOTE_TAG: u8 = 1;
/// [`Note::kind`] of a pin.
pub const NOTE_PIN: u8 = 2;
/// [`Note::kind`] of an unpin.
pub const NOTE_UNPIN: u8 = 3;
/// [`Note::kind`] of a verdict.
pub const NOTE_VERDICT: u8 = 4;
/// [`Note::kind`] of a removal.
pub const NOTE_REMOVAL: u8 = 5;

impl Note {
    /// Checks counts and lengths.
    ///
    /// # Errors
    /// L-1.
    pub fn validate(&self) -> Result<()> {
        if self.fields.len() > FIELDS_MAX {
            let most = FIELDS_MAX as u64;
            return Err(limit("L-1", "the number of fields", most, self.fields.len() as u64));
        }
        let texts = self.fields.iter().flat_map(|(key, value)| [key, value]);
        for text in texts.chain([&self.host]) {
            check_text(text)?;
        }
        Ok(())
    }
}

/// Chunks known to be lost, `lost/<id>`: nothing inherits them, and a backup that meets one
/// stores it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Chunk and page ids, ascending.
    pub ids: Vec<[u8; 32]>,
    /// When the loss was found.
    pub time_unix_ns: i64,
}

impl Lost {
    /// Checks the order.
    ///
    /// # Errors
    /// L-3.
    pub fn validate(&self) -> Result<()> {
        check_ascending(&self.ids)
    }
}

fn check_text(text: &str) -> Result<()> {
    if text.len() > TEXT_BYTES_MAX {
        let found = text.len() as u64;
        return Err(limit("L-1", "the length of a text", TEXT_BYTES_MAX as u64, found));
    }
    Ok(())
}

fn check_ascending<T: Ord>(list: &[T]) -> Result<()> {
    if list.is_sorted_by(|a, b| a < b) {
        return Ok(());
    }
    Err(malformed("L-3", "the list is not in ascending order"))
}

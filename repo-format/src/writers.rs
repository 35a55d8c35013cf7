//! Writers that may not read (spec/21-writers.md): the keys that such a one holds, and the list of
//! those whose signature counts.

use crate::asymmetric::{PUBLIC_KEY_BYTES, SIGNATURE_BYTES, is_signed};
use crate::crypto::{Secret, context};
use crate::error::{Result, limit, malformed, unauthentic};
use crate::id::{KeySlotId, PointId, WriterId};
use crate::limits::{FIELDS_MAX, NAME_BYTES_MAX};
use crate::manifest::validate_series_name;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes before what is signed: writer and signature.
pub const SIGNED_HEAD_BYTES: usize = 16 + SIGNATURE_BYTES;

/// What a slot of a write-only key opens.
#[derive(Clone, Debug)]
pub struct WriterSecrets {
    /// Key of chunk ids.
    pub chunk_id: Secret,
    /// Key of page ids.
    pub page_id: Secret,
    /// Key of map roots.
    pub map_root: Secret,
    /// Key of the gear table.
    pub gear: Secret,
    /// Key of leases, heartbeats and condemned lists.
    pub protocol: Secret,
    /// The repository's X25519 public key: no secret, but known to key holders only.
    pub public_key: Secret,
    /// Seed of the writer's Ed25519 key.
    pub signing: Secret,
    /// The series it may write to, as in its record, so that it does not try others in vain.
    pub series: Vec<String>,
}

/// The id of a writer by its Ed25519 public key: the first 16 bytes of derive_key.
pub fn writer_id(verifying_key: &[u8; PUBLIC_KEY_BYTES]) -> WriterId {
    let hash = blake3::derive_key(context::WRITER_ID, verifying_key);
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    WriterId(id)
}

/// A writer whose signature counts, or counted: `writers/<random>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterRecord {
    /// Its Ed25519 public key.
    pub verifying_key: [u8; PUBLIC_KEY_BYTES],
    /// The key slot that was made for it.
    pub slot: KeySlotId,
    /// A name for people.
    pub name: String,
    /// The series it may write to; a `*` at the end stands for any rest. All, if there are none.
    pub series: Vec<String>,
    /// When the record was made, in nanoseconds since 1970-01-01T00:00:00Z.
    pub time_unix_ns: i64,
    /// If it is no longer listed: the points of it that go on to count, ascending.
    pub retired: Option<Vec<PointId>>,
}

impl WriterRecord {
    /// Checks counts, lengths and order.
    ///
    /// # Errors
    /// W-1 for names and series, W-2 for points that do not ascend.
    pub fn validate(&self) -> Result<()> {
        if self.series.len() > FIELDS_MAX {
            let (most, found) = (FIELDS_MAX as u64, self.series.len() as u64);
            return Err(limit("W-1", "the number of series", most, found));
        }
        if self.name.len() > NAME_BYTES_MAX {
            let (most, found) = (NAME_BYTES_MAX as u64, self.name.len() as u64);
            return Err(limit("W-1", "the length of the writer's name", most, found));
        }
        for pattern in &self.series {
            let start = pattern.strip_suffix('*');
            // Names may start with what is none itself.
            let is_start = start.is_some_and(|start| matches!(start, "" | "." | ".."));
            if !is_start && validate_series_name(start.unwrap_or(pattern)).is_err() {
                let text = format!("no series can be named {}", pattern.escape_debug());
                return Err(malformed("W-1", text));
            }
        }
        match &self.retired {
            Some(points) if !points.is_sorted_by(|a, b| a < b) => {
                Err(malformed("W-2", "the points are not in ascending order"))
            }
            _ => Ok(()),
        }
    }

    /// The writer's id.
    pub fn writer(&self) -> WriterId {
        writer_id(&self.verifying_key)
    }

    /// True if the writer may write to `series`.
    pub fn may_write_to(&self, series: &str) -> bool {
        self.series.is_empty()
            || self.series.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(start) => series.starts_with(start),
                None => series == pattern,
            })
    }
}

/// The writers whose signature counts.
#[derive(Clone, Debug, Default)]
pub struct Writers {
    records: BTreeMap<WriterId, WriterRecord>,
}

impl Writers {
    /// All that some records say, in the order of their names: who is retired by one of them is
    /// retired, and what any of those lets count counts; the latest tells the rest.
    pub fn new(records: impl IntoIterator<Item = WriterRecord>) -> Writers {
        let mut list: BTreeMap<WriterId, WriterRecord> = BTreeMap::new();
        for record in records {
            let Some(known) = list.get_mut(&record.writer()) else {
                list.insert(record.writer(), record);
                continue;
            };
            let points: [Option<Vec<PointId>>; 2] = [known.retired.take(), record.retired.clone()];
            if record.time_unix_ns >= known.time_unix_ns {
                *known = record;
            }
            let is_retired = points.iter().any(Option::is_some);
            let points: BTreeSet<PointId> = points.into_iter().flatten().flatten().collect();
            known.retired = is_retired.then(|| points.into_iter().collect());
        }
        Writers { records: list }
    }

    /// The writers, with those that are retired, by id.
    pub fn iter(&self) -> impl Iterator<Item = &WriterRecord> {
        self.records.values()
    }

    /// What is known of a writer.
    pub fn get(&self, writer: WriterId) -> Option<&WriterRecord> {
        self.records.get(&writer)
    }

    /// Splits a signed plaintext into the writer's record and what follows the signature, which is
    /// over `before` and that.
    ///
    /// # Errors
    /// `rule` for a signature of a writer that is not known, or one that does not fit.
    pub fn open<'a>(
        &self,
        before: &[&[u8]],
        plaintext: &'a [u8],
        rule: &'static str,
    ) -> Result<(&WriterRecord, &'a [u8])> {
        let Some((head, rest)) = plaintext.split_first_chunk::<SIGNED_HEAD_BYTES>() else {
            return Err(unauthentic(rule, "is too short for a signature"));
        };
        let mut writer = [0; 16];
        writer.copy_from_slice(&head[..16]);
        let mut signature = [0; SIGNATURE_BYTES];
        signature.copy_from_slice(&head[16..]);
        let writer = WriterId(writer);
        let Some(record) = self.records.get(&writer) else {
            return Err(unauthentic(
                rule,
                format!("is signed by writer {writer}, who is not listed"),
            ));
        };
        let parts: Vec<&[u8]> = before.iter().copied().chain([rest]).collect();
        if !is_signed(&record.verifying_key, &parts, &signature) {
            return Err(unauthentic(rule, format!("the signature is not that of writer {writer}")));
        }
        Ok((record, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asymmetric::{sign, verifying_key};

    fn record(number: u8, time_unix_ns: i64, retired: Option<Vec<u8>>) -> WriterRecord {
        WriterRecord {
            verifying_key: verifying_key(&Secret::new([number; 32])),
            slot: KeySlotId([number; 32]),
            name: "kvm1".into(),
            series: vec!["web*".into(), "db".into()],
            time_unix_ns,
            retired: retired.map(|points| points.into_iter().map(|n| PointId([n; 32])).collect()),
        }
    }

    #[test]
    fn a_retired_writer_stays_retired_whatever_comes_first() {
        let made = [record(1, 5, None), record(1, 9, Some(vec![3])), record(1, 7, Some(vec![1]))];
        let both = vec![PointId([1; 32]), PointId([3; 32])];
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            let writers = Writers::new(order.map(|number| made[number].clone()));
            assert_eq!(writers.iter().next().unwrap().retired.as_ref(), Some(&both));
        }
        let renamed = WriterRecord { name: "kvm2".into(), ..record(1, 9, None) };
        let writers = Writers::new([record(1, 9, None), renamed, record(1, 8, None)]);
        assert_eq!(writers.iter().next().unwrap().name, "kvm2");
    }

    #[test]
    fn series_are_named_or_start_alike() {
        let record = record(1, 5, None);
        let may = ["web01", "web", "db", "db2", "xweb"].map(|name| record.may_write_to(name));
        assert_eq!(may, [true, true, true, false, false]);
        assert!(WriterRecord { series: Vec::new(), ..record.clone() }.may_write_to("any"));
        record.validate().unwrap();
        for good in ["*", ".*", "..*", "a*b", "**"] {
            WriterRecord { series: vec![good.into()], ..record.clone() }.validate().unwrap();
        }
        for bad in ["a/b", "", "a:b*", ".."] {
            let record = WriterRecord { series: vec![bad.into()], ..record.clone() };
            assert_eq!(record.validate().unwrap_err().rule, "W-1", "{bad:?}");
        }
        let unordered =
            WriterRecord { retired: Some(vec![PointId([3; 32]), PointId([1; 32])]), ..record };
        assert_eq!(unordered.validate().unwrap_err().rule, "W-2");
    }

    #[test]
    fn only_a_listed_writer_signs() {
        let seed = Secret::new([1; 32]);
        let writers = Writers::new([record(1, 5, None)]);
        let make = |seed: &Secret, text: &[u8]| {
            let id = writer_id(&verifying_key(seed));
            [&id.0[..], &sign(seed, &[b"about", text]), text].concat()
        };
        let plain = make(&seed, b"text");
        assert_eq!(writers.open(&[b"about"], &plain, "O-6").unwrap().1, b"text");
        assert!(writers.open(&[b"aboat"], &plain, "O-6").is_err());
        assert!(writers.open(&[b"about"], &plain[..79], "O-6").is_err());
        let stranger = make(&Secret::new([2; 32]), b"text");
        assert!(writers.open(&[b"about"], &stranger, "O-6").is_err());
        let mut forged = stranger;
        forged[..16].copy_from_slice(&plain[..16]);
        assert!(writers.open(&[b"about"], &forged, "O-6").is_err());
    }
}

//! Lost lists (spec/37-small-objects.md): chunks and pages that no pack gives any more, so that
//! nothing inherits them and the next backup that meets one stores it again.
//!
//! Invariant: an id is on some list until its bytes are in a durable pack again.

use super::Repository;
use super::objects::{get_hashed, open_record, refused, seal_record};
use crate::environment::random_array;
use crate::error::{ErrorKind, Result};
use crate::storage::{Folder, ObjectName};
use diskvault_format::crypto::ObjectKind;
use diskvault_format::id::LostId;
use diskvault_format::small::Lost;
use std::collections::BTreeSet;

/// Most ids of one list: 16 MiB of sealed object hold 520,000.
const LIST_IDS_MAX: usize = 400_000;

/// A list and its object.
pub struct LostList {
    /// Its object.
    pub name: ObjectName,
    /// Chunks and pages.
    pub ids: Vec<[u8; 32]>,
}

/// Reads all lists. A damaged one is passed over; a check reports it.
///
/// # Errors
/// What the storage says; `Newer`.
pub fn read_lists(repository: &Repository) -> Result<Vec<LostList>> {
    let storage = repository.storage().as_ref();
    let mut lists = Vec::new();
    for entry in storage.list(Folder::Lost)? {
        let Some(id) = LostId::from_hex(entry.name.leaf()) else { continue };
        let read = get_hashed(storage, &entry.name, &id.0).and_then(|object| {
            let keys = repository.keys();
            let list: Lost = open_record(keys, ObjectKind::Lost, &entry.name, &object)?;
            list.validate().map_err(|cause| refused(&entry.name, cause))?;
            Ok(list)
        });
        match read {
            Ok(list) => lists.push(LostList { name: entry.name, ids: list.ids }),
            Err(error) if matches!(error.kind(), ErrorKind::Damage | ErrorKind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(lists)
}

/// Names these ids as lost.
///
/// # Errors
/// `NoSpace`, or what the storage says.
pub fn put_lists(repository: &Repository, ids: &BTreeSet<[u8; 32]>) -> Result<()> {
    let ids: Vec<[u8; 32]> = ids.iter().copied().collect();
    let environment = repository.environment().as_ref();
    for part in ids.chunks(LIST_IDS_MAX) {
        let record = Lost { ids: part.to_vec(), time_unix_ns: environment.now_unix_ns() };
        let nonce = random_array(environment)?;
        let object = seal_record(repository.keys(), ObjectKind::Lost, None, &nonce, &record)?;
        let id = LostId(*blake3::hash(&object).as_bytes());
        let name = ObjectName::new(Folder::Lost, &id.to_hex())?;
        repository.storage().put_new(&name, &object)?;
    }
    Ok(())
}

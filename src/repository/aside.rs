//! Damaged objects that were taken from where they were: `aside/<folder>-<leaf>.<random>`.
//!
//! Invariant: they keep every byte, and nobody here deletes one.

use super::Repository;
use crate::environment::random_array;
use crate::error::Result;
use crate::storage::{Folder, ObjectName};
use diskvault_format::id::{PackId, to_hex};
use std::collections::BTreeMap;

/// Gives an object a name under `aside/`.
///
/// # Errors
/// As renaming it.
pub fn put_aside(repository: &Repository, name: &ObjectName) -> Result<ObjectName> {
    let random: [u8; 4] = random_array(repository.environment().as_ref())?;
    let leaf = format!("{}-{}.{}", name.folder(), name.leaf(), to_hex(&random));
    let aside = ObjectName::new(Folder::Aside, &leaf)?;
    repository.storage().rename(name, &aside)?;
    Ok(aside)
}

/// The packs that were set aside; of one that was more than once, some copy.
///
/// # Errors
/// What the storage says.
pub fn packs_aside(repository: &Repository) -> Result<BTreeMap<PackId, ObjectName>> {
    let mut packs = BTreeMap::new();
    for entry in repository.storage().list(Folder::Aside)? {
        let leaf = entry.name.leaf().strip_prefix("packs-");
        let id =
            leaf.and_then(|leaf| leaf.split_once('.')).and_then(|(id, _)| PackId::from_hex(id));
        if let Some(id) = id {
            packs.insert(id, entry.name);
        }
    }
    Ok(packs)
}

//! Whether a mark that did not find something is to be made anew.
//!
//! A mark lists packs before manifests (spec/40-protocol.md), so it can meet a manifest whose packs
//! were put after its listing of them; and what it needs of a point that is forgotten meanwhile may
//! be deleted by another prune. Both are no damage. Invariant: each try is a whole mark in its
//! order, and what is really gone is an error after the second.

use crate::error::Result;
use crate::repository::Repository;
use crate::storage::Folder;

/// Most tries: each one needs a change of the repository since the one before it.
const TRIES_MAX: u32 = 10;

/// What was there after the last mark that failed.
#[derive(Default)]
pub(super) struct Changes {
    seen: Option<[u8; 32]>,
    tries: u32,
}

impl Changes {
    /// True if another mark may find what this one did not: packs or points came or went since the
    /// one before it, or there was none before.
    ///
    /// # Errors
    /// What the storage says.
    pub fn may_explain_it(&mut self, repository: &Repository) -> Result<bool> {
        let mut hasher = blake3::Hasher::new();
        for folder in [Folder::Packs, Folder::Points] {
            for entry in repository.storage().list(folder)? {
                hasher.update(entry.name.as_str().as_bytes()).update(b"\n");
            }
        }
        let now = *hasher.finalize().as_bytes();
        self.tries += 1;
        Ok(self.seen.replace(now) != Some(now) && self.tries < TRIES_MAX)
    }
}

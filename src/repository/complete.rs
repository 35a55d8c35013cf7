//! Whether everything that a point needs is stored, by the eyes of a writer.
//!
//! Invariant: nothing that is only in a condemned pack counts.

use super::map_reader::MapReader;
use super::reach::{Visitor, visit};
use super::session::Presence;
use crate::error::Result;
use crate::monitor::Monitor;
use diskvault_format::id::{ChunkId, PageId, to_hex};
use diskvault_format::manifest::Manifest;
use std::collections::HashSet;

/// The first page or chunk that a manifest needs and that is not present: `chunk 3f…`.
///
/// # Errors
/// `Damage` for a map that cannot be read; what the index says; `Cancelled`.
pub fn find_missing(
    reader: &MapReader<'_>,
    presence: &Presence,
    manifest: &Manifest,
    monitor: &dyn Monitor,
) -> Result<Option<String>> {
    let mut search = Search { presence, monitor, pages: HashSet::new(), missing: None };
    visit(reader, manifest, &mut search)?;
    Ok(search.missing)
}

struct Search<'a> {
    presence: &'a Presence,
    monitor: &'a dyn Monitor,
    pages: HashSet<PageId>,
    missing: Option<String>,
}

impl Search<'_> {
    fn look_up(&mut self, what: &str, id: &[u8; 32]) -> Result<()> {
        if self.missing.is_none() && !self.presence.contains(id)? {
            self.missing = Some(format!("{what} {}", to_hex(id)));
        }
        Ok(())
    }
}

impl Visitor for Search<'_> {
    fn page(&mut self, id: PageId) -> Result<bool> {
        if self.missing.is_some() || !self.pages.insert(id) {
            return Ok(false);
        }
        self.monitor.check_cancelled()?;
        self.look_up("map page", &id.0)?;
        Ok(self.missing.is_none())
    }

    fn chunk(&mut self, id: ChunkId) -> Result<()> {
        self.look_up("chunk", &id.0)
    }
}

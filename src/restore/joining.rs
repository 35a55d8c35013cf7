//! Putting chunks together out of segments that somebody else reads, as they come.
//!
//! Invariant: each chunk is verified, refused, or given back when the reading is over.

use super::fetch::{Delivery, Fetcher, Refused, Wanted};
use super::reads::{Assembly, Goal, Request, plan_reads};
use crate::error::Result;
use diskvault_format::id::PackId;
use diskvault_format::segment::Entry;
use diskvault_format::splice::Splice;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Chunks that are being put together, by the segments that hold their pieces.
pub struct Joining<'a> {
    fetcher: &'a Fetcher<'a>,
    uses: HashMap<(PackId, u32), Vec<(u32, Goal)>>,
    assemblies: Vec<Arc<Assembly>>,
    refused: Mutex<Refused>,
    deferred: Vec<Request>,
}

impl<'a> Joining<'a> {
    /// Begins with these.
    ///
    /// # Errors
    /// What the index or the storage say.
    pub fn new(fetcher: &'a Fetcher<'a>, wanted: Vec<(Wanted, Splice)>) -> Result<Joining<'a>> {
        let request = |(item, splice)| Request::new(item, Some(splice));
        let requests = wanted.into_iter().map(request).collect();
        let plan = plan_reads(fetcher.repository, fetcher.locator, requests)?;
        let mut refused = Refused::new();
        for (goal, error) in plan.failed {
            if let Goal::Local { assembly, .. } | Goal::Piece { assembly, .. } = goal
                && assembly.end()
            {
                refused.push((assembly.item.id, error));
            }
        }
        let segments = plan.runs.into_iter().flat_map(|run| run.segments);
        let uses =
            segments.map(|segment| ((segment.pack.id, segment.ordinal), segment.uses)).collect();
        let (assemblies, deferred) = (plan.assemblies, plan.deferred);
        Ok(Joining { fetcher, uses, assemblies, refused: Mutex::new(refused), deferred })
    }

    /// Takes what it needs of a segment whose entries have these bytes; from any thread, each
    /// segment once.
    ///
    /// # Errors
    /// What the index or the storage say, when something was wrong and is looked for elsewhere.
    pub fn take(&self, pack: PackId, ordinal: u32, entries: &[Entry], data: &[u8]) -> Result<()> {
        let Some(uses) = self.uses.get(&(pack, ordinal)) else { return Ok(()) };
        let nothing = |_, _: &[u8]| Ok(());
        let delivery = Delivery { sink: &nothing, refused: &self.refused };
        let lengths = entries.iter().map(|entry| entry.bytes);
        self.fetcher.serve(&delivery, pack, uses, lengths, data)
    }

    /// What was refused, and what is left to do: it waits for segments that never came, or did not
    /// fit.
    pub fn finish(self) -> (Refused, Vec<(Wanted, Splice)>) {
        let left = self.assemblies.into_iter().filter(|assembly| !assembly.is_over());
        let left = left.map(|assembly| (assembly.item, assembly.splice.clone()));
        let deferred = self.deferred.into_iter();
        let deferred = deferred.filter_map(|request| Some((request.item, request.splice?)));
        let refused = self.refused.into_inner().unwrap_or_else(PoisonError::into_inner);
        (refused, left.chain(deferred).collect())
    }
}

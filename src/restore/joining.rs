//! Putting chunks together out of segments that somebody else reads, as they come.
//!
//! Invariant: what could not be put together, for whatever reason, is given back.

use super::fetch::{Fetcher, Wanted};
use super::reads::{Assembly, Goal, Plan, plan_reads};
use crate::error::Result;
use crate::repository::lock;
use diskvault_format::id::PackId;
use diskvault_format::segment::Entry;
use diskvault_format::splice::Splice;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Chunks that are being put together, by the segments that hold their pieces.
pub struct Joining<'a> {
    fetcher: &'a Fetcher<'a>,
    uses: HashMap<(PackId, u32), Vec<(u32, Goal)>>,
    assemblies: Vec<Arc<Assembly>>,
    refused: Mutex<Vec<Arc<Assembly>>>,
    deferred: Vec<(Wanted, Option<Splice>)>,
}

impl<'a> Joining<'a> {
    /// Begins with these; none of them may be without a splice.
    ///
    /// # Errors
    /// `Damage` if a chunk that a piece is of is in no pack.
    pub fn new(
        fetcher: &'a Fetcher<'a>,
        wanted: Vec<(Wanted, Option<Splice>)>,
    ) -> Result<Joining<'a>> {
        let Plan { runs, deferred } = plan_reads(fetcher.repository, fetcher.locator, wanted)?;
        let mut uses = HashMap::new();
        let mut assemblies = Vec::new();
        for segment in runs.into_iter().flat_map(|run| run.segments) {
            for (_, goal) in &segment.uses {
                if let Goal::Piece { assembly, number: 0 } = goal {
                    assemblies.push(assembly.clone());
                }
            }
            uses.insert((segment.pack.id, segment.ordinal), segment.uses);
        }
        Ok(Joining { fetcher, uses, assemblies, refused: Mutex::default(), deferred })
    }

    /// Puts nothing together, and gives all of it back.
    pub fn deferring(
        fetcher: &'a Fetcher<'a>,
        deferred: Vec<(Wanted, Option<Splice>)>,
    ) -> Result<Joining<'a>> {
        Joining::new(fetcher, Vec::new()).map(|joining| Joining { deferred, ..joining })
    }

    /// Takes what it needs of a segment whose entries have these bytes; from any thread, each
    /// segment once.
    pub fn take(&self, pack: PackId, ordinal: u32, entries: &[Entry], data: &[u8]) {
        let Some(uses) = self.uses.get(&(pack, ordinal)) else { return };
        // Ascending by slot, so the places add up on the way.
        let (mut slot, mut start) = (0, 0);
        for (wanted, goal) in uses {
            while slot < *wanted as usize && slot < entries.len() {
                start += entries[slot].bytes as usize;
                slot += 1;
            }
            let Goal::Piece { assembly, number } = goal else { continue };
            let bytes = entries.get(slot).map_or(0, |entry| entry.bytes as usize);
            let chunk = data.get(start..start + bytes).unwrap_or_default();
            let nothing = |_, _: &[u8]| Ok(());
            if self.fetcher.add_piece(&nothing, pack, assembly, *number, chunk).is_err() {
                lock(&self.refused).push(assembly.clone());
            }
        }
    }

    /// What is not verified: it waits for segments that never came, was refused, or did not fit.
    pub fn rest(self) -> Vec<(Wanted, Option<Splice>)> {
        let refused = self.refused.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let unfinished = self.assemblies.into_iter().filter(|assembly| !assembly.is_done());
        let again = unfinished.chain(refused);
        let again = again.map(|assembly| (assembly.item, Some(assembly.splice.clone())));
        self.deferred.into_iter().chain(again).collect()
    }
}

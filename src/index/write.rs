//! The writing half of [`ChunkIndex`]: RAM to runs, runs to fewer runs, drops.
//!
//! Invariant: files and rows first, then the state row that names them, then the view that
//! look-ups see, then the removal of what nobody names any more.

use super::catalogue::{RunName, State};
use super::run::{self, PENDING_MAX, Record, Run, RunWriter};
use super::{ChunkIndex, PackRecord, SEGMENTS_MAX, SLOTS_MAX, Writer, refused, slot};
use crate::error::{ErrorKind, Result};
use std::collections::HashSet;
use std::sync::Arc;

/// Entries put under the write lock at once: look-ups wait for some 100 microseconds.
const BATCH: usize = 512;

impl ChunkIndex {
    /// Puts the records of one pack into RAM and returns their number. They are invisible
    /// until the pack is known; if it never is, the next run leaves them out.
    pub(super) fn gather(
        &self,
        writer: &mut Writer,
        ordinal: u32,
        entries: &mut dyn Iterator<Item = ([u8; 16], u32, u32)>,
    ) -> Result<u32> {
        let mut count = 0_u32;
        loop {
            let mut batch = Vec::with_capacity(BATCH);
            for (prefix, segment, slot) in entries.take(BATCH) {
                if segment >= SEGMENTS_MAX || slot >= SLOTS_MAX {
                    return Err(refused(&format!("segment {segment}, slot {slot} out of range")));
                }
                batch.push(Record::new(&prefix, ordinal, segment << 12 | slot));
            }
            if batch.is_empty() {
                return Ok(count);
            }
            let full = {
                let mut view = self.write();
                for record in batch {
                    // The same place twice is one entry.
                    count = count.saturating_add(u32::from(view.pending.insert(record)));
                }
                view.pending.len() as u64 >= PENDING_MAX * 2
            };
            if full {
                writer.spilled = u64::from(count);
                self.commit(writer)?;
            }
        }
    }

    /// Writes the pending entries as a run, makes them and their packs count, then merges.
    pub(super) fn commit(&self, writer: &mut Writer) -> Result<()> {
        self.commit_drops(writer)?;
        let open = writer.open_pack;
        let mut state = writer.state.clone();
        state.next = writer.next;
        let name = slot::random_name();
        let (run, packs) = {
            // Only this thread changes what is read here: look-ups go on beside it.
            let view = self.read();
            if view.pending.is_empty() && view.pending_packs.is_empty() {
                drop(view);
                return self.checked(self.catalogue.flush());
            }
            let mut file = RunWriter::create(self.slot.run_path(name))?;
            for record in &view.pending {
                let ordinal = record.ordinal();
                if Some(ordinal) == open || view.packs.contains_key(&ordinal) {
                    file.push(*record)?;
                }
            }
            (file.finish()?, view.pending_packs.values().copied().collect::<Vec<_>>())
        };
        if let Some(run) = &run {
            state.runs.push(RunName { name, count: run.count(), boot: slot::boot_tag() });
        }
        if let Err(cause) = self.checked(self.register(&mut state, &packs)) {
            // It will be written again: a full disk must not fill up further by trying.
            run.iter().for_each(Run::unlink);
            return Err(cause);
        }
        writer.state = state;
        {
            let mut view = self.write();
            view.pending.clear();
            view.pending_packs.clear();
            Arc::make_mut(&mut view.runs).extend(run.map(Arc::new));
        }
        self.merge(writer)
    }

    /// Writes the rows of new packs, then the state that makes them and its runs count.
    fn register(&self, state: &mut State, packs: &[(u32, PackRecord)]) -> Result<()> {
        for (ordinal, pack) in packs {
            self.catalogue.put_pack(*ordinal, pack)?;
            state.packs += 1;
            state.entries += u64::from(pack.entries);
        }
        self.catalogue.commit(state)
    }

    /// Merges runs if there are too many or too much in them is dead.
    fn merge(&self, writer: &mut Writer) -> Result<()> {
        let counts: Vec<u64> = writer.state.runs.iter().map(|run| run.count).collect();
        let live = writer.state.entries + writer.spilled;
        let Some(start) = run::merge_start(&counts, live) else {
            return Ok(());
        };
        let (runs, known) = {
            let view = self.read();
            (Arc::clone(&view.runs), view.packs.keys().copied().collect::<HashSet<u32>>())
        };
        let open = writer.open_pack;
        let keep = |ordinal: u32| Some(ordinal) == open || known.contains(&ordinal);
        let name = slot::random_name();
        let merged = match run::merge(&runs[start..], &keep, self.slot.run_path(name)) {
            Ok(merged) => merged,
            // A damaged run spoils the cache, not the caller's work: go on without merging,
            // and let the next open rebuild.
            Err(cause) if cause.kind() == ErrorKind::Damage => {
                self.slot.distrust();
                return Ok(());
            }
            Err(cause) => return Err(cause),
        };
        let mut state = writer.state.clone();
        state.runs.truncate(start);
        if let Some(run) = &merged {
            state.runs.push(RunName { name, count: run.count(), boot: slot::boot_tag() });
        }
        if let Err(cause) = self.checked(self.catalogue.commit(&state)) {
            merged.iter().for_each(Run::unlink);
            return Err(cause);
        }
        writer.state = state;
        let kept = runs[..start].iter().cloned().chain(merged.map(Arc::new)).collect();
        self.write().runs = Arc::new(kept);
        runs[start..].iter().for_each(|run| run.unlink());
        Ok(())
    }

    /// Tells the catalogue about dropped packs: first that they do not count, then their rows.
    pub(super) fn commit_drops(&self, writer: &mut Writer) -> Result<()> {
        if writer.dropped.is_empty() {
            return Ok(());
        }
        writer.state.dropping = writer.dropped.iter().map(|(ordinal, _)| *ordinal).collect();
        self.checked(self.catalogue.commit(&writer.state))?;
        for (ordinal, id) in &writer.dropped {
            self.checked(self.catalogue.remove_pack(*ordinal, id))?;
        }
        writer.dropped.clear();
        writer.state.dropping.clear();
        Ok(())
    }
}

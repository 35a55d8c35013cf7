//! Where a disk's source had storage and where it had holes.
//!
//! Invariant: no byte of a disk depends on it.

use super::fetch::Fetcher;
use super::sequential::read_bytes;
use crate::error::Result;
use crate::repository::map_reader::MapReader;
use crate::repository::objects::refused;
use diskvault_format::allocation::AllocationReader;
use diskvault_format::limits::ALLOCATION_BYTES_MAX;
use diskvault_format::manifest::DiskRecord;

/// Where the source had holes. No byte depends on it, so a list that is damaged is a warning.
pub(crate) fn read_allocation(
    fetcher: &Fetcher<'_>,
    reader: &MapReader<'_>,
    record: &DiskRecord,
) -> Result<Option<Boundaries>> {
    let Some(list) = &record.allocation else { return Ok(None) };
    let read = read_bytes(fetcher, reader, list, ALLOCATION_BYTES_MAX)
        .and_then(|bytes| Boundaries::decode(&bytes, record.size));
    match read {
        Err(error) if error.kind().is_finding() => {
            let text = error.full_text();
            let name = record.name.escape_debug();
            fetcher.monitor.warn(&format!("{name}: {text}; all zeros become holes"));
            Ok(None)
        }
        read => read.map(Some),
    }
}

/// Where runs begin, ascending; even positions are holes, odd ones allocated.
pub(crate) struct Boundaries {
    starts: Vec<u64>,
    size: u64,
}

impl Boundaries {
    /// What an allocation list of a disk of `size` bytes says.
    ///
    /// # Errors
    /// `Damage` for one that breaks a rule.
    pub fn decode(list: &[u8], size: u64) -> Result<Boundaries> {
        let mut reader = AllocationReader::new(list, size);
        let mut starts = Vec::new();
        while let Some(run) =
            reader.next_run().map_err(|cause| refused("the allocation list", cause))?
        {
            if starts.is_empty() && run.is_allocated {
                starts.push(0);
            }
            starts.push(run.start);
        }
        Ok(Boundaries { starts, size })
    }

    /// Calls `each` with the runs inside `start..end`, clipped.
    ///
    /// # Errors
    /// What `each` says.
    pub fn each(
        &self,
        start: u64,
        end: u64,
        each: &mut dyn FnMut(u64, u64, bool) -> Result<()>,
    ) -> Result<()> {
        let mut position = self.starts.partition_point(|begin| *begin <= start).saturating_sub(1);
        let mut from = start;
        while from < end {
            let run_end = self.starts.get(position + 1).copied().unwrap_or(self.size);
            let to = run_end.min(end);
            if to > from {
                each(from, to, position % 2 == 1)?;
                from = to;
            } else if position >= self.starts.len() {
                // Beyond the last run: not possible for a list that was validated.
                return each(from, end, true);
            }
            position += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use diskvault_format::allocation::AllocationWriter;

    #[test]
    fn runs_are_clipped() {
        for first_is_allocated in [false, true] {
            let mut writer = AllocationWriter::new();
            writer.push(1024, first_is_allocated);
            writer.push(512, !first_is_allocated);
            writer.push(512, first_is_allocated);
            let boundaries = Boundaries::decode(&writer.finish(), 2048).unwrap();
            let mut found = Vec::new();
            let mut each = |from, to, is_allocated| {
                found.push((from, to, is_allocated == first_is_allocated));
                Ok(())
            };
            boundaries.each(1000, 1600, &mut each).unwrap();
            assert_eq!(found, [(1000, 1024, true), (1024, 1536, false), (1536, 1600, true)]);
        }
    }
}

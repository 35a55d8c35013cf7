//! When each pack was last read in full by this host, so that the longest unread go first.
//!
//! ```text
//! 0      8  magic "DVLEDGR1"
//! 8   24*n  first half of the pack id (16), seconds since 1970-01-01T00:00:00Z (8), ascending by id
//! ```
//!
//! Invariant: it lies in the cache and is never needed: one that is gone or makes no sense counts
//! as empty, and then everything is read anew. 30,000 packs, a terabyte, take 720 KB.

use crate::error::{Error, ErrorKind, Result};
use diskvault_format::id::PackId;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

const FILE: &str = "verified";
const MAGIC: &[u8; 8] = b"DVLEDGR1";
const RECORD_BYTES: usize = 24;

type Prefix = [u8; 16];

/// What this host has read.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    times: BTreeMap<Prefix, i64>,
}

impl Ledger {
    /// Reads the ledger in the cache folder of a repository.
    pub fn load(cache: &Path) -> Ledger {
        let path = cache.join(FILE);
        let times = read(&path);
        Ledger { path, times }
    }

    /// When a pack was last read and found whole, in seconds since 1970; nothing for a time after
    /// `now`, when a clock was wrong.
    pub fn read_at(&self, id: PackId, now: i64) -> Option<i64> {
        self.times.get(&prefix(id)).copied().filter(|time| *time <= now)
    }

    /// Stores what was read at `now`: `whole` and not `damaged`; `listed` says which packs there
    /// are, and others are left out. What another process stored meanwhile stays.
    ///
    /// # Errors
    /// `Failed` if the cache cannot be written.
    pub fn store(
        &mut self,
        whole: &[PackId],
        damaged: &[PackId],
        listed: &mut dyn Iterator<Item = PackId>,
        now: i64,
    ) -> Result<()> {
        let before = read(&self.path);
        let known = |id: &Prefix| before.get(id).or_else(|| self.times.get(id)).copied();
        let mut times: BTreeMap<Prefix, i64> =
            listed.filter_map(|id| known(&prefix(id)).map(|time| (prefix(id), time))).collect();
        times.extend(whole.iter().map(|id| (prefix(*id), now)));
        for id in damaged {
            times.remove(&prefix(*id));
        }
        self.times = times;
        self.write().map_err(|cause| {
            let text = format!("cannot write {}", self.path.display());
            Error::io(ErrorKind::Failed, text, cause)
        })
    }

    fn write(&self) -> std::io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        for (id, time) in &self.times {
            bytes.extend_from_slice(id);
            bytes.extend_from_slice(&time.to_le_bytes());
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&bytes)?;
        file.persist(&self.path)?;
        Ok(())
    }
}

fn prefix(id: PackId) -> Prefix {
    super::entries::prefix(&id.0)
}

fn read(path: &Path) -> BTreeMap<Prefix, i64> {
    let Ok(bytes) = std::fs::read(path) else { return BTreeMap::new() };
    let Some(records) = bytes.strip_prefix(MAGIC) else { return BTreeMap::new() };
    let mut times = BTreeMap::new();
    for record in records.chunks_exact(RECORD_BYTES) {
        let (mut id, mut time) = ([0; 16], [0; 8]);
        id.copy_from_slice(&record[..16]);
        time.copy_from_slice(&record[16..]);
        times.insert(id, i64::from_le_bytes(time));
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back_and_what_is_gone_or_damaged_goes() {
        let folder = tempfile::tempdir().unwrap();
        let packs: Vec<PackId> = (0..4).map(|number| PackId([number; 32])).collect();
        let mut ledger = Ledger::load(folder.path());
        ledger.store(&packs, &[], &mut packs.iter().copied(), 100).unwrap();
        let mut ledger = Ledger::load(folder.path());
        assert_eq!(ledger.read_at(packs[0], 100), Some(100));
        assert_eq!(ledger.read_at(packs[0], 99), None, "from the future");
        let mut listed = packs[..3].iter().copied();
        ledger.store(&packs[..1], &packs[1..2], &mut listed, 200).unwrap();
        let ledger = Ledger::load(folder.path());
        let times: Vec<_> = packs.iter().map(|id| ledger.read_at(*id, 300)).collect();
        assert_eq!(times, [Some(200), None, Some(100), None]);
    }

    #[test]
    fn nonsense_counts_as_empty() {
        let folder = tempfile::tempdir().unwrap();
        for bytes in [&b""[..], b"DVLEDGR1x", b"something else entirely, and long enough to be one"]
        {
            std::fs::write(folder.path().join(FILE), bytes).unwrap();
            assert_eq!(Ledger::load(folder.path()).read_at(PackId([0; 32]), 1), None);
        }
    }
}

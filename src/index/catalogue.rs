//! The catalogue: what sled keeps beside the runs (packs, run list, notes).
//!
//! Invariant: one row, the [`State`], says which runs and which pack rows count. It is written
//! after everything it names, with a single insert, so a crash leaves the old or the new one.
//! Rows outside of its range are leftovers; a number of rows that differs from what it says is
//! damage. Plain inserts only: sled 0.34 leaks 3 KB of RAM a key in large batches.

use super::PackRecord;
use crate::error::{Error, ErrorKind, Result};
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

/// sled takes two to four times this; the pages in use are few.
const CACHE_BYTES: u64 = 8 << 20;
const STATE_KEY: &[u8] = b"state";
const STATE_FIXED: usize = 28;

/// A run as the catalogue names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunName {
    /// Random number; the file name is its 16 hexadecimal digits.
    pub name: u64,
    /// Records in it.
    pub count: u64,
    /// Tag of the system boot it was written in; 0 once it was read back after a later boot.
    pub boot: u64,
}

/// The row that decides what counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Pack rows below this ordinal are leftovers of a clear.
    pub first: u32,
    /// Pack rows from this ordinal on are leftovers of a crash; ordinals are never used twice.
    pub next: u32,
    /// Number of packs known.
    pub packs: u32,
    /// Sum of their entries.
    pub entries: u64,
    /// All runs, oldest first.
    pub runs: Vec<RunName>,
    /// Packs dropped whose rows may still be there.
    pub dropping: Vec<u32>,
}

impl State {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(STATE_FIXED + self.runs.len() * 24 + 8);
        for value in [self.first, self.next, self.packs] {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        bytes.extend_from_slice(&self.entries.to_le_bytes());
        bytes.extend_from_slice(&(self.runs.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(self.dropping.len() as u32).to_le_bytes());
        for run in &self.runs {
            for value in [run.name, run.count, run.boot] {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
        }
        for ordinal in &self.dropping {
            bytes.extend_from_slice(&ordinal.to_le_bytes());
        }
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..8]);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<State> {
        let (body, check) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
        if blake3::hash(body).as_bytes()[..8] != *check {
            return None;
        }
        let mut rest = body;
        let mut state = State {
            first: take_u32(&mut rest)?,
            next: take_u32(&mut rest)?,
            packs: take_u32(&mut rest)?,
            entries: take_u64(&mut rest)?,
            ..State::default()
        };
        let (runs, dropping) = (take_u32(&mut rest)?, take_u32(&mut rest)?);
        for _ in 0..runs {
            let name = take_u64(&mut rest)?;
            let count = take_u64(&mut rest)?;
            state.runs.push(RunName { name, count, boot: take_u64(&mut rest)? });
        }
        for _ in 0..dropping {
            state.dropping.push(take_u32(&mut rest)?);
        }
        rest.is_empty().then_some(state)
    }
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (head, tail) = rest.split_first_chunk::<4>()?;
    *rest = tail;
    Some(u32::from_le_bytes(*head))
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (head, tail) = rest.split_first_chunk::<8>()?;
    *rest = tail;
    Some(u64::from_le_bytes(*head))
}

fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::Damage, format!("cannot use the index catalogue: {what}"))
}

/// Runs a sled call; a panic inside (sled asserts on damaged pages) becomes an error.
fn guarded<T>(verb: &str, work: impl FnOnce() -> sled::Result<T>) -> Result<T> {
    let message = || format!("cannot {verb} the index catalogue");
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(cause))) => Err(Error::io(ErrorKind::Failed, message(), cause)),
        Ok(Err(cause)) => Err(Error::new(ErrorKind::Damage, message()).because(cause)),
        Err(_) => Err(Error::new(ErrorKind::Damage, format!("{}: sled panicked", message()))),
    }
}

/// The open sled database. Everything but [`Catalogue::commit`] may be lost in a crash.
pub struct Catalogue {
    /// There until it is dropped: the last handle writes what sled holds, and panics if it cannot.
    handles: Option<Handles>,
}

struct Handles {
    /// Ordinal (u32, big-endian) -> id 32, kind 1, entries 4 (big-endian).
    packs: sled::Tree,
    /// Id -> ordinal.
    ordinals: sled::Tree,
    runs: sled::Tree,
    notes: sled::Tree,
    db: sled::Db,
}

impl Catalogue {
    /// Opens or makes the database in the directory `path`.
    ///
    /// # Errors
    /// Fails if sled cannot open it, or panics while it tries.
    pub fn open(path: &Path) -> Result<Catalogue> {
        guarded("open", || {
            let config = sled::Config::new()
                .path(path)
                .cache_capacity(CACHE_BYTES)
                .flush_every_ms(None)
                .mode(sled::Mode::LowSpace);
            let db = open_unlocked(&config)?;
            let handles = Handles {
                packs: db.open_tree("packs")?,
                ordinals: db.open_tree("ordinals")?,
                runs: db.open_tree("runs")?,
                notes: db.open_tree("notes")?,
                db,
            };
            Ok(Catalogue { handles: Some(handles) })
        })
    }

    fn sled(&self) -> sled::Result<&Handles> {
        self.handles.as_ref().ok_or_else(|| sled::Error::Unsupported("it is closed".into()))
    }

    /// The state row.
    ///
    /// # Errors
    /// Fails with [`ErrorKind::Damage`] if it is absent or does not decode.
    pub fn state(&self) -> Result<State> {
        let row = guarded("read", || self.sled()?.runs.get(STATE_KEY))?;
        row.and_then(|row| State::decode(&row)).ok_or_else(|| damaged("the state row is bad"))
    }

    /// Makes `state` and all rows written before it count from now on.
    ///
    /// # Errors
    /// Fails if sled cannot write; the old state counts then.
    pub fn commit(&self, state: &State) -> Result<()> {
        guarded("write", || {
            self.sled()?.db.flush()?;
            self.sled()?.runs.insert(STATE_KEY, state.encode())?;
            self.sled()?.db.flush().map(|_| ())
        })
    }

    /// Writes what sled still holds in RAM, notes above all.
    ///
    /// # Errors
    /// Fails if sled cannot write.
    pub fn flush(&self) -> Result<()> {
        guarded("write", || self.sled()?.db.flush().map(|_| ()))
    }

    /// Reads all pack rows, removes the leftovers and checks the rest against `state`.
    ///
    /// # Errors
    /// Fails with [`ErrorKind::Damage`] if rows are missing, malformed or too many.
    pub fn load(&self, state: &State) -> Result<HashMap<u32, [u8; 32]>> {
        let mut packs = HashMap::with_capacity(state.packs as usize);
        let mut leftovers = Vec::new();
        let (mut entries, mut reverse) = (0_u64, 0_u32);
        let dropping: HashSet<u32> = state.dropping.iter().copied().collect();
        let counts = |o: u32| (state.first..state.next).contains(&o) && !dropping.contains(&o);
        self.each_row(&mut |ordinal, pack| {
            if counts(ordinal) {
                entries += u64::from(pack.entries);
                packs.insert(ordinal, pack.id);
            } else {
                leftovers.push((ordinal, pack.id));
            }
        })?;
        let mut strays = Vec::new();
        guarded("read", || {
            for row in self.sled()?.ordinals.iter() {
                let (id, value) = row?;
                let known = decode_ordinal(&value).and_then(|ordinal| packs.get(&ordinal));
                if known.is_some_and(|known| known[..] == id[..]) {
                    reverse += 1;
                } else {
                    strays.push(id);
                }
            }
            Ok(())
        })?;
        if packs.len() != state.packs as usize || entries != state.entries || reverse != state.packs
        {
            return Err(damaged("its packs are not those of its state row"));
        }
        guarded("write", || {
            leftovers.iter().try_for_each(|(ordinal, _)| self.remove_row(*ordinal))?;
            strays.iter().try_for_each(|id| self.sled()?.ordinals.remove(id).map(|_| ()))
        })?;
        Ok(packs)
    }

    fn remove_row(&self, ordinal: u32) -> sled::Result<()> {
        self.sled()?.packs.remove(ordinal.to_be_bytes()).map(|_| ())
    }

    /// Calls `visit` with every pack row, those that do not count included.
    ///
    /// # Errors
    /// Fails with [`ErrorKind::Damage`] on a malformed row, and if sled cannot read.
    pub fn each_row(&self, visit: &mut dyn FnMut(u32, PackRecord)) -> Result<()> {
        let mut rows = guarded("read", || Ok(self.sled()?.packs.iter()))?;
        while let Some((key, value)) = guarded("read", || rows.next().transpose())? {
            let row = decode_ordinal(&key).zip(decode_pack(&value));
            let (ordinal, pack) = row.ok_or_else(|| damaged("a pack row is malformed"))?;
            visit(ordinal, pack);
        }
        Ok(())
    }

    /// The row of one pack.
    ///
    /// # Errors
    /// Fails if sled cannot read.
    pub fn pack(&self, ordinal: u32) -> Result<Option<PackRecord>> {
        let row = guarded("read", || self.sled()?.packs.get(ordinal.to_be_bytes()))?;
        Ok(row.and_then(|row| decode_pack(&row)))
    }

    /// The ordinal last written for a pack id; whether it counts is the caller's to know.
    ///
    /// # Errors
    /// Fails if sled cannot read.
    pub fn ordinal(&self, id: &[u8; 32]) -> Result<Option<u32>> {
        let row = guarded("read", || self.sled()?.ordinals.get(id))?;
        Ok(row.and_then(|row| decode_ordinal(&row)))
    }

    /// Writes the two rows of a pack; they count after the next commit.
    ///
    /// # Errors
    /// Fails if sled cannot write.
    pub fn put_pack(&self, ordinal: u32, pack: &PackRecord) -> Result<()> {
        let mut row = [0_u8; 37];
        row[..32].copy_from_slice(&pack.id);
        row[32] = pack.kind;
        row[33..].copy_from_slice(&pack.entries.to_be_bytes());
        guarded("write", || {
            self.sled()?.packs.insert(ordinal.to_be_bytes(), &row[..])?;
            self.sled()?.ordinals.insert(pack.id, &ordinal.to_be_bytes()).map(|_| ())
        })
    }

    /// Removes the rows of a dropped pack.
    ///
    /// # Errors
    /// Fails if sled cannot write.
    pub fn remove_pack(&self, ordinal: u32, id: &[u8; 32]) -> Result<()> {
        guarded("write", || {
            self.remove_row(ordinal)?;
            self.sled()?.ordinals.remove(id).map(|_| ())
        })
    }

    /// Removes all pack rows.
    ///
    /// # Errors
    /// Fails if sled cannot write.
    pub fn clear_packs(&self) -> Result<()> {
        guarded("write", || {
            self.sled()?.packs.clear()?;
            self.sled()?.ordinals.clear()
        })
    }

    /// Removes all notes.
    ///
    /// # Errors
    /// Fails if sled cannot write.
    pub fn clear_notes(&self) -> Result<()> {
        guarded("write", || self.sled()?.notes.clear())
    }

    /// One note.
    ///
    /// # Errors
    /// Fails if sled cannot read.
    pub fn note(&self, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(guarded("read", || self.sled()?.notes.get(key))?.map(|value| value.to_vec()))
    }

    /// Sets one note.
    ///
    /// # Errors
    /// Fails if sled cannot write.
    pub fn set_note(&self, key: &str, value: &[u8]) -> Result<()> {
        guarded("write", || self.sled()?.notes.insert(key, value).map(|_| ()))
    }
}

impl Drop for Catalogue {
    fn drop(&mut self) {
        // sled panics if the last fsync fails. What counts was committed before.
        let _ = guarded("close", || {
            drop(self.handles.take());
            Ok(())
        });
    }
}

fn decode_ordinal(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

fn decode_pack(bytes: &[u8]) -> Option<PackRecord> {
    let (id, rest) = bytes.split_first_chunk::<32>()?;
    let (kind, entries) = rest.split_first()?;
    Some(PackRecord { id: *id, kind: *kind, entries: decode_ordinal(entries)? })
}

/// The slot's own lock keeps other processes out, so a locked sled can only be one that this
/// process is still closing in the background: worth two seconds of patience, not a rebuild.
fn open_unlocked(config: &sled::Config) -> sled::Result<sled::Db> {
    let mut tries = 0;
    loop {
        match config.open() {
            Err(sled::Error::Io(cause))
                if tries < 200 && cause.to_string().contains("could not acquire lock") =>
            {
                tries += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_encoding_and_no_flipped_bit() {
        let runs = vec![RunName { name: 7, count: 9, boot: 0 }];
        let state = State { first: 1, next: 5, packs: 3, entries: 99, runs, dropping: vec![2] };
        let bytes = state.encode();
        assert_eq!(State::decode(&bytes), Some(state));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(State::decode(&bad), None);
            assert_eq!(State::decode(&bytes[..at]), None);
        }
    }

    #[test]
    fn rows_that_do_not_add_up_are_damage_and_leftovers_go() {
        let folder = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(folder.path()).unwrap();
        let pack = |byte| PackRecord { id: [byte; 32], kind: 1, entries: 10 };
        for ordinal in 0..4 {
            catalogue.put_pack(ordinal, &pack(ordinal as u8)).unwrap();
        }
        // 0 was cleared, 1 counts, 2 is being dropped, 3 was never committed.
        let (packs, entries) = (1, 10);
        let state = State { first: 1, next: 3, packs, entries, dropping: vec![2], runs: vec![] };
        let loaded = catalogue.load(&state).unwrap();
        assert_eq!(loaded, HashMap::from([(1, [1; 32])]));
        let sled = catalogue.sled().unwrap();
        assert_eq!((sled.packs.len(), sled.ordinals.len()), (1, 1));
        for wrong in [State { packs: 2, ..state.clone() }, State { entries: 11, ..state.clone() }] {
            assert_eq!(catalogue.load(&wrong).unwrap_err().kind(), ErrorKind::Damage);
        }
        catalogue.sled().unwrap().ordinals.remove([1; 32]).unwrap();
        assert_eq!(catalogue.load(&state).unwrap_err().kind(), ErrorKind::Damage);
        catalogue.put_pack(1, &pack(1)).unwrap();
        catalogue.load(&state).unwrap();
        catalogue.remove_row(1).unwrap();
        assert_eq!(catalogue.load(&state).unwrap_err().kind(), ErrorKind::Damage);
    }
}

//! A storage in memory whose medium fails when it is told to: for tests of everything above it.
//!
//! It keeps two images: the live one, which every operation sees, and the durable one, which is
//! what a power cut leaves. An honest put or delete changes both before it returns. Operations
//! are numbered from 0, one after the other under one lock, so that a test can fail the Nth one
//! for N = 0, 1, 2... until a run meets no fault any more.
//!
//! Invariant owned here: nothing depends on time, chance or addresses. The same operations with
//! the same faults give the same outcome.

use super::{
    FOREIGN_NAMES_MAX, Folder, ObjectEntry, ObjectName, Storage, absent, taken, too_long, too_short,
};
use crate::error::{Error, ErrorKind, Result};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What an operation was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Storage::put_new`].
    Put,
    /// [`Storage::get`].
    Get,
    /// [`Storage::get_range`] or [`Storage::get_tail`].
    Range,
    /// [`Storage::size`].
    Size,
    /// [`Storage::list`], with the folder's name, or [`Storage::foreign`], with an empty one.
    List,
    /// [`Storage::delete`].
    Delete,
    /// [`Storage::rename`], with the old name.
    Rename,
}

impl Operation {
    fn changes(self) -> bool {
        matches!(self, Operation::Put | Operation::Delete | Operation::Rename)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Put => "write",
            Operation::Get | Operation::Range | Operation::Size => "read",
            Operation::List => "list",
            Operation::Delete => "delete",
            Operation::Rename => "rename",
        })
    }
}

/// How an operation goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// Any operation: an I/O error ([`ErrorKind::Storage`]); nothing is read or changed.
    Error,
    /// A put: no space is left ([`ErrorKind::NoSpace`]); nothing is changed.
    NoSpace,
    /// A put: the power goes off in the middle of it. With `visible`, the first half of the
    /// object stays under its final name, as only a storage that breaks its promises leaves it.
    TornPut {
        /// True for a storage that shows a part of an object.
        visible: bool,
    },
    /// A put or delete: it returns as if all were well, but is durable only with the next put or
    /// delete that succeeds honestly, or with [`MemoryStorage::sync`]. A power cut before that
    /// undoes it.
    LoseUnsynced,
    /// A put, delete or rename: it is done and durable, but the answer is lost and the caller is told of
    /// an I/O error.
    LostReply,
    /// Any operation: the power goes off before it does anything, and stays off until
    /// [`MemoryStorage::restore_power`].
    PowerCut,
}

impl FaultKind {
    fn cuts_power(self) -> bool {
        matches!(self, FaultKind::TornPut { .. } | FaultKind::PowerCut)
    }

    fn strikes(self, operation: Operation) -> bool {
        match self {
            FaultKind::Error | FaultKind::PowerCut => true,
            FaultKind::LostReply | FaultKind::LoseUnsynced => operation.changes(),
            FaultKind::NoSpace | FaultKind::TornPut { .. } => operation == Operation::Put,
        }
    }
}

/// A fault and when it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// It strikes the first operation of the right sort whose number is at least this. Numbers
    /// start at 0, so [`MemoryStorage::operations`] is the number of the next one.
    pub at_operation: u64,
    /// How it goes wrong.
    pub kind: FaultKind,
    /// True: it strikes one operation only. False: it strikes all of the right sort from there
    /// on. What cuts the power strikes once in any case; it is the power that stays off.
    pub once: bool,
}

/// A storage in memory. Clones share one state, as processes share a disk.
#[derive(Clone, Default)]
pub struct MemoryStorage {
    state: Arc<Mutex<State>>,
}

type Image = BTreeMap<String, Arc<Vec<u8>>>;

#[derive(Default)]
struct State {
    live: Image,
    durable: Image,
    /// Names whose live state is not durable yet.
    unsynced: BTreeSet<String>,
    power_is_off: bool,
    faults: Vec<Fault>,
    /// By name: bytes that cannot be read.
    spoilt: BTreeMap<String, Range<u64>>,
    log: Vec<(Operation, String)>,
    /// What it says of calls at once; `None` for what a storage says by default.
    calls_at_once: Option<usize>,
}

impl State {
    /// Counts and logs an operation and says which fault strikes it, if one does.
    fn begin(&mut self, operation: Operation, name: &str) -> Result<Option<FaultKind>> {
        let number = self.log.len() as u64;
        self.log.push((operation, name.to_owned()));
        if self.power_is_off {
            return Err(power_is_off(operation, name));
        }
        let struck = self
            .faults
            .iter()
            .position(|fault| number >= fault.at_operation && fault.kind.strikes(operation));
        let Some(at) = struck else { return Ok(None) };
        let fault = self.faults[at];
        if fault.once || fault.kind.cuts_power() {
            self.faults.remove(at);
        }
        match fault.kind {
            FaultKind::Error => Err(failed(operation, name, Errno::IO)),
            FaultKind::NoSpace => Err(failed(operation, name, Errno::NOSPC)),
            FaultKind::PowerCut => {
                self.power_cut();
                Err(power_is_off(operation, name))
            }
            kind => Ok(Some(kind)),
        }
    }

    /// As [`State::begin`], for operations that only read: no fault lets them go on.
    fn begin_read(&mut self, operation: Operation, name: &str) -> Result<()> {
        self.begin(operation, name).map(|_| ())
    }

    /// An I/O error if these bytes of an object touch what cannot be read.
    fn check_readable(&self, operation: Operation, name: &str, bytes: Range<u64>) -> Result<()> {
        match self.spoilt.get(name) {
            Some(spoilt) if spoilt.start < bytes.end && bytes.start < spoilt.end => {
                Err(failed(operation, name, Errno::IO))
            }
            _ => Ok(()),
        }
    }

    /// Makes everything live durable, as a flush of the device does.
    fn flush(&mut self) {
        for name in std::mem::take(&mut self.unsynced) {
            match self.live.get(&name) {
                Some(data) => self.durable.insert(name, data.clone()),
                None => self.durable.remove(&name),
            };
        }
    }

    fn power_cut(&mut self) {
        self.power_is_off = true;
        self.live = self.durable.clone();
        self.unsynced.clear();
    }

    fn find(&self, name: &ObjectName) -> Result<Arc<Vec<u8>>> {
        self.live.get(name.as_str()).cloned().ok_or_else(|| absent(name))
    }

    fn change_both(&mut self, name: &str, data: Option<Vec<u8>>) {
        self.unsynced.remove(name);
        match data {
            Some(data) => {
                let data = Arc::new(data);
                self.live.insert(name.to_owned(), data.clone());
                self.durable.insert(name.to_owned(), data);
            }
            None => {
                self.live.remove(name);
                self.durable.remove(name);
            }
        }
    }
}

impl MemoryStorage {
    /// An empty storage with its power on and no faults.
    pub fn new() -> MemoryStorage {
        MemoryStorage::default()
    }

    /// Sets the one fault there is from now on; those set before are dropped.
    pub fn set_fault(&self, fault: Fault) {
        self.lock().faults = vec![fault];
    }

    /// Adds a fault to those set before. Where two could strike, the older one does.
    pub fn add_fault(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Drops all faults. The power stays as it is.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// Makes it say that so many calls at once are of use, as a far storage does.
    pub fn set_calls_at_once(&self, calls: usize) {
        self.lock().calls_at_once = Some(calls);
    }

    /// How many operations were begun so far, failed ones included.
    pub fn operations(&self) -> u64 {
        self.lock().log.len() as u64
    }

    /// All operations begun so far with the names they were given; entry N is operation N, also
    /// if it failed.
    pub fn log(&self) -> Vec<(Operation, String)> {
        self.lock().log.clone()
    }

    /// Cuts the power: what is not durable is gone, and every operation fails until
    /// [`MemoryStorage::restore_power`].
    pub fn power_cut(&self) {
        self.lock().power_cut();
    }

    /// Makes everything durable that is not yet, in the order in which it was done, as a journal
    /// does. Without power nothing is left to be made durable.
    pub fn sync(&self) {
        self.lock().flush();
    }

    /// True unless the power is off.
    pub fn has_power(&self) -> bool {
        !self.lock().power_is_off
    }

    /// Switches the power on again. Faults that were set and did not strike stay set.
    pub fn restore_power(&self) {
        self.lock().power_is_off = false;
    }

    /// A copy of all live objects, by name. It is no operation and never fails.
    pub fn snapshot(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.lock();
        state.live.iter().map(|(name, data)| (name.clone(), data.to_vec())).collect()
    }

    /// Changes the bytes of an object behind the back of its users, durably. Says whether there
    /// is such an object.
    pub fn corrupt(&self, name: impl AsRef<str>, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut state = self.lock();
        let Some(found) = state.live.get(name.as_ref()) else { return false };
        let mut data = found.to_vec();
        change(&mut data);
        state.change_both(name.as_ref(), Some(data));
        true
    }

    /// Makes bytes of an object unreadable from now on, as bad sectors are: reading them is an I/O
    /// error. One range for each object; an empty one ends it.
    pub fn spoil(&self, name: impl AsRef<str>, bytes: Range<u64>) {
        self.lock().spoilt.insert(name.as_ref().to_owned(), bytes);
    }

    /// Removes an object behind the back of its users, durably. Says whether there was one.
    pub fn remove(&self, name: impl AsRef<str>) -> bool {
        let mut state = self.lock();
        let was_there = state.live.contains_key(name.as_ref());
        state.change_both(name.as_ref(), None);
        was_there
    }

    /// Puts an object behind the back of its users, durably, replacing one of the same name. The
    /// name need not fit the grammar; it is foreign then.
    pub fn insert(&self, name: impl AsRef<str>, data: impl Into<Vec<u8>>) {
        self.lock().change_both(name.as_ref(), Some(data.into()));
    }

    /// The state, also after a panic of a test's own code in [`MemoryStorage::corrupt`].
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for MemoryStorage {
    fn put_new(&self, name: &ObjectName, data: &[u8]) -> Result<()> {
        let mut state = self.lock();
        let key = name.as_str();
        let fault = state.begin(Operation::Put, key)?;
        if state.live.contains_key(key) {
            return Err(taken(name));
        }
        if let Some(FaultKind::TornPut { visible }) = fault {
            if visible {
                let part = Arc::new(data[..data.len() / 2].to_vec());
                state.durable.insert(key.to_owned(), part);
            }
            state.power_cut();
            return Err(power_is_off(Operation::Put, key));
        }
        state.live.insert(key.to_owned(), Arc::new(data.to_vec()));
        state.unsynced.insert(key.to_owned());
        if fault == Some(FaultKind::LoseUnsynced) {
            return Ok(());
        }
        state.flush();
        match fault {
            Some(_) => Err(failed(Operation::Put, key, Errno::IO)),
            None => Ok(()),
        }
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        let mut state = self.lock();
        state.begin_read(Operation::Get, name.as_str())?;
        let data = state.find(name)?;
        let bytes = data.len() as u64;
        if bytes > bytes_max {
            return Err(too_long(name, bytes, bytes_max));
        }
        state.check_readable(Operation::Get, name.as_str(), 0..bytes)?;
        Ok(data.to_vec())
    }

    fn get_range(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut state = self.lock();
        state.begin_read(Operation::Range, name.as_str())?;
        let data = state.find(name)?;
        let part = usize::try_from(offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(buffer.len())?))
            .and_then(|range| data.get(range))
            .ok_or_else(|| too_short(name, offset, buffer.len()))?;
        let end = offset + buffer.len() as u64;
        state.check_readable(Operation::Range, name.as_str(), offset..end)?;
        buffer.copy_from_slice(part);
        Ok(())
    }

    fn get_tail(&self, name: &ObjectName, bytes: usize) -> Result<(Vec<u8>, u64)> {
        let mut state = self.lock();
        state.begin_read(Operation::Range, name.as_str())?;
        let data = state.find(name)?;
        let start = data.len().saturating_sub(bytes);
        let range = start as u64..data.len() as u64;
        state.check_readable(Operation::Range, name.as_str(), range)?;
        Ok((data[start..].to_vec(), data.len() as u64))
    }

    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        let mut state = self.lock();
        state.begin_read(Operation::Size, name.as_str())?;
        Ok(state.live.get(name.as_str()).map(|data| data.len() as u64))
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectEntry>> {
        let mut state = self.lock();
        state.begin_read(Operation::List, folder.name())?;
        // Names are sorted as text, so a folder's objects stand together; what only starts with
        // the same letters is sifted out by its name.
        let from = state.live.range(folder.name().to_owned()..);
        let entries = from.take_while(|(text, _)| text.starts_with(folder.name())).filter_map(
            |(text, data)| {
                let name = ObjectName::parse(text).ok()?;
                let bytes = data.len() as u64;
                (name.folder() == folder).then_some(ObjectEntry {
                    name,
                    bytes,
                    stored_unix_ns: None,
                })
            },
        );
        Ok(entries.collect())
    }

    fn foreign(&self) -> Result<Vec<String>> {
        let mut state = self.lock();
        state.begin_read(Operation::List, "")?;
        let known = |text: &str| {
            text.split_once('/').is_some_and(|(first, _)| {
                Folder::ALL.into_iter().any(|folder| folder.name() == first)
            })
        };
        let foreign = state
            .live
            .keys()
            .filter(|text| known(text))
            .filter(|text| ObjectName::parse(text).is_err())
            .map(|text| text.as_bytes().escape_ascii().to_string())
            .take(FOREIGN_NAMES_MAX);
        Ok(foreign.collect())
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        let mut state = self.lock();
        let key = name.as_str();
        let fault = state.begin(Operation::Delete, key)?;
        state.live.remove(key);
        state.unsynced.insert(key.to_owned());
        if fault == Some(FaultKind::LoseUnsynced) {
            return Ok(());
        }
        state.flush();
        match fault {
            Some(_) => Err(failed(Operation::Delete, key, Errno::IO)),
            None => Ok(()),
        }
    }

    fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<()> {
        let mut state = self.lock();
        let fault = state.begin(Operation::Rename, from.as_str())?;
        let data = state.find(from)?;
        if state.live.contains_key(to.as_str()) {
            return Err(taken(to));
        }
        state.live.remove(from.as_str());
        state.live.insert(to.as_str().to_owned(), data);
        state.unsynced.extend([from, to].map(|name| name.as_str().to_owned()));
        state.flush();
        match fault {
            Some(_) => Err(failed(Operation::Rename, from.as_str(), Errno::IO)),
            None => Ok(()),
        }
    }

    fn calls_at_once(&self) -> usize {
        self.lock().calls_at_once.unwrap_or(2)
    }

    fn location(&self) -> String {
        "memory".to_owned()
    }
}

fn failed(operation: Operation, name: &str, errno: Errno) -> Error {
    Error::io(ErrorKind::Storage, format!("cannot {operation} {name}"), errno.into())
}

fn power_is_off(operation: Operation, name: &str) -> Error {
    Error::new(ErrorKind::Storage, format!("cannot {operation} {name}: the power is off"))
}

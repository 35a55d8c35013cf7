//! A storage of which single objects may be unreadable, as on a disk with bad sectors.
//!
//! Invariants: an object counts as damaged only if reading it failed twice while the storage could
//! be listed and a config read. An error of the way to the storage stays one, and so does a
//! permission that is missing: nothing is wrong with the bytes. Listing and writing are passed on as
//! they are.

use super::{Folder, ObjectEntry, ObjectName, Storage, is_refused};
use crate::error::{Error, ErrorKind, Result};
use std::sync::Arc;

/// Most bytes of a config that are read to find out whether the storage answers.
const PROBE_BYTES: usize = 4 << 10;

/// Tells errors of one object, which are damage of it, from those of the whole storage.
pub struct Forgiving {
    inner: Arc<dyn Storage>,
}

impl Forgiving {
    /// In front of this storage.
    pub fn new(inner: Arc<dyn Storage>) -> Forgiving {
        Forgiving { inner }
    }

    /// Reads once more if the medium failed; if it fails again, and not everywhere, the object is
    /// damaged.
    fn read<T>(&self, name: &ObjectName, mut read: impl FnMut() -> Result<T>) -> Result<T> {
        let is_medium = |error: &Error| error.kind() == ErrorKind::Storage && !is_refused(error);
        match read() {
            Err(error) if is_medium(&error) => {}
            done => return done,
        }
        match read() {
            Err(error) if is_medium(&error) && self.answers(name) => {
                let text = format!("{}, twice; {name} is unreadable", error.full_text());
                Err(Error::new(ErrorKind::Damage, text))
            }
            done => done,
        }
    }

    /// Whether another object can be read: without a config nobody opens the repository.
    fn answers(&self, name: &ObjectName) -> bool {
        let Ok(configs) = self.inner.list(Folder::Config) else { return false };
        let mut others = configs.iter().filter(|entry| entry.name != *name);
        others.any(|entry| self.inner.get_tail(&entry.name, PROBE_BYTES).is_ok())
    }
}

impl Storage for Forgiving {
    fn put_new(&self, name: &ObjectName, data: &[u8]) -> Result<()> {
        self.inner.put_new(name, data)
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        self.read(name, || self.inner.get(name, bytes_max))
    }

    fn get_range(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.read(name, || self.inner.get_range(name, offset, buffer))
    }

    fn get_tail(&self, name: &ObjectName, bytes: usize) -> Result<(Vec<u8>, u64)> {
        self.read(name, || self.inner.get_tail(name, bytes))
    }

    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.inner.size(name)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectEntry>> {
        self.inner.list(folder)
    }

    fn foreign(&self) -> Result<Vec<String>> {
        self.inner.foreign()
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        self.inner.delete(name)
    }

    fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<()> {
        self.inner.rename(from, to)
    }

    fn renew(&self, name: &ObjectName) -> Result<Option<bool>> {
        self.inner.renew(name)
    }

    fn room(&self) -> Result<Option<u64>> {
        self.inner.room()
    }

    fn calls_at_once(&self) -> usize {
        self.inner.calls_at_once()
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    fn identity(&self) -> String {
        self.inner.identity()
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::{Fault, FaultKind, MemoryStorage};
    use super::*;
    use std::io;

    fn name(text: &str) -> ObjectName {
        ObjectName::parse(text).unwrap()
    }

    fn filled() -> (MemoryStorage, Forgiving) {
        let storage = MemoryStorage::new();
        for text in ["config/00000001-aa", "notes/11-22"] {
            storage.insert(text, vec![7; 100]);
        }
        (storage.clone(), Forgiving::new(Arc::new(storage)))
    }

    #[test]
    fn one_object_is_damaged_while_others_can_be_read() {
        let (storage, forgiving) = filled();
        storage.spoil("notes/11-22", 50..51);
        let mut buffer = [0; 10];
        for error in [
            forgiving.get(&name("notes/11-22"), 1000).unwrap_err(),
            forgiving.get_range(&name("notes/11-22"), 45, &mut buffer).unwrap_err(),
            forgiving.get_tail(&name("notes/11-22"), 60).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Damage);
            assert!(error.full_text().contains("notes/11-22 is unreadable"), "{error:?}");
        }
        forgiving.get_range(&name("notes/11-22"), 0, &mut buffer).unwrap();
        assert_eq!(forgiving.get(&name("notes/33-44"), 9).unwrap_err().kind(), ErrorKind::NotFound);
        // The only config: nothing else vouches for the storage.
        storage.spoil("config/00000001-aa", 0..1);
        for text in ["notes/11-22", "config/00000001-aa"] {
            assert_eq!(forgiving.get(&name(text), 999).unwrap_err().kind(), ErrorKind::Storage);
        }
    }

    #[test]
    fn a_medium_that_fails_once_is_asked_again_and_one_that_fails_is_not_blamed_on_an_object() {
        let (storage, forgiving) = filled();
        for (once, outcome) in [(true, None), (false, Some(ErrorKind::Storage))] {
            let at_operation = storage.operations();
            storage.set_fault(Fault { at_operation, kind: FaultKind::Error, once });
            let got = forgiving.get(&name("notes/11-22"), 1000);
            assert_eq!(got.err().map(|error| error.kind()), outcome);
        }
    }

    #[test]
    fn a_permission_that_is_missing_is_no_damage() {
        let error = |kind| Error::io(ErrorKind::Storage, "cannot read x", io::Error::from(kind));
        assert!(is_refused(&error(io::ErrorKind::PermissionDenied)));
        assert!(!is_refused(&error(io::ErrorKind::TimedOut)));
    }
}

//! A storage whose small objects of a far place are kept in a folder of this host once they were
//! read: manifests and notes, of which a run reads all and which never change.
//!
//! Invariants: what is kept is what was read, byte for byte, or it is read again; whether an object
//! exists is asked of the storage alone, by its listing. So who reads what was listed a moment ago
//! gets it from here; a check, which has to see what is stored, does not look through this.

use super::{Folder, ObjectEntry, ObjectName, Storage};
use crate::error::Result;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of the BLAKE3 of the rest that a file starts with.
const CHECK_BYTES: usize = 32;

/// A storage with a memory for small objects.
pub struct Remembering {
    inner: Arc<dyn Storage>,
    folder: PathBuf,
}

impl Remembering {
    /// Keeps what is read in `folder`, which is made when it is needed.
    pub fn new(inner: Arc<dyn Storage>, folder: &Path) -> Remembering {
        Remembering { inner, folder: folder.to_owned() }
    }

    /// Where an object is kept, if objects like it are.
    fn file(&self, name: &ObjectName) -> Option<PathBuf> {
        match name.folder() {
            Folder::Points | Folder::Notes => {
                Some(self.folder.join(name.folder().name()).join(name.leaf()))
            }
            _ => None,
        }
    }

    /// Forgets what a listing no longer has.
    fn forget(&self, folder: Folder, listed: &[ObjectEntry]) {
        let Ok(kept) = fs::read_dir(self.folder.join(folder.name())) else { return };
        let listed: HashSet<&str> = listed.iter().map(|entry| entry.name.leaf()).collect();
        for entry in kept.flatten() {
            if entry.file_name().to_str().is_none_or(|leaf| !listed.contains(leaf)) {
                // What stays is in nobody's way.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// What a file keeps, if it is whole and not larger than is wanted.
fn read_kept(file: &Path, bytes_max: u64) -> Option<Vec<u8>> {
    let bytes = fs::metadata(file).ok()?.len();
    if bytes.saturating_sub(CHECK_BYTES as u64) > bytes_max {
        return None;
    }
    let mut data = fs::read(file).ok()?;
    let check = data.get(..CHECK_BYTES)?;
    if blake3::hash(data.get(CHECK_BYTES..)?) != *<&[u8; CHECK_BYTES]>::try_from(check).ok()? {
        return None;
    }
    data.drain(..CHECK_BYTES);
    Some(data)
}

/// Keeps an object. A cache that cannot be written costs time and nothing else.
fn keep(file: &Path, data: &[u8]) {
    let Some(folder) = file.parent() else { return };
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        let mut kept = blake3::hash(data).as_bytes().to_vec();
        kept.extend_from_slice(data);
        let temporary = tempfile::NamedTempFile::new_in(folder)?;
        fs::write(temporary.path(), kept)?;
        temporary.persist(file)?;
        Ok(())
    };
    let _ = write();
}

impl Storage for Remembering {
    fn put_new(&self, name: &ObjectName, data: &[u8]) -> Result<()> {
        self.inner.put_new(name, data)
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        let Some(file) = self.file(name) else { return self.inner.get(name, bytes_max) };
        if let Some(data) = read_kept(&file, bytes_max) {
            return Ok(data);
        }
        let data = self.inner.get(name, bytes_max)?;
        keep(&file, &data);
        Ok(data)
    }

    fn get_range(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.inner.get_range(name, offset, buffer)
    }

    fn get_tail(&self, name: &ObjectName, bytes: usize) -> Result<(Vec<u8>, u64)> {
        self.inner.get_tail(name, bytes)
    }

    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.inner.size(name)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectEntry>> {
        let listed = self.inner.list(folder)?;
        if matches!(folder, Folder::Points | Folder::Notes) {
            self.forget(folder, &listed);
        }
        Ok(listed)
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
    use super::super::memory::MemoryStorage;
    use super::*;

    #[test]
    fn an_object_is_read_once_and_one_that_was_spoilt_here_again() {
        let folder = tempfile::tempdir().unwrap();
        let storage = MemoryStorage::new();
        let note = "notes/11-22";
        storage.insert(note, "a note");
        storage.insert("leases/33", "a lease");
        let remembering = Remembering::new(Arc::new(storage.clone()), folder.path());
        let read = |text: &str| {
            let before = storage.operations();
            let data = remembering.get(&ObjectName::parse(text).unwrap(), 100).unwrap();
            (String::from_utf8(data).unwrap(), storage.operations() - before)
        };
        assert_eq!(read(note), ("a note".into(), 1));
        assert_eq!(read(note), ("a note".into(), 0));
        // What may change or go at any time is always asked for.
        assert_eq!([read("leases/33").1, read("leases/33").1], [1, 1]);
        let kept = folder.path().join("notes/11-22");
        let mut bytes = fs::read(&kept).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&kept, bytes).unwrap();
        assert_eq!(read(note), ("a note".into(), 1));
        // One that is gone is forgotten by the next listing.
        storage.delete(&ObjectName::parse(note).unwrap()).unwrap();
        assert!(remembering.list(Folder::Notes).unwrap().is_empty());
        assert!(!kept.exists());
    }
}

//! A storage at a far place of which some objects are kept in a folder of this host: manifests and
//! notes once they were read or put, of which a run reads all; and of the packs that go over those that
//! will be read again, such as map packs, to which the next backup compares. None ever changes.
//!
//! Invariants: what is kept is what was read or put, byte for byte, or it is read again; whether an object
//! exists, and with which size, is asked of the storage alone, by its listing. So who reads what was listed a moment ago
//! gets it from here; a check, which has to see what is stored, does not look through this.

use super::kept::{CHECK_BYTES, read_kept, write_kept, write_whole};
use super::{Folder, ObjectEntry, ObjectName, Storage};
use crate::error::Result;
use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of packs that are kept at most: the maps of some terabytes.
const PACK_BYTES_KEPT: u64 = 4 << 30;

/// Says of a pack that is put whether it will be read again.
pub type IsKept = fn(&[u8]) -> bool;

/// A pack that is kept: its file, and its size in bytes.
type KeptPack = (Arc<File>, u64);

/// A storage with a memory.
pub struct Remembering {
    inner: Arc<dyn Storage>,
    folder: PathBuf,
    is_kept: IsKept,
    /// Packs that were looked for here: those that are kept and whole, open, with their size.
    packs: Mutex<HashMap<ObjectName, Option<KeptPack>>>,
}

impl Remembering {
    /// Keeps what is read in `folder`, which is made when it is needed; and of the packs that are put
    /// those of which `is_kept` says so.
    pub fn new(inner: Arc<dyn Storage>, folder: &Path, is_kept: IsKept) -> Remembering {
        Remembering { inner, folder: folder.to_owned(), is_kept, packs: Mutex::default() }
    }

    /// The kept copy of a pack, if there is one whose bytes hash to its name.
    fn pack(&self, name: &ObjectName) -> Option<KeptPack> {
        if name.folder() != Folder::Packs {
            return None;
        }
        let mut packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = packs.get(name) {
            return known.clone();
        }
        let path = self.folder.join(Folder::Packs.name()).join(name.leaf());
        // At most a pack's bytes, once for each run.
        let is_whole = |data: &[u8]| blake3::hash(data).to_hex().as_str() == name.leaf();
        let bytes =
            fs::read(&path).ok().filter(|data| is_whole(data)).map(|data| data.len() as u64);
        let found = bytes.and_then(|bytes| Some((Arc::new(File::open(&path).ok()?), bytes)));
        packs.insert(name.clone(), found.clone());
        found
    }

    /// Keeps a pack that was put, and lets go of the oldest ones if they become too many.
    fn keep_pack(&self, name: &ObjectName, data: &[u8]) {
        let folder = self.folder.join(Folder::Packs.name());
        if write_whole(&folder, name.leaf(), &[data]).is_err() {
            return;
        }
        self.packs.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        let Ok(kept) = fs::read_dir(&folder) else { return };
        let mut kept: Vec<_> = kept
            .flatten()
            .filter_map(|entry| {
                let found = entry.metadata().ok()?;
                Some((found.modified().ok()?, found.len(), entry.path()))
            })
            .collect();
        let mut bytes: u64 = kept.iter().map(|(_, bytes, _)| bytes).sum();
        kept.sort();
        for (_, freed, path) in kept {
            if bytes <= PACK_BYTES_KEPT {
                return;
            }
            let _ = fs::remove_file(path);
            bytes = bytes.saturating_sub(freed);
        }
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

    /// Forgets what a listing no longer has, or has with another size: it was cut or replaced there, and
    /// nobody may build on it for what it was.
    fn forget(&self, folder: Folder, listed: &[ObjectEntry]) {
        let listed: HashMap<&str, u64> =
            listed.iter().map(|entry| (entry.name.leaf(), entry.bytes)).collect();
        let more = if folder == Folder::Packs { 0 } else { CHECK_BYTES as u64 };
        let is_listed =
            |leaf: &str, kept: u64| listed.get(leaf).is_some_and(|it| it + more == kept);
        if folder == Folder::Packs {
            let mut packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
            packs.retain(|name, kept| {
                kept.as_ref().is_some_and(|(_, bytes)| is_listed(name.leaf(), *bytes))
            });
        }
        let Ok(kept) = fs::read_dir(self.folder.join(folder.name())) else { return };
        for entry in kept.flatten() {
            let bytes = entry.metadata().map_or(0, |found| found.len());
            if entry.file_name().to_str().is_none_or(|leaf| !is_listed(leaf, bytes)) {
                // What stays is in nobody's way.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Keeps an object. A cache that cannot be written costs time and nothing else.
fn keep(file: &Path, data: &[u8]) {
    let (Some(folder), Some(leaf)) = (file.parent(), file.file_name()) else { return };
    let _ = write_kept(folder, &leaf.to_string_lossy(), data);
}

impl Storage for Remembering {
    fn put_new(&self, name: &ObjectName, data: &[u8]) -> Result<()> {
        self.inner.put_new(name, data)?;
        if name.folder() == Folder::Packs && (self.is_kept)(data) {
            self.keep_pack(name, data);
        }
        // Nobody reads a mark without bytes.
        if let Some(file) = self.file(name).filter(|_| !data.is_empty()) {
            keep(&file, data);
        }
        Ok(())
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
        let end = offset.checked_add(buffer.len() as u64);
        if let Some((file, bytes)) = self.pack(name)
            && end.is_some_and(|end| end <= bytes)
            && file.read_exact_at(buffer, offset).is_ok()
        {
            return Ok(());
        }
        self.inner.get_range(name, offset, buffer)
    }

    fn get_tail(&self, name: &ObjectName, bytes: usize) -> Result<(Vec<u8>, u64)> {
        if let Some((file, whole)) = self.pack(name) {
            let mut tail = vec![0; bytes.min(usize::try_from(whole).unwrap_or(usize::MAX))];
            let from = whole - tail.len() as u64;
            if file.read_exact_at(&mut tail, from).is_ok() {
                return Ok((tail, whole));
            }
        }
        self.inner.get_tail(name, bytes)
    }

    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.inner.size(name)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectEntry>> {
        let listed = self.inner.list(folder)?;
        if matches!(folder, Folder::Points | Folder::Notes | Folder::Packs) {
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
    use super::super::memory::MemoryStorage;
    use super::*;

    #[test]
    fn an_object_is_read_once_and_one_that_was_spoilt_here_again() {
        let folder = tempfile::tempdir().unwrap();
        let storage = MemoryStorage::new();
        let note = "notes/11-22";
        storage.insert(note, "a note");
        storage.insert("leases/33", "a lease");
        let remembering = Remembering::new(Arc::new(storage.clone()), folder.path(), |_| false);
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

    #[test]
    fn a_pack_that_will_be_read_again_is_kept_and_believed_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let storage = MemoryStorage::new();
        let inner = Arc::new(storage.clone());
        let remembering = || Remembering::new(inner.clone(), folder.path(), |data| data[0] == b'm');
        let first = remembering();
        let mut names = Vec::new();
        for data in [b"map pack", b"packs..."] {
            let id = blake3::hash(data).to_hex().to_string();
            names.push(ObjectName::new(Folder::Packs, &id).unwrap());
            first.put_new(names.last().unwrap(), data).unwrap();
        }
        let read = |remembering: &Remembering, name: &ObjectName| {
            let before = storage.operations();
            let mut buffer = [0; 4];
            remembering.get_range(name, 4, &mut buffer).unwrap();
            let (tail, whole) = remembering.get_tail(name, 4).unwrap();
            assert_eq!((&tail[..], whole), (&buffer[..], 8));
            storage.operations() - before
        };
        assert_eq!([read(&first, &names[0]), read(&first, &names[1])], [0, 2]);
        // What was spoilt here is read there.
        let kept = folder.path().join("packs").join(names[0].leaf());
        fs::write(&kept, b"bad pack").unwrap();
        assert_eq!(read(&remembering(), &names[0]), 2);
        // One that a prune has taken away, or that was cut over there, is forgotten by the next listing;
        // also by who has it open.
        let again = remembering();
        again.put_new(&names[0], b"map pack").unwrap_err();
        storage.delete(&names[0]).unwrap();
        again.put_new(&names[0], b"map pack").unwrap();
        assert_eq!(read(&again, &names[0]), 0);
        again.list(Folder::Packs).unwrap();
        assert!(kept.exists());
        storage.insert(names[0].as_str(), "map");
        again.list(Folder::Packs).unwrap();
        assert!(!kept.exists());
        let cut = again.get_tail(&names[0], 8).unwrap();
        assert_eq!(cut, (b"map".to_vec(), 3));
        storage.delete(&names[0]).unwrap();
        again.put_new(&names[0], b"map pack").unwrap();
        storage.delete(&names[0]).unwrap();
        again.list(Folder::Packs).unwrap();
        assert!(!kept.exists());
    }
}

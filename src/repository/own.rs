//! What a writer that may not read keeps of what it has stored, in its cache: of packs the footer and
//! trailer, of points the manifest, in copies that its own keys open (spec/21-writers.md). And the
//! storage as such a writer sees it: what it has stored itself and still knows.
//!
//! Invariants: a copy is kept only after the object was put, so what is kept was stored; a copy that
//! is damaged or lost makes its object one of somebody else, which costs room and loses nothing; the
//! key of a data pack is never kept.

use super::lock;
use crate::environment::{Environment, random_array};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::kept::{read_kept, write_kept};
use crate::storage::{Folder, ObjectEntry, ObjectName, Storage};
use diskvault_format::crypto::Secret;
use diskvault_format::id::PointId;
use diskvault_format::limits::{PACK_BYTES_MAX, SEALED_BYTES_MAX};
use diskvault_format::names::{PointName, parse_point};
use diskvault_format::pack::{OwnCopySecrets, PackSecrets, SealedPack};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// A copy whose object is not listed goes when it is this old: a younger one may be of a run beside
/// this, whose object came after the listing.
const STALE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// The copies. That of a pack is named after the pack and its size, so that one that was cut since is
/// told from its name.
pub struct OwnCopies {
    folder: PathBuf,
    /// Sizes of the packs that were listed last or put since.
    sizes: Mutex<HashMap<String, u64>>,
}

impl OwnCopies {
    /// Those in a folder, which is made when the first is kept.
    pub fn new(folder: PathBuf) -> OwnCopies {
        OwnCopies { folder, sizes: Mutex::default() }
    }

    fn folder_of(&self, folder: Folder) -> PathBuf {
        self.folder.join(folder.name())
    }

    fn keep(&self, folder: Folder, leaf: &str, parts: &[&[u8]]) -> Result<()> {
        write_kept(&self.folder_of(folder), leaf, &parts.concat()).map_err(|cause| {
            let text = format!("cannot keep what was stored in {}", self.folder.display());
            Error::io(ErrorKind::Failed, text, cause)
        })
    }

    /// Keeps footer and trailer of a pack that was put.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn keep_pack(&self, pack: &SealedPack) -> Result<()> {
        let Some(copy) = &pack.own_copy else { return Ok(()) };
        let (id, bytes) = (pack.id, pack.bytes.len() as u64);
        self.keep(Folder::Packs, &pack_file(&id.to_hex(), bytes), &[copy])?;
        lock(&self.sizes).insert(id.to_hex(), bytes);
        Ok(())
    }

    /// Keeps the manifest of a point that was put.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn keep_point(&self, id: PointId, copy: &[u8]) -> Result<()> {
        self.keep(Folder::Points, &id.to_hex(), &[copy])
    }

    /// Footer and trailer of a pack that was listed or put, with its size.
    fn pack(&self, leaf: &str) -> Option<(u64, Vec<u8>)> {
        let bytes = lock(&self.sizes).get(leaf).copied()?;
        let file = self.folder_of(Folder::Packs).join(pack_file(leaf, bytes));
        Some((bytes, read_kept(&file, PACK_BYTES_MAX)?))
    }

    fn point(&self, leaf: &str) -> Option<Vec<u8>> {
        read_kept(&self.folder_of(Folder::Points).join(leaf), SEALED_BYTES_MAX)
    }

    /// The files of a folder's copies that are of listed objects, which have these file names; others
    /// go when they are old.
    fn kept(&self, folder: Folder, listed: &HashSet<String>) -> HashSet<String> {
        let Ok(kept) = fs::read_dir(self.folder_of(folder)) else { return HashSet::new() };
        let mut files = HashSet::new();
        for entry in kept.flatten() {
            let Some(file) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if listed.contains(&file) {
                files.insert(file);
            } else if is_stale(&entry.path()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        files
    }

    /// Leaves only what is kept of a listing.
    fn retain(&self, folder: Folder, listed: &mut Vec<ObjectEntry>) {
        let file_of = |entry: &ObjectEntry| match (folder, parse_point(entry.name.leaf())) {
            (Folder::Points, Some(PointName::Ok(id))) => id.to_hex(),
            (Folder::Points, _) => entry.name.leaf().to_owned(),
            _ => pack_file(entry.name.leaf(), entry.bytes),
        };
        let kept = self.kept(folder, &listed.iter().map(file_of).collect());
        listed.retain(|entry| kept.contains(&file_of(entry)));
        if folder == Folder::Packs {
            let sizes = listed.iter().map(|entry| (entry.name.leaf().to_owned(), entry.bytes));
            lock(&self.sizes).extend(sizes);
        }
    }
}

/// Fresh random values for a pack; with those for a copy where one is kept.
///
/// # Errors
/// Fails without randomness.
pub(super) fn pack_secrets(environment: &dyn Environment, keeps: bool) -> Result<PackSecrets> {
    let own_copy = match keeps {
        false => None,
        true => Some(OwnCopySecrets {
            key: Secret::new(random_array(environment)?),
            nonce: random_array(environment)?,
        }),
    };
    let (key, wrap_random) = (random_array(environment)?, random_array(environment)?);
    Ok(PackSecrets { key: Secret::new(key), wrap_random, own_copy })
}

fn pack_file(leaf: &str, bytes: u64) -> String {
    format!("{leaf}.{bytes}")
}

fn is_stale(file: &Path) -> bool {
    let modified = fs::metadata(file).and_then(|metadata| metadata.modified()).ok();
    let age = modified.and_then(|time| SystemTime::now().duration_since(time).ok());
    age.is_some_and(|age| age > STALE_AFTER)
}

/// A storage in which only what this writer has stored is listed.
pub struct OwnView {
    inner: Arc<dyn Storage>,
    copies: Arc<OwnCopies>,
}

impl OwnView {
    /// What `copies` know of `inner`.
    pub fn new(inner: Arc<dyn Storage>, copies: Arc<OwnCopies>) -> OwnView {
        OwnView { inner, copies }
    }
}

impl Storage for OwnView {
    fn put_new(&self, name: &ObjectName, data: &[u8]) -> Result<()> {
        self.inner.put_new(name, data)
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        if name.folder() == Folder::Points
            && let Some(copy) = self.copies.point(name.leaf())
        {
            return Ok(copy);
        }
        self.inner.get(name, bytes_max)
    }

    fn get_range(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.inner.get_range(name, offset, buffer)
    }

    /// Of a pack no more than footer and trailer: nobody asks for more at its end.
    fn get_tail(&self, name: &ObjectName, bytes: usize) -> Result<(Vec<u8>, u64)> {
        if name.folder() == Folder::Packs
            && let Some((whole, mut copy)) = self.copies.pack(name.leaf())
        {
            copy.drain(..copy.len().saturating_sub(bytes));
            return Ok((copy, whole));
        }
        self.inner.get_tail(name, bytes)
    }

    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.inner.size(name)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectEntry>> {
        // Sealed for those who may read. Its own chunks that are lost are in no listed pack.
        if matches!(folder, Folder::Lost | Folder::Writers) {
            return Ok(Vec::new());
        }
        let mut listed = self.inner.list(folder)?;
        if matches!(folder, Folder::Packs | Folder::Points) {
            self.copies.retain(folder, &mut listed);
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

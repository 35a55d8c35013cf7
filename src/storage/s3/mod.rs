//! A repository in a bucket of an object store that speaks S3: `docs/adr/0017-s3-through-object-store.md`.
//!
//! Invariants owned here:
//!
//! - A put is told as done only after the server said so and then told the right size of the object.
//! - A name is refused where it is taken: by `If-None-Match` where the server honours that, by looking
//!   first where it does not. A put whose answer was lost and that meets its own bytes is done.
//! - Memory for an object is taken only after its size is known and allowed.
//! - What the server says is never believed further than that: all content is authenticated above.

mod client;
mod line;
mod listing;
mod lock;
mod options;
mod probe;
mod trouble;
mod xml;

pub use options::{Credentials, LockMode, ObjectLock, Patience, S3Options};
pub use probe::Findings;

use self::client::{DOUBTS_MAX, S3Client, path};
use self::line::ToldChecksum;
use self::listing::{Item, PAGE_KEYS, pages};
use self::trouble::{Failed, LineFault, Trouble};
use super::{
    FOREIGN_NAMES_MAX, Folder, ObjectEntry, ObjectName, Storage, absent, taken, too_long, too_short,
};
use crate::error::{Error, ErrorKind, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::StreamExt;
use object_store::aws::AmazonS3;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, PutPayload,
};
use sha2::{Digest, Sha256};
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use tokio::runtime::Runtime;

/// Threads that do the talking; those that call wait.
const TALKING_THREADS: usize = 2;

/// Nanoseconds of a day.
const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;

/// A storage in a bucket.
pub struct S3Storage {
    runtime: Runtime,
    client: S3Client,
    options: S3Options,
    /// In front of all names: empty, or with a slash at its end.
    base: String,
    findings: Mutex<Findings>,
}

/// How a whole object was read.
enum Whole {
    Bytes(Vec<u8>),
    /// It is larger than allowed: this large.
    TooLong(u64),
}

impl S3Storage {
    /// Opens the bucket for a new repository. Nothing is written.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] if something is there; what the server says.
    pub fn create(options: S3Options) -> Result<S3Storage> {
        let storage = S3Storage::at(options)?;
        let what = format!("cannot create repository {}", storage.location());
        let mut is_empty = true;
        let listed = pages(&storage.client, &storage.base, 1, |items| {
            is_empty &= items.is_empty();
            is_empty
        });
        storage.wait(listed).map_err(|failed| failed.tell(&what))?;
        if !is_empty {
            let text = format!("{what}: there are objects already");
            return Err(Error::new(ErrorKind::AlreadyExists, text));
        }
        Ok(storage)
    }

    /// Opens the bucket of an existing repository.
    ///
    /// # Errors
    /// [`ErrorKind::NoRepository`] if there is no such bucket or it has no config; what the server
    /// says.
    pub fn open(options: S3Options) -> Result<S3Storage> {
        let storage = S3Storage::at(options)?;
        let what = format!("cannot open repository {}", storage.location());
        let prefix = format!("{}{}/", storage.base, Folder::Config);
        let mut is_empty = true;
        let listed = pages(&storage.client, &prefix, 1, |items| {
            is_empty &= items.is_empty();
            is_empty
        });
        match storage.wait(listed) {
            Ok(()) if is_empty => {
                let text = format!("{what}: it has no config");
                Err(Error::new(ErrorKind::NoRepository, text))
            }
            Ok(()) => Ok(storage),
            Err(failed) if failed.trouble.is_no_bucket() => {
                let text = format!("{what}: {}", failed.trouble);
                let error = Error::new(ErrorKind::NoRepository, text);
                Err(error.hint("look at the name of the bucket and at --endpoint"))
            }
            Err(failed) => Err(failed.tell(&what)),
        }
    }

    fn at(options: S3Options) -> Result<S3Storage> {
        options.check()?;
        let prefix = &options.bucket.prefix;
        let base = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let cannot = |cause: std::io::Error| {
            Error::io(ErrorKind::Failed, "cannot start the threads that talk to S3", cause)
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(TALKING_THREADS)
            .thread_name("s3")
            .enable_io()
            .enable_time()
            .build()
            .map_err(cannot)?;
        let client = S3Client::new(&options)?;
        let findings = Mutex::new(Findings::unknown());
        Ok(S3Storage { runtime, client, options, base, findings })
    }

    /// Finds out what the server can do, by a few objects under `tmp/` that are deleted again, and
    /// keeps it in mind.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] for a server that a repository cannot be kept on: one of which a
    /// completed put or delete is not seen by the next call.
    pub fn probe(&self) -> Result<Findings> {
        let what = format!("cannot use {}", self.location());
        let found = self.wait(probe::run(&self.client, &self.base, self.options.lock.is_some()));
        let found = found.map_err(|failed| failed.tell(&what))?;
        self.know(found);
        Ok(found)
    }

    /// What an earlier probe has found.
    pub fn know(&self, findings: Findings) {
        *self.findings.lock().unwrap_or_else(PoisonError::into_inner) = findings;
    }

    fn findings(&self) -> Findings {
        *self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    fn key(&self, name: &ObjectName) -> String {
        format!("{}{name}", self.base)
    }

    /// The size, `None` if there is no such object.
    async fn head(&self, name: &ObjectName) -> Result<Option<u64>, Failed> {
        let key = self.key(name);
        let asked = self.client.persist(async |_| head(&self.client.plain, &key).await);
        asked.await
    }

    async fn read_whole(&self, key: &str, bytes_max: u64, tries: u32) -> Result<Whole, Trouble> {
        let store = &self.client.reading;
        let result = store.get_opts(&path(key)?, GetOptions::default()).await?;
        let size = result.meta.size;
        if size > bytes_max {
            return Ok(Whole::TooLong(size));
        }
        let told = result.extensions.get::<ToldChecksum>().cloned();
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| nonsense("no such size"))?];
        fill(result, &mut bytes).await?;
        // Of an object that was put in parts it is something else.
        if let Some(ToldChecksum(told)) = told.filter(|told| !told.0.contains('-')) {
            let is_same = BASE64_STANDARD.encode(Sha256::digest(&bytes)) == told;
            // Whoever asked authenticates it, and can do more with bytes than without.
            if !is_same && tries < DOUBTS_MAX {
                return Err(Trouble::line(
                    LineFault::Corrupt,
                    "the bytes do not fit their checksum",
                ));
            }
        }
        Ok(Whole::Bytes(bytes))
    }

    /// The last bytes and the whole size; `None` where it has to be done in another way.
    async fn read_tail(&self, key: &str, bytes: u64) -> Result<Option<(Vec<u8>, u64)>, Trouble> {
        let range = Some(GetRange::Suffix(bytes));
        let options = GetOptions { range, ..GetOptions::default() };
        let result = match self.client.plain.get_opts(&path(key)?, options).await {
            Ok(result) => result,
            Err(error) => match Trouble::from(error) {
                // An empty object has no last bytes.
                trouble if trouble.is_out_of_range() || trouble.is_doubtful() => return Ok(None),
                trouble => return Err(trouble),
            },
        };
        let size = result.meta.size;
        let mut tail = vec![0; usize::try_from(bytes.min(size)).unwrap_or(0)];
        fill(result, &mut tail).await?;
        Ok(Some((tail, size)))
    }

    /// Puts once, and looks.
    async fn put(
        &self,
        name: &ObjectName,
        payload: PutPayload,
        tries: u32,
    ) -> Result<bool, Trouble> {
        let key = self.key(name);
        let bytes = payload.content_length() as u64;
        let is_guarded = self.findings().refuses_taken_names;
        if !is_guarded && tries == 1 && head(&self.client.plain, &key).await?.is_some() {
            return Ok(false);
        }
        let mut attributes = Attributes::new();
        let is_large = matches!(name.folder(), Folder::Packs | Folder::Parity);
        if let Some(class) = self.options.storage_class.clone().filter(|_| is_large) {
            attributes.insert(Attribute::StorageClass, class.into());
        }
        let mode = if is_guarded { PutMode::Create } else { PutMode::Overwrite };
        let options = PutOptions { mode, attributes, ..PutOptions::default() };
        let store = match self.options.lock.filter(|_| ObjectLock::covers(name.folder())) {
            Some(lock) => &self.client.with_headers(lock::headers(lock)?)?,
            None => &self.client.plain,
        };
        match store.put_opts(&path(&key)?, payload.clone(), options).await.map_err(Trouble::from) {
            Ok(_) => {}
            // An earlier try of ours may have come through without our hearing of it.
            Err(trouble) if trouble.is_taken() && tries > 1 => {
                return self.is_ours(&key, &payload).await;
            }
            Err(trouble) if trouble.is_taken() => return Ok(false),
            Err(trouble) => return Err(trouble),
        }
        match head(&self.client.plain, &key).await? {
            Some(found) if found == bytes => Ok(true),
            _ => Err(nonsense(
                "the server said that it was stored, but it is not there as it was put",
            )),
        }
    }

    async fn is_ours(&self, key: &str, payload: &PutPayload) -> Result<bool, Trouble> {
        let bytes_max = payload.content_length() as u64;
        match self.read_whole(key, bytes_max, 1).await? {
            Whole::TooLong(_) => Ok(false),
            Whole::Bytes(found) => Ok(payload.iter().flatten().eq(found.iter())),
        }
    }

    /// All objects whose keys begin so.
    async fn items(&self, prefix: &str) -> Result<Vec<Item>, Failed> {
        let mut all = Vec::new();
        pages(&self.client, prefix, PAGE_KEYS, |items| {
            all.extend(items);
            true
        })
        .await?;
        all.sort_by(|one, other| one.key.cmp(&other.key));
        all.dedup_by(|one, other| one.key == other.key);
        Ok(all)
    }

    /// What the keys of a folder's objects begin with.
    fn folder_prefix(&self, folder: Folder) -> String {
        let slash = if folder == Folder::Instance { "" } else { "/" };
        format!("{}{folder}{slash}", self.base)
    }
}

impl Storage for S3Storage {
    fn put_new(&self, name: &ObjectName, data: &[u8]) -> Result<()> {
        let payload = PutPayload::from(bytes::Bytes::copy_from_slice(data));
        let put = self.client.persist(async |tries| self.put(name, payload.clone(), tries).await);
        match self.wait(put) {
            Ok(true) => Ok(()),
            Ok(false) => Err(taken(name)),
            Err(failed) => Err(failed.tell(format_args!("cannot write {name}"))),
        }
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        let key = self.key(name);
        let read = self.client.persist(async |tries| self.read_whole(&key, bytes_max, tries).await);
        match self.wait(read) {
            Ok(Whole::Bytes(bytes)) => Ok(bytes),
            Ok(Whole::TooLong(bytes)) => Err(too_long(name, bytes, bytes_max)),
            Err(failed) => Err(cannot_read(name, &failed)),
        }
    }

    fn get_range(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let bytes = buffer.len();
        let end = offset.checked_add(bytes as u64).filter(|_| bytes > 0);
        let Some(end) = end else {
            return match self.size(name)? {
                None => Err(absent(name)),
                Some(size) if bytes == 0 && size >= offset => Ok(()),
                Some(_) => Err(too_short(name, offset, bytes)),
            };
        };
        let path = path(&self.key(name)).map_err(|trouble| cannot_read(name, &trouble.into()))?;
        let read = self.client.persist(async |_| {
            let range = Some(GetRange::Bounded(offset..end));
            let options = GetOptions { range, ..GetOptions::default() };
            let result = match self.client.plain.get_opts(&path, options).await {
                Ok(result) => result,
                Err(error) => match Trouble::from(error) {
                    trouble if trouble.is_out_of_range() => return Ok(false),
                    trouble => return Err(trouble),
                },
            };
            if result.range.end < end {
                return Ok(false);
            }
            fill(result, buffer).await.map(|()| true)
        });
        match self.wait(read) {
            Ok(true) => Ok(()),
            Ok(false) => Err(too_short(name, offset, bytes)),
            Err(failed) => Err(cannot_read(name, &failed)),
        }
    }

    fn get_tail(&self, name: &ObjectName, bytes: usize) -> Result<(Vec<u8>, u64)> {
        if bytes > 0 && self.findings().suffix_ranges {
            let key = self.key(name);
            let read = self.client.persist(async |_| self.read_tail(&key, bytes as u64).await);
            match self.wait(read) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(failed) => return Err(cannot_read(name, &failed)),
            }
        }
        let size = self.size(name)?.ok_or_else(|| absent(name))?;
        let tail_bytes = size.min(bytes as u64);
        let mut tail = vec![0; usize::try_from(tail_bytes).unwrap_or(0)];
        self.get_range(name, size - tail_bytes, &mut tail)?;
        Ok((tail, size))
    }

    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        let cannot = |failed: Failed| cannot_read(name, &failed);
        self.wait(self.head(name)).map_err(cannot)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectEntry>> {
        let cannot = |failed: Failed| failed.tell(format_args!("cannot list {folder}"));
        let items = self.wait(self.items(&self.folder_prefix(folder))).map_err(cannot)?;
        let entries = items.into_iter().filter_map(|item| {
            let name = ObjectName::parse(item.key.strip_prefix(&self.base)?).ok()?;
            let Item { bytes, stored_unix_ns, .. } = item;
            (name.folder() == folder).then_some(ObjectEntry { name, bytes, stored_unix_ns })
        });
        Ok(entries.collect())
    }

    fn foreign(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for folder in Folder::ALL.into_iter().filter(|folder| *folder != Folder::Instance) {
            let cannot = |failed: Failed| failed.tell(format_args!("cannot list {folder}"));
            let items = self.wait(self.items(&self.folder_prefix(folder))).map_err(cannot)?;
            for item in items {
                let below = item.key.strip_prefix(&self.base).unwrap_or_default();
                // Consoles make empty objects for what they show as folders.
                let is_folder = item.bytes == 0 && below.ends_with('/');
                if !is_folder && ObjectName::parse(below).is_err() {
                    names.push(below.as_bytes().escape_ascii().to_string());
                }
            }
        }
        names.sort();
        names.truncate(FOREIGN_NAMES_MAX);
        Ok(names)
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        let key = self.key(name);
        let deleted = self.client.persist(async |_| {
            match self.client.plain.delete(&path(&key)?).await.map_err(Trouble::from) {
                Err(trouble) if !trouble.is_absent() => Err(trouble),
                _ => Ok(()),
            }
        });
        self.wait(deleted).map_err(|failed| failed.tell(format_args!("cannot delete {name}")))
    }

    fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<()> {
        let size = self.size(from)?.ok_or_else(|| absent(from))?;
        if self.size(to)?.is_some() {
            return Err(taken(to));
        }
        let (source, target) = (self.key(from), self.key(to));
        let copied = self.client.persist(async |_| {
            let store = &self.client.plain;
            store.copy(&path(&source)?, &path(&target)?).await?;
            match head(store, &target).await? {
                Some(found) if found == size => Ok(()),
                _ => Err(nonsense("the server said that it was copied, but it is not there")),
            }
        });
        let what = format!("cannot rename {from} to {to}");
        self.wait(copied).map_err(|failed| match failed.trouble.is_absent() {
            true => absent(from),
            false => failed.tell(what),
        })?;
        self.delete(from)
    }

    fn renew(&self, name: &ObjectName) -> Result<Option<bool>> {
        let Some(lock) = self.options.lock.filter(|_| ObjectLock::covers(name.folder())) else {
            return Ok(None);
        };
        let key = self.key(name);
        let renewed = self.client.persist(async |_| lock::renew(&self.client, &key, lock).await);
        match self.wait(renewed) {
            Ok(renewed) => Ok(Some(renewed)),
            Err(failed) if failed.trouble.is_absent() => Err(absent(name)),
            Err(failed) => Err(failed.tell(format_args!("cannot lock {name}"))),
        }
    }

    fn calls_at_once(&self) -> usize {
        self.options.connections.max(1)
    }

    fn location(&self) -> String {
        format!("s3://{}", self.options.bucket)
    }
}

fn cannot_read(name: &ObjectName, failed: &Failed) -> Error {
    match failed.trouble.is_absent() {
        true => absent(name),
        false => failed.tell(format_args!("cannot read {name}")),
    }
}

fn nonsense(text: &str) -> Trouble {
    Trouble::line(LineFault::Nonsense, text)
}

async fn head(store: &AmazonS3, key: &str) -> Result<Option<u64>, Trouble> {
    match store.head(&path(key)?).await.map_err(Trouble::from) {
        Ok(meta) => Ok(Some(meta.size)),
        Err(trouble) if trouble.is_absent() => Ok(None),
        Err(trouble) => Err(trouble),
    }
}

/// Reads exactly as many bytes as there is room for.
async fn fill(result: GetResult, buffer: &mut [u8]) -> Result<(), Trouble> {
    let mut pieces = result.into_stream();
    let mut filled = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        let end = filled + piece.len();
        let room =
            buffer.get_mut(filled..end).ok_or_else(|| nonsense("more came than asked for"))?;
        room.copy_from_slice(&piece);
        filled = end;
    }
    match filled == buffer.len() {
        true => Ok(()),
        false => Err(Trouble::line(LineFault::Broken, "the answer breaks off")),
    }
}

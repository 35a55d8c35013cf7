//! Dumb named bytes: the floor every repository stands on. It knows names and durability and
//! nothing of keys, packs or points.
//!
//! What every storage guarantees, and `tests/storage_conformance.rs` tests on each of them:
//!
//! - An object is written once and never changed. Its name is taken only by the whole object:
//!   no reader, at no instant and after no crash, sees a part of it.
//! - When [`Storage::put_new`] returns, object and name survive a power cut. When it fails, the
//!   object may be there, whole, or not be there; nobody may refer to it, and a retry takes a
//!   new name.
//! - A completed put or delete is seen by every later call, of this process and of any other.
//! - Listing is not atomic: objects that are put or deleted meanwhile may show or not, all
//!   others do show.
//! - Nothing more is needed: no locks, no clocks, no atomic create. `put_new` refuses a name
//!   that is taken, but the protocols above hold without that, because no two writers put
//!   different bytes under one name.
//!
//! Invariant owned here: an [`ObjectName`] is safe as a path, an S3 key and a terminal line. It
//! has no `..`, no empty or hidden part and no byte beyond lower-case letters, digits, `.`, `-`
//! and the slashes this file puts in itself.

use crate::error::{Error, ErrorKind, Result};
use std::error::Error as _;
use std::fmt;
use std::io;

pub mod far;
pub mod forgiving;
pub mod kept;
pub mod local;
pub mod memory;
pub mod place;
pub mod remembering;
pub mod s3;
pub mod sftp;
pub mod throttle;

/// Longest leaf of an object name, in bytes.
const LEAF_BYTES_MAX: usize = 160;

/// At most so many foreign names are told by [`Storage::foreign`].
const FOREIGN_NAMES_MAX: usize = 100;

/// The only leaf of [`Folder::Instance`], which is an object at the top and no folder.
const INSTANCE: &str = "instance";

/// What marks a point as done: an empty object with the manifest's name and this suffix.
const POINT_DONE_SUFFIX: &str = ".ok";

/// Top folders of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Folder {
    /// Versions, sizes and feature masks, one object per generation.
    Config,
    /// The identity of this copy: the single object `instance`, at the top.
    Instance,
    /// Key slots.
    Keys,
    /// Packs, in subfolders named by the first two digits of the pack id.
    Packs,
    /// Sealed manifests and, with the suffix `.ok`, the marks that they are done.
    Points,
    /// Tags, pins, verdicts and removals.
    Notes,
    /// Chunk ids known to be lost.
    Lost,
    /// Parity of packs, by which they heal.
    Parity,
    /// Reserved: bundles of pack footers.
    Index,
    /// Registrations of running writers, and their heartbeats.
    Leases,
    /// Lists of packs a pruner is about to delete.
    Condemned,
    /// Forgotten manifests that can still be published anew.
    Trash,
    /// Writers that may not read, and whose signatures count.
    Writers,
    /// Damaged objects, kept as evidence under `<folder>-<leaf>.<random>`.
    Aside,
}

impl Folder {
    /// All folders, in the order of the enumeration.
    pub const ALL: [Folder; 14] = [
        Folder::Config,
        Folder::Instance,
        Folder::Keys,
        Folder::Packs,
        Folder::Points,
        Folder::Notes,
        Folder::Lost,
        Folder::Parity,
        Folder::Index,
        Folder::Leases,
        Folder::Condemned,
        Folder::Trash,
        Folder::Writers,
        Folder::Aside,
    ];

    /// The folder's name in the repository.
    pub fn name(self) -> &'static str {
        match self {
            Folder::Config => "config",
            Folder::Instance => INSTANCE,
            Folder::Keys => "keys",
            Folder::Packs => "packs",
            Folder::Points => "points",
            Folder::Notes => "notes",
            Folder::Lost => "lost",
            Folder::Parity => "parity",
            Folder::Index => "index",
            Folder::Leases => "leases",
            Folder::Condemned => "condemned",
            Folder::Trash => "trash",
            Folder::Writers => "writers",
            Folder::Aside => "aside",
        }
    }

    fn from_name(name: &str) -> Option<Folder> {
        Folder::ALL.into_iter().find(|folder| folder.name() == name)
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Full object name inside the repository: `instance`, `packs/3f/3f…`, `points/<64 hex>.ok`,
/// `leases/<32 hex>.7`, `config/00000001-<32 hex>`, `notes/<64 hex>-<32 hex>`.
///
/// Names order as their text does, byte by byte.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName(String);

impl ObjectName {
    /// Makes the name of `leaf` in `folder`.
    ///
    /// A leaf has 1 to 160 bytes out of `0-9 a-f . -` and does not start with a dot. A leaf of
    /// [`Folder::Points`] may end in `.ok`, one of [`Folder::Aside`] may have all of `a-z`. A leaf of [`Folder::Packs`] starts with two hex
    /// digits, which become its subfolder. The leaf of [`Folder::Instance`] is `instance`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if the leaf breaks these rules.
    pub fn new(folder: Folder, leaf: &str) -> Result<ObjectName> {
        if !leaf_fits(folder, leaf) {
            let shown: String = leaf.chars().take(LEAF_BYTES_MAX).collect();
            let message = format!(
                "cannot name an object \"{}\" in {folder}: the name does not fit the grammar",
                shown.escape_default()
            );
            return Err(Error::new(ErrorKind::Usage, message));
        }
        Ok(ObjectName(match folder {
            Folder::Instance => INSTANCE.to_owned(),
            // Two ASCII digits stand at the start: leaf_fits has looked.
            Folder::Packs => format!("{folder}/{}/{leaf}", &leaf[..2]),
            _ => format!("{folder}/{leaf}"),
        }))
    }

    /// Reads a full name, as [`ObjectName::as_str`] gives it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if there is no such folder or the leaf breaks its rules.
    pub fn parse(text: &str) -> Result<ObjectName> {
        let (first, _) = text.split_once('/').unwrap_or((text, ""));
        let (_, leaf) = text.rsplit_once('/').unwrap_or(("", text));
        if let Some(folder) = Folder::from_name(first) {
            let name = ObjectName::new(folder, leaf)?;
            if name.as_str() == text {
                return Ok(name);
            }
        }
        let shown: String = text.chars().take(LEAF_BYTES_MAX).collect();
        let message =
            format!("cannot read the object name \"{}\": no such folder", shown.escape_default());
        Err(Error::new(ErrorKind::Usage, message))
    }

    /// The top folder.
    pub fn folder(&self) -> Folder {
        let (first, _) = self.0.split_once('/').unwrap_or((INSTANCE, ""));
        // Every name was made by `new`, so the folder is always found.
        Folder::from_name(first).unwrap_or(Folder::Instance)
    }

    /// The last part of the name, as it was given to [`ObjectName::new`].
    pub fn leaf(&self) -> &str {
        self.0.rsplit_once('/').map_or(self.as_str(), |(_, leaf)| leaf)
    }

    /// The path of the folder that holds the object, empty for the top of the repository.
    fn parent(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(parent, _)| parent)
    }

    /// The whole name, its parts joined by `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for ObjectName {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn leaf_fits(folder: Folder, leaf: &str) -> bool {
    if folder == Folder::Instance {
        return leaf == INSTANCE;
    }
    let stem = match folder {
        Folder::Points => leaf.strip_suffix(POINT_DONE_SUFFIX).unwrap_or(leaf),
        _ => leaf,
    };
    let bytes = stem.as_bytes();
    (1..=LEAF_BYTES_MAX).contains(&leaf.len())
        && bytes.iter().all(|&byte| {
            is_hex(byte)
                || byte == b'.'
                || byte == b'-'
                || (folder == Folder::Aside && byte.is_ascii_lowercase())
        })
        && bytes.first().is_some_and(|&first| first != b'.')
        && (folder != Folder::Packs || (bytes.len() >= 2 && bytes[..2].iter().all(|&b| is_hex(b))))
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    /// The object's name.
    pub name: ObjectName,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was put by the clock of the storage, nanoseconds since 1970; `None` where the
    /// storage cannot tell. No writer chooses it, and nothing in the protocol depends on it.
    pub stored_unix_ns: Option<i64>,
}

/// Where the objects of one repository are kept. The guarantees stand at the top of this file.
///
/// Each failure of the medium itself is [`ErrorKind::Storage`], or [`ErrorKind::NoSpace`] where
/// a disk or quota is full; only other kinds are named below. All methods may be called from any
/// thread.
pub trait Storage: Send + Sync {
    /// Stores a new object; durable when it returns.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] if the name is taken; the old object is untouched, and
    /// nothing is said about its durability. After any other error the object may exist, whole,
    /// or not: refer to it nowhere and use a new name.
    fn put_new(&self, name: &ObjectName, data: &[u8]) -> Result<()>;

    /// Reads a whole object.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none; [`ErrorKind::Damage`] if it is larger than
    /// `bytes_max`, found before memory is taken for it.
    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>>;

    /// Fills the whole `buffer` with the object's bytes from `offset` on.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such object; [`ErrorKind::Damage`] if it ends
    /// before the range does. `buffer` then holds nothing of use.
    fn get_range(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Reads the last `bytes` bytes, or the whole object if it is shorter, and tells the
    /// object's whole size in bytes.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none.
    fn get_tail(&self, name: &ObjectName, bytes: usize) -> Result<(Vec<u8>, u64)>;

    /// The object's size in bytes, or `None` if there is none.
    ///
    /// # Errors
    /// Only those of the medium.
    fn size(&self, name: &ObjectName) -> Result<Option<u64>>;

    /// All objects of a folder, sorted by name. What fits no name is left out, and so is what is
    /// no plain object (a symbolic link, a directory); a folder that was never written is empty.
    ///
    /// # Errors
    /// Only those of the medium. A folder that cannot be read to its end fails as a whole.
    fn list(&self, folder: Folder) -> Result<Vec<ObjectEntry>>;

    /// What lies in known folders but is no object, for `check` to mention: paths inside the
    /// repository with all unusual bytes escaped, sorted, at most 100 of them.
    ///
    /// # Errors
    /// Only those of the medium.
    fn foreign(&self) -> Result<Vec<String>>;

    /// Removes an object; durable when it returns. An object that does not exist is no error.
    ///
    /// # Errors
    /// Only those of the medium; the object may then exist or not.
    fn delete(&self, name: &ObjectName) -> Result<()>;

    /// Gives an object another name, in another folder as a rule; durable when it returns. A
    /// storage that cannot do so at once copies first and deletes then. Who has the object open
    /// may go on reading it under the old name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such object, [`ErrorKind::AlreadyExists`] if the
    /// new name is taken; both are untouched then. After any other error the object has the old
    /// name, the new one, or both.
    fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<()>;

    /// Prolongs the lock that keeps an object from being deleted. True if it was prolonged, false if
    /// that was done of late; `None` where such objects are not locked.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such object.
    fn renew(&self, _name: &ObjectName) -> Result<Option<bool>> {
        Ok(None)
    }

    /// Free bytes, if the storage can tell; an estimate, because others write as well.
    ///
    /// # Errors
    /// None so far: a storage that cannot tell says so.
    fn room(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// How many calls at once are of use: more where each waits for a line, few where a disk
    /// does the work. At least 1.
    fn calls_at_once(&self) -> usize {
        2
    }

    /// Where this storage is, for messages: a path or an address.
    fn location(&self) -> String;

    /// Where it is, the same for all ways of naming it as far as that can be told.
    fn identity(&self) -> String {
        self.location()
    }
}

/// The error for an object that does not exist.
fn absent(name: &ObjectName) -> Error {
    Error::new(ErrorKind::NotFound, format!("cannot read {name}: no such object"))
}

/// The error for a name that is taken.
fn taken(name: &ObjectName) -> Error {
    Error::new(ErrorKind::AlreadyExists, format!("cannot write {name}: it exists already"))
}

/// The error for an object larger than the caller can accept.
fn too_long(name: &ObjectName, bytes: u64, bytes_max: u64) -> Error {
    let message =
        format!("cannot read {name}: it has {bytes} bytes, more than the {bytes_max} allowed");
    Error::new(ErrorKind::Damage, message)
}

/// The error for an object that ends before `offset + bytes`.
fn too_short(name: &ObjectName, offset: u64, bytes: usize) -> Error {
    let end = u128::from(offset) + bytes as u128;
    Error::new(ErrorKind::Damage, format!("cannot read {name}: it is shorter than {end} bytes"))
}

/// True for what this user may not do.
fn is_refused(error: &Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_know_their_parts() {
        let id = "3f".repeat(32);
        let pack = ObjectName::new(Folder::Packs, &id).unwrap();
        assert_eq!(pack.as_str(), format!("packs/3f/{id}"));
        assert_eq!((pack.folder(), pack.leaf()), (Folder::Packs, id.as_str()));
        assert_eq!(pack.parent(), "packs/3f");

        let instance = ObjectName::new(Folder::Instance, "instance").unwrap();
        assert_eq!((instance.as_str(), instance.leaf()), ("instance", "instance"));
        assert_eq!((instance.folder(), instance.parent()), (Folder::Instance, ""));
    }

    #[test]
    fn parse_is_the_inverse_of_as_str() {
        for (folder, leaf) in [
            (Folder::Config, "00000001-ab"),
            (Folder::Instance, "instance"),
            (Folder::Packs, "0a1b"),
            (Folder::Points, "77.ok"),
            (Folder::Leases, "12.7"),
            (Folder::Aside, "packs-0a1b.00000001"),
        ] {
            let name = ObjectName::new(folder, leaf).unwrap();
            assert_eq!(ObjectName::parse(name.as_str()).unwrap(), name);
        }
        for text in ["", "packs/0a1b", "packs/0b/0a1b", "keys//1", "keys/1/2", "other/1", "/keys/1"]
        {
            assert!(ObjectName::parse(text).is_err(), "{text}");
        }
    }
}

//! The file systems of a disk, and the one way to read any of them.

use super::extended::Extended;
use super::fat::{Fat, FatEntry};
use super::ntfs::Ntfs;
use super::probe::{Found, probe};
use super::window::Window;
use super::{Facts, Kind, Name};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{RandomAccess, partition_table};
use std::sync::Arc;

/// Entries of a directory that are taken, about 600 MiB of memory: no tool makes more.
pub const ENTRIES_MAX: usize = 4 << 20;
/// What is read of a file at once.
pub const READ_BYTES: usize = 256 << 10;

/// A partition, or a disk without partitions.
#[derive(Clone, Debug)]
pub struct Place {
    /// As Linux numbers partitions; none for the whole disk.
    pub number: Option<u32>,
    /// Its first byte on the disk.
    pub start: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// The type that the partition table has; empty for the whole disk.
    pub partition_type: String,
    /// The name that the partition table has; empty without one.
    pub partition_name: String,
    /// What is in it, such as `ext4` or `swap`; none if that is not known.
    pub file_system: Option<&'static str>,
    /// Its label; empty without one.
    pub label: Name,
    is_readable: bool,
}

/// What is on a disk.
pub struct DiskContent {
    disk: Arc<dyn RandomAccess + Send + Sync>,
    name: String,
    /// `gpt`, `mbr` or `none`.
    pub table: &'static str,
    /// In the order of the table.
    pub places: Vec<Place>,
}

impl DiskContent {
    /// Looks at a disk, which is called `name` in messages.
    ///
    /// # Errors
    /// What reading the disk says.
    pub fn open(disk: Arc<dyn RandomAccess + Send + Sync>, name: &str) -> Result<DiskContent> {
        let table = partition_table(disk.as_ref())?;
        let mut places = Vec::new();
        for partition in table.partitions {
            let mut place = Place::new(&disk, partition.start, partition.bytes)?;
            place.number = Some(partition.number);
            place.partition_type = partition.kind;
            place.partition_name = partition.name;
            places.push(place);
        }
        let mut kind = table.kind;
        if places.iter().all(|place| !place.is_readable) {
            let whole = Place::new(&disk, 0, disk.size())?;
            // A table may be left over, or boot code look like one.
            if whole.is_readable || places.is_empty() {
                (kind, places) = ("none", vec![whole]);
            }
        }
        let name = name.escape_debug().to_string();
        Ok(DiskContent { disk, name, table: kind, places })
    }

    /// The place that is meant: partition `number`, or without one the only file system.
    ///
    /// # Errors
    /// `NotFound` or `Usage`, with what there is.
    pub fn choose(&self, number: Option<u32>) -> Result<&Place> {
        let name = &self.name;
        if let Some(number) = number {
            return self.places.iter().find(|place| place.number == Some(number)).ok_or_else(
                || {
                    let text =
                        format!("cannot find partition {number} of {name}: it has {}", self.list());
                    Error::new(ErrorKind::NotFound, text)
                },
            );
        }
        let mut readable = self.places.iter().filter(|place| place.is_readable);
        match (readable.next(), readable.next(), &self.places[..]) {
            (Some(place), None, _) => Ok(place),
            // Opening it says what is wrong with it.
            (None, _, [place]) => Ok(place),
            (None, ..) => {
                let text = format!("cannot find a file system on {name}: it has {}", self.list());
                Err(Error::new(ErrorKind::NotFound, text))
            }
            (Some(_), Some(_), _) => {
                let text = format!("cannot choose a file system of {name}: it has {}", self.list());
                let error = Error::new(ErrorKind::Usage, text);
                Err(error.hint("name one as POINT/DISK:PARTITION, or with --partition"))
            }
        }
    }

    fn list(&self) -> String {
        if self.places.iter().all(|place| place.number.is_none()) {
            return "no partitions".to_string();
        }
        let of_place = |place: &Place| {
            let number = place.number.unwrap_or_default();
            format!("{number} ({})", place.file_system.unwrap_or("unknown"))
        };
        let all: Vec<String> = self.places.iter().map(of_place).collect();
        format!("partitions {}", all.join(", "))
    }

    /// Opens the file system of a place.
    ///
    /// # Errors
    /// `Damage`; `Failed` if it is none that can be read.
    pub fn volume(&self, place: &Place) -> Result<Volume> {
        let name = match place.number {
            Some(number) => format!("partition {number} of {}", self.name),
            None => self.name.clone(),
        };
        let window = Window::new(self.disk.clone(), place.start, place.bytes);
        let opened = match place.file_system {
            Some("ext2" | "ext3" | "ext4") => Extended::open(window).map(Inner::Extended),
            Some("fat12" | "fat16" | "fat32") => Fat::open(window).map(Inner::Fat),
            Some("ntfs") => Ntfs::open(window).map(Inner::Ntfs),
            other => {
                let what = other.unwrap_or("no file system that is known");
                let text = format!("cannot read files of {name}: it has {what}");
                let error = Error::new(ErrorKind::Failed, text);
                return Err(error.hint("ext2, ext3, ext4, FAT and NTFS can be read"));
            }
        };
        let inner = opened.map_err(|error| {
            let text = format!("cannot read {name}: {}", error.full_text());
            Error::new(error.kind(), text)
        })?;
        Ok(Volume { inner, name })
    }
}

impl Place {
    fn new(disk: &Arc<dyn RandomAccess + Send + Sync>, start: u64, bytes: u64) -> Result<Place> {
        let window = Window::new(disk.clone(), start, bytes);
        let bytes = window.size();
        let Found { name, is_readable } = probe(&window)?;
        let mut place = Place {
            number: None,
            start,
            bytes,
            partition_type: String::new(),
            partition_name: String::new(),
            file_system: name,
            label: Name(Vec::new()),
            is_readable,
        };
        // What cannot be opened keeps the name that it was found by.
        match name {
            Some("ext4") => {
                if let Ok(volume) = Extended::open(window) {
                    (place.file_system, place.label) = (Some(volume.kind()), volume.label());
                }
            }
            Some("fat32") => {
                if let Ok(volume) = Fat::open(window) {
                    (place.file_system, place.label) = (Some(volume.kind()), volume.label());
                }
            }
            Some("ntfs") => {
                if let Ok(volume) = Ntfs::open(window) {
                    place.label = volume.label();
                }
            }
            _ => {}
        }
        Ok(place)
    }
}

/// How a file system finds a file again.
#[derive(Clone)]
pub enum Handle<'v> {
    /// By its path.
    Extended(Vec<u8>),
    /// By its entry in a directory; `None` is the root.
    Fat(Option<FatEntry<'v>>),
    /// By the number of its record.
    Ntfs(u64),
}

/// An entry of a directory.
#[derive(Clone)]
pub struct Entry<'v> {
    /// Its name; empty for the root.
    pub name: Name,
    /// What the file system says about it.
    pub facts: Facts,
    /// Why not more is known about it.
    pub trouble: Option<String>,
    pub(super) handle: Handle<'v>,
}

/// What is in a directory, as far as it could be read.
pub struct Listing<'v> {
    /// Without `.` and `..`, in the order of the directory.
    pub entries: Vec<Entry<'v>>,
    /// What is the same for no other directory, where there is such a number.
    pub identity: Option<u64>,
    /// Why there may be more.
    pub trouble: Option<Error>,
}

enum Inner {
    Extended(Extended),
    Fat(Fat),
    Ntfs(Ntfs),
}

/// A file system.
pub struct Volume {
    inner: Inner,
    name: String,
}

impl Volume {
    /// What messages call it, such as `partition 2 of sda`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True where `A` and `a` are one name.
    pub fn ignores_case(&self) -> bool {
        !matches!(self.inner, Inner::Extended(_))
    }

    /// True for NTFS, whose links have drives and backslashes in them.
    pub fn has_drives(&self) -> bool {
        matches!(self.inner, Inner::Ntfs(_))
    }

    /// More folders than there can be, where each has no number to know it by.
    pub(super) fn folders_max(&self) -> u64 {
        match &self.inner {
            Inner::Extended(volume) => volume.folders_max(),
            Inner::Fat(_) | Inner::Ntfs(_) => u64::MAX,
        }
    }

    /// The root directory.
    ///
    /// # Errors
    /// `Damage`.
    pub fn root(&self) -> Result<Entry<'_>> {
        match &self.inner {
            Inner::Extended(volume) => volume.root(),
            Inner::Fat(volume) => Ok(volume.root()),
            Inner::Ntfs(volume) => volume.root(),
        }
    }

    /// What is in a folder that messages call `path`.
    pub fn list<'v>(&'v self, folder: &Entry<'v>, path: &Name) -> Listing<'v> {
        let what = || format!("list {path}");
        match (&self.inner, &folder.handle) {
            (Inner::Extended(volume), Handle::Extended(at)) => volume.list(at, &what),
            (Inner::Fat(volume), Handle::Fat(entry)) => volume.list(entry.as_ref(), &what),
            (Inner::Ntfs(volume), Handle::Ntfs(record)) => volume.list(*record, &what),
            _ => {
                let trouble = Some(foreign(&what()));
                Listing { entries: Vec::new(), identity: None, trouble }
            }
        }
    }

    /// Where a link points to.
    ///
    /// # Errors
    /// `Damage`, or `Usage` for what is no link.
    pub fn target(&self, link: &Entry<'_>, path: &Name) -> Result<Name> {
        let what = || format!("read the link {path}");
        match (&self.inner, &link.handle) {
            _ if link.facts.kind != Kind::Link => {
                Err(Error::new(ErrorKind::Usage, format!("cannot {}: it is none", what())))
            }
            (Inner::Extended(volume), Handle::Extended(at)) => volume.target(at, &what),
            (Inner::Ntfs(volume), Handle::Ntfs(record)) => volume.target(*record, &what),
            _ => Err(foreign(&what())),
        }
    }

    /// Calls `each` with the content of a file, in order and without gaps; gives the number of
    /// further streams that the file has, which are left out.
    ///
    /// # Errors
    /// `Damage`; `Failed` for what cannot be read by this program; or what `each` says.
    pub fn read(
        &self,
        file: &Entry<'_>,
        path: &Name,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<u64> {
        let what = || format!("read {path}");
        if let Some(trouble) = &file.trouble {
            return Err(Error::new(ErrorKind::Damage, format!("cannot {}: {trouble}", what())));
        }
        match (&self.inner, &file.handle) {
            _ if file.facts.kind != Kind::File => {
                Err(Error::new(ErrorKind::Usage, format!("cannot {}: it is no file", what())))
            }
            (Inner::Extended(volume), Handle::Extended(at)) => {
                volume.read(at, &what, each).map(|()| 0)
            }
            (Inner::Fat(volume), Handle::Fat(Some(entry))) => {
                volume.read(entry, &what, each).map(|()| 0)
            }
            (Inner::Ntfs(volume), Handle::Ntfs(record)) => volume.read(*record, &what, each),
            _ => Err(foreign(&what())),
        }
    }
}

fn foreign(what: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("cannot {what}: it is of another file system"))
}

//! Raw disk files on file systems that share blocks: a clone freezes the disk, and what differs from the
//! clone of the last backup is what has changed.
//!
//! While a clone exists, a write to a block that it shares goes to another place, and the old place is
//! not used again; so what is at the same place in both is the same. A list of places alone, without the
//! clone, says nothing: a block that is not shared is overwritten where it is.
//!
//! Invariants: two clones are compared and never the file that is written to; what is not known to be in
//! the same place counts as changed; only files that are named after points are removed.

use super::machine::{Frozen, FrozenDisk, Marks, Since, Told};
use crate::error::{Error, ErrorKind, Result};
use fiemap::{Fiemap, FiemapExtent, FiemapExtentFlags};
use rustix::fs::ioctl_ficlone;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What the names of clones end with, behind the mark.
const END: &str = ".clone";

/// Places that are none: not written yet, part of other blocks, compressed or encrypted.
const VAGUE: FiemapExtentFlags = FiemapExtentFlags::UNKNOWN
    .union(FiemapExtentFlags::DELALLOC)
    .union(FiemapExtentFlags::ENCODED)
    .union(FiemapExtentFlags::DATA_ENCRYPTED)
    .union(FiemapExtentFlags::NOT_ALIGNED)
    .union(FiemapExtentFlags::DATA_INLINE)
    .union(FiemapExtentFlags::DATA_TAIL);

/// A clone of a disk, as long as it is read.
pub struct FrozenClone {
    disk: Vec<FrozenDisk>,
    clone: PathBuf,
    /// Locked as long as this process lives, so that no other removes it.
    _file: File,
    older: Vec<PathBuf>,
    is_open: bool,
}

/// Clones a raw file into a folder on its file system, beside the clone of the last backup.
///
/// # Errors
/// `Source` if the file system shares no blocks, or the folder is on another one.
pub fn freeze(path: &Path, name: &str, folder: &Path, marks: &dyn Marks) -> Result<FrozenClone> {
    let (mut older, mut newest) = (Vec::new(), None);
    let cannot_list = |cause| {
        let text = format!("cannot list the folder of clones {}", folder.display());
        Error::io(ErrorKind::Source, text, cause)
    };
    for entry in folder.read_dir().map_err(cannot_list)? {
        let file = entry.map_err(cannot_list)?.file_name();
        let Some(mark) = file.to_str().and_then(|file| file.strip_suffix(END)) else { continue };
        if !marks.is_ours(name, mark) {
            continue;
        }
        older.push(folder.join(&file));
        newest = newest.max(marks.rank(name, mark).map(|rank| (rank, mark.to_string())));
    }
    let clone = folder.join(format!("{}{END}", marks.begin(name)));
    let file = make(path, &clone).map_err(|cause| {
        let text = format!("cannot clone disk {} to {}", path.display(), clone.display());
        let has_none = matches!(
            cause.kind(),
            io::ErrorKind::Unsupported
                | io::ErrorKind::CrossesDevices
                | io::ErrorKind::InvalidInput
        );
        let error = Error::io(ErrorKind::Source, text, cause);
        match has_none {
            true => error.hint("clones need a folder on the same XFS or btrfs"),
            false => error,
        }
    })?;
    let since = newest.map(|(_, mark)| {
        let told = Told::Clone(folder.join(format!("{mark}{END}")));
        Since { mark, told }
    });
    let disk = FrozenDisk {
        name: name.to_string(),
        address: clone.to_string_lossy().into_owned(),
        since,
        keeps_bitmaps: true,
    };
    Ok(FrozenClone { disk: vec![disk], clone, _file: file, older, is_open: true })
}

/// Makes a clone that only its owner may read, and puts it on stable storage: places are known then.
fn make(path: &Path, clone: &Path) -> io::Result<File> {
    let source = File::open(path)?;
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o400).open(clone)?;
    let made = (|| {
        file.try_lock()?;
        ioctl_ficlone(&file, &source)?;
        file.sync_all()
    })();
    if let Err(cause) = made {
        let _ = std::fs::remove_file(clone);
        return Err(cause);
    }
    Ok(file)
}

/// What may be another in the clone `new` than in the clone `old`: ascending, disjoint, in bytes.
///
/// # Errors
/// `Source` if the places of one cannot be read.
pub fn differences(old: &Path, new: &Path) -> Result<Vec<Range<u64>>> {
    let failed = |path: &Path, cause| {
        let text = format!("cannot read where the blocks of {} are", path.display());
        Error::io(ErrorKind::Source, text, cause)
    };
    let mut before = Places::open(old).map_err(|cause| failed(old, cause))?;
    let mut after = Places::open(new).map_err(|cause| failed(new, cause))?;
    let size = before.size.max(after.size);
    let shared = before.size.min(after.size);
    let mut changed: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < shared {
        let (was, was_to) = before.at(at).map_err(|cause| failed(old, cause))?;
        let (is, is_to) = after.at(at).map_err(|cause| failed(new, cause))?;
        let end = was_to.min(is_to).min(shared);
        if was != is || was == Place::Vague {
            add(&mut changed, at..end);
        }
        at = end;
    }
    add(&mut changed, shared..size);
    Ok(changed)
}

fn add(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut().filter(|last| last.end == range.start) {
        Some(last) => last.end = range.end,
        None if range.is_empty() => {}
        None => ranges.push(range),
    }
}

/// Where a byte of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nowhere: it reads as zero.
    Hole,
    /// In a block that was reserved: it reads as zero.
    Unwritten,
    /// At this byte of the file system.
    There(u64),
    /// Not said.
    Vague,
}

/// The extents of a file, which are asked for in ascending order.
struct Places {
    extents: Fiemap<File>,
    current: Option<FiemapExtent>,
    size: u64,
}

impl Places {
    fn open(path: &Path) -> io::Result<Places> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut extents = Fiemap::new(file);
        let current = extents.next().transpose()?;
        Ok(Places { extents, current, size })
    }

    /// Where the byte at `at` is, and up to which byte the answer holds.
    fn at(&mut self, at: u64) -> io::Result<(Place, u64)> {
        while let Some(extent) = &self.current {
            let end = extent.fe_logical.saturating_add(extent.fe_length);
            if at < extent.fe_logical {
                return Ok((Place::Hole, extent.fe_logical));
            }
            if at < end {
                let flags = extent.fe_flags;
                let place = if flags.intersects(VAGUE) {
                    Place::Vague
                } else if flags.contains(FiemapExtentFlags::UNWRITTEN) {
                    Place::Unwritten
                } else {
                    Place::There(extent.fe_physical + (at - extent.fe_logical))
                };
                return Ok((place, end));
            }
            self.current = self.extents.next().transpose()?;
        }
        Ok((Place::Hole, u64::MAX))
    }
}

impl Frozen for FrozenClone {
    fn disks(&self) -> &[FrozenDisk] {
        &self.disk
    }

    fn keep(&mut self) -> Result<()> {
        self.is_open = false;
        for path in std::mem::take(&mut self.older) {
            // One that another backup reads right now is its affair.
            if File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        self.is_open = false;
        remove(&self.clone)
    }
}

fn remove(path: &Path) -> Result<()> {
    let text = format!("cannot remove the clone {}", path.display());
    std::fs::remove_file(path).map_err(|cause| Error::io(ErrorKind::Source, text, cause))
}

impl Drop for FrozenClone {
    fn drop(&mut self) {
        if self.is_open {
            // Its caller has failed, and says why.
            let _ = self.release();
        }
    }
}

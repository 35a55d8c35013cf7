//! Making the second disk of the first, in place.
//!
//! Invariants: all of the file is verified before the first write; a disk that is neither the first nor
//! one that this was begun on, as a journal says, is not written to; an interrupted run is gone on
//! with.

use super::reader::{DeltaReader, read_head};
use crate::certify::digest_of;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::secrets::Passphrase;
use crate::restore::remembered::store_durably;
use crate::source::{ImageFormat, ImageOptions, open_image};
use crate::target::{DiskTarget, Layout, ReuseTarget, Reused};
use diskvault_format::delta::Description;
use diskvault_format::id::to_hex;
use rayon::ThreadPool;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The disk was the second one already.
    AlreadyThere,
    /// It is now.
    Done {
        /// True if a run before this one had begun.
        was_begun: bool,
        /// Bytes of changes that were written.
        written_bytes: u64,
    },
}

/// How a delta is applied.
pub struct Apply<'a> {
    /// The delta.
    pub file: &'a Path,
    /// What it was sealed with.
    pub passphrase: Option<&'a Passphrase>,
    /// The first disk, a raw file or a device.
    pub base: &'a Path,
    /// Whether a base may be written to that is in use.
    pub force: bool,
    /// Where it is remembered that a base is being written to, so that an interrupted run can be
    /// gone on with.
    pub journal: &'a Path,
    /// Reads and hashes.
    pub pool: &'a ThreadPool,
    /// Hears of progress.
    pub monitor: &'a dyn Monitor,
}

/// True if a delta is sealed.
///
/// # Errors
/// `Source` if it cannot be read; `Damage` if it is none.
pub fn is_sealed(file: &Path) -> Result<bool> {
    read_head(file).map(|(head, _)| head.cost.is_some())
}

/// What the base is.
enum Base {
    Old,
    New,
    Neither,
}

impl Apply<'_> {
    /// Verifies the delta and the base, writes what differs, and verifies the result.
    ///
    /// # Errors
    /// `Damage` for a delta that is damaged, a base that is not its first disk, and a result that is
    /// not its second; `WrongKey`; `Target` for a base that cannot be written.
    pub fn run(&self) -> Result<(Description, Applied)> {
        let mut reader = DeltaReader::open(self.file, self.passphrase)?;
        let description = reader.description().clone();
        let size = description.new_bytes;
        let options =
            ReuseTarget { size, layout: Layout::Raw, force: self.force, read_only: false };
        let target = Reused::open(self.base, options)?;
        // Looked at while no other run can write to it.
        let base = self.examine(&description)?;
        let journal = Journal::of(self.journal, self.base, &target, &description)?;
        if matches!(base, Base::New) {
            journal.remove();
            return Ok((description, Applied::AlreadyThere));
        }
        let is_begun = matches!(base, Base::Neither);
        // Only a run that had verified all of the disk has left this behind.
        if is_begun && !journal.is_there() {
            return Err(self.refuse(&description));
        }
        // All of the file is good before the first write.
        while reader.next()?.is_some() {
            self.monitor.check_cancelled()?;
        }
        journal.write()?;
        let written_bytes = self.write(&target)?;
        target.sync()?;
        match self.examine(&description)? {
            Base::New => {
                journal.remove();
                Ok((description, Applied::Done { was_begun: is_begun, written_bytes }))
            }
            _ => {
                let base = self.base.display();
                let text = format!("cannot trust {base}: it is not the disk after the delta");
                Err(Error::new(ErrorKind::Damage, text))
            }
        }
    }

    fn refuse(&self, description: &Description) -> Error {
        let (base, file) = (self.base.display(), self.file.display());
        let (disk, point) = (&description.disk, &description.old_point);
        let text = format!(
            "cannot apply {file} to {base}: it is not {} of point {}",
            disk.escape_debug(),
            point.escape_debug()
        );
        Error::new(ErrorKind::Damage, text)
    }

    fn examine(&self, description: &Description) -> Result<Base> {
        let options = ImageOptions { format: Some(ImageFormat::Raw), ..ImageOptions::default() };
        let source = open_image(self.base, &options, self.monitor)?;
        let is_device = source.format() == "block-device";
        let Description { old_bytes, new_bytes, .. } = *description;
        let fits = |bytes: u64| source.size() == bytes || (is_device && source.size() >= bytes);
        let digest = |bytes: u64| -> Result<Vec<u8>> {
            self.monitor.start(&format!("verifying {}", self.base.display()), Some(bytes));
            let digest = digest_of(source.as_ref(), bytes, None, self.pool, self.monitor)?;
            self.monitor.finish();
            Ok(digest)
        };
        // Of a device the first disk may be the beginning of the second, or end behind it.
        if fits(new_bytes) {
            let found = digest(new_bytes)?;
            if found == description.new_digest {
                return Ok(Base::New);
            }
            if old_bytes == new_bytes {
                let is_old = found == description.old_digest;
                return Ok(if is_old { Base::Old } else { Base::Neither });
            }
        }
        if fits(old_bytes) && digest(old_bytes)? == description.old_digest {
            return Ok(Base::Old);
        }
        Ok(Base::Neither)
    }

    fn write(&self, target: &Reused) -> Result<u64> {
        // Opened again: all of it was verified, and it is read from the start.
        let mut reader = DeltaReader::open(self.file, self.passphrase)?;
        self.monitor.start("applying", None);
        // What is cut off belongs to the first disk, which a run that was interrupted would need.
        let grows = target.bytes_there() < reader.description().new_bytes;
        if grows {
            target.prepare()?;
        }
        let Description { old_bytes, new_bytes, .. } = *reader.description();
        if target.is_device() && old_bytes < new_bytes {
            target.make_hole(old_bytes, new_bytes - old_bytes)?;
        }
        let mut written = 0;
        while let Some(changes) = reader.next()? {
            self.monitor.check_cancelled()?;
            for change in changes {
                match &change.data {
                    Some(data) => target.write_at(change.offset, data)?,
                    None => target.make_hole(change.offset, u64::from(change.bytes))?,
                }
                written += u64::from(change.bytes);
                self.monitor.advance(u64::from(change.bytes));
            }
        }
        target.sync()?;
        if !grows {
            target.prepare()?;
        }
        self.monitor.finish();
        Ok(written)
    }
}

/// Says of a base that it was the first disk when a delta began to be applied to it.
struct Journal {
    file: PathBuf,
    text: String,
}

impl Journal {
    fn of(
        folder: &Path,
        base: &Path,
        target: &Reused,
        description: &Description,
    ) -> Result<Journal> {
        let cannot = |cause| {
            Error::io(ErrorKind::Failed, format!("cannot examine {}", base.display()), cause)
        };
        let metadata = target.file().metadata().map_err(cannot)?;
        let path = std::path::absolute(base).map_err(cannot)?;
        let name = blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex();
        // Another file under that name was not begun on.
        let (old, new) = (&description.old_digest, &description.new_digest);
        let identity = [metadata.dev(), metadata.ino(), metadata.rdev()];
        let text = format!("{identity:?} {} {}\n", to_hex(old), to_hex(new));
        Ok(Journal { file: folder.join(format!("{}.begun", &name[..32])), text })
    }

    fn is_there(&self) -> bool {
        std::fs::read_to_string(&self.file).is_ok_and(|found| found == self.text)
    }

    fn write(&self) -> Result<()> {
        if self.is_there() {
            return Ok(());
        }
        store_durably(&self.file, self.text.as_bytes()).map_err(|cause| {
            let text = format!("cannot write {}", self.file.display());
            Error::io(ErrorKind::Failed, text, cause)
        })
    }

    /// What stays behind only costs its room: the base is the second disk then.
    fn remove(&self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

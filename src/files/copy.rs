//! Files and folders of a disk onto this system.
//!
//! Invariant: what is wrong with one file does not keep the others from being copied; what has no
//! place left does.

use super::folder::{Attributes, Target};
use super::tree::{At, Go, Resolved, Step, walk};
use super::volume::{Entry, Volume};
use super::{Facts, Kind, Name};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How files are copied.
#[derive(Clone, Copy, Debug, Default)]
pub struct CopyOptions {
    /// Files that are there are overwritten.
    pub overwrites: bool,
    /// Owners and set-id bits are taken over.
    pub keeps_owners: bool,
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct CopyReport {
    /// Files that were copied.
    pub files: u64,
    /// Folders that were copied, or were there.
    pub folders: u64,
    /// Links that were made.
    pub links: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Devices, pipes and sockets, which are not made.
    pub skipped: u64,
    /// Further streams of files (of NTFS), which have no place here.
    pub left_out_streams: u64,
    /// Everything that could not be copied, or not in whole.
    pub failed: u64,
    /// The worst that went wrong.
    pub(super) worst: Option<ErrorKind>,
}

impl CopyReport {
    /// Tells of a failure; the work goes on, unless it makes no sense to.
    pub(super) fn fail(&mut self, error: Error, monitor: &dyn Monitor) -> Result<()> {
        if matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Cancelled) {
            return Err(error);
        }
        let hint = error.hint_text().map(|hint| format!(" ({hint})")).unwrap_or_default();
        monitor.warn(&format!("{}{hint}", error.full_text()));
        self.failed += 1;
        if self.worst != Some(ErrorKind::Damage) {
            self.worst = Some(error.kind());
        }
        Ok(())
    }

    /// Warns of what was left out; an error if something failed.
    ///
    /// # Errors
    /// The kind of the worst that went wrong.
    pub fn result(&self, monitor: &dyn Monitor) -> Result<()> {
        if self.skipped > 0 {
            monitor.warn(&format!("{} devices, pipes or sockets were left out", self.skipped));
        }
        if self.left_out_streams > 0 {
            monitor
                .note(&format!("{} alternate data streams were left out", self.left_out_streams));
        }
        match self.worst {
            None => Ok(()),
            Some(kind) => {
                let count = self.failed;
                let files = if count == 1 { "file or folder" } else { "files or folders" };
                Err(Error::new(kind, format!("cannot copy everything: {count} {files} failed")))
            }
        }
    }
}

/// Copies a file or folder to `target`: into a folder that is there, or under that name.
///
/// # Errors
/// `Target` if there is no such folder, `NoSpace`, `Cancelled`. What else goes wrong is told to the
/// monitor and is in the report.
pub fn copy_out(
    volume: &Volume,
    start: &Resolved<'_>,
    target: &Path,
    options: CopyOptions,
    monitor: &dyn Monitor,
) -> Result<CopyReport> {
    let (folder, base) = place(start, target)?;
    let target = Target::open(&folder, options.overwrites)?;
    let mut work = Copy { volume, target, base, options, monitor, report: CopyReport::default() };
    monitor.start("copying files", None);
    walk(volume, start, &mut |at, step| {
        monitor.check_cancelled()?;
        work.step(&at, step)
    })?;
    work.target.finish()?;
    monitor.finish();
    Ok(work.report)
}

/// The folder that takes everything, and the name of the start in it; none if the folder itself
/// stands for it.
fn place(start: &Resolved<'_>, target: &Path) -> Result<(PathBuf, Option<Name>)> {
    if target.is_dir() {
        let name = Some(start.entry.name.clone()).filter(|name| !name.0.is_empty());
        return Ok((target.to_owned(), name));
    }
    let Some(name) = target.file_name() else {
        let text = format!("cannot copy to {}: it is no folder", target.display());
        return Err(Error::new(ErrorKind::Target, text));
    };
    let above = target.parent().filter(|above| !above.as_os_str().is_empty());
    let above = above.unwrap_or(Path::new(".")).to_owned();
    Ok((above, Some(Name(name.as_bytes().to_vec()))))
}

struct Copy<'c> {
    volume: &'c Volume,
    target: Target,
    base: Option<Name>,
    options: CopyOptions,
    monitor: &'c dyn Monitor,
    report: CopyReport,
}

impl Copy<'_> {
    fn step(&mut self, at: &At<'_>, step: Step<'_, '_>) -> Result<Go> {
        let done = match step {
            Step::Entry(entry) => self.entry(at, entry),
            Step::Leave(entry) => self.leave(at, entry),
            Step::Trouble(error) => Err(error),
        };
        match done {
            Ok(()) => Ok(Go::In),
            Err(error) => self.report.fail(error, self.monitor).map(|()| Go::Past),
        }
    }

    /// The names of an entry below the target folder.
    fn names(&self, at: &At<'_>) -> Vec<Name> {
        self.base.iter().chain(at.names).cloned().collect()
    }

    fn attributes(&self, facts: &Facts) -> Attributes {
        let keeps = self.options.keeps_owners;
        Attributes {
            mode: facts.owner.map(|owner| owner.mode & if keeps { 0o7777 } else { 0o777 }),
            ids: facts.owner.filter(|_| keeps).map(|owner| owner.ids),
            modified: facts.modified,
        }
    }

    fn entry(&mut self, at: &At<'_>, entry: &Entry<'_>) -> Result<()> {
        let names = self.names(at);
        let attributes = self.attributes(&entry.facts);
        let Some((name, above)) = names.split_last() else {
            self.report.folders += 1;
            return Ok(());
        };
        let folder = self.target.folder(above)?;
        match entry.facts.kind {
            Kind::Folder => {
                folder.make_folder(name)?;
                self.report.folders += 1;
            }
            Kind::Link => {
                let target = self.volume.target(entry, at.path)?;
                folder.make_link(name, &target, &attributes)?;
                self.report.links += 1;
            }
            Kind::Special(_) => self.report.skipped += 1,
            Kind::File => {
                let mut file = folder.new_file(name)?;
                let monitor = self.monitor;
                let streams = self.volume.read(entry, at.path, &mut |data| {
                    monitor.check_cancelled()?;
                    monitor.advance(data.len() as u64);
                    file.write(data)
                })?;
                file.finish(&attributes)?;
                self.report.files += 1;
                self.report.bytes += entry.facts.bytes;
                self.report.left_out_streams += streams;
            }
        }
        Ok(())
    }

    /// When all that is in a folder is there, it gets its permissions and its time.
    fn leave(&mut self, at: &At<'_>, entry: &Entry<'_>) -> Result<()> {
        let names = self.names(at);
        if names.is_empty() {
            return Ok(());
        }
        self.target.folder(&names)?.finish_folder(&self.attributes(&entry.facts))
    }
}

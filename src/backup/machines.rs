//! Running machines among the inputs: they are frozen before a backup, and each of their disks becomes
//! an input that is read as it was at that instant.
//!
//! Invariant: what tells later changes begins anew only after the point is durable; a backup that fails
//! leaves it as it was.

use super::marks::{self, WHOLE, mark_name, parse};
use super::plan::InputRequest;
use super::{BackupOptions, BitmapHint, Hint, Reading};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::points::{Point, PointSet};
use crate::source::machine::{Frozen, FrozenDisk, Marks, Told};
use crate::source::{
    InputKind, default_kind, libvirt, open_disk, open_image, qemu, reflink, token_of,
};
use diskvault_format::id::{BackupId, RepositoryId};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// What a machine of QEMU is told by.
const QEMU: &str = "qemu:";
/// What a machine of libvirt is told by.
const LIBVIRT: &str = "libvirt:";

/// How machines are frozen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineOptions {
    /// The folder for scratch files; beside the disks if `None`.
    pub scratch: Option<PathBuf>,
    /// The folder for clones of raw files; none are made if `None`.
    pub clones: Option<PathBuf>,
    /// True to bring the guests' file systems to rest by their agents.
    pub freezes: bool,
}

/// True for text that names a machine and no file.
pub(super) fn is_machine(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.starts_with(QEMU) || path.starts_with(LIBVIRT))
}

/// Machines that are held still, and the options with their disks as inputs.
pub(super) struct Held {
    pub options: BackupOptions,
    machines: Vec<Box<dyn Frozen>>,
    /// What belongs to machines beside their disks.
    _companions: Option<TempDir>,
}

/// Freezes the machines among the inputs.
///
/// # Errors
/// `Usage` for an address that is none; `Source` if a machine does not do as it is told.
pub(super) fn freeze(
    repository: &Repository,
    options: &BackupOptions,
    backup_id: BackupId,
    monitor: &dyn Monitor,
) -> Result<Held> {
    let mut held = Held { options: options.clone(), machines: Vec::new(), _companions: None };
    let is_frozen =
        |input: &InputRequest| is_machine(&input.path) || input.machine.clones.is_some();
    if !options.inputs.iter().any(is_frozen) {
        return Ok(held);
    }
    let points = PointSet::load(repository)?;
    let book = Book { repository: repository.id(), series: &options.series, backup_id, points };
    let folder = tempfile::tempdir().map_err(|cause| {
        Error::io(ErrorKind::Failed, "cannot make a folder for parts of machines", cause)
    })?;
    let mut inputs = Vec::new();
    for input in &options.inputs {
        let machine = if is_machine(&input.path) {
            open(input, &book, held.machines.len(), monitor)?
        } else if let Some(clone) = clone_of(input, &book, options.stdin_name.as_deref(), monitor)?
        {
            clone
        } else {
            inputs.push(input.clone());
            continue;
        };
        for disk in machine.disks() {
            inputs.push(disk_input(input, disk, &book, options.reading, monitor));
        }
        for (number, companion) in machine.companions().iter().enumerate() {
            let name = format!("{}-{number}", held.machines.len());
            let path = folder.path().join(name);
            std::fs::write(&path, &companion.bytes).map_err(|cause| {
                Error::io(ErrorKind::Failed, format!("cannot write {}", path.display()), cause)
            })?;
            let name = Some(companion.name.clone());
            inputs.push(InputRequest::new(name, path, Some(InputKind::Stream)));
        }
        held.machines.push(machine);
    }
    held.options.inputs = inputs;
    held._companions = Some(folder);
    // Only now it is known what disks there are.
    super::plan::validate_request(&held.options)?;
    Ok(held)
}

impl Held {
    /// Before a point is made.
    ///
    /// # Errors
    /// `Source` if a machine is held still no more.
    pub fn check(&mut self) -> Result<()> {
        self.machines.iter_mut().try_for_each(|machine| machine.check())
    }

    /// After the point is durable.
    pub fn keep(mut self, monitor: &dyn Monitor) {
        for machine in &mut self.machines {
            if let Err(error) = machine.keep() {
                monitor.warn(&format!("the point was made, but: {}", error.full_text()));
            }
        }
    }

    /// After no point was made.
    pub fn release(mut self, monitor: &dyn Monitor) {
        for machine in &mut self.machines {
            if let Err(error) = machine.release() {
                monitor.warn(&error.full_text());
            }
        }
    }
}

fn open(
    input: &InputRequest,
    book: &Book<'_>,
    number: usize,
    monitor: &dyn Monitor,
) -> Result<Box<dyn Frozen>> {
    let text = input.path.to_str().unwrap_or_default();
    let refuse = |what: &str| {
        let text = format!("cannot read the machine {}: {what}", text.escape_debug());
        Error::new(ErrorKind::Usage, text)
    };
    if input.name.is_some() {
        return Err(refuse("its disks have names of their own").hint("name it without --disk"));
    }
    let options = &input.machine;
    // No process id: in containers many have the same one, and share folders.
    let tag = format!("{}-{number}", &book.backup_id.to_hex()[..10]);
    let (address, query) = text.split_once('?').unwrap_or((text, ""));
    let mut parameters = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        parameters.push(pair.split_once('=').ok_or_else(|| refuse("expected KEY=VALUE behind ?"))?);
    }
    let mut take = |key: &str| {
        let found = parameters.iter().position(|(known, _)| *known == key)?;
        Some(PathBuf::from(parameters.remove(found).1))
    };
    let machine: Box<dyn Frozen> = if let Some(path) = address.strip_prefix(QEMU) {
        if path.is_empty() {
            return Err(refuse("expected qemu:SOCKET"));
        }
        let agent = take("agent");
        if options.freezes && agent.is_none() {
            return Err(refuse("--freeze needs the socket of its agent: ?agent=SOCKET"));
        }
        let settings = qemu::Settings {
            tag,
            monitor: PathBuf::from(path),
            agent: agent.filter(|_| options.freezes),
            scratch: options.scratch.clone(),
            server: take("nbd"),
        };
        if let Some((key, _)) = parameters.first() {
            return Err(refuse(&format!("it has no parameter {}", key.escape_debug())));
        }
        Box::new(qemu::freeze(&settings, book, monitor)?)
    } else {
        let domain = address.strip_prefix(LIBVIRT).unwrap_or_default();
        let connection = take("connect").map(|path| path.to_string_lossy().into_owned());
        if domain.is_empty() || domain.starts_with('-') {
            return Err(refuse("expected libvirt:DOMAIN"));
        }
        let settings = libvirt::Settings {
            tag,
            domain: domain.to_string(),
            connection,
            freezes: options.freezes,
            scratch: options.scratch.clone(),
        };
        if let Some((key, _)) = parameters.first() {
            return Err(refuse(&format!("it has no parameter {}", key.escape_debug())));
        }
        Box::new(libvirt::freeze(&settings, book, monitor)?)
    };
    Ok(machine)
}

/// A frozen disk as an input, with what has changed since the point that its bitmap leads to.
fn disk_input(
    input: &InputRequest,
    disk: &FrozenDisk,
    book: &Book<'_>,
    reading: Reading,
    monitor: &dyn Monitor,
) -> InputRequest {
    let name = Some(disk.name.clone());
    let mut request = InputRequest::new(name, &disk.address, Some(InputKind::Disk));
    request.machine = MachineOptions { clones: None, ..input.machine.clone() };
    if reading == Reading::Full {
        return request;
    }
    if input.hint.is_some() || input.bitmap.is_some() {
        // Who names a list knows more than a clone.
        (request.hint, request.bitmap) = (input.hint.clone(), input.bitmap.clone());
        return request;
    }
    let Some(since) = &disk.since else {
        if let Some(last) = book.last_of_machine(&disk.name).filter(|_| is_machine(&input.path)) {
            let point = last.id.short();
            let why = format!("it has no whole one since point {point}");
            // That of a raw disk ends with the machine, which is no news.
            if disk.keeps_bitmaps {
                request.hint = Some(Arc::new(Hint {
                    base: last.clone(),
                    changed: Vec::new(),
                    told_by: "the machine's bitmap".into(),
                    unfit: Some(why),
                }));
            } else {
                let name = disk.name.escape_debug();
                monitor.note(&format!("disk {name} is read in full: the machine's bitmap: {why}"));
            }
        }
        return request;
    };
    let Some(base) = book.base(&disk.name, &since.mark) else { return request };
    match &since.told {
        Told::Bitmap(bitmap) => {
            let bitmap = bitmap.clone();
            request.bitmap = Some(Arc::new(BitmapHint { base: base.clone(), bitmap }));
        }
        Told::Clone(old) => request.hint = Some(Arc::new(by_clone(disk, base, old))),
    }
    request
}

/// What has changed since a clone was read, if it is the one that the point was made from.
fn by_clone(disk: &FrozenDisk, base: &Point, old: &Path) -> Hint {
    let told = || -> std::result::Result<Vec<Range<u64>>, String> {
        let then = base.manifest.disks.iter().find(|known| known.name == disk.name);
        let clone = open_disk(old).map_err(|error| error.full_text())?;
        if then.is_none_or(|then| then.token != token_of(clone.as_ref())) {
            return Err(format!("{} was written to since", old.display()));
        }
        reflink::differences(old, Path::new(&disk.address)).map_err(|error| error.full_text())
    };
    let (changed, unfit) = match told() {
        Ok(changed) => (changed, None),
        Err(why) => (Vec::new(), Some(why)),
    };
    Hint { base: base.clone(), changed, told_by: "the clone of the last backup".into(), unfit }
}

/// The clone of an input, if that is a raw file and clones are wanted.
fn clone_of(
    input: &InputRequest,
    book: &Book<'_>,
    stdin_name: Option<&str>,
    monitor: &dyn Monitor,
) -> Result<Option<Box<dyn Frozen>>> {
    let Some(folder) = &input.machine.clones else { return Ok(None) };
    let is_file = std::fs::metadata(&input.path).is_ok_and(|it| it.is_file());
    let kind = if is_file {
        input.kind.map_or_else(|| default_kind(&input.path), Ok)?
    } else {
        InputKind::Stream
    };
    if kind == InputKind::Stream || input.image.window.is_some() {
        return Ok(None);
    }
    if open_image(&input.path, &input.image, monitor)?.format() != "raw" {
        let path = input.path.display();
        monitor.note(&format!("{path} is not cloned: it is no raw file"));
        return Ok(None);
    }
    let name = input.part_name(stdin_name)?;
    Ok(Some(Box::new(reflink::freeze(&input.path, &name, folder, book)?)))
}

/// What bitmaps mean to this backup.
struct Book<'a> {
    repository: RepositoryId,
    series: &'a str,
    backup_id: BackupId,
    points: PointSet,
}

impl Book<'_> {
    fn mark(&self, disk: &str, backup_id: BackupId) -> String {
        mark_name(self.repository, self.series, disk, backup_id)
    }

    /// The point that a bitmap leads to.
    fn base(&self, disk: &str, name: &str) -> Option<&Point> {
        let (_, backup_id) = parse(name)?;
        let point = self.points.points.iter().find(|point| {
            let manifest = &point.manifest;
            manifest.backup_id == backup_id && manifest.series == self.series
        })?;
        let has_disk = disk == WHOLE || point.manifest.disks.iter().any(|known| known.name == disk);
        (has_disk && self.is_ours(disk, name)).then_some(point)
    }

    /// The series' last point, if it has this disk from a machine.
    fn last_of_machine(&self, disk: &str) -> Option<&Point> {
        let last = self.points.latest(self.series)?;
        let mut disks = last.manifest.disks.iter();
        disks.any(|known| known.name == disk && known.source_format == "nbd").then_some(last)
    }
}

impl Marks for Book<'_> {
    fn begin(&self, disk: &str) -> String {
        self.mark(disk, self.backup_id)
    }

    fn rank(&self, disk: &str, name: &str) -> Option<u64> {
        self.base(disk, name).map(|point| point.manifest.sequence)
    }

    fn is_ours(&self, disk: &str, name: &str) -> bool {
        marks::is_of(self.repository, self.series, disk, name)
    }
}

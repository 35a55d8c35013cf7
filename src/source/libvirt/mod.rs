//! Domains of libvirt that run while they are backed up, by its pull backups and checkpoints.
//!
//! `virsh` is run for all of it: libvirt has no other interface that needs no library of it. One
//! `backup-begin` freezes all disks at one instant and begins a checkpoint; the one of the last backup
//! stays until the point is durable.
//!
//! Invariants: only checkpoints and jobs that diskvault has made are touched; a backup that runs is
//! never taken for one that was killed.

mod domain;

use super::machine::{Companion, Frozen, FrozenDisk, Marks, Since, Told, as_said};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use domain::{Disk, Domain};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What files that are made here begin with.
const START: &str = "diskvault-";
/// Firmware variables have 64 KiB to a few MiB.
const NVRAM_BYTES_MAX: u64 = 64 << 20;

/// How a domain is reached and frozen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// What tells this backup's files from those of all others.
    pub tag: String,
    /// Its name, id or UUID.
    pub domain: String,
    /// The connection, such as `qemu:///system`; libvirt's default if `None`.
    pub connection: Option<String>,
    /// True to bring its file systems to rest for the instant, by the guest's agent.
    pub freezes: bool,
    /// The folder for scratch files; beside the first disk's image if `None`.
    pub scratch: Option<PathBuf>,
}

/// A domain whose disks are held still.
pub struct FrozenDomain {
    settings: Settings,
    frozen: Vec<FrozenDisk>,
    companions: Vec<Companion>,
    /// The checkpoint that began.
    begun: Option<String>,
    older: Vec<String>,
    /// Locked as long as this process lives.
    lock: File,
    files: Vec<PathBuf>,
    is_open: bool,
}

/// Freezes all disks of a domain that are written to, at one instant.
///
/// # Errors
/// `Source` if there is no `virsh` or no such domain that runs, or another backup of it does, or libvirt
/// refuses; the domain is then as it was.
pub fn freeze(
    settings: &Settings,
    marks: &dyn Marks,
    monitor: &dyn Monitor,
) -> Result<FrozenDomain> {
    let state = settings.run(&["domstate", &settings.domain])?;
    if state.trim() != "running" && state.trim() != "paused" {
        let (name, state) = (settings.domain.escape_debug(), state.trim().escape_debug());
        let text = format!("cannot back up domain {name}: it is {state}");
        return Err(Error::new(ErrorKind::Source, text).hint("back up its images by their paths"));
    }
    let domain = Domain::parse(&settings.run(&["dumpxml", &settings.domain])?)
        .map_err(|why| settings.error("read", &why))?;
    if domain.disks.is_empty() {
        return Err(settings.error("back up", "it has no disk that is written to"));
    }
    let folder = scratch_folder(settings, &domain.disks)?;
    clean_up(settings, monitor)?;
    let own = |kind: &str| folder.join(format!("{START}{}{kind}", settings.tag));
    let lock = lock(&own(".lock"))?;
    let mut frozen = FrozenDomain {
        settings: settings.clone(),
        frozen: Vec::new(),
        companions: companions(settings, &domain, monitor)?,
        begun: None,
        older: Vec::new(),
        lock,
        files: vec![own(".lock"), own(".sock")],
        is_open: true,
    };
    match frozen.begin(&domain, &own, marks, monitor) {
        Ok(()) => Ok(frozen),
        Err(error) => {
            if let Err(left) = frozen.release() {
                monitor.warn(&left.full_text());
            }
            Err(error)
        }
    }
}

impl Settings {
    fn error(&self, what: &str, why: &str) -> Error {
        let text = format!("cannot {what} domain {}: {why}", self.domain.escape_debug());
        Error::new(ErrorKind::Source, text)
    }

    /// Runs `virsh`: its output, or what it says.
    fn ask(&self, arguments: &[&str]) -> Result<std::result::Result<String, String>> {
        let mut command = Command::new("virsh");
        command.arg("--quiet").env("LC_ALL", "C");
        if let Some(connection) = &self.connection {
            command.args(["--connect", connection]);
        }
        let output = command.args(arguments).output().map_err(|cause| {
            let text = "cannot run virsh, by which domains of libvirt are backed up";
            Error::io(ErrorKind::Source, text, cause)
        })?;
        if output.status.success() {
            return Ok(Ok(String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().map(|line| line.trim_start_matches("error: ").trim());
        Ok(Err(said.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(": ")))
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        self.ask(arguments)?.map_err(|said| {
            let what = format!("run {} for", arguments.first().unwrap_or(&"virsh"));
            self.error(&what, &as_said(&said))
        })
    }
}

fn scratch_folder(settings: &Settings, disks: &[Disk]) -> Result<PathBuf> {
    let beside = disks.iter().find_map(|disk| disk.file.as_ref()?.parent());
    let Some(folder) = settings.scratch.as_deref().or(beside) else {
        let text = "cannot tell where to put scratch files: no disk is a file";
        return Err(Error::new(ErrorKind::Usage, text).hint("use --scratch FOLDER"));
    };
    let text = format!("cannot use the folder {} for scratch files", folder.display());
    folder.canonicalize().map_err(|cause| Error::io(ErrorKind::Source, text, cause))
}

/// A lock that ends with this process, whatever ends that.
fn lock(path: &Path) -> Result<File> {
    let cannot = |cause| {
        Error::io(ErrorKind::Source, format!("cannot make the lock {}", path.display()), cause)
    };
    let file = File::create(path).map_err(cannot)?;
    file.lock().map_err(cannot)?;
    Ok(file)
}

/// Ends the job of a backup that was killed.
fn clean_up(settings: &Settings, monitor: &dyn Monitor) -> Result<()> {
    let Ok(xml) = settings.ask(&["backup-dumpxml", &settings.domain])? else { return Ok(()) };
    let socket = domain::backup_socket(&xml);
    let ours = socket.filter(|socket| {
        socket
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(START))
    });
    let Some(socket) = ours else {
        return Err(settings.error("back up", "another backup of it is running"));
    };
    let path = socket.with_extension("lock");
    // A lock that is gone was removed by who held it.
    let is_held = File::open(&path).is_ok_and(|lock| lock.try_lock().is_err());
    if is_held {
        return Err(settings.error("back up", "another backup of it is running"));
    }
    monitor.note("a backup that was killed has left its job in libvirt; it is ended");
    settings.run(&["domjobabort", &settings.domain])?;
    for file in domain::scratch_files(&xml).into_iter().chain([path, socket]) {
        let _ = std::fs::remove_file(file);
    }
    Ok(())
}

/// The definition of a domain, and its firmware's variables.
fn companions(
    settings: &Settings,
    domain: &Domain,
    monitor: &dyn Monitor,
) -> Result<Vec<Companion>> {
    // As it starts next time, without what is true only while it runs.
    let xml = settings.run(&["dumpxml", "--inactive", &settings.domain])?;
    let mut companions = vec![Companion { name: "domain.xml".into(), bytes: xml.into_bytes() }];
    if let Some(path) = &domain.nvram {
        let mut bytes = Vec::new();
        let read =
            File::open(path).and_then(|file| file.take(NVRAM_BYTES_MAX).read_to_end(&mut bytes));
        match read {
            Ok(_) => companions.push(Companion { name: "nvram.fd".into(), bytes }),
            Err(cause) => {
                let path = path.display();
                monitor.warn(&format!("cannot read the firmware variables {path}: {cause}"));
            }
        }
    }
    Ok(companions)
}

impl FrozenDomain {
    fn begin(
        &mut self,
        domain: &Domain,
        own: &dyn Fn(&str) -> PathBuf,
        marks: &dyn Marks,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        let settings = self.settings.clone();
        let known = settings.run(&["checkpoint-list", "--name", &settings.domain])?;
        let names = known.lines().map(str::trim).filter(|name| marks.is_ours("", name));
        self.older = names.map(String::from).collect();
        let ranked = self.older.iter().filter_map(|name| Some((marks.rank("", name)?, name)));
        let base = ranked.max().map(|(_, name)| name.clone());
        let begun = domain.disks.iter().any(|disk| disk.keeps_bitmaps).then(|| marks.begin(""));
        let checkpoint = own(".checkpoint.xml");
        if let Some(begun) = &begun {
            write(&checkpoint, &domain.checkpoint(begun))?;
            self.files.push(checkpoint.clone());
        }
        let mut since = |base: Option<&String>| -> Result<std::result::Result<(), String>> {
            let scratch = |disk: &Disk| own(&format!("-{}.scratch", disk.name));
            self.files.extend(domain.disks.iter().map(scratch));
            let request = own(".backup.xml");
            self.files.push(request.clone());
            write(&request, &domain.backup(&own(".sock"), base.map(String::as_str), &scratch))?;
            let (request, checkpoint) = (request.to_string_lossy(), checkpoint.to_string_lossy());
            let mut arguments = vec!["backup-begin", &settings.domain, &*request];
            arguments.extend(begun.as_ref().map(|_| &*checkpoint));
            at_rest(&settings, monitor, &|| Ok(settings.ask(&arguments)?.map(drop)))
        };
        let mut base = base;
        let mut done = since(base.as_ref())?;
        if let (Err(why), Some(old)) = (&done, &base) {
            // A bitmap that was in use when QEMU was killed has lost what happened then.
            let why = as_said(why);
            monitor
                .warn(&format!("all disks are read in full: checkpoint {old} is of no use: {why}"));
            base = None;
            done = since(None)?;
        }
        done.map_err(|why| settings.error("begin a backup of", &as_said(&why)))?;
        self.begun = begun;
        for disk in &domain.disks {
            let since = base.clone().filter(|_| disk.keeps_bitmaps);
            self.frozen.push(FrozenDisk {
                name: disk.name.clone(),
                address: super::qemu::address(&disk.name, &own(".sock")),
                keeps_bitmaps: disk.keeps_bitmaps,
                since: since.map(|mark| Since {
                    mark,
                    told: Told::Bitmap(format!("backup-{}", disk.name)),
                }),
            });
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let ended = match self.frozen.is_empty() {
            true => Ok(()),
            false => self.settings.run(&["domjobabort", &self.settings.domain]).map(drop),
        };
        for file in std::mem::take(&mut self.files) {
            let _ = std::fs::remove_file(file);
        }
        let _ = self.lock.unlock();
        ended
    }

    fn delete(&self, checkpoint: &str) -> Result<()> {
        let domain = &self.settings.domain;
        if let Err(why) = self.settings.ask(&["checkpoint-delete", domain, checkpoint])? {
            // One whose bitmap is broken goes by its name alone.
            let only = ["checkpoint-delete", "--metadata", domain, checkpoint];
            self.settings.ask(&only)?.map_err(|_| {
                let what = format!("delete checkpoint {checkpoint} of");
                self.settings.error(&what, &as_said(&why))
            })?;
        }
        Ok(())
    }
}

/// Does something while the guest's file systems are at rest, if that is wanted.
fn at_rest<T>(
    settings: &Settings,
    monitor: &dyn Monitor,
    work: &dyn Fn() -> Result<T>,
) -> Result<T> {
    if !settings.freezes {
        return work();
    }
    if let Err(why) = settings.ask(&["domfsfreeze", &settings.domain])? {
        // It may have frozen some.
        let _ = settings.ask(&["domfsthaw", &settings.domain])?;
        return Err(settings.error("freeze", &as_said(&why)));
    }
    let done = work();
    if let Err(why) = settings.ask(&["domfsthaw", &settings.domain])? {
        let (name, why) = (settings.domain.escape_debug(), as_said(&why));
        monitor.warn(&format!(
            "domain {name} may be frozen still: thaw it with virsh domfsthaw: {why}"
        ));
    }
    done
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|cause| {
        Error::io(ErrorKind::Source, format!("cannot write {}", path.display()), cause)
    })
}

impl Frozen for FrozenDomain {
    fn disks(&self) -> &[FrozenDisk] {
        &self.frozen
    }

    fn companions(&self) -> &[Companion] {
        &self.companions
    }

    fn check(&mut self) -> Result<()> {
        let xml = self.settings.run(&["backup-dumpxml", &self.settings.domain])?;
        let is_ours = domain::backup_socket(&xml).is_some_and(|it| self.files.contains(&it));
        let text = "it is held still no more, for another backup of it runs";
        if is_ours { Ok(()) } else { Err(self.settings.error("use what was read of", text)) }
    }

    fn keep(&mut self) -> Result<()> {
        self.is_open = false;
        let ended = self.end();
        for checkpoint in std::mem::take(&mut self.older) {
            self.delete(&checkpoint)?;
        }
        ended
    }

    fn release(&mut self) -> Result<()> {
        self.is_open = false;
        let ended = self.end();
        if let Some(checkpoint) = self.begun.take() {
            self.delete(&checkpoint)?;
        }
        ended
    }
}

impl Drop for FrozenDomain {
    fn drop(&mut self) {
        if self.is_open {
            // Its caller has failed, and says why.
            let _ = self.release();
        }
    }
}

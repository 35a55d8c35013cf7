//! Machines of QEMU, and disks of its storage daemon, that run while they are backed up.
//!
//! All disks are frozen by one transaction: what the guest writes from then on is copied to a scratch
//! file first (`blockdev-backup` with `sync: none`), and an NBD export of that file over the disk shows
//! the disk as it was. The same transaction begins a new dirty bitmap; the one of the last backup goes on
//! until the point is durable, so that nothing has to be put back when the backup fails.
//!
//! Invariants: the nodes, jobs, exports and bitmaps that are made here have names that begin with
//! `diskvault-`, and no others are touched; what a killed backup has left is removed by the next one.

mod agent;
mod disks;
mod qmp;

pub use agent::{Rest, agent_answers};
pub use qmp::Qmp;

use super::machine::{Frozen, FrozenDisk, Marks, Since, Told};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use disks::Disk;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What all names of nodes, jobs and exports begin with.
const START: &str = "diskvault-";
/// The bitmap with what has changed, for the time of a backup.
const CHANGES: &str = "diskvault-changes";
/// Bytes for each bit of a bitmap: what QEMU itself takes for its default.
const GRANULARITY: u32 = 64 << 10;
/// Connections that the server in QEMU takes.
const CONNECTIONS: u32 = 16;

/// Nodes, each with a bitmap of it.
type NodeBitmaps = Vec<(String, String)>;

/// How a machine is reached and frozen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// What tells this backup's names from those of all others: at most 14 letters, digits and dashes, for
    /// a node's name has 31.
    pub tag: String,
    /// The socket of QMP.
    pub monitor: PathBuf,
    /// The socket of the guest's agent, by which its file systems are brought to rest for the instant.
    pub agent: Option<PathBuf>,
    /// The folder for scratch files; beside the first disk's image if `None`.
    pub scratch: Option<PathBuf>,
    /// The socket of an NBD server that runs in QEMU already.
    pub server: Option<PathBuf>,
}

/// A machine whose disks are held still.
pub struct FrozenMachine {
    qmp: Qmp,
    /// What names begin with that are made here, and no other backup's.
    start: String,
    disks: Vec<Disk>,
    frozen: Vec<FrozenDisk>,
    /// Nodes and bitmaps that began.
    begun: NodeBitmaps,
    /// The same of those that are needed only while it is read.
    passing: NodeBitmaps,
    /// True once there may be jobs.
    holds: bool,
    older: NodeBitmaps,
    scratch: Vec<PathBuf>,
    /// The socket of the server that was started here.
    server: Option<PathBuf>,
    is_open: bool,
}

/// Freezes all disks of a machine at one instant.
///
/// # Errors
/// `Source` if the machine cannot be reached, has no disk that can be frozen, or does not do as it is
/// told; it is then as it was.
pub fn freeze(
    settings: &Settings,
    marks: &dyn Marks,
    monitor: &dyn Monitor,
) -> Result<FrozenMachine> {
    let mut qmp = Qmp::connect(&settings.monitor)?;
    clean_up(&mut qmp, settings, monitor)?;
    let disks = disks::list(&mut qmp)?;
    if disks.is_empty() {
        let path = settings.monitor.display();
        let text =
            format!("cannot back up the machine at {path}: it has no disk that is written to");
        return Err(Error::new(ErrorKind::Source, text));
    }
    let mut machine = FrozenMachine {
        qmp,
        start: format!("{START}{}", settings.tag),
        disks,
        frozen: Vec::new(),
        begun: Vec::new(),
        holds: false,
        passing: Vec::new(),
        older: Vec::new(),
        scratch: Vec::new(),
        server: None,
        is_open: true,
    };
    match machine.begin(settings, marks, monitor) {
        Ok(()) => Ok(machine),
        Err(error) => {
            if let Err(left) = machine.release() {
                monitor.warn(&left.full_text());
            }
            Err(error)
        }
    }
}

/// Removes what a backup that was killed has left: only one client at a time speaks to a QMP socket.
fn clean_up(qmp: &mut Qmp, settings: &Settings, monitor: &dyn Monitor) -> Result<()> {
    let named = |value: &Value, key: &str| -> Vec<String> {
        let names = value.as_array().into_iter().flatten().filter_map(|it| it[key].as_str());
        names.filter(|name| name.starts_with(START)).map(String::from).collect()
    };
    let all_exports = qmp.run("query-block-exports", json!({}))?;
    let exports = named(&all_exports, "id");
    for export in &exports {
        qmp.run("block-export-del", json!({"id": export, "mode": "hard"}))?;
    }
    let jobs = named(&qmp.run("query-jobs", json!({}))?, "id");
    for job in &jobs {
        qmp.end_job(job)?;
    }
    let nodes = qmp.run("query-named-block-nodes", json!({"flat": true}))?;
    let mut names = named(&nodes, "node-name");
    // A scratch image before the file that it lies in.
    names.sort_unstable_by(|a, b| b.cmp(a));
    if !exports.is_empty() || !jobs.is_empty() || !names.is_empty() {
        monitor
            .note("a backup that was killed has left its traces in the machine; they are removed");
        // A server with exports of others is theirs, and would take them with it.
        let is_ours = all_exports.as_array().map_or(0, Vec::len) == exports.len();
        if settings.server.is_none() && is_ours && !exports.is_empty() {
            let _ = qmp.ask("nbd-server-stop", json!({}))?;
        }
    }
    for name in &names {
        qmp.run("blockdev-del", json!({"node-name": name}))?;
        let node = nodes.as_array().into_iter().flatten().find(|node| node["node-name"] == **name);
        let file = node.filter(|node| node["drv"] == "file").and_then(|node| node["file"].as_str());
        if let Some(file) = file.filter(|file| file.contains(START)) {
            // Another host's file system may have it.
            let _ = std::fs::remove_file(file);
        }
    }
    for disk in disks::list(qmp)? {
        if disk.bitmaps.iter().any(|bitmap| bitmap.name == CHANGES) {
            remove_bitmap(qmp, &disk.node, CHANGES)?;
        }
    }
    Ok(())
}

fn remove_bitmap(qmp: &mut Qmp, node: &str, name: &str) -> Result<()> {
    qmp.run("block-dirty-bitmap-remove", json!({"node": node, "name": name}))?;
    Ok(())
}

/// A part of an address that ends nowhere too early.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.');

/// The address of an export at a socket.
pub(super) fn address(export: &str, socket: &Path) -> String {
    let export = utf8_percent_encode(export, ENCODED);
    let socket = socket.to_string_lossy();
    format!("nbd+unix:///{export}?socket={}", utf8_percent_encode(&socket, ENCODED))
}

impl FrozenMachine {
    fn begin(
        &mut self,
        settings: &Settings,
        marks: &dyn Marks,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        let folder = self.scratch_folder(settings)?;
        for number in 0..self.disks.len() {
            self.add_scratch(number, &folder)?;
        }
        let start = &self.start;
        let numbered = self.disks.iter().enumerate();
        let mut actions: Vec<Value> =
            numbered.map(|(number, disk)| disk.freeze(number, start)).collect();
        let (mut bases, mut begun, mut passing) = (Vec::new(), Vec::new(), Vec::new());
        for disk in &self.disks {
            let name = marks.begin(&disk.name);
            let base = disk.base(marks).map(String::from);
            begun.push((disk.node.clone(), name.clone()));
            if base.is_some() {
                passing.push((disk.node.clone(), CHANGES.to_string()));
            }
            for bitmap in &disk.bitmaps {
                if marks.is_ours(&disk.name, &bitmap.name) {
                    self.older.push((disk.node.clone(), bitmap.name.clone()));
                }
            }
            actions.extend(disk.begin(&name, base.as_deref()));
            bases.push(base);
        }
        self.transact(settings, actions, (begun, passing), monitor)?;
        let socket = self.start_server(settings, &folder)?;
        for (number, base) in bases.into_iter().enumerate() {
            let disk = &self.disks[number];
            let start = &self.start;
            let export = format!("{start}-{}", disk.name);
            let mut arguments = json!({
                "type": "nbd", "id": format!("{start}e{number}"), "name": &export,
                "node-name": format!("{start}s{number}"), "writable": false,
            });
            if base.is_some() {
                arguments["bitmaps"] = json!([{"node": &disk.node, "name": CHANGES}]);
            }
            self.qmp.run("block-export-add", arguments)?;
            self.frozen.push(FrozenDisk {
                name: disk.name.clone(),
                address: address(&export, &socket),
                keeps_bitmaps: disk.keeps_bitmaps,
                since: base.map(|mark| Since { mark, told: Told::Bitmap(CHANGES.to_string()) }),
            });
        }
        Ok(())
    }

    fn scratch_folder(&self, settings: &Settings) -> Result<PathBuf> {
        let beside = || self.disks.iter().find_map(|disk| disk.file.as_ref()?.parent());
        let folder = match (&settings.scratch, beside()) {
            (Some(folder), _) => folder.as_path(),
            (None, Some(folder)) => folder,
            (None, None) => {
                let text = "cannot tell where to put scratch files: no disk is a file";
                return Err(Error::new(ErrorKind::Usage, text).hint("use --scratch FOLDER"));
            }
        };
        // QEMU has another current folder.
        let text = format!("cannot use the folder {} for scratch files", folder.display());
        folder.canonicalize().map_err(|cause| Error::io(ErrorKind::Source, text, cause))
    }

    /// Makes a scratch image over a disk, by QEMU, which may be somebody else and see other folders.
    fn add_scratch(&mut self, number: usize, folder: &Path) -> Result<()> {
        let disk = &self.disks[number];
        let start = &self.start;
        let path = folder.join(format!("{start}-{number}.scratch"));
        let text = path.to_string_lossy().into_owned();
        let (file, image) = (format!("{start}f{number}"), format!("{start}s{number}"));
        let job = format!("{start}c{number}");
        let (node, size) = (disk.node.clone(), disk.size);
        self.scratch.push(path);
        let options = json!({"driver": "file", "filename": text, "size": 0});
        self.qmp.run_job("blockdev-create", &job, json!({"options": options}))?;
        let arguments = json!({"driver": "file", "filename": text, "node-name": file});
        self.qmp.run("blockdev-add", arguments)?;
        let options = json!({"driver": "qcow2", "file": file, "size": size});
        self.qmp.run_job("blockdev-create", &job, json!({"options": options}))?;
        let arguments =
            json!({"driver": "qcow2", "file": file, "node-name": image, "backing": node});
        self.qmp.run("blockdev-add", arguments)?;
        Ok(())
    }

    /// The instant.
    fn transact(
        &mut self,
        settings: &Settings,
        actions: Vec<Value>,
        (begun, passing): (NodeBitmaps, NodeBitmaps),
        monitor: &dyn Monitor,
    ) -> Result<()> {
        let rest = match &settings.agent {
            None => None,
            Some(agent) => {
                let (rest, count) = Rest::begin(agent)?;
                monitor.note(&format!("{count} file systems of the guest are at rest"));
                Some(rest)
            }
        };
        // Also if it is not answered: it may be done.
        (self.begun, self.passing, self.holds) = (begun, passing, true);
        let done = self.qmp.ask("transaction", json!({"actions": actions}))?;
        if done.is_err() {
            (self.begun, self.passing, self.holds) = (Vec::new(), Vec::new(), false);
        }
        if let Some(rest) = rest {
            rest.end()?;
        }
        done.map(drop).map_err(|refused| self.qmp.refusal("transaction", &refused))
    }

    fn start_server(&mut self, settings: &Settings, folder: &Path) -> Result<PathBuf> {
        if let Some(server) = &settings.server {
            return Ok(server.clone());
        }
        // A path of a socket has at most 107 bytes.
        let name = format!("{}.sock", self.start);
        let mut socket = folder.join(&name);
        if socket.as_os_str().len() > 100 {
            // QEMU has another current folder.
            let monitor = std::path::absolute(&settings.monitor);
            let monitor = monitor.unwrap_or_else(|_| settings.monitor.clone());
            socket = monitor.with_file_name(&name);
        }
        let path = socket.to_string_lossy().into_owned();
        let arguments = json!({
            "addr": {"type": "unix", "data": {"path": path}}, "max-connections": CONNECTIONS,
        });
        match self.qmp.ask("nbd-server-start", arguments)? {
            Ok(_) => {
                self.server = Some(socket.clone());
                Ok(socket)
            }
            Err(refused) if refused.text.contains("already running") => {
                let error = self.qmp.refusal("nbd-server-start", &refused);
                Err(error.hint("name its socket: qemu:PATH?nbd=SOCKET"))
            }
            Err(refused) => Err(self.qmp.refusal("nbd-server-start", &refused)),
        }
    }

    /// Ends exports, jobs and nodes, and removes bitmaps; the first thing that went wrong.
    fn end(&mut self, bitmaps: NodeBitmaps) -> Result<()> {
        let start = &self.start;
        let mut first = Ok(());
        let mut note = |result: Result<()>| {
            if first.is_ok() {
                first = result;
            }
        };
        let mut are_told = !self.frozen.is_empty();
        for number in 0..self.frozen.len() {
            let arguments = json!({"id": format!("{start}e{number}"), "mode": "hard"});
            let told = self.qmp.run("block-export-del", arguments).map(drop);
            are_told &= told.is_ok();
            note(told);
        }
        if are_told {
            note(self.qmp.wait_for_exports(start));
        }
        if self.holds {
            for number in 0..self.disks.len() {
                note(self.qmp.end_job(&format!("{start}j{number}")));
            }
        }
        if let Some(socket) = self.server.take() {
            note(self.qmp.run("nbd-server-stop", json!({})).map(drop));
            let _ = std::fs::remove_file(socket);
        }
        for (number, path) in std::mem::take(&mut self.scratch).into_iter().enumerate() {
            for kind in ["s", "f"] {
                let arguments = json!({"node-name": format!("{start}{kind}{number}")});
                match self.qmp.ask("blockdev-del", arguments) {
                    Ok(Err(refused)) if !refused.text.contains("find") => {
                        note(Err(self.qmp.refusal("blockdev-del", &refused)));
                    }
                    other => note(other.map(drop)),
                }
            }
            let _ = std::fs::remove_file(path);
        }
        for (node, name) in std::mem::take(&mut self.passing).into_iter().chain(bitmaps) {
            note(remove_bitmap(&mut self.qmp, &node, &name));
        }
        first
    }
}

impl Frozen for FrozenMachine {
    fn disks(&self) -> &[FrozenDisk] {
        &self.frozen
    }

    fn check(&mut self) -> Result<()> {
        // Without its job a disk is read through the scratch image as it is now, and nothing fails.
        let jobs = self.qmp.run("query-jobs", json!({}))?;
        for (number, disk) in self.disks.iter().enumerate() {
            let id = format!("{}j{number}", self.start);
            let job = jobs.as_array().into_iter().flatten().find(|job| job["id"] == id);
            let status = job.and_then(|job| job["status"].as_str()).unwrap_or("gone");
            if !matches!(status, "running" | "paused" | "ready" | "standby") {
                let (name, status) = (disk.name.escape_debug(), status.escape_debug());
                let text = format!("cannot use what was read of disk {name}: it was held still no");
                let text = format!("{text} more, for the job in the machine is {status}");
                return Err(Error::new(ErrorKind::Source, text).hint("run the backup again"));
            }
        }
        Ok(())
    }

    fn keep(&mut self) -> Result<()> {
        self.is_open = false;
        let older = std::mem::take(&mut self.older);
        self.end(older)
    }

    fn release(&mut self) -> Result<()> {
        self.is_open = false;
        let begun = std::mem::take(&mut self.begun);
        self.end(begun)
    }
}

impl Drop for FrozenMachine {
    fn drop(&mut self) {
        if self.is_open {
            // Its caller has failed, and says why.
            let _ = self.release();
        }
    }
}

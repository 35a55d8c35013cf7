//! A QEMU on the disks of a server: how it is started, and that it ends.
//!
//! Invariant: its sockets and firmware variables lie in a folder that only this user can enter, and
//! that goes with it.

use super::firmware::Firmware;
use super::watch::{Expectations, Verdict, watch};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::serve::{Export, Listener, Server};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What the disks hang on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskBus {
    /// virtio-blk: what most guests under KVM have drivers for.
    Virtio,
    /// AHCI: what all guests have drivers for.
    Sata,
}

/// What is not in the point.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    /// The program.
    pub qemu: PathBuf,
    /// `kvm`, `tcg`, or several with colons, of which the first one that works is taken.
    pub accel: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Processors.
    pub cpus: u32,
    /// What the disks hang on.
    pub bus: DiskBus,
    /// What starts it.
    pub firmware: Firmware,
    /// Writes are forgotten at the end, so that nothing has to be flushed.
    pub is_forgotten: bool,
}

/// How long QEMU may take to end in its own way, which gives a terminal back as it was.
const FAREWELL: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(50);

/// A process that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let began = Instant::now();
        let is_there = |child: &mut Child| matches!(child.try_wait(), Ok(None));
        if let (true, Some(id)) = (is_there(&mut self.0), Pid::from_raw(self.0.id() as i32)) {
            let _ = kill_process(id, Signal::TERM);
        }
        while is_there(&mut self.0) && began.elapsed() < FAREWELL {
            std::thread::sleep(LOOK);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How the folders of machines begin.
const PREFIX: &str = "diskvault-boot-";
/// Folders of runs that were killed are removed when they are so old; a younger one may be about to
/// be locked.
const STALE: Duration = Duration::from_secs(60);

/// The folder of a machine, and the lock that says that it is in use.
struct Place {
    folder: TempDir,
    _lock: File,
}

impl Place {
    fn make() -> Result<Place> {
        let made = tempfile::Builder::new().prefix(PREFIX).tempdir();
        let opened = made.and_then(|folder| {
            folder.path().parent().into_iter().for_each(remove_stale_folders);
            let handle = File::open(folder.path())?;
            // Where folders cannot be locked, they cannot be found to be in nobody's use either.
            let _ = flock(&handle, FlockOperation::NonBlockingLockExclusive);
            Ok(Place { folder, _lock: handle })
        });
        opened.map_err(|cause| {
            Error::io(ErrorKind::Target, "cannot make a folder for the machine", cause)
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// What runs that were killed have left.
fn remove_stale_folders(above: &Path) {
    let entries = std::fs::read_dir(above).into_iter().flatten().flatten();
    for entry in entries {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let Ok(metadata) = entry.metadata() else { continue };
        let age = metadata.modified().ok().and_then(|time| time.elapsed().ok());
        let is_old = age.is_some_and(|age| age > STALE);
        let is_mine = metadata.is_dir() && metadata.uid() == geteuid().as_raw();
        if !(is_ours && is_old && is_mine) {
            continue;
        }
        let Ok(handle) = File::open(entry.path()) else { continue };
        if flock(&handle, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // Whatever stays is tried again by the next run.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Serves disks for as long as `work` runs on them.
fn with_disks<T>(
    exports: Vec<Export>,
    monitor: &dyn Monitor,
    work: impl FnOnce(&Place, &[String]) -> Result<T>,
) -> Result<T> {
    let place = Place::make()?;
    let names: Vec<String> = exports.iter().map(|export| export.name().to_string()).collect();
    let connections_max = exports.len() * 4 + 4;
    let listener = Listener::at_path(&place.path("disks"))?;
    let server = Server { listener, exports, tls: None, connections_max, idle: None };
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| server.run(monitor, &|| is_over.load(Ordering::Relaxed)));
        let done = work(&place, &names);
        is_over.store(true, Ordering::Relaxed);
        let served = serving.join().unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Failed, "cannot serve the disks: an error of this program"))
        });
        done.and_then(|done| served.map(|()| done))
    })
}

/// Starts a machine and says whether it boots. It is ended in any case.
///
/// # Errors
/// `Failed` if QEMU cannot be started; `Cancelled`.
pub fn test(
    exports: Vec<Export>,
    options: &MachineOptions,
    expected: &Expectations,
    monitor: &dyn Monitor,
) -> Result<Verdict> {
    with_disks(exports, monitor, |place, disks| {
        let mut command = command(options, place, disks)?;
        command.args(["-display", "none", "-serial", "stdio", "-monitor", "none"]);
        let log = place.path("firmware.log");
        // To its end each time, so that it can be cut while it grows.
        command.arg("-chardev").arg(escaped("file,id=firmware,append=on,path=", &log, ""));
        command.args(["-device", "isa-debugcon,iobase=0x402,chardev=firmware"]);
        if expected.running.is_some() {
            // A reset ends it then.
            command.arg("-no-reboot");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Running(start(&mut command, options)?);
        let watched = watch(&mut running.0, expected, &place.path("agent"), &log, monitor);
        watched.map_err(|error| options.advise(error))
    })
}

/// Starts a machine whose serial console and monitor are those of the terminal, and waits for its end.
///
/// # Errors
/// `Failed` if QEMU cannot be started, or fails; `Cancelled`.
pub fn run_interactively(
    exports: Vec<Export>,
    options: &MachineOptions,
    monitor: &dyn Monitor,
) -> Result<()> {
    with_disks(exports, monitor, |place, disks| {
        let mut command = command(options, place, disks)?;
        command.args(["-display", "none", "-serial", "mon:stdio"]);
        let mut running = Running(start(&mut command, options)?);
        loop {
            monitor.check_cancelled()?;
            let failed = |cause| Error::io(ErrorKind::Failed, "cannot wait for QEMU", cause);
            match running.0.try_wait().map_err(failed)? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    let text = format!("cannot run the machine: QEMU ended with {status}");
                    return Err(options.advise(Error::new(ErrorKind::Failed, text)));
                }
                None => std::thread::sleep(LOOK),
            }
        }
    })
}

impl MachineOptions {
    /// What to try when QEMU does not run: KVM may be there and not work, as in some virtual machines.
    fn advise(&self, error: Error) -> Error {
        match error.kind() == ErrorKind::Failed && self.accel.contains("kvm") {
            true => error.hint("use --accel tcg if KVM does not work here"),
            false => error,
        }
    }
}

fn start(command: &mut Command, options: &MachineOptions) -> Result<Child> {
    command.spawn().map_err(|cause| cannot_start(options, cause))
}

fn cannot_start(options: &MachineOptions, cause: std::io::Error) -> Error {
    let text = format!("cannot start {}", options.qemu.display());
    Error::io(ErrorKind::Failed, text, cause).hint("install QEMU, or name it with --qemu")
}

/// A path in an option of QEMU, in which commas end it.
fn escaped(before: &str, path: &Path, behind: &str) -> String {
    format!("{before}{}{behind}", path.display().to_string().replace(',', ",,"))
}

/// QEMU with everything but its console.
fn command(options: &MachineOptions, place: &Place, disks: &[String]) -> Result<Command> {
    let version = Command::new(&options.qemu).arg("--version").stdin(Stdio::null()).output();
    let version = version.map_err(|cause| cannot_start(options, cause))?;
    if !String::from_utf8_lossy(&version.stdout).contains("QEMU") {
        let text = format!("cannot start {}: it is no QEMU", options.qemu.display());
        return Err(Error::new(ErrorKind::Failed, text));
    }
    // If this process is killed, QEMU is, too; without the program, only QEMU's disks would be gone.
    let has_guard = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let mut command = match has_guard {
        true => {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--"]).arg(&options.qemu);
            command
        }
        false => Command::new(&options.qemu),
    };
    command.args(["-nodefaults", "-no-user-config", "-nic", "none", "-vga", "std"]);
    command.args(["-machine", &format!("q35,accel={}", options.accel), "-cpu", "max"]);
    command.args(["-m", &options.memory_mib.to_string(), "-smp", &options.cpus.to_string()]);
    command.args(["-device", "pvpanic"]);
    command.args(["-device", "virtio-serial-pci", "-chardev"]);
    command.arg(escaped("socket,id=agent,server=on,wait=off,path=", &place.path("agent"), ""));
    command.args(["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]);
    if let Firmware::Uefi { code, variables } = &options.firmware {
        let path = place.path("variables");
        std::fs::write(&path, variables).map_err(|cause| {
            Error::io(ErrorKind::Target, "cannot write the firmware's variables", cause)
        })?;
        let pflash = "if=pflash,format=raw,file=";
        command.arg("-drive").arg(escaped(pflash, code, ",unit=0,readonly=on"));
        command.arg("-drive").arg(escaped(pflash, &path, ",unit=1"));
    }
    for (number, disk) in disks.iter().enumerate() {
        let node = json!({
            "driver": "nbd",
            "node-name": format!("disk{number}"),
            "server": {"type": "unix", "path": place.path("disks")},
            "export": disk,
            "discard": "unmap",
            "cache": {"direct": false, "no-flush": options.is_forgotten},
        });
        command.args(["-blockdev", &node.to_string()]);
        let device = match options.bus {
            DiskBus::Virtio => "virtio-blk-pci".to_string(),
            DiskBus::Sata => format!("ide-hd,bus=ide.{number}"),
        };
        let device = format!("{device},drive=disk{number},bootindex={number}");
        command.args(["-device", &device]);
    }
    Ok(command)
}

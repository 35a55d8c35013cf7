//! `boot`: a machine on the disks of a point, to use it or to see whether it boots.

use super::context::{Context, host_name};
use super::output::{escape, json_line, line};
use super::serve_nbd::warn_of_bad_extents;
use super::sizes::parse_bytes;
use crate::boot::{
    DiskBus, Expectations, Firmware, FirmwareChoice, MachineOptions, Verdict, run_interactively,
    store, test,
};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::address::Address;
use crate::repository::points::Point;
use crate::restore::{Part, find_part};
use crate::serve::{Overlays, exports};
use crate::view::{Vault, View};
use clap::ValueEnum;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The stream of a point in which a domain of libvirt keeps the variables of its firmware.
const VARIABLES: &str = "nvram.fd";
/// Larger ones are none.
const VARIABLES_BYTES_MAX: u64 = 64 << 20;
/// By default it has to run for so long.
const RUNNING: Duration = Duration::from_secs(60);

/// A machine needs this much.
const MEMORY_MIN: u64 = 16 << 20;

/// Options of `boot`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The point, and one disk of it if it is to have no other
    #[arg(value_name = "POINT[/DISK]")]
    point: String,
    /// The newest point not later than this time; POINT is then a series
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    at: Option<String>,
    /// Only see whether it boots: end it then, keep the verdict with the point, and fail if it did not
    #[arg(long)]
    test: bool,
    /// It booted when its serial console says this text; may be repeated, for all of them
    #[arg(long, value_name = "TEXT", requires = "test")]
    console: Vec<String>,
    /// It booted when its guest agent answers
    #[arg(long, requires = "test")]
    agent: bool,
    /// It booted when it ran so long without a reset or an end; 60 unless something else is asked for
    #[arg(long = "for", value_name = "SECONDS", requires = "test",
          value_parser = clap::value_parser!(u32).range(1..))]
    running: Option<u32>,
    /// Give up after so long
    #[arg(long, value_name = "SECONDS", default_value_t = 300,
          value_parser = clap::value_parser!(u32).range(1..))]
    time_limit: u32,
    /// Keep what the machine writes in this file, or for several disks in this folder; it is forgotten
    /// by default
    #[arg(long, value_name = "PATH")]
    overlay: Option<PathBuf>,
    /// Memory of the machine, such as 512MiB or 8GiB
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = parse_bytes)]
    memory: u64,
    /// Processors of the machine
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=255))]
    cpus: u32,
    /// Who runs its code: the processor, if this host lets it, or QEMU
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    accel: Accel,
    /// What its disks hang on; a guest without drivers for virtio needs sata
    #[arg(long, value_enum, default_value_t = Bus::Virtio)]
    bus: Bus,
    /// Boot by UEFI; by default that is done where a disk has no code for a BIOS
    #[arg(long, conflicts_with = "bios")]
    uefi: bool,
    /// Boot by a BIOS
    #[arg(long)]
    bios: bool,
    /// The program that runs the machine
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
}

/// `--accel`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Accel {
    /// KVM if it can be used
    Auto,
    /// KVM
    Kvm,
    /// QEMU alone: works everywhere, and is slow
    Tcg,
}

/// `--bus`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Bus {
    /// virtio-blk
    Virtio,
    /// AHCI, for up to six disks
    Sata,
}

/// Runs `boot`.
///
/// # Errors
/// `Damage` if a test finds that it does not boot, `Failed` if QEMU cannot be started, `Cancelled`,
/// and as `serve-nbd`.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let expected = expectations(arguments)?;
    let repository = context.open()?;
    let address = Address::parse(&arguments.point)?;
    let point = context.find_point(&repository, &address, arguments.at.as_deref())?;
    let vault = context.vault(repository)?;
    let overlays = match &arguments.overlay {
        Some(path) => Overlays::At(path.clone()),
        None => Overlays::Temporary,
    };
    let disks = exports(&vault, &point, address.part, &overlays)?;
    warn_of_bad_extents(context, &point, address.part);
    let options = MachineOptions {
        qemu: arguments.qemu.clone(),
        accel: match arguments.accel {
            Accel::Auto => "kvm:tcg",
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
        .to_string(),
        memory_mib: arguments.memory >> 20,
        cpus: arguments.cpus,
        bus: match arguments.bus {
            Bus::Virtio => DiskBus::Virtio,
            Bus::Sata => DiskBus::Sata,
        },
        firmware: firmware(arguments, &vault, &point, disks[0].name())?,
        is_forgotten: arguments.overlay.is_none(),
    };
    if !arguments.test {
        return run_interactively(disks, &options, context.monitor());
    }
    let verdict = test(disks, &options, &expected, context.monitor())?;
    match arguments.overlay {
        None => store(vault.repository(), point.id, &host_name(), &verdict)?,
        // What an earlier run wrote may be why.
        Some(_) => {
            context.monitor().note("the verdict is of the overlay: the point does not keep it")
        }
    }
    tell(context, &point, &verdict)?;
    if verdict.is_good {
        return Ok(());
    }
    let text = format!("point {} does not boot: {}", point.id.short(), verdict.because);
    Err(Error::new(ErrorKind::Damage, text))
}

fn expectations(arguments: &Arguments) -> Result<Expectations> {
    let is_nothing = arguments.console.is_empty() && !arguments.agent;
    let given = arguments.running.map(|seconds| Duration::from_secs(seconds.into()));
    let running = given.or(is_nothing.then_some(RUNNING));
    let limit = Duration::from_secs(arguments.time_limit.into());
    if arguments.test && running.is_some_and(|running| running > limit) {
        let text = "cannot wait for less time than the machine has to run";
        return Err(Error::new(ErrorKind::Usage, text).hint("use a longer --time-limit"));
    }
    if arguments.memory < MEMORY_MIN {
        return Err(Error::new(ErrorKind::Usage, "cannot run a machine with less than 16 MiB"));
    }
    if arguments.console.iter().any(String::is_empty) {
        return Err(Error::new(ErrorKind::Usage, "cannot look for an empty text on the console"));
    }
    let console = arguments.console.clone();
    Ok(Expectations { console, agent: arguments.agent, running, limit })
}

fn firmware(
    arguments: &Arguments,
    vault: &Arc<Vault>,
    point: &Point,
    first: &str,
) -> Result<Firmware> {
    let choice = match (arguments.uefi, arguments.bios) {
        (true, _) => FirmwareChoice::Uefi,
        (_, true) => FirmwareChoice::Bios,
        _ => FirmwareChoice::Auto,
    };
    let disk = View::open(vault, find_part(point, first)?)?;
    let mut streams = point.manifest.streams.iter();
    let kept = match streams.find(|stream| stream.name == VARIABLES) {
        Some(stream) if stream.content.bytes <= VARIABLES_BYTES_MAX => {
            let mut bytes = vec![0; stream.content.bytes as usize];
            View::open(vault, Part::Stream(stream))?.read_at(0, &mut bytes)?;
            Some(bytes)
        }
        _ => None,
    };
    Firmware::choose(choice, &disk, kept)
}

fn tell(context: &Context, point: &Point, verdict: &Verdict) -> Result<()> {
    let Verdict { is_good, because, seconds, last_lines } = verdict;
    if context.json() {
        return json_line(&json!({
            "message_type": "summary",
            "point_id": point.id.to_hex(),
            "booted": is_good,
            "because": because,
            "seconds": seconds,
            "console": last_lines,
        }));
    }
    let word = if *is_good { "booted" } else { "did not boot" };
    let id = point.id.short();
    line(&format!("point {id} {word}: {} after {seconds:.1} s", escape(because)))?;
    if !is_good && !last_lines.is_empty() {
        line("the console said last:")?;
        last_lines.iter().try_for_each(|text| line(&format!("  {}", escape(text))))?;
    }
    Ok(())
}

//! `restore`: brings a disk, a stream or a whole point back.

use super::certify::verify_restored;
use super::context::Context;
use super::keep::{Manner, keep_disk, layout_of, refuse_source};
use super::output::{escape, json_line, line};
use super::restore_format::{FormatArguments, restore_archive};
use super::sizes::{format_bytes, format_seconds};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::address::Address;
use crate::repository::locate::Locator;
use crate::repository::points::Point;
use crate::restore::fetch::Fetcher;
use crate::restore::sequential::{Output, read_part};
use crate::restore::{Part, SparseMode, find_part, only_part, parts, restore_disk};
use crate::target::{Layout, OpenTarget, StreamTarget, open_target, stream_target};
use clap::ValueEnum;
use diskvault_format::manifest::{DiskRecord, StreamRecord};
use serde_json::json;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Options of `restore`.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// The point, and a disk or stream of it: SERIES, SERIES@latest~1/DISK, ID/DISK
    #[arg(value_name = "POINT[/DISK]")]
    point: String,
    /// A new file, an existing file or block device; a folder for a point of several disks; an
    /// existing folder takes all parts of a point, or the one that is named
    target: PathBuf,
    /// The newest point not later than this time; POINT is then a series
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    at: Option<String>,
    /// What zeros become: holes wherever possible, exactly as the source had them, or written
    #[arg(long, value_enum, default_value_t = Sparse::Auto)]
    sparse: Sparse,
    /// Overwrite what is there
    #[arg(long)]
    force: bool,
    /// Onto what is there, write only what differs; --force is for what is in use or the source
    #[arg(long)]
    in_place: bool,
    /// Say what would be read and written, and write nothing
    #[arg(long, requires = "in_place")]
    dry_run: bool,
    /// Read every disk back afterwards and compare it with the point
    #[arg(long, conflicts_with = "dry_run")]
    verify: bool,
    #[command(flatten)]
    format: FormatArguments,
}

/// `--sparse`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sparse {
    /// Holes wherever the disk has zeros
    Auto,
    /// Holes and written zeros as at the source
    Exact,
    /// Everything written
    Never,
}

impl Sparse {
    fn mode(self) -> SparseMode {
        match self {
            Sparse::Auto => SparseMode::Auto,
            Sparse::Exact => SparseMode::Exact,
            Sparse::Never => SparseMode::Never,
        }
    }
}

/// Runs `restore`.
///
/// # Errors
/// `Damage`, `Target`, `NoSpace`, or as finding the point.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let began = Instant::now();
    let arguments = &settled(arguments.clone())?;
    let repository = context.open()?;
    let address = Address::parse(&arguments.point)?;
    let point = context.find_point(&repository, &address, arguments.at.as_deref())?;
    let plan = plan(&point, &address, arguments)?;
    let left_out = parts(&point).count() - plan.len();
    if address.part.is_none() && left_out > 0 {
        let text = if arguments.format.is_archive() {
            "only disks are restored: streams of a point have no place in an OVA"
        } else {
            "only the disk is restored: name an existing folder to restore all parts"
        };
        context.monitor().note(text);
    }
    let locator = Locator::open_for_reading(&repository, context.monitor())?;
    let fetcher = context.fetcher(&repository, &locator);
    if arguments.format.is_archive() {
        restore_archive(context, &fetcher, &point, &plan, arguments.force)?;
    } else {
        for (part, path) in &plan {
            match part {
                Part::Disk(disk) if arguments.in_place => {
                    restore_disk_in_place(context, &fetcher, (&point, disk), path, arguments)?;
                }
                _ => restore_part((context, &point), &fetcher, *part, path, arguments)?,
            }
        }
    }
    if arguments.verify {
        let disks = plan.iter().filter_map(|(part, path)| Some((part.disk()?, path)));
        for (number, (disk, path)) in disks.enumerate() {
            let fetcher = context.fetcher(&repository, &locator);
            let options = arguments.format.reading_back(path, number, context.monitor())?;
            verify_restored(context, fetcher, (&point, disk), path, &options)?;
        }
    }
    if arguments.in_place {
        return Ok(());
    }
    tell(context, &point, &plan, began.elapsed().as_secs_f64())
}

/// What the options say together.
fn settled(mut arguments: Arguments) -> Result<Arguments> {
    let is_auto = matches!(arguments.sparse, Sparse::Auto);
    if arguments.in_place || !is_auto {
        arguments.format.ignore_names();
    }
    arguments.format.validate(&arguments.target, is_auto, arguments.in_place)?;
    if arguments.target.as_os_str() == "-" {
        let text = "cannot restore to standard output";
        return Err(Error::new(ErrorKind::Usage, text).hint("use `diskvault dump`"));
    }
    Ok(arguments)
}

fn tell(
    context: &Context,
    point: &Point,
    plan: &[(Part<'_>, PathBuf)],
    seconds: f64,
) -> Result<()> {
    let bytes: u64 = plan.iter().map(|(part, _)| part.bytes()).sum();
    if context.json() {
        return json_line(&json!({
            "message_type": "summary",
            "point_id": point.id.to_hex(),
            "targets": plan.iter().map(|(part, path)| json!({
                "name": part.name(),
                "path": path.display().to_string(),
                "bytes": part.bytes(),
            })).collect::<Vec<_>>(),
            "restored_bytes": bytes,
            "duration_seconds": seconds,
        }));
    }
    for (part, path) in plan {
        line(&format!(
            "restored {} of point {} to {}",
            escape(part.name()),
            point.id.short(),
            escape(&path.display().to_string())
        ))?;
    }
    let rate = format_bytes((bytes as f64 / seconds.max(0.001)) as u64);
    line(&format!("{} in {} ({rate}/s)", format_bytes(bytes), format_seconds(seconds)))
}

/// Which part goes where.
fn plan<'a>(
    point: &'a Point,
    address: &Address<'_>,
    arguments: &Arguments,
) -> Result<Vec<(Part<'a>, PathBuf)>> {
    let target = &arguments.target;
    if arguments.format.is_archive() {
        return arguments.format.plan_archive(point, address, target, arguments.force);
    }
    if let Some(name) = address.part {
        let part = find_part(point, name)?;
        return plan_one(part, arguments);
    }
    let count = parts(point).count();
    if count <= 1 || (point.manifest.disks.len() == 1 && !target.is_dir()) {
        return plan_one(only_part(point)?, arguments);
    }
    if target.exists() && !target.is_dir() {
        let text = format!(
            "cannot restore a point of several parts to {}: it is no folder",
            target.display()
        );
        return Err(Error::new(ErrorKind::Target, text).hint("name one part as POINT/DISK"));
    }
    let mut plan = Vec::new();
    for part in parts(point) {
        let path = target.join(arguments.format.file_name(part));
        // All names are looked at before the first byte is written.
        if path.exists() && !arguments.force && !arguments.in_place {
            let text = format!("cannot write to {}: it exists", path.display());
            return Err(
                Error::new(ErrorKind::AlreadyExists, text).hint("use --force to overwrite it")
            );
        }
        arguments.format.check(part, &path, arguments.force)?;
        plan.push((part, path));
    }
    refuse_equal_names(&plan)?;
    if arguments.dry_run {
        return Ok(plan);
    }
    std::fs::create_dir_all(target).map_err(|cause| {
        Error::io(ErrorKind::Target, format!("cannot make folder {}", target.display()), cause)
    })?;
    Ok(plan)
}

/// One part that was named or is alone; a folder takes it by its name.
fn plan_one<'a>(part: Part<'a>, arguments: &Arguments) -> Result<Vec<(Part<'a>, PathBuf)>> {
    let (target, format) = (&arguments.target, &arguments.format);
    let path =
        if target.is_dir() { target.join(format.file_name(part)) } else { target.to_owned() };
    format.refuse_stream(part)?;
    format.check(part, &path, arguments.force)?;
    Ok(vec![(part, path)])
}

/// Two names of parts can become one by the ending of a format.
fn refuse_equal_names(plan: &[(Part<'_>, PathBuf)]) -> Result<()> {
    let mut taken = HashSet::new();
    let Some((_, path)) = plan.iter().find(|(_, path)| !taken.insert(path)) else { return Ok(()) };
    let text = format!("cannot restore two parts to {}", path.display());
    Err(Error::new(ErrorKind::Usage, text).hint("name one part as POINT/DISK"))
}

/// Writes what differs, if something is there.
fn restore_disk_in_place(
    context: &Context,
    fetcher: &Fetcher<'_>,
    (point, disk): (&Point, &DiskRecord),
    path: &Path,
    arguments: &Arguments,
) -> Result<()> {
    let &Arguments { force, dry_run, .. } = arguments;
    if !force {
        refuse_source(disk, path)?;
    }
    if !force && layout_of(path)? == Layout::Qcow2 && path.exists() {
        let text = format!("cannot restore in place to {}: it is a qcow2 image", path.display());
        let error = Error::new(ErrorKind::Target, text);
        return Err(error.hint("use `diskvault mirror` to keep an image at a point"));
    }
    let (mode, layout) = (arguments.sparse.mode(), Some(Layout::Raw));
    let manner = Manner { mode, force, overwrites: true, dry_run, layout };
    keep_disk(context, fetcher, (point, disk), path, manner)
}

fn restore_part(
    (context, point): (&Context, &Point),
    fetcher: &Fetcher<'_>,
    part: Part<'_>,
    path: &Path,
    arguments: &Arguments,
) -> Result<()> {
    let mode = arguments.sparse.mode();
    let stage = format!("restoring {}", part.name());
    part.warn_of_bad_extents(fetcher.monitor);
    match part {
        Part::Disk(disk) if !arguments.format.is_raw(path) => {
            fetcher.monitor.start(&stage, Some(disk.size));
            let target = (path, arguments.force);
            arguments.format.restore_disk(context, fetcher, point, disk, target)?;
        }
        Part::Disk(disk) => {
            let options = OpenTarget { size: disk.size, force: arguments.force };
            let target = open_target(path, options)?;
            fetcher.monitor.start(&stage, Some(disk.size));
            restore_disk(fetcher, disk, target.as_ref(), mode)?;
            target.finish()?;
        }
        Part::Stream(stream) => {
            if arguments.dry_run {
                return Ok(());
            }
            fetcher.monitor.start(&stage, Some(stream.content.bytes));
            let force = arguments.force || arguments.in_place;
            restore_stream_to(fetcher, stream, path, force)?;
        }
    }
    fetcher.monitor.finish();
    Ok(())
}

/// Restores a stream to a file, whose name appears when it is complete.
///
/// # Errors
/// `Damage`, or as [`stream_target`].
pub fn restore_stream_to(
    fetcher: &Fetcher<'_>,
    stream: &StreamRecord,
    path: &Path,
    force: bool,
) -> Result<()> {
    let target = stream_target(path, force)?;
    let mut output = StreamOutput { target, hasher: blake3::Hasher::new() };
    read_part(fetcher, Part::Stream(stream), &mut output)?;
    if *output.hasher.finalize().as_bytes() != stream.digest {
        let text = "cannot use the stream: its digest does not fit (rule F-11)";
        return Err(Error::new(ErrorKind::Damage, text));
    }
    output.target.finish()
}

struct StreamOutput {
    target: Box<dyn StreamTarget>,
    hasher: blake3::Hasher,
}

impl Output for StreamOutput {
    fn data(&mut self, data: &[u8]) -> Result<()> {
        self.hasher.update(data);
        self.target.write_all(data).map_err(|cause| {
            // The target's own text names it; only the kind is taken over.
            let text = cause.to_string();
            Error::new(Error::io(ErrorKind::Target, "", cause).kind(), text)
        })
    }
}

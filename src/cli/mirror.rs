//! `mirror`: keeps disks ready to start, at the newest point of a series or at any other.

use super::context::Context;
use super::keep::{Manner, keep_disk, refuse_source};
use super::output::{escape, json_line, line};
use super::restore::restore_stream_to;
use super::sizes::format_bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::address::Address;
use crate::repository::locate::Locator;
use crate::repository::points::Point;
use crate::restore::fetch::Fetcher;
use crate::restore::remembered::TargetMemory;
use crate::restore::{Part, SparseMode, find_part, parts};
use crate::target::Layout;
use clap::ValueEnum;
use diskvault_format::manifest::StreamRecord;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Options of `mirror`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The series, or a point, and a disk of it: SERIES, SERIES@latest~1/DISK, ID/DISK
    #[arg(value_name = "POINT[/DISK]")]
    point: String,
    /// A file or block device; a folder for a point of several disks. What is not there is made
    target: PathBuf,
    /// The newest point not later than this time; POINT is then a series
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    at: Option<String>,
    /// How the disk lies in the file; by what is there, or by the file's name
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Say what would be read and written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Write to what is in use, to what is not known to be a mirror, or to the disk's own source
    #[arg(long)]
    force: bool,
}

/// `--format`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    /// The disk as it is
    Raw,
    /// A qcow2 image in which every cluster has its own place
    Qcow2,
}

impl Format {
    /// The library's name for it.
    pub fn layout(self) -> Layout {
        match self {
            Format::Raw => Layout::Raw,
            Format::Qcow2 => Layout::Qcow2,
        }
    }
}

/// Runs `mirror`.
///
/// # Errors
/// As finding the point, and as [`keep_disk`].
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let repository = context.open()?;
    let address = Address::parse(&arguments.point)?;
    let point = context.find_point(&repository, &address, arguments.at.as_deref())?;
    let manner = Manner {
        mode: SparseMode::Auto,
        force: arguments.force,
        overwrites: false,
        dry_run: arguments.dry_run,
        layout: arguments.format.map(Format::layout),
    };
    mirror(context, &repository, (&point, address.part), &arguments.target, manner)
}

/// Brings a target to a point, or to one part of it.
///
/// # Errors
/// As [`run`].
pub fn mirror(
    context: &Context,
    repository: &Repository,
    (point, part): (&Point, Option<&str>),
    target: &Path,
    manner: Manner,
) -> Result<()> {
    let plan = plan(point, part, target, manner)?;
    if part.is_none() && plan.len() < parts(point).count() {
        let text = "only the disk is mirrored: name an existing folder to mirror all parts";
        context.monitor().note(text);
    }
    let locator = Locator::open_for_reading(repository, context.monitor())?;
    let fetcher = context.fetcher(repository, &locator);
    for (part, path) in &plan {
        match part {
            Part::Disk(disk) => keep_disk(context, &fetcher, (point, disk), path, manner)?,
            Part::Stream(stream) => {
                keep_stream(context, &fetcher, (point, stream), path, manner)?;
            }
        }
    }
    Ok(())
}

/// Which part goes where.
fn plan<'a>(
    point: &'a Point,
    part: Option<&str>,
    target: &Path,
    manner: Manner,
) -> Result<Vec<(Part<'a>, PathBuf)>> {
    let in_folder = |part: Part<'a>| {
        let path = if target.is_dir() { target.join(part.name()) } else { target.to_owned() };
        (part, path)
    };
    let disks = &point.manifest.disks;
    let plan: Vec<_> = match (part, &disks[..]) {
        (Some(name), _) => vec![in_folder(find_part(point, name)?)],
        (None, [disk]) if !target.is_dir() => vec![(Part::Disk(disk), target.to_owned())],
        _ if target.exists() && !target.is_dir() => {
            let path = target.display();
            let text = format!("cannot mirror a point of several parts to {path}: it is no folder");
            let error = Error::new(ErrorKind::Target, text);
            return Err(error.hint("name one disk as POINT/DISK"));
        }
        _ => parts(point).map(|part| (part, target.join(part.name()))).collect(),
    };
    for (part, path) in plan.iter().filter(|_| !manner.force) {
        if let Part::Disk(disk) = part {
            refuse_source(disk, path)?;
        }
    }
    let is_folder = plan.iter().any(|(_, path)| path != target);
    if is_folder && !manner.dry_run {
        std::fs::create_dir_all(target).map_err(|cause| {
            Error::io(ErrorKind::Target, format!("cannot make folder {}", target.display()), cause)
        })?;
    }
    Ok(plan)
}

/// Replaces a stream as a whole unless it is there already.
fn keep_stream(
    context: &Context,
    fetcher: &Fetcher<'_>,
    (point, stream): (&Point, &StreamRecord),
    path: &Path,
    manner: Manner,
) -> Result<()> {
    let memory = TargetMemory::new(fetcher.repository);
    let found = std::fs::metadata(path);
    let mut hasher = blake3::Hasher::new();
    let is_there =
        found.as_ref().is_ok_and(|found| found.is_file() && found.len() == stream.content.bytes)
            && std::fs::File::open(path).is_ok_and(|file| hasher.update_reader(file).is_ok())
            && *hasher.finalize().as_bytes() == stream.digest;
    let is_ours = found.is_err() || manner.force || memory.layout(path).is_some();
    if !is_there && !is_ours {
        let path = path.display();
        let text = format!("cannot mirror to {path}: it exists, and is not known to be a mirror");
        let error = Error::new(ErrorKind::AlreadyExists, text);
        return Err(error.hint("use --force to overwrite it"));
    }
    if !is_there && !manner.dry_run {
        restore_stream_to(fetcher, stream, path, true)?;
    }
    if !manner.dry_run {
        memory.begin(path, Layout::Raw)?;
    }
    let written = if is_there { 0 } else { stream.content.bytes };
    let text = path.display().to_string();
    if context.json() {
        return json_line(&json!({
            "message_type": "target",
            "point_id": point.id.to_hex(),
            "name": stream.name,
            "path": text,
            "dry_run": manner.dry_run,
            "bytes": stream.content.bytes,
            "written_bytes": written,
        }));
    }
    line(&format!(
        "{} {} {} of point {}: written {}",
        escape(&text),
        if manner.dry_run { "would be" } else { "is" },
        escape(&stream.name),
        point.id.short(),
        format_bytes(written)
    ))
}

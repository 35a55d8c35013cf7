//! `backup`: makes a restore point.

use super::context::{Context, host_name};
use super::keep::{Manner, is_same};
use super::mirror::mirror;
use super::output::{escape, json_line, line};
use super::show::statistics_json;
use super::sizes::{format_bytes, format_seconds, parse_bytes};
use crate::backup::{
    BackupOptions, BackupReport, BitmapHint, ChunkerChoice, DigestKind, Hint, InputRequest,
    Reading, Reread, run as run_backup,
};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;
use crate::repository::address::{Address, format_time_utc, parse_time};
use crate::repository::compression::{Compression, LEVELS};
use crate::repository::points::PointSet;
use crate::restore::SparseMode;
use crate::retention::undo::forgotten;
use crate::source::changes::read_changes;
use crate::source::{ImageFormat, InputKind};
use crate::storage::ObjectEntry;
use clap::ValueEnum;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What `--changed` says in front of the name of a bitmap that the disk itself keeps.
const BITMAP: &str = "bitmap:";

/// Options of `backup`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The series the point belongs to, such as the machine's name
    #[arg(long, value_name = "SERIES")]
    name: String,
    /// A disk, whatever its size
    #[arg(long, value_name = "NAME=PATH")]
    disk: Vec<String>,
    /// A stream: any file or pipe
    #[arg(long, value_name = "NAME=PATH")]
    stream: Vec<String>,
    /// Disks and files of one point; `-` is standard input, qemu:SOCKET and libvirt:DOMAIN are machines
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Format of a disk: raw, qcow2, vmdk, vhd, vhdx or ova; by its name and some bytes by default
    #[arg(long, value_name = "[NAME=]FORMAT")]
    format: Vec<String>,
    /// Internal snapshot of a qcow2 image to read, by name or number
    #[arg(long, value_name = "[NAME=]SNAPSHOT")]
    snapshot: Vec<String>,
    /// Follow images to backing files, parents and extents outside their folder
    #[arg(long)]
    allow_backing: bool,
    /// Bring the guests of running machines to rest for the instant of the backup, by their agents
    #[arg(long)]
    freeze: bool,
    /// Folder, on the same XFS or btrfs, for a reflink clone of each raw disk file: it is read, kept, and
    /// compared with the next one, so that only what differs is read
    #[arg(long, value_name = "FOLDER")]
    clones: Option<PathBuf>,
    /// Folder for what running machines overwrite meanwhile; beside their disks by default
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,
    /// The point that --changed is about
    #[arg(long, value_name = "POINT", requires = "changed")]
    base: Option<String>,
    /// List or bitmap of what has changed on a disk since the point of --base; only that is read.
    /// bitmap:BITMAP is a dirty bitmap that the disk itself keeps
    #[arg(long, value_name = "[NAME=]FILE", requires = "base")]
    changed: Vec<String>,
    /// The files of --changed are bitmaps with one bit for so many bytes, such as 64K
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, requires = "changed")]
    granularity: Option<u64>,
    /// How much of what is said to be unchanged is read in turn, such as 1/30 of it; as much as what
    /// has changed takes time by default
    #[arg(long, value_name = "1/N", value_parser = parse_reread, conflicts_with = "full")]
    reread: Option<Reread>,
    /// Read every disk in full, whatever is said to be unchanged
    #[arg(long, conflicts_with = "changed")]
    full: bool,
    /// How disks are cut
    #[arg(long, value_enum, default_value_t = Chunker::Auto)]
    chunker: Chunker,
    /// zstd level from 1 to 19, `off`, or `auto`: as high as the storage leaves time for
    #[arg(long, value_name = "LEVEL", default_value = "3", value_parser = parse_compression)]
    compression: Compression,
    /// Name for standard input
    #[arg(long, value_name = "NAME")]
    stdin_name: Option<String>,
    /// A tag of the point
    #[arg(long, value_name = "KEY=VALUE")]
    tag: Vec<String>,
    /// The time the point shows, such as 2026-11-01T03:00; now by default
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    time: Option<String>,
    /// Bring this file, device or folder to the new point afterwards, as `mirror` does
    #[arg(long, value_name = "TARGET")]
    then_mirror: Option<PathBuf>,
    /// Compute this digest too, on every byte
    #[arg(long, value_enum, value_name = "KIND")]
    digest: Vec<Digest>,
}

impl Arguments {
    /// A plain backup of images, with a time and a tag.
    pub fn of_images(
        name: String,
        disk: Vec<String>,
        paths: Vec<PathBuf>,
        format: Vec<String>,
        time: String,
        tag: String,
    ) -> Arguments {
        Arguments {
            name,
            disk,
            paths,
            format,
            time: Some(time),
            tag: vec![tag],
            stream: Vec::new(),
            snapshot: Vec::new(),
            allow_backing: false,
            freeze: false,
            clones: None,
            scratch: None,
            base: None,
            changed: Vec::new(),
            granularity: None,
            reread: None,
            full: true,
            chunker: Chunker::Auto,
            compression: Compression::default(),
            stdin_name: None,
            then_mirror: None,
            digest: Vec::new(),
        }
    }
}

/// `--chunker`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Chunker {
    /// By the partitions
    Auto,
    /// The fixed grid
    Fixed,
    /// By content
    Fastcdc,
}

/// `--digest` and `--with`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Digest {
    /// SHA-256
    Sha256,
    /// SHA-1
    Sha1,
    /// MD5
    Md5,
}

impl Digest {
    /// The library's name for it.
    pub fn kind(self) -> DigestKind {
        match self {
            Digest::Sha256 => DigestKind::Sha256,
            Digest::Sha1 => DigestKind::Sha1,
            Digest::Md5 => DigestKind::Md5,
        }
    }
}

/// Reads a compression as a user names it.
///
/// # Errors
/// What was expected.
pub fn parse_compression(text: &str) -> std::result::Result<Compression, String> {
    match text {
        "off" => Ok(Compression::Off),
        "auto" => Ok(Compression::Auto),
        _ => text
            .parse()
            .ok()
            .filter(|level| LEVELS.contains(level))
            .map(Compression::Level)
            .ok_or_else(|| "expected off, auto or a zstd level from 1 to 19".to_string()),
    }
}

/// Reads a share such as `1/30`.
fn parse_reread(text: &str) -> std::result::Result<Reread, String> {
    let parts = text.strip_prefix("1/").and_then(|parts| parts.parse().ok());
    parts.filter(|parts| *parts > 0).map(Reread::Part).ok_or_else(|| "expected 1/N".to_string())
}

/// Splits `NAME=PATH` or `KEY=VALUE` at the first `=`.
fn split_pair<'a>(text: &'a str, option: &str) -> Result<(&'a str, &'a str)> {
    text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
        let text = format!("cannot read {option} {text:?}: expected NAME=VALUE");
        Error::new(ErrorKind::Usage, text)
    })
}

fn parse_format(text: &str) -> Result<ImageFormat> {
    ImageFormat::parse(text).ok_or_else(|| {
        let expected = "expected raw, qcow2, vmdk, vhd, vhdx or ova";
        let text = format!("cannot read the format {text:?}: {expected}");
        Error::new(ErrorKind::Usage, text)
    })
}

/// Sets what `text` says for the disk that it names as `NAME=`, or for all if it names none.
fn for_disk(
    inputs: &mut [InputRequest],
    stdin_name: Option<&str>,
    text: &str,
    set: &dyn Fn(&mut InputRequest, &str) -> Result<()>,
) -> Result<()> {
    let Some((name, value)) = text.split_once('=') else {
        return inputs.iter_mut().try_for_each(|input| set(input, text));
    };
    for input in inputs {
        if input.part_name(stdin_name)? == name {
            return set(input, value);
        }
    }
    let text = format!("cannot find a disk named {} on the command line", name.escape_debug());
    Err(Error::new(ErrorKind::Usage, text))
}

fn options_of(arguments: Arguments) -> Result<BackupOptions> {
    let mut inputs = Vec::new();
    for (list, option, kind) in [
        (&arguments.disk, "--disk", InputKind::Disk),
        (&arguments.stream, "--stream", InputKind::Stream),
    ] {
        for text in list {
            let (name, path) = split_pair(text, option)?;
            let name = Some(name.to_string());
            inputs.push(InputRequest::new(name, path, Some(kind)));
        }
    }
    for path in arguments.paths {
        inputs.push(InputRequest::new(None, path, None));
    }
    let stdin_name = arguments.stdin_name;
    for input in &mut inputs {
        input.image.allows_backing = arguments.allow_backing;
        input.machine.freezes = arguments.freeze;
        input.machine.scratch.clone_from(&arguments.scratch);
        input.machine.clones.clone_from(&arguments.clones);
    }
    for text in &arguments.format {
        let set = |input: &mut InputRequest, format: &str| {
            input.image.format = Some(parse_format(format)?);
            Ok(())
        };
        for_disk(&mut inputs, stdin_name.as_deref(), text, &set)?;
    }
    for text in &arguments.snapshot {
        let set = |input: &mut InputRequest, snapshot: &str| {
            input.image.snapshot = Some(snapshot.to_string());
            Ok(())
        };
        for_disk(&mut inputs, stdin_name.as_deref(), text, &set)?;
    }
    let mut tags = Vec::new();
    for text in &arguments.tag {
        let (key, value) = split_pair(text, "--tag")?;
        tags.push((key.to_string(), value.to_string()));
    }
    Ok(BackupOptions {
        series: arguments.name,
        inputs,
        chunker: match arguments.chunker {
            Chunker::Auto => ChunkerChoice::Auto,
            Chunker::Fixed => ChunkerChoice::Fixed,
            Chunker::Fastcdc => ChunkerChoice::Content,
        },
        compression: arguments.compression,
        stdin_name,
        tags,
        time_unix_ns: arguments.time.as_deref().map(parse_time).transpose()?,
        digests: arguments.digest.into_iter().map(Digest::kind).collect(),
        host: host_name(),
        reading: match (arguments.full, arguments.reread) {
            (true, _) => Reading::Full,
            (false, reread) => Reading::ByHints(reread.unwrap_or_default()),
        },
    })
}

/// Reads the lists of what has changed, and finds the point that they are about.
fn add_hints(
    context: &Context,
    repository: &Repository,
    lists: &Lists,
    listed: Option<Vec<ObjectEntry>>,
    options: &mut BackupOptions,
) -> Result<()> {
    let Some(base) = &lists.base else { return Ok(()) };
    let address = Address::parse(base)?;
    if address.part.is_some() {
        let text = format!("cannot use {base:?} as base: expected a point without a disk");
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let base = context
        .find_point_of(repository, &address, listed)
        .map_err(|error| forgotten_base(repository, address.point, error))?;
    let stdin_name = options.stdin_name.clone();
    for text in &lists.changed {
        if !text.contains('=') && options.inputs.len() > 1 {
            let text = format!("cannot tell which disk {text} is about");
            return Err(Error::new(ErrorKind::Usage, text).hint("use --changed NAME=FILE"));
        }
        let set = |input: &mut InputRequest, file: &str| {
            if let Some(bitmap) = file.strip_prefix(BITMAP) {
                let (base, bitmap) = (base.clone(), bitmap.to_string());
                input.bitmap = Some(Arc::new(BitmapHint { base, bitmap }));
                return Ok(());
            }
            let changed = read_changes(Path::new(file), lists.granularity)?;
            let told_by = format!("change list {file}");
            let hint = Hint { base: base.clone(), changed, told_by, unfit: None };
            input.hint = Some(Arc::new(hint));
            Ok(())
        };
        for_disk(&mut options.inputs, stdin_name.as_deref(), text, &set)?;
    }
    Ok(())
}

/// Why a base cannot be found: `error`, unless it lies in the trash.
fn forgotten_base(repository: &Repository, text: &str, error: Error) -> Error {
    let prefix = text.strip_prefix("id:").unwrap_or(text).to_ascii_lowercase();
    if error.kind() != ErrorKind::NotFound || prefix.is_empty() {
        return error;
    }
    // The trash says more than the error does, if it can be read.
    let Ok((points, _)) = forgotten(repository) else { return error };
    match points.iter().find(|point| point.id.to_hex().starts_with(&prefix)) {
        None => error,
        Some(point) => {
            let short = point.id.short();
            let text = format!("cannot use point {short} as base: it was forgotten");
            Error::new(ErrorKind::NotFound, text)
                .hint(format!("`diskvault forget --undo {short}` brings it back"))
        }
    }
}

/// What `--base` and its companions say.
struct Lists {
    base: Option<String>,
    changed: Vec<String>,
    granularity: Option<u64>,
}

/// Runs `backup`.
///
/// # Errors
/// As the backup.
pub fn run(context: &Context, mut arguments: Arguments) -> Result<()> {
    let lists = Lists {
        base: arguments.base.take(),
        changed: std::mem::take(&mut arguments.changed),
        granularity: arguments.granularity,
    };
    let then_mirror = arguments.then_mirror.take();
    let mut options = options_of(arguments)?;
    crate::backup::validate(&options)?;
    if let Some(target) = &then_mirror {
        refuse_source_as_mirror(&options, target)?;
    }
    // A mirror is brought up to date by reading what was stored.
    let may_write_only = then_mirror.is_none();
    let (repository, listed) = match (&lists.base, may_write_only) {
        (Some(_), _) => context.open_and_list(may_write_only)?,
        (None, true) => (context.open_to_write()?, None),
        (None, false) => (context.open()?, None),
    };
    add_hints(context, &repository, &lists, listed, &mut options)?;
    let report = run_backup(&repository, &options, &context.pool()?, context.monitor())?;
    let printed = if context.json() { json_line(&summary(&report)) } else { print(&report) };
    let made =
        |kind, but: &str| Error::new(kind, format!("point {} was made, but {but}", report.point));
    printed.map_err(|error| made(ErrorKind::Failed, &error.full_text()))?;
    if let Some(target) = &then_mirror {
        mirror_new_point(context, &repository, &report, target).map_err(|error| {
            let hint = error.hint_text().map(str::to_owned);
            let error = made(error.kind(), &error.full_text());
            hint.into_iter().fold(error, |error, hint| error.hint(hint))
        })?;
    }
    match report.unreadable_bytes() {
        0 => Ok(()),
        bytes => {
            let but = format!("{bytes} bytes of its disks could not be read");
            let error = made(ErrorKind::Unreadable, &but);
            Err(error.hint("`diskvault show` tells which; the next backup tries them again"))
        }
    }
}

/// Refuses to mirror onto what is read.
fn refuse_source_as_mirror(options: &BackupOptions, target: &Path) -> Result<()> {
    let mut inputs = options.inputs.iter();
    if inputs.any(|input| is_same(&input.path, target)) {
        let text = format!("cannot mirror to {}: it is a source of this backup", target.display());
        return Err(Error::new(ErrorKind::Target, text));
    }
    Ok(())
}

/// Brings a mirror to the point that was just made.
fn mirror_new_point(
    context: &Context,
    repository: &Repository,
    report: &BackupReport,
    target: &Path,
) -> Result<()> {
    let points = PointSet::load(repository)?;
    let found = points.points.iter().find(|point| point.id == report.point);
    let point = found.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("cannot find point {}", report.point.short()))
    })?;
    let manner = Manner {
        mode: SparseMode::Auto,
        force: false,
        overwrites: false,
        dry_run: false,
        layout: None,
    };
    mirror(context, repository, (point, None), target, manner)
}

fn summary(report: &BackupReport) -> Value {
    let mut summary = statistics_json(&report.statistics);
    summary["message_type"] = json!("summary");
    summary["point_id"] = json!(report.point.to_hex());
    summary["series"] = json!(report.manifest.series);
    summary["time"] = json!(format_time_utc(report.manifest.time_unix_ns));
    summary["unreadable_bytes"] = json!(report.unreadable_bytes());
    summary["duration_seconds"] = json!(report.duration_seconds);
    summary
}

fn print(report: &BackupReport) -> Result<()> {
    let statistics = &report.statistics;
    let parts: Vec<String> = report.manifest.part_names().map(escape).collect();
    line(&format!(
        "point {} of {} ({})",
        report.point.short(),
        escape(&report.manifest.series),
        parts.join(", ")
    ))?;
    let rows = [
        ("virtual", statistics.virtual_bytes),
        ("allocated", statistics.allocated_bytes),
        ("read", statistics.read_bytes),
        ("holes", statistics.hole_bytes),
        ("zeros", statistics.zero_bytes),
        ("unchanged", statistics.unchanged_bytes),
        ("deduplicated", statistics.deduplicated_bytes),
        ("new", statistics.new_bytes),
        ("stored", statistics.stored_bytes),
    ];
    for (name, bytes) in rows {
        line(&format!("  {name:<13}{:>10}", format_bytes(bytes)))?;
    }
    let rate = statistics.virtual_bytes as f64 / report.duration_seconds.max(0.001);
    line(&format!(
        "  {} new chunks in {} ({}/s)",
        statistics.new_chunks,
        format_seconds(report.duration_seconds),
        format_bytes(rate as u64)
    ))
}

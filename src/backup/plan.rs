//! What every input of a backup is: its name, disk or stream, and how it is cut.
//!
//! Invariant: names are unique and fit the format before anything is read; what a name was in
//! the series' last point it stays, unless the user says otherwise.

use super::machines::is_machine;
use super::{BackupOptions, BitmapHint, Hint, MachineOptions, OpenDisk};
use crate::chunking::{Chunking, ContentParameters};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::address::LATEST;
use crate::repository::points::Point;
use crate::source::{
    DiskSource, ImageOptions, InputKind, STANDARD_INPUT, TolerantSource, default_kind, nbd,
    open_stream, partition_layout,
};
use diskvault_format::limits::{FIELDS_MAX, PARTS_MAX, TEXT_BYTES_MAX};
use diskvault_format::manifest::{validate_part_name, validate_series_name};
use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How disks are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ChunkerChoice {
    /// By the partitions: the grid if they start on 4 KiB, else by content.
    #[default]
    Auto,
    /// The fixed grid.
    Fixed,
    /// FastCDC.
    Content,
}

/// One input as the user named it.
#[derive(Clone, Debug)]
pub struct InputRequest {
    /// Its name; from the path if `None`.
    pub name: Option<String>,
    /// Where it is; `-` is standard input.
    pub path: PathBuf,
    /// Disk or stream; by size and history if `None`.
    pub kind: Option<InputKind>,
    /// How it is opened if it is a disk.
    pub image: ImageOptions,
    /// What somebody says has changed on it.
    pub hint: Option<Arc<Hint>>,
    /// The bitmap of its own that says so instead.
    pub bitmap: Option<Arc<BitmapHint>>,
    /// How it is frozen if it is a machine.
    pub machine: MachineOptions,
}

impl InputRequest {
    /// An input whose format shows by itself.
    pub fn new(
        name: Option<String>,
        path: impl Into<PathBuf>,
        kind: Option<InputKind>,
    ) -> InputRequest {
        let (image, machine) = (ImageOptions::default(), MachineOptions::default());
        InputRequest { name, path: path.into(), kind, image, hint: None, bitmap: None, machine }
    }

    /// True for `-`.
    pub fn is_standard_input(&self) -> bool {
        self.path == Path::new(STANDARD_INPUT)
    }

    /// True for what gives its bytes only once: standard input, a FIFO, a terminal.
    pub fn is_read_once(&self) -> bool {
        let is_read_once = |metadata: std::fs::Metadata| {
            let kind = metadata.file_type();
            kind.is_fifo() || kind.is_char_device() || kind.is_socket()
        };
        self.is_standard_input() || std::fs::metadata(&self.path).is_ok_and(is_read_once)
    }

    /// Its name, or what becomes of its path.
    ///
    /// # Errors
    /// `Usage` for a path without a name.
    pub fn part_name(&self, stdin_name: Option<&str>) -> Result<String> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        if self.is_standard_input() {
            return Ok(stdin_name.unwrap_or("stdin").to_string());
        }
        if nbd::is_address(&self.path) {
            return Ok(nbd::Address::parse(&self.path.to_string_lossy())?.part_name());
        }
        let name = self.path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
            let text = format!("cannot make a name from the path {:?}", self.path);
            Error::new(ErrorKind::Usage, text).hint("give one with --disk NAME=PATH")
        })?;
        Ok(name.replace(['/', ':'], "_"))
    }
}

/// An opened source.
pub enum PlannedSource {
    /// A disk.
    Disk(Arc<TolerantSource>),
    /// A stream.
    Stream(Box<dyn Read + Send>),
}

/// One part of the point to be.
pub struct PartPlan {
    /// Its name.
    pub name: String,
    /// Where its bytes come from.
    pub source: PlannedSource,
    /// How it is cut.
    pub chunking: Chunking,
    /// What somebody says has changed on it.
    pub hint: Option<Arc<Hint>>,
}

/// Checks everything that needs no file.
///
/// # Errors
/// `Usage`.
pub fn validate_request(options: &BackupOptions) -> Result<()> {
    let usage = |cause: diskvault_format::error::FormatError| {
        Error::new(ErrorKind::Usage, format!("cannot back up: {}", cause.detail))
    };
    validate_series_name(&options.series).map_err(usage)?;
    if options.series == LATEST {
        let text = "cannot back up a series named latest: the word names the newest point of all";
        return Err(Error::new(ErrorKind::Usage, text));
    }
    if options.inputs.is_empty() || options.inputs.len() > PARTS_MAX {
        let text =
            format!("cannot back up {} inputs: expected 1 to {PARTS_MAX}", options.inputs.len());
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let mut names = BTreeSet::new();
    for input in options.inputs.iter().filter(|input| !is_machine(&input.path)) {
        let name = input.part_name(options.stdin_name.as_deref())?;
        validate_part_name(&name).map_err(usage)?;
        if !names.insert(name.clone()) {
            let text = format!("cannot back up two inputs with one name: {}", name.escape_debug());
            return Err(Error::new(ErrorKind::Usage, text)
                .hint("give them names with --disk NAME=PATH or --stream NAME=PATH"));
        }
    }
    if options.inputs.iter().filter(|input| input.is_standard_input()).count() > 1 {
        return Err(Error::new(ErrorKind::Usage, "cannot read standard input twice"));
    }
    let too_long = |text: &String| text.len() > TEXT_BYTES_MAX;
    if options.tags.len() > FIELDS_MAX
        || options.tags.iter().any(|(key, value)| too_long(key) || too_long(value))
    {
        return Err(Error::new(ErrorKind::Usage, "cannot back up: too many or too long tags"));
    }
    Ok(())
}

/// An input that exists.
pub struct OpenedInput {
    name: String,
    request: InputRequest,
    default: InputKind,
}

/// Looks at every input, so that a wrong path fails before anything is stored.
///
/// # Errors
/// `Source`.
pub fn open_inputs(options: &BackupOptions) -> Result<Vec<OpenedInput>> {
    let mut opened = Vec::new();
    for request in &options.inputs {
        opened.push(OpenedInput {
            name: request.part_name(options.stdin_name.as_deref())?,
            default: default_kind(&request.path)?,
            request: request.clone(),
        });
    }
    Ok(opened)
}

/// Decides kind and cut of every part and opens it.
///
/// # Errors
/// `Source`, or `Usage` for a disk from a pipe.
pub fn decide(
    repository: &Repository,
    options: &BackupOptions,
    open: OpenDisk<'_>,
    inputs: Vec<OpenedInput>,
    parent: Option<&Point>,
    monitor: &dyn Monitor,
) -> Result<Vec<PartPlan>> {
    let mut parts = Vec::new();
    for input in inputs {
        let kind = input.request.kind.or_else(|| kind_before(parent, &input.name));
        let kind = kind.unwrap_or(input.default);
        let path = &input.request.path;
        let part = match kind {
            InputKind::Stream => PartPlan {
                source: PlannedSource::Stream(match &input.request.image.window {
                    Some(window) => window.open_stream(path)?,
                    None => open_stream(path)?,
                }),
                chunking: Chunking::Content(ContentParameters::default()),
                name: input.name,
                hint: None,
            },
            InputKind::Disk => {
                if input.request.is_standard_input() {
                    let text = "cannot read a disk from standard input: it has no size";
                    return Err(Error::new(ErrorKind::Usage, text).hint("use --stream"));
                }
                let disk: Arc<dyn DiskSource> = Arc::from(open(&input.request)?);
                // The look at the partitions is none at what gets stored.
                let looked_at = TolerantSource::new(disk.clone());
                let chunk_bytes = repository.config().chunk_bytes;
                let (chunking, why) = cut_disk(options.chunker, &looked_at, chunk_bytes)?;
                let source = Arc::new(TolerantSource::new(disk));
                let hint = match &input.request.bitmap {
                    Some(bitmap) => Some(Arc::new(bitmap.ask(source.as_ref())?)),
                    None => input.request.hint,
                };
                monitor.note(&format!("disk {}: {why}", input.name.escape_debug()));
                warn_of_machine(source.as_ref(), monitor);
                let is_new = kind_before(parent, &input.name).is_none();
                tell_of_luks(&looked_at, &input.name, is_new, monitor);
                PartPlan { source: PlannedSource::Disk(source), chunking, name: input.name, hint }
            }
        };
        parts.push(part);
    }
    Ok(parts)
}

/// A file that changes while it is read gives bytes of many instants.
fn warn_of_machine(disk: &dyn DiskSource, monitor: &dyn Monitor) {
    if let Some(file) = disk.written_by_machine() {
        monitor.warn(&format!(
            "disk {file} is being written to by a running machine; the point may hold no single \
             instant: back up the machine by qemu:SOCKET or libvirt:DOMAIN, or a snapshot"
        ));
    }
}

/// What a disk of LUKS begins with, also with those of QEMU.
const LUKS: [u8; 6] = *b"LUKS\xba\xbe";

/// An encrypted disk is worth a word once: its unused space is stored as well, and nothing of it twice.
fn tell_of_luks(disk: &dyn DiskSource, name: &str, is_new: bool, monitor: &dyn Monitor) {
    let mut start = [0; LUKS.len()];
    // What cannot be read is told when all of it is.
    let is_luks =
        disk.size() >= LUKS.len() as u64 && disk.read_at(0, &mut start).is_ok() && start == LUKS;
    let text = format!("disk {} is encrypted by LUKS; it is stored as it is", name.escape_debug());
    match (is_luks, is_new) {
        (true, true) => monitor.warn(&text),
        (true, false) => monitor.note(&text),
        (false, _) => {}
    }
}

fn kind_before(parent: Option<&Point>, name: &str) -> Option<InputKind> {
    let manifest = &parent?.manifest;
    if manifest.disks.iter().any(|disk| disk.name == name) {
        return Some(InputKind::Disk);
    }
    manifest.streams.iter().any(|stream| stream.name == name).then_some(InputKind::Stream)
}

fn cut_disk(
    choice: ChunkerChoice,
    source: &dyn DiskSource,
    chunk_bytes: u32,
) -> Result<(Chunking, String)> {
    let fixed = Chunking::Fixed { chunk_bytes };
    let content = Chunking::Content(ContentParameters::default());
    let grid = format!("cut on the fixed grid of {} KiB", chunk_bytes >> 10);
    Ok(match choice {
        ChunkerChoice::Fixed => (fixed, format!("{grid}, as asked for")),
        ChunkerChoice::Content => (content, "cut by FastCDC, as asked for".into()),
        ChunkerChoice::Auto => {
            let layout = partition_layout(source)?;
            let (table, count) = (layout.table, layout.partitions);
            if layout.misaligned > 0 {
                let bad = layout.misaligned;
                let why = format!("{table} with {bad} of {count} partitions off 4 KiB");
                (content, format!("{why}: cut by FastCDC"))
            } else if count == 0 {
                (fixed, format!("no partitions: {grid}"))
            } else {
                let noun = if count == 1 { "partition" } else { "partitions" };
                (fixed, format!("{table} with {count} {noun} on 4 KiB: {grid}"))
            }
        }
    })
}

//! `ls`: the partitions of a disk, or the files in a file system on it.

use super::context::Context;
use super::files::{DiskOptions, OpenDisk, describe, json_name, long_line, path_of, tell};
use super::output::{Lines, escape, ignore_broken_pipe, json_line, table};
use super::sizes::format_bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{DiskContent, Go, Kind, Name, Place, Resolved, Step, Volume, resolve, walk};
use crate::monitor::Monitor;
use serde_json::json;
use std::ffi::OsString;

/// Options of `ls`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    disk: DiskOptions,
    /// A file or folder there; the root folder by default
    path: Option<OsString>,
    /// List everything below, too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// List the partitions, also of a disk with one file system
    #[arg(long, conflicts_with_all = ["path", "recursive"])]
    partitions: bool,
}

/// Runs `ls`.
///
/// # Errors
/// `NotFound`; `Damage` if a folder could not be read in whole.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let disk = OpenDisk::open(context, &arguments.disk)?;
    let is_general = disk.partition.is_none() && arguments.path.is_none() && !arguments.recursive;
    // With several, one that cannot be chosen is no mistake of who did not try to.
    let is_ambiguous = || disk.content.choose(None).is_err();
    if arguments.partitions || is_general && is_ambiguous() {
        return ignore_broken_pipe(list_places(context, &disk.content));
    }
    let volume = disk.volume()?;
    let start = resolve(&volume, &path_of(arguments.path.as_deref()))?;
    let mut trouble = None;
    ignore_broken_pipe(list(context, &volume, &start, arguments.recursive, &mut trouble))?;
    match trouble {
        None => Ok(()),
        Some(kind) => Err(Error::new(kind, format!("cannot list all of {}", start.path))),
    }
}

fn list(
    context: &Context,
    volume: &Volume,
    start: &Resolved<'_>,
    is_recursive: bool,
    trouble: &mut Option<ErrorKind>,
) -> Result<()> {
    let mut lines = Lines::new();
    let is_folder = start.entry.facts.kind == Kind::Folder;
    walk(volume, start, &mut |at, step| {
        context.monitor().check_cancelled()?;
        match step {
            // A folder that is named is shown by what is in it.
            Step::Entry(entry) if !at.names.is_empty() || !is_folder => {
                let name = match at.names {
                    [] => start.entry.name.clone(),
                    names => names.iter().fold(Name(Vec::new()), |path, name| path.join(name)),
                };
                lines.line(&if context.json() {
                    describe(volume, at.path, entry).to_string()
                } else {
                    long_line(volume, at.path, &name, entry)
                })?;
                if !is_recursive {
                    return Ok(Go::Past);
                }
            }
            Step::Entry(_) | Step::Leave(_) => {}
            Step::Trouble(error) => {
                tell(context, &error, trouble);
            }
        }
        Ok(Go::In)
    })?;
    lines.finish()
}

fn list_places(context: &Context, content: &DiskContent) -> Result<()> {
    if context.json() {
        for place in &content.places {
            json_line(&describe_place(content, place))?;
        }
        return Ok(());
    }
    let heading = ["PARTITION", "START", "SIZE", "TYPE", "FILE SYSTEM", "LABEL", "NAME"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for place in &content.places {
        rows.push(vec![
            place.number.map_or_else(|| "-".to_string(), |number| number.to_string()),
            place.start.to_string(),
            format_bytes(place.bytes),
            place.partition_type.clone(),
            place.file_system.unwrap_or("unknown").to_string(),
            place.label.to_string(),
            escape(&place.partition_name),
        ]);
    }
    table(&rows)
}

fn describe_place(content: &DiskContent, place: &Place) -> serde_json::Value {
    let (label, label_bytes) = json_name(&place.label);
    json!({
        "message_type": "partition",
        "table": content.table,
        "number": place.number,
        "start": place.start,
        "bytes": place.bytes,
        "type": place.partition_type,
        "name": place.partition_name,
        "file_system": place.file_system,
        "label": label,
        "label_bytes": label_bytes,
    })
}

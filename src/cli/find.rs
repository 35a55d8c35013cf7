//! `find`: files of a disk by name and kind.

use super::context::Context;
use super::files::{DiskOptions, OpenDisk, describe, path_of, tell};
use super::output::{Lines, ignore_broken_pipe};
use crate::error::{Error, ErrorKind, Result};
use crate::files::{Find, Glob, Kind, Resolved, Volume, resolve};
use crate::monitor::Monitor;
use clap::ValueEnum;
use std::ffi::OsString;

/// Options of `find`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    disk: DiskOptions,
    /// The folder to begin at; the root folder by default
    path: Option<OsString>,
    /// Only names that fit this pattern: `*.conf`, `[a-z]?`
    #[arg(long, value_name = "GLOB")]
    name: Option<String>,
    /// Take large and small letters of the pattern for the same
    #[arg(long, requires = "name")]
    ignore_case: bool,
    /// Only files, directories or links
    #[arg(long = "type", value_name = "TYPE", value_enum)]
    kind: Option<Wanted>,
}

/// `--type`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Wanted {
    /// Files
    #[value(name = "f")]
    File,
    /// Directories
    #[value(name = "d")]
    Folder,
    /// Symbolic links
    #[value(name = "l")]
    Link,
}

/// Runs `find`.
///
/// # Errors
/// `NotFound`; `Damage` if a folder could not be read in whole.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let glob = arguments.name.as_deref().map(|name| Glob::parse(name, arguments.ignore_case));
    let kind = arguments.kind.map(|kind| match kind {
        Wanted::File => Kind::File,
        Wanted::Folder => Kind::Folder,
        Wanted::Link => Kind::Link,
    });
    let wanted = Find { name: glob.transpose()?, kind };
    let disk = OpenDisk::open(context, &arguments.disk)?;
    let volume = disk.volume()?;
    let start = resolve(&volume, &path_of(arguments.path.as_deref()))?;
    let mut trouble = None;
    ignore_broken_pipe(find(context, &volume, &start, &wanted, &mut trouble))?;
    match trouble {
        None => Ok(()),
        Some(kind) => Err(Error::new(kind, format!("cannot look into all of {}", start.path))),
    }
}

fn find(
    context: &Context,
    volume: &Volume,
    start: &Resolved<'_>,
    wanted: &Find,
    trouble: &mut Option<ErrorKind>,
) -> Result<()> {
    let mut lines = Lines::new();
    crate::files::find(
        volume,
        start,
        wanted,
        &mut |path, entry| {
            context.monitor().check_cancelled()?;
            lines.line(&if context.json() {
                describe(volume, path, entry).to_string()
            } else {
                path.to_string()
            })
        },
        &mut |error| {
            tell(context, &error, trouble);
            Ok(())
        },
    )?;
    lines.finish()
}

//! `adopt`: an old image, mirror or dump becomes the first point of a series, so that the first
//! backup over a slow line sends only what differs from it.

use super::backup;
use super::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::address::format_time_utc;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Tag of an adopted point: what it was made of.
const ADOPTED_TAG: &str = "adopted";

/// Options of `adopt`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The series whose first backup will find it
    #[arg(long, value_name = "SERIES")]
    name: String,
    /// An image, and the name that its disk has in the backups to come
    #[arg(long, value_name = "NAME=PATH")]
    disk: Vec<String>,
    /// Images of one machine, by the names that their disks will have
    #[arg(value_name = "PATH", required_unless_present = "disk")]
    paths: Vec<PathBuf>,
    /// Format of an image: raw, qcow2, vmdk, vhd, vhdx or ova; by its name and some bytes by default
    #[arg(long, value_name = "[NAME=]FORMAT")]
    format: Vec<String>,
    /// The time that it shows; when the newest of the images was last written by default
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    time: Option<String>,
}

/// Runs `adopt`.
///
/// # Errors
/// `Source` for an image that is not there; as `backup`.
pub fn run(context: &Context, arguments: Arguments) -> Result<()> {
    let named = arguments.disk.iter().filter_map(|text| text.split_once('='));
    let images: Vec<&Path> = named
        .map(|(_, path)| Path::new(path))
        .chain(arguments.paths.iter().map(PathBuf::as_path))
        .collect();
    let time = match &arguments.time {
        Some(time) => time.clone(),
        None => {
            let times: Result<Vec<i64>> = images.iter().map(|path| written_unix_ns(path)).collect();
            format_time_utc(times?.into_iter().max().unwrap_or_default())
        }
    };
    let what = images.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ");
    let tag = format!("{ADOPTED_TAG}={what}");
    let Arguments { name, disk, paths, format, .. } = arguments;
    backup::run(context, backup::Arguments::of_images(name, disk, paths, format, time, tag))
}

/// When a file was last written, in nanoseconds since 1970.
fn written_unix_ns(path: &Path) -> Result<i64> {
    let cannot = |cause| {
        let text = format!("cannot adopt {}", path.display());
        Error::io(ErrorKind::Source, text, cause)
    };
    let written = std::fs::metadata(path).and_then(|found| found.modified()).map_err(cannot)?;
    let since = written.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

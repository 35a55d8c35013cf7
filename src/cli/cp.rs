//! `cp`: files and folders of a disk onto this system, or as a tar to standard output.

use super::context::Context;
use super::files::{DiskOptions, OpenDisk, path_of};
use super::output::{cannot_write, json_line, line, refuse_closed_output};
use super::sizes::format_bytes;
use crate::error::Result;
use crate::files::{CopyOptions, CopyReport, archive, copy_out, resolve};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter};
use std::os::fd::AsFd;
use std::path::PathBuf;

/// Options of `cp`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    disk: DiskOptions,
    /// The file or folder there
    path: OsString,
    /// An existing folder, a new name, or - for a tar to standard output
    target: PathBuf,
    /// Overwrite files that are there
    #[arg(long)]
    force: bool,
    /// Take over owners and set-id bits, too; for root
    #[arg(long)]
    owner: bool,
}

/// Runs `cp`.
///
/// # Errors
/// `NotFound`, `Target`, `NoSpace`; `Damage` or another kind if some files could not be copied.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let is_archive = arguments.target.as_os_str() == "-";
    if is_archive {
        refuse_closed_output()?;
    }
    let disk = OpenDisk::open(context, &arguments.disk)?;
    let volume = disk.volume()?;
    let start = resolve(&volume, &path_of(Some(&arguments.path)))?;
    let monitor = context.monitor();
    if is_archive {
        // Past the buffer of the standard library, which looks for line ends.
        let descriptor = io::stdout().as_fd().try_clone_to_owned().map_err(cannot_write)?;
        let mut output = BufWriter::with_capacity(1 << 20, File::from(descriptor));
        return archive(&volume, &start, &mut output, monitor)?.result(monitor);
    }
    let options = CopyOptions { overwrites: arguments.force, keeps_owners: arguments.owner };
    let report = copy_out(&volume, &start, &arguments.target, options, monitor)?;
    print(context, &report)?;
    report.result(monitor)
}

fn print(context: &Context, report: &CopyReport) -> Result<()> {
    if context.json() {
        return json_line(&serde_json::json!({
            "message_type": "summary",
            "files": report.files,
            "folders": report.folders,
            "links": report.links,
            "bytes": report.bytes,
            "skipped": report.skipped,
            "left_out_streams": report.left_out_streams,
            "failed": report.failed,
        }));
    }
    let CopyReport { files, folders, links, bytes, .. } = report;
    let bytes = format_bytes(*bytes);
    line(&format!("copied {files} files ({bytes}), {folders} folders and {links} links"))
}

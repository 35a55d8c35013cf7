//! `export-delta` and `apply`: the difference between two points as a file, over a slow line or by
//! hand.

use super::context::Context;
use super::output::{escape, json_line, line};
use super::password;
use super::sizes::format_bytes;
use crate::delta::apply::{Applied, Apply, is_sealed};
use crate::delta::make::{Make, make};
use crate::digest::Digester;
use crate::environment::SystemEnvironment;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::address::Address;
use crate::repository::points::Point;
use crate::restore::{Part, part_of};
use crate::target::stream_target;
use diskvault_format::delta::Description;
use diskvault_format::manifest::DiskRecord;
use serde_json::json;
use std::path::PathBuf;

/// Options of `export-delta`.
#[derive(clap::Args, Debug)]
pub struct ExportArguments {
    /// The point and disk before, which the far side has
    #[arg(value_name = "POINT[/DISK]")]
    old: String,
    /// The point and disk after
    #[arg(value_name = "POINT[/DISK]")]
    new: String,
    /// The file to write
    file: PathBuf,
    /// File whose first line is a password to seal it with
    #[arg(long, value_name = "FILE")]
    delta_password_file: Option<PathBuf>,
    /// Do not seal it: whoever has the file can read what is in it
    #[arg(long, conflicts_with = "delta_password_file")]
    plain: bool,
    /// Overwrite the file if it is there
    #[arg(long)]
    force: bool,
}

/// Options of `apply`.
#[derive(clap::Args, Debug)]
pub struct ApplyArguments {
    /// The file that `export-delta` wrote
    file: PathBuf,
    /// The disk before, a raw file or a block device; it becomes the disk after
    base: PathBuf,
    /// File whose first line is the password that the file is sealed with
    #[arg(long, value_name = "FILE")]
    delta_password_file: Option<PathBuf>,
    /// Write to a device that is in use
    #[arg(long)]
    force: bool,
}

/// Runs `export-delta`.
///
/// # Errors
/// As finding the points; `Damage`, `Target`, `AlreadyExists`.
pub fn export(context: &Context, arguments: &ExportArguments) -> Result<()> {
    let repository = context.open()?;
    let (old, new) = (Address::parse(&arguments.old)?, Address::parse(&arguments.new)?);
    let old_point = context.find_point(&repository, &old, None)?;
    let new_point = context.find_point(&repository, &new, None)?;
    let (old_disk, new_disk) = (disk_of(&old_point, old.part)?, disk_of(&new_point, new.part)?);
    let monitor = context.monitor();
    let passphrase = match arguments.plain {
        true => None,
        false => Some(password::new_of_delta(arguments.delta_password_file.as_deref(), monitor)?),
    };
    let mut target = stream_target(&arguments.file, arguments.force)?;
    let vault = context.vault(repository)?;
    let pool = context.pool()?;
    let digest = |disk: &DiskRecord| -> Result<[u8; 32]> {
        let fetcher = context.fetcher(vault.repository(), vault.locator());
        let value = Digester { fetcher, pool: &pool }.compute(Part::Disk(disk), None)?;
        <[u8; 32]>::try_from(value).map_err(|_| {
            Error::new(ErrorKind::Failed, format!("cannot compute the digest of {}", disk.name))
        })
    };
    let description = Description {
        old_point: old_point.id.to_hex(),
        new_point: new_point.id.to_hex(),
        disk: new_disk.name.clone(),
        old_bytes: old_disk.size,
        new_bytes: new_disk.size,
        old_digest: digest(old_disk)?,
        new_digest: digest(new_disk)?,
    };
    monitor.start("writing the delta", None);
    let from = Make {
        vault: &vault,
        old: old_disk,
        new: new_disk,
        description,
        passphrase: passphrase.as_ref(),
        environment: &SystemEnvironment,
        monitor,
    };
    let report = make(&from, &mut target)?;
    target.finish()?;
    monitor.finish();
    let path = arguments.file.display().to_string();
    if context.json() {
        return json_line(&json!({
            "message_type": "summary",
            "path": path,
            "sealed": !arguments.plain,
            "old_point_id": old_point.id.to_hex(),
            "new_point_id": new_point.id.to_hex(),
            "name": new_disk.name,
            "changes": report.changes,
            "changed_bytes": report.changed_bytes,
            "file_bytes": report.file_bytes,
        }));
    }
    line(&format!(
        "{} makes {} of point {} of that of point {}: {} in {} ranges, a file of {}",
        escape(&path),
        escape(&new_disk.name),
        new_point.id.short(),
        old_point.id.short(),
        format_bytes(report.changed_bytes),
        report.changes,
        format_bytes(report.file_bytes),
    ))
}

fn disk_of<'a>(point: &'a Point, name: Option<&str>) -> Result<&'a DiskRecord> {
    match part_of(point, name)? {
        Part::Disk(disk) => Ok(disk),
        Part::Stream(stream) => {
            let name = stream.name.escape_debug();
            Err(Error::new(ErrorKind::Usage, format!("cannot export {name}: it is no disk")))
        }
    }
}

/// Runs `apply`, for which there need be no repository.
///
/// # Errors
/// As [`Apply::run`].
pub fn apply(context: &Context, arguments: &ApplyArguments) -> Result<()> {
    let monitor = context.monitor();
    let passphrase = match is_sealed(&arguments.file)? {
        true => Some(password::of_delta(arguments.delta_password_file.as_deref(), monitor)?),
        false => None,
    };
    let pool = context.pool()?;
    let journal = context.cache()?.join("deltas");
    let apply = Apply {
        file: &arguments.file,
        passphrase: passphrase.as_ref(),
        base: &arguments.base,
        force: arguments.force,
        journal: &journal,
        pool: &pool,
        monitor,
    };
    let (description, applied) = apply.run()?;
    let path = arguments.base.display().to_string();
    let (is_done, was_begun, written) = match applied {
        Applied::AlreadyThere => (false, false, 0),
        Applied::Done { was_begun, written_bytes } => (true, was_begun, written_bytes),
    };
    if context.json() {
        return json_line(&json!({
            "message_type": "summary",
            "path": path,
            "point_id": description.new_point,
            "name": description.disk,
            "already_there": !is_done,
            "was_begun": was_begun,
            "written_bytes": written,
            "bytes": description.new_bytes,
        }));
    }
    let short: String = description.new_point.chars().take(8).collect();
    let (path, disk) = (escape(&path), escape(&description.disk));
    let point = escape(&short);
    match applied {
        Applied::AlreadyThere => line(&format!("{path} is {disk} of point {point} already")),
        Applied::Done { .. } => {
            let begun = if was_begun { "; a run before had begun it" } else { "" };
            let written = format_bytes(written);
            line(&format!("{path} is {disk} of point {point}: written {written}{begun}"))
        }
    }
}

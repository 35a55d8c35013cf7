//! `mount`: the disks of all points as files, until unmounted or told to stop.

use super::context::Context;
use super::output::{escape, json_line, line};
use crate::error::Result;
use crate::monitor::Monitor;
use crate::mount::{End, Mount, MountOptions, Restriction};
use crate::repository::address::Address;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

/// How soon a signal, or an unmount by somebody else, is noticed.
const NOTICED_AFTER: Duration = Duration::from_millis(50);

/// Options of `mount`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// An empty folder
    mountpoint: PathBuf,
    /// Only the points of this series
    #[arg(long, value_name = "SERIES")]
    series: Option<String>,
    /// Only this point
    #[arg(long, value_name = "POINT", conflicts_with = "series")]
    point: Option<String>,
    /// Let other users read, too
    #[arg(long)]
    allow_other: bool,
}

/// Runs `mount`.
///
/// # Errors
/// `Target` for a folder that is no empty one; `Failed` where FUSE cannot be used.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let repository = context.open()?;
    let restriction = match (&arguments.series, &arguments.point) {
        (Some(series), _) => Restriction::Series(series.clone()),
        (None, Some(point)) => {
            let address = Address { point, part: None };
            Restriction::Point(context.find_point(&repository, &address, None)?.id)
        }
        (None, None) => Restriction::None,
    };
    let options = MountOptions {
        restriction,
        allows_other: arguments.allow_other,
        threads: context.threads().clamp(2, 8),
    };
    let vault = context.vault(repository.clone())?;
    let path = &arguments.mountpoint;
    let mount = Mount::new(repository, vault, path, options, context.shared_monitor())?;
    say_ready(context, arguments)?;
    while !context.monitor().is_cancelled() && !mount.is_over() {
        std::thread::sleep(NOTICED_AFTER);
    }
    if mount.end()? == End::Detached {
        let path = path.display();
        let text = format!("{path} was in use: what is open there cannot be read any more");
        context.monitor().warn(&text);
    }
    Ok(())
}

fn say_ready(context: &Context, arguments: &Arguments) -> Result<()> {
    let path = arguments.mountpoint.display().to_string();
    if context.json() {
        return json_line(&json!({"message_type": "mounted", "path": path}));
    }
    if context.quiet() {
        return Ok(());
    }
    line(&format!("mounted on {}; Ctrl-C or `umount` ends it", escape(&path)))
}

//! `dump`: one disk or stream to standard output.

use super::context::Context;
use super::output::{cannot_write, refuse_closed_output};
use super::write_behind::WriteBehind;
use crate::error::Result;
use crate::monitor::Monitor;
use crate::repository::address::Address;
use crate::repository::locate::Locator;
use crate::restore::sequential::read_part;
use crate::restore::{find_part, only_part};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

/// Options of `dump`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The point and its disk or stream: SERIES, SERIES@latest~1/DISK, ID/DISK
    #[arg(value_name = "POINT[/DISK]")]
    point: String,
    /// The newest point not later than this time; POINT is then a series
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    at: Option<String>,
}

/// Runs `dump`.
///
/// # Errors
/// `Damage`, or `Failed` if nobody reads to the end.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    refuse_closed_output()?;
    let repository = context.open()?;
    let address = Address::parse(&arguments.point)?;
    let point = context.find_point(&repository, &address, arguments.at.as_deref())?;
    let part = match address.part {
        Some(name) => find_part(&point, name)?,
        None => only_part(&point)?,
    };
    part.warn_of_bad_extents(context.monitor());
    let locator = Locator::open_for_reading(&repository, context.monitor())?;
    let fetcher = context.fetcher(&repository, &locator);
    context.monitor().start(&format!("dumping {}", part.name()), Some(part.bytes()));
    // Past the buffer of the standard library, which looks for line ends.
    let descriptor = io::stdout().as_fd().try_clone_to_owned().map_err(cannot_write)?;
    let mut output = WriteBehind::start(Box::new(File::from(descriptor)), context.monitor());
    read_part(&fetcher, part, &mut output)?;
    output.finish()?;
    context.monitor().finish();
    Ok(())
}

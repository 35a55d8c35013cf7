//! `dump`: one disk or stream to standard output.

use super::context::Context;
use super::output::{cannot_write, refuse_closed_output};
use super::sizes::parse_bytes;
use super::write_behind::WriteBehind;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::address::Address;
use crate::repository::locate::Locator;
use crate::restore::sequential::read_range;
use crate::restore::{Part, part_of};
use std::fs::File;
use std::io;
use std::ops::Range;
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
    /// Where to begin
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "0")]
    offset: u64,
    /// How much; up to the end by default
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    length: Option<u64>,
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
    let part = part_of(&point, address.part)?;
    let range = range_of(part, arguments)?;
    part.warn_of_bad_extents(context.monitor());
    let locator = Locator::open_for_reading(&repository, context.monitor())?;
    let fetcher = context.fetcher(&repository, &locator);
    context.monitor().start(&format!("dumping {}", part.name()), Some(range.end - range.start));
    // Past the buffer of the standard library, which looks for line ends.
    let descriptor = io::stdout().as_fd().try_clone_to_owned().map_err(cannot_write)?;
    let mut output = WriteBehind::start(Box::new(File::from(descriptor)), context.monitor());
    read_range(&fetcher, part, range, &mut output)?;
    output.finish()?;
    context.monitor().finish();
    Ok(())
}

/// What is asked for, which has to lie within the part.
fn range_of(part: Part<'_>, arguments: &Arguments) -> Result<Range<u64>> {
    let (start, size) = (arguments.offset, part.bytes());
    let end = arguments.length.map_or(Some(size.max(start)), |bytes| start.checked_add(bytes));
    match end {
        Some(end) if end <= size => Ok(start..end),
        _ => {
            let name = part.name().escape_debug();
            let bytes = arguments.length.map_or(String::new(), |bytes| format!("{bytes} bytes "));
            let text =
                format!("cannot dump {bytes}from offset {start} of {name}: it has {size} bytes");
            Err(Error::new(ErrorKind::Usage, text))
        }
    }
}

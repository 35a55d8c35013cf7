//! `digest`: the digest of a whole disk or stream.

use super::backup::Digest;
use super::context::Context;
use super::output::{escape, ignore_broken_pipe, json_line, line};
use super::sizes::format_bytes;
use super::terminal::ask;
use crate::digest::{Cost, Digester};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::address::Address;
use crate::repository::locate::Locator;
use crate::restore::part_of;
use diskvault_format::id::to_hex;
use serde_json::json;
use std::io::IsTerminal;

/// Work above which a confirmation is asked: half a minute of zeros on one core.
const CONFIRM_BYTES: u64 = 256 << 30;

/// Options of `digest`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The point and its disk or stream
    #[arg(value_name = "POINT/DISK")]
    point: String,
    /// Another digest than BLAKE3; unless it was computed at backup, all data is read
    #[arg(long, value_enum, value_name = "KIND")]
    with: Option<Digest>,
    /// Do not ask, even above 256 GiB of zeros or data
    #[arg(long)]
    yes: bool,
}

/// Runs `digest`.
///
/// # Errors
/// `Usage` if a confirmation is needed and cannot be asked, `Damage`.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let repository = context.open()?;
    let address = Address::parse(&arguments.point)?;
    let point = context.find_point(&repository, &address, None)?;
    let part = part_of(&point, address.part)?;
    let locator = Locator::open_for_reading(&repository, context.monitor())?;
    let pool = context.pool()?;
    let fetcher = context.fetcher(&repository, &locator);
    let digester = Digester { fetcher, pool: &pool };
    let kind = arguments.with.map(Digest::kind);
    let cost = digester.cost(part, kind)?;
    confirm(cost, arguments.yes, context.monitor())?;
    if let Cost::Zeros(bytes) = cost {
        context.monitor().start("hashing zeros", Some(bytes));
    }
    let value = digester.compute(part, kind)?;
    context.monitor().finish();
    let name = kind.map_or("blake3", |kind| kind.name());
    ignore_broken_pipe(if context.json() {
        json_line(&json!({
            "message_type": "digest",
            "algorithm": name,
            "digest": to_hex(&value),
            "point_id": point.id.to_hex(),
            "name": part.name(),
            "bytes": part.bytes(),
        }))
    } else {
        line(&format!("{}  {}/{}", to_hex(&value), point.id.short(), escape(part.name())))
    })
}

fn confirm(cost: Cost, yes: bool, monitor: &dyn Monitor) -> Result<()> {
    let (bytes, what) = match cost {
        Cost::Nothing => return Ok(()),
        Cost::Zeros(bytes) => (bytes, "zeros"),
        Cost::Data(bytes) => (bytes, "data"),
    };
    if bytes <= CONFIRM_BYTES || yes {
        return Ok(());
    }
    let amount = format!("{} of {what} ({bytes} bytes) have to be hashed", format_bytes(bytes));
    if !std::io::stdin().is_terminal() {
        let text = format!("cannot compute the digest unasked: {amount}");
        return Err(Error::new(ErrorKind::Usage, text).hint("use --yes"));
    }
    // No answer is no.
    let answer = ask(&format!("{amount}; go on? [y/N] "), monitor)?.unwrap_or_default();
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Error::new(ErrorKind::Cancelled, "the digest was not wanted")),
    }
}

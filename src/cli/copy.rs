//! `copy`: points from another repository into this one.

use super::backup::parse_compression;
use super::context::{Context, FromOptions, host_name};
use super::output::{escape, json_line, line};
use super::sizes::{format_bytes, format_seconds};
use crate::copy::{Copier, Outcome, Planned, plan};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::address::{Address, format_time_utc};
use crate::repository::compression::Compression;
use crate::repository::points::{Point, PointSet};
use diskvault_format::id::PointId;
use diskvault_format::manifest::Statistics;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Instant;

/// Options of `copy`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    from: FromOptions,
    /// Only these points of the source; all by default
    #[arg(value_name = "POINT")]
    points: Vec<String>,
    /// Only points of this series; may be repeated
    #[arg(long, value_name = "SERIES", conflicts_with = "points")]
    series: Vec<String>,
    /// zstd level from 1 to 19, `off`, or `auto`: as high as the storage leaves time for
    #[arg(long, value_name = "LEVEL", default_value = "3", value_parser = parse_compression)]
    compression: Compression,
    /// Say what would be copied, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// What was done.
#[derive(Default)]
struct Done {
    copied: u64,
    present: u64,
    sum: Statistics,
    failures: Vec<Error>,
}

/// Runs `copy`.
///
/// # Errors
/// As opening the two, which say which of them failed; as finding the points; `Damage` if some
/// points could not be read, after all others were copied; as the backup of their bytes.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let began = Instant::now();
    let source = context
        .open_source(&arguments.from)
        .map_err(|error| name(error, "cannot open the source repository"))?;
    let target =
        context.open().map_err(|error| name(error, "cannot open the target repository"))?;
    let (ids, damaged) = find(context, &source, arguments)?;
    let wanted = |point: &Point| ids.as_ref().is_none_or(|ids| ids.contains(&point.id));
    let planned = plan(&source, &target, &wanted)?;
    if arguments.dry_run {
        return print_plan(context, &planned);
    }
    let (host, pool) = (host_name(), context.pool()?);
    let copier = Copier {
        source: &source,
        target: &target,
        compression: arguments.compression,
        host: &host,
        pool: &pool,
        monitor: context.monitor(),
    };
    let mut done = Done { failures: damaged, ..Done::default() };
    copier.run(&planned, &mut |point, outcome| tell(context, point, outcome, &mut done))?;
    finish(context, done, began.elapsed().as_secs_f64())
}

/// Says which repository an error is about. The hint of a missing one would make a new one.
fn name(error: Error, what: &str) -> Error {
    let kind = error.kind();
    let named = Error::new(kind, format!("{what}: {}", error.full_text()));
    match error.hint_text().filter(|_| kind != ErrorKind::NoRepository) {
        Some(hint) => named.hint(hint),
        None => named,
    }
}

/// The wanted points of the source, `None` for all; and why others cannot be.
fn find(
    context: &Context,
    source: &Repository,
    arguments: &Arguments,
) -> Result<(Option<BTreeSet<PointId>>, Vec<Error>)> {
    let mut ids = BTreeSet::new();
    for text in &arguments.points {
        let address = Address::parse(text)?;
        if address.part.is_some() {
            let text = format!("cannot copy {text:?}: points are copied as a whole");
            return Err(Error::new(ErrorKind::Usage, text).hint("name the point without its disk"));
        }
        ids.insert(context.find_point(source, &address, None)?.id);
    }
    if !arguments.points.is_empty() {
        return Ok((Some(ids), Vec::new()));
    }
    let mut points = PointSet::load(source)?;
    // What is gone or damaged cannot be copied, and nobody would miss it in the target.
    for doubt in points.warnings(source)? {
        context.monitor().warn(&doubt);
    }
    // Of which series they are nobody knows.
    let damaged = std::mem::take(&mut points.damaged).into_iter().map(|(_, error)| error).collect();
    if arguments.series.is_empty() {
        return Ok((None, damaged));
    }
    for series in &arguments.series {
        if points.latest(series).is_none() {
            let text =
                format!("cannot find a series named {} in the source", series.escape_debug());
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        ids.extend(points.series(series).map(|point| point.id));
    }
    Ok((Some(ids), damaged))
}

fn print_plan(context: &Context, planned: &[Planned]) -> Result<()> {
    let mut left = 0;
    for Planned { point, copied } in planned {
        let bytes = point.manifest.statistics().virtual_bytes;
        left += u64::from(copied.is_none());
        if context.json() {
            json_line(&json!({
                "message_type": "plan",
                "action": if copied.is_some() { "skip" } else { "copy" },
                "source_point_id": point.id.to_hex(),
                "point_id": copied.map(|id| id.to_hex()),
                "series": point.manifest.series,
                "time": format_time_utc(point.manifest.time_unix_ns),
                "virtual_bytes": bytes,
            }))?;
            continue;
        }
        let (id, series) = (point.id.short(), escape(&point.manifest.series));
        line(&match copied {
            Some(copied) => format!("skip {id} of {series}: it is there as {}", copied.short()),
            None => format!("copy {id} of {series}, {}", format_bytes(bytes)),
        })?;
    }
    let present = planned.len() as u64 - left;
    if context.json() {
        return json_line(&json!({
            "message_type": "summary",
            "dry_run": true,
            "to_copy": left,
            "present": present,
        }));
    }
    line(&format!("would copy {left} points; {present} are there already"))
}

fn tell(context: &Context, point: &Point, outcome: &Outcome, done: &mut Done) -> Result<()> {
    let (id, series) = (point.id.short(), escape(&point.manifest.series));
    let (value, text) = match outcome {
        Outcome::Copied { point: copied, statistics } => {
            done.copied += 1;
            done.sum.add(statistics);
            let mut value = statistics_json(statistics);
            value["message_type"] = json!("copied");
            value["point_id"] = json!(copied.to_hex());
            let (new, stored) = (statistics.new_bytes, statistics.stored_bytes);
            let amount = format!("{} new, {} stored", format_bytes(new), format_bytes(stored));
            (value, format!("copied {id} of {series} as {}: {amount}", copied.short()))
        }
        Outcome::Present(copied) => {
            done.present += 1;
            let value = json!({"message_type": "skipped", "point_id": copied.to_hex()});
            (value, format!("skipped {id} of {series}: it is there as {}", copied.short()))
        }
        Outcome::Unreadable(error) => {
            let text = format!("cannot copy point {}: {}", point.id.short(), error.full_text());
            context.monitor().warn(&text);
            done.failures.push(Error::new(error.kind(), text.clone()));
            (
                json!({"message_type": "failed", "message": text}),
                format!("left out {id} of {series}"),
            )
        }
    };
    if context.json() {
        let mut value = value;
        value["source_point_id"] = json!(point.id.to_hex());
        value["series"] = json!(point.manifest.series);
        value["time"] = json!(format_time_utc(point.manifest.time_unix_ns));
        return json_line(&value);
    }
    if context.quiet() { Ok(()) } else { line(&text) }
}

fn statistics_json(statistics: &Statistics) -> serde_json::Value {
    json!({
        "virtual_bytes": statistics.virtual_bytes,
        "read_bytes": statistics.read_bytes,
        "unchanged_bytes": statistics.unchanged_bytes,
        "deduplicated_bytes": statistics.deduplicated_bytes,
        "new_bytes": statistics.new_bytes,
        "stored_bytes": statistics.stored_bytes,
    })
}

fn finish(context: &Context, done: Done, seconds: f64) -> Result<()> {
    let Done { copied, present, sum, failures } = done;
    if context.json() {
        let mut value = statistics_json(&sum);
        value["message_type"] = json!("summary");
        value["dry_run"] = json!(false);
        value["copied"] = json!(copied);
        value["present"] = json!(present);
        value["failed"] = json!(failures.len());
        value["duration_seconds"] = json!(seconds);
        json_line(&value)?;
    } else if !context.quiet() {
        let (read, stored) = (format_bytes(sum.read_bytes), format_bytes(sum.stored_bytes));
        let amount = format!("{read} read, {stored} stored in {}", format_seconds(seconds));
        let points = if copied == 1 { "point" } else { "points" };
        line(&format!("copied {copied} {points}, {present} were there already: {amount}"))?;
    }
    let Some(first) = failures.first() else { return Ok(()) };
    let count = failures.len();
    let points = if count == 1 { "point was" } else { "points were" };
    let text = format!("{count} {points} not copied; the first: {}", first.full_text());
    Err(Error::new(ErrorKind::Damage, text).hint("`diskvault check` of the source says more"))
}

//! `list`: the restore points.

use super::context::Context;
use super::output::{escape, ignore_broken_pipe, json_line, line, table};
use super::sizes::format_bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::address::{format_time_local, format_time_utc};
use crate::repository::notes::Notes;
use crate::repository::points::{Point, PointSet};
use crate::retention::undo::forgotten;
use serde_json::{Value, json};

/// Options of `list`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Only this series
    series: Option<String>,
    /// List the forgotten points that can be brought back instead
    #[arg(long)]
    forgotten: bool,
}

/// Runs `list`.
///
/// # Errors
/// `NotFound` for a series that is not there.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let repository = match arguments.forgotten {
        true => context.open()?,
        false => context.open_to_write()?,
    };
    let points = if arguments.forgotten {
        let (points, damaged) = forgotten(&repository)?;
        damaged.iter().for_each(|(_, error)| context.monitor().warn(&error.full_text()));
        points
    } else {
        let points = PointSet::load(&repository)?;
        for doubt in points.warnings(&repository)? {
            context.monitor().warn(&doubt);
        }
        points.points
    };
    if let Some(series) = &arguments.series
        && !points.iter().any(|point| point.manifest.series == *series)
    {
        let text = format!("cannot find a series named {}", series.escape_debug());
        return Err(
            Error::new(ErrorKind::NotFound, text).hint("`diskvault list` shows what there is")
        );
    }
    let is_wanted = |point: &&Point| {
        arguments.series.as_ref().is_none_or(|series| *series == point.manifest.series)
    };
    let wanted = points.iter().filter(is_wanted);
    let notes = Notes::of_points(&repository, wanted.clone())?;
    ignore_broken_pipe(if context.json() {
        json_line(&wanted.map(|point| describe(point, &notes)).collect::<Value>())
    } else {
        print(wanted, &notes)
    })
}

/// A point as JSON, for `list` and `show`.
pub fn describe(point: &Point, notes: &Notes) -> Value {
    let manifest = &point.manifest;
    let disks: Vec<Value> = manifest
        .disks
        .iter()
        .map(|disk| json!({"name": disk.name, "bytes": disk.size, "map_root": disk.root.to_hex()}))
        .collect();
    let streams: Vec<Value> = manifest
        .streams
        .iter()
        .map(|stream| json!({"name": stream.name, "bytes": stream.content.bytes}))
        .collect();
    // Null if it cannot be told.
    let pins = notes
        .pins(point)
        .ok()
        .map(|pins| pins.into_iter().map(|pin| pin.reason).collect::<Vec<_>>());
    json!({
        "point_id": point.id.to_hex(),
        "short_id": point.id.short(),
        "series": manifest.series,
        "sequence": manifest.sequence,
        "time": format_time_utc(manifest.time_unix_ns),
        "host": manifest.host,
        "disks": disks,
        "streams": streams,
        "tags": notes.tags(point),
        "pins": pins,
        "new_bytes": manifest.statistics().new_bytes,
        "stored_bytes": manifest.statistics().stored_bytes,
    })
}

fn print<'a>(points: impl Iterator<Item = &'a Point>, notes: &Notes) -> Result<()> {
    let heading = ["POINT", "TIME", "SERIES", "PARTS", "SIZE", "NEW", "STORED", "TAGS"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for point in points {
        let manifest = &point.manifest;
        let statistics = manifest.statistics();
        let names: Vec<String> = manifest.part_names().map(escape).collect();
        let tags = notes.tags(point).into_iter().map(|(key, value)| format!("{key}={value}"));
        let pin = match notes.pins(point) {
            Ok(pins) if pins.is_empty() => None,
            Ok(_) => Some("(pinned)".to_string()),
            Err(_) => Some("(pins unknown)".to_string()),
        };
        let tags: Vec<String> = pin.into_iter().chain(tags).map(|text| escape(&text)).collect();
        rows.push(vec![
            point.id.short(),
            format_time_local(manifest.time_unix_ns),
            escape(&manifest.series),
            names.join(","),
            format_bytes(statistics.virtual_bytes),
            format_bytes(statistics.new_bytes),
            format_bytes(statistics.stored_bytes),
            tags.join(" "),
        ]);
    }
    let count = rows.len() - 1;
    table(&rows)?;
    line(&format!("{count} {}", if count == 1 { "point" } else { "points" }))
}

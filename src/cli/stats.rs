//! `stats`: what the repository or some of its points take, share and need alone.

use super::context::Context;
use super::output::{ignore_broken_pipe, json_line, line};
use super::sizes::format_bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;
use crate::repository::address::Address;
use crate::repository::points::PointSet;
use crate::stats::{Held, Report, run as measure};
use diskvault_format::id::PointId;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Options of `stats`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Only these points, together; all of the repository by default
    #[arg(value_name = "POINT")]
    points: Vec<String>,
    /// All points of this series; may be repeated
    #[arg(long, value_name = "SERIES", conflicts_with = "points")]
    series: Vec<String>,
}

/// Runs `stats`.
///
/// # Errors
/// As finding the points; `NotFound` for a series that is not there.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let repository = context.open()?;
    let ids = find(context, &repository, arguments)?;
    let is_wanted = |id: PointId| ids.as_ref().is_none_or(|ids| ids.contains(&id));
    let wanted = |id, _: &_| is_wanted(id);
    let report = measure(&repository, &wanted, context.monitor())?;
    let is_all = ids.is_none();
    ignore_broken_pipe(if context.json() {
        json_line(&as_json(&report, is_all))
    } else {
        print(&report, is_all)
    })
}

/// The wanted points; `None` for all.
fn find(
    context: &Context,
    repository: &Repository,
    arguments: &Arguments,
) -> Result<Option<BTreeSet<PointId>>> {
    let mut ids = BTreeSet::new();
    for text in &arguments.points {
        let address = Address::parse(text)?;
        if address.part.is_some() {
            let text = format!("cannot use {text:?}: what one disk takes cannot be told alone");
            return Err(Error::new(ErrorKind::Usage, text).hint("name the point without its disk"));
        }
        ids.insert(context.find_point(repository, &address, None)?.id);
    }
    if !arguments.series.is_empty() {
        let points = PointSet::load(repository)?;
        for series in &arguments.series {
            if points.latest(series).is_none() {
                let text = format!("cannot find a series named {}", series.escape_debug());
                let error = Error::new(ErrorKind::NotFound, text);
                return Err(error.hint("`diskvault list` shows what there is"));
            }
            ids.extend(points.series(series).map(|point| point.id));
        }
    }
    let is_all = arguments.points.is_empty() && arguments.series.is_empty();
    Ok((!is_all).then_some(ids))
}

/// How many times as large; nothing if that says nothing.
fn ratio(large: u64, small: u64) -> Option<f64> {
    (large > 0 && small > 0).then(|| (large as f64 / small as f64 * 100.0).round() / 100.0)
}

fn as_json(report: &Report, is_all: bool) -> Value {
    let (described, needed, packs) = (&report.described, &report.needed, &report.packs);
    let held = |held: &Held| {
        json!({
            "chunks": held.chunks,
            "chunk_bytes": held.chunk_bytes,
            "pages": held.pages,
            "stored_data_bytes": held.stored_data_bytes,
            "stored_map_bytes": held.stored_map_bytes,
        })
    };
    json!({
        "message_type": "stats",
        "scope": if is_all { "repository" } else { "points" },
        "points": described.points,
        "series": described.series,
        "disks": described.disks,
        "streams": described.streams,
        "virtual_bytes": described.virtual_bytes,
        "allocated_bytes": described.allocated_bytes,
        "data_bytes": described.data_bytes,
        "needed": held(needed),
        "exclusive": held(&report.exclusive),
        "shared_stored_bytes": needed.stored_bytes() - report.exclusive.stored_bytes(),
        "deduplication_ratio": ratio(described.data_bytes, needed.chunk_bytes),
        "compression_ratio": ratio(needed.chunk_bytes, needed.stored_data_bytes),
        "packs": packs.packs,
        "data_pack_bytes": packs.data_pack_bytes,
        "map_pack_bytes": packs.map_pack_bytes,
        "unneeded_bytes": packs.unneeded_bytes,
        "unreadable_packs": packs.unreadable,
        "missing_chunks": report.missing_chunks,
        "damaged_points": report.damaged_points,
    })
}

fn row(name: &str, bytes: u64, what: &str) -> Result<()> {
    line(format!("{name:<13}{:>10}  {what}", format_bytes(bytes)).trim_end())
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or(String::new(), |ratio| format!(" ({ratio:.2} : 1)"))
}

fn print(report: &Report, is_all: bool) -> Result<()> {
    let (described, needed, packs) = (&report.described, &report.needed, &report.packs);
    let noun = |count: u64, one: &str, more: &str| {
        format!("{count} {}", if count == 1 { one } else { more })
    };
    line(&format!(
        "{} of {}, {}, {}",
        noun(described.points, "point", "points"),
        noun(described.series, "series", "series"),
        noun(described.disks, "disk", "disks"),
        noun(described.streams, "stream", "streams"),
    ))?;
    row("virtual", described.virtual_bytes, "as guests see it, in all of these points")?;
    row("allocated", described.allocated_bytes, "at the sources")?;
    row("data", described.data_bytes, "that is no zeros")?;
    let chunks = noun(needed.chunks, "chunk", "chunks");
    let times_unique = times(ratio(described.data_bytes, needed.chunk_bytes));
    row("unique", needed.chunk_bytes, &format!("in {chunks}{times_unique}"))?;
    let compressed = times(ratio(needed.chunk_bytes, needed.stored_data_bytes));
    row("stored data", needed.stored_data_bytes, &format!("compressed and sealed{compressed}"))?;
    let pages = noun(needed.pages, "page", "pages");
    row("stored maps", needed.stored_map_bytes, &format!("in {pages}"))?;
    if !is_all {
        let alone = report.exclusive.stored_bytes();
        row("shared", needed.stored_bytes() - alone, "that other points need, too")?;
        return row("alone", alone, "about what forgetting these points and pruning would free");
    }
    let all = packs.data_pack_bytes + packs.map_pack_bytes;
    let of = format!("in {}, headers and footers included", noun(packs.packs, "pack", "packs"));
    row("packs", all, &of)?;
    row("not needed", packs.unneeded_bytes, "by any point; `diskvault prune` frees most of it")
}

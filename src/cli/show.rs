//! `show`: everything about one restore point.

use super::context::Context;
use super::list::describe;
use super::output::{escape, ignore_broken_pipe, json_line, line};
use super::sizes::{format_bytes, format_seconds};
use crate::error::Result;
use crate::repository::address::{Address, format_time_local, format_time_utc};
use crate::repository::notes::{Notes, StoredVerdict};
use crate::repository::points::Point;
use diskvault_format::id::to_hex;
use diskvault_format::manifest::{Chunking, DiskRecord, Statistics, StreamRecord};
use diskvault_format::tracking::Tracking;
use serde_json::{Value, json};

/// Options of `show`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The point: an id, SERIES, SERIES@latest~1, SERIES@2026-11-01T03:00, latest
    point: String,
}

/// Runs `show`.
///
/// # Errors
/// As finding the point.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let repository = context.open()?;
    let address = Address::parse(&arguments.point)?;
    let point = context.find_point(&repository, &address, None)?;
    let notes = Notes::of_points(&repository, [&point])?;
    if let Some(part) = address.part {
        crate::restore::find_part(&point, part)?;
    }
    let is_wanted = |name: &str| address.part.is_none_or(|part| part == name);
    ignore_broken_pipe(if context.json() {
        json_line(&as_json(&point, &notes, &is_wanted))
    } else {
        print(&point, &notes, &is_wanted)
    })
}

fn chunking_text(chunking: &Chunking) -> String {
    match (chunking.grid(), chunking.cuts()) {
        (Some(bytes), _) => format!("fixed grid of {}", format_bytes(bytes.into())),
        (_, Some((least, average, most))) => {
            let sizes = [least, average, most].map(|bytes| format_bytes(bytes.into()));
            format!("FastCDC of {}", sizes.join(" / "))
        }
        _ => "unknown".into(),
    }
}

fn digests_json(digests: &[(String, Vec<u8>)]) -> Value {
    digests.iter().map(|(name, value)| (name.clone(), json!(to_hex(value)))).collect()
}

fn as_json(point: &Point, notes: &Notes, is_wanted: &dyn Fn(&str) -> bool) -> Value {
    let manifest = &point.manifest;
    let mut value = describe(point, notes);
    let disk = |disk: &DiskRecord| {
        json!({
            "name": disk.name,
            "bytes": disk.size,
            "chunking": chunking_text(&disk.chunking),
            "source_format": disk.source_format,
            "map_root": disk.root.to_hex(),
            "blake3": disk.digest.map(|digest| to_hex(&digest)),
            "allocation_known": disk.allocation.is_some(),
            "bad_extents": disk.bad_extents.iter()
                .map(|range| json!({"start": range.start, "bytes": range.bytes}))
                .collect::<Vec<_>>(),
            "digests": digests_json(&disk.digests),
            "tracking": Tracking::find(&disk.extensions).map(|tracking| tracking_json(&tracking)),
            "statistics": statistics_json(&disk.statistics),
        })
    };
    let stream = |stream: &StreamRecord| {
        json!({
            "name": stream.name,
            "bytes": stream.content.bytes,
            "chunking": chunking_text(&stream.content.chunking),
            "map_root": stream.content.root.to_hex(),
            "blake3": to_hex(&stream.digest),
            "digests": digests_json(&stream.digests),
            "statistics": statistics_json(&stream.statistics),
        })
    };
    let disks = manifest.disks.iter().filter(|disk| is_wanted(&disk.name));
    let streams = manifest.streams.iter().filter(|stream| is_wanted(&stream.name));
    value["disks"] = disks.map(disk).collect();
    value["streams"] = streams.map(stream).collect();
    value["verdicts"] = notes.verdicts(point).iter().map(verdict_json).collect();
    value["previous"] = manifest.previous.iter().map(|id| id.to_hex()).collect();
    value["republishes"] = json!(manifest.republishes.map(|id| id.to_hex()));
    value["program"] = json!(manifest.program);
    value["started"] = json!(format_time_utc(manifest.started_unix_ns));
    value["duration_seconds"] = json!(manifest.duration_ms as f64 / 1000.0);
    value
}

fn verdict_json(verdict: &StoredVerdict) -> Value {
    json!({
        "test": verdict.test,
        "result": verdict.result,
        "detail": verdict.detail,
        "host": verdict.host,
        "time": format_time_utc(verdict.time_unix_ns),
    })
}

fn print_verdict(verdict: &StoredVerdict) -> Result<()> {
    let [test, result, detail, host] =
        [&verdict.test, &verdict.result, &verdict.detail, &verdict.host].map(|text| escape(text));
    let time = format_time_local(verdict.time_unix_ns);
    line(&format!("verdict   {test} {result}: {detail}, on {host} at {time}"))
}

fn tracking_json(tracking: &Tracking) -> Value {
    json!({
        "hint": tracking.hint,
        "refused": tracking.refused,
        "inherited_bytes": tracking.inherited_bytes,
        "sampled_bytes": tracking.sampled_bytes,
        "reread_bytes": tracking.reread_bytes,
        "proven": format_time_utc(tracking.proven_unix_ns),
    })
}

fn print_tracking(tracking: &Tracking) -> Result<()> {
    let hint = escape(&tracking.hint);
    if !tracking.refused.is_empty() {
        return line(&format!("  hint      {hint} did not count: {}", escape(&tracking.refused)));
    }
    let bytes = format_bytes(tracking.inherited_bytes);
    let again = format_bytes(tracking.sampled_bytes + tracking.reread_bytes);
    line(&format!(
        "  hint      by {hint} {bytes} were taken over, and {again} of that read again"
    ))?;
    let since = format_time_local(tracking.proven_unix_ns);
    line(&format!("  proven    every byte was read at or after {since}"))
}

/// What a backup did, as JSON, for `backup` and `show`.
pub fn statistics_json(statistics: &Statistics) -> Value {
    json!({
        "virtual_bytes": statistics.virtual_bytes,
        "allocated_bytes": statistics.allocated_bytes,
        "read_bytes": statistics.read_bytes,
        "hole_bytes": statistics.hole_bytes,
        "zero_bytes": statistics.zero_bytes,
        "unchanged_bytes": statistics.unchanged_bytes,
        "deduplicated_bytes": statistics.deduplicated_bytes,
        "new_bytes": statistics.new_bytes,
        "stored_bytes": statistics.stored_bytes,
        "new_chunks": statistics.new_chunks,
    })
}

fn print(point: &Point, notes: &Notes, is_wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    let manifest = &point.manifest;
    line(&format!("point     {}", point.id))?;
    line(&format!("series    {}, number {}", escape(&manifest.series), manifest.sequence))?;
    line(&format!("time      {}", format_time_local(manifest.time_unix_ns)))?;
    let seconds = format_seconds(manifest.duration_ms as f64 / 1000.0);
    let host = escape(&manifest.host);
    line(&format!("made by   {} on {host} in {seconds}", escape(&manifest.program)))?;
    for previous in &manifest.previous {
        line(&format!("follows   {previous}"))?;
    }
    if let Some(old) = &manifest.republishes {
        line(&format!("was       {old}, forgotten and brought back"))?;
    }
    match notes.pins(point) {
        Ok(pins) => pins
            .iter()
            .try_for_each(|pin| line(format!("pinned    {}", escape(&pin.reason)).trim_end()))?,
        Err(error) => line(&format!("pinned    unknown: {}", escape(&error.full_text())))?,
    }
    for (key, value) in &notes.tags(point) {
        line(&format!("tag       {}={}", escape(key), escape(value)))?;
    }
    notes.verdicts(point).iter().try_for_each(print_verdict)?;
    for disk in manifest.disks.iter().filter(|disk| is_wanted(&disk.name)) {
        let size = format_bytes(disk.size);
        line(&format!("\ndisk      {}", escape(&disk.name)))?;
        line(&format!("  size      {size} ({} bytes)", disk.size))?;
        line(&format!("  source    {}", escape(&disk.source_format)))?;
        line(&format!("  cut       {}", chunking_text(&disk.chunking)))?;
        line(&format!("  map root  {}", disk.root))?;
        if let Some(digest) = &disk.digest {
            line(&format!("  blake3    {}", to_hex(digest)))?;
        }
        for range in &disk.bad_extents {
            let bytes = format_bytes(range.bytes);
            line(&format!("  unread    {bytes} at {}, which are zeros here", range.start))?;
        }
        if let Some(tracking) = Tracking::find(&disk.extensions) {
            print_tracking(&tracking)?;
        }
        print_rest(&disk.digests, &disk.statistics)?;
    }
    for stream in manifest.streams.iter().filter(|stream| is_wanted(&stream.name)) {
        let bytes = stream.content.bytes;
        line(&format!("\nstream    {}", escape(&stream.name)))?;
        line(&format!("  size      {} ({bytes} bytes)", format_bytes(bytes)))?;
        line(&format!("  cut       {}", chunking_text(&stream.content.chunking)))?;
        line(&format!("  blake3    {}", to_hex(&stream.digest)))?;
        print_rest(&stream.digests, &stream.statistics)?;
    }
    Ok(())
}

fn print_rest(digests: &[(String, Vec<u8>)], statistics: &Statistics) -> Result<()> {
    for (name, value) in digests {
        line(&format!("  {:<8}  {}", escape(name), to_hex(value)))?;
    }
    line(&format!(
        "  backup    read {}, holes {}, zeros {}, unchanged {}, deduplicated {}, new {} in {} chunks",
        format_bytes(statistics.read_bytes),
        format_bytes(statistics.hole_bytes),
        format_bytes(statistics.zero_bytes),
        format_bytes(statistics.unchanged_bytes),
        format_bytes(statistics.deduplicated_bytes),
        format_bytes(statistics.new_bytes),
        statistics.new_chunks,
    ))
}

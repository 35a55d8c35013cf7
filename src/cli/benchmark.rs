//! `benchmark`: what this machine and a repository's storage can do, what the limit is, and what
//! would help.

mod advice;

use super::context::Context;
use super::output::{escape, json_line, line, table};
use super::sizes::{format_brief, format_bytes, format_rate, parse_bytes};
use super::version::{blake3_backend, chacha20_backend};
use crate::benchmark::{
    Benchmark, Cache, DATA_DESCRIPTION, Limit, Options, Part, PartRate, Prediction, StorageReport,
    WholeRate, point_seconds, predict,
};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::compression::ZSTD_LEVEL;
use crate::storage::place::Place;
use serde_json::json;
use std::path::PathBuf;

/// Options of `benchmark`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Folder whose storage is measured; by default the repository's if one is named, else the
    /// current one
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// Data of each storage test, such as 1GiB
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    size: String,
    /// Most seconds of each storage test and whole run; a part of the processor takes a twentieth
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    seconds: f64,
}

/// Runs `benchmark`. It needs no password and makes nothing that stays.
///
/// # Errors
/// `NotFound` or `NoRepository` without such a folder, `Storage` or `NoSpace` if it cannot be
/// written, `Usage`, `Cancelled`.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let folder = folder(context, arguments)?;
    let bytes = parse_bytes(&arguments.size)?;
    let options = Options { folder: &folder, bytes, seconds: arguments.seconds };
    let benchmark = Benchmark::begin(options, context.pool()?, context.monitor())?;
    let result = measure(context, &benchmark, &folder);
    let ended = benchmark.end();
    match (result, ended) {
        (Ok(()), ended) => ended,
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(left)) => {
            context.monitor().warn(&left.full_text());
            Err(error)
        }
    }
}

fn folder(context: &Context, arguments: &Arguments) -> Result<PathBuf> {
    let path = match &arguments.path {
        Some(path) => path.clone(),
        None if context.names_repository() => {
            let Place::Folder(path) = context.place()? else {
                let text = "cannot measure a repository on another machine";
                return Err(Error::new(ErrorKind::Usage, text).hint("name a folder"));
            };
            if !path.exists() {
                let text = format!("cannot measure {}: no such folder", path.display());
                let error = Error::new(ErrorKind::NoRepository, text);
                return Err(error.hint("make the repository first, or name a folder"));
            }
            path
        }
        None => PathBuf::from("."),
    };
    // Where it cannot be made absolute, the benchmark says what is wrong with it.
    Ok(path.canonicalize().unwrap_or(path))
}

fn measure(context: &Context, benchmark: &Benchmark<'_>, folder: &std::path::Path) -> Result<()> {
    print_machine(context)?;
    let storage = benchmark.storage()?;
    print_storage(context, folder, &storage)?;
    let parts = benchmark.parts()?;
    print_parts(context, &parts)?;
    let predictions = predict(&storage, &parts, ZSTD_LEVEL);
    let expected = predictions.iter().map(|prediction| prediction.rate).fold(f64::MAX, f64::min);
    let whole = benchmark.whole(expected)?;
    print_whole(context, &predictions, &whole)?;
    let facts = advice::Facts { folder, storage: &storage, parts: &parts, whole: &whole };
    for text in advice::advice(context, &facts, &predictions) {
        if context.json() {
            json_line(&json!({"message_type": "advice", "message": text}))?;
        } else {
            line(&format!("- {text}"))?;
        }
    }
    Ok(())
}

fn print_machine(context: &Context) -> Result<()> {
    let (blake3, chacha20) = (blake3_backend(), chacha20_backend());
    let zstd = zstd::zstd_safe::version_string();
    if context.json() {
        return json_line(&json!({
            "message_type": "machine",
            "program": crate::PROGRAM,
            "threads": context.threads(),
            "blake3": blake3,
            "chacha20": chacha20,
            "zstd": zstd,
            "data": DATA_DESCRIPTION,
        }));
    }
    line(&format!("{}, {} threads", crate::PROGRAM, context.threads()))?;
    line(&format!("blake3 {blake3}, chacha20 {chacha20}, zstd {zstd}"))?;
    line(&format!("test data: {DATA_DESCRIPTION}, made for this"))
}

fn print_storage(
    context: &Context,
    folder: &std::path::Path,
    storage: &StorageReport,
) -> Result<()> {
    let cache = match storage.cache {
        Cache::Dropped => "dropped",
        Cache::Kept => "kept",
        Cache::Unknown => "unknown",
    };
    if context.json() {
        let mut value = json!({
            "message_type": "storage",
            "path": folder.display().to_string(),
            "file_system": storage.file_system,
            "object_bytes": storage.object_bytes,
            "bytes": storage.bytes,
            "write_bytes_per_second": storage.write,
            "read_bytes_per_second": storage.read,
            "page_cache": cache,
        });
        for latency in &storage.latencies {
            value[latency.operation.name()] = json!({
                "median_seconds": latency.median_seconds,
                "p95_seconds": latency.p95_seconds,
                "rounds": latency.rounds,
            });
        }
        return json_line(&value);
    }
    line(&format!(
        "\nstorage at {} ({})",
        escape(&folder.display().to_string()),
        storage.file_system
    ))?;
    let object = format_bytes(storage.object_bytes);
    let from = match storage.cache {
        Cache::Dropped => "in order, not from the page cache",
        Cache::Kept => "in order, FROM THE PAGE CACHE: it could not be dropped",
        Cache::Unknown => "in order; whether from the page cache, the file system does not tell",
    };
    let write = format!("durable, in objects of {object}");
    let mut rows = vec![
        vec!["  write".into(), format_rate(storage.write), write],
        vec!["  read".into(), format_rate(storage.read), from.into()],
    ];
    for latency in &storage.latencies {
        let p95 = format_brief(latency.p95_seconds);
        rows.push(vec![
            format!("  {}", latency.operation.name()),
            format_brief(latency.median_seconds),
            format!("of 512 bytes; 95 of 100 took less than {p95}"),
        ]);
    }
    table(&rows)
}

fn print_parts(context: &Context, parts: &[PartRate]) -> Result<()> {
    if context.json() {
        for rate in parts {
            let level = match rate.part {
                Part::Compress(level) => Some(level),
                _ => None,
            };
            json_line(&json!({
                "message_type": "part",
                "name": rate.part.name(),
                "one_core_bytes_per_second": rate.one_core,
                "all_cores_bytes_per_second": rate.all_cores,
                "level": level,
                "ratio": rate.ratio,
            }))?;
        }
        return Ok(());
    }
    line("")?;
    let heading = ["processor", "ONE CORE", "ALL CORES", ""];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for rate in parts {
        rows.push(vec![
            format!("  {}", rate.part.name()),
            format_rate(rate.one_core),
            format_rate(rate.all_cores),
            rate.ratio.map(|ratio| format!("to {:.1} %", ratio * 100.0)).unwrap_or_default(),
        ]);
    }
    table(&rows)
}

/// Names a limit.
fn limit_text(prediction: &Prediction) -> String {
    let share = |wanted: Part| {
        let found = prediction.shares.iter().find(|(part, _)| *part == wanted);
        found.map_or(0.0, |(_, share)| *share * 100.0)
    };
    match prediction.limit {
        Limit::Write => "the storage's writing".into(),
        Limit::ReadAndWrite => "the storage's reading, and writing the disk there".into(),
        Limit::Processor(part) => {
            format!("the processor ({:.0} % {})", share(part), part.name())
        }
    }
}

fn print_whole(context: &Context, predictions: &[Prediction], whole: &[WholeRate]) -> Result<()> {
    if context.json() {
        for (prediction, measured) in predictions.iter().zip(whole) {
            let limit = match prediction.limit {
                Limit::Write => "write".into(),
                Limit::ReadAndWrite => "read and write".into(),
                Limit::Processor(part) => part.name(),
            };
            json_line(&json!({
                "message_type": "work",
                "name": prediction.work.name(),
                "predicted_bytes_per_second": prediction.rate,
                "processor_bytes_per_second": prediction.processor,
                "storage_bytes_per_second": prediction.storage,
                "limit": limit,
                "measured_bytes_per_second": measured.rate(),
                "measured_bytes": measured.bytes,
                "measured_seconds": measured.seconds,
            }))?;
        }
        return Ok(());
    }
    let bytes = whole.first().map_or(0, |measured| measured.bytes);
    line("")?;
    let heading = ["whole runs", "MEASURED", "PREDICTED", "LIMIT OF LARGE DISKS"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for (prediction, measured) in predictions.iter().zip(whole) {
        rows.push(vec![
            format!("  {}", prediction.work.name()),
            format_rate(measured.rate()),
            format_rate(prediction.rate),
            limit_text(prediction),
        ]);
    }
    table(&rows)?;
    line(&format!("  measured with a disk of {} in memory\n", format_bytes(bytes)))
}

/// What a point costs however little has changed.
fn point_text(storage: &StorageReport) -> String {
    format!(
        "a point takes about {} of waiting for the storage, however little has changed",
        format_brief(point_seconds(storage))
    )
}

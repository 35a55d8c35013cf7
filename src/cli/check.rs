//! `check`: looks for damage.

use super::context::Context;
use super::output::{escape, json_line, line};
use super::sizes::format_bytes;
use crate::check::{CheckOptions, CheckReport, DataSubset, run as run_check};
use crate::error::{Error, ErrorKind, Result};
use serde_json::json;

/// Options of `check`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Read and verify every byte of every pack
    #[arg(long, conflicts_with = "read_data_subset")]
    read_data: bool,
    /// Read and verify a part of the packs: n/t for part n of t, or x% at random
    #[arg(long, value_name = "n/t|x%")]
    read_data_subset: Option<String>,
}

/// Runs `check`.
///
/// # Errors
/// `Damage` if there is any.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let data = match (&arguments.read_data_subset, arguments.read_data) {
        (Some(text), _) => Some(DataSubset::parse(text)?),
        (None, true) => Some(DataSubset::All),
        (None, false) => None,
    };
    let repository = context.open()?;
    let pool = context.pool()?;
    let report = run_check(&repository, &CheckOptions { data }, &pool, context.monitor())?;
    if context.json() {
        print_json(&report)?;
    } else {
        print(&report)?;
    }
    match report.damage_count() {
        0 => Ok(()),
        1 => Err(Error::new(ErrorKind::Damage, "found damage in 1 place")),
        count => Err(Error::new(ErrorKind::Damage, format!("found damage in {count} places"))),
    }
}

fn print_json(report: &CheckReport) -> Result<()> {
    for finding in &report.findings {
        let kind = if finding.is_damage { "damage" } else { "remark" };
        json_line(&json!({"message_type": kind, "message": escape(&finding.text)}))?;
    }
    let heads = report.heads.iter();
    json_line(&json!({
        "message_type": "summary",
        "damage_count": report.damage_count(),
        "points": report.points,
        "packs": report.packs,
        "entries": report.entries,
        "packs_read": report.packs_read,
        "bytes_read": report.bytes_read,
        "heads": heads
            .map(|(series, id)| json!({"series": series, "point_id": id}))
            .collect::<Vec<_>>(),
    }))
}

fn print(report: &CheckReport) -> Result<()> {
    for finding in &report.findings {
        let kind = if finding.is_damage { "damage" } else { "remark" };
        line(&format!("{kind}: {}", escape(&finding.text)))?;
    }
    line(&format!(
        "checked {} points, {} packs with {} chunks and pages",
        report.points, report.packs, report.entries
    ))?;
    if report.packs_read > 0 {
        let bytes = format_bytes(report.bytes_read);
        line(&format!("read and verified {bytes} in {} packs", report.packs_read))?;
    }
    for (series, id) in &report.heads {
        line(&format!("newest of {}: {id}", escape(series)))?;
    }
    if report.damage_count() == 0 {
        line("no damage found")?;
    }
    Ok(())
}

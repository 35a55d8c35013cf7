//! `check`: looks for damage.

use super::context::Context;
use super::output::{escape, json_line, line};
use super::prune::parse_duration;
use super::sizes::format_bytes;
use crate::check::{
    CheckOptions, CheckReport, Coverage, DataSubset, Finding, Renewal, check_names, renew_locks,
    run as run_check,
};
use crate::environment::SystemEnvironment;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repair::heal_damaged;
use crate::repository::Repository;
use crate::storage::Storage;
use diskvault_format::id::PointId;
use serde_json::json;

const DAY_SECONDS: u64 = 24 * 3600;

/// Options of `check`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Read and verify every byte of every pack
    #[arg(long, conflicts_with_all = ["read_data_subset", "budget"])]
    read_data: bool,
    /// Read and verify a part of the packs: n/t for part n of t, or x% at random
    #[arg(long, value_name = "n/t|x%", conflicts_with = "budget")]
    read_data_subset: Option<String>,
    /// Read and verify packs for so long, those first that were not read for longest
    #[arg(long, value_name = "DURATION")]
    budget: Option<String>,
    /// Write packs anew that their parity heals; with --read-data, --read-data-subset or --budget
    #[arg(long, conflicts_with = "no_key")]
    repair: bool,
    /// Ask for no password: verify that every object still has the bytes of its name
    #[arg(long, conflicts_with_all = ["read_data", "budget"])]
    no_key: bool,
}

/// Runs `check`.
///
/// # Errors
/// `Damage` if there is any.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let data = match (&arguments.read_data_subset, &arguments.budget) {
        (Some(text), _) => Some(DataSubset::parse(text)?),
        (None, Some(text)) => Some(DataSubset::Budget(parse_duration(text)?)),
        (None, None) => arguments.read_data.then_some(DataSubset::All),
    };
    if arguments.repair && data.is_none() {
        let text = "cannot repair without reading packs";
        return Err(Error::new(ErrorKind::Usage, text).hint("add --read-data"));
    }
    let pool = context.pool()?;
    let storage;
    let report = if arguments.no_key {
        storage = context.storage()?;
        let subset = data.unwrap_or(DataSubset::All);
        check_names(storage.as_ref(), &SystemEnvironment, &subset, &pool, context.monitor())?
    } else {
        let repository = context.open()?;
        storage = repository.storage().clone();
        if arguments.repair {
            // Not only when all is read.
            repository.check_may_change()?;
        }
        let report = run_check(&repository, &CheckOptions { data }, &pool, context.monitor())?;
        match arguments.repair && !report.damaged_packs.is_empty() {
            true => heal(context, &repository, report)?,
            false => report,
        }
    };
    renew(context, storage.as_ref())?;
    finish(context, &report, arguments.no_key)
}

/// Prolongs locks, damage or not: what is whole needs them all the more.
fn renew(context: &Context, storage: &dyn Storage) -> Result<()> {
    let Some(renewal) = renew_locks(storage, context.monitor())? else { return Ok(()) };
    let Renewal { locked, renewed } = renewal;
    if context.json() {
        return json_line(&json!({
            "message_type": "locks", "locked_objects": locked, "renewed_objects": renewed,
        }));
    }
    line(&format!("renewed the locks of {renewed} of {locked} objects"))
}

/// Prints a report; `Damage` if there is any.
fn finish(context: &Context, report: &CheckReport, is_keyless: bool) -> Result<()> {
    if context.json() {
        print_json(report)?;
    } else {
        print(report, is_keyless)?;
    }
    match report.damage_count() {
        0 => Ok(()),
        1 => Err(Error::new(ErrorKind::Damage, "found damage in 1 place")),
        count => Err(Error::new(ErrorKind::Damage, format!("found damage in {count} places"))),
    }
}

/// Heals what can be healed, says so, and tells what a look at the damaged packs and everything but
/// the data finds now.
fn heal(context: &Context, repository: &Repository, before: CheckReport) -> Result<CheckReport> {
    let monitor = context.monitor();
    let healing = match heal_damaged(repository, &before.damaged_packs, monitor) {
        Ok(healing) => healing,
        Err(error) => {
            monitor.warn(&format!("nothing was healed: {}", error.full_text()));
            return Ok(before);
        }
    };
    if let Some(error) = &healing.error {
        monitor.warn(&format!("not all that could be was healed: {}", error.full_text()));
    }
    for id in &healing.healed {
        monitor.warn(&format!("pack {id} was damaged and is healed by its parity"));
        if context.json() {
            json_line(&json!({"message_type": "healed_pack", "pack_id": id.to_hex()}))?;
        }
    }
    if healing.healed.is_empty() && healing.whole.is_empty() {
        return Ok(before);
    }
    let options = CheckOptions { data: Some(DataSubset::Packs(before.damaged_packs.clone())) };
    let mut now = run_check(repository, &options, context.pool()?.as_ref(), monitor)?;
    // What was found in packs that are not read again.
    let was_read_again =
        |text: &str| before.damaged_packs.iter().any(|id| text.contains(&id.to_hex()));
    let known: Vec<String> = now.findings.iter().map(|finding| finding.text.clone()).collect();
    let is_left = |finding: &&Finding| {
        let is_of_a_splice = finding.text.contains("cannot be put together");
        finding.is_damage
            && finding.affected.is_none()
            && !was_read_again(&finding.text)
            && !known.contains(&finding.text)
            && (!is_of_a_splice || !now.damaged_packs.is_empty())
    };
    let left: Vec<Finding> = before.findings.iter().filter(is_left).cloned().collect();
    now.findings.extend(left);
    (now.packs_read, now.bytes_read) = (before.packs_read, before.bytes_read);
    now.coverage = before.coverage;
    Ok(now)
}

fn print_json(report: &CheckReport) -> Result<()> {
    for finding in &report.findings {
        let kind = if finding.is_damage { "damage" } else { "remark" };
        let mut object = json!({"message_type": kind, "message": escape(&finding.text)});
        if let Some(affected) = &finding.affected {
            object["series"] = json!(affected.series);
            object["point_id"] = json!(affected.point.to_hex());
            object["part"] = json!(affected.part);
            if let Some(bytes) = &affected.bytes {
                object["start"] = json!(bytes.start);
                object["end"] = json!(bytes.end);
            }
        }
        json_line(&object)?;
    }
    let heads = report.heads.iter();
    let point = |(series, id): &(&str, PointId)| json!({"series": series, "point_id": id.to_hex()});
    let mut summary = json!({
        "message_type": "summary",
        "damage_count": report.damage_count(),
        "points": report.points,
        "packs": report.packs,
        "entries": report.entries,
        "packs_read": report.packs_read,
        "bytes_read": report.bytes_read,
        "damaged_packs": report.damaged_packs.iter().map(|id| id.to_hex()).collect::<Vec<_>>(),
        "damaged_points": report.affected_points().iter().map(point).collect::<Vec<_>>(),
        "heads": heads
            .map(|(series, id)| json!({"series": series, "point_id": id}))
            .collect::<Vec<_>>(),
    });
    if let Some(coverage) = report.coverage {
        summary["unread_packs"] = json!(coverage.unread_packs);
        summary["oldest_read_seconds"] = json!(coverage.oldest_seconds);
    }
    json_line(&summary)
}

fn print(report: &CheckReport, is_keyless: bool) -> Result<()> {
    for finding in &report.findings {
        let kind = if finding.is_damage { "damage" } else { "remark" };
        line(&format!("{kind}: {}", escape(&finding.text)))?;
    }
    if is_keyless {
        let (points, packs) = (report.points, report.packs);
        line(&format!("compared {points} manifests and {packs} packs with their names"))?;
    } else {
        line(&format!(
            "checked {} points, {} packs with {} chunks and pages",
            report.points, report.packs, report.entries
        ))?;
    }
    if report.packs_read > 0 {
        let bytes = format_bytes(report.bytes_read);
        line(&format!("read and verified {bytes} in {} packs", report.packs_read))?;
    }
    if let Some(coverage) = report.coverage.filter(|_| report.packs_read < report.packs) {
        line(&describe_coverage(coverage, report.packs, report.bytes_read))?;
    }
    for (series, point) in report.affected_points() {
        line(&format!("touched by damage: {} {}", escape(series), point.short()))?;
    }
    for (series, id) in &report.heads {
        line(&format!("newest of {}: {id}", escape(series)))?;
    }
    if report.damage_count() == 0 {
        line(if is_keyless {
            "no damage found; what is inside the packs is for a check with the key"
        } else {
            "no damage found"
        })?;
    }
    Ok(())
}

/// In how many days everything has been read, or will have been.
fn describe_coverage(coverage: Coverage, packs: u64, bytes_read: u64) -> String {
    let days = |seconds: u64| match seconds.div_ceil(DAY_SECONDS) {
        0 | 1 => "1 day".to_string(),
        days => format!("{days} days"),
    };
    let Coverage { unread_packs, bytes, oldest_seconds } = coverage;
    if unread_packs == 0 {
        return format!("this host has read every pack within the last {}", days(oldest_seconds));
    }
    let mut text = format!("this host has not read {unread_packs} of {packs} packs yet");
    if bytes_read > 0 {
        let runs = bytes.div_ceil(bytes_read);
        let every = days(runs.saturating_mul(DAY_SECONDS));
        text.push_str(&format!("; a run like this each day reads everything within {every}"));
    }
    text
}

//! `prune`: gives the room of what no point needs back to the storage.

use super::context::{Context, host_name};
use super::output::{json_line, line};
use super::sizes::{format_bytes, parse_bytes};
use crate::error::{Error, ErrorKind, Result};
use crate::prune::choose::Unused;
use crate::prune::{Outlook, Patience, PruneOptions, PruneReport, foresee, run as run_prune};
use crate::repository::Repository;
use diskvault_format::id::PointId;
use jiff::{Span, SpanRelativeTo};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

/// Two heartbeats may be late, or lost with a failed write.
const LEASE_TIMEOUT_MIN: Duration = Duration::from_secs(180);

/// Options of `prune`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Say what would be freed, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// What may stay although nobody needs it: a share of all, a size, or unlimited
    #[arg(long, value_name = "SHARE", default_value = "5%")]
    max_unused: String,
    /// Copy no more than this out of packs that are partly needed
    #[arg(long, value_name = "SIZE")]
    max_repack: Option<String>,
    /// Wait for no running backup; the next prune on this host goes on
    #[arg(long)]
    no_wait: bool,
    /// Keep what points need that were forgotten within this time, so that they can come back
    #[arg(long, value_name = "DURATION")]
    keep_forgotten: Option<String>,
    /// Take a backup for dead that gave no sign of life for so long
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    lease_timeout: String,
    /// Go on although points have vanished that nobody forgot, and note them as removed
    #[arg(long)]
    force: bool,
}

impl Arguments {
    /// What `prune` does without options.
    pub fn standard() -> Arguments {
        Arguments {
            dry_run: false,
            max_unused: "5%".into(),
            max_repack: None,
            no_wait: false,
            keep_forgotten: None,
            lease_timeout: "1h".into(),
            force: false,
        }
    }
}

fn parse_unused(text: &str) -> Result<Unused> {
    if text == "unlimited" {
        return Ok(Unused::Unlimited);
    }
    let Some(percent) = text.strip_suffix('%') else {
        return Ok(Unused::Bytes(parse_bytes(text)?));
    };
    match percent.parse::<f64>() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => {
            Ok(Unused::MilliPercent((percent * 1000.0) as u32))
        }
        _ => {
            let text =
                format!("cannot read the share {text:?}: expected such as 5%, 2GiB or unlimited");
            Err(Error::new(ErrorKind::Usage, text))
        }
    }
}

pub(super) fn parse_duration(text: &str) -> Result<Duration> {
    let span = text.parse::<Span>().ok();
    let duration = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
    duration.and_then(|duration| Duration::try_from(duration).ok()).ok_or_else(|| {
        let text = format!("cannot read the duration {text:?}: expected such as 90min, 24h or 7d");
        Error::new(ErrorKind::Usage, text)
    })
}

/// Reads how long a backup may give no sign of life.
///
/// # Errors
/// `Usage`, also for a time in which a running backup may give none.
pub(super) fn parse_lease_timeout(text: &str) -> Result<Duration> {
    let timeout = parse_duration(text)?;
    if timeout < LEASE_TIMEOUT_MIN {
        let text = format!(
            "cannot use the lease timeout {text:?}: a backup that runs gives a sign of life each minute"
        );
        return Err(Error::new(ErrorKind::Usage, text).hint("use 3min or more"));
    }
    Ok(timeout)
}

/// Runs `prune`.
///
/// # Errors
/// `Usage`, or as [`run_prune`].
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let repository = context.open()?;
    let nothing = BTreeSet::new();
    prune(context, &repository, arguments, arguments.dry_run.then_some(&nothing))
}

/// Prunes an open repository; or says what that would do once the points in `dry_run` were
/// forgotten.
///
/// # Errors
/// As [`run`].
pub fn prune(
    context: &Context,
    repository: &Repository,
    arguments: &Arguments,
    dry_run: Option<&BTreeSet<PointId>>,
) -> Result<()> {
    let host = host_name();
    let options = PruneOptions {
        max_unused: parse_unused(&arguments.max_unused)?,
        max_repack: arguments.max_repack.as_deref().map(parse_bytes).transpose()?,
        keep_forgotten: arguments.keep_forgotten.as_deref().map(parse_duration).transpose()?,
        patience: Patience {
            stands_still: parse_lease_timeout(&arguments.lease_timeout)?,
            waits: !arguments.no_wait,
        },
        host: &host,
        accepts_vanished: arguments.force,
    };
    let (pool, monitor) = (context.pool()?, context.monitor());
    if let Some(forgotten) = dry_run {
        let outlook = foresee(repository, &options, forgotten, &pool, monitor)?;
        return announce(context, &outlook, true);
    }
    let announce = |outlook: &Outlook| announce(context, outlook, false);
    tell(context, &run_prune(repository, &options, &pool, &announce, monitor)?)
}

fn announce(context: &Context, outlook: &Outlook, is_dry_run: bool) -> Result<()> {
    let plan = &outlook.plan;
    if context.json() {
        return json_line(&json!({
            "message_type": "plan",
            "dry_run": is_dry_run,
            "packs": outlook.packs,
            "bytes": outlook.bytes,
            "used_bytes": outlook.used_bytes,
            "delete_packs": plan.delete.len(),
            "delete_bytes": plan.delete_bytes,
            "repack_packs": plan.repack.len(),
            "repack_bytes": plan.repack_bytes,
            "copy_bytes": plan.copy_bytes,
            "left_unused_bytes": plan.left_unused_bytes,
        }));
    }
    if context.quiet() {
        return Ok(());
    }
    let (all, used) = (format_bytes(outlook.bytes), format_bytes(outlook.used_bytes));
    line(&format!("{} packs, {all}; of that {used} are needed", outlook.packs))?;
    let verb = if is_dry_run { "would free" } else { "freeing" };
    let freed = plan.delete_bytes + plan.repack_bytes.saturating_sub(plan.copy_bytes);
    let (freed, copied) = (format_bytes(freed), format_bytes(plan.copy_bytes));
    let (deleted, repacked) = (plan.delete.len(), plan.repack.len());
    line(&format!(
        "{verb} about {freed}: {deleted} packs as they are, {repacked} after copying {copied}"
    ))?;
    let left = format_bytes(plan.left_unused_bytes);
    line(&format!("{left} that nobody needs stay in packs that are partly needed"))
}

fn tell(context: &Context, report: &PruneReport) -> Result<()> {
    if context.json() {
        return json_line(&json!({
            "message_type": "summary",
            "deleted_packs": report.deleted_packs,
            "deleted_bytes": report.deleted_bytes,
            "copied_bytes": report.copied_bytes,
            "freed_bytes": report.deleted_bytes.saturating_sub(report.copied_bytes),
            "kept_packs": report.kept_packs,
            "fenced_leases": report.fenced_leases,
            "finished_points": report.resolved.finished,
            "deleted_manifests": report.resolved.deleted,
            "waiting": report.is_waiting,
        }));
    }
    if context.quiet() {
        return Ok(());
    }
    if report.resolved.finished + report.resolved.deleted > 0 {
        let (finished, deleted) = (report.resolved.finished, report.resolved.deleted);
        line(&format!("unfinished points: {finished} completed, {deleted} removed"))?;
    }
    if report.kept_packs > 0 {
        line(&format!("{} packs stay: a backup has used them meanwhile", report.kept_packs))?;
    }
    if report.is_waiting {
        line("backups are running: the next prune on this host frees what they do not use")?;
        if report.deleted_packs == 0 {
            return Ok(());
        }
    }
    let freed = format_bytes(report.deleted_bytes.saturating_sub(report.copied_bytes));
    let copied = format_bytes(report.copied_bytes);
    line(&format!("freed {freed}: {} packs deleted, {copied} copied", report.deleted_packs))
}

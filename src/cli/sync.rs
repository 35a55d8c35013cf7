//! `sync`: a replica is brought up to its source.

use super::context::{Context, FromPlace, host_name};
use super::output::{escape, json_line, line};
use super::remote;
use super::sizes::{format_bytes, format_seconds};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::address::format_time_utc;
use crate::repository::points::Point;
use crate::repository::replica::{Relation, bring_keys_up, initialise_replica, relation};
use crate::sync::{Outcome, Plan, Planned, State, Syncer, plan};
use serde_json::{Value, json};
use std::time::Instant;

/// Options of `sync`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    from: FromPlace,
    /// Make the replica first: a new repository with the id and the keys of the source
    #[arg(long)]
    init: bool,
    /// Only points of this series; may be repeated
    #[arg(long, value_name = "SERIES")]
    series: Vec<String>,
    /// Bring back also what was forgotten in the replica
    #[arg(long)]
    forgotten: bool,
    /// Say what would be brought over, and do nothing
    #[arg(short = 'n', long, conflicts_with = "init")]
    dry_run: bool,
}

/// What was done.
#[derive(Default)]
struct Done {
    synced: u64,
    packs: u64,
    bytes: u64,
    failures: Vec<Error>,
}

/// Runs `sync`.
///
/// # Errors
/// As opening the two; `Usage` if they are no copies of one repository, or one copy; `Damage` if
/// some points could not be brought over, after all others were.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let began = Instant::now();
    let place = context.place()?;
    let source = context.open_replicated(&arguments.from)?;
    if arguments.init {
        remote::may_create(&place, context)?;
        let storage = remote::create(&place, context)?;
        initialise_replica(&source, storage.as_ref())?;
    }
    let mut target = context.open_replica(&source)?;
    match relation(&source, &target)? {
        Relation::Same => {}
        Relation::ReplicaIsNewer => context
            .monitor()
            .warn("the replica has a newer config than the source: its keys were changed there"),
        Relation::SourceIsNewer if arguments.dry_run => {}
        Relation::SourceIsNewer => {
            bring_keys_up(&source, &target)?;
            target = context.open_replica(&source)?;
        }
    }
    let wanted = |point: &Point| {
        arguments.series.is_empty() || arguments.series.contains(&point.manifest.series)
    };
    let plan = plan(&source, &target, arguments.forgotten, &wanted)?;
    for series in &arguments.series {
        if !plan.points.iter().any(|planned| planned.point.manifest.series == *series) {
            let text =
                format!("cannot find a series named {} in the source", series.escape_debug());
            return Err(Error::new(ErrorKind::NotFound, text));
        }
    }
    if arguments.dry_run {
        return print_plan(context, &plan.points, plan.others);
    }
    let done = bring(context, &source, &target, &plan)?;
    finish(context, done, &plan.points, plan.others, began.elapsed().as_secs_f64())
}

fn bring(context: &Context, source: &Repository, target: &Repository, plan: &Plan) -> Result<Done> {
    let host = host_name();
    let syncer = Syncer { source, target, host: &host, monitor: context.monitor() };
    let mut done = Done::default();
    syncer.run(plan, &mut |point, outcome| {
        let (id, series) = (point.id.short(), escape(&point.manifest.series));
        let (mut value, text) = match outcome {
            Outcome::Synced { packs, bytes } => {
                done.synced += 1;
                done.packs += packs;
                done.bytes += bytes;
                let text =
                    format!("synced {id} of {series}: {packs} packs, {}", format_bytes(*bytes));
                (json!({"message_type": "synced", "packs": packs, "bytes": bytes}), text)
            }
            Outcome::Failed(error) => {
                let text = format!("cannot sync point {id}: {}", error.full_text());
                context.monitor().warn(&text);
                done.failures.push(Error::new(error.kind(), text.clone()));
                (
                    json!({"message_type": "failed", "message": text}),
                    format!("left out {id} of {series}"),
                )
            }
        };
        if context.json() {
            describe(&mut value, point);
            return json_line(&value);
        }
        if context.quiet() { Ok(()) } else { line(&text) }
    })?;
    Ok(done)
}

fn describe(value: &mut Value, point: &Point) {
    value["point_id"] = json!(point.id.to_hex());
    value["series"] = json!(point.manifest.series);
    value["time"] = json!(format_time_utc(point.manifest.time_unix_ns));
}

fn count(planned: &[Planned], state: State) -> u64 {
    planned.iter().filter(|planned| planned.state == state).count() as u64
}

fn print_plan(context: &Context, planned: &[Planned], others: u64) -> Result<()> {
    for Planned { point, state } in planned {
        let (action, why) = match state {
            State::Missing => ("sync", ""),
            State::Present => ("skip", ": it is there"),
            State::Forgotten => ("skip", ": it was forgotten there"),
        };
        if context.json() {
            let mut value = json!({"message_type": "plan", "action": action});
            describe(&mut value, point);
            json_line(&value)?;
        } else {
            let series = escape(&point.manifest.series);
            line(&format!("{action} {} of {series}{why}", point.id.short()))?;
        }
    }
    let missing = count(planned, State::Missing);
    let (present, forgotten) = (count(planned, State::Present), count(planned, State::Forgotten));
    if context.json() {
        return json_line(&json!({
            "message_type": "summary",
            "dry_run": true,
            "to_sync": missing,
            "present": present,
            "forgotten": forgotten,
            "only_in_replica": others,
        }));
    }
    line(&format!("would sync {missing} points; {present} are there already"))
}

fn finish(
    context: &Context,
    done: Done,
    planned: &[Planned],
    others: u64,
    seconds: f64,
) -> Result<()> {
    let Done { synced, packs, bytes, failures } = done;
    let (present, forgotten) = (count(planned, State::Present), count(planned, State::Forgotten));
    if context.json() {
        json_line(&json!({
            "message_type": "summary",
            "dry_run": false,
            "synced": synced,
            "present": present,
            "forgotten": forgotten,
            "only_in_replica": others,
            "failed": failures.len(),
            "packs": packs,
            "bytes": bytes,
            "duration_seconds": seconds,
        }))?;
    } else if !context.quiet() {
        let points = if synced == 1 { "point" } else { "points" };
        let (size, time) = (format_bytes(bytes), format_seconds(seconds));
        let mut text = format!("synced {synced} {points}, {size} in {time}; {present} were there");
        if forgotten > 0 {
            text.push_str(&format!(", {forgotten} were forgotten there"));
        }
        if others > 0 {
            text.push_str(&format!(", {others} are only there"));
        }
        line(&text)?;
    }
    let Some(first) = failures.first() else { return Ok(()) };
    let count = failures.len();
    let points = if count == 1 { "point was" } else { "points were" };
    let text = format!("{count} {points} not synced; the first: {}", first.full_text());
    Err(Error::new(ErrorKind::Damage, text))
}

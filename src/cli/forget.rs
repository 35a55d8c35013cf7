//! `forget`: drops points by policy or by name, and brings back what was forgotten.

use super::context::{Context, host_name};
use super::output::{escape, json_line, line, table};
use super::prune::prune;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::address::{Address, format_time_local, format_time_utc};
use crate::repository::notes::Notes;
use crate::repository::points::{Point, PointSet};
use crate::retention::forget::{ForgetOptions, delete_lonely_oks, forget};
use crate::retention::policy::{Period, Policy, Reach, Reasons, Rule};
use crate::retention::{candidate, undo::undo};
use diskvault_format::id::PointId;
use jiff::Span;
use jiff::tz::TimeZone;
use serde_json::json;
use std::collections::BTreeSet;

/// Options of `forget`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Points to forget, instead of a policy
    #[arg(value_name = "POINT")]
    points: Vec<String>,
    /// Only this series; may be repeated
    #[arg(long, value_name = "SERIES", conflicts_with = "points")]
    series: Vec<String>,
    #[command(flatten)]
    keep: Keep,
    /// Points of equal series, host, or both share the counts; "all" for one group of all
    #[arg(long, value_name = "WHAT", default_value = "series", conflicts_with = "points")]
    group_by: String,
    /// Zone whose hours, days, weeks, months and years count, such as Europe/Berlin; "local" for
    /// that of this host
    #[arg(long, value_name = "ZONE", default_value = "UTC", conflicts_with = "points")]
    timezone: String,
    /// Show what would be forgotten and kept, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Forget named points also if they are pinned or the newest of their series
    #[arg(long, requires = "points")]
    force: bool,
    /// Prune afterwards, as `prune` does without options
    #[arg(long, conflicts_with = "dry_run")]
    prune: bool,
    /// Bring a forgotten point back, by its id
    #[arg(long, value_name = "POINT", conflicts_with_all = ["points", "series", "dry_run", "prune"])]
    undo: Option<String>,
}

/// The rules of a policy.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "What to keep")]
struct Keep {
    /// Keep the newest N points
    #[arg(long, value_name = "N")]
    keep_last: Option<u32>,
    /// Keep the newest point of each of the last N hours that have one
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u32>,
    /// The same for days
    #[arg(long, value_name = "N")]
    keep_daily: Option<u32>,
    /// The same for weeks, which begin on Monday
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u32>,
    /// The same for months
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u32>,
    /// The same for years
    #[arg(long, value_name = "N")]
    keep_yearly: Option<u32>,
    /// Keep all points from so long before the newest one, such as 36h, 14d, 6mo or "1y 6mo"
    #[arg(long, value_name = "DURATION")]
    keep_within: Option<String>,
    /// Keep the newest point of each hour within that time
    #[arg(long, value_name = "DURATION")]
    keep_within_hourly: Option<String>,
    /// The same for days
    #[arg(long, value_name = "DURATION")]
    keep_within_daily: Option<String>,
    /// The same for weeks
    #[arg(long, value_name = "DURATION")]
    keep_within_weekly: Option<String>,
    /// The same for months
    #[arg(long, value_name = "DURATION")]
    keep_within_monthly: Option<String>,
    /// The same for years
    #[arg(long, value_name = "DURATION")]
    keep_within_yearly: Option<String>,
    /// Keep points with this tag; may be repeated
    #[arg(long, value_name = "KEY[=VALUE]")]
    keep_tag: Vec<String>,
}

impl Keep {
    fn rules(&self) -> Result<Vec<Rule>> {
        let counts = [
            (Period::Point, self.keep_last),
            (Period::Hour, self.keep_hourly),
            (Period::Day, self.keep_daily),
            (Period::Week, self.keep_weekly),
            (Period::Month, self.keep_monthly),
            (Period::Year, self.keep_yearly),
        ];
        let durations = [
            (Period::Point, &self.keep_within),
            (Period::Hour, &self.keep_within_hourly),
            (Period::Day, &self.keep_within_daily),
            (Period::Week, &self.keep_within_weekly),
            (Period::Month, &self.keep_within_monthly),
            (Period::Year, &self.keep_within_yearly),
        ];
        let mut rules = Vec::new();
        for (period, count) in counts {
            let reach = count.map(Reach::Count);
            rules.extend(reach.map(|reach| Rule { period, reach }));
        }
        for (period, duration) in durations {
            if let Some(text) = duration {
                rules.push(Rule { period, reach: Reach::Within(parse_duration(text)?) });
            }
        }
        Ok(rules)
    }

    fn tags(&self) -> Vec<(String, Option<String>)> {
        let split = |tag: &String| match tag.split_once('=') {
            Some((key, value)) => (key.to_string(), Some(value.to_string())),
            None => (tag.clone(), None),
        };
        self.keep_tag.iter().map(split).collect()
    }
}

fn parse_duration(text: &str) -> Result<Span> {
    text.parse::<Span>().map_err(|_| {
        let text = format!("cannot read the duration {text:?}: expected such as 36h, 14d or 6mo");
        Error::new(ErrorKind::Usage, text)
    })
}

fn parse_zone(name: &str) -> Result<TimeZone> {
    if name == "local" {
        return Ok(TimeZone::system());
    }
    if name.eq_ignore_ascii_case("utc") {
        return Ok(TimeZone::UTC);
    }
    TimeZone::get(name).map_err(|_| {
        let name = name.escape_debug();
        let text = format!("cannot find the time zone {name}: expected such as Europe/Berlin");
        Error::new(ErrorKind::Usage, text)
    })
}

/// A point and why it stays; nothing if it goes.
struct Decided<'a> {
    point: &'a Point,
    kept: Reasons,
}

/// Runs `forget`.
///
/// # Errors
/// `Usage` for a policy that makes no sense, `NotFound`, `Pinned`, or as the repository.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let rules = arguments.keep.rules()?;
    let tags = arguments.keep.tags();
    let has_policy = !rules.is_empty() || !tags.is_empty();
    check_request(arguments, has_policy)?;
    let zone = parse_zone(&arguments.timezone)?;
    let group_of = parse_groups(&arguments.group_by)?;
    let repository = context.open()?;
    if let Some(id) = &arguments.undo {
        return bring_back(context, &repository, id);
    }
    let points = PointSet::load(&repository)?;
    for doubt in points.doubts(&repository)? {
        context.monitor().warn(&doubt);
    }
    let decided = if has_policy {
        let policy = Policy { rules, tags, zone };
        by_policy(&repository, &points, arguments, &policy, &group_of)?
    } else {
        by_name(context, &repository, &points, arguments)?
    };
    let going: Vec<&Point> =
        decided.iter().filter(|one| one.kept.is_empty()).map(|one| one.point).collect();
    print(context, &decided, arguments.dry_run)?;
    if arguments.dry_run {
        return Ok(());
    }
    let reason = if has_policy { "policy" } else { "named by a user" };
    let host = host_name();
    let options = ForgetOptions { host: &host, reason, ends_pins: arguments.force };
    forget(&repository, &going, &options, context.monitor())?;
    delete_lonely_oks(&repository, &points)?;
    if arguments.prune {
        prune(context, &repository, &super::prune::Arguments::standard())?;
    }
    Ok(())
}

fn check_request(arguments: &Arguments, has_policy: bool) -> Result<()> {
    let usage = |text: &str| Err(Error::new(ErrorKind::Usage, text));
    if arguments.undo.is_some() {
        if has_policy {
            return usage("cannot bring a point back and keep others by a policy at once");
        }
        return Ok(());
    }
    match (arguments.points.is_empty(), has_policy) {
        (true, false) => Err(Error::new(
            ErrorKind::Usage,
            "cannot choose what to forget: no point is named and no rule says what to keep",
        )
        .hint("use a rule such as --keep-daily 7")),
        (false, true) => usage("cannot forget named points and keep others by a policy at once"),
        _ => Ok(()),
    }
}

/// What makes up the name of a point's group.
fn parse_groups(text: &str) -> Result<impl Fn(&Point) -> String> {
    let parts: Vec<&str> = text.split(',').collect();
    let is_known = |part: &&str| matches!(*part, "series" | "host" | "all");
    if !parts.iter().all(is_known) || (parts.len() > 1 && parts.contains(&"all")) {
        let text = format!("cannot group by {text:?}: expected series, host, series,host or all");
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let (by_series, by_host) = (parts.contains(&"series"), parts.contains(&"host"));
    Ok(move |point: &Point| {
        let series = if by_series { point.manifest.series.as_str() } else { "" };
        let host = if by_host { point.manifest.host.as_str() } else { "" };
        format!("{series}\n{host}")
    })
}

fn by_policy<'a>(
    repository: &Repository,
    points: &'a PointSet,
    arguments: &Arguments,
    policy: &Policy,
    group_of: &dyn Fn(&Point) -> String,
) -> Result<Vec<Decided<'a>>> {
    for series in &arguments.series {
        if points.latest(series).is_none() {
            let text = format!("cannot find a series named {}", series.escape_debug());
            let error = Error::new(ErrorKind::NotFound, text);
            return Err(error.hint("`diskvault list` shows what there is"));
        }
    }
    let is_wanted = |point: &&Point| {
        arguments.series.is_empty() || arguments.series.contains(&point.manifest.series)
    };
    let wanted: Vec<&Point> = points.points.iter().filter(is_wanted).collect();
    let notes = Notes::load(repository)?;
    let candidates: Vec<_> =
        wanted.iter().map(|point| candidate(point, &notes, group_of(point))).collect();
    let reasons = policy.decide(&candidates, repository.environment().now_unix_ns())?;
    let decided = wanted.into_iter().zip(reasons);
    Ok(decided.map(|(point, kept)| Decided { point, kept }).collect())
}

fn by_name<'a>(
    context: &Context,
    repository: &Repository,
    points: &'a PointSet,
    arguments: &Arguments,
) -> Result<Vec<Decided<'a>>> {
    let mut ids: BTreeSet<PointId> = BTreeSet::new();
    for text in &arguments.points {
        let address = Address::parse(text)?;
        if address.part.is_some() {
            let text = "cannot forget a part of a point: expected a point";
            return Err(Error::new(ErrorKind::Usage, text));
        }
        ids.insert(context.find_point(repository, &address, None)?.id);
    }
    let named: Vec<&Point> = points.points.iter().filter(|point| ids.contains(&point.id)).collect();
    for point in named.iter().filter(|_| !arguments.force) {
        let series = &point.manifest.series;
        if points.latest(series).is_some_and(|latest| latest.id == point.id) {
            let (id, series) = (point.id.short(), series.escape_debug());
            let text = format!("cannot forget point {id}: it is the newest of {series}");
            return Err(Error::new(ErrorKind::Usage, text).hint("use --force to forget it"));
        }
    }
    Ok(named.into_iter().map(|point| Decided { point, kept: Vec::new() }).collect())
}

fn bring_back(context: &Context, repository: &Repository, id: &str) -> Result<()> {
    let new = undo(repository, id, &host_name(), context.monitor())?;
    if context.json() {
        return json_line(&json!({"message_type": "restored_point", "point_id": new.to_hex()}));
    }
    if context.quiet() {
        return Ok(());
    }
    line(&format!("brought back as point {}; it answers to its old id, too", new.short()))
}

fn print(context: &Context, decided: &[Decided<'_>], is_dry_run: bool) -> Result<()> {
    let forgotten = decided.iter().filter(|one| one.kept.is_empty()).count();
    let kept = decided.len() - forgotten;
    if context.json() {
        for one in decided {
            let manifest = &one.point.manifest;
            json_line(&json!({
                "message_type": if one.kept.is_empty() { "forget" } else { "keep" },
                "point_id": one.point.id.to_hex(),
                "series": manifest.series,
                "time": format_time_utc(manifest.time_unix_ns),
                "reasons": one.kept,
            }))?;
        }
        return json_line(&json!({
            "message_type": "summary",
            "kept": kept,
            "forgotten": forgotten,
            "dry_run": is_dry_run,
        }));
    }
    if context.quiet() {
        return Ok(());
    }
    let heading = ["", "POINT", "TIME", "SERIES", "BECAUSE"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for one in decided {
        let manifest = &one.point.manifest;
        rows.push(vec![
            if one.kept.is_empty() { "forget" } else { "keep" }.to_string(),
            one.point.id.short(),
            format_time_local(manifest.time_unix_ns),
            escape(&manifest.series),
            escape(&one.kept.join(", ")),
        ]);
    }
    table(&rows)?;
    let verb = if is_dry_run { "would keep" } else { "keeping" };
    let other = if is_dry_run { "forget" } else { "forgetting" };
    let points = if forgotten == 1 { "point" } else { "points" };
    line(&format!("{verb} {kept}, {other} {forgotten} {points}"))
}

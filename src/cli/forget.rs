//! `forget`: drops points by policy or by name, and brings back what was forgotten.

use super::context::{Context, host_name};
use super::output::{escape, json_line, line, table};
use super::prune::prune;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::address::{Address, format_time_local, format_time_utc};
use crate::repository::notes::Notes;
use crate::repository::points::{Point, PointSet, delete_lonely_oks};
use crate::retention::forget::{ForgetOptions, forget, refuse_pinned};
use crate::retention::policy::{Period, Policy, Reach, Reasons, Rule};
use crate::retention::trust::{Turn, is_unusual, pushes_out};
use crate::retention::{candidate, doubted, undo::undo};
use diskvault_format::id::PointId;
use jiff::Span;
use jiff::tz::TimeZone;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

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
    /// Count also points whose dates do not fit when they were received
    #[arg(long, conflicts_with = "points")]
    trust_times: bool,
    /// Forget also if more than half of a series would go at once, or for points that came in a rush
    #[arg(long, conflicts_with = "points")]
    allow_many: bool,
    /// Show what would be forgotten and kept, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Forget named points also if they are pinned or the newest of their series
    #[arg(long, requires = "points")]
    force: bool,
    /// Prune afterwards, as `prune` does without options; with --dry-run say what that would free
    #[arg(long)]
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

    fn tags(&self) -> Result<Vec<(String, Option<String>)>> {
        let split = |tag: &String| {
            let (key, value) = match tag.split_once('=') {
                Some((key, value)) => (key, Some(value.to_string())),
                None => (tag.as_str(), None),
            };
            if key.is_empty() {
                let text = format!("cannot read the tag {tag:?}: expected KEY or KEY=VALUE");
                return Err(Error::new(ErrorKind::Usage, text));
            }
            Ok((key.to_string(), value))
        };
        self.keep_tag.iter().map(split).collect()
    }
}

fn parse_duration(text: &str) -> Result<Span> {
    let usage = |why| {
        let text = format!("cannot read the duration {text:?}: {why}");
        Error::new(ErrorKind::Usage, text)
    };
    let expected = "expected such as 36h, 14d or 6mo";
    let span = text.parse::<Span>().map_err(|_| usage(expected))?;
    // Elsewhere "m" is a month; here it would be a minute, and nearly every point would go.
    let is_short = span.get_minutes() != 0
        || span.get_seconds() != 0
        || span.get_milliseconds() != 0
        || span.get_microseconds() != 0
        || span.get_nanoseconds() != 0;
    if is_short {
        return Err(usage("an hour is the shortest unit, and a month is 1mo"));
    }
    Ok(span)
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
    /// Why it goes, if it does.
    dropped: &'static str,
}

/// Runs `forget`.
///
/// # Errors
/// `Usage` for a policy that makes no sense, `NotFound`, `Pinned`, or as the repository.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let rules = arguments.keep.rules()?;
    let tags = arguments.keep.tags()?;
    let has_policy = !rules.is_empty() || !tags.is_empty();
    check_request(arguments, has_policy)?;
    let zone = parse_zone(&arguments.timezone)?;
    let group_of = parse_groups(&arguments.group_by)?;
    let repository = context.open()?;
    if let Some(id) = &arguments.undo {
        return bring_back(context, &repository, id);
    }
    // Before the points are listed: what a name means now is in that listing.
    let named = named_ids(context, &repository, arguments)?;
    let points = PointSet::load(&repository)?;
    for doubt in points.warnings(&repository)? {
        context.monitor().warn(&doubt);
    }
    let mut decided = if has_policy {
        let policy = Policy { rules, tags, zone };
        by_policy(&repository, &points, arguments, &policy, &group_of)?
    } else {
        by_name(&repository, &points, &named, arguments.force)?
    };
    let held = match has_policy && !arguments.allow_many {
        true => hold_unusual(context, &mut decided, &points, arguments.dry_run),
        false => None,
    };
    let going: Vec<&Point> =
        decided.iter().filter(|one| one.kept.is_empty()).map(|one| one.point).collect();
    print(context, &decided)?;
    if arguments.dry_run {
        summarise(context, decided.len() - going.len(), going.len(), true)?;
        if arguments.prune {
            let going = going.iter().map(|point| point.id).collect();
            prune(context, &repository, &super::prune::Arguments::standard(), Some(&going))?;
        }
        return Ok(());
    }
    let reason = if has_policy { "policy" } else { "named by a user" };
    let host = host_name();
    let options = ForgetOptions { host: &host, reason, ends_pins: arguments.force };
    forget_all(context, &repository, &going, &options, arguments.prune)?;
    summarise(context, decided.len() - going.len(), going.len(), false)?;
    delete_lonely_oks(&repository, &points)?;
    if arguments.prune {
        prune(context, &repository, &super::prune::Arguments::standard(), None)?;
    }
    held.map_or(Ok(()), Err)
}

/// Holds back series of which an unusual share would go at once, or in which points that came in a
/// rush would take the places of others, as it is when somebody floods one; what to say of the
/// first. A dry run only warns.
fn hold_unusual(
    context: &Context,
    decided: &mut [Decided<'_>],
    points: &PointSet,
    is_dry_run: bool,
) -> Option<Error> {
    let mut all: BTreeMap<&str, Vec<(Option<i64>, bool)>> = BTreeMap::new();
    for one in decided.iter() {
        let received = points.received_unix_ns(one.point.id);
        let of_series = all.entry(&one.point.manifest.series).or_default();
        of_series.push((received, one.kept.is_empty()));
    }
    let mut unusual: BTreeMap<&str, &str> = BTreeMap::new();
    let mut error = None;
    for (series, turns) in all {
        let going = turns.iter().filter(|(_, goes)| *goes).count();
        let known = turns.iter().filter_map(|(received, goes)| {
            received.map(|received_unix_ns| Turn { received_unix_ns, goes: *goes })
        });
        let why = match is_unusual(going, turns.len()) {
            true => "more than half of the series would go",
            false if pushes_out(known.collect()) => "others that came in a rush would stay instead",
            false => continue,
        };
        unusual.insert(series, why);
        let (what, of) = (series.escape_debug(), turns.len());
        let text = format!("cannot forget {going} of {of} points of {what} at once: {why}");
        if is_dry_run {
            context.monitor().warn(&text);
            continue;
        }
        let held = Error::new(ErrorKind::Failed, text)
            .hint("look at it with --dry-run; if it is right, add --allow-many");
        error.get_or_insert(held);
    }
    if !is_dry_run {
        for one in decided.iter_mut().filter(|one| one.kept.is_empty()) {
            if let Some(why) = unusual.get(one.point.manifest.series.as_str()) {
                one.kept.push(format!("held: {why}"));
            }
        }
    }
    error
}

/// Forgets these. Where notes and trash have no room, a prune that was asked for frees what is
/// forgotten already, and then it goes on.
fn forget_all(
    context: &Context,
    repository: &Repository,
    going: &[&Point],
    options: &ForgetOptions<'_>,
    prunes: bool,
) -> Result<()> {
    let mut left = going.to_vec();
    let mut left_before = usize::MAX;
    loop {
        let Err(error) = forget(repository, &left, options, context.monitor()) else {
            return Ok(());
        };
        if error.kind() != ErrorKind::NoSpace {
            return Err(error);
        }
        let error = error.hint("a few free KiB are enough to begin with");
        if !prunes || left.len() >= left_before {
            return Err(error);
        }
        context.monitor().note(&format!("{}; pruning first", error.full_text()));
        prune(context, repository, &super::prune::Arguments::standard(), None)?;
        left_before = left.len();
        let points = PointSet::load(repository)?;
        left.retain(|point| points.points.iter().any(|there| there.id == point.id));
    }
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
    let notes = Notes::of_points(repository, wanted.iter().copied())?;
    let doubted = if arguments.trust_times { BTreeMap::new() } else { doubted(points) };
    let candidate =
        |point: &&Point| candidate(point, &notes, group_of(point), doubted.get(&point.id).copied());
    let candidates: Vec<_> = wanted.iter().map(candidate).collect();
    let reasons = policy.decide(&candidates, repository.environment().now_unix_ns())?;
    let decided = wanted.into_iter().zip(reasons);
    let dropped = "no rule keeps it";
    Ok(decided.map(|(point, kept)| Decided { point, kept, dropped }).collect())
}

/// The ids of the points that are named.
fn named_ids(
    context: &Context,
    repository: &Repository,
    arguments: &Arguments,
) -> Result<BTreeSet<PointId>> {
    let find = |text: &String| {
        let address = Address::parse(text)?;
        if address.part.is_some() {
            let text = "cannot forget a part of a point: expected a point";
            return Err(Error::new(ErrorKind::Usage, text));
        }
        Ok(context.find_point(repository, &address, None)?.id)
    };
    arguments.points.iter().map(find).collect()
}

fn by_name<'a>(
    repository: &Repository,
    points: &'a PointSet,
    ids: &BTreeSet<PointId>,
    is_forced: bool,
) -> Result<Vec<Decided<'a>>> {
    let named: Vec<&Point> = points.points.iter().filter(|point| ids.contains(&point.id)).collect();
    if let Some(gone) = ids.iter().find(|id| !named.iter().any(|point| point.id == **id)) {
        let text = format!("cannot find point {}: it was forgotten meanwhile", gone.short());
        return Err(Error::new(ErrorKind::NotFound, text));
    }
    if !is_forced {
        let notes = Notes::of_points(repository, named.iter().copied())?;
        for point in &named {
            let series = &point.manifest.series;
            if points.latest(series).is_some_and(|latest| latest.id == point.id) {
                let (id, series) = (point.id.short(), series.escape_debug());
                let text = format!("cannot forget point {id}: it is the newest of {series}");
                return Err(Error::new(ErrorKind::Usage, text).hint("use --force to forget it"));
            }
            refuse_pinned(&notes, point)?;
        }
    }
    let dropped = "it is named";
    Ok(named.into_iter().map(|point| Decided { point, kept: Vec::new(), dropped }).collect())
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

fn print(context: &Context, decided: &[Decided<'_>]) -> Result<()> {
    let reasons = |one: &Decided<'_>| match &one.kept[..] {
        [] => one.dropped.to_string(),
        kept => kept.join(", "),
    };
    let word = |one: &Decided<'_>| if one.kept.is_empty() { "forget" } else { "keep" };
    if context.json() {
        return decided.iter().try_for_each(|one| {
            let manifest = &one.point.manifest;
            json_line(&json!({
                "message_type": word(one),
                "point_id": one.point.id.to_hex(),
                "series": manifest.series,
                "time": format_time_utc(manifest.time_unix_ns),
                "because": reasons(one),
            }))
        });
    }
    if context.quiet() {
        return Ok(());
    }
    let heading = ["", "POINT", "TIME", "SERIES", "BECAUSE"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for one in decided {
        let manifest = &one.point.manifest;
        rows.push(vec![
            word(one).to_string(),
            one.point.id.short(),
            format_time_local(manifest.time_unix_ns),
            escape(&manifest.series),
            escape(&reasons(one)),
        ]);
    }
    table(&rows)
}

/// What was done, or would be.
fn summarise(context: &Context, kept: usize, forgotten: usize, is_dry_run: bool) -> Result<()> {
    if context.json() {
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
    let (verb, other) = if is_dry_run { ("would keep", "forget") } else { ("kept", "forgot") };
    let points = if forgotten == 1 { "point" } else { "points" };
    line(&format!("{verb} {kept}, {other} {forgotten} {points}"))
}

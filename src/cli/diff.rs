//! `diff`: in which ranges the disks of two points differ, from the maps alone.

use super::context::Context;
use super::output::{escape, ignore_broken_pipe, json_line, line, table};
use super::sizes::format_bytes;
use crate::diff::{Comparison, Extent, Pair, Sums, pair, pairs};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::address::Address;
use crate::repository::locate::Locator;
use crate::repository::points::Point;
use serde_json::{Value, json};

/// Options of `diff`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The point before, or a disk of it
    #[arg(value_name = "POINT[/DISK]")]
    old: String,
    /// The point after, or a disk of it
    #[arg(value_name = "POINT[/DISK]")]
    new: String,
    /// Only this disk or stream
    #[arg(long, value_name = "NAME")]
    disk: Option<String>,
    /// List every range that differs
    #[arg(long)]
    extents: bool,
}

/// What was found out about one pair of parts.
struct Found<'a> {
    pair: Pair<'a>,
    is_equal: Option<bool>,
    sums: Option<Sums>,
}

impl Found<'_> {
    fn state(&self) -> &'static str {
        match (self.pair.sizes(), self.is_equal) {
            ((None, _), _) => "added",
            ((_, None), _) => "removed",
            (_, Some(true)) => "equal",
            (_, None) if self.sums.is_some_and(|sums| sums.bytes() == sums.unknown_bytes) => {
                "unknown"
            }
            _ => "changed",
        }
    }
}

/// Runs `diff`.
///
/// # Errors
/// As finding the points; `NotFound` for a part that neither has; `Damage`.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let repository = context.open()?;
    let addresses = [Address::parse(&arguments.old)?, Address::parse(&arguments.new)?];
    let old = context.find_point(&repository, &addresses[0], None)?;
    let new = context.find_point(&repository, &addresses[1], None)?;
    let wanted = choose(&old, &new, &addresses, arguments.disk.as_deref())?;
    let locator = Locator::open_for_reading(&repository, context.monitor())?;
    let monitor = context.monitor();
    let comparison = Comparison { repository: &repository, locator: &locator, monitor };
    let mut all = Vec::new();
    for pair in wanted {
        let compared = compare(context, &comparison, pair, arguments.extents);
        // Whoever reads the ranges may have had enough of them.
        match compared {
            Ok(found) => all.push(found),
            Err(error) => return ignore_broken_pipe(Err(error)),
        }
    }
    ignore_broken_pipe(if context.json() {
        print_json(&old, &new, &all)
    } else {
        print(&old, &new, &all)
    })
}

/// The parts that are wanted, side by side.
fn choose<'a>(
    old: &'a Point,
    new: &'a Point,
    addresses: &[Address<'_>; 2],
    disk: Option<&str>,
) -> Result<Vec<Pair<'a>>> {
    let parts = [addresses[0].part, addresses[1].part];
    if disk.is_some() && parts.iter().any(Option::is_some) {
        let text = "cannot use --disk with a point that names its disk";
        return Err(Error::new(ErrorKind::Usage, text));
    }
    if let Some(one) = parts[0].or(parts[1]) {
        let names = [parts[0].unwrap_or(one), parts[1].unwrap_or(one)];
        return Ok(vec![pair((old, names[0]), (new, names[1]))?]);
    }
    let mut all = pairs(old, new);
    let Some(name) = disk else { return Ok(all) };
    all.retain(|pair| pair.name() == name);
    if all.is_empty() {
        let (name, ids) = (name.escape_debug(), (old.id.short(), new.id.short()));
        let text = format!("cannot find {name} in point {} or {}", ids.0, ids.1);
        return Err(Error::new(ErrorKind::NotFound, text));
    }
    Ok(all)
}

fn compare<'a>(
    context: &Context,
    comparison: &Comparison<'_>,
    pair: Pair<'a>,
    with_extents: bool,
) -> Result<Found<'a>> {
    let mut is_equal = pair.is_equal();
    let Pair::Disks(old, new) = pair else { return Ok(Found { pair, is_equal, sums: None }) };
    let mut sums = Sums::default();
    // Equal in bytes, whatever their maps look like.
    if is_equal != Some(true) {
        let name = pair.name();
        comparison.disks(old, new, &mut |extent| {
            sums.add(extent);
            if with_extents { print_extent(context, name, extent) } else { Ok(()) }
        })?;
        // Two cuts of one content that is all zeros, or has no chunk that was cut in two ways.
        if is_equal.is_none() && sums.extents == 0 {
            is_equal = Some(true);
        }
    }
    if sums.unknown_bytes > 0 {
        let name = pair.name().escape_debug();
        let text = "was cut in different ways: where it has data in both points, the maps cannot \
                    tell whether it is the same";
        context.monitor().note(&format!("disk {name} {text}"));
    }
    Ok(Found { pair, is_equal, sums: Some(sums) })
}

fn print_extent(context: &Context, name: &str, extent: &Extent) -> Result<()> {
    let (start, bytes, change) = (extent.start, extent.bytes, extent.change.name());
    if context.json() {
        return json_line(&json!({
            "message_type": "extent",
            "name": name,
            "start": start,
            "bytes": bytes,
            "change": change,
        }));
    }
    line(&format!("{:<8} {start:>16} {bytes:>14}  {}", change, escape(name)))
}

fn print_json(old: &Point, new: &Point, all: &[Found<'_>]) -> Result<()> {
    let mut total = Sums::default();
    for found in all {
        let (old_bytes, new_bytes) = found.pair.sizes();
        let mut value = found.sums.map_or(json!({}), |sums| sums_json(&sums));
        value["message_type"] = json!(match found.pair {
            Pair::Disks(..) => "disk",
            Pair::Streams(..) => "stream",
        });
        value["name"] = json!(found.pair.name());
        value["state"] = json!(found.state());
        value["old_bytes"] = json!(old_bytes);
        value["new_bytes"] = json!(new_bytes);
        json_line(&value)?;
        found.sums.iter().for_each(|sums| total.merge(sums));
    }
    let mut value = sums_json(&total);
    value["message_type"] = json!("summary");
    value["old_point_id"] = json!(old.id.to_hex());
    value["new_point_id"] = json!(new.id.to_hex());
    value["equal"] = json!(all.iter().all(|found| found.is_equal == Some(true)));
    json_line(&value)
}

fn sums_json(sums: &Sums) -> Value {
    json!({
        "changed_bytes": sums.changed_bytes,
        "written_bytes": sums.written_bytes,
        "zeroed_bytes": sums.zeroed_bytes,
        "cut_bytes": sums.cut_bytes,
        "unknown_bytes": sums.unknown_bytes,
        "extents": sums.extents,
    })
}

fn print(old: &Point, new: &Point, all: &[Found<'_>]) -> Result<()> {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_string(), format_bytes);
    let heading = [
        "PART", "STATE", "OLD SIZE", "NEW SIZE", "CHANGED", "WRITTEN", "ZEROED", "CUT", "UNKNOWN",
        "EXTENTS",
    ];
    let mut rows = vec![heading.map(String::from).to_vec()];
    let mut total = Sums::default();
    for found in all {
        let (old_bytes, new_bytes) = found.pair.sizes();
        let mut row = vec![
            escape(found.pair.name()),
            found.state().to_string(),
            size(old_bytes),
            size(new_bytes),
        ];
        if let Some(sums) = &found.sums {
            let sums_of = [
                sums.changed_bytes,
                sums.written_bytes,
                sums.zeroed_bytes,
                sums.cut_bytes,
                sums.unknown_bytes,
            ];
            row.extend(sums_of.map(format_bytes));
            row.push(sums.extents.to_string());
        }
        rows.push(row);
        found.sums.iter().for_each(|sums| total.merge(sums));
    }
    table(&rows)?;
    let ids = format!("points {} and {}", old.id.short(), new.id.short());
    let different = all.iter().filter(|found| found.is_equal != Some(true)).count();
    if different == 0 {
        return line(&format!("{ids} do not differ"));
    }
    let (bytes, extents) = (format_bytes(total.bytes()), total.extents);
    let (ranges, parts) = (
        if extents == 1 { "range" } else { "ranges" },
        if different == 1 { "part" } else { "parts" },
    );
    line(&format!("{ids} differ in {different} {parts}: {bytes} in {extents} {ranges} of disks"))
}

//! How a point and a part of it are named: `web01`, `web01@latest~2`, `web01@2026-11-01T03:00`,
//! `latest`, `id:3fa9`, and `POINT/DISK`.
//!
//! Invariant: a name that fits several things is refused, never guessed; a series name wins over
//! an id prefix, also as a doubt, and `id:` forces an id.

use super::points::{Point, PointSet};
use crate::error::{Error, ErrorKind, Result};
use diskvault_format::id::PointId;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// The word for the newest point. No series is given this name; one that another program made is
/// reached by `latest@latest` and the ids of its points.
pub const LATEST: &str = "latest";

/// Digits of a point's id that are not taken for anything else: what `list` shows.
const ID_DIGITS_SURE: usize = 8;

/// What an address names: a point, and a part of it if the address says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address<'a> {
    /// The text before the first `/`.
    pub point: &'a str,
    /// The disk or stream name behind it.
    pub part: Option<&'a str>,
}

impl<'a> Address<'a> {
    /// Splits `POINT/PART`.
    ///
    /// # Errors
    /// `Usage` for an empty half.
    pub fn parse(text: &'a str) -> Result<Address<'a>> {
        let (point, part) = match text.split_once('/') {
            Some((point, part)) => (point, Some(part)),
            None => (text, None),
        };
        if point.is_empty() || part.is_some_and(str::is_empty) {
            let text = format!("cannot read the address {text:?}: expected POINT or POINT/DISK");
            return Err(Error::new(ErrorKind::Usage, text));
        }
        Ok(Address { point, part })
    }
}

/// Reads a time: RFC 3339 with an offset, or a local date and time, or a date, which means the
/// end of that day. Local means the zone of this host (`TZ`). Nanoseconds since 1970.
///
/// # Errors
/// `Usage`.
pub fn parse_time(text: &str) -> Result<i64> {
    let zone = TimeZone::system();
    if let Ok(instant) = text.parse::<Timestamp>() {
        return nanoseconds(instant, text);
    }
    let local = if let (Ok(date), true) = (text.parse::<Date>(), !text.contains([':', 'T', ' '])) {
        date.tomorrow()
            .map(|next| next.at(0, 0, 0, 0))
            .and_then(|midnight| midnight.checked_sub(1.nanosecond()))
    } else {
        text.parse::<DateTime>()
    };
    match local.and_then(|local| local.to_zoned(zone)) {
        Ok(zoned) => nanoseconds(zoned.timestamp(), text),
        Err(_) => Err(Error::new(
            ErrorKind::Usage,
            format!("cannot read the time {text:?}: expected such as 2026-11-01T03:00"),
        )),
    }
}

fn nanoseconds(instant: Timestamp, text: &str) -> Result<i64> {
    i64::try_from(instant.as_nanosecond()).map_err(|_| {
        Error::new(ErrorKind::Usage, format!("cannot use the time {text:?}: it is out of range"))
    })
}

/// Prints a time in this host's zone, to the second.
pub fn format_time_local(unix_ns: i64) -> String {
    match Timestamp::from_nanosecond(i128::from(unix_ns)) {
        Ok(instant) => {
            let zoned = instant.to_zoned(TimeZone::system());
            zoned.strftime("%Y-%m-%d %H:%M:%S %:z").to_string()
        }
        Err(_) => "out of range".to_string(),
    }
}

/// Prints a time as RFC 3339 in UTC.
pub fn format_time_utc(unix_ns: i64) -> String {
    match Timestamp::from_nanosecond(i128::from(unix_ns)) {
        Ok(instant) => instant.to_string(),
        Err(_) => "out of range".to_string(),
    }
}

/// A point, and whether its id named it: what an id names does not depend on which other points
/// there are.
#[derive(Clone, Copy, Debug)]
pub struct Resolved<'a> {
    /// The point.
    pub point: &'a Point,
    /// False for a series, a time or `latest`, and for digits that may name a series.
    pub is_by_id: bool,
}

/// Finds the point that `text` names.
///
/// # Errors
/// `NotFound`, or `Usage` for an ambiguous or unreadable name.
pub fn resolve<'a>(points: &'a PointSet, text: &str) -> Result<Resolved<'a>> {
    if let Some(prefix) = sure_id(points, text) {
        return by_id(points, prefix).map(|point| Resolved { point, is_by_id: true });
    }
    let is_series = points.latest(text).is_some();
    let looks_like_id = text.len() >= 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let point =
        if looks_like_id && !is_series { by_id(points, text) } else { by_place(points, text) };
    point.map(|point| Resolved { point, is_by_id: false })
}

/// The digits, if `text` can only mean an id: behind `id:`, or as many as `list` shows, which are
/// no accident. Fewer may name a series of which no manifest can be read.
pub fn sure_id<'a>(points: &PointSet, text: &'a str) -> Option<&'a str> {
    text.strip_prefix("id:").or_else(|| {
        let is_long = text.len() >= ID_DIGITS_SURE && points.latest(text).is_none();
        (is_long && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(text)
    })
}

/// Finds what `latest`, a series, or a series and a time name.
fn by_place<'a>(points: &'a PointSet, text: &str) -> Result<&'a Point> {
    if let Some((series, selector)) = text.split_once('@') {
        return by_selector(points, series, selector);
    }
    if let Some(back) = parse_latest(text) {
        let mut all: Vec<&Point> = points.points.iter().collect();
        all.sort_by_key(|point| {
            let manifest = &point.manifest;
            (manifest.started_unix_ns, manifest.sequence, point.id)
        });
        return nth_back(all.into_iter(), back?, "the repository");
    }
    if points.latest(text).is_some() {
        return by_selector(points, text, LATEST);
    }
    let text = format!("cannot find a series or point named {}", text.escape_debug());
    Err(Error::new(ErrorKind::NotFound, text).hint("`diskvault list` shows what there is"))
}

/// Finds the newest point of a series not later than `unix_ns`.
///
/// # Errors
/// `NotFound`.
pub fn resolve_at<'a>(points: &'a PointSet, series: &str, unix_ns: i64) -> Result<&'a Point> {
    if points.latest(series).is_none() {
        return Err(no_series(series));
    }
    let not_later = points.series(series).filter(|point| point.manifest.time_unix_ns <= unix_ns);
    not_later.max_by_key(|point| (point.manifest.time_unix_ns, point.manifest.sequence)).ok_or_else(
        || {
            let time = format_time_local(unix_ns);
            let text = format!("cannot find a point of {series} from {time} or before");
            Error::new(ErrorKind::NotFound, text)
        },
    )
}

fn no_series(series: &str) -> Error {
    let text = format!("cannot find a series named {}", series.escape_debug());
    Error::new(ErrorKind::NotFound, text).hint("`diskvault list` shows what there is")
}

/// `latest` or `latest~N`: how many points back.
fn parse_latest(text: &str) -> Option<Result<usize>> {
    let rest = text.strip_prefix(LATEST)?;
    if rest.is_empty() {
        return Some(Ok(0));
    }
    let digits = rest.strip_prefix('~')?;
    Some(digits.parse().map_err(|_| {
        let text = format!("cannot read {text:?}: expected latest or latest~N");
        Error::new(ErrorKind::Usage, text)
    }))
}

fn by_selector<'a>(points: &'a PointSet, series: &str, selector: &str) -> Result<&'a Point> {
    if points.latest(series).is_none() {
        return Err(no_series(series));
    }
    match parse_latest(selector) {
        Some(back) => nth_back(points.series(series), back?, series),
        None => resolve_at(points, series, parse_time(selector)?),
    }
}

fn nth_back<'a>(
    oldest_first: impl DoubleEndedIterator<Item = &'a Point>,
    back: usize,
    of: &str,
) -> Result<&'a Point> {
    oldest_first.rev().nth(back).ok_or_else(|| {
        let text = format!("cannot go {back} points back: {of} has fewer");
        Error::new(ErrorKind::NotFound, text)
    })
}

fn by_id<'a>(points: &'a PointSet, prefix: &str) -> Result<&'a Point> {
    let prefix = prefix.to_ascii_lowercase();
    let fits = |id: PointId| !prefix.is_empty() && id.to_hex().starts_with(&prefix);
    let is_visible = |id: PointId| points.points.iter().any(|point| point.id == id);
    // One that was forgotten and brought back answers to its old id, too.
    let answers = |point: &&Point| {
        fits(point.id)
            || point.manifest.republishes.is_some_and(|old| fits(old) && !is_visible(old))
    };
    let mut fitting = points.points.iter().filter(answers);
    match (fitting.next(), fitting.next()) {
        (Some(point), None) => Ok(point),
        (Some(_), Some(_)) => {
            let text = format!("cannot choose a point: several ids start with {prefix}");
            Err(Error::new(ErrorKind::Usage, text))
        }
        (None, _) => {
            // It may be there, and damaged.
            if let Some((_, cause)) = points.damaged.iter().find(|(id, _)| fits(*id)) {
                return Err(Error::new(cause.kind(), cause.full_text()));
            }
            let text = format!("cannot find a point with id {}", prefix.escape_debug());
            let error = Error::new(ErrorKind::NotFound, text);
            Err(error.hint("`diskvault list` shows what there is"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_split_at_the_first_slash() {
        let address = Address::parse("web01@latest~1/vda.raw").unwrap();
        assert_eq!((address.point, address.part), ("web01@latest~1", Some("vda.raw")));
        assert_eq!(Address::parse("web01").unwrap().part, None);
        for bad in ["", "/x", "x/"] {
            assert_eq!(Address::parse(bad).unwrap_err().kind(), ErrorKind::Usage);
        }
    }

    #[test]
    fn a_date_is_the_end_of_its_day() {
        let day = parse_time("2026-11-01").unwrap();
        let next = parse_time("2026-11-02T00:00").unwrap();
        assert_eq!(next - day, 1);
        assert_eq!(parse_time("1970-01-01T00:00:01Z").unwrap(), 1_000_000_000);
        assert_eq!(
            parse_time("2026-11-01 03:00").unwrap(),
            parse_time("2026-11-01T03:00").unwrap()
        );
        assert!(parse_time("yesterday").is_err());
    }
}

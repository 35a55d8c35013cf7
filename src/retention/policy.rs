//! Which points a policy keeps: a pure function of points, rules, zone and time.
//!
//! Invariants: the newest point of every series, pinned points and points dated in the future are
//! kept whatever the rules say, and so are those whose date is not believed (`trust`); a point dated
//! in the future, or not believed, takes no other point's place, so a host whose clock is years
//! ahead, or that lies, costs nobody a point.

use super::trust::Doubt;
use crate::error::{Error, ErrorKind, Result};
use diskvault_format::id::PointId;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};
use std::collections::{BTreeMap, BTreeSet};

/// What a rule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// Every point.
    Point,
    /// The newest point of an hour.
    Hour,
    /// The newest point of a day.
    Day,
    /// The newest point of a week of ISO 8601, which begins on Monday.
    Week,
    /// The newest point of a month.
    Month,
    /// The newest point of a year.
    Year,
}

/// How far back a rule reaches.
#[derive(Clone, Copy, Debug)]
pub enum Reach {
    /// So many periods that have a point, from the newest on.
    Count(u32),
    /// So long before the newest point of the group.
    Within(Span),
}

/// One rule.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// What it counts.
    pub period: Period,
    /// How far back.
    pub reach: Reach,
}

/// A retention policy: a point is kept if any rule keeps it.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The rules.
    pub rules: Vec<Rule>,
    /// Points with one of these tags are kept: a key, or a key and its value.
    pub tags: Vec<(String, Option<String>)>,
    /// The zone whose hours, days, weeks, months and years count.
    pub zone: TimeZone,
}

/// What a policy knows of a point.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its id.
    pub id: PointId,
    /// Points of one group share the rules' counts.
    pub group: String,
    /// Its series.
    pub series: String,
    /// Its place in the series.
    pub sequence: u64,
    /// The instant it shows.
    pub time_unix_ns: i64,
    /// Why that is not believed, if it is not.
    pub doubt: Option<Doubt>,
    /// Why it is pinned, if it is.
    pub pin: Option<String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

impl Candidate {
    /// True if it may take a place that a rule gives.
    fn counts(&self, now: i64) -> bool {
        self.time_unix_ns <= now && self.doubt.is_none()
    }
}

/// Why a point is kept, in words; empty for one that is dropped.
pub type Reasons = Vec<String>;

impl Policy {
    /// Why each candidate is kept, in their order; nothing for one that is dropped. `now` is in
    /// nanoseconds since 1970.
    ///
    /// # Errors
    /// `Usage` if the policy keeps nothing by itself, or only points with tags that none has, or a rule of 0, or if a time or duration is
    /// beyond the calendar.
    pub fn decide(&self, candidates: &[Candidate], now: i64) -> Result<Vec<Reasons>> {
        self.validate()?;
        let mut reasons: Vec<Reasons> = vec![Vec::new(); candidates.len()];
        for number in newest_of_each_series(candidates, now) {
            reasons[number].push("newest of its series".into());
        }
        for (candidate, reasons) in candidates.iter().zip(&mut reasons) {
            if let Some(pin) = &candidate.pin {
                let why = if pin.is_empty() { String::new() } else { format!(": {pin}") };
                reasons.push(format!("pinned{why}"));
            }
            if candidate.time_unix_ns > now {
                reasons.push("dated in the future".into());
            } else if let Some(doubt) = candidate.doubt {
                reasons.push(doubt.text().into());
            }
            reasons.extend(self.kept_tag(candidate));
        }
        if self.rules.is_empty() && !candidates.iter().any(|one| self.kept_tag(one).is_some()) {
            let text = "cannot use a policy that keeps nothing: no point has the tag";
            return Err(Error::new(ErrorKind::Usage, text));
        }
        for group in groups(candidates, now).values() {
            for rule in &self.rules {
                for (number, why) in self.kept_by(rule, group, candidates)? {
                    reasons[number].push(why);
                }
            }
        }
        Ok(reasons)
    }

    fn validate(&self) -> Result<()> {
        let usage = |text: &str| Err(Error::new(ErrorKind::Usage, text));
        if self.rules.is_empty() && self.tags.is_empty() {
            return usage("cannot use a policy that keeps nothing");
        }
        for rule in &self.rules {
            match rule.reach {
                Reach::Count(0) => return usage("cannot use a rule that keeps 0 points"),
                Reach::Within(span) if !span.is_positive() => {
                    return usage("cannot use a duration that is not positive");
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn kept_tag(&self, candidate: &Candidate) -> Option<String> {
        self.tags.iter().find_map(|(key, wanted)| {
            let value = candidate.tags.get(key)?;
            let fits = wanted.as_ref().is_none_or(|wanted| wanted == value);
            fits.then(|| format!("tag {key}={value}"))
        })
    }

    /// The members of a group, newest first, that a rule keeps, and why.
    fn kept_by(
        &self,
        rule: &Rule,
        group: &[usize],
        candidates: &[Candidate],
    ) -> Result<Vec<(usize, String)>> {
        let mut kept = Vec::new();
        let mut last = None;
        let mut earliest = None;
        for number in group {
            let time = self.local(candidates[*number].time_unix_ns)?;
            if let Reach::Within(span) = rule.reach {
                let earliest = match &earliest {
                    Some(earliest) => earliest,
                    None => earliest.insert(time.checked_sub(span).map_err(out_of_range)?),
                };
                if time < *earliest {
                    break;
                }
            }
            let (key, why) = rule.period.of(&time, kept.len());
            if last.as_ref() == Some(&key) {
                continue;
            }
            if matches!(rule.reach, Reach::Count(count) if kept.len() as u64 >= u64::from(count)) {
                break;
            }
            let why = match rule.reach {
                Reach::Count(_) => why,
                Reach::Within(span) => format!("{why} within {span:#}"),
            };
            kept.push((*number, why));
            last = Some(key);
        }
        Ok(kept)
    }

    fn local(&self, unix_ns: i64) -> Result<Zoned> {
        let instant = Timestamp::from_nanosecond(i128::from(unix_ns)).map_err(out_of_range)?;
        Ok(instant.to_zoned(self.zone.clone()))
    }
}

fn out_of_range(cause: jiff::Error) -> Error {
    Error::new(ErrorKind::Usage, "cannot count with a time").because(cause)
}

impl Period {
    /// What is equal for all instants of one period, and its name. Hours carry the distance to
    /// UTC: where clocks go back, the same hour comes twice.
    fn of(self, time: &Zoned, position: usize) -> ([i32; 4], String) {
        let (year, month, day) = (time.year(), time.month(), time.day());
        let (y, m, d) = (i32::from(year), i32::from(month), i32::from(day));
        match self {
            Period::Point => {
                let number = i32::try_from(position).unwrap_or(i32::MAX);
                ([0, number, 0, 0], format!("last {}", position + 1))
            }
            Period::Hour => {
                let (hour, offset) = (time.hour(), time.offset().seconds());
                let name = format!("hour {year}-{month:02}-{day:02}T{hour:02}");
                ([1, y, (m * 32 + d) * 32 + i32::from(hour), offset], name)
            }
            Period::Day => ([2, y, m, d], format!("day {year}-{month:02}-{day:02}")),
            Period::Week => {
                let week = time.date().iso_week_date();
                let (of, number) = (week.year(), week.week());
                ([3, of.into(), number.into(), 0], format!("week {of}-W{number:02}"))
            }
            Period::Month => ([4, y, m, 0], format!("month {year}-{month:02}")),
            Period::Year => ([5, y, 0, 0], format!("year {year}")),
        }
    }
}

/// The point of each series with the greatest sequence number, as `latest` takes it; and if that is
/// dated in the future or not believed, also the one that would be it otherwise.
fn newest_of_each_series(candidates: &[Candidate], now: i64) -> BTreeSet<usize> {
    let key = |number: usize| {
        let candidate = &candidates[number];
        (candidate.sequence, candidate.time_unix_ns, candidate.id)
    };
    let mut newest: BTreeMap<(&str, bool), usize> = BTreeMap::new();
    for (number, candidate) in candidates.iter().enumerate() {
        for counts_all in [true, false] {
            if counts_all || candidate.counts(now) {
                let newest = newest.entry((&candidate.series, counts_all)).or_insert(number);
                if key(number) > key(*newest) {
                    *newest = number;
                }
            }
        }
    }
    newest.into_values().collect()
}

/// The members of each group that count, newest first.
fn groups(candidates: &[Candidate], now: i64) -> BTreeMap<&str, Vec<usize>> {
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (number, candidate) in candidates.iter().enumerate() {
        if candidate.counts(now) {
            groups.entry(&candidate.group).or_default().push(number);
        }
    }
    for group in groups.values_mut() {
        group.sort_by_key(|number| {
            let candidate = &candidates[*number];
            std::cmp::Reverse((candidate.time_unix_ns, candidate.sequence, candidate.id))
        });
    }
    groups
}

#[cfg(test)]
mod tests;

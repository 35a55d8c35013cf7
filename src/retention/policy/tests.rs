//! Tests of the retention policy.
#![allow(clippy::unwrap_used, reason = "a test may stop where it fails")]

use super::*;
use proptest::prelude::*;

const NOW: &str = "2027-01-01T00:00:00Z";

fn at(time: &str) -> i64 {
    i64::try_from(time.parse::<Timestamp>().unwrap().as_nanosecond()).unwrap()
}

/// Points of one series, one for each time, in the order they were made.
fn points(times: &[&str]) -> Vec<Candidate> {
    let times = times.iter().map(|time| at(time));
    times.enumerate().map(|(number, time)| candidate(number, time)).collect()
}

fn candidate(number: usize, time_unix_ns: i64) -> Candidate {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&(number as u64).to_be_bytes());
    Candidate {
        id: PointId(id),
        group: "web".into(),
        series: "web".into(),
        sequence: number as u64 + 1,
        time_unix_ns,
        doubt: None,
        pin: None,
        tags: BTreeMap::new(),
    }
}

fn policy(rules: &[(Period, u32)]) -> Policy {
    let count =
        |(period, count): &(Period, u32)| Rule { period: *period, reach: Reach::Count(*count) };
    Policy { rules: rules.iter().map(count).collect(), tags: Vec::new(), zone: TimeZone::UTC }
}

fn within(period: Period, span: &str) -> Policy {
    let reach = Reach::Within(span.parse().unwrap());
    Policy { rules: vec![Rule { period, reach }], tags: Vec::new(), zone: TimeZone::UTC }
}

fn in_zone(name: &str, policy: Policy) -> Policy {
    Policy { zone: TimeZone::get(name).unwrap(), ..policy }
}

/// The positions of the points that are kept.
fn kept(policy: &Policy, points: &[Candidate]) -> Vec<usize> {
    let reasons = policy.decide(points, at(NOW)).unwrap();
    (0..points.len()).filter(|number| !reasons[*number].is_empty()).collect()
}

#[test]
fn the_newest_of_each_period_is_kept() {
    let points = points(&[
        "2026-11-01T01:00:00Z",
        "2026-11-01T02:00:00Z",
        "2026-11-02T01:00:00Z",
        "2026-11-04T01:00:00Z",
        "2026-11-04T01:30:00Z",
    ]);
    assert_eq!(kept(&policy(&[(Period::Point, 2)]), &points), [3, 4]);
    assert_eq!(kept(&policy(&[(Period::Hour, 2)]), &points), [2, 4]);
    // Days without a point do not count.
    assert_eq!(kept(&policy(&[(Period::Day, 2)]), &points), [2, 4]);
    assert_eq!(kept(&policy(&[(Period::Day, 9)]), &points), [1, 2, 4]);
    assert_eq!(kept(&policy(&[(Period::Month, 9)]), &points), [4]);
    let reasons = policy(&[(Period::Day, 1), (Period::Year, 1)]).decide(&points, at(NOW)).unwrap();
    assert_eq!(reasons[4], ["newest of its series", "day 2026-11-04", "year 2026"]);
    assert!(reasons[3].is_empty());
}

#[test]
fn weeks_are_those_of_iso_8601() {
    // 28 December 2026 is a Monday of week 53; 3 January 2027 would be its Sunday.
    let points = points(&["2026-12-21T10:00:00Z", "2026-12-27T10:00:00Z", "2026-12-28T10:00:00Z"]);
    assert_eq!(kept(&policy(&[(Period::Week, 2)]), &points), [1, 2]);
    let reasons = policy(&[(Period::Week, 2)]).decide(&points, at(NOW)).unwrap();
    assert_eq!(reasons[2], ["newest of its series", "week 2026-W53"]);
}

#[test]
fn an_hour_that_comes_twice_is_two_hours_and_one_that_is_left_out_none() {
    // Central Europe: clocks go back at 01:00 UTC on 25 October 2026, forward on 29 March.
    let back = points(&[
        "2026-10-24T23:30:00Z", // 01:30 +02
        "2026-10-25T00:30:00Z", // 02:30 +02
        "2026-10-25T01:30:00Z", // 02:30 +01
        "2026-10-25T02:30:00Z", // 03:30 +01
    ]);
    let hours = in_zone("Europe/Berlin", policy(&[(Period::Hour, 9)]));
    assert_eq!(kept(&hours, &back), [0, 1, 2, 3]);
    let forward = points(&["2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z", "2026-03-29T01:45:00Z"]);
    assert_eq!(kept(&hours, &forward), [0, 2]);
    // The day of 25 hours is one day.
    let days = in_zone("Europe/Berlin", policy(&[(Period::Day, 9)]));
    let day = points(&["2026-10-24T22:00:00Z", "2026-10-25T22:59:59Z", "2026-10-25T23:00:00Z"]);
    assert_eq!(kept(&days, &day), [1, 2]);
}

#[test]
fn the_zone_decides_which_day_it_is() {
    let points = points(&["2026-06-01T03:00:00Z", "2026-06-01T05:00:00Z"]);
    assert_eq!(kept(&policy(&[(Period::Day, 9)]), &points), [1]);
    let new_york = in_zone("America/New_York", policy(&[(Period::Day, 9)]));
    assert_eq!(kept(&new_york, &points), [0, 1]);
}

#[test]
fn durations_count_from_the_newest_point_and_know_the_calendar() {
    let leap = points(&["2024-02-28T12:00:00Z", "2024-02-29T12:00:00Z", "2024-03-31T12:00:00Z"]);
    // A month before 31 March is 29 February in a leap year.
    assert_eq!(kept(&within(Period::Point, "1mo"), &leap), [1, 2]);
    assert_eq!(kept(&within(Period::Point, "1d"), &leap), [2]);
    assert_eq!(kept(&within(Period::Month, "1y"), &leap), [1, 2]);
    // That nothing was made for years drops nothing.
    assert_eq!(kept(&within(Period::Point, "3y"), &leap), [0, 1, 2]);
    // A day is a day on the clock, also if it has 25 hours.
    let berlin = in_zone("Europe/Berlin", within(Period::Point, "1d"));
    let day = points(&["2026-10-24T10:00:00Z", "2026-10-25T11:00:00Z"]);
    assert_eq!(kept(&berlin, &day), [0, 1]);
    assert_eq!(kept(&within(Period::Point, "24h"), &day), [1]);
}

#[test]
fn points_of_one_second_are_told_apart_by_their_sequence() {
    let same = ["2026-11-01T01:00:00Z"; 3];
    assert_eq!(kept(&policy(&[(Period::Point, 1)]), &points(&same)), [2]);
    assert_eq!(kept(&policy(&[(Period::Point, 2)]), &points(&same)), [1, 2]);
    assert_eq!(kept(&policy(&[(Period::Day, 5)]), &points(&same)), [2]);
}

#[test]
fn a_point_dated_in_the_future_costs_no_other_its_place() {
    let mut found = points(&["2026-11-01T01:00:00Z", "2026-11-02T01:00:00Z"]);
    let last = policy(&[(Period::Point, 1), (Period::Day, 1), (Period::Year, 1)]);
    assert_eq!(kept(&last, &found), [1]);
    found.push(candidate(2, at("2031-01-01T00:00:00Z")));
    assert_eq!(kept(&last, &found), [1, 2]);
    assert_eq!(kept(&within(Period::Point, "1d"), &found), [0, 1, 2]);
    let reasons = last.decide(&found, at(NOW)).unwrap();
    assert_eq!(reasons[2], ["newest of its series", "dated in the future"]);
}

#[test]
fn pins_and_tags_keep_and_the_newest_goes_by_sequence() {
    let mut found = points(&[
        "2026-11-01T01:00:00Z",
        "2026-11-02T01:00:00Z",
        "2026-11-03T01:00:00Z",
        "2026-11-04T01:00:00Z",
        // The clock had been set back.
        "2026-10-01T01:00:00Z",
    ]);
    found[0].pin = Some("audit".into());
    found[1].tags.insert("state".into(), "good".into());
    let mut wanted = policy(&[(Period::Point, 1)]);
    wanted.tags = vec![("state".into(), Some("good".into()))];
    assert_eq!(kept(&wanted, &found), [0, 1, 3, 4]);
    wanted.tags = vec![("state".into(), Some("bad".into()))];
    assert_eq!(kept(&wanted, &found), [0, 3, 4]);
    let mut only = Policy { rules: Vec::new(), ..wanted.clone() };
    assert_eq!(only.decide(&found, at(NOW)).unwrap_err().kind(), ErrorKind::Usage);
    only.tags.clear();
    assert_eq!(only.decide(&found, at(NOW)).unwrap_err().kind(), ErrorKind::Usage);
    wanted.tags = vec![("state".into(), None)];
    wanted.rules.clear();
    assert_eq!(kept(&wanted, &found), [0, 1, 4]);
    let reasons = wanted.decide(&found, at(NOW)).unwrap();
    assert_eq!(
        (&reasons[0][..], &reasons[1][..]),
        (&["pinned: audit".into()][..], &["tag state=good".into()][..])
    );
}

#[test]
fn groups_have_counts_of_their_own() {
    let mut found =
        points(&["2026-11-01T01:00:00Z", "2026-11-02T01:00:00Z", "2026-11-03T01:00:00Z"]);
    found[0].group = "db".into();
    assert_eq!(kept(&policy(&[(Period::Point, 1)]), &found), [0, 2]);
}

#[test]
fn policies_that_say_nothing_or_nonsense_are_refused() {
    let found = points(&["2026-11-01T01:00:00Z"]);
    for bad in [policy(&[]), policy(&[(Period::Day, 0)]), within(Period::Point, "-1d")] {
        assert_eq!(bad.decide(&found, at(NOW)).unwrap_err().kind(), ErrorKind::Usage);
    }
    let far = within(Period::Point, "19000y");
    assert_eq!(far.decide(&found, at(NOW)).unwrap_err().kind(), ErrorKind::Usage);
}

const PERIODS: [Period; 6] =
    [Period::Point, Period::Hour, Period::Day, Period::Week, Period::Month, Period::Year];

proptest! {
    /// Whatever the times and rules: the newest by sequence stays, a rule more drops nothing, and
    /// a point from the future drops nothing.
    #[test]
    fn more_rules_and_future_points_only_keep_more(
        hours in prop::collection::vec(0_i64..40_000, 1..40),
        rules in prop::collection::vec((0_usize..6, 1_u32..5), 1..4),
        more in (0_usize..6, 1_u32..5),
    ) {
        let base = at("2022-01-01T00:30:00Z");
        let mut found: Vec<Candidate> = hours
            .iter()
            .enumerate()
            .map(|(number, hours)| candidate(number, base + hours * 3_600_000_000_000))
            .collect();
        let rules: Vec<_> = rules.iter().map(|(period, count)| (PERIODS[*period], *count)).collect();
        let few = policy(&rules);
        let many = policy(&[&rules[..], &[(PERIODS[more.0], more.1)]].concat());
        let by_few = kept(&few, &found);
        prop_assert!(by_few.contains(&(found.len() - 1)));
        let by_many = kept(&many, &found);
        prop_assert!(by_few.iter().all(|number| by_many.contains(number)));
        // No rule keeps more than it counts.
        let most: u32 = rules.iter().map(|(_, count)| count).sum();
        prop_assert!(by_few.len() <= most as usize + 1);
        found.push(candidate(found.len(), at("2029-01-01T00:00:00Z")));
        let with_future = kept(&few, &found);
        prop_assert!(by_few.iter().all(|number| with_future.contains(number)));
    }
}

#[test]
fn a_point_whose_date_is_not_believed_takes_no_place_and_stays() {
    let mut points: Vec<Candidate> =
        (1..=4).map(|day| candidate(day, at(&format!("2026-11-0{day}T03:00:00Z")))).collect();
    // Added later, for the evenings of days that have a good one each.
    for day in 1..=3 {
        let mut late = candidate(4 + day, at(&format!("2026-11-0{day}T23:00:00Z")));
        late.doubt = Some(Doubt::OutOfOrder);
        points.push(late);
    }
    let policy = policy(&[(Period::Day, 3)]);
    let kept = policy.decide(&points, at(NOW)).unwrap();
    assert_eq!(kept[0], [""; 0]);
    for good in &kept[1..4] {
        assert!(good[0].starts_with("day ") || good[0] == "newest of its series", "{good:?}");
    }
    for late in &kept[4..] {
        assert!(late.contains(&"dated before points that were received earlier".to_string()));
    }
}

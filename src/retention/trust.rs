//! Whether the date of a point can be believed: a pure function of what points say and of when the
//! storage took them, which no writer chooses.
//!
//! A policy counts by dates, so who may add points to a series could push good ones out by dates of
//! his choice. Invariant: whatever is added to a series, no date later than its receipt counts, and
//! none that goes back behind a point which was there before. What cannot be believed takes no
//! other point's place and is kept, so that it shows.

use diskvault_format::id::PointId;

/// How far clocks of writers and storages may differ: an hour.
const SLACK_NS: i64 = 3_600_000_000_000;

/// What is known of a point's dates, in nanoseconds since 1970.
#[derive(Clone, Debug)]
pub struct Dated<'a> {
    /// The point.
    pub id: PointId,
    /// Its series.
    pub series: &'a str,
    /// What the point says.
    pub time_unix_ns: i64,
    /// When the storage took it, if it can tell.
    pub received_unix_ns: Option<i64>,
}

/// Why a date is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// It is later than when the point was received.
    AfterReceipt,
    /// It is earlier than that of a point of the series which was received before.
    OutOfOrder,
}

impl Doubt {
    /// In words.
    pub const fn text(self) -> &'static str {
        match self {
            Doubt::AfterReceipt => "dated later than it was received",
            Doubt::OutOfOrder => "dated before points that were received earlier",
        }
    }
}

/// The doubts about each point, in their order. A storage that cannot tell when it took a point
/// raises none.
pub fn doubts(points: &[Dated<'_>]) -> Vec<Option<Doubt>> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by_key(|&number| {
        let point = &points[number];
        (point.series, point.received_unix_ns, point.time_unix_ns, point.id)
    });
    let mut doubts = vec![None; points.len()];
    // The greatest date of the series that is believed, of those received so far.
    let mut believed: Option<(&str, i64)> = None;
    for number in order {
        let Dated { series, time_unix_ns: time, received_unix_ns, .. } = points[number];
        let Some(received) = received_unix_ns else { continue };
        let greatest = believed.filter(|(of, _)| *of == series).map(|(_, time)| time);
        if time > received.saturating_add(SLACK_NS) {
            doubts[number] = Some(Doubt::AfterReceipt);
        } else if greatest.is_some_and(|greatest| time < greatest.saturating_sub(SLACK_NS)) {
            doubts[number] = Some(Doubt::OutOfOrder);
        } else {
            believed = Some((series, greatest.map_or(time, |greatest| greatest.max(time))));
        }
    }
    doubts
}

/// True if so many of a series' points are to go in one run that somebody should look first: ten
/// or more, and more than half.
pub const fn is_unusual(going: usize, of: usize) -> bool {
    going >= 10 && going * 2 > of
}

/// One point of a series, as [`pushes_out`] looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// When the storage took it.
    pub received_unix_ns: i64,
    /// True if it is to go.
    pub goes: bool,
}

/// True if points that came in a rush would take the places of points that had come one by one, as
/// in a flood: three or more go, and those that came behind all of them came more than four times
/// as fast as they did.
pub fn pushes_out(mut turns: Vec<Turn>) -> bool {
    turns.sort_by_key(|turn| turn.received_unix_ns);
    let Some(last) = turns.iter().rposition(|turn| turn.goes) else { return false };
    let (mut going, mut behind) = (Vec::new(), Vec::new());
    for (number, pair) in (1..).zip(turns.windows(2)) {
        let gap = pair[1].received_unix_ns.saturating_sub(pair[0].received_unix_ns);
        match (pair[1].goes, number > last) {
            (true, _) => going.push(gap),
            (false, true) => behind.push(gap),
            (false, false) => {}
        }
    }
    let count = turns.iter().filter(|turn| turn.goes).count();
    match (count, median(&mut going), median(&mut behind)) {
        (3.., Some(going), Some(behind)) => going > behind.saturating_mul(4),
        _ => false,
    }
}

fn median(gaps: &mut [i64]) -> Option<i64> {
    gaps.sort_unstable();
    gaps.get(gaps.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * SLACK_NS;

    fn point(number: u8, time: i64, received: Option<i64>) -> Dated<'static> {
        let id = PointId([number; 32]);
        Dated { id, series: "web01", time_unix_ns: time, received_unix_ns: received }
    }

    #[test]
    fn dates_are_believed_in_the_order_of_receipt() {
        let honest: Vec<Dated<'_>> = (1..=5)
            .map(|day| point(day, i64::from(day) * DAY, Some(i64::from(day) * DAY + 1000)))
            .collect();
        assert_eq!(doubts(&honest), [None; 5]);
        // Years that are brought over in an afternoon, oldest first.
        let copied: Vec<Dated<'_>> = (1..=5)
            .map(|day| point(day, i64::from(day) * DAY, Some(900 * DAY + i64::from(day))))
            .collect();
        assert_eq!(doubts(&copied), [None; 5]);
        // A storage that cannot tell.
        assert_eq!(doubts(&[point(1, 9 * DAY, None), point(2, DAY, None)]), [None; 2]);
    }

    #[test]
    fn a_date_that_goes_back_or_ahead_is_not() {
        let mut points: Vec<Dated<'_>> = (1..=5)
            .map(|day| point(day, i64::from(day) * DAY, Some(i64::from(day) * DAY + 1000)))
            .collect();
        // Added on the sixth day: one for each evening before, and two for days to come.
        points.push(point(6, 2 * DAY + 20 * SLACK_NS, Some(6 * DAY)));
        points.push(point(7, 4 * DAY + 20 * SLACK_NS, Some(6 * DAY + 1)));
        points.push(point(8, 7 * DAY, Some(6 * DAY + 2)));
        points.push(point(9, i64::MAX, Some(6 * DAY + 3)));
        // And an honest one, behind them.
        points.push(point(10, 6 * DAY, Some(6 * DAY + 4)));
        let found = doubts(&points);
        assert_eq!(found[..5], [None; 5]);
        assert_eq!(found[5..7], [Some(Doubt::OutOfOrder); 2]);
        assert_eq!(found[7..9], [Some(Doubt::AfterReceipt); 2]);
        assert_eq!(found[9], None);
    }

    #[test]
    fn clocks_that_differ_a_little_raise_no_doubt() {
        let points = [
            point(1, DAY, Some(DAY)),
            point(2, 2 * DAY, Some(2 * DAY - SLACK_NS / 2)),
            point(3, 2 * DAY - SLACK_NS / 2, Some(2 * DAY)),
        ];
        assert_eq!(doubts(&points), [None; 3]);
    }

    /// A series with a point at each of these hours, of which those before `kept_from` go.
    fn turns(hours: impl IntoIterator<Item = i64>, kept_from: i64) -> Vec<Turn> {
        let turn = |hour| Turn { received_unix_ns: hour * SLACK_NS, goes: hour < kept_from };
        hours.into_iter().map(turn).collect()
    }

    #[test]
    fn a_rush_that_takes_the_places_of_others_is_seen() {
        let days = |count: i64| (0..count).map(|day| day * 24);
        // Seven days, and seven points of this hour: the last seven are kept.
        let mut flooded = turns(days(7), 145);
        flooded.extend(
            (0..7).map(|number| Turn { received_unix_ns: 145 * SLACK_NS + number, goes: false }),
        );
        assert!(pushes_out(flooded.clone()));
        // Fewer, as long as they are more than what is left of the others.
        flooded.truncate(11);
        flooded.iter_mut().for_each(|turn| turn.goes = turn.received_unix_ns < 90 * SLACK_NS);
        assert!(pushes_out(flooded));
        // A policy that is used for the first time, or late.
        assert!(!pushes_out(turns(days(30), 23 * 24)));
        // Every hour, of which one a day stays in the end: as many each day.
        assert!(!pushes_out(turns((0..48).map(|hour| 1000 + hour), 1024)));
        // Years that were copied in an afternoon, and then days.
        let mut copied: Vec<Turn> = turns(days(9), 0);
        copied
            .extend((0..30).map(|number| Turn { received_unix_ns: number - SLACK_NS, goes: true }));
        assert!(!pushes_out(copied));
        // Too few to tell.
        assert!(!pushes_out(turns([0, 24, 48, 48], 48)) && !pushes_out(Vec::new()));
    }
}

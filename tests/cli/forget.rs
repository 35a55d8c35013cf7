//! `forget`, `pin`, `unpin` and `tag`, as a user meets them.

use crate::support::{MIB, Vault, random};
use serde_json::Value;

/// A point of `series` at each time; full ids.
fn with_points(vault: &Vault, series: &str, times: &[&str]) -> Vec<String> {
    let image = vault.write("image", &random(1, MIB));
    times.iter().map(|time| vault.backup(series, &["--time", time, &image])).collect()
}

/// What a run with `--json` said of each point: id, kept or not, reasons.
fn decisions(vault: &Vault, arguments: &[&str]) -> Vec<(String, bool, String)> {
    let mut all = vec!["--json", "forget"];
    all.extend(arguments);
    let text = vault.ok(&all).text();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter(|line| line["message_type"] != "summary")
        .map(|line| {
            let id = line["point_id"].as_str().unwrap().to_string();
            let because = line["because"].as_str().unwrap().to_string();
            (id, line["message_type"] == "keep", because)
        })
        .collect()
}

#[test]
fn a_policy_says_why_and_does_what_it_said() {
    let vault = Vault::new();
    let times =
        ["2026-10-31T22:00Z", "2026-11-01T02:00Z", "2026-11-01T22:00Z", "2026-11-02T02:00Z"];
    let ids = with_points(&vault, "web01", &times);
    let other = with_points(&vault, "db01", &times[..1]);
    let rules = ["--keep-daily", "2", "--series", "web01"];
    let planned = decisions(&vault, &[&rules[..], &["--dry-run"]].concat());
    assert_eq!(
        planned,
        [
            (ids[0].clone(), false, "no rule keeps it".into()),
            (ids[1].clone(), false, "no rule keeps it".into()),
            (ids[2].clone(), true, "day 2026-11-01".into()),
            (ids[3].clone(), true, "newest of its series, day 2026-11-02".into()),
        ]
    );
    assert_eq!(vault.point_count(), 5, "a dry run does nothing");
    let both = vault.ok(&[&["forget"], &rules[..], &["--prune", "--dry-run"]].concat());
    both.prints("would keep 2, forget 2 points").prints("would free about ");
    let foreseen: Vec<_> = both.text().lines().rev().take(3).map(String::from).collect();
    assert_eq!(vault.point_count(), 5, "nor does one with a prune");
    // In New York the first two are of the evening of 31 October.
    let there =
        decisions(&vault, &[&rules[..], &["-n", "--timezone", "America/New_York"]].concat());
    assert_eq!(there[3].2, "newest of its series, day 2026-11-01");
    let outcome = vault.ok(&[&["forget"], &rules[..]].concat());
    outcome.prints("kept 2, forgot 2 points").prints("day 2026-11-02");
    let left = vault.json(&["list"]);
    let left: Vec<&str> =
        left.as_array().unwrap().iter().map(|point| point["point_id"].as_str().unwrap()).collect();
    assert_eq!(left, [other[0].as_str(), &ids[2], &ids[3]]);
    // What the prune would do was told in the dry run already.
    let left = vault.ok(&["prune", "--dry-run"]);
    assert!(foreseen.iter().all(|line| left.text().contains(line)), "{foreseen:?} {left:?}");
    vault.assert_intact();
    assert_eq!(decisions(&vault, &rules), planned[2..], "a second time there is nothing to do");
}

#[test]
fn what_was_forgotten_is_listed_and_comes_back() {
    let vault = Vault::new();
    let ids = with_points(&vault, "web01", &["2026-11-01T02:00Z", "2026-11-02T02:00Z"]);
    vault.ok(&["forget", &ids[0][..8]]).prints("forget");
    assert_eq!(vault.point_count(), 1);
    vault.fails(1, &["restore", &ids[0][..12], &vault.arg("x")], "cannot find a point with id");
    vault.ok(&["list", "--forgotten"]).prints(&ids[0][..8]).prints("1 point");
    vault.ok(&["forget", "--undo", &ids[0][..8]]).prints("it answers to its old id, too");
    vault.assert_restores(&format!("{}/image", &ids[0][..12]), &random(1, MIB));
    vault.ok(&["show", &ids[0][..12]]).prints("forgotten and brought back");
    vault.ok(&["list", "--forgotten"]).prints("0 points");
    let text = "cannot find a forgotten point";
    vault.fails(1, &["forget", "--undo", "00000000"], text).hints("list --forgotten");
    vault.fails(2, &["forget", "--undo", &ids[1]], "it is not forgotten");
    vault.assert_intact();
}

#[test]
fn pins_and_tags_keep_points() {
    let vault = Vault::new();
    let times =
        ["2026-11-01T02:00Z", "2026-11-02T02:00Z", "2026-11-03T02:00Z", "2026-11-04T02:00Z"];
    let ids = with_points(&vault, "web01", &times);
    vault.ok(&["pin", "--reason", "audit 2026", &ids[0]]).prints("pinned point");
    vault.ok(&["tag", &ids[1], "state=good", "who=me"]);
    let keep = ["--keep-last", "1", "--keep-tag", "state=good"];
    let planned = decisions(&vault, &[&keep[..], &["-n"]].concat());
    let reasons: Vec<&str> = planned.iter().map(|(_, _, reasons)| reasons.as_str()).collect();
    let newest = "newest of its series, last 1";
    assert_eq!(reasons, ["pinned: audit 2026", "tag state=good", "no rule keeps it", newest]);
    vault.ok(&["list"]).prints("(pinned)").prints("state=good");
    vault.ok(&["show", &ids[0]]).prints("pinned    audit 2026");
    for arguments in [&["forget", &ids[0]][..], &["forget", "-n", &ids[0]]] {
        vault.fails(1, arguments, "it is pinned (audit 2026)").hints("diskvault unpin");
    }
    assert_eq!(vault.point_count(), 4);
    vault.ok(&["tag", &ids[1], "state="]);
    vault.ok(&["unpin", &ids[0]]).prints("unpinned point");
    vault.ok(&[&["forget"], &keep[..]].concat()).prints("forgot 3 points");
    assert_eq!(vault.point_count(), 1);
    vault.assert_intact();
}

#[test]
fn the_newest_point_goes_only_by_force() {
    let vault = Vault::new();
    let ids = with_points(&vault, "web01", &["2026-11-01T02:00Z", "2026-11-02T02:00Z"]);
    let text = "it is the newest of web01";
    vault.fails(2, &["forget", &ids[1]], text).hints("--force");
    vault.fails(2, &["forget", "web01", &ids[0]], text);
    assert_eq!(vault.point_count(), 2);
    vault.ok(&["pin", "web01"]);
    vault.ok(&["forget", "--force", "web01@latest", &ids[0]]);
    assert_eq!(vault.point_count(), 0);
    vault.assert_intact();
}

#[test]
fn a_point_from_the_future_costs_nobody_a_place() {
    let vault = Vault::new();
    let ids =
        with_points(&vault, "web01", &["2026-11-01T02:00Z", "2026-11-02T02:00Z", "2031-01-01"]);
    let planned = decisions(&vault, &["--keep-last", "1", "--keep-within", "1d"]);
    let kept: Vec<&String> = planned.iter().filter(|one| one.1).map(|one| &one.0).collect();
    assert_eq!(kept, [&ids[0], &ids[1], &ids[2]]);
}

#[test]
fn policies_that_make_no_sense_are_refused() {
    let vault = Vault::new();
    let ids = with_points(&vault, "web01", &["2026-11-01T02:00Z", "2026-11-02T02:00Z"]);
    let cases: [(&[&str], &str); 12] = [
        (&[], "cannot choose what to forget: no point is named and no rule says what to keep"),
        (&["--keep-last", "0"], "cannot use a rule that keeps 0 points"),
        (&["--keep-within=-3d"], "cannot use a duration that is not positive"),
        (&["--keep-within", "soon"], "cannot read the duration"),
        (&["--keep-within", "6m"], "an hour is the shortest unit, and a month is 1mo"),
        (&["--keep-tag", ""], "cannot read the tag"),
        (&["--keep-tag", "nobody=has"], "no point has the tag"),
        (&["--keep-daily", "1", "--timezone", "Mars/Base"], "cannot find the time zone Mars/Base"),
        (&["--keep-daily", "1", "--group-by", "mood"], "cannot group by"),
        (&["--keep-daily", "1", &ids[0]], "cannot forget named points and keep others"),
        (&["--keep-daily", "1", "--undo", &ids[0]], "cannot bring a point back and keep others"),
        (&["web01/image"], "cannot forget a part of a point"),
    ];
    for (arguments, text) in cases {
        vault.fails(2, &[&["forget"], arguments].concat(), text);
    }
    vault.fails(1, &["forget", "--keep-last", "1", "--series", "no"], "cannot find a series");
    vault.fails(2, &["tag", "web01", "=x"], "cannot read the tag");
    vault.fails(2, &["pin", "web01/image"], "expected a point, not a part of it");
    assert_eq!(vault.point_count(), 2);
}

/// What a host that was taken over could do to push good points out, by dates or by many points.
#[test]
fn dates_of_choice_and_floods_push_no_good_point_out() {
    let vault = Vault::new();
    let image = vault.write("vda", b"image");
    let back_up = |time: &str| vault.backup("web01", &["--time", time, &image]);
    let good: Vec<String> =
        (1..=5).map(|day| back_up(&format!("2026-11-0{day}T03:00:00Z"))).collect();
    for day in 1..=5 {
        back_up(&format!("2026-11-0{day}T22:00:00Z"));
    }
    back_up("2199-01-01");
    let table = vault.ok(&["forget", "--keep-daily", "5", "--dry-run"]);
    // The one at 22:00 of the last day is in order: it is later, and was received later.
    for id in &good[..4] {
        let row = table.text().lines().find(|row| row.contains(&id[..8])).unwrap().to_string();
        assert!(row.starts_with("keep") && row.contains(" day 2026-11-0"), "{row}");
    }
    assert_eq!(table.text().matches("dated before points that were received earlier").count(), 4);
    assert_eq!(table.text().matches("dated in the future").count(), 1);
    let trusting = vault.ok(&["forget", "--keep-daily", "5", "--dry-run", "--trust-times"]);
    assert_eq!(trusting.text().lines().filter(|row| row.starts_with("forget")).count(), 5);
    // A flood: good points are more than half gone, so somebody has to look.
    for _ in 0..12 {
        vault.backup("flooded", &[&image]);
    }
    let dry = vault.run(&["forget", "--series", "flooded", "--keep-last", "1", "--dry-run"]);
    assert_eq!(dry.code, 4, "{dry:?}");
    dry.says("cannot forget 11 of 12 points of flooded at once");
    let outcome = vault.run(&["forget", "--keep-last", "2"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    outcome.says("cannot forget 10 of 12 points of flooded at once").hints("--allow-many");
    assert_eq!(vault.ok(&["list", "--json", "flooded"]).text().matches("\"point_id\"").count(), 12);
    vault.ok(&["forget", "--keep-last", "2", "--allow-many"]);
    assert_eq!(vault.ok(&["list", "--json", "flooded"]).text().matches("\"point_id\"").count(), 2);
}

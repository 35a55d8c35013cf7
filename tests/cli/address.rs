//! `list`, `show`, and every way to name a point and a part of it.

use crate::support::{PASSWORD, Vault, random};
use diskvault::environment::SystemEnvironment;
use diskvault::monitor::Silent;
use diskvault::repository::Repository;
use diskvault::repository::points::PointSet;
use diskvault::repository::secrets::Passphrase;
use diskvault::repository::session::Session;
use diskvault::storage::local::LocalStorage;
use serde_json::Value;
use std::sync::{Arc, OnceLock};

/// Three points of `web01` on three days, one of `db` with two parts; and their ids.
struct History {
    vault: Vault,
    web: [String; 3],
    db: String,
}

/// One history for all tests here, which only read it.
fn history() -> &'static History {
    static HISTORY: OnceLock<History> = OnceLock::new();
    HISTORY.get_or_init(|| {
        let vault = Vault::new();
        let web = [1, 2, 3].map(|day| {
            let file = vault.write("root.cfg", format!("day {day}").as_bytes());
            let time = format!("2026-10-0{day}T12:00:00Z");
            vault.backup("web01", &["--time", &time, &file])
        });
        let (one, two) = (vault.write("one", b"1"), vault.write("two", &random(1, 1 << 20)));
        let db = vault.backup("db", &["--time", "2026-10-02T00:00:00Z", &one, &two]);
        History { vault, web, db }
    })
}

fn id_of(vault: &Vault, address: &str) -> String {
    vault.json(&["show", address])["point_id"].as_str().unwrap().to_string()
}

#[test]
fn every_address_finds_its_point() {
    let History { vault, web, db } = history();
    let cases = [
        ("web01", &web[2]),
        ("web01@latest", &web[2]),
        ("web01@latest~0", &web[2]),
        ("web01@latest~1", &web[1]),
        ("web01@latest~2", &web[0]),
        ("web01@2026-10-02", &web[1]),
        ("web01@2026-10-02T12:00", &web[1]),
        ("web01@2026-10-02T11:59:59", &web[0]),
        ("web01@2026-10-02 23:59", &web[1]),
        ("web01@2026-10-02T14:00:00+02:00", &web[1]),
        ("web01@2026-10-02T13:59:59+02:00", &web[0]),
        ("web01@2100-01-01", &web[2]),
        ("db", db),
        ("latest", db),
        ("latest~1", &web[2]),
        ("latest~3", &web[0]),
    ];
    for (address, expected) in cases {
        assert_eq!(id_of(vault, address), *expected, "{address}");
    }
    for id in web.iter().chain([db]) {
        for length in [8, 12, 64] {
            assert_eq!(id_of(vault, &id[..length]), *id);
            assert_eq!(id_of(vault, &format!("id:{}", &id[..length])), *id);
        }
        assert_eq!(id_of(vault, &id[..10].to_uppercase()), *id);
    }
}

#[test]
fn parts_are_named_behind_a_slash() {
    let History { vault, web, db } = history();
    assert_eq!(vault.ok(&["dump", "web01"]).stdout, b"day 3", "one part needs no name");
    assert_eq!(vault.ok(&["dump", "web01@latest~1/root.cfg"]).stdout, b"day 2");
    assert_eq!(vault.ok(&["dump", "web01@2026-10-01/root.cfg"]).stdout, b"day 1");
    assert_eq!(vault.ok(&["dump", &format!("{}/root.cfg", &web[0][..8])]).stdout, b"day 1");
    assert_eq!(vault.ok(&["dump", &format!("id:{db}/one")]).stdout, b"1");
    let shown = vault.json(&["show", "db/one"]);
    assert_eq!(shown["streams"].as_array().unwrap().len(), 1);
    assert_eq!(shown["disks"].as_array().unwrap().len(), 0);
    assert_eq!(vault.ok(&["dump", "db"]).stdout.len(), 1 << 20, "the only disk is meant");
    vault.fails(1, &["dump", "db/three"], "cannot find three in point ").says("it has two, one");
    vault.fails(1, &["show", "db/three"], "it has two, one");
    vault.fails(1, &["restore", "db/three", "target"], "it has two, one");
    assert!(!vault.path("target").exists());
}

#[test]
fn of_several_parts_none_is_guessed() {
    let vault = Vault::new();
    let (one, two) = (vault.write("one", b"1"), vault.write("two", b"2"));
    for kind in ["--disk", "--stream"] {
        let inputs = [format!("one={one}"), format!("two={two}")];
        vault.backup("a", &[kind, &inputs[0], kind, &inputs[1]]);
        for command in ["dump", "digest"] {
            let outcome = vault.fails(2, &[command, "a"], "cannot choose a part of point ");
            outcome.says("it has one, two").hints("POINT/DISK");
        }
    }
}

#[test]
fn at_is_the_same_as_a_time_in_the_address() {
    let History { vault, .. } = history();
    for (time, expected) in [
        ("2026-10-01", "day 1"),
        ("2026-10-02T12:00", "day 2"),
        ("2026-10-03T11:00", "day 2"),
        ("2100-01-01", "day 3"),
    ] {
        let outcome = vault.ok(&["dump", "web01/root.cfg", "--at", time]);
        assert_eq!(outcome.text(), expected, "{time}");
        assert_eq!(vault.ok(&["dump", &format!("web01@{time}")]).text(), expected, "{time}");
    }
    for address in ["web01@latest", "web01@2026-10-01", "id:abcd"] {
        let arguments = ["restore", address, "target", "--at", "2026-10-02"];
        vault.fails(2, &arguments, "cannot use --at with a point that names its time or id");
    }
    let outcome = vault.fails(
        1,
        &["dump", "web01", "--at", "2020-01-01"],
        "cannot find a point of web01 from 2020-01-01 23:59:59 +00:00 or before",
    );
    assert!(outcome.stdout.is_empty());
    vault.fails(2, &["dump", "web01", "--at", "noon"], "cannot read the time \"noon\"");
    vault.fails(1, &["dump", "nobody", "--at", "2026-10-02"], "cannot find a series named nobody");
    assert!(!vault.path("target").exists());
}

#[test]
fn what_is_not_there_is_named_with_a_hint() {
    let History { vault, .. } = history();
    let list = "`diskvault list`";
    for (address, text) in [
        ("nobody", "cannot find a series or point named nobody"),
        ("nobody@latest", "cannot find a series named nobody"),
        ("web", "cannot find a series or point named web"),
        ("0123456789", "cannot find a point with id 0123456789"),
        ("id:zz", "cannot find a point with id zz"),
        ("id:", "cannot find a point with id "),
        ("\x1b[31m", "cannot find a series or point named \\u{1b}[31m"),
    ] {
        for command in ["show", "dump", "digest"] {
            vault.fails(1, &[command, address], text).hints(list);
        }
        vault.fails(1, &["restore", address, "target"], text).hints(list);
    }
    for (address, code, text) in [
        ("web01@latest~3", 1, "cannot go 3 points back: web01 has fewer"),
        ("latest~4", 1, "cannot go 4 points back: the repository has fewer"),
        ("latest~x", 2, "expected latest or latest~N"),
        ("web01@latest~-1", 2, "expected latest or latest~N"),
        ("web01@", 2, "cannot read the time"),
        ("web01@soon", 2, "cannot read the time \"soon\""),
        ("web01@2026-13-01", 2, "cannot read the time"),
        ("web01/", 2, "expected POINT or POINT/DISK"),
        ("/root.cfg", 2, "expected POINT or POINT/DISK"),
        ("", 2, "expected POINT or POINT/DISK"),
    ] {
        vault.fails(code, &["show", address], text);
    }
    vault.fails(1, &["list", "nobody"], "cannot find a series named nobody").hints(list);
    assert!(!vault.path("target").exists());
}

#[test]
fn a_series_wins_over_an_id_prefix() {
    let vault = Vault::new();
    let file = vault.write("file", b"first");
    let first = vault.backup("x", &[&file]);
    vault.write("file", b"second");
    let name = &first[..8];
    let second = vault.backup(name, &[&file]);
    assert_eq!(id_of(&vault, name), second);
    assert_eq!(id_of(&vault, &format!("id:{name}")), first);
    assert_eq!(id_of(&vault, &first[..9]), first);
    // Too short to be taken for an id, but `id:` says what is meant.
    vault.fails(1, &["show", &first[..3]], "cannot find a series or point named");
    if first[..1] != second[..1] {
        assert_eq!(id_of(&vault, &format!("id:{}", &first[..1])), first);
    }
    assert_eq!(vault.point_count(), 2);
}

#[test]
fn an_ambiguous_id_is_refused() {
    let vault = Vault::new();
    let file = vault.write("file", b"x");
    let mut first_digits = std::collections::BTreeSet::new();
    // Of 17 ids two start with the same digit.
    for _ in 0..17 {
        let id = vault.backup("a", &[&file]);
        if !first_digits.insert(id[..1].to_string()) {
            let address = format!("id:{}", &id[..1]);
            vault.fails(2, &["show", &address], "several ids start with ");
            return;
        }
    }
    panic!("17 ids have 17 different first digits");
}

#[test]
fn lists_for_people_and_programs() {
    let History { vault, web, db } = history();
    let all = vault.json(&["list"]);
    assert_eq!(all, vault.json(&["snapshots"]));
    let ids = |list: &Value| -> Vec<String> {
        let points = list.as_array().unwrap().iter();
        points.map(|point| point["point_id"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(ids(&all), [db, &web[0], &web[1], &web[2]].map(String::clone));
    assert_eq!(ids(&vault.json(&["list", "web01"])), web.each_ref().map(|id| id.clone()));
    let first = &all[1];
    assert_eq!(first["series"], "web01");
    assert_eq!(first["sequence"], 1);
    assert_eq!(first["time"], "2026-10-01T12:00:00Z");
    assert_eq!(first["short_id"], web[0][..8]);
    assert_eq!(first["streams"][0]["bytes"], 5);
    assert_eq!(all[0]["disks"][0]["bytes"], 1 << 20);

    let table = vault.ok(&["list"]);
    table.prints("POINT").prints("2026-10-01 12:00:00 +00:00").prints("4 points");
    for id in web {
        table.prints(&id[..8]);
    }
    vault.ok(&["list", "db"]).prints("1 point\n").prints("two,one");
    let shown = vault.ok(&["show", "web01@latest~1"]);
    shown.prints(&format!("point     {}", web[1])).prints("series    web01, number 2");
    shown.prints(&format!("follows   {}", web[0])).prints("stream    root.cfg");
    let shown = vault.json(&["show", "web01@latest~1"]);
    assert_eq!(shown["previous"][0], web[0]);
    assert!(shown["program"].as_str().unwrap().starts_with("diskvault "));
    let empty = Vault::new();
    assert_eq!(empty.json(&["list"]), Value::Array(Vec::new()));
    empty.ok(&["list"]).prints("0 points");
    empty.fails(1, &["show", "latest"], "cannot go 0 points back: the repository has fewer");
}

#[test]
fn the_zone_of_the_host_reads_local_times() {
    if !std::path::Path::new("/usr/share/zoneinfo/Pacific/Auckland").exists() {
        eprintln!("skipped: this system has no time zones");
        return;
    }
    let History { vault, web, .. } = history();
    for (zone, time, expected) in [
        ("America/New_York", "2026-10-02T08:00", &web[1]),
        ("America/New_York", "2026-10-02T07:59", &web[0]),
        ("Pacific/Auckland", "2026-10-02", &web[0]),
    ] {
        let mut command = vault.command(&["--json", "show", &format!("web01@{time}")]);
        let outcome = crate::support::finish(command.env("TZ", zone));
        assert_eq!(outcome.json()["point_id"], **expected, "{zone} {time}");
    }
}

#[test]
fn no_series_is_called_latest() {
    let vault = Vault::new();
    let file = vault.write("file", b"x");
    let text = "cannot back up a series named latest";
    vault.fails(2, &["backup", "--name", "latest", &file], text);
    assert_eq!(vault.point_count(), 0);
    // What only looks like it is a name as any other.
    vault.backup("latest1", &[&file]);
    vault.backup("Latest", &[&file]);
}

#[test]
fn a_stored_series_called_latest_is_reached_by_id() {
    let vault = Vault::new();
    let first = vault.backup("a", &[&vault.write("file", b"first")]);
    // Another program publishes it: a point like the first under the other name.
    let storage = Arc::new(LocalStorage::open(&vault.repo()).unwrap());
    let secret = Passphrase::new(PASSWORD.into());
    let cache = vault.path("other-cache");
    let repository =
        Repository::open(storage, Arc::new(SystemEnvironment), &cache, &secret).unwrap();
    let session = Session::begin(&repository, "other", &Silent).unwrap();
    let mut manifest = PointSet::load(&repository).unwrap().points.remove(0).manifest;
    (manifest.series, manifest.lease) = ("latest".into(), session.lease());
    let odd = session.publish(&manifest).unwrap().to_hex();
    vault.backup("a", &[&vault.write("file", b"second")]);
    for address in [&odd[..], &odd[..12], &format!("id:{odd}"), "latest@latest"] {
        assert_eq!(id_of(&vault, address), odd, "{address}");
        assert_eq!(vault.ok(&["dump", address]).stdout, b"first");
    }
    // The word itself keeps its meaning.
    assert_eq!(vault.ok(&["dump", "latest"]).stdout, b"second");
    assert_ne!(first, odd);
    vault.assert_intact();
}

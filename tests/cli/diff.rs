//! `diff`, as a user meets it.

use crate::support::{KIB, MIB, Vault, random};
use serde_json::Value;

/// Two days of a machine: 64 KiB changed, 64 KiB of zeros written to, 128 KiB zeroed.
fn with_two_days(vault: &Vault) -> [String; 2] {
    let mut disk = random(1, 4 * MIB);
    disk[2 * MIB as usize..3 * MIB as usize].fill(0);
    let image = vault.write("vda", &disk);
    let notes = vault.write("notes", b"one");
    let one = vault.backup("web01", &["--time", "2026-11-01", &image, &notes]);
    disk[MIB as usize] ^= 1;
    disk[2 * MIB as usize] = 1;
    disk[..128 * KIB as usize].fill(0);
    vault.write("vda", &disk);
    vault.write("notes", b"two");
    let two = vault.backup("web01", &["--time", "2026-11-02", &image, &notes]);
    [one, two]
}

fn lines(vault: &Vault, arguments: &[&str]) -> Vec<Value> {
    let text = vault.ok(&[&["--json", "diff"], arguments].concat()).text();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn it_shows_sums_and_on_demand_ranges() {
    let vault = Vault::new();
    let [one, two] = with_two_days(&vault);
    let outcome = vault.ok(&["diff", "web01@latest~1", "web01"]);
    outcome.prints("differ in 2 parts: 256 KiB in 3 ranges of disks").prints("64.0 KiB  64.0 KiB");
    let found = lines(&vault, &["--extents", &one, &two]);
    let ranges: Vec<_> = found
        .iter()
        .filter(|line| line["message_type"] == "extent")
        .map(|line| {
            (
                line["start"].as_u64().unwrap(),
                line["bytes"].as_u64().unwrap(),
                line["change"].as_str().unwrap(),
            )
        })
        .collect();
    let expected =
        [(0, 128 * KIB, "zeroed"), (MIB, 64 * KIB, "changed"), (2 * MIB, 64 * KIB, "written")];
    assert_eq!(ranges, expected);
    let of_stream = found.iter().find(|line| line["message_type"] == "stream").unwrap();
    assert_eq!((&of_stream["name"], &of_stream["state"]), (&"notes".into(), &"changed".into()));
    let summary = found.last().unwrap();
    assert_eq!(summary["message_type"], "summary");
    assert_eq!((summary["extents"].as_u64(), summary["equal"].as_bool()), (Some(3), Some(false)));
    assert_eq!(summary["old_point_id"], one.as_str());
    assert!(lines(&vault, &[&one, &two]).iter().all(|line| line["message_type"] != "extent"));
}

#[test]
fn a_point_does_not_differ_from_itself() {
    let vault = Vault::new();
    with_two_days(&vault);
    vault.ok(&["diff", "web01", "latest"]).prints("do not differ");
    assert_eq!(lines(&vault, &["web01", "web01"]).last().unwrap()["equal"], true);
}

#[test]
fn parts_are_named_and_those_that_came_or_went_are_shown() {
    let vault = Vault::new();
    with_two_days(&vault);
    let clone = vault.write("clone", &random(2, 2 * MIB));
    vault.backup("db", &["--disk", &format!("sda={clone}")]);
    let found = lines(&vault, &["web01/vda", "db/sda"]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(
        (&found[0]["state"], &found[0]["new_bytes"]),
        (&"changed".into(), &(2 * MIB).into())
    );
    assert_eq!(found[0]["cut_bytes"].as_u64(), Some(MIB + 64 * KIB), "{found:?}");
    let states: Vec<_> = lines(&vault, &["web01", "db"])
        .iter()
        .filter_map(|line| Some((line["name"].as_str()?.to_string(), line["state"].clone())))
        .collect();
    let expected = [("sda", "added"), ("vda", "removed"), ("notes", "removed")];
    assert_eq!(states, expected.map(|(name, state)| (name.to_string(), Value::from(state))));
    assert_eq!(lines(&vault, &["--disk", "notes", "web01@latest~1", "web01"]).len(), 2);
    assert_eq!(lines(&vault, &["web01@latest~1/vda", "web01"]).len(), 2);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let vault = Vault::new();
    with_two_days(&vault);
    vault.fails(2, &["diff", "web01"], "required arguments");
    vault.fails(1, &["diff", "web01", "web02"], "cannot find a series or point named web02");
    vault.fails(1, &["diff", "web01/vdb", "web01"], "cannot find vdb in point");
    vault.fails(1, &["diff", "--disk", "vdb", "web01", "web01"], "cannot find vdb in point");
    vault.fails(2, &["diff", "web01/vda", "web01/notes"], "one is a disk, one a stream");
    vault.fails(2, &["diff", "--disk", "vda", "web01/vda", "web01"], "cannot use --disk");
    vault.fails(2, &["diff", "web01/", "web01"], "cannot read the address");
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let vault = Vault::new();
    with_two_days(&vault);
    let mut child =
        vault.command(&["diff", "--extents", "web01@latest~1", "web01"]).spawn().unwrap();
    drop(child.stdout.take());
    let outcome = crate::support::wait(child);
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

//! `stats`, as a user meets it.

use crate::support::{MIB, Vault, random};

/// Two days of a machine of 4 MiB, of which 1 MiB changes, and a clone of the first.
fn with_three_points(vault: &Vault) -> [String; 3] {
    let mut disk = random(1, 4 * MIB);
    let image = vault.write("vda", &disk);
    let one = vault.backup("web01", &[&image]);
    let clone = vault.backup("clone", &[&image]);
    disk[..MIB as usize].copy_from_slice(&random(2, MIB));
    vault.write("vda", &disk);
    [one, vault.backup("web01", &[&image]), clone]
}

#[test]
fn it_tells_what_all_take() {
    let vault = Vault::new();
    with_three_points(&vault);
    let outcome = vault.ok(&["stats"]);
    outcome.prints("3 points of 2 series, 2 disks, 0 streams");
    outcome.prints("virtual        12.0 MiB  as guests see it");
    outcome.prints("unique         5.00 MiB  in 80 chunks (2.40 : 1)");
    let stats = vault.json(&["stats"]);
    assert_eq!((&stats["message_type"], &stats["scope"]), (&"stats".into(), &"repository".into()));
    assert_eq!(stats["data_bytes"], 12 * MIB);
    assert_eq!(stats["needed"]["chunk_bytes"], 5 * MIB);
    assert_eq!(stats["deduplication_ratio"], 2.4);
    let packs: u64 = crate::support::files(&vault.repo().join("packs"))
        .iter()
        .map(|name| std::fs::metadata(vault.repo().join("packs").join(name)).unwrap().len())
        .sum();
    let told = ["data_pack_bytes", "map_pack_bytes"].map(|name| stats[name].as_u64().unwrap());
    assert_eq!(told[0] + told[1], packs);
    assert_eq!(stats["unneeded_bytes"], 0);
}

#[test]
fn it_tells_what_some_points_need_alone() {
    let vault = Vault::new();
    let [one, two, _] = with_three_points(&vault);
    let alone = |arguments: &[&str]| {
        let stats = vault.json(&[&["stats"], arguments].concat());
        assert_eq!(stats["scope"], "points");
        stats["exclusive"]["chunk_bytes"].as_u64().unwrap()
    };
    assert_eq!(alone(&[&one]), 0, "its clone has all of it");
    assert_eq!(alone(&[&two]), MIB);
    assert_eq!(alone(&[&one, "clone"]), MIB);
    assert_eq!(alone(&["--series", "web01"]), MIB);
    assert_eq!(alone(&["--series", "web01", "--series", "clone"]), 5 * MIB);
    vault.ok(&["stats", "web01"]).prints("about what forgetting these points and pruning");
}

#[test]
fn an_empty_repository_has_nothing() {
    let vault = Vault::new();
    vault.ok(&["stats"]).prints("0 points of 0 series");
    assert!(vault.json(&["stats"])["deduplication_ratio"].is_null());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let vault = Vault::new();
    with_three_points(&vault);
    vault.fails(1, &["stats", "web02"], "cannot find a series or point named web02");
    vault.fails(1, &["stats", "--series", "web02"], "cannot find a series named web02");
    vault.fails(2, &["stats", "--series", "web01", "web01"], "cannot be used with");
    vault.fails(2, &["stats", "web01/vda"], "cannot use \"web01/vda\"").hints("without its disk");
}

#[test]
fn it_writes_nothing_and_runs_beside_a_lease() {
    let vault = Vault::new();
    with_three_points(&vault);
    // A lease that nobody ends stands for a backup that runs.
    std::fs::write(vault.repo().join("leases").join("ab".repeat(16)), b"x").unwrap();
    let before = crate::support::files(&vault.repo());
    vault.ok(&["stats"]);
    vault.ok(&["stats", "web01"]);
    vault.ok(&["diff", "web01@latest~1", "web01"]);
    assert_eq!(crate::support::files(&vault.repo()), before);
}

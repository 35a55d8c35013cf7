//! `prune`, as a user meets it.

use crate::support::{MIB, Vault, random};

fn with_three_days(vault: &Vault) -> Vec<String> {
    (1..=3)
        .map(|day| {
            let mut disk = random(1, 4 * MIB);
            disk[..MIB as usize].copy_from_slice(&random(10 + day, MIB));
            let image = vault.write("image", &disk);
            vault.backup("web01", &["--time", &format!("2026-11-0{day}"), &image])
        })
        .collect()
}

#[test]
fn it_says_what_it_will_free_and_what_it_freed() {
    let vault = Vault::new();
    with_three_days(&vault);
    vault.ok(&["prune"]).prints("freed 0 B: 0 packs deleted");
    vault.ok(&["forget", "--keep-last", "1"]);
    vault.ok(&["prune", "--dry-run", "--max-unused", "0%"]).prints("would free about ");
    let plan = vault.json(&["prune", "-n", "--max-unused", "0%"]);
    assert_eq!(
        (plan["message_type"].as_str(), plan["dry_run"].as_bool()),
        (Some("plan"), Some(true))
    );
    let summary = vault.json(&["prune", "--max-unused", "0%"]);
    assert!(summary["freed_bytes"].as_u64().unwrap() > 3 * MIB / 2, "{summary}");
    assert_eq!(summary["waiting"], false);
    let mut disk = random(1, 4 * MIB);
    disk[..MIB as usize].copy_from_slice(&random(13, MIB));
    vault.assert_restores("web01", &disk);
    vault.assert_intact();
    vault.fails(1, &["forget", "--undo", "0000"], "cannot find a forgotten point");
}

#[test]
fn forget_prunes_when_it_is_told_to() {
    let vault = Vault::new();
    with_three_days(&vault);
    let outcome = vault.ok(&["forget", "--keep-last", "1", "--prune"]);
    outcome.prints("forgot 2 points").prints("freed ").prints("packs deleted");
    vault.ok(&["list", "--forgotten"]).prints("0 points");
    vault.assert_intact();
}

#[test]
fn what_makes_no_sense_is_refused() {
    let vault = Vault::new();
    with_three_days(&vault);
    for (arguments, text) in [
        (["--max-unused", "lots"], "cannot read the size"),
        (["--max-unused", "101%"], "cannot read the share"),
        (["--max-repack", "-1"], "unexpected argument"),
        (["--keep-forgotten", "1mo"], "cannot read the duration"),
        (["--lease-timeout", "soon"], "cannot read the duration"),
    ] {
        vault.fails(2, &["prune", arguments[0], arguments[1]], text);
    }
    assert_eq!(vault.point_count(), 3);
    vault.assert_intact();
}

//! `check` and `repair` on a damaged repository, as a user meets them.

use crate::support::{MIB, Vault, files, random};
use std::fs;
use std::path::PathBuf;

fn packs(vault: &Vault) -> Vec<PathBuf> {
    let folders = fs::read_dir(vault.repo().join("packs")).unwrap();
    let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}

/// The data pack: of two, the larger.
fn data_pack(vault: &Vault) -> PathBuf {
    packs(vault).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

fn flip(path: &PathBuf, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_flipped_bit_is_named_saved_set_aside_and_healed() {
    let vault = Vault::new();
    let disk = random(1, 12 * MIB);
    let image = vault.write("image", &disk);
    let point = vault.backup("web01", &[&image]);
    let pack = data_pack(&vault);
    let id = pack.file_name().unwrap().to_str().unwrap().to_string();
    flip(&pack, 5 << 20);
    // A host without the password sees it as well.
    let mut command = vault.command(&["check", "--no-key"]);
    command.env_remove("DISKVAULT_PASSWORD");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8(output.stdout).unwrap().contains(&id));
    let outcome = vault.run(&["check", "--read-data"]);
    assert_eq!(outcome.code, 5);
    outcome.prints(&format!("pack {id} is damaged")).prints(" of its ").prints("touched by damage");
    outcome.prints(&format!("web01 {}/image: bytes ", &point[..8])).prints(" chunks, the first");
    vault.fails(5, &["repair", "packs", "--dry-run"], "found 1 damaged packs");
    let outcome = vault.ok(&["repair", "packs"]);
    outcome.prints("read 2 packs: 1 is damaged").prints(&format!("set aside: aside/packs-{id}."));
    outcome.prints("chunks and pages are lost");
    assert!(!pack.exists());
    vault.fails(5, &["restore", "web01/image", &vault.arg("out")], "cannot ");
    // The machine still has what was lost.
    vault.backup("web01", &[&image]);
    vault.assert_restores(&point, &disk);
    vault.assert_intact();
    vault.ok(&["repair", "packs"]).prints("nothing is lost");
}

#[test]
fn a_pack_with_parity_heals_in_a_check() {
    let vault = Vault::without_repository();
    vault.ok(&["init", "--parity", "2%", "--no-recovery-key"]);
    let disk = random(1, 3 * MIB);
    let image = vault.write("image", &disk);
    vault.backup("web01", &[&image]);
    let pack = data_pack(&vault);
    let good = fs::read(&pack).unwrap();
    flip(&pack, 1 << 20);
    vault.fails(2, &["check", "--repair"], "cannot repair without reading packs");
    let outcome = vault.run(&["check", "--read-data", "--repair"]);
    assert_eq!(outcome.code, 4, "{}", outcome.stderr);
    outcome.says("was damaged and is healed by its parity").prints("no damage found");
    assert!(fs::read(&pack).unwrap() == good);
    vault.assert_intact();
    flip(&pack, 1 << 20);
    vault.ok(&["repair", "packs"]).prints("healed by its parity").prints("nothing is lost");
    assert!(fs::read(&pack).unwrap() == good);
    vault.assert_intact();
    // What is wrong elsewhere is told all the same.
    flip(&pack, 1 << 20);
    let name = pack.file_name().unwrap().to_str().unwrap();
    let other = files(&vault.path("repo/parity"));
    let other = other.iter().find(|other| !other.ends_with(name)).unwrap();
    flip(&vault.path("repo/parity").join(other), 100);
    let outcome = vault.run(&["check", "--read-data", "--repair"]);
    assert_eq!(outcome.code, 5, "{outcome:?}");
    outcome
        .says("is healed by its parity")
        .prints(&format!("parity/{}", &other[other.len() - 64..]));
    assert!(fs::read(&pack).unwrap() == good);
    vault.ok(&["repair", "packs"]);
    vault.assert_intact();
    // Whole by its name and damaged within is nothing that parity heals.
    let aside = files(&vault.path("repo/aside")).len();
    vault.ok(&["repair", "packs"]).prints("nothing is lost");
    assert_eq!(files(&vault.path("repo/aside")).len(), aside);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let vault = Vault::new();
    let image = vault.write("image", &random(1, MIB));
    vault.backup("web01", &[&image]);
    vault.fails(2, &["repair", "packs", "12ab"], "cannot read the pack id");
    vault.fails(1, &["repair", "packs", &"ab".repeat(32)], "there is no such pack");
    vault.fails(2, &["check", "--no-key", "--read-data"], "cannot be used with");
    vault.fails(2, &["check", "--budget", "soon"], "cannot read the duration");
    vault.ok(&["check", "--budget", "1h"]).prints("no damage found");
    vault.ok(&["check", "--budget", "0s"]).prints("this host has read every pack within");
    vault.ok(&["repair", "objects"]).prints("0 objects cannot be read");
    vault.assert_intact();
}

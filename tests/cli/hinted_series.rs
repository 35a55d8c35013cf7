//! Hints along a series: disks that come and go, bases that were forgotten, and that the way a disk
//! was read does not show in its map.

use crate::support::{MIB, Vault, blake3_hex, random};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const BACKUP: [&str; 4] = ["--json", "backup", "--name", "web01"];
/// Times of files count two seconds after they were written.
const SETTLED: Duration = Duration::from_millis(2100);

fn back_up(vault: &Vault, code: i32, arguments: &[&str]) -> Value {
    let outcome = vault.run(&[&BACKUP[..], arguments].concat());
    assert_eq!(outcome.code, code, "{arguments:?}: {}", outcome.stderr);
    serde_json::from_slice(&outcome.stdout).unwrap()
}

/// Writes to a disk and to what is expected of it.
fn overwrite(vault: &Vault, name: &str, data: &mut [u8], at: u64, seed: u64) {
    let bytes = random(seed, 3000);
    data[at as usize..][..bytes.len()].copy_from_slice(&bytes);
    let file = fs::File::options().write(true).open(vault.path(name)).unwrap();
    file.write_all_at(&bytes, at).unwrap();
}

/// Who told what had changed on the disks of the newest point, and why that did not count.
fn told(vault: &Vault) -> Vec<(String, String, String)> {
    let point = vault.json(&["show", "web01"]);
    let disks = point["disks"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    disks
        .map(|disk| {
            let tracking = &disk["tracking"];
            (text(&disk["name"]), text(&tracking["hint"]), text(&tracking["refused"]))
        })
        .collect()
}

fn is_told(vault: &Vault, expected: &[(&str, &str, &str)]) {
    let told = told(vault);
    let told: Vec<_> = told.iter().map(|(a, b, c)| (a.as_str(), b.as_str(), c.as_str())).collect();
    assert_eq!(told, expected);
}

/// The id of a point, and its disks if it has them.
type Kept = (String, Vec<Option<Vec<u8>>>);

fn keep(points: &mut Vec<Kept>, made: &Value, disks: &[Vec<u8>], has: [bool; 3]) -> String {
    let id = made["point_id"].as_str().unwrap().to_string();
    let kept = disks.iter().zip(has).map(|(disk, has)| has.then(|| disk.clone()));
    points.push((id.clone(), kept.collect()));
    id
}

#[test]
fn disks_come_and_go_and_every_point_keeps_its_own() {
    let vault = Vault::new();
    let mut disks: Vec<Vec<u8>> = (0..3).map(|seed| random(seed, 8 * MIB)).collect();
    for (number, disk) in disks.iter().enumerate() {
        vault.write(&format!("{number}"), disk);
    }
    let named = [["--disk", "vda=0"], ["--disk", "vdb=1"], ["--disk", "vdc=2"]];
    let [vda, vdb, vdc] = &named;
    let names = ["vda", "vdb", "vdc"];
    let mut points = Vec::new();
    let made = back_up(&vault, 0, &[&vda[..], vdb].concat());
    let first = keep(&mut points, &made, &disks, [true, true, false]);
    // vdb goes, vdc comes, vda has changed where a list says.
    overwrite(&vault, "0", &mut disks[0], 5 * MIB + 77, 10);
    vault.write("list", format!("{} 4096", 5 * MIB).as_bytes());
    let listed = ["--base", &first, "--changed", "vda=list"];
    let made = back_up(&vault, 0, &[&vda[..], vdc, &listed].concat());
    keep(&mut points, &made, &disks, [true, false, true]);
    is_told(&vault, &[("vda", "change list list", ""), ("vdc", "", "")]);
    // vdb is back: the last point has none, the first one does.
    overwrite(&vault, "1", &mut disks[1], 3 * MIB, 11);
    vault.write("list", format!("{} 4096", 3 * MIB).as_bytes());
    let all = [&vda[..], vdb, vdc].concat();
    let made =
        back_up(&vault, 4, &[&all[..], &["--base", "web01", "--changed", "vdb=list"]].concat());
    keep(&mut points, &made, &disks, [true, true, true]);
    assert!(told(&vault)[1].2.ends_with("has no such disk"), "{:?}", told(&vault));
    std::thread::sleep(SETTLED);
    let made =
        back_up(&vault, 0, &[&all[..], &["--base", &first, "--changed", "vdb=list"]].concat());
    keep(&mut points, &made, &disks, [true, true, true]);
    assert_eq!(told(&vault)[1], ("vdb".into(), "change list list".into(), String::new()));
    // Now the times of the files tell, of those that the last point has.
    let made = back_up(&vault, 0, &[&vda[..], vdb].concat());
    keep(&mut points, &made, &disks, [true, true, false]);
    is_told(&vault, &[("vda", "the file's times", ""), ("vdb", "the file's times", "")]);
    overwrite(&vault, "0", &mut disks[0], MIB, 12);
    let made = back_up(&vault, 0, &[&vdc[..], vdb, vda].concat());
    keep(&mut points, &made, &disks, [true, true, true]);
    for (id, kept) in &points {
        for (name, disk) in names.iter().zip(kept) {
            match disk {
                Some(disk) => vault.assert_restores(&format!("{id}/{name}"), disk),
                None => {
                    drop(vault.fails(1, &["restore", &format!("{id}/{name}"), "x"], "cannot find"))
                }
            }
        }
    }
    vault.assert_intact();
}

/// Vaults of one process begin with copies of one repository, so their keys are the same.
#[test]
fn however_a_disk_was_read_its_map_and_its_digest_are_the_same() {
    let (vault, other) = (Vault::new(), Vault::new());
    let mut data = random(1, 32 * MIB);
    data[8 * MIB as usize..12 * MIB as usize].fill(0);
    vault.write("disk", &data);
    let disk = ["--disk", "vda=disk"];
    back_up(&vault, 0, &disk);
    overwrite(&vault, "disk", &mut data, 9 * MIB, 2);
    overwrite(&vault, "disk", &mut data, 20 * MIB + 5, 3);
    vault.write("list", format!("{} 4096\n{} 4096", 9 * MIB, 20 * MIB).as_bytes());
    let hint = ["--base", "web01", "--changed", "list", "--reread", "1/1000"];
    let hinted = back_up(&vault, 0, &[&disk[..], &hint].concat());
    let compared = back_up(&vault, 0, &[&disk[..], &["--full"]].concat());
    let series = ["--json", "backup", "--name", "web02", "--disk", "vda=disk"];
    let new_series: Value = serde_json::from_slice(&vault.ok(&series).stdout).unwrap();
    other.write("disk", &data);
    let new_repository = back_up(&other, 0, &disk);
    assert!(hinted["read_bytes"].as_u64().unwrap() < 32 * MIB);
    let digest = blake3_hex(&data);
    let mut roots = Vec::new();
    for (vault, made) in
        [(&vault, hinted), (&vault, compared), (&vault, new_series), (&other, new_repository)]
    {
        let id = made["point_id"].as_str().unwrap();
        let point = vault.json(&["show", id]);
        roots.push(point["disks"][0]["map_root"].as_str().unwrap().to_string());
        // What an earlier look has found is not asked.
        fs::remove_dir_all(vault.path("cache")).unwrap();
        assert_eq!(vault.json(&["digest", &format!("{id}/vda")])["digest"], digest, "{id}");
        vault.assert_restores(id, &data);
    }
    roots.dedup();
    assert_eq!(roots.len(), 1, "{roots:?}");
}

#[test]
fn a_base_that_was_forgotten_is_named_and_nothing_is_lost() {
    let vault = Vault::new();
    let mut data = random(1, 16 * MIB);
    vault.write("disk", &data);
    let disk = ["--disk", "vda=disk"];
    let base = back_up(&vault, 0, &disk)["point_id"].as_str().unwrap().to_string();
    overwrite(&vault, "disk", &mut data, 6 * MIB, 2);
    let kept = back_up(&vault, 0, &disk)["point_id"].as_str().unwrap().to_string();
    vault.ok(&["forget", &base]);
    vault.write("list", b"0 4096");
    for named in [&base, &base[..8], &format!("id:{base}")] {
        let hint = ["--base", named, "--changed", "list"];
        let text = format!("cannot use point {} as base: it was forgotten", &base[..8]);
        vault
            .fails(1, &[&BACKUP[1..], &disk, &hint].concat(), &text)
            .hints(&format!("`diskvault forget --undo {}` brings it back", &base[..8]));
    }
    // A point that never was is no forgotten one.
    let unknown = ["--base", "0123456789abcdef", "--changed", "list"];
    vault.fails(1, &[&BACKUP[1..], &disk, &unknown].concat(), "cannot find");
    assert_eq!(vault.point_count(), 1);
    vault.assert_restores(&kept, &data);
    vault.ok(&["forget", "--undo", &base[..8]]);
    let hint = ["--base", &base, "--changed", "list"];
    // The list does not tell of the write, and all of so small a disk is compared.
    back_up(&vault, 4, &[&disk[..], &hint].concat());
    vault.assert_restores("web01", &data);
    vault.assert_intact();
}

/// The times of a file speak for the last point that there is. If that was made of other bytes, or
/// there is none, the disk is read in full.
#[test]
fn a_point_that_was_forgotten_gives_no_hint() {
    let vault = Vault::new();
    let mut data = random(1, 16 * MIB);
    vault.write("disk", &data);
    let disk = ["--disk", "vda=disk"];
    let first = back_up(&vault, 0, &disk)["point_id"].as_str().unwrap().to_string();
    overwrite(&vault, "disk", &mut data, 6 * MIB, 2);
    std::thread::sleep(SETTLED);
    let by_times = [("vda", "the file's times", "")];
    for forgets_all in [false, true] {
        let made = back_up(&vault, 0, &disk);
        let again = back_up(&vault, 0, &disk);
        is_told(&vault, &by_times);
        for made in [made, again] {
            vault.ok(&["forget", "--force", made["point_id"].as_str().unwrap()]);
        }
        if forgets_all {
            vault.ok(&["forget", "--force", &first]);
        }
        let made = back_up(&vault, 0, &disk);
        assert!(made["read_bytes"].as_u64().unwrap() >= 16 * MIB, "{made}");
        is_told(&vault, &[("vda", "", "")]);
        vault.assert_restores("web01", &data);
        vault.ok(&["forget", "--force", made["point_id"].as_str().unwrap()]);
    }
}

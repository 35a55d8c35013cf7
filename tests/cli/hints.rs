//! `backup --base --changed`: only what has changed is read, and what does not count is said.

use crate::support::{MIB, Vault, random};
use serde_json::Value;
use std::fs;
use std::io::{Seek, SeekFrom, Write};

const DISK: [&str; 6] = ["--json", "backup", "--name", "web01", "--disk", "vda=disk"];

fn vault_with_disk() -> (Vault, Vec<u8>) {
    let vault = Vault::new();
    let data = random(1, 64 * MIB);
    vault.write("disk", &data);
    vault.ok(&DISK);
    (vault, data)
}

fn overwrite(vault: &Vault, data: &mut [u8], at: u64, bytes: &[u8]) {
    data[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    let mut file = fs::File::options().write(true).open(vault.path("disk")).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

fn back_up(vault: &Vault, code: i32, further: &[&str]) -> (Value, String) {
    let outcome = vault.run(&[&DISK[..], further].concat());
    assert_eq!(outcome.code, code, "{}", outcome.stderr);
    (serde_json::from_slice(&outcome.stdout).unwrap(), outcome.stderr)
}

#[test]
fn a_list_a_map_and_a_bitmap_are_read_and_the_rest_is_not() {
    let (vault, mut data) = vault_with_disk();
    let at = 40 * MIB;
    let mut bitmap = vec![0_u8; 128];
    bitmap[80] = 1;
    let numbers = [at.to_le_bytes(), 65536_u64.to_le_bytes()].concat();
    let diff = [b"rbd diff v1\nf\x01\0\0\0aw", &numbers[..], &[7; 65536], b"e"].concat();
    for (number, (name, list, further)) in [
        ("lines", format!("0 {at} same\n{at} 65536 data\n").into_bytes(), &[][..]),
        ("map", format!("[{{\"offset\":{at},\"length\":65536}}]").into_bytes(), &[]),
        ("bits", bitmap, &["--granularity", "64K"]),
        ("diff", diff, &[]),
    ]
    .into_iter()
    .enumerate()
    {
        overwrite(&vault, &mut data, at + 5, &random(10 + number as u64, 5000));
        vault.write(name, &list);
        let changed = format!("vda={name}");
        let hint = ["--base", "web01", "--changed", &changed, "--reread", "1/1000"];
        let (summary, _) = back_up(&vault, 0, &[&hint[..], further].concat());
        assert_eq!(summary["new_bytes"], 64 << 10, "{name}: {summary}");
        assert_eq!(summary["unchanged_bytes"], 64 * MIB - (64 << 10), "{name}");
        let tracking = &vault.json(&["show", "web01"])["disks"][0]["tracking"];
        assert_eq!(tracking["hint"], format!("change list {name}"));
        assert_eq!(tracking["inherited_bytes"], 64 * MIB - (64 << 10));
        vault.assert_restores("web01", &data);
    }
    vault
        .ok(&["show", "web01"])
        .prints("were taken over")
        .prints("every byte was read at or after");
    let root = vault.json(&["show", "web01"])["disks"][0]["map_root"].clone();
    back_up(&vault, 0, &["--full"]);
    assert_eq!(vault.json(&["show", "web01"])["disks"][0]["map_root"], root);
    vault.assert_intact();
}

/// An answer of VMware tells of a part of the disk: what lies behind is read, not taken over.
#[test]
fn what_lies_behind_an_answer_of_vmware_is_read() {
    let (vault, mut data) = vault_with_disk();
    let answer = |start: u64, bytes: u64, areas: &str| {
        format!(r#"{{"startOffset":{start},"length":{bytes},"changedArea":[{areas}]}}"#)
    };
    let half = 32 * MIB;
    let area = format!(r#"{{"start":{},"length":65536}}"#, 4 * MIB);
    let first = answer(0, half, &area);
    // All of it in two calls, and then nobody made the second.
    let both = format!("[{first},{}]", answer(half, half, ""));
    for (round, (list, inherited)) in
        [(both, 64 * MIB - (64 << 10)), (first, half - (64 << 10))].into_iter().enumerate()
    {
        overwrite(&vault, &mut data, 4 * MIB + 9, &random(20 + round as u64, 4000));
        if round == 1 {
            overwrite(&vault, &mut data, 50 * MIB + 9, &random(30, 4000));
        }
        vault.write("answer", list.as_bytes());
        let hint = ["--base", "web01", "--changed", "answer", "--reread", "1/1000"];
        back_up(&vault, 0, &hint);
        let tracking = &vault.json(&["show", "web01"])["disks"][0]["tracking"];
        assert_eq!(tracking["inherited_bytes"], inherited, "{tracking}");
        vault.assert_restores("web01", &data);
    }
    // A range without an end is one of changes up to the end of the disk.
    vault.write("all", b"0 18446744073709551615");
    let changed = ["--base", "web01", "--changed", "all"];
    let (summary, _) = back_up(&vault, 0, &changed);
    assert!(summary["read_bytes"].as_u64().unwrap() >= 64 * MIB, "{summary}");
    vault.assert_intact();
}

#[test]
fn a_list_that_lies_or_is_about_something_else_ends_in_a_full_read() {
    let (vault, mut data) = vault_with_disk();
    overwrite(&vault, &mut data, 4096, b"the partition table");
    vault.write("empty", b"");
    let hint = ["--base", "web01", "--changed", "empty"];
    let (summary, warning) = back_up(&vault, 4, &hint);
    assert!(
        warning.contains("disk vda is read in full: change list empty does not count: the disk")
    );
    assert!(summary["read_bytes"].as_u64().unwrap() >= 64 * MIB);
    vault.assert_restores("web01", &data);
    let shown = vault.json(&["show", "web01"]);
    let refused = shown["disks"][0]["tracking"]["refused"].as_str().unwrap();
    assert_eq!(refused, "the disk is another at 0, which is said to be unchanged");
    vault.write("far", format!("{} 512", 65 * MIB).as_bytes());
    let (_, warning) = back_up(&vault, 4, &["--base", "web01", "--changed", "far"]);
    assert!(warning.contains("it tells of changes beyond the end of the disk"), "{warning}");
    // A base that was forgotten, and lists that are none, make no point.
    let points = vault.point_count();
    vault.write("bad", b"1 2 maybe");
    for (code, further, text) in [
        (1, ["--base", "gone", "--changed", "empty"], "cannot find"),
        (2, ["--base", "web01", "--changed", "bad"], "line 1: \"maybe\" is no kind of range"),
        (1, ["--base", "web01", "--changed", "none"], "cannot read change list none"),
        (2, ["--base", "web01", "--changed", "vdb=empty"], "cannot find a disk named vdb"),
        (2, ["--base", "web01/vda", "--changed", "empty"], "expected a point without a disk"),
        (2, ["--base", "web01", "--reread", "2/3"], "expected 1/N"),
    ] {
        vault.fails(code, &[&DISK[1..], &further].concat(), text);
    }
    vault.fails(2, &[&DISK[1..], &["--base", "web01"][..]].concat(), "--changed");
    assert_eq!(vault.point_count(), points);
    vault.assert_intact();
}

#[test]
fn a_bitmap_that_the_disk_itself_keeps() {
    if std::process::Command::new("qemu-img").arg("--version").output().is_err() {
        eprintln!("skipped: there is no qemu-img");
        return;
    }
    let vault = Vault::new();
    let run = |program: &str, arguments: &[&str]| {
        let folder = vault.path("");
        let mut command = std::process::Command::new(program);
        let status = command.args(arguments).current_dir(folder).status().unwrap();
        assert!(status.success(), "{program} {arguments:?}");
    };
    run("qemu-img", &["create", "-q", "-f", "qcow2", "d.qcow2", "64M"]);
    run("qemu-io", &["-c", "write -q -P 7 0 64M", "d.qcow2"]);
    let backup = ["--json", "backup", "--name", "web01", "--disk", "vda=d.qcow2"];
    vault.ok(&backup);
    run("qemu-img", &["bitmap", "--add", "d.qcow2", "m"]);
    run("qemu-io", &["-c", "write -q -P 8 30M 64k", "d.qcow2"]);
    let by = |name: &'static str| [&backup[..], &["--base", "web01", "--changed", name]].concat();
    vault.fails(1, &by("bitmap:n")[1..], "cannot find a bitmap called n in d.qcow2");
    vault.fails(1, &by("vda=bitmap:n")[1..], "it has m");
    vault.ok(&by("vda=bitmap:m"));
    let tracking = &vault.json(&["show", "web01"])["disks"][0]["tracking"];
    assert_eq!(tracking["hint"], "bitmap m");
    assert_eq!(tracking["inherited_bytes"], 64 * MIB - (64 << 10));
    // A file of such a name has a folder in front of it.
    vault.write("bitmap:n", b"31457280 65536");
    vault.ok(&by("./bitmap:n"));
}

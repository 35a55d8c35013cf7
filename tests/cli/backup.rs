//! `backup`: what becomes a disk, what a stream, and which names and inputs are refused.

use crate::support::{LoopDevice, MIB, Outcome, Vault, finish, random, wait, write_sparse};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::process::Stdio;

/// Names of the disks and of the streams of a point.
fn parts(vault: &Vault, point: &str) -> (Vec<String>, Vec<String>) {
    let shown = vault.json(&["show", point]);
    let names = |list: &Value| {
        let list = list.as_array().unwrap().iter();
        list.map(|part| part["name"].as_str().unwrap().to_string()).collect()
    };
    (names(&shown["disks"]), names(&shown["streams"]))
}

/// Runs with `input` on standard input.
fn with_input(vault: &Vault, arguments: &[&str], input: &[u8]) -> Outcome {
    let mut child = vault.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // A run that refuses its input closes the pipe.
    let _ = pipe.write_all(input);
    drop(pipe);
    wait(child)
}

#[test]
fn type_and_size_decide() {
    let vault = Vault::new();
    let sizes = [
        ("zero", 0),
        ("sector", 512),
        ("small", MIB - 512),
        ("least", MIB),
        ("odd", MIB + 1),
        ("next", MIB + 512),
    ];
    let mut arguments = vec!["backup".to_string(), "--name".into(), "kinds".into()];
    for (name, size) in sizes {
        arguments.push(vault.write(name, &random(size, size)));
    }
    let texts: Vec<&str> = arguments.iter().map(String::as_str).collect();
    vault.ok(&texts);
    let (disks, streams) = parts(&vault, "kinds");
    assert_eq!(disks, ["least", "next"]);
    assert_eq!(streams, ["zero", "sector", "small", "odd"]);
    for (name, size) in sizes {
        vault.assert_restores(&format!("kinds/{name}"), &random(size, size));
    }
    assert_eq!(vault.point_count(), 1, "several paths make one point");
    vault.assert_intact();
}

#[test]
fn a_block_device_is_a_disk() {
    let vault = Vault::new();
    let content = random(4, 2 * MIB);
    vault.write("image", &content);
    let Some(device) = LoopDevice::new(&vault.path("image")) else { return };
    vault.ok(&["backup", "--name", "device", &device.0]);
    let name = device.0.rsplit('/').next().unwrap().to_string();
    let (disks, streams) = parts(&vault, "device");
    assert_eq!((disks, streams.len()), (vec![name.clone()], 0));
    let shown = vault.json(&["show", "device"]);
    assert_eq!(shown["disks"][0]["source_format"], "block-device");
    vault.assert_restores(&format!("device/{name}"), &content);
}

#[test]
fn what_a_name_was_it_stays() {
    let vault = Vault::new();
    let disk = vault.write("vda", &random(5, MIB));
    let stream = vault.write("nvram", b"small");
    vault.ok(&["backup", "--name", "a", &disk, &stream]);
    // Both change so that by size each would be the other.
    vault.write("vda", &random(6, MIB - 100));
    vault.write("nvram", &random(7, 2 * MIB));
    vault.ok(&["backup", "--name", "a", &disk, &stream]);
    assert_eq!(parts(&vault, "a"), (vec!["vda".into()], vec!["nvram".into()]));
    vault.assert_restores("a/vda", &random(6, MIB - 100));
    // Another series knows nothing of that.
    vault.ok(&["backup", "--name", "b", &disk, &stream]);
    assert_eq!(parts(&vault, "b"), (vec!["nvram".into()], vec!["vda".into()]));
    // And the user decides.
    vault.ok(&[
        "backup",
        "--name",
        "a",
        "--stream",
        &format!("vda={disk}"),
        "--disk",
        &format!("nvram={stream}"),
    ]);
    assert_eq!(parts(&vault, "a"), (vec!["nvram".into()], vec!["vda".into()]));
    vault.ok(&["backup", "--name", "a", &disk, &stream]);
    assert_eq!(parts(&vault, "a"), (vec!["nvram".into()], vec!["vda".into()]));
}

#[test]
fn standard_input_is_a_stream() {
    let vault = Vault::new();
    let data = random(8, 3 * MIB + 17);
    let outcome = with_input(&vault, &["backup", "--name", "dump", "-"], &data);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert_eq!(parts(&vault, "dump").1, ["stdin"]);
    let arguments = ["backup", "--name", "dump", "--stdin-name", "db.sql", "-"];
    assert_eq!(with_input(&vault, &arguments, &data).code, 0);
    assert_eq!(parts(&vault, "dump").1, ["db.sql"]);
    vault.assert_restores("dump", &data);
    let arguments = ["backup", "--name", "dump", "--stream", "x=-"];
    assert_eq!(with_input(&vault, &arguments, b"").code, 0);
    vault.assert_restores("dump/x", b"");
    for (arguments, text) in [
        (["--disk", "x=-"], "cannot read a disk from standard input"),
        (["-", "--stream=x=-"], "cannot read standard input twice"),
    ] {
        let mut all = vec!["backup", "--name", "dump"];
        all.extend(arguments);
        let outcome = with_input(&vault, &all, b"data");
        assert_eq!(outcome.code, 2, "{}", outcome.stderr);
        outcome.says(text);
    }
    assert_eq!(vault.point_count(), 3);
}

#[test]
fn one_name_for_two_inputs_is_refused() {
    let vault = Vault::new();
    fs::create_dir(vault.path("other")).unwrap();
    let (one, two) = (vault.write("same", b"1"), vault.write("other/same", b"2"));
    for arguments in [vec![&*one, &two], vec![&one, "--stream", "same=other/same"]] {
        let mut all = vec!["backup", "--name", "a"];
        all.extend(arguments);
        let outcome = vault.fails(2, &all, "cannot back up two inputs with one name: same");
        outcome.hints("--disk NAME=PATH");
    }
    assert_eq!(vault.point_count(), 0);
    vault.ok(&["backup", "--name", "a", &one, "--stream", "other=other/same"]);
}

#[test]
fn names_that_cannot_be_are_refused_and_nothing_is_stored() {
    let vault = Vault::new();
    let file = vault.write("file", b"content");
    vault.backup("older", &[&file]);
    let packs = crate::support::files(&vault.path("repo/packs"));
    let long = "n".repeat(256);
    for name in ["..", ".", "a/b", "a:b", "a\nb", "\x1b[31mred", "\u{9b}31m", "\u{7f}", &long] {
        for option in ["--stream", "--disk"] {
            let pair = format!("{name}={file}");
            let arguments = ["backup", "--name", "a", option, &pair];
            vault.fails(2, &arguments, "cannot back up: the disk or stream name ");
        }
    }
    for name in ["..", "", "a/b", "a@b", "a~1", "a:b", "a\nb", "\x1b]0;title\x07", &long] {
        let outcome = vault.fails(2, &["backup", "--name", name, &file], "cannot back up: ");
        outcome.says("the series name ");
    }
    for pair in ["=x", "noequals", ""] {
        vault.fails(2, &["backup", "--name", "a", "--disk", pair], "cannot read --disk ");
    }
    vault.fails(2, &["backup", "--name", "a"], "cannot back up 0 inputs");
    assert_eq!(vault.run(&["backup", &file]).code, 2, "a series is needed");
    assert_eq!(crate::support::files(&vault.path("repo/packs")), packs);
    assert_eq!(vault.point_count(), 1);
    vault.assert_restores("older", b"content");
    vault.assert_intact();
}

#[test]
fn file_names_that_are_no_part_names() {
    let vault = Vault::new();
    let colon = vault.write("disk:0.raw", b"0");
    vault.backup("a", &[&colon]);
    assert_eq!(parts(&vault, "a").1, ["disk_0.raw"]);
    let escape = vault.write("\x1b[31mred", b"1");
    vault.fails(2, &["backup", "--name", "a", &escape], "has a control character");
    let missing = vault.arg("\x1b[31mmissing");
    let arguments = ["backup", "--name", "a", "--stream", &format!("x={missing}")];
    vault.fails(1, &arguments, "cannot open source ").says("\\u{1b}[31mmissing: No such file");
    vault.fails(2, &["backup", "--name", "a", ".."], "cannot make a name from the path");
    use std::os::unix::ffi::OsStrExt;
    let raw = std::ffi::OsStr::from_bytes(b"not-\xff-text");
    fs::write(vault.path("").join(raw), b"2").unwrap();
    let all = ["backup".as_ref(), "--name".as_ref(), "a".as_ref(), raw];
    let outcome = finish(&mut vault.command(&all));
    assert_eq!(outcome.code, 2);
    outcome.says("cannot make a name from the path").hints("--disk NAME=PATH");
    // A strange but honest name is kept as it is.
    let good = vault.write("größe 日本 %s $(x).raw", b"3");
    vault.backup("b", &[&good]);
    vault.ok(&["list"]).prints("größe 日本 %s $(x).raw");
    vault.assert_restores("b/größe 日本 %s $(x).raw", b"3");
}

/// A master boot record with one partition from this sector on.
fn write_mbr_disk(vault: &Vault, name: &str, start: u32) -> Vec<u8> {
    let sectors = 8192_u32;
    let mut disk = random(u64::from(start), u64::from(sectors) * 512);
    disk[..512].fill(0);
    let entry = 446;
    disk[entry + 4] = 0x83;
    disk[entry + 8..entry + 12].copy_from_slice(&start.to_le_bytes());
    disk[entry + 12..entry + 16].copy_from_slice(&(sectors - start).to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    vault.write(name, &disk);
    disk
}

#[test]
fn the_cut_of_a_disk_is_told() {
    let vault = Vault::new();
    let aligned = write_mbr_disk(&vault, "aligned", 2048);
    let old = write_mbr_disk(&vault, "old", 63);
    let plain = random(9, 2 * MIB);
    vault.write("plain", &plain);
    let cases = [
        ("aligned", "auto", "MBR with 1 partition on 4 KiB: cut on the fixed grid of 64 KiB", true),
        ("old", "auto", "MBR with 1 of 1 partitions off 4 KiB: cut by FastCDC", false),
        ("plain", "auto", "no partitions: cut on the fixed grid of 64 KiB", true),
        ("old", "fixed", "cut on the fixed grid of 64 KiB, as asked for", true),
        ("aligned", "fastcdc", "cut by FastCDC, as asked for", false),
    ];
    for (disk, chunker, text, is_fixed) in cases {
        let series = format!("{disk}-{chunker}");
        let outcome = vault.ok(&["backup", "--name", &series, "--chunker", chunker, disk]);
        let expected = format!("disk {disk}: {text}");
        assert!(outcome.stderr.to_lowercase().contains(&expected.to_lowercase()), "{outcome:?}");
        let cut = &vault.json(&["show", &series])["disks"][0]["chunking"];
        let expected = if is_fixed { "fixed grid of 64.0 KiB" } else { "FastCDC of " };
        assert!(cut.as_str().unwrap().starts_with(expected), "{cut}");
    }
    for (series, disk) in [
        ("aligned-auto", &aligned),
        ("old-auto", &old),
        ("plain-auto", &plain),
        ("old-fixed", &old),
    ] {
        vault.assert_restores(series, disk);
    }
    assert_eq!(vault.run(&["backup", "--name", "a", "--chunker", "magic", "plain"]).code, 2);
    vault.assert_intact();
}

#[test]
fn misaligned_disks_share_what_is_shifted() {
    let vault = Vault::new();
    let data = random(10, 4 * MIB);
    let mut shifted = random(11, 512);
    shifted.extend(&data[..data.len() - 512]);
    vault.write("one", &data);
    vault.write("two", &shifted);
    vault.backup("one", &["--chunker", "fastcdc", "one"]);
    let summary = vault.json(&["backup", "--name", "two", "--chunker", "fastcdc", "two"]);
    assert!(summary["deduplicated_bytes"].as_u64().unwrap() > 3 * MIB, "{summary}");
}

#[test]
fn tags_and_times_are_kept() {
    let vault = Vault::new();
    let file = vault.write("file", b"x");
    let arguments = ["--time", "2020-02-29T12:30:00Z", "--tag", "os=debian", "--tag", "a=b=c"];
    let mut all = vec!["backup", "--name", "a", &file];
    all.extend(arguments);
    vault.ok(&all);
    let point = &vault.json(&["list"])[0];
    assert_eq!(point["time"], "2020-02-29T12:30:00Z");
    assert_eq!(point["tags"]["os"], "debian");
    assert_eq!(point["tags"]["a"], "b=c");
    vault.ok(&["list"]).prints("a=b=c os=debian").prints("2020-02-29 12:30:00 +00:00");
    // A tag may hold anything, but no terminal is driven by it.
    vault.ok(&["backup", "--name", "b", "--tag", "k=\x1b[2J\n", &file]);
    vault.ok(&["list"]).prints("\\u{1b}[2J\\n");
    vault.ok(&["show", "b"]).prints("\\u{1b}[2J\\n");
    for (option, value, text) in [
        ("--time", "yesterday", "cannot read the time \"yesterday\""),
        ("--time", "2020-02-30", "cannot read the time"),
        ("--time", "2500-01-01", "cannot use the time \"2500-01-01\": it is out of range"),
        ("--tag", "novalue", "cannot read --tag \"novalue\""),
    ] {
        vault.fails(2, &["backup", "--name", "a", option, value, &file], text);
    }
    assert_eq!(vault.point_count(), 2);
}

#[test]
fn sparse_and_shared_disks_in_one_point() {
    let vault = Vault::new();
    let data = random(12, MIB);
    write_sparse(&vault.path("one"), 64 * MIB, &[(32 * MIB, &data)]);
    write_sparse(&vault.path("two"), 64 * MIB, &[(8 * MIB, &data)]);
    let summary = vault.json(&["backup", "--name", "a", "one", "two"]);
    assert_eq!(summary["virtual_bytes"], 128 * MIB);
    assert_eq!(summary["new_bytes"], MIB, "the disks share their data");
    assert_eq!(summary["deduplicated_bytes"], MIB);
    assert_eq!(parts(&vault, "a").0, ["one", "two"]);
}

#[test]
fn the_longest_names_and_the_oldest_times_work() {
    let vault = Vault::new();
    let name = "ü".repeat(127) + "x";
    assert_eq!(name.len(), 255);
    let inputs = [format!("{name}=one"), "second=one".to_string()];
    vault.write("one", b"content");
    let time = "1700-01-01T00:00:00Z";
    let arguments = ["--time", time, "--stream", &inputs[0], "--disk", &inputs[1]];
    vault.backup(&name, &arguments);
    assert_eq!(vault.json(&["list", &name])[0]["time"], time);
    fs::create_dir(vault.path("out")).unwrap();
    vault.ok(&["restore", &name, "out"]);
    for part in [&*name, "second"] {
        assert_eq!(fs::read(vault.path("out").join(part)).unwrap(), b"content");
    }
    vault.backup(&name, &["one"]);
    vault.assert_restores(&format!("{name}@1700-01-01/{name}"), b"content");
    vault.assert_intact();
}

#[test]
fn compression_is_chosen() {
    // A program: something that more searching finds more in.
    let mut content = fs::read(std::env::current_exe().unwrap()).unwrap();
    content.truncate(6 * MIB as usize);
    let stored = ["off", "1", "3", "9", "auto"].map(|level| {
        let vault = Vault::new();
        let file = vault.write("file", &content);
        let arguments = ["backup", "--name", "a", "--compression", level, &file];
        let summary = vault.json(&arguments);
        vault.assert_restores("a", &content);
        vault.assert_intact();
        summary["stored_bytes"].as_u64().unwrap()
    });
    assert!(stored[0] >= content.len() as u64, "{stored:?}");
    assert!(stored[0] > stored[1] && stored[1] > stored[2] && stored[2] > stored[3], "{stored:?}");
    assert!((stored[3]..=stored[2]).contains(&stored[4]), "{stored:?}");
}

#[test]
fn a_compression_that_is_none_is_refused() {
    let vault = Vault::new();
    vault.write("file", b"content");
    for bad in ["0", "20", "-1", "none", "3.5"] {
        let option = format!("--compression={bad}");
        let outcome = vault.run(&["backup", "--name", "bad", &option, "file"]);
        assert_eq!(outcome.code, 2, "{outcome:?}");
        outcome.says("expected off, auto or a zstd level from 1 to 19");
    }
    assert_eq!(vault.point_count(), 0);
    vault.assert_intact();
}

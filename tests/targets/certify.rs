//! `certify` and `restore --verify`.

use crate::support::{KIB, LoopDevice, MIB, Vault, blake3_hex, random, sum_program};
use crate::{History, SIZE, number, tool, write};
use std::fs;

#[test]
fn an_equal_disk_is_certified_in_every_form() {
    let history = History::new();
    let vault = &history.vault;
    let (disk, image) = (vault.arg("disk"), vault.arg("image.qcow2"));
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &disk, &image]);
    for path in [&disk, &image] {
        vault.ok(&["certify", "vm/sda", path]).prints("compared");
        let quick = ["certify", "vm/sda", path, "--quick", "--first", "0", "--samples", "9"];
        vault.ok(&quick).prints("is missed with a chance of");
    }
    let arguments = [
        "certify", "vm/sda", &disk, "--with", "md5", "--with", "sha1", "--with", "sha256",
        "--with", "blake3",
    ];
    let report = vault.json(&arguments);
    let digests = report["digests"].as_array().unwrap();
    assert_eq!(digests.len(), 4);
    for digest in digests {
        let kind = digest["algorithm"].as_str().unwrap();
        let expected = match kind {
            "blake3" => blake3_hex(&history.days[2]),
            kind => sum_program(&format!("{kind}sum"), vault.path("disk").as_path()),
        };
        assert_eq!(digest["point"], expected.as_str(), "{kind}");
        assert_eq!(digest["found"], expected.as_str(), "{kind}");
    }
    assert_eq!(number(&report, "compared_bytes"), SIZE);
    if let Some(device) = LoopDevice::new(vault.path("disk").as_path()) {
        vault.ok(&["certify", "vm/sda", &device.0]);
    }
}

#[test]
fn differences_are_named() {
    let history = History::new();
    let vault = &history.vault;
    let disk = vault.arg("disk");
    // In data, in a hole, at the very end.
    for (at, chunk) in [(100, 0), (4 * MIB + 5, 4 * MIB), (SIZE - 1, SIZE / (64 * KIB) * 64 * KIB)]
    {
        write(vault.path("disk").as_path(), at, b"\xee");
        let outcome = vault.run(&["--json", "certify", "vm/sda", &disk]);
        assert_eq!(outcome.code, 5);
        let report = outcome.json();
        assert_eq!(report["equal"], false);
        let range = &report["different"][0];
        let (start, bytes) = (number(range, "start"), number(range, "bytes"));
        assert!(start >= chunk && start <= at && at < start + bytes && bytes <= MIB, "{report}");
        fs::write(&disk, &history.days[2]).unwrap();
    }
    let outcome = vault.fails(5, &["certify", &history.points[0], &disk], "ranges differ");
    outcome.prints("differs at 65536 for 128 KiB");
    for bytes in [SIZE - 512, SIZE + 512, 0] {
        fs::File::options().write(true).open(&disk).unwrap().set_len(bytes).unwrap();
        let text = format!("it has {bytes} bytes, expected {SIZE}");
        for how in ["--full", "--quick"] {
            vault.fails(5, &["certify", "vm/sda", &disk, how], &text);
        }
        fs::write(&disk, &history.days[2]).unwrap();
    }
    vault.fails(1, &["certify", "vm/sda", &vault.arg("missing")], "missing");
}

/// 116 chunks, of which the last 16 are looked at by all means; a quarter of the others is sampled.
#[test]
fn the_chance_that_is_told_is_the_chance_there_is() {
    let vault = Vault::new();
    let size = 116 * 64 * KIB;
    let disk = vault.write("disk", &random(1, size));
    vault.backup("vm", &["--disk", &format!("sda={disk}")]);
    let quick =
        ["--json", "certify", "vm/sda", &disk, "--quick", "--first", "0", "--samples", "25"];
    let report = vault.ok(&quick).json();
    assert_eq!(report["chance_to_miss_one_chunk"], 0.75);
    assert_eq!((number(&report, "chunks"), number(&report, "sampled_chunks")), (100, 25));
    assert_eq!(number(&report, "compared_bytes"), 41 * 64 * KIB);
    write(vault.path("disk").as_path(), 40 * 64 * KIB + 17, b"!!!!");
    let codes = (0..200).map(|_| vault.run(&quick).code);
    let found = codes.filter(|code| *code == 5).count();
    // A quarter of 200; four standard deviations are 24.5.
    assert!((26..=74).contains(&found), "{found} of 200 were found");
    // In the beginning or the end it is found for sure.
    let first = ["certify", "vm/sda", &disk, "--quick", "--first", "3M", "--samples", "0"];
    for _ in 0..5 {
        vault.fails(5, &first, "differ");
    }
    fs::write(&disk, random(1, size)).unwrap();
    write(vault.path("disk").as_path(), size - MIB, b"!!!!");
    vault.fails(5, &first, "differ");
    // Where all of it is looked at, nothing is missed.
    fs::write(&disk, random(1, size)).unwrap();
    let report = vault.ok(&["--json", "certify", "vm/sda", &disk, "--quick"]).json();
    assert_eq!(report["chance_to_miss_one_chunk"], 0.0);
    assert_eq!(number(&report, "compared_bytes"), size);
}

#[test]
fn what_was_restored_is_read_back() {
    let history = History::new();
    let vault = &history.vault;
    let target = vault.arg("target");
    let outcome = vault.ok(&["restore", "--verify", "vm/sda", &target]);
    outcome.prints(&format!("read back: {target} is sda"));
    let arguments = ["restore", "--verify", "--in-place", &history.points[0], &target];
    let report = vault.json(&arguments);
    assert_eq!(report["message_type"], "verified");
    assert_eq!(number(&report, "bytes"), SIZE);
    assert!(fs::read(&target).unwrap() == history.days[0]);
    vault.fails(2, &["certify", "vm/sda", &target, "--first", "1M"], "--quick");
}

//! What a backup says it did, and the digests: both have to be exactly true.

use crate::support::{KIB, MIB, Vault, blake3_hex, random, sum_program, write_sparse};
use serde_json::Value;
use std::fs;

const FIELDS: [&str; 16] = [
    "message_type",
    "point_id",
    "series",
    "time",
    "virtual_bytes",
    "allocated_bytes",
    "read_bytes",
    "hole_bytes",
    "zero_bytes",
    "unchanged_bytes",
    "deduplicated_bytes",
    "new_bytes",
    "stored_bytes",
    "new_chunks",
    "unreadable_bytes",
    "duration_seconds",
];

fn assert_fields(summary: &Value) {
    let fields = summary.as_object().unwrap();
    assert_eq!(fields.len(), FIELDS.len(), "{summary}");
    for field in FIELDS {
        assert!(fields.contains_key(field), "{field} is missing in {summary}");
    }
    for field in &FIELDS[4..15] {
        assert!(fields[*field].is_u64(), "{field} in {summary}");
    }
    assert_eq!(summary["message_type"], "summary");
    let id = summary["point_id"].as_str().unwrap();
    assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert!(summary["duration_seconds"].is_f64());
}

fn number(summary: &Value, field: &str) -> u64 {
    summary[field].as_u64().unwrap()
}

#[test]
fn every_byte_of_a_disk_is_accounted_for() {
    let vault = Vault::new();
    // 1 MiB of data, of it 256 KiB twice; 1 MiB of written zeros; the rest is a hole.
    let mut data = random(1, MIB);
    let (front, back) = data.split_at_mut(512 << 10);
    back[..256 << 10].copy_from_slice(&front[..256 << 10]);
    data.extend(vec![0; MIB as usize]);
    write_sparse(&vault.path("disk"), 64 * MIB, &[(16 * MIB, &data)]);
    let first = vault.json(&["backup", "--name", "a", "disk"]);
    assert_fields(&first);
    for (field, bytes) in [
        ("virtual_bytes", 64 * MIB),
        ("allocated_bytes", 2 * MIB),
        ("read_bytes", 2 * MIB),
        ("hole_bytes", 62 * MIB),
        ("zero_bytes", MIB),
        ("unchanged_bytes", 0),
        ("deduplicated_bytes", 256 * KIB),
        ("new_bytes", 768 * KIB),
        ("new_chunks", 12),
    ] {
        assert_eq!(number(&first, field), bytes, "{field} in {first}");
    }
    let stored = number(&first, "stored_bytes");
    assert!((768 * KIB..1100 * KIB).contains(&stored), "random data does not shrink: {stored}");

    // A slow machine would find the file old enough to be left unread.
    let second = vault.json(&["backup", "--full", "--name", "a", "disk"]);
    assert_fields(&second);
    for (field, bytes) in [
        ("read_bytes", 2 * MIB),
        ("zero_bytes", MIB),
        ("unchanged_bytes", MIB),
        ("deduplicated_bytes", 0),
        ("new_bytes", 0),
        ("new_chunks", 0),
        ("stored_bytes", 0),
    ] {
        assert_eq!(number(&second, field), bytes, "{field} in {second}");
    }
    // Another series finds everything, but nothing of it is "unchanged".
    let other = vault.json(&["backup", "--name", "b", "disk"]);
    assert_eq!(number(&other, "deduplicated_bytes"), MIB);
    assert_eq!(number(&other, "new_chunks"), 0);
}

#[test]
fn a_changed_chunk_is_the_only_new_one() {
    let vault = Vault::new();
    let mut data = random(2, 8 * MIB);
    let disk = vault.write("disk", &data);
    vault.backup("a", &[&disk]);
    data[3 * MIB as usize + 70_000] ^= 1;
    vault.write("disk", &data);
    let summary = vault.json(&["backup", "--name", "a", &disk]);
    assert_eq!(number(&summary, "new_bytes"), 64 * KIB);
    assert_eq!(number(&summary, "new_chunks"), 1);
    assert_eq!(number(&summary, "unchanged_bytes"), 8 * MIB - 64 * KIB);
    vault.assert_restores("a", &data);
    data[3 * MIB as usize + 70_000] ^= 1;
    vault.assert_restores("a@latest~1", &data);
}

#[test]
fn a_summary_for_people_says_the_same() {
    let vault = Vault::new();
    let disk = vault.write("disk", &random(3, 2 * MIB));
    let outcome = vault.ok(&["backup", "--name", "a", &disk]);
    outcome.prints("point ").prints(" of a (disk)").prints("32 new chunks in ");
    for row in [
        "  virtual        2.00 MiB",
        "  allocated      2.00 MiB",
        "  holes               0 B",
        "  unchanged           0 B",
        "  deduplicated        0 B",
        "  new            2.00 MiB",
    ] {
        outcome.prints(row);
    }
    let quiet = vault.ok(&["backup", "--quiet", "--name", "a", &disk]);
    assert_eq!(quiet.stderr, "");
    quiet.prints("  unchanged      2.00 MiB");
}

#[test]
fn disks_of_every_awkward_size_come_back() {
    let vault = Vault::new();
    let chunk = 64 * KIB;
    for size in [0, 1, 511, 512, 4096, chunk - 1, chunk, chunk + 1, 4 * MIB + 1, 4 * MIB + 513] {
        let data = random(size + 100, size);
        let file = vault.write("disk", &data);
        let series = format!("size-{size}");
        let summary = vault.json(&["backup", "--name", &series, "--disk", &format!("vda={file}")]);
        assert_fields(&summary);
        assert_eq!(number(&summary, "virtual_bytes"), size);
        assert_eq!(number(&summary, "new_chunks"), size.div_ceil(chunk));
        let shown = vault.json(&["show", &series]);
        assert_eq!(shown["disks"][0]["bytes"], size);
        assert_eq!(shown["streams"].as_array().unwrap().len(), 0);
        vault.assert_restores(&series, &data);
        let digest = vault.json(&["digest", &series]);
        assert_eq!(digest["digest"], blake3_hex(&data), "{size} bytes");
        assert_eq!(vault.ok(&["dump", &series]).stdout, data);
    }
    vault.assert_intact();
}

#[test]
fn digests_equal_the_well_known_programs() {
    let vault = Vault::new();
    let mut data = random(4, 3 * MIB);
    data[MIB as usize..2 * MIB as usize].fill(0);
    let disk = vault.write("disk", &data);
    let stream = vault.write("stream", &data[..100_001]);
    let mut arguments = vec!["backup", "--name", "a", &disk, &stream];
    let programs = [("sha256", "sha256sum"), ("sha1", "sha1sum"), ("md5", "md5sum")];
    for (kind, _) in programs {
        arguments.extend(["--digest", kind]);
    }
    vault.ok(&arguments);
    vault.ok(&["backup", "--name", "plain", &disk, &stream]);
    let shown = vault.json(&["show", "a"]);
    for (kind, program) in programs {
        for (part, path, list) in [("disk", &disk, "disks"), ("stream", &stream, "streams")] {
            let expected = sum_program(program, path.as_ref());
            assert_eq!(shown[list][0]["digests"][kind], expected, "{kind} of {part}");
            for series in ["a", "plain"] {
                let address = format!("{series}/{part}");
                let digest = vault.json(&["digest", "--with", kind, &address]);
                assert_eq!(digest["digest"], expected, "{kind} of {address}");
                assert_eq!(digest["algorithm"], kind);
            }
        }
    }
    vault.ok(&["show", "a"]).prints(&sum_program("sha256sum", disk.as_ref()));
    for part in ["disk", "stream"] {
        let expected = blake3_hex(&fs::read(vault.path(part)).unwrap());
        let outcome = vault.ok(&["digest", &format!("a/{part}")]);
        assert!(outcome.text().starts_with(&format!("{expected}  ")), "{}", outcome.text());
    }
    assert_eq!(vault.run(&["backup", "--name", "a", "--digest", "crc32", &disk]).code, 2);
}

#[test]
fn the_digest_of_a_disk_with_holes_is_that_of_the_file() {
    let vault = Vault::new();
    let size = 40 * MIB + 512;
    write_sparse(
        &vault.path("disk"),
        size,
        &[(0, &random(5, 1000)), (17 * MIB + 512, &random(6, MIB)), (size - 1, b"x")],
    );
    let expected = blake3_hex(&fs::read(vault.path("disk")).unwrap());
    vault.ok(&["backup", "--name", "a", "disk"]);
    // Twice: computed, then from the cache, then without it again.
    for _ in 0..2 {
        assert_eq!(vault.json(&["digest", "a"])["digest"], expected);
    }
    fs::remove_dir_all(vault.path("cache")).unwrap();
    assert_eq!(vault.json(&["digest", "a/disk"])["digest"], expected);
}

#[test]
fn a_digest_that_takes_long_is_not_computed_unasked() {
    let vault = Vault::new();
    write_sparse(&vault.path("disk"), 300 << 30, &[]);
    let summary = vault.json(&["backup", "--name", "huge", "disk"]);
    assert_eq!(number(&summary, "hole_bytes"), 300 << 30);
    assert_eq!(number(&summary, "read_bytes"), 0);
    let outcome = vault.fails(2, &["digest", "huge"], "cannot compute the digest unasked: ");
    outcome.says("300 GiB of zeros (322122547200 bytes) have to be hashed").hints("use --yes");
    let outcome = vault.fails(2, &["digest", "huge", "--with", "sha256"], "300 GiB of data");
    outcome.hints("use --yes");
    let target = vault.arg("back");
    vault.ok(&["restore", "huge", &target]);
    assert_eq!(fs::metadata(&target).unwrap().len(), 300 << 30);
    assert!(crate::support::allocated(target.as_ref()) < MIB);
}

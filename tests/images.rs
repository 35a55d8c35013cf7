//! Disks with real file systems in them, through the program itself: three days of the demo's
//! machine, and a Debian that is changed between two points.

#![allow(clippy::unwrap_used, reason = "a test may stop where it fails")]
#![allow(clippy::print_stderr, reason = "a test says what it skipped")]
#![allow(missing_docs, reason = "nobody but the tests uses it")]

#[path = "support/command.rs"]
mod command;
#[path = "support/debian.rs"]
mod debian;
#[path = "support/files.rs"]
mod files;

use command::{Shell, number};
use files::{
    assert_not_less_sparse, assert_same, blake3_of, data_ranges, extract, find_tool, noise, sum,
};
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 1 << 20;

/// The digest as another program computes it, where that is installed.
fn digest_elsewhere(path: &Path) -> String {
    let Some(b3sum) = find_tool("b3sum") else {
        eprintln!("no b3sum: its library is asked instead");
        return blake3_of(path);
    };
    let output = Command::new(b3sum).arg(path).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

fn digest_of_point(shell: &Shell, point: &str) -> String {
    let text = shell.ok(&["digest", point]);
    text.split_whitespace().next().unwrap().to_owned()
}

/// First byte and end of each partition.
fn partitions(image: &Path) -> Vec<Range<u64>> {
    let mut file = File::open(image).unwrap();
    let table = gpt::GptConfig::new().open_from_device(&mut file).unwrap();
    let partitions = table.partitions().values();
    partitions.map(|found| found.first_lba * 512..(found.last_lba + 1) * 512).collect()
}

/// Asserts that a checker of file systems has nothing to say about a partition.
fn assert_clean(checker: &str, arguments: &[&str], image: &Path, range: Range<u64>) {
    let Some(checker) = find_tool(checker) else {
        eprintln!("skipped a part: {checker} is not installed");
        return;
    };
    let folder = tempfile::tempdir_in(image.parent().unwrap()).unwrap();
    let partition = folder.path().join("partition");
    extract(image, range, &partition);
    let output = Command::new(checker).args(arguments).arg(&partition).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {text}", image.display());
}

fn restore(shell: &Shell, point: &str, name: &str, options: &[&str]) -> PathBuf {
    shell.ok(&[&["restore", point, name], options].concat());
    shell.folder.join(name)
}

#[test]
fn three_days_of_the_demo_come_back() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let shell = Shell { folder: folder.path().join("demo"), password: "demo".into() };
    let output = Command::new(env!("CARGO_BIN_EXE_diskvault"))
        .args(["demo", "--keep"])
        .arg(&shell.folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // The demo keeps the disk of day 2, and leaves that of day 3.
    let kept = [None, Some("day2.raw"), Some("web01.raw")];
    let mut digests = Vec::new();
    for (back, source) in [2, 1, 0].into_iter().zip(kept) {
        let point = format!("web01@latest~{back}");
        let auto = restore(&shell, &point, &format!("auto-{back}"), &[]);
        let exact = restore(&shell, &point, &format!("exact-{back}"), &["--sparse", "exact"]);
        assert_same(&auto, &exact);
        if let Some(source) = source.map(|name| shell.folder.join(name)) {
            assert_same(&auto, &source);
            assert_not_less_sparse(&auto, &source);
        }
        // Onto the disk of another day.
        fs::copy(shell.folder.join("web01.raw"), shell.folder.join("used")).unwrap();
        let used = restore(&shell, &point, "used", &["--force"]);
        assert_same(&auto, &used);
        for range in partitions(&auto) {
            assert_clean("fsck.fat", &["-n"], &auto, range);
        }
        let digest = digest_of_point(&shell, &point);
        assert_eq!(digest, digest_elsewhere(&auto));
        digests.push(digest);
    }
    digests.dedup();
    assert_eq!(digests.len(), 3, "the days differ");
    // The last day's holes are known, so they come back exactly.
    let exact = data_ranges(&shell.folder.join("exact-0"));
    assert_eq!(exact, data_ranges(&shell.folder.join("web01.raw")));

    let first = shell.backup(&["--name", "other", "--disk", "web01.raw=web01.raw"]);
    assert_eq!(number(&first, "new_chunks"), 0, "{first}");
    assert_eq!(digest_of_point(&shell, "other"), digests[2]);
    shell.ok(&["check", "--read-data"]);
}

/// Where the root file system lies, as debugfs and e2fsck want it.
fn root_in(image: &Path) -> (Range<u64>, String) {
    let root = partitions(image).into_iter().max_by_key(|range| range.end - range.start).unwrap();
    let name = format!("{}?offset={}", image.display(), root.start);
    (root, name)
}

/// Runs commands of debugfs on the root file system.
fn debugfs(debugfs: &Path, image: &Path, commands: &str) -> String {
    let script = image.with_extension("debugfs");
    fs::write(&script, commands).unwrap();
    let output = Command::new(debugfs)
        .args(["-w", "-f"])
        .arg(&script)
        .arg(root_in(image).1)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Puts a large and a small file into the guest, and takes one away.
fn change(tool: &Path, image: &Path) {
    let folder = image.parent().unwrap();
    let (large, small) = (folder.join("large"), folder.join("small"));
    fs::write(&large, noise(1, 20 << 20)).unwrap();
    fs::write(&small, "a line that was not there on day 1\n").unwrap();
    let text = format!(
        "write {} /opt/large\nwrite {} /etc/motd2\nrm /etc/debian_version\n",
        large.display(),
        small.display()
    );
    debugfs(tool, image, &text);
    let motd = debugfs(tool, image, "cat /etc/motd2\n");
    assert!(motd.contains("not there on day 1"), "{motd}");
}

#[test]
fn a_debian_comes_back_on_both_days() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some(image) = debian::debian_image(folder.path()) else { return };
    let Some(tool) = find_tool("debugfs") else {
        eprintln!("skipped: debugfs is not installed");
        return;
    };
    let shell = Shell::init(folder.path(), &[]);
    let day_1 = folder.path().join("day-1.raw");
    extract(&image, 0..fs::metadata(&image).unwrap().len(), &day_1);
    let first = shell.backup(&["--name", "debian", "debian.raw"]);
    let allocated = sum(&data_ranges(&image));
    assert_eq!(number(&first, "read_bytes"), allocated);
    assert!(number(&first, "stored_bytes") < allocated, "{first}");

    change(&tool, &image);
    let second = shell.backup(&["--name", "debian", "debian.raw"]);
    let new = number(&second, "new_bytes");
    assert!((20 * MIB..40 * MIB).contains(&new), "20 MiB were written: {second}");
    let seen = ["zero_bytes", "unchanged_bytes", "deduplicated_bytes", "new_bytes"];
    let seen: u64 = seen.iter().map(|name| number(&second, name)).sum();
    assert!(seen >= number(&second, "read_bytes"), "{second}");

    for (point, source) in [("debian@latest~1", &day_1), ("debian@latest", &image)] {
        let back = restore(&shell, point, "restored.raw", &[]);
        assert_same(&back, source);
        assert_not_less_sparse(&back, source);
        let (root, _) = root_in(&back);
        assert_clean("fsck.ext4", &["-n", "-f"], &back, root);
        assert_eq!(digest_of_point(&shell, point), digest_elsewhere(&back));
        // The other day's disk in place of this one.
        let other = if source == &day_1 { &image } else { &day_1 };
        let used = folder.path().join("used.raw");
        extract(other, 0..fs::metadata(other).unwrap().len(), &used);
        let used = restore(&shell, point, "used.raw", &["--force", "--sparse", "exact"]);
        assert_same(&used, source);
        fs::remove_file(used).unwrap();
        fs::remove_file(back).unwrap();
    }
    shell.ok(&["check", "--read-data"]);
}

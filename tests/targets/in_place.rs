//! `restore --in-place`.

use crate::support::{
    LoopDevice, MIB, Vault, allocated, data_map, random, read_range, write_sparse,
};
use crate::{History, SIZE, number, tool, write};
use std::fs;

/// A chunk of the repositories here.
const CHUNK: u64 = 64 << 10;

#[test]
fn whatever_the_target_held_it_becomes_the_disk() {
    let history = History::new();
    let vault = &history.vault;
    let target = vault.arg("target");
    for (number_of, (point, day)) in history.points.iter().zip(&history.days).enumerate() {
        for bytes in [0, 511, MIB, SIZE - 1, SIZE, SIZE + 1, 12 * MIB] {
            fs::write(&target, random(bytes + 99, bytes)).unwrap();
            let address = format!("{point}/sda");
            let report = vault.json(&["restore", "--in-place", &address, &target]);
            assert!(fs::read(&target).unwrap() == *day, "day {number_of}, {bytes} bytes before");
            assert_eq!(
                report["before"],
                if bytes == 0 && number_of == 0 { "unknown" } else { "changed" }
            );
            let blocks = bytes.next_multiple_of(4096);
            assert!(number(&report, "target_read_bytes") <= blocks, "{report}");
        }
    }
    // The last day's disk is what the source is, to the hole.
    assert!(allocated(vault.path("target").as_path()) <= allocated(&vault.path("disk")));
    let exact = ["restore", "--in-place", "--sparse", "exact", "vm/sda", &target];
    vault.ok(&exact);
    assert_eq!(data_map(&vault.path("target")), data_map(&vault.path("disk")));
    fs::write(&target, random(7, SIZE)).unwrap();
    vault.ok(&exact);
    assert_eq!(data_map(&vault.path("target")), data_map(&vault.path("disk")));
    assert!(fs::read(&target).unwrap() == history.days[2]);
    vault.ok(&["restore", "--in-place", "--sparse", "never", "vm/sda", &target]);
    assert!(fs::read(&target).unwrap() == history.days[2]);
    assert!(allocated(&vault.path("target")) >= SIZE);
}

#[test]
fn what_is_known_is_not_read() {
    let history = History::new();
    let vault = &history.vault;
    let target = vault.arg("target");
    let restore = |day: usize, options: &[&str]| {
        let address = format!("{}/sda", history.points[day]);
        let mut all = vec!["restore", "--in-place", &address, &target];
        all.extend(options);
        vault.json(&all)
    };
    assert_eq!(restore(0, &[])["before"], "new");
    for (day, chunks_max) in [(0, 0), (1, 3), (2, 6), (0, 9), (2, 9)] {
        let trial = restore(day, &["--dry-run"]);
        let before = fs::read(&target).unwrap();
        let report = restore(day, &[]);
        assert_eq!(report["before"], "known", "day {day}");
        assert_eq!(number(&report, "target_read_bytes"), 0);
        let written = number(&report, "written_bytes");
        assert!(written <= chunks_max * CHUNK, "day {day}: {report}");
        assert!(written <= number(&trial, "written_bytes"), "{trial}");
        assert_eq!(number(&report, "zeroed_bytes"), number(&trial, "zeroed_bytes"));
        assert!(fs::read(&target).unwrap() == history.days[day]);
        let is_same = before == history.days[day];
        assert_eq!(is_same, written + number(&report, "zeroed_bytes") == 0, "day {day}: {report}");
    }
}

#[test]
fn what_was_changed_is_read_and_only_the_change_is_written() {
    let history = History::new();
    let vault = &history.vault;
    let target = vault.arg("target");
    vault.ok(&["restore", "vm/sda", &target]);
    vault.ok(&["restore", "--in-place", "vm/sda", &target]);
    write(vault.path("target").as_path(), 2 * MIB + 5, b"x");
    let report = vault.json(&["restore", "--in-place", "--dry-run", "vm/sda", &target]);
    assert_eq!(read_range(&vault.path("target"), 2 * MIB + 5, 1), b"x", "a trial wrote");
    assert_eq!(number(&report, "written_bytes"), CHUNK);
    let report = vault.json(&["restore", "--in-place", "vm/sda", &target]);
    assert_eq!(report["before"], "changed");
    assert_eq!(number(&report, "written_bytes"), CHUNK);
    assert!(number(&report, "target_read_bytes") <= allocated(&vault.path("target")));
    assert!(fs::read(&target).unwrap() == history.days[2]);
}

#[test]
fn a_forgotten_point_and_a_lost_cache_only_cost_reading() {
    let history = History::new();
    let vault = &history.vault;
    let target = vault.arg("target");
    let first = format!("{}/sda", history.points[0]);
    vault.ok(&["restore", "--in-place", &first, &target]);
    vault.ok(&["forget", &history.points[0]]);
    let report = vault.json(&["restore", "--in-place", "vm/sda", &target]);
    assert_eq!(report["before"], "unknown");
    assert!(fs::read(&target).unwrap() == history.days[2]);
    fs::remove_dir_all(vault.path("cache")).unwrap();
    let report = vault.json(&["restore", "--in-place", "vm/sda", &target]);
    assert_eq!(report["before"], "unknown");
    assert_eq!(number(&report, "written_bytes"), 0);
}

/// The target of a run that was killed is right after the next, whatever was done when.
#[test]
fn a_damaged_chunk_ends_it_and_nothing_counts_as_known() {
    let history = History::new();
    let vault = &history.vault;
    let target = vault.arg("target");
    let mut packs = crate::support::files(&vault.path("repo/packs"));
    packs.sort_by_key(|pack| fs::metadata(vault.path("repo/packs").join(pack)).unwrap().len());
    let pack = vault.path("repo/packs").join(packs.last().unwrap());
    let whole = fs::read(&pack).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 3] ^= 1;
    fs::write(&pack, damaged).unwrap();
    fs::write(&target, random(8, SIZE)).unwrap();
    vault.fails(5, &["restore", "--in-place", "vm/sda", &target], "authentication failed");
    fs::write(&pack, whole).unwrap();
    let report = vault.json(&["restore", "--in-place", "vm/sda", &target]);
    assert_eq!(report["before"], "unknown");
    assert!(fs::read(&target).unwrap() == history.days[2]);
}

#[test]
fn a_device_gets_the_disk_and_keeps_what_is_behind() {
    let history = History::new();
    let vault = &history.vault;
    let before = random(6, 12 * MIB);
    fs::write(vault.path("backing"), &before).unwrap();
    let Some(device) = LoopDevice::new(&vault.path("backing")) else { return };
    let report = vault.json(&["restore", "--in-place", "vm/sda", &device.0]);
    let all = [&history.days[2][..], &before[SIZE as usize..]].concat();
    assert!(fs::read(&device.0).unwrap() == all);
    assert!(number(&report, "written_bytes") > 3 * MIB);
    let report = vault.json(&["restore", "--in-place", "vm/sda", &device.0]);
    assert_eq!(number(&report, "written_bytes") + number(&report, "zeroed_bytes"), 0, "{report}");
    assert_eq!(number(&report, "target_read_bytes"), SIZE);
    assert_eq!(report["before"], "unknown");
    vault.ok(&["certify", "vm/sda", &device.0]);

    fs::write(vault.path("small"), random(7, SIZE - 512 * 7)).unwrap();
    let Some(small) = LoopDevice::new(&vault.path("small")) else { return };
    let arguments = ["restore", "--in-place", "vm/sda", &small.0];
    vault.fails(1, &arguments, &format!("it holds {} bytes", SIZE - 512 * 7));
    assert!(fs::read(vault.path("small")).unwrap() == random(7, SIZE - 512 * 7));
}

#[test]
fn what_is_mounted_or_in_use_is_refused() {
    let history = History::new();
    let vault = &history.vault;
    let file = vault.path("file-system");
    fs::File::create(&file).unwrap().set_len(12 * MIB).unwrap();
    tool("mkfs.ext4", &["-q", file.to_str().unwrap()]);
    let Some(device) = LoopDevice::new(&file) else { return };
    let before = fs::read(&file).unwrap();
    let refused = vault.fails(
        1,
        &["restore", "--in-place", "vm/sda", file.to_str().unwrap()],
        &format!("it is in use by {}", device.0),
    );
    refused.hints("use --force");
    let at = vault.path("mounted");
    fs::create_dir(&at).unwrap();
    tool("mount", &["-o", "ro", &device.0, at.to_str().unwrap()]);
    let outcome = vault.run(&["restore", "--in-place", "vm/sda", &device.0]);
    tool("umount", &[at.to_str().unwrap()]);
    assert_eq!(outcome.code, 1);
    outcome.says("it is in use (mounted, or held by another program)").hints("use --force");
    assert!(fs::read(&file).unwrap() == before, "something was written");
}

/// As udev does, after each program that has written to a device.
#[test]
fn a_lock_of_an_instant_on_a_device_is_waited_for() {
    let history = History::new();
    let vault = &history.vault;
    let file = vault.path("backing");
    fs::write(&file, random(6, 12 * MIB)).unwrap();
    let Some(device) = LoopDevice::new(&file) else { return };
    let held = fs::File::open(&device.0).unwrap();
    held.lock().unwrap();
    let arguments = ["restore", "--in-place", "vm/sda", &device.0];
    vault.fails(1, &arguments, "another program holds a lock on it");
    let mut run = vault.command(&arguments).spawn().unwrap();
    // It does not end before the lock does.
    std::thread::sleep(std::time::Duration::from_millis(600));
    assert!(run.try_wait().unwrap().is_none());
    drop(held);
    assert!(run.wait().unwrap().success());
    assert!(fs::read(&device.0).unwrap()[..SIZE as usize] == history.days[2]);
}

#[test]
fn the_source_itself_needs_force() {
    let history = History::new();
    let vault = &history.vault;
    let disk = vault.arg("disk");
    write(vault.path("disk").as_path(), 10, b"newer");
    let newer = fs::read(&disk).unwrap();
    let arguments = ["restore", "--in-place", "vm/sda", &disk];
    vault.fails(1, &arguments, "the point was made of it").hints("use --force");
    assert!(fs::read(&disk).unwrap() == newer);
    vault.ok(&["restore", "--in-place", "--force", "vm/sda", &disk]);
    assert!(fs::read(&disk).unwrap() == history.days[2]);
}

/// A device is known again, the file behind it too, and so are files below an image.
#[test]
fn sources_that_are_devices_or_lie_below_an_image_need_force() {
    let vault = Vault::new();
    let (file, copy) = (vault.path("file"), vault.path("copy"));
    for path in [&file, &copy] {
        write_sparse(path, 4 * MIB, &[(0, &random(1, MIB))]);
    }
    let before = fs::read(&file).unwrap();
    let Some(device) = LoopDevice::new(&file) else { return };
    let Some(other) = LoopDevice::new(&copy) else { return };
    vault.backup("vm", &["--disk", &format!("sda={}", device.0)]);
    let of_file = ["restore", "--in-place", "vm/sda"];
    for target in [device.0.as_str(), file.to_str().unwrap()] {
        vault.fails(1, &[&of_file[..], &[target]].concat(), "the point was made of it");
    }
    vault.ok(&[&of_file[..], &[&other.0]].concat());
    let image = vault.arg("image.qcow2");
    let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "copy", &image];
    tool("qemu-img", &create);
    drop(other);
    vault.backup("image", &["--disk", &format!("sda={image}")]);
    let base = vault.arg("copy");
    let arguments = ["mirror", "image", &base];
    vault.fails(1, &arguments, "the point was made of it").hints("use --force");
    assert!(fs::read(&file).unwrap() == before && fs::read(&copy).unwrap() == before);
}

#[test]
fn images_of_every_format_come_back_in_place() {
    let vault = Vault::new();
    let raw = vault.path("raw");
    let (one, two) = (random(1, 2 * MIB), random(2, 300_000));
    write_sparse(&raw, 16 * MIB, &[(0, &one), (9 * MIB, &two)]);
    let bytes = fs::read(&raw).unwrap();
    for (format, options) in [
        ("qcow2", ""),
        ("vmdk", "subformat=monolithicSparse"),
        ("vpc", "force_size=on"),
        ("vhdx", ""),
    ] {
        let image = vault.arg(&format!("image.{format}"));
        let mut arguments = vec!["convert", "-f", "raw", "-O", format];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        arguments.extend([raw.to_str().unwrap(), &image]);
        tool("qemu-img", &arguments);
        let named = if format == "vpc" { "vhd" } else { format };
        let disk = format!("sda={image}");
        vault.backup(format, &["--format", named, "--disk", &disk]);
        let target = vault.arg("target");
        fs::write(&target, random(3, 17 * MIB)).unwrap();
        vault.ok(&["restore", "--in-place", &format!("{format}/sda"), &target]);
        assert!(fs::read(&target).unwrap() == bytes, "{format}");
        assert!(allocated(&vault.path("target")) <= 2 * MIB + 300_000 + 256 * 1024, "{format}");
    }
}

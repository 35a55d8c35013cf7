//! Every format, for disks of every shape and from sources of every format.

use super::files::noise;
use super::rig::{FORMS, Form, GIB, KIB, MIB, Rig};
use diskvault::target::image::{
    ClusterSet, ClusterSink, Description, PackedFormat, Packer, Packing, Qcow2Compressed,
    create_packed,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::fs;
use std::sync::Arc;

/// A disk of this size and data, in every format.
fn assert_all(rig: &Rig, name: &str, size: u64, data: &[(u64, u64)]) {
    rig.disk(name, size, data);
    rig.backup(name);
    for form in &FORMS {
        rig.assert_restores(name, name, form);
    }
}

#[test]
fn small_disks_of_every_shape() {
    let rig = Rig::new();
    let border = 64 * KIB;
    assert_all(&rig, "one-sector", 512, &[(0, 512)]);
    assert_all(&rig, "zeros", 5 * MIB + 512, &[]);
    assert_all(&rig, "dense", 3 * MIB + 7 * 512, &[(0, 3 * MIB + 7 * 512)]);
    assert_all(&rig, "ends", 9 * MIB, &[(0, 512), (9 * MIB - 512, 512)]);
    assert_all(&rig, "cluster", border, &[(0, border)]);
    assert_all(&rig, "less", 2 * border - 512, &[(border - 512, 1024)]);
    assert_all(&rig, "more", 2 * MIB + 512, &[(2 * MIB - 512, 1024)]);
}

/// The way around: a backup of an image is one of the disk.
#[test]
fn images_are_backed_up_as_their_disk() {
    let rig = Rig::new();
    rig.disk("disk", 5 * MIB + 512, &[(0, 3 * MIB), (4 * MIB + KIB, 100 * KIB)]);
    rig.backup("disk");
    for form in &FORMS {
        let image = format!("image.{}", form.ending);
        rig.shell.ok(&[&["restore", "disk", &image, "--force"], form.options].concat());
        rig.assert_reads_back(&image, "disk");
    }
}

#[test]
fn empty_disks_where_a_format_has_them() {
    let rig = Rig::new();
    rig.disk("empty", 0, &[]);
    rig.backup("empty");
    for form in &FORMS {
        if matches!(form.qemu, "vmdk" | "vhdx") {
            let arguments = [&["empty", "out"], form.options].concat();
            let error = rig.refusal(1, &arguments);
            let format = form.options[1];
            let text = format!("cannot write out as {format}: it holds no disk of 0 bytes");
            assert!(error.contains(&text), "{error}");
        } else {
            rig.assert_restores("empty", "empty", form);
        }
    }
}

#[test]
fn sparse_disks_with_data_at_their_far_ends() {
    let rig = Rig::new();
    let size = 300 * MIB + 512;
    // Behind the border of a grain table, across that of a VHD block.
    let data = [(0, 4 * KIB), (32 * MIB + 4 * KIB, 8 * KIB), (99 * MIB, 2 * MIB)];
    assert_all(&rig, "sparse", size, &[&data[..], &[(size - 4 * KIB, 4 * KIB)]].concat());
}

/// Offsets that do not fit 31 or 32 bits, and more than one table of every format.
#[test]
fn disks_beyond_four_gigabytes() {
    let rig = Rig::new();
    for size in [2 * GIB + 512, 5 * GIB + 3 * 512] {
        let name = format!("large-{size}");
        let inside = [0, 512 * MIB - KIB, 2 * GIB - 64 * KIB, 4 * GIB - 4 * KIB];
        let fits = inside.into_iter().filter(|at| at + 128 * KIB < size);
        let mut data: Vec<_> = fits.map(|at| (at, 96 * KIB)).collect();
        data.push((size - 512, 512));
        assert_all(&rig, &name, size, &data);
    }
}

#[test]
fn disks_that_were_read_from_images() {
    let rig = Rig::new();
    let size = 20 * MIB + 512;
    rig.disk("disk.raw", size, &[(0, 100 * KIB), (7 * MIB + KIB, 3 * MIB), (size - 512, 512)]);
    for (format, options) in [
        ("qcow2", "compat=1.1"),
        ("vmdk", "subformat=monolithicSparse"),
        ("vpc", "force_size=on"),
        ("vhdx", "subformat=dynamic"),
    ] {
        let ending = if format == "vpc" { "vhd" } else { format };
        let image = format!("source.{ending}");
        let arguments = ["-f", "raw", "-O", format, "-o", options, "disk.raw", &image];
        rig.tool("qemu-img", &[&["convert"][..], &arguments].concat());
        rig.shell.backup(&["--name", format, "--disk", &format!("disk={image}")]);
        for form in &FORMS {
            rig.assert_restores(format, "disk.raw", form);
        }
    }
}

/// Chunks whose borders are nowhere near those of clusters.
#[test]
fn disks_that_are_cut_by_content() {
    let rig = Rig::new();
    rig.disk("disk", 40 * MIB, &[(0, 9 * MIB), (20 * MIB + 512, 700 * KIB)]);
    rig.shell.backup(&["--name", "cut", "--chunker", "fastcdc", "--disk", "disk=disk"]);
    for form in &FORMS {
        rig.assert_restores("cut", "disk", form);
    }
}

/// What compresses becomes smaller, in both methods and in streams.
#[test]
fn compressed_images_are_small() {
    let rig = Rig::new();
    let text: Vec<u8> = (0..3 << 20).flat_map(|it: u32| it.to_string().into_bytes()).collect();
    let text = &text[..16 << 20];
    let mut mixed = text.to_vec();
    mixed[4 << 20..5 << 20].copy_from_slice(&noise(1, 1 << 20));
    fs::write(rig.path("text"), mixed).unwrap();
    rig.backup("text");
    for form in [&FORMS[1], &FORMS[2], &FORMS[4]] {
        rig.assert_restores("text", "text", form);
        let image = format!("small.{}", form.ending);
        rig.shell.ok(&[&["restore", "text", &image], form.options].concat());
        let bytes = rig.path(&image).metadata().unwrap().len();
        assert!(bytes < 10 * MIB, "{:?}: {bytes}", form.options);
        fs::remove_file(rig.path(&image)).unwrap();
    }
}

#[test]
fn random_disks() {
    let rig = Rig::new();
    let number = std::cell::Cell::new(0);
    let ranges = prop::collection::vec((0_u64..100_000, 1_u64..2000), 0..12);
    let disks = (1_u64..100_000, ranges);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(6));
    runner
        .run(&disks, |(sectors, ranges)| {
            number.set(number.get() + 1);
            let clip = |(at, count): (u64, u64)| {
                let at = at % sectors;
                (at * 512, count.min(sectors - at) * 512)
            };
            let data: Vec<_> = ranges.into_iter().map(clip).collect();
            assert_all(&rig, &format!("random-{}", number.get()), sectors * 512, &data);
            Ok(())
        })
        .unwrap();
}

/// The largest disks of each format, with data at both ends; QEMU checks a VMDK grain by grain, so
/// that one is smaller.
#[test]
fn huge_disks() {
    let rig = Rig::new();
    const TIB: u64 = 1 << 40;
    for (format, qemu, size) in [
        (PackedFormat::Qcow2, "qcow2", 64 * TIB),
        (PackedFormat::Vmdk, "vmdk", 4 * TIB),
        (PackedFormat::Vhd, "vpc", 2040 * GIB),
        (PackedFormat::Vhdx, "vhdx", 64 * TIB),
    ] {
        let path = rig.path(qemu);
        let write = |size: u64| {
            let mut set = ClusterSet::new(size, format.cluster_bytes(size));
            let places = [0, size / 2 / 512 * 512, size - 512];
            places.iter().for_each(|at| set.add(*at..*at + 512));
            let clusters = Arc::new(set.finish());
            let description = Description::default();
            let target = create_packed(&path, false, format, &description, clusters)?;
            for (at, byte) in places.iter().zip(1_u8..) {
                target.write_at(*at, &[byte; 512])?;
            }
            assert!(target.write_at(size / 4 / 512 * 512, &[1; 512]).is_err(), "nowhere");
            target.finish()?;
            Ok::<_, diskvault::error::Error>(places)
        };
        let places = write(size).unwrap();
        if qemu != "vpc" {
            rig.tool("qemu-img", &["check", "-f", qemu, qemu]);
        }
        let mut commands = Vec::new();
        for (at, byte) in places.iter().zip(1..) {
            commands.push(format!("read -P {byte} {at} 512"));
        }
        commands.push(format!("read -P 0 {} 512", size / 4 / 512 * 512));
        let mut arguments = vec!["-r", "-f", qemu];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        let said = rig.tool("qemu-io", &[&arguments[..], &[qemu]].concat());
        assert!(!said.contains("verification failed"), "{qemu}: {said}");
        fs::remove_file(&path).unwrap();
        if matches!(format, PackedFormat::Vhd | PackedFormat::Vhdx) {
            let error = write(size + 512).unwrap_err();
            let limit = if qemu == "vpc" { "2040 GiB" } else { "64 TiB" };
            let text = format!("as {}: it holds at most {limit}", format.name());
            assert!(error.full_text().ends_with(&text), "{error:?}");
            assert!(!path.exists());
        }
    }
}

/// More than a block of reference counts, clusters of both kinds, and tables between them. Only
/// the beginnings of what gets no smaller are written, so that the file is sparse.
#[test]
fn compressed_images_of_more_than_two_gigabytes() {
    let rig = Rig::new();
    let path = rig.path("long.qcow2");
    let count = 3 * 32_768_u64;
    let size = count * 64 * KIB;
    let mut image = Qcow2Compressed::create(&path, false, size, Packing::Deflate).unwrap();
    let mut packer = Packer::new(Packing::Deflate).unwrap();
    for number in 0..count {
        // Here they lie across the border of 2 GiB of the file; elsewhere they are short, so that
        // there is room behind the last one when the other border comes.
        let is_border = (38_000..39_500).contains(&number);
        if number % 7 != 0 && !is_border {
            image.add(number, &number.to_be_bytes(), &[]).unwrap();
            continue;
        }
        let random = if is_border { (number % 5) as usize * 12_000 } else { 0 };
        let mut cluster = noise(number, random);
        cluster.resize(64 << 10, 3);
        image.add(number, &cluster, &packer.pack(&cluster).unwrap()).unwrap();
    }
    image.finish().unwrap();
    rig.tool("qemu-img", &["check", "-f", "qcow2", "long.qcow2"]);
    let bytes = path.metadata().unwrap().len();
    assert!(bytes > 4 * GIB, "it has {bytes} bytes");
    let at = (count - 1) / 7 * 7;
    let command = format!("read -P 3 {} 512", (at + 1) * 64 * KIB - 512);
    let said = rig.tool("qemu-io", &["-r", "-f", "qcow2", "-c", &command, "long.qcow2"]);
    assert!(!said.contains("verification failed"), "{said}");
}

/// What a guest writes to an image later finds its place, in every format that is written to.
#[test]
fn images_can_be_written_to() {
    let rig = Rig::new();
    let size = 70 * MIB;
    rig.disk("disk", size, &[(MIB, 100 * KIB), (size - 512, 512)]);
    rig.backup("disk");
    let writable = |form: &&Form| form.options[1] != "vmdk-stream" && form.options.len() == 2;
    for form in FORMS.iter().filter(writable) {
        let image = format!("disk.{}", form.ending);
        rig.shell.ok(&[&["restore", "disk", &image], form.options].concat());
        fs::copy(rig.path("disk"), rig.path("changed")).unwrap();
        for (format, file) in [(form.qemu, image.as_str()), ("raw", "changed")] {
            let writes = ["write -P 1 1000k 90k", "write -P 2 40M 3M", "write -P 3 0 512"];
            let arguments = writes.iter().flat_map(|it| ["-c", it]).collect::<Vec<_>>();
            rig.tool("qemu-io", &[&["-f", format][..], &arguments, &[file]].concat());
        }
        rig.assert_is_disk(&image, "changed", form.qemu);
        fs::remove_file(rig.path(&image)).unwrap();
    }
}

/// QEMU reads one directory only; other programs fall back on the second.
#[test]
fn the_redundant_directory_of_a_vmdk_says_the_same() {
    let rig = Rig::new();
    let size = 130 * MIB;
    rig.disk("disk", size, &[(MIB, 100 * KIB), (99 * MIB, MIB), (size - 512, 512)]);
    rig.backup("disk");
    rig.shell.ok(&["restore", "disk", "out.vmdk", "--format", "vmdk"]);
    let image = fs::read(rig.path("out.vmdk")).unwrap();
    let number = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    let [second, first] = [48, 56].map(|at| number(at) * 512);
    assert!(first != second && first > 0 && second > 0);
    let mut used = 0;
    for entry in 0..5 {
        let [second, first] = [second, first].map(|at| number(at + entry * 4) * 512);
        assert_ne!(first, second);
        assert!(image[first..first + 2048] == image[second..second + 2048], "table {entry}");
        used += (0..512).filter(|grain| number(first + grain * 4) != 0).count();
    }
    // 100 KiB from 1 MiB on lie in two grains, 1 MiB in 16, the last sector in one.
    assert_eq!(used, 2 + 16 + 1);
}

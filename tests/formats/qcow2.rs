//! qcow2: versions, cluster sizes, compression, subclusters, chains, data files, snapshots.

use super::*;
use flate2::write::DeflateEncoder;
use std::io::Read;

const SIZE: &str = "24M";

/// Data, zeros that were written, a hole, and data that ends with the disk.
const WRITES: [&str; 5] = [
    "write -P 0x11 0 300k",
    "write -P 0x22 2000k 3M",
    "write -z 3M 192k",
    "write -P 0x33 9M 5k",
    "write -P 0x44 24400k 176k",
];

fn create(workshop: &Workshop, name: &str, options: &str, writes: &[&str]) {
    workshop.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, name, SIZE]);
    workshop.write(name, writes);
}

#[test]
fn every_layout_reads_as_qemu_converts_it() {
    let Some(workshop) = Workshop::new() else { return };
    let mut seen = 0;
    for compat in ["compat=0.10", "compat=1.1", "compat=1.1,extended_l2=on"] {
        for cluster in ["512", "4k", "16k", "64k", "2M"] {
            let options = format!("{compat},cluster_size={cluster}");
            if compat.contains("extended") && ["512", "4k"].contains(&cluster) {
                continue;
            }
            let writes = if compat == "compat=0.10" { &WRITES[..2] } else { &WRITES[..] };
            create(&workshop, "a.qcow2", &options, writes);
            let source = workshop.assert_same_view("a.qcow2");
            assert_eq!(source.format(), "qcow2");
            seen += 1;
        }
    }
    assert_eq!(seen, 13);
}

#[test]
fn compressed_clusters_of_both_kinds() {
    let Some(workshop) = Workshop::new() else { return };
    // Half of it compresses.
    let mut disk = noise(1, 6 << 20);
    disk[1 << 20..4 << 20].fill(7);
    disk.resize(9 << 20, 0);
    disk.extend(b"text ".repeat(40_000));
    disk.resize(disk.len().next_multiple_of(512), 1);
    fs::write(workshop.path("disk"), &disk).unwrap();
    for kind in ["zlib", "zstd"] {
        for cluster in ["4k", "64k", "2M"] {
            let options = format!("compression_type={kind},cluster_size={cluster}");
            let arguments = ["convert", "-c", "-O", "qcow2", "-o", &options, "disk", "c.qcow2"];
            workshop.qemu_img(&arguments);
            workshop.assert_same_view("c.qcow2");
            // Written on top, so that compressed and plain clusters take turns.
            workshop.write("c.qcow2", &["write -P 9 1M 100k", "write -z 5M 128k"]);
            workshop.assert_same_view("c.qcow2");
        }
    }
}

#[test]
fn chains_show_what_lies_below() {
    let Some(workshop) = Workshop::new() else { return };
    let base = noise(2, 10 << 20);
    fs::write(workshop.path("base.raw"), &base).unwrap();
    let create = |name: &str, below: &str, format: &str, size: &str| {
        let options = ["create", "-q", "-f", "qcow2", "-F", format, "-b", below, name, size];
        workshop.qemu_img(&options);
    };
    // The disk grows twice, so what is beyond a file below is zeros.
    create("one.qcow2", "base.raw", "raw", "16M");
    workshop.write("one.qcow2", &["write -P 1 9M 2M", "write -z 1M 1M", "write -P 2 15M 64k"]);
    create("two.qcow2", "one.qcow2", "qcow2", "20M");
    workshop.write("two.qcow2", &["write -P 3 0 64k", "write -z 9M 64k"]);
    create("three.qcow2", "two.qcow2", "qcow2", "20M");
    workshop.write("three.qcow2", &["write -P 4 1500k 100k", "discard 15M 64k"]);
    for name in ["one.qcow2", "two.qcow2", "three.qcow2"] {
        workshop.assert_same_view(name);
    }
    // A disk that is smaller than what lies below.
    create("small.qcow2", "two.qcow2", "qcow2", "5M");
    workshop.assert_same_view("small.qcow2");
}

#[test]
fn data_in_another_file() {
    let Some(workshop) = Workshop::new() else { return };
    for raw in ["off", "on"] {
        let options = format!("data_file=data{raw},data_file_raw={raw}");
        create(&workshop, "d.qcow2", &options, &WRITES);
        workshop.assert_same_view("d.qcow2");
    }
}

#[test]
fn internal_snapshots_by_name_and_number() {
    let Some(workshop) = Workshop::new() else { return };
    create(&workshop, "s.qcow2", "compat=1.1", &WRITES);
    let mut views = Vec::new();
    for (name, write) in [("monday", "write -P 5 0 1M"), ("tuesday", "write -P 6 512k 2M")] {
        workshop.qemu_img(&["convert", "-O", "raw", "s.qcow2", "converted"]);
        views.push((name, fs::read(workshop.path("converted")).unwrap()));
        workshop.qemu_img(&["snapshot", "-c", name, "s.qcow2"]);
        workshop.write("s.qcow2", &[write]);
    }
    workshop.qemu_img(&["resize", "-q", "s.qcow2", "30M"]);
    workshop.assert_same_view("s.qcow2");
    for (number, (name, view)) in (1..).zip(&views) {
        for snapshot in [(*name).to_string(), number.to_string()] {
            let options = ImageOptions { snapshot: Some(snapshot), ..ImageOptions::default() };
            let source = workshop.open_with("s.qcow2", &options).unwrap();
            assert_view(source.as_ref(), view, name);
        }
    }
    let options = ImageOptions { snapshot: Some("sunday".into()), ..ImageOptions::default() };
    let error = workshop.open_with("s.qcow2", &options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.full_text().contains("cannot find a snapshot called sunday"), "{error:?}");
}

/// A guest can write what it likes into its raw disk.
#[test]
fn a_format_is_not_guessed_from_what_a_guest_may_have_written() {
    let Some(workshop) = Workshop::new() else { return };
    create(&workshop, "x.qcow2", "compat=1.1", &WRITES);
    let image = fs::read(workshop.path("x.qcow2")).unwrap();
    fs::write(workshop.path("guest.raw"), &image).unwrap();
    assert_view(workshop.open("guest.raw").unwrap().as_ref(), &image, "raw by its name");
    fs::write(workshop.path("guest.img"), &image).unwrap();
    let error = workshop.open("guest.img").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.full_text().contains("cannot tell the format"), "{error:?}");
    for (format, size) in [(ImageFormat::Raw, image.len() as u64), (ImageFormat::Qcow2, 24 << 20)] {
        let options = ImageOptions { format: Some(format), ..ImageOptions::default() };
        assert_eq!(workshop.open_with("guest.img", &options).unwrap().size(), size);
    }
}

#[test]
fn files_outside_of_the_folder_are_not_opened_on_an_images_word() {
    let Some(workshop) = Workshop::new() else { return };
    let outside = Workshop::new().unwrap();
    let secret = outside.path("secret.raw");
    fs::write(&secret, noise(3, 1 << 20)).unwrap();
    let secret = secret.to_str().unwrap();
    std::os::unix::fs::symlink(secret, workshop.path("link.raw")).unwrap();
    let folder = workshop.0.path().to_str().unwrap().to_string();
    let up = format!("../{}", secret.trim_start_matches('/').split_once('/').unwrap().1);
    for (below, is_inside) in
        [(secret, false), (&up, false), ("link.raw", false), (&format!("{folder}/in.raw"), true)]
    {
        fs::write(workshop.path("in.raw"), noise(4, 1 << 20)).unwrap();
        workshop.qemu_img(&[
            "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", below, "o.qcow2", "1M",
        ]);
        match workshop.open("o.qcow2") {
            Ok(_) => assert!(is_inside, "{below}"),
            Err(error) => {
                assert!(!is_inside, "{error:?}");
                assert!(error.full_text().contains("outside of the image's folder"), "{error:?}");
            }
        }
        let options = ImageOptions { allows_backing: true, ..ImageOptions::default() };
        workshop.open_with("o.qcow2", &options).unwrap();
    }
    let below_o = ["-F", "qcow2", "-b", "o.qcow2", "p.qcow2", "1M"];
    workshop.qemu_img(&[&["create", "-q", "-u", "-f", "qcow2"][..], &below_o].concat());
    for (below, text) in [
        ("missing.raw", "cannot be found"),
        ("nbd://127.0.0.1/x", "it lies over nbd://127.0.0.1/x"),
        ("json:{\"driver\":\"raw\"}", "is no plain file"),
        ("p.qcow2", "lead back to it"),
    ] {
        workshop.qemu_img(&[
            "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, "o.qcow2", "1M",
        ]);
        let error = workshop.open("o.qcow2").err().unwrap();
        assert!(error.full_text().contains(text), "{below}: {error:?}");
    }
}

#[test]
fn an_encrypted_image_is_stored_as_it_is() {
    let Some(workshop) = Workshop::new() else { return };
    let secret = "secret,id=s,data=secret";
    let create = ["create", "-q", "--object", secret, "-f", "qcow2", "-o"];
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    workshop.qemu_img(&[&create[..], &[options, "e.qcow2", "1M"]].concat());
    let heard = Heard::default();
    let source = open_image(&workshop.path("e.qcow2"), &ImageOptions::default(), &heard).unwrap();
    assert_eq!(source.size(), fs::metadata(workshop.path("e.qcow2")).unwrap().len());
    assert!(heard.0.lock().unwrap()[0].contains("is encrypted; the image is stored as it is"));
}

/// Each byte of header and tables with other values: an error or some bytes, in bounded time and
/// memory.
#[test]
fn hostile_tables_are_refused() {
    let Some(workshop) = Workshop::new() else { return };
    create(&workshop, "good.qcow2", "compat=1.1,cluster_size=4k", &WRITES);
    let good = fs::read(workshop.path("good.qcow2")).unwrap();
    let be = |at: usize, bytes: usize| {
        good[at..at + bytes].iter().fold(0_u64, |all, byte| all << 8 | u64::from(*byte))
    };
    let l1 = be(40, 8) as usize;
    let l2 = (be(l1, 8) & 0x00ff_ffff_ffff_fe00) as usize;
    let set = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(workshop.path("bad.qcow2"), image).unwrap();
        refused(&workshop, "bad.qcow2").full_text()
    };
    let far = (1_u64 << 50 | 1 << 63).to_be_bytes();
    for (at, bytes, text) in [
        (0, &b"QFI\xfa"[..], "it has no qcow2 header"),
        (4, &7_u32.to_be_bytes(), "version 7 is not known"),
        (20, &40_u32.to_be_bytes(), "clusters of 2^40 bytes"),
        (24, &(1_u64 << 63).to_be_bytes(), "a size of 9223372036854775808 bytes"),
        (24, &(1_u64 << 62).to_be_bytes(), "is for another size"),
        (36, &1_u32.to_be_bytes(), "is for another size"),
        (40, &far, "the first table lies beyond the end"),
        (72, &2_u64.to_be_bytes(), "it is marked as corrupt"),
        (72, &(1_u64 << 40).to_be_bytes(), "features that are not known: 0x10000000000"),
        (72, &4_u64.to_be_bytes(), "does not name its data file"),
        (l1, &far, "a table lies beyond the end"),
        (l1, &0x200_u64.to_be_bytes(), "a table at 512 is not at a cluster"),
        (l2, &far, "lies beyond the end"),
        (l2, &0x200_u64.to_be_bytes(), "a cluster at 512 is not at a multiple"),
        (l2, &(1_u64 << 62 | 1 << 40).to_be_bytes(), "a compressed cluster"),
        (l2, &(1_u64 << 62 | 5).to_be_bytes(), "does not decode"),
    ] {
        let found = set(at, bytes);
        assert!(found.contains(text), "at {at}: {found}");
    }
    // Dirty means that reference counts may be wrong, which reading does not need.
    let mut dirty = good.clone();
    dirty[79] |= 1;
    fs::write(workshop.path("dirty.qcow2"), dirty).unwrap();
    assert_eq!(data_of(workshop.open("dirty.qcow2").unwrap().as_ref()).len(), 5);
    for bytes in [0, 3, 4, 71, 104, 4096, good.len() / 2] {
        fs::write(workshop.path("short.qcow2"), &good[..bytes]).unwrap();
        assert_eq!(refused(&workshop, "short.qcow2").kind(), ErrorKind::Source, "{bytes} bytes");
    }
}

/// What comes out of a stream of deflate, or a frame of zstd, that is stored as a cluster of 64 KiB.
fn compressed(kind: &str, bytes: u64, is_whole: bool) -> Vec<u8> {
    let mut input = std::io::repeat(7).take(bytes);
    let mut packed = match kind {
        "zlib" => {
            let mut deflate = DeflateEncoder::new(Vec::new(), flate2::Compression::best());
            std::io::copy(&mut input, &mut deflate).unwrap();
            deflate.finish().unwrap()
        }
        _ => {
            let mut frame = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            frame.window_log(16).unwrap();
            frame.include_checksum(true).unwrap();
            std::io::copy(&mut input, &mut frame).unwrap();
            frame.finish().unwrap()
        }
    };
    if !is_whole {
        packed.truncate(packed.len() - 1);
    }
    packed
}

/// Of deflate QEMU takes as much as a cluster has room for, of zstd it takes whole frames that fit. So
/// it is here; the room of a cluster is all that there is for a bomb to fill.
#[test]
fn compressed_clusters_that_are_larger_than_a_cluster() {
    let Some(workshop) = Workshop::new() else { return };
    const CLUSTER: u64 = 64 << 10;
    for (kind, bytes, is_whole, error) in [
        ("zlib", CLUSTER, true, None),
        ("zlib", CLUSTER + 1, true, None),
        ("zlib", 100 << 20, true, None),
        ("zlib", CLUSTER - 1, true, Some("it is too short")),
        ("zstd", CLUSTER, true, None),
        ("zstd", CLUSTER, false, Some("")),
        ("zstd", CLUSTER + 1, true, Some("it is longer than a cluster")),
        ("zstd", 1 << 30, true, Some("it is longer than a cluster")),
        ("zstd", CLUSTER - 1, true, Some("")),
    ] {
        let options = format!("compression_type={kind}");
        create(&workshop, "bomb.qcow2", &options, &["write -c -P 1 0 64k"]);
        let path = workshop.path("bomb.qcow2");
        let mut image = fs::read(&path).unwrap();
        let at = |image: &[u8], at: usize| {
            u64::from_be_bytes(image[at..at + 8].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00
        };
        let table = at(&image, at(&image, 40) as usize) as usize;
        image.resize(image.len().next_multiple_of(512), 0);
        let packed = compressed(kind, bytes, is_whole);
        let sectors = (packed.len() as u64).div_ceil(512) - 1;
        assert!(sectors < 256, "{kind}, {bytes}: {} bytes", packed.len());
        let descriptor = 1_u64 << 62 | sectors << 54 | image.len() as u64;
        image[table..table + 8].copy_from_slice(&descriptor.to_be_bytes());
        image.extend(packed);
        fs::write(&path, &image).unwrap();
        let converted = ["convert", "-O", "raw", "bomb.qcow2", "converted"];
        let folder = path.parent().unwrap();
        let by_qemu = Command::new("qemu-img").args(converted).current_dir(folder).output();
        let by_qemu = by_qemu.unwrap().status.success();
        assert_eq!(by_qemu, error.is_none(), "qemu-img: {kind}, {bytes}, {is_whole}");
        match error {
            None => drop(workshop.assert_same_view("bomb.qcow2")),
            Some(text) => {
                let found = refused(&workshop, "bomb.qcow2").full_text();
                let is_said = found.contains("does not decode: ") && found.contains(text);
                assert!(is_said, "{kind}, {bytes}: {found}");
            }
        }
    }
}

/// Bytes that do not compress.
pub(super) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
    data
}

//! VMDK: every kind of extent, chains of parents, deltas of ESXi, streams.

use super::qcow2::noise;
use super::vmdk_made::{self as made, Grain, SECTOR, descriptor};
use super::*;
use diskvault::source::vmdk::content_id;
use diskvault::source::{InputKind, default_kind, open_disk};

/// No multiple of a grain, nor of a page.
const SIZE: usize = (40 << 20) + 7 * SECTOR;

/// Data, zeros that were written, a hole, and data that ends with the disk.
const WRITES: [&str; 5] = [
    "write -P 0x11 0 300k",
    "write -P 0x22 2000k 3M",
    "write -z 3M 192k",
    "write -P 0x33 35M 5k",
    "write -P 0x44 40960k 3584",
];

fn create(workshop: &Workshop, name: &str, options: &str, writes: &[&str]) {
    let size = SIZE.to_string();
    workshop.qemu_img(&["create", "-q", "-f", "vmdk", "-o", options, name, &size]);
    if !writes.is_empty() {
        workshop.write(name, writes);
    }
}

#[test]
fn every_kind_that_is_written_to_reads_as_qemu_converts_it() {
    let Some(workshop) = Workshop::new() else { return };
    for kind in ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"]
    {
        for more in ["", ",zeroed_grain=on", ",hwversion=17", ",adapter_type=lsilogic"] {
            if kind.ends_with("Flat") && more.contains("zeroed") {
                continue;
            }
            create(&workshop, "a.vmdk", &format!("subformat={kind}{more}"), &[]);
            let source = workshop.assert_same_bytes("a.vmdk");
            assert_eq!(data_of(source.as_ref()), workshop.allocation(&[allocated(kind)]));
            workshop.write("a.vmdk", &WRITES);
            let source = workshop.assert_same_bytes("a.vmdk");
            let data = workshop.allocation(&[allocated(kind)]);
            assert_eq!(data_of(source.as_ref()), data, "{kind}{more}");
            assert!(data.len() > 3, "{kind}{more}: {data:?}");
            assert_eq!((source.format(), source.size()), ("vmdk", SIZE as u64));
            assert!(source.allocation_known());
            assert_eq!(default_kind(&workshop.path("a.vmdk")).unwrap(), InputKind::Disk);
        }
    }
}

/// Grains stand in the file in the order in which they were written, not in that of the disk.
#[test]
fn grains_in_another_order_than_the_disk() {
    let Some(workshop) = Workshop::new() else { return };
    let writes = [(5, 0), (6, 3), (7, 1), (8, 2), (9, 5), (10, 4)];
    let writes = writes.map(|(byte, grain)| format!("write -P {byte} {}k 64k", grain * 64));
    create(&workshop, "a.vmdk", "subformat=monolithicSparse", &writes.each_ref().map(|it| &**it));
    workshop.assert_same_view("a.vmdk");
}

/// The file whose allocation is that of `a.vmdk`. QEMU calls all of a flat image data, although
/// its file has holes.
fn allocated(kind: &str) -> &'static str {
    match kind {
        "monolithicFlat" => "a-flat.vmdk",
        "twoGbMaxExtentFlat" => "a-f001.vmdk",
        _ => "a.vmdk",
    }
}

#[test]
fn compressed_grains_of_qemu() {
    let Some(workshop) = Workshop::new() else { return };
    for bytes in [9 << 20, (3 << 20) + 5 * SECTOR, 3 * SECTOR] {
        let mut disk = noise(1, bytes);
        disk[bytes / 3..bytes / 2].fill(7);
        disk[bytes / 2..bytes * 2 / 3].fill(0);
        fs::write(workshop.path("disk.raw"), &disk).unwrap();
        let options = ["-O", "vmdk", "-o", "subformat=streamOptimized", "disk.raw", "s.vmdk"];
        workshop.qemu_img(&[&["convert"][..], &options].concat());
        let source = workshop.assert_same_view("s.vmdk");
        assert_view(source.as_ref(), &disk, "the disk itself");
    }
}

/// The footer of an export says what its header leaves open.
#[test]
fn streams_with_a_footer() {
    let Some(workshop) = Workshop::new() else { return };
    // Tables of 32 MiB: one full, one empty, one that ends with the disk.
    let mut disk = noise(2, 3 << 20);
    disk.resize(70 << 20, 0);
    disk[20 << 20..21 << 20].fill(9);
    disk.extend(noise(3, 3 * SECTOR));
    let sectors = disk.len() / SECTOR;
    fs::write(workshop.path("e.vmdk"), made::stream("e.vmdk", &disk, sectors)).unwrap();
    let source = workshop.assert_same_view("e.vmdk");
    assert_view(source.as_ref(), &disk, "the disk itself");
    // Some tools round the capacity up, and the file may have been renamed.
    let rounded = sectors.next_multiple_of(128);
    fs::write(workshop.path("r.vmdk"), made::stream("old.vmdk", &disk, rounded)).unwrap();
    disk.resize(rounded * SECTOR, 0);
    let source = workshop.assert_same_view("r.vmdk");
    assert_view(source.as_ref(), &disk, "rounded up");
}

/// Grains without markers, and zeros that take no room.
#[test]
fn bare_grains_and_zeros() {
    let Some(workshop) = Workshop::new() else { return };
    let header = made::Header {
        version: 2,
        flags: 0x1_0005,
        capacity: 4 * 128,
        descriptor_sectors: 20,
        redundant_at: 0,
        directory_at: 21,
    };
    let grain = noise(4, made::STREAM_GRAIN);
    let mut image = header.bytes();
    let text = descriptor(1, None, &["RW 512 SPARSE \"b.vmdk\"".into()]);
    image.extend(text.replace("twoGbMaxExtentSparse", "monolithicSparse").bytes());
    image.resize(21 * SECTOR, 0);
    image.extend(22_u32.to_le_bytes());
    image.resize(22 * SECTOR, 0);
    for entry in [128_u32, 1, 0, 1] {
        image.extend(entry.to_le_bytes());
    }
    image.resize(128 * SECTOR, 0);
    image.extend(made::packed(&grain));
    fs::write(workshop.path("b.vmdk"), &image).unwrap();
    let mut disk = grain;
    disk.resize(4 * made::STREAM_GRAIN, 0);
    let source = workshop.open("b.vmdk").unwrap();
    assert_view(source.as_ref(), &disk, "bare");
    assert_eq!(data_of(source.as_ref()), std::slice::from_ref(&(0..65_536)));
}

#[test]
fn chains_show_what_lies_below() {
    let Some(workshop) = Workshop::new() else { return };
    for kind in ["monolithicSparse", "twoGbMaxExtentSparse"] {
        let zeros = ",zeroed_grain=on";
        create(&workshop, "one.vmdk", &format!("subformat={kind}"), &WRITES);
        let below = |name: &str, below: &str, writes: &[&str]| {
            let options = format!("subformat={kind}{zeros}");
            let files = ["-F", "vmdk", "-b", below, name];
            workshop
                .qemu_img(&[&["create", "-q", "-f", "vmdk", "-o", &options], &files[..]].concat());
            workshop.write(name, writes);
        };
        below(
            "two.vmdk",
            "one.vmdk",
            &["write -P 5 256k 1M", "write -z 2M 1M", "write -P 6 20M 9k"],
        );
        below("three.vmdk", "two.vmdk", &["write -P 7 2500k 64k", "write -z 35M 64k"]);
        for name in ["two.vmdk", "three.vmdk"] {
            workshop.assert_same_view(name);
        }
    }
    // qcow2 on top of it all.
    let options = ["-F", "vmdk", "-b", "three.vmdk", "four.qcow2"];
    workshop.qemu_img(&[&["create", "-q", "-f", "qcow2"], &options[..]].concat());
    workshop.write("four.qcow2", &["write -P 8 30M 64k"]);
    workshop.assert_same_view("four.qcow2");
    for base in ["one.vmdk", "two.vmdk", "three.vmdk"] {
        workshop.changed_over("four.qcow2", base);
    }
    let zeroed = 35 << 20..(35 << 20) + (64 << 10);
    assert!(workshop.changed_over("three.vmdk", "two.vmdk").contains(&zeroed));
}

/// The grains of a delta: most lie below, the others take turns, the last ends with the disk.
fn some_grains(count: usize, bytes: usize, zeros: bool) -> Vec<Grain> {
    let data = noise(5, 8 * bytes);
    let data = |number: usize| {
        let at = number % 8 * bytes;
        Grain::Data(data[at..at + bytes].to_vec())
    };
    (0..count)
        .map(|number| match number % 97 {
            _ if number + 1 == count => data(number),
            0..5 | 30 | 40 => data(number),
            50..60 if zeros => Grain::Zero(1 + number as u64 % 2),
            _ => Grain::Below,
        })
        .collect()
}

#[test]
fn deltas_of_esxi_on_a_flat_disk() {
    let Some(workshop) = Workshop::new() else { return };
    let flat = {
        let mut flat = noise(6, 10 << 20);
        flat.resize(SIZE, 0);
        flat
    };
    let sectors = SIZE / SECTOR;
    let file = fs::File::create(workshop.path("disk-flat.vmdk")).unwrap();
    file.set_len(SIZE as u64).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &flat[..10 << 20], 0).unwrap();
    let text = descriptor(0xb0, None, &[format!("RW {sectors} VMFS \"disk-flat.vmdk\"")]);
    fs::write(workshop.path("disk.vmdk"), text).unwrap();
    let source = workshop.assert_same_bytes("disk.vmdk");
    let data = data_of(source.as_ref());
    assert_eq!(data, std::slice::from_ref(&(0..10 << 20)), "holes of the flat file");

    let write = |name: &str, cid: u32, parent: (u32, &str), kind: &str, image: Vec<u8>| {
        let extent = format!("RW {sectors} {kind} \"{name}-delta.vmdk\"");
        fs::write(workshop.path(&format!("{name}-delta.vmdk")), image).unwrap();
        let text = descriptor(cid, Some(parent), &[extent]);
        fs::write(workshop.path(&format!("{name}.vmdk")), text).unwrap();
    };
    // A snapshot of VMFS 5 with grains of a sector, and one of VMFS 6 on top of it.
    let first = some_grains(sectors, SECTOR, false);
    let image = made::cowd(&first, 1, sectors);
    write("disk-000001", 0xb1, (0xb0, "disk.vmdk"), "VMFSSPARSE", image);
    let view = made::shown(&first, SECTOR, &flat);
    let source = workshop.assert_same_bytes("disk-000001.vmdk");
    assert_view(source.as_ref(), &view, "COWD");
    let mut allocated = vec![false; sectors];
    allocated[..10 << 11].fill(true);
    made::allocate(&first, 1, &mut allocated);
    assert_eq!(data_of(source.as_ref()), made::ranges(&allocated));

    let second = some_grains(sectors.div_ceil(8), 8 * SECTOR, true);
    let image = made::sesparse(&second, sectors);
    write("disk-000002", 0xb2, (0xb1, "disk-000001.vmdk"), "SESPARSE", image);
    let view = made::shown(&second, 8 * SECTOR, &view);
    let source = workshop.assert_same_bytes("disk-000002.vmdk");
    assert_view(source.as_ref(), &view, "seSparse");
    made::allocate(&second, 8, &mut allocated);
    assert_eq!(data_of(source.as_ref()), made::ranges(&allocated));
    let file = open_disk(&workshop.path("disk-000002.vmdk")).unwrap();
    assert_eq!(content_id(file.as_ref()).unwrap(), 0xb2);

    // All files of the chain are watched.
    source.check_unchanged_size().unwrap();
    let before = source.identity();
    assert_eq!(workshop.open("disk-000002.vmdk").unwrap().identity(), before);
    let flat = fs::File::options().append(true).open(workshop.path("disk-flat.vmdk")).unwrap();
    flat.set_len(SIZE as u64 + 512).unwrap();
    assert_ne!(workshop.open("disk-000002.vmdk").unwrap().identity(), before);
    let error = source.check_unchanged_size().unwrap_err();
    assert!(error.full_text().contains("disk-flat.vmdk: it grew"), "{error:?}");
}

/// A disk that was grown shows zeros behind the end of its parent.
#[test]
fn a_parent_that_is_shorter_goes_on_with_zeros() {
    let Some(workshop) = Workshop::new() else { return };
    let mut disk = noise(8, 8 * SECTOR);
    fs::write(workshop.path("base-flat"), &disk).unwrap();
    let base = descriptor(1, None, &["RW 8 FLAT \"base-flat\" 0".into()]);
    fs::write(workshop.path("base.vmdk"), base).unwrap();
    let mut grains = vec![Grain::Below; 24];
    grains[20] = Grain::Data(noise(9, SECTOR));
    fs::write(workshop.path("top-delta"), made::cowd(&grains, 1, 24)).unwrap();
    let line = "RW 24 VMFSSPARSE \"top-delta\"".to_string();
    let top = descriptor(2, Some((1, "base.vmdk")), &[line]);
    fs::write(workshop.path("top.vmdk"), top).unwrap();
    disk.resize(24 * SECTOR, 0);
    let disk = made::shown(&grains, SECTOR, &disk);
    let source = workshop.assert_same_bytes("top.vmdk");
    assert_view(source.as_ref(), &disk, "grown");
    assert_eq!(data_of(source.as_ref()), [0..8 * 512, 20 * 512..21 * 512]);
}

#[test]
fn extents_of_all_kinds_make_one_disk() {
    let Some(workshop) = Workshop::new() else { return };
    let flat = noise(7, 3 << 20);
    fs::write(workshop.path("f 1.vmdk"), &flat).unwrap();
    let flat = |from: usize, count: usize| flat[from * SECTOR..(from + count) * SECTOR].to_vec();
    // Beyond the part, QEMU reads the rest of a last grain that is not whole, where the next
    // extent is: what it makes of such a disk is no measure.
    for (bytes, is_whole) in [(40 << 20, true), (SIZE, false)] {
        let options = "subformat=twoGbMaxExtentSparse";
        let size = bytes.to_string();
        workshop.qemu_img(&["create", "-q", "-f", "vmdk", "-o", options, "part.vmdk", &size]);
        workshop.write("part.vmdk", &WRITES[..4]);
        workshop.qemu_img(&["convert", "-O", "raw", "part.vmdk", "part.raw"]);
        let part = fs::read(workshop.path("part.raw")).unwrap();
        let sparse = format!("RW {} SPARSE \"part-s001.vmdk\"", bytes / SECTOR);
        let mut lines = vec![
            "RW 2000 FLAT \"f 1.vmdk\" 96".to_string(),
            sparse.clone(),
            "RW 31 FLAT \"f 1.vmdk\" 1".to_string(),
        ];
        let mut disk = [flat(96, 2000), part.clone(), flat(1, 31)].concat();
        fs::write(workshop.path("m.vmdk"), descriptor(1, None, &lines)).unwrap();
        let source = if is_whole {
            workshop.assert_same_view("m.vmdk")
        } else {
            workshop.open("m.vmdk").unwrap()
        };
        assert_view(source.as_ref(), &disk, "without zeros");
        // QEMU leaves these out, and makes another disk of it.
        lines.extend([
            "RDONLY 77 ZERO".to_string(),
            sparse.to_ascii_lowercase().replace("rw", "rdonly"),
            "rw 9 Zero".to_string(),
        ]);
        let text = descriptor(1, None, &lines).replace('\n', "\r\n");
        fs::write(workshop.path("m.vmdk"), text).unwrap();
        disk.resize(disk.len() + 77 * SECTOR, 0);
        disk.extend(&part);
        disk.resize(disk.len() + 9 * SECTOR, 0);
        assert_view(workshop.open("m.vmdk").unwrap().as_ref(), &disk, "with zeros");
    }
}

/// Too large to compare in full: what QEMU says is data, and what was written there.
#[test]
fn disks_of_several_files_and_terabytes() {
    let Some(workshop) = Workshop::new() else { return };
    for (kind, size) in [
        ("twoGbMaxExtentSparse", "5G"),
        ("twoGbMaxExtentFlat", "5G"),
        ("monolithicSparse", "1900G"),
    ] {
        let options = format!("subformat={kind}");
        workshop.qemu_img(&["create", "-q", "-f", "vmdk", "-o", &options, "l.vmdk", size]);
        let writes = ["write -P 1 2046M 2M", "write -P 2 4094M 64k", "write -P 3 5119M 1M"];
        workshop.write("l.vmdk", &writes);
        let source = workshop.open("l.vmdk").unwrap();
        let files: &[&str] = match kind {
            "twoGbMaxExtentFlat" => &["l-f001.vmdk", "l-f002.vmdk", "l-f003.vmdk"],
            _ => &["l.vmdk"],
        };
        assert_eq!(data_of(source.as_ref()), workshop.allocation(files), "{kind}");
        let mut found = vec![0; 4 << 20];
        source.read_at(2045 << 20, &mut found).unwrap();
        for (number, part) in found.chunks(1 << 20).enumerate() {
            let expected = u8::from((1..3).contains(&number));
            assert!(part.iter().all(|byte| *byte == expected), "{kind}: MiB {number}");
        }
        let mut found = vec![0; 3 << 19];
        source.read_at(5119 << 20, &mut found[..1 << 20]).unwrap();
        assert!(found[..1 << 20].iter().all(|byte| *byte == 3), "{kind}");
    }
}

/// The directory has a copy, which counts only where the first cannot be read.
#[test]
fn the_copy_of_a_directory_stands_in() {
    let Some(workshop) = Workshop::new() else { return };
    create(&workshop, "good.vmdk", "subformat=monolithicSparse", &WRITES);
    let view = |image: &[u8]| {
        fs::write(workshop.path("c.vmdk"), image).unwrap();
        let heard = Heard::default();
        let source = open_image(&workshop.path("c.vmdk"), &ImageOptions::default(), &heard);
        (source, heard.0.into_inner().unwrap())
    };
    workshop.qemu_img(&["convert", "-O", "raw", "good.vmdk", "raw"]);
    let disk = fs::read(workshop.path("raw")).unwrap();
    let good = fs::read(workshop.path("good.vmdk")).unwrap();
    let (source, warnings) = view(&good);
    assert_view(source.unwrap().as_ref(), &disk, "whole");
    assert_eq!(warnings, [""; 0]);
    for (place, text) in [(1_u64 << 40, "lies beyond the end"), (0, "lies in its header")] {
        let mut image = good.clone();
        image[56..64].copy_from_slice(&place.to_le_bytes());
        let (source, warnings) = view(&image);
        assert_view(source.unwrap().as_ref(), &disk, "by the copy");
        assert!(warnings[0].ends_with("its grain directory cannot be read; its copy is used"));
        // Without the flag there is no copy.
        image[8] &= !2;
        let error = view(&image).0.err().unwrap();
        assert!(error.full_text().contains(&format!("the grain directory {text}")), "{error:?}");
    }
}

/// A guest can write what it likes into its raw disk.
#[test]
fn a_format_is_not_guessed_from_what_a_guest_may_have_written() {
    let Some(workshop) = Workshop::new() else { return };
    create(&workshop, "x.vmdk", "subformat=monolithicSparse", &WRITES);
    let sparse = fs::read(workshop.path("x.vmdk")).unwrap();
    let grains = [Grain::Below];
    for image in [
        sparse,
        descriptor(1, None, &["RW 8 ZERO".into()]).into_bytes(),
        made::cowd(&grains, 1, 1),
        made::sesparse(&grains, 8),
    ] {
        fs::write(workshop.path("guest.raw"), &image).unwrap();
        let source = workshop.open("guest.raw").unwrap();
        assert_eq!((source.format(), source.size()), ("raw", image.len() as u64));
        fs::write(workshop.path("guest.img"), &image).unwrap();
        let error = workshop.open("guest.img").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.full_text().contains("it looks like a vmdk image"), "{error:?}");
        assert_eq!(error.hint_text(), Some("use --format vmdk, or --format raw"));
        assert_eq!(default_kind(&workshop.path("guest.img")).unwrap(), InputKind::Disk);
    }
    fs::copy(workshop.path("x.vmdk"), workshop.path("guest.img")).unwrap();
    let format = ImageFormat::parse("vmdk");
    let options = ImageOptions { format, ..ImageOptions::default() };
    assert_eq!(workshop.open_with("guest.img", &options).unwrap().size(), SIZE as u64);
    let snapshot = Some("1".to_string());
    let options = ImageOptions { format, snapshot, ..ImageOptions::default() };
    let error = workshop.open_with("guest.img", &options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.full_text().ends_with("guest.img: it is vmdk"), "{error:?}");
}

/// What cannot be decrypted is kept as it is, if one file is all of it.
#[test]
fn encrypted_images() {
    let Some(workshop) = Workshop::new() else { return };
    create(&workshop, "good.vmdk", "subformat=monolithicSparse", &WRITES);
    let good = fs::read(workshop.path("good.vmdk")).unwrap();
    let open = |path: &str| {
        let heard = Heard::default();
        let source = open_image(&workshop.path(path), &ImageOptions::default(), &heard);
        (source, heard.0.into_inner().unwrap())
    };
    for line in ["encryption.keySafe = \"vmware:key/list/()\"\n", "encryptionKeys=\"k\"\n"] {
        let mut image = good.clone();
        let text = format!("# Disk DescriptorFile\nversion=2\n{line}\0");
        image[SECTOR..SECTOR + text.len()].copy_from_slice(text.as_bytes());
        fs::write(workshop.path("e.vmdk"), &image).unwrap();
        let (source, warnings) = open("e.vmdk");
        assert_eq!(source.unwrap().size(), image.len() as u64);
        assert!(warnings[0].ends_with("is encrypted; the image is stored as it is"));
        let file = open_disk(&workshop.path("e.vmdk")).unwrap();
        let error = content_id(file.as_ref()).unwrap_err();
        assert!(error.full_text().ends_with("it is encrypted"), "{error:?}");

        // A descriptor alone, a delta, and a parent are not all of an image.
        let delta = descriptor(2, Some((1, "e.vmdk")), &["RW 8 ZERO".into()]);
        let alone = descriptor(2, None, &["RW 8 ZERO".into()]) + line;
        let encrypted = format!("{delta}{line}");
        let mut embedded = good.clone();
        embedded[SECTOR..21 * SECTOR].fill(0);
        embedded[SECTOR..SECTOR + encrypted.len()].copy_from_slice(encrypted.as_bytes());
        for image in [alone.as_bytes(), encrypted.as_bytes(), &embedded, delta.as_bytes()] {
            fs::write(workshop.path("d.vmdk"), image).unwrap();
            let (source, warnings) = open("d.vmdk");
            let error = source.err().unwrap();
            assert_eq!((error.kind(), warnings.len()), (ErrorKind::Source, 0));
            assert!(error.full_text().ends_with("it is encrypted"), "{error:?}");
        }
    }
}

//! VMDK images that are damaged or hostile: each is refused with what is wrong with it, in bounded
//! time and memory.

use super::qcow2::noise;
use super::vmdk_made::{self as made, Grain, SE_DIRECTORY, SE_TABLES, SE_VOLATILE, SECTOR};
use super::*;

const FAR: [u8; 8] = (1_u64 << 40).to_le_bytes();

/// A sparse image of 1 MiB that is full.
fn good_sparse(workshop: &Workshop, kind: &str) -> Vec<u8> {
    fs::write(workshop.path("disk.raw"), noise(1, 1 << 20)).unwrap();
    let options = format!("subformat={kind}");
    let files = ["disk.raw", "good.vmdk"];
    workshop.qemu_img(&[&["convert", "-O", "vmdk", "-o", &options], &files[..]].concat());
    fs::read(workshop.path("good.vmdk")).unwrap()
}

fn number_at(image: &[u8], at: usize, bytes: usize) -> usize {
    image[at..at + bytes].iter().rev().fold(0, |all, byte| all << 8 | usize::from(*byte))
}

/// The text of the error for an image with other bytes at some places.
fn spoilt(workshop: &Workshop, name: &str, good: &[u8], changes: &[(usize, &[u8])]) -> String {
    let mut image = good.to_vec();
    for (at, bytes) in changes {
        image[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    fs::write(workshop.path(name), image).unwrap();
    let error = refused(workshop, "bad.vmdk");
    assert_eq!(error.kind(), ErrorKind::Source, "{error:?}");
    error.full_text()
}

#[test]
fn headers_and_tables_of_sparse_extents() {
    let Some(workshop) = Workshop::new() else { return };
    let good = good_sparse(&workshop, "monolithicSparse");
    let directory = number_at(&good, 56, 8) * SECTOR;
    let table = number_at(&good, directory, 4) * SECTOR;
    let number = |number: u64| number.to_le_bytes();
    for (at, bytes, text) in [
        (0, &b"KDMW"[..], "it has no vmdk header and no descriptor"),
        (4, &[4], "version 4 is not known"),
        (4, &[0], "version 0 is not known"),
        (75, b"\n", "its line ends were changed by a transfer as text"),
        (8, &[0, 0, 1], "compression 0 with flags 0x10000 is not known"),
        (8, &[0, 0, 2], "compression 0 with flags 0x20000 is not known"),
        (77, &[1], "compression 1 with flags"),
        (12, &number(1 << 63), "a capacity of 9223372036854775808 sectors"),
        (12, &number(1 << 54), "a capacity of 18014398509481984 sectors"),
        (12, &number(1 << 53), "it holds 9007199254740992 sectors, and the descriptor says 2048"),
        (12, &number(2047), "it holds 2047 sectors, and the descriptor says 2048"),
        (12, &number(2049), "it holds 2049 sectors, and the descriptor says 2048"),
        (20, &number(0), "grains of 0 sectors"),
        (20, &number(96), "grains of 96 sectors"),
        (20, &number(1 << 16), "grains of 65536 sectors"),
        (20, &number(1 << 63), "grains of 9223372036854775808 sectors"),
        (28, &FAR, "the descriptor lies beyond the end"),
        (28, &number(1 << 63), "the descriptor lies beyond the end"),
        (28, &number(128), "it has no descriptor"),
        (36, &number(0), "it is an extent of an image and has no descriptor"),
        (36, &number(2049), "its descriptor has 1049088 bytes"),
        (28, &number(2170), "the descriptor lies beyond the end"),
        (44, &[0, 0], "grain tables of 0 entries"),
        (44, &[1, 2], "grain tables of 513 entries"),
        (56, &number(1 << 60), "its grain directory at sector 1152921504606846976 lies beyond"),
        (56, &number(u64::MAX), "it does not end with a footer"),
        (directory, &[1, 0, 0, 0], "a grain table at sector 1 lies in its header"),
        (directory, &number(0xffff_ffff)[..4], "the grain table at 2199023255040 lies beyond"),
        (table, &[1, 0, 0, 0], "a grain at sector 1 lies in its header"),
        (table, &number(0x7fff_ffff)[..4], "a grain at 1099511627264 lies beyond the end"),
    ] {
        let found = spoilt(&workshop, "bad.vmdk", &good, &[(at, bytes)]);
        assert!(found.contains(text), "at {at}: {found}");
    }
    // An honest file that was cut off.
    for bytes in [0, 3, 4, 20, 511, 600, 4096, 20_000, good.len() - 1] {
        fs::write(workshop.path("short.vmdk"), &good[..bytes]).unwrap();
        assert_eq!(refused(&workshop, "short.vmdk").kind(), ErrorKind::Source, "{bytes} bytes");
    }
}

/// A directory that fits its file is still not read if it is larger than that of any disk.
#[test]
fn directories_have_a_budget() {
    let Some(workshop) = Workshop::new() else { return };
    // 2^51 bytes in grains of one sector: a directory of 16 GiB in a file that has room for it.
    let sectors = 1_u64 << 42;
    let mut image = made::cowd(&[Grain::Below], 1, 1);
    image[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    image[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
    let extent = |name: &str, sectors: u64| format!("RW {sectors} VMFSSPARSE \"{name}\"");
    let cowd = u64::from(u32::MAX);
    fs::write(workshop.path("big-delta"), &image).unwrap();
    fs::File::options()
        .write(true)
        .open(workshop.path("big-delta"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    // 4 MiB each: the ninth is too much.
    for (count, is_good) in [(8, true), (9, false)] {
        let lines = vec![extent("big-delta", cowd); count];
        fs::write(workshop.path("b.vmdk"), made::descriptor(1, None, &lines)).unwrap();
        match workshop.open("b.vmdk") {
            Ok(source) => assert!(is_good, "{} bytes", source.size()),
            Err(error) => {
                assert!(!is_good, "{error:?}");
                assert!(error.full_text().contains("its grain directory of 4194304 bytes is too"));
            }
        }
    }
    let mut image = made::sesparse(&[Grain::Below], 8);
    image[16..24].copy_from_slice(&sectors.to_le_bytes());
    image[136..144].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    fs::write(workshop.path("big-sesparse"), &image).unwrap();
    fs::File::options()
        .write(true)
        .open(workshop.path("big-sesparse"))
        .unwrap()
        .set_len(1 << 42)
        .unwrap();
    let line = format!("RW {sectors} SESPARSE \"big-sesparse\"");
    fs::write(workshop.path("b.vmdk"), made::descriptor(1, None, &[line])).unwrap();
    let error = workshop.open("b.vmdk").err().unwrap();
    assert!(error.full_text().contains("its grain directory of 1073741824 bytes is too"));
}

#[test]
fn compressed_grains_that_lie() {
    let Some(workshop) = Workshop::new() else { return };
    let good = made::stream("bad.vmdk", &noise(2, 1 << 20), 2048);
    fs::write(workshop.path("bad.vmdk"), &good).unwrap();
    workshop.open("bad.vmdk").unwrap();
    // The first grain has its marker at sector 128, and a marker that is followed by one.
    let grain = 128 * SECTOR;
    let bytes = number_at(&good, grain + 8, 4);
    let packed = |plain: usize| {
        let packed = made::packed(&vec![7; plain]);
        [&(packed.len() as u32).to_le_bytes()[..], &packed].concat()
    };
    let footer = good.len() - 2 * SECTOR;
    let short = 65_535;
    for (at, changed, text) in [
        (grain, &[1][..], "at 65536 is for sector 1, expected 0"),
        (grain + 8, &[0; 4], "has 0 bytes"),
        (grain + 8, &[1, 0, 2, 0], "has 131073 bytes"),
        (grain + 8, &[0xff; 4], "has 4294967295 bytes"),
        (grain + 8, &(bytes as u32 - 9).to_le_bytes(), "does not decode: it has no end"),
        (grain + 12, &[0, 0], "at 65536 does not decode"),
        (grain + 500, &[good[grain + 500] ^ 1], "at 65536 does not decode"),
        (grain + 8, &packed(1 << 24), "does not decode: it is longer than a grain"),
        (grain + 8, &packed((1 << 16) + 1), "does not decode: it is longer than a grain"),
        (grain + 8, &packed(short), "does not decode: it has 65535 bytes, expected 65536"),
        (footer, b"KDMX", "it does not end with a footer"),
        (footer + 4, &[9], "version 9 is not known"),
        (footer + 56, &[0xff; 8], "its footer does not say where the grain directory is"),
        (footer + 56, &FAR, "the grain directory lies beyond the end"),
        (footer - SECTOR + 12, &[2], "it does not end with a footer"),
        (footer + SECTOR + 12, &[3], "it does not end with a footer"),
        (footer + SECTOR, &[1], "it does not end with a footer"),
    ] {
        let found = spoilt(&workshop, "bad.vmdk", &good, &[(at, changed)]);
        assert!(found.contains(text), "at {at}: {found}");
    }
    // A download that was cut off, and tables that lead behind the end.
    for bytes in [66_000, good.len() / 2, good.len() - SECTOR, good.len() - 1] {
        fs::write(workshop.path("short.vmdk"), &good[..bytes]).unwrap();
        let text = refused(&workshop, "short.vmdk").full_text();
        assert!(text.contains("it may have been cut off"), "{bytes} bytes: {text}");
    }
    let directory = number_at(&good, footer + 56, 8) * SECTOR;
    let table = number_at(&good, directory, 4) * SECTOR;
    let behind = ((good.len() / SECTOR) as u32).to_le_bytes();
    let found = spoilt(&workshop, "bad.vmdk", &good, &[(table, &behind)]);
    assert!(found.contains("a compressed grain lies beyond the end"), "{found}");
}

#[test]
fn headers_and_tables_of_deltas() {
    let Some(workshop) = Workshop::new() else { return };
    let number = |number: u64| number.to_le_bytes();
    let grains = vec![Grain::Data(noise(3, 4096)); 16];
    let write = |kind: &str| {
        let line = format!("RW 128 {kind} \"delta\"");
        fs::write(workshop.path("bad.vmdk"), made::descriptor(1, None, &[line])).unwrap();
    };
    let good = made::cowd(&grains, 8, 128);
    let table = 5 * SECTOR;
    write("VMFSSPARSE");
    for (at, bytes, text) in [
        (0, &b"COWE"[..], "delta: it has no header of a sparse extent"),
        (4, &[2], "version 2 is not known"),
        (12, &[0; 4], "a capacity of 0 sectors"),
        (12, &[129], "it holds 129 sectors, and the descriptor says 128"),
        (16, &[0], "grains of 0 sectors"),
        (16, &[3], "grains of 3 sectors"),
        (20, &[0xff; 4], "the grain directory lies beyond the end"),
        (24, &[0], "its grain directory has 0 entries, expected 1"),
        (4 * SECTOR, &[3, 0, 0, 0], "a grain table at sector 3 lies in its header"),
        (4 * SECTOR, &[0xff; 4], "the grain table at 2199023255040 lies beyond the end"),
        (table, &[1, 0, 0, 0], "a grain at sector 1 lies in its header"),
        (table, &[0xff; 4], "a grain at 2199023255040 lies beyond the end"),
    ] {
        let found = spoilt(&workshop, "delta", &good, &[(at, bytes)]);
        assert!(found.contains(text), "COWD at {at}: {found}");
    }
    let good = made::sesparse(&grains, 128);
    write("SESPARSE");
    let (directory, table) = (SE_DIRECTORY * SECTOR, SE_TABLES * SECTOR);
    for (at, bytes, text) in [
        (0, &number(0xcafe_baba)[..], "delta: it has no header of a sparse extent"),
        (8, &number(0x2_0000_0002), "version 0x200000002 is not known"),
        (16, &number(1 << 63), "a capacity of 9223372036854775808 sectors"),
        (24, &number(0), "grains of 0 sectors in tables of 64 are not known"),
        (32, &number(65), "grains of 8 sectors in tables of 65 are not known"),
        (40, &number(5), "flags 0x5 or reserved fields are not known"),
        (72, &number(1), "flags 0x0 or reserved fields are not known"),
        (208, &number(1), "flags 0x0 or reserved fields are not known"),
        (80, &number(1 << 63), "the volatile header lies beyond the end"),
        (80, &FAR, "the volatile header lies beyond the end"),
        (SE_VOLATILE * SECTOR, &number(7), "a volatile header that begins with 0x7"),
        (SE_VOLATILE * SECTOR + 24, &number(1), "its journal waits to be replayed"),
        (128, &FAR, "the grain directory lies beyond the end"),
        (136, &number(0), "its grain directory has 0 sectors for 1 entries"),
        (144, &number(1 << 63), "the grain tables lies beyond the end"),
        (144, &number(1 << 54), "the grain table at 9223372036854775808 lies beyond the end"),
        (144, &number((1 << 55) - 1), "the grain table at 18446744073709551104 lies beyond"),
        (192, &number(1 << 63), "the grains lies beyond the end"),
        (192, &number((1 << 55) - 1), "beyond"),
        (directory, &number(1), "an entry 0x1 of its grain directory is not known"),
        (directory, &number(3 << 60), "an entry 0x3000000000000000 of its grain directory"),
        (directory, &number(1 << 60 | 9), "the grain table at 327680 lies beyond the end"),
        (table, &number(1), "an entry 0x1 of a grain table is not known"),
        (table, &number(4 << 60), "an entry 0x4000000000000000 of a grain table is not known"),
        (table, &number(3 << 60 | 1), "a grain at 16842752 lies beyond the end"),
        (table, &number(3 << 60 | 0xffff_ffff_ffff), "beyond any file"),
    ] {
        let found = spoilt(&workshop, "delta", &good, &[(at, bytes)]);
        assert!(found.contains(text), "seSparse at {at}: {found}");
    }
    // Alone they would be half of a disk.
    for image in [made::cowd(&grains, 8, 128), good] {
        let found = spoilt(&workshop, "bad.vmdk", &image, &[]);
        assert!(found.contains("it is an extent of an image and has no descriptor"), "{found}");
    }
}

#[test]
fn descriptors_that_make_no_disk() {
    let Some(workshop) = Workshop::new() else { return };
    fs::write(workshop.path("flat"), noise(4, 64 * SECTOR)).unwrap();
    let many = "RW 1 ZERO\n".repeat(4097);
    let long = format!("#{}\n", " ".repeat(1 << 20));
    for (lines, text) in [
        ("", "its descriptor names no extent"),
        (&many, "it has more than 4096 extents"),
        (&long, "its descriptor has 1048"),
        ("hello\n", "line 5 of its descriptor: it is neither a setting nor an extent"),
        ("NOACCESS 1 ZERO\n", "line 5 of its descriptor: an extent that must not be read"),
        ("RW 0 ZERO\n", "an extent of 0 sectors"),
        ("RW -1 ZERO\n", "an extent of -1 sectors"),
        ("RW 9223372036854775808 ZERO\n", "an extent of 9223372036854775808 sectors"),
        ("RW 36028797018963968 ZERO\n", "an extent of 36028797018963968 sectors"),
        ("RW 18014398509481983 ZERO\nRW 1 ZERO\n", "its 2 extents are larger than any disk"),
        ("RW 1\n", "extents of type  are not known"),
        ("RW 1 VMFSRDM \"flat\"\n", "extents of type VMFSRDM are not known"),
        ("RW 1 FLAT\n", "an extent without a file name in quotes"),
        ("RW 1 FLAT \"flat\n", "an extent without a file name in quotes"),
        ("RW 1 FLAT \"\" 0\n", "\"\" is no file name"),
        ("RW 1 FLAT \"flat\" 0 uuid\n", "an extent at sector 0 uuid"),
        ("RW 1 FLAT \"flat\" 18446744073709551615\n", "an extent at sector 184467440737"),
        ("RW 1 SPARSE \"flat\" 1\n", "a sparse extent behind 512 bytes of its file"),
        (
            "RW 65 FLAT \"flat\" 0\n",
            "flat: it has 32768 bytes, and the descriptor says 33280 from 0",
        ),
        ("RW 1 FLAT \"flat\" 64\n", "flat: it has 32768 bytes, and the descriptor says 512 from"),
        ("RW 1 FLAT \"flat\" 36028797018963967\n", "says 512 from 18446744073709551104 on"),
        ("RW 64 SPARSE \"flat\"\n", "flat: it has no header of a sparse extent"),
        ("RW 1 FLAT \"bad.vmdk\" 0\n", "its extent bad.vmdk is an image itself"),
        ("RW 1 FLAT \"./bad.vmdk\" 0\n", "is an image itself"),
        ("RW 1 FLAT \"gone\" 0\n", "its file gone cannot be found"),
        ("RW 1 FLAT \"/etc/passwd\" 0\n", "is outside of the image's folder"),
        ("RW 1 FLAT \"vsan://x\" 0\n", "is no plain file"),
        ("CID=2\nRW 1 ZERO\n", "line 5 of its descriptor: a second cid"),
        ("parentCID=2\nRW 1 ZERO\n", "a second parentcid"),
        ("ddb.x=1\ncid=1234567890\n", "line 6 of its descriptor: 1234567890 is no content id"),
        ("parentFileNameHint=\"\"\n", "line 5 of its descriptor: \"\" is no file name"),
    ] {
        let text_of =
            format!("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n{lines}");
        let found = spoilt(&workshop, "bad.vmdk", text_of.as_bytes(), &[]);
        assert!(found.contains(text), "{lines:.60}: {found}");
    }
    let found = spoilt(&workshop, "bad.vmdk", b"# Disk DescriptorFile\nRW 1 ZERO\n", &[]);
    assert!(found.contains("it has no CID"), "{found}");
    // Bytes that are no text do no harm in a comment, and no file is looked for by such a name.
    let text = b"# Disk DescriptorFile\n# \xff\nddb.c = \"\xff\"\nCID=1\nRW 1 FLAT \"\xff\" 0\n";
    let found = spoilt(&workshop, "bad.vmdk", text, &[]);
    assert!(found.contains("line 5 of its descriptor: \"\u{fffd}\" is no file name"), "{found}");
    // A raw disk by the wrong name, which is how the flat file of ESXi is called.
    fs::write(workshop.path("disk-flat.vmdk"), noise(5, 4096)).unwrap();
    let error = refused(&workshop, "disk-flat.vmdk");
    assert_eq!(error.hint_text(), Some("use --format raw if it is the -flat file of an image"));
}

#[test]
fn descriptors_in_sparse_extents_that_say_something_else() {
    let Some(workshop) = Workshop::new() else { return };
    let good = good_sparse(&workshop, "monolithicSparse");
    let extent = "RW 2048 SPARSE \"good.vmdk\"";
    let at = good.windows(extent.len()).position(|part| part == extent.as_bytes()).unwrap();
    for (lines, text) in [
        ("RW 2048 FLAT   \"good.vmdk\"", "its descriptor names 1 extents, expected the sparse one"),
        ("RW 1 ZERO\nRW 2047 ZERO   ", "its descriptor names 2 extents, expected the sparse one"),
        ("RW 4048 SPARSE \"good.vmdk\"", "it holds 2048 sectors, and the descriptor says 4048"),
        ("RW 1024 SPARSE \"good.vmdk\"", "it holds 2048 sectors, and the descriptor says 1024"),
    ] {
        let found = spoilt(&workshop, "bad.vmdk", &good, &[(at, lines.as_bytes())]);
        assert!(found.contains(text), "{lines}: {found}");
    }
    // A header that holds nothing but a descriptor is one.
    let lines = b"RW 5 ZERO\n                ";
    let mut image = good;
    image[at..at + lines.len()].copy_from_slice(lines);
    image[12..20].fill(0);
    fs::write(workshop.path("ok.vmdk"), image).unwrap();
    assert_view(workshop.open("ok.vmdk").unwrap().as_ref(), &[0; 5 * SECTOR], "no capacity");
}

#[test]
fn parents_that_are_not_what_they_were() {
    let Some(workshop) = Workshop::new() else { return };
    let zero = ["RW 8 ZERO".to_string()];
    let write = |name: &str, cid: u32, parent: Option<(u32, &str)>| {
        fs::write(workshop.path(name), made::descriptor(cid, parent, &zero)).unwrap();
    };
    write("base.vmdk", 0xdead_beef, None);
    for (parent, text) in [
        (Some((0x1234_abcd, "base.vmdk")), "base.vmdk has CID deadbeef, expected 1234abcd"),
        (Some((u32::MAX, "base.vmdk")), "names its parent base.vmdk, but not the parent's CID"),
        (Some((1, "gone.vmdk")), "its file gone.vmdk cannot be found"),
        (Some((1, "bad.vmdk")), "its backing files lead back to it"),
        (Some((1, "/etc/passwd")), "is outside of the image's folder"),
        (Some((1, "C:\\vm\\base.vmdk")), "is no plain file"),
        (Some((1, "raw")), "raw: it has no vmdk header and no descriptor"),
    ] {
        fs::write(workshop.path("raw"), [0; 4096]).unwrap();
        write("bad.vmdk", 2, parent);
        let error = refused(&workshop, "bad.vmdk");
        assert_eq!(error.kind(), ErrorKind::Source);
        assert!(error.full_text().contains(text), "{error:?}");
    }
    let found = refused(&workshop, "bad.vmdk");
    assert_eq!(found.kind(), ErrorKind::Source);
    let text = made::descriptor(1, Some((3, "base.vmdk")), &zero);
    let text = text.replace("parentFileNameHint", "hint");
    let found = spoilt(&workshop, "bad.vmdk", text.as_bytes(), &[]);
    assert!(found.contains("it does not name its parent, which has CID 00000003"), "{found}");
    // A chain that is right, and one that is too long.
    write("bad.vmdk", 2, Some((0xdead_beef, "base.vmdk")));
    assert_eq!(workshop.open("bad.vmdk").unwrap().size(), 4096);
    write("0.vmdk", 0, None);
    for number in 1..=64 {
        let (name, below) = (format!("{number}.vmdk"), format!("{}.vmdk", number - 1));
        write(&name, number, Some((number - 1, &below)));
    }
    workshop.open("63.vmdk").unwrap();
    let error = refused(&workshop, "64.vmdk");
    assert!(error.full_text().contains("more than 64 images in a chain"), "{error:?}");
}

/// Neither an extent nor a parent outside of the folder is opened, unless the user says so.
#[test]
fn files_outside_of_the_folder_are_not_opened_on_an_images_word() {
    let Some(workshop) = Workshop::new() else { return };
    let outside = Workshop::new().unwrap();
    let secret = outside.path("secret");
    let text = made::descriptor(1, None, &["RW 8 ZERO".into()]);
    fs::write(&secret, format!("{text:4096}")).unwrap();
    let secret = secret.to_str().unwrap();
    std::os::unix::fs::symlink(secret, workshop.path("link")).unwrap();
    let up = format!("../{}", secret.trim_start_matches('/').split_once('/').unwrap().1);
    for name in [secret, &up, "link"] {
        let flat = made::descriptor(2, None, &[format!("RW 8 FLAT \"{name}\" 0")]);
        let delta = made::descriptor(2, Some((1, name)), &["RW 8 ZERO".into()]);
        for text in [flat, delta] {
            fs::write(workshop.path("o.vmdk"), text).unwrap();
            let error = workshop.open("o.vmdk").err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Source);
            assert!(error.full_text().contains("outside of the image's folder"), "{error:?}");
            assert!(error.hint_text().unwrap().contains("--allow-backing"));
            let options = ImageOptions { allows_backing: true, ..ImageOptions::default() };
            assert_eq!(workshop.open_with("o.vmdk", &options).unwrap().size(), 4096);
        }
    }
}

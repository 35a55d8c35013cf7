//! VHD: fixed, dynamic, differencing; footers, sizes, parents.

use super::vhd_made::{Locator, Made, footer, set_checksum, set_u32, set_u64, utf16};
use super::*;

const WRITES: [&str; 4] = [
    "write -P 0x11 0 300k",
    "write -P 0x22 5000k 3M",
    "write -P 0x33 17M 5k",
    "write -P 0x44 24000k 512",
];

/// The view is what qemu-img makes of the image, and so is what it says of allocation.
fn assert_same_view(workshop: &Workshop, name: &str) -> Box<dyn DiskSource> {
    workshop.qemu_img(&["convert", "-f", "vpc", "-O", "raw", name, "converted"]);
    let expected = fs::read(workshop.path("converted")).unwrap();
    let source = workshop.open(name).unwrap();
    assert_view(source.as_ref(), &expected, name);
    // Of a fixed image QEMU calls all data; what is a hole there is for the file to say.
    let is_fixed = !fs::read(workshop.path(name)).unwrap().starts_with(b"conectix");
    let format = if is_fixed { "raw" } else { "vpc" };
    let map = data_of_map(&workshop.qemu_img(&["map", "-f", format, "--output=json", name]));
    let cut = |range: Range<u64>| range.start..range.end.min(source.size());
    let map: Vec<_> = map.into_iter().map(cut).filter(|range| !range.is_empty()).collect();
    assert_eq!(data_of(source.as_ref()), map, "{name}: allocation");
    assert_eq!(source.format(), "vhd");
    source
}

fn create(workshop: &Workshop, name: &str, options: &str, size: &str) {
    workshop.qemu_img(&["create", "-q", "-f", "vpc", "-o", options, name, size]);
    let mut arguments = vec!["-f", "vpc"];
    WRITES.iter().for_each(|write| arguments.extend(["-c", write]));
    workshop.run("qemu-io", &[&arguments[..], &[name]].concat());
}

fn virtual_size(workshop: &Workshop, name: &str) -> u64 {
    let info = workshop.qemu_img(&["info", "-f", "vpc", "--output=json", name]);
    let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
    info["virtual-size"].as_u64().unwrap()
}

#[test]
fn every_layout_reads_as_qemu_converts_it() {
    let Some(workshop) = Workshop::new() else { return };
    for subformat in ["fixed", "dynamic"] {
        for force in ["on", "off"] {
            // The second one is no multiple of a block, nor of what a geometry can say.
            for size in ["24M", "25500160"] {
                let options = format!("subformat={subformat},force_size={force}");
                create(&workshop, "a.vhd", &options, size);
                let source = assert_same_view(&workshop, "a.vhd");
                if force == "on" {
                    assert_eq!(source.size(), if size == "24M" { 24 << 20 } else { 25_500_160 });
                }
                assert!(data_of(source.as_ref()).len() >= 3, "{options}");
            }
        }
    }
}

#[test]
fn blocks_of_every_size() {
    let Some(workshop) = Workshop::new() else { return };
    let size = 5_000_192;
    for block in [512, 4096, 64 << 10, 512 << 10, 16 << 20] {
        // Whole blocks, so that QEMU, which does not look at bitmaps, sees the same.
        let sectors = (block / 512).min(size / 512);
        let writes = vec![(0..sectors, 1), (sectors * 3..sectors * 4, 2)];
        let writes = writes.into_iter().filter(|(range, _)| range.end * 512 <= size);
        let made = Made::new(size, block, 1, writes.collect());
        fs::write(workshop.path("b.vhd"), made.file()).unwrap();
        let source = workshop.open("b.vhd").unwrap();
        assert_view(source.as_ref(), &made.view(&[]), "as it was made");
        // QEMU takes it that a smaller block has no bitmap.
        if block >= 4096 {
            assert_same_view(&workshop, "b.vhd");
        }
    }
}

/// Sectors that were never written are no data, whatever the block has there.
#[test]
fn sectors_of_a_block_that_were_not_written_are_holes() {
    let workshop = Workshop(tempfile::tempdir().unwrap());
    let writes = vec![(1..2, 1), (3..11, 2), (4090..4100, 3), (9999..10_000, 4)];
    let made = Made::new(10_000 * 512, 2 << 20, 1, writes);
    fs::write(workshop.path("b.vhd"), made.file()).unwrap();
    let source = workshop.open("b.vhd").unwrap();
    assert_view(source.as_ref(), &made.view(&[]), "gaps");
    let sectors = |range: Range<u64>| range.start * 512..range.end * 512;
    let expected = [1..2, 3..11, 4090..4100, 9999..10_000].map(sectors);
    assert_eq!(data_of(source.as_ref()), expected);
}

/// Which size counts is a matter of the program that made the image.
#[test]
fn the_size_is_that_which_the_creator_shows() {
    let Some(workshop) = Workshop::new() else { return };
    create(&workshop, "a.vhd", "subformat=dynamic,force_size=on", "25500160");
    let image = fs::read(workshop.path("a.vhd")).unwrap();
    let by_geometry = 731 * 4 * 17 * 512;
    let all: [(&[u8; 4], bool); 9] = [
        (b"vpc ", true),
        (b"qemu", true),
        (b"qem2", false),
        (b"win ", false),
        (b"d2v ", false),
        (b"tap\0", false),
        (b"CTXS", false),
        (b"wa\0\0", false),
        (b"vbox", false),
    ];
    for (creator, uses_geometry) in all {
        for geometry in [0x02db_0411, 0xffff_10ff, 0] {
            let mut image = image.clone();
            let end = image.len() - 512;
            for at in [0, end] {
                image[at + 28..at + 32].copy_from_slice(creator);
                set_u32(&mut image, at + 56, geometry);
                set_checksum(&mut image[at..at + 512], 64);
            }
            fs::write(workshop.path("b.vhd"), image).unwrap();
            let source = workshop.open("b.vhd").unwrap();
            let is_real = geometry == 0x02db_0411;
            let expected = if uses_geometry && is_real { by_geometry } else { 25_500_160 };
            assert_eq!(source.size(), expected, "{creator:?} {geometry:#x}");
            if creator != b"vbox" && geometry != 0 {
                assert_eq!(source.size(), virtual_size(&workshop, "b.vhd"), "{creator:?}");
            }
        }
    }
}

#[test]
fn the_copy_of_the_footer_stands_in_for_a_damaged_one() {
    let workshop = Workshop(tempfile::tempdir().unwrap());
    let made = Made::new(4 << 20, 1 << 20, 1, vec![(0..100, 1)]);
    let good = made.file();
    let end = good.len() - 512;
    let open = |image: &[u8]| {
        fs::write(workshop.path("f.vhd"), image).unwrap();
        let heard = Heard::default();
        let source = open_image(&workshop.path("f.vhd"), &ImageOptions::default(), &heard);
        (source, heard.0.into_inner().unwrap())
    };
    let mut damaged = good.clone();
    damaged[end + 50] ^= 1;
    // Damaged, lost with the end, and of 511 bytes as old programs wrote it.
    for (image, is_warned) in
        [(&damaged[..], true), (&good[..end], true), (&good[..good.len() - 1], false)]
    {
        let (source, warnings) = open(image);
        assert_view(source.unwrap().as_ref(), &made.view(&[]), "by the copy");
        let warning = format!("the footer of {} is damaged", workshop.path("f.vhd").display());
        assert_eq!(warnings.iter().any(|text| text.starts_with(&warning)), is_warned);
    }
    damaged[50] ^= 1;
    let error = open(&damaged).0.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Source);
    assert!(error.full_text().ends_with("its footer is wrong, and no copy is right"), "{error:?}");
    // The guest of a fixed disk wrote a footer; what it says does not count, even where the real
    // one is damaged.
    let mut disk = made.file();
    disk.truncate(4 << 20);
    disk.resize(4 << 20, 7);
    let mut fixed = [disk.clone(), footer(4 << 20, 2, 1)].concat();
    assert_view(open(&fixed).0.unwrap().as_ref(), &disk, "a fixed disk");
    fixed[(4 << 20) + 300] = 1;
    assert!(open(&fixed).0.err().unwrap().full_text().contains("checksum of its footer"));
}

/// The code of a parent locator, and its text.
type Name<'a> = (&'static [u8; 4], &'a str);

fn locators(names: &[Name]) -> Vec<Locator> {
    let bytes = |code: &[u8; 4], name: &str| match code {
        b"MacX" => name.as_bytes().to_vec(),
        _ => utf16(name),
    };
    names.iter().map(|(code, name)| (*code, bytes(code, name))).collect()
}

#[test]
fn a_chain_shows_what_lies_below() {
    let workshop = Workshop(tempfile::tempdir().unwrap());
    let base = qcow2::noise(5, 6 << 20);
    fs::write(workshop.path("base.vhd"), [&base[..], &footer(6 << 20, 2, 1)].concat()).unwrap();
    // The disk grows: what the parent does not have is zeros. Blocks of other sizes, gaps, and a
    // block at the end of the parent's disk.
    let writes = vec![(1..3, 1), (4095..4100, 2), (12_200..12_300, 3), (16_000..16_384, 4)];
    let one = Made::new(8 << 20, 2 << 20, 2, writes).over(1, locators(&[(b"W2ru", r".\base.vhd")]));
    fs::write(workshop.path("one.vhd"), one.file()).unwrap();
    let two = Made::new(7 << 20, 64 << 10, 3, vec![(0..2, 5), (200..300, 6), (14_000..14_336, 7)]);
    let two = two.over(2, locators(&[(b"W2ru", r"one.vhd")]));
    fs::write(workshop.path("two.avhd"), two.file()).unwrap();
    let view = one.view(&base);
    assert_view(workshop.open("one.vhd").unwrap().as_ref(), &view, "one");
    assert_view(workshop.open("two.avhd").unwrap().as_ref(), &two.view(&view), "two");
    let sectors = |range: Range<u64>| range.start * 512..range.end * 512;
    let expected = [0..3, 200..300, 4095..4100, 12_200..14_336].map(sectors);
    assert_eq!(workshop.changed_over("two.avhd", "base.vhd")[..3], expected[..3]);
    workshop.changed_over("two.avhd", "one.vhd");
    // What the parent has as a hole is one here.
    let below = Made::new(8 << 20, 1 << 20, 1, vec![(0..10, 1)]);
    fs::write(workshop.path("base.vhd"), below.file()).unwrap();
    let source = workshop.open("one.vhd").unwrap();
    let expected = [0..10, 4095..4100, 12_200..12_300, 16_000..16_384].map(sectors);
    assert_eq!(data_of(source.as_ref()), expected);
    assert!(source.allocation_known());
    assert!(!source.identity().is_empty());
}

#[test]
fn a_parent_is_found_by_every_kind_of_locator() {
    let workshop = Workshop(tempfile::tempdir().unwrap());
    let parent = Made::new(1 << 20, 64 << 10, 1, vec![(0..10, 1)]);
    fs::create_dir(workshop.path("in")).unwrap();
    fs::write(workshop.path("in/p 1.vhd"), parent.file()).unwrap();
    fs::write(workshop.path("p 1.vhd"), parent.file()).unwrap();
    let inside: &[Name] = &[(b"W2ru", r".\in\p 1.vhd")];
    let absolute = format!("file://{}", workshop.path("p%201.vhd").display());
    for (names, name) in [
        (inside, ""),
        (&[(b"W2ku", r"C:\disks\p 1.vhd")], ""),
        (&[(b"W2ru", r"..\gone\x.vhd"), (b"W2ku", r"\\server\share\p 1.vhd")], ""),
        (&[(b"MacX", "file://./in/p%201.vhd")], ""),
        (&[(b"MacX", &absolute)], ""),
        (&[(b"Wi2k", "what")], r"D:\p 1.vhd"),
        (&[], "p 1.vhd"),
    ] {
        let mut child = Made::new(1 << 20, 64 << 10, 2, vec![(5..20, 2)]);
        child.parent_name = name;
        let child = child.over(1, locators(names));
        fs::write(workshop.path("c.vhd"), child.file()).unwrap();
        let source = workshop.open("c.vhd").unwrap();
        assert_view(source.as_ref(), &child.view(&parent.view(&[])), &format!("{names:?}"));
    }
    // The relative path comes first.
    let other = Made::new(1 << 20, 64 << 10, 9, vec![(0..10, 1)]);
    fs::write(workshop.path("other.vhd"), other.file()).unwrap();
    let names = locators(&[(b"W2ku", r"C:\other.vhd"), (b"W2ru", r".\p 1.vhd")]);
    let child = Made::new(1 << 20, 64 << 10, 2, vec![]).over(1, names);
    fs::write(workshop.path("c.vhd"), child.file()).unwrap();
    workshop.open("c.vhd").unwrap();
}

#[test]
fn parents_that_are_not_opened() {
    let workshop = Workshop(tempfile::tempdir().unwrap());
    let outside = Workshop(tempfile::tempdir().unwrap());
    let parent = Made::new(1 << 20, 64 << 10, 1, vec![(0..10, 1)]);
    for path in [outside.path("secret.vhd"), workshop.path("p.vhd")] {
        fs::write(path, parent.file()).unwrap();
    }
    std::os::unix::fs::symlink(outside.path("secret.vhd"), workshop.path("link.vhd")).unwrap();
    let write = |name: &str, id: u8, below: u8, names: &[Name]| {
        let child = Made::new(1 << 20, 64 << 10, id, vec![]).over(below, locators(names));
        fs::write(workshop.path(name), child.file()).unwrap();
    };
    let folder = outside.0.path().file_name().unwrap().to_str().unwrap().to_string();
    let (up, url) = (
        format!(r"..\{folder}\secret.vhd"),
        format!("file://{}", outside.path("secret.vhd").display()),
    );
    let cases: [(&[Name], &str); 8] = [
        (&[(b"W2ru", &up)], "is outside of the image's folder"),
        (&[(b"MacX", &url)], "is outside of the image's folder"),
        (&[(b"W2ru", "link.vhd")], "is outside of the image's folder"),
        (&[(b"W2ru", "gone.vhd"), (b"W2ku", r"C:\x.vhd")], "its file gone.vhd cannot be found"),
        (&[(b"W2ku", r"\etc\passwd")], "its file passwd cannot be found"),
        (&[(b"W2ru", "c.vhd")], "its backing files lead back to it"),
        (&[], "it does not name its parent"),
        (&[(b"W2ru", "..")], "it does not name its parent"),
    ];
    for (names, text) in cases {
        write("c.vhd", 1, 1, names);
        let error = workshop.open("c.vhd").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Source);
        assert!(error.full_text().contains(text), "{names:?}: {error:?}");
        let options = ImageOptions { allows_backing: true, ..ImageOptions::default() };
        let opens = workshop.open_with("c.vhd", &options).is_ok();
        assert_eq!(opens, text.contains("outside"), "{names:?}");
    }
    write("c.vhd", 2, 0x7f, &[(b"W2ru", "p.vhd")]);
    let text = workshop.open("c.vhd").err().unwrap().full_text();
    let wanted = "p.vhd is not its parent: expected id 7f7f7f7f-7f7f-7f7f-7f7f-7f7f7f7f7f7f, \
                  found 01010101-0101-0101-0101-010101010101";
    assert!(text.contains("c.vhd: ") && text.ends_with(wanted), "{text}");
    // Two that are each other's parents, and a chain without end.
    write("d.vhd", 1, 2, &[(b"W2ru", "c.vhd")]);
    write("c.vhd", 2, 1, &[(b"W2ru", "d.vhd")]);
    let error = workshop.open("c.vhd").err().unwrap();
    assert!(error.full_text().ends_with("its backing files lead back to it"), "{error:?}");
    for number in 0..70 {
        write(&format!("{number}.vhd"), 1, 1, &[(b"W2ru", &format!("{}.vhd", number + 1))]);
    }
    let error = workshop.open("0.vhd").err().unwrap();
    assert!(error.full_text().ends_with("more than 64 images in a chain"), "{error:?}");
}

/// What shows at the start or the end of a file without a name for it is not believed.
#[test]
fn a_format_is_not_guessed() {
    let workshop = Workshop(tempfile::tempdir().unwrap());
    let fixed = [vec![0; 4096], footer(4096, 2, 1)].concat();
    let dynamic = Made::new(4096, 512, 1, vec![]).file();
    for (image, size) in [(&fixed, 4096), (&dynamic, 4096)] {
        fs::write(workshop.path("guest.img"), image).unwrap();
        let error = workshop.open("guest.img").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.full_text().ends_with("it looks like a vhd image"), "{error:?}");
        assert_eq!(error.hint_text(), Some("use --format vhd, or --format raw"));
        let all = image.len() as u64;
        for (format, size) in [("raw", all), ("vhd", size), ("vpc", size)] {
            let format = ImageFormat::parse(format);
            let options = ImageOptions { format, ..ImageOptions::default() };
            assert_eq!(workshop.open_with("guest.img", &options).unwrap().size(), size);
        }
        fs::write(workshop.path("guest.VHD"), image).unwrap();
        assert_eq!(workshop.open("guest.VHD").unwrap().size(), size);
    }
    let options = ImageOptions { snapshot: Some("x".into()), ..ImageOptions::default() };
    let error = workshop.open_with("guest.VHD", &options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.full_text().ends_with("it is vhd"), "{error:?}");
}

type Change = fn(&mut Vec<u8>);

/// An error or some bytes, in bounded time and memory.
#[test]
fn hostile_tables_are_refused() {
    let workshop = Workshop(tempfile::tempdir().unwrap());
    let parent = Made::new(4 << 20, 1 << 20, 1, vec![]);
    fs::write(workshop.path("p.vhd"), parent.file()).unwrap();
    let made = Made::new(4 << 20, 1 << 20, 2, vec![(0..100, 1)]);
    let good = made.over(1, locators(&[(b"W2ru", "p.vhd")])).file();
    let changes: [(Change, &str); 18] = [
        (|image| image[0] = 0, "it has no vhd footer"),
        (|image| set_u32(image, 12, 0x0002_0003), "version 2.3 is not known"),
        (|image| set_u64(image, 16, 1 << 63), "the dynamic header lies beyond the end"),
        (|image| set_u64(image, 16, u64::MAX), "the dynamic header lies beyond the end"),
        (|image| set_u64(image, 16, 1024), "it has no dynamic header at 1024"),
        (|image| set_u64(image, 48, 1 << 63), "is for another size than 9223372036854775808"),
        (|image| set_u64(image, 48, (4 << 20) + 512), "its table of 4 blocks is for another size"),
        (|image| set_u64(image, 48, 1000), "a size of 1000 bytes"),
        (|image| set_u32(image, 60, 5), "disk type 5 is not known"),
        (|image| set_u32(image, 60, 2), "of which the file has"),
        (|image| set_u64(image, 512 + 16, 1 << 63), "the table of blocks lies beyond the end"),
        (|image| set_u64(image, 512 + 16, u64::MAX), "the table of blocks lies beyond the end"),
        (|image| set_u32(image, 512 + 24, 0x0002_0000), "dynamic header is not known"),
        (|image| set_u32(image, 512 + 32, 0), "blocks of 0 bytes"),
        (|image| set_u32(image, 512 + 32, 3 << 20), "blocks of 3145728 bytes"),
        (|image| set_u32(image, 512 + 576 + 8, 70_000), "a parent locator has 70000 bytes"),
        (|image| set_u64(image, 512 + 576 + 16, 1 << 62), "a parent locator lies beyond the end"),
        (|image| set_u32(image, 1536, 0x7fff_ffff), "block 0 at 1099511627264 lies beyond the end"),
    ];
    for (change, text) in changes {
        let mut image = good.clone();
        change(&mut image);
        set_checksum(&mut image[..512], 64);
        set_checksum(&mut image[512..1536], 36);
        let end = image.len() - 512;
        image.copy_within(..512, end);
        fs::write(workshop.path("bad.vhd"), image).unwrap();
        let error = refused(&workshop, "bad.vhd");
        assert_eq!(error.kind(), ErrorKind::Source);
        assert!(error.full_text().contains(text), "{text}: {error:?}");
        // Only what a block says is looked at when it is needed.
        assert_eq!(workshop.open("bad.vhd").is_ok(), text.starts_with("block 0"), "{text}");
    }
    let mut image = good.clone();
    image[512 + 700] ^= 1;
    fs::write(workshop.path("bad.vhd"), image).unwrap();
    let error = refused(&workshop, "bad.vhd");
    assert!(error.full_text().ends_with("checksum of its dynamic header is wrong"), "{error:?}");
    for bytes in [0, 7, 8, 511, 512, 513, 1536, 2048, 3072, good.len() / 2] {
        fs::write(workshop.path("short.vhd"), &good[..bytes]).unwrap();
        assert_eq!(refused(&workshop, "short.vhd").kind(), ErrorKind::Source, "{bytes} bytes");
    }
}

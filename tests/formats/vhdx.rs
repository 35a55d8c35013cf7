//! VHDX: fixed, dynamic, differencing; sector sizes, block states, the log, parents.

use super::vhdx_made::{
    Change, Entry, HEADERS_AT, LOG_AT, LOG_ID, MIB, Made, REGIONS_AT, linkage, mend, set_log,
    set_u32, set_u64, u64_at,
};
use super::*;

const WRITES: [&str; 4] = [
    "write -P 0x11 0 300k",
    "write -P 0x22 5000k 3M",
    "write -P 0x33 17M 5k",
    "write -P 0x44 24000k 512",
];
/// The bytes of these.
const WRITTEN: [Range<u64>; 4] =
    [0..300 << 10, 5000 << 10..8072 << 10, 17 << 20..(17 << 20) + 5120, 24_576_000..24_576_512];

fn create(workshop: &Workshop, name: &str, options: &str, size: &str) {
    workshop.qemu_img(&["create", "-q", "-f", "vhdx", "-o", options, name, size]);
    workshop.write(name, &WRITES);
}

/// The view is what qemu-img makes of the image, which calls all of it data.
fn assert_same_view(workshop: &Workshop, name: &str) -> Box<dyn DiskSource> {
    workshop.qemu_img(&["convert", "-O", "raw", name, "converted"]);
    let expected = fs::read(workshop.path("converted")).unwrap();
    let source = workshop.open(name).unwrap();
    assert_view(source.as_ref(), &expected, name);
    assert_eq!(source.format(), "vhdx");
    source
}

/// What is written, in whole blocks.
fn in_blocks(written: &[Range<u64>], block: u64, size: u64) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    for range in written {
        let range = range.start / block * block..range.end.next_multiple_of(block).min(size);
        match all.last_mut().filter(|last| range.start <= last.end) {
            Some(last) => last.end = last.end.max(range.end),
            None => all.push(range),
        }
    }
    all
}

#[test]
fn every_layout_reads_as_qemu_converts_it() {
    let Some(workshop) = Workshop::new() else { return };
    for block in [1, 2, 16, 256] {
        for zero in ["on", "off"] {
            // The second one is no multiple of a block.
            for size in [24 << 20, 25_500_160] {
                let options =
                    format!("subformat=dynamic,block_size={block}M,block_state_zero={zero}");
                create(&workshop, "a.vhdx", &options, &size.to_string());
                let source = assert_same_view(&workshop, "a.vhdx");
                let expected = in_blocks(&WRITTEN, block * MIB, size);
                assert_eq!(data_of(source.as_ref()), expected, "{options}");
                assert!(source.allocation_known());
            }
        }
    }
}

/// All blocks are there; what the file has no room for is a hole of the disk.
#[test]
fn a_fixed_image_has_the_holes_of_its_file() {
    let Some(workshop) = Workshop::new() else { return };
    for block in [1, 32] {
        let options = format!("subformat=fixed,block_size={block}M");
        create(&workshop, "f.vhdx", &options, "25500160");
        let source = assert_same_view(&workshop, "f.vhdx");
        let expected = in_blocks(&WRITTEN, 4096, 25_500_160);
        assert_eq!(data_of(source.as_ref()), expected, "{options}");
    }
}

/// The table of blocks of a large disk has bitmaps between its entries, and is read in pieces.
#[test]
fn large_disks() {
    let Some(workshop) = Workshop::new() else { return };
    for (size, block, at) in [
        ("10G", 1_u64, [5 << 10, 9 << 10, 10_239]),
        ("10G", 256, [4 << 10, 5 << 10, 9 << 10]),
        ("60T", 32, [3 << 20, 30 << 20, (60 << 20) - 32]),
    ] {
        let options = format!("subformat=dynamic,block_size={block}M,block_state_zero=off");
        workshop.qemu_img(&["create", "-q", "-f", "vhdx", "-o", &options, "l.vhdx", size]);
        let writes = at.map(|at| format!("write -P 7 {at}M 1M"));
        workshop.write("l.vhdx", &writes.each_ref().map(String::as_str));
        let source = workshop.open("l.vhdx").unwrap();
        let written = at.map(|at| at * MIB..(at + block) * MIB);
        assert_eq!(data_of(source.as_ref()), written, "{size}");
        for at in at {
            let mut buffer = vec![0; MIB as usize];
            source.read_at(at * MIB, &mut buffer).unwrap();
            assert!(buffer.iter().all(|byte| *byte == 7), "{size}: {at} MiB");
        }
    }
}

#[test]
fn sectors_of_4096_bytes() {
    let workshop = Workshop(tempfile::tempdir().unwrap());
    let mut base = Made::new(5 << 20, 2 << 20, 1, vec![(0..5, 1), (1100..1280, 2)]);
    base.sector_bytes = 4096;
    fs::write(workshop.path("base.vhdx"), base.file()).unwrap();
    let source = workshop.open("base.vhdx").unwrap();
    assert_view(source.as_ref(), &base.view(&[]), "base");
    assert_eq!(data_of(source.as_ref()), [0..2 << 20, 4 << 20..5 << 20]);
    let mut top = Made::new(5 << 20, 1 << 20, 2, vec![(1..2, 3), (255..258, 4), (1279..1280, 5)]);
    top.sector_bytes = 4096;
    let top = top.over(1, "base.vhdx");
    fs::write(workshop.path("top.vhdx"), top.file()).unwrap();
    let source = workshop.open("top.vhdx").unwrap();
    assert_view(source.as_ref(), &top.view(&base.view(&[])), "top");
}

/// Blocks that are not there show the parent; those that say that they are zeros do not.
#[test]
fn every_state_of_a_block() {
    let workshop = Workshop(tempfile::tempdir().unwrap());
    let base = Made::new(12 << 20, 2 << 20, 1, vec![(0..24 << 10, 1)]);
    fs::write(workshop.path("base.vhdx"), base.file()).unwrap();
    let mut top =
        Made::new(12 << 20, 1 << 20, 2, vec![(0..2048, 2), (3000..3003, 3), (4095..4098, 4)]);
    top.states = vec![(3, 1), (4, 2), (6, 3), (8, 5)];
    let top = top.over(1, r".\base.vhdx");
    fs::write(workshop.path("top.avhdx"), top.file()).unwrap();
    let source = workshop.open("top.avhdx").unwrap();
    assert_view(source.as_ref(), &top.view(&base.view(&[])), "top");
    workshop.changed_over("top.avhdx", "base.vhdx");
    assert_eq!(workshop.open("base.vhdx").unwrap().format(), "vhdx");
    // Without a parent, what is not there is a hole.
    let mut alone = Made::new(12 << 20, 1 << 20, 2, vec![(0..2048, 2), (20_000..20_001, 3)]);
    alone.states = vec![(3, 1), (4, 2), (6, 3), (8, 5)];
    fs::write(workshop.path("alone.vhdx"), alone.file()).unwrap();
    let source = workshop.open("alone.vhdx").unwrap();
    assert_view(source.as_ref(), &alone.view(&[]), "alone");
    assert_eq!(data_of(source.as_ref()), [0..1 << 20, 9 << 20..10 << 20]);
}

#[test]
fn a_chain_shows_what_lies_below() {
    let workshop = Workshop(tempfile::tempdir().unwrap());
    fs::create_dir(workshop.path("old")).unwrap();
    let base = Made::new(6 << 20, 2 << 20, 1, vec![(0..100, 1), (5000..12_288, 2)]);
    fs::write(workshop.path("old/base.vhdx"), base.file()).unwrap();
    // The disk grows: what the parent does not have is zeros.
    let one = Made::new(9 << 20, 1 << 20, 2, vec![(50..60, 3), (12_000..12_300, 4)]);
    let mut one = one.over(1, r".\old\base.vhdx");
    fs::write(workshop.path("one.vhdx"), one.file()).unwrap();
    let two = Made::new(8 << 20, 4 << 20, 3, vec![(8100..8200, 5), (16_383..16_384, 6)]);
    let two = two.over(2, "one.vhdx");
    fs::write(workshop.path("two.avhdx"), two.file()).unwrap();
    let view = one.view(&base.view(&[]));
    assert_view(workshop.open("one.vhdx").unwrap().as_ref(), &view, "one");
    let source = workshop.open("two.avhdx").unwrap();
    assert_view(source.as_ref(), &two.view(&view), "two");
    for (top, base) in
        [("one.vhdx", "base.vhdx"), ("two.avhdx", "base.vhdx"), ("two.avhdx", "one.vhdx")]
    {
        let base = if base == "base.vhdx" { "old/base.vhdx" } else { base };
        workshop.changed_over(top, base);
    }
    // The parent's holes are holes, and what is poison in a block is none of the disk's.
    let sectors = |range: Range<u64>| range.start * 512..range.end * 512;
    let expected = [0..4096, 4096..12_300, 16_383..16_384].map(sectors);
    assert_eq!(data_of(source.as_ref()), [expected[0].start..expected[1].end, expected[2].clone()]);
    // Other ways to say where and which the parent is.
    let either = [("parent_linkage", linkage(7)), ("parent_linkage2", linkage(1).to_uppercase())];
    let path = |key: &'static str, path: &str| (key, path.to_string());
    fs::copy(workshop.path("old/base.vhdx"), workshop.path("base.vhdx")).unwrap();
    for pairs in [
        vec![path("absolute_win32_path", r"C:\vm\base.vhdx"), path("relative_path", r"gone\x")],
        vec![path("volume_path", r"\\?\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\base.vhdx")],
        vec![path("absolute_win32_path", r"\\?\C:\base.vhdx")],
    ] {
        let what = format!("{pairs:?}");
        one.parent = Some([&either[..], &pairs].concat());
        fs::write(workshop.path("one.vhdx"), one.file()).unwrap();
        assert_view(workshop.open("one.vhdx").unwrap().as_ref(), &view, &what);
    }
}

#[test]
fn parents_that_are_not_opened() {
    let workshop = Workshop(tempfile::tempdir().unwrap());
    let outside = Workshop(tempfile::tempdir().unwrap());
    let parent = Made::new(1 << 20, 1 << 20, 1, vec![(0..10, 1)]);
    for path in [outside.path("secret.vhdx"), workshop.path("p.vhdx")] {
        fs::write(path, parent.file()).unwrap();
    }
    let folder = outside.0.path().file_name().unwrap().to_str().unwrap().to_string();
    let up = format!(r"..\{folder}\secret.vhdx");
    let pairs = |id: u8, path: &str| {
        vec![("parent_linkage", linkage(id)), ("relative_path", path.to_string())]
    };
    let write = |name: &str, id: u8, pairs: Vec<(&'static str, String)>| {
        let mut child = Made::new(1 << 20, 1 << 20, id, vec![]);
        child.parent = Some(pairs);
        fs::write(workshop.path(name), child.file()).unwrap();
    };
    for (pairs, text) in [
        (pairs(1, &up), "is outside of the image's folder"),
        (pairs(1, "gone.vhdx"), "its file gone.vhdx cannot be found"),
        (pairs(1, r"\etc\passwd"), "its file passwd cannot be found"),
        (pairs(1, "c.vhdx"), "its backing files lead back to it"),
        (pairs(1, ".."), "it does not name its parent"),
        (pairs(1, "p.vhdx")[1..].to_vec(), "it does not name the id of its parent"),
        (
            pairs(0x7f, "p.vhdx"),
            "p.vhdx is not its parent: expected id 7f7f7f7f-7f7f-7f7f-7f7f-7f7f7f7f7f7f, \
             found 01010101-0101-0101-0101-010101010101",
        ),
    ] {
        write("c.vhdx", 1, pairs);
        let error = workshop.open("c.vhdx").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Source);
        assert!(error.full_text().contains("c.vhdx: "), "{error:?}");
        assert!(error.full_text().contains(text), "{text}: {error:?}");
        let options = ImageOptions { allows_backing: true, ..ImageOptions::default() };
        assert_eq!(workshop.open_with("c.vhdx", &options).is_ok(), text.contains("outside"));
    }
    for number in 0..70 {
        write(&format!("{number}.vhdx"), 1, pairs(1, &format!("{}.vhdx", number + 1)));
    }
    let error = workshop.open("0.vhdx").err().unwrap();
    assert!(error.full_text().ends_with("more than 64 images in a chain"), "{error:?}");
}

/// An image of QEMU, and a page of its table of blocks with some of them elsewhere.
fn with_other_blocks(workshop: &Workshop) -> (Vec<u8>, u64, Vec<u8>) {
    let options = "subformat=dynamic,block_size=1M,block_state_zero=off";
    workshop.qemu_img(&["create", "-q", "-f", "vhdx", "-o", options, "d.vhdx", "8M"]);
    workshop.write("d.vhdx", &["write -P 1 0 1M", "write -P 2 1M 1M", "write -P 3 5M 1M"]);
    let image = fs::read(workshop.path("d.vhdx")).unwrap();
    let entry = (0..2).map(|number| REGIONS_AT[0] + 16 + 32 * number);
    let is_blocks = |at: &usize| image[*at..at + 4] == 0x2dc2_7766_u32.to_le_bytes();
    let blocks = u64_at(&image, entry.into_iter().find(is_blocks).unwrap() + 16);
    let mut page = image[blocks as usize..blocks as usize + 4096].to_vec();
    let (first, last) = (u64_at(&page, 0), u64_at(&page, 40));
    set_u64(&mut page, 0, last);
    set_u64(&mut page, 40, 0);
    set_u64(&mut page, 56, first);
    (image, blocks, page)
}

fn view_of(source: Result<Box<dyn DiskSource>>) -> Result<Vec<u8>> {
    let source = source?;
    let mut view = vec![0; source.size() as usize];
    source.read_at(0, &mut view)?;
    Ok(view)
}

/// The log is replayed for who reads, as QEMU replays it into the file; the file stays as it is.
#[test]
fn what_is_in_the_log_counts() {
    let Some(workshop) = Workshop::new() else { return };
    let (image, blocks, page) = with_other_blocks(&workshop);
    let before = view_of(workshop.open("d.vhdx")).unwrap();
    let size = image.len() as u64;
    let log_bytes = MIB as usize;
    let changes = vec![Change::Page { at: blocks, bytes: page.clone() }];
    let entry = |number: u64, tail: u32, changes: &[Change]| {
        let changes = changes.to_vec();
        Entry { number, tail, flushed: size, last: size, changes }.bytes()
    };
    let old = [Change::Page { at: blocks, bytes: vec![0; 4096] }];
    let zeros = [Change::Zeros { at: blocks, bytes: 8192 }];
    let both = [zeros.to_vec(), changes.clone()].concat();
    let mut torn = entry(8, 0, &old);
    torn[5000] ^= 1;
    let near_end = log_bytes - 8192;
    for (what, entries) in [
        ("one entry", vec![(0, entry(7, 0, &changes))]),
        ("in the middle", vec![(40_960, entry(7, 40_960, &changes))]),
        ("zeros, then a page", vec![(0, entry(7, 0, &both))]),
        ("two entries", vec![(0, entry(6, 0, &zeros)), (4096, entry(7, 0, &changes))]),
        ("a torn one behind", vec![(0, entry(7, 0, &changes)), (8192, torn)]),
        ("one that is not next", vec![(0, entry(7, 0, &changes)), (8192, entry(5, 8192, &old))]),
        ("an older sequence", vec![(0, entry(7, 0, &changes)), (65_536, entry(6, 65_536, &old))]),
        ("a newer sequence", vec![(0, entry(6, 0, &old)), (65_536, entry(7, 65_536, &changes))]),
        (
            "around the end",
            vec![
                (near_end, entry(6, near_end as u32, &old)),
                (0, entry(7, near_end as u32, &changes)),
            ],
        ),
        (
            "an entry around the end",
            vec![(log_bytes - 4096, { entry(7, log_bytes as u32 - 4096, &changes) })],
        ),
    ] {
        let mut dirty = image.clone();
        set_log(&mut dirty, &entries);
        fs::write(workshop.path("dirty.vhdx"), &dirty).unwrap();
        let view = view_of(workshop.open("dirty.vhdx"))
            .unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let mut expected = vec![0; 8 << 20];
        for (at, byte) in [(0, 3), (1, 2), (7, 1)] {
            expected[at << 20..(at + 1) << 20].fill(byte);
        }
        assert!(view == expected && view != before, "{what}");
        assert!(fs::read(workshop.path("dirty.vhdx")).unwrap() == dirty, "{what}: it was written");
        // QEMU does not compare the numbers of the first two entries.
        if what == "one that is not next" {
            continue;
        }
        workshop.qemu_img(&["check", "-q", "-r", "all", "dirty.vhdx"]);
        workshop.qemu_img(&["convert", "-O", "raw", "dirty.vhdx", "converted"]);
        assert!(fs::read(workshop.path("converted")).unwrap() == expected, "{what}: QEMU");
    }
}

/// What is in front of the tail was written to the file long ago, and over it what came then.
#[test]
fn entries_in_front_of_the_tail_do_not_count() {
    let Some(workshop) = Workshop::new() else { return };
    let (mut image, blocks, _) = with_other_blocks(&workshop);
    let before = view_of(workshop.open("d.vhdx")).unwrap();
    let size = image.len() as u64;
    let entry = |number: u64, tail: u32, at: u64| {
        let changes = vec![Change::Zeros { at, bytes: 4096 }];
        Entry { number, tail, flushed: size, last: size, changes }.bytes()
    };
    // The first one takes all blocks away, the last one says nothing of them.
    for (tail, has_blocks) in [(4096, true), (0, false)] {
        set_log(&mut image, &[(0, entry(6, 0, blocks)), (4096, entry(7, tail, blocks + 8192))]);
        fs::write(workshop.path("t.vhdx"), &image).unwrap();
        let view = view_of(workshop.open("t.vhdx")).unwrap();
        assert_eq!(view == before, has_blocks, "tail {tail}");
    }
}

/// A block may be where the file ends only after the replay: it is there, and zeros.
#[test]
fn the_log_makes_the_file_longer() {
    let Some(workshop) = Workshop::new() else { return };
    let (mut image, blocks, _) = with_other_blocks(&workshop);
    let size = image.len() as u64;
    let mut bytes = image[blocks as usize..][..4096].to_vec();
    set_u64(&mut bytes, 16, size | 6);
    let changes = vec![Change::Page { at: blocks, bytes }];
    let entry = Entry { number: 9, tail: 0, flushed: size, last: size + MIB, changes };
    set_log(&mut image, &[(0, entry.bytes())]);
    fs::write(workshop.path("t.vhdx"), &image).unwrap();
    let source = workshop.open("t.vhdx").unwrap();
    assert_eq!(data_of(source.as_ref()), [0..3 << 20, 5 << 20..6 << 20]);
    let mut block = vec![1; 1 << 20];
    source.read_at(2 << 20, &mut block).unwrap();
    assert!(block.iter().all(|byte| *byte == 0));
}

#[test]
fn logs_that_cannot_be_replayed_are_refused() {
    let Some(workshop) = Workshop::new() else { return };
    let (image, blocks, page) = with_other_blocks(&workshop);
    let size = image.len() as u64;
    let changes = vec![Change::Page { at: blocks, bytes: page }];
    let entry = |number: u64, tail: u32, flushed: u64| {
        Entry { number, tail, flushed, last: size, changes: changes.clone() }.bytes()
    };
    let good = entry(7, 0, size);
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut entry = good.clone();
        change(&mut entry);
        entry
    };
    let sum = |entry: &mut Vec<u8>| {
        let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
        set_u32(entry, 4, 0);
        let sum = crc.checksum(entry);
        set_u32(entry, 4, sum);
    };
    let none = "there should be something in its log, but no entry is whole";
    for (what, entries, text) in [
        ("nothing", vec![], none),
        ("torn", vec![(0, changed(&|entry| entry[6000] ^= 1))], none),
        (
            "of another log",
            vec![(
                0,
                changed(&|entry| {
                    entry[40] = 1;
                    sum(entry)
                }),
            )],
            none,
        ),
        ("number 0", vec![(0, entry(0, 0, size))], none),
        ("a tail that is no entry", vec![(0, entry(7, 8192, size))], none),
        ("a tail beyond the log", vec![(0, entry(7, 1 << 30, size))], none),
        ("a loop of tails", vec![(0, entry(7, 8192, size)), (8192, entry(9, 0, size))], none),
        (
            "no length",
            vec![(
                0,
                changed(&|entry| {
                    set_u32(entry, 8, 0);
                    sum(entry)
                }),
            )],
            none,
        ),
        (
            "too long",
            vec![(
                0,
                changed(&|entry| {
                    set_u32(entry, 8, 2 << 20);
                    sum(entry)
                }),
            )],
            none,
        ),
        (
            "too many",
            vec![(
                0,
                changed(&|entry| {
                    set_u32(entry, 24, u32::MAX);
                    sum(entry)
                }),
            )],
            none,
        ),
        (
            "other numbers",
            vec![(
                0,
                changed(&|entry| {
                    entry[64 + 24] = 8;
                    sum(entry)
                }),
            )],
            none,
        ),
        (
            "other data",
            vec![(
                0,
                changed(&|entry| {
                    entry[8188] = 8;
                    sum(entry)
                }),
            )],
            none,
        ),
        (
            "no such change",
            vec![(
                0,
                changed(&|entry| {
                    entry[64] = b'x';
                    sum(entry)
                }),
            )],
            none,
        ),
        (
            "an odd place",
            vec![(
                0,
                changed(&|entry| {
                    entry[64 + 16] = 8;
                    sum(entry)
                }),
            )],
            none,
        ),
        (
            "a place too far",
            vec![(
                0,
                changed(&|entry| {
                    entry[64 + 16..][..8].fill(0xff);
                    entry[64 + 16] = 0;
                    entry[64 + 17] = 0xf0;
                    sum(entry)
                }),
            )],
            none,
        ),
        ("a longer file", vec![(0, entry(7, 0, size + MIB))], "it was cut off: expected at least"),
    ] {
        let mut dirty = image.clone();
        set_log(&mut dirty, &entries);
        fs::write(workshop.path("dirty.vhdx"), &dirty).unwrap();
        let error = refused(&workshop, "dirty.vhdx");
        assert_eq!(error.kind(), ErrorKind::Source);
        assert!(error.full_text().contains(text), "{what}: {error:?}");
    }
    // Entries in each other, of which each has the rest of the log for its own.
    let mut log = vec![0_u8; MIB as usize];
    for at in (0..log.len()).step_by(4096).rev() {
        let bytes = (log.len() - at) as u32;
        log[at..at + 4].copy_from_slice(b"loge");
        set_u32(&mut log, at + 8, bytes);
        set_u64(&mut log, at + 16, 5);
        log[at + 32..at + 48].fill(LOG_ID);
    }
    let mut dirty = image.clone();
    set_log(&mut dirty, &[(0, log)]);
    fs::write(workshop.path("dirty.vhdx"), &dirty).unwrap();
    let error = refused(&workshop, "dirty.vhdx");
    assert!(error.full_text().contains("the entries of its log overlap"), "{error:?}");
    // Zeros without end.
    let changes = vec![Change::Zeros { at: 4096, bytes: 4096 }; 30_000];
    let entry = |number: u64| {
        Entry { number, tail: 0, flushed: size, last: size, changes: changes.clone() }.bytes()
    };
    let mut long = image.clone();
    long.truncate(LOG_AT);
    long.resize(LOG_AT + (16 << 20), 0);
    for at in HEADERS_AT {
        set_u32(&mut long, at + 68, 16 << 20);
        set_u64(&mut long, at + 72, LOG_AT as u64);
    }
    let bytes = entry(1).len();
    let entries: Vec<_> = (0..10).map(|at| (at as usize * bytes, entry(at + 1))).collect();
    set_log(&mut long, &entries);
    fs::write(workshop.path("dirty.vhdx"), &long).unwrap();
    let error = refused(&workshop, "dirty.vhdx");
    assert!(error.full_text().contains("there is too much in its log"), "{error:?}");
}

#[test]
fn a_format_is_not_guessed() {
    let workshop = Workshop(tempfile::tempdir().unwrap());
    let image = Made::new(2 << 20, 1 << 20, 1, vec![]).file();
    fs::write(workshop.path("guest.img"), &image).unwrap();
    let error = workshop.open("guest.img").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.full_text().ends_with("it looks like a vhdx image"), "{error:?}");
    assert_eq!(error.hint_text(), Some("use --format vhdx, or --format raw"));
    for (format, size) in [("raw", image.len() as u64), ("vhdx", 2 << 20)] {
        let format = ImageFormat::parse(format);
        let options = ImageOptions { format, ..ImageOptions::default() };
        assert_eq!(workshop.open_with("guest.img", &options).unwrap().size(), size);
    }
}

/// A structure of which there are two is read from the one that is whole.
#[test]
fn one_of_two_copies_is_enough() {
    let workshop = Workshop(tempfile::tempdir().unwrap());
    let made = Made::new(2 << 20, 1 << 20, 1, vec![(0..9, 1)]);
    // What they say without their checksums: a higher number and another version, or no place.
    for (at, damage) in
        [(HEADERS_AT[0], [15, 66]), (HEADERS_AT[1], [15, 66]), (REGIONS_AT[0], [39, 71])]
    {
        let mut image = made.file();
        damage.iter().for_each(|byte| image[at + byte] ^= 0x7f);
        fs::write(workshop.path("c.vhdx"), image).unwrap();
        assert_view(workshop.open("c.vhdx").unwrap().as_ref(), &made.view(&[]), "a copy");
    }
    // The header with the higher number counts, in both places.
    for (number, is_dirty) in [(0, false), (9, true)] {
        let mut image = made.file();
        set_u64(&mut image, HEADERS_AT[0] + 8, number);
        image[HEADERS_AT[0] + 48] = 1;
        mend(&mut image);
        fs::write(workshop.path("c.vhdx"), image).unwrap();
        assert_eq!(workshop.open("c.vhdx").is_err(), is_dirty, "number {number}");
    }
}

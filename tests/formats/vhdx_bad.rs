//! VHDX images whose headers, regions, metadata and tables are not what they have to be.

use super::vhdx_made::{
    BLOCKS_AT, HEADERS_AT, METADATA_AT, Made, REGIONS_AT, mend, set_u32, set_u64, u64_at,
};
use super::*;

type Edit = fn(&mut Vec<u8>);

/// The place of an item of metadata.
fn item(image: &[u8], number: usize) -> usize {
    METADATA_AT + (u64_at(image, METADATA_AT + 32 + 32 * number + 16) & 0xffff_ffff) as usize
}

#[test]
fn hostile_tables_are_refused() {
    let workshop = Workshop(tempfile::tempdir().unwrap());
    let parent = Made::new(4 << 20, 1 << 20, 1, vec![]);
    fs::write(workshop.path("p.vhdx"), parent.file()).unwrap();
    let good = Made::new(4 << 20, 1 << 20, 2, vec![(0..100, 1)]).over(1, "p.vhdx").file();
    const ITEM: usize = METADATA_AT + 32;
    let edits: [(Edit, &str); 31] = [
        (|image| image[0] = 0, "it has no vhdx header"),
        (
            |image| HEADERS_AT.iter().for_each(|at| image[*at] = 0),
            "both of its headers are damaged",
        ),
        (
            |image| {
                set_u64(image, HEADERS_AT[0] + 8, 2);
                image[HEADERS_AT[0] + 100] = 1;
            },
            "have the same number",
        ),
        (|image| image[HEADERS_AT[1] + 66] = 2, "version 2 is not known"),
        (
            |image| {
                image[HEADERS_AT[1] + 48] = 1;
                image[HEADERS_AT[1] + 64] = 1;
            },
            "version 1 of its log is not known",
        ),
        (
            |image| {
                image[HEADERS_AT[1] + 48] = 1;
                set_u64(image, HEADERS_AT[1] + 72, 1 << 63);
            },
            "its log is not within the file",
        ),
        (
            |image| {
                image[HEADERS_AT[1] + 48] = 1;
                set_u64(image, HEADERS_AT[1] + 72, 0);
            },
            "its log is not within the file",
        ),
        (
            |image| {
                image[HEADERS_AT[1] + 48] = 1;
                set_u32(image, HEADERS_AT[1] + 68, 0);
            },
            "its log is not within the file",
        ),
        (
            |image| {
                image[HEADERS_AT[1] + 48] = 1;
                set_u32(image, HEADERS_AT[1] + 68, 1 << 31);
            },
            "its log has 2147483648 bytes",
        ),
        (
            |image| REGIONS_AT.iter().for_each(|at| image[*at] = 0),
            "both tables of its regions are damaged",
        ),
        (|image| set_u32(image, REGIONS_AT[0] + 8, 3000), "3000 regions"),
        (|image| set_u32(image, REGIONS_AT[0] + 8, 1), "it has no metadata"),
        (|image| set_u32(image, REGIONS_AT[0] + 8, 0), "it has no table of blocks"),
        (
            |image| set_u32(image, REGIONS_AT[0] + 16, 1),
            "it needs a region that is not known: 00000001-f623-4200",
        ),
        (
            |image| {
                set_u32(image, REGIONS_AT[0] + 16, 1);
                set_u32(image, REGIONS_AT[0] + 16 + 28, 0);
            },
            "it has no table of blocks",
        ),
        (|image| set_u64(image, REGIONS_AT[0] + 16 + 16, 1 << 63), "is not within the file"),
        (|image| set_u64(image, REGIONS_AT[0] + 16 + 16, 4096), "is not within the file"),
        (|image| set_u32(image, REGIONS_AT[0] + 16 + 24, 1 << 31), "is not within the file"),
        (
            |image| image.copy_within(REGIONS_AT[0] + 16..REGIONS_AT[0] + 48, REGIONS_AT[0] + 48),
            "twice",
        ),
        (|image| image[METADATA_AT] = 0, "it has no table of metadata"),
        (|image| image[METADATA_AT + 11] = 9, "items of metadata"),
        (|image| image[ITEM] = 0, "it needs metadata that are not known"),
        (|image| set_u32(image, ITEM + 24, 5), "it needs metadata that are not known"),
        (|image| set_u32(image, ITEM + 16, 4096), "are not within their region"),
        (|image| set_u32(image, ITEM + 16, u32::MAX), "are not within their region"),
        (|image| set_u32(image, ITEM + 20, u32::MAX), "are not within their region"),
        (|image| set_u32(image, ITEM + 20, 4), "it has no file parameters"),
        (
            |image| {
                let at = item(image, 0);
                set_u32(image, at, 0)
            },
            "blocks of 0 bytes",
        ),
        (
            |image| {
                let at = item(image, 1);
                set_u64(image, at, 1 << 63)
            },
            "a size of 9223372036854775808 bytes",
        ),
        (
            |image| {
                let at = item(image, 1);
                set_u64(image, at, 4097)
            },
            "a size of 4097 bytes",
        ),
        (
            |image| {
                let at = item(image, 3);
                set_u32(image, at, 520)
            },
            "sectors of 520 bytes",
        ),
    ];
    let more: [(Edit, &str); 9] = [
        (
            |image| {
                let at = item(image, 0);
                set_u32(image, at, 3 << 20)
            },
            "blocks of 3145728 bytes",
        ),
        (
            |image| {
                let at = item(image, 0);
                set_u32(image, at, 512 << 20)
            },
            "blocks of 536870912 bytes",
        ),
        (
            |image| {
                let at = item(image, 1);
                set_u64(image, at, 60 << 40)
            },
            "is for another size than 65970697666560",
        ),
        (
            |image| {
                let at = item(image, 5);
                image[at] = 0
            },
            "a parent locator of type",
        ),
        (
            |image| {
                let at = item(image, 0);
                set_u32(image, at + 4, 0)
            },
            "block 0 is there in part, and there is no parent",
        ),
        (
            |image| set_u64(image, BLOCKS_AT, 1 << 62 | 6),
            "block 0 at 4611686018427387904 is not within the file",
        ),
        (|image| set_u64(image, BLOCKS_AT, 6), "block 0 at 0 is not within the file"),
        (|image| set_u64(image, BLOCKS_AT, 4), "block 0 has state 4"),
        (|image| set_u64(image, BLOCKS_AT + 8 * 4096, 0), "block 0 has no sector bitmap"),
    ];
    for (number, (edit, text)) in edits.into_iter().chain(more).enumerate() {
        let mut image = good.clone();
        edit(&mut image);
        mend(&mut image);
        fs::write(workshop.path("bad.vhdx"), image).unwrap();
        let error = refused(&workshop, "bad.vhdx");
        assert_eq!(error.kind(), ErrorKind::Source);
        assert!(error.full_text().contains(text), "{number}: {text}: {error:?}");
    }
    for bytes in [0, 7, 8, 65_536, 200_000, METADATA_AT, METADATA_AT + 70_000, good.len() - 1] {
        fs::write(workshop.path("short.vhdx"), &good[..bytes]).unwrap();
        assert_eq!(refused(&workshop, "short.vhdx").kind(), ErrorKind::Source, "{bytes} bytes");
    }
}

//! Dirty bitmaps of qcow2 images: what qemu-img makes, what cannot be relied on, what is hostile.

use super::*;

const MIB: u64 = 1 << 20;

/// What has changed by a bitmap; nothing if it has none of that name.
fn changed(workshop: &Workshop, image: &str, name: &str) -> Option<Vec<Range<u64>>> {
    workshop.open(image).unwrap().changed_by_bitmap(name).unwrap()
}

/// The error of a bitmap.
fn refused_bitmap(workshop: &Workshop, image: &str, name: &str) -> String {
    let source = workshop.open(image).unwrap();
    assert!(!source.bitmaps().unwrap_or_default().contains(&name.to_string()));
    let error = source.changed_by_bitmap(name).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Source);
    error.full_text()
}

/// Writes at these places, on the grid of a bitmap.
fn on_grid(writes: &[Range<u64>], granularity: u64, size: u64) -> Vec<Range<u64>> {
    let on_grid = |range: &Range<u64>| {
        let start = range.start / granularity * granularity;
        start..range.end.next_multiple_of(granularity).min(size)
    };
    diskvault::source::changes::join(writes.iter().map(on_grid).collect())
}

#[test]
fn what_was_written_since_is_what_the_bitmap_tells() {
    let Some(workshop) = Workshop::new() else { return };
    // Bits that fill parts of a cluster, one and many; a disk that ends within a bit.
    for (cluster, granularity, size) in [
        ("4k", 512, 64 * MIB),
        ("512", 512, 5 * MIB + 512),
        ("64k", 65_536, 64 * MIB + 1536),
        ("2M", 1 << 21, 9 * MIB),
        ("64k", 1 << 31, 9 * MIB),
    ] {
        let (options, size_text) = (format!("cluster_size={cluster}"), size.to_string());
        workshop.qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, "b.qcow2", &size_text]);
        workshop.write("b.qcow2", &["write -P 1 2M 1M"]);
        let step = granularity.to_string();
        let add =
            |name: &str| workshop.qemu_img(&["bitmap", "--add", "-g", &step, "b.qcow2", name]);
        add("first");
        assert_eq!(changed(&workshop, "b.qcow2", "first").unwrap(), []);
        let one = [0..512, MIB - 512..MIB + 1024, 3 * MIB..5 * MIB];
        let two = [2 * MIB..2 * MIB + 4096, size - 512..size];
        workshop.write(
            "b.qcow2",
            &["write -P 2 0 512", "write -z 1048064 1536", "discard 3M 2M", "write -c 4M 0"],
        );
        add("second");
        workshop.write("b.qcow2", &["write -P 3 2M 4k", &format!("write -P 4 {} 512", size - 512)]);
        let all = [&one[..], &two].concat();
        let source = workshop.open("b.qcow2").unwrap();
        assert_eq!(source.bitmaps().unwrap(), ["first", "second"]);
        let by = |name: &str| changed(&workshop, "b.qcow2", name).unwrap();
        assert_eq!(by("first"), on_grid(&all, granularity, size), "{cluster} {granularity}");
        assert_eq!(by("second"), on_grid(&two, granularity, size), "{cluster} {granularity}");
        // Merged, cleared, gone.
        add("third");
        workshop.qemu_img(&["bitmap", "--merge", "second", "b.qcow2", "third"]);
        workshop.qemu_img(&["bitmap", "--clear", "b.qcow2", "second"]);
        workshop.qemu_img(&["bitmap", "--remove", "b.qcow2", "first"]);
        assert_eq!(by("third"), on_grid(&two, granularity, size));
        assert_eq!(by("second"), []);
        assert_eq!(changed(&workshop, "b.qcow2", "first"), None);
    }
}

#[test]
fn what_may_lack_a_write_is_an_error() {
    let Some(workshop) = Workshop::new() else { return };
    workshop.qemu_img(&["create", "-q", "-f", "qcow2", "b.qcow2", "64M"]);
    assert_eq!(changed(&workshop, "b.qcow2", "one"), None);
    workshop.qemu_img(&["bitmap", "--add", "b.qcow2", "one"]);
    workshop.qemu_img(&["bitmap", "--add", "--disable", "b.qcow2", "off"]);
    workshop.write("b.qcow2", &["write 1M 64k"]);
    let text = refused_bitmap(&workshop, "b.qcow2", "off");
    assert!(text.contains("cannot use bitmap off of"), "{text}");
    assert!(text.contains("it is not enabled: it may have missed writes"), "{text}");
    workshop.qemu_img(&["bitmap", "--enable", "b.qcow2", "off"]);
    assert_eq!(changed(&workshop, "b.qcow2", "off").unwrap(), []);
    // An internal snapshot is another disk.
    workshop.qemu_img(&["snapshot", "-c", "then", "b.qcow2"]);
    let options = ImageOptions { snapshot: Some("then".into()), ..ImageOptions::default() };
    let source = workshop.open_with("b.qcow2", &options).unwrap();
    assert_eq!(source.bitmaps().unwrap(), Vec::<String>::new());
    let error = source.changed_by_bitmap("one").unwrap_err();
    assert!(error.full_text().contains("tells nothing of an internal snapshot"), "{error:?}");
    // A program that does not know bitmaps clears the bit; another killed QEMU.
    let good = fs::read(workshop.path("b.qcow2")).unwrap();
    let mut stale = good.clone();
    stale[95] &= !1;
    fs::write(workshop.path("b.qcow2"), &stale).unwrap();
    let text = refused_bitmap(&workshop, "b.qcow2", "one");
    assert!(text.contains("may lack writes of a program that does not know bitmaps"), "{text}");
    fs::write(workshop.path("b.qcow2"), &good).unwrap();
    workshop.run("sh", &["-c", "qemu-io -c 'write 3M 64k' -c abort b.qcow2 || true"]);
    let text = refused_bitmap(&workshop, "b.qcow2", "one");
    assert!(text.contains("was not closed: qemu was killed or is running"), "{text}");
}

/// After an external snapshot the bitmap goes on in the image on top, or its changes are all that
/// the image holds.
#[test]
fn bitmaps_below_count_with_what_lies_over_them() {
    let Some(workshop) = Workshop::new() else { return };
    let over = |name: &str, below: &str, size: &str| {
        workshop.qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, name, size]);
    };
    workshop.qemu_img(&["create", "-q", "-f", "qcow2", "base.qcow2", "8M"]);
    workshop.qemu_img(&["bitmap", "--add", "base.qcow2", "m"]);
    workshop.write("base.qcow2", &["write -P 1 1M 64k"]);
    over("bare.qcow2", "base.qcow2", "9M");
    workshop.write("bare.qcow2", &["write -P 1 3M 64k", "write -z 4M 64k"]);
    let granule = |at: u64| at * MIB..at * MIB + (64 << 10);
    let below = [granule(1), granule(3), granule(4), 8 * MIB..9 * MIB];
    assert_eq!(changed(&workshop, "bare.qcow2", "m").unwrap(), below);
    assert_eq!(workshop.open("bare.qcow2").unwrap().bitmaps().unwrap(), ["m"]);
    over("top.qcow2", "bare.qcow2", "9M");
    workshop.qemu_img(&["bitmap", "--add", "top.qcow2", "m"]);
    workshop.write("top.qcow2", &["write -P 1 6M 64k"]);
    let all = [&below[..3], &[granule(6), 8 * MIB..9 * MIB]].concat();
    assert_eq!(changed(&workshop, "top.qcow2", "m").unwrap(), all);
    // Smaller than what is told below; and one of the two cannot be relied on.
    over("small.qcow2", "bare.qcow2", "3M");
    assert_eq!(changed(&workshop, "small.qcow2", "m").unwrap(), [granule(1)]);
    workshop.qemu_img(&["bitmap", "--disable", "base.qcow2", "m"]);
    let error = workshop.open("top.qcow2").unwrap().changed_by_bitmap("m").unwrap_err();
    assert!(error.full_text().contains("base.qcow2: it is not enabled"), "{error:?}");
    workshop.qemu_img(&["bitmap", "--disable", "top.qcow2", "m"]);
    assert_eq!(workshop.open("top.qcow2").unwrap().bitmaps().unwrap(), Vec::<String>::new());
}

#[test]
fn hostile_bitmaps_are_refused() {
    let Some(workshop) = Workshop::new() else { return };
    workshop.qemu_img(&["create", "-q", "-f", "qcow2", "good.qcow2", "64M"]);
    for name in ["one", "two"] {
        workshop.qemu_img(&["bitmap", "--add", "good.qcow2", name]);
    }
    workshop.write("good.qcow2", &["write 1M 64k"]);
    let good = fs::read(workshop.path("good.qcow2")).unwrap();
    let be = |at: usize, bytes: usize| {
        good[at..at + bytes].iter().fold(0_usize, |all, byte| all << 8 | usize::from(*byte))
    };
    let mark = 0x2385_2875_u32.to_be_bytes();
    let extension = good.windows(4).position(|window| window == mark).unwrap();
    let directory = be(extension + 24, 8);
    let table = be(directory, 8);
    // The second entry: 24 bytes and a name of 3, padded.
    let second = directory + 32;
    assert_eq!(&good[second + 24..second + 27], b"two");
    let set = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(workshop.path("bad.qcow2"), image).unwrap();
    };
    let far = (1_u64 << 50).to_be_bytes();
    let all_of_them: [(usize, &[u8], &str); 9] = [
        (extension + 4, &[0, 0, 0, 16], "its bitmaps extension has 16 bytes"),
        (extension + 8, &[0, 0, 0, 0], "0 bitmaps in a directory of 64 bytes"),
        (extension + 8, &[0, 1, 0, 0], "65536 bitmaps in a directory"),
        (extension + 8, &[0, 0, 0, 1], "its directory of bitmaps has 32 bytes more"),
        (extension + 8, &[0, 0, 0, 3], "bitmap 2 reaches beyond the directory"),
        (extension + 16, &far, "2 bitmaps in a directory of 1125899906842624 bytes"),
        (extension + 24, &far, "the directory of bitmaps lies beyond the end"),
        (second + 18, &[0xff, 0xff], "bitmap 1 has a name of 65535 bytes"),
        (second + 24, b"one", "two bitmaps are called one"),
    ];
    let named: [(usize, &[u8], &str); 4] = [
        (second + 18, &[0, 0], "bitmap 1 has a name of 0 bytes"),
        (second + 20, &[0xff; 4], "bitmap 1 reaches beyond the directory"),
        (second + 20, &[0, 0, 0, 16], "bitmap 1 reaches beyond the directory"),
        (second + 24, &[0xff], "bitmap 1 has a name that is no text"),
    ];
    for (at, bytes, text) in all_of_them.into_iter().chain(named) {
        set(at, bytes);
        // The disk itself is read all the same.
        let source = workshop.open("bad.qcow2").unwrap();
        source.read_at(0, &mut [0; 512]).unwrap();
        for error in [source.bitmaps().unwrap_err(), source.changed_by_bitmap("one").unwrap_err()] {
            assert!(error.full_text().contains(text), "{text}: {error:?}");
        }
    }
    // What is wrong with one leaves the other.
    let of_one: [(usize, &[u8], &str); 6] = [
        (directory + 8, &[0, 0, 0, 9], "has a table of 9 entries for a disk of 67108864 bytes"),
        (directory + 12, &[0x80, 0, 0, 2], "has flags 0x80000002, which are not known"),
        (directory + 12, &[0, 0, 0, 3], "was not closed"),
        (directory + 16, &[2], "has type 2, which is not known"),
        (directory + 17, &[8], "has a granularity of 2^8 bytes"),
        (directory + 17, &[32], "has a granularity of 2^32 bytes"),
    ];
    for (at, bytes, text) in of_one {
        set(at, bytes);
        let found = refused_bitmap(&workshop, "bad.qcow2", "one");
        assert!(found.contains(text), "{text}: {found}");
        assert_eq!(workshop.open("bad.qcow2").unwrap().bitmaps().unwrap(), ["two"]);
        changed(&workshop, "bad.qcow2", "two").unwrap();
    }
    // Extra data: the padding behind a shorter name.
    let granule = MIB..MIB + 65_536;
    let extra = [0, 1, 0, 0, 0, 1, 0, b'o'];
    set(directory + 18, &extra);
    assert!(
        refused_bitmap(&workshop, "bad.qcow2", "o").contains("has extra data that are not known")
    );
    set(directory + 12, &[&[0, 0, 0, 6, 1, 16][..], &extra].concat());
    assert_eq!(changed(&workshop, "bad.qcow2", "o").unwrap(), std::slice::from_ref(&granule));
    // Tables and clusters.
    for (at, bytes, text) in [
        (directory, far, "the table of a bitmap lies beyond the end"),
        (directory, u64::MAX.to_be_bytes(), "the table of a bitmap lies beyond the end"),
        (table, far, "a cluster of a bitmap lies beyond the end"),
        (table, 3_u64.to_be_bytes(), "has an entry 0x3"),
        (table, (1_u64 << 63).to_be_bytes(), "has an entry 0x8000000000000000"),
        (table, (65_536_u64 | 1).to_be_bytes(), "has an entry 0x10001"),
        (table, 512_u64.to_be_bytes(), "has an entry 0x200"),
    ] {
        set(at, &bytes);
        let error = workshop.open("bad.qcow2").unwrap().changed_by_bitmap("one").unwrap_err();
        assert!(error.full_text().contains(text), "{text}: {error:?}");
    }
    set(table, &1_u64.to_be_bytes());
    let whole = 0..64 * MIB;
    assert_eq!(changed(&workshop, "bad.qcow2", "one").unwrap(), std::slice::from_ref(&whole));
    // A disk of absurd size with bits for each 512 bytes.
    let mut image = good.clone();
    image[24..32].copy_from_slice(&(1_u64 << 40).to_be_bytes());
    image[36..40].copy_from_slice(&2048_u32.to_be_bytes());
    image[directory + 17] = 9;
    image.resize(image.len() + (1 << 20), 0);
    fs::write(workshop.path("bad.qcow2"), image).unwrap();
    assert!(refused_bitmap(&workshop, "bad.qcow2", "one").contains("has a table of 1 entries"));
}

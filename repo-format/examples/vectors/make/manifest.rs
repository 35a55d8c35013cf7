//! Vectors of manifests: their records (rules F-1 to F-10, A-3), and sealed ones.

use super::{changed, keyed, put};
use crate::vectors::fixed::{TIME_NS, keys, random};
use crate::vectors::form::Vector;
use crate::vectors::{Result, Set};
use diskvault_format::crypto::ObjectKind;
use diskvault_format::id::{BackupId, LeaseId, MapRoot, PageId, PointId, WriterId};
use diskvault_format::manifest::{
    ByteRange, Chunking, DiskRecord, Extension, Manifest, Statistics, StreamRecord, StreamReference,
};
use diskvault_format::map::map_root;
use diskvault_format::{record, sealed};

/// The top page of a part, and the root that follows.
fn root(seed: &str, size: u64, chunking: &Chunking) -> (MapRoot, Option<PageId>) {
    let top = Some(PageId(random(&format!("top of {seed}"))));
    (map_root(&keys(), size, chunking, top), top)
}

fn content(seed: &str, bytes: u64) -> StreamReference {
    let chunking = Chunking::content(16384, 65536, 262_144);
    let (root, top) = root(seed, bytes, &chunking);
    StreamReference { bytes, chunking, root, top }
}

fn disk() -> DiskRecord {
    let chunking = Chunking::fixed(64 << 10);
    let (root, top) = root("vda", 1 << 30, &chunking);
    DiskRecord {
        name: "vda".into(),
        size: 1 << 30,
        chunking,
        grid_offset: 0,
        source_format: "raw".into(),
        root,
        top,
        digest: None,
        allocation: Some(content("allocation", 9)),
        bad_extents: vec![ByteRange { start: 512, bytes: 512 }],
        token: vec![1, 2],
        inherited: vec![ByteRange { start: 0, bytes: 512 }, ByteRange { start: 512, bytes: 512 }],
        free_space_mode: 0,
        digests: vec![("sha256".into(), random::<32>("sha256").to_vec())],
        statistics: Statistics { virtual_bytes: 1 << 30, new_bytes: 65536, ..Default::default() },
        extensions: vec![Extension { number: 0x7fff, value: vec![1] }],
    }
}

fn stream() -> StreamRecord {
    StreamRecord {
        name: "vm.xml".into(),
        content: content("vm.xml", 5),
        digest: random("vm.xml"),
        digests: Vec::new(),
        statistics: Statistics::default(),
        extensions: Vec::new(),
    }
}

fn sample() -> Manifest {
    let mut previous = vec![PointId(random("a point")), PointId(random("another point"))];
    previous.sort();
    Manifest {
        backup_id: BackupId(random("backup")),
        lease: LeaseId(random("lease")),
        series: "web01".into(),
        time_unix_ns: TIME_NS,
        started_unix_ns: TIME_NS + 1,
        duration_ms: 1500,
        host: "kvm1".into(),
        writer: WriterId(random("writer")),
        program: "diskvault 0.1.0".into(),
        sequence: 300,
        previous,
        republishes: None,
        tags: vec![("os".into(), "debian".into())],
        disks: vec![disk()],
        streams: vec![stream()],
        signature_kind: 0,
        extensions: Vec::new(),
    }
}

/// Adds the vectors.
pub fn add(set: &mut Set) -> Result<()> {
    add_ok(set)?;
    add_counts(set)?;
    add_names(set)?;
    add_numbers(set)?;
    add_order(set)?;
    add_digests(set)?;
    add_sealed(set)
}

/// A digest stands in the manifest where the map does not give it, and only there (F-10).
fn add_digests(set: &mut Set) -> Result<()> {
    let mut add = |path: &str, rule, comment, change: Change<'_>| -> Result<()> {
        set.add(&format!("manifest/{path}"), vector(rule, comment, change)?);
        Ok(())
    };
    fn resize(manifest: &mut Manifest, size: u64, has_digest: bool) {
        let disk = &mut manifest.disks[0];
        disk.size = size;
        disk.digest = has_digest.then(|| random("digest"));
    }
    add("one-chunk", "ok", "a disk of one chunk has its digest", &|m| resize(m, 65536, true))?;
    let comment = "a disk of one chunk without a digest";
    add("one-chunk-no-digest", "F-10", comment, &|m| resize(m, 65536, false))?;
    let comment = "a disk of two chunks with a digest";
    add("two-chunks-digest", "F-10", comment, &|m| resize(m, 65537, true))?;
    add("cuts-no-digest", "F-10", "a disk cut by content without a digest", &|manifest| {
        manifest.disks[0].chunking = Chunking::content(1, 2, 3);
    })?;
    add("allocation-long", "A-3", "an allocation list above 64 MiB", &|manifest| {
        manifest.disks[0].allocation = Some(content("allocation", (64 << 20) + 1));
    })
}

type Change<'a> = &'a dyn Fn(&mut Manifest);

fn vector(rule: &str, comment: &str, change: Change<'_>) -> Result<Vector> {
    let mut manifest = sample();
    change(&mut manifest);
    Ok(Vector::refused("manifest", rule, comment, record::encode(&manifest)?))
}

fn add_ok(set: &mut Set) -> Result<()> {
    let mut ok = |path: &str, comment, change: Change<'_>| -> Result<()> {
        set.add(&format!("manifest/{path}"), vector("ok", comment, change)?);
        Ok(())
    };
    ok("full", "everything a manifest may hold", &|_| {})?;
    ok("first", "the first point of a series, without disks", &|manifest| {
        manifest.sequence = 1;
        manifest.previous.clear();
        manifest.disks.clear();
    })?;
    ok("zeros", "a disk of zeros has no top page", &|manifest| {
        let disk = &mut manifest.disks[0];
        disk.top = None;
        disk.root = map_root(&keys(), disk.size, &disk.chunking, None);
    })?;
    ok("empty-parts", "a disk and a stream of no bytes", &|manifest| {
        let disk = &mut manifest.disks[0];
        disk.bad_extents.clear();
        disk.inherited.clear();
        (disk.size, disk.top, disk.allocation) = (0, None, None);
        disk.digest = Some(*blake3::hash(b"").as_bytes());
        let stream = &mut manifest.streams[0];
        (stream.content.bytes, stream.content.top) = (0, None);
    })?;
    ok("largest", "numbers at their limits", &|manifest| {
        manifest.disks[0].size = 1 << 60;
        manifest.disks[0].name = "n".repeat(255);
        manifest.series = "\u{fc}\u{4e16}\u{1f5a5} .x".into();
        manifest.disks[0].chunking = Chunking::content(1, 4 << 20, 4 << 20);
        manifest.disks[0].digest = Some(random("digest"));
        manifest.previous = (0..64).map(|number| PointId([number; 32])).collect();
        manifest.republishes = Some(PointId([255; 32]));
        manifest.sequence = u64::MAX;
        manifest.time_unix_ns = i64::MIN;
    })
}

fn add_counts(set: &mut Set) -> Result<()> {
    let mut refuse = |path: &str, comment, change: Change<'_>| -> Result<()> {
        set.add(&format!("manifest/{path}"), vector("F-1", comment, change)?);
        Ok(())
    };
    refuse("previous-many", "65 previous points", &|manifest| {
        manifest.previous = (0..65).map(|number| PointId([number; 32])).collect();
    })?;
    refuse("tags-many", "257 tags", &|manifest| {
        manifest.tags = vec![(String::new(), String::new()); 257];
    })?;
    refuse("tag-long", "a tag's value of 4097 bytes", &|manifest| {
        manifest.tags[0].1 = "\0".repeat(4097);
    })?;
    refuse("host-long", "a host of 4097 bytes", &|manifest| manifest.host = "\0".repeat(4097))?;
    refuse("format-long", "a source format of 4097 bytes", &|manifest| {
        manifest.disks[0].source_format = "\0".repeat(4097);
    })?;
    refuse("token-long", "a change-tracking token of 4097 bytes", &|manifest| {
        manifest.disks[0].token = vec![0; 4097];
    })?;
    refuse("digest-long", "the value of a digest has 4097 bytes", &|manifest| {
        manifest.disks[0].digests[0].1 = vec![0; 4097];
    })?;
    refuse("digest-name-long", "the name of a digest has 4097 bytes", &|manifest| {
        manifest.disks[0].digests[0].0 = "\0".repeat(4097);
    })?;
    refuse("extension-long", "an extension of 4097 bytes", &|manifest| {
        manifest.extensions = vec![Extension { number: 1, value: vec![0; 4097] }];
    })?;
    refuse("digests-many", "257 digests of a stream", &|manifest| {
        manifest.streams[0].digests = vec![(String::new(), Vec::new()); 257];
    })?;
    refuse("extensions-many", "257 extensions", &|manifest| {
        manifest.extensions = vec![Extension { number: 1, value: Vec::new() }; 257];
    })
}

fn add_names(set: &mut Set) -> Result<()> {
    let mut refuse = |path: &str, comment, change: Change<'_>| -> Result<()> {
        set.add(&format!("manifest/name-{path}"), vector("F-2", comment, change)?);
        Ok(())
    };
    refuse("empty", "an empty disk name", &|manifest| manifest.disks[0].name.clear())?;
    refuse("long", "a disk name of 256 bytes", &|manifest| {
        manifest.disks[0].name = "n".repeat(256);
    })?;
    refuse("dot", "a disk named .", &|manifest| manifest.disks[0].name = ".".into())?;
    refuse("parent", "a stream named ..", &|manifest| manifest.streams[0].name = "..".into())?;
    refuse("slash", "a disk name with /", &|manifest| manifest.disks[0].name = "a/b".into())?;
    refuse("colon", "a stream name with :", &|manifest| manifest.streams[0].name = "a:b".into())?;
    refuse("nul", "a disk name with a NUL", &|manifest| manifest.disks[0].name = "a\0".into())?;
    refuse("escape", "a series name with ESC", &|manifest| manifest.series = "\x1b[m".into())?;
    refuse("delete", "a disk name with U+007F", &|manifest| {
        manifest.disks[0].name = "a\u{7f}".into();
    })?;
    refuse("control-c1", "a disk name with U+0085", &|manifest| {
        manifest.disks[0].name = "a\u{85}".into();
    })?;
    refuse("series-at", "a series name with @", &|manifest| manifest.series = "web@1".into())?;
    refuse("series-tilde", "a series name with ~", &|manifest| manifest.series = "web~1".into())?;
    refuse("series-colon", "a series name with :", &|manifest| manifest.series = "web:1".into())?;
    refuse("series-slash", "a series name with /", &|manifest| manifest.series = "a/b".into())?;
    refuse("twice", "a stream named like a disk", &|manifest| {
        manifest.streams[0].name = "vda".into();
    })
}

fn add_numbers(set: &mut Set) -> Result<()> {
    let mut refuse = |path: &str, rule, comment, change: Change<'_>| -> Result<()> {
        set.add(&format!("manifest/{path}"), vector(rule, comment, change)?);
        Ok(())
    };
    let large = (1_u64 << 60) + 1;
    refuse("disk-large", "F-3", "a disk of 2^60 + 1 bytes", &|manifest| {
        manifest.disks[0].size = large;
    })?;
    refuse("stream-large", "F-3", "a stream of 2^60 + 1 bytes", &|manifest| {
        manifest.streams[0].content.bytes = large;
    })?;
    for (path, comment, chunking) in [
        ("grid-odd", "a grid of 65537 bytes", Chunking::fixed(65537)),
        ("grid-small", "a grid of 2 KiB", Chunking::fixed(2048)),
        ("grid-large", "a grid of 8 MiB", Chunking::fixed(8 << 20)),
        ("cuts-none", "cuts of at least no bytes", Chunking::content(0, 1, 2)),
        ("cuts-order", "the average is above the most", Chunking::content(1, 9, 8)),
        ("cuts-large", "cuts above 4 MiB", Chunking::content(1, 2, (4 << 20) + 1)),
    ] {
        refuse(path, "F-4", comment, &|manifest| manifest.disks[0].chunking = chunking.clone())?;
    }
    refuse("stream-grid", "F-4", "a stream on a fixed grid", &|manifest| {
        manifest.streams[0].content.chunking = Chunking::fixed(65536);
    })?;
    refuse("allocation-grid", "F-4", "an allocation list on a fixed grid", &|manifest| {
        manifest.disks[0].allocation =
            Some(StreamReference { chunking: Chunking::fixed(65536), ..content("allocation", 9) });
    })?;
    refuse("sequence", "F-5", "sequence numbers count from 1", &|manifest| manifest.sequence = 0)?;
    refuse("signature", "F-5", "a signature", &|manifest| manifest.signature_kind = 1)?;
    refuse("grid-offset", "F-5", "a grid offset", &|manifest| manifest.disks[0].grid_offset = 512)?;
    refuse("free-space", "F-5", "a free-space mode", &|manifest| {
        manifest.disks[0].free_space_mode = 1;
    })?;
    let bytes = record::encode(&sample())?;
    let grid = record::encode(&Chunking::fixed(64 << 10))?;
    let at = bytes.windows(grid.len()).position(|window| window == grid).ok_or("no grid")?;
    for (path, comment, offset, value) in [
        ("chunking-unknown", "chunking kind 3", 0, 3),
        ("chunking-rest", "a fixed grid with a second number", grid.len() - 2, 1),
    ] {
        let bytes = changed(&bytes, |bytes| put(bytes, at + offset, &[value]));
        set.add(&format!("manifest/{path}"), Vector::refused("manifest", "F-4", comment, bytes));
    }
    Ok(())
}

fn add_order(set: &mut Set) -> Result<()> {
    let mut refuse = |path: &str, rule, comment, change: Change<'_>| -> Result<()> {
        set.add(&format!("manifest/{path}"), vector(rule, comment, change)?);
        Ok(())
    };
    refuse("previous-order", "F-6", "previous points descend", &|manifest| {
        manifest.previous.reverse();
    })?;
    refuse("previous-twice", "F-6", "the same previous point twice", &|manifest| {
        manifest.previous[1] = manifest.previous[0];
    })?;
    let range = |start, bytes| ByteRange { start, bytes };
    for (path, comment, ranges) in [
        ("range-empty", "a range of no bytes", vec![range(5, 0)]),
        ("range-overlap", "ranges overlap", vec![range(0, 10), range(9, 10)]),
        ("range-order", "ranges descend", vec![range(512, 512), range(0, 512)]),
        ("range-beyond", "a range leaves the disk", vec![range((1 << 30) - 1, 2)]),
        ("range-overflow", "a range ends at 2^64 + 1", vec![range(u64::MAX, 2)]),
    ] {
        refuse(&format!("bad-{path}"), "F-6", comment, &|manifest| {
            manifest.disks[0].bad_extents = ranges.clone();
        })?;
        refuse(&format!("inherited-{path}"), "F-6", comment, &|manifest| {
            manifest.disks[0].inherited = ranges.clone();
        })?;
    }
    refuse("disk-top", "F-7", "a disk of no bytes has a top page", &|manifest| {
        let disk = &mut manifest.disks[0];
        (disk.size, disk.allocation, disk.digest) = (0, None, Some(*blake3::hash(b"").as_bytes()));
        disk.bad_extents.clear();
        disk.inherited.clear();
    })?;
    refuse("cuts-no-top", "F-7", "a disk cut by content has bytes and no top page", &|manifest| {
        let disk = &mut manifest.disks[0];
        disk.chunking = Chunking::content(1, 2, 3);
        (disk.top, disk.digest) = (None, Some(random("digest")));
    })?;
    refuse("stream-top", "F-7", "a stream of no bytes has a top page", &|manifest| {
        manifest.streams[0].content.bytes = 0;
    })?;
    refuse("stream-no-top", "F-7", "a stream has bytes and no top page", &|manifest| {
        manifest.streams[0].content.top = None;
    })?;
    let needed = || vec![Extension { number: 0x8000, value: Vec::new() }];
    refuse("extension", "F-8", "an extension that must be known", &|manifest| {
        manifest.extensions = needed();
    })?;
    refuse("disk-extension", "F-8", "the same of a disk", &|manifest| {
        manifest.disks[0].extensions = needed();
    })?;
    refuse("stream-extension", "F-8", "the same of a stream", &|manifest| {
        manifest.streams[0].extensions = needed();
    })
}

fn add_sealed(set: &mut Set) -> Result<()> {
    let mut add = |path: &str, rule: &str, comment, plaintext: &[u8]| -> Result<()> {
        let nonce = random("nonce of a manifest");
        let bytes = sealed::seal(&keys(), ObjectKind::Manifest, "", &nonce, plaintext)?;
        let vector = keyed(Vector::refused("sealed-manifest", rule, comment, bytes));
        set.add(&format!("sealed/manifest{path}"), vector);
        Ok(())
    };
    let good = record::encode(&sample())?;
    add("", "ok", "a manifest; its point id is sealed-blake3", &good)?;
    add("-trailing", "R-3", "a byte follows the record", &[&good[..], &[0]].concat())?;
    add("-cut", "R-2", "the record lacks its last byte", &good[..good.len() - 1])?;
    let bytes = good.iter().position(|byte| *byte == 5).ok_or("no length")?;
    let claims = [&good[..bytes], &[253, 255, 255, 255, 255, 255, 255, 255, 127]].concat();
    add("-claims", "R-2", "a series name of 2^63 - 1 bytes", &claims)?;
    let mut unknown = sample();
    unknown.extensions = vec![Extension { number: u16::MAX, value: Vec::new() }];
    for (path, comment, change) in [
        (
            "-disk-root",
            "the root of a disk of another size",
            (|m: &mut Manifest| m.disks[0].size += 512) as fn(&mut Manifest),
        ),
        ("-chunking-root", "the root of a disk on another grid", |m: &mut Manifest| {
            m.disks[0].chunking = Chunking::fixed(4096);
        }),
        ("-stream-root", "the root of another stream", |m: &mut Manifest| {
            m.streams[0].content.root = MapRoot([1; 32]);
        }),
        ("-allocation-root", "the root of an allocation list with another top page", |m| {
            m.disks[0].allocation.iter_mut().for_each(|list| list.top = Some(PageId([1; 32])));
        }),
    ] {
        let mut manifest = sample();
        change(&mut manifest);
        add(path, "F-9", comment, &record::encode(&manifest)?)?;
    }
    add("-extension", "F-8", "an extension that must be known", &record::encode(&unknown)?)?;
    let nonce = random("nonce of a manifest");
    let bytes = sealed::seal(&keys(), ObjectKind::Manifest, "", &nonce, &good)?;
    let vector = keyed(Vector::refused("sealed-manifest", "N-3", "has another name", bytes));
    set.add("sealed/manifest-renamed", vector.with_bytes("name", &[7; 32]));
    Ok(())
}

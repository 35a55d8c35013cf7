//! Dirty bitmaps that a qcow2 image keeps, named by hand or after a point.

use crate::images::{MIB, Studio, Taken};
use crate::rig::{assert_restores, newest};
use diskvault::backup::{BitmapHint, Reading, Reread};
use diskvault::error::ErrorKind;
use diskvault::repository::points::Point;
use std::sync::Arc;

/// The name of a bitmap that was begun when a point of web01's vda was made, derived once more.
fn mark(studio: &Studio, series: &str, disk: &str, point: &Point) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("diskvault 2026-11-28 name of a dirty bitmap");
    for part in [&studio.repository.id().0[..], series.as_bytes(), disk.as_bytes()] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let prefix = &hasher.finalize().to_hex()[..8];
    format!("diskvault-{prefix}-{}", point.manifest.backup_id.to_hex())
}

/// A studio with an image of 64 MiB, of which there is a point.
fn studio(seed: u64) -> Option<(Studio, Point)> {
    let mut studio = Studio::new(seed)?;
    studio.reading = Reading::ByHints(Reread::Part(1000));
    studio.create("vda.qcow2", "", None, Some(64 * MIB));
    let writes = (0..64).map(|at| format!("write -P {} {at}M 1M", at + 1)).collect::<Vec<_>>();
    studio.write("vda.qcow2", &writes.iter().map(String::as_str).collect::<Vec<_>>());
    studio.back_up("vda.qcow2");
    let point = newest(&studio.repository);
    Some((studio, point))
}

fn by_bitmap(studio: &mut Studio, base: &Point, name: &str) -> Taken {
    studio.qemu_img("convert -O raw vda.qcow2 converted");
    let mut input = studio.input("vda.qcow2");
    input.bitmap = Some(Arc::new(BitmapHint { base: base.clone(), bitmap: name.into() }));
    studio.back_up_as(input)
}

#[test]
fn a_bitmap_that_is_named_tells_what_has_changed() {
    let Some((mut studio, base)) = studio(30) else { return };
    studio.qemu_img("bitmap --add vda.qcow2 monday");
    studio.qemu_img("bitmap --add --disable vda.qcow2 off");
    studio.write("vda.qcow2", &["write -P 99 20M 64k", "write -z 40M 64k"]);
    let made = by_bitmap(&mut studio, &base, "monday");
    assert_eq!(made.told_by().unwrap(), "bitmap monday");
    assert_eq!(made.tracking().unwrap().inherited_bytes, 64 * MIB - (128 << 10));
    // It was begun too late for this: one that lies is seen.
    studio.write("vda.qcow2", &["write -P 98 0 64k"]);
    studio.qemu_img("bitmap --add vda.qcow2 late");
    let made = by_bitmap(&mut studio, &base, "late");
    assert!(made.tracking().unwrap().refused.contains("the disk is another at 0"));
    assert!(made.warnings[0].contains("bitmap late does not count"), "{:?}", made.warnings);
    assert_restores(&studio.vault, &studio.repository, "by name");
    for (name, kind, text) in [
        ("tuesday", ErrorKind::NotFound, "cannot find a bitmap called tuesday in"),
        ("off", ErrorKind::Source, "it is not enabled: it may have missed writes"),
    ] {
        let bitmap = Some(Arc::new(BitmapHint { base: base.clone(), bitmap: name.into() }));
        let mut input = studio.input("vda.qcow2");
        input.bitmap = bitmap;
        let error = studio.try_back_up(input).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.full_text().contains(text), "{error:?}");
    }
}

#[test]
fn a_bitmap_named_after_a_point_counts_by_itself() {
    let Some((mut studio, first)) = studio(31) else { return };
    let add = |studio: &Studio, name: &str| {
        studio.qemu_img(&format!("bitmap --add vda.qcow2 {name}"));
    };
    // Of another series or disk, or of no point that there is.
    add(&studio, &mark(&studio, "web02", "vda", &first));
    add(&studio, &mark(&studio, "web01", "vdb", &first));
    let mut gone = first.clone();
    gone.manifest.backup_id.0[0] ^= 1;
    add(&studio, &mark(&studio, "web01", "vda", &gone));
    add(&studio, "diskvault-0-0");
    studio.write("vda.qcow2", &["write -P 90 5M 64k"]);
    let made = studio.back_up("vda.qcow2");
    assert_eq!((made.tracking(), made.warnings), (None, vec![]));
    let second = newest(&studio.repository);
    let (old, new) =
        (mark(&studio, "web01", "vda", &first), mark(&studio, "web01", "vda", &second));
    add(&studio, &new);
    studio.write("vda.qcow2", &["write -P 91 9M 64k", "discard 33M 64k"]);
    let made = studio.back_up_twice("vda.qcow2");
    assert_eq!(made.told_by().unwrap(), format!("bitmap {new}"));
    assert_eq!(made.tracking().unwrap().inherited_bytes, 64 * MIB - (128 << 10));
    // The one of the newest point counts, whatever the order of their names.
    add(&studio, &old);
    studio.write("vda.qcow2", &["write -P 92 10M 64k"]);
    assert_eq!(studio.back_up("vda.qcow2").told_by().unwrap(), format!("bitmap {new}"));
    // One that was not closed is no hint, and is not worth a word.
    studio
        .run("sh", &["-c", "qemu-io -c 'write -P 93 11M 64k' -c flush -c abort vda.qcow2 || true"]);
    let made = studio.back_up("vda.qcow2");
    assert_eq!((made.tracking(), made.warnings), (None, vec![]));
    studio.qemu_img(&format!("bitmap --remove vda.qcow2 {new}"));
    // A directory that cannot be read is said; the disk is read.
    let path = studio.path("vda.qcow2");
    let mut image = std::fs::read(&path).unwrap();
    let extension = image.windows(4).position(|it| it == [0x23, 0x85, 0x28, 0x75]).unwrap();
    image[extension + 24] = 0x40;
    studio.qemu_img("convert -O raw vda.qcow2 converted");
    std::fs::write(&path, image).unwrap();
    let made = studio.back_up_as(studio.input("vda.qcow2"));
    assert_eq!(made.tracking(), None);
    assert!(made.warnings[0].contains("the directory of bitmaps lies beyond the end"));
    assert_restores(&studio.vault, &studio.repository, "by name of a point");
}

/// Nobody asked for it, but that it lies is said.
#[test]
fn a_bitmap_that_was_begun_too_late_is_seen() {
    let Some((mut studio, base)) = studio(32) else { return };
    studio.write("vda.qcow2", &["write -P 95 0 64k"]);
    let name = mark(&studio, "web01", "vda", &base);
    studio.qemu_img(&format!("bitmap --add vda.qcow2 {name}"));
    let made = studio.back_up("vda.qcow2");
    assert!(made.tracking().unwrap().refused.contains("the disk is another at 0"));
    let warning = format!("disk vda is read in full: bitmap {name} does not count: ");
    assert!(made.warnings[0].starts_with(&warning), "{:?}", made.warnings);
    assert_restores(&studio.vault, &studio.repository, "too late");
}

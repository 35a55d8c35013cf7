//! Tests of raw disks: holes, changes under the reader, block devices.

use super::*;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

fn walk(source: &dyn DiskSource) -> Vec<Extent> {
    let mut all = Vec::new();
    source
        .extents(&mut |extent| {
            all.push(extent);
            Ok(())
        })
        .unwrap();
    let mut position = 0;
    for (index, extent) in all.iter().enumerate() {
        assert_eq!(extent.start, position, "a gap or an overlap");
        assert!(extent.bytes > 0);
        assert!(index == 0 || all[index - 1].kind != extent.kind, "not merged");
        position += extent.bytes;
    }
    assert_eq!(position, source.size());
    all
}

#[test]
fn holes_and_data_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let file = File::create(&path).unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_all_at(&[1; 65536], 1 << 20).unwrap();
    file.write_all_at(&[2; 65536], (1 << 20) + 65536).unwrap();
    file.sync_all().unwrap();
    let source = open_disk(&path).unwrap();
    assert!(source.allocation_known());
    assert_eq!((source.size(), source.format()), (8 << 20, "raw"));
    let kinds: Vec<_> =
        walk(&*source).iter().map(|extent| (extent.start, extent.bytes, extent.kind)).collect();
    assert_eq!(
        kinds,
        [
            (0, 1 << 20, ExtentKind::Hole),
            (1 << 20, 131_072, ExtentKind::Data),
            ((1 << 20) + 131_072, (7 << 20) - 131_072, ExtentKind::Hole)
        ]
    );
    source.prefetch(0, 8 << 20);
    let mut buffer = [9; 8];
    source.read_at((1 << 20) - 4, &mut buffer).unwrap();
    assert_eq!(buffer, [0, 0, 0, 0, 1, 1, 1, 1]);
    source.check_unchanged_size().unwrap();
}

#[test]
fn an_empty_and_an_entirely_sparse_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let file = File::create(&path).unwrap();
    let source = open_disk(&path).unwrap();
    assert!(walk(&*source).is_empty());
    source.read_at(0, &mut []).unwrap();
    file.set_len(1 << 40).unwrap();
    let source = open_disk(&path).unwrap();
    assert_eq!(walk(&*source), [Extent { start: 0, bytes: 1 << 40, kind: ExtentKind::Hole }]);
}

#[test]
fn growth_shrinking_and_replacement_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, vec![1; 8192]).unwrap();
    let writer = File::options().write(true).open(&path).unwrap();
    let source = open_disk(&path).unwrap();
    writer.set_len(8193).unwrap();
    let text = source.check_unchanged_size().unwrap_err().full_text();
    assert!(text.contains("grew while it was read: expected 8192, found 8193 bytes"), "{text}");
    writer.set_len(4096).unwrap();
    assert_eq!(source.check_unchanged_size().unwrap_err().kind(), ErrorKind::Source);
    let error = source.read_at(0, &mut [0; 8192]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Source);
    assert!(
        error.full_text().ends_with("shrank while it was read: expected 8192, found 4096 bytes"),
        "{error:?}"
    );
    assert_eq!(walk(&*source).iter().map(|extent| extent.bytes).sum::<u64>(), 8192);
    writer.set_len(8192).unwrap();
    source.check_unchanged_size().unwrap();
    std::fs::rename(&path, folder.path().join("old")).unwrap();
    assert!(source.check_unchanged_size().unwrap_err().full_text().contains("was removed"));
    std::fs::write(&path, vec![1; 8192]).unwrap();
    assert!(source.check_unchanged_size().unwrap_err().full_text().contains("was replaced"));
}

#[test]
fn reads_beyond_the_end_and_other_types_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, [1; 100]).unwrap();
    let source = open_disk(&path).unwrap();
    assert!(source.read_at(99, &mut [0; 2]).is_err());
    assert!(source.read_at(u64::MAX, &mut [0; 2]).is_err());
    for path in [folder.path(), Path::new("/dev/null"), &folder.path().join("missing")] {
        let error = open_disk(path).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Source, "{error:?}");
    }
}

#[test]
fn the_identity_changes_with_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, [1; 100]).unwrap();
    let first = open_disk(&path).unwrap().identity();
    assert_eq!(first, open_disk(&path).unwrap().identity());
    std::fs::write(&path, [1; 101]).unwrap();
    assert_ne!(first, open_disk(&path).unwrap().identity());
}

#[test]
fn the_walk_ends_while_the_file_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let writer = File::create(&path).unwrap();
    writer.set_len(4 << 20).unwrap();
    let source = open_disk(&path).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                writer.write_all_at(&[1; 4096], (round * 5 % 1024) * 4096).unwrap();
                if round.is_multiple_of(40) {
                    writer.set_len(round % 7 * 65536).unwrap();
                    writer.set_len(4 << 20).unwrap();
                }
            }
        });
        for _ in 0..200 {
            walk(&*source);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn an_error_of_the_caller_ends_the_walk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, [1; 100]).unwrap();
    let source = open_disk(&path).unwrap();
    let result = source.extents(&mut |_| Err(Error::new(ErrorKind::Cancelled, "interrupted")));
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
}

/// A loop device of our own, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    /// None, with a word about it, where the machine or the user's rights do not allow it.
    #[allow(clippy::print_stderr)]
    fn attach(file: &Path) -> Option<Loop> {
        match Command::new("losetup").args(["-f", "--show"]).arg(file).output() {
            Ok(output) if output.status.success() => {
                let device = String::from_utf8(output.stdout).unwrap();
                Some(Loop(PathBuf::from(device.trim())))
            }
            other => {
                eprintln!("skipped, no loop device: {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_is_one_extent_of_data() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let bytes = (1 << 20) + 512;
    file.as_file().set_len(bytes).unwrap();
    file.as_file().write_all_at(b"end", bytes - 3).unwrap();
    let Some(device) = Loop::attach(file.path()) else { return };
    assert_eq!(crate::source::default_kind(&device.0).unwrap(), crate::source::InputKind::Disk);
    let source = open_disk(&device.0).unwrap();
    assert_eq!((source.size(), source.format()), (bytes, "block-device"));
    assert!(!source.allocation_known() && !source.identity().is_empty());
    assert_eq!(walk(&*source), [Extent { start: 0, bytes, kind: ExtentKind::Data }]);
    let mut found = [1; 6];
    source.read_at(bytes - 6, &mut found).unwrap();
    assert_eq!(&found, b"\0\0\0end");
    assert!(source.read_at(bytes - 5, &mut found).is_err());
    source.prefetch(0, bytes);
    source.check_unchanged_size().unwrap();
}

//! Tests of all targets through their public functions.

use super::*;
use rustix::fs::{SeekFrom, seek};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;

const MIB: u64 = 1 << 20;

fn open(path: &Path, size: u64, force: bool) -> Result<Box<dyn DiskTarget>> {
    open_target(path, OpenTarget { size, force })
}

fn refusal(result: Result<Box<dyn DiskTarget>>) -> Error {
    result.map(|_| ()).unwrap_err()
}

/// Every name in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn random(bytes: u64) -> Vec<u8> {
    let mut data = vec![0; bytes as usize];
    blake3::Hasher::new().finalize_xof().fill(&mut data);
    data
}

fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// Writes 1 MiB of data at 1 MiB, zeros at 2 MiB and holes everywhere else, with an odd piece
/// in each, and returns what must be read then. 4 MiB in all.
fn fill(target: &dyn DiskTarget) -> Vec<u8> {
    let data = random(MIB);
    let mut wanted = vec![0; 4 * MIB as usize];
    wanted[MIB as usize..][..MIB as usize].copy_from_slice(&data);
    wanted[100_001..100_004].copy_from_slice(b"odd");
    std::thread::scope(|scope| {
        let (head, tail) = data.split_at(300_000);
        scope.spawn(move || target.write_at(MIB, head).unwrap());
        scope.spawn(move || target.write_at(MIB + 300_000, tail).unwrap());
        scope.spawn(move || target.write_zeroes(2 * MIB, MIB / 2 + 77).unwrap());
        scope.spawn(move || target.make_hole(0, 100_001).unwrap());
        scope.spawn(move || target.write_at(100_001, b"odd").unwrap());
        scope.spawn(move || target.make_hole(100_004, MIB - 100_004).unwrap());
        let start = 2 * MIB + MIB / 2 + 77;
        scope.spawn(move || target.make_hole(start, 4 * MIB - start).unwrap());
    });
    wanted
}

#[test]
fn a_new_file_is_sparse_and_named_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let target = open(&path, 4 * MIB, false).unwrap();
    assert_eq!(target.zero_state(), ZeroState::AlreadyZero);
    assert_eq!(target.describe(), path.display().to_string());
    assert!(names(folder.path())[0].starts_with(".disk.raw.diskvault-"));
    let wanted = fill(&*target);
    target.finish().unwrap();
    assert_eq!(names(folder.path()), ["disk.raw"]);
    assert!(std::fs::read(&path).unwrap() == wanted);
    // 1 MiB of data, half a MiB of written zeros, the odd block and some metadata.
    assert!((3 * MIB / 2..2 * MIB).contains(&allocated(&path)), "{}", allocated(&path));
    // Written zeros are data, up to the end of their last block.
    let hole = seek(File::open(&path).unwrap(), SeekFrom::Hole(2 * MIB)).unwrap();
    assert!((5 * MIB / 2..5 * MIB / 2 + 65536).contains(&hole), "{hole}");
}

#[test]
fn a_new_file_of_no_bytes_and_one_never_written() {
    let folder = tempfile::tempdir().unwrap();
    for size in [0, 1, 1 << 40] {
        let path = folder.path().join(size.to_string());
        open(&path, size, size == 1).unwrap().finish().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
        assert!(allocated(&path) <= 4096);
    }
}

#[test]
fn dropping_leaves_no_temporary() {
    let folder = tempfile::tempdir().unwrap();
    let target = open(&folder.path().join("disk.raw"), MIB, false).unwrap();
    target.write_at(0, b"half").unwrap();
    drop(target);
    assert!(names(folder.path()).is_empty());
}

#[test]
fn a_target_that_appears_meanwhile_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    for force in [false, true] {
        let target = open(&path, MIB, force).unwrap();
        std::fs::write(&path, b"theirs").unwrap();
        let error = target.finish().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
        assert_eq!(names(folder.path()), ["disk.raw"]);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn an_existing_file_needs_force_and_is_changed_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let link = folder.path().join("link");
    symlink("disk.raw", &link).unwrap();
    std::fs::write(&path, random(6 * MIB)).unwrap();
    let inode = std::fs::metadata(&path).unwrap().ino();
    let error = refusal(open(&path, 4 * MIB, false));
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(error.full_text(), format!("cannot write to {}: it exists", path.display()));
    assert_eq!(error.hint_text(), Some("use --force to overwrite it"));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 6 * MIB);

    let target = open(&link, 4 * MIB, true).unwrap();
    assert_eq!(target.zero_state(), ZeroState::Unknown);
    let wanted = fill(&*target);
    target.finish().unwrap();
    assert!(std::fs::read(&path).unwrap() == wanted);
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    assert!(allocated(&path) < 2 * MIB, "not punched: {}", allocated(&path));
    assert_eq!(names(folder.path()), ["disk.raw", "link"]);
}

#[test]
fn without_fallocate_zeros_are_written() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all_at(&random(MIB), 0).unwrap();
    for is_device in [false, true] {
        let output = output::Output::new(file.path(), MIB, is_device);
        output.forget_fallocate();
        output.make_hole(file.as_file(), 1, 200_000).unwrap();
        output.write_zeroes(file.as_file(), 200_001, MIB - 200_001).unwrap();
        let found = std::fs::read(file.path()).unwrap();
        assert!(found[0] == random(1)[0] && found[1..].iter().all(|&byte| byte == 0));
        assert!(allocated(file.path()) >= MIB);
    }
}

#[test]
fn nothing_beyond_the_size_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let target = open(&path, MIB, false).unwrap();
    assert_eq!(target.write_at(MIB - 1, b"ab").unwrap_err().kind(), ErrorKind::Target);
    assert!(target.write_at(u64::MAX, b"ab").is_err());
    assert!(target.make_hole(MIB, 1).is_err());
    assert!(target.write_zeroes(1, u64::MAX).is_err());
    target.write_at(MIB, b"").unwrap();
    target.make_hole(MIB, 0).unwrap();
    target.finish().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), MIB);
}

#[test]
fn what_is_no_target_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dangling = folder.path().join("dangling");
    symlink("nowhere", &dangling).unwrap();
    let missing = folder.path().join("missing");
    for (path, words) in [
        (folder.path().to_owned(), "it is a directory".to_owned()),
        (missing.join("x.raw"), format!("directory {} does not exist", missing.display())),
        (folder.path().join("new/"), "it does not name a file".to_owned()),
        (dangling, "it is a symbolic link to nothing".to_owned()),
        (PathBuf::from("/dev/null"), "it is neither a regular file nor a block device".to_owned()),
        (PathBuf::new(), "it does not name a file".to_owned()),
    ] {
        for force in [false, true] {
            let error = refusal(open(&path, MIB, force));
            assert_eq!(error.kind(), ErrorKind::Target);
            let wanted = format!("cannot write to {}: {words}", path.display());
            assert_eq!(error.full_text(), wanted);
        }
    }
    assert_eq!(names(folder.path()), ["dangling"]);
}

#[test]
fn a_full_file_system_is_no_space() {
    // /dev/full says ENOSPC to every write.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = output::Output::new(Path::new("/dev/full"), MIB, false);
    let error = output.write_at(&full, 0, b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.full_text().starts_with("cannot write /dev/full at offset 0: No space left"));
}

#[test]
fn a_stream_appears_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nvram");
    let mut target = stream_target(&path, false).unwrap();
    target.write_all(b"one").unwrap();
    assert!(!path.exists());
    target.finish().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"one");
    drop(stream_target(&folder.path().join("other"), false).unwrap());
    assert_eq!(names(folder.path()), ["nvram"]);
    let target = stream_target(&folder.path().join("late"), true).unwrap();
    std::fs::write(folder.path().join("late"), b"theirs").unwrap();
    assert_eq!(target.finish().unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(names(folder.path()), ["late", "nvram"]);
}

#[test]
fn a_stream_replaces_a_file_only_with_force_and_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nvram");
    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();
    std::fs::write(&path, b"one").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = stream_target(&path, false).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let mut target = stream_target(&link, true).unwrap();
    target.write_all(b"two").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"one");
    target.finish().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"two");
    assert!(link.is_symlink());
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    assert_eq!(names(folder.path()), ["link", "nvram"]);
    assert!(stream_target(folder.path(), true).is_err());
}

#[test]
fn a_stream_goes_into_a_fifo_and_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
    let reader = fifo.clone();
    let thread = std::thread::spawn(move || std::fs::read(reader));
    let mut target = stream_target(&fifo, false).unwrap();
    target.write_all(b"through").unwrap();
    target.finish().unwrap();
    assert_eq!(thread.join().unwrap().unwrap(), b"through");
    assert!(stream_target(Path::new("/dev/null"), false).is_err());
    let mut target = stream_target(Path::new("/dev/null"), true).unwrap();
    target.write_all(b"away").unwrap();
    target.finish().unwrap();
}

#[test]
fn a_stream_onto_a_full_device_says_so() {
    let mut target = stream_target(Path::new("/dev/full"), true).unwrap();
    let error = target.write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(error.to_string().starts_with("cannot write /dev/full: No space left"), "{error}");
}

/// A loop device of our own, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    /// None, with a word about it, where the machine or the user's rights do not allow it.
    #[allow(clippy::print_stderr)]
    fn attach(file: &Path) -> Option<Loop> {
        let output = Command::new("losetup").args(["-f", "--show"]).arg(file).output();
        let device = match output {
            Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
            other => {
                eprintln!("skipped, no loop device: {other:?}");
                return None;
            }
        };
        Some(Loop(PathBuf::from(device.trim())))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_is_overwritten_up_to_the_size_of_the_disk() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // Not a multiple of 4096, as some devices are.
    let bytes = 6 * MIB + 512;
    let before = random(bytes);
    std::fs::write(file.path(), &before).unwrap();
    let Some(device) = Loop::attach(file.path()) else { return };

    let error = refusal(open(&device.0, 4 * MIB, false));
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(error.hint_text(), Some("use --force to overwrite it"));
    let error = refusal(open(&device.0, bytes + 1, true));
    assert_eq!(error.kind(), ErrorKind::Target);
    let words = format!("it holds {bytes} bytes, the disk has {}", bytes + 1);
    assert!(error.full_text().ends_with(&words), "{error:?}");

    let target = open(&device.0, 4 * MIB, true).unwrap();
    assert_eq!(target.zero_state(), ZeroState::Unknown);
    let error = refusal(open(&device.0, 4 * MIB, true));
    assert!(error.full_text().contains("it is in use"), "{error:?}");
    let wanted = fill(&*target);
    assert!(target.make_hole(4 * MIB - 4096, 8192).is_err(), "beyond the disk");
    target.finish().unwrap();

    let found = std::fs::read(&device.0).unwrap();
    assert_eq!(found.len() as u64, bytes);
    assert!(found[..wanted.len()] == wanted);
    assert!(found[wanted.len()..] == before[wanted.len()..]);
    drop(device);
    // What was punched on the device is a hole in the file behind it: 2.5 MiB are left of the
    // 4, and the untouched 2.
    assert!(allocated(file.path()) < 5 * MIB, "{}", allocated(file.path()));
}

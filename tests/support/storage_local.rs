//! What the local storage alone promises: how it writes, what it leaves behind when it fails,
//! what it refuses to open.

use super::{bytes, name};
use diskvault::error::ErrorKind;
use diskvault::storage::local::LocalStorage;
use diskvault::storage::{Folder, Storage};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// How many unfinished files lie in the repository at `root`.
pub fn unfinished(root: &Path) -> usize {
    fs::read_dir(root.join("tmp")).map_or(0, Iterator::count)
}

fn fresh() -> (tempfile::TempDir, LocalStorage) {
    let root = tempfile::tempdir().unwrap();
    let storage = LocalStorage::create(root.path()).unwrap();
    (root, storage)
}

#[test]
fn create_makes_an_empty_folder_and_refuses_a_full_one() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("new/repository");
    let storage = LocalStorage::create(&path).unwrap();
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(storage.location(), path.display().to_string());
    LocalStorage::create(&path).unwrap();

    fs::write(path.join("file"), "x").unwrap();
    let error = LocalStorage::create(&path).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let error = LocalStorage::create(&path.join("file")).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Storage);
}

#[test]
fn open_says_why_there_is_no_repository() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("file"), "x").unwrap();
    for (path, cause) in [
        ("", "it has no config folder"),
        ("nowhere", "no such directory"),
        ("file", "it is no directory"),
    ] {
        let path = root.path().join(path);
        let error = LocalStorage::open(&path).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::NoRepository);
        let expected = format!("cannot open repository {}: {cause}", path.display());
        assert_eq!(error.full_text(), expected);
    }
}

#[test]
fn files_are_private_and_nothing_else_is_left() {
    let (root, storage) = fresh();
    let pack = name(Folder::Packs, "3f00");
    storage.put_new(&pack, b"x").unwrap();
    storage.put_new(&pack, b"y").unwrap_err();
    let mode =
        |path: &str| fs::metadata(root.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("packs"), 0o700);
    assert_eq!(mode("packs/3f"), 0o700);
    assert_eq!(mode("packs/3f/3f00"), 0o600);
    assert_eq!(unfinished(root.path()), 0);
}

#[test]
fn a_put_that_cannot_be_named_leaves_nothing() {
    let (root, storage) = fresh();
    fs::write(root.path().join("keys"), "a file where the folder should be").unwrap();
    let key = name(Folder::Keys, "3f00");
    let error = storage.put_new(&key, b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage);
    assert!(error.full_text().starts_with("cannot write keys/3f00: Not a directory"), "{error:?}");
    assert_eq!(unfinished(root.path()), 0);
    assert!(storage.list(Folder::Keys).is_err());

    // A folder that takes the name of an object.
    fs::create_dir_all(root.path().join("packs/3f/3f00")).unwrap();
    let pack = name(Folder::Packs, "3f00");
    assert_eq!(storage.put_new(&pack, b"x").unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(unfinished(root.path()), 0);
    assert_eq!(storage.size(&pack).unwrap(), None);
    assert_eq!(storage.get(&pack, 10).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(storage.list(Folder::Packs).unwrap().is_empty());
}

#[test]
fn links_are_not_followed() {
    let (root, storage) = fresh();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("3f00"), "secret").unwrap();
    storage.put_new(&name(Folder::Keys, "3f01"), b"x").unwrap();
    symlink(outside.path().join("3f00"), root.path().join("keys/3f00")).unwrap();
    symlink(outside.path(), root.path().join("notes")).unwrap();

    let linked = name(Folder::Keys, "3f00");
    assert_eq!(storage.get(&linked, 10).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(storage.size(&linked).unwrap(), None);
    assert_eq!(storage.list(Folder::Keys).unwrap().len(), 1);
    // A whole folder elsewhere is an error and never an empty list.
    assert!(storage.get(&name(Folder::Notes, "3f00"), 10).is_err());
    assert!(storage.list(Folder::Notes).is_err());
    assert!(storage.put_new(&name(Folder::Notes, "3f02"), b"x").is_err());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    fs::remove_file(root.path().join("notes")).unwrap();
    assert_eq!(storage.foreign().unwrap(), ["keys/3f00"]);
}

#[test]
fn folders_that_were_tidied_away_are_made_again() {
    let (root, storage) = fresh();
    let pack = name(Folder::Packs, "3f00");
    storage.put_new(&pack, b"x").unwrap();
    storage.delete(&pack).unwrap();
    fs::remove_dir_all(root.path().join("packs")).unwrap();
    fs::remove_dir_all(root.path().join("tmp")).unwrap();
    assert!(storage.list(Folder::Packs).unwrap().is_empty());
    storage.put_new(&pack, b"again").unwrap();
    assert_eq!(fs::read(root.path().join("packs/3f/3f00")).unwrap(), b"again");
    assert_eq!(storage.list(Folder::Packs).unwrap().len(), 1);
}

#[test]
fn a_pack_replaced_or_cut_by_hand_shows() {
    let (root, storage) = fresh();
    let pack = name(Folder::Packs, "3f00");
    let path = root.path().join("packs/3f/3f00");
    storage.put_new(&pack, &bytes(100, 1)).unwrap();
    let mut buffer = [0; 100];
    storage.get_range(&pack, 0, &mut buffer).unwrap();

    fs::write(root.path().join("other"), bytes(100, 2)).unwrap();
    fs::rename(root.path().join("other"), &path).unwrap();
    storage.get_range(&pack, 0, &mut buffer).unwrap();
    assert_eq!(buffer.to_vec(), bytes(100, 2));

    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(50).unwrap();
    let error = storage.get_range(&pack, 0, &mut buffer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damage);
}

/// A mounted file system that goes away with the test.
struct Mount(tempfile::TempDir);

impl Mount {
    fn tmpfs(options: &str) -> Option<Mount> {
        let point = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "none"])
            .arg(point.path())
            .output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Mount(point))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_leaves_nothing_partial() {
    let Some(mount) = Mount::tmpfs("size=256k") else {
        println!("skipped: this user cannot mount a tmpfs");
        return;
    };
    let root = mount.0.path();
    let storage = LocalStorage::create(root).unwrap();
    let small = name(Folder::Packs, "3f00");
    let large = name(Folder::Packs, "3f01");
    storage.put_new(&small, &bytes(64 << 10, 1)).unwrap();
    let error = storage.put_new(&large, &bytes(1 << 20, 2)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.full_text().starts_with("cannot write packs/3f/3f01: No space"), "{error:?}");
    assert_eq!(unfinished(root), 0);
    assert_eq!(storage.size(&large).unwrap(), None);
    assert_eq!(storage.list(Folder::Packs).unwrap().len(), 1);
    assert_eq!(storage.get(&small, 1 << 20).unwrap(), bytes(64 << 10, 1));

    // What was thrown away has given its space back, and deleting gives more.
    storage.put_new(&name(Folder::Packs, "3f02"), &bytes(128 << 10, 3)).unwrap();
    storage.delete(&small).unwrap();
    storage.put_new(&name(Folder::Packs, "3f03"), &bytes(64 << 10, 3)).unwrap();
}

#[test]
fn a_disk_without_room_for_one_more_file_is_full() {
    let Some(mount) = Mount::tmpfs("size=1m,nr_inodes=6") else {
        println!("skipped: this user cannot mount a tmpfs");
        return;
    };
    let storage = LocalStorage::create(mount.0.path()).unwrap();
    let put = |number: u32| storage.put_new(&name(Folder::Keys, &format!("{number:04x}")), b"x");
    let error = (0..6).find_map(|number| put(number).err()).unwrap();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!(unfinished(mount.0.path()), 0);
}

//! Damaged file systems: errors or what is there, within a time, and never a panic.

use crate::images::{MIB, Scene, noise};
use diskvault::error::{Error, ErrorKind, Result};
use diskvault::files::{DiskContent, Go, Kind, Name, Step, resolve, walk};
use diskvault::source::RandomAccess;
use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Bytes(Vec<u8>);

impl RandomAccess for Bytes {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let range = offset as usize..offset as usize + buffer.len();
        let found =
            self.0.get(range).ok_or_else(|| Error::new(ErrorKind::Usage, "behind the end"))?;
        buffer.copy_from_slice(found);
        Ok(())
    }
}

/// Files by path, and the number of errors.
fn read_all(image: Vec<u8>) -> (BTreeMap<Vec<u8>, Vec<u8>>, usize) {
    let mut files = BTreeMap::new();
    let mut errors = 0;
    let read = || -> Result<()> {
        let content = DiskContent::open(Arc::new(Bytes(image)), "sda")?;
        let volume = content.volume(content.choose(None)?)?;
        let start = resolve(&volume, &Name(b"/".to_vec()))?;
        walk(&volume, &start, &mut |at, step| {
            match step {
                Step::Entry(entry) if entry.facts.kind == Kind::File => {
                    let mut bytes = Vec::new();
                    let read = volume.read(entry, at.path, &mut |data| {
                        bytes.extend_from_slice(data);
                        // Sparse files may say anything.
                        if bytes.len() as u64 > 64 * MIB {
                            return Err(Error::new(ErrorKind::Failed, "enough"));
                        }
                        Ok(())
                    });
                    match read {
                        Ok(_) => drop(files.insert(at.path.0.clone(), bytes)),
                        Err(_) => errors += 1,
                    }
                }
                Step::Entry(entry) if entry.facts.kind == Kind::Link => {
                    errors += usize::from(volume.target(entry, at.path).is_err());
                }
                Step::Entry(_) | Step::Leave(_) => {}
                Step::Trouble(error) => {
                    assert!(
                        matches!(error.kind(), ErrorKind::Damage | ErrorKind::Failed),
                        "{error:?}"
                    );
                    errors += 1;
                }
            }
            Ok(Go::In)
        })
    };
    errors += usize::from(read().is_err());
    (files, errors)
}

/// Flips bytes at many places outside of the content of files; gives how often something was wrong.
fn flip(image: &[u8], contents: &[Vec<u8>], is_checked: bool) -> (usize, usize) {
    let (files, errors) = read_all(image.to_vec());
    assert_eq!((files.len(), errors), (contents.len(), 0));
    // Sectors full of numbers are tables that nothing here reads: logs, bitmaps, letters.
    let mut places: Vec<usize> = Vec::new();
    for (number, sector) in image.chunks(512).enumerate() {
        let found: Vec<usize> = (0..sector.len()).filter(|place| sector[*place] != 0).collect();
        if found.len() < 400 {
            places.extend(found.into_iter().map(|place| number * 512 + place));
        }
    }
    for content in contents {
        for piece in content.chunks(512).filter(|piece| piece.len() == 512) {
            // One in a record of NTFS is not there byte for byte.
            let Some(start) = memchr::memmem::find(image, piece) else { continue };
            places.retain(|place| !(start..start + 512).contains(place));
        }
    }
    let step = (places.len() / 400).max(1);
    let (mut noticed, mut runs) = (0, 0);
    for (number, place) in places.into_iter().enumerate().step_by(step) {
        for mask in [[0x01, 0x80, 0xff][number % 3], 0x10] {
            let mut damaged = image.to_vec();
            damaged[place] ^= mask;
            let began = Instant::now();
            let (found, errors) = read_all(damaged);
            assert!(began.elapsed() < Duration::from_secs(20), "{mask:#x} at {place} takes long");
            runs += 1;
            noticed += usize::from(errors > 0);
            if is_checked {
                for (path, bytes) in &found {
                    let wanted = files.get(path).unwrap_or_else(|| panic!("{path:?} came up"));
                    assert!(bytes == wanted, "{mask:#x} at {place}: wrong bytes in {path:?}");
                }
            }
        }
    }
    (noticed, runs)
}

fn contents(scene: &Scene) -> Vec<Vec<u8>> {
    fs::create_dir_all(scene.path("tree/folder/below")).unwrap();
    let files = [("one", 9 * 1024), ("folder/two", 40 * 1024), ("folder/below/three", 512)];
    files
        .into_iter()
        .map(|(name, bytes)| {
            let data = noise(bytes as u64, bytes);
            fs::write(scene.path("tree").join(name), &data).unwrap();
            data
        })
        .collect()
}

#[test]
fn ext4_with_checksums_gives_what_is_right_or_an_error() {
    let scene = Scene::new();
    let contents = contents(&scene);
    scene.image("image", 2 * MIB);
    let options = ["-q", "-F", "-t", "ext4", "-b", "1024", "-O", "metadata_csum,^has_journal"];
    scene.tool("mke2fs", &[&options[..], &["-d", "tree", "image"]].concat());
    let (noticed, runs) = flip(&fs::read(scene.path("image")).unwrap(), &contents, true);
    assert!(noticed > runs / 10, "{noticed} of {runs}");
}

#[test]
fn others_give_something_or_an_error() {
    let scene = Scene::new();
    let contents = contents(&scene);
    scene.image("ext2", 2 * MIB);
    scene.tool("mke2fs", &["-q", "-F", "-t", "ext2", "-d", "tree", "ext2"]);
    scene.image("fat", 2 * MIB);
    scene.tool("mkfs.fat", &["fat"]);
    scene.tool("sh", &["-c", "mcopy -s -i fat tree/* ::/"]);
    scene.image("ntfs", 4 * MIB);
    scene.tool("mkntfs", &["-q", "-F", "ntfs"]);
    scene.tool("ntfscp", &["-q", "ntfs", "tree/one", "one"]);
    scene.tool("ntfscp", &["-q", "ntfs", "tree/folder/two", "two"]);
    scene.tool("ntfscp", &["-q", "ntfs", "tree/folder/below/three", "three"]);
    for name in ["ext2", "fat", "ntfs"] {
        let (noticed, runs) = flip(&fs::read(scene.path(name)).unwrap(), &contents, false);
        assert!(noticed > 0, "{name}: none of {runs}");
    }
}

#[test]
fn damage_ends_with_its_code_and_what_is_whole_comes_out() {
    let scene = Scene::new();
    contents(&scene);
    scene.image("image", 4 * MIB);
    let options = ["-q", "-F", "-t", "ext4", "-b", "1024", "-O", "metadata_csum"];
    scene.tool("mke2fs", &[&options[..], &["-d", "tree", "image"]].concat());
    // The directory `folder`: its checksum does not fit any more.
    scene.patch("image", b"\x05\x02below", b"\x05\x02belox", 1);
    scene.backup("vm", "image");
    scene.fails(5, &["ls", "-R", "vm"], "cannot list /folder: ");
    scene.fails(5, &["find", "vm"], "cannot look into all of /");
    scene.fails(5, &["cp", "vm", "/", "out"], "cannot list /folder: ");
    assert_eq!(fs::read(scene.path("out/one")).unwrap(), noise(9 * 1024, 9 * 1024));
    let archive = scene.shell.run(&["cp", "vm", "/", "-"]);
    assert_eq!(archive.status.code(), Some(5));
    fs::write(scene.path("tar"), archive.stdout).unwrap();
    assert!(String::from_utf8(scene.tool("tar", &["-tf", "tar"])).unwrap().contains("one\n"));
    // The superblock.
    scene.patch("image", &[0x53, 0xef, 1, 0], &[0x53, 0xef, 9, 0], 1);
    scene.backup("vm", "image");
    scene.fails(5, &["ls", "vm"], "cannot read sda: cannot open the file system: ");
}

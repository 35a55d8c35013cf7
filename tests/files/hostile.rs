//! File systems that were made to do harm.

use crate::images::{MIB, Scene};
use std::fs;
use std::os::unix::fs::symlink;

/// A plain ext2, so that names can be changed without checksums.
fn ext2(scene: &Scene) {
    scene.image("image", 4 * MIB);
    scene.tool(
        "mke2fs",
        &["-q", "-F", "-t", "ext2", "-b", "1024", "-O", "none,filetype", "-d", "tree", "image"],
    );
}

#[test]
fn a_link_with_a_folder_of_its_name_leads_nowhere() {
    let scene = Scene::new();
    fs::create_dir_all(scene.path("tree/folderB")).unwrap();
    fs::create_dir(scene.path("outside")).unwrap();
    symlink(scene.path("outside"), scene.path("tree/folderA")).unwrap();
    fs::write(scene.path("tree/folderB/evil"), "evil").unwrap();
    fs::write(scene.path("tree/good"), "good").unwrap();
    ext2(&scene);
    // Two entries of one name: a link to the outside, and a folder with a file.
    scene.patch("image", b"folderB", b"folderA", 1);
    scene.backup("vm", "image");
    let output = scene.shell.run(&["cp", "--force", "vm", "/", "out"]);
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_dir(scene.path("outside")).unwrap().count(), 0, "a file got out");
    assert_eq!(fs::read(scene.path("out/good")).unwrap(), b"good");
}

#[test]
fn links_in_the_target_are_not_followed() {
    let scene = Scene::new();
    fs::create_dir_all(scene.path("tree/folder")).unwrap();
    fs::write(scene.path("tree/folder/file"), "new").unwrap();
    fs::write(scene.path("tree/file"), "new").unwrap();
    ext2(&scene);
    scene.backup("vm", "image");
    for name in ["out", "outside"] {
        fs::create_dir(scene.path(name)).unwrap();
    }
    fs::write(scene.path("outside/file"), "old").unwrap();
    symlink("../outside", scene.path("out/folder")).unwrap();
    symlink("../outside/file", scene.path("out/file")).unwrap();
    scene.fails(1, &["cp", "vm", "/", "out"], "something else is there");
    scene.fails(1, &["cp", "--force", "vm", "/", "out"], "something else is there");
    assert_eq!(fs::read(scene.path("outside/file")).unwrap(), b"old");
    assert_eq!(fs::read_dir(scene.path("outside")).unwrap().count(), 1);
    // The link was overwritten, and not what it points to.
    assert!(fs::symlink_metadata(scene.path("out/file")).unwrap().is_file());
}

#[test]
fn names_that_leave_the_folder_make_nothing() {
    let scene = Scene::new();
    fs::create_dir_all(scene.path("tree/folder/zz")).unwrap();
    fs::write(scene.path("tree/folder/zz/evil"), "evil").unwrap();
    fs::write(scene.path("tree/folder/q_evil"), "evil").unwrap();
    ext2(&scene);
    scene.patch("image", b"\x02\x02zz", b"\x02\x02..", 1);
    scene.backup("dots", "image");
    scene.shell.ok(&["cp", "dots", "/folder", "out"]);
    assert_eq!(fs::read_dir(scene.path("out")).unwrap().count(), 1);
    scene.patch("image", b"q_evil", b"q/evil", 1);
    scene.backup("slash", "image");
    scene.fails(5, &["cp", "slash", "/folder", "slashed"], "path separator");
    // FAT takes any name, and its checksum is of the short one.
    scene.image("fat", 4 * MIB);
    scene.tool("mkfs.fat", &["image"].map(|_| "fat"));
    fs::write(scene.path("a long name that is evil"), "evil").unwrap();
    fs::write(scene.path("good"), "good").unwrap();
    scene.tool("mcopy", &["-i", "fat", "a long name that is evil", "good", "::/"]);
    let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    scene.patch("fat", &wide("a lon"), &wide("../ev"), 1);
    scene.backup("fat", "fat");
    fs::create_dir_all(scene.path("deep/er")).unwrap();
    scene.fails(5, &["cp", "fat", "/", "deep/er"], "it would leave the folder");
    assert_eq!(fs::read_dir(scene.path("deep")).unwrap().count(), 1);
    assert_eq!(fs::read(scene.path("deep/er/good")).unwrap(), b"good");
    let archive = scene.shell.run(&["cp", "fat", "/", "-"]);
    assert_eq!(archive.status.code(), Some(5));
    fs::write(scene.path("tar"), archive.stdout).unwrap();
    let names = scene.tool("tar", &["-tPf", "tar"]);
    assert_eq!(String::from_utf8(names).unwrap(), "./\ngood\n");
}

#[test]
fn loops_of_folders_end() {
    let scene = Scene::new();
    fs::create_dir_all(scene.path("tree/one/two")).unwrap();
    fs::write(scene.path("tree/one/file"), "file").unwrap();
    ext2(&scene);
    for name in ["/one/two/again", "/one/two/more"] {
        scene.tool("debugfs", &["-w", "-R", &format!("ln /one {name}"), "image"]);
    }
    scene.backup("ext", "image");
    scene.fails(5, &["ls", "-R", "ext"], "a loop");
    scene.fails(5, &["cp", "ext", "/", "out"], "a loop");
    assert_eq!(fs::read(scene.path("out/one/file")).unwrap(), b"file");

    scene.image("fat", 4 * MIB);
    scene.tool("mkfs.fat", &["-F", "16", "-s", "1", "fat"]);
    scene.tool("mmd", &["-i", "fat", "::/UPPER", "::/UPPER/LOWER"]);
    let bytes = fs::read(scene.path("fat")).unwrap();
    let entry = |name: &[u8]| memchr::memmem::find(&bytes, name).unwrap();
    let cluster = |at: usize| bytes[at + 26..at + 28].to_vec();
    let (upper, lower) = (entry(b"UPPER      \x10"), entry(b"LOWER      \x10"));
    let old = bytes[lower..lower + 28].to_vec();
    let new = [&old[..26], &cluster(upper)].concat();
    scene.patch("fat", &old, &new, 1);
    scene.backup("fat", "fat");
    scene.fails(5, &["ls", "-R", "fat"], "a loop");
    // A chain of clusters that bites its tail, full of what was deleted.
    let first = usize::from(u16::from_le_bytes([cluster(upper)[0], cluster(upper)[1]]));
    let mut image = bytes;
    let table = usize::from(u16::from_le_bytes([image[14], image[15]])) * 512;
    image[table + first * 2..][..2].copy_from_slice(&(first as u16).to_le_bytes());
    let start = memchr::memmem::find(&image, b".          \x10").unwrap();
    for place in (start..start + 512).step_by(32) {
        image[place] = 0xe5;
    }
    fs::write(scene.path("fat"), image).unwrap();
    scene.backup("chain", "fat");
    scene.fails(5, &["ls", "-R", "chain"], "cannot list /UPPER: it has no end: a loop");
}

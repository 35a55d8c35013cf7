//! A Linux guest: Debian's kernel, which writes to its disk.

use super::*;

/// Where the guest writes, and what.
const PLACE: usize = 120_000 * SECTOR;
const WRITTEN: &[u8] = b"written by the guest";

/// The guest's disk, made once for each build; nothing, with a message, if it cannot be made here.
#[allow(clippy::print_stderr, reason = "a test says what it skips")]
fn guest() -> Option<Vec<u8>> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("boot-guest");
    std::fs::create_dir_all(&folder).unwrap();
    let lock = std::fs::File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let disk = folder.join("guest.raw");
    if !disk.exists() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boot/guest.sh");
        let output = Command::new("sh").arg(script).arg(&folder).output().unwrap();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            eprintln!("skipped: there is no Debian to be had: {said}");
            return None;
        }
    }
    Some(std::fs::read(disk).unwrap())
}

#[test]
fn a_linux_guest_boots_and_writes_and_the_point_does_not_change() {
    if !has_qemu(false) {
        return;
    }
    let Some(disk) = guest() else { return };
    let stage = Stage::new(&disk);
    let digest = stage.digest();
    let options = ["--time-limit", "200", "--overlay", "o", "--console"];
    let says = "the disk of Linux says: written by the guest";
    let (output, summary) = stage.test(&[&options[..], &[says]].concat());
    assert_eq!(code(&output), 0, "{summary}");
    assert_eq!(stage.digest(), digest);
    // The disk lies at the end of the overlay: docs/overlay.md.
    let overlay = std::fs::read(stage.path("o")).unwrap();
    let place = overlay.len() - disk.len() + PLACE;
    assert_eq!(&overlay[place..place + WRITTEN.len()], WRITTEN);
    assert_ne!(&disk[PLACE..PLACE + WRITTEN.len()], WRITTEN);

    // The same with the kernel's begin overwritten.
    let mut broken = disk;
    let kernel = broken.windows(4).position(|window| window == b"HdrS").unwrap();
    broken[kernel..kernel + 4].fill(0);
    std::fs::write(stage.path("vda"), broken).unwrap();
    stage.shell.backup(&["--name", "vm", "--disk", "vda=vda"]);
    let options = ["--time-limit", "40", "--console", says];
    let (output, summary) = stage.test(&options);
    assert_eq!(code(&output), 5, "{summary}");
}

//! By what a block device is known again, from sysfs.
//!
//! Numbers of devices are given anew at each boot, so a name that lasts is taken where the kernel has
//! one. It says which device it is, and nothing of what is on it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the kernel says what a device is.
const DEVICES: &str = "/sys/dev/block";
/// Changes with each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A token of the device of this number (`st_rdev`): of a loop device device and inode of the file
/// behind it, as a file's own token begins; of one of the device mapper its uuid, of a disk its
/// identification or serial number, of a partition its number too; else its number in this boot.
pub fn device_token(number: u64) -> Vec<u8> {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let folder = Path::new(DEVICES).join(format!("{major}:{minor}"));
    if let Some(file) = file_behind(&folder).and_then(|file| fs::metadata(file).ok()) {
        return [file.dev().to_le_bytes(), file.ino().to_le_bytes()].concat();
    }
    let name = lasting_name(&folder).unwrap_or_else(|| {
        let boot = text(Path::new(BOOT_ID)).unwrap_or_default();
        format!("number {major}:{minor} of boot {boot}")
    });
    // With an end, so that none is the beginning of another; tokens are made of numbers of 8 bytes.
    let mut token = format!("device {name}\n").into_bytes();
    token.resize(token.len().next_multiple_of(8), 0);
    token
}

/// The file behind a loop device.
fn file_behind(folder: &Path) -> Option<PathBuf> {
    text(&folder.join("loop/backing_file")).map(PathBuf::from)
}

/// A name that is the same after the next boot.
fn lasting_name(folder: &Path) -> Option<String> {
    if let Some(uuid) = text(&folder.join("dm/uuid")) {
        return Some(format!("dm {uuid}"));
    }
    if let Some(partition) = text(&folder.join("partition")) {
        // A partition's folder lies in that of its disk.
        let disk = fs::canonicalize(folder).ok()?;
        return Some(format!("{} partition {partition}", lasting_name(disk.parent()?)?));
    }
    let kinds = ["wwid", "device/wwid", "serial", "device/serial"];
    kinds.iter().find_map(|kind| Some(format!("{kind} {}", text(&folder.join(kind))?)))
}

/// What a file of one line says, if it says something.
fn text(path: &Path) -> Option<String> {
    let line = String::from_utf8_lossy(&fs::read(path).ok()?).trim().to_owned();
    (!line.is_empty()).then_some(line)
}

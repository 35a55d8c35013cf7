//! Who else uses a file that is to be written to, as far as the system tells.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The loop device that a file is behind.
pub(super) fn loop_device_of(path: &Path) -> Option<PathBuf> {
    let wanted = fs::metadata(path).ok()?;
    let entries = fs::read_dir("/sys/block").ok()?;
    entries.filter_map(Result::ok).find_map(|entry| {
        let backing = fs::read(entry.path().join("loop/backing_file")).ok()?;
        let backing = String::from_utf8_lossy(&backing);
        let found = fs::metadata(backing.trim_end_matches('\n')).ok()?;
        let is_it = found.dev() == wanted.dev() && found.ino() == wanted.ino();
        is_it.then(|| Path::new("/dev").join(entry.file_name()))
    })
}

//! A file system of a small size in a file, mounted over a loop device.

use crate::archive::{Promise, say, say_skipped};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An ext4 in `<folder>/disk`, mounted at `<folder>/mounted` until it is dropped.
pub struct Mounted {
    pub at: PathBuf,
    device: String,
}

fn command(program: &str, arguments: &[&str]) -> Promise<String> {
    let output = say(&format!("start {program}"), Command::new(program).args(arguments).output())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_string());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_string();
    Err(format!("the rig cannot {program} {arguments:?}: {why}"))
}

impl Mounted {
    /// `None`, with a message, where no loop device or no mount can be had.
    pub fn new(folder: &Path, mib: u64) -> Promise<Option<Mounted>> {
        let (disk, at) = (folder.join("disk"), folder.join("mounted"));
        say("make a folder", fs::create_dir_all(&at))?;
        let file = say("make a disk", fs::File::create(&disk))?;
        say("make a disk", file.set_len(mib << 20))?;
        let text = disk.display().to_string();
        let made = command("mkfs.ext4", &["-q", "-m", "0", &text])
            .and_then(|_| command("losetup", &["-f", "--show", &text]));
        let device = match made {
            Ok(device) => device,
            Err(why) => return Ok(skip(&why)),
        };
        let mounted = Mounted { at, device };
        match mounted.mount() {
            Ok(()) => Ok(Some(mounted)),
            Err(why) => Ok(skip(&why)),
        }
    }

    fn mount(&self) -> Promise {
        command("mount", &["-t", "ext4", &self.device, &self.at.display().to_string()]).map(drop)
    }

    pub fn remount(&self, options: &str) -> Promise {
        let options = format!("remount,{options}");
        command("mount", &["-o", &options, &self.at.display().to_string()]).map(drop)
    }

    /// Unmounts it and mounts it again; what never reached the device is gone then.
    pub fn again(&self) -> Promise {
        command("umount", &[&self.at.display().to_string()])?;
        self.mount()
    }

    /// Free bytes.
    pub fn free(&self) -> u64 {
        rustix::fs::statvfs(&self.at).map_or(0, |it| it.f_bavail * it.f_frsize)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.at).output();
        let _ = Command::new("losetup").arg("-d").arg(&self.device).output();
    }
}

fn skip(why: &str) -> Option<Mounted> {
    say_skipped(why);
    None
}

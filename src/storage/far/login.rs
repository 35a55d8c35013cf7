//! What one run of a client has put, remembered beside the repository: each of its lines is another
//! process here, and a line that was cut comes again.
//!
//! `tmp/login-<hash of the run's token>` has a line for each object. It is swept a week after the last
//! one was added; see `local/folders.rs`.
//!
//! Invariants: an object is written down only after this process has put it itself, so nobody comes
//! to own what was there; and of two processes for the same line the second waits until the first,
//! whose line was cut, has done what it was told.

use super::lock;
use crate::storage::ObjectName;
use crate::storage::local::LOGIN_PREFIX;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// So long a process whose line was cut is waited for.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(20);

/// Bytes that are read of a list: a million objects.
const LIST_BYTES_MAX: u64 = 100 << 20;

/// The run of a client that this process serves.
pub struct Login {
    path: PathBuf,
    /// `None` where nothing can be written.
    file: Option<File>,
    own: Mutex<Own>,
    keeps: bool,
}

#[derive(Default)]
struct Own {
    names: HashSet<ObjectName>,
    /// Bytes of the list that were read.
    read: u64,
}

impl Login {
    /// Finds the list of the run, made if it is missing, and waits for the process that had the line
    /// before. Where nothing can be written there is no list, and nothing is owned.
    pub fn enter(folder: &Path, token: &[u8; 32], line: u16, keeps: bool) -> Login {
        let digest = blake3::hash(token).to_hex();
        let path = folder.join(format!("{LOGIN_PREFIX}{}", &digest[..32]));
        // A repository that is being made has no such folder yet.
        let _ = std::fs::create_dir(folder);
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let file = options.custom_flags(libc::O_NOFOLLOW).open(&path).ok();
        if let Some(file) = &file {
            let began = Instant::now();
            while !has_line(file, line) && began.elapsed() < PREDECESSOR_PATIENCE {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Login { path, file, own: Mutex::default(), keeps }
    }

    /// Writes down that this process has put an object.
    pub fn record(&self, name: &ObjectName) {
        if let Some(mut file) = self.file.as_ref().filter(|_| self.keeps) {
            // In one write, so that lines of two processes do not mix. If it fails, the object just
            // cannot be taken back.
            let _ = file.write_all(format!("{name}\n").as_bytes());
        }
        lock(&self.own).names.insert(name.clone());
    }

    /// True if the run has put the object.
    pub fn has_put(&self, name: &ObjectName) -> bool {
        let mut own = lock(&self.own);
        if !own.names.contains(name) {
            self.read_on(&mut own);
        }
        own.names.contains(name)
    }

    /// Reads what other processes of the run have added.
    fn read_on(&self, own: &mut Own) {
        use std::os::unix::fs::FileExt;
        let Some(file) = &self.file else { return };
        let length = file.metadata().map_or(0, |metadata| metadata.len()).min(LIST_BYTES_MAX);
        let mut buffer = vec![0; 64 << 10];
        let mut line = Vec::new();
        let mut at = own.read;
        while at < length {
            let Ok(count @ 1..) = file.read_at(&mut buffer, at) else { break };
            at += count as u64;
            for byte in &buffer[..count] {
                if *byte != b'\n' {
                    line.push(*byte);
                    continue;
                }
                own.read += line.len() as u64 + 1;
                let name =
                    std::str::from_utf8(&line).ok().and_then(|it| ObjectName::parse(it).ok());
                own.names.extend(name);
                line.clear();
            }
        }
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        if self.file.is_some() && !self.keeps {
            // Nothing is in it; it was there for the lock.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Takes a line of the run: one byte of its file, for as long as it is open.
fn has_line(file: &File, line: u16) -> bool {
    let lock = libc::flock {
        // The numbers of libc are small.
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: libc::off_t::from(line),
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => true,
        Err(errno) => errno != nix::errno::Errno::EAGAIN && errno != nix::errno::Errno::EACCES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_owns_what_its_lines_have_put_and_nobody_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let name = |text: &str| ObjectName::parse(text).unwrap();
        let first = Login::enter(folder.path(), &[1; 32], 0, true);
        let second = Login::enter(folder.path(), &[1; 32], 1, true);
        let stranger = Login::enter(folder.path(), &[2; 32], 0, true);
        first.record(&name("leases/aa"));
        second.record(&name("points/bb"));
        for login in [&first, &second, &Login::enter(folder.path(), &[1; 32], 2, true)] {
            assert!(login.has_put(&name("leases/aa")) && login.has_put(&name("points/bb")));
            assert!(!login.has_put(&name("leases/aa.1")));
        }
        assert!(!stranger.has_put(&name("leases/aa")));
        drop((first, second));
        // The line comes again.
        assert!(Login::enter(folder.path(), &[1; 32], 0, true).has_put(&name("leases/aa")));
    }

    #[test]
    fn a_line_that_comes_again_waits_for_the_process_that_had_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = Login::enter(folder.path(), &[1; 32], 0, false);
        let waited = std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                let began = Instant::now();
                Login::enter(folder.path(), &[1; 32], 0, false);
                began.elapsed()
            });
            std::thread::sleep(Duration::from_millis(300));
            drop(first);
            second.join().unwrap()
        });
        assert!(waited >= Duration::from_millis(200), "{waited:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

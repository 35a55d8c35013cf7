//! All points as folders of disks, through FUSE: `/SERIES/TIME/DISK`, to be read by any program.
//!
//! `catalogue` knows which names there are; `system` answers the kernel.
//!
//! Invariants: nothing can be written; every byte handed out was verified; what cannot be read is
//! an error of that read alone, and is told to the monitor. The mount goes with the session.

mod catalogue;
mod system;

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::view::Vault;
use catalogue::Catalogue;
use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use rustix::mount::{UnmountFlags, unmount};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use system::System;

pub use catalogue::Restriction;

/// What is mounted, and for whom.
pub struct MountOptions {
    /// Which points are shown.
    pub restriction: Restriction,
    /// Other users may read, too.
    pub allows_other: bool,
    /// Threads that answer the kernel.
    pub threads: usize,
}

/// A mount that lasts until it is ended, or somebody unmounts it.
pub struct Mount {
    session: BackgroundSession,
    path: PathBuf,
}

/// How a mount ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nobody used it.
    Clean,
    /// It was in use: it is out of sight, and what is open in it cannot be read any more.
    Detached,
}

impl Mount {
    /// Mounts the points of a repository on an empty folder.
    ///
    /// # Errors
    /// `Target` if it is none, or not empty; `Failed` where FUSE cannot be used.
    pub fn new(
        repository: Repository,
        vault: Arc<Vault>,
        path: &Path,
        options: MountOptions,
        monitor: Arc<dyn Monitor + Send + Sync>,
    ) -> Result<Mount> {
        check_folder(path)?;
        let catalogue = Catalogue::new(repository, options.restriction, monitor.clone())?;
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::RO,
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::DefaultPermissions,
            MountOption::FSName("diskvault".into()),
            MountOption::Subtype("diskvault".into()),
        ];
        config.acl = if options.allows_other { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(options.threads);
        let system = System::new(catalogue, vault, monitor);
        let session = Session::new(system, path, &config).and_then(Session::spawn);
        let session = session.map_err(|cause| cannot_mount(path, options.allows_other, cause))?;
        // By whatever way it is unmounted later, this is its name.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        Ok(Mount { session, path })
    }

    /// True once somebody has unmounted it.
    pub fn is_over(&self) -> bool {
        self.session.guard.is_finished()
    }

    /// Unmounts it, by force if it is in use.
    ///
    /// # Errors
    /// `Failed` if it cannot be unmounted at all.
    pub fn end(self) -> Result<End> {
        let cannot = |cause| {
            let text = format!("cannot unmount {}", self.path.display());
            Error::io(ErrorKind::Failed, text, cause)
        };
        if self.is_over() {
            // The crate does not see that, and would unmount whatever is there by now.
            std::mem::forget(self.session);
            return Ok(End::Clean);
        }
        match self.session.umount_and_join() {
            Ok(()) => Ok(End::Clean),
            // Somebody was faster.
            Err(cause) if cause.kind() == io::ErrorKind::InvalidInput => Ok(End::Clean),
            Err(cause) if cause.kind() == io::ErrorKind::ResourceBusy => {
                unmount(&self.path, UnmountFlags::DETACH).map_err(|cause| cannot(cause.into()))?;
                Ok(End::Detached)
            }
            Err(cause) => Err(cannot(cause)),
        }
    }
}

fn check_folder(path: &Path) -> Result<()> {
    let name = path.display();
    let mut entries = std::fs::read_dir(path)
        .map_err(|cause| Error::io(ErrorKind::Target, format!("cannot mount on {name}"), cause))?;
    if entries.next().is_some() {
        let text = format!("cannot mount on {name}: it is not empty");
        return Err(Error::new(ErrorKind::Target, text));
    }
    Ok(())
}

fn cannot_mount(path: &Path, allows_other: bool, cause: io::Error) -> Error {
    let text = format!("cannot mount on {}", path.display());
    if !Path::new("/dev/fuse").exists() {
        let text = format!("{text}: this machine has no /dev/fuse");
        return Error::new(ErrorKind::Failed, text).hint("load the kernel module `fuse`");
    }
    if cause.kind() == io::ErrorKind::NotFound {
        let text = format!("{text}: there is no fusermount3");
        return Error::new(ErrorKind::Failed, text).hint("install fuse3, or mount as root");
    }
    let error = Error::io(ErrorKind::Failed, text, cause);
    if allows_other {
        return error.hint("--allow-other needs root, or user_allow_other in /etc/fuse.conf");
    }
    error
}

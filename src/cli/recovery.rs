//! Recovery keys and what else is written down once: into a private new file, or on the terminal.
//!
//! Invariant: a key is handed out, durably, before anything exists that it opens; it is taken back
//! only if surely nothing came of it.

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::storage::{Folder, Storage};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Where a recovery key is by now.
pub enum HandedOut {
    /// In a file that this run made.
    File(PathBuf),
    /// On the terminal.
    Terminal,
}

impl HandedOut {
    /// Writes the key to a new file.
    ///
    /// # Errors
    /// `Failed` if there is one or it cannot be made durable; then there is none.
    pub fn to_file(file: &Path, what: &str, key: &str) -> Result<HandedOut> {
        write_private(file, what, line_of(&[key, "\n"]).as_bytes())?;
        Ok(HandedOut::File(file.to_owned()))
    }

    /// Shows the key on the terminal itself, so that a redirected output does not keep it.
    ///
    /// # Errors
    /// `Failed` if there is no terminal to write to.
    pub fn to_terminal(key: &str) -> Result<HandedOut> {
        let cannot = |cause| Error::io(ErrorKind::Failed, "cannot show the recovery key", cause);
        let mut terminal = OpenOptions::new().write(true).open("/dev/tty").map_err(cannot)?;
        let text = line_of(&[
            "\nRecovery key: opens the repository when the password is lost. Write it down now:\n\n",
            "    ",
            key,
            "\n\n",
        ]);
        terminal.write_all(text.as_bytes()).map_err(cannot)?;
        Ok(HandedOut::Terminal)
    }

    /// Says what the key is worth after a failure, and removes one that is worth nothing.
    pub fn settle(self, is_void: bool, monitor: &dyn Monitor) {
        match (self, is_void) {
            (HandedOut::File(file), true) => {
                // Made a moment ago by this run, and good for nothing.
                let _ = std::fs::remove_file(file);
            }
            (HandedOut::File(file), false) => monitor.warn(&format!(
                "recovery key file {} stays: the key may count although this failed",
                file.display()
            )),
            (HandedOut::Terminal, true) => {
                monitor.warn("the recovery key shown above is void: no repository was made");
            }
            (HandedOut::Terminal, false) => {
                monitor.warn("the recovery key shown above may count although this failed");
            }
        }
    }
}

/// Joins the parts in one buffer that does not grow, so that no copy of a key stays behind, and
/// that is wiped; `format!` grows its buffer.
fn line_of(parts: &[&str]) -> Zeroizing<String> {
    let bytes = parts.iter().map(|part| part.len()).sum();
    let mut line = Zeroizing::new(String::with_capacity(bytes));
    parts.iter().for_each(|part| line.push_str(part));
    line
}

/// Writes a new file for this user only; it is on stable storage under its name, or not there.
///
/// # Errors
/// `Failed`, naming it as `what`.
pub fn write_private(file: &Path, what: &str, bytes: &[u8]) -> Result<()> {
    let cannot = |cause| {
        Error::io(ErrorKind::Failed, format!("cannot write {what}{}", file.display()), cause)
    };
    let mut opened =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(cannot)?;
    let written = opened
        .write_all(bytes)
        .and_then(|()| opened.sync_all())
        .and_then(|()| sync_folder_of(file));
    if written.is_err() {
        // Half a key helps nobody.
        let _ = std::fs::remove_file(file);
    }
    written.map_err(cannot)
}

fn sync_folder_of(file: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let synced = File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all());
    match synced {
        // The file itself is on stable storage. Some file systems of sticks and shares cannot
        // sync a folder, and a drop folder cannot be opened.
        Err(cause) if matches!(cause.kind(), InvalidInput | Unsupported | PermissionDenied) => {
            Ok(())
        }
        other => other,
    }
}

/// Tells whether a change that failed left a config behind: a config is written last, and with it
/// everything counts.
pub struct ConfigWatch<'a> {
    storage: &'a dyn Storage,
    before: Option<Vec<String>>,
}

impl<'a> ConfigWatch<'a> {
    /// Looks at what is there before the change.
    pub fn start(storage: &'a dyn Storage) -> ConfigWatch<'a> {
        ConfigWatch { storage, before: configs(storage) }
    }

    /// True if surely no config came since. Another program's config makes it false as well.
    pub fn is_unchanged(&self) -> bool {
        self.before.is_some() && self.before == configs(self.storage)
    }
}

fn configs(storage: &dyn Storage) -> Option<Vec<String>> {
    let listed = storage.list(Folder::Config).ok()?;
    Some(listed.into_iter().map(|entry| entry.name.leaf().to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::SystemEnvironment;
    use crate::repository::secrets::Passphrase;
    use crate::repository::{InitOptions, initialise};
    use crate::storage::memory::{Fault, FaultKind, MemoryStorage};
    use diskvault_format::key_slot::KdfCost;

    #[test]
    fn a_key_is_in_one_buffer_of_its_size() {
        let line = line_of(&["\n", "DVRK-0123", "\n"]);
        assert_eq!(*line, "\nDVRK-0123\n");
        assert_eq!(line.capacity(), line.len(), "it grew");
    }

    /// Whether `init` fails with the fault at that operation, whether the key is then void, and
    /// whether there is a config when the power is back.
    fn fail_init(at_operation: u64, kind: FaultKind) -> (bool, bool, bool) {
        let storage = MemoryStorage::new();
        let watch = ConfigWatch::start(&storage);
        storage.add_fault(Fault { at_operation, kind, once: true });
        let options = InitOptions {
            passphrase: &Passphrase::new(b"password".to_vec()),
            recovery: Some(&Passphrase::new(b"DVRK-0".to_vec())),
            chunk_bytes: None,
            pack_bytes: None,
            parity_per_mille: 0,
            cost: KdfCost::RECOVERY,
            host: "test",
        };
        let failed = initialise(&storage, &SystemEnvironment, &options).is_err();
        let is_void = watch.is_unchanged();
        storage.restore_power();
        let is_made = storage.snapshot().keys().any(|name| name.starts_with("config/"));
        (failed, is_void, is_made)
    }

    #[test]
    fn a_key_is_void_only_if_no_config_can_be_there() {
        let kinds =
            [FaultKind::Error, FaultKind::NoSpace, FaultKind::LostReply, FaultKind::PowerCut];
        for kind in kinds {
            let mut outcomes = Vec::new();
            for at_operation in 1.. {
                let (failed, is_void, is_made) = fail_init(at_operation, kind);
                if !failed {
                    break;
                }
                assert!(!(is_void && is_made), "{kind:?} at {at_operation}: the key opens it");
                outcomes.push(is_void);
            }
            assert!(outcomes.len() >= 3, "{kind:?} struck {} operations", outcomes.len());
            // The config is the last object: only its lost answer leaves a doubt.
            match kind {
                FaultKind::LostReply => {
                    assert_eq!(outcomes.iter().filter(|void| !**void).count(), 1)
                }
                FaultKind::PowerCut => assert!(outcomes.iter().all(|void| !void)),
                _ => assert!(outcomes.iter().all(|void| *void), "{kind:?}: {outcomes:?}"),
            }
        }
    }
}

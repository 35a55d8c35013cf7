//! What this host remembers of a repository, so that a rollback shows: the newest config, the
//! heads of each series, the copy it used, and the host's writer id.
//!
//! Invariants: it lives in the cache folder and is never needed to restore; it is replaced as a
//! whole, so a crash leaves the old or the new one; a memory that cannot be read is reported and
//! started anew, never trusted in part.

use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const FILE: &str = "memory.json";

/// The newest points of one series that this host saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeriesMemory {
    /// Greatest sequence number.
    pub sequence: u64,
    /// Ids of the heads, in hexadecimal.
    pub heads: Vec<String>,
    /// Heads that were gone, unexplained, when this host looked again; with the greatest sequence
    /// number it had seen by then.
    #[serde(default)]
    pub gone: Vec<(String, u64)>,
}

/// All that this host remembers of one repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMemory {
    /// Random id of this host's writer, in hexadecimal.
    #[serde(default)]
    pub writer: String,
    /// Leaf name of the newest config seen.
    #[serde(default)]
    pub config: String,
    /// Instance id of the copy used last, in hexadecimal.
    #[serde(default)]
    pub instance: String,
    /// What it saw of each series.
    #[serde(default)]
    pub series: BTreeMap<String, SeriesMemory>,
}

impl HostMemory {
    /// Reads the memory in `folder`; the text says why if it had to be started anew.
    pub fn load(folder: &Path) -> (HostMemory, Option<String>) {
        let path = folder.join(FILE);
        let problem = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(memory) => return (memory, None),
                Err(cause) => cause.to_string(),
            },
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                return (HostMemory::default(), None);
            }
            Err(cause) => cause.to_string(),
        };
        let text = format!("cannot read {}, starting it anew: {problem}", path.display());
        (HostMemory::default(), Some(text))
    }

    /// Replaces the memory in `folder`.
    ///
    /// # Errors
    /// Fails if the folder cannot be written.
    pub fn store(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let fail = |cause: io::Error| {
            Error::io(ErrorKind::Failed, format!("cannot write {}", path.display()), cause)
        };
        let mut text = serde_json::to_vec_pretty(self).map_err(|cause| {
            Error::new(ErrorKind::Failed, "cannot encode the host's memory").because(cause)
        })?;
        text.push(b'\n');
        let temporary: PathBuf = folder.join(format!("{FILE}.{}", std::process::id()));
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&temporary)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(fail)
    }
}

//! Prolonging the locks that keep objects from being deleted, where a storage has such.
//!
//! Invariant: only what a visible point needs is prolonged: a manifest without its `ok` is not, and
//! what runs out after a forget or a prune stays so.

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::storage::{Folder, ObjectName, Storage};
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Folders whose objects can be locked.
const FOLDERS: [Folder; 7] = [
    Folder::Config,
    Folder::Instance,
    Folder::Keys,
    Folder::Writers,
    Folder::Points,
    Folder::Packs,
    Folder::Parity,
];

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewal {
    /// Objects that are locked.
    pub locked: u64,
    /// Those of them whose lock was prolonged now.
    pub renewed: u64,
}

/// Prolongs all locks; `None` for a storage that locks nothing. What cannot be prolonged is told as
/// a warning.
///
/// # Errors
/// Fails if the storage cannot be listed, or on `Cancelled`.
pub fn renew_locks(storage: &dyn Storage, monitor: &dyn Monitor) -> Result<Option<Renewal>> {
    // Of a repository there is a config; whether that is locked tells of all.
    let configs = storage.list(Folder::Config)?;
    let at_once = match configs.first().map(|entry| storage.renew(&entry.name)) {
        None | Some(Ok(None)) => return Ok(None),
        Some(Ok(Some(is_renewed))) => u64::from(is_renewed),
        // It is told below, with all others.
        Some(Err(_)) => 0,
    };
    let names = names(storage)?;
    monitor.start("renewing locks", None);
    let (next, renewed, locked) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let failed: Mutex<(u64, Option<Error>)> = Mutex::new((0, None));
    std::thread::scope(|scope| {
        for _ in 0..storage.calls_at_once() {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if monitor.is_cancelled() {
                        return;
                    }
                    match storage.renew(name) {
                        Ok(outcome) => {
                            locked.fetch_add(u64::from(outcome.is_some()), Ordering::Relaxed);
                            renewed.fetch_add(u64::from(outcome == Some(true)), Ordering::Relaxed);
                        }
                        // Forgotten or pruned meanwhile.
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) => {
                            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                            failed.0 += 1;
                            failed.1.get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    monitor.finish();
    monitor.check_cancelled()?;
    let (count, first) = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = first {
        let text = error.full_text();
        monitor.warn(&format!("{count} locks were not renewed; the first: {text}"));
    }
    let (locked, renewed) = (locked.into_inner(), renewed.into_inner());
    Ok(Some(Renewal { locked, renewed: at_once + renewed }))
}

/// What is worth a lock.
fn names(storage: &dyn Storage) -> Result<Vec<ObjectName>> {
    let mut all = Vec::new();
    for folder in FOLDERS {
        let names: Vec<ObjectName> =
            storage.list(folder)?.into_iter().map(|entry| entry.name).collect();
        if folder != Folder::Points {
            all.extend(names);
            continue;
        }
        let stem = |name: &ObjectName| name.leaf().trim_end_matches(".ok").to_owned();
        let done: HashSet<String> =
            names.iter().filter(|name| name.leaf().ends_with(".ok")).map(stem).collect();
        all.extend(names.into_iter().filter(|name| done.contains(&stem(name))));
    }
    Ok(all)
}

//! The grain tables that were used last, of all extents of an image.
//!
//! Invariant: they take no more memory than their limit, or than two of them.

use crate::error::Result;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of tables that are kept: those of 128 GiB of a sparse disk, or of 4 GiB of an seSparse
/// delta.
const TABLES_BYTES: usize = 8 << 20;

/// The number of an extent, and where in its file the table is.
type Key = (usize, u64);

/// Tables by their place, the one used last at the end.
#[derive(Default)]
pub(super) struct Tables(Mutex<Vec<(Key, Arc<Vec<u8>>)>>);

impl Tables {
    /// The table of this place, which `read` reads if it is not here.
    ///
    /// # Errors
    /// What `read` returns.
    pub fn get(&self, key: Key, read: impl FnOnce() -> Result<Vec<u8>>) -> Result<Arc<Vec<u8>>> {
        let mut tables = self.lock();
        // From the end: a walk asks for the same one again and again.
        if let Some(found) = tables.iter().rposition(|(place, _)| *place == key) {
            let entry = tables.remove(found);
            let table = entry.1.clone();
            tables.push(entry);
            return Ok(table);
        }
        drop(tables);
        let table = Arc::new(read()?);
        let mut tables = self.lock();
        let mut bytes = table.len() + tables.iter().map(|(_, table)| table.len()).sum::<usize>();
        while bytes > TABLES_BYTES && tables.len() > 1 {
            bytes -= tables.remove(0).1.len();
        }
        tables.push((key, table.clone()));
        Ok(table)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Key, Arc<Vec<u8>>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

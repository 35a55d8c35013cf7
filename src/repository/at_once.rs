//! Many small calls to a storage at once: over a line that answers after a tenth of a second, a
//! thousand footers one after another take two minutes.
//!
//! Invariant: the results stand in the order of what was asked, and where a storage has no use for
//! more than two calls at once, as a folder of this machine, the calls are made one after another.

use crate::error::Result;
use crate::storage::Storage;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Fewer calls at once than this are not worth threads.
const CALLS_MIN: usize = 3;

/// Calls `call` for each item, and gives the results in the order of the items. `look` is asked
/// before each whether to go on.
///
/// # Errors
/// The first thing that `look` says.
pub fn at_once<T: Sync, R: Send>(
    storage: &dyn Storage,
    items: &[T],
    look: &(dyn Fn() -> Result<()> + Sync),
    call: impl Fn(&T) -> R + Sync,
) -> Result<Vec<R>> {
    let threads = storage.calls_at_once().min(items.len());
    if threads < CALLS_MIN {
        return items.iter().map(|item| look().map(|()| call(item))).collect();
    }
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<R>>> = Mutex::new((0..items.len()).map(|_| None).collect());
    let stopped = Mutex::new(None);
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(number) else { return };
            if let Err(error) = look() {
                stopped.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                // The others find nothing more to do.
                next.store(items.len(), Ordering::Relaxed);
                return;
            }
            let result = call(item);
            results.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    match stopped.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => {
            let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
            Ok(results.into_iter().flatten().collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::storage::memory::MemoryStorage;
    use std::sync::Barrier;

    #[test]
    fn calls_run_at_once_and_answers_keep_their_order() {
        let storage = MemoryStorage::new();
        storage.set_calls_at_once(4);
        let items: Vec<usize> = (0..64).collect();
        // Nobody gets past it unless four are there.
        let gate = Barrier::new(4);
        let results = at_once(&storage, &items, &|| Ok(()), |item| {
            gate.wait();
            item * 2
        });
        assert_eq!(results.unwrap(), (0..64).map(|item| item * 2).collect::<Vec<_>>());
        let calls = AtomicUsize::new(0);
        let look = || match calls.load(Ordering::Relaxed) {
            0..=9 => Ok(()),
            _ => Err(Error::new(ErrorKind::Cancelled, "interrupted")),
        };
        let stopped = at_once(&storage, &items, &look, |_| calls.fetch_add(1, Ordering::Relaxed));
        assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Cancelled);
        // Each thread may have been past its look.
        assert!(calls.into_inner() < 14);
    }
}

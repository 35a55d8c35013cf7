//! Many small calls to a storage at once: over a line that answers after a tenth of a second, a
//! thousand footers one after another take two minutes.
//!
//! Invariant: the results stand in the order of what was asked, and where a storage has no use for
//! more than two calls at once, as a folder of this machine, the calls are made one after another.

use crate::error::Result;
use crate::storage::Storage;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// A storage that has a use for fewer calls at once is a folder of this machine.
const CALLS_MIN: usize = 3;

/// True for a storage where a round trip costs more than a call too many.
pub fn is_far(storage: &dyn Storage) -> bool {
    storage.calls_at_once() >= CALLS_MIN
}

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
    if !is_far(storage) || threads < 2 {
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

/// Does two things of which neither needs the other: at once, or where a storage has no use for
/// that, `first` first.
pub fn both<A, B: Send>(
    storage: &dyn Storage,
    first: impl FnOnce() -> A,
    second: impl FnOnce() -> B + Send,
) -> (A, B) {
    if !is_far(storage) {
        let first = first();
        return (first, second());
    }
    std::thread::scope(|scope| {
        let second = scope.spawn(second);
        let first = first();
        (first, second.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::storage::memory::MemoryStorage;
    use std::sync::Barrier;

    #[test]
    fn two_things_are_done_at_once_where_that_is_of_use() {
        let storage = MemoryStorage::new();
        let order = Mutex::new(Vec::new());
        let note = |name| order.lock().unwrap().push(name);
        assert_eq!(both(&storage, || note("first"), || note("second")), ((), ()));
        assert_eq!(order.into_inner().unwrap(), ["first", "second"]);
        storage.set_calls_at_once(3);
        // Neither gets past it alone.
        let gate = Barrier::new(2);
        let pass = || gate.wait().is_leader();
        let (one, other) = both(&storage, pass, pass);
        assert!(one != other);
    }

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

//! A queue that several threads wait for together with their sockets.
//!
//! Invariant: the semaphore counts exactly what is in the channel, and one more for each receiver once
//! the sender is gone; so who took one from it finds something, or the end.

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{read, write};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Puts things in.
pub(super) struct Sender<T> {
    things: crossbeam_channel::Sender<T>,
    count: Arc<OwnedFd>,
}

/// Takes things out; each goes to one of the receivers.
pub(super) struct Receiver<T> {
    things: crossbeam_channel::Receiver<T>,
    count: Arc<OwnedFd>,
}

// Derived, it would want things that can be cloned.
impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Receiver<T> {
        Receiver { things: self.things.clone(), count: self.count.clone() }
    }
}

/// What was in a queue.
pub(super) enum Taken<T> {
    /// A thing.
    One(T),
    /// Nothing now.
    None,
    /// Nothing ever again.
    Over,
}

/// Receivers that learn of the end.
const RECEIVERS_MAX: u64 = 16;

/// A queue.
///
/// # Errors
/// If the system has no descriptors.
pub(super) fn queue<T>() -> io::Result<(Sender<T>, Receiver<T>)> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE | EventfdFlags::NONBLOCK;
    let count = Arc::new(eventfd(0, flags)?);
    let (things, take) = crossbeam_channel::unbounded();
    Ok((Sender { things, count: count.clone() }, Receiver { things: take, count }))
}

impl<T> Sender<T> {
    /// Puts one in. If no receiver is left, it is dropped.
    pub fn send(&self, thing: T) {
        if self.things.send(thing).is_ok() {
            // The count ends at 2^64: it cannot be full.
            let _ = write(&self.count, &1_u64.to_ne_bytes());
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // In front of the channel's end, whoever is woken asks again until he sees it.
        let _ = write(&self.count, &RECEIVERS_MAX.to_ne_bytes());
    }
}

impl<T> Receiver<T> {
    /// Takes one, without waiting.
    pub fn try_take(&self) -> Taken<T> {
        if read(&self.count, &mut [0; 8]).is_err() {
            return Taken::None;
        }
        // The sender puts things in before it counts them, and ends right after it has counted that.
        self.things.recv().map_or(Taken::Over, Taken::One)
    }

    /// Waits for one; nothing at the end.
    pub fn wait(&self) -> Option<T> {
        loop {
            match self.try_take() {
                Taken::One(thing) => return Some(thing),
                Taken::Over => return None,
                // An interrupted wait is as good as a look.
                Taken::None => drop(poll(&mut [PollFd::new(self, PollFlags::IN)], None)),
            }
        }
    }
}

impl<T> AsFd for Receiver<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.count.as_fd()
    }
}

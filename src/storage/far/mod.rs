//! A repository at the other end of a line on which this program runs at both ends: `ssh://`, with
//! `diskvault serve --stdio` over there. The protocol stands in docs/far-protocol.md, and why it is
//! our own in docs/adr/0018-far-storage-over-ssh.md.
//!
//! Invariant: what a storage promises holds over the line as well. The far end never replaces and
//! makes durable before it answers; a request without an answer is made again, and is then done once.

mod client;
mod connection;
mod hello;
mod link;
pub mod login;
mod message;
mod outbox;
pub mod permissions;
pub mod process;
mod server;

pub use client::{FarOptions, FarStorage};
pub(super) use connection::{Cut, Paced};
pub use connection::{Dialer, Line, LineControl};
pub use hello::Purpose;
pub(super) use message::printable;
pub(super) use outbox::{Outbox, Pushed};
pub use server::{Notice, ServerOptions, serve};

/// Bytes of a piece of an object on the line.
const PIECE_BYTES: usize = 64 << 10;

/// Requests that one line carries at the same time.
const REQUESTS_MAX: usize = 64;

/// The locked value, also after a panic elsewhere: each change under these locks is one step.
pub(super) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

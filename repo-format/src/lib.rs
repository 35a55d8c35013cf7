//! What a diskvault repository stores, byte by byte.
//!
//! This crate does no I/O and has no clock and no randomness of its own: it turns values into
//! bytes and bytes into values, seals and opens them, and refuses everything that the
//! specification in `repo-format/spec` does not allow. Each file implements one page of it and
//! names the reject rules of that page (`P-7`) where it applies them; `vectors/` holds files that
//! must be read or refused.
//!
//! Invariants: lengths are checked before anything is allocated; records are decoded only after
//! they were authenticated; no input makes this crate panic.

pub mod allocation;
pub mod asymmetric;
pub mod config;
pub mod crypto;
pub mod cursor;
pub mod delta;
pub mod digest;
pub mod error;
pub mod footer;
pub mod id;
pub mod instance;
pub mod key_slot;
pub mod limits;
pub mod manifest;
pub mod map;
pub mod names;
pub mod pack;
pub mod parity;
pub mod record;
pub mod sealed;
pub mod segment;
pub mod small;
pub mod splice;
pub mod stream_map;
pub mod tracking;
pub mod writers;

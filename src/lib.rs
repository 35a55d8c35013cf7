//! diskvault keeps the history of virtual-machine disks.
//!
//! Disk images go into one deduplicated, encrypted, content-addressed repository; every backup
//! leaves a complete restore point; any point comes back directly. `docs/architecture.md` is the
//! map of this crate; `repo-format/spec` says what is stored.
//!
//! Floors, imports only going down: [`error`], [`monitor`], [`environment`]; then [`storage`],
//! [`index`], [`chunking`], [`source`], [`target`], none of which knows another; then
//! [`repository`]; then one module for each verb; then the command line.

pub mod backup;
pub mod benchmark;
pub mod boot;
pub mod certify;
pub mod check;
pub mod chunking;
pub mod cli;
pub mod copy;
pub mod delta;
pub mod diff;
pub mod digest;
pub mod environment;
pub mod error;
pub mod files;
pub mod index;
pub mod monitor;
pub mod mount;
pub mod prune;
pub mod qemu_locks;
pub mod repair;
pub mod repository;
pub mod restore;
pub mod retention;
pub mod serve;
pub mod source;
pub mod stats;
pub mod storage;
pub mod sync;
pub mod target;
pub mod view;

/// Program name and version, as manifests and leases record it.
pub const PROGRAM: &str = concat!("diskvault ", env!("CARGO_PKG_VERSION"));

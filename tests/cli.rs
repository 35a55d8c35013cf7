//! The program as a user meets it: the real binary, its exit codes, what it prints and what it
//! leaves behind. One module for each area; `support` makes repositories and runs the binary.
//!
//! Every run is also held to what must hold always: no panic, no password and no raw escape
//! sequence in any output.

#![allow(clippy::unwrap_used, reason = "a test may stop where it fails")]
#![allow(clippy::print_stderr, reason = "a test says what it skipped")]

#[path = "cli/address.rs"]
mod address;
#[path = "cli/backup.rs"]
mod backup;
#[path = "cli/benchmark.rs"]
mod benchmark;
#[path = "cli/cache.rs"]
mod cache;
#[path = "cli/clones.rs"]
mod clones;
#[path = "cli/copy.rs"]
mod copy;
#[path = "cli/diff.rs"]
mod diff;
#[path = "cli/domains.rs"]
mod domains;
#[path = "cli/durability.rs"]
mod durability;
#[path = "cli/far.rs"]
mod far;
#[path = "support/far.rs"]
mod far_support;
#[path = "cli/forget.rs"]
mod forget;
#[path = "cli/full.rs"]
mod full;
#[path = "cli/hinted_series.rs"]
mod hinted_series;
#[path = "cli/hints.rs"]
mod hints;
#[path = "cli/init.rs"]
mod init;
#[path = "cli/interrupt.rs"]
mod interrupt;
#[path = "cli/key.rs"]
mod key;
#[path = "cli/machines.rs"]
mod machines;
#[path = "cli/memory.rs"]
mod memory;
#[path = "cli/nbd.rs"]
mod nbd;
#[path = "cli/no_cache.rs"]
mod no_cache;
#[path = "cli/output.rs"]
mod output;
#[path = "cli/ova.rs"]
mod ova;
#[path = "support/ova.rs"]
mod ova_made;
#[path = "cli/password.rs"]
mod password;
#[path = "cli/prune.rs"]
mod prune;
#[path = "cli/repair.rs"]
mod repair;
#[path = "cli/restore.rs"]
mod restore;
#[path = "cli/s3.rs"]
mod s3;
#[path = "s3/proxy.rs"]
#[allow(dead_code, reason = "only some of its faults are of use here")]
mod s3_proxy;
#[path = "support/s3.rs"]
mod s3_server;
#[path = "cli/sources.rs"]
mod sources;
#[path = "cli/statistics.rs"]
mod statistics;
#[path = "cli/stats.rs"]
mod stats;
#[path = "cli/support.rs"]
mod support;
#[path = "cli/sync.rs"]
mod sync;
#[path = "cli/takeover.rs"]
mod takeover;
#[path = "cli/terminal.rs"]
mod terminal;
#[path = "cli/write_only.rs"]
mod write_only;

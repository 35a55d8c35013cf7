//! A deterministic simulation of the real engine over the storage in memory: docs/testing.md says
//! what it does and how to run it.

pub mod actions;
pub mod chance;
pub mod director;
pub mod faults;
pub mod histories;
pub mod quiet;
pub mod stage;
pub mod world;
pub mod wrap;

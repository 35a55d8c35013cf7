//! The difference between two points of a disk as one file (repo-format/spec/45-delta.md): `make` writes
//! it out of a repository, `apply` makes the second disk of the first without one.
//!
//! Invariant: whoever applies a delta ends with the second disk, byte for byte by its digest, or is
//! told; nothing is written to a disk that is not the first one.

pub mod apply;
pub mod make;
mod reader;

//! The vectors, a file for each area: what is wrong with each and why.

mod clear;
mod config;
mod delta;
mod key_slot;
mod manifest;
mod map;
mod pack;
mod parity;
mod segment;
mod small;
mod splice;
mod stream_map;
mod writers;

use super::form::Vector;
use super::{Result, Set, fixed};

/// Adds every vector.
pub fn all(set: &mut Set) -> Result<()> {
    config::add(set);
    clear::add(set)?;
    key_slot::add(set)?;
    segment::add(set);
    splice::add(set);
    pack::add(set)?;
    parity::add(set);
    delta::add(set)?;
    small::add(set)?;
    manifest::add(set)?;
    map::add(set);
    stream_map::add(set);
    writers::add(set)?;
    Ok(())
}

/// Gives a vector the fixed master key and repository.
fn keyed(vector: Vector) -> Vector {
    vector.with_bytes("master", &fixed::MASTER).with_bytes("repository", &fixed::REPOSITORY.0)
}

/// The same for a page that is read: a page has no use for the keys before it is.
fn keyed_if_ok(vector: Vector) -> Vector {
    if vector.expect() == "ok" { keyed(vector) } else { vector }
}

/// A copy of `bytes`, changed.
fn changed(bytes: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut copy = bytes.to_vec();
    change(&mut copy);
    copy
}

/// Writes `value` at `offset`.
fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

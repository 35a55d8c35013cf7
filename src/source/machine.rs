//! Running machines, and files, whose disks are held still for the time of a backup.
//!
//! Invariants: until [`Frozen::keep`] everything that a later backup needs is as it was before; what was
//! not kept is taken back.

use crate::error::Result;
use std::path::PathBuf;

/// Names of dirty bitmaps, which lead to points; the backup knows what they mean.
pub trait Marks {
    /// The name of the bitmap for a disk that begins now.
    fn begin(&self, disk: &str) -> String;

    /// How new the point is that a bitmap of a disk leads to; nothing if there is no such point with such a
    /// disk.
    fn rank(&self, disk: &str, name: &str) -> Option<u64>;

    /// True for a bitmap of this disk that a backup like this one made, whether its point is there or
    /// not.
    fn is_ours(&self, disk: &str, name: &str) -> bool;
}

/// A disk as it was at the instant at which its machine was frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrozenDisk {
    /// Its name in the machine.
    pub name: String,
    /// The NBD address, or the path, at which it is read.
    pub address: String,
    /// The bitmap since which changes are told, and the name that this has at the address.
    pub since: Option<Since>,
    /// True if its bitmaps outlive the machine, so that there should be one.
    pub keeps_bitmaps: bool,
}

/// From when on changes are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Since {
    /// The mark, as [`Marks::begin`] named it then.
    pub mark: String,
    /// Who says what has changed since.
    pub told: Told,
}

/// Who says what has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The dirty bitmap of this name at the address.
    Bitmap(String),
    /// The clone that was read then, beside the one that is read now.
    Clone(PathBuf),
}

/// What belongs to a machine beside its disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Companion {
    /// Its name in the point.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A machine whose disks are held still.
pub trait Frozen {
    /// Its disks, all of one instant.
    fn disks(&self) -> &[FrozenDisk];

    /// What belongs to it beside them.
    fn companions(&self) -> &[Companion] {
        &[]
    }

    /// Looks whether all disks are held still yet, before a point is made of what was read; what nobody
    /// else can let go of is.
    ///
    /// # Errors
    /// `Source` if somebody or something has let go of one: what was read of it since is newer.
    fn check(&mut self) -> Result<()> {
        Ok(())
    }

    /// Ends the backup after its point is durable: changes are told from this instant on.
    ///
    /// # Errors
    /// `Source` if the machine does not do as it is told; the next backup may be a full one then.
    fn keep(&mut self) -> Result<()>;

    /// Ends the backup without a point: changes are told from the same instants on as before.
    ///
    /// # Errors
    /// `Source` if something may be left in the machine; the next backup looks for it.
    fn release(&mut self) -> Result<()>;
}

/// What another program says, on one line and without control characters; its quotes stay.
pub(super) fn as_said(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for letter in text.trim().chars() {
        match letter {
            '\'' | '"' | '\\' => line.push(letter),
            _ => line.extend(letter.escape_debug()),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_is_one_line_with_its_quotes() {
        assert_eq!(as_said(" can't find \"x\\y\"\n"), "can't find \"x\\y\"");
        assert_eq!(as_said("a\nb\u{1b}[1m"), "a\\nb\\u{1b}[1m");
    }
}

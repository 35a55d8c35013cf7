//! Files out of the disks of points, without mounting anything: `ls`, `cp` and `find`.
//!
//! `volume` finds the file systems of a disk and is what reads one; `tree` walks one; `copy` and
//! `archive` bring files out.
//!
//! Invariants: a disk is the input of a stranger, and no kernel looks at it. Whatever it holds, an
//! operation ends, in bounded memory, with what is there or an error; a panic in a crate that
//! reads a file system is such an error. Nothing is written outside of the target folder.

mod archive;
mod copy;
mod disk;
mod extended;
mod fat;
mod folder;
mod glob;
mod guard;
mod ntfs;
mod probe;
mod reparse;
mod tree;
mod volume;
mod window;

pub use archive::archive;
pub use copy::{CopyOptions, CopyReport, copy_out};
pub use disk::ViewDisk;
pub use glob::Glob;
pub use tree::{At, Find, Go, Resolved, Step, find, resolve, walk};
pub use volume::{DiskContent, Entry, Listing, Place, Volume};

use std::fmt;

/// What an entry of a folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, a pipe or a socket: by the letter that `ls` has for it.
    Special(char),
}

impl Kind {
    /// `file`, `directory`, `symlink`, or `special`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::File => "file",
            Kind::Folder => "directory",
            Kind::Link => "symlink",
            Kind::Special(_) => "special",
        }
    }

    /// As `ls -l` begins a line.
    pub fn letter(self) -> char {
        match self {
            Kind::File => '-',
            Kind::Folder => 'd',
            Kind::Link => 'l',
            Kind::Special(letter) => letter,
        }
    }
}

/// What a file system that knows owners says about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Permissions, set-id bits and the sticky bit: below 0o10000.
    pub mode: u32,
    /// User and group.
    pub ids: (u32, u32),
}

/// What a file system says about an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What it is.
    pub kind: Kind,
    /// Bytes of a file's content; of others whatever the file system has there.
    pub bytes: u64,
    /// When its content was last changed: seconds and nanoseconds since 1970. FAT has no time
    /// zone; its times count as UTC.
    pub modified: (i64, u32),
    /// FAT and NTFS have nothing that fits.
    pub owner: Option<Owner>,
}

/// A name or path as it is stored: bytes, mostly UTF-8. A name of NTFS or FAT with half a surrogate
/// pair has that in three bytes, as UTF-8 would be without its rules.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(pub Vec<u8>);

impl Name {
    /// True for what can be the name of one file in a folder.
    pub fn is_safe(&self) -> bool {
        let name = &self.0[..];
        !name.is_empty()
            && name != b"."
            && name != b".."
            && !name.contains(&b'/')
            && !name.contains(&0)
    }

    /// The path of `name` in the folder of this path.
    #[must_use]
    pub fn join(&self, name: &Name) -> Name {
        let mut path = self.0.clone();
        if !path.is_empty() && !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(&name.0);
        Name(path)
    }
}

/// For people and their terminals: control characters and what is no UTF-8 are escaped.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                if character.is_control() || character == '\\' {
                    write!(f, "{}", character.escape_default())?;
                } else {
                    write!(f, "{character}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

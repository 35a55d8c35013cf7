//! The one error type of the library, and what each kind means to a caller.
//!
//! Text is lower case, verb first, then the object and its id, then the cause:
//! `cannot open pack 3fa9...: authentication failed (rule P-7)`. The cause stands either in
//! the message or in `source()`, never in both.

use std::error::Error as StdError;
use std::fmt;
use std::io;

/// What a caller can do about an error. Each kind has one exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Something failed that has no kind of its own.
    Failed,
    /// The request contradicts itself or names something that cannot be.
    Usage,
    /// The named object, point or disk does not exist.
    NotFound,
    /// The name is already taken and nothing is ever replaced.
    AlreadyExists,
    /// A source could not be opened or read.
    Source,
    /// It was done, but some of a source could not be read.
    Unreadable,
    /// A target could not be opened or written.
    Target,
    /// The storage refused or failed an operation.
    Storage,
    /// No space is left where something had to be written.
    NoSpace,
    /// There is no repository at the given place.
    NoRepository,
    /// No key slot opens with the given secret.
    WrongKey,
    /// The repository needs a newer program.
    Newer,
    /// Stored bytes are damaged, missing or not what they claim to be.
    Damage,
    /// Stored by a writer that is not listed, or where it may not write: it counts for nothing.
    Unlisted,
    /// A point is pinned, so it stays.
    Pinned,
    /// The lease of a running backup was removed by somebody else.
    Fenced,
    /// The user interrupted the work.
    Cancelled,
}

impl ErrorKind {
    /// True for what is wrong with what is stored, not with the way to it: damaged, gone, or newer
    /// than this program.
    pub const fn is_finding(self) -> bool {
        matches!(
            self,
            ErrorKind::Damage | ErrorKind::Unlisted | ErrorKind::NotFound | ErrorKind::Newer
        )
    }

    /// The process exit code for this kind; the table is in docs/cli.md.
    pub const fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Usage => 2,
            ErrorKind::Unreadable => 3,
            ErrorKind::Damage | ErrorKind::Unlisted => 5,
            ErrorKind::NoSpace => 6,
            ErrorKind::NoRepository => 10,
            ErrorKind::Fenced => 11,
            ErrorKind::WrongKey => 12,
            ErrorKind::Newer => 13,
            ErrorKind::Cancelled => 130,
            _ => 1,
        }
    }
}

/// An error with its kind, its message, an optional cause and at most one hint that works.
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result type of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Makes an error whose message says everything.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), hint: None, source: None }
    }

    /// Makes an error from a failed system call; a full disk becomes [`ErrorKind::NoSpace`]
    /// whatever `kind` says.
    pub fn io(kind: ErrorKind, message: impl Into<String>, cause: io::Error) -> Self {
        let kind = match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => kind,
        };
        Error::new(kind, message).because(cause)
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// Adds one action that helps.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The hint, if there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The message and all causes, joined by colons, for one line of output.
    pub fn full_text(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.full_text())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_always_no_space() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = Error::io(ErrorKind::Storage, "cannot write pack 12ab", full);
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(error.kind().exit_code(), 6);
    }

    #[test]
    fn the_cause_is_printed_once() {
        let cause = io::Error::other("device gone");
        let error = Error::io(ErrorKind::Source, "cannot read disk.raw", cause);
        assert_eq!(error.full_text(), "cannot read disk.raw: device gone");
        assert_eq!(error.to_string(), "cannot read disk.raw");
    }
}

//! What can go wrong with a connection.

use std::io;

/// Why a connection is of no use any more.
#[derive(Debug)]
pub enum Trouble {
    /// The server went away or is silent: another connection may help.
    Gone(io::Error),
    /// It said what the protocol does not allow.
    Wrong(String),
    /// It refused, and a hint for the user.
    Refused(String, Option<&'static str>),
}

impl From<io::Error> for Trouble {
    fn from(cause: io::Error) -> Trouble {
        Trouble::Gone(cause)
    }
}

pub(super) type Outcome<T> = Result<T, Trouble>;

pub(super) fn wrong<T>(text: impl Into<String>) -> Outcome<T> {
    Err(Trouble::Wrong(text.into()))
}

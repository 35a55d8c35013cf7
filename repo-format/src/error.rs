//! Why bytes are refused: the class of the fault, the rule of the specification, the detail.

use crate::limits::FORMAT_VERSION_MIN;
use std::fmt;

/// The class of a fault, which decides what a program does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The bytes do not follow the layout.
    Malformed,
    /// An authenticator or a hash does not fit.
    Unauthentic,
    /// The layout or a feature is newer than this program.
    Newer,
    /// A number is beyond the table of limits.
    Limit,
}

/// A refusal, with the rule that demands it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatError {
    /// The class of the fault.
    pub fault: Fault,
    /// The rule of the specification, such as `P-7`.
    pub rule: &'static str,
    /// What is wrong, in lower case without a final period.
    pub detail: String,
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, FormatError>;

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (rule {})", self.detail, self.rule)
    }
}

impl std::error::Error for FormatError {}

/// A refusal for a layout fault.
pub fn malformed(rule: &'static str, detail: impl Into<String>) -> FormatError {
    FormatError { fault: Fault::Malformed, rule, detail: detail.into() }
}

/// A refusal for a failed authenticator.
pub fn unauthentic(rule: &'static str, detail: impl Into<String>) -> FormatError {
    FormatError { fault: Fault::Unauthentic, rule, detail: detail.into() }
}

/// A refusal of something from a newer program.
pub fn newer(rule: &'static str, detail: impl Into<String>) -> FormatError {
    FormatError { fault: Fault::Newer, rule, detail: detail.into() }
}

/// Refuses a format version that is newer than `newest`, or older than any that was released.
///
/// # Errors
/// A refusal of something newer, or of something malformed, under `rule`.
pub fn check_version(rule: &'static str, newest: u16, version: u16) -> Result<()> {
    if version > newest {
        return Err(newer(rule, format!("has format version {version}")));
    }
    if version < FORMAT_VERSION_MIN {
        return Err(malformed(
            rule,
            format!("has format version {version}, which was never released"),
        ));
    }
    Ok(())
}

/// A refusal of a number beyond its limit.
pub fn limit(rule: &'static str, what: &str, most: u64, found: u64) -> FormatError {
    let detail = format!("{what} is beyond its limit: expected at most {most}, found {found}");
    FormatError { fault: Fault::Limit, rule, detail }
}

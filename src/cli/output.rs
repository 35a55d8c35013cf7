//! Printing results to standard output and errors to standard error.
//!
//! Invariant: text from the repository or from file names is escaped before a terminal sees it.

use crate::error::{Error, ErrorKind, Result};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, stat};
use serde_json::{Value, json};
use std::io::{self, Write};

/// Writes one line to standard output.
///
/// # Errors
/// `Failed` if nobody reads it.
pub fn line(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{text}").and_then(|()| output.flush()).map_err(cannot_write)
}

/// Writes one JSON value on one line to standard output.
///
/// # Errors
/// As [`line`].
pub fn json_line(value: &Value) -> Result<()> {
    line(&value.to_string())
}

/// Many lines to standard output, written together.
pub struct Lines(io::BufWriter<io::Stdout>);

impl Lines {
    /// Begins.
    pub fn new() -> Lines {
        Lines(io::BufWriter::with_capacity(64 << 10, io::stdout()))
    }

    /// Adds a line.
    ///
    /// # Errors
    /// As [`line`].
    pub fn line(&mut self, text: &str) -> Result<()> {
        writeln!(self.0, "{text}").map_err(cannot_write)
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// As [`line`].
    pub fn finish(mut self) -> Result<()> {
        self.0.flush().map_err(cannot_write)
    }
}

/// The error for a standard output that takes nothing.
pub fn cannot_write(cause: io::Error) -> Error {
    Error::io(ErrorKind::Failed, "cannot write to standard output", cause)
}

/// For commands whose result is the bytes: refuses a standard output that was closed when the
/// program started. The standard library has opened `/dev/null` in its place by then, for reading
/// and writing, and everything written would be lost without an error. A shell opens `/dev/null`
/// for writing only, and that is taken.
///
/// # Errors
/// `Failed`.
pub fn refuse_closed_output() -> Result<()> {
    let output = io::stdout();
    let cannot = |errno: rustix::io::Errno| cannot_write(errno.into());
    let flags = fcntl_getfl(&output).map_err(cannot)?;
    let found = fstat(&output).map_err(cannot)?;
    let is_null = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice
        && stat("/dev/null").is_ok_and(|null| null.st_rdev == found.st_rdev);
    if is_null && flags & OFlags::RWMODE == OFlags::RDWR {
        let text = "cannot write to standard output: it is closed";
        let hint = "to throw the bytes away, open /dev/null for writing only, as `>/dev/null` does";
        return Err(Error::new(ErrorKind::Failed, text).hint(hint));
    }
    Ok(())
}

/// A listing whose reader has gone, as in `list | head`, has done its work.
pub fn ignore_broken_pipe(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if is_broken_pipe(&error) => Ok(()),
        other => other,
    }
}

fn is_broken_pipe(error: &Error) -> bool {
    std::error::Error::source(error)
        .and_then(|cause| cause.downcast_ref::<io::Error>())
        .is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes an error to standard error, as one line and at most one hint, or as JSON.
pub fn print_error(error: &Error, json: bool) {
    let mut output = io::stderr().lock();
    let text = escape(&error.full_text());
    // If standard error is gone too, the exit code is all that is left.
    let _ = if json {
        let code = error.kind().exit_code();
        writeln!(output, "{}", json!({"message_type": "exit_error", "code": code, "message": text}))
    } else {
        let hint = error.hint_text().map(|hint| format!("\nhint: {}", escape(hint)));
        writeln!(output, "diskvault: {text}{}", hint.unwrap_or_default())
    };
}

/// Writes a line to standard error.
pub fn remark(text: &str) {
    // Remarks are for people; nobody there is no failure.
    let _ = writeln!(io::stderr().lock(), "{}", escape(text));
}

/// Makes control characters visible, so that no name can drive a terminal.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            escaped.extend(character.escape_debug());
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// Prints rows in columns; the first row is the heading.
///
/// # Errors
/// As [`line`].
pub fn table(rows: &[Vec<String>]) -> Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut output = io::stdout().lock();
    for row in rows {
        let mut text = String::new();
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            let pad = widths[column] - cell.chars().count() + 2;
            text.extend(std::iter::repeat_n(' ', pad));
        }
        writeln!(output, "{}", text.trim_end()).map_err(cannot_write)?;
    }
    output.flush().map_err(cannot_write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_become_visible() {
        assert_eq!(escape("a\x1b[31mb\nc"), "a\\u{1b}[31mb\\nc");
        assert_eq!(escape("grün 日本"), "grün 日本");
    }
}

//! The QEMU guest agent: file systems that are brought to rest for the instant of a backup.
//!
//! Invariant: who froze thaws, also if the backup fails.

use crate::error::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Windows gives up a freeze after 60 s by itself, and so do databases before that.
const ANSWER: Duration = Duration::from_secs(60);
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Lines that earlier clients may have left unread.
const LINES_MAX: u32 = 1000;

/// A guest whose file systems are at rest until this is dropped.
pub struct Rest {
    stream: BufReader<UnixStream>,
    is_frozen: bool,
}

impl Rest {
    /// Brings all file systems of a guest to rest: how many.
    ///
    /// # Errors
    /// `Source` if no agent answers, or it cannot.
    pub fn begin(path: &Path) -> Result<(Rest, u64)> {
        let cannot = format!("cannot freeze the guest by its agent at {}", path.display());
        let failed = |cause: io::Error| match cause.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                Error::new(ErrorKind::Source, format!("{cannot}: it does not answer"))
            }
            _ => Error::io(ErrorKind::Source, cannot.clone(), cause),
        };
        let socket = UnixStream::connect(path).map_err(failed)?;
        socket.set_read_timeout(Some(ANSWER)).map_err(failed)?;
        let mut rest = Rest { stream: BufReader::new(socket), is_frozen: false };
        // What an earlier client has left unread ends with the answer to this.
        let number = u64::from(std::process::id()) << 16 | 0x5ba1;
        rest.send("guest-sync", json!({"id": number})).map_err(failed)?;
        let mut lines = 0;
        while rest.line().map_err(failed)?["return"] != number {
            lines += 1;
            if lines == LINES_MAX {
                return Err(Error::new(
                    ErrorKind::Source,
                    format!("{cannot}: it says other things"),
                ));
            }
        }
        rest.send("guest-fsfreeze-freeze", json!({})).map_err(failed)?;
        // It may have frozen some when it does not answer in time.
        rest.is_frozen = true;
        let answer = rest.line().map_err(failed)?;
        if let Some(text) = answer["error"]["desc"].as_str() {
            let text = format!("{cannot}: {}", text.escape_debug());
            return Err(Error::new(ErrorKind::Source, text));
        }
        Ok((rest, answer["return"].as_u64().unwrap_or(0)))
    }

    /// Ends the rest.
    ///
    /// # Errors
    /// `Source` if the guest may be frozen still.
    pub fn end(mut self) -> Result<()> {
        self.thaw().map_err(|cause| {
            let hint = "thaw it with guest-fsfreeze-thaw at once";
            Error::io(ErrorKind::Source, "cannot thaw the guest", cause).hint(hint)
        })
    }

    fn thaw(&mut self) -> io::Result<()> {
        self.is_frozen = false;
        self.send("guest-fsfreeze-thaw", json!({}))?;
        let answer = self.line()?;
        match answer["error"]["desc"].as_str() {
            Some(text) => Err(io::Error::other(text.escape_debug().to_string())),
            None => Ok(()),
        }
    }

    fn send(&mut self, command: &str, arguments: Value) -> io::Result<()> {
        let request = json!({"execute": command, "arguments": arguments});
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes())
    }

    fn line(&mut self) -> io::Result<Value> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
        }
        Ok(serde_json::from_slice(&line).unwrap_or(Value::Null))
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        if self.is_frozen {
            let _ = self.thaw();
        }
    }
}

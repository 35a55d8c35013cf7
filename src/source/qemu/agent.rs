//! The QEMU guest agent: file systems that are brought to rest for the instant of a backup.
//!
//! Invariant: who froze thaws, also if the backup fails.

use crate::error::{Error, ErrorKind, Result};
use crate::source::machine::as_said;
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Windows gives up a freeze after 60 s by itself, and so do databases before that.
const ANSWER: Duration = Duration::from_secs(60);
const LINE_BYTES_MAX: usize = 1 << 20;
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
        socket.set_write_timeout(Some(ANSWER)).map_err(failed)?;
        let mut rest = Rest { stream: BufReader::new(socket), is_frozen: false };
        // What an earlier client has left unread ends with the answer to this.
        let number = u64::from(std::process::id()) << 16 | 0x5ba1;
        rest.send("guest-sync", json!({"id": number})).map_err(failed)?;
        let mut lines = 0;
        let until = Instant::now() + ANSWER;
        while rest.line(until).map_err(failed)?["return"] != number {
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
        let answer = rest.line(Instant::now() + ANSWER).map_err(failed)?;
        if let Some(text) = answer["error"]["desc"].as_str() {
            let text = format!("{cannot}: {}", as_said(text));
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
        let answer = self.line(Instant::now() + ANSWER)?;
        match answer["error"]["desc"].as_str() {
            Some(text) => Err(io::Error::other(as_said(text))),
            None => Ok(()),
        }
    }

    fn send(&mut self, command: &str, arguments: Value) -> io::Result<()> {
        let request = json!({"execute": command, "arguments": arguments});
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes())
    }

    /// A line, all of which has to come in time: what speaks is in the guest, and may be its enemy.
    fn line(&mut self, until: Instant) -> io::Result<Value> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') && line.len() < LINE_BYTES_MAX {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.get_ref().set_read_timeout(Some(rest))?;
            let here = self.stream.fill_buf()?;
            if here.is_empty() {
                let text = "it closed the connection";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            let end = here.iter().position(|byte| *byte == b'\n').map_or(here.len(), |at| at + 1);
            line.extend_from_slice(&here[..end]);
            self.stream.consume(end);
        }
        Ok(serde_json::from_slice(&line).unwrap_or(Value::Null))
    }
}

/// Whether a guest agent answers to a ping within `patience`.
pub fn agent_answers(path: &Path, patience: Duration) -> bool {
    let Ok(socket) = UnixStream::connect(path) else { return false };
    if socket.set_write_timeout(Some(patience)).is_err() {
        return false;
    }
    let mut rest = Rest { stream: BufReader::new(socket), is_frozen: false };
    let until = Instant::now() + patience;
    if rest.send("guest-ping", json!({})).is_err() {
        return false;
    }
    // An answer to an earlier ping is as good.
    rest.line(until).is_ok_and(|answer| answer.get("return").is_some())
}

impl Drop for Rest {
    fn drop(&mut self) {
        if self.is_frozen {
            let _ = self.thaw();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_trickles_is_not_waited_for_longer() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let talker = std::thread::spawn(move || {
            while theirs.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let mut rest = Rest { stream: BufReader::new(ours), is_frozen: false };
        let began = Instant::now();
        let cause = rest.line(began + Duration::from_millis(300)).unwrap_err();
        assert!(matches!(cause.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut));
        assert!(began.elapsed() < Duration::from_secs(30));
        drop(rest);
        talker.join().unwrap();
    }
}

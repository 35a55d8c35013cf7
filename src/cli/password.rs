//! Where passwords come from: flags, then the environment, then a prompt on the terminal.
//!
//! Order: `--password-file`, `--password-command`, `DISKVAULT_PASSWORD`,
//! `DISKVAULT_PASSWORD_COMMAND`, `DISKVAULT_PASSWORD_FILE`, `DISKVAULT_PASSWORD_FD` (the number of
//! an open descriptor), prompt. The source of a copy has options and variables with `FROM` in their names. Of a file, command or descriptor the first line counts. A command runs without a shell.
//!
//! Invariant: a password is never an argument and never printed. It is read into one buffer that
//! does not grow, so that no copy stays behind, and that is wiped. Beyond reach: what the kernel
//! keeps of a pipe or a terminal, and the environment block itself.

use super::terminal::{Hidden, Interruptible};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::secrets::Passphrase;
use rustix::fs::OFlags;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use zeroize::Zeroizing;

/// Longest file or output that a password is taken from, in bytes: more is a mistake.
const PASSWORD_BYTES_MAX: usize = 64 << 10;

/// Sources of one password.
struct Sources<'a> {
    /// From the command line.
    file: Option<&'a Path>,
    /// From the command line.
    command: Option<&'a str>,
    /// Prefix of the environment variables.
    variable: &'static str,
    /// The option that names a file.
    option: &'static str,
    /// What a prompt asks for.
    prompt: &'static str,
}

/// The password to open a repository with.
///
/// # Errors
/// `Failed` if a source cannot be read; `Usage` if there is none and no terminal; `Cancelled`.
pub fn existing(
    file: Option<&Path>,
    command: Option<&str>,
    monitor: &dyn Monitor,
) -> Result<Passphrase> {
    let sources = Sources {
        file,
        command,
        variable: "DISKVAULT_PASSWORD",
        option: "--password-file",
        prompt: "password: ",
    };
    match sources.read(monitor)? {
        Some(password) => Ok(password),
        None => ask(&sources, sources.prompt, monitor),
    }
}

/// The password of the repository that points are copied from: `--from-password-file`,
/// `--from-password-command`, `DISKVAULT_FROM_PASSWORD` with its relatives, or typed.
///
/// # Errors
/// As [`existing`].
pub fn of_source(
    file: Option<&Path>,
    command: Option<&str>,
    monitor: &dyn Monitor,
) -> Result<Passphrase> {
    let variable = "DISKVAULT_FROM_PASSWORD";
    let (option, prompt) = ("--from-password-file", "password of the source: ");
    let sources = Sources { file, command, variable, option, prompt };
    match sources.read(monitor)? {
        Some(password) => Ok(password),
        None => ask(&sources, sources.prompt, monitor),
    }
}

/// The password of a new repository: as [`existing`], but typed twice.
///
/// # Errors
/// As [`existing`]; `Usage` if the two differ.
pub fn first(
    file: Option<&Path>,
    command: Option<&str>,
    monitor: &dyn Monitor,
) -> Result<Passphrase> {
    let sources = Sources {
        file,
        command,
        variable: "DISKVAULT_PASSWORD",
        option: "--password-file",
        prompt: "new password: ",
    };
    match sources.read(monitor)? {
        Some(password) => Ok(password),
        None => prompt_twice(&sources, monitor),
    }
}

/// The password of a new key slot: `--new-password-file`, `DISKVAULT_NEW_PASSWORD` with its
/// relatives, or typed twice.
///
/// # Errors
/// As [`first`].
pub fn new(file: Option<&Path>, monitor: &dyn Monitor) -> Result<Passphrase> {
    let variable = "DISKVAULT_NEW_PASSWORD";
    let (option, prompt) = ("--new-password-file", "new password: ");
    let sources = Sources { file, command: None, variable, option, prompt };
    match sources.read(monitor)? {
        Some(password) => Ok(password),
        None => prompt_twice(&sources, monitor),
    }
}

/// The password that a delta is sealed with: `--delta-password-file`, `DISKVAULT_DELTA_PASSWORD` with
/// its relatives, or typed.
///
/// # Errors
/// As [`existing`].
pub fn of_delta(file: Option<&Path>, monitor: &dyn Monitor) -> Result<Passphrase> {
    let sources = delta_sources(file);
    match sources.read(monitor)? {
        Some(password) => Ok(password),
        None => ask(&sources, sources.prompt, monitor),
    }
}

/// The password to seal a delta with: as [`of_delta`], but typed twice.
///
/// # Errors
/// As [`first`].
pub fn new_of_delta(file: Option<&Path>, monitor: &dyn Monitor) -> Result<Passphrase> {
    let sources = delta_sources(file);
    match sources.read(monitor)? {
        Some(password) => Ok(password),
        None => prompt_twice(&sources, monitor),
    }
}

fn delta_sources(file: Option<&Path>) -> Sources<'_> {
    let variable = "DISKVAULT_DELTA_PASSWORD";
    let (option, prompt) = ("--delta-password-file", "password of the delta: ");
    Sources { file, command: None, variable, option, prompt }
}

impl Sources<'_> {
    fn variable(&self, suffix: &str) -> Option<OsString> {
        std::env::var_os(format!("{}{suffix}", self.variable)).filter(|text| !text.is_empty())
    }

    fn read(&self, monitor: &dyn Monitor) -> Result<Option<Passphrase>> {
        if let Some(path) = self.file {
            return from_file(path, monitor).map(Some);
        }
        if let Some(command) = self.command {
            return from_command(command, monitor).map(Some);
        }
        if let Some(password) = self.variable("") {
            return Ok(Some(Passphrase::new(password.into_vec())));
        }
        if let Some(command) = self.variable("_COMMAND") {
            return from_command(&command.to_string_lossy(), monitor).map(Some);
        }
        if let Some(path) = self.variable("_FILE") {
            return from_file(Path::new(&path), monitor).map(Some);
        }
        if let Some(number) = self.variable("_FD") {
            let number = number.to_str().and_then(|text| text.parse::<u32>().ok());
            let number = number.ok_or_else(|| {
                let text = format!("cannot read {}_FD: expected a number", self.variable);
                Error::new(ErrorKind::Usage, text)
            })?;
            // Opened by name, because taking over a descriptor by number is not memory-safe.
            return from_file(Path::new(&format!("/proc/self/fd/{number}")), monitor).map(Some);
        }
        Ok(None)
    }
}

/// What a password command reads: the terminal, so that it may ask. Anything else may be what is
/// to be backed up, and a command that read of it would take its beginning away.
fn command_input() -> Stdio {
    if io::stdin().is_terminal() { Stdio::inherit() } else { Stdio::null() }
}

/// Reads up to where `is_end` says or to the end, into a buffer that has its size from the start.
fn read_secret(
    mut source: impl Read,
    what: &str,
    is_end: impl Fn(&[u8]) -> bool,
) -> Result<Zeroizing<Vec<u8>>> {
    let mut buffer = Zeroizing::new(vec![0; PASSWORD_BYTES_MAX + 1]);
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(count) if count == 0 || is_end(&buffer[..filled + count]) => {
                buffer.truncate(filled + count);
                return Ok(buffer);
            }
            Ok(count) => filled += count,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => {
                let text = format!("cannot read {what}");
                return Err(Error::io(ErrorKind::Failed, text, cause));
            }
        }
    }
    let text = format!("cannot use {what}: it has more than {PASSWORD_BYTES_MAX} bytes");
    Err(Error::new(ErrorKind::Failed, text))
}

fn first_line(bytes: &[u8], what: &str) -> Result<Passphrase> {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let end = if end > 0 && bytes[end - 1] == b'\r' { end - 1 } else { end };
    if end == 0 {
        return Err(Error::new(ErrorKind::Failed, format!("cannot use {what}: it is empty")));
    }
    Ok(Passphrase::new(bytes[..end].to_vec()))
}

/// As [`read_secret`], to the end; the user may end the wait.
fn read_all(
    source: impl Read + AsFd,
    what: &str,
    monitor: &dyn Monitor,
) -> Result<Zeroizing<Vec<u8>>> {
    let read = read_secret(Interruptible::new(source, monitor), what, |_| false);
    monitor.check_cancelled()?;
    read
}

fn from_file(path: &Path, monitor: &dyn Monitor) -> Result<Passphrase> {
    let what = format!("password file {}", path.display());
    // A FIFO that nobody writes to would keep an open from returning; other files ignore this.
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)
        .map_err(|cause| Error::io(ErrorKind::Failed, format!("cannot read {what}"), cause))?;
    first_line(&read_all(file, &what, monitor)?, &what)
}

fn from_command(command: &str, monitor: &dyn Monitor) -> Result<Passphrase> {
    let words = shlex::split(command).filter(|words| !words.is_empty()).ok_or_else(|| {
        Error::new(ErrorKind::Usage, "cannot split the password command into words")
    })?;
    let what = format!("password command {}", words[0]);
    let cannot = |cause| Error::io(ErrorKind::Failed, format!("cannot run {what}"), cause);
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .stdin(command_input())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(cannot)?;
    let read = match child.stdout.take() {
        Some(output) => read_all(output, &what, monitor),
        None => Ok(Zeroizing::default()),
    };
    if read.is_err() {
        // It may go on for ever, and nobody wants the rest. It may have ended as well.
        let _ = child.kill();
    }
    let status = child.wait().map_err(cannot)?;
    let bytes = read?;
    // The same Ctrl-C reached the command.
    monitor.check_cancelled()?;
    if !status.success() {
        return Err(Error::new(
            ErrorKind::Failed,
            format!("cannot use {what}: it ended with {status}"),
        ));
    }
    first_line(&bytes, &what)
}

fn ask(sources: &Sources<'_>, text: &str, monitor: &dyn Monitor) -> Result<Passphrase> {
    if !io::stdin().is_terminal() {
        let error = Error::new(ErrorKind::Usage, "cannot ask for a password: there is no terminal");
        let (variable, option) = (sources.variable, sources.option);
        return Err(error.hint(format!("set {variable}_FILE or use {option}")));
    }
    let cannot = |cause| Error::io(ErrorKind::Failed, "cannot ask for a password", cause);
    let hidden = Hidden::ask(text).map_err(cannot)?;
    let source = Interruptible::new(&hidden, monitor);
    let read = read_secret(source, "the password", |bytes| bytes.ends_with(b"\n"));
    monitor.check_cancelled()?;
    let bytes = read?;
    let Some(line) = bytes.strip_suffix(b"\n") else {
        return Err(Error::new(ErrorKind::Failed, "cannot read the password: the input ended"));
    };
    hidden.done();
    Ok(Passphrase::new(line.to_vec()))
}

fn prompt_twice(sources: &Sources<'_>, monitor: &dyn Monitor) -> Result<Passphrase> {
    let one = ask(sources, sources.prompt, monitor)?;
    let two = ask(sources, "the same again: ", monitor)?;
    if !one.is_same(&two) {
        return Err(Error::new(ErrorKind::Usage, "cannot use the password: the two differ"));
    }
    Ok(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes one by one, and says where they were put.
    struct Dripping<'a>(&'a [u8], Vec<usize>);

    impl Read for Dripping<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some((first, rest)) = self.0.split_first() else { return Ok(0) };
            self.0 = rest;
            self.1.push(buffer.as_ptr() as usize);
            buffer[0] = *first;
            Ok(1)
        }
    }

    #[test]
    fn a_secret_is_in_one_buffer_from_its_first_byte_on() {
        let text = vec![b'x'; PASSWORD_BYTES_MAX];
        let mut source = Dripping(&text, Vec::new());
        let read = read_secret(&mut source, "it", |_| false).unwrap();
        assert!(*read == text);
        let start = read.as_ptr() as usize;
        assert!(source.1.iter().enumerate().all(|(at, place)| *place == start + at), "it moved");
    }

    #[test]
    fn what_is_too_long_is_refused_and_not_cut() {
        let mut text = vec![b'x'; PASSWORD_BYTES_MAX + 1];
        let error = read_secret(&text[..], "it", |_| false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Failed);
        assert_eq!(error.to_string(), "cannot use it: it has more than 65536 bytes");
        text.pop();
        assert!(read_secret(&text[..], "it", |_| false).is_ok());
    }
}

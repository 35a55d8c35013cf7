//! Lines through the system's `ssh`, which knows the user's keys, agents, jump hosts and known hosts.
//!
//! Invariant: nothing of an address can be taken for an option or for words of a shell; the folder is
//! not in the command at all, but is named on the line, so that a forced command can decide.

use super::connection::{Dialer, Line, LineControl};
use super::lock;
use super::message::printable;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::place::FarFolder;
use std::io::{ErrorKind as IoErrorKind, Read};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// So much of what the program says at its end is kept.
const STDERR_BYTES: usize = 4 << 10;

/// So long the program may take to end once its output has ended.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// The exit codes by which a shell says that there is no such program, or none that it may run.
const NO_PROGRAM: [i32; 2] = [127, 126];

/// What is run at the far end.
#[derive(Clone, Debug)]
pub enum Remote {
    /// This program, by its name or path there.
    Program(String),
    /// A subsystem of the SSH server.
    Subsystem(&'static str),
}

/// Makes lines by `ssh`.
#[derive(Clone, Debug)]
pub struct SshDialer {
    words: Vec<String>,
    location: String,
}

impl SshDialer {
    /// To a machine. `ssh` is the command and its first arguments; empty for the system's `ssh`, which
    /// is then told to notice when the line is dead.
    pub fn new(ssh: &[String], to: &FarFolder, scheme: &str, remote: &Remote) -> SshDialer {
        let mut words = ssh.to_vec();
        if words.is_empty() {
            let options = ["ssh", "-o", "ServerAliveInterval=20", "-o", "ServerAliveCountMax=3"];
            words.extend(options.map(String::from));
        }
        words.push("-T".into());
        if let Some(port) = to.port {
            words.extend(["-p".into(), port.to_string()]);
        }
        if let Some(user) = &to.user {
            words.extend(["-l".into(), user.clone()]);
        }
        if matches!(remote, Remote::Subsystem(_)) {
            words.push("-s".into());
        }
        words.extend(["--".into(), to.host.clone()]);
        words.push(match remote {
            Remote::Program(program) => format!("{} serve --stdio", quoted(program)),
            Remote::Subsystem(name) => (*name).into(),
        });
        SshDialer { words, location: format!("{scheme}://{to}") }
    }
}

/// A word for the shell over there; one that is harmless as it is, so that `~/bin/x` works.
fn quoted(word: &str) -> String {
    let is_harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./~-".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_harmless) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

impl Dialer for SshDialer {
    fn dial(&self) -> Result<Line> {
        // Ctrl-C in a terminal goes to ssh as well; without a line nothing could be ended in order.
        // What is ignored stays so through exec, and ssh leaves it at that.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "trap '' INT TERM HUP; exec \"$@\"", "sh"]).args(&self.words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let cannot =
            |cause| Error::io(ErrorKind::Failed, format!("cannot start {}", self.words[0]), cause);
        let mut child = command.spawn().map_err(cannot)?;
        let missing = || cannot(IoErrorKind::BrokenPipe.into());
        let input = child.stdout.take().ok_or_else(missing)?;
        let output = child.stdin.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let hears = said.clone();
        let listener = std::thread::Builder::new().name("far-stderr".into());
        listener.spawn(move || listen(stderr, &hears)).map_err(cannot)?;
        let control = Process { child: Mutex::new(child), said, program: self.words[0].clone() };
        Ok(Line { input: Box::new(input), output: Box::new(output), control: Box::new(control) })
    }

    fn location(&self) -> String {
        self.location.clone()
    }
}

/// Keeps the last of what the program says.
fn listen(mut stderr: ChildStderr, said: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 1024];
    loop {
        match stderr.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                let mut said = lock(said);
                said.extend(&buffer[..count]);
                let more = said.len().saturating_sub(STDERR_BYTES);
                said.drain(..more);
            }
            Err(cause) if cause.kind() == IoErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// A program that makes a line.
struct Process {
    child: Mutex<Child>,
    said: Arc<Mutex<Vec<u8>>>,
    program: String,
}

impl Process {
    /// Waits for the end, not for long.
    fn ended(&self) -> Option<ExitStatus> {
        let until = Instant::now() + END_PATIENCE;
        loop {
            match lock(&self.child).try_wait() {
                Ok(None) if Instant::now() < until => {}
                Ok(status) => return status,
                Err(_) => return None,
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The last lines that it has said, as one.
    fn last_lines(&self) -> String {
        // What it said last may not have been heard yet.
        std::thread::sleep(Duration::from_millis(20));
        let said = String::from_utf8_lossy(&lock(&self.said)).into_owned();
        let is_word = |line: &&str| !line.trim().is_empty();
        let lines: Vec<&str> = said.lines().filter(is_word).collect();
        let last = &lines[lines.len().saturating_sub(3)..];
        let shown: Vec<String> = last.iter().map(|line| printable(line.trim())).collect();
        shown.join("; ")
    }
}

impl LineControl for Process {
    fn cut(&self) {
        // It may have ended by itself.
        let _ = lock(&self.child).kill();
    }

    fn farewell(&self) -> (String, Option<&'static str>) {
        let status = self.ended();
        let said = self.last_lines();
        let code = status.and_then(|status| status.code());
        let text = match (said.is_empty(), code) {
            (false, _) => said,
            (true, Some(code)) => format!("{} ended with exit code {code}", self.program),
            (true, None) => "the line was closed".into(),
        };
        let is_missing = code.is_some_and(|code| NO_PROGRAM.contains(&code));
        let hint = "diskvault has to be installed there; --remote-program names it if it is not \
                    in the PATH of logins without a terminal";
        (text, is_missing.then_some(hint))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its input is closed by now, so it ends; one that does not is not waited for.
        if self.ended().is_none() {
            self.cut();
            let _ = lock(&self.child).wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(text: &str) -> FarFolder {
        match text.parse() {
            Ok(crate::storage::place::Place::Ssh(to)) => to,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_has_nothing_that_could_be_mistaken() {
        let remote = Remote::Program("diskvault".into());
        let dialer = SshDialer::new(&[], &to("ssh://me@nas:2222/srv/a b;c"), "ssh", &remote);
        let words: Vec<&str> = dialer.words.iter().map(String::as_str).collect();
        assert_eq!(
            words[5..],
            ["-T", "-p", "2222", "-l", "me", "--", "nas", "diskvault serve --stdio"]
        );
        assert_eq!(dialer.location(), "ssh://me@nas:2222/srv/a b;c");
        let own = ["ssh".to_owned(), "-J".to_owned(), "jump".to_owned()];
        let remote = Remote::Subsystem("sftp");
        let dialer = SshDialer::new(&own, &to("ssh://[::1]/srv"), "sftp", &remote);
        assert_eq!(dialer.words, ["ssh", "-J", "jump", "-T", "-s", "--", "::1", "sftp"]);
        for (word, shown) in
            [("~/bin/x", "~/bin/x"), ("a b", "'a b'"), ("a'b", "'a'\\''b'"), ("", "''")]
        {
            assert_eq!(quoted(word), shown);
        }
    }
}

//! QMP, the language in which QEMU and its storage daemon are told what to do, on a socket.
//!
//! Invariants: one command at a time; an answer belongs to the command by its id; a line has at most
//! 64 MiB.

use crate::error::{Error, ErrorKind, Result};
use crate::source::machine::as_said;
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest answer, in bytes: that to a question for all nodes of a machine with many disks has one.
const LINE_BYTES_MAX: u64 = 64 << 20;
/// QEMU greets at once, unless it is busy with another client.
const GREETING: Duration = Duration::from_secs(10);
/// A command may wait until the requests of all disks have ended.
const ANSWER: Duration = Duration::from_secs(120);
/// The same, once one was not answered.
const AGAIN: Duration = Duration::from_secs(1);
/// How often a job is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A connection to a QMP server.
pub struct Qmp {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    next_id: u64,
}

/// What a server says to a command that it does not do.
#[derive(Debug)]
pub struct Refused {
    /// The error class of QMP, such as `CommandNotFound`.
    pub class: String,
    /// What it says.
    pub text: String,
}

impl Qmp {
    /// Connects, and waits for the greeting.
    ///
    /// # Errors
    /// `Source` if nobody listens, or not with QMP, or another client is connected.
    pub fn connect(path: &Path) -> Result<Qmp> {
        let cannot = format!("cannot speak to the machine at {}", path.display());
        let failed = |cause| Error::io(ErrorKind::Source, cannot.clone(), cause);
        let socket = UnixStream::connect(path).map_err(failed)?;
        socket.set_read_timeout(Some(GREETING)).map_err(failed)?;
        socket.set_write_timeout(Some(GREETING)).map_err(failed)?;
        let mut qmp = Qmp { path: path.to_owned(), stream: BufReader::new(socket), next_id: 0 };
        let greeting = match qmp.line() {
            Err(cause) if is_timeout(&cause) => {
                let text =
                    format!("{cannot}: it does not greet; another program may hold the socket");
                let hint = "give QEMU a second -qmp socket for backups";
                return Err(Error::new(ErrorKind::Source, text).hint(hint));
            }
            line => line.map_err(failed)?,
        };
        if greeting.get("QMP").is_none() {
            let text = format!("{cannot}: the socket does not speak QMP");
            return Err(Error::new(ErrorKind::Source, text));
        }
        qmp.stream.get_ref().set_read_timeout(Some(ANSWER)).map_err(failed)?;
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn line(&mut self) -> io::Result<Value> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
        }
        let odd = |_| io::Error::new(io::ErrorKind::InvalidData, "it sent a line that is no JSON");
        serde_json::from_slice(&line).map_err(odd)
    }

    /// Runs a command: what it returns, or what the server says to it.
    ///
    /// # Errors
    /// `Source` if the connection fails.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Result<Value, Refused>> {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({"execute": command, "id": id});
        if arguments.as_object().is_some_and(|arguments| !arguments.is_empty()) {
            request["arguments"] = arguments;
        }
        let text = format!("cannot run {command} in the machine at {}", self.path.display());
        let failed = |cause: io::Error| match is_timeout(&cause) {
            true => Error::new(ErrorKind::Source, format!("{text}: it does not answer")),
            false => Error::io(ErrorKind::Source, text.clone(), cause),
        };
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes()).map_err(failed)?;
        loop {
            let answer = self.line();
            if answer.as_ref().is_err_and(is_timeout) {
                // What has to be taken back is asked for all the same, but not waited for so long again.
                let _ = self.stream.get_ref().set_read_timeout(Some(AGAIN));
            }
            let answer = answer.map_err(failed)?;
            if answer["id"] != id {
                // An event.
                continue;
            }
            return Ok(match answer.get("error") {
                None => Ok(answer["return"].clone()),
                Some(error) => Err(Refused {
                    class: error["class"].as_str().unwrap_or_default().to_string(),
                    text: as_said(error["desc"].as_str().unwrap_or("no reason")),
                }),
            });
        }
    }

    /// Runs a command that has to work.
    ///
    /// # Errors
    /// `Source` if it does not.
    pub fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.ask(command, arguments)?.map_err(|refused| self.refusal(command, &refused))
    }

    /// The error of a command that was refused.
    pub fn refusal(&self, command: &str, refused: &Refused) -> Error {
        let text = format!("cannot run {command} in the machine at {}", self.path.display());
        Error::new(ErrorKind::Source, format!("{text}: {}", refused.text))
    }

    /// Runs a command that is a job, and waits for its end.
    ///
    /// # Errors
    /// `Source` if it fails.
    pub fn run_job(&mut self, command: &str, job: &str, mut arguments: Value) -> Result<()> {
        arguments["job-id"] = json!(job);
        self.run(command, arguments)?;
        let done = self.wait_for(command, job);
        if done.is_err() {
            // It would hold what it works on.
            let _ = self.end_job(job);
        }
        done
    }

    fn wait_for(&mut self, command: &str, job: &str) -> Result<()> {
        let until = Instant::now() + ANSWER;
        loop {
            let jobs = self.run("query-jobs", json!({}))?;
            let found = jobs.as_array().and_then(|jobs| jobs.iter().find(|it| it["id"] == job));
            let Some(found) = found else { return Ok(()) };
            if found["status"] == "concluded" {
                let failure = found["error"].as_str().map(str::to_string);
                self.run("job-dismiss", json!({"id": job}))?;
                return match failure {
                    None => Ok(()),
                    Some(text) => {
                        let class = String::new();
                        Err(self.refusal(command, &Refused { class, text }))
                    }
                };
            }
            if Instant::now() > until {
                let class = String::new();
                let text = "it does not end".to_string();
                return Err(self.refusal(command, &Refused { class, text }));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until exports are gone that were told to go: they hold their nodes and bitmaps until then.
    ///
    /// # Errors
    /// `Source` if one stays.
    pub fn wait_for_exports(&mut self, start: &str) -> Result<()> {
        let until = Instant::now() + ANSWER;
        loop {
            let exports = self.run("query-block-exports", json!({}))?;
            let mut ids =
                exports.as_array().into_iter().flatten().filter_map(|it| it["id"].as_str());
            if !ids.any(|id| id.starts_with(start)) {
                return Ok(());
            }
            if Instant::now() > until {
                let (class, text) = (String::new(), "an export does not end".to_string());
                return Err(self.refusal("block-export-del", &Refused { class, text }));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Ends a job, whatever it does, and waits until it is gone.
    ///
    /// # Errors
    /// `Source` if it stays.
    pub fn end_job(&mut self, job: &str) -> Result<()> {
        let until = Instant::now() + ANSWER;
        let mut was_told = false;
        loop {
            let jobs = self.run("query-jobs", json!({}))?;
            let found = jobs.as_array().and_then(|jobs| jobs.iter().find(|it| it["id"] == job));
            let Some(found) = found else { return Ok(()) };
            if found["status"] == "concluded" {
                let _ = self.ask("job-dismiss", json!({"id": job}))?;
            } else if !was_told {
                // It may end between the question and this.
                let arguments = json!({"device": job, "force": true});
                was_told = self.ask("block-job-cancel", arguments)?.is_ok();
            }
            if Instant::now() > until {
                let text = format!("job {job} does not end");
                return Err(
                    self.refusal("block-job-cancel", &Refused { class: String::new(), text })
                );
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn is_timeout(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

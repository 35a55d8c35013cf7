//! `serve`: repositories of this machine to a client at the other end of a line, which ssh makes.

use super::context::{Context, variable};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::storage::far::permissions::Access;
use crate::storage::far::{Notice, ServerOptions, serve};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

/// How often a signal is looked for while nothing comes.
const LOOK_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Options of `serve`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Talk to the client by standard input and output
    #[arg(long, required = true)]
    stdio: bool,
    /// Take new points, and delete nothing but what the same run of the client has begun
    #[arg(long, conflicts_with = "read_only")]
    append_only: bool,
    /// Change nothing
    #[arg(long)]
    read_only: bool,
    /// Serve repositories in this folder alone; may be repeated
    #[arg(long, value_name = "PATH")]
    restrict_to: Vec<PathBuf>,
    /// Add a line to this file for all that is refused; by default the client's ssh shows it
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

/// Runs `serve`.
///
/// # Errors
/// What the client is told; `Usage` on a terminal.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    if io::stdin().is_terminal() {
        let text = "cannot serve a terminal: ssh runs this for ssh:// repositories";
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let access = match (arguments.append_only, arguments.read_only) {
        (true, _) => Access::AppendOnly,
        (_, true) => Access::ReadOnly,
        _ => Access::Full,
    };
    let options = ServerOptions {
        access,
        restrict_to: arguments.restrict_to.clone(),
        home: variable("HOME").map(PathBuf::from),
        notice: notice(arguments.log.as_ref())?,
    };
    let cannot =
        |cause| Error::io(ErrorKind::Failed, "cannot use standard input and output", cause);
    let input = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(cannot)?);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned().map_err(cannot)?);
    serve(Attentive { input, monitor: context.monitor() }, output, &options)
}

/// Where to tell what was refused.
fn notice(log: Option<&PathBuf>) -> Result<Notice> {
    let Some(path) = log else {
        return Ok(Arc::new(|text| {
            // Somebody who does not read it must not stop the service.
            let _ = writeln!(io::stderr(), "diskvault: {}", text.escape_debug());
        }));
    };
    let file = OpenOptions::new().append(true).create(true).open(path).map_err(|cause| {
        Error::io(ErrorKind::Failed, format!("cannot open log {}", path.display()), cause)
    })?;
    let client = variable("SSH_CONNECTION").unwrap_or_default().to_string_lossy().into_owned();
    let client = client.split(' ').next().unwrap_or_default().escape_debug().to_string();
    Ok(Arc::new(move |text| {
        let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        // In one write, so that lines of two clients do not mix.
        let line = format!("{time} [{}] {client}: {}\n", std::process::id(), text.escape_debug());
        let _ = (&file).write_all(line.as_bytes());
    }))
}

/// Standard input that ends at a signal.
struct Attentive<'a> {
    input: File,
    monitor: &'a dyn Monitor,
}

impl Read for Attentive<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut waiting = [PollFd::new(&self.input, PollFlags::IN)];
            match poll(&mut waiting, Some(&LOOK_INTERVAL)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return self.input.read(buffer),
                Err(errno) => return Err(errno.into()),
            }
            if self.monitor.is_cancelled() {
                return Ok(0);
            }
        }
    }
}

//! Opening storages that SSH reaches: options, and how lines are made.

use super::context::{Context, variable};
use super::remote::FromRemote;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;
use crate::storage::far::process::{Remote, SshDialer};
use crate::storage::far::{FarOptions, FarStorage, Purpose};
use crate::storage::place::Place;
use crate::storage::sftp::SftpStorage;
use std::sync::Arc;
use std::time::Duration;

/// Options of `ssh://` and `sftp://` alone.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Options for ssh:// and sftp://")]
pub struct SshArguments {
    /// Log in by this command, such as "ssh -J JUMP"; DISKVAULT_SSH_COMMAND by default, and else ssh
    #[arg(long, global = true, value_name = "COMMAND")]
    ssh_command: Option<String>,
    /// diskvault at the far end of ssh://; DISKVAULT_REMOTE_PROGRAM by default, and else diskvault
    #[arg(long, global = true, value_name = "PATH")]
    remote_program: Option<String>,
}

/// Opens a place that SSH reaches.
///
/// # Errors
/// `Usage` for a command that cannot be read; what the storage says.
pub fn open(place: &Place, purpose: Purpose, context: &Context) -> Result<Arc<dyn Storage>> {
    let SshArguments { ssh_command, remote_program } = &context.remote().ssh;
    let command = text(ssh_command, "DISKVAULT_SSH_COMMAND");
    let program = text(remote_program, "DISKVAULT_REMOTE_PROGRAM");
    open_by(place, purpose, command, program, context)
}

/// As [`open`], for the source of a copy: what it has no own name for is that of the target.
///
/// # Errors
/// As [`open`].
pub fn open_source(
    place: &Place,
    from: &FromRemote,
    context: &Context,
) -> Result<Arc<dyn Storage>> {
    let SshArguments { ssh_command, remote_program } = &context.remote().ssh;
    let command = text(from.ssh_command(), "DISKVAULT_FROM_SSH_COMMAND")
        .or_else(|| text(ssh_command, "DISKVAULT_SSH_COMMAND"));
    let program = text(from.remote_program(), "DISKVAULT_FROM_REMOTE_PROGRAM")
        .or_else(|| text(remote_program, "DISKVAULT_REMOTE_PROGRAM"));
    open_by(place, Purpose::Open, command, program, context)
}

fn open_by(
    place: &Place,
    purpose: Purpose,
    command: Option<String>,
    program: Option<String>,
    context: &Context,
) -> Result<Arc<dyn Storage>> {
    let words = ssh_words(command)?;
    let mut options = FarOptions {
        connections: context.remote().connections()?.unwrap_or(1),
        limits: context.remote().limits()?,
        monitor: context.shared_monitor(),
        ..FarOptions::default()
    };
    let seconds = variable("DISKVAULT_LINE_PATIENCE").and_then(|it| it.to_str()?.parse().ok());
    options.patience = seconds.map_or(options.patience, Duration::from_secs);
    match place {
        Place::Ssh(to) => {
            let remote = Remote::Program(program.unwrap_or_else(|| "diskvault".into()));
            let dialer = Arc::new(SshDialer::new(&words, to, "ssh", &remote));
            Ok(Arc::new(FarStorage::open(dialer, &to.path, purpose, options)?))
        }
        Place::Sftp(to) => {
            let dialer = SshDialer::new(&words, to, "sftp", &Remote::Subsystem("sftp"));
            Ok(Arc::new(SftpStorage::open(Arc::new(dialer), &to.path, purpose, options)?))
        }
        _ => Err(Error::new(ErrorKind::Usage, format!("cannot reach {place} by ssh"))),
    }
}

/// The words of the command; none for the usual one.
fn ssh_words(command: Option<String>) -> Result<Vec<String>> {
    let Some(command) = command else { return Ok(Vec::new()) };
    shlex::split(&command).filter(|words| !words.is_empty()).ok_or_else(|| {
        let text = format!("cannot read the command for ssh: {}", command.escape_debug());
        Error::new(ErrorKind::Usage, text)
    })
}

/// An option, or a variable in its place.
fn text(option: &Option<String>, name: &str) -> Option<String> {
    let by_variable = || variable(name).map(|text| text.to_string_lossy().into_owned());
    option.clone().or_else(by_variable)
}

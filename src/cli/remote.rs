//! Storages by the places that people name: which one it is, and how those of other machines are
//! reached.

use super::context::{Context, variable};
use super::remote_s3::{self, S3Arguments};
use super::sizes::parse_bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;
use crate::storage::far::process::{Remote, SshDialer};
use crate::storage::far::{FarOptions, FarStorage, Purpose};
use crate::storage::local::LocalStorage;
use crate::storage::place::{FarFolder, Place};
use crate::storage::throttle::Limits;
use std::sync::Arc;

/// Most requests at once.
const CONNECTIONS_MAX: usize = 256;

/// How storages of other machines are reached.
#[derive(clap::Args, Clone, Debug)]
pub struct RemoteOptions {
    /// Send at most so much to the storage: such as 2MiB, a second
    #[arg(long, global = true, value_name = "RATE", help_heading = "Options for other machines")]
    limit_upload: Option<String>,
    /// Receive at most so much from it
    #[arg(long, global = true, value_name = "RATE", help_heading = "Options for other machines")]
    limit_download: Option<String>,
    /// Reach ssh:// and sftp:// by this command, such as "ssh -J JUMP"; DISKVAULT_SSH_COMMAND by
    /// default, and else ssh
    #[arg(
        long,
        global = true,
        value_name = "COMMAND",
        help_heading = "Options for other machines"
    )]
    ssh_command: Option<String>,
    /// This program at the far end of ssh://; DISKVAULT_REMOTE_PROGRAM by default, and else
    /// diskvault
    #[arg(long, global = true, value_name = "PATH", help_heading = "Options for other machines")]
    remote_program: Option<String>,
    /// Requests at once to a storage elsewhere; 8 by default
    #[arg(long, global = true, value_name = "N", help_heading = "Options for other machines")]
    connections: Option<usize>,
    /// What is for S3 alone.
    #[command(flatten)]
    pub(super) s3: S3Arguments,
}

impl RemoteOptions {
    /// Requests at once, if the user has chosen.
    ///
    /// # Errors
    /// `Usage` for none, or more than a server should be asked for.
    pub fn connections(&self) -> Result<Option<usize>> {
        match self.connections {
            Some(count) if !(1..=CONNECTIONS_MAX).contains(&count) => {
                let text =
                    format!("cannot use {count} connections: expected 1 to {CONNECTIONS_MAX}");
                Err(Error::new(ErrorKind::Usage, text))
            }
            count => Ok(count),
        }
    }

    /// Limits of the line.
    ///
    /// # Errors
    /// `Usage` for what is no size, or nothing.
    pub fn limits(&self) -> Result<Limits> {
        let rate = |text: &Option<String>| {
            let Some(text) = text else { return Ok(None) };
            match parse_bytes(text)? {
                0 => Err(Error::new(ErrorKind::Usage, "cannot limit a line to nothing")),
                rate => Ok(Some(rate)),
            }
        };
        Ok(Limits::new(rate(&self.limit_upload)?, rate(&self.limit_download)?))
    }

    /// The words of the command that reaches other machines; none for the usual one.
    fn ssh(&self) -> Result<Vec<String>> {
        let Some(command) = text(&self.ssh_command, "DISKVAULT_SSH_COMMAND") else {
            return Ok(Vec::new());
        };
        shlex::split(&command).filter(|words| !words.is_empty()).ok_or_else(|| {
            let text = format!("cannot read the command for ssh: {command:?}");
            Error::new(ErrorKind::Usage, text)
        })
    }

    /// A repository that this program serves at the far end.
    fn far(&self, to: &FarFolder, purpose: Purpose, context: &Context) -> Result<FarStorage> {
        let program = text(&self.remote_program, "DISKVAULT_REMOTE_PROGRAM");
        let remote = Remote::Program(program.unwrap_or_else(|| "diskvault".into()));
        let dialer = SshDialer::new(&self.ssh()?, to, "ssh", &remote);
        let monitor = context.shared_monitor();
        let mut options = FarOptions { limits: self.limits()?, monitor, ..FarOptions::default() };
        let seconds = variable("DISKVAULT_LINE_PATIENCE").and_then(|it| it.to_str()?.parse().ok());
        if let Some(seconds) = seconds {
            options.patience = std::time::Duration::from_secs(seconds);
        }
        FarStorage::open(Arc::new(dialer), &to.path, purpose, options)
    }
}

/// Opens the storage of an existing repository.
///
/// # Errors
/// `NoRepository` if there is none, or what the storage says.
pub fn open(place: &Place, context: &Context) -> Result<Arc<dyn Storage>> {
    context.remote().limits()?;
    match place {
        Place::Folder(path) => Ok(Arc::new(LocalStorage::open(path)?)),
        Place::S3(bucket) => remote_s3::open(bucket, context),
        Place::Ssh(to) => Ok(Arc::new(context.remote().far(to, Purpose::Open, context)?)),
        _ => Err(unknown(place)),
    }
}

/// Opens the storage for a new repository, made where it can be.
///
/// # Errors
/// `AlreadyExists` if something is there, or what the storage says.
pub fn create(place: &Place, context: &Context) -> Result<Arc<dyn Storage>> {
    context.remote().limits()?;
    match place {
        Place::Folder(path) => Ok(Arc::new(LocalStorage::create(path)?)),
        Place::S3(bucket) => remote_s3::create(bucket, context),
        Place::Ssh(to) => Ok(Arc::new(context.remote().far(to, Purpose::Create, context)?)),
        _ => Err(unknown(place)),
    }
}

/// Looks whether [`create`] would refuse; makes nothing.
///
/// # Errors
/// As [`create`], as far as it can be told without writing.
pub fn may_create(place: &Place, context: &Context) -> Result<()> {
    context.remote().limits()?;
    match place {
        Place::Folder(path) => LocalStorage::may_create(path),
        Place::S3(bucket) => remote_s3::may_create(bucket, context),
        Place::Ssh(to) => context.remote().far(to, Purpose::MayCreate, context).map(drop),
        _ => Err(unknown(place)),
    }
}

/// An option, or a variable in its place.
fn text(option: &Option<String>, name: &str) -> Option<String> {
    let by_variable = || variable(name).map(|text| text.to_string_lossy().into_owned());
    option.clone().or_else(by_variable)
}

fn unknown(place: &Place) -> Error {
    Error::new(ErrorKind::Usage, format!("cannot use {place}: expected a folder, ssh:// or s3://"))
}

//! Storages by the places that people name: which one it is, and how those of other machines are
//! reached.

use super::context::Context;
use super::remote_s3::{self, S3Arguments};
use super::remote_ssh::{self, SshArguments};
use super::sizes::parse_bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;
use crate::storage::far::Purpose;
use crate::storage::local::LocalStorage;
use crate::storage::place::Place;
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
    /// Requests at once to a bucket, 8 by default; lines at once to a machine, 1 by default
    #[arg(long, global = true, value_name = "N", help_heading = "Options for other machines")]
    connections: Option<usize>,
    /// What is for S3 alone.
    #[command(flatten)]
    pub(super) s3: S3Arguments,
    /// What is for SSH alone.
    #[command(flatten)]
    pub(super) ssh: SshArguments,
}

/// How the source of a copy is reached, where that is another way than to this repository.
#[derive(clap::Args, Clone, Debug)]
pub struct FromRemote {
    /// URL of the source's S3 server
    #[arg(long, value_name = "URL")]
    from_endpoint: Option<String>,
    /// Its region
    #[arg(long, value_name = "REGION")]
    from_region: Option<String>,
    /// Profile of the AWS files with the source's keys
    #[arg(long, value_name = "NAME")]
    from_profile: Option<String>,
    /// Log in to the source by this command
    #[arg(long, value_name = "COMMAND")]
    from_ssh_command: Option<String>,
    /// diskvault at the source
    #[arg(long, value_name = "PATH")]
    from_remote_program: Option<String>,
}

impl FromRemote {
    /// URL of its server.
    pub fn endpoint(&self) -> Option<&String> {
        self.from_endpoint.as_ref()
    }

    /// Its region.
    pub fn region(&self) -> Option<&String> {
        self.from_region.as_ref()
    }

    /// The profile with its keys.
    pub fn profile(&self) -> Option<&str> {
        self.from_profile.as_deref()
    }

    /// What logs in there.
    pub fn ssh_command(&self) -> &Option<String> {
        &self.from_ssh_command
    }

    /// The program there.
    pub fn remote_program(&self) -> &Option<String> {
        &self.from_remote_program
    }
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
        Place::Ssh(_) | Place::Sftp(_) => remote_ssh::open(place, Purpose::Open, context),
    }
}

/// As [`open`], for the source of a copy.
///
/// # Errors
/// As [`open`].
pub fn open_source(
    place: &Place,
    from: &FromRemote,
    context: &Context,
) -> Result<Arc<dyn Storage>> {
    context.remote().limits()?;
    match place {
        Place::Folder(_) => open(place, context),
        Place::S3(bucket) => remote_s3::open_source(bucket, from, context),
        Place::Ssh(_) | Place::Sftp(_) => remote_ssh::open_source(place, from, context),
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
        Place::Ssh(_) | Place::Sftp(_) => remote_ssh::open(place, Purpose::Create, context),
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
        Place::Ssh(_) | Place::Sftp(_) => {
            remote_ssh::open(place, Purpose::MayCreate, context).map(drop)
        }
    }
}

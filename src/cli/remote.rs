//! Storages by the places that people name: which one it is, and how those of other machines are
//! reached.

use super::context::Context;
use super::remote_ssh::{self, SshArguments};
use super::sizes::parse_bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;
use crate::storage::far::Purpose;
use crate::storage::local::LocalStorage;
use crate::storage::place::Place;
use crate::storage::throttle::Limits;
use std::sync::Arc;

/// How storages of other machines are reached.
#[derive(clap::Args, Clone, Debug)]
pub struct RemoteOptions {
    /// Send at most so much to the storage: such as 2MiB, a second
    #[arg(long, global = true, value_name = "RATE", help_heading = "Options for other machines")]
    limit_upload: Option<String>,
    /// Receive at most so much from it
    #[arg(long, global = true, value_name = "RATE", help_heading = "Options for other machines")]
    limit_download: Option<String>,
    /// What is for SSH alone.
    #[command(flatten)]
    pub(super) ssh: SshArguments,
}

impl RemoteOptions {
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
        Place::Ssh(_) | Place::Sftp(_) => remote_ssh::open(place, Purpose::Open, context),
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
        Place::Ssh(_) | Place::Sftp(_) => remote_ssh::open(place, Purpose::Create, context),
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
        Place::Ssh(_) | Place::Sftp(_) => {
            remote_ssh::open(place, Purpose::MayCreate, context).map(drop)
        }
        _ => Err(unknown(place)),
    }
}

fn unknown(place: &Place) -> Error {
    Error::new(
        ErrorKind::Usage,
        format!("cannot use {place}: expected a folder, ssh:// or sftp://"),
    )
}

//! Where a repository is, as people name it: a path, or an address that says how to get there.
//!
//! Invariant owned here: what an address names cannot be taken for an option of another program,
//! and has nothing in it that a terminal would obey.

use crate::error::{Error, ErrorKind, Result};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;

/// Where a repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A folder of this machine: everything without `://`.
    Folder(PathBuf),
    /// `ssh://[user@]host[:port]/path`: this program runs at the far end.
    Ssh(FarFolder),
    /// `sftp://[user@]host[:port]/path`: only the SFTP server of SSH runs there.
    Sftp(FarFolder),
    /// `s3://bucket[/prefix]`: an object store that speaks S3.
    S3(Bucket),
}

/// A folder on another machine, which SSH reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FarFolder {
    /// Who to log in as; `None` leaves it to SSH.
    pub user: Option<String>,
    /// Name or address, without the brackets of an IPv6 address.
    pub host: String,
    /// `None` leaves it to SSH.
    pub port: Option<u16>,
    /// Absolute, or below the home of the user there if it starts with `~/`.
    pub path: String,
}

/// A part of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The bucket.
    pub name: String,
    /// What the keys of all objects begin with, without slashes at its ends; empty for all of the bucket.
    pub prefix: String,
}

impl Place {
    /// Reads how a user names a repository.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for an address of an unknown kind, or one that lacks a part.
    pub fn parse(named: &OsStr) -> Result<Place> {
        let text = named.to_string_lossy();
        let Some((scheme, rest)) = text.split_once("://") else {
            if named.is_empty() {
                return Err(Error::new(ErrorKind::Usage, "cannot use an empty repository path"));
            }
            return Ok(Place::Folder(PathBuf::from(named)));
        };
        let refuse = |why: &str| {
            let text = format!("cannot use repository {}: {why}", text.escape_debug());
            Error::new(ErrorKind::Usage, text)
        };
        if named.to_str().is_none() || text.chars().any(char::is_control) {
            return Err(refuse("an address is UTF-8 without control characters"));
        }
        match scheme {
            "ssh" => far_folder(rest).map(Place::Ssh).map_err(|why| refuse(&why)),
            "sftp" => far_folder(rest).map(Place::Sftp).map_err(|why| refuse(&why)),
            "s3" => bucket(rest).map(Place::S3).map_err(|why| refuse(&why)),
            _ => Err(refuse("expected a folder, or ssh://, sftp:// or s3://")),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Folder(path) => path.display().fmt(f),
            Place::Ssh(far) => write!(f, "ssh://{far}"),
            Place::Sftp(far) => write!(f, "sftp://{far}"),
            Place::S3(bucket) => write!(f, "s3://{bucket}"),
        }
    }
}

impl fmt::Display for FarFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        let slash = if self.path.starts_with('/') { "" } else { "/" };
        write!(f, "{slash}{}", self.path)
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        Ok(())
    }
}

/// Reads `[user@]host[:port]/path`. The path is absolute (`//path` is the same path), or below the
/// home of the user there as `/~/path`.
fn far_folder(rest: &str) -> Result<FarFolder, String> {
    let (authority, path) = rest.split_once('/').ok_or("it has no path")?;
    let (user, address) = match authority.rsplit_once('@') {
        Some((user, address)) => (Some(user), address),
        None => (None, authority),
    };
    let (host, port) = match address.strip_prefix('[') {
        Some(bracketed) => {
            let (host, port) = bracketed.split_once(']').ok_or("a bracket is not closed")?;
            (host, port.strip_prefix(':'))
        }
        None => match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    let is_safe = |text: &str| {
        !text.is_empty() && !text.starts_with('-') && !text.contains(char::is_whitespace)
    };
    if !is_safe(host) || user.is_some_and(|user| !is_safe(user)) {
        return Err("user and host may be neither empty nor start with \"-\"".into());
    }
    let port = match port {
        None => None,
        Some(port) => {
            let number = port.parse::<u16>().ok().filter(|&port| port > 0);
            Some(number.ok_or_else(|| format!("{port:?} is no port"))?)
        }
    };
    let path = match path.strip_prefix("~/") {
        Some(below) if !below.is_empty() => format!("~/{below}"),
        _ => format!("/{}", path.trim_start_matches('/')),
    };
    if path == "/" {
        return Err("it has no path".into());
    }
    Ok(FarFolder { user: user.map(str::to_owned), host: host.to_owned(), port, path })
}

/// Reads `bucket[/prefix]`.
fn bucket(rest: &str) -> Result<Bucket, String> {
    let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if name.is_empty() || !name.bytes().all(fits) {
        return Err(format!("{name:?} is no name of a bucket"));
    }
    let prefix = prefix.trim_matches('/');
    let parts = || prefix.split('/');
    if !prefix.is_empty() && parts().any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("{prefix:?} has an empty part or one of dots"));
    }
    Ok(Bucket { name: name.to_owned(), prefix: prefix.to_owned() })
}

/// Reads a place for tests and programs that have no user.
impl std::str::FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Place> {
        Place::parse(&OsString::from(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart_and_shown_as_they_were() {
        let far = |user: Option<&str>, host: &str, port, path: &str| FarFolder {
            user: user.map(str::to_owned),
            host: host.into(),
            port,
            path: path.into(),
        };
        let cases = [
            ("ssh://nas/backups/vm", Place::Ssh(far(None, "nas", None, "/backups/vm"))),
            ("ssh://me@nas:2222/b", Place::Ssh(far(Some("me"), "nas", Some(2222), "/b"))),
            ("ssh://nas/~/b", Place::Ssh(far(None, "nas", None, "~/b"))),
            ("sftp://me@[::1]:22/b", Place::Sftp(far(Some("me"), "::1", Some(22), "/b"))),
            ("s3://vm-backups", Place::S3(Bucket { name: "vm-backups".into(), prefix: "".into() })),
            (
                "s3://vm.backups/site/a",
                Place::S3(Bucket { name: "vm.backups".into(), prefix: "site/a".into() }),
            ),
            ("/a/b", Place::Folder("/a/b".into())),
            ("a:b", Place::Folder("a:b".into())),
        ];
        for (text, expected) in cases {
            let place: Place = text.parse().unwrap();
            assert_eq!(place, expected, "{text}");
            assert_eq!(place.to_string(), text);
        }
        // Ways of writing the same.
        for (text, same) in [("ssh://h//b", "ssh://h/b"), ("s3://b/a/", "s3://b/a")] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), same);
        }
    }

    #[test]
    fn what_another_program_could_mistake_is_refused() {
        for text in [
            "",
            "ssh://",
            "ssh://host",
            "ssh://host/",
            "ssh:///path",
            "ssh://-oProxyCommand=x/path",
            "ssh://-l@host/path",
            "ssh://@host/path",
            "ssh://a b/path",
            "ssh://host:0/path",
            "ssh://host:x/path",
            "ssh://[::1/path",
            "ssh://host/a\nb",
            "s3://",
            "s3:///prefix",
            "s3://b/a//b",
            "s3://b/../c",
            "s3://b c",
            "http://host/path",
            "\x1b[1m://x",
        ] {
            let error = text.parse::<Place>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{text:?}");
            assert!(!error.full_text().contains(['\n', '\x1b']), "{error:?}");
        }
    }
}

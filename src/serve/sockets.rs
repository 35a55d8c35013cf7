//! Where clients come from: Unix sockets and TCP.
//!
//! Invariants: a socket file that somebody answers at, or that is none, is never replaced; others
//! than this user cannot open it; until a client has chosen an export, it has one deadline, however
//! it trickles.

use super::protocol::PORT;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::lock;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::fs::Mode;
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepidle, set_tcp_keepintvl};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a client may take to choose an export.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// How long a client may leave replies unread.
const UNREAD: Duration = Duration::from_secs(120);
/// A host that vanished is noticed after some of these.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Characters of a URI that stand for themselves.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const PLAIN_PATH: &AsciiSet = &PLAIN.remove(b'/');

/// A socket that clients connect to.
pub enum Listener {
    /// A file; removed when this is dropped.
    Unix(UnixPlace),
    /// A port.
    Tcp(TcpListener, SocketAddr),
}

/// A socket in the file system.
pub struct UnixPlace {
    listener: UnixListener,
    path: PathBuf,
    /// Device and number of the file, so that no other one is removed.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at a path. A file that a dead server left there is replaced.
    ///
    /// # Errors
    /// `AlreadyExists` if something else is there, or somebody answers; `Target`.
    pub fn at_path(path: &Path) -> Result<Listener> {
        let shown = path.display().to_string();
        let cannot =
            |cause| Error::io(ErrorKind::Target, format!("cannot listen at {shown}"), cause);
        let path = std::path::absolute(path).map_err(cannot)?;
        let listener = match bind_private(&path) {
            Err(cause) if cause.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(&path)?;
                bind_private(&path)
            }
            other => other,
        };
        let listener = listener.map_err(cannot)?;
        listener.set_nonblocking(true).map_err(cannot)?;
        let file = number_of(&path);
        Ok(Listener::Unix(UnixPlace { listener, path, file }))
    }

    /// Listens at a TCP address; port 0 takes one that is free.
    ///
    /// # Errors
    /// `Target`.
    pub fn at_address(address: SocketAddr) -> Result<Listener> {
        let cannot =
            |cause| Error::io(ErrorKind::Target, format!("cannot listen at {address}"), cause);
        let listener = TcpListener::bind(address).map_err(cannot)?;
        listener.set_nonblocking(true).map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        Ok(Listener::Tcp(listener, address))
    }

    /// The address of an export, as clients take it.
    pub fn uri(&self, export: &str, is_tls: bool) -> String {
        let scheme = if is_tls { "nbds" } else { "nbd" };
        let export = utf8_percent_encode(export, PLAIN_PATH);
        match self {
            Listener::Unix(place) => {
                let path = place.path.to_string_lossy();
                let path = utf8_percent_encode(&path, PLAIN_PATH);
                format!("{scheme}+unix:///{export}?socket={path}")
            }
            Listener::Tcp(_, address) => format!("{scheme}://{address}/{export}"),
        }
    }

    /// A client that waits.
    pub(super) fn accept(&self) -> io::Result<Socket> {
        let kind = match self {
            Listener::Unix(place) => {
                let socket = place.listener.accept()?.0;
                socket.set_nonblocking(false)?;
                Kind::Unix(socket)
            }
            Listener::Tcp(listener, _) => {
                let socket = listener.accept()?.0;
                socket.set_nonblocking(false)?;
                socket.set_nodelay(true)?;
                set_socket_keepalive(&socket, true)?;
                set_tcp_keepidle(&socket, KEEP_ALIVE)?;
                set_tcp_keepintvl(&socket, KEEP_ALIVE / 4)?;
                Kind::Tcp(socket)
            }
        };
        let socket = Socket { kind, deadline: Mutex::new(Some(Instant::now() + HANDSHAKE)) };
        socket.set_timeouts(None, Some(HANDSHAKE))?;
        Ok(socket)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(place) => place.listener.as_fd(),
            Listener::Tcp(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for UnixPlace {
    fn drop(&mut self) {
        if self.file.is_some() && number_of(&self.path) == self.file {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn number_of(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// From its first instant on, it is this user's alone.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    bound
}

fn remove_stale(path: &Path) -> Result<()> {
    let shown = path.display();
    let refuse = |why: &str| {
        Error::new(ErrorKind::AlreadyExists, format!("cannot listen at {shown}: {why}"))
    };
    let found = std::fs::symlink_metadata(path).ok();
    if !found.is_some_and(|found| found.file_type().is_socket()) {
        return Err(refuse("something else is there"));
    }
    let seen = number_of(path);
    match UnixStream::connect(path) {
        Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => {}
        _ => return Err(refuse("a server is there")),
    }
    if number_of(path) == seen {
        std::fs::remove_file(path).map_err(|cause| {
            Error::io(ErrorKind::Target, format!("cannot remove {shown}"), cause)
        })?;
    }
    Ok(())
}

/// Reads `ADDRESS[:PORT]`: a host or an IP address, one of version 6 in brackets before a port.
///
/// # Errors
/// `Usage` if it is none, or the host has no address.
pub fn parse_listen(text: &str) -> Result<SocketAddr> {
    let refuse = |why: &str| {
        let text = format!("cannot listen at {}: {why}", text.escape_debug());
        Error::new(ErrorKind::Usage, text)
    };
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, PORT));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| refuse("expected ADDRESS[:PORT]"))?),
        None => (text, PORT),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = (host, port).to_socket_addrs().map_err(|cause| refuse(&cause.to_string()))?;
    found.into_iter().next().ok_or_else(|| refuse("it has no address"))
}

enum Kind {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A connection to a client.
pub(super) struct Socket {
    kind: Kind,
    /// When it must have said what it wants.
    deadline: Mutex<Option<Instant>>,
}

impl Socket {
    fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        match &self.kind {
            Kind::Unix(socket) => {
                socket.set_read_timeout(read)?;
                socket.set_write_timeout(write)
            }
            Kind::Tcp(socket) => {
                socket.set_read_timeout(read)?;
                socket.set_write_timeout(write)
            }
        }
    }

    /// The handshake is over: from now on it may be silent, but has to read.
    pub fn is_known(&self) -> io::Result<()> {
        *lock(&self.deadline) = None;
        self.set_timeouts(None, Some(UNREAD))
    }

    /// Ends it for both sides, whoever waits.
    pub fn end(&self) {
        let _ = match &self.kind {
            Kind::Unix(socket) => socket.shutdown(Shutdown::Both),
            Kind::Tcp(socket) => socket.shutdown(Shutdown::Both),
        };
    }
}

/// One of those who use a connection.
#[derive(Clone)]
pub(super) struct Handle(pub Arc<Socket>);

impl Read for Handle {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let deadline = *lock(&self.0.deadline);
        if let Some(deadline) = deadline {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.0.set_timeouts(Some(rest), Some(rest))?;
        }
        match &self.0.kind {
            Kind::Unix(socket) => (&*socket).read(buffer),
            Kind::Tcp(socket) => (&*socket).read(buffer),
        }
    }
}

impl Write for Handle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0.kind {
            Kind::Unix(socket) => (&*socket).write(bytes),
            Kind::Tcp(socket) => (&*socket).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_to_listen_at() {
        for (text, expected) in [
            ("127.0.0.1", "127.0.0.1:10809"),
            ("0.0.0.0:1", "0.0.0.0:1"),
            ("::1", "[::1]:10809"),
            ("[::1]:7", "[::1]:7"),
            ("127.0.0.1:0", "127.0.0.1:0"),
        ] {
            assert_eq!(parse_listen(text).unwrap().to_string(), expected, "{text}");
        }
        for bad in ["127.0.0.1:x", "127.0.0.1:70000", "", "no host:1"] {
            assert_eq!(parse_listen(bad).unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
    }
}

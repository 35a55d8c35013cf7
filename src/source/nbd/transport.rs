//! Sockets to NBD servers: TCP, Unix and TLS over both.
//!
//! Invariant: a server that is silent for longer than [`SILENCE`] counts as gone.

use super::address::{Address, Place, TlsWish};
use super::handshake::{greet, start_tls};
use super::trouble::{Outcome, Trouble};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long an answer may take: a server that reads from tape or thaws a cloud volume has minutes.
pub(super) const SILENCE: Duration = Duration::from_secs(120);
/// How long a host may take to accept.
const CONNECT: Duration = Duration::from_secs(15);

/// A stream in both directions.
pub(super) trait Stream: Read + Write + Send {
    /// The socket under it.
    fn socket(&self) -> BorrowedFd<'_>;

    /// True if a read gives something that the socket has given already.
    fn has_buffered(&self) -> bool {
        false
    }
}

impl Stream for UnixStream {
    fn socket(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

impl Stream for TcpStream {
    fn socket(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

impl<S: Stream> Stream for StreamOwned<ClientConnection, S> {
    fn socket(&self) -> BorrowedFd<'_> {
        self.sock.socket()
    }

    fn has_buffered(&self) -> bool {
        // Text that is not read keeps it from wanting more.
        !self.conn.wants_read()
    }
}

/// A socket to a server that was greeted, and whether it ends old options with zeros.
pub(super) fn connect(address: &Address) -> Outcome<(Box<dyn Stream>, bool)> {
    match &address.place {
        Place::Unix(path) => {
            let socket = UnixStream::connect(path)?;
            socket.set_read_timeout(Some(SILENCE))?;
            socket.set_write_timeout(Some(SILENCE))?;
            secured(socket, address)
        }
        Place::Tcp(host, port) => {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
            for place in (host.as_str(), *port).to_socket_addrs()? {
                match TcpStream::connect_timeout(&place, CONNECT) {
                    Ok(socket) => {
                        socket.set_nodelay(true)?;
                        socket.set_read_timeout(Some(SILENCE))?;
                        socket.set_write_timeout(Some(SILENCE))?;
                        return secured(socket, address);
                    }
                    Err(cause) => last = cause,
                }
            }
            Err(last.into())
        }
    }
}

fn secured(
    mut socket: impl Stream + 'static,
    address: &Address,
) -> Outcome<(Box<dyn Stream>, bool)> {
    let has_zeroes = greet(&mut socket)?;
    let Some(wish) = &address.tls else { return Ok((Box::new(socket), has_zeroes)) };
    start_tls(&mut socket)?;
    let refuse = |text: String| Trouble::Refused(text, None);
    let name = ServerName::try_from(wish.server_name.clone())
        .map_err(|_| refuse(format!("{:?} is no name of a TLS server", wish.server_name)))?;
    let config = configure(wish)?;
    let connection = ClientConnection::new(Arc::new(config), name)
        .map_err(|cause| refuse(format!("TLS cannot begin: {cause}")))?;
    let mut stream = StreamOwned::new(connection, socket);
    // Here, so that a certificate that is not good is no reason to try again.
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).map_err(|cause| match cause.kind() {
            io::ErrorKind::InvalidData => refuse(format!("TLS failed: {cause}")),
            _ => Trouble::Gone(cause),
        })?;
    }
    Ok((Box::new(stream), has_zeroes))
}

fn configure(wish: &TlsWish) -> Outcome<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let refuse = |text: String| Trouble::Refused(text, None);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|cause| refuse(format!("TLS cannot begin: {cause}")))?;
    let mut roots = RootCertStore::empty();
    let Some(folder) = &wish.certificates else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(builder.with_root_certificates(roots).with_no_client_auth());
    };
    let failed = |path: &Path, cause: &dyn std::fmt::Display| {
        Trouble::Refused(format!("{} cannot be used: {cause}", path.display()), None)
    };
    let authority = folder.join("ca-cert.pem");
    for certificate in certificates(&authority)? {
        roots.add(certificate).map_err(|cause| failed(&authority, &cause))?;
    }
    let builder = builder.with_root_certificates(roots);
    let (own, key) = (folder.join("client-cert.pem"), folder.join("client-key.pem"));
    if !own.exists() {
        return Ok(builder.with_no_client_auth());
    }
    let secret = PrivateKeyDer::from_pem_file(&key).map_err(|cause| failed(&key, &cause))?;
    let chain = certificates(&own)?;
    builder.with_client_auth_cert(chain, secret).map_err(|cause| failed(&own, &cause))
}

fn certificates(path: &Path) -> Outcome<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    read.map_err(|cause| {
        Trouble::Refused(format!("{} cannot be used: {cause}", path.display()), None)
    })
}

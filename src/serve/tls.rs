//! TLS of the server: by certificates, because rustls has no pre-shared keys from outside.
//!
//! Invariant: records leave in the order in which they were sealed, whichever threads read and write.

use crate::error::{Error, ErrorKind, Result};
use crate::repository::lock;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Bytes that are taken off a socket at once: a record and its frame.
const SEALED_BYTES: usize = 17 << 10;
/// Bytes that are sealed at once.
const PIECE_BYTES: usize = 64 << 10;

/// Files in PEM that TLS is made of.
#[derive(Clone, Copy, Debug)]
pub struct TlsFiles<'a> {
    /// The server's certificate, and those between it and its authority.
    pub certificate: &'a Path,
    /// Its key.
    pub key: &'a Path,
    /// The authority that clients' certificates come from; `None` takes clients without.
    pub client_authority: Option<&'a Path>,
}

/// Reads the files.
///
/// # Errors
/// `Usage` if they cannot be read or do not fit.
pub fn configure(files: TlsFiles<'_>) -> Result<Arc<ServerConfig>> {
    let failed = |path: &Path, cause: &dyn std::fmt::Display| {
        let text = format!("cannot use {} for TLS: {cause}", path.display());
        Error::new(ErrorKind::Usage, text)
    };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>> {
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        let read: Vec<_> = read.map_err(|cause| failed(path, &cause))?;
        if read.is_empty() {
            return Err(failed(path, &"it has no certificate"));
        }
        Ok(read)
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|cause| failed(files.certificate, &cause))?;
    let builder = match files.client_authority {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|cause| failed(path, &cause))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|cause| failed(path, &cause))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_file(files.key).map_err(|cause| failed(files.key, &cause))?;
    let config = builder
        .with_single_cert(certificates(files.certificate)?, key)
        .map_err(|cause| failed(files.certificate, &cause))?;
    Ok(Arc::new(config))
}

/// Both directions of a secured connection.
struct Shared {
    connection: Mutex<ServerConnection>,
    /// Held from sealing to sending.
    sending: Mutex<()>,
}

/// What comes from the client.
pub(super) struct SecureInput<R> {
    shared: Arc<Shared>,
    socket: R,
    /// What was taken off the socket, and where the rest of it is that is not opened yet.
    sealed: Box<[u8; SEALED_BYTES]>,
    rest: Range<usize>,
}

/// What goes to the client.
pub(super) struct SecureOutput<W> {
    shared: Arc<Shared>,
    socket: W,
}

/// Secures a connection whose handshake the client begins now.
///
/// # Errors
/// What the sockets say, or `InvalidData` if the client cannot be agreed with.
pub(super) fn accept<S: Read + Write, W: Write>(
    config: &Arc<ServerConfig>,
    mut socket: S,
    output: W,
) -> io::Result<(SecureInput<S>, SecureOutput<W>)> {
    let mut connection = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    let shared = Arc::new(Shared { connection: Mutex::new(connection), sending: Mutex::new(()) });
    let sealed = Box::new([0; SEALED_BYTES]);
    let input = SecureInput { shared: shared.clone(), socket, sealed, rest: 0..0 };
    Ok((input, SecureOutput { shared, socket: output }))
}

impl<R: Read> Read for SecureInput<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match lock(&self.shared.connection).reader().read(buffer) {
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            if self.rest.is_empty() {
                // Nobody waits for the lock while the client is silent.
                self.rest = 0..self.socket.read(self.sealed.as_mut_slice())?;
            }
            let mut connection = lock(&self.shared.connection);
            // No bytes are the end, which it has to hear of, too.
            let taken = connection.read_tls(&mut &self.sealed[self.rest.clone()])?;
            self.rest.start += taken;
            let invalid = |cause| io::Error::new(io::ErrorKind::InvalidData, cause);
            connection.process_new_packets().map_err(invalid)?;
        }
    }
}

impl<W: Write> Write for SecureOutput<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _turn = lock(&self.shared.sending);
        let mut sealed = Vec::with_capacity(bytes.len().min(PIECE_BYTES) + (1 << 10));
        let taken = {
            let mut connection = lock(&self.shared.connection);
            let taken = connection.writer().write(&bytes[..bytes.len().min(PIECE_BYTES)])?;
            while connection.wants_write() {
                connection.write_tls(&mut sealed)?;
            }
            taken
        };
        self.socket.write_all(&sealed)?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

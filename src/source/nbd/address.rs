//! NBD addresses, in the syntax of the NBD project's URI specification.

use crate::error::{Error, ErrorKind, Result};
use percent_encoding::percent_decode_str;
use std::path::{Path, PathBuf};

/// The port that IANA gave to NBD.
const PORT: u16 = 10809;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A host and a port.
    Tcp(String, u16),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// How a server proves what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TlsWish {
    /// Folder with `ca-cert.pem`, and `client-cert.pem` with `client-key.pem` if the server asks.
    pub certificates: Option<PathBuf>,
    /// The name that the server's certificate must have.
    pub server_name: String,
}

/// An export of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// As the user wrote it, for messages.
    pub(super) text: String,
    pub(super) place: Place,
    pub(super) export: String,
    pub(super) tls: Option<TlsWish>,
}

/// True for text that begins like an address of this module.
pub fn is_address(path: &Path) -> bool {
    scheme_of(path).is_some_and(|(scheme, _)| scheme.starts_with("nbd"))
}

fn scheme_of(path: &Path) -> Option<(&str, &str)> {
    path.to_str()?.split_once("://")
}

impl Address {
    /// Reads `nbd://HOST[:PORT]/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`, and the same with `nbds` for
    /// TLS, which may have `tls-certificates=FOLDER` and `tls-hostname=NAME`.
    ///
    /// # Errors
    /// `Usage` for what is none, with what was expected.
    pub fn parse(text: &str) -> Result<Address> {
        let refuse = |what: &str| {
            let text = format!("cannot read the address {}: {what}", text.escape_debug());
            Error::new(ErrorKind::Usage, text)
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| refuse("it has no ://"))?;
        let (is_tls, is_unix) = match scheme {
            "nbd" => (false, false),
            "nbds" => (true, false),
            "nbd+unix" => (false, true),
            "nbds+unix" => (true, true),
            _ => return Err(refuse("expected nbd, nbds, nbd+unix or nbds+unix in front of ://")),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let decode = |text: &str| {
            let decoded = percent_decode_str(text).decode_utf8();
            decoded.map(String::from).map_err(|_| refuse("it is no UTF-8"))
        };
        let mut socket = None;
        let mut tls = TlsWish { certificates: None, server_name: String::new() };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value)?;
            match key {
                "socket" => socket = Some(PathBuf::from(value)),
                "tls-certificates" if is_tls => tls.certificates = Some(PathBuf::from(value)),
                "tls-hostname" if is_tls => tls.server_name = value,
                _ => return Err(refuse(&format!("it has no parameter {}", key.escape_debug()))),
            }
        }
        // A user name is for keys of TLS, which are not spoken here.
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let place = match (is_unix, socket) {
            (true, Some(socket)) if host.is_empty() => Place::Unix(socket),
            (true, Some(_)) => return Err(refuse("a socket has no host: expected three slashes")),
            (true, None) => return Err(refuse("expected ?socket=PATH")),
            (false, Some(_)) => return Err(refuse("only nbd+unix has a socket")),
            (false, None) => tcp(&decode(host)?).ok_or_else(|| refuse("expected HOST[:PORT]"))?,
        };
        if tls.server_name.is_empty() {
            tls.server_name = match &place {
                Place::Tcp(host, _) => host.clone(),
                Place::Unix(_) => "localhost".into(),
            };
        }
        let (text, export) = (text.to_string(), decode(export)?);
        Ok(Address { text, place, export, tls: is_tls.then_some(tls) })
    }

    /// What a part of this export is named: the export, or `disk` if that has no name.
    pub fn part_name(&self) -> String {
        let name = self.export.trim_matches('/');
        if name.is_empty() { "disk".into() } else { name.replace(['/', ':'], "_") }
    }
}

fn tcp(host: &str) -> Option<Place> {
    let (host, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok()?,
        None if port.is_empty() => PORT,
        None => return None,
    };
    (!host.is_empty()).then(|| Place::Tcp(host.to_string(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_specification_are_read() {
        let tcp = |host: &str, port| Place::Tcp(host.into(), port);
        for (text, place, export, name) in [
            ("nbd://example.com", tcp("example.com", 10809), "", "disk"),
            ("nbd://example.com/", tcp("example.com", 10809), "", "disk"),
            ("nbd://[::1]:9/a%20b", tcp("::1", 9), "a b", "a b"),
            ("nbd://10.0.0.1:9/a/b", tcp("10.0.0.1", 9), "a/b", "a_b"),
            ("nbd+unix:///vda?socket=/run/a.sock", Place::Unix("/run/a.sock".into()), "vda", "vda"),
            ("nbd+unix://?socket=/run/a%3fb", Place::Unix("/run/a?b".into()), "", "disk"),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!((&address.place, &*address.export), (&place, export), "{text}");
            assert_eq!((address.part_name().as_str(), &address.tls), (name, &None), "{text}");
            assert!(is_address(Path::new(text)));
        }
        let text = "nbds://h:1/x?tls-certificates=/etc/pki&tls-hostname=other";
        let tls = Address::parse(text).unwrap().tls.unwrap();
        let expected = ("other", Some(Path::new("/etc/pki")));
        assert_eq!((&*tls.server_name, tls.certificates.as_deref()), expected);
        assert_eq!(Address::parse("nbds://h").unwrap().tls.unwrap().server_name, "h");
    }

    #[test]
    fn other_text_is_refused() {
        for (text, why) in [
            ("nbd:/x", "no ://"),
            ("http://x", "expected nbd"),
            ("nbd+vsock://2/x", "expected nbd"),
            ("nbd:///x", "expected HOST"),
            ("nbd://h:x/", "expected HOST"),
            ("nbd://h:70000/", "expected HOST"),
            ("nbd://[::1", "expected HOST"),
            ("nbd+unix:///x", "expected ?socket"),
            ("nbd+unix://h/x?socket=/s", "three slashes"),
            ("nbd://h/x?socket=/s", "only nbd+unix"),
            ("nbd://h/x?tls-hostname=y", "no parameter tls-hostname"),
            ("nbd://h/%ff", "no UTF-8"),
        ] {
            let error = Address::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.full_text().contains(why), "{text}: {}", error.full_text());
        }
        assert!(!is_address(Path::new("disk.img")) && !is_address(Path::new("rbd://x")));
    }
}

//! The first words on a line: who speaks which versions of the protocol, and which repository is
//! meant.
//!
//! Invariant: everything up to the length, and that the program's version comes first behind it,
//! stays as it is in every version, so that two ends that do not understand each other can say so.

use super::message::{Fields, error_code, error_of, malformed, printable};
use super::{PIECE_BYTES, REQUESTS_MAX};
use crate::error::{Error, ErrorKind, Result};
use std::io::{self, BufRead};

/// What both ends say first. The line end shows a line that is not clean.
const MAGIC: [u8; 8] = *b"dvfar\r\n\0";

/// Versions of the protocol that this program speaks.
const LOWEST: u16 = 1;
const HIGHEST: u16 = 1;

/// Bytes behind the length.
const BODY_BYTES_MAX: usize = 16 << 10;

/// So much of what is no greeting is shown.
const JUNK_SHOWN: usize = 120;

/// What a line is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To use a repository.
    Open,
    /// To make one.
    Create,
    /// To see whether one could be made.
    MayCreate,
}

/// What the client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The version of the program.
    pub program: String,
    /// Random, and the same for all lines of one run of a client.
    pub token: [u8; 32],
    /// Which of its lines it is. The same number comes again only after the line was cut.
    pub line: u16,
    /// What for.
    pub purpose: Purpose,
    /// The folder.
    pub path: String,
}

/// What the server says if it does what it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHello {
    /// The version of the program.
    pub program: String,
    /// Requests that it takes at the same time.
    pub requests_max: usize,
    /// Bytes of a piece that it takes.
    pub piece_bytes_max: usize,
}

/// Why there is no hello.
#[derive(Debug)]
pub enum HelloError {
    /// The line failed, or ended.
    Line(io::Error),
    /// The other end said no.
    Said(Error),
    /// The other end does not speak the protocol, and this is how it began.
    Junk(String),
}

impl From<Error> for HelloError {
    fn from(error: Error) -> HelloError {
        HelloError::Said(error)
    }
}

impl ClientHello {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = text(&self.program);
        body.extend(self.token);
        body.extend(self.line.to_le_bytes());
        body.push(match self.purpose {
            Purpose::Open => 1,
            Purpose::Create => 2,
            Purpose::MayCreate => 3,
        });
        body.extend(text(&self.path));
        with_head(&body)
    }

    /// Reads what a client says.
    ///
    /// # Errors
    /// As in [`HelloError`]; `Said` with an error that the client is to be told.
    pub fn read(input: &mut dyn BufRead) -> Result<ClientHello, HelloError> {
        let (versions, body) = read_head(input)?;
        let mut fields = Fields(&body);
        let program = printable(fields.text()?);
        if let Some(error) = disagreement(versions, &program) {
            return Err(HelloError::Said(error));
        }
        let (token, line) = (fields.array()?, fields.u16()?);
        let purpose = match fields.u8()? {
            1 => Purpose::Open,
            2 => Purpose::Create,
            3 => Purpose::MayCreate,
            _ => return Err(malformed("a purpose").into()),
        };
        let path = fields.text()?.to_owned();
        Ok(ClientHello { program, token, line, purpose, path })
    }
}

impl ServerHello {
    /// As this program says it.
    pub fn own() -> ServerHello {
        ServerHello {
            program: env!("CARGO_PKG_VERSION").into(),
            requests_max: REQUESTS_MAX,
            piece_bytes_max: PIECE_BYTES,
        }
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = text(&self.program);
        body.push(0);
        // Both are small constants.
        body.extend((self.requests_max as u16).to_le_bytes());
        body.extend((self.piece_bytes_max as u32).to_le_bytes());
        with_head(&body)
    }

    /// Reads what the far end says.
    ///
    /// # Errors
    /// As in [`HelloError`].
    pub fn read(input: &mut dyn BufRead) -> Result<ServerHello, HelloError> {
        let (versions, body) = read_head(input)?;
        let mut fields = Fields(&body);
        let program = printable(fields.text()?);
        if let Some(error) = disagreement(versions, &program) {
            return Err(HelloError::Said(error));
        }
        match fields.u8()? {
            0 => {}
            code => return Err(HelloError::Said(error_of(code, fields.text()?))),
        }
        let requests_max = usize::from(fields.u16()?).clamp(1, REQUESTS_MAX);
        let piece_bytes_max = (fields.u32()? as usize).clamp(1, PIECE_BYTES);
        Ok(ServerHello { program, requests_max, piece_bytes_max })
    }
}

/// What a server says if it does not do what it is asked, as bytes.
pub fn refusal(error: &Error) -> Vec<u8> {
    let mut body = text(env!("CARGO_PKG_VERSION"));
    body.push(error_code(error));
    body.extend(text(&error.full_text()));
    with_head(&body)
}

/// The error if the other end speaks no version that this one does.
fn disagreement((lowest, highest): (u16, u16), program: &str) -> Option<Error> {
    if lowest > HIGHEST {
        let text = format!(
            "cannot talk to the other end: it has diskvault {program}, whose protocol is too new"
        );
        return Some(Error::new(ErrorKind::Newer, text).hint("update diskvault on this machine"));
    }
    (highest < LOWEST).then(|| {
        let text = format!(
            "cannot talk to the other end: it has diskvault {program}, whose protocol is too old"
        );
        Error::new(ErrorKind::Storage, text).hint("update diskvault over there")
    })
}

fn text(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let bytes = &bytes[..bytes.len().min(4 << 10)];
    // At most 4 KiB.
    let mut field = (bytes.len() as u16).to_le_bytes().to_vec();
    field.extend(bytes);
    field
}

fn with_head(body: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(LOWEST.to_le_bytes());
    bytes.extend(HIGHEST.to_le_bytes());
    // Texts of at most 4 KiB and some numbers.
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(body);
    bytes
}

/// Reads versions and body.
fn read_head(input: &mut dyn BufRead) -> Result<((u16, u16), Vec<u8>), HelloError> {
    for (at, expected) in MAGIC.into_iter().enumerate() {
        let waiting = input.fill_buf().map_err(HelloError::Line)?;
        match waiting.first() {
            Some(byte) if *byte == expected => input.consume(1),
            Some(_) => return Err(junk(&MAGIC[..at], input)),
            None => return Err(HelloError::Line(io::ErrorKind::UnexpectedEof.into())),
        }
    }
    let mut head = [0; 8];
    input.read_exact(&mut head).map_err(HelloError::Line)?;
    let mut fields = Fields(&head);
    let versions = (fields.u16()?, fields.u16()?);
    let bytes = fields.u32()? as usize;
    if bytes > BODY_BYTES_MAX {
        return Err(malformed("the greeting").into());
    }
    let mut body = vec![0; bytes];
    input.read_exact(&mut body).map_err(HelloError::Line)?;
    Ok((versions, body))
}

/// What is heard instead of a greeting: its first line with something in it.
fn junk(begun: &[u8], input: &mut dyn BufRead) -> HelloError {
    let mut heard = begun.to_vec();
    loop {
        match input.fill_buf() {
            Ok(waiting) if !waiting.is_empty() => {
                let count = waiting.len();
                heard.extend(waiting);
                input.consume(count);
            }
            _ => break,
        }
        // An empty line is no reason yet, but nor is it to be heard for ever.
        if !heard.trim_ascii().is_empty() || heard.len() > BODY_BYTES_MAX {
            break;
        }
    }
    let heard = String::from_utf8_lossy(&heard);
    let line = heard.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    HelloError::Junk(printable(line).chars().take(JUNK_SHOWN).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> ClientHello {
        ClientHello {
            program: "0.1.0".into(),
            token: [7; 32],
            line: 3,
            purpose: Purpose::Create,
            path: "/srv/a".into(),
        }
    }

    #[test]
    fn both_ends_hear_what_was_said() {
        let bytes = client().encode();
        assert_eq!(ClientHello::read(&mut &bytes[..]).unwrap(), client());
        let bytes = ServerHello::own().encode();
        assert_eq!(ServerHello::read(&mut &bytes[..]).unwrap(), ServerHello::own());
        for cut in 0..bytes.len() {
            assert!(ServerHello::read(&mut &bytes[..cut]).is_err());
        }
        let no = refusal(&Error::new(ErrorKind::NoRepository, "cannot open x: nothing there"));
        let Err(HelloError::Said(error)) = ServerHello::read(&mut &no[..]) else { panic!() };
        assert_eq!(error.kind(), ErrorKind::NoRepository);
        assert_eq!(error.full_text(), "cannot open x: nothing there");
    }

    #[test]
    fn other_versions_say_which_end_is_to_be_updated() {
        let mut bytes = client().encode();
        for (versions, kind, hint) in [
            ([99_u16, 99], ErrorKind::Newer, "update diskvault on this machine"),
            ([0, 0], ErrorKind::Storage, "update diskvault over there"),
        ] {
            bytes[8..10].copy_from_slice(&versions[0].to_le_bytes());
            bytes[10..12].copy_from_slice(&versions[1].to_le_bytes());
            let Err(HelloError::Said(error)) = ServerHello::read(&mut &bytes[..]) else { panic!() };
            assert_eq!((error.kind(), error.hint_text()), (kind, Some(hint)));
            assert!(error.full_text().contains("diskvault 0.1.0"), "{error:?}");
        }
        // One that speaks this version and later ones is understood.
        bytes[8..10].copy_from_slice(&1_u16.to_le_bytes());
        bytes[10..12].copy_from_slice(&9_u16.to_le_bytes());
        assert_eq!(ClientHello::read(&mut &bytes[..]).unwrap(), client());
    }

    #[test]
    fn what_a_shell_prints_is_shown_and_not_obeyed() {
        for (printed, shown) in [
            ("\nWelcome to \x1b[1mnas\x1b[0m!\nmore", "Welcome to \\u{1b}[1mnas\\u{1b}[0m!"),
            ("dvfar 1.0\n", "dvfar 1.0"),
        ] {
            match ServerHello::read(&mut printed.as_bytes()) {
                Err(HelloError::Junk(text)) => assert_eq!(text, shown),
                other => panic!("{other:?}"),
            }
        }
        let long = vec![b'x'; 1 << 20];
        let Err(HelloError::Junk(text)) = ServerHello::read(&mut &long[..]) else { panic!() };
        assert_eq!(text.len(), JUNK_SHOWN);
    }
}

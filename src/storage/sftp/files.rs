//! What is done with files over a session: one function for each, with as few round trips as there
//! can be.
//!
//! Invariant: a file gets its final name only when all its bytes were written and, where the server
//! can, made durable; and never gets one that is taken.

use super::packets::{
    Attributes, CLOSE, END, EXTENDED, FOR_NEW, FOR_READING, LSTAT, MKDIR, NO_SUCH_FILE, OK, OPEN,
    OPENDIR, PERMISSION_DENIED, Packet, READ, READDIR, REMOVE, RENAME, Reply, UNSUPPORTED, WRITE,
    parse_numbers,
};
use super::session::{Pending, Session};
use crate::storage::far::Cut;
use std::collections::VecDeque;
use std::io::{self, ErrorKind as Io};

/// Requests for pieces of one file at the same time.
const WINDOW: usize = 32;

/// Folders that are read at the same time.
const FOLDERS_AT_ONCE: usize = 16;

/// What went wrong.
#[derive(Debug)]
pub enum Trouble {
    /// The line.
    Cut(Cut),
    /// The file, as the server says.
    File(io::Error),
}

impl From<Cut> for Trouble {
    fn from(cut: Cut) -> Trouble {
        Trouble::Cut(cut)
    }
}

impl Trouble {
    /// True if there is no such file.
    pub fn is_absent(&self) -> bool {
        matches!(self, Trouble::File(cause) if cause.kind() == Io::NotFound)
    }
}

type Done<T> = Result<T, Trouble>;

/// What a server that keeps to the protocol does not say.
fn nonsense() -> Trouble {
    Trouble::File(io::Error::new(Io::InvalidData, "the server's reply makes no sense"))
}

fn failed(code: u32, text: &str) -> Trouble {
    let kind = match code {
        NO_SUCH_FILE => Io::NotFound,
        PERMISSION_DENIED => Io::PermissionDenied,
        UNSUPPORTED => Io::Unsupported,
        END => Io::UnexpectedEof,
        _ => Io::Other,
    };
    let text = crate::storage::far::printable(text);
    Trouble::File(io::Error::new(kind, format!("the server says: {text}")))
}

/// That a request was done.
fn done(pending: Pending<'_>) -> Done<()> {
    match pending.reply()? {
        Reply::Status(OK, _) => Ok(()),
        Reply::Status(code, text) => Err(failed(code, &text)),
        _ => Err(nonsense()),
    }
}

fn handle(pending: Pending<'_>) -> Done<Vec<u8>> {
    match pending.reply()? {
        Reply::Handle(handle) if handle.len() <= 256 => Ok(handle),
        Reply::Status(code, text) => Err(failed(code, &text)),
        _ => Err(nonsense()),
    }
}

fn named(kind: u8, path: &str) -> impl FnOnce(u32) -> Packet {
    move |number| Packet::new(kind, number).bytes(path.as_bytes())
}

fn attributes(pending: Pending<'_>) -> Done<Option<Attributes>> {
    match pending.reply()? {
        Reply::Attributes(attributes) => Ok(Some(attributes)),
        Reply::Status(NO_SUCH_FILE, _) => Ok(None),
        Reply::Status(code, text) => Err(failed(code, &text)),
        _ => Err(nonsense()),
    }
}

/// What is known of a path, links not followed; `None` if there is nothing.
pub fn look(session: &Session, path: &str) -> Done<Option<Attributes>> {
    attributes(session.call(named(LSTAT, path))?)
}

/// Makes a folder; false if that failed, as it does if it is there.
pub fn make_folder(session: &Session, path: &str) -> Done<bool> {
    let pending = session.call(|number| named(MKDIR, path)(number).u32(4).u32(0o700))?;
    match pending.reply()? {
        Reply::Status(OK, _) => Ok(true),
        Reply::Status(PERMISSION_DENIED, text) => Err(failed(PERMISSION_DENIED, &text)),
        Reply::Status(..) => Ok(false),
        _ => Err(nonsense()),
    }
}

/// Removes a file; that there is none is no error.
pub fn remove(session: &Session, path: &str) -> Done<()> {
    match done(session.call(named(REMOVE, path))?) {
        Err(trouble) if trouble.is_absent() => Ok(()),
        other => other,
    }
}

/// Bytes of a piece that the server takes.
fn piece_bytes(session: &Session) -> usize {
    // What every server takes, and what OpenSSH takes in one packet since it tells its limits.
    if session.extension("limits@openssh.com").is_some() { 128 << 10 } else { 32 << 10 }
}

/// Writes a new file and makes its bytes durable, where the server can.
pub fn write(session: &Session, path: &str, data: &[u8]) -> Done<()> {
    let open = |number| named(OPEN, path)(number).u32(FOR_NEW).u32(4).u32(0o600);
    let handle = handle(session.call(open)?)?;
    let written = write_pieces(session, &handle, data).and_then(|()| {
        match session.extension("fsync@openssh.com") {
            Some(_) => done(session.call(|number| {
                Packet::new(EXTENDED, number).bytes(b"fsync@openssh.com").bytes(&handle)
            })?),
            None => Ok(()),
        }
    });
    let closed = done(session.call(|number| Packet::new(CLOSE, number).bytes(&handle))?);
    written.and(closed)
}

fn write_pieces(session: &Session, handle: &[u8], data: &[u8]) -> Done<()> {
    let mut waiting = VecDeque::new();
    let mut offset = 0;
    for piece in data.chunks(piece_bytes(session)) {
        if waiting.len() >= WINDOW
            && let Some(first) = waiting.pop_front()
        {
            done(first)?;
        }
        waiting
            .push_back(session.call(|number| {
                Packet::new(WRITE, number).bytes(handle).u64(offset).bytes(piece)
            })?);
        offset += piece.len() as u64;
    }
    waiting.into_iter().try_for_each(done)
}

/// Gives a file a second name that is free, and takes the first one away. False if the second is
/// taken.
pub fn move_new(session: &Session, from: &str, to: &str) -> Done<bool> {
    if session.extension("hardlink@openssh.com").is_some() {
        let linked = done(session.call(|number| {
            let packet = Packet::new(EXTENDED, number).bytes(b"hardlink@openssh.com");
            packet.bytes(from.as_bytes()).bytes(to.as_bytes())
        })?);
        match linked {
            Ok(()) => return remove(session, from).map(|()| true),
            Err(trouble) if trouble.is_absent() => return Err(trouble),
            Err(Trouble::Cut(cut)) => return Err(cut.into()),
            // The name is taken, or the file system knows no links.
            Err(Trouble::File(_)) => {}
        }
    }
    if look(session, to)?.is_some() {
        return Ok(false);
    }
    // By the standard this does not replace.
    done(session.call(|number| named(RENAME, from)(number).bytes(to.as_bytes()))?)?;
    Ok(true)
}

/// A plain file that is open, and its size.
pub fn open(session: &Session, path: &str) -> Done<(Vec<u8>, u64)> {
    // Both at once: a server follows links when it opens.
    let looked = session.call(named(LSTAT, path))?;
    let opened = session.call(|number| named(OPEN, path)(number).u32(FOR_READING).u32(0))?;
    let found = attributes(looked)?;
    match (found.filter(Attributes::is_file), handle(opened)) {
        (Some(Attributes { bytes: Some(bytes), .. }), Ok(handle)) => Ok((handle, bytes)),
        (None, opened) => {
            if let Ok(handle) = opened {
                close(session, &handle)?;
            }
            Err(Trouble::File(Io::NotFound.into()))
        }
        (Some(_), Err(trouble)) => Err(trouble),
        (Some(_), Ok(handle)) => {
            close(session, &handle)?;
            Err(nonsense())
        }
    }
}

/// Closes a file that was read, without waiting for it.
pub fn close(session: &Session, handle: &[u8]) -> Done<()> {
    session.call(|number| Packet::new(CLOSE, number).bytes(handle))?;
    Ok(())
}

/// Fills the buffer from `offset` on; a file that ends before is an `UnexpectedEof`.
pub fn read(session: &Session, handle: &[u8], offset: u64, buffer: &mut [u8]) -> Done<()> {
    let piece = piece_bytes(session).min(64 << 10);
    let ask = |at: usize, bytes: usize| {
        session.call(|number| {
            // A piece is small.
            Packet::new(READ, number).bytes(handle).u64(offset + at as u64).u32(bytes as u32)
        })
    };
    let mut waiting = VecDeque::new();
    let mut asked = 0;
    let whole = buffer.len();
    loop {
        while waiting.len() < WINDOW && asked < whole {
            let bytes = piece.min(whole - asked);
            waiting.push_back((asked, bytes, ask(asked, bytes)?));
            asked += bytes;
        }
        let Some((at, bytes, pending)) = waiting.pop_front() else { return Ok(()) };
        match pending.reply()? {
            Reply::Data(data) if (1..=bytes).contains(&data.len()) => {
                buffer[at..at + data.len()].copy_from_slice(&data);
                if data.len() < bytes {
                    // A server may give less than was asked for.
                    let (at, bytes) = (at + data.len(), bytes - data.len());
                    waiting.push_front((at, bytes, ask(at, bytes)?));
                }
            }
            Reply::Status(code, text) => return Err(failed(code, &text)),
            _ => return Err(nonsense()),
        }
    }
}

/// A name in a folder, and what it is.
pub type Entry = (Vec<u8>, Attributes);

/// Reads folders, some at the same time; one that is not there is `None`.
pub fn list(session: &Session, paths: &[String]) -> Done<Vec<Option<Vec<Entry>>>> {
    let mut found = Vec::new();
    for some in paths.chunks(FOLDERS_AT_ONCE) {
        let opened: Vec<_> =
            some.iter().map(|path| session.call(named(OPENDIR, path))).collect::<Result<_, _>>()?;
        let mut handles = Vec::new();
        for pending in opened {
            handles.push(match handle(pending) {
                Ok(handle) => Some(handle),
                Err(trouble) if trouble.is_absent() => None,
                Err(trouble) => return Err(trouble),
            });
        }
        let ask =
            |handle: &Vec<u8>| session.call(|number| Packet::new(READDIR, number).bytes(handle));
        let first: Vec<_> = handles
            .iter()
            .map(|handle| handle.as_ref().map(ask).transpose())
            .collect::<Result<_, _>>()?;
        for (handle, pending) in handles.iter().zip(first) {
            let (Some(handle), Some(mut pending)) = (handle, pending) else {
                found.push(None);
                continue;
            };
            let mut entries = Vec::new();
            loop {
                match pending.reply()? {
                    Reply::Names(names) => entries.extend(names),
                    Reply::Status(END, _) => break,
                    Reply::Status(code, text) => return Err(failed(code, &text)),
                    _ => return Err(nonsense()),
                }
                pending = ask(handle)?;
            }
            entries.retain(|(name, _)| !matches!(name.as_slice(), b"." | b".."));
            close(session, handle)?;
            found.push(Some(entries));
        }
    }
    Ok(found)
}

/// Free bytes where a path is, if the server can tell.
pub fn room(session: &Session, path: &str) -> Done<Option<u64>> {
    if session.extension("statvfs@openssh.com").is_none() {
        return Ok(None);
    }
    let pending = session.call(|number| {
        Packet::new(EXTENDED, number).bytes(b"statvfs@openssh.com").bytes(path.as_bytes())
    })?;
    Ok(match pending.reply()? {
        Reply::Extended(body) => match parse_numbers(&body)[..] {
            // Block and fragment size, all blocks, free ones, and those that we may use.
            [_, fragment, blocks, _, available, ..] if blocks > 0 => {
                Some(available.saturating_mul(fragment))
            }
            _ => None,
        },
        _ => None,
    })
}

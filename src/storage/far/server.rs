//! The far end: takes requests from a line and does them on a folder of this machine.
//!
//! Invariants: nothing but the protocol is written to the line; a change is checked against what the
//! login may do before anything is touched, and one that is refused is told to the owner of this end;
//! memory is bounded whatever comes, because pieces go to the disk as they come. What was taken is
//! done to its end, also if the line is cut meanwhile.

use super::hello::{ClientHello, HelloError, Purpose, ServerHello, refusal};
use super::login::Login;
use super::message::{Answer, BODY_BYTES_MAX, Frame, Request, pages};
use super::outbox::Outbox;
use super::permissions::{Access, Change, Known, check, folder};
use super::{PIECE_BYTES, REQUESTS_MAX};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::local::{LocalStorage, Unfinished};
use crate::storage::{ObjectName, Storage, absent, taken, too_long, too_short};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

/// Requests that are worked on at the same time.
const WORKERS: usize = 8;

/// Bytes of an object that is put; the largest there are have 1 GiB.
const OBJECT_BYTES_MAX: u64 = 2 << 30;

/// Hears of what was refused, one line each.
pub type Notice = Arc<dyn Fn(&str) + Send + Sync>;

/// How a line is served.
#[derive(Clone)]
pub struct ServerOptions {
    /// What the login may do.
    pub access: Access,
    /// The folders that it may name, and all below them; all there are if there is none.
    pub restrict_to: Vec<PathBuf>,
    /// Where `~/` is.
    pub home: Option<PathBuf>,
    /// Hears of what was refused.
    pub notice: Notice,
}

/// Serves a line up to its end.
///
/// # Errors
/// What the client was told if there is nothing to serve; `Storage` for a line that fails or a
/// client that does not keep to the protocol.
pub fn serve(
    input: impl Read,
    mut output: impl Write + Send,
    options: &ServerOptions,
) -> Result<()> {
    let mut input = BufReader::with_capacity(BODY_BYTES_MAX / 8, input);
    let session = match greet(&mut input, options) {
        Ok(Some(session)) => session,
        Ok(None) => {
            let said = output.write_all(&ServerHello::own().encode()).and_then(|()| output.flush());
            return said.map_err(|cause| Error::io(ErrorKind::Storage, "cannot answer", cause));
        }
        Err(error) => {
            (options.notice)(&error.full_text());
            // If this fails as well, nobody is there.
            let _ = output.write_all(&refusal(&error)).and_then(|()| output.flush());
            return Err(error);
        }
    };
    session.outbox.urgent(ServerHello::own().encode());
    let (jobs, taken) = bounded(REQUESTS_MAX);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| session.outbox.write_all(&mut output, None));
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| {
                let taken = taken.clone();
                scope.spawn(|| session.work(taken))
            })
            .collect();
        let read = session.read(&mut input, jobs);
        for worker in workers {
            // One that panicked has told so; the others go on.
            let _ = worker.join();
        }
        session.outbox.close();
        let _ = writer.join();
        read
    })
}

/// Hears what the client wants, and opens it; `None` if it only wanted to know whether it could be
/// made: then there is nothing to be served.
fn greet(input: &mut dyn BufRead, options: &ServerOptions) -> Result<Option<Session>> {
    let hello = ClientHello::read(input).map_err(|error| match error {
        HelloError::Said(error) => error,
        HelloError::Line(cause) => {
            Error::io(ErrorKind::Storage, "cannot hear what the other end wants", cause)
        }
        HelloError::Junk(text) => {
            let text = format!("cannot understand the other end: \"{text}\" was heard");
            Error::new(ErrorKind::Storage, text)
        }
    })?;
    let path = folder(&hello.path, options.home.as_deref(), &options.restrict_to)?;
    let may_make = options.access == Access::Full;
    let storage = match hello.purpose {
        Purpose::Open => LocalStorage::open(&path)?,
        Purpose::Create if may_make => LocalStorage::create(&path)?,
        Purpose::Create => {
            let what = format!("cannot create repository {}", hello.path.escape_debug());
            return Err(super::permissions::refused(what, "this login may make none"));
        }
        Purpose::MayCreate => {
            return LocalStorage::may_create(&path).map(|()| None);
        }
    };
    let login = (hello.purpose == Purpose::Open && options.access != Access::ReadOnly).then(|| {
        let keeps = options.access == Access::AppendOnly;
        Login::enter(&storage.temporary_folder(), &hello.token, hello.line, keeps)
    });
    let (access, notice) = (options.access, options.notice.clone());
    Ok(Some(Session { storage, login, access, notice, outbox: Outbox::default() }))
}

struct Session {
    storage: LocalStorage,
    login: Option<Login>,
    access: Access,
    notice: Notice,
    outbox: Outbox,
}

/// Something to do, with the number of its request.
enum Job {
    Request(u64, Request),
    Finish(u64, ObjectName, Unfinished),
}

/// An object of which not all bytes have come.
struct Upload {
    name: ObjectName,
    unfinished: Unfinished,
    left: u64,
}

impl Known for Session {
    fn is_own(&self, name: &ObjectName) -> bool {
        self.login.as_ref().is_some_and(|login| login.has_put(name))
    }

    fn exists(&self, name: &ObjectName) -> bool {
        self.storage.size(name).map_or(true, |size| size.is_some())
    }
}

impl Session {
    /// Takes requests until the line ends.
    fn read(&self, input: &mut dyn Read, jobs: Sender<Job>) -> Result<()> {
        let mut uploads = HashMap::new();
        loop {
            let frame = match Frame::read(input) {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(()),
                Err(cause) => {
                    return Err(Error::io(ErrorKind::Storage, "cannot read a request", cause));
                }
            };
            // Nobody hears an answer any more.
            if self.outbox.is_closed() {
                return Ok(());
            }
            let id = frame.id;
            let job = match Request::decode(frame.kind, frame.body) {
                Ok(request) => self.take(id, request, &mut uploads),
                Err(error) => Err(error),
            };
            match job {
                Ok(Some(job)) => {
                    // The workers stay for as long as there is a sender.
                    let _ = jobs.send(job);
                }
                Ok(None) => {}
                Err(error) => {
                    uploads.remove(&id);
                    self.answer(id, &Answer::Failed(self.noticed(error)));
                }
            }
        }
    }

    /// Takes a request: what belongs to a put is done at once.
    fn take(
        &self,
        id: u64,
        request: Request,
        uploads: &mut HashMap<u64, Upload>,
    ) -> Result<Option<Job>> {
        match request {
            Request::Put { name, bytes } => {
                if uploads.len() >= REQUESTS_MAX || uploads.contains_key(&id) {
                    let text = format!("cannot write {name}: too many requests");
                    return Err(Error::new(ErrorKind::Usage, text));
                }
                if bytes > OBJECT_BYTES_MAX {
                    let text = format!("cannot write {name}: it is too large");
                    return Err(Error::new(ErrorKind::Usage, text));
                }
                check(self.access, Change::Put(&name), self)?;
                if self.storage.size(&name)?.is_some() {
                    return Err(taken(&name));
                }
                let unfinished = self.storage.begin(&name)?;
                uploads.insert(id, Upload { name, unfinished, left: bytes });
                Ok(self.received(id, uploads))
            }
            Request::Piece(piece) => {
                // It failed, and the client has not heard yet.
                let Some(upload) = uploads.get_mut(&id) else { return Ok(None) };
                let Some(left) = upload.left.checked_sub(piece.len() as u64) else {
                    let text = format!("cannot write {}: more bytes than were said", upload.name);
                    return Err(Error::new(ErrorKind::Usage, text));
                };
                upload.unfinished.write(&piece)?;
                upload.left = left;
                Ok(self.received(id, uploads))
            }
            Request::Ping => {
                self.answer(id, &Answer::Done(None));
                Ok(None)
            }
            request => Ok(Some(Job::Request(id, request))),
        }
    }

    /// What is left to be done with an object of which all bytes have come.
    fn received(&self, id: u64, uploads: &mut HashMap<u64, Upload>) -> Option<Job> {
        if uploads.get(&id).is_none_or(|upload| upload.left > 0) {
            return None;
        }
        let upload = uploads.remove(&id)?;
        self.answer(id, &Answer::Received);
        Some(Job::Finish(id, upload.name, upload.unfinished))
    }

    fn answer(&self, id: u64, answer: &Answer) {
        self.outbox.urgent(answer.encode(id));
    }

    /// Tells the owner of this end of what was refused or makes no sense.
    fn noticed(&self, error: Error) -> Error {
        // Names are random or hashes: who meets one that is taken wants to replace it.
        let is_odd = matches!(error.kind(), ErrorKind::Usage | ErrorKind::AlreadyExists);
        if is_odd || crate::storage::is_refused(&error) {
            (self.notice)(&error.full_text());
        }
        error
    }

    fn work(&self, jobs: Receiver<Job>) {
        for job in jobs {
            match job {
                Job::Request(id, request) => match self.perform(id, &request) {
                    Ok(Some(answer)) => self.answer(id, &answer),
                    Ok(None) => {}
                    Err(error) => {
                        // Behind the pieces that were sent, if there are some.
                        let failed = Answer::Failed(self.noticed(error));
                        self.outbox.bulk_wait(failed.encode(id));
                    }
                },
                Job::Finish(id, name, unfinished) => {
                    let answer = match unfinished.finish() {
                        Ok(()) => {
                            if let Some(login) = &self.login {
                                login.record(&name);
                            }
                            Answer::Done(None)
                        }
                        Err(error) => Answer::Failed(self.noticed(error)),
                    };
                    self.answer(id, &answer);
                }
            }
        }
    }

    /// Does one request; `None` if it was answered.
    fn perform(&self, id: u64, request: &Request) -> Result<Option<Answer>> {
        let storage = &self.storage;
        let number = |number: Option<u64>| Ok(Some(Answer::Done(number)));
        match request {
            Request::Get { name, bytes_max } => {
                let bytes = storage.size(name)?.ok_or_else(|| absent(name))?;
                if bytes > *bytes_max {
                    return Err(too_long(name, bytes, *bytes_max));
                }
                self.send(id, name, 0, bytes, None)
            }
            Request::Range { name, offset, bytes } => {
                let whole = storage.size(name)?.ok_or_else(|| absent(name))?;
                if offset.checked_add(*bytes).is_none_or(|end| end > whole) {
                    let bytes = usize::try_from(*bytes).unwrap_or(usize::MAX);
                    return Err(too_short(name, *offset, bytes));
                }
                self.send(id, name, *offset, *bytes, None)
            }
            Request::Tail { name, bytes } => {
                let whole = storage.size(name)?.ok_or_else(|| absent(name))?;
                let wanted = whole.min(*bytes);
                self.send(id, name, whole - wanted, wanted, Some(whole))
            }
            Request::Size { name } => number(storage.size(name)?),
            Request::List { folder } => {
                let sent = pages(storage.list(*folder)?)
                    .all(|page| self.outbox.bulk_wait(page.encode(id)));
                self.end(id, sent, None)
            }
            Request::Foreign => {
                let names = Answer::Names(storage.foreign()?);
                let sent = self.outbox.bulk_wait(names.encode(id));
                self.end(id, sent, None)
            }
            Request::Delete { name } => {
                check(self.access, Change::Delete(name), self)?;
                storage.delete(name)?;
                number(None)
            }
            Request::Rename { from, to, is_again } => {
                check(self.access, Change::Rename(from), self)?;
                self.rename(from, to, *is_again)?;
                number(None)
            }
            Request::Room => number(storage.room()?),
            Request::Same { name, bytes, digest } => {
                let is_same = self.is_same(name, *bytes, digest)?;
                number(Some(u64::from(is_same)))
            }
            Request::Put { .. } | Request::Piece(_) | Request::Ping => number(None),
        }
    }

    fn rename(&self, from: &ObjectName, to: &ObjectName, is_again: bool) -> Result<()> {
        match self.storage.rename(from, to) {
            Err(error)
                if is_again
                    && error.kind() == ErrorKind::NotFound
                    && self.storage.size(to)?.is_some() =>
            {
                // It was done; whether it is durable nobody has said.
                self.storage.settle(to)?;
                self.storage.settle(from)
            }
            done => done,
        }
    }

    /// Sends bytes of an object, and the end.
    fn send(
        &self,
        id: u64,
        name: &ObjectName,
        offset: u64,
        bytes: u64,
        number: Option<u64>,
    ) -> Result<Option<Answer>> {
        let sent = self.each_piece(name, offset, bytes, &mut |piece| {
            self.outbox.bulk_wait(Answer::Piece(piece.to_vec()).encode(id))
        })?;
        self.end(id, sent, number)
    }

    /// Says that a request is done, behind its pieces.
    fn end(&self, id: u64, is_heard: bool, number: Option<u64>) -> Result<Option<Answer>> {
        if is_heard {
            self.outbox.bulk_wait(Answer::Done(number).encode(id));
        }
        Ok(None)
    }

    /// Reads a part of an object, piece by piece, for as long as `take` wants more.
    fn each_piece(
        &self,
        name: &ObjectName,
        offset: u64,
        bytes: u64,
        take: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<bool> {
        let mut buffer = vec![0; PIECE_BYTES.min(usize::try_from(bytes).unwrap_or(PIECE_BYTES))];
        let mut done = 0;
        loop {
            // No more than the buffer has. An empty part is read, too: the object may not be there.
            let count = (bytes - done).min(buffer.len() as u64) as usize;
            self.storage.get_range(name, offset + done, &mut buffer[..count])?;
            if count > 0 && !take(&buffer[..count]) {
                return Ok(false);
            }
            done += count as u64;
            if done == bytes {
                return Ok(true);
            }
        }
    }

    /// Whether an object has these bytes; if so, it is durable.
    fn is_same(&self, name: &ObjectName, bytes: u64, digest: &[u8; 32]) -> Result<bool> {
        if self.storage.size(name)? != Some(bytes) {
            return Ok(false);
        }
        let mut hasher = blake3::Hasher::new();
        self.each_piece(name, 0, bytes, &mut |piece| {
            hasher.update(piece);
            true
        })?;
        if hasher.finalize().as_bytes() != digest {
            return Ok(false);
        }
        self.storage.settle(name)?;
        Ok(true)
    }
}

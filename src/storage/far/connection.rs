//! One line that stands: a thread that writes, one that reads, and the requests that wait for their
//! answers.
//!
//! Invariant: a request gets all its answers or learns that the line was cut, in bounded time: a line
//! on which nothing comes while somebody waits is asked for a sign of life, and cut without one.

use super::hello::{ClientHello, HelloError, ServerHello};
use super::lock;
use super::message::{Answer, Frame, Request, encode_piece};
use super::outbox::{Outbox, Pushed};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::throttle::{Limits, Throttle};
use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often who waits looks around.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The number of a request that asks for nothing but a sign of life.
const PING_ID: u64 = 0;

/// How lines are made, to one place.
pub trait Dialer: Send + Sync {
    /// Makes a line.
    ///
    /// # Errors
    /// `Failed` if the program that makes it cannot be started.
    fn dial(&self) -> Result<Line>;

    /// The place, for messages.
    fn location(&self) -> String;
}

/// A line to a program at the far end.
pub struct Line {
    /// What it says.
    pub input: Box<dyn Read + Send>,
    /// What it is told.
    pub output: Box<dyn Write + Send>,
    /// Ends it.
    pub control: Box<dyn LineControl>,
}

/// What can be done to a line from outside.
pub trait LineControl: Send + Sync {
    /// Ends it at once.
    fn cut(&self);

    /// Why it has ended, as far as is known, with a hint; called after the input has ended.
    fn farewell(&self) -> (String, Option<&'static str>);
}

/// The line is gone, and why; the request may have been done or not.
#[derive(Clone, Debug)]
pub struct Cut(pub String);

/// Why there is no connection.
pub enum Unreached {
    /// The far end said no; it would say so again.
    Said(Error),
    /// The line could not be made or failed.
    Line(Error),
}

/// How connections behave.
#[derive(Clone)]
pub struct Manners {
    /// How fast bytes go.
    pub limits: Limits,
    /// A line on which nothing comes for so long, while something is waited for, is cut.
    pub silence: Duration,
    /// So long the far end may take for its first word.
    pub greeting: Duration,
}

/// A line that stands, or did.
pub struct Connection {
    outbox: Outbox,
    control: Box<dyn LineControl>,
    calls: Mutex<Calls>,
    room: Condvar,
    silence: Duration,
    server: Mutex<Option<ServerHello>>,
    sent_bytes: AtomicU64,
}

struct Calls {
    waiting: HashMap<u64, Sender<Answer>>,
    next: u64,
    /// When the last message came, or the first of these calls began.
    heard: Instant,
    pinged: Instant,
    ended: Option<Cut>,
}

impl Connection {
    /// Makes a line and says hello.
    pub fn open(
        dialer: &dyn Dialer,
        hello: &ClientHello,
        manners: &Manners,
        look: &dyn Fn() -> Result<()>,
    ) -> Result<Arc<Connection>, Unreached> {
        let location = dialer.location();
        let line = dialer.dial().map_err(Unreached::Line)?;
        let now = Instant::now();
        let connection = Arc::new(Connection {
            outbox: Outbox::default(),
            control: line.control,
            calls: Mutex::new(Calls {
                waiting: HashMap::new(),
                next: PING_ID + 1,
                heard: now,
                pinged: now,
                ended: None,
            }),
            room: Condvar::new(),
            silence: manners.silence,
            server: Mutex::new(None),
            sent_bytes: AtomicU64::new(0),
        });
        connection.outbox.urgent(hello.encode());
        let (said, says) = channel();
        let writer = connection.clone();
        let reader = connection.clone();
        let (upload, download) = (manners.limits.upload.clone(), manners.limits.download.clone());
        spawn("far-write", move || writer.write(line.output, upload.as_deref()))?;
        let input = Paced { inner: line.input, throttle: download };
        spawn("far-read", move || {
            reader.read(&mut BufReader::with_capacity(128 << 10, input), &said)
        })?;
        match connection.greet(&says, manners.greeting, look) {
            Ok(server) => {
                *lock(&connection.server) = Some(server);
                Ok(connection)
            }
            Err(why) => {
                // Before it is cut, for that is no reason.
                let unreached = unreached(why, &connection, &location);
                connection.control.cut();
                connection.end("it was given up");
                Err(unreached)
            }
        }
    }

    /// Waits for the far end's first word.
    fn greet(
        &self,
        says: &Receiver<Result<ServerHello, HelloError>>,
        longest: Duration,
        look: &dyn Fn() -> Result<()>,
    ) -> Result<ServerHello, HelloError> {
        let until = Instant::now() + longest;
        loop {
            match says.recv_timeout(LOOK_INTERVAL) {
                Ok(said) => return said,
                Err(RecvTimeoutError::Timeout) if Instant::now() < until => {
                    look().map_err(HelloError::Said)?;
                }
                Err(_) => return Err(HelloError::Line(io::ErrorKind::TimedOut.into())),
            }
        }
    }

    fn write(&self, mut output: Box<dyn Write + Send>, throttle: Option<&Throttle>) {
        if let Err(cause) = self.outbox.write_all(&mut *output, throttle) {
            // The reader knows better why, if it comes to its end.
            std::thread::sleep(LOOK_INTERVAL);
            self.end(&cause.to_string());
        }
    }

    fn read<R: Read>(
        &self,
        input: &mut BufReader<R>,
        said: &Sender<Result<ServerHello, HelloError>>,
    ) {
        let hello = ServerHello::read(input);
        let is_well = hello.is_ok();
        // Nobody listens any more if it came too late.
        let is_heard = said.send(hello).is_ok();
        if !is_well || !is_heard {
            return;
        }
        let why = loop {
            let frame = match Frame::read(input) {
                Ok(Some(frame)) => frame,
                Ok(None) => break None,
                Err(cause) if cause.kind() == io::ErrorKind::InvalidData => {
                    break Some(format!("the far end sent {cause}"));
                }
                Err(_) => break None,
            };
            match Answer::decode(frame.kind, frame.body) {
                Ok(answer) => self.deliver(frame.id, answer),
                Err(error) => break Some(error.full_text()),
            }
        };
        if why.is_some() {
            self.control.cut();
        }
        let why = why.unwrap_or_else(|| self.control.farewell().0);
        self.end(&why);
    }

    fn deliver(&self, id: u64, answer: Answer) {
        let mut calls = lock(&self.calls);
        calls.heard = Instant::now();
        let is_last = matches!(answer, Answer::Done(_) | Answer::Failed(_));
        let to = if is_last { calls.waiting.remove(&id) } else { calls.waiting.get(&id).cloned() };
        // Who does not wait any more has given up.
        if let Some(to) = to {
            let _ = to.send(answer);
        }
        if is_last {
            self.room.notify_all();
        }
    }

    /// Lets everybody know that the line is gone; the first reason counts.
    fn end(&self, why: &str) {
        let mut calls = lock(&self.calls);
        if calls.ended.is_none() {
            calls.ended = Some(Cut(why.to_owned()));
        }
        calls.waiting.clear();
        self.room.notify_all();
        self.outbox.abandon();
    }

    /// Whether it still stands.
    pub fn is_open(&self) -> bool {
        lock(&self.calls).ended.is_none()
    }

    /// Bytes of pieces that were sent.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Sends a request.
    pub fn call(&self, request: &Request) -> Result<Call<'_>, Cut> {
        let requests_max = lock(&self.server).as_ref().map_or(1, |server| server.requests_max);
        let mut calls = lock(&self.calls);
        while calls.ended.is_none() && calls.waiting.len() >= requests_max {
            let waited = self.room.wait_timeout(calls, LOOK_INTERVAL);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            self.look_after()?;
            calls = lock(&self.calls);
        }
        if let Some(cut) = &calls.ended {
            return Err(cut.clone());
        }
        if calls.waiting.is_empty() {
            calls.heard = Instant::now();
        }
        let id = calls.next;
        calls.next += 1;
        let (to, answers) = channel();
        calls.waiting.insert(id, to);
        self.outbox.urgent(request.encode(id));
        Ok(Call { connection: self, id, answers })
    }

    /// Asks a silent line for a sign of life, and cuts it when there is none.
    fn look_after(&self) -> Result<(), Cut> {
        let mut calls = lock(&self.calls);
        if let Some(cut) = &calls.ended {
            return Err(cut.clone());
        }
        let silent = calls.heard.elapsed();
        if silent >= self.silence {
            drop(calls);
            self.end(&format!("nothing came for {} s", self.silence.as_secs_f32()));
            self.control.cut();
        } else if silent >= self.silence / 10 && calls.pinged.elapsed() >= self.silence / 10 {
            calls.pinged = Instant::now();
            self.outbox.urgent(Request::Ping.encode(PING_ID));
        }
        Ok(())
    }

    fn cut_reason(&self) -> Cut {
        lock(&self.calls).ended.clone().unwrap_or_else(|| Cut("it was closed".into()))
    }
}

impl Connection {
    /// Ends the line when what waits has been written.
    pub fn close(&self) {
        self.outbox.close();
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Unreached> {
    let started = std::thread::Builder::new().name(name.into()).spawn(work);
    started.map(drop).map_err(|cause| {
        Unreached::Line(Error::io(ErrorKind::Failed, "cannot start a thread for the line", cause))
    })
}

/// The error for what went wrong before the far end's first word was over.
fn unreached(why: HelloError, connection: &Connection, location: &str) -> Unreached {
    let cannot =
        |why: &str| Error::new(ErrorKind::Storage, format!("cannot reach {location}: {why}"));
    match why {
        HelloError::Said(error) => Unreached::Said(error),
        HelloError::Junk(text) => {
            let text = format!("instead of a diskvault there, \"{text}\" was heard");
            let hint = "what logs in without a terminal there may print nothing, and \
                        `diskvault serve --stdio` has to run";
            Unreached::Said(cannot(&text).hint(hint))
        }
        HelloError::Line(cause) if cause.kind() == io::ErrorKind::TimedOut => {
            Unreached::Line(cannot("it does not answer"))
        }
        HelloError::Line(_) => {
            let (text, hint) = connection.control.farewell();
            let error = cannot(&text);
            match hint {
                // To wait does not bring it there.
                Some(hint) => Unreached::Said(error.hint(hint)),
                None => Unreached::Line(error),
            }
        }
    }
}

/// A request that waits for its answers.
pub struct Call<'a> {
    connection: &'a Connection,
    id: u64,
    answers: Receiver<Answer>,
}

impl Call<'_> {
    /// The next answer.
    pub fn answer(&self) -> Result<Answer, Cut> {
        loop {
            match self.answers.recv_timeout(LOOK_INTERVAL) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Timeout) => self.connection.look_after()?,
                Err(RecvTimeoutError::Disconnected) => return Err(self.connection.cut_reason()),
            }
        }
    }

    /// An answer that has come already.
    pub fn early_answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }

    /// Sends a piece of what is put.
    pub fn piece(&self, piece: &[u8]) -> Result<(), Cut> {
        let mut message = encode_piece(self.id, piece);
        loop {
            match self.connection.outbox.bulk(message, LOOK_INTERVAL) {
                Pushed::Taken => {
                    let bytes = piece.len() as u64;
                    self.connection.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
                    return Ok(());
                }
                Pushed::Closed => return Err(self.connection.cut_reason()),
                Pushed::Full(back) => {
                    message = back;
                    self.connection.look_after()?;
                }
            }
        }
    }

    /// Bytes of a piece that the far end takes.
    pub fn piece_bytes(&self) -> usize {
        lock(&self.connection.server).as_ref().map_or(1 << 10, |server| server.piece_bytes_max)
    }

    /// The far end does not keep to the protocol: the line is of no use any more.
    pub fn protest(&self, what: &str) -> Cut {
        self.connection.end(&format!("the far end broke the protocol: {what}"));
        self.connection.control.cut();
        self.connection.cut_reason()
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        lock(&self.connection.calls).waiting.remove(&self.id);
        self.connection.room.notify_all();
    }
}

/// Reads no faster than it may.
pub struct Paced<R> {
    /// What it reads.
    pub inner: R,
    /// How fast.
    pub throttle: Option<Arc<Throttle>>,
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(throttle) = &self.throttle else { return self.inner.read(buffer) };
        let bytes = buffer.len().min(throttle.piece_bytes());
        let count = self.inner.read(&mut buffer[..bytes])?;
        throttle.pace(count);
        Ok(count)
    }
}

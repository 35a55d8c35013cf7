//! One SFTP session over a line: a thread that writes, one that reads, and many requests in flight.
//!
//! Invariant: a request gets its reply or learns that the line was cut, in bounded time.

use super::packets::{
    Extensions, INIT, LSTAT, Packet, Reply, VERSION, parse_reply, parse_version, read_packet,
};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::far::{Cut, Dialer, LineControl, Outbox, Paced, Pushed, lock};
use crate::storage::throttle::Limits;
use std::collections::HashMap;
use std::io::{BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often who waits looks around.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The number of a request whose reply nobody waits for.
const PING_NUMBER: u32 = u32::MAX;

/// A session that stands, or did.
pub struct Session {
    outbox: Outbox,
    control: Box<dyn LineControl>,
    calls: Mutex<Calls>,
    silence: Duration,
    extensions: Mutex<Extensions>,
}

struct Calls {
    waiting: HashMap<u32, Sender<Reply>>,
    next: u32,
    heard: Instant,
    pinged: Instant,
    ended: Option<Cut>,
}

/// A request that waits for its reply.
pub struct Pending<'a> {
    session: &'a Session,
    number: u32,
    reply: Receiver<Reply>,
}

/// What the server says first, or why it does not.
type Greeting = Result<Extensions, String>;

/// Why there is no session, and whether that will stay so.
type Unreached = (Error, bool);

impl Session {
    /// Makes a line and asks for version 3.
    ///
    /// # Errors
    /// `Storage` if the far end cannot be reached or speaks no SFTP; true if that will stay so.
    pub fn open(
        dialer: &dyn Dialer,
        limits: &Limits,
        (greeting, silence): (Duration, Duration),
        look: &dyn Fn() -> Result<()>,
    ) -> Result<Arc<Session>, Unreached> {
        let line = dialer.dial().map_err(|error| (error, true))?;
        let now = Instant::now();
        let calls =
            Calls { waiting: HashMap::new(), next: 1, heard: now, pinged: now, ended: None };
        let session = Arc::new(Session {
            outbox: Outbox::default(),
            control: line.control,
            calls: Mutex::new(calls),
            silence,
            extensions: Mutex::default(),
        });
        session.outbox.urgent(Packet::new(INIT, 3).finish());
        let (said, says) = channel();
        let (writer, reader) = (session.clone(), session.clone());
        let (upload, download) = (limits.upload.clone(), limits.download.clone());
        let mut output = line.output;
        let input = Paced { inner: line.input, throttle: download };
        let started = spawn("sftp-write", move || {
            if let Err(cause) = writer.outbox.write_all(&mut *output, upload.as_deref()) {
                std::thread::sleep(LOOK_INTERVAL);
                writer.end(&cause.to_string());
            }
        });
        started.map_err(|error| (error, true))?;
        let mut input = BufReader::with_capacity(256 << 10, input);
        spawn("sftp-read", move || reader.read(&mut input, &said))
            .map_err(|error| (error, true))?;
        match session.greet(&says, greeting, look) {
            Ok(extensions) => {
                *lock(&session.extensions) = extensions;
                Ok(session)
            }
            Err(why) => {
                session.control.cut();
                session.end("it was given up");
                Err(why.unwrap_or_else(|why| {
                    let text = format!("cannot reach {}: {why}", dialer.location());
                    (Error::new(ErrorKind::Storage, text), false)
                }))
            }
        }
    }

    fn greet(
        &self,
        says: &Receiver<Greeting>,
        longest: Duration,
        look: &dyn Fn() -> Result<()>,
    ) -> Result<Extensions, Result<Unreached, String>> {
        let until = Instant::now() + longest;
        loop {
            match says.recv_timeout(LOOK_INTERVAL) {
                Ok(said) => return said.map_err(Err),
                Err(RecvTimeoutError::Timeout) if Instant::now() < until => {
                    look().map_err(|error| Ok((error, true)))?;
                }
                Err(_) => return Err(Err("it does not answer".into())),
            }
        }
    }

    fn read(&self, input: &mut dyn Read, said: &Sender<Greeting>) {
        let greeting = match read_packet(input) {
            Ok(Some((VERSION, body))) => match parse_version(&body) {
                Ok((3.., extensions)) => Ok(extensions),
                _ => Err("its SFTP is not version 3".into()),
            },
            Ok(Some(_)) => Err("it does not speak SFTP".into()),
            Err(cause) if cause.kind() == std::io::ErrorKind::InvalidData => {
                Err("it does not speak SFTP; what logs in without a terminal there may print \
                     nothing"
                    .into())
            }
            _ => Err(self.control.farewell().0),
        };
        let is_well = greeting.is_ok();
        if said.send(greeting).is_err() || !is_well {
            return;
        }
        let why = loop {
            let (kind, body) = match read_packet(input) {
                Ok(Some(packet)) => packet,
                _ => break self.control.farewell().0,
            };
            match parse_reply(kind, &body) {
                Ok((number, reply)) => {
                    let mut calls = lock(&self.calls);
                    calls.heard = Instant::now();
                    // Who does not wait any more has given up.
                    if let Some(to) = calls.waiting.remove(&number) {
                        let _ = to.send(reply);
                    }
                }
                Err(cause) => {
                    self.control.cut();
                    break format!("the far end sent {cause}");
                }
            }
        };
        self.end(&why);
    }

    fn end(&self, why: &str) {
        let mut calls = lock(&self.calls);
        calls.ended.get_or_insert_with(|| Cut(why.to_owned()));
        calls.waiting.clear();
        self.outbox.abandon();
    }

    /// Whether it still stands.
    pub fn is_open(&self) -> bool {
        lock(&self.calls).ended.is_none()
    }

    /// What the server says of an extension; `None` if it has it not.
    pub fn extension(&self, name: &str) -> Option<Vec<u8>> {
        let extensions = lock(&self.extensions);
        extensions.iter().find(|(known, _)| known == name).map(|(_, said)| said.clone())
    }

    /// Sends a request, which is made with its number.
    ///
    /// # Errors
    /// That the line was cut.
    pub fn call(&self, make: impl FnOnce(u32) -> Packet) -> Result<Pending<'_>, Cut> {
        let mut calls = lock(&self.calls);
        if let Some(cut) = &calls.ended {
            return Err(cut.clone());
        }
        if calls.waiting.is_empty() {
            calls.heard = Instant::now();
        }
        let number = calls.next;
        calls.next = if number >= PING_NUMBER - 1 { 1 } else { number + 1 };
        let (to, reply) = channel();
        calls.waiting.insert(number, to);
        drop(calls);
        let pending = Pending { session: self, number, reply };
        let mut packet = make(number).finish();
        if packet.len() < 4 << 10 {
            self.outbox.urgent(packet);
            return Ok(pending);
        }
        loop {
            match self.outbox.bulk(packet, LOOK_INTERVAL) {
                Pushed::Taken => return Ok(pending),
                Pushed::Closed => return Err(self.cut_reason()),
                Pushed::Full(back) => {
                    packet = back;
                    self.look_after()?;
                }
            }
        }
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
            self.outbox.urgent(Packet::new(LSTAT, PING_NUMBER).bytes(b"/").finish());
        }
        Ok(())
    }

    fn cut_reason(&self) -> Cut {
        lock(&self.calls).ended.clone().unwrap_or_else(|| Cut("it was closed".into()))
    }

    /// Ends the line when what waits has been written.
    pub fn close(&self) {
        self.outbox.close();
    }
}

impl Pending<'_> {
    /// Waits for the reply.
    ///
    /// # Errors
    /// That the line was cut.
    pub fn reply(self) -> Result<Reply, Cut> {
        loop {
            match self.reply.recv_timeout(LOOK_INTERVAL) {
                Ok(reply) => return Ok(reply),
                Err(RecvTimeoutError::Timeout) => self.session.look_after()?,
                Err(RecvTimeoutError::Disconnected) => return Err(self.session.cut_reason()),
            }
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        lock(&self.session.calls).waiting.remove(&self.number);
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = std::thread::Builder::new().name(name.into()).spawn(work);
    started
        .map(drop)
        .map_err(|cause| Error::io(ErrorKind::Failed, "cannot start a thread for the line", cause))
}

//! The second phase of NBD, the server's side: one thread reads requests, and a few answer them in
//! whatever order they are done.
//!
//! Invariants: a client has a bounded number of requests and bytes under way, and is not read from
//! before there is room; what is wrong with a request is answered, and ends the connection only where
//! it is unknown where the next one begins.

use super::export::Foreseer;
use super::negotiation::Agreement;
use super::protocol::*;
use super::reply::Replies;
use crate::error::{Error, ErrorKind};
use crate::monitor::Monitor;
use crate::repository::lock;
use crossbeam_channel::{Receiver, Sender};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread::{Builder, Scope};

/// Requests of a client under way: as many as nbdcopy makes on a connection.
const REQUESTS_MAX: usize = 64;
/// Bytes of data that they have or want: one request of the largest size.
const BYTES_MAX: u64 = REQUEST_BYTES_MAX as u64;
/// Threads that answer one client: a few, because a read may wait for a slow storage.
const WORKERS_MAX: usize = 8;
/// Memory that a thread keeps from one read to the next.
const BUFFER_KEPT: usize = 1 << 20;
/// Bytes of small replies that leave together.
const OUTPUT_BYTES: usize = 32 << 10;

/// A client that has chosen an export.
pub(super) struct Client<'a> {
    agreement: Agreement<'a>,
    replies: Mutex<Replies<BufWriter<Box<dyn Write + Send + 'a>>>>,
    room: Room,
    /// Wakes the thread that reads, for good.
    hang_up: &'a (dyn Fn() + Sync),
    is_broken: AtomicBool,
    idle: AtomicUsize,
    monitor: &'a dyn Monitor,
}

/// A request and its payload.
struct Job {
    request: Request,
    payload: Vec<u8>,
}

impl<'a> Client<'a> {
    pub fn new(
        agreement: Agreement<'a>,
        output: Box<dyn Write + Send + 'a>,
        hang_up: &'a (dyn Fn() + Sync),
        monitor: &'a dyn Monitor,
    ) -> Client<'a> {
        let is_structured = agreement.is_structured;
        let output = BufWriter::with_capacity(OUTPUT_BYTES, output);
        Client {
            agreement,
            replies: Mutex::new(Replies { output, is_structured }),
            room: Room::default(),
            hang_up,
            is_broken: AtomicBool::new(false),
            idle: AtomicUsize::new(0),
            monitor,
        }
    }

    /// Reads requests until the client says that it is done, goes, or cannot be understood; all that
    /// were read are answered then.
    pub fn serve(&self, input: &mut dyn Read) {
        let mut input = BufReader::with_capacity(4 << 10, input);
        let mut foresee = self.agreement.export.foreseer();
        let (send, jobs) = crossbeam_channel::unbounded();
        std::thread::scope(|scope| {
            let mut workers = 0;
            while !self.is_broken.load(Ordering::Relaxed) {
                // Whatever goes wrong while a request is read: there is no next one.
                let Ok(Some(job)) = self.next_job(&mut input, &mut foresee) else { break };
                self.dispatch(scope, job, (&send, &jobs), &mut workers);
            }
            drop(send);
        });
    }

    fn next_job(&self, input: &mut dyn Read, foresee: &mut Foreseer) -> io::Result<Option<Job>> {
        let Some(request) = Request::decode(&read_array(input)?) else { return Ok(None) };
        if request.command == DISCONNECT {
            return Ok(None);
        }
        let has_payload = request.command == WRITE;
        if has_payload && request.bytes > REQUEST_BYTES_MAX {
            return Ok(None);
        }
        self.room.take(held_bytes(&request));
        let mut payload = Vec::new();
        if has_payload {
            payload = vec![0; request.bytes as usize];
            input.read_exact(&mut payload)?;
        }
        if request.command == READ && self.check(&request).is_ok() {
            foresee(request.offset, request.bytes.into());
        }
        Ok(Some(Job { request, payload }))
    }

    /// Hands a job to a thread that waits, or to a new one.
    fn dispatch<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        job: Job,
        (send, jobs): (&Sender<Job>, &Receiver<Job>),
        workers: &mut usize,
    ) {
        if *workers < WORKERS_MAX && self.idle.load(Ordering::Acquire) <= jobs.len() {
            let jobs = jobs.clone();
            let work = move || self.work(&jobs);
            if Builder::new().name("nbd-request".into()).spawn_scoped(scope, work).is_ok() {
                *workers += 1;
            }
        }
        if *workers == 0 {
            self.answer(&job, &mut Vec::new());
            return;
        }
        // There is a receiver: the one here.
        let _ = send.send(job);
    }

    fn work(&self, jobs: &Receiver<Job>) {
        let mut buffer = Vec::new();
        loop {
            self.idle.fetch_add(1, Ordering::Release);
            let job = jobs.recv();
            self.idle.fetch_sub(1, Ordering::Release);
            let Ok(job) = job else { return };
            self.answer(&job, &mut buffer);
            if buffer.capacity() > BUFFER_KEPT {
                buffer = Vec::new();
            }
        }
    }

    fn answer(&self, job: &Job, buffer: &mut Vec<u8>) {
        // Nobody reads the answers of a broken connection.
        if !self.is_broken.load(Ordering::Relaxed) && self.reply(job, buffer).is_err() {
            self.is_broken.store(true, Ordering::Relaxed);
            (self.hang_up)();
        }
        self.room.give_back(held_bytes(&job.request));
    }

    fn reply(&self, job: &Job, buffer: &mut Vec<u8>) -> io::Result<()> {
        let (request, export) = (&job.request, self.agreement.export);
        if let Err((error, text)) = self.check(request) {
            return lock(&self.replies).failed(request.cookie, error, text);
        }
        let range = request.offset..request.offset + u64::from(request.bytes);
        let done = match request.command {
            READ => {
                // What it holds is overwritten, or not sent.
                buffer.resize(request.bytes as usize, 0);
                match export.read(request.offset, buffer) {
                    Ok(()) => {
                        let is_whole = request.flags & DONT_FRAGMENT != 0;
                        let mut replies = lock(&self.replies);
                        return replies.data(request.cookie, request.offset, buffer, is_whole);
                    }
                    Err(error) => Err(error),
                }
            }
            BLOCK_STATUS => match export.status(range, request.flags & REQUEST_ONE != 0) {
                Ok(extents) => return lock(&self.replies).status(request.cookie, &extents),
                Err(error) => Err(error),
            },
            WRITE => export.write(request.offset, &job.payload),
            WRITE_ZEROES => export.write_zeroes(range, request.flags & NO_HOLE != 0),
            TRIM => export.trim(range),
            _ => export.flush(),
        };
        let is_through = request.flags & FUA != 0 && request.command != FLUSH;
        let done = done.and_then(|()| if is_through { export.flush() } else { Ok(()) });
        match done {
            Ok(()) => lock(&self.replies).done(request.cookie),
            Err(error) => {
                let text = error.full_text();
                self.monitor.warn(&text);
                lock(&self.replies).failed(request.cookie, number_of(&error), &text)
            }
        }
    }

    /// What is wrong with a request: its error number, and words.
    fn check(&self, request: &Request) -> Result<(), (u32, &'static str)> {
        let export = self.agreement.export;
        let (is_write, flags) = match request.command {
            READ if self.agreement.is_structured => (false, DONT_FRAGMENT),
            READ | FLUSH => (false, 0),
            BLOCK_STATUS if self.agreement.has_allocation => (false, REQUEST_ONE),
            BLOCK_STATUS => return Err((EINVAL, "base:allocation was not agreed on")),
            WRITE | TRIM => (true, 0),
            WRITE_ZEROES => (true, NO_HOLE),
            _ => return Err((EINVAL, "unknown command")),
        };
        if is_write && export.is_read_only() {
            return Err((EPERM, "the export is read-only"));
        }
        if request.flags & !(flags | FUA) != 0 {
            return Err((EINVAL, "unknown flags"));
        }
        if request.command == FLUSH {
            return Ok(());
        }
        if request.bytes == 0 {
            return Err((EINVAL, "no bytes"));
        }
        if request.command == READ && request.bytes > REQUEST_BYTES_MAX {
            return Err((EINVAL, "too many bytes"));
        }
        let end = request.offset.checked_add(request.bytes.into());
        match end.is_some_and(|end| end <= export.size()) {
            true => Ok(()),
            false if matches!(request.command, WRITE | WRITE_ZEROES) => {
                Err((ENOSPC, "behind the end of the disk"))
            }
            false => Err((EINVAL, "behind the end of the disk")),
        }
    }
}

/// Memory that a request needs.
fn held_bytes(request: &Request) -> u64 {
    match request.command {
        // Of more, nothing is read.
        READ if request.bytes > REQUEST_BYTES_MAX => 0,
        READ | WRITE => request.bytes.into(),
        _ => 0,
    }
}

fn number_of(error: &Error) -> u32 {
    match error.kind() {
        ErrorKind::NoSpace => ENOSPC,
        _ => EIO,
    }
}

/// What a client has under way.
#[derive(Default)]
struct Room {
    taken: Mutex<(usize, u64)>,
    changed: Condvar,
}

impl Room {
    fn take(&self, bytes: u64) {
        let mut taken = lock(&self.taken);
        while taken.0 >= REQUESTS_MAX || (taken.0 > 0 && taken.1 + bytes > BYTES_MAX) {
            taken = self.changed.wait(taken).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        *taken = (taken.0 + 1, taken.1 + bytes);
    }

    fn give_back(&self, bytes: u64) {
        let mut taken = lock(&self.taken);
        *taken = (taken.0 - 1, taken.1 - bytes);
        self.changed.notify_one();
    }
}

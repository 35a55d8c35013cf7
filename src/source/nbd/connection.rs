//! A thread that keeps one connection busy: it sends requests ahead of the answers, and connects again
//! when the server went away.
//!
//! Invariants: each job is answered once, whatever happens to the connection; an export that comes
//! back with another size is an error, never another disk.

use super::address::Address;
use super::client::{Answer, Client, Request};
use super::handshake::Export;
use super::transport::{SILENCE, Stream, connect};
use super::trouble::Trouble;
use super::{in_words, queue};
use crossbeam_channel::Sender;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Requests that wait for an answer on one connection: 16 MiB of reads, more than a way of 100 ms at
/// 1 Gbit/s holds.
const DEPTH: usize = 16;
/// How often a request that failed is made: a server of which one read in twenty fails loses one in
/// 160,000.
const TRIES: u32 = 4;
/// The pause in front of the second time, then ten times as long each time.
const PAUSE: Duration = Duration::from_millis(1);
/// Requests that failed each time, after which there are no pauses: that disk has bad sectors.
const GIVEN_UP_MAX: u32 = 8;
/// The pause in front of the first new connection, then twice as long each time.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that may end one after the other without an answer.
const BREAKS_MAX: u32 = 5;
/// Error number of a server that is about to go.
const SHUTDOWN: u32 = 108;

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The server answered with this error number, each time.
    Answered(u32, String),
    /// There is no connection any more: why, and a hint.
    Lost(String, Option<&'static str>),
}

pub(super) type Reply = Result<Answer, Failure>;

/// A request, and where its answer goes.
pub(super) struct Job {
    pub request: Request,
    pub reply: Sender<Reply>,
}

/// What all connections to one export have in common.
#[derive(Clone)]
pub(super) struct Way {
    pub address: Address,
    /// How long a server that went away is waited for.
    pub patience: Duration,
}

type Connected = Client<Box<dyn Stream>>;

impl Way {
    /// A new connection.
    pub fn connect(&self) -> Result<Connected, Trouble> {
        let (stream, has_zeroes) = connect(&self.address)?;
        Client::choose(stream, &self.address.export, has_zeroes)
    }
}

/// A job on its way.
struct Sent {
    job: Job,
    failures: u32,
}

/// One connection and what it has to do.
pub(super) struct Driver {
    way: Way,
    export: Export,
    jobs: queue::Receiver<Job>,
    client: Connected,
    sent: BTreeMap<u64, Sent>,
    /// To be sent again.
    again: VecDeque<Sent>,
    /// Connections that ended since the last answer.
    breaks: u32,
    /// Requests that failed each time.
    given_up: u32,
    /// True once nobody can send jobs any more.
    is_over: bool,
}

impl Driver {
    /// Takes over a connection; `export` is what each later one has to have.
    pub fn new(way: Way, export: Export, jobs: queue::Receiver<Job>, client: Connected) -> Driver {
        let (sent, again) = (BTreeMap::new(), VecDeque::new());
        Driver { way, export, jobs, client, sent, again, breaks: 0, given_up: 0, is_over: false }
    }

    /// Answers jobs until nobody can send any more.
    pub fn run(mut self) {
        while !self.is_over || !self.sent.is_empty() {
            if let Err(trouble) = self.step()
                && let Err(lost) = self.mend(trouble)
            {
                return self.refuse_all(&lost);
            }
        }
        self.client.disconnect();
    }

    /// Sends what is to be sent, and takes an answer if one comes before the next job.
    fn step(&mut self) -> Result<(), Trouble> {
        while self.sent.len() < DEPTH {
            let Some(next) = self.again.pop_front().or_else(|| self.take_job()) else { break };
            match self.client.ask(next.job.request) {
                Ok(cookie) => self.sent.insert(cookie, next),
                Err(trouble) => {
                    self.again.push_front(next);
                    return Err(trouble);
                }
            };
        }
        if self.sent.is_empty() && self.is_over {
            return Ok(());
        }
        if self.sent.len() == DEPTH || self.client.has_buffered() || self.is_answer_first()? {
            return self.receive();
        }
        Ok(())
    }

    fn take_job(&mut self) -> Option<Sent> {
        match self.jobs.try_take() {
            queue::Taken::One(job) => Some(Sent { job, failures: 0 }),
            queue::Taken::None => None,
            queue::Taken::Over => {
                self.is_over = true;
                None
            }
        }
    }

    /// Waits for an answer or a job; true for an answer.
    fn is_answer_first(&self) -> Result<bool, Trouble> {
        let stream = self.client.stream();
        let socket = PollFd::from_borrowed_fd(stream.socket(), PollFlags::IN);
        let jobs = PollFd::from_borrowed_fd(self.jobs.as_fd(), PollFlags::IN);
        // Nothing is wrong with a server that says nothing when it is not asked.
        let (mut both, mut alone) = ([socket, jobs.clone()], [jobs]);
        let (waited, patience) = match self.sent.is_empty() {
            true => (&mut alone[..], None),
            false if self.is_over => (&mut both[..1], Some(SILENCE)),
            false => (&mut both[..], Some(SILENCE)),
        };
        let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
        match poll(waited, patience.as_ref()) {
            Ok(0) => Err(Trouble::Gone(io::ErrorKind::TimedOut.into())),
            Ok(_) => Ok(!self.sent.is_empty() && !waited[0].revents().is_empty()),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(errno) => Err(Trouble::Gone(errno.into())),
        }
    }

    fn receive(&mut self) -> Result<(), Trouble> {
        let (cookie, answer) = self.client.answer()?;
        let Some(mut sent) = self.sent.remove(&cookie) else { return Ok(()) };
        self.breaks = 0;
        let reply = match answer {
            Answer::Failed(SHUTDOWN, _) => {
                self.again.push_back(sent);
                let cause = io::Error::new(io::ErrorKind::ConnectionAborted, "it shuts down");
                return Err(Trouble::Gone(cause));
            }
            Answer::Failed(number, text) => {
                sent.failures += 1;
                if sent.failures < TRIES {
                    if self.given_up < GIVEN_UP_MAX {
                        std::thread::sleep(PAUSE * 10_u32.pow(sent.failures - 1));
                    }
                    self.again.push_back(sent);
                    return Ok(());
                }
                self.given_up += 1;
                Err(Failure::Answered(number, text))
            }
            answer => Ok(answer),
        };
        // Nobody listens any more only after a failure.
        let _ = sent.job.reply.send(reply);
        Ok(())
    }

    /// Connects again, or says why there is no use in it.
    fn mend(&mut self, mut trouble: Trouble) -> Result<(), Failure> {
        self.again.extend(std::mem::take(&mut self.sent).into_values());
        let until = Instant::now() + self.way.patience;
        let mut pause = CONNECT_PAUSE;
        self.breaks += 1;
        while let Trouble::Gone(_) = trouble {
            if Instant::now() + pause > until || self.breaks > BREAKS_MAX {
                break;
            }
            std::thread::sleep(pause);
            pause *= 2;
            let connected = self.way.connect().and_then(|client| {
                same_export(&self.export, client.export())?;
                Ok(client)
            });
            match connected {
                Ok(client) => {
                    self.client = client;
                    return Ok(());
                }
                Err(other) => trouble = other,
            }
        }
        Err(match trouble {
            Trouble::Gone(cause) => {
                Failure::Lost(format!("the server went away: {}", in_words(&cause)), None)
            }
            Trouble::Wrong(text) => Failure::Lost(format!("the server sent {text}"), None),
            Trouble::Refused(text, hint) => Failure::Lost(text, hint),
        })
    }

    /// Answers all jobs, and those that come, with a failure.
    fn refuse_all(&mut self, lost: &Failure) {
        for sent in std::mem::take(&mut self.again) {
            let _ = sent.job.reply.send(Err(lost.clone()));
        }
        while let Some(job) = self.jobs.wait() {
            let _ = job.reply.send(Err(lost.clone()));
        }
    }
}

fn same_export(before: &Export, now: &Export) -> Result<(), Trouble> {
    if before.size != now.size {
        let text = format!("the export had {} bytes and has {} now", before.size, now.size);
        return Err(Trouble::Refused(text, None));
    }
    let names = |export: &Export| {
        export.contexts.iter().map(|(_, name)| name.clone()).collect::<Vec<String>>()
    };
    if names(before) != names(now) {
        return Err(Trouble::Refused("the export has other contexts than before".into(), None));
    }
    Ok(())
}

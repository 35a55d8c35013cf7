//! A storage over lines: requests of any number of threads, each with its answer.
//!
//! Invariants: a request whose line was cut is made again, and counts once: a put is asked for
//! before its bytes go again, and a name that is taken by these very bytes is ours. Of the objects
//! that go over a line at the same time only one is incomplete over there, so that no more than one
//! goes again after a cut.

use super::connection::{Call, Connection, Cut, Dialer, Manners};
use super::hello::Purpose;
use super::link::{Lines, Link};
use super::message::{Answer, Request};
use super::{REQUESTS_MAX, lock};
use crate::environment::{SystemEnvironment, random_array};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::{Monitor, Silent};
use crate::storage::throttle::Limits;
use crate::storage::{Folder, ObjectEntry, ObjectName, Storage, too_short};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Objects larger than this go one after the other.
const BULK_BYTES: usize = 1 << 20;

/// A request that cuts so many lines, one after the other, is given up.
const TRIES_MAX: usize = 12;

/// How a far storage is used.
#[derive(Clone)]
pub struct FarOptions {
    /// Lines at the same time, at least 1.
    pub connections: usize,
    /// How fast bytes go.
    pub limits: Limits,
    /// So long a line that was cut is tried to be made again.
    pub patience: Duration,
    /// A line on which nothing comes for so long, while something is waited for, is cut.
    pub silence: Duration,
    /// So long the far end may take for its first word; who logs in may have to type a password.
    pub greeting: Duration,
    /// Hears of cut lines, and tells when to stop.
    pub monitor: Arc<dyn Monitor>,
}

impl Default for FarOptions {
    fn default() -> FarOptions {
        FarOptions {
            connections: 1,
            limits: Limits::default(),
            patience: Duration::from_secs(600),
            silence: Duration::from_secs(300),
            greeting: Duration::from_secs(180),
            monitor: Arc::new(Silent),
        }
    }
}

/// A repository at the far end.
pub struct FarStorage {
    lines: Lines,
    links: Vec<Link>,
}

/// What went wrong with one try.
enum Trouble {
    /// The line; it may go better on another.
    Cut(Cut),
    /// The request; it would again.
    Failed(Error),
}

impl From<Cut> for Trouble {
    fn from(cut: Cut) -> Trouble {
        Trouble::Cut(cut)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::Failed(error)
    }
}

impl FarStorage {
    /// Reaches the far end.
    ///
    /// # Errors
    /// What keeps it from being reached; what opening or making the folder there says, as with
    /// [`crate::storage::local::LocalStorage`].
    pub fn open(
        dialer: Arc<dyn Dialer>,
        path: &str,
        purpose: Purpose,
        options: FarOptions,
    ) -> Result<FarStorage> {
        let lines = Lines {
            dialer,
            token: random_array(&SystemEnvironment)?,
            path: path.to_owned(),
            manners: Manners {
                limits: options.limits,
                silence: options.silence,
                greeting: options.greeting,
            },
            patience: options.patience,
            monitor: options.monitor,
        };
        let count = u16::try_from(options.connections.clamp(1, 64)).unwrap_or(1);
        let links: Vec<Link> = (0..count).map(Link::new).collect();
        links[0].open(&lines, purpose)?;
        Ok(FarStorage { lines, links })
    }

    /// Bytes of objects that went over all lines so far, those that went again included.
    pub fn sent_bytes(&self) -> u64 {
        self.links.iter().map(Link::sent_bytes).sum()
    }

    /// Does something on some line, and again on a new one as often as the line is cut.
    fn on_line<T>(
        &self,
        mut work: impl FnMut(&Link, &Connection, bool) -> Result<T, Trouble>,
    ) -> Result<T> {
        let link = self.idlest();
        let _load = Load::new(link);
        let mut since = None;
        for tried in 0..TRIES_MAX {
            let connection = link.connection(&self.lines, since)?;
            match work(link, &connection, tried > 0) {
                Ok(done) => return Ok(done),
                Err(Trouble::Failed(error)) => return Err(error),
                Err(Trouble::Cut(cut)) => {
                    let began = *since.get_or_insert_with(Instant::now);
                    if tried + 1 == TRIES_MAX || began.elapsed() > self.lines.patience {
                        let text = format!("cannot reach {}: {}", self.location(), cut.0);
                        return Err(Error::new(ErrorKind::Storage, text));
                    }
                    let text = format!("the line to {} was cut: {}", self.location(), cut.0);
                    self.lines.monitor.note(&text);
                }
            }
        }
        Err(Error::new(ErrorKind::Storage, format!("cannot reach {}", self.location())))
    }

    /// The line with the fewest requests; the first of those, so that idle ones are not made.
    fn idlest(&self) -> &Link {
        let load = |link: &&Link| link.load.load(Ordering::Relaxed);
        // There is at least one.
        self.links.iter().min_by_key(load).unwrap_or(&self.links[0])
    }

    /// Makes a request that has one answer, a number or nothing.
    fn ask(&self, request: &Request) -> Result<Option<u64>> {
        self.on_line(|_, connection, _| ask_on(connection, request))
    }

    /// Makes a request that is answered with bytes; gives them and the number at the end.
    fn fetch(&self, request: &Request, bytes_max: u64) -> Result<(Vec<u8>, Option<u64>)> {
        self.on_line(|_, connection, _| {
            let call = connection.call(request)?;
            let mut data = Vec::new();
            let end = receive(&call, |piece| {
                let fits = (data.len() + piece.len()) as u64 <= bytes_max;
                if fits {
                    data.extend_from_slice(piece);
                }
                fits
            })?;
            Ok((data, end))
        })
    }
}

/// Makes a request on one line.
fn ask_on(connection: &Connection, request: &Request) -> Result<Option<u64>, Trouble> {
    let call = connection.call(request)?;
    match call.answer()? {
        Answer::Done(number) => Ok(number),
        Answer::Failed(error) => Err(error.into()),
        _ => Err(call.protest("an answer of another kind").into()),
    }
}

/// Gives each piece to `take`, which says whether it fits, up to the end.
fn receive(call: &Call<'_>, mut take: impl FnMut(&[u8]) -> bool) -> Result<Option<u64>, Trouble> {
    loop {
        match call.answer()? {
            Answer::Piece(piece) if take(&piece) => {}
            Answer::Piece(_) => return Err(call.protest("more bytes than were asked for").into()),
            Answer::Done(number) => return Ok(number),
            Answer::Failed(error) => return Err(error.into()),
            _ => return Err(call.protest("an answer of another kind").into()),
        }
    }
}

/// Sends an object over a line.
fn put_on(
    link: &Link,
    connection: &Connection,
    name: &ObjectName,
    data: &[u8],
    is_again: bool,
) -> Result<(), Trouble> {
    // One after the other: what waits here is not begun over there.
    let is_large = data.len() > BULK_BYTES;
    let turn = is_large.then(|| lock(&link.bulk));
    if is_again && is_there(connection, name, data)? {
        return Ok(());
    }
    let call = connection.call(&Request::Put { name: name.clone(), bytes: data.len() as u64 })?;
    for piece in data.chunks(call.piece_bytes()) {
        match call.early_answer() {
            None => call.piece(piece)?,
            Some(Answer::Failed(error)) => return settle(connection, name, data, is_again, error),
            Some(_) => return Err(call.protest("an answer before its time").into()),
        }
    }
    let mut turn = turn;
    loop {
        match call.answer()? {
            Answer::Received => drop(turn.take()),
            Answer::Done(_) => return Ok(()),
            Answer::Failed(error) => return settle(connection, name, data, is_again, error),
            _ => return Err(call.protest("an answer of another kind").into()),
        }
    }
}

/// What a put that failed comes to: if it was made before, its name may be taken by itself.
fn settle(
    connection: &Connection,
    name: &ObjectName,
    data: &[u8],
    is_again: bool,
    error: Error,
) -> Result<(), Trouble> {
    let is_ours = is_again && error.kind() == ErrorKind::AlreadyExists;
    if is_ours && is_there(connection, name, data)? {
        return Ok(());
    }
    Err(error.into())
}

/// Whether the far end has these bytes under this name; they are durable then.
fn is_there(connection: &Connection, name: &ObjectName, data: &[u8]) -> Result<bool, Trouble> {
    let digest = *blake3::hash(data).as_bytes();
    let request = Request::Same { name: name.clone(), bytes: data.len() as u64, digest };
    Ok(ask_on(connection, &request)? == Some(1))
}

impl Storage for FarStorage {
    fn put_new(&self, name: &ObjectName, data: &[u8]) -> Result<()> {
        self.on_line(|link, connection, is_again| put_on(link, connection, name, data, is_again))
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        let (data, _) = self.fetch(&Request::Get { name: name.clone(), bytes_max }, bytes_max)?;
        Ok(data)
    }

    fn get_range(&self, name: &ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let bytes = buffer.len() as u64;
        let request = Request::Range { name: name.clone(), offset, bytes };
        self.on_line(|_, connection, _| {
            let call = connection.call(&request)?;
            let mut filled = 0;
            receive(&call, |piece| {
                let Some(part) = buffer.get_mut(filled..filled + piece.len()) else { return false };
                part.copy_from_slice(piece);
                filled += piece.len();
                true
            })?;
            if filled < buffer.len() {
                return Err(too_short(name, offset, buffer.len()).into());
            }
            Ok(())
        })
    }

    fn get_tail(&self, name: &ObjectName, bytes: usize) -> Result<(Vec<u8>, u64)> {
        let wanted = bytes as u64;
        let request = Request::Tail { name: name.clone(), bytes: wanted };
        let (tail, whole) = self.fetch(&request, wanted)?;
        let whole = whole.unwrap_or(tail.len() as u64);
        if tail.len() as u64 != whole.min(wanted) {
            return Err(too_short(name, whole, 0));
        }
        Ok((tail, whole))
    }

    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.ask(&Request::Size { name: name.clone() })
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectEntry>> {
        let mut entries = self.on_line(|_, connection, _| {
            let call = connection.call(&Request::List { folder })?;
            let mut entries: Vec<ObjectEntry> = Vec::new();
            loop {
                match call.answer()? {
                    Answer::Entries(page) if page.iter().all(|it| it.name.folder() == folder) => {
                        entries.extend(page);
                    }
                    Answer::Done(_) => return Ok(entries),
                    Answer::Failed(error) => return Err(error.into()),
                    _ => return Err(call.protest("no page of the folder").into()),
                }
            }
        })?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries.dedup_by(|a, b| a.name == b.name);
        Ok(entries)
    }

    fn foreign(&self) -> Result<Vec<String>> {
        self.on_line(|_, connection, _| {
            let call = connection.call(&Request::Foreign)?;
            let mut names = Vec::new();
            loop {
                match call.answer()? {
                    Answer::Names(page) => names.extend(page),
                    Answer::Done(_) => {
                        names.truncate(crate::storage::FOREIGN_NAMES_MAX);
                        return Ok(names);
                    }
                    Answer::Failed(error) => return Err(error.into()),
                    _ => return Err(call.protest("no names").into()),
                }
            }
        })
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        self.ask(&Request::Delete { name: name.clone() }).map(drop)
    }

    fn rename(&self, from: &ObjectName, to: &ObjectName) -> Result<()> {
        self.on_line(|_, connection, is_again| {
            let request = Request::Rename { from: from.clone(), to: to.clone(), is_again };
            ask_on(connection, &request).map(drop)
        })
    }

    fn room(&self) -> Result<Option<u64>> {
        self.ask(&Request::Room)
    }

    fn calls_at_once(&self) -> usize {
        (8 * self.links.len()).min(REQUESTS_MAX)
    }

    fn location(&self) -> String {
        self.lines.dialer.location()
    }
}

/// Counts a request on a line for as long as it takes.
struct Load<'a>(&'a Link);

impl<'a> Load<'a> {
    fn new(link: &'a Link) -> Load<'a> {
        link.load.fetch_add(1, Ordering::Relaxed);
        Load(link)
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}

//! A connection that is made again when it was cut, for as long as there is patience.
//!
//! Invariant: of the threads that meet a cut line one makes the new one, and the others wait for it.

use super::connection::{Connection, Dialer, Manners, Unreached};
use super::hello::{ClientHello, Purpose};
use super::lock;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Waits between two tries grow from the first to the second of these.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(20));

/// Once the user wants to stop, so long is still tried, so that work can be ended in order.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

/// What all lines of a storage have in common.
pub struct Lines {
    /// Makes them.
    pub dialer: Arc<dyn Dialer>,
    /// The same for all lines of this run.
    pub token: [u8; 32],
    /// The folder there.
    pub path: String,
    /// How they behave.
    pub manners: Manners,
    /// So long a line that was cut is tried to be made again.
    pub patience: Duration,
    /// Hears of cut lines, and tells when to stop.
    pub monitor: Arc<dyn Monitor>,
}

/// One of several lines to the same place.
pub struct Link {
    number: u16,
    current: Mutex<Option<Arc<Connection>>>,
    /// Requests on it.
    pub load: AtomicUsize,
    /// Held while the bytes of a large object go over it.
    pub bulk: Mutex<()>,
    sent_before: AtomicU64,
}

impl Link {
    /// One that is made when it is needed.
    pub fn new(number: u16) -> Link {
        Link {
            number,
            current: Mutex::new(None),
            load: AtomicUsize::new(0),
            bulk: Mutex::new(()),
            sent_before: AtomicU64::new(0),
        }
    }

    /// Makes the first line, without patience.
    ///
    /// # Errors
    /// What keeps it from being made, or what the far end says.
    pub fn open(&self, lines: &Lines, purpose: Purpose) -> Result<()> {
        let look = || lines.monitor.check_cancelled();
        let opened =
            Connection::open(&*lines.dialer, &self.hello(lines, purpose), &lines.manners, &look);
        match opened {
            Ok(connection) => {
                *lock(&self.current) = Some(connection);
                Ok(())
            }
            Err(Unreached::Said(error) | Unreached::Line(error)) => Err(error),
        }
    }

    /// The line, made if there is none. Tries until `since`, when the trouble began, is too long ago.
    ///
    /// # Errors
    /// `Storage` when patience is over; what the far end says.
    pub fn connection(&self, lines: &Lines, since: Option<Instant>) -> Result<Arc<Connection>> {
        let mut current = lock(&self.current);
        if let Some(connection) = &*current {
            if connection.is_open() {
                return Ok(connection.clone());
            }
            self.sent_before.fetch_add(connection.sent_bytes(), Ordering::Relaxed);
        }
        *current = None;
        let began = since.unwrap_or_else(Instant::now);
        let mut wait = WAITS.0;
        let mut stopped: Option<Instant> = None;
        loop {
            // A run that is being stopped ends its work in order, if that is soon possible.
            if lines.monitor.is_cancelled() {
                stopped.get_or_insert_with(Instant::now);
            }
            let is_over = |error: &Error| {
                began.elapsed() >= lines.patience
                    || stopped.is_some_and(|since| since.elapsed() >= LAST_PATIENCE)
                    || error.kind() == ErrorKind::Failed
            };
            let look = || match stopped {
                None => lines.monitor.check_cancelled(),
                Some(_) => Ok(()),
            };
            let hello = self.hello(lines, Purpose::Open);
            match Connection::open(&*lines.dialer, &hello, &lines.manners, &look) {
                Ok(connection) => {
                    *current = Some(connection.clone());
                    return Ok(connection);
                }
                Err(Unreached::Said(error)) if error.kind() == ErrorKind::Cancelled => {}
                Err(Unreached::Said(error)) => return Err(error),
                Err(Unreached::Line(error)) if is_over(&error) => return Err(error),
                Err(Unreached::Line(_)) => {}
            }
            pause(wait, &*lines.monitor, stopped.is_some());
            wait = (wait * 2).min(WAITS.1);
        }
    }

    /// Bytes of pieces that were sent over all lines so far.
    pub fn sent_bytes(&self) -> u64 {
        let now = lock(&self.current).as_ref().map_or(0, |connection| connection.sent_bytes());
        self.sent_before.load(Ordering::Relaxed) + now
    }

    fn hello(&self, lines: &Lines, purpose: Purpose) -> ClientHello {
        ClientHello {
            program: env!("CARGO_PKG_VERSION").into(),
            token: lines.token,
            line: self.number,
            purpose,
            path: lines.path.clone(),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(connection) = &*lock(&self.current) {
            connection.close();
        }
    }
}

/// Waits, but not on after the user wants to stop.
fn pause(longest: Duration, monitor: &dyn Monitor, is_stopped: bool) {
    let until = Instant::now() + longest;
    while Instant::now() < until && (is_stopped || !monitor.is_cancelled()) {
        std::thread::sleep(Duration::from_millis(50));
    }
}

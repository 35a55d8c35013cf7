//! Disks of points as an NBD server gives them: read-only, or with an overlay that takes writes.
//!
//! Invariants: whatever a client says or does, it gets the bytes of its export or an error, and the
//! others go on; memory is bounded for each client, and their number is; nothing in the repository
//! changes.

mod export;
mod negotiation;
mod overlay;
mod point;
mod protocol;
mod reply;
mod sockets;
mod tls;
mod transmission;

pub use export::{Base, Export, Foreseer};
pub use overlay::{Identity, Overlay};
pub use point::{Overlays, exports};
pub use sockets::{Listener, parse_listen};
pub use tls::{TlsFiles, configure};

use crate::error::Result;
use crate::monitor::Monitor;
use crate::repository::lock;
use negotiation::{Outcome, Security, greet, negotiate};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ServerConfig;
use sockets::{Handle, Socket};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use transmission::Client;

/// How often a server looks whether it should stop, in nanoseconds.
const LOOK_NANOSECONDS: i64 = 100_000_000;
/// Warnings of one server: clients ask for what is damaged again and again.
const WARNINGS_MAX: usize = 100;

/// A server of some disks.
pub struct Server {
    /// Where it listens.
    pub listener: Listener,
    /// What it serves; the first one is also served without a name.
    pub exports: Vec<Export>,
    /// If given, nothing is served without TLS.
    pub tls: Option<Arc<ServerConfig>>,
    /// Clients at the same time; more are turned away.
    pub connections_max: usize,
    /// It ends if no client was there for so long.
    pub idle: Option<Duration>,
}

/// The clients that are there.
type Present = Mutex<BTreeMap<u64, Arc<Socket>>>;

impl Server {
    /// The addresses of all exports.
    pub fn uris(&self) -> Vec<String> {
        let uri = |export: &Export| self.listener.uri(export.name(), self.tls.is_some());
        self.exports.iter().map(uri).collect()
    }

    /// Serves until `is_over`, or until it was idle for long enough; then ends all connections and
    /// brings what was written onto stable storage.
    ///
    /// # Errors
    /// As [`Export::flush`].
    pub fn run(&self, monitor: &dyn Monitor, is_over: &(dyn Fn() -> bool + Sync)) -> Result<()> {
        let monitor = &Few { monitor, warnings: AtomicUsize::new(0) };
        let present = &Present::default();
        std::thread::scope(|scope| {
            let mut last_seen = Instant::now();
            let mut next = 0;
            while !is_over() {
                if !lock(present).is_empty() {
                    last_seen = Instant::now();
                }
                if self.idle.is_some_and(|idle| last_seen.elapsed() >= idle) {
                    break;
                }
                let Some(socket) = self.wait(monitor) else { continue };
                last_seen = Instant::now();
                if lock(present).len() >= self.connections_max {
                    socket.end();
                    continue;
                }
                let (socket, number) = (Arc::new(socket), next);
                next += 1;
                lock(present).insert(number, socket.clone());
                let serve = move || {
                    self.serve_guarded(&socket, monitor);
                    lock(present).remove(&number);
                };
                if std::thread::Builder::new()
                    .name("nbd-client".into())
                    .spawn_scoped(scope, serve)
                    .is_err()
                    && let Some(socket) = lock(present).remove(&number)
                {
                    socket.end();
                }
            }
            for socket in lock(present).values() {
                socket.end();
            }
        });
        self.exports.iter().try_for_each(Export::flush)
    }

    /// A new client, or nothing for a while.
    fn wait(&self, monitor: &dyn Monitor) -> Option<Socket> {
        let time = Timespec { tv_sec: 0, tv_nsec: LOOK_NANOSECONDS };
        // An interrupted wait is as good as a look.
        let ready = poll(&mut [PollFd::new(&self.listener, PollFlags::IN)], Some(&time));
        if !ready.is_ok_and(|ready| ready > 0) {
            return None;
        }
        match self.listener.accept() {
            Ok(socket) => Some(socket),
            Err(cause) if is_passing(&cause) => None,
            Err(cause) => {
                monitor.warn(&format!("cannot take a client: {cause}"));
                // Out of descriptors, most likely: others have to go first.
                std::thread::sleep(Duration::from_millis(100));
                None
            }
        }
    }

    fn serve_guarded(&self, socket: &Arc<Socket>, monitor: &dyn Monitor) {
        let serve = AssertUnwindSafe(|| self.serve(socket, monitor));
        if catch_unwind(serve).is_err() {
            monitor.warn("a client was left because of an error of this program");
        }
        socket.end();
    }

    /// Serves one client until it goes.
    fn serve(&self, socket: &Arc<Socket>, monitor: &dyn Monitor) -> io::Result<()> {
        let hang_up = || socket.end();
        let mut plain = Duplex(Handle(socket.clone()), Handle(socket.clone()));
        let Some(has_zeroes) = greet(&mut plain)? else { return Ok(()) };
        let Some(config) = &self.tls else {
            let agreed = negotiate(&mut plain, &self.exports, Security::Plain, has_zeroes)?;
            let Outcome::Agreed(agreement) = agreed else { return Ok(()) };
            socket.is_known()?;
            let Duplex(mut input, output) = plain;
            Client::new(agreement, Box::new(output), &hang_up, monitor).serve(&mut input);
            return Ok(());
        };
        let wish = negotiate(&mut plain, &self.exports, Security::Required, has_zeroes)?;
        let Outcome::StartTls = wish else { return Ok(()) };
        let (input, output) = tls::accept(config, plain, Handle(socket.clone()))?;
        let mut secure = Duplex(input, output);
        let agreed = negotiate(&mut secure, &self.exports, Security::Secured, has_zeroes)?;
        let Outcome::Agreed(agreement) = agreed else { return Ok(()) };
        socket.is_known()?;
        let Duplex(mut input, output) = secure;
        Client::new(agreement, Box::new(output), &hang_up, monitor).serve(&mut input);
        Ok(())
    }
}

fn is_passing(cause: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, WouldBlock};
    matches!(cause.kind(), ConnectionAborted | ConnectionReset | Interrupted | WouldBlock)
}

/// Serves one client without TLS who says `input`, and gives what it is answered to `output`. Its
/// requests are answered in any order.
///
/// # Errors
/// What reading and writing say.
pub fn converse(
    exports: &[Export],
    input: &mut dyn Read,
    output: impl Write + Send,
    monitor: &dyn Monitor,
) -> io::Result<()> {
    let mut duplex = Duplex(input, output);
    let Some(has_zeroes) = greet(&mut duplex)? else { return Ok(()) };
    let agreed = negotiate(&mut duplex, exports, Security::Plain, has_zeroes)?;
    let Outcome::Agreed(agreement) = agreed else { return Ok(()) };
    let Duplex(input, output) = duplex;
    Client::new(agreement, Box::new(output), &|| {}, monitor).serve(input);
    Ok(())
}

/// Both directions as one stream.
struct Duplex<R, W>(R, W);

impl<R: Read, W> Read for Duplex<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R, W: Write> Write for Duplex<R, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.flush()
    }
}

/// Hands on the first warnings only.
struct Few<'a> {
    monitor: &'a dyn Monitor,
    warnings: AtomicUsize,
}

impl Monitor for Few<'_> {
    fn warn(&self, text: &str) {
        match self.warnings.fetch_add(1, Ordering::Relaxed) {
            number if number < WARNINGS_MAX => self.monitor.warn(text),
            WARNINGS_MAX => self.monitor.warn("further errors of clients' requests are not told"),
            _ => {}
        }
    }
}

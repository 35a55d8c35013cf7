//! The way to an S3 server: HTTP/1.1 over TCP or TLS, under object_store.
//!
//! Invariants owned here: bytes inside of bodies pass at the pace of [`Limits`]; a request on which
//! nothing moves for [`Pace::idle`] ends, and one that crawls ends too; an answer that is no success
//! becomes a [`Trouble`] with at most [`ANSWER_BYTES_MAX`] of its body read; redirects are not followed.

use super::super::throttle::{Limits, Throttle};
use super::trouble::{LineFault, Trouble};
use super::xml;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};
use rustls::{ClientConfig, RootCertStore};
use std::error::Error as _;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Most bytes of an answer that is no success.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Pieces in which a body is handed to the connection.
const PIECE_BYTES: usize = 256 << 10;

/// Whoever is slower than this for a whole body, in bytes a second, is as good as dead.
const SLOWEST_RATE: u64 = 4 << 10;

/// How long a connection that is not used stays open: less than servers keep theirs.
const POOL_IDLE: Duration = Duration::from_secs(15);

/// Header with the SHA-256 of an object, in base64.
const CHECKSUM_HEADER: &str = "x-amz-checksum-sha256";

/// The SHA-256 in base64 that a server tells of a whole object, in the extensions of its answer.
#[derive(Clone, Debug)]
pub(super) struct ToldChecksum(pub String);

/// Header with the end of an object's lock.
const LOCK_HEADER: &str = "x-amz-object-lock-retain-until-date";

/// The end of an object's lock as a server tells it, in the extensions of its answer.
#[derive(Clone, Debug)]
pub(super) struct ToldLock(pub String);

/// How long the line may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Longest time without any byte.
    pub idle: Duration,
    /// Longest time for a connection to be made.
    pub connect: Duration,
}

/// Makes requests. Clones share their connections.
#[derive(Clone)]
pub(super) struct Line {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client<HttpsConnector<TcpConnector>, Sent>,
    limits: Limits,
    pace: Pace,
    /// Host and port of the server; others are asked for credentials only.
    authority: String,
    has_answered: AtomicBool,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Line({})", self.shared.authority)
    }
}

impl Line {
    /// A line to the server at `authority`.
    pub fn new(authority: &str, limits: Limits, pace: Pace) -> Result<Line, String> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|cause| cause.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = TcpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(pace.connect));
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .build(connector);
        let has_answered = AtomicBool::new(false);
        let authority = authority.to_owned();
        Ok(Line { shared: Arc::new(Shared { client, limits, pace, authority, has_answered }) })
    }

    /// True once the server has answered anything.
    pub fn has_answered(&self) -> bool {
        self.shared.has_answered.load(Ordering::Relaxed)
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, Trouble> {
        let shared = &self.shared;
        let (parts, body) = request.into_parts();
        let asked = parts.uri.authority().map(ToString::to_string).unwrap_or_default();
        let is_ours = asked == shared.authority;
        let is_copy = parts.headers.contains_key("x-amz-copy-source");
        let limits = if is_ours { shared.limits.clone() } else { Limits::default() };
        let pulse = Arc::new(Pulse::new(shared.pace.idle));
        let longest = self.longest(body.content_length() as u64);
        let sent = Sent::new(body, limits.upload, pulse.clone());
        let request = http::Request::from_parts(parts, sent);
        let answered = shared.client.request(request);
        let answer = pulse.watch(longest, answered).await;
        let answer = answer.and_then(|answer| answer.map_err(|error| broken(&error, &asked)));
        if let (false, Err(trouble)) = (is_ours, &answer) {
            return Err(Trouble::Other(format!("cannot get keys of this machine: {trouble}")));
        }
        let (mut parts, incoming) = answer?.into_parts();
        shared.has_answered.fetch_or(is_ours, Ordering::Relaxed);
        let bytes = incoming.size_hint().exact().unwrap_or(0);
        let deadline = Instant::now() + self.longest(bytes);
        let mut received = Received::new(incoming, limits.download, pulse, deadline);
        if !is_ours {
            return Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(received)));
        }
        let status = parts.status.as_u16();
        let is_success = parts.status.is_success();
        // A copy can fail after its answer began with 200.
        if !is_success || is_copy {
            let body = received.first_bytes().await?;
            let mut answer = xml::answer(if is_success { 500 } else { status }, &body);
            if is_success && answer.code.is_empty() {
                return Ok(HttpResponse::from_parts(parts, Bytes::from(body).into()));
            }
            let region = parts.headers.get("x-amz-bucket-region");
            let region = region.and_then(|region| region.to_str().ok()).map(str::to_owned);
            answer.region = region.or(answer.region);
            return Err(Trouble::Answer(answer));
        }
        // object_store reckons with these numbers as they are.
        if let Some(range) = parts.headers.get(http::header::CONTENT_RANGE)
            && !range.to_str().is_ok_and(is_range)
        {
            return Err(Trouble::line(LineFault::Nonsense, "the answer has a range that is none"));
        }
        let told = |name: &str| Some(parts.headers.get(name)?.to_str().ok()?.to_owned());
        let (checksum, lock) = (told(CHECKSUM_HEADER), told(LOCK_HEADER));
        if let Some(checksum) = checksum.filter(|_| status == 200) {
            parts.extensions.insert(ToldChecksum(checksum));
        }
        if let Some(lock) = lock {
            parts.extensions.insert(ToldLock(lock));
        }
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(received)))
    }

    /// How long so many bytes may take.
    fn longest(&self, bytes: u64) -> Duration {
        let rates = [&self.shared.limits.upload, &self.shared.limits.download];
        // Connections share a limit; none gets less than a fraction of it.
        let slowest = rates.into_iter().flatten().map(|limit| limit.rate() / 64).min();
        let rate = slowest.unwrap_or(SLOWEST_RATE).clamp(1, SLOWEST_RATE);
        self.shared.pace.idle * 4 + Duration::from_secs(bytes / rate)
    }
}

/// True for `bytes first-last/size`, within the size.
fn is_range(text: &str) -> bool {
    let parse = || {
        let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let number = |text: &str| text.parse::<u64>().ok();
        Some((number(first)?, number(last)?, number(size)?))
    };
    parse().is_some_and(|(first, last, size)| first <= last && last < size)
}

/// True for an error of TLS, in however many errors of input and output it is wrapped.
fn is_of_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let inner = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
    error.is::<rustls::Error>() || inner.is_some_and(|inner| is_of_tls(inner))
}

/// Why there was no answer of the server at `authority`.
fn broken(error: &ClientError, authority: &str) -> Trouble {
    let mut text = String::new();
    let mut is_tls = false;
    let mut cause = error.source();
    while let Some(error) = cause {
        // The layers repeat each other.
        text = error.to_string();
        is_tls |= is_of_tls(error);
        cause = error.source();
    }
    let is_http = error.source().and_then(|cause| cause.downcast_ref::<hyper::Error>());
    let fault = match is_http {
        _ if is_tls => LineFault::Tls,
        Some(error) if error.is_parse() => LineFault::Nonsense,
        _ if error.is_connect() => LineFault::Connect,
        _ => LineFault::Broken,
    };
    let text = if text.is_empty() { error.to_string() } else { text };
    Trouble::line(
        fault,
        match fault {
            LineFault::Connect => format!("cannot connect to {authority}: {text}"),
            LineFault::Tls => format!("cannot connect to {authority} by TLS: {text}"),
            LineFault::Nonsense => format!("the server does not speak HTTP: {text}"),
            _ => format!("the connection broke off: {text}"),
        },
    )
}

impl Trouble {
    /// As object_store carries it.
    fn carried(self) -> HttpError {
        HttpError::new(HttpErrorKind::Unknown, self)
    }
}

impl HttpConnector for Line {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

// What `async_trait` makes of the trait's `async fn call`.
impl HttpService for Line {
    fn call<'life, 'wait>(
        &'life self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'wait>>
    where
        'life: 'wait,
        Self: 'wait,
    {
        Box::pin(async move { self.send(request).await.map_err(Trouble::carried) })
    }
}

/// When something moved last.
struct Pulse {
    began: Instant,
    /// Milliseconds after it.
    last: AtomicU64,
    idle: Duration,
}

impl Pulse {
    fn new(idle: Duration) -> Pulse {
        Pulse { began: Instant::now(), last: AtomicU64::new(0), idle }
    }

    /// Something moved, or is held back by a limit for so long.
    fn touch(&self, held: Duration) {
        let moment = (self.began.elapsed() + held).as_millis();
        self.last.fetch_max(u64::try_from(moment).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// When it counts as dead.
    fn end(&self) -> Instant {
        self.began + Duration::from_millis(self.last.load(Ordering::Relaxed)) + self.idle
    }

    fn silence(&self) -> Trouble {
        let text = format!("nothing moved for {:.0?}", self.idle);
        Trouble::line(LineFault::Silent, text)
    }

    /// Waits for what is to come as long as something moves, and no longer than `longest`.
    async fn watch<T>(
        &self,
        longest: Duration,
        wanted: impl Future<Output = T>,
    ) -> Result<T, Trouble> {
        let mut wanted = pin!(wanted);
        let last = self.began + longest;
        loop {
            let end = self.end().min(last);
            if let Ok(done) = tokio::time::timeout_at(end, &mut wanted).await {
                return Ok(done);
            }
            let now = Instant::now();
            if now >= last {
                return Err(crawls(longest));
            }
            if now >= self.end() {
                return Err(self.silence());
            }
        }
    }
}

fn crawls(longest: Duration) -> Trouble {
    Trouble::line(LineFault::Silent, format!("the server took longer than {longest:.0?}"))
}

/// The body of a request, in pieces at the pace of the limit.
struct Sent {
    body: HttpRequestBody,
    rest: Bytes,
    limit: Option<Arc<Throttle>>,
    held: Option<(Pin<Box<Sleep>>, Bytes)>,
    pulse: Arc<Pulse>,
}

impl Sent {
    fn new(body: HttpRequestBody, limit: Option<Arc<Throttle>>, pulse: Arc<Pulse>) -> Sent {
        Sent { body, rest: Bytes::new(), limit, held: None, pulse }
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        if let Some((sleep, _)) = &mut this.held {
            ready!(sleep.as_mut().poll(context));
        }
        if let Some((_, piece)) = this.held.take() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        while this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => this.rest = frame.into_data().unwrap_or_default(),
            }
        }
        let most = this.limit.as_ref().map_or(PIECE_BYTES, |limit| limit.piece_bytes());
        let piece = this.rest.split_to(most.min(this.rest.len()));
        let wait = this.limit.as_ref().map_or(Duration::ZERO, |limit| limit.take(piece.len()));
        this.pulse.touch(wait);
        if wait.is_zero() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let mut sleep = Box::pin(tokio::time::sleep(wait));
        if sleep.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        this.held = Some((sleep, piece));
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.held.as_ref().map_or(0, |(_, piece)| piece.len());
        let rest = self.body.size_hint().exact().unwrap_or(0);
        SizeHint::with_exact(rest + (self.rest.len() + held) as u64)
    }
}

/// The body of an answer, at the pace of the limit.
struct Received {
    body: Incoming,
    limit: Option<Arc<Throttle>>,
    held: Option<(Pin<Box<Sleep>>, Frame<Bytes>)>,
    pulse: Arc<Pulse>,
    timer: Pin<Box<Sleep>>,
    deadline: Instant,
}

impl Received {
    fn new(
        body: Incoming,
        limit: Option<Arc<Throttle>>,
        pulse: Arc<Pulse>,
        deadline: Instant,
    ) -> Received {
        pulse.touch(Duration::ZERO);
        let timer = Box::pin(tokio::time::sleep_until(pulse.end().min(deadline)));
        Received { body, limit, held: None, pulse, timer, deadline }
    }

    /// As much as is worth reading of an answer that is no success.
    async fn first_bytes(&mut self) -> Result<Vec<u8>, Trouble> {
        let mut bytes = Vec::new();
        while bytes.len() < ANSWER_BYTES_MAX {
            let frame = std::future::poll_fn(|context| self.poll_next(context)).await;
            match frame {
                None => break,
                Some(frame) => bytes.extend(frame?.into_data().unwrap_or_default()),
            }
        }
        bytes.truncate(ANSWER_BYTES_MAX);
        Ok(bytes)
    }

    fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Trouble>>> {
        if let Some((sleep, _)) = &mut self.held {
            ready!(sleep.as_mut().poll(context));
        }
        if let Some((_, frame)) = self.held.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                let limit = self.limit.as_ref();
                let wait = limit.map_or(Duration::ZERO, |limit| limit.take(bytes));
                self.pulse.touch(wait);
                self.timer.as_mut().reset(self.pulse.end().min(self.deadline));
                let mut sleep = Box::pin(tokio::time::sleep(wait));
                if wait.is_zero() || sleep.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Some(Ok(frame)));
                }
                self.held = Some((sleep, frame));
                Poll::Pending
            }
            Poll::Ready(Some(Err(error))) => {
                let text = format!("the answer breaks off: {error}");
                Poll::Ready(Some(Err(Trouble::line(LineFault::Broken, text))))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                ready!(self.timer.as_mut().poll(context));
                let trouble = match Instant::now() >= self.deadline {
                    true => Trouble::line(LineFault::Silent, "the server sends too slowly"),
                    false => self.pulse.silence(),
                };
                Poll::Ready(Some(Err(trouble)))
            }
        }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        self.poll_next(context).map(|frame| frame.map(|frame| frame.map_err(Trouble::carried)))
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.held {
            // Only a guess for who reserves memory; the length stands in the headers.
            Some(_) => SizeHint::default(),
            None => self.body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ranges_within_the_size_are_handed_on() {
        for good in ["bytes 0-0/1", "bytes 5-9/10"] {
            assert!(is_range(good), "{good}");
        }
        // The first is what one server says of an empty object.
        for bad in ["bytes 0-18446744073709551615/0", "bytes 5-4/10", "bytes 0-10/10", "0-1/2", ""]
        {
            assert!(!is_range(bad), "{bad}");
        }
    }
}

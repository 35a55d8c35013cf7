//! Requests to one bucket, each tried again as long as that can help: those of object_store, and
//! the few that it does not have, signed by its authorizer.
//!
//! Invariants owned here: never more than the chosen number of requests at once; each try is
//! signed anew, so that none is older than its clock; waits grow, and chance cuts them short.

use super::line::Line;
use super::options::{Credentials, Patience, S3Options};
use super::trouble::{Failed, LineFault, Trouble};
use crate::environment::{Environment, SystemEnvironment, random_array};
use crate::error::{Error, ErrorKind, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer, AwsCredential, Checksum};
use object_store::client::{HttpClient, HttpConnector, HttpRequest};
use object_store::path::Path;
use object_store::{ClientOptions, RetryConfig, StaticCredentialProvider};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// What stands in a path or query as it is; the rest is written as `%xx`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The same for a key, whose slashes are those of the path.
const ENCODED_KEY: &AsciiSet = &ENCODED.remove(b'/');

/// Most bytes of the body of an answer to a request of our own: a page of a listing.
const BODY_BYTES_MAX: usize = 16 << 20;

/// So often what makes no sense is asked for.
pub(super) const DOUBTS_MAX: u32 = 3;

/// One bucket and the way to it.
pub(super) struct S3Client {
    /// Puts with a checksum, deletes, copies.
    pub plain: AmazonS3,
    /// Reads, and asks for the checksum that was put.
    pub reading: AmazonS3,
    builder: AmazonS3Builder,
    http: HttpClient,
    line: Line,
    bucket_url: String,
    region: String,
    patience: Patience,
    turns: Semaphore,
}

impl S3Client {
    /// A client for the bucket. No request is made.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for an endpoint that is none; [`ErrorKind::Storage`] if it cannot be made.
    pub fn new(options: &S3Options) -> Result<S3Client> {
        let (bucket_url, authority) = options.bucket_url()?;
        let cannot = |cause: String| {
            let place = &options.bucket;
            Error::new(ErrorKind::Storage, format!("cannot open s3://{place}: {cause}"))
        };
        let line = Line::new(&authority, options.limits.clone(), options.patience.pace());
        let line = line.map_err(cannot)?;
        let builder = AmazonS3Builder::new()
            .with_bucket_name(&options.bucket.name)
            .with_region(&options.region)
            .with_endpoint(&bucket_url)
            // That the endpoint names the bucket already.
            .with_virtual_hosted_style_request(true)
            .with_allow_http(true)
            .with_disable_bulk_delete(true)
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_http_connector(line.clone());
        let builder = match &options.credentials {
            Credentials::Keys { id, secret, token } => {
                let (key_id, secret_key, token) = (id.clone(), secret.clone(), token.clone());
                let credential = AwsCredential { key_id, secret_key, token };
                builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential)))
            }
            Credentials::Given(settings) => {
                let mut builder = builder;
                for (name, value) in settings {
                    let key = name.parse().map_err(|_| cannot(format!("no setting {name}")))?;
                    builder = builder.with_config(key, value);
                }
                builder
            }
        };
        let failed = |cause: object_store::Error| cannot(Trouble::from(cause).to_string());
        let first = builder.clone().build().map_err(failed)?;
        // One provider for all: it keeps what the cloud gave.
        let builder = builder.with_credentials(first.credentials().clone());
        let plain = builder.clone().with_checksum_algorithm(Checksum::SHA256);
        let mut wanted = HeaderMap::new();
        let mode = HeaderName::from_static("x-amz-checksum-mode");
        wanted.insert(mode, HeaderValue::from_static("ENABLED"));
        let reading = builder.clone().with_client_options(sending(wanted));
        Ok(S3Client {
            plain: plain.build().map_err(failed)?,
            reading: reading.build().map_err(failed)?,
            builder,
            http: line.connect(&ClientOptions::new()).map_err(failed)?,
            line,
            bucket_url,
            region: options.region.clone(),
            patience: options.patience,
            turns: Semaphore::new(options.connections.max(1)),
        })
    }

    /// A store that sends these headers, and a checksum, with each request.
    pub fn with_headers(&self, headers: HeaderMap) -> Result<AmazonS3, Trouble> {
        let builder = self.builder.clone().with_checksum_algorithm(Checksum::SHA256);
        Ok(builder.with_client_options(sending(headers)).build()?)
    }

    /// A store that sends these headers with each request, and no checksum of its own.
    pub fn without_checksum(&self, headers: HeaderMap) -> Result<AmazonS3, Trouble> {
        Ok(self.builder.clone().with_client_options(sending(headers)).build()?)
    }

    /// Makes a call, again and again as long as that can help. The call is told which try it is,
    /// from 1.
    pub async fn persist<T>(
        &self,
        mut call: impl AsyncFnMut(u32) -> Result<T, Trouble>,
    ) -> Result<T, Failed> {
        let began = Instant::now();
        let mut tries = 0;
        loop {
            tries += 1;
            let done = match self.turns.acquire().await {
                Ok(_turn) => call(tries).await,
                Err(_) => Err(Trouble::Other("the storage was closed".into())),
            };
            let trouble = match done {
                Ok(done) => return Ok(done),
                Err(trouble) => trouble,
            };
            let wait = self.wait(tries);
            let patience = match self.line.has_answered() {
                true => self.patience.in_all,
                false => self.patience.first_contact,
            };
            let elapsed = began.elapsed();
            let is_doubtful = trouble.is_doubtful() && tries >= DOUBTS_MAX;
            if !trouble.may_pass() || is_doubtful || elapsed + wait > patience {
                return Err(Failed { trouble, tries, elapsed });
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// How long to wait after so many tries: twice as long after each, and half of it by chance.
    fn wait(&self, tries: u32) -> Duration {
        let factor = 1_u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX);
        let whole = self.patience.first_wait.saturating_mul(factor).min(self.patience.longest_wait);
        let chance = random_array::<2>(&SystemEnvironment).map_or(0, u16::from_le_bytes);
        whole / 2 + whole.mul_f64(f64::from(chance) / f64::from(u16::MAX) / 2.0)
    }

    /// Makes a request that object_store does not have, and gives the body of its answer. `query`
    /// has pairs, the value `None` for a name alone.
    pub async fn own(
        &self,
        method: Method,
        key: &str,
        query: &[(&str, &str)],
        body: &str,
    ) -> Result<String, Trouble> {
        let bad = |cause: String| Trouble::Other(format!("cannot make the request: {cause}"));
        let pairs: Vec<String> = query
            .iter()
            .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, ENCODED)))
            .collect();
        let key = utf8_percent_encode(key, ENCODED_KEY);
        let uri = format!("{}/{key}?{}", self.bucket_url, pairs.join("&"));
        let mut builder = http::Request::builder().method(method).uri(uri);
        if !body.is_empty() {
            let sum = BASE64_STANDARD.encode(Sha256::digest(body));
            builder = builder.header("x-amz-checksum-sha256", sum);
            builder = builder.header("content-length", body.len());
        }
        let body = Bytes::copy_from_slice(body.as_bytes());
        let request = builder.body(body.into()).map_err(|cause| bad(cause.to_string()))?;
        let mut request: HttpRequest = request;
        let credential = self.plain.credentials().get_credential().await?;
        AwsAuthorizer::new(&credential, "s3", &self.region).try_authorize(&mut request, None)?;
        let answer = self.http.execute(request).await.map_err(of_http)?;
        let mut body = answer.into_body().bytes_stream();
        let mut text = Vec::new();
        while let Some(piece) = futures_util::StreamExt::next(&mut body).await {
            text.extend(piece.map_err(of_http)?);
            if text.len() > BODY_BYTES_MAX {
                return Err(Trouble::line(LineFault::Nonsense, "the answer has no end"));
            }
        }
        String::from_utf8(text)
            .map_err(|_| Trouble::line(LineFault::Nonsense, "the answer is no text"))
    }
}

fn sending(headers: HeaderMap) -> ClientOptions {
    ClientOptions::new().with_allow_http(true).with_default_headers(headers)
}

fn of_http(error: object_store::client::HttpError) -> Trouble {
    let source = Box::new(error);
    Trouble::from(object_store::Error::Generic { store: "S3", source })
}

/// The path of a key, as object_store has it.
pub(super) fn path(key: &str) -> Result<Path, Trouble> {
    Path::parse(key).map_err(|cause| Trouble::Other(super::trouble::tame(&cause.to_string())))
}

/// Now, nanoseconds since 1970.
pub(super) fn now_unix_ns() -> i64 {
    SystemEnvironment.now_unix_ns()
}

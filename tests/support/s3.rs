//! S3 servers for tests: moto, started on a free port, or one that the environment names.
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::print_stdout, reason = "a test says what it skipped")]

use diskvault::storage::place::Bucket;
use diskvault::storage::s3::{Credentials, Patience, S3Options};
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::HttpRequestBody;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What is left as it is in a key.
const PLAIN: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A server, ended with this.
pub struct Server {
    /// `http://host:port`.
    pub endpoint: String,
    pub region: String,
    pub key_id: String,
    pub secret: String,
    child: Option<Child>,
}

impl Server {
    /// The server that `DISKVAULT_S3_ENDPOINT` names, with `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY` and `AWS_REGION`; else a new moto. `None`, with a message, where
    /// moto cannot be had, unless `DISKVAULT_REQUIRE_S3` asks for it.
    pub fn start() -> Option<Server> {
        let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        if let Some(endpoint) = variable("DISKVAULT_S3_ENDPOINT") {
            return Some(Server {
                endpoint,
                region: variable("AWS_REGION").unwrap_or("us-east-1".into()),
                key_id: variable("AWS_ACCESS_KEY_ID").unwrap_or_default(),
                secret: variable("AWS_SECRET_ACCESS_KEY").unwrap_or_default(),
                child: None,
            });
        }
        Server::moto()
    }

    /// A new moto, whatever the environment names.
    pub fn moto() -> Option<Server> {
        let server = Server::started();
        let is_required = std::env::var_os("DISKVAULT_REQUIRE_S3").is_some();
        assert!(server.is_some() || !is_required, "moto_server cannot be started");
        if server.is_none() {
            println!("skipped: there is no moto_server; pip install 'moto[server]'");
        }
        server
    }

    fn started() -> Option<Server> {
        let port = free_port();
        let mut command = Command::new("moto_server");
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().ok()?;
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let is_over = child.try_wait().ok().flatten().is_some();
            if is_over || began.elapsed() > Duration::from_secs(60) {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(Server {
            endpoint: format!("http://127.0.0.1:{port}"),
            region: "us-east-1".into(),
            key_id: "test".into(),
            secret: "secret".into(),
            child: Some(child),
        })
    }

    /// Makes a bucket; it may be there.
    pub fn make_bucket(&self, name: &str, with_lock: bool) {
        let headers: &[(&str, &str)] =
            if with_lock { &[("x-amz-bucket-object-lock-enabled", "true")] } else { &[] };
        let (status, _) = self.request("PUT", name, "", headers, b"");
        assert!([200, 409].contains(&status), "cannot make bucket {name}: {status}");
    }

    /// Options for a prefix of a bucket; they give up soon.
    pub fn options(&self, bucket: &str, prefix: &str) -> S3Options {
        let (id, secret) = (self.key_id.clone(), self.secret.clone());
        let keys = Credentials::Keys { id, secret, token: None };
        let place = Bucket { name: bucket.into(), prefix: prefix.into() };
        let mut options = S3Options::new(place, Some(self.endpoint.clone()), keys);
        options.region = self.region.clone();
        options.patience = quick();
        options
    }

    /// A signed request without a client: status and body. The key may have any bytes.
    pub fn request(
        &self,
        method: &str,
        bucket: &str,
        key: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (u16, Vec<u8>) {
        let (status, _, body) = self.exchange(method, bucket, key, headers, body);
        (status, body)
    }

    /// Status and headers of an object, in lower case.
    pub fn head(&self, bucket: &str, key: &str) -> (u16, String) {
        let (status, head, _) = self.exchange("HEAD", bucket, key, &[], b"");
        (status, head)
    }

    fn exchange(
        &self,
        method: &str,
        bucket: &str,
        key: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (u16, String, Vec<u8>) {
        let (key, query) = key.split_once('?').unwrap_or((key, ""));
        let key = utf8_percent_encode(key, PLAIN);
        let uri = format!("{}/{bucket}/{key}?{query}", self.endpoint);
        let mut builder = http::Request::builder().method(method).uri(uri.trim_end_matches('?'));
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        let mut request = builder.body(HttpRequestBody::from(body.to_vec())).unwrap();
        let (key_id, secret_key) = (self.key_id.clone(), self.secret.clone());
        let credential = AwsCredential { key_id, secret_key, token: None };
        let authorizer = AwsAuthorizer::new(&credential, "s3", &self.region);
        authorizer.try_authorize(&mut request, None).unwrap();

        let authority = request.uri().authority().unwrap().to_string();
        let target = request.uri().path_and_query().unwrap().to_string();
        let mut text = format!("{method} {target} HTTP/1.1\r\nhost: {authority}\r\n");
        for (name, value) in request.headers() {
            text += &format!("{name}: {}\r\n", value.to_str().unwrap());
        }
        text += &format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len());
        let mut stream = TcpStream::connect(&authority).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head, answer[end + 4..].to_vec())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Gives up after a few seconds.
pub fn quick() -> Patience {
    Patience {
        first_wait: Duration::from_millis(20),
        longest_wait: Duration::from_millis(200),
        in_all: Duration::from_secs(4),
        first_contact: Duration::from_secs(1),
        idle: Duration::from_secs(20),
    }
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

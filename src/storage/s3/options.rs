//! What a user chooses of an S3 storage: where it is, who asks, and how objects are kept.
//!
//! Invariants owned here: secrets are shown nowhere, not even by `Debug`; only classes of storage
//! that can be read at once are taken; leases, lists, trash and notes are never locked.

use super::super::Folder;
use super::super::place::Bucket;
use super::super::throttle::Limits;
use super::line::Pace;
use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::time::Duration;

/// Classes from which nothing can be read before it is brought back, which takes hours.
const COLD_CLASSES: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];

/// Most days an object is locked: ten years, against slips of the finger.
const LOCK_DAYS_MAX: u32 = 3650;

/// Who asks.
#[derive(Clone)]
pub enum Credentials {
    /// A key of a user.
    Keys {
        /// The public half.
        id: String,
        /// The secret half.
        secret: String,
        /// What belongs to keys that expire.
        token: Option<String>,
    },
    /// What the cloud gives to the machine, container or role that this program runs as: settings
    /// of object_store by their names, such as `aws_role_arn`.
    Given(Vec<(String, String)>),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credentials::Keys { .. } => "Keys",
            Credentials::Given(_) => "Given",
        })
    }
}

/// How a lock can be taken off before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// By whoever has a permission of its own for that.
    Governance,
    /// By nobody.
    Compliance,
}

impl LockMode {
    /// As S3 writes it.
    pub(super) fn name(self) -> &'static str {
        match self {
            LockMode::Governance => "GOVERNANCE",
            LockMode::Compliance => "COMPLIANCE",
        }
    }
}

/// For how long objects cannot be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectLock {
    days: u32,
    mode: LockMode,
}

impl ObjectLock {
    /// A lock for so many days.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for none, or more than ten years.
    pub fn new(days: u32, mode: LockMode) -> Result<ObjectLock> {
        if (1..=LOCK_DAYS_MAX).contains(&days) {
            return Ok(ObjectLock { days, mode });
        }
        let text = format!("cannot lock objects for {days} days: expected 1 to {LOCK_DAYS_MAX}");
        Err(Error::new(ErrorKind::Usage, text))
    }

    /// The mode.
    pub(super) fn mode(self) -> LockMode {
        self.mode
    }

    /// When a lock that is put on now ends, nanoseconds since 1970.
    pub(super) fn until(self, now_unix_ns: i64) -> i64 {
        now_unix_ns.saturating_add(i64::from(self.days).saturating_mul(super::DAY_NS))
    }

    /// Whether objects of this folder are locked: what a point needs, and nothing that has to go.
    pub(super) fn covers(folder: Folder) -> bool {
        match folder {
            Folder::Config
            | Folder::Instance
            | Folder::Keys
            | Folder::Writers
            | Folder::Packs
            | Folder::Points
            | Folder::Parity => true,
            Folder::Notes
            | Folder::Lost
            | Folder::Index
            | Folder::Leases
            | Folder::Condemned
            | Folder::Trash
            | Folder::Aside => false,
        }
    }
}

/// How long to go on where something fails.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Before the second try; doubled with each, and cut short by chance.
    pub first_wait: Duration,
    /// Between tries at most.
    pub longest_wait: Duration,
    /// No try begins later than this.
    pub in_all: Duration,
    /// The same as long as the server has not answered at all: its address may be wrong.
    pub first_contact: Duration,
    /// Without any byte, a request counts as dead.
    pub idle: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            first_wait: Duration::from_millis(250),
            longest_wait: Duration::from_secs(20),
            in_all: Duration::from_secs(180),
            first_contact: Duration::from_secs(8),
            idle: Duration::from_secs(30),
        }
    }
}

impl Patience {
    pub(super) fn pace(&self) -> Pace {
        Pace { idle: self.idle, connect: self.idle.min(Duration::from_secs(10)) }
    }
}

/// Where an S3 storage is and how it is used.
#[derive(Clone)]
pub struct S3Options {
    /// The bucket and the prefix of all keys.
    pub bucket: Bucket,
    /// `http://` or `https://`, host and port; AWS if there is none.
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: String,
    /// Who asks.
    pub credentials: Credentials,
    /// Requests at once.
    pub connections: usize,
    /// How fast bytes may go.
    pub limits: Limits,
    /// How long to go on.
    pub patience: Patience,
    /// The class of packs and their parity.
    pub storage_class: Option<String>,
    /// Whether objects are locked.
    pub lock: Option<ObjectLock>,
}

impl S3Options {
    /// Requests at once, where the user says nothing.
    pub const CONNECTIONS: usize = 8;

    /// The usual way to this bucket.
    pub fn new(bucket: Bucket, endpoint: Option<String>, credentials: Credentials) -> S3Options {
        S3Options {
            bucket,
            endpoint,
            region: "us-east-1".into(),
            credentials,
            connections: S3Options::CONNECTIONS,
            limits: Limits::default(),
            patience: Patience::default(),
            storage_class: None,
            lock: None,
        }
    }

    /// The URL of the bucket and the host and port in it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for an endpoint that is no URL of a server.
    pub(super) fn bucket_url(&self) -> Result<(String, String)> {
        let Bucket { name, .. } = &self.bucket;
        let url = match &self.endpoint {
            Some(endpoint) => format!("{}/{name}", endpoint.trim_end_matches('/')),
            None => {
                let region = &self.region;
                let tail = if region.starts_with("cn-") { ".cn" } else { "" };
                // Certificates cover one part in front of the region.
                match name.contains('.') {
                    true => format!("https://s3.{region}.amazonaws.com{tail}/{name}"),
                    false => format!("https://{name}.s3.{region}.amazonaws.com{tail}"),
                }
            }
        };
        let refuse = |why: &str| {
            let shown = self.endpoint.as_ref().unwrap_or(&url).escape_debug().to_string();
            let error = Error::new(ErrorKind::Usage, format!("cannot use endpoint {shown}: {why}"));
            error.hint("give it such as https://s3.example.org:9000")
        };
        let parsed: http::Uri = url.parse().map_err(|_| refuse("it is no URL"))?;
        match parsed.scheme_str() {
            Some("http" | "https") => {}
            _ => return Err(refuse("it begins with neither https:// nor http://")),
        }
        if parsed.query().is_some() {
            return Err(refuse("it has a query"));
        }
        let authority = parsed.authority().ok_or_else(|| refuse("it names no server"))?;
        if authority.as_str().contains('@') {
            return Err(refuse("it names a user; keys belong into the environment or a profile"));
        }
        Ok((url.clone(), authority.to_string()))
    }

    /// # Errors
    /// [`ErrorKind::Usage`] for a class that cannot be used, and keys or a region that cannot stand
    /// in a header.
    pub(super) fn check(&self) -> Result<()> {
        let is_one_word = |text: &String| text.bytes().all(|byte| byte.is_ascii_graphic());
        let refuse = |what: &str| {
            let text = format!("cannot use {what}: it has spaces or other marks in it");
            Err(Error::new(ErrorKind::Usage, text))
        };
        if !is_one_word(&self.region) {
            return refuse("the region");
        }
        if let Credentials::Keys { id, token, .. } = &self.credentials {
            if !is_one_word(id) {
                return refuse("the access key");
            }
            if !token.as_ref().is_none_or(is_one_word) {
                return refuse("the session token");
            }
        }
        let Some(class) = &self.storage_class else { return Ok(()) };
        if COLD_CLASSES.contains(&class.as_str()) {
            let text =
                format!("cannot keep packs in storage class {class}: it is read after hours");
            return Err(Error::new(ErrorKind::Usage, text).hint("GLACIER_IR is read at once"));
        }
        let is_plain =
            |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        if class.is_empty() || !class.bytes().all(is_plain) {
            let text = format!("cannot use storage class \"{}\"", class.escape_debug());
            return Err(Error::new(ErrorKind::Usage, text).hint("classes are such as STANDARD_IA"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(name: &str, endpoint: Option<&str>) -> S3Options {
        let keys = Credentials::Keys { id: "id".into(), secret: "hidden".into(), token: None };
        let bucket = Bucket { name: name.into(), prefix: String::new() };
        S3Options::new(bucket, endpoint.map(str::to_owned), keys)
    }

    #[test]
    fn a_bucket_has_one_url() {
        for (name, endpoint, url, authority) in [
            ("b", Some("http://localhost:9000/"), "http://localhost:9000/b", "localhost:9000"),
            ("b", Some("https://s3.example.org"), "https://s3.example.org/b", "s3.example.org"),
            ("b", None, "https://b.s3.us-east-1.amazonaws.com", "b.s3.us-east-1.amazonaws.com"),
            ("b.c", None, "https://s3.us-east-1.amazonaws.com/b.c", "s3.us-east-1.amazonaws.com"),
        ] {
            let expected = (url.to_owned(), authority.to_owned());
            assert_eq!(options(name, endpoint).bucket_url().unwrap(), expected);
        }
        for bad in ["s3.example.org", "ftp://x", "https://", "https://id:key@x", "https://x/?a=b"] {
            assert_eq!(options("b", Some(bad)).bucket_url().unwrap_err().kind(), ErrorKind::Usage);
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        assert!(!format!("{:?}", options("b", None).credentials).contains("hidden"));
    }

    #[test]
    fn keys_that_cannot_stand_in_a_header_are_refused() {
        let mut options = options("b", None);
        options.check().unwrap();
        for id in ["a b", "a\nb", "\u{e9}"] {
            let secret = String::new();
            options.credentials = Credentials::Keys { id: id.into(), secret, token: None };
            assert_eq!(options.check().unwrap_err().kind(), ErrorKind::Usage);
        }
    }

    #[test]
    fn cold_classes_and_endless_locks_are_refused() {
        for (class, fits) in
            [("STANDARD_IA", true), ("GLACIER_IR", true), ("GLACIER", false), ("x y", false)]
        {
            let class = Some(class.to_owned());
            let options = S3Options { storage_class: class, ..options("b", None) };
            assert_eq!(options.check().is_ok(), fits);
        }
        assert!(ObjectLock::new(0, LockMode::Governance).is_err());
        assert!(ObjectLock::new(3651, LockMode::Compliance).is_err());
    }
}

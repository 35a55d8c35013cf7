//! What can go wrong between this program and an S3 server, and how it is told.
//!
//! Invariants owned here: what a server says is shown on one line, without what a terminal would
//! obey, and never longer than a few hundred characters; only what may pass by itself is tried
//! again, and a refusal never is.

use crate::error::{Error, ErrorKind};
use std::fmt;
use std::io;
use std::time::Duration;

/// Most characters of a server's words that are shown.
const SHOWN_CHARACTERS_MAX: usize = 300;

/// An answer that is no success.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// What S3 calls it, such as `NoSuchBucket`; empty where the answer has no body.
    pub code: String,
    /// What the server says in words.
    pub message: String,
    /// The region that the server would rather be asked in.
    pub region: Option<String>,
}

/// How a line failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineFault {
    /// Nobody answers there.
    Connect,
    /// The certificate or the handshake was no good: the same will happen again.
    Tls,
    /// Nothing moved for too long.
    Silent,
    /// It broke off.
    Broken,
    /// What came is not what had been put: it may be whole the next time.
    Corrupt,
    /// What came is no answer of an S3 server.
    Nonsense,
}

/// Why a request failed.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    /// The server said no.
    Answer(Answer),
    /// There was no whole answer.
    Line(LineFault, String),
    /// Something else, in words.
    Other(String),
}

/// A request that failed for good, with how often it was tried.
#[derive(Debug)]
pub(super) struct Failed {
    pub trouble: Trouble,
    pub tries: u32,
    pub elapsed: Duration,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Answer(answer) => f.write_str(&answer.text()),
            Trouble::Line(_, text) | Trouble::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Trouble {}

impl From<object_store::Error> for Trouble {
    /// What our own connector said, wherever it stands in the chain of causes.
    fn from(error: object_store::Error) -> Trouble {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(error) = cause {
            if let Some(trouble) = error.downcast_ref::<Trouble>() {
                return trouble.clone();
            }
            cause = error.source();
        }
        match &error {
            object_store::Error::Generic { source, .. } => {
                Trouble::Line(LineFault::Nonsense, tame(&source.to_string()))
            }
            error => Trouble::Other(tame(&error.to_string())),
        }
    }
}

impl Answer {
    /// Whether S3 calls it one of these.
    pub fn is(&self, codes: &[&str]) -> bool {
        codes.contains(&self.code.as_str())
    }

    fn text(&self) -> String {
        let known = match self.code.as_str() {
            "AccessDenied" if self.message.is_empty() => "access is denied",
            "RequestTimeTooSkewed" => {
                "the clocks of this machine and of the server differ too much"
            }
            "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => {
                "the credentials have expired"
            }
            "InvalidAccessKeyId" => "the server does not know the access key",
            "SignatureDoesNotMatch" => "the secret key does not fit the access key",
            "NoSuchBucket" => "there is no such bucket",
            _ if self.is_of_another_region() => "the bucket is in another region",
            "" if self.status == 403 => "access is denied",
            _ => {
                let Answer { status, code, message, .. } = self;
                let code = if code.is_empty() { String::new() } else { format!(" {code}") };
                let colon = if message.is_empty() { "" } else { ": " };
                return tame(&format!("the server answered {status}{code}{colon}{message}"));
            }
        };
        known.to_owned()
    }

    fn is_of_another_region(&self) -> bool {
        self.status == 301
            || self.is(&["PermanentRedirect", "AuthorizationHeaderMalformed"])
                && self.region.is_some()
    }

    fn hint(&self) -> Option<String> {
        Some(match self.code.as_str() {
            "RequestTimeTooSkewed" => "set the clock of this machine".into(),
            "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => {
                "renew the credentials; AWS_SESSION_TOKEN belongs to them".into()
            }
            "InvalidAccessKeyId" => "look at AWS_ACCESS_KEY_ID, AWS_PROFILE and --endpoint".into(),
            "SignatureDoesNotMatch" => "look at AWS_SECRET_ACCESS_KEY or the profile".into(),
            "NoSuchBucket" => "make the bucket first, or look at its name and at --endpoint".into(),
            "AccessDenied" => "the key has to be allowed to list, get, put and delete there".into(),
            _ if self.is_of_another_region() => match &self.region {
                Some(region) => format!("use --region {}", tame(region)),
                None => "use the --region of the bucket".into(),
            },
            _ => return None,
        })
    }
}

impl Trouble {
    /// A line that failed so.
    pub fn line(fault: LineFault, text: impl AsRef<str>) -> Trouble {
        Trouble::Line(fault, tame(text.as_ref()))
    }

    /// The status, if there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Trouble::Answer(answer) => Some(answer.status),
            _ => None,
        }
    }

    /// True if there is no such object; the bucket is there.
    pub fn is_absent(&self) -> bool {
        matches!(self, Trouble::Answer(answer)
            if answer.status == 404 && !answer.is(&["NoSuchBucket"]))
    }

    /// True if there is no such bucket.
    pub fn is_no_bucket(&self) -> bool {
        matches!(self, Trouble::Answer(answer) if answer.is(&["NoSuchBucket"]))
    }

    /// True if `If-None-Match` found the name taken.
    pub fn is_taken(&self) -> bool {
        self.status() == Some(412)
    }

    /// True if the server did not like the range: the object is shorter.
    pub fn is_out_of_range(&self) -> bool {
        self.status() == Some(416)
    }

    /// Whether trying again may help.
    pub fn may_pass(&self) -> bool {
        match self {
            Trouble::Answer(answer) => {
                matches!(answer.status, 408 | 429 | 500 | 502 | 503 | 504)
                    || answer.is(&["RequestTimeout", "SlowDown", "ConditionalRequestConflict"])
                    // What came to the server is not what was sent.
                    || answer.is(&["BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch"])
            }
            Trouble::Line(fault, _) => *fault != LineFault::Tls,
            Trouble::Other(_) => false,
        }
    }

    /// True for what looks as if it would come again: an answer that makes no sense.
    pub fn is_doubtful(&self) -> bool {
        matches!(self, Trouble::Line(LineFault::Nonsense | LineFault::Corrupt, _))
    }

    /// True for a permission that is missing, which says nothing about the bytes.
    fn is_refusal(&self) -> bool {
        matches!(self.status(), Some(401 | 403))
    }

    fn is_full(&self) -> bool {
        let Trouble::Answer(answer) = self else { return false };
        answer.status == 507
            || answer.is(&["QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"])
    }
}

impl From<Trouble> for Failed {
    fn from(trouble: Trouble) -> Failed {
        Failed { trouble, tries: 1, elapsed: Duration::ZERO }
    }
}

impl Failed {
    /// The error that tells it: `what` says what was tried, such as `cannot write packs/3f`.
    pub fn tell(&self, what: impl fmt::Display) -> Error {
        let Failed { trouble, tries, elapsed } = self;
        let times = match tries {
            0 | 1 => String::new(),
            tries => format!(" (tried {tries} times in {} s)", elapsed.as_secs()),
        };
        let kind = if trouble.is_full() { ErrorKind::NoSpace } else { ErrorKind::Storage };
        let error = if trouble.is_refusal() {
            let cause = io::Error::new(io::ErrorKind::PermissionDenied, trouble.to_string());
            Error::io(kind, what.to_string(), cause)
        } else {
            Error::new(kind, format!("{what}: {trouble}{times}"))
        };
        match trouble {
            Trouble::Answer(answer) => match answer.hint() {
                Some(hint) => error.hint(hint),
                None => error,
            },
            Trouble::Line(LineFault::Tls, _) => {
                error.hint("look at --endpoint; SSL_CERT_FILE names the certificates to trust")
            }
            Trouble::Line(LineFault::Connect, _) => error.hint("look at --endpoint"),
            _ => error,
        }
    }
}

/// Words of a server on one short line.
pub(super) fn tame(text: &str) -> String {
    let plain = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let is_plain = |mark: &char| !mark.is_control();
    plain.chars().filter(is_plain).take(SHOWN_CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    fn answer(status: u16, code: &str) -> Trouble {
        Trouble::Answer(Answer { status, code: code.into(), ..Answer::default() })
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for (status, code) in
            [(500, "InternalError"), (503, "SlowDown"), (429, ""), (400, "RequestTimeout")]
        {
            assert!(answer(status, code).may_pass(), "{code}");
        }
        for (status, code) in [(403, "AccessDenied"), (404, "NoSuchKey"), (400, ""), (501, "")] {
            assert!(!answer(status, code).may_pass(), "{code}");
        }
    }

    #[test]
    fn a_refusal_is_told_as_one_and_a_full_store_too() {
        let error = Failed::from(answer(403, "AccessDenied")).tell("cannot read x");
        let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        assert_eq!(cause.map(io::Error::kind), Some(io::ErrorKind::PermissionDenied));
        assert_eq!(error.full_text(), "cannot read x: access is denied");
        let full = Failed::from(answer(507, "XMinioStorageFull")).tell("cannot write x");
        assert_eq!(full.kind(), ErrorKind::NoSpace);
    }

    #[test]
    fn words_of_a_server_cannot_reach_the_terminal() {
        let message = format!("\x1b[2J\nno {}", "long ".repeat(500));
        let hostile = Answer { status: 400, code: "A\x07".into(), message, region: None };
        let text = hostile.text();
        assert!(!text.contains(char::is_control) && text.len() <= SHOWN_CHARACTERS_MAX, "{text}");
    }
}

//! What a server can do, found out by trying.
//!
//! Invariants owned here: probe objects have names of their own under `tmp/`, which no repository
//! reads, and are deleted whatever happens; only a server whose completed puts and deletes are seen
//! by the next get and list is taken.

use super::client::{S3Client, path};
use super::head;
use super::listing::pages;
use super::trouble::{Failed, LineFault, Trouble};
use crate::environment::{SystemEnvironment, random_array};
use http::{HeaderMap, HeaderValue};
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};

/// So often a put has to be seen by what comes after it.
const ROUNDS: usize = 4;

/// Size of a probe object.
const PROBE_BYTES: usize = 1000;

/// What a probe has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Findings {
    /// `If-None-Match: *` keeps a put from replacing an object.
    pub refuses_taken_names: bool,
    /// A put whose bytes do not fit their SHA-256 is refused.
    pub checks_checksums: bool,
    /// The SHA-256 of an object is told when it is read.
    pub tells_checksums: bool,
    /// The last bytes of an object can be read without knowing its size.
    pub suffix_ranges: bool,
}

impl Findings {
    /// Nothing that can be done without is relied on.
    pub(super) fn unknown() -> Findings {
        Findings {
            refuses_taken_names: false,
            checks_checksums: false,
            tells_checksums: false,
            suffix_ranges: false,
        }
    }
}

/// Says what was found, in a sentence.
impl std::fmt::Display for Findings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = |is_so: bool, yes: &'static str, no: &'static str| if is_so { yes } else { no };
        write!(
            f,
            "puts are seen at once; wrong checksums are {}; checksums are {}; taken names are {}; \
             ends of objects are {}",
            word(self.checks_checksums, "refused", "not noticed"),
            word(self.tells_checksums, "told on reads", "not told on reads"),
            word(self.refuses_taken_names, "refused (If-None-Match)", "looked for before a put"),
            word(self.suffix_ranges, "read at once", "read after a look at the size"),
        )
    }
}

/// Tries everything on objects of its own.
pub(super) async fn run(client: &S3Client, base: &str, locks: bool) -> Result<Findings, Failed> {
    let random = random_array::<12>(&SystemEnvironment)
        .map_err(|error| Trouble::Other(error.full_text()))?;
    let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let probe = Probe { client, prefix: format!("{base}tmp/probe-{random}-") };
    let found = probe.all(locks).await;
    let cleaned = probe.clean().await;
    let found = found?;
    cleaned?;
    probe.is_gone().await?;
    Ok(found)
}

struct Probe<'a> {
    client: &'a S3Client,
    prefix: String,
}

impl Probe<'_> {
    async fn all(&self, locks: bool) -> Result<Findings, Failed> {
        for round in 0..ROUNDS {
            self.is_seen(round).await?;
        }
        let refuses_taken_names = self.refuses_taken_names().await?;
        let checks_checksums = self.checks_checksums().await?;
        let tells_checksums = self.tells_checksums().await?;
        self.reads_ranges().await?;
        let suffix_ranges = self.reads_ends().await?;
        if locks {
            self.locks().await?;
        }
        Ok(Findings { refuses_taken_names, checks_checksums, tells_checksums, suffix_ranges })
    }

    fn key(&self, what: impl std::fmt::Display) -> String {
        format!("{}{what}", self.prefix)
    }

    async fn put(&self, key: &str, data: &[u8], mode: PutMode) -> Result<(), Failed> {
        let payload = PutPayload::from(data.to_vec());
        let put = self.client.persist(async |_| {
            let options = PutOptions { mode: mode.clone(), ..PutOptions::default() };
            self.client.plain.put_opts(&path(key)?, payload.clone(), options).await?;
            Ok(())
        });
        put.await
    }

    async fn keys(&self, page_keys: usize) -> Result<Vec<String>, Failed> {
        let mut keys = Vec::new();
        pages(self.client, &self.prefix, page_keys, |items| {
            keys.extend(items.into_iter().map(|item| item.key));
            true
        })
        .await?;
        Ok(keys)
    }

    /// A new object can be read and is listed, in pages of two.
    async fn is_seen(&self, round: usize) -> Result<(), Failed> {
        let key = self.key(round);
        let data = sample(round);
        self.put(&key, &data, PutMode::Overwrite).await?;
        let found = self.client.persist(async |_| {
            let read = self.client.plain.get(&path(&key)?).await.map_err(Trouble::from);
            match read {
                Ok(result) => Ok(Some(result.bytes().await?)),
                Err(trouble) if trouble.is_absent() => Ok(None),
                Err(trouble) => Err(trouble),
            }
        });
        match found.await? {
            None => return Err(unseen("a completed put is not seen by the next get")),
            Some(found) if found != data => {
                return Err(unseen("a get does not give the bytes that were put"));
            }
            Some(_) => {}
        }
        let expected: Vec<String> = (0..=round).map(|round| self.key(round)).collect();
        match self.keys(2).await? == expected {
            true => Ok(()),
            false => Err(unseen("a completed put is not seen by the next list")),
        }
    }

    async fn refuses_taken_names(&self) -> Result<bool, Failed> {
        // The same bytes: it does no harm if they are put again.
        match self.put(&self.key(0), &sample(0), PutMode::Create).await {
            Ok(()) => Ok(false),
            Err(failed) if failed.trouble.is_taken() => Ok(true),
            Err(failed) if is_unknown(&failed.trouble) => Ok(false),
            Err(failed) => Err(failed),
        }
    }

    async fn checks_checksums(&self) -> Result<bool, Failed> {
        let key = self.key("sum");
        let mut headers = HeaderMap::new();
        let wrong = HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        headers.insert("x-amz-checksum-sha256", wrong);
        let store = self.client.without_checksum(headers)?;
        let put = store.put(&path(&key)?, PutPayload::from(sample(9))).await;
        match put.map_err(Trouble::from) {
            Ok(_) => Ok(false),
            Err(trouble) => match trouble.status() {
                Some(400 | 412 | 422) => Ok(true),
                _ if trouble.may_pass() => Ok(false),
                _ => Err(trouble.into()),
            },
        }
    }

    async fn tells_checksums(&self) -> Result<bool, Failed> {
        let key = self.key(0);
        let asked = self.client.persist(async |_| {
            let result = self.client.reading.get(&path(&key)?).await?;
            Ok(result.extensions.get::<super::ToldChecksum>().is_some())
        });
        asked.await
    }

    async fn range(&self, range: GetRange) -> Result<(Vec<u8>, u64), Failed> {
        let key = self.key(0);
        let asked = self.client.persist(async |_| {
            let options = GetOptions { range: Some(range.clone()), ..GetOptions::default() };
            let result = self.client.plain.get_opts(&path(&key)?, options).await?;
            let size = result.meta.size;
            Ok((result.bytes().await?.to_vec(), size))
        });
        asked.await
    }

    async fn reads_ranges(&self) -> Result<(), Failed> {
        let expected = (sample(0)[100..200].to_vec(), PROBE_BYTES as u64);
        match self.range(GetRange::Bounded(100..200)).await? == expected {
            true => Ok(()),
            false => Err(unseen("a part of an object is not what was put")),
        }
    }

    async fn reads_ends(&self) -> Result<bool, Failed> {
        let expected = (sample(0)[PROBE_BYTES - 64..].to_vec(), PROBE_BYTES as u64);
        match self.range(GetRange::Suffix(64)).await {
            Ok(found) => Ok(found == expected),
            Err(failed) if failed.trouble.is_doubtful() => Ok(false),
            Err(failed) if failed.trouble.is_out_of_range() => Ok(false),
            Err(failed) if is_unknown(&failed.trouble) => Ok(false),
            Err(failed) => Err(failed),
        }
    }

    /// Locks can be set at all: the bucket has to be made for it.
    async fn locks(&self) -> Result<(), Failed> {
        let asked = self.client.persist(async |_| {
            self.client.own(http::Method::GET, "", &[("object-lock", "")], "").await
        });
        match asked.await {
            Ok(text) if text.contains("Enabled") => Ok(()),
            Ok(_) => Err(no_lock()),
            Err(failed) if matches!(failed.trouble.status(), Some(400 | 404 | 501)) => {
                Err(no_lock())
            }
            // Who may lock need not be allowed to look.
            Err(failed) if failed.trouble.status() == Some(403) => Ok(()),
            Err(failed) => Err(failed),
        }
    }

    async fn clean(&self) -> Result<(), Failed> {
        let names = (0..ROUNDS).map(|round| self.key(round)).chain([self.key("sum")]);
        let mut outcome = Ok(());
        for key in names {
            let deleted = self.client.persist(async |_| {
                match self.client.plain.delete(&path(&key)?).await.map_err(Trouble::from) {
                    Err(trouble) if !trouble.is_absent() => Err(trouble),
                    _ => Ok(()),
                }
            });
            outcome = outcome.and(deleted.await);
        }
        outcome
    }

    async fn is_gone(&self) -> Result<(), Failed> {
        let key = self.key(0);
        let asked = self.client.persist(async |_| head(&self.client.plain, &key).await);
        if asked.await?.is_some() {
            return Err(unseen("a completed delete is not seen by the next get"));
        }
        match self.keys(1000).await?.is_empty() {
            true => Ok(()),
            false => Err(unseen("a completed delete is not seen by the next list")),
        }
    }
}

/// The server does not know what was asked for.
fn is_unknown(trouble: &Trouble) -> bool {
    matches!(trouble.status(), Some(400 | 405 | 501))
}

fn no_lock() -> Failed {
    Trouble::Other("the bucket was not made for object lock".into()).into()
}

fn unseen(text: &str) -> Failed {
    let text = format!("{text}; a repository needs a server where it is");
    Trouble::line(LineFault::Nonsense, text).into()
}

/// Bytes of which no part is like another.
fn sample(round: usize) -> Vec<u8> {
    (0..PROBE_BYTES).map(|at| (at * 7 + at / 256 * 13 + round * 31) as u8).collect()
}

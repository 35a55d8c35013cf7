//! Opening storages of S3: options, and what is remembered of each server.
//!
//! Invariant: a server that was not looked at within a week is looked at before it is used, unless
//! the keys are for reading alone.

use super::context::Context;
use super::profiles::{Profile, Variables};
use super::remote::FromRemote;
use crate::environment::{Environment, SystemEnvironment};
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::storage::Storage;
use crate::storage::place::Bucket;
use crate::storage::s3::{Findings, LockMode, ObjectLock, S3Options, S3Storage};
use serde_json::{Value, json};
use std::error::Error as _;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;

/// For so long a look at a server counts, in nanoseconds: a week.
const REMEMBERED_NS: i64 = 7 * 24 * 3600 * 1_000_000_000;

/// Options of S3 alone.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Options for s3://")]
pub struct S3Arguments {
    /// URL of the server; AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the profile's by default
    #[arg(long, global = true, value_name = "URL")]
    endpoint: Option<String>,
    /// Region; AWS_REGION, AWS_DEFAULT_REGION, the profile's, or us-east-1 by default
    #[arg(long, global = true, value_name = "REGION")]
    region: Option<String>,
    /// Storage class of new packs, such as STANDARD_IA
    #[arg(long, global = true, value_name = "CLASS")]
    storage_class: Option<String>,
    /// Lock packs, points, keys and config for so many days; `check` renews it
    #[arg(long, global = true, value_name = "DAYS")]
    object_lock_days: Option<u32>,
    /// Who can take a lock off: who may bypass it, or nobody
    #[arg(long, global = true, value_name = "MODE", default_value = "governance")]
    object_lock_mode: Mode,
}

/// Modes of object lock.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Mode {
    Governance,
    Compliance,
}

/// What names the server and the keys of one bucket.
struct Named<'a> {
    endpoint: Option<&'a String>,
    region: Option<&'a String>,
    profile: Option<&'a str>,
    variables: Variables,
}

impl<'a> Named<'a> {
    fn by(chosen: &'a S3Arguments) -> Named<'a> {
        let (endpoint, region) = (chosen.endpoint.as_ref(), chosen.region.as_ref());
        Named { endpoint, region, profile: None, variables: Variables::Plain }
    }

    /// As for the source of a copy: with a profile or keys of its own nothing else counts for it;
    /// else all that it has no own name for is that of the target.
    fn by_source(from: &'a FromRemote, chosen: &'a S3Arguments) -> Result<Named<'a>> {
        let own = Variables::Source;
        let mut has_keys = from.profile().is_some();
        for name in ["AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
            has_keys |= own.text(name)?.is_some();
        }
        if has_keys {
            let (endpoint, region, profile) = (from.endpoint(), from.region(), from.profile());
            return Ok(Named { endpoint, region, profile, variables: own });
        }
        let named = Named::by(chosen);
        let endpoint = from.endpoint().or(named.endpoint);
        Ok(Named { endpoint, region: from.region().or(named.region), ..named })
    }
}

/// How a bucket is reached: an option before any variable, and that before the profile.
fn options(bucket: &Bucket, named: &Named<'_>, context: &Context) -> Result<S3Options> {
    let remote = context.remote();
    let chosen = &remote.s3;
    let profile = Profile::read(named.profile, named.variables)?;
    let text = |name| named.variables.text(name);
    let endpoint = match named.endpoint {
        Some(endpoint) => Some(endpoint.clone()),
        None => text("AWS_ENDPOINT_URL_S3")?
            .or(text("AWS_ENDPOINT_URL")?)
            .or_else(|| profile.get("endpoint_url")),
    };
    let region = match named.region {
        Some(region) => Some(region.clone()),
        None => {
            text("AWS_REGION")?.or(text("AWS_DEFAULT_REGION")?).or_else(|| profile.get("region"))
        }
    };
    let credentials = profile.credentials(named.variables, endpoint.is_none())?;
    let mut options = S3Options::new(bucket.clone(), endpoint, credentials);
    if let Some(region) = region {
        options.region = region;
    }
    options.limits = remote.limits()?;
    options.connections = remote.connections()?.unwrap_or(S3Options::CONNECTIONS);
    options.storage_class = chosen.storage_class.clone();
    let mode = match chosen.object_lock_mode {
        Mode::Governance => LockMode::Governance,
        Mode::Compliance => LockMode::Compliance,
    };
    options.lock = chosen.object_lock_days.map(|days| ObjectLock::new(days, mode)).transpose()?;
    Ok(options)
}

/// Opens the storage of an existing repository.
///
/// # Errors
/// As [`S3Storage::open`] and [`S3Storage::probe`].
pub fn open(bucket: &Bucket, context: &Context) -> Result<Arc<dyn Storage>> {
    let named = Named::by(&context.remote().s3);
    open_with(options(bucket, &named, context)?, context)
}

/// As [`open`], for the source of a copy.
///
/// # Errors
/// As [`open`].
pub fn open_source(
    bucket: &Bucket,
    from: &FromRemote,
    context: &Context,
) -> Result<Arc<dyn Storage>> {
    let named = Named::by_source(from, &context.remote().s3)?;
    let mut options = options(bucket, &named, context)?;
    // Nothing is put there.
    (options.lock, options.storage_class) = (None, None);
    open_with(options, context)
}

fn open_with(options: S3Options, context: &Context) -> Result<Arc<dyn Storage>> {
    let memory = Memory::of(&options, context);
    let storage = S3Storage::open(options)?;
    let found = match memory.recall() {
        Some(found) => {
            storage.know(found);
            Some(found)
        }
        None => look(&storage, &memory)?,
    };
    if context.verbose() {
        let found = found.map_or("with keys that may not put".into(), |found| found.to_string());
        context.monitor().note(&format!("{}: {found}", storage.location()));
    }
    Ok(Arc::new(storage))
}

/// Opens the storage for a new repository, and says what was found.
///
/// # Errors
/// As [`S3Storage::create`] and [`S3Storage::probe`].
pub fn create(bucket: &Bucket, context: &Context) -> Result<Arc<dyn Storage>> {
    let options = options(bucket, &Named::by(&context.remote().s3), context)?;
    let memory = Memory::of(&options, context);
    let storage = S3Storage::create(options)?;
    let found = storage.probe()?;
    memory.keep(found);
    context.monitor().note(&format!("{}: {found}", storage.location()));
    Ok(Arc::new(storage))
}

/// Looks whether [`create`] would refuse.
///
/// # Errors
/// As [`S3Storage::create`].
pub fn may_create(bucket: &Bucket, context: &Context) -> Result<()> {
    let named = Named::by(&context.remote().s3);
    S3Storage::create(options(bucket, &named, context)?).map(drop)
}

/// Finds out what the server can do; nothing where the keys may not put.
fn look(storage: &S3Storage, memory: &Memory) -> Result<Option<Findings>> {
    match storage.probe() {
        Ok(found) => {
            memory.keep(found);
            Ok(Some(found))
        }
        Err(error) if is_refused(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_refused(error: &Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::PermissionDenied)
}

/// The file in the cache that says what was found; none where there is no cache.
struct Memory(Option<PathBuf>);

impl Memory {
    fn of(options: &S3Options, context: &Context) -> Memory {
        let endpoint = options.endpoint.as_deref().unwrap_or_default();
        let what = format!("{endpoint}\n{}\n{}", options.bucket, options.lock.is_some());
        let leaf = format!("{}.json", blake3::hash(what.as_bytes()).to_hex());
        Memory(context.cache().ok().map(|cache| cache.join("s3").join(leaf)))
    }

    fn recall(&self) -> Option<Findings> {
        let text = std::fs::read_to_string(self.0.as_ref()?).ok()?;
        let value: Value = serde_json::from_str(&text).ok()?;
        let age = SystemEnvironment.now_unix_ns().checked_sub(value["found_unix_ns"].as_i64()?)?;
        let flag = |name: &str| value[name].as_bool();
        (0..REMEMBERED_NS).contains(&age).then_some(())?;
        Some(Findings {
            refuses_taken_names: flag("refuses_taken_names")?,
            checks_checksums: flag("checks_checksums")?,
            tells_checksums: flag("tells_checksums")?,
            suffix_ranges: flag("suffix_ranges")?,
        })
    }

    /// Without a cache the next run looks again.
    fn keep(&self, found: Findings) {
        let Some(path) = &self.0 else { return };
        let value = json!({
            "found_unix_ns": SystemEnvironment.now_unix_ns(),
            "refuses_taken_names": found.refuses_taken_names,
            "checks_checksums": found.checks_checksums,
            "tells_checksums": found.tells_checksums,
            "suffix_ranges": found.suffix_ranges,
        });
        let write = || {
            let folder = path.parent().unwrap_or(path);
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(value.to_string().as_bytes())?;
            file.persist(path).map_err(|error| error.error)
        };
        let _ = write();
    }
}

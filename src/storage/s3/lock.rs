//! Retention: until when a version of an object cannot be deleted.
//!
//! Invariant owned here: a lock is only ever prolonged.

use super::DAY_NS;
use super::client::{S3Client, now_unix_ns, path};
use super::line::ToldLock;
use super::options::ObjectLock;
use super::trouble::Trouble;
use http::{HeaderMap, HeaderValue, Method};
use object_store::{GetOptions, ObjectStore};

/// The headers of a put of an object that is locked from its beginning.
pub(super) fn headers(lock: ObjectLock) -> Result<HeaderMap, Trouble> {
    let until = time(lock.until(now_unix_ns()))?;
    let bad = |_| Trouble::Other("cannot write the end of the lock".into());
    let mut headers = HeaderMap::new();
    headers.insert("x-amz-object-lock-mode", HeaderValue::from_static(lock.mode().name()));
    let until = HeaderValue::from_str(&until).map_err(bad)?;
    headers.insert("x-amz-object-lock-retain-until-date", until);
    // Some servers take no lock without it, although the checksum is there.
    headers.insert("x-amz-sdk-checksum-algorithm", HeaderValue::from_static("SHA256"));
    Ok(headers)
}

/// Prolongs the lock of an object, unless it was done within the last day.
pub(super) async fn renew(client: &S3Client, key: &str, lock: ObjectLock) -> Result<bool, Trouble> {
    let until = lock.until(now_unix_ns());
    if known(client, key).await?.is_some_and(|known| known > until - DAY_NS) {
        return Ok(false);
    }
    let body = format!(
        "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>{}</Mode>\
         <RetainUntilDate>{}</RetainUntilDate></Retention>",
        lock.mode().name(),
        time(until)?
    );
    client.own(Method::PUT, key, &[("retention", "")], &body).await?;
    Ok(true)
}

/// Until when an object is locked, nanoseconds since 1970.
async fn known(client: &S3Client, key: &str) -> Result<Option<i64>, Trouble> {
    let options = GetOptions { head: true, ..GetOptions::default() };
    let result = client.plain.get_opts(&path(key)?, options).await?;
    // What cannot be read is put anew.
    let told = result.extensions.get::<ToldLock>();
    let until = told.and_then(|told| told.0.trim().parse::<jiff::Timestamp>().ok());
    Ok(until.and_then(|until| i64::try_from(until.as_nanosecond()).ok()))
}

/// As S3 writes it, to the second.
fn time(unix_ns: i64) -> Result<String, Trouble> {
    jiff::Timestamp::from_second(unix_ns.div_euclid(1_000_000_000))
        .map(|time| time.to_string())
        .map_err(|_| Trouble::Other("cannot lock so far into the future".into()))
}

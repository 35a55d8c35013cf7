//! Clock and randomness, injected so that tests and vectors can be repeated exactly.

use crate::error::{Error, ErrorKind, Result};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where time and random bytes come from.
pub trait Environment: Send + Sync {
    /// Nanoseconds since 1970-01-01T00:00:00Z; negative before it.
    fn now_unix_ns(&self) -> i64;

    /// Fills `buffer` with unpredictable bytes.
    ///
    /// # Errors
    /// Fails if the system has no randomness to give; nothing may be sealed then.
    fn random(&self, buffer: &mut [u8]) -> Result<()>;
}

/// The clock and the random generator of the operating system.
pub struct SystemEnvironment;

impl Environment for SystemEnvironment {
    fn now_unix_ns(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_nanos()).unwrap_or(i64::MAX),
        }
    }

    fn random(&self, buffer: &mut [u8]) -> Result<()> {
        getrandom::fill(buffer).map_err(|cause| {
            Error::new(ErrorKind::Failed, format!("cannot get random bytes: {cause}"))
        })
    }
}

/// Fills a fixed-size array with random bytes.
///
/// # Errors
/// As [`Environment::random`].
pub fn random_array<const N: usize>(environment: &dyn Environment) -> Result<[u8; N]> {
    let mut bytes = [0_u8; N];
    environment.random(&mut bytes)?;
    Ok(bytes)
}

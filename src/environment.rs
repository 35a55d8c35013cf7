//! Clocks, waiting and randomness, injected so that tests and vectors can be repeated exactly.
//!
//! Invariant: whoever waits for time to pass waits here. So a test decides when an hour is over.

use crate::error::{Error, ErrorKind, Result};
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest time between two looks at whether a pause is to end early.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// What the monotonic clock of this process counts from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The time since the machine was booted, and when that was read. Without it a run counts from its
/// own start, which makes what it remembers of leases younger than it is, never older.
static BOOTED: LazyLock<(Duration, Instant)> = LazyLock::new(|| {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split(' ').next().and_then(|text| text.parse::<f64>().ok());
    let uptime = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    (uptime.unwrap_or_default(), Instant::now())
});

/// Where time and random bytes come from, and how to wait.
pub trait Environment: Send + Sync {
    /// Nanoseconds since 1970-01-01T00:00:00Z; negative before it.
    fn now_unix_ns(&self) -> i64;

    /// Fills `buffer` with unpredictable bytes.
    ///
    /// # Errors
    /// Fails if the system has no randomness to give; nothing may be sealed then.
    fn random(&self, buffer: &mut [u8]) -> Result<()>;

    /// Time since some fixed moment: of this boot where [`Environment::boot_id`] gives one, else of
    /// this process. It never goes back, whatever is done to the clock of the day.
    fn monotonic(&self) -> Duration {
        START.elapsed()
    }

    /// Tells one boot of the machine from another, if that is possible.
    fn boot_id(&self) -> Option<String> {
        None
    }

    /// Waits until `bell` is rung, at most so long. True if it was.
    fn wait(&self, bell: &Bell, longest: Duration) -> bool {
        bell.wait(longest)
    }

    /// Waits so long, or until `look` fails, which is asked now and then.
    ///
    /// # Errors
    /// What `look` says.
    fn pause(&self, duration: Duration, look: &dyn Fn() -> Result<()>) -> Result<()> {
        let until = Instant::now() + duration;
        while Instant::now() < until {
            look()?;
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }
}

/// Ends a wait of another thread. Once it is rung it stays so. Clones are one bell.
#[derive(Clone, Default)]
pub struct Bell {
    shared: Arc<(Mutex<bool>, Condvar)>,
}

impl Bell {
    /// Rings it.
    pub fn ring(&self) {
        *self.shared.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.1.notify_all();
    }

    /// True once it was rung.
    pub fn is_rung(&self) -> bool {
        *self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is rung, at most so long. True if it was.
    fn wait(&self, longest: Duration) -> bool {
        let (is_rung, changed) = &*self.shared;
        let is_rung = is_rung.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(is_rung, longest, |is_rung| !*is_rung);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The clock and the random generator of the operating system.
pub struct SystemEnvironment;

impl Environment for SystemEnvironment {
    fn monotonic(&self) -> Duration {
        let (uptime, start) = &*BOOTED;
        *uptime + start.elapsed()
    }

    fn boot_id(&self) -> Option<String> {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(id.trim().to_string()).filter(|id| !id.is_empty())
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_bell_ends_a_wait_and_stays_rung() {
        let bell = Bell::default();
        assert!(!SystemEnvironment.wait(&bell, Duration::from_millis(1)));
        let other = bell.clone();
        let thread =
            std::thread::spawn(move || SystemEnvironment.wait(&other, Duration::from_secs(600)));
        bell.ring();
        assert!(thread.join().unwrap());
        assert!(bell.is_rung() && SystemEnvironment.wait(&bell, Duration::ZERO));
    }

    #[test]
    fn a_pause_takes_its_time_or_ends_with_what_the_look_says() {
        let began = SystemEnvironment.monotonic();
        SystemEnvironment.pause(Duration::from_millis(60), &|| Ok(())).unwrap();
        assert!(SystemEnvironment.monotonic() - began >= Duration::from_millis(60));
        let looks = AtomicU32::new(0);
        let look = || match looks.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(()),
            _ => Err(Error::new(ErrorKind::Cancelled, "interrupted")),
        };
        let ended = SystemEnvironment.pause(Duration::from_secs(600), &look);
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Cancelled);
    }
}

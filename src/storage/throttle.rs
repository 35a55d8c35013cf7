//! How fast bytes may go over a line: one budget for each direction, which all connections of a
//! storage share.
//!
//! Invariant: over any time the bytes that were let through are at most rate times time plus one
//! burst of a tenth of a second.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Budgets of both directions; without one a direction is not limited.
#[derive(Clone, Default)]
pub struct Limits {
    /// What this host sends.
    pub upload: Option<Arc<Throttle>>,
    /// What it receives.
    pub download: Option<Arc<Throttle>>,
}

impl Limits {
    /// Limits in bytes a second; `None` for no limit.
    pub fn new(upload: Option<u64>, download: Option<u64>) -> Limits {
        let throttle = |rate: Option<u64>| rate.map(|rate| Arc::new(Throttle::new(rate)));
        Limits { upload: throttle(upload), download: throttle(download) }
    }
}

/// A budget of bytes that grows with time.
pub struct Throttle {
    /// Bytes a second.
    rate: u64,
    /// When all bytes that were let through so far are paid for.
    paid: Mutex<Instant>,
}

impl Throttle {
    /// A budget of so many bytes a second, at least one.
    pub fn new(bytes_per_second: u64) -> Throttle {
        Throttle { rate: bytes_per_second.max(1), paid: Mutex::new(Instant::now()) }
    }

    /// Bytes a second.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// The largest piece that should be asked for at once, so that the line is used evenly: a
    /// twentieth of a second, from 1 KiB to 64 KiB.
    pub fn piece_bytes(&self) -> usize {
        (self.rate / 20).clamp(1 << 10, 64 << 10) as usize
    }

    /// How long to wait before so many more bytes are sent, or after they were received. They are
    /// counted: who asks has to send them.
    pub fn take(&self, bytes: usize) -> Duration {
        self.take_at(bytes, Instant::now())
    }

    /// As [`Throttle::take`], and waits.
    pub fn pace(&self, bytes: usize) {
        std::thread::sleep(self.take(bytes));
    }

    fn take_at(&self, bytes: usize, now: Instant) -> Duration {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        // What was not used for long is not saved up, but for a tenth of a second.
        let earliest = now.checked_sub(Duration::from_millis(100)).unwrap_or(now);
        let from = (*paid).max(earliest);
        let cost = bytes as u128 * 1_000_000_000 / u128::from(self.rate);
        *paid = from + Duration::from_nanos(u64::try_from(cost).unwrap_or(u64::MAX));
        paid.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_pass_at_the_rate_and_idle_time_is_not_saved_up() {
        let throttle = Throttle::new(1_000_000);
        let start = Instant::now() + Duration::from_secs(1000);
        let mut now = start;
        let mut bytes = 0;
        while now < start + Duration::from_secs(10) {
            bytes += 50_000;
            now += throttle.take_at(50_000, now);
        }
        // Ten seconds of it, the burst, and the piece that went over the end.
        assert!((10_000_000..=10_150_000).contains(&bytes), "{bytes}");
        // An hour later there is one burst to give and no more.
        let later = now + Duration::from_secs(3600);
        assert_eq!(throttle.take_at(100_000, later), Duration::ZERO);
        assert_eq!(throttle.take_at(100_000, later), Duration::from_millis(100));
    }
}

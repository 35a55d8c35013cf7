//! How hard segments are compressed, and what that follows while the storage is slower or faster
//! than the processor.

use diskvault_format::segment::LEVEL_DEFAULT;

/// zstd level of segments unless the user wants another: a higher one gains 2 % for half the speed.
pub const ZSTD_LEVEL: i32 = LEVEL_DEFAULT;
/// The highest level that [`Compression::Auto`] takes: level 7 needs 1.5 times the time of 6 for
/// 0.7 % less.
const AUTO_LEVEL_MAX: i32 = 6;
/// The levels a user may choose: those above need hundreds of MiB for each thread.
pub const LEVELS: std::ops::RangeInclusive<i32> = 1..=19;

/// How hard segments are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Off,
    /// At this zstd level, one of [`LEVELS`].
    Level(i32),
    /// From the default level up to 6, as far as the storage leaves time for it.
    Auto,
}

impl Default for Compression {
    fn default() -> Compression {
        Compression::Level(ZSTD_LEVEL)
    }
}

/// The level that `Auto` has come to: up when segments wait for the storage, down when they wait
/// for a worker.
pub(super) fn next_auto_level(level: i32, waits_for_storage: bool, waits_for_worker: bool) -> i32 {
    match (waits_for_storage, waits_for_worker) {
        (true, _) => (level + 1).min(AUTO_LEVEL_MAX),
        (false, true) => (level - 1).max(ZSTD_LEVEL),
        (false, false) => level,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_follows_what_is_waited_for() {
        let (mut level, mut seen) = (ZSTD_LEVEL, Vec::new());
        for (storage, worker) in [
            (false, false),
            (true, false),
            (true, true),
            (true, true),
            (true, false),
            (false, false),
            (false, true),
            (false, true),
            (false, true),
            (false, true),
        ] {
            level = next_auto_level(level, storage, worker);
            seen.push(level);
        }
        assert_eq!(seen, [3, 4, 5, 6, 6, 6, 5, 4, 3, 3]);
    }
}

//! When to try again after a store has failed.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The pause after a failure; twice as long after each further one, up to [`LONGEST`]. Short enough that a disk which has room
/// again is noticed, long enough that a full one costs nothing.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(16);

/// A time in which nothing is stored, so that not each chunk fails by itself.
#[derive(Debug)]
pub(super) struct Pause {
    epoch: Instant,
    /// Milliseconds since `epoch`.
    until: AtomicU64,
    failures: AtomicU32,
}

impl Default for Pause {
    fn default() -> Self {
        Self { epoch: Instant::now(), until: AtomicU64::new(0), failures: AtomicU32::new(0) }
    }
}

impl Pause {
    /// Whether storing may be tried.
    pub(super) fn is_over(&self) -> bool {
        // No clock is read as long as nothing has failed.
        self.until.load(Ordering::Relaxed) == 0 || self.until.load(Ordering::Relaxed) <= self.now()
    }

    /// Storing failed. True for the first time since it last succeeded.
    pub(super) fn begin(&self) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        let pause = FIRST.saturating_mul(1 << failures.min(16)).min(LONGEST);
        let pause = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        self.until.store(self.now().saturating_add(pause).max(1), Ordering::Relaxed);
        failures == 0
    }

    /// Storing succeeded. True if it had failed before.
    pub(super) fn end(&self) -> bool {
        if self.failures.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.until.store(0, Ordering::Relaxed);
        self.failures.swap(0, Ordering::Relaxed) != 0
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_once_and_ends_once() {
        let pause = Pause::default();
        assert!(pause.is_over() && !pause.end());
        assert!(pause.begin() && !pause.is_over());
        assert!(!pause.begin() && !pause.is_over());
        assert!(pause.end() && pause.is_over() && !pause.end());
        assert!((0..100).all(|_| !pause.begin() || pause.failures.load(Ordering::Relaxed) == 1));
        let left = pause.until.load(Ordering::Relaxed) - pause.now();
        assert!(u128::from(left) <= LONGEST.as_millis());
    }
}

//! How slowly the bytes of an answer may come. A source that sends one now and then is as good as none.
//!
//! Only time spent waiting for the source counts, so that a node which is slow to take bytes blames nobody.

use std::time::Duration;

/// Least bytes a second for which somebody waits. Less takes four seconds for a chunk of 64 KiB; programs have given up by the time
/// that they have read a hundred.
pub(crate) const LEAST_WANTED: u64 = 16 << 10;

/// Least bytes a second for which nobody waits: half of that, as several such answers share the line with those that somebody waits for.
pub(super) const LEAST_AHEAD: u64 = 8 << 10;

/// After so long with less than [`LEAST_WANTED`], an answer is taken over by another source that is healthy: long enough for some
/// repeated packets.
pub(super) const HANDOVER_WINDOW: Duration = Duration::from_secs(3);

/// After so long with less than [`LEAST_AHEAD`], an answer for which nobody waits is given up, as is one that stalls.
pub(crate) const AHEAD_WINDOW: Duration = Duration::from_secs(10);

/// The bytes of the time since the last look.
#[derive(Debug)]
pub(super) struct Window {
    length: Duration,
    least: u64,
    waited: Duration,
    bytes: u64,
}

impl Window {
    pub(super) fn new(length: Duration, least: u64) -> Self {
        Self { length, least, waited: Duration::ZERO, bytes: 0 }
    }

    /// So many bytes came, for which so long was waited.
    pub(super) fn count(&mut self, waited: Duration, bytes: usize) {
        self.waited += waited;
        self.bytes += bytes as u64;
    }

    /// Whether a window has passed with too few bytes. Then, or when there were enough, the next one begins.
    pub(super) fn is_slow(&mut self) -> bool {
        if self.waited < self.length {
            return false;
        }
        let slow = self.bytes < bytes_in(self.waited, self.least);
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        slow
    }
}

/// All bytes of a request for which somebody waits, whichever sources they are from: [`LEAST_WANTED`] on average, after a time of grace.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    waited: Duration,
    bytes: u64,
}

impl Budget {
    /// So many bytes came, for which so long was waited.
    pub(crate) fn count(&mut self, waited: Duration, bytes: usize) {
        self.waited += waited;
        self.bytes += bytes as u64;
    }

    /// Whether there were too few.
    pub(crate) fn is_spent(&self, grace: Duration) -> bool {
        self.waited > grace && self.bytes < bytes_in(self.waited - grace, LEAST_WANTED)
    }
}

fn bytes_in(time: Duration, rate: u64) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).saturating_mul(rate) / 1000
}

/// An answer comes too slowly.
#[derive(Debug, thiserror::Error)]
#[error("its bytes come more slowly than {} KiB a second", .0 >> 10)]
pub(crate) struct TooSlow(pub(crate) u64);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn windows_forget_what_was_before() {
        let mut window = Window::new(3 * SECOND, 1000);
        for bytes in [3_000_000, 0, 0, 0] {
            window.count(SECOND, bytes);
            assert!(!window.is_slow());
        }
        window.count(2 * SECOND, 2999);
        assert!(window.is_slow(), "too few in three seconds");
        window.count(3 * SECOND, 3000);
        assert!(!window.is_slow());
    }

    #[test]
    fn a_budget_lasts_for_its_grace_and_for_what_came() {
        let mut drips = Budget::default();
        drips.count(60 * SECOND, 60);
        assert!(!drips.is_spent(60 * SECOND));
        drips.count(SECOND, 1);
        assert!(drips.is_spent(60 * SECOND));
        let mut flows = Budget::default();
        flows.count(1000 * SECOND, 940 * (16 << 10));
        assert!(!flows.is_spent(60 * SECOND));
    }
}

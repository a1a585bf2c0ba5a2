//! A slow network in one number or two: a fixed time before each reply, and a bandwidth that all replies share.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

/// How far the link may run behind its own clock and still catch up. Timers wake a millisecond or so late; without
/// this credit each late wake-up would be lost bandwidth. At 200 Mbit/s it is a burst of 250 kB.
const CREDIT: Duration = Duration::from_millis(10);

/// One link, shared by all connections in order of arrival.
pub(crate) struct Link {
    latency: Duration,
    /// Bytes per second.
    bandwidth: u64,
    free_at: Mutex<Instant>,
}

impl Link {
    /// `latency` passes before each reply; `bandwidth` is in bytes per second.
    pub(crate) fn new(latency: Duration, bandwidth: u64) -> Self {
        Self { latency, bandwidth: bandwidth.max(1), free_at: Mutex::new(Instant::now()) }
    }

    /// Waits for as long as a request and the head of its reply are under way.
    pub(crate) async fn round_trip(&self) {
        sleep(self.latency).await;
    }

    /// Waits until `bytes` more have passed through the link.
    pub(crate) async fn pass(&self, bytes: usize) {
        let until = self.reserve(bytes, Instant::now());
        sleep_until(until).await;
    }

    fn reserve(&self, bytes: usize, now: Instant) -> Instant {
        let nanoseconds =
            u128::try_from(bytes).unwrap_or(u128::MAX).saturating_mul(1_000_000_000) / u128::from(self.bandwidth);
        let duration = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        let mut free_at = self.free_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let start = now.checked_sub(CREDIT).map_or(*free_at, |earliest| earliest.max(*free_at));
        *free_at = start + duration;
        *free_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_is_shared() {
        let link = Link::new(Duration::ZERO, 1_000_000);
        let now = Instant::now() + Duration::from_secs(1);
        let first = link.reserve(100_000, now);
        let second = link.reserve(100_000, now);
        assert_eq!(first, now - CREDIT + Duration::from_millis(100));
        assert_eq!(second - first, Duration::from_millis(100));
    }

    #[test]
    fn a_late_sender_catches_up_but_saves_nothing() {
        let link = Link::new(Duration::ZERO, 1_000_000);
        let now = Instant::now() + Duration::from_secs(1);
        let first = link.reserve(10_000, now);
        // Three milliseconds late: the next piece still ends where it would have ended.
        assert_eq!(link.reserve(10_000, first + Duration::from_millis(3)), first + Duration::from_millis(10));
        // A second late: only the credit is left.
        let late = first + Duration::from_secs(1);
        assert_eq!(link.reserve(10_000, late), late - CREDIT + Duration::from_millis(10));
    }
}

//! Pauses between attempts.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use crate::error::{Error, Result};

/// Pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause of our own choosing.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause a server may ask for; beyond it the error is reported instead.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Counts the attempts at one thing.
pub(crate) struct Backoff {
    attempts: u32,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(attempts: u32) -> Self {
        Self { attempts, failures: 0 }
    }

    /// Starts over, after an attempt that got somewhere.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Waits for the next attempt, or hands the error back when there is none: it is not transient, the attempts are
    /// used up, or the server wants to be left alone for long.
    pub(crate) async fn wait(&mut self, error: Error) -> Result<()> {
        let Some(pause) = self.pause(&error) else { return Err(error) };
        tracing::debug!(%error, ?pause, failures = self.failures, "trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// How long to wait before the next attempt; `None` when there is none.
    pub(crate) fn pause(&mut self, error: &Error) -> Option<Duration> {
        self.failures += 1;
        if !error.is_transient() || self.failures >= self.attempts {
            return None;
        }
        match error.retry_after() {
            Some(asked) => (asked <= LONGEST_RETRY_AFTER).then(|| asked.max(FIRST_PAUSE)),
            None => Some(jittered(pause_after(self.failures))),
        }
    }
}

fn pause_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE)
}

/// Between half of `pause` and all of it, so that many clients do not return at one moment.
fn jittered(pause: Duration) -> Duration {
    // The standard library's only source of randomness.
    let random = RandomState::new().hash_one(0_u8) % 1024;
    pause / 2 + (pause / 2) * u32::try_from(random).unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let pauses: Vec<u128> = (1..8).map(|n| pause_after(n).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000]);
        for _ in 0..100 {
            let pause = jittered(LONGEST_PAUSE);
            assert!(pause >= LONGEST_PAUSE / 2 && pause < LONGEST_PAUSE);
        }
    }

    #[test]
    fn gives_up() {
        let busy = |retry_after| Error::Status {
            what: "x".into(),
            request: "GET u".into(),
            status: 429,
            detail: String::new(),
            retry_after,
        };
        let mut backoff = Backoff::new(3);
        assert_eq!(backoff.pause(&busy(Some(Duration::from_secs(7)))), Some(Duration::from_secs(7)));
        assert!(backoff.pause(&busy(None)).is_some_and(|p| p >= FIRST_PAUSE && p < 2 * FIRST_PAUSE));
        assert_eq!(backoff.pause(&busy(None)), None);
        assert_eq!(Backoff::new(3).pause(&busy(Some(Duration::from_secs(3600)))), None);
        assert_eq!(Backoff::new(3).pause(&Error::NotFound { what: "x".into() }), None);
    }
}

//! How slowly a body may come: a server that drips must not hold what waits for it for ever.

use std::time::Duration;

/// Least bytes a second of manifests, configs, tokens and layers, on average. A node that gets less than this starts no container
/// in a time that anybody waits for; a layer of 100 MB would take almost two hours.
pub(crate) const LEAST_RATE: u64 = 16 << 10;

/// How long small bodies may take whatever their rate: what a connection with some lost packets takes. Documents and tokens have a
/// few kilobytes, so that this is what ends a server that drips them.
pub(crate) const SMALL: Duration = Duration::from_secs(10);

/// What has come of a body, in which time. Only time that was spent waiting for the server counts.
#[derive(Debug)]
pub(crate) struct Pace {
    grace: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// A body that may come at [`LEAST_RATE`] after a time of grace.
    pub(crate) fn new(grace: Duration) -> Self {
        Self { grace, waited: Duration::ZERO, bytes: 0 }
    }

    /// So many bytes came, for which so long was waited.
    pub(crate) fn count(&mut self, waited: Duration, bytes: usize) {
        self.waited += waited;
        self.bytes += bytes as u64;
    }

    /// How much longer the next byte may take; zero when the body is too slow.
    pub(crate) fn left(&self) -> Duration {
        (self.grace + time_for(self.bytes)).saturating_sub(self.waited)
    }
}

/// How long so many bytes take at [`LEAST_RATE`].
pub(crate) fn time_for(bytes: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1000) / LEAST_RATE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drips_is_too_slow_and_what_flows_is_not() {
        let second = Duration::from_secs(1);
        let mut drips = Pace::new(SMALL);
        for _ in 0..10 {
            assert!(!drips.left().is_zero());
            drips.count(second, 1);
        }
        assert!(drips.left().is_zero());
        let mut flows = Pace::new(SMALL);
        for _ in 0..1000 {
            flows.count(second, 16 << 10);
            assert_eq!(flows.left(), SMALL);
        }
        // What came before a pause counts.
        flows.count(SMALL * 2, 32 << 10);
        assert!(flows.left().is_zero());
        assert_eq!(time_for(u64::MAX), Duration::from_millis(u64::MAX / LEAST_RATE), "no overflow");
    }
}

//! Single flight: a chunk that is on its way is waited for, not fetched again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

use crate::error::ReadError;

/// What became of a chunk on its way.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// It can be read, or is at hand to be decoded.
    Landed,
    /// It was fetched for nobody in particular, and that was given up. Who wants it fetches it himself.
    GivenUp,
    /// It cannot be had.
    Failed(Arc<ReadError>),
}

/// A chunk on its way into the cache. Any number of tasks wait for it; it lands once.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    outcome: OnceLock<Outcome>,
    landed: Notify,
    wanted: AtomicBool,
}

impl Flight {
    /// Somebody waits for the chunk.
    pub(crate) fn want(&self) {
        self.wanted.store(true, Ordering::Release);
    }

    /// Whether anybody has waited for it so far.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }

    /// Wakes all who wait. Only the first outcome counts.
    pub(crate) fn land(&self, outcome: Outcome) {
        if self.outcome.set(outcome).is_ok() {
            self.landed.notify_waiters();
        }
    }

    /// Waits for the outcome.
    pub(crate) async fn wait(&self) -> Outcome {
        let landed = self.landed.notified();
        let mut landed = std::pin::pin!(landed);
        // Registered before the look at the outcome, so that landing between the two is not missed.
        landed.as_mut().enable();
        if let Some(outcome) = self.outcome.get() {
            return outcome.clone();
        }
        landed.await;
        // `land` sets the outcome before it notifies.
        self.outcome.get().cloned().unwrap_or(Outcome::GivenUp)
    }
}

#[cfg(test)]
mod tests {
    use lazo_format::{ChunkIndex, Digest};

    use super::*;

    #[tokio::test]
    async fn all_waiters_get_the_first_outcome() {
        let flight = Arc::new(Flight::default());
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let flight = Arc::clone(&flight);
                tokio::spawn(async move { flight.wait().await })
            })
            .collect();
        tokio::task::yield_now().await;
        let error = ReadError::Stopped { digest: Digest::sha256([7; 32]), chunk: ChunkIndex(4) };
        flight.land(Outcome::Failed(Arc::new(error)));
        flight.land(Outcome::Landed);
        for waiter in waiters {
            let outcome = waiter.await.unwrap();
            assert!(matches!(outcome, Outcome::Failed(e) if e.chunk() == Some(ChunkIndex(4))));
        }
        assert!(matches!(flight.wait().await, Outcome::Failed(_)), "and so does one who comes late");
    }
}

//! Single flight: a chunk that is on its way is waited for, not fetched again.

use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

use crate::error::ReadError;

/// What became of a chunk.
pub(crate) type Outcome = std::result::Result<(), Arc<ReadError>>;

/// A chunk on its way into the cache. Any number of tasks wait for it; it lands once.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    outcome: OnceLock<Outcome>,
    landed: Notify,
}

impl Flight {
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
        self.outcome.get().cloned().unwrap_or(Ok(()))
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
        flight.land(Err(Arc::new(error)));
        flight.land(Ok(()));
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap().unwrap_err().chunk(), Some(ChunkIndex(4)));
        }
        assert!(flight.wait().await.is_err(), "and so does one who comes late");
    }
}

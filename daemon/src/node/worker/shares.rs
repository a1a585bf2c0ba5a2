//! Room that places share, so that no one place can take all of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// A number of permits, of which each place has a few at most. A place is a registry's host, or a file.
///
/// Who has to wait for a permit of its own place does not stand in the queue for the others', so that this queue is first come,
/// first served and never has more than a few of each place in it.
#[derive(Debug)]
pub(super) struct Shares {
    all: Arc<Semaphore>,
    each: usize,
    /// Of the places that have permits or wait for some.
    places: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// A permit. Given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Shares {
    pub(super) fn new(all: usize, each: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), each, places: Mutex::default() }
    }

    /// Waits for a permit. Who gives up waiting has taken none.
    ///
    /// # Errors
    /// Never, as the semaphores are not closed.
    pub(super) async fn take(&self, place: &str) -> Result<Share, AcquireError> {
        let own = self.place(place).acquire_owned().await?;
        let all = Arc::clone(&self.all).acquire_owned().await?;
        Ok(Share { _own: own, _all: all })
    }

    /// A permit, if there is one now.
    pub(super) fn try_take(&self, place: &str) -> Option<Share> {
        let own = self.place(place).try_acquire_owned().ok()?;
        let all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        Some(Share { _own: own, _all: all })
    }

    fn place(&self, place: &str) -> Arc<Semaphore> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|_, semaphore| semaphore.strong_count() > 0);
        if let Some(known) = places.get(place).and_then(Weak::upgrade) {
            return known;
        }
        let new = Arc::new(Semaphore::new(self.each));
        places.insert(place.to_owned(), Arc::downgrade(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn one_place_cannot_take_all() {
        let shares = Shares::new(5, 2);
        let held: Vec<_> = (0..2).map(|_| shares.try_take("evil").unwrap()).collect();
        assert!(shares.try_take("evil").is_none(), "it has what it may have");
        // Those that wait at their own place are in nobody's way.
        let mut waiting: Vec<_> = (0..100).map(|_| Box::pin(shares.take("evil"))).collect();
        assert!(waiting.iter_mut().all(|wait| wait.now_or_never().is_none()));
        let good: Vec<_> = (0..2).map(|_| shares.try_take("good").unwrap()).collect();
        let other = shares.try_take("other").unwrap();
        assert!(shares.try_take("last").is_none(), "there are no more at all");
        drop(other);
        assert!(shares.try_take("last").is_some());
        drop((held, good, waiting));
        let freed: Vec<_> = (0..2).filter_map(|_| shares.try_take("evil")).collect();
        assert_eq!(freed.len(), 2, "all was given back");
    }

    #[tokio::test]
    async fn places_take_turns_and_are_forgotten() {
        let shares = Shares::new(1, 1);
        let held = shares.try_take("evil").unwrap();
        let mut next = pin!(shares.take("evil"));
        assert!(next.as_mut().now_or_never().is_none());
        let mut good = pin!(shares.take("good"));
        assert!(good.as_mut().now_or_never().is_none());
        drop(held);
        let good = good.now_or_never().expect("it came before another of the same place").unwrap();
        assert!(next.as_mut().now_or_never().is_none());
        drop(good);
        drop(next.await.unwrap());
        drop(shares.try_take("other"));
        assert_eq!(shares.places.lock().unwrap().len(), 1, "only the last one asked for");
    }
}

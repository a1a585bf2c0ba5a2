//! Room for bytes on their way: what all images share, and a part of each image's own that nobody else can take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A semaphore counts in KiB, to stay within 32 bits.
const KIB: u64 = 1 << 10;

/// One image's room.
///
/// An image may take of the shared room as long as it is there. When others have taken all of it, and perhaps hold it as their
/// sources give nothing, the image goes on with its own part: a request at a time.
#[derive(Debug)]
pub(crate) struct Room {
    shared: Arc<Semaphore>,
    /// All of the shared room, KiB.
    most: u32,
    own: Arc<Semaphore>,
    /// All of the own room, KiB.
    floor: u32,
    /// What the image has of the shared room, KiB.
    held: Arc<AtomicU32>,
}

/// Room that was taken. Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Granted {
    _permit: OwnedSemaphorePermit,
    kib: u32,
    held: Option<Arc<AtomicU32>>,
}

impl Granted {
    /// A permit of another kind of room.
    pub(crate) fn of(permit: OwnedSemaphorePermit) -> Self {
        Self { _permit: permit, kib: 0, held: None }
    }

    /// Bytes for which there is room.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.kib) * KIB
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        if let Some(held) = &self.held {
            held.fetch_sub(self.kib, Ordering::AcqRel);
        }
    }
}

impl Room {
    /// A part of `shared`, which has `most` KiB, and `floor` KiB for this image alone.
    pub(crate) fn new(shared: Arc<Semaphore>, most: u32, floor: u32) -> Self {
        let own = Arc::new(Semaphore::new(floor as usize));
        Self { shared, most, own, floor, held: Arc::default() }
    }

    /// Waits for room for so many bytes. What is granted is either that, or the image's own part, which is smaller as a rule and stands
    /// for a single chunk of any size. `allowed`: bytes that the image may have of the shared room. `None` never, as the semaphores are
    /// not closed.
    pub(crate) async fn take(&self, bytes: u64, allowed: u64) -> Option<Granted> {
        let kib = self.clamp(bytes);
        if let Some(granted) = self.try_take(bytes, allowed) {
            return Some(granted);
        }
        let own = Arc::clone(&self.own).acquire_many_owned(self.floor);
        if !self.may_share(kib, allowed) {
            return own.await.ok().map(|permit| self.granted_own(permit));
        }
        tokio::select! {
            permit = Arc::clone(&self.shared).acquire_many_owned(kib) => permit.ok().map(|permit| self.granted(permit, kib)),
            permit = own => permit.ok().map(|permit| self.granted_own(permit)),
        }
    }

    /// The same, if there is room now.
    pub(crate) fn try_take(&self, bytes: u64, allowed: u64) -> Option<Granted> {
        let kib = self.clamp(bytes);
        if self.may_share(kib, allowed)
            && let Ok(permit) = Arc::clone(&self.shared).try_acquire_many_owned(kib)
        {
            return Some(self.granted(permit, kib));
        }
        Arc::clone(&self.own).try_acquire_many_owned(self.floor).ok().map(|permit| self.granted_own(permit))
    }

    /// What is larger than all of the room takes all of it.
    fn clamp(&self, bytes: u64) -> u32 {
        kib(bytes).clamp(1, self.most)
    }

    fn may_share(&self, kib: u32, allowed: u64) -> bool {
        u64::from(self.held.load(Ordering::Acquire).saturating_add(kib)) * KIB <= allowed
    }

    fn granted(&self, permit: OwnedSemaphorePermit, kib: u32) -> Granted {
        self.held.fetch_add(kib, Ordering::AcqRel);
        Granted { _permit: permit, kib, held: Some(Arc::clone(&self.held)) }
    }

    fn granted_own(&self, permit: OwnedSemaphorePermit) -> Granted {
        Granted { _permit: permit, kib: self.floor, held: None }
    }
}

pub(super) fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn rooms<const N: usize>() -> [Room; N] {
        let shared = Arc::new(Semaphore::new(8 << 10));
        [(); N].map(|()| Room::new(Arc::clone(&shared), 8 << 10, 1 << 10))
    }

    #[test]
    fn one_image_takes_all_that_is_shared_and_another_still_gets_its_own() {
        let [evil, good] = rooms();
        let stalled: Vec<_> = std::iter::from_fn(|| evil.try_take(4 * MIB, u64::MAX)).collect();
        assert_eq!(stalled.iter().map(Granted::bytes).collect::<Vec<_>>(), [4 * MIB, 4 * MIB, MIB]);
        let granted = good.try_take(4 * MIB, u64::MAX).unwrap();
        assert_eq!(granted.bytes(), MIB);
        assert!(good.try_take(1, u64::MAX).is_none(), "one at a time");
        let mut next = Box::pin(good.take(2 * MIB, u64::MAX));
        assert!(next.as_mut().now_or_never().is_none());
        drop(granted);
        assert_eq!(next.now_or_never().flatten().unwrap().bytes(), MIB);
        // When the shared room is free again, it is taken first.
        drop(stalled);
        assert_eq!(good.try_take(4 * MIB, u64::MAX).unwrap().bytes(), 4 * MIB);
        assert_eq!(evil.try_take(8 * MIB, u64::MAX).unwrap().bytes(), 8 * MIB, "all was given back");
    }

    #[test]
    fn a_slow_image_may_have_less_of_what_is_shared() {
        let [slow, fast] = rooms();
        let first = slow.try_take(MIB, 2 * MIB).unwrap();
        let _second = slow.try_take(MIB, 2 * MIB).unwrap();
        let own = slow.try_take(4 * MIB, 2 * MIB).unwrap();
        assert_eq!(own.bytes(), MIB, "its own");
        let mut next = Box::pin(slow.take(MIB, 2 * MIB));
        assert!(next.as_mut().now_or_never().is_none());
        assert_eq!(fast.try_take(6 * MIB, u64::MAX).unwrap().bytes(), 6 * MIB);
        drop(own);
        assert_eq!(next.now_or_never().flatten().unwrap().bytes(), MIB);
        drop(first);
        assert_eq!(slow.try_take(MIB, 2 * MIB).unwrap().bytes(), MIB);
    }

    #[test]
    fn what_is_larger_than_the_room_takes_all_of_it() {
        let [image] = rooms();
        assert_eq!(image.try_take(100 * MIB, u64::MAX).unwrap().bytes(), 8 * MIB);
        assert_eq!(image.try_take(0, u64::MAX).unwrap().bytes(), KIB);
    }
}

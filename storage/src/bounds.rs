//! What all images of a process share in fetching.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::fetch::room::Room;
use crate::metrics::{Label as _, Priority};
use crate::pool::DecodePool;
use crate::staged::Staged;

/// Stored bytes in KiB that all images share for each [`Priority`]: 44 MiB in all, besides the staged ones and each image's own; a chunk counts
/// for at least [`crate::blob::MIN_WEIGHT`]. Each has its own, so that what is wanted now never waits for what may be wanted later. What is demanded is counted when it has
/// arrived, until it is decoded; the rest from the request on.
const SHARED_KIB: [u32; Priority::ALL.len()] = [24 << 10, 8 << 10, 8 << 10, 4 << 10];

/// The same for each image alone, so that sources which give nothing to others' requests stop none of its own. What came along
/// with a miss is worth most to a reader, and is staged as it arrives; of the rest, one request of a small size is enough to get on.
const OWN_KIB: [u32; Priority::ALL.len()] = [1 << 10, 2 << 10, 1 << 10, 512];

/// Most bytes of the shared room for what is demanded that one image has.
pub(crate) const DEMANDED: u64 = 8 << 20;

/// Stored bytes in KiB that have left the staged ones and wait to be decoded.
const SURPLUS_KIB: usize = 4 << 10;

/// Bounds of memory and threads for fetching, the same for one image and for a thousand. Clones are the same bounds.
#[derive(Debug, Clone)]
pub struct Bounds {
    pub(crate) pool: Arc<DecodePool>,
    in_flight: [Arc<Semaphore>; Priority::ALL.len()],
    pub(crate) staged: Arc<Staged>,
    pub(crate) surplus: Arc<Semaphore>,
}

impl Bounds {
    /// An image's room for each [`Priority`].
    pub(crate) fn rooms(&self) -> [Room; Priority::ALL.len()] {
        std::array::from_fn(|priority| {
            Room::new(Arc::clone(&self.in_flight[priority]), SHARED_KIB[priority], OWN_KIB[priority])
        })
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            pool: Arc::default(),
            in_flight: SHARED_KIB.map(|kib| Arc::new(Semaphore::new(kib as usize))),
            staged: Arc::default(),
            surplus: Arc::new(Semaphore::new(SURPLUS_KIB)),
        }
    }
}

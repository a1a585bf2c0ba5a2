//! What all images of a process share in fetching.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::metrics::{Label as _, Priority};
use crate::pool::DecodePool;
use crate::staged::Staged;

/// Stored bytes on their way, from request to decoded, in KiB for each [`Priority`]: 28 MiB in all, besides the staged ones. A chunk
/// counts for at least [`crate::blob::MIN_WEIGHT`], so that they are some 7000 chunks at most. Each has
/// its own, so that what is wanted now never waits for what may be wanted later; what is demanded, each image.
pub(crate) const IN_FLIGHT_KIB: [u32; Priority::ALL.len()] = [8 << 10, 8 << 10, 8 << 10, 4 << 10];

/// Stored bytes in KiB that have left the staged ones and wait to be decoded.
const SURPLUS_KIB: usize = 4 << 10;

/// Bounds of memory and threads for fetching, the same for one image and for a thousand. Clones are the same bounds.
#[derive(Debug, Clone)]
pub struct Bounds {
    pub(crate) pool: Arc<DecodePool>,
    pub(crate) in_flight: [Arc<Semaphore>; Priority::ALL.len()],
    pub(crate) staged: Arc<Staged>,
    pub(crate) surplus: Arc<Semaphore>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            pool: Arc::default(),
            in_flight: IN_FLIGHT_KIB.map(|kib| Arc::new(Semaphore::new(kib as usize))),
            staged: Arc::default(),
            surplus: Arc::new(Semaphore::new(SURPLUS_KIB)),
        }
    }
}

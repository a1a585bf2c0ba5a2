//! How much may be under way at a time.

use tokio::sync::{Semaphore, SemaphorePermit};

use super::{MAX_CHANGES, MAX_NAMED, MAX_VIEWS, internal};
use crate::node::protocol::{ApiError, ErrorKind, MountRequest};

/// What is under way, of all connections together.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) changes: Semaphore,
    named: Semaphore,
    pub(super) views: Semaphore,
    most_named: usize,
}

impl Room {
    /// Of so many connections, a quarter is never for mounts that wait for registries.
    pub(super) fn new(connections: usize) -> Self {
        let most_named = MAX_NAMED.min(connections - connections / 4);
        let [changes, named, views] = [MAX_CHANGES, most_named, MAX_VIEWS].map(Semaphore::new);
        Self { changes, named, views, most_named }
    }

    /// Room for a mount.
    pub(super) async fn mount(&self, request: &MountRequest) -> Result<SemaphorePermit<'_>, ApiError> {
        if request.files.is_some() {
            return self.changes.acquire().await.map_err(internal);
        }
        self.named.try_acquire().map_err(|_| {
            let text = format!("{} mounts wait for their images' registries already; try again later", self.most_named);
            ApiError::new(ErrorKind::Unavailable, text)
        })
    }
}

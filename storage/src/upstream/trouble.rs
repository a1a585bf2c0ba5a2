//! What an image's readers wait for, for whoever looks after the daemon.

use std::sync::Arc;
use std::time::Duration;

use lazo_format::Digest;
use tokio::time::Instant;

use super::error::Tried;
use super::{SourceId, Upstream};

/// Blobs of an image that no source serves, of which somebody wants data.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trouble {
    /// How many there are.
    pub blobs: usize,
    /// Requests for their data that wait. One may be for several readers.
    pub waiting: u64,
    /// How long ago the first of them could not be had any more.
    pub since: Duration,
    /// Whether the outage limit of one has run out, so that reads of it fail.
    pub failing: bool,
    /// The first of them.
    pub blob: Digest,
    /// What is wrong with it at each source, in their order.
    pub tried: Vec<Tried>,
}

impl Upstream {
    /// What no source serves just now; none if nothing is missed.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        let named: Vec<(SourceId, Arc<str>)> =
            self.0.sources().named.iter().map(|(id, named)| (*id, Arc::clone(&named.name))).collect();
        let (board, now) = (self.0.board(), Instant::now());
        let outages: Vec<_> = board.outages(now).collect();
        let first = outages.iter().min_by_key(|outage| outage.since)?;
        let tried = named.into_iter().map(|(id, source)| {
            let cause = board.cause(id, first.blob, now);
            Tried { source, cause }
        });
        Some(Trouble {
            blobs: outages.len(),
            waiting: outages.iter().map(|outage| u64::from(outage.waiting)).sum(),
            since: now - first.since,
            failing: outages.iter().any(|outage| outage.failing),
            blob: first.blob,
            tried: tried.collect(),
        })
    }
}

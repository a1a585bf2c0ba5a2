//! Sources that come and go, and how they take requests for ranges.

use std::time::Duration;

use lazo_format::Digest;
use tokio::time::Instant;

use super::super::SourceId;
use super::super::gate::Passage;
use super::{Board, Health};
use crate::source::ErrorKind;

/// How long a source that ignored a range is asked after the others: a cache that fills as it is used heeds them when it has the blob.
const WHOLE: Duration = Duration::from_secs(60);

impl Board {
    /// There is one more source, the last in the order.
    pub(in crate::upstream) fn add(&mut self, source: SourceId) {
        self.sources.insert(source, Health::default());
        // Blobs that nobody gave so far may be had there.
        self.blobs.values_mut().for_each(|blob| blob.outage = None);
    }

    /// A source is gone, with all that was known about it.
    pub(in crate::upstream) fn remove(&mut self, source: SourceId) {
        self.sources.remove(&source);
        self.blobs.values_mut().for_each(|blob| drop(blob.pairs.remove(&source)));
        self.blobs.retain(|_, blob| !blob.is_dull());
    }

    /// A source may be asked again, for all that it did not give. What it sent wrong it would send wrong again.
    pub(in crate::upstream) fn hurry(&mut self, source: SourceId, now: Instant) {
        let Some(health) = self.sources.get_mut(&source) else { return };
        health.gate.hurry(now);
        for pair in self.blobs.values_mut().filter_map(|blob| blob.pairs.get_mut(&source)) {
            pair.gate.hurry(now);
            pair.skip = pair.skip.take().filter(|skip| skip.cause.kind == ErrorKind::BadAnswer);
        }
        self.blobs.retain(|_, blob| !blob.is_dull());
    }

    /// A source has answered a request for a part of a blob with that, or with the whole blob.
    pub(in crate::upstream) fn heeds_ranges(&mut self, source: SourceId, heeds: bool, now: Instant) {
        if let Some(health) = self.sources.get_mut(&source) {
            health.whole = (!heeds).then_some(now + WHOLE);
        }
    }

    pub(super) fn sends_whole(&self, source: SourceId, now: Instant) -> bool {
        self.sources.get(&source).and_then(|health| health.whole).is_some_and(|until| until > now)
    }

    /// Whether the sources that would be asked for a blob now all ignore ranges.
    pub(in crate::upstream) fn expects_whole(&self, blob: Digest, now: Instant) -> bool {
        let well = |source: &SourceId| {
            let (passage, skip) = self.look(*source, blob, now);
            matches!(passage, Passage::Free | Passage::Due | Passage::Answering) && skip.is_none()
        };
        let mut asked = self.sources.keys().filter(|source| well(source)).peekable();
        asked.peek().is_some() && asked.all(|source| self.sends_whole(*source, now))
    }

    /// Whether a source other than this one is healthy and is not known to have ignored a range since it last heeded one. However long
    /// ago: a reader changes from one whole answer to another source's once at most.
    pub(in crate::upstream) fn heeds_elsewhere(&self, source: SourceId, blob: Digest, now: Instant) -> bool {
        let others = self.sources.iter().filter(|(other, _)| **other != source);
        others.filter(|(_, health)| health.whole.is_none()).any(|(other, _)| {
            let (passage, skip) = self.look(*other, blob, now);
            matches!(passage, Passage::Free) && skip.is_none()
        })
    }
}

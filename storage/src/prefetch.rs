//! What is fetched although nobody has asked for it: the image's prefetch list, then all the rest.

use std::ops::Range;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use lazo_format::{BlobIndex, ChunkIndex, IndexError, PrefetchRange};

use crate::blob::{Blob, MIN_WEIGHT, weight};
use crate::error::ReadError;
use crate::metrics::{Counted, Priority};
use crate::reader::Reader;
use crate::window::{self, MAX_REQUEST};

/// What to fetch before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefetch {
    /// Nothing.
    None,
    /// What the image's prefetch list names.
    #[default]
    Hints,
    /// That, and then the whole image.
    All,
}

/// Stored bytes of the prefetch list that are put in order and merged at a time, a chunk counting for at least [`MIN_WEIGHT`], which
/// makes 4096 of them: two requests of the largest size on their way and two to come. The list is in the order of first use; within so little of it, few requests matter more.
const BATCH: u64 = 4 * MAX_REQUEST;

/// The whole image is fetched only when no reader has waited for anything for so long: a start has ended by then.
const QUIET: Duration = Duration::from_secs(5);

/// Stored bytes fetched of the whole image between two looks at whether it is still quiet: one request.
const FILL_STEP: u64 = MAX_REQUEST;

/// Chunks of a blob that are looked at in a row for one that is missing.
const LOOK: u32 = 64 << 10;

/// How long to leave a source alone that could not be had, or a cache that is full, in the background.
const PAUSE: Duration = Duration::from_secs(30);

/// How often the prefetch list is gone through again for what sources did not give. The pause before it doubles each time, so that the last
/// time is after half an hour; what is missing then comes when it is read.
const MAX_AGAIN: u32 = 6;

/// Some chunks of the prefetch list.
struct Listed {
    blob: BlobIndex,
    chunks: Range<u32>,
    stored: Range<u64>,
}

impl Reader {
    /// Begins to fetch in the background. Ends with the reader.
    pub fn start_prefetch(self: &Arc<Self>, prefetch: Prefetch) {
        if prefetch == Prefetch::None {
            return;
        }
        let reader = Arc::downgrade(self);
        let task = self.runtime.spawn(async move {
            hints(&reader).await;
            if prefetch == Prefetch::All {
                // It comes by what is missing of the list as well.
                return fill(reader).await;
            }
            let mut missed = 0;
            for again in 0..MAX_AGAIN {
                tokio::time::sleep(PAUSE * 2_u32.pow(again)).await;
                let Some(now) = reader.upgrade().map(|reader| reader.fetcher.missed()) else { return };
                if std::mem::replace(&mut missed, now) == now {
                    return;
                }
                hints(&reader).await;
            }
        });
        let mut running = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = running.replace(task) {
            before.abort();
        }
    }

    /// Asks for the part of the prefetch list that begins with its range `first`. The range to go on with.
    async fn prefetch_batch(self: &Arc<Self>, first: u32) -> Result<Option<u32>, Arc<ReadError>> {
        let (mut batch, mut weighs, mut next) = (Vec::new(), 0, first);
        for range in self.index.prefetch_from(first) {
            let listed = self.listed(range)?;
            weighs += weight(listed.stored.end - listed.stored.start, listed.chunks.len() as u64);
            if self.prefetched.get().is_none() {
                self.metrics.prefetch_chunks.inc_by(listed.chunks.len() as u64);
            }
            batch.push(listed);
            next += 1;
            if weighs >= BATCH {
                break;
            }
        }
        if batch.is_empty() {
            return Ok(None);
        }
        let gap = window::gap_bytes(&self.fetcher.upstream().speed());
        for (blob, all, parts) in merge(batch, gap) {
            let blob = self.blob(blob).await?;
            self.fetcher.fetch_absent(&blob, all, parts, Priority::Prefetch).await?;
        }
        Ok(Some(next))
    }

    fn listed(&self, range: Result<PrefetchRange, IndexError>) -> Result<Listed, Arc<ReadError>> {
        let place = || {
            let chunks = range?.chunks();
            let first = self.index.chunk(ChunkIndex(chunks.start))?;
            let last = self.index.chunk(ChunkIndex(chunks.end - 1))?;
            let blob = self.index.blob_of(ChunkIndex(chunks.start))?;
            Ok(Listed { blob, stored: first.compressed_offset..last.compressed_range().end, chunks })
        };
        place().map_err(|source| Arc::new(ReadError::Index { blob: BlobIndex(0), at: 0, source }))
    }

    /// Disk space that the image takes in the cache.
    fn device_bytes(&self) -> u64 {
        let blobs = self.index.blob_numbers();
        blobs.filter_map(|number| self.index.blob(number).ok()).map(|record| record.device_size).sum()
    }

    /// The first chunk from one on that is not in the cache.
    fn absent(&self, blob: &Blob, from: u32) -> Option<u32> {
        (from..blob.record().chunks().end).find(|chunk| !blob.is_present(*chunk))
    }

    /// Fetches the next part of a blob that is missing, from a chunk on. The chunk to go on with.
    async fn fill_step(self: &Arc<Self>, blob: &Arc<Blob>, from: u32) -> Result<Option<u32>, Arc<ReadError>> {
        let all = blob.record().chunks();
        let within = from..all.end.min(from.saturating_add(LOOK));
        let Some(first) = within.clone().find(|chunk| !blob.is_present(*chunk)) else {
            return Ok(Some(within.end).filter(|end| *end < all.end));
        };
        let part = blob.first_part(&(first..all.end), FILL_STEP)?;
        self.fetcher.fetch_through(blob, part.clone()).await?;
        Ok(Some(part.end))
    }
}

/// Puts parts of the list in the order of the blobs and joins those between which there is little: `gap` stored bytes at most, a chunk
/// counting for at least [`MIN_WEIGHT`]. For each run, all its chunks and
/// those that were listed. Runs come in the order in which the first of each was listed.
fn merge(batch: Vec<Listed>, gap: u64) -> Vec<(BlobIndex, Range<u32>, Vec<Range<u32>>)> {
    let mut batch: Vec<(usize, Listed)> = batch.into_iter().enumerate().collect();
    batch.sort_by_key(|(_, listed)| (listed.blob, listed.chunks.start));
    let mut runs: Vec<(usize, Listed, Vec<Range<u32>>)> = Vec::new();
    for (place, listed) in batch {
        match runs.last_mut() {
            Some((first, run, parts))
                if run.blob == listed.blob
                    && listed.stored.start <= run.stored.end.saturating_add(gap)
                    && u64::from(listed.chunks.start.saturating_sub(run.chunks.end)) <= gap / MIN_WEIGHT =>
            {
                *first = (*first).min(place);
                run.chunks.end = run.chunks.end.max(listed.chunks.end);
                run.stored.end = run.stored.end.max(listed.stored.end);
                parts.push(listed.chunks);
            }
            _ => {
                let parts = vec![listed.chunks.clone()];
                runs.push((place, listed, parts));
            }
        }
    }
    runs.sort_by_key(|(first, ..)| *first);
    runs.into_iter().map(|(_, run, parts)| (run.blob, run.chunks, parts)).collect()
}

/// Asks for all that the prefetch list names and that is neither here nor on its way.
async fn hints(reader: &Weak<Reader>) {
    let mut next = 0;
    // Held for one batch only, so that the reader can go meanwhile.
    while let Some(reader) = reader.upgrade() {
        // A list whose chunks are all there has nothing else to wait for.
        tokio::task::yield_now().await;
        if !reader.cache.has_room() {
            drop(reader);
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        match reader.prefetch_batch(next).await {
            Ok(Some(end)) => next = end,
            Ok(None) => {
                reader.prefetched.get_or_init(|| Counted::new(&reader.metrics.prefetch_complete));
                return;
            }
            Err(error) => {
                tracing::warn!(error = &*error as &dyn std::error::Error, "the prefetch list is given up");
                return;
            }
        }
    }
}

/// Fetches the whole image, a part at a time, whenever no reader waits for anything. Ends when all of it is there, or with the reader.
async fn fill(reader: Weak<Reader>) {
    let Some(blobs) = reader.upgrade().map(|reader| reader.index.blob_numbers()) else { return };
    if let Some(reader) = reader.upgrade()
        && let Some(limit) = reader.cache.limit()
        && reader.device_bytes() > limit
    {
        tracing::info!(
            limit,
            image = reader.device_bytes(),
            "the image is larger than the cache may be: it is not fetched as a whole"
        );
        return;
    }
    for number in blobs {
        if !fill_blob(&reader, number).await {
            return;
        }
    }
    if let Some(reader) = reader.upgrade() {
        reader.filled.get_or_init(|| Counted::new(&reader.metrics.fill_complete));
        tracing::info!("the whole image is in the cache");
    }
}

/// False when the reader is gone, or the blob cannot be filled at all.
async fn fill_blob(reader: &Weak<Reader>, number: BlobIndex) -> bool {
    let mut next = None;
    let mut charge = None;
    loop {
        // Held for one part only, so that the reader can go meanwhile.
        let Some(reader) = reader.upgrade() else { return false };
        let Ok(blob) = reader.blob(number).await else { return false };
        tokio::task::yield_now().await;
        let quiet = reader.fetcher.quiet_for();
        if quiet < QUIET {
            drop((reader, blob));
            tokio::time::sleep(QUIET - quiet).await;
            continue;
        }
        charge = charge.or_else(|| blob.begin_fill());
        let from = next.unwrap_or(blob.record().chunks().start);
        let step = match charge {
            Some(_) => reader.fill_step(&blob, from).await,
            // Another process is at it: only to be looked after again.
            None if reader.absent(&blob, from).is_none() => return true,
            None => Err(Arc::new(ReadError::Stopped { digest: blob.record().digest, chunk: ChunkIndex(from) })),
        };
        match step {
            Ok(Some(end)) => next = Some(end),
            Ok(None) => return true,
            Err(error) => {
                tracing::debug!(error = &*error as &dyn std::error::Error, "the background fill pauses");
                drop((reader, blob));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_list_that_lie_together_are_one_run() {
        let listed = |blob, chunks: Range<u32>| {
            let stored = u64::from(chunks.start) * 5000..u64::from(chunks.end) * 5000;
            Listed { blob: BlobIndex(blob), chunks, stored }
        };
        let alone = 40..41;
        let batch =
            || vec![listed(1, 50..52), listed(0, 7..9), listed(1, alone.clone()), listed(1, 53..54), listed(0, 9..10)];
        assert_eq!(
            merge(batch(), 5000),
            [
                (BlobIndex(1), 50..54, vec![50..52, 53..54]),
                (BlobIndex(0), 7..10, vec![7..9, 9..10]),
                (BlobIndex(1), alone.clone(), vec![alone.clone()]),
            ]
        );
        assert_eq!(merge(batch(), 0).len(), 4);
        assert_eq!(merge(batch(), u64::MAX).len(), 2, "one a blob");
    }
}

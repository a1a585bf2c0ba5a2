//! The fetch scheduler: the one path from "these chunks are wanted" to "they are verified in the cache".

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use lazo_format::{ChunkError, ChunkIndex};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::blob::{Blob, Claim};
use crate::error::ReadError;
use crate::flight::Flight;
use crate::pool::{DecodePool, Priority, Worker};
use crate::source::{BlobSource, ErrorKind, SourceError};

/// Most stored bytes in one range request, unless a single chunk has more. A registry that takes 4 ms a request whatever
/// its size gives 690 MB/s at this size, and a reader waits no longer than needed for the first chunk of it.
pub const MAX_REQUEST: u64 = 4 << 20;

/// Least stored bytes in a read-ahead request where there is as much to read ahead.
const MIN_AHEAD_REQUEST: u64 = 1 << 20;

/// Stored bytes on their way, from request to decoded, in KiB for each [`Priority`]: 40 MiB in all. Each has its own, so that
/// what is wanted now never waits for what may be wanted later. Read-ahead has one reader's full window.
const IN_FLIGHT_KIB: [u32; 3] = [16 << 10, 16 << 10, 8 << 10];

/// A semaphore counts in KiB, to stay within 32 bits.
const KIB: u64 = 1 << 10;

/// Uncompressed bytes that one decode job yields, about: small enough that both cores get a part of a 1 MiB request.
const JOB_BYTES: u64 = 1 << 20;

/// How often a chunk is fetched whose bytes turn out wrong, before its readers are told. What a cable or proxy did once it
/// seldom does three times; a blob that is damaged where it lies stays so.
const VERIFY_ATTEMPTS: u32 = 3;

/// Counts since the mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Range requests made.
    pub requests: u64,
    /// Stored bytes received.
    pub fetched_bytes: u64,
    /// Chunks decoded, verified and cached.
    pub chunks: u64,
    /// Chunks that came with wrong bytes.
    pub wrong_chunks: u64,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    fetched_bytes: AtomicU64,
    chunks: AtomicU64,
    wrong_chunks: AtomicU64,
}

/// Fetches chunks: single-flight, neighbours in one request, within bounds.
pub(crate) struct Fetcher {
    source: Arc<dyn BlobSource>,
    runtime: Handle,
    pool: DecodePool,
    in_flight: [Arc<Semaphore>; 3],
    counters: Counters,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher")
            .field("source", &self.source.name())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Fetcher {
    pub(crate) fn new(source: Arc<dyn BlobSource>, runtime: Handle) -> Self {
        let in_flight = IN_FLIGHT_KIB.map(|kib| Arc::new(Semaphore::new(kib as usize)));
        Self { source, runtime, pool: DecodePool::default(), in_flight, counters: Counters::default() }
    }

    pub(crate) fn stats(&self) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            requests: get(&self.counters.requests),
            fetched_bytes: get(&self.counters.fetched_bytes),
            chunks: get(&self.counters.chunks),
            wrong_chunks: get(&self.counters.wrong_chunks),
        }
    }

    /// Fetches those of some neighbouring chunks that are not usable. The flights returned are all that is to be waited for.
    pub(crate) fn demand(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        chunks: Range<u32>,
    ) -> Result<Vec<Arc<Flight>>, Arc<ReadError>> {
        let mut joined = Vec::new();
        for claim in blob.claim(chunks, &mut joined) {
            for part in cut(claim, MAX_REQUEST)? {
                let fetcher = Arc::clone(self);
                self.runtime.spawn(async move {
                    let permit = fetcher.admit(Priority::Demand, part.blob(), &part.chunks()).await;
                    fetcher.fetch(part, Priority::Demand, permit, 1).await;
                });
            }
        }
        Ok(joined)
    }

    /// Fetches ahead what lies in a range of the blob's stored bytes, in a few parallel requests.
    pub(crate) fn ahead(self: &Arc<Self>, blob: &Arc<Blob>, chunks: Range<u32>) {
        let (fetcher, blob) = (Arc::clone(self), Arc::clone(blob));
        self.runtime.spawn(async move {
            if let Err(error) = fetcher.fetch_unclaimed(&blob, chunks, Priority::Ahead).await {
                tracing::debug!(error = &*error as &dyn std::error::Error, "read-ahead given up");
            }
        });
    }

    /// Fetches chunks that nobody waits for, as far as they are neither in the cache nor on their way by then. Returns when the last
    /// request has been made; the budget of bytes in flight paces it.
    ///
    /// Chunks are claimed only when their turn has come, so that a reader who wants one first fetches it himself.
    pub(crate) async fn fetch_unclaimed(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        chunks: Range<u32>,
        priority: Priority,
    ) -> Result<(), Arc<ReadError>> {
        let stored = blob.stored_range(&chunks)?;
        let limit = match priority {
            Priority::Ahead => ((stored.end - stored.start) / 2).clamp(MIN_AHEAD_REQUEST, MAX_REQUEST),
            Priority::Demand | Priority::Prefetch => MAX_REQUEST,
        };
        for part in blob.split(chunks, limit)? {
            let permit = self.admit(priority, blob, &part).await;
            let permit = permit.map(Arc::new);
            if !blob.has_room() {
                return Ok(());
            }
            for claim in blob.claim_unready(part) {
                let (fetcher, permit) = (Arc::clone(self), permit.clone());
                self.runtime.spawn(async move { fetcher.fetch_shared(claim, priority, permit, 1).await });
            }
        }
        Ok(())
    }

    /// Waits until there is room for these chunks' stored bytes. `None` only when the mount ends.
    async fn admit(&self, priority: Priority, blob: &Blob, chunks: &Range<u32>) -> Option<OwnedSemaphorePermit> {
        let stored = blob.stored_range(chunks).unwrap_or_default();
        let most = IN_FLIGHT_KIB[priority as usize];
        let kib = u32::try_from((stored.end - stored.start).div_ceil(KIB)).unwrap_or(most).min(most);
        Arc::clone(&self.in_flight[priority as usize]).acquire_many_owned(kib).await.ok()
    }

    async fn fetch(
        self: &Arc<Self>,
        claim: Claim,
        priority: Priority,
        permit: Option<OwnedSemaphorePermit>,
        attempt: u32,
    ) {
        self.fetch_shared(claim, priority, permit.map(Arc::new), attempt).await;
    }

    /// One range request for all of a claim, and the decoding of what comes.
    async fn fetch_shared(
        self: &Arc<Self>,
        claim: Claim,
        priority: Priority,
        permit: Option<Arc<OwnedSemaphorePermit>>,
        attempt: u32,
    ) {
        let range = match claim.blob().stored_range(&claim.chunks()) {
            Ok(range) => range,
            Err(error) => return claim.land(|_| Err(Arc::clone(&error))),
        };
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let expected = range.end - range.start;
        match self.receive(&claim, range).await {
            Ok(bytes) => {
                self.counters.fetched_bytes.fetch_add(expected, Ordering::Relaxed);
                self.decode(claim, &bytes, priority, permit.as_ref(), attempt);
            }
            Err(error) => self.fail(claim, error),
        }
    }

    async fn receive(&self, claim: &Claim, range: Range<u64>) -> Result<Bytes, SourceError> {
        let expected = range.end - range.start;
        let mut stream = self.source.open_range(claim.blob().record(), range).await?;
        let mut bytes = BytesMut::new();
        while let Some(piece) = stream.next().await {
            bytes.extend_from_slice(&piece?);
        }
        match bytes.len() as u64 {
            length if length == expected => Ok(bytes.freeze()),
            length => {
                let reason = format!("{length} bytes came where {expected} were asked for");
                Err(SourceError::new(ErrorKind::BadAnswer, reason))
            }
        }
    }

    fn fail(&self, claim: Claim, error: SourceError) {
        let digest = claim.blob().record().digest;
        let source: Arc<dyn std::error::Error + Send + Sync> = Arc::new(error);
        tracing::warn!(blob = %digest, source = %self.source.name(), error = &*source as &dyn std::error::Error,
            chunks = ?claim.chunks(), "cannot fetch");
        claim.land(|chunk| {
            let (chunk, source) = (ChunkIndex(chunk), Arc::clone(&source));
            Err(Arc::new(ReadError::Source { digest, chunk, source }))
        });
    }

    /// Hands the chunks of a response to the pool, in jobs of about [`JOB_BYTES`].
    fn decode(
        self: &Arc<Self>,
        claim: Claim,
        bytes: &Bytes,
        priority: Priority,
        permit: Option<&Arc<OwnedSemaphorePermit>>,
        attempt: u32,
    ) {
        let blob = Arc::clone(claim.blob());
        let mut rest = claim;
        let mut offset = 0;
        while !rest.chunks().is_empty() {
            let (end, length) = match job_end(&blob, &rest.chunks()) {
                Ok(job) => job,
                Err(error) => return rest.land(|_| Err(Arc::clone(&error))),
            };
            let (now, later) = rest.split_at(end);
            rest = later;
            let job = Job {
                fetcher: Arc::clone(self),
                claim: now,
                bytes: bytes.slice(offset..(offset + length).min(bytes.len())),
                attempt,
                _permit: permit.cloned(),
            };
            offset += length;
            self.pool.submit(priority, move |worker| job.run(worker));
        }
    }

    /// A chunk came with wrong bytes: fetches it once more, or gives up.
    fn retry(self: &Arc<Self>, claim: Claim, attempt: u32, error: ChunkError) {
        let (blob, chunk) = (claim.blob().record().digest, ChunkIndex(claim.chunks().start));
        self.counters.wrong_chunks.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%blob, %chunk, attempt, source = %self.source.name(), %error, "a chunk came with wrong bytes");
        if attempt >= VERIFY_ATTEMPTS {
            let error = Arc::new(ReadError::Verify { digest: blob, chunk, attempts: attempt, source: error });
            return claim.land(|_| Err(Arc::clone(&error)));
        }
        let fetcher = Arc::clone(self);
        self.runtime.spawn(async move {
            let permit = fetcher.admit(Priority::Demand, claim.blob(), &claim.chunks()).await;
            fetcher.fetch(claim, Priority::Demand, permit, attempt + 1).await;
        });
    }
}

/// Some chunks to decode, and their stored bytes.
struct Job {
    fetcher: Arc<Fetcher>,
    claim: Claim,
    bytes: Bytes,
    attempt: u32,
    /// Gives the bytes' room back when the last job of a request is done.
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Job {
    fn run(self, worker: &mut Worker) {
        let Self { fetcher, claim: mut rest, mut bytes, attempt, _permit } = self;
        while !rest.chunks().is_empty() {
            let chunk = rest.chunks().start;
            let (one, others) = rest.split_at(chunk + 1);
            rest = others;
            let record = match one.blob().chunk(chunk) {
                Ok(record) => record,
                Err(error) => {
                    one.land(|_| Err(Arc::clone(&error)));
                    continue;
                }
            };
            let stored = bytes.split_to((record.compressed_size as usize).min(bytes.len()));
            match worker.decode(&record, &stored) {
                Ok(()) => {
                    one.blob().store(chunk, &worker.buffer);
                    fetcher.counters.chunks.fetch_add(1, Ordering::Relaxed);
                    one.land(|_| Ok(()));
                }
                Err(error) => fetcher.retry(one, attempt, error),
            }
        }
    }
}

/// Where a decode job that begins with these chunks ends, and how many stored bytes it has.
fn job_end(blob: &Blob, chunks: &Range<u32>) -> Result<(u32, usize), Arc<ReadError>> {
    let (mut decoded, mut stored) = (0, 0);
    for chunk in chunks.clone() {
        let record = blob.chunk(chunk)?;
        decoded += u64::from(record.device_size);
        stored += record.compressed_size as usize;
        if decoded >= JOB_BYTES {
            return Ok((chunk + 1, stored));
        }
    }
    Ok((chunks.end, stored))
}

/// Cuts a claim into requests.
fn cut(claim: Claim, limit: u64) -> Result<Vec<Claim>, Arc<ReadError>> {
    let parts = claim.blob().split(claim.chunks(), limit)?;
    let mut claims = Vec::with_capacity(parts.len());
    let mut rest = claim;
    for part in parts {
        let (now, later) = rest.split_at(part.end);
        claims.push(now);
        rest = later;
    }
    Ok(claims)
}

//! The fetch scheduler: the one path from "these chunks are wanted" to "they are verified in the cache".
//!
//! A claim on chunks becomes one range request. Its answer is cut into chunks as it arrives; each goes to the decode pool at
//! once, or is staged when nobody wants it yet. What an answer that breaks off has not brought is asked for again, wherever
//! [`Upstream`] finds best; that also knows how long to go on trying. Where sources ignore ranges, requests share a whole blob (`sweep.rs`).

mod request;
pub(crate) mod room;
mod sweep;

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lazo_base::lines::Lines;
use lazo_format::{ChunkError, ChunkIndex};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::blob::{Blob, Claim, weight};
use crate::bounds::{Bounds, DEMANDED};
use crate::error::ReadError;
use crate::flight::{Flight, Outcome};
use crate::metrics::{Label as _, Metrics, Priority};
use crate::pool::Worker;
use crate::rate::RateLimiter;
use crate::staged::Key;
use crate::upstream::{SourceId, Upstream};
use crate::window::{self, MAX_REQUEST, Neighbours};
use request::{Load, Request};
use room::{Granted, Room, kib};
use sweep::Sweeps;

/// Seconds' worth of bytes that one image may have on their way of the room that all images share, of those that nobody waits for. That
/// keeps any link busy; and a source that drips soon has nothing but the image's own room.
const SECONDS_IN_FLIGHT: u64 = 2;

/// How often a chunk is fetched whose bytes turn out wrong before its readers are told, beyond once from each source: three times
/// from a single one. What a cable or proxy did once it seldom does three times; a blob that is damaged where it lies stays so.
const SPARE_ATTEMPTS: u32 = 2;

/// The part of a miss's window that lies before it. Programs read more often forwards than backwards; a third makes as few requests
/// as this, and delays what is wanted more.
const BEFORE: u64 = 4;

/// Number of the next fetcher.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Fetches chunks: single-flight, neighbours in one request, within bounds.
pub(crate) struct Fetcher {
    upstream: Upstream,
    /// Lines of chunks that came with wrong bytes.
    wrong: Lines,
    runtime: Handle,
    /// Tells its chunks from other images'.
    number: u64,
    bounds: Bounds,
    /// Room for bytes in flight, for each [`Priority`].
    rooms: [Room; Priority::ALL.len()],
    /// Requests of the prefetch list that were given up so far.
    missed: AtomicU64,
    neighbours: Neighbours,
    rate: RateLimiter,
    demand: Demand,
    /// Closed when the reader has gone.
    stopped: Semaphore,
    metrics: Arc<Metrics>,
    /// Whole blobs on their way.
    sweeps: Sweeps,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").field("stats", &self.metrics.stats()).finish_non_exhaustive()
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.bounds.staged.forget(self.number);
    }
}

/// Requests that somebody waits for.
#[derive(Debug)]
struct Demand {
    running: AtomicU32,
    /// When the last one ended.
    last: Mutex<Instant>,
}

impl Fetcher {
    pub(crate) fn new(
        upstream: Upstream,
        bounds: Bounds,
        rate: RateLimiter,
        metrics: Arc<Metrics>,
        runtime: Handle,
    ) -> Self {
        Self {
            upstream,
            wrong: Lines::new(),
            runtime,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            rooms: bounds.rooms(),
            missed: AtomicU64::new(0),
            bounds,
            neighbours: Neighbours::default(),
            rate,
            demand: Demand { running: AtomicU32::new(0), last: Mutex::new(Instant::now()) },
            stopped: Semaphore::new(0),
            metrics,
            sweeps: Sweeps::default(),
        }
    }

    fn key(&self, chunk: u32) -> Key {
        (self.number, chunk)
    }

    pub(crate) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// The reader has gone: what is under way is given up.
    pub(crate) fn stop(&self) {
        self.stopped.close();
    }

    /// What a future gives; `None` if the reader goes before that.
    async fn unless_stopped<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            output = future => Some(output),
            // It never has a permit.
            _ = self.stopped.acquire() => None,
        }
    }

    /// How long no request has been made or waited for that a reader needs.
    pub(crate) fn quiet_for(&self) -> Duration {
        if self.demand.running.load(Ordering::Acquire) > 0 {
            return Duration::ZERO;
        }
        self.demand.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Fetches those of some neighbouring chunks that are not usable. The flights returned are all that is to be waited for.
    /// Neighbours come along where that is worthwhile.
    pub(crate) fn demand(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        chunks: Range<u32>,
    ) -> Result<Vec<Arc<Flight>>, Arc<ReadError>> {
        let mut joined = Vec::new();
        for claim in blob.claim(chunks, &mut joined) {
            for absent in self.decode_staged(claim, Priority::Demand)? {
                for part in cut(absent, MAX_REQUEST)? {
                    self.demand_part(part)?;
                }
            }
        }
        Ok(joined)
    }

    fn demand_part(self: &Arc<Self>, mut claim: Claim) -> Result<(), Arc<ReadError>> {
        let (wanted, stored) = (claim.chunks(), claim.stored()?);
        self.neighbours.wanted(stored);
        let mut load = Load::new(&self.metrics, Priority::Demand, stored);
        if let Some((room, granted)) = self.spare_room(claim.blob(), claim.weight()?) {
            let before = room / BEFORE;
            claim.widen(before, room - before, |chunk| self.bounds.staged.has(self.key(chunk)))?;
            let brought = claim.stored()? - stored;
            self.neighbours.brought(brought);
            load.add(&self.metrics, Priority::Ahead, brought, granted);
        }
        let fetcher = Arc::clone(self);
        self.runtime.spawn(async move {
            fetcher.run(Request::new(claim, Priority::Demand, [wanted].into(), load)).await;
        });
        Ok(())
    }

    /// What neighbours may count for that come along with a miss which counts for so much, if there is room for them now.
    fn spare_room(&self, blob: &Blob, weight: u64) -> Option<(u64, Granted)> {
        let room = self.neighbours.window(&self.upstream.speed()).saturating_sub(weight);
        if room == 0 || !blob.has_room() {
            return None;
        }
        let granted = self.rooms[Priority::Ahead as usize].try_take(room, self.allowed())?;
        let room = room.min(granted.bytes());
        self.rate.try_admit(room).then_some((room, granted))
    }

    /// Fetches ahead what lies in a range of the blob's stored bytes, in a few parallel requests.
    pub(crate) fn ahead(self: &Arc<Self>, blob: &Arc<Blob>, chunks: Range<u32>) {
        let (fetcher, blob) = (Arc::clone(self), Arc::clone(blob));
        self.runtime.spawn(async move {
            let eager = vec![chunks.clone()];
            // It holds no chunks while it waits.
            let fetch = fetcher.fetch_absent(&blob, chunks, eager, Priority::Ahead);
            if let Some(Err(error)) = fetcher.unless_stopped(fetch).await {
                tracing::debug!(error = &*error as &dyn std::error::Error, "read-ahead given up");
            }
        });
    }

    /// Fetches chunks that nobody waits for, as far as they are neither in the cache nor on their way by then; those in `eager`, which
    /// are in order and do not overlap, are decoded, others staged. Returns when the last request has been made; the rate limit and the room in flight pace it.
    ///
    /// Chunks are claimed only when their turn has come, so that a reader who wants one first fetches it himself.
    pub(crate) async fn fetch_absent(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        chunks: Range<u32>,
        eager: Vec<Range<u32>>,
        priority: Priority,
    ) -> Result<(), Arc<ReadError>> {
        let limit = window::request_bytes(&self.upstream.speed());
        let (eager, mut rest): (Arc<[Range<u32>]>, _) = (eager.into(), chunks);
        while !rest.is_empty() {
            let mut part = blob.first_part(&rest, limit)?;
            // A long row of chunks that are all there has nothing else to wait for.
            tokio::task::yield_now().await;
            let weight = blob.weight(&part)?;
            let granted = self.rooms[priority as usize].take(weight, self.allowed()).await;
            let Some(granted) = granted.filter(|_| blob.has_room()) else { return Ok(()) };
            if granted.bytes() < weight {
                part = blob.first_part(&part, granted.bytes())?;
            }
            rest.start = part.end;
            let granted = Arc::new(granted);
            let bytes = self.absent_bytes(blob, part.clone())?;
            if bytes > 0 {
                self.rate.admit(bytes).await;
            }
            for claim in blob.claim_absent(part) {
                for absent in self.decode_staged(claim, priority)? {
                    let bytes = absent.stored()?;
                    let mut load = Load::new(&self.metrics, priority, bytes);
                    load.hold(Some(Arc::clone(&granted)));
                    let request = Request::new(absent, priority, Arc::clone(&eager), load);
                    let fetcher = Arc::clone(self);
                    self.runtime.spawn(async move { fetcher.run(request).await });
                }
            }
        }
        Ok(())
    }

    /// Stored bytes of those chunks that are not at hand, on their way or not.
    fn absent_bytes(&self, blob: &Blob, chunks: Range<u32>) -> Result<u64, Arc<ReadError>> {
        let absent = chunks.filter(|chunk| !blob.is_present(*chunk) && !self.bounds.staged.has(self.key(*chunk)));
        absent.map(|chunk| Ok(u64::from(blob.chunk(chunk)?.compressed_size))).sum()
    }

    /// Fetches some chunks of the whole image, and waits until they are there.
    pub(crate) async fn fetch_through(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        chunks: Range<u32>,
    ) -> Result<(), Arc<ReadError>> {
        self.fetch_absent(blob, chunks.clone(), vec![chunks.clone()], Priority::Fill).await?;
        for flight in blob.flights_of(chunks.clone()) {
            if let Outcome::Failed(error) = flight.wait().await {
                return Err(error);
            }
        }
        let Some(missing) = chunks.into_iter().find(|chunk| !blob.is_present(*chunk)) else { return Ok(()) };
        let (digest, chunk) = (blob.record().digest, ChunkIndex(missing));
        Err(Arc::new(ReadError::Stopped { digest, chunk }))
    }

    /// Decodes those chunks of a claim whose bytes are staged; the rest must be fetched.
    fn decode_staged(self: &Arc<Self>, mut claim: Claim, priority: Priority) -> Result<Vec<Claim>, Arc<ReadError>> {
        let mut absent = Vec::new();
        let mut at = claim.chunks().start;
        while at < claim.chunks().end {
            let Some(bytes) = self.bounds.staged.take(self.key(at)) else {
                at += 1;
                continue;
            };
            let before = claim.split_to(at);
            if !before.is_empty() {
                absent.push(before);
            }
            let one = claim.split_to(at + 1);
            at += 1;
            let stored = bytes.len() as u64;
            self.neighbours.settled(stored, true);
            self.decode_at_hand(one, bytes, priority, Load::new(&self.metrics, priority, stored));
        }
        if !claim.is_empty() {
            absent.push(claim);
        }
        Ok(absent)
    }

    /// Bytes of the shared room that the image may have in flight for each priority.
    fn allowed(&self) -> u64 {
        self.upstream.speed().bytes_per_second.saturating_mul(SECONDS_IN_FLIGHT)
    }

    /// Waits until there is room to decode so many stored bytes, which are there and which somebody waits for.
    async fn room_to_decode(&self, stored: u64) -> Option<Arc<Granted>> {
        self.rooms[Priority::Demand as usize].take(stored, DEMANDED).await.map(Arc::new)
    }

    /// How many requests of the prefetch list were given up so far.
    pub(crate) fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    fn decode(&self, job: Job) {
        let chunk = job.claim.chunks().start;
        let flight = job.claim.blob().flights_of(chunk..chunk + 1).pop();
        self.bounds.pool.submit(job.priority, self.number, flight, move |worker| job.run(worker));
    }

    /// Decodes a chunk whose bytes were staged, and so are of no answer under way.
    fn decode_at_hand(self: &Arc<Self>, claim: Claim, bytes: Bytes, priority: Priority, load: Load) {
        let (fetcher, load, attempt) = (Arc::clone(self), Arc::new(load), Attempt::default());
        self.decode(Job { fetcher, claim, bytes, priority, attempt, load, _room: None });
    }

    /// Keeps a chunk that nobody wants yet, and makes room for it.
    async fn stage(self: &Arc<Self>, claim: Claim, bytes: Bytes) -> Result<(), Claim> {
        let (blob, chunk) = (Arc::clone(claim.blob()), claim.chunks().start);
        let staged = &self.bounds.staged;
        blob.park(claim, || staged.put(self.key(chunk), self, &blob, bytes))?;
        // Each round takes one out, unless somebody else is about to.
        while let Some((key, fetcher, blob)) = staged.surplus() {
            let (Some(fetcher), chunk) = (fetcher.upgrade(), key.1) else {
                staged.take(key);
                continue;
            };
            let claims = blob.claim_absent(chunk..chunk + 1);
            let Some(claim) = claims.into_iter().next() else {
                // Whoever has the charge of it takes it out; or it came into the cache by another way, another process's perhaps.
                if blob.flights_of(chunk..chunk + 1).is_empty() {
                    staged.take(key);
                    continue;
                }
                break;
            };
            match staged.take(key) {
                None => claim.land(&Outcome::GivenUp),
                Some(bytes) => {
                    let mut load = Load::new(&fetcher.metrics, Priority::Ahead, bytes.len() as u64);
                    // What waits for the network never holds of this, so that decoding alone paces it.
                    let room = kib(weight(bytes.len() as u64, 1));
                    let permit = Arc::clone(&self.bounds.surplus).acquire_many_owned(room).await;
                    load.hold(permit.ok().map(|permit| Arc::new(Granted::of(permit))));
                    fetcher.decode_at_hand(claim, bytes, Priority::Fill, load);
                }
            }
        }
        Ok(())
    }

    /// A chunk came with wrong bytes: fetches it once more, from elsewhere if there is another source, or gives up.
    fn retry(self: &Arc<Self>, claim: Claim, priority: Priority, mut attempt: Attempt, error: ChunkError) {
        let (blob, chunk) = (claim.blob().record().digest, ChunkIndex(claim.chunks().start));
        attempt.number += 1;
        let source = attempt.source.map_or_else(|| "unknown".into(), |source| self.upstream.name(source));
        self.wrong.write(|left_out| {
            let attempt = attempt.number;
            tracing::warn!(%blob, %chunk, attempt, %source, %error, left_out, "a chunk came with wrong bytes");
        });
        // It is asked for this blob only if no other can be, for some time.
        if let Some(source) = attempt.source {
            self.upstream.wrong_bytes(source, claim.blob().record());
        }
        if std::mem::take(&mut attempt.passed) && !claim.blob().is_any_wanted(claim.chunks()) {
            return claim.land(&Outcome::GivenUp);
        }
        let sources = u32::try_from(self.upstream.sources()).unwrap_or(u32::MAX);
        if attempt.number >= sources.saturating_add(SPARE_ATTEMPTS) {
            let error = ReadError::Verify { digest: blob, chunk, attempts: attempt.number, source: error };
            return claim.land(&Outcome::Failed(Arc::new(error)));
        }
        let Ok(stored) = claim.stored() else { return };
        let fetcher = Arc::clone(self);
        self.runtime.spawn(async move {
            let load = Load::new(&fetcher.metrics, priority, stored);
            let wanted = claim.chunks();
            fetcher.run(Request::again(claim, priority, [wanted].into(), load, attempt)).await;
        });
    }
}

/// How often a chunk has been fetched in vain.
#[derive(Debug, Clone, Copy, Default)]
struct Attempt {
    number: u32,
    /// Where all of the bytes at hand are from.
    source: Option<SourceId>,
    /// It passed, and nobody had asked for it.
    passed: bool,
}

/// A chunk to decode, and its stored bytes.
struct Job {
    fetcher: Arc<Fetcher>,
    claim: Claim,
    bytes: Bytes,
    priority: Priority,
    attempt: Attempt,
    /// Gives the bytes' room back when the last job of a request is done.
    load: Arc<Load>,
    _room: Option<Arc<Granted>>,
}

impl Job {
    fn run(self, worker: &mut Worker) {
        let Self { fetcher, claim, bytes, priority, attempt, load, _room } = self;
        let chunk = claim.chunks().start;
        let record = match claim.blob().chunk(chunk) {
            Ok(record) => record,
            Err(error) => return claim.land(&Outcome::Failed(error)),
        };
        match worker.decode(&record, &bytes) {
            Ok(()) => {
                claim.blob().store(chunk, &worker.buffer);
                let priority = load.priority();
                fetcher.metrics.decoded_bytes[priority].inc_by(u64::from(record.device_size));
                fetcher.metrics.decoded_chunks[priority].inc();
                claim.land(&Outcome::Landed);
            }
            Err(error) => fetcher.retry(claim, priority, attempt, error),
        }
    }
}

/// Cuts a claim into requests that count for at most `limit` each.
fn cut(mut claim: Claim, limit: u64) -> Result<Vec<Claim>, Arc<ReadError>> {
    let mut parts = Vec::new();
    while !claim.is_empty() {
        let part = claim.blob().first_part(&claim.chunks(), limit)?;
        parts.push(claim.split_to(part.end));
    }
    Ok(parts)
}

//! One range request for neighbouring chunks, repeated for what its answer did not bring.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use lazo_format::ChunkIndex;
use prometheus_client::metrics::gauge::Gauge;

use super::room::Granted;
use super::sweep::{Back, Came, Joining, Lead, Progress, Swept};
use super::{Attempt, Fetcher, Job};
use crate::blob::{Blob, Claim, weight};
use crate::error::ReadError;
use crate::flight::Outcome;
use crate::metrics::{Metrics, Priority};
use crate::source::{ErrorKind, SourceError};
use crate::upstream::pace::{AHEAD_WINDOW, Budget, LEAST_WANTED, TooSlow};
use crate::upstream::{Body, SourceId, Urgency};

/// Between two answers to the same request that brought nothing and were no outage.
const PAUSE: Duration = Duration::from_millis(500);

/// What a request's bytes take of the bounds, until all of them are decoded, staged or given up.
#[derive(Debug)]
pub(super) struct Load {
    priority: Priority,
    counted: Vec<(Gauge, i64)>,
    granted: Vec<Arc<Granted>>,
}

impl Load {
    pub(super) fn new(metrics: &Metrics, priority: Priority, stored: u64) -> Self {
        let mut load = Self { priority, counted: Vec::new(), granted: Vec::new() };
        load.count(metrics, priority, stored);
        load
    }

    fn count(&mut self, metrics: &Metrics, priority: Priority, stored: u64) {
        let (gauge, bytes) = (metrics.in_flight_bytes[priority].clone(), i64::try_from(stored).unwrap_or(i64::MAX));
        gauge.inc_by(bytes);
        self.counted.push((gauge, bytes));
    }

    /// Bytes of another priority in the same request.
    pub(super) fn add(&mut self, metrics: &Metrics, priority: Priority, stored: u64, granted: Granted) {
        self.count(metrics, priority, stored);
        self.hold(Some(Arc::new(granted)));
    }

    /// Room that was taken for the bytes, by this request alone or with others.
    pub(super) fn hold(&mut self, granted: Option<Arc<Granted>>) {
        self.granted.extend(granted);
    }

    /// Why the request was made.
    pub(super) fn priority(&self) -> Priority {
        self.priority
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for (gauge, bytes) in &self.counted {
            gauge.dec_by(*bytes);
        }
    }
}

/// A request for the chunks of a claim.
#[derive(Debug)]
pub(super) struct Request {
    /// What has not arrived.
    rest: Claim,
    priority: Priority,
    /// Chunks that are decoded when they arrive, in order and without overlaps. Others are staged, unless somebody wants them by then.
    eager: Arc<[Range<u32>]>,
    load: Arc<Load>,
    attempt: Attempt,
    /// The stored bytes that have arrived of the first chunk of `rest`.
    partial: BytesMut,
    /// These are from several sources, so that none is to blame if they are wrong.
    mixed: bool,
    /// What came since somebody has waited for some of it, if anybody has.
    budget: Option<Budget>,
}

impl Request {
    pub(super) fn new(claim: Claim, priority: Priority, eager: Arc<[Range<u32>]>, load: Load) -> Self {
        Self::again(claim, priority, eager, load, Attempt::default())
    }

    pub(super) fn again(
        claim: Claim,
        priority: Priority,
        eager: Arc<[Range<u32>]>,
        load: Load,
        attempt: Attempt,
    ) -> Self {
        let (load, partial) = (Arc::new(load), BytesMut::new());
        Self { rest: claim, priority, eager, load, attempt, partial, mixed: false, budget: None }
    }

    /// Place of what is missing in the blob.
    fn range(&self) -> Result<Range<u64>, Arc<ReadError>> {
        let range = self.rest.blob().stored_range(&self.rest.chunks())?;
        Ok(range.start + self.partial.len() as u64..range.end)
    }

    pub(super) fn blob(&self) -> &Arc<Blob> {
        self.rest.blob()
    }

    /// The first chunk that has not arrived.
    pub(super) fn first(&self) -> u32 {
        self.rest.chunks().start
    }

    pub(super) fn priority(&self) -> Priority {
        self.priority
    }

    /// Whether all has arrived.
    pub(super) fn is_done(&self) -> bool {
        self.rest.is_empty()
    }

    /// The chunk that has arrived in part comes as a whole now.
    pub(super) fn begin_anew(&mut self, source: SourceId) {
        self.partial.clear();
        self.mixed = false;
        self.attempt.source = Some(source);
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.rest.blob().is_any_wanted(self.rest.chunks())
    }

    fn is_eager(&self, chunk: u32) -> bool {
        let place = self.eager.partition_point(|range| range.end <= chunk);
        self.eager.get(place).is_some_and(|range| range.contains(&chunk))
    }

    /// Counts what came for readers, from when the first one has come.
    pub(super) fn count(&mut self, waited: Duration, bytes: usize) {
        if self.budget.is_none() && self.is_wanted() {
            self.budget = Some(Budget::default());
        }
        if let Some(budget) = &mut self.budget {
            budget.count(waited, bytes);
        }
    }

    /// Whether too little came for somebody who waits.
    pub(super) fn is_too_slow(&self, grace: Duration) -> bool {
        self.budget.as_ref().is_some_and(|budget| budget.is_spent(grace)) && self.is_wanted()
    }

    /// All that is missing has become `outcome`.
    fn land(self, outcome: &Outcome) {
        self.rest.land(outcome);
    }
}

/// A request whose answer has ended before its time.
struct Tried {
    /// What is missing.
    left: Request,
    error: Option<SourceError>,
    /// The answer brought something all the same, to this request or to others.
    brought: bool,
    /// How far it came, if it was a whole blob.
    came: Option<Came>,
}

/// Counts a request for as long as it runs.
struct Running<'a> {
    fetcher: &'a Fetcher,
    priority: Priority,
}

impl<'a> Running<'a> {
    fn new(fetcher: &'a Fetcher, priority: Priority) -> Self {
        fetcher.metrics.in_flight_requests[priority].inc();
        if priority == Priority::Demand {
            fetcher.demand.running.fetch_add(1, Ordering::AcqRel);
        }
        Self { fetcher, priority }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.fetcher.metrics.in_flight_requests[self.priority].dec();
        if self.priority == Priority::Demand {
            *self.fetcher.demand.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Instant::now();
            self.fetcher.demand.running.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Fetcher {
    /// Makes the request, as often as it takes.
    pub(super) async fn run(self: &Arc<Self>, mut request: Request) {
        let _running = Running::new(self, request.priority);
        let mut progress = Progress::new();
        loop {
            request = match self.ride_along(request, &mut progress).await {
                Some(request) => request,
                None => return,
            };
            let range = match request.range() {
                Ok(range) => range,
                Err(error) => return request.land(&Outcome::Failed(error)),
            };
            let tried = match self.attempt(request, range.clone()).await {
                Some(tried) => tried,
                None => return,
            };
            request = tried.left;
            if request.is_too_slow(self.grace()) {
                return self.fail(request, TooSlow(LEAST_WANTED).into());
            }
            progress.whole_answer(tried.came);
            let got_further = request.range().is_ok_and(|rest| rest.start > range.start);
            if tried.brought || got_further {
                progress.last = Instant::now();
                continue;
            }
            // Outages are paced where the next answer is waited for.
            let paced = tried.error.as_ref().is_some_and(|error| error.kind.is_outage());
            if progress.last.elapsed() > self.upstream.policy().outage_limit {
                let error = tried.error.map_or_else(|| "answers end before their time".into(), Into::into);
                return self.fail(request, error);
            }
            if !paced && self.unless_stopped(tokio::time::sleep(PAUSE)).await.is_none() {
                return request.land(&Outcome::GivenUp);
            }
        }
    }

    /// Makes the request once. What its answer did not bring; `None` if that was nothing, or if the rest has landed otherwise.
    async fn attempt(self: &Arc<Self>, mut request: Request, range: Range<u64>) -> Option<Tried> {
        let wanted = request.is_wanted();
        let urgency = if wanted { Urgency::Waiting } else { Urgency::Ahead };
        let blob = Arc::clone(request.blob());
        let record = blob.record();
        let (priority, chunks) = (request.priority, request.rest.chunks());
        tracing::debug!(blob = %record.digest, ?range, ?chunks, ?priority, wanted, "a range request");
        // Others that come meanwhile need not ask for the same whole blob.
        let lead = || self.sweeps.lead(record.digest, record.first_chunk.0);
        let expected = self.upstream.expects_whole(record).then(lead).flatten();
        let since = Instant::now();
        let opened = self.unless_stopped(self.upstream.open(record, range, urgency, &[])).await;
        // A head that comes late counts as bytes do that come late.
        request.count(since.elapsed(), 0);
        let Some(opened) = opened else {
            request.land(&Outcome::GivenUp);
            return None;
        };
        let (too_slow, ended) = match opened {
            Err(error) => {
                match wanted {
                    true => self.fail(request, error.into()),
                    false => self.give_up(request, &error),
                }
                return None;
            }
            Ok(body) if body.is_whole() => return self.attempt_whole(request, body, expected.or_else(lead)).await,
            Ok(mut body) => {
                drop(expected);
                let ended = self.receive(&mut request, &mut body).await;
                (body.was_too_slow(), ended)
            }
        };
        self.tried(request, ended, too_slow, (false, None))
    }

    /// The answer to a request is a whole blob.
    async fn attempt_whole(
        self: &Arc<Self>,
        mut request: Request,
        body: Body,
        lead: Option<Lead<'_>>,
    ) -> Option<Tried> {
        if lead.is_none() {
            // Another answer is under way that may have it.
            match self.sweeps.join(request.blob().record().digest, request) {
                Joining::Waiting(waiting) => {
                    drop(body);
                    let Back { request: left, brought, came } = waiting.await.ok()?;
                    return Some(Tried { left, error: None, brought, came });
                }
                Joining::Alone(alone) => request = alone,
            }
        }
        let Swept { left, ended, brought, came, too_slow } = self.sweep(request, body, lead).await;
        self.tried(left?, ended, too_slow, (brought, came))
    }

    /// What follows from the end of an answer.
    fn tried(
        &self,
        request: Request,
        ended: Option<Result<(), SourceError>>,
        too_slow: bool,
        (brought, came): (bool, Option<Came>),
    ) -> Option<Tried> {
        match ended {
            None => {
                request.land(&Outcome::GivenUp);
                None
            }
            Some(_) if request.is_done() => None,
            Some(Err(error)) if too_slow && !request.is_wanted() => {
                self.give_up(request, &error);
                None
            }
            Some(ended) => Some(Tried { left: request, error: ended.err(), brought, came }),
        }
    }

    /// How long a request may bring too little before its readers are told: as long as an outage may last, and long enough for some
    /// repeated packets where that is no time at all.
    pub(super) fn grace(&self) -> Duration {
        self.upstream.policy().outage_limit.max(AHEAD_WINDOW)
    }

    /// What nobody waits for does not come. Whoever wants it, or the prefetch list, asks for it again.
    fn give_up(&self, request: Request, error: &(dyn std::error::Error + 'static)) {
        tracing::debug!(error, "given up what nobody waits for");
        self.forget_neighbours(&request);
        if request.priority == Priority::Prefetch {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
        request.land(&Outcome::GivenUp);
    }

    /// Of what came along with a miss, the rest does not come.
    fn forget_neighbours(&self, request: &Request) {
        if request.priority == Priority::Demand
            && let Ok(rest) = request.range()
        {
            self.neighbours.settled(rest.end - rest.start, false);
        }
    }

    pub(super) fn fail(&self, request: Request, error: Box<dyn std::error::Error + Send + Sync>) {
        self.forget_neighbours(&request);
        let digest = request.rest.blob().record().digest;
        let chunk = ChunkIndex(request.rest.chunks().start);
        let error = ReadError::Source { digest, chunk, source: Arc::from(error) };
        request.land(&Outcome::Failed(Arc::new(error)));
    }

    /// Takes an answer apart as it comes. `None` when the reader goes meanwhile.
    async fn receive(self: &Arc<Self>, request: &mut Request, body: &mut Body) -> Option<Result<(), SourceError>> {
        let source = Some(body.source());
        request.mixed |= !request.partial.is_empty() && request.attempt.source != source;
        request.attempt.source = source;
        loop {
            if request.is_too_slow(self.grace()) {
                let error = SourceError::new(ErrorKind::Timeout, TooSlow(LEAST_WANTED));
                body.fail(&error);
                return Some(Err(error));
            }
            let since = Instant::now();
            // Not while a chunk is handed on: it may be another image's that makes room for it.
            let piece = self.unless_stopped(body.next()).await?;
            request.count(since.elapsed(), piece.as_ref().ok().and_then(Option::as_ref).map_or(0, Bytes::len));
            let mut piece = match piece {
                Ok(Some(piece)) => piece,
                Ok(None) => return Some(Ok(())),
                Err(error) => return Some(Err(error)),
            };
            self.metrics.fetched_bytes[request.priority].inc_by(piece.len() as u64);
            while !piece.is_empty() && !request.rest.is_empty() {
                let chunk = request.rest.chunks().start;
                let Ok(record) = request.rest.blob().chunk(chunk) else { return Some(Ok(())) };
                let size = record.compressed_size as usize;
                // Bytes that may be staged have a buffer of their own, so that they hold no larger one.
                let bytes = if request.partial.is_empty() && piece.len() >= size && request.is_eager(chunk) {
                    piece.split_to(size)
                } else {
                    let missing = size - request.partial.len();
                    request.partial.reserve(missing);
                    request.partial.extend_from_slice(&piece.split_to(missing.min(piece.len())));
                    if request.partial.len() < size {
                        break;
                    }
                    std::mem::take(&mut request.partial).freeze()
                };
                self.arrived(request, bytes).await;
            }
        }
    }

    /// All stored bytes of the first chunk of the rest are there.
    pub(super) async fn arrived(self: &Arc<Self>, request: &mut Request, bytes: Bytes) {
        let chunk = request.rest.chunks().start;
        let mut attempt = request.attempt;
        if std::mem::take(&mut request.mixed) {
            attempt.source = None;
        }
        let mut one = request.rest.split_to(chunk + 1);
        let mut priority = request.priority;
        if !request.is_eager(chunk) {
            match self.stage(one, bytes.clone()).await {
                Ok(()) => return,
                Err(wanted) => one = wanted,
            }
            self.neighbours.settled(bytes.len() as u64, true);
            priority = Priority::Demand;
        } else if priority != Priority::Demand && one.blob().is_any_wanted(chunk..chunk + 1) {
            priority = Priority::Demand;
        }
        let (fetcher, load) = (Arc::clone(self), Arc::clone(&request.load));
        // Not before it has arrived: sources that give nothing must not take the room of those that do.
        let room = match priority {
            Priority::Demand => self.room_to_decode(weight(bytes.len() as u64, 1)).await,
            _ => None,
        };
        self.decode(Job { fetcher, claim: one, bytes, priority, attempt, load, _room: room });
    }
}

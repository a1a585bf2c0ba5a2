//! Several unreliable sources as one dependable one.
//!
//! [`Upstream::open`] asks the first healthy source in the order configured, and goes on to the next when that fails:
//! ```text
//! open ── board: which source? ── request ── head of a good answer ── Body: pieces, measured and timed
//!   │        │ none: wait            │ slower than its usual: the same request at another healthy source too; first head wins
//!   └────────┴── until the blob's outage limit
//! ```
//! - A connection that fails, a timeout, 5xx and 429 close the source's *gate*: it is left alone for a pause that doubles each time. Then one request
//!   probes it. The first good head lets waiting readers in; the first answer that comes to its end opens the gate.
//! - Where other blobs come well from a source meanwhile, only the blob's own gate at that source closes.
//! - A source that does not have a blob, refuses or sends wrong bytes is skipped for that blob alone.
//! - A blob that no source serves is in an *outage*. Its readers wait until the limit, counted from the first failure without an answer
//!   since that came to its end; then opens of it fail at once for some seconds, except for one at a time that probes.
//!
//! All of that is decided in [`board`], under one lock that is never held while something is awaited.

mod board;
mod body;
mod error;
mod gate;
mod meter;
pub(crate) mod pace;
mod request;
#[cfg(test)]
mod tests;
mod trial;

use std::fmt;
use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lazo_format::{BlobRecord, Digest};
use tokio::sync::Notify;
use tokio::time::{self, Instant};

use crate::metrics::{Metrics, SourceMetrics};
use crate::source::{BlobSource, ErrorKind, SourceError};
use board::{Board, Choice};
pub use body::Body;
pub use error::{Cause, Reason, Tried, UpstreamError};
use meter::Meter;
pub use meter::Speed;
use trial::Trial;

/// A source of an [`Upstream`]: its place in the order configured, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(usize);

/// Whether somebody waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Urgency {
    /// A reader does: wait through an outage, up to its limit.
    Waiting,
    /// Nobody does: one round over the healthy sources.
    Ahead,
}

/// How patient a mount is with its sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Longest time from a request to the head of its answer, connection and login included. 10 s: three lost packets in a row are
    /// repeated by then, and a registry that reads from cold storage has answered.
    pub first_byte_timeout: Duration,
    /// Longest time between two pieces of an answer. 10 s, for the same reasons.
    pub stall_timeout: Duration,
    /// How long a reader waits for a blob that no source serves. 60 s: a registry restarts, a load balancer moves and a cable is plugged in again
    /// within that, and an error is told before the programs' own patience ends.
    pub outage_limit: Duration,
    /// Whether a request that takes clearly longer than usual is made a second time at another source.
    pub hedge: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            first_byte_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(10),
            outage_limit: Duration::from_secs(60),
            hedge: true,
        }
    }
}

/// How often the log says that an image's sources are too slow.
const TELL_SLOW: Duration = Duration::from_secs(60);

/// The sources of one mount.
#[derive(Clone)]
pub struct Upstream(Arc<Shared>);

struct Shared {
    /// In the order configured; a [`SourceId`] is a place in it.
    sources: Box<[Named]>,
    policy: Policy,
    board: Mutex<Board>,
    /// Something happened that those who wait, for a source or to hedge, should look at.
    changed: Notify,
    metrics: Arc<Metrics>,
    /// When the log last said that something came too slowly.
    slow_told: Mutex<Option<Instant>>,
}

/// A source and what is measured of it.
struct Named {
    name: Arc<str>,
    source: Arc<dyn BlobSource>,
    meter: Arc<Meter>,
    metrics: SourceMetrics,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.sources.iter().map(|named| &named.name).collect();
        f.debug_struct("Upstream").field("sources", &names).field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl Upstream {
    /// Sources in the order in which they are to be asked; at least one.
    #[must_use]
    pub fn new(sources: Vec<Arc<dyn BlobSource>>, policy: Policy, metrics: Arc<Metrics>) -> Self {
        let named = |source: Arc<dyn BlobSource>| Named {
            name: source.name().into(),
            meter: Meter::new(),
            metrics: metrics.source(source.name()),
            source,
        };
        let sources: Box<[_]> = sources.into_iter().map(named).collect();
        let board = Mutex::new(Board::new(sources.len(), &policy));
        let (changed, slow_told) = (Notify::new(), Mutex::default());
        Self(Arc::new(Shared { sources, policy, board, changed, metrics, slow_told }))
    }

    /// Opens a range of a blob at the best source, but at none of `avoid`: those whose bytes for this range were wrong.
    ///
    /// A body can still fail. Then the caller keeps what came of it and opens the rest; this one makes sure that it is another source's
    /// turn, or that there is a pause.
    ///
    /// # Errors
    /// [`Urgency::Waiting`]: no source gave the blob for the outage limit, or none ever will. Comes no later than the outage limit and one
    /// first-byte timeout after the call. [`Urgency::Ahead`]: no source is healthy, or each has failed once.
    pub async fn open(
        &self,
        blob: &BlobRecord,
        range: Range<u64>,
        urgency: Urgency,
        avoid: &[SourceId],
    ) -> Result<Body, UpstreamError> {
        let shared = &self.0;
        let mut trial = Trial::new(shared, blob.digest, urgency, avoid);
        loop {
            let mut changed = pin!(shared.changed.notified());
            changed.as_mut().enable();
            let choice = shared.board().choose(&mut trial, Instant::now());
            match choice {
                Choice::Go(pass) => {
                    if let Some((ticket, stream)) = request::attempt(shared, pass, &mut trial, blob, &range).await {
                        return Ok(Body::new(ticket, stream, range.end.saturating_sub(range.start), avoid));
                    }
                }
                Choice::Wait(until) => drop(time::timeout_at(until, changed).await),
                Choice::Fail(Reason::Outage) => return Err(shared.run_out(&mut trial)),
                Choice::Fail(reason) => return Err(trial.error(reason)),
            }
        }
    }

    /// A chunk of a blob did not verify that came from this source. It is not asked for the blob for some time, unless no other can be.
    pub fn wrong_bytes(&self, source: SourceId, blob: &BlobRecord) {
        self.0.named(source).metrics.wrong_chunks.inc();
        let error = SourceError::new(ErrorKind::BadAnswer, WrongBytes);
        let change = self.0.board().skip(source, blob.digest, (&error).into(), Instant::now());
        if change == board::Change::Skipped {
            self.0.skipped(source, blob.digest, &error);
        }
    }

    /// What was measured lately of the source that would serve now.
    #[must_use]
    pub fn speed(&self) -> Speed {
        let source = self.0.board().serving();
        self.0.named(source).meter.speed()
    }

    /// A source's name, as it is shown.
    #[must_use]
    pub fn name(&self, source: SourceId) -> &str {
        &self.0.named(source).name
    }

    /// How many sources there are.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.0.sources.len()
    }

    /// The name of the source that would serve now.
    #[must_use]
    pub fn serving(&self) -> &str {
        let source = self.0.board().serving();
        self.name(source)
    }

    /// How patient this one is.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.0.policy
    }
}

#[derive(Debug, thiserror::Error)]
#[error("its bytes did not match the chunk index")]
struct WrongBytes;

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn named(&self, source: SourceId) -> &Named {
        &self.sources[source.0]
    }

    /// An open fails as its time is over.
    fn run_out(&self, trial: &mut Trial<'_>) -> UpstreamError {
        let error = trial.error(Reason::Outage);
        let first = trial.urgency == Urgency::Waiting && self.board().run_out(trial, Instant::now());
        if first {
            self.metrics.outages.inc();
            tracing::error!(blob = %error.blob, %error, "the outage limit of a blob ran out; its reads fail");
        }
        error
    }

    fn down(&self, source: SourceId, error: &SourceError, pause: Duration) {
        let named = self.named(source);
        let error = error as &dyn std::error::Error;
        tracing::warn!(source = %named.name, error, ?pause, "a source failed; it is left alone until a probe succeeds");
    }

    /// An answer was given up as it came too slowly; nobody waited for it.
    fn too_slow(&self, source: SourceId, blob: Digest) {
        let named = self.named(source);
        named.metrics.slow.inc();
        let now = Instant::now();
        let mut told = self.slow_told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| now - told >= TELL_SLOW) {
            *told = Some(now);
            let least = pace::LEAST_AHEAD;
            tracing::warn!(source = %named.name, %blob, least, "what is fetched ahead comes too slowly; it is left for later");
        }
    }

    fn back(&self, source: SourceId, tell: bool) {
        let named = self.named(source);
        named.metrics.up.set(true);
        if tell {
            tracing::info!(source = %named.name, "a source is back");
        }
        self.changed.notify_waiters();
    }

    fn skipped(&self, source: SourceId, blob: Digest, error: &SourceError) {
        let (source, cause) = (&self.named(source).name, error as &dyn std::error::Error);
        match error.kind {
            // Usual for a mirror that fills as it is used.
            ErrorKind::NotFound => tracing::debug!(%source, %blob, error = cause, "a source does not have a blob"),
            _ => tracing::warn!(%source, %blob, error = cause, "a source is not asked for a blob for some time"),
        }
    }
}

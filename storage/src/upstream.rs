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
//! - A source that ignores ranges, and sends whole blobs, is asked when no other is well. [`Body::is_whole`] tells what it sends.
//!
//! All of that is decided in [`board`], under one lock that is never held while something is awaited.
//!
//! Sources come and go while blobs are read ([`Upstream::add`], [`Upstream::remove`]): whoever waits is told of a new one, and what is under
//! way at one that goes comes to its end.

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
mod trouble;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lazo_base::lines::Lines;
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
pub use trouble::Trouble;

/// A source of an [`Upstream`]: a number that no other source of it has had, from 0. Those added later have greater ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(u64);

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
    /// Those that may be asked, in their order. All of them are known to the board, too.
    sources: Mutex<Sources>,
    policy: Policy,
    board: Mutex<Board>,
    /// Something happened that those who wait, for a source or to hedge, should look at.
    changed: Notify,
    metrics: Arc<Metrics>,
    /// When the log last said that something came too slowly.
    slow_told: Mutex<Option<Instant>>,
    /// Lines of single blobs, of which an image may have many.
    lines: Lines,
}

#[derive(Default)]
struct Sources {
    named: BTreeMap<SourceId, Arc<Named>>,
    next: u64,
}

/// A source and what is measured of it.
struct Named {
    name: Arc<str>,
    source: Arc<dyn BlobSource>,
    meter: Arc<Meter>,
    metrics: SourceMetrics,
    /// The log has said that it ignores ranges.
    whole_told: AtomicBool,
}

impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Named").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.listed().into_iter().map(|(_, named)| Arc::clone(&named.name)).collect();
        f.debug_struct("Upstream").field("sources", &names).field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl Upstream {
    /// Sources in the order in which they are to be asked.
    #[must_use]
    pub fn new(sources: Vec<Arc<dyn BlobSource>>, policy: Policy, metrics: Arc<Metrics>) -> Self {
        let board = Mutex::new(Board::new(&policy));
        let (changed, slow_told) = (Notify::new(), Mutex::default());
        let upstream = Self(Arc::new(Shared {
            sources: Mutex::default(),
            policy,
            board,
            changed,
            metrics,
            slow_told,
            lines: Lines::new(),
        }));
        upstream.add(sources);
        upstream
    }

    /// Adds sources behind those that are there. Opens that wait hear of them.
    pub fn add(&self, sources: Vec<Arc<dyn BlobSource>>) -> Vec<SourceId> {
        let shared = &self.0;
        let ids: Vec<SourceId> = {
            let mut known = shared.sources();
            let mut add = |source: Arc<dyn BlobSource>| {
                let id = SourceId(known.next);
                known.next += 1;
                let (name, metrics) = (source.name().into(), shared.metrics.source(source.name()));
                let (meter, whole_told) = (Meter::new(), AtomicBool::new(false));
                known.named.insert(id, Arc::new(Named { name, source, meter, metrics, whole_told }));
                id
            };
            sources.into_iter().map(&mut add).collect()
        };
        let mut board = shared.board();
        ids.iter().for_each(|id| board.add(*id));
        drop(board);
        shared.changed.notify_waiters();
        ids
    }

    /// Asks these sources no more. What they are sending already is taken.
    pub fn remove(&self, sources: &[SourceId]) {
        let shared = &self.0;
        let mut board = shared.board();
        sources.iter().for_each(|id| board.remove(*id));
        drop(board);
        let mut known = shared.sources();
        sources.iter().for_each(|id| drop(known.named.remove(id)));
        drop(known);
        // Whoever waits for one of them waits for nothing.
        shared.changed.notify_waiters();
    }

    /// There is reason to believe that these sources give what they did not give before, such as a new login: what they refused, lacked or
    /// could not send is asked of them again in their turn.
    pub fn hurry(&self, sources: &[SourceId]) {
        let (mut board, now) = (self.0.board(), Instant::now());
        sources.iter().for_each(|id| board.hurry(*id, now));
        drop(board);
        self.0.changed.notify_waiters();
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
                    if let Some((ticket, answer)) = request::attempt(shared, pass, &mut trial, blob, &range).await {
                        let asked = range.end.saturating_sub(range.start);
                        let length = if answer.whole { blob.compressed_size } else { asked };
                        return Ok(Body::new(ticket, answer, length, avoid));
                    }
                }
                Choice::Wait(until) => drop(time::timeout_at(until, changed).await),
                Choice::Fail(Reason::Outage) => return Err(shared.run_out(&mut trial)),
                Choice::Fail(reason) => return Err(trial.error(reason)),
            }
        }
    }

    /// Whether a request for a blob would now go to a source that ignores ranges, as there is no other.
    #[must_use]
    pub fn expects_whole(&self, blob: &BlobRecord) -> bool {
        self.0.board().expects_whole(blob.digest, Instant::now())
    }

    /// Whether another source than this one would send just the ranges of a blob that are asked for, as far as is known.
    #[must_use]
    pub(crate) fn heeds_elsewhere(&self, source: SourceId, blob: &BlobRecord) -> bool {
        self.0.board().heeds_elsewhere(source, blob.digest, Instant::now())
    }

    /// A chunk of a blob did not verify that came from this source. It is not asked for the blob for some time, unless no other can be.
    pub fn wrong_bytes(&self, source: SourceId, blob: &BlobRecord) {
        let Some(named) = self.0.named(source) else { return };
        named.metrics.wrong_chunks.inc();
        let error = SourceError::new(ErrorKind::BadAnswer, WrongBytes);
        let change = self.0.board().skip(source, blob.digest, (&error).into(), Instant::now());
        if change == board::Change::Skipped {
            skipped(&named, &self.0.lines, blob.digest, &error);
        }
    }

    /// What was measured lately of the source that would serve now.
    #[must_use]
    pub fn speed(&self) -> Speed {
        self.0.serving().map_or(meter::UNMEASURED, |named| named.meter.speed())
    }

    /// A source's name, as it is shown.
    #[must_use]
    pub fn name(&self, source: SourceId) -> Arc<str> {
        self.0.named(source).map_or_else(|| "a source that was removed".into(), |named| Arc::clone(&named.name))
    }

    /// How many sources there are.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.0.sources().named.len()
    }

    /// The name of the source that would serve now.
    #[must_use]
    pub fn serving(&self) -> Arc<str> {
        self.0.serving().map_or_else(|| "no source".into(), |named| Arc::clone(&named.name))
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

    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A source, unless it was removed.
    fn named(&self, source: SourceId) -> Option<Arc<Named>> {
        self.sources().named.get(&source).cloned()
    }

    /// All sources, in their order.
    fn listed(&self) -> Vec<(SourceId, Arc<Named>)> {
        self.sources().named.iter().map(|(id, named)| (*id, Arc::clone(named))).collect()
    }

    fn serving(&self) -> Option<Arc<Named>> {
        let source = self.board().serving()?;
        self.named(source)
    }

    /// An open fails as its time is over.
    fn run_out(&self, trial: &mut Trial<'_>) -> UpstreamError {
        let error = trial.error(Reason::Outage);
        let first = trial.urgency == Urgency::Waiting && self.board().run_out(trial, Instant::now());
        if first {
            self.metrics.outages.inc();
            self.lines.write(|left_out| {
                tracing::error!(blob = %error.blob, %error, left_out, "the outage limit of a blob ran out; its reads fail");
            });
        }
        error
    }

    /// An answer was given up as it came too slowly; nobody waited for it.
    fn too_slow(&self, named: &Named, blob: Digest) {
        named.metrics.slow.inc();
        let now = Instant::now();
        let mut told = self.slow_told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| now - told >= TELL_SLOW) {
            *told = Some(now);
            let least = pace::LEAST_AHEAD;
            tracing::warn!(source = %named.name, %blob, least, "what is fetched ahead comes too slowly; it is left for later");
        }
    }

    fn back(&self, named: &Named, tell: bool) {
        named.metrics.up.set(true);
        if tell {
            tracing::info!(source = %named.name, "a source is back");
        }
        self.changed.notify_waiters();
    }
}

/// An answer is all of a blob.
fn sends_whole(named: &Named) {
    named.metrics.whole.inc();
    if !named.whole_told.swap(true, Ordering::Relaxed) {
        let source = &named.name;
        tracing::warn!(%source, "a source ignores ranges and sends whole blobs; what it sends is kept, and other sources are preferred");
    }
}

fn down(named: &Named, error: &SourceError, pause: Duration) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(source = %named.name, error, ?pause, "a source failed; it is left alone until a probe succeeds");
}

fn skipped(named: &Named, lines: &Lines, blob: Digest, error: &SourceError) {
    let (source, cause) = (&named.name, error as &dyn std::error::Error);
    match error.kind {
        // Usual for a mirror that fills as it is used.
        ErrorKind::NotFound => tracing::debug!(%source, %blob, error = cause, "a source does not have a blob"),
        _ => lines.write(|left_out| {
            tracing::warn!(%source, %blob, error = cause, left_out, "a source is not asked for a blob for some time");
        }),
    }
}

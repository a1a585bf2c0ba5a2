//! One request to one source, from leave to end; and two that race.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{self, Either};
use lazo_format::{BlobRecord, Digest};
use tokio::time::{self, Instant};

use super::board::{Change, Pass};
use super::trial::Trial;
use super::{Shared, SourceId, Urgency};
use crate::source::{ByteStream, ErrorKind, SourceError};

/// Patience with a probe where another source is healthy: it has a connection to make, and its reader is not to pay much for it.
const PROBE_PATIENCE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));

/// A request under way. What becomes of it is told by one of its methods; to drop it says only that it was given up.
#[derive(Debug)]
pub(super) struct Ticket {
    shared: Arc<Shared>,
    pub(super) pass: Pass,
    blob: Digest,
    urgency: Urgency,
    started: Instant,
    /// When it last got on.
    progress: Instant,
}

impl Ticket {
    pub(super) fn new(shared: &Arc<Shared>, pass: Pass, blob: Digest, urgency: Urgency) -> Self {
        let now = Instant::now();
        Self { shared: Arc::clone(shared), pass, blob, urgency, started: now, progress: now }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn source(&self) -> SourceId {
        self.pass.source
    }

    pub(super) fn urgency(&self) -> Urgency {
        self.urgency
    }

    pub(super) fn blob(&self) -> Digest {
        self.blob
    }

    /// A good head came.
    fn answered(&mut self) {
        let now = Instant::now();
        self.progress = now;
        let named = self.shared.named(self.source());
        named.meter.first_byte(now - self.started);
        named.metrics.first_byte.observe(now - self.started);
        if self.shared.board().answered(self.source(), self.blob, self.started, now) {
            self.shared.changed.notify_waiters();
        }
    }

    /// Some bytes came.
    pub(super) fn progressed(&mut self) {
        self.progress = Instant::now();
    }

    /// All bytes came.
    pub(super) fn completed(self) {
        let back = self.shared.board().completed(self.source(), self.blob, self.started, Instant::now());
        if let Some(tell) = back {
            self.shared.back(self.source(), tell);
        }
    }

    /// The source failed.
    pub(super) fn failed(self, error: &SourceError) {
        self.shared.fail(&self.pass, self.blob, error, self.started);
        if self.urgency == Urgency::Waiting && error.kind.is_outage() {
            self.shared.board().suffer(self.blob, self.progress, Instant::now());
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.shared.board().release(&self.pass, self.blob) {
            self.shared.changed.notify_waiters();
        }
    }
}

impl Shared {
    /// A source failed; tells those whom it concerns.
    fn fail(&self, pass: &Pass, blob: Digest, error: &SourceError, started: Instant) {
        let named = self.named(pass.source);
        named.metrics.failed(error.kind);
        let change = self.board().failed(pass.source, blob, error, started, Instant::now());
        let up = self.board().is_up(pass.source);
        named.metrics.up.set(up);
        match change {
            Change::Down(pause) => self.down(pass.source, error, pause),
            Change::Skipped => self.skipped(pass.source, blob, error),
            Change::None => {}
        }
        self.changed.notify_waiters();
    }

    /// A request that began at `started` was given up as another source was faster.
    fn lose(&self, pass: &Pass, blob: Digest, started: Instant) {
        let waited = Instant::now() - started;
        self.named(pass.source).meter.no_first_byte(waited);
        let hangs = self.board().lost(pass);
        if hangs {
            self.fail(pass, blob, &SourceError::new(ErrorKind::Timeout, Outrun(waited)), started);
        }
    }
}

/// The head of an answer, or why there is none.
type Head = Result<(Ticket, ByteStream), SourceError>;

/// One attempt to get a range: one request, and a second one elsewhere when that takes clearly longer than usual.
pub(super) async fn attempt(
    shared: &Arc<Shared>,
    pass: Pass,
    trial: &mut Trial<'_>,
    blob: &BlobRecord,
    range: &Range<u64>,
) -> Option<(Ticket, ByteStream)> {
    let (urgency, limit) = (trial.urgency, trial.give_up + shared.policy.first_byte_timeout);
    let request = |pass| Box::pin(head(Ticket::new(shared, pass, blob.digest, urgency), blob, range.clone(), limit));
    let started = Instant::now();
    let mut first = request(pass);
    let second_pass = tokio::select! {
        biased;
        head = &mut first => return head.map_err(|error| trial.failed(pass.source, &error)).ok(),
        second = hedge(shared, trial, &pass, started) => second,
    };
    shared.named(second_pass.source).metrics.hedged.inc();
    let (head, rest, late, late_pass) = match future::select(first, request(second_pass)).await {
        Either::Left((head, second)) => (head, second, pass, second_pass),
        Either::Right((head, first)) => (head, first, second_pass, pass),
    };
    match head {
        Ok(won) => {
            drop(rest);
            if late_pass == pass {
                shared.lose(&pass, blob.digest, started);
            }
            Some(won)
        }
        Err(error) => {
            trial.failed(late.source, &error);
            rest.await.map_err(|error| trial.failed(late_pass.source, &error)).ok()
        }
    }
}

/// Waits until a second request is to be made beside one that began at `started`, and gets leave for it.
async fn hedge(shared: &Arc<Shared>, trial: &Trial<'_>, first: &Pass, started: Instant) -> Pass {
    let usual = shared.named(first.source).meter.patience();
    let patience = if first.probe { usual.clamp(PROBE_PATIENCE.0, PROBE_PATIENCE.1) } else { usual };
    let allowed = shared.policy.hedge || first.probe;
    loop {
        let mut changed = pin!(shared.changed.notified());
        changed.as_mut().enable();
        let now = Instant::now();
        let slow = now >= started + patience;
        let second = shared.board().hedge(trial, first, slow && allowed, now);
        match second {
            Some(second) => return second,
            None if slow => changed.await,
            None => drop(time::timeout_at(started + patience, changed).await),
        }
    }
}

/// One request, up to the head of its answer.
async fn head(mut ticket: Ticket, blob: &BlobRecord, range: Range<u64>, limit: Instant) -> Head {
    let shared = Arc::clone(ticket.shared());
    let named = shared.named(ticket.source());
    named.metrics.requests.inc();
    let patience = shared.policy.first_byte_timeout;
    let limit = limit.min(Instant::now() + patience);
    let head = time::timeout_at(limit, named.source.open_range(blob, range)).await;
    match head.unwrap_or_else(|_| Err(SourceError::new(ErrorKind::Timeout, NoAnswer(patience)))) {
        Ok(stream) => {
            ticket.answered();
            Ok((ticket, stream))
        }
        Err(error) => {
            ticket.failed(&error);
            Err(error)
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
struct NoAnswer(Duration);

#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:.1?}, when another source had given one")]
struct Outrun(Duration);

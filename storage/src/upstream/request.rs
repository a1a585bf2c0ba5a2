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
use super::{Named, Shared, SourceId, Urgency, down, sends_whole, skipped};
use crate::source::{Answer, ErrorKind, SourceError};

/// Patience with a probe where another source is healthy: it has a connection to make, and its reader is not to pay much for it.
const PROBE_PATIENCE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));

/// A request under way. What becomes of it is told by one of its methods; to drop it says only that it was given up.
#[derive(Debug)]
pub(super) struct Ticket {
    shared: Arc<Shared>,
    named: Arc<Named>,
    pub(super) pass: Pass,
    blob: Digest,
    urgency: Urgency,
    started: Instant,
    /// When it last got on.
    progress: Instant,
}

impl Ticket {
    fn new(shared: &Arc<Shared>, named: Arc<Named>, pass: Pass, blob: Digest, urgency: Urgency) -> Self {
        let now = Instant::now();
        Self { shared: Arc::clone(shared), named, pass, blob, urgency, started: now, progress: now }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn source(&self) -> SourceId {
        self.pass.source
    }

    pub(super) fn named(&self) -> &Named {
        &self.named
    }

    pub(super) fn urgency(&self) -> Urgency {
        self.urgency
    }

    pub(super) fn set_urgency(&mut self, urgency: Urgency) {
        self.urgency = urgency;
    }

    pub(super) fn blob(&self) -> Digest {
        self.blob
    }

    /// A good head came.
    fn answered(&mut self) {
        let now = Instant::now();
        self.progress = now;
        self.named.meter.first_byte(now - self.started);
        self.named.metrics.first_byte.observe(now - self.started);
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
            self.shared.back(&self.named, tell);
        }
    }

    /// The source failed.
    pub(super) fn failed(self, error: &SourceError) {
        self.shared.fail(&self.named, &self.pass, self.blob, error, self.started);
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
    fn fail(&self, named: &Named, pass: &Pass, blob: Digest, error: &SourceError, started: Instant) {
        named.metrics.failed(error.kind);
        let change = self.board().failed(pass.source, blob, error, started, Instant::now());
        let up = self.board().is_up(pass.source);
        named.metrics.up.set(up);
        match change {
            Change::Down(pause) => down(named, error, pause),
            Change::Skipped => skipped(named, &self.lines, blob, error),
            Change::None => {}
        }
        self.changed.notify_waiters();
    }

    /// A request that began at `started` was given up as another source was faster.
    fn lose(&self, pass: &Pass, blob: Digest, started: Instant) {
        let waited = Instant::now() - started;
        let Some(named) = self.named(pass.source) else { return };
        named.meter.no_first_byte(waited);
        let hangs = self.board().lost(pass);
        if hangs {
            self.fail(&named, pass, blob, &SourceError::new(ErrorKind::Timeout, Outrun(waited)), started);
        }
    }
}

/// The head of an answer, or why there is none.
type Head = Result<(Ticket, Answer), SourceError>;

/// One attempt to get a range: one request, and a second one elsewhere when that takes clearly longer than usual.
pub(super) async fn attempt(
    shared: &Arc<Shared>,
    pass: Pass,
    trial: &mut Trial<'_>,
    blob: &BlobRecord,
    range: &Range<u64>,
) -> Option<(Ticket, Answer)> {
    let (urgency, limit) = (trial.urgency, trial.give_up + shared.policy.first_byte_timeout);
    let request = |named, pass| {
        Box::pin(head(Ticket::new(shared, named, pass, blob.digest, urgency), blob, range.clone(), limit))
    };
    let started = Instant::now();
    // One that was removed meanwhile is not chosen again.
    let named = shared.named(pass.source)?;
    let mut first = request(Arc::clone(&named), pass);
    let second_pass = tokio::select! {
        biased;
        head = &mut first => return head.map_err(|error| trial.failed(pass.source, &error)).ok(),
        second = hedge(shared, trial, &named, &pass, started) => second,
    };
    let Some(second) = shared.named(second_pass.source) else {
        return first.await.map_err(|error| trial.failed(pass.source, &error)).ok();
    };
    second.metrics.hedged.inc();
    let (head, rest, late, late_pass) = match future::select(first, request(second, second_pass)).await {
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
async fn hedge(shared: &Arc<Shared>, trial: &Trial<'_>, named: &Named, first: &Pass, started: Instant) -> Pass {
    let usual = named.meter.patience();
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
    let named = Arc::clone(&ticket.named);
    named.metrics.requests.inc();
    let patience = shared.policy.first_byte_timeout;
    let limit = limit.min(Instant::now() + patience);
    let head = time::timeout_at(limit, named.source.open(blob, range.clone())).await;
    match head.unwrap_or_else(|_| Err(SourceError::new(ErrorKind::Timeout, NoAnswer(patience)))) {
        Ok(answer) => {
            ticket.answered();
            if range != (0..blob.compressed_size) {
                shared.board().heeds_ranges(ticket.source(), !answer.whole, Instant::now());
            }
            if answer.whole {
                sends_whole(&named);
            }
            Ok((ticket, answer))
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

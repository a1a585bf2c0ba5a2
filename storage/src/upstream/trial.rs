//! What one open has tried so far.

use lazo_format::Digest;
use tokio::time::Instant;

use super::board::Board;
use super::error::{Cause, Reason, Tried, UpstreamError};
use super::gate::Token;
use super::{Shared, SourceId, Urgency};
use crate::source::SourceError;

/// One open's state.
#[derive(Debug)]
pub(super) struct Trial<'a> {
    shared: &'a Shared,
    pub(super) blob: Digest,
    pub(super) urgency: Urgency,
    avoid: &'a [SourceId],
    opened: Instant,
    /// When the wait is over: from then on each source that is well is asked once more at most.
    pub(super) give_up: Instant,
    /// By source, what it answered; and whether it is not to be asked again.
    causes: Vec<Option<Cause>>,
    spent: Vec<bool>,
    member: Option<Member>,
}

/// Membership in a blob's outage.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) outage: Token,
    /// When the outage limit runs out.
    pub(super) deadline: Instant,
}

impl<'a> Trial<'a> {
    pub(super) fn new(shared: &'a Shared, blob: Digest, urgency: Urgency, avoid: &'a [SourceId]) -> Self {
        let (opened, sources) = (Instant::now(), shared.sources.len());
        Self {
            shared,
            blob,
            urgency,
            avoid,
            opened,
            give_up: opened + shared.policy.outage_limit,
            causes: vec![None; sources],
            spent: vec![false; sources],
            member: None,
        }
    }

    /// Whether this open may not ask a source (again).
    pub(super) fn is_barred(&self, source: SourceId) -> bool {
        self.spent[source.0] || self.avoid.contains(&source)
    }

    /// Whether a source that is not asked again may serve another open.
    pub(super) fn leaves_hope(&self) -> bool {
        let hope = |cause: &Option<Cause>| cause.as_ref().is_some_and(|cause| cause.kind.is_outage());
        self.causes.iter().zip(&self.spent).any(|(cause, &spent)| spent && hope(cause))
    }

    /// A source failed. It is asked again by an open that waits, where that may help.
    pub(super) fn failed(&mut self, source: SourceId, error: &SourceError) {
        let waits = self.urgency == Urgency::Waiting && Instant::now() < self.give_up;
        self.spent[source.0] = !waits || !error.kind.is_outage();
        self.causes[source.0] = Some(error.into());
    }

    /// Counts this open among those who wait in the blob's outage. Returns when the limit runs out.
    pub(super) fn suffer(&mut self, board: &mut Board, since: Instant, now: Instant) -> Instant {
        let member = board.suffer(self.blob, since, now);
        if self.member.is_none_or(|known| known.outage != member.outage) {
            board.join(self.blob, &member);
            self.member = Some(member);
        }
        member.deadline
    }

    pub(super) fn error(&self, reason: Reason) -> UpstreamError {
        let (board, now) = (self.shared.board(), Instant::now());
        let cause = |id: SourceId| self.causes[id.0].clone().or_else(|| board.cause(id, self.blob, now));
        let tried =
            |(id, named): (usize, &super::Named)| Tried { source: named.name.clone(), cause: cause(SourceId(id)) };
        UpstreamError {
            blob: self.blob,
            reason,
            tried: self.shared.sources.iter().enumerate().map(tried).collect(),
            waited: now - self.opened,
        }
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if let Some(member) = &self.member {
            self.shared.board().leave(self.blob, member, Instant::now());
        }
    }
}

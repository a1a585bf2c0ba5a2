//! What one open has tried so far.

use std::collections::BTreeMap;

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
    /// Sources that were asked in vain.
    failed: BTreeMap<SourceId, Failed>,
    member: Option<Member>,
}

/// What a source answered.
#[derive(Debug)]
struct Failed {
    cause: Cause,
    /// It is not to be asked again.
    spent: bool,
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
        let opened = Instant::now();
        Self {
            shared,
            blob,
            urgency,
            avoid,
            opened,
            give_up: opened + shared.policy.outage_limit,
            failed: BTreeMap::new(),
            member: None,
        }
    }

    /// Whether this open may not ask a source (again).
    pub(super) fn is_barred(&self, source: SourceId) -> bool {
        self.failed.get(&source).is_some_and(|failed| failed.spent) || self.avoid.contains(&source)
    }

    /// Whether a source that is not asked again may serve another open.
    pub(super) fn leaves_hope(&self) -> bool {
        self.failed.values().any(|failed| failed.spent && failed.cause.kind.is_outage())
    }

    /// A source failed. It is asked again by an open that waits, where that may help.
    pub(super) fn failed(&mut self, source: SourceId, error: &SourceError) {
        let waits = self.urgency == Urgency::Waiting && Instant::now() < self.give_up;
        let spent = !waits || !error.kind.is_outage();
        self.failed.insert(source, Failed { cause: error.into(), spent });
    }

    /// Counts this open among those who wait in the blob's outage. Returns when the limit runs out.
    pub(super) fn suffer(&mut self, board: &mut Board, since: Instant, now: Instant) -> Instant {
        let member = board.suffer(self.blob, since, now);
        if self.member.is_none_or(|known| known.outage != member.outage) {
            board.join(self.blob, &member);
            if self.member.replace(member).is_none() {
                self.shared.metrics.outage_requests.inc();
            }
        }
        member.deadline
    }

    pub(super) fn error(&self, reason: Reason) -> UpstreamError {
        let listed = self.shared.listed();
        let (board, now) = (self.shared.board(), Instant::now());
        let told = |id| self.failed.get(&id).map(|failed| failed.cause.clone());
        let cause = |id| told(id).or_else(|| board.cause(id, self.blob, now));
        UpstreamError {
            blob: self.blob,
            reason,
            tried: listed.iter().map(|(id, named)| Tried { source: named.name.clone(), cause: cause(*id) }).collect(),
            waited: now - self.opened,
        }
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if let Some(member) = &self.member {
            self.shared.board().leave(self.blob, member, Instant::now());
            self.shared.metrics.outage_requests.dec();
        }
    }
}

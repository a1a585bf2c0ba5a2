//! What is known about sources and blobs, and the choice that follows from it.

mod sources;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use lazo_format::Digest;
use tokio::time::Instant;

use super::error::{Cause, Reason};
use super::gate::{Gate, Passage, Token};
use super::trial::{Member, Trial};
use super::{Policy, SourceId, Urgency};
use crate::source::{ErrorKind, SourceError};

/// How long a source is not asked for a blob that it does not have, refuses, or sent wrong. A mirror may have it by then.
const SKIP: Duration = Duration::from_secs(60);

/// How long not even when no other source can be asked: new credentials, a new certificate or a pushed image work soon, and a source that
/// refuses is not flooded. Sources whose bytes or answers were wrong are asked at once then, as other ranges may well be right.
const SKIP_ALONE: Duration = Duration::from_secs(5);

/// How long opens of a blob fail at once after its outage limit ran out, unless one can probe: longer than a kernel repeats a failed read.
const FAIL_FAST: Duration = Duration::from_secs(5);

/// How long an outage is remembered when nobody waits, as between two requests of one reader.
const OUTAGE_MEMORY: Duration = Duration::from_secs(5);

/// How long a blob's failure at a source tells that a further one is the blob's fault and not the source's.
const PAIR_MEMORY: Duration = Duration::from_secs(60);

/// Hedged requests for each request: the most that hedging may add to a source's load, which matters most when all are slow.
const HEDGE_SHARE: f64 = 0.1;

/// Hedged requests that can be saved up: enough for a start that meets a hung source with its first requests.
const HEDGE_BURST: f64 = 4.0;

/// Hedges in a row that a source may lose before it counts as down: then it hangs, rather than is slow at times.
const MAX_LOST: u32 = 3;

/// Least time between two log lines that a source went down: one that fails now and then, and works in between, is not to fill the log.
const QUIET: Duration = Duration::from_secs(10);

/// Everything known.
#[derive(Debug)]
pub(super) struct Board {
    /// In the order in which they are asked.
    sources: BTreeMap<SourceId, Health>,
    blobs: HashMap<Digest, BlobHealth>,
    hedges: f64,
    next_token: Token,
    outage_limit: Duration,
}

/// A source.
#[derive(Debug, Default)]
struct Health {
    gate: Gate,
    cause: Option<Cause>,
    /// When a request last came to a good end.
    completed: Option<Instant>,
    /// Hedges lost since the last good head.
    lost: u32,
    /// When the log last said that it went down, and whether that still holds there.
    told: Option<Instant>,
    told_down: bool,
    /// It has ignored a range: until when it is taken for one that does.
    whole: Option<Instant>,
}

/// A blob, at all sources and at each.
#[derive(Debug, Default)]
struct BlobHealth {
    outage: Option<Outage>,
    pairs: HashMap<SourceId, Pair>,
}

/// A blob at a source.
#[derive(Debug, Default)]
struct Pair {
    gate: Gate,
    /// Began to fail, without a good end since.
    failing: Option<Instant>,
    skip: Option<Skip>,
}

#[derive(Debug)]
struct Skip {
    until: Instant,
    /// From when on it is asked when no other can be.
    alone: Instant,
    cause: Cause,
}

/// No source serves a blob, though some may yet.
#[derive(Debug)]
struct Outage {
    id: Token,
    since: Instant,
    /// Opens that wait in it, and when one last did.
    members: u32,
    seen: Instant,
    /// The limit has run out; opens fail at once.
    failing_until: Option<Instant>,
}

/// An [`Outage`] as others see it.
#[derive(Debug)]
pub(super) struct Missed {
    pub(super) blob: Digest,
    pub(super) since: Instant,
    pub(super) waiting: u32,
    pub(super) failing: bool,
}

/// What an open is to do next.
#[derive(Debug)]
pub(super) enum Choice {
    Go(Pass),
    Wait(Instant),
    Fail(Reason),
}

/// Leave to ask a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pass {
    pub(super) source: SourceId,
    pub(super) token: Token,
    /// Whether it finds out if the source works again.
    pub(super) probe: bool,
}

/// What a failure changes, for the log and the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The source is left alone for this long, and the log is to say so.
    Down(Duration),
    /// The source is not asked for the blob.
    Skipped,
    /// Nothing that was not known.
    None,
}

/// A source as it may be asked, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Well, or to be probed.
    Healthy,
    Answering,
    /// It is well, but ignores ranges.
    Whole,
    /// It gave a definite answer before.
    LastResort,
    /// Only as somebody would wait otherwise.
    Early,
}

impl BlobHealth {
    /// Whether there is nothing to say.
    fn is_dull(&self) -> bool {
        self.outage.is_none() && self.pairs.is_empty()
    }
}

impl Board {
    pub(super) fn new(policy: &Policy) -> Self {
        Self {
            sources: BTreeMap::new(),
            blobs: HashMap::new(),
            hedges: HEDGE_BURST,
            next_token: 0,
            outage_limit: policy.outage_limit,
        }
    }

    /// The source that an open asks next.
    pub(super) fn choose(&mut self, trial: &mut Trial, now: Instant) -> Choice {
        let (mut best, mut waiting, mut wake) = (None, false, trial.give_up);
        let early = trial.urgency == Urgency::Waiting && now <= trial.give_up;
        for source in self.sources.keys().copied().filter(|&source| !trial.is_barred(source)) {
            let (passage, skip) = self.look(source, trial.blob, now);
            let rank = match (passage, skip) {
                (_, Some(skip)) if skip.alone > now => continue,
                (Passage::Free | Passage::Due | Passage::Answering, None) if self.sends_whole(source, now) => {
                    Rank::Whole
                }
                (Passage::Free | Passage::Due, None) => Rank::Healthy,
                (Passage::Answering, None) => Rank::Answering,
                (Passage::Early, _) if early => Rank::Early,
                (Passage::Free | Passage::Due | Passage::Answering, Some(_)) => Rank::LastResort,
                (Passage::Early | Passage::Shut(_), _) => {
                    waiting = true;
                    if let Passage::Shut(Some(until)) = passage {
                        wake = wake.min(until);
                    }
                    continue;
                }
            };
            best = best.into_iter().chain([(rank, source)]).min();
        }
        match best {
            Some((_, source)) => {
                self.hedges = (self.hedges + HEDGE_SHARE).min(HEDGE_BURST);
                Choice::Go(self.enter(source, trial.blob, now))
            }
            None if !waiting && !trial.leaves_hope() => Choice::Fail(Reason::Refused),
            None if trial.urgency == Urgency::Ahead => Choice::Fail(Reason::Unhealthy),
            None => match self.wait(trial, now) {
                Some(deadline) => Choice::Wait(wake.min(deadline)),
                None => Choice::Fail(Reason::Outage),
            },
        }
    }

    /// A second source for a request under way at another, if there is a healthy one and `of` deserves it: because it probes, because its source
    /// went down meanwhile, or because it is slower than usual and the budget allows one more.
    pub(super) fn hedge(&mut self, trial: &Trial, of: &Pass, slow: bool, now: Instant) -> Option<Pass> {
        let source = self.other_healthy(trial.blob, of.source, |source| trial.is_barred(source), now)?;
        let down = !of.probe && !self.is_up(of.source);
        if down || (slow && of.probe) {
            return Some(self.enter(source, trial.blob, now));
        }
        if !slow || self.hedges < 1.0 {
            return None;
        }
        self.hedges -= 1.0;
        Some(self.enter(source, trial.blob, now))
    }

    /// The first other source that is well and may be asked for this blob.
    pub(super) fn other_healthy(
        &self,
        blob: Digest,
        than: SourceId,
        barred: impl Fn(SourceId) -> bool,
        now: Instant,
    ) -> Option<SourceId> {
        self.sources.keys().copied().find(|&source| {
            let (passage, skip) = self.look(source, blob, now);
            let well = passage == Passage::Free && skip.is_none() && !self.sends_whole(source, now);
            well && source != than && !barred(source)
        })
    }

    /// The first source that is well; the first of all when none is.
    pub(super) fn serving(&self) -> Option<SourceId> {
        let well = self.sources.iter().find(|(_, health)| health.gate.is_free());
        well.or_else(|| self.sources.first_key_value()).map(|(source, _)| *source)
    }

    pub(super) fn is_up(&self, source: SourceId) -> bool {
        self.sources.get(&source).is_some_and(|health| health.gate.is_free())
    }

    fn look(&self, source: SourceId, blob: Digest, now: Instant) -> (Passage, Option<&Skip>) {
        let passage = self.sources.get(&source).map_or(Passage::Free, |health| health.gate.passage(now));
        let Some(pair) = self.blobs.get(&blob).and_then(|blob| blob.pairs.get(&source)) else { return (passage, None) };
        (passage.and(pair.gate.passage(now)), pair.skip.as_ref().filter(|skip| skip.until > now))
    }

    fn enter(&mut self, source: SourceId, blob: Digest, now: Instant) -> Pass {
        let token = self.token();
        let mut probe = self.sources.get_mut(&source).is_some_and(|health| health.gate.enter(now, token));
        if let Some(pair) = self.blobs.get_mut(&blob).and_then(|blob| blob.pairs.get_mut(&source)) {
            probe |= pair.gate.enter(now, token);
            if let Some(skip) = pair.skip.as_mut().filter(|skip| skip.cause.kind != ErrorKind::BadAnswer) {
                skip.alone = now + SKIP_ALONE;
            }
        }
        Pass { source, token, probe }
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        self.next_token
    }

    /// A request is over or given up. Whether others may probe now.
    pub(super) fn release(&mut self, pass: &Pass, blob: Digest) -> bool {
        let source = self.sources.get_mut(&pass.source).is_some_and(|health| health.gate.end_probe(pass.token));
        let pair = self.blobs.get_mut(&blob).and_then(|blob| blob.pairs.get_mut(&pass.source));
        pair.is_some_and(|pair| pair.gate.end_probe(pass.token)) | source
    }

    /// The head of a good answer is there. Whether that is news for who waits.
    pub(super) fn answered(&mut self, source: SourceId, blob: Digest, started: Instant, now: Instant) -> bool {
        let Some(health) = self.sources.get_mut(&source) else { return false };
        health.lost = 0;
        let news = health.gate.answered(started, now);
        let pair = self.blobs.get_mut(&blob).and_then(|blob| blob.pairs.get_mut(&source));
        pair.is_some_and(|pair| pair.gate.answered(started, now)) | news
    }

    /// All bytes of a request came. Whether its source is back by that; if so, whether the log is to say so.
    pub(super) fn completed(
        &mut self,
        source: SourceId,
        digest: Digest,
        started: Instant,
        now: Instant,
    ) -> Option<bool> {
        let back = self.sources.get_mut(&source).and_then(|health| {
            health.completed = Some(now);
            let opened = health.gate.open(started);
            // A definite answer may have opened it before, of which the log says nothing.
            let back = opened || (health.told_down && health.gate.is_free());
            back.then(|| std::mem::take(&mut health.told_down))
        });
        if let Some(blob) = self.blobs.get_mut(&digest) {
            blob.outage = None;
            // Wrong bytes come with every sign of success.
            let keep = |skip: &Skip| skip.cause.kind == ErrorKind::BadAnswer && skip.until > now;
            if let Some(pair) = blob.pairs.get_mut(&source) {
                pair.failing = None;
                pair.gate.open(started);
                pair.skip = pair.skip.take().filter(keep);
            }
            self.tidy(digest);
        }
        back
    }

    /// A request has failed that began at `started`.
    pub(super) fn failed(
        &mut self,
        source: SourceId,
        blob: Digest,
        error: &SourceError,
        started: Instant,
        now: Instant,
    ) -> Change {
        let cause = Cause::from(error);
        let Some(health) = self.sources.get_mut(&source) else { return Change::None };
        if !error.kind.is_outage() {
            // An answer, if not the one hoped for.
            let alive = matches!(error.kind, ErrorKind::NotFound | ErrorKind::Denied | ErrorKind::BadAnswer);
            if alive {
                health.lost = 0;
                health.gate.open(started);
            }
            return self.skip(source, blob, cause, now);
        }
        let pair = self.blobs.entry(blob).or_default().pairs.entry(source).or_default();
        let failing = pair.failing.filter(|&since| now - since < PAIR_MEMORY).unwrap_or(started);
        pair.failing = Some(failing);
        // Where others succeeded since this blob began to fail, the blob is at fault, and its failures must not hold up the others.
        let blame_blob = error.kind != ErrorKind::Busy && health.completed.is_some_and(|completed| completed > failing);
        if blame_blob && health.gate.is_free() {
            pair.gate.failed(started, now, error.retry_after);
            return Change::None;
        }
        let pause = health.gate.failed(started, now, error.retry_after);
        health.cause = Some(cause);
        let tell = !health.told_down && health.told.is_none_or(|told| now - told >= QUIET);
        let Some(pause) = pause.filter(|_| tell) else { return Change::None };
        (health.told, health.told_down) = (Some(now), true);
        Change::Down(pause)
    }

    /// A request was given up as another source's answer came sooner. Whether that makes the source count as failed.
    pub(super) fn lost(&mut self, pass: &Pass) -> bool {
        let Some(health) = self.sources.get_mut(&pass.source) else { return false };
        health.lost += 1;
        pass.probe || health.lost >= MAX_LOST
    }

    /// A source is not to be asked for a blob for some time.
    pub(super) fn skip(&mut self, source: SourceId, blob: Digest, cause: Cause, now: Instant) -> Change {
        if !self.sources.contains_key(&source) {
            return Change::None;
        }
        let alone = if cause.kind == ErrorKind::BadAnswer { now } else { now + SKIP_ALONE };
        let pair = self.blobs.entry(blob).or_default().pairs.entry(source).or_default();
        let known = pair.skip.as_ref().is_some_and(|skip| skip.until > now && skip.cause.kind == cause.kind);
        pair.skip = Some(Skip { until: now + SKIP, alone, cause });
        if known { Change::None } else { Change::Skipped }
    }

    /// What is known to be wrong with a blob at a source.
    pub(super) fn cause(&self, source: SourceId, blob: Digest, now: Instant) -> Option<Cause> {
        let (passage, skip) = self.look(source, blob, now);
        let down = || self.sources.get(&source)?.cause.clone().filter(|_| passage != Passage::Free);
        skip.map(|skip| skip.cause.clone()).or_else(down)
    }

    /// A request of a waiting reader failed, or cannot be made: the blob's outage has begun at `since`, if it had not yet.
    pub(super) fn suffer(&mut self, blob: Digest, since: Instant, now: Instant) -> Member {
        let id = self.token();
        let outage = &mut self.blobs.entry(blob).or_default().outage;
        let over = |outage: &Outage| match outage.failing_until {
            Some(until) => until <= now,
            None => outage.members == 0 && outage.seen + OUTAGE_MEMORY <= since,
        };
        if outage.as_ref().is_none_or(over) {
            *outage = Some(Outage { id, since, members: 0, seen: now, failing_until: None });
        }
        let Some(outage) = outage else { return Member { outage: id, deadline: now } };
        outage.seen = now;
        Member { outage: outage.id, deadline: outage.since + self.outage_limit }
    }

    /// Counts an open among those who wait in an outage.
    pub(super) fn join(&mut self, blob: Digest, member: &Member) {
        if let Some(outage) = self.outage(blob, member.outage) {
            outage.members += 1;
        }
    }

    /// The open has ended.
    pub(super) fn leave(&mut self, blob: Digest, member: &Member, now: Instant) {
        if let Some(outage) = self.outage(blob, member.outage) {
            outage.members -= 1;
            outage.seen = now;
        }
    }

    fn outage(&mut self, blob: Digest, id: Token) -> Option<&mut Outage> {
        self.blobs.get_mut(&blob)?.outage.as_mut().filter(|outage| outage.id == id)
    }

    /// Until when an open may wait that has no source to ask. None when it is to fail.
    fn wait(&mut self, trial: &mut Trial, now: Instant) -> Option<Instant> {
        let deadline = trial.suffer(self, now, now).min(trial.give_up);
        let failing = self.blobs.get(&trial.blob)?.outage.as_ref()?.failing_until.is_some();
        (!failing && now < deadline).then_some(deadline)
    }

    /// An open fails as its time is over. Whether it is the first to for this outage.
    pub(super) fn run_out(&mut self, trial: &mut Trial, now: Instant) -> bool {
        trial.suffer(self, now, now);
        let Some(outage) = self.blobs.get_mut(&trial.blob).and_then(|blob| blob.outage.as_mut()) else { return false };
        if outage.failing_until.is_some() {
            return false;
        }
        outage.failing_until = Some(now + FAIL_FAST);
        true
    }

    /// The outages that somebody has noticed of late.
    pub(super) fn outages(&self, now: Instant) -> impl Iterator<Item = Missed> {
        self.blobs.iter().filter_map(move |(blob, health)| {
            let outage = health.outage.as_ref()?;
            let failing = outage.failing_until.is_some_and(|until| until > now);
            let noticed = outage.members > 0 || failing || outage.seen + OUTAGE_MEMORY > now;
            noticed.then_some(Missed { blob: *blob, since: outage.since, waiting: outage.members, failing })
        })
    }

    /// Forgets a blob about which there is nothing to say.
    fn tidy(&mut self, blob: Digest) {
        let Some(health) = self.blobs.get_mut(&blob) else { return };
        health.pairs.retain(|_, pair| pair.failing.is_some() || pair.skip.is_some() || !pair.gate.is_free());
        if health.is_dull() {
            self.blobs.remove(&blob);
        }
    }

    /// Whether there is nothing to say about a blob.
    #[cfg(test)]
    pub(super) fn is_forgotten(&self, blob: Digest) -> bool {
        !self.blobs.contains_key(&blob)
    }

    /// Probes that run and opens that wait.
    #[cfg(test)]
    pub(super) fn busy(&self) -> usize {
        let pairs = self.blobs.values().flat_map(|blob| blob.pairs.values());
        let gates = self.sources.values().map(|health| &health.gate).chain(pairs.map(|pair| &pair.gate));
        let members = self.blobs.values().filter_map(|blob| blob.outage.as_ref()).map(|outage| outage.members as usize);
        gates.filter(|gate| gate.is_probed()).count() + members.sum::<usize>()
    }
}

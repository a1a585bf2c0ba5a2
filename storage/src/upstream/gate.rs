//! Whether to ask a source: at once, as a probe, or not now.

use std::time::Duration;

use tokio::time::Instant;

/// Pause after the first failure. It doubles with each failure after it: long enough that a source which drops a connection now and
/// then is not asked in a tight loop, short enough that a reader hardly notices.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Longest pause of a source that is left alone while others serve. Each probe of a dead one costs a reader a moment.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Longest pause while a reader waits for this source, so that he goes on soon after it is back.
pub(super) const WAITING_PAUSE: Duration = Duration::from_millis(500);

/// Longest pause that a source can ask for. A registry's rate limit may name hours; what it gives within the outage limit is
/// worth asking for, and one request each half minute does no harm.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// Failures after which the pause is [`MAX_PAUSE`] in any case.
const MAX_DOUBLINGS: u32 = 7;

/// Random part of a pause, so that readers of many machines do not come back at the same moment.
const JITTER: f64 = 0.2;

/// Identifies the request that probes.
pub(super) type Token = u64;

/// What a gate says to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passage {
    /// All is well.
    Free,
    /// Failed before; one request may find out whether it works again.
    Due,
    /// A probe got a good answer but has not ended well yet: to be used where nothing better is.
    Answering,
    /// The pause is not over, but one request may go if a reader would wait otherwise.
    Early,
    /// Not now: until that time, or when it is not known, until the probe under way has ended.
    Shut(Option<Instant>),
}

impl Passage {
    /// What two gates in a row say.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Shut(a), Self::Shut(b)) => Self::Shut(a.zip(b).map(|(a, b)| a.max(b))),
            (Self::Shut(until), _) | (_, Self::Shut(until)) => Self::Shut(until),
            (Self::Early, _) | (_, Self::Early) => Self::Early,
            (Self::Answering, _) | (_, Self::Answering) => Self::Answering,
            (Self::Due, _) | (_, Self::Due) => Self::Due,
            (Self::Free, Self::Free) => Self::Free,
        }
    }
}

/// Backoff with one probe at a time. A source has one, and each blob has one at each source.
#[derive(Debug, Default)]
pub(super) struct Gate(Option<Closed>);

#[derive(Debug)]
struct Closed {
    /// Failures in a row, requests that ran at the same time counted as one.
    failures: u32,
    failed_at: Instant,
    /// From when on a probe is due.
    due: Instant,
    /// From when on one is allowed for a reader who would wait otherwise.
    early: Instant,
    /// The source asked for the pause: requests from before say nothing about it.
    told: bool,
    probe: Option<Token>,
    answering: bool,
}

impl Gate {
    pub(super) fn passage(&self, now: Instant) -> Passage {
        let Some(closed) = &self.0 else { return Passage::Free };
        match closed.probe {
            Some(_) if closed.answering => Passage::Answering,
            Some(_) => Passage::Shut(None),
            None if now >= closed.due => Passage::Due,
            None if now >= closed.early => Passage::Early,
            None => Passage::Shut(Some(closed.early)),
        }
    }

    pub(super) fn is_free(&self) -> bool {
        self.0.is_none()
    }

    #[cfg(test)]
    pub(super) fn is_probed(&self) -> bool {
        self.0.as_ref().is_some_and(|closed| closed.probe.is_some())
    }

    /// Lets a request through. Whether it is a probe; then [`Self::end_probe`] must follow.
    pub(super) fn enter(&mut self, now: Instant, token: Token) -> bool {
        let probes = matches!(self.passage(now), Passage::Due | Passage::Early);
        if let Some(closed) = self.0.as_mut().filter(|_| probes) {
            closed.probe = Some(token);
        }
        probes
    }

    /// The probe is over, however it ended. Whether it was one.
    pub(super) fn end_probe(&mut self, token: Token) -> bool {
        let Some(closed) = self.0.as_mut().filter(|closed| closed.probe == Some(token)) else { return false };
        closed.probe = None;
        true
    }

    /// A request that began at `started` has failed. Returns the pause that this begins; none when it only tells what is known.
    pub(super) fn failed(&mut self, started: Instant, now: Instant, retry_after: Option<Duration>) -> Option<Duration> {
        let (failures, probe) = match &mut self.0 {
            // One of those that were under way when the first of them failed: no further failure, but what the source asks for counts.
            Some(closed) if started < closed.failed_at && !closed.answering => {
                let wanted = now + retry_after?.min(MAX_RETRY_AFTER);
                closed.told = true;
                closed.due = closed.due.max(wanted);
                closed.early = closed.early.max(wanted);
                return None;
            }
            Some(closed) => (closed.failures.saturating_add(1), closed.probe),
            None => (1, None),
        };
        let pause = pause(failures);
        let asked = retry_after.map_or(Duration::ZERO, |wanted| wanted.min(MAX_RETRY_AFTER));
        let due = pause.max(asked);
        let early = pause.min(jitter(WAITING_PAUSE, -JITTER)).max(asked);
        let (told, answering) = (retry_after.is_some(), false);
        self.0 = Some(Closed { failures, failed_at: now, due: now + due, early: now + early, told, probe, answering });
        Some(due)
    }

    /// The head of a good answer is there, to a request that began at `started`. Whether that is news.
    pub(super) fn answered(&mut self, started: Instant, now: Instant) -> bool {
        let news = |closed: &&mut Closed| !closed.answering && !closed.outdated(started);
        let Some(closed) = self.0.as_mut().filter(news) else { return false };
        closed.answering = true;
        (closed.due, closed.early) = (now, now);
        true
    }

    /// A probe may go at once, unless the source itself has asked for the pause.
    pub(super) fn hurry(&mut self, now: Instant) {
        if let Some(closed) = self.0.as_mut().filter(|closed| !closed.told) {
            (closed.due, closed.early) = (now, now);
        }
    }

    /// A request that began at `started` ended well. Whether that is news.
    pub(super) fn open(&mut self, started: Instant) -> bool {
        self.0.take_if(|closed| !closed.outdated(started)).is_some()
    }
}

impl Closed {
    fn outdated(&self, started: Instant) -> bool {
        self.told && started < self.failed_at
    }
}

/// The pause after so many failures in a row.
fn pause(failures: u32) -> Duration {
    let doubled = FIRST_PAUSE * (1 << failures.saturating_sub(1).min(MAX_DOUBLINGS));
    jitter(doubled, JITTER).min(MAX_PAUSE)
}

/// A duration that is longer by up to that share, or shorter if it is negative.
fn jitter(duration: Duration, share: f64) -> Duration {
    duration.mul_f64(1.0 + share * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A gate after failures that began when the one before them had failed.
    fn failed(times: u32, now: Instant) -> Gate {
        let mut gate = Gate::default();
        (0..times).for_each(|_| assert!(gate.failed(now, now, None).is_some()));
        gate
    }

    #[test]
    fn pauses_double_up_to_a_limit_with_some_jitter() {
        for (failures, from) in [(1, 250), (2, 500), (3, 1000), (7, 16_000)] {
            let now = Instant::now();
            for _ in 0..50 {
                let pause = failed(failures - 1, now).failed(now, now, None).unwrap();
                assert!(pause >= MS * from && pause <= MS * from * 12 / 10, "{failures}: {pause:?}");
            }
        }
        let now = Instant::now();
        assert_eq!(failed(200, now).failed(now, now, None), Some(MAX_PAUSE));
    }

    #[test]
    fn one_probe_after_the_pause_earlier_for_who_waits() {
        let now = Instant::now();
        let mut gate = failed(6, now);
        let Passage::Shut(Some(early)) = gate.passage(now) else { panic!("{:?}", gate.passage(now)) };
        assert!(early - now <= WAITING_PAUSE && early - now >= WAITING_PAUSE.mul_f64(1.0 - JITTER));
        assert_eq!(gate.passage(early), Passage::Early);
        let late = now + MAX_PAUSE;
        assert_eq!(gate.passage(late), Passage::Due);
        assert!(gate.enter(late, 7));
        assert_eq!(gate.passage(late), Passage::Shut(None));
        assert!(!gate.enter(late, 8), "a second probe");
        assert!(!gate.end_probe(8), "another's probe");
        assert!(gate.end_probe(7));
        assert!(gate.enter(late, 9), "the first was given up");
    }

    #[test]
    fn a_good_head_lets_all_in_and_a_good_end_opens() {
        let now = Instant::now();
        let mut gate = failed(3, now);
        let late = now + MAX_PAUSE;
        assert!(gate.enter(late, 1));
        assert!(gate.answered(now, late));
        assert!(!gate.answered(now, late));
        assert_eq!(gate.passage(late), Passage::Answering);
        assert!(gate.failed(late, late, None).is_some(), "the body broke off");
        assert!(gate.end_probe(1));
        assert!(matches!(gate.passage(late), Passage::Shut(Some(_))));
        assert!(gate.open(late));
        assert_eq!(gate.passage(late), Passage::Free);
        assert!(!gate.open(late));
    }

    #[test]
    fn requests_that_fail_together_count_once() {
        let start = Instant::now();
        let mut gate = Gate::default();
        let (first, later) = (start + 10 * MS, start + 20 * MS);
        assert!(gate.failed(start, first, None).is_some());
        for _ in 0..63 {
            assert_eq!(gate.failed(start, later, None), None);
        }
        let pause = gate.failed(first, later, None).unwrap();
        assert!(pause < 3 * FIRST_PAUSE, "the second failure, not the 65th: {pause:?}");
    }

    #[test]
    fn what_the_source_asks_for_is_honoured_within_a_bound() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        for (asked, given) in [(5, 5), (3600, 30)] {
            let mut gate = Gate::default();
            assert_eq!(gate.failed(now, now, Some(second * asked)), Some(second * given));
            assert_eq!(gate.passage(now), Passage::Shut(Some(now + second * given)), "nobody goes earlier");
        }
        let mut gate = Gate::default();
        gate.failed(now, now + MS, None);
        gate.failed(now, now + 2 * MS, Some(9 * second));
        assert_eq!(gate.passage(now + 3 * MS), Passage::Shut(Some(now + 2 * MS + 9 * second)));
        assert!(!gate.answered(now, now + 3 * MS) && !gate.open(now), "asked before the source wanted a pause");
        assert!(gate.open(now + 10 * second));
        assert!(Gate::default().failed(now, now, Some(Duration::ZERO)).unwrap() >= FIRST_PAUSE);
    }

    #[test]
    fn two_gates_in_a_row() {
        use Passage::{Answering, Due, Early, Free, Shut};
        let (soon, late) = (Instant::now(), Instant::now() + MS);
        for (a, b, both) in [
            (Free, Free, Free),
            (Free, Due, Due),
            (Answering, Due, Answering),
            (Early, Answering, Early),
            (Shut(Some(soon)), Early, Shut(Some(soon))),
            (Shut(Some(soon)), Shut(Some(late)), Shut(Some(late))),
            (Shut(Some(soon)), Shut(None), Shut(None)),
        ] {
            assert_eq!((a.and(b), b.and(a)), (both, both));
        }
    }
}

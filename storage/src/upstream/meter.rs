//! What a source's answers take: time to the first byte, and bandwidth.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How fast a source is, by what it did lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speed {
    /// From a request to the head of its answer.
    pub first_byte: Duration,
    /// All running transfers together, while there are any.
    pub bytes_per_second: u64,
}

/// Taken for a source that was not measured yet: a registry some way off, on a good line, so that a first miss asks for as much as any
/// may. Where the line is worse that costs some 0.1 s, once.
pub(super) const UNMEASURED: Speed = Speed { first_byte: Duration::from_millis(30), bytes_per_second: 100_000_000 };

/// How long a first byte may take that comes from a source not measured yet, before another is asked too: new connections, a login, and a cold
/// cache at the far end are usual then.
const UNMEASURED_PATIENCE: Duration = Duration::from_secs(1);

/// Least patience with a first byte. Below it a request's time says more about this machine's load than about the source.
const MIN_PATIENCE: Duration = Duration::from_millis(50);

/// Patience in terms of the usual first-byte time, where the deviation is small.
const PATIENCE_FACTOR: u32 = 3;

/// Patience in mean deviations above the usual, as in TCP's retransmission timer: for most distributions above 95 % of all.
const PATIENCE_DEVIATIONS: u32 = 4;

/// Weight of a new first-byte time. After eight requests, nine tenths of the figure are what these took.
const FIRST_BYTE_GAIN: f64 = 0.25;

/// Transfer time after which a byte counts half. Some ten requests of a usual size on a slow line.
const HALF_LIFE: Duration = Duration::from_secs(1);

/// Transfer time for which the unmeasured bandwidth counts: on a fast link the first answer or two are enough to forget it.
const PRIOR: Duration = Duration::from_millis(5);

/// Longest time without a byte that counts as transfer. What is longer is an outage and says nothing about bandwidth.
const MAX_GAP: Duration = Duration::from_millis(500);

/// Shortest time for which the sums are aged; spares the computation at each piece.
const MIN_STEP: Duration = Duration::from_millis(1);

/// One source's figures.
#[derive(Debug)]
pub(super) struct Meter(Mutex<Figures>);

#[derive(Debug)]
struct Figures {
    /// Smoothed, in seconds; its mean deviation.
    first_byte: Option<(f64, f64)>,
    /// Bytes and seconds of transfer, both aged alike.
    bytes: f64,
    seconds: f64,
    running: usize,
    /// When a byte last came or a first transfer began, and up to when the sums are aged.
    last_byte: Instant,
    aged: Instant,
}

impl Meter {
    pub(super) fn new() -> Arc<Self> {
        let (now, seconds) = (Instant::now(), PRIOR.as_secs_f64());
        Arc::new(Self(Mutex::new(Figures {
            first_byte: None,
            bytes: seconds * exact(UNMEASURED.bytes_per_second),
            seconds,
            running: 0,
            last_byte: now,
            aged: now,
        })))
    }

    /// The head of an answer took so long.
    pub(super) fn first_byte(&self, took: Duration) {
        let mut figures = self.lock();
        let took = took.as_secs_f64();
        figures.first_byte = Some(match figures.first_byte {
            None => (took, took / 2.0),
            Some((usual, deviation)) => (
                usual + FIRST_BYTE_GAIN * (took - usual),
                deviation + FIRST_BYTE_GAIN * ((took - usual).abs() - deviation),
            ),
        });
    }

    /// A request was given up that had no answer after so long: its answer would have taken longer. Says nothing about a source that never
    /// answered.
    pub(super) fn no_first_byte(&self, waited: Duration) {
        let slower = self.lock().first_byte.is_some_and(|(usual, _)| waited.as_secs_f64() > usual);
        if slower {
            self.first_byte(waited);
        }
    }

    /// How long to wait for a first byte before this takes clearly longer than usual.
    pub(super) fn patience(&self) -> Duration {
        let figures = self.lock();
        let Some((usual, deviation)) = figures.first_byte else { return UNMEASURED_PATIENCE };
        let (usual, deviation) = (Duration::from_secs_f64(usual), Duration::from_secs_f64(deviation));
        (usual * PATIENCE_FACTOR).max(usual + deviation * PATIENCE_DEVIATIONS).max(MIN_PATIENCE)
    }

    pub(super) fn speed(&self) -> Speed {
        let figures = self.lock();
        let first_byte = figures.first_byte.map_or(UNMEASURED.first_byte, |(usual, _)| Duration::from_secs_f64(usual));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; neither is negative")]
        let bytes_per_second = (figures.bytes / figures.seconds) as u64;
        Speed { first_byte, bytes_per_second: bytes_per_second.max(1) }
    }

    /// A body begins to arrive.
    pub(super) fn transfer(self: &Arc<Self>) -> Transfer {
        let mut figures = self.lock();
        let now = Instant::now();
        figures.age(now);
        if figures.running == 0 {
            (figures.last_byte, figures.aged) = (now, now);
        }
        figures.running += 1;
        Transfer { meter: Arc::clone(self), begun: false }
    }

    fn lock(&self) -> MutexGuard<'_, Figures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Figures {
    /// Lets the time up to now count as transfer time, if there was a transfer.
    fn age(&mut self, now: Instant) {
        let until = now.min(self.last_byte + MAX_GAP);
        let step = until.saturating_duration_since(self.aged);
        if self.running == 0 || step < MIN_STEP {
            return;
        }
        let keep = (-step.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        self.bytes *= keep;
        self.seconds = self.seconds * keep + step.as_secs_f64();
        self.aged = now;
    }
}

/// A body on its way. Dropped when it has ended.
#[derive(Debug)]
pub(super) struct Transfer {
    meter: Arc<Meter>,
    begun: bool,
}

impl Transfer {
    /// Some bytes came.
    pub(super) fn count(&mut self, bytes: usize) {
        let now = Instant::now();
        let mut figures = self.meter.lock();
        figures.age(now);
        (figures.last_byte, figures.aged) = (now, figures.aged.max(now - MIN_STEP));
        // The first piece came along with the head, at no time of its own.
        if std::mem::replace(&mut self.begun, true) {
            figures.bytes += exact(bytes as u64);
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let mut figures = self.meter.lock();
        figures.age(Instant::now());
        figures.running -= 1;
    }
}

/// As a float; exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "rounds what no transfer reaches")]
fn exact(bytes: u64) -> f64 {
    bytes as f64
}

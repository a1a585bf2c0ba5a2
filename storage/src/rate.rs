//! A limit on what is fetched without anybody waiting for it.

use std::num::NonZeroU64;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{self, Instant};

/// Longest time for which what is not used can be saved up: enough that the pauses between two requests are made up for, and too little to
/// be noticed on the line.
const BURST: Duration = Duration::from_millis(250);

/// Limits bytes and requests a second, each if wanted. First come, first served.
#[derive(Debug)]
pub struct RateLimiter {
    /// Held by who is next while he waits; tokio's mutex queues the others in order.
    buckets: Mutex<Buckets>,
    unlimited: bool,
}

#[derive(Debug)]
struct Buckets {
    bytes: Option<Bucket>,
    requests: Option<Bucket>,
}

impl RateLimiter {
    /// Limits in bytes and requests a second; none is no limit.
    #[must_use]
    pub fn new(bytes_per_second: Option<NonZeroU64>, requests_per_second: Option<NonZeroU64>) -> Self {
        let unlimited = bytes_per_second.is_none() && requests_per_second.is_none();
        let buckets =
            Buckets { bytes: bytes_per_second.map(Bucket::new), requests: requests_per_second.map(Bucket::new) };
        Self { buckets: Mutex::new(buckets), unlimited }
    }

    /// Waits until a request for so many bytes may be made. One that is larger than what can be saved up goes when all is there, and those
    /// after it wait the longer. Who gives up waiting has used up nothing.
    pub async fn admit(&self, bytes: u64) {
        if self.unlimited {
            return;
        }
        let mut buckets = self.buckets.lock().await;
        loop {
            let now = Instant::now();
            let ready = [
                buckets.bytes.as_mut().map(|b| b.ready(bytes, now)),
                buckets.requests.as_mut().map(|b| b.ready(1, now)),
            ];
            match ready.into_iter().flatten().max().filter(|&ready| ready > now) {
                Some(ready) => time::sleep_until(ready).await,
                None => break,
            }
        }
        buckets.bytes.iter_mut().for_each(|bucket| bucket.take(bytes));
        buckets.requests.iter_mut().for_each(|bucket| bucket.take(1));
    }
}

impl RateLimiter {
    /// Whether a request for so many bytes may be made at once, with nobody before it. If so, it counts.
    pub(crate) fn try_admit(&self, bytes: u64) -> bool {
        if self.unlimited {
            return true;
        }
        let Ok(mut buckets) = self.buckets.try_lock() else { return false };
        let Buckets { bytes: by_bytes, requests } = &mut *buckets;
        let now = Instant::now();
        let late = |bucket: &mut Option<Bucket>, tokens| bucket.as_mut().is_some_and(|b| b.ready(tokens, now) > now);
        if late(by_bytes, bytes) || late(requests, 1) {
            return false;
        }
        by_bytes.iter_mut().for_each(|bucket| bucket.take(bytes));
        requests.iter_mut().for_each(|bucket| bucket.take(1));
        true
    }
}

/// A token bucket that may be overdrawn by what is larger than it.
#[derive(Debug)]
struct Bucket {
    per_second: f64,
    most: f64,
    level: f64,
    filled: Instant,
}

impl Bucket {
    /// A full one.
    fn new(per_second: NonZeroU64) -> Self {
        let per_second = exact(per_second.get());
        let most = (per_second * BURST.as_secs_f64()).max(1.0);
        Self { per_second, most, level: most, filled: Instant::now() }
    }

    /// When so many tokens may be taken.
    fn ready(&mut self, tokens: u64, now: Instant) -> Instant {
        self.level = (self.level + (now - self.filled).as_secs_f64() * self.per_second).min(self.most);
        self.filled = now;
        let missing = exact(tokens).min(self.most) - self.level;
        // Rounded up, so that a sleep till then is enough.
        let wait = Duration::from_secs_f64((missing / self.per_second).max(0.0));
        if missing > 0.0 { now + wait + Duration::from_micros(1) } else { now }
    }

    fn take(&mut self, tokens: u64) {
        self.level -= exact(tokens);
    }
}

/// As a float; exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "rounds what no request reaches")]
fn exact(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex as StdMutex};

    use futures_util::future::{join, join_all};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn limiter(bytes: u64, requests: u64) -> RateLimiter {
        RateLimiter::new(NonZeroU64::new(bytes), NonZeroU64::new(requests))
    }

    /// How long so many requests take, all made at once.
    async fn time(limiter: &RateLimiter, requests: usize, bytes: u64) -> Duration {
        let start = Instant::now();
        join_all((0..requests).map(|_| limiter.admit(bytes))).await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn limits_bytes_or_requests_or_both_or_nothing() {
        for (bytes, requests, size, seconds) in [
            (0, 0, 1 << 20, 0),
            (1 << 20, 0, 1 << 16, 6),
            (0, 10, 1 << 20, 10),
            (1 << 20, 10, 1 << 16, 10),
            (1 << 20, 50, 1 << 16, 6),
        ] {
            let took = time(&limiter(bytes, requests), 100, size).await;
            let expected = Duration::from_secs(seconds);
            assert!(took <= expected + 300 * MS && took + 300 * MS >= expected, "{bytes} {requests}: {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn little_is_saved_up() {
        let limiter = limiter(1 << 20, 0);
        assert!(time(&limiter, 4, 1 << 16).await < MS, "a quarter of a second's worth at once");
        time::sleep(Duration::from_secs(1000)).await;
        assert!(time(&limiter, 20, 1 << 16).await > 900 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn large_requests_go_too_and_are_paid_for_by_the_next() {
        let limiter = limiter(1 << 20, 0);
        assert!(time(&limiter, 1, 4 << 20).await < MS);
        let took = time(&limiter, 1, 1).await;
        assert!(took >= 3700 * MS && took < 3800 * MS, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn first_come_first_served_large_or_small() {
        let (limiter, order) = (limiter(1000, 0), StdMutex::new(Vec::new()));
        let (limiter, order) = (&limiter, &order);
        join_all((0..20).map(|number| async move {
            limiter.admit(if number % 2 == 0 { 1000 } else { 1 }).await;
            order.lock().unwrap().push(number);
        }))
        .await;
        assert_eq!(*order.lock().unwrap(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_uses_up_nothing_and_holds_up_nobody() {
        let limiter = Arc::new(limiter(1000, 0));
        limiter.admit(1250).await;
        let given_up = (0..50).map(|_| time::timeout(10 * MS, limiter.admit(1_000_000)));
        let start = Instant::now();
        let (results, ()) = join(join_all(given_up), async {
            time::sleep(MS).await;
            limiter.admit(1).await;
        })
        .await;
        assert!(results.iter().all(Result::is_err));
        assert!(start.elapsed() >= 1000 * MS && start.elapsed() <= 1010 * MS, "{:?}", start.elapsed());
    }
}

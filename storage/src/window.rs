//! How much to ask for at a time: what the network makes worthwhile, as long as it turns out to be used.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::staged::MAX_STAGED;
use crate::upstream::Speed;

/// Most stored bytes that one miss asks for, with its neighbours. Of the sizes from 0.25 to 8 MiB, tried on the chunks that a
/// start of Python with numpy reads: 1 MiB makes 42 requests of 40 MB, this 23 of 73, 8 MiB 18 of 118.
pub(crate) const MAX_WINDOW: u64 = 3584 << 10;

/// Most stored bytes in one range request, unless a single chunk has more. A registry that takes 4 ms a request whatever
/// its size gives 690 MB/s at this size, and a reader waits no longer than needed for the first chunk of it.
pub(crate) const MAX_REQUEST: u64 = 4 << 20;

/// Least stored bytes in a request for what nobody waits for, where there is as much to ask for.
pub(crate) const MIN_REQUEST: u64 = 512 << 10;

/// Round trips' worth of bytes in a request that nobody waits for: the link is idle for at most a fifth of the time even if they
/// are made one by one, and a reader who comes in between waits no longer than for so many round trips.
const ROUND_TRIPS: u64 = 4;

/// Most stored bytes between two parts of the prefetch list that one request spans; about three chunks.
const MAX_GAP: u64 = 256 << 10;

/// Most stored bytes that are read ahead of one reader.
pub(crate) const MAX_AHEAD: u64 = 16 << 20;

/// Seconds' worth of bytes that are read ahead at most, beyond the round trips: on a slow link, what was guessed wrongly
/// delays what is wanted next by no more.
const AHEAD_MILLISECONDS: u64 = 100;

/// Bytes that the link moves within its time per request. Below this size of request, the time per request dominates.
fn round_trip_bytes(speed: &Speed) -> u64 {
    bytes_in(speed, u64::try_from(speed.first_byte.as_micros()).unwrap_or(u64::MAX))
}

fn bytes_in(speed: &Speed, microseconds: u64) -> u64 {
    let bytes = u128::from(speed.bytes_per_second) * u128::from(microseconds) / 1_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Stored bytes to put into one request for what nobody waits for.
pub(crate) fn request_bytes(speed: &Speed) -> u64 {
    round_trip_bytes(speed).saturating_mul(ROUND_TRIPS).clamp(MIN_REQUEST, MAX_REQUEST)
}

/// Stored bytes that are rather fetched in vain than two requests made for what lies around them.
pub(crate) fn gap_bytes(speed: &Speed) -> u64 {
    round_trip_bytes(speed).min(MAX_GAP)
}

/// Stored bytes that a reader must have read in order before anything is read ahead of him, as less comes along with his misses;
/// and how many then are read ahead at most.
pub(crate) fn ahead_bytes(speed: &Speed) -> (u64, u64) {
    let round_trip = round_trip_bytes(speed);
    let most = round_trip.saturating_mul(ROUND_TRIPS).max(bytes_in(speed, AHEAD_MILLISECONDS * 1000));
    (round_trip.min(MAX_WINDOW), most.clamp(MIN_REQUEST, MAX_AHEAD))
}

/// How much more may come along than is used, beyond what can be staged. With one, the start of Python above takes 34 requests.
const PER_USED: u64 = 2;

/// Bytes of neighbours that came along with what was asked for, and how many were used. What is unused is never more than
/// [`MAX_STAGED`] and [`PER_USED`] times what was used: so a program that reads here and there soon gets little but what it reads.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    used: AtomicU64,
    unused: AtomicU64,
    /// All that came along, and how much of that was wanted later.
    brought: AtomicU64,
    hit: AtomicU64,
}

/// Round trips' worth of bytes in a window, by the share of neighbours that was wanted later: less than a quarter, less than half,
/// more. The reader of the missed chunk does not wait for what comes behind it; who waits is the next one, for his part of the
/// link. A program that reads much of an image wants the link kept busy.
const PER_SHARE: [u64; 3] = [1, 2, 4];

/// Neighbours in bytes before their share says anything.
const FIRST_BROUGHT: u64 = 4 << 20;

impl Neighbours {
    /// Most stored bytes that the request for a miss should have, neighbours included.
    pub(crate) fn window(&self, speed: &Speed) -> u64 {
        let allowed = MAX_STAGED.saturating_add(self.used.load(Ordering::Relaxed).saturating_mul(PER_USED));
        let left = allowed.saturating_sub(self.unused.load(Ordering::Relaxed));
        round_trip_bytes(speed).saturating_mul(self.round_trips()).min(MAX_WINDOW).min(left)
    }

    fn round_trips(&self) -> u64 {
        let (brought, hit) = (self.brought.load(Ordering::Relaxed), self.hit.load(Ordering::Relaxed));
        let quarters = hit.saturating_mul(4).checked_div(brought).unwrap_or_default();
        let [few, some, many] = PER_SHARE;
        match quarters {
            _ if brought < FIRST_BROUGHT => some,
            0 => few,
            1 => some,
            _ => many,
        }
    }

    /// So many bytes were asked for since somebody wants them.
    pub(crate) fn wanted(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes are asked for although nobody wants them yet.
    pub(crate) fn brought(&self, bytes: u64) {
        self.unused.fetch_add(bytes, Ordering::Relaxed);
        self.brought.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Somebody wants so many of them now, or they did not come after all.
    pub(crate) fn settled(&self, bytes: u64, wanted: bool) {
        // Never below zero, whatever is counted twice.
        let less = |unused: u64| Some(unused.saturating_sub(bytes));
        let _ = self.unused.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        if wanted {
            self.wanted(bytes);
            self.hit.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn speed(milliseconds: u64, megabytes_per_second: u64) -> Speed {
        let bytes_per_second = megabytes_per_second * 1_000_000;
        Speed { first_byte: Duration::from_millis(milliseconds), bytes_per_second }
    }

    #[test]
    fn requests_grow_with_latency_and_bandwidth() {
        let neighbours = Neighbours::default();
        let of = |speed| (neighbours.window(&speed), request_bytes(&speed), ahead_bytes(&speed).1);
        assert_eq!(of(speed(20, 1000)), (MAX_WINDOW, MAX_REQUEST, MAX_AHEAD), "a fast link far away");
        assert_eq!(of(speed(20, 25)), (1_000_000, 2_000_000, 2_500_000), "200 Mbit/s and 20 ms");
        assert_eq!(of(speed(20, 2)), (80_000, MIN_REQUEST, MIN_REQUEST), "a slow link: little but what is wanted");
        assert_eq!(of(speed(0, 3000)).0, 0, "no time per request, no need of neighbours");
        assert_eq!(of(speed(u64::MAX / 1_000_000, u64::MAX / 1_000_000)).0, MAX_WINDOW);
    }

    #[test]
    fn neighbours_that_nobody_reads_are_soon_left_out() {
        let neighbours = Neighbours::default();
        let far = speed(20, 1000);
        let mut brought = 0;
        while neighbours.window(&far) > 0 {
            let window = neighbours.window(&far);
            neighbours.brought(window);
            brought += window;
        }
        assert_eq!(brought, MAX_STAGED);
        neighbours.wanted(1 << 20);
        assert_eq!(neighbours.window(&far), 2 << 20, "twice what was wanted");
        neighbours.settled(100_000, true);
        assert_eq!(neighbours.window(&far), (2 << 20) + 300_000);
        neighbours.settled(u64::MAX, false);
        assert_eq!(neighbours.window(&far), MAX_WINDOW);
    }

    #[test]
    fn windows_grow_while_what_comes_along_is_wanted() {
        let neighbours = Neighbours::default();
        let line = speed(20, 25);
        let mut windows = Vec::new();
        for wanted in [0, 2, 4, 3, 0, 0, 0] {
            neighbours.brought(4 << 20);
            (0..wanted).for_each(|_| neighbours.settled(1 << 20, true));
            windows.push(neighbours.window(&line) / 500_000);
        }
        assert_eq!(windows, [1, 2, 4, 4, 2, 2, 2], "round trips");
    }
}

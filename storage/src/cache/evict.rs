//! Eviction: on a thread of its own, so that no reader waits for it.
//!
//! A round counts all blobs of the state directory. If they take more than the target, directories that no process uses go, the one
//! longest unused first, whole; then the cold chunks of blobs that only this process uses, by a clock whose hand goes round over all of
//! them: a chunk that was read or stored since the hand last came by is spared once. One process evicts at a time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::{BlobCache, Cache, dirs};
use crate::metrics::Evicted;

/// How often to look after open blobs, and whether another process looks for room in vain.
const TICK: Duration = Duration::from_secs(5);

/// How long a store waits for a round. Punching 1 GiB takes about a tenth of a second, removing a blob of 10 GB half a second.
const STORE_PATIENCE: Duration = Duration::from_secs(2);

/// How long to wait for another process that evicts.
const TURN_PATIENCE: Duration = Duration::from_secs(1);

/// How far below the limit a round goes: this part of the limit, at most so many bytes. Half of it is where rounds begin, so
/// that writers seldom reach the limit itself.
const MARGIN_PART: u64 = 16;
const MOST_MARGIN: u64 = 1 << 30;

/// When the disk is full, this part of the cache goes at once.
const FULL_PART: u64 = 16;

/// How often the hand may go round in one: once to find what was not used since, and once more for what was not used meanwhile.
/// When the disk is full, once must do, as what is left of the cache may be less than what is just being read.
const SWEEPS: u32 = 2;
const FULL_SWEEPS: u32 = 1;

/// Where a round begins and where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) high: u64,
    pub(super) low: u64,
}

impl Marks {
    pub(super) fn of(limit: u64) -> Self {
        let margin = (limit / MARGIN_PART).min(MOST_MARGIN);
        Self { high: limit - margin / 2, low: limit - margin }
    }
}

/// What is asked of the thread.
#[derive(Debug, Default)]
struct Orders {
    /// Rounds asked for, and the last of them that has been done.
    asked: u64,
    done: u64,
    /// Bytes that did not fit on a full disk.
    full: u64,
    /// What the last round freed.
    freed: u64,
    stop: bool,
}

/// What the thread and those who ask it share.
#[derive(Debug, Default)]
pub(super) struct Desk {
    orders: Mutex<Orders>,
    changed: Condvar,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a round, and does not wait.
    pub(super) fn ask(&self) {
        let mut orders = self.lock();
        // One that has not begun does for all.
        if orders.asked == orders.done {
            orders.asked += 1;
            self.changed.notify_all();
        }
    }

    /// Asks for a round that makes room of `full` bytes on a full disk, or to the limit; waits for it and says what it freed.
    pub(super) fn ask_and_wait(&self, full: u64) -> u64 {
        let mut orders = self.lock();
        orders.full = orders.full.max(full);
        // Not one that is under way: it may have counted before what is asked for now.
        orders.asked = orders.done.max(orders.asked) + 1;
        let ticket = orders.asked;
        self.changed.notify_all();
        let start = Instant::now();
        while orders.done < ticket && !orders.stop {
            let Some(left) = STORE_PATIENCE.checked_sub(start.elapsed()) else { return 0 };
            orders = self.changed.wait_timeout(orders, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        orders.freed
    }

    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_all();
    }

    /// Waits for the next thing to do. `None`: nothing any more.
    fn next(&self) -> Option<Work> {
        let mut orders = self.lock();
        let start = Instant::now();
        while !orders.stop && orders.asked == orders.done {
            let Some(left) = TICK.checked_sub(start.elapsed()) else { return Some(Work::Tick) };
            orders = self.changed.wait_timeout(orders, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if orders.stop {
            return None;
        }
        Some(Work::Round { ticket: orders.asked, full: std::mem::take(&mut orders.full) })
    }

    fn done(&self, ticket: u64, freed: u64) {
        let mut orders = self.lock();
        orders.done = ticket;
        orders.freed = freed;
        self.changed.notify_all();
    }
}

enum Work {
    Tick,
    Round { ticket: u64, full: u64 },
}

/// What the thread remembers from one round to the next.
#[derive(Debug, Default)]
struct Hand {
    /// Where the clock's hand is: a blob's name, or something between two of them, and a chunk.
    blob: String,
    chunk: u32,
    /// How often room had been looked for in vain when this process last did something about it.
    wanted: u64,
}

/// Starts the thread. It ends with the cache.
pub(super) fn start(cache: &Arc<Cache>) -> std::io::Result<()> {
    let (weak, desk) = (Arc::downgrade(cache), Arc::clone(&cache.desk));
    std::thread::Builder::new().name("lazo-evict".into()).spawn(move || run(&weak, &desk)).map(drop)
}

fn run(cache: &Weak<Cache>, desk: &Desk) {
    let mut hand = Hand::default();
    if let Some(cache) = cache.upgrade() {
        hand.wanted = cache.ledger.numbers().wanted;
    }
    while let Some(work) = desk.next() {
        let Some(cache) = cache.upgrade() else { return };
        match work {
            Work::Tick => tick(&cache, &mut hand),
            Work::Round { ticket, full } => {
                let freed = round(&cache, &mut hand, full);
                desk.done(ticket, freed);
            }
        }
    }
}

fn tick(cache: &Arc<Cache>, hand: &mut Hand) {
    let open = cache.open_blobs();
    open.values().for_each(|blob| blob.look_after());
    cache.tidy();
    let numbers = cache.ledger.numbers();
    cache.show_used(numbers.used);
    if numbers.wanted != hand.wanted {
        hand.wanted = numbers.wanted;
        round(cache, hand, 0);
    }
}

/// Counts, and evicts what is too much. Says what was freed.
fn round(cache: &Arc<Cache>, hand: &mut Hand, full: u64) -> u64 {
    let turn = cache.ledger.begin_eviction(TURN_PATIENCE);
    dirs::remove_leftovers(&cache.blobs_dir);
    let found = match dirs::scan(&cache.blobs_dir) {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(dir = %cache.blobs_dir.display(), %error, "cannot count the cache");
            return 0;
        }
    };
    let used = found.iter().map(|dir| dir.disk).sum();
    cache.ledger.counted(used);
    cache.renew_limit();
    let target = target(cache.limit(), used, full);
    let mut excess = used.saturating_sub(target);
    let mut freed = 0;
    if excess > 0 {
        freed += evict_unused(cache, found, excess);
        excess = excess.saturating_sub(freed);
        let sweeps = if full > 0 { FULL_SWEEPS } else { SWEEPS };
        freed += evict_chunks(cache, hand, excess, sweeps);
        tracing::debug!(used, target, freed, "evicted");
    }
    cache.show_used(used.saturating_sub(freed));
    drop(turn);
    freed
}

/// How much may be left.
fn target(limit: Option<u64>, used: u64, full: u64) -> u64 {
    let under_limit = match limit.map(|limit| (limit, Marks::of(limit))) {
        Some((_, marks)) if used > marks.high => marks.low,
        _ => used,
    };
    if full == 0 {
        return under_limit;
    }
    under_limit.min(used.saturating_sub(full.max(used / FULL_PART)))
}

/// Removes directories that no process uses until `excess` bytes are freed.
fn evict_unused(cache: &Cache, mut found: Vec<dirs::Dir>, excess: u64) -> u64 {
    found.sort_by_key(|dir| dir.last_used);
    let mut freed = 0;
    for dir in found {
        if freed >= excess {
            break;
        }
        match dirs::remove(&dir.path) {
            Ok(true) => {
                tracing::info!(blob = dir.name, bytes = dir.disk, "evicted a blob that was not in use");
                cache.freed(Evicted::Blob, dir.disk);
                freed += dir.disk;
            }
            Ok(false) => {}
            Err(error) => log_failure(&dir.path, &error),
        }
    }
    freed
}

fn log_failure(dir: &Path, error: &std::io::Error) {
    tracing::warn!(dir = %dir.display(), %error, "cannot evict");
}

/// Punches cold chunks out of the blobs that this process alone uses until `excess` bytes are freed.
fn evict_chunks(cache: &Cache, hand: &mut Hand, excess: u64, sweeps: u32) -> u64 {
    let open: BTreeMap<String, Arc<BlobCache>> = cache.open_blobs();
    let mut freed = 0;
    // The blob at the hand comes first, from the hand on, and last, up to where the hand was.
    let order: Vec<&String> =
        open.range(hand.blob.clone()..).chain(open.range(..hand.blob.clone())).map(|e| e.0).collect();
    let rounds = order.iter().cycle().take(order.len() * sweeps as usize + 1);
    for name in rounds {
        if freed >= excess {
            break;
        }
        let Some(blob) = open.get(*name) else { continue };
        let from = if **name == hand.blob { hand.chunk } else { 0 };
        let progress = blob.evict(from, excess - freed);
        freed += progress.freed;
        (hand.blob, hand.chunk) = match progress.next {
            Some(next) => ((*name).clone(), next),
            // Right behind this blob.
            None => (format!("{name}\0"), 0),
        };
    }
    freed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_targets() {
        let marks = Marks::of(64 << 20);
        assert_eq!((marks.high >> 20, marks.low >> 20), (62, 60));
        assert_eq!(Marks::of(100 << 30).low, 99 << 30);
        assert_eq!(Marks::of(0), Marks { high: 0, low: 0 });
        let limit = Some(64 << 20);
        assert_eq!(target(limit, 61 << 20, 0), 61 << 20, "below the high mark nothing has to go");
        assert_eq!(target(limit, 63 << 20, 0), 60 << 20);
        assert_eq!(target(None, 32 << 20, 1 << 20), 30 << 20);
        assert_eq!(target(None, 32 << 20, 5 << 20), 27 << 20);
        assert_eq!(target(limit, 1, 5), 0);
    }
}

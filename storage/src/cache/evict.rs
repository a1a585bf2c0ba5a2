//! Eviction: on a thread of its own, so that no reader waits for it.
//!
//! A round counts all blobs of the state directory. If they take more than the target, directories that no process uses go, the one
//! longest unused first, whole; then the cold chunks of blobs that only this process uses, by a clock whose hand goes round over all of
//! them: a chunk that was read or stored since the hand last came by is spared once. One process evicts at a time.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::{BlobCache, Cache, dirs};
use crate::metrics::Evicted;

/// How often to look after open blobs, and whether another process looks for room in vain.
const TICK: Duration = Duration::from_secs(5);

/// The files are counted again after so many looks if nobody has written since the last one, and otherwise after so many: what was removed
/// without a word, or promised to a process that was killed, is noticed by that. Counting costs three system calls a blob.
pub(super) const IDLE_RECOUNT: u32 = 12;
const BUSY_RECOUNT: u32 = 120;

/// How long a store waits for a round. Punching 1 GiB takes about a tenth of a second, removing a blob of 10 GB half a second.
pub(super) const STORE_PATIENCE: Duration = Duration::from_secs(2);

/// How long to wait for another process that evicts.
const TURN_PATIENCE: Duration = Duration::from_secs(1);

/// How far below the limit a round goes: this part of the limit, at most so many bytes. Half of it is where rounds begin, so
/// that writers seldom reach the limit itself.
const MARGIN_PART: u64 = 16;
const MOST_MARGIN: u64 = 1 << 30;

/// When the disk is full, this part of the cache goes at once.
const FULL_PART: u64 = 16;

/// How often the hand may go round in one: once to find what was not used since, and once more for what was not used meanwhile.
/// When the disk is full, or another process wants room, only what is cold goes: what this process has of the cache may be less
/// than what is just being read.
const SWEEPS: u32 = 2;
const COLD_SWEEPS: u32 = 1;

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

/// What a round is for, beside the limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// Bytes to be written that did not fit below the limit.
    pub(super) below_limit: u64,
    /// Bytes to be written that did not fit on the disk, or wanted by another process.
    pub(super) on_disk: u64,
}

/// What is asked of the thread.
#[derive(Debug, Default)]
struct Orders {
    /// Rounds asked for, and the last of them that has been done.
    asked: u64,
    done: u64,
    need: Need,
    /// Whether there was room after the last round, or some of it.
    helped: bool,
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

    /// Asks for a round that makes room, waits for it, and says whether it has made or found some.
    pub(super) fn ask_and_wait(&self, need: Need) -> bool {
        let mut orders = self.lock();
        orders.need.below_limit = orders.need.below_limit.max(need.below_limit);
        orders.need.on_disk = orders.need.on_disk.max(need.on_disk);
        // Not one that is under way: it may have counted before what is asked for now.
        orders.asked = orders.done.max(orders.asked) + 1;
        let ticket = orders.asked;
        self.changed.notify_all();
        let start = Instant::now();
        while orders.done < ticket && !orders.stop {
            let Some(left) = STORE_PATIENCE.checked_sub(start.elapsed()) else { return false };
            orders = self.changed.wait_timeout(orders, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        orders.helped
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
        Some(Work::Round { ticket: orders.asked, need: std::mem::take(&mut orders.need) })
    }

    fn done(&self, ticket: u64, helped: bool) {
        let mut orders = self.lock();
        orders.done = ticket;
        orders.helped = helped;
        self.changed.notify_all();
    }
}

enum Work {
    Tick,
    Round { ticket: u64, need: Need },
}

/// What the thread remembers from one round to the next.
#[derive(Debug, Default)]
pub(super) struct Hand {
    /// Where the clock's hand is: a blob's name, or something between two of them, and a chunk.
    blob: String,
    chunk: u32,
    /// How often room had been looked for in vain when this process last did something about it.
    wanted: u64,
    /// Looks since the files were last counted, and what was used at the last of them.
    looks: u32,
    used: u64,
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
            Work::Round { ticket, need } => {
                let helped = round(&cache, &mut hand, need);
                desk.done(ticket, helped);
            }
        }
    }
}

pub(super) fn tick(cache: &Arc<Cache>, hand: &mut Hand) {
    let open = cache.open_blobs();
    open.values().for_each(|blob| blob.look_after());
    cache.tidy();
    let numbers = cache.ledger.settle();
    if numbers.wanted != hand.wanted {
        hand.wanted = numbers.wanted;
        round(cache, hand, Need { on_disk: 1, ..Need::default() });
        return;
    }
    cache.show_used(numbers.used);
    hand.looks += 1;
    let idle = std::mem::replace(&mut hand.used, numbers.used) == numbers.used;
    if hand.looks >= if idle { IDLE_RECOUNT } else { BUSY_RECOUNT } {
        round(cache, hand, Need::default());
    }
}

/// Counts, and evicts what is too much. Says whether there is any room now.
fn round(cache: &Arc<Cache>, hand: &mut Hand, need: Need) -> bool {
    let turn = cache.ledger.begin_eviction(TURN_PATIENCE);
    hand.looks = 0;
    dirs::remove_leftovers(&cache.blobs_dir);
    let found = dirs::scan(&cache.blobs_dir);
    let (found, on_disk, used) = match found {
        Ok(found) => {
            let on_disk = found.iter().map(|dir| dir.disk).sum();
            (found, on_disk, cache.ledger.counted(on_disk))
        }
        Err(error) => {
            // As when no more files can be opened. What was counted before still holds.
            tracing::debug!(dir = %cache.blobs_dir.display(), %error, "cannot count the cache");
            let used = cache.ledger.numbers().used;
            (Vec::new(), used, used)
        }
    };
    cache.renew_limit();
    let target = target(cache.limit(), used, need);
    let excess = used.saturating_sub(target);
    let mut freed = 0;
    if excess > 0 {
        freed = evict_unused(cache, found, excess);
        freed += evict_chunks(cache, hand, excess.saturating_sub(freed), COLD_SWEEPS);
        if freed < excess && need.on_disk == 0 {
            // What other processes have may be colder than what must go now.
            hand.wanted = cache.ledger.want();
            freed += evict_chunks(cache, hand, excess - freed, SWEEPS - COLD_SWEEPS);
        }
        tracing::debug!(used, target, freed, "evicted");
    }
    cache.show_used(on_disk.saturating_sub(freed));
    drop(turn);
    excess == 0 || freed > 0
}

/// How much may be left.
fn target(limit: Option<u64>, used: u64, need: Need) -> u64 {
    let below_limit = match limit {
        Some(limit) if used > Marks::of(limit).high || used.saturating_add(need.below_limit) > limit => {
            Marks::of(limit).low.min(limit.saturating_sub(need.below_limit))
        }
        _ => used,
    };
    match need.on_disk {
        0 => below_limit,
        bytes => below_limit.min(used.saturating_sub(bytes.max(used / FULL_PART))),
    }
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
            Err(error) => cache.cannot_evict.write(|left_out| {
                tracing::warn!(dir = %dir.path.display(), %error, left_out, "cannot evict");
            }),
        }
    }
    freed
}

/// Punches cold chunks out of the blobs that this process alone uses until `excess` bytes are freed; the hand goes round `sweeps`
/// times at most.
fn evict_chunks(cache: &Cache, hand: &mut Hand, excess: u64, sweeps: u32) -> u64 {
    let open: BTreeMap<String, Arc<BlobCache>> = cache.open_blobs();
    let (start, chunk) = (hand.blob.clone(), hand.chunk);
    let mut freed = 0;
    for _ in 0..sweeps {
        // The blob at the hand comes first, from the hand on, and last, up to where the hand was.
        let first = open.get_key_value(&start).map(|(name, blob)| (name, blob, chunk..u32::MAX));
        let behind = open.range::<String, _>((Excluded(&start), Unbounded)).chain(open.range::<String, _>(..&start));
        let last = open.get_key_value(&start).map(|(name, blob)| (name, blob, 0..chunk));
        for (name, blob, chunks) in first.into_iter().chain(behind.map(|(n, b)| (n, b, 0..u32::MAX))).chain(last) {
            if freed >= excess {
                return freed;
            }
            let progress = blob.evict(chunks, excess - freed);
            freed += progress.freed;
            (hand.blob, hand.chunk) = match progress.next {
                Some(next) => (name.clone(), next),
                // Right behind this blob.
                None => (format!("{name}\0"), 0),
            };
        }
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
        let need = |below_limit: u64, on_disk: u64| Need { below_limit: below_limit << 20, on_disk: on_disk << 20 };
        let target = |limit, used: u64, need| target(limit, used << 20, need) >> 20;
        assert_eq!(target(limit, 61, need(0, 0)), 61, "below the high mark nothing has to go");
        assert_eq!(target(limit, 61, need(3, 0)), 61);
        assert_eq!(target(limit, 61, need(4, 0)), 60, "unless there is no room for what is to be written");
        assert_eq!(target(limit, 61, need(6, 0)), 58);
        assert_eq!(target(limit, 63, need(0, 0)), 60);
        assert_eq!(target(None, 32, need(0, 1)), 30);
        assert_eq!(target(None, 32, need(0, 5)), 27);
        assert_eq!(target(limit, 1, need(0, 5)), 0);
    }
}

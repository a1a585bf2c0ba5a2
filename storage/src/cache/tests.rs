//! The cache by itself. A second [`Cache`] of a directory is to the first what another process is: the locks are the same.

mod sealed;

use std::collections::BTreeSet;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::admin::Inventory;
use super::evict::{self, Hand, Need, STORE_PATIENCE};
use super::files::{Files, Shape};
use super::{BlobCache, Cache, CacheOptions, LIMIT_SLACK, Limit, Places, dirs};
use crate::error::Error;
use crate::metrics::Evicted;

const CHUNK: usize = 64 << 10;

/// Longest wait for something that another thread does.
const PATIENCE: Duration = Duration::from_secs(20);

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn process(&self, limit: Limit) -> Arc<Cache> {
        Cache::open(self.0.path(), CacheOptions { limit }, Arc::default()).unwrap()
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn blobs(&self) -> PathBuf {
        self.0.path().join("blobs")
    }

    fn file(&self, blob: &str, name: &str) -> PathBuf {
        self.blobs().join(blob).join(name)
    }

    fn disk(&self) -> u64 {
        dirs::scan(&self.blobs()).unwrap().iter().map(|dir| dir.disk).sum()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = dirs::scan(&self.blobs()).unwrap().into_iter().map(|dir| dir.name).collect();
        names.sort();
        names
    }
}

fn blob(cache: &Arc<Cache>, key: &str, chunks: u32) -> Arc<BlobCache> {
    cache.blob(key, Arc::new(Equal(chunks)))
}

/// So many chunks of one size.
#[derive(Debug)]
struct Equal(u32);

impl Places for Equal {
    fn chunks(&self) -> u32 {
        self.0
    }

    fn device_size(&self) -> u64 {
        at(self.0)
    }

    fn range(&self, chunk: u32) -> Range<u64> {
        at(chunk.min(self.0))..at(chunk.saturating_add(1).min(self.0))
    }
}

/// What a chunk of any blob holds: every eight bytes say where they are. Never a zero.
fn content(chunk: u32) -> Vec<u8> {
    let words = (0..CHUNK / 8).map(|word| (u64::from(chunk) << 32 | word as u64) ^ 0x5555_5555_5555_5555);
    words.flat_map(u64::to_le_bytes).collect()
}

fn at(chunk: u32) -> u64 {
    u64::from(chunk) * CHUNK as u64
}

fn fill(blob: &BlobCache, chunks: Range<u32>) {
    for chunk in chunks {
        blob.store(chunk, &content(chunk));
    }
}

/// Reads chunks, and never accepts a wrong byte. False if they are not all there.
fn read(blob: &BlobCache, chunks: Range<u32>) -> bool {
    let mut buf = vec![0; chunks.len() * CHUNK];
    let there = blob.read(at(chunks.start), &mut buf, chunks.clone());
    if there {
        for (chunk, bytes) in chunks.zip(buf.chunks(CHUNK)) {
            assert!(bytes == content(chunk), "wrong bytes in chunk {chunk}");
        }
    }
    there
}

fn verify(blob: &BlobCache, chunk: u32) -> bool {
    blob.verify(chunk, |bytes| bytes == content(chunk))
}

fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn what_one_process_stores_the_next_finds_ready_but_not_verified() {
    let place = Place::new();
    let (one, two) = (place.process(Limit::None), place.process(Limit::None));
    let (first, second) = (blob(&one, "b", 20), blob(&two, "b", 20));
    fill(&first, 9..11);
    assert!(first.is_verified(9) && first.is_ready(9));
    assert!(second.is_ready(9) && !second.is_verified(9), "seen by a process that was there before");
    assert!(!read(&second, 9..10), "not before it is hashed");
    fill(&second, 11..12);
    let three = place.process(Limit::None);
    let third = blob(&three, "b", 20);
    assert_eq!((0..20).filter(|&c| third.is_ready(c)).collect::<Vec<_>>(), [9, 10, 11], "no bits are wiped out");
    assert!((9..12).all(|chunk| verify(&third, chunk)) && read(&third, 9..12));
    assert!(!third.verify(3, |_| true), "there is no such chunk");
    third.forget(10);
    assert!(!third.is_verified(10) && !blob(&place.process(Limit::None), "b", 20).is_ready(10));
}

#[test]
fn all_bits_are_set_when_all_chunks_are_there() {
    for chunks in [1, 7, 8, 9, 20] {
        let place = Place::new();
        let blob = blob(&place.process(Limit::None), "b", chunks);
        fill(&blob, 0..chunks - 1);
        let bits = || std::fs::read(place.file("b", "ready")).unwrap();
        assert!(bits().iter().any(|byte| *byte != u8::MAX), "{chunks}");
        fill(&blob, chunks - 1..chunks);
        assert!(bits().iter().all(|byte| *byte == u8::MAX), "{chunks}");
    }
}

#[test]
fn users_within_a_process_share_a_blob() {
    let place = Place::new();
    let cache = place.process(Limit::None);
    let (one, two) = (blob(&cache, "b", 20), blob(&cache, "b", 20));
    assert!(Arc::ptr_eq(&one, &two));
    drop((one, two));
    assert!(cache.lock_open().blobs.is_empty());
    let _one = blob(&cache, "b", 20);
}

#[test]
fn data_that_is_gone_or_damaged_is_not_served() {
    let place = Place::new();
    fill(&blob(&place.process(Limit::None), "b", 20), 0..20);
    let cache = place.process(Limit::None);
    let b = blob(&cache, "b", 20);
    assert!(!b.verify(5, |_| false) && !b.is_ready(5), "a damaged chunk is forgotten");
    drop(b);
    std::fs::remove_file(place.file("b", "data")).unwrap();
    let b = blob(&cache, "b", 20);
    assert!((0..20).all(|chunk| !b.is_ready(chunk)));
}

#[test]
fn a_file_cut_under_a_reader_grows_no_zeros() {
    let place = Place::new();
    let cache = place.process(Limit::None);
    let b = blob(&cache, "b", 20);
    fill(&b, 0..18);
    let data = std::fs::File::options().write(true).open(place.file("b", "data")).unwrap();
    data.set_len(at(5) + 1).unwrap();
    assert!(read(&b, 0..5));
    assert!(!read(&b, 12..13) && !b.is_verified(12));
    // Writing behind the cut makes the file longer again; what lies between must not be taken for chunks.
    fill(&b, 19..20);
    for chunk in 0..19 {
        assert!(!b.is_verified(chunk) || read(&b, chunk..chunk + 1), "chunk {chunk}");
    }
    assert!(read(&b, 19..20));
    assert!(!read(&b, 7..8), "it was cut off");
    fill(&b, 0..20);
    assert!(read(&b, 0..20));
    assert_eq!(data.metadata().unwrap().nlink(), 0, "the cut file is left to who may still read it");
    assert!(cache.has_room());
}

#[test]
fn a_file_cut_to_nothing_grows_no_zeros_in_this_process_or_another() {
    let place = Place::new();
    let (one, two, three) = (place.process(Limit::None), place.process(Limit::None), place.process(Limit::None));
    let (first, second) = (blob(&one, "b", 20), blob(&two, "b", 20));
    let cut = || {
        let data = std::fs::File::options().write(true).open(place.file("b", "data")).unwrap();
        data.set_len(0).unwrap();
        data
    };
    fill(&first, 0..18);
    assert!((0..18).all(|chunk| verify(&second, chunk)));
    let data = cut();
    // The process that stores makes a new file; the other one still has the old file and its bits.
    fill(&first, 19..20);
    assert!(read(&first, 19..20) && (0..18).all(|chunk| !read(&first, chunk..chunk + 1)));
    assert!((0..18).all(|chunk| !read(&second, chunk..chunk + 1) && !second.is_verified(chunk)));
    let metadata = data.metadata().unwrap();
    assert_eq!((metadata.nlink(), metadata.len()), (0, 0), "left as it is to who has it open");
    fill(&second, 0..18);
    assert!(read(&second, 0..18) && verify(&first, 7) && verify(&second, 19), "they share a file again");

    // A process that only opens the blob.
    let data = cut();
    let third = blob(&three, "b", 20);
    assert!((0..20).all(|chunk| !third.is_ready(chunk)));
    assert!((0..20).all(|chunk| !read(&first, chunk..chunk + 1) && !read(&second, chunk..chunk + 1)));
    assert_eq!(data.metadata().unwrap().len(), 0);
    fill(&third, 0..20);
    fill(&first, 0..1);
    assert!((0..20).all(|chunk| verify(&first, chunk)) && read(&first, 0..20) && read(&third, 0..20));
}

#[test]
fn who_makes_files_at_the_same_time_makes_the_same() {
    const MAKERS: usize = 4;
    let place = Place::new();
    let dir = place.blobs().join("b");
    let shape = Shape { device_size: at(20), chunks: 20 };
    for length in (0..30).flat_map(|_| [None, Some(0), Some(at(5))]) {
        match length {
            None => drop(std::fs::remove_dir_all(&dir)),
            Some(length) => std::fs::File::options()
                .write(true)
                .open(place.file("b", "data"))
                .and_then(|data| data.set_len(length))
                .unwrap(),
        }
        let start = std::sync::Barrier::new(MAKERS);
        let made: Vec<Files> = std::thread::scope(|scope| {
            let make = || {
                start.wait();
                Files::make(&dir, &shape).unwrap().0
            };
            let makers: Vec<_> = (0..MAKERS).map(|_| scope.spawn(make)).collect();
            makers.into_iter().map(|maker| maker.join().unwrap()).collect()
        });
        for files in &made {
            assert!(files.is_same_data(&made[0]) && files.harm(&shape).unwrap().is_none(), "{length:?}");
        }
        made[0].write_ready(3, true).unwrap();
        assert!(made.iter().all(|files| files.is_ready(3) && !files.is_ready(4)), "{length:?}");
    }
}

#[test]
fn a_lock_file_removed_under_a_reader_lets_nobody_punch_and_is_made_again() {
    let place = Place::new();
    let (one, two) = (place.process(Limit::None), place.process(Limit::None));
    let dir = place.blobs().join("b");
    let first = blob(&one, "b", 32);
    fill(&first, 0..30);
    for stores in [false, true] {
        std::fs::remove_file(place.file("b", "lock")).unwrap();
        let second = blob(&two, "b", 32);
        assert!((0..30).all(|chunk| verify(&second, chunk)));
        for _ in 0..3 {
            assert_eq!(second.evict(0..u32::MAX, u64::MAX).freed, 0);
        }
        drop(second);
        assert!(read(&first, 0..30) && !dirs::is_used(&dir));
        if stores {
            fill(&first, 30..31);
        } else {
            first.look_after();
        }
        assert!(dirs::is_used(&dir) && !dirs::remove(&dir).unwrap());
        assert!((0..30).all(|chunk| first.is_verified(chunk)) && read(&first, 0..30), "nothing is lost");
    }
    for _ in 0..2 {
        first.evict(0..u32::MAX, u64::MAX);
    }
    assert!(!first.is_ready(0), "it can be punched by who has it alone");
}

#[test]
fn files_removed_under_a_reader_are_made_again() {
    let place = Place::new();
    let cache = place.process(Limit::None);
    let b = blob(&cache, "b", 20);
    fill(&b, 0..10);
    std::fs::remove_dir_all(place.blobs()).unwrap();
    assert!(read(&b, 0..10), "from the open file");
    b.look_after();
    fill(&b, 10..11);
    assert!(read(&b, 10..11) && !read(&b, 0..1));
    fill(&b, 0..10);
    assert!(read(&b, 0..11));
    let later = blob(&place.process(Limit::None), "b", 20);
    assert!((0..11).all(|chunk| verify(&later, chunk)));

    // Where nothing can be made again, memory serves.
    std::fs::remove_dir_all(place.blobs()).unwrap();
    std::fs::write(place.blobs(), "in the way").unwrap();
    fill(&b, 15..17);
    assert!(!b.has_room() && read(&b, 15..17) && read(&b, 3..4));
}

#[test]
fn a_directory_of_another_version_is_refused() {
    let place = Place::new();
    drop(place.process(Limit::None));
    let path = place.0.path().join("version");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "2\n");
    std::fs::write(&path, "3\n").unwrap();
    let error = Cache::open(place.0.path(), CacheOptions::default(), Arc::default()).unwrap_err();
    assert!(matches!(&error, Error::OtherVersion { version, .. } if version == "3"), "{error}");
    assert!(error.to_string().contains("--state-dir"), "{error}");
    std::fs::write(&path, "1\n").unwrap();
    drop(place.process(Limit::None));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "2\n", "taken over; who punches what is sealed is refused now");
}

#[test]
fn unused_blobs_go_first_and_the_longest_unused_of_them() {
    let place = Place::new();
    let limit = Limit::Bytes(at(64));
    let cache = place.process(limit);
    for (age, name) in [(30, "old"), (10, "young"), (20, "middle")] {
        fill(&blob(&cache, name, 20), 0..18);
        let time = std::time::SystemTime::now() - Duration::from_secs(age);
        std::fs::File::options().write(true).open(place.file(name, "lock")).unwrap().set_modified(time).unwrap();
    }
    let other = place.process(limit);
    let held = blob(&other, "held", 20);
    fill(&held, 0..4);
    cache.desk.ask_and_wait(Need::default());
    assert_eq!(place.names(), ["held", "middle", "old", "young"], "no more than the limit");
    let used = blob(&cache, "used", 20);
    fill(&used, 0..10);
    assert_eq!(place.names(), ["held", "middle", "used", "young"], "room for 64, of which 4 are margin");
    let evicted = |how| cache.metrics.cache_evicted_bytes[how].get();
    assert!(evicted(Evicted::Blob) >= at(18) && evicted(Evicted::Chunks) == 0);
    assert!(read(&used, 0..10) && read(&held, 0..4));
    assert!(cache.has_room());
}

/// What the metrics say that the cache takes.
fn shown(cache: &Cache) -> u64 {
    u64::try_from(cache.metrics().cache_bytes.get()).unwrap()
}

#[test]
fn what_anybody_removes_is_not_shown_as_used() {
    let place = Place::new();
    let (cache, other) = (place.process(Limit::None), place.process(Limit::None));
    let mut hand = Hand::default();
    until("both have counted", || cache.is_counted() && other.is_counted());
    for key in ["a".repeat(64), "b".repeat(64)] {
        fill(&blob(&cache, &format!("{key}.t"), 8), 0..8);
    }
    // Until now only chunks were counted, and not what is written beside them.
    (0..=evict::IDLE_RECOUNT).for_each(|_| evict::tick(&cache, &mut hand));
    assert_eq!(shown(&cache), place.disk());
    let one = BTreeSet::from([format!("sha256:{}", "a".repeat(64))]);
    let (removed, in_use) = Inventory::read(place.path()).unwrap().release(&one, &[]).unwrap();
    assert!(removed.bytes > 0 && in_use.is_empty());
    cache.look_again();
    assert_eq!(shown(&cache), place.disk(), "in the process that removed it, at once");
    evict::tick(&other, &mut Hand::default());
    assert_eq!(shown(&other), place.disk(), "and in others at the next look");
    std::fs::remove_dir_all(place.blobs().join(format!("{}.t", "b".repeat(64)))).unwrap();
    (0..=evict::IDLE_RECOUNT).for_each(|_| evict::tick(&cache, &mut hand));
    assert_eq!((shown(&cache), place.disk()), (0, 0), "what is removed by hand is noticed too");
}

#[test]
fn what_another_process_uses_is_not_punched() {
    let place = Place::new();
    let (one, two) = (place.process(Limit::None), place.process(Limit::None));
    let (first, second) = (blob(&one, "b", 64), blob(&two, "b", 64));
    fill(&first, 0..64);
    assert!((0..64).all(|chunk| verify(&second, chunk)));
    for _ in 0..3 {
        assert_eq!(first.evict(0..u32::MAX, u64::MAX).freed, 0);
    }
    assert!(!dirs::remove(&place.blobs().join("b")).unwrap() && dirs::is_used(&place.blobs().join("b")));
    assert!(read(&first, 0..64) && read(&second, 0..64));
    drop(second);
    first.evict(0..u32::MAX, u64::MAX);
    assert!(first.evict(0..u32::MAX, u64::MAX).freed >= at(64), "all, as nothing was read since");
    assert!((0..64).all(|chunk| !first.is_verified(chunk) && !first.is_ready(chunk)));
    assert!(place.disk() < at(2), "{}", place.disk());
    drop((first, two));
    assert!(!dirs::is_used(&place.blobs().join("b")) && dirs::remove(&place.blobs().join("b")).unwrap());
    assert!(place.names().is_empty() && std::fs::read_dir(place.blobs()).unwrap().next().is_none());
}

#[test]
fn what_was_read_since_is_spared_once() {
    let place = Place::new();
    let cache = place.process(Limit::None);
    let b = blob(&cache, "b", 32);
    fill(&b, 0..32);
    assert_eq!(b.evict(0..u32::MAX, u64::MAX).freed, 0, "all was stored since");
    assert!(read(&b, 3..5));
    let progress = b.evict(0..u32::MAX, at(4));
    assert_eq!((progress.next, progress.freed / CHUNK as u64), (Some(6), 4));
    let there: Vec<u32> = (0..32).filter(|chunk| b.is_verified(*chunk)).collect();
    assert_eq!(there[..4], [3, 4, 6, 7]);
    assert!(read(&b, 3..5) && !read(&b, 2..4));
    b.evict(6..u32::MAX, u64::MAX);
    assert_eq!((0..32).filter(|chunk| b.is_ready(*chunk)).collect::<Vec<_>>(), [3, 4]);
}

#[test]
fn what_no_ready_chunk_covers_is_swept() {
    let place = Place::new();
    let cache = place.process(Limit::None);
    let b = blob(&cache, "b", 32);
    fill(&b, 0..32);
    // As a process does that is killed between a chunk and its bit.
    b.forget(7);
    b.forget(31);
    drop(b);
    let b = blob(&cache, "b", 32);
    let before = place.disk();
    assert_eq!(b.evict(0..u32::MAX, 1).freed, at(2));
    assert_eq!(before - place.disk(), at(2));
    assert!((0..31).filter(|c| *c != 7).all(|chunk| verify(&b, chunk)));
}

#[test]
fn what_is_forgotten_while_it_is_verified_is_not_swept() {
    let place = Place::new();
    fill(&blob(&place.process(Limit::None), "b", 32), 0..32);
    let cache = place.process(Limit::None);
    let b = blob(&cache, "b", 32);
    let forgetful = |chunk| {
        b.verify(chunk, |bytes| {
            b.forget(chunk);
            bytes == content(chunk)
        })
    };
    assert!((5..8).all(forgetful) && (5..8).all(|chunk| b.is_verified(chunk) && !b.is_ready(chunk)));
    assert_eq!(b.evict(0..0, 1).freed, 0, "nothing to sweep");
    assert!(read(&b, 5..8));
    b.evict(5..8, u64::MAX);
    assert_eq!(b.evict(5..8, u64::MAX).freed, at(3), "it can be evicted");
    assert!(!read(&b, 5..6));
}

/// Reads, refills and evicts at the same time, all as fast as they can. Readers look at every byte.
#[test]
fn readers_see_no_hole_while_chunks_come_and_go() {
    const CHUNKS: u32 = 64;
    const ROUNDS: u64 = 3000;
    let place = Place::new();
    let cache = place.process(Limit::None);
    let b = blob(&cache, "b", CHUNKS);
    let (stop, reads, misses) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for reader in 0..3_u32 {
            let (b, stop, reads, misses) = (&b, &stop, &reads, &misses);
            scope.spawn(move || {
                let mut next = reader * 7919;
                while !stop.load(Ordering::Relaxed) {
                    next = next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let first = (next >> 16) % CHUNKS;
                    let chunks = first..(first + 1 + (next >> 8) % 4).min(CHUNKS);
                    if read(b, chunks.clone()) {
                        reads.fetch_add(1, Ordering::Relaxed);
                    } else {
                        misses.fetch_add(1, Ordering::Relaxed);
                        // Fetched again, or found by hashing.
                        for chunk in chunks.filter(|chunk| !verify(b, *chunk)) {
                            b.store(chunk, &content(chunk));
                        }
                    }
                }
            });
        }
        let (mut from, mut rounds, start) = (0, 0, Instant::now());
        // A busy machine may give readers no turn for a while.
        let enough =
            |rounds| rounds >= ROUNDS && reads.load(Ordering::Relaxed) > 1000 && misses.load(Ordering::Relaxed) > 100;
        while !enough(rounds) && start.elapsed() < PATIENCE {
            let progress = b.evict(from..u32::MAX, at(3));
            from = progress.next.unwrap_or(0);
            rounds += u64::from(progress.freed > 0);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(enough(rounds), "{rounds} rounds, {reads:?} reads, {misses:?} misses: they hardly met");
    });
    assert!(cache.has_room() && cache.overflow.bytes() == 0);
}

/// A blob ten times the limit, written and read by several threads, as by several mounts.
#[test]
fn stays_within_its_limit_with_all_threads_writing() {
    const CHUNKS: u32 = 640;
    let place = Place::new();
    let limit = at(64);
    let cache = place.process(Limit::Bytes(limit));
    let b = blob(&cache, "b", CHUNKS);
    let (stop, most) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                most.fetch_max(place.disk(), Ordering::Relaxed);
            }
        });
        let writers: Vec<_> = (0..3_u32)
            .map(|writer| {
                let b = &b;
                scope.spawn(move || {
                    let mut kept = 0;
                    for chunk in (0..3 * CHUNKS).map(|n| (n + writer * 200) % CHUNKS) {
                        if !verify(b, chunk) {
                            b.store(chunk, &content(chunk));
                        }
                        kept += u32::from(read(b, chunk..chunk + 1));
                    }
                    kept
                })
            })
            .collect();
        let kept: Vec<u32> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(kept.iter().all(|kept| *kept > 3 * CHUNKS * 9 / 10), "{kept:?}");
    });
    let most = most.into_inner();
    assert!(most > limit / 2 && most <= limit + LIMIT_SLACK, "{most} of {limit}");
    // One process needs no slack but for the bitmap and what the file system adds.
    assert!(most <= limit + (64 << 10), "{most} of {limit}");
    let evicted = cache.metrics.cache_evicted_bytes[Evicted::Chunks].get();
    let failures = cache.metrics.cache_store_failures.get();
    assert!(evicted > at(CHUNKS) && failures == 0, "{evicted} bytes evicted, {failures} failures");
}

#[test]
fn where_nothing_can_go_memory_serves_and_room_is_noticed() {
    let place = Place::new();
    let limit = Limit::Bytes(at(16));
    let (one, two) = (place.process(limit), place.process(limit));
    let (first, second) = (blob(&one, "b", 64), blob(&two, "b", 64));
    fill(&first, 0..32);
    assert!(!first.has_room(), "two processes use the blob: nothing can be punched");
    assert!(read(&first, 0..32));
    assert!(place.disk() <= at(17), "{}", place.disk());
    assert!(one.metrics.cache_store_failures.get() > 0 && one.metrics.cache_overflow_bytes.get() > 0);
    drop(second);
    until("the pause ends", || first.has_room());
    fill(&first, 32..40);
    assert!(first.has_room() && (32..40).all(|chunk| first.is_ready(chunk)), "room was made");
    one.overflow.clear_unused(Duration::ZERO);
    one.tidy();
    assert_eq!(one.metrics.cache_overflow_bytes.get(), 0);
    assert!(place.disk() <= at(17), "{}", place.disk());
}

#[test]
fn who_waits_for_room_behind_one_that_finds_none_gives_up() {
    const WRITERS: u32 = 4;
    let place = Place::new();
    let cache = place.process(Limit::None);
    let b = blob(&cache, "b", 32);
    fill(&b, 0..1);
    let turn = cache.turn.lock().unwrap();
    // As the one who has the turn.
    cache.waiting.fetch_add(1, Ordering::AcqRel);
    std::thread::scope(|scope| {
        for chunk in 1..=WRITERS {
            let b = &b;
            scope.spawn(move || fill(b, chunk..chunk + 1));
        }
        until("all wait", || cache.waiting.load(Ordering::Acquire) == WRITERS + 1);
        cache.no_room(&place.blobs(), &std::io::Error::other("in vain"));
        cache.waiting.fetch_sub(1, Ordering::AcqRel);
        drop(turn);
    });
    assert_eq!(cache.waiting.load(Ordering::Acquire), 0);
    assert!((1..=WRITERS).all(|chunk| !b.is_ready(chunk)) && read(&b, 0..1 + WRITERS), "in memory");
    assert_eq!(cache.metrics.cache_store_failures.get(), u64::from(WRITERS));
    until("the pause ends", || b.has_room());
    fill(&b, 9..10);
    assert!(b.is_ready(9) && b.has_room());
}

/// No store's wait may be the sum of others' waits when eviction hangs.
#[test]
fn a_hung_eviction_is_waited_for_once() {
    const WRITERS: u32 = 4;
    let place = Place::new();
    let cache = place.process(Limit::Bytes(at(16)));
    let b = blob(&cache, "b", 64);
    fill(&b, 0..14);
    // The thread that evicts needs it.
    let hung = cache.lock_open();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let b = &b;
            scope.spawn(move || fill(b, 14 + 4 * writer..18 + 4 * writer));
        }
    });
    let waited = start.elapsed();
    drop(hung);
    assert!(waited < STORE_PATIENCE * (WRITERS - 1), "{waited:?}");
    assert!(cache.metrics.cache_store_failures.get() >= u64::from(WRITERS));
    assert!(read(&b, 14..14 + 4 * WRITERS), "from disk or memory");
}

#[test]
fn a_process_makes_room_for_another() {
    let place = Place::new();
    let limit = Limit::Bytes(at(64));
    let (one, two) = (place.process(limit), place.process(limit));
    let hog = blob(&one, "hog", 64);
    fill(&hog, 0..58);
    let starved = blob(&two, "starved", 64);
    fill(&starved, 0..32);
    let mut before = 0;
    let mut hand = Hand::default();
    for round in 0..4 {
        fill(&starved, 0..32);
        let kept = place.disk() - at(64).min(std::fs::metadata(place.file("hog", "data")).unwrap().blocks() * 512);
        assert!(kept > before, "round {round}: {kept} after {before}");
        before = kept;
        // What the thread does every few seconds. The first time it finds that all has been used.
        evict::tick(&one, &mut hand);
        starved.evict(0..u32::MAX, at(8));
        fill(&starved, 0..32);
        evict::tick(&one, &mut hand);
    }
    assert!(place.disk() <= at(65), "{}", place.disk());
}

#[test]
fn a_full_disk_costs_what_is_cold_and_is_noticed_when_it_is_over() {
    let place = Place::new();
    let size = format!("size={}", at(64));
    let mounted =
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(place.0.path()).status();
    assert!(mounted.unwrap().success(), "mount a tmpfs, as root");
    let _unmount = Unmount(place.0.path());
    let cache = place.process(Limit::None);
    fill(&blob(&cache, "unused", 20), 0..20);
    let b = blob(&cache, "b", 100);
    fill(&b, 0..56);
    assert_eq!(place.names(), ["b"], "an unused blob made room");
    assert!(b.has_room() && (0..56).all(|chunk| b.is_ready(chunk)));
    // Somebody else takes the rest.
    let other = place.0.path().join("other");
    std::fs::write(&other, vec![1; usize::try_from(at(6)).unwrap()]).unwrap();
    fill(&b, 56..70);
    assert!((56..70).all(|chunk| read(&b, chunk..chunk + 1)), "from disk or memory");
    assert!(cache.metrics.cache_store_failures.get() > 0);
    std::fs::remove_file(other).unwrap();
    until("the pause ends", || b.has_room());
    fill(&b, 90..94);
    assert!(b.has_room() && (90..94).all(|chunk| b.is_ready(chunk)), "no longer full");
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0).status();
    }
}

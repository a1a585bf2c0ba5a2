//! Chunks that the cache has no room for, in memory for as long as their readers need them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

/// Most bytes of chunks in memory, for all blobs of a process: 32 reads of the largest size at a time.
const MAX_BYTES: usize = 32 << 20;

/// A chunk of one of the blobs that this process has open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) blob: u64,
    pub(crate) chunk: u32,
}

/// Verified chunks, the longest unused going first.
#[derive(Debug)]
pub(crate) struct Overflow {
    chunks: Mutex<Chunks>,
    /// Changed under the lock; read without it, so that an empty overflow costs nothing to ask.
    bytes: AtomicUsize,
}

#[derive(Debug)]
struct Chunks {
    by_key: LruCache<Key, Arc<[u8]>>,
    used: Instant,
}

impl Default for Overflow {
    fn default() -> Self {
        let chunks = Chunks { by_key: LruCache::unbounded(), used: Instant::now() };
        Self { chunks: Mutex::new(chunks), bytes: AtomicUsize::new(0) }
    }
}

impl Overflow {
    /// Bytes of what it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// Keeps a chunk that has been verified.
    pub(crate) fn keep(&self, key: Key, bytes: &[u8]) {
        let mut chunks = self.lock();
        chunks.used = Instant::now();
        let mut held = self.bytes() + bytes.len();
        if let Some(before) = chunks.by_key.put(key, bytes.into()) {
            held -= before.len();
        }
        while held > MAX_BYTES {
            let Some((_, oldest)) = chunks.by_key.pop_lru() else { break };
            held -= oldest.len();
        }
        self.bytes.store(held, Ordering::Release);
    }

    /// The chunk, if it is still there.
    pub(crate) fn get(&self, key: Key) -> Option<Arc<[u8]>> {
        if self.bytes() == 0 {
            return None;
        }
        let mut chunks = self.lock();
        let found = chunks.by_key.get(&key).cloned();
        if found.is_some() {
            chunks.used = Instant::now();
        }
        found
    }

    /// Whether the chunk is there, without making it younger.
    pub(crate) fn has(&self, key: Key) -> bool {
        self.bytes() != 0 && self.lock().by_key.contains(&key)
    }

    /// Gives all memory back if nobody has put anything in, or found anything, for so long.
    pub(crate) fn clear_unused(&self, idle: Duration) {
        let mut chunks = self.lock();
        if chunks.used.elapsed() >= idle {
            chunks.by_key = LruCache::unbounded();
            self.bytes.store(0, Ordering::Release);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Chunks> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_its_bytes_and_drops_the_longest_unused() {
        let overflow = Overflow::default();
        let key = |chunk| Key { blob: 7, chunk };
        assert!(overflow.get(key(0)).is_none());
        let quarter = vec![7; MAX_BYTES / 4];
        for chunk in [0, 1, 2, 3, 0] {
            overflow.keep(key(chunk), &quarter);
        }
        assert_eq!(overflow.bytes(), MAX_BYTES, "kept twice, counted once");
        assert!((0..4).all(|chunk| overflow.get(key(chunk)).is_some()));
        assert!(overflow.has(key(0)) && !overflow.has(Key { blob: 8, chunk: 0 }));
        overflow.keep(key(4), &quarter);
        let there: Vec<u32> = (0..5).filter(|chunk| overflow.get(key(*chunk)).is_some()).collect();
        assert_eq!(there, [1, 2, 3, 4]);
        overflow.clear_unused(Duration::from_secs(60));
        assert!(overflow.has(key(4)));
        overflow.clear_unused(Duration::ZERO);
        assert!(overflow.bytes() == 0 && !overflow.has(key(4)));
    }
}

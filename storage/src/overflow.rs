//! Chunks that the cache has no room for, in memory for as long as their readers need them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

/// Most bytes of chunks in memory, for all blobs of an image: 32 reads of the largest size at a time.
const MAX_BYTES: usize = 32 << 20;

/// Verified chunks by their number in the image, the longest unused going first.
#[derive(Debug)]
pub(crate) struct Overflow {
    used: AtomicBool,
    chunks: Mutex<Chunks>,
}

#[derive(Debug)]
struct Chunks {
    by_number: LruCache<u32, Arc<[u8]>>,
    bytes: usize,
}

impl Default for Overflow {
    fn default() -> Self {
        let chunks = Chunks { by_number: LruCache::unbounded(), bytes: 0 };
        Self { used: AtomicBool::new(false), chunks: Mutex::new(chunks) }
    }
}

impl Overflow {
    /// Whether the cache has failed to keep something. Costs nothing to ask.
    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Acquire)
    }

    /// Keeps a chunk that has been verified. True for the first one ever.
    pub(crate) fn keep(&self, chunk: u32, bytes: &[u8]) -> bool {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        chunks.bytes += bytes.len();
        if let Some(before) = chunks.by_number.put(chunk, bytes.into()) {
            chunks.bytes -= before.len();
        }
        while chunks.bytes > MAX_BYTES {
            let Some((_, oldest)) = chunks.by_number.pop_lru() else { break };
            chunks.bytes -= oldest.len();
        }
        drop(chunks);
        !self.used.swap(true, Ordering::AcqRel)
    }

    /// The chunk, if it is still there.
    pub(crate) fn get(&self, chunk: u32) -> Option<Arc<[u8]>> {
        if !self.is_used() {
            return None;
        }
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).by_number.get(&chunk).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_its_bytes_and_drops_the_longest_unused() {
        let overflow = Overflow::default();
        assert!(!overflow.is_used() && overflow.get(0).is_none());
        let quarter = vec![7; MAX_BYTES / 4];
        assert!(overflow.keep(0, &quarter));
        for chunk in 1..4 {
            assert!(!overflow.keep(chunk, &quarter));
        }
        assert!(!overflow.keep(0, &quarter), "kept twice, counted once");
        assert!((0..4).all(|chunk| overflow.get(chunk).is_some()));
        overflow.keep(4, &quarter);
        let there: Vec<u32> = (0..5).filter(|chunk| overflow.get(*chunk).is_some()).collect();
        assert_eq!(there, [1, 2, 3, 4]);
    }
}

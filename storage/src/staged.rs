//! Chunks that came along with what was asked for: stored bytes in memory, decoded when somebody wants them.
//!
//! A request costs the time of its round trip whatever its size, so a miss brings its neighbours along ([`crate::window`]).
//! Most of them are never read; to decode those would cost more than all the rest of a start. What does not fit here any more
//! is decoded after all and goes into the cache, so that nothing is fetched twice.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use lru::LruCache;

use crate::blob::{Blob, weight};
use crate::fetch::Fetcher;

/// Most stored bytes that lie here, a chunk counting for at least [`crate::blob::MIN_WEIGHT`]: twelve requests of the largest window. A start of Python with numpy brings 58 MB along
/// beside what it reads; the part that does not fit is decoded in vain, and that should be the smaller one.
pub(crate) const MAX_STAGED: u64 = 36 << 20;

/// A chunk: which image's, by its fetcher's number, and its number there.
pub(crate) type Key = (u64, u32);

/// Stored, unverified bytes of chunks of all images.
#[derive(Debug, Default)]
pub(crate) struct Staged(Mutex<State>);

#[derive(Debug)]
struct State {
    chunks: LruCache<Key, Kept>,
    bytes: u64,
}

#[derive(Debug)]
struct Kept {
    bytes: Bytes,
    fetcher: Weak<Fetcher>,
    blob: Arc<Blob>,
}

fn weight_of(bytes: &Bytes) -> u64 {
    weight(bytes.len() as u64, 1)
}

impl Default for State {
    fn default() -> Self {
        Self { chunks: LruCache::unbounded(), bytes: 0 }
    }
}

impl Staged {
    /// Keeps a chunk's bytes. [`Staged::surplus`] is to be asked afterwards.
    pub(crate) fn put(&self, key: Key, fetcher: &Arc<Fetcher>, blob: &Arc<Blob>, bytes: Bytes) {
        let mut state = self.lock();
        state.bytes += weight_of(&bytes);
        let kept = Kept { bytes, fetcher: Arc::downgrade(fetcher), blob: Arc::clone(blob) };
        if let Some(before) = state.chunks.put(key, kept) {
            state.bytes -= weight_of(&before.bytes);
        }
    }

    /// Whether a chunk is here.
    pub(crate) fn has(&self, key: Key) -> bool {
        self.lock().chunks.contains(&key)
    }

    /// Takes a chunk's bytes out.
    pub(crate) fn take(&self, key: Key) -> Option<Bytes> {
        let mut state = self.lock();
        let kept = state.chunks.pop(&key)?;
        state.bytes -= weight_of(&kept.bytes);
        Some(kept.bytes)
    }

    /// The chunk that is to be taken out since there is more here than should be, and whose it is: the one that has been here longest.
    pub(crate) fn surplus(&self) -> Option<(Key, Weak<Fetcher>, Arc<Blob>)> {
        let state = self.lock();
        let oldest = (state.bytes > MAX_STAGED).then(|| state.chunks.peek_lru()).flatten();
        oldest.map(|(key, kept)| (*key, Weak::clone(&kept.fetcher), Arc::clone(&kept.blob)))
    }

    /// Drops what is here of an image that has gone.
    pub(crate) fn forget(&self, fetcher: u64) {
        let mut state = self.lock();
        let keys: Vec<Key> = state.chunks.iter().map(|(key, _)| *key).filter(|(whose, _)| *whose == fetcher).collect();
        for kept in keys.iter().filter_map(|key| state.chunks.pop(key)).collect::<Vec<_>>() {
            state.bytes -= weight_of(&kept.bytes);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

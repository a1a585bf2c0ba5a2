//! Chunks that came along with what was asked for: stored bytes in memory, decoded when somebody wants them.
//!
//! A request costs the time of its round trip whatever its size, so a miss brings its neighbours along ([`crate::window`]).
//! Most of them are never read; to decode those would cost more than all the rest of a start. What does not fit here any more
//! is decoded after all and goes into the cache, so that nothing is fetched twice.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lru::LruCache;

use crate::blob::Blob;

/// Most stored bytes that lie here: twelve requests of the largest window. A start of Python with numpy brings 58 MB along
/// beside what it reads; the part that does not fit is decoded in vain, and that should be the smaller one.
pub(crate) const MAX_STAGED: u64 = 36 << 20;

/// Stored, unverified bytes of chunks by their number in the image.
#[derive(Debug, Default)]
pub(crate) struct Staged(Mutex<State>);

#[derive(Debug)]
struct State {
    chunks: LruCache<u32, (Arc<Blob>, Bytes)>,
    bytes: u64,
}

impl Default for State {
    fn default() -> Self {
        Self { chunks: LruCache::unbounded(), bytes: 0 }
    }
}

impl Staged {
    /// Keeps a chunk's bytes. [`Staged::surplus`] is to be asked afterwards.
    pub(crate) fn put(&self, blob: &Arc<Blob>, chunk: u32, bytes: Bytes) {
        let mut state = self.lock();
        state.bytes += bytes.len() as u64;
        if let Some((_, before)) = state.chunks.put(chunk, (Arc::clone(blob), bytes)) {
            state.bytes -= before.len() as u64;
        }
    }

    /// Whether a chunk is here.
    pub(crate) fn has(&self, chunk: u32) -> bool {
        self.lock().chunks.contains(&chunk)
    }

    /// Takes a chunk's bytes out.
    pub(crate) fn take(&self, chunk: u32) -> Option<Bytes> {
        let mut state = self.lock();
        let (_, bytes) = state.chunks.pop(&chunk)?;
        state.bytes -= bytes.len() as u64;
        Some(bytes)
    }

    /// The chunk that is to be taken out since there is more here than should be: the one that has been here longest.
    pub(crate) fn surplus(&self) -> Option<(Arc<Blob>, u32)> {
        let state = self.lock();
        let oldest = (state.bytes > MAX_STAGED).then(|| state.chunks.peek_lru()).flatten();
        oldest.map(|(chunk, (blob, _))| (Arc::clone(blob), *chunk))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The paths that log lines name.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use tokio::sync::Mutex;

use crate::fs::{FileSystem, Target};

/// Paths that are remembered: those of about as many lines as a bounded log has of one outage.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// How long a line waits for its path. Searching the largest tree takes about a second; a few lines may want that at a time.
const PATIENCE: Duration = Duration::from_secs(3);

/// By target and offset; nothing for one that was searched for in vain.
type Found = LruCache<(Target, u64), Option<String>>;

/// Finds paths by searching the tree, one at a time, so that this takes one of the runtime's few blocking threads at most.
#[derive(Debug)]
pub(super) struct Paths {
    fs: Arc<FileSystem>,
    found: Arc<Mutex<Found>>,
}

impl Paths {
    pub(super) fn new(fs: Arc<FileSystem>) -> Self {
        Self { fs, found: Arc::new(Mutex::new(LruCache::new(REMEMBERED))) }
    }

    /// A path of a file that has bytes there, if one is found in time.
    pub(super) async fn find(&self, target: Target, offset: u64) -> Option<String> {
        // A file is the same one at each of its bytes.
        let offset = if matches!(target, Target::File(_)) { 0 } else { offset };
        tokio::time::timeout(PATIENCE, self.search(target, offset)).await.ok().flatten()
    }

    async fn search(&self, target: Target, offset: u64) -> Option<String> {
        // Held by the search itself, which goes on when nobody waits for it any more.
        let mut found = Arc::clone(&self.found).lock_owned().await;
        if let Some(path) = found.get(&(target, offset)) {
            return path.clone();
        }
        let fs = Arc::clone(&self.fs);
        let search = tokio::task::spawn_blocking(move || {
            let path = fs.path_of(target, offset);
            found.put((target, offset), path.clone());
            path
        });
        search.await.ok().flatten()
    }
}

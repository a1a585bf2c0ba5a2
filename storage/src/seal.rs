//! When blobs are sealed: in the background, by a task of each reader.

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use lazo_format::BlobIndex;
use tokio::sync::oneshot;

use crate::blob::{Blob, cache_key};
use crate::cache::{PlainBlob, Sealed};
use crate::reader::Reader;

/// How often to look whether another process has stored what was missing, or an attempt that came to nothing may succeed. What this
/// process stores is noticed at once.
const TICK: Duration = Duration::from_secs(10);

impl Reader {
    /// A blob's cache file, if all of it was verified, for the kernel to read without this process.
    ///
    /// From then on nobody changes the file for as long as this boot lasts, so that it takes its disk space until it is unused and
    /// removed as a whole: only for what is to be mounted.
    pub async fn sealed(&self, number: BlobIndex) -> Option<PlainBlob> {
        if !self.is_kept(number) {
            return None;
        }
        let found = match self.blob(number).await {
            Ok(blob) => self.runtime.spawn_blocking(move || blob.plain()).await,
            Err(error) => {
                tracing::debug!(blob = %number, error = &*error as &dyn std::error::Error, "a sealed blob cannot be used");
                return None;
            }
        };
        found.unwrap_or(Ok(None)).unwrap_or_else(|error| {
            tracing::debug!(blob = %number, %error, "a sealed blob cannot be used");
            None
        })
    }

    /// Whether anything of a blob is in the cache: one of which nothing is need not be opened, and costs no files.
    fn is_kept(&self, number: BlobIndex) -> bool {
        cache_key(&self.index, number).is_ok_and(|key| self.cache.has(&key))
    }

    /// Begins to seal the image's blobs in the background, each as soon as all of it is in the cache. Ends with the reader.
    pub fn start_sealing(self: &Arc<Self>) {
        let (weak, cache) = (Arc::downgrade(self), Arc::clone(&self.cache));
        let task = self.runtime.spawn(async move {
            let mut never = Vec::new();
            loop {
                let completed = cache.completed().notified();
                let mut completed = std::pin::pin!(completed);
                // Registered before the look at what is there, so that nothing is missed between the two.
                completed.as_mut().enable();
                if !seal_all(&weak, &mut never).await {
                    return;
                }
                tokio::select! {
                    () = completed => {}
                    () = tokio::time::sleep(TICK) => {}
                }
            }
        });
        let mut running = self.sealing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = running.replace(task) {
            before.abort();
        }
    }
}

/// Seals what can be sealed now. Adds to `never` what cannot be here. False when the reader is gone.
async fn seal_all(reader: &Weak<Reader>, never: &mut Vec<BlobIndex>) -> bool {
    let Some(numbers) = reader.upgrade().map(|reader| reader.index.blob_numbers()) else { return false };
    for number in numbers.filter(|number| !never.contains(number)).collect::<Vec<_>>() {
        let Some(held) = reader.upgrade() else { return false };
        if !held.is_kept(number) {
            continue;
        }
        let Ok(blob) = held.blob(number).await else { continue };
        if !blob.is_complete() || blob.is_sealed() {
            continue;
        }
        let cache = Arc::clone(&held.cache);
        // It may take long to get the turn, and longer to be done.
        drop(held);
        let _turn = cache.begin_sealing().await;
        match seal(blob, reader.clone()).await {
            Some(Sealed::Never) => never.push(number),
            Some(_) => {}
            None => return false,
        }
    }
    true
}

/// Seals a blob, on a thread of its own that everybody else goes before. `None` if there can be none.
async fn seal(blob: Arc<Blob>, reader: Weak<Reader>) -> Option<Sealed> {
    let (done, sealed) = oneshot::channel();
    let thread = std::thread::Builder::new().name("lazo-seal".into()).spawn(move || {
        give_way();
        let sealed = blob.seal(|| reader.strong_count() > 0);
        drop(blob);
        // Nobody waits when the reader has gone.
        let _ = done.send(sealed);
    });
    if let Err(error) = thread {
        tracing::warn!(%error, "cannot start a thread to seal a blob");
        return None;
    }
    sealed.await.ok()
}

/// Makes this thread one that runs when no other wants to.
fn give_way() {
    // Of the calling thread alone, as the kernel has it. Where it is refused, sealing takes its share.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
}

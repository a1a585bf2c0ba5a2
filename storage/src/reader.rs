//! The data path of one mounted image: bytes at device addresses of its blobs.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use lazo_format::{BlobIndex, ChunkIndex, DeviceAddr, Index, IndexError, PrefetchRange};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::blob::Blob;
use crate::cache::Cache;
use crate::error::ReadError;
use crate::fetch::{Fetcher, Stats};
use crate::mapped::Mapped;
use crate::pool::Priority;
use crate::source::BlobSource;

/// Rounds of fetching for one read. One is enough unless cache files are removed or damaged meanwhile.
const ROUNDS: u32 = 3;

/// Reads an image's blobs. Cheap to make; opens a blob's cache when it is first read.
#[derive(Debug)]
pub struct Reader {
    index: Arc<Index<Mapped>>,
    cache: Arc<Cache>,
    blobs: Box<[OnceLock<Arc<Blob>>]>,
    opening: Mutex<()>,
    fetcher: Arc<Fetcher>,
    runtime: Handle,
    prefetch: Mutex<Option<JoinHandle<()>>>,
}

impl Reader {
    /// A reader of the blobs in `index`, fetching from `source`, keeping chunks in `cache`, with its tasks on `runtime`.
    #[must_use]
    pub fn new(index: Arc<Index<Mapped>>, source: Arc<dyn BlobSource>, cache: Arc<Cache>, runtime: Handle) -> Self {
        Self {
            blobs: (0..index.blob_count()).map(|_| OnceLock::new()).collect(),
            cache,
            opening: Mutex::default(),
            fetcher: Arc::new(Fetcher::new(source, runtime.clone())),
            prefetch: Mutex::default(),
            index,
            runtime,
        }
    }

    /// Fills `buf` from the cache if everything that is asked for is there; never waits for the network.
    ///
    /// When it returns false, `buf` holds nothing of use and [`Reader::fetch`] is to be called.
    ///
    /// # Errors
    /// When the chunk index has no such address, or the cache cannot be used.
    pub fn read_cached(&self, blob: BlobIndex, at: DeviceAddr, buf: &mut [u8]) -> Result<bool, Arc<ReadError>> {
        let (blob, chunks) = self.locate(blob, at, buf.len())?;
        for chunk in chunks.clone() {
            if !blob.is_usable(chunk)? {
                return Ok(false);
            }
        }
        for chunk in chunks.clone() {
            if blob.take_mark(chunk) {
                self.read_ahead(&blob, &(chunk..chunk + 1))?;
            }
        }
        Ok(blob.read(at.0, buf, chunks))
    }

    /// Brings everything in `length` bytes from a device address into the cache.
    ///
    /// # Errors
    /// When a chunk cannot be had: source and cache have been tried again where that makes sense.
    pub async fn fetch(&self, blob: BlobIndex, at: DeviceAddr, length: usize) -> Result<(), Arc<ReadError>> {
        let (blob, chunks) = self.locate(blob, at, length)?;
        let mut lost = chunks.start;
        for round in 0..ROUNDS {
            let Some(missing) = missing(&blob, &chunks)? else {
                return Ok(());
            };
            lost = missing.start;
            let flights = self.fetcher.demand(&blob, missing)?;
            if round == 0 {
                self.read_ahead(&blob, &chunks)?;
            }
            for flight in flights {
                flight.wait().await?;
            }
        }
        match missing(&blob, &chunks)? {
            None => Ok(()),
            Some(_) => Err(Arc::new(ReadError::Lost { digest: blob.record().digest, chunk: ChunkIndex(lost) })),
        }
    }

    /// Fills `buf`, fetching what is not in the cache.
    ///
    /// # Errors
    /// As [`Reader::fetch`].
    pub async fn read(&self, blob: BlobIndex, at: DeviceAddr, buf: &mut [u8]) -> Result<(), Arc<ReadError>> {
        for _ in 0..ROUNDS {
            if self.read_cached(blob, at, buf)? {
                return Ok(());
            }
            self.fetch(blob, at, buf.len()).await?;
        }
        let (blob, chunks) = self.locate(blob, at, buf.len())?;
        Err(Arc::new(ReadError::Lost { digest: blob.record().digest, chunk: ChunkIndex(chunks.start) }))
    }

    /// Begins to fetch the image's prefetch list in the background, in its order. Ends with the reader.
    pub fn start_prefetch(self: &Arc<Self>) {
        let (reader, index) = (Arc::downgrade(self), Arc::clone(&self.index));
        let task = self.runtime.spawn(async move {
            for range in index.prefetch() {
                // Held for one range only, so that the reader can go meanwhile.
                let Some(reader) = reader.upgrade() else { return };
                if let Err(error) = reader.prefetch_range(range).await {
                    tracing::warn!(error = &*error as &dyn std::error::Error, "prefetch given up");
                    return;
                }
            }
            tracing::debug!("all of the prefetch list has been asked for");
        });
        let mut running = self.prefetch.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = running.replace(task) {
            before.abort();
        }
    }

    /// Counts since the reader was made.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.fetcher.stats()
    }

    async fn prefetch_range(&self, range: Result<PrefetchRange, IndexError>) -> Result<(), Arc<ReadError>> {
        let bad = |source| Arc::new(ReadError::Index { blob: BlobIndex(0), at: 0, source });
        let range = range.map_err(bad)?;
        let blob = self.blob(self.index.blob_of(range.first).map_err(bad)?)?;
        if range.chunks().end > blob.record().chunks().end {
            return Err(bad(IndexError::Chunk(range.first, "a prefetch range leaves its blob")));
        }
        self.fetcher.fetch_unclaimed(&blob, range.chunks(), Priority::Prefetch).await
    }

    fn read_ahead(&self, blob: &Arc<Blob>, chunks: &Range<u32>) -> Result<(), Arc<ReadError>> {
        let stored = blob.stored_range(chunks)?;
        let Some(ahead) = blob.streams().read(&stored) else {
            return Ok(());
        };
        let fetch = blob.chunks_stored_in(&ahead.fetch)?;
        if fetch.is_empty() {
            return Ok(());
        }
        let mark = blob.chunks_stored_in(&(ahead.mark..ahead.fetch.end))?;
        blob.mark(mark.start.min(fetch.end - 1));
        self.fetcher.ahead(blob, fetch);
        Ok(())
    }

    fn locate(
        &self,
        blob: BlobIndex,
        at: DeviceAddr,
        length: usize,
    ) -> Result<(Arc<Blob>, Range<u32>), Arc<ReadError>> {
        let blob = self.blob(blob)?;
        let chunks = blob.chunks_in(at.0..at.0.saturating_add(length as u64))?;
        Ok((blob, chunks))
    }

    fn blob(&self, number: BlobIndex) -> Result<Arc<Blob>, Arc<ReadError>> {
        let Some(slot) = self.blobs.get(usize::from(number.0)) else {
            return Err(Arc::new(ReadError::Index { blob: number, at: 0, source: IndexError::NoBlob(number) }));
        };
        if let Some(blob) = slot.get() {
            return Ok(Arc::clone(blob));
        }
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(blob) = slot.get() {
            return Ok(Arc::clone(blob));
        }
        let blob = Arc::new(Blob::open(Arc::clone(&self.index), number, &self.cache)?);
        Ok(Arc::clone(slot.get_or_init(|| blob)))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(task) = self.prefetch.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

/// From the first to the last of some chunks that are not usable.
fn missing(blob: &Blob, chunks: &Range<u32>) -> Result<Option<Range<u32>>, Arc<ReadError>> {
    let mut missing: Option<Range<u32>> = None;
    for chunk in chunks.clone() {
        if !blob.is_usable(chunk)? {
            let start = missing.map_or(chunk, |m| m.start);
            missing = Some(start..chunk + 1);
        }
    }
    Ok(missing)
}

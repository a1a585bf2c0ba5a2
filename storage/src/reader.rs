//! The data path of one mounted image: bytes at device addresses of its blobs.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use lazo_format::{BlobIndex, ChunkIndex, DeviceAddr, IndexError};
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use crate::blob::Blob;
use crate::bounds::Bounds;
use crate::cache::Cache;
use crate::error::ReadError;
use crate::fetch::Fetcher;
use crate::flight::Outcome;
use crate::metrics::{Counted, Metrics, Stats};
use crate::rate::RateLimiter;
use crate::source::BlobSource;
use crate::table::ImageIndex;
use crate::upstream::{Policy, Trouble, Upstream};
use crate::window;

/// Rounds of fetching for one read. One is enough unless what others had begun to fetch was given up, or chunks go from the cache
/// again meanwhile.
const ROUNDS: u32 = 8;

/// Most chunks that are read ahead at a time, however little is stored of them.
const MAX_AHEAD_CHUNKS: u32 = 16 << 10;

/// What a [`Reader`] works with.
#[derive(Debug)]
pub struct Parts {
    /// The image's chunk index.
    pub index: Arc<ImageIndex>,
    /// Where its blobs come from.
    pub upstream: Upstream,
    /// Where they stay.
    pub cache: Arc<Cache>,
    /// Memory and threads for fetching, shared by all readers of a process.
    pub bounds: Bounds,
    /// Bound on what nobody waits for.
    pub rate: RateLimiter,
    /// What counts.
    pub metrics: Arc<Metrics>,
    /// Runs the tasks.
    pub runtime: Handle,
}

impl Parts {
    /// With no bound on what nobody waits for, and the defaults for all else.
    #[must_use]
    pub fn new(index: Arc<ImageIndex>, sources: Vec<Arc<dyn BlobSource>>, cache: Arc<Cache>, runtime: Handle) -> Self {
        let metrics = Arc::new(Metrics::new());
        let upstream = Upstream::new(sources, Policy::default(), Arc::clone(&metrics));
        Self { index, upstream, cache, bounds: Bounds::default(), rate: RateLimiter::new(None, None), metrics, runtime }
    }
}

/// Reads an image's blobs. Cheap to make; opens a blob's cache when it is first read.
#[derive(Debug)]
pub struct Reader {
    pub(crate) index: Arc<ImageIndex>,
    blobs: Box<[OnceCell<Arc<Blob>>]>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) runtime: Handle,
    pub(crate) background: Mutex<Option<JoinHandle<()>>>,
    pub(crate) sealing: Mutex<Option<JoinHandle<()>>>,
    pub(crate) prefetched: OnceLock<Counted>,
    pub(crate) filled: OnceLock<Counted>,
}

impl Reader {
    /// A reader of the blobs in the index.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { index, upstream, cache, bounds, rate, metrics, runtime } = parts;
        Self {
            blobs: (0..index.blob_count()).map(|_| OnceCell::new()).collect(),
            cache,
            fetcher: Arc::new(Fetcher::new(upstream, bounds, rate, Arc::clone(&metrics), runtime.clone())),
            metrics,
            background: Mutex::default(),
            sealing: Mutex::default(),
            prefetched: OnceLock::new(),
            filled: OnceLock::new(),
            index,
            runtime,
        }
    }

    /// What no source serves just now that somebody reads; none if nothing is missed.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        self.fetcher.upstream().trouble()
    }

    /// Opens a blob, on a thread for what blocks. Whether it had not been open before.
    ///
    /// # Errors
    /// When the image has no such blob, or the reader's runtime has ended.
    pub async fn open(&self, blob: BlobIndex) -> Result<bool, Arc<ReadError>> {
        if self.opened(blob)?.is_some() {
            return Ok(false);
        }
        self.blob(blob).await?;
        Ok(true)
    }

    /// Fills `buf` from the cache if the blob is open and everything that is asked for is there; never waits for the network.
    ///
    /// When it returns false, `buf` holds nothing of use and [`Reader::fetch`] is to be called.
    ///
    /// # Errors
    /// When the chunk index has no such address, or the cache cannot be used.
    pub fn read_cached(&self, blob: BlobIndex, at: DeviceAddr, buf: &mut [u8]) -> Result<bool, Arc<ReadError>> {
        let Some(blob) = self.opened(blob)? else { return Ok(false) };
        let chunks = locate(blob, at, buf.len())?;
        for chunk in chunks.clone() {
            if !blob.is_usable(chunk)? {
                return Ok(false);
            }
        }
        for chunk in chunks.clone() {
            if blob.take_mark(chunk) {
                self.read_ahead(blob, &(chunk..chunk + 1))?;
            }
        }
        Ok(blob.read(at.0, buf, chunks))
    }

    /// Brings everything in `length` bytes from a device address into the cache.
    ///
    /// # Errors
    /// When a chunk cannot be had: sources and cache have been tried again where that makes sense.
    pub async fn fetch(&self, blob: BlobIndex, at: DeviceAddr, length: usize) -> Result<(), Arc<ReadError>> {
        let blob = self.blob(blob).await?;
        let chunks = locate(&blob, at, length)?;
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
                if let Outcome::Failed(error) = flight.wait().await {
                    return Err(error);
                }
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
        let blob = self.blob(blob).await?;
        let chunks = locate(&blob, at, buf.len())?;
        Err(Arc::new(ReadError::Lost { digest: blob.record().digest, chunk: ChunkIndex(chunks.start) }))
    }

    /// The source that a read waits for: the one that would be asked now.
    #[must_use]
    pub fn waiting_for(&self) -> Arc<str> {
        self.fetcher.upstream().serving()
    }

    /// Where its blobs come from, which may change while it reads.
    #[must_use]
    pub fn upstream(&self) -> &Upstream {
        self.fetcher.upstream()
    }

    /// Counts since the process began.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.metrics.stats()
    }

    /// Fetches ahead what a read of `chunks` makes likely to be read next.
    fn read_ahead(&self, blob: &Arc<Blob>, chunks: &Range<u32>) -> Result<(), Arc<ReadError>> {
        let stored = blob.stored_range(chunks)?;
        let (least, most) = window::ahead_bytes(&self.fetcher.upstream().speed());
        let ahead = blob.streams().read(&stored, least, most);
        let Some(ahead) = ahead else { return Ok(()) };
        let mut fetch = blob.chunks_stored_in(&ahead.fetch)?;
        fetch.end = fetch.end.min(fetch.start.saturating_add(MAX_AHEAD_CHUNKS));
        if !fetch.is_empty() {
            let mark = blob.chunks_stored_in(&(ahead.mark..ahead.fetch.end))?;
            blob.mark(mark.start.min(fetch.end - 1));
            self.fetcher.ahead(blob, fetch);
        }
        Ok(())
    }

    /// A blob, if it is open.
    fn opened(&self, number: BlobIndex) -> Result<Option<&Arc<Blob>>, Arc<ReadError>> {
        self.slot(number).map(OnceCell::get)
    }

    fn slot(&self, number: BlobIndex) -> Result<&OnceCell<Arc<Blob>>, Arc<ReadError>> {
        self.blobs
            .get(usize::from(number.0))
            .ok_or_else(|| Arc::new(ReadError::Index { blob: number, at: 0, source: IndexError::NoBlob(number) }))
    }

    /// A blob, opened on a thread for what blocks when it is first wanted: neither those that answer the kernel nor those that run
    /// tasks wait for its files.
    pub(crate) async fn blob(&self, number: BlobIndex) -> Result<Arc<Blob>, Arc<ReadError>> {
        let open = || async {
            let (index, cache) = (Arc::clone(&self.index), Arc::clone(&self.cache));
            let opening = self.runtime.spawn_blocking(move || Blob::open(index, number, &cache).map(Arc::new));
            opening.await.unwrap_or_else(|_| Err(self.stopped(number)))
        };
        self.slot(number)?.get_or_try_init(open).await.cloned()
    }

    /// Nothing of a blob can be had any more.
    fn stopped(&self, number: BlobIndex) -> Arc<ReadError> {
        Arc::new(match self.index.blob(number) {
            Ok(record) => ReadError::Stopped { digest: record.digest, chunk: record.first_chunk },
            Err(source) => ReadError::Index { blob: number, at: 0, source },
        })
    }
}

fn locate(blob: &Blob, at: DeviceAddr, length: usize) -> Result<Range<u32>, Arc<ReadError>> {
    blob.chunks_in(at.0..at.0.saturating_add(length as u64))
}

impl Drop for Reader {
    fn drop(&mut self) {
        for task in [&mut self.background, &mut self.sealing] {
            if let Some(task) = task.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
                task.abort();
            }
        }
        // Nobody waits for anything any more.
        self.fetcher.stop();
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
